//! What a backup does unasked, but for the scrub: repeats bad news until masters must have heard it, offers what an
//! earlier incarnation left, and clears leftovers.

use holdfast_cluster::{FrameId, Outputs, ViewExt};
use holdfast_format::{Epoch, LogId, SegmentId};
use holdfast_wire::Refusal;

use crate::backup::{Backup, Stage};

const UPKEEP_PERIOD_US: u64 = 250_000;

/// A master that misses bad news ten times in ten seconds is dead, and recovery finds out by itself.
const REPORT_PERIOD_US: u64 = 1_000_000;
const REPORTS_EACH: u8 = 10;
/// Bad replicas in memory at a time. More would mean a dying disk: then each is found again at its
/// next read.
const REPORTS_MAX: usize = 1024;

/// A replica without appends for so long is not being made any more. Masters retry within a second.
const ABANDONED_US: u64 = 10_000_000;

/// Replicas of earlier incarnations offered to their masters per period.
const OFFERS_EACH: usize = 4;

/// Bad news about a segment for its master.
#[derive(Debug)]
pub(crate) struct Report {
    why: Refusal,
    due_us: u64,
    left: u8,
}

impl Backup {
    /// Tells the segment's master that no good replica is here any more, now and some times again.
    pub(crate) fn report(
        &mut self,
        log: LogId,
        segment: SegmentId,
        why: Refusal,
        out: &mut Outputs,
    ) {
        // Recovery asks by `Fence` and `Fetch`; there is no master to tell.
        if self.fence_of(log) > Epoch(0) {
            return;
        }
        self.refuse(log, segment, why, out);
        if self.reports.len() < REPORTS_MAX {
            let due_us = self.now_us + REPORT_PERIOD_US;
            self.reports.insert(
                (log, segment),
                Report {
                    why,
                    due_us,
                    left: REPORTS_EACH,
                },
            );
        }
    }

    /// Whatever is due. Each part is bounded per period.
    pub(crate) fn upkeep(&mut self, out: &mut Outputs) {
        if self.now_us < self.upkeep_due_us {
            return;
        }
        self.upkeep_due_us = self.now_us + UPKEEP_PERIOD_US;
        self.repeat_reports(out);
        if self.stage == Stage::Serving {
            self.clear_leftovers(out);
            self.offer_restored(out);
        }
    }

    fn repeat_reports(&mut self, out: &mut Outputs) {
        let now_us = self.now_us;
        let due: Vec<((LogId, SegmentId), Refusal)> = (self.reports.iter_mut())
            .filter(|(_, report)| report.due_us <= now_us)
            .map(|(key, report)| {
                report.due_us = now_us + REPORT_PERIOD_US;
                report.left -= 1;
                (*key, report.why)
            })
            .collect();
        self.reports.retain(|_, report| report.left > 0);
        for ((log, segment), why) in due {
            self.refuse(log, segment, why, out);
        }
    }

    /// Replicas that a late duplicate opened beside one that is as good.
    fn clear_leftovers(&mut self, out: &mut Outputs) {
        for copies in self.frames.crowded() {
            for &id in &copies {
                let is_leftover = self.frames.replica(id).is_some_and(|replica| {
                    replica.active_us + ABANDONED_US <= self.now_us
                        && self.fence_of(replica.log) == Epoch(0)
                        && copies.iter().any(|&other| {
                            other != id
                                && self.frames.replica(other).is_some_and(|other| {
                                    other.certificate.is_some() && other.supersedes(replica)
                                })
                        })
                });
                if is_leftover {
                    self.release(id, out);
                }
            }
        }
    }

    /// No frame is free: the copy that has been without progress for longest goes, if it never counted.
    pub(crate) fn give_up_abandoned(&mut self, out: &mut Outputs) {
        let abandoned = (self.frames.held())
            .filter(|(_, replica)| {
                replica.certificate.is_none() && replica.active_us + ABANDONED_US <= self.now_us
            })
            .min_by_key(|(_, replica)| replica.active_us)
            .map(|(id, _)| id);
        if let Some(id) = abandoned {
            self.release(id, out);
        }
    }

    /// No frame is free for a replica that its master makes again because this one is bad: it takes
    /// the bad one's place at once, unless that is all that tells of the log here (B4).
    pub(crate) fn give_up_rotten(&mut self, log: LogId, segment: SegmentId, out: &mut Outputs) {
        if self.fence_of(log) > Epoch(0) {
            return;
        }
        let is_rotten = |id: &FrameId| {
            self.frames
                .replica(*id)
                .is_some_and(|replica| replica.rotten)
        };
        let copies = self.frames.of_segment(log, segment);
        let Some(rotten) = copies.iter().copied().find(is_rotten) else {
            return;
        };
        let tells = |id: FrameId| {
            let replica = self.frames.replica(id);
            id != rotten && replica.is_some_and(|replica| replica.certificate.is_some())
        };
        if self.frames.of_log(log).any(tells) {
            self.release(rotten, out);
        }
    }

    /// A replica that came with the store is news to its master, which either claims it or frees it.
    /// Without this, frames of replicas that were made again elsewhere would stay taken for ever.
    fn offer_restored(&mut self, out: &mut Outputs) {
        let frames = self.frames.len();
        let mut offers = Vec::new();
        for _ in 0..frames {
            if offers.len() == OFFERS_EACH {
                break;
            }
            let id = self.announce_cursor;
            self.announce_cursor = FrameId((id.0 + 1) % frames);
            let Some(replica) = self.frames.replica(id).filter(|replica| replica.restored) else {
                continue;
            };
            let (log, segment) = (replica.log, replica.segment);
            let alone = self.frames.of_segment(log, segment).len() == 1;
            let owned = self.membership.view().is_up(log.shard());
            if alone && owned && self.fence_of(log) == Epoch(0) {
                let length = if replica.rotten { 0 } else { replica.length };
                offers.push((log, segment, length));
            }
        }
        for (log, segment, length) in offers {
            self.refuse(log, segment, Refusal::Reopen { length }, out);
        }
    }
}
