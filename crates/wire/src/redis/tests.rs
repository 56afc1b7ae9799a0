//! Requests by what they become, replies by their bytes.

use bytes::{Bytes, BytesMut};
use holdfast_format::{ClusterMs, KeyHash, Namespace, Version};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::command::*;
use crate::resp::{Args, Protocol};

const NAMESPACE: Namespace = Namespace(3);

/// Parses a request given as words.
fn asked(words: &str) -> Result<RespRequest, RespError> {
    let parts: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    parse(&Args::of(&parts), NAMESPACE)
}

/// The request becomes one command on key `k`.
#[track_caller]
fn check(words: &str, op: Op, shape: ReplyShape) {
    let command = Command {
        namespace: NAMESPACE,
        key: Bytes::from_static(b"k"),
        op,
    };
    assert_eq!(
        asked(words),
        Ok(RespRequest::One { command, shape }),
        "{words}"
    );
    let shouted = words
        .to_ascii_uppercase()
        .replace(" K", " k")
        .replace(" V", " v");
    let shouted = shouted.replace("kEEPTTL", "KEEPTTL");
    assert_eq!(asked(&shouted), asked(words), "{shouted}");
}

/// The request is refused with this line.
#[track_caller]
fn refused(words: &str, line: &str) {
    let error = asked(words).expect_err("it is refused");
    assert_eq!(error.to_string(), line, "{words}");
}

fn put(condition: Condition, expiry: ExpiryChange, return_old: bool) -> Op {
    Op::Put {
        value: Bytes::from_static(b"v"),
        condition,
        expiry,
        return_old,
    }
}

fn touch(condition: TouchCondition, expiry: ExpiryChange) -> Op {
    Op::Touch {
        condition,
        expiry,
        return_value: false,
    }
}

const fn seconds(seconds: i64) -> ExpiryChange {
    ExpiryChange::In { ms: seconds * 1000 }
}

const fn at(ms: u64) -> ExpiryChange {
    ExpiryChange::At {
        deadline: ClusterMs(ms),
    }
}

#[test]
fn set_takes_its_options_in_any_order_and_case() {
    use Condition::{Absent, Always, Present};
    use ReplyShape::{OkOrNull, OldValue};
    let clear = ExpiryChange::Clear;
    check("set k v", put(Always, clear, false), OkOrNull);
    check("set k v ex 60", put(Always, seconds(60), false), OkOrNull);
    check(
        "set k v nx ex 60",
        put(Absent, seconds(60), false),
        OkOrNull,
    );
    check(
        "set k v ex 60 nx",
        put(Absent, seconds(60), false),
        OkOrNull,
    );
    check(
        "set k v px 1500 xx",
        put(Present, ExpiryChange::In { ms: 1500 }, false),
        OkOrNull,
    );
    check(
        "set k v exat 1800000000",
        put(Always, at(1_800_000_000_000), false),
        OkOrNull,
    );
    check(
        "set k v pxat 1800000000001",
        put(Always, at(1_800_000_000_001), false),
        OkOrNull,
    );
    check(
        "set k v keepttl",
        put(Always, ExpiryChange::Keep, false),
        OkOrNull,
    );
    check("set k v get", put(Always, clear, true), OldValue);
    check(
        "set k v nx get px 1",
        put(Absent, ExpiryChange::In { ms: 1 }, true),
        OldValue,
    );
    check(
        "set k v ex 1 ex 2",
        put(Always, seconds(2), false),
        OkOrNull,
    );
}

#[test]
fn set_is_refused_as_by_redis() {
    for words in [
        "set k v ex",
        "set k v nx xx",
        "set k v xx nx",
        "set k v ex 1 px 1",
        "set k v keepttl ex 1",
        "set k v persist",
        "set k v nonsense",
    ] {
        refused(words, "ERR syntax error");
    }
    refused(
        "set k v ex 1.5",
        "ERR value is not an integer or out of range",
    );
    refused(
        "set k v ex 01",
        "ERR value is not an integer or out of range",
    );
    for words in [
        "set k v ex 0",
        "set k v px -1",
        "set k v exat 0",
        "set k v ex 9223372036854775",
        "set k v px 9223372036854775807",
    ] {
        refused(words, "ERR invalid expire time in 'set' command");
    }
    refused("SET k", "ERR wrong number of arguments for 'set' command");
}

#[test]
fn strings_and_their_relatives() {
    use Condition::{Absent, Always};
    check("get k", Op::Get, ReplyShape::Value);
    check("strlen k", Op::Get, ReplyShape::Length);
    check(
        "setex k 10 v",
        put(Always, seconds(10), false),
        ReplyShape::Ok,
    );
    check(
        "psetex k 10 v",
        put(Always, ExpiryChange::In { ms: 10 }, false),
        ReplyShape::Ok,
    );
    check(
        "setnx k v",
        put(Absent, ExpiryChange::Clear, false),
        ReplyShape::Flag,
    );
    check(
        "getset k v",
        put(Always, ExpiryChange::Clear, true),
        ReplyShape::OldValue,
    );
    check(
        "getdel k",
        Op::Delete {
            condition: Always,
            return_old: true,
        },
        ReplyShape::OldValue,
    );
    let getex = |expiry| Op::Touch {
        condition: TouchCondition::Always,
        expiry,
        return_value: true,
    };
    check("getex k", Op::Get, ReplyShape::Value);
    check("getex k ex 5", getex(seconds(5)), ReplyShape::Value);
    check("getex k pxat 5", getex(at(5)), ReplyShape::Value);
    check(
        "getex k persist",
        getex(ExpiryChange::Clear),
        ReplyShape::Value,
    );
    let number = ReplyShape::Number;
    check("incr k", Op::Add { by: 1 }, number);
    check("decr k", Op::Add { by: -1 }, number);
    check("incrby k -5", Op::Add { by: -5 }, number);
    check("decrby k -5", Op::Add { by: 5 }, number);
    let value = Bytes::from_static(b"v");
    check("append k v", Op::Append { value }, number);
    let range = ReplyShape::Range { from: -2, to: 7 };
    check("getrange k -2 7", Op::Get, range);
    refused("getex k persist ex 5", "ERR syntax error");
    refused("getex k keepttl", "ERR syntax error");
    refused("getex k ex 0", "ERR invalid expire time in 'getex' command");
    refused("setex k 0 v", "ERR invalid expire time in 'setex' command");
    refused(
        "psetex k x v",
        "ERR value is not an integer or out of range",
    );
    refused("get k k", "ERR wrong number of arguments for 'get' command");
}

#[test]
fn keys_and_their_times() {
    use TouchCondition::*;
    let flag = ReplyShape::Flag;
    check("expire k 5", touch(Always, seconds(5)), flag);
    check(
        "pexpire k 5",
        touch(Always, ExpiryChange::In { ms: 5 }),
        flag,
    );
    check("expireat k 5", touch(Always, at(5000)), flag);
    check("pexpireat k 5", touch(Always, at(5)), flag);
    check("expire k -1", touch(Always, seconds(-1)), flag);
    check("expireat k -1", touch(Always, at(0)), flag);
    check("expire k 5 nx", touch(NoDeadline, seconds(5)), flag);
    check("expire k 5 xx", touch(HasDeadline, seconds(5)), flag);
    check("expire k 5 gt", touch(Later, seconds(5)), flag);
    check("expire k 5 gt xx", touch(Later, seconds(5)), flag);
    check("expire k 5 lt", touch(Earlier, seconds(5)), flag);
    check("persist k", touch(HasDeadline, ExpiryChange::Clear), flag);
    check("touch k", touch(Always, ExpiryChange::Slide), flag);
    check("ttl k", Op::Stat, ReplyShape::TtlSeconds);
    check("pttl k", Op::Stat, ReplyShape::TtlMs);
    check("expiretime k", Op::Stat, ReplyShape::DeadlineSeconds);
    check("pexpiretime k", Op::Stat, ReplyShape::DeadlineMs);
    check("type k", Op::Stat, ReplyShape::Type);
    check("exists k", Op::Stat, flag);
    check(
        "unlink k",
        Op::Delete {
            condition: Condition::Always,
            return_old: false,
        },
        flag,
    );
    refused("expire k x", "ERR value is not an integer or out of range");
    refused(
        "expire k 9223372036854776",
        "ERR invalid expire time in 'expire' command",
    );
    refused(
        "pexpire k 9223372036854775807",
        "ERR invalid expire time in 'pexpire' command",
    );
    refused("expire k 5 zz", "ERR Unsupported option zz");
    refused(
        "expire k 5 nx gt",
        "ERR NX and XX, GT or LT options at the same time are not compatible",
    );
    refused(
        "expire k 5 lt gt",
        "ERR GT and LT options at the same time are not compatible",
    );
}

#[test]
fn many_keys_become_one_command_each() {
    let Ok(RespRequest::Many(many)) = asked("mget a b a") else {
        panic!("several keys")
    };
    assert_eq!((many.keys.len(), many.join), (3, Join::Values));
    assert_eq!(
        many.command(1),
        Command {
            namespace: NAMESPACE,
            key: Bytes::from_static(b"b"),
            op: Op::Get
        }
    );
    let Ok(RespRequest::Many(many)) = asked("del a b") else {
        panic!("several keys")
    };
    assert_eq!(many.join, Join::Count);
    // One key asked for by MGET is still answered with an array.
    assert!(matches!(asked("mget a"), Ok(RespRequest::Many(_))));
}

#[test]
fn scans_go_on_where_they_stopped() {
    let Ok(RespRequest::Scan(scan)) = asked("scan 0") else {
        panic!("a scan")
    };
    assert_eq!((scan.from, scan.limit), (KeyHash(0), 10));
    assert!(scan.matches(b"anything"));
    let Ok(RespRequest::Scan(scan)) = asked("SCAN 7 TYPE string COUNT 100 MATCH sess:*") else {
        panic!("a scan")
    };
    assert_eq!(scan.limit, 100);
    assert!(scan.matches(b"sess:1") && !scan.matches(b"cart:1"));
    let Ok(RespRequest::Scan(scan)) = asked("scan 0 type hash") else {
        panic!("a scan")
    };
    assert!(!scan.matches(b"sess:1"));

    assert_eq!(Scan::cursor(None), 0);
    let cursor = Scan::cursor(Some(KeyHash(u64::MAX)));
    assert!(cursor < 1 << 53, "JavaScript must be able to hold it");
    let Ok(RespRequest::Scan(again)) = asked(&format!("scan {cursor}")) else {
        panic!("a scan")
    };
    assert!(
        again.from.0 > u64::MAX - (1 << CURSOR_SHIFT),
        "rounded down, and not far"
    );
    assert!(!again.cursor_advances(Some(KeyHash(u64::MAX))));
    assert!(again.cursor_advances(None));

    refused("scan x", "ERR invalid cursor");
    refused("scan 0 count 0", "ERR syntax error");
    refused(
        "scan 0 count x",
        "ERR value is not an integer or out of range",
    );
    refused("scan 0 match", "ERR syntax error");
    refused("scan 0 nonsense 1", "ERR syntax error");
}

#[test]
fn connections_are_asked_as_redis_is() {
    assert_eq!(
        asked("hello 3 auth default secret setname web-1"),
        Ok(RespRequest::Hello(Hello {
            protocol: Some(Protocol::Resp3),
            auth: Some((
                Bytes::from_static(b"default"),
                Bytes::from_static(b"secret")
            )),
            name: Some(Bytes::from_static(b"web-1")),
        }))
    );
    refused("hello 4", "NOPROTO unsupported protocol version");
    refused(
        "hello x",
        "ERR Protocol version is not an integer or out of range",
    );
    refused("hello 3 auth me", "ERR Syntax error in HELLO option 'auth'");
    assert_eq!(
        asked("auth secret"),
        Ok(RespRequest::Auth {
            user: None,
            password: Bytes::from_static(b"secret")
        })
    );
    refused("auth a b c", "ERR syntax error");
    assert_eq!(
        asked("select 15"),
        Ok(RespRequest::Select {
            namespace: Namespace(15)
        })
    );
    refused("select 16", "ERR DB index is out of range");
    refused("select -1", "ERR DB index is out of range");
    refused(
        "ping a b",
        "ERR wrong number of arguments for 'ping' command",
    );
    assert_eq!(
        asked("client setinfo LIB-NAME redis-py"),
        Ok(RespRequest::ClientSetInfo {
            attribute: ClientAttribute::LibName,
            value: Bytes::from_static(b"redis-py"),
        })
    );
    refused(
        "client setinfo colour red",
        "ERR Unrecognized option 'colour'",
    );
    refused(
        "client id x",
        "ERR wrong number of arguments for 'client|id' command",
    );
    refused(
        "client nonsense",
        "ERR unknown subcommand 'nonsense'. Try CLIENT HELP.",
    );
    let filter = ClientFilter {
        ids: vec![3, 4],
        ..ClientFilter::default()
    };
    assert_eq!(
        asked("client list type normal id 3 4"),
        Ok(RespRequest::ClientList { filter })
    );
    let filter = ClientFilter {
        address: Some(Bytes::from_static(b"1.2.3.4:5")),
        age_s: Some(9),
        ..ClientFilter::default()
    };
    assert_eq!(
        asked("client kill addr 1.2.3.4:5 skipme no user default maxage 9"),
        Ok(RespRequest::ClientKill {
            filter,
            counted: true
        })
    );
    refused("client kill id 0", "ERR client-id should be greater than 0");
    refused("client kill id 1 addr", "ERR syntax error");
    refused("client kill type horse", "ERR Unknown client type 'horse'");
    refused("client kill user ann id 1", "ERR No such user 'ann'");
    assert_eq!(
        asked("client maint_notifications on moving-endpoint-type external-ip"),
        Ok(RespRequest::Fixed(FixedReply::Ok))
    );
    assert_eq!(
        asked("cluster slots"),
        Ok(RespRequest::Cluster(Cluster::Slots))
    );
    refused(
        "cluster slots x",
        "ERR wrong number of arguments for 'cluster|slots' command",
    );
    refused("wait 1 -1", "ERR timeout is negative");
    assert!(asked("quit").is_ok_and(|request| request.allowed_before_auth()));
    assert!(asked("ping").is_ok_and(|request| !request.allowed_before_auth()));
}

#[test]
fn unknown_commands_are_quoted_back_in_part() {
    refused(
        "sentinel masters",
        "ERR unknown command 'sentinel', with args beginning with: 'masters' ",
    );
    let error = asked(&format!("nonsense {}", "x".repeat(1000))).expect_err("it is unknown");
    assert!(error.to_string().len() < 400);
    // Longer than any name, and not even text.
    let error = parse(&Args::of(&[&[0xff; 300]]), NAMESPACE).expect_err("it is unknown");
    assert!(error.to_string().starts_with("ERR unknown command"));
}

#[test]
fn info_tells_the_sections_asked_for() {
    let sections = |words: &str| match asked(words) {
        Ok(RespRequest::Info(sections)) => sections,
        other => panic!("{other:?}"),
    };
    assert!(sections("info").wants("server") && !sections("info").wants("commandstats"));
    assert!(sections("INFO Server").wants("server") && !sections("info server").wants("memory"));
    assert!(sections("info all").wants("commandstats"));
}

/// Runs a script on key `k` with these arguments.
fn run(text: &str, arguments: &[&str]) -> Result<RespRequest, RespError> {
    let count = [b"1".as_slice(), b"k"];
    let mut parts = vec![b"eval".as_slice(), text.as_bytes()];
    parts.extend(count);
    parts.extend(arguments.iter().map(|argument| argument.as_bytes()));
    match parse(&Args::of(&parts), NAMESPACE)? {
        RespRequest::Eval(call) => Scripts::new().resolve(call),
        other => panic!("{other:?}"),
    }
}

const UNLOCK: &str = "if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"del\",KEYS[1]) else return 0 end";

fn value_is(token: &'static str) -> TouchCondition {
    TouchCondition::ValueIs(Bytes::from_static(token.as_bytes()))
}

fn one(op: Op, shape: ReplyShape) -> Result<RespRequest, RespError> {
    let command = Command {
        namespace: NAMESPACE,
        key: Bytes::from_static(b"k"),
        op,
    };
    Ok(RespRequest::One { command, shape })
}

#[test]
fn lock_scripts_are_recognised_however_they_are_spelled() {
    let unlock = one(
        Op::Delete {
            condition: Condition::ValueIs(Bytes::from_static(b"token")),
            return_old: false,
        },
        ReplyShape::Flag,
    );
    let spaced = UNLOCK
        .replace(' ', "\r\n\t ")
        .replace("else", "else -- not ours\n");
    for text in [
        UNLOCK,
        &UNLOCK.replace('"', "'"),
        &spaced,
        &UNLOCK.replace("get", "GET"),
    ] {
        assert_eq!(run(text, &["token"]), unlock, "{text}");
    }
    for text in [
        &UNLOCK.replace("ARGV[1]", "ARGV[2]"),
        &UNLOCK.replace("return 0", "return 1"),
        "return 1",
        "--[[ long ]] return 1",
        "return 'unfinished",
    ] {
        assert_eq!(
            run(text, &["token"]),
            Err(RespError::UnknownScript),
            "{text}"
        );
    }
    assert_eq!(run(UNLOCK, &[]), Err(RespError::ScriptArguments));
}

#[test]
fn well_known_scripts_go_by_their_sha1() {
    let mut scripts = Scripts::new();
    for sha1 in [
        "b70c2384248f88e6b75b9f89241a180f856ad852",
        "647c65a442733a1aa440f99908d249d13b4d6c4a",
        "c3f8721cbb97f72bc19e972846bd7aaf91901658",
        "a4e8783852e6b949f9ef3a97212805108459a890",
        "1cac51482acf5858da00f6d685d68f886cd6b6b2",
        "A08C9C69B7C07AE2485190873B90D128A23E502D",
    ] {
        assert!(scripts.knows(sha1.as_bytes()), "{sha1}");
    }
    let spelled = UNLOCK.replace('"', "'");
    let sha1 = sha1_hex(spelled.as_bytes());
    let call = |sha1: &str| EvalCall {
        namespace: NAMESPACE,
        script: ScriptRef::Sha1(Bytes::copy_from_slice(sha1.as_bytes())),
        keys: vec![Bytes::from_static(b"k")],
        args: vec![Bytes::from_static(b"token")],
    };
    assert_eq!(scripts.resolve(call(&sha1)), Err(RespError::NoScript));
    assert_eq!(scripts.load(spelled.as_bytes()), Ok(sha1.clone()));
    assert!(scripts.resolve(call(&sha1)).is_ok());
    scripts.clear();
    assert_eq!(scripts.resolve(call(&sha1)), Err(RespError::NoScript));
    assert_eq!(scripts.resolve(call("nonsense")), Err(RespError::NoScript));
    assert_eq!(scripts.load(b"return 1"), Err(RespError::UnknownScript));
}

#[test]
fn other_lock_scripts_become_commands() {
    let refresh = "if redis.call('get',KEYS[1]) == ARGV[1] then if tonumber(ARGV[2]) > 0 then return redis.call('expire',KEYS[1],ARGV[2]) end redis.call('persist',KEYS[1]) return 1 else return 0 end";
    let flag = ReplyShape::Flag;
    assert_eq!(
        run(refresh, &["token", "10"]),
        one(touch(value_is("token"), seconds(10)), flag)
    );
    assert_eq!(
        run(refresh, &["token", "0"]),
        one(touch(value_is("token"), ExpiryChange::Clear), flag)
    );
    let add =
        "return redis.call('exists',KEYS[1])<1 and redis.call('setex',KEYS[1],ARGV[2],ARGV[1])";
    assert_eq!(
        run(add, &["v", "10"]),
        one(
            put(Condition::Absent, seconds(10), false),
            ReplyShape::OkOrNull
        )
    );
    assert_eq!(
        run(add, &["v", "0"]),
        Err(RespError::InvalidExpire { command: "setex" })
    );
    assert_eq!(run(add, &["v", "x"]), Err(RespError::NotAnInteger));
}

#[test]
fn a_lock_is_extended_only_by_its_holder() {
    let extend = "local token = redis.call('get', KEYS[1]) if not token or token ~= ARGV[1] then return 0 end local expiration = redis.call('pttl', KEYS[1]) if not expiration then expiration = 0 end if expiration < 0 then return 0 end local newttl = ARGV[2] if ARGV[3] == \"0\" then newttl = ARGV[2] + expiration end redis.call('pexpire', KEYS[1], newttl) return 1";
    let next = |replace: &str, outcome: &Outcome| match run(extend, &["token", "500", replace]) {
        Ok(RespRequest::ReadThen { read, then }) => {
            assert_eq!(read.op, Op::Get);
            then.next(outcome)
        }
        other => panic!("{other:?}"),
    };
    let held = |value: &'static str, deadline: Option<u64>| Outcome::Value {
        value: Bytes::from_static(value.as_bytes()),
        meta: Meta {
            deadline: deadline.map(ClusterMs),
            ..Meta::default()
        },
    };
    let then = |expiry| Next::Ask {
        command: Command {
            namespace: NAMESPACE,
            key: Bytes::from_static(b"k"),
            op: touch(value_is("token"), expiry),
        },
        shape: ReplyShape::Flag,
    };
    assert_eq!(next("0", &held("token", Some(1000))), then(at(1500)));
    assert_eq!(
        next("1", &held("token", Some(1000))),
        then(ExpiryChange::In { ms: 500 })
    );
    assert_eq!(next("0", &held("token", None)), Next::Integer(0));
    assert_eq!(next("0", &held("other", Some(1000))), Next::Integer(0));
    assert_eq!(
        next(
            "0",
            &Outcome::Absent {
                version: Version(1)
            }
        ),
        Next::Integer(0)
    );
    assert_eq!(
        next("0", &Outcome::Failed(Failure::Busy)),
        Next::Failed(Failure::Busy)
    );
}

/// EXPIRE … XX LT touches only a session that has a deadline, unlike LT alone.
#[test]
fn xx_and_lt_together_look_first() {
    let Ok(RespRequest::ReadThen { read, then }) = asked("expire k 5 xx lt") else {
        panic!("two steps")
    };
    assert_eq!(read.op, Op::Stat);
    let stat = |deadline: Option<u64>| Outcome::Value {
        value: Bytes::new(),
        meta: Meta {
            deadline: deadline.map(ClusterMs),
            ..Meta::default()
        },
    };
    assert_eq!(then.clone().next(&stat(None)), Next::Integer(0));
    let Next::Ask { command, .. } = then.next(&stat(Some(9))) else {
        panic!("it goes on")
    };
    assert_eq!(command.op, touch(TouchCondition::Earlier, seconds(5)));
}

/// What a shape writes for an outcome in RESP3.
fn told(shape: ReplyShape, outcome: &Outcome) -> String {
    let mut out = BytesMut::new();
    shape.write(outcome, &mut ReplyWriter::new(&mut out, Protocol::Resp3));
    String::from_utf8(out.to_vec()).expect("test values are text")
}

#[test]
fn outcomes_become_the_replies_of_redis() {
    use ReplyShape::*;
    let meta = Meta {
        version: Version(9),
        deadline: Some(ClusterMs(1_800_000_000_499)),
        remaining_ms: Some(1500),
        ..Meta::default()
    };
    let value = Outcome::Value {
        value: Bytes::from_static(b"hello"),
        meta,
    };
    let forever = Outcome::Value {
        value: Bytes::new(),
        meta: Meta {
            version: Version(9),
            ..Meta::default()
        },
    };
    let absent = Outcome::Absent {
        version: Version(9),
    };
    let done = Outcome::Done { meta, old: None };
    let replaced = Outcome::Done {
        meta,
        old: Some(Bytes::from_static(b"old")),
    };
    let refused = Outcome::Refused {
        version: Version(9),
        current: Some(meta),
        old: None,
    };

    assert_eq!(told(Value, &value), "$5\r\nhello\r\n");
    assert_eq!(told(Value, &absent), "_\r\n");
    assert_eq!(told(Ok, &done), "+OK\r\n");
    assert_eq!(told(OkOrNull, &done), "+OK\r\n");
    assert_eq!(told(OkOrNull, &refused), "_\r\n");
    assert_eq!(told(OldValue, &replaced), "$3\r\nold\r\n");
    assert_eq!(told(OldValue, &done), "_\r\n");
    assert_eq!(told(OldValue, &absent), "_\r\n");
    for (outcome, flag) in [(&value, 1), (&done, 1), (&absent, 0), (&refused, 0)] {
        assert_eq!(told(Flag, outcome), format!(":{flag}\r\n"));
    }
    assert_eq!(told(Length, &value), ":5\r\n");
    assert_eq!(told(Length, &absent), ":0\r\n");
    assert_eq!(told(Type, &value), "+string\r\n");
    assert_eq!(told(Type, &absent), "+none\r\n");
    assert_eq!(told(TtlSeconds, &value), ":2\r\n");
    assert_eq!(told(TtlMs, &value), ":1500\r\n");
    assert_eq!(told(DeadlineSeconds, &value), ":1800000000\r\n");
    assert_eq!(told(DeadlineMs, &value), ":1800000000499\r\n");
    for shape in [TtlSeconds, TtlMs, DeadlineSeconds, DeadlineMs] {
        assert_eq!(told(shape, &forever), ":-1\r\n");
        assert_eq!(told(shape, &absent), ":-2\r\n");
    }
    // A member that answers nonsense costs an error, not the gateway.
    assert!(told(Value, &Outcome::Flushed).starts_with("-ERR "));
    assert!(told(Flag, &Outcome::Flushed).starts_with("-ERR "));
    let failed = |failure| told(Value, &Outcome::Failed(failure));
    assert_eq!(
        failed(Failure::OutOfMemory),
        "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    );
    assert_eq!(
        failed(Failure::NamespaceFull {
            namespace: holdfast_format::Namespace(3),
            quota: crate::Quota::Sessions,
            limit: 1_000,
        }),
        "-OOM namespace 3 is at its limit of 1,000 sessions: delete sessions, let some expire, or raise it \
         with `holdfast ctl namespace set 3 --sessions <more>`\r\n"
    );
    assert!(failed(Failure::OutcomeUnknown).starts_with("-ERR outcome unknown"));
}

#[test]
fn joined_outcomes_count_or_list_and_one_failure_fails_all() {
    let told = |join: Join, outcomes: &[Outcome]| {
        let mut out = BytesMut::new();
        join.write(outcomes, &mut ReplyWriter::new(&mut out, Protocol::Resp2));
        String::from_utf8(out.to_vec()).expect("test values are text")
    };
    let value = Outcome::Value {
        value: Bytes::from_static(b"a"),
        meta: Meta::default(),
    };
    let absent = Outcome::Absent {
        version: Version(1),
    };
    let pair = [value.clone(), absent.clone()];
    assert_eq!(told(Join::Values, &pair), "*2\r\n$1\r\na\r\n$-1\r\n");
    assert_eq!(told(Join::Count, &pair), ":1\r\n");
    let failed = [value, Outcome::Failed(Failure::Unreachable)];
    for join in [Join::Values, Join::Count] {
        assert!(told(join, &failed).starts_with("-ERR no owner"));
    }
}

#[test]
fn every_command_is_found_and_told() {
    let mut out = BytesMut::new();
    CommandQuery::List.write(&mut ReplyWriter::new(&mut out, Protocol::Resp2));
    let text = String::from_utf8(out.to_vec()).expect("names are ASCII");
    let names: Vec<&str> = text
        .split("\r\n")
        .filter(|line| line.starts_with(char::is_lowercase))
        .collect();
    assert_eq!(names.len(), COMMAND_COUNT);
    for name in names {
        let row = lookup(name.to_ascii_uppercase().as_bytes()).expect("the table is sorted");
        assert_eq!(row.name, name);
        let (first, last, step) = row.keys;
        assert_eq!(first == 0, step == 0, "{name}");
        assert_eq!(first == 0, last == 0, "{name}");
    }
    assert!(lookup(b"").is_none() && lookup(b"nonsense").is_none());
}

#[test]
fn command_rows_are_what_cluster_clients_read() {
    let mut out = BytesMut::new();
    let Ok(RespRequest::Command(query)) = asked("command info GET mget nonsense") else {
        panic!("a query")
    };
    query.write(&mut ReplyWriter::new(&mut out, Protocol::Resp3));
    let text = String::from_utf8(out.to_vec()).expect("rows are ASCII");
    let get = "*3\r\n*10\r\n$3\r\nget\r\n:2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n";
    assert!(text.starts_with(get), "{text}");
    assert!(text.contains("mget\r\n:-2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:-1\r\n:1\r\n"));
    assert!(text.ends_with("_\r\n"));
    let keys = |words: &str| match asked(words)? {
        RespRequest::Command(CommandQuery::GetKeys { keys }) => Ok(keys),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        keys("command getkeys mget a b"),
        Ok(vec!["a".into(), "b".into()])
    );
    assert_eq!(keys("command getkeys eval x 1 a b"), Ok(vec!["a".into()]));
    assert_eq!(
        keys("command getkeys eval x 9 a"),
        Err(RespError::InvalidArgumentCount)
    );
    assert_eq!(keys("command getkeys ping"), Err(RespError::NoKeyArguments));
    assert_eq!(
        keys("command getkeys nonsense"),
        Err(RespError::InvalidCommand)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_arguments_make_the_parser_panic(
        name in "(set|get|getex|expire|scan|eval|script|client|hello|command|cluster|config|wait|select|mget|info|slowlog|flushdb|ping)",
        arguments in vec("(get|ex|px|nx|xx|gt|lt|keepttl|match|count|type|getkeys|setinfo|load|auth|-?[0-9]{1,20}|.{0,4})", 0..6),
    ) {
        let mut parts = vec![name.as_bytes()];
        parts.extend(arguments.iter().map(String::as_bytes));
        if let Err(error) = parse(&Args::of(&parts), NAMESPACE) {
            prop_assert!(error.to_string().starts_with(char::is_uppercase));
        }
    }

    #[test]
    fn noise_is_no_script(noise in vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(Scripts::new().load(&noise), Err(RespError::UnknownScript));
    }

    /// The matcher agrees with the plain definition, which takes exponential time.
    #[test]
    fn globs_match_as_defined(pattern in "[ab*?]{0,7}", text in "[ab]{0,7}") {
        fn defined(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern, text) {
                ([], text) => text.is_empty(),
                ([b'*', rest @ ..], text) => {
                    (0..=text.len()).any(|skip| defined(rest, &text[skip..]))
                }
                ([b'?', rest @ ..], [_, text @ ..]) => defined(rest, text),
                ([p, rest @ ..], [t, text @ ..]) => p == t && defined(rest, text),
                (_, []) => false,
            }
        }
        let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
        prop_assert_eq!(glob_matches(pattern, text), defined(pattern, text));
    }
}

#[test]
fn the_management_path_is_told_from_sessions() {
    for name in [
        "GET", "get", "Set", "SET", "del", "EVAL", "evalsha", "SCAN", "keys", "DBSIZE", "FlushAll",
        "ttl",
    ] {
        assert!(is_about_sessions(name.as_bytes()), "{name}");
    }
    for name in [
        "PING", "info", "CLIENT", "auth", "HELLO", "config", "select", "COMMAND", "quit", "script",
        "", "ge",
    ] {
        assert!(!is_about_sessions(name.as_bytes()), "{name}");
    }
}
