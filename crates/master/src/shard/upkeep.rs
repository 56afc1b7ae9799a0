//! What a shard does without being asked: it recovers, sweeps, cleans, and touches memory that it will need.

use holdfast_cluster::{Now, Outputs};
use holdfast_format::Position;
use holdfast_wire::{Failure, Outcome};

use super::Shard;

/// Background work is done so often when nothing else happens.
const TICK_US: u64 = 20_000;

/// Index buckets swept per tick at most: at most seven entries each are looked at, so about 0.2 ms; a million buckets
/// are passed in 80 s, which is soon enough for counting. When memory is short the cleaner
/// does not wait for the sweep.
const SWEEP_BUCKETS: u32 = 256;

/// And at least, so that a small index is passed in no time.
const SWEEP_BUCKETS_MIN: u32 = 64;

/// Ticks that one pass takes at least if it needs no more buckets than that in each: passing a hundred thousand
/// sessions every second would cost 3 % of a core and throw what clients ask for out of its caches.
const SWEEP_PASS_TICKS: u64 = 10_000_000 / TICK_US;

/// One slice of the cleaner: some 50 to 150 microseconds of reading and copying. How many are due the log says.
const CLEAN_SLICE_BYTES: u64 = 128 << 10;

/// While a namespace has all that it may, expired sessions may be in somebody's way: then the sweep is this much
/// more eager, and a million buckets are passed in 16 s.
const FULL_SWEEP_US: u64 = 4_000;

/// Slices in one flush: what came in meanwhile waits for them. While more are due there is another flush at once.
const CLEAN_SLICES: u32 = 2;

/// Within a turn, a slice is done whenever so much has been appended, and after every write while the cleaner is behind.
/// The fuller memory is, the more each write costs: it is the writers that are slowed down, in time, and not refused.
const CLEAN_EVERY_BYTES: u64 = 32 << 10;

/// Until all of the log's memory has been touched once, so much of it is touched so often. At the 0.4 to 2.5 GB/s
/// that fresh memory costs this delays a request by 0.05 to 0.3 ms at most, and stays ahead of what
/// replication lets in.
const TOUCH_BYTES: u64 = 128 << 10;
const TOUCH_US: u64 = 1_000;

impl Shard {
    pub(super) fn background(&mut self, now: Now, out: &mut Outputs) {
        let view = self.membership.view();
        match self
            .recoveries
            .work(now, self.clock, view, &mut self.log, out)
        {
            Ok(more) => self.recover_more = more,
            Err(lost) => return self.stop(lost.to_string(), out),
        }
        if self.recoveries.withholds_some(now) || self.settled != self.owned {
            self.settle();
        }
        if self.sweep_due_us <= now.mono_us {
            let full = self.limits.any_full(&self.log);
            self.sweep_due_us = now.mono_us + if full { FULL_SWEEP_US } else { TICK_US };
            let buckets = match full {
                true => SWEEP_BUCKETS,
                false => self.sweep_buckets(),
            };
            self.log.sweep(self.clock, buckets);
        }
        if self.tick_due_us <= now.mono_us {
            self.tick_due_us = now.mono_us + TICK_US;
        }
        if self.may_touch() && self.touch_due_us <= now.mono_us {
            self.touch_due_us = now.mono_us + TOUCH_US;
            self.touch_more = self.log.touch_ahead(TOUCH_BYTES);
        }
        self.clean_in_flush();
    }

    /// What a write brings about: a large one as many slices as the small ones that would be as long.
    pub(super) fn clean_for(&mut self, outcome: &Outcome) {
        let refused = matches!(outcome, Outcome::Failed(Failure::OutOfMemory));
        let at_least = u64::from(refused || self.behind);
        let slices = (self.uncleaned / CLEAN_EVERY_BYTES).max(at_least);
        let _ = (0..slices).all(|_| self.clean());
    }

    pub(super) fn note_appended(&mut self, before: Position, end: Position) {
        let bytes = match before.segment == end.segment {
            true => end.offset - before.offset,
            false => end.offset,
        };
        self.unreplicated += u64::from(bytes);
        self.uncleaned += u64::from(bytes);
    }

    /// One slice. True if more is due.
    pub(super) fn clean(&mut self) -> bool {
        self.uncleaned = 0;
        self.clean_more = self.log.clean(self.clock, CLEAN_SLICE_BYTES);
        self.behind = self.clean_more && self.log.is_cleaning_behind();
        self.clean_more
    }

    /// The slices of a flush. Those who have just been served hear it first: once, or there would never be any while
    /// clients are busy.
    pub(super) fn clean_in_flush(&mut self) {
        let served = std::mem::take(&mut self.served);
        self.put_off = served && !self.put_off && self.log.is_cleaning_due(self.clock);
        if !self.put_off {
            self.clean_more = (0..CLEAN_SLICES).all(|_| self.clean());
        }
    }

    /// How many index buckets a tick sweeps.
    fn sweep_buckets(&self) -> u32 {
        let share = self.log.index_buckets().div_ceil(SWEEP_PASS_TICKS);
        share.clamp(SWEEP_BUCKETS_MIN.into(), SWEEP_BUCKETS.into()) as u32
    }

    /// Starting and recovering go first.
    pub(super) fn may_touch(&self) -> bool {
        self.touch_more && self.leased && !self.recover_more
    }
}
