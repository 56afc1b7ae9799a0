//! R7: replicas of one segment that are not the same, because some were made after it had been compacted.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::Node;
use holdfast_format::{SegmentId, ServerId, SlotRange};
use holdfast_wire::*;

use crate::takeover::{ask_to_recover, give_ownership, heir, plan, recovered};
use crate::world::*;

const KEYS: usize = 220;
const COMPACTED: &str = "holdfast_shard_compacted_bytes_total";
const BEGUN_AGAIN: &str = "holdfast_shard_copies_begun_again_total";
const SHORT: &str = "holdfast_shard_under_replicated_segments";

/// A shard with so little memory that it compacts when it has been written to for a while.
fn small() -> World {
    let mut world = World::configured(1, 6, 3, |config| {
        // Copies that are held up are memory too.
        config.log.outside_bytes = 256 << 10;
        config.log.memory_bytes = (1 << 20) + (384 << 10);
        config.log.replica_expansion_percent = 800;
    });
    world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
    world.run(0);
    world.run(300);
    world
}

/// Overwrites some of the keys; two of three writes go to half of them.
fn churn(world: &mut World, writes: usize) {
    for _ in 0..writes {
        let at = (world.sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize;
        let key = if at.is_multiple_of(3) {
            at % KEYS
        } else {
            at % (KEYS / 2)
        };
        let value = format!("{:1$}", world.sequence, 1_000 + at % 3_000);
        let outcome = world.ask(put(&format!("key{key}"), &value));
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        world.run(1);
    }
}

/// Churns until a figure of the shard has risen.
fn churn_until(world: &mut World, figure: &str) {
    let before = world.metric(figure);
    for _ in 0..400 {
        churn(world, 5);
        if world.metric(figure) > before {
            return;
        }
    }
    panic!("{figure} never rises");
}

fn values(world: &mut World) -> BTreeMap<String, Option<String>> {
    (0..KEYS)
        .map(|i| format!("key{i}"))
        .map(|key| (key.clone(), world.value(&key)))
        .collect()
}

/// Closed replicas of every segment, and who has them.
fn closed(world: &World) -> BTreeMap<SegmentId, Vec<(ServerId, Certificate)>> {
    let mut found: BTreeMap<SegmentId, Vec<(ServerId, Certificate)>> = BTreeMap::new();
    for (id, backup) in &world.backups {
        for ((log, segment), stored) in &backup.replicas {
            if *log == world.log && stored.closed {
                let certificate = stored.certificate.expect("it is closed");
                found.entry(*segment).or_default().push((*id, certificate));
            }
        }
    }
    found
}

/// Segments of which closed replicas differ.
fn different(world: &World) -> Vec<SegmentId> {
    let differ = |held: &Vec<(ServerId, Certificate)>| held.iter().any(|it| it.1 != held[0].1);
    (closed(world).into_iter())
        .filter(|(_, held)| differ(held))
        .map(|(segment, _)| segment)
        .collect()
}

/// What is recovered if of every segment only the closed replica that `keep` chooses is left.
fn recovered_from(
    dead: &World,
    keep: impl Fn(&[(ServerId, Certificate)]) -> ServerId,
) -> BTreeMap<String, Option<String>> {
    let mut world = heir(dead);
    for (segment, held) in closed(dead) {
        let kept = keep(&held);
        for (id, backup) in &mut world.backups {
            if *id != kept {
                backup.replicas.remove(&(dead.log, segment));
            }
        }
    }
    // The coordinator lists what was there when it asked; some of it is gone by now (V3).
    let recover = plan(dead, vec![SlotRange::ALL]);
    ask_to_recover(&mut world, &recover);
    world.run(3_000);
    assert!(recovered(&world).is_some());
    give_ownership(&mut world, &[SlotRange::ALL]);
    let values = values(&mut world);
    world.shard.verify();
    values
}

fn check_every_choice(dead: &mut World) {
    let expected = values(dead);
    let length = |it: &&(ServerId, Certificate)| it.1.length;
    let shortest = |held: &[(ServerId, Certificate)]| held.iter().min_by_key(length).unwrap().0;
    let longest = |held: &[(ServerId, Certificate)]| held.iter().max_by_key(length).unwrap().0;
    assert!(recovered_from(dead, shortest) == expected, "the shortest");
    assert!(recovered_from(dead, longest) == expected, "the longest");
    let mixed = |held: &[(ServerId, Certificate)]| held[held[0].1.length as usize % held.len()].0;
    assert!(recovered_from(dead, mixed) == expected, "one of each");
}

/// Copies that are under way when their segment is compacted begin again; the closed replicas stay, and each
/// is enough.
#[test]
fn copies_begin_again_and_closed_replicas_stay() {
    let mut world = small();
    churn(&mut world, 400);
    world.stalls_copies = true;
    let lost = *world.backups.keys().next().unwrap();
    world.declare_dead(lost);
    let before = closed(&world);
    churn_until(&mut world, BEGUN_AGAIN);
    assert!(world.metric(SHORT) > 0.0);
    for (segment, held) in closed(&world) {
        let same = before.get(&segment).is_none_or(|before| {
            before
                .iter()
                .all(|it| held.contains(it) || world.freed.contains(&segment))
        });
        assert!(same, "{segment}: what was closed has changed");
    }
    world.stalls_copies = false;
    world.run(3_000);
    assert_eq!(world.metric(SHORT), 0.0);
    assert!(!different(&world).is_empty(), "all replicas are the same");
    assert!(world.shard.ready());
    world.shard.verify();
    check_every_choice(&mut world);
}

/// What a backup acknowledges of bytes that are no more moves nothing.
#[test]
fn late_acknowledgements_of_older_bytes_are_ignored() {
    let mut world = small();
    churn(&mut world, 400);
    world.stalls_copies = true;
    let lost = *world.backups.keys().next().unwrap();
    world.declare_dead(lost);
    churn_until(&mut world, BEGUN_AGAIN);
    // Long enough for everything under way to be sent again, of the bytes there are now.
    world.run(2_500);
    let mut newest: BTreeMap<(ServerId, SegmentId), Option<Certificate>> = BTreeMap::new();
    for (to, append) in &world.stalled {
        newest.insert((*to, append.segment), append.certificate);
    }
    let older: Vec<(ServerId, Append)> = (world.stalled.iter())
        .filter(|(to, append)| newest[&(*to, append.segment)] != append.certificate)
        .cloned()
        .collect();
    assert!(
        !older.is_empty(),
        "nothing was sent twice, of different bytes"
    );
    let short = world.metric(SHORT);
    assert!(short > 0.0);
    for (from, append) in older {
        let ack = Appended {
            log: append.log,
            epoch: append.epoch,
            segment: append.segment,
            length: append.offset + append.bytes.len() as u32,
            closed: append.close,
            sent_us: append.sent_us,
            lease_ms: append.lease_ms,
        };
        world.hear(from, Message::Appended(ack));
    }
    world.run(100);
    assert_eq!(world.metric(SHORT), short);
    world.stalls_copies = false;
    world.run(3_000);
    assert_eq!(world.metric(SHORT), 0.0);
    let held = closed(&world);
    assert!(held.values().all(|held| held.len() == 3), "{held:?}");
    check_every_choice(&mut world);
}

/// A bad replica of a compacted segment is made again from what there is now, and the others stay.
#[test]
fn a_bad_replica_is_made_again_of_todays_bytes() {
    for why in [Refusal::Reopen { length: 0 }, Refusal::Broken] {
        let mut world = small();
        churn(&mut world, 300);
        churn_until(&mut world, COMPACTED);
        world.run(1_000);
        let log = world.log;
        let mut changed = 0;
        for (segment, held) in closed(&world) {
            let (bad, was) = held[0];
            let backup = world.backups.get_mut(&bad).unwrap();
            backup.replicas.remove(&(log, segment));
            let refused = AppendRefused { log, segment, why };
            world.hear(bad, Message::AppendRefused(refused));
            world.run(1_000);
            let now = closed(&world)[&segment].clone();
            assert_eq!(now.len(), 3, "{segment}");
            assert!(held[1..].iter().all(|it| now.contains(it)), "{segment}");
            let anew = now.iter().find(|it| !held[1..].contains(it)).unwrap();
            changed += usize::from(anew.1 != was);
        }
        assert!(changed > 0, "{why:?}: nothing had been compacted");
        assert_eq!(world.metric(SHORT), 0.0);
        check_every_choice(&mut world);
    }
}

/// A backup that was given up returns with older closed replicas: they are whole, and freed with their segments.
#[test]
fn a_returning_backups_older_replicas_are_whole() {
    let mut world = small();
    churn(&mut world, 400);
    let away = *world.backups.keys().next().unwrap();
    let mut kept = world.backups[&away].clone();
    kept.replicas.retain(|_, stored| stored.closed);
    world.declare_dead(away);
    churn_until(&mut world, COMPACTED);
    world.run(1_000);
    // Under a new id, with what it had.
    let back = ServerId(300);
    world.view.members.push(member(back.0, Role::Backup));
    world.backups.insert(back, kept.clone());
    world.publish();
    let log = world.log;
    let offer = |world: &mut World| {
        for ((_, segment), stored) in &kept.replicas {
            let length = stored.bytes.len() as u32;
            let why = Refusal::Reopen { length };
            let segment = *segment;
            world.hear(
                back,
                Message::AppendRefused(AppendRefused { log, segment, why }),
            );
        }
    };
    offer(&mut world);
    assert!(!different(&world).is_empty(), "it has what the others have");
    assert_eq!(world.metric(SHORT), 0.0);
    check_every_choice(&mut world);
    // The oldest of all, wherever there is one.
    let expected = values(&mut world);
    let returned = |held: &[(ServerId, Certificate)]| {
        let of_back = held.iter().find(|it| it.0 == back);
        of_back.unwrap_or(&held[0]).0
    };
    assert!(recovered_from(&world, returned) == expected);
    // What the log needs no more is freed there as well.
    churn(&mut world, 600);
    offer(&mut world);
    world.run(200);
    let goals: BTreeSet<SegmentId> = (world.backups.iter())
        .filter(|(id, _)| **id != back)
        .flat_map(|(_, backup)| backup.replicas.keys().map(|(_, segment)| *segment))
        .collect();
    let left = world.backups[&back].replicas.keys();
    assert!(left.clone().all(|(_, segment)| goals.contains(segment)));
}
