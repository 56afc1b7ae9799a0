//! Overwriting at a given utilisation: throughput, the latency of single appends, and what cleaning costs.
//!
//! Utilisation is what nothing could free (bytes of live entries, and the index) ÷ the memory bound. It is filled
//! until it reaches that, overwritten for a while so that the cleaner is in its steady state, and only then measured,
//! twice: by CPU time alone, and once more with a clock read after every append.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use holdfast_format::Expiry;
use serde::Serialize;

use crate::engine::{BATCH, Engine, Totals, thread_cpu};
use crate::keys::{self, Choice, Key, Random, Zipf};

#[derive(Debug, Clone)]
pub struct Settings {
    pub config: holdfast_log::Config,
    pub value_bytes: usize,
    /// Live bytes and index ÷ memory bound.
    pub utilisation: f64,
    /// Theta; `None`: all sessions alike.
    pub zipf: Option<f64>,
    /// Memory bounds' worth of overwriting before anything is measured, and for each of the two measurements.
    pub warm: f64,
    pub turns: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub value_bytes: usize,
    pub choice: String,
    pub utilisation_percent: f64,
    pub two_level: bool,
    /// Everything below is absent if so much did not fit.
    #[serde(flatten)]
    pub measured: Option<Measured>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub sessions: u64,
    pub overwrites: u64,
    /// Per second of this thread's CPU time, cleaning included.
    pub overwrites_per_second: f64,
    pub cpu_ns_per_overwrite: f64,
    /// Of that, cleaning.
    pub cleaning_ns_per_overwrite: f64,
    /// Entries that compaction and combined cleaning copied, per overwrite; and what one of them cost, choosing
    /// and reading the dead ones included.
    pub relocated_per_overwrite: f64,
    pub ns_per_relocated: Option<f64>,
    /// (Appended + copied) ÷ appended, in memory.
    pub write_cost: f64,
    /// Bytes of survivors ÷ bytes appended: what cleaning adds to the traffic to each backup.
    pub replication_overhead: f64,
    /// Puts that found no memory until the cleaner had been called more.
    pub refused: u64,
    /// Wall time between the ends of two appends, cleaning and everything included.
    pub append_us: Latency,
    /// The same by this thread's CPU time: without what else ran on the machine.
    pub append_cpu_us: Latency,
    pub longest_slice_us: f64,
    pub longest_slice_cpu_us: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    fn of(ns: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1e3;
        Latency {
            p50: us(ns.value_at_quantile(0.5)),
            p99: us(ns.value_at_quantile(0.99)),
            p999: us(ns.value_at_quantile(0.999)),
            max: us(ns.max()),
        }
    }
}

/// Keys made before they are timed.
const CHUNK: usize = 4096;

/// Fills, warms up, measures.
pub fn measure(settings: &Settings) -> Row {
    let two_level = settings.config.cleaner.two_level;
    let row = |measured| Row {
        value_bytes: settings.value_bytes,
        choice: match settings.zipf {
            None => "uniform".to_string(),
            Some(theta) => format!("Zipf {theta}"),
        },
        utilisation_percent: settings.utilisation * 100.0,
        two_level,
        measured,
    };
    let mut load = Load::new(settings);
    if !load.fill() || !load.overwrite(settings.warm, |_, _| ()) {
        return row(None);
    }

    let before = load.engine.totals;
    let (cleaned, overwrites) = (load.copied(), load.overwrites);
    load.engine.totals.longest_slice = Duration::ZERO;
    let (mut cpu, mut wall) = (Duration::ZERO, Duration::ZERO);
    let fits = load.overwrite(settings.turns, |took_cpu, took_wall| {
        cpu += took_cpu;
        wall += took_wall;
    });
    if !fits {
        return row(None);
    }
    let after = load.engine.totals;
    let copied = load.copied() - cleaned;
    let overwrites = load.overwrites - overwrites;

    let Some((append, append_cpu)) = load.overwrite_timed(settings.turns) else {
        return row(None);
    };
    let appended = after.appended_bytes - before.appended_bytes;
    let survivors = after.shipped_survivor_bytes - before.shipped_survivor_bytes;
    let relocated = copied as f64 / load.entry_bytes();
    // Slices are timed by wall clock, which is cheap to read; what else ran on this core meanwhile is taken out
    // in the proportion in which it delayed everything.
    let slices = (after.slice_time - before.slice_time).as_secs_f64();
    let cleaning = slices * cpu.as_secs_f64() / wall.as_secs_f64();
    let totals = load.engine.totals;
    row(Some(Measured {
        sessions: load.sessions,
        overwrites,
        overwrites_per_second: overwrites as f64 / cpu.as_secs_f64(),
        cpu_ns_per_overwrite: cpu.as_secs_f64() * 1e9 / overwrites as f64,
        cleaning_ns_per_overwrite: cleaning * 1e9 / overwrites as f64,
        relocated_per_overwrite: relocated / overwrites as f64,
        ns_per_relocated: (relocated >= 1.0).then(|| cleaning * 1e9 / relocated),
        write_cost: (appended + copied) as f64 / appended as f64,
        replication_overhead: survivors as f64 / appended as f64,
        refused: totals.refused - before.refused,
        append_us: Latency::of(&append),
        append_cpu_us: Latency::of(&append_cpu),
        longest_slice_us: totals.longest_slice.as_secs_f64() * 1e6,
        longest_slice_cpu_us: totals.longest_slice_cpu.as_secs_f64() * 1e6,
    }))
}

struct Load {
    engine: Engine,
    utilisation: f64,
    sessions: u64,
    choice: Choice,
    zipf: Option<f64>,
    random: Random,
    value: Vec<u8>,
    stamp: u64,
    overwrites: u64,
    keys: Vec<Key>,
}

impl Load {
    fn new(settings: &Settings) -> Load {
        Load {
            engine: Engine::new(settings.config.clone()),
            utilisation: settings.utilisation,
            sessions: 0,
            choice: Choice::Uniform { sessions: 1 },
            zipf: settings.zipf,
            random: Random::new(7),
            value: vec![b'v'; settings.value_bytes],
            stamp: 0,
            overwrites: 0,
            keys: Vec::with_capacity(CHUNK),
        }
    }

    fn entry_bytes(&self) -> f64 {
        (holdfast_format::HEADER_BYTES + keys::KEY_BYTES + self.value.len()) as f64
    }

    fn copied(&self) -> u64 {
        self.engine.copied_bytes()
    }

    /// Adds sessions until the utilisation is reached. False: they did not fit.
    fn fill(&mut self) -> bool {
        loop {
            let memory = self.engine.memory();
            let kept = memory.live_bytes + memory.index_bytes;
            if kept as f64 >= memory.limit_bytes as f64 * self.utilisation {
                break;
            }
            for _ in 0..256 {
                if !self.put(&keys::session(self.sessions)) {
                    return false;
                }
                self.sessions += 1;
            }
        }
        self.choice = match self.zipf {
            None => Choice::Uniform {
                sessions: self.sessions,
            },
            Some(theta) => Choice::Zipf(Zipf::new(self.sessions, theta)),
        };
        true
    }

    /// Overwrites until so many memory bounds' worth has been appended; tells the CPU and wall time of every
    /// chunk. False: a put was refused for good.
    fn overwrite(&mut self, turns: f64, mut took: impl FnMut(Duration, Duration)) -> bool {
        let end = self.end(turns);
        while self.engine.totals.appended_bytes < end {
            let keys = self.choose();
            let (cpu, wall) = (thread_cpu(), Instant::now());
            for batch in keys.chunks(BATCH) {
                self.engine.prefetch(batch);
                for key in batch {
                    if !self.put(key) {
                        return false;
                    }
                }
            }
            took(thread_cpu() - cpu, wall.elapsed());
            self.overwrites += keys.len() as u64;
            self.keys = keys;
        }
        true
    }

    /// The same with the time of every append, in nanoseconds: by wall clock and by CPU time.
    fn overwrite_timed(&mut self, turns: f64) -> Option<(Histogram<u64>, Histogram<u64>)> {
        let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
        let (mut append, mut append_cpu) = (new(), new());
        let end = self.end(turns);
        self.engine.time_slices_on_cpu = true;
        while self.engine.totals.appended_bytes < end {
            let keys = self.choose();
            let (mut cpu, mut wall) = (thread_cpu(), Instant::now());
            for batch in keys.chunks(BATCH) {
                self.engine.prefetch(batch);
                for key in batch {
                    if !self.put(key) {
                        return None;
                    }
                    let (cpu_end, wall_end) = (thread_cpu(), Instant::now());
                    append.saturating_record((wall_end - wall).as_nanos() as u64);
                    append_cpu.saturating_record((cpu_end - cpu).as_nanos() as u64);
                    (cpu, wall) = (cpu_end, wall_end);
                }
            }
            self.overwrites += keys.len() as u64;
            self.keys = keys;
        }
        Some((append, append_cpu))
    }

    fn end(&self, turns: f64) -> u64 {
        let Totals { appended_bytes, .. } = self.engine.totals;
        appended_bytes + (turns * self.engine.log().config().memory_bytes as f64) as u64
    }

    /// Keys of the next chunk of overwrites, in the chunk before's memory.
    fn choose(&mut self) -> Vec<Key> {
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        for _ in 0..CHUNK {
            keys.push(keys::session(self.choice.next(&mut self.random)));
        }
        keys
    }

    /// A value that was never there: storing an equal one would only be a touch.
    fn put(&mut self, key: &Key) -> bool {
        self.stamp += 1;
        self.value[..8].copy_from_slice(&self.stamp.to_le_bytes());
        self.engine.put(key, &self.value, Expiry::default()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Little memory, and small segments but of 64 seglets each: of each segment garbage of less than a seglet cannot
    /// be had, which of a real log's 128 is little. Nothing here looks at a time.
    fn tiny(utilisation: f64, zipf: Option<f64>) -> Row {
        measure(&Settings {
            config: holdfast_log::Config {
                memory_bytes: 32 << 20,
                segment_bytes: 256 << 10,
                ..holdfast_log::Config::for_testing()
            },
            value_bytes: 100,
            utilisation,
            zipf,
            warm: 0.3,
            turns: 0.3,
        })
    }

    #[test]
    fn cleaning_costs_more_the_fuller_memory_is() {
        let costs: Vec<f64> = [0.4, 0.6, 0.75]
            .map(|utilisation| tiny(utilisation, None).measured.expect("it fits"))
            .into_iter()
            .map(|measured| {
                assert!(measured.overwrites > 10_000);
                measured.write_cost
            })
            .collect();
        assert!(costs.is_sorted(), "{costs:?}");
        assert!(costs[2] > 1.2, "{costs:?}");
    }

    #[test]
    fn what_does_not_fit_is_said_and_skew_is_cheaper() {
        assert!(tiny(1.2, None).measured.is_none());
        let cost = |zipf| tiny(0.8, zipf).measured.expect("it fits").write_cost;
        assert!(cost(Some(0.99)) < cost(None));
    }
}
