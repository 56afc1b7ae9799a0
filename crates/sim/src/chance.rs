//! Chance of the simulation: one seeded generator, split so that a change in one part of the
//! world (one more message, say) does not reshuffle the others.

use holdfast_cluster::Dice;

/// A seeded source of decisions.
#[derive(Clone, Debug)]
pub struct Chance(Dice);

impl Chance {
    /// A generator for one purpose of one seed.
    pub fn new(seed: u64, purpose: u64) -> Chance {
        let mut dice = Dice::new(mix(seed ^ mix(purpose)));
        dice.roll();
        Chance(dice)
    }

    /// Any 64 bits.
    pub fn roll(&mut self) -> u64 {
        // The high half of xorshift64* is the good one; fold it over the low half.
        let roll = self.0.roll();
        roll ^ (roll >> 32)
    }

    /// In `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.roll() % bound }
    }

    /// In `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range to draw from");
        low + self.below(high - low + 1)
    }

    /// True `per_million` times in a million.
    pub fn per_million(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < u64::from(percent)
    }

    /// Exponentially distributed with this mean, at most ten times it.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        // -ln(u) by a table-free estimate: the number of leading zeros gives the octave, the next
        // bits interpolate within it. Integer arithmetic only, so every machine draws the same.
        let roll = self.roll() | 1;
        let octave = u64::from(roll.leading_zeros());
        let within = ((roll << octave) >> 47) & 0xFFFF; // 16 bits below the leading one
        let log2_x65536 = octave * 65_536 + (65_536 - within);
        let drawn = u128::from(mean) * u128::from(log2_x65536) * 45_426 / (65_536 * 65_536);
        (drawn as u64).min(mean.saturating_mul(10))
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        assert!(!choices.is_empty(), "nothing to pick from");
        &choices[self.below(choices.len() as u64) as usize]
    }
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_has_about_its_mean() {
        let mut chance = Chance::new(7, 1);
        let sum: u64 = (0..20_000).map(|_| chance.exponential(1_000)).sum();
        let mean = sum / 20_000;
        assert!((900..1_100).contains(&mean), "mean {mean}");
    }

    #[test]
    fn purposes_differ_and_repeat() {
        let draw = |seed, purpose| Chance::new(seed, purpose).roll();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
