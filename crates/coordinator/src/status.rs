//! What the coordinator knows, as plain data: for `ctl status`, `bench recovery` and tests.

use std::collections::VecDeque;

use holdfast_format::{ClusterMs, LogId, ServerId, SlotRange};
use holdfast_wire::{
    ClusterConfig, Figures, Member, NamespacePolicy, NamespaceUse, RecoveryFailure, ReplayTimings,
    Tablet,
};

use crate::inventory::Hold;
use crate::records::Seal;
use crate::recovery::{Recovery, Report};

/// Finished recoveries kept for reports.
const FINISHED_MAX: usize = 16;

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    pub config: ClusterConfig,
    pub cluster_time: ClusterMs,
    /// How many coordinators have begun on these records.
    pub generation: u32,
    pub view_version: u64,
    pub members: Vec<MemberStatus>,
    pub tablets: Vec<Tablet>,
    /// Limits, by number.
    pub namespaces: Vec<NamespacePolicy>,
    pub recoveries: Vec<RecoveryStatus>,
    /// The last 16, oldest first.
    pub finished: Vec<RecoveryStatus>,
    /// One sentence each; empty: it is ready.
    pub not_ready_because: Vec<String>,
    /// Recovered, and everything replicated as often as it should be.
    pub ready: bool,
}

#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub member: Member,
    pub figures: Figures,
    pub namespaces: Vec<NamespaceUse>,
    /// Suspected of being dead; the coordinator is finding out.
    pub suspect: bool,
    /// A backup that is much slower than the others.
    pub slow: bool,
    pub heard_ms_ago: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for backups to fence the log and say what they hold.
    Fencing,
    /// Something is missing: see `hold`.
    Held,
    /// All is there, but no shard could take a part (yet).
    Planning,
    /// Recovery masters are at work.
    Replaying,
    /// Everything is served; what was recovered is not completely replicated yet, and leans on the dead log.
    Leaning,
    Done,
}

/// One dead log. Times are milliseconds since the coordinator declared its shard dead (or, for a
/// recovery found in the records, since this coordinator started).
#[derive(Clone, Debug)]
pub struct RecoveryStatus {
    pub log: LogId,
    pub name: String,
    pub phase: Phase,
    pub hold: Option<Hold>,
    /// If it is held: stores of its life that are away, one of which may have what is missing.
    pub stores_away: Vec<StoreAway>,
    /// An operator has given up what was left of it.
    pub abandoned: bool,
    /// Slots that nobody has taken over yet.
    pub slots_left: u32,
    pub seal: Option<Seal>,
    /// Segments and bytes to be read, once known.
    pub segments: u64,
    pub bytes: u64,
    pub detected_at: ClusterMs,
    /// How long the shard had been silent when it was declared dead.
    pub silent_ms: u64,
    pub fenced_ms: Option<u64>,
    pub sealed_ms: Option<u64>,
    pub planned_ms: Option<u64>,
    /// Every range has an owner that serves it.
    pub taken_over_ms: Option<u64>,
    /// And nothing leans on the log any more.
    pub done_ms: Option<u64>,
    /// Every attempt at a part of the log, failed ones too, in the order in which they began.
    pub partitions: Vec<PartitionStatus>,
}

/// A backup's store that no backup has enlisted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAway {
    pub store: u64,
    /// Of the last backup on it, if this coordinator has known it.
    pub name: Option<String>,
}

/// `backup-1, store 5f3a…`
pub(crate) fn listed(stores: &[StoreAway]) -> String {
    let one = |away: &StoreAway| match &away.name {
        Some(name) => name.clone(),
        None => format!("store {:016x}", away.store),
    };
    let all: Vec<String> = stores.iter().map(one).collect();
    all.join(", ")
}

#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub attempt: u64,
    pub master: ServerId,
    pub ranges: Vec<SlotRange>,
    pub entries: u64,
    pub bytes: u64,
    /// Of the dead log's replicas: replayed, and all that is to be read. 0 until its master has said so.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// When it was planned, and how long its master has been, or was, reading.
    pub began_ms: u64,
    pub running_ms: u64,
    /// The recovery master's own, once it has taken over.
    pub timings: Option<ReplayTimings>,
    pub taken_over_ms: Option<u64>,
    /// Of what was taken over: not on all replicas yet.
    pub bytes_left: u64,
    pub failure: Option<RecoveryFailure>,
}

/// Reports of recoveries that are over.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    list: VecDeque<RecoveryStatus>,
    pub(crate) count: u64,
}

impl Finished {
    pub(crate) fn add(&mut self, log: LogId, recovery: &Recovery, now_us: u64) {
        let done_ms = Some((now_us - recovery.times().detected_us) / 1_000);
        let mut report = describe(log, recovery, now_us);
        (report.phase, report.hold, report.done_ms) = (Phase::Done, None, done_ms);
        report.taken_over_ms = report.taken_over_ms.or(done_ms);
        if self.list.len() == FINISHED_MAX {
            self.list.pop_front();
        }
        self.list.push_back(report);
        self.count += 1;
    }

    pub(crate) fn to_vec(&self) -> Vec<RecoveryStatus> {
        self.list.iter().cloned().collect()
    }
}

/// All but what only the coordinator's other state can tell.
pub(crate) fn describe(log: LogId, recovery: &Recovery, now_us: u64) -> RecoveryStatus {
    let times = recovery.times();
    let record = recovery.record();
    let since = |us: u64| us.saturating_sub(times.detected_us) / 1_000;
    let phase = if recovery.is_fencing() {
        Phase::Fencing
    } else if recovery.is_lent() {
        Phase::Leaning
    } else if recovery.hold().is_some() {
        Phase::Held
    } else if record.partitions.is_empty() {
        Phase::Planning
    } else {
        Phase::Replaying
    };
    let partition = |(attempt, report): (&u64, &Report)| PartitionStatus {
        attempt: *attempt,
        master: report.master,
        ranges: report.ranges.clone(),
        entries: report.entries,
        bytes: report.bytes,
        done_bytes: report.done_bytes,
        total_bytes: report.total_bytes,
        began_ms: since(report.began_us),
        running_ms: {
            let until_us = report.taken_over_us.or(report.ended_us).unwrap_or(now_us);
            until_us.saturating_sub(report.began_us) / 1_000
        },
        timings: report.timings,
        taken_over_ms: report.taken_over_us.map(since),
        bytes_left: report.bytes_left,
        failure: report.failure,
    };
    RecoveryStatus {
        log,
        name: record.name.clone(),
        phase,
        hold: recovery.hold().cloned(),
        stores_away: Vec::new(),
        abandoned: recovery.is_abandoned(),
        slots_left: 0,
        seal: record.seal,
        segments: recovery
            .reading()
            .map_or(0, |reading| reading.segments.len() as u64),
        bytes: recovery.reading().map_or(0, |reading| reading.bytes()),
        detected_at: record.detected,
        silent_ms: times.silent_us / 1_000,
        fenced_ms: times.fenced_us.map(since),
        sealed_ms: times.sealed_us.map(since),
        planned_ms: times.planned_us.map(since),
        taken_over_ms: times.taken_over_us.map(since),
        done_ms: None,
        partitions: recovery.reports().iter().map(partition).collect(),
    }
}
