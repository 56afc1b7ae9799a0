//! Serving a range before all of it has been replayed (design notes, "Serving early"; ADR 13).
//!
//! ```text
//! outlines asked for ──all known, head replayed──> head committed ──told──> owner ──last segment replayed──> (over)
//!        └─ nobody has one: that segment is replayed before anything is told
//! ```
//!
//! The rules are E1 to E8 of that section. Here: what is known of segments that have not been replayed (E1, E2, E3). Nothing
//! is concluded from what there is of a key that one of them may be about.
//!
//! E8. A key that somebody waits for is looked up in the segments that admit it (`lookups`): when each has been asked for
//!     its entries and these have been replayed it is as final as if the segments had been. They bring the same entries
//!     again later, which changes nothing, whatever was done to the key meanwhile: what this log says of it is newer, and no
//!     tombstone ends (V4). A recovery from both logs relies on the same.
//!
//! Bounds: an outline takes some ten bits for each entry, those of a recovery about 1 % of the dead log.

use std::collections::BTreeMap;

use holdfast_cluster::{Now, Outputs, ViewExt};
use holdfast_format::{KeyHash, LogId, Outline, SegmentId, ServerId};
use holdfast_wire::{Holder, Message, Once, RecoverSegment, View};

use super::fetching::Source;
use super::lookups::{Lookups, Of};

/// An outline that does not come is asked of the next holder.
const ASK_US: u64 = 60_000;

/// So often round all holders, then it is taken that nobody has one.
const ASK_ROUNDS: usize = 2;

/// A segment of which the outline is not known.
#[derive(Debug)]
struct Sought {
    log: LogId,
    segment: RecoverSegment,
    holder: usize,
    asked: usize,
    due_us: u64,
}

/// A segment that has not been replayed, and what it may say something about.
#[derive(Debug)]
struct Known {
    outline: Outline,
    holders: Vec<Holder>,
}

/// What is needed to serve a recovery's ranges early.
#[derive(Debug, Default)]
pub(super) struct Early {
    sought: Vec<Sought>,
    known: BTreeMap<Of, Known>,
    /// Nobody has outlines of these.
    unknown: Vec<Of>,
    pub lookups: Lookups,
    /// The head is becoming part of this log (E7).
    pub bound: bool,
    /// The coordinator has been told that the ranges can be owned.
    pub told: bool,
    /// No memory for what is still to be replayed, since then.
    pub stalled_since_us: Option<u64>,
}

impl Early {
    pub fn begin<'a>(sources: impl Iterator<Item = &'a Source>) -> Early {
        let sought = |source: &Source| Sought {
            log: source.log,
            // Those who are asked first are not those who send the segment first.
            holder: source.segment.segment.0 as usize,
            segment: source.segment.clone(),
            asked: 0,
            due_us: 0,
        };
        Early {
            sought: sources.filter(|it| !it.first).map(sought).collect(),
            ..Early::default()
        }
    }

    /// Asks for the outlines that are missing. Returns segments of which nobody has one.
    pub fn ask(&mut self, now: Now, fetch_id: u64, view: &View, out: &mut Outputs) -> Vec<Of> {
        let mut asks: BTreeMap<(ServerId, LogId), Vec<SegmentId>> = BTreeMap::new();
        let mut unknown = Vec::new();
        self.sought.retain_mut(|sought| {
            if now.mono_us < sought.due_us {
                return true;
            }
            let holders = &sought.segment.holders;
            while sought.asked < holders.len() * ASK_ROUNDS {
                let holder = holders[sought.holder % holders.len()].backup;
                sought.holder += 1;
                sought.asked += 1;
                if view.is_up(holder) {
                    sought.due_us = now.mono_us + ASK_US;
                    let asked = asks.entry((holder, sought.log)).or_default();
                    asked.push(sought.segment.segment);
                    return true;
                }
            }
            unknown.push((sought.log, sought.segment.segment));
            false
        });
        for ((holder, log), segments) in asks {
            let attempt = fetch_id;
            let ask = Message::AskOutlines {
                log,
                attempt,
                segments,
            };
            out.send(holder, ask);
        }
        self.unknown.extend_from_slice(&unknown);
        unknown
    }

    /// A holder's answer.
    pub fn outline(&mut self, now: Now, log: LogId, segment: SegmentId, outline: Option<Outline>) {
        let is_it = |sought: &Sought| (sought.log, sought.segment.segment) == (log, segment);
        let Some(at) = self.sought.iter().position(is_it) else {
            return;
        };
        match outline {
            Some(outline) => {
                let holders = self.sought.swap_remove(at).segment.holders;
                self.known
                    .insert((log, segment), Known { outline, holders });
            }
            None => self.sought[at].due_us = now.mono_us,
        }
    }

    /// All of a segment has been replayed.
    pub fn replayed(&mut self, log: LogId, segment: SegmentId) {
        self.known.remove(&(log, segment));
        self.lookups.replayed((log, segment));
        self.unknown.retain(|it| *it != (log, segment));
        (self.sought).retain(|it| (it.log, it.segment.segment) != (log, segment));
    }

    /// True if of every segment that is still to be replayed the outline is known.
    pub fn is_informed(&self) -> bool {
        self.sought.is_empty() && self.unknown.is_empty()
    }

    /// True if the ranges are going to be served without anything being replayed that is not durable first.
    pub fn needs_no_more(&self) -> bool {
        !self.told && self.unknown.is_empty()
    }

    /// The range tombstones of what is still to be replayed (E1).
    pub fn flushes(&self) -> impl Iterator<Item = (LogId, &[u8])> {
        (self.known.iter()).map(|((log, _), it)| (*log, it.outline.flushes()))
    }

    /// Segments that may still bring something about the key (E2).
    pub fn with_key(&self, hash: KeyHash) -> impl Iterator<Item = Of> {
        let left = self.lookups.left(hash);
        let left_to_come = (left.into_iter().flatten().copied()).filter(|of| self.is_to_come(*of));
        let admit = (left.is_none().then_some(&self.known).into_iter().flatten())
            .filter(move |(_, it)| it.outline.admits(hash));
        left_to_come.chain(admit.map(|(of, _)| *of))
    }

    /// Segments that may still bring the completion record of a write (E3).
    pub fn with_record(&self, once: &Once) -> impl Iterator<Item = Of> {
        let (client, sequence) = (once.client, once.sequence);
        let admit = move |it: &Known| it.outline.admits_record(client, sequence);
        let admit = self.known.iter().filter(move |(_, it)| admit(it));
        admit.map(|(id, _)| *id)
    }

    /// False once a segment has been replayed.
    pub fn is_to_come(&self, of: Of) -> bool {
        self.known.contains_key(&of)
    }

    /// Whom to ask what a segment has of a key: one after another, so that all have their part. `None` if nobody can be asked.
    pub fn holder(&self, hash: KeyHash, of: Of, view: &View) -> Option<Holder> {
        let holders = &self.known.get(&of)?.holders;
        let from = (hash.0 % holders.len().max(1) as u64) as usize;
        let mut all = holders[from..].iter().chain(&holders[..from]);
        all.find(|holder| view.is_up(holder.backup)).copied()
    }

    pub fn wakeup(&self) -> Option<u64> {
        let sought = self.sought.iter().map(|sought| sought.due_us);
        sought.chain(self.lookups.wakeup()).min()
    }

    pub fn memory_bytes(&self) -> u64 {
        let outlines = self.known.values().map(|it| it.outline.memory_bytes());
        outlines.sum::<usize>() as u64 + self.lookups.memory_bytes()
    }
}
