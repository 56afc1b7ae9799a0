//! How much cleaning is due: in proportion to what is appended, so that throughput bends and never stops.
//!
//! A job costs so much work and gives back so much memory; for each byte that is appended, that share of its work is
//! due. The factor follows from how short memory is: 1 would keep what is free as it is, so below half of what
//! should be free it is more, above it is less, and the amount of free memory settles by itself. With next to nothing
//! free everything is due.
//!
//! Besides, some work is due with time as long as something is short: what has expired must become usable again
//! although nothing is appended.

use holdfast_format::ClusterMs;

use crate::choosing::Shortage;
use crate::log::Log;

#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes appended to heads and by replays since `due_bytes` was asked.
    appended: u64,
    /// Work that is due and not done. What is done too much at the end of a slice is owed.
    credit: i64,
    /// Cost of a gained byte at the current job, in 16ths.
    price: u64,
    last: ClusterMs,
}

/// A job that gains nearly nothing must not make one append wait for a whole slice after another.
const PRICE_MAX: u64 = 64 * 16;

/// What may be saved up: some slices, so that a burst of appends is made good soon after.
const CREDIT_MAX: i64 = 8 << 20;

/// Work that is due in a millisecond while something is short: 100 MB/s, a sixteenth of what a core does.
const SHORT_BYTES_PER_MS: u64 = 100_000;

/// The shortage from which on everything is due that there is.
const ALL_IS_DUE: Shortage = Shortage(224);

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            appended: 0,
            credit: 0,
            price: 16,
            last: ClusterMs(0),
        }
    }
}

impl Pace {
    #[inline]
    pub fn appended(&mut self, bytes: usize) {
        self.appended += bytes as u64;
    }

    /// The job that is begun gains so many bytes by so much work.
    pub fn price(&mut self, cost: u64, gain: u64) {
        self.price = (cost * 16 / gain.max(1)).min(PRICE_MAX);
    }

    pub fn spend(&mut self, worked: i64) {
        self.credit -= worked;
    }
}

impl Log {
    /// Work for one slice of at most `slice_bytes`.
    pub(crate) fn due_bytes(&mut self, now: ClusterMs, slice_bytes: u64) -> i64 {
        let shortage = self.memory_shortage().max(self.segment_shortage());
        let pace = &mut self.cleaner.pace;
        let appended = std::mem::take(&mut pace.appended);
        let elapsed_ms = now.0.saturating_sub(pace.last.0).min(100);
        pace.last = now;
        // Twice as much as keeps the balance when all is used up; a little always, so that jobs end.
        let factor = 32 + u64::from(shortage.0) * 2;
        let mut due = appended * pace.price / 16 * factor / 256;
        if shortage > Shortage(0) {
            due += elapsed_ms * SHORT_BYTES_PER_MS;
        } else {
            due += elapsed_ms * SHORT_BYTES_PER_MS / 16;
        }
        pace.credit = (pace.credit + due as i64).min(CREDIT_MAX);
        match shortage >= ALL_IS_DUE {
            true => slice_bytes as i64,
            false => pace.credit.min(slice_bytes as i64),
        }
    }

    /// True if another slice is due.
    pub(crate) fn is_due(&self) -> bool {
        self.cleaner.pace.credit > 0
            || self.memory_shortage().max(self.segment_shortage()) >= ALL_IS_DUE
    }
}
