//! The cleaner interleaved with everything, and death at every moment, against a `BTreeMap`.
//!
//! After every step all invariants are checked. Between any two steps the log may die: then some of its
//! replicas are found, each as it was when it was made, and what is replayed from them, in any order,
//! several times over and at a later time, must be what the model was at the end of the sealed head: nothing
//! acknowledged is lost, nothing deleted, expired or flushed comes back, now or later. `model.rs` tries more of
//! what a live log can do; this one tries more of what replicas can hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use holdfast_format::{
    ClientId, ClusterMs, LogId, Namespace, Position, SLOTS, Slot, SlotRange, Version,
};
use holdfast_log::{AppendError, CleanerOptions, Completion, Config, Expiry, Log, ReplayError};
use proptest::prelude::*;
use support::backups::{Backups, Seal};
use support::{Dice, ms};

/// What happens next, drawn from four bytes so that failures shrink.
#[derive(Clone, Copy, Debug)]
enum Op {
    Put {
        key: u8,
        value: u8,
        ttl: u8,
    },
    /// The value that is there: a touch.
    PutAgain {
        key: u8,
        ttl: u8,
    },
    Touch {
        key: u8,
        ttl: u8,
    },
    Delete {
        key: u8,
    },
    Flush {
        half: u8,
    },
    Record {
        lease: u8,
    },
    Acknowledge {
        below: u8,
    },
    Wait {
        ms: u8,
    },
    Sweep {
        buckets: u8,
    },
    /// So many slices of the least that a slice can be.
    Clean {
        slices: u8,
    },
    Ship {
        steps: u8,
    },
    /// Garbage up to the next head.
    Roll,
    /// Sessions that last a while up to the next head, so that the cleaner leaves what is before them.
    Pin,
    LoseReplica,
    /// What if it died now?
    Crash,
    /// It dies, and life goes on with its successor if that has memory enough.
    TakeOver,
}

impl Op {
    fn of([kind, a, b, c]: [u8; 4]) -> Op {
        match kind {
            0..56 => Op::Put {
                key: a,
                value: b,
                ttl: c,
            },
            56..64 => Op::PutAgain { key: a, ttl: b },
            64..88 => Op::Touch { key: a, ttl: b },
            88..108 => Op::Delete { key: a },
            108..110 => Op::Flush { half: a },
            110..114 => Op::Record { lease: a },
            114..117 => Op::Acknowledge { below: a },
            117..132 => Op::Wait { ms: a },
            132..144 => Op::Sweep { buckets: a },
            144..190 => Op::Clean { slices: a },
            190..234 => Op::Ship { steps: a },
            234..238 => Op::Roll,
            238..242 => Op::Pin,
            242..250 => Op::LoseReplica,
            250..255 => Op::Crash,
            255 => Op::TakeOver,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Session {
    value: (u8, usize),
    version: Version,
    expiry: Expiry,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    sessions: BTreeMap<(u8, u8), Session>,
    /// With the end of the client's lease.
    completions: BTreeMap<u64, u64>,
    last_version: Version,
}

#[derive(Default, Debug)]
struct Tally {
    refused: u64,
    crashes: u64,
    rounds: u64,
    taken_over: u64,
    cleaned_bytes: u64,
    compacted_bytes: u64,
    remade_from_compacted: u64,
}

struct Machine {
    config: Config,
    log: Log,
    backups: Backups,
    dice: Dice,
    now: u64,
    model: Model,
    /// The model at the end of every append that may still be the last one found.
    history: BTreeMap<Position, Model>,
    sequence: u64,
    acknowledged: u64,
    filler: u64,
    tally: Tally,
}

const CLIENT: ClientId = ClientId(9);
const KEYS: u8 = 120;
const FILLER: Namespace = Namespace(7);
const OUTCOME: &[u8] = b"done";

fn key(key: u8) -> Vec<u8> {
    format!("session:{key}").into_bytes()
}

fn bytes_of((value, length): (u8, usize)) -> Vec<u8> {
    vec![value; length]
}

impl Machine {
    fn new(config: Config, replicas: usize, seed: u64) -> Machine {
        let mut machine = Machine {
            log: Log::new(LogId(1), config.clone()).unwrap(),
            config,
            backups: Backups::new(replicas),
            dice: Dice(seed | 1),
            now: 1_000_000,
            model: Model::default(),
            history: BTreeMap::new(),
            sequence: 0,
            acknowledged: 0,
            filler: 0,
            tally: Tally::default(),
        };
        machine.remember();
        machine
    }

    fn remember(&mut self) {
        self.history.insert(self.log.end(), self.model.clone());
        // Positions before the last one acknowledged can never be sealed.
        let keep = (self.history.range(..=self.backups.acknowledged)).next_back();
        if let Some((&keep, _)) = keep {
            self.history = self.history.split_off(&keep);
        }
    }

    fn time(&self) -> ClusterMs {
        ms(self.now)
    }

    /// Never, at once, soon, later, much later.
    fn deadline(&self, ttl: u8) -> Option<ClusterMs> {
        match ttl % 8 {
            0 | 4 => None,
            1 => Some(self.time()),
            2 | 3 => Some(ms(self.now + u64::from(ttl))),
            5 | 6 => Some(ms(self.now + u64::from(ttl) * 20)),
            _ => Some(ms(self.now + u64::from(ttl) * 1_000_000)),
        }
    }

    fn expiry(&self, ttl: u8) -> Expiry {
        Expiry {
            deadline: self.deadline(ttl),
            idle_ms: ttl.is_multiple_of(3).then_some(u32::from(ttl) * 10 + 1),
            absolute: ttl
                .is_multiple_of(11)
                .then_some(ms(self.now + u64::from(ttl) * 100)),
        }
    }

    /// Half of what happens, happens to a dozen.
    fn at(k: u8) -> (u8, u8) {
        match k < 128 {
            true => (k % 2, k % 12),
            false => (k % 2, k % KEYS),
        }
    }

    fn live(&self, at: (u8, u8), now: u64) -> Option<&Session> {
        let session = self.model.sessions.get(&at)?;
        let ended = session.expiry.deadline.is_some_and(|it| it.0 <= now);
        (!ended).then_some(session)
    }

    /// Every third write of a client is to be executed exactly once.
    fn completion(&mut self, lease: u8) -> Option<Completion<'static>> {
        self.sequence += 1;
        let lease_ms = if lease.is_multiple_of(2) {
            300
        } else {
            1 << 40
        };
        lease.is_multiple_of(3).then_some(Completion {
            client: CLIENT,
            sequence: self.sequence,
            lease_until: ms(self.now + lease_ms),
            slot: Slot(1),
            outcome: OUTCOME,
        })
    }

    fn completed(&mut self, completion: Option<Completion<'_>>) {
        if let Some(done) = completion {
            (self.model.completions).insert(done.sequence, done.lease_until.0);
        }
    }

    fn put(&mut self, k: u8, value: (u8, usize), expiry: Expiry, lease: u8) {
        let at = Self::at(k);
        let done = self.completion(lease);
        let bytes = bytes_of(value);
        let put = (self.log).put(
            Namespace(at.0),
            &key(at.1),
            &bytes,
            expiry,
            done,
            ms(self.now),
        );
        match put {
            Ok(version) => {
                let before = self.live(at, self.now);
                match before.filter(|old| old.version == version) {
                    Some(old) => assert_eq!(old.value, value, "an identical value is a touch"),
                    None => assert!(version > self.model.last_version),
                }
                let session = Session {
                    value,
                    version,
                    expiry: expiry.stored(),
                };
                self.model.last_version = self.model.last_version.max(version);
                self.model.sessions.insert(at, session);
                self.completed(done);
            }
            Err(error) => {
                assert_eq!(error, AppendError::OutOfMemory);
                self.tally.refused += 1;
            }
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put { key, value, ttl } => {
                let length = match value % 2 {
                    0 => usize::from(value) * 62,
                    _ => usize::from(value) * 4,
                };
                self.put(key, (value, length), self.expiry(ttl), value);
            }
            Op::PutAgain { key, ttl } => {
                if let Some(old) = self.live(Self::at(key), self.now).cloned() {
                    let expiry = Expiry {
                        deadline: self.deadline(ttl),
                        ..old.expiry
                    };
                    self.put(key, old.value, expiry, ttl);
                }
            }
            Op::Touch { key: k, ttl } => {
                let at = Self::at(k);
                let deadline = self.deadline(ttl);
                let done = self.completion(k);
                let found = self.live(at, self.now).is_some();
                let touched =
                    (self.log).touch(Namespace(at.0), &key(at.1), deadline, done, ms(self.now));
                match touched {
                    Ok(touched) => {
                        assert_eq!(touched, found);
                        if let (true, Some(session)) = (found, self.model.sessions.get_mut(&at)) {
                            let cut = Expiry {
                                deadline,
                                idle_ms: None,
                                absolute: session.expiry.absolute,
                            };
                            session.expiry.deadline = cut.stored().deadline;
                            self.completed(done);
                        }
                    }
                    Err(error) => assert_eq!(error, AppendError::OutOfMemory),
                }
            }
            Op::Delete { key: k } => {
                let at = Self::at(k);
                let done = self.completion(k);
                let found = self.live(at, self.now).is_some();
                match self
                    .log
                    .delete(Namespace(at.0), &key(at.1), done, ms(self.now))
                {
                    Ok(version) => {
                        assert_eq!(version.is_some(), found);
                        if let Some(version) = version {
                            assert!(version > self.model.last_version);
                            self.model.last_version = version;
                            self.model.sessions.remove(&at);
                            self.completed(done);
                        }
                    }
                    Err(error) => assert_eq!(error, AppendError::OutOfMemory),
                }
            }
            Op::Flush { half } => {
                let middle = Slot(SLOTS / 2);
                let range = match half % 3 {
                    0 => SlotRange {
                        first: Slot(0),
                        last: middle,
                    },
                    1 => SlotRange {
                        first: Slot(middle.0 + 1),
                        last: Slot(SLOTS - 1),
                    },
                    _ => SlotRange::ALL,
                };
                let namespace = half % 2;
                let flush = (self.log).flush(Namespace(namespace), &[range], None, ms(self.now));
                if let Ok(version) = flush {
                    assert!(version > self.model.last_version);
                    self.model.last_version = version;
                    self.model.sessions.retain(|&(ns, k), _| {
                        ns != namespace || !range.contains(Slot::of(&key(k)))
                    });
                }
            }
            Op::Record { lease } => {
                let done = self.completion(lease - lease % 3);
                if self
                    .log
                    .record(done.expect("a lease divisible by three"))
                    .is_ok()
                {
                    self.completed(done);
                }
            }
            Op::Acknowledge { below } => {
                let below = self.sequence.saturating_sub(u64::from(below % 16));
                self.log.acknowledge(CLIENT, below);
                // An acknowledgement leaves no trace: after a recovery the records may be back.
                self.acknowledged = self.acknowledged.max(below);
                self.model.completions.retain(|&it, _| it >= below);
            }
            Op::Wait { ms } => {
                self.now += match ms % 4 {
                    0 => u64::from(ms) * 50,
                    _ => u64::from(ms),
                }
            }
            Op::Sweep { buckets } => self.log.sweep(ms(self.now), u32::from(buckets)),
            Op::Clean { slices } => {
                for _ in 0..slices {
                    self.log.clean(ms(self.now), 1);
                    self.log.verify();
                }
            }
            Op::Ship { steps } => {
                for _ in 0..steps % 32 {
                    self.backups.ship_one(&mut self.log, &mut self.dice);
                    self.log.verify();
                }
            }
            // One key, so that it is garbage at once.
            Op::Roll => self.fill(|_| 0, Expiry::default()),
            Op::Pin => self.fill(|n| n, Expiry::at(ms(self.now + 4_000))),
            Op::LoseReplica => self.backups.lose_one(&mut self.dice),
            Op::Crash => {
                self.crash();
            }
            Op::TakeOver => self.take_over(),
        }
        self.log.verify();
        self.remember();
    }

    /// Fills the head; nobody looks at what is in there.
    fn fill(&mut self, key: impl Fn(u64) -> u64, expiry: Expiry) {
        let head = self.log.end().segment;
        while self.log.end().segment == head {
            self.filler += 1;
            let key = key(self.filler).to_le_bytes();
            let value = self.filler.to_le_bytes().repeat(200);
            match (self.log).put(FILLER, &key, &value, expiry, None, ms(self.now)) {
                Ok(version) => self.model.last_version = version,
                Err(_) => break,
            }
        }
    }

    /// What clients of `log` see at `now` is what the model says.
    fn check(&self, log: &Log, model: &Model, now: u64, what: &str) {
        for at in (0..KEYS).map(|k| (k % 2, k)) {
            let found = log.find(Namespace(at.0), &key(at.1), ms(now));
            let session = model.sessions.get(&at);
            let session = session.filter(|it| it.expiry.deadline.is_none_or(|end| now < end.0));
            match (found, session) {
                (None, None) => {}
                (Some(found), Some(session)) => {
                    let same = found.version == session.version
                        && found.expiry == session.expiry
                        && found.value == bytes_of(session.value);
                    assert!(
                        same,
                        "{what}: {at:?} has {:?}, {:?} and {} bytes, not {session:?}",
                        found.version,
                        found.expiry,
                        found.value.len()
                    );
                }
                (Some(found), None) => {
                    panic!(
                        "{what}: {at:?} came back with {:?}, {:?}",
                        found.version, found.expiry
                    )
                }
                (None, Some(session)) => panic!("{what}: {at:?} is lost: {session:?}"),
            }
        }
        for (&sequence, &lease_until) in &model.completions {
            if sequence >= self.acknowledged && lease_until >= now {
                let outcome = log.completion(CLIENT, sequence);
                assert_eq!(outcome, Some(OUTCOME), "{what}: outcome {sequence}");
            }
        }
        assert!(log.last_version() >= model.last_version, "{what}");
    }

    /// The log dies: what would be recovered, several times over? Returns what was found.
    fn crash(&mut self) -> Option<(Seal, Model)> {
        let seal = self.backups.seal(&mut self.dice)?;
        let (_, model) = (self.history.range(..=seal.head).next_back()).expect("the model there");
        let model = model.clone();
        self.tally.crashes += 1;
        let later = self.now + [0, 40, 400, 20_000, 1 << 30][self.dice.below(5)];
        for _ in 0..2 {
            self.tally.rounds += 1;
            let (mut log, mut backups) =
                self.recover(&seal, later).expect("three times the memory");
            self.check(&log, &model, later, "recovered");
            // And again, from what the new owner has written, after it has swept and cleaned.
            let later = later + [0, 300, 100_000][self.dice.below(3)];
            log.sweep(ms(later), 1 << 20);
            while log.clean(ms(later), 1 << 20) {}
            backups.ship(&mut log, &mut self.dice);
            log.verify();
            self.check(&log, &model, later, "swept");
            let again = backups.seal(&mut self.dice).expect("it was committed");
            let (log, _) = self.recover(&again, later).expect("as much memory");
            self.check(&log, &model, later, "recovered again");
            self.check(&log, &model, later + (1 << 31), "long after");
        }
        Some((seal, model))
    }

    /// A log of three times the memory, with everything the seal names, committed.
    fn recover(&mut self, seal: &Seal, now: u64) -> Option<(Log, Backups)> {
        let memory_bytes = self.config.memory_bytes * 3;
        self.recover_into(seal, now, memory_bytes).ok()
    }

    fn recover_into(
        &mut self,
        seal: &Seal,
        now: u64,
        memory_bytes: u64,
    ) -> Result<(Log, Backups), ReplayError> {
        let config = Config {
            memory_bytes,
            ..self.config.clone()
        };
        let mut log = Log::new(LogId(self.log.id().0 + 1), config).unwrap();
        let mut backups = Backups::new(self.backups.held.values().next().unwrap().len());
        let id = log.replay_begin(&[SlotRange::ALL]);
        // Time goes on while it is replayed, and so does the work in the background.
        let start = self.now.min(now);
        let pieces = seal.pieces(&mut self.dice);
        let count = pieces.len() as u64;
        for (n, piece) in pieces.into_iter().enumerate() {
            let time = ms(start + (now - start) * n as u64 / count);
            log.replay(id, piece, time)?;
            match self.dice.below(16) {
                0 => log.sweep(time, 16),
                1 => {
                    log.clean(time, 1000);
                }
                2 => {
                    backups.ship_one(&mut log, &mut self.dice);
                }
                _ => {}
            }
        }
        log.replay_finish(id, seal.ceiling);
        backups.ship(&mut log, &mut self.dice);
        assert!(log.replay_committed(id));
        log.verify();
        Ok((log, backups))
    }

    fn take_over(&mut self) {
        let Some((seal, model)) = self.crash() else {
            return;
        };
        // Into as much memory as before, so that the cleaner does not come to rest. A log that was full
        // may not fit, for want of memory to clean in; then it has not died after all.
        let recovered = self.recover_into(&seal, self.now, self.config.memory_bytes);
        let Ok((log, backups)) = recovered else {
            return;
        };
        self.tally.taken_over += 1;
        self.tally.note(&self.log, &self.backups);
        (self.log, self.backups, self.model) = (log, backups, model);
        self.model.last_version = self.log.last_version();
        self.history.clear();
        self.remember();
    }
}

impl Tally {
    fn note(&mut self, log: &Log, backups: &Backups) {
        self.cleaned_bytes += log.memory().cleaned_bytes;
        self.compacted_bytes += log.memory().compacted_bytes;
        self.remade_from_compacted += backups.remade_from_compacted;
    }
}

fn config(memory_bytes: u64) -> Config {
    Config {
        memory_bytes,
        ..Config::for_testing()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_comes_back(
        ops in prop::collection::vec(any::<[u8; 4]>(), 1..300),
        replicas in 1usize..4,
        seed in any::<u64>(),
    ) {
        let mut machine = Machine::new(config(700 << 10), replicas, seed);
        for op in ops {
            machine.step(Op::of(op));
        }
        machine.crash();
        machine.take_over();
    }
}

/// The same, long: with memory so short that the cleaner never rests, and with some to spare.
#[test]
fn nothing_is_lost_and_nothing_comes_back_for_a_long_time() {
    let mut tally = Tally::default();
    for seed in 1..=seeds() {
        let memory_bytes = [640 << 10, 760 << 10, 1000 << 10][seed as usize % 3];
        let config = Config {
            // Each of them alone, too.
            cleaner: CleanerOptions {
                two_level: seed % 6 != 5,
                lifetimes: seed % 3 != 1,
            },
            // Replicas' space short, or memory alone: then nearly all is done by compaction.
            replica_expansion_percent: if seed % 2 == 0 { 1_000 } else { 200 },
            ..config(memory_bytes)
        };
        let mut machine = Machine::new(config, 1 + (seed as usize / 2) % 3, seed * 7_919);
        let mut dice = Dice(seed * 0x9E37_79B9);
        for _ in 0..1_500 {
            machine.step(Op::of((dice.roll() as u32).to_le_bytes()));
        }
        machine.take_over();
        let Tally {
            refused,
            crashes,
            rounds,
            taken_over,
            cleaned_bytes,
            compacted_bytes,
            remade_from_compacted,
        } = machine.tally;
        tally.refused += refused;
        tally.crashes += crashes;
        tally.rounds += rounds;
        tally.taken_over += taken_over;
        tally.cleaned_bytes += cleaned_bytes;
        tally.compacted_bytes += compacted_bytes;
        tally.remade_from_compacted += remade_from_compacted;
    }
    println!("{tally:?}");
    let per = seeds();
    assert!(tally.refused > 2 * per, "memory was never short: {tally:?}");
    assert!(tally.rounds > 30 * per, "too few recoveries: {tally:?}");
    assert!(tally.taken_over > per, "too few takeovers: {tally:?}");
    assert!(
        tally.compacted_bytes > 50_000 * per,
        "nothing was compacted: {tally:?}"
    );
    assert!(
        tally.remade_from_compacted > per,
        "all replicas were made before compaction: {tally:?}"
    );
    assert!(
        tally.cleaned_bytes > 100_000 * per,
        "nothing was cleaned: {tally:?}"
    );
}

/// More of them by `HOLDFAST_CRASH_SEEDS`.
fn seeds() -> u64 {
    let more = std::env::var("HOLDFAST_CRASH_SEEDS").ok();
    more.and_then(|it| it.parse().ok()).unwrap_or(6)
}
