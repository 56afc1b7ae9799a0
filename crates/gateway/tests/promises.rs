//! What a gateway promises whatever the network, the shards and its clients do.

#[path = "../../client/tests/support/shard.rs"]
mod shard;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use bytes::Bytes;
use holdfast_cluster::{Call, ConnectionId, Input, Node};
use holdfast_format::{ClientId, ClusterMs, Namespace};
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_wire::{
    Command, Condition, ExpiryChange, Failure, Once, Op, Outcome, Responses, Role,
};
use proptest::prelude::*;
use world::{A, B, World, member, request};

fn flat() -> World {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    world
}

fn put(key: &str, value: &str, condition: Condition) -> Command {
    let op = Op::Put {
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition,
        expiry: ExpiryChange::Clear,
        return_old: false,
    };
    Command {
        namespace: Namespace(0),
        key: Bytes::copy_from_slice(key.as_bytes()),
        op,
    }
}

/// `foo` and `bar` live on different shards; the second one's answer comes first.
#[test]
fn replies_keep_the_order_of_requests_when_outcomes_do_not() {
    let mut world = flat();
    world.send(
        1,
        b"SET bar 1\r\nSET foo 2\r\nGET foo\r\nPING\r\nGET bar\r\n",
    );
    while world.deliver_request() {}
    world
        .responses
        .make_contiguous()
        .sort_by_key(|(from, _)| *from != B);
    world.deliver_response();
    assert_eq!(world.take(1), "", "the reply about `bar` is still to come");
    world.run(5);
    assert_eq!(world.take(1), "+OK\n+OK\n$1\n2\n+PONG\n$1\n1\n");
}

#[test]
fn pipelined_requests_leave_together() {
    let mut world = flat();
    let bytes: Vec<u8> = (0..8)
        .flat_map(|n| request(&format!("SET {{bar}}{n} v")))
        .collect();
    world.send(1, &bytes);
    assert_eq!(world.requests.len(), 1, "one message");
    assert_eq!(world.requests[0].1.items.len(), 8);
    while world.deliver_request() || world.deliver_response() {}
    assert_eq!(
        world.take(1),
        "+OK\n".repeat(8),
        "without waiting for any time to pass"
    );
}

#[test]
fn a_retry_after_a_lost_shard_connection_executes_nothing_twice() {
    let mut world = flat();
    world.send(
        1,
        b"SET bar 1 NX\r\nSET bar 2 XX GET\r\nDEL bar\r\nSET bar 3 NX\r\n",
    );
    world.deliver_request();
    world.responses.clear();
    world.step(Input::PeerLost {
        peer: A,
        ended: false,
    });
    world.run(500);
    assert_eq!(world.take(1), "+OK\n$1\n1\n:1\n+OK\n");
    assert_eq!(world.store.executed.len(), 4);
}

/// The read's answer is lost; repeated, it must not see the write that followed it.
#[test]
fn a_repeated_read_does_not_see_a_later_write_of_its_connection() {
    let mut world = flat();
    world.ask(1, "SET bar old");
    world.send(1, b"GET bar\r\nSET bar new\r\nGET bar\r\n");
    world.deliver_request();
    world.responses.clear();
    world.run(1_000);
    assert_eq!(world.take(1), "$3\nold\n+OK\n$3\nnew\n");
}

#[test]
fn a_recovery_is_waited_out() {
    let mut world = flat();
    world.ask(1, "SET foo 1");
    world.shards.remove(&B);
    world.deal(&[(0, 8191, A, true), (8192, 16383, B, false)]);
    world.send(1, b"GET foo\r\nGET bar\r\n");
    world.run(1_500);
    assert_eq!(world.take(1), "");
    world.deal(&[(0, 16383, A, true)]);
    world.run(10);
    assert_eq!(world.take(1), "$1\n1\n$-1\n");
}

#[test]
fn what_cannot_be_done_in_time_is_told_for_what_it_is() {
    let mut world = flat();
    world.shards.remove(&B);
    world.send(1, b"SET foo 1\r\nGET foo\r\n");
    world.run(2_200);
    let replies = world.take(1);
    let (write, read) = replies.split_once('\n').expect("two replies");
    assert!(write.starts_with("-ERR outcome unknown"), "{write}");
    assert!(read.starts_with("-ERR no owner could be reached"), "{read}");
    world.shards.get_mut(&A).expect("up").refuse = Some(Failure::Busy);
    world.send(1, b"SET bar 1\r\n");
    world.run(2_200);
    assert!(world.take(1).starts_with("-BUSY "));
}

#[test]
fn scan_is_complete_while_owners_change() {
    let mut world = flat();
    for n in 0..200 {
        assert_eq!(world.ask(1, &format!("SET sess:{n} v")), "+OK\n");
    }
    world.ask(1, "SET other v");
    let mut seen = Vec::new();
    let mut cursor = "0".to_owned();
    for round in 0.. {
        world.send(
            1,
            &request(&format!("SCAN {cursor} MATCH sess:* COUNT 20 TYPE string")),
        );
        world.deliver_request();
        world.deliver_response();
        let (low, high) = [(A, B), (B, A), (A, A), (B, B)][round % 4];
        world.deal(&[(0, 8191, low, true), (8192, 16383, high, true)]);
        world.run(100);
        let reply = world.take(1);
        let mut lines = reply.lines();
        assert_eq!(
            (lines.next(), lines.next().map(|l| &l[..1])),
            (Some("*2"), Some("$"))
        );
        cursor = lines.next().expect("a cursor").to_owned();
        assert!(
            cursor.parse::<u64>().expect("a number") < 1 << 53,
            "exact in JavaScript"
        );
        seen.extend(
            lines
                .filter(|line| line.starts_with("sess:"))
                .map(str::to_owned),
        );
        assert!(!reply.contains("other"));
        if cursor == "0" {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 200);
    assert!(world.ask(1, "KEYS oth*").ends_with("*1\n$5\nother\n"));
    assert!(world.ask(1, "KEYS sess:*").starts_with("*200\n"));
    assert!(
        world
            .ask(1, "SCAN 0 TYPE hash COUNT 10000")
            .ends_with("*0\n")
    );
}

#[test]
fn requests_on_many_keys_are_taken_a_window_at_a_time() {
    let mut world = World::with(Mode::Flat, |config| config.pending_max = 300);
    world.connect(1);
    let keys: String = (0..500).map(|n| format!(" k{n}")).collect();
    for n in [0, 250, 499] {
        world.ask(1, &format!("SET k{n} v{n}"));
    }
    let mut bytes = request(&format!("MGET{keys}"));
    bytes.extend(request(&format!("DEL{keys}")));
    bytes.extend(request("EXISTS k0"));
    world.send(1, &bytes);
    world.run(50);
    let reply = world.take(1);
    assert!(
        reply.starts_with("*500\n$2\nv0\n$-1\n") && reply.ends_with("$4\nv499\n:3\n:0\n"),
        "{reply}"
    );
}

#[test]
fn a_connection_that_pipelines_beyond_its_bound_waits_its_turn() {
    let mut world = flat();
    let bytes: Vec<u8> = (0..100)
        .flat_map(|n| request(&format!("SET bar {n}")))
        .collect();
    world.send(1, &bytes);
    let sent: usize = world.requests.iter().map(|(_, r)| r.items.len()).sum();
    assert_eq!(sent, 16, "replies_max");
    world.run(10);
    assert_eq!(world.take(1), "+OK\n".repeat(100));
    assert_eq!(world.ask(1, "GET bar"), "$2\n99\n");
}

/// Each bound is reached, and named in the event.
#[test]
fn bounds_close_the_connection_and_say_why() {
    let mut world = flat();
    let value = "x".repeat(60_000);
    assert_eq!(world.ask(1, &format!("SET bar {value}")), "+OK\n");
    world.send(1, &request("MGET bar bar bar bar bar bar"));
    world.run(10);
    assert_eq!(world.closed, [1]);
    assert!(
        world.events[0].contains("more than 262144 bytes of replies"),
        "{:?}",
        world.events
    );
    assert_eq!(world.take(1), "");

    let mut world = World::with(Mode::Flat, |config| config.input_bytes_max = 17 << 20);
    world.connect(1);
    world.shards.clear();
    let ping = request("SET bar v").repeat(1_000);
    for _ in 0..700 {
        world.send(1, &ping);
    }
    assert_eq!(world.closed, [1]);
    assert!(
        world.events[0].contains("bytes of requests wait"),
        "{:?}",
        world.events
    );

    let mut world = World::new(Mode::Flat);
    for connection in 1..=9 {
        world.connect(connection);
    }
    assert_eq!(world.closed, [9]);
    assert_eq!(world.take(9), "-ERR max number of clients reached\n");
    world.step(Input::Disconnected {
        connection: ConnectionId(1),
    });
    world.connect(10);
    assert_eq!(world.ask(10, "PING"), "+PONG\n");
}

#[test]
fn too_much_work_is_refused_as_busy() {
    let mut world = World::with(Mode::Flat, |config| {
        config.pending_max = 20;
        config.replies_max = 100;
    });
    world.connect(1);
    world.send(1, &request("SET bar v").repeat(30));
    world.run(10);
    let replies = world.take(1);
    assert_eq!(replies.matches("+OK\n").count(), 20);
    assert_eq!(replies.matches("-BUSY ").count(), 10);
    assert!(replies.starts_with(&"+OK\n".repeat(20)));
}

#[test]
fn calls_are_answered_and_keep_their_own_identity() {
    let mut world = flat();
    let once = Once {
        client: ClientId(0xf0),
        sequence: 1,
        acknowledged: 1,
        lease_until: ClusterMs(world.store.now.0 + 60_000),
    };
    let create = || put("bar", "1", Condition::Absent);
    for token in [1, 2] {
        world.call(
            token,
            Call {
                command: create(),
                once: Some(once),
                within_ms: None,
            },
        );
        world.run(5);
    }
    assert!(matches!(world.answers[&1], Outcome::Done { .. }));
    assert_eq!(
        world.answers[&1], world.answers[&2],
        "a retry is answered as the first attempt"
    );
    world.call(
        3,
        Call {
            command: create(),
            once: None,
            within_ms: None,
        },
    );
    world.run(5);
    assert!(matches!(world.answers[&3], Outcome::Refused { .. }));
    world.call(
        4,
        Call {
            command: put("bar", &"x".repeat(70_000), Condition::Always),
            once: None,
            within_ms: None,
        },
    );
    assert!(matches!(
        world.answers[&4],
        Outcome::Failed(Failure::ValueTooLarge { .. })
    ));
    world.shards.get_mut(&A).expect("up").refuse = Some(Failure::NotReady);
    world.call(
        5,
        Call {
            command: create(),
            once: None,
            within_ms: Some(100),
        },
    );
    world.run(120);
    assert_eq!(world.answers[&5], Outcome::Failed(Failure::Unreachable));
}

#[test]
fn shutting_down_finishes_what_is_under_way() {
    let mut world = flat();
    world.send(1, b"SET bar 1\r\n");
    world.step(Input::Shutdown);
    assert!(!world.stopped);
    world.send(1, b"SET bar 2\r\n");
    world.connect(2);
    assert_eq!(world.take(2), "-ERR max number of clients reached\n");
    world.call(
        1,
        Call {
            command: put("bar", "3", Condition::Always),
            once: None,
            within_ms: None,
        },
    );
    assert_eq!(world.answers[&1], Outcome::Failed(Failure::Unreachable));
    world.run(10);
    assert_eq!(world.take(1), "+OK\n");
    assert!(world.stopped && world.closed.contains(&1));
    assert_eq!(world.gateway.wakeup(), None);
}

#[test]
fn a_connection_that_goes_away_disturbs_nobody() {
    let mut world = flat();
    world.connect(2);
    world.send(1, &request("MGET a b c d e f"));
    world.send(1, &request("SET bar 1"));
    world.step(Input::Disconnected {
        connection: ConnectionId(1),
    });
    world.run(10);
    assert_eq!(world.take(1), "");
    assert_eq!(
        world.ask(2, "GET bar"),
        "$1\n1\n",
        "what was read is executed"
    );
    let metrics = world.gateway.metrics();
    let metric = |name: &str| metrics.iter().find(|(n, _)| *n == name).expect("exists").1;
    assert_eq!(metric("holdfast_gateway_connections"), 1.0);
    assert_eq!(metric("holdfast_gateway_pending"), 0.0);
    assert_eq!(metric("holdfast_gateway_commands_total"), 3.0);
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let check = |change: fn(&mut GatewayConfig), word: &str| {
        let mut config = GatewayConfig::for_testing(member(A, Role::Gateway), Mode::Flat);
        change(&mut config);
        let error = Gateway::new(config, 1).expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    };
    check(|c| c.member.role = Role::Shard, "member.role");
    check(|c| c.retry_ms = 60_000, "retry_ms");
    check(|c| c.pending_max = 0, "pending_max");
    check(|c| c.pending_bytes_max = 1, "pending_bytes_max");
    check(|c| c.output_bytes_max = 1, "output_bytes_max");
    check(|c| c.input_bytes_max = 1, "input_bytes_max");
    check(|c| c.password = Some(String::new()), "password");
}

/// Requests whose replies tell of buffers, counters and the time.
const TELLING: [&str; 4] = ["INFO", "CLIENT INFO", "CLIENT LIST", "TIME"];

/// Requests of every other kind, well-formed or not.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let lines = [
        "GET bar",
        "SET bar v",
        "SET foo w EX 100 GET",
        "MGET bar foo a b c",
        "DEL bar foo",
        "PING",
        "ECHO hi",
        "HELLO 3",
        "HELLO 2",
        "SCAN 0",
        "KEYS *",
        "DBSIZE",
        "FLUSHDB",
        "SELECT 1",
        "SELECT 0",
        "EXISTS foo bar bar",
        "TTL foo",
        "EXPIRE foo 10 XX LT",
        "GETDEL bar",
        "COMMAND",
        "NOSUCH command",
        "GET",
        "CLIENT ID",
        "CONFIG GET *",
        "CLUSTER SLOTS",
        "RESET",
        "EVALSHA a4e8783852e6b949f9ef3a97212805108459a890 1 foo w 60000 1",
        "WAIT 0 0",
    ];
    prop_oneof![
        20 => prop::sample::select(lines.to_vec()).prop_map(request),
        2 => prop::sample::select(lines.to_vec()).prop_map(|line| format!("{line}\r\n").into_bytes()),
        1 => Just(b"\r\n*0\r\n".to_vec()),
    ]
}

/// Runs the same bytes in pieces as `cuts` says; gives everything that came back.
fn run_in_pieces(bytes: &[u8], cuts: &[usize], mode: Mode) -> (Vec<u8>, bool) {
    let mut world = World::new(mode);
    world.connect(1);
    let mut rest = bytes;
    for &cut in cuts {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        world.send(1, piece);
        rest = after;
    }
    world.send(1, rest);
    world.run(50);
    (
        world.received.remove(&1).unwrap_or_default(),
        world.closed.contains(&1),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Q1: replies depend on the requests alone, not on how their bytes arrive.
    #[test]
    fn replies_are_the_same_however_the_bytes_arrive(
        requests in prop::collection::vec(any_request(), 1..30),
        cuts in prop::collection::vec(0usize..40, 0..60),
    ) {
        let bytes = requests.concat();
        let whole = run_in_pieces(&bytes, &[], Mode::Flat);
        let pieces = run_in_pieces(&bytes, &cuts, Mode::Flat);
        prop_assert_eq!(String::from_utf8_lossy(&whole.0), String::from_utf8_lossy(&pieces.0));
        prop_assert_eq!(whole.1, pieces.1);
    }

    /// G1, G3: arbitrary bytes, answers out of order and nonsense from shards never panic, and what
    /// the gateway holds stays within its bounds.
    #[test]
    fn nothing_that_arrives_makes_it_panic_or_grow(
        chunks in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                any_request(),
                prop::sample::select(TELLING.to_vec()).prop_map(request),
                Just(b"*3\r\n$3\r\nSET\r\n$3\r\nbar\r\n$60000\r\n".to_vec()),
                Just(b"*100000\r\n$4\r\nMGET\r\n".to_vec()),
            ],
            0..40,
        ),
        deliveries in prop::collection::vec(0u8..6, 40),
        outcomes in prop::collection::vec((0u64..8, 0u8..6), 0..20),
        cluster in any::<bool>(),
    ) {
        let mode = if cluster { Mode::Cluster { shard: A } } else { Mode::Flat };
        let mut world = World::new(mode);
        world.connect(1);
        world.connect(2);
        let mut outcomes = outcomes.into_iter();
        for (n, chunk) in chunks.into_iter().enumerate() {
            world.send(1 + n as u64 % 2, &chunk);
            match deliveries[n] {
                0 => { world.deliver_request(); }
                1 => { world.deliver_response(); }
                2 => world.run(10),
                3 => world.step(Input::PeerLost { peer: A, ended: false }),
                4 => world.responses.clear(),
                _ => {
                    if let Some((token, outcome)) = outcomes.next() {
                        nonsense(&mut world, token, outcome);
                    }
                }
            }
            let metrics = world.gateway.metrics();
            let metric = |name: &str| metrics.iter().find(|(n, _)| *n == name).expect("exists").1;
            prop_assert!(metric("holdfast_gateway_pending") <= 256.0);
            prop_assert!(metric("holdfast_gateway_pending_bytes") <= (1 << 20) as f64);
            prop_assert!(metric("holdfast_gateway_replies_waiting") <= 2.0 * 17.0);
        }
        world.run(2_500);
        let pending = world.gateway.metrics().into_iter().find(|(n, _)| *n == "holdfast_gateway_pending");
        prop_assert_eq!(pending.expect("exists").1, 0.0, "everything is answered in the end");
    }
}

/// An answer of some kind for a token that may or may not be asked for.
fn nonsense(world: &mut World, token: u64, outcome: u8) {
    let client = world.gateway.client();
    let outcome = match outcome {
        0 => Outcome::Flushed,
        1 => Outcome::Counted {
            sessions: 7,
            with_deadline: 9,
        },
        2 => Outcome::Scanned {
            keys: Vec::new(),
            next: None,
        },
        3 => Outcome::Failed(Failure::Invalid("no\r\nsense".into())),
        4 => Outcome::Failed(Failure::NotOwner),
        5 => Outcome::Usage(Default::default()),
        _ => Outcome::Value {
            value: Bytes::from_static(b"v"),
            meta: Default::default(),
        },
    };
    let response = holdfast_wire::Response { token, outcome };
    for stream in 0..4 {
        let responses = Responses {
            client,
            stream,
            items: vec![response.clone()],
        };
        let message = holdfast_wire::Message::Responses(responses);
        world.step(Input::Message { from: A, message });
    }
}
