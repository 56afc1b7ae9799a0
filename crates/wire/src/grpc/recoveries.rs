//! Recoveries as operators see them.

use holdfast_format::{ClusterMs, LogId, SegmentId, ServerId};

use super::v1;

/// A recovery under way, or one that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryStatus {
    pub log: LogId,
    /// Of the dead shard.
    pub name: String,
    pub stage: RecoveryStage,
    pub hold: Option<RecoveryHold>,
    /// An operator has given up what was left of it.
    pub abandoned: bool,
    /// Slots that nobody has taken over yet.
    pub slots_left: u32,
    /// Every attempt at a part of the log, failed ones too, in the order in which they began.
    pub parts: Vec<RecoveryPart>,
    pub attempt: u64,
    /// One sentence: what is being done, or waited for.
    pub state: String,
    pub entries: u64,
    pub bytes: u64,
    /// Since the shard was declared dead; of a finished recovery, until its end.
    pub running_ms: u64,
    /// When the shard was declared dead, by cluster time.
    pub detected: ClusterMs,
    pub finished: bool,
    pub phases: Vec<RecoveryPhase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryStage {
    /// Backups are asked to refuse the dead shard, and what they hold.
    Fencing,
    /// Something is missing.
    Held,
    /// All is there; no shard can take a part yet.
    Planning,
    Replaying,
    /// Everything is served; not all of it is replicated yet.
    Leaning,
    Done,
}

/// Why a recovery does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryHold {
    /// One sentence.
    pub why: String,
    /// Of which log segments are missing, if it is not the held one itself: one that its shard leant on.
    pub of_log: Option<LogId>,
    /// Segments without a complete replica in reach, the first 4096. None where the end of the log is unknown.
    pub segments: Vec<SegmentId>,
    pub segments_missing: u64,
    /// Backups that were up in the log's life and are away.
    pub stores_away: Vec<StoreAway>,
}

/// A backup that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAway {
    /// As its member said.
    pub store: u64,
    /// How the last backup on it was called; empty if nobody remembers.
    pub name: String,
}

/// One recovery master's part of a dead log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RecoveryPart {
    pub attempt: u64,
    pub master: ServerId,
    pub slots: u32,
    /// Replayed so far.
    pub entries: u64,
    pub bytes: u64,
    /// Of the dead log's replicas: replayed, and all that the master reads (0: it has not said).
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// After the shard was declared dead, and since then until it was taken over or failed.
    pub began_ms: u64,
    pub running_ms: u64,
    pub taken_over_ms: Option<u64>,
    /// Of what was taken over, not on all replicas yet.
    pub bytes_left: u64,
    /// Why it failed; empty if it did not.
    pub failure: String,
}

/// Something a recovery has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPhase {
    /// Such as `log fenced` or `master-2.0 replayed`.
    pub name: String,
    /// Milliseconds after the shard was declared dead.
    pub at_ms: u64,
}

pub(super) fn recovery_to(recovery: &RecoveryStatus) -> v1::Recovery {
    let stage = match recovery.stage {
        RecoveryStage::Fencing => v1::RecoveryStage::Fencing,
        RecoveryStage::Held => v1::RecoveryStage::Held,
        RecoveryStage::Planning => v1::RecoveryStage::Planning,
        RecoveryStage::Replaying => v1::RecoveryStage::Replaying,
        RecoveryStage::Leaning => v1::RecoveryStage::Leaning,
        RecoveryStage::Done => v1::RecoveryStage::Done,
    };
    let phase = |phase: &RecoveryPhase| v1::RecoveryPhase {
        name: phase.name.clone(),
        at_ms: phase.at_ms,
    };
    v1::Recovery {
        log: recovery.log.0,
        attempt: recovery.attempt,
        state: recovery.state.clone(),
        entries: recovery.entries,
        bytes: recovery.bytes,
        running_ms: recovery.running_ms,
        detected_ms: recovery.detected.0,
        finished: recovery.finished,
        phases: recovery.phases.iter().map(phase).collect(),
        name: recovery.name.clone(),
        stage: stage.into(),
        hold: recovery.hold.as_ref().map(hold_to),
        abandoned: recovery.abandoned,
        slots_left: recovery.slots_left,
        parts: recovery.parts.iter().map(part_to).collect(),
    }
}

pub(super) fn recovery_from(recovery: v1::Recovery) -> RecoveryStatus {
    let stage = match recovery.stage() {
        // Of a recovery without a report of its own no more is known.
        v1::RecoveryStage::Unspecified | v1::RecoveryStage::Fencing => RecoveryStage::Fencing,
        v1::RecoveryStage::Held => RecoveryStage::Held,
        v1::RecoveryStage::Planning => RecoveryStage::Planning,
        v1::RecoveryStage::Replaying => RecoveryStage::Replaying,
        v1::RecoveryStage::Leaning => RecoveryStage::Leaning,
        v1::RecoveryStage::Done => RecoveryStage::Done,
    };
    let phase = |phase: v1::RecoveryPhase| RecoveryPhase {
        name: phase.name,
        at_ms: phase.at_ms,
    };
    RecoveryStatus {
        log: LogId(recovery.log),
        name: recovery.name,
        stage,
        hold: recovery.hold.map(hold_from),
        abandoned: recovery.abandoned,
        slots_left: recovery.slots_left,
        parts: recovery.parts.into_iter().map(part_from).collect(),
        attempt: recovery.attempt,
        state: recovery.state,
        entries: recovery.entries,
        bytes: recovery.bytes,
        running_ms: recovery.running_ms,
        detected: ClusterMs(recovery.detected_ms),
        finished: recovery.finished,
        phases: recovery.phases.into_iter().map(phase).collect(),
    }
}

fn hold_to(hold: &RecoveryHold) -> v1::RecoveryHold {
    let away = |away: &StoreAway| v1::StoreAway {
        store: away.store,
        name: away.name.clone(),
    };
    v1::RecoveryHold {
        why: hold.why.clone(),
        of_log: hold.of_log.map(|log| log.0),
        segments: hold.segments.iter().map(|segment| segment.0).collect(),
        segments_missing: hold.segments_missing,
        stores_away: hold.stores_away.iter().map(away).collect(),
    }
}

fn hold_from(hold: v1::RecoveryHold) -> RecoveryHold {
    let away = |away: v1::StoreAway| StoreAway {
        store: away.store,
        name: away.name,
    };
    RecoveryHold {
        why: hold.why,
        of_log: hold.of_log.map(LogId),
        segments: hold.segments.into_iter().map(SegmentId).collect(),
        segments_missing: hold.segments_missing,
        stores_away: hold.stores_away.into_iter().map(away).collect(),
    }
}

fn part_to(part: &RecoveryPart) -> v1::RecoveryPart {
    v1::RecoveryPart {
        attempt: part.attempt,
        master: part.master.0,
        slots: part.slots,
        entries: part.entries,
        bytes: part.bytes,
        done_bytes: part.done_bytes,
        total_bytes: part.total_bytes,
        began_ms: part.began_ms,
        running_ms: part.running_ms,
        taken_over_ms: part.taken_over_ms,
        bytes_left: part.bytes_left,
        failure: part.failure.clone(),
    }
}

fn part_from(part: v1::RecoveryPart) -> RecoveryPart {
    RecoveryPart {
        attempt: part.attempt,
        master: ServerId(part.master),
        slots: part.slots,
        entries: part.entries,
        bytes: part.bytes,
        done_bytes: part.done_bytes,
        total_bytes: part.total_bytes,
        began_ms: part.began_ms,
        running_ms: part.running_ms,
        taken_over_ms: part.taken_over_ms,
        bytes_left: part.bytes_left,
        failure: part.failure,
    }
}
