//! What a gateway counts, for INFO and its metrics.

use holdfast_wire::Outcome;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_total: u64,
    pub(crate) connections_rejected: u64,
    pub(crate) connections_closed: u64,
    pub(crate) commands_total: u64,
    pub(crate) calls_total: u64,
    /// Refused because they had waited for too long, or would have created a session under overload.
    pub(crate) refused_late: u64,
    pub(crate) refused_creations: u64,
    /// Commands that the shard on this thread has executed.
    pub(crate) beside: u64,
    /// Their replies that were given up.
    pub(crate) withheld_given_up: u64,
    pub(crate) errors_total: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) input_bytes: u64,
    pub(crate) output_bytes: u64,
}

impl Counters {
    pub(crate) fn give_up(&mut self, replies: u32) {
        self.errors_total += u64::from(replies);
        self.withheld_given_up += u64::from(replies);
    }

    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(_) => self.errors_total += 1,
            Outcome::Value { .. } => self.hits += 1,
            Outcome::Absent { .. } => self.misses += 1,
            _ => {}
        }
    }
}

/// Commands in the last full second.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    pub(crate) since_us: u64,
    pub(crate) commands_before: u64,
    pub(crate) per_s: u64,
}

impl Rate {
    pub(crate) fn note(&mut self, now_us: u64, commands_total: u64) {
        let passed_us = now_us.saturating_sub(self.since_us);
        if passed_us >= 1_000_000 {
            self.per_s = (commands_total - self.commands_before) * 1_000_000 / passed_us;
            self.since_us = now_us;
            self.commands_before = commands_total;
        }
    }
}
