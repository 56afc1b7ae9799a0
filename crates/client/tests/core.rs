//! The client core against simple shards, over a network that loses what the test says.

#[path = "support/shard.rs"]
mod shard;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_client::{Config, Core, OrderKey, Scope, Submit};
use holdfast_cluster::{Dice, Now, Output, Outputs};
use holdfast_format::{
    ClientId, ClusterMs, Epoch, KeyHash, LogId, Namespace, ServerId, Slot, SlotRange,
};
use holdfast_wire::{
    Command, Condition, ExpiryChange, Failure, Member, Message, Once, Op, Outcome, Quota, Requests,
    Responses, Role, Tablet, View,
};
use proptest::prelude::*;
use shard::{Shard, Store};

const A: ServerId = ServerId(0xa);
const B: ServerId = ServerId(0xb);
const LINE: Option<OrderKey> = Some(OrderKey(1));

struct World {
    core: Core,
    now: Now,
    store: Store,
    shards: BTreeMap<ServerId, Shard>,
    view: View,
    /// On their way to shards.
    requests: VecDeque<(ServerId, Requests)>,
    responses: VecDeque<(ServerId, Responses)>,
    outcomes: BTreeMap<u64, Outcome>,
    next_token: u64,
}

impl World {
    /// Two shards with half the slots each.
    fn new() -> World {
        let mut world = World {
            core: Core::new(ClientId(0xc1), Config::for_testing(), 7),
            now: Now {
                mono_us: 1_000_000,
                unix_ms: 0,
            },
            store: Store::new(ClusterMs(1_000_000)),
            shards: BTreeMap::from([(A, Shard::new()), (B, Shard::new())]),
            view: View::default(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            outcomes: BTreeMap::new(),
            next_token: 1,
        };
        world.deal(&[(0, 8191, A, true), (8192, 16383, B, true)]);
        world
    }

    /// Gives the slots out and tells everybody.
    fn deal(&mut self, tablets: &[(u16, u16, ServerId, bool)]) {
        self.give(tablets);
        self.publish(tablets);
    }

    fn give(&mut self, tablets: &[(u16, u16, ServerId, bool)]) {
        for shard in self.shards.values_mut() {
            shard.owned.fill(false);
        }
        for &(first, last, owner, _) in tablets {
            if let Some(shard) = self.shards.get_mut(&owner) {
                shard.owned[first as usize..=last as usize].fill(true);
            }
        }
    }

    fn publish(&mut self, tablets: &[(u16, u16, ServerId, bool)]) {
        self.view = View {
            version: self.view.version + 1,
            members: self.shards.keys().map(|&id| member(id)).collect(),
            tablets: tablets
                .iter()
                .map(|&(first, last, owner, available)| Tablet {
                    range: SlotRange {
                        first: Slot(first),
                        last: Slot(last),
                    },
                    owner: LogId::of(owner),
                    epoch: Epoch(1),
                    available,
                })
                .collect(),
            recovering: Vec::new(),
            namespaces: Vec::new(),
        };
        self.core.view_changed(self.now, &self.view);
    }

    fn submit(&mut self, command: Command, order: Option<OrderKey>, once: Option<Once>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let how = Submit {
            token,
            once,
            order,
            within_ms: 2_000,
            scope: Scope::All,
        };
        self.core.submit(self.now, command, how);
        token
    }

    fn flush(&mut self) {
        let mut out = Outputs::default();
        self.core.flush(self.now, Some(self.store.now), &mut out);
        for output in out.list {
            match output {
                Output::Send {
                    to,
                    message: Message::Requests(requests),
                } => {
                    self.requests.push_back((to, requests));
                }
                other => panic!("a core puts out requests only, not {other:?}"),
            }
        }
        let mut done = Vec::new();
        self.core.take_done(&mut done);
        for (token, outcome) in done {
            assert!(
                self.outcomes.insert(token, outcome).is_none(),
                "C1: answered twice"
            );
        }
    }

    /// Executes the next message on its way to a shard.
    fn deliver_request(&mut self) -> bool {
        let Some((to, requests)) = self.requests.pop_front() else {
            return false;
        };
        if let Some(shard) = self.shards.get_mut(&to) {
            let responses = shard.handle(&mut self.store, requests);
            self.responses.push_back((to, responses));
        }
        true
    }

    fn deliver_response(&mut self) -> bool {
        let Some((from, responses)) = self.responses.pop_front() else {
            return false;
        };
        self.core.handle(self.now, from, responses);
        true
    }

    /// Lets time pass as the core asks until nothing is pending, for at most `ms`.
    fn run(&mut self, ms: u64) {
        let end_us = self.now.mono_us + ms * 1_000;
        loop {
            self.flush();
            if self.deliver_request() || self.deliver_response() {
                continue;
            }
            match self.core.wakeup() {
                Some(at) if at <= end_us => self.advance_to(at.max(self.now.mono_us + 1)),
                _ => break,
            }
        }
        self.advance_to(end_us);
        self.flush();
    }

    fn advance_to(&mut self, at_us: u64) {
        self.now.mono_us = at_us;
        self.store.now = ClusterMs(at_us / 1_000);
    }

    fn shard(&mut self, id: ServerId) -> &mut Shard {
        self.shards.get_mut(&id).expect("up")
    }

    /// Lets everything sent be executed, and holds the answers back.
    fn execute_all(&mut self) {
        self.flush();
        while self.deliver_request() {}
    }

    /// Time for the core to find a shard silent.
    fn pass_silence(&mut self) {
        self.advance_to(self.now.mono_us + 400_000);
    }

    fn outcome(&self, token: u64) -> &Outcome {
        self.outcomes
            .get(&token)
            .unwrap_or_else(|| panic!("token {token} has no outcome"))
    }

    fn executed(&self, key: &str) -> Vec<Op> {
        self.store
            .executed
            .iter()
            .filter(|c| c.key == key)
            .map(|c| c.op.clone())
            .collect()
    }
}

fn member(id: ServerId) -> Member {
    Member {
        id,
        role: Role::Shard,
        address: format!("127.0.0.1:{}", id.0),
        machine: String::new(),
        pid: 1,
        resp_cluster: String::new(),
        name: "shard".into(),
        store: 0,
    }
}

fn command(key: &str, op: Op) -> Command {
    Command {
        namespace: Namespace(0),
        key: Bytes::copy_from_slice(key.as_bytes()),
        op,
    }
}

fn put(key: &str, value: &str) -> Command {
    put_if(key, value, Condition::Always)
}

fn put_if(key: &str, value: &str, condition: Condition) -> Command {
    let value = Bytes::copy_from_slice(value.as_bytes());
    command(
        key,
        Op::Put {
            value,
            condition,
            expiry: ExpiryChange::Clear,
            return_old: false,
        },
    )
}

fn get(key: &str) -> Command {
    command(key, Op::Get)
}

fn scan(from: KeyHash, limit: u32) -> Command {
    command("", Op::Scan { from, limit })
}

/// A key in the half of shard `A`, and one in that of `B`.
fn keys() -> (&'static str, &'static str) {
    assert!(Slot::of(b"bar").0 <= 8191 && Slot::of(b"foo").0 > 8191);
    ("bar", "foo")
}

#[track_caller]
fn check_value(outcome: &Outcome, expected: &str) {
    match outcome {
        Outcome::Value { value, .. } => assert_eq!(value, expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

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

/// What a shard may have no room for now and room for later.
fn lacks_of_room() -> [Failure; 3] {
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
        world.deliver_response();
        world.flush();
        assert!(
            world.outcomes.is_empty(),
            "{why}: the repetition will answer"
        );
        world.deliver_response();
        world.flush();
        assert!(matches!(world.outcome(write), Outcome::Done { .. }));
        assert_eq!(world.executed(a).len(), 1);
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
        world.deliver_response();
        world.flush();
        assert!(world.outcomes.is_empty());
        world.deliver_response();
        world.flush();
        assert!(matches!(world.outcome(write), Outcome::Done { .. }));
        assert_eq!(world.executed(a).len(), 1);
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

#[derive(Clone, Debug)]
enum Act {
    Submit { line: u64, key: u8, op: u8 },
    Request,
    Response,
    LoseRequest,
    LoseResponse,
    DoubleRequest,
    Swap,
    PeerLost(bool),
    Refuse(bool, u8),
    Full(bool, u8),
    Deal(u8),
    Pass(u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0u64..3, 0u8..4, 0u8..8).prop_map(|(line, key, op)| Act::Submit { line, key, op }),
        6 => Just(Act::Request),
        6 => Just(Act::Response),
        1 => Just(Act::LoseRequest),
        1 => Just(Act::LoseResponse),
        1 => Just(Act::DoubleRequest),
        1 => Just(Act::Swap),
        1 => any::<bool>().prop_map(Act::PeerLost),
        1 => (any::<bool>(), 0u8..4).prop_map(|(a, why)| Act::Refuse(a, why)),
        1 => (any::<bool>(), 0u8..4).prop_map(|(a, why)| Act::Full(a, why)),
        1 => (0u8..6).prop_map(Act::Deal),
        2 => (0u16..400).prop_map(Act::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over a network that loses, doubles and swaps messages, with shards that refuse or are full and
    /// owners that change: every command is answered once, no write is executed twice or after its
    /// writer was told that it was not, and the writes of one connection to one key are executed in order,
    /// but for those that failed before.
    #[test]
    fn writes_happen_once_and_in_order_over_a_bad_network(
        acts in prop::collection::vec(act(), 1..120),
        seed in any::<u64>(),
    ) {
        let mut world = World::new();
        let mut dice = Dice::new(seed);
        let mut submitted = Vec::new();
        let mut asked = BTreeMap::new();
        for act in acts {
            match act {
                Act::Submit { line, key, op } => {
                    let key = ["bar", "foo", "a", "b"][key as usize];
                    let number = submitted.len();
                    let command = match op {
                        0..=2 => get(key),
                        7 => command("", Op::Count),
                        _ => put(key, &format!("{line}:{number:05}")),
                    };
                    let op = command.op.clone();
                    let token = world.submit(command, Some(OrderKey(line)), None);
                    submitted.push(token);
                    asked.insert(token, op);
                    world.flush();
                }
                Act::Request => { world.deliver_request(); }
                Act::Response => { world.deliver_response(); }
                Act::LoseRequest => { world.requests.pop_front(); }
                Act::LoseResponse => { world.responses.pop_front(); }
                Act::DoubleRequest => {
                    if let Some(request) = world.requests.front().cloned() {
                        world.requests.push_back(request);
                    }
                }
                Act::Swap => {
                    let len = world.requests.len();
                    if len > 1 {
                        world.requests.swap(0, dice.below(len as u64) as usize);
                    }
                }
                Act::PeerLost(a) => world.core.peer_lost(world.now, if a { A } else { B }),
                Act::Refuse(a, why) => {
                    world.shards.get_mut(if a { &A } else { &B }).expect("up").refuse =
                        [None, Some(Failure::Busy), Some(Failure::NotReady), Some(Failure::NotOwner)]
                            [why as usize].clone();
                }
                Act::Full(a, why) => {
                    world.shard(if a { A } else { B }).full =
                        lacks_of_room().get(usize::from(why)).cloned();
                }
                Act::Deal(how) => {
                    let (low, high) = [(A, B), (B, A), (A, A), (B, B), (A, B), (B, A)][how as usize];
                    let tablets = [(0, 8191, low, true), (8192, 16383, high, true)];
                    world.give(&tablets);
                    if how < 4 {
                        world.publish(&tablets);
                    }
                }
                Act::Pass(ms) => world.run(u64::from(ms)),
            }
            world.flush();
        }
        for shard in world.shards.values_mut() {
            shard.refuse = None;
            shard.full = None;
        }
        let tablets = [(0, 8191, A, true), (8192, 16383, B, true)];
        world.deal(&tablets);
        world.run(2_500);
        for token in &submitted {
            prop_assert!(world.outcomes.contains_key(token), "C1: {token} was never answered");
        }
        prop_assert_eq!(world.core.figures().pending, 0);
        prop_assert_eq!(world.core.figures().pending_bytes, 0);
        prop_assert_eq!(world.core.wakeup(), None);
        for (token, op) in &asked {
            let outcome = world.outcome(*token);
            let untold = matches!(
                outcome,
                Outcome::Failed(Failure::OutcomeUnknown | Failure::StaleClient)
            );
            if op.is_write() && matches!(outcome, Outcome::Failed(_)) && !untold {
                prop_assert!(
                    world.store.executed.iter().all(|command| command.op != *op),
                    "{op:?} was executed, and its writer told {outcome:?}"
                );
            }
        }
        for key in ["bar", "foo", "a", "b"] {
            for line in 0..3 {
                let mine: Vec<Bytes> = world.executed(key).into_iter().filter_map(|op| match op {
                    Op::Put { value, .. } if value.starts_with(format!("{line}:").as_bytes()) => Some(value),
                    _ => None,
                }).collect();
                let unique: BTreeSet<&Bytes> = mine.iter().collect();
                prop_assert_eq!(unique.len(), mine.len(), "executed twice");
                // Failures are not on record: a repetition may be executed after what followed it.
                let failed = |value: &Bytes| world.store.failed.iter().any(|command| {
                    matches!(&command.op, Op::Put { value: other, .. } if other == value)
                });
                let mine: Vec<&Bytes> = mine.iter().filter(|value| !failed(value)).collect();
                prop_assert!(mine.windows(2).all(|two| two[0] < two[1]), "{mine:?}");
            }
        }
    }
}
