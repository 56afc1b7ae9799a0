//! What a backup must be told, and what makes no sense.

use holdfast_cluster::FRAME_HEADER_BYTES;
use holdfast_format::ServerId;
use holdfast_wire::{Member, Role};

/// Settings of one backup. Every bound on its memory and work stands here.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    pub member: Member,
    /// Room for one segment in a frame; at least the masters' segment size.
    pub segment_bytes: u32,
    /// How many frames the store has: the bound on disk.
    pub frames: u32,
    /// Frames that only replacements of replicas held here may take, so that a replica can be made
    /// again beside the old one in a store that is otherwise full.
    pub frames_reserved: u32,
    /// Replicas read for one recovery master and kept for the next, which asks for other slots of
    /// the same segments.
    pub read_cache_bytes: u64,
    /// Whole-replica reads under way at once; each costs `segment_bytes` of memory.
    pub reads_in_flight_max: u32,
    /// Syncs under way at once, over all frames (never more than one per frame).
    pub syncs_in_flight_max: u32,
    /// Fetches waiting, of all requesters; more are refused with `FetchFailed`.
    pub fetches_queued_max: u32,
    /// As above, of one requester, so that none starves the others.
    pub fetches_per_requester_max: u32,
    /// Size of a `FetchPart`, and bytes examined for it in one step.
    pub fetch_part_bytes: u32,
    /// Questions for the entries of one key, of all requesters; who asks more fetches segments. 0: all do.
    pub lookups_max: u32,
    /// Every closed replica is read back and verified once in so long; 0: never. A terabyte in a day is 12 MB/s.
    pub scrub_period_ms: u64,
}

impl BackupConfig {
    /// The defaults for `member` with a store of `frames` frames.
    pub fn new(member: Member, segment_bytes: u32, frames: u32) -> BackupConfig {
        BackupConfig {
            member,
            segment_bytes,
            frames,
            frames_reserved: (frames / 16).min(2),
            read_cache_bytes: 32 << 20,
            reads_in_flight_max: 4,
            syncs_in_flight_max: 16,
            fetches_queued_max: 256,
            fetches_per_requester_max: 32,
            fetch_part_bytes: 1 << 20,
            lookups_max: 512,
            scrub_period_ms: 24 * 3_600_000,
        }
    }

    /// Small and fast: 64 KiB segments in 32 frames.
    pub fn for_testing(member: Member) -> BackupConfig {
        BackupConfig {
            read_cache_bytes: 256 << 10,
            fetch_part_bytes: 8 << 10,
            scrub_period_ms: 8_000,
            ..BackupConfig::new(member, 64 << 10, 32)
        }
    }

    /// Explains what cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.member.role != Role::Backup || self.member.id == ServerId::COORDINATOR {
            return Err(ConfigError::NotABackup);
        }
        if self.segment_bytes < 4096 || self.segment_bytes > u32::MAX - FRAME_HEADER_BYTES {
            return Err(ConfigError::SegmentBytes(self.segment_bytes));
        }
        if self.frames == 0 || self.frames_reserved >= self.frames {
            return Err(ConfigError::Frames {
                frames: self.frames,
                reserved: self.frames_reserved,
            });
        }
        let limits = [
            ("reads_in_flight_max", self.reads_in_flight_max),
            ("syncs_in_flight_max", self.syncs_in_flight_max),
            ("fetches_queued_max", self.fetches_queued_max),
            ("fetches_per_requester_max", self.fetches_per_requester_max),
            ("fetch_part_bytes", self.fetch_part_bytes),
        ];
        match limits.iter().find(|(_, limit)| *limit == 0) {
            Some((name, _)) => Err(ConfigError::Zero(name)),
            None => Ok(()),
        }
    }
}

/// Why a backup cannot start. Correct the configuration, or give it the store that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("a backup needs a member with the role Backup and an id other than the coordinator's")]
    NotABackup,
    #[error("segment_bytes of {0} is not between 4096 and 4 GiB less a frame header")]
    SegmentBytes(u32),
    #[error("{frames} frames of which {reserved} are reserved leave none for replicas")]
    Frames { frames: u32, reserved: u32 },
    #[error("{0} must not be 0")]
    Zero(&'static str),
    #[error(
        "the store gives frame {frame} a header of {bytes} bytes; the backup has {frames} frames"
    )]
    Store {
        frame: u32,
        bytes: usize,
        frames: u32,
    },
}
