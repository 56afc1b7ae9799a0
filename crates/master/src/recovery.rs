//! This shard as a recovery master: takes over ranges of a dead shard's log.
//!
//! ```text
//! Recover -> Fetching -> Committing -> Replayed (leaning) -> Committed --on record--> (gone)
//!                \-> failed: aborted, told, and told again whenever asked
//! ```
//!
//! V1. Nothing of the ranges is served before the view names this shard and they are committed: replicated, and named by a durable digest. If the coordinator allows it
//!     (`Recover::first`), what is replayed may be served sooner, when only the entries of the first segments
//!     are committed, which may be on fewer backups than they should: all others *lean* on the dead log's
//!     replicas, which are kept for them (design notes, "Lineage"). What is not replayed yet may then be served key by
//!     key (`early`). Until what the old owner may still answer has run out, only sessions that are there are told,
//!     and nothing is changed.
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
//! about `recovery_window_bytes` in flight for each, about `REPLAY_STEP_BYTES` replayed per step.

mod early;
mod fetching;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{Level, Now, Outputs, ViewExt};
use holdfast_format::{
    ClusterMs, Entries, KeyHash, LogId, Outline, SegmentId, ServerId, Slot, SlotRange,
};
use holdfast_log::{Log, ReplayError, ReplayId};
use holdfast_wire::{
    Certificate, Command, Fetch, FetchPart, Message, Once, Recover, RecoverSegment,
    RecoveryFailure, ReplayTimings, View,
};

use crate::commands::is_blind;

use early::Early;
use fetching::{Fetching, Source, sources, timeout_us};

/// Recoveries under way at once. More are taken up when one has ended; the coordinator repeats itself.
const RECOVERIES_MAX: usize = 8;

/// The same with those whose ranges are served and lean. The coordinator waits with more.
const LEANING_MAX: usize = 64;

/// Segments of one recovery in flight. So many that every backup has several to work on: one is read and
/// verified while the entries of another are on their way and those of a third are replayed.
const FETCHES_MAX: usize = 16;

/// So many rounds over all holders, with pauses between them that double from here, then the segment is
/// missing and the coordinator looks again at who holds what.
const ROUNDS_MAX: u32 = 4;
const ROUND_PAUSE_US: u64 = 100_000;

/// Reports are repeated so often.
const REPORT_US: u64 = 100_000;
const PROGRESS_US: u64 = 250_000;

/// Bytes replayed in one step, about a millisecond's work; a part that is larger is replayed alone.
const REPLAY_STEP_BYTES: usize = 512 << 10;

/// A recovery that is served and finds no memory for the rest waits so long for some.
const STALLED_MAX_US: u64 = 5_000_000;

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
    /// Unless everything has to be replayed before the ranges are served.
    early: Option<Early>,
    stage: Stage,
    /// The view has named us.
    taken_over: bool,
    /// The coordinator has recorded that we lean no more.
    recorded: bool,
    waiting: VecDeque<Source>,
    /// So many of those that wait were pulled to the front by requests.
    pulled: usize,
    /// Our part of what the log's shard owned, in percent, rounded up.
    share_percent: u64,
    window_bytes: u64,
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

/// Why the shard must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    /// Ranges that this shard has made part of its log were given to another.
    #[error("what was recovered of {0} has been given to another shard")]
    Given(LogId),
    /// E3 of `early`.
    #[error("the rest of {0}, of which it serves a part, cannot be had: {1:?}")]
    Stuck(LogId, RecoveryFailure),
}

/// What may be said about a key now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All that there is.
    Known,
    /// A write that asks nothing of what there was may be executed as one that knows nothing of it.
    Unseen,
    /// Nothing, soon something.
    Wait,
    /// Nothing before a view names this shard.
    Withheld,
}

/// All recoveries of this shard, and the ranges that must wait for an old lease to run out.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    running: BTreeMap<(LogId, u64), Recovery>,
    failures: BTreeMap<(LogId, u64), RecoveryFailure>,
    last_fetch_id: u64,
    leased: Vec<(SlotRange, u64)>,
    expiry_floor: ClusterMs,
    /// Rises whenever something that had to wait may have to wait no more.
    progress: u64,
    /// What segments in flight may bring together, judged by what those before them brought: it waits in memory until it
    /// is replayed.
    window_bytes: u64,
    /// Ranges taken over before everything was replayed, and segments that requests have pulled to the front.
    early: u64,
    pulled: u64,
    done: u64,
    entries: u64,
    bytes: u64,
}

impl Recoveries {
    pub fn new(window_bytes: u64) -> Recoveries {
        Recoveries {
            window_bytes,
            ..Recoveries::default()
        }
    }

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
            if !running.may_be_given_up() {
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
        let open = |it: &&Recovery| !it.taken_over || it.is_replaying();
        let replaying = self.running.values().filter(open).count();
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
                Some(_) => log.replay_begin_held_back(&recover.ranges),
                None => log.replay_begin(&recover.ranges),
            },
            first: (recover.first.as_ref()).map(|_| log.replay_begin(&recover.ranges)),
            early: (recover.first.is_some()).then(|| Early::begin(sources.iter())),
            stage: Stage::Fetching,
            taken_over: false,
            recorded: false,
            pulled: 0,
            share_percent: share_percent(view, &recover),
            window_bytes: self.window_bytes,
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

    /// What a segment may say something about; `None`: `from` does not know.
    pub fn outline(
        &mut self,
        now: Now,
        (log, fetch_id): (LogId, u64),
        segment: SegmentId,
        outline: Option<&Bytes>,
    ) {
        // A damaged one is as good as none.
        let outline = outline.and_then(|bytes| Outline::decode(bytes).ok());
        let recovery = self.fetching_as(fetch_id);
        if let Some(early) = recovery.and_then(|recovery| recovery.early.as_mut()) {
            early.outline(now, log, segment, outline);
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
        let early = self.running.values().filter_map(|it| it.early.as_ref());
        let outlines = early.map(Early::memory_bytes).sum::<u64>();
        outlines + parts.map(|part| part.len() as u64).sum::<u64>()
    }

    /// Memory that writers must leave to what is still to be replayed (E4 of `early`).
    pub fn bytes_to_come(&self) -> u64 {
        let early = self.running.values().filter(|it| it.is_bound());
        early.map(Recovery::bytes_to_come).sum()
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
                    self.progress += 1;
                    self.early += u64::from(recovery.is_replaying());
                    self.leased
                        .extend(ranges.iter().map(|range| (*range, until_us)));
                    self.done += 1;
                    let text = format!(
                        "took over {} entries of {} ({} ranges){}",
                        recovery.entries,
                        id.0,
                        ranges.len(),
                        match recovery.is_replaying() {
                            true => ", more is to come",
                            false => "",
                        }
                    );
                    out.event(Level::Info, text);
                }
                if recovery.first.is_none() || recovery.recorded {
                    self.running.remove(&id);
                }
            } else if owners().any(|owner| owner.is_some_and(|o| o != id.0 && o != own)) {
                if !recovery.may_be_given_up() {
                    return Err(Lost::Given(id.0));
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
        let leased = self.leased.len();
        self.leased.retain(|(_, until_us)| now.mono_us < *until_us);
        self.progress += u64::from(self.leased.len() != leased);
        log.pin(self.leans());
        log.set_unsettled(self.unsettled());
        let ids: Vec<(LogId, u64)> = self.running.keys().copied().collect();
        let mut more = false;
        for id in ids {
            let recovery = self.running.get_mut(&id).expect("listed from there");
            let before = (recovery.entries, recovery.bytes, recovery.segments_left());
            match recovery.work(now, clock.max(self.expiry_floor), view, log, out) {
                Ok(again) => more |= again,
                Err(Stop::Failed(why)) if !recovery.may_be_given_up() => {
                    return Err(Lost::Stuck(id.0, why));
                }
                Err(stop) => {
                    self.stop(id, stop, log, out);
                    continue;
                }
            }
            let recovery = &self.running[&id];
            self.entries += recovery.entries - before.0;
            self.bytes += recovery.bytes - before.1;
            self.progress += u64::from(recovery.segments_left() != before.2);
        }
        self.conclude(view, log, out)?;
        log.pin(self.leans());
        log.set_unsettled(self.unsettled());
        Ok(more)
    }

    /// What may be said about the key of a command that this shard owns. `once`: by what a repetition of it would be known.
    /// `limited`: it adds to a namespace that has limits.
    pub fn standing(
        &self,
        now: Now,
        log: &Log,
        clock: ClusterMs,
        command: &Command,
        once: Option<&Once>,
        limited: bool,
    ) -> Standing {
        if self.running.is_empty() && self.leased.is_empty() {
            return Standing::Known;
        }
        let (namespace, key) = (command.namespace, &command.key[..]);
        let slot = Slot::of(key);
        let is_write = command.op.is_write();
        let recovery = self.recovery_of(slot);
        if recovery.is_some_and(|it| !it.taken_over) {
            return Standing::Withheld;
        }
        let leased =
            |(range, until_us): &(SlotRange, u64)| now.mono_us < *until_us && range.contains(slot);
        let leased = self.leased.iter().any(leased);
        if leased && is_write {
            return Standing::Wait;
        }
        if let Some(recovery) = recovery {
            let early = (recovery.early.as_ref()).expect("it is served while it is replayed");
            let is_recorded = |once| early.with_record(once).next().is_some();
            if is_write && (limited || once.is_some_and(is_recorded)) {
                return Standing::Wait;
            }
            let hash = KeyHash::of(namespace, key);
            let is_final = early.with_key(hash).next().is_none()
                || log.is_newer(namespace, key, recovery.recover.version_ceiling);
            match is_final {
                true => {}
                false if is_blind(&command.op) => return Standing::Unseen,
                false => return Standing::Wait,
            }
        }
        // What is not there the old owner may still have, judged by a slower clock.
        if leased && log.find(namespace, key, clock).is_none() {
            return Standing::Wait;
        }
        Standing::Known
    }

    /// Has the segments that a waiting command needs fetched before others.
    pub fn pull(&mut self, command: &Command, once: Option<&Once>) {
        let slot = Slot::of(&command.key);
        let contains = |range: &SlotRange| range.contains(slot);
        let recovery = (self.running.values_mut())
            .find(|it| it.is_replaying() && it.recover.ranges.iter().any(contains));
        let Some(recovery) = recovery.filter(|it| it.taken_over) else {
            return;
        };
        let Some(early) = &recovery.early else {
            return;
        };
        let hash = KeyHash::of(command.namespace, &command.key);
        let records = once.into_iter().flat_map(|once| early.with_record(once));
        let wanted: Vec<_> = early.with_key(hash).chain(records).collect();
        for (log, segment) in wanted {
            self.pulled += u64::from(recovery.pull(log, segment));
        }
    }

    /// The recovery that has not brought, or not been given, all of a slot.
    fn recovery_of(&self, slot: Slot) -> Option<&Recovery> {
        let contains = |range: &SlotRange| range.contains(slot);
        (self.running.values()).find(|it| {
            it.recover.ranges.iter().any(contains) && (it.is_replaying() || !it.taken_over)
        })
    }

    /// True if something has been committed that `work` has not seen yet.
    pub fn has_news(&self, log: &Log) -> bool {
        self.running.values().any(|it| it.has_news(log))
    }

    /// Rises whenever something that had to wait may have to wait no more.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Ranges of which not everything has been replayed.
    pub fn unreplayed(&self) -> Vec<SlotRange> {
        let replaying = self.running.values().filter(|it| it.is_replaying());
        replaying.flat_map(|it| it.recover.ranges.clone()).collect()
    }

    /// These, those that this shard has not been given yet, and those of which an old owner may still tell something.
    pub fn unsettled(&self) -> Vec<SlotRange> {
        let open = (self.running.values()).filter(|it| it.is_replaying() || !it.taken_over);
        let mut ranges: Vec<_> = open.flat_map(|it| it.recover.ranges.clone()).collect();
        ranges.extend(self.leased.iter().map(|(range, _)| *range));
        ranges
    }

    /// Ranges taken over before everything was replayed, and segments that requests pulled to the front, since start.
    pub fn early_totals(&self) -> (u64, u64) {
        (self.early, self.pulled)
    }

    /// False if `standing` is `Known` whatever the key.
    pub fn withholds_some(&self, now: Now) -> bool {
        (self.running.values()).any(|running| !running.taken_over || running.is_replaying())
            || self
                .leased
                .iter()
                .any(|(_, until_us)| now.mono_us < *until_us)
    }

    /// True if nothing may be said about all that this shard owns: not everything is known of a slot of
    /// these ranges, or others may have seen a view that gives it more. A view names a recovery master
    /// once it has committed, and may reach clients long before it comes here.
    pub fn withholds_any(&self, now: Now, owned: &[SlotRange]) -> bool {
        let more = |running: &Recovery| {
            let may_own = running.may_own() || overlap(&running.recover.ranges, owned);
            may_own && (!running.taken_over || running.is_replaying())
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
        let early = self.running.values().filter_map(|it| it.early.as_ref());
        let outlines = early.filter_map(Early::wakeup);
        let fetches = (self.running.values())
            .flat_map(|recovery| &recovery.fetching)
            .filter(|fetching| !fetching.received_all)
            .map(|fetching| fetching.due_us);
        reports
            .chain(fetches)
            .chain(outlines)
            .chain(self.leased.iter().map(|(_, until_us)| *until_us))
            .min()
    }

    fn stop(&mut self, id: (LogId, u64), stop: Stop, log: &mut Log, out: &mut Outputs) {
        self.progress += 1;
        let recovery = self
            .running
            .remove(&id)
            .expect("only running ones are stopped");
        let replays: Vec<ReplayId> = (recovery.first.into_iter())
            .chain([recovery.replay])
            .collect();
        log.replay_abort_all(&replays, &recovery.recover.ranges);
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
            || self.early.as_ref().is_some_and(|early| early.told)
    }

    /// Not everything has been replayed.
    fn is_replaying(&self) -> bool {
        self.stage == Stage::Fetching
    }

    /// A part of what it brings is becoming part of the log before all has been replayed.
    fn is_bound(&self) -> bool {
        self.is_replaying() && self.early.as_ref().is_some_and(|early| early.bound)
    }

    fn has_news(&self, log: &Log) -> bool {
        let first = || log.replay_committed(self.first.unwrap_or(self.replay));
        match self.stage {
            Stage::Fetching => {
                let waits = |early: &Early| early.bound && !early.told;
                self.early.as_ref().is_some_and(waits) && first()
            }
            Stage::Committing => first(),
            Stage::Replayed => log.replay_committed(self.replay),
            Stage::Committed => false,
        }
    }

    /// V2.
    fn may_be_given_up(&self) -> bool {
        self.is_replaying() && !self.is_bound()
    }

    fn segments_left(&self) -> usize {
        self.waiting.len() + self.fetching.len()
    }

    /// About what is still to be replayed.
    fn bytes_to_come(&self) -> u64 {
        let left = self.left_bytes();
        // By our part of the slots, or by what has come so far, whichever is more.
        (left * self.share_percent / 100).max(self.share_of(left))
    }

    /// Has a segment fetched before others, after those that were pulled before. False if nothing is gained.
    fn pull(&mut self, log: LogId, segment: SegmentId) -> bool {
        let is_it = |source: &Source| (source.log, source.segment.segment) == (log, segment);
        let Some(at) = self.waiting.iter().position(is_it) else {
            return false;
        };
        if at < self.pulled {
            return false;
        }
        let source = self.waiting.remove(at).expect("just found");
        self.waiting.insert(self.pulled, source);
        self.pulled += 1;
        true
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
            self.seek_outlines(now, view, out);
            self.fetch(now, view, out)?;
            more = self.replay(now, clock, log, out)?;
            let first_left =
                self.waiting.iter().any(|it| it.first) || self.fetching.iter().any(|it| it.first);
            if let Some(first) = self.first.filter(|_| !first_left) {
                log.replay_close(first);
                self.begin_early(now, first, clock, log)?;
            }
            if self.waiting.is_empty() && self.fetching.is_empty() {
                let first = self.first.filter(|_| !self.is_bound());
                for replay in [first, Some(self.replay)].into_iter().flatten() {
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
            let to_come = if self.is_replaying() {
                self.bytes_to_come()
            } else {
                0
            };
            let bytes_left = log.replay_left(self.replay) + to_come;
            let (log, attempt) = (self.recover.log, self.attempt);
            let (entries, bytes) = (self.entries, self.bytes);
            let timings = self.timings;
            let pause_us = match self.stage {
                _ if self.may_own() && !self.taken_over => REPORT_US,
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
                _ if self.may_own() => Message::Replayed {
                    log,
                    attempt,
                    entries,
                    bytes,
                    bytes_left,
                    timings,
                },
                _ => Message::RecoveryProgress {
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

    /// Asks for what is needed to serve early, and has segments of which it is not to be had replayed first.
    fn seek_outlines(&mut self, now: Now, view: &View, out: &mut Outputs) {
        let Some(early) = self.early.as_mut().filter(|early| !early.bound) else {
            return;
        };
        for (log, segment) in early.ask(now, self.fetch_id, view, out) {
            self.pull(log, segment);
        }
    }

    /// What must be durable first has been replayed. If it is known what the rest is about, and there is memory for it, the
    /// ranges can be served when that is committed. (`early`)
    fn begin_early(
        &mut self,
        now: Now,
        first: ReplayId,
        clock: ClusterMs,
        log: &mut Log,
    ) -> Result<(), Stop> {
        let to_come = self.bytes_to_come();
        let last = self.segments_left() == 0;
        let Some(early) = self
            .early
            .as_mut()
            .filter(|early| early.is_informed() && !last)
        else {
            return Ok(());
        };
        if !early.bound {
            if log.replay_room() < to_come + to_come / 4 {
                self.early = None;
                return Ok(());
            }
            for (of, flushes) in early.flushes() {
                let ranges = ranges_of(&self.recover, of);
                // E2. Those that are about other shards' slots are not for this log.
                let entries = Entries::new(flushes).map(|it| it.expect("an outline's are whole"));
                for located in entries.filter(|it| it.entry.concerns(&ranges)) {
                    let raw = &flushes[located.offset..located.offset + located.length];
                    if log.replay(first, raw, clock).is_err() {
                        return Err(Stop::Failed(RecoveryFailure::OutOfMemory));
                    }
                }
            }
            log.replay_finish(first, self.recover.version_ceiling);
            early.bound = true;
        }
        if !early.told && log.replay_committed(first) {
            early.told = true;
            self.report_due_us = now.mono_us;
        }
        Ok(())
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
            self.pulled = self.pulled.saturating_sub(1);
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
            || self.fetching.len() < FETCHES_MAX && self.share_of(in_flight) < self.window_bytes
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
        let fetch = Fetch {
            log: fetching.log,
            segment: fetching.segment.segment,
            attempt: self.fetch_id,
            certificate: fetching.source().certificate,
            ranges: ranges_of(&self.recover, fetching.log),
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
        let bound = self.is_bound();
        let mut stalled = false;
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
                    Err(ReplayError::OutOfMemory) if bound => {
                        // E3. Others may make room: what is replaced, expires or is evicted.
                        fetching.parts.push_front(part);
                        stalled = true;
                        break;
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
            if let Some(early) = &mut self.early {
                early.replayed(fetching.log, fetching.segment.segment);
            }
        }
        if let Some(early) = &mut self.early {
            let since_us = *early.stalled_since_us.get_or_insert(now.mono_us);
            if !stalled {
                early.stalled_since_us = None;
            } else if since_us + STALLED_MAX_US < now.mono_us {
                return Err(Stop::Failed(RecoveryFailure::OutOfMemory));
            }
        }
        if self.done_bytes > done_bytes {
            log.replay_expect(self.replay, self.share_of(self.left_bytes()));
        }
        let waits = |fetching: &Fetching| !stalled && !fetching.parts.is_empty();
        Ok(self.fetching.iter().any(waits) || (self.may_fetch() && !self.waiting.is_empty()))
    }
}

/// The ranges of which the recovery needs what a log holds.
fn ranges_of(recover: &Recover, log: LogId) -> Vec<SlotRange> {
    let leant_on = recover.leant_on.iter().filter(|it| it.log == log);
    match log == recover.log {
        true => recover.ranges.clone(),
        false => leant_on.flat_map(|it| it.ranges.clone()).collect(),
    }
}

/// Our ranges' part of what the log's shard owned, as far as that is not taken over yet. Rounded up.
fn share_percent(view: &View, recover: &Recover) -> u64 {
    let slots = |ranges: &mut dyn Iterator<Item = SlotRange>| -> u64 {
        ranges.map(|range| u64::from(range.slots())).sum()
    };
    let all = slots(&mut view.tablets_of(recover.log).map(|tablet| tablet.range));
    let ours = slots(&mut recover.ranges.iter().copied());
    (100 * ours).div_ceil(all.max(1)).min(100)
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
