//! What namespaces may have: who is refused at a limit, who is not, and who makes room.

use holdfast_format::{LogId, Namespace, Slot, SlotRange};
use holdfast_wire::{
    Condition, Eviction, ExpiryChange, Failure, NamespaceLimits, NamespacePolicy, Op, Outcome,
    Quota, Usage,
};

use crate::world::{World, command, delete, get, put, put_with, tablet, touch};

const NONE: NamespaceLimits = NamespaceLimits {
    sessions: None,
    bytes: None,
    value_bytes: None,
    evict: Eviction::Never,
};

/// A shard that owns all slots, and whose namespace 0 has these limits.
fn limited(limits: NamespaceLimits) -> World {
    let mut world = World::new(3, 3);
    set(&mut world, limits);
    world
}

fn set(world: &mut World, limits: NamespaceLimits) {
    world.view.namespaces = vec![NamespacePolicy {
        namespace: Namespace(0),
        limits,
    }];
    world.publish();
    world.run(0);
}

fn is_done(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Done { .. })
}

fn full(quota: Quota, limit: u64) -> Outcome {
    Outcome::Failed(Failure::NamespaceFull {
        namespace: Namespace(0),
        quota,
        limit,
    })
}

fn usage(world: &mut World) -> Usage {
    match world.ask(command("", Op::Usage)) {
        Outcome::Usage(usage) => usage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_namespace_at_its_limit_of_sessions_takes_all_but_new_ones() {
    let mut world = limited(NamespaceLimits {
        sessions: Some(3),
        ..NONE
    });
    for key in ["a", "b", "c"] {
        assert!(is_done(world.ask(put(key, "value"))));
    }
    assert_eq!(world.ask(put("d", "value")), full(Quota::Sessions, 3));
    assert_eq!(world.value("d"), None);
    let longer = "a much longer value than before";
    assert!(is_done(world.ask(put("a", longer))), "an overwrite");
    assert_eq!(world.value("a").as_deref(), Some(longer));
    let expiry = ExpiryChange::In { ms: 60_000 };
    assert!(is_done(world.ask(touch("a", expiry))), "a touch");
    assert!(is_done(world.ask(delete("b"))), "a delete");
    assert!(is_done(world.ask(put("d", "value"))), "there is room again");
    assert_eq!(world.ask(put("e", "value")), full(Quota::Sessions, 3));
    set(&mut world, NONE);
    assert!(is_done(world.ask(put("e", "value"))), "no limit any more");
    let namespaces = usage(&mut world).namespaces;
    assert_eq!(
        (namespaces[0].sessions, namespaces[0].with_deadline),
        (4, 1)
    );
    world.shard.verify();
}

#[test]
fn bytes_are_limited_and_what_does_not_grow_is_not() {
    let mut world = limited(NamespaceLimits {
        bytes: Some(4_000),
        ..NONE
    });
    let value = "v".repeat(1_000);
    for key in ["a", "b", "c"] {
        assert!(is_done(world.ask(put(key, &value))));
    }
    assert_eq!(world.ask(put("d", &value)), full(Quota::Bytes, 4_000));
    let grown = "v".repeat(2_000);
    assert_eq!(world.ask(put("a", &grown)), full(Quota::Bytes, 4_000));
    // Lower than what there is already: nothing is taken away, and nothing comes.
    set(
        &mut world,
        NamespaceLimits {
            bytes: Some(10),
            ..NONE
        },
    );
    assert!(is_done(world.ask(put("a", &"w".repeat(1_000)))), "as large");
    assert!(is_done(world.ask(put("a", "small"))), "smaller");
    assert!(is_done(world.ask(put("a", "small"))), "the same: a touch");
    assert_eq!(world.ask(put("d", "")), full(Quota::Bytes, 10));
    assert_eq!(usage(&mut world).namespaces[0].sessions, 3);
}

#[test]
fn the_largest_value_has_an_error_of_its_own() {
    let mut world = World::new(3, 3);
    let value = "v".repeat(200);
    assert!(is_done(world.ask(put("old", &value))));
    set(
        &mut world,
        NamespaceLimits {
            value_bytes: Some(100),
            ..NONE
        },
    );
    assert_eq!(
        world.ask(put("new", &value)),
        Outcome::Failed(Failure::NamespaceValueTooLarge {
            namespace: Namespace(0),
            bytes: 200,
            limit: 100,
        })
    );
    assert!(is_done(world.ask(put("new", &value[..100]))));
    assert!(
        is_done(world.ask(put("old", &value))),
        "it was there before"
    );
}

#[test]
fn other_namespaces_do_not_notice() {
    let mut world = limited(NamespaceLimits {
        sessions: Some(0),
        ..NONE
    });
    assert_eq!(world.ask(put("a", "1")), full(Quota::Sessions, 0));
    let mut other = put("a", "1");
    other.namespace = Namespace(7);
    assert!(is_done(world.ask(other)));
}

/// Each shard enforces its part of the limit, by its part of the slots, rounded up.
#[test]
fn a_shard_holds_its_share() {
    let quarter = SlotRange {
        first: Slot(0),
        last: Slot(4095),
    };
    let mut world = World::with_id(1, 3, 3, quarter);
    set(
        &mut world,
        NamespaceLimits {
            sessions: Some(9),
            ..NONE
        },
    );
    let mut keys = (0..)
        .map(|i| format!("key:{i}"))
        .filter(|key| quarter.contains(Slot::of(key.as_bytes())));
    for _ in 0..3 {
        assert!(is_done(world.ask(put(&keys.next().unwrap(), "v"))));
    }
    let fourth = keys.next().unwrap();
    assert_eq!(world.ask(put(&fourth, "v")), full(Quota::Sessions, 9));
    // A takeover of the rest brings the rest of the limit.
    world.view.tablets = vec![tablet(SlotRange::ALL, LogId(1))];
    world.publish();
    world.run(0);
    assert!(is_done(world.ask(put(&fourth, "v"))));
}

/// Expired sessions count until they are swept; a write at the limit does not wait for that for long.
#[test]
fn expired_sessions_make_room_soon() {
    let mut world = limited(NamespaceLimits {
        sessions: Some(50),
        ..NONE
    });
    for i in 0..50 {
        let expiry = ExpiryChange::In { ms: 300 };
        let write = put_with(&format!("k{i}"), "v", Condition::Always, expiry);
        assert!(is_done(world.ask(write)));
    }
    assert_eq!(world.ask(put("new", "v")), full(Quota::Sessions, 50));
    world.run(1_500);
    assert!(is_done(world.ask(put("new", "v"))));
    assert_eq!(usage(&mut world).evicted, 0);
    assert!(usage(&mut world).expired > 0);
}

/// At the limit the session that was idle for longest goes, by a delete like any other.
#[test]
fn the_oldest_idle_session_makes_room_where_that_is_wanted() {
    let mut world = limited(NamespaceLimits {
        sessions: Some(10),
        evict: Eviction::OldestIdle,
        ..NONE
    });
    let session = ExpiryChange::Session {
        idle_ms: Some(1_800_000),
        absolute: None,
    };
    for i in 0..10 {
        let write = put_with(&format!("k{i}"), "v", Condition::Always, session);
        assert!(is_done(world.ask(write)));
        world.run(50);
    }
    // The first two come to life again.
    for key in ["k0", "k1"] {
        assert!(is_done(world.ask(touch(key, ExpiryChange::Slide))));
    }
    for i in 10..13 {
        world.run(50);
        let write = put_with(&format!("k{i}"), "v", Condition::Always, session);
        assert!(is_done(world.ask(write)), "k{i}");
    }
    // All ten fit into what is looked at, so the order is exact.
    for (key, there) in [("k0", true), ("k1", true), ("k2", false), ("k3", false)] {
        assert_eq!(world.value(key).is_some(), there, "{key}");
    }
    assert_eq!(
        (world.value("k4"), world.value("k5").is_some()),
        (None, true)
    );
    let usage = usage(&mut world);
    assert_eq!(usage.evicted, 3);
    assert_eq!(usage.namespaces[0].sessions, 10);
    assert_eq!(usage.namespaces[0].evicted, 3);
    world.shard.verify();
}

/// An overwrite at the limit of bytes evicts others, never the session it writes.
#[test]
fn a_write_never_evicts_its_own_session() {
    let mut world = limited(NamespaceLimits {
        bytes: Some(3_000),
        evict: Eviction::OldestIdle,
        ..NONE
    });
    assert!(is_done(world.ask(put("own", "v"))));
    for key in ["a", "b"] {
        assert!(is_done(world.ask(put(key, &"v".repeat(1_000)))));
    }
    let grown = "v".repeat(2_000);
    let mut write = put("own", &grown);
    if let Op::Put { return_old, .. } = &mut write.op {
        *return_old = true;
    }
    match world.ask(write) {
        Outcome::Done { old: Some(old), .. } => assert_eq!(&old[..], b"v"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.value("own"), Some(grown));
    assert!(usage(&mut world).evicted >= 1);
    // Nobody can make room for more than there may be.
    let outcome = world.ask(put("own", &"v".repeat(4_000)));
    assert_eq!(outcome, full(Quota::Bytes, 3_000));
    assert!(world.value("own").is_some());
}

/// The answer that a session is not there, after it was evicted, waits until the tombstone is durable.
#[test]
fn what_was_evicted_stays_gone() {
    let mut world = limited(NamespaceLimits {
        sessions: Some(1),
        evict: Eviction::OldestIdle,
        ..NONE
    });
    assert!(is_done(world.ask(put("first", "v"))));
    let backups: Vec<_> = world.backups.keys().copied().collect();
    world.mute.extend(backups);
    let write = world.send(put("second", "v"));
    let read = world.send(get("first"));
    world.run(10);
    assert!(!world.answers.contains_key(&write));
    assert!(!world.answers.contains_key(&read), "not durable yet");
    world.mute.clear();
    world.run(2_000);
    assert!(matches!(world.answers[&read], Outcome::Absent { .. }));
}

/// Near the bound on memory a namespace that evicts goes on for ever, and nobody else loses a session.
#[test]
fn memory_goes_on_where_sessions_may_be_evicted() {
    let mut world = limited(NamespaceLimits {
        evict: Eviction::OldestIdle,
        ..NONE
    });
    let kept = |i: u32| {
        let mut command = put(
            &format!("kept{i}"),
            "a session of a namespace that never evicts",
        );
        command.namespace = Namespace(1);
        command
    };
    for i in 0..500 {
        assert!(is_done(world.ask(kept(i))));
    }
    let value = "x".repeat(2_000);
    let mut refused = 0;
    for i in 0..6_000 {
        match world.ask(put(&format!("k{i}"), &value)) {
            Outcome::Done { .. } => {}
            Outcome::Failed(Failure::OutOfMemory) => {
                refused += 1;
                world.run(20);
            }
            other => panic!("{i}: {other:?}"),
        }
        world.run(1);
    }
    assert_eq!(refused, 0, "three times the memory was written");
    let usage = usage(&mut world);
    assert!(usage.evicted > 3_000, "{usage:?}");
    assert_eq!(usage.namespaces[1].sessions, 500);
    assert_eq!(usage.namespaces[1].evicted, 0);
    assert_eq!(world.value("k5999"), Some(value));
    world.shard.verify();
}

/// Without the wish nothing is evicted, however full memory is.
#[test]
fn nobody_is_evicted_unasked() {
    let mut world = limited(NONE);
    let value = "x".repeat(4_000);
    let mut written = 0;
    while is_done(world.ask(put(&format!("k{written}"), &value))) {
        written += 1;
    }
    for _ in 0..100 {
        world.run(20);
        world.ask(put("one more", &value));
    }
    for i in 0..written {
        assert!(world.value(&format!("k{i}")).is_some(), "k{i}");
    }
    assert_eq!(usage(&mut world).evicted, 0);
}
