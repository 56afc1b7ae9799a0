//! What a segment may say something about, in about ten bits for each key: for recovery masters that serve before
//! they have replayed everything (docs/design-notes.md, "Serving early").
//!
//! O1. Whatever key the segment holds an object, a tombstone or a touch of, `admits` is true of it. Of others it is in
//!     about one of a hundred cases.
//! O2. Whatever completion record it holds, `admits_record` is true of it.
//! O3. `flushes` are all its range tombstones, as they stand there.

use std::collections::BTreeMap;

use crate::{BadEntry, ClientId, Entries, Entry, EntryError, KeyHash, Located, SparseIndex};

/// Bits of the filter for each key, and how many of them a key sets: one of 120 other keys finds all of its own set.
const BITS_PER_KEY: usize = 10;
const PROBES: usize = 7;

/// Clients whose records are told apart. Records are those of gateways and of clients with an identity of their own, so
/// few write into one segment; with more, every record may be there.
const CLIENTS_MAX: usize = 1024;

/// Says that there were more.
const ANY_CLIENT: u32 = u32::MAX;

/// The outline of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    filter: Vec<u64>,
    /// The least and the greatest sequence number of each client that has records; `None`: there may be any.
    clients: Option<BTreeMap<ClientId, (u64, u64)>>,
    flushes: Vec<u8>,
}

/// Bytes that are no outline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an outline: {0}")]
pub struct BadOutline(&'static str);

impl Outline {
    /// False: no entry of this key is in the segment. (O1)
    pub fn admits(&self, hash: KeyHash) -> bool {
        probes(hash, self.filter.len())
            .all(|bit| self.filter[bit as usize / 64] >> (bit % 64) & 1 == 1)
    }

    /// False: no completion record of this write is in the segment. (O2)
    pub fn admits_record(&self, client: ClientId, sequence: u64) -> bool {
        self.clients.as_ref().is_none_or(|clients| {
            let span = clients.get(&client);
            span.is_some_and(|(least, greatest)| (*least..=*greatest).contains(&sequence))
        })
    }

    /// The entries of O3, whole and good, one after another.
    pub fn flushes(&self) -> &[u8] {
        &self.flushes
    }

    /// Memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        let clients = self.clients.as_ref().map_or(0, BTreeMap::len);
        self.filter.len() * 8 + clients * 48 + self.flushes.len() + size_of::<Outline>()
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        let clients = self.clients.iter().flatten();
        let count = self.clients.as_ref().map_or(ANY_CLIENT, |clients| {
            u32::try_from(clients.len()).expect("bounded by CLIENTS_MAX")
        });
        let words = u32::try_from(self.filter.len()).expect("a segment has fewer entries");
        let mut out = Vec::with_capacity(self.memory_bytes());
        out.extend_from_slice(&words.to_le_bytes());
        (self.filter.iter()).for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out.extend_from_slice(&count.to_le_bytes());
        for (client, (least, greatest)) in clients {
            for number in [client.0, *least, *greatest] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.flushes);
        out
    }

    /// Reads what `encode` wrote. For untrusted bytes.
    pub fn decode(bytes: &[u8]) -> Result<Outline, BadOutline> {
        let mut rest = bytes;
        let words = take_u32(&mut rest)? as usize;
        if words == 0 || words > rest.len() / 8 {
            return Err(BadOutline("the filter is longer than all of it, or empty"));
        }
        let filter = (0..words)
            .map(|_| take_u64(&mut rest))
            .collect::<Result<Vec<u64>, _>>()?;
        let clients = match take_u32(&mut rest)? {
            ANY_CLIENT => None,
            count if count as usize > CLIENTS_MAX => return Err(BadOutline("too many clients")),
            count => {
                let mut clients = BTreeMap::new();
                for _ in 0..count {
                    let client = ClientId(take_u64(&mut rest)?);
                    clients.insert(client, (take_u64(&mut rest)?, take_u64(&mut rest)?));
                }
                Some(clients)
            }
        };
        let is_flush = |it: Result<Located<'_>, BadEntry>| {
            it.is_ok_and(|it| matches!(it.entry, Entry::RangeTombstone(_)))
        };
        if !Entries::new(rest).all(is_flush) {
            return Err(BadOutline("its end is no list of range tombstones"));
        }
        Ok(Outline {
            filter,
            clients,
            flushes: rest.to_vec(),
        })
    }
}

/// Makes an outline of a segment's bytes as they come, and an index of where its keys are.
#[derive(Clone, Debug)]
pub struct Outlining {
    hashes: Vec<KeyHash>,
    clients: Option<BTreeMap<ClientId, (u64, u64)>>,
    flushes: Vec<u8>,
    index: SparseIndex,
    /// The beginning of an entry of which the rest is still to come.
    begun: Vec<u8>,
    /// What came was no entry: there will be no outline.
    failed: bool,
}

impl Default for Outlining {
    fn default() -> Outlining {
        Outlining {
            hashes: Vec::new(),
            clients: Some(BTreeMap::new()),
            flushes: Vec::new(),
            index: SparseIndex::default(),
            begun: Vec::new(),
            failed: false,
        }
    }
}

impl Outlining {
    /// The next bytes of the segment. They may end within an entry. Checksums are not looked at: who makes use of the
    /// outline has verified the whole.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        if self.begun.is_empty() {
            let taken = self.walk(bytes);
            self.begun.extend_from_slice(&bytes[taken..]);
        } else {
            let mut all = std::mem::take(&mut self.begun);
            all.extend_from_slice(bytes);
            let taken = self.walk(&all);
            all.drain(..taken);
            self.begun = all;
        }
    }

    /// The outline and the index of all that came, if it was whole entries.
    pub fn finish(mut self) -> Option<(Outline, SparseIndex)> {
        if self.failed || !self.begun.is_empty() {
            return None;
        }
        let words = (self.hashes.len() * BITS_PER_KEY).div_ceil(64).max(1);
        let mut filter = vec![0u64; words];
        for hash in self.hashes {
            for bit in probes(hash, words) {
                filter[bit as usize / 64] |= 1 << (bit % 64);
            }
        }
        let outline = Outline {
            filter,
            clients: self.clients,
            flushes: self.flushes,
        };
        self.index.finish();
        Some((outline, self.index))
    }

    /// Notes whole entries; says how many bytes they were.
    fn walk(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match Entry::decode_trusted(&bytes[at..]) {
                Ok((entry, length)) => {
                    self.note(&entry, &bytes[at..at + length]);
                    at += length;
                }
                Err(EntryError::Truncated { .. }) => break,
                Err(_) => {
                    self.failed = true;
                    return bytes.len();
                }
            }
        }
        at
    }

    fn note(&mut self, entry: &Entry<'_>, raw: &[u8]) {
        let hash = entry.key_hash();
        self.index.push(raw, hash);
        self.hashes.extend(hash);
        match entry {
            Entry::Object(_) | Entry::Tombstone(_) | Entry::Touch(_) => {}
            Entry::Completion(record) => {
                let Some(clients) = &mut self.clients else {
                    return;
                };
                let sequence = record.sequence;
                let span = clients.entry(record.client).or_insert((sequence, sequence));
                *span = (span.0.min(sequence), span.1.max(sequence));
                if clients.len() > CLIENTS_MAX {
                    self.clients = None;
                }
            }
            Entry::RangeTombstone(_) => self.flushes.extend_from_slice(raw),
            Entry::SegmentHeader(_) | Entry::Digest(_) => {}
        }
    }
}

/// The bits of a key in a filter of so many words.
fn probes(hash: KeyHash, words: usize) -> impl Iterator<Item = u64> {
    let bits = words as u64 * 64;
    let mut state = hash.0;
    (0..PROBES).map(move |_| {
        state = (state ^ state >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((state >> 32) * bits) >> 32
    })
}

fn take_u32(from: &mut &[u8]) -> Result<u32, BadOutline> {
    let (bytes, rest) = (from.split_first_chunk::<4>()).ok_or(BadOutline("it is cut short"))?;
    *from = rest;
    Ok(u32::from_le_bytes(*bytes))
}

fn take_u64(from: &mut &[u8]) -> Result<u64, BadOutline> {
    let (bytes, rest) = (from.split_first_chunk::<8>()).ok_or(BadOutline("it is cut short"))?;
    *from = rest;
    Ok(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ClusterMs, CompletionRecord, Namespace, RangeTombstone, SegmentId, Slot, SlotRange,
        Tombstone, Touch, Version,
    };

    const N: Namespace = Namespace(3);

    fn segment(keys: &[String]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let (key, version) = (key.as_bytes(), Version(at as u64 + 1));
            let tombstone = Tombstone {
                namespace: N,
                key,
                version,
                birth: SegmentId(1),
            };
            let touch = Touch {
                namespace: N,
                key,
                version,
                number: 1,
                deadline: None,
                shadowing: false,
            };
            match at % 2 {
                0 => Entry::Tombstone(tombstone).append_to(&mut bytes),
                _ => Entry::Touch(touch).append_to(&mut bytes),
            }
        }
        for sequence in [7, 5, 9] {
            let record = CompletionRecord {
                client: ClientId(4),
                sequence,
                lease_until: ClusterMs(1),
                slot: Slot::of(b"a"),
                outcome: b"xyz",
            };
            Entry::Completion(record).append_to(&mut bytes);
        }
        let flush = RangeTombstone {
            namespace: N,
            range: SlotRange::ALL,
            up_to: Version(3),
            birth: SegmentId(1),
        };
        Entry::RangeTombstone(flush).append_to(&mut bytes);
        bytes
    }

    fn keys(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|at| format!("{prefix}:{at}")).collect()
    }

    fn outline(bytes: &[u8], piece: usize) -> Outline {
        let mut outlining = Outlining::default();
        bytes.chunks(piece).for_each(|piece| outlining.add(piece));
        outlining.finish().unwrap().0
    }

    #[test]
    fn everything_in_it_is_admitted_and_little_else() {
        let inside = keys("session", 5_000);
        let outline = outline(&segment(&inside), usize::MAX);
        let admits = |key: &String| outline.admits(KeyHash::of(N, key.as_bytes()));
        assert!(inside.iter().all(admits));
        let wrong = keys("other", 20_000)
            .iter()
            .filter(|key| admits(key))
            .count();
        assert!(wrong < 20_000 / 50, "{wrong} of 20,000");
        assert!(outline.memory_bytes() < 5_000 * 2);
        for (client, sequence, there) in [(4, 5, true), (4, 9, true), (4, 10, false), (5, 7, false)]
        {
            assert_eq!(outline.admits_record(ClientId(client), sequence), there);
        }
        assert!(matches!(
            Entry::decode(outline.flushes()),
            Ok((Entry::RangeTombstone(_), length)) if length == outline.flushes().len()
        ));
    }

    #[test]
    fn pieces_may_end_within_entries() {
        let bytes = segment(&keys("session", 40));
        let whole = outline(&bytes, usize::MAX);
        for piece in [1, 7, 64] {
            assert_eq!(outline(&bytes, piece), whole);
        }
        let mut cut = Outlining::default();
        cut.add(&bytes[..bytes.len() - 1]);
        assert!(cut.finish().is_none());
        let mut other = Outlining::default();
        other.add(&[0xFF; 64]);
        assert!(other.finish().is_none());
    }

    #[test]
    fn it_travels_and_damaged_bytes_are_refused() {
        let outline = outline(&segment(&keys("session", 40)), usize::MAX);
        let bytes = outline.encode();
        assert_eq!(Outline::decode(&bytes), Ok(outline));
        // Shortened by its range tombstone it is an outline without one.
        let without = bytes.len() - crate::HEADER_BYTES;
        for length in (0..bytes.len()).filter(|length| *length != without) {
            assert!(Outline::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Outline::decode(&[0xFF; 100]).is_err());
    }

    #[test]
    fn with_too_many_clients_every_record_may_be_there() {
        let mut bytes = Vec::new();
        for client in 0..=CLIENTS_MAX as u64 {
            let record = CompletionRecord {
                client: ClientId(client),
                sequence: 1,
                lease_until: ClusterMs(1),
                slot: Slot::of(b"a"),
                outcome: b"",
            };
            Entry::Completion(record).append_to(&mut bytes);
        }
        let outline = outline(&bytes, usize::MAX);
        assert!(outline.admits_record(ClientId(u64::MAX), 77));
        assert_eq!(Outline::decode(&outline.encode()), Ok(outline));
    }
}
