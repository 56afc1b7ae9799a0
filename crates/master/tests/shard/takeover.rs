//! A shard takes over what a dead one has left on its backups.

use std::collections::BTreeMap;

use holdfast_cluster::Node;
use holdfast_format::{ClusterMs, LogId, Namespace, SegmentId, ServerId, Slot, SlotRange, Version};
use holdfast_master::ShardConfig;
use holdfast_wire::*;

use crate::world::*;

const LEFT: SlotRange = SlotRange {
    first: Slot(0),
    last: Slot(8191),
};
const RIGHT: SlotRange = SlotRange {
    first: Slot(8192),
    last: Slot(16383),
};

/// What the coordinator would find on the backups of `dead` after its death (its log was quiet).
pub fn plan(dead: &World, ranges: Vec<SlotRange>) -> Recover {
    let mut found: BTreeMap<SegmentId, RecoverSegment> = BTreeMap::new();
    for (id, backup) in &dead.backups {
        for ((log, segment), stored) in &backup.replicas {
            if let Some(certificate) = stored.certificate
                && *log == dead.log
            {
                let entry = found.entry(*segment).or_insert(RecoverSegment {
                    segment: *segment,
                    holders: Vec::new(),
                });
                entry.holders.push(Holder {
                    backup: *id,
                    certificate,
                });
            }
        }
    }
    Recover {
        log: dead.log,
        attempt: 1,
        ranges,
        segments: found.into_values().collect(),
        version_ceiling: Version(1 << 30),
        expiry_floor: dead
            .backups
            .keys()
            .map(|id| dead.ceiling(*id))
            .max()
            .unwrap(),
        lease_remaining_ms: 0,
        first: None,
        leant_on: Vec::new(),
    }
}

/// A live shard beside `dead`, with the same backups and a view in which `dead` is being recovered.
pub fn heir(dead: &World) -> World {
    heir_configured(dead, |_| {})
}

fn heir_configured(dead: &World, configure: impl FnOnce(&mut ShardConfig)) -> World {
    heir_numbered(2, dead, configure)
}

/// As `heir`, with a number of its own.
pub fn heir_numbered(id: u64, dead: &World, configure: impl FnOnce(&mut ShardConfig)) -> World {
    let backups = dead.backups.len() as u64;
    let mut world = World::configured(id, backups, dead.config.replicas, configure);
    world.now_us = dead.now_us;
    world.backups = dead.backups.clone();
    world
        .view
        .members
        .retain(|member| member.role != Role::Backup);
    world
        .view
        .members
        .extend(dead.backups.keys().map(|id| member(id.0, Role::Backup)));
    world.sequence = 1_000_000;
    let tablet = Tablet {
        available: false,
        ..tablet(SlotRange::ALL, dead.log)
    };
    world.view.tablets = vec![tablet];
    world.view.recovering = vec![dead.log];
    world.run(0);
    world.run(300);
    world
}

pub fn ask_to_recover(world: &mut World, recover: &Recover) {
    world.hear(ServerId::COORDINATOR, Message::Recover(recover.clone()));
    world.run(100);
}

pub fn recovered(world: &World) -> Option<u64> {
    (world.to_coordinator.iter()).find_map(|message| match message {
        Message::Recovered { entries, .. } => Some(*entries),
        _ => None,
    })
}

fn failure(world: &World) -> Option<RecoveryFailure> {
    (world.to_coordinator.iter()).find_map(|message| match message {
        Message::RecoveryFailed { reason, .. } => Some(*reason),
        _ => None,
    })
}

pub fn give_ownership(world: &mut World, ranges: &[SlotRange]) {
    world.view.tablets = ranges
        .iter()
        .map(|range| tablet(*range, world.log))
        .collect();
    if ranges.len() < 2 && ranges[0] != SlotRange::ALL {
        let other = if ranges[0] == LEFT { RIGHT } else { LEFT };
        world.view.tablets.push(tablet(other, LogId(77)));
    }
    world.view.recovering.clear();
    world.publish();
    world.new_stream();
}

fn dead_with(keys: usize) -> World {
    let mut dead = World::new(4, 3);
    for i in 0..keys {
        dead.ask(put(&format!("key{i}"), &format!("value{i}")));
    }
    dead
}

#[test]
fn everything_is_there_after_a_takeover_and_versions_go_on() {
    let mut dead = dead_with(200);
    dead.ask(delete("key7"));
    dead.ask(put("key8", "newer"));
    let version = meta_of(&dead.ask(get("key8"))).version;
    let mut world = heir(&dead);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    ask_to_recover(&mut world, &recover);
    assert!(recovered(&world).is_some_and(|entries| entries >= 200));
    assert_eq!(
        world.ask(get("key1")),
        Outcome::Failed(Failure::NotOwner),
        "the view decides"
    );
    give_ownership(&mut world, &[SlotRange::ALL]);
    for i in 0..200 {
        let expected = match i {
            7 => None,
            8 => Some("newer".to_owned()),
            i => Some(format!("value{i}")),
        };
        assert_eq!(world.value(&format!("key{i}")), expected);
    }
    assert_eq!(meta_of(&world.ask(get("key8"))).version, version);
    let new = meta_of(&world.ask(put("key8", "newest"))).version;
    assert!(
        new > recover.version_ceiling,
        "{new} may have been given before"
    );
    assert_eq!(world.metric("holdfast_shard_recoveries_running"), 0.0);
    assert!(world.shard.ready());
    world.shard.verify();
}

#[test]
fn a_write_is_executed_once_across_a_takeover() {
    let mut dead = World::new(3, 3);
    let once = dead.once();
    let first = dead.ask_as(once, put("a", "mine"));
    let refused_once = dead.once();
    let create = || put_with("a", "x", Condition::Absent, ExpiryChange::Clear);
    let refused = dead.ask_as(refused_once, create());
    dead.ask(put("a", "later"));
    let mut world = heir(&dead);
    ask_to_recover(&mut world, &plan(&dead, vec![SlotRange::ALL]));
    give_ownership(&mut world, &[SlotRange::ALL]);
    assert_eq!(world.ask_as(once, put("a", "mine")), first);
    assert_eq!(world.ask_as(refused_once, create()), refused);
    assert_eq!(world.value("a").as_deref(), Some("later"));
    // Past its lease nobody can say any more, and nothing is executed.
    world.run(61_000);
    world.new_stream();
    let stale = world.ask_as(once, put("a", "mine"));
    assert_eq!(stale, Outcome::Failed(Failure::StaleClient));
}

/// The record is looked for before the namespace's room and before the new owner's own limits.
#[test]
fn a_write_executed_before_a_takeover_is_not_refused_after_it() {
    let value = "x".repeat(3_000);
    let mut dead = World::new(3, 3);
    let once = dead.once();
    let first = dead.ask_as(once, put("a", &value));
    assert!(matches!(first, Outcome::Done { .. }));
    let small = |config: &mut ShardConfig| config.log.value_bytes_max = 2_000;
    for (configured, limits) in [
        (true, None),
        (false, Some((Some(1), None))),
        (false, Some((None, Some(2_000)))),
    ] {
        let mut world = match configured {
            true => heir_configured(&dead, small),
            false => heir(&dead),
        };
        ask_to_recover(&mut world, &plan(&dead, vec![SlotRange::ALL]));
        give_ownership(&mut world, &[SlotRange::ALL]);
        if let Some((sessions, value_bytes)) = limits {
            world.view.namespaces = vec![NamespacePolicy {
                namespace: Namespace(0),
                limits: NamespaceLimits {
                    sessions,
                    bytes: None,
                    value_bytes,
                    evict: Eviction::Never,
                },
            }];
            world.publish();
            world.run(0);
        }
        let outcome = world.ask(put("b", &value));
        assert!(
            matches!(
                outcome,
                Outcome::Failed(
                    Failure::ValueTooLarge { .. }
                        | Failure::NamespaceFull { .. }
                        | Failure::NamespaceValueTooLarge { .. }
                )
            ),
            "{outcome:?}"
        );
        assert_eq!(world.ask_as(once, put("a", &value)), first);
    }
}

/// P1: what the old owner's backups granted runs out before anything changes, and before anything is said to be absent.
#[test]
fn while_the_old_lease_runs_sessions_are_read_and_nothing_else() {
    let dead = dead_with(3);
    let mut world = heir(&dead);
    let recover = Recover {
        lease_remaining_ms: 350,
        first: None,
        leant_on: Vec::new(),
        ..plan(&dead, vec![SlotRange::ALL])
    };
    ask_to_recover(&mut world, &recover);
    give_ownership(&mut world, &[SlotRange::ALL]);
    assert_eq!(world.value("key1").as_deref(), Some("value1"));
    assert!(matches!(
        world.ask(command("key2", Op::Stat)),
        Outcome::Value { .. }
    ));

    let absent = world.send(get("nobody"));
    let written = world.send(put("key1", "newer"));
    let behind = world.send(get("key1"));
    let beside = world.send(get("key2"));
    world.run(220);
    assert!(world.answer(absent).is_none(), "it may be there still");
    assert!(world.answer(written).is_none(), "the old owner may be read");
    assert!(world.answer(behind).is_none(), "P2");
    assert!(matches!(world.answer(beside), Some(Outcome::Value { .. })));
    assert_eq!(world.metric("holdfast_shard_waiting"), 3.0);
    assert!(world.metric("holdfast_shard_reads_in_old_lease_total") >= 3.0);

    world.run(130);
    assert!(matches!(world.answer(absent), Some(Outcome::Absent { .. })));
    assert!(matches!(world.answer(written), Some(Outcome::Done { .. })));
    let Some(Outcome::Value { value, .. }) = world.answer(behind) else {
        panic!("it was written before");
    };
    assert_eq!(value, "newer");
    assert_eq!(world.metric("holdfast_shard_waiting"), 0.0);
}

/// P3: who asks again by a newer stream is answered by that one.
#[test]
fn what_waits_is_forgotten_when_it_is_asked_again() {
    let dead = dead_with(3);
    let mut world = heir(&dead);
    let recover = Recover {
        lease_remaining_ms: 350,
        ..plan(&dead, vec![SlotRange::ALL])
    };
    ask_to_recover(&mut world, &recover);
    give_ownership(&mut world, &[SlotRange::ALL]);
    let once = world.once();
    let first = world.send_as(Some(once), put("key1", "newer"));
    let other = world.send(put("key2", "newest"));
    world.new_stream();
    let second = world.send_as(Some(once), put("key1", "newer"));
    assert_eq!(world.metric("holdfast_shard_waiting"), 1.0);
    world.run(360);
    assert_eq!(world.answer(first), None);
    assert_eq!(world.answer(other), None);
    assert!(matches!(world.answer(second), Some(Outcome::Done { .. })));
    assert_eq!(world.value("key1").as_deref(), Some("newer"));
    assert_eq!(world.value("key2").as_deref(), Some("value2"));
}

/// A key-space answer would have to tell what is absent.
#[test]
fn nothing_is_counted_while_the_old_lease_runs() {
    let dead = dead_with(3);
    let mut world = heir(&dead);
    let recover = Recover {
        lease_remaining_ms: 350,
        ..plan(&dead, vec![SlotRange::ALL])
    };
    ask_to_recover(&mut world, &recover);
    give_ownership(&mut world, &[SlotRange::ALL]);
    let count = world.send(command("", Op::Count));
    world.run(200);
    assert_eq!(world.answer(count), None);
    world.run(160);
    assert!(matches!(
        world.answer(count),
        Some(Outcome::Counted { sessions: 3, .. })
    ));
}

/// An answered "gone" stays gone: the new owner's clock starts no earlier than the old one's ceiling.
#[test]
fn the_expiry_clock_starts_at_the_floor() {
    let mut dead = World::new(3, 3);
    let expiry = |ms| ExpiryChange::In { ms };
    dead.ask(put_with("short", "x", Condition::Always, expiry(3_000)));
    dead.ask(put_with("long", "y", Condition::Always, expiry(60_000)));
    let mut world = heir(&dead);
    let floor = dead.time().plus_ms(5_000);
    let recover = Recover {
        expiry_floor: floor,
        ..plan(&dead, vec![SlotRange::ALL])
    };
    ask_to_recover(&mut world, &recover);
    give_ownership(&mut world, &[SlotRange::ALL]);
    world.run(150);
    world.new_stream();
    assert!(world.time() < floor);
    assert_eq!(world.value("short"), None, "expired by the floor");
    let meta = meta_of(&world.ask(get("long")));
    assert!(meta.remaining_ms.unwrap() <= 55_000);
    for id in world.head_backups() {
        assert!(
            world.ceiling(id) >= floor,
            "its own heir has to know as well"
        );
    }
}

#[test]
fn a_range_is_taken_over_without_the_rest() {
    let dead = dead_with(100);
    let mut world = heir(&dead);
    ask_to_recover(&mut world, &plan(&dead, vec![LEFT]));
    give_ownership(&mut world, &[LEFT]);
    for i in 0..100 {
        let key = format!("key{i}");
        if LEFT.contains(Slot::of(key.as_bytes())) {
            assert_eq!(world.value(&key), Some(format!("value{i}")));
        } else {
            assert_eq!(world.ask(get(&key)), Outcome::Failed(Failure::NotOwner));
            world.new_stream();
        }
    }
}

/// Seed 574 of the simulation: a gateway whose view already gave the shard the rest flushed it, and the
/// shard flushed only what its own view said. Nothing may be said about all that it owns meanwhile.
#[test]
fn the_key_space_waits_for_the_view_that_a_finished_recovery_leads_to() {
    let dead = dead_with(20);
    let mut world = heir(&dead);
    let lost = Tablet {
        available: false,
        ..tablet(RIGHT, dead.log)
    };
    world.view.tablets = vec![tablet(LEFT, world.log), lost];
    world.publish();
    let count = |world: &mut World| {
        let answer = world.ask(command("", Op::Count));
        world.new_stream();
        answer
    };
    assert!(matches!(count(&mut world), Outcome::Counted { .. }));
    ask_to_recover(&mut world, &plan(&dead, vec![RIGHT]));
    assert!(recovered(&world).is_some());
    let waits = world.send(command("", Op::Count));
    world.run(50);
    assert_eq!(world.answer(waits), None);
    give_ownership(&mut world, &[SlotRange::ALL]);
    world.run(50);
    let Some(Outcome::Counted { sessions, .. }) = world.answer(waits) else {
        panic!("it is owned");
    };
    let right = |i: &u32| RIGHT.contains(Slot::of(format!("key{i}").as_bytes()));
    assert_eq!(*sessions as usize, (0..20).filter(right).count());
}

#[test]
fn recoveries_of_two_logs_run_side_by_side_and_duplicates_change_nothing() {
    let mut dead = World::with_id(1, 4, 3, LEFT);
    let mut other = World::with_id(3, 4, 3, RIGHT);
    let keys: Vec<String> = (0..60).map(|i| format!("key{i}")).collect();
    for key in &keys {
        let world = if LEFT.contains(Slot::of(key.as_bytes())) {
            &mut dead
        } else {
            &mut other
        };
        assert!(matches!(world.ask(put(key, key)), Outcome::Done { .. }));
    }
    let mut world = heir(&dead);
    for (id, backup) in &other.backups {
        let replicas = backup.replicas.clone();
        world.backups.get_mut(id).unwrap().replicas.extend(replicas);
    }
    let gone = |range, log| Tablet {
        available: false,
        ..tablet(range, log)
    };
    world.view.tablets = vec![gone(LEFT, dead.log), gone(RIGHT, other.log)];
    world.publish();
    for _ in 0..3 {
        for (dead, range) in [(&dead, LEFT), (&other, RIGHT)] {
            let recover = plan(dead, vec![range]);
            world.hear(ServerId::COORDINATOR, Message::Recover(recover));
        }
    }
    world.run(200);
    give_ownership(&mut world, &[LEFT, RIGHT]);
    assert_eq!(world.metric("holdfast_shard_recoveries_total"), 2.0);
    ask_to_recover(&mut world, &plan(&dead, vec![LEFT]));
    assert_eq!(
        world.metric("holdfast_shard_recoveries_running"),
        0.0,
        "it is long over"
    );
    for key in &keys {
        assert_eq!(world.value(key).as_ref(), Some(key));
    }
}

/// V3.
#[test]
fn a_segment_comes_from_another_holder_when_one_fails() {
    let dead = dead_with(50);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    let holders = recover.segments[0].holders.clone();
    for bad in holders.iter().map(|holder| &holder.backup) {
        for fault in ["missing", "mute", "corrupt", "dead"] {
            let mut world = heir(&dead);
            match fault {
                "missing" => world
                    .backups
                    .get_mut(bad)
                    .unwrap()
                    .replicas
                    .retain(|(log, _), _| *log != dead.log),
                "mute" => _ = world.mute.insert(*bad),
                "corrupt" => _ = world.corrupts.insert(*bad),
                _ => world.declare_dead(*bad),
            }
            world.hear(ServerId::COORDINATOR, Message::Recover(recover.clone()));
            world.run(1_000);
            world.mute.clear();
            world.run(1_500);
            assert!(recovered(&world).is_some(), "{bad} {fault}");
            give_ownership(&mut world, &[SlotRange::ALL]);
            assert_eq!(world.value("key9").as_deref(), Some("value9"));
        }
    }
}

#[test]
fn a_segment_that_nobody_has_is_reported_missing_again_and_again() {
    let dead = dead_with(5);
    let mut world = heir(&dead);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    for backup in world.backups.values_mut() {
        backup.replicas.retain(|(log, _), _| *log != dead.log);
    }
    ask_to_recover(&mut world, &recover);
    world.run(30_000);
    let missing = RecoveryFailure::SegmentMissing(recover.segments[0].segment);
    assert_eq!(failure(&world), Some(missing));
    world.to_coordinator.clear();
    ask_to_recover(&mut world, &recover);
    assert_eq!(failure(&world), Some(missing), "told again");
    // A newer attempt, with the segment found after all, is another matter.
    world.backups = dead.backups.clone();
    ask_to_recover(
        &mut world,
        &Recover {
            attempt: 2,
            ..recover
        },
    );
    world.run(500);
    assert!(recovered(&world).is_some());
}

#[test]
fn a_dead_shard_too_big_for_the_memory_is_declined() {
    let fill = |world: &mut World, range: SlotRange, bytes: usize| {
        let mut kept = Vec::new();
        for i in 0.. {
            let key = format!("{}-{i}", world.log);
            if !range.contains(Slot::of(key.as_bytes())) {
                continue;
            }
            match world.ask(put(&key, &format!("{i:5000}"))) {
                Outcome::Done { .. } if kept.len() * 5_000 < bytes => kept.push((key, i)),
                _ => break,
            }
        }
        kept
    };
    let mut dead = World::with_id(1, 4, 3, RIGHT);
    fill(&mut dead, RIGHT, 2_500_000);
    let mut world = World::with_id(2, 4, 3, LEFT);
    world.sequence = 1_000_000;
    let kept = fill(&mut world, LEFT, 2_000_000);
    for (id, backup) in &dead.backups {
        let replicas = backup.replicas.clone();
        world.backups.get_mut(id).unwrap().replicas.extend(replicas);
    }
    let gone = Tablet {
        available: false,
        ..tablet(RIGHT, dead.log)
    };
    world.view.tablets = vec![tablet(LEFT, world.log), gone];
    world.publish();
    ask_to_recover(&mut world, &plan(&dead, vec![RIGHT]));
    world.run(2_000);
    assert_eq!(recovered(&world), None);
    assert_eq!(failure(&world), Some(RecoveryFailure::OutOfMemory));
    world.shard.verify();
    // Nothing of it stays, and nothing of its own is lost.
    for (key, i) in kept {
        assert_eq!(world.value(&key), Some(format!("{i:5000}")));
    }
    let outcome = world.ask(put(&format!("{}-0", world.log), "again"));
    assert!(
        !matches!(outcome, Outcome::Failed(Failure::OutOfMemory)),
        "{outcome:?}"
    );
}

/// V2: what was recovered for nothing is forgotten, and an older state cannot come back with it.
#[test]
fn a_recovery_that_another_shard_won_leaves_nothing() {
    let mut dead = dead_with(20);
    for i in 0..60 {
        dead.ask(put(&format!("key{i}"), &format!("{i:3000}")));
    }
    let mut world = heir(&dead);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    // All but one segment can be had, so it hangs half-way.
    let hung = recover.segments[0].segment;
    assert!(recover.segments.len() > 1);
    for backup in world.backups.values_mut() {
        backup.replicas.remove(&(dead.log, hung));
    }
    ask_to_recover(&mut world, &recover);
    world.run(300);
    assert_eq!(recovered(&world), None);
    let progress = world.to_coordinator.iter().any(
        |message| matches!(message, Message::RecoveryProgress { entries, .. } if *entries > 10),
    );
    assert!(progress, "something has been replayed");
    world.view.tablets = vec![tablet(SlotRange::ALL, LogId(60))];
    world.publish();
    assert_eq!(world.metric("holdfast_shard_recoveries_running"), 0.0);
    // Much later this shard gets the ranges by another way, and must know nothing of them.
    world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
    world.publish();
    for i in 0..60 {
        assert_eq!(world.value(&format!("key{i}")), None);
    }
    world.shard.verify();
}

/// V2: what is part of the log cannot be taken out again.
#[test]
fn a_shard_whose_finished_recovery_is_given_away_stops() {
    let dead = dead_with(20);
    let mut world = heir(&dead);
    ask_to_recover(&mut world, &plan(&dead, vec![SlotRange::ALL]));
    assert!(recovered(&world).is_some());
    world.view.tablets = vec![tablet(SlotRange::ALL, LogId(60))];
    world.publish();
    assert!(world.stopped.is_some());
}

#[test]
fn a_newer_attempt_at_the_same_ranges_goes_on_where_the_older_was() {
    let dead = dead_with(20);
    let mut world = heir(&dead);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    ask_to_recover(&mut world, &recover);
    world.to_coordinator.clear();
    ask_to_recover(
        &mut world,
        &Recover {
            attempt: 2,
            ..recover.clone()
        },
    );
    let attempts: Vec<u64> = (world.to_coordinator.iter())
        .filter_map(|message| match message {
            Message::Recovered { attempt, .. } => Some(*attempt),
            _ => None,
        })
        .collect();
    assert!(
        attempts.contains(&2) && attempts.len() >= 2,
        "repeated until heard: {attempts:?}"
    );
    give_ownership(&mut world, &[SlotRange::ALL]);
    assert_eq!(world.value("key1").as_deref(), Some("value1"));
}

#[test]
fn a_newer_attempt_that_cuts_the_ranges_anew_drops_the_older_work() {
    let dead = dead_with(20);
    let mut world = heir(&dead);
    let recover = plan(&dead, vec![SlotRange::ALL]);
    world.mute = dead.backups.keys().copied().collect();
    ask_to_recover(&mut world, &recover);
    world.mute.clear();
    let right = Recover {
        attempt: 3,
        ..plan(&dead, vec![RIGHT])
    };
    ask_to_recover(&mut world, &right);
    // A late duplicate of the older attempt.
    ask_to_recover(&mut world, &recover);
    world.run(300);
    assert_eq!(world.metric("holdfast_shard_recoveries_running"), 1.0);
    assert!(recovered(&world).is_some());
    give_ownership(&mut world, &[RIGHT]);
    for i in 0..20 {
        let key = format!("key{i}");
        if RIGHT.contains(Slot::of(key.as_bytes())) {
            assert_eq!(world.value(&key), Some(format!("value{i}")));
        }
    }
    world.shard.verify();
}

/// What was taken over is itself replicated: a third shard finds it on the backups of the second.
#[test]
fn a_second_death_loses_nothing() {
    let mut dead = dead_with(50);
    let once = dead.once();
    let first = dead.ask_as(once, put("a", "mine"));
    let mut world = heir(&dead);
    ask_to_recover(&mut world, &plan(&dead, vec![SlotRange::ALL]));
    give_ownership(&mut world, &[SlotRange::ALL]);
    world.ask(put("key3", "changed"));
    let mut third = World::idle(3, 4, 3);
    third.now_us = world.now_us;
    third.backups = world.backups.clone();
    for backup in third.backups.values_mut() {
        backup.replicas.retain(|(log, _), _| *log == world.log);
    }
    third.sequence = 2_000_000;
    third.view.tablets = vec![Tablet {
        available: false,
        ..tablet(SlotRange::ALL, world.log)
    }];
    third.run(0);
    third.run(300);
    ask_to_recover(&mut third, &plan(&world, vec![SlotRange::ALL]));
    give_ownership(&mut third, &[SlotRange::ALL]);
    assert_eq!(third.value("key3").as_deref(), Some("changed"));
    assert_eq!(third.value("key4").as_deref(), Some("value4"));
    assert_eq!(third.ask_as(once, put("a", "mine")), first);
    assert!(third.time() > ClusterMs(0));
}
