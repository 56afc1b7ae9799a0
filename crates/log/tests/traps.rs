//! The traps of `docs/design-notes.md`, "Expiry and touch", each by its name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use holdfast_format::{ClientId, SegmentId, Slot, SlotRange, Version};
use holdfast_log::{AppendError, Completion, Config, Expiry, Log, SegmentGoal, SegmentKind};
use support::{NS, World, ms, sessions};

const LATER: u64 = 1_000_000;

#[test]
fn an_overwritten_copy_does_not_come_back_after_delete_and_cleaning() {
    let mut world = World::small();
    world.put("k", "old", None, 1);
    let first = world.pin(1);
    world.put("k", "new", None, 1);
    let second = world.log.end().segment;
    world.roll(1);
    world.delete("k", 1);
    let third = world.log.end().segment;
    world.roll(1);
    // The newer copy and the tombstone's own segment leave before the old copy does.
    world.clean_away(second, 1);
    world.clean_away(third, 1);
    world.sweep(1);
    assert!(
        world.log.goal(first).is_some(),
        "the old copy is still on replicas"
    );
    world.reopen(1);
    assert_eq!(world.get("k", 1), None);
}

#[test]
fn shadowing_is_inherited_by_what_replaces_an_expiring_copy() {
    let mut world = World::small();
    world.put("k", "v1 never expires", None, 1);
    let first = world.pin(1);
    world.put("k", "v2 expires", Some(100), 1);
    let second = world.log.end().segment;
    world.roll(1);
    world.put("k", "v3 expires later than v2", Some(200), 1);
    let third = world.log.end().segment;
    world.roll(1);
    assert_eq!(world.get("k", 200), None);
    world.sweep(LATER);
    world.clean_away(second, LATER);
    world.clean_away(third, LATER);
    assert!(world.log.goal(first).is_some(), "v1 is still on replicas");
    world.reopen(LATER);
    assert_eq!(world.get("k", LATER), None, "v1 came back");
}

#[test]
fn a_shadowing_object_that_expires_becomes_a_tombstone_and_not_nothing() {
    for sweep in [false, true] {
        let mut world = World::small();
        world.put("k", "v1 never expires", None, 1);
        let first = world.pin(1);
        world.put("k", "v2 expires", Some(100), 1);
        let second = world.log.end().segment;
        world.roll(1);
        // Either the sweep meets the expired object first, or the cleaner does.
        if sweep {
            world.sweep(LATER);
        }
        world.clean_away(second, LATER);
        assert!(world.log.goal(first).is_some(), "v1 is still on replicas");
        world.reopen(LATER);
        assert_eq!(world.get("k", LATER), None, "v1 came back");
    }
}

#[test]
fn an_object_after_a_tombstone_is_shadowing() {
    let mut world = World::small();
    world.put("k", "v1 never expires", None, 1);
    let first = world.pin(1);
    world.delete("k", 1);
    let second = world.log.end().segment;
    world.put("k", "v3 expires", Some(100), 1);
    world.roll(1);
    world.sweep(LATER);
    world.clean_away(second, LATER);
    assert!(world.log.goal(first).is_some(), "v1 is still on replicas");
    world.reopen(LATER);
    assert_eq!(world.get("k", LATER), None, "v1 came back");
}

#[test]
fn a_touch_that_shortens_and_then_expires_is_remembered() {
    for inherit in [false, true] {
        let mut world = World::small();
        world.put("k", "v", Some(LATER), 1);
        let first = world.pin(1);
        assert!(world.touch("k", Some(50), 1));
        if inherit {
            assert!(
                world.touch("k", Some(60), 1),
                "it lengthens, and is shadowing all the same"
            );
        }
        let touched = world.log.end().segment;
        let end = if inherit { 60 } else { 50 };
        assert_eq!(world.get("k", end - 1), Some("v".into()));
        assert_eq!(world.get("k", end), None);
        world.roll(1);
        world.sweep(500);
        world.clean_away(touched, 500);
        assert!(
            world.log.goal(first).is_some(),
            "the object is still on replicas"
        );
        world.reopen(500);
        assert_eq!(
            world.get("k", 500),
            None,
            "the object's own deadline is not the newest"
        );
    }
}

#[test]
fn a_touch_is_kept_as_long_as_its_object() {
    let mut world = World::small();
    world.put("k", "v", Some(50), 1);
    let first = world.pin(1);
    assert!(world.touch("k", Some(LATER), 1));
    let touched = world.log.end().segment;
    world.roll(1);
    world.sweep(500);
    world.clean_away(touched, 500);
    assert!(world.log.goal(first).is_some());
    world.reopen(500);
    assert_eq!(
        world.get("k", LATER - 1),
        Some("v".into()),
        "the touch was lost"
    );
}

#[test]
fn a_tombstone_stays_until_every_older_segment_has_left() {
    let mut world = World::small();
    world.put("k", "v", None, 1);
    world.roll(1);
    world.delete("k", 1);
    world.roll(1);
    // What lives and is no session.
    let graves = |world: &World| {
        let sessions = sessions(&world.log, 1).into_iter();
        let bytes = sessions.map(|(key, (_, value, _))| 24 + key.len() + value.len());
        world.log.memory().live_bytes - bytes.sum::<usize>() as u64
    };
    let tombstone = 24 + 1;
    let first = world.log.goals().next().unwrap().id;
    // However often it is moved or swept, the tombstone is there while the first segment is.
    let mut moves = 0;
    while world.log.goal(first).is_some() {
        world.sweep(1);
        assert_eq!(graves(&world), tombstone);
        world.put(&format!("stays and has company {moves}"), "", None, 1);
        world.roll(1);
        while world.log.clean(ms(1), 1 << 20) {}
        world.ship();
        moves += 1;
        assert!(moves < 200, "the cleaner runs");
    }
    // Segments up to the one in which it was written can hold copies; then it goes.
    for _ in 0..5 {
        let oldest = world.log.goals().next().unwrap().id;
        world.clean_away(oldest, 1);
        world.sweep(1);
    }
    assert_eq!(graves(&world), 0);
    world.reopen(1);
    assert_eq!(world.get("k", 1), None);
}

#[test]
fn a_flush_ends_what_was_before_and_not_what_comes_after() {
    let mut world = World::small();
    world.put("before", "v", None, 1);
    world.put("again", "v", None, 1);
    let first = world.pin(1);
    let flushed = world.flush(1);
    let second = world.log.end().segment;
    assert_eq!(world.log.count(NS).sessions, 0);
    assert_eq!(world.get("before", 1), None);
    let after = world.put("again", "v", None, 1);
    assert!(
        after > flushed,
        "an identical value from before the flush is not the same session"
    );
    assert_eq!(world.log.count(NS).sessions, 1);
    world.roll(1);
    // Without a sweep, the segment of the flushed sessions looks full of life to the cleaner.
    world.clean_away(second, 1);
    assert!(
        world.log.goal(first).is_some(),
        "the flushed sessions are still on replicas"
    );
    world.reopen(1);
    assert_eq!(world.get("before", 1), None);
    assert_eq!(world.get("again", 1), Some("v".into()));
    world.sweep(1);
    for _ in 0..20 {
        let oldest = world.log.goals().next().unwrap().id;
        world.clean_away(oldest, 1);
        world.sweep(1);
    }
    world.reopen(1);
    assert_eq!(world.get("before", 1), None);
    assert_eq!(world.get("again", 1), Some("v".into()));
}

#[test]
fn touches_are_ordered_by_number_whatever_the_order_of_replay() {
    for seed in 1..30 {
        let mut world = World::small();
        world.dice.0 = seed * 7919;
        world.put("k", "v", Some(100), 1);
        for deadline in [300, 200, 900, 400] {
            world.touch("k", Some(deadline), 1);
            if deadline == 200 {
                world.roll(1);
            }
        }
        let version = world.log.find(NS, b"k", ms(1)).unwrap().version;
        world.ship();
        world.reopen(1);
        let found = world.log.find(NS, b"k", ms(399)).unwrap();
        assert_eq!(
            (found.version, found.expiry.deadline),
            (version, Some(ms(400)))
        );
        assert_eq!(world.get("k", 400), None);
    }
}

#[test]
fn a_session_is_gone_at_its_deadline_and_its_memory_only_after_the_slack() {
    let mut world = World::small();
    world.put("k", "v", Some(100), 1);
    let live = world.log.memory().live_bytes;
    assert!(world.get("k", 99).is_some());
    assert!(world.get("k", 100).is_none());
    world.sweep(199);
    assert_eq!(world.log.memory().live_bytes, live, "slack is 100 ms here");
    assert_eq!(world.log.count(NS).sessions, 1);
    world.sweep(200);
    assert_eq!(world.log.memory().live_bytes, 0);
    assert_eq!(world.log.count(NS).sessions, 0);
}

#[test]
fn an_identical_put_is_a_touch_and_keeps_the_version() {
    let mut world = World::small();
    let expiry = |deadline, absolute| Expiry {
        deadline: Some(ms(deadline)),
        idle_ms: Some(50),
        absolute: Some(ms(absolute)),
    };
    let mut put = |value: &[u8], expiry, now| {
        let promised = world.log.put_version(NS, b"k", value, expiry, ms(now));
        let version = world
            .log
            .put(NS, b"k", value, expiry, None, ms(now))
            .unwrap();
        assert_eq!(promised, version);
        version.0
    };
    assert_eq!(put(b"v", expiry(100, 1000), 1), 1);
    assert_eq!(put(b"v", expiry(120, 1000), 1), 1);
    assert_eq!(
        put(b"v", expiry(5000, 1000), 1),
        1,
        "cut to the absolute deadline"
    );
    assert_eq!(
        put(b"v", expiry(120, 1001), 1),
        2,
        "another absolute deadline"
    );
    assert_eq!(put(b"w", expiry(120, 1001), 1), 3, "another value");
    assert_eq!(put(b"w", expiry(300, 1001), 120), 4, "it had expired");
    assert_eq!(
        world.log.find(NS, b"k", ms(121)).unwrap().expiry,
        expiry(300, 1001)
    );
}

#[test]
fn versions_never_go_back_across_recovery() {
    let mut world = World::small();
    let mut last = world.put("k", "0", None, 1);
    for n in 1..5 {
        world.ship();
        world.reopen(1);
        let version = world.put("k", &n.to_string(), None, 1);
        assert!(version > last);
        last = version;
    }
    world.delete("k", 1);
    world.ship();
    world.reopen(1);
    assert!(world.put("k", "again", None, 1) > last);
}

#[test]
fn completions_survive_cleaning_and_recovery_until_acknowledged() {
    let mut world = World::small();
    let completion = |sequence| Completion {
        client: ClientId(5),
        sequence,
        lease_until: ms(LATER),
        slot: Slot(3),
        outcome: b"done",
    };
    for sequence in [2, 1, 9] {
        let done = Some(completion(sequence));
        world
            .log
            .put(
                NS,
                b"k",
                &sequence.to_le_bytes(),
                Expiry::default(),
                done,
                ms(1),
            )
            .unwrap();
    }
    world.log.record(completion(12)).unwrap();
    let first = world.log.end().segment;
    world.clean_away(first, 1);
    world.reopen(1);
    for sequence in [1, 2, 9, 12] {
        assert_eq!(
            world.log.completion(ClientId(5), sequence),
            Some(&b"done"[..])
        );
    }
    world.log.acknowledge(ClientId(5), 9);
    assert_eq!(world.log.completion(ClientId(5), 2), None);
    assert!(world.log.completion(ClientId(5), 9).is_some());
    world.sweep(LATER + 99);
    assert!(
        world.log.completion(ClientId(5), 9).is_some(),
        "the slack is not over"
    );
    world.sweep(LATER + 101);
    assert_eq!(world.log.completion(ClientId(5), 9), None);
    world.log.verify();
}

#[test]
fn out_of_memory_refuses_puts_only() {
    let mut world = World::new(
        Config {
            memory_bytes: 900 << 10,
            ..Config::for_testing()
        },
        1,
    );
    let mut keys = 0;
    let refused = loop {
        let key = format!("key{keys}");
        let value = [7; 1000];
        match world
            .log
            .put(NS, key.as_bytes(), &value, Expiry::default(), None, ms(1))
        {
            Ok(_) => keys += 1,
            Err(error) => {
                while world.log.clean(ms(1), 1 << 20) {}
                world.ship();
                if !world.log.clean(ms(1), 1) && keys > 100 {
                    break error;
                }
            }
        }
    };
    assert_eq!(refused, AppendError::OutOfMemory);
    world.log.verify();
    for i in 0..keys {
        assert!(
            world.touch(&format!("key{i}"), Some(LATER), 1),
            "touches work"
        );
    }
    for i in 0..keys / 2 {
        assert!(
            world.delete(&format!("key{i}"), 1).is_some(),
            "deletes work"
        );
        while world.log.clean(ms(1), 1 << 20) {}
        world.ship();
    }
    world.log.verify();
    let again = "x".repeat(1000);
    for i in 0..keys / 4 {
        world.put(&format!("new{i}"), &again, None, 1);
        while world.log.clean(ms(1), 1 << 20) {}
        world.ship();
    }
    world.reopen(1);
    assert_eq!(
        world.log.count(NS).sessions,
        (keys - keys / 2 + keys / 4) as u64
    );
}

#[test]
fn an_aborted_replay_leaves_nothing_behind() {
    let mut source = World::small();
    for i in 0..500 {
        source.put(&format!("key{i}"), "value", Some(LATER), 1);
        source.touch(&format!("key{i}"), Some(LATER + i), 1);
    }
    source.delete("key7", 1);
    source.ship();
    let mut target = World::small();
    target.ship();
    let before = target.log.memory().used_bytes;
    for _ in 0..3 {
        let id = source
            .replicas
            .replay_into(&mut target.log, &mut source.dice, ms(1));
        assert_eq!(target.log.count(NS).sessions, 499);
        target.log.verify();
        target.log.replay_abort(id, &[SlotRange::ALL]);
        assert_eq!(target.log.count(NS).sessions, 0);
        target.log.verify();
        target.ship();
    }
    assert!(
        target.log.memory().used_bytes <= before + (64 << 10),
        "memory leaks from aborts"
    );
    let id = source
        .replicas
        .replay_into(&mut target.log, &mut source.dice, ms(1));
    target.ship();
    assert!(target.log.replay_committed(id));
    assert_eq!(target.log.count(NS).sessions, 499);
}

/// P4: nothing lives in the ranges any more, but versions were given to what did.
#[test]
fn a_replay_of_nothing_makes_its_version_ceiling_durable() {
    let mut target = World::small();
    target.ship();
    let ceiling = Version(1 << 40);
    let id = target.log.replay_begin(&[SlotRange::ALL]);
    target.log.replay_finish(id, ceiling);
    assert!(
        !target.log.replay_committed(id),
        "no replica knows of the ceiling"
    );
    target.ship();
    assert!(target.log.replay_committed(id));
    // The target's shard dies before it writes anything.
    let mut heir = World::small();
    heir.ship();
    (target.replicas).replay_into(&mut heir.log, &mut target.dice, ms(1));
    assert!(heir.log.last_version() >= ceiling);
}

/// P5 (seed 5 of the simulation): a shard took over a range in which nothing lived before its first head
/// was on all backups, and died.
#[test]
fn a_replay_of_nothing_waits_for_the_first_head() {
    let mut target = World::small();
    let id = target.log.replay_begin(&[SlotRange::ALL]);
    target.log.replay_finish(id, Version(0));
    assert!(!target.log.replay_committed(id));
    target.ship();
    assert!(target.log.replay_committed(id));
}

#[test]
fn a_replay_is_no_part_of_the_log_before_it_is_committed() {
    let mut source = World::small();
    source.put("k", "v", None, 1);
    source.ship();
    let mut target = World::small();
    target.ship();
    let id = source
        .replicas
        .replay_into(&mut target.log, &mut source.dice, ms(1));
    assert!(!target.log.replay_committed(id));
    let (_, digest) = target.replicas.sealed();
    assert_eq!(digest, [SegmentId(1)]);
    target.ship();
    assert!(target.log.replay_committed(id));
    let (_, digest) = target.replicas.sealed();
    assert!(digest.len() > 1);
}

#[test]
fn victims_are_kept_until_a_durable_digest_omits_them() {
    let mut world = World::small();
    world.put("k", "v", None, 1);
    world.ship();
    let mut freed = Vec::new();
    for n in 0..3000 {
        // What replicas hold is checked by `sealed` at every step: every segment named is there.
        world.put("filler", &format!("{n:01000}"), None, 1);
        world.log.clean(ms(1), 20_000);
        let World {
            log,
            replicas,
            dice,
        } = &mut world;
        replicas.ship_one(log, dice);
        replicas.ship_one(log, dice);
        replicas.ship_one(log, dice);
        if !replicas.held.is_empty() && n > 10 {
            freed.push(replicas.sealed().1.len());
        }
    }
    assert!(
        freed.iter().max() < Some(&200),
        "the cleaner frees segments"
    );
    assert!(world.log.memory().cleaned_bytes > 0 || freed.len() > 100);
    world.ship();
    world.reopen(1);
    assert_eq!(world.get("k", 1), Some("v".into()));
}

/// The dead log counted its segments by itself; in its successor the birth of its tombstones would
/// mean other segments.
#[test]
fn a_replayed_tombstone_is_born_again() {
    let mut source = World::small();
    source.put("k", "old", None, 1);
    source.pin(1);
    source.delete("k", 1);
    source.roll(1);

    let mut target = World::small();
    while target.log.goals().next().unwrap().id < SegmentId(20) {
        let oldest = target.log.goals().next().unwrap().id;
        target.clean_away(oldest, 1);
    }
    let id = target.log.replay_begin(&[SlotRange::ALL]);
    for replica in source.replicas.held.values() {
        target.log.replay(id, &replica.bytes, ms(1)).unwrap();
    }
    target.log.replay_finish(id, source.log.last_version());
    target.ship();
    assert!(target.log.replay_committed(id));
    let is_side = |goal: &SegmentGoal| goal.kind == SegmentKind::Side;
    let sides: Vec<_> = target
        .log
        .goals()
        .filter(is_side)
        .map(|goal| goal.id)
        .collect();
    let (first, last) = (sides[sides.len() - 2], sides[sides.len() - 1]);
    target.sweep(1);
    target.clean_away(last, 1);
    assert!(
        target.log.goal(first).is_some(),
        "the old copy is still on replicas"
    );
    target.reopen(1);
    assert_eq!(target.get("k", 1), None);
}

#[test]
fn a_config_that_cannot_work_is_refused() {
    let good = Config::for_testing();
    assert!(good.validate().is_ok());
    let bad = [
        Config {
            segment_bytes: 100_000,
            ..good.clone()
        },
        Config {
            seglet_bytes: 5000,
            ..good.clone()
        },
        Config {
            memory_bytes: 300 << 10,
            ..good.clone()
        },
        Config {
            value_bytes_max: 60 << 10,
            ..good.clone()
        },
        Config {
            key_bytes_max: 64 << 10,
            ..good.clone()
        },
    ];
    for config in bad {
        assert!(
            Log::new(holdfast_format::LogId(1), config.clone()).is_err(),
            "{config:?}"
        );
    }
}
