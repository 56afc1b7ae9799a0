//! Lua scripts that session libraries send, recognised and run as commands.
//!
//! There is no interpreter. A handful of scripts (taking, extending and releasing a lock) are all
//! that common session libraries send, and each is one of our commands. The same script comes with
//! other white space, quotes, comments and case of command names, so texts are compared as token
//! streams; only EVALSHA goes by the SHA-1 of the exact text.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_format::Namespace;
use sha1::{Digest, Sha1};

use super::expiry::{Unit, relative_expiry};
use super::{AfterRead, ReplyShape, RespError, RespRequest};
use crate::command::{Command, Condition, ExpiryChange, Op, TouchCondition};
use crate::resp::parse_integer;

/// EVAL or EVALSHA, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalCall {
    pub namespace: Namespace,
    pub script: ScriptRef,
    pub keys: Vec<Bytes>,
    pub args: Vec<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptRef {
    Text(Bytes),
    /// 40 hexadecimal digits in any case; anything else is not found.
    Sha1(Bytes),
}

/// Longest script text looked at; the longest known one has 700 bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Spellings remembered by SHA-1 besides the well-known ones. One library sends one spelling, so
/// a hundred is plenty; beyond it all are forgotten, which costs a client one NOSCRIPT.
const LOADED_MAX: usize = 128;

/// The scripts a gateway knows: the well-known ones, and what clients have loaded or sent.
#[derive(Clone, Debug)]
pub struct Scripts {
    known: Vec<(Vec<Token>, Effect)>,
    well_known: BTreeMap<[u8; 20], Effect>,
    loaded: BTreeMap<[u8; 20], Effect>,
}

impl Default for Scripts {
    fn default() -> Scripts {
        Scripts::new()
    }
}

impl Scripts {
    pub fn new() -> Scripts {
        Scripts {
            known: KNOWN
                .iter()
                .map(|(text, effect)| {
                    let tokens = tokens(text.as_bytes()).expect("known scripts are well-formed");
                    (tokens, *effect)
                })
                .collect(),
            well_known: KNOWN
                .iter()
                .map(|(text, effect)| (sha1(text.as_bytes()), *effect))
                .collect(),
            loaded: BTreeMap::new(),
        }
    }

    /// SCRIPT LOAD: the SHA-1 of the exact text, in lower-case hexadecimal.
    pub fn load(&mut self, text: &[u8]) -> Result<String, RespError> {
        self.effect_of(text)?;
        Ok(sha1_hex(text))
    }

    /// SCRIPT EXISTS.
    pub fn knows(&self, sha1: &[u8]) -> bool {
        self.by_sha1(sha1).is_some()
    }

    /// SCRIPT FLUSH: forgets what was loaded.
    pub fn clear(&mut self) {
        self.loaded.clear();
    }

    /// The request that a script stands for, `One` or `ReadThen`.
    pub fn resolve(&mut self, call: EvalCall) -> Result<RespRequest, RespError> {
        let effect = match &call.script {
            ScriptRef::Text(text) => self.effect_of(text)?,
            ScriptRef::Sha1(sha1) => self.by_sha1(sha1).ok_or(RespError::NoScript)?,
        };
        effect.request(call)
    }

    fn by_sha1(&self, hex: &[u8]) -> Option<Effect> {
        let sha1 = from_hex(hex)?;
        self.well_known
            .get(&sha1)
            .or_else(|| self.loaded.get(&sha1))
            .copied()
    }

    fn effect_of(&mut self, text: &[u8]) -> Result<Effect, RespError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(RespError::UnknownScript);
        }
        // Most texts have been seen before, and hashing one is cheaper than taking it apart.
        let sha1 = sha1(text);
        if let Some(effect) = self
            .well_known
            .get(&sha1)
            .or_else(|| self.loaded.get(&sha1))
        {
            return Ok(*effect);
        }
        let tokens = tokens(text).ok_or(RespError::UnknownScript)?;
        let (_, effect) = self
            .known
            .iter()
            .find(|(known, _)| *known == tokens)
            .ok_or(RespError::UnknownScript)?;
        if self.loaded.len() >= LOADED_MAX {
            self.loaded.clear();
        }
        self.loaded.insert(sha1, *effect);
        Ok(*effect)
    }
}

/// SHA-1 of `text` in lower-case hexadecimal, as SCRIPT LOAD answers.
pub fn sha1_hex(text: &[u8]) -> String {
    sha1(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a script does to its one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Deletes if the value is ARGV[1].
    CompareAndDelete,
    /// EXPIRE or PEXPIRE by ARGV[2] if the value is ARGV[1].
    CompareAndExpire(Unit),
    /// PERSIST if the value is ARGV[1].
    CompareAndPersist,
    /// EXPIRE by ARGV[2] seconds, or PERSIST if that is not positive, if the value is ARGV[1].
    Refresh,
    /// If the value is ARGV[1] and has a deadline: PEXPIRE by ARGV[2], added to what is left if
    /// ARGV[3] is "0".
    Extend,
    /// SETEX of value ARGV[1] for ARGV[2] seconds unless the key exists.
    SetIfAbsent,
}

impl Effect {
    fn arguments(self) -> usize {
        match self {
            Effect::CompareAndDelete | Effect::CompareAndPersist => 1,
            Effect::CompareAndExpire(_) | Effect::Refresh | Effect::SetIfAbsent => 2,
            Effect::Extend => 3,
        }
    }

    fn request(self, call: EvalCall) -> Result<RespRequest, RespError> {
        let EvalCall {
            namespace,
            keys,
            args,
            ..
        } = call;
        // More arguments than the script uses are harmless (redis-py's locks share a list).
        let (Some(key), true) = (keys.into_iter().next(), args.len() >= self.arguments()) else {
            return Err(RespError::ScriptArguments);
        };
        let integer = |text: &[u8]| parse_integer(text).ok_or(RespError::NotAnInteger);
        let command = |op| Command {
            namespace,
            key: key.clone(),
            op,
        };
        let one = |op, shape| {
            Ok(RespRequest::One {
                command: command(op),
                shape,
            })
        };
        let touch = |expiry| {
            let condition = TouchCondition::ValueIs(args[0].clone());
            one(
                Op::Touch {
                    condition,
                    expiry,
                    return_value: false,
                },
                ReplyShape::Flag,
            )
        };
        match self {
            Effect::CompareAndDelete => one(
                Op::Delete {
                    condition: Condition::ValueIs(args[0].clone()),
                    return_old: false,
                },
                ReplyShape::Flag,
            ),
            Effect::CompareAndPersist => touch(ExpiryChange::Clear),
            Effect::CompareAndExpire(unit) => touch(relative_expiry(&args[1], unit, "script")?),
            Effect::Refresh => {
                if integer(&args[1])? > 0 {
                    touch(relative_expiry(&args[1], Unit::Seconds, "script")?)
                } else {
                    touch(ExpiryChange::Clear)
                }
            }
            Effect::Extend => Ok(RespRequest::ReadThen {
                read: command(Op::Get),
                then: AfterRead::Extend {
                    lock: command(Op::Get),
                    token: args[0].clone(),
                    ms: integer(&args[1])?,
                    add_to_remaining: &args[2][..] == b"0",
                },
            }),
            Effect::SetIfAbsent => {
                let expiry = relative_expiry(&args[1], Unit::Seconds, "setex")?;
                if matches!(expiry, ExpiryChange::In { ms } if ms <= 0) {
                    return Err(RespError::InvalidExpire { command: "setex" });
                }
                one(
                    Op::Put {
                        value: args[0].clone(),
                        condition: Condition::Absent,
                        expiry,
                        return_old: false,
                    },
                    ReplyShape::OkOrNull,
                )
            }
        }
    }
}

/// Texts as libraries send them, to the byte: their SHA-1 is known without SCRIPT LOAD.
const KNOWN: &[(&str, Effect)] = &[
    // phpredis: session unlock.
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"del\",KEYS[1]) else return 0 end",
        Effect::CompareAndDelete,
    ),
    // Laravel: release a lock.
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then\n    return redis.call(\"del\",KEYS[1])\nelse\n    return 0\nend",
        Effect::CompareAndDelete,
    ),
    // redis-py: Lock.release.
    (
        "\n        local token = redis.call('get', KEYS[1])\n        if not token or token ~= ARGV[1] then\n            return 0\n        end\n        redis.call('del', KEYS[1])\n        return 1\n    ",
        Effect::CompareAndDelete,
    ),
    // redis-py: Lock.extend.
    (
        "\n        local token = redis.call('get', KEYS[1])\n        if not token or token ~= ARGV[1] then\n            return 0\n        end\n        local expiration = redis.call('pttl', KEYS[1])\n        if not expiration then\n            expiration = 0\n        end\n        if expiration < 0 then\n            return 0\n        end\n\n        local newttl = ARGV[2]\n        if ARGV[3] == \"0\" then\n            newttl = ARGV[2] + expiration\n        end\n        redis.call('pexpire', KEYS[1], newttl)\n        return 1\n    ",
        Effect::Extend,
    ),
    // redis-py: Lock.reacquire.
    (
        "\n        local token = redis.call('get', KEYS[1])\n        if not token or token ~= ARGV[1] then\n            return 0\n        end\n        redis.call('pexpire', KEYS[1], ARGV[2])\n        return 1\n    ",
        Effect::CompareAndExpire(Unit::Milliseconds),
    ),
    // Laravel: Cache::add.
    (
        "return redis.call('exists',KEYS[1])<1 and redis.call('setex',KEYS[1],ARGV[2],ARGV[1])",
        Effect::SetIfAbsent,
    ),
    // Laravel: refresh a lock.
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then\n    if tonumber(ARGV[2]) > 0 then\n        return redis.call(\"expire\",KEYS[1],ARGV[2])\n    end\n\n    redis.call(\"persist\",KEYS[1])\n\n    return 1\nelse\n    return 0\nend",
        Effect::Refresh,
    ),
    // The lock extension of many small libraries, in both units.
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"pexpire\",KEYS[1],ARGV[2]) else return 0 end",
        Effect::CompareAndExpire(Unit::Milliseconds),
    ),
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"expire\",KEYS[1],ARGV[2]) else return 0 end",
        Effect::CompareAndExpire(Unit::Seconds),
    ),
    (
        "if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"persist\",KEYS[1]) else return 0 end",
        Effect::CompareAndPersist,
    ),
];

fn sha1(text: &[u8]) -> [u8; 20] {
    Sha1::digest(text).into()
}

fn from_hex(hex: &[u8]) -> Option<[u8; 20]> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut bytes = [0; 20];
    if hex.len() != 40 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// As much of Lua's grammar as telling scripts apart takes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// Names, keywords and numbers.
    Word(Vec<u8>),
    /// A string without its quotes, in lower case: all that known scripts quote are command names
    /// and digits.
    Quoted(Vec<u8>),
    Symbol(u8),
}

/// The tokens of a script; `None` for what known scripts do not contain (escapes, long strings).
/// A `;` between statements means nothing and is left out.
fn tokens(text: &[u8]) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b';' => rest = after,
            b'-' if after.first() == Some(&b'-') => {
                if after[1..].starts_with(b"[") {
                    return None;
                }
                rest = &after[memchr::memchr(b'\n', after).unwrap_or(after.len())..];
            }
            b'"' | b'\'' => {
                let end = memchr::memchr(byte, after)?;
                let quoted = &after[..end];
                if quoted.contains(&b'\\') || quoted.contains(&b'\n') {
                    return None;
                }
                found.push(Token::Quoted(quoted.to_ascii_lowercase()));
                rest = &after[end + 1..];
            }
            b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                let is_word = |b: &u8| *b == b'_' || b.is_ascii_alphanumeric();
                let end = rest.iter().position(|b| !is_word(b)).unwrap_or(rest.len());
                found.push(Token::Word(rest[..end].to_vec()));
                rest = &rest[end..];
            }
            symbol if symbol.is_ascii_graphic() => {
                found.push(Token::Symbol(symbol));
                rest = after;
            }
            _ => return None,
        }
    }
    Some(found)
}
