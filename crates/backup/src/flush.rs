//! Syncing frames: what makes `disk` acknowledgements true, and `memory` ones survive power in the end.
//!
//! One sync is under way per frame; the next one covers all that accumulated. In `memory` mode only
//! closed replicas are synced, in the background. In `disk` mode the header is written here and only
//! here, just before the sync that is to cover it, so that the slot synced last is never touched (H2).
//! Closing takes two rounds then: the bytes first, then a header that says `Closed`.

use holdfast_cluster::{DiskError, DiskOp, FrameId, Level, Output, Outputs};

use crate::backup::{Backup, Stage};
use crate::frames::Syncing;
use crate::replica::{Grant, Promise};

/// A clean stop waits so long for syncs: what is left stays in the shared file, as after a crash.
const STOP_WITHIN_US: u64 = 5_000_000;

impl Backup {
    /// Asks for a sync of the frame, unless one is queued already.
    pub(crate) fn want_sync(&mut self, id: FrameId) {
        let frame = self.frames.frame_mut(id);
        if !frame.sync_queued {
            frame.sync_queued = true;
            self.syncs.push_back(id);
        }
    }

    /// Starts queued syncs while there is room.
    pub(crate) fn pump_syncs(&mut self, out: &mut Outputs) {
        let mut looked_at = self.syncs.len();
        let in_flight_max = match self.ack_disk() {
            true => self.config.syncs_in_flight_max as usize,
            // Nobody waits for these, and others do for the same disk: the coordinator's records, which a burst of
            // closed segments after a recovery held up for 80 ms.
            false => 1,
        };
        while looked_at > 0 && self.syncing.len() < in_flight_max {
            looked_at -= 1;
            let Some(id) = self.syncs.pop_front() else {
                return;
            };
            if self.frames.frame(id).syncing.is_some() {
                self.syncs.push_back(id);
                continue;
            }
            self.frames.frame_mut(id).sync_queued = false;
            self.start_sync(id, out);
        }
    }

    fn start_sync(&mut self, id: FrameId, out: &mut Outputs) {
        let ack_disk = self.ack_disk();
        let Some(replica) = self.frames.replica(id) else {
            return;
        };
        let Some(held) = replica.promise(self.fence_of(replica.log)) else {
            return;
        };
        let birth = replica.birth;
        let is_unsure = replica.fallback.is_some();
        let durable = self.frames.frame(id).durable;
        let target = match self.frames.frame_mut(id).found.take() {
            // Found at start, in a header that may not have reached the disk: that one first (H2).
            Some(found) => found,
            // Asked for again once it has been read.
            None if is_unsure => return,
            None if ack_disk => {
                let target = next_promise(durable, held);
                if durable != Some(target) {
                    self.frames.write_promise(id, target, true, out);
                }
                target
            }
            None => held,
        };
        let token = self.token();
        let replica = self.frames.replica_mut(id).expect("looked up above");
        let grant = replica.owed;
        if target == held {
            replica.owed = None;
        }
        let frame = self.frames.frame_mut(id);
        frame.dirty = false;
        frame.syncing = Some(Syncing {
            birth,
            target,
            grant,
        });
        self.syncing.insert(token, id);
        self.counts.syncs += 1;
        out.push(Output::Disk(DiskOp::Sync { token, frame: id }));
    }

    pub(crate) fn take_synced(
        &mut self,
        token: u64,
        result: Result<(), DiskError>,
        out: &mut Outputs,
    ) {
        let Some(id) = self.syncing.remove(&token) else {
            return;
        };
        let syncing = self
            .frames
            .frame_mut(id)
            .syncing
            .take()
            .expect("one sync per frame");
        if let Err(error) = result {
            // The kernel may drop what it could not write and forget about it: trying again proves
            // nothing.
            self.counts.sync_errors += 1;
            return self.break_down(id, &error.to_string(), out);
        }
        let Some(replica) = self.frames.replica(id).filter(|r| r.birth == syncing.birth) else {
            return;
        };
        let log = replica.log;
        let held = replica
            .promise(self.fence_of(log))
            .expect("only certified replicas are synced");
        let target = syncing.target;
        let closed_now = target.closed && !self.frames.frame(id).durable.is_some_and(|d| d.closed);
        self.frames.frame_mut(id).durable = Some(target);
        if self.ack_disk() {
            if closed_now {
                // Rot in one slot must not show a closed replica as open again. No hurry to sync it.
                self.frames.write_promise(id, target, true, out);
            }
            if target == held {
                self.retire_others(id, out);
            } else {
                self.want_sync(id);
            }
            // One that came with a newer epoch for a replica that is closing waits for the second round.
            let is_covered = |grant: &Grant| target.closed || target.epoch >= grant.epoch;
            if let Some(grant) = syncing.grant.filter(is_covered) {
                let epoch = if target.closed {
                    grant.epoch
                } else {
                    target.epoch
                };
                let length = target.certificate.length;
                self.acknowledge(id, grant, length, target.closed, epoch, out);
            }
        }
        self.answer_fence(log, out);
    }

    /// Finishes what is under way, then stops.
    pub(crate) fn begin_stopping(&mut self, out: &mut Outputs) {
        if let Stage::Stopping { .. } = self.stage {
            return;
        }
        let until_us = self.now_us + STOP_WITHIN_US;
        let joined = self.stage == Stage::Serving;
        self.stage = Stage::Stopping { until_us };
        if joined {
            let dirty: Vec<FrameId> = (self.frames.held().map(|(id, _)| id))
                .filter(|&id| self.frames.frame(id).dirty)
                .collect();
            dirty.into_iter().for_each(|id| self.want_sync(id));
        }
        out.event(Level::Info, "stopping; replicas stay in the store");
    }

    pub(crate) fn check_stopped(&mut self, out: &mut Outputs) {
        let Stage::Stopping { until_us } = self.stage else {
            return;
        };
        let idle = self.syncs.is_empty() && self.syncing.is_empty();
        if idle || self.now_us >= until_us {
            self.stage = Stage::Stopped;
            let reason = "told to shut down".to_string();
            out.push(Output::Stopped { reason });
        }
    }
}

/// What the next sync makes durable: all that is held, except that a replica closes only when its
/// bytes are durable already.
fn next_promise(durable: Option<Promise>, held: Promise) -> Promise {
    let bytes_are_durable = durable.is_some_and(|durable| durable.certificate == held.certificate);
    Promise {
        closed: held.closed && bytes_are_durable,
        ..held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::{ClusterMs, Epoch};
    use holdfast_wire::Certificate;

    /// H2: `Closed` reaches the disk only after every byte has.
    #[test]
    fn closing_waits_for_the_bytes() {
        let promise = |length, closed| Promise {
            certificate: Certificate {
                length,
                checksum: length,
            },
            closed,
            epoch: Epoch(1),
            fence: Epoch(0),
            ceiling: ClusterMs(0),
        };
        assert_eq!(next_promise(None, promise(9, true)), promise(9, false));
        assert_eq!(
            next_promise(Some(promise(5, false)), promise(9, true)),
            promise(9, false)
        );
        assert_eq!(
            next_promise(Some(promise(9, false)), promise(9, true)),
            promise(9, true)
        );
    }
}
