//! What a gateway refuses when more is asked than can be done, told by when bytes came: no clock decides anything here.

#[path = "../../client/tests/support/shard.rs"]
mod shard;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use bytes::Bytes;
use holdfast_cluster::{Arrival, Call, Node};
use holdfast_format::{ClientId, ClusterMs, Namespace};
use holdfast_gateway::Mode;
use holdfast_wire::{Command, Condition, ExpiryChange, Failure, Once, Op, Outcome};
use world::{World, request};

fn put(key: &str, value: &str) -> Command {
    let op = Op::Put {
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition: Condition::Always,
        expiry: ExpiryChange::Clear,
        return_old: false,
    };
    Command {
        namespace: Namespace(0),
        key: Bytes::copy_from_slice(key.as_bytes()),
        op,
    }
}

/// Bytes that came `waited_ms` ago, all at once.
fn late(world: &mut World, connection: u64, waited_ms: u64, line: &str) -> String {
    let arrival = Arrival::at(world.now.mono_us - waited_ms * 1_000);
    world.receive(connection, request(line).into(), arrival);
    world.run(1);
    world.take(connection)
}

/// Lets requests stand for longer than they may until that is overload.
fn overload(world: &mut World) {
    for _ in 0..100 {
        let reply = late(world, 1, 20, "GET old");
        if reply == REFUSED {
            assert_eq!(gauge(world, "holdfast_gateway_overloaded"), 1.0);
            return;
        }
        assert_eq!(reply, "$1\n1\n");
        world.pass(1_500);
    }
    panic!("never overloaded");
}

fn gauge(world: &World, name: &str) -> f64 {
    let metrics = world.gateway.metrics();
    let found = metrics.iter().find(|(known, _)| *known == name);
    found.expect("a metric").1
}

const REFUSED: &str = "-BUSY overloaded, retry after 100 ms; nothing was executed\n";

#[test]
fn under_overload_late_requests_are_refused_and_the_management_path_is_open() {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    assert_eq!(world.ask(1, "SET old 1"), "+OK\n");
    overload(&mut world);
    for line in [
        "GET old",
        "SET old 2",
        "DEL old new",
        "SCAN 0",
        "DBSIZE",
        "FLUSHDB",
    ] {
        assert_eq!(late(&mut world, 1, 20, line), REFUSED, "{line}");
    }
    assert_eq!(late(&mut world, 1, 20, "PING"), "+PONG\n");
    assert!(late(&mut world, 1, 20, "INFO").contains("redis_version"));
    assert!(late(&mut world, 1, 20, "CLIENT LIST").contains("addr="));
    // In time, as before; and nothing of what was refused has happened.
    assert_eq!(late(&mut world, 1, 5, "GET old"), "$1\n1\n");
    assert_eq!(gauge(&world, "holdfast_gateway_refused_late_total"), 7.0);
    // It passes when nothing is late any more.
    for _ in 0..60 {
        world.run(50);
        assert_eq!(late(&mut world, 1, 0, "GET old"), "$1\n1\n");
    }
    assert_eq!(gauge(&world, "holdfast_gateway_overloaded"), 0.0);
    assert_eq!(late(&mut world, 1, 20, "GET old"), "$1\n1\n");
}

#[test]
fn under_overload_sessions_are_served_before_new_ones_are_created() {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    assert_eq!(world.ask(1, "SET old 1"), "+OK\n");
    overload(&mut world);
    for _ in 0..60 {
        late(&mut world, 1, 20, "GET old");
        world.run(10);
    }
    assert!(late(&mut world, 1, 0, "SET new 1").starts_with("-BUSY "));
    assert_eq!(late(&mut world, 1, 0, "SET new 1 NX"), REFUSED);
    assert_eq!(late(&mut world, 1, 0, "SET old 1"), "+OK\n");
    assert_eq!(late(&mut world, 1, 0, "SET old 1 NX"), REFUSED);
    assert_eq!(late(&mut world, 1, 0, "SET new 1 XX"), "$-1\n");
    assert_eq!(late(&mut world, 1, 0, "GET new"), "$-1\n");
    assert_eq!(
        gauge(&world, "holdfast_gateway_refused_creations_total"),
        3.0
    );
    // Calls alike, but those with an identity of their own stay as they are.
    let call = |key, once| Call {
        command: put(key, "1"),
        once,
        within_ms: None,
    };
    let once = Once {
        client: ClientId(77),
        sequence: 1,
        acknowledged: 0,
        lease_until: ClusterMs(u64::MAX / 2),
    };
    world.call(1, call("new", None));
    world.call(2, call("old", None));
    world.call(3, call("new", Some(once)));
    world.run(1);
    assert_eq!(world.answers[&1], Outcome::Failed(Failure::Busy));
    assert!(matches!(world.answers[&2], Outcome::Done { .. }));
    assert!(matches!(world.answers[&3], Outcome::Done { .. }));
    // They come back by and by.
    for _ in 0..80 {
        world.run(50);
        late(&mut world, 1, 0, "GET old");
    }
    assert_eq!(late(&mut world, 1, 0, "SET newer 1"), "+OK\n");
}

#[test]
fn a_pause_refuses_nobody() {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    for _ in 0..100 {
        assert_eq!(late(&mut world, 1, 300, "SET key 1"), "+OK\n");
        world.run(10);
        // One in time between two pauses.
        assert_eq!(late(&mut world, 1, 0, "SET key 2"), "+OK\n");
    }
}

/// Of what one read brings the old part is refused and the new part served, and nobody's reply is missing or misplaced.
#[test]
fn of_one_read_the_old_part_is_refused() {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    assert_eq!(world.ask(1, "SET old 1"), "+OK\n");
    overload(&mut world);
    let requests = [
        request("GET old").repeat(20),
        request("PING"),
        request("GET old").repeat(20),
    ];
    let bytes = requests.concat();
    let arrival = Arrival {
        from_us: world.now.mono_us - 40_000,
        to_us: world.now.mono_us,
    };
    // In two pieces, so that one request is begun before it is known to be late.
    let (first, second) = bytes.split_at(bytes.len() / 3 + 1);
    let middle = Arrival::at(arrival.of(second.len(), bytes.len()));
    let parts = [
        (
            first,
            Arrival {
                to_us: middle.to_us,
                ..arrival
            },
        ),
        (
            second,
            Arrival {
                from_us: middle.to_us,
                ..arrival
            },
        ),
    ];
    for (bytes, arrival) in parts {
        world.receive(1, Bytes::copy_from_slice(bytes), arrival);
    }
    world.run(1);
    let replies = world.take(1);
    let refused = replies.matches(REFUSED).count();
    assert!((29..=31).contains(&refused), "{refused}: {replies}");
    let served = "$1\n1\n".repeat(40 - refused);
    let expected = [
        &REFUSED.repeat(20),
        "+PONG\n",
        &REFUSED.repeat(refused - 20),
        &served,
    ];
    assert_eq!(replies, expected.concat());
}

#[test]
fn refusals_wait_for_the_replies_before_them() {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    assert_eq!(world.ask(1, "SET old 1"), "+OK\n");
    overload(&mut world);
    let now_us = world.now.mono_us;
    let send = |world: &mut World, requests: &[u8], waited_us| {
        let arrival = Arrival::at(now_us - waited_us);
        world.receive(1, Bytes::copy_from_slice(requests), arrival);
    };
    send(&mut world, &request("GET old"), 0);
    send(&mut world, &request("GET old").repeat(3), 20_000);
    send(&mut world, &request("GET old"), 0);
    assert_eq!(world.take(1), "");
    world.run(1);
    let expected = ["$1\n1\n", &REFUSED.repeat(3), "$1\n1\n"];
    assert_eq!(world.take(1), expected.concat());
}

/// Whoever has no password is told so, overloaded or not.
#[test]
fn strangers_are_told_that_they_are_strangers() {
    let mut world = World::with(Mode::Flat, |config| config.password = Some("secret".into()));
    world.connect(1);
    assert_eq!(world.ask(1, "AUTH secret"), "+OK\n");
    assert_eq!(world.ask(1, "SET old 1"), "+OK\n");
    overload(&mut world);
    world.connect(2);
    assert!(late(&mut world, 2, 20, "GET old").starts_with("-NOAUTH"));
    assert_eq!(late(&mut world, 2, 20, "AUTH secret"), "+OK\n");
    assert_eq!(late(&mut world, 2, 20, "GET old"), REFUSED);
}
