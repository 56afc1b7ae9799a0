//! Which failures are believed: only those of the latest attempt.

use holdfast_format::{Namespace, ServerId};
use holdfast_wire::{Failure, Op, Outcome, Quota};

use crate::world::*;

/// What a shard may have no room for now and room for later.
pub(crate) fn lacks_of_room() -> [Failure; 3] {
    let namespace = Namespace(0);
    [
        Failure::OutOfMemory,
        Failure::NamespaceFull {
            namespace,
            quota: Quota::Bytes,
            limit: 1_000,
        },
        Failure::NamespaceValueTooLarge {
            namespace,
            bytes: 1,
            limit: 0,
        },
    ]
}

/// Two answers are on their way: the failure of the first attempt, and what became of the repetition.
#[track_caller]
fn only_the_second_answer_counts(world: &mut World, write: u64, key: &str, why: &Failure) {
    world.deliver_response();
    world.flush();
    assert!(
        world.outcomes.is_empty(),
        "{why}: the repetition will answer"
    );
    world.deliver_response();
    world.flush();
    assert!(matches!(world.outcome(write), Outcome::Done { .. }));
    assert_eq!(world.executed(key).len(), 1);
}

/// Seed 476 of the simulation: the first attempt found no room, its answer was late, the repetition
/// was executed, and the late answer had the writer told that nothing was.
#[test]
fn a_failure_of_an_earlier_attempt_is_not_believed() {
    for why in lacks_of_room() {
        let mut world = World::new();
        let (a, _) = keys();
        world.shard(A).full = Some(why.clone());
        let write = world.submit(put(a, "1"), LINE, None);
        world.execute_all();
        world.pass_silence();
        world.shard(A).full = None;
        world.execute_all();
        let streams: Vec<u64> = world.responses.iter().map(|(_, r)| r.stream).collect();
        assert_eq!(streams.len(), 2, "one answer to each attempt");
        assert!(streams[0] < streams[1]);
        only_the_second_answer_counts(&mut world, write, a, &why);
    }
}

/// The same when the repetition's own answer is lost.
#[test]
fn a_late_failure_does_not_make_an_unknown_outcome_known() {
    let mut world = World::new();
    let (a, _) = keys();
    world.shard(A).full = Some(Failure::OutOfMemory);
    let write = world.submit(put(a, "1"), LINE, None);
    world.execute_all();
    world.pass_silence();
    world.shard(A).full = None;
    world.execute_all();
    world.responses.truncate(1);
    world.deliver_response();
    world.shards.remove(&A);
    world.run(2_500);
    assert_eq!(world.executed(a).len(), 1);
    assert_eq!(
        *world.outcome(write),
        Outcome::Failed(Failure::OutcomeUnknown)
    );
}

/// Nobody has it now and nobody will be asked: it has failed.
#[test]
fn a_failure_that_comes_before_the_repetition_is_sent_is_final() {
    let mut world = World::new();
    let (a, _) = keys();
    world.shard(A).full = Some(Failure::OutOfMemory);
    let write = world.submit(put(a, "1"), LINE, None);
    world.execute_all();
    world.core.peer_lost(world.now, A);
    world.shard(A).full = None;
    world.deliver_response();
    world.run(500);
    assert_eq!(*world.outcome(write), Outcome::Failed(Failure::OutOfMemory));
    assert!(world.executed(a).is_empty());
}

#[test]
fn a_failure_of_the_latest_attempt_is_final() {
    for why in lacks_of_room() {
        let mut world = World::new();
        let (a, _) = keys();
        world.shard(A).full = Some(why.clone());
        let write = world.submit(put(a, "1"), LINE, None);
        world.execute_all();
        world.responses.clear();
        world.pass_silence();
        world.execute_all();
        world.deliver_response();
        world.flush();
        assert_eq!(*world.outcome(write), Outcome::Failed(why));
        assert!(world.executed(a).is_empty());
        assert_eq!(world.core.figures().pending, 0);
    }
}

/// The reverse of seed 476: executed, its answer lost, and no room by the time of the repetition.
#[test]
fn a_repetition_is_answered_from_the_record_when_there_is_no_room_any_more() {
    for moved in [false, true] {
        let mut world = World::new();
        let (a, _) = keys();
        let write = world.submit(put(a, "1"), LINE, None);
        world.execute_all();
        world.responses.clear();
        for shard in world.shards.values_mut() {
            shard.full = Some(Failure::OutOfMemory);
        }
        if moved {
            world.deal(&[(0, 16383, B, true)]);
        }
        world.run(500);
        assert!(matches!(world.outcome(write), Outcome::Done { .. }));
        assert_eq!(world.executed(a).len(), 1);
    }
}

/// What the old owner had no room for is what the new one says it is, even if the two are the same.
#[test]
fn a_failure_of_an_earlier_owner_is_not_believed() {
    for back in [false, true] {
        let mut world = World::new();
        let (a, _) = keys();
        world.shard(A).full = Some(Failure::OutOfMemory);
        let write = world.submit(put(a, "1"), LINE, None);
        world.execute_all();
        world.shard(A).full = None;
        world.deal(&[(0, 16383, B, true)]);
        if back {
            world.deal(&[(0, 16383, A, true)]);
        }
        world.execute_all();
        only_the_second_answer_counts(&mut world, write, a, &Failure::OutOfMemory);
    }
}

/// C3 for a flush: one shard without room for its part says nothing about the others.
#[test]
fn a_flush_that_fails_in_part_is_not_said_to_have_failed() {
    let flush = |full: &[ServerId]| {
        let mut world = World::new();
        for &shard in full {
            world.shard(shard).full = Some(Failure::OutOfMemory);
        }
        let flush = world.submit(command("", Op::Flush), LINE, None);
        world.run(100);
        assert_eq!(world.core.figures().pending, 0);
        world.outcome(flush).clone()
    };
    let unknown = Outcome::Failed(Failure::OutcomeUnknown);
    assert_eq!(flush(&[A]), unknown);
    assert_eq!(flush(&[B]), unknown);
    assert_eq!(flush(&[A, B]), Outcome::Failed(Failure::OutOfMemory));
    assert_eq!(flush(&[]), Outcome::Flushed);
}

/// C4 and C5: a part that may have been executed before all was asked again is not forgotten.
#[test]
fn a_flush_asked_again_and_refused_may_have_happened() {
    let mut world = World::new();
    let flush = world.submit(command("", Op::Flush), LINE, None);
    world.execute_all();
    world.responses.clear();
    world.deal(&[(0, 16383, A, true)]);
    world.shard(A).full = Some(Failure::OutOfMemory);
    world.run(500);
    assert_eq!(
        *world.outcome(flush),
        Outcome::Failed(Failure::OutcomeUnknown)
    );
}
