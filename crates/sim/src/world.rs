//! A whole cluster on one thread: places where processes run, the network between them, their
//! disks and clocks, and one queue of everything that will happen.
//!
//! ```text
//! applications, chaos --calls, faults--> World <--outputs-- Node (in a place, on a machine)
//!          ^------------happenings---------/ \----inputs------^
//! ```
//!
//! W1. Events happen in the order of (time, sequence number); nothing else decides, so a seed
//!     always gives the same run. The trace hash proves it.
//! W2. A step's outputs are applied one at a time, and a process may die or stand still between any
//!     two of them. Answers are released by a step of their own (`flush`) with a later clock.
//! W3. A process that dies leaves its machine's store and clock; it returns under a new id (the
//!     coordinator under 0) and remembers only what the store or the records hold.
//! W5. A gateway in a shard's process is lent the shard, and shares its pauses and its death.
//! W4. Every step costs simulated time, stretched as a fault, so that long work can outlive a lease.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{Arrival, Call, ConnectionId, FrameId, Input, Node, Output, Outputs};
use holdfast_format::{ServerId, Slot};
use holdfast_wire::{Message, Outcome, Role, View};

mod disks;
mod happen;
mod messages;
mod processes;

use crate::chance::Chance;
use crate::clock::MachineClock;
use crate::closings::Closings;
use crate::cluster_time::ClusterTime;
use crate::faults::FaultCounts;
use crate::network::{MachineId, Network, PlaceId, Route};
use crate::records::Records;
use crate::setup::Setup;
use crate::store::{Store, SyncMark};
use crate::trace::TraceHash;

/// Inputs a process takes before it flushes.
const BATCH_INPUTS: usize = 16;
/// A node that asks to be woken at once so often, with nothing to do in between, spins.
const SPINS_MAX: u32 = 10_000;

/// The tally of replicas that were closed with other bytes than the first of their segment.
pub const REPLICAS_OF_COMPACTED: &str = "sim_replicas_of_compacted_total";

/// The tally of shards whose heads were cut off from their backups as they compacted.
pub const STARVED: &str = "sim_starved_shards_total";

/// The tally of shards that were cut off and killed as they leant on a dead log.
pub const CAUGHT: &str = "sim_caught_leaning_total";

/// What shards call the bytes that they have copied in compacting.
pub const COMPACTED: &str = "holdfast_shard_compacted_bytes_total";

/// What applications and scenarios get to see.
#[derive(Debug)]
pub enum Happening {
    /// A call was answered.
    Answer { token: u64, outcome: Outcome },
    /// A call's gateway died or could not be reached: nobody knows.
    CallLost { token: u64 },
    /// A gateway said something on a connection.
    Bytes {
        connection: ConnectionId,
        bytes: Bytes,
    },
    /// A connection has ended.
    Closed { connection: ConnectionId },
    /// An alarm set with `alarm` has come.
    Alarm { name: u64 },
}

/// What to do to a process after some more of its outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// It dies; its kernel closes its streams.
    Crash,
    /// It stands still.
    Pause { for_us: u64 },
    /// Its machine loses power: everyone there dies in silence.
    PowerLoss,
}

/// Decides whether a message is dropped; for scenarios.
pub type Filter = Box<dyn FnMut(PlaceId, PlaceId, &Message) -> bool>;

/// See the module's description.
pub struct World {
    pub setup: Setup,
    pub network: Network,
    pub counts: FaultCounts,
    /// Broken promises that the world itself has seen.
    pub violations: Vec<String>,
    pub cluster_time: ClusterTime,
    /// The newest view that the coordinator has told anybody.
    pub view: View,
    /// What the roles counted (`*_total`), over all processes that ever ran.
    pub tallies: BTreeMap<&'static str, u64>,
    /// How long a write of the metadata store takes, in microseconds (mean).
    pub records_delay_us: u64,
    /// The next shard that leans gets nothing but its head to backups from then on, for good; the alarm of this number
    /// and the shard's place tells.
    pub catch_leaning: Option<u64>,
    now_us: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    chance: Chance,
    ids: Chance,
    places: Vec<Place>,
    machines: Vec<Machine>,
    records: Records,
    records_last_us: u64,
    whereabouts: BTreeMap<ServerId, PlaceId>,
    refusals: BTreeSet<(PlaceId, ServerId)>,
    connections: BTreeMap<ConnectionId, Connection>,
    calls: BTreeMap<u64, PlaceId>,
    last_token: u64,
    happenings: VecDeque<Happening>,
    trace: TraceHash,
    tells: Tells,
    events: u64,
    filter: Option<Filter>,
    closings: Closings,
    scratch: Outputs,
}

/// What is printed while the world runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Tells {
    #[default]
    Nothing,
    /// What nodes report, and faults.
    Events,
    /// Every input and output as well.
    Everything,
}

#[derive(Debug)]
struct Machine {
    clock: MachineClock,
    off: bool,
}

struct Place {
    name: String,
    role: Role,
    machine: MachineId,
    /// Processes of one master die together.
    process: u32,
    store: Option<Store>,
    disk: DiskManners,
    /// Computing takes so many times as long.
    stretch: u64,
    incarnation: u64,
    running: Option<Running>,
    last_id: Option<ServerId>,
}

/// How a disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct DiskManners {
    pub slow_factor: u64,
    pub sync_errors_ppm: u32,
    pub read_errors_ppm: u32,
}

impl Default for DiskManners {
    fn default() -> DiskManners {
        DiskManners {
            slow_factor: 1,
            sync_errors_ppm: 0,
            read_errors_ppm: 0,
        }
    }
}

struct Running {
    id: ServerId,
    node: Box<dyn Node>,
    inbox: VecDeque<Input>,
    flush_due: bool,
    /// The time of the next `Event::Turn`, if one is on its way.
    turn_at_us: Option<u64>,
    busy_until_us: u64,
    paused_until_us: u64,
    tick_at_us: u64,
    spins: u32,
    appetite: Appetite,
    /// Outputs not applied yet because the process stands still between two of them.
    held: VecDeque<Output>,
    blow: Option<(u32, Blow)>,
    /// Peers it may send to: it gave their address, or they spoke first.
    reachable: BTreeSet<ServerId>,
}

/// Whether what a shard appends to its open heads arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Appetite {
    Fed,
    /// It does until the shard has compacted more bytes than so many; then this alarm comes.
    UntilCompaction {
        compacted: u64,
        alarm: u64,
    },
    Starved,
    /// It does, but copies and side segments do not.
    Caught,
}

struct Connection {
    gateway: PlaceId,
    incarnation: u64,
    to_gateway_us: u64,
    to_client_us: u64,
    open: bool,
}

enum Event {
    Turn {
        place: PlaceId,
        incarnation: u64,
    },
    Tick {
        place: PlaceId,
        incarnation: u64,
    },
    Deliver {
        route: Route,
        from: ServerId,
        incarnation: u64,
        generation: u64,
        message: Box<Message>,
    },
    /// The stream between two places breaks.
    Break {
        a: PlaceId,
        b: PlaceId,
    },
    Input {
        place: PlaceId,
        incarnation: u64,
        input: Box<Input>,
    },
    Refused {
        place: PlaceId,
        incarnation: u64,
        peer: ServerId,
        ended: bool,
    },
    Sync {
        place: PlaceId,
        incarnation: u64,
        token: u64,
        frame: FrameId,
        mark: SyncMark,
        fails: bool,
    },
    Read {
        place: PlaceId,
        incarnation: u64,
        token: u64,
        frame: FrameId,
        span: (u32, u32),
        fails: bool,
    },
    Records {
        place: PlaceId,
        incarnation: u64,
    },
    Start {
        place: PlaceId,
        incarnation: u64,
    },
    /// A blow whose outputs never came falls anyway.
    Blow {
        place: PlaceId,
        incarnation: u64,
    },
    Happens(Happening),
}

struct Scheduled {
    at_us: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "World at {} us after {} events",
            self.now_us, self.events
        )
    }
}

impl World {
    /// Machines and places as `setup` says; every process starts within the first 50 ms.
    pub fn new(setup: Setup, tells: Tells) -> World {
        let mut chance = Chance::new(setup.seed, 0x776F);
        let mut world = World {
            network: Network::new(setup.seed),
            counts: FaultCounts::default(),
            violations: Vec::new(),
            cluster_time: ClusterTime::default(),
            view: View::default(),
            tallies: BTreeMap::new(),
            records_delay_us: 1_000,
            catch_leaning: None,
            now_us: 1_000_000,
            sequence: 0,
            queue: BinaryHeap::new(),
            ids: Chance::new(setup.seed, 0x6964),
            places: Vec::new(),
            machines: Vec::new(),
            records: Records::default(),
            records_last_us: 0,
            whereabouts: BTreeMap::new(),
            refusals: BTreeSet::new(),
            connections: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_token: 0,
            happenings: VecDeque::new(),
            trace: TraceHash::default(),
            tells,
            events: 0,
            filter: None,
            closings: Closings::default(),
            scratch: Outputs::default(),
            chance: Chance::new(setup.seed, 0x7772),
            setup,
        };
        for plan in world.setup.places() {
            while world.machines.len() <= plan.machine.0 as usize {
                let clock = world.setup.clock(&mut chance);
                world.machines.push(Machine { clock, off: false });
            }
            let store = (plan.role == Role::Backup).then(|| {
                Store::new(
                    world.setup.frames,
                    world.setup.segment_bytes,
                    world.setup.power_fails,
                )
            });
            world.places.push(Place {
                name: plan.name,
                role: plan.role,
                machine: plan.machine,
                process: plan.process,
                store,
                disk: DiskManners::default(),
                stretch: 1,
                incarnation: 0,
                running: None,
                last_id: None,
            });
        }
        for place in world.all_places() {
            world.start_in(place, chance.below(50_000));
        }
        world
    }

    // ---- time ----

    /// The world's own time.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Lets things happen until there is one to report, or until that time.
    pub fn advance(&mut self, until_us: u64) -> Option<Happening> {
        loop {
            if let Some(happening) = self.happenings.pop_front() {
                return Some(happening);
            }
            match self.queue.peek() {
                Some(Reverse(next)) if next.at_us <= until_us => {}
                _ => {
                    self.now_us = self.now_us.max(until_us);
                    return None;
                }
            }
            let Reverse(next) = self.queue.pop().expect("peeked");
            self.now_us = self.now_us.max(next.at_us);
            self.events += 1;
            self.happen(next.event);
        }
    }

    /// Reports `Happening::Alarm` in so long.
    pub fn alarm(&mut self, in_us: u64, name: u64) {
        self.schedule(in_us, Event::Happens(Happening::Alarm { name }));
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The trace up to now.
    pub fn trace(&self) -> TraceHash {
        self.trace
    }

    // ---- looking around ----

    /// Every place, in order.
    pub fn all_places(&self) -> Vec<PlaceId> {
        (0..self.places.len()).map(PlaceId).collect()
    }

    /// Places of a role, in order.
    pub fn places_of(&self, role: Role) -> Vec<PlaceId> {
        (0..self.places.len())
            .filter(|&p| self.places[p].role == role)
            .map(PlaceId)
            .collect()
    }

    /// A place's name, such as `backup-2`.
    pub fn name(&self, place: PlaceId) -> &str {
        &self.places[place.0].name
    }

    /// A place's role.
    pub fn role(&self, place: PlaceId) -> Role {
        self.places[place.0].role
    }

    /// A place's machine.
    pub fn machine(&self, place: PlaceId) -> MachineId {
        self.places[place.0].machine
    }

    /// The id of the process that runs there now.
    pub fn id(&self, place: PlaceId) -> Option<ServerId> {
        self.places[place.0]
            .running
            .as_ref()
            .map(|running| running.id)
    }

    /// Where the shard runs that owns a key's slot by the newest view.
    pub fn owner(&self, key: &[u8]) -> Option<PlaceId> {
        let slot = Slot::of(key);
        let tablet = self
            .view
            .tablets
            .iter()
            .find(|tablet| tablet.range.contains(slot))?;
        self.whereabouts.get(&tablet.owner.shard()).copied()
    }

    /// How many processes have been started there.
    pub fn incarnation(&self, place: PlaceId) -> u64 {
        self.places[place.0].incarnation
    }

    /// True if a process runs there (standing still or not).
    pub fn is_up(&self, place: PlaceId) -> bool {
        self.places[place.0].running.is_some()
    }

    /// True if everything runs and calls itself ready.
    pub fn is_ready(&self) -> bool {
        self.unready().is_empty()
    }

    /// Who is down or not ready.
    pub fn unready(&self) -> Vec<String> {
        let ready = |place: &&Place| !place.running.as_ref().is_some_and(|r| r.node.ready());
        self.places
            .iter()
            .filter(ready)
            .map(|place| place.name.clone())
            .collect()
    }

    /// Figures of the process in a place, by their Prometheus names.
    pub fn metrics(&self, place: PlaceId) -> BTreeMap<&'static str, f64> {
        match &self.places[place.0].running {
            Some(running) => running.node.metrics().into_iter().collect(),
            None => BTreeMap::new(),
        }
    }

    /// Adds what the running processes have counted to the tallies: once, at the end.
    pub fn tally(&mut self) {
        let others = self.closings.others;
        *self.tallies.entry(REPLICAS_OF_COMPACTED).or_default() += others;
        for place in &self.places {
            if let Some(running) = &place.running {
                processes::tally(&mut self.tallies, running.node.as_ref());
            }
        }
    }

    /// Segments that a shard says have fewer replicas than they should.
    pub fn under_replicated(&self, place: PlaceId) -> u64 {
        self.places[place.0]
            .running
            .as_ref()
            .map_or(0, |r| r.node.figures().under_replicated)
    }

    /// Operations not answered yet that applications have asked for.
    pub fn calls_pending(&self) -> usize {
        self.calls.len()
    }

    // ---- clients ----

    /// Gives a gateway a call; an `Answer` or `CallLost` follows.
    pub fn call(&mut self, gateway: PlaceId, call: Call) -> u64 {
        self.last_token += 1;
        let token = self.last_token;
        let delay_us = 30 + self.chance.below(100);
        if !self.is_up(gateway) {
            self.schedule(delay_us, Event::Happens(Happening::CallLost { token }));
            return token;
        }
        self.calls.insert(token, gateway);
        self.input(
            gateway,
            delay_us,
            Input::Call {
                token,
                call,
                posted_us: 0,
            },
        );
        token
    }

    /// Opens a connection to a gateway; `Closed` follows when it is down.
    pub fn connect(&mut self, gateway: PlaceId) -> ConnectionId {
        self.last_token += 1;
        let connection = ConnectionId(self.last_token);
        let at_us = self.now_us + 30 + self.chance.below(100);
        let open = self.is_up(gateway);
        self.connections.insert(
            connection,
            Connection {
                gateway,
                incarnation: self.places[gateway.0].incarnation,
                to_gateway_us: at_us,
                to_client_us: at_us,
                open,
            },
        );
        if open {
            let client_address = format!("10.9.0.1:{}", 1024 + connection.0 % 60_000);
            let input = Input::Connected {
                connection,
                client_address,
            };
            self.input(gateway, at_us - self.now_us, input);
        } else {
            self.schedule(200, Event::Happens(Happening::Closed { connection }));
        }
        connection
    }

    /// Sends bytes on a connection, in random fragments.
    pub fn send_bytes(&mut self, connection: ConnectionId, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let some = match self.chance.below(4) {
                0 => 1 + self.chance.below(8) as usize,
                1 => 1 + self.chance.below(200) as usize,
                _ => bytes.len(),
            };
            let fragment = bytes.split_to(some.min(bytes.len()));
            let delay_us = 20 + self.chance.exponential(60);
            let now_us = self.now_us;
            let Some(known) = self
                .connections
                .get_mut(&connection)
                .filter(|known| known.open)
            else {
                return;
            };
            known.to_gateway_us = known.to_gateway_us.max(now_us + delay_us);
            let (gateway, at_us) = (known.gateway, known.to_gateway_us);
            let input = Input::Received {
                connection,
                bytes: fragment,
                arrival: Arrival::default(),
            };
            self.input(gateway, at_us - now_us, input);
        }
    }

    /// The application drops a connection.
    pub fn disconnect(&mut self, connection: ConnectionId) {
        let Some(known) = self
            .connections
            .remove(&connection)
            .filter(|known| known.open)
        else {
            return;
        };
        let delay_us = known.to_gateway_us.saturating_sub(self.now_us) + 10;
        if self.places[known.gateway.0].incarnation == known.incarnation {
            self.input(known.gateway, delay_us, Input::Disconnected { connection });
        }
    }

    // ---- faults and deeds ----

    /// The process there dies at once, and with it the other shards of the same master.
    pub fn crash(&mut self, place: PlaceId) {
        let process = self.places[place.0].process;
        for other in self.all_places() {
            if self.places[other.0].process == process {
                self.kill(other, true);
            }
        }
    }

    /// The machine loses power: its processes die in silence, its stores lose what was not synced.
    pub fn power_loss(&mut self, machine: MachineId) {
        self.tell(Tells::Events, || {
            format!("machine {} loses power", machine.0)
        });
        self.machines[machine.0 as usize].off = true;
        for place in self.all_places() {
            if self.places[place.0].machine == machine {
                self.kill(place, false);
                if let Some(store) = &mut self.places[place.0].store {
                    store.power_failure(&mut self.chance);
                }
            }
        }
    }

    /// Starts the place's process again in so long, under a new id, and switches its machine on.
    pub fn start_in(&mut self, place: PlaceId, in_us: u64) {
        let incarnation = self.places[place.0].incarnation;
        self.schedule(in_us, Event::Start { place, incarnation });
    }

    /// From its next compaction on, every append to an open head that the shard there sends is lost, beginning with
    /// what it appended just before; copies of other segments arrive. An alarm tells that it has begun.
    pub fn starve_from_compaction(&mut self, place: PlaceId, alarm: u64) {
        if let Some(running) = &mut self.places[place.0].running
            && !matches!(running.appetite, Appetite::Starved | Appetite::Caught)
        {
            let compacted = processes::compacted_bytes(running.node.as_ref());
            running.appetite = Appetite::UntilCompaction { compacted, alarm };
        }
    }

    /// Lets a blow fall after so many more outputs of the process, in 100 ms at the latest.
    pub fn strike(&mut self, place: PlaceId, after_outputs: u32, blow: Blow) {
        let incarnation = self.places[place.0].incarnation;
        if let Some(running) = &mut self.places[place.0].running {
            running.blow = Some((after_outputs, blow));
            self.schedule(100_000, Event::Blow { place, incarnation });
        }
    }

    /// The process stands still, with everyone in it; its machine's clock goes on.
    pub fn pause(&mut self, place: PlaceId, for_us: u64) {
        self.tell(Tells::Events, || {
            format!("{place:?} pauses for {for_us} us")
        });
        let until_us = self.now_us + for_us;
        let process = self.places[place.0].process;
        for other in self.places.iter_mut().filter(|o| o.process == process) {
            if let Some(running) = &mut other.running {
                running.paused_until_us = running.paused_until_us.max(until_us);
            }
        }
    }

    /// Breaks the stream between two places; both ends are told soon.
    pub fn break_stream(&mut self, a: PlaceId, b: PlaceId) {
        self.schedule(0, Event::Break { a, b });
    }

    /// How the disk of a backup's place behaves from now on.
    pub fn set_disk(&mut self, place: PlaceId, manners: DiskManners) {
        self.places[place.0].disk = manners;
    }

    /// How much slower than usual a place computes from now on.
    pub fn set_stretch(&mut self, place: PlaceId, stretch: u64) {
        self.places[place.0].stretch = stretch;
    }

    /// The store of a backup's place.
    pub fn store(&mut self, place: PlaceId) -> &mut Store {
        self.places[place.0]
            .store
            .as_mut()
            .expect("only backups have a store")
    }

    /// Flips a random bit of a random written frame; false if there is none.
    pub fn flip_bit(&mut self, place: PlaceId) -> bool {
        let store = self.places[place.0]
            .store
            .as_mut()
            .expect("only backups have a store");
        store.flip_bit(&mut self.chance)
    }

    /// Messages for which `filter` says true are dropped. For scenarios.
    pub fn set_filter(&mut self, filter: Option<Filter>) {
        self.filter = filter;
    }

    /// Ends every fault and starts whatever is down. Clocks stay as they are.
    pub fn heal(&mut self) {
        self.tell(Tells::Events, || "everything heals".to_owned());
        self.network.heal();
        self.records_delay_us = 1_000;
        self.catch_leaning = None;
        for place in self.all_places() {
            self.places[place.0].disk = DiskManners::default();
            self.places[place.0].stretch = 1;
            let now_us = self.now_us;
            match &mut self.places[place.0].running {
                Some(running) => {
                    running.blow = None;
                    running.appetite = Appetite::Fed;
                    running.paused_until_us = now_us;
                    self.turn_soon(place);
                }
                None => {
                    let in_us = self.chance.below(100_000);
                    self.start_in(place, in_us);
                }
            }
        }
    }

    /// Prints a line if such lines are wanted.
    pub fn tell(&self, level: Tells, line: impl FnOnce() -> String) {
        if self.tells >= level {
            println!("{:>12.6}  {}", self.now_us as f64 / 1e6, line());
        }
    }
}
