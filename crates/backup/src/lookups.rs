//! Serving recovery masters one key at a time: its entries in a replica, of which nothing else is read (design notes,
//! "Serving early").
//!
//! ```text
//! LookUp --index of the replica--> no block: LookedUp, nothing
//!                              └─> a block or two: read, compared with the index --> LookedUp
//! ```
//!
//! K1. What is sent was checked block by block against the index, which was made of bytes that had been checked against
//!     the certificate (O1 of `outlines`). A block that is not as it was has the whole replica read and judged.
//! K2. Who cannot be answered is told so at once, and fetches the segment instead.
//!
//! Bounds: `lookups_max` wait or are read for, `READS_MAX` of them at once, some 32 KiB each; `ANSWER_BYTES_MAX` in an answer.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{DiskError, DiskOp, FRAME_HEADER_BYTES, FrameId, Output, Outputs};
use holdfast_format::{KeyHash, LogId, SegmentId, ServerId, SparseIndex};
use holdfast_wire::{Certificate, Message};

use crate::backup::Backup;

/// As many small reads as a disk does well at once.
const READS_MAX: usize = 32;

/// With more than this the segment is no more to read than the key.
const ANSWER_BYTES_MAX: usize = 512 << 10;

/// What a recovery master asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookUp {
    pub log: LogId,
    pub segment: SegmentId,
    pub attempt: u64,
    pub certificate: Certificate,
    pub key: KeyHash,
}

/// One that waits, or whose block is being read.
#[derive(Debug)]
pub(crate) struct Lookup {
    to: ServerId,
    asked: LookUp,
    frame: FrameId,
    /// Of the replica: the frame may hold another one later.
    birth: u64,
    blocks: VecDeque<usize>,
    found: Vec<u8>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    waiting: VecDeque<Lookup>,
    /// By the token of their read.
    reading: BTreeMap<u64, Lookup>,
}

impl Lookups {
    /// Whoever asked is gone. What is being read for it is dropped when it comes.
    pub fn forget_requester(&mut self, peer: ServerId) {
        self.waiting.retain(|lookup| lookup.to != peer);
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.reading.len()
    }

    /// The one whose block this read was for, if it was for one.
    pub fn take_read(&mut self, token: u64) -> Option<Lookup> {
        self.reading.remove(&token)
    }
}

impl Backup {
    pub(crate) fn take_look_up(&mut self, from: ServerId, asked: LookUp, out: &mut Outputs) {
        self.counts.lookups += 1;
        if self.lookups.len() >= self.config.lookups_max as usize {
            return self.answer_look_up(from, &asked, None, out);
        }
        let copies = self.frames.of_segment(asked.log, asked.segment).iter();
        let source = copies.copied().find_map(|id| {
            let replica = self.frames.replica(id)?;
            let is_it =
                replica.closed && !replica.rotten && replica.certificate == Some(asked.certificate);
            let index = replica.outline.index().filter(|_| is_it)?;
            Some((id, replica.birth, index.find(asked.key).into()))
        });
        let Some((frame, birth, blocks)) = source else {
            return self.answer_look_up(from, &asked, None, out);
        };
        self.lookups.waiting.push_back(Lookup {
            to: from,
            asked,
            frame,
            birth,
            blocks,
            found: Vec::new(),
        });
        self.pump_lookups(out);
    }

    /// Has blocks read for those that wait, and answers those that need none.
    pub(crate) fn pump_lookups(&mut self, out: &mut Outputs) {
        while self.lookups.reading.len() < READS_MAX
            && let Some(lookup) = self.lookups.waiting.pop_front()
        {
            let Some(&block) = lookup.blocks.front() else {
                let found = Bytes::from(lookup.found);
                self.answer_look_up(lookup.to, &lookup.asked, Some(found), out);
                continue;
            };
            let Some(place) = self.index_for(&lookup).map(|index| index.place(block)) else {
                // It was freed.
                self.answer_look_up(lookup.to, &lookup.asked, None, out);
                continue;
            };
            let token = self.token();
            out.push(Output::Disk(DiskOp::Read {
                token,
                frame: lookup.frame,
                offset: FRAME_HEADER_BYTES + place.start,
                length: place.end - place.start,
                from_medium: false,
            }));
            self.lookups.reading.insert(token, lookup);
        }
    }

    /// A block has been read.
    pub(crate) fn look_up_read(
        &mut self,
        mut lookup: Lookup,
        result: Result<Bytes, DiskError>,
        out: &mut Outputs,
    ) {
        let id = lookup.frame;
        let block = lookup.blocks.pop_front().expect("it was read for one");
        let index = self.index_for(&lookup);
        let found = match (index, &result) {
            (Some(index), Ok(bytes)) => index.entries_in(block, bytes, lookup.asked.key).ok(),
            _ => None,
        };
        let was_there = index.is_some();
        match found {
            Some(found) if lookup.found.len() + found.len() <= ANSWER_BYTES_MAX => {
                lookup.found.extend_from_slice(&found);
                self.lookups.waiting.push_front(lookup);
                return;
            }
            Some(_) => {}
            None => match result {
                Err(error) => self.break_down(id, &error.to_string(), out),
                // K1.
                Ok(_) if was_there => self.reads.want(id),
                Ok(_) => {}
            },
        }
        self.answer_look_up(lookup.to, &lookup.asked, None, out);
    }

    /// The index of its replica, unless that was freed.
    fn index_for(&self, lookup: &Lookup) -> Option<&SparseIndex> {
        let replica = self.frames.replica(lookup.frame);
        let same = replica.filter(|it| it.birth == lookup.birth);
        same.and_then(|it| it.outline.index())
    }

    fn answer_look_up(
        &mut self,
        to: ServerId,
        asked: &LookUp,
        entries: Option<Bytes>,
        out: &mut Outputs,
    ) {
        self.counts.lookups_failed += u64::from(entries.is_none());
        let answer = Message::LookedUp {
            log: asked.log,
            segment: asked.segment,
            attempt: asked.attempt,
            key: asked.key,
            entries,
        };
        out.send(to, answer);
    }
}
