//! Everything a client has asked for and not yet been answered, and what to do about it next.
//!
//! ```text
//!             released            owner known            flush             answer
//! submitted ----------> routed ---------------> queued ---------> sent ---------> done
//!              order.rs    ^  no owner: parked     ^   lane.rs      |
//!                          '-----------------------'--- refused, stream broken, silence, new view
//! ```
//!
//! C1. Every submitted command is answered exactly once through `take_done`, at the latest when its
//!     time is over.
//! C2. The identity of a write (`Once`) is fixed when it is first sent and goes with every
//!     repetition; only `acknowledged` moves.
//! C3. A command that is given up is answered `Unreachable` or `Busy` only if every attempt was
//!     refused, `OutcomeUnknown` otherwise.
//! C4. A key-space command speaks for one view: if the tablets change on the way, all of it is
//!     asked again.
//! C5. A failure counts only if it answers the latest attempt. Shards keep no record of failures, and
//!     what memory or a namespace had no room for may fit when the repetition comes. Every other
//!     outcome is on record and counts whichever attempt it answers.
//!
//! Bounds: `Config::pending_max` commands of `pending_bytes_max` bytes, `window_max` of them on
//! their way to each shard. A key-space command counts once and has one part per shard.

mod answers;
mod fan;
mod sending;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{Dice, Now, Outputs};
use holdfast_format::{ClientId, ClusterMs, ServerId, Slot};
use holdfast_wire::{Command, Failure, Once, Op, Outcome, Responses, View};

use self::fan::{Fan, Part};
use crate::config::Config;
use crate::lane::Lane;
use crate::order::{OrderKey, Ordering, Ticket};
use crate::pending::{Pending, PendingMap, Place, Target};
use crate::routes::Routes;
use crate::window::Budget;

pub use self::fan::SCAN_STEP;

/// Which part of the key space a key-space command concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// All of it: every shard that owns a tablet is asked, and the answers are merged.
    #[default]
    All,
    /// What one shard owns.
    Shard(ServerId),
}

/// How a command is to be treated.
#[derive(Clone, Copy, Debug)]
pub struct Submit {
    /// The submitter's own name for it, given back with the outcome.
    pub token: u64,
    /// A write's identity if the submitter has its own; the core's otherwise.
    pub once: Option<Once>,
    /// Whose order it keeps (`order.rs`).
    pub order: Option<OrderKey>,
    /// For how long to try.
    pub within_ms: u32,
    /// For key-space commands.
    pub scope: Scope,
}

/// Counters since the start, and two levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub submitted: u64,
    /// Streams begun again, each repeating what was unanswered.
    pub restarts: u64,
    /// Commands sent more than once, counted each time.
    pub repeated: u64,
    pub refused_busy: u64,
    /// Commands that a shard had refused for load and that were not asked again (`window.rs`).
    pub not_repeated: u64,
    /// Windows that were cut because a shard had enough to do.
    pub window_cuts: u64,
    pub given_up: u64,
    pub pending: u64,
    pub pending_bytes: u64,
}

/// The client core. Drive it with `submit`, `handle`, `peer_lost` and `view_changed`; then `flush`,
/// then `take_done`; come back by `wakeup`.
#[derive(Debug)]
pub struct Core {
    client: ClientId,
    config: Config,
    dice: Dice,
    routes: Routes,
    ordering: Ordering,
    /// Looked up by ticket only, or in an order made for the purpose.
    pending: PendingMap,
    pending_bytes: u64,
    /// Key-space commands under way.
    fans: BTreeMap<Ticket, Fan>,
    lanes: BTreeMap<ServerId, Lane>,
    /// Released, but nobody may be asked about their slot now.
    parked: BTreeSet<Ticket>,
    /// Tablets, by first slot, whose owner has refused.
    refusing: BTreeMap<Slot, Refusing>,
    /// Own sequence numbers of writes without an outcome.
    open_sequences: BTreeSet<u64>,
    next_ticket: Ticket,
    next_sequence: u64,
    next_stream: u64,
    /// No pending command's time is over before this.
    deadline_floor_us: u64,
    done: Vec<(u64, Outcome)>,
    released: Vec<Ticket>,
    budget: Budget,
    queue_us_max: u64,
    refused_late: usize,
    figures: Figures,
}

#[derive(Clone, Copy, Debug)]
struct Refusing {
    until_us: u64,
    tries: u32,
    /// `until_us` has not come yet.
    armed: bool,
}

impl Core {
    /// A core for one incarnation of one client: `client` must never have been used before.
    pub fn new(client: ClientId, config: Config, seed: u64) -> Core {
        Core {
            client,
            config,
            dice: Dice::new(seed),
            routes: Routes::empty(),
            ordering: Ordering::default(),
            pending: PendingMap::default(),
            pending_bytes: 0,
            fans: BTreeMap::new(),
            lanes: BTreeMap::new(),
            parked: BTreeSet::new(),
            refusing: BTreeMap::new(),
            open_sequences: BTreeSet::new(),
            next_ticket: 1,
            next_sequence: 1,
            next_stream: 1,
            deadline_floor_us: u64::MAX,
            done: Vec::new(),
            released: Vec::new(),
            budget: Budget::default(),
            queue_us_max: u64::MAX,
            refused_late: 0,
            figures: Figures::default(),
        }
    }

    pub fn client(&self) -> ClientId {
        self.client
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    pub fn figures(&self) -> Figures {
        let pending = (self.pending.len() - self.parts()) as u64;
        Figures {
            pending,
            pending_bytes: self.pending_bytes,
            ..self.figures
        }
    }

    /// Takes a command on. Its outcome comes out of `take_done`, at once if it is `Busy`.
    pub fn submit(&mut self, now: Now, command: Command, how: Submit) {
        self.figures.submitted += 1;
        let bytes = command.held_bytes() as u64;
        let full = self.pending.len() >= self.config.pending_max + self.parts()
            || self.pending_bytes + bytes > self.config.pending_bytes_max;
        if full {
            self.figures.refused_busy += 1;
            self.done.push((how.token, Outcome::Failed(Failure::Busy)));
            return;
        }
        let ticket = self.take_ticket();
        let is_write = command.op.is_write();
        let target = if command.op.is_keyspace() {
            let limit = match command.op {
                Op::Scan { limit, .. } => limit.max(1),
                _ => 0,
            };
            let fan = Fan {
                scope: how.scope,
                parts: BTreeMap::new(),
                retry_us: None,
                tries: 0,
                limit,
                unsure: false,
            };
            self.fans.insert(ticket, fan);
            Target::Fan
        } else {
            Target::Slot(Slot::of(&command.key))
        };
        let pending = Pending {
            token: how.token,
            once: how.once.filter(|_| is_write && target != Target::Fan),
            command,
            own_sequence: false,
            order: how.order,
            deadline_us: now.mono_us.saturating_add(u64::from(how.within_ms) * 1_000),
            target,
            place: Place::Waiting,
            submitted_us: now.mono_us,
            sent_us: 0,
            stream: 0,
            attempted: false,
            unsure: false,
            refused_busy: false,
        };
        self.deadline_floor_us = self.deadline_floor_us.min(pending.deadline_us);
        self.pending_bytes += bytes;
        let kind = pending.kind();
        self.pending.insert(ticket, pending);
        let go = how
            .order
            .is_none_or(|order| self.ordering.admit(order, ticket, kind));
        if go {
            self.release(now, ticket);
        }
    }

    /// Takes a shard's answers.
    pub fn handle(&mut self, now: Now, from: ServerId, responses: Responses) {
        if responses.client != self.client {
            return;
        }
        let current = self
            .lanes
            .get(&from)
            .is_some_and(|lane| lane.stream == responses.stream);
        let mut restart = false;
        for response in responses.items {
            match response.outcome {
                Outcome::Failed(why @ (Failure::NotOwner | Failure::NotReady | Failure::Busy)) => {
                    // The first refusal tells why; it ended the stream, and those behind it were
                    // refused only for that.
                    if current && !restart {
                        restart = self.refused(now, from, response.token, why);
                    }
                }
                // C5: the latest attempt has, or will get, an answer of its own.
                Outcome::Failed(_)
                    if !self.is_latest_attempt(from, responses.stream, response.token) => {}
                outcome => self.answered(now, from, response.token, outcome),
            }
        }
        if restart {
            self.restart(now, from);
        }
    }

    /// The stream to `peer` broke: what was on its way may or may not have arrived.
    pub fn peer_lost(&mut self, now: Now, peer: ServerId) {
        if let Some(lane) = self.lanes.get_mut(&peer) {
            lane.pause(now.mono_us, self.dice.below(256));
            self.restart(now, peer);
        }
    }

    /// Takes a newer view: what waits for shards that are gone goes to the new owners.
    pub fn view_changed(&mut self, now: Now, view: &View) {
        let routes = Routes::new(view);
        let same_tablets = routes.tablets() == self.routes.tablets();
        self.routes = routes;
        self.refusing.clear();
        if !same_tablets {
            let fans: Vec<Ticket> = self.fans.keys().copied().collect();
            for fan in fans {
                self.cancel_parts(fan);
            }
        }
        // Everything routed is routed again, in order of submission. What stays with its shard
        // keeps its place in the stream.
        let mut moving: Vec<Ticket> = self.parked.iter().copied().collect();
        self.parked.clear();
        let mut broken = BTreeSet::new();
        for (&shard, lane) in &self.lanes {
            for &ticket in lane.sent.iter().chain(&lane.queue) {
                let Some(pending) = self.pending.get(&ticket) else {
                    continue;
                };
                let here =
                    matches!(pending.place, Place::Sent(at) | Place::Queued(at) if at == shard);
                let stays = match pending.target {
                    Target::Slot(slot) => self.routes.owner(slot) == Some(shard),
                    Target::Part { .. } => self.routes.is_shard(shard),
                    Target::Fan => unreachable!("a key-space command is sent in parts"),
                };
                if here && !stays {
                    moving.push(ticket);
                    if pending.place == Place::Sent(shard) {
                        broken.insert(shard);
                    }
                }
            }
        }
        moving.sort_unstable();
        moving.dedup();
        for &ticket in &moving {
            self.unplace(ticket);
        }
        let routes = &self.routes;
        self.lanes.retain(|&shard, _| routes.is_shard(shard));
        // L3: what leaves a shard that is still there may come back to it.
        for shard in broken {
            self.restart(now, shard);
        }
        for ticket in moving {
            self.route(now, ticket);
        }
        self.start_fans(now);
    }

    /// Gives up what is overdue, repeats what was met with silence, and sends what may be sent.
    /// `cluster_time` stamps the writes sent for the first time; they wait while it is unknown.
    pub fn flush(&mut self, now: Now, cluster_time: Option<ClusterMs>, out: &mut Outputs) {
        self.give_up_overdue(now);
        self.end_refusals(now);
        if self
            .fans
            .values()
            .any(|fan| fan.retry_us.is_some_and(|at| at <= now.mono_us))
        {
            self.start_fans(now);
        }
        self.break_silences(now);
        let shards: Vec<ServerId> = self
            .lanes
            .iter()
            .filter(|(_, lane)| !lane.queue.is_empty() && lane.not_before_us <= now.mono_us)
            .map(|(&shard, _)| shard)
            .collect();
        for shard in shards {
            loop {
                self.refuse_late(now, shard);
                if !self.send_batch(now, shard, cluster_time, out) {
                    break;
                }
            }
        }
    }

    /// From now on a command whose turn comes after so long behind a shard that has enough to do is answered `Busy`
    /// and not sent.
    pub fn set_queue_max(&mut self, queue_us_max: u64) {
        self.queue_us_max = queue_us_max;
    }

    /// How many were answered so since this was last asked.
    pub fn take_refused_late(&mut self) -> usize {
        std::mem::take(&mut self.refused_late)
    }

    /// Hands over what has been answered, in the order in which it was.
    pub fn take_done(&mut self, done: &mut Vec<(u64, Outcome)>) {
        done.append(&mut self.done);
    }

    /// True if `take_done` has something.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// For how long a command submitted now would wait before it is sent to a shard that has enough to do: as long as the
    /// one at the head of the queue has. 0 while nobody has to wait, or everybody waits for a recovery.
    pub fn queue_wait_us(&self, now: Now) -> u64 {
        let waits = self.lanes.values().map(|lane| self.wait_us(now, lane));
        waits.max().unwrap_or(0)
    }

    /// The same for a command on this key.
    pub fn queue_wait_of_us(&self, now: Now, key: &[u8]) -> u64 {
        if self.pending.is_empty() {
            return 0;
        }
        let lane = (self.routes.owner(Slot::of(key))).and_then(|shard| self.lanes.get(&shard));
        lane.map_or(0, |lane| self.wait_us(now, lane))
    }

    fn wait_us(&self, now: Now, lane: &Lane) -> u64 {
        let head = (lane.queue.front()).and_then(|ticket| self.pending.get(ticket));
        match head.filter(|_| lane.is_congested(now.mono_us)) {
            Some(head) => now.mono_us.saturating_sub(head.submitted_us),
            None => 0,
        }
    }

    /// When to call `flush` next, in `Now::mono_us`.
    pub fn wakeup(&self) -> Option<u64> {
        let mut at = if self.pending.is_empty() {
            u64::MAX
        } else {
            self.deadline_floor_us
        };
        for lane in self.lanes.values() {
            if !lane.queue.is_empty() && lane.in_flight < lane.window.size() {
                at = at.min(lane.not_before_us);
            }
            if let Some(sent_us) = self.oldest_sent_us(lane) {
                at = at.min(sent_us + lane.silence_us(&self.config));
            }
        }
        for refusing in self.refusing.values().filter(|refusing| refusing.armed) {
            at = at.min(refusing.until_us);
        }
        for fan in self.fans.values() {
            at = at.min(fan.retry_us.unwrap_or(u64::MAX));
        }
        (at != u64::MAX).then_some(at)
    }

    fn take_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn take_stream(&mut self) -> u64 {
        self.next_stream += 1;
        self.next_stream - 1
    }

    /// How many of the pending commands are parts of others. An answered part is pending no more.
    fn parts(&self) -> usize {
        let asked = |part: &&Part| matches!(part, Part::Asked(_));
        self.fans
            .values()
            .map(|fan| fan.parts.values().filter(asked).count())
            .sum()
    }

    /// `order.rs` lets a command go.
    fn release(&mut self, now: Now, ticket: Ticket) {
        if self.fans.contains_key(&ticket) {
            let pending = self
                .pending
                .get_mut(&ticket)
                .expect("a fan has its command");
            pending.place = Place::Fanned;
            self.start_fan(now, ticket);
        } else {
            self.route(now, ticket);
        }
    }

    /// Queues a released command at the shard to ask, or parks it.
    fn route(&mut self, now: Now, ticket: Ticket) {
        let Some(pending) = self.pending.get(&ticket) else {
            return;
        };
        let shard = match pending.target {
            Target::Slot(slot) => {
                let refusing = !self.refusing.is_empty()
                    && self.routes.tablet(slot).is_some_and(|tablet| {
                        self.refusing
                            .get(&tablet.range.first)
                            .is_some_and(|r| r.until_us > now.mono_us)
                    });
                if refusing {
                    None
                } else {
                    self.routes.owner(slot)
                }
            }
            Target::Part { shard, .. } => Some(shard).filter(|&shard| self.routes.is_shard(shard)),
            Target::Fan => unreachable!("a key-space command is sent in parts"),
        };
        let place = match shard {
            Some(shard) => {
                match self.lanes.get_mut(&shard) {
                    Some(lane) => lane.enqueue(ticket),
                    None => {
                        let stream = self.take_stream();
                        let mut lane = Lane::new(stream, self.config.window_max);
                        lane.enqueue(ticket);
                        self.lanes.insert(shard, lane);
                    }
                }
                Place::Queued(shard)
            }
            None => {
                self.parked.insert(ticket);
                Place::Parked
            }
        };
        self.pending
            .get_mut(&ticket)
            .expect("looked up above")
            .place = place;
    }

    /// Takes a command out of its lane or out of the park. Entries in `Lane::sent` stay behind and
    /// are recognised by the command's place.
    fn unplace(&mut self, ticket: Ticket) {
        let Some(pending) = self.pending.get_mut(&ticket) else {
            return;
        };
        match pending.place {
            Place::Sent(shard) => {
                if let Some(lane) = self.lanes.get_mut(&shard) {
                    lane.in_flight -= 1;
                }
            }
            Place::Queued(shard) => {
                if let Some(lane) = self.lanes.get_mut(&shard)
                    && let Ok(at) = lane.queue.binary_search(&ticket)
                {
                    lane.queue.remove(at);
                }
            }
            Place::Parked => {
                self.parked.remove(&ticket);
            }
            Place::Waiting | Place::Fanned => {}
        }
        pending.place = Place::Parked;
    }

    /// Begins a new stream to `shard` and routes everything unanswered again, in order (O1).
    fn restart(&mut self, now: Now, shard: ServerId) {
        let stream = self.take_stream();
        let Some(lane) = self.lanes.get_mut(&shard) else {
            return;
        };
        // Nothing behind a refused command was executed: a refusal ends its stream.
        let mut refused_busy = None;
        for ticket in &lane.sent {
            if let Some(pending) = self.pending.get_mut(ticket)
                && pending.place == Place::Sent(shard)
            {
                if let Some(busy) = refused_busy {
                    pending.attempted = false;
                    pending.refused_busy = busy;
                } else if !pending.attempted {
                    refused_busy = Some(pending.refused_busy);
                }
            }
        }
        let mut unpaid = Vec::new();
        let mut again: Vec<Ticket> = lane.sent.drain(..).chain(lane.queue.drain(..)).collect();
        lane.restart(stream);
        self.figures.restarts += 1;
        again.sort_unstable();
        again.dedup();
        for ticket in again {
            let Some(pending) = self.pending.get_mut(&ticket) else {
                continue;
            };
            if !matches!(pending.place, Place::Sent(at) | Place::Queued(at) if at == shard) {
                continue;
            }
            if matches!(pending.place, Place::Sent(_)) {
                let refused = pending.refused_busy && !pending.attempted && !pending.unsure;
                let paid = self.budget.spend(now.mono_us);
                if refused && !paid && matches!(pending.target, Target::Slot(_)) {
                    // Its lane has forgotten it already.
                    pending.place = Place::Parked;
                    unpaid.push(ticket);
                    continue;
                }
                self.figures.repeated += 1;
            }
            self.route(now, ticket);
        }
        for ticket in unpaid {
            self.figures.not_repeated += 1;
            self.finish(now, ticket, Outcome::Failed(Failure::Busy));
        }
    }
}
