//! Room in the log: who gets memory, and how heads follow each other.
//!
//! Memory is handed out by class, so that running out of it is an error for those who add data and
//! never a deadlock. Counted in seglets, from what is free:
//!
//! ```text
//! | … for puts and replays … | small: 1 segment and one seglet for each | commit: an opening | cleaner: a segment |
//! ```
//!
//! L1. A put needs everything to its right untouched: deletes, touches and completion records
//!     (`Small`) still find room for a while, and most of them make garbage. What the owner holds outside
//!     the log counts against puts alone, so that it can make writers wait and never stops the cleaner.
//! L2. The cleaner always finds room for the copies of one segment, and a few seglets (`Commit`) for the
//!     head whose digest makes the cleaning count. What its jobs hold is lent to them out of its own part,
//!     and they give back more than they took.
//! L3. An append is atomic: everything of one operation goes to one extent of one segment in one call, and
//!     the length that `goals` shows is never inside it.

use holdfast_format::{
    Digest, Entry, HeaderKind, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId, Version,
};

use crate::AppendError;
use crate::SegmentKind;
use crate::completions::RECORD_CHARGE_BYTES;
use crate::log::Log;
use crate::region::Run;
use crate::replay::Replay;
use crate::segments::{Owner, Slot, State};

/// Who asks for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Put,
    Small,
    Commit,
}

/// Headroom of a head's version ceiling: far more than 8 MiB of the smallest entries can use, so
/// that a head is almost never cut short by it.
const VERSIONS_PER_HEAD: u64 = 1 << 20;

/// Segments kept back from puts, and from deletes and touches, of the number that replicas may have: for
/// survivors and for the heads that commit them.
const SEGMENTS_KEPT: [(Class, usize); 3] = [(Class::Put, 8), (Class::Small, 4), (Class::Commit, 0)];

impl Log {
    /// Makes sure that `bytes` can be appended to the head and a word added to the index.
    pub(crate) fn make_space(&mut self, bytes: usize, class: Class) -> Result<(), AppendError> {
        if bytes + self.opening_bytes() > self.config.segment_bytes as usize {
            return Err(AppendError::ValueTooLarge);
        }
        if class == Class::Put && self.available() < self.limit(class) {
            return Err(AppendError::OutOfMemory);
        }
        if !self.index.has_room() {
            let may_take = self.index_may_take(class);
            if !self.index.make_room(&mut self.region, may_take) {
                return Err(AppendError::OutOfMemory);
            }
        }
        let fits = self.segments.get(self.head).bytes.room() as usize >= bytes;
        if !fits || self.next_version() >= self.version_ceiling {
            self.make_head_room(bytes, class)?;
        }
        Ok(())
    }

    #[cold]
    fn make_head_room(&mut self, bytes: usize, class: Class) -> Result<(), AppendError> {
        if self.next_version() >= self.version_ceiling {
            self.roll(class)?;
        } else if self.grow(self.head, bytes, class) {
            return Ok(());
        } else if !self.could_take(self.head, bytes) {
            self.roll(class)?;
        }
        let fits = self.segments.get(self.head).bytes.room() as usize >= bytes;
        match fits || self.grow(self.head, bytes, class) {
            true => Ok(()),
            false => Err(AppendError::OutOfMemory),
        }
    }

    /// Appends to a segment with room, and counts the entry as live.
    #[inline]
    pub(crate) fn append(
        &mut self,
        slot: Slot,
        bytes: usize,
        encode: impl FnOnce(&mut [u8]) -> usize,
    ) -> u64 {
        let offset = self.segments.place(&self.region, slot, bytes);
        let start = offset as usize;
        let written = encode(&mut self.region.memory_mut()[start..start + bytes]);
        assert_eq!(written, bytes, "an entry is as long as it said");
        self.segments.add_live(slot, bytes);
        self.cleaner.pace.appended(bytes);
        offset
    }

    /// Appends a tombstone of either kind.
    pub(crate) fn append_tombstone(&mut self, slot: Slot, entry: &Entry<'_>) -> u64 {
        let bytes = entry.encoded_len();
        let offset = self.append(slot, bytes, |out| entry.encode(out));
        let birth = birth(entry).expect("a tombstone");
        self.segments.add_tombstone(slot, bytes, birth);
        offset
    }

    #[inline]
    pub(crate) fn grow_index(&mut self) {
        if !self.index.is_growth_due() {
            return;
        }
        let may_take = self.index_may_take(Class::Put);
        self.index.grow(&mut self.region, may_take);
    }

    pub(crate) fn index_may_take(&self, class: Class) -> bool {
        self.available() > self.limit(class)
    }

    /// Seglets that are free, less those that stand for memory outside the region.
    pub(crate) fn available(&self) -> u32 {
        let charged = self
            .charged_bytes()
            .div_ceil(u64::from(self.config.seglet_bytes));
        let charged = u32::try_from(charged).unwrap_or(u32::MAX);
        self.region.free_seglets().saturating_sub(charged)
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        (self.completions.len() + self.flushes.list.len()) as u64 * RECORD_CHARGE_BYTES
    }

    /// Seglets that must stay available after a request of this class (L1, L2).
    #[inline]
    pub(crate) fn limit(&self, class: Class) -> u32 {
        let lent = self.cleaner.lent_seglets();
        let cleaner = self.cleaner_seglets().saturating_sub(lent);
        match class {
            Class::Commit => cleaner,
            Class::Small => cleaner + self.commit_seglets(),
            Class::Put => {
                let small = self.small_seglets();
                cleaner + self.commit_seglets() + small + self.external_seglets()
            }
        }
    }

    /// Seglets that puts leave to deletes and touches: a segment, and as many as there could be segments. For
    /// deletes that are spread evenly make garbage that no compaction can give back until it is a seglet in each
    /// segment, and until then their tombstones, which are at most as long as what they end, must have room.
    pub(crate) fn small_seglets(&self) -> u32 {
        let segment = self.config.segment_seglets();
        segment + self.region.seglets() / segment
    }

    /// What is outside the log beyond the room left for it.
    fn external_seglets(&self) -> u32 {
        let beyond = (self.external_bytes).saturating_sub(self.config.outside_bytes);
        let seglets = beyond.div_ceil(u64::from(self.config.seglet_bytes));
        seglets.min(u64::from(self.region.seglets())) as u32
    }

    /// Seglets that the cleaner must have while it has no job: those of a segment's live entries, and what
    /// the ends of extents waste.
    pub(crate) fn cleaner_seglets(&self) -> u32 {
        self.config.segment_seglets() + 2
    }

    /// Seglets of the smallest head that can be opened.
    pub(crate) fn commit_seglets(&self) -> u32 {
        (self.opening_bytes() as u32).div_ceil(self.config.seglet_bytes)
    }

    /// Bytes of a new head's opening, with room for a few more segments by then.
    pub(crate) fn opening_bytes(&self) -> usize {
        SEGMENT_HEADER_BYTES + Digest::encoded_len(self.segments.len() + 4)
    }

    /// Gives a segment room for `bytes` more if it may have that many.
    pub(crate) fn grow(&mut self, slot: Slot, bytes: usize, class: Class) -> bool {
        let seglet_bytes = self.config.seglet_bytes as usize;
        let segment_seglets = self.config.segment_seglets();
        let extents = &self.segments.get(slot).bytes;
        let (room, end) = (extents.room() as usize, extents.end());
        // Those of the last extent that have not been begun go back if it cannot be lengthened.
        let unbegun = (room / seglet_bytes) as u32;
        let left = segment_seglets - (extents.seglets() - unbegun);
        let free = self.available().saturating_sub(self.limit(class));
        let step = self.step();
        if let Some(end) = end {
            let min = (bytes - room.min(bytes)).div_ceil(seglet_bytes) as u32;
            let want = min.max(step).min(free).min(left.saturating_sub(unbegun));
            let next = (want >= min).then(|| self.region.take_next(end, min, want));
            if let Some(run) = next.flatten() {
                self.segments.extend(&mut self.region, slot, run);
                return true;
            }
        }
        let min = bytes.div_ceil(seglet_bytes) as u32;
        let want = min.max(step).min(free + unbegun).min(left);
        if want < min {
            return false;
        }
        let Some(run) = self.region.take(min, want.min(free).max(min)) else {
            return false;
        };
        self.segments.extend(&mut self.region, slot, run);
        true
    }

    /// Seglets that a segment takes at once: much while there is much, so that extents are long; less and less towards
    /// the end, so that what one segment does not use yet is not missing elsewhere. By what is there for puts, also
    /// where deletes may take more: a head that takes it for a tombstone takes it from them.
    fn step(&self) -> u32 {
        let free = self.available().saturating_sub(self.limit(Class::Put));
        (free / 4).clamp(1, self.config.segment_seglets())
    }

    /// True if a segment would have room for `bytes` in a run of their own, if only there were memory.
    pub(crate) fn could_take(&self, slot: Slot, bytes: usize) -> bool {
        let seglet_bytes = self.config.seglet_bytes;
        let extents = &self.segments.get(slot).bytes;
        let begun = extents.seglets() - extents.room() / seglet_bytes;
        begun + (bytes as u32).div_ceil(seglet_bytes) <= self.config.segment_seglets()
    }

    // ---- heads ----

    /// Closes the head and opens the next.
    pub(crate) fn roll(&mut self, class: Class) -> Result<(), AppendError> {
        let old = self.head;
        let tail = self.segments.cut_tail(&mut self.region, old);
        let follows = Some(self.segments.get(old).id);
        if let Err(error) = self.open_head(follows, class) {
            self.segments.restore_tail(&mut self.region, old, tail);
            return Err(error);
        }
        self.segments.get_mut(old).state = State::Member;
        self.segments.close(&mut self.region, old);
        Ok(())
    }

    pub(crate) fn open_head(
        &mut self,
        follows: Option<SegmentId>,
        class: Class,
    ) -> Result<(), AppendError> {
        let run = self
            .take_run(self.opening_bytes(), class)
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
        let slot = self.segments.open(kind, State::Head);
        self.segments.extend(&mut self.region, slot, run);
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

    /// A run for a new segment that begins with `bytes`.
    pub(crate) fn take_run(&mut self, bytes: usize, class: Class) -> Option<Run> {
        let min = bytes.div_ceil(self.config.seglet_bytes as usize) as u32;
        let allowed = self.available().saturating_sub(self.limit(class));
        if allowed < min || self.too_many_segments(class) {
            return None;
        }
        self.region.take(min, self.step().min(allowed).max(min))
    }

    fn too_many_segments(&self, class: Class) -> bool {
        let kept = SEGMENTS_KEPT.iter().find(|kept| kept.0 == class);
        let (_, kept) = kept.expect("every class is listed");
        let max = match class {
            Class::Commit => self.config.segments_max(),
            Class::Put | Class::Small => self.config.replica_segments_max(),
        };
        self.segments.len() + kept >= max
    }

    /// Opens a side segment in `run`.
    pub(crate) fn open_side(&mut self, run: Run, owner: Owner) -> Slot {
        let id = self.segments.next_id();
        let slot = self.segments.open(SegmentKind::Side, State::Side(owner));
        self.segments.extend(&mut self.region, slot, run);
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

    /// Rolls the head if side segments wait to become members or victims to leave, and it is time.
    pub(crate) fn commit(&mut self) {
        let replayed = self.replays.values().any(|it| self.replay_is_ready(it));
        if replayed || self.cleaning_should_commit() {
            // Without memory for it now, the next acknowledgement or cleaning tries again.
            let _ = self.roll(Class::Commit);
        }
    }

    /// Everything that is ready joins or leaves with the digest of head `id`.
    fn commit_with(&mut self, id: SegmentId) {
        self.commit_cleaning(id);
        let ready = |log: &Log, it: &Replay| log.replay_is_ready(it);
        let replays: Vec<_> = (self.replays.iter())
            .filter(|(_, it)| ready(self, it))
            .map(|(&replay, _)| replay)
            .collect();
        for replay in replays {
            let replay = self.replays.get_mut(&replay).expect("it is ready");
            replay.committed_by = Some(id);
            for &side in &replay.sides {
                self.segments.get_mut(side).state = State::Member;
            }
        }
        // What holds nothing that lives leaves with any digest. All that made it garbage stands in
        // segments that this digest's predecessor had to have closed.
        let empty: Vec<Slot> = (self.segments.iter_unordered())
            .filter(|(_, it)| it.live == 0 && self.segments.is_cleanable(it))
            .map(|(slot, _)| slot)
            .collect();
        for slot in empty {
            self.segments.get_mut(slot).state = State::Leaving(id);
        }
    }
}

/// The birth of a tombstone of either kind.
pub(crate) fn birth(entry: &Entry<'_>) -> Option<SegmentId> {
    match entry {
        Entry::Tombstone(tombstone) => Some(tombstone.birth),
        Entry::RangeTombstone(tombstone) => Some(tombstone.birth),
        _ => None,
    }
}
