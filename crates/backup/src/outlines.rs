//! Outlines of replicas: what each may say something about, for recovery masters that serve early
//! (design notes, "Serving early").
//!
//! An outline is made while a replica's bytes come, when they are in the processor's caches anyway, and kept in memory
//! together with an index of where its keys are (`lookups`): ten bits for each entry with a key, and 20 more. Of what an
//! earlier incarnation left it is made when the bytes are read and verified, which a fence has done before anybody can ask.
//!
//! O1. Only of a closed replica is there an outline to be had, and it is that of all its bytes: what came was checked
//!     against the certificate, what was read too.

use bytes::Bytes;
use holdfast_cluster::Outputs;
use holdfast_format::{LogId, Outlining, SegmentId, ServerId, SparseIndex};
use holdfast_wire::Message;

use crate::backup::Backup;

/// Segments answered for in one message's turn; who wants more asks again.
const ANSWERED_MAX: usize = 1024;

/// What is known of a replica's outline.
#[derive(Clone, Debug)]
pub(crate) enum Outlined {
    /// Its bytes are still coming.
    Coming(Box<Outlining>),
    Made(Box<Made>),
    Unknown,
}

/// Of all bytes of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// As it travels.
    outline: Bytes,
    index: SparseIndex,
}

impl Outlined {
    pub fn begin() -> Outlined {
        Outlined::Coming(Box::default())
    }

    /// The next bytes of the replica.
    pub fn add(&mut self, bytes: &[u8]) {
        if let Outlined::Coming(outlining) = self {
            outlining.add(bytes);
        }
    }

    /// The replica is closed, or all of its bytes have been read.
    pub fn finish(&mut self) {
        if let Outlined::Coming(outlining) = self {
            *self = match std::mem::take(&mut **outlining).finish() {
                Some((outline, index)) => Outlined::Made(Box::new(Made {
                    outline: outline.encode().into(),
                    index,
                })),
                None => Outlined::Unknown,
            };
        }
    }

    /// The bytes of a whole replica, if nothing is known of them yet.
    pub fn read(&mut self, bytes: &[u8]) {
        if matches!(self, Outlined::Unknown) {
            *self = Outlined::begin();
            self.add(bytes);
            self.finish();
        }
    }

    fn made(&self) -> Option<&Made> {
        match self {
            Outlined::Made(made) => Some(made),
            Outlined::Coming(_) | Outlined::Unknown => None,
        }
    }

    pub fn outline(&self) -> Option<&Bytes> {
        self.made().map(|made| &made.outline)
    }

    pub fn index(&self) -> Option<&SparseIndex> {
        self.made().map(|made| &made.index)
    }

    /// Memory that it takes, once it is made.
    pub fn memory_bytes(&self) -> usize {
        let made = self.made();
        made.map_or(0, |made| made.outline.len() + made.index.memory_bytes())
    }
}

impl Backup {
    pub(crate) fn take_ask_outlines(
        &mut self,
        from: ServerId,
        log: LogId,
        attempt: u64,
        segments: &[SegmentId],
        out: &mut Outputs,
    ) {
        for &segment in segments.iter().take(ANSWERED_MAX) {
            let copies = self.frames.of_segment(log, segment).iter();
            let mut closed = copies
                .filter_map(|&id| self.frames.replica(id))
                .filter(|replica| replica.closed);
            let outline = closed
                .find_map(|replica| replica.outline.outline())
                .cloned();
            self.counts.outlines += u64::from(outline.is_some());
            let answer = Message::Outline {
                log,
                segment,
                attempt,
                outline,
            };
            out.send(from, answer);
        }
    }
}
