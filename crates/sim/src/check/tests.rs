use super::*;
use crate::history::{KeyClass, KeyId};

struct Script {
    history: History,
    key: KeyId,
    time: ClusterTime,
}

impl Script {
    fn new() -> Script {
        let mut history = History::default();
        let key = history.keys.add("k".to_owned(), KeyClass::Hot);
        let mut time = ClusterTime::default();
        time.observe(0, 0);
        Script { history, key, time }
    }

    /// Times in milliseconds.
    fn op(&mut self, from_ms: u64, to_ms: u64, asked: Asked, saw: Saw) -> &mut Script {
        let returned_us = if to_ms == NEVER { NEVER } else { to_ms * 1000 };
        self.history.operations.push(Operation {
            client: 0,
            key: self.key,
            invoked_us: from_ms * 1000,
            returned_us,
            asked,
            saw,
        });
        self
    }

    fn violations(&self) -> Vec<String> {
        check(
            &self.history,
            &Yardstick {
                time: self.time.clone(),
                slack_ms: 500,
            },
        )
    }

    fn finds(&self, rule: &str) {
        let violations = self.violations();
        assert!(
            violations.iter().any(|v| v.contains(rule)),
            "{rule} not in {violations:#?}"
        );
    }

    fn is_clean(&self) {
        assert_eq!(self.violations(), Vec::<String>::new());
    }
}

fn put(value: u32) -> Asked {
    Asked::Put {
        value: ValueId(value),
        when: When::Always,
        expiry: Expiry::Never,
    }
}
fn put_for(value: u32, ms: u64) -> Asked {
    Asked::Put {
        value: ValueId(value),
        when: When::Always,
        expiry: Expiry::InMs(ms),
    }
}
fn delete() -> Asked {
    Asked::Delete { when: When::Always }
}
fn done(version: u64) -> Saw {
    Saw::Done {
        version: Some(version),
        deadline: Deadline::Never,
        old: None,
    }
}
fn ok() -> Saw {
    Saw::Done {
        version: None,
        deadline: Deadline::NotSaid,
        old: None,
    }
}
fn saw(value: u32, version: u64) -> Saw {
    Saw::Present {
        value: Some(ValueId(value)),
        version: Some(version),
        deadline: Deadline::Never,
    }
}
fn got(value: u32) -> Saw {
    let value = Some(ValueId(value));
    Saw::Present {
        value,
        version: None,
        deadline: Deadline::NotSaid,
    }
}
fn absent(counter: u64) -> Saw {
    Saw::Absent {
        version: Some(counter),
    }
}
const NIL: Saw = Saw::Absent { version: None };

#[test]
fn a_plain_life_is_clean() {
    Script::new()
        .op(0, 1, Asked::Read, absent(3))
        .op(2, 5, put(1), done(4))
        .op(3, 6, Asked::Read, saw(1, 4))
        .op(7, NEVER, put(2), Saw::Unknown)
        .op(9, 10, Asked::Read, saw(1, 4))
        .op(11, 12, Asked::Read, saw(2, 6))
        .op(13, 14, delete(), done(8))
        .op(15, 16, Asked::Read, absent(8))
        .is_clean();
}

#[test]
fn stale_reads_are_found_with_and_without_versions() {
    let mut script = Script::new();
    script.op(0, 1, put(1), done(4)).op(2, 3, put(2), done(5));
    script.op(4, 5, Asked::Read, saw(1, 4)).finds("K2");
    script.finds("K3");
    let mut script = Script::new();
    script.op(0, 1, put(1), ok()).op(2, 3, put(2), ok());
    script.op(4, 5, Asked::Read, got(1)).finds("K3");
}

#[test]
fn a_read_that_overlaps_may_see_either() {
    Script::new()
        .op(0, 1, put(1), ok())
        .op(2, 10, put(2), ok())
        .op(3, 4, Asked::Read, got(1))
        .op(5, 6, Asked::Read, got(2))
        .is_clean();
    // But nobody may see the old one after somebody has seen the new one.
    let mut script = Script::new();
    script.op(0, 1, put(1), ok()).op(2, 10, put(2), ok());
    script
        .op(3, 4, Asked::Read, got(2))
        .op(5, 6, Asked::Read, got(1));
    script.op(11, 12, Asked::Read, got(1)).finds("K3");
}

#[test]
fn lost_writes_are_found() {
    let mut script = Script::new();
    script
        .op(0, 1, put(1), ok())
        .op(2, 3, Asked::Read, NIL)
        .finds("K4");
    let mut script = Script::new();
    script.op(0, 1, delete(), ok()).op(2, 3, put(1), ok());
    script.op(4, 5, Asked::Read, NIL).finds("K4");
    // A delete of unknown outcome may have happened, at any time after it was asked for.
    Script::new()
        .op(0, NEVER, delete(), Saw::Unknown)
        .op(2, 3, put(1), ok())
        .op(4, 5, Asked::Read, NIL)
        .is_clean();
}

#[test]
fn a_version_settles_which_delete_came_first() {
    let mut script = Script::new();
    script.op(0, 9, delete(), done(4)).op(0, 9, put(1), done(5));
    script.op(10, 11, Asked::Read, absent(7)).finds("K4");
    Script::new()
        .op(0, 9, delete(), done(6))
        .op(0, 9, put(1), done(5))
        .op(10, 11, Asked::Read, absent(7))
        .is_clean();
}

#[test]
fn what_was_removed_stays_removed() {
    let mut script = Script::new();
    script.op(0, 1, put(1), done(2)).op(2, 3, delete(), done(3));
    script.op(4, 5, Asked::Read, saw(1, 2)).finds("K3");
    // Whoever saw nothing must not see it again, even if nobody knows what removed it.
    let mut script = Script::new();
    script
        .op(0, 1, put(1), ok())
        .op(2, NEVER, delete(), Saw::Unknown)
        .op(3, 4, Asked::Read, NIL);
    script.is_clean();
    script.op(5, 6, Asked::Read, got(1)).finds("K3");
    let mut script = Script::new();
    script
        .op(0, 1, put_for(1, 100), ok())
        .op(800, 801, Asked::Read, absent(9));
    script.op(900, 901, Asked::Read, saw(1, 2)).finds("K2");
}

#[test]
fn double_execution_is_found() {
    let mut script = Script::new();
    script.op(0, 1, put(1), done(2)).op(2, 3, put(2), done(3));
    script.op(4, 5, Asked::Read, saw(1, 4)).finds("K1");
}

#[test]
fn refused_writes_must_not_show() {
    let asked = Asked::Put {
        value: ValueId(2),
        when: When::Absent,
        expiry: Expiry::Never,
    };
    let mut script = Script::new();
    script
        .op(0, 1, put(1), ok())
        .op(2, 3, asked, Saw::Refused { version: None });
    script.is_clean();
    script.op(4, 5, Asked::Read, got(2)).finds("K1");
}

#[test]
fn conditions_are_checked() {
    let when = When::Version(4);
    let asked = Asked::Put {
        value: ValueId(3),
        when,
        expiry: Expiry::Never,
    };
    let mut script = Script::new();
    script.op(0, 1, put(1), done(4)).op(2, 9, put(2), done(5));
    script.op(3, 10, asked, done(6)).finds("K5");
    let mut script = Script::new();
    script.op(0, 1, put(1), done(4));
    script
        .op(2, 3, asked, Saw::Refused { version: Some(4) })
        .finds("K5");
    let taken = Asked::Put {
        value: ValueId(2),
        when: When::Absent,
        expiry: Expiry::Never,
    };
    let mut script = Script::new();
    script
        .op(0, 1, put(1), ok())
        .op(2, 3, taken, ok())
        .finds("K4");
}

#[test]
fn expiry_is_judged_with_slack() {
    let mut script = Script::new();
    script.op(0, 1, put_for(1, 1_000), ok());
    script.op(1_400, 1_401, Asked::Read, got(1)).is_clean();
    script.op(1_600, 1_601, Asked::Read, got(1)).finds("K6");
    let mut script = Script::new();
    script.op(0, 1, put_for(1, 1_000), ok());
    script.op(600, 601, Asked::Read, NIL).is_clean();
    let mut script = Script::new();
    script.op(0, 1, put_for(1, 1_000), ok());
    script.op(400, 401, Asked::Read, NIL).finds("K4");
}

#[test]
fn acknowledged_touches_count() {
    let at = |ms| Saw::Done {
        version: Some(4),
        deadline: Deadline::At(ms),
        old: None,
    };
    let touch = |ms| Asked::Touch {
        when: When::Always,
        expiry: Expiry::InMs(ms),
    };
    let mut script = Script::new();
    script
        .op(0, 1, put_for(1, 1_000), at(1_000))
        .op(500, 501, touch(9_000), at(9_500));
    script.op(3_000, 3_001, Asked::Read, NIL).finds("K4");
    let mut script = Script::new();
    script
        .op(0, 1, put_for(1, 1_000), at(1_000))
        .op(500, 501, touch(9_000), at(9_500));
    let read = Saw::Present {
        value: Some(ValueId(1)),
        version: Some(4),
        deadline: Deadline::At(1_000),
    };
    script
        .op(600, 601, Asked::Read, read)
        .finds("K6 a touch is forgotten");
}
