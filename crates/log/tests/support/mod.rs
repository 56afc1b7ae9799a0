//! What tests of a log share: backups reduced to a map, and the recovery of a log from them.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod backups;

use std::collections::BTreeMap;

use holdfast_format::{
    ClusterMs, Entries, HeaderKind, KeyHash, LogId, Namespace, Opening, Position, SegmentId,
    SlotRange, Version,
};
use holdfast_log::{Config, Expiry, Log, ReplayError, ReplayId, SegmentKind};

pub const NS: Namespace = Namespace(0);

pub fn ms(ms: u64) -> ClusterMs {
    ClusterMs(ms)
}

/// Random numbers from a seed: xorshift64*.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.roll() >> 33) % bound as u64) as usize
    }
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

#[derive(Clone, Default)]
pub struct Replica {
    pub bytes: Vec<u8>,
    pub closed: bool,
}

/// All R replicas of every segment, taken as one.
#[derive(Clone, Default)]
pub struct Replicas {
    pub held: BTreeMap<SegmentId, Replica>,
}

impl Replicas {
    /// Does one thing that rule R2 allows, and tells the log. False if nothing is left to do.
    pub fn ship_one(&mut self, log: &mut Log, dice: &mut Dice) -> bool {
        for freed in log.take_freed() {
            self.held.remove(&freed);
        }
        let goals: Vec<_> = log.goals().collect();
        let mut steps = Vec::new();
        for goal in &goals {
            let replica = self.held.get(&goal.id).cloned().unwrap_or_default();
            let (allowed, may_close) = match goal.kind {
                SegmentKind::Side => (goal.length, true),
                SegmentKind::Head { opening, follows } => {
                    let alone = follows
                        .is_none_or(|follows| self.held.get(&follows).is_some_and(|it| it.closed));
                    let next_is_open = goals.iter().any(|next| match next.kind {
                        SegmentKind::Head { opening, follows } if follows == Some(goal.id) => self
                            .held
                            .get(&next.id)
                            .is_some_and(|it| it.bytes.len() >= opening as usize),
                        _ => false,
                    });
                    // Or the log could be found to begin with a head that names a lost one.
                    let begun = follows.is_none_or(|follows| self.held.contains_key(&follows));
                    match (begun, alone) {
                        (false, _) => (0, false),
                        (true, false) => (opening, next_is_open),
                        (true, true) => (goal.length, next_is_open),
                    }
                }
            };
            let length = replica.bytes.len() as u32;
            if length < allowed {
                steps.push((goal.id, allowed, false));
            } else if goal.closed && !replica.closed && length == goal.length && may_close {
                steps.push((goal.id, length, true));
            }
        }
        if steps.is_empty() {
            return false;
        }
        let (id, length, closed) = steps[dice.below(steps.len())];
        let replica = self.held.entry(id).or_default();
        let from = replica.bytes.len() as u32;
        (log.bytes(id, from, length)).for_each(|piece| replica.bytes.extend_from_slice(piece));
        replica.closed = closed;
        log.set_durable(id, length, closed);
        true
    }

    /// Ships until nothing is left.
    pub fn ship(&mut self, log: &mut Log) {
        let mut dice = Dice(0x5EED);
        while self.ship_one(log, &mut dice) {}
        for freed in log.take_freed() {
            self.held.remove(&freed);
        }
    }

    /// The head as recovery finds it, and all segments of the log with it: the oldest open one tells
    /// the truth, since by R2 nothing after its successor's opening was ever acknowledged.
    pub fn sealed(&self) -> (Position, Vec<SegmentId>) {
        for (&id, replica) in &self.held {
            let Ok(opening) = Opening::parse(&replica.bytes) else {
                continue;
            };
            let (false, Some(digest)) = (replica.closed, opening.digest) else {
                continue;
            };
            assert_eq!(opening.header.kind, HeaderKind::Head);
            for segment in &digest {
                let named = self.held.get(segment);
                assert!(
                    *segment == id || named.is_some_and(|it| it.closed),
                    "{segment:?} is in the digest of {id:?} and not closed on replicas"
                );
            }
            return (
                Position {
                    segment: id,
                    offset: replica.bytes.len() as u32,
                },
                digest,
            );
        }
        panic!("no open replica has a digest");
    }

    /// Replays everything into a log: in pieces, shuffled, some of them twice.
    pub fn replay_into(&self, log: &mut Log, dice: &mut Dice, now: ClusterMs) -> ReplayId {
        let (id, result) = self.try_replay_into(log, dice, now);
        result.unwrap();
        id
    }

    /// As `replay_into`; after an error the replay is not finished.
    pub fn try_replay_into(
        &self,
        log: &mut Log,
        dice: &mut Dice,
        now: ClusterMs,
    ) -> (ReplayId, Result<(), ReplayError>) {
        let (_, digest) = self.sealed();
        let id = log.replay_begin(&[SlotRange::ALL]);
        let mut pieces = Vec::new();
        let mut ceiling = Version(0);
        for segment in digest {
            let bytes = &self.held[&segment].bytes;
            ceiling = ceiling.max(Opening::parse(bytes).unwrap().header.version_ceiling);
            let mut start = 0;
            for entry in Entries::new(bytes) {
                let entry = entry.unwrap();
                let end = entry.offset + entry.length;
                if dice.below(3) == 0 || end == bytes.len() {
                    pieces.push(&bytes[start..end]);
                    if dice.below(8) == 0 {
                        pieces.push(&bytes[start..end]);
                    }
                    start = end;
                }
            }
        }
        dice.shuffle(&mut pieces);
        for piece in pieces {
            if let Err(error) = log.replay(id, piece, now) {
                return (id, Err(error));
            }
        }
        log.replay_finish(id, ceiling);
        (id, Ok(()))
    }
}

/// A log with its replicas.
pub struct World {
    pub log: Log,
    pub replicas: Replicas,
    pub dice: Dice,
}

impl World {
    pub fn new(config: Config, seed: u64) -> World {
        let log = Log::new(LogId(1), config).unwrap();
        World {
            log,
            replicas: Replicas::default(),
            dice: Dice(seed | 1),
        }
    }

    pub fn small() -> World {
        World::new(Config::for_testing(), 1)
    }

    pub fn put(&mut self, key: &str, value: &str, deadline: Option<u64>, now: u64) -> Version {
        let expiry = Expiry {
            deadline: deadline.map(ClusterMs),
            ..Expiry::default()
        };
        self.log
            .put(NS, key.as_bytes(), value.as_bytes(), expiry, None, ms(now))
            .unwrap()
    }

    pub fn touch(&mut self, key: &str, deadline: Option<u64>, now: u64) -> bool {
        self.log
            .touch(NS, key.as_bytes(), deadline.map(ClusterMs), None, ms(now))
            .unwrap()
    }

    pub fn delete(&mut self, key: &str, now: u64) -> Option<Version> {
        self.log.delete(NS, key.as_bytes(), None, ms(now)).unwrap()
    }

    pub fn flush(&mut self, now: u64) -> Version {
        self.log
            .flush(NS, &[SlotRange::ALL], None, ms(now))
            .unwrap()
    }

    pub fn get(&self, key: &str, now: u64) -> Option<String> {
        let found = self.log.find(NS, key.as_bytes(), ms(now))?;
        Some(String::from_utf8(found.value.to_vec()).unwrap())
    }

    pub fn ship(&mut self) {
        self.replicas.ship(&mut self.log);
    }

    pub fn sweep(&mut self, now: u64) {
        self.log.sweep(ms(now), 1 << 20);
    }

    /// The master dies; its log is recovered into a new one from what replicas hold. Several times
    /// over, in different orders, which must not make a difference.
    pub fn reopen(&mut self, now: u64) {
        let mut states = Vec::new();
        for _ in 0..8 {
            let config = self.log.config().clone();
            let mut log = Log::new(LogId(self.log.id().0 + 1), config).unwrap();
            let id = self.replicas.replay_into(&mut log, &mut self.dice, ms(now));
            let mut replicas = Replicas::default();
            replicas.ship(&mut log);
            assert!(log.replay_committed(id));
            log.verify();
            states.push((sessions(&log, now), log, replicas));
        }
        let (state, log, replicas) = states.pop().unwrap();
        assert!(
            states.iter().all(|(other, ..)| *other == state),
            "the order of replay matters"
        );
        (self.log, self.replicas) = (log, replicas);
    }

    /// Fills the current head with garbage, so that what is in it can be cleaned.
    pub fn roll(&mut self, now: u64) {
        let head = self.log.end().segment;
        let mut n = 0;
        while self.log.end().segment == head {
            self.put("filler", &format!("{n:02000}"), None, now);
            n += 1;
        }
        self.ship();
    }

    /// Fills the current head with sessions that stay, so that it is the last that the cleaner would
    /// choose, and returns its id.
    pub fn pin(&mut self, now: u64) -> SegmentId {
        let head = self.log.end().segment;
        let mut n = 0;
        while self.log.end().segment == head {
            self.put(&format!("pin{head}.{n}"), &"stays".repeat(100), None, now);
            n += 1;
        }
        self.ship();
        head
    }

    /// Writes and cleans until segment `id` has left the log.
    pub fn clean_away(&mut self, id: SegmentId, now: u64) {
        for n in 0..200 {
            if self.log.goal(id).is_none() {
                self.log.verify();
                return;
            }
            // Other segments that are nearly dead, so that combining them gains something.
            self.put(&format!("stays{n}"), "", None, now);
            self.roll(now);
            while self.log.clean(ms(now), 1 << 20) {}
            self.ship();
        }
        panic!("{id:?} stays although the cleaner runs");
    }
}

/// All live sessions of the namespace, as a client could read them.
pub fn sessions(log: &Log, now: u64) -> BTreeMap<Vec<u8>, (Version, Vec<u8>, Expiry)> {
    let mut keys = Vec::new();
    let mut from = Some(KeyHash(0));
    while let Some(cursor) = from {
        from = log.scan(NS, cursor, 1000, ms(now), &mut keys, &|_| true);
    }
    keys.into_iter()
        .map(|(_, key)| {
            let found = log.find(NS, &key, ms(now)).unwrap();
            (
                key.to_vec(),
                (found.version, found.value.to_vec(), found.expiry),
            )
        })
        .collect()
}
