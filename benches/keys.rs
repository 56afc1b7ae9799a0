//! Session keys of the benchmarks, and which session comes next.
//!
//! The same keys as `holdfast bench load` uses, so that one can be pointed at what the other filled; written
//! again here because the engine's benchmarks do not build the server.

/// `sess:` and 32 hex digits.
pub const KEY_BYTES: usize = 37;

pub type Key = [u8; KEY_BYTES];

/// 37 bytes, as a prefix and a 128-bit id take, that depend on `number` alone.
pub fn session(number: u64) -> Key {
    let mut key = *b"sess:00000000000000000000000000000000";
    let mut random = Random::new(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    for chunk in key[5..].chunks_mut(16) {
        let mut bits = random.roll();
        for byte in chunk {
            *byte = b"0123456789abcdef"[(bits & 15) as usize];
            bits >>= 4;
        }
    }
    key
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): plenty for choosing keys.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// In `[0, 1)`.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In `min..=max`.
    pub fn between(&mut self, min: usize, max: usize) -> usize {
        min + (self.roll() % (max - min + 1) as u64) as usize
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Which of `sessions` is chosen next.
#[derive(Debug, Clone)]
pub enum Choice {
    Uniform { sessions: u64 },
    Zipf(Zipf),
}

impl Choice {
    pub fn next(&self, random: &mut Random) -> u64 {
        match self {
            Choice::Uniform { sessions } => random.roll() % sessions,
            Choice::Zipf(zipf) => zipf.next(random),
        }
    }
}

/// Zipf's law by the method of Gray et al., "Quickly generating billion-record synthetic databases"
/// (SIGMOD 1994), as YCSB uses it; ranks are scattered over the sessions, so that what is asked for often is
/// not what was written first.
#[derive(Debug, Clone)]
pub struct Zipf {
    sessions: u64,
    theta: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    /// `theta` in (0, 1); 0.99 is usual. Sums over all sessions once.
    pub fn new(sessions: u64, theta: f64) -> Zipf {
        assert!(theta > 0.0 && theta < 1.0, "the method needs that");
        let zeta: f64 = (1..=sessions).map(|i| (i as f64).powf(-theta)).sum();
        let zeta2 = 1.0 + 0.5f64.powf(theta);
        Zipf {
            sessions,
            theta,
            zeta,
            alpha: 1.0 / (1.0 - theta),
            eta: (1.0 - (2.0 / sessions as f64).powf(1.0 - theta)) / (1.0 - zeta2 / zeta),
        }
    }

    fn rank(&self, random: &mut Random) -> u64 {
        let u = random.share();
        let uz = u * self.zeta;
        if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5f64.powf(self.theta) {
            1
        } else {
            let rank = self.sessions as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
            (rank as u64).min(self.sessions - 1)
        }
    }

    fn next(&self, random: &mut Random) -> u64 {
        mix(self.rank(random).wrapping_add(0x5EED)) % self.sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_stay() {
        assert_eq!(session(7), session(7));
        let mut all: Vec<_> = (0..10_000).map(session).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn the_first_tenth_of_zipf_ranks_gets_most() {
        let zipf = Zipf::new(10_000, 0.99);
        let mut random = Random::new(1);
        let hot = (0..10_000)
            .filter(|_| zipf.rank(&mut random) < 1_000)
            .count();
        // H(1000)/H(10000) at 0.99 is 0.77.
        assert!((7_400..8_000).contains(&hot), "{hot}");
    }
}
