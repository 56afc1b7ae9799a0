//! In which order the commands of one connection may leave.
//!
//! ```text
//! submitted -> behind a key-space command -> held by reads of its slot -> released (may be sent)
//! ```
//!
//! O1. Commands of one connection on one slot are released in the order of submission, and so stay
//!     in it: lanes send, and after a retry send again, in that order.
//! O2. A write is held while reads of its connection and slot are unanswered. A read may be
//!     repeated after a lost answer, and must not then see a later write of its own connection.
//! O3. A key-space command (SCAN, DBSIZE, FLUSHDB) waits for all earlier commands of its connection
//!     and later ones wait for it, because it concerns every slot.
//!
//! Commands without an `OrderKey` are released at once.

use std::collections::VecDeque;

use holdfast_format::{FixedMap, Slot};

/// Whoever's commands keep their order: a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey(pub u64);

/// A command's number in order of submission, never used again.
pub(crate) type Ticket = u64;

/// What a command is, as far as order goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read(Slot),
    Write(Slot),
    KeySpace,
}

#[derive(Debug, Default)]
pub(crate) struct Ordering {
    lines: FixedMap<OrderKey, Line>,
    groups: FixedMap<(OrderKey, Slot), Group>,
}

/// All commands of one connection.
#[derive(Debug, Default)]
struct Line {
    /// Commands on keys that have passed `behind` and are unanswered.
    open: u32,
    /// A key-space command is under way.
    barrier: bool,
    behind: VecDeque<(Ticket, Kind)>,
}

/// The commands of one connection on one slot; exists only while it has reads or holds something.
#[derive(Debug, Default)]
struct Group {
    /// Released reads that are unanswered.
    reads: u32,
    held: VecDeque<(Ticket, Kind)>,
}

impl Ordering {
    /// Takes a new command; true if it is released at once.
    pub(crate) fn admit(&mut self, order: OrderKey, ticket: Ticket, kind: Kind) -> bool {
        let line = self.lines.entry(order).or_default();
        let wait = match kind {
            Kind::KeySpace => line.open > 0,
            Kind::Read(_) | Kind::Write(_) => false,
        };
        if wait || line.barrier || !line.behind.is_empty() {
            line.behind.push_back((ticket, kind));
            return false;
        }
        self.pass(order, ticket, kind)
    }

    /// Takes the end of a command, answered or given up, and names those it lets go.
    pub(crate) fn finished(
        &mut self,
        order: OrderKey,
        ticket: Ticket,
        kind: Kind,
        was_released: bool,
        released: &mut Vec<Ticket>,
    ) {
        let line = self
            .lines
            .get_mut(&order)
            .expect("a line lives as long as its commands");
        if !was_released && remove(&mut line.behind, ticket) {
            self.advance(order, released);
            return;
        }
        match kind {
            Kind::KeySpace => line.barrier = false,
            Kind::Read(slot) | Kind::Write(slot) => {
                assert!(line.open > 0, "more commands ended than were begun");
                line.open -= 1;
                if let Some(group) = self.groups.get_mut(&(order, slot)) {
                    if !was_released {
                        assert!(remove(&mut group.held, ticket), "a command waits nowhere");
                    } else if matches!(kind, Kind::Read(_)) {
                        group.reads -= 1;
                    }
                    self.release_held(order, slot, released);
                }
            }
        }
        self.advance(order, released);
    }

    /// Lets a command past its line; true if its group releases it too.
    fn pass(&mut self, order: OrderKey, ticket: Ticket, kind: Kind) -> bool {
        let line = self
            .lines
            .get_mut(&order)
            .expect("the caller has just looked at it");
        match kind {
            Kind::KeySpace => {
                line.barrier = true;
                true
            }
            Kind::Write(slot) => {
                line.open += 1;
                match self.groups.get_mut(&(order, slot)) {
                    Some(group) => {
                        group.held.push_back((ticket, kind));
                        false
                    }
                    None => true,
                }
            }
            Kind::Read(slot) => {
                line.open += 1;
                let group = self.groups.entry((order, slot)).or_default();
                if group.held.is_empty() {
                    group.reads += 1;
                    return true;
                }
                group.held.push_back((ticket, kind));
                false
            }
        }
    }

    fn release_held(&mut self, order: OrderKey, slot: Slot, released: &mut Vec<Ticket>) {
        let group = self
            .groups
            .get_mut(&(order, slot))
            .expect("the caller has just found it");
        while let Some(&(ticket, kind)) = group.held.front() {
            if matches!(kind, Kind::Write(_)) && group.reads > 0 {
                break;
            }
            if matches!(kind, Kind::Read(_)) {
                group.reads += 1;
            }
            group.held.pop_front();
            released.push(ticket);
        }
        if group.reads == 0 && group.held.is_empty() {
            self.groups.remove(&(order, slot));
        }
    }

    /// Lets the front of a line past, as far as O3 allows, and forgets a line that has ended.
    fn advance(&mut self, order: OrderKey, released: &mut Vec<Ticket>) {
        loop {
            let line = self.lines.get_mut(&order).expect("removed only below");
            let Some(&(ticket, kind)) = line.behind.front() else {
                if line.open == 0 && !line.barrier {
                    self.lines.remove(&order);
                }
                return;
            };
            if line.barrier || (kind == Kind::KeySpace && line.open > 0) {
                return;
            }
            line.behind.pop_front();
            if self.pass(order, ticket, kind) {
                released.push(ticket);
            }
        }
    }
}

/// Removes `ticket` from a queue; only for commands given up while they wait, so a walk will do.
fn remove(queue: &mut VecDeque<(Ticket, Kind)>, ticket: Ticket) -> bool {
    match queue.iter().position(|&(waiting, _)| waiting == ticket) {
        Some(at) => queue.remove(at).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: OrderKey = OrderKey(1);
    const S: Slot = Slot(5);

    /// A write waits for the reads before it, and reads after it wait for the write's release.
    #[test]
    fn a_write_is_held_by_unanswered_reads_of_its_slot() {
        let mut ordering = Ordering::default();
        let mut released = Vec::new();
        assert!(ordering.admit(ONE, 1, Kind::Write(S)));
        assert!(ordering.admit(ONE, 2, Kind::Read(S)));
        assert!(!ordering.admit(ONE, 3, Kind::Write(S)));
        assert!(!ordering.admit(ONE, 4, Kind::Read(S)));
        assert!(
            ordering.admit(ONE, 5, Kind::Write(Slot(6))),
            "another slot is not concerned"
        );
        assert!(
            ordering.admit(OrderKey(2), 6, Kind::Write(S)),
            "nor another connection"
        );
        ordering.finished(ONE, 1, Kind::Write(S), true, &mut released);
        assert!(released.is_empty());
        ordering.finished(ONE, 2, Kind::Read(S), true, &mut released);
        assert_eq!(released, [3, 4]);
    }

    #[test]
    fn a_key_space_command_waits_for_its_connection_and_holds_it() {
        let mut ordering = Ordering::default();
        let mut released = Vec::new();
        assert!(ordering.admit(ONE, 1, Kind::Write(S)));
        assert!(!ordering.admit(ONE, 2, Kind::KeySpace));
        assert!(!ordering.admit(ONE, 3, Kind::Write(S)));
        ordering.finished(ONE, 1, Kind::Write(S), true, &mut released);
        assert_eq!(std::mem::take(&mut released), [2]);
        ordering.finished(ONE, 2, Kind::KeySpace, true, &mut released);
        assert_eq!(released, [3]);
    }

    proptest! {
        /// Whatever is submitted and however it ends (answered, or given up while it waits): every
        /// command is released once, O1 and O2 hold, and nothing is left behind.
        #[test]
        fn order_holds_and_everything_is_released(
            commands in prop::collection::vec((0u64..2, 0u8..7), 1..60),
            picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 200),
        ) {
            let mut ordering = Ordering::default();
            // Unanswered, in order of submission: ticket, line, kind, released.
            let mut open: Vec<(Ticket, OrderKey, Kind, bool)> = Vec::new();
            let mut picks = picks.into_iter().cycle();
            let mut commands = commands.into_iter().enumerate();
            loop {
                let next = commands.next();
                if let Some((ticket, (line, kind))) = next {
                    let kind = match kind {
                        0 => Kind::KeySpace,
                        1..=3 => Kind::Read(Slot(u16::from(kind & 1))),
                        _ => Kind::Write(Slot(u16::from(kind & 1))),
                    };
                    let go = ordering.admit(OrderKey(line), ticket as u64, kind);
                    open.push((ticket as u64, OrderKey(line), kind, go));
                } else if open.is_empty() {
                    break;
                }
                let (index, end) = picks.next().expect("it cycles");
                if (end || next.is_none()) && !open.is_empty() {
                    let (ticket, line, kind, was_released) = open.remove(index.index(open.len()));
                    let mut released = Vec::new();
                    ordering.finished(line, ticket, kind, was_released, &mut released);
                    for ticket in released {
                        let at = open.iter().position(|o| o.0 == ticket).expect("released once");
                        prop_assert!(!open[at].3, "released twice");
                        open[at].3 = true;
                    }
                }
                for (at, &(_, line, kind, go)) in open.iter().enumerate() {
                    for &(_, earlier_line, earlier, earlier_go) in &open[..at] {
                        if earlier_line != line || !go {
                            continue;
                        }
                        match (earlier, kind) {
                            (Kind::KeySpace, _) | (_, Kind::KeySpace) => {
                                prop_assert!(false, "a key-space command runs with another");
                            }
                            (Kind::Read(a), Kind::Write(b)) => prop_assert!(a != b, "O2"),
                            (Kind::Read(a) | Kind::Write(a), Kind::Read(b) | Kind::Write(b)) => {
                                prop_assert!(a != b || earlier_go, "O1");
                            }
                        }
                    }
                }
            }
            prop_assert!(ordering.lines.is_empty() && ordering.groups.is_empty());
        }
    }
}
