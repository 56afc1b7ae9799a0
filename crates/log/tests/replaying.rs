//! However the bytes of a dead log come, in long parts or one entry at a time, told beforehand or not: what they make
//! is the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use holdfast_format::{ClientId, Entries, Namespace, SlotRange, Version};
use holdfast_log::{Completion, Config, Expiry, Log, ReplayError};
use support::{Dice, NS, World, ms, sessions};

const OTHER: Namespace = Namespace(7);

/// A log with everything in it that a log can have, in segments that are full of what is superseded.
fn dead_log(seed: u64) -> World {
    let config = Config {
        memory_bytes: 8 << 20,
        ..Config::for_testing()
    };
    let mut world = World::new(config, seed);
    for step in 0..12_000u64 {
        let key = format!("sess:{}", world.dice.below(5_000));
        let namespace = [NS, OTHER][world.dice.below(2)];
        let now = ms(step + 1);
        let deadline = match world.dice.below(3) {
            0 => None,
            part => Some(ms(1 << (20 + part))),
        };
        let completion = (world.dice.below(50) == 0).then_some(Completion {
            client: ClientId(1),
            sequence: step,
            lease_until: ms(1 << 30),
            slot: holdfast_format::Slot::of(key.as_bytes()),
            outcome: b"done",
        });
        let log = &mut world.log;
        match world.dice.below(20) {
            0 if step % 1_000 > 0 => {
                let _ = log.delete(namespace, key.as_bytes(), completion, now);
            }
            1..5 if step % 1_000 > 0 => {
                let _ = log.touch(namespace, key.as_bytes(), deadline, completion, now);
            }
            _ if step % 5_000 == 4_000 => {
                log.flush(namespace, &[SlotRange::ALL], completion, now)
                    .unwrap();
            }
            _ => {
                let expiry = Expiry {
                    deadline,
                    idle_ms: (step % 2 == 0 && deadline.is_some()).then_some(1 << 21),
                    ..Expiry::default()
                };
                let value = vec![step as u8; world.dice.below(300)];
                log.put(namespace, key.as_bytes(), &value, expiry, completion, now)
                    .unwrap();
            }
        }
    }
    world.ship();
    world
}

/// Replays `parts`; `expect` is told how many bytes are left after each.
fn replayed(parts: &[&[u8]], expect: impl Fn(u64) -> Option<u64>) -> World {
    let config = Config {
        memory_bytes: 16 << 20,
        ..Config::for_testing()
    };
    let mut world = World::new(config, 1);
    let id = world.log.replay_begin(&[SlotRange::ALL]);
    let mut left: u64 = parts.iter().map(|part| part.len() as u64).sum();
    for part in parts {
        let replayed = world.log.replay(id, part, ms(20_000)).unwrap();
        assert_eq!(replayed.bytes, part.len() as u64);
        left -= part.len() as u64;
        if let Some(to_come) = expect(left) {
            world.log.replay_expect(id, to_come);
        }
        world.log.verify();
    }
    world.log.replay_finish(id, Version(1 << 30));
    world.ship();
    assert!(world.log.replay_committed(id));
    world.log.verify();
    world
}

#[test]
fn parts_of_any_length_make_the_same_log() {
    for seed in 1..4 {
        let source = dead_log(seed);
        let mut dice = Dice(seed);
        let segments: Vec<&[u8]> = (source.replicas.held.values())
            .map(|it| &it.bytes[..])
            .collect();
        let state = |log: &Log| {
            let counts = [NS, OTHER].map(|namespace| log.count(namespace));
            (sessions(log, 20_000), counts, log.last_version())
        };
        let mut single: Vec<&[u8]> = Vec::new();
        for segment in &segments {
            for entry in Entries::new(segment) {
                let entry = entry.unwrap();
                single.push(&segment[entry.offset..entry.offset + entry.length]);
            }
        }
        // Every state is checked after each part, so many of them are put together.
        dice.shuffle(&mut single);
        let shuffled: Vec<Vec<u8>> = single.chunks(500).map(<[_]>::concat).collect();
        let shuffled: Vec<&[u8]> = shuffled.iter().map(|it| &it[..]).collect();
        let mut backwards = segments.clone();
        backwards.reverse();

        let one = replayed(&segments, |_| None);
        assert!(one.log.count(NS).sessions > 500 && one.log.count(OTHER).with_deadline > 300);
        let state_of_one = state(&one.log);
        assert!(state_of_one.0 == sessions(&source.log, 20_000));
        for other in [
            replayed(&backwards, Some),
            replayed(&shuffled, |_| None),
            replayed(&shuffled, Some),
            // Far too many.
            replayed(&backwards, |left| Some(left * 1_000 + (1 << 50))),
        ] {
            assert!(state(&other.log) == state_of_one);
            let (own, index) = (other.log.memory(), one.log.memory().index_bytes);
            assert!(
                own.index_bytes < index * 2 + own.limit_bytes / 10,
                "{} bytes of index where {index} do",
                own.index_bytes
            );
        }
    }
}

/// What stands before a bad entry counts, the others do not, and the same part may come again, whole.
#[test]
fn a_bad_entry_ends_its_part_and_nothing_else() {
    let mut source = World::small();
    for n in 0..60 {
        source.put(&format!("k{n}"), &format!("v{n}"), Some(9_000), 1);
    }
    source.ship();
    let good = source.replicas.held.values().next().unwrap().bytes.clone();
    let places: Vec<usize> = Entries::new(&good).map(|it| it.unwrap().offset).collect();
    let mut keys = BTreeMap::new();
    for (n, &place) in places.iter().enumerate() {
        // Its checksum, flags, lengths, version, key or value.
        for within in [0, 4, 6, 8, 12, 24, 26] {
            let next = places.get(n + 1).copied().unwrap_or(good.len());
            if place + within >= next {
                continue;
            }
            let mut bad = good.clone();
            bad[place + within] ^= 0x80;
            let mut target = World::small();
            let id = target.log.replay_begin(&[SlotRange::ALL]);
            let error = target.log.replay(id, &bad, ms(1)).unwrap_err();
            let ReplayError::Corrupt { offset, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(offset, place);
            target.log.verify();
            let found = sessions(&target.log, 1).len();
            assert_eq!(found, n.saturating_sub(2), "header and digest come first");
            target.log.replay(id, &good, ms(1)).unwrap();
            target.log.verify();
            assert_eq!(sessions(&target.log, 1).len(), 60);
            keys.insert(place, found);
        }
    }
    assert_eq!(keys.len(), 62);
}
