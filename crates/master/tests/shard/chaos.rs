//! Random operations over a bad network while backups die, then the shard itself does; whatever it had
//! acknowledged must be found on what is left, by the coordinator's rules.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::Dice;
use holdfast_format::{Opening, SegmentId, ServerId, SlotRange, Version};
use holdfast_wire::*;

use crate::takeover::{ask_to_recover, give_ownership, heir, recovered};
use crate::world::*;

/// "Fence, seal, recover" of the design notes: the highest open head at a valid epoch whose digest is
/// complete, as long as its longest certificate.
fn seal(dead: &World) -> Option<Recover> {
    let mut known: BTreeMap<SegmentId, Vec<(ServerId, &Stored)>> = BTreeMap::new();
    for (id, backup) in &dead.backups {
        for ((_, segment), stored) in &backup.replicas {
            if stored.certificate.is_some() {
                known.entry(*segment).or_default().push((*id, stored));
            }
        }
    }
    let certificate_of = |stored: &Stored| stored.certificate.expect("only these are listed");
    for (head, replicas) in known.iter().rev() {
        let valid = |stored: &Stored| !stored.closed && stored.epoch >= dead.recorded_epoch;
        let Some((_, open)) = replicas.iter().find(|(_, stored)| valid(stored)) else {
            continue;
        };
        let Some(digest) = Opening::parse(&open.bytes).unwrap().digest else {
            continue;
        };
        let counting = |stored: &Stored| stored.closed || valid(stored);
        let sealed = (replicas.iter())
            .filter(|(_, stored)| counting(stored))
            .map(|(_, stored)| certificate_of(stored))
            .max_by_key(|certificate| certificate.length)
            .unwrap();
        let segments: Option<Vec<RecoverSegment>> = (digest.iter())
            .map(|segment| {
                // Of a closed segment any replica by its own certificate, of the head what was sealed.
                let reads = |stored: &Stored| {
                    let own = certificate_of(stored);
                    match segment == head {
                        true => (own.length >= sealed.length).then_some(sealed),
                        false => stored.closed.then_some(own),
                    }
                };
                let holders: Vec<Holder> = (known.get(segment)?.iter())
                    .filter_map(|(backup, stored)| {
                        let certificate = reads(stored)?;
                        Some(Holder {
                            backup: *backup,
                            certificate,
                        })
                    })
                    .collect();
                (!holders.is_empty()).then_some(RecoverSegment {
                    segment: *segment,
                    holders,
                })
            })
            .collect();
        if let Some(segments) = segments {
            return Some(Recover {
                log: dead.log,
                attempt: 1,
                ranges: vec![SlotRange::ALL],
                segments,
                version_ceiling: Version(1 << 30),
                expiry_floor: dead
                    .backups
                    .keys()
                    .map(|id| dead.ceiling(*id))
                    .max()
                    .unwrap(),
                lease_remaining_ms: 0,
                first: None,
                leant_on: Vec::new(),
            });
        }
    }
    None
}

/// What may be found under one key: the last value acknowledged, or any sent since.
type Possible = BTreeMap<String, BTreeSet<Option<String>>>;

/// With values of some 7 KB, what lives is most of the memory.
const KEYS: u64 = 90;

/// How often what this is about has happened.
#[derive(Debug, Default)]
struct Happened {
    acknowledged: u64,
    resends: f64,
    epochs_raised: f64,
    replicas_lost: f64,
    freed: usize,
    copies_begun_again: f64,
    in_doubt: usize,
}

fn run(seed: u64, happened: &mut Happened) {
    let mut dice = Dice::new(seed * 7919 + 1);
    // Little memory, so that the cleaner works all the time, mostly in memory.
    let mut world = World::configured(1, 5, 3, |config| {
        config.log.memory_bytes = 1 << 20;
        config.log.replica_expansion_percent = 800;
    });
    world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
    world.run(0);
    world.run(300);
    world.chaos = Some(Dice::new(seed + 1));
    let mut possible: Possible = (0..KEYS)
        .map(|i| (format!("k{i}"), [None].into()))
        .collect();
    let mut waiting: Vec<(u64, String, Option<String>)> = Vec::new();
    let mut next_backup = 200;
    for step in 0..600 {
        let key = format!("k{}", dice.below(KEYS));
        // One write per key at a time, so that the order of answers is that of the writes.
        if waiting.iter().all(|(_, waits, _)| *waits != key) {
            let value = (dice.below(5) > 0).then(|| {
                let width = [10, 6_000, 14_000][dice.below(3) as usize];
                format!("{step:width$}")
            });
            let token = match &value {
                Some(value) => world.send(put(&key, value)),
                None => world.send(delete(&key)),
            };
            possible.get_mut(&key).unwrap().insert(value.clone());
            waiting.push((token, key, value));
        }
        match dice.below(60) {
            0 => {
                let ids: Vec<ServerId> = world.backups.keys().copied().collect();
                let lost = ids[dice.below(ids.len() as u64) as usize];
                world.view.members.push(member(next_backup, Role::Backup));
                world
                    .backups
                    .insert(ServerId(next_backup), FakeBackup::default());
                next_backup += 1;
                // Only one of three copies may be gone at a time.
                world.run(2_500);
                if world.metric("holdfast_shard_under_replicated_segments") == 0.0 {
                    world.declare_dead(lost);
                }
            }
            1 => _ = world.mute.insert(ServerId(100 + dice.below(5))),
            2 => world.mute.clear(),
            _ => world.run(dice.below(30)),
        }
        let mut refused = false;
        let before = waiting.len();
        waiting.retain(|(token, key, value)| {
            let now = possible.get_mut(key).unwrap();
            match world.answers.remove(token) {
                None => return true,
                Some(Outcome::Done { .. }) => *now = [value.clone()].into(),
                Some(Outcome::Absent { .. }) => *now = [None].into(),
                Some(Outcome::Failed(Failure::Busy | Failure::NotReady)) => refused = true,
                Some(Outcome::Failed(Failure::OutOfMemory)) => {}
                other => panic!("seed {seed}: {other:?}"),
            }
            false
        });
        happened.acknowledged += (before - waiting.len()) as u64;
        if refused {
            world.new_stream();
        }
    }
    world.shard.verify();
    happened.resends += world.metric("holdfast_shard_append_resends_total");
    happened.epochs_raised += world.metric("holdfast_shard_epochs_raised_total");
    happened.replicas_lost += world.metric("holdfast_shard_replicas_lost_total");
    happened.freed += world.freed.len();
    happened.copies_begun_again += world.metric("holdfast_shard_copies_begun_again_total");
    happened.in_doubt += waiting.len();
    // It dies here and now, with whatever is under way. One backup is out of reach for good.
    let ids: Vec<ServerId> = world.backups.keys().copied().collect();
    if world.metric("holdfast_shard_under_replicated_segments") == 0.0 {
        world
            .backups
            .remove(&ids[dice.below(ids.len() as u64) as usize]);
    }
    let recover = seal(&world).unwrap_or_else(|| panic!("seed {seed}: no head can be found"));
    let mut heir = heir(&world);
    ask_to_recover(&mut heir, &recover);
    heir.run(1_000);
    assert!(recovered(&heir).is_some(), "seed {seed}: {recover:?}");
    give_ownership(&mut heir, &[SlotRange::ALL]);
    for (key, possible) in possible {
        let found = heir.value(&key);
        assert!(
            possible.contains(&found),
            "seed {seed}: {key} is {found:?}, not of {possible:?}"
        );
    }
    heir.shard.verify();
}

#[test]
fn nothing_acknowledged_is_lost_over_a_bad_network() {
    let mut happened = Happened::default();
    for seed in 0..25 {
        run(seed, &mut happened);
    }
    // A run in which nothing happens proves nothing.
    assert!(happened.acknowledged > 2_000, "{happened:?}");
    assert!(
        happened.resends > 1_000.0 && happened.epochs_raised > 20.0,
        "{happened:?}"
    );
    assert!(
        happened.replicas_lost > 100.0 && happened.in_doubt > 50,
        "{happened:?}"
    );
    assert!(happened.freed > 0, "{happened:?}");
    assert!(happened.copies_begun_again > 10.0, "{happened:?}");
}
