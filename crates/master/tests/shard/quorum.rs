//! Q of R replicas acknowledge (R8), and what becomes of backups that are slow. R1, R2 and R4 are asserted by the world,
//! for any Q.

use holdfast_cluster::Node;
use holdfast_format::{Epoch, ServerId};
use holdfast_wire::*;

use crate::world::*;

fn done(outcome: Option<&Outcome>) -> bool {
    matches!(outcome, Some(Outcome::Done { .. }))
}

/// Three backups, two of which acknowledge: with one that hears nothing writers and readers go on, with two they do not.
#[test]
fn one_silent_backup_stops_nobody_and_two_do() {
    let mut world = World::with_quorum(3, 3, 2);
    let backups = world.head_backups();
    world.mute.insert(backups[0]);
    for i in 0..10 {
        let token = world.send(put("a", &format!("v{i}")));
        assert!(done(world.answer(token)));
        world.run(u64::from(LEASE_MS) / 2);
    }
    assert_eq!(world.value("a").as_deref(), Some("v9"));
    assert_eq!(world.metric("holdfast_shard_replicas_behind"), 1.0);
    assert_eq!(
        world.metric("holdfast_shard_under_replicated_segments"),
        0.0
    );

    world.mute.insert(backups[1]);
    let write = world.send(put("a", "alone"));
    world.run(20);
    assert_eq!(world.answer(write), None);
    let read = world.send(get("b"));
    assert!(world.answer(read).is_some(), "its lease runs");
    world.run(u64::from(LEASE_MS));
    let read = world.send(get("b"));
    assert_eq!(world.answer(read), None, "one backup is no quorum");

    // Nobody was there to take their place, so nobody was given up; all catch up.
    world.mute.clear();
    world.run(1_500);
    assert!(done(world.answer(write)) && world.answer(read).is_some());
    assert_eq!(world.metric("holdfast_shard_replicas_behind"), 0.0);
    assert_eq!(world.metric("holdfast_shard_epochs_raised_total"), 0.0);
    world.shard.verify();
}

/// Without a spare backup the end of a head is as far as one gets.
#[test]
fn the_next_head_is_opened_on_all() {
    let mut world = World::with_quorum(3, 3, 2);
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let tokens: Vec<u64> = (0..40)
        .map(|i| world.send(put(&format!("k{i}"), &"v".repeat(3_000))))
        .collect();
    world.run(3_000);
    let answered = tokens.iter().filter(|it| done(world.answer(**it))).count();
    assert!(
        (15..30).contains(&answered),
        "{answered} of 40 fit into a head"
    );
    world.mute.clear();
    world.run(1_500);
    let refused = |outcome: Option<&Outcome>| {
        matches!(
            outcome,
            Some(Outcome::Failed(Failure::Busy | Failure::NotReady))
        )
    };
    let left = tokens.iter().find(|it| {
        let outcome = world.answer(**it);
        !done(outcome) && !refused(outcome)
    });
    assert_eq!(left, None);
    assert_eq!(world.metric("holdfast_shard_unreplicated_bytes"), 0.0);
    assert_eq!(world.metric("holdfast_shard_replicas_behind"), 0.0);
    world.shard.verify();
}

/// With one more backup than replicas a silent one is replaced: soon where a new head waits for it, in time where nothing does.
#[test]
fn who_stays_behind_is_replaced_if_there_is_another() {
    let mut world = World::with_quorum(4, 3, 2);
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let token = world.send(put("a", "x"));
    assert!(done(world.answer(token)));
    world.run(800);
    assert!(world.head_backups().contains(&silent), "it has a second");
    world.run(700);
    assert_eq!(world.recorded_epoch, Epoch(2));
    assert_eq!(
        world.metric("holdfast_shard_stragglers_replaced_total"),
        1.0
    );
    assert_eq!(world.metric("holdfast_shard_replicas_behind"), 0.0);
    // Heads come and go meanwhile, and none waits for it.
    for i in 0..200 {
        let token = world.send(put(&format!("k{}", i % 20), &format!("{i:3000}")));
        world.run(5);
        assert!(done(world.answer(token)), "{i}");
    }
    world.mute.clear();
    world.run(6_000);
    assert!(world.shard.ready());
    world.shard.verify();
}

/// Where more are silent than writers can do without, it may be the shard that is cut off: nobody is given up.
#[test]
fn nobody_is_given_up_if_too_few_are_abreast() {
    let mut world = World::with_quorum(5, 3, 2);
    let silent = world.head_backups();
    world.mute.extend(&silent[..2]);
    let token = world.send(put("a", "x"));
    world.run(4_000);
    assert_eq!(world.answer(token), None);
    assert_eq!(
        world.metric("holdfast_shard_stragglers_replaced_total"),
        0.0
    );
    assert_eq!(world.head_backups(), silent);
    world.mute.clear();
    world.run(1_500);
    assert!(done(world.answer(token)));
}

/// Writes into one head after the other; gives the longest that one of them has waited, in milliseconds.
fn longest_wait_ms(world: &mut World, writes: usize) -> u64 {
    let mut longest = 0;
    for i in 0..writes {
        let began_us = world.now_us;
        let token = world.send(put(&format!("k{}", i % 20), &format!("{i:3000}")));
        while !done(world.answer(token)) {
            world.run(5);
            assert!(world.now_us < began_us + 5_000_000, "{i} is never answered");
        }
        longest = longest.max((world.now_us - began_us) / 1_000);
    }
    longest
}

/// An opening waits for a silent backup for a tenth of a second, and the next ones are made elsewhere.
#[test]
fn a_new_head_soon_does_without_a_silent_backup() {
    let mut world = World::with_quorum(4, 3, 2);
    let of_head = world.head_backups();
    let spare = *world
        .backups
        .keys()
        .find(|it| !of_head.contains(it))
        .unwrap();
    world.mute.insert(spare);
    let waits_ms = longest_wait_ms(&mut world, 200);
    assert!((100..200).contains(&waits_ms), "{waits_ms}");
    assert_eq!(
        world.metric("holdfast_shard_stragglers_replaced_total"),
        1.0
    );
}

/// Who has let an append wait is not chosen for the next head, if there is another: nobody waits for that one.
#[test]
fn a_new_head_avoids_a_backup_that_lets_an_append_wait() {
    // By chance alone three of four heads would have it.
    for id in 1..=8 {
        let mut world = World::with_quorum_and_id(id, 4, 3, 2);
        let silent = world.head_backups()[0];
        world.mute.insert(silent);
        world.send(put("a", "x"));
        world.run(30);
        let waits_ms = longest_wait_ms(&mut world, 40);
        assert!(waits_ms < 20, "{waits_ms} with {id}");
        assert!(world.heads(world.log).len() > 1, "there was a new head");
    }
}

/// What is unanswered counts as far as it has come: who says nothing looks slow, not quick.
#[test]
fn the_waits_told_of_a_silent_backup_grow() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    world.mute.insert(world.head_backups()[0]);
    world.send(put("a", "y"));
    world.run(3_500);
    let slowest_us = world.metric("holdfast_shard_append_wait_slowest_us");
    assert!(slowest_us > 1_000_000.0, "{slowest_us}");
}

/// Where all acknowledge nobody is given up for being late: as it always was.
#[test]
fn where_all_acknowledge_a_silent_backup_is_waited_for() {
    let mut world = World::new(4, 3);
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let token = world.send(put("a", "x"));
    world.run(5_000);
    assert_eq!(world.answer(token), None);
    assert_eq!(world.metric("holdfast_shard_epochs_raised_total"), 0.0);
    world.mute.clear();
    world.run(1_500);
    assert!(done(world.answer(token)));
}

/// A lost backup's replica is made again on all R, and what only two of them had is still on two.
#[test]
fn an_epoch_is_raised_with_a_straggler_about() {
    let mut world = World::with_quorum(5, 3, 2);
    let backups = world.head_backups();
    world.mute.insert(backups[0]);
    let token = world.send(put("a", "x"));
    assert!(done(world.answer(token)));
    // Of the two that have it one is lost.
    world.declare_dead(backups[1]);
    world.run(2_000);
    assert!(world.recorded_epoch >= Epoch(2));
    assert_eq!(world.value("a").as_deref(), Some("x"));
    let token = world.send(put("a", "y"));
    assert!(done(world.answer(token)));
    assert_eq!(
        world
            .head_backups()
            .iter()
            .filter(|it| !world.mute.contains(it))
            .count(),
        3
    );
    world.shard.verify();
}

/// Whoever the coordinator calls slow gets no new replicas, and leaves the head; with nobody to take its place it stays.
#[test]
fn a_slow_backup_leaves_the_heads() {
    let mut world = World::new(4, 3);
    world.ask(put("a", "x"));
    let slow = world.head_backups()[0];
    world.view.slow = vec![slow];
    world.publish();
    world.run(300);
    assert!(world.shard.ready());
    assert_eq!(
        world.metric("holdfast_shard_stragglers_replaced_total"),
        1.0
    );
    let opened_before: Vec<_> = world.heads(world.log).keys().copied().collect();
    for i in 0..300 {
        world.ask(put(&format!("k{}", i % 20), &format!("{i:3000}")));
    }
    let holds = |world: &World, backup: ServerId| -> Vec<_> {
        let log = world.log;
        let held = world.backups[&backup].replicas.keys();
        held.filter(|(of, _)| *of == log)
            .map(|(_, id)| *id)
            .collect()
    };
    assert!(
        holds(&world, slow)
            .iter()
            .all(|id| opened_before.contains(id))
    );
    // A second slow one cannot be avoided.
    let second = world.head_backups()[0];
    world.view.slow = vec![slow, second];
    world.publish();
    world.run(300);
    assert!(world.head_backups().contains(&second) && world.shard.ready());
    assert_eq!(
        world.metric("holdfast_shard_stragglers_replaced_total"),
        1.0
    );
    // Well again, it is used again.
    world.view.slow = Vec::new();
    world.publish();
    for i in 0..300 {
        world.ask(put(&format!("k{}", i % 20), &format!("{i:3000}")));
    }
    assert!(
        holds(&world, slow)
            .iter()
            .any(|id| !opened_before.contains(id))
    );
    world.shard.verify();
}
