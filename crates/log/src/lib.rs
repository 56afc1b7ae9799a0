//! One shard's memory: segments in seglets, object index, expiry, cleaner, side log.
//!
//! Floor 1. No I/O, no clock, no wire: time comes as an argument, replication happens elsewhere
//! and is told here with `set_durable`. One thread owns a `Log`.

mod cleaner;
mod completions;
mod config;
mod flushes;
mod index;
mod invariants;
mod log;
mod prefetch;
mod region;
mod replay;
mod segments;
mod session;
mod sweep;

pub use holdfast_format::Expiry;
use holdfast_format::{ClientId, ClusterMs, EntryError, SegmentId, Slot, Version};

pub use crate::config::{Config, ConfigError};
pub use crate::log::Log;

/// A write that must be remembered for exactly-once execution; appended atomically with its effect.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    pub client: ClientId,
    pub sequence: u64,
    pub lease_until: ClusterMs,
    /// Filed under the key's slot so that it moves with it.
    pub slot: Slot,
    /// The encoded outcome; opaque here.
    pub outcome: &'a [u8],
}

/// A live session.
#[derive(Clone, Copy, Debug)]
pub struct Found<'log> {
    pub version: Version,
    pub value: &'log [u8],
    pub expiry: Expiry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Reads, deletes and touches still work; the caller answers OOM.
    #[error("no memory left for this entry")]
    OutOfMemory,
    #[error("key too large")]
    KeyTooLarge,
    #[error("value too large")]
    ValueTooLarge,
}

/// A segment that must have replicas, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentGoal {
    pub id: SegmentId,
    /// Appended bytes; always at the end of an atomic append.
    pub length: u32,
    pub closed: bool,
    pub kind: SegmentKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// The head or a former head. Bytes past `opening` (segment header and digest) may be sent only
    /// when the segment `follows` is closed on all its replicas, which in turn may be closed only when
    /// `[0, opening)` of this one is on all of its own. That way the newest open replica always
    /// tells the truth (design §5.3).
    Head {
        opening: u32,
        follows: Option<SegmentId>,
    },
    /// Written by the cleaner or by a replay: ships freely, and enters a digest once closed and durable.
    Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplayId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Replayed {
    pub entries: u64,
    pub kept: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemoryUse {
    pub limit_bytes: u64,
    /// Segments (whole seglets in use), index, completion records.
    pub used_bytes: u64,
    /// Bytes of live entries.
    pub live_bytes: u64,
    pub index_bytes: u64,
    pub reserved_bytes: u64,
    pub segments: u64,
    /// Bytes the cleaner has copied since start.
    pub cleaned_bytes: u64,
}

/// How many sessions a namespace has, as of the last sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SessionCount {
    pub sessions: u64,
    pub with_deadline: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Give up this recovery; the ranges go to another shard.
    #[error("no memory left for what is replayed")]
    OutOfMemory,
    /// Ask another holder for the segment.
    #[error("bad entry at offset {offset}: {error}")]
    Corrupt { offset: usize, error: EntryError },
}
