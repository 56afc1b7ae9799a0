//! A core, two simple shards, and the network between them, which does what the test says.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_client::{Config, Core, OrderKey, Scope, Submit};
use holdfast_cluster::{Now, Output, Outputs};
use holdfast_format::{ClientId, ClusterMs, KeyHash, Namespace, ServerId, Slot};
use holdfast_wire::{
    Command, Condition, ExpiryChange, Member, Message, Once, Op, Outcome, Requests, Responses,
    Role, View,
};

use crate::shard::{self, Dealt, Shard, Store};

pub(crate) const A: ServerId = ServerId(0xa);
pub(crate) const B: ServerId = ServerId(0xb);
pub(crate) const LINE: Option<OrderKey> = Some(OrderKey(1));

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Now,
    pub(crate) store: Store,
    pub(crate) shards: BTreeMap<ServerId, Shard>,
    pub(crate) view: View,
    /// On their way to shards.
    pub(crate) requests: VecDeque<(ServerId, Requests)>,
    pub(crate) responses: VecDeque<(ServerId, Responses)>,
    pub(crate) outcomes: BTreeMap<u64, Outcome>,
    pub(crate) next_token: u64,
}

impl World {
    /// Two shards with half the slots each.
    pub(crate) fn new() -> World {
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
    pub(crate) fn deal(&mut self, tablets: &[Dealt]) {
        self.give(tablets);
        self.publish(tablets);
    }

    pub(crate) fn give(&mut self, tablets: &[Dealt]) {
        shard::give(&mut self.shards, tablets);
    }

    pub(crate) fn publish(&mut self, tablets: &[Dealt]) {
        let members = self.shards.keys().map(|&id| member(id)).collect();
        self.view = shard::view_of(self.view.version + 1, members, tablets);
        self.core.view_changed(self.now, &self.view);
    }

    pub(crate) fn submit(
        &mut self,
        command: Command,
        order: Option<OrderKey>,
        once: Option<Once>,
    ) -> u64 {
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

    pub(crate) fn flush(&mut self) {
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
    pub(crate) fn deliver_request(&mut self) -> bool {
        let Some((to, requests)) = self.requests.pop_front() else {
            return false;
        };
        if let Some(shard) = self.shards.get_mut(&to) {
            let responses = shard.handle(&mut self.store, requests);
            self.responses.push_back((to, responses));
        }
        true
    }

    pub(crate) fn deliver_response(&mut self) -> bool {
        let Some((from, responses)) = self.responses.pop_front() else {
            return false;
        };
        self.core.handle(self.now, from, responses);
        true
    }

    /// Lets time pass as the core asks until nothing is pending, for at most `ms`.
    pub(crate) fn run(&mut self, ms: u64) {
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

    pub(crate) fn advance_to(&mut self, at_us: u64) {
        self.now.mono_us = at_us;
        self.store.now = ClusterMs(at_us / 1_000);
    }

    pub(crate) fn shard(&mut self, id: ServerId) -> &mut Shard {
        self.shards.get_mut(&id).expect("up")
    }

    /// Lets everything sent be executed, and holds the answers back.
    pub(crate) fn execute_all(&mut self) {
        self.flush();
        while self.deliver_request() {}
    }

    /// Time for the core to find a shard silent.
    pub(crate) fn pass_silence(&mut self) {
        self.advance_to(self.now.mono_us + 400_000);
    }

    pub(crate) fn outcome(&self, token: u64) -> &Outcome {
        self.outcomes
            .get(&token)
            .unwrap_or_else(|| panic!("token {token} has no outcome"))
    }

    pub(crate) fn executed(&self, key: &str) -> Vec<Op> {
        self.store
            .executed
            .iter()
            .filter(|c| c.key == key)
            .map(|c| c.op.clone())
            .collect()
    }
}

pub(crate) fn member(id: ServerId) -> Member {
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

pub(crate) fn command(key: &str, op: Op) -> Command {
    Command {
        namespace: Namespace(0),
        key: Bytes::copy_from_slice(key.as_bytes()),
        op,
    }
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    put_if(key, value, Condition::Always)
}

pub(crate) fn put_if(key: &str, value: &str, condition: Condition) -> Command {
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

pub(crate) fn get(key: &str) -> Command {
    command(key, Op::Get)
}

pub(crate) fn scan(from: KeyHash, limit: u32) -> Command {
    command("", Op::Scan { from, limit })
}

/// A key in the half of shard `A`, and one in that of `B`.
pub(crate) fn keys() -> (&'static str, &'static str) {
    assert!(Slot::of(b"bar").0 <= 8191 && Slot::of(b"foo").0 > 8191);
    ("bar", "foo")
}

#[track_caller]
pub(crate) fn check_value(outcome: &Outcome, expected: &str) {
    match outcome {
        Outcome::Value { value, .. } => assert_eq!(value, expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}
