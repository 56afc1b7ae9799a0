//! The scrub: reads back and verifies every closed replica once in a period. Rot must be found while other replicas
//! are there to repair from: a bad one that nobody reads is found by the recovery that needs it, perhaps too late.
//!
//! What it finds is treated as whatever else is found bad (`Backup::condemn`): it counts no more, and its master makes
//! another, which takes its place.
//!
//! C1. One replica at a time, each when the period would have come to its frame: the disk is read at the same pace
//!     however full the store is. It never reads faster than `BYTES_PER_SECOND_MAX`; where that is not enough a pass
//!     takes longer, and says so (`pass_seconds`).
//! C2. It gives way: while anybody else reads or fetches it waits, and makes up for it later within C1.
//! C3. It goes by frames from where it began around to there again; what was verified otherwise meanwhile is verified
//!     all the same, because a read that the kernel answers from memory says nothing about the disk.

use holdfast_cluster::{Dice, FrameId, Level, Outputs};

use crate::backup::Backup;

/// A tenth of what one disk does, and 5.5 TB a day.
const BYTES_PER_SECOND_MAX: u64 = 64 << 20;

/// Frames looked at in a step for one that holds something: some 20 microseconds.
const FRAMES_PER_STEP_MAX: u32 = 4096;

/// How soon it looks again when others are reading.
const GIVE_WAY_US: u64 = 100_000;

/// Where the scrub is, and what it has found since this incarnation began.
#[derive(Debug)]
pub(crate) struct Scrub {
    /// 0: never.
    period_us: u64,
    /// The next frame, and how many of this pass there are from it on.
    cursor: FrameId,
    frames_left: u32,
    reading: Option<FrameId>,
    due_us: u64,
    began_us: Option<u64>,
    pub passes: u64,
    pub replicas: u64,
    pub bytes: u64,
    pub bad: u64,
    /// When the last pass ended, and how long it took.
    last_pass: Option<(u64, u64)>,
}

impl Scrub {
    pub fn new(period_ms: u64, frames: u32, dice: &mut Dice) -> Scrub {
        Scrub {
            period_us: period_ms * 1_000,
            // Backups started together do not all verify the same segment's replicas at once.
            cursor: FrameId(dice.below(u64::from(frames)) as u32),
            frames_left: frames,
            reading: None,
            due_us: 0,
            began_us: None,
            passes: 0,
            replicas: 0,
            bytes: 0,
            bad: 0,
            last_pass: None,
        }
    }

    /// True while the replica in `frame` is being read for the scrub.
    pub fn reads(&self, frame: FrameId) -> bool {
        self.reading == Some(frame)
    }

    /// The read is over, or its replica is.
    pub fn done(&mut self, frame: FrameId) {
        if self.reads(frame) {
            self.reading = None;
        }
    }

    /// When there is something to do.
    pub fn wakeup(&self) -> Option<u64> {
        (self.period_us > 0 && self.reading.is_none()).then_some(self.due_us)
    }

    /// How much of this pass is done.
    pub fn permille(&self, frames: u32) -> u64 {
        u64::from(frames - self.frames_left) * 1_000 / u64::from(frames)
    }

    /// Seconds since the last pass ended, and that it took.
    pub fn last_pass_s(&self, now_us: u64) -> Option<(u64, u64)> {
        let (ended_us, took_us) = self.last_pass?;
        Some((
            now_us.saturating_sub(ended_us) / 1_000_000,
            took_us / 1_000_000,
        ))
    }
}

impl Backup {
    /// Goes on with the scrub, if that is due.
    pub(crate) fn scrub(&mut self, out: &mut Outputs) {
        let now_us = self.now_us;
        let frames = self.frames.len();
        let scrub = &mut self.scrub;
        if scrub.period_us == 0 || scrub.reading.is_some() {
            return;
        }
        let Some(began_us) = scrub.began_us else {
            scrub.began_us = Some(now_us);
            scrub.due_us = now_us + scrub.period_us / u64::from(frames);
            return;
        };
        if now_us < scrub.due_us {
            return;
        }
        if !self.reads.is_idle() || !self.fetches.is_empty() {
            // C2.
            scrub.due_us = now_us + GIVE_WAY_US;
            return;
        }
        for _ in 0..FRAMES_PER_STEP_MAX {
            if scrub.frames_left == 0 {
                return self.end_pass(out);
            }
            let id = scrub.cursor;
            scrub.cursor = FrameId((id.0 + 1) % frames);
            scrub.frames_left -= 1;
            let replica = self.frames.replica(id);
            if let Some(replica) = replica.filter(|it| it.closed && !it.rotten) {
                let bytes = u64::from(replica.length);
                // C1. Whoever is behind goes as fast as is allowed.
                let done = u64::from(frames - scrub.frames_left);
                let even_us = began_us + scrub.period_us * done / u64::from(frames);
                let soonest_us = now_us + bytes * 1_000_000 / BYTES_PER_SECOND_MAX;
                scrub.due_us = soonest_us.max(even_us);
                scrub.reading = Some(id);
                self.reads.want(id);
                return;
            }
        }
    }

    fn end_pass(&mut self, out: &mut Outputs) {
        let (now_us, frames) = (self.now_us, self.frames.len());
        let scrub = &mut self.scrub;
        let began_us = scrub.began_us.expect("it has begun");
        let took_us = now_us - began_us;
        scrub.passes += 1;
        scrub.last_pass = Some((now_us, took_us));
        scrub.frames_left = frames;
        // A store that holds little is through at once, and has time.
        scrub.due_us = now_us.max(began_us + scrub.period_us);
        scrub.began_us = Some(scrub.due_us);
        let text = format!(
            "scrub pass {} has ended after {} s; {} bad replicas so far",
            scrub.passes,
            took_us / 1_000_000,
            scrub.bad
        );
        out.event(Level::Debug, text);
    }

    /// The replica in `id` has been read and is whole, if `good`.
    pub(crate) fn scrubbed(&mut self, id: FrameId, bytes: u64, good: bool) {
        if self.scrub.reads(id) {
            self.scrub.done(id);
            self.scrub.replicas += 1;
            self.scrub.bytes += bytes;
            self.scrub.bad += u64::from(!good);
        }
    }
}
