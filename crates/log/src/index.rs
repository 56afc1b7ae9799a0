//! The object index: from key hash to where the key's newest entries stand.
//!
//! ```text
//! bucket (64 bytes, one cache line)
//! | word | word | word | word | word | word | word | word or link |
//! word:  tag 16 | kind 2 | offset 46        link -> overflow bucket of the same shape
//! ```
//!
//! The bucket of a hash is `floor(hash * buckets / 2^64)`: the hash's top bits, so that hash order
//! is bucket order and SCAN cursors survive growth. A key has up to two words: its object or
//! tombstone, and its newest touch.
//!
//! Growth is in place, by a fifth, from the last bucket down to the first: since a bucket's new
//! place is never below its old one, everything from `cursor` up stands at its new place and
//! everything below at its old one. A few buckets move with each insertion, so there is no pause.
//!
//! I1. The words of a bucket and its overflow chain are packed: a hole is filled by the last word.
//! I2. `offset`s are those of live entries of the region; whoever moves or kills one says so here.
//! I3. Before every `insert`, `make_room` has said that there is an overflow bucket to spare.

use holdfast_format::{Entry, KeyHash};

use crate::region::Region;

const BUCKET_BYTES: u64 = 64;
const WORDS: u64 = 8;
/// Overflow buckets kept ready: moving one bucket needs at most 3 beyond those it frees.
const SPARE_MIN: u32 = 4;
/// Buckets moved per insertion while growing. With growth by a fifth at a load of 0.8 another
/// growth is 1.28 insertions per bucket away, so two are more than enough to be done in time.
const MOVES_PER_INSERT: u32 = 2;
const NO_CHUNK: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Object = 1,
    Touch = 2,
    Tombstone = 3,
}

/// What the index knows about one entry. Zero is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    #[inline]
    pub fn new(hash: KeyHash, kind: Kind, offset: u64) -> Word {
        debug_assert!(offset < 1 << 46);
        Word(tag(hash) | (kind as u64) << 46 | offset)
    }
    #[inline]
    pub fn kind(self) -> Kind {
        match self.0 >> 46 & 3 {
            1 => Kind::Object,
            2 => Kind::Touch,
            3 => Kind::Tombstone,
            _ => unreachable!("links are not given out"),
        }
    }
    #[inline]
    pub fn offset(self) -> u64 {
        self.0 & ((1 << 46) - 1)
    }
    #[inline]
    fn link(self) -> Option<u32> {
        (self.0 != 0 && self.0 >> 46 & 3 == 0).then(|| (self.0 - 1) as u32)
    }
}

#[inline]
fn tag(hash: KeyHash) -> u64 {
    hash.0 << 48
}

#[derive(Debug)]
pub(crate) struct Index {
    /// Binary logarithm of the buckets in a chunk.
    chunk_shift: u32,
    chunks: Vec<u32>,
    buckets: u64,
    growing: Option<Growing>,
    overflow_chunks: Vec<u32>,
    /// First free overflow bucket, each naming the next; 0 ends the list, otherwise number + 1.
    overflow_free: u64,
    overflow_spare: u32,
    overflow_used: u64,
    words: u64,
    /// Words of the bucket that is being moved; kept to save allocating.
    moving: Vec<Word>,
}

#[derive(Clone, Copy, Debug)]
struct Growing {
    to: u64,
    /// Old buckets from here on have moved.
    cursor: u64,
}

/// Where a word stands, until the index changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(u64);

impl Index {
    /// An index of one chunk, taken from `region`.
    pub fn new(region: &mut Region) -> Index {
        let buckets_per_chunk = region.seglet_bytes() as u64 / BUCKET_BYTES;
        assert!(buckets_per_chunk.is_power_of_two(), "validated in Config");
        let first = region
            .take_index_seglet(true)
            .expect("a new region has free blocks");
        let mut index = Index {
            chunk_shift: buckets_per_chunk.trailing_zeros(),
            chunks: vec![first],
            buckets: buckets_per_chunk,
            growing: None,
            overflow_chunks: Vec::new(),
            overflow_free: 0,
            overflow_spare: 0,
            overflow_used: 0,
            words: 0,
            moving: Vec::new(),
        };
        assert!(
            index.make_room(region, true),
            "a new region has free seglets"
        );
        index
    }

    pub fn bytes(&self, region: &Region) -> u64 {
        let chunks = self
            .chunks
            .iter()
            .filter(|&&chunk| chunk != NO_CHUNK)
            .count();
        (chunks + self.overflow_chunks.len()) as u64 * region.seglet_bytes() as u64
    }

    #[inline]
    pub fn prefetch(&self, region: &Region, hash: KeyHash) {
        region.prefetch(self.home(region, hash));
    }

    /// The words that may belong to a key with this hash.
    #[inline]
    pub fn probe<'a>(&'a self, region: &'a Region, hash: KeyHash) -> Probe<'a> {
        Probe {
            index: self,
            region,
            bucket: self.home(region, hash),
            next: 0,
            tag: Some(tag(hash)),
        }
    }

    /// Makes sure that one more word can be inserted. `may_take_block`: the region may give the
    /// index another block for it.
    pub fn make_room(&mut self, region: &mut Region, may_take_block: bool) -> bool {
        while self.overflow_spare < SPARE_MIN {
            let Some(seglet) = region.take_index_seglet(may_take_block) else {
                return false;
            };
            let first = self.overflow_chunks.len() as u64 * self.buckets_per_chunk();
            self.overflow_chunks.push(seglet);
            self.overflow_used += self.buckets_per_chunk();
            for number in (first..first + self.buckets_per_chunk()).rev() {
                self.free_overflow(region, number as u32);
            }
        }
        true
    }

    /// Adds a word. `make_room` has been asked.
    pub fn insert(&mut self, region: &mut Region, hash: KeyHash, word: Word) {
        self.words += 1;
        self.place(region, hash, word);
    }

    pub fn set(&mut self, region: &mut Region, at: At, word: Word) {
        write(region, at.0, word.0);
    }

    /// Where this very word of a key stands.
    pub fn locate(&self, region: &Region, hash: KeyHash, word: Word) -> Option<At> {
        self.probe(region, hash)
            .find(|&(_, found)| found == word)
            .map(|(at, _)| at)
    }

    /// Puts `new` in the place of `old`.
    pub fn replace(&mut self, region: &mut Region, hash: KeyHash, old: Word, new: Word) {
        let at = self
            .locate(region, hash, old)
            .expect("the word is in the index");
        self.set(region, at, new);
    }

    /// Takes a word out.
    pub fn remove(&mut self, region: &mut Region, hash: KeyHash, word: Word) {
        let at = self
            .locate(region, hash, word)
            .expect("the word is in the index");
        self.words -= 1;
        // I1: the last word of the chain fills the hole.
        let (mut previous, mut bucket) = (None, self.home(region, hash));
        while let Some(next) = self.next_bucket(region, bucket) {
            previous = Some(bucket);
            bucket = next;
        }
        let last = (0..WORDS)
            .rev()
            .find(|i| read(region, bucket + 8 * i) != 0)
            .expect("the chain holds the word");
        let filler = read(region, bucket + 8 * last);
        write(region, at.0, filler);
        write(region, bucket + 8 * last, 0);
        // An overflow bucket with one word left is given back, its word takes the link's place.
        if let (Some(before), 1) = (previous, last) {
            let number = Word(read(region, before + 8 * (WORDS - 1)))
                .link()
                .expect("I1");
            let only = read(region, bucket);
            write(region, before + 8 * (WORDS - 1), only);
            self.free_overflow(region, number);
        }
    }

    /// Grows a little if the load asks for it. Bounded work.
    pub fn grow(&mut self, region: &mut Region, may_take_block: bool) {
        if self.growing.is_none() && self.words * 10 > self.buckets * WORDS * 8 {
            let to = self.buckets + self.buckets.div_ceil(5);
            let chunks = to.div_ceil(self.buckets_per_chunk()) as usize;
            self.chunks.resize(chunks, NO_CHUNK);
            self.growing = Some(Growing {
                to,
                cursor: self.buckets,
            });
        }
        for _ in 0..MOVES_PER_INSERT {
            if self.growing.is_none() || !self.move_bucket(region, may_take_block) {
                break;
            }
        }
    }

    /// The words of the bucket in which `hash` lies, and the first hash of the next bucket.
    pub fn bucket<'a>(&'a self, region: &'a Region, hash: KeyHash) -> (Probe<'a>, Option<KeyHash>) {
        let (number, buckets) = self.place_of(hash);
        // With buckets still to move, the last old-style one ends where the moved ones begin.
        let next = first_hash(number + 1, buckets);
        let bucket = self.bucket_offset(region, number);
        (
            Probe {
                index: self,
                region,
                bucket,
                next: 0,
                tag: None,
            },
            next,
        )
    }

    /// Walks every word, for `verify`.
    pub fn check(&self, region: &Region, mut visit: impl FnMut(Word, u64, u64)) {
        let mut words = 0;
        let mut hash = Some(KeyHash(0));
        while let Some(from) = hash {
            let (probe, next) = self.bucket(region, from);
            for (_, word) in probe {
                words += 1;
                visit(word, from.0, next.map_or(u64::MAX, |next| next.0 - 1));
            }
            hash = next;
        }
        assert_eq!(words, self.words, "words in buckets");
        let total = self.overflow_chunks.len() as u64 * self.buckets_per_chunk();
        assert_eq!(self.overflow_used + u64::from(self.overflow_spare), total);
    }

    // ---- private ----

    fn buckets_per_chunk(&self) -> u64 {
        1 << self.chunk_shift
    }

    /// Number of the bucket and how many there are by the rule that holds for `hash`.
    #[inline]
    fn place_of(&self, hash: KeyHash) -> (u64, u64) {
        let old = scale(hash, self.buckets);
        match self.growing {
            Some(growing) if old >= growing.cursor => (scale(hash, growing.to), growing.to),
            _ => (old, self.buckets),
        }
    }

    #[inline]
    fn home(&self, region: &Region, hash: KeyHash) -> u64 {
        self.bucket_offset(region, self.place_of(hash).0)
    }

    #[inline]
    fn bucket_offset(&self, region: &Region, number: u64) -> u64 {
        chunk_offset(
            &self.chunks,
            self.chunk_shift,
            region.seglet_bytes(),
            number,
        )
    }

    fn overflow_offset(&self, region: &Region, number: u32) -> u64 {
        let number = u64::from(number);
        chunk_offset(
            &self.overflow_chunks,
            self.chunk_shift,
            region.seglet_bytes(),
            number,
        )
    }

    fn next_bucket(&self, region: &Region, bucket: u64) -> Option<u64> {
        let link = Word(read(region, bucket + 8 * (WORDS - 1))).link()?;
        Some(self.overflow_offset(region, link))
    }

    fn place(&mut self, region: &mut Region, hash: KeyHash, word: Word) {
        let mut bucket = self.home(region, hash);
        while let Some(next) = self.next_bucket(region, bucket) {
            bucket = next;
        }
        if let Some(free) = (0..WORDS).find(|i| read(region, bucket + 8 * i) == 0) {
            write(region, bucket + 8 * free, word.0);
            return;
        }
        assert!(self.overflow_spare > 0, "I3: make_room was asked");
        let number = (self.overflow_free - 1) as u32;
        let overflow = self.overflow_offset(region, number);
        self.overflow_free = read(region, overflow);
        self.overflow_spare -= 1;
        self.overflow_used += 1;
        let displaced = read(region, bucket + 8 * (WORDS - 1));
        write(region, overflow, displaced);
        write(region, overflow + 8, word.0);
        write(region, bucket + 8 * (WORDS - 1), u64::from(number) + 1);
    }

    fn free_overflow(&mut self, region: &mut Region, number: u32) {
        let offset = self.overflow_offset(region, number);
        let end = offset as usize + BUCKET_BYTES as usize;
        region.memory_mut()[offset as usize..end].fill(0);
        write(region, offset, self.overflow_free);
        self.overflow_free = u64::from(number) + 1;
        self.overflow_spare += 1;
        self.overflow_used -= 1;
    }

    /// Moves one bucket to its new places. False if memory for it is missing: growth waits.
    fn move_bucket(&mut self, region: &mut Region, may_take_block: bool) -> bool {
        let Growing { to, cursor } = self.growing.expect("the caller looked");
        let number = cursor - 1;
        if !self.make_room(region, may_take_block) {
            return false;
        }
        let scaled = |n: u64| (u128::from(n) * u128::from(to) / u128::from(self.buckets)) as u64;
        for place in scaled(number)..=scaled(number + 1).min(to - 1) {
            let chunk = (place / self.buckets_per_chunk()) as usize;
            if self.chunks[chunk] == NO_CHUNK {
                let Some(seglet) = region.take_index_seglet(may_take_block) else {
                    return false;
                };
                self.chunks[chunk] = seglet;
            }
        }

        let mut moving = std::mem::take(&mut self.moving);
        let mut bucket = self.bucket_offset(region, number);
        let mut overflow = None;
        loop {
            let next = self.next_bucket(region, bucket);
            let link = Word(read(region, bucket + 8 * (WORDS - 1))).link();
            for i in 0..WORDS - u64::from(link.is_some()) {
                let word = read(region, bucket + 8 * i);
                if word != 0 {
                    moving.push(Word(word));
                }
            }
            let end = (bucket + BUCKET_BYTES) as usize;
            region.memory_mut()[bucket as usize..end].fill(0);
            if let Some(number) = overflow {
                self.free_overflow(region, number);
            }
            match next {
                Some(next) => (bucket, overflow) = (next, link),
                None => break,
            }
        }
        self.growing = Some(Growing { to, cursor: number });
        for word in moving.drain(..) {
            self.place(region, hash_at(region, word.offset()), word);
        }
        self.moving = moving;
        if number == 0 {
            self.buckets = to;
            self.growing = None;
        } else {
            // The next bucket's keys will be hashed at the next step: have them loaded by then.
            let bucket = self.bucket_offset(region, number - 1);
            for i in 0..WORDS {
                let word = Word(read(region, bucket + 8 * i));
                if word.0 != 0 && word.link().is_none() {
                    region.prefetch(word.offset());
                }
            }
        }
        true
    }
}

/// Iterates over the words of a bucket and its overflow chain.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    index: &'a Index,
    region: &'a Region,
    bucket: u64,
    next: u64,
    /// Only words with this tag.
    tag: Option<u64>,
}

impl Iterator for Probe<'_> {
    type Item = (At, Word);

    #[inline]
    fn next(&mut self) -> Option<(At, Word)> {
        loop {
            if self.next == WORDS {
                return None;
            }
            let at = self.bucket + 8 * self.next;
            let word = Word(read(self.region, at));
            if word.0 == 0 {
                return None; // I1: nothing follows a hole.
            }
            if let Some(link) = word.link() {
                self.bucket = self.index.overflow_offset(self.region, link);
                self.next = 0;
                continue;
            }
            self.next += 1;
            if self.tag.is_none_or(|tag| tag == word.0 & !((1 << 48) - 1)) {
                return Some((At(at), word));
            }
        }
    }
}

/// The hash of the key of the entry at `offset`.
pub(crate) fn hash_at(region: &Region, offset: u64) -> KeyHash {
    let (entry, _) = Entry::decode_trusted(&region.memory()[offset as usize..])
        .expect("the index points at entries (I2)");
    entry
        .key_hash()
        .expect("the index points at entries with keys (I2)")
}

#[inline]
fn scale(hash: KeyHash, buckets: u64) -> u64 {
    ((u128::from(hash.0) * u128::from(buckets)) >> 64) as u64
}

/// The lowest hash of a bucket; `None` past the last.
fn first_hash(number: u64, buckets: u64) -> Option<KeyHash> {
    if number >= buckets {
        return None;
    }
    let hash = (u128::from(number) << 64).div_ceil(u128::from(buckets));
    Some(KeyHash(hash as u64))
}

#[inline]
fn chunk_offset(chunks: &[u32], shift: u32, seglet_bytes: usize, number: u64) -> u64 {
    let chunk = chunks[(number >> shift) as usize];
    let within = number & ((1 << shift) - 1);
    u64::from(chunk) * seglet_bytes as u64 + within * BUCKET_BYTES
}

#[inline]
fn read(region: &Region, at: u64) -> u64 {
    let at = at as usize;
    u64::from_le_bytes(region.memory()[at..at + 8].try_into().expect("eight bytes"))
}

#[inline]
fn write(region: &mut Region, at: u64, word: u64) {
    let at = at as usize;
    region.memory_mut()[at..at + 8].copy_from_slice(&word.to_le_bytes());
}
