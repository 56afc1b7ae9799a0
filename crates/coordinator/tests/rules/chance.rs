//! Chance against the coordinator: shards that write by the rules of replication and make replicas anew of
//! segments that they have compacted, backups that die and come back with what they had, shards that die,
//! coordinators that restart, messages doubled.
//!
//! Whatever happens, a recovery master must be told to read all that was acknowledged; and once
//! everyone is back, every slot must have an owner that is up.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::Dice;
use holdfast_format::{Digest, Epoch, LogId, SEGMENT_HEADER_BYTES, SegmentId, ServerId};
use holdfast_wire::{Certificate, Message, Recover, ReplicaState, Role};

use crate::world::{World, id, member, open};

/// A shard's log as its owner sees it.
#[derive(Clone, Debug, Default)]
struct Log {
    head: u64,
    /// Acknowledged bytes of each segment.
    acked: BTreeMap<u64, u32>,
    /// Where all its replicas are.
    backups: BTreeSet<u64>,
    epoch: u64,
    /// R4: raised and not yet recorded; nothing is acknowledged until it is.
    unrecorded: bool,
    /// What closed segments were compacted to, by the time of some copy: such replicas are whole, too.
    compacted: BTreeMap<u64, BTreeSet<u32>>,
}

/// Length of a head that was opened with a digest of so many segments, and no more.
fn opening(digest: usize) -> u32 {
    (SEGMENT_HEADER_BYTES + Digest::encoded_len(digest)) as u32
}

struct Chance {
    w: World,
    dice: Dice,
    logs: BTreeMap<u64, Log>,
    /// The logs of the dead, as they were acknowledged.
    dead: BTreeMap<u64, Log>,
    /// Backups away, by store, with what they hold.
    away: BTreeMap<u64, BTreeMap<LogId, Vec<ReplicaState>>>,
    next_id: u64,
    recovers_checked: u64,
    /// Segments that were to be read from replicas that differ.
    different: u64,
}

const REPLICAS: usize = 3;
/// Enough that all replicas of a dead log's head can be away while stale ones are back.
const BACKUPS: u64 = 8;

impl Chance {
    fn new(seed: u64) -> Chance {
        let mut w = World::new(|c| c.initial_shards = 3);
        let mut dice = Dice::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        w.double = dice.below(2) == 0;
        let mut chance = Chance {
            w,
            dice,
            logs: BTreeMap::new(),
            dead: BTreeMap::new(),
            away: BTreeMap::new(),
            next_id: 1000,
            recovers_checked: 0,
            different: 0,
        };
        for n in 0..BACKUPS {
            chance.w.enlist(11 + n, Role::Backup);
        }
        for n in 1..=3 {
            chance.w.enlist(n, Role::Shard);
            chance.open_log(n);
        }
        chance.run(200);
        chance
    }

    fn backups_up(&self) -> Vec<u64> {
        let up = self.w.alive.keys().map(|id| id.0);
        up.filter(|n| {
            self.w
                .status()
                .members
                .iter()
                .any(|m| m.member.id == id(*n) && m.member.role == Role::Backup)
        })
        .collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.dice.below(from.len() as u64) as usize;
        from.get(at).copied()
    }

    fn replica(&mut self, backup: u64, log: u64, segment: u64) -> Option<&mut ReplicaState> {
        let replicas = self.w.held.get_mut(&(id(backup), LogId(log)))?;
        replicas
            .iter_mut()
            .find(|r| r.segment == SegmentId(segment))
    }

    /// A new shard chooses its backups and opens its first head on all of them.
    fn open_log(&mut self, n: u64) {
        let mut up = self.backups_up();
        let mut log = Log {
            head: 1,
            acked: BTreeMap::from([(1, opening(1))]),
            ..Log::default()
        };
        while log.backups.len() < REPLICAS && !up.is_empty() {
            let at = self.dice.below(up.len() as u64) as usize;
            log.backups.insert(up.swap_remove(at));
        }
        for backup in &log.backups {
            self.w
                .held
                .insert((id(*backup), LogId(n)), vec![open(1, 0, opening(1), &[1])]);
        }
        if log.backups.len() == REPLICAS {
            self.logs.insert(n, log);
        }
    }

    /// Copies of closed segments are closed at last.
    fn finish_copies(&mut self, n: u64) {
        let log = &self.logs[&n];
        for backup in &log.backups {
            let held = self.w.held.get_mut(&(id(*backup), LogId(n))).unwrap();
            held.iter_mut()
                .filter(|r| r.segment.0 < log.head)
                .for_each(|r| r.closed = true);
        }
    }

    /// Bytes appended: to all replicas and acknowledged, or to some and not.
    fn write(&mut self, n: u64) {
        let log = self.logs[&n].clone();
        let everywhere = self.dice.below(3) > 0;
        let longest = (log.backups.iter())
            .filter_map(|b| self.w.held.get(&(id(*b), LogId(n))))
            .flat_map(|held| held.iter().filter(|r| r.segment == SegmentId(log.head)))
            .map(|r| r.certificate.length)
            .max()
            .expect("a live log is whole");
        let length = longest + 1;
        for backup in &log.backups {
            if everywhere || self.dice.below(2) == 0 {
                let replica = self
                    .replica(*backup, n, log.head)
                    .expect("a live log is whole");
                replica.certificate = Certificate {
                    length,
                    checksum: length,
                };
            }
        }
        if everywhere && !log.unrecorded {
            self.logs
                .get_mut(&n)
                .unwrap()
                .acked
                .insert(log.head, length);
        }
    }

    /// R2: the next head is opened on all, then the old one closed on all; the shard may die
    /// between any two of these (`steps`).
    fn roll(&mut self, n: u64, steps: u64) -> bool {
        let mut log = self.logs[&n].clone();
        if log.unrecorded {
            return true;
        }
        let next = log.head + 1;
        let length = *log.acked.get(&log.head).unwrap();
        let mut digest: Vec<u64> = log.acked.keys().copied().collect();
        digest.push(next);
        let mut left = steps;
        for backup in &log.backups {
            if left == 0 {
                return false;
            }
            left -= 1;
            let held = self.w.held.get_mut(&(id(*backup), LogId(n))).unwrap();
            held.push(open(next, log.epoch, opening(digest.len()), &digest));
        }
        for backup in &log.backups {
            if left == 0 {
                return false;
            }
            left -= 1;
            let head = log.head;
            let replica = self.replica(*backup, n, head).unwrap();
            // Unacknowledged tails are completed before closing.
            let whole = replica.certificate.length.max(length);
            replica.certificate = Certificate {
                length: whole,
                checksum: whole,
            };
            replica.closed = true;
        }
        let whole = (log.backups.iter())
            .map(|b| {
                self.w.held[&(id(*b), LogId(n))]
                    .iter()
                    .find(|r| r.segment.0 == log.head)
                    .unwrap()
                    .certificate
            })
            .max_by_key(|c| c.length)
            .unwrap();
        for backup in log.backups.clone() {
            let head = log.head;
            self.replica(backup, n, head).unwrap().certificate = whole;
        }
        log.acked.insert(log.head, whole.length);
        log.acked.insert(next, opening(digest.len()));
        log.head = next;
        self.logs.insert(n, log);
        true
    }

    fn kill_shard(&mut self, n: u64) {
        let log = self.logs.remove(&n).unwrap();
        self.dead.insert(n, log);
        self.w.kill(n);
    }

    fn kill_backup(&mut self, n: u64) {
        let store = self.store_of(n);
        let logs: Vec<(ServerId, LogId)> = self
            .w
            .held
            .keys()
            .filter(|(b, _)| *b == id(n))
            .copied()
            .collect();
        let mut kept = BTreeMap::new();
        for key in logs {
            kept.insert(key.1, self.w.held.remove(&key).unwrap());
        }
        self.away.insert(store, kept);
        self.w.kill(n);
        self.repair(n);
    }

    /// R4: what was lost is made again elsewhere at a higher epoch, and the coordinator asked.
    fn repair(&mut self, lost: u64) {
        let hurt: Vec<u64> = self
            .logs
            .iter()
            .filter(|(_, l)| l.backups.contains(&lost))
            .map(|(n, _)| *n)
            .collect();
        for n in hurt {
            let up = self.backups_up();
            let log = self.logs.get_mut(&n).unwrap();
            let spare: Vec<u64> = up
                .into_iter()
                .filter(|b| !log.backups.contains(b))
                .collect();
            let at = self.dice.below(spare.len() as u64) as usize;
            log.backups.remove(&lost);
            log.backups.insert(spare[at]);
            log.epoch += 1;
            log.unrecorded = true;
            let (epoch, backups) = (log.epoch, log.backups.clone());
            let from = backups.iter().find(|b| **b != spare[at]).unwrap();
            let mut copy = self.w.held[&(id(*from), LogId(n))].clone();
            // The longest of each segment: the owner has all bytes.
            for replica in &mut copy {
                for backup in &backups {
                    let held = self.w.held.get(&(id(*backup), LogId(n)));
                    let other = held.and_then(|h| h.iter().find(|r| r.segment == replica.segment));
                    if let Some(other) = other {
                        let longer = other.certificate.length > replica.certificate.length;
                        replica.certificate = if longer {
                            other.certificate
                        } else {
                            replica.certificate
                        };
                    }
                }
            }
            let head = self.logs[&n].head;
            let late = self.dice.below(2) == 0;
            let compacts = self.dice.below(2) == 0;
            for backup in &backups {
                let mut held = copy.clone();
                for replica in &mut held {
                    replica.closed = replica.segment.0 < head;
                    // What was closed before stays as it is; what is copied now may be less.
                    if let Some(own) = self.replica(*backup, n, replica.segment.0)
                        && own.closed
                    {
                        replica.certificate = own.certificate;
                    } else if replica.closed && compacts {
                        let length = 1 + self.dice.below(u64::from(opening(1))) as u32;
                        replica.certificate = Certificate {
                            length,
                            checksum: !length,
                        };
                        let log = self.logs.get_mut(&n).unwrap();
                        let lengths = log.compacted.entry(replica.segment.0);
                        lengths.or_default().insert(length);
                    }
                    if late && *backup == spare[at] {
                        // All bytes of the copy are there, and its `close` is on the way.
                        replica.closed = false;
                    }
                    if !replica.closed {
                        replica.epoch = Epoch(epoch);
                    }
                }
                self.w.held.insert((id(*backup), LogId(n)), held);
            }
            self.w.tell(
                n,
                Message::RaiseEpoch {
                    log: LogId(n),
                    epoch: Epoch(epoch),
                },
            );
        }
    }

    fn return_backup(&mut self, store: u64) {
        let kept = self.away.remove(&store).unwrap();
        self.next_id += 1;
        let n = self.next_id;
        let logs = kept.keys().copied().collect();
        for (log, replicas) in kept {
            self.w.held.insert((id(n), log), replicas);
        }
        let mut back = member(n, Role::Backup);
        back.store = store;
        self.w.enlist_as(back, logs);
    }

    fn store_of(&self, n: u64) -> u64 {
        let members = self.w.status().members;
        members
            .iter()
            .find(|m| m.member.id == id(n))
            .unwrap()
            .member
            .store
    }

    /// Time passes. Recoveries that are asked for are checked, and some are carried out.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            let shards: Vec<u64> = self.logs.keys().copied().collect();
            for shard in &shards {
                self.w.plays.remove(&id(*shard));
            }
            self.w.run_ms(10);
            for (n, (log, epoch)) in self.w.take(|m| match m {
                Message::EpochRecorded { log, epoch } => Some((*log, *epoch)),
                _ => None,
            }) {
                if let Some(own) = self.logs.get_mut(&n) {
                    own.unrecorded &= !(log == LogId(n) && epoch.0 >= own.epoch);
                }
            }
            for shard in &shards {
                let log = &self.logs[shard];
                if log.unrecorded {
                    let epoch = Epoch(log.epoch);
                    self.w.tell(
                        *shard,
                        Message::RaiseEpoch {
                            log: LogId(*shard),
                            epoch,
                        },
                    );
                }
            }
            for (master, recover) in self.w.take_recovers() {
                self.check(&recover);
                if self.logs.contains_key(&master) && self.dice.below(4) > 0 {
                    self.w.report_recovered(master, &recover);
                }
            }
            self.w.sent.clear();
        }
    }

    /// All that the dead owner acknowledged is in what must be read, and its holders have it.
    fn check(&mut self, recover: &Recover) {
        let log = &self.dead[&recover.log.0];
        if recover.segments[0].holders.is_empty() {
            // The sealed head is out of reach: its master is to say that it cannot (V3).
            return assert_eq!(recover.segments.len(), 1);
        }
        for (segment, acked) in &log.acked {
            let opened_only = *segment == log.head && *acked == opening(log.acked.len());
            let read = recover.segments.iter().find(|s| s.segment.0 == *segment);
            match read {
                // Any one of them must do.
                Some(read) => assert!(
                    !read.holders.is_empty()
                        && read.holders.iter().all(|holder| {
                            let Certificate { length, checksum } = holder.certificate;
                            let compacted = log.compacted.get(segment);
                            length >= *acked
                                || checksum == !length
                                    && compacted.is_some_and(|known| known.contains(&length))
                        }),
                    "{acked} bytes of {segment} were acknowledged: {recover:?} {log:?}"
                ),
                None => assert!(opened_only, "{segment} is not read: {recover:?} {log:?}"),
            }
        }
        for read in &recover.segments {
            let whole = read.holders.iter().map(|holder| holder.certificate.length);
            self.different += u64::from(whole.collect::<BTreeSet<u32>>().len() > 1);
            let sealed = read.segment.0 == log.head;
            for holder in &read.holders {
                // It may have died since this was sent.
                let Some(held) = self.w.held.get(&(holder.backup, recover.log)) else {
                    continue;
                };
                assert!(held.iter().any(|r| r.segment == read.segment
                    && (r.certificate == holder.certificate
                        || sealed && r.certificate.length >= holder.certificate.length)));
            }
        }
        self.recovers_checked += 1;
    }

    fn something(&mut self) {
        let shards: Vec<u64> = self.logs.keys().copied().collect();
        let Some(shard) = self.pick(&shards) else {
            return;
        };
        match self.dice.below(20) {
            0..=6 => self.write(shard),
            7 => self.finish_copies(shard),
            8..=10 => {
                self.roll(shard, u64::MAX);
            }
            11 if shards.len() > 1 => {
                // It dies in the middle of changing its head.
                let steps = self.dice.below(2 * REPLICAS as u64);
                if !self.roll(shard, steps) {
                    self.kill_shard(shard);
                }
            }
            12 if shards.len() > 1 => self.kill_shard(shard),
            13 | 14 => {
                let up = self.backups_up();
                if up.len() > REPLICAS {
                    let backup = self.pick(&up).unwrap();
                    self.kill_backup(backup);
                }
            }
            15 | 16 => {
                let away: Vec<u64> = self.away.keys().copied().collect();
                if let Some(store) = self.pick(&away) {
                    self.return_backup(store);
                }
            }
            17 => {
                self.next_id += 1;
                let n = self.next_id;
                self.w.enlist(n, Role::Shard);
                self.open_log(n);
            }
            18 => self.w.restart(),
            _ => {
                let ms = self.dice.below(400);
                self.run(ms);
            }
        }
        let ms = self.dice.below(40);
        self.run(ms);
    }
}

#[test]
fn whatever_happens_everything_acknowledged_is_read_and_every_slot_served() {
    let (mut checked, mut different) = (0, 0);
    for seed in 1..=60 {
        let mut chance = Chance::new(seed);
        for _ in 0..120 {
            chance.something();
        }
        for store in chance.away.keys().copied().collect::<Vec<_>>() {
            chance.return_backup(store);
        }
        chance.run(15_000);
        let status = chance.w.status();
        assert!(
            status.recoveries.is_empty(),
            "seed {seed}: {:#?}",
            status.recoveries
        );
        assert!(
            status
                .tablets
                .iter()
                .all(|t| chance.logs.contains_key(&t.owner.0)),
            "seed {seed}"
        );
        checked += chance.recovers_checked;
        different += chance.different;
    }
    assert!(
        different > 100,
        "only {different} segments had replicas that differ"
    );
    assert!(checked > 500, "only {checked} recoveries were asked for");
}
