//! Rules R1 to R6 as a shard keeps them. R1 and R2 are asserted by the world at every append, R4 at
//! every `RaiseEpoch`.

use std::collections::BTreeSet;

use holdfast_cluster::{Input, Node};
use holdfast_format::{Epoch, SegmentId, ServerId};
use holdfast_wire::*;

use crate::world::*;

/// Enough to fill several heads of 64 KiB.
fn fill(world: &mut World, writes: usize) {
    for i in 0..writes {
        let outcome = world.ask(put(
            &format!("fill{}", i % 50),
            &format!("{:3000}", world.sequence),
        ));
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }
}

/// R1, R2: the world checks offsets, certificates, and what is open when; here heads just change.
#[test]
fn heads_follow_each_other_in_order() {
    let mut world = World::new(4, 3);
    fill(&mut world, 300);
    assert!(world.heads(world.log).len() > 1 || !world.freed.is_empty());
    world.shard.verify();
}

/// The same while now one and now another backup hears nothing for a while.
#[test]
fn heads_follow_each_other_in_order_when_backups_stutter() {
    let mut world = World::new(5, 3);
    let mut tokens = Vec::new();
    for i in 0..400 {
        world.mute.clear();
        world.mute.insert(ServerId(100 + (i / 7) % 5));
        tokens.push(world.send(put(&format!("k{}", i % 30), &format!("{i:2000}"))));
        world.run(40);
    }
    world.mute.clear();
    world.run(3_000);
    for token in tokens {
        match world.answer(token) {
            Some(Outcome::Done { .. }) => {}
            Some(Outcome::Failed(Failure::Busy | Failure::NotReady)) => {}
            other => panic!("{token}: {other:?}"),
        }
    }
    world.new_stream();
    assert_eq!(world.value("k3").map(|value| value.len()), Some(2_000));
    assert_eq!(world.metric("holdfast_shard_unreplicated_bytes"), 0.0);
    world.shard.verify();
}

/// R5: what the cleaner has emptied is freed on its backups, and only then.
#[test]
fn cleaned_segments_are_freed() {
    let mut world = World::new(3, 3);
    for round in 0..40 {
        fill(&mut world, 100);
        world.run(20);
        let held: usize = world
            .backups
            .values()
            .map(|backup| backup.replicas.len())
            .sum();
        assert!(
            held <= 3 * 2 * 64,
            "round {round}: {held} replicas for 4 MiB of memory and twice as much on backups"
        );
    }
    assert!(!world.freed.is_empty());
    for i in 0..50 {
        assert!(world.value(&format!("fill{i}")).is_some());
    }
    // Exactly R of everything that there still is, once all has come to rest.
    world.run(2_000);
    let segments: BTreeSet<_> = world
        .backups
        .values()
        .flat_map(|backup| backup.replicas.keys().copied())
        .collect();
    for (_, segment) in &segments {
        assert_eq!(world.copies(*segment).len(), 3, "{segment}");
    }
    assert_eq!(
        world.metric("holdfast_shard_segments"),
        segments.len() as f64
    );
    world.shard.verify();
}

/// R4: the epoch is on all replicas before the coordinator is asked (checked by the world), and nothing
/// is acknowledged before it has recorded it.
#[test]
fn a_lost_open_replica_holds_acknowledgements_until_the_epoch_is_recorded() {
    let mut world = World::new(5, 3);
    world.ask(put("a", "x"));
    world.records_epochs = false;
    let lost = world.head_backups()[1];
    world.declare_dead(lost);
    let token = world.send(put("a", "y"));
    world.run(50);
    let asked = world.to_coordinator.iter().any(|message| {
        matches!(
            message,
            Message::RaiseEpoch {
                epoch: Epoch(2),
                ..
            }
        )
    });
    assert!(asked, "all replicas are made again and told");
    assert_eq!(world.head_backups().len(), 3);
    assert_eq!(world.answer(token), None);
    let read = world.send(get("b"));
    assert!(
        world.answer(read).is_some(),
        "the lost backup's lease still runs"
    );
    world.run(u64::from(LEASE_MS));
    let read = world.send(get("b"));
    assert_eq!(
        world.answer(read),
        None,
        "until the epoch is recorded it could be asked for the end"
    );
    // An answer about an older epoch changes nothing.
    let log = world.log;
    world.hear(
        ServerId::COORDINATOR,
        Message::EpochRecorded {
            log,
            epoch: Epoch(1),
        },
    );
    assert_eq!(world.answer(token), None);
    world.records_epochs = true;
    world.run(300);
    assert!(matches!(world.answer(token), Some(Outcome::Done { .. })));
    assert!(world.answer(read).is_some());
    assert!(world.shard.ready());
}

/// Several heads are opened while nothing arrives, and then their backups are heard from one by one. A head
/// that were found alone, naming one that is nowhere, would hold recovery for ever.
#[test]
fn no_opening_arrives_before_that_of_the_head_it_follows() {
    let mut world = World::new(8, 2);
    let backups: Vec<ServerId> = world.backups.keys().copied().collect();
    world.mute = backups.iter().copied().collect();
    for i in 0..120 {
        world.send(put(&format!("fill{i}"), &"v".repeat(2_000)));
    }
    let segments = world.metric("holdfast_shard_segments");
    assert!(segments >= 3.0, "{segments} heads wait");
    for backup in backups {
        world.mute.remove(&backup);
        world.run(1_500);
        // Nothing has been cleaned, so heads have all numbers from 1.
        let heads: Vec<u64> = world.heads(world.log).keys().map(|id| id.0).collect();
        let all: Vec<u64> = (1..=heads.len() as u64).collect();
        assert_eq!(heads, all, "a head is missing before another");
    }
    assert_eq!(world.metric("holdfast_shard_unreplicated_bytes"), 0.0);
    world.shard.verify();
}

#[test]
fn a_second_loss_while_an_epoch_is_raised_raises_it_again() {
    let mut world = World::new(6, 3);
    world.ask(put("a", "x"));
    world.records_epochs = false;
    let lost = world.head_backups()[0];
    world.declare_dead(lost);
    world.run(50);
    let lost = world.head_backups()[0];
    world.declare_dead(lost);
    world.run(50);
    let log = world.log;
    world.hear(
        ServerId::COORDINATOR,
        Message::EpochRecorded {
            log,
            epoch: Epoch(2),
        },
    );
    let token = world.send(put("a", "y"));
    world.run(50);
    assert_eq!(
        world.answer(token),
        None,
        "what was recorded is not the newest"
    );
    world.records_epochs = true;
    world.run(300);
    assert_eq!(world.recorded_epoch, Epoch(3));
    assert!(matches!(world.answer(token), Some(Outcome::Done { .. })));
}

#[test]
fn a_lost_closed_replica_is_made_again_without_raising_the_epoch() {
    let mut world = World::new(6, 3);
    let mut writes = 0;
    // Until some backup holds closed replicas only.
    let idle = loop {
        fill(&mut world, 20);
        writes += 20;
        assert!(writes < 2_000);
        let heads = world.head_backups();
        let closed_only = world.backups.iter().find(|(id, backup)| {
            !heads.contains(id)
                && !backup.replicas.is_empty()
                && backup.replicas.values().all(|stored| stored.closed)
        });
        if let Some((id, _)) = closed_only {
            break *id;
        }
    };
    let held: Vec<_> = world.backups[&idle].replicas.keys().copied().collect();
    world.declare_dead(idle);
    world.run(200);
    for (_, segment) in held {
        let copies = world.copies(segment);
        assert!(
            copies.len() >= 3 && copies.iter().all(|stored| stored.closed),
            "{segment}"
        );
        assert!(copies.windows(2).all(|pair| pair[0].bytes == pair[1].bytes));
    }
    assert_eq!(world.metric("holdfast_shard_epochs_raised_total"), 0.0);
    assert!(world.shard.ready());
}

/// R3: nothing durable is taken back while the head's replica is copied again in pieces.
/// Seed 1855 of the simulation: copies were under way when others, of older segments, became due before them. Nobody
/// sent the first ones again, and the shard asked to be woken for them at once, for ever.
#[test]
fn copies_under_way_are_finished_whatever_comes_before_them() {
    let mut world = World::new(6, 2);
    for i in 0..700 {
        world.ask(put(&format!("k{i}"), &format!("{i:3000}")));
    }
    world.run(1_000);
    world.stalls_copies = true;
    for backup in 100..103 {
        world.declare_dead(ServerId(backup));
        for _ in 0..100 {
            world.run(5);
            let comes_to_rest = (0..100).any(|_| {
                world.run(0);
                world
                    .shard
                    .wakeup()
                    .is_none_or(|at_us| at_us > world.now_us)
            });
            assert!(comes_to_rest, "it asks to be woken at once, for ever");
        }
    }
    world.stalls_copies = false;
    world.run(5_000);
    assert_eq!(
        world.metric("holdfast_shard_under_replicated_segments"),
        0.0
    );
}

#[test]
fn every_backup_can_be_replaced_under_load() {
    let mut world = World::new(4, 3);
    for next in 0..8u64 {
        fill(&mut world, 37);
        let lost = world.head_backups()[(next % 3) as usize];
        world.view.members.push(member(200 + next, Role::Backup));
        world
            .backups
            .insert(ServerId(200 + next), FakeBackup::default());
        world.declare_dead(lost);
        assert!(matches!(
            world.ask(put("now", &next.to_string())),
            Outcome::Done { .. }
        ));
    }
    world.run(500);
    assert!(world.shard.ready());
    assert_eq!(world.value("now").as_deref(), Some("7"));
    assert_eq!(world.metric("holdfast_shard_unreplicated_bytes"), 0.0);
    world.shard.verify();
}

#[test]
fn a_replica_that_the_backup_has_dropped_is_copied_again() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    let backup = world.head_backups()[2];
    world.backups.get_mut(&backup).unwrap().replicas.clear();
    assert!(matches!(world.ask(put("a", "y")), Outcome::Done { .. }));
    let heads = world.heads(world.log);
    let (head, _) = heads.iter().next_back().unwrap();
    let copies = world.copies(*head);
    assert_eq!(copies.len(), 3);
    assert!(copies.iter().all(|stored| stored.bytes == copies[0].bytes));
    assert!(world.recorded_epoch > Epoch(1));
}

#[test]
fn a_replica_found_rotten_while_nothing_is_under_way_is_made_again() {
    for why in [Refusal::Reopen { length: 0 }, Refusal::Broken] {
        let mut world = World::new(4, 3);
        fill(&mut world, 60);
        world.run(500);
        let log = world.log;
        // Closed and whole everywhere, so that no append is under way to be refused.
        let (&(_, segment), _) = (world.backups.values())
            .flat_map(|backup| &backup.replicas)
            .find(|(_, stored)| stored.closed)
            .expect("several heads were filled");
        let holder = *(world.backups.iter())
            .find(|(_, backup)| backup.replicas.contains_key(&(log, segment)))
            .expect("listed from there")
            .0;
        let backup = world.backups.get_mut(&holder).expect("it exists");
        backup.replicas.remove(&(log, segment));
        assert_eq!(world.copies(segment).len(), 2);
        world.hear(
            holder,
            Message::AppendRefused(AppendRefused { log, segment, why }),
        );
        world.run(1_000);
        assert_eq!(world.copies(segment).len(), 3, "{why:?}");
        world.shard.verify();
    }
}

#[test]
fn a_replica_of_a_segment_long_gone_is_freed_where_it_turns_up() {
    let mut world = World::new(4, 3);
    fill(&mut world, 20);
    let (log, segment) = (world.log, SegmentId(1_000_000));
    let why = Refusal::Reopen { length: 5 };
    world.hear(
        ServerId(101),
        Message::AppendRefused(AppendRefused { log, segment, why }),
    );
    world.run(100);
    assert!(world.freed.contains(&segment));
}

#[test]
fn full_and_broken_backups_are_passed_over() {
    for why in [Refusal::Full, Refusal::Broken] {
        let mut world = World::new(4, 3);
        world.ask(put("a", "x"));
        let backup = world.head_backups()[0];
        world.backups.get_mut(&backup).unwrap().refuse = Some(why);
        assert!(
            matches!(world.ask(put("a", "y")), Outcome::Done { .. }),
            "{why:?}"
        );
        fill(&mut world, 100);
        assert!(!world.head_backups().contains(&backup) || why == Refusal::Broken);
        assert!(world.shard.ready());
    }
}

/// A backup that refuses us as fenced means that we may be dead: no lease, no acknowledgement, and
/// no other backup in its place.
#[test]
fn a_fenced_shard_answers_nothing() {
    let mut world = World::new(5, 3);
    world.ask(put("a", "x"));
    let heads = world.head_backups();
    let fenced = world.backups.get_mut(&heads[0]).unwrap();
    fenced.refuse = Some(Refusal::Fenced { epoch: Epoch(9) });
    let write = world.send(put("a", "y"));
    let read = world.send(get("b"));
    world.run(1_000);
    assert_eq!(world.answer(write), None);
    assert_eq!(world.answer(read), None, "one refusal ends the lease");
    assert_eq!(world.head_backups(), heads);
}

/// Appends and their answers may be lost or doubled; the stream's end makes them come again at once.
#[test]
fn lost_appends_are_sent_again() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let token = world.send(put("a", "y"));
    world.mute.clear();
    world.give(Input::PeerLost {
        peer: silent,
        ended: false,
    });
    world.run(25);
    assert!(matches!(world.answer(token), Some(Outcome::Done { .. })));
    let suspected = world
        .to_coordinator
        .iter()
        .any(|message| matches!(message, Message::Suspect { server, .. } if *server == silent));
    assert!(suspected, "a broken stream is reported");
}

/// An acknowledgement that is old, doubled, or not about what was sent moves nothing.
#[test]
fn foreign_acknowledgements_are_ignored() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    let silent = world.head_backups()[0];
    let (segment, _) = world.heads(world.log).into_iter().next_back().unwrap();
    world.mute.insert(silent);
    let token = world.send(put("a", "y"));
    for (epoch, sent_us, length) in [
        (1, 0, u32::MAX),
        (1, u64::MAX, u32::MAX),
        (7, world.now_us, u32::MAX),
        (1, world.now_us, 1),
    ] {
        let ack = Appended {
            log: world.log,
            epoch: Epoch(epoch),
            segment,
            length,
            closed: false,
            sent_us,
            lease_ms: u32::MAX,
        };
        world.hear(silent, Message::Appended(ack));
    }
    assert_eq!(world.answer(token), None);
}

/// Only backups that can be asked for the end of the log grant leases.
#[test]
fn leases_are_asked_of_open_heads_alone() {
    let mut world = World::new(3, 3);
    fill(&mut world, 10);
    for id in world.head_backups() {
        assert_eq!(world.backups[&id].lease_asked_ms, LEASE_MS);
    }
}
