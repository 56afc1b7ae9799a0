//! The log itself: what it consists of, and the plumbing that every operation shares.

use std::collections::BTreeMap;

use holdfast_format::{
    ClusterMs, Entry, KeyHash, Keyed, LogId, Namespace, Object, Position, SLOTS, SegmentId,
    Slot as KeySlot, SlotRange, Tombstone, Touch, Version,
};

use crate::cleaner::Cleaner;
use crate::completions::Completions;
use crate::config::{Config, ConfigError};
use crate::evict::Pools;
use crate::flushes::Flushes;
use crate::index::{At, Index, Kind, Word};
use crate::memory::Toucher;
use crate::profile::Profile;
use crate::region::Region;
use crate::replay::{Checked, Replay};
use crate::segments::{Segments, Slot};
use crate::space::{Class, birth};
use crate::{MemoryUse, ReplayId, SegmentGoal, SessionCount};

/// One shard's memory.
#[derive(Debug)]
pub struct Log {
    pub(crate) id: LogId,
    pub(crate) config: Config,
    pub(crate) region: Region,
    pub(crate) index: Index,
    pub(crate) segments: Segments,
    pub(crate) head: Slot,
    /// The ceiling in the head's header: no version at or above it may be assigned.
    pub(crate) version_ceiling: Version,
    pub(crate) last_version: Version,
    pub(crate) completions: Completions,
    pub(crate) flushes: Flushes,
    pub(crate) counts: Vec<SessionCount>,
    /// One bit per slot that ever had a session here, or of which there was a replay.
    pub(crate) slots_seen: Vec<u64>,
    pub(crate) cleaner: Cleaner,
    pub(crate) replays: BTreeMap<ReplayId, Replay>,
    pub(crate) last_replay: ReplayId,
    /// See `Log::set_unsettled`.
    pub(crate) unsettled: Vec<SlotRange>,
    /// See `Log::pin`.
    pub(crate) pinned_since: Option<SegmentId>,
    /// What one call of `replay` has checked; kept, while replays go on, to save allocating.
    pub(crate) replay_list: Vec<Checked>,
    pub(crate) swept: KeyHash,
    pub(crate) profile: Profile,
    pub(crate) swept_completion: (holdfast_format::ClientId, u64),
    pub(crate) external_bytes: u64,
    pub(crate) expired_sessions: u64,
    /// The latest `now` that any call has told.
    pub(crate) clock: ClusterMs,
    pub(crate) pools: Pools,
    /// A moving average; 0 before there was any.
    pub(crate) touch_interval_ms: u64,
}

/// The index's words for one key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyWords {
    /// Object or tombstone.
    pub main: Option<Word>,
    pub touch: Option<Word>,
    /// Where they were seen, which saves looking again when they are replaced.
    pub main_at: At,
    pub touch_at: At,
}

/// A key's object together with its newest touch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current<'log> {
    pub object: Object<'log>,
    pub deadline: Option<ClusterMs>,
    /// Of the newest touch; 0 without one.
    pub touches: u64,
    /// Something older may outlive it on replicas.
    pub shadowing: bool,
    /// Gone by a range tombstone.
    pub flushed: bool,
}

impl Current<'_> {
    pub fn is_live(&self, now: ClusterMs) -> bool {
        !self.flushed && self.deadline.is_none_or(|deadline| now < deadline)
    }
}

impl Log {
    /// Reserves the memory and opens the first head.
    pub fn new(id: LogId, config: Config) -> Result<Log, ConfigError> {
        config.validate()?;
        let mut region = Region::new(config.seglets() as u32, config.seglet_bytes as usize)
            .map_err(|error| ConfigError(format!("the system has no memory: {error}")))?;
        let index = Index::new(&mut region);
        let segments = Segments::new(&region);
        let mut log = Log {
            id,
            config,
            region,
            index,
            segments,
            head: Slot(0),
            version_ceiling: Version(0),
            last_version: Version(0),
            completions: BTreeMap::new(),
            flushes: Flushes::new(),
            counts: vec![SessionCount::default(); 256],
            slots_seen: vec![0; usize::from(SLOTS) / 64],
            cleaner: Cleaner::default(),
            replays: BTreeMap::new(),
            last_replay: ReplayId(0),
            unsettled: Vec::new(),
            pinned_since: None,
            replay_list: Vec::new(),
            swept: KeyHash(0),
            profile: Profile::new(),
            swept_completion: Default::default(),
            external_bytes: 0,
            expired_sessions: 0,
            clock: ClusterMs(0),
            pools: Pools::new(),
            touch_interval_ms: 0,
        };
        log.open_head(None, Class::Put)
            .expect("an empty log has room for a head");
        Ok(log)
    }

    pub fn id(&self) -> LogId {
        self.id
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The counter: every later version is greater.
    pub fn last_version(&self) -> Version {
        self.last_version
    }

    /// The version that the next write will have.
    pub fn next_version(&self) -> Version {
        Version(self.last_version.0 + 1)
    }

    /// End of the last append to the head.
    pub fn end(&self) -> Position {
        let head = self.segments.get(self.head);
        Position {
            segment: head.id,
            offset: head.length(),
        }
    }

    /// Every segment that must have replicas, in id order.
    pub fn goals(&self) -> impl Iterator<Item = SegmentGoal> + '_ {
        self.segments.goals()
    }

    pub fn goal(&self, segment: SegmentId) -> Option<SegmentGoal> {
        self.segments
            .by_id(segment)
            .map(|segment| self.segments.goal(segment))
    }

    /// Rises whenever `goals` could differ in more than the lengths of open segments.
    pub fn change(&self) -> u64 {
        self.segments.change()
    }

    /// Appended bytes of a segment, in as many pieces as memory has it; at most one a seglet, none empty.
    /// They never change while the segment is among the goals with the same `rewrite`.
    pub fn bytes(&self, segment: SegmentId, from: u32, to: u32) -> impl Iterator<Item = &[u8]> {
        let segment = self
            .segments
            .by_id(segment)
            .expect("a segment among the goals");
        assert!(
            from <= to && to <= segment.length(),
            "{:?} is shorter",
            segment.id
        );
        segment.bytes.pieces(&self.region, from, to)
    }

    /// `[0, length)` of the segment is on all its replicas; `closed`: and they are closed.
    ///
    /// Segments that have been freed meanwhile are ignored.
    pub fn set_durable(&mut self, segment: SegmentId, length: u32, closed: bool) {
        if self.segments.set_durable(segment, length, closed) {
            self.segments.settle(&mut self.region);
            self.settle_cleaning();
            self.commit();
        }
    }

    /// Segments that left every durable digest since the last call: their replicas may be freed.
    pub fn take_freed(&mut self) -> Vec<SegmentId> {
        self.segments.take_freed()
    }

    /// Tells how much memory the owner holds outside the log for the sake of what is in it: appends under
    /// way, answers withheld, connections. It counts against the same bound: what exceeds
    /// `Config::outside_bytes` is taken from what puts may use. Reads, deletes, touches and cleaning do
    /// not notice.
    pub fn set_external_bytes(&mut self, bytes: u64) {
        self.external_bytes = bytes;
    }

    pub fn memory(&self) -> MemoryUse {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let in_use = u64::from(self.region.seglets() - self.region.free_seglets());
        MemoryUse {
            limit_bytes: self.config.memory_bytes,
            used_bytes: in_use * seglet_bytes
                + self.charged_bytes()
                + self.config.table_bytes()
                + self.external_bytes,
            live_bytes: self.segments.live(),
            reclaimable_bytes: u64::from(self.reclaimable_seglets()) * seglet_bytes,
            reserved_bytes: u64::from(self.limit(Class::Put)) * seglet_bytes,
            index_bytes: self.index.bytes(&self.region),
            segments: self.segments.len() as u64,
            segment_bytes: u64::from(self.segments.seglets()) * seglet_bytes,
            replica_segments: self.segments.len() as u64,
            replica_segments_max: self.config.replica_segments_max() as u64,
            cleaned_bytes: self.cleaner.cleaned_bytes,
            compacted_bytes: self.cleaner.compacted_bytes,
            huge_pages: self.region.is_huge(),
            records_bytes: self.charged_bytes(),
            external_bytes: self.external_bytes,
            expired_sessions: self.expired_sessions,
        }
    }

    /// Makes the system map the next `budget_bytes` of the reserved memory before they are needed: the
    /// first write to a page costs some 2 to 10 microseconds, which no request should pay. Takes as long as
    /// that for every 4 KiB of the budget; changes no content. True if more is left.
    pub fn touch_ahead(&mut self, budget_bytes: u64) -> bool {
        self.region.touch_ahead(budget_bytes)
    }

    /// As `touch_ahead`, from another thread and two megabytes at a time; use one of the two. `None` where the
    /// system cannot do it.
    pub fn toucher(&self) -> Option<Toucher> {
        self.region.toucher()
    }

    // ---- entries ----

    #[inline]
    pub(crate) fn entry(&self, offset: u64) -> Entry<'_> {
        self.sized_entry(offset).0
    }

    #[inline]
    pub(crate) fn sized_entry(&self, offset: u64) -> (Entry<'_>, usize) {
        Entry::decode_trusted(&self.region.memory()[offset as usize..])
            .expect("references lead to entries that were checked when they came in")
    }

    #[inline]
    pub(crate) fn object(&self, word: Word) -> Object<'_> {
        self.keyed(word.offset())
            .object()
            .expect("an object is due at this place")
    }

    pub(crate) fn tombstone(&self, word: Word) -> Tombstone<'_> {
        match self.entry(word.offset()) {
            Entry::Tombstone(tombstone) => tombstone,
            other => panic!("a tombstone is due at this place, not {other:?}"),
        }
    }

    pub(crate) fn touch_entry(&self, word: Word) -> Touch<'_> {
        match self.entry(word.offset()) {
            Entry::Touch(touch) => touch,
            other => panic!("a touch is due at this place, not {other:?}"),
        }
    }

    /// The fixed part of an entry that the index points at.
    #[inline]
    pub(crate) fn keyed(&self, offset: u64) -> Keyed<'_> {
        Keyed::at(&self.region.memory()[offset as usize..])
            .expect("the index points at entries with keys")
    }

    /// The entry at `offset` is not needed any more.
    #[inline]
    pub(crate) fn kill(&mut self, offset: u64) {
        let (entry, bytes) = self.sized_entry(offset);
        let is_tombstone = birth(&entry).is_some();
        if let Entry::Completion(record) = entry {
            let lease_until = Some(record.lease_until);
            self.note_lifetime(offset, lease_until, bytes as u32, false);
        }
        let slot = self.segments.end_live(&self.region, offset, bytes);
        if is_tombstone {
            self.segments.end_tombstone(slot, bytes);
        }
    }

    /// As `kill`, for what the index pointed at.
    #[inline]
    pub(crate) fn kill_word(&mut self, word: Word) {
        if word.kind() == Kind::Touch {
            self.note_touch(word, false);
        }
        let bytes = self.keyed(word.offset()).length();
        let slot = self.segments.end_live(&self.region, word.offset(), bytes);
        if word.kind() == Kind::Tombstone {
            self.segments.end_tombstone(slot, bytes);
        }
    }

    /// The words of a key.
    #[inline(always)]
    pub(crate) fn words(&self, namespace: Namespace, key: &[u8], hash: KeyHash) -> KeyWords {
        let mut words = KeyWords::default();
        for (at, word) in self.index.probe(&self.region, hash) {
            if self.keyed(word.offset()).is_of(namespace, key) {
                match word.kind() {
                    Kind::Touch => (words.touch, words.touch_at) = (Some(word), at),
                    Kind::Object | Kind::Tombstone => {
                        (words.main, words.main_at) = (Some(word), at);
                        break; // Its touch would have come before.
                    }
                }
            }
        }
        words
    }

    /// The session that the words stand for, live or not; `None` without an object.
    #[inline(always)]
    pub(crate) fn current(&self, words: KeyWords) -> Option<Current<'_>> {
        let object = self.object(words.main.filter(|word| word.kind() == Kind::Object)?);
        let touch = words
            .touch
            .map(|word| self.touch_entry(word))
            .filter(|touch| touch.version == object.version);
        let flushed = self
            .flushes
            .cover(object.namespace, object.key, object.version);
        Some(match touch {
            Some(touch) => Current {
                object,
                deadline: touch.deadline,
                touches: touch.number,
                shadowing: object.shadowing || touch.shadowing,
                flushed,
            },
            None => Current {
                object,
                deadline: object.expiry.deadline,
                touches: 0,
                shadowing: object.shadowing,
                flushed,
            },
        })
    }

    /// Gives a key new words: `main` takes the place of its object or tombstone, if any, its touch
    /// goes, and the namespace's count follows.
    #[inline]
    pub(crate) fn supersede(&mut self, hash: KeyHash, words: KeyWords, main: Option<Word>) {
        let new = KeyWords {
            main,
            ..KeyWords::default()
        };
        self.exchange(hash, words, new);
    }

    /// Gives a key new words. The touch may only stay or go.
    #[inline]
    pub(crate) fn exchange(&mut self, hash: KeyHash, old: KeyWords, new: KeyWords) {
        let counted = self.tally(old, false);
        match (old.main, new.main) {
            (Some(main), Some(new)) => {
                (self.index).replace_at(&mut self.region, hash, old.main_at, main, new);
                self.kill_word(main);
            }
            (Some(main), None) => {
                self.index.remove(&mut self.region, hash, main);
                self.kill_word(main);
            }
            (None, Some(new)) => {
                self.index.insert(&mut self.region, hash, new);
                self.grow_index();
            }
            (None, None) => {}
        }
        if let Some(touch) = old.touch.filter(|_| new.touch.is_none()) {
            self.index.remove(&mut self.region, hash, touch);
            self.kill_word(touch);
        }
        if self.tally(new, true) && !counted {
            self.see_slot(new);
        }
    }

    /// Gives a key a new touch.
    pub(crate) fn retouch(&mut self, hash: KeyHash, words: KeyWords, touch: Word) {
        self.tally(words, false);
        match words.touch {
            Some(old) => {
                self.learn_touch_interval(old, touch);
                (self.index).replace_at(&mut self.region, hash, words.touch_at, old, touch);
                self.kill_word(old);
            }
            None => {
                self.index.insert(&mut self.region, hash, touch);
                self.grow_index();
            }
        }
        self.note_touch(touch, true);
        let touch = Some(touch);
        self.tally(KeyWords { touch, ..words }, true);
    }

    /// Counts a session, or ends counting it, and says if there is one. Flushed ones are not counted.
    #[inline]
    pub(crate) fn tally(&mut self, words: KeyWords, counts: bool) -> bool {
        let Some(main) = words.main.filter(|main| main.kind() == Kind::Object) else {
            return false;
        };
        let object = self.keyed(main.offset());
        let (namespace, version) = (object.namespace(), object.version());
        let touch = words.touch.map(|touch| self.keyed(touch.offset()));
        let deadline = touch
            .filter(|touch| touch.version() == version)
            .map_or(object.deadline(), |touch| touch.deadline());
        let bytes = object.length() as u64;
        let flushed = self.flushes.may_cover(namespace, version)
            && self.flushes.cover(namespace, object.key(), version);
        self.note_lifetime(main.offset(), deadline, bytes as u32, counts);
        if flushed {
            return false;
        }
        let with_deadline = u64::from(deadline.is_some());
        let count = &mut self.counts[usize::from(namespace.0)];
        if counts {
            count.sessions += 1;
            count.with_deadline += with_deadline;
            count.bytes += bytes;
        } else {
            count.sessions -= 1;
            count.with_deadline -= with_deadline;
            count.bytes -= bytes;
        }
        true
    }

    /// Counts live bytes among those that expire at `deadline`, or ends counting them.
    #[inline]
    pub(crate) fn note_lifetime(
        &mut self,
        offset: u64,
        deadline: Option<ClusterMs>,
        bytes: u32,
        counts: bool,
    ) {
        let Some(deadline) = deadline.filter(|_| self.config.cleaner.lifetimes) else {
            return;
        };
        let slot = self.segments.at(&self.region, offset);
        match counts {
            true => (self.segments).add_lifetime(slot, deadline, bytes, self.clock),
            false => self.segments.take_lifetime(slot, deadline, bytes),
        }
    }

    /// A touch has superseded another one.
    #[inline]
    fn learn_touch_interval(&mut self, old: Word, new: Word) {
        let old = self.keyed(old.offset()).deadline();
        let new = self.keyed(new.offset()).deadline();
        // One idle time, so the deadlines are as far apart as the touches.
        if let (Some(old), Some(new)) = (old, new)
            && new > old
        {
            let mean = &mut self.touch_interval_ms;
            let interval = (new.0 - old.0).min(1 << 32);
            *mean = match *mean {
                0 => interval,
                mean => mean - mean / 64 + interval / 64,
            };
        }
    }

    /// The same for a touch's own bytes.
    #[inline]
    fn note_touch(&mut self, word: Word, counts: bool) {
        let touch = self.keyed(word.offset());
        let (deadline, bytes) = (touch.deadline(), touch.length() as u32);
        self.note_lifetime(word.offset(), deadline, bytes, counts);
        let slot = self.segments.at(&self.region, word.offset());
        self.segments.count_touch(slot, bytes, counts);
    }

    /// Notes the slot of a session that is counted.
    #[inline]
    fn see_slot(&mut self, words: KeyWords) {
        let main = words.main.expect("a session is counted");
        self.note_slot(KeySlot::of(self.keyed(main.offset()).key()));
    }

    #[inline]
    pub(crate) fn note_slot(&mut self, slot: KeySlot) {
        self.slots_seen[usize::from(slot.0) / 64] |= 1 << (slot.0 % 64);
    }

    /// Counts a session that is being forgotten because its time has run out.
    pub(crate) fn tally_expired(&mut self, words: KeyWords) {
        let expired = self.current(words).is_some_and(|it| !it.flushed);
        self.expired_sessions += u64::from(expired);
    }

    /// True if every session ever kept here lies in `ranges`.
    pub(crate) fn all_seen_in(&self, ranges: &[SlotRange]) -> bool {
        self.slots_seen.iter().enumerate().all(|(i, &bits)| {
            (0..64).filter(|bit| bits >> bit & 1 == 1).all(|bit| {
                ranges
                    .iter()
                    .any(|range| range.contains(KeySlot(i as u16 * 64 + bit as u16)))
            })
        })
    }
}
