//! How long a recovery takes on clusters that nobody here has: queues in front of disks, networks and threads, fed by the
//! rates that one core was measured at.
//!
//! One machine dies with its shards; each of its logs is recovered by some shards of the others. A segment is read and verified by one of its
//! holders, once, and cut for each recovery master that asks:
//!
//! ```text
//! master asks -> holder's disk -> holder's thread: verify (once), cut and send (for each) -> its network
//!   -> master's network -> master's thread: replay          16 segments in flight for each recovery master
//! ```
//!
//! M1. Every resource serves one request after another, in the order of their coming; what is not modelled takes no time.
//! M2. Which backups hold a segment is drawn as masters draw it: the least loaded of five. So the fullest backup has more than the mean.
//! M3. What is fixed (detection, fence, records, the head's copies) is added before and after; nothing is served early.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::chance::Chance;

const GB: f64 = 1e9;

/// Segments that a recovery master asks for at once, and the holders it can ask (`FETCHES_MAX` of `master`).
const IN_FLIGHT: usize = 16;
const REPLICAS: usize = 3;
const CANDIDATES: usize = 5;

/// What one core, disk or network card does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Reading a segment from disk, bytes a second of one machine.
    pub disk: f64,
    /// Each way, bytes a second of one machine.
    pub network: f64,
    /// Seconds of a backup's thread for each byte that it reads and verifies.
    pub verify: f64,
    /// And for each byte that it cuts and sends.
    pub send: f64,
    /// Seconds of a recovery master's thread for each byte received and replayed.
    pub replay: f64,
    /// Seconds on each side for each segment that one recovery master asks for, however little comes of it.
    pub fetch: f64,
    /// Seconds of the coordinator for each replica that backups list.
    pub inventory: f64,
    /// Seconds until the death is noticed, and for the records and round trips before the replay and after it.
    pub fixed: f64,
}

impl Default for Rates {
    /// `docs/scaling.md` says where each was measured.
    fn default() -> Rates {
        Rates {
            disk: 3.1 * GB,
            network: 25.0 / 8.0 * GB,
            verify: 0.6 / GB,
            send: 0.8 / GB,
            replay: 1.3 / GB,
            fetch: 20e-6,
            inventory: 1e-6,
            fixed: 0.080,
        }
    }
}

/// A cluster one machine of which dies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Each with a backup and `shards` shards.
    pub machines: usize,
    pub shards: usize,
    /// In the memory of one machine's shards together.
    pub bytes: f64,
    pub segment_bytes: f64,
    /// Recovery masters of each log; no more than there are shards left.
    pub masters: usize,
}

/// What may be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Coordinator,
    Disk,
    BackupThread,
    Sending,
    Receiving,
    MasterThread,
}

/// One recovery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Seconds until the last session is back.
    pub seconds: f64,
    /// What was busy for the largest part of that time, on the machine where it was busiest, and which part.
    pub bottleneck: Resource,
    pub busy: f64,
    /// Mean of the same resource over all machines.
    pub busy_mean: f64,
}

/// Serves one request after another (M1).
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    free_at: f64,
    busy: f64,
}

impl Server {
    /// When a request that comes at `now` and takes `cost` is done.
    fn serve(&mut self, now: f64, cost: f64) -> f64 {
        self.free_at = self.free_at.max(now) + cost;
        self.busy += cost;
        self.free_at
    }
}

/// Where a segment stands at the holder that is asked.
#[derive(Clone, Copy, Debug)]
struct Segment {
    holder: u32,
    /// When it will have been read and verified, once somebody has asked.
    verified_at: f64,
}

/// One shard that takes part of one log over.
#[derive(Debug)]
struct Master {
    log: usize,
    machine: usize,
    thread: usize,
    /// The next segment to ask for.
    next: usize,
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Asked,
    Verified,
    Sent,
    Arrived,
    Replayed,
}

/// At a moment, in nanoseconds, something is done for a master's segment. Ties go by the order of their making.
type Event = Reverse<(u64, u64, Step, usize, usize)>;

struct World<'a> {
    shape: &'a Shape,
    rates: &'a Rates,
    segments: Vec<Vec<Segment>>,
    masters: Vec<Master>,
    disks: Vec<Server>,
    backups: Vec<Server>,
    sending: Vec<Server>,
    receiving: Vec<Server>,
    threads: Vec<Server>,
    events: BinaryHeap<Event>,
    made: u64,
    end: f64,
}

/// Recovers the dead machine's shards; `seed` places replicas and recovery masters.
///
/// Panics if there are fewer than four machines or no shards: three must be left to hold replicas.
pub fn recover(shape: &Shape, rates: &Rates, seed: u64) -> Outcome {
    assert!(shape.machines > REPLICAS && shape.shards > 0, "too small");
    let others = shape.machines - 1;
    let mut chance = Chance::new(seed, 0x5CA1E);
    let per_log = (shape.bytes / shape.shards as f64 / shape.segment_bytes).ceil() as usize;
    let segments = (0..shape.shards)
        .map(|_| place(per_log, others, &mut chance))
        .collect();
    let threads = others * shape.shards;
    let masters = shape.masters.clamp(1, threads);
    let mut world = World {
        shape,
        rates,
        segments,
        masters: Vec::new(),
        disks: vec![Server::default(); others],
        backups: vec![Server::default(); others],
        sending: vec![Server::default(); others],
        receiving: vec![Server::default(); others],
        threads: vec![Server::default(); threads],
        events: BinaryHeap::new(),
        made: 0,
        end: 0.0,
    };
    let replicas = (per_log * shape.shards * REPLICAS) as f64;
    let planned = rates.fixed + replicas * rates.inventory;
    // Neighbours in this order are on different machines, and logs begin at different places.
    let mut order: VecDeque<usize> = (0..threads)
        .map(|i| i % others * shape.shards + i / others)
        .collect();
    order.rotate_left(chance.below(threads as u64) as usize);
    for log in 0..shape.shards {
        for _ in 0..masters {
            let thread = order[0];
            order.rotate_left(1);
            world.masters.push(Master {
                log,
                machine: thread / shape.shards,
                thread,
                next: 0,
                left: per_log,
            });
        }
    }
    for master in 0..world.masters.len() {
        for _ in 0..IN_FLIGHT {
            world.ask(master, planned);
        }
    }
    world.run(masters);
    world.outcome(replicas * rates.inventory)
}

/// M2. The holder of each segment that all recovery masters ask first.
fn place(segments: usize, backups: usize, chance: &mut Chance) -> Vec<Segment> {
    let mut load = vec![0u32; backups];
    let mut place = |_| {
        let mut holders: Vec<usize> = Vec::with_capacity(REPLICAS);
        while holders.len() < REPLICAS {
            let drawn = (0..CANDIDATES).map(|_| chance.below(backups as u64) as usize);
            let free = drawn.filter(|backup| !holders.contains(backup));
            let least: Option<usize> = free.min_by_key(|&backup| load[backup]);
            if let Some(backup) = least {
                load[backup] += 1;
                holders.push(backup);
            }
        }
        Segment {
            holder: holders[chance.below(REPLICAS as u64) as usize] as u32,
            verified_at: f64::INFINITY,
        }
    };
    (0..segments).map(&mut place).collect()
}

impl World<'_> {
    fn push(&mut self, at: f64, step: Step, master: usize, segment: usize) {
        self.made += 1;
        let at_ns = (at * 1e9) as u64;
        let event = (at_ns, self.made, step, master, segment);
        self.events.push(Reverse(event));
    }

    fn ask(&mut self, master: usize, now: f64) {
        let asking = &mut self.masters[master];
        if asking.next < self.segments[asking.log].len() {
            asking.next += 1;
            let segment = asking.next - 1;
            self.push(now, Step::Asked, master, segment);
        }
    }

    fn run(&mut self, masters_per_log: usize) {
        // Slots are cut evenly, so every segment has as much for each.
        let share = self.shape.segment_bytes / masters_per_log as f64;
        let whole = self.shape.segment_bytes;
        let rates = *self.rates;
        while let Some(Reverse((at_ns, _, step, master, segment))) = self.events.pop() {
            let now = at_ns as f64 / 1e9;
            let (log, machine, thread) = {
                let master = &self.masters[master];
                (master.log, master.machine, master.thread)
            };
            let holder = self.segments[log][segment].holder as usize;
            match step {
                Step::Asked => {
                    let known = self.segments[log][segment].verified_at;
                    let at = if known.is_infinite() {
                        let read = self.disks[holder].serve(now, whole / rates.disk);
                        let verified = self.backups[holder].serve(read, whole * rates.verify);
                        self.segments[log][segment].verified_at = verified;
                        verified
                    } else {
                        known.max(now)
                    };
                    self.push(at, Step::Verified, master, segment);
                }
                Step::Verified => {
                    let cost = rates.fetch + share * rates.send;
                    let at = self.backups[holder].serve(now, cost);
                    self.push(at, Step::Sent, master, segment);
                }
                Step::Sent => {
                    let at = self.sending[holder].serve(now, share / rates.network);
                    self.push(at, Step::Arrived, master, segment);
                }
                Step::Arrived => {
                    let at = self.receiving[machine].serve(now, share / rates.network);
                    self.push(at, Step::Replayed, master, segment);
                }
                Step::Replayed => {
                    let cost = rates.fetch + share * rates.replay;
                    let done = self.threads[thread].serve(now, cost);
                    self.masters[master].left -= 1;
                    self.end = self.end.max(done);
                    self.ask(master, done);
                }
            }
        }
        assert!(
            self.masters.iter().all(|it| it.left == 0),
            "all is replayed"
        );
    }

    fn outcome(&self, coordinator: f64) -> Outcome {
        let seconds = self.end + self.rates.fixed / 2.0;
        let of = |servers: &[Server]| {
            let most = servers.iter().map(|it| it.busy).fold(0.0, f64::max);
            let sum: f64 = servers.iter().map(|it| it.busy).sum();
            (most / seconds, sum / servers.len() as f64 / seconds)
        };
        let all = [
            (Resource::Disk, of(&self.disks)),
            (Resource::BackupThread, of(&self.backups)),
            (Resource::Sending, of(&self.sending)),
            (Resource::Receiving, of(&self.receiving)),
            (Resource::MasterThread, of(&self.threads)),
            (
                Resource::Coordinator,
                (coordinator / seconds, coordinator / seconds),
            ),
        ];
        let busiest = all.iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let (bottleneck, (busy, busy_mean)) = *busiest.expect("there are six");
        Outcome {
            seconds,
            bottleneck,
            busy,
            busy_mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(machines: usize, gb: f64, masters: usize) -> Shape {
        Shape {
            machines,
            shards: 2,
            bytes: gb * GB,
            segment_bytes: 8.0 * 1024.0 * 1024.0,
            masters,
        }
    }

    #[test]
    fn it_takes_no_less_than_each_resource_needs() {
        let rates = Rates::default();
        let outcome = recover(&shape(5, 4.0, 4), &rates, 1);
        // 4 GB over four disks and backup threads, and eight shards of which each replays half a gigabyte.
        let disks = 4.0 * GB / 4.0 / rates.disk;
        let backups = 4.0 * GB / 4.0 * (rates.verify + rates.send);
        let threads = 4.0 * GB / 8.0 * rates.replay;
        assert!(outcome.seconds > disks.max(backups).max(threads) + rates.fixed);
        assert!(outcome.seconds < disks + backups + threads + 2.0 * rates.fixed);
        assert_eq!(outcome.bottleneck, Resource::BackupThread);
        assert!(outcome.busy >= outcome.busy_mean && outcome.busy <= 1.0);
    }

    #[test]
    fn the_slow_resource_is_the_bottleneck() {
        let rates = Rates::default();
        let slow = [
            (
                Resource::Disk,
                Rates {
                    disk: rates.disk / 20.0,
                    ..rates
                },
            ),
            (
                Resource::MasterThread,
                Rates {
                    replay: rates.replay * 20.0,
                    ..rates
                },
            ),
            (
                Resource::Coordinator,
                Rates {
                    inventory: 0.1,
                    ..rates
                },
            ),
        ];
        for (resource, rates) in slow {
            assert_eq!(recover(&shape(6, 2.0, 5), &rates, 2).bottleneck, resource);
        }
    }

    #[test]
    fn more_machines_help_until_each_has_little_to_do() {
        let rates = Rates::default();
        let seconds = |machines| recover(&shape(machines, 8.0, 16), &rates, 3).seconds;
        let (few, more, many) = (seconds(5), seconds(17), seconds(65));
        assert!(more < few / 2.5, "{few} {more}");
        assert!(many < more, "{more} {many}");
    }

    #[test]
    fn a_seed_repeats_itself() {
        let rates = Rates::default();
        let outcome = |seed| recover(&shape(9, 2.0, 8), &rates, seed);
        assert_eq!(outcome(4), outcome(4));
        assert_ne!(outcome(4), outcome(5));
    }
}
