//! The log itself: its head, room in it, and the plumbing that every operation shares.
//!
//! Memory is handed out by class, so that running out of it is an error for those who add data and
//! never a deadlock. Counted in seglets, from what is free:
//!
//! ```text
//! | … for puts and replays … | small: 1 block | commit | cleaner: 1 block, entirely free |
//! ```
//!
//! L1. A put needs everything to its right untouched: deletes, touches and completion records
//!     (`Small`) still find room for a while, and most of them make garbage. What the owner holds outside
//!     the log counts against puts alone, so that it can make writers wait and never stops the cleaner.
//! L2. The cleaner always finds an entirely free block for survivors, and a few seglets (`Commit`) for the
//!     head whose digest makes the cleaning count. What it frees is at least a block again.
//! L3. An append is atomic: everything of one operation goes to one segment in one call, and the
//!     length that `goals` shows is never inside it.

use std::collections::BTreeMap;

use holdfast_format::{
    ClusterMs, Digest, Entry, HeaderKind, KeyHash, Keyed, LogId, Namespace, Object, Position,
    SEGMENT_HEADER_BYTES, SLOTS, SegmentHeader, SegmentId, Slot as KeySlot, SlotRange, Tombstone,
    Touch, Version,
};

use crate::cleaner::{Cleaning, Phase};
use crate::completions::{Completions, RECORD_CHARGE_BYTES};
use crate::config::{Config, ConfigError};
use crate::flushes::Flushes;
use crate::index::{At, Index, Kind, Word};
use crate::region::{Region, Run};
use crate::replay::Replay;
use crate::segments::{Owner, Segments, Slot, State};
use crate::{AppendError, MemoryUse, ReplayId, SegmentGoal, SegmentKind, SessionCount};

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
    /// One bit per slot that ever had a session here.
    pub(crate) slots_seen: Vec<u64>,
    pub(crate) cleaning: Option<Cleaning>,
    pub(crate) replays: BTreeMap<ReplayId, Replay>,
    pub(crate) last_replay: ReplayId,
    pub(crate) swept: KeyHash,
    pub(crate) swept_completion: (holdfast_format::ClientId, u64),
    pub(crate) cleaned_bytes: u64,
    pub(crate) external_bytes: u64,
    pub(crate) expired_sessions: u64,
}

/// Who asks for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Put,
    Small,
    Commit,
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

/// Headroom of a head's version ceiling: far more than 8 MiB of the smallest entries can use, so
/// that a head is almost never cut short by it.
const VERSIONS_PER_HEAD: u64 = 1 << 20;

impl Log {
    /// Reserves the memory and opens the first head.
    pub fn new(id: LogId, config: Config) -> Result<Log, ConfigError> {
        config.validate()?;
        let mut region = Region::new(
            config.blocks() as u32,
            config.segment_bytes as usize,
            config.seglet_bytes as usize,
        );
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
            cleaning: None,
            replays: BTreeMap::new(),
            last_replay: ReplayId(0),
            swept: KeyHash(0),
            swept_completion: Default::default(),
            cleaned_bytes: 0,
            external_bytes: 0,
            expired_sessions: 0,
        };
        log.open_head(None, 0, Class::Put)
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
            offset: head.length,
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
            from <= to && to <= segment.length,
            "{:?} is shorter",
            segment.id
        );
        let start = segment.start as usize;
        let piece = &self.region.memory()[start + from as usize..start + to as usize];
        std::iter::once(piece).filter(|piece| !piece.is_empty())
    }

    /// `[0, length)` of the segment is on all its replicas; `closed`: and they are closed.
    ///
    /// Segments that have been freed meanwhile are ignored.
    pub fn set_durable(&mut self, segment: SegmentId, length: u32, closed: bool) {
        if self.segments.set_durable(segment, length, closed) {
            self.segments.settle(&mut self.region);
            self.forget_settled_cleaning();
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
        let appended: u64 = (self.segments.iter())
            .map(|(_, segment)| u64::from(segment.length))
            .sum();
        MemoryUse {
            limit_bytes: self.config.memory_bytes,
            used_bytes: in_use * seglet_bytes
                + self.charged_bytes()
                + self.config.table_bytes()
                + self.external_bytes,
            live_bytes: self.segments.live(),
            reclaimable_bytes: appended - self.segments.live(),
            reserved_bytes: u64::from(self.limit(Class::Put)) * seglet_bytes,
            index_bytes: self.index.bytes(&self.region),
            records_bytes: self.charged_bytes(),
            external_bytes: self.external_bytes,
            segments: self.segments.len() as u64,
            cleaned_bytes: self.cleaned_bytes,
            expired_sessions: self.expired_sessions,
        }
    }

    /// Makes the system map the next `budget_bytes` of the reserved memory before they are needed: the
    /// first write to a page costs some 2 to 10 microseconds, which no request should pay. Takes as long as
    /// that for every 4 KiB of the budget; changes no content. True if more is left.
    pub fn touch_ahead(&mut self, budget_bytes: u64) -> bool {
        self.region.touch_ahead(budget_bytes)
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

    pub(crate) fn object(&self, word: Word) -> Object<'_> {
        match self.entry(word.offset()) {
            Entry::Object(object) => object,
            other => panic!("an object is due at this place, not {other:?}"),
        }
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
        let (_, bytes) = self.sized_entry(offset);
        self.segments.end_live(&self.region, offset, bytes);
    }

    /// As `kill`, for what the index pointed at.
    #[inline]
    pub(crate) fn kill_word(&mut self, word: Word) {
        let bytes = self.keyed(word.offset()).length();
        self.segments.end_live(&self.region, word.offset(), bytes);
    }

    #[inline]
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
    #[inline]
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
                (self.index).replace_at(&mut self.region, hash, words.touch_at, old, touch);
                self.kill_word(old);
            }
            None => {
                self.index.insert(&mut self.region, hash, touch);
                self.grow_index();
            }
        }
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
        if self.flushes.may_cover(namespace, version)
            && self.flushes.cover(namespace, object.key(), version)
        {
            return false;
        }
        let with_deadline = u64::from(deadline.is_some());
        let bytes = object.length() as u64;
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

    /// Notes the slot of a session that is counted.
    #[inline]
    fn see_slot(&mut self, words: KeyWords) {
        let main = words.main.expect("a session is counted");
        let slot = KeySlot::of(self.keyed(main.offset()).key());
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

    // ---- space ----

    /// Makes sure that `bytes` can be appended to the head and a word added to the index.
    pub(crate) fn make_space(&mut self, bytes: usize, class: Class) -> Result<(), AppendError> {
        if bytes + self.opening_bytes() > self.config.segment_bytes as usize {
            return Err(AppendError::ValueTooLarge);
        }
        if class == Class::Put && self.available() < self.limit(class) {
            return Err(AppendError::OutOfMemory);
        }
        let may_take_block = self.index_may_take_block(class);
        if !self.index.make_room(&mut self.region, may_take_block) {
            return Err(AppendError::OutOfMemory);
        }
        let fits = self.segments.get(self.head).room() as usize >= bytes;
        if !fits || self.next_version() >= self.version_ceiling {
            self.roll(bytes, class)?;
        }
        Ok(())
    }

    /// Appends to a segment with room, and counts the entry as live.
    #[inline]
    pub(crate) fn append(
        &mut self,
        slot: Slot,
        bytes: usize,
        encode: impl FnOnce(&mut [u8]) -> usize,
    ) -> u64 {
        let segment = self.segments.get_mut(slot);
        assert!(
            !segment.closed && segment.room() as usize >= bytes,
            "room was made"
        );
        let offset = segment.start + u64::from(segment.length);
        segment.length += bytes as u32;
        let start = offset as usize;
        let written = encode(&mut self.region.memory_mut()[start..start + bytes]);
        assert_eq!(written, bytes, "an entry is as long as it said");
        self.segments.add_live(&self.region, offset, bytes);
        offset
    }

    /// Appends a copy of `bytes` that stand in the region.
    pub(crate) fn append_copy(&mut self, slot: Slot, place: u64, bytes: usize) -> u64 {
        let segment = self.segments.get_mut(slot);
        assert!(
            !segment.closed && segment.room() as usize >= bytes,
            "room was made"
        );
        let offset = segment.start + u64::from(segment.length);
        segment.length += bytes as u32;
        let place = place as usize;
        self.region
            .memory_mut()
            .copy_within(place..place + bytes, offset as usize);
        self.segments.add_live(&self.region, offset, bytes);
        offset
    }

    pub(crate) fn grow_index(&mut self) {
        let may_take_block = self.index_may_take_block(Class::Put);
        self.index.grow(&mut self.region, may_take_block);
    }

    pub(crate) fn index_may_take_block(&self, class: Class) -> bool {
        self.region.free_blocks() > self.keep_blocks()
            && self.available() >= self.limit(class) + self.region.seglets_per_block()
    }

    /// Seglets that are free, less those that stand for memory outside the region.
    pub(crate) fn available(&self) -> u32 {
        let charged = self
            .charged_bytes()
            .div_ceil(u64::from(self.config.seglet_bytes));
        self.region.free_seglets().saturating_sub(charged as u32)
    }

    fn charged_bytes(&self) -> u64 {
        (self.completions.len() + self.flushes.list.len()) as u64 * RECORD_CHARGE_BYTES
    }

    /// Seglets that must stay available after a request of this class (L1, L2).
    pub(crate) fn limit(&self, class: Class) -> u32 {
        let block = self.region.seglets_per_block();
        let cleaner = self.keep_blocks() * block;
        match class {
            Class::Commit => cleaner,
            Class::Small => cleaner + self.commit_seglets(),
            Class::Put => cleaner + self.commit_seglets() + block + self.external_seglets(),
        }
    }

    /// What is outside the log beyond the room left for it.
    fn external_seglets(&self) -> u32 {
        let beyond = (self.external_bytes).saturating_sub(self.config.outside_bytes);
        let seglets = beyond.div_ceil(u64::from(self.config.seglet_bytes));
        seglets.min(u64::from(self.region.seglets())) as u32
    }

    /// Entirely free blocks to leave for the cleaner: none while it has its own.
    pub(crate) fn keep_blocks(&self) -> u32 {
        u32::from(
            self.cleaning
                .as_ref()
                .is_none_or(|cleaning| cleaning.survivor.is_none()),
        )
    }

    /// Seglets of the smallest head that can be opened.
    pub(crate) fn commit_seglets(&self) -> u32 {
        (self.opening_bytes() as u32).div_ceil(self.config.seglet_bytes)
    }

    /// Bytes of a new head's opening, with room for a few more segments by then.
    fn opening_bytes(&self) -> usize {
        SEGMENT_HEADER_BYTES + Digest::encoded_len(self.segments.len() + 4)
    }

    // ---- heads ----

    /// Closes the head and opens the next, with room for `bytes` more.
    pub(crate) fn roll(&mut self, bytes: usize, class: Class) -> Result<(), AppendError> {
        let old = self.head;
        let tail = self.segments.cut_tail(&mut self.region, old);
        let follows = Some(self.segments.get(old).id);
        if let Err(error) = self.open_head(follows, bytes, class) {
            self.segments.restore_tail(&mut self.region, old, tail);
            return Err(error);
        }
        self.segments.get_mut(old).state = State::Member;
        self.segments.close(&mut self.region, old);
        Ok(())
    }

    fn open_head(
        &mut self,
        follows: Option<SegmentId>,
        bytes: usize,
        class: Class,
    ) -> Result<(), AppendError> {
        let run = self
            .take_run(bytes, class)
            .ok_or(AppendError::OutOfMemory)?;
        let id = self.segments.next_id();
        self.commit_with(id);
        let digest: Vec<SegmentId> = self
            .segments
            .iter()
            .filter(|(_, it)| matches!(it.state, State::Member | State::Head))
            .map(|(_, it)| it.id)
            .chain([id])
            .collect();
        let opening = SEGMENT_HEADER_BYTES + Digest::encoded_len(digest.len());
        let kind = SegmentKind::Head {
            opening: opening as u32,
            follows,
        };
        let slot = self.segments.open(&self.region, run, kind, State::Head);
        self.version_ceiling = Version(self.last_version.0 + VERSIONS_PER_HEAD);
        let header = SegmentHeader {
            log: self.id,
            segment: id,
            version_ceiling: self.version_ceiling,
            kind: HeaderKind::Head,
        };
        self.head = slot;
        self.append_dead(slot, SEGMENT_HEADER_BYTES, |out| header.encode(out));
        let bytes = Digest::encoded_len(digest.len());
        self.append_dead(slot, bytes, |out| Digest::encode(&digest, out));
        Ok(())
    }

    /// A run for a new segment with an opening and `bytes` more.
    pub(crate) fn take_run(&mut self, bytes: usize, class: Class) -> Option<Run> {
        let min = (self.opening_bytes() + bytes).div_ceil(self.config.seglet_bytes as usize) as u32;
        let block = self.region.seglets_per_block();
        let allowed = self
            .available()
            .saturating_sub(self.limit(class))
            .min(block);
        let too_many = self.segments.len() >= self.config.segments_max();
        if allowed < min || too_many && class != Class::Commit {
            return None;
        }
        let keep = self.keep_blocks();
        self.region.take(min, allowed, keep)
    }

    /// Opens a side segment in `run`.
    pub(crate) fn open_side(&mut self, run: Run, owner: Owner) -> Slot {
        let id = self.segments.next_id();
        let slot = self
            .segments
            .open(&self.region, run, SegmentKind::Side, State::Side(owner));
        let header = SegmentHeader {
            log: self.id,
            segment: id,
            version_ceiling: self.version_ceiling,
            kind: HeaderKind::Side,
        };
        self.append_dead(slot, SEGMENT_HEADER_BYTES, |out| header.encode(out));
        slot
    }

    /// Appends what nothing points at: headers and digests.
    fn append_dead(&mut self, slot: Slot, bytes: usize, encode: impl FnOnce(&mut [u8]) -> usize) {
        let offset = self.append(slot, bytes, encode);
        self.segments.end_live(&self.region, offset, bytes);
    }

    /// Rolls the head if that makes side segments members or lets victims leave.
    pub(crate) fn commit(&mut self) {
        if self.cleaning_is_ready() || self.replays.values().any(|it| self.replay_is_ready(it)) {
            // Without memory for it now, the next acknowledgement or cleaning tries again.
            let _ = self.roll(0, Class::Commit);
        }
    }

    /// Everything that is ready joins or leaves with the digest of head `id`.
    fn commit_with(&mut self, id: SegmentId) {
        if self.cleaning_is_ready() {
            let cleaning = self.cleaning.as_mut().expect("it is ready");
            cleaning.phase = Phase::Committed(id);
            if let Some(survivor) = cleaning.survivor {
                self.segments.get_mut(survivor).state = State::Member;
            }
            for &victim in &cleaning.victims {
                self.segments.get_mut(victim).state = State::Leaving(id);
            }
        }
        let ready: Vec<ReplayId> = self
            .replays
            .iter()
            .filter(|(_, it)| self.replay_is_ready(it))
            .map(|(&replay, _)| replay)
            .collect();
        for replay in ready {
            let replay = self.replays.get_mut(&replay).expect("it is ready");
            replay.committed_by = Some(id);
            for &side in &replay.sides {
                self.segments.get_mut(side).state = State::Member;
            }
        }
    }
}
