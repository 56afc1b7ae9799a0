//! Random histories of one log on one backup, against what was promised about them.
//!
//! A shard sends pieces of segments in any chunking, with and without certificates, at rising epochs. The network loses,
//! doubles and reorders; the process is killed between any two outputs and in the middle of a write;
//! once a segment was acknowledged closed the shard may compact it and send what is left instead;
//! where disks acknowledge, the power fails too. Then the log is fenced, and whatever was
//! acknowledged under a certificate must be listed and served, and nothing else.

mod rig;

use std::collections::BTreeMap;

use holdfast_format::{ClusterMs, Epoch, SegmentId, SlotRange};
use holdfast_wire::{Append, Appended, Inventory, Message, ReplicaState};
use proptest::collection::vec;
use proptest::prelude::*;
use rig::{LOWER_HALF, Rig, SHARD, Segment};

const SEGMENTS: u64 = 3;
const FENCE: u64 = 1_000;

#[derive(Clone, Debug)]
enum Op {
    /// Goes into the network: from where an append begins, in thirds of the chances; how many atomic
    /// appends it carries; whether it is certified and closes.
    Send {
        segment: u64,
        from: From,
        ends: usize,
        certified: bool,
        close: bool,
        /// Of the bytes after compaction, if the segment was closed.
        compacted: bool,
    },
    /// A message in the network arrives, and may stay for another time.
    Arrive {
        pick: usize,
        stays: bool,
    },
    RaiseEpoch,
    /// A disk operation under way completes.
    Complete {
        pick: usize,
    },
    Pass {
        ms: u64,
    },
    /// The process dies after so many outputs of what comes next, a write torn after so many bytes.
    Kill {
        outputs: usize,
        torn: usize,
    },
    /// As above, and the power fails.
    PowerFailure {
        seed: usize,
    },
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum From {
    Start,
    /// What the last acknowledgement said.
    Acknowledged,
    Anywhere(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let from = prop_oneof![
        2 => Just(From::Start),
        4 => Just(From::Acknowledged),
        1 => (0..20usize).prop_map(From::Anywhere),
    ];
    prop_oneof![
        8 => (1..=SEGMENTS, from, 0..12usize, prop::bool::weighted(0.8), any::<[bool; 2]>())
            .prop_map(|(segment, from, ends, certified, [close, compacted])| Op::Send {
                segment, from, ends, certified, close, compacted
            }),
        10 => (any::<usize>(), prop::bool::weighted(0.3))
            .prop_map(|(pick, stays)| Op::Arrive { pick, stays }),
        1 => Just(Op::RaiseEpoch),
        6 => any::<usize>().prop_map(|pick| Op::Complete { pick }),
        1 => (1..6_000u64).prop_map(|ms| Op::Pass { ms }),
        1 => (0..6usize, 0..90usize).prop_map(|(outputs, torn)| Op::Kill { outputs, torn }),
        1 => any::<usize>().prop_map(|seed| Op::PowerFailure { seed }),
        1 => Just(Op::Restart),
    ]
}

/// What a backup has said about one segment, under a certificate.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    length: u32,
    closed: bool,
    epoch: Epoch,
}

struct World {
    rig: Rig,
    ack_disk: bool,
    /// Each before and after its compaction.
    segments: Vec<[Segment; 2]>,
    epoch: u64,
    network: Vec<Append>,
    stamp: u64,
    /// What each append, named by its stamp, said.
    said: BTreeMap<u64, Append>,
    acknowledged: BTreeMap<(u64, bool), u32>,
    /// Appends of compacted bytes, by their stamps.
    compacted: std::collections::BTreeSet<u64>,
    promised: BTreeMap<u64, Promised>,
    acks: usize,
}

impl World {
    fn new(ack_disk: bool) -> World {
        World {
            rig: Rig::new(24, ack_disk),
            ack_disk,
            segments: (1..=SEGMENTS)
                .map(|id| Segment::head(id, 19))
                .map(|segment| [segment.clone(), segment.compacted()])
                .collect(),
            epoch: 1,
            network: Vec::new(),
            stamp: 0,
            said: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            compacted: Default::default(),
            promised: BTreeMap::new(),
            acks: 0,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Send {
                segment,
                from,
                ends,
                certified,
                close,
                compacted,
            } => {
                let closed = self.promised.get(&segment).is_some_and(|it| it.closed);
                let append = match compacted && closed {
                    true => self.compacted_append(segment, from, ends, certified),
                    false => self.append(segment, from, ends, certified, close),
                };
                self.said.insert(append.sent_us, append.clone());
                self.network.push(append);
            }
            Op::Arrive { pick, stays } => {
                if self.network.is_empty() {
                    return;
                }
                let pick = pick % self.network.len();
                let append = if stays {
                    self.network[pick].clone()
                } else {
                    self.network.swap_remove(pick)
                };
                self.rig.deliver(SHARD, Message::Append(append));
            }
            Op::RaiseEpoch => self.epoch += 1,
            Op::Complete { pick } => {
                if !self.rig.pending.is_empty() && !self.rig.crashed {
                    let pick = pick % self.rig.pending.len();
                    self.rig.complete(pick);
                }
            }
            Op::Pass { ms } => {
                if !self.rig.crashed {
                    self.rig.pass_ms(ms);
                }
            }
            Op::Kill { outputs, torn } => self.rig.crash_after = Some((outputs, torn)),
            Op::PowerFailure { seed } => {
                if self.ack_disk {
                    self.listen();
                    let mut state = seed as u64 | 1;
                    self.rig.disk.power_failure(&mut |bound| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        (state >> 33) as usize % bound
                    });
                    self.rig.restart();
                }
            }
            Op::Restart => self.rig.restart(),
        }
        self.listen();
        if self.rig.crashed {
            self.rig.restart();
        }
    }

    fn append(&mut self, id: u64, from: From, ends: usize, certified: bool, close: bool) -> Append {
        let [segment, _] = &self.segments[id as usize - 1];
        let from = match from {
            From::Start => 0,
            From::Acknowledged => self.acknowledged.get(&(id, false)).copied().unwrap_or(0),
            From::Anywhere(end) => segment.ends[end % segment.ends.len()],
        };
        // Certificates stand at the ends of atomic appends; pieces of a copy end anywhere.
        let next = segment
            .ends
            .iter()
            .position(|&end| end > from || end == segment.len());
        let at = (next.expect("the last end qualifies") + ends).min(segment.ends.len() - 1);
        let to = if certified {
            segment.ends[at]
        } else {
            segment.ends[at].saturating_sub(3)
        };
        let to = to.max(from);
        self.stamp += 1;
        Append {
            certificate: certified.then(|| segment.certificate(to)),
            epoch: Epoch(self.epoch),
            close: close && certified && to == segment.len(),
            open: from == 0,
            sent_us: self.stamp,
            expiry_ceiling: ClusterMs(self.stamp),
            ..segment.append(from, to)
        }
    }

    /// A copy of a closed segment counts only when it is whole and closed: until then in pieces.
    fn compacted_append(&mut self, id: u64, from: From, ends: usize, whole: bool) -> Append {
        let [_, segment] = &self.segments[id as usize - 1];
        let acknowledged = self.acknowledged.get(&(id, true)).copied();
        let from = match from {
            From::Start => 0,
            From::Acknowledged => acknowledged.unwrap_or(0).min(segment.len()),
            From::Anywhere(end) => segment.ends[end % segment.ends.len()],
        };
        let to = match whole {
            true => segment.len(),
            false => segment.ends[ends % segment.ends.len()].max(from),
        };
        self.stamp += 1;
        self.compacted.insert(self.stamp);
        Append {
            certificate: whole.then(|| segment.certificate(to)),
            epoch: Epoch(self.epoch),
            close: whole,
            open: from == 0,
            sent_us: self.stamp,
            expiry_ceiling: ClusterMs(self.stamp),
            ..segment.append(from, to)
        }
    }

    /// Takes note of what the backup has said.
    fn listen(&mut self) {
        for (_, message) in self.rig.take_sent() {
            if let Message::Appended(ack) = message {
                self.note(ack);
            }
        }
    }

    fn note(&mut self, ack: Appended) {
        let said = &self.said[&ack.sent_us];
        let id = ack.segment.0;
        assert_eq!(said.segment, ack.segment);
        assert!(ack.epoch >= said.epoch);
        let compacted = self.compacted.contains(&ack.sent_us);
        self.acknowledged.insert((id, compacted), ack.length);
        let Some(certificate) = said.certificate else {
            return;
        };
        self.acks += 1;
        // As a shard does: an acknowledgement counts if it reaches what the append asked for.
        if ack.length < certificate.length {
            return;
        }
        let promised = self.promised.entry(id).or_default();
        if !compacted {
            promised.length = promised.length.max(certificate.length);
        }
        promised.epoch = promised.epoch.max(ack.epoch);
        promised.closed |= ack.closed;
    }

    /// The shard is dead: what it was promised must be found.
    fn check(&mut self) {
        self.rig.crash_after = None;
        // With what is under way still under way, or without.
        if self.stamp.is_multiple_of(2) {
            self.rig.settle();
            self.listen();
        }
        let before = self.acks;
        let inventory = self.rig.fence(FENCE);
        assert!(inventory.expiry_ceiling <= ClusterMs(self.stamp));
        for (&id, promised) in &self.promised {
            let [segment, shorter] = &self.segments[id as usize - 1];
            // Closed, it is whole, whichever of the two it is.
            let kept = inventory.replicas.iter().any(|replica| {
                replica.segment == SegmentId(id)
                    && !replica.is_bad()
                    && (replica.closed
                        || replica.certificate.length >= promised.length && !promised.closed)
                    && (replica.closed || replica.epoch >= promised.epoch)
            });
            // The newest epoch may have been promised for less than the longest length.
            let split = !promised.closed
                && inventory.replicas.iter().any(|replica| {
                    replica.segment == SegmentId(id)
                        && replica.certificate.length >= promised.length
                })
                && inventory.replicas.iter().any(|replica| {
                    replica.segment == SegmentId(id)
                        && !replica.is_bad()
                        && replica.epoch >= promised.epoch
                });
            assert!(kept || split, "{promised:?} of {id}: {inventory:?}");
            let whole = (inventory.replicas.iter())
                .filter(|replica| replica.segment == SegmentId(id) && replica.closed)
                .filter(|replica| !replica.is_bad());
            for replica in whole {
                let held = match replica.certificate == shorter.certificate(shorter.len()) {
                    true => shorter,
                    false => segment,
                };
                let all = [SlotRange::ALL];
                let entries = self.rig.fetch(id, replica.certificate, &all);
                assert_eq!(entries, Some(held.entries(held.len(), &all)));
            }
            // Up to anywhere, while it may be the head.
            let open = (!promised.closed).then_some([vec![SlotRange::ALL], vec![LOWER_HALF]]);
            for ranges in open.into_iter().flatten() {
                let entries = self
                    .rig
                    .fetch(id, segment.certificate(promised.length), &ranges);
                assert_eq!(entries, Some(segment.entries(promised.length, &ranges)));
            }
        }
        // A torn one may be listed as bad; that nothing promised is among them was checked above.
        for replica in inventory.replicas.iter().filter(|r| !r.is_bad()) {
            let both = &self.segments[replica.segment.0 as usize - 1];
            let length = replica.certificate.length;
            let is = |segment: &&Segment| {
                length <= segment.len() && replica.certificate == segment.certificate(length)
            };
            let segment = both.iter().find(is).expect("nobody certified that");
            assert!(segment.ends.contains(&length), "no certificate ended there");
            match &replica.digest {
                Some(digest) => assert_eq!(digest.len() as u64, replica.segment.0),
                None => assert!(
                    replica.closed,
                    "an open head's digest is what recovery goes by"
                ),
            }
            if replica.closed {
                assert_eq!(length, segment.len(), "closed short");
            }
        }
        // Whatever is still on its way finds the door shut, also after another crash.
        for restarted in [false, true] {
            for append in self.network.clone() {
                self.rig.deliver(SHARD, Message::Append(append));
            }
            self.rig.settle();
            self.listen();
            let fenced_by_disk = !restarted || !inventory.replicas.is_empty();
            assert!(
                self.acks == before || !fenced_by_disk,
                "a fenced epoch was acknowledged"
            );
            self.rig.restart();
        }
        let again = self.rig.fence(FENCE);
        // Of closed ones the digest is known only where they were read.
        let comparable = |inventory: &Inventory| {
            let replicas = inventory.replicas.iter().map(|replica| ReplicaState {
                digest: replica.digest.clone().filter(|_| !replica.closed),
                ..replica.clone()
            });
            replicas.collect::<Vec<_>>()
        };
        if !inventory.replicas.is_empty() {
            assert_eq!(comparable(&again), comparable(&inventory));
        }
    }
}

fn check(ack_disk: bool, ops: Vec<Op>) {
    let mut world = World::new(ack_disk);
    for op in ops {
        world.run(op);
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_promises_survive_kills(ops in vec(op(), 1..120)) {
        check(false, ops);
    }

    #[test]
    fn disk_promises_survive_power_failures(ops in vec(op(), 1..120)) {
        check(true, ops);
    }
}
