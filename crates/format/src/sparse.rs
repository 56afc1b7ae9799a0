//! Where in a segment the entries of one key may lie, in some 2.4 bytes for each key: so that a backup can send the few
//! entries of a session without reading the whole replica (docs/design-notes.md, "Serving early").
//!
//! ```text
//! prints  [ 2 bytes of each key's hash, in the order of the entries ..................... ]
//! blocks  [ offset, print, sum ][ offset, print, sum ] ...      each of some 32 entries
//! ```
//!
//! X1. Every object, touch and tombstone of a key lies in one of the blocks that `find` names. It names one too many for
//!     every 65,536 keys that it looks at.
//! X2. A block is the bytes that were indexed, or `entries_in` refuses it: each entry bears a checksum, and `sum` says that
//!     they are those very entries, and not what the place held before.

use std::ops::Range;

use crate::{Entries, KeyHash};

/// A block ends behind so many entries with a key, or when it is so long: it is read as one.
const BLOCK_ENTRIES: usize = 32;
const BLOCK_BYTES: u32 = 32 << 10;

/// Prints that are compared in one go.
const CHUNK: usize = 256;

/// The index of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseIndex {
    prints: Vec<u16>,
    blocks: Vec<Block>,
    /// Of all that is indexed.
    length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    offset: u32,
    /// Its first one in `prints`.
    print: u32,
    /// Of the checksums of its entries, one after another.
    sum: u32,
}

/// Bytes of a block that are not what was indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the bytes that were indexed")]
pub struct OtherBytes;

impl SparseIndex {
    /// The next entry of the segment, as it stands there, with the hash of its key if it has one.
    pub(crate) fn push(&mut self, raw: &[u8], hash: Option<KeyHash>) {
        let full = self.blocks.last().is_none_or(|block| {
            self.prints.len() - block.print as usize >= BLOCK_ENTRIES
                || self.length - block.offset >= BLOCK_BYTES
        });
        if full {
            self.blocks.push(Block {
                offset: self.length,
                print: self.prints.len() as u32,
                sum: 0,
            });
        }
        let block = self.blocks.last_mut().expect("just pushed, if need be");
        block.sum = add(block.sum, raw);
        self.prints.extend(hash.map(print_of));
        self.length += raw.len() as u32;
    }

    /// All has been indexed: gives back memory that is not needed.
    pub(crate) fn finish(&mut self) {
        self.prints.shrink_to_fit();
        self.blocks.shrink_to_fit();
    }

    /// The blocks in which entries of the key may lie, in order. (X1)
    pub fn find(&self, hash: KeyHash) -> Vec<usize> {
        let print = print_of(hash);
        let mut blocks: Vec<usize> = Vec::new();
        for (chunk, prints) in self.prints.chunks(CHUNK).enumerate() {
            // Without a way out of the loop the compiler compares many at a time.
            if !prints.iter().fold(false, |hit, it| hit | (*it == print)) {
                continue;
            }
            let hits = prints.iter().enumerate().filter(|(_, it)| **it == print);
            for at in hits.map(|(at, _)| chunk * CHUNK + at) {
                let after = (self.blocks).partition_point(|block| block.print as usize <= at);
                let block = after - 1; // The first block begins with the first print.
                if blocks.last() != Some(&block) {
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    /// Where in the segment a block lies: byte offsets.
    pub fn place(&self, block: usize) -> Range<u32> {
        let end = self
            .blocks
            .get(block + 1)
            .map_or(self.length, |it| it.offset);
        self.blocks[block].offset..end
    }

    /// The entries of the key in the bytes of a block, as they stand there. For untrusted bytes. (X2)
    pub fn entries_in(
        &self,
        block: usize,
        bytes: &[u8],
        hash: KeyHash,
    ) -> Result<Vec<u8>, OtherBytes> {
        let mut sum = 0;
        let mut found = Vec::new();
        for located in Entries::new(bytes) {
            let located = located.map_err(|_| OtherBytes)?;
            let raw = &bytes[located.offset..located.offset + located.length];
            sum = add(sum, raw);
            if located.entry.key_hash() == Some(hash) {
                found.extend_from_slice(raw);
            }
        }
        match bytes.len() == self.place(block).len() && sum == self.blocks[block].sum {
            true => Ok(found),
            false => Err(OtherBytes),
        }
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.prints.capacity() * size_of::<u16>() + self.blocks.capacity() * size_of::<Block>()
    }
}

/// Those bits of the hash that neither the index of a log nor a filter looks at first.
fn print_of(hash: KeyHash) -> u16 {
    (hash.0 >> 24) as u16
}

/// Takes one more entry's checksum into the sum of a block; their order counts.
fn add(sum: u32, raw: &[u8]) -> u32 {
    let (checksum, _) = raw.split_first_chunk::<4>().expect("entries begin with it");
    (sum.rotate_left(5) ^ u32::from_le_bytes(*checksum)).wrapping_mul(0x9E37_79B1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Expiry, Namespace, Object, Outlining, SegmentId, Tombstone, Version};

    const N: Namespace = Namespace(2);

    fn hash(number: usize) -> KeyHash {
        KeyHash::of(N, format!("session:{number}").as_bytes())
    }

    /// So many keys, each third of them twice: an object first, a tombstone at the end.
    fn segment(keys: usize, value_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..keys {
            let key = format!("session:{number}");
            let object = Object {
                namespace: N,
                key: key.as_bytes(),
                value: &vec![7; value_bytes],
                version: Version(number as u64 + 1),
                expiry: Expiry::default(),
                shadowing: false,
            };
            Entry::Object(object).append_to(&mut bytes);
        }
        for number in (0..keys).step_by(3) {
            let key = format!("session:{number}");
            let tombstone = Tombstone {
                namespace: N,
                key: key.as_bytes(),
                version: Version((keys + number) as u64 + 1),
                birth: SegmentId(1),
            };
            Entry::Tombstone(tombstone).append_to(&mut bytes);
        }
        bytes
    }

    fn index(bytes: &[u8], piece: usize) -> SparseIndex {
        let mut outlining = Outlining::default();
        bytes.chunks(piece).for_each(|piece| outlining.add(piece));
        outlining.finish().unwrap().1
    }

    fn block<'a>(index: &SparseIndex, block: usize, bytes: &'a [u8]) -> &'a [u8] {
        let place = index.place(block);
        &bytes[place.start as usize..place.end as usize]
    }

    fn found(index: &SparseIndex, bytes: &[u8], hash: KeyHash) -> Vec<u8> {
        let blocks = index.find(hash).into_iter();
        let entries = |at| index.entries_in(at, block(index, at, bytes), hash);
        blocks.flat_map(|at| entries(at).unwrap()).collect()
    }

    #[test]
    fn of_every_key_all_entries_are_found_and_little_is_read_for_it() {
        for (keys, value_bytes) in [(1, 10), (31, 10), (32, 10), (3_000, 100), (700, 5_000)] {
            let bytes = segment(keys, value_bytes);
            let index = index(&bytes, 1_000);
            for number in 0..keys {
                let entries = found(&index, &bytes, hash(number));
                let all = Entries::new(&entries).collect::<Result<Vec<_>, _>>();
                let count = all.unwrap().len();
                let wanted = if number % 3 == 0 { 2 } else { 1 };
                assert_eq!(count, wanted, "{number} of {keys}");
            }
            let absent = (keys..keys + 3_000).map(|number| index.find(hash(number)).len());
            assert!(absent.sum::<usize>() <= 3_000 * keys / 10_000, "{keys}");
            let longest = (0..index.blocks.len())
                .map(|at| index.place(at).len())
                .max();
            assert!(longest.unwrap() <= (32 << 10) + value_bytes + 100);
        }
    }

    #[test]
    fn it_takes_two_and_a_half_bytes_for_a_key() {
        let bytes = segment(30_000, 100);
        let index = index(&bytes, 64 << 10);
        assert!(
            index.memory_bytes() < 40_000 * 5 / 2,
            "{}",
            index.memory_bytes()
        );
    }

    #[test]
    fn pieces_may_end_within_entries() {
        let bytes = segment(200, 50);
        assert_eq!(index(&bytes, 7), index(&bytes, usize::MAX));
    }

    /// Good entries of another replica that the frame held before are not taken for these.
    #[test]
    fn other_bytes_are_refused() {
        let bytes = segment(200, 50);
        let index = index(&bytes, usize::MAX);
        let hash = hash(40);
        let at = index.find(hash)[0];
        let good = block(&index, at, &bytes);
        assert!(index.entries_in(at, good, hash).is_ok());
        for bad in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[bad] ^= 0x10;
            assert_eq!(index.entries_in(at, &bytes, hash), Err(OtherBytes), "{bad}");
        }
        assert_eq!(index.entries_in(at, b"", hash), Err(OtherBytes));
        // Whole, good, as long, of the same keys: of another replica.
        let mut other = segment(200, 50);
        let place = index.place(at);
        let first = Entry::decode(good).unwrap().1;
        let newer = Object {
            namespace: N,
            key: b"session:32",
            value: &[8; 50],
            version: Version(999),
            expiry: Expiry::default(),
            shadowing: false,
        };
        let mut raw = Vec::new();
        Entry::Object(newer).append_to(&mut raw);
        assert_eq!(raw.len(), first, "the block begins with this key");
        let from = place.start as usize;
        other[from..from + first].copy_from_slice(&raw);
        let other = block(&index, at, &other);
        assert_eq!(index.entries_in(at, other, hash), Err(OtherBytes));
        let before = block(&index, at - 1, &bytes);
        assert_eq!(index.entries_in(at, before, hash), Err(OtherBytes));
    }
}
