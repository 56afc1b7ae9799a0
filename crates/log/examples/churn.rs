//! Overwrites at a fixed utilisation, engine alone: what a put costs, what the cleaner costs, and how long the longest
//! append takes. `cargo run --release -p holdfast-log --example churn -- MEMORY_MB VALUE_BYTES UTILISATION% SECONDS [combined] [zipf]`

#![allow(clippy::disallowed_methods, reason = "a measurement asks for the time")]

use std::time::Instant;

use holdfast_format::{ClusterMs, Expiry, KeyHash, LogId, Namespace};
use holdfast_log::{AppendError, CleanerOptions, Config, Log};

const NS: Namespace = Namespace(0);
/// Keys that are asked for ahead, as a pipeline of a client is.
const BATCH: usize = 16;

fn key(n: u64) -> [u8; 16] {
    let mut key = *b"sess:00000000000";
    key[5..13].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    key
}

/// Nanoseconds that this thread has been on a processor.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .expect("a number")
}

fn settle(log: &mut Log) {
    loop {
        let change = log.change();
        let goals: Vec<_> = log.goals().collect();
        for goal in goals {
            log.set_durable(goal.id, goal.length, goal.closed);
        }
        log.take_freed();
        if log.change() == change {
            return;
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| {
        args.get(at)
            .map_or(default, |it| it.parse().expect("a number"))
    };
    let (memory, value_bytes) = (number(0, 2048) << 20, number(1, 100) as usize);
    let (percent, seconds) = (number(2, 80), number(3, 5));
    let two_level = !args.iter().any(|it| it == "combined");
    let zipf = args.iter().any(|it| it == "zipf");
    let config = Config {
        memory_bytes: memory,
        outside_bytes: 0,
        segment_bytes: 8 << 20,
        seglet_bytes: 64 << 10,
        key_bytes_max: 65_535,
        value_bytes_max: 1 << 20,
        expiry_slack_ms: 1_000,
        replica_expansion_percent: 200,
        cleaner: CleanerOptions {
            two_level,
            ..CleanerOptions::default()
        },
    };
    let mut log = Log::new(LogId(1), config).expect("a good config");
    while log.touch_ahead(64 << 20) {}
    let mut value = vec![7u8; value_bytes];
    let mut sessions = 0;
    let mut now = ClusterMs(1_000);
    let begun = Instant::now();
    // Utilisation of all memory, the index included.
    loop {
        let memory = log.memory();
        let batch = 1000.min(1 + memory.limit_bytes / 1_000_000);
        if (memory.live_bytes + memory.index_bytes) * 100 >= memory.limit_bytes * percent {
            break;
        }
        for _ in 0..batch {
            log.put(NS, &key(sessions), &value, Expiry::default(), None, now)
                .expect("room");
            sessions += 1;
        }
        if sessions % 10_000 < batch {
            settle(&mut log);
            log.clean(now, 128 << 10);
        }
    }
    let filled = begun.elapsed();
    let mut state = 0x1234_5678u64;
    let mut roll = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut puts, mut ooms, mut version) = (0u64, 0u64, 0u64);
    let mut histogram = vec![0u64; 20_000];
    let begun = Instant::now();
    let cpu = cpu_ns();
    let mut last_change = 0;
    let before = log.memory();
    let mut worst = 0;
    let mut peak = 0;
    while begun.elapsed().as_secs() < seconds {
        for _ in 0..64 {
            let mut keys = [[0; 16]; BATCH];
            for key_ in &mut keys {
                let n = roll();
                let n = match zipf {
                    // Close to a Zipf distribution of exponent 0.99: log-uniform ranks.
                    true => {
                        ((sessions as f64).powf((n >> 11) as f64 / (1u64 << 53) as f64)) as u64 - 1
                    }
                    false => (n >> 20) % sessions,
                };
                *key_ = key(n);
            }
            log.prefetch_batch(&keys.map(|key| KeyHash::of(NS, &key)));
            for key in &keys {
                version += 1;
                value[..8].copy_from_slice(&version.to_le_bytes());
                let at = Instant::now();
                loop {
                    match log.put(NS, key, &value, Expiry::default(), None, now) {
                        Ok(_) => break,
                        Err(error) => {
                            assert_eq!(error, AppendError::OutOfMemory);
                            ooms += 1;
                            assert!(ooms < 10_000_000, "stuck: {:?}", log.memory());
                            settle(&mut log);
                            log.clean(now, 128 << 10);
                        }
                    }
                }
                log.clean(now, 128 << 10);
                if log.change() != last_change {
                    settle(&mut log);
                    last_change = log.change();
                }
                let took = at.elapsed().as_nanos() as usize / 100;
                worst = worst.max(took);
                let slot = took.min(histogram.len() - 1);
                histogram[slot] += 1;
                puts += 1;
            }
        }
        settle(&mut log);
        now = ClusterMs(1_000 + begun.elapsed().as_millis() as u64);
        peak = peak.max(log.memory().segment_bytes);
    }
    let took = std::time::Duration::from_nanos(cpu_ns() - cpu);
    let after = log.memory();
    let entry = (value_bytes + 16 + 24) as u64;
    let quantile = |part: f64| {
        let mut left = (puts as f64 * (1.0 - part)) as u64;
        for (at, &count) in histogram.iter().enumerate().rev() {
            if count > left {
                return at as f64 / 10.0;
            }
            left -= count;
        }
        0.0
    };
    let appended = puts * entry;
    println!(
        "{} MB, {value_bytes} B at {percent} %, two-level {two_level}, zipf {zipf}: {:.2} M/s ({:.0} ns) | cleaned {:.3} compacted {:.3} of appended | ooms {ooms} | p50 {:.1} p99 {:.1} p99.9 {:.1} max {:.1} us | segments {} of {} | peak segment bytes / live {:.3} | fill {:.1} s, {} sessions | reclaimable {} MB",
        memory >> 20,
        puts as f64 / took.as_secs_f64() / 1e6,
        took.as_nanos() as f64 / puts as f64,
        (after.cleaned_bytes - before.cleaned_bytes) as f64 / appended as f64,
        (after.compacted_bytes - before.compacted_bytes) as f64 / appended as f64,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        worst as f64 / 10.0,
        after.segments,
        after.replica_segments_max,
        peak as f64 / after.live_bytes as f64,
        filled.as_secs_f64(),
        sessions,
        after.reclaimable_bytes >> 20,
    );
}
