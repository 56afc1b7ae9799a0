//! The seam between a role and whoever drives it: the server's tokio loops or the simulation.
//!
//! A role is a `Node`: it is told one `Input` at a time and answers with `Output`s. It has no
//! clock, socket, disk, thread or source of chance of its own. A driver applies outputs in order,
//! one at a time, and may die or be paused between any two of them.
//!
//! N1. `now.mono_us` never goes back between steps of one node.
//! N2. Messages to one peer leave in order and arrive in order or not at all: when a connection
//!     breaks, everything not yet delivered is dropped and `PeerLost` is given to the sender
//!     before anything it sends later can be delivered. (The simulation breaks even this, for
//!     every role must be safe without it; it is only fast with it.)
//! N3. After every step the driver asks `wakeup` and gives `Tick` no earlier than that.

use bytes::Bytes;
use holdfast_format::{LogId, Namespace, ServerId};
use holdfast_wire::{Command, Figures, Message, NamespacePolicy, NamespaceUse, Once, Outcome};

use crate::{Arrival, ShardBeside};

/// The machine's time, read by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Boot-time clock, microseconds: goes on during pauses, comparable only on one machine.
    pub mono_us: u64,
    /// Wall clock, milliseconds since the Unix epoch. Only the coordinator looks at it.
    pub unix_ms: u64,
}

/// A connection of a client to a gateway, named by the driver; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

#[derive(Debug)]
pub enum Input {
    /// The wake-up asked for has come (or something else made the driver ask).
    Tick,
    Message {
        from: ServerId,
        message: Message,
    },
    /// The connection to `peer` broke or could not be made. `ended`: the driver saw its process end
    /// (connection refused on a loopback address, or a pidfd), which is proof, not suspicion.
    PeerLost {
        peer: ServerId,
        ended: bool,
    },
    /// Backups: an effect has completed.
    Disk(DiskDone),
    /// Coordinator: the writes of this token are durable.
    RecordsWritten {
        token: u64,
    },
    /// Gateways: RESP connections.
    Connected {
        connection: ConnectionId,
        client_address: String,
    },
    Received {
        connection: ConnectionId,
        bytes: Bytes,
        arrival: Arrival,
    },
    Disconnected {
        connection: ConnectionId,
    },
    /// Gateways: a call from gRPC or from within the process. Answered by `Output::Answer`.
    Call {
        token: u64,
        call: Call,
        /// When it was made, by `Now::mono_us`.
        posted_us: u64,
    },
    /// Coordinator: an operator's order. Answered by `Output::Obeyed` once it is durable, or by `Refused`.
    Order {
        token: u64,
        order: Order,
    },
    /// Finish what is under way and stop; the node answers with `Output::Stopped`.
    Shutdown,
}

/// What an operator may order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// From now on the namespace has these limits, and no others.
    SetNamespace(NamespacePolicy),
    /// From now on it has none.
    UnsetNamespace(Namespace),
    /// The sessions that can be had from this held log only are lost, and its slots begin anew without them.
    /// `shard` is the dead shard's name: who orders this has looked.
    AbandonRecovery { log: LogId, shard: String },
}

/// A command from the gRPC face. `once` is the caller's own; without it the gateway uses its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub command: Command,
    pub once: Option<Once>,
    /// Answer by then, in milliseconds from now; the gateway's retry limit if `None`.
    pub within_ms: Option<u32>,
}

#[derive(Debug)]
pub enum Output {
    Send {
        to: ServerId,
        message: Message,
    },
    /// `peer` is to be dialled at `address` from now on. Comes before the first `Send` to it.
    Address {
        peer: ServerId,
        address: String,
    },
    /// `peer` has been declared dead: close connections to it and forget the address.
    Forget {
        peer: ServerId,
    },
    Disk(DiskOp),
    /// Make these writes durable, all or none, in order; then `RecordsWritten { token }`.
    Records {
        token: u64,
        writes: Vec<RecordWrite>,
    },
    Bytes {
        connection: ConnectionId,
        bytes: Bytes,
    },
    Close {
        connection: ConnectionId,
    },
    Answer {
        token: u64,
        outcome: Outcome,
    },
    /// An order is durable, and on its way to everyone.
    Obeyed {
        token: u64,
    },
    /// An order makes no sense now, and has changed nothing.
    Refused {
        token: u64,
        why: String,
    },
    /// Something an operator may want to read; the driver logs it and may count it.
    Event(Event),
    /// The node must not go on under this id (declared dead, or told to shut down). The driver drops
    /// it; a shard or backup declared dead is started again under a new id.
    Stopped {
        reason: String,
    },
}

/// What happened, for the log and for tests. `text` is one plain sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub level: Level,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// Frames of a backup's store, numbered from 0. Each has `FRAME_HEADER_BYTES` for the backup's own
/// header and then room for one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u32);

/// Bytes before a segment's bytes in a frame.
pub const FRAME_HEADER_BYTES: u32 = 4096;

/// Effects on a backup's store. `offset` counts from the start of the frame, header included.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Copy into the frame's shared mapping: survives the death of every process, not of the
    /// kernel. Applied at once and in order; no completion.
    Write {
        frame: FrameId,
        offset: u32,
        bytes: Bytes,
    },
    /// Make everything written to the frame so far survive a power failure; completes with
    /// `DiskDone::Synced`.
    Sync { token: u64, frame: FrameId },
    /// Completes with `DiskDone::Read`.
    Read {
        token: u64,
        frame: FrameId,
        offset: u32,
        length: u32,
        /// As the disk has it, not as it is remembered in memory, as far as that can be told apart.
        from_medium: bool,
    },
}

#[derive(Clone, Debug)]
pub enum DiskDone {
    Synced {
        token: u64,
        result: Result<(), DiskError>,
    },
    Read {
        token: u64,
        result: Result<Bytes, DiskError>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct DiskError(pub String);

/// One write to the metadata store: both an embedded store and etcd can do this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordWrite {
    pub key: String,
    /// `None` removes the record.
    pub value: Option<Bytes>,
}

#[derive(Debug, Default)]
pub struct Outputs {
    pub list: Vec<Output>,
}

impl Outputs {
    pub fn push(&mut self, output: Output) {
        self.list.push(output);
    }
    pub fn send(&mut self, to: ServerId, message: Message) {
        self.list.push(Output::Send { to, message });
    }
    pub fn event(&mut self, level: Level, text: impl Into<String>) {
        self.list.push(Output::Event(Event {
            level,
            text: text.into(),
        }));
    }
}

/// A role as a state machine.
pub trait Node {
    /// Takes one input. Bounded: no step works longer than about a millisecond.
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs);

    /// Called by the driver after one or more steps, with a fresh `now`, before it waits: group
    /// commit and the release of answers happen here, where the lease is judged by a clock read
    /// after the work was done. Nodes without such work do nothing.
    fn flush(&mut self, now: Now, out: &mut Outputs) {
        let _ = (now, out);
    }

    /// `step` for a node that may ask a shard on its thread; most have no use for one.
    fn step_beside(
        &mut self,
        now: Now,
        input: Input,
        shard: Option<&mut dyn ShardBeside>,
        out: &mut Outputs,
    ) {
        let _ = shard;
        self.step(now, input, out);
    }

    /// `flush` for such a node. The driver calls it after every flush of the shard, too.
    fn flush_beside(&mut self, now: Now, shard: Option<&mut dyn ShardBeside>, out: &mut Outputs) {
        let _ = shard;
        self.flush(now, out);
    }

    /// This node as a shard that may be lent to another of its thread.
    fn as_shard(&mut self) -> Option<&mut dyn ShardBeside> {
        None
    }

    /// When to give `Tick` next, in `Now::mono_us`; `None`: never.
    fn wakeup(&self) -> Option<u64>;

    /// Its figures for `/metrics` and `ctl status`, as (name, value) with Prometheus names.
    fn metrics(&self) -> Vec<(&'static str, f64)>;

    /// Ready as `/readyz` means it: recovered, and everything fully replicated.
    fn ready(&self) -> bool;

    /// What it waits for while it is not ready, one sentence each, if it can say.
    fn not_ready_because(&self) -> Vec<String> {
        Vec::new()
    }

    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Shards: what there is of each namespace that has anything, by number.
    fn namespaces(&self) -> Vec<NamespaceUse> {
        Vec::new()
    }
}

/// Random numbers a node needs, seeded by the driver: xorshift64*, good enough for placement and
/// jitter, never for secrets.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Uniform enough in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.roll() % bound }
    }
}
