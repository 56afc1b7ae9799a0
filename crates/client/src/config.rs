//! Bounds and patience of a client core.

/// How much a `Core` takes on, and for how long it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Commands accepted and not yet answered; one more is answered `Failure::Busy` at once.
    pub pending_max: usize,
    /// Bytes of keys and values in them, with the same answer.
    pub pending_bytes_max: u64,
    /// Commands on their way to one shard; further ones wait here, where they cost no repetition.
    pub window_max: usize,
    /// Bytes of commands in one `Requests` message, well below the frame limit; at least one
    /// command is sent however large it is.
    pub batch_bytes_max: usize,
    /// For how long a shard keeps the outcome of a write whose answer was lost. Longer than any
    /// request lives, so that a retry never finds its record gone.
    pub lease_ms: u64,
    /// A shard that leaves a command unanswered for so long is asked again. Adapts upwards to the
    /// round trips seen, and doubles with every silence in a row.
    pub silence_ms_min: u64,
    pub silence_ms_max: u64,
}

impl Config {
    /// What a gateway uses.
    pub fn new() -> Config {
        Config {
            pending_max: 65_536,
            pending_bytes_max: 64 << 20,
            window_max: 1_024,
            batch_bytes_max: 1 << 20,
            lease_ms: 60_000,
            silence_ms_min: 250,
            silence_ms_max: 1_000,
        }
    }

    /// Small bounds, so that tests reach them.
    pub fn for_testing() -> Config {
        Config {
            pending_max: 64,
            pending_bytes_max: 1 << 20,
            window_max: 8,
            batch_bytes_max: 4 << 10,
            ..Config::new()
        }
    }

    /// Refuses what could not work, and says why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |text: &'static str| Err(ConfigError(text));
        if self.pending_max == 0 || self.window_max == 0 || self.pending_bytes_max == 0 {
            return refuse("pending_max, pending_bytes_max and window_max must not be 0");
        }
        if self.silence_ms_min == 0 || self.silence_ms_max < self.silence_ms_min {
            return refuse("silence_ms_min must be positive and at most silence_ms_max");
        }
        if self.lease_ms < 1_000 {
            return refuse("lease_ms must be at least 1000: it outlives every retry");
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new()
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("client: {0}")]
pub struct ConfigError(pub &'static str);
