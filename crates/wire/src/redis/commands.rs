//! The commands there are: the table that requests are looked up in and that COMMAND tells.
//!
//! A row names the function that parses it, so the table cannot promise what is not there. Cluster
//! clients route by first key, last key and step, and refuse to start without them.

use std::ops::Range;

use bytes::Bytes;

use super::parse::{self, Parsed, Request};
use crate::resp::{ReplyWriter, parse_integer};

/// One row: what Redis's COMMAND tells of a command, and how it is parsed.
pub struct CommandInfo {
    /// Lower case.
    pub name: &'static str,
    /// Arguments including the name; negative: at least so many.
    pub arity: i8,
    pub flags: &'static [&'static str],
    /// Index of the first key, 0 if there is none; of the last (negative: from the end); step.
    pub keys: (i8, i8, i8),
    pub categories: &'static [&'static str],
    pub group: &'static str,
    pub summary: &'static str,
    pub(super) parse: fn(&Request<'_>) -> Parsed,
}

impl std::fmt::Debug for CommandInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandInfo")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl CommandInfo {
    /// True if the command takes so many arguments, its name included.
    pub fn accepts(&self, arguments: usize) -> bool {
        let bound = usize::from(self.arity.unsigned_abs());
        if self.arity >= 0 {
            arguments == bound
        } else {
            arguments >= bound
        }
    }

    /// True if it reads, writes or looks for sessions; all others are about the connection or the server.
    pub fn is_about_sessions(&self) -> bool {
        let about = ["readonly", "write", "movablekeys"];
        self.flags.iter().any(|flag| about.contains(flag))
    }

    /// True if it may change sessions.
    pub fn is_write(&self) -> bool {
        self.flags.contains(&"write")
    }

    /// Which of `words` (the name first) are keys; `None` if the command has none.
    pub(super) fn keys_in(&self, words: &[Bytes]) -> Option<Range<usize>> {
        if self.flags.contains(&"movablekeys") {
            let count = usize::try_from(parse_integer(words.get(2)?)?).ok()?;
            return Some(3..3usize.checked_add(count)?);
        }
        let (first, last, _) = self.keys;
        let first = usize::try_from(first).ok().filter(|&first| first > 0)?;
        let last = match usize::try_from(last) {
            Ok(last) => last,
            Err(_) => words.len().checked_sub(usize::from(last.unsigned_abs()))?,
        };
        Some(first..last + 1)
    }
}

/// The row of a command, whatever the case of its name.
pub fn lookup(name: &[u8]) -> Option<&'static CommandInfo> {
    let mut lower = [0; NAME_BYTES_MAX];
    lower.get_mut(..name.len())?.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let index = NAMES.binary_search(&u128::from_be_bytes(lower)).ok()?;
    // The zeros after a short name could be the asker's own.
    Some(&COMMANDS[index]).filter(|row| row.name.len() == name.len())
}

/// The names as numbers, which sort as the names do and are compared at once.
static NAMES: [u128; COMMAND_COUNT] = {
    let mut names = [0; COMMAND_COUNT];
    let mut row = 0;
    while row < COMMAND_COUNT {
        let name = COMMANDS[row].name.as_bytes();
        let mut padded = [0; NAME_BYTES_MAX];
        let mut at = 0;
        while at < name.len() {
            padded[at] = name[at];
            at += 1;
        }
        names[row] = u128::from_be_bytes(padded);
        row += 1;
    }
    names
};
/// `CommandInfo::is_about_sessions` of the command of this name; false if there is none. Looking up the two that nearly
/// everybody sends would take as long as finding where they end.
pub fn is_about_sessions(name: &[u8]) -> bool {
    matches!(name, b"GET" | b"get" | b"SET" | b"set")
        || lookup(name).is_some_and(CommandInfo::is_about_sessions)
}

/// How many commands there are.
pub const COMMAND_COUNT: usize = COMMANDS.len();

/// COMMAND and its subcommands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandQuery {
    All,
    Count,
    /// One row each, null for unknown ones.
    Info {
        names: Vec<Bytes>,
    },
    /// Summaries; of all commands if none is named, and unknown ones are left out.
    Docs {
        names: Vec<Bytes>,
    },
    List,
    GetKeys {
        keys: Vec<Bytes>,
    },
}

impl CommandQuery {
    /// Writes the reply.
    pub fn write(&self, reply: &mut ReplyWriter<'_>) {
        match self {
            CommandQuery::All => {
                reply.array(COMMANDS.len());
                for row in COMMANDS {
                    write_row(row, reply);
                }
            }
            CommandQuery::Count => reply.integer(COMMANDS.len() as i64),
            CommandQuery::Info { names } => {
                reply.array(names.len());
                for name in names {
                    match lookup(name) {
                        Some(row) => write_row(row, reply),
                        None => reply.null_array(),
                    }
                }
            }
            CommandQuery::Docs { names } => {
                let mut rows: Vec<&CommandInfo> = names.iter().filter_map(|n| lookup(n)).collect();
                if names.is_empty() {
                    rows = COMMANDS.iter().collect();
                }
                reply.map(rows.len());
                for row in rows {
                    reply.bulk(row.name.as_bytes());
                    reply.map(3);
                    for (field, text) in [
                        ("summary", row.summary),
                        ("since", "0.1.0"),
                        ("group", row.group),
                    ] {
                        reply.bulk(field.as_bytes());
                        reply.bulk(text.as_bytes());
                    }
                }
            }
            CommandQuery::List => {
                reply.array(COMMANDS.len());
                for row in COMMANDS {
                    reply.bulk(row.name.as_bytes());
                }
            }
            CommandQuery::GetKeys { keys } => {
                reply.array(keys.len());
                for key in keys {
                    reply.bulk(key);
                }
            }
        }
    }
}

/// The ten elements that Redis 7 tells of a command; tips, key specifications and subcommands empty.
fn write_row(row: &CommandInfo, reply: &mut ReplyWriter<'_>) {
    reply.array(10);
    reply.bulk(row.name.as_bytes());
    reply.integer(i64::from(row.arity));
    reply.set(row.flags.len());
    for flag in row.flags {
        reply.simple(flag);
    }
    let (first, last, step) = row.keys;
    for number in [first, last, step] {
        reply.integer(i64::from(number));
    }
    reply.set(row.categories.len());
    for category in row.categories {
        reply.simple(category);
    }
    reply.array(0);
    reply.array(0);
    reply.array(0);
}

const NAME_BYTES_MAX: usize = 16;

const NO_KEY: (i8, i8, i8) = (0, 0, 0);
const ONE_KEY: (i8, i8, i8) = (1, 1, 1);
const ALL_KEYS: (i8, i8, i8) = (1, -1, 1);

/// Flags and categories that many rows share.
const READ: &[&str] = &["readonly", "fast"];
const READ_SLOW: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "fast"];
const WRITE_SLOW: &[&str] = &["write"];
const GROW: &[&str] = &["write", "denyoom"];
const ADD: &[&str] = &["write", "denyoom", "fast"];
const CONNECTION: &[&str] = &["loading", "stale", "fast"];
const BEFORE_AUTH: &[&str] = &[
    "noscript",
    "loading",
    "stale",
    "fast",
    "no_auth",
    "allow_busy",
];
const SERVER: &[&str] = &["loading", "stale"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];
const NO_SCRIPT: &[&str] = &["noscript"];
const WAITS: &[&str] = &["blocking"];
const SCRIPT: &[&str] = &[
    "noscript",
    "stale",
    "skip_monitor",
    "no_mandatory_keys",
    "movablekeys",
];

const STRING_READ: &[&str] = &["@read", "@string", "@fast"];
const STRING_READ_SLOW: &[&str] = &["@read", "@string", "@slow"];
const STRING_WRITE: &[&str] = &["@write", "@string"];
const STRING_WRITE_FAST: &[&str] = &["@write", "@string", "@fast"];
const KEY_READ: &[&str] = &["@keyspace", "@read", "@fast"];
const KEY_WRITE: &[&str] = &["@keyspace", "@write", "@fast"];
const KEY_DANGEROUS: &[&str] = &["@keyspace", "@write", "@slow", "@dangerous"];
const CONNECTIONS: &[&str] = &["@fast", "@connection"];
const ADMINS: &[&str] = &["@admin", "@slow", "@dangerous"];
const SCRIPTING: &[&str] = &["@slow", "@scripting"];
const SLOW: &[&str] = &["@slow"];

macro_rules! commands {
    ($($name:literal $arity:literal $flags:ident $keys:ident $categories:ident $group:literal $parse:ident $summary:literal)*) => {
        &[$(CommandInfo {
            name: $name,
            arity: $arity,
            flags: $flags,
            keys: $keys,
            categories: $categories,
            group: $group,
            summary: $summary,
            parse: parse::$parse,
        }),*]
    };
}

/// Sorted by name, which `lookup` relies on and a test checks.
const COMMANDS: &[CommandInfo] = commands! {
    "append" 3 GROW ONE_KEY STRING_WRITE "string" append "Appends to a session."
    "asking" 1 CONNECTION NO_KEY CONNECTIONS "cluster" asking "Lets the next command reach a slot that is being moved here."
    "auth" -2 BEFORE_AUTH NO_KEY CONNECTIONS "connection" auth "Authenticates the connection."
    "client" -2 SERVER NO_KEY CONNECTIONS "connection" client "Names the connection, tells about connections and closes them."
    "cluster" -2 SERVER NO_KEY SLOW "cluster" cluster "Tells which node owns which slots."
    "command" -1 SERVER NO_KEY CONNECTIONS "server" command "Tells about the commands there are."
    "config" -2 ADMIN NO_KEY ADMINS "server" config "Tells the configuration."
    "dbsize" 1 READ NO_KEY KEY_READ "server" dbsize "Counts the sessions."
    "decr" 2 ADD ONE_KEY STRING_WRITE_FAST "string" add "Takes one from a number."
    "decrby" 3 ADD ONE_KEY STRING_WRITE_FAST "string" add "Takes from a number."
    "del" -2 WRITE_SLOW ALL_KEYS KEY_WRITE "generic" del "Deletes sessions."
    "echo" 2 CONNECTION NO_KEY CONNECTIONS "connection" echo "Returns its argument."
    "eval" -3 SCRIPT NO_KEY SCRIPTING "scripting" eval "Runs one of the lock scripts that Holdfast knows."
    "evalsha" -3 SCRIPT NO_KEY SCRIPTING "scripting" eval "Runs a known script by its SHA-1."
    "exists" -2 READ ALL_KEYS KEY_READ "generic" exists "Counts which of the sessions exist."
    "expire" -3 WRITE ONE_KEY KEY_WRITE "generic" expire "Lets a session expire in so many seconds."
    "expireat" -3 WRITE ONE_KEY KEY_WRITE "generic" expire "Lets a session expire at a Unix time."
    "expiretime" 2 READ ONE_KEY KEY_READ "generic" ttl "Tells the Unix time at which a session expires."
    "flushall" -1 WRITE_SLOW NO_KEY KEY_DANGEROUS "server" flush "Deletes every session of every namespace."
    "flushdb" -1 WRITE_SLOW NO_KEY KEY_DANGEROUS "server" flush "Deletes every session of the namespace."
    "get" 2 READ ONE_KEY STRING_READ "string" get "Reads a session."
    "getdel" 2 WRITE ONE_KEY STRING_WRITE "string" getdel "Reads a session and deletes it."
    "getex" -2 WRITE ONE_KEY STRING_WRITE "string" getex "Reads a session and changes when it expires."
    "getrange" 4 READ_SLOW ONE_KEY STRING_READ_SLOW "string" getrange "Reads a part of a session."
    "getset" 3 GROW ONE_KEY STRING_WRITE "string" getset "Writes a session and returns what it was."
    "hello" -1 BEFORE_AUTH NO_KEY CONNECTIONS "connection" hello "Shakes hands and chooses the protocol."
    "incr" 2 ADD ONE_KEY STRING_WRITE_FAST "string" add "Adds one to a number."
    "incrby" 3 ADD ONE_KEY STRING_WRITE_FAST "string" add "Adds to a number."
    "info" -1 SERVER NO_KEY SLOW "server" info "Tells about the server."
    "keys" 2 READ_SLOW NO_KEY KEY_READ "generic" keys "Lists every session that matches a pattern."
    "latency" -2 ADMIN NO_KEY ADMINS "server" latency "Tells recent latency spikes."
    "mget" -2 READ ALL_KEYS STRING_READ "string" mget "Reads several sessions."
    "persist" 2 WRITE ONE_KEY KEY_WRITE "generic" persist "Lets a session never expire."
    "pexpire" -3 WRITE ONE_KEY KEY_WRITE "generic" expire "Lets a session expire in so many milliseconds."
    "pexpireat" -3 WRITE ONE_KEY KEY_WRITE "generic" expire "Lets a session expire at a Unix time in milliseconds."
    "pexpiretime" 2 READ ONE_KEY KEY_READ "generic" ttl "Tells the Unix time in milliseconds at which a session expires."
    "ping" -1 CONNECTION NO_KEY CONNECTIONS "connection" ping "Answers, to show that the connection lives."
    "psetex" 4 GROW ONE_KEY STRING_WRITE "string" setex "Writes a session that expires in so many milliseconds."
    "pttl" 2 READ ONE_KEY KEY_READ "generic" ttl "Tells in how many milliseconds a session expires."
    "quit" -1 BEFORE_AUTH NO_KEY CONNECTIONS "connection" quit "Closes the connection."
    "readonly" 1 CONNECTION NO_KEY CONNECTIONS "cluster" accepted "Accepted; every read is answered by the owner."
    "readwrite" 1 CONNECTION NO_KEY CONNECTIONS "cluster" accepted "Accepted; every read is answered by the owner."
    "reset" 1 BEFORE_AUTH NO_KEY CONNECTIONS "connection" reset "Makes the connection as good as new."
    "role" 1 ADMIN NO_KEY ADMINS "server" role "Tells that this is a master."
    "scan" -2 READ_SLOW NO_KEY KEY_READ "generic" scan "Lists sessions step by step."
    "script" -2 NO_SCRIPT NO_KEY SCRIPTING "scripting" script "Loads known scripts and tells which are loaded."
    "select" 2 CONNECTION NO_KEY CONNECTIONS "connection" select "Chooses the namespace."
    "set" -3 GROW ONE_KEY STRING_WRITE "string" set "Writes a session."
    "setex" 4 GROW ONE_KEY STRING_WRITE "string" setex "Writes a session that expires in so many seconds."
    "setnx" 3 GROW ONE_KEY STRING_WRITE "string" setnx "Writes a session unless it exists."
    "slowlog" -2 ADMIN NO_KEY ADMINS "server" slowlog "Tells slow commands."
    "strlen" 2 READ ONE_KEY STRING_READ "string" strlen "Tells the length of a session."
    "time" 1 CONNECTION NO_KEY CONNECTIONS "server" time "Tells the time."
    "touch" -2 WRITE ALL_KEYS KEY_WRITE "generic" touch "Renews sessions that have an idle time, and counts those that exist."
    "ttl" 2 READ ONE_KEY KEY_READ "generic" ttl "Tells in how many seconds a session expires."
    "type" 2 READ ONE_KEY KEY_READ "generic" type_of "Tells whether a session exists: all are strings."
    "unlink" -2 WRITE ALL_KEYS KEY_WRITE "generic" del "Deletes sessions."
    "wait" 3 WAITS NO_KEY CONNECTIONS "generic" wait "Tells how many replicas hold the connection's writes."
};
