//! Who takes how much of a dead log: plain functions over plain data.
//!
//! P1. Shards get parts in proportion to their free memory, so that all have as much left in the end, relative to what
//!     they have now, as the others.
//! P2. None gets more than it can replay in the target time (`PART_BYTES_MAX`, `PART_ENTRIES_MAX`), and none more than
//!     fits into it, while the others can take the rest. Fit goes before time.
//! P3. If all together cannot, everything is given out all the same, in larger parts, at once. Several rounds would
//!     have every backup read the whole log in each of them.
//! P4. Slots are cut where the load is, as far as the dead shard had told: `SLOT_PARTS` figures, spread evenly inside
//!     each. A part may be off by one slot.
//! P5. No more shards take part than get `part_bytes_min` each: every one asks every backup for every segment, and with hundreds of
//!     them that is most of a backup's work (docs/scaling.md). Those who come first in the list do. More do if they
//!     cannot otherwise keep to P2.
//!
//! A shard that had told nothing is taken to be the same everywhere, and as large as the replicas that are to be read.

use holdfast_format::{SLOT_PARTS, SLOTS, ServerId, Slot, SlotRange};
use holdfast_wire::SlotLoad;

/// What one recovery master replays in about half a second: 2.3 M objects or 800 MB a second in RAMCloud, a good
/// deal more here, but the two cores of a master serve others meanwhile.
const PART_BYTES_MAX: u64 = 500_000_000;
const PART_ENTRIES_MAX: u64 = 2_000_000;

/// Of the limits above, so that a part that is cut at the next slot keeps to them; and of free memory, because the
/// figures are some seconds old.
const MARGIN_PERCENT: u128 = 95;
const FIT_PERCENT: u128 = 90;

/// Costs are counted in parts of what one master may get.
const WHOLE: u128 = 1 << 40;

/// A slot has so many parts of what is known of its part: figures are of all slots of a part together.
const SLOTS_PER_PART: u64 = SLOTS as u64 / SLOT_PARTS as u64;

/// What came since the dead shard last counted is not in the figures, perhaps all that it had just taken over from
/// another: every slot costs so much of the mean on top.
const UNKNOWN_PERCENT: u128 = 12;

/// One shard's part of a dead log, and what there is in it by all that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub master: ServerId,
    pub ranges: Vec<SlotRange>,
    pub load: Load,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub entries: u64,
    pub bytes: u64,
}

/// What a log has in its slots, as if it had all slots of each part: so that any of them can be planned later without
/// knowing which others it had. Nothing if its shard had told nothing.
pub(crate) fn dense(loads: &[SlotLoad], owned: &[SlotRange]) -> Vec<SlotLoad> {
    if loads.len() != SLOT_PARTS {
        return Vec::new();
    }
    let mut slots = [0u64; SLOT_PARTS];
    for slot in each(owned) {
        slots[slot.part()] += 1;
    }
    let all = u64::from(SLOTS) / SLOT_PARTS as u64;
    let dense = |count: u32, slots: u64| match slots {
        0 => 0,
        slots => u32::try_from(u64::from(count) * all / slots).unwrap_or(u32::MAX),
    };
    let of_part = |(load, slots): (&SlotLoad, &u64)| SlotLoad {
        entries: dense(load.entries, *slots),
        kib: dense(load.kib, *slots),
    };
    loads.iter().zip(&slots).map(of_part).collect()
}

/// Splits `ranges` over shards with so many free bytes, in slot order. Every slot goes to somebody; who would get
/// nothing is left out. `loads` as `dense` made them; `replica_bytes` of the whole log are to be read.
/// Shards that should be preferred come first.
pub(crate) fn spread(
    ranges: &[SlotRange],
    shards: &[(ServerId, u64)],
    loads: &[SlotLoad],
    replica_bytes: u64,
    part_bytes_min: u64,
) -> Vec<Part> {
    assert!(!shards.is_empty(), "somebody must get the slots");
    let count = each(ranges).count().max(1) as u64;
    let even = Load {
        entries: 0,
        bytes: replica_bytes * SLOTS_PER_PART / count,
    };
    let told = |load: &SlotLoad| Load {
        entries: u64::from(load.entries),
        bytes: u64::from(load.kib) << 10,
    };
    let of_part: Vec<Load> = match loads.is_empty() {
        true => vec![even; SLOT_PARTS],
        false => loads.iter().map(told).collect(),
    };
    let load = |slot: Slot| of_part[slot.part()];
    let mut costs: Vec<u128> = of_part.iter().map(|load| cost(*load)).collect();
    let known: u128 = each(ranges).map(|slot| costs[slot.part()]).sum();
    let unknown = known * UNKNOWN_PERCENT / 100 / u128::from(count);
    costs.iter_mut().for_each(|cost| *cost += unknown + 1);
    let cost = |slot: Slot| costs[slot.part()];
    let total: u128 = each(ranges).map(cost).sum();
    let bytes: u64 = each(ranges).map(|slot| load(slot).bytes).sum();
    let bytes = bytes / SLOTS_PER_PART;
    let shards = &shards[..enough(total, bytes, replica_bytes, shards, part_bytes_min)];
    let shares = shares(total, bytes, shards);

    let mut parts: Vec<Part> = Vec::new();
    let mut slots = each(ranges).peekable();
    let (mut given, mut bound) = (0, 0);
    for (i, (master, _)) in shards.iter().enumerate() {
        bound += shares[i];
        let is_last = i + 1 == shards.len();
        let mut part = Part {
            master: *master,
            ranges: Vec::new(),
            load: Load::default(),
        };
        while let Some(slot) = slots.next_if(|slot| is_last || given + cost(*slot) / 2 < bound) {
            given += cost(slot);
            part.load.entries += load(slot).entries;
            part.load.bytes += load(slot).bytes;
            match part.ranges.last_mut() {
                Some(range) if range.last.0 + 1 == slot.0 => range.last = slot,
                _ => part.ranges.push(SlotRange {
                    first: slot,
                    last: slot,
                }),
            }
        }
        part.load.entries /= SLOTS_PER_PART;
        part.load.bytes /= SLOTS_PER_PART;
        if !part.ranges.is_empty() {
            parts.push(part);
        }
    }
    assert!(slots.next().is_none(), "every slot goes to somebody");
    parts
}

fn each(ranges: &[SlotRange]) -> impl Iterator<Item = Slot> + '_ {
    (ranges.iter()).flat_map(|range| (range.first.0..=range.last.0).map(Slot))
}

/// Of a slot, whose load is counted `SLOTS_PER_PART` times.
fn cost(load: Load) -> u128 {
    let of = |count: u64, most: u64| u128::from(count) * WHOLE / u128::from(most * SLOTS_PER_PART);
    of(load.bytes, PART_BYTES_MAX).max(of(load.entries, PART_ENTRIES_MAX))
}

/// How many of the shards take part (P5). What was told may be old, so it is judged by what is to be read if that is more.
fn enough(
    total: u128,
    bytes: u64,
    replica_bytes: u64,
    shards: &[(ServerId, u64)],
    part_bytes_min: u64,
) -> usize {
    let part = |bytes: u64| WHOLE * u128::from(bytes) / u128::from(PART_BYTES_MAX);
    let worth = match part(part_bytes_min) {
        0 => shards.len(),
        least => usize::try_from(total.max(part(replica_bytes)) / least)
            .unwrap_or(usize::MAX)
            .clamp(1, shards.len()),
    };
    let in_time = |count: &usize| {
        let Limits { weights, both, .. } = Limits::of(total, bytes, &shards[..*count]);
        limited(total, &weights, &both).is_some()
    };
    let counts = std::iter::successors(Some(worth), |count| Some(count * 2));
    (counts.take_while(|count| *count < shards.len()))
        .find(in_time)
        .unwrap_or(shards.len())
}

/// What each shard can take of `total`.
struct Limits {
    /// By free memory.
    weights: Vec<u128>,
    /// What fits.
    fit: Vec<u128>,
    /// What fits and can be replayed in time.
    both: Vec<u128>,
}

impl Limits {
    fn of(total: u128, bytes: u64, shards: &[(ServerId, u64)]) -> Limits {
        let fits = |free: u64| match bytes {
            0 => total,
            bytes => total * u128::from(free) * FIT_PERCENT / 100 / u128::from(bytes),
        };
        let in_time = WHOLE * MARGIN_PERCENT / 100;
        let fit: Vec<u128> = shards.iter().map(|(_, free)| fits(*free)).collect();
        Limits {
            weights: shards.iter().map(|(_, free)| u128::from(*free)).collect(),
            both: fit.iter().map(|fit| (*fit).min(in_time)).collect(),
            fit,
        }
    }
}

/// How much of `total` each shard gets: P1 to P3.
fn shares(total: u128, bytes: u64, shards: &[(ServerId, u64)]) -> Vec<u128> {
    let Limits { weights, fit, both } = Limits::of(total, bytes, shards);
    (limited(total, &weights, &both))
        .or_else(|| limited(total, &weights, &fit))
        .or_else(|| limited(total, &weights, &vec![total; shards.len()]))
        .unwrap_or_else(|| vec![total.div_ceil(shards.len() as u128); shards.len()])
}

/// Splits `total` in proportion to weights, but gives nobody more than its limit; `None` if that cannot be.
fn limited(total: u128, weights: &[u128], limits: &[u128]) -> Option<Vec<u128>> {
    let mut shares: Vec<Option<u128>> = vec![None; weights.len()];
    loop {
        let given: u128 = shares.iter().flatten().sum();
        let left = total - given;
        let open = || (0..weights.len()).filter(|i| shares[*i].is_none());
        let sum: u128 = open().map(|i| weights[i]).sum();
        if left > 0 && sum == 0 {
            return None;
        }
        let share = |i: usize| (left * weights[i]).checked_div(sum).unwrap_or(0);
        let full: Vec<usize> = open().filter(|&i| share(i) > limits[i]).collect();
        if full.is_empty() {
            return Some(
                (0..weights.len())
                    .map(|i| shares[i].unwrap_or_else(|| share(i)))
                    .collect(),
            );
        }
        for i in full {
            shares[i] = Some(limits[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cluster::Dice;

    const GB: u64 = 1_000_000_000;

    fn range(first: u16, last: u16) -> SlotRange {
        SlotRange {
            first: Slot(first),
            last: Slot(last),
        }
    }

    fn shards(free: &[u64]) -> Vec<(ServerId, u64)> {
        let one = |(i, free): (usize, &u64)| (ServerId(i as u64 + 1), *free);
        free.iter().enumerate().map(one).collect()
    }

    /// The same in all parts.
    fn even(entries: u32, kib: u32) -> Vec<SlotLoad> {
        vec![SlotLoad { entries, kib }; SLOT_PARTS]
    }

    fn slots(part: &Part) -> u32 {
        part.ranges.iter().map(SlotRange::slots).sum()
    }

    #[test]
    fn without_figures_slots_are_shared_by_free_memory() {
        let parts = spread(&[SlotRange::ALL], &shards(&[3 * GB, GB]), &[], 0, 0);
        assert_eq!(parts.iter().map(slots).collect::<Vec<_>>(), [12288, 4096]);
        assert_eq!(parts[1].ranges, [range(12288, 16383)]);
        // Nobody says that it has memory: all get the same.
        let parts = spread(&[range(0, 9)], &shards(&[0, 0]), &[], 5 * GB, 0);
        assert_eq!(parts.iter().map(slots).collect::<Vec<_>>(), [5, 5]);
        // Fewer slots than shards.
        let parts = spread(&[range(7, 7)], &shards(&[GB, GB, GB]), &[], 0, 0);
        assert_eq!(parts.iter().map(slots).sum::<u32>(), 1);
    }

    /// P4: cut where the load is, not where the slots are.
    #[test]
    fn a_skewed_log_is_cut_where_its_load_is() {
        let mut loads = even(1_000, 1_000);
        loads[0] = SlotLoad {
            entries: 63_000,
            kib: 63_000,
        };
        let parts = spread(&[SlotRange::ALL], &shards(&[GB, GB]), &loads, 0, 0);
        let [first, second] = &parts[..] else {
            panic!("{parts:?}")
        };
        assert!(slots(first) < 2_500, "of 8192: {first:?}");
        let share = first.load.bytes as f64 / (first.load.bytes + second.load.bytes) as f64;
        assert!((0.45..0.55).contains(&share), "{share}");
    }

    /// P2: the target time goes before the balance of memory, and fit before both.
    #[test]
    fn nobody_gets_more_than_it_can_do_while_others_can() {
        // 1.3 GB for four: by free memory the first would get 0.87.
        let loads = even(10, 20_000);
        let free = [8 * GB, 2 * GB, GB, GB];
        let parts = spread(&[SlotRange::ALL], &shards(&free), &loads, 0, 0);
        assert!(
            parts.iter().all(|part| part.load.bytes <= PART_BYTES_MAX),
            "{parts:?}"
        );
        // By entries: 5.1 M.
        let parts = spread(&[SlotRange::ALL], &shards(&free), &even(80_000, 10), 0, 0);
        assert!(
            parts
                .iter()
                .all(|part| part.load.entries <= PART_ENTRIES_MAX),
            "{parts:?}"
        );
        // P3: four cannot take 2.6 GB in time, so all get more, by free memory.
        let parts = spread(&[SlotRange::ALL], &shards(&free), &even(10, 40_000), 0, 0);
        let most = parts.iter().map(|part| part.load.bytes).max().unwrap();
        assert_eq!(parts.len(), 4);
        assert!(most > 3 * PART_BYTES_MAX && most < 2 * GB, "{most}");
        // What does not fit into one goes to others, however long it takes.
        let free = [2 * GB, GB / 4, GB / 4];
        let parts = spread(&[SlotRange::ALL], &shards(&free), &even(10, 34_000), 0, 0);
        for (part, free) in parts.iter().zip(free) {
            assert!(part.load.bytes <= free, "{part:?}");
        }
    }

    /// P5: a small log is not worth everybody's asking; one that is too large for those it is worth goes to more.
    #[test]
    fn no_more_shards_take_part_than_it_is_worth() {
        let many = shards(&[GB; 100]);
        let masters = |loads: &[SlotLoad], shards: &[(ServerId, u64)], min: u64| {
            let parts = spread(&[SlotRange::ALL], shards, loads, 0, min);
            let most = parts.iter().map(|part| part.load.bytes).max().unwrap();
            (parts.len(), parts[0].master, most)
        };
        // 42 MB: one. 655 MB: as many as get 64 MB each.
        assert_eq!(masters(&even(10, 640), &many, 64_000_000).0, 1);
        let (count, first, most) = masters(&even(10, 10_000), &many, 64_000_000);
        assert!((9..=12).contains(&count), "{count}");
        assert_eq!(first, many[0].0, "the first of the list");
        assert!(most < 90_000_000, "{most}");
        // What was told is old: there are 330 MB of replicas.
        let loads = even(10, 640);
        let parts = spread(&[SlotRange::ALL], &many, &loads, 330_000_000, 64_000_000);
        assert_eq!(parts.len(), 5);
        // By entries, too: 2 M are as much as 500 MB.
        assert!((7..=10).contains(&masters(&even(31_250, 10), &many, 64_000_000).0));
        // The first three have no room: others are taken.
        let mut full = shards(&[GB / 1_000; 6]);
        full.iter_mut().skip(3).for_each(|it| it.1 = GB);
        let (count, _, most) = masters(&even(10, 3_000), &full, 64_000_000);
        assert!((4..=6).contains(&count), "{count}");
        assert!(most < GB, "{most}");
        // Everybody, if it is worth it, or nothing is asked for.
        assert_eq!(masters(&even(10, 200_000), &many, 64_000_000).0, 100);
        assert_eq!(masters(&even(10, 640), &many, 0).0, 100);
    }

    /// P2 and P4 over logs, skews and survivors of all kinds.
    #[test]
    fn every_plan_keeps_to_what_can_be_kept() {
        let mut dice = Dice::new(7);
        let mut capped = 0;
        for _ in 0..300 {
            let survivors = 1 + dice.below(12) as usize;
            let free: Vec<u64> = (0..survivors).map(|_| dice.below(4 * GB)).collect();
            let most = 1 + dice.below(60_000);
            let loads: Vec<SlotLoad> = (0..SLOT_PARTS)
                .map(|_| SlotLoad {
                    entries: dice.below(most) as u32,
                    kib: dice.below(most) as u32,
                })
                .collect();
            let first = dice.below(8_000) as u16;
            let ranges = [range(first, first + 3_000), range(first + 4_000, 16_383)];
            let parts = spread(&ranges, &shards(&free), &loads, 0, 0);
            let given: Vec<Slot> = parts.iter().flat_map(|part| each(&part.ranges)).collect();
            assert!(
                given.into_iter().eq(each(&ranges)),
                "each slot once, in order"
            );
            let bytes: u64 = parts.iter().map(|part| part.load.bytes).sum();
            let entries: u64 = parts.iter().map(|part| part.load.entries).sum();
            // Surely enough for all: everybody has room for its part and one for the unknown.
            let enough = free.iter().all(|free| *free > GB)
                && bytes.max(entries * 250) < survivors as u64 * PART_BYTES_MAX / 3;
            if enough {
                capped += 1;
                for part in &parts {
                    assert!(part.load.bytes <= PART_BYTES_MAX, "{part:?}");
                    assert!(part.load.entries <= PART_ENTRIES_MAX, "{part:?}");
                }
            }
        }
        assert!(capped > 20, "{capped} plans with shards enough");
    }

    #[test]
    fn figures_of_owned_slots_are_made_those_of_whole_parts() {
        let loads = even(64, 640);
        // A quarter of part 0, none of part 1, all of part 2.
        let owned = [range(0, 63), range(512, 767)];
        let dense = dense(&loads, &owned);
        let of = |part: usize| (dense[part].entries, dense[part].kib);
        assert_eq!([of(0), of(1), of(2)], [(256, 2560), (0, 0), (64, 640)]);
        assert!(super::dense(&loads[..3], &owned).is_empty());
        // So a plan for these slots finds what is in them, whichever have been taken over before.
        let parts = spread(&[range(32, 63)], &shards(&[GB]), &dense, 0, 0);
        assert_eq!(
            (parts[0].load.entries, parts[0].load.bytes),
            (32, 320 << 10)
        );
    }
}
