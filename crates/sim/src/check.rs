//! Judges a history by the promises, one key at a time, knowing nothing about the code.
//!
//! Versions are the witness: they give an order of a key's writes, and the history is linearizable
//! if that order agrees with real time, every version has one value, and every answer fits its
//! place in the order. Answers without a version (RESP) are judged by real time alone.
//!
//! K1. A value is seen only at its own key, after its write was asked for, and at one version.
//! K2. Versions agree with real time: an operation that ended before a write began has a smaller
//!     version, and what it saw is not newer than what later reads see. "Absent" carries the counter.
//! K3. Nothing that was overwritten, removed or flushed before a read began is seen by it.
//! K4. Nothing is gone that was acknowledged, unless something may have removed it or it may have
//!     expired.
//! K5. A write that names what it replaces replaces just that.
//! K6. Nothing is served later than its deadline allows, and no acknowledged touch is forgotten.

use std::collections::BTreeMap;

use crate::cluster_time::ClusterTime;
use crate::history::{
    Asked, Deadline, Expiry, History, NEVER, Operation, Saw, ValueId, Version, When,
};

/// How exactly expiry can be judged.
#[derive(Clone, Debug, Default)]
pub struct Yardstick {
    pub time: ClusterTime,
    /// The published bound, and what this run's clocks may add.
    pub slack_ms: u64,
}

/// Every broken promise in a history.
pub fn check(history: &History, yardstick: &Yardstick) -> Vec<String> {
    let mut violations = history.violations.clone();
    for (key, operations) in history.by_key() {
        let name = history.keys.name(key);
        let mut found = KeyHistory::new(&operations, yardstick).check();
        found.sort();
        found.dedup();
        violations.extend(
            found
                .into_iter()
                .map(|violation| format!("{name}: {violation}")),
        );
    }
    violations
}

/// A write (put, delete or flush) that happened or may have happened.
#[derive(Clone, Copy, Debug)]
struct Write {
    invoked_us: u64,
    /// When it had happened for certain: at its answer, or when somebody saw it.
    done_us: u64,
    /// `None`: it removes.
    value: Option<ValueId>,
    version: Option<Version>,
    sure: bool,
    expiry: Expiry,
    deadline: Deadline,
    when: When,
    old: Option<Option<ValueId>>,
}

/// A touch that happened or may have happened.
#[derive(Clone, Copy, Debug)]
struct Touch {
    invoked_us: u64,
    done_us: u64,
    version: Option<Version>,
    sure: bool,
    expiry: Expiry,
    deadline: Deadline,
}

/// What somebody saw.
#[derive(Clone, Copy, Debug)]
struct Sight {
    invoked_us: u64,
    returned_us: u64,
    seen: Seen,
    deadline: Deadline,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Present {
        value: Option<ValueId>,
        version: Option<Version>,
    },
    Absent {
        counter: Option<Version>,
    },
}

struct KeyHistory<'a> {
    yardstick: &'a Yardstick,
    writes: Vec<Write>,
    touches: Vec<Touch>,
    sights: Vec<Sight>,
    violations: Vec<String>,
}

impl<'a> KeyHistory<'a> {
    fn new(operations: &[&Operation], yardstick: &'a Yardstick) -> KeyHistory<'a> {
        let mut history = KeyHistory {
            yardstick,
            writes: Vec::new(),
            touches: Vec::new(),
            sights: Vec::new(),
            violations: Vec::new(),
        };
        for operation in operations {
            history.take(operation);
        }
        history
    }

    fn take(&mut self, operation: &Operation) {
        let Operation {
            invoked_us,
            returned_us,
            asked,
            saw,
            ..
        } = *operation;
        let sight = |seen, deadline| Sight {
            invoked_us,
            returned_us,
            seen,
            deadline,
        };
        // Whatever was asked, the answer may tell what was there.
        match saw {
            Saw::Present {
                value,
                version,
                deadline,
            } => {
                self.sights
                    .push(sight(Seen::Present { value, version }, deadline));
            }
            Saw::Absent { version: counter } => {
                self.sights
                    .push(sight(Seen::Absent { counter }, Deadline::NotSaid));
            }
            Saw::Refused { version } => {
                let seen = Seen::Present {
                    value: None,
                    version,
                };
                self.sights.push(sight(seen, Deadline::NotSaid));
            }
            Saw::Done { .. } | Saw::Unknown | Saw::RefusedOrAbsent => {}
        }
        let (when, value, expiry) = match asked {
            Asked::Read => return,
            Asked::Touch { when, expiry } => {
                let (version, deadline, sure) = match saw {
                    Saw::Present {
                        version, deadline, ..
                    }
                    | Saw::Done {
                        version, deadline, ..
                    } => (version, deadline, true),
                    Saw::Unknown => (None, Deadline::NotSaid, false),
                    _ => return self.refused(operation, when),
                };
                if let (Saw::Done { .. }, Some(_)) = (saw, version) {
                    let seen = Seen::Present {
                        value: None,
                        version,
                    };
                    self.sights.push(sight(seen, Deadline::NotSaid));
                }
                let done_us = returned_us;
                let touch = Touch {
                    invoked_us,
                    done_us,
                    version,
                    sure,
                    expiry,
                    deadline,
                };
                self.touches.push(touch);
                return;
            }
            Asked::Put {
                value,
                when,
                expiry,
            } => (when, Some(value), expiry),
            Asked::Delete { when } => (when, None, Expiry::Never),
            Asked::Flush => (When::Always, None, Expiry::Never),
        };
        let (version, deadline, old, sure) = match saw {
            Saw::Done {
                version,
                deadline,
                old,
            } => (version, deadline, old, true),
            Saw::Unknown => (None, Deadline::NotSaid, None, false),
            _ => return self.refused(operation, when),
        };
        self.writes.push(Write {
            invoked_us,
            done_us: returned_us,
            value,
            version,
            sure,
            expiry,
            deadline,
            when,
            old,
        });
        if !sure {
            return;
        }
        // A write that was done saw what its condition asks for, just before.
        let seen = match (when, old) {
            (When::Value(value), _) => Seen::Present {
                value: Some(value),
                version: None,
            },
            (When::Version(named), _) => Seen::Present {
                value: None,
                version: Some(named),
            },
            (_, Some(Some(value))) => Seen::Present {
                value: Some(value),
                version: None,
            },
            (When::Absent, _) | (_, Some(None)) => Seen::Absent {
                counter: version.map(|version| version.saturating_sub(1)),
            },
            _ => return,
        };
        self.sights.push(sight(seen, Deadline::NotSaid));
    }

    /// K5, for refusals: they must have had a reason.
    fn refused(&mut self, operation: &Operation, when: When) {
        let reasonable = match (when, operation.saw) {
            (When::Always, Saw::Absent { .. }) => true,
            (When::Always, _) => false,
            (When::Absent, Saw::Absent { .. }) => false,
            (When::Present, Saw::Refused { .. }) => false,
            (
                When::Version(named),
                Saw::Refused {
                    version: Some(version),
                },
            ) => named != version,
            _ => true,
        };
        if !reasonable {
            self.violate(format!("K5 refused without reason: {operation:?}"));
        }
    }

    fn violate(&mut self, violation: String) {
        self.violations.push(violation);
    }

    fn check(mut self) -> Vec<String> {
        self.bind();
        self.nothing_stale_is_seen();
        self.nothing_is_lost();
        self.versions_agree_with_time();
        self.conditions_held();
        self.expiry_is_kept();
        self.violations
    }

    /// K1. Gives writes the versions at which their values were seen, and notes when they had
    /// happened for certain.
    fn bind(&mut self) {
        let mut by_value: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (index, write) in self.writes.iter().enumerate() {
            if let Some(value) = write.value {
                by_value.insert(value, index);
            }
        }
        for sight in self.sights.clone() {
            let Seen::Present {
                value: Some(value),
                version,
            } = sight.seen
            else {
                continue;
            };
            let Some(&index) = by_value.get(&value) else {
                self.violate(format!(
                    "K1 a write that was refused is seen: {value:?} in {sight:?}"
                ));
                continue;
            };
            let write = &mut self.writes[index];
            if write.invoked_us > sight.returned_us {
                self.violations.push(format!(
                    "K1 {value:?} seen before it was written: {sight:?}"
                ));
            }
            write.sure = true;
            write.done_us = write.done_us.min(sight.returned_us);
            match (write.version, version) {
                (Some(bound), Some(seen)) if bound != seen => self.violations.push(format!(
                    "K1 {value:?} has two versions, {bound} and {seen}: executed twice? {sight:?}"
                )),
                (None, Some(seen)) => write.version = Some(seen),
                _ => {}
            }
        }
        let mut by_version: BTreeMap<Version, usize> = BTreeMap::new();
        for index in 0..self.writes.len() {
            if let Some(version) = self.writes[index].version
                && let Some(other) = by_version.insert(version, index)
            {
                let (a, b) = (self.writes[other], self.writes[index]);
                self.violate(format!("K1 version {version} given twice: {a:?} and {b:?}"));
            }
        }
        for index in 0..self.sights.len() {
            let sight = self.sights[index];
            match sight.seen {
                Seen::Present {
                    value: Some(value),
                    version: None,
                } => {
                    let version = by_value
                        .get(&value)
                        .and_then(|&write| self.writes[write].version);
                    self.sights[index].seen = Seen::Present {
                        value: Some(value),
                        version,
                    };
                }
                Seen::Present {
                    value: None,
                    version: Some(version),
                } => {
                    if let Some(&write) = by_version.get(&version) {
                        let value = self.writes[write].value;
                        if value.is_none() {
                            let write = self.writes[write];
                            self.violate(format!("K1 {sight:?} names the version of {write:?}"));
                        }
                        let write = &mut self.writes[write];
                        write.done_us = write.done_us.min(sight.returned_us);
                        self.sights[index].seen = Seen::Present {
                            value,
                            version: Some(version),
                        };
                    }
                }
                _ => {}
            }
        }
    }

    fn write_of(&self, value: ValueId) -> Option<Write> {
        self.writes
            .iter()
            .copied()
            .find(|write| write.value == Some(value))
    }

    /// K3. What was overwritten or removed for certain, or was once seen to be gone, stays so.
    fn nothing_stale_is_seen(&mut self) {
        let gone = |sight: &Sight| matches!(sight.seen, Seen::Absent { .. });
        let absences: Vec<Sight> = self.sights.iter().copied().filter(gone).collect();
        for sight in self.sights.clone() {
            let Seen::Present {
                value: Some(value), ..
            } = sight.seen
            else {
                continue;
            };
            let Some(seen) = self.write_of(value) else {
                continue;
            };
            let newer = self.writes.iter().copied().find(|write| {
                write.sure && seen.done_us < write.invoked_us && write.done_us < sight.invoked_us
            });
            if let Some(newer) = newer {
                let what = match newer.value {
                    Some(_) => "stale",
                    None => "back from the dead",
                };
                self.violate(format!("K3 {value:?} is {what}: {sight:?} after {newer:?}"));
            }
            let absence = absences.iter().find(|absence| {
                seen.done_us < absence.invoked_us && absence.returned_us < sight.invoked_us
            });
            if let Some(absence) = absence {
                self.violate(format!(
                    "K3 {value:?} is back from the dead: {sight:?} after {absence:?}"
                ));
            }
        }
    }

    /// K4.
    fn nothing_is_lost(&mut self) {
        for sight in self.sights.clone() {
            let Seen::Absent { .. } = sight.seen else {
                continue;
            };
            let puts_before: Vec<Write> = self
                .writes
                .iter()
                .copied()
                .filter(|w| w.sure && w.value.is_some() && w.done_us < sight.invoked_us)
                .collect();
            let Some(latest) = puts_before.iter().max_by_key(|write| write.invoked_us) else {
                continue;
            };
            let newest_version = puts_before.iter().filter_map(|write| write.version).max();
            let removed = self.writes.iter().any(|write| {
                write.value.is_none()
                    && write.invoked_us < sight.returned_us
                    && write.done_us >= latest.invoked_us
                    && match (write.version, newest_version) {
                        (Some(removed), Some(newest)) => removed > newest,
                        _ => true,
                    }
            });
            // Any put that may be the newest may also be the one that has expired.
            let expired = || {
                self.writes.iter().any(|write| {
                    write.value.is_some()
                        && write.invoked_us < sight.returned_us
                        && write.done_us >= latest.invoked_us
                        && self.may_have_expired(write, &sight)
                })
            };
            if !removed && !expired() {
                self.violate(format!("K4 lost: {latest:?} is gone in {sight:?}"));
            }
        }
    }

    fn may_have_expired(&self, put: &Write, sight: &Sight) -> bool {
        let Some(by_ms) = self.yardstick.time.at_ms(sight.returned_us) else {
            return false;
        };
        let by_ms = by_ms + self.yardstick.slack_ms;
        let touches = self.touches_of(put, sight.returned_us);
        // A touch ends every deadline set for certain before it was asked for.
        let superseded = |since_us: u64| {
            touches.iter().any(|touch| {
                touch.sure
                    && touch.version.is_some()
                    && touch.version == put.version
                    && touch.invoked_us > since_us
                    && touch.done_us < sight.invoked_us
            })
        };
        let early =
            |expiry, deadline, invoked_us| match self.earliest_ms(expiry, deadline, invoked_us) {
                Some(earliest_ms) => earliest_ms <= by_ms,
                None => false,
            };
        if early(put.expiry, put.deadline, put.invoked_us) && !superseded(put.done_us) {
            return true;
        }
        touches.iter().any(|touch| {
            early(touch.expiry, touch.deadline, touch.invoked_us) && !superseded(touch.done_us)
        })
    }

    fn touches_of(&self, put: &Write, until_us: u64) -> Vec<Touch> {
        let concerns = |touch: &&Touch| {
            touch.invoked_us < until_us
                && touch.done_us >= put.invoked_us
                && (touch.version.is_none()
                    || put.version.is_none()
                    || touch.version == put.version)
        };
        self.touches.iter().filter(concerns).copied().collect()
    }

    /// The earliest deadline such a write can have given; `None` if it gave none.
    fn earliest_ms(&self, expiry: Expiry, deadline: Deadline, invoked_us: u64) -> Option<u64> {
        match (deadline, expiry) {
            (Deadline::At(at_ms), _) => Some(at_ms),
            (Deadline::Never, _) | (_, Expiry::Never) => None,
            (_, Expiry::InMs(ms)) => Some(self.yardstick.time.at_ms(invoked_us).unwrap_or(0) + ms),
            (_, Expiry::Inherited) => Some(0),
        }
    }

    /// The latest deadline such a write can have given; `None` if it may have given none.
    fn latest_ms(&self, expiry: Expiry, deadline: Deadline, done_us: u64) -> Option<u64> {
        match (deadline, expiry) {
            (Deadline::At(at_ms), _) => Some(at_ms),
            (Deadline::NotSaid, Expiry::InMs(ms)) if done_us != NEVER => {
                Some(self.yardstick.time.at_ms(done_us)? + ms)
            }
            _ => None,
        }
    }

    /// K2. Versions become places on a line: a write and its reads at twice its version, an absence
    /// just above twice its counter. Then places may not go back in real time.
    fn versions_agree_with_time(&mut self) {
        struct Point {
            invoked_us: u64,
            done_us: u64,
            place: u64,
            is_write: bool,
            text: String,
        }
        let mut points: Vec<Point> = Vec::new();
        for write in self.writes.iter().filter(|write| write.sure) {
            if let Some(version) = write.version {
                points.push(Point {
                    invoked_us: write.invoked_us,
                    done_us: write.done_us,
                    place: 2 * version,
                    is_write: true,
                    text: format!("{write:?}"),
                });
            }
        }
        for sight in &self.sights {
            let place = match sight.seen {
                Seen::Present {
                    version: Some(version),
                    ..
                } => 2 * version,
                Seen::Absent {
                    counter: Some(counter),
                } => 2 * counter + 1,
                _ => continue,
            };
            points.push(Point {
                invoked_us: sight.invoked_us,
                done_us: sight.returned_us,
                place,
                is_write: false,
                text: format!("{sight:?}"),
            });
        }
        let mut by_end: Vec<usize> = (0..points.len()).collect();
        by_end.sort_by_key(|&index| points[index].done_us);
        let mut by_start: Vec<usize> = (0..points.len()).collect();
        by_start.sort_by_key(|&index| points[index].invoked_us);
        let mut ended = by_end.into_iter().peekable();
        let mut highest: Option<usize> = None;
        let mut found = Vec::new();
        for index in by_start {
            let point = &points[index];
            while let Some(&end) = ended.peek()
                && points[end].done_us < point.invoked_us
            {
                if highest.is_none_or(|highest| points[highest].place < points[end].place) {
                    highest = Some(end);
                }
                ended.next();
            }
            let Some(before) = highest.map(|highest| &points[highest]) else {
                continue;
            };
            let back = match point.is_write {
                true => point.place <= before.place,
                false => point.place < before.place,
            };
            if back {
                found.push(format!(
                    "K2 goes back: {} after {}",
                    point.text, before.text
                ));
            }
        }
        self.violations.extend(found);
    }

    /// K5, for writes that were done.
    fn conditions_held(&mut self) {
        for write in self.writes.clone() {
            let Some(version) = write.version.filter(|_| write.sure) else {
                continue;
            };
            let of_value = |value: ValueId| self.write_of(value).and_then(|write| write.version);
            let replaced = match (write.when, write.old) {
                (When::Version(named), _) => Some(named),
                (When::Value(value), _) | (_, Some(Some(value))) => of_value(value),
                _ => None,
            };
            let Some(replaced) = replaced else { continue };
            let between = self.writes.iter().copied().find(|other| {
                other.sure && other.version.is_some_and(|v| replaced < v && v < version)
            });
            if let Some(between) = between {
                self.violate(format!(
                    "K5 {write:?} replaced not {replaced} but {between:?}"
                ));
            }
            if replaced >= version {
                self.violate(format!("K5 {write:?} replaced the later {replaced}"));
            }
        }
    }

    /// K6.
    fn expiry_is_kept(&mut self) {
        for sight in self.sights.clone() {
            let Seen::Present { value, version } = sight.seen else {
                continue;
            };
            let Some(asked_ms) = self.yardstick.time.at_ms(sight.invoked_us) else {
                continue;
            };
            let late = |deadline_ms: u64| asked_ms > deadline_ms + self.yardstick.slack_ms;
            if let Deadline::At(deadline_ms) = sight.deadline
                && late(deadline_ms)
            {
                self.violate(format!(
                    "K6 served at {asked_ms}, after its deadline: {sight:?}"
                ));
                continue;
            }
            let Some(put) = value.and_then(|value| self.write_of(value)) else {
                continue;
            };
            let touches = self.touches_of(&put, sight.returned_us);
            let mut latest = self.latest_ms(put.expiry, put.deadline, put.done_us);
            for touch in &touches {
                let touched = self.latest_ms(touch.expiry, touch.deadline, touch.done_us);
                latest = latest.zip(touched).map(|(a, b)| a.max(b));
            }
            if latest.is_some_and(late) {
                self.violate(format!(
                    "K6 served at {asked_ms}, after {latest:?}: {sight:?}"
                ));
            }
            // The deadline a read tells must not be one that an acknowledged touch has ended.
            if sight.deadline == Deadline::NotSaid || version.is_none() {
                continue;
            }
            let told = |deadline: Deadline| deadline == sight.deadline;
            let forgotten = touches.iter().copied().find(|touch| {
                touch.sure
                    && touch.version == version
                    && touch.deadline != Deadline::NotSaid
                    && !told(touch.deadline)
                    && touch.done_us < sight.invoked_us
                    && told(put.deadline)
                    && put.done_us < touch.invoked_us
                    && touches
                        .iter()
                        .all(|other| other.deadline != Deadline::NotSaid && !told(other.deadline))
            });
            if let Some(forgotten) = forgotten {
                self.violate(format!(
                    "K6 a touch is forgotten: {sight:?} after {forgotten:?}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
