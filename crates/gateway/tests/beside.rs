//! A gateway that is lent the shard of its thread: order, withholding, and what becomes of a reply that can no
//! longer be made audible.

#[path = "../../client/tests/support/shard.rs"]
#[allow(dead_code, reason = "these are the shards that messages go to")]
mod shard;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_cluster::{
    Answer, Arrival, Call, ConnectionId, Executed, Input, Node, Now, Outputs, ShardBeside,
};
use holdfast_format::{
    ClientId, ClusterMs, Namespace, Position, SegmentId, ServerId, Slot, Version,
};
use holdfast_gateway::{GatewayConfig, Mode};
use holdfast_wire::{Command, Condition, ExpiryChange, Failure, Message, Meta, Once, Op, Outcome};

use world::{A, B, World, request};

/// Takes every key that begins with `here`, and needs one position more for each write.
struct Beside {
    id: ServerId,
    values: BTreeMap<Bytes, Bytes>,
    written: u32,
    audible: Option<u32>,
    used: bool,
}

impl Beside {
    fn new(id: ServerId) -> Beside {
        Beside {
            id,
            values: BTreeMap::new(),
            written: 0,
            audible: None,
            used: false,
        }
    }
}

fn at(offset: u32) -> Position {
    Position {
        segment: SegmentId(1),
        offset,
    }
}

impl ShardBeside for Beside {
    fn id(&self) -> ServerId {
        self.id
    }

    fn admits(&self, _: Now) -> bool {
        true
    }

    fn expect(&self, _: Namespace, keys: &mut dyn Iterator<Item = &[u8]>) {
        // Whatever a gateway expects it may still not ask for: nothing follows from it.
        keys.for_each(drop);
    }

    fn execute(&mut self, _: Now, command: &Command) -> Option<Executed<'_>> {
        if !command.key.starts_with(b"here") {
            return None;
        }
        self.used = true;
        let answer = match &command.op {
            Op::Put { value, .. } => {
                self.written += 1;
                self.values.insert(command.key.clone(), value.clone());
                Answer::Outcome(Outcome::Done {
                    meta: Meta::default(),
                    old: None,
                })
            }
            Op::Get => match self.values.get(&command.key) {
                Some(value) => Answer::Value {
                    value,
                    meta: Meta::default(),
                },
                None => Answer::Outcome(Outcome::Absent {
                    version: Version(0),
                }),
            },
            _ => return None,
        };
        let needs = at(self.written);
        Some(Executed { needs, answer })
    }

    fn audible(&self, _: Now) -> Option<Position> {
        self.audible.map(at)
    }

    fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }
}

struct Pair {
    world: World,
    shard: Beside,
    /// Who speaks.
    connection: u64,
}

impl Pair {
    fn new() -> Pair {
        Pair::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut GatewayConfig)) -> Pair {
        let mut world = World::with(Mode::Flat, change);
        world.connect(1);
        Pair {
            world,
            shard: Beside::new(A),
            connection: 1,
        }
    }

    /// Sends requests, lets the gateway flush, and says what the client has been sent since.
    fn send(&mut self, lines: &[&str]) -> String {
        let out = self.step(lines);
        self.heard(out)
    }

    /// Sends requests that the gateway executes without flushing.
    fn step(&mut self, lines: &[&str]) -> Outputs {
        let bytes: Vec<u8> = lines.iter().flat_map(|line| request(line)).collect();
        let input = Input::Received {
            connection: ConnectionId(self.connection),
            bytes: bytes.into(),
            arrival: Arrival::at(self.world.now.mono_us),
        };
        let mut out = Outputs::default();
        let now = self.world.now;
        self.world
            .gateway
            .step_beside(now, input, Some(&mut self.shard), &mut out);
        out
    }

    /// The same without sending.
    fn flush(&mut self) -> String {
        self.heard(Outputs::default())
    }

    fn heard(&mut self, mut out: Outputs) -> String {
        let now = self.world.now;
        let shard: &mut dyn ShardBeside = &mut self.shard;
        self.world.gateway.flush_beside(now, Some(shard), &mut out);
        self.texts(out)
    }

    /// Lets the shards answer what was sent to them, and says what the client has been sent since.
    fn deliver(&mut self) -> String {
        while self.world.deliver_request() {}
        let mut out = Outputs::default();
        while let Some((from, responses)) = self.world.responses.pop_front() {
            let message = Message::Responses(responses);
            let input = Input::Message { from, message };
            let shard: Option<&mut dyn ShardBeside> = Some(&mut self.shard);
            let now = self.world.now;
            self.world.gateway.step_beside(now, input, shard, &mut out);
        }
        self.heard(out)
    }

    /// Commands sent as messages and not delivered.
    fn sent(&self) -> usize {
        let requests = self.world.requests.iter();
        requests.map(|(_, requests)| requests.items.len()).sum()
    }

    fn texts(&mut self, out: Outputs) -> String {
        self.world.apply(out);
        self.world.take(self.connection)
    }
}

#[test]
fn what_is_executed_beside_is_withheld_until_it_is_audible() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    assert_eq!(pair.send(&["SET here:1 one"]), "");
    assert_eq!(
        pair.send(&["GET here:1", "PING"]),
        "",
        "it waits behind the SET"
    );
    pair.shard.audible = Some(1);
    assert_eq!(pair.flush(), "+OK\n$3\none\n+PONG\n");
    assert_eq!(pair.send(&["GET here:1"]), "$3\none\n");
    // Replies that wait together wait for the last position that one of them needs.
    assert_eq!(pair.send(&["GET here:1", "SET here:1 two"]), "");
    pair.shard.audible = Some(2);
    assert_eq!(pair.flush(), "$3\none\n+OK\n");
    pair.shard.audible = None;
    assert_eq!(pair.send(&["GET here:1"]), "", "there is no lease");
    assert!(pair.world.requests.is_empty(), "no message was needed");
}

#[test]
fn what_is_declined_keeps_its_place_among_what_is_not() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let heard = pair.send(&["SET here:1 a", "SET there b", "SET here:1 c", "GET here:1"]);
    assert_eq!(heard, "", "the second is on its way to a shard");
    pair.world.now.mono_us += 500;
    assert_eq!(pair.flush(), "+OK\n", "and takes too long to be waited for");
    assert_eq!(pair.shard.written, 1, "nothing overtakes it");
    let sent: usize = pair.world.requests.iter().map(|(_, r)| r.items.len()).sum();
    assert!(sent >= 2, "what follows goes the same way");
}

/// A key that begins so, in the slots of this shard.
fn key_of(begins: &str, shard: ServerId) -> String {
    let is_its = |key: &String| (Slot::of(key.as_bytes()).0 < 8192) == (shard == A);
    let mut keys = (0..).map(|number| format!("{begins}:{number}"));
    keys.find(is_its).expect("half of all keys are")
}

#[test]
fn commands_pass_those_for_other_shards_and_their_replies_do_not() {
    let (here, there) = (key_of("here", A), key_of("there", B));
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    let lines = [
        &format!("SET {there} b"),
        &format!("SET {here} c"),
        &format!("GET {here}"),
        "PING",
        &format!("GET {there}"),
    ];
    assert_eq!(pair.send(&lines), "");
    assert_eq!((pair.shard.written, pair.sent()), (1, 2));
    assert_eq!(pair.deliver(), "+OK\n", "the next is not audible");
    pair.shard.audible = Some(1);
    assert_eq!(pair.flush(), "+OK\n$1\nc\n+PONG\n$1\nb\n");
}

/// One packet and not two (Q6), unless the other shard takes its time.
#[test]
fn replies_wait_a_moment_for_those_behind_them() {
    let (here, there) = (key_of("here", A), key_of("there", B));
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let lines = [
        &format!("SET {here} c"),
        &format!("SET {there} b"),
        &format!("GET {here}"),
    ];
    let begun = pair.world.now.mono_us;
    assert_eq!(pair.send(&lines.map(String::as_str)), "");
    let wakes = pair.world.gateway.wakeup();
    assert!(wakes.is_some_and(|at| at <= begun + 500));
    pair.world.now.mono_us += 100;
    assert_eq!(pair.deliver(), "+OK\n+OK\n$1\nc\n");
    // Nobody answers.
    assert_eq!(pair.send(&lines.map(String::as_str)), "");
    pair.world.now.mono_us += 499;
    assert_eq!(pair.flush(), "");
    pair.world.now.mono_us += 1;
    assert_eq!(pair.flush(), "+OK\n");
    pair.world.now.mono_us += 10_000;
    assert_eq!(pair.flush(), "", "the others wait for it");
    assert_eq!(pair.deliver(), "+OK\n$1\nc\n");
}

/// Also if it is another key: the shard may still take the one before, and then it would come late.
#[test]
fn nothing_passes_a_command_that_may_be_on_its_way_to_the_same_shard() {
    let (here, declined) = (key_of("here", A), key_of("there", A));
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let lines = [&format!("SET {declined} b"), &format!("SET {here} c")];
    assert_eq!(pair.send(&lines.map(String::as_str)), "");
    assert_eq!((pair.shard.written, pair.sent()), (0, 2));
    assert_eq!(pair.deliver(), "+OK\n+OK\n");
    assert_eq!(pair.send(&[&format!("SET {here} d")]), "+OK\n");
    assert_eq!(
        pair.shard.written, 1,
        "all is answered: it goes beside again"
    );
}

/// As long as one of those under way may be on its way to it, whatever came behind that one.
#[test]
fn nothing_passes_commands_of_which_one_may_be_on_its_way_to_the_same_shard() {
    let (here, declined, there) = (key_of("here", A), key_of("there", A), key_of("there", B));
    for first in [&declined, &there] {
        let second = if *first == there { &declined } else { &there };
        let mut pair = Pair::new();
        pair.shard.audible = Some(9);
        let lines = [
            &format!("SET {first} b"),
            &format!("SET {second} c"),
            &format!("SET {here} d"),
        ];
        assert_eq!(pair.send(&lines.map(String::as_str)), "");
        assert_eq!((pair.shard.written, pair.sent()), (0, 3));
        assert_eq!(pair.deliver(), "+OK\n+OK\n+OK\n");
        // All is answered: commands pass those for other shards again.
        let lines = [&format!("SET {there} b"), &format!("SET {here} c")];
        assert_eq!(pair.send(&lines.map(String::as_str)), "");
        assert_eq!(pair.shard.written, 1);
    }
}

/// What is under way to another shard may have to be asked of this one when slots have moved.
#[test]
fn nothing_passes_a_command_that_was_sent_by_an_older_view() {
    let (here, there) = (key_of("here", A), key_of("there", B));
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    assert_eq!(pair.send(&[&format!("SET {there} b")]), "");
    let mut view = pair.world.view.clone();
    view.version += 1;
    let input = Input::Message {
        from: ServerId::COORDINATOR,
        message: Message::View(view),
    };
    let mut out = Outputs::default();
    let (now, shard) = (
        pair.world.now,
        Some(&mut pair.shard as &mut dyn ShardBeside),
    );
    pair.world.gateway.step_beside(now, input, shard, &mut out);
    assert_eq!(pair.heard(out), "");
    assert_eq!(pair.send(&[&format!("SET {here} c")]), "");
    assert_eq!(pair.shard.written, 0);
    assert_eq!(pair.deliver(), "+OK\n+OK\n");
}

#[test]
fn replies_in_turn_of_a_shard_that_is_gone_are_of_unknown_outcome() {
    let (here, there) = (key_of("here", A), key_of("there", B));
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let lines = [&format!("SET {there} b"), &format!("SET {here} c")];
    assert_eq!(pair.send(&lines.map(String::as_str)), "");
    let mut out = Outputs::default();
    let now = pair.world.now;
    pair.world.gateway.flush_beside(now, None, &mut out);
    assert_eq!(pair.texts(out), "");
    let heard = pair.deliver();
    assert!(heard.starts_with("+OK\n-ERR outcome unknown"), "{heard}");
    assert_eq!(heard.lines().count(), 2, "{heard}");
}

#[test]
fn replies_of_a_shard_that_is_gone_are_of_unknown_outcome() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    assert_eq!(pair.send(&["SET here:1 one", "SET here:2 two", "PING"]), "");
    let mut out = Outputs::default();
    pair.world
        .gateway
        .flush_beside(pair.world.now, None, &mut out);
    let heard = pair.texts(out);
    let lines: Vec<&str> = heard.lines().collect();
    assert_eq!(lines.len(), 3, "{heard}");
    assert!(
        lines[..2]
            .iter()
            .all(|line| line.starts_with("-ERR outcome unknown"))
    );
    assert_eq!(lines[2], "+PONG");
}

#[test]
fn what_stays_inaudible_is_given_up_in_time() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    assert_eq!(pair.send(&["SET here:1 one"]), "");
    pair.world.now.mono_us += 1_000;
    assert_eq!(pair.send(&["SET here:2 two"]), "");
    let due_us = pair.world.gateway.wakeup().expect("it gives up some time");
    pair.world.now.mono_us = pair.world.now.mono_us.max(due_us) + 100_000;
    loop {
        let heard = pair.flush();
        if !heard.is_empty() {
            assert_eq!(heard.matches("-ERR outcome unknown").count(), 2, "{heard}");
            break;
        }
        pair.world.now.mono_us += 1_000_000;
        assert!(pair.world.now.mono_us < 1_000_000_000, "never given up");
    }
    pair.shard.audible = Some(9);
    assert_eq!(pair.flush(), "", "each is answered once");
}

/// The clock of a flush was read before what the flush has executed, and a lease can end in between.
#[test]
fn what_a_flush_executes_is_heard_in_the_next() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let turns = vec!["GET here:1"; 1_500];
    let first = pair.send(&turns).matches("$-1").count();
    assert!((1..1_500).contains(&first), "a turn is bounded");
    assert!(std::mem::take(&mut pair.shard.used));
    pair.shard.audible = None;
    assert_eq!(pair.flush(), "", "the lease ended while they were executed");
    pair.shard.audible = Some(9);
    assert_eq!(pair.flush().matches("$-1").count(), 1_500 - first);
}

/// Positions of one shard mean nothing to another, not even of what was executed a moment ago.
#[test]
fn another_shard_lets_nothing_be_heard_that_the_last_one_has_executed() {
    let mut pair = Pair::new();
    let out = pair.step(&["SET here:1 one"]);
    pair.shard = Beside::new(B);
    pair.shard.audible = Some(9);
    let heard = pair.heard(out);
    assert!(heard.starts_with("-ERR outcome unknown"), "{heard}");
    assert_eq!(pair.send(&["GET here:1"]), "$-1\n");
}

#[test]
fn with_too_much_withheld_commands_go_the_ordinary_way() {
    let value_bytes_max = 10_000;
    let pending_bytes_max = 150_000;
    let mut pair = Pair::with(|config| {
        config.value_bytes_max = value_bytes_max;
        config.pending_bytes_max = pending_bytes_max;
    });
    pair.shard.audible = Some(0);
    let set = format!("SET here:1 {}", "v".repeat(9_000));
    assert_eq!(pair.send(&[&set]), "");
    // Two connections share the bound.
    assert_eq!(pair.send(&["GET here:1"; 9]), "");
    pair.world.connect(2);
    pair.connection = 2;
    assert_eq!(pair.send(&["GET here:1"; 20]), "");
    let sent: usize = pair.world.requests.iter().map(|(_, r)| r.items.len()).sum();
    assert!(sent > 0, "more than {pending_bytes_max} bytes are withheld");
    // What one that has gone kept back counts no more.
    pair.world.requests.clear();
    for connection in [1, 2] {
        let connection = ConnectionId(connection);
        let mut out = Outputs::default();
        let shard: Option<&mut dyn ShardBeside> = Some(&mut pair.shard);
        let input = Input::Disconnected { connection };
        let now = pair.world.now;
        pair.world.gateway.step_beside(now, input, shard, &mut out);
        pair.heard(out);
    }
    pair.world.connect(3);
    pair.connection = 3;
    assert_eq!(pair.send(&["SET here:2 two"]), "");
    assert_eq!(pair.shard.written, 2, "it is executed beside");
}

// ---- calls ----

fn call_of(key: &'static str, value: Option<&'static str>) -> Call {
    let op = match value {
        None => Op::Get,
        Some(value) => Op::Put {
            value: Bytes::from_static(value.as_bytes()),
            condition: Condition::Always,
            expiry: ExpiryChange::Clear,
            return_old: false,
        },
    };
    Call {
        command: Command {
            namespace: Namespace(0),
            key: Bytes::from_static(key.as_bytes()),
            op,
        },
        once: None,
        within_ms: None,
    }
}

impl Pair {
    /// Makes calls, their tokens counting from `first`, and flushes.
    fn call(&mut self, first: u64, calls: Vec<Call>) {
        let mut out = Outputs::default();
        let now = self.world.now;
        for (token, call) in (first..).zip(calls) {
            let posted_us = now.mono_us;
            let input = Input::Call {
                token,
                call,
                posted_us,
            };
            let shard: Option<&mut dyn ShardBeside> = Some(&mut self.shard);
            self.world.gateway.step_beside(now, input, shard, &mut out);
        }
        self.heard(out);
    }

    /// Tokens of the calls that have been answered.
    fn answered(&self) -> Vec<u64> {
        self.world.answers.keys().copied().collect()
    }
}

#[test]
fn a_call_waits_for_what_it_needs_and_for_nothing_else() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    let calls = vec![
        call_of("here:1", Some("one")),
        call_of("here:1", None),
        call_of("here:2", Some("two")),
    ];
    pair.call(1, calls);
    assert_eq!(pair.answered(), []);
    pair.shard.audible = Some(1);
    pair.flush();
    assert_eq!(pair.answered(), [1, 2]);
    let value = Bytes::from_static(b"one");
    let meta = Meta::default();
    assert_eq!(pair.world.answers[&2], Outcome::Value { value, meta });
    pair.shard.audible = None;
    pair.call(4, vec![call_of("here:3", None)]);
    assert_eq!(pair.answered(), [1, 2], "without a lease nothing is heard");
    pair.shard.audible = Some(2);
    pair.flush();
    assert_eq!(pair.answered(), [1, 2, 3, 4]);
    assert!(pair.world.requests.is_empty(), "all were executed beside");
}

/// A write with an identity goes as a message, for only messages leave a record; what comes after it on the same
/// key must not be executed before it.
#[test]
fn calls_on_one_key_keep_their_order_across_both_ways() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(9);
    let once = Once {
        client: ClientId(7),
        sequence: 1,
        acknowledged: 1,
        lease_until: ClusterMs(pair.world.store.now.0 + 60_000),
    };
    let identified = Call {
        once: Some(once),
        ..call_of("here:1", Some("one"))
    };
    let calls = vec![
        identified,
        call_of("here:1", None),
        call_of("here:2", Some("two")),
    ];
    pair.call(1, calls);
    assert_eq!(pair.answered(), [3], "another key need not wait");
    pair.world.run(5);
    assert_eq!(pair.answered(), [1, 2, 3]);
    let value = Bytes::from_static(b"one");
    assert!(matches!(&pair.world.answers[&2], Outcome::Value { value: v, .. } if *v == value));
    // Nothing of the key is on its way any more.
    pair.call(4, vec![call_of("here:1", Some("three"))]);
    assert_eq!(pair.answered(), [1, 2, 3, 4]);
    assert_eq!(pair.shard.written, 2);
}

#[test]
fn calls_that_stay_inaudible_are_given_up_in_their_own_time() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    let soon = Call {
        within_ms: Some(50),
        ..call_of("here:1", None)
    };
    let calls = vec![call_of("here:1", Some("one")), soon];
    pair.call(1, calls);
    pair.world.now.mono_us += 51_000;
    pair.flush();
    assert_eq!(pair.answered(), [2]);
    let nobody = Outcome::Failed(Failure::Unreachable);
    assert_eq!(pair.world.answers[&2], nobody, "it has changed nothing");
    pair.world.now.mono_us += 2_000_000;
    assert!(pair.world.gateway.wakeup() <= Some(pair.world.now.mono_us));
    pair.flush();
    let unknown = Outcome::Failed(Failure::OutcomeUnknown);
    assert_eq!(pair.world.answers[&1], unknown);
}

#[test]
fn calls_of_a_shard_that_is_gone_are_given_up_at_once() {
    let mut pair = Pair::new();
    pair.shard.audible = Some(0);
    let calls = vec![call_of("here:1", Some("one")), call_of("here:1", None)];
    pair.call(1, calls);
    pair.shard = Beside::new(B);
    pair.shard.audible = Some(9);
    pair.flush();
    let unknown = Outcome::Failed(Failure::OutcomeUnknown);
    assert_eq!(pair.world.answers[&1], unknown);
    let nobody = Outcome::Failed(Failure::Unreachable);
    assert_eq!(pair.world.answers[&2], nobody);
}

#[test]
fn with_too_many_withheld_calls_go_as_messages() {
    let mut pair = Pair::with(|config| config.pending_max = 3);
    pair.shard.audible = Some(0);
    pair.call(1, vec![call_of("here:1", Some("v")); 5]);
    assert_eq!(pair.shard.written, 3);
    assert_eq!(pair.world.requests.len(), 1);
    pair.shard.audible = Some(3);
    pair.flush();
    pair.world.run(5);
    assert_eq!(pair.answered(), [1, 2, 3, 4, 5]);
}
