//! Session keys of the benchmarks, and their source of chance.

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
}
