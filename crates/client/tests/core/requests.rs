//! Requests go where the owners are, once and in order, whatever becomes of streams and owners.

use holdfast_client::OrderKey;
use holdfast_format::{ClientId, ClusterMs, ServerId};
use holdfast_wire::{Condition, Failure, Once, Outcome};

use crate::world::*;

#[test]
fn commands_go_to_the_owner_of_their_slot() {
    let mut world = World::new();
    let (a, b) = keys();
    let tokens = [put(a, "1"), put(b, "2"), get(a), get(b)].map(|c| world.submit(c, LINE, None));
    world.flush();
    let mut to: Vec<ServerId> = world.requests.iter().map(|(to, _)| *to).collect();
    to.sort();
    assert_eq!(to, [A, B], "one message each");
    world.run(10);
    check_value(world.outcome(tokens[2]), "1");
    check_value(world.outcome(tokens[3]), "2");
    assert_eq!(world.core.wakeup(), None, "nothing is left to wait for");
}

/// The answer is lost with its connection; the write is repeated under its own identity.
#[test]
fn a_write_repeated_after_peer_lost_is_executed_once() {
    let mut world = World::new();
    let (a, _) = keys();
    let first = world.submit(put_if(a, "1", Condition::Absent), LINE, None);
    let second = world.submit(put(a, "2"), LINE, None);
    world.flush();
    world.deliver_request();
    world.responses.clear();
    world.core.peer_lost(world.now, A);
    world.run(500);
    assert!(
        matches!(world.outcome(first), Outcome::Done { .. }),
        "NX was granted, once"
    );
    assert!(matches!(world.outcome(second), Outcome::Done { .. }));
    assert_eq!(world.executed(a).len(), 2);
    let read = world.submit(get(a), LINE, None);
    world.run(10);
    check_value(world.outcome(read), "2");
}

#[test]
fn silence_repeats_everything_unanswered_in_a_higher_stream() {
    let mut world = World::new();
    let (a, _) = keys();
    let tokens: Vec<u64> = (0..5)
        .map(|n| world.submit(put(a, &n.to_string()), LINE, None))
        .collect();
    world.flush();
    let (_, first) = world.requests.pop_front().expect("sent");
    world.run(200);
    assert!(
        world.outcomes.is_empty(),
        "nobody was asked again before the silence was over"
    );
    world.run(200);
    for token in tokens {
        assert!(matches!(world.outcome(token), Outcome::Done { .. }));
    }
    // The overtaken first message comes after all, and is ignored.
    world.requests.push_back((A, first));
    world.run(10);
    assert_eq!(world.executed(a).len(), 5);
}

#[test]
fn identity_is_fixed_across_retries_and_acknowledges_only_what_is_answered() {
    let mut world = World::new();
    let (a, b) = keys();
    let onces = |world: &World| -> Vec<Once> {
        world
            .requests
            .iter()
            .flat_map(|(_, r)| &r.items)
            .filter_map(|r| r.once)
            .collect()
    };
    world.submit(put(a, "1"), LINE, None);
    world.flush();
    let first = onces(&world)[0];
    assert_eq!((first.sequence, first.acknowledged), (1, 1));
    assert_eq!(first.lease_until, world.store.now.plus_ms(60_000));
    world.requests.clear();
    world.submit(put(b, "2"), LINE, None);
    world.flush();
    assert_eq!(onces(&world)[0].acknowledged, 1, "the first is still open");
    world.deliver_request();
    world.deliver_response();
    world.advance_to(world.now.mono_us + 400_000);
    world.flush();
    let again = onces(&world)[0];
    assert_eq!(again, first, "C2: the identity does not change");
    world.run(10);
    world.submit(put(b, "3"), LINE, None);
    world.flush();
    assert_eq!(onces(&world)[0].acknowledged, 3);
}

/// A gRPC caller's own identity travels on the gateway's stream.
#[test]
fn a_foreign_identity_is_passed_unchanged() {
    let mut world = World::new();
    let (a, _) = keys();
    let once = Once {
        client: ClientId(0xf0),
        sequence: 17,
        acknowledged: 12,
        lease_until: ClusterMs(9_000_000),
    };
    let first = world.submit(put_if(a, "1", Condition::Absent), None, Some(once));
    world.flush();
    let (_, requests) = &world.requests[0];
    assert_eq!(requests.client, ClientId(0xc1));
    assert_eq!(requests.items[0].once, Some(once));
    world.run(10);
    let second = world.submit(put_if(a, "1", Condition::Absent), None, Some(once));
    world.run(10);
    assert_eq!(world.outcome(first), world.outcome(second));
    assert_eq!(world.executed(a).len(), 1);
}

#[test]
fn a_write_waits_for_the_reads_of_its_connection_and_slot() {
    let mut world = World::new();
    let (a, _) = keys();
    world.submit(put(a, "old"), LINE, None);
    world.run(10);
    let read = world.submit(get(a), LINE, None);
    let write = world.submit(put(a, "new"), LINE, None);
    let other = world.submit(put(a, "other"), Some(OrderKey(2)), None);
    world.flush();
    assert_eq!(
        world.requests[0].1.items.len(),
        2,
        "only its own connection's write is held"
    );
    // The read's answer is lost: repeated, it must not see the write that follows it.
    world.requests.clear();
    world.shards.get_mut(&A).expect("up").refuse = Some(Failure::NotReady);
    world.run(300);
    world.shards.get_mut(&A).expect("up").refuse = None;
    world.run(500);
    assert!(matches!(world.outcome(write), Outcome::Done { .. }));
    assert!(matches!(world.outcome(other), Outcome::Done { .. }));
    let Outcome::Value { value, .. } = world.outcome(read) else {
        panic!("read failed")
    };
    assert_ne!(value, "new");
}

#[test]
fn refusals_are_retried_until_the_owner_is_ready() {
    for why in [Failure::NotReady, Failure::NotOwner, Failure::Busy] {
        let mut world = World::new();
        let (a, b) = keys();
        world.shards.get_mut(&A).expect("up").refuse = Some(why.clone());
        let tokens =
            [put(a, "1"), put(a, "2"), put(b, "3"), get(a)].map(|c| world.submit(c, LINE, None));
        world.run(600);
        assert_eq!(
            world.outcomes.len(),
            1,
            "{why}: the other shard is not disturbed"
        );
        let asked = world.core.figures().repeated + world.core.figures().restarts;
        assert!(asked < 400, "{why}: retries are paced, {asked} in 600 ms");
        world.shards.get_mut(&A).expect("up").refuse = None;
        world.run(300);
        check_value(world.outcome(tokens[3]), "2");
        assert_eq!(world.executed(a).len(), 3);
    }
}

/// A shard that is not ready for one tablet serves its others meanwhile.
#[test]
fn a_refused_tablet_does_not_hold_up_the_others_of_its_shard() {
    let mut world = World::new();
    let (a, b) = keys();
    world.deal(&[(0, 8191, A, true), (8192, 16383, A, true)]);
    world.give(&[(8192, 16383, A, true)]);
    let refused = world.submit(put(a, "1"), LINE, None);
    let served = world.submit(put(b, "1"), LINE, None);
    world.run(1);
    assert!(matches!(world.outcome(served), Outcome::Done { .. }));
    world.run(100);
    assert!(!world.outcomes.contains_key(&refused));
    world.give(&[(0, 16383, A, true)]);
    world.run(100);
    assert!(matches!(world.outcome(refused), Outcome::Done { .. }));
}

#[test]
fn a_new_view_moves_what_is_unanswered_to_the_new_owner() {
    let mut world = World::new();
    let (a, _) = keys();
    let executed = world.submit(put_if(a, "1", Condition::Absent), LINE, None);
    world.flush();
    world.deliver_request();
    world.responses.clear();
    world.shards.remove(&A);
    world.publish(&[(0, 8191, A, false), (8192, 16383, B, true)]);
    let parked = world.submit(put(a, "2"), LINE, None);
    world.run(1_000);
    assert!(world.outcomes.is_empty());
    world.deal(&[(0, 8191, B, true), (8192, 16383, B, true)]);
    world.run(10);
    assert!(
        matches!(world.outcome(executed), Outcome::Done { .. }),
        "NX was granted, once"
    );
    assert!(matches!(world.outcome(parked), Outcome::Done { .. }));
    assert_eq!(world.executed(a).len(), 2);
}

/// C3: who was never executed hears so; who may have been hears that.
#[test]
fn what_is_given_up_says_whether_it_may_have_been_executed() {
    let mut world = World::new();
    let (a, b) = keys();
    world.shards.remove(&A);
    world.publish(&[(0, 8191, A, false), (8192, 16383, B, true)]);
    let parked = world.submit(put(a, "1"), LINE, None);
    let parked_read = world.submit(get(a), LINE, None);
    world.shards.get_mut(&B).expect("up").refuse = Some(Failure::NotReady);
    let refused = world.submit(put(b, "1"), LINE, None);
    let behind = world.submit(put(b, "2"), LINE, None);
    world.run(2_100);
    let failed = |failure| Outcome::Failed(failure);
    assert_eq!(*world.outcome(parked), failed(Failure::Unreachable));
    assert_eq!(*world.outcome(parked_read), failed(Failure::Unreachable));
    assert_eq!(*world.outcome(refused), failed(Failure::Unreachable));
    assert_eq!(*world.outcome(behind), failed(Failure::Unreachable));
    world.shards.get_mut(&B).expect("up").refuse = Some(Failure::Busy);
    let busy = world.submit(put(b, "1"), LINE, None);
    world.run(2_100);
    assert_eq!(*world.outcome(busy), failed(Failure::Busy));
    // Sent into silence.
    world.shards.remove(&B);
    let sent = world.submit(put(b, "1"), LINE, None);
    let read = world.submit(get(b), LINE, None);
    world.run(2_100);
    assert_eq!(*world.outcome(sent), failed(Failure::OutcomeUnknown));
    assert_eq!(*world.outcome(read), failed(Failure::Unreachable));
    assert_eq!(world.core.figures().pending, 0);
}
