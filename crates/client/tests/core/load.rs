//! Shards that refuse for load, queues that wait, and the bounds on what is pending.

use holdfast_wire::{Failure, Outcome};

use crate::world::*;

/// Asking again and again would keep busy a shard that has enough to do.
#[test]
fn a_shard_that_refuses_for_load_is_asked_again_only_within_the_budget() {
    let mut world = World::new();
    let (_, b) = keys();
    world.shards.get_mut(&B).expect("up").refuse = Some(Failure::Busy);
    let mut rounds = 0;
    while world.core.figures().not_repeated == 0 {
        for n in 0..8 {
            world.submit(put(b, &n.to_string()), None, None);
        }
        world.run(100);
        rounds += 1;
        assert!(rounds < 3_000, "repeated without end");
    }
    let figures = world.core.figures();
    assert!(figures.repeated >= 4_096, "{}", figures.repeated);
    let refused = world.submit(put(b, "last"), None, None);
    world.run(2_100);
    assert_eq!(*world.outcome(refused), Outcome::Failed(Failure::Busy));
    assert!(world.executed(b).is_empty());
    world.shards.get_mut(&B).expect("up").refuse = None;
    let served = world.submit(put(b, "after"), None, None);
    world.run(500);
    assert!(matches!(world.outcome(served), Outcome::Done { .. }));
}

/// What stands in front of a busy shard is seen; what waits for one that may be dead is not called load.
#[test]
fn a_queue_counts_as_waiting_only_while_its_shard_answers() {
    let mut world = World::new();
    let (a, _) = keys();
    for n in 0..20 {
        world.submit(put(a, &n.to_string()), None, None);
    }
    world.flush();
    assert_eq!(world.core.queue_wait_us(world.now), 0, "it never answered");
    world.deliver_request();
    world.deliver_response();
    world.flush();
    world.advance_to(world.now.mono_us + 30_000);
    assert!(world.core.queue_wait_us(world.now) >= 30_000);
    assert!(world.core.queue_wait_of_us(world.now, a.as_bytes()) >= 30_000);
    let (_, b) = keys();
    assert_eq!(world.core.queue_wait_of_us(world.now, b.as_bytes()), 0);
    world.advance_to(world.now.mono_us + 100_000);
    assert_eq!(
        world.core.queue_wait_us(world.now),
        0,
        "silent for too long"
    );
}

/// A burst is longer than its first command has waited; so whose turn comes too late is refused then, and not sent.
#[test]
fn what_has_waited_too_long_for_a_busy_shard_is_not_sent() {
    let mut world = World::new();
    let (a, _) = keys();
    let tokens: Vec<u64> = (0..20)
        .map(|n| world.submit(put(a, &n.to_string()), None, None))
        .collect();
    // Two windows of eight leave four.
    world.flush();
    assert!(world.deliver_request() && world.deliver_response());
    world.flush();
    world.advance_to(world.now.mono_us + 30_000);
    world.flush();
    assert_eq!(world.core.take_refused_late(), 0, "nobody said so");
    world.core.set_queue_max(10_000);
    world.flush();
    assert_eq!(world.core.take_refused_late(), 4);
    world.run(500);
    let (served, late) = tokens.split_at(16);
    for token in served {
        assert!(matches!(world.outcome(*token), Outcome::Done { .. }));
    }
    for token in late {
        assert_eq!(*world.outcome(*token), Outcome::Failed(Failure::Busy));
    }
    assert_eq!(world.executed(a).len(), 16);
}

/// What may have been executed is asked about again, however late: its writer is not told that nothing happened.
#[test]
fn what_was_sent_before_is_not_refused_as_late() {
    let mut world = World::new();
    let (a, _) = keys();
    world.submit(get(a), None, None);
    world.run(1);
    // The shard is alive, then, when the answer to a write is lost.
    let write = world.submit(put(a, "1"), None, None);
    world.execute_all();
    world.responses.clear();
    world.core.peer_lost(world.now, A);
    world.core.set_queue_max(10_000);
    world.advance_to(world.now.mono_us + 30_000);
    world.flush();
    assert!(!world.outcomes.contains_key(&write));
    world.run(500);
    assert!(matches!(world.outcome(write), Outcome::Done { .. }));
    let writes = world.executed(a).into_iter().filter(|op| op.is_write());
    assert_eq!(writes.count(), 1);
    assert_eq!(world.core.take_refused_late(), 0);
}

/// A message is no longer than a shard executes in one step: in bytes, but for a single command that is longer.
#[test]
fn messages_are_bounded_in_bytes() {
    let mut world = World::new();
    let (a, _) = keys();
    for value_bytes in [1_500, 1_500, 1_500, 9_000, 1_500] {
        world.submit(put(a, &"x".repeat(value_bytes)), LINE, None);
    }
    world.flush();
    let counts: Vec<usize> = world.requests.iter().map(|(_, r)| r.items.len()).collect();
    assert_eq!(counts, [2, 1, 1, 1], "batch_bytes_max is 4 KiB");
}

#[test]
fn the_bounds_on_pending_work_are_kept() {
    let mut world = World::new();
    let (a, _) = keys();
    let tokens: Vec<u64> = (0..70)
        .map(|n| world.submit(put(a, &n.to_string()), LINE, None))
        .collect();
    world.flush();
    assert_eq!(world.outcomes.len(), 6, "pending_max is 64");
    assert!(
        world
            .outcomes
            .values()
            .all(|o| *o == Outcome::Failed(Failure::Busy))
    );
    let sent: usize = world.requests.iter().map(|(_, r)| r.items.len()).sum();
    assert_eq!(sent, 8, "window_max is 8");
    world.run(100);
    assert!(
        tokens
            .iter()
            .all(|token| world.outcomes.contains_key(token))
    );
    let large = world.submit(put(a, &"x".repeat(2 << 20)), LINE, None);
    world.flush();
    assert_eq!(
        *world.outcome(large),
        Outcome::Failed(Failure::Busy),
        "pending_bytes_max is 1 MiB"
    );
    assert_eq!(world.core.figures().pending_bytes, 0);
}
