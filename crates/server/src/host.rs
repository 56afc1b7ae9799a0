//! Hosts nodes on one OS thread: the tokio loop that is the server's half of the node seam.
//!
//! ```text
//!     sockets, disk ─> Local ─┐                 ┌─> Local (nodes of this thread)
//!     other threads ─> Inbox ─┼─> step … flush ─┼─> Inbox (other threads, once per round)
//!                      timers ┘                 └─> Transport, RESP, disk, records
//! ```
//!
//! H1. A round takes what was ready when it began, steps each input, applies its outputs in order,
//!     then flushes every node that was stepped with a freshly read clock. What clients have sent comes last, and of that
//!     as much as can be served in `CLIENTS_US`.
//! H2. What nodes of this thread say to each other never wakes anything: the next round takes it.
//! H3. A node that reports `Stopped` is dropped before anything else reaches it. If it was declared
//!     dead its seat is taken by a new incarnation.
//! H4. A gateway is lent the shard of its thread for every step and flush, and is flushed after each flush of
//!     the shard (`holdfast_cluster::ShardBeside`).
//!
//! A panic anywhere ends the process (see `main`): an assertion that failed is a promise broken, and
//! the rest of the cluster is built to survive a process that ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use holdfast_cluster::{Call, Input, Level, Node, Now, Output, Outputs, ShardBeside};
use holdfast_format::ServerId;
use holdfast_wire::handshake::ClusterSecret;
use holdfast_wire::{Message, Outcome};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::calls::Reply;
use crate::clock;
use crate::error::{Context, Fatal, Outcome as Started};
use crate::inbox::{Inbox, Letter, NodeReport, Phase, Switchboard, time_left};
use crate::local::Local;
use crate::memory::Held;
use crate::role::{Role, RoleKind};
use crate::seat::{Effects, Occupant, Seat, SeatPlan};
use crate::tls::Tls;
use crate::transport::Transport;

/// Inputs taken in one round before nodes are flushed: enough for group commit to pay, few enough
/// that the first reply of a round is not late.
const ROUND_INPUTS: usize = 512;

/// Rounds without a look at sockets while nodes of this thread keep talking to each other.
const ROUNDS_BETWEEN_POLLS: u32 = 4;

/// Clients are served for so long before what they caused is replicated and answered, and members are heard.
const CLIENTS_US: u64 = 1_000;

/// The clock is read again after so many steps of a round; what clients have sent counts as a step more for each
/// `STEP_BYTES`.
const STEPS_PER_CLOCK_READ: usize = 32;
const STEP_BYTES: usize = 256;

/// Buffers are added up so often: a client's connection can bring 64 KiB at a time, and walking 10,000 of them
/// takes about 0.1 ms.
const ACCOUNT_US: u64 = 50_000;

/// How long a seat stays empty when its next occupant could not be made.
const RETRY_SEAT: Duration = Duration::from_secs(1);

/// What all host threads of the process share.
#[derive(Debug)]
pub struct World {
    pub switchboard: Switchboard,
    /// What the process holds beside its logs.
    pub held: Held,
    pub secret: ClusterSecret,
    /// Where the coordinator's member port is, unless it lives in this process.
    pub coordinator: Option<String>,
    pub tls: Option<Arc<Tls>>,
}

/// What one thread is to host.
#[derive(Debug)]
pub struct HostPlan {
    /// The thread's name.
    pub name: String,
    pub seats: Vec<SeatPlan>,
    /// Member port of this thread's nodes.
    pub listener: Option<std::net::TcpListener>,
}

/// A task for a host thread beside its nodes, from when they exist until the thread ends.
pub type Errand = Box<dyn FnOnce(Arc<Inbox>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A running host thread.
#[derive(Debug)]
pub struct Host {
    pub inbox: Arc<Inbox>,
    pub thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// Starts the thread and returns when its nodes exist, or says why they cannot.
    pub fn start(plan: HostPlan, errand: Option<Errand>, world: Arc<World>) -> Started<Host> {
        let inbox = world.switchboard.open();
        let (report, started) = std::sync::mpsc::channel();
        let name = plan.name.clone();
        let thread = {
            let inbox = inbox.clone();
            std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || run(plan, errand, world, inbox, report))
                .context(|| format!("cannot start thread {name}"))?
        };
        match started.recv() {
            Ok(Ok(())) => Ok(Host { inbox, thread }),
            Ok(Err(fatal)) => Err(fatal),
            Err(_) => Err(Fatal::new(format!("thread {name} ended while starting"))),
        }
    }
}

fn run(
    plan: HostPlan,
    errand: Option<Errand>,
    world: Arc<World>,
    inbox: Arc<Inbox>,
    report: std::sync::mpsc::Sender<Started<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Readers and syncers of a backup's store: more would only queue in the disk.
        .max_blocking_threads(8)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = report.send(Err(Fatal::new(format!("cannot start tokio: {error}"))));
            return;
        }
    };
    let local_set = LocalSet::new();
    local_set.block_on(&runtime, async move {
        match Loop::start(plan, world, inbox.clone()) {
            Ok(mut host) => {
                let _ = report.send(Ok(()));
                if let Some(errand) = errand {
                    tokio::task::spawn_local(errand(inbox));
                }
                host.run().await;
            }
            Err(fatal) => {
                let _ = report.send(Err(fatal));
            }
        }
    });
    // Tasks that still wait for sockets must not keep a finished thread.
    runtime.shutdown_background();
}

/// From, to, what.
type Mail = (ServerId, ServerId, Message);

struct Hosted {
    id: ServerId,
    name: String,
    seat: usize,
    role: Role,
    effects: Effects,
    /// Stepped since its last flush.
    stepped: bool,
    calls: BTreeMap<u64, Reply>,
    orders: BTreeMap<u64, oneshot::Sender<Result<(), String>>>,
}

struct Loop {
    world: Arc<World>,
    inbox: Arc<Inbox>,
    local: Rc<Local>,
    transport: Rc<Transport>,
    seats: Vec<Seat>,
    empty_seats: BTreeMap<usize, u64>,
    nodes: Vec<Hosted>,
    letters: VecDeque<Letter>,
    /// Empty between steps; kept for its memory.
    scratch: Outputs,
    /// For other threads, until the end of the round.
    outgoing: Vec<(Arc<Inbox>, Vec<Mail>)>,
    homes: BTreeMap<ServerId, Arc<Inbox>>,
    next_call: u64,
    /// What this thread's buffers took when they were last added up, and when to do so again.
    buffers_bytes: u64,
    account_due_us: u64,
    round_ended_us: u64,
    stopping: Vec<(Phase, oneshot::Sender<()>)>,
    stopped_phases: Vec<Phase>,
}

impl Loop {
    fn start(plan: HostPlan, world: Arc<World>, inbox: Arc<Inbox>) -> Started<Loop> {
        let local = Local::new();
        let transport = Transport::new(world.secret.clone(), world.tls.clone(), local.clone());
        if let Some(listener) = plan.listener {
            let listener = tokio::net::TcpListener::from_std(listener)
                .context(|| "cannot use the member port".to_string())?;
            transport.listen(listener);
        }
        let mut host = Loop {
            world,
            inbox,
            local: local.clone(),
            transport,
            seats: Vec::new(),
            empty_seats: BTreeMap::new(),
            nodes: Vec::new(),
            letters: VecDeque::new(),
            scratch: Outputs::default(),
            outgoing: Vec::new(),
            homes: BTreeMap::new(),
            next_call: 1,
            buffers_bytes: 0,
            account_due_us: 0,
            round_ended_us: 0,
            stopping: Vec::new(),
            stopped_phases: Vec::new(),
        };
        for (index, plan) in plan.seats.into_iter().enumerate() {
            if let SeatPlan::Shard { .. } = &plan {
                host.world.held.add_shard();
            }
            let mut seat = Seat::take(plan, &local, host.world.tls.as_ref())?;
            for occupant in seat.occupy(clock::now())? {
                host.admit(index, occupant);
            }
            host.seats.push(seat);
        }
        Ok(host)
    }

    async fn run(&mut self) {
        let mut rounds = 0;
        loop {
            let wakeup = self.round();
            if self.finished() {
                return;
            }
            rounds += 1;
            if self.local.has_news() && rounds < ROUNDS_BETWEEN_POLLS {
                continue;
            }
            rounds = 0;
            self.local.begin_turn(self.round_ended_us);
            // What the last flush has executed waits for another one, not for a timer.
            let flushed = !self.nodes.iter().any(|node| node.stepped);
            if self.local.is_empty() && flushed {
                let sleep = async {
                    match wakeup {
                        Some(us) => tokio::time::sleep(Duration::from_micros(us)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = self.local.pushed() => {}
                    () = self.inbox.posted() => {}
                    () = sleep => {}
                }
            }
            // Lets every reader that is ready add its bytes to the same round: group commit.
            tokio::task::yield_now().await;
        }
    }

    /// One round (H1). Returns in how many microseconds somebody wants to be woken.
    fn round(&mut self) -> Option<u64> {
        let mut now = clock::now();
        self.inbox.take(&mut self.letters);
        while let Some(letter) = self.letters.pop_front() {
            self.take_letter(now, letter);
        }
        let inputs = self.local.len().min(ROUND_INPUTS);
        for count in 1..=inputs {
            let Some((id, input)) = self.local.pop() else {
                break;
            };
            if count % STEPS_PER_CLOCK_READ == 0 {
                now = clock::now();
            }
            self.step(now, id, input);
        }
        now = self.serve_clients(now);
        for index in (0..self.nodes.len()).rev() {
            // A node that stops shortens the list; whoever is missed has its turn in the next round.
            let Some(node) = self.nodes.get(index) else {
                continue;
            };
            if node.role.wakeup().is_some_and(|at| at <= now.mono_us) {
                let id = node.id;
                self.step(now, id, Input::Tick);
            }
        }
        self.flush();
        self.refill_seats(now);
        self.deliver();
        self.account(now);
        let now = clock::now();
        self.round_ended_us = now.mono_us;
        self.nodes
            .iter()
            .filter_map(|node| node.role.wakeup())
            .chain(self.empty_seats.values().copied())
            .min()
            .map(|at| at.saturating_sub(now.mono_us))
    }

    /// Steps what clients have sent, for a while.
    fn serve_clients(&mut self, began: Now) -> Now {
        let (mut now, mut steps) = (began, 0);
        while now.mono_us < began.mono_us + CLIENTS_US {
            let Some((id, input)) = self.local.pop_client() else {
                break;
            };
            steps += match &input {
                Input::Received { bytes, .. } => 1 + bytes.len() / STEP_BYTES,
                _ => 1,
            };
            self.step(now, id, input);
            if steps >= STEPS_PER_CLOCK_READ {
                steps = 0;
                now = clock::now();
            }
        }
        now
    }

    /// Flushes whoever was stepped. The clock is read again for each: leases are judged by the moment of the
    /// release. Shards go first, because gateways beside them (H4) wait for what they make audible.
    fn flush(&mut self) {
        // Twice, because a gateway's flush may have commands executed too.
        for beside in [false, true, false, true] {
            let mut index = 0;
            while index < self.nodes.len() {
                let node = &mut self.nodes[index];
                index += 1;
                if node.role.asks_beside() != beside || !std::mem::take(&mut node.stepped) {
                    continue;
                }
                let (id, is_shard) = (node.id, matches!(node.role, Role::Shard(_)));
                if is_shard {
                    for gateway in self.nodes.iter_mut().filter(|n| n.role.asks_beside()) {
                        gateway.stepped = true;
                    }
                }
                let now = clock::now();
                self.drive(now, id, |node, shard, out| {
                    node.flush_beside(now, shard, out)
                });
            }
        }
    }

    fn take_letter(&mut self, now: Now, letter: Letter) {
        match letter {
            Letter::Message { from, to, message } => {
                self.local.push(to, Input::Message { from, message });
            }
            Letter::Gone { peer } => {
                self.homes.remove(&peer);
                for node in &self.nodes {
                    if node.id != peer {
                        self.local.lose(node.id, peer, true);
                    }
                }
            }
            Letter::Calls { calls, posted_us } => {
                for (call, reply) in calls {
                    self.take_call(now, call, posted_us, reply);
                }
            }
            Letter::Report { reply } => {
                let mut reports: Vec<NodeReport> = self.nodes.iter().map(Hosted::report).collect();
                // Between two incarnations a member is not ready, and should not be overlooked.
                reports.extend(
                    self.empty_seats
                        .keys()
                        .map(|seat| self.seats[*seat].vacancy()),
                );
                let _ = reply.send(reports);
            }
            Letter::Status { reply } => {
                for node in &self.nodes {
                    if let Role::Coordinator(coordinator) = &node.role {
                        let _ = reply.send(coordinator.status(now));
                        return;
                    }
                }
            }
            Letter::Order { order, reply } => {
                let is_coordinator = |node: &&mut Hosted| node.role.kind() == RoleKind::Coordinator;
                // Dropping `reply` tells that there is no coordinator here.
                if let Some(coordinator) = self.nodes.iter_mut().find(is_coordinator) {
                    let token = self.next_call;
                    self.next_call += 1;
                    coordinator.orders.insert(token, reply);
                    let id = coordinator.id;
                    self.step(now, id, Input::Order { token, order });
                }
            }
            Letter::Shutdown { phase, reply } => {
                self.stopping.push((phase, reply));
                self.stopped_phases.push(phase);
                self.empty_seats.clear();
                let ids: Vec<ServerId> = self
                    .nodes
                    .iter()
                    .filter(|node| node.role.kind().phase() == phase)
                    .map(|node| node.id)
                    .collect();
                for id in ids {
                    self.step(now, id, Input::Shutdown);
                }
            }
        }
    }

    fn take_call(&mut self, now: Now, mut call: Call, posted_us: u64, reply: Reply) {
        // The outcome would be nobody's.
        if reply.is_gone() {
            return;
        }
        match time_left(call.within_ms, posted_us, now.mono_us) {
            Ok(left_ms) => call.within_ms = left_ms,
            Err(failure) => return reply.send(Outcome::Failed(failure)),
        }
        let gateway = self.nodes.iter_mut().find(|node| node.role.answers_calls());
        // Dropping `reply` tells the caller that there is no gateway (any more).
        if let Some(gateway) = gateway {
            let token = self.next_call;
            self.next_call += 1;
            gateway.calls.insert(token, reply);
            let id = gateway.id;
            let input = Input::Call {
                token,
                call,
                posted_us,
            };
            self.step(now, id, input);
        }
    }

    fn step(&mut self, now: Now, id: ServerId, input: Input) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.stepped = true;
        }
        self.drive(now, id, |node, shard, out| {
            node.step_beside(now, input, shard, out);
        });
    }

    /// Runs one step or flush and applies what came out of it.
    fn drive(
        &mut self,
        now: Now,
        id: ServerId,
        act: impl FnOnce(&mut Role, Option<&mut dyn ShardBeside>, &mut Outputs),
    ) {
        // Inputs for a node that has stopped meanwhile are for nobody.
        let Some(index) = self.nodes.iter().position(|node| node.id == id) else {
            return;
        };
        let mut out = std::mem::take(&mut self.scratch);
        match self.shard_beside(index) {
            Some(shard) => {
                let [node, shard] = self
                    .nodes
                    .get_disjoint_mut([index, shard])
                    .expect("a shard is beside others, not itself");
                let lent = shard.role.as_shard();
                act(&mut node.role, lent, &mut out);
                shard.stepped |= shard.role.as_shard().is_some_and(ShardBeside::take_used);
            }
            None => act(&mut self.nodes[index].role, None, &mut out),
        }
        for output in out.list.drain(..) {
            if let Output::Stopped { reason } = output {
                self.dismiss(now, index, &reason);
                break;
            }
            self.apply(index, output);
        }
        self.scratch = out;
    }

    /// The shard that is lent to a gateway (H4): a cluster port's own, else the first of the thread.
    fn shard_beside(&self, index: usize) -> Option<usize> {
        let node = &self.nodes[index];
        if !node.role.asks_beside() {
            return None;
        }
        let is_flat = matches!(node.role, Role::Gateway(_));
        self.nodes.iter().position(|shard| {
            matches!(shard.role, Role::Shard(_)) && (is_flat || shard.seat == node.seat)
        })
    }

    fn apply(&mut self, index: usize, output: Output) {
        let node = &mut self.nodes[index];
        match output {
            Output::Send { to, message } => {
                let from = node.id;
                self.send(from, to, message);
            }
            Output::Address { peer, address } => self.transport.set_address(node.id, peer, address),
            Output::Forget { peer } => self.transport.forget(node.id, peer),
            Output::Event(event) => {
                let name = &node.name;
                match event.level {
                    Level::Debug => tracing::debug!(node = %name, "{}", event.text),
                    Level::Info => tracing::info!(node = %name, "{}", event.text),
                    Level::Warn => tracing::warn!(node = %name, "{}", event.text),
                    Level::Error => tracing::error!(node = %name, "{}", event.text),
                }
            }
            Output::Answer { token, outcome } => {
                if let Some(reply) = node.calls.remove(&token) {
                    reply.send(outcome);
                }
            }
            Output::Obeyed { token } => {
                if let Some(reply) = node.orders.remove(&token) {
                    let _ = reply.send(Ok(()));
                }
            }
            Output::Refused { token, why } => {
                if let Some(reply) = node.orders.remove(&token) {
                    let _ = reply.send(Err(why));
                }
            }
            Output::Disk(op) => match &node.effects {
                Effects::Disk(disk) => disk.apply(node.id, op),
                _ => unreachable!("{} has no disk", node.name),
            },
            Output::Records { token, writes } => match &node.effects {
                Effects::Records(records) => records.write(node.id, token, writes),
                _ => unreachable!("{} has no records", node.name),
            },
            Output::Bytes { connection, bytes } => match &node.effects {
                Effects::Resp(resp) => resp.send(connection, bytes),
                _ => unreachable!("{} has no connections", node.name),
            },
            Output::Close { connection } => match &node.effects {
                Effects::Resp(resp) => resp.close(connection),
                _ => unreachable!("{} has no connections", node.name),
            },
            Output::Stopped { .. } => unreachable!("handled by the caller"),
        }
    }

    fn send(&mut self, from: ServerId, to: ServerId, message: Message) {
        if self.local.is_lost(from, to) {
            return;
        }
        if self.nodes.iter().any(|node| node.id == to) {
            self.local.push(to, Input::Message { from, message });
            return;
        }
        let home = match self.homes.get(&to) {
            Some(home) => Some(home.clone()),
            None => {
                let home = self.world.switchboard.find(to);
                if let Some(home) = &home {
                    self.homes.insert(to, home.clone());
                }
                home
            }
        };
        let Some(home) = home else {
            self.transport.send(from, to, &message);
            return;
        };
        match self
            .outgoing
            .iter_mut()
            .find(|(inbox, _)| Arc::ptr_eq(inbox, &home))
        {
            Some((_, messages)) => messages.push((from, to, message)),
            None => self.outgoing.push((home, vec![(from, to, message)])),
        }
    }

    /// Hands over what the round collected.
    fn deliver(&mut self) {
        for (inbox, messages) in &mut self.outgoing {
            if !messages.is_empty() {
                for (from, to) in inbox.post_messages(messages.drain(..)) {
                    self.local.lose(from, to, false);
                }
            }
        }
        self.transport.flush();
        for node in &self.nodes {
            if let Effects::Resp(resp) = &node.effects {
                resp.flush();
                resp.set_round_us(node.role.round_us());
            }
        }
    }

    /// Adds up what this thread's connections and gateways hold, and tells its shards their part of all.
    fn account(&mut self, now: Now) {
        if now.mono_us < self.account_due_us {
            return;
        }
        self.account_due_us = now.mono_us + ACCOUNT_US;
        let mut bytes = self.transport.memory_bytes();
        for node in &self.nodes {
            if let Effects::Resp(resp) = &node.effects {
                bytes += resp.memory_bytes();
            }
            bytes += node.role.buffers_bytes();
        }
        self.world.held.set_buffers(self.buffers_bytes, bytes);
        self.buffers_bytes = bytes;
        let part = self.world.held.of_shard();
        for node in &mut self.nodes {
            if let Role::Shard(shard) = &mut node.role {
                shard.set_process_memory(part);
            }
        }
    }

    fn admit(&mut self, seat: usize, occupant: Occupant) {
        let Occupant {
            id,
            name,
            role,
            effects,
        } = occupant;
        self.world.switchboard.register(id, &self.inbox);
        self.transport.host(id);
        if let Some(address) = &self.world.coordinator {
            self.transport
                .set_address(id, ServerId::COORDINATOR, address.clone());
        }
        if let Effects::Resp(resp) = &effects {
            resp.serve(id);
        }
        tracing::debug!(node = %name, "started as {id}");
        self.nodes.push(Hosted {
            id,
            name,
            seat,
            role,
            effects,
            stepped: false,
            calls: BTreeMap::new(),
            orders: BTreeMap::new(),
        });
        // Its first tick makes it enlist.
        self.local.push(id, Input::Tick);
    }

    /// Drops a node that has stopped (H3), and whoever shares its seat.
    fn dismiss(&mut self, now: Now, index: usize, reason: &str) {
        let seat = self.nodes[index].seat;
        let kind = self.nodes[index].role.kind();
        let told_to = self.stopped_phases.contains(&kind.phase());
        if told_to {
            tracing::debug!(node = %self.nodes[index].name, "stopped: {reason}");
        } else {
            tracing::warn!(node = %self.nodes[index].name, "stopped, and starts anew: {reason}");
        }
        let leaving: BTreeSet<ServerId> = if told_to {
            [self.nodes[index].id].into()
        } else {
            self.nodes
                .iter()
                .filter(|node| node.seat == seat)
                .map(|node| node.id)
                .collect()
        };
        for node in self.nodes.extract_if(.., |node| leaving.contains(&node.id)) {
            if let Effects::Resp(resp) = &node.effects {
                resp.abandon();
            }
        }
        for id in leaving {
            self.transport.evict(id);
            self.world.switchboard.unregister(id);
        }
        if !told_to {
            self.empty_seats.insert(seat, now.mono_us);
        }
    }

    /// Makes new occupants for seats that were left.
    fn refill_seats(&mut self, now: Now) {
        let due: Vec<usize> = self
            .empty_seats
            .iter()
            .filter(|(_, at)| **at <= now.mono_us)
            .map(|(seat, _)| *seat)
            .collect();
        for seat in due {
            match self.seats[seat].occupy(now) {
                Ok(occupants) => {
                    self.empty_seats.remove(&seat);
                    for occupant in occupants {
                        self.admit(seat, occupant);
                    }
                }
                Err(fatal) => {
                    tracing::error!("cannot start anew, will try again: {fatal}");
                    let again = now.mono_us + RETRY_SEAT.as_micros() as u64;
                    self.empty_seats.insert(seat, again);
                }
            }
        }
    }

    /// Answers finished shutdown phases; true when all nodes were told to stop and did.
    fn finished(&mut self) -> bool {
        let nodes = &self.nodes;
        for (_, reply) in self.stopping.extract_if(.., |(phase, _)| {
            !nodes.iter().any(|node| node.role.kind().phase() == *phase)
        }) {
            let _ = reply.send(());
        }
        self.stopped_phases.contains(&Phase::Servants)
            && self.stopped_phases.contains(&Phase::Keepers)
            && self.nodes.is_empty()
    }
}

impl Hosted {
    fn report(&self) -> NodeReport {
        let mut metrics = self.role.metrics();
        if let Effects::Resp(resp) = &self.effects {
            metrics.extend(resp.metrics());
        }
        NodeReport {
            role: self.role.kind().name(),
            id: self.id,
            name: self.name.clone(),
            metrics,
            figures: self.role.figures(),
            namespaces: self.role.namespaces(),
            ready: self.role.ready(),
            reasons: self.role.not_ready_because(),
        }
    }
}

impl RoleKind {
    /// Gateways and shards stop before those who keep what they wrote.
    fn phase(self) -> Phase {
        match self {
            RoleKind::Gateway | RoleKind::ClusterGateway | RoleKind::Shard => Phase::Servants,
            RoleKind::Backup | RoleKind::Coordinator => Phase::Keepers,
        }
    }
}
