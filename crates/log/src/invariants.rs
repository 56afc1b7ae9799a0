//! Checks that walk everything: for tests and the simulation.

use std::collections::BTreeMap;

use holdfast_format::{Entry, KeyHash};

use crate::SessionCount;
use crate::index::Kind;
use crate::log::{KeyWords, Log};
use crate::segments::State;

impl Log {
    /// Walks everything and panics if an invariant does not hold. As slow as the log is large.
    pub fn verify(&self) {
        let mut live = BTreeMap::new();
        let mut count_live = |offset: u64, bytes: usize| {
            let slot = self.segments.at(&self.region, offset);
            let segment = self.segments.get(slot);
            let end = segment.start + u64::from(segment.length);
            assert!(
                offset + bytes as u64 <= end,
                "{:?}: a reference past its end",
                segment.id
            );
            *live.entry(segment.id).or_insert(0u64) += bytes as u64;
        };

        let mut counts = vec![SessionCount::default(); 256];
        self.index.check(&self.region, |word, first, last| {
            let (entry, bytes) = Entry::decode(&self.region.memory()[word.offset() as usize..])
                .expect("a reference leads to an entry");
            count_live(word.offset(), bytes);
            let kind = match entry {
                Entry::Object(_) => Kind::Object,
                Entry::Touch(_) => Kind::Touch,
                Entry::Tombstone(_) => Kind::Tombstone,
                other => panic!("the index leads to {other:?}"),
            };
            assert_eq!(kind, word.kind());
            let (KeyHash(hash), words) = self.words_at(word.offset());
            assert!((first..=last).contains(&hash), "a key in the wrong bucket");
            let KeyWords { main, touch, .. } = words;
            let listed = if kind == Kind::Touch { touch } else { main };
            assert_eq!(listed, Some(word), "a key has two words of a kind");
            if let (Kind::Object, Some(current)) = (kind, self.current(words)) {
                assert!(current.object.version <= self.last_version || !self.replays.is_empty());
                if !current.flushed {
                    let count = &mut counts[usize::from(current.object.namespace.0)];
                    count.sessions += 1;
                    count.with_deadline += u64::from(current.deadline.is_some());
                    count.bytes += current.object.encoded_len() as u64;
                }
            }
        });
        assert_eq!(counts, self.counts, "session counts");

        for (&(client, sequence), recorded) in &self.completions {
            let (entry, bytes) = self.sized_entry(recorded.offset);
            let Entry::Completion(record) = entry else {
                panic!("no completion: {entry:?}")
            };
            assert_eq!((record.client, record.sequence), (client, sequence));
            count_live(recorded.offset, bytes);
        }
        for flush in &self.flushes.list {
            let (entry, bytes) = self.sized_entry(flush.offset);
            let Entry::RangeTombstone(found) = entry else {
                panic!("no flush: {entry:?}")
            };
            assert_eq!(found.up_to, flush.tombstone.up_to);
            count_live(flush.offset, bytes);
        }

        let mut seglets = 0;
        for (slot, segment) in self.segments.iter() {
            let live = live.get(&segment.id).copied().unwrap_or(0);
            assert_eq!(
                live,
                u64::from(segment.live),
                "live bytes of {:?}",
                segment.id
            );
            assert_eq!(slot == self.head, segment.state == State::Head);
            assert!(segment.length <= segment.capacity && segment.durable <= segment.length);
            seglets += segment.run.count;
            for seglet in segment.run.first..segment.run.first + segment.run.count {
                assert!(self.region.is_used(seglet));
            }
        }
        assert_eq!(
            live.values().sum::<u64>(),
            self.segments.live(),
            "live bytes in all"
        );
        let held = self
            .cleaning
            .as_ref()
            .map_or(0, |cleaning| cleaning.held_seglets());
        let free = self.region.free_seglets();
        assert_eq!(
            seglets + held + self.region.index_seglets() + free,
            self.region.seglets()
        );
        let memory = self.memory();
        assert!(
            memory.used_bytes - memory.external_bytes + self.config.outside_bytes
                <= self.config.memory_bytes,
            "the bound on memory"
        );
        if self.keep_blocks() > 0 {
            assert!(self.region.free_blocks() > 0, "the cleaner's block is gone");
        }
    }
}
