//! Answering `Fence`: promise the log's old owner nothing more, and list what is held of the log
//! (docs/design-notes.md, Fence, seal, recover).
//!
//! What came in this incarnation was checked against its certificate when it came, and is listed from memory:
//! reading it back would cost more than all the rest of a recovery's beginning, and it is read and verified
//! anyway when a recovery master asks for it (B3). What an earlier incarnation left is read and verified first,
//! because nobody has looked at it yet, and because only its bytes tell which header slot counts.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{FrameId, Outputs};
use holdfast_format::{Epoch, LogId, Opening, SegmentId, ServerId};
use holdfast_wire::{Inventory, Message, ReplicaState};

use crate::backup::Backup;

/// Replicas of a fenced log being looked at.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    waiting: BTreeSet<FrameId>,
    found: BTreeMap<FrameId, ReplicaState>,
    /// False: nobody has asked since the last answer.
    asked: bool,
}

impl Backup {
    pub(crate) fn take_fence(&mut self, log: LogId, epoch: Epoch, out: &mut Outputs) {
        let state = self.log_mut(log);
        if state.gone {
            // The coordinator has let go of everything; it may have forgotten that since.
            let inventory = Inventory {
                log,
                epoch,
                replicas: Vec::new(),
                lease_remaining_ms: self.lease_remaining_ms(log),
                expiry_ceiling: self.logs[&log].ceiling,
            };
            return out.send(ServerId::COORDINATOR, Message::Inventory(inventory));
        }
        if epoch > state.fence {
            state.fence = epoch;
            self.drop_owed(log);
            self.reports.retain(|(other, _), _| *other != log);
            let frames: Vec<FrameId> = self.frames.of_log(log).collect();
            for id in frames {
                self.write_fence(id, out);
            }
        }
        self.begin_survey(log);
        self.log_mut(log).survey.get_or_insert_default().asked = true;
        self.answer_fence(log, out);
    }

    /// Makes the log's fence part of what the frame's header says, in the way that the acknowledgement
    /// mode wants headers written (F3). One of which it is not known yet which header slot counts waits:
    /// this is called again once it has been read.
    pub(crate) fn write_fence(&mut self, id: FrameId, out: &mut Outputs) {
        let Some(replica) = self.frames.replica(id) else {
            return;
        };
        let fence = self.fence_of(replica.log);
        let Some(promise) = replica
            .promise(fence)
            .filter(|_| replica.fallback.is_none())
        else {
            return;
        };
        if self.ack_disk() {
            self.want_sync(id);
        } else if fence > Epoch(0) {
            self.frames.write_promise(id, promise, false, out);
        }
    }

    /// A replica of a log has been read and verified.
    pub(crate) fn survey_read(
        &mut self,
        log: LogId,
        id: FrameId,
        opening: Option<Opening>,
        out: &mut Outputs,
    ) {
        let is_waiting = self.logs.get(&log).and_then(|state| state.survey.as_ref());
        if !is_waiting.is_some_and(|survey| survey.waiting.contains(&id)) {
            return;
        }
        let replica = self.frames.replica(id).expect("it was read");
        let certificate = replica
            .certificate
            .expect("only certified replicas are read");
        let state = opening.map(|opening| ReplicaState {
            segment: replica.segment,
            epoch: replica.epoch,
            closed: replica.closed,
            certificate,
            version_ceiling: opening.header.version_ceiling,
            digest: opening.digest,
        });
        let survey = self.log_mut(log).survey.as_mut().expect("it is waiting");
        survey.waiting.remove(&id);
        // Without even a segment header (an empty certificate) it says nothing about the log.
        if let Some(state) = state {
            survey.found.insert(id, state);
        }
        self.answer_fence(log, out);
    }

    /// The replica in `id` is about to go. `answer_fence` once it has.
    pub(crate) fn survey_lost(&mut self, log: LogId, id: FrameId) {
        if let Some(survey) = self
            .logs
            .get_mut(&log)
            .and_then(|state| state.survey.as_mut())
        {
            survey.waiting.remove(&id);
            survey.found.remove(&id);
        }
    }

    /// What is left of the longest lease that this backup, or an incarnation of it that it does not
    /// remember, may have granted.
    fn lease_remaining_ms(&self, log: LogId) -> u32 {
        let lease_ms = self.membership.config().map_or(0, |config| config.lease_ms);
        let forgotten_us = self.started_us.unwrap_or(self.now_us) + u64::from(lease_ms) * 1_000;
        let granted_us = self.logs.get(&log).map_or(0, |state| state.lease_until_us);
        let left_us = forgotten_us.max(granted_us).saturating_sub(self.now_us);
        u32::try_from(left_us.div_ceil(1_000)).unwrap_or(u32::MAX)
    }

    /// Lists what is known of what is held and reads back the rest, unless that is done or under way.
    fn begin_survey(&mut self, log: LogId) {
        let state = self.log_mut(log);
        if state.inventory.is_some() || state.survey.as_ref().is_some_and(Survey::is_begun) {
            return;
        }
        let frames = self.frames.of_log(log);
        let certified = |id: &FrameId| {
            self.frames
                .replica(*id)
                .is_some_and(|replica| replica.certificate.is_some() && !replica.rotten)
        };
        let certified: Vec<FrameId> = frames.filter(certified).collect();
        let mut waiting = BTreeSet::new();
        let mut found = BTreeMap::new();
        for id in certified {
            let replica = self.frames.replica(id).expect("filtered above");
            match replica.known() {
                Some((certificate, told)) => {
                    let state = ReplicaState {
                        segment: replica.segment,
                        epoch: replica.epoch,
                        closed: replica.closed,
                        certificate,
                        version_ceiling: told.version_ceiling,
                        digest: told.digest.clone(),
                    };
                    found.insert(id, state);
                }
                None => {
                    self.reads.want(id);
                    waiting.insert(id);
                }
            }
        }
        let survey = self.log_mut(log).survey.get_or_insert_default();
        survey.waiting = waiting;
        survey.found = found;
    }

    /// Answers a waiting `Fence` if nothing is missing any more. Called after everything that may have
    /// been missing: a read, a sync, a replica's end.
    pub(crate) fn answer_fence(&mut self, log: LogId, out: &mut Outputs) {
        let fence = self.fence_of(log);
        let Some(survey) = self.logs.get(&log).and_then(|state| state.survey.as_ref()) else {
            return;
        };
        if !survey.asked || !survey.waiting.is_empty() {
            return;
        }
        // Where disks acknowledge, what is listed must survive as long as the seal that is made of it.
        let ack_disk = self.ack_disk();
        let unsynced = self.frames.of_log(log).any(|id| {
            let certified = self
                .frames
                .replica(id)
                .is_some_and(|r| r.certificate.is_some());
            let durable = self.frames.frame(id).durable;
            certified && durable.is_none_or(|durable| durable.fence < fence)
        });
        if ack_disk && unsynced {
            return;
        }
        let lease_remaining_ms = self.lease_remaining_ms(log);
        let bad = self.frames.bad_of_log(log);
        let state = self.log_mut(log);
        let survey = state.survey.take().expect("looked up above");
        let replicas = state
            .inventory
            .get_or_insert_with(|| list(survey.found, bad))
            .clone();
        let expiry_ceiling = state.ceiling;
        self.counts.inventories += 1;
        let inventory = Inventory {
            log,
            epoch: fence,
            replicas,
            lease_remaining_ms,
            expiry_ceiling,
        };
        out.send(ServerId::COORDINATOR, Message::Inventory(inventory));
    }
}

impl Survey {
    fn is_begun(&self) -> bool {
        !self.waiting.is_empty() || !self.found.is_empty()
    }
}

/// What counts of what was found. An open replica beside a closed one of its segment is a leftover:
/// listed, it could pass for the log's head (R2). What is bad comes last, and says so (B4).
fn list(
    found: BTreeMap<FrameId, ReplicaState>,
    bad: Vec<(SegmentId, Epoch, bool)>,
) -> Vec<ReplicaState> {
    let mut all: Vec<ReplicaState> = found.into_values().collect();
    all.sort_by_key(|state| state.segment);
    let is_leftover = |state: &ReplicaState| {
        !state.closed
            && all.iter().any(|other| {
                other.closed && other.segment == state.segment && other.epoch >= state.epoch
            })
    };
    all.iter()
        .filter(|state| !is_leftover(state))
        .cloned()
        .chain(
            bad.into_iter()
                .map(|(segment, epoch, closed)| ReplicaState::bad(segment, epoch, closed)),
        )
        .collect()
}
