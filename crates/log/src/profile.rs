//! How much of the log lies in which slots, roughly: what the plan of a recovery is made from.
//!
//! Counting at every write, expiry and cleaning would cost each of them the slot of a key; the sweep comes by every
//! entry anyway. It counts in every fourth bucket of the index and says what a whole pass has found, so the figures
//! are as old as a pass or two, and about right where there is enough to plan for.

use holdfast_format::SLOT_PARTS;

use crate::index::Word;
use crate::log::Log;

/// Of how many buckets one is counted. Finding the slots in all of them would make the sweep an eighth slower.
const SAMPLE: u64 = 4;

/// What lies in one of the `SLOT_PARTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Load {
    /// Objects, touches and tombstones, and their bytes in the log.
    pub entries: u64,
    pub bytes: u64,
}

/// What the sweep has counted.
#[derive(Debug)]
pub(crate) struct Profile {
    /// In this pass, so far.
    counting: [Load; SLOT_PARTS],
    buckets: u64,
    /// Of the last pass; empty before there was one.
    found: Vec<Load>,
}

impl Profile {
    pub fn new() -> Profile {
        Profile {
            counting: [Load::default(); SLOT_PARTS],
            buckets: 0,
            found: Vec::new(),
        }
    }

    /// True if the sweep's next bucket is to be counted.
    pub fn counts_next(&mut self) -> bool {
        self.buckets += 1;
        self.buckets % SAMPLE == 1
    }

    /// The sweep has gone over the whole index.
    pub fn end_pass(&mut self) {
        // An index that grew meanwhile has more buckets than were met: small errors, which the next pass mends.
        let sampled = self.buckets.div_ceil(SAMPLE).max(1);
        let whole = |count: u64| {
            (u128::from(count) * u128::from(self.buckets) / u128::from(sampled)) as u64
        };
        let whole = |load: &Load| Load {
            entries: whole(load.entries),
            bytes: whole(load.bytes),
        };
        self.found = self.counting.iter().map(whole).collect();
        self.counting = [Load::default(); SLOT_PARTS];
        self.buckets = 0;
    }
}

impl Log {
    /// What lies in each of the `SLOT_PARTS` by the last pass of the sweep; empty before the first has ended.
    pub fn loads(&self) -> &[Load] {
        &self.profile.found
    }

    pub(crate) fn count_load(&mut self, word: Word) {
        let (entry, bytes) = self.sized_entry(word.offset());
        if let Some(slot) = entry.slot() {
            let load = &mut self.profile.counting[slot.part()];
            load.entries += 1;
            load.bytes += bytes as u64;
        }
    }
}
