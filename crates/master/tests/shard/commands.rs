//! What commands do and say.

use bytes::Bytes;
use holdfast_cluster::Node;
use holdfast_format::{ClientId, ClusterMs, KeyHash, LogId, Namespace, Slot, SlotRange, Version};
use holdfast_wire::*;

use crate::world::*;

fn deadline(world: &mut World, key: &str) -> Option<u64> {
    let outcome = world.ask(command(key, Op::Stat));
    meta_of(&outcome).deadline.map(|deadline| deadline.0)
}

#[test]
fn a_session_is_written_read_and_deleted_under_rising_versions() {
    let mut world = World::new(3, 3);
    let Outcome::Absent { version: before } = world.ask(get("a")) else {
        panic!()
    };
    let first = meta_of(&world.ask(put("a", "one"))).version;
    assert!(first > before);
    assert_eq!(world.value("a").as_deref(), Some("one"));
    let old = world.ask(command(
        "a",
        Op::Put {
            value: Bytes::from_static(b"two"),
            condition: Condition::Always,
            expiry: ExpiryChange::Clear,
            return_old: true,
        },
    ));
    let Outcome::Done {
        meta,
        old: Some(old),
    } = old
    else {
        panic!("{old:?}")
    };
    assert!(meta.version > first && &old[..] == b"one");
    let Outcome::Done { meta: deleted, .. } = world.ask(delete("a")) else {
        panic!()
    };
    assert!(deleted.version > meta.version);
    let Outcome::Absent { version } = world.ask(get("a")) else {
        panic!()
    };
    assert!(version >= deleted.version);
    assert!(matches!(world.ask(delete("a")), Outcome::Absent { .. }));
    world.shard.verify();
}

#[test]
fn conditions_hold_or_nothing_changes() {
    let mut world = World::new(3, 3);
    let keep = ExpiryChange::Keep;
    let check = |world: &mut World, condition: Condition, holds: bool| {
        let outcome = world.ask(put_with("k", "new", condition.clone(), keep));
        assert_eq!(
            matches!(outcome, Outcome::Done { .. }),
            holds,
            "{condition:?}: {outcome:?}"
        );
        if !holds {
            assert!(matches!(outcome, Outcome::Refused { .. }));
        }
        world.ask(put("k", "old"))
    };
    let refused = world.ask(put_with("k", "new", Condition::Present, keep));
    assert!(matches!(refused, Outcome::Refused { current: None, .. }));
    assert_eq!(world.value("k"), None);
    let old = world.ask(put("k", "old"));
    let version = meta_of(&old).version;
    check(&mut world, Condition::Absent, false);
    check(&mut world, Condition::Present, true);
    check(&mut world, Condition::Version(Version(version.0)), false);
    let now = meta_of(&world.ask(put("k", "old value"))).version;
    check(&mut world, Condition::Version(now), true);
    check(
        &mut world,
        Condition::ValueIs(Bytes::from_static(b"old")),
        true,
    );
    check(
        &mut world,
        Condition::ValueIs(Bytes::from_static(b"other")),
        false,
    );
    let unlock = |token: &'static [u8]| {
        let condition = Condition::ValueIs(Bytes::from_static(token));
        command(
            "k",
            Op::Delete {
                condition,
                return_old: false,
            },
        )
    };
    assert!(matches!(
        world.ask(unlock(b"mine")),
        Outcome::Refused {
            current: Some(_),
            ..
        }
    ));
    assert!(matches!(world.ask(unlock(b"old")), Outcome::Done { .. }));
    assert_eq!(world.value("k"), None);
}

#[test]
fn expiry_changes_as_redis_and_sessions_want_it() {
    let mut world = World::new(3, 3);
    let t = world.time().0;
    let set = |world: &mut World, expiry| {
        world.ask(put_with("s", "v", Condition::Always, expiry));
    };
    set(&mut world, ExpiryChange::In { ms: 5_000 });
    assert_eq!(deadline(&mut world, "s"), Some(t + 5_000));
    set(&mut world, ExpiryChange::Keep);
    assert_eq!(deadline(&mut world, "s"), Some(t + 5_000), "KEEPTTL");
    set(
        &mut world,
        ExpiryChange::At {
            deadline: ClusterMs(t + 9_000),
        },
    );
    assert_eq!(deadline(&mut world, "s"), Some(t + 9_000));
    set(&mut world, ExpiryChange::Clear);
    assert_eq!(deadline(&mut world, "s"), None, "plain SET");

    let session = ExpiryChange::Session {
        idle_ms: Some(3_000),
        absolute: Some(AbsoluteDeadline::InMs(4_000)),
    };
    set(&mut world, session);
    assert_eq!(deadline(&mut world, "s"), Some(t + 3_000));
    world.run(2_000);
    world.ask(touch("s", ExpiryChange::Slide));
    assert_eq!(
        deadline(&mut world, "s"),
        Some(t + 4_000),
        "never past the absolute deadline"
    );
    world.ask(touch("s", ExpiryChange::In { ms: 100_000 }));
    assert_eq!(deadline(&mut world, "s"), Some(t + 4_000));
    world.ask(touch("s", ExpiryChange::Clear));
    assert_eq!(
        deadline(&mut world, "s"),
        Some(t + 4_000),
        "PERSIST leaves the absolute deadline"
    );
    world.run(2_000);
    assert_eq!(world.value("s"), None, "expired");

    set(&mut world, ExpiryChange::In { ms: 1_000 });
    world.ask(touch("s", ExpiryChange::Clear));
    assert_eq!(deadline(&mut world, "s"), None);
    let longer = ExpiryChange::Session {
        idle_ms: Some(70_000),
        absolute: None,
    };
    let outcome = world.ask(touch("s", longer));
    assert_eq!(meta_of(&outcome).idle_ms, Some(70_000));
    assert_eq!(world.value("s").as_deref(), Some("v"));
    world.shard.verify();
}

/// SET with EXAT in the past, and EXPIRE with nothing left, delete.
#[test]
fn an_expiry_in_the_past_deletes_at_once() {
    let mut world = World::new(3, 3);
    let past = ExpiryChange::At {
        deadline: ClusterMs(5),
    };
    for change in [
        past,
        ExpiryChange::In { ms: 0 },
        ExpiryChange::In { ms: -7 },
    ] {
        let version = meta_of(&world.ask(put("a", "x"))).version;
        let outcome = world.ask(put_with("a", "y", Condition::Always, change));
        assert!(meta_of(&outcome).version > version, "a tombstone's version");
        assert_eq!(world.value("a"), None);
        world.ask(put("a", "x"));
        assert!(
            matches!(world.ask(touch("a", change)), Outcome::Done { .. }),
            "EXPIRE says 1"
        );
        assert_eq!(world.value("a"), None);
        assert!(matches!(
            world.ask(touch("a", change)),
            Outcome::Absent { .. }
        ));
    }
    world.ask(put("a", "x"));
    let getex = command(
        "a",
        Op::Touch {
            condition: TouchCondition::Always,
            expiry: past,
            return_value: true,
        },
    );
    assert_eq!(value_of(&world.ask(getex)).as_deref(), Ok("x"));
    assert_eq!(world.value("a"), None);
}

#[test]
fn touches_keep_the_version_and_obey_their_conditions() {
    let mut world = World::new(3, 3);
    let version = meta_of(&world.ask(put("a", "x"))).version;
    let mut check = |condition: TouchCondition, ms: i64, holds: bool| {
        let outcome = world.ask(touch_if("a", condition.clone(), ExpiryChange::In { ms }));
        match outcome {
            Outcome::Done { meta, .. } if holds => assert_eq!(meta.version, version),
            Outcome::Refused {
                current: Some(meta),
                ..
            } if !holds => {
                assert_eq!(meta.version, version);
            }
            other => panic!("{condition:?} {ms}: {other:?}"),
        }
    };
    check(TouchCondition::HasDeadline, 5_000, false);
    check(TouchCondition::Later, 5_000, false);
    check(TouchCondition::NoDeadline, 5_000, true);
    check(TouchCondition::NoDeadline, 6_000, false);
    check(TouchCondition::HasDeadline, 6_000, true);
    check(TouchCondition::Later, 6_000, false);
    check(TouchCondition::Later, 7_000, true);
    check(TouchCondition::Earlier, 8_000, false);
    check(TouchCondition::Earlier, 4_000, true);
    check(TouchCondition::Version(version), 5_000, true);
    check(
        TouchCondition::Version(Version(version.0 + 1)),
        5_000,
        false,
    );
    check(
        TouchCondition::ValueIs(Bytes::from_static(b"x")),
        5_000,
        true,
    );
    check(
        TouchCondition::ValueIs(Bytes::from_static(b"y")),
        5_000,
        false,
    );
}

#[test]
fn limits_and_nonsense_are_refused_each_in_its_own_way() {
    let mut world = World::new(3, 3);
    let long_key = "k".repeat(70_000);
    assert!(matches!(
        world.ask(get(&long_key)),
        Outcome::Failed(Failure::KeyTooLarge { bytes: 70_000, .. })
    ));
    let long_value = "v".repeat(17 << 20);
    assert!(matches!(
        world.ask(put("k", &long_value)),
        Outcome::Failed(Failure::ValueTooLarge { .. })
    ));
    let invalid = |outcome: Outcome| matches!(outcome, Outcome::Failed(Failure::Invalid(_)));
    let token = world.send_as(None, put("k", "v"));
    assert!(
        invalid(world.answers.remove(&token).unwrap()),
        "a write without identity"
    );
    let far = Once {
        lease_until: world.time().plus_ms(3_600_000),
        ..world.once()
    };
    assert!(invalid(world.ask_as(far, put("k", "v"))));
    let ahead = Once {
        acknowledged: 1_000,
        ..world.once()
    };
    assert!(invalid(world.ask_as(ahead, put("k", "v"))));
    let late = Once {
        lease_until: ClusterMs(world.time().0 - 1),
        ..world.once()
    };
    assert_eq!(
        world.ask_as(late, put("k", "v")),
        Outcome::Failed(Failure::StaleClient)
    );
    assert_eq!(world.value("k"), None);
}

#[test]
fn a_full_memory_refuses_writers_and_nobody_else() {
    let mut world = World::new(3, 3);
    let value = "x".repeat(4_000);
    let mut written = 0;
    loop {
        match world.ask(put(&format!("k{written}"), &value)) {
            Outcome::Done { .. } => written += 1,
            Outcome::Failed(Failure::OutOfMemory) => break,
            other => panic!("{other:?}"),
        }
        assert!(written < 100_000, "memory has no end");
    }
    assert_eq!(world.value("k0").as_deref(), Some(&value[..]));
    let outcome = world.ask(touch("k0", ExpiryChange::In { ms: 50_000 }));
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    for i in 0..written / 2 {
        let outcome = world.ask(delete(&format!("k{i}")));
        assert!(matches!(outcome, Outcome::Done { .. }), "{i}: {outcome:?}");
    }
    for _ in 0..200 {
        world.run(20);
    }
    let outcome = world.ask(put("new", &value));
    assert!(
        matches!(outcome, Outcome::Done { .. }),
        "what was deleted is usable: {outcome:?}"
    );
    world.shard.verify();
}

fn scan_all(world: &mut World, limit: u32) -> Vec<String> {
    let mut from = KeyHash(0);
    let mut found = Vec::new();
    loop {
        let outcome = world.ask(command("", Op::Scan { from, limit }));
        let Outcome::Scanned { keys, next } = outcome else {
            panic!("{outcome:?}")
        };
        found.extend(
            keys.iter()
                .map(|(_, key)| String::from_utf8(key.to_vec()).unwrap()),
        );
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    found.sort();
    found
}

#[test]
fn the_key_space_is_what_this_shard_owns() {
    let half = SlotRange {
        first: Slot(0),
        last: Slot(8191),
    };
    let mut world = World::with_id(1, 3, 3, half);
    let mut own = Vec::new();
    for i in 0..200 {
        let key = format!("key{i}");
        let outcome = world.ask(put(&key, "v"));
        if half.contains(Slot::of(key.as_bytes())) {
            assert!(matches!(outcome, Outcome::Done { .. }));
            own.push(key);
        } else {
            assert_eq!(outcome, Outcome::Failed(Failure::NotOwner));
            world.new_stream();
        }
    }
    own.sort();
    assert_eq!(scan_all(&mut world, 7), own);
    assert_eq!(scan_all(&mut world, 1_000_000), own);
    let counted = world.ask(command("", Op::Count));
    assert_eq!(
        counted,
        Outcome::Counted {
            sessions: own.len() as u64,
            with_deadline: 0
        }
    );

    let other = Command {
        namespace: Namespace(3),
        ..put(&own[0], "other")
    };
    world.ask(other);
    assert_eq!(world.ask(command("", Op::Flush)), Outcome::Flushed);
    assert_eq!(scan_all(&mut world, 100), [""; 0]);
    assert_eq!(world.value(&own[0]), None);
    let kept = world.ask(Command {
        namespace: Namespace(3),
        ..get(&own[0])
    });
    assert_eq!(value_of(&kept).as_deref(), Ok("other"));

    world.view.tablets = vec![tablet(SlotRange::ALL, LogId(55))];
    world.publish();
    let outcome = world.ask(command("", Op::Count));
    assert_eq!(outcome, Outcome::Failed(Failure::NotOwner));
}

/// RIFL: a retry hears what the first attempt was told, whatever has happened since.
fn add(key: &str, by: i64) -> Command {
    command(key, Op::Add { by })
}

fn append(key: &str, more: &str) -> Command {
    let value = Bytes::copy_from_slice(more.as_bytes());
    command(key, Op::Append { value })
}

/// What `Add` and `Append` tell, or why they failed.
fn told(outcome: Outcome) -> Result<String, String> {
    match outcome {
        Outcome::Done {
            old: Some(told), ..
        } => Ok(String::from_utf8(told.to_vec()).unwrap()),
        Outcome::Failed(failure) => Err(failure.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn numbers_and_ends_of_values_are_changed_in_one_step() {
    let mut world = World::new(3, 3);
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(told(world.ask(add("n", 5))), ok("5"));
    assert_eq!(told(world.ask(add("n", -7))), ok("-2"));
    assert_eq!(world.value("n").as_deref(), Some("-2"));
    // Times stay.
    let hour = ExpiryChange::In { ms: 3_600_000 };
    world.ask(touch("n", hour));
    let before = deadline(&mut world, "n");
    assert!(before.is_some());
    let version = meta_of(&world.ask(command("n", Op::Stat))).version;
    assert_eq!(told(world.ask(add("n", 12))), ok("10"));
    assert_eq!(told(world.ask(append("n", "0"))), ok("3"));
    assert_eq!(told(world.ask(add("n", 1))), ok("101"));
    assert_eq!(deadline(&mut world, "n"), before);
    assert!(meta_of(&world.ask(command("n", Op::Stat))).version > version);
    // What is no number, or would be none, stays.
    let max = i64::MAX.to_string();
    let (no_number, overflow) = (
        "value is not an integer or out of range".to_owned(),
        "increment or decrement would overflow".to_owned(),
    );
    for text in ["", " 1", "01", "+1", "1.5", "9223372036854775808", "one"] {
        world.ask(put("t", text));
        assert_eq!(
            told(world.ask(add("t", 1))),
            Err(no_number.clone()),
            "{text}"
        );
        assert_eq!(world.value("t").as_deref(), Some(text));
    }
    world.ask(put("t", &max));
    assert_eq!(told(world.ask(add("t", 1))), Err(overflow));
    assert_eq!(told(world.ask(add("t", i64::MIN))), ok("-1"));
    // Of nothing; and not beyond the largest value.
    assert_eq!(told(world.ask(append("a", ""))), ok("0"));
    assert_eq!(world.value("a").as_deref(), Some(""));
    let piece = "v".repeat(6 << 10);
    assert_eq!(told(world.ask(append("a", &piece))), ok("6144"));
    assert_eq!(told(world.ask(append("a", &piece))), ok("12288"));
    let too_large = world.ask(append("a", &piece));
    assert!(matches!(
        too_large,
        Outcome::Failed(Failure::ValueTooLarge { bytes: 18_432, .. })
    ));
    assert_eq!(world.value("a").map(|value| value.len()), Some(12_288));
    world.shard.verify();
}

#[test]
fn a_repeated_sum_is_told_again_and_not_added_to() {
    let mut world = World::new(3, 3);
    let (once, appended) = (world.once(), world.once());
    let first = world.ask_as(once, add("n", 3));
    let longer = world.ask_as(appended, append("n", "1"));
    world.ask(add("n", 1));
    world.new_stream();
    assert_eq!(world.ask_as(once, add("n", 3)), first);
    assert_eq!(world.ask_as(appended, append("n", "1")), longer);
    assert_eq!(world.value("n").as_deref(), Some("32"));
}

#[test]
fn a_repeated_write_is_answered_and_not_executed() {
    let mut world = World::new(3, 3);
    let once = world.once();
    let first = world.ask_as(once, put("a", "mine"));
    world.ask(put("a", "later"));
    world.new_stream();
    assert_eq!(world.ask_as(once, put("a", "mine")), first);
    assert_eq!(world.value("a").as_deref(), Some("later"));

    // Refused and absent ones as well.
    let refused_once = world.once();
    let create = || put_with("a", "x", Condition::Absent, ExpiryChange::Clear);
    let refused = world.ask_as(refused_once, create());
    let absent_once = world.once();
    let absent = world.ask_as(absent_once, delete("nothing"));
    let kept_once = world.once();
    let kept = world.ask_as(kept_once, touch("a", ExpiryChange::Keep));
    world.ask(delete("a"));
    world.ask(put("nothing", "something"));
    world.new_stream();
    assert_eq!(world.ask_as(refused_once, create()), refused);
    assert_eq!(world.ask_as(absent_once, delete("nothing")), absent);
    assert_eq!(
        world.ask_as(kept_once, touch("a", ExpiryChange::Keep)),
        kept
    );
    assert_eq!(world.value("a"), None);
    assert_eq!(world.value("nothing").as_deref(), Some("something"));
}

/// What was executed is never said to have failed, however short room is when it is asked for again.
#[test]
fn a_repeated_write_is_answered_from_its_record_when_memory_is_full() {
    let mut world = World::new(3, 3);
    let value = "x".repeat(4_000);
    let once = world.once();
    let first = world.ask_as(once, put("mine", &value));
    assert!(matches!(first, Outcome::Done { .. }));
    let mut written = 0;
    let refused = loop {
        let again = world.once();
        match world.ask_as(again, put(&format!("k{written}"), &value)) {
            Outcome::Done { .. } => written += 1,
            Outcome::Failed(Failure::OutOfMemory) => break again,
            other => panic!("{other:?}"),
        }
        assert!(written < 100_000, "memory has no end");
    };
    world.new_stream();
    assert_eq!(world.ask_as(once, put("mine", &value)), first);
    // A failure is not recorded: asked again when there is room, the same write is executed.
    let key = format!("k{written}");
    assert_eq!(world.value(&key), None);
    for i in 0..written / 2 {
        world.ask(delete(&format!("k{i}")));
    }
    for _ in 0..200 {
        world.run(20);
    }
    let refused = Once {
        lease_until: world.time().plus_ms(60_000),
        ..refused
    };
    world.new_stream();
    let outcome = world.ask_as(refused, put(&key, &value));
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(world.value(&key).as_deref(), Some(&value[..]));
}

#[test]
fn an_acknowledged_write_is_never_executed_again() {
    let mut world = World::new(3, 3);
    let once = world.once();
    world.ask_as(once, put("a", "mine"));
    let later = Once {
        acknowledged: once.sequence + 1,
        ..world.once()
    };
    world.ask_as(later, put("a", "later"));
    world.new_stream();
    let outcome = world.ask_as(once, put("a", "mine"));
    assert_eq!(outcome, Outcome::Failed(Failure::StaleClient));
    assert_eq!(world.value("a").as_deref(), Some("later"));
}

/// S5: what is refused anyway takes none of the places in which acknowledgements are remembered.
#[test]
fn a_refused_identity_is_not_remembered() {
    let mut world = World::new(3, 3);
    let through_another = |world: &mut World, client, acknowledged, lease_until| {
        let once = Once {
            client: ClientId(client),
            acknowledged,
            lease_until,
            ..world.once()
        };
        (once, world.ask_as(once, put("a", "v")))
    };
    for client in 0..100 {
        let (_, outcome) = through_another(&mut world, 1_000 + client, 0, ClusterMs(u64::MAX));
        assert!(matches!(outcome, Outcome::Failed(Failure::Invalid(_))));
    }
    let soon = world.time().plus_ms(60_000);
    let (first, outcome) = through_another(&mut world, 5, 0, soon);
    assert!(matches!(outcome, Outcome::Done { .. }));
    through_another(&mut world, 5, first.sequence + 1, soon);
    let late = world.ask_as(first, put("a", "again"));
    assert_eq!(
        late,
        Outcome::Failed(Failure::StaleClient),
        "its acknowledgement found a place"
    );
}

#[test]
fn without_replicas_everything_is_durable_at_once() {
    let mut world = World::new(0, 0);
    assert!(matches!(world.ask(put("a", "x")), Outcome::Done { .. }));
    for i in 0..300 {
        world.ask(put(&format!("k{i}"), &"y".repeat(1_000)));
    }
    assert_eq!(world.value("a").as_deref(), Some("x"));
    assert!(world.shard.ready());
    world.shard.verify();
}
