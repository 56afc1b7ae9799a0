//! What an operator decides about a log.

use holdfast_format::{
    COMPLETION_HEADER_BYTES, Digest, KEY_BYTES_MAX, LONG_HEADER_BYTES, SEGMENT_HEADER_BYTES,
    VALUE_BYTES_MAX,
};

use crate::index::OFFSET_BITS;
use crate::lifetimes::LIFETIMES_BYTES;

#[derive(Clone, Debug)]
pub struct Config {
    /// Hard bound on segments, index, completion records and everything else a `Log` allocates, and on
    /// what `Log::set_external_bytes` tells.
    pub memory_bytes: u64,
    /// Part of `memory_bytes` that the log leaves to what is outside it. Memory of the region stays with
    /// the process once it was touched, so only what was never part of it is room for something else.
    pub outside_bytes: u64,
    /// 8 MiB; smaller in tests. A power of two, at least 64 KiB.
    pub segment_bytes: u32,
    /// 64 KiB; smaller in tests. Divides `segment_bytes`.
    pub seglet_bytes: u32,
    pub key_bytes_max: u32,
    pub value_bytes_max: u32,
    /// Memory of expired sessions is reused only so long after the deadline (design §3).
    pub expiry_slack_ms: u32,
    /// Segments may be so many on backups, in percent of what would fill the memory. More of them cost backups
    /// space and save copying: compacted in memory, they may be emptier when their replicas are made anew.
    pub replica_expansion_percent: u32,
    pub cleaner: CleanerOptions,
}

/// What the cleaner does; switched off only to measure what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanerOptions {
    /// Compaction in memory besides combined cleaning.
    pub two_level: bool,
    /// Knowledge of how long what lives will live.
    pub lifetimes: bool,
}

impl Default for CleanerOptions {
    fn default() -> CleanerOptions {
        CleanerOptions {
            two_level: true,
            lifetimes: true,
        }
    }
}

/// Why a `Config` cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Blocks that a log cannot do without: index, head, the cleaner's, that of deletes and touches, and
/// as many again to hold sessions.
const BLOCKS_MIN: u64 = 8;

impl Config {
    /// Small and fast: 4 MiB in segments of 64 KiB and seglets of 4 KiB.
    pub fn for_testing() -> Config {
        Config {
            memory_bytes: 4 << 20,
            outside_bytes: 0,
            segment_bytes: 64 << 10,
            seglet_bytes: 4 << 10,
            key_bytes_max: 1 << 10,
            value_bytes_max: 16 << 10,
            expiry_slack_ms: 100,
            replica_expansion_percent: 200,
            cleaner: CleanerOptions::default(),
        }
    }

    /// Says what is wrong with the first thing that is.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |holds: bool, error: String| {
            if holds {
                Ok(())
            } else {
                Err(ConfigError(error))
            }
        };
        let Config {
            memory_bytes,
            segment_bytes,
            seglet_bytes,
            ..
        } = *self;
        check(
            segment_bytes.is_power_of_two() && (64 << 10..=128 << 20).contains(&segment_bytes),
            format!(
                "segment_bytes is {segment_bytes}; it must be a power of two from 64 KiB to 128 MiB"
            ),
        )?;
        check(
            seglet_bytes.is_power_of_two()
                && seglet_bytes >= 4 << 10
                && seglet_bytes <= segment_bytes
                && segment_bytes / seglet_bytes <= 128,
            format!(
                "seglet_bytes is {seglet_bytes}; it must be a power of two of at least 4 KiB, and a \
                 segment must have 1 to 128 of them"
            ),
        )?;
        check(
            self.key_bytes_max as usize <= KEY_BYTES_MAX
                && self.value_bytes_max as usize <= VALUE_BYTES_MAX,
            format!("keys have at most {KEY_BYTES_MAX} bytes and values {VALUE_BYTES_MAX}"),
        )?;
        check(
            memory_bytes <= 1 << OFFSET_BITS,
            format!("memory_bytes is {memory_bytes}; a log has at most 1 TiB"),
        )?;
        // An object and its completion record, whose outcome may hold an old value, form one append.
        let largest = u64::from(self.key_bytes_max)
            + 2 * u64::from(self.value_bytes_max)
            + (LONG_HEADER_BYTES + COMPLETION_HEADER_BYTES) as u64;
        check(
            largest <= u64::from(segment_bytes) * 3 / 4,
            format!("the largest write of {largest} bytes needs segments a third larger than that"),
        )?;
        check(
            (100..=1000).contains(&self.replica_expansion_percent),
            format!(
                "replica_expansion_percent is {}; it must be from 100 to 1000",
                self.replica_expansion_percent
            ),
        )?;
        check(
            self.blocks() >= BLOCKS_MIN,
            format!(
                "memory_bytes is {memory_bytes}; it must hold {BLOCKS_MIN} segments and the log's own tables"
            ),
        )
    }

    /// Segments that the memory beside the tables would hold if all were full.
    pub(crate) fn blocks(&self) -> u64 {
        self.seglets() / u64::from(self.segment_seglets())
    }

    /// Seglets that fit in memory beside the tables.
    pub(crate) fn seglets(&self) -> u64 {
        let rest = (self.memory_bytes)
            .saturating_sub(self.outside_bytes)
            .saturating_sub(FIXED_BYTES);
        rest / (u64::from(self.seglet_bytes) + self.table_bytes_per_seglet())
    }

    pub(crate) fn segment_seglets(&self) -> u32 {
        self.segment_bytes / self.seglet_bytes
    }

    /// Everything allocated beside the region, apart from what is charged per record.
    pub(crate) fn table_bytes(&self) -> u64 {
        FIXED_BYTES + self.seglets() * self.table_bytes_per_seglet()
    }

    /// Segments may be so many that a digest of them fits in a quarter of a head.
    pub(crate) fn segments_max(&self) -> usize {
        (self.segment_bytes as usize / 4 - SEGMENT_HEADER_BYTES - Digest::encoded_len(0)) / 8
    }

    /// Segments may be so many on backups; a small log has some more for its short heads.
    pub(crate) fn replica_segments_max(&self) -> usize {
        let blocks = self.blocks() as usize;
        let expanded = blocks * self.replica_expansion_percent as usize / 100;
        expanded.max(blocks + 16).min(self.segments_max())
    }

    fn table_bytes_per_seglet(&self) -> u64 {
        // An owner, an index chunk's number, its share of an extent or of a free run; and a segment's tables.
        let expansion = u64::from(self.replica_expansion_percent);
        4 + 4 + 24 + SEGMENT_TABLE_BYTES * expansion / 100 / u64::from(self.segment_seglets())
    }
}

/// What is kept of one segment besides its bytes, with its place in the order of ids.
const SEGMENT_TABLE_BYTES: u64 = 320 + LIFETIMES_BYTES;

/// Counters per namespace, slots seen, and small change.
const FIXED_BYTES: u64 = 32 << 10;
