//! Ids and quantities that could be swapped by mistake, each a type of its own.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id!(
    /// One incarnation of one member: a shard of a master, a backup, a gateway or the coordinator.
    ///
    /// Chosen at random by the member when it starts, so a restarted member is a new one and
    /// whatever was promised to the old one cannot be mistaken for a promise to it.
    ServerId(u64), "s"
);
impl ServerId {
    /// The active coordinator, whoever plays it.
    pub const COORDINATOR: ServerId = ServerId(0);
}

id!(
    /// The log of one shard. Its number is that of the shard's `ServerId`: a log never outlives
    /// the incarnation that writes it, except as something to recover from.
    LogId(u64), "l"
);
impl LogId {
    /// The log that `shard` writes.
    pub fn of(shard: ServerId) -> LogId {
        LogId(shard.0)
    }
    /// The shard that writes, or wrote, this log.
    pub fn shard(self) -> ServerId {
        ServerId(self.0)
    }
}

id!(
    /// A client whose writes are executed exactly once: a gateway's incarnation or an application's.
    ClientId(u64), "c"
);
id!(
    /// A segment of one log. Ids rise in the order in which segments are opened.
    SegmentId(u64), "g"
);
id!(
    /// The number that fences: appends carry their log's epoch and backups refuse an older one.
    Epoch(u64), "e"
);
id!(
    /// An object's version: from one counter per shard, never going back for a key. 56 bits are stored.
    Version(u64), "v"
);
id!(
    /// A 64-bit hash of namespace and key; decides index bucket, tag and SCAN order.
    KeyHash(u64), "h"
);
id!(
    /// An isolated key space with its own limits. RESP `SELECT n` names namespace `n`.
    Namespace(u8), "n"
);

/// Milliseconds of cluster time since the Unix epoch. Expiry is judged by it and by nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ClusterMs(pub u64);

impl ClusterMs {
    /// Later by `ms`, saturating.
    pub fn plus_ms(self, ms: u64) -> ClusterMs {
        ClusterMs(self.0.saturating_add(ms))
    }
}

/// A place in a log: bytes `[0, offset)` of `segment` and everything before that segment.
///
/// Compares in log order because head segments are opened with rising ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Position {
    pub segment: SegmentId,
    pub offset: u32,
}
