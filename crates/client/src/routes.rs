//! Which shard to ask about a slot, by the newest view: a short binary search per command.
//!
//! An array with a place for every slot would take 32 KiB, which commands on random keys would keep loading from
//! far away; the ends of a few tablets stay in the nearest cache.

use holdfast_format::{SLOTS, ServerId, Slot};
use holdfast_wire::{Role, Tablet, View};

/// The tablet map, laid out for look-ups.
#[derive(Debug)]
pub struct Routes {
    view_version: u64,
    tablets: Vec<Tablet>,
    /// The parts of the slots that are in one tablet, or in none, ascending: the last slot of each.
    ends: Vec<u16>,
    /// Index into `tablets` of each part.
    parts: Vec<Option<u32>>,
    shards: Vec<ServerId>,
    owners: Vec<ServerId>,
    complete: bool,
}

impl Routes {
    /// Before the first view: nobody owns anything.
    pub fn empty() -> Routes {
        Routes::new(&View::default())
    }

    /// By this view. Where tablets overlap, the last of them counts.
    pub fn new(view: &View) -> Routes {
        let tablets = view.tablets.clone();
        let mut by_slot = vec![None; SLOTS as usize];
        for (index, tablet) in tablets.iter().enumerate() {
            let last = tablet.range.last.0.min(SLOTS - 1);
            for slot in tablet.range.first.0..=last {
                by_slot[slot as usize] = Some(index as u32);
            }
        }
        let (mut ends, mut parts) = (Vec::new(), Vec::new());
        for part in by_slot.chunk_by(|a, b| a == b) {
            let before = ends.last().map_or(0, |&end| end + 1);
            ends.push(before + (part.len() - 1) as u16);
            parts.push(part[0]);
        }
        let mut owners: Vec<ServerId> = tablets
            .iter()
            .filter(|t| t.available)
            .map(|t| t.owner.shard())
            .collect();
        owners.sort_unstable();
        owners.dedup();
        let complete = parts
            .iter()
            .all(|at| at.is_some_and(|at| tablets[at as usize].available));
        let shards = view
            .members
            .iter()
            .filter(|m| m.role == Role::Shard)
            .map(|m| m.id)
            .collect();
        Routes {
            view_version: view.version,
            tablets,
            ends,
            parts,
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
        let at = self.ends.partition_point(|&end| end < slot.0 % SLOTS);
        let index = self.parts.get(at).copied().flatten()?;
        self.tablets.get(index as usize)
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
