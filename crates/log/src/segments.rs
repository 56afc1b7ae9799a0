//! Every segment of the log, from its opening until its memory and replicas are given back.
//!
//! ```text
//! head ────────────┐
//!                  ├─> member ─────────> leaving ──────────────> (freed)
//! side ─ durable ──┘      a digest omits it     that digest is durable
//! ```
//!
//! A log's digest names its *members*: what a recovery would read. A side segment (survivor of
//! the cleaner, or of a replay) becomes a member with the first digest written after it was closed and
//! durable; a victim leaves with the same digest as its survivor joins.
//!
//! I1. Exactly one segment is the head.
//! I2. Replicas and memory of a member are kept until a digest that omits it is durable: the head
//!     that carries it has its opening on all replicas and that head's predecessor is closed on all
//!     of them (`docs/design-notes.md`, "Replication", R2 and R5).
//! I3. `live` is the number of bytes of entries that the index, the completion records or the range
//!     tombstones still point at, whether they stand in `bytes` or `fresh`; `tombstones` is a part of it.
//! I4. While a segment is compacted its old bytes stay what replicas get. Its copies take their place only when
//!     everything is durable that was appended before the copying ended: what made an entry garbage must not
//!     be lost where a replica made from the copies lacks that entry.

use std::collections::{BTreeMap, VecDeque};

use holdfast_format::{ClusterMs, Position, SegmentId};

use crate::extents::Extents;
use crate::lifetimes::Lifetimes;
use crate::region::{Region, Run};
use crate::{ReplayId, SegmentGoal, SegmentKind};

/// A segment's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Cleaner,
    Replay(ReplayId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Head,
    Side(Owner),
    Member,
    /// Omitted by the digest of this head.
    Leaving(SegmentId),
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub id: SegmentId,
    /// Where its bytes are: what `Log::bytes` gives and replicas get.
    pub bytes: Extents,
    /// Where compaction is putting copies of its live entries, to take the place of `bytes` later (I4).
    pub fresh: Extents,
    pub live: u32,
    /// Those of the live bytes that are tombstones, and the highest birth among them.
    pub tombstones: u32,
    pub births: SegmentId,
    /// How many of the live bytes expire when; made with the first that do. Estimates.
    pub lifetimes: Option<Box<Lifetimes>>,
    /// The longest entry ever appended: what an extent may leave unused at its end.
    pub largest: u32,
    pub closed: bool,
    /// `SegmentGoal::rewrite`.
    pub rewrite: u32,
    pub kind: SegmentKind,
    pub state: State,
    /// Being copied by the cleaner, or copied and not replaced yet.
    pub busy: bool,
    /// What `set_durable` has said.
    pub durable: u32,
    pub durable_closed: bool,
}

impl Segment {
    /// Bytes appended.
    pub fn length(&self) -> u32 {
        self.bytes.length()
    }
}

#[derive(Debug)]
pub(crate) struct Segments {
    slots: Vec<Option<Segment>>,
    unused: Vec<u32>,
    by_id: BTreeMap<SegmentId, Slot>,
    /// Which segment a seglet belongs to.
    owners: Vec<u32>,
    last_id: SegmentId,
    /// Heads whose digest is not durable yet, oldest first.
    unsettled: VecDeque<SegmentId>,
    /// The newest head whose digest is durable.
    settled: SegmentId,
    freed: Vec<SegmentId>,
    change: u64,
    live: u64,
    tombstones: u64,
}

impl Segments {
    pub fn new(region: &Region) -> Segments {
        Segments {
            slots: Vec::new(),
            unused: Vec::new(),
            by_id: BTreeMap::new(),
            owners: vec![u32::MAX; region.seglets() as usize],
            last_id: SegmentId(0),
            unsettled: VecDeque::new(),
            settled: SegmentId(0),
            freed: Vec::new(),
            change: 0,
            live: 0,
            tombstones: 0,
        }
    }

    /// Enters a new segment, without memory so far. Its id is `next_id()` before the call.
    pub fn open(&mut self, kind: SegmentKind, state: State) -> Slot {
        self.last_id = self.next_id();
        let slot = match self.unused.pop() {
            Some(slot) => Slot(slot),
            None => {
                self.slots.push(None);
                Slot(self.slots.len() as u32 - 1)
            }
        };
        self.slots[slot.0 as usize] = Some(Segment {
            id: self.last_id,
            bytes: Extents::default(),
            fresh: Extents::default(),
            live: 0,
            tombstones: 0,
            births: SegmentId(0),
            lifetimes: None,
            largest: 0,
            closed: false,
            rewrite: 0,
            kind,
            state,
            busy: false,
            durable: 0,
            durable_closed: false,
        });
        self.by_id.insert(self.last_id, slot);
        if state == State::Head {
            self.unsettled.push_back(self.last_id);
        }
        self.change += 1;
        slot
    }

    /// Gives a segment memory to go on in. What it has not begun of its last extent is free again.
    pub fn extend(&mut self, region: &mut Region, slot: Slot, run: Run) {
        if !self.get(slot).bytes.is_followed_by(run) {
            self.cut_tail(region, slot);
        }
        self.own(run, slot.0);
        self.get_mut(slot).bytes.push(run, region.seglet_bytes());
    }

    /// The same for what compaction writes; the runs are the cleaner's own.
    pub fn extend_fresh(&mut self, region: &Region, slot: Slot, run: Run) {
        self.own(run, slot.0);
        self.get_mut(slot).fresh.push(run, region.seglet_bytes());
    }

    /// Takes back from compaction what its copies have not begun; it is the cleaner's again.
    pub fn cut_fresh_tail(&mut self, region: &Region, slot: Slot) -> Run {
        let tail = self.get_mut(slot).fresh.cut_tail(region.seglet_bytes());
        self.own(tail, u32::MAX);
        tail
    }

    /// Takes `bytes` of a segment's last extent for an entry. Returns where.
    #[inline]
    pub fn place(&mut self, region: &Region, slot: Slot, bytes: usize) -> u64 {
        self.place_all(region, slot, bytes as u32, bytes as u32)
    }

    /// The same for several entries, the longest of which has `largest` bytes.
    #[inline]
    pub fn place_all(&mut self, region: &Region, slot: Slot, bytes: u32, largest: u32) -> u64 {
        let segment = self.get_mut(slot);
        assert!(!segment.closed, "{:?} is closed", segment.id);
        segment.largest = segment.largest.max(largest);
        segment.bytes.place(region, bytes)
    }

    /// Ends a segment's growth and gives the seglets it has not begun back to the region.
    pub fn close(&mut self, region: &mut Region, slot: Slot) {
        self.cut_tail(region, slot);
        let segment = self.get_mut(slot);
        assert!(!segment.closed, "{:?} is closed twice", segment.id);
        segment.closed = true;
        self.change += 1;
    }

    /// Gives the seglets that a segment has not begun back to the region, and says which.
    pub fn cut_tail(&mut self, region: &mut Region, slot: Slot) -> Run {
        let tail = self.get_mut(slot).bytes.cut_tail(region.seglet_bytes());
        self.own(tail, u32::MAX);
        region.give_back(tail);
        tail
    }

    /// Undoes `cut_tail`.
    pub fn restore_tail(&mut self, region: &mut Region, slot: Slot, tail: Run) {
        if tail.count > 0 {
            region.take_at(tail);
            self.own(tail, slot.0);
            self.get_mut(slot).bytes.push(tail, region.seglet_bytes());
        }
    }

    /// Puts the copies that compaction has made in the place of a segment's bytes (I4).
    pub fn replace(&mut self, region: &mut Region, slot: Slot) {
        let segment = self.get_mut(slot);
        assert!(segment.closed && segment.durable_closed && segment.busy);
        let fresh = std::mem::take(&mut segment.fresh);
        let old = std::mem::replace(&mut segment.bytes, fresh);
        segment.durable = segment.length();
        segment.rewrite += 1;
        segment.busy = false;
        for run in old.runs() {
            self.own(run, u32::MAX);
            region.give_back(run);
        }
        self.change += 1;
    }

    /// Forgets a segment: its memory is free, its replicas may be freed.
    pub fn free(&mut self, region: &mut Region, slot: Slot) {
        let segment = self.slots[slot.0 as usize].take().expect("a slot in use");
        assert_eq!(
            segment.live, 0,
            "{:?} is freed with live entries",
            segment.id
        );
        assert!(segment.fresh.is_empty(), "{:?} is being copied", segment.id);
        for run in segment.bytes.runs() {
            self.own(run, u32::MAX);
            region.give_back(run);
        }
        self.by_id.remove(&segment.id);
        self.unused.push(slot.0);
        self.freed.push(segment.id);
        self.change += 1;
    }

    /// Notes what replicas hold. True if something may follow from it.
    pub fn set_durable(&mut self, id: SegmentId, length: u32, closed: bool) -> bool {
        let Some(&slot) = self.by_id.get(&id) else {
            return false; // freed meanwhile
        };
        let segment = self.get_mut(slot);
        if segment.durable_closed {
            return false; // Said before; compaction may have made it shorter since.
        }
        assert!(
            length <= segment.length(),
            "{id:?}: bytes that were never appended are durable"
        );
        assert!(
            !closed || segment.closed && length == segment.length(),
            "{id:?} is not closed"
        );
        let before = (segment.durable, segment.durable_closed);
        segment.durable = segment.durable.max(length);
        segment.durable_closed |= closed;
        before != (segment.durable, segment.durable_closed)
    }

    /// Frees what durable digests omit.
    pub fn settle(&mut self, region: &mut Region) {
        while let Some(&id) = self.unsettled.front() {
            let head = self
                .by_id(id)
                .expect("a head stays until its digest is durable");
            let SegmentKind::Head { opening, follows } = head.kind else {
                unreachable!("only heads carry digests")
            };
            let predecessor = follows.and_then(|follows| self.by_id(follows));
            if head.durable < opening || predecessor.is_some_and(|it| !it.durable_closed) {
                return;
            }
            self.unsettled.pop_front();
            self.settled = id;
            let leaving: Vec<Slot> = self
                .iter()
                .filter(|(_, it)| matches!(it.state, State::Leaving(by) if by <= id))
                .map(|(slot, _)| slot)
                .collect();
            for slot in leaving {
                self.free(region, slot);
            }
        }
    }

    pub fn get(&self, slot: Slot) -> &Segment {
        self.slots[slot.0 as usize].as_ref().expect("a slot in use")
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut Segment {
        self.slots[slot.0 as usize].as_mut().expect("a slot in use")
    }

    pub fn by_id(&self, id: SegmentId) -> Option<&Segment> {
        self.by_id.get(&id).map(|&slot| self.get(slot))
    }

    /// In id order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Segment)> {
        self.by_id.values().map(|&slot| (slot, self.get(slot)))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn next_id(&self) -> SegmentId {
        SegmentId(self.last_id.0 + 1)
    }

    /// The highest id in use or used so far: the birth of a tombstone written now.
    pub fn last_id(&self) -> SegmentId {
        self.last_id
    }

    /// The lowest id that a durable digest may still name: tombstones with an older birth may go.
    pub fn oldest_id(&self) -> SegmentId {
        *self.by_id.keys().next().expect("there is always a head")
    }

    pub fn settled(&self) -> SegmentId {
        self.settled
    }

    pub fn change(&self) -> u64 {
        self.change
    }

    pub fn live(&self) -> u64 {
        self.live
    }

    pub fn take_freed(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.freed)
    }

    /// The segment that holds the byte at `offset` of the region.
    #[inline]
    pub fn at(&self, region: &Region, offset: u64) -> Slot {
        let owner = self.owners[region.seglet_of(offset) as usize];
        assert!(owner != u32::MAX, "no segment has the byte at {offset}");
        Slot(owner)
    }

    /// Counts an entry as live or not (I3).
    #[inline]
    pub fn add_live(&mut self, slot: Slot, bytes: usize) {
        self.get_mut(slot).live += bytes as u32;
        self.live += bytes as u64;
    }

    #[inline]
    pub fn end_live(&mut self, region: &Region, offset: u64, bytes: usize) -> Slot {
        let slot = self.at(region, offset);
        let segment = self.get_mut(slot);
        assert!(
            segment.live >= bytes as u32,
            "{:?} has fewer live bytes than that",
            segment.id
        );
        segment.live -= bytes as u32;
        self.live -= bytes as u64;
        slot
    }

    /// Moves live bytes from one segment to another.
    #[inline]
    pub fn move_live(&mut self, from: Slot, to: Slot, bytes: usize) {
        self.get_mut(from).live -= bytes as u32;
        self.get_mut(to).live += bytes as u32;
    }

    /// Counts the bytes of a live entry as those of a tombstone, too.
    pub fn add_tombstone(&mut self, slot: Slot, bytes: usize, birth: SegmentId) {
        let segment = self.get_mut(slot);
        segment.tombstones += bytes as u32;
        segment.births = segment.births.max(birth);
        self.tombstones += bytes as u64;
    }

    pub fn end_tombstone(&mut self, slot: Slot, bytes: usize) {
        self.get_mut(slot).tombstones -= bytes as u32;
        self.tombstones -= bytes as u64;
    }

    /// Live bytes of a segment are going to expire. `now`: to begin its statistics with, if these are the first.
    #[inline]
    pub fn add_lifetime(&mut self, slot: Slot, deadline: ClusterMs, bytes: u32, now: ClusterMs) {
        let lifetimes = &mut self.get_mut(slot).lifetimes;
        let lifetimes = lifetimes.get_or_insert_with(|| Box::new(Lifetimes::new(now)));
        lifetimes.add(Some(deadline), bytes);
    }

    /// They have gone, or got another deadline.
    #[inline]
    pub fn take_lifetime(&mut self, slot: Slot, deadline: ClusterMs, bytes: u32) {
        if let Some(lifetimes) = &mut self.get_mut(slot).lifetimes {
            lifetimes.take(Some(deadline), bytes);
        }
    }

    /// Some of the bytes that are going to expire are those of a touch, or no longer.
    #[inline]
    pub fn count_touch(&mut self, slot: Slot, bytes: u32, counts: bool) {
        if let Some(lifetimes) = &mut self.get_mut(slot).lifetimes {
            match counts {
                true => lifetimes.add_touch(bytes),
                false => lifetimes.take_touch(bytes),
            }
        }
    }

    /// Live bytes of tombstones of both kinds.
    pub fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// True if all replicas hold everything up to `end`, and all that must come before it.
    pub fn is_durable(&self, end: Position) -> bool {
        // Heads settle in order, each with its predecessor closed.
        self.settled >= end.segment
            && (self.by_id(end.segment))
                .is_none_or(|it| it.durable_closed || it.durable >= end.offset)
    }

    /// True if the cleaner may copy a segment (C1): it is closed on replicas, a durable digest names it, and no
    /// recovery could still take it for the end of the log.
    pub fn is_cleanable(&self, segment: &Segment) -> bool {
        segment.state == State::Member
            && segment.durable_closed
            && !segment.busy
            && (segment.kind == SegmentKind::Side || segment.id < self.settled)
    }

    /// Seglets of all segments.
    pub fn seglets(&self) -> u32 {
        let seglets = |it: &Segment| it.bytes.seglets() + it.fresh.seglets();
        self.iter_unordered().map(|(_, it)| seglets(it)).sum()
    }

    /// All segments in no particular order, which is faster.
    pub fn iter_unordered(&self) -> impl Iterator<Item = (Slot, &Segment)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, it)| Some((Slot(slot as u32), it.as_ref()?)))
    }

    /// What a driver must replicate of a segment.
    pub fn goal(&self, segment: &Segment) -> SegmentGoal {
        let kind = match segment.kind {
            SegmentKind::Head { opening, follows } => SegmentKind::Head {
                opening,
                // A predecessor that has been freed was closed on all its replicas before.
                follows: follows.filter(|follows| self.by_id.contains_key(follows)),
            },
            SegmentKind::Side => SegmentKind::Side,
        };
        SegmentGoal {
            id: segment.id,
            length: segment.length(),
            closed: segment.closed,
            rewrite: segment.rewrite,
            kind,
        }
    }

    pub fn goals(&self) -> impl Iterator<Item = SegmentGoal> + '_ {
        self.iter().map(|(_, segment)| self.goal(segment))
    }

    fn own(&mut self, run: Run, owner: u32) {
        for seglet in run.first..run.first + run.count {
            self.owners[seglet as usize] = owner;
        }
    }
}
