//! The frames of the store: which replica is in which, which are free, and writing to them.
//!
//! ```text
//! Free --place--> Held --free--> Free
//!                  |  ^
//!                  +--+ begin_again (only without a certificate)
//!  any --break_down--> Broken
//! ```
//!
//! F1. A frame is in `by_segment` just while it is `Held`, and in `free` just while it is `Free`.
//! F2. Bytes are written before the header that certifies them.
//! F3. While replicas are acknowledged from memory, every change of what is promised goes to the
//!     header at once. While they are acknowledged from disk, headers of held frames are written only
//!     by `flush.rs`, which keeps H2.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;
use holdfast_cluster::{DiskOp, FRAME_HEADER_BYTES, FrameId, Output, Outputs};
use holdfast_format::{ClusterMs, Epoch, LogId, SegmentId};
use holdfast_wire::Certificate;

use crate::header::{Header, Slots, State};
use crate::outlines::Outlined;
use crate::replica::{Promise, Replica};

/// Replicas of one segment that may be held at a time: the old one, its replacement, and one more
/// that was begun when the master lost track of the replacement.
pub(crate) const COPIES_MAX: usize = 3;

#[derive(Debug)]
pub(crate) enum Content {
    Free,
    Broken,
    Held(Replica),
}

#[derive(Debug)]
pub(crate) struct Frame {
    /// Of the header slot written last.
    pub sequence: u64,
    pub content: Content,
    /// Something was written since the last sync began.
    pub dirty: bool,
    pub syncing: Option<Syncing>,
    pub sync_queued: bool,
    /// What the last completed sync made durable of the replica held now.
    pub durable: Option<Promise>,
    /// What an earlier incarnation's header promises, until that has been synced.
    pub found: Option<Promise>,
}

/// A sync under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syncing {
    /// The replica it is for; the frame may hold another one by the time it completes.
    pub birth: u64,
    pub target: Promise,
    pub grant: Option<crate::replica::Grant>,
}

#[derive(Debug)]
pub(crate) struct Frames {
    frames: Vec<Frame>,
    free: BTreeSet<FrameId>,
    by_segment: BTreeMap<(LogId, SegmentId), Vec<FrameId>>,
    reserved: usize,
    broken: usize,
    /// What was in broken frames and counted.
    broken_replicas: BTreeMap<FrameId, (LogId, SegmentId)>,
    births: u64,
}

impl Frames {
    /// All free; `restore` then tells what is found in each.
    pub fn new(frames: u32, reserved: u32) -> Frames {
        let frame = |_| Frame {
            sequence: 0,
            content: Content::Free,
            dirty: false,
            syncing: None,
            sync_queued: false,
            durable: None,
            found: None,
        };
        Frames {
            frames: (0..frames).map(frame).collect(),
            free: (0..frames).map(FrameId).collect(),
            by_segment: BTreeMap::new(),
            reserved: reserved as usize,
            broken: 0,
            broken_replicas: BTreeMap::new(),
            births: 0,
        }
    }

    /// Takes over what an earlier incarnation left in a frame.
    pub fn restore(&mut self, id: FrameId, slots: &Slots) {
        let Some(newest) = slots.newest else {
            return;
        };
        self.frames[id.0 as usize].sequence = newest.sequence;
        let closed = match newest.state {
            State::Free => return,
            State::Broken => {
                self.free.remove(&id);
                self.frames[id.0 as usize].content = Content::Broken;
                self.broken += 1;
                if newest.log != LogId(0) {
                    let held = (newest.log, newest.segment);
                    self.broken_replicas.insert(id, held);
                }
                return;
            }
            State::Open => false,
            State::Closed => true,
        };
        // H2: only an older state of this very replica can be fallen back to, and never from `Closed`.
        let fallback = slots.older.filter(|older| {
            newest.synced
                && older.synced
                && !closed
                && older.state == State::Open
                && (older.log, older.segment) == (newest.log, newest.segment)
                && older.certificate.length < newest.certificate.length
        });
        self.births += 1;
        let replica = Replica {
            log: newest.log,
            segment: newest.segment,
            birth: self.births,
            epoch: newest.epoch,
            length: newest.certificate.length,
            crc: None,
            opening: Certificate::default(),
            told: None,
            outline: Outlined::Unknown,
            sent_us: 0,
            certificate: Some(newest.certificate),
            closed,
            ceiling: newest.ceiling,
            checked: false,
            rotten: false,
            restored: true,
            fallback: fallback.map(|older| older.certificate),
            owed: None,
            active_us: 0,
        };
        let found = replica.promise(newest.fence);
        self.hold(id, replica);
        let frame = self.frame_mut(id);
        frame.dirty = true;
        frame.found = found;
    }

    pub fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id.0 as usize]
    }

    pub fn frame_mut(&mut self, id: FrameId) -> &mut Frame {
        &mut self.frames[id.0 as usize]
    }

    /// The replica in a frame, if it holds one.
    pub fn replica(&self, id: FrameId) -> Option<&Replica> {
        match &self.frame(id).content {
            Content::Held(replica) => Some(replica),
            Content::Free | Content::Broken => None,
        }
    }

    pub fn replica_mut(&mut self, id: FrameId) -> Option<&mut Replica> {
        match &mut self.frame_mut(id).content {
            Content::Held(replica) => Some(replica),
            Content::Free | Content::Broken => None,
        }
    }

    /// The replicas held of a segment, oldest first.
    pub fn of_segment(&self, log: LogId, segment: SegmentId) -> &[FrameId] {
        self.by_segment
            .get(&(log, segment))
            .map_or(&[], Vec::as_slice)
    }

    /// The frames of all replicas held of a log, in the order of its segments.
    pub fn of_log(&self, log: LogId) -> impl Iterator<Item = FrameId> + '_ {
        let all: RangeInclusive<_> = (log, SegmentId(0))..=(log, SegmentId(u64::MAX));
        self.by_segment
            .range(all)
            .flat_map(|(_, frames)| frames.iter().copied())
    }

    pub fn holds_log(&self, log: LogId) -> bool {
        self.of_log(log).next().is_some()
    }

    /// Every log of which something is held.
    pub fn logs(&self) -> Vec<LogId> {
        let mut logs: Vec<LogId> = self.by_segment.keys().map(|(log, _)| *log).collect();
        logs.dedup();
        logs
    }

    /// Frames that hold a replica.
    pub fn held(&self) -> impl Iterator<Item = (FrameId, &Replica)> + '_ {
        (0..self.len())
            .map(FrameId)
            .filter_map(|id| Some((id, self.replica(id)?)))
    }

    /// Segments of which more than one replica is held.
    pub fn crowded(&self) -> Vec<Vec<FrameId>> {
        self.by_segment
            .values()
            .filter(|frames| frames.len() > 1)
            .cloned()
            .collect()
    }

    pub fn len(&self) -> u32 {
        self.frames.len() as u32
    }

    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    pub fn broken_count(&self) -> usize {
        self.broken
    }

    pub fn held_count(&self) -> usize {
        self.frames.len() - self.free.len() - self.broken
    }

    /// Puts a new replica into a free frame. The last few are kept for replacements.
    /// `None`: there is no room. `replica.birth` is set here.
    pub fn place(&mut self, replica: Replica) -> Option<FrameId> {
        let copies = self.of_segment(replica.log, replica.segment).len();
        let reserved = if copies > 0 { 0 } else { self.reserved };
        if copies >= COPIES_MAX || self.free.len() <= reserved {
            return None;
        }
        let id = *self.free.first()?;
        self.births += 1;
        self.hold(
            id,
            Replica {
                birth: self.births,
                ..replica
            },
        );
        Some(id)
    }

    /// The newer header slot's bytes are not what it certifies, those of the older one are: the replica
    /// is what that one says, and the next header takes the newer one's place (H2).
    pub fn fall_back(&mut self, id: FrameId, certificate: Certificate) {
        let frame = self.frame_mut(id);
        frame.sequence -= 1;
        for promise in [&mut frame.durable, &mut frame.found].into_iter().flatten() {
            promise.certificate = certificate;
        }
        let replica = self.replica_mut(id).expect("only held frames are read");
        replica.certificate = Some(certificate);
        replica.length = certificate.length;
    }

    /// Replaces a replica that has no certificate, in its own frame.
    pub fn begin_again(&mut self, id: FrameId, replica: Replica) {
        let old = self.replica(id).expect("only held frames begin again");
        assert_eq!(old.certificate, None, "{id:?} would lose certified bytes");
        assert_eq!((old.log, old.segment), (replica.log, replica.segment));
        self.births += 1;
        let birth = self.births;
        let frame = self.frame_mut(id);
        frame.content = Content::Held(Replica { birth, ..replica });
        frame.durable = None;
        frame.found = None;
    }

    /// The replica's bytes are not what is certified. Nothing is owed for it any more.
    pub fn condemn(&mut self, id: FrameId) {
        let replica = self.replica_mut(id).expect("only held frames are read");
        replica.rotten = true;
        replica.checked = false;
        replica.crc = None;
        replica.fallback = None;
        replica.owed = None;
        // Offered to its master until that has made it again, or needs it no more.
        replica.restored = true;
        if let Some(syncing) = &mut self.frame_mut(id).syncing {
            syncing.grant = None;
        }
    }

    /// Replicas of a log that counted, and of which nothing can be read any more: segment, epoch as far
    /// as it is known, and whether it was closed.
    pub fn bad_of_log(&self, log: LogId) -> Vec<(SegmentId, Epoch, bool)> {
        let rotten = (self.of_log(log))
            .filter_map(|id| self.replica(id))
            .filter(|replica| replica.rotten)
            .map(|replica| (replica.segment, replica.epoch, replica.closed));
        let broken = (self.broken_replicas.values())
            .filter(|(other, _)| *other == log)
            .map(|(_, segment)| (*segment, Epoch(0), false));
        let mut bad: Vec<_> = rotten.chain(broken).collect();
        bad.sort_unstable();
        bad
    }

    /// Nobody will ask what of this log was in frames that broke.
    pub fn forget_broken(&mut self, log: LogId) {
        self.broken_replicas.retain(|_, (other, _)| *other != log);
    }

    /// Lets a replica go.
    pub fn free(&mut self, id: FrameId, out: &mut Outputs) {
        let Some(replica) = self.take(id) else {
            return;
        };
        self.free.insert(id);
        // Without a certificate it never had a header (F3), and its frame still says `Free`.
        if replica.certificate.is_some() {
            let header = self.header_for(id, State::Free, &replica, None);
            self.write_header(id, header, out);
        }
    }

    /// Takes a frame out of service, whatever it holds.
    pub fn break_down(&mut self, id: FrameId, out: &mut Outputs) {
        if matches!(self.frame(id).content, Content::Broken) {
            return;
        }
        // Without a certificate it never counted.
        let replica = self
            .take(id)
            .filter(|replica| replica.certificate.is_some());
        self.free.remove(&id);
        self.frame_mut(id).content = Content::Broken;
        self.broken += 1;
        if let Some(replica) = &replica {
            let held = (replica.log, replica.segment);
            self.broken_replicas.insert(id, held);
        }
        let header = Header {
            sequence: self.frame(id).sequence + 1,
            state: State::Broken,
            log: replica.as_ref().map_or(LogId(0), |replica| replica.log),
            segment: replica
                .as_ref()
                .map_or(SegmentId(0), |replica| replica.segment),
            epoch: Epoch(0),
            fence: Epoch(0),
            ceiling: ClusterMs(0),
            certificate: Certificate::default(),
            synced: false,
        };
        self.write_header(id, header, out);
    }

    /// Copies bytes behind what the replica holds.
    pub fn write_bytes(&mut self, id: FrameId, at: u32, bytes: Bytes, out: &mut Outputs) {
        let frame = self.frame_mut(id);
        frame.dirty = true;
        let offset = FRAME_HEADER_BYTES + at;
        out.push(Output::Disk(DiskOp::Write {
            frame: id,
            offset,
            bytes,
        }));
    }

    /// Writes what is promised of a certified replica into its frame's header. A closing one takes both
    /// slots: rot in either must not show it as open again, or as shorter (R2 leans on that).
    pub fn write_promise(
        &mut self,
        id: FrameId,
        promise: Promise,
        synced: bool,
        out: &mut Outputs,
    ) {
        let replica = self
            .replica(id)
            .expect("only held frames promise anything")
            .clone();
        let state = if promise.closed {
            State::Closed
        } else {
            State::Open
        };
        let slots = if promise.closed && !synced { 2 } else { 1 };
        for _ in 0..slots {
            let header = self.header_for(id, state, &replica, Some((promise, synced)));
            self.write_header(id, header, out);
        }
    }

    fn header_for(
        &self,
        id: FrameId,
        state: State,
        replica: &Replica,
        promise: Option<(Promise, bool)>,
    ) -> Header {
        let synced = promise.is_some_and(|(_, synced)| synced);
        let promise = promise.map(|(promise, _)| promise);
        Header {
            sequence: self.frame(id).sequence + 1,
            state,
            log: replica.log,
            segment: replica.segment,
            epoch: promise.map_or(replica.epoch, |promise| promise.epoch),
            fence: promise.map_or(Epoch(0), |promise| promise.fence),
            ceiling: promise.map_or(ClusterMs(0), |promise| promise.ceiling),
            certificate: promise.map_or(Certificate::default(), |promise| promise.certificate),
            synced,
        }
    }

    fn write_header(&mut self, id: FrameId, header: Header, out: &mut Outputs) {
        let frame = self.frame_mut(id);
        frame.sequence = header.sequence;
        frame.dirty = true;
        out.push(Output::Disk(DiskOp::Write {
            frame: id,
            offset: header.offset(),
            bytes: header.encode(),
        }));
    }

    fn hold(&mut self, id: FrameId, replica: Replica) {
        assert!(self.free.remove(&id), "{id:?} is not free");
        self.by_segment
            .entry((replica.log, replica.segment))
            .or_default()
            .push(id);
        let frame = self.frame_mut(id);
        frame.content = Content::Held(replica);
        frame.durable = None;
        frame.found = None;
    }

    fn take(&mut self, id: FrameId) -> Option<Replica> {
        let frame = self.frame_mut(id);
        let replica = match std::mem::replace(&mut frame.content, Content::Free) {
            Content::Held(replica) => replica,
            other => {
                frame.content = other;
                return None;
            }
        };
        frame.durable = None;
        frame.found = None;
        let key = (replica.log, replica.segment);
        let frames = self.by_segment.get_mut(&key).expect("F1");
        frames.retain(|&other| other != id);
        if frames.is_empty() {
            self.by_segment.remove(&key);
        }
        Some(replica)
    }
}
