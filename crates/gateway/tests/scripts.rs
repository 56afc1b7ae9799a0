//! Whole RESP exchanges with recorded replies, in both protocols and on both ports.

#[path = "../../client/tests/support/shard.rs"]
mod shard;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use holdfast_gateway::Mode;
use world::{A, B, World, check};

fn flat() -> World {
    let mut world = World::new(Mode::Flat);
    world.connect(1);
    world
}

#[test]
fn connections_are_listed_and_killed_by_others() {
    let mut world = flat();
    for connection in 2..=5 {
        world.connect(connection);
    }
    let list = world.ask(1, "CLIENT LIST");
    assert_eq!(list.matches(" addr=").count(), 5, "{list}");
    let two = world.ask(1, "CLIENT LIST TYPE normal ID 2 4 77");
    assert_eq!(two.matches(" addr=").count(), 2, "{two}");
    let address = two.split(" addr=").nth(1).unwrap();
    let address = address.split(' ').next().unwrap().to_string();
    check(
        &mut world,
        1,
        r"
        > CLIENT LIST TYPE pubsub
        $0
        (empty line)
        > CLIENT KILL ID 3
        :1
        > CLIENT KILL ID 3
        :0
        > CLIENT KILL 9.9.9.9:9
        -ERR No such client
        > CLIENT KILL LADDR 127.0.0.1:6380
        :0
        > CLIENT KILL TYPE replica
        :0
        > CLIENT KILL MAXAGE 3600
        :0
        > PING
        +PONG
        ",
    );
    assert!(world.closed.contains(&3) && !world.closed.contains(&2));
    assert_eq!(world.ask(1, &format!("CLIENT KILL {address}")), "+OK\n");
    assert!(world.closed.contains(&2) && !world.closed.contains(&4));
    // The one that asks is spared unless it wants to be meant as well, and then it is told first.
    assert_eq!(world.ask(4, "CLIENT KILL USER default"), ":2\n");
    assert!(world.closed.contains(&1) && world.closed.contains(&5) && !world.closed.contains(&4));
    assert_eq!(world.ask(4, "CLIENT KILL ID 4 SKIPME no"), ":1\n");
    assert!(world.closed.contains(&4));
}

#[test]
fn a_namespace_takes_only_so_many_clients() {
    let mut world = World::with(Mode::Flat, |config| {
        config.namespace_connections_max = Some(2);
    });
    world.connect(1);
    world.connect(2);
    world.connect(3);
    assert_eq!(world.take(3), "-ERR max number of clients reached\n");
    assert_eq!(world.ask(1, "SELECT 4"), "+OK\n");
    assert_eq!(world.ask(2, "SELECT 4"), "+OK\n");
    world.connect(4);
    let refused = "-ERR max number of clients of this namespace reached\n";
    assert_eq!(world.ask(4, "SELECT 4"), refused);
    assert_eq!(world.ask(2, "SELECT 4"), "+OK\n");
    assert_eq!(world.ask(2, "SELECT 0"), "+OK\n");
    assert_eq!(world.ask(4, "SELECT 4"), "+OK\n");
}

/// What SET and GET do, with options in any order and case.
#[test]
fn a_session_lives_and_ends() {
    check(
        &mut flat(),
        1,
        r"
        > SET sess:1 hello EX 60
        +OK
        > get sess:1
        $5
        hello
        > TTL sess:1
        :60
        > SET sess:1 other NX
        $-1
        > set sess:1 other ex 100 xx
        +OK
        > SET sess:1 third GET KEEPTTL
        $5
        other
        > PTTL sess:2
        :-2
        > EXPIRE sess:1 30
        :1
        > EXPIRE sess:1 60 LT
        :0
        > EXPIRE sess:1 20 XX LT
        :1
        > TTL sess:1
        :20
        > GETEX sess:1 PERSIST
        $5
        third
        > TTL sess:1
        :-1
        > GETDEL sess:1
        $5
        third
        > GET sess:1
        $-1
        > SETEX sess:2 10 v
        +OK
        > EXISTS sess:1 sess:2 sess:2
        :2
        > TYPE sess:2
        +string
        > STRLEN sess:2
        :1
        > DEL sess:2
        :1
        > SETNX sess:2 v
        :1
        > UNLINK sess:2 sess:3
        :1
        ",
    );
}

#[test]
fn commands_on_many_keys_cross_slots_and_shards() {
    check(
        &mut flat(),
        1,
        r#"
        > SET bar 1
        +OK
        > SET foo 2
        +OK
        > MGET foo nothing bar foo
        *4
        $1
        2
        $-1
        $1
        1
        $1
        2
        > SET {bar}x ""
        +OK
        > MGET {bar}x
        *1
        $0
        (empty line)
        > DBSIZE
        :3
        > DEL bar foo nothing
        :2
        > FLUSHDB
        +OK
        > DBSIZE
        :0
        "#,
    );
}

#[test]
fn hello_chooses_the_protocol_for_what_follows_it() {
    let mut world = flat();
    let mut bytes = world::request("GET nothing");
    bytes.extend(world::request("HELLO 3 SETNAME app"));
    bytes.extend(world::request("GET nothing"));
    world.send(1, &bytes);
    world.run(1);
    let id = "$2\nid\n:1\n";
    assert_eq!(
        world.take(1),
        format!(
            "$-1\n%7\n$6\nserver\n$5\nredis\n$7\nversion\n$5\n7.4.0\n$5\nproto\n:3\n{id}\
             $4\nmode\n$10\nstandalone\n$4\nrole\n$6\nmaster\n$7\nmodules\n*0\n_\n"
        )
    );
    check(
        &mut world,
        1,
        r"
        > CLIENT GETNAME
        $3
        app
        > MGET a b
        *2
        _
        _
        > CONFIG GET databases
        %1
        $9
        databases
        $2
        16
        > HELLO 4
        -NOPROTO unsupported protocol version
        > RESET
        +RESET
        > GET nothing
        $-1
        > CLIENT GETNAME
        $-1
        ",
    );
}

#[test]
fn connections_are_told_what_they_ask_about_themselves() {
    let mut world = flat();
    check(
        &mut world,
        1,
        r"
        > PING
        +PONG
        > ping hi
        $2
        hi
        > ECHO hi
        $2
        hi
        > SELECT 1
        +OK
        > SET k one
        +OK
        > SELECT 16
        -ERR DB index is out of range
        > GET k
        $3
        one
        > SELECT 0
        +OK
        > GET k
        $-1
        > CLIENT ID
        :1
        > CLIENT SETINFO LIB-NAME redis-py
        +OK
        > CLIENT SETINFO lib-ver 8.1.0
        +OK
        > CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type external-ip
        +OK
        > CLIENT NO-EVICT ON
        +OK
        > READONLY
        +OK
        > WAIT 1 100
        :3
        > ROLE
        *3
        $6
        master
        :0
        *0
        > SLOWLOG LEN
        :0
        > CLUSTER INFO
        -ERR This instance has cluster support disabled
        > CLUSTER KEYSLOT foo
        :12182
        > COMMAND COUNT extra
        -ERR wrong number of arguments for 'command|count' command
        ",
    );
    let list = world.ask(1, "CLIENT LIST");
    assert!(
        list.contains("addr=127.0.0.1:50001") && list.contains("lib-name=redis-py"),
        "{list}"
    );
    let time = world.ask(1, "TIME");
    assert!(time.starts_with("*2\n$10\n17000000"), "{time}");
}

#[test]
fn counters_and_parts_of_values() {
    let mut world = flat();
    check(
        &mut world,
        1,
        r"
        > INCR n
        :1
        > INCRBY n 41
        :42
        > DECR n
        :41
        > decrby n 50
        :-9
        > GET n
        $2
        -9
        > EXPIRE n 100
        :1
        > INCR n
        :-8
        > TTL n
        :100
        > INCRBY n one
        -ERR value is not an integer or out of range
        > DECRBY n -9223372036854775808
        -ERR decrement would overflow
        > INCR
        -ERR wrong number of arguments for 'incr' command
        > SET text abcdef
        +OK
        > INCR text
        -ERR value is not an integer or out of range
        > APPEND text gh
        :8
        > APPEND new x
        :1
        > GETRANGE text 0 2
        $3
        abc
        > GETRANGE text -3 -1
        $3
        fgh
        > GETRANGE text 2 -3
        $4
        cdef
        > GETRANGE text -100 100
        $8
        abcdefgh
        > GETRANGE text 5 1
        $0
        (empty line)
        > GETRANGE text -1 -5
        $0
        (empty line)
        > GETRANGE text 8 9
        $0
        (empty line)
        > GETRANGE none 0 -1
        $0
        (empty line)
        > GETRANGE text x 1
        -ERR value is not an integer or out of range
        ",
    );
}

#[test]
fn what_is_wrong_is_said_in_redis_words() {
    let mut world = flat();
    check(
        &mut world,
        1,
        r"
        > FOO bar baz
        -ERR unknown command 'FOO', with args beginning with: 'bar' 'baz'
        > GET
        -ERR wrong number of arguments for 'get' command
        > SET k v EX
        -ERR syntax error
        > SET k v EX ten
        -ERR value is not an integer or out of range
        > SET k v EX 0
        -ERR invalid expire time in 'set' command
        > MULTI
        -ERR unknown command 'MULTI', with args beginning with:
        > SENTINEL masters
        -ERR unknown command 'SENTINEL', with args beginning with: 'masters'
        > SCAN x
        -ERR invalid cursor
        ",
    );
    world.shards.get_mut(&A).expect("up").full = Some(holdfast_wire::Failure::OutOfMemory);
    let value = "x".repeat(70_000);
    assert_eq!(
        world.ask(1, "SET bar v"),
        "-OOM command not allowed when used memory > 'maxmemory'.\n"
    );
    assert_eq!(
        world.ask(1, &format!("SET bar {value}")),
        "-ERR value of 70000 bytes is over the limit of 65536\n"
    );
    let key = "k".repeat(2_000);
    let refused = "-ERR key of 2000 bytes is over the limit of 1024\n";
    assert_eq!(world.ask(1, &format!("GET {key}")), refused);
    assert_eq!(world.ask(1, &format!("MGET a {key}")), refused);
}

#[test]
fn a_protocol_error_is_told_and_ends_the_connection() {
    let mut world = flat();
    world.send(
        1,
        b"*1\r\n$4\r\nPING\r\n*1\r\n!oops\r\n*1\r\n$4\r\nPING\r\n",
    );
    assert_eq!(
        world.take(1),
        "+PONG\n-ERR Protocol error: expected '$', got '!'\n"
    );
    assert_eq!(world.closed, [1]);
    world.send(1, b"PING\r\n");
    assert_eq!(world.take(1), "");
}

#[test]
fn quit_is_answered_after_everything_before_it() {
    let mut world = flat();
    world.send(1, b"SET bar v\r\nQUIT\r\nGET bar\r\n");
    assert!(world.closed.is_empty());
    world.run(1);
    assert_eq!(world.take(1), "+OK\n+OK\n");
    assert_eq!(world.closed, [1]);
}

#[test]
fn a_password_is_asked_for() {
    let mut world = World::with(Mode::Flat, |config| config.password = Some("secret".into()));
    world.connect(1);
    check(
        &mut world,
        1,
        r"
        > GET k
        -NOAUTH Authentication required.
        > PING
        -NOAUTH Authentication required.
        > AUTH wrong
        -WRONGPASS invalid username-password pair or user is disabled.
        > AUTH default secre
        -WRONGPASS invalid username-password pair or user is disabled.
        > AUTH nobody secret
        -WRONGPASS invalid username-password pair or user is disabled.
        > AUTH secret
        +OK
        > GET k
        $-1
        > RESET
        +RESET
        > GET k
        -NOAUTH Authentication required.
        > AUTH default secret
        +OK
        > PING
        +PONG
        ",
    );
    world.connect(2);
    let refused = world.ask(2, "HELLO 3");
    assert!(
        refused.starts_with("-NOAUTH HELLO must be called"),
        "{refused}"
    );
    let refused = world.ask(2, "HELLO 3 AUTH default nonsense");
    assert!(refused.starts_with("-WRONGPASS"), "{refused}");
    assert!(
        world
            .ask(2, "HELLO 3 AUTH default secret")
            .starts_with("%7\n")
    );
    assert_eq!(world.ask(2, "GET k"), "_\n");
    let mut open = flat();
    assert!(
        open.ask(1, "AUTH secret")
            .starts_with("-ERR AUTH <password> called without")
    );
}

/// The scripts that lock libraries send, by text and by digest.
#[test]
fn lock_scripts_are_recognised() {
    let mut world = flat();
    let unlock = r#"if\sredis.call("get",KEYS[1])\s==\sARGV[1]\sthen\sreturn\sredis.call("del",KEYS[1])\selse\sreturn\s0\send"#;
    check(
        &mut world,
        1,
        &r"
        > SET lock me NX PX 5000
        +OK
        > EVAL UNLOCK 1 lock you
        :0
        > EVALSHA b70c2384248f88e6b75b9f89241a180f856ad852 1 lock me
        :1
        > GET lock
        $-1
        > SCRIPT EXISTS b70c2384248f88e6b75b9f89241a180f856ad852 0000000000000000000000000000000000000000
        *2
        :1
        :0
        > EVALSHA 0000000000000000000000000000000000000000 1 lock me
        -NOSCRIPT No matching script. Please use EVAL.
        > SET lock me PX 5000
        +OK
        > EVALSHA a4e8783852e6b949f9ef3a97212805108459a890 1 lock me 60000 1
        :1
        > TTL lock
        :60
        > EVALSHA a4e8783852e6b949f9ef3a97212805108459a890 1 lock you 60000 1
        :0
        "
        .replace("UNLOCK", unlock),
    );
}

/// Two steps of a script, then another command: it must not overtake the second step.
#[test]
fn a_script_of_two_steps_is_not_overtaken() {
    let mut world = flat();
    assert_eq!(world.ask(1, "SET lock me PX 5000"), "+OK\n");
    let mut bytes =
        world::request("EVALSHA a4e8783852e6b949f9ef3a97212805108459a890 1 lock me 60000 1");
    bytes.extend(world::request("DEL lock"));
    bytes.extend(world::request("GET lock"));
    world.send(1, &bytes);
    world.run(5);
    assert_eq!(world.take(1), ":1\n:1\n$-1\n");
}

#[test]
fn info_tells_what_clients_look_for() {
    let mut world = flat();
    world.ask(1, "SET bar 1 EX 60");
    world.ask(1, "SET foo 1");
    let info = world.ask(1, "INFO");
    for line in [
        "redis_version:7.4.0",
        "redis_mode:standalone",
        "process_id:4711",
        "connected_clients:1",
        "loading:0",
        "role:master",
        "cluster_enabled:0",
        "total_connections_received:1",
        "db0:keys=2,expires=1,avg_ttl=0",
        "used_memory:2000",
        "maxmemory:8000",
        "maxmemory_policy:noeviction",
        "expired_keys:10",
        "evicted_keys:14",
    ] {
        assert!(
            info.lines().any(|l| l == line),
            "{line} is missing in\n{info}"
        );
    }
    assert!(info.starts_with('$'), "a bulk string in RESP2");
    world.ask(1, "HELLO 3");
    let info = world.ask(1, "info server");
    assert!(
        info.starts_with('=') && info.contains("\ntxt:# Server\n"),
        "{info}"
    );
    assert!(!info.contains("loading"));
}

/// Clients such as ioredis wait on it; it must be answered while nothing else is.
#[test]
fn info_tells_of_a_recovery_without_waiting_for_it() {
    let mut world = World::starting(Mode::Flat, |_| {});
    world.connect(1);
    assert!(
        world
            .ask(1, "INFO")
            .contains("\nloading:1\nloading_eta_seconds:1\n")
    );
    assert!(!holdfast_cluster::Node::ready(&world.gateway));
    world.deal(&[(0, 8191, A, true), (8192, 16383, B, true)]);
    assert!(world.ask(1, "INFO persistence").contains("\nloading:0\n"));
    assert!(holdfast_cluster::Node::ready(&world.gateway));
    world.shards.remove(&B);
    world.deal(&[(0, 8191, A, true), (8192, 16383, B, false)]);
    assert!(world.ask(1, "INFO").contains("\nloading:1\n"));
}

#[test]
fn flushing_can_be_forbidden() {
    let mut world = World::with(Mode::Flat, |config| config.allow_flush = false);
    world.connect(1);
    world.ask(1, "SET k v");
    assert!(
        world
            .ask(1, "FLUSHALL")
            .starts_with("-ERR FLUSHDB and FLUSHALL are not allowed")
    );
    assert_eq!(world.ask(1, "DBSIZE"), ":1\n");
    let mut world = flat();
    world.ask(1, "SET k v");
    world.ask(1, "SELECT 3");
    world.ask(1, "SET k v");
    assert_eq!(world.ask(1, "FLUSHALL ASYNC"), "+OK\n");
    assert_eq!(world.ask(1, "DBSIZE"), ":0\n");
    world.ask(1, "SELECT 0");
    assert_eq!(world.ask(1, "DBSIZE"), ":0\n");
}

#[test]
fn the_cluster_port_redirects_to_owners() {
    let mut world = World::new(Mode::Cluster { shard: A });
    world.connect(1);
    check(
        &mut world,
        1,
        r"
        > SET bar 1
        +OK
        > GET foo
        -MOVED 12182 127.0.0.1:6382
        > MGET bar foo
        *2
        $1
        1
        $-1
        > MGET foo bar
        -MOVED 12182 127.0.0.1:6382
        > DBSIZE
        :1
        > CLUSTER MYID
        $40
        000000000000000000000000000000000000000a
        > CLUSTER SLOTS
        *2
        *3
        :0
        :8191
        *4
        $9
        127.0.0.1
        :6381
        $40
        000000000000000000000000000000000000000a
        *0
        *3
        :8192
        :16383
        *4
        $9
        127.0.0.1
        :6382
        $40
        000000000000000000000000000000000000000b
        *0
        ",
    );
    let nodes = world.ask(1, "CLUSTER NODES");
    let mine = "000000000000000000000000000000000000000a 127.0.0.1:6381@16381 myself,master - 0 0 1 connected 0-8191";
    assert!(nodes.lines().any(|line| line == mine), "{nodes}");
    assert!(
        world
            .ask(1, "CLUSTER INFO")
            .contains("cluster_state:ok\ncluster_slots_assigned:16384\n")
    );
    assert!(
        world
            .ask(1, "CLUSTER SHARDS")
            .starts_with("*2\n*4\n$5\nslots\n*2\n:0\n:8191\n")
    );
    assert!(world.ask(1, "INFO").contains("\ncluster_enabled:1\n"));
    assert!(
        world
            .ask(1, "HELLO 3")
            .contains("\n$4\nmode\n$7\ncluster\n")
    );
    assert!(
        world.ask(1, "CLUSTER SLOTS").contains("\n%0\n"),
        "metadata is a map in RESP3"
    );
}

#[test]
fn the_cluster_port_follows_the_view_and_waits_out_a_recovery() {
    let mut world = World::new(Mode::Cluster { shard: A });
    world.connect(1);
    assert!(world.ask(1, "CLUSTER SLOTS").contains(":8191\n"));
    world.shards.remove(&B);
    world.deal(&[(0, 8191, A, true), (8192, 16383, B, false)]);
    world.send(1, b"GET foo\r\n");
    world.run(1_000);
    assert_eq!(world.take(1), "");
    world.deal(&[(0, 16383, A, true)]);
    world.run(100);
    assert_eq!(world.take(1), "$-1\n");
    let slots = world.ask(1, "CLUSTER SLOTS");
    assert!(slots.starts_with("*1\n*3\n:0\n:16383\n"), "{slots}");
    world.deal(&[(0, 8191, A, true), (8192, 16383, B, false)]);
    world.send(1, b"SET foo 1\r\n");
    world.run(2_100);
    assert_eq!(world.take(1), "-CLUSTERDOWN Hash slot not served\n");
    assert!(world.ask(1, "CLUSTER INFO").starts_with('$'));
}
