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
//! V5. What may lean is not replicated before `REST_PAUSE_PERCENT` of the time that the replay took has passed after its end, a second
//!     at most: other recovery masters of the same log are likely to be at their replay until then, and that is what
//!     users wait for.
//!
//! Bounds: `RECOVERIES_MAX` at once (`LEANING_MAX` with those that are served and lean), `FETCHES_MAX` segments and
//! about `recovery_window_bytes` in flight for each, about `REPLAY_STEP_BYTES` replayed per step.

mod early;
mod fetching;
mod lookups;
mod part;

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_cluster::{Level, Now, Outputs};
use holdfast_format::{ClusterMs, KeyHash, LogId, Outline, SegmentId, ServerId, Slot, SlotRange};
use holdfast_log::{Log, ReplayId};
use holdfast_wire::{
    Certificate, Command, FetchPart, Message, Once, Recover, RecoveryFailure, View,
};

use crate::commands::is_blind;

use early::Early;
use fetching::{sources, timeout_us};
use lookups::Of;
use part::{Recovery, Stage, Stop, ms_since};

/// Recoveries under way at once. More are taken up when one has ended; the coordinator repeats itself.
const RECOVERIES_MAX: usize = 8;

/// The same with those whose ranges are served and lean. The coordinator waits with more.
const LEANING_MAX: usize = 64;

/// Failures remembered, to be told again; the oldest attempts go first.
const FAILURES_MAX: usize = 64;

/// Why the shard must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    /// Ranges that this shard has made part of its log were given to another.
    #[error("what was recovered of {0} has been given to another shard")]
    Given(LogId),
    /// E7 ("Serving early").
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

/// What a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// All of a segment.
    Segment(Of),
    /// What a segment has of the key.
    Key(KeyHash, Of),
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
    looked_up: u64,
    /// Keys that have become final by being looked up, since somebody asked.
    found: Vec<KeyHash>,
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
        let recovery = Recovery::begin(
            now,
            recover,
            sources,
            view,
            (self.last_fetch_id, self.window_bytes),
            log,
        );
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

    /// What a segment has of a key; `None`: `from` cannot tell.
    pub fn looked_up(
        &mut self,
        from: ServerId,
        (log, fetch_id): (LogId, u64),
        segment: SegmentId,
        key: KeyHash,
        entries: Option<Bytes>,
    ) {
        if let Some(recovery) = self.fetching_as(fetch_id) {
            recovery.looked_up(from, key, (log, segment), entries);
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
            recovery.look_up_elsewhere(peer);
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

    /// Memory that writers must leave to what is still to be replayed (E1).
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
            let clock = clock.max(self.expiry_floor);
            let found = recovery.look_up(now, clock, view, log, out);
            self.found.extend(found);
            self.pulled += std::mem::take(&mut recovery.pulls);
            let early = recovery.early.as_mut();
            self.looked_up += early.map_or(0, |early| early.lookups.take_questions());
            match recovery.work(now, clock, view, log, out) {
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

    /// Has what a waiting command needs fetched before the rest: the key's entries, or whole segments.
    pub fn pull(&mut self, command: &Command, once: Option<&Once>) {
        let slot = Slot::of(&command.key);
        let contains = |range: &SlotRange| range.contains(slot);
        let recovery = (self.running.values_mut())
            .find(|it| it.is_replaying() && it.recover.ranges.iter().any(contains));
        let Some(recovery) = recovery.filter(|it| it.taken_over) else {
            return;
        };
        let Some(early) = &mut recovery.early else {
            return;
        };
        let records = once.into_iter().flat_map(|once| early.with_record(once));
        let mut whole: Vec<Of> = records.collect();
        if !is_blind(&command.op) {
            let hash = KeyHash::of(command.namespace, &command.key);
            let admitting = early.with_key(hash).collect();
            whole.extend(early.lookups.begin(hash, admitting));
        }
        for (log, segment) in whole {
            recovery.pull(log, segment);
        }
    }

    /// Something without which a command that waits cannot be executed, if there is anything.
    pub fn awaited(&self, command: &Command, once: Option<&Once>) -> Option<Awaited> {
        let slot = (!command.op.is_keyspace()).then(|| Slot::of(&command.key))?;
        let recovery = self.recovery_of(slot)?;
        let early = recovery.early.as_ref().filter(|_| recovery.taken_over)?;
        let record = once.and_then(|once| early.with_record(once).next());
        let hash = KeyHash::of(command.namespace, &command.key);
        let key = || early.with_key(hash).next().map(|of| Awaited::Key(hash, of));
        match is_blind(&command.op) {
            true => record.map(Awaited::Segment),
            false => record.map(Awaited::Segment).or_else(key),
        }
    }

    /// False once it has come.
    pub fn is_to_come(&self, awaited: Awaited) -> bool {
        let mut early = self.running.values().filter_map(|it| it.early.as_ref());
        early.any(|early| match awaited {
            Awaited::Segment(of) => early.is_to_come(of),
            Awaited::Key(hash, of) => early.with_key(hash).any(|it| it == of),
        })
    }

    /// Keys that have become final by being looked up, since this was last asked.
    pub fn take_found(&mut self) -> Vec<KeyHash> {
        std::mem::take(&mut self.found)
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

    /// Ranges taken over before everything was replayed, segments that requests pulled to the front, and
    /// questions for the entries of one key in one segment, since start.
    pub fn early_totals(&self) -> (u64, u64, u64) {
        (self.early, self.pulled, self.looked_up)
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
        let rests = self.running.values().filter_map(|it| it.rest_due_us);
        reports
            .chain(rests)
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
