//! One dead log, from its shard's death until somebody else owns all that it owned.
//!
//! ```text
//! Fencing --all backups answered--> Held <--> Replaying --all ranges taken over--> Lent --nobody leans--> (gone)
//!    ^                                |           |
//!    +---- a backup comes or goes ----+-----------+
//! ```
//!
//! A task that compares what is (the record, what backups answered) with what should be (no range
//! left with the dead log) and says the next messages. Every run is a retry: after a restart of the
//! coordinator it begins with the record and asks the backups again.
//!
//! V1. The fence is above every epoch that the dead shard can have used.
//! V2. The seal and the plan are recorded before anyone is told (J1).
//! V3. A shard takes over at most one partition of a log at a time, so that a newer attempt given
//!     to it never means that an older one was withdrawn.
//!     What it was given ends only by its own word or its death: a plan that cannot be carried out any
//!     more is sent all the same, to be refused.
//! V4. The ranges to recover are those that the tablet map gives to the log. A partition done is
//!     no longer among them, so nothing is recovered twice and nothing is forgotten.
//! V5. A range that was taken over before all of it was replicated leans on this log, which stays, with its seal,
//!     until the recovery master says that it leans no more. If that one dies first, its ranges are recovered from
//!     its log and from all that it leant on for them, and whoever takes them over takes over the leaning too,
//!     in the same write (design notes, "Lineage").
//! V6. What an operator gives up is on record before anything follows from it, and stays given up whoever comes
//!     back later: who took a range over without it has answered from that (`abandoned`).

mod abandoned;
mod lineage;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{Level, Now, Outputs};
use holdfast_format::{ClusterMs, Epoch, LogId, SegmentId, ServerId, SlotRange, without};
use holdfast_wire::{
    Inventory, LeantOn, Message, Recover, RecoveryFailure, ReplayTimings, Role, SlotLoad,
};

use crate::CoordinatorConfig;
use crate::inventory::{Counting, Hold, Reading, assess};
use crate::journal::Journal;
use crate::membership::Servers;
use crate::planning::{Part, spread};
use crate::records::{DeadLog, LiveLog, LogRecord, Partition};
use crate::tablets::{Tablets, common, divide};

use lineage::Lender;

/// Added to the recorded minimum to make the fence (V1). A shard that loses backups raises its
/// epoch one at a time before it asks for a record, so it may be ahead of what is recorded, but
/// never by four billion.
const FENCE_AHEAD: u64 = 1 << 32;

/// `Fence` and `Recover` are said again after so long without an answer or a sign of progress.
const FENCE_REPEAT_US: u64 = 100_000;
const RECOVER_REPEAT_US: u64 = 500_000;

/// After a failure the same thing is tried again no sooner than this, doubling up to the maximum.
const RETRY_MIN_US: u64 = 200_000;
const RETRY_MAX_US: u64 = 10_000_000;

/// When much is missing, others may be about to enlist (a cold start, a restarted machine): a plan
/// made a moment later reads more replicas and uses more memory.
const SETTLE_US: u64 = 300_000;

/// A shard leans on so many dead logs at most for one range. Who would lean on more replicates everything first, so that
/// no recovery reads more than one log more than these.
const LENDERS_MAX: usize = 2;

/// Attempts remembered for reports.
const REPORTS_MAX: usize = 256;

/// What a recovery may look at.
pub(crate) struct Surroundings<'a> {
    pub now_us: u64,
    pub servers: &'a Servers,
    pub replicas: u8,
    /// So many replicas of a head tell where its log ends.
    pub sealing_quorum: usize,
    pub initial_shards: u32,
    pub part_bytes_min: u64,
    /// Parts of dead logs that shards are taking over.
    pub parts: BTreeMap<ServerId, usize>,
    /// The stores of a log are waited for until then: a cold start.
    pub settle_until_us: u64,
}

impl<'a> Surroundings<'a> {
    pub fn at(
        now: Now,
        servers: &'a Servers,
        config: &CoordinatorConfig,
        settle_until_us: u64,
    ) -> Self {
        Self {
            now_us: now.mono_us,
            servers,
            replicas: config.cluster.replicas,
            sealing_quorum: config.cluster.sealing_quorum(),
            initial_shards: config.initial_shards,
            part_bytes_min: config.part_bytes_min,
            parts: BTreeMap::new(),
            settle_until_us,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not every backup that is up has answered the fence.
    Fencing,
    Held(Hold),
    Readable(Reading),
    /// Certainly nothing was ever acknowledged: the log has no replica on any store of its life,
    /// or the cluster keeps none.
    Empty,
    /// An operator has given up what is left (V6).
    Abandoned,
    /// All ranges have been taken over; some lean.
    Lent,
}

/// What became of one attempt, for reports.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub master: ServerId,
    pub ranges: Vec<SlotRange>,
    pub entries: u64,
    pub bytes: u64,
    pub timings: Option<ReplayTimings>,
    /// When its master became the owner, and what was not replicated when it last said so.
    pub taken_over_us: Option<u64>,
    pub bytes_left: u64,
    /// Of replicas: replayed, and all there are to read.
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub began_us: u64,
    pub ended_us: Option<u64>,
    pub failure: Option<RecoveryFailure>,
    due_us: u64,
}

/// What a recovery master says of a partition that it is reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub attempt: u64,
    pub entries: u64,
    pub bytes: u64,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What a recovery master says of a partition that it has taken over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub attempt: u64,
    pub entries: u64,
    pub bytes: u64,
    pub timings: ReplayTimings,
}

/// When each phase ended, by the coordinator's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PhaseTimes {
    pub detected_us: u64,
    pub silent_us: u64,
    pub fenced_us: Option<u64>,
    pub sealed_us: Option<u64>,
    pub planned_us: Option<u64>,
    pub taken_over_us: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Recovery {
    log: LogId,
    record: DeadLog,
    state: State,
    /// The inventories differ from what `state` was judged by.
    dirty: bool,
    inventories: BTreeMap<ServerId, Inventory>,
    received_us: BTreeMap<ServerId, u64>,
    fence_due_us: BTreeMap<ServerId, u64>,
    /// Shards without the memory for it, and until when they are not asked again.
    avoid_until_us: BTreeMap<ServerId, u64>,
    plan_due_us: u64,
    failures: u32,
    reports: BTreeMap<u64, Report>,
    times: PhaseTimes,
    warned: Option<Hold>,
    /// What its shard leant on when it died, as of this step.
    lenders: Vec<Lender>,
}

impl Recovery {
    /// Of a log that was live until now: when by cluster time and by our clock, and since when its shard was silent.
    pub(crate) fn begin(
        log: LogId,
        name: String,
        live: LiveLog,
        loads: Vec<SlotLoad>,
        (detected, now_us, silent_us): (ClusterMs, u64, u64),
    ) -> Recovery {
        let record = DeadLog {
            name,
            detected,
            fence: Epoch(live.minimum_epoch.0 + FENCE_AHEAD),
            minimum_epoch: live.minimum_epoch,
            stores: live.stores,
            seal: None,
            attempts: 0,
            partitions: Vec::new(),
            lendable: Vec::new(),
            leans: Vec::new(),
            abandoned: None,
            loads,
        };
        let mut recovery = Self::resume(log, record, now_us);
        recovery.times.silent_us = silent_us;
        recovery
    }

    /// As recorded by an earlier coordinator.
    pub(crate) fn resume(log: LogId, record: DeadLog, now_us: u64) -> Recovery {
        let mut recovery = Recovery {
            log,
            state: State::Fencing,
            dirty: true,
            inventories: BTreeMap::new(),
            received_us: BTreeMap::new(),
            fence_due_us: BTreeMap::new(),
            avoid_until_us: BTreeMap::new(),
            plan_due_us: 0,
            failures: 0,
            reports: BTreeMap::new(),
            times: PhaseTimes::default(),
            warned: None,
            lenders: Vec::new(),
            record,
        };
        recovery.times.detected_us = now_us;
        for partition in recovery.record.partitions.clone() {
            recovery.report(&partition, now_us);
        }
        for lean in recovery.record.leans.clone() {
            if lean.by == log {
                let partition = Partition {
                    attempt: lean.attempt,
                    master: lean.master,
                    ranges: lean.ranges,
                };
                recovery.report(&partition, now_us);
                let report = recovery.reports.get_mut(&lean.attempt);
                report.expect("just made").taken_over_us = Some(now_us);
            }
        }
        recovery
    }

    pub(crate) fn record(&self) -> &DeadLog {
        &self.record
    }

    pub(crate) fn save(&self, journal: &mut Journal) {
        journal.put_log(self.log, &LogRecord::Recovering(self.record.clone()));
    }

    pub(crate) fn times(&self) -> &PhaseTimes {
        &self.times
    }

    pub(crate) fn reports(&self) -> &BTreeMap<u64, Report> {
        &self.reports
    }

    /// Why it waits, if it does.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) => Some(hold),
            State::Readable(_) => self.lenders.iter().find_map(|it| it.hold.as_ref()),
            _ => None,
        }
    }

    pub(crate) fn is_fencing(&self) -> bool {
        self.state == State::Fencing
    }

    /// What is being read, once known.
    pub(crate) fn reading(&self) -> Option<&Reading> {
        match &self.state {
            State::Readable(reading) => Some(reading),
            _ => None,
        }
    }

    /// A backup's answer to the fence. One to another fence, or from the past, proves nothing.
    pub(crate) fn inventory(&mut self, from: ServerId, inventory: Inventory, now_us: u64) {
        if inventory.epoch != self.record.fence {
            return;
        }
        if self
            .inventories
            .get(&from)
            .is_none_or(|known| known.replicas != inventory.replicas)
        {
            self.dirty = true;
        }
        self.received_us.insert(from, now_us);
        self.inventories.insert(from, inventory);
    }

    /// A member is dead: what it held is out of reach, and what it was taking over is free again.
    pub(crate) fn lost(&mut self, server: ServerId, now_us: u64, journal: &mut Journal) {
        self.inventories.remove(&server);
        self.received_us.remove(&server);
        self.fence_due_us.remove(&server);
        self.avoid_until_us.remove(&server);
        self.dirty = true;
        let unfinished =
            |report: &&mut Report| report.master == server && report.ended_us.is_none();
        for report in self.reports.values_mut().filter(unfinished) {
            report.ended_us = Some(now_us);
        }
        let before = self.record.partitions.len();
        self.record
            .partitions
            .retain(|partition| partition.master != server);
        if self.record.partitions.len() != before {
            self.save(journal);
        }
    }

    pub(crate) fn progress(&mut self, from: ServerId, progress: Progress, now_us: u64) {
        if let Some(report) = self.reports.get_mut(&progress.attempt)
            && report.master == from
            && report.ended_us.is_none()
        {
            report.entries = report.entries.max(progress.entries);
            report.bytes = report.bytes.max(progress.bytes);
            report.done_bytes = report.done_bytes.max(progress.done_bytes);
            report.total_bytes = progress.total_bytes.max(report.done_bytes);
            report.due_us = now_us + RECOVER_REPEAT_US;
        }
    }

    /// The report of an attempt under way, with what has been done of it.
    fn report_of(&mut self, from: ServerId, done: &Done) -> Option<&mut Report> {
        let report = self.reports.get_mut(&done.attempt)?;
        if report.master != from || report.ended_us.is_some() {
            return None;
        }
        report.entries = done.entries;
        report.bytes = done.bytes;
        report.done_bytes = report.total_bytes;
        Some(report)
    }

    /// A partition is in its recovery master's own log: it owns the ranges from now on, if it did not before.
    /// Returns the ranges that have a new owner.
    pub(crate) fn recovered(
        &mut self,
        from: ServerId,
        done: Done,
        now_us: u64,
        tablets: &mut Tablets,
        journal: &mut Journal,
    ) -> Option<Vec<SlotRange>> {
        if let Some(report) = self.report_of(from, &done) {
            report.timings = Some(done.timings);
            report.bytes_left = 0;
            report.taken_over_us.get_or_insert(now_us);
            report.ended_us = Some(now_us);
        }
        let partition = self.end_partition(from, done.attempt)?;
        tablets.hand_over(self.log, LogId::of(from), &partition.ranges, journal);
        self.save(journal);
        Some(partition.ranges)
    }

    /// A recovery master gave up: the ranges are planned again, elsewhere if it lacked memory, with
    /// fresh inventories if replicas could not be read.
    pub(crate) fn failed(
        &mut self,
        from: ServerId,
        attempt: u64,
        reason: RecoveryFailure,
        now_us: u64,
        journal: &mut Journal,
        out: &mut Outputs,
    ) {
        if self.end_partition(from, attempt).is_none() {
            return;
        }
        if let Some(report) = self.reports.get_mut(&attempt) {
            report.failure = Some(reason);
            report.ended_us = Some(now_us);
        }
        let pause_us = (RETRY_MIN_US << self.failures.min(10)).min(RETRY_MAX_US);
        self.failures += 1;
        let why = match reason {
            RecoveryFailure::OutOfMemory => {
                self.avoid_until_us.insert(from, now_us + pause_us);
                "is out of memory".to_string()
            }
            RecoveryFailure::SegmentMissing(segment) => {
                self.plan_due_us = now_us + pause_us;
                self.ask_again();
                format!("could not read {segment} anywhere")
            }
        };
        out.event(
            Level::Warn,
            format!(
                "recovery of {} ({}): {from} {why}; its part is planned again",
                self.log, self.record.name
            ),
        );
        self.save(journal);
    }

    /// Compares what is with what should be and decides the next step. Returns true if ownership
    /// changed. What backups hold has been judged, and lenders have been set.
    pub(crate) fn advance(
        &mut self,
        around: &Surroundings<'_>,
        tablets: &mut Tablets,
        journal: &mut Journal,
        out: &mut Outputs,
    ) -> bool {
        let ranges = tablets.ranges_of(self.log);
        let planned: Vec<SlotRange> = self
            .record
            .partitions
            .iter()
            .flat_map(|p| p.ranges.iter().copied())
            .collect();
        let unplanned = without(&ranges, &planned);
        if unplanned.is_empty() || around.now_us < self.plan_due_us {
            return false;
        }
        match self.state {
            State::Fencing | State::Held(_) | State::Lent => false,
            State::Readable(_) if self.lenders.iter().any(|it| it.is_fencing) => false,
            State::Readable(_) if self.hold().is_some() => {
                let hold = self.hold().cloned().expect("just seen");
                self.warn(&hold, out);
                false
            }
            State::Empty => self.give_away(&unplanned, around, tablets, journal, out),
            State::Readable(_) | State::Abandoned => {
                self.plan(&unplanned, around, journal, out);
                false
            }
        }
    }

    /// Says what is due. Called only when everything decided is durable (V2).
    pub(crate) fn act(&mut self, around: &Surroundings<'_>, out: &mut Outputs) {
        if around.replicas == 0 {
            return;
        }
        let now_us = around.now_us;
        for backup in around.servers.with_role(Role::Backup) {
            let id = backup.member.id;
            let due_us = self.fence_due_us.entry(id).or_insert(0);
            if !self.inventories.contains_key(&id) && now_us >= *due_us {
                *due_us = now_us + FENCE_REPEAT_US;
                out.send(
                    id,
                    Message::Fence {
                        log: self.log,
                        epoch: self.record.fence,
                    },
                );
            }
        }
        let out_of_reach;
        let reading = match &self.state {
            State::Readable(reading) => reading,
            // V3. Whoever began will find out by itself; whoever never heard of its part says now that
            // it has nothing, and when all have said so the seal may be chosen anew (S4).
            State::Held(Hold::SealNotReached(seal)) => {
                out_of_reach = Reading::out_of_reach(*seal);
                &out_of_reach
            }
            State::Abandoned => return self.send_nothing(now_us, out),
            _ => return,
        };
        let lease_remaining_ms = self.lease_remaining_ms(now_us);
        for partition in &self.record.partitions {
            let Some(report) = self.reports.get_mut(&partition.attempt) else {
                continue;
            };
            if now_us < report.due_us {
                continue;
            }
            report.due_us = now_us + RECOVER_REPEAT_US;
            let mut recover = Recover {
                log: self.log,
                attempt: partition.attempt,
                ranges: partition.ranges.clone(),
                segments: reading.segments.clone(),
                version_ceiling: reading.version_ceiling,
                expiry_floor: reading.expiry_floor,
                lease_remaining_ms,
                first: None,
                leant_on: Vec::new(),
            };
            for lender in &self.lenders {
                let ranges = common(&lender.ranges, &partition.ranges);
                if ranges.is_empty() {
                    continue;
                }
                recover.leant_on.push(LeantOn {
                    ranges,
                    ..lender.source.clone()
                });
                recover.version_ceiling = recover.version_ceiling.max(lender.version_ceiling);
                recover.expiry_floor = recover.expiry_floor.max(lender.expiry_floor);
                recover.lease_remaining_ms =
                    (recover.lease_remaining_ms).max(lender.lease_remaining_ms);
            }
            if recover.leant_on.len() < LENDERS_MAX {
                let lendable = &self.record.lendable;
                let first = reading.segments.iter().map(|it| it.segment);
                let first: Vec<SegmentId> = first.filter(|it| !lendable.contains(it)).collect();
                recover.first = Some(first);
            }
            out.send(partition.master, Message::Recover(recover));
        }
    }

    /// Fence answered by all? Anything missing? What is the seal?
    pub(crate) fn judge(
        &mut self,
        around: &Surroundings<'_>,
        tablets: &Tablets,
        journal: &mut Journal,
        out: &mut Outputs,
    ) {
        if around.replicas == 0 {
            self.state = State::Empty;
            return;
        }
        let backups = || around.servers.with_role(Role::Backup);
        let answered = backups().all(|b| self.inventories.contains_key(&b.member.id));
        if !answered || self.stores_settling(around) {
            self.state = State::Fencing;
            self.dirty = true;
            return;
        }
        if self.is_leant_on() && !tablets.owns_any(self.log) {
            self.times.taken_over_us.get_or_insert(around.now_us);
            self.state = State::Lent;
            self.warned = None;
            return;
        }
        if !self.dirty {
            return;
        }
        self.dirty = false;
        self.times.fenced_us.get_or_insert(around.now_us);
        if self.record.abandoned.is_some() {
            self.state = State::Abandoned;
            return;
        }
        if self.lenders.is_empty() && self.certainly_empty(around) {
            self.state = State::Empty;
            return;
        }
        let may_reseal = self.record.partitions.is_empty() && !self.is_leant_on();
        let counting = Counting {
            minimum: self.record.minimum_epoch,
            needed: around.sealing_quorum,
        };
        let found = assess(counting, self.record.seal, may_reseal, &self.inventories);
        match found {
            Ok(reading) => {
                if self.record.seal != Some(reading.seal) {
                    self.record.seal = Some(reading.seal);
                    self.save(journal);
                    out.event(
                        Level::Info,
                        format!(
                            "log {} ({}) ends in segment {} at byte {}",
                            self.log, self.record.name, reading.seal.head, reading.seal.length
                        ),
                    );
                }
                self.times.sealed_us.get_or_insert(around.now_us);
                self.warned = None;
                self.state = State::Readable(reading);
            }
            Err(hold) => {
                self.warn(&hold, out);
                self.state = State::Held(hold);
            }
        }
    }

    /// Says why it waits, once.
    fn warn(&mut self, hold: &Hold, out: &mut Outputs) {
        if self.warned.as_ref() == Some(hold) {
            return;
        }
        let replicas = self.inventories.values().flat_map(|i| &i.replicas);
        let bad = match replicas.filter(|replica| replica.is_bad()).count() {
            0 => String::new(),
            1 => "; 1 replica is known to be bad".to_string(),
            many => format!("; {many} replicas are known to be bad"),
        };
        let (log, name) = (self.log, &self.record.name);
        let text = format!("recovery of {log} ({name}) waits: {hold}{bad}");
        out.event(Level::Warn, text);
        self.warned = Some(hold.clone());
    }

    /// True while stores of this log are away and backups have only just been coming, or everything
    /// has only just been started.
    fn stores_settling(&self, around: &Surroundings<'_>) -> bool {
        let up: BTreeSet<u64> = around
            .servers
            .with_role(Role::Backup)
            .map(|b| b.member.store)
            .collect();
        let away = self.record.stores.iter().any(|store| !up.contains(store));
        let coming = || {
            around
                .servers
                .with_role(Role::Backup)
                .any(|b| b.heard && around.now_us.saturating_sub(b.since_us) < SETTLE_US)
        };
        away && (around.now_us < around.settle_until_us || coming())
    }

    /// No store that was ever up in the log's life holds a replica, not even a bad one, and all were
    /// asked. The shard then never acknowledged anything: that takes an opened head on R of them.
    fn certainly_empty(&self, around: &Surroundings<'_>) -> bool {
        let asked = |store: &u64| {
            *store != 0
                && around.servers.with_role(Role::Backup).any(|b| {
                    b.member.store == *store && self.inventories.contains_key(&b.member.id)
                })
        };
        self.record.seal.is_none()
            && self.record.stores.len() >= usize::from(around.replicas)
            && self.record.stores.iter().all(asked)
            && self
                .inventories
                .values()
                .all(|inventory| inventory.replicas.is_empty())
    }

    /// Shards that could take a part now, with their free bytes: those first that are at no other dead log, and the emptiest of them.
    fn candidates(&mut self, around: &Surroundings<'_>) -> Vec<(ServerId, u64)> {
        self.avoid_until_us
            .retain(|_, until_us| around.now_us < *until_us);
        let shards = || {
            around
                .servers
                .with_role(Role::Shard)
                .filter(|shard| shard.heard)
        };
        let settling = shards().count() < around.initial_shards as usize
            && shards().any(|shard| around.now_us.saturating_sub(shard.since_us) < SETTLE_US);
        if settling {
            return Vec::new();
        }
        let busy = |id: ServerId| self.record.partitions.iter().any(|p| p.master == id);
        let mut fit: Vec<_> = shards()
            .filter(|shard| !shard.is_suspect() && !busy(shard.member.id))
            .filter(|shard| !self.avoid_until_us.contains_key(&shard.member.id))
            .collect();
        let parts = |id: ServerId| around.parts.get(&id).copied().unwrap_or(0);
        fit.sort_by_key(|it| (parts(it.member.id), it.figures.bytes_used, it.member.id));
        (fit.into_iter())
            .map(|shard| (shard.member.id, shard.bytes_free()))
            .collect()
    }

    fn plan(
        &mut self,
        unplanned: &[SlotRange],
        around: &Surroundings<'_>,
        journal: &mut Journal,
        out: &mut Outputs,
    ) {
        let shards = self.candidates(around);
        if shards.is_empty() {
            return;
        }
        let replica_bytes = self.reading().map_or(0, Reading::bytes);
        let parts = spread(
            unplanned,
            &shards,
            &self.record.loads,
            replica_bytes,
            around.part_bytes_min,
        );
        let (count, name) = (parts.len(), &self.record.name);
        let most = parts.iter().map(|part| part.load.bytes).max().unwrap_or(0) / 1_000_000;
        out.event(
            Level::Info,
            format!(
                "recovery of {} ({name}): {count} shards take over, {most} MB at most each",
                self.log
            ),
        );
        if self.record.partitions.is_empty()
            && !self.is_leant_on()
            && let State::Readable(reading) = &self.state
        {
            self.record.lendable = reading.lendable(around.replicas);
        }
        for Part { master, ranges, .. } in parts {
            self.record.attempts += 1;
            let partition = Partition {
                attempt: self.record.attempts,
                master,
                ranges,
            };
            self.report(&partition, around.now_us);
            self.record.partitions.push(partition);
        }
        self.times.planned_us.get_or_insert(around.now_us);
        self.save(journal);
    }

    /// An empty log's ranges need no recovery, only an owner.
    fn give_away(
        &mut self,
        ranges: &[SlotRange],
        around: &Surroundings<'_>,
        tablets: &mut Tablets,
        journal: &mut Journal,
        out: &mut Outputs,
    ) -> bool {
        let shards = self.candidates(around);
        if shards.is_empty() {
            return false;
        }
        for (shard, ranges) in divide(ranges, &shards) {
            tablets.hand_over(self.log, LogId::of(shard), &ranges, journal);
        }
        self.save(journal);
        let why = if around.replicas == 0 {
            "the cluster keeps no replicas, so its sessions are lost"
        } else {
            "no replica of it was ever written"
        };
        out.event(
            Level::Warn,
            format!("log {} ({}): {why}", self.log, self.record.name),
        );
        true
    }

    fn end_partition(&mut self, master: ServerId, attempt: u64) -> Option<Partition> {
        let fits = |p: &Partition| p.master == master && p.attempt == attempt;
        let at = self.record.partitions.iter().position(fits)?;
        Some(self.record.partitions.remove(at))
    }

    /// What backups hold may have changed: ask all of them.
    fn ask_again(&mut self) {
        self.inventories.clear();
        self.received_us.clear();
        self.fence_due_us.clear();
        self.dirty = true;
    }

    fn report(&mut self, partition: &Partition, now_us: u64) {
        let report = Report {
            master: partition.master,
            ranges: partition.ranges.clone(),
            entries: 0,
            bytes: 0,
            timings: None,
            taken_over_us: None,
            bytes_left: 0,
            done_bytes: 0,
            total_bytes: 0,
            began_us: now_us,
            ended_us: None,
            failure: None,
            due_us: 0,
        };
        self.reports.insert(partition.attempt, report);
        while self.reports.len() > REPORTS_MAX {
            let ended = self
                .reports
                .iter()
                .find(|(_, r)| r.ended_us.is_some())
                .map(|(a, _)| *a);
            // Running ones stay: there are no more of them than shards.
            let Some(oldest) = ended else { break };
            self.reports.remove(&oldest);
        }
    }

    /// The longest lease that any backup may have granted, less what has passed since it said so.
    fn lease_remaining_ms(&self, now_us: u64) -> u32 {
        (self.inventories.iter())
            .map(|(backup, inventory)| {
                let passed_ms = (now_us - self.received_us[backup]) / 1_000;
                inventory
                    .lease_remaining_ms
                    .saturating_sub(u32::try_from(passed_ms).unwrap_or(u32::MAX))
            })
            .max()
            .unwrap_or(0)
    }
}
