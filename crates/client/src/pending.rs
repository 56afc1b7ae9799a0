//! One command that has been submitted and not answered: where it stands, and what may have happened
//! to it.

use std::ops::Index;

use holdfast_format::{FixedMap, ServerId, Slot};
use holdfast_wire::{Command, Once};

use crate::order::{Kind, OrderKey, Ticket};

/// Room for so many commands, 300 KB, is kept when there are none.
const PLACES_KEPT: usize = 1_024;

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

/// Everything pending, by ticket.
///
/// The commands stand in a vector whose free places are used again at once, the last first, so that they are few and
/// near; a hash map with them inside would spread them over several times as much memory.
#[derive(Debug, Default)]
pub(crate) struct PendingMap {
    places: FixedMap<Ticket, u32>,
    commands: Vec<Option<Pending>>,
    free: Vec<u32>,
}

impl PendingMap {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(crate) fn get(&self, ticket: &Ticket) -> Option<&Pending> {
        let place = *self.places.get(ticket)?;
        self.commands[place as usize].as_ref()
    }

    pub(crate) fn get_mut(&mut self, ticket: &Ticket) -> Option<&mut Pending> {
        let place = *self.places.get(ticket)?;
        self.commands[place as usize].as_mut()
    }

    pub(crate) fn insert(&mut self, ticket: Ticket, pending: Pending) {
        let place = match self.free.pop() {
            Some(place) => {
                self.commands[place as usize] = Some(pending);
                place
            }
            None => {
                self.commands.push(Some(pending));
                self.commands.len() as u32 - 1
            }
        };
        let before = self.places.insert(ticket, place);
        assert!(before.is_none(), "a ticket was used again");
    }

    pub(crate) fn remove(&mut self, ticket: &Ticket) -> Option<Pending> {
        let place = self.places.remove(ticket)?;
        self.free.push(place);
        let pending = self.commands[place as usize].take();
        if self.places.is_empty() && self.commands.len() > PLACES_KEPT {
            *self = PendingMap::default();
        }
        pending
    }

    /// In no order that anybody should see.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ticket, &Pending)> {
        let at = |place: u32| self.commands[place as usize].as_ref();
        (self.places.iter()).filter_map(move |(&ticket, &place)| Some((ticket, at(place)?)))
    }
}

impl Index<&Ticket> for PendingMap {
    type Output = Pending;

    fn index(&self, ticket: &Ticket) -> &Pending {
        self.get(ticket).expect("whoever asks so knows the ticket")
    }
}
