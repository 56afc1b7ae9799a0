//! How the index grows.
//!
//! Growth is in place, by an eighth, from the last bucket down to the first: since a bucket's new
//! place is never below its old one, everything from `cursor` up stands at its new place and
//! everything below at its old one. A few buckets move with each insertion, so there is no pause.
//! Growth by an eighth moves every word some eight times until the table has doubled; when it is known that many
//! words are to come (a replay), the table grows before it is full, by up to the sixteenfold at once and no further
//! than they need. So a replay into an empty log moves one word in a hundred and not each of them twice.

use std::ops::Range;

use holdfast_format::KeyHash;

use super::{
    BUCKET_BYTES, Index, NO_CHUNK, OVERFLOW_BYTES, Raw, Rule, WORD_BYTES, WORDS, WORDS_PER_BUCKET,
    clear, hash_at, line, raw_in, read,
};
use crate::region::Region;
use crate::tags::TAG_BITS;

/// The table grows by one part of so many.
const GROWTH: usize = 8;
/// While growing, so many buckets move at once, every so many insertions: together, because then what they
/// read is loaded together, and it takes some 2 microseconds. Another growth is 0.58 insertions per bucket
/// away at least, so two buckets per insertion are enough to be done in time.
const MOVES: u64 = 32;
const INSERTIONS_PER_MOVES: u64 = MOVES / 2;
/// The table grows to at most so many times its size at once. A batch of moves then clears and fills 32 KiB, which
/// takes some 20 microseconds; and what is expected is a guess, which should not decide over more than this.
const LEAP: usize = 16;
/// What is expected may have the index take one of so many free seglets beyond what it needs already: about what
/// a log full of small sessions gives it in the end.
const LEAP_PART: u32 = 16;

impl Index {
    /// Tells that there will be about so many words before long; 0: nothing is known any more. Growth then
    /// takes longer steps, which never lead past what so many words need, nor far into memory that is scarce.
    pub fn expect(&mut self, region: &Region, words: u64) {
        let table = u64::from(region.free_seglets() / LEAP_PART) + self.chunks.len() as u64;
        self.expected = words.min((table << self.chunk_shift) * WORDS_PER_BUCKET);
    }

    /// True if `grow` should be called after this insertion.
    #[inline]
    pub fn is_growth_due(&self) -> bool {
        self.words.is_multiple_of(INSERTIONS_PER_MOVES) && (self.is_growing() || self.is_small())
    }

    /// True if the table is full, or will be before it is half of what it will be.
    fn is_small(&self) -> bool {
        self.words.max(self.expected / 2) > self.rule.buckets * WORDS_PER_BUCKET
    }

    /// Grows a little. Bounded work.
    pub fn grow(&mut self, region: &mut Region, may_take_block: bool) {
        if !self.is_growing() {
            // Whole chunks: a begun one would be as good as wasted.
            let chunks = self.chunks.len();
            let step = ((chunks + GROWTH / 2) / GROWTH).max(1);
            let wanted = self.expected.div_ceil(WORDS_PER_BUCKET << self.chunk_shift) as usize;
            let more = wanted.saturating_sub(chunks);
            let more = more.clamp(step, (LEAP - 1) * chunks);
            self.chunks.resize(chunks + more, NO_CHUNK);
            self.to = Rule::of((self.chunks.len() as u64) << self.chunk_shift);
            self.cursor = self.rule.buckets;
        }
        self.layout += 1;
        let last = self.cursor.saturating_sub(MOVES);
        self.prefetch_moves(region, last..self.cursor);
        while self.cursor > last && self.move_bucket(region, may_take_block) {}
        if self.cursor == 0 {
            self.rule = self.to;
            self.cursor = u64::MAX;
        }
    }

    pub(super) fn is_growing(&self) -> bool {
        self.cursor != u64::MAX
    }

    /// Moves one bucket to its new places. False if memory for it is missing: growth waits.
    fn move_bucket(&mut self, region: &mut Region, may_take_block: bool) -> bool {
        if !self.make_room(region, may_take_block) {
            return false;
        }
        let number = self.cursor - 1;
        let first = (self.rule.first_hash(number)).expect("a bucket of the table");
        let last = self.rule.last_hash(number);
        let (lowest, highest) = (self.to.bucket(first), self.to.bucket(last));
        for place in lowest..=highest {
            let chunk = (place >> self.chunk_shift) as usize;
            if self.chunks[chunk] == NO_CHUNK {
                let Some(seglet) = region.take_index_seglet(may_take_block) else {
                    return false;
                };
                self.seglets += 1;
                self.chunks[chunk] = seglet;
            }
        }
        let mut moving = std::mem::take(&mut self.moving);
        self.take_words(region, number, &mut moving);
        self.cursor = number;
        // The new buckets, of which the first and the last may be parts.
        let mut tails = [None; LEAP + 1];
        for raw in moving.drain(..) {
            let (place, raw) = self.new_place(region, first, last, raw);
            let tail = &mut tails[(place - lowest) as usize];
            let tail = tail.get_or_insert_with(|| {
                let bucket = self.bucket_offset(region, place);
                self.tail(region, bucket)
            });
            self.append(region, tail, raw);
        }
        self.moving = moving;
        true
    }

    /// Where a word of the old bucket with the hashes `first..=last` goes, and as what.
    #[inline]
    fn new_place(&self, region: &Region, first: KeyHash, last: KeyHash, raw: Raw) -> (u64, Raw) {
        let shift = self.rule.tag_shift;
        if shift == self.to.tag_shift {
            // The only hashes in the bucket with this tag (I6).
            let ahead = u64::from(raw.tag()).wrapping_sub(first.0 >> shift);
            let quantum = (first.0 >> shift) + (ahead & ((1 << TAG_BITS) - 1));
            assert!(quantum <= last.0 >> shift, "a word in the wrong bucket");
            let lowest = (quantum << shift).max(first.0);
            let highest = ((quantum << shift) | ((1 << shift) - 1)).min(last.0);
            let place = self.to.bucket(KeyHash(lowest));
            if place == self.to.bucket(KeyHash(highest)) {
                return (place, raw);
            }
        }
        let word = raw.word().expect("links are not moved");
        let hash = hash_at(region, word.offset());
        (self.to.bucket(hash), Raw::new(word, self.to.tag(hash)))
    }

    /// Empties a bucket and its chain.
    fn take_words(&mut self, region: &mut Region, number: u64, into: &mut Vec<Raw>) {
        let mut bucket = self.bucket_offset(region, number);
        let mut bytes = BUCKET_BYTES;
        let mut overflow = None;
        loop {
            let mut link = None;
            for i in 0..bytes / WORD_BYTES {
                let raw = read(region, bucket + WORD_BYTES * i);
                link = raw.link();
                if raw.word().is_some() {
                    into.push(raw);
                }
            }
            clear(region, bucket, bytes);
            if let Some(number) = overflow {
                self.free_overflow(region, number);
            }
            let Some(number) = link else { return };
            overflow = link;
            bucket = self.overflow_offset(region, number);
            bytes = OVERFLOW_BYTES;
        }
    }

    /// Has loaded what moving these buckets will read.
    fn prefetch_moves(&self, region: &Region, numbers: Range<u64>) {
        for number in numbers.clone().rev() {
            region.prefetch(self.bucket_offset(region, number));
            let first = self.rule.first_hash(number).expect("a bucket of the table");
            let place = self.to.bucket(first);
            if self.chunks[(place >> self.chunk_shift) as usize] != NO_CHUNK {
                region.prefetch(self.bucket_offset(region, place));
            }
        }
        let retag = self.rule.tag_shift != self.to.tag_shift;
        for number in numbers.rev() {
            let bucket = line(region, self.bucket_offset(region, number));
            if let Some(link) = raw_in(bucket, WORDS - 1).link() {
                region.prefetch(self.overflow_offset(region, link));
            }
            for word in (0..WORDS).filter_map(|i| raw_in(bucket, i).word()) {
                if retag {
                    region.prefetch(word.offset());
                }
            }
        }
    }
}
