//! One shard's memory: segments in seglets, object index, expiry, cleaner, side log.
//!
//! Floor 1. No I/O, no clock, no wire: time comes as an argument, replication happens elsewhere
//! and is told here with `set_durable`. One thread owns a `Log`; nothing in it locks or waits.
//!
//! Where to begin: `log` has the whole, `space` who gets memory and how heads follow each other, `session` what clients
//! do, `segments` and `extents` how a segment lives and where its bytes are, `index` and `region` the two structures
//! underneath, `cleaner` and `sweep` what goes on in the background, `evict` who
//! makes room, `replay` recovery.
//!
//! Whoever drives a log calls `clean` and `sweep` often, with small budgets, and replicates what `goals` says.
//! While it has time it calls `touch_ahead` until that is done, or has a `Toucher` do it on another thread.

mod choosing;
mod cleaner;
mod completions;
mod config;
mod copying;
mod evict;
mod extents;
mod flushes;
mod index;
mod invariants;
mod lifetimes;
mod log;
mod memory;
mod pacing;
mod prefetch;
mod profile;
mod region;
mod replay;
mod segments;
mod session;
mod space;
mod sweep;
mod tags;

pub use holdfast_format::Expiry;
use holdfast_format::{ClientId, ClusterMs, EntryError, KeyHash, SegmentId, Slot, Version};

pub use crate::config::{CleanerOptions, Config, ConfigError};
pub use crate::log::Log;
pub use crate::memory::Toucher;
pub use crate::profile::Load;

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
    /// Borrowed from the log: nothing can move it while it is in use.
    pub value: &'log [u8],
    /// With the deadline of the newest touch.
    pub expiry: Expiry,
}

/// Why nothing was appended. The log is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Reads, deletes and touches still work; the caller answers OOM.
    #[error("no memory left for this entry")]
    OutOfMemory,
    /// Over `Config::key_bytes_max`.
    #[error("key too large")]
    KeyTooLarge,
    /// Over `Config::value_bytes_max`, or an outcome that no segment could take.
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
    /// How often compaction has put other bytes in the place of a closed segment's; 0 until then. Replicas
    /// closed before it rose keep their worth, each with its own certificate; one that is not closed yet
    /// starts again from 0.
    pub rewrite: u32,
    pub kind: SegmentKind,
}

/// What a segment is to replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// The head or a former head. Bytes past `opening` (segment header and digest) may be sent only
    /// when the segment `follows` is closed on all its replicas, which in turn may be closed only when
    /// `[0, opening)` of this one is on all of its own (`docs/design-notes.md`, "Replication", R2).
    /// `follows` is `None` for a log's first head, and once the predecessor has been freed.
    Head {
        opening: u32,
        follows: Option<SegmentId>,
    },
    /// Written by the cleaner or by a replay: ships freely, and enters a digest once closed and durable.
    Side,
}

/// One recovery into a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplayId(pub u64);

/// What one call of `Log::replay` has gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Replayed {
    pub entries: u64,
    /// Entries that won against what was there.
    pub kept: u64,
    pub bytes: u64,
}

/// Where the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemoryUse {
    pub limit_bytes: u64,
    /// Segments and index (whole seglets in use), completion records, tables, and `external_bytes`.
    /// Without the last, never above the limit.
    pub used_bytes: u64,
    /// Bytes of live entries.
    pub live_bytes: u64,
    /// Garbage in segments that the cleaner can turn into free memory.
    pub reclaimable_bytes: u64,
    /// What puts may not use: kept for the cleaner, deletes and touches, and for what is outside the log.
    pub reserved_bytes: u64,
    pub index_bytes: u64,
    /// Charged for completion records and range tombstones.
    pub records_bytes: u64,
    /// What `set_external_bytes` has told.
    pub external_bytes: u64,
    /// Segments in memory; each has its replicas.
    pub segments: u64,
    /// Memory of the segments: whole seglets.
    pub segment_bytes: u64,
    /// Segments on backups; the next one beyond the maximum is refused to puts.
    pub replica_segments: u64,
    pub replica_segments_max: u64,
    /// Bytes that combined cleaning has copied to survivors since start; each goes to all replicas.
    pub cleaned_bytes: u64,
    /// Bytes that compaction has copied since start, in memory only.
    pub compacted_bytes: u64,
    /// The system has taken the advice to use large pages.
    pub huge_pages: bool,
    /// Sessions found expired and forgotten since start.
    pub expired_sessions: u64,
}

/// A session that made room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub hash: KeyHash,
    /// What its namespace counted for it.
    pub bytes: u64,
}

/// What a namespace has; expired sessions count until the sweep has met them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SessionCount {
    pub sessions: u64,
    pub with_deadline: u64,
    /// Keys, values and headers, as the objects stand in the log.
    pub bytes: u64,
}

/// Why a replay stopped half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Give up this recovery; the ranges go to another shard.
    #[error("no memory left for what is replayed")]
    OutOfMemory,
    /// Ask another holder for the segment.
    #[error("bad entry at offset {offset}: {error}")]
    Corrupt { offset: usize, error: EntryError },
}
