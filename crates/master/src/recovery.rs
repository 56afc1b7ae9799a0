//! This shard as a recovery master: takes over ranges of a dead shard's log.
//!
//! ```text
//! Recover -> Fetching -> Committing -> Replayed (leaning) -> Committed --on record--> (gone)
//!                \-> failed: aborted, told, and told again whenever asked
//! ```
//!
//! V1. Nothing of the ranges is served before the view names this shard, what the old owner may still answer has
//!     run out, and they are committed: replicated, and named by a durable digest. If the coordinator allows it
//!     (`Recover::first`), what is replayed may be served sooner, when only the entries of the first segments
//!     are committed, which may be on fewer backups than they should: all others *lean* on the dead log's
//!     replicas, which are kept for them (design notes, "Lineage").
//! V2. A recovery that ends in any other way leaves nothing in the log (`replay_abort`): another shard's
//!     newer state must not find our older one if the ranges come back some day. Once its entries are
//!     becoming part of the log they cannot be taken out; the coordinator never gives the ranges of a
//!     living recovery master to another, but if it is seen to, this shard has to stop.
//! V3. A segment that cannot be had from one holder is had from another; only when none of them gives it,
//!     round after round, has the recovery failed. Holders may have different bytes (one made its replica
//!     after a compaction), each enough by itself: each is asked for what it has, by its certificate, and
//!     parts of two replicas are never put together. What was replayed of the first does no harm: it is
//!     all of this log.
//! V4. While anything leans, no tombstone of this log ends (`Log::pin`): the dead log's replicas may hold what it
//!     hides, and both logs would be read if this shard died. That is over when the coordinator has recorded
//!     that we lean no more, not when we know it.
//!
//! Bounds: `RECOVERIES_MAX` at once (`LEANING_MAX` with those that are served and lean), `FETCHES_MAX` segments and
//! about `WINDOW_BYTES` in flight for each, about `REPLAY_STEP_BYTES` replayed per step.

mod fetching;

use std::collections::{BTreeMap, VecDeque};

use holdfast_cluster::{Level, Now, Outputs, ViewExt};
use holdfast_format::{ClusterMs, LogId, SegmentId, ServerId, Slot, SlotRange};
use holdfast_log::{Log, ReplayError, ReplayId};
use holdfast_wire::{
    Certificate, Fetch, FetchPart, Message, Recover, RecoverSegment, RecoveryFailure,
    ReplayTimings, View,
};

use fetching::{Fetching, Source, sources, timeout_us};

/// Recoveries under way at once. More are taken up when one has ended; the coordinator repeats itself.
const RECOVERIES_MAX: usize = 8;

/// The same with those whose ranges are served and lean. The coordinator waits with more.
const LEANING_MAX: usize = 64;

/// Segments of one recovery in flight. So many that every backup has several to work on: one is read and
/// verified while the entries of another are on their way and those of a third are replayed.
const FETCHES_MAX: usize = 16;

/// Bytes that the segments in flight may bring together, judged by what those before them brought: they wait in
/// memory until they are replayed.
const WINDOW_BYTES: u64 = 32 << 20;

/// So many rounds over all holders, with pauses between them that double from here, then the segment is
/// missing and the coordinator looks again at who holds what.
const ROUNDS_MAX: u32 = 4;
const ROUND_PAUSE_US: u64 = 100_000;

/// Reports are repeated so often.
const REPORT_US: u64 = 100_000;
const PROGRESS_US: u64 = 250_000;

/// Bytes replayed in one step, about a millisecond's work; a part that is larger is replayed alone.
const REPLAY_STEP_BYTES: usize = 512 << 10;

/// Failures remembered, to be told again; the oldest attempts go first.
const FAILURES_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fetching,
    Committing,
    /// What must be durable first is; the rest may lean.
    Replayed,
    Committed,
}

#[derive(Debug)]
struct Recovery {
    attempt: u64,
    recover: Recover,
    /// Names our fetches, whatever the attempt's number: two recoveries may read the same segment for
    /// different ranges.
    fetch_id: u64,
    replay: ReplayId,
    /// Of the segments that must be durable first, if the rest may lean.
    first: Option<ReplayId>,
    stage: Stage,
    /// The view has named us.
    taken_over: bool,
    /// The coordinator has recorded that we lean no more.
    recorded: bool,
    waiting: VecDeque<Source>,
    fetching: Vec<Fetching>,
    entries: u64,
    bytes: u64,
    /// Of replicas of which everything has been replayed.
    done_bytes: u64,
    timings: ReplayTimings,
    started_us: u64,
    serve_after_us: u64,
    report_due_us: u64,
}

/// Why a recovery stops before it is committed.
enum Stop {
    Failed(RecoveryFailure),
    Superseded(&'static str),
}

/// Ranges that this shard has made part of its log were given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was recovered of {log} has been given to another shard")]
pub(crate) struct Lost {
    log: LogId,
}

/// All recoveries of this shard, and the ranges that must wait for an old lease to run out.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    running: BTreeMap<(LogId, u64), Recovery>,
    failures: BTreeMap<(LogId, u64), RecoveryFailure>,
    last_fetch_id: u64,
    leased: Vec<(SlotRange, u64)>,
    expiry_floor: ClusterMs,
    done: u64,
    entries: u64,
    bytes: u64,
}

impl Recoveries {
    /// The coordinator asks for a recovery, perhaps not for the first time.
    pub fn recover(
        &mut self,
        now: Now,
        recover: Recover,
        view: &View,
        log: &mut Log,
        out: &mut Outputs,
    ) {
        let id = (recover.log, recover.attempt);
        if let Some(reason) = self.failures.get(&id) {
            out.send(ServerId::COORDINATOR, failed(id, *reason));
            return;
        }
        if self.running.contains_key(&id) || recover.log == log.id() {
            return;
        }
        // A late duplicate of something that is over, or a view that we have not seen yet; in the
        // second case the coordinator will ask again.
        let still_dead = |range: &SlotRange| {
            covering(view, *range).all(|owner| owner.is_some_and(|owner| owner == recover.log))
        };
        if recover.ranges.is_empty() || !recover.ranges.iter().all(still_dead) {
            return;
        }
        let older: Vec<(LogId, u64)> = (self.running.iter())
            .filter(|((log, _), running)| {
                *log == recover.log && overlap(&running.recover.ranges, &recover.ranges)
            })
            .map(|(id, _)| *id)
            .collect();
        if older.iter().any(|(_, attempt)| *attempt > recover.attempt) {
            return;
        }
        for older in older {
            let running = &self.running[&older];
            // The same ranges of the same sealed log: what is done so far is as good for this attempt.
            if running.recover.ranges == recover.ranges {
                let mut running = self.running.remove(&older).expect("listed from there");
                self.expiry_floor = self.expiry_floor.max(recover.expiry_floor);
                running.renew(now, recover);
                self.running.insert(id, running);
                return;
            }
            if running.stage != Stage::Fetching {
                // V2. What is done will be reported, and that decides.
                return;
            }
            self.stop(
                older,
                Stop::Superseded("a newer attempt cuts the ranges anew"),
                log,
                out,
            );
        }
        let replaying = self.running.values().filter(|it| !it.taken_over).count();
        if replaying >= RECOVERIES_MAX || self.running.len() >= LEANING_MAX {
            return;
        }
        let sources = sources(&recover);
        let text = format!(
            "recovering {} segments of {} (attempt {})",
            sources.len(),
            recover.log,
            recover.attempt
        );
        out.event(Level::Info, text);
        // From now on, whatever comes of it: the clock of the ranges' new owner starts no earlier.
        self.expiry_floor = self.expiry_floor.max(recover.expiry_floor);
        self.last_fetch_id += 1;
        let recovery = Recovery {
            attempt: recover.attempt,
            fetch_id: self.last_fetch_id,
            // What may lean can wait until all is replayed: making replicas takes the processor, too.
            replay: match recover.first {
                Some(_) => log.replay_begin_held_back(),
                None => log.replay_begin(),
            },
            first: recover.first.as_ref().map(|_| log.replay_begin()),
            stage: Stage::Fetching,
            taken_over: false,
            recorded: false,
            waiting: sources,
            fetching: Vec::new(),
            entries: 0,
            bytes: 0,
            done_bytes: 0,
            timings: ReplayTimings::default(),
            started_us: now.mono_us,
            serve_after_us: now.mono_us + u64::from(recover.lease_remaining_ms) * 1_000,
            report_due_us: now.mono_us + PROGRESS_US,
            recover,
        };
        self.running.insert(id, recovery);
    }

    /// Entries have come.
    pub fn part(&mut self, now: Now, from: ServerId, part: FetchPart) {
        let Some(recovery) = self.fetching_as(part.attempt) else {
            return;
        };
        let timings = &mut recovery.timings;
        let elapsed_ms = ms_since(recovery.started_us, now);
        let Some(fetching) = recovery
            .fetching
            .iter_mut()
            .find(|it| it.is_of(part.log, part.segment) && it.asks(from, part.certificate))
        else {
            return;
        };
        if fetching.received_all || part.part < fetching.next_part {
            return;
        }
        if part.part > fetching.next_part {
            // One is missing: from the start, and at once.
            fetching.due_us = now.mono_us;
            return;
        }
        if timings.first_byte_ms == 0 {
            timings.first_byte_ms = elapsed_ms.max(1);
        }
        fetching.next_part += 1;
        fetching.received_all = part.last;
        fetching.parts.push_back(part.entries);
        fetching.due_us = now.mono_us + timeout_us(fetching.round);
    }

    /// A holder cannot serve a segment.
    pub fn fetch_failed(
        &mut self,
        now: Now,
        from: ServerId,
        (log, fetch_id): (LogId, u64),
        segment: SegmentId,
        certificate: Certificate,
    ) {
        let Some(recovery) = self.fetching_as(fetch_id) else {
            return;
        };
        for fetching in &mut recovery.fetching {
            let asked = fetching.asks(from, certificate);
            let waits = asked && !fetching.received_all && !fetching.resting;
            if fetching.is_of(log, segment) && waits {
                fetching.due_us = now.mono_us;
            }
        }
    }

    /// The coordinator has recorded that what was recovered depends on the dead log no more (V4).
    pub fn recorded(&mut self, log: LogId, attempt: u64) {
        if let Some(recovery) = self.running.get_mut(&(log, attempt)) {
            // It answers `Recovered`, which nobody says before.
            recovery.recorded |= recovery.stage == Stage::Committed;
        }
    }

    fn fetching_as(&mut self, fetch_id: u64) -> Option<&mut Recovery> {
        (self.running.values_mut()).find(|recovery| recovery.fetch_id == fetch_id)
    }

    /// The stream to a backup broke; whatever it was sending is asked of the next holder.
    pub fn peer_lost(&mut self, now: Now, peer: ServerId) {
        for recovery in self.running.values_mut() {
            for fetching in &mut recovery.fetching {
                let asked = fetching.source().backup == peer;
                if asked && !fetching.received_all && !fetching.resting {
                    fetching.due_us = now.mono_us;
                }
            }
        }
    }

    /// Memory of entries that were fetched and not replayed yet.
    pub fn held_bytes(&self) -> u64 {
        let fetching = self.running.values().flat_map(|it| &it.fetching);
        let parts = fetching.flat_map(|it| &it.parts);
        parts.map(|part| part.len() as u64).sum()
    }

    /// Ends what the view says is over, one way or the other (V1, V2).
    fn conclude(&mut self, view: &View, log: &mut Log, out: &mut Outputs) -> Result<(), Lost> {
        let ids: Vec<(LogId, u64)> = self.running.keys().copied().collect();
        let own = log.id();
        for id in ids {
            let recovery = self.running.get_mut(&id).expect("listed from there");
            let ranges = &recovery.recover.ranges;
            let owners = || ranges.iter().flat_map(|range| covering(view, *range));
            if recovery.may_own() && owners().all(|owner| owner == Some(own)) {
                if !std::mem::replace(&mut recovery.taken_over, true) {
                    let until_us = recovery.serve_after_us;
                    self.leased
                        .extend(ranges.iter().map(|range| (*range, until_us)));
                    self.done += 1;
                    self.entries += recovery.entries;
                    self.bytes += recovery.bytes;
                    let text = format!(
                        "took over {} entries of {} ({} ranges)",
                        recovery.entries,
                        id.0,
                        ranges.len()
                    );
                    out.event(Level::Info, text);
                }
                if recovery.first.is_none() || recovery.recorded {
                    self.running.remove(&id);
                }
            } else if owners().any(|owner| owner.is_some_and(|o| o != id.0 && o != own)) {
                if recovery.stage != Stage::Fetching {
                    return Err(Lost { log: id.0 });
                }
                self.stop(
                    id,
                    Stop::Superseded("another shard has taken the ranges over"),
                    log,
                    out,
                );
            }
        }
        Ok(())
    }

    /// Does a bounded piece of work for each recovery; true if there is more to do at once. An error means
    /// that this shard must not go on.
    pub fn work(
        &mut self,
        now: Now,
        clock: ClusterMs,
        view: &View,
        log: &mut Log,
        out: &mut Outputs,
    ) -> Result<bool, Lost> {
        self.leased.retain(|(_, until_us)| now.mono_us < *until_us);
        log.pin(self.leans());
        let ids: Vec<(LogId, u64)> = self.running.keys().copied().collect();
        let mut more = false;
        for id in ids {
            let recovery = self.running.get_mut(&id).expect("listed from there");
            match recovery.work(now, clock.max(self.expiry_floor), view, log, out) {
                Ok(again) => more |= again,
                Err(stop) => self.stop(id, stop, log, out),
            }
        }
        self.conclude(view, log, out)?;
        log.pin(self.leans());
        Ok(more)
    }

    /// True if nothing is known of this slot yet: it is not recovered.
    pub fn withholds(&self, slot: Slot) -> bool {
        let contains = |range: &SlotRange| range.contains(slot);
        let lacks = |it: &Recovery| !it.taken_over && it.recover.ranges.iter().any(contains);
        self.running.values().any(lacks)
    }

    /// Until when the former owner may still answer for this slot, if it may (V1).
    pub fn old_lease_until_us(&self, now: Now, slot: Slot) -> Option<u64> {
        let runs =
            |(range, until_us): &&(SlotRange, u64)| now.mono_us < *until_us && range.contains(slot);
        let leased = self.leased.iter().filter(runs);
        leased.map(|(_, until_us)| *until_us).max()
    }

    /// True if everything is known of every slot that is recovered, and no former owner answers for any.
    pub fn is_quiet(&self, now: Now) -> bool {
        let lacks = |it: &Recovery| !it.taken_over;
        let runs = |(_, until_us): &(SlotRange, u64)| now.mono_us < *until_us;
        !self.running.values().any(lacks) && !self.leased.iter().any(runs)
    }

    /// True if nothing may be said about all that this shard owns: nothing is known of a slot of
    /// these ranges, a former owner may still answer for one, or others may have seen a view that gives it more. A view names a recovery master
    /// once it has committed, and may reach clients long before it comes here.
    pub fn withholds_any(&self, now: Now, owned: &[SlotRange]) -> bool {
        let more = |running: &Recovery| {
            let may_own = running.may_own() || overlap(&running.recover.ranges, owned);
            may_own && !running.taken_over
        };
        let leased = |(_, until_us): &(SlotRange, u64)| now.mono_us < *until_us;
        self.leased.iter().any(leased) || self.running.values().any(more)
    }

    /// Answers of former owners were judged by expiry clocks up to this one.
    pub fn expiry_floor(&self) -> ClusterMs {
        self.expiry_floor
    }

    /// Recoveries under way, those that are served and lean among them.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Recoveries that are served and lean on a dead log, and their bytes that are not on all replicas yet.
    pub fn leaning(&self, log: &Log) -> (usize, u64) {
        let leaning = || self.running.values().filter(|it| it.taken_over);
        let left = leaning().map(|it| log.replay_left(it.replay));
        (leaning().count(), left.sum())
    }

    /// V4. From the beginning: what is replayed may lean in the end.
    fn leans(&self) -> bool {
        self.running.values().any(|it| it.first.is_some())
    }

    /// Recoveries finished, entries and bytes replayed since start.
    pub fn totals(&self) -> (u64, u64, u64) {
        (self.done, self.entries, self.bytes)
    }

    /// When `work` has something to do even if nothing happens.
    pub fn wakeup(&self) -> Option<u64> {
        let reports = self.running.values().map(|recovery| recovery.report_due_us);
        let fetches = (self.running.values())
            .flat_map(|recovery| &recovery.fetching)
            .filter(|fetching| !fetching.received_all)
            .map(|fetching| fetching.due_us);
        reports
            .chain(fetches)
            .chain(self.leased.iter().map(|(_, until_us)| *until_us))
            .min()
    }

    fn stop(&mut self, id: (LogId, u64), stop: Stop, log: &mut Log, out: &mut Outputs) {
        let recovery = self
            .running
            .remove(&id)
            .expect("only running ones are stopped");
        for replay in [Some(recovery.replay), recovery.first]
            .into_iter()
            .flatten()
        {
            log.replay_abort(replay, &recovery.recover.ranges);
        }
        let why = match stop {
            Stop::Failed(reason) => {
                if self.failures.len() >= FAILURES_MAX {
                    self.failures.pop_first();
                }
                self.failures.insert(id, reason);
                out.send(ServerId::COORDINATOR, failed(id, reason));
                match reason {
                    RecoveryFailure::OutOfMemory => "out of memory".to_owned(),
                    RecoveryFailure::SegmentMissing(segment) => {
                        format!("no holder gives segment {segment}")
                    }
                }
            }
            Stop::Superseded(why) => why.to_owned(),
        };
        let text = format!("gave up recovering {} (attempt {}): {why}", id.0, id.1);
        out.event(Level::Warn, text);
    }
}

impl Recovery {
    /// It has told the coordinator that it could own the ranges.
    fn may_own(&self) -> bool {
        matches!(self.stage, Stage::Replayed | Stage::Committed)
    }

    /// A newer attempt at the same ranges: perhaps other holders, and another name to report under.
    fn renew(&mut self, now: Now, recover: Recover) {
        let lease_us = u64::from(recover.lease_remaining_ms) * 1_000;
        self.serve_after_us = self.serve_after_us.max(now.mono_us + lease_us);
        self.attempt = recover.attempt;
        self.report_due_us = now.mono_us;
        let named = sources(&recover);
        let newer = |log: LogId, segment: &mut RecoverSegment| {
            let same = |it: &&Source| it.log == log && it.segment.segment == segment.segment;
            let named = named.iter().find(same);
            if let Some(named) = named.filter(|named| !named.segment.holders.is_empty()) {
                segment.holders = named.segment.holders.clone();
            }
        };
        for waiting in &mut self.waiting {
            newer(waiting.log, &mut waiting.segment);
        }
        for fetching in &mut self.fetching {
            if !fetching.received_all {
                newer(fetching.log, &mut fetching.segment);
                fetching.holder = 0;
                fetching.round = 0;
                fetching.due_us = now.mono_us;
            }
        }
        self.recover.attempt = recover.attempt;
    }

    fn work(
        &mut self,
        now: Now,
        clock: ClusterMs,
        view: &View,
        log: &mut Log,
        out: &mut Outputs,
    ) -> Result<bool, Stop> {
        let mut more = false;
        if self.stage == Stage::Fetching {
            self.fetch(now, view, out)?;
            more = self.replay(now, clock, log, out)?;
            let first_left =
                self.waiting.iter().any(|it| it.first) || self.fetching.iter().any(|it| it.first);
            if let Some(first) = self.first.filter(|_| !first_left) {
                log.replay_close(first);
            }
            if self.waiting.is_empty() && self.fetching.is_empty() {
                for replay in [self.first, Some(self.replay)].into_iter().flatten() {
                    log.replay_finish(replay, self.recover.version_ceiling);
                }
                self.timings.replayed_ms = ms_since(self.started_us, now);
                self.stage = Stage::Committing;
            }
        }
        if self.stage == Stage::Committing
            && (self.first).is_some_and(|first| log.replay_committed(first))
        {
            self.stage = Stage::Replayed;
            self.report_due_us = now.mono_us;
        }
        let first_is_committed = match self.first {
            Some(_) => self.stage == Stage::Replayed,
            None => self.stage == Stage::Committing,
        };
        if first_is_committed && log.replay_committed(self.replay) {
            self.timings.replicated_ms = ms_since(self.started_us, now);
            self.stage = Stage::Committed;
            self.report_due_us = now.mono_us;
        }
        if self.report_due_us <= now.mono_us {
            let bytes_left = log.replay_left(self.replay);
            let (log, attempt) = (self.recover.log, self.attempt);
            let (entries, bytes) = (self.entries, self.bytes);
            let timings = self.timings;
            let pause_us = match self.stage {
                Stage::Replayed if !self.taken_over => REPORT_US,
                Stage::Committed => REPORT_US,
                Stage::Fetching | Stage::Committing | Stage::Replayed => PROGRESS_US,
            };
            self.report_due_us = now.mono_us + pause_us;
            let message = match self.stage {
                Stage::Committed => Message::Recovered {
                    log,
                    attempt,
                    entries,
                    bytes,
                    timings,
                },
                Stage::Replayed => Message::Replayed {
                    log,
                    attempt,
                    entries,
                    bytes,
                    bytes_left,
                    timings,
                },
                Stage::Fetching | Stage::Committing => Message::RecoveryProgress {
                    log,
                    attempt,
                    entries,
                    bytes,
                    done_bytes: self.done_bytes,
                    total_bytes: self.done_bytes + self.left_bytes(),
                },
            };
            out.send(ServerId::COORDINATOR, message);
        }
        Ok(more)
    }

    /// Keeps a few segments in flight, and turns to the next holder for those that do not come.
    fn fetch(&mut self, now: Now, view: &View, out: &mut Outputs) -> Result<(), Stop> {
        while self.may_fetch()
            && let Some(Source {
                log,
                segment,
                first,
            }) = self.waiting.pop_front()
        {
            if segment.holders.is_empty() {
                let missing = RecoveryFailure::SegmentMissing(segment.segment);
                return Err(Stop::Failed(missing));
            }
            // All shards begin with the same holder, which reads and verifies the segment once for all of
            // them; neighbouring segments begin with different ones, so that all backups are read from.
            let spread = segment.segment.0 % segment.holders.len() as u64;
            let mut fetching = Fetching {
                holder: spread as usize,
                log,
                segment,
                first,
                round: 0,
                next_part: 0,
                received_all: false,
                parts: VecDeque::new(),
                resting: false,
                due_us: 0,
            };
            if !view.is_up(fetching.source().backup) {
                fetching.next_holder(view);
            }
            self.ask(now, &mut fetching, out);
            self.fetching.push(fetching);
        }
        let mut fetchings = std::mem::take(&mut self.fetching);
        for fetching in &mut fetchings {
            if fetching.received_all || now.mono_us < fetching.due_us {
                continue;
            }
            if !std::mem::take(&mut fetching.resting) {
                let round = fetching.round;
                fetching.next_holder(view);
                if fetching.round >= ROUNDS_MAX {
                    let missing = RecoveryFailure::SegmentMissing(fetching.segment.segment);
                    return Err(Stop::Failed(missing));
                }
                if fetching.round > round {
                    fetching.begin_again();
                    fetching.resting = true;
                    fetching.due_us = now.mono_us + (ROUND_PAUSE_US << round);
                    continue;
                }
            }
            self.ask(now, fetching, out);
        }
        self.fetching = fetchings;
        Ok(())
    }

    /// True if another segment may be asked for.
    fn may_fetch(&self) -> bool {
        let in_flight = self.fetching.iter().map(Fetching::length).sum();
        self.fetching.is_empty()
            || self.fetching.len() < FETCHES_MAX && self.share_of(in_flight) < WINDOW_BYTES
    }

    /// Of replicas that are still to be read, or to be replayed to their end.
    fn left_bytes(&self) -> u64 {
        let waiting = (self.waiting.iter()).map(|it| u64::from(it.segment.length()));
        waiting
            .chain(self.fetching.iter().map(Fetching::length))
            .sum()
    }

    /// What so many bytes of replicas are likely to bring for our ranges: all of it, until we know better.
    fn share_of(&self, replica_bytes: u64) -> u64 {
        let share = u128::from(replica_bytes) * u128::from(self.bytes.min(self.done_bytes));
        (share.checked_div(u128::from(self.done_bytes))).map_or(replica_bytes, |share| share as u64)
    }

    fn ask(&self, now: Now, fetching: &mut Fetching, out: &mut Outputs) {
        fetching.begin_again();
        fetching.due_us = now.mono_us + timeout_us(fetching.round);
        let leant_on = self.recover.leant_on.iter();
        let leant_on = leant_on.filter(|it| it.log == fetching.log);
        let ranges = match fetching.log == self.recover.log {
            true => self.recover.ranges.clone(),
            false => leant_on.flat_map(|it| it.ranges.clone()).collect(),
        };
        let fetch = Fetch {
            log: fetching.log,
            segment: fetching.segment.segment,
            attempt: self.fetch_id,
            certificate: fetching.source().certificate,
            ranges,
        };
        out.send(fetching.source().backup, Message::Fetch(fetch));
    }

    /// Replays some of what has come; true if there is more.
    fn replay(
        &mut self,
        now: Now,
        clock: ClusterMs,
        log: &mut Log,
        out: &mut Outputs,
    ) -> Result<bool, Stop> {
        let mut budget = REPLAY_STEP_BYTES;
        for fetching in &mut self.fetching {
            let replay = match self.first {
                Some(first) if fetching.first => first,
                _ => self.replay,
            };
            while budget > 0
                && let Some(part) = fetching.parts.pop_front()
            {
                match log.replay(replay, &part, clock) {
                    Ok(replayed) => {
                        self.entries += replayed.entries;
                        self.bytes += replayed.bytes;
                    }
                    Err(ReplayError::OutOfMemory) => {
                        return Err(Stop::Failed(RecoveryFailure::OutOfMemory));
                    }
                    Err(ReplayError::Corrupt { offset, error }) => {
                        // V3. Its holder verified it before it sent, so this is rare: say it.
                        let holder = fetching.source().backup;
                        let segment = fetching.segment.segment;
                        let text =
                            format!("{holder} sent a bad entry of {segment} at {offset}: {error}");
                        out.event(Level::Error, text);
                        fetching.parts.clear();
                        fetching.received_all = false;
                        fetching.due_us = now.mono_us;
                    }
                }
                budget = budget.saturating_sub(part.len().max(1));
            }
        }
        let done = |fetching: &Fetching| fetching.received_all && fetching.parts.is_empty();
        let done_bytes = self.done_bytes;
        for fetching in self.fetching.extract_if(.., |fetching| done(fetching)) {
            self.done_bytes += fetching.length();
        }
        if self.done_bytes > done_bytes {
            log.replay_expect(self.replay, self.share_of(self.left_bytes()));
        }
        let waits = |fetching: &Fetching| !fetching.parts.is_empty();
        Ok(self.fetching.iter().any(waits) || (self.may_fetch() && !self.waiting.is_empty()))
    }
}

fn ms_since(started_us: u64, now: Now) -> u32 {
    u32::try_from(now.mono_us.saturating_sub(started_us) / 1_000).unwrap_or(u32::MAX)
}

fn failed(id: (LogId, u64), reason: RecoveryFailure) -> Message {
    Message::RecoveryFailed {
        log: id.0,
        attempt: id.1,
        reason,
    }
}

/// The available owners of a range, one per tablet that it touches; `None` where the owner is not known or
/// (being recovered) is the dead one and so still counts as itself.
fn covering(view: &View, range: SlotRange) -> impl Iterator<Item = Option<LogId>> + '_ {
    let touched = view
        .tablets
        .iter()
        .filter(move |tablet| tablet.range.first <= range.last && range.first <= tablet.range.last);
    let slots: u32 = touched
        .clone()
        .map(|tablet| {
            let first = tablet.range.first.max(range.first);
            let last = tablet.range.last.min(range.last);
            SlotRange { first, last }.slots()
        })
        .sum();
    let gap = (slots < range.slots()).then_some(None);
    touched.map(|tablet| Some(tablet.owner)).chain(gap)
}

fn overlap(a: &[SlotRange], b: &[SlotRange]) -> bool {
    a.iter()
        .any(|a| b.iter().any(|b| a.first <= b.last && b.first <= a.last))
}
