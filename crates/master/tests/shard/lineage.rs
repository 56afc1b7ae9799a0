//! Lineage: what is replayed is served while the rest of it leans on the dead log's replicas, and whoever recovers
//! it again reads both.

use holdfast_cluster::Node;
use holdfast_format::{LogId, SegmentId, ServerId, SlotRange};
use holdfast_wire::{LeantOn, Message, Recover};

use crate::takeover::{ask_to_recover, give_ownership, heir, heir_numbered, plan, recovered};
use crate::world::{World, delete, put};

const KEYS: usize = 60;

fn dead() -> World {
    let mut dead = World::new(4, 3);
    for i in 0..KEYS {
        dead.ask(put(&format!("key{i}"), &format!("{i:3000}")));
    }
    dead
}

/// May be taken over when the entries of the head are durable.
pub fn lent(dead: &World) -> Recover {
    let plan = plan(dead, vec![SlotRange::ALL]);
    let head = plan.segments.iter().map(|it| it.segment).max().unwrap();
    assert!(plan.segments.len() > 2, "there is something to lean on");
    Recover {
        first: Some(vec![head]),
        ..plan
    }
}

/// An heir of `dead` that serves and leans: of its side segments only the first, which has the entries of the
/// head, gets to backups.
fn leaning(dead: &World, recover: &Recover) -> World {
    let mut world = heir(dead);
    // The head has id 1, the first side segment 2.
    world.stalls_sides = Some(SegmentId(3));
    ask_to_recover(&mut world, recover);
    assert_eq!(recovered(&world), None);
    let left = bytes_left(&world).expect("it is replayed");
    assert!(left > 30_000, "{left} bytes are not replicated");
    give_ownership(&mut world, &[SlotRange::ALL]);
    assert_eq!(world.metric("holdfast_shard_recoveries_leaning"), 1.0);
    assert!(world.metric("holdfast_shard_leaning_bytes") > 30_000.0);
    world
}

fn bytes_left(world: &World) -> Option<u64> {
    let replayed = |message: &Message| match message {
        Message::Replayed { bytes_left, .. } => Some(*bytes_left),
        _ => None,
    };
    world.to_coordinator.iter().filter_map(replayed).next_back()
}

/// What the coordinator would tell the heir of `world`, which has died leaning on `first`.
fn both(world: &World, first: &Recover) -> Recover {
    let mut both = plan(world, vec![SlotRange::ALL]);
    // Side segments that no digest names are not read.
    let newest = world.heads(world.log).keys().max().copied().unwrap();
    let digest = world.digest(newest);
    both.segments.retain(|it| digest.contains(&it.segment));
    let head = first.first.clone().unwrap();
    let mut segments = first.segments.clone();
    segments.retain(|it| !head.contains(&it.segment));
    both.leant_on = vec![LeantOn {
        log: first.log,
        ranges: vec![SlotRange::ALL],
        segments,
    }];
    both
}

#[test]
fn what_is_replayed_is_served_while_it_leans() {
    let dead = dead();
    let mut world = leaning(&dead, &lent(&dead));
    for i in 0..KEYS {
        let expected = format!("{i:3000}");
        assert_eq!(world.value(&format!("key{i}")).as_deref(), Some(&*expected));
    }
    world.ask(put("key1", "newer"));
    assert_eq!(world.value("key1").as_deref(), Some("newer"));
    assert!(!world.shard.ready(), "not everything has its replicas");

    // With its replicas it stands alone, and says so until that is on record.
    world.stalls_sides = None;
    world.run(2_000);
    assert!(recovered(&world).is_some());
    assert_eq!(world.metric("holdfast_shard_recoveries_leaning"), 1.0);
    record(&mut world, dead.log, 1);
    assert_eq!(world.metric("holdfast_shard_recoveries_running"), 0.0);
    assert!(world.shard.ready());
    world.shard.verify();
}

fn record(world: &mut World, log: LogId, attempt: u64) {
    let recorded = Message::RecoveryRecorded { log, attempt };
    world.hear(ServerId::COORDINATOR, recorded);
    world.run(50);
}

/// Its own log has what was written since, and the dead log all else.
#[test]
fn who_dies_leaning_is_recovered_from_both_logs() {
    let dead = dead();
    let first = lent(&dead);
    let mut second = leaning(&dead, &first);
    second.ask(put("key1", "newer"));
    second.ask(delete("key2"));
    second.ask(put("other", "new"));
    let mut third = heir_numbered(3, &second, |_| {});
    ask_to_recover(&mut third, &both(&second, &first));
    assert!(recovered(&third).is_some());
    give_ownership(&mut third, &[SlotRange::ALL]);
    for i in 3..KEYS {
        let expected = format!("{i:3000}");
        assert_eq!(third.value(&format!("key{i}")).as_deref(), Some(&*expected));
    }
    assert_eq!(third.value("key1").as_deref(), Some("newer"));
    assert_eq!(third.value("key2"), None);
    assert_eq!(third.value("other").as_deref(), Some("new"));
    third.shard.verify();
}

/// V4: a tombstone that nothing of this log needs any more is needed until the dead log is out of the way.
#[test]
fn tombstones_last_while_anything_leans() {
    let dead = dead();
    let first = lent(&dead);
    let mut second = leaning(&dead, &first);
    for i in 0..KEYS {
        second.ask(delete(&format!("key{i}")));
    }
    second.stalls_sides = None;
    second.run(2_000);
    assert!(recovered(&second).is_some(), "it could stand alone");
    // Everything that the tombstones hide leaves the log; `RecoveryRecorded` is on its way.
    for round in 0..40 {
        second.ask(put("filler", &format!("{round:7000}")));
        second.run(20_000);
    }
    let mut third = heir_numbered(3, &second, |_| {});
    ask_to_recover(&mut third, &both(&second, &first));
    give_ownership(&mut third, &[SlotRange::ALL]);
    for i in 0..KEYS {
        assert_eq!(third.value(&format!("key{i}")), None, "key{i}");
    }
}

/// V2: both replays are forgotten.
#[test]
fn a_recovery_that_could_have_leant_and_failed_leaves_nothing() {
    let dead = dead();
    let recover = lent(&dead);
    let mut world = heir(&dead);
    let hung = recover.segments[0].segment;
    for backup in world.backups.values_mut() {
        backup.replicas.remove(&(dead.log, hung));
    }
    ask_to_recover(&mut world, &recover);
    world.run(300);
    assert_eq!((recovered(&world), bytes_left(&world)), (None, None));
    world.view.tablets = vec![crate::world::tablet(SlotRange::ALL, LogId(60))];
    world.publish();
    assert_eq!(world.metric("holdfast_shard_recoveries_running"), 0.0);
    world.view.tablets = vec![crate::world::tablet(SlotRange::ALL, world.log)];
    world.publish();
    for i in 0..KEYS {
        assert_eq!(world.value(&format!("key{i}")), None);
    }
    world.shard.verify();
}
