//! Who leans on a dead log, and what a dead log lends to the recovery of another one (V5; design notes, "Lineage").

use holdfast_format::{ClusterMs, LogId, ServerId, SlotRange, Version, without};
use holdfast_wire::LeantOn;

use super::{Done, Recovery, State};
use crate::inventory::{Hold, expiry_floor, lent, version_ceiling};
use crate::journal::Journal;
use crate::records::{Lean, Partition};
use crate::tablets::{Tablets, common};

/// What one dead log holds of another one's ranges (V5).
#[derive(Clone, Debug)]
pub(crate) struct Lender {
    pub(super) ranges: Vec<SlotRange>,
    pub(super) source: LeantOn,
    pub(super) version_ceiling: Version,
    pub(super) expiry_floor: ClusterMs,
    pub(super) lease_remaining_ms: u32,
    pub(super) is_fencing: bool,
    pub(super) hold: Option<Hold>,
}

impl Recovery {
    /// Nothing is left to take over, and shards lean on it.
    pub(crate) fn is_lent(&self) -> bool {
        self.state == State::Lent
    }

    /// Some range still needs it (V5).
    pub(crate) fn is_leant_on(&self) -> bool {
        !self.record.leans.is_empty()
    }

    /// What this log holds of the ranges of a dead shard that leant on it.
    pub(crate) fn lends_to(&self, shard: ServerId, now_us: u64) -> Option<Lender> {
        let leans = self.record.leans.iter().filter(|it| it.master == shard);
        let ranges: Vec<SlotRange> = leans.flat_map(|it| it.ranges.clone()).collect();
        if ranges.is_empty() {
            return None;
        }
        let (segments, hold) = lent(&self.record.lendable, &self.inventories);
        let log = self.log;
        Some(Lender {
            source: LeantOn {
                log,
                ranges: Vec::new(),
                segments,
            },
            ranges,
            version_ceiling: version_ceiling(&self.inventories),
            expiry_floor: expiry_floor(&self.inventories),
            lease_remaining_ms: self.lease_remaining_ms(now_us),
            is_fencing: self.is_fencing(),
            hold: hold.map(Box::new).map(|hold| Hold::Lent { log, hold }),
        })
    }

    pub(crate) fn set_lenders(&mut self, lenders: Vec<Lender>) {
        self.lenders = lenders;
    }

    /// Ranges that a dead shard owned have been taken over, leaning or not: so has its leaning on this log. True if it
    /// leant.
    pub(crate) fn lend_on(
        &mut self,
        dead: ServerId,
        ranges: &[SlotRange],
        to: Option<(ServerId, LogId, u64)>,
        journal: &mut Journal,
    ) -> bool {
        let mut moved = Vec::new();
        for lean in self.record.leans.iter_mut().filter(|it| it.master == dead) {
            moved.extend(common(&lean.ranges, ranges));
            lean.ranges = without(&lean.ranges, ranges);
        }
        if moved.is_empty() {
            return false;
        }
        self.record.leans.retain(|lean| !lean.ranges.is_empty());
        if let Some((master, by, attempt)) = to {
            self.record.leans.push(Lean {
                master,
                by,
                attempt,
                ranges: moved,
            });
        }
        self.save(journal);
        true
    }

    /// What `master` recovered by that attempt is in its own log, all of it.
    pub(crate) fn stands_alone(
        &mut self,
        master: ServerId,
        by: LogId,
        attempt: u64,
        journal: &mut Journal,
    ) {
        let before = self.record.leans.len();
        let over = |it: &Lean| (it.master, it.by, it.attempt) == (master, by, attempt);
        self.record.leans.retain(|lean| !over(lean));
        if self.record.leans.len() != before {
            // The last one to lean may have been all that kept the seal as it was.
            self.dirty = true;
            self.save(journal);
        }
    }

    /// A partition can be served by its recovery master, which leans on this log for a while. Returns the ranges
    /// that it owns from now on; `None` if this has been heard before.
    pub(crate) fn replayed(
        &mut self,
        from: ServerId,
        done: Done,
        bytes_left: u64,
        now_us: u64,
        tablets: &mut Tablets,
        journal: &mut Journal,
    ) -> Option<Vec<SlotRange>> {
        if let Some(report) = self.report_of(from, &done) {
            report.bytes_left = bytes_left;
            // What is served before all of it is replayed tells when that was later.
            report.timings = Some(done.timings);
        }
        let Partition {
            attempt, ranges, ..
        } = self.end_partition(from, done.attempt)?;
        if let Some(report) = self.reports.get_mut(&attempt) {
            report.timings = Some(done.timings);
            report.taken_over_us = Some(now_us);
        }
        tablets.hand_over(self.log, LogId::of(from), &ranges, journal);
        self.record.leans.push(Lean {
            master: from,
            by: self.log,
            attempt,
            ranges: ranges.clone(),
        });
        self.save(journal);
        Some(ranges)
    }
}
