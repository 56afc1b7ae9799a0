//! What a turn allocates does not depend on how many commands are in it: parsing, executing and answering take
//! place in buffers that are there.
//!
//! A gateway is lent a shard as the server's host thread does it; the coordinator's few answers are given by hand.

#![allow(
    unsafe_code,
    reason = "an allocator cannot be wrapped without; it only counts and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use holdfast_cluster::{Arrival, ConnectionId, Input, Node, Now, Output, Outputs, ShardBeside};
use holdfast_format::{Epoch, LogId, ServerId, SlotRange};
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_master::{Shard, ShardConfig};
use holdfast_wire::{ClusterConfig, Enlisted, HeartbeatReply, Member, Message, Role, Tablet, View};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: Everything is the system allocator's; the counter allocates nothing and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as our caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SHARD: ServerId = ServerId(1);
const GATEWAY: ServerId = ServerId(2);
const CONNECTION: ConnectionId = ConnectionId(1);
const CLUSTER_US: u64 = 1_700_000_000_000_000;

struct Thread {
    shard: Shard,
    gateway: Gateway,
    now: Now,
    view: View,
    out: Outputs,
    sent: Vec<Bytes>,
}

fn member(id: ServerId, role: Role) -> Member {
    Member {
        id,
        role,
        address: String::new(),
        machine: String::new(),
        pid: 1,
        resp_cluster: String::new(),
        name: "member".into(),
        store: 0,
    }
}

impl Thread {
    /// A shard that owns everything, without replicas, and a client.
    fn new() -> Thread {
        let (shard, gateway) = (member(SHARD, Role::Shard), member(GATEWAY, Role::Gateway));
        let view = View {
            version: 1,
            members: vec![shard.clone(), gateway.clone()],
            tablets: vec![Tablet {
                range: SlotRange::ALL,
                owner: LogId::of(SHARD),
                epoch: Epoch(1),
                available: true,
            }],
            ..View::default()
        };
        let mut config = ShardConfig::for_testing(shard);
        config.touch_memory = false;
        config.log.memory_bytes = 64 << 20;
        config.log.segment_bytes = 512 << 10;
        let mut thread = Thread {
            shard: Shard::new(config, 1).expect("a valid configuration"),
            gateway: Gateway::new(GatewayConfig::new(gateway, Mode::Flat), 2)
                .expect("a valid configuration"),
            now: Now {
                mono_us: 1_000_000,
                unix_ms: CLUSTER_US / 1_000,
            },
            view,
            out: Outputs::default(),
            sent: Vec::new(),
        };
        while !(thread.shard.ready() && thread.gateway.ready()) {
            thread.turn(SHARD, Input::Tick);
            thread.turn(GATEWAY, Input::Tick);
            thread.now.mono_us += 10_000;
            assert!(thread.now.mono_us < 60_000_000, "it never becomes ready");
        }
        let client_address = "127.0.0.1:1".into();
        let connection = CONNECTION;
        thread.turn(
            GATEWAY,
            Input::Connected {
                connection,
                client_address,
            },
        );
        thread
    }

    /// One step, and the flushes after it.
    fn turn(&mut self, node: ServerId, input: Input) {
        let now = self.now;
        if node == SHARD {
            self.shard.step(now, input, &mut self.out);
        } else {
            let shard: &mut dyn ShardBeside = &mut self.shard;
            (self.gateway).step_beside(now, input, Some(shard), &mut self.out);
        }
        self.shard.flush(now, &mut self.out);
        let shard: &mut dyn ShardBeside = &mut self.shard;
        (self.gateway).flush_beside(now, Some(shard), &mut self.out);
        self.shard.take_used();
        self.apply(node);
    }

    fn apply(&mut self, node: ServerId) {
        let mut list = std::mem::take(&mut self.out.list);
        let mut answers = Vec::new();
        for output in list.drain(..) {
            match output {
                Output::Bytes { bytes, .. } => self.sent.push(bytes),
                Output::Send { to, message } if to == ServerId::COORDINATOR => {
                    answers.extend(self.coordinate(message));
                }
                Output::Close { .. } | Output::Stopped { .. } => panic!("nothing here ends"),
                _ => {}
            }
        }
        self.out.list = list;
        for (to, message) in answers {
            // Enlisting says who asks; heartbeats are those of the node that was stepped.
            let from = ServerId::COORDINATOR;
            self.turn(to.unwrap_or(node), Input::Message { from, message });
        }
    }

    fn coordinate(&self, message: Message) -> Option<(Option<ServerId>, Message)> {
        match message {
            Message::Enlist(enlist) => {
                let enlisted = Enlisted {
                    id: enlist.member.id,
                    config: ClusterConfig {
                        cluster: 1,
                        replicas: 0,
                        ack_quorum: 0,
                        lease_ms: 500,
                        heartbeat_ms: 1_000,
                        probe_ms: 60_000,
                        ack_disk: false,
                    },
                    view: self.view.clone(),
                };
                Some((Some(enlist.member.id), Message::Enlisted(enlisted)))
            }
            Message::Heartbeat(heartbeat) => {
                let reply = HeartbeatReply {
                    sent_us: heartbeat.sent_us,
                    cluster_us: CLUSTER_US + self.now.mono_us,
                    view_version: self.view.version,
                    known: true,
                };
                Some((Some(heartbeat.from), Message::HeartbeatReply(reply)))
            }
            _ => None,
        }
    }

    /// Has requests executed in one turn; says what was allocated, and how many replies there were.
    fn allocated(&mut self, requests: &[Vec<u8>]) -> u64 {
        let bytes = Bytes::from(requests.concat());
        self.sent.clear();
        let connection = CONNECTION;
        let before = ALLOCATIONS.get();
        let input = Input::Received {
            connection,
            bytes,
            arrival: Arrival::at(self.now.mono_us),
        };
        self.turn(GATEWAY, input);
        let allocated = ALLOCATIONS.get() - before;
        let replies = self.sent.concat();
        let text = String::from_utf8_lossy(&replies);
        assert!(!text.contains('-'), "{text}");
        let heads = text.matches(['+', ':', '$']).count();
        assert_eq!(heads, requests.len(), "each is answered: {text}");
        allocated
    }
}

fn request(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes += &format!("${}\r\n{word}\r\n", word.len());
    }
    bytes.into_bytes()
}

#[test]
fn commands_allocate_nothing() {
    let mut thread = Thread::new();
    let keys: Vec<String> = (0..32).map(|number| format!("session:{number}")).collect();
    // Of the length of no other, so that each is a new value.
    let values: Vec<String> = (0..100).map(|more| "v".repeat(200 + more)).collect();
    let requests = |name: &str, turn: usize, count: usize| -> Vec<Vec<u8>> {
        // The same sessions in every turn, so that a reply buffer of the usual size is large enough.
        let keys = keys.iter().take(count);
        keys.map(|key| match name {
            "GET" => request(&["GET", key]),
            "SET" => request(&["SET", key, &values[turn]]),
            "SETEX" => request(&["SET", key, &values[turn], "EX", "3600"]),
            _ => request(&["EXPIRE", key, &format!("{}", 1_000 + turn)]),
        })
        .collect()
    };
    for name in ["SET", "SETEX", "GET", "EXPIRE"] {
        let mut least = |count: usize, from: usize| {
            let turns = from..from + 16;
            let allocated = turns.map(|turn| thread.allocated(&requests(name, turn, count)));
            allocated.min().expect("there were turns")
        };
        // Buffers grow to what is usual first.
        least(32, 0);
        let (one, many) = (least(1, 16), least(32, 32));
        // Whether a reply buffer is full to its last byte decides on one allocation more or less.
        assert!(
            many <= one + 1,
            "{name}: {many} allocations in a turn of 32, {one} in a turn of one"
        );
        assert!(one <= 8, "{name}: {one} allocations in a turn");
    }
}
