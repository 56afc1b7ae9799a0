//! Taking appends: the backup's half of replication (docs/design-notes.md, Replication, R1).
//!
//! Several replicas of a segment may be held at once: when its master begins one anew, the old one
//! stays until the new one is at least as good (B4). A duplicate of an opening append, however late,
//! therefore never costs a byte that was acknowledged. They need not be equal (P4 of the replica).

use holdfast_cluster::{FrameId, Level, Outputs};
use holdfast_format::{Epoch, LogId, SegmentId, ServerId, crc32c};
use holdfast_wire::{Append, Certificate, Refusal};

use crate::backup::Backup;
use crate::outlines::Outlined;
use crate::replica::{Fit, Grant, Misfit, Replica, Told};

/// For so long after `Free` a segment's opening append is taken for a late duplicate. Ids are never
/// used again, so only a master that comes back to this backup for the same segment waits for it.
const FREED_REMEMBERED_US: u64 = 5_000_000;
const FREED_MAX: usize = 1024;

impl Backup {
    pub(crate) fn take_append(&mut self, from: ServerId, append: Append, out: &mut Outputs) {
        let (log, segment) = (append.log, append.segment);
        // A log is written by its shard alone.
        if from != log.shard() {
            return;
        }
        let fence = self.fence_of(log);
        if append.epoch < fence {
            return self.refuse(log, segment, Refusal::Fenced { epoch: fence }, out);
        }
        let copies = self.frames.of_segment(log, segment).to_vec();
        let newest = copies.iter().filter_map(|&id| self.frames.replica(id));
        if newest
            .map(|replica| replica.epoch)
            .max()
            .is_some_and(|epoch| append.epoch < epoch)
        {
            // Overtaken by an append of its own log's newer epoch. Its sender knows; say nothing.
            self.counts.stale_appends += 1;
            return;
        }
        self.counts.appends += 1;
        let lease_max = self.membership.config().map_or(0, |config| config.lease_ms);
        let grant = Grant {
            to: from,
            epoch: append.epoch,
            sent_us: append.sent_us,
            lease_ms: append.lease_ms.min(lease_max),
        };
        let is_claimed = |id: &FrameId| {
            self.frames
                .replica(*id)
                .is_some_and(|replica| replica.is_claimed_by(&append))
        };
        if let Some(&id) = copies.iter().find(|id| is_claimed(id)) {
            return self.claim(id, grant, out);
        }
        if append.open {
            return self.open(&copies, append, grant, out);
        }
        self.extend(&copies, append, grant, out);
    }

    /// The master asks for a closed replica that is here already: it is acknowledged once verified.
    fn claim(&mut self, id: FrameId, grant: Grant, out: &mut Outputs) {
        let replica = self
            .frames
            .replica_mut(id)
            .expect("claims are for replicas held");
        if !replica.checked {
            self.claims.insert(id, grant);
            return self.reads.want(id);
        }
        replica.restored = false;
        let (log, segment) = (replica.log, replica.segment);
        self.reports.remove(&(log, segment));
        self.promised(id, grant, out);
    }

    /// The replica in `id` has been verified.
    pub(crate) fn claim_read(&mut self, id: FrameId, out: &mut Outputs) {
        if let Some(grant) = self.claims.remove(&id) {
            self.claim(id, grant, out);
        }
    }

    fn open(&mut self, copies: &[FrameId], append: Append, grant: Grant, out: &mut Outputs) {
        let (log, segment) = (append.log, append.segment);
        let crc = crc32c(&append.bytes);
        let length = append.bytes.len() as u32;
        let certificate = Certificate {
            length,
            checksum: crc,
        };
        let agrees = append
            .certificate
            .is_none_or(|claimed| claimed == certificate);
        if append.offset != 0 || !agrees || (append.close && append.certificate.is_none()) {
            return self.refuse(log, segment, Refusal::Reopen { length: 0 }, out);
        }
        if length > self.config.segment_bytes {
            return self.refuse_too_long(log, segment, out);
        }
        let is_duplicate = |id: &FrameId| {
            self.frames
                .replica(*id)
                .is_some_and(|replica| replica.was_opened_by(&append))
        };
        if let Some(&id) = copies.iter().find(|id| is_duplicate(id)) {
            let replica = self.frames.replica(id).expect("found above");
            let close = append.close && replica.length == length;
            let fit = Fit {
                skip: append.bytes.len(),
                crc: replica.crc.expect("duplicates are told by their checksum"),
                certificate: append.certificate.filter(|_| replica.length == length),
                close,
            };
            return self.accept(id, fit, append, grant, out);
        }
        if self.freed_lately(log, segment) {
            self.counts.stale_appends += 1;
            return;
        }
        let replica = Replica {
            log,
            segment,
            birth: 0,
            epoch: append.epoch,
            length: 0,
            crc: Some(crc32c(&[])),
            opening: certificate,
            sent_us: append.sent_us,
            told: Told::by(&append.bytes, log, segment),
            outline: Outlined::begin(),
            certificate: None,
            closed: false,
            ceiling: append.expiry_ceiling,
            checked: true,
            rotten: false,
            restored: false,
            fallback: None,
            owed: None,
            active_us: self.now_us,
        };
        let is_pending = |id: &FrameId| {
            self.frames
                .replica(*id)
                .is_some_and(|replica| replica.certificate.is_none())
        };
        let id = match copies.iter().find(|id| is_pending(id)) {
            Some(&id) => {
                self.frames.begin_again(id, replica);
                id
            }
            None => {
                let placed = self.frames.place(replica.clone()).or_else(|| {
                    self.give_up_abandoned(out);
                    self.give_up_rotten(log, segment, out);
                    self.frames.place(replica)
                });
                let Some(id) = placed else {
                    return self.refuse(log, segment, Refusal::Full, out);
                };
                id
            }
        };
        self.reports.remove(&(log, segment));
        let fit = Fit {
            skip: 0,
            crc,
            certificate: append.certificate,
            close: append.close,
        };
        self.accept(id, fit, append, grant, out);
    }

    fn extend(&mut self, copies: &[FrameId], append: Append, grant: Grant, out: &mut Outputs) {
        let (log, segment) = (append.log, append.segment);
        if u64::from(append.offset) + append.bytes.len() as u64
            > u64::from(self.config.segment_bytes)
        {
            return self.refuse_too_long(log, segment, out);
        }
        let mut differs = false;
        let mut best: Option<(FrameId, Fit, bool)> = None;
        // The newest first: what is being made is what the master is most likely talking about.
        for &id in copies.iter().rev() {
            let replica = self.frames.replica(id).expect("F1");
            match replica.fit(&append) {
                Ok(fit) => {
                    // Between a duplicate for one and new bytes for another, the new bytes count.
                    let fresh = append.bytes.len() > fit.skip || fit.certificate.is_some();
                    if best.is_none_or(|(_, _, best_fresh)| fresh && !best_fresh) {
                        best = Some((id, fit, fresh));
                    }
                }
                Err(Misfit::Differs) => differs = true,
                Err(Misfit::Elsewhere) => {}
            }
        }
        if let Some((id, fit, _)) = best {
            return self.accept(id, fit, append, grant, out);
        }
        if differs {
            // What was copied without certificate is not what the master has: it never counted.
            for &id in copies {
                if self
                    .frames
                    .replica(id)
                    .is_some_and(|replica| replica.certificate.is_none())
                {
                    self.release(id, out);
                }
            }
            return self.refuse(log, segment, Refusal::Reopen { length: 0 }, out);
        }
        // The length to go on from, of one that can be gone on with.
        let goes_on = |&id: &FrameId| {
            let replica = self.frames.replica(id)?;
            (replica.crc.is_some() && !replica.closed).then_some(replica.length)
        };
        let length = copies.iter().filter_map(goes_on).max().unwrap_or(0);
        self.refuse(log, segment, Refusal::Reopen { length }, out);
    }

    /// Makes the append part of the replica in `id`, and acknowledges it now or when it is synced.
    fn accept(&mut self, id: FrameId, fit: Fit, append: Append, grant: Grant, out: &mut Outputs) {
        let fence = self.fence_of(append.log);
        let ack_disk = self.ack_disk();
        let now_us = self.now_us;
        let fresh = append.bytes.slice(fit.skip..);
        let replica = self
            .frames
            .replica_mut(id)
            .expect("appends are accepted into replicas");
        let before = replica.promise(fence);
        let at = replica.length;
        replica.length += fresh.len() as u32;
        replica.outline.add(&fresh);
        replica.crc = Some(fit.crc);
        replica.active_us = now_us;
        replica.sent_us = replica.sent_us.max(append.sent_us);
        if !replica.closed {
            replica.epoch = replica.epoch.max(append.epoch);
            replica.ceiling = replica.ceiling.max(append.expiry_ceiling);
        }
        if let Some(certificate) = fit.certificate {
            assert_eq!(
                (certificate.length, Some(certificate.checksum)),
                (replica.length, replica.crc),
                "B1"
            );
            replica.certificate = Some(certificate);
        }
        replica.closed |= fit.close;
        if replica.closed {
            replica.outline.finish();
        }
        if let Some(told) = replica.told.as_mut().filter(|_| replica.closed) {
            told.digest = None;
        }
        assert!(
            replica
                .certificate
                .is_none_or(|certificate| certificate.length == replica.length),
            "P1: {id:?}"
        );
        let after = replica.promise(fence);
        let state = self.log_mut(append.log);
        state.ceiling = state.ceiling.max(append.expiry_ceiling);
        if !fresh.is_empty() {
            self.counts.append_bytes += fresh.len() as u64;
            self.frames.write_bytes(id, at, fresh, out);
        }
        if after != before {
            self.changed(id);
            if let Some(promise) = after.filter(|_| !ack_disk) {
                self.frames.write_promise(id, promise, false, out);
            }
            if fit.close {
                self.want_sync(id);
            }
        }
        self.promised(id, grant, out);
    }

    /// Acknowledges all that the replica in `id` holds: at once if that is where it has to be.
    fn promised(&mut self, id: FrameId, grant: Grant, out: &mut Outputs) {
        let ack_disk = self.ack_disk();
        let fence = self
            .frames
            .replica(id)
            .map(|replica| self.fence_of(replica.log));
        let durable = self.frames.frame(id).durable;
        let replica = self
            .frames
            .replica_mut(id)
            .expect("promises are about replicas");
        let promise = replica.promise(fence.expect("it is held"));
        // What has no certificate yet does not count; syncing it early would only cost.
        if !ack_disk || promise.is_none() || promise == durable {
            let (length, closed) = (replica.length, replica.closed);
            let epoch = if closed { grant.epoch } else { replica.epoch };
            self.retire_others(id, out);
            return self.acknowledge(id, grant, length, closed, epoch, out);
        }
        replica.owed = Some(grant);
        self.want_sync(id);
    }

    /// B4: other replicas of the segment that the one in `id` makes superfluous.
    pub(crate) fn retire_others(&mut self, id: FrameId, out: &mut Outputs) {
        let Some(replica) = self.frames.replica(id) else {
            return;
        };
        // What recovery has been told is here stays until the log is gone.
        if self.fence_of(replica.log) > Epoch(0) {
            return;
        }
        let superfluous: Vec<FrameId> =
            (self.frames.of_segment(replica.log, replica.segment).iter())
                .copied()
                .filter(|&other| {
                    other != id
                        && self
                            .frames
                            .replica(other)
                            .is_some_and(|other| replica.supersedes(other))
                })
                .collect();
        for other in superfluous {
            self.release(other, out);
        }
    }

    fn refuse_too_long(&mut self, log: LogId, segment: SegmentId, out: &mut Outputs) {
        let limit = self.config.segment_bytes;
        out.event(
            Level::Error,
            format!(
                "log {log} has longer segments than the {limit} bytes for which this store was made"
            ),
        );
        self.refuse(log, segment, Refusal::Full, out);
    }

    pub(crate) fn remember_freed(&mut self, log: LogId, segment: SegmentId) {
        if self.freed.len() >= FREED_MAX {
            self.freed.pop_front();
        }
        self.freed
            .push_back((self.now_us + FREED_REMEMBERED_US, log, segment));
    }

    fn freed_lately(&mut self, log: LogId, segment: SegmentId) -> bool {
        let now_us = self.now_us;
        while self
            .freed
            .front()
            .is_some_and(|(until_us, _, _)| *until_us <= now_us)
        {
            self.freed.pop_front();
        }
        self.freed
            .iter()
            .any(|(_, l, s)| (*l, *s) == (log, segment))
    }

    /// B2: acknowledgements of the log that wait for a disk are given up.
    pub(crate) fn drop_owed(&mut self, log: LogId) {
        let fence = self.fence_of(log);
        assert!(fence > Epoch(0), "only a fence takes acknowledgements back");
        let frames: Vec<FrameId> = self.frames.of_log(log).collect();
        for id in frames {
            if self
                .claims
                .get(&id)
                .is_some_and(|grant| grant.epoch < fence)
            {
                self.claims.remove(&id);
            }
            let replica = self.frames.replica_mut(id).expect("F1");
            replica.owed = replica.owed.filter(|grant| grant.epoch >= fence);
            if let Some(syncing) = &mut self.frames.frame_mut(id).syncing {
                syncing.grant = syncing.grant.filter(|grant| grant.epoch >= fence);
            }
        }
    }
}
