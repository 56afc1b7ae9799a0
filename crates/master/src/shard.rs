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
mod parked;

use std::collections::BTreeMap;

use holdfast_cluster::{
    Heard, Input, Level, Membership, Node, Now, Output, Outputs, ShardBeside, ViewExt,
};
use holdfast_format::{
    ClientId, ClusterMs, KeyHash, LogId, Namespace, Position, ServerId, Slot, SlotRange, without,
};
use holdfast_log::{Load, Log, Toucher};
use holdfast_wire::{
    Command, Failure, Figures, Message, NamespaceUse, Once, Op, Outcome, Request, Requests,
    Response, Responses, SlotLoad,
};

use crate::answers::{Answer, Answers, Concern};
use crate::commands::{Context, Identity, execute, namespace_uses, refuse_once};
use crate::config::{ConfigError, ShardConfig};
use crate::limits::Limits;
use crate::recovery::{Recoveries, Standing};
use crate::replicas::{Replicas, Surroundings};
use crate::streams::{Admission, Streams};
use parked::Parked;

/// Background work is done so often when nothing else happens.
const TICK_US: u64 = 20_000;

/// Index buckets swept per tick at most: at most seven entries each are looked at, so about 0.2 ms; a million buckets
/// are passed in 80 s, which is soon enough for counting. When memory is short the cleaner
/// does not wait for the sweep.
const SWEEP_BUCKETS: u32 = 256;

/// And at least, so that a small index is passed in no time.
const SWEEP_BUCKETS_MIN: u32 = 64;

/// Ticks that one pass takes at least if it needs no more buckets than that in each: passing a hundred thousand
/// sessions every second would cost 3 % of a core and throw what clients ask for out of its caches.
const SWEEP_PASS_TICKS: u64 = 10_000_000 / TICK_US;

/// One slice of the cleaner: some 50 to 150 microseconds of reading and copying. How many are due the log says.
const CLEAN_SLICE_BYTES: u64 = 128 << 10;

/// While a namespace has all that it may, expired sessions may be in somebody's way: then the sweep is this much
/// more eager, and a million buckets are passed in 16 s.
const FULL_SWEEP_US: u64 = 4_000;

/// Slices in one flush: what came in meanwhile waits for them. While more are due there is another flush at once.
const CLEAN_SLICES: u32 = 2;

/// Within a turn, a slice is done whenever so much has been appended, and after every write while the cleaner is behind.
/// The fuller memory is, the more each write costs: it is the writers that are slowed down, in time, and not refused.
const CLEAN_EVERY_BYTES: u64 = 32 << 10;

/// Requests of a pipeline whose keys are loaded together before they are executed: so many loads hide nearly
/// all of the waiting for memory, and the processor has no room for many more.
const PREFETCH_MAX: usize = 32;

/// Until all of the log's memory has been touched once, so much of it is touched so often. At the 0.4 to 2.5 GB/s
/// that fresh memory costs this delays a request by 0.05 to 0.3 ms at most, and stays ahead of what
/// replication lets in.
const TOUCH_BYTES: u64 = 128 << 10;
const TOUCH_US: u64 = 1_000;

/// A shard told to shut down waits so long for its last answers.
const SHUTDOWN_US: u64 = 1_000_000;

/// What becomes of a command now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    /// It is executed. `unseen`: as a write that knows nothing of what there was.
    Now {
        unseen: bool,
    },
    /// Until more has been replayed, or an old lease has run out.
    Wait,
    Refused(Failure),
}

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

/// Commands since start, by what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    not_owner: u64,
    not_ready: u64,
    busy: u64,
    failed: u64,
    /// Of keys in ranges of which not everything had been replayed.
    early_reads: u64,
    early_writes: u64,
    /// Of keys of which the former owner may still tell something.
    leased_reads: u64,
    leaseless_flushes: u64,
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
            replicas: Replicas::new(id, seed.rotate_left(32)),
            recoveries: Recoveries::new(config.recovery_window_bytes),
            streams: Streams::new(config.clients_max as usize),
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

    // ---- commands ----

    fn requests(&mut self, now: Now, from: ServerId, requests: Requests) {
        let Requests {
            client,
            stream,
            first,
            items,
        } = requests;
        if first == 0 {
            self.parked.forget_older(client, stream);
        }
        let admission = self
            .streams
            .admit(now.mono_us, client, stream, first, items.len());
        let (skip, refusal) = match admission {
            Admission::Execute { skip } => (skip, None),
            Admission::Ignore => return,
            Admission::Gap => (0, Some(Failure::NotReady)),
            Admission::Full => (0, Some(Failure::Busy)),
        };
        if refusal.is_some() {
            self.streams.put_off(client, stream);
        }
        let items = &items[skip.min(items.len())..];
        for (at, request) in items.iter().enumerate() {
            if at % PREFETCH_MAX == 0 && items.len() > 1 {
                self.prefetch(&items[at..items.len().min(at + PREFETCH_MAX)]);
            }
            let token = request.token;
            let answer = |outcome| Answer {
                to: from,
                client,
                stream,
                token,
                outcome,
            };
            let mut turn = match &refusal {
                Some(failure) => Turn::Refused(failure.clone()),
                None if self.streams.is_put_off(client, stream) => Turn::Refused(Failure::NotReady),
                None if self.waits_behind(client, stream, request) => Turn::Wait,
                None => self.turn(now, request),
            };
            if turn == Turn::Wait {
                if self.park(from, client, stream, request) {
                    continue;
                }
                turn = Turn::Refused(Failure::NotReady);
            }
            match turn {
                Turn::Now { unseen } => {
                    let (needs, outcome) = self.execute(client, request, unseen);
                    self.answers.hold(needs, answer(outcome));
                }
                Turn::Refused(failure) => {
                    self.count_refusal(&failure);
                    // D4.
                    self.streams.put_off(client, stream);
                    self.refusals.push(answer(Outcome::Failed(failure)));
                }
                Turn::Wait => unreachable!("it waits, or was refused for want of room"),
            }
        }
    }

    /// Has loaded what commands that are about to be executed will look for.
    fn prefetch(&self, requests: &[Request]) {
        let mut hashes = [KeyHash(0); PREFETCH_MAX];
        let hashes = &mut hashes[..requests.len()];
        for (hash, request) in hashes.iter_mut().zip(requests) {
            *hash = KeyHash::of(request.command.namespace, &request.command.key);
        }
        self.log.prefetch_batch(hashes);
    }

    /// What becomes of a request now.
    fn turn(&self, now: Now, request: &Request) -> Turn {
        let command = &request.command;
        if let Some(failure) = self.unready(now) {
            return Turn::Refused(failure);
        }
        let mut unseen = false;
        if command.op.is_keyspace() {
            if self.owned.is_empty() {
                return Turn::Refused(Failure::NotOwner);
            }
            // An old lease may have run out since the last flush.
            if self.settled != self.owned || self.recoveries.withholds_any(now, &self.owned) {
                return Turn::Wait;
            }
        } else {
            let slot = Slot::of(&command.key);
            if !self.owned.iter().any(|range| range.contains(slot)) {
                return Turn::Refused(Failure::NotOwner);
            }
            match self.standing(now, command, request.once.as_ref()) {
                Standing::Known => {}
                Standing::Unseen => unseen = true,
                Standing::Wait => return Turn::Wait,
                Standing::Withheld => return Turn::Refused(Failure::NotReady),
            }
        }
        match command.op.is_write() && self.is_behind() {
            true => Turn::Refused(Failure::Busy),
            false => Turn::Now { unseen },
        }
    }

    /// What may be said about the key of a command in a slot that this shard owns.
    fn standing(&self, now: Now, command: &Command, once: Option<&Once>) -> Standing {
        let adds = command.op.is_write() && !matches!(command.op, Op::Delete { .. });
        let limited = adds && self.limits.has(command.namespace);
        (self.recoveries).standing(now, &self.log, self.clock, command, once, limited)
    }

    /// Why nothing at all is executed now, if so.
    fn unready(&self, now: Now) -> Option<Failure> {
        if self.life != Life::Serving {
            return Some(Failure::NotReady);
        }
        // Without a lease nothing could be answered. A short lapse is bridged: what is executed
        // meanwhile waits for the lease to come back.
        let Some(config) = self.membership.config() else {
            return Some(Failure::NotReady);
        };
        let bridged_us = u64::from(config.lease_ms) * 1_000;
        let lapsed = (self.leased_at_us).is_none_or(|at_us| now.mono_us > at_us + bridged_us);
        let without_time = self.membership.cluster_time(now).is_none();
        // D2. A lease may be older than the first estimate of cluster time; until a ceiling above
        // 0 is acknowledged too, the expiry clock stands at 0 and every deadline would be wrong.
        let unset = self.clock == ClusterMs(0);
        if without_time || unset || lapsed || self.clock < self.recoveries.expiry_floor() {
            return Some(Failure::NotReady);
        }
        self.is_full().then_some(Failure::Busy)
    }

    fn is_full(&self) -> bool {
        let (count, bytes) = (self.parked.len(), self.parked.bytes());
        self.answers.held() + count >= self.config.queued_requests_max as usize
            || self.answers.held_bytes() + bytes >= self.config.queued_bytes_max
    }

    /// Writers wait for replicas to catch up.
    fn is_behind(&self) -> bool {
        self.unreplicated >= self.config.unreplicated_bytes_max
    }

    /// Executes a command; also says what must be durable before its outcome may be heard.
    fn execute(
        &mut self,
        client: ClientId,
        request: &Request,
        unseen: bool,
    ) -> (Position, Outcome) {
        let command = &request.command;
        let is_write = command.op.is_write();
        self.count(is_write);
        if let Some(once) = request.once.as_ref().filter(|_| is_write) {
            // Nothing of what will be refused may be remembered (S5).
            if let Some(failure) = refuse_once(self.clock, once) {
                self.counts.failed += 1;
                return (Position::default(), Outcome::Failed(failure));
            }
            let acknowledged = once.acknowledged.min(once.sequence);
            let known = match once.client == client {
                true => self.streams.acknowledge(client, acknowledged),
                false => self.streams.acknowledge_through_others(
                    once.client,
                    acknowledged,
                    once.lease_until,
                    self.clock,
                ),
            };
            self.log.acknowledge(once.client, acknowledged.min(known));
            // A client that has an outcome never asks for it again; if it does, the record is gone.
            if once.sequence < known {
                return (Position::default(), Outcome::Failed(Failure::StaleClient));
            }
        }
        let identity = match &request.once {
            Some(once) => Identity::Once(once),
            None => Identity::Missing,
        };
        self.run(command, identity, unseen)
    }

    /// Executes a command and notes what it concerned.
    fn run(
        &mut self,
        command: &Command,
        identity: Identity<'_>,
        unseen: bool,
    ) -> (Position, Outcome) {
        if self.settled != self.owned {
            self.count_early(command);
        }
        let before = self.log.end();
        let context = Context {
            now: self.clock,
            owned: &self.settled,
            unseen,
        };

        let mut evicted = Vec::new();
        let outcome = execute(
            &mut self.log,
            &mut self.limits,
            context,
            command,
            identity,
            &mut evicted,
        );
        if let Outcome::Failed(failure) = &outcome {
            self.counts.failed += 1;
            // D4.
            assert!(
                !matches!(
                    failure,
                    Failure::NotOwner | Failure::NotReady | Failure::Busy
                ),
                "an executed command is not refused"
            );
        }
        let (namespace, end) = (command.namespace, self.log.end());
        let hash = KeyHash::of(namespace, &command.key);
        for hash in evicted {
            self.answers.appended(Concern::Key(hash), end);
        }
        if end != before {
            self.note_appended(before, end);
            let concern = match command.op.is_keyspace() {
                true => Concern::Namespace(namespace),
                false => Concern::Key(hash),
            };
            self.answers.appended(concern, end);
        }
        let needs = match command.op.is_keyspace() {
            true => end,
            false => self.answers.needs(namespace, hash),
        };
        self.served = true;
        if command.op.is_write() {
            self.clean_for(&outcome);
        }
        (needs, outcome)
    }

    /// What a write brings about: a large one as many slices as the small ones that would be as long.
    fn clean_for(&mut self, outcome: &Outcome) {
        let refused = matches!(outcome, Outcome::Failed(Failure::OutOfMemory));
        let at_least = u64::from(refused || self.behind);
        let slices = (self.uncleaned / CLEAN_EVERY_BYTES).max(at_least);
        let _ = (0..slices).all(|_| self.clean());
    }

    fn note_appended(&mut self, before: Position, end: Position) {
        let bytes = match before.segment == end.segment {
            true => end.offset - before.offset,
            false => end.offset,
        };
        self.unreplicated += u64::from(bytes);
        self.uncleaned += u64::from(bytes);
    }

    /// One slice. True if more is due.
    fn clean(&mut self) -> bool {
        self.uncleaned = 0;
        self.clean_more = self.log.clean(self.clock, CLEAN_SLICE_BYTES);
        self.behind = self.clean_more && self.log.is_cleaning_behind();
        self.clean_more
    }

    /// The slices of a flush. Those who have just been served hear it first: once, or there would never be any while
    /// clients are busy.
    fn clean_in_flush(&mut self) {
        let served = std::mem::take(&mut self.served);
        self.put_off = served && !self.put_off && self.log.is_cleaning_due(self.clock);
        if !self.put_off {
            self.clean_more = (0..CLEAN_SLICES).all(|_| self.clean());
        }
    }

    fn count(&mut self, is_write: bool) {
        match is_write {
            true => self.counts.writes += 1,
            false => self.counts.reads += 1,
        }
    }

    /// Something is told of a range that has not been settled.
    fn count_early(&mut self, command: &Command) {
        let slot = Slot::of(&command.key);
        let holds = |ranges: &[SlotRange]| ranges.iter().any(|range| range.contains(slot));
        let counts = &mut self.counts;
        match (
            holds(&self.settled),
            holds(&self.unreplayed),
            command.op.is_write(),
        ) {
            (true, ..) => {}
            (false, true, true) => counts.early_writes += 1,
            (false, true, false) => counts.early_reads += 1,
            (false, false, _) => counts.leased_reads += 1,
        }
    }

    fn count_refusal(&mut self, failure: &Failure) {
        match failure {
            Failure::NotOwner => self.counts.not_owner += 1,
            Failure::Busy => self.counts.busy += 1,
            _ => self.counts.not_ready += 1,
        }
    }

    // ---- what flush does ----

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

    fn background(&mut self, now: Now, out: &mut Outputs) {
        let view = self.membership.view();
        match self
            .recoveries
            .work(now, self.clock, view, &mut self.log, out)
        {
            Ok(more) => self.recover_more = more,
            Err(lost) => return self.stop(lost.to_string(), out),
        }
        if self.recoveries.withholds_some(now) || self.settled != self.owned {
            self.settle();
        }
        if self.sweep_due_us <= now.mono_us {
            let full = self.limits.any_full(&self.log);
            self.sweep_due_us = now.mono_us + if full { FULL_SWEEP_US } else { TICK_US };
            let buckets = match full {
                true => SWEEP_BUCKETS,
                false => self.sweep_buckets(),
            };
            self.log.sweep(self.clock, buckets);
        }
        if self.tick_due_us <= now.mono_us {
            self.tick_due_us = now.mono_us + TICK_US;
        }
        if self.may_touch() && self.touch_due_us <= now.mono_us {
            self.touch_due_us = now.mono_us + TOUCH_US;
            self.touch_more = self.log.touch_ahead(TOUCH_BYTES);
        }
        self.clean_in_flush();
    }

    /// What the coordinator plans our recovery from, should it come to that.
    fn loads(&self) -> Vec<SlotLoad> {
        let saturated = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let load = |load: &Load| SlotLoad {
            entries: saturated(load.entries),
            kib: saturated(load.bytes.div_ceil(1 << 10)),
        };
        self.log.loads().iter().map(load).collect()
    }

    /// How many index buckets a tick sweeps.
    fn sweep_buckets(&self) -> u32 {
        let share = self.log.index_buckets().div_ceil(SWEEP_PASS_TICKS);
        share.clamp(SWEEP_BUCKETS_MIN.into(), SWEEP_BUCKETS.into()) as u32
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

    /// Starting and recovering go first.
    fn may_touch(&self) -> bool {
        self.touch_more && self.leased && !self.recover_more
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
        let mut batches: BTreeMap<(ClientId, u64), (ServerId, Vec<Response>)> = BTreeMap::new();
        let mut add = |answer: Answer| {
            let Answer {
                to,
                client,
                stream,
                token,
                outcome,
            } = answer;
            let batch = batches.entry((client, stream)).or_insert((to, Vec::new()));
            batch.1.push(Response { token, outcome });
        };
        self.refusals.drain(..).for_each(&mut add);
        self.leased = now.mono_us < self.lease_until_us;
        if self.leased {
            self.leased_at_us = Some(now.mono_us);
            self.answers.release().into_iter().for_each(&mut add);
        } else if self.answers.releasable() > 0 {
            self.counts.leaseless_flushes += 1;
        }
        for ((client, stream), (to, items)) in batches {
            out.send(
                to,
                Message::Responses(Responses {
                    client,
                    stream,
                    items,
                }),
            );
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

    fn sessions(&self) -> u64 {
        (0..=u8::MAX)
            .map(|n| self.log.count(Namespace(n)).sessions)
            .sum()
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
        let memory = self.log.memory();
        let (epoch, recorded) = self.replicas.epoch();
        let replication = self.replicas.counts();
        let (recoveries, recovered_entries, recovered_bytes) = self.recoveries.totals();
        let (leaning, leaning_bytes) = self.recoveries.leaning(&self.log);
        let counts = self.counts;
        let (takeovers_early, segments_pulled) = self.recoveries.early_totals();
        vec![
            (
                "holdfast_shard_takeovers_early_total",
                takeovers_early as f64,
            ),
            (
                "holdfast_shard_segments_pulled_total",
                segments_pulled as f64,
            ),
            (
                "holdfast_shard_early_reads_total",
                counts.early_reads as f64,
            ),
            (
                "holdfast_shard_early_writes_total",
                counts.early_writes as f64,
            ),
            (
                "holdfast_shard_reads_in_old_lease_total",
                counts.leased_reads as f64,
            ),
            ("holdfast_shard_waiting", self.parked.len() as f64),
            ("holdfast_shard_waited_total", self.parked.served as f64),
            ("holdfast_shard_sessions", self.sessions() as f64),
            ("holdfast_shard_reads_total", counts.reads as f64),
            ("holdfast_shard_writes_total", counts.writes as f64),
            ("holdfast_shard_failed_total", counts.failed as f64),
            (
                "holdfast_shard_refused_not_owner_total",
                counts.not_owner as f64,
            ),
            (
                "holdfast_shard_refused_not_ready_total",
                counts.not_ready as f64,
            ),
            ("holdfast_shard_refused_busy_total", counts.busy as f64),
            (
                "holdfast_shard_leaseless_flushes_total",
                counts.leaseless_flushes as f64,
            ),
            (
                "holdfast_shard_answers_withheld",
                self.answers.held() as f64,
            ),
            (
                "holdfast_shard_answers_withheld_bytes",
                self.answers.held_bytes() as f64,
            ),
            ("holdfast_shard_clients", self.streams.len() as f64),
            (
                "holdfast_shard_memory_limit_bytes",
                memory.limit_bytes as f64,
            ),
            ("holdfast_shard_memory_used_bytes", memory.used_bytes as f64),
            ("holdfast_shard_memory_live_bytes", memory.live_bytes as f64),
            (
                "holdfast_shard_memory_reclaimable_bytes",
                memory.reclaimable_bytes as f64,
            ),
            (
                "holdfast_shard_memory_reserved_bytes",
                memory.reserved_bytes as f64,
            ),
            (
                "holdfast_shard_memory_index_bytes",
                memory.index_bytes as f64,
            ),
            (
                "holdfast_shard_memory_records_bytes",
                memory.records_bytes as f64,
            ),
            (
                "holdfast_shard_memory_external_bytes",
                memory.external_bytes as f64,
            ),
            (
                "holdfast_shard_expired_total",
                memory.expired_sessions as f64,
            ),
            ("holdfast_shard_evicted_total", self.limits.evicted() as f64),
            ("holdfast_shard_segments", memory.segments as f64),
            (
                "holdfast_shard_cleaned_bytes_total",
                memory.cleaned_bytes as f64,
            ),
            (
                "holdfast_shard_compacted_bytes_total",
                memory.compacted_bytes as f64,
            ),
            (
                "holdfast_shard_unreplicated_bytes",
                self.unreplicated as f64,
            ),
            (
                "holdfast_shard_under_replicated_segments",
                self.replicas.under_replicated() as f64,
            ),
            ("holdfast_shard_appends_total", replication.appends as f64),
            (
                "holdfast_shard_append_bytes_total",
                replication.append_bytes as f64,
            ),
            (
                "holdfast_shard_append_resends_total",
                replication.resends as f64,
            ),
            (
                "holdfast_shard_replicas_lost_total",
                replication.replicas_lost as f64,
            ),
            (
                "holdfast_shard_copies_begun_again_total",
                replication.copies_begun_again as f64,
            ),
            (
                "holdfast_shard_epochs_raised_total",
                replication.epochs_raised as f64,
            ),
            (
                "holdfast_shard_replicas_behind",
                self.replicas.behind() as f64,
            ),
            (
                "holdfast_shard_stragglers_replaced_total",
                replication.stragglers_replaced as f64,
            ),
            (
                "holdfast_shard_append_wait_slowest_us",
                self.replicas.append_wait_extremes_us().0 as f64,
            ),
            (
                "holdfast_shard_append_wait_quickest_us",
                self.replicas.append_wait_extremes_us().1 as f64,
            ),
            ("holdfast_shard_epoch", epoch.0 as f64),
            (
                "holdfast_shard_epoch_recorded",
                f64::from(u8::from(recorded)),
            ),
            (
                "holdfast_shard_recoveries_running",
                self.recoveries.running() as f64,
            ),
            ("holdfast_shard_recoveries_leaning", leaning as f64),
            ("holdfast_shard_leaning_bytes", leaning_bytes as f64),
            ("holdfast_shard_recoveries_total", recoveries as f64),
            (
                "holdfast_shard_recovered_entries_total",
                recovered_entries as f64,
            ),
            (
                "holdfast_shard_recovered_bytes_total",
                recovered_bytes as f64,
            ),
        ]
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
        let memory = self.log.memory();
        Figures {
            sessions: self.sessions(),
            bytes_used: memory.used_bytes,
            bytes_limit: memory.limit_bytes,
            segments: memory.segments,
            under_replicated: self.replicas.under_replicated() as u64,
            operations: self.counts.reads + self.counts.writes,
            bytes_live: memory.live_bytes,
            bytes_reclaimable: memory.reclaimable_bytes,
            bytes_reserved: memory.reserved_bytes,
            bytes_index: memory.index_bytes,
            bytes_records: memory.records_bytes,
            bytes_external: memory.external_bytes,
            bytes_huge: self.process.huge_bytes,
            expired: memory.expired_sessions,
            evicted: self.limits.evicted(),
            ..Figures::default()
        }
    }
}
