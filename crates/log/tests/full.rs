//! Memory full, and nearly full: writers may be refused, but nobody ever waits for what cannot come.
//!
//! What wedged RAMCloud's log at high utilisation was that cleaning needed memory that only cleaning could free. Here
//! every state that writers can bring about must have a way on: reads, deletes and touches work, what is deleted
//! is memory for writers again, and the cleaner needs no more work for that than a few times all of the
//! memory. Backups are instant.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use holdfast_format::{LogId, SegmentId};
use holdfast_log::{AppendError, Config, Expiry, Log};
use support::{Dice, NS, ms};

const SLICE_BYTES: u64 = 16 << 10;
const LATER: u64 = 1 << 40;

struct Full {
    log: Log,
    dice: Dice,
    now: u64,
    /// Number and length of what is there.
    sessions: Vec<(u64, usize)>,
    numbers: u64,
    /// The most slices that one write had to wait for.
    longest_wait: u64,
}

/// So many slices read and copy all of the memory a few times.
fn patience(config: &Config) -> u64 {
    8 * config.memory_bytes / SLICE_BYTES
}

fn value(number: u64, length: usize) -> Vec<u8> {
    number
        .to_le_bytes()
        .into_iter()
        .cycle()
        .take(length)
        .collect()
}

impl Full {
    fn new(config: Config, seed: u64) -> Full {
        let mut full = Full {
            log: Log::new(LogId(1), config).unwrap(),
            dice: Dice(seed | 1),
            now: 1_000,
            sessions: Vec::new(),
            numbers: 0,
            longest_wait: 0,
        };
        full.settle();
        full
    }

    fn settle(&mut self) {
        loop {
            let change = self.log.change();
            let goals: Vec<_> = self.log.goals().collect();
            for goal in goals {
                self.log.set_durable(goal.id, goal.length, goal.closed);
            }
            let _freed: Vec<SegmentId> = self.log.take_freed();
            if self.log.change() == change {
                return;
            }
        }
    }

    /// One slice. Time goes on a little.
    fn clean(&mut self) -> bool {
        self.now += 1;
        self.settle();
        let more = self.log.clean(ms(self.now), SLICE_BYTES);
        self.settle();
        more
    }

    fn try_put(&mut self, number: u64, length: usize) -> Result<(), AppendError> {
        let value = value(number ^ self.now, length);
        let put = (self.log).put(
            NS,
            &number.to_le_bytes(),
            &value,
            Expiry::default(),
            None,
            ms(self.now),
        );
        put.map(|_| ())
    }

    /// As `try_put`, with as many slices as it takes. An error: no number of them helps.
    fn put(&mut self, number: u64, length: usize) -> Result<(), AppendError> {
        let (mut slices, mut idle) = (0, 0);
        loop {
            let error = match self.try_put(number, length) {
                Ok(()) => break,
                Err(error) => error,
            };
            assert_eq!(error, AppendError::OutOfMemory);
            slices += 1;
            idle = if self.clean() { 0 } else { idle + 1 };
            if idle > 20 {
                return Err(error);
            }
            assert!(
                slices < patience(self.log.config()),
                "the cleaner does not come to rest"
            );
        }
        self.longest_wait = self.longest_wait.max(slices);
        if slices == 0 && self.numbers.is_multiple_of(4) {
            self.clean();
        }
        Ok(())
    }

    /// Adds sessions until no more fit.
    fn fill(&mut self, length: impl Fn(&mut Dice) -> usize) {
        loop {
            self.numbers += 1;
            let length = length(&mut self.dice);
            if self.put(self.numbers, length).is_err() {
                return;
            }
            self.sessions.push((self.numbers, length));
        }
    }

    /// Deletes one, after as many slices as it takes: its tombstone may need what others' made free.
    fn delete(&mut self, n: usize) {
        let (number, _) = self.sessions.swap_remove(n);
        let mut slices = 0;
        loop {
            match self
                .log
                .delete(NS, &number.to_le_bytes(), None, ms(self.now))
            {
                Ok(deleted) => return assert!(deleted.is_some()),
                Err(error) => assert_eq!(error, AppendError::OutOfMemory),
            }
            self.clean();
            slices += 1;
            assert!(
                slices < patience(self.log.config()),
                "a delete finds no memory: {:?}, {} sessions",
                self.log.memory(),
                self.sessions.len()
            );
        }
    }

    /// Deletes at random until so many are left.
    fn keep(&mut self, sessions: usize) {
        while self.sessions.len() > sessions {
            let n = self.dice.below(self.sessions.len());
            self.delete(n);
        }
    }

    fn check(&self) {
        self.log.verify();
        assert_eq!(self.log.count(NS).sessions, self.sessions.len() as u64);
        for (number, length) in &self.sessions {
            let found = self
                .log
                .find(NS, &number.to_le_bytes(), ms(self.now))
                .unwrap();
            assert_eq!(found.value.len(), *length);
        }
        let memory = self.log.memory();
        assert!(memory.used_bytes <= memory.limit_bytes);
    }
}

/// Segments of 64 seglets: half as fine as a real shard's.
fn config(memory_bytes: u64) -> Config {
    Config {
        memory_bytes,
        segment_bytes: 256 << 10,
        ..Config::for_testing()
    }
}

type Length = fn(&mut Dice) -> usize;

/// With the part of what fits, in percent, at which nobody may be refused. What is longer than a seglet needs
/// several next to each other.
const LENGTHS: [(&str, u64, Length); 4] = [
    ("tiny", 90, |dice| dice.below(40)),
    ("usual", 90, |dice| 100 + dice.below(900)),
    ("mixed", 90, |dice| match dice.below(50) {
        0 => 8_000 + dice.below(8_000),
        _ => dice.below(600),
    }),
    ("largest", 70, |_| 16 << 10),
];

/// Overwriting, inserting, deleting, with 71 to 98 % of what fits.
#[test]
fn writers_go_on_at_every_utilisation() {
    for (name, sure_percent, length) in LENGTHS {
        let mut full = Full::new(config(5 << 20), 7);
        full.fill(length);
        full.check();
        let most = full.sessions.len();
        for percent in [98, 95, 90, 80, 71] {
            full.keep(most * percent as usize / 100);
            let mut refused = 0;
            for n in 0..most / 2 {
                let n = (n * 7 + full.dice.below(7)) % full.sessions.len();
                let (number, was) = full.sessions[n];
                let length = length(&mut full.dice);
                match full.put(number, length) {
                    Ok(()) => full.sessions[n].1 = length,
                    Err(_) => {
                        refused += 1;
                        // What it had fits in its own place, or what it was is not lost.
                        let found = full.log.find(NS, &number.to_le_bytes(), ms(full.now));
                        assert_eq!(found.unwrap().value.len(), was);
                    }
                }
            }
            full.check();
            // Lengths differ, so what fits differs.
            let allowed = if percent > sure_percent { most } else { 0 };
            assert!(
                refused <= allowed,
                "{name}: {refused} refused at {percent} % of {most}"
            );
        }
    }
}

/// At the bound everything but puts works, again and again, and what is deleted can be written.
#[test]
fn what_is_deleted_at_the_bound_is_memory_for_writers() {
    for (name, _, length) in LENGTHS {
        let mut full = Full::new(config(5 << 20), 11);
        full.fill(length);
        for round in 0..4 {
            full.check();
            let at_bound = full.sessions.len();
            let bytes = |full: &Full| full.sessions.iter().map(|it| it.1 + 50).sum::<usize>();
            let bytes_at_bound = bytes(&full);
            // As many as surely fit into what is kept for them, without any cleaning.
            let touches = (full.log.config().segment_bytes / 3 / 64) as usize;
            for n in 0..touches.min(at_bound) {
                let (number, _) = full.sessions[n];
                let deadline = Some(ms(LATER + round));
                let touched =
                    (full.log).touch(NS, &number.to_le_bytes(), deadline, None, ms(full.now));
                assert!(touched.expect("touches find memory"));
            }
            full.keep(at_bound * 8 / 10);
            full.longest_wait = 0;
            full.fill(length);
            let waited = full.longest_wait * SLICE_BYTES;
            assert!(
                waited <= 4 * full.log.config().memory_bytes,
                "{name}: {waited} bytes of cleaning"
            );
            assert!(
                bytes(&full) * 100 >= bytes_at_bound * 88,
                "{name}, round {round}: {} of {bytes_at_bound} bytes fit again",
                bytes(&full)
            );
        }
    }
}

/// One of ten stays, wherever it lies; then everything else is fifty times as long (FAST '14, workload 8).
#[test]
fn what_stays_is_never_in_the_way() {
    let mut full = Full::new(config(5 << 20), 13);
    full.fill(|dice| dice.below(40));
    let most: usize = full.sessions.iter().map(|it| it.1 + 50).sum();
    full.keep(full.sessions.len() / 10);
    let stayed: usize = full.sessions.iter().map(|it| it.1 + 50).sum();
    full.fill(|_| 900);
    full.check();
    let now: usize = full.sessions.iter().map(|it| it.1 + 50).sum();
    assert!(
        now * 100 >= most * 74,
        "{now} bytes after {most}, {stayed} of them stayed"
    );
    full.keep(full.sessions.len() / 2);
    full.fill(|dice| dice.below(40));
    full.check();
}

/// Refused ever again, without anybody deleting: the cleaner comes to rest, and is not worn by it.
#[test]
fn writers_at_the_bound_wear_nothing_out() {
    let mut full = Full::new(config(4 << 20), 17);
    full.fill(|dice| 100 + dice.below(400));
    for _ in 0..2_000 {
        full.clean();
    }
    let before = full.log.memory();
    for n in 0..20_000u64 {
        let refused = full.try_put((1 << 40) + n, 300);
        assert_eq!(refused, Err(AppendError::OutOfMemory));
        full.clean();
    }
    full.check();
    let after = full.log.memory();
    assert!(
        after.cleaned_bytes - before.cleaned_bytes <= 2 << 20,
        "the cleaner works for nothing"
    );
    assert_eq!(after.segments, before.segments);
}
