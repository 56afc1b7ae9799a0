//! How much cleaning is due: in proportion to what is appended, so that throughput bends and never stops.
//!
//! A job costs so much work and gives back so much memory; for each byte that is appended, that share of its work is
//! due. The factor follows from how short memory is: 1 would keep what is free as it is, so below half of what
//! should be free it is more, above it is less, and the amount of free memory settles by itself. Only with next to
//! nothing free everything is due: a job is long, and whoever came in the middle of it would wait for its end.
//!
//! Memory and segments on backups run short at different times and are answered by different jobs, so each has an
//! account of its own: neither may keep the cleaner from the other.
//!
//! Besides, some work is due with time as long as something is short: what has expired must become usable again
//! although nothing is appended.

use holdfast_format::ClusterMs;

use crate::choosing::Shortage;
use crate::log::Log;

/// What cleaning is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Memory,
    /// Segments that replicas may have.
    Segments,
}

#[derive(Debug)]
struct Account {
    /// Work that is due and not done. What was done too much is owed, within bounds.
    credit: i64,
    /// Cost of a gained byte at the current job, in 16ths.
    price: u64,
    /// When nothing was found worth doing: what `Log::state` was.
    nothing_at: Option<[u64; 5]>,
}

#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes appended to heads and by replays since `due_bytes` was asked.
    appended: u64,
    accounts: [Account; 2],
    last: ClusterMs,
    appended_in_all: u64,
    /// Where the present window of time began, as time and bytes appended, and what the last one brought.
    window: (u64, u64),
    lately: Option<(u64, u64)>,
}

/// Windows in which appends are counted, to know how long memory will last.
const WINDOW_MS: u64 = 1_000;

/// A job that gains nearly nothing must not make one append wait for a whole slice after another.
const PRICE_MAX: u64 = 64 * 16;

/// What may be saved up: some slices, so that a burst of appends is made good soon after.
const CREDIT_MAX: i64 = 8 << 20;

/// What stays of it when nothing was worth doing: the next job should not begin with a burst.
const IDLE_CREDIT_MAX: i64 = 512 << 10;

/// More than so much due is more than a slice now and then will make good.
const BEHIND_BYTES: i64 = 2 << 20;

/// What may have been done ahead of its time, when all was due. More would be paid back by doing nothing until all
/// is due again.
const DEBT_MAX: i64 = 256 << 10;

/// Work that is due in a millisecond while something is short: 100 MB/s, a sixteenth of what a core does.
const SHORT_BYTES_PER_MS: u64 = 100_000;

/// From this shortage on the factor rises five times as fast.
const STEEP: Shortage = Shortage(224);

/// The shortage from which on everything is due that there is.
const ALL_IS_DUE: Shortage = Shortage(252);

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            appended: 0,
            accounts: [Account::new(), Account::new()],
            last: ClusterMs(0),
            appended_in_all: 0,
            window: (0, 0),
            lately: None,
        }
    }
}

impl Account {
    fn new() -> Account {
        Account {
            credit: 0,
            price: 16,
            nothing_at: None,
        }
    }
}

impl Pace {
    #[inline]
    pub fn appended(&mut self, bytes: usize) {
        self.appended += bytes as u64;
    }

    /// Bytes appended in some milliseconds that are not long past. In the first window all that is known is what has
    /// come so far, which rather makes the log seem busy than idle.
    pub fn lately(&self) -> (u64, u64) {
        self.lately.unwrap_or_else(|| {
            let elapsed_ms = self.last.0.saturating_sub(self.window.0);
            (self.appended_in_all, elapsed_ms.max(1))
        })
    }

    fn count_window(&mut self) {
        let elapsed_ms = self.last.0.saturating_sub(self.window.0);
        if elapsed_ms >= WINDOW_MS || self.window.0 == 0 {
            if self.window.0 > 0 {
                self.lately = Some((self.appended_in_all - self.window.1, elapsed_ms));
            }
            self.window = (self.last.0, self.appended_in_all);
        }
    }

    /// The job that is begun for the sake of `need` gains so many bytes by so much work.
    pub fn price(&mut self, need: Need, cost: u64, gain: u64) {
        self.accounts[need as usize].price = (cost * 16 / gain.max(1)).min(PRICE_MAX);
    }

    pub fn spend(&mut self, need: Need, worked: i64) {
        let account = &mut self.accounts[need as usize];
        account.credit = (account.credit - worked).max(-DEBT_MAX);
    }
}

impl Log {
    /// Looking for something to do costs some 10 ns per segment, too much to do it again for every append: false
    /// until enough has happened since it was in vain.
    pub(crate) fn may_look(&self, need: Need) -> bool {
        self.cleaner.pace.accounts[need as usize].nothing_at != Some(self.state(need))
    }

    pub(crate) fn found_nothing(&mut self, need: Need) {
        let state = self.state(need);
        let account = &mut self.cleaner.pace.accounts[need as usize];
        account.nothing_at = Some(state);
        account.credit = account.credit.min(IDLE_CREDIT_MAX);
    }

    /// Appended and live bytes in seglets, changes of segments, time and shortage, coarsely.
    fn state(&self, need: Need) -> [u64; 5] {
        let pace = &self.cleaner.pace;
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let appended = pace.appended_in_all / seglet_bytes;
        let live = self.segments.live() / seglet_bytes;
        let shortage = u64::from(self.shortage_of(need).0 >> 4);
        let change = self.segments.change();
        [appended, live, change, pace.last.0 >> 4, shortage]
    }

    pub(crate) fn shortage_of(&self, need: Need) -> Shortage {
        match need {
            Need::Memory => self.memory_shortage(),
            Need::Segments => self.segment_shortage(),
        }
    }

    /// Enters what has become due since the last call.
    pub(crate) fn accrue(&mut self, now: ClusterMs) {
        let shortages = [self.memory_shortage(), self.segment_shortage()];
        let pace = &mut self.cleaner.pace;
        let appended = std::mem::take(&mut pace.appended);
        pace.appended_in_all += appended;
        let elapsed_ms = now.0.saturating_sub(pace.last.0).min(100);
        pace.last = pace.last.max(now);
        pace.count_window();
        for (account, shortage) in pace.accounts.iter_mut().zip(shortages) {
            // Twice as much as keeps the balance when all is used up; a little always, so that jobs end.
            let steep = u64::from(shortage.0.saturating_sub(STEEP.0)) * 8;
            let factor = 32 + u64::from(shortage.0) * 2 + steep;
            let by_time = match shortage > Shortage(0) {
                true => SHORT_BYTES_PER_MS,
                false => SHORT_BYTES_PER_MS / 16,
            };
            let due = appended * account.price / 16 * factor / 256 + elapsed_ms * by_time;
            account.credit = (account.credit + due as i64).min(CREDIT_MAX);
        }
    }

    /// True if something should be done for the sake of `need`.
    fn is_due(&self, need: Need) -> bool {
        self.cleaner.pace.accounts[need as usize].credit > 0 || self.shortage_of(need) >= ALL_IS_DUE
    }

    /// True if `clean` has something to do.
    pub fn is_cleaning_due(&mut self, now: ClusterMs) -> bool {
        self.accrue(now);
        self.due().is_some()
    }

    /// True if more is due than a slice now and then makes good: then whoever appends should have a slice done first.
    pub fn is_cleaning_behind(&self) -> bool {
        self.needs().into_iter().any(|need| {
            let credit = self.cleaner.pace.accounts[need as usize].credit;
            let behind = credit > BEHIND_BYTES || self.shortage_of(need) >= ALL_IS_DUE;
            behind && self.may_do(need)
        })
    }

    /// What the next slice is for, if one is due and there is something to do.
    pub(crate) fn due(&self) -> Option<Need> {
        let mut needs = self.needs().into_iter();
        needs.find(|&need| self.is_due(need) && self.may_do(need))
    }

    fn may_do(&self, need: Need) -> bool {
        self.may_go_on(need) || self.may_look(need)
    }

    /// The scarcer first.
    fn needs(&self) -> [Need; 2] {
        match self.segment_shortage() > self.memory_shortage() {
            true => [Need::Segments, Need::Memory],
            false => [Need::Memory, Need::Segments],
        }
    }
}
