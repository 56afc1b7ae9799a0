//! The engine alone on one core: what a look-up, a write and a replayed entry cost, what the index weighs,
//! and how long its growth can hold up a single write.
//!
//! ```text
//! cargo bench -p holdfast-benches --bench index -- find 10000000
//! cargo bench -p holdfast-benches --bench index -- overwrite 2000 1000    (MiB, sessions)
//! cargo bench -p holdfast-benches --bench index -- replay 2000000 5    (sessions, rounds)
//! cargo bench -p holdfast-benches --bench index -- grow 50000000
//! ```
//!
//! Every figure is processor time of the thread, so that a busy machine shows less of itself. Each
//! measurement prints one line of JSON. Memory is touched before, as a server does after its start.

use std::hint::black_box;

use holdfast_format::{ClusterMs, Entries, Expiry, KeyHash, LogId, Namespace, SlotRange, Version};
use holdfast_log::{Config, Log};
use rustix::time::{ClockId, clock_gettime};

const NS: Namespace = Namespace(0);
const NOW: ClusterMs = ClusterMs(1_000);

/// Keys looked at together: what a pipelined connection or a replay has at hand.
const BATCH: usize = 32;

const MIB: u64 = 1 << 20;

fn main() {
    // Cargo itself passes `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    let number = |at: usize, default: u64| {
        arguments
            .get(at)
            .map_or(default, |it| it.parse().expect("a number"))
    };
    match arguments.first().map(String::as_str) {
        Some("find") => find(number(1, 1_000_000)),
        Some("overwrite") => {
            let memory_mib = number(1, 2_000);
            overwrite(memory_mib, number(2, memory_mib * MIB * 3 / 10 / 177));
        }
        Some("replay") => {
            let (sessions, rounds) = (number(1, 2_000_000), number(2, 3));
            replay(sessions, 104, Past::Fresh, rounds);
            replay(sessions / 4, 1_000, Past::Fresh, rounds);
            replay(sessions / 2, 104, Past::Touched, rounds);
            replay(sessions / 2, 104, Past::Rewritten, rounds);
        }
        Some("grow") => grow(number(1, 1_000_000)),
        None => {
            find(1_000_000);
            overwrite(500, 800_000);
            replay(1_000_000, 104, Past::Fresh, 3);
            replay(250_000, 1_000, Past::Fresh, 3);
            replay(500_000, 104, Past::Touched, 3);
            replay(500_000, 104, Past::Rewritten, 3);
            for entries in [100_000, 1_000_000, 1_400_000, 2_000_000] {
                grow(entries);
            }
        }
        Some(other) => panic!("no measurement '{other}': find, overwrite, replay or grow"),
    }
}

/// Processor time of this thread, in nanoseconds.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn config(memory_bytes: u64) -> Config {
    Config {
        memory_bytes,
        segment_bytes: 8 << 20,
        seglet_bytes: 64 << 10,
        key_bytes_max: 65_535,
        value_bytes_max: 1 << 20,
        expiry_slack_ms: 1_000,
        ..Config::for_testing()
    }
}

fn new_log(memory_bytes: u64) -> Log {
    let mut log = Log::new(LogId(1), config(memory_bytes)).expect("a good config");
    while log.touch_ahead(64 * MIB) {}
    log
}

/// A key as browsers' sessions have them: 37 bytes.
fn session_key(n: u64) -> [u8; 37] {
    let mut key = *b"sess:00000000000000000000000000000000";
    let mut word = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for place in key[5..21].iter_mut().rev() {
        *place = b"0123456789abcdef"[word as usize & 15];
        word >>= 4;
    }
    key
}

/// Uniform over `0..bound`, from a seed.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * u128::from(bound)) >> 64) as u64
    }
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

fn find(sessions: u64) {
    let mut log = new_log(sessions * (161 + 16) + 256 * MIB);
    for n in 0..sessions {
        log.put(NS, &session_key(n), &[7; 100], Expiry::default(), None, NOW)
            .expect("room for it");
    }
    // Keys as requests bring them: made before, read one after the other.
    const LOOKUPS: u64 = 1 << 20;
    let mut dice = Dice(0);
    let keys: Vec<_> = std::iter::repeat_with(|| session_key(dice.below(sessions)))
        .take(LOOKUPS as usize)
        .collect();
    for _ in 0..3 {
        let hash = cpu_ns();
        for key in &keys {
            black_box(KeyHash::of(NS, key));
        }
        let single = cpu_ns();
        for key in &keys {
            black_box(log.find(NS, key, NOW).expect("present").value.len());
        }
        let batch = cpu_ns();
        for keys in keys.as_chunks::<BATCH>().0 {
            prefetch(&log, keys);
            for key in keys {
                black_box(log.find(NS, key, NOW).expect("present").value.len());
            }
        }
        let end = cpu_ns();
        let per = |from: u64, to: u64| (to - from) as f64 / LOOKUPS as f64;
        println!(
            r#"{{"bench":"find","sessions":{sessions},"hash_ns":{:.1},"single_ns":{:.1},"batch32_ns":{:.1}}}"#,
            per(hash, single),
            per(single, batch),
            per(batch, end)
        );
    }
}

fn prefetch<const N: usize>(log: &Log, keys: &[[u8; 37]; N]) {
    let hashes: [KeyHash; N] = std::array::from_fn(|i| KeyHash::of(NS, &keys[i]));
    log.prefetch_batch(&hashes);
}

/// Uniform overwrites, appends only: the memory is as large as what is written.
fn overwrite(memory_mib: u64, sessions: u64) {
    let writes = memory_mib * MIB * 6 / 10 / 161;
    let mut log = new_log(memory_mib * MIB + 64 * MIB);
    for n in 0..sessions {
        log.put(NS, &session_key(n), &[7; 100], Expiry::default(), None, NOW)
            .expect("room for it");
    }
    settle(&mut log);
    let mut dice = Dice(1);
    let mut value = [8; 100];
    let empty = cpu_ns();
    let mut spare = dice.clone();
    for n in 0..writes / 2 {
        value[..8].copy_from_slice(&n.to_le_bytes());
        black_box((session_key(spare.below(sessions)), value));
    }
    let start = cpu_ns();
    for n in 0..writes / 2 {
        value[..8].copy_from_slice(&n.to_le_bytes());
        let key = session_key(dice.below(sessions));
        log.put(NS, &key, &value, Expiry::default(), None, NOW)
            .expect("room for it");
    }
    let batch = cpu_ns();
    for n in 0..writes / 2 / BATCH as u64 {
        let keys: [_; BATCH] = std::array::from_fn(|_| session_key(dice.below(sessions)));
        prefetch(&log, &keys);
        for key in &keys {
            value[..8].copy_from_slice(&(writes + n).to_le_bytes());
            log.put(NS, key, &value, Expiry::default(), None, NOW)
                .expect("room for it");
        }
    }
    let end = cpu_ns();
    let per = |from: u64, to: u64| (to - from) as f64 / (writes / 2) as f64;
    println!(
        r#"{{"bench":"overwrite","memory_mib":{memory_mib},"sessions":{sessions},"single_ns":{:.1},"batch32_ns":{:.1}}}"#,
        per(start, batch) - per(empty, start),
        per(batch, end) - per(empty, start)
    );
}

/// What has become of the sessions of a log that is replayed since each was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    Fresh,
    /// With each that was written, some earlier one was touched.
    Touched,
    /// With each that was written, some earlier one was written again.
    Rewritten,
}

/// Segments of sessions under 16-byte keys, each with a deadline of its own, replayed in parts as long as those that
/// backups send. Per entry of any kind.
fn replay(sessions: u64, value_bytes: usize, past: Past, rounds: u64) {
    let entry_bytes = 24 + 16 + value_bytes as u64;
    let mut source = new_log(2 * sessions * (entry_bytes + 16) + 128 * MIB);
    let mut value = vec![7; value_bytes];
    let deadline = |n: u64| ClusterMs(NOW.0 + 1_800_000 + n / 8);
    let mut put = |log: &mut Log, n: u64, time: u64| {
        value[..8].copy_from_slice(&time.to_le_bytes()); // Or it would be a touch.
        log.put(
            NS,
            &short_key(n),
            &value,
            Expiry::at(deadline(n)),
            None,
            NOW,
        )
        .expect("room for it");
    };
    for n in 0..sessions {
        put(&mut source, n, n);
        let earlier = (n + 1) * 0x9E37_79B9 % (n + 1).next_power_of_two() % (n + 1);
        match past {
            Past::Fresh => {}
            Past::Rewritten => put(&mut source, earlier, n + sessions),
            Past::Touched => {
                let later = Some(deadline(n + sessions));
                let found = source.touch(NS, &short_key(earlier), later, None, NOW);
                assert_eq!(found, Ok(true));
            }
        }
    }
    let entries = match past {
        Past::Fresh => sessions,
        Past::Touched | Past::Rewritten => 2 * sessions,
    };
    let segments: Vec<Vec<u8>> = source
        .goals()
        .map(|goal| {
            source
                .bytes(goal.id, 0, goal.length)
                .flatten()
                .copied()
                .collect()
        })
        .collect();
    drop(source);
    let parts: Vec<&[u8]> = segments.iter().flat_map(|it| parts(it)).collect();
    let total: u64 = segments.iter().map(|it| it.len() as u64).sum();
    for _ in 0..rounds {
        let mut log = new_log(2 * sessions * (entry_bytes + 16) + 192 * MIB);
        let start = cpu_ns();
        let id = log.replay_begin(&[SlotRange::ALL]);
        let mut to_come = total;
        for part in &parts {
            log.replay(id, part, NOW).expect("room for it");
            to_come -= part.len() as u64;
            log.replay_expect(id, to_come);
        }
        log.replay_finish(id, Version(2 * sessions + 1));
        let ns = (cpu_ns() - start) as f64 / entries as f64;
        assert_eq!(log.count(NS).sessions, sessions);
        println!(
            r#"{{"bench":"replay","past":"{past:?}","entries":{entries},"object_bytes":{entry_bytes},"ns":{ns:.1},"millions_per_s":{:.1},"gb_per_s":{:.2}}}"#,
            1e3 / ns,
            total as f64 / entries as f64 / ns
        );
    }
}

/// A segment in parts of about 1 MiB, each of whole entries.
fn parts(segment: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut from, mut end) = (0, 0);
    for entry in Entries::trusted(segment) {
        let entry = entry.expect("a log's own bytes");
        end = entry.offset + entry.length;
        if end - from >= MIB as usize {
            parts.push(&segment[from..end]);
            from = end;
        }
    }
    parts.push(&segment[from..end]);
    parts
}

fn short_key(n: u64) -> [u8; 16] {
    let mut key = *b"sess:00000000000";
    key[5..13].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    key
}

/// New sessions only: what the index weighs at the end, and the longest single writes on the way.
///
/// The same writes are made in two logs, and the shorter time of each counts: growth comes at the same write in
/// both, and what the machine does to one of them in between does not. Beside it the longest of either.
fn grow(sessions: u64) {
    let mut times = Times::new(sessions);
    let mut weight = 0.0;
    let mut means = [0.0; 2];
    for mean in &mut means {
        let mut log = new_log(sessions * (24 + 8 + 16) + 192 * MIB);
        *mean = times.run(|n| {
            let key = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
            log.put(NS, &key, b"", Expiry::default(), None, NOW)
                .expect("room for it");
        });
        weight = log.memory().index_bytes as f64 / sessions as f64;
    }
    let mut idle = Times::new(sessions.min(5_000_000));
    let clock = idle.run(|_| ()).min(idle.run(|_| ()));
    println!(
        r#"{{"bench":"grow","sessions":{sessions},"index_bytes_per_session":{weight:.2},"put_ns":{:.1},"longest_puts_us":{:?},"of_either_us":{:?},"idle_us":{:?}}}"#,
        means[0].min(means[1]) - clock,
        times.longest_of_shorter(),
        times.longest,
        idle.longest,
    );
}

/// Processor times of the same turns, run several times.
struct Times {
    /// The shortest of each turn, in nanoseconds.
    shortest: Vec<u32>,
    /// The four longest of all runs, in microseconds.
    longest: [u64; 4],
}

impl Times {
    fn new(turns: u64) -> Times {
        Times {
            shortest: vec![u32::MAX; turns as usize],
            longest: [0; 4],
        }
    }

    /// The mean of a turn, in nanoseconds.
    fn run(&mut self, mut turn: impl FnMut(u64)) -> f64 {
        let start = cpu_ns();
        let mut before = start;
        for (n, shortest) in self.shortest.iter_mut().enumerate() {
            turn(n as u64);
            let after = cpu_ns();
            let ns = after - before;
            *shortest = (*shortest).min(u32::try_from(ns).unwrap_or(u32::MAX));
            keep_longest(&mut self.longest, ns / 1_000);
            before = after;
        }
        (before - start) as f64 / self.shortest.len() as f64
    }

    /// The four longest turns, each by its shortest run, in microseconds.
    fn longest_of_shorter(&self) -> [u64; 4] {
        let mut longest = [0; 4];
        for &ns in &self.shortest {
            keep_longest(&mut longest, u64::from(ns) / 1_000);
        }
        longest
    }
}

/// Keeps the four longest, falling.
fn keep_longest(longest: &mut [u64; 4], time: u64) {
    if time > longest[3] {
        longest[3] = time;
        longest.sort_by(|a, b| b.cmp(a));
    }
}
