//! What a gateway is told at its start.

use holdfast_format::ServerId;
use holdfast_wire::{Member, Role};

/// Which face a gateway shows its RESP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One address for everything: any key, never MOVED, SCAN sees the whole key space.
    Flat,
    /// The Redis Cluster port of one shard: MOVED for what others own, SCAN sees this shard.
    Cluster { shard: ServerId },
}

#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub member: Member,
    pub mode: Mode,
    /// What connections must authenticate with; `None`: nothing.
    pub password: Option<String>,
    /// How long a command is retried before its connection is told that it failed.
    pub retry_ms: u32,
    /// Commands accepted and unanswered; one more is answered -BUSY.
    pub pending_max: usize,
    /// Bytes of keys and values in them, with the same answer. With so many bytes of replies withheld for the
    /// shard of the own thread, commands for it go as messages, under the same bounds as others.
    pub pending_bytes_max: u64,
    /// The longest value; also bounds what the parser takes for one argument.
    pub value_bytes_max: u32,
    /// The longest key; an entry has 16 bits for its length.
    pub key_bytes_max: u32,
    /// While there is more to do than can be done, what has waited for longer is answered -BUSY at once, and so are
    /// ever more of those who would create a session (`holdfast_cluster::Admission`); 0: nothing is.
    pub queue_wait_ms: u32,
    /// Of what comes in 100 ms, less than this that is late is no sign of having too much to do.
    pub overload_bytes_min: u64,
    /// Replies of one connection that wait for earlier ones or to be taken by the driver; beyond it
    /// the connection is closed.
    pub output_bytes_max: usize,
    /// Bytes of one connection received and not yet executed; beyond it the connection is closed.
    pub input_bytes_max: usize,
    /// Replies that one connection may wait for; its further requests stay unparsed until then.
    pub replies_max: usize,
    pub connections_max: usize,
    /// Connections that may have selected one namespace; `None`: as many as there may be at all.
    pub namespace_connections_max: Option<usize>,
    /// False: FLUSHDB and FLUSHALL are refused.
    pub allow_flush: bool,
    /// Where the RESP port listens, as INFO tells it; 0: unknown.
    pub resp_port: u16,
}

impl GatewayConfig {
    /// The defaults.
    pub fn new(member: Member, mode: Mode) -> GatewayConfig {
        GatewayConfig {
            member,
            mode,
            password: None,
            retry_ms: 2_000,
            pending_max: 65_536,
            pending_bytes_max: 64 << 20,
            value_bytes_max: 1 << 20,
            key_bytes_max: 65_535,
            queue_wait_ms: 100,
            // 2,500 requests a second of 32 bytes, 10 us each, take 2.5 % of a core: whatever keeps such a thread from
            // answering, it is not that too much is asked of it.
            overload_bytes_min: 8 << 10,
            output_bytes_max: 64 << 20,
            input_bytes_max: 64 << 20,
            replies_max: 1_024,
            connections_max: 10_000,
            namespace_connections_max: None,
            allow_flush: true,
            resp_port: 0,
        }
    }

    /// Small bounds, so that tests reach them.
    pub fn for_testing(member: Member, mode: Mode) -> GatewayConfig {
        GatewayConfig {
            pending_max: 256,
            pending_bytes_max: 1 << 20,
            value_bytes_max: 64 << 10,
            key_bytes_max: 1 << 10,
            queue_wait_ms: 10,
            overload_bytes_min: 64,
            output_bytes_max: 256 << 10,
            input_bytes_max: 32 << 20,
            replies_max: 16,
            connections_max: 8,
            ..GatewayConfig::new(member, mode)
        }
    }

    /// Refuses what could not work, and says why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |text: &'static str| Err(ConfigError(text));
        if self.member.role != Role::Gateway {
            return refuse("member.role must be Gateway");
        }
        if self.retry_ms == 0 || self.retry_ms > 30_000 {
            return refuse("retry_ms must be 1 to 30000: completion records are kept for 60000");
        }
        if self.pending_max == 0 || self.replies_max == 0 || self.connections_max == 0 {
            return refuse("pending_max, replies_max and connections_max must not be 0");
        }
        if self.pending_bytes_max < u64::from(self.value_bytes_max) + 1024 * 128 {
            return refuse("pending_bytes_max must have room for a value and a key");
        }
        if self.output_bytes_max < self.value_bytes_max as usize + 1024 {
            return refuse("output_bytes_max must have room for a value");
        }
        if self.input_bytes_max < (16 << 20) + 2 * self.value_bytes_max as usize {
            return refuse(
                "input_bytes_max must have room for the longest request: 16 MiB and two values",
            );
        }
        if self.password.as_ref().is_some_and(String::is_empty) {
            return refuse("password must not be empty; leave it out for none");
        }
        Ok(())
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gateway: {0}")]
pub struct ConfigError(pub &'static str);
