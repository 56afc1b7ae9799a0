//! Cluster time at one member: its own boot-time clock plus an offset learned from the coordinator.
//!
//! Expiry must not jump because a network was slow or an operator set a clock, so the offset is
//! estimated by Cristian's method from heartbeats, and a better estimate is approached slowly:
//!
//! ```text
//! cluster(now) = anchor + elapsed + clamp(correction, -elapsed/20, +elapsed/20)
//! ```
//!
//! C1. Cluster time never goes back: its rate is at least 19/20 of the member's own clock.
//! C2. After the first estimate it never steps: its rate is at most 21/20.
//! C3. `error_us` bounds the distance to the coordinator's clock as long as the two machines'
//!     clocks drift apart by at most `DRIFT_PPM`.

use std::collections::VecDeque;

/// Estimates kept to choose from. With a heartbeat every 200 ms these are the last 1.6 s: long
/// enough to step over a burst of queueing, short enough that drift (1.6 ms) stays below a bad
/// network's round trip.
const SAMPLES_MAX: usize = 8;

/// A slower answer is no estimate at all: half of it would be over the published expiry bound.
const ROUND_TRIP_MAX_US: u64 = 1_000_000;

/// Slewing changes the rate by at most one part in so many (5 %), which is what leases allow for.
const SLEW_DIVISOR: u64 = 20;

/// How fast two boot-time clocks may drift apart: NTP slews each by at most 500 ppm, and quartz
/// alone stays below 100 ppm.
const DRIFT_PPM: u64 = 1_000;

/// One answer of the coordinator, as an offset from the member's own clock.
#[derive(Clone, Copy, Debug)]
struct Sample {
    offset_us: i64,
    half_trip_us: u64,
    taken_us: u64,
}

impl Sample {
    fn error_us(&self, now_us: u64) -> u64 {
        self.half_trip_us + now_us.saturating_sub(self.taken_us) / (1_000_000 / DRIFT_PPM)
    }
}

/// Where the slew began, and how far it has to go.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    mono_us: u64,
    cluster_us: u64,
    correction_us: i64,
}

impl Anchor {
    fn at(&self, now_us: u64) -> u64 {
        let elapsed = now_us.saturating_sub(self.mono_us);
        let slew = (elapsed / SLEW_DIVISOR) as i64;
        (self.cluster_us + elapsed).saturating_add_signed(self.correction_us.clamp(-slew, slew))
    }

    fn remaining_us(&self, now_us: u64) -> u64 {
        let slewed = now_us.saturating_sub(self.mono_us) / SLEW_DIVISOR;
        self.correction_us.unsigned_abs().saturating_sub(slewed)
    }
}

/// A member's estimate of the coordinator's clock.
#[derive(Clone, Debug, Default)]
pub struct ClusterClock {
    samples: VecDeque<Sample>,
    anchor: Option<Anchor>,
}

impl ClusterClock {
    pub fn new() -> ClusterClock {
        ClusterClock::default()
    }

    /// Takes an answer that arrived at `now_us` to a question asked at `sent_us` (both by the
    /// member's own clock) and says that the coordinator's clock showed `cluster_us` in between.
    /// Answers too slow to mean anything, or to a question never asked, are ignored.
    pub fn heard(&mut self, now_us: u64, sent_us: u64, cluster_us: u64) {
        let Some(round_trip) = now_us.checked_sub(sent_us) else {
            return;
        };
        if round_trip > ROUND_TRIP_MAX_US || cluster_us > i64::MAX as u64 {
            return;
        }
        let middle_us = sent_us + round_trip / 2;
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            offset_us: cluster_us as i64 - middle_us as i64,
            half_trip_us: round_trip.div_ceil(2),
            taken_us: now_us,
        });
        let best = self.best(now_us).expect("a sample was just added");
        let target_us = now_us.saturating_add_signed(best.offset_us);
        // C1, C2: from wherever the clock now stands, however far that is from the target.
        let cluster_us = self.anchor.map_or(target_us, |anchor| anchor.at(now_us));
        self.anchor = Some(Anchor {
            mono_us: now_us,
            cluster_us,
            correction_us: target_us as i64 - cluster_us as i64,
        });
    }

    /// Cluster time in microseconds; `None` before the first estimate.
    pub fn now_us(&self, now_us: u64) -> Option<u64> {
        self.anchor.map(|anchor| anchor.at(now_us))
    }

    /// C3: how far cluster time may be from the coordinator's clock; `None` before the first
    /// estimate.
    pub fn error_us(&self, now_us: u64) -> Option<u64> {
        let anchor = self.anchor?;
        let best = self.best(now_us)?;
        Some(anchor.remaining_us(now_us) + best.error_us(now_us))
    }

    fn best(&self, now_us: u64) -> Option<&Sample> {
        self.samples
            .iter()
            .min_by_key(|sample| sample.error_us(now_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dice;

    #[test]
    fn no_time_before_the_first_estimate() {
        let mut clock = ClusterClock::new();
        assert_eq!(clock.now_us(5), None);
        assert_eq!(clock.error_us(5), None);
        clock.heard(3_000_000, 1_000_000, 77_000_000); // too slow to mean anything
        clock.heard(1_000, 2_000, 77_000_000); // never asked
        assert_eq!(clock.now_us(3_000_000), None);
        clock.heard(1_000_000, 999_000, 77_000_000);
        assert_eq!(clock.now_us(1_000_000), Some(77_000_500));
        assert_eq!(clock.error_us(1_000_000), Some(500));
    }

    /// A burst of slow answers must not pull the clock: the quickest recent one is believed.
    #[test]
    fn the_quickest_answer_is_believed() {
        let mut clock = ClusterClock::new();
        let offset = 500_000_000;
        clock.heard(1_000_200, 1_000_000, 1_000_100 + offset);
        for beat in 1..SAMPLES_MAX as u64 {
            let sent = 1_000_000 + beat * 1_000;
            // The whole delay is on the way back: the estimate is 200 ms wrong.
            clock.heard(sent + 400_000, sent, sent + offset);
        }
        let now = 1_500_000;
        let time = clock.now_us(now).unwrap();
        assert!(time.abs_diff(now + offset) < 1_000, "{time}");
    }

    /// C1 and C2 over random answers, right and wrong, and C3 for the right ones.
    #[test]
    fn never_back_never_a_step_and_within_its_bound() {
        for seed in 1..200 {
            let mut dice = Dice::new(seed * 7919);
            let mut clock = ClusterClock::new();
            let mut mono = 1_000_000 + dice.below(1 << 40);
            // The coordinator's clock: another origin, and up to 500 ppm fast or slow.
            let ppm = dice.below(1_001) as i64 - 500;
            let origin = mono;
            let truth = |mono: u64| {
                let elapsed = (mono - origin) as i64;
                (1_700_000_000_000_000 + elapsed + elapsed * ppm / 1_000_000) as u64
            };
            let mut last: Option<(u64, u64)> = None;
            for _ in 0..200 {
                let there = dice.below(30_000);
                let back = dice.below(30_000);
                let sent = mono;
                mono += there + back;
                clock.heard(mono, sent, truth(sent + there));
                for _ in 0..3 {
                    let time = clock.now_us(mono).unwrap();
                    let error = clock.error_us(mono).unwrap();
                    assert!(
                        time.abs_diff(truth(mono)) <= error + 2,
                        "seed {seed}: outside its bound"
                    );
                    if let Some((before_mono, before)) = last {
                        let elapsed = mono - before_mono;
                        assert!(time >= before, "seed {seed}: went back");
                        assert!(
                            time - before <= elapsed + elapsed / 20 + 1,
                            "seed {seed}: stepped"
                        );
                        assert!(
                            time - before + elapsed / 20 + 1 >= elapsed,
                            "seed {seed}: stood still"
                        );
                    }
                    last = Some((mono, time));
                    mono += dice.below(100_000);
                }
            }
        }
    }

    /// A coordinator that comes back with another idea of the time moves members slowly.
    #[test]
    fn a_far_correction_is_slewed_at_five_percent() {
        let mut clock = ClusterClock::new();
        clock.heard(1_000_000, 1_000_000, 10_000_000);
        for beat in 1..=SAMPLES_MAX as u64 {
            let now = 1_000_000 + beat;
            clock.heard(now, now, 9_000_000 + beat);
        }
        let start = clock.now_us(1_000_010).unwrap();
        let later = clock.now_us(2_000_010).unwrap();
        assert_eq!(later - start, 950_000);
        // 1 s is made up in 20 s, and not overshot.
        assert_eq!(clock.now_us(41_000_000), Some(49_000_000));
    }
}
