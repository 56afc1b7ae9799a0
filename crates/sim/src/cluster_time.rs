//! Cluster time as an observer with the coordinator's ear sees it: the yardstick for expiry.
//!
//! Deadlines are promised in cluster time, so the checkers need to know what it was at any moment
//! of the world's time, to within a published error.

/// Samples closer together than this add nothing.
const SAMPLE_EVERY_US: u64 = 20_000;

/// What the coordinator said the time was.
#[derive(Clone, Debug, Default)]
pub struct ClusterTime {
    samples: Vec<(u64, u64)>,
    jumped_us: u64,
}

impl ClusterTime {
    /// The coordinator tells somebody that it is `cluster_us`.
    pub fn observe(&mut self, world_us: u64, cluster_us: u64) {
        if let Some(&(last_world_us, last_cluster_us)) = self.samples.last() {
            let elapsed_us = world_us - last_world_us;
            if elapsed_us < SAMPLE_EVERY_US {
                return;
            }
            // A restarted coordinator begins at its durable ceiling, a little ahead.
            let expected_us = last_cluster_us + elapsed_us + elapsed_us / 25;
            self.jumped_us += cluster_us.saturating_sub(expected_us);
        }
        self.samples.push((world_us, cluster_us));
    }

    /// Cluster time in milliseconds at a moment of the world's time; `None` if nobody was ever told.
    pub fn at_ms(&self, world_us: u64) -> Option<u64> {
        let index = self
            .samples
            .partition_point(|&(sampled_us, _)| sampled_us <= world_us);
        let &(sampled_us, cluster_us) = self.samples.get(index.max(1) - 1)?;
        Some((cluster_us + world_us).saturating_sub(sampled_us) / 1_000)
    }

    /// By how much in all it has jumped ahead at restarts of the coordinator, in milliseconds.
    pub fn jumped_ms(&self) -> u64 {
        self.jumped_us.div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolates_and_notices_jumps() {
        let mut time = ClusterTime::default();
        assert_eq!(time.at_ms(5), None);
        time.observe(1_000_000, 50_000_000);
        time.observe(1_001_000, 99_000_000); // too soon to count
        time.observe(2_000_000, 51_000_000);
        assert_eq!(time.at_ms(1_500_000), Some(50_500));
        assert_eq!(time.at_ms(900_000), Some(49_900));
        assert_eq!(time.at_ms(3_000_000), Some(52_000));
        assert_eq!(time.jumped_ms(), 0);
        time.observe(4_000_000, 56_000_000);
        assert!((2_900..=3_000).contains(&time.jumped_ms()));
    }
}
