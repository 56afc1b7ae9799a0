//! A gateway among simple shards, with a coordinator that only deals views and time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{Arrival, Call, ConnectionId, Input, Node, Now, Output, Outputs};
use holdfast_format::{ClusterMs, ServerId};
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_wire::{
    ClusterConfig, Enlisted, HeartbeatReply, Member, Message, Outcome, Requests, Responses, Role,
    View,
};

use crate::shard::{self, Dealt, Shard, Store};

pub const A: ServerId = ServerId(0xa);
pub const B: ServerId = ServerId(0xb);
const GATEWAY: ServerId = ServerId(0x9a7e);
/// Cluster time at the start of a test, so that replies can be recorded.
const START_MS: u64 = 1_700_000_000_000;

pub struct World {
    pub gateway: Gateway,
    pub now: Now,
    pub store: Store,
    pub shards: BTreeMap<ServerId, Shard>,
    pub view: View,
    pub requests: VecDeque<(ServerId, Requests)>,
    pub responses: VecDeque<(ServerId, Responses)>,
    /// What each connection was sent, and whether it was closed.
    pub received: BTreeMap<u64, Vec<u8>>,
    pub closed: Vec<u64>,
    pub answers: BTreeMap<u64, Outcome>,
    pub events: Vec<String>,
    pub stopped: bool,
    enlisted: bool,
}

impl World {
    /// Two shards with half the slots each, everybody enlisted.
    pub fn new(mode: Mode) -> World {
        World::with(mode, |_| {})
    }

    pub fn with(mode: Mode, change: impl FnOnce(&mut GatewayConfig)) -> World {
        let mut world = World::starting(mode, change);
        world.deal(&[(0, 8191, A, true), (8192, 16383, B, true)]);
        world.run(50);
        world
    }

    /// Before the slots are dealt out.
    pub fn starting(mode: Mode, change: impl FnOnce(&mut GatewayConfig)) -> World {
        let mut config = GatewayConfig::for_testing(member(GATEWAY, Role::Gateway), mode);
        change(&mut config);
        let mut world = World {
            gateway: Gateway::new(config, 7).expect("a valid configuration"),
            now: Now {
                mono_us: 1_000_000,
                unix_ms: 0,
            },
            store: Store::new(ClusterMs(START_MS)),
            shards: BTreeMap::from([(A, Shard::new()), (B, Shard::new())]),
            view: View::default(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            received: BTreeMap::new(),
            closed: Vec::new(),
            answers: BTreeMap::new(),
            events: Vec::new(),
            stopped: false,
            enlisted: false,
        };
        world.publish(&[]);
        world.run(50);
        assert!(world.enlisted);
        world
    }

    /// Gives the slots out and tells the gateway.
    pub fn deal(&mut self, tablets: &[Dealt]) {
        shard::give(&mut self.shards, tablets);
        self.publish(tablets);
    }

    fn publish(&mut self, tablets: &[Dealt]) {
        let mut members: Vec<Member> = self
            .shards
            .keys()
            .map(|&id| member(id, Role::Shard))
            .collect();
        members.push(member(GATEWAY, Role::Gateway));
        self.view = shard::view_of(self.view.version + 1, members, tablets);
        let message = Message::View(self.view.clone());
        self.step(Input::Message {
            from: ServerId::COORDINATOR,
            message,
        });
    }

    pub fn connect(&mut self, connection: u64) {
        let client_address = format!("127.0.0.1:{}", 50_000 + connection);
        self.step(Input::Connected {
            connection: ConnectionId(connection),
            client_address,
        });
    }

    pub fn send(&mut self, connection: u64, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        let arrival = Arrival::at(self.now.mono_us);
        self.receive(connection, bytes, arrival);
    }

    /// The same with bytes that have waited.
    pub fn receive(&mut self, connection: u64, bytes: Bytes, arrival: Arrival) {
        self.step(Input::Received {
            connection: ConnectionId(connection),
            bytes,
            arrival,
        });
    }

    pub fn call(&mut self, token: u64, call: Call) {
        let posted_us = self.now.mono_us;
        self.step(Input::Call {
            token,
            call,
            posted_us,
        });
    }

    pub fn step(&mut self, input: Input) {
        let mut out = Outputs::default();
        self.gateway.step(self.now, input, &mut out);
        self.gateway.flush(self.now, &mut out);
        self.apply(out);
    }

    pub fn apply(&mut self, out: Outputs) {
        for output in out.list {
            match output {
                Output::Send { to, message } => self.sent(to, message),
                Output::Bytes { connection, bytes } => {
                    assert!(!self.closed.contains(&connection.0), "bytes after a close");
                    self.received
                        .entry(connection.0)
                        .or_default()
                        .extend_from_slice(&bytes);
                }
                Output::Close { connection } => self.closed.push(connection.0),
                Output::Answer { token, outcome } => {
                    assert!(
                        self.answers.insert(token, outcome).is_none(),
                        "answered twice"
                    );
                }
                Output::Event(event) => self.events.push(event.text),
                Output::Stopped { .. } => self.stopped = true,
                Output::Address { .. } | Output::Forget { .. } => {}
                other => panic!("a gateway has no use for {other:?}"),
            }
        }
    }

    fn sent(&mut self, to: ServerId, message: Message) {
        match message {
            Message::Requests(requests) => self.requests.push_back((to, requests)),
            Message::Enlist(enlist) => {
                self.enlisted = true;
                let config = ClusterConfig {
                    cluster: 1,
                    replicas: 3,
                    ack_quorum: 3,
                    lease_ms: 500,
                    heartbeat_ms: 100,
                    probe_ms: 60_000,
                    ack_disk: false,
                };
                let view = self.view.clone();
                self.coordinator(Message::Enlisted(Enlisted {
                    id: enlist.member.id,
                    config,
                    view,
                }));
            }
            Message::Heartbeat(heartbeat) => {
                self.coordinator(Message::HeartbeatReply(HeartbeatReply {
                    sent_us: heartbeat.sent_us,
                    cluster_us: self.store.now.0 * 1_000,
                    view_version: self.view.version,
                    known: true,
                }))
            }
            Message::Ping { .. } | Message::Pong { .. } | Message::Suspect { .. } => {}
            other => panic!("a gateway does not send {other:?}"),
        }
    }

    fn coordinator(&mut self, message: Message) {
        self.step(Input::Message {
            from: ServerId::COORDINATOR,
            message,
        });
    }

    pub fn deliver_request(&mut self) -> bool {
        let Some((to, requests)) = self.requests.pop_front() else {
            return false;
        };
        if let Some(shard) = self.shards.get_mut(&to) {
            let responses = shard.handle(&mut self.store, requests);
            self.responses.push_back((to, responses));
        }
        true
    }

    pub fn deliver_response(&mut self) -> bool {
        let Some((from, responses)) = self.responses.pop_front() else {
            return false;
        };
        self.step(Input::Message {
            from,
            message: Message::Responses(responses),
        });
        true
    }

    /// Delivers everything and lets `ms` pass.
    pub fn run(&mut self, ms: u64) {
        let end_us = self.now.mono_us + ms * 1_000;
        loop {
            if self.deliver_request() || self.deliver_response() {
                continue;
            }
            match self.gateway.wakeup() {
                Some(at) if at <= end_us => {
                    let at_us = at.max(self.now.mono_us + 1);
                    self.pass(at_us - self.now.mono_us);
                    self.step(Input::Tick);
                }
                _ => break,
            }
        }
        self.pass(end_us - self.now.mono_us);
        self.step(Input::Tick);
    }

    pub fn pass(&mut self, us: u64) {
        self.now.mono_us += us;
        self.store.now = ClusterMs(START_MS + (self.now.mono_us - 1_000_000) / 1_000);
    }

    /// What a connection was sent since last asked, with every line end as `\n`.
    pub fn take(&mut self, connection: u64) -> String {
        let bytes = self.received.remove(&connection).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace("\r\n", "\n")
    }

    /// Sends one request and gives its reply.
    pub fn ask(&mut self, connection: u64, line: &str) -> String {
        self.send(connection, &request(line));
        self.run(1);
        self.take(connection)
    }
}

/// A request as clients send it. Words in a line; `\r`, `\n` and `\s` (a space) are escapes, `""` is
/// an empty word.
pub fn request(line: &str) -> Vec<u8> {
    let words: Vec<String> = line
        .split_whitespace()
        .map(|word| {
            if word == "\"\"" {
                return String::new();
            }
            word.replace("\\r", "\r")
                .replace("\\n", "\n")
                .replace("\\s", " ")
        })
        .collect();
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// Runs a recorded exchange: `> request` lines, each followed by the lines of its reply, in which
/// blanks at line ends do not count.
#[track_caller]
pub fn check(world: &mut World, connection: u64, script: &str) {
    let mut lines = script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .peekable();
    let mut seen = String::new();
    let mut expected = String::new();
    while let Some(line) = lines.next() {
        let line = line
            .strip_prefix("> ")
            .expect("a script begins with a request");
        let mut reply = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("> ")) {
            reply.push(if line == "(empty line)" { "" } else { line });
        }
        let got: String = world
            .ask(connection, line)
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect();
        expected += &format!("> {line}\n{}\n", reply.join("\n"));
        seen += &format!("> {line}\n{got}");
    }
    assert_eq!(seen, expected, "\n--- seen:\n{seen}");
}

pub fn member(id: ServerId, role: Role) -> Member {
    Member {
        id,
        role,
        address: format!("127.0.0.1:{}", 7_000 + (id.0 & 0xff)),
        machine: String::new(),
        pid: 4_711,
        resp_cluster: match role {
            Role::Shard => format!("127.0.0.1:{}", 6_371 + (id.0 & 0xff)),
            _ => String::new(),
        },
        name: "member".into(),
        store: 0,
    }
}
