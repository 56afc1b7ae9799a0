//! Sessions of the benchmarks: their keys, which of them come next, and what is written to them.

/// 37 bytes, as a prefix and a 128-bit id take: `sess:` and 32 hex digits that depend on `number` alone.
pub fn session(number: u64) -> [u8; 37] {
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
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed that no earlier run is likely to have had: a run with an earlier one's writes what is there already, which
/// is only a touch.
pub fn another_seed() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |it| it.as_nanos() as u64)
}

/// One of a run's sources of requests.
#[derive(Debug)]
pub struct Source {
    random: Random,
    sessions: u64,
    read_share: f64,
    value: Vec<u8>,
}

impl Source {
    /// `number`: which of the run's sources it is. The others' requests are different ones.
    pub fn new(seed: u64, number: u64, sessions: u64, read_share: f64, value_bytes: u32) -> Source {
        let mut random = Random::new(Random::new(seed.wrapping_add(number)).roll());
        let value = (0..value_bytes)
            .map(|_| b'a' + (random.roll() % 26) as u8)
            .collect();
        Source {
            random,
            sessions,
            read_share,
            value,
        }
    }

    /// Some session.
    pub fn session(&mut self) -> u64 {
        self.random.roll() % self.sessions
    }

    /// Whether to read next, or to write.
    pub fn reads(&mut self) -> bool {
        self.random.share() < self.read_share
    }

    /// A value that differs from the last one.
    pub fn value(&mut self) -> &[u8] {
        let stamp = self.random.roll().to_le_bytes();
        for (byte, stamp) in self.value.iter_mut().zip(stamp) {
            *byte = b'a' + stamp % 26;
        }
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_stay() {
        assert_ne!(session(0), session(1));
        assert_eq!(session(7), session(7));
        assert!(session(9)[5..].iter().all(u8::is_ascii_hexdigit));
        let mut all: Vec<_> = (0..10_000).map(session).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn sources_repeat_only_with_seed_and_number() {
        let requests = |seed, number| {
            let mut source = Source::new(seed, number, 1_000_000, 0.5, 16);
            let one = |_| (source.session(), source.reads(), source.value().to_vec());
            (0..100).map(one).collect::<Vec<_>>()
        };
        let first = requests(1, 0);
        assert_eq!(requests(1, 0), first);
        for (seed, number) in [(2, 0), (1, 1)] {
            let others = requests(seed, number);
            assert!(first.iter().zip(&others).all(|(a, b)| a.2 != b.2));
        }
        assert!(first.windows(2).all(|pair| pair[0].2 != pair[1].2));
    }
}
