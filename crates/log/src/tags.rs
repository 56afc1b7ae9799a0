//! Compares the tags of a cache line's eight words at once.

#![allow(
    unsafe_code,
    reason = "loading 16 bytes at an unaligned place has no safe form; this module is that safe form"
)]

/// Bits of a word's tag, at its top.
pub(crate) const TAG_BITS: u32 = 22;

/// One bit for each of the eight words whose tag is `tag`, the first word's lowest.
///
/// Without a branch: the line has often just been asked for, and a wrong guess about it would keep the
/// processor from going on to the next look-up meanwhile.
#[inline]
pub(crate) fn matching(line: &[u8; 64], tag: u32) -> u32 {
    scan(line, tag).0
}

/// As `matching`, and one bit for each of the words whose upper half is not zero.
#[inline]
pub(crate) fn scan(line: &[u8; 64], tag: u32) -> (u32, u32) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{
            __m128i, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_loadu_si128,
            _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32, _mm_setzero_si128,
            _mm_shuffle_ps, _mm_srli_epi32,
        };
        const HIGH_HALVES: i32 = 0b11_01_11_01;
        const BELOW_TAG: i32 = 32 - TAG_BITS as i32;
        let pair = line.as_ptr().cast::<__m128i>();
        // SAFETY: SSE2 is part of every x86-64. The four loads read bytes 0 to 63 of a live array of 64,
        // and `loadu` asks for no alignment.
        unsafe {
            let (a, b) = (_mm_loadu_si128(pair), _mm_loadu_si128(pair.add(1)));
            let (c, d) = (_mm_loadu_si128(pair.add(2)), _mm_loadu_si128(pair.add(3)));
            let high = |a, b| {
                _mm_castps_si128(_mm_shuffle_ps::<HIGH_HALVES>(
                    _mm_castsi128_ps(a),
                    _mm_castsi128_ps(b),
                ))
            };
            let (first, second) = (high(a, b), high(c, d));
            let wanted = _mm_set1_epi32(tag as i32);
            let zero = _mm_setzero_si128();
            let same = _mm_packs_epi32(
                _mm_cmpeq_epi32(_mm_srli_epi32::<BELOW_TAG>(first), wanted),
                _mm_cmpeq_epi32(_mm_srli_epi32::<BELOW_TAG>(second), wanted),
            );
            let empty =
                _mm_packs_epi32(_mm_cmpeq_epi32(first, zero), _mm_cmpeq_epi32(second, zero));
            let both = _mm_movemask_epi8(_mm_packs_epi16(same, empty)) as u32;
            (both & 0xFF, !both >> 8 & 0xFF)
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    one_by_one(line, tag)
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(miri)))))]
fn one_by_one(line: &[u8; 64], tag: u32) -> (u32, u32) {
    let (words, _) = line.as_chunks::<8>();
    let bits = |is: &dyn Fn(u64) -> bool| {
        words.iter().enumerate().fold(0, |found, (i, word)| {
            found | u32::from(is(u64::from_le_bytes(*word))) << i
        })
    };
    (
        bits(&|word| word >> (64 - TAG_BITS) == u64::from(tag)),
        bits(&|word| word >> 32 != 0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_at_once_are_as_one_by_one() {
        let mut line = [0u8; 64];
        for round in 0..2_000u32 {
            for (i, byte) in line.iter_mut().enumerate() {
                *byte = (round.wrapping_mul(2_654_435_761) >> (i % 23)) as u8;
            }
            for word in 0..8 {
                let at = word * 8;
                let tag = u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
                let tag = (tag >> (64 - TAG_BITS)) as u32;
                assert_eq!(scan(&line, tag), one_by_one(&line, tag));
                assert_ne!(matching(&line, tag) & 1 << word, 0);
                // An empty place, and one that only its lower half tells from that.
                line[at + 4..at + 8].fill(0);
                assert_eq!(scan(&line, tag), one_by_one(&line, tag));
                assert_eq!(scan(&line, tag).1 & 1 << word, 0);
            }
            assert_eq!(scan(&line, round), one_by_one(&line, round));
        }
        assert_eq!(scan(&[0; 64], 0), (0xFF, 0));
        assert_eq!(scan(&[0xFF; 64], (1 << TAG_BITS) - 1), (0xFF, 0xFF));
    }
}
