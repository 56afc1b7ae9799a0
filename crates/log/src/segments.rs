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
//!     tombstones still point at.

use std::collections::{BTreeMap, VecDeque};

use holdfast_format::SegmentId;

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
    pub run: Run,
    /// Where its bytes begin in the region.
    pub start: u64,
    pub capacity: u32,
    /// Bytes appended.
    pub length: u32,
    pub live: u32,
    pub closed: bool,
    /// `SegmentGoal::rewrite`.
    pub rewrite: u32,
    pub kind: SegmentKind,
    pub state: State,
    /// What `set_durable` has said.
    pub durable: u32,
    pub durable_closed: bool,
}

impl Segment {
    pub fn room(&self) -> u32 {
        self.capacity - self.length
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
        }
    }

    /// Enters a new segment that has `run`. Its id is `next_id()` before the call.
    pub fn open(&mut self, region: &Region, run: Run, kind: SegmentKind, state: State) -> Slot {
        self.last_id = self.next_id();
        let slot = match self.unused.pop() {
            Some(slot) => Slot(slot),
            None => {
                self.slots.push(None);
                Slot(self.slots.len() as u32 - 1)
            }
        };
        self.own(run, slot.0);
        self.slots[slot.0 as usize] = Some(Segment {
            id: self.last_id,
            run,
            start: region.offset_of(run.first),
            capacity: run.count * region.seglet_bytes() as u32,
            length: 0,
            live: 0,
            closed: false,
            rewrite: 0,
            kind,
            state,
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
        let seglet_bytes = region.seglet_bytes() as u32;
        let segment = self.get_mut(slot);
        let keep = segment.length.div_ceil(seglet_bytes).max(1);
        let tail = Run {
            first: segment.run.first + keep,
            count: segment.run.count - keep,
        };
        segment.run.count = keep;
        segment.capacity = keep * seglet_bytes;
        self.own(tail, u32::MAX);
        region.give_back(tail);
        tail
    }

    /// Undoes `cut_tail`.
    pub fn restore_tail(&mut self, region: &mut Region, slot: Slot, tail: Run) {
        region.take_back(tail);
        self.own(tail, slot.0);
        let seglet_bytes = region.seglet_bytes() as u32;
        let segment = self.get_mut(slot);
        segment.run.count += tail.count;
        segment.capacity += tail.count * seglet_bytes;
    }

    /// Forgets a segment: its memory is free, its replicas may be freed.
    pub fn free(&mut self, region: &mut Region, slot: Slot) {
        let segment = self.slots[slot.0 as usize].take().expect("a slot in use");
        assert_eq!(
            segment.live, 0,
            "{:?} is freed with live entries",
            segment.id
        );
        self.own(segment.run, u32::MAX);
        region.give_back(segment.run);
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
        assert!(
            length <= segment.length,
            "{id:?}: bytes that were never appended are durable"
        );
        assert!(
            !closed || segment.closed && length == segment.length,
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
    pub fn add_live(&mut self, region: &Region, offset: u64, bytes: usize) {
        let slot = self.at(region, offset);
        self.get_mut(slot).live += bytes as u32;
        self.live += bytes as u64;
    }

    #[inline]
    pub fn end_live(&mut self, region: &Region, offset: u64, bytes: usize) {
        let slot = self.at(region, offset);
        let segment = self.get_mut(slot);
        assert!(
            segment.live >= bytes as u32,
            "{:?} has fewer live bytes than that",
            segment.id
        );
        segment.live -= bytes as u32;
        self.live -= bytes as u64;
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
            length: segment.length,
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
