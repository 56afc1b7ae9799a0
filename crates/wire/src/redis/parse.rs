//! RESP arguments as requests. One function per command (or family), named in the table of
//! `commands`, which has checked the number of arguments before it calls.

use bytes::Bytes;
use holdfast_format::Namespace;

use super::clients;
use super::commands::{CommandInfo, CommandQuery, lookup};
use super::expiry::{
    Alone, Counted, ExpiryOption, Unit, absolute_expiry, positive_expiry, relative_expiry,
};
use super::{
    AfterRead, ClientAttribute, Cluster, EvalCall, FixedReply, Hello, InfoSections, Join, Many,
    ReplyShape, RespError, RespRequest, Scan, ScriptRef,
};
use crate::command::{Command, Condition, ExpiryChange, Op, TouchCondition};
use crate::resp::{Args, Protocol, parse_integer};

/// Turns the arguments of one request (the name first; at least one) into a request for
/// `namespace`, the one that the connection has selected.
pub fn parse(args: &Args, namespace: Namespace) -> Result<RespRequest, RespError> {
    let command = lookup(args.get(0)).ok_or_else(|| unknown_command(args))?;
    if !command.accepts(args.len()) {
        return Err(wrong_arity(command.name));
    }
    (command.parse)(&Request {
        args,
        namespace,
        command,
    })
}

/// How many namespaces SELECT knows, as many as Redis has databases by default.
pub const NAMESPACES: u8 = 16;

/// The most keys that one SCAN asks for; COUNT is only a hint, and a step must stay short.
const SCAN_LIMIT_MAX: u32 = 10_000;
/// COUNT if not given, as in Redis.
const SCAN_LIMIT_DEFAULT: u32 = 10;

/// What the parsing functions get.
pub(super) struct Request<'a> {
    pub(super) args: &'a Args,
    namespace: Namespace,
    command: &'static CommandInfo,
}

pub(super) type Parsed = Result<RespRequest, RespError>;

impl Request<'_> {
    fn key_command(&self, op: Op) -> Command {
        Command {
            namespace: self.namespace,
            key: self.args.bytes(1),
            op,
        }
    }

    fn one(&self, op: Op, shape: ReplyShape) -> Parsed {
        Ok(RespRequest::One {
            command: self.key_command(op),
            shape,
        })
    }

    /// All arguments from `first` on.
    fn rest(&self, first: usize) -> Vec<Bytes> {
        (first..self.args.len())
            .map(|index| self.args.bytes(index))
            .collect()
    }

    fn many(&self, op: Op, join: Join) -> Parsed {
        Ok(RespRequest::Many(Many {
            namespace: self.namespace,
            op,
            keys: self.rest(1),
            join,
        }))
    }

    /// As `one` for a single key, which needs no list.
    fn one_or_many(&self, op: Op, shape: ReplyShape, join: Join) -> Parsed {
        if self.args.len() == 2 {
            self.one(op, shape)
        } else {
            self.many(op, join)
        }
    }

    pub(super) fn is(&self, index: usize, word: &str) -> bool {
        self.args.is(index, word)
    }

    pub(super) fn integer(&self, index: usize) -> Result<i64, RespError> {
        parse_integer(self.args.get(index)).ok_or(RespError::NotAnInteger)
    }

    /// Fails unless there are exactly `count` arguments, for subcommands.
    fn exactly(&self, count: usize) -> Result<(), RespError> {
        self.subcommand_takes(self.args.len() == count)
    }

    fn subcommand_takes(&self, fits: bool) -> Result<(), RespError> {
        if fits {
            return Ok(());
        }
        let sub = text(self.args.get(1)).to_ascii_lowercase();
        Err(wrong_arity(&format!("{}|{sub}", self.command.name)))
    }

    fn unknown_subcommand(&self) -> Parsed {
        Err(RespError::UnknownSubcommand {
            command: self.command.name.to_ascii_uppercase(),
            name: excerpt(self.args.get(1)),
        })
    }
}

// ---- strings ----

pub(super) fn get(r: &Request<'_>) -> Parsed {
    r.one(Op::Get, ReplyShape::Value)
}

pub(super) fn mget(r: &Request<'_>) -> Parsed {
    r.many(Op::Get, Join::Values)
}

pub(super) fn strlen(r: &Request<'_>) -> Parsed {
    r.one(Op::Get, ReplyShape::Length)
}

pub(super) fn set(r: &Request<'_>) -> Parsed {
    let mut condition = Condition::Always;
    let mut return_old = false;
    let mut expiry = ExpiryOption::None;
    let mut at = 3;
    while at < r.args.len() {
        if r.is(at, "nx") && condition != Condition::Present {
            condition = Condition::Absent;
        } else if r.is(at, "xx") && condition != Condition::Absent {
            condition = Condition::Present;
        } else if r.is(at, "get") {
            return_old = true;
        } else {
            at = expiry.take(r.args, at, Alone::KeepTtl)?;
        }
        at += 1;
    }
    let expiry = expiry.change(r.args, ExpiryChange::Clear, r.command.name)?;
    let shape = if return_old {
        ReplyShape::OldValue
    } else {
        ReplyShape::OkOrNull
    };
    r.one(
        Op::Put {
            value: r.args.bytes(2),
            condition,
            expiry,
            return_old,
        },
        shape,
    )
}

pub(super) fn setex(r: &Request<'_>) -> Parsed {
    let unit = if r.command.name == "psetex" {
        Unit::Milliseconds
    } else {
        Unit::Seconds
    };
    let expiry = positive_expiry(r.args.get(2), unit, Counted::FromNow, r.command.name)?;
    let value = r.args.bytes(3);
    r.one(
        Op::Put {
            value,
            condition: Condition::Always,
            expiry,
            return_old: false,
        },
        ReplyShape::Ok,
    )
}

pub(super) fn setnx(r: &Request<'_>) -> Parsed {
    let value = r.args.bytes(2);
    let expiry = ExpiryChange::Clear;
    r.one(
        Op::Put {
            value,
            condition: Condition::Absent,
            expiry,
            return_old: false,
        },
        ReplyShape::Flag,
    )
}

pub(super) fn getset(r: &Request<'_>) -> Parsed {
    let value = r.args.bytes(2);
    let expiry = ExpiryChange::Clear;
    r.one(
        Op::Put {
            value,
            condition: Condition::Always,
            expiry,
            return_old: true,
        },
        ReplyShape::OldValue,
    )
}

pub(super) fn getex(r: &Request<'_>) -> Parsed {
    let mut expiry = ExpiryOption::None;
    let mut at = 2;
    while at < r.args.len() {
        at = expiry.take(r.args, at, Alone::Persist)? + 1;
    }
    match expiry {
        ExpiryOption::None => r.one(Op::Get, ReplyShape::Value),
        expiry => {
            let expiry = expiry.change(r.args, ExpiryChange::Keep, r.command.name)?;
            let condition = TouchCondition::Always;
            r.one(
                Op::Touch {
                    condition,
                    expiry,
                    return_value: true,
                },
                ReplyShape::Value,
            )
        }
    }
}

pub(super) fn getdel(r: &Request<'_>) -> Parsed {
    r.one(
        Op::Delete {
            condition: Condition::Always,
            return_old: true,
        },
        ReplyShape::OldValue,
    )
}

/// INCR, DECR, INCRBY, DECRBY.
pub(super) fn add(r: &Request<'_>) -> Parsed {
    let by = match r.args.len() {
        2 => 1,
        _ => r.integer(2)?,
    };
    let by = match r.command.name.starts_with("decr") {
        true => by.checked_neg().ok_or(RespError::DecrementOverflow)?,
        false => by,
    };
    r.one(Op::Add { by }, ReplyShape::Number)
}

pub(super) fn append(r: &Request<'_>) -> Parsed {
    let value = r.args.bytes(2);
    r.one(Op::Append { value }, ReplyShape::Number)
}

pub(super) fn getrange(r: &Request<'_>) -> Parsed {
    let (from, to) = (r.integer(2)?, r.integer(3)?);
    r.one(Op::Get, ReplyShape::Range { from, to })
}

// ---- keys ----

pub(super) fn del(r: &Request<'_>) -> Parsed {
    let op = Op::Delete {
        condition: Condition::Always,
        return_old: false,
    };
    r.one_or_many(op, ReplyShape::Flag, Join::Count)
}

pub(super) fn exists(r: &Request<'_>) -> Parsed {
    r.one_or_many(Op::Stat, ReplyShape::Flag, Join::Count)
}

/// TOUCH slides a session that has an idle time; in Redis it only marks the key as used.
pub(super) fn touch(r: &Request<'_>) -> Parsed {
    let op = Op::Touch {
        condition: TouchCondition::Always,
        expiry: ExpiryChange::Slide,
        return_value: false,
    };
    r.one_or_many(op, ReplyShape::Flag, Join::Count)
}

pub(super) fn type_of(r: &Request<'_>) -> Parsed {
    r.one(Op::Stat, ReplyShape::Type)
}

pub(super) fn expire(r: &Request<'_>) -> Parsed {
    let unit = if r.command.name.starts_with('p') {
        Unit::Milliseconds
    } else {
        Unit::Seconds
    };
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for at in 3..r.args.len() {
        let flag = match () {
            () if r.is(at, "nx") => &mut nx,
            () if r.is(at, "xx") => &mut xx,
            () if r.is(at, "gt") => &mut gt,
            () if r.is(at, "lt") => &mut lt,
            () => return Err(RespError::UnsupportedOption(excerpt(r.args.get(at)))),
        };
        *flag = true;
    }
    if nx && (xx || gt || lt) {
        return Err(RespError::NxWithOthers);
    }
    if gt && lt {
        return Err(RespError::GtWithLt);
    }
    let expiry = if r.command.name.ends_with("at") {
        absolute_expiry(r.args.get(2), unit, r.command.name)?
    } else {
        relative_expiry(r.args.get(2), unit, r.command.name)?
    };
    let touch = |condition| Op::Touch {
        condition,
        expiry,
        return_value: false,
    };
    let condition = match (nx, xx, gt, lt) {
        (true, ..) => TouchCondition::NoDeadline,
        // A session without a deadline counts as one that expires infinitely late, so it never
        // passes GT, with or without XX, and always passes LT unless XX is asked for as well.
        (_, _, true, _) => TouchCondition::Later,
        (_, true, _, true) => {
            let touch = r.key_command(touch(TouchCondition::Earlier));
            let read = r.key_command(Op::Stat);
            return Ok(RespRequest::ReadThen {
                read,
                then: AfterRead::IfDeadline { touch },
            });
        }
        (_, _, _, true) => TouchCondition::Earlier,
        (_, true, ..) => TouchCondition::HasDeadline,
        _ => TouchCondition::Always,
    };
    r.one(touch(condition), ReplyShape::Flag)
}

pub(super) fn persist(r: &Request<'_>) -> Parsed {
    let condition = TouchCondition::HasDeadline;
    let expiry = ExpiryChange::Clear;
    r.one(
        Op::Touch {
            condition,
            expiry,
            return_value: false,
        },
        ReplyShape::Flag,
    )
}

pub(super) fn ttl(r: &Request<'_>) -> Parsed {
    let shape = match r.command.name {
        "ttl" => ReplyShape::TtlSeconds,
        "pttl" => ReplyShape::TtlMs,
        "expiretime" => ReplyShape::DeadlineSeconds,
        _ => ReplyShape::DeadlineMs,
    };
    r.one(Op::Stat, shape)
}

pub(super) fn scan(r: &Request<'_>) -> Parsed {
    let cursor: Option<u64> = std::str::from_utf8(r.args.get(1))
        .ok()
        .and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or(RespError::InvalidCursor)?;
    let mut scan = Scan {
        from: Scan::from_cursor(cursor),
        limit: SCAN_LIMIT_DEFAULT,
        pattern: None,
        nothing_matches: false,
    };
    let mut at = 2;
    while at < r.args.len() {
        if at + 1 == r.args.len() {
            return Err(RespError::Syntax);
        }
        if r.is(at, "match") {
            let pattern = r.args.bytes(at + 1);
            scan.pattern = (&pattern[..] != b"*").then_some(pattern);
        } else if r.is(at, "count") {
            let count = r.integer(at + 1)?;
            if count < 1 {
                return Err(RespError::Syntax);
            }
            scan.limit = u32::try_from(count).unwrap_or(u32::MAX).min(SCAN_LIMIT_MAX);
        } else if r.is(at, "type") {
            scan.nothing_matches = !r.is(at + 1, "string");
        } else {
            return Err(RespError::Syntax);
        }
        at += 2;
    }
    Ok(RespRequest::Scan(scan))
}

pub(super) fn keys(r: &Request<'_>) -> Parsed {
    Ok(RespRequest::Keys {
        pattern: r.args.bytes(1),
    })
}

// ---- scripts ----

pub(super) fn eval(r: &Request<'_>) -> Parsed {
    let keys = r.integer(2)?;
    let Ok(keys) = usize::try_from(keys) else {
        return Err(RespError::NegativeKeys);
    };
    if keys > r.args.len() - 3 {
        return Err(RespError::TooManyKeys);
    }
    let script = r.args.bytes(1);
    let script = if r.command.name == "eval" {
        ScriptRef::Text(script)
    } else {
        ScriptRef::Sha1(script)
    };
    let mut keys_and_args = r.rest(3);
    let args = keys_and_args.split_off(keys);
    Ok(RespRequest::Eval(EvalCall {
        namespace: r.namespace,
        script,
        keys: keys_and_args,
        args,
    }))
}

pub(super) fn script(r: &Request<'_>) -> Parsed {
    if r.is(1, "load") {
        r.exactly(3)?;
        Ok(RespRequest::ScriptLoad {
            text: r.args.bytes(2),
        })
    } else if r.is(1, "exists") {
        r.subcommand_takes(r.args.len() >= 3)?;
        Ok(RespRequest::ScriptExists { sha1s: r.rest(2) })
    } else if r.is(1, "flush") {
        match r.args.len() {
            2 => Ok(RespRequest::ScriptFlush),
            3 if r.is(2, "async") || r.is(2, "sync") => Ok(RespRequest::ScriptFlush),
            _ => Err(RespError::Syntax),
        }
    } else {
        r.unknown_subcommand()
    }
}

// ---- the connection ----

pub(super) fn hello(r: &Request<'_>) -> Parsed {
    let mut hello = Hello {
        protocol: None,
        auth: None,
        name: None,
    };
    if r.args.len() > 1 {
        hello.protocol = Some(match parse_integer(r.args.get(1)) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err(RespError::UnsupportedProtocol),
            None => return Err(RespError::ProtocolNotAnInteger),
        });
    }
    let mut at = 2;
    while at < r.args.len() {
        let more = r.args.len() - 1 - at;
        if r.is(at, "auth") && more >= 2 {
            hello.auth = Some((r.args.bytes(at + 1), r.args.bytes(at + 2)));
            at += 3;
        } else if r.is(at, "setname") && more >= 1 {
            hello.name = Some(client_name(r.args.bytes(at + 1))?);
            at += 2;
        } else {
            return Err(RespError::HelloSyntax(excerpt(r.args.get(at))));
        }
    }
    Ok(RespRequest::Hello(hello))
}

pub(super) fn auth(r: &Request<'_>) -> Parsed {
    match r.args.len() {
        2 => Ok(RespRequest::Auth {
            user: None,
            password: r.args.bytes(1),
        }),
        3 => Ok(RespRequest::Auth {
            user: Some(r.args.bytes(1)),
            password: r.args.bytes(2),
        }),
        _ => Err(RespError::Syntax),
    }
}

pub(super) fn ping(r: &Request<'_>) -> Parsed {
    match r.args.len() {
        1 => Ok(RespRequest::Ping { message: None }),
        2 => Ok(RespRequest::Ping {
            message: Some(r.args.bytes(1)),
        }),
        _ => Err(wrong_arity(r.command.name)),
    }
}

pub(super) fn echo(r: &Request<'_>) -> Parsed {
    Ok(RespRequest::Echo {
        message: r.args.bytes(1),
    })
}

pub(super) fn quit(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Quit)
}

pub(super) fn reset(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Reset)
}

pub(super) fn select(r: &Request<'_>) -> Parsed {
    match u8::try_from(r.integer(1)?) {
        Ok(index) if index < NAMESPACES => Ok(RespRequest::Select {
            namespace: Namespace(index),
        }),
        _ => Err(RespError::NamespaceOutOfRange),
    }
}

pub(super) fn client(r: &Request<'_>) -> Parsed {
    let sub = r.args.get(1).to_ascii_lowercase();
    match &sub[..] {
        b"id" => r.exactly(2).map(|()| RespRequest::ClientId),
        b"getname" => r.exactly(2).map(|()| RespRequest::ClientGetName),
        b"info" => r.exactly(2).map(|()| RespRequest::ClientInfo),
        b"list" => clients::list(r),
        b"kill" => clients::kill(r),
        b"setname" => {
            r.exactly(3)?;
            Ok(RespRequest::ClientSetName {
                name: client_name(r.args.bytes(2))?,
            })
        }
        b"setinfo" => {
            r.exactly(4)?;
            let (attribute, told) = if r.is(2, "lib-name") {
                (ClientAttribute::LibName, "lib-name")
            } else if r.is(2, "lib-ver") {
                (ClientAttribute::LibVersion, "lib-ver")
            } else {
                return Err(RespError::UnrecognizedOption(excerpt(r.args.get(2))));
            };
            let value = r.args.bytes(3);
            if !value.iter().all(u8::is_ascii_graphic) {
                return Err(RespError::ClientInfoValue(told));
            }
            Ok(RespRequest::ClientSetInfo { attribute, value })
        }
        b"no-evict" | b"no-touch" => {
            r.exactly(3)?;
            if r.is(2, "on") || r.is(2, "off") {
                Ok(RespRequest::Fixed(FixedReply::Ok))
            } else {
                Err(RespError::Syntax)
            }
        }
        // Nothing is ever announced; an error would reach the error tracker of every application
        // that uses a recent client.
        b"maint_notifications" => Ok(RespRequest::Fixed(FixedReply::Ok)),
        _ => r.unknown_subcommand(),
    }
}

// ---- the server ----

pub(super) fn command(r: &Request<'_>) -> Parsed {
    if r.args.len() == 1 {
        return Ok(RespRequest::Command(CommandQuery::All));
    }
    let sub = r.args.get(1).to_ascii_lowercase();
    let query = match &sub[..] {
        b"count" => r.exactly(2).map(|()| CommandQuery::Count)?,
        b"info" if r.args.len() == 2 => CommandQuery::All,
        b"info" => CommandQuery::Info { names: r.rest(2) },
        b"docs" => CommandQuery::Docs { names: r.rest(2) },
        b"list" if r.args.len() == 2 => CommandQuery::List,
        b"list" => return Err(RespError::Syntax),
        b"getkeys" => {
            r.subcommand_takes(r.args.len() >= 3)?;
            CommandQuery::GetKeys {
                keys: keys_of(&r.rest(2))?,
            }
        }
        _ => return r.unknown_subcommand(),
    };
    Ok(RespRequest::Command(query))
}

pub(super) fn info(r: &Request<'_>) -> Parsed {
    let names = (1..r.args.len())
        .map(|at| r.args.get(at).to_ascii_lowercase().into())
        .collect();
    Ok(RespRequest::Info(InfoSections { names }))
}

pub(super) fn cluster(r: &Request<'_>) -> Parsed {
    let sub = r.args.get(1).to_ascii_lowercase();
    let asked = match &sub[..] {
        b"slots" => Cluster::Slots,
        b"shards" => Cluster::Shards,
        b"nodes" => Cluster::Nodes,
        b"info" => Cluster::Info,
        b"myid" => Cluster::MyId,
        b"keyslot" => {
            r.exactly(3)?;
            return Ok(RespRequest::Cluster(Cluster::KeySlot {
                key: r.args.bytes(2),
            }));
        }
        _ => return r.unknown_subcommand(),
    };
    r.exactly(2)?;
    Ok(RespRequest::Cluster(asked))
}

pub(super) fn config(r: &Request<'_>) -> Parsed {
    if !r.is(1, "get") {
        return r.unknown_subcommand();
    }
    r.subcommand_takes(r.args.len() >= 3)?;
    Ok(RespRequest::ConfigGet {
        patterns: r.rest(2),
    })
}

pub(super) fn dbsize(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::DbSize)
}

pub(super) fn flush(r: &Request<'_>) -> Parsed {
    let fits = match r.args.len() {
        1 => true,
        2 => r.is(1, "async") || r.is(1, "sync"),
        _ => false,
    };
    match r.command.name {
        _ if !fits => Err(RespError::Syntax),
        "flushdb" => Ok(RespRequest::FlushDb),
        _ => Ok(RespRequest::FlushAll),
    }
}

pub(super) fn time(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Time)
}

pub(super) fn wait(r: &Request<'_>) -> Parsed {
    r.integer(1)?;
    let timeout = parse_integer(r.args.get(2)).ok_or(RespError::TimeoutNotAnInteger)?;
    if timeout < 0 {
        return Err(RespError::NegativeTimeout);
    }
    Ok(RespRequest::Wait)
}

pub(super) fn asking(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Asking)
}

pub(super) fn accepted(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Fixed(FixedReply::Ok))
}

pub(super) fn role(_: &Request<'_>) -> Parsed {
    Ok(RespRequest::Fixed(FixedReply::Role))
}

pub(super) fn slowlog(r: &Request<'_>) -> Parsed {
    if r.is(1, "get") {
        Ok(RespRequest::Fixed(FixedReply::EmptyArray))
    } else if r.is(1, "len") {
        Ok(RespRequest::Fixed(FixedReply::Zero))
    } else if r.is(1, "reset") {
        Ok(RespRequest::Fixed(FixedReply::Ok))
    } else {
        r.unknown_subcommand()
    }
}

pub(super) fn latency(r: &Request<'_>) -> Parsed {
    if r.is(1, "latest") {
        Ok(RespRequest::Fixed(FixedReply::EmptyArray))
    } else {
        r.unknown_subcommand()
    }
}

// ---- small things ----

fn keys_of(words: &[Bytes]) -> Result<Vec<Bytes>, RespError> {
    let command = lookup(&words[0]).ok_or(RespError::InvalidCommand)?;
    if !command.accepts(words.len()) {
        return Err(RespError::InvalidArgumentCount);
    }
    let range = command.keys_in(words).ok_or(RespError::NoKeyArguments)?;
    if range.is_empty() {
        return Err(RespError::NoKeyArguments);
    }
    words
        .get(range)
        .map(<[Bytes]>::to_vec)
        .ok_or(RespError::InvalidArgumentCount)
}

fn client_name(name: Bytes) -> Result<Bytes, RespError> {
    if name.iter().all(u8::is_ascii_graphic) {
        Ok(name)
    } else {
        Err(RespError::ClientName)
    }
}

fn wrong_arity(command: &str) -> RespError {
    RespError::WrongArity {
        command: excerpt(command.as_bytes()),
    }
}

/// How much of what a client sent an error may repeat.
const QUOTED_BYTES_MAX: usize = 128;

fn unknown_command(args: &Args) -> RespError {
    let mut quoted = String::new();
    for index in 1..args.len() {
        if quoted.len() >= QUOTED_BYTES_MAX {
            break;
        }
        let arg = args.get(index);
        let shown = &arg[..arg.len().min(QUOTED_BYTES_MAX - quoted.len())];
        quoted.push('\'');
        quoted.push_str(&text(shown));
        quoted.push_str("' ");
    }
    RespError::UnknownCommand {
        name: excerpt(args.get(0)),
        args: quoted,
    }
}

pub(super) fn excerpt(bytes: &[u8]) -> String {
    text(&bytes[..bytes.len().min(QUOTED_BYTES_MAX)])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
