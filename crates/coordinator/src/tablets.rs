//! The tablet map: which log owns which slots, and how slots change hands.
//!
//! T1. Before the first deal there are no tablets; ever after they cover every slot just once.
//! T2. A slot changes its owner only by `deal` (no owner yet) or by `hand_over`, and each change
//!     raises the epoch of its tablet.
//! T3. Neighbours with one owner are one tablet, so that the map stays small over many recoveries.

use std::collections::BTreeMap;

use holdfast_format::{Epoch, LogId, SLOTS, ServerId, Slot, SlotRange};

use crate::journal::Journal;
use crate::records::Ownership;

/// The map, kept equal to its records.
#[derive(Debug, Default)]
pub(crate) struct Tablets {
    list: Vec<Ownership>,
}

impl Tablets {
    /// As recorded; `Recorded::load` has checked T1.
    pub(crate) fn new(list: Vec<Ownership>) -> Tablets {
        let tablets = Tablets { list };
        tablets.verify();
        tablets
    }

    /// True until slots have been dealt out.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ownership> {
        self.list.iter()
    }

    /// What `log` owns, in slot order.
    pub(crate) fn ranges_of(&self, log: LogId) -> Vec<SlotRange> {
        self.list
            .iter()
            .filter(|t| t.owner == log)
            .map(|t| t.range)
            .collect()
    }

    pub(crate) fn owns_any(&self, log: LogId) -> bool {
        self.list.iter().any(|tablet| tablet.owner == log)
    }

    /// Deals all slots out evenly, for the first time.
    pub(crate) fn deal(&mut self, owners: &[LogId], journal: &mut Journal) {
        assert!(
            self.list.is_empty() && !owners.is_empty(),
            "slots are dealt once, to somebody"
        );
        let n = owners.len().min(usize::from(SLOTS));
        let bound = |i: usize| (usize::from(SLOTS) * i / n) as u16;
        let dealt = (0..n).map(|i| Ownership {
            range: SlotRange {
                first: Slot(bound(i)),
                last: Slot(bound(i + 1) - 1),
            },
            owner: owners[i],
            epoch: Epoch(1),
        });
        self.replace(dealt.collect(), journal);
    }

    /// Makes `to` the owner of `ranges`, which `from` owns.
    pub(crate) fn hand_over(
        &mut self,
        from: LogId,
        to: LogId,
        ranges: &[SlotRange],
        journal: &mut Journal,
    ) {
        let mut pieces = Vec::with_capacity(self.list.len() + ranges.len());
        let mut moved = 0;
        for tablet in &self.list {
            let mut first = u32::from(tablet.range.first.0);
            let last = u32::from(tablet.range.last.0);
            let mut inside: Vec<SlotRange> = ranges
                .iter()
                .filter_map(|range| range.common(tablet.range))
                .collect();
            if tablet.owner != from {
                inside.clear();
            }
            inside.sort_unstable();
            for part in inside {
                if first < u32::from(part.first.0) {
                    let range = slots(first, u32::from(part.first.0) - 1);
                    pieces.push(Ownership { range, ..*tablet });
                }
                let epoch = Epoch(tablet.epoch.0 + 1);
                pieces.push(Ownership {
                    range: part,
                    owner: to,
                    epoch,
                });
                moved += part.slots();
                first = u32::from(part.last.0) + 1;
            }
            if first <= last {
                pieces.push(Ownership {
                    range: slots(first, last),
                    ..*tablet
                });
            }
        }
        let asked: u32 = ranges.iter().map(SlotRange::slots).sum();
        assert_eq!(moved, asked, "{from} owns all that it hands over");
        self.replace(pieces, journal);
    }

    fn replace(&mut self, pieces: Vec<Ownership>, journal: &mut Journal) {
        let mut merged: Vec<Ownership> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match merged.last_mut() {
                Some(before) if before.owner == piece.owner => {
                    before.range.last = piece.range.last;
                    before.epoch = before.epoch.max(piece.epoch);
                }
                _ => merged.push(piece),
            }
        }
        let key = |tablet: &Ownership| (tablet.range.first, *tablet);
        let before: BTreeMap<Slot, Ownership> = self.list.iter().map(key).collect();
        let after: BTreeMap<Slot, Ownership> = merged.iter().map(key).collect();
        for (first, tablet) in &before {
            if !after.contains_key(first) {
                journal.remove_tablet(tablet.range);
            }
        }
        for (first, tablet) in &after {
            if before.get(first) != Some(tablet) {
                journal.put_tablet(tablet);
            }
        }
        self.list = merged;
        self.verify();
    }

    /// T1.
    fn verify(&self) {
        let mut next = 0;
        for tablet in &self.list {
            assert_eq!(
                tablet.range.first.0, next,
                "tablets cover every slot just once"
            );
            next = tablet.range.last.0 + 1;
        }
        assert!(
            next == 0 || next == SLOTS,
            "tablets cover every slot just once"
        );
    }
}

fn slots(first: u32, last: u32) -> SlotRange {
    SlotRange {
        first: Slot(first as u16),
        last: Slot(last as u16),
    }
}

/// The slots that are in both.
pub(crate) fn common(a: &[SlotRange], b: &[SlotRange]) -> Vec<SlotRange> {
    a.iter()
        .flat_map(|a| b.iter().filter_map(|b| a.common(*b)))
        .collect()
}

/// Splits `ranges` over shards in proportion to their weights (free bytes), in slot order. Every
/// slot goes to somebody; a shard whose share rounds to nothing gets nothing. Without any weight
/// the shares are even.
pub(crate) fn divide(
    ranges: &[SlotRange],
    shards: &[(ServerId, u64)],
) -> Vec<(ServerId, Vec<SlotRange>)> {
    assert!(!shards.is_empty(), "somebody must get the slots");
    let total: u64 = ranges.iter().map(|range| u64::from(range.slots())).sum();
    let weightless = shards.iter().all(|(_, weight)| *weight == 0);
    let weight = |i: usize| {
        if weightless {
            1
        } else {
            u128::from(shards[i].1)
        }
    };
    let sum: u128 = (0..shards.len()).map(weight).sum();
    let mut parts: Vec<(ServerId, Vec<SlotRange>)> = Vec::new();
    let mut walk = ranges.iter().copied();
    let mut range = walk.next();
    let (mut given, mut share) = (0u64, 0u128);
    for (i, (shard, _)) in shards.iter().enumerate() {
        share += weight(i);
        let bound = (u128::from(total) * share / sum) as u64;
        let mut part = Vec::new();
        while given < bound {
            let current = range.expect("the last bound is the number of slots");
            let take = u64::from(current.slots()).min(bound - given);
            let last = u32::from(current.first.0) + take as u32 - 1;
            part.push(slots(u32::from(current.first.0), last));
            given += take;
            range = match last < u32::from(current.last.0) {
                true => Some(slots(last + 1, u32::from(current.last.0))),
                false => walk.next(),
            };
        }
        if !part.is_empty() {
            parts.push((*shard, part));
        }
    }
    assert_eq!(given, total, "every slot goes to somebody");
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cluster::Dice;
    use holdfast_format::without;

    fn r(first: u16, last: u16) -> SlotRange {
        SlotRange {
            first: Slot(first),
            last: Slot(last),
        }
    }

    fn owners(tablets: &Tablets) -> Vec<(u16, u16, u64, u64)> {
        (tablets.iter())
            .map(|t| (t.range.first.0, t.range.last.0, t.owner.0, t.epoch.0))
            .collect()
    }

    #[test]
    fn slots_are_dealt_evenly() {
        let mut tablets = Tablets::default();
        tablets.deal(&[LogId(1), LogId(2), LogId(3)], &mut Journal::default());
        assert_eq!(
            owners(&tablets),
            [(0, 5460, 1, 1), (5461, 10921, 2, 1), (10922, 16383, 3, 1)]
        );
    }

    /// T2 and T3.
    #[test]
    fn a_change_of_owner_raises_the_epoch_and_merges_neighbours() {
        let mut journal = Journal::default();
        let mut tablets = Tablets::default();
        tablets.deal(&[LogId(1), LogId(2)], &mut journal);
        tablets.hand_over(
            LogId(2),
            LogId(1),
            &[r(8192, 9000), r(16000, 16383)],
            &mut journal,
        );
        assert_eq!(
            owners(&tablets),
            [(0, 9000, 1, 2), (9001, 15999, 2, 1), (16000, 16383, 1, 2)]
        );
        tablets.hand_over(LogId(2), LogId(1), &[r(9001, 15999)], &mut journal);
        assert_eq!(owners(&tablets), [(0, 16383, 1, 2)]);
    }

    #[test]
    #[should_panic(expected = "owns all that it hands over")]
    fn nobody_hands_over_what_he_does_not_own() {
        let mut tablets = Tablets::default();
        tablets.deal(&[LogId(1), LogId(2)], &mut Journal::default());
        tablets.hand_over(
            LogId(2),
            LogId(1),
            &[r(8191, 8192)],
            &mut Journal::default(),
        );
    }

    #[test]
    fn division_follows_free_memory() {
        let shards = [(ServerId(1), 3), (ServerId(2), 0), (ServerId(3), 1)];
        assert_eq!(
            divide(&[r(0, 49), r(100, 149)], &shards),
            [
                (ServerId(1), vec![r(0, 49), r(100, 124)]),
                (ServerId(3), vec![r(125, 149)])
            ]
        );
        let even = [(ServerId(1), 0), (ServerId(2), 0)];
        assert_eq!(divide(&[r(0, 9)], &even).len(), 2);
        assert_eq!(divide(&[r(7, 7)], &even), [(ServerId(2), vec![r(7, 7)])]);
    }

    /// Against a plain array of owners: nothing lost, nothing given twice.
    #[test]
    fn random_divisions_and_hand_overs_keep_every_slot() {
        for seed in 1..60 {
            let mut dice = Dice::new(seed);
            let mut journal = Journal::default();
            let mut tablets = Tablets::default();
            let logs: Vec<LogId> = (1..=1 + dice.below(6)).map(LogId).collect();
            tablets.deal(&logs, &mut journal);
            let model = |tablets: &Tablets| {
                let mut slots = vec![LogId(0); usize::from(SLOTS)];
                for t in tablets.iter() {
                    slots[usize::from(t.range.first.0)..=usize::from(t.range.last.0)].fill(t.owner);
                }
                slots
            };
            let mut expected = model(&tablets);
            for round in 0..20 {
                let from = tablets.list[dice.below(tablets.list.len() as u64) as usize].owner;
                let shards: Vec<(ServerId, u64)> = (0..1 + dice.below(4))
                    .map(|i| (ServerId(100 * (round + 1) + i), dice.below(1 << 40)))
                    .collect();
                let parts = divide(&tablets.ranges_of(from), &shards);
                let mut left = tablets.ranges_of(from);
                for (shard, ranges) in &parts {
                    left = without(&left, ranges);
                    for range in ranges {
                        expected[usize::from(range.first.0)..=usize::from(range.last.0)]
                            .fill(LogId::of(*shard));
                    }
                    tablets.hand_over(from, LogId::of(*shard), ranges, &mut journal);
                }
                assert!(left.is_empty(), "seed {seed}");
                assert_eq!(model(&tablets), expected, "seed {seed}");
            }
        }
    }
}
