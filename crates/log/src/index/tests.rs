//! The index against a map, growing, full, and with the tags cut anew.

use std::collections::BTreeMap;

use holdfast_format::{Namespace, SegmentId, Tombstone, Version};
use proptest::prelude::*;

use super::*;

/// An index and what it must hold: per key the offsets of its main word and its touch.
struct Pair {
    region: Region,
    index: Index,
    /// Where the next entry goes.
    end: u64,
    model: BTreeMap<(KeyHash, u32), (Option<Word>, Option<Word>)>,
}

impl Pair {
    /// With room for `entries`.
    fn new(entries: u64) -> Pair {
        let for_entries = (entries * ENTRY_BYTES).div_ceil(4 << 10) as u32;
        let for_index = (entries * 12).div_ceil(4 << 10) as u32 + 8;
        let mut region = Region::new(for_entries + for_index, 4 << 10).unwrap();
        let run = region.take(for_entries, for_entries).unwrap();
        assert_eq!(run.first, 0);
        Pair {
            index: Index::new(&mut region),
            region,
            end: 0,
            model: BTreeMap::new(),
        }
    }

    /// Appends an entry under `key`, as whose word any kind will do.
    fn entry(&mut self, kind: Kind, key: u32) -> Word {
        let entry = Tombstone {
            namespace: NS,
            key: &key.to_le_bytes(),
            version: Version(1),
            birth: SegmentId(1),
        };
        let at = self.end as usize;
        self.end += entry.encode(&mut self.region.memory_mut()[at..at + 28]) as u64;
        Word::new(kind, at as u64)
    }

    fn insert(&mut self, kind: Kind, key: u32) {
        let hash = hash(key);
        let word = self.entry(kind, key);
        let known = self.model.entry((hash, key)).or_default();
        let known = match word.is_main() {
            true => &mut known.0,
            false => &mut known.1,
        };
        let old = known.replace(word);
        assert!(self.index.make_room(&mut self.region, true));
        match old {
            Some(old) => self.index.replace(&mut self.region, hash, old, word),
            None => {
                let vacancy = self.index.home_of(&self.region, hash);
                let vacancy = self.index.vacancy(&self.region, vacancy);
                let &(main, touch) = &self.model[&(hash, key)];
                assert!(
                    vacancy.is_none() || main.is_none() || touch.is_none(),
                    "a key with words has no vacancy"
                );
                match vacancy.filter(|_| key.is_multiple_of(3)) {
                    Some(vacancy) => {
                        (self.index).fill_vacancy(&mut self.region, vacancy, word);
                    }
                    None => self.index.insert(&mut self.region, hash, word),
                }
            }
        }
        if self.index.is_growth_due() {
            self.index.grow(&mut self.region, true);
        }
    }

    fn remove(&mut self, kind: Kind, key: u32) {
        let Some(known) = self.model.get_mut(&(hash(key), key)) else {
            return;
        };
        let known = match kind {
            Kind::Touch => known.1.take(),
            _ => known.0.take(),
        };
        if let Some(word) = known {
            self.index.remove(&mut self.region, hash(key), word);
        }
    }

    /// Every key's words are found, touch first, and a walk by hash sees just them, in hash order.
    fn check(&self) {
        let mut expected = Vec::new();
        for (&(hash, key), &(main, touch)) in &self.model {
            let of_key = |word: &Word| {
                let keyed = Keyed::at(&self.region.memory()[word.offset() as usize..]);
                keyed.unwrap().is_of(NS, &key.to_le_bytes())
            };
            let found: Vec<Word> = (self.index.probe(&self.region, hash))
                .map(|(_, word)| word)
                .filter(of_key)
                .collect();
            let known: Vec<Word> = [touch, main].into_iter().flatten().collect();
            assert_eq!(found, known, "I4");
            for word in known {
                let spot = self.index.find_offset(&self.region, hash, word.offset());
                let spot = spot.unwrap();
                assert_eq!(spot.word, word);
                assert!(!spot.is_alone() || touch.is_none());
                expected.push(word.offset());
            }
        }
        let mut seen = Vec::new();
        self.index.check(&self.region, |word, first, last| {
            let hash = hash_at(&self.region, word.offset());
            assert!(
                (first..=last).contains(&hash.0),
                "a word in the wrong bucket"
            );
            seen.push(word.offset());
        });
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
    }
}

const NS: Namespace = Namespace(0);
const ENTRY_BYTES: u64 = 28;

fn hash(key: u32) -> KeyHash {
    KeyHash::of(NS, &key.to_le_bytes())
}

proptest! {
    /// Whatever is inserted, replaced and removed while the table grows: it is as a map would be.
    #[test]
    fn is_as_a_map(steps in prop::collection::vec((0..10u8, 0..1_500u32), 1..2_000)) {
        let mut pair = Pair::new(4_000);
        for (i, &(step, key)) in steps.iter().enumerate() {
            match step {
                0..5 => pair.insert(Kind::Object, key),
                5..7 => pair.insert(Kind::Touch, key),
                7 => pair.insert(Kind::Tombstone, key),
                8 => pair.remove(Kind::Object, key),
                _ => pair.remove(Kind::Touch, key),
            }
            if i % 512 == 0 {
                pair.check();
            }
        }
        pair.check();
    }
}

/// The table grows past the size at which tags are cut elsewhere, and costs at most 12 bytes a word.
#[test]
fn grows_a_thousandfold() {
    const WORDS: u32 = 600_000;
    let mut pair = Pair::new(u64::from(WORDS));
    let mut cuts = vec![pair.index.rule.tag_shift];
    for key in 0..WORDS {
        pair.insert(Kind::Object, key);
        if key % 20_000 == 19_999 {
            let bytes = pair.index.bytes(&pair.region);
            assert!(bytes <= u64::from(key) * 12, "{bytes} for {key} words");
        }
        if cuts.last() != Some(&pair.index.to.tag_shift) {
            // In the middle of changing.
            cuts.push(pair.index.to.tag_shift);
            assert!(pair.index.is_growing());
        }
        if key % 150_000 == 0 {
            pair.check();
        }
    }
    pair.check();
    assert_eq!(cuts, [37, 27]);
}

/// Told what is to come the table grows early and far, by leaps, and moves few words; told too much, it takes a part of
/// what is free and no more.
#[test]
fn leaps_to_what_is_expected() {
    const WORDS: u32 = 300_000;
    for told in [u64::from(WORDS), u64::MAX] {
        let mut pair = Pair::new(8 * u64::from(WORDS));
        let free = u64::from(pair.region.free_seglets()) * (4 << 10);
        let (mut growths, mut grows) = (0, false);
        for key in 0..WORDS {
            pair.insert(Kind::Object, key);
            if key % 1_000 == 999 {
                pair.index.expect(&pair.region, told);
            }
            growths += u32::from(pair.index.is_growing() && !grows && key >= 1_000);
            grows = pair.index.is_growing();
            if key == 3_000 || key == 30_000 {
                pair.check();
            }
        }
        pair.check();
        let bytes = pair.index.bytes(&pair.region);
        if told == u64::MAX {
            assert!(bytes < free / 5, "{bytes} bytes of {free}");
        } else {
            assert!(bytes <= told * 12, "{bytes} bytes");
            assert!(growths <= 4, "{growths} growths");
        }
    }
}

/// Growth that finds no memory waits, and goes on when there is some.
#[test]
fn growth_waits_for_memory() {
    let mut pair = Pair::new(4_000);
    let free = pair.region.free_seglets();
    let spare = pair.region.take(free, free).unwrap();
    let mut key = 0;
    while pair.index.make_room(&mut pair.region, true) {
        pair.insert(Kind::Object, key);
        key += 1;
    }
    let waits = (pair.index.is_growing(), pair.index.cursor);
    assert_eq!(waits, (true, pair.index.rule.buckets), "{key} keys");
    pair.check();
    pair.region.give_back(spare);
    for key in key..4_000 {
        pair.insert(Kind::Object, key);
    }
    pair.check();
}
