//! Serving early: a range is served key by key while the rest of it is still being replayed.

use holdfast_format::{Entries, KeyHash, SegmentId, SlotRange};
use holdfast_wire::*;

use crate::lineage::lent;
use crate::takeover::{ask_to_recover, give_ownership, heir, recovered};
use crate::world::*;

pub const KEYS: usize = 60;

pub fn dead() -> World {
    let mut dead = World::new(4, 3);
    for i in 0..KEYS {
        dead.ask(put(&format!("key{i}"), &format!("{i:3000}")));
    }
    dead
}

pub fn value(i: usize) -> String {
    format!("{i:3000}")
}

/// The keys that a segment of the dead log has entries of.
pub fn keys_in(dead: &World, segment: SegmentId) -> Vec<usize> {
    let replica = dead.copies(segment)[0];
    let hashes: Vec<KeyHash> = Entries::new(&replica.bytes)
        .filter_map(|located| located.unwrap().entry.key_hash())
        .collect();
    let has = |i: &usize| hashes.contains(&KeyHash::of(N, format!("key{i}").as_bytes()));
    (0..KEYS).filter(has).collect()
}

/// An heir that owns everything, of which one segment is still to come; and that segment.
pub fn early(dead: &World, recover: &Recover) -> (World, SegmentId) {
    let oldest = recover.segments.iter().map(|it| it.segment).min().unwrap();
    let mut world = heir(dead);
    world.withheld.insert(oldest);
    ask_to_recover(&mut world, recover);
    assert!(
        is_replayed(&world),
        "the head is committed, all outlines are known"
    );
    give_ownership(&mut world, &[SlotRange::ALL]);
    assert_eq!(world.metric("holdfast_shard_takeovers_early_total"), 1.0);
    (world, oldest)
}

fn is_replayed(world: &World) -> bool {
    let replayed = |message: &Message| matches!(message, Message::Replayed { .. });
    world.to_coordinator.iter().any(replayed)
}

pub fn answer_of(world: &mut World, command: Command) -> Option<Outcome> {
    let token = world.send(command);
    world.run(20);
    world.answer(token).cloned()
}

#[test]
fn what_has_come_is_told_and_the_rest_waits() {
    let dead = dead();
    let (mut world, late) = early(&dead, &lent(&dead));
    let missing = keys_in(&dead, late);
    assert!(missing.len() > 3 && missing.len() < KEYS - 3);
    let mut waiting = Vec::new();
    let mut told = 0;
    for i in 0..KEYS {
        let token = world.send(get(&format!("key{i}")));
        world.run(5);
        match world.answer(token) {
            Some(outcome) => {
                assert_eq!(value_of(outcome), Ok(value(i)));
                assert!(!missing.contains(&i));
                told += 1;
            }
            None => waiting.push((i, token)),
        }
    }
    assert!(told > 3, "{told} of {KEYS}");
    assert!(waiting.len() >= missing.len());
    assert_eq!(
        world.metric("holdfast_shard_early_reads_total"),
        told as f64
    );
    assert_eq!(world.metric("holdfast_shard_waiting"), waiting.len() as f64);
    assert_eq!(recovered(&world), None);

    world.withheld.clear();
    world.run(1_500);
    for (i, token) in waiting {
        assert_eq!(value_of(world.answer(token).unwrap()), Ok(value(i)));
    }
    assert!(recovered(&world).is_some());
    world.shard.verify();
}

/// E2: a write that asks for nothing need not wait, and what comes later does not undo it; whatever asks does.
#[test]
fn blind_writes_are_executed_at_once_and_others_wait() {
    let dead = dead();
    let (mut world, late) = early(&dead, &lent(&dead));
    let missing = keys_in(&dead, late);
    let (a, b, c) = (missing[0], missing[1], missing[2]);
    let key = |i: usize| format!("key{i}");
    // The very same value, too: it must not become a touch of what may be old.
    for (i, new) in [(a, "newer".to_owned()), (b, value(b))] {
        let outcome = answer_of(&mut world, put(&key(i), &new)).expect("it need not wait");
        assert!(matches!(outcome, Outcome::Done { .. }));
        assert_eq!(world.value(&key(i)), Some(new), "now it is known");
    }
    assert_eq!(world.metric("holdfast_shard_early_writes_total"), 2.0);
    let conditional = world.send(put_with(
        &key(c),
        "x",
        Condition::Absent,
        ExpiryChange::Clear,
    ));
    let behind = world.send(put(&key(c), "after it"));
    let count = world.send(command("", Op::Count));
    let gone = world.send(delete(&key(a)));
    world.run(50);
    for token in [conditional, behind, count] {
        assert_eq!(world.answer(token), None);
    }
    assert!(matches!(world.answer(gone), Some(Outcome::Done { .. })));

    world.withheld.clear();
    world.run(1_500);
    assert!(matches!(
        world.answer(conditional),
        Some(Outcome::Refused { .. })
    ));
    assert!(matches!(world.answer(behind), Some(Outcome::Done { .. })));
    let Some(Outcome::Counted { sessions, .. }) = world.answer(count) else {
        panic!("it was answered");
    };
    assert_eq!(*sessions as usize, KEYS - 1);
    assert_eq!(world.value(&key(a)), None);
    assert_eq!(world.value(&key(b)), Some(value(b)));
    assert_eq!(world.value(&key(c)).as_deref(), Some("after it"));
    world.shard.verify();
}

/// E3: its completion record may be in what is still to come.
#[test]
fn a_repeated_write_waits_for_its_record() {
    let mut dead = World::new(4, 3);
    let once = dead.once();
    let first = dead.ask_as(once, put("mine", "one"));
    for i in 0..KEYS {
        dead.ask(put(&format!("key{i}"), &value(i)));
    }
    let (mut world, _) = early(&dead, &lent(&dead));
    let again = world.send_as(Some(once), put("mine", "one"));
    world.run(50);
    assert_eq!(world.answer(again), None, "executed twice");
    world.withheld.clear();
    world.run(1_500);
    assert_eq!(world.answer(again), Some(&first));
}

/// E4: the old owner may still tell what it has, and by a slower clock: what is not there nobody tells yet.
#[test]
fn in_the_old_lease_only_what_is_there_is_told() {
    let dead = dead();
    let mut recover = lent(&dead);
    recover.lease_remaining_ms = 600;
    let (mut world, late) = early(&dead, &recover);
    let missing = keys_in(&dead, late);
    let here = (0..KEYS).rev().find(|i| !missing.contains(i)).unwrap();
    let key = format!("key{here}");
    assert_eq!(world.value(&key), Some(value(here)));
    let absent = world.send(get("nobody"));
    let write = world.send(put(&key, "newer"));
    world.run(100);
    assert_eq!(world.answer(absent), None);
    assert_eq!(world.answer(write), None);
    world.withheld.clear();
    world.run(900);
    assert!(matches!(world.answer(absent), Some(Outcome::Absent { .. })));
    assert!(matches!(world.answer(write), Some(Outcome::Done { .. })));
}

#[test]
fn a_segment_without_an_outline_is_replayed_before_anything_is_told() {
    let dead = dead();
    let recover = lent(&dead);
    let oldest = recover.segments.iter().map(|it| it.segment).min().unwrap();
    let mut world = heir(&dead);
    world.without_outlines = true;
    world.withheld.insert(oldest);
    ask_to_recover(&mut world, &recover);
    world.run(400);
    assert!(!is_replayed(&world));
    world.withheld.clear();
    world.run(1_500);
    assert!(is_replayed(&world));
    assert_eq!(world.metric("holdfast_shard_takeovers_early_total"), 0.0);
}

/// E7: what it serves cannot be taken from it, and the rest cannot be had: both logs must be read by another.
#[test]
fn who_cannot_get_the_rest_stops() {
    let dead = dead();
    let (mut world, _) = early(&dead, &lent(&dead));
    // Whoever stays silent is asked again and again.
    world.run(60_000);
    assert!(
        world
            .stopped
            .as_ref()
            .is_some_and(|why| why.contains("cannot be had"))
    );
}

/// E1: a range tombstone in a segment that is still to come is in force before anything is told.
#[test]
fn what_was_flushed_in_a_segment_to_come_is_not_told() {
    let mut dead = World::new(4, 3);
    for i in 0..KEYS / 2 {
        dead.ask(put(&format!("key{i}"), &value(i)));
    }
    dead.ask(command("", Op::Flush));
    for i in KEYS / 2..KEYS {
        dead.ask(put(&format!("key{i}"), &value(i)));
    }
    let recover = lent(&dead);
    let is_flush = |segment: SegmentId| {
        let replica = dead.copies(segment)[0];
        Entries::new(&replica.bytes)
            .any(|it| matches!(it.unwrap().entry, holdfast_format::Entry::RangeTombstone(_)))
    };
    let flushing = recover.segments.iter().map(|it| it.segment);
    let flushing = flushing.clone().find(|it| is_flush(*it)).unwrap();
    let mut world = heir(&dead);
    world.withheld.insert(flushing);
    ask_to_recover(&mut world, &recover);
    assert!(is_replayed(&world));
    give_ownership(&mut world, &[SlotRange::ALL]);
    let mut told = 0;
    for i in 0..KEYS / 2 {
        if let Some(outcome) = answer_of(&mut world, get(&format!("key{i}"))) {
            assert!(matches!(outcome, Outcome::Absent { .. }), "key{i} is gone");
            told += 1;
        }
    }
    assert!(told > 3);
}

/// V5: others may still be at their replay, and users wait for that.
#[test]
fn what_leans_is_replicated_some_time_after_it_was_replayed() {
    let dead = dead();
    let (mut world, late) = early(&dead, &lent(&dead));
    let began_us = world.now_us;
    let token = world.send(get(&format!("key{}", keys_in(&dead, late)[0])));
    world.run(600);
    assert_eq!(world.answer(token), None);
    world.withheld.clear();
    while world.answer(token).is_none() {
        world.run(5);
    }
    let took_us = world.now_us - began_us;
    assert!((600_000..3_000_000).contains(&took_us), "{took_us}");
    let ended_us = world.now_us;
    while recovered(&world).is_none() {
        world.run(5);
    }
    let pause_us = world.now_us - ended_us;
    let least_us = (took_us / 2).min(1_000_000);
    assert!(
        (least_us - 20_000..least_us + 100_000).contains(&pause_us),
        "{pause_us} after {took_us}"
    );
}

/// A dead log of many segments, what is to be recovered of it, and its newest segment, which must be durable first.
fn long() -> (World, Recover, SegmentId) {
    let mut dead = World::new(4, 3);
    for i in 0..400 {
        dead.ask(put(&format!("key{i}"), &value(i)));
    }
    let recover = lent(&dead);
    let head = recover.first.as_ref().unwrap()[0];
    assert!(recover.segments.len() > 12, "{}", recover.segments.len());
    (dead, recover, head)
}

/// Everybody is needed for what the ranges are served by; then two segments for each of four backups are on their way.
#[test]
fn little_is_fetched_before_the_ranges_can_be_served() {
    let (dead, recover, head) = long();
    let mut world = heir(&dead);
    world.withheld = recover.segments.iter().map(|it| it.segment).collect();
    ask_to_recover(&mut world, &recover);
    assert!(!is_replayed(&world));
    assert_eq!(world.asked.len(), 2, "{:?}", world.asked);
    assert_eq!(world.asked[0], head);
    world.withheld.remove(&head);
    world.run(1_000);
    assert!(is_replayed(&world));
    assert_eq!(world.asked.len(), 1 + 8, "{:?}", world.asked);
}

/// E6: what a command waits for is fetched next, after what others have waited for longer.
#[test]
fn what_commands_wait_for_is_fetched_first() {
    let (dead, recover, head) = long();
    let mut world = heir(&dead);
    let rest = recover.segments.iter().map(|it| it.segment);
    world.withheld = rest.filter(|it| *it != head).collect();
    ask_to_recover(&mut world, &recover);
    give_ownership(&mut world, &[SlotRange::ALL]);
    let mut left: Vec<SegmentId> = world.withheld.iter().copied().collect();
    left.retain(|it| !world.asked.contains(it));
    // In turn, the oldest would be the last.
    let (first, second) = (left[0], left[1]);
    for segment in [first, second] {
        let replica = dead.copies(segment)[0].bytes.clone();
        let has = |i: &usize| {
            let hash = KeyHash::of(N, format!("key{i}").as_bytes());
            let mut entries = Entries::new(&replica);
            entries.any(|located| located.unwrap().entry.key_hash() == Some(hash))
        };
        let key = (0..400).find(has).expect("somebody's segment");
        world.send(get(&format!("key{key}")));
    }
    assert_eq!(world.metric("holdfast_shard_segments_pulled_total"), 2.0);
    let on_their_way = world.asked.len();
    let come: Vec<SegmentId> = world.asked.clone();
    world.withheld.retain(|it| !come.contains(it));
    world.run(1_000);
    assert_eq!(world.asked[on_their_way..][..2], [first, second]);
}

/// E3: what may add to a namespace that has limits waits until all is counted.
#[test]
fn a_write_to_a_limited_namespace_waits_for_its_range() {
    let dead = dead();
    let (mut world, _) = early(&dead, &lent(&dead));
    let limits = NamespaceLimits {
        sessions: Some(1_000),
        ..NamespaceLimits::default()
    };
    let namespace = N;
    world.view.namespaces = vec![NamespacePolicy { namespace, limits }];
    world.publish();
    let fresh = world.send(put("fresh", "x"));
    let gone = world.send(delete("nobody"));
    world.run(50);
    assert_eq!(world.answer(fresh), None);
    assert!(world.answer(gone).is_some(), "it adds nothing");
    world.withheld.clear();
    world.run(1_500);
    assert!(matches!(world.answer(fresh), Some(Outcome::Done { .. })));
}
