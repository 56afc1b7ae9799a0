//! The segments that a recovery reads: in which order, and each from one holder after another (V3).

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_cluster::ViewExt;
use holdfast_format::{LogId, SegmentId, ServerId};
use holdfast_wire::{Certificate, Holder, Recover, RecoverSegment, View};

use super::part::ROUNDS_MAX;

/// A fetch that brings nothing for so long is sent to the next holder; doubles with each round.
const FETCH_TIMEOUT_US: u64 = 700_000;

/// One segment that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The dead log, or one that it leant on.
    pub log: LogId,
    pub segment: RecoverSegment,
    /// Must be durable before the ranges are taken over.
    pub first: bool,
}

/// One segment that is being fetched.
#[derive(Debug)]
pub(super) struct Fetching {
    pub log: LogId,
    pub segment: RecoverSegment,
    pub first: bool,
    pub holder: usize,
    pub round: u32,
    pub next_part: u32,
    pub received_all: bool,
    pub parts: VecDeque<Bytes>,
    /// All holders have failed; the next round begins at `due_us`.
    pub resting: bool,
    pub due_us: u64,
}

impl Fetching {
    pub fn is_of(&self, log: LogId, segment: SegmentId) -> bool {
        (self.log, self.segment.segment) == (log, segment)
    }

    /// Whom it asks now.
    pub fn source(&self) -> Holder {
        self.segment.holders[self.holder]
    }

    /// Of the replica that it asks for.
    pub fn length(&self) -> u64 {
        u64::from(self.source().certificate.length)
    }

    /// True if an answer with this certificate is to what it asks now.
    pub fn asks(&self, from: ServerId, certificate: Certificate) -> bool {
        let source = self.source();
        (source.backup, source.certificate) == (from, certificate)
    }

    /// What has been replayed of it does no harm: replay takes duplicates.
    pub fn begin_again(&mut self) {
        self.parts.clear();
        self.next_part = 0;
        self.received_all = false;
    }

    /// Turns to the next holder that is up, or simply the next one if none is.
    pub fn next_holder(&mut self, view: &View) {
        let holders = &self.segment.holders;
        for _ in 0..holders.len() {
            self.holder += 1;
            if self.holder == holders.len() {
                self.holder = 0;
                self.round += 1;
            }
            if view.is_up(holders[self.holder].backup) {
                return;
            }
        }
    }
}

/// What is to be read: first what must be durable first, then the newest segments first, because what they hold
/// need not be kept twice.
pub(super) fn sources(recover: &Recover) -> VecDeque<Source> {
    let own = (recover.segments.iter()).map(|segment| (recover.log, segment));
    let leant_on = (recover.leant_on.iter())
        .flat_map(|it| it.segments.iter().map(|segment| (it.log, segment)));
    let is_first = |log: LogId, segment: SegmentId| {
        let first = recover.first.as_ref();
        log == recover.log && first.is_some_and(|first| first.contains(&segment))
    };
    let mut sources: Vec<Source> = own
        .chain(leant_on)
        .map(|(log, segment)| Source {
            log,
            segment: segment.clone(),
            first: is_first(log, segment.segment),
        })
        .collect();
    // Of the log itself before those that it leant on, which are older.
    sources.sort_by_key(|it| {
        let older = it.log != recover.log;
        (!it.first, older, std::cmp::Reverse(it.segment.segment))
    });
    sources.into()
}

pub(super) fn timeout_us(round: u32) -> u64 {
    FETCH_TIMEOUT_US << round.min(ROUNDS_MAX)
}
