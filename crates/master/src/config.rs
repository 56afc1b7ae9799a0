//! What a shard is told when it starts.

use holdfast_wire::{Member, Role};

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the member of a shard must have role shard, and an id other than the coordinator's")]
    NotAShard,
    #[error(
        "unreplicated_bytes_max is {given}, less than one largest value of {value_bytes_max}: no such write could ever be taken"
    )]
    UnreplicatedTooSmall { given: u64, value_bytes_max: u32 },
    #[error("{0} must not be 0")]
    Zero(&'static str),
    #[error("the log cannot work so: {0}")]
    Log(#[from] holdfast_log::ConfigError),
}

/// A shard's configuration. What must be the same everywhere (replicas, lease) comes from the
/// coordinator instead, when the shard enlists.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub member: Member,
    pub log: holdfast_log::Config,
    /// Bytes appended and not yet on all replicas; beyond it writes are refused as `Busy`. It bounds
    /// what one append can carry and how long a write can wait behind others.
    pub unreplicated_bytes_max: u64,
    /// Answers withheld because something they depend on is not durable, or for want of a lease;
    /// beyond it every command is refused as `Busy`.
    pub queued_requests_max: u32,
    /// Memory that answers withheld may take, above which it is the same. It counts against the log's
    /// `memory_bytes` (`Log::set_external_bytes`).
    pub queued_bytes_max: u64,
    /// Clients whose streams are remembered. A further one is refused as `Busy` unless some client
    /// has been silent for so long that nothing of it can still be under way.
    pub clients_max: u32,
    /// Bytes that the segments fetched by one recovery may bring together before they are replayed; one segment is
    /// fetched whatever it brings.
    pub recovery_window_bytes: u64,
    /// Bytes of one append of a replica that is copied: as many as the appends of heads, which share the stream, can wait
    /// for.
    pub copy_piece_bytes: u32,
    /// Map the log's memory in the background after start, before it is needed (`Log::touch_ahead`). Without it
    /// the process grows as memory comes into use, and requests pay for fresh pages.
    pub touch_memory: bool,
}

impl ShardConfig {
    /// The usual bounds around the given log.
    pub fn new(member: Member, log: holdfast_log::Config) -> ShardConfig {
        let value_bytes_max = u64::from(log.value_bytes_max);
        // All of it counts against the bound on memory: where that is small, so are these.
        let part = log.memory_bytes / 16;
        ShardConfig {
            member,
            // A tenth of a second at 160 MB/s, and several of the largest values.
            unreplicated_bytes_max: part.min(16 << 20).max(4 * value_bytes_max),
            // At 1 million operations a second and 5 ms until durable, 5,000 wait; ten times that.
            queued_requests_max: 50_000,
            // 5 ms of reading at 4 GB/s, and several of the largest values.
            queued_bytes_max: part.min(32 << 20).max(4 * value_bytes_max),
            clients_max: 65_536,
            // So that every backup has several segments to work on.
            recovery_window_bytes: 32 << 20,
            // About a millisecond.
            copy_piece_bytes: 1 << 20,
            touch_memory: true,
            log,
        }
    }

    /// Small and fast.
    pub fn for_testing(member: Member) -> ShardConfig {
        ShardConfig {
            unreplicated_bytes_max: 256 << 10,
            queued_requests_max: 1_000,
            clients_max: 64,
            ..ShardConfig::new(member, holdfast_log::Config::for_testing())
        }
    }

    /// Says what cannot work and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.member.role != Role::Shard || self.member.id.0 == 0 {
            return Err(ConfigError::NotAShard);
        }
        if self.unreplicated_bytes_max < u64::from(self.log.value_bytes_max) {
            return Err(ConfigError::UnreplicatedTooSmall {
                given: self.unreplicated_bytes_max,
                value_bytes_max: self.log.value_bytes_max,
            });
        }
        if self.queued_requests_max == 0 {
            return Err(ConfigError::Zero("queued_requests_max"));
        }
        if self.queued_bytes_max == 0 {
            return Err(ConfigError::Zero("queued_bytes_max"));
        }
        if self.copy_piece_bytes == 0 {
            return Err(ConfigError::Zero("copy_piece_bytes"));
        }
        if self.clients_max == 0 {
            return Err(ConfigError::Zero("clients_max"));
        }
        Ok(())
    }
}
