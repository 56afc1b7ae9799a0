//! Object sizes that change under a store: workloads W1 to W8 of Rumble et al., "Log-structured Memory for
//! DRAM-based Storage" (FAST 2014).
//!
//! Three phases, with live value bytes never above a fixed amount: objects of the first size are written (and random ones
//! deleted to make room), a share of all is deleted at random, objects of the second size are written, and displace
//! what is left of the first. An allocator that cannot move objects is left with holes of the wrong size.

use crate::engine::{self, Engine};
use crate::keys::Random;
use holdfast_format::{Expiry, HEADER_BYTES};
use serde::Serialize;

/// Sizes of values, uniform between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes(pub usize, pub usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    pub name: &'static str,
    pub before: Sizes,
    pub deleted_percent: u32,
    pub after: Option<Sizes>,
}

const fn workload(
    name: &'static str,
    before: Sizes,
    deleted_percent: u32,
    after: Option<Sizes>,
) -> Workload {
    Workload {
        name,
        before,
        deleted_percent,
        after,
    }
}

pub const WORKLOADS: [Workload; 8] = [
    workload("W1", Sizes(100, 100), 0, None),
    workload("W2", Sizes(100, 100), 0, Some(Sizes(130, 130))),
    workload("W3", Sizes(100, 100), 90, Some(Sizes(130, 130))),
    workload("W4", Sizes(100, 150), 0, Some(Sizes(200, 250))),
    workload("W5", Sizes(100, 150), 90, Some(Sizes(200, 250))),
    workload("W6", Sizes(100, 200), 50, Some(Sizes(1000, 2000))),
    workload("W7", Sizes(1000, 2000), 90, Some(Sizes(1500, 2500))),
    workload("W8", Sizes(50, 150), 90, Some(Sizes(5000, 15000))),
];

/// Longest value of any workload.
pub const VALUE_BYTES_MAX: usize = 15_000;
pub const KEY_BYTES: usize = 16;

/// What a workload is run against. False ends the run.
pub trait Store {
    fn set(&mut self, key: &[u8; KEY_BYTES], value_bytes: usize) -> bool;
    fn delete(&mut self, key: &[u8; KEY_BYTES]) -> bool;
}

/// How much a run had alive at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Peak {
    pub value_bytes: u64,
    /// Of Holdfast's entries: values, keys and headers. Not at the same moment.
    pub entry_bytes: u64,
    pub objects: u64,
}

struct Run<'a, S> {
    store: &'a mut S,
    live_bytes_max: u64,
    live: Vec<(u64, u32)>,
    live_bytes: u64,
    next: u64,
    random: Random,
    peak: Peak,
}

/// Runs a workload; every writing phase writes `turns` times the live bytes. `None`: the store ended it.
pub fn run<S: Store>(
    workload: &Workload,
    live_bytes_max: u64,
    turns: f64,
    store: &mut S,
) -> Option<Peak> {
    let mut run = Run {
        store,
        live_bytes_max,
        live: Vec::new(),
        live_bytes: 0,
        next: 0,
        random: Random::new(14),
        peak: Peak::default(),
    };
    let phase_bytes = (live_bytes_max as f64 * turns) as u64;
    run.write(workload.before, phase_bytes)?;
    let deleted = run.live.len() as u64 * u64::from(workload.deleted_percent) / 100;
    for _ in 0..deleted {
        run.delete_one()?;
    }
    if let Some(after) = workload.after {
        run.write(after, phase_bytes)?;
    }
    Some(run.peak)
}

impl<S: Store> Run<'_, S> {
    fn write(&mut self, sizes: Sizes, bytes: u64) -> Option<()> {
        let mut written = 0;
        while written < bytes {
            let size = self.random.between(sizes.0, sizes.1);
            while self.live_bytes + size as u64 > self.live_bytes_max {
                self.delete_one()?;
            }
            if !self.store.set(&key(self.next), size) {
                return None;
            }
            self.live.push((self.next, size as u32));
            self.next += 1;
            self.live_bytes += size as u64;
            written += size as u64;
            let headers = self.live.len() as u64 * (KEY_BYTES + HEADER_BYTES) as u64;
            let peak = &mut self.peak;
            peak.value_bytes = peak.value_bytes.max(self.live_bytes);
            peak.entry_bytes = peak.entry_bytes.max(self.live_bytes + headers);
            peak.objects = peak.objects.max(self.live.len() as u64);
        }
        Some(())
    }

    fn delete_one(&mut self) -> Option<()> {
        let at = self.random.roll() as usize % self.live.len();
        let (number, size) = self.live.swap_remove(at);
        self.live_bytes -= u64::from(size);
        self.store.delete(&key(number)).then_some(())
    }
}

fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"obj:000000000000";
    let mut rest = number;
    for byte in key[4..].iter_mut().rev() {
        *byte = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
    key
}

/// What a log needed for a workload.
#[derive(Debug, Clone, Serialize)]
pub struct EngineRow {
    pub workload: &'static str,
    /// The smallest memory bound, to a segment or a percent, at which no write was refused.
    pub bound_bytes: u64,
    /// The most that segments took.
    pub peak_segment_bytes: u64,
    pub peak: Peak,
    /// Peak segment memory ÷ the most bytes of live entries.
    pub segments_to_entries: f64,
    /// (Appended + copied) ÷ appended at that bound.
    pub write_cost: f64,
    pub bounds_tried: u32,
}

/// Finds the smallest bound at which a log gets through the workload, by bisection to whole segments or a percent,
/// whichever is more. A write that is refused once has failed, whether or not cleaning would have made room for it a
/// moment later.
pub fn smallest_bound(
    workload: &Workload,
    live_bytes_max: u64,
    turns: f64,
    config: &holdfast_log::Config,
) -> EngineRow {
    let segment_bytes = u64::from(config.segment_bytes);
    let needed =
        run(workload, live_bytes_max, turns, &mut Nothing).expect("nothing refuses nothing");
    let mut bounds_tried = 0;
    let mut at = |segments: u64| {
        bounds_tried += 1;
        let config = holdfast_log::Config {
            memory_bytes: segments * segment_bytes,
            ..config.clone()
        };
        config.validate().ok()?;
        let mut store = EngineStore {
            engine: Engine::new(config),
            value: vec![b'v'; VALUE_BYTES_MAX],
            stamp: 0,
        };
        let completed = run(workload, live_bytes_max, turns, &mut store).is_some();
        let totals = store.engine.totals;
        let segments_to_entries = totals.peak_segment_bytes as f64 / needed.entry_bytes as f64;
        let memory = store.engine.memory();
        let mb = |bytes: u64| bytes / 1_000_000;
        let words = match completed {
            true => "are enough".to_string(),
            false => format!(
                "are too little: {} live, {} reclaimable, {} reserved, {} index, {} of {} segments",
                mb(memory.live_bytes),
                mb(memory.reclaimable_bytes),
                mb(memory.reserved_bytes),
                mb(memory.index_bytes),
                memory.replica_segments,
                memory.replica_segments_max
            ),
        };
        eprintln!(
            "{}: {} MB {words}; segments / entries {segments_to_entries:.3}",
            workload.name,
            mb(segments * segment_bytes),
        );
        completed.then(|| (totals, store.engine.copied_bytes()))
    };
    let percent = (needed.entry_bytes / segment_bytes / 100).max(1);
    // What lives and its index must fit in any case. A tenth more mostly does, so that is tried first: at gigabytes
    // every try takes long.
    let mut low = (needed.entry_bytes + needed.objects * INDEX_BYTES) / segment_bytes;
    let mut high = low + (10 * percent).max(8);
    let mut best = loop {
        if let Some(best) = at(high) {
            break best;
        }
        (low, high) = (high, high + (5 * percent).max(8));
    };
    while high - low > percent {
        let middle = low.midpoint(high);
        match at(middle) {
            Some(better) => (best, high) = (better, middle),
            None => low = middle,
        }
    }
    let (totals, copied_bytes) = best;
    let appended = totals.appended_bytes as f64;
    EngineRow {
        workload: workload.name,
        bound_bytes: high * segment_bytes,
        peak_segment_bytes: totals.peak_segment_bytes,
        peak: needed,
        segments_to_entries: totals.peak_segment_bytes as f64 / needed.entry_bytes as f64,
        write_cost: (appended + copied_bytes as f64) / appended,
        bounds_tried,
    }
}

/// The least that the index takes for a session.
const INDEX_BYTES: u64 = 10;

/// The configuration of a shard; the bound is found.
pub fn engine_config() -> holdfast_log::Config {
    engine::config(0)
}

struct Nothing;

impl Store for Nothing {
    fn set(&mut self, _: &[u8; KEY_BYTES], _: usize) -> bool {
        true
    }

    fn delete(&mut self, _: &[u8; KEY_BYTES]) -> bool {
        true
    }
}

struct EngineStore {
    engine: Engine,
    value: Vec<u8>,
    stamp: u64,
}

impl Store for EngineStore {
    fn set(&mut self, key: &[u8; KEY_BYTES], value_bytes: usize) -> bool {
        self.stamp += 1;
        self.value[..8].copy_from_slice(&self.stamp.to_le_bytes());
        let value = &self.value[..value_bytes];
        let stored = self.engine.put_once(key, value, Expiry::default());
        stored.is_ok()
    }

    fn delete(&mut self, key: &[u8; KEY_BYTES]) -> bool {
        let deleted = self.engine.delete(key);
        assert!(deleted != Ok(false), "a live object was lost");
        deleted.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Checks what a workload does to a store against what it says.
    #[derive(Default)]
    struct Checked {
        objects: BTreeMap<[u8; KEY_BYTES], usize>,
        bytes: u64,
        peak: u64,
    }

    impl Store for Checked {
        fn set(&mut self, key: &[u8; KEY_BYTES], value_bytes: usize) -> bool {
            self.bytes += value_bytes as u64;
            self.peak = self.peak.max(self.bytes);
            assert!(self.objects.insert(*key, value_bytes).is_none());
            true
        }

        fn delete(&mut self, key: &[u8; KEY_BYTES]) -> bool {
            self.bytes -= self
                .objects
                .remove(key)
                .expect("only live ones are deleted") as u64;
            true
        }
    }

    #[test]
    fn live_bytes_reach_their_limit_and_sizes_change() {
        for workload in WORKLOADS {
            let mut store = Checked::default();
            let peak = run(&workload, 1_000_000, 1.5, &mut store).expect("it never refuses");
            assert_eq!(peak.value_bytes, store.peak);
            assert!((900_000..=1_000_000).contains(&store.bytes), "{workload:?}");
            let of = workload.after.unwrap_or(workload.before);
            let new = store
                .objects
                .values()
                .filter(|&&it| (of.0..=of.1).contains(&it));
            let share = new.sum::<usize>() as u64 * 100 / store.bytes;
            assert!(share >= 50, "{workload:?}: {share} % have the second size");
        }
    }

    #[test]
    fn a_log_gets_through_little_workloads() {
        let config = holdfast_log::Config::for_testing();
        for workload in [WORKLOADS[2], WORKLOADS[7]] {
            let row = smallest_bound(&workload, 6 << 20, 1.0, &config);
            assert!(row.segments_to_entries >= 0.9, "{row:?}");
            assert!(row.bound_bytes >= row.peak_segment_bytes, "{row:?}");
            assert!(row.bound_bytes < 3 * row.peak.entry_bytes, "{row:?}");
        }
    }
}
