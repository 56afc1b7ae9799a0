//! The cluster's clock: boot-time clock plus an offset fixed when the coordinator starts.
//!
//! K1. What is handed out never exceeds the durable ceiling, and a start begins at or above the
//!     recorded one: so cluster time never goes back across a restart, whatever the wall clock
//!     says by then.

use holdfast_cluster::Now;
use holdfast_format::ClusterMs;

/// How far ahead of the time the durable ceiling is put. A quick restart may begin early by at most
/// so much: well below any session's life, for one small write every second and a half.
const CEILING_AHEAD_MS: u64 = 3_000;

/// The ceiling is raised when less than this is left: time enough for a slow store.
const CEILING_LEFT_MIN_MS: u64 = 1_500;

/// A clock that had to begin ahead of Unix time loses one part in so many until it is back: within
/// the drift that members allow for in their error bounds.
const RETURN_DIVISOR: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct ClockSource {
    started_mono_us: u64,
    started_cluster_us: u64,
    /// What is to be lost slowly: how far the start was ahead of Unix time.
    ahead_us: u64,
}

impl ClockSource {
    /// Starts at Unix time, but no lower than the recorded ceiling.
    pub(crate) fn new(now: Now, ceiling: ClusterMs) -> ClockSource {
        let started_ms = now.unix_ms.max(ceiling.0);
        // A wall clock further back than a ceiling explains has been set wrong: do not follow it.
        let ahead_ms = Some(started_ms - now.unix_ms).filter(|ms| *ms <= CEILING_AHEAD_MS);
        ClockSource {
            started_mono_us: now.mono_us,
            started_cluster_us: started_ms.saturating_mul(1_000),
            ahead_us: ahead_ms.unwrap_or(0) * 1_000,
        }
    }

    /// Cluster time in microseconds.
    pub(crate) fn now_us(&self, now: Now) -> u64 {
        let elapsed_us = now.mono_us.saturating_sub(self.started_mono_us);
        self.started_cluster_us + elapsed_us - self.ahead_us.min(elapsed_us / RETURN_DIVISOR)
    }

    pub(crate) fn now_ms(&self, now: Now) -> ClusterMs {
        ClusterMs(self.now_us(now) / 1_000)
    }

    /// Cluster time to hand out; `None` while it has run past its durable ceiling (the store is
    /// too slow), when nobody must be told (K1).
    pub(crate) fn to_hand_out_us(&self, now: Now, durable: ClusterMs) -> Option<u64> {
        Some(self.now_us(now)).filter(|us| *us <= durable.0.saturating_mul(1_000))
    }

    /// The ceiling to write if the recorded one is nearly used up.
    pub(crate) fn ceiling_wanted(&self, now: Now, recorded: ClusterMs) -> Option<ClusterMs> {
        let ms = self.now_ms(now);
        (ms.plus_ms(CEILING_LEFT_MIN_MS) > recorded).then(|| ms.plus_ms(CEILING_AHEAD_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64, unix_ms: u64) -> Now {
        Now {
            mono_us: mono_ms * 1_000,
            unix_ms,
        }
    }

    #[test]
    fn starts_at_unix_time_and_follows_the_boot_time_clock() {
        let clock = ClockSource::new(at(50, 1_000_000), ClusterMs(0));
        assert_eq!(clock.now_ms(at(50, 1_000_000)), ClusterMs(1_000_000));
        // The wall clock is set back: nothing happens.
        assert_eq!(clock.now_ms(at(80, 5)), ClusterMs(1_000_030));
    }

    /// K1.
    #[test]
    fn never_goes_back_across_a_restart() {
        let mut ceiling = ClusterMs(0);
        let mut last = 0;
        // Every start finds a worse wall clock and another boot-time clock.
        for (start, unix_ms) in [(9_000, 2_000_000), (10, 1_500_000), (777, 0)] {
            let clock = ClockSource::new(at(start, unix_ms), ceiling);
            for step in 0..200 {
                let now = at(start + step * 100, unix_ms);
                if let Some(wanted) = clock.ceiling_wanted(now, ceiling) {
                    ceiling = wanted;
                }
                let time = clock
                    .to_hand_out_us(now, ceiling)
                    .expect("the ceiling is ahead");
                assert!(time >= last);
                last = time;
            }
        }
    }

    #[test]
    fn a_quick_restart_comes_back_to_unix_time() {
        let clock = ClockSource::new(at(0, 1_000_000), ClusterMs(1_002_000));
        assert_eq!(clock.now_ms(at(0, 0)), ClusterMs(1_002_000));
        assert_eq!(clock.now_ms(at(1_000_000, 0)), ClusterMs(2_001_000));
        assert_eq!(clock.now_ms(at(9_000_000, 0)), ClusterMs(10_000_000));
    }

    #[test]
    fn nothing_is_handed_out_above_the_durable_ceiling() {
        let clock = ClockSource::new(at(0, 1_000), ClusterMs(0));
        let durable = ClusterMs(5_000);
        assert_eq!(clock.to_hand_out_us(at(4_000, 0), durable), Some(5_000_000));
        assert_eq!(clock.to_hand_out_us(at(4_001, 0), durable), None);
    }
}
