//! The log's hot path: looking up, appending, touching, replaying, and putting while the cleaner runs.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_format::{ClusterMs, Expiry, LogId, Namespace, SlotRange, Version};
use holdfast_log::{AppendError, Config, Log};

const NS: Namespace = Namespace(0);
const NOW: ClusterMs = ClusterMs(1_000);

fn config(memory_bytes: u64) -> Config {
    Config {
        memory_bytes,
        outside_bytes: 0,
        segment_bytes: 8 << 20,
        seglet_bytes: 64 << 10,
        key_bytes_max: 65_535,
        value_bytes_max: 1 << 20,
        expiry_slack_ms: 1_000,
        replica_expansion_percent: 200,
        cleaner: holdfast_log::CleanerOptions::default(),
    }
}

fn key(n: u64) -> [u8; 16] {
    let mut key = *b"sess:00000000000";
    key[5..13].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    key
}

/// A log without replicas: everything is durable at once.
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

fn put(log: &mut Log, n: u64, value: &[u8]) {
    while let Err(error) = log.put(NS, &key(n), value, Expiry::default(), None, NOW) {
        assert_eq!(error, AppendError::OutOfMemory);
        settle(log);
        while log.clean(NOW, 1 << 20) {}
        settle(log);
    }
}

fn filled(sessions: u64, value: &[u8], memory_bytes: u64) -> Log {
    let mut log = Log::new(LogId(1), config(memory_bytes)).expect("a good config");
    for n in 0..sessions {
        put(&mut log, n, value);
    }
    log
}

fn lookup(criterion: &mut Criterion) {
    const SESSIONS: u64 = 1_000_000;
    let log = filled(SESSIONS, &[7; 100], 512 << 20);
    let mut group = criterion.benchmark_group("find among 1M");
    group.throughput(Throughput::Elements(1));
    let mut n = 0u64;
    group.bench_function("present", |bencher| {
        bencher.iter(|| {
            n = (n + 7_919) % SESSIONS;
            log.find(NS, black_box(&key(n)), NOW)
                .expect("present")
                .version
        })
    });
    group.bench_function("absent", |bencher| {
        bencher.iter(|| {
            n += 1;
            log.find(NS, black_box(&key(SESSIONS + n)), NOW).is_none()
        })
    });
    group.throughput(Throughput::Elements(16));
    group.bench_function("present, 16 at a time with prefetch", |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            let keys: [[u8; 16]; 16] =
                std::array::from_fn(|i| key((n + i as u64 * 104_729) % SESSIONS));
            n = (n + 7_919) % SESSIONS;
            log.prefetch_batch(&keys.map(|key| holdfast_format::KeyHash::of(NS, &key)));
            for key in &keys {
                found += usize::from(log.find(NS, key, NOW).is_some());
            }
            found
        })
    });
    group.finish();
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("put");
    group.sample_size(20);
    for value_bytes in [100, 1024] {
        let value = vec![7; value_bytes];
        const PUTS: u64 = 20_000;
        group.throughput(Throughput::Elements(PUTS));
        group.bench_function(format!("new {value_bytes} B, index growing"), |bencher| {
            bencher.iter_batched_ref(
                || Log::new(LogId(1), config(128 << 20)).expect("a good config"),
                |log| {
                    for n in 0..PUTS {
                        put(log, n, &value);
                    }
                },
                BatchSize::PerIteration,
            )
        });
        // 256 MiB, 70 % of it live: every put is paid for by cleaning.
        let sessions = (256 << 20) * 7 / 10 / (value_bytes as u64 + 56);
        let mut log = filled(sessions, &value, 256 << 20);
        let mut n = 0u64;
        let mut version = 0u64;
        let mut changed = value.clone();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("overwrite {value_bytes} B, 70 % live"), |bencher| {
            bencher.iter(|| {
                n = n
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                version += 1;
                changed[..8].copy_from_slice(&version.to_le_bytes());
                put(&mut log, (n >> 20) % sessions, &changed);
            })
        });
    }
    let mut log = filled(100_000, &[7; 100], 256 << 20);
    let mut n = 0u64;
    group.bench_function("touch", |bencher| {
        bencher.iter(|| {
            n += 1;
            let deadline = Some(ClusterMs(10_000 + n));
            while log
                .touch(NS, &key(n % 100_000), deadline, None, NOW)
                .is_err()
            {
                settle(&mut log);
                while log.clean(NOW, 1 << 20) {}
                settle(&mut log);
            }
        })
    });
    group.finish();
}

fn replay(criterion: &mut Criterion) {
    const SESSIONS: u64 = 300_000;
    let source = filled(SESSIONS, &[7; 100], 128 << 20);
    let segments: Vec<Vec<u8>> = source
        .goals()
        .map(|goal| {
            source
                .bytes(goal.id, 0, goal.length)
                .collect::<Vec<_>>()
                .concat()
        })
        .collect();
    let mut group = criterion.benchmark_group("replay");
    group.sample_size(10);
    group.throughput(Throughput::Elements(SESSIONS));
    group.bench_function("300k of 100 B", |bencher| {
        bencher.iter_batched_ref(
            || Log::new(LogId(2), config(256 << 20)).expect("a good config"),
            |log| {
                let id = log.replay_begin(&[SlotRange::ALL]);
                for segment in &segments {
                    log.replay(id, segment, NOW).expect("room for it");
                }
                log.replay_finish(id, Version(SESSIONS + 1));
                assert_eq!(log.count(NS).sessions, SESSIONS);
            },
            BatchSize::PerIteration,
        )
    });
    group.finish();
}

criterion_group!(benches, lookup, append, replay);
criterion_main!(benches);
