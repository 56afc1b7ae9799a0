//! The one command set behind every face: RESP and gRPC are translated to it, shards execute it.
//!
//! A command concerns one key, or one shard's part of the key space. Commands on several keys
//! (`MGET`, `DEL a b`) are several of these, one per key, put together again by the gateway.

use bytes::Bytes;
use holdfast_format::{ClientId, ClusterMs, KeyHash, Namespace, Version};

use crate::namespaces::{Quota, Usage, grouped};

/// What a client asks of the owner of a key (or of one shard).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    pub namespace: Namespace,
    /// Empty for commands on the key space (`Scan`, `Count`, `Flush`).
    pub key: Bytes,
    pub op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The value and its times. Answers `Value` or `Absent`.
    Get,
    /// The times without the value (EXISTS, TTL, …). Answers `Value` with an empty value, or `Absent`.
    Stat,
    /// Stores a value. Answers `Done`, or `Refused` when `condition` does not hold.
    Put {
        value: Bytes,
        condition: Condition,
        expiry: ExpiryChange,
        return_old: bool,
    },
    /// Changes when a session expires. Answers `Done`, `Refused` or `Absent`.
    /// With `return_value` it is GETEX: answers `Value` (with the new times) or `Absent`.
    Touch {
        condition: TouchCondition,
        expiry: ExpiryChange,
        return_value: bool,
    },
    /// Removes a session. Answers `Done` (with the old value if asked), `Refused` or `Absent`.
    Delete {
        condition: Condition,
        return_old: bool,
    },
    /// Adds to a number written in digits; what is not there counts as 0, and what is there keeps its times (INCR, DECRBY, …).
    /// Answers `Done` with the sum in digits as `old`, or fails as `Invalid` with Redis's words.
    Add { by: i64 },
    /// Appends to a value, of nothing if there is none; what is there keeps its times. Answers `Done` with the new
    /// length in digits as `old`.
    Append { value: Bytes },
    /// Keys whose hash is at or above `from`, in hash order, about `limit` of them. Answers `Scanned`.
    Scan { from: KeyHash, limit: u32 },
    /// How many sessions there are in the namespace. Answers `Counted`.
    Count,
    /// What there is in memory, over all namespaces. Answers `Usage`.
    Usage,
    /// Removes every session of the namespace (of this shard). Answers `Flushed`.
    Flush,
}

impl Command {
    /// Bytes that it holds on to: key, value and condition, and a little for itself.
    pub fn held_bytes(&self) -> usize {
        64 + self.key.len() + self.op.value().len() + self.op.compared().len()
    }
}

impl Op {
    /// True if executing the command twice could differ from executing it once.
    pub fn is_write(&self) -> bool {
        !matches!(
            self,
            Op::Get | Op::Stat | Op::Scan { .. } | Op::Count | Op::Usage
        )
    }

    /// The bytes that it brings to be stored.
    pub fn value(&self) -> &[u8] {
        match self {
            Op::Put { value, .. } | Op::Append { value } => value,
            _ => &[],
        }
    }

    /// The bytes that a stored value is compared with.
    pub fn compared(&self) -> &[u8] {
        match self {
            Op::Put {
                condition: Condition::ValueIs(bytes),
                ..
            }
            | Op::Delete {
                condition: Condition::ValueIs(bytes),
                ..
            }
            | Op::Touch {
                condition: TouchCondition::ValueIs(bytes),
                ..
            } => bytes,
            _ => &[],
        }
    }

    /// True if it answers with a stored value.
    pub fn tells_value(&self) -> bool {
        matches!(
            self,
            Op::Get
                | Op::Touch {
                    return_value: true,
                    ..
                }
                | Op::Put {
                    return_old: true,
                    ..
                }
                | Op::Delete {
                    return_old: true,
                    ..
                }
        )
    }

    /// True if the command concerns a whole shard and not one key.
    pub fn is_keyspace(&self) -> bool {
        matches!(self, Op::Scan { .. } | Op::Count | Op::Usage | Op::Flush)
    }
}

/// What must hold for a `Put` or `Delete` to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Condition {
    #[default]
    Always,
    /// The session must not exist (NX, create).
    Absent,
    /// The session must exist (XX).
    Present,
    /// The session must exist with just this version.
    Version(Version),
    /// The session must exist with just these bytes (compare-and-delete scripts).
    ValueIs(Bytes),
}

/// What must hold for a `Touch`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum TouchCondition {
    #[default]
    Always,
    /// Only if it has no deadline (NX).
    NoDeadline,
    /// Only if it has a deadline (XX).
    HasDeadline,
    /// Only if the new deadline is later than the current one; none counts as infinitely late (GT).
    Later,
    /// Only if the new deadline is earlier than the current one (LT).
    Earlier,
    /// Only if the session has just this version.
    Version(Version),
    /// Only if the session has just these bytes (lock-extending scripts).
    ValueIs(Bytes),
}

/// How a command changes expiry. Relative times are turned into deadlines by the shard's cluster
/// time when it executes the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ExpiryChange {
    /// No expiry at all: plain SET, PERSIST (an absolute deadline, if any, still holds for PERSIST).
    #[default]
    Clear,
    /// As it was: KEEPTTL.
    Keep,
    /// In so many milliseconds from now: EX, PX, EXPIRE. Not positive: at once.
    In { ms: i64 },
    /// At this moment: EXAT, PXAT, EXPIREAT. In the past: at once.
    At { deadline: ClusterMs },
    /// A session: expires after `idle_ms` without a touch, and at `absolute` whatever happens.
    Session {
        idle_ms: Option<u32>,
        absolute: Option<AbsoluteDeadline>,
    },
    /// Touch by the session's own idle time-to-live; without one, as `Keep`.
    Slide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbsoluteDeadline {
    At(ClusterMs),
    InMs(u64),
}

/// The times and version of a session as it now is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Meta {
    pub version: Version,
    /// When it expires if nobody touches it; `None` never.
    pub deadline: Option<ClusterMs>,
    pub idle_ms: Option<u32>,
    pub absolute: Option<ClusterMs>,
    /// Time left until `deadline` by the shard's cluster time at execution, at least 1 while it lives.
    pub remaining_ms: Option<u64>,
}

/// The answer to a `Command`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Value {
        value: Bytes,
        meta: Meta,
    },
    /// Not there. `version` is the shard's counter: every later version is greater.
    Absent {
        version: Version,
    },
    /// Done. `meta.version` is the version written (a delete's is that of its tombstone). `old` is the old value if asked
    /// for, and what `Add` and `Append` tell.
    Done {
        meta: Meta,
        old: Option<Bytes>,
    },
    /// The condition did not hold; nothing changed. `current` tells the session's state, `None` if
    /// absent; `old` holds the current value when the command asked for it.
    Refused {
        version: Version,
        current: Option<Meta>,
        old: Option<Bytes>,
    },
    /// Part of a scan. Keys with a hash in `[from, next)`, all of them; `next == None`: the end.
    Scanned {
        keys: Vec<(KeyHash, Bytes)>,
        next: Option<KeyHash>,
    },
    Counted {
        sessions: u64,
        with_deadline: u64,
    },
    Usage(Usage),
    Flushed,
    Failed(Failure),
}

/// Why a command was not executed, and so what to do next. What a shard says speaks for one attempt: no record is kept
/// of it, and a repetition may fare otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// Ask whoever owns it by a newer view.
    #[error("this shard does not own the key's slot")]
    NotOwner,
    /// Ask again: the owner is not serving yet, or its lease has lapsed.
    #[error("the owner is not ready to answer")]
    NotReady,
    #[error("out of memory: delete sessions, raise --memory or add masters")]
    OutOfMemory,
    /// The write would add to a namespace that has all it may. `limit` is that of the whole cluster.
    #[error("{}", namespace_full(*namespace, *quota, *limit))]
    NamespaceFull {
        namespace: Namespace,
        quota: Quota,
        limit: u64,
    },
    #[error("value of {bytes} bytes is over the limit of {limit} of namespace {}", namespace.0)]
    NamespaceValueTooLarge {
        namespace: Namespace,
        bytes: u64,
        limit: u64,
    },
    #[error("value of {bytes} bytes is over the limit of {limit}")]
    ValueTooLarge { bytes: u64, limit: u64 },
    #[error("key of {bytes} bytes is over the limit of {limit}")]
    KeyTooLarge { bytes: u64, limit: u64 },
    #[error("too much work is queued; retry later")]
    Busy,
    /// The retry came after the time for which completion records are kept; the first attempt may
    /// or may not have been executed.
    #[error("the request came after its client's lease; its outcome is unknown")]
    StaleClient,
    /// Retried for as long as allowed; it may or may not have been executed.
    #[error("no answer within the time allowed; the outcome is unknown")]
    OutcomeUnknown,
    /// Retried for as long as allowed and never executed.
    #[error("no owner could be reached within the time allowed; nothing was executed")]
    Unreachable,
    /// The time that the caller allowed was over before it was executed, and so it was not.
    #[error("the time allowed was over before anything was executed")]
    TooLate,
    #[error("{0}")]
    Invalid(String),
}

fn namespace_full(namespace: Namespace, quota: Quota, limit: u64) -> String {
    let (number, limit) = (namespace.0, grouped(limit));
    format!(
        "namespace {number} is at its limit of {limit} {quota}: delete sessions, let some expire, or raise it \
         with `holdfast ctl namespace set {number} --{quota} <more>`"
    )
}

/// Identifies one write for exactly-once execution (RIFL, SOSP 2015).
///
/// A shard executes the write at most once and remembers its outcome until the client says that
/// it has it (`acknowledged`) or `lease_until` has passed. A retry must carry the same values as
/// the first attempt but for `acknowledged`; after `lease_until` it is refused as stale, so that a
/// forgotten outcome can never lead to a second execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Once {
    pub client: ClientId,
    /// 1, 2, 3, … per client.
    pub sequence: u64,
    /// The client has the outcomes of all its writes below this sequence number, and no attempt at
    /// one of them is under way any more: each was answered, or its `lease_until` has passed. An
    /// attempt given up without an answer may still arrive, through a new owner that does not know
    /// what was acknowledged to the old one.
    pub acknowledged: u64,
    pub lease_until: ClusterMs,
}
