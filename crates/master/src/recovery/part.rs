//! One recovery: a part of a dead log on its way into this one (the invariants are those of `recovery`).

use std::collections::VecDeque;

use holdfast_cluster::{Level, Now, Outputs, ViewExt};
use holdfast_format::{ClusterMs, Entries, LogId, SegmentId, ServerId, SlotRange};
use holdfast_log::{Log, ReplayError, ReplayId};
use holdfast_wire::{
    Fetch, Message, Recover, RecoverSegment, RecoveryFailure, ReplayTimings, Role, View,
};

use super::early::Early;
use super::fetching::{Fetching, Source, sources, timeout_us};

/// Segments of one recovery in flight, and so many for each backup at most: one is read and verified while the entries
/// of another are on their way and those of a third are replayed. No more, because what requests pull to the front
/// comes after them.
const FETCHES_MAX: usize = 16;
const FETCHES_PER_BACKUP: usize = 2;

/// The same before the ranges can be served: everybody is needed for that first.
const FETCHES_BEFORE_MAX: usize = 2;

/// So many rounds over all holders, with pauses between them that double from here, then the segment is
/// missing and the coordinator looks again at who holds what.
pub(super) const ROUNDS_MAX: u32 = 4;

const ROUND_PAUSE_US: u64 = 100_000;

/// Reports are repeated so often.
const REPORT_US: u64 = 100_000;

const PROGRESS_US: u64 = 250_000;

/// Bytes replayed in one step, about a millisecond's work; a part that is larger is replayed alone.
const REPLAY_STEP_BYTES: usize = 512 << 10;

/// A recovery that is served and finds no memory for the rest waits so long for some.
const STALLED_MAX_US: u64 = 5_000_000;

/// V5.
const REST_PAUSE_PERCENT: u64 = 50;

const REST_PAUSE_MAX_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Fetching,
    Committing,
    /// What must be durable first is; the rest may lean.
    Replayed,
    Committed,
}

#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) attempt: u64,
    pub(super) recover: Recover,
    /// Names our fetches, whatever the attempt's number: two recoveries may read the same segment for
    /// different ranges.
    pub(super) fetch_id: u64,
    pub(super) replay: ReplayId,
    /// Of the segments that must be durable first, if the rest may lean.
    pub(super) first: Option<ReplayId>,
    /// Unless everything has to be replayed before the ranges are served.
    pub(super) early: Option<Early>,
    pub(super) stage: Stage,
    /// The view has named us.
    pub(super) taken_over: bool,
    /// The coordinator has recorded that we lean no more.
    pub(super) recorded: bool,
    pub(super) waiting: VecDeque<Source>,
    /// So many of those that wait were pulled to the front by requests.
    pub(super) pulled: usize,
    /// Segments pulled since this was last counted.
    pub(super) pulls: u64,
    /// Our part of what the log's shard owned, in percent, rounded up.
    pub(super) share_percent: u64,
    pub(super) window_bytes: u64,
    /// Segments that may be in flight.
    pub(super) fetches_max: usize,
    pub(super) fetching: Vec<Fetching>,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// Of replicas of which everything has been replayed.
    pub(super) done_bytes: u64,
    pub(super) timings: ReplayTimings,
    pub(super) started_us: u64,
    pub(super) serve_after_us: u64,
    pub(super) report_due_us: u64,
    /// Everything has been replayed, and what leans is to be replicated from then on (V5).
    pub(super) rest_due_us: Option<u64>,
}

/// Why a recovery stops before it is committed.
pub(super) enum Stop {
    Failed(RecoveryFailure),
    Superseded(&'static str),
}

impl Recovery {
    /// `fetch_id` names its fetches; about `window_bytes` may be in flight.
    pub(super) fn begin(
        now: Now,
        recover: Recover,
        sources: VecDeque<Source>,
        view: &View,
        (fetch_id, window_bytes): (u64, u64),
        log: &mut Log,
    ) -> Recovery {
        let backups = (view.members.iter())
            .filter(|it| it.role == Role::Backup)
            .count();
        Recovery {
            attempt: recover.attempt,
            fetch_id,
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
            pulls: 0,
            share_percent: share_percent(view, &recover),
            window_bytes,
            fetches_max: (backups * FETCHES_PER_BACKUP).clamp(FETCHES_BEFORE_MAX, FETCHES_MAX),
            waiting: sources,
            fetching: Vec::new(),
            entries: 0,
            bytes: 0,
            done_bytes: 0,
            timings: ReplayTimings::default(),
            started_us: now.mono_us,
            serve_after_us: now.mono_us + u64::from(recover.lease_remaining_ms) * 1_000,
            report_due_us: now.mono_us + PROGRESS_US,
            rest_due_us: None,
            recover,
        }
    }

    /// It has told the coordinator that it could own the ranges.
    pub(super) fn may_own(&self) -> bool {
        matches!(self.stage, Stage::Replayed | Stage::Committed)
            || self.early.as_ref().is_some_and(|early| early.told)
    }

    /// Not everything has been replayed.
    pub(super) fn is_replaying(&self) -> bool {
        self.stage == Stage::Fetching
    }

    /// A part of what it brings is becoming part of the log before all has been replayed.
    pub(super) fn is_bound(&self) -> bool {
        self.is_replaying() && self.early.as_ref().is_some_and(|early| early.bound)
    }

    pub(super) fn has_news(&self, log: &Log) -> bool {
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
    pub(super) fn may_be_given_up(&self) -> bool {
        self.is_replaying() && !self.is_bound()
    }

    pub(super) fn segments_left(&self) -> usize {
        self.waiting.len() + self.fetching.len()
    }

    /// About what is still to be replayed.
    pub(super) fn bytes_to_come(&self) -> u64 {
        let left = self.left_bytes();
        // By our part of the slots, or by what has come so far, whichever is more.
        (left * self.share_percent / 100).max(self.share_of(left))
    }

    /// Has a segment fetched before others, after those that were pulled before, if anything is gained.
    pub(super) fn pull(&mut self, log: LogId, segment: SegmentId) {
        let is_it = |source: &Source| (source.log, source.segment.segment) == (log, segment);
        let Some(at) = self.waiting.iter().position(is_it) else {
            return;
        };
        if at < self.pulled {
            return;
        }
        let source = self.waiting.remove(at).expect("just found");
        self.waiting.insert(self.pulled, source);
        self.pulled += 1;
        self.pulls += 1;
    }

    /// A newer attempt at the same ranges: perhaps other holders, and another name to report under.
    pub(super) fn renew(&mut self, now: Now, recover: Recover) {
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

    pub(super) fn work(
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
                if let Some(first) = self.first.filter(|_| !self.is_bound()) {
                    log.replay_finish(first, self.recover.version_ceiling);
                }
                let took_us = now.mono_us - self.started_us;
                let pause_us = (took_us * REST_PAUSE_PERCENT / 100).min(REST_PAUSE_MAX_US);
                let leans = self.first.is_some();
                self.rest_due_us = Some(now.mono_us + if leans { pause_us } else { 0 });
                self.timings.replayed_ms = ms_since(self.started_us, now);
                self.stage = Stage::Committing;
            }
        }
        if self.rest_due_us.is_some_and(|due_us| due_us <= now.mono_us) {
            self.rest_due_us = None;
            log.replay_finish(self.replay, self.recover.version_ceiling);
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
                // E1. Those that are about other shards' slots are not for this log.
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
        let needs_next = self.waiting.front().is_some_and(|it| it.first);
        let can_wait = |early: &Early| !needs_next && early.needs_no_more();
        let most = match self.early.as_ref().is_some_and(can_wait) {
            true => FETCHES_BEFORE_MAX,
            false => self.fetches_max,
        };
        self.fetching.is_empty()
            || self.fetching.len() < most && self.share_of(in_flight) < self.window_bytes
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
                        // E7. Others may make room: what is replaced, expires or is evicted.
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
pub(super) fn ranges_of(recover: &Recover, log: LogId) -> Vec<SlotRange> {
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

pub(super) fn ms_since(started_us: u64, now: Now) -> u32 {
    u32::try_from(now.mono_us.saturating_sub(started_us) / 1_000).unwrap_or(u32::MAX)
}
