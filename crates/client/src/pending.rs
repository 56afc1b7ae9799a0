//! One command that has been submitted and not answered: where it stands, and what may have happened
//! to it.

use holdfast_format::{ServerId, Slot};
use holdfast_wire::{Command, Once};

use crate::order::{Kind, OrderKey, Ticket};

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) token: u64,
    pub(crate) command: Command,
    pub(crate) once: Option<Once>,
    /// `once` is the core's own and its sequence stands in `open_sequences`.
    pub(crate) own_sequence: bool,
    pub(crate) order: Option<OrderKey>,
    pub(crate) deadline_us: u64,
    pub(crate) target: Target,
    pub(crate) place: Place,
    pub(crate) submitted_us: u64,
    pub(crate) sent_us: u64,
    /// The stream of the latest attempt; 0 before the first.
    pub(crate) stream: u64,
    /// The latest attempt is out and was not refused; an earlier one may have been executed.
    pub(crate) attempted: bool,
    pub(crate) unsure: bool,
    pub(crate) refused_busy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Slot(Slot),
    /// A key-space command; `Fan` has the rest.
    Fan,
    /// The part of a key-space command that one shard is asked.
    Part {
        fan: Ticket,
        shard: ServerId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not released yet (`order.rs`).
    Waiting,
    Parked,
    Queued(ServerId),
    Sent(ServerId),
    /// A key-space command whose parts are under way, or will be at `Fan::retry_us`.
    Fanned,
}

impl Pending {
    /// What it is to `order.rs`.
    pub(crate) fn kind(&self) -> Kind {
        match self.target {
            Target::Slot(slot) if self.command.op.is_write() => Kind::Write(slot),
            Target::Slot(slot) => Kind::Read(slot),
            Target::Fan | Target::Part { .. } => Kind::KeySpace,
        }
    }
}
