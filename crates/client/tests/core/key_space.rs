//! Commands that concern every shard.

use bytes::Bytes;
use holdfast_client::{Scope, Submit};
use holdfast_format::{ClientId, KeyHash};
use holdfast_wire::{Failure, Op, Outcome, Responses};

use crate::world::*;

/// Scans all of it, with owners changing as the test says.
fn scan_all(world: &mut World, limit: u32, mut between: impl FnMut(&mut World, u64)) -> Vec<Bytes> {
    let mut keys = Vec::new();
    let mut from = KeyHash(0);
    for round in 0.. {
        let token = world.submit(scan(from, limit), LINE, None);
        world.flush();
        between(world, round);
        world.run(100);
        let Outcome::Scanned { keys: found, next } = world.outcome(token).clone() else {
            panic!("{:?}", world.outcome(token));
        };
        keys.extend(found.into_iter().map(|(_, key)| key));
        match next {
            Some(next) => {
                assert!(next > from, "a scan must move on");
                assert_eq!(next.0 % holdfast_client::SCAN_STEP, 0);
                from = next;
            }
            None => return keys,
        }
    }
    unreachable!("the loop ends by returning")
}

#[test]
fn a_scan_is_complete_while_owners_change() {
    let mut world = World::new();
    let mut expected = Vec::new();
    for n in 0..300 {
        let key = format!("sess:{n}");
        world.submit(put(&key, "v"), None, None);
        world.run(1);
        expected.push(Bytes::from(key));
    }
    expected.sort();
    let owners = [(A, B), (B, B), (B, A), (A, A)];
    let mut keys = scan_all(&mut world, 10, |world, round| {
        let (low, high) = owners[round as usize % 4];
        // With one part of the answer already there.
        world.deliver_request();
        world.deliver_response();
        world.deal(&[(0, 8191, low, true), (8192, 16383, high, true)]);
    });
    keys.sort();
    keys.dedup();
    assert_eq!(keys, expected);
}

#[test]
fn counting_and_flushing_concern_every_shard() {
    let mut world = World::new();
    for n in 0..50 {
        world.submit(put(&format!("k{n}"), "v"), LINE, None);
    }
    let count = world.submit(command("", Op::Count), LINE, None);
    let flush = world.submit(command("", Op::Flush), LINE, None);
    let after = world.submit(put("k1", "again"), LINE, None);
    let last = world.submit(command("", Op::Count), LINE, None);
    world.run(100);
    let counted = |sessions| Outcome::Counted {
        sessions,
        with_deadline: 0,
    };
    assert_eq!(*world.outcome(count), counted(50));
    assert_eq!(*world.outcome(flush), Outcome::Flushed);
    assert!(matches!(world.outcome(after), Outcome::Done { .. }));
    assert_eq!(
        *world.outcome(last),
        counted(1),
        "O3: order holds around key-space commands"
    );
}

/// Seed 45 of the simulation: an answered part was still counted among what is pending.
#[test]
fn a_half_answered_key_space_command_is_one_pending_command() {
    let mut world = World::new();
    let count = world.submit(command("", Op::Count), LINE, None);
    world.flush();
    while world.deliver_request() {}
    assert!(world.deliver_response());
    assert_eq!(world.core.figures().pending, 1);
    assert!(world.deliver_response());
    world.flush();
    assert_eq!(world.core.figures().pending, 0);
    assert!(matches!(world.outcome(count), Outcome::Counted { .. }));
}

#[test]
fn a_key_space_command_of_one_shard_asks_only_it() {
    let mut world = World::new();
    let (a, b) = keys();
    world.submit(put(a, "1"), LINE, None);
    world.submit(put(b, "1"), LINE, None);
    let how = Submit {
        token: 99,
        once: None,
        order: LINE,
        within_ms: 2_000,
        scope: Scope::Shard(B),
    };
    world.core.submit(world.now, scan(KeyHash(0), 100), how);
    world.run(10);
    let Outcome::Scanned { keys, next } = world.outcome(99) else {
        panic!("no scan")
    };
    assert_eq!((keys.len(), next), (1, &None));
    assert_eq!(keys[0].1, b);

    // One that owns nothing has nothing to tell, at once.
    world.deal(&[(0, 8191, A, true), (8192, 16383, A, true)]);
    let how = Submit { token: 100, ..how };
    world.core.submit(world.now, command("", Op::Count), how);
    world.flush();
    let nothing = Outcome::Counted {
        sessions: 0,
        with_deadline: 0,
    };
    assert_eq!(*world.outcome(100), nothing);
}

#[test]
fn key_space_commands_wait_for_a_whole_view_and_give_up_in_time() {
    let mut world = World::new();
    world.publish(&[(0, 8191, A, false), (8192, 16383, B, true)]);
    let count = world.submit(command("", Op::Count), None, None);
    let flush = world.submit(command("", Op::Flush), None, None);
    world.run(1_000);
    assert!(world.outcomes.is_empty());
    world.run(1_100);
    assert_eq!(*world.outcome(count), Outcome::Failed(Failure::Unreachable));
    assert_eq!(*world.outcome(flush), Outcome::Failed(Failure::Unreachable));
    world.deal(&[(0, 8191, B, true), (8192, 16383, B, true)]);
    let count = world.submit(command("", Op::Count), None, None);
    world.shards.get_mut(&B).expect("up").refuse = Some(Failure::NotReady);
    world.run(300);
    world.shards.get_mut(&B).expect("up").refuse = None;
    world.run(200);
    assert_eq!(
        *world.outcome(count),
        Outcome::Counted {
            sessions: 0,
            with_deadline: 0
        }
    );
}

/// Answers from elsewhere, to nobody, for other streams, of the wrong kind: nothing happens.
#[test]
fn answers_that_make_no_sense_are_ignored() {
    let mut world = World::new();
    let (a, _) = keys();
    let token = world.submit(put(a, "1"), LINE, None);
    for client in [0xc1, 0xff] {
        for stream in 0..3 {
            for outcome in [Outcome::Flushed, Outcome::Failed(Failure::NotOwner)] {
                let items = (0..4).map(|token| holdfast_wire::Response {
                    token,
                    outcome: outcome.clone(),
                });
                let responses = Responses {
                    client: ClientId(client),
                    stream,
                    items: items.collect(),
                };
                world.core.handle(world.now, B, responses);
            }
        }
    }
    world.run(10);
    assert!(matches!(world.outcome(token), Outcome::Done { .. }));
}
