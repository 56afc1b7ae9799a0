//! Random operations on a log against a `BTreeMap`, with death and recovery at any moment.
//!
//! What a log must be after it was recovered is what the model was when the last byte that replicas
//! hold was written: nothing acknowledged is lost, nothing comes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use holdfast_format::{
    ClientId, ClusterMs, KeyHash, LogId, Namespace, Position, SLOTS, Slot, SlotRange, Version,
};
use holdfast_log::{AppendError, Completion, Config, Expiry, Log, ReplayError};
use proptest::prelude::*;
use support::{Dice, Replicas, ms};

#[derive(Clone, Debug)]
enum Op {
    Put {
        key: u8,
        value: u8,
        long: bool,
        ttl: u8,
        idle: u8,
        absolute: u8,
        once: bool,
    },
    Touch {
        key: u8,
        ttl: u8,
        once: bool,
    },
    Delete {
        key: u8,
        once: bool,
    },
    Flush {
        namespace: u8,
        half: u8,
    },
    Record,
    Acknowledge {
        below: u8,
    },
    Wait {
        ms: u16,
    },
    Sweep {
        buckets: u8,
    },
    Clean {
        budget: u16,
    },
    Ship {
        steps: u8,
    },
    Reopen,
    AbortReplay,
    Check,
}

#[derive(Clone, Debug, PartialEq)]
struct Session {
    value: Vec<u8>,
    version: Version,
    expiry: Expiry,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    sessions: BTreeMap<(u8, u8), Session>,
    completions: BTreeMap<u64, Vec<u8>>,
    last_version: Version,
}

struct Machine {
    config: Config,
    log: Log,
    replicas: Replicas,
    dice: Dice,
    now: u64,
    model: Model,
    /// The model at the end of every append that may still be the last durable one.
    history: BTreeMap<Position, Model>,
    sequence: u64,
    acknowledged: u64,
    refused: u64,
    reopened: u64,
}

const CLIENT: ClientId = ClientId(9);
const KEYS: u8 = 60;

fn key(key: u8) -> Vec<u8> {
    format!("key:{key}").into_bytes()
}

/// Lengths differ, and few values so that identical ones are put again.
fn value(value: u8, long: bool) -> Vec<u8> {
    vec![
        value;
        if long {
            6000 + usize::from(value) * 200
        } else {
            usize::from(value) * 5
        }
    ]
}

impl Machine {
    fn new(memory_bytes: u64, seed: u64) -> Machine {
        let config = Config {
            memory_bytes,
            ..Config::for_testing()
        };
        let log = Log::new(LogId(1), config.clone()).unwrap();
        let mut machine = Machine {
            config,
            log,
            replicas: Replicas::default(),
            dice: Dice(seed | 1),
            now: 1_000,
            model: Model::default(),
            history: BTreeMap::new(),
            sequence: 0,
            acknowledged: 0,
            refused: 0,
            reopened: 0,
        };
        machine.remember();
        machine
    }

    fn now(&self) -> ClusterMs {
        ms(self.now)
    }

    fn remember(&mut self) {
        self.history.insert(self.log.end(), self.model.clone());
    }

    fn live(&self, at: (u8, u8)) -> Option<&Session> {
        let session = self.model.sessions.get(&at)?;
        session
            .expiry
            .deadline
            .is_none_or(|it| self.now() < it)
            .then_some(session)
    }

    fn ttl(&self, ttl: u8) -> Option<ClusterMs> {
        match ttl % 8 {
            0 | 1 => None,
            2 => Some(ms(self.now)), // at once
            3..6 => Some(ms(self.now + u64::from(ttl) * 3)),
            _ => Some(ms(self.now + u64::from(ttl) * 1000)),
        }
    }

    fn completion<'a>(&mut self, once: bool, outcome: &'a [u8]) -> Option<Completion<'a>> {
        self.sequence += u64::from(once);
        once.then_some(Completion {
            client: CLIENT,
            sequence: self.sequence,
            lease_until: ms(u64::MAX >> 20),
            slot: Slot(1),
            outcome,
        })
    }

    fn completed(&mut self, once: bool, outcome: &[u8]) {
        if once {
            self.model
                .completions
                .insert(self.sequence, outcome.to_vec());
        }
    }

    fn step(&mut self, op: &Op) {
        let namespace = |key: u8| key % 3;
        match *op {
            Op::Put {
                key: k,
                value: v,
                long,
                ttl,
                idle,
                absolute,
                once,
            } => {
                let k = k % KEYS;
                let expiry = Expiry {
                    deadline: self.ttl(ttl),
                    idle_ms: (idle % 4 == 0).then_some(u32::from(idle) + 1),
                    absolute: (absolute % 4 == 0).then_some(ms(60_000 + u64::from(absolute))),
                };
                let at = (namespace(k), k);
                let before = self.live(at).cloned();
                let ns = Namespace(at.0);
                let value = value(v, long);
                let promised = self
                    .log
                    .put_version(ns, &key(k), &value, expiry, self.now());
                let outcome = [v, 1, 2];
                let done = self.completion(once, &outcome);
                match self
                    .log
                    .put(ns, &key(k), &value, expiry, done, ms(self.now))
                {
                    Ok(version) => {
                        assert_eq!(version, promised);
                        let stored = expiry.stored();
                        match before {
                            Some(old) if old.version == version => {
                                assert_eq!(old.value, value);
                                assert_eq!(old.expiry.idle_ms, stored.idle_ms);
                                assert_eq!(old.expiry.absolute, stored.absolute);
                            }
                            _ => assert!(version > self.model.last_version),
                        }
                        self.model.last_version = self.model.last_version.max(version);
                        let session = Session {
                            value,
                            version,
                            expiry: stored,
                        };
                        self.model.sessions.insert(at, session);
                        self.completed(once, &[v, 1, 2]);
                    }
                    Err(error) => {
                        assert_eq!(error, AppendError::OutOfMemory);
                        self.refused += 1;
                    }
                }
            }
            Op::Touch { key: k, ttl, once } => {
                let k = k % KEYS;
                let at = (namespace(k), k);
                let deadline = self.ttl(ttl);
                let found = self.live(at).is_some();
                let done = self.completion(once, b"touched");
                match self
                    .log
                    .touch(Namespace(at.0), &key(k), deadline, done, ms(self.now))
                {
                    Ok(touched) => {
                        assert_eq!(touched, found);
                        if let (true, Some(session)) = (found, self.model.sessions.get_mut(&at)) {
                            let absolute = session.expiry.absolute;
                            session.expiry.deadline = Expiry {
                                deadline,
                                idle_ms: None,
                                absolute,
                            }
                            .stored()
                            .deadline;
                            self.completed(once, b"touched");
                        }
                    }
                    Err(error) => assert_eq!(error, AppendError::OutOfMemory),
                }
            }
            Op::Delete { key: k, once } => {
                let k = k % KEYS;
                let at = (namespace(k), k);
                let found = self.live(at).is_some();
                let done = self.completion(once, b"deleted");
                match self
                    .log
                    .delete(Namespace(at.0), &key(k), done, ms(self.now))
                {
                    Ok(version) => {
                        assert_eq!(version.is_some(), found);
                        if let Some(version) = version {
                            assert!(version > self.model.last_version);
                            self.model.last_version = version;
                            self.model.sessions.remove(&at);
                            self.completed(once, b"deleted");
                        }
                    }
                    Err(error) => assert_eq!(error, AppendError::OutOfMemory),
                }
            }
            Op::Flush { namespace, half } => {
                let namespace = namespace % 3;
                let middle = Slot(SLOTS / 2);
                let range = match half % 4 {
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
                let flushed = self
                    .log
                    .flush(Namespace(namespace), &[range], None, ms(self.now));
                if let Ok(version) = flushed {
                    assert!(version > self.model.last_version);
                    self.model.last_version = version;
                    self.model.sessions.retain(|&(ns, k), _| {
                        ns != namespace || !range.contains(Slot::of(&key(k)))
                    });
                }
            }
            Op::Record => {
                let done = self.completion(true, b"refused").expect("asked for");
                if self.log.record(done).is_ok() {
                    self.completed(true, b"refused");
                }
            }
            Op::Acknowledge { below } => {
                let below = self.sequence.saturating_sub(u64::from(below % 16));
                self.log.acknowledge(CLIENT, below);
                // An acknowledgement leaves no trace: after a recovery the records may be back.
                self.acknowledged = self.acknowledged.max(below);
                self.model
                    .completions
                    .retain(|&sequence, _| sequence >= below);
            }
            Op::Wait { ms } => self.now += u64::from(ms),
            Op::Sweep { buckets } => self.log.sweep(ms(self.now), u32::from(buckets)),
            Op::Clean { budget } => {
                self.log.clean(ms(self.now), u64::from(budget));
            }
            Op::Ship { steps } => {
                for _ in 0..steps {
                    self.replicas.ship_one(&mut self.log, &mut self.dice);
                }
            }
            Op::Reopen => self.reopen(),
            Op::AbortReplay => self.abort_replay(),
            Op::Check => self.check(),
        }
        self.remember();
    }

    fn check(&self) {
        self.log.verify();
        let now = self.now();
        let mut live = [0; 3];
        for k in 0..KEYS {
            let at = (k % 3, k);
            let found = self
                .log
                .find(Namespace(at.0), &key(k), now)
                .map(|found| Session {
                    value: found.value.to_vec(),
                    version: found.version,
                    expiry: found.expiry,
                });
            assert_eq!(found.as_ref(), self.live(at), "key {k} at {now:?}");
            live[usize::from(at.0)] += usize::from(found.is_some());
        }
        for (namespace, live) in live.into_iter().enumerate() {
            let mut keys = Vec::new();
            let mut from = Some(KeyHash(0));
            while let Some(cursor) = from {
                let all = |_| true;
                from = self
                    .log
                    .scan(Namespace(namespace as u8), cursor, 5, now, &mut keys, &all);
            }
            assert!(
                keys.is_sorted() && keys.len() == live,
                "a scan sees every key once"
            );
            assert!(self.log.count(Namespace(namespace as u8)).sessions >= live as u64);
        }
        for (&sequence, outcome) in &self.model.completions {
            assert_eq!(self.log.completion(CLIENT, sequence), Some(&outcome[..]));
        }
    }

    fn abort_replay(&mut self) {
        // Another log's sessions come and go again.
        let mut other = Log::new(LogId(99), self.config.clone()).unwrap();
        let mut replicas = Replicas::default();
        for k in 0..KEYS {
            let _ = other.put(
                Namespace(200),
                &key(k),
                &[k],
                Expiry::default(),
                None,
                ms(1),
            );
        }
        replicas.ship(&mut other);
        let (id, result) = replicas.try_replay_into(&mut self.log, &mut self.dice, ms(self.now));
        match result {
            Ok(()) => assert_eq!(self.log.count(Namespace(200)).sessions, u64::from(KEYS)),
            Err(error) => assert_eq!(error, ReplayError::OutOfMemory),
        }
        self.log.replay_abort(id, &[SlotRange::ALL]);
        assert_eq!(self.log.count(Namespace(200)).sessions, 0);
    }

    fn reopen(&mut self) {
        if self.replicas.held.is_empty() {
            return;
        }
        self.reopened += 1;
        let (sealed, _) = self.replicas.sealed();
        let (_, model) = self
            .history
            .range(..=sealed)
            .next_back()
            .expect("the model at every position");
        let mut recovered = model.clone();
        recovered
            .completions
            .retain(|&sequence, _| sequence >= self.acknowledged);

        // Replay needs what the live log had, and the new log's own reserve.
        let config = Config {
            memory_bytes: self.config.memory_bytes * 3,
            ..self.config.clone()
        };
        let mut log = Log::new(LogId(self.log.id().0 + 1), config).unwrap();
        let id = self
            .replicas
            .replay_into(&mut log, &mut self.dice, ms(self.now));
        let mut replicas = Replicas::default();
        replicas.ship(&mut log);
        assert!(log.replay_committed(id));
        for (&sequence, outcome) in &recovered.completions {
            assert_eq!(log.completion(CLIENT, sequence), Some(&outcome[..]));
        }

        // Back into a log of the usual size, by a second recovery.
        let next = LogId(log.id().0 + 1);
        let mut small = Log::new(next, self.config.clone()).unwrap();
        let second = small.replay_begin(&[SlotRange::ALL]);
        let fits = replicas
            .held
            .values()
            .all(|replica| small.replay(second, &replica.bytes, ms(self.now)).is_ok());
        (self.log, self.replicas) = if fits {
            small.replay_finish(second, Version(log.last_version().0));
            let mut replicas = Replicas::default();
            replicas.ship(&mut small);
            (small, replicas)
        } else {
            (log, replicas)
        };
        self.model = recovered;
        self.history.clear();
        self.check();
    }
}

fn op() -> impl Strategy<Value = Op> {
    let b = any::<u8>;
    prop_oneof![
        12 => (b(), 0u8..40, any::<bool>(), b(), b(), b(), any::<bool>()).prop_map(
            |(key, value, long, ttl, idle, absolute, once)| Op::Put {
                key, value, long, ttl, idle, absolute, once
            }
        ),
        6 => (b(), b(), any::<bool>()).prop_map(|(key, ttl, once)| Op::Touch { key, ttl, once }),
        4 => (b(), any::<bool>()).prop_map(|(key, once)| Op::Delete { key, once }),
        1 => (b(), b()).prop_map(|(namespace, half)| Op::Flush { namespace, half }),
        1 => Just(Op::Record),
        1 => b().prop_map(|below| Op::Acknowledge { below }),
        3 => (0u16..400).prop_map(|ms| Op::Wait { ms }),
        2 => b().prop_map(|buckets| Op::Sweep { buckets }),
        4 => any::<u16>().prop_map(|budget| Op::Clean { budget }),
        6 => (0u8..6).prop_map(|steps| Op::Ship { steps }),
        1 => Just(Op::Reopen),
        1 => Just(Op::AbortReplay),
        1 => Just(Op::Check),
    ]
}

fn random_op(dice: &mut Dice) -> Op {
    let mut b = || dice.roll() as u8;
    match b() % 64 {
        0..24 => Op::Put {
            key: b(),
            value: b() % 40,
            long: b() % 2 == 0,
            ttl: b(),
            idle: b(),
            absolute: b(),
            once: b() % 4 == 0,
        },
        24..34 => Op::Touch {
            key: b(),
            ttl: b(),
            once: b() % 4 == 0,
        },
        34..38 => Op::Delete {
            key: b(),
            once: b() % 2 == 0,
        },
        38 => match b() % 16 {
            0 => Op::Flush {
                namespace: b(),
                half: b(),
            },
            1 => Op::Reopen,
            2 => Op::AbortReplay,
            3 => Op::Check,
            _ => Op::Record,
        },
        39..42 => Op::Acknowledge { below: b() },
        42..44 => Op::Wait { ms: u16::from(b()) },
        44..48 => Op::Sweep { buckets: b() },
        48..54 => Op::Clean {
            budget: u16::from(b()) << 7,
        },
        _ => Op::Ship { steps: b() % 6 },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_a_map(ops in prop::collection::vec(op(), 1..400), seed in any::<u64>()) {
        let mut machine = Machine::new(1 << 20, seed);
        for op in &ops {
            machine.step(op);
        }
        machine.check();
        machine.replicas.ship(&mut machine.log);
        machine.reopen();
    }
}

/// The same, long, with memory so short that writers are refused and the cleaner never rests.
#[test]
fn a_log_is_a_map_for_a_long_time() {
    let (mut refused, mut reopened, mut cleaned) = (0, 0, 0);
    for seed in 1..=6 {
        let mut machine = Machine::new(if seed % 2 == 0 { 4 << 20 } else { 760 << 10 }, seed * 77);
        let mut dice = Dice(seed * 0x9E37_79B9);
        for n in 0..8_000 {
            let op = random_op(&mut dice);
            machine.step(&op);
            if n % 500 == 499 {
                machine.check();
                // Positions that replicas have left behind can never be recovered to.
                if !machine.replicas.held.is_empty() {
                    let (sealed, _) = machine.replicas.sealed();
                    let keep = machine
                        .history
                        .range(..=sealed)
                        .next_back()
                        .map(|(&at, _)| at);
                    machine.history = machine.history.split_off(&keep.unwrap());
                }
            }
            cleaned = cleaned.max(machine.log.memory().cleaned_bytes);
        }
        refused += machine.refused;
        reopened += machine.reopened;
    }
    assert!(refused > 100, "memory was never short: {refused}");
    assert!(reopened > 10, "too few recoveries: {reopened}");
    assert!(
        cleaned > 100_000,
        "the cleaner had nothing to do: {cleaned}"
    );
}
