//! A machine's clocks: a boot-time clock with an offset and a drift, and a wall clock beside it.

use holdfast_cluster::Now;

/// Wall time at the world's time 0: some day in 2027.
const UNIX_BASE_MS: u64 = 1_800_000_000_000;

/// The clocks of one machine, as functions of the world's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineClock {
    /// What the boot-time clock shows at the world's time 0.
    pub offset_us: u64,
    /// How much faster than the world's time it runs, in parts per million.
    pub drift_ppm: i64,
    /// How far the wall clock is ahead of the truth.
    pub wall_offset_ms: i64,
}

impl MachineClock {
    /// What the machine's clocks show at `world_us`.
    pub fn read(&self, world_us: u64) -> Now {
        let run_us = self.run_us(world_us);
        let unix_ms = (UNIX_BASE_MS + run_us / 1000).saturating_add_signed(self.wall_offset_ms);
        Now {
            mono_us: self.offset_us + run_us,
            unix_ms,
        }
    }

    /// The world's time at which the boot-time clock first shows at least `mono_us`.
    pub fn world_us(&self, mono_us: u64) -> u64 {
        let run_us = i128::from(mono_us.saturating_sub(self.offset_us));
        let rate = 1_000_000 + i128::from(self.drift_ppm);
        let world = (run_us * 1_000_000 + rate - 1) / rate;
        u64::try_from(world).unwrap_or(u64::MAX)
    }

    fn run_us(&self, world_us: u64) -> u64 {
        let world = i128::from(world_us);
        u64::try_from(world + world * i128::from(self.drift_ppm) / 1_000_000)
            .expect("a drift of a few percent keeps time positive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waking_up_is_never_early() {
        for drift_ppm in [-20_000, -3, 0, 7, 20_000] {
            let clock = MachineClock {
                offset_us: 77,
                drift_ppm,
                wall_offset_ms: -5,
            };
            for mono_us in [0, 77, 1_000, 123_456_789, 99_999_999_999] {
                let world = clock.world_us(mono_us);
                assert!(clock.read(world).mono_us >= mono_us, "drift {drift_ppm}");
                assert!(world == 0 || clock.read(world - 1).mono_us <= mono_us.max(77));
            }
        }
    }
}
