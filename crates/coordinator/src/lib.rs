//! Membership, tablet map, recoveries and metadata records as a state machine.
//!
//! Floor 3. One coordinator is active. It tells members who is alive and who owns what, finds out
//! who is dead, and has their logs recovered. It is on no path of a request: an outage stops
//! recoveries, not service. It never touches sessions, opens sockets or reads clocks.
//!
//! Each step takes an input, changes the state in memory and stages the records of the change
//! (`journal`), decides what follows, and, once everything decided is durable, says what is due:
//!
//! ```text
//! Input --> take --> detect --> decide --> commit --> act (only while the journal is idle)
//! ```
//!
//! W1. Nothing is said that follows from an undurable change, but answers to heartbeats and pings,
//!     which promise nothing (and hand out no time above the durable ceiling).
//! W2. What is owed (`Enlisted`, `EpochRecorded`, views, fences) is state, not a queue: a restart or
//!     a slow store delays it, and nothing piles up.

mod clock;
mod config;
mod inventory;
mod journal;
mod members;
mod membership;
mod planning;
mod records;
mod recoveries;
mod recovery;
mod slowness;
mod status;
mod tablets;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_cluster::{Dice, Input, Level, Node, Now, Order, Output, Outputs};
use holdfast_format::{ClusterMs, Epoch, LogId, Namespace, ServerId};
use holdfast_wire::{Enlisted, Message, NamespaceLimits, NamespacePolicy, Role, Tablet, View};

use clock::ClockSource;
use journal::Journal;
use membership::{Gone, Server, Servers};
use records::{Identity, LiveLog, LogRecord, Recorded, Start};
use recovery::Recovery;
use slowness::Slowness;
use status::Finished;
use tablets::Tablets;

pub use config::{ConfigError, CoordinatorConfig};
pub use inventory::Hold;
pub use records::{RecordError, RecordFault, Seal};
pub use status::{MemberStatus, PartitionStatus, Phase, RecoveryStatus, Status, StoreAway};

/// Between two looks at timers, in general and while someone is suspected or recovered.
const TICK_US: u64 = 50_000;
const TICK_BUSY_US: u64 = 10_000;

/// No step for so long means that the coordinator itself was paused.
const PAUSE_US: u64 = 250_000;

/// A log may raise its epoch over the recorded one by no more than this at once. Anything above
/// is not our shard speaking; and the fence is further up.
const EPOCH_LEAP_MAX: u64 = 1 << 31;

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    journal: Journal,
    clock: ClockSource,
    start: Start,
    servers: Servers,
    gone: Gone,
    live: BTreeMap<LogId, LiveLog>,
    slowness: Slowness,
    recoveries: BTreeMap<LogId, Recovery>,
    tablets: Tablets,
    /// Limits that operators have set.
    namespaces: BTreeMap<Namespace, NamespaceLimits>,
    finished: Finished,
    declared_dead: u64,
    /// Parts of logs that were served before they were replicated, and those read from more than one log.
    takeovers_leaning: u64,
    takeovers_from_several: u64,
    /// Logs that operators gave up.
    abandoned: u64,
    /// How backups were called that are away, by store: for people.
    store_names: BTreeMap<u64, String>,

    /// False until the start record is durable; before that nothing is heard and nothing said.
    started: bool,
    stopped: bool,
    last_step_us: Option<u64>,
    tick_due_us: u64,
    /// Backups of the records that this coordinator began with, until one of them is heard.
    recorded_backups: Vec<ServerId>,
    /// No recovery chooses a head before, while stores of its log are away. 0 unless this is a cold start.
    settle_until_us: u64,
    dice: Dice,

    /// As last sent out.
    view: View,
    /// The state differs from `view`.
    view_stale: bool,
    owed_enlisted: BTreeSet<ServerId>,
    owed_epochs: BTreeSet<LogId>,
    /// Recoveries that are over, of which their masters do not know yet that this is on record.
    owed_recorded: BTreeSet<(ServerId, LogId, u64)>,
    /// Orders that have been obeyed but for telling so.
    owed_orders: Vec<u64>,
    dial: Vec<ServerId>,
    hang_up: Vec<ServerId>,
}

impl Coordinator {
    /// Starts from what an earlier coordinator recorded; `records` is empty for a new cluster.
    pub fn new(
        mut config: CoordinatorConfig,
        records: Vec<(String, Bytes)>,
        now: Now,
        seed: u64,
    ) -> Result<Coordinator, ConfigError> {
        config.validate()?;
        let recorded = Recorded::load(records)?;
        let mut dice = Dice::new(seed);
        let mut journal = Journal::new(recorded.start);
        match recorded.identity {
            Some(identity) => adopt(identity, &mut config)?,
            None => {
                if config.cluster.cluster == 0 {
                    config.cluster.cluster = dice.roll();
                }
                journal.put_identity(Identity {
                    cluster: config.cluster.cluster,
                    replicas: config.cluster.replicas,
                    ack_quorum: config.cluster.ack_quorum,
                });
            }
        }
        let mut namespaces = recorded.namespaces;
        for NamespacePolicy { namespace, limits } in &config.namespaces {
            if namespaces.insert(*namespace, *limits) != Some(*limits) {
                journal.put_namespace(*namespace, limits);
            }
        }
        let clock = ClockSource::new(now, recorded.start.clock_ceiling);
        let start = Start {
            generation: recorded.start.generation + 1,
            clock_ceiling: clock
                .ceiling_wanted(now, ClusterMs(0))
                .expect("zero is below any time's margin"),
        };
        journal.put_start(start);

        let mut servers = Servers::default();
        let mut dial = Vec::new();
        for member in recorded.servers.into_values() {
            dial.push(member.id);
            servers.add(member, now.mono_us, false);
        }
        let mut live = BTreeMap::new();
        let mut recoveries = BTreeMap::new();
        for (log, record) in recorded.logs {
            match record {
                LogRecord::Live(record) => {
                    live.insert(log, record);
                }
                LogRecord::Recovering(record) => {
                    recoveries.insert(log, Recovery::resume(log, record, now.mono_us));
                }
            }
        }
        Ok(Coordinator {
            journal,
            clock,
            start,
            servers,
            gone: Gone::new(recorded.gone),
            slowness: Slowness::default(),
            live,
            recoveries,
            tablets: Tablets::new(recorded.tablets),
            namespaces,
            finished: Finished::default(),
            declared_dead: 0,
            takeovers_leaning: 0,
            takeovers_from_several: 0,
            abandoned: 0,
            store_names: BTreeMap::new(),
            started: false,
            stopped: false,
            last_step_us: None,
            tick_due_us: 0,
            recorded_backups: Vec::new(),
            settle_until_us: 0,
            dice,
            view: View {
                version: u64::from(start.generation) << 32,
                ..View::default()
            },
            view_stale: true,
            owed_enlisted: BTreeSet::new(),
            owed_epochs: BTreeSet::new(),
            owed_recorded: BTreeSet::new(),
            owed_orders: Vec::new(),
            dial,
            hang_up: Vec::new(),
            config,
        })
    }

    /// Everything an operator may ask.
    pub fn status(&self, now: Now) -> Status {
        let member = |server: &Server| MemberStatus {
            member: server.member.clone(),
            figures: server.figures,
            namespaces: server.namespaces.clone(),
            suspect: server.is_suspect(),
            slow: self.slowness.is_slow(server.member.id),
            heard_ms_ago: now.mono_us.saturating_sub(server.heard_us) / 1_000,
        };
        let recovery = |(log, recovery): (&LogId, &Recovery)| {
            let mut status = status::describe(*log, recovery, now.mono_us);
            status.slots_left = (self.tablets.ranges_of(*log).iter())
                .map(holdfast_format::SlotRange::slots)
                .sum();
            status.stores_away = self.stores_away(recovery);
            status
        };
        Status {
            config: self.config.cluster,
            cluster_time: self.clock.now_ms(now),
            generation: self.start.generation,
            view_version: self.view.version,
            members: self.servers.iter().map(member).collect(),
            tablets: self.tablet_view(),
            namespaces: self.policies(),
            recoveries: self.recoveries.iter().map(recovery).collect(),
            finished: self.finished.to_vec(),
            not_ready_because: self.not_ready_because(),
            ready: self.ready(),
        }
    }

    /// Stores that a held recovery is waiting for: those that were up in the log's life, or in that of the log it
    /// leant on, and are away. Which of them held what is missing, nobody up knows.
    fn stores_away(&self, recovery: &Recovery) -> Vec<StoreAway> {
        let Some(hold) = recovery.hold() else {
            return Vec::new();
        };
        let lender = (hold.missing().0).and_then(|log| self.recoveries.get(&log));
        let of = lender.unwrap_or(recovery).record();
        let up: BTreeSet<u64> = (self.servers.with_role(Role::Backup))
            .map(|backup| backup.member.store)
            .collect();
        (of.stores.iter())
            .filter(|store| !up.contains(store))
            .map(|&store| StoreAway {
                store,
                name: self.store_names.get(&store).cloned(),
            })
            .collect()
    }

    fn take(&mut self, now: Now, input: Input, out: &mut Outputs) {
        match input {
            Input::Message { from, message } => {
                self.servers.heard(from, now.mono_us);
                self.take_message(now, from, message, out);
            }
            Input::PeerLost { peer, ended } => self.take_suspicion(now, peer, ended, out),
            Input::RecordsWritten { .. } | Input::Tick => {}
            Input::Order { token, order } => self.order(token, order, out),
            Input::Shutdown => {
                self.stopped = true;
                out.push(Output::Stopped {
                    reason: "told to shut down".into(),
                });
            }
            // Backups' and gateways' inputs; a driver that gives them to us has a bug, and nothing
            // of ours depends on them.
            Input::Disk(_)
            | Input::Connected { .. }
            | Input::Received { .. }
            | Input::Disconnected { .. }
            | Input::Call { .. } => {}
        }
    }

    fn take_message(&mut self, now: Now, from: ServerId, message: Message, out: &mut Outputs) {
        match message {
            Message::Enlist(enlist) if enlist.member.id == from => self.enlist(now, enlist, out),
            Message::Heartbeat(heartbeat) if heartbeat.from == from => {
                self.heartbeat(now, heartbeat, out);
            }
            Message::Ping { nonce } => out.send(from, Message::Pong { nonce }),
            Message::Suspect { server, ended } if self.servers.get(from).is_some() => {
                self.take_suspicion(now, server, ended, out);
            }
            Message::RaiseEpoch { log, epoch } if log.shard() == from => {
                self.raise_epoch(log, epoch);
            }
            Message::Inventory(_)
            | Message::RecoveryProgress { .. }
            | Message::Replayed { .. }
            | Message::Recovered { .. }
            | Message::RecoveryFailed { .. } => self.hear_of_recovery(now, from, message, out),
            // `Pong` has already counted as a sign of life; the rest is not for a coordinator, or
            // says that somebody else than its sender sent it.
            _ => {}
        }
    }

    /// Does what an operator wants, or says why not. Doing it again changes nothing, and is answered all the same.
    fn order(&mut self, token: u64, order: Order, out: &mut Outputs) {
        match order {
            Order::SetNamespace(NamespacePolicy { namespace, limits }) => {
                if self.namespaces.insert(namespace, limits) != Some(limits) {
                    self.journal.put_namespace(namespace, &limits);
                    self.view_stale = true;
                    let text = format!("namespace {} has new limits: {limits:?}", namespace.0);
                    out.event(Level::Info, text);
                }
            }
            Order::UnsetNamespace(namespace) => {
                if self.namespaces.remove(&namespace).is_some() {
                    self.journal.remove_namespace(namespace);
                    self.view_stale = true;
                    let text = format!("namespace {} has no limits any more", namespace.0);
                    out.event(Level::Info, text);
                }
            }
            Order::AbandonRecovery { log, shard } => {
                if let Err(why) = self.abandon(log, &shard, out) {
                    return out.push(Output::Refused { token, why });
                }
            }
        }
        self.owed_orders.push(token);
    }

    fn policies(&self) -> Vec<NamespacePolicy> {
        let policy = |(&namespace, &limits): (&Namespace, &NamespaceLimits)| NamespacePolicy {
            namespace,
            limits,
        };
        self.namespaces.iter().map(policy).collect()
    }

    // ---- logs and slots ----

    fn raise_epoch(&mut self, log: LogId, epoch: Epoch) {
        // R4: for a log declared dead the answer is silence.
        let Some(live) = self.live.get_mut(&log) else {
            return;
        };
        if epoch.0 > live.minimum_epoch.0.saturating_add(EPOCH_LEAP_MAX) {
            return;
        }
        if epoch > live.minimum_epoch {
            live.minimum_epoch = epoch;
            self.journal.put_log(log, &LogRecord::Live(live.clone()));
        }
        self.owed_epochs.insert(log);
    }

    /// Compares what is with what should be: recoveries, the first deal, the clock's ceiling.
    fn decide(&mut self, now: Now, out: &mut Outputs) {
        let heard = |id: &ServerId| self.servers.get(*id).is_some_and(|backup| backup.heard);
        if self.recorded_backups.iter().any(heard) {
            // It has lived on: only the coordinator had died.
            self.recorded_backups.clear();
            self.settle_until_us = 0;
        }
        self.advance_recoveries(now, out);
        self.view_stale |= self.slowness.judge(now.mono_us, &self.servers, out);
        if self.tablets.is_empty() && self.waiting_for().is_none() {
            self.deal(out);
        }
        if let Some(ceiling) = self.clock.ceiling_wanted(now, self.start.clock_ceiling) {
            self.start.clock_ceiling = ceiling;
            self.journal.put_start(self.start);
        }
    }

    /// What the first deal waits for; `None` once it can be, or has been, done.
    fn waiting_for(&self) -> Option<String> {
        if !self.tablets.is_empty() {
            return None;
        }
        let up = |role| {
            self.servers
                .with_role(role)
                .filter(|s| s.heard && !s.is_suspect())
                .count()
        };
        let (shards, backups) = (up(Role::Shard), up(Role::Backup));
        let (shards_wanted, backups_wanted) = (
            self.config.initial_shards as usize,
            usize::from(self.config.cluster.replicas),
        );
        (shards < shards_wanted || backups < backups_wanted).then(|| {
            format!("{shards} of {shards_wanted} shards and {backups} of {backups_wanted} backups are up")
        })
    }

    fn deal(&mut self, out: &mut Outputs) {
        let mut shards: Vec<(&str, LogId)> = (self.servers.with_role(Role::Shard))
            .filter(|server| server.heard && !server.is_suspect())
            .map(|server| (server.member.name.as_str(), LogId::of(server.member.id)))
            .collect();
        shards.sort_unstable();
        let owners: Vec<LogId> = shards.into_iter().map(|(_, log)| log).collect();
        out.event(
            Level::Info,
            format!("all slots are dealt out to {} shards", owners.len()),
        );
        self.tablets.deal(&owners, &mut self.journal);
        self.view_stale = true;
    }

    fn tablet_view(&self) -> Vec<Tablet> {
        let tablet = |t: &records::Ownership| Tablet {
            range: t.range,
            owner: t.owner,
            epoch: t.epoch,
            available: self.live.contains_key(&t.owner),
        };
        self.tablets.iter().map(tablet).collect()
    }

    // ---- saying what is due ----

    /// W1: called only while everything decided is durable.
    fn act(&mut self, now: Now, out: &mut Outputs) {
        for peer in std::mem::take(&mut self.hang_up) {
            out.push(Output::Forget { peer });
        }
        for peer in std::mem::take(&mut self.dial) {
            let server = self.servers.get(peer).expect("the dead are not dialled");
            let address = server.member.address.clone();
            if !address.is_empty() {
                out.push(Output::Address { peer, address });
            }
        }
        if self.view_stale {
            self.publish(out);
        }
        for id in std::mem::take(&mut self.owed_enlisted) {
            let enlisted = Enlisted {
                id,
                config: self.config.cluster,
                view: self.view.clone(),
            };
            out.send(id, Message::Enlisted(enlisted));
        }
        for log in std::mem::take(&mut self.owed_epochs) {
            let epoch = self.live[&log].minimum_epoch;
            out.send(log.shard(), Message::EpochRecorded { log, epoch });
        }
        for (to, log, attempt) in std::mem::take(&mut self.owed_recorded) {
            out.send(to, Message::RecoveryRecorded { log, attempt });
        }
        for token in std::mem::take(&mut self.owed_orders) {
            out.push(Output::Obeyed { token });
        }
        for (log, backup) in self.gone.announcements_due(now.mono_us) {
            out.send(backup, Message::LogGone { log });
        }
        self.act_on_recoveries(now, out);
    }

    /// Makes the next view and sends it to everyone who will not get it with `Enlisted`.
    fn publish(&mut self, out: &mut Outputs) {
        self.view_stale = false;
        self.view = View {
            version: self.view.version + 1,
            members: self
                .servers
                .iter()
                .map(|server| server.member.clone())
                .collect(),
            tablets: self.tablet_view(),
            recovering: self.recoveries.keys().copied().collect(),
            namespaces: self.policies(),
            slow: self.slowness.slow(),
        };
        for server in self.servers.iter() {
            if !self.owed_enlisted.contains(&server.member.id) {
                out.send(server.member.id, Message::View(self.view.clone()));
            }
        }
    }
}

/// Starts as the cluster that the records belong to, or not at all.
fn adopt(identity: Identity, config: &mut CoordinatorConfig) -> Result<(), ConfigError> {
    let mismatch = |what, recorded, configured| {
        Err(ConfigError::Mismatch {
            what,
            recorded,
            configured,
        })
    };
    let cluster = config.cluster.cluster;
    if cluster != 0 && cluster != identity.cluster {
        return mismatch("cluster", identity.cluster, cluster);
    }
    // Logs were written, and will be sealed, by these numbers.
    if config.cluster.replicas != identity.replicas {
        let configured = config.cluster.replicas.into();
        return mismatch("replicas", identity.replicas.into(), configured);
    }
    if config.cluster.ack_quorum != identity.ack_quorum {
        let configured = config.cluster.ack_quorum.into();
        return mismatch("ack_quorum", identity.ack_quorum.into(), configured);
    }
    config.cluster.cluster = identity.cluster;
    Ok(())
}

impl Node for Coordinator {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        if self.stopped {
            return;
        }
        let gap_us = now.mono_us - self.last_step_us.unwrap_or(now.mono_us);
        self.last_step_us = Some(now.mono_us);
        if gap_us > PAUSE_US {
            // All but what a step may take in good health: a driver that is always slow must still
            // find the dead.
            self.servers.forgive(gap_us - 2 * TICK_US);
        }
        if let Input::RecordsWritten { token } = input {
            self.journal.written(token);
        }
        if !self.started {
            // Everything is said again by whoever says it; nothing is lost by not listening yet.
            self.journal.commit(out);
            self.started = self.journal.idle();
            self.tick_due_us = now.mono_us + TICK_US;
            if !self.started {
                if let Input::Shutdown = input {
                    self.take(now, input, out);
                }
                return;
            }
            self.begin(now, out);
        }
        self.take(now, input, out);
        if self.stopped {
            return;
        }
        self.detect(now, out);
        self.decide(now, out);
        self.journal.commit(out);
        if self.journal.idle() {
            self.act(now, out);
        }
        let busy = self.servers.any_suspect() || !self.recoveries.is_empty();
        self.tick_due_us = now.mono_us + if busy { TICK_BUSY_US } else { TICK_US };
    }

    fn wakeup(&self) -> Option<u64> {
        (!self.stopped).then_some(self.tick_due_us)
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        let up = |role| self.servers.with_role(role).count() as f64;
        let holds = || self.recoveries.values().filter_map(Recovery::hold);
        let missing: usize = holds().map(|hold| hold.missing().2).sum();
        let leaning = self.recoveries.values().filter(|r| r.is_lent()).count();
        let unavailable: u32 = (self.tablet_view().iter())
            .filter(|tablet| !tablet.available)
            .map(|tablet| tablet.range.slots())
            .sum();
        vec![
            ("holdfast_shards_up", up(Role::Shard)),
            ("holdfast_backups_up", up(Role::Backup)),
            ("holdfast_gateways_up", up(Role::Gateway)),
            ("holdfast_backups_slow", self.slowness.slow().len() as f64),
            (
                "holdfast_backups_found_slow_total",
                self.slowness.found as f64,
            ),
            ("holdfast_slots_unavailable", f64::from(unavailable)),
            (
                "holdfast_recoveries_running",
                (self.recoveries.len() - leaning) as f64,
            ),
            ("holdfast_recoveries_leaning", leaning as f64),
            ("holdfast_recoveries_held", holds().count() as f64),
            ("holdfast_recovery_segments_missing", missing as f64),
            ("holdfast_recoveries_abandoned_total", self.abandoned as f64),
            (
                "holdfast_recoveries_finished_total",
                self.finished.count as f64,
            ),
            (
                "holdfast_takeovers_leaning_total",
                self.takeovers_leaning as f64,
            ),
            (
                "holdfast_takeovers_from_several_logs_total",
                self.takeovers_from_several as f64,
            ),
            (
                "holdfast_members_declared_dead_total",
                self.declared_dead as f64,
            ),
        ]
    }

    fn ready(&self) -> bool {
        let replicated = |server: &Server| server.heard && server.figures.under_replicated == 0;
        self.started
            && !self.tablets.is_empty()
            && self.recoveries.is_empty()
            && self.servers.with_role(Role::Shard).all(replicated)
    }

    fn not_ready_because(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.waiting_for().into_iter().collect();
        let of_recovery = |(log, it): (&LogId, &Recovery)| {
            let name = &it.record().name;
            match it.hold() {
                Some(hold) => {
                    let away = self.stores_away(it);
                    let away = match away.is_empty() {
                        true => String::new(),
                        false => format!("; away: {}", status::listed(&away)),
                    };
                    format!("the recovery of log {log} ({name}) is held: {hold}{away}")
                }
                None if it.is_lent() => {
                    format!("what was recovered of {name} is not replicated yet")
                }
                None => format!("{name} is being recovered"),
            }
        };
        reasons.extend(self.recoveries.iter().map(of_recovery));
        for server in self.servers.with_role(Role::Shard) {
            let lacking = server.figures.under_replicated;
            if lacking > 0 {
                let name = &server.member.name;
                reasons.push(format!("{name}: {lacking} segments lack replicas"));
            }
        }
        if !self.ready() && reasons.is_empty() {
            reasons.push("some slots have no owner that answers".to_string());
        }
        reasons
    }
}

impl Coordinator {
    /// The start is durable: recorded members have `dead_ms` from now, unless nobody can be alive.
    fn begin(&mut self, now: Now, out: &mut Outputs) {
        // Where disks acknowledge, what was promised was synced, and no head can look older than it is.
        let has_logs = !self.live.is_empty() || !self.recoveries.is_empty();
        if has_logs && !self.config.cluster.ack_disk {
            let backups = self.servers.with_role(Role::Backup);
            self.recorded_backups = backups.map(|backup| backup.member.id).collect();
            self.settle_until_us = now.mono_us + u64::from(self.config.settle_ms) * 1_000;
        }
        let recorded: Vec<ServerId> = self.servers.iter().map(|server| server.member.id).collect();
        for id in recorded {
            if self.config.cold_start {
                self.declare_dead(now, id, "this is a cold start", out);
            } else if let Some(server) = self.servers.get_mut(id) {
                server.heard_us = now.mono_us;
                server.since_us = now.mono_us;
            }
        }
        for id in self.gone.newest() {
            for backup in self.servers.with_role(Role::Backup) {
                self.gone
                    .announce(LogId::of(id), backup.member.id, now.mono_us);
            }
        }
    }
}
