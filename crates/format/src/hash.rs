//! Hashes with a fixed seed: the same key has the same hash in every process, forever.
//!
//! `KeyHash` is part of what members and clients exchange (SCAN cursors, per-key waiting lists), so
//! its value is a format like any other and pinned by a test.

use std::hash::BuildHasherDefault;

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

use crate::{KeyHash, Namespace};

/// Changing this renumbers every SCAN cursor in the field; there is no reason to.
const KEY_SECRETS: RapidSecrets = RapidSecrets::seed(0x686f_6c64_6661_7374);

impl KeyHash {
    /// The hash of `key` in `namespace`.
    #[inline]
    pub fn of(namespace: Namespace, key: &[u8]) -> KeyHash {
        let hash = rapidhash_v3_inline::<true, false, false>(key, &KEY_SECRETS);
        // Rotating the whole circle by a constant keeps the distribution of every single namespace.
        KeyHash(hash.wrapping_add(u64::from(namespace.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }
}

/// A hash map without a random seed. Its order is the same in every run, but is not an order that
/// anybody should see: use it for look-up only, and `BTreeMap` where something iterates.
#[allow(
    clippy::disallowed_types,
    reason = "this is the fixed hasher that the lint asks for"
)]
pub type FixedMap<K, V> =
    std::collections::HashMap<K, V, BuildHasherDefault<rapidhash::fast::RapidHasher<'static>>>;

/// A hash set without a random seed; see `FixedMap`.
#[allow(
    clippy::disallowed_types,
    reason = "this is the fixed hasher that the lint asks for"
)]
pub type FixedSet<K> =
    std::collections::HashSet<K, BuildHasherDefault<rapidhash::fast::RapidHasher<'static>>>;

#[cfg(test)]
mod tests {
    use super::*;

    /// SCAN cursors cross versions of the program: these values must never change.
    #[test]
    fn key_hashes_are_pinned() {
        let n = |n| Namespace(n);
        assert_eq!(KeyHash::of(n(0), b""), KeyHash(0xf0455f04d7ad3839));
        assert_eq!(KeyHash::of(n(0), b"sess:1"), KeyHash(0xeb74364cdf2430c2));
        assert_eq!(KeyHash::of(n(1), b"sess:1"), KeyHash(0x89abb0065e6eacd7));
    }

    /// Bucket (top bits) and tag (low bits) of the index are both taken from the hash.
    #[test]
    fn top_and_low_bits_are_spread() {
        let (mut top, mut low) = ([0u32; 256], [0u32; 256]);
        for i in 0..65_536u32 {
            let hash = KeyHash::of(Namespace(3), format!("session:{i}").as_bytes()).0;
            top[(hash >> 56) as usize] += 1;
            low[(hash & 0xFF) as usize] += 1;
        }
        // 256 expected per cell, standard deviation 16: seven of them is no accident.
        assert!(top.iter().chain(&low).all(|&n| (144..=368).contains(&n)));
    }

    #[test]
    fn maps_iterate_alike_in_every_run() {
        let order = |n: u64| {
            (0..n)
                .collect::<FixedSet<u64>>()
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(order(100), order(100));
    }
}
