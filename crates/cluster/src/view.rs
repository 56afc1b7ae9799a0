//! Questions that everybody asks of a `View`, and what changed between two of them.

use holdfast_format::{LogId, ServerId, Slot};
use holdfast_wire::{Member, Role, Tablet, View};

/// Reading a view. Its tablets are sorted by range, as the coordinator sends them and
/// `Membership` keeps them.
pub trait ViewExt {
    /// The member, if it is up.
    fn member(&self, id: ServerId) -> Option<&Member>;
    fn is_up(&self, id: ServerId) -> bool;
    /// Members with this role that are up.
    fn with_role(&self, role: Role) -> impl Iterator<Item = &Member>;
    /// The tablet that holds `slot`; `None` before slots are dealt out.
    fn tablet_of(&self, slot: Slot) -> Option<&Tablet>;
    /// The log that owns `slot`, available or not.
    fn owner_of(&self, slot: Slot) -> Option<LogId>;
    /// The tablets of one log.
    fn tablets_of(&self, log: LogId) -> impl Iterator<Item = &Tablet>;
}

impl ViewExt for View {
    fn member(&self, id: ServerId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    fn is_up(&self, id: ServerId) -> bool {
        self.member(id).is_some()
    }

    fn with_role(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.role == role)
    }

    fn tablet_of(&self, slot: Slot) -> Option<&Tablet> {
        let at = self
            .tablets
            .partition_point(|tablet| tablet.range.last < slot);
        self.tablets
            .get(at)
            .filter(|tablet| tablet.range.contains(slot))
    }

    fn owner_of(&self, slot: Slot) -> Option<LogId> {
        self.tablet_of(slot).map(|tablet| tablet.owner)
    }

    fn tablets_of(&self, log: LogId) -> impl Iterator<Item = &Tablet> {
        self.tablets
            .iter()
            .filter(move |tablet| tablet.owner == log)
    }
}

/// Who came and who went when a newer view was taken.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ViewChange {
    pub joined: Vec<Member>,
    /// Declared dead (or, for a gateway, gone).
    pub left: Vec<Member>,
}

impl ViewChange {
    /// What differs between an older and a newer view.
    pub fn between(older: &View, newer: &View) -> ViewChange {
        let missing_in = |view: &View, members: &[Member]| {
            members
                .iter()
                .filter(|member| !view.is_up(member.id))
                .cloned()
                .collect()
        };
        ViewChange {
            joined: missing_in(older, &newer.members),
            left: missing_in(newer, &older.members),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::{Epoch, SlotRange};

    fn tablet(first: u16, last: u16, owner: u64) -> Tablet {
        Tablet {
            range: SlotRange {
                first: Slot(first),
                last: Slot(last),
            },
            owner: LogId(owner),
            epoch: Epoch(1),
            available: true,
        }
    }

    #[test]
    fn every_slot_finds_its_tablet_and_gaps_find_none() {
        let view = View {
            tablets: vec![tablet(0, 99, 1), tablet(100, 100, 2), tablet(200, 16383, 1)],
            ..View::default()
        };
        for (slot, owner) in [
            (0, Some(1)),
            (99, Some(1)),
            (100, Some(2)),
            (101, None),
            (199, None),
            (16383, Some(1)),
        ] {
            assert_eq!(view.owner_of(Slot(slot)), owner.map(LogId), "slot {slot}");
        }
        assert_eq!(View::default().owner_of(Slot(7)), None);
        assert_eq!(view.tablets_of(LogId(1)).count(), 2);
    }
}
