//! The backup as a node: what it knows, and which part of it takes which input.
//!
//! B1. Nothing is acknowledged whose bytes, checked against the certificate, are not where the
//!     acknowledgement mode demands.
//! B2. Once `Inventory` has answered a `Fence`, no append of that log below the fence's epoch is
//!     acknowledged, and no lease granted.
//! B3. What `FetchPart` carries was read back and verified first. What `Inventory` lists was verified when it
//!     came, or read back and verified if it came in an earlier incarnation; what is found bad only when it is
//!     fetched is listed as bad from then on.
//! B4. A certified replica goes only when a verified one at least as good is held, or its master or the
//!     coordinator says so. One that is found bad stays until then, and is listed as bad: were it
//!     forgotten, a log of which all replicas are bad would look as if it had never been written.
//!     (If the store is full, its master may put the new one in its place.)

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{
    Dice, DiskDone, DiskOp, FRAME_HEADER_BYTES, FrameId, Heard, Input, Level, Membership, Node,
    Now, Output, Outputs,
};
use holdfast_format::{ClusterMs, Epoch, LogId, Opening, SegmentId, ServerId, crc32c};
use holdfast_wire::{
    AppendRefused, Appended, Certificate, Figures, Message, Refusal, ReplicaState,
};

use crate::config::{BackupConfig, ConfigError};
use crate::fetch::FetchJob;
use crate::frames::Frames;
use crate::header::Slots;
use crate::lookups::{LookUp, Lookups};
use crate::reads::{Cache, Reading, Reads};
use crate::replica::Grant;
use crate::scrub::Scrub;
use crate::survey::Survey;
use crate::upkeep::Report;

/// Logs remembered although nothing is held of them, for their fences: about 100 bytes each. When
/// there are more, the fences of logs that are gone are forgotten first; what such a log's zombie could
/// then leave here is refused everywhere else, and is garbage that the next enlisting clears.
const LOGS_MAX: usize = 4096;

/// A role that keeps replicas. See the crate's page.
#[derive(Debug)]
pub struct Backup {
    pub(crate) config: BackupConfig,
    pub(crate) membership: Membership,
    pub(crate) frames: Frames,
    pub(crate) logs: BTreeMap<LogId, LogState>,
    pub(crate) reads: Reads,
    pub(crate) cache: Cache,
    /// Acknowledgements that wait until a closed replica has been read and verified.
    pub(crate) claims: BTreeMap<FrameId, Grant>,
    pub(crate) fetches: VecDeque<FetchJob>,
    pub(crate) lookups: Lookups,
    /// Frames that wait for a sync.
    pub(crate) syncs: VecDeque<FrameId>,
    /// Syncs under way, by token.
    pub(crate) syncing: BTreeMap<u64, FrameId>,
    /// Bad news that masters must hear: repeated for a while.
    pub(crate) reports: BTreeMap<(LogId, SegmentId), Report>,
    /// Segments freed a moment ago, so that a late duplicate of what opened them is known.
    pub(crate) freed: VecDeque<(u64, LogId, SegmentId)>,
    pub(crate) scrub: Scrub,
    pub(crate) announce_cursor: FrameId,
    pub(crate) next_token: u64,
    /// Time of the first step: a lease may have been granted just before.
    pub(crate) started_us: Option<u64>,
    pub(crate) upkeep_due_us: u64,
    pub(crate) now_us: u64,
    pub(crate) stage: Stage,
    pub(crate) counts: Counts,
}

/// What is remembered of a log, whether anything is held of it or not.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    /// Appends below this are refused (0: not fenced).
    pub fence: Epoch,
    /// The latest `expiry_ceiling` that was accepted.
    pub ceiling: ClusterMs,
    /// Until when, by the own clock, a lease granted here may run.
    pub lease_until_us: u64,
    /// Verified answer to `Fence`; dropped whenever it could differ.
    pub inventory: Option<Vec<ReplicaState>>,
    pub survey: Option<Survey>,
    /// The coordinator said that nobody will ask again.
    pub gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Until the cluster's settings are known nothing is accepted.
    Joining,
    Serving,
    /// Syncs what it can until then.
    Stopping {
        until_us: u64,
    },
    Stopped,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub appends: u64,
    pub append_bytes: u64,
    pub stale_appends: u64,
    pub refusals: u64,
    pub syncs: u64,
    pub sync_errors: u64,
    pub reads: u64,
    pub verified: u64,
    pub corrupt: u64,
    pub damaged_headers: u64,
    pub fallbacks: u64,
    pub inventories: u64,
    pub fetches: u64,
    pub fetches_failed: u64,
    pub fetched_bytes: u64,
    pub cache_hits: u64,
    pub outlines: u64,
    pub lookups: u64,
    pub lookups_failed: u64,
}

impl Backup {
    /// A backup on a store whose frames begin with `headers` (all zero: free), enlisting at the first
    /// step.
    pub fn new(
        config: BackupConfig,
        headers: Vec<(FrameId, Bytes)>,
        seed: u64,
    ) -> Result<Backup, ConfigError> {
        config.validate()?;
        let mut frames = Frames::new(config.frames, config.frames_reserved);
        let mut logs: BTreeMap<LogId, LogState> = BTreeMap::new();
        let mut counts = Counts::default();
        let mut seen = BTreeSet::new();
        for (id, block) in &headers {
            let known = id.0 < config.frames && seen.insert(*id);
            if !known || block.len() != FRAME_HEADER_BYTES as usize {
                return Err(ConfigError::Store {
                    frame: id.0,
                    bytes: block.len(),
                    frames: config.frames,
                });
            }
            let slots = Slots::read(block);
            counts.damaged_headers += u64::from(slots.damaged);
            let too_long = slots
                .newest
                .is_some_and(|header| header.certificate.length > config.segment_bytes);
            if too_long {
                return Err(ConfigError::SegmentBytes(config.segment_bytes));
            }
            frames.restore(*id, &slots);
            if let (Some(header), Some(_)) = (slots.newest, frames.replica(*id)) {
                let log = logs.entry(header.log).or_default();
                log.fence = log.fence.max(header.fence);
                log.ceiling = log.ceiling.max(header.ceiling);
            }
        }
        let mut membership = Membership::new(config.member.clone(), seed);
        membership.set_logs(frames.logs());
        let mut dice = Dice::new(seed ^ 0x6261_636b_7570);
        Ok(Backup {
            cache: Cache::new(config.read_cache_bytes),
            scrub: Scrub::new(config.scrub_period_ms, config.frames, &mut dice),
            config,
            membership,
            frames,
            logs,
            reads: Reads::default(),
            claims: BTreeMap::new(),
            fetches: VecDeque::new(),
            lookups: Lookups::default(),
            syncs: VecDeque::new(),
            syncing: BTreeMap::new(),
            reports: BTreeMap::new(),
            freed: VecDeque::new(),
            announce_cursor: FrameId(0),
            next_token: 1,
            started_us: None,
            upkeep_due_us: 0,
            now_us: 0,
            stage: Stage::Joining,
            counts,
        })
    }

    /// True if acknowledgements wait for the disk. Asked only once the cluster's settings are known.
    pub(crate) fn ack_disk(&self) -> bool {
        self.membership
            .config()
            .is_some_and(|config| config.ack_disk)
    }

    pub(crate) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(crate) fn fence_of(&self, log: LogId) -> Epoch {
        self.logs.get(&log).map_or(Epoch(0), |state| state.fence)
    }

    /// What is remembered of `log`, made if need be.
    pub(crate) fn log_mut(&mut self, log: LogId) -> &mut LogState {
        if self.logs.len() >= LOGS_MAX && !self.logs.contains_key(&log) {
            let now_us = self.now_us;
            let idle = |id: &LogId, state: &LogState| {
                state.survey.is_none()
                    && state.lease_until_us <= now_us
                    && !self.frames.holds_log(*id)
            };
            let gone = self
                .logs
                .iter()
                .find(|(id, state)| state.gone && idle(id, state));
            let any = gone.or_else(|| self.logs.iter().find(|(id, state)| idle(id, state)));
            if let Some(id) = any.map(|(id, _)| *id) {
                self.logs.remove(&id);
            }
        }
        self.logs.entry(log).or_default()
    }

    pub(crate) fn refuse(
        &mut self,
        log: LogId,
        segment: SegmentId,
        why: Refusal,
        out: &mut Outputs,
    ) {
        self.counts.refusals += 1;
        let refused = AppendRefused { log, segment, why };
        out.send(log.shard(), Message::AppendRefused(refused));
    }

    /// Acknowledges what is held of the replica in `id` as the acknowledgement mode demands (B1), and
    /// grants the lease.
    pub(crate) fn acknowledge(
        &mut self,
        id: FrameId,
        grant: Grant,
        length: u32,
        closed: bool,
        epoch: Epoch,
        out: &mut Outputs,
    ) {
        let replica = self
            .frames
            .replica(id)
            .expect("only replicas are acknowledged");
        let (log, segment) = (replica.log, replica.segment);
        assert!(
            length <= replica.length,
            "more is acknowledged than is held"
        );
        assert!(grant.epoch >= self.fence_of(log), "B2: {log} is fenced");
        let until_us = self.now_us + u64::from(grant.lease_ms) * 1_000;
        let state = self.log_mut(log);
        state.lease_until_us = state.lease_until_us.max(until_us);
        let appended = Appended {
            log,
            epoch,
            segment,
            length,
            closed,
            sent_us: grant.sent_us,
            lease_ms: grant.lease_ms,
        };
        out.send(grant.to, Message::Appended(appended));
    }

    /// Something about the replica in `id` is new: what was derived from it no longer holds.
    pub(crate) fn changed(&mut self, id: FrameId) {
        self.cache.drop_frame(id);
        let Some(log) = self.frames.replica(id).map(|replica| replica.log) else {
            return;
        };
        if let Some(state) = self.logs.get_mut(&log) {
            state.inventory = None;
        }
    }

    /// Lets the replica in `id` go, and everyone who waits for it know.
    pub(crate) fn release(&mut self, id: FrameId, out: &mut Outputs) {
        let log = self.frames.replica(id).map(|replica| replica.log);
        self.let_go(id, out);
        self.frames.free(id, out);
        if let Some(log) = log {
            self.answer_fence(log, out);
        }
    }

    /// The frame's disk failed: never again is anything in it acknowledged.
    pub(crate) fn break_down(&mut self, id: FrameId, why: &str, out: &mut Outputs) {
        let held = self
            .frames
            .replica(id)
            .map(|replica| (replica.log, replica.segment));
        out.event(
            Level::Error,
            format!(
                "frame {} is out of service: {why}; replace the disk under this backup",
                id.0
            ),
        );
        self.let_go(id, out);
        self.frames.break_down(id, out);
        if let Some((log, segment)) = held {
            self.report(log, segment, Refusal::Broken, out);
            self.answer_fence(log, out);
        }
    }

    fn let_go(&mut self, id: FrameId, out: &mut Outputs) {
        self.changed(id);
        self.claims.remove(&id);
        self.scrub.done(id);
        self.fail_fetches(id, out);
        if let Some(log) = self.frames.replica(id).map(|replica| replica.log) {
            self.survey_lost(log, id);
        }
    }

    fn take_message(&mut self, now: Now, from: ServerId, message: Message, out: &mut Outputs) {
        match self.membership.handle(now, from, &message, out) {
            Heard::NotMine => {}
            Heard::Taken | Heard::ViewChanged => return self.joined(out),
            Heard::Expelled => {
                self.stage = Stage::Stopped;
                let reason = "declared dead by the coordinator".to_string();
                return out.push(Output::Stopped { reason });
            }
        }
        if self.stage != Stage::Serving {
            return;
        }
        match message {
            Message::Append(append) => self.take_append(from, append, out),
            Message::Free { log, segments } if from == log.shard() => {
                self.take_free(log, &segments, out);
            }
            Message::Fence { log, epoch } if from == ServerId::COORDINATOR => {
                self.take_fence(log, epoch, out);
            }
            Message::Fetch(fetch) => self.take_fetch(from, fetch, out),
            Message::AskOutlines {
                log,
                attempt,
                segments,
            } => self.take_ask_outlines(from, log, attempt, &segments, out),
            Message::LookUp {
                log,
                segment,
                attempt,
                certificate,
                key,
            } => {
                let asked = LookUp {
                    log,
                    segment,
                    attempt,
                    certificate,
                    key,
                };
                self.take_look_up(from, asked, out);
            }
            Message::LogGone { log } if from == ServerId::COORDINATOR => self.take_gone(log, out),
            // Nothing else is for a backup: a peer of another version, or an impostor. Ignored.
            _ => {}
        }
    }

    /// The settings are known: service begins, and what was found in the store is made as durable as
    /// they demand.
    fn joined(&mut self, out: &mut Outputs) {
        if self.stage != Stage::Joining || self.membership.config().is_none() {
            return;
        }
        self.stage = Stage::Serving;
        let held: Vec<FrameId> = self.frames.held().map(|(id, _)| id).collect();
        if self.counts.damaged_headers > 0 {
            let count = self.counts.damaged_headers;
            out.event(
                Level::Warn,
                format!("{count} frame header slots were torn or damaged"),
            );
        }
        out.event(
            Level::Info,
            format!(
                "serving with {} replicas found in {} frames",
                held.len(),
                self.frames.len()
            ),
        );
        for id in held {
            self.want_sync(id);
            // Which of the two header slots counts must be known before either is written (H2).
            if self
                .frames
                .replica(id)
                .is_some_and(|replica| replica.fallback.is_some())
            {
                self.reads.want(id);
            }
        }
    }

    fn take_free(&mut self, log: LogId, segments: &[SegmentId], out: &mut Outputs) {
        // Recovery plans with what it was told is here; `LogGone` clears it.
        if self.fence_of(log) > Epoch(0) {
            return;
        }
        for &segment in segments {
            let frames = self.frames.of_segment(log, segment).to_vec();
            self.reports.remove(&(log, segment));
            if !frames.is_empty() {
                self.remember_freed(log, segment);
            }
            for id in frames {
                self.release(id, out);
            }
        }
    }

    fn take_gone(&mut self, log: LogId, out: &mut Outputs) {
        let frames: Vec<FrameId> = self.frames.of_log(log).collect();
        for id in frames {
            self.release(id, out);
        }
        self.frames.forget_broken(log);
        self.reports.retain(|(other, _), _| *other != log);
        let state = self.log_mut(log);
        state.survey = None;
        state.inventory = None;
        // A late append of its old owner must find no ground here.
        state.fence = Epoch(u64::MAX);
        state.gone = true;
    }

    /// Starts reads while there is room for more.
    pub(crate) fn pump_reads(&mut self, out: &mut Outputs) {
        while let Some(frame) = self.reads.next(self.config.reads_in_flight_max) {
            let wanted = self
                .frames
                .replica(frame)
                .and_then(|replica| Some((replica.birth, replica.certificate?)));
            let Some((birth, certificate)) = wanted else {
                self.reads.skip(frame);
                continue;
            };
            let token = self.token();
            self.counts.reads += 1;
            self.reads.begin(
                token,
                Reading {
                    frame,
                    birth,
                    certificate,
                },
            );
            out.push(Output::Disk(DiskOp::Read {
                token,
                frame,
                offset: FRAME_HEADER_BYTES,
                length: certificate.length,
                from_medium: self.scrub.reads(frame),
            }));
        }
    }

    fn take_read(
        &mut self,
        token: u64,
        result: Result<Bytes, holdfast_cluster::DiskError>,
        out: &mut Outputs,
    ) {
        let Some(reading) = self.reads.end(token) else {
            return;
        };
        let id = reading.frame;
        let Some(replica) = self.frames.replica(id).filter(|r| r.birth == reading.birth) else {
            // Freed meanwhile; whoever wants what is there now waits for a read of its own.
            return self.reads.want(id);
        };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                self.scrubbed(id, 0, false);
                return self.break_down(id, &error.to_string(), out);
            }
        };
        let (log, segment, fallback) = (replica.log, replica.segment, replica.fallback);
        let verified = match verify(&bytes, reading.certificate, log, segment) {
            Ok(opening) => Ok((reading.certificate, bytes, opening)),
            Err(why) => match fallback {
                Some(older) if bytes.len() >= older.length as usize => {
                    let bytes = bytes.slice(..older.length as usize);
                    verify(&bytes, older, log, segment).map(|opening| (older, bytes, opening))
                }
                _ => Err(why),
            },
        };
        self.scrubbed(id, u64::from(reading.certificate.length), verified.is_ok());
        match verified {
            Ok((certificate, bytes, opening)) => {
                self.counts.verified += 1;
                if certificate != reading.certificate {
                    self.frames.fall_back(id, certificate);
                    self.counts.fallbacks += 1;
                }
                let replica = self.frames.replica_mut(id).expect("looked up above");
                replica.checked = true;
                if replica.closed {
                    replica.outline.read(&bytes);
                }
                if replica.fallback.take().is_some() {
                    self.write_fence(id, out);
                }
                // The scrub must not push out what recovery masters will ask for.
                let fenced = self.fence_of(log) > Epoch(0);
                if fenced || self.is_fetched(id) {
                    let birth = reading.birth;
                    self.cache.put(id, birth, bytes.clone());
                }
                self.fetch_read(id, &bytes, out);
                self.survey_read(log, id, opening, out);
                self.claim_read(id, out);
            }
            Err(why) => self.condemn(id, why, out),
        }
    }

    /// The replica's bytes are bad: it counts no more, and its master makes it again (B4).
    fn condemn(&mut self, id: FrameId, why: String, out: &mut Outputs) {
        self.let_go(id, out);
        self.frames.condemn(id);
        let replica = self.frames.replica(id).expect("a replica was read");
        let (log, segment) = (replica.log, replica.segment);
        self.counts.corrupt += 1;
        out.event(
            Level::Error,
            format!(
                "the replica of segment {segment} of log {log} in frame {} is corrupt: {why}",
                id.0
            ),
        );
        // A fence that had to wait until it was known which header slot counts.
        self.write_fence(id, out);
        self.report(log, segment, Refusal::Reopen { length: 0 }, out);
        self.answer_fence(log, out);
    }

    fn tick(&mut self, now: Now, out: &mut Outputs) {
        self.membership.tick(now, out);
        if matches!(self.stage, Stage::Joining | Stage::Stopped) {
            return;
        }
        self.upkeep(out);
        if self.stage == Stage::Serving {
            self.scrub(out);
        }
        self.pump_fetches();
        self.pump_reads(out);
        self.pump_syncs(out);
        self.check_stopped(out);
    }
}

impl Node for Backup {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        if self.stage == Stage::Stopped {
            return;
        }
        self.now_us = self.now_us.max(now.mono_us);
        self.started_us.get_or_insert(now.mono_us);
        match input {
            Input::Tick => self.tick(now, out),
            Input::Message { from, message } => self.take_message(now, from, message, out),
            Input::PeerLost { peer, ended } => {
                self.forget_requester(peer);
                self.lookups.forget_requester(peer);
                self.membership.peer_lost(now, peer, ended, out);
            }
            Input::Disk(DiskDone::Synced { token, result }) => self.take_synced(token, result, out),
            Input::Disk(DiskDone::Read { token, result }) => match self.lookups.take_read(token) {
                Some(lookup) => self.look_up_read(lookup, result, out),
                None => self.take_read(token, result, out),
            },
            Input::Shutdown => self.begin_stopping(out),
            // Coordinators and gateways get these.
            Input::RecordsWritten { .. }
            | Input::Connected { .. }
            | Input::Received { .. }
            | Input::Disconnected { .. }
            | Input::Call { .. }
            | Input::Order { .. } => {}
        }
        if !matches!(self.stage, Stage::Joining | Stage::Stopped) {
            self.pump_lookups(out);
            self.serve_fetch(out);
            self.pump_fetches();
            self.pump_reads(out);
            self.pump_syncs(out);
            self.check_stopped(out);
        }
        self.membership.set_figures(self.figures());
    }

    fn wakeup(&self) -> Option<u64> {
        let membership = self.membership.wakeup();
        match self.stage {
            Stage::Stopped => None,
            Stage::Joining => membership,
            Stage::Serving | Stage::Stopping { .. } => {
                let scrub = self.scrub.wakeup().filter(|_| self.stage == Stage::Serving);
                let own = if self.has_fetch_work() {
                    self.now_us
                } else {
                    scrub.map_or(self.upkeep_due_us, |due| due.min(self.upkeep_due_us))
                };
                Some(membership.map_or(own, |due| due.min(own)))
            }
        }
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        let counts = &self.counts;
        let count = |value: u64| value as f64;
        let pass = self.scrub.last_pass_s(self.now_us);
        let (mut open, mut closed, mut outline_bytes) = (0, 0, 0);
        for (_, replica) in self.frames.held() {
            outline_bytes += replica.outline.memory_bytes();
            *(if replica.closed {
                &mut closed
            } else {
                &mut open
            }) += 1;
        }
        vec![
            ("holdfast_backup_frames", f64::from(self.frames.len())),
            (
                "holdfast_backup_frames_free",
                self.frames.free_count() as f64,
            ),
            (
                "holdfast_backup_frames_broken",
                self.frames.broken_count() as f64,
            ),
            ("holdfast_backup_replicas_open", f64::from(open)),
            ("holdfast_backup_replicas_closed", f64::from(closed)),
            ("holdfast_backup_appends_total", count(counts.appends)),
            (
                "holdfast_backup_append_bytes_total",
                count(counts.append_bytes),
            ),
            (
                "holdfast_backup_stale_appends_total",
                count(counts.stale_appends),
            ),
            ("holdfast_backup_refusals_total", count(counts.refusals)),
            ("holdfast_backup_syncs_total", count(counts.syncs)),
            (
                "holdfast_backup_sync_errors_total",
                count(counts.sync_errors),
            ),
            ("holdfast_backup_reads_total", count(counts.reads)),
            (
                "holdfast_backup_replicas_verified_total",
                count(counts.verified),
            ),
            (
                "holdfast_backup_corrupt_replicas_total",
                count(counts.corrupt),
            ),
            (
                "holdfast_backup_damaged_headers_total",
                count(counts.damaged_headers),
            ),
            ("holdfast_backup_fallbacks_total", count(counts.fallbacks)),
            (
                "holdfast_backup_inventories_total",
                count(counts.inventories),
            ),
            ("holdfast_backup_fetches_total", count(counts.fetches)),
            (
                "holdfast_backup_fetches_failed_total",
                count(counts.fetches_failed),
            ),
            (
                "holdfast_backup_fetched_bytes_total",
                count(counts.fetched_bytes),
            ),
            (
                "holdfast_backup_scrub_replicas_total",
                count(self.scrub.replicas),
            ),
            ("holdfast_backup_scrub_bytes_total", count(self.scrub.bytes)),
            ("holdfast_backup_scrub_bad_total", count(self.scrub.bad)),
            (
                "holdfast_backup_scrub_passes_total",
                count(self.scrub.passes),
            ),
            (
                "holdfast_backup_scrub_position",
                self.scrub.permille(self.frames.len()) as f64 / 1e3,
            ),
            (
                "holdfast_backup_scrub_pass_seconds",
                pass.map_or(0.0, |(_, took_s)| took_s as f64),
            ),
            (
                "holdfast_backup_scrub_pass_age_seconds",
                pass.map_or(0.0, |(ago_s, _)| ago_s as f64),
            ),
            ("holdfast_backup_cache_hits_total", count(counts.cache_hits)),
            ("holdfast_backup_outlines_total", count(counts.outlines)),
            ("holdfast_backup_outline_bytes", outline_bytes as f64),
            ("holdfast_backup_lookups_total", count(counts.lookups)),
            (
                "holdfast_backup_lookups_failed_total",
                count(counts.lookups_failed),
            ),
            (
                "holdfast_backup_cache_bytes",
                self.cache.used_bytes() as f64,
            ),
        ]
    }

    fn ready(&self) -> bool {
        self.stage == Stage::Serving && self.membership.is_enlisted()
    }

    fn figures(&self) -> Figures {
        let frame_bytes = u64::from(FRAME_HEADER_BYTES + self.config.segment_bytes);
        let held = self.frames.held_count() as u64;
        Figures {
            segments: held,
            disk_used: (held + self.frames.broken_count() as u64) * frame_bytes,
            disk_limit: u64::from(self.frames.len()) * frame_bytes,
            operations: self.counts.appends,
            scrub_permille: self.scrub.permille(self.frames.len()),
            scrub_passes: self.scrub.passes,
            scrub_bad: self.scrub.bad,
            ..Figures::default()
        }
    }
}

/// Bytes read back against what their master certified, and against whose they should be: a disk may
/// also return some other frame's good bytes.
fn verify(
    bytes: &Bytes,
    certificate: Certificate,
    log: LogId,
    segment: SegmentId,
) -> Result<Option<Opening>, String> {
    if bytes.len() != certificate.length as usize {
        return Err(format!(
            "{} bytes were read of {}",
            bytes.len(),
            certificate.length
        ));
    }
    let computed = crc32c(bytes);
    if computed != certificate.checksum {
        let certified = certificate.checksum;
        return Err(format!(
            "its checksum is {computed:08x}, certified was {certified:08x}"
        ));
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let opening = Opening::parse(bytes).map_err(|error| error.to_string())?;
    if (opening.header.log, opening.header.segment) != (log, segment) {
        let (log, segment) = (opening.header.log, opening.header.segment);
        return Err(format!("it holds segment {segment} of log {log} instead"));
    }
    Ok(Some(opening))
}
