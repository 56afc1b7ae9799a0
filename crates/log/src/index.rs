//! The object index: from key hash to where the key's newest entries stand.
//!
//! ```text
//! bucket (64 bytes, one cache line)
//! | word | word | word | word | word | word | word | word or link |
//! word:  tag 22 | kind 2 | offset 40           link -> | word | word | word | word or link |   overflow bucket
//! link:  filter 22 | 0 | number + 1
//! ```
//!
//! The bucket of a hash is `floor(hash * buckets / 2^64)`: the hash's top bits, so that hash order
//! is bucket order and SCAN cursors survive growth. A key has up to two words: its object or
//! tombstone (its *main* word), and its newest touch.
//!
//! The tag is cut from the hash where it is most useful: a little of it lies in the bits that the bucket
//! number tells already, the rest right below them. So bucket and tag together know the hash to 32 bits and
//! more, enough to know a word's place in a larger table without reading its key: growth moves words and
//! touches no entries. Where the tag is cut changes each time that the table has grown a thousandfold; then
//! alone keys are read.
//!
//! How it grows: `growth`.
//!
//! I1. The words of a bucket and its overflow chain are packed: a hole is filled by the last word.
//! I2. `offset`s are those of live entries of the region; whoever moves or kills one says so here.
//! I3. Before every `insert`, `make_room` has said that there is an overflow bucket to spare.
//! I4. A key's touch stands before its main word, so that a look-up may end there.
//! I5. A link's filter has the bit of every word behind it. So a look-up of what is not there, as the cleaner's of
//!     garbage, seldom goes on to the next bucket.
//! I6. A bucket's hashes span at most half of what tags of its table can tell apart.

mod growth;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;

use holdfast_format::{KeyHash, Keyed};

use crate::region::Region;
use crate::tags::{TAG_BITS, matching, scan};

const BUCKET_BYTES: u64 = 64;
const OVERFLOW_BYTES: u64 = 32;
const WORD_BYTES: u64 = 8;
/// Words of a bucket, and of an overflow bucket.
const WORDS: u64 = BUCKET_BYTES / WORD_BYTES;
const OVERFLOW_WORDS: u64 = OVERFLOW_BYTES / WORD_BYTES;
/// Growth begins at so many words in a bucket's space: with the overflow buckets that they need then (0.33
/// for each bucket, by Poisson) a word costs 10.7 bytes, and 11.8 right after growth by an eighth. One word
/// in nine is in an overflow bucket.
const WORDS_PER_BUCKET: u64 = 7;
/// Overflow buckets kept ready. Moving a bucket needs at most 7 beyond those it frees, one for every 3 words but the
/// first 7: of the buckets that its words go to only the first and the last may hold others already, and need one for
/// every 3 words and less than 2 besides; those between need none for 8 words.
const SPARE_MIN: u64 = 8;
const NO_CHUNK: u32 = u32::MAX;

/// Bits of an offset: a log has at most 1 TiB.
pub(crate) const OFFSET_BITS: u32 = 40;
const KIND_BITS: u32 = 2;
const TAG_AT: u32 = OFFSET_BITS + KIND_BITS;
const _: () = assert!(TAG_AT + TAG_BITS == 64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Object = 1,
    Touch = 2,
    Tombstone = 3,
}

/// What the index knows about one entry: its kind and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(NonZeroU64);

impl Word {
    #[inline]
    pub fn new(kind: Kind, offset: u64) -> Word {
        debug_assert!(offset < 1 << OFFSET_BITS);
        let word = NonZeroU64::new((kind as u64) << OFFSET_BITS | offset);
        Word(word.expect("no kind is 0"))
    }
    #[inline]
    pub fn kind(self) -> Kind {
        match self.0.get() >> OFFSET_BITS {
            1 => Kind::Object,
            2 => Kind::Touch,
            3 => Kind::Tombstone,
            _ => unreachable!("links are not given out"),
        }
    }
    #[inline]
    pub fn offset(self) -> u64 {
        self.0.get() & ((1 << OFFSET_BITS) - 1)
    }
    #[inline]
    fn is_main(self) -> bool {
        self.kind() != Kind::Touch
    }
}

/// A word with its tag, as it stands in a bucket; or a link to an overflow bucket; or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raw(u64);

impl Raw {
    const NONE: Raw = Raw(0);

    #[inline]
    fn new(word: Word, tag: u32) -> Raw {
        Raw(u64::from(tag) << TAG_AT | word.0.get())
    }
    /// A link to an overflow bucket with the words of `filter`.
    #[inline]
    fn to(overflow: u64, filter: u64) -> Raw {
        Raw(filter | (overflow + 1))
    }
    /// The bit of words with this tag in a link's filter; from the low bits of the tag, because the high ones
    /// are those of the bucket.
    #[inline]
    fn filter(tag: u32) -> u64 {
        1 << (TAG_AT + (((tag & 0x3FF) * TAG_BITS) >> 10))
    }
    #[inline]
    fn tag(self) -> u32 {
        (self.0 >> TAG_AT) as u32
    }
    #[inline]
    fn word(self) -> Option<Word> {
        let word = self.0 & ((1 << TAG_AT) - 1);
        match word >> OFFSET_BITS {
            0 => None,
            _ => NonZeroU64::new(word).map(Word),
        }
    }
    /// The overflow bucket that a link leads to.
    #[inline]
    fn link(self) -> Option<u64> {
        (self.0 != 0 && self.word().is_none()).then(|| u64::from(self.0 as u32) - 1)
    }
    /// As `link`, if words with this tag may be behind it (I5).
    #[inline]
    fn link_for(self, tag: u32) -> Option<u64> {
        self.link().filter(|_| self.0 & Raw::filter(tag) != 0)
    }
}

/// How hashes become buckets and tags.
#[derive(Clone, Copy, Debug)]
struct Rule {
    buckets: u64,
    /// The tag begins at this bit of the hash.
    tag_shift: u32,
}

impl Rule {
    fn of(buckets: u64) -> Rule {
        // I6: with at least 2^bits buckets their hashes span at most 2^(64 - bits).
        let bits = match buckets.ilog2() {
            36.. => 36,
            26.. => 26,
            16.. => 16,
            _ => 6,
        };
        assert!(buckets >= 1 << bits, "chunks have 64 buckets at least");
        Rule {
            buckets,
            tag_shift: 64 - bits - (TAG_BITS - 1),
        }
    }
    #[inline]
    fn bucket(self, hash: KeyHash) -> u64 {
        ((u128::from(hash.0) * u128::from(self.buckets)) >> 64) as u64
    }
    #[inline]
    fn tag(self, hash: KeyHash) -> u32 {
        (hash.0 >> self.tag_shift) as u32 & ((1 << TAG_BITS) - 1)
    }
    /// The lowest hash of a bucket; `None` past the last.
    fn first_hash(self, number: u64) -> Option<KeyHash> {
        if number >= self.buckets {
            return None;
        }
        let hash = (u128::from(number) << 64).div_ceil(u128::from(self.buckets));
        Some(KeyHash(hash as u64))
    }
    /// The highest hash of a bucket.
    fn last_hash(self, number: u64) -> KeyHash {
        self.first_hash(number + 1)
            .map_or(KeyHash(u64::MAX), |next| KeyHash(next.0 - 1))
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    /// Binary logarithm of the buckets in a chunk.
    chunk_shift: u32,
    chunks: Vec<u32>,
    rule: Rule,
    /// What holds for buckets that have moved. As `rule` while there is no growth.
    to: Rule,
    /// Old buckets from here on have moved: none, with `u64::MAX`, while there is no growth.
    cursor: u64,
    overflow_chunks: Vec<u32>,
    /// First free overflow bucket, each naming the next; 0 ends the list, otherwise number + 1.
    overflow_free: u64,
    /// Overflow buckets from here on were never used.
    overflow_fresh: u64,
    overflow_used: u64,
    seglets: u64,
    words: u64,
    /// So many words are expected before long; 0 if nothing is known.
    expected: u64,
    /// How often buckets have moved.
    layout: u64,
    /// Words of the bucket that is being moved; kept to save allocating.
    moving: Vec<Raw>,
}

/// Where a word stood when it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct At(u64);

impl Index {
    /// An index of one chunk, taken from `region`.
    pub fn new(region: &mut Region) -> Index {
        let buckets_per_chunk = region.seglet_bytes() as u64 / BUCKET_BYTES;
        assert!(buckets_per_chunk.is_power_of_two(), "validated in Config");
        let first = region
            .take_index_seglet(true)
            .expect("a new region has free blocks");
        let rule = Rule::of(buckets_per_chunk);
        let mut index = Index {
            chunk_shift: buckets_per_chunk.trailing_zeros(),
            chunks: vec![first],
            rule,
            to: rule,
            cursor: u64::MAX,
            overflow_chunks: Vec::new(),
            overflow_free: 0,
            overflow_fresh: 0,
            overflow_used: 0,
            seglets: 1,
            words: 0,
            expected: 0,
            layout: 0,
            moving: Vec::new(),
        };
        assert!(
            index.make_room(region, true),
            "a new region has free seglets"
        );
        index
    }

    pub fn bytes(&self, region: &Region) -> u64 {
        self.seglets * region.seglet_bytes() as u64
    }

    pub fn buckets(&self) -> u64 {
        self.to.buckets
    }

    /// Starts loading the bucket in which a look-up of `hash` will begin.
    #[inline]
    pub fn prefetch(&self, region: &Region, hash: KeyHash) {
        region.prefetch(self.home(region, hash).0);
    }

    /// Starts loading what a look-up will read after the bucket, which has been loaded by now: the
    /// entry, or the next bucket of the chain. True if it is the latter.
    #[inline]
    pub fn prefetch_entry(&self, region: &Region, hash: KeyHash) -> bool {
        let (bucket, tag) = self.home(region, hash);
        let line = line(region, bucket);
        let found = matching(line, tag);
        let raw = match found {
            0 => raw_in(line, WORDS - 1),
            found => raw_in(line, u64::from(found.trailing_zeros())),
        };
        match (raw.word(), raw.link_for(tag)) {
            (Some(word), _) if found != 0 => {
                prefetch_front(region, word);
                false
            }
            (_, Some(link)) => {
                region.prefetch(self.overflow_offset(region, link));
                true
            }
            _ => false,
        }
    }

    /// Starts loading the entry if it is an overflow bucket that names it, all of which have been loaded by now.
    pub fn prefetch_behind(&self, region: &Region, hash: KeyHash) {
        if let Some((_, word)) = self.probe(region, hash).next() {
            prefetch_front(region, word);
        }
    }

    /// Starts loading the next bucket of the chain if a look-up will read it. The first has been loaded by now.
    #[inline]
    pub fn prefetch_chain(&self, region: &Region, hash: KeyHash) {
        let (bucket, tag) = self.home(region, hash);
        let line = line(region, bucket);
        if matching(line, tag) == 0
            && let Some(link) = raw_in(line, WORDS - 1).link_for(tag)
        {
            region.prefetch(self.overflow_offset(region, link));
        }
    }

    /// Starts loading what `vacancy` will read after the bucket, which has been loaded by now, or what a look-up will if
    /// there are words of such a key.
    #[inline]
    pub fn prefetch_vacancy(&self, region: &Region, home: Home) {
        let line = line(region, home.bucket);
        let found = matching(line, home.tag);
        let raw = match found {
            0 => raw_in(line, WORDS - 1),
            found => raw_in(line, u64::from(found.trailing_zeros())),
        };
        if let Some(link) = raw.link() {
            region.prefetch(self.overflow_offset(region, link));
        } else if let Some(word) = raw.word().filter(|_| found != 0) {
            prefetch_front(region, word);
        }
    }

    /// Where look-ups of this hash begin, as long as `layout` stays the same.
    #[inline]
    pub fn home_of(&self, region: &Region, hash: KeyHash) -> Home {
        let (bucket, tag) = self.home(region, hash);
        Home { bucket, tag }
    }

    /// Changes when `home_of` may.
    #[inline]
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// Where the first word of a key with this hash would go, if there is none of such a key yet. `None` also if only
    /// `probe` can tell.
    #[inline]
    pub fn vacancy(&self, region: &Region, home: Home) -> Option<Vacancy> {
        let Home { bucket: home, tag } = home;
        let line = line(region, home);
        let (found, filled) = scan(line, tag);
        let tail = |next, end| Some(Tail { home, next, end }).map(|tail| Vacancy { tail, tag });
        if found != 0 {
            return None;
        }
        let Some(mut link) = raw_in(line, WORDS - 1).link() else {
            // I1, and no word or link has an upper half of zero.
            let next = home + WORD_BYTES * u64::from(filled.count_ones());
            return tail(next, home + BUCKET_BYTES);
        };
        loop {
            let bucket = self.overflow_offset(region, link);
            let mut filled = 0;
            let mut last = Raw::NONE;
            for i in 0..OVERFLOW_WORDS {
                last = read(region, bucket + WORD_BYTES * i);
                if last.tag() == tag {
                    return None;
                }
                filled += u64::from(last != Raw::NONE);
            }
            match last.link() {
                Some(next) => link = next,
                None => return tail(bucket + WORD_BYTES * filled, bucket + OVERFLOW_BYTES),
            }
        }
    }

    /// Adds a word where `vacancy` has just said. `make_room` has been asked.
    #[inline]
    pub fn fill_vacancy(&mut self, region: &mut Region, mut vacancy: Vacancy, word: Word) {
        self.words += 1;
        let raw = Raw::new(word, vacancy.tag);
        self.append(region, &mut vacancy.tail, raw);
    }

    /// The words that may belong to a key with this hash. A key's touch comes before its main word (I4).
    #[inline]
    pub fn probe<'a>(&'a self, region: &'a Region, hash: KeyHash) -> Probe<'a> {
        let (bucket, tag) = self.home(region, hash);
        Probe::new(self, region, bucket, Some(tag))
    }

    /// The word of the entry at `offset`, which is that of a key with this hash; and whether the key
    /// may have a touch besides. Reads no entry.
    #[inline]
    pub fn find_offset(&self, region: &Region, hash: KeyHash, offset: u64) -> Option<Spot> {
        let mut touches = false;
        for (at, word) in self.probe(region, hash) {
            if word.offset() == offset {
                return Some(Spot { at, word, touches });
            }
            touches |= !word.is_main();
        }
        None
    }

    /// True if one more word can be inserted as it is.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.overflow_spare() >= SPARE_MIN
    }

    /// How many words there are.
    pub fn words(&self) -> u64 {
        self.words
    }

    /// Makes sure that one more word can be inserted. `may_take_block`: the region may give the
    /// index another block for it.
    #[inline]
    pub fn make_room(&mut self, region: &mut Region, may_take_block: bool) -> bool {
        self.has_room() || self.add_overflow(region, may_take_block)
    }

    /// Adds a word. `make_room` has been asked.
    pub fn insert(&mut self, region: &mut Region, hash: KeyHash, word: Word) {
        self.words += 1;
        let (bucket, tag) = self.home(region, hash);
        let mut last = Raw::new(word, tag);
        if !word.is_main() {
            // I4: it takes the place of the first word that could be the key's main one.
            let first = self.probe(region, hash).find(|(_, it)| it.is_main());
            if let Some((at, main)) = first {
                write(region, at.0, last);
                last = Raw::new(main, tag);
            }
        }
        let mut tail = self.tail(region, bucket);
        self.append(region, &mut tail, last);
    }

    /// Where this very word of a key stands.
    pub fn locate(&self, region: &Region, hash: KeyHash, word: Word) -> Option<At> {
        self.probe(region, hash)
            .find(|&(_, found)| found == word)
            .map(|(at, _)| at)
    }

    /// Puts `new` in the place of `old`, a main word for a main one or a touch for a touch.
    pub fn replace(&mut self, region: &mut Region, hash: KeyHash, old: Word, new: Word) {
        let at = self
            .locate(region, hash, old)
            .expect("the word is in the index");
        self.replace_at(region, hash, at, old, new);
    }

    /// As `replace`, for whoever has seen `old` at `at`. It may have moved since.
    #[inline]
    pub fn replace_at(&mut self, region: &mut Region, hash: KeyHash, at: At, old: Word, new: Word) {
        assert_eq!(old.is_main(), new.is_main(), "I4");
        let raw = read(region, at.0);
        if raw.word() != Some(old) {
            return self.replace(region, hash, old, new);
        }
        write(region, at.0, Raw::new(new, raw.tag()));
    }

    /// Takes a word out.
    pub fn remove(&mut self, region: &mut Region, hash: KeyHash, word: Word) {
        let at = self
            .locate(region, hash, word)
            .expect("the word is in the index");
        self.words -= 1;
        // I1: the last word of the chain fills the hole.
        let mut previous = None;
        let (mut bucket, _) = self.home(region, hash);
        let mut words = WORDS;
        while let Some(link) = read(region, bucket + WORD_BYTES * (words - 1)).link() {
            previous = Some((bucket + WORD_BYTES * (words - 1), link));
            bucket = self.overflow_offset(region, link);
            words = OVERFLOW_WORDS;
        }
        let last = (0..words)
            .rev()
            .find(|i| read(region, bucket + WORD_BYTES * i) != Raw::NONE)
            .expect("the chain holds the word");
        let last_at = At(bucket + WORD_BYTES * last);
        if at != last_at {
            self.fill(region, hash, at, last_at);
        }
        write(region, last_at.0, Raw::NONE);
        // An overflow bucket with one word left is given back, its word takes the link's place.
        if let (Some((link_at, number)), 1) = (previous, last) {
            let only = read(region, bucket);
            write(region, link_at, only);
            self.free_overflow(region, number);
        }
    }

    /// The words of the bucket in which `hash` lies, and the first hash of the next bucket.
    pub fn bucket<'a>(&'a self, region: &'a Region, hash: KeyHash) -> (Probe<'a>, Option<KeyHash>) {
        let rule = self.rule_of(hash);
        let number = rule.bucket(hash);
        // With buckets still to move, the last old-style one ends where the moved ones begin.
        let next = rule.first_hash(number + 1);
        let bucket = self.bucket_offset(region, number);
        (Probe::new(self, region, bucket, None), next)
    }

    /// Starts loading the entries that a bucket's words lead to; gives the first hash of the next bucket.
    pub fn prefetch_bucket(&self, region: &Region, hash: KeyHash) -> Option<KeyHash> {
        let (bucket, next) = self.bucket(region, hash);
        for (_, word) in bucket {
            region.prefetch(word.offset());
        }
        next
    }

    /// Walks every word, for `verify`, with the hashes that its place allows.
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
        let mut free = 0;
        let mut next = self.overflow_free;
        while next != 0 {
            free += 1;
            next = read(region, self.overflow_offset(region, next - 1)).0;
        }
        assert_eq!(self.overflow_used + free, self.overflow_fresh);
        let chunks = self.chunks.iter().filter(|&&it| it != NO_CHUNK).count();
        assert_eq!(
            self.seglets,
            (chunks + self.overflow_chunks.len()) as u64,
            "chunks"
        );
    }

    // ---- private ----

    #[inline]
    fn rule_of(&self, hash: KeyHash) -> Rule {
        match self.rule.bucket(hash) >= self.cursor {
            true => self.to,
            false => self.rule,
        }
    }

    /// Where the bucket of `hash` is, and the tag of `hash` there.
    ///
    /// Both numbers are computed and one is taken: during growth a branch would be guessed wrong half
    /// the time.
    #[inline]
    fn home(&self, region: &Region, hash: KeyHash) -> (u64, u32) {
        let (old, new) = (self.rule.bucket(hash), self.to.bucket(hash));
        let moved = old >= self.cursor;
        let number = if moved { new } else { old };
        let shift = if moved {
            self.to.tag_shift
        } else {
            self.rule.tag_shift
        };
        let tag = (hash.0 >> shift) as u32 & ((1 << TAG_BITS) - 1);
        (self.bucket_offset(region, number), tag)
    }

    #[inline]
    fn bucket_offset(&self, region: &Region, number: u64) -> u64 {
        let chunk = self.chunks[(number >> self.chunk_shift) as usize];
        let within = number & ((1 << self.chunk_shift) - 1);
        region.offset_of(chunk) + within * BUCKET_BYTES
    }

    #[inline]
    fn overflow_offset(&self, region: &Region, number: u64) -> u64 {
        let shift = self.chunk_shift + 1;
        let chunk = self.overflow_chunks[(number >> shift) as usize];
        let within = number & ((1 << shift) - 1);
        region.offset_of(chunk) + within * OVERFLOW_BYTES
    }

    fn overflow_spare(&self) -> u64 {
        let total = (self.overflow_chunks.len() as u64) << (self.chunk_shift + 1);
        total - self.overflow_used
    }

    #[cold]
    fn add_overflow(&mut self, region: &mut Region, may_take_block: bool) -> bool {
        let Some(seglet) = region.take_index_seglet(may_take_block) else {
            return false;
        };
        self.seglets += 1;
        self.overflow_chunks.push(seglet);
        true
    }

    /// A zeroed overflow bucket.
    fn take_overflow(&mut self, region: &mut Region) -> u64 {
        self.overflow_used += 1;
        match self.overflow_free {
            0 => {
                let number = self.overflow_fresh;
                self.overflow_fresh += 1;
                number
            }
            free => {
                let offset = self.overflow_offset(region, free - 1);
                self.overflow_free = read(region, offset).0;
                write(region, offset, Raw::NONE);
                free - 1
            }
        }
    }

    fn free_overflow(&mut self, region: &mut Region, number: u64) {
        let offset = self.overflow_offset(region, number);
        clear(region, offset, OVERFLOW_BYTES);
        write(region, offset, Raw(self.overflow_free));
        self.overflow_free = number + 1;
        self.overflow_used -= 1;
    }

    /// The end of the chain that begins at `home`.
    #[inline]
    fn tail(&self, region: &Region, home: u64) -> Tail {
        let mut bucket = home;
        let mut words = WORDS;
        while let Some(link) = read(region, bucket + WORD_BYTES * (words - 1)).link() {
            bucket = self.overflow_offset(region, link);
            words = OVERFLOW_WORDS;
        }
        // I1: as many words as there are places that are not empty.
        let filled = (0..words).filter(|i| read(region, bucket + WORD_BYTES * i) != Raw::NONE);
        Tail {
            home,
            next: bucket + WORD_BYTES * filled.count() as u64,
            end: bucket + WORD_BYTES * words,
        }
    }

    /// Puts a word at the end of a chain.
    #[inline]
    fn append(&mut self, region: &mut Region, tail: &mut Tail, raw: Raw) {
        if tail.next == tail.end {
            self.lengthen(region, tail);
        }
        write(region, tail.next, raw);
        tail.next += WORD_BYTES;
        if tail.end != tail.home + BUCKET_BYTES {
            self.let_through(region, tail.home, raw.tag());
        }
    }

    /// Makes the last word of a chain the first one of a new bucket.
    fn lengthen(&mut self, region: &mut Region, tail: &mut Tail) {
        assert!(self.overflow_spare() > 0, "I3: make_room was asked");
        let number = self.take_overflow(region);
        let overflow = self.overflow_offset(region, number);
        let last_at = tail.end - WORD_BYTES;
        let last = read(region, last_at);
        write(region, overflow, last);
        write(region, last_at, Raw::to(number, Raw::filter(last.tag())));
        tail.next = overflow + WORD_BYTES;
        tail.end = overflow + OVERFLOW_BYTES;
    }

    /// Has all links of a chain let look-ups of this tag through (I5).
    fn let_through(&self, region: &mut Region, home: u64, tag: u32) {
        let mut link_at = home + WORD_BYTES * (WORDS - 1);
        loop {
            let raw = read(region, link_at);
            let Some(link) = raw.link() else { return };
            write(region, link_at, Raw(raw.0 | Raw::filter(tag)));
            link_at = self.overflow_offset(region, link) + WORD_BYTES * (OVERFLOW_WORDS - 1);
        }
    }

    /// Copies the last word of a chain, at `last`, to the hole at `hole`.
    fn fill(&self, region: &mut Region, hash: KeyHash, hole: At, last: At) {
        let filler = read(region, last.0);
        let word = filler.word().expect("the last word");
        write(region, hole.0, filler);
        if !word.is_main() {
            return;
        }
        // I4: if the key's touch stood between the two, it must not come after. All that could be it
        // have the same tag; the last of them changes places with the word.
        let (home, _) = self.home(region, hash);
        let touch = Probe::new(self, region, home, Some(filler.tag()))
            .skip_while(|&(at, _)| at != hole)
            .filter(|(_, word)| !word.is_main())
            .last();
        if let Some((at, touch)) = touch {
            write(region, hole.0, Raw::new(touch, filler.tag()));
            write(region, at.0, filler);
        }
    }
}

/// The end of a chain: where its next word goes, and where its last bucket ends.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// The chain's first bucket.
    home: u64,
    next: u64,
    end: u64,
}

/// A bucket, and the tag in it of a hash whose bucket it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Home {
    pub bucket: u64,
    tag: u32,
}

/// Where a word can be added, and its tag there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vacancy {
    tail: Tail,
    tag: u32,
}

/// A word, where it stands, and whether touches were seen that may be its key's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub at: At,
    pub word: Word,
    touches: bool,
}

impl Spot {
    /// True if this is a key's main word and the key has no touch.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.word.is_main() && !self.touches
    }
}

/// Iterates over the words of a bucket and its overflow chain.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    index: &'a Index,
    region: &'a Region,
    bucket: u64,
    /// Places of this bucket still to be looked at, a bit each.
    left: u32,
    /// Where the link to the next bucket would be.
    link_at: u64,
    /// Only words with this tag.
    tag: Option<u32>,
}

impl<'a> Probe<'a> {
    #[inline]
    fn new(index: &'a Index, region: &'a Region, bucket: u64, tag: Option<u32>) -> Probe<'a> {
        Probe {
            index,
            region,
            bucket,
            left: match tag {
                Some(tag) => matching(line(region, bucket), tag),
                None => (1 << WORDS) - 1,
            },
            link_at: bucket + WORD_BYTES * (WORDS - 1),
            tag,
        }
    }

    /// Goes on to the next bucket of the chain. False if there is none.
    #[inline]
    fn follow(&mut self) -> bool {
        let raw = read(self.region, self.link_at);
        let link = match self.tag {
            Some(tag) => raw.link_for(tag),
            None => raw.link(),
        };
        link.is_some_and(|link| self.enter(link))
    }

    fn enter(&mut self, link: u64) -> bool {
        self.bucket = self.index.overflow_offset(self.region, link);
        self.link_at = self.bucket + WORD_BYTES * (OVERFLOW_WORDS - 1);
        self.left = (0..OVERFLOW_WORDS)
            .filter(|i| {
                let raw = read(self.region, self.bucket + WORD_BYTES * i);
                self.tag.is_none_or(|tag| tag == raw.tag())
            })
            .fold(0, |left, i| left | 1 << i);
        true
    }
}

impl Iterator for Probe<'_> {
    type Item = (At, Word);

    #[inline(always)]
    fn next(&mut self) -> Option<(At, Word)> {
        loop {
            while self.left != 0 {
                let at = self.bucket + WORD_BYTES * u64::from(self.left.trailing_zeros());
                self.left &= self.left - 1;
                // Links and places without a word have tag 0 as well.
                if let Some(word) = read(self.region, at).word() {
                    return Some((At(at), word));
                }
            }
            if !self.follow() {
                return None;
            }
        }
    }
}

/// The hash of the key of the entry at `offset`.
pub(crate) fn hash_at(region: &Region, offset: u64) -> KeyHash {
    Keyed::at(&region.memory()[offset as usize..])
        .expect("the index points at entries with keys (I2)")
        .hash()
}

#[inline]
fn line(region: &Region, bucket: u64) -> &[u8; BUCKET_BYTES as usize] {
    region.memory()[bucket as usize..]
        .first_chunk()
        .expect("buckets are whole")
}

#[inline]
fn raw_in(line: &[u8; BUCKET_BYTES as usize], i: u64) -> Raw {
    let at = (WORD_BYTES * i) as usize;
    Raw(u64::from_le_bytes(
        line[at..at + 8].try_into().expect("eight bytes"),
    ))
}

#[inline]
fn read(region: &Region, at: u64) -> Raw {
    let at = at as usize;
    let bytes = region.memory()[at..at + 8].try_into();
    Raw(u64::from_le_bytes(bytes.expect("eight bytes")))
}

#[inline]
fn write(region: &mut Region, at: u64, raw: Raw) {
    let at = at as usize;
    region.memory_mut()[at..at + 8].copy_from_slice(&raw.0.to_le_bytes());
}

#[inline]
fn clear(region: &mut Region, at: u64, bytes: u64) {
    region.memory_mut()[at as usize..(at + bytes) as usize].fill(0);
}

/// Starts loading an entry's header and key, which seldom end in the line in which they begin, and where its value
/// begins.
#[inline]
fn prefetch_front(region: &Region, word: Word) {
    for line in 0..3 {
        region.prefetch(word.offset() + line * BUCKET_BYTES);
    }
}
