//! Keeps R replicas of every segment of the log that must have them (`docs/design-notes.md`,
//! "Replication").
//!
//! ```text
//! Log::goals --sync--> wanted --next_step--> Append --Appended--> held on all R --settle--> Log::set_durable
//! ```
//!
//! Everything is driven by comparing what is wanted with what was acknowledged, at every flush. The rules
//! R1 to R8 of the design notes are kept as follows, R9 by `stragglers` and `placement`.
//!
//! R1. `next_step` continues at what was acknowledged; the checksum of each replica grows with it.
//! R2. `wanted_of`: a head's bytes past its opening wait until the one before is `sealed` (closed on all
//!     R), and a head is closed only when its successor's opening is on all R. The opening itself waits
//!     for the opening of the one before: one that names a head that is nowhere would hold recovery for ever.
//! R3. `settle` goes through the open heads in order and stops at the first that is not closed.
//! R4. `lose` raises the epoch if the backup may believe the lost replica an open one that counts. Until
//!     the coordinator has recorded it `settle` does nothing, and the lost backup's last lease bounds ours.
//! R5. Replicas are freed only when the log says so, by `take_freed`.
//! R6. A segment with fewer than R replicas is not durable (`on_all`), so writers wait.
//! R7. The log may put a compacted segment's bytes in place of the old ones: its `rewrite` rises. It does so
//!     only with a segment that is sealed and whose next head is settled, when all that replaced what is
//!     left out is durable (`Segment::take_over` asserts the first two; the log answers for the third).
//!     So any one closed replica, of whichever bytes, is whole, and:
//!     - One that is closed stays and goes on counting, under the certificate it has. Nothing is sent
//!       to it any more, so that its length and checksum differ from the goal's is nobody's concern.
//!     - One that is not closed begins again at 0. Copies of sealed segments have no certificate before
//!       they are closed, so nothing is given up that counted: to R3, R4 and R6 it is what it was
//!       before, a replica that is not there yet. R2 and R4 speak of open heads, which it cannot be.
//!     - Acknowledgements of older bytes move nothing: what was in flight is forgotten, and stamps only
//!       rise. Older pieces that arrive late may spoil the copy; its certificate then does not fit, the
//!       backup says `Reopen`, and it begins again. An older close that arrives late leaves an
//!       older closed replica there, which is whole.
//!     - Nothing is told twice: `settle` reports a segment for the last time when it is sealed, with the length
//!       that it had then.
//!     - A backup that finds its closed replica bad (`Reopen`, `Broken`) is one replica lost: a copy of
//!       today's bytes takes its place, and the others stay.
//!     - A backup that returns with an older closed replica holds a whole one, which recovery may read. It
//!       counts here only if this backup is chosen for a copy: then the copy replaces it, or, if it is of the
//!       same bytes, it is claimed. Otherwise it is freed when the segment is (`refused`).
//! R8. Where Q of R acknowledge, `settle` counts what Q replicas of an *established* head hold (its opening was on all
//!     R), and a head is `sealed` when Q are closed. Stragglers go on as copies do; those that stay behind for too
//!     long are given up (`stragglers`). A lease and a ceiling are what the Q-th best of the replicas gave.
//!
//! Bounds: one append in flight per replica; copies of at most `COPIES_MAX` segments besides the heads under
//! way at once; appends are bounded by a segment's length.

mod appends;
mod goals;
mod stragglers;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{Dice, Level, Now, Outputs, ViewExt};
use holdfast_format::{ClusterMs, Epoch, LogId, Position, SegmentId, ServerId};
use holdfast_log::{Log, SegmentGoal, SegmentKind};
use holdfast_wire::{AppendRefused, Appended, ClusterConfig, Member, Message, Refusal, View};

use crate::frees::Frees;
use crate::placement::{Choice, choose};
use crate::replica::{Held, Replica};

use stragglers::Waits;

/// Segments besides the open heads that are copied at the same time: 8 × 3 pieces of 1 MiB keep a 10 Gbit/s
/// link busy and bound what the copies hold in send buffers.
const COPIES_MAX: usize = 8;

/// The first repetition of an unacknowledged append; doubles up to the maximum. A backup that is alive answers
/// in a millisecond or, when it syncs to disk, in some tens; a broken stream is told by `PeerLost`.
const RESEND_MIN_US: u64 = 150_000;
const RESEND_MAX_US: u64 = 1_000_000;

/// After `PeerLost` the append is repeated this much later, so that a refused connection does not spin.
const RECONNECT_US: u64 = 20_000;

/// How long a full or broken backup is not chosen again.
const AVOID_US: u64 = 5_000_000;

/// How long a replica that refused us as fenced is left alone. If we are dead, the next heartbeat says so.
const FENCED_PAUSE_US: u64 = 200_000;

/// `RaiseEpoch` is repeated so often until it is recorded.
const RAISE_REPEAT_US: u64 = 200_000;

/// The share of a lease that is not used, in percent: clocks may drift apart by so much (design §4).
const DRIFT_PERCENT: u64 = 5;

/// What shipping needs to know of the world.
pub(crate) struct Surroundings<'a> {
    pub view: &'a View,
    pub own: &'a Member,
    pub config: &'a ClusterConfig,
    /// No answer is judged by a later expiry clock than this one, until a later one is acknowledged.
    pub ceiling: ClusterMs,
}

/// What the replicas of the open heads allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    /// Answers may be released before this.
    pub lease_until_us: u64,
    /// Every one of them remembers at least this expiry ceiling.
    pub ceiling: ClusterMs,
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub appends: u64,
    pub append_bytes: u64,
    pub resends: u64,
    pub replicas_lost: u64,
    /// Copies under way when compaction took their bytes away (R7).
    pub copies_begun_again: u64,
    pub epochs_raised: u64,
    /// Replicas given up because their backup was behind, or slow.
    pub stragglers_replaced: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Raise {
    Settled,
    /// Not all replicas of the open heads carry the new epoch yet.
    Telling,
    /// They do; the coordinator is asked to record it.
    Recording {
        due_us: u64,
    },
}

#[derive(Debug)]
struct Segment {
    goal: SegmentGoal,
    replicas: Vec<Replica>,
    /// Backups that were given up alive and may hold something of it.
    former: Vec<ServerId>,
    /// It was closed on Q replicas once; from then on it counts only closed.
    sealed: bool,
    /// Its opening was on all R replicas once: its backups may be asked for the end of the log.
    established: bool,
    /// It lost a replica, or found no place for one, and is not whole again.
    short: bool,
    reported: u32,
}

/// The replicas of one log.
#[derive(Debug)]
pub(crate) struct Replicas {
    log: LogId,
    /// Of copies.
    piece_bytes: u32,
    /// `None` until the coordinator has told how many replicas there are to be.
    wanted: Option<usize>,
    /// So many of them acknowledge (R8).
    quorum: usize,
    lease_ms: u32,
    epoch: Epoch,
    raise: Raise,
    /// While an epoch is being raised: the end of the lease that a lost replica's backup granted last.
    orphan_lease_until_us: Option<u64>,
    segments: BTreeMap<SegmentId, Segment>,
    /// Heads not yet closed on Q, oldest first.
    open_heads: Vec<SegmentId>,
    /// Segments that are not closed on all R; contains `open_heads`.
    busy: BTreeSet<SegmentId>,
    /// No goals any more, and not yet freed.
    retired: BTreeMap<SegmentId, Vec<ServerId>>,
    frees: Frees,
    seen_change: Option<u64>,
    durable: Position,
    avoided: BTreeMap<ServerId, u64>,
    load: BTreeMap<ServerId, u32>,
    last_stamp_us: u64,
    due_us: Option<u64>,
    dice: Dice,
    waits: Waits,
    counts: Counts,
}

impl Replicas {
    pub fn new(log: LogId, piece_bytes: u32, seed: u64) -> Replicas {
        Replicas {
            log,
            piece_bytes,
            wanted: None,
            quorum: 0,
            lease_ms: 0,
            epoch: Epoch(1),
            raise: Raise::Settled,
            orphan_lease_until_us: None,
            segments: BTreeMap::new(),
            open_heads: Vec::new(),
            busy: BTreeSet::new(),
            retired: BTreeMap::new(),
            frees: Frees::default(),
            seen_change: None,
            durable: Position::default(),
            avoided: BTreeMap::new(),
            load: BTreeMap::new(),
            last_stamp_us: 0,
            due_us: None,
            dice: Dice::new(seed),
            waits: Waits::default(),
            counts: Counts::default(),
        }
    }

    /// Brings what is closer to what should be: takes over the log's goals, tells the log what is
    /// durable, places missing replicas and sends each what it needs next.
    pub fn ship(&mut self, now: Now, around: &Surroundings<'_>, log: &mut Log, out: &mut Outputs) {
        let wanted = usize::from(around.config.replicas);
        self.wanted = Some(wanted);
        self.quorum = usize::from(around.config.ack_quorum);
        assert!(self.quorum <= wanted && (self.quorum > 0 || wanted == 0));
        self.lease_ms = around.config.lease_ms;
        self.advance(log);
        self.retire(now, log);
        if wanted == 0 {
            return;
        }
        self.avoided.retain(|_, until_us| now.mono_us < *until_us);
        self.give_up_stragglers(now, around, out);
        // Heads first, oldest first: everything that waits, waits for them. Then what was begun, whatever came to stand
        // before it since: nobody else sends it again.
        let copies = (self.busy.iter())
            .filter(|id| !self.open_heads.contains(id) && !log.is_held_back(**id));
        let is_begun = |id: &SegmentId| {
            let replicas = &self.segments[id].replicas;
            replicas.iter().any(|it| it.in_flight.is_some())
        };
        let (begun, others): (Vec<SegmentId>, Vec<_>) = copies.copied().partition(is_begun);
        let more = COPIES_MAX.saturating_sub(begun.len());
        let ids: Vec<SegmentId> = (self.open_heads.iter().copied())
            .chain(begun)
            .chain(others.into_iter().take(more))
            .collect();
        for id in ids {
            self.place(now, id, around);
            self.send(now, id, around, log, out);
        }
        self.tell_coordinator(now, out);
        self.frees.send(now, self.log, out);
        self.due_us = self.next_due();
    }

    /// Everything up to here is durable (R3).
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// What may be answered, and by which expiry clock.
    pub fn standing(&self) -> Standing {
        let Some(wanted) = self.wanted else {
            return Standing::default();
        };
        if wanted == 0 {
            return Standing {
                lease_until_us: u64::MAX,
                ceiling: ClusterMs(u64::MAX),
            };
        }
        if self.open_heads.is_empty() {
            return Standing::default();
        }
        let mut standing = Standing {
            lease_until_us: self.orphan_lease_until_us.unwrap_or(u64::MAX),
            ceiling: ClusterMs(u64::MAX),
        };
        for (at, id) in self.open_heads.iter().enumerate() {
            let segment = &self.segments[id];
            // Recovery could end the log at any head that was opened everywhere; a later one it can
            // only find together with an open one before it.
            if at > 0 && !segment.established {
                break;
            }
            if segment.replicas.len() < wanted || !segment.established {
                return Standing {
                    lease_until_us: 0,
                    ..standing
                };
            }
            // Recovery asks as many as leave out fewer than Q (R8). A closed replica is never taken for the end of the log.
            let of = |given: fn(&Replica) -> u64| {
                let replicas = segment.replicas.iter();
                let given = replicas.map(|it| if it.held.closed { u64::MAX } else { given(it) });
                best(self.quorum, given)
            };
            let lease_until_us = of(|replica| replica.lease_until_us);
            let ceiling = ClusterMs(of(|replica| replica.ceiling.0));
            standing.lease_until_us = standing.lease_until_us.min(lease_until_us);
            standing.ceiling = standing.ceiling.min(ceiling);
        }
        standing
    }

    /// A backup has acknowledged an append. Late and doubled ones are ignored.
    pub fn appended(&mut self, now: Now, from: ServerId, ack: &Appended) {
        if ack.log != self.log || ack.epoch > self.epoch {
            return;
        }
        let of_open_head = self.open_heads.contains(&ack.segment);
        let Some(replica) = self.replica_mut(ack.segment, from) else {
            return;
        };
        let Some(in_flight) = replica.in_flight else {
            return;
        };
        let piece = in_flight.piece;
        let ours = (in_flight.first_stamp_us..=in_flight.last_stamp_us).contains(&ack.sent_us);
        // A backup may hold more than this append says if it got one that we gave up waiting for.
        if !ours || ack.length < piece.to || (piece.close && !ack.closed) {
            return;
        }
        let waited_us = replica.waits_us(now).expect("it is in flight");
        replica.in_flight = None;
        replica.held = Held {
            opened: true,
            length: piece.to,
            checksum: in_flight.checksum,
            certified: replica.held.certified || piece.certify,
            closed: piece.close,
            epoch: ack.epoch,
        };
        let lease_us = u64::from(ack.lease_ms) * 1_000 * (100 - DRIFT_PERCENT) / 100;
        // A lease and a ceiling of one and the same attempt: a lease without the ceiling that was sent with it would have
        // answers judged by a clock that stands still.
        let (sent_us, ceiling) = match ack.sent_us == in_flight.last_stamp_us {
            true => (in_flight.last_stamp_us, in_flight.last_ceiling),
            false => (in_flight.first_stamp_us, in_flight.first_ceiling),
        };
        replica.ceiling = replica.ceiling.max(ceiling);
        replica.lease_until_us = replica.lease_until_us.max(sent_us + lease_us);
        replica.lease_sent_us = replica.lease_sent_us.max(sent_us);
        if of_open_head {
            self.waits.add(from, waited_us);
        }
    }

    /// A backup has refused an append.
    pub fn refused(
        &mut self,
        now: Now,
        from: ServerId,
        refused: &AppendRefused,
        out: &mut Outputs,
    ) {
        if refused.log != self.log {
            return;
        }
        let epoch = self.epoch;
        if !self.segments.contains_key(&refused.segment) {
            // A backup that came back still holds a replica that nothing names any more. Ids are never
            // used again, so this cannot hurt a newer one.
            let segments = vec![refused.segment];
            out.send(
                from,
                Message::Free {
                    log: self.log,
                    segments,
                },
            );
            return;
        }
        let Some(replica) = self.replica_mut(refused.segment, from) else {
            return;
        };
        let Some(in_flight) = replica.in_flight else {
            // Not an answer: the backup has found the replica that we count on to be bad.
            if let Refusal::Reopen { length: 0 } | Refusal::Broken = refused.why {
                let text = format!(
                    "{from} has found its replica of {} to be bad: making it again",
                    refused.segment
                );
                out.event(Level::Warn, text);
                self.lose(refused.segment, from, out);
                if refused.why != Refusal::Broken {
                    self.adopt(refused.segment, from);
                }
            }
            return;
        };
        match refused.why {
            // An answer to something that we have overtaken ourselves.
            Refusal::Fenced { epoch: promised } if promised <= epoch => {}
            Refusal::Fenced { .. } => {
                replica.pause_until_us = now.mono_us + FENCED_PAUSE_US;
                replica.lease_until_us = 0;
            }
            // It would fit: the refusal was meant for an earlier append.
            Refusal::Reopen { length } if length == in_flight.piece.from => {}
            Refusal::Reopen { .. } if in_flight.piece.open => {}
            Refusal::Reopen { length } => {
                let text = format!(
                    "{from} has {length} bytes of {} and should have {}: copying it again",
                    refused.segment, in_flight.piece.from
                );
                out.event(Level::Warn, text);
                self.lose(refused.segment, from, out);
                self.adopt(refused.segment, from);
            }
            Refusal::Full | Refusal::Broken => {
                let text = match refused.why {
                    Refusal::Full => format!("{from} has no room for {}", refused.segment),
                    _ => format!("{from} failed to store {}", refused.segment),
                };
                out.event(Level::Warn, text);
                self.avoided.insert(from, now.mono_us + AVOID_US);
                self.lose(refused.segment, from, out);
                if let Some(segment) = self.segments.get_mut(&refused.segment)
                    && !segment.former.contains(&from)
                {
                    segment.former.push(from);
                }
            }
        }
    }

    /// The stream to a backup broke: what was under way is repeated soon.
    pub fn peer_lost(&mut self, now: Now, peer: ServerId) {
        for id in &self.busy {
            let segment = self.segments.get_mut(id).expect("busy segments are known");
            for replica in &mut segment.replicas {
                if let (true, Some(in_flight)) = (replica.backup == peer, &mut replica.in_flight) {
                    in_flight.resend_at_us = in_flight.resend_at_us.min(now.mono_us + RECONNECT_US);
                }
            }
        }
        self.due_us = self.next_due();
    }

    /// Gives up the replicas on backups that the view no longer lists.
    pub fn view_changed(&mut self, view: &View, out: &mut Outputs) {
        let lost: Vec<(SegmentId, ServerId)> = (self.segments.iter())
            .flat_map(|(id, segment)| segment.replicas.iter().map(|replica| (*id, replica.backup)))
            .filter(|(_, backup)| !view.is_up(*backup))
            .collect();
        for (id, backup) in lost {
            self.lose(id, backup, out);
        }
        self.load.retain(|backup, _| view.is_up(*backup));
    }

    /// The coordinator has recorded an epoch (R4).
    pub fn epoch_recorded(&mut self, log: LogId, epoch: Epoch) {
        let recording = matches!(self.raise, Raise::Recording { .. });
        if log == self.log && epoch == self.epoch && recording {
            self.raise = Raise::Settled;
            self.orphan_lease_until_us = None;
        }
    }

    /// Bytes of open heads that are not durable, as of the last `ship`.
    pub fn unreplicated_bytes(&self) -> u64 {
        (self.open_heads.iter())
            .map(|id| &self.segments[id])
            .map(|segment| u64::from(segment.goal.length - segment.reported))
            .sum()
    }

    /// Memory of the appends under way. Replicas that are at the same point share the bytes.
    pub fn in_flight_bytes(&self) -> u64 {
        let of = |segment: &Segment| {
            let mut pieces: Vec<(u32, u32)> = (segment.replicas.iter())
                .filter_map(|replica| replica.in_flight)
                .map(|in_flight| (in_flight.piece.from, in_flight.piece.to))
                .collect();
            pieces.sort_unstable();
            pieces.dedup();
            let bytes = pieces.iter().map(|(from, to)| u64::from(to - from));
            bytes.sum::<u64>()
        };
        self.busy.iter().map(|id| of(&self.segments[id])).sum()
    }

    /// Segments that have fewer than R replicas and had them, or found no place for them.
    pub fn under_replicated(&self) -> usize {
        (self.busy.iter())
            .filter(|id| self.segments[id].short)
            .count()
    }

    /// The log's epoch, and whether the coordinator has recorded it.
    pub fn epoch(&self) -> (Epoch, bool) {
        (self.epoch, self.raise == Raise::Settled)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// When `ship` has something to do even if nothing happens, in `Now::mono_us`.
    pub fn wakeup(&self) -> Option<u64> {
        self.due_us
    }

    // ---- where replicas are ----

    fn place(&mut self, now: Now, id: SegmentId, around: &Surroundings<'_>) {
        let wanted = self.wanted.expect("set before anything is shipped");
        if self.segments[&id].replicas.len() >= wanted {
            return;
        }
        let shunned = self.shunned(now, around);
        let segment = self.segments.get_mut(&id).expect("busy segments are known");
        while segment.replicas.len() < wanted {
            let holders: Vec<ServerId> = segment
                .replicas
                .iter()
                .map(|replica| replica.backup)
                .collect();
            let choice = Choice {
                view: around.view,
                own: around.own,
                holders: &holders,
                avoided: &self.avoided,
                shunned: &shunned,
                load: &self.load,
            };
            let Some(backup) = choose(&choice, &mut self.dice) else {
                segment.short = true;
                return;
            };
            *self.load.entry(backup).or_default() += 1;
            segment.replicas.push(Replica::new(backup));
        }
    }

    /// Puts a fresh replica where one was lost that the same backup can make again.
    fn adopt(&mut self, id: SegmentId, backup: ServerId) {
        if let Some(segment) = self.segments.get_mut(&id) {
            *self.load.entry(backup).or_default() += 1;
            segment.replicas.push(Replica::new(backup));
        }
    }

    /// Gives up one replica (R4).
    fn lose(&mut self, id: SegmentId, backup: ServerId, out: &mut Outputs) {
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        let Some(at) = segment
            .replicas
            .iter()
            .position(|replica| replica.backup == backup)
        else {
            return;
        };
        let lost = segment.replicas.remove(at);
        segment.short = true;
        self.busy.insert(id);
        self.counts.replicas_lost += 1;
        if let Some(load) = self.load.get_mut(&backup) {
            *load -= 1;
        }
        // What Q have closed, fewer than R - Q + 1 can show open: it is no end of the log, whatever becomes of them.
        if !lost.may_count_open || segment.sealed {
            return;
        }
        self.epoch = Epoch(self.epoch.0 + 1);
        self.raise = Raise::Telling;
        self.counts.epochs_raised += 1;
        let bound_us = self.orphan_lease_until_us.unwrap_or(u64::MAX);
        self.orphan_lease_until_us = Some(bound_us.min(lost.lease_until_us));
        let text = format!(
            "lost an open replica of {id} on {backup}: raising epoch to {}",
            self.epoch
        );
        out.event(Level::Warn, text);
    }

    /// Once every replica that could be taken for the end of the log carries the new epoch, the
    /// coordinator may exclude the older ones (R4).
    fn tell_coordinator(&mut self, now: Now, out: &mut Outputs) {
        let wanted = self.wanted.expect("set before anything is shipped");
        if self.raise == Raise::Telling {
            let epoch = self.epoch;
            let told = (self.open_heads.iter())
                .map(|id| &self.segments[id])
                .enumerate()
                .all(|(at, head)| {
                    let begun = head.replicas.iter().any(|replica| replica.may_count_open);
                    (at > 0 && !begun)
                        || head.on_all(wanted, |held| {
                            held.closed || (held.certified && held.epoch == epoch)
                        })
                });
            if told {
                // What was made again is whole, and nothing was acknowledged since it was lost: of the new R, as of
                // the old, Q have all that was.
                let has_all = |id| {
                    let head: &Segment = &self.segments[id];
                    head.acknowledged(self.quorum) >= head.reported
                };
                assert!(self.open_heads.iter().all(has_all), "R4 with R8");
                self.raise = Raise::Recording {
                    due_us: now.mono_us,
                };
            }
        }
        if let Raise::Recording { due_us } = &mut self.raise
            && *due_us <= now.mono_us
        {
            *due_us = now.mono_us + RAISE_REPEAT_US;
            let message = Message::RaiseEpoch {
                log: self.log,
                epoch: self.epoch,
            };
            out.send(ServerId::COORDINATOR, message);
        }
    }

    fn replica_mut(&mut self, id: SegmentId, backup: ServerId) -> Option<&mut Replica> {
        let segment = self.segments.get_mut(&id)?;
        segment
            .replicas
            .iter_mut()
            .find(|replica| replica.backup == backup)
    }
}

impl Segment {
    /// Takes over what the log wants of it by now. Returns how many copies begin again (R7).
    fn take_over(&mut self, goal: SegmentGoal) -> u64 {
        let mut begun_again = 0;
        if goal.rewrite == self.goal.rewrite {
            let grown = self.goal.length <= goal.length;
            assert!(grown, "{}: bytes go only by a rewrite", goal.id);
        } else {
            let risen = self.goal.rewrite < goal.rewrite;
            assert!(risen && goal.closed && self.sealed, "R7: {}", goal.id);
            // A straggler's certificate counts for nothing any more (R8).
            for replica in self.replicas.iter_mut().filter(|it| !it.held.closed) {
                begun_again += u64::from(replica.begin_again());
            }
        }
        self.goal = goal;
        begun_again
    }

    /// Notes that all R replicas have its opening, if it is a head and they do.
    fn establish(&mut self, wanted: usize) {
        if let SegmentKind::Head { opening, .. } = self.goal.kind {
            self.established |=
                self.on_all(wanted, |held| held.certified && held.length >= opening);
        }
    }

    /// What Q of the R replicas hold of a head (R8). Nothing before its opening is on all R: recovery could not tell a
    /// lost head from one that never was.
    fn acknowledged(&self, quorum: usize) -> u32 {
        if !self.established {
            return 0;
        }
        let counted = |replica: &Replica| match replica.held.certified {
            true => u64::from(replica.held.length),
            false => 0,
        };
        let length = best(quorum, self.replicas.iter().map(counted));
        u32::try_from(length).expect("it is the length of one of them")
    }

    /// True if the segment is complete and closed on so many.
    fn is_closed_on(&self, count: usize) -> bool {
        let closed = self.replicas.iter().filter(|it| it.held.closed).count();
        self.goal.closed && closed >= count
    }

    /// True if there are R replicas and `what` holds for each.
    fn on_all(&self, wanted: usize, what: impl Fn(&Held) -> bool) -> bool {
        self.replicas.len() >= wanted && self.replicas.iter().all(|replica| what(&replica.held))
    }
}

/// The `nth` greatest, counted from 1; 0 if there are fewer. (Without a place to sort them in: every flush asks, and there
/// are at most 8.)
fn best(nth: usize, of: impl Iterator<Item = u64> + Clone) -> u64 {
    let reached = |value: &u64| of.clone().filter(|other| other >= value).count() >= nth;
    of.clone().filter(reached).max().unwrap_or(0)
}
