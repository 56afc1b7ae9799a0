//! Which shard to ask about a slot, by the newest view: one array look-up per command.

use holdfast_format::{SLOTS, ServerId, Slot};
use holdfast_wire::{Role, Tablet, View};

const NONE: u16 = u16::MAX;

/// The tablet map, laid out for look-ups.
#[derive(Debug)]
pub struct Routes {
    view_version: u64,
    tablets: Vec<Tablet>,
    /// Per slot: index into `tablets`, or `NONE`.
    by_slot: Vec<u16>,
    shards: Vec<ServerId>,
    owners: Vec<ServerId>,
    complete: bool,
}

impl Routes {
    /// Before the first view: nobody owns anything.
    pub fn empty() -> Routes {
        Routes::new(&View::default())
    }

    /// By this view. Tablets beyond the first 65,534 are ignored; there are at most 16,384 slots.
    pub fn new(view: &View) -> Routes {
        let tablets: Vec<Tablet> = view.tablets.iter().take(NONE as usize).copied().collect();
        let mut by_slot = vec![NONE; SLOTS as usize];
        for (index, tablet) in tablets.iter().enumerate() {
            let last = tablet.range.last.0.min(SLOTS - 1);
            for slot in tablet.range.first.0..=last {
                by_slot[slot as usize] = index as u16;
            }
        }
        let mut owners: Vec<ServerId> = tablets
            .iter()
            .filter(|t| t.available)
            .map(|t| t.owner.shard())
            .collect();
        owners.sort_unstable();
        owners.dedup();
        let complete = by_slot
            .iter()
            .all(|&at| at != NONE && tablets[at as usize].available);
        let shards = view
            .members
            .iter()
            .filter(|m| m.role == Role::Shard)
            .map(|m| m.id)
            .collect();
        Routes {
            view_version: view.version,
            tablets,
            by_slot,
            shards,
            owners,
            complete,
        }
    }

    /// The version of the view behind it.
    pub fn view_version(&self) -> u64 {
        self.view_version
    }

    /// The tablet that holds `slot`, served or not.
    pub fn tablet(&self, slot: Slot) -> Option<&Tablet> {
        self.tablets
            .get(self.by_slot[(slot.0 % SLOTS) as usize] as usize)
    }

    /// The shard to ask about `slot`; `None` while nobody serves it.
    pub fn owner(&self, slot: Slot) -> Option<ServerId> {
        self.tablet(slot)
            .filter(|tablet| tablet.available)
            .map(|tablet| tablet.owner.shard())
    }

    /// Every shard that serves a tablet, in order of id.
    pub fn owners(&self) -> &[ServerId] {
        &self.owners
    }

    /// True if the shard is up, whether it owns anything or not.
    pub fn is_shard(&self, shard: ServerId) -> bool {
        self.shards.contains(&shard)
    }

    /// True if every slot is served by somebody.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// The tablets as the view lists them.
    pub fn tablets(&self) -> &[Tablet] {
        &self.tablets
    }
}
