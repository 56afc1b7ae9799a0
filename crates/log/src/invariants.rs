//! Checks that walk everything: for tests and the simulation.

use std::collections::BTreeMap;

use holdfast_format::{Entry, KeyHash, SegmentId};

use crate::SessionCount;
use crate::extents::Extent;
use crate::index::Kind;
use crate::log::{KeyWords, Log};
use crate::region::Run;
use crate::segments::State;
use crate::space::birth;

impl Log {
    /// Walks everything and panics if an invariant does not hold. As slow as the log is large.
    pub fn verify(&self) {
        let mut live = BTreeMap::new();
        let mut tombstones = BTreeMap::new();
        let mut count_live = |offset: u64, bytes: usize| {
            let slot = self.segments.at(&self.region, offset);
            let segment = self.segments.get(slot);
            let within = |extent: &Extent| {
                let start = self.region.offset_of(extent.run.first);
                start <= offset && offset + bytes as u64 <= start + u64::from(extent.used)
            };
            let extents = segment.bytes.list().iter().chain(segment.fresh.list());
            assert_eq!(
                extents.filter(|it| within(it)).count(),
                1,
                "{:?}: a reference past an extent's end",
                segment.id
            );
            *live.entry(segment.id).or_insert(0u64) += bytes as u64;
            if let Some(birth) = birth(&self.entry(offset)) {
                assert!(birth <= segment.births, "a tombstone is younger than known");
                *tombstones.entry(segment.id).or_insert(0u64) += bytes as u64;
            }
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

        self.verify_memory(&live, &tombstones);
        let memory = self.memory();
        assert!(
            memory.used_bytes - memory.external_bytes + self.config.outside_bytes
                <= self.config.memory_bytes,
            "the bound on memory"
        );
    }

    /// Segments hold what the index says, and every seglet has one owner.
    fn verify_memory(
        &self,
        live: &BTreeMap<SegmentId, u64>,
        tombstones: &BTreeMap<SegmentId, u64>,
    ) {
        let mut owned = vec![false; self.region.seglets() as usize];
        let mut own = |run: Run| {
            for seglet in run.first..run.end() {
                assert!(!owned[seglet as usize], "seglet {seglet} has two owners");
                owned[seglet as usize] = true;
            }
        };
        for (slot, segment) in self.segments.iter() {
            let id = segment.id;
            let of = |map: &BTreeMap<SegmentId, u64>| map.get(&id).copied().unwrap_or(0);
            assert_eq!(of(live), u64::from(segment.live), "live bytes of {id:?}");
            assert_eq!(
                of(tombstones),
                u64::from(segment.tombstones),
                "tombstones of {id:?}"
            );
            assert_eq!(slot == self.head, segment.state == State::Head);
            assert!(segment.durable <= segment.length());
            assert!(segment.bytes.seglets() <= self.config.segment_seglets());
            for extents in [&segment.bytes, &segment.fresh] {
                let list = extents.list();
                let used: u32 = list.iter().map(|it| it.used).sum();
                let seglets: u32 = list.iter().map(|it| it.run.count).sum();
                assert_eq!((used, seglets), (extents.length(), extents.seglets()));
                for extent in list {
                    own(extent.run);
                    let start = self.region.offset_of(extent.run.first);
                    let (mut at, end) = (start, start + u64::from(extent.used));
                    while at < end {
                        at += self.sized_entry(at).1 as u64;
                    }
                    assert_eq!(at, end, "{id:?}: entries fill extents");
                    assert!(extent.used <= extent.run.count * self.config.seglet_bytes);
                }
            }
        }
        assert_eq!(live.values().sum::<u64>(), self.segments.live());
        assert_eq!(tombstones.values().sum::<u64>(), self.segments.tombstones());
        self.cleaner.verify(&mut own);
        self.region.check(&mut own);
        let index = owned.iter().filter(|&&owned| !owned).count();
        let index_bytes = index as u64 * u64::from(self.config.seglet_bytes);
        assert_eq!(index_bytes, self.index.bytes(&self.region), "lost seglets");
        assert_eq!(
            self.counted_lent(),
            self.cleaner.lent_seglets(),
            "lent seglets"
        );
    }
}
