//! One shard of a master: dispatches what it is told, and at each flush replicates and answers.
//!
//! ```text
//! step:   Requests -> execute on the log, withhold the answer     Appended -> note what is held where
//! flush:  clock -> recovery -> cleaner -> ship appends -> release answers (lease judged by flush's `now`)
//! ```
//!
//! D1. A slot is served only while the view names this shard's log its available owner. Until what its former
//!     owner may still answer has run out, nothing is changed and only sessions that are there are told; and until all of it
//!     has been replayed, no key of which something may still come (`recovery`).
//! D2. Expiry is judged by `clock`: cluster time, never beyond the ceiling that every backup of the open heads
//!     remembers, never going back, and in no range before the clock of its former owner.
//! D3. An answer leaves only in `flush`, when what it depends on is durable and a lease held by every
//!     current replica of the open heads has not run out by the `now` of that flush. Only refusals, which
//!     say nothing about data, leave without.
//! D4. A command is refused as `NotOwner`, `NotReady` or `Busy` only if it is not executed, and its stream ends
//!     there. What has been executed is answered or, if this shard is replaced, never.
//! D5. After `Stopped` nothing is sent any more.
//!
//! Backpressure: a write that finds `unreplicated_bytes_max` bytes not yet on all replicas, and any command
//! that finds `queued_requests_max` answers (or `queued_bytes_max` of them) withheld, is refused as `Busy`. So with fewer than R backups
//! writers wait, up to that bound.

mod beside;
mod figures;
mod parked;
mod requests;
mod upkeep;

use std::collections::BTreeMap;

use holdfast_cluster::{
    Heard, Input, Level, Membership, Node, Now, Output, Outputs, ShardBeside, ViewExt,
};
use holdfast_format::{ClientId, ClusterMs, LogId, ServerId, SlotRange, without};
use holdfast_log::{Log, Toucher};
use holdfast_wire::{Figures, Message, NamespaceUse, Response, Responses};

use crate::answers::{Answer, Answers};
use crate::commands::namespace_uses;
use crate::config::{ConfigError, ShardConfig};
use crate::limits::Limits;
use crate::recovery::Recoveries;
use crate::replicas::{Replicas, Surroundings};
use crate::streams::Streams;
use figures::Counts;
use parked::Parked;

/// A shard told to shut down waits so long for its last answers.
const SHUTDOWN_US: u64 = 1_000_000;

/// Why a shard does not answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Serving,
    /// Told to shut down: takes nothing new.
    Stopping {
        until_us: u64,
    },
    Stopped,
}

/// One shard of a master.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    membership: Membership,
    log: Log,
    replicas: Replicas,
    recoveries: Recoveries,
    streams: Streams,
    /// Which of a client's outcomes were forgotten last: those below.
    acknowledged_last: (ClientId, u64),
    answers: Answers,
    /// Refusals, which need no lease.
    refusals: Vec<Answer>,
    /// Commands of which not enough is known yet, or that an old lease forbids.
    parked: Parked,
    /// Ranges that the view gives to this shard's log, available.
    owned: Vec<SlotRange>,
    /// Those of them in which everything is known, and of which nobody else may tell anything.
    settled: Vec<SlotRange>,
    /// Those of which not everything has been replayed, as of the last flush.
    unreplayed: Vec<SlotRange>,
    limits: Limits,
    clock: ClusterMs,
    /// The highest ceiling told to any backup.
    ceiling: ClusterMs,
    /// Until when answers could be released, as of the last flush.
    lease_until_us: u64,
    /// The last flush found a lease.
    leased: bool,
    /// When a flush last found one.
    leased_at_us: Option<u64>,
    /// Bytes not on all replicas as of the last flush, and appended since.
    unreplicated: u64,
    /// The cleaner has more to do.
    clean_more: bool,
    /// So much more that flushes alone will not do.
    behind: bool,
    /// Something was executed since the last flush.
    served: bool,
    /// The last flush left the cleaner's slices to the next one.
    put_off: bool,
    /// Appended since the cleaner was called.
    uncleaned: u64,
    recover_more: bool,
    tick_due_us: u64,
    sweep_due_us: u64,
    /// Memory is left that was never touched.
    touch_more: bool,
    touch_due_us: u64,
    life: Life,
    counts: Counts,
    process: ProcessMemory,
    /// A gateway of this thread has had something executed since the last flush.
    used: bool,
    /// A gateway of this thread may still have answers to give.
    lent: bool,
}

/// What a shard cannot know of the process it lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProcessMemory {
    /// Buffers of connections and of gateways: this shard's part.
    pub buffers_bytes: u64,
    /// Memory of the whole process that is in huge pages.
    pub huge_bytes: u64,
}

impl Shard {
    /// A new incarnation with an empty log. `seed` decides placement and jitter.
    pub fn new(config: ShardConfig, seed: u64) -> Result<Shard, ConfigError> {
        config.validate()?;
        let id = LogId::of(config.member.id);
        Ok(Shard {
            membership: Membership::new(config.member.clone(), seed),
            log: Log::new(id, config.log.clone())?,
            replicas: Replicas::new(id, config.copy_piece_bytes, seed.rotate_left(32)),
            recoveries: Recoveries::new(config.recovery_window_bytes),
            streams: Streams::new(config.clients_max as usize),
            acknowledged_last: (ClientId(0), 0),
            answers: Answers::default(),
            refusals: Vec::new(),
            parked: Parked::default(),
            owned: Vec::new(),
            settled: Vec::new(),
            unreplayed: Vec::new(),
            limits: Limits::default(),
            clock: ClusterMs::default(),
            ceiling: ClusterMs::default(),
            lease_until_us: 0,
            leased: false,
            leased_at_us: None,
            unreplicated: 0,
            clean_more: false,
            behind: false,
            served: false,
            put_off: false,
            uncleaned: 0,
            recover_more: false,
            tick_due_us: 0,
            touch_more: config.touch_memory,
            sweep_due_us: 0,
            touch_due_us: 0,
            life: Life::Serving,
            counts: Counts::default(),
            process: ProcessMemory::default(),
            used: false,
            lent: false,
            config,
        })
    }

    /// What the process around it holds; told from time to time.
    pub fn set_process_memory(&mut self, process: ProcessMemory) {
        self.process = process;
    }

    /// Walks the whole log and asserts its invariants. For tests; takes as long as the log is big.
    pub fn verify(&self) {
        self.log.verify();
    }

    /// What maps the log's memory ahead on a thread of its own; the shard leaves it to that from now on.
    /// `None` if there is nothing to do, or the system cannot do it so: then the shard does it by and by.
    pub fn toucher(&mut self) -> Option<Toucher> {
        let toucher = self.log.toucher().filter(|_| self.touch_more)?;
        self.touch_more = false;
        Some(toucher)
    }

    fn message(&mut self, now: Now, from: ServerId, message: Message, out: &mut Outputs) {
        match self.membership.handle(now, from, &message, out) {
            Heard::Taken => return,
            Heard::ViewChanged => return self.view_changed(out),
            Heard::Expelled => {
                return self.stop("declared dead by the coordinator".to_owned(), out);
            }
            Heard::NotMine => {}
        }
        let by_coordinator = from == ServerId::COORDINATOR;
        match message {
            Message::Requests(requests) => self.requests(now, from, requests),
            Message::Appended(ack) => self.replicas.appended(now, from, &ack),
            Message::AppendRefused(refused) => self.replicas.refused(now, from, &refused, out),
            Message::EpochRecorded { log, epoch } if by_coordinator => {
                self.replicas.epoch_recorded(log, epoch);
            }
            Message::Recover(recover) if by_coordinator => {
                let view = self.membership.view();
                self.recoveries
                    .recover(now, recover, view, &mut self.log, out);
                self.recover_more = true;
            }
            Message::RecoveryRecorded { log, attempt } if by_coordinator => {
                self.recoveries.recorded(log, attempt);
                self.recover_more = true;
            }
            Message::FetchPart(part) => {
                self.recoveries.part(now, from, part);
                self.recover_more = true;
            }
            Message::Outline {
                log,
                segment,
                attempt,
                outline,
            } => {
                let id = (log, attempt);
                (self.recoveries).outline(now, id, segment, outline.as_ref());
                self.recover_more = true;
            }
            Message::LookedUp {
                log,
                segment,
                attempt,
                key,
                entries,
            } => {
                let id = (log, attempt);
                (self.recoveries).looked_up(from, id, segment, key, entries);
                self.recover_more = true;
            }
            Message::FetchFailed {
                log,
                segment,
                attempt,
                certificate,
            } => {
                let id = (log, attempt);
                self.recoveries
                    .fetch_failed(now, from, id, segment, certificate);
            }
            // Meant for another role, or for an earlier incarnation at this address.
            _ => {}
        }
    }

    fn view_changed(&mut self, out: &mut Outputs) {
        let view = self.membership.view();
        let own = self.log.id();
        self.owned = (view.tablets_of(own))
            .filter(|tablet| tablet.available)
            .map(|tablet| tablet.range)
            .collect();
        self.replicas.view_changed(view, out);
        self.settle();
    }

    /// What this shard has of the key space has changed, or how much of it is known. Limits of namespaces go by what is
    /// known: what is still to be replayed is not counted yet.
    fn settle(&mut self) {
        self.unreplayed = self.recoveries.unreplayed();
        self.settled = without(&self.owned, &self.recoveries.unsettled());
        let known = without(&self.owned, &self.unreplayed);
        let view = self.membership.view();
        self.limits.set(&view.namespaces, &known);
    }

    /// D2.
    fn set_clock(&mut self, now: Now) {
        let standing = self.replicas.standing();
        self.lease_until_us = standing.lease_until_us;
        let floor = self.recoveries.expiry_floor();
        let Some(time) = self.membership.cluster_time(now) else {
            return;
        };
        self.clock = self.clock.max(time.max(floor).min(standing.ceiling));
        let lease_ms = self.membership.config().map_or(0, |config| config.lease_ms);
        self.ceiling = self
            .ceiling
            .max(time.plus_ms(u64::from(lease_ms)).max(floor));
    }

    /// What is outside the log counts against the same bound.
    fn account(&mut self) {
        self.log.set_external_bytes(
            self.answers.memory_bytes()
                + self.replicas.in_flight_bytes()
                + self.recoveries.held_bytes()
                + self.recoveries.bytes_to_come()
                + self.parked.bytes()
                + self.streams.memory_bytes()
                + self.process.buffers_bytes,
        );
    }

    fn ship(&mut self, now: Now, out: &mut Outputs) {
        let Some(config) = self.membership.config() else {
            return;
        };
        let around = Surroundings {
            view: self.membership.view(),
            own: self.membership.member(),
            config,
            ceiling: self.ceiling,
        };
        self.replicas.ship(now, &around, &mut self.log, out);
        self.unreplicated = self.replicas.unreplicated_bytes();
        self.answers.durable(self.replicas.durable());
    }

    /// D3.
    fn release(&mut self, now: Now, out: &mut Outputs) {
        let mut batches: Vec<(ServerId, Responses)> = Vec::new();
        let mut numbers: BTreeMap<(ClientId, u64), usize> = BTreeMap::new();
        let mut last = 0;
        let usual = self.answers.releasable() + self.refusals.len();
        let mut add = |answer: Answer| {
            let Answer {
                to,
                client,
                stream,
                token,
                outcome,
            } = answer;
            // Nearly always there is one client, or one after the other.
            let is_last = |(_, batch): &(ServerId, Responses)| {
                (batch.client, batch.stream) == (client, stream)
            };
            if !batches.get(last).is_some_and(is_last) {
                last = *numbers.entry((client, stream)).or_insert(batches.len());
                if last == batches.len() {
                    let room = if last == 0 { usual } else { 0 };
                    let batch = Responses {
                        client,
                        stream,
                        items: Vec::with_capacity(room),
                    };
                    batches.push((to, batch));
                }
            }
            batches[last].1.items.push(Response { token, outcome });
        };
        self.refusals.drain(..).for_each(&mut add);
        self.leased = now.mono_us < self.lease_until_us;
        if self.leased {
            self.leased_at_us = Some(now.mono_us);
            self.answers.release(&mut add);
        } else if self.answers.releasable() > 0 {
            self.counts.leaseless_flushes += 1;
        }
        for (to, batch) in batches {
            out.send(to, Message::Responses(batch));
        }
    }

    fn stop_if_done(&mut self, now: Now, out: &mut Outputs) {
        let Life::Stopping { until_us } = self.life else {
            return;
        };
        let done = self.answers.held() == 0 && self.unreplicated == 0;
        if until_us <= now.mono_us || (done && !self.lent) {
            return self.stop("told to shut down".to_owned(), out);
        }
        // A gateway beside hears in its own flush, which follows, what this one has made audible. Nothing new
        // is executed, so that was all.
        self.lent &= !(done && self.leased);
    }

    /// D5.
    fn stop(&mut self, reason: String, out: &mut Outputs) {
        self.life = Life::Stopped;
        out.push(Output::Stopped { reason });
    }
}

impl Node for Shard {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        if self.life == Life::Stopped {
            return;
        }
        match input {
            Input::Message { from, message } => self.message(now, from, message, out),
            Input::Tick => {
                self.membership.set_figures(self.figures());
                self.membership.set_namespaces(self.namespaces());
                self.membership.set_loads(self.loads());
                let waits = self.replicas.append_waits(now).to_vec();
                self.membership.set_append_waits(waits);
                self.membership.tick(now, out);
            }
            Input::PeerLost { peer, ended } => {
                self.membership.peer_lost(now, peer, ended, out);
                self.replicas.peer_lost(now, peer);
                self.recoveries.peer_lost(now, peer);
            }
            Input::Shutdown => {
                if self.life == Life::Serving {
                    self.life = Life::Stopping {
                        until_us: now.mono_us + SHUTDOWN_US,
                    };
                    out.event(Level::Info, "shutting down: taking no more requests");
                }
            }
            // Other roles' inputs.
            Input::Disk(_)
            | Input::RecordsWritten { .. }
            | Input::Connected { .. }
            | Input::Received { .. }
            | Input::Disconnected { .. }
            | Input::Call { .. }
            | Input::Order { .. } => {}
        }
    }

    fn flush(&mut self, now: Now, out: &mut Outputs) {
        if self.life == Life::Stopped {
            return;
        }
        self.set_clock(now);
        self.background(now, out);
        if self.life == Life::Stopped {
            return;
        }
        self.unpark(now);
        self.ship(now, out);
        self.recover_more |= self.recoveries.has_news(&self.log);
        self.account();
        // Acknowledgements that this flush has seen count for the commands that come next.
        self.set_clock(now);
        self.release(now, out);
        self.stop_if_done(now, out);
    }

    fn as_shard(&mut self) -> Option<&mut dyn ShardBeside> {
        Some(self)
    }

    fn wakeup(&self) -> Option<u64> {
        if self.life == Life::Stopped {
            return None;
        }
        if self.recover_more || self.clean_more || self.put_off {
            return Some(0);
        }
        let stopping = match self.life {
            Life::Stopping { until_us } => Some(until_us),
            Life::Serving | Life::Stopped => None,
        };
        [
            Some(self.tick_due_us),
            self.may_touch().then_some(self.touch_due_us),
            self.membership.wakeup(),
            self.replicas.wakeup(),
            self.recoveries.wakeup(),
            stopping,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        self.gather_metrics()
    }

    /// Enlisted, knows the time, holds a lease or needs none, serves all it owns (perhaps nothing, once
    /// slots are dealt out), and every segment has its replicas.
    fn ready(&self) -> bool {
        let (_, recorded) = self.replicas.epoch();
        self.life == Life::Serving
            && self.membership.is_enlisted()
            && self.leased
            && recorded
            && self.replicas.under_replicated() == 0
            && self.recoveries.running() == 0
            && self.clock >= self.recoveries.expiry_floor()
            && !self.membership.view().tablets.is_empty()
    }

    fn namespaces(&self) -> Vec<NamespaceUse> {
        namespace_uses(&self.log)
    }

    fn figures(&self) -> Figures {
        self.gather_figures()
    }
}
