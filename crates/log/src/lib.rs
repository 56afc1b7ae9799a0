//! One shard's memory: segments in seglets, object index, expiry, cleaner, side log.
//!
//! Floor 1. No I/O, no clock, no wire: time comes as an argument, replication happens elsewhere
//! and is told here with `set_durable`. One thread owns a `Log`.

use bytes::Bytes;
pub use holdfast_format::Expiry;
use holdfast_format::{
    ClientId, ClusterMs, EntryError, KeyHash, LogId, Namespace, Position, SegmentId, Slot,
    SlotRange, Version,
};

#[derive(Clone, Debug)]
pub struct Config {
    /// Hard bound on segments, index, completion records and everything else a `Log` allocates.
    pub memory_bytes: u64,
    /// 8 MiB; smaller in tests. A power of two, at least 64 KiB.
    pub segment_bytes: u32,
    /// 64 KiB; smaller in tests. Divides `segment_bytes`.
    pub seglet_bytes: u32,
    pub key_bytes_max: u32,
    pub value_bytes_max: u32,
    /// Memory of expired sessions is reused only so long after the deadline (design §3).
    pub expiry_slack_ms: u32,
}

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

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

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

impl Config {
    /// Small and fast: 4 MiB in segments of 64 KiB and seglets of 4 KiB.
    pub fn for_testing() -> Config {
        unimplemented!()
    }
    pub fn validate(&self) -> Result<(), ConfigError> {
        unimplemented!()
    }
}

#[derive(Debug)]
pub struct Log {}

#[allow(unused_variables)]
impl Log {
    /// Opens the first head at once.
    pub fn new(id: LogId, config: Config) -> Result<Log, ConfigError> {
        unimplemented!()
    }
    pub fn id(&self) -> LogId {
        unimplemented!()
    }
    pub fn config(&self) -> &Config {
        unimplemented!()
    }
    pub fn find(&self, namespace: Namespace, key: &[u8], now: ClusterMs) -> Option<Found<'_>> {
        unimplemented!()
    }
    pub fn prefetch(&self, hash: KeyHash) {
        unimplemented!()
    }
    pub fn last_version(&self) -> Version {
        unimplemented!()
    }
    pub fn next_version(&self) -> Version {
        unimplemented!()
    }
    pub fn scan(
        &self,
        namespace: Namespace,
        from: KeyHash,
        limit: usize,
        now: ClusterMs,
        keys: &mut Vec<(KeyHash, Bytes)>,
        owned: &dyn Fn(Slot) -> bool,
    ) -> Option<KeyHash> {
        unimplemented!()
    }
    pub fn count(&self, namespace: Namespace) -> SessionCount {
        unimplemented!()
    }
    /// The version that `put` with these arguments would return: an identical value with the same
    /// idle time and absolute deadline is stored as a touch and keeps its version. For the outcome in
    /// the put's own completion record.
    pub fn put_version(
        &self,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        now: ClusterMs,
    ) -> Version {
        unimplemented!()
    }
    pub fn put(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        unimplemented!()
    }
    pub fn touch(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        deadline: Option<ClusterMs>,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<bool, AppendError> {
        unimplemented!()
    }
    pub fn delete(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Option<Version>, AppendError> {
        unimplemented!()
    }
    pub fn flush(
        &mut self,
        namespace: Namespace,
        ranges: &[SlotRange],
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        unimplemented!()
    }
    pub fn record(&mut self, completion: Completion<'_>) -> Result<(), AppendError> {
        unimplemented!()
    }
    pub fn completion(&self, client: ClientId, sequence: u64) -> Option<&[u8]> {
        unimplemented!()
    }
    pub fn acknowledge(&mut self, client: ClientId, below: u64) {
        unimplemented!()
    }
    pub fn end(&self) -> Position {
        unimplemented!()
    }
    pub fn goals(&self) -> impl Iterator<Item = SegmentGoal> + '_ {
        std::iter::empty()
    }
    pub fn goal(&self, segment: SegmentId) -> Option<SegmentGoal> {
        unimplemented!()
    }
    pub fn change(&self) -> u64 {
        unimplemented!()
    }
    pub fn bytes(&self, segment: SegmentId, from: u32, to: u32) -> &[u8] {
        unimplemented!()
    }
    pub fn set_durable(&mut self, segment: SegmentId, length: u32, closed: bool) {
        unimplemented!()
    }
    pub fn take_freed(&mut self) -> Vec<SegmentId> {
        unimplemented!()
    }
    pub fn clean(&mut self, now: ClusterMs, budget_bytes: u64) -> bool {
        unimplemented!()
    }
    pub fn sweep(&mut self, now: ClusterMs, budget_buckets: u32) {
        unimplemented!()
    }
    pub fn replay_begin(&mut self) -> ReplayId {
        unimplemented!()
    }
    pub fn replay(
        &mut self,
        id: ReplayId,
        entries: &[u8],
        now: ClusterMs,
    ) -> Result<Replayed, ReplayError> {
        unimplemented!()
    }
    pub fn replay_finish(&mut self, id: ReplayId, version_ceiling: Version) {
        unimplemented!()
    }
    pub fn replay_committed(&self, id: ReplayId) -> bool {
        unimplemented!()
    }
    pub fn replay_abort(&mut self, id: ReplayId, ranges: &[SlotRange]) {
        unimplemented!()
    }
    pub fn memory(&self) -> MemoryUse {
        unimplemented!()
    }
    pub fn verify(&self) {
        unimplemented!()
    }
}
