//! Which closed replicas of one segment are not the same: those made before and after a compaction.

use std::collections::BTreeMap;

use holdfast_format::{LogId, SegmentId};
use holdfast_wire::{Certificate, Message};

/// Sees every append that arrives at a backup.
#[derive(Debug, Default)]
pub struct Closings {
    /// The first certificate under which a replica of a segment was to be closed.
    first: BTreeMap<(LogId, SegmentId), Certificate>,
    /// Appends that closed a replica under another one.
    pub others: u64,
}

impl Closings {
    pub fn watch(&mut self, message: &Message) {
        if let Some((segment, certificate)) = closing(message) {
            let first = *self.first.entry(segment).or_insert(certificate);
            self.others += u64::from(first != certificate);
        }
    }
}

/// What an append closes, and under which certificate.
pub fn closing(message: &Message) -> Option<((LogId, SegmentId), Certificate)> {
    match message {
        Message::Append(append) if append.close => {
            Some(((append.log, append.segment), append.certificate?))
        }
        _ => None,
    }
}
