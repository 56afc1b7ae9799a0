//! What Redis clients ask for: RESP arguments turned into requests, outcomes turned into replies.
//!
//! ```text
//! bytes --resp::RespParser--> Args --redis::parse--> RespRequest --(gateway)--> Outcome
//!                                                                                  |
//! bytes <--resp::ReplyWriter---------- ReplyShape / Join <-------------------------+
//! ```
//!
//! Parsing needs nothing but the arguments and the connection's namespace, so everything that can
//! be refused without asking a shard is refused here, with the very words Redis uses: clients
//! match on them. A `RespRequest` is therefore always well-formed.

mod clients;
mod commands;
mod expiry;
mod glob;
mod parse;
mod script;
mod shape;
#[cfg(test)]
mod tests;

pub use clients::ClientFilter;
pub use commands::{COMMAND_COUNT, CommandInfo, CommandQuery, is_about_sessions, lookup};
pub use glob::glob_matches;
pub use parse::{NAMESPACES, parse};
pub use script::{EvalCall, ScriptRef, Scripts, sha1_hex};
pub use shape::{AfterRead, Join, Next, ReplyShape, write_failure};

use bytes::Bytes;
use holdfast_format::{KeyHash, Namespace};

use crate::command::{Command, Op};
use crate::resp::{Protocol, ReplyWriter};

/// One well-formed request of a RESP client.
#[derive(Clone, Debug, PartialEq)]
pub enum RespRequest {
    // ---- sessions ----
    /// One command for the owner of one key; `shape` turns its outcome into the reply.
    One {
        command: Command,
        shape: ReplyShape,
    },
    /// The same command for every key; `join` turns the outcomes, in key order, into one reply.
    Many(Many),
    /// Ask `read` first; `then` says what its outcome leads to.
    ReadThen {
        read: Command,
        then: AfterRead,
    },
    Scan(Scan),
    /// KEYS: every key that matches, as one array.
    Keys {
        pattern: Bytes,
    },
    /// DBSIZE: the sessions of the connection's namespace.
    DbSize,
    /// FLUSHDB: every session of the connection's namespace.
    FlushDb,
    /// FLUSHALL: every session of every namespace.
    FlushAll,
    /// EVAL and EVALSHA: `Scripts::resolve` turns it into `One` or `ReadThen`, or refuses it.
    Eval(EvalCall),
    /// SCRIPT LOAD: `Scripts::load`, answered with the SHA-1 as a bulk string.
    ScriptLoad {
        text: Bytes,
    },
    /// SCRIPT EXISTS: an array of 0 and 1, one for each `Scripts::knows`.
    ScriptExists {
        sha1s: Vec<Bytes>,
    },
    /// SCRIPT FLUSH: `Scripts::clear`, answered with +OK.
    ScriptFlush,

    // ---- the connection ----
    Hello(Hello),
    Auth {
        user: Option<Bytes>,
        password: Bytes,
    },
    /// +PONG, or the message as a bulk string.
    Ping {
        message: Option<Bytes>,
    },
    Echo {
        message: Bytes,
    },
    /// +OK, then close.
    Quit,
    /// Back to the state of a new connection (RESP2, no name, namespace 0, not authenticated);
    /// answered with +RESET.
    Reset,
    Select {
        namespace: Namespace,
    },
    ClientId,
    ClientGetName,
    /// An empty name takes it away.
    ClientSetName {
        name: Bytes,
    },
    ClientSetInfo {
        attribute: ClientAttribute,
        value: Bytes,
    },
    /// A line for each connection that is meant.
    ClientList {
        filter: ClientFilter,
    },
    /// Closes connections: answered with their number if `counted`, else with +OK, or an error if there is none.
    ClientKill {
        filter: ClientFilter,
        counted: bool,
    },
    ClientInfo,

    // ---- the server ----
    /// COMMAND and its subcommands: `CommandQuery::write` answers.
    Command(CommandQuery),
    Info(InfoSections),
    Cluster(Cluster),
    /// CONFIG GET: names to be matched as globs; a map of those that exist.
    ConfigGet {
        patterns: Vec<Bytes>,
    },
    /// Unix time as an array of two bulk strings: seconds, and microseconds within the second.
    Time,
    /// How many replicas hold the connection's writes: as many as the cluster keeps, since nothing
    /// is acknowledged before.
    Wait,
    /// ASKING: the next command may concern a slot that is being moved here. +OK.
    Asking,
    /// Always answered alike; `FixedReply::write`.
    Fixed(FixedReply),
}

impl RespRequest {
    /// True for what an unauthenticated connection may send.
    pub fn allowed_before_auth(&self) -> bool {
        matches!(
            self,
            RespRequest::Hello(_)
                | RespRequest::Auth { .. }
                | RespRequest::Quit
                | RespRequest::Reset
        )
    }
}

/// One operation on many keys (MGET, DEL, EXISTS, …).
///
/// Kept as a template because a request may name a million keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Many {
    pub namespace: Namespace,
    pub op: Op,
    pub keys: Vec<Bytes>,
    pub join: Join,
}

impl Many {
    /// The command for `keys[index]`.
    pub fn command(&self, index: usize) -> Command {
        Command {
            namespace: self.namespace,
            key: self.keys[index].clone(),
            op: self.op.clone(),
        }
    }
}

/// HELLO with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// `None`: stay as it is and tell.
    pub protocol: Option<Protocol>,
    /// User and password.
    pub auth: Option<(Bytes, Bytes)>,
    pub name: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAttribute {
    LibName,
    LibVersion,
}

/// SCAN with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Where to go on, as in `Op::Scan`.
    pub from: KeyHash,
    /// Keys wanted, about.
    pub limit: u32,
    /// Keys to tell; the others are passed over.
    pub pattern: Option<Bytes>,
    /// TYPE named something other than `string`: walk, but tell nothing.
    pub nothing_matches: bool,
}

/// Bits of a `KeyHash` that a SCAN cursor leaves out, so that it fits the 53 bits that a client in
/// JavaScript can hold exactly.
const CURSOR_SHIFT: u32 = 11;

impl Scan {
    /// The cursor that goes on at `next`, rounded down: keys between the two are told twice, which
    /// SCAN may. `None`: the end, cursor 0.
    ///
    /// Rounding can give back the cursor of the request when `limit` keys lie that close together;
    /// whoever scans must then go on by itself until `cursor_advances`.
    pub fn cursor(next: Option<KeyHash>) -> u64 {
        next.map_or(0, |hash| hash.0 >> CURSOR_SHIFT)
    }

    /// False if the cursor for `next` would lead back to where this scan began.
    pub fn cursor_advances(&self, next: Option<KeyHash>) -> bool {
        next.is_none_or(|next| Scan::cursor(Some(next)) > Scan::cursor(Some(self.from)))
    }

    /// True if `key` is to be told.
    pub fn matches(&self, key: &[u8]) -> bool {
        !self.nothing_matches && self.pattern.as_ref().is_none_or(|p| glob_matches(p, key))
    }

    fn from_cursor(cursor: u64) -> KeyHash {
        // A cursor beyond those we give out wraps, as it may in Redis: any number is a valid place.
        KeyHash(cursor << CURSOR_SHIFT)
    }
}

/// Which sections INFO was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoSections {
    /// Lower case; empty: the default ones.
    pub names: Vec<Bytes>,
}

impl InfoSections {
    /// True if the section (in lower case) is wanted. The default ones are all but `commandstats`,
    /// `latencystats` and `modules`.
    pub fn wants(&self, section: &str) -> bool {
        let extra = matches!(section, "commandstats" | "latencystats" | "modules");
        if self.names.is_empty() {
            return !extra;
        }
        self.names.iter().any(|name| match &name[..] {
            b"all" | b"everything" => true,
            b"default" => !extra,
            name => name == section.as_bytes(),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    Slots,
    Shards,
    Nodes,
    Info,
    MyId,
    /// Answered with `Slot::of(key)`.
    KeySlot {
        key: Bytes,
    },
}

/// Requests that Holdfast accepts and that change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedReply {
    /// READONLY, READWRITE, CLIENT NO-EVICT, CLIENT NO-TOUCH, CLIENT MAINT_NOTIFICATIONS.
    Ok,
    /// SLOWLOG LEN.
    Zero,
    /// SLOWLOG GET, LATENCY LATEST: nothing is kept.
    EmptyArray,
    /// ROLE: a master without replicas of its own kind.
    Role,
}

impl FixedReply {
    /// Writes the reply.
    pub fn write(self, reply: &mut ReplyWriter<'_>) {
        match self {
            FixedReply::Ok => reply.ok(),
            FixedReply::Zero => reply.integer(0),
            FixedReply::EmptyArray => reply.array(0),
            FixedReply::Role => {
                reply.array(3);
                reply.bulk(b"master");
                reply.integer(0);
                reply.array(0);
            }
        }
    }
}

/// Why a request is refused, in Redis's words: `Display` is the whole error line without `-`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    #[error("ERR unknown command '{name}', with args beginning with: {args}")]
    UnknownCommand { name: String, args: String },
    #[error("ERR unknown subcommand '{name}'. Try {command} HELP.")]
    UnknownSubcommand { command: String, name: String },
    #[error("ERR wrong number of arguments for '{command}' command")]
    WrongArity { command: String },
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    #[error("ERR invalid expire time in '{command}' command")]
    InvalidExpire { command: &'static str },
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    NxWithOthers,
    #[error("ERR GT and LT options at the same time are not compatible")]
    GtWithLt,
    #[error("ERR Unsupported option {0}")]
    UnsupportedOption(String),
    #[error("ERR invalid cursor")]
    InvalidCursor,
    #[error("ERR DB index is out of range")]
    NamespaceOutOfRange,
    #[error("NOPROTO unsupported protocol version")]
    UnsupportedProtocol,
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolNotAnInteger,
    #[error("ERR Syntax error in HELLO option '{0}'")]
    HelloSyntax(String),
    #[error("NOAUTH Authentication required.")]
    AuthRequired,
    #[error(
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
    )]
    HelloAuthRequired,
    #[error("WRONGPASS invalid username-password pair or user is disabled.")]
    WrongPassword,
    #[error(
        "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
    )]
    NoPasswordConfigured,
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
    #[error("ERR {0} cannot contain spaces, newlines or special characters.")]
    ClientInfoValue(&'static str),
    #[error("ERR client-id should be greater than 0")]
    ClientId,
    #[error("ERR Unknown client type '{0}'")]
    UnknownClientType(String),
    #[error("ERR No such user '{0}'")]
    NoSuchUser(String),
    #[error("ERR No such client")]
    NoSuchClient,
    #[error("ERR Unrecognized option '{0}'")]
    UnrecognizedOption(String),
    #[error("NOSCRIPT No matching script. Please use EVAL.")]
    NoScript,
    #[error("ERR Number of keys can't be greater than number of args")]
    TooManyKeys,
    #[error("ERR Number of keys can't be negative")]
    NegativeKeys,
    #[error(
        "ERR this script is not one that Holdfast knows; it runs the lock scripts of common session libraries and has no Lua interpreter"
    )]
    UnknownScript,
    #[error("ERR wrong number of keys or arguments for this script")]
    ScriptArguments,
    #[error("ERR timeout is not an integer or out of range")]
    TimeoutNotAnInteger,
    #[error("ERR timeout is negative")]
    NegativeTimeout,
    #[error("ERR The command has no key arguments")]
    NoKeyArguments,
    #[error("ERR Invalid command specified")]
    InvalidCommand,
    #[error("ERR Invalid number of arguments specified for command")]
    InvalidArgumentCount,
}
