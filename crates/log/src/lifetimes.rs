//! How long what lives will live: per segment, how many bytes expire when, and what the cleaner makes of it.
//!
//! RAMCloud's cleaner guesses from age; a session says itself when it ends. Deadlines are absolute and move with
//! every touch, so the statistics are rings of absolute time, in which a deadline's place never depends on the
//! time of looking:
//!
//! ```text
//!          width    digits   one turn   children per bucket
//! eons     18.6 h     32      24.9 d        8 long
//! long      2.3 h     16      37 h          4 mid
//! mid        35 min   16       9.3 h       16 fine
//! fine      2.2 min   64       2.3 h
//! ```
//!
//! Every deadline counts once in each ring. The eons are unambiguous, because what ends more than `NEAR_EONS` of
//! them after the segment's opening counts as `far`, together with what never ends. A bucket's bytes are shared
//! out over its children as their own ring has them, which undoes the aliasing: digits of the finer
//! ring that belong to other turns only distort the shape within one bucket, never the sum. Deadlines spread over
//! less than a turn of the fine ring, as those of one idle time are, come out exactly but for the last bucket.
//!
//! T1. Estimates only: they choose, they never decide what lives. So all arithmetic saturates and nothing is
//!     asserted about them; what lives is judged entry by entry when the cleaner meets it.
//! T2. `take` undoes `add` of the same deadline, whatever happened between: places are pure functions of deadline
//!     and opening.
//! T3. No allocation, 528 bytes a segment, four or five counters an update.

use holdfast_format::ClusterMs;

const FINE_SHIFT: u32 = 17;
const MID_SHIFT: u32 = FINE_SHIFT + 4;
const LONG_SHIFT: u32 = MID_SHIFT + 2;
const EON_SHIFT: u32 = LONG_SHIFT + 3;

const FINE: usize = 64;
const MID: usize = 16;
const LONG: usize = 16;
const EONS: usize = 32;

/// Later than this after a segment's opening is `far`: some 23 days. One eon less than the ring has, because the
/// opening lies somewhere within its own, and one more for good measure.
const NEAR_EONS: u64 = EONS as u64 - 2;

// A bucket's children must be different digits of their ring, and neighbours' too: then what lies around the
// border of two buckets is not mixed up.
const _: () = assert!(FINE >= 2 << (MID_SHIFT - FINE_SHIFT));
const _: () = assert!(MID >= 2 << (LONG_SHIFT - MID_SHIFT));
const _: () = assert!(LONG >= 2 << (EON_SHIFT - LONG_SHIFT));

/// Memory of one segment's statistics, for the bound on a log's tables.
pub const LIFETIMES_BYTES: u64 = size_of::<Lifetimes>() as u64;
const _: () = assert!(LIFETIMES_BYTES == 528);

/// How many of a segment's live bytes expire when.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    /// When the segment was opened. Deadlines before it count as this.
    opened: ClusterMs,
    /// Never, or beyond the eons.
    far: u32,
    /// Bytes of touches among all those: most are superseded long before their deadline.
    touches: u32,
    fine: [u32; FINE],
    mid: [u32; MID],
    long: [u32; LONG],
    eons: [u32; EONS],
}

impl Lifetimes {
    pub fn new(opened: ClusterMs) -> Lifetimes {
        Lifetimes {
            opened,
            far: 0,
            touches: 0,
            fine: [0; FINE],
            mid: [0; MID],
            long: [0; LONG],
            eons: [0; EONS],
        }
    }

    /// `bytes` that live until `deadline` came in: appended, copied, or touched to this deadline.
    #[inline]
    pub fn add(&mut self, deadline: Option<ClusterMs>, bytes: u32) {
        self.change(deadline, |counter| *counter = counter.saturating_add(bytes));
    }

    /// `bytes` that would have lived until `deadline` are gone: killed, moved, or touched to another deadline.
    #[inline]
    pub fn take(&mut self, deadline: Option<ClusterMs>, bytes: u32) {
        self.change(deadline, |counter| *counter = counter.saturating_sub(bytes));
    }

    /// Some of the bytes added were those of a touch.
    #[inline]
    pub fn add_touch(&mut self, bytes: u32) {
        self.touches = self.touches.saturating_add(bytes);
    }

    /// They are among those taken.
    #[inline]
    pub fn take_touch(&mut self, bytes: u32) {
        self.touches = self.touches.saturating_sub(bytes);
    }

    /// Bytes whose deadline is at or before `now` and which nobody has taken yet.
    pub fn expired_by(&self, now: ClusterMs) -> u64 {
        // The opening's own eon and all from there to `now`; nothing is counted before it.
        let first = self.opened.0 >> EON_SHIFT;
        let last = now.0 >> EON_SHIFT;
        if last < first {
            return 0;
        }
        let past = (last - first).min(EONS as u64);
        let whole: u64 = (first..first + past)
            .map(|eon| u64::from(self.eons[digit(eon, EONS)]))
            .sum();
        if past == EONS as u64 {
            return whole;
        }
        whole + self.share(last, now)
    }

    /// Bytes whose deadline comes after `from` and not after `to`.
    pub fn expiring_between(&self, from: ClusterMs, to: ClusterMs) -> u64 {
        self.expired_by(to.max(from))
            .saturating_sub(self.expired_by(from))
    }

    /// The part of an eon's bytes that is over by `time`, which lies within it.
    fn share(&self, eon: u64, time: ClusterMs) -> u64 {
        let mut bytes = u64::from(self.eons[digit(eon, EONS)]);
        let mut over = 0;
        let rings: [(&[u32], u32, u32); 3] = [
            (&self.long, EON_SHIFT, LONG_SHIFT),
            (&self.mid, LONG_SHIFT, MID_SHIFT),
            (&self.fine, MID_SHIFT, FINE_SHIFT),
        ];
        for (ring, parent_shift, shift) in rings {
            if bytes == 0 {
                return over;
            }
            let at = time.0 >> shift;
            let first = (time.0 >> parent_shift) << (parent_shift - shift);
            let end = first + (1 << (parent_shift - shift));
            let count = |bucket: u64| u64::from(ring[digit(bucket, ring.len())]);
            let all: u64 = (first..end).map(count).sum();
            let before: u64 = (first..at).map(count).sum();
            // Saturation may have lost what the parent still has: then evenly.
            let (before, within, all) = match all {
                0 => (at - first, 1, end - first),
                all => (before, count(at), all),
            };
            over += bytes * before / all;
            bytes = bytes * within / all;
        }
        let width = 1 << FINE_SHIFT;
        // A deadline of just `time` is over.
        over + bytes * ((time.0 & (width - 1)) + 1) / width
    }

    #[inline]
    fn change(&mut self, deadline: Option<ClusterMs>, change: impl Fn(&mut u32)) {
        let near = deadline
            .map(|deadline| deadline.0.max(self.opened.0))
            .filter(|&deadline| {
                (deadline >> EON_SHIFT) - (self.opened.0 >> EON_SHIFT) <= NEAR_EONS
            });
        let Some(deadline) = near else {
            change(&mut self.far);
            return;
        };
        change(&mut self.fine[digit(deadline >> FINE_SHIFT, FINE)]);
        change(&mut self.mid[digit(deadline >> MID_SHIFT, MID)]);
        change(&mut self.long[digit(deadline >> LONG_SHIFT, LONG)]);
        change(&mut self.eons[digit(deadline >> EON_SHIFT, EONS)]);
    }
}

#[inline]
fn digit(bucket: u64, digits: usize) -> usize {
    bucket as usize & (digits - 1)
}

// ---- what the cleaner makes of it ----

/// Time in which the log uses up its free memory, if it goes on appending as in the last `elapsed_ms`: how long a
/// victim can wait.
pub fn horizon_ms(free_bytes: u64, appended_bytes: u64, elapsed_ms: u64) -> u64 {
    match appended_bytes {
        0 => u64::MAX,
        bytes => free_bytes.saturating_mul(elapsed_ms) / bytes,
    }
}

/// The part of what lives that goes within the horizon for reasons that nobody can know.
const LITTLE: f64 = 0.02;

/// What cleaning a segment would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Bytes that would have to be copied: live, and not expired.
    pub live_bytes: u64,
    /// Those of them that expire by themselves while there is still memory.
    pub ending_bytes: u64,
}

impl Outlook {
    /// `live_bytes` as the log counts them, which includes what has expired and not been met yet.
    /// `touch_interval_ms` is the mean time between two touches of a session, 0 if nothing is known about it.
    pub fn of(
        lifetimes: &Lifetimes,
        live_bytes: u64,
        now: ClusterMs,
        slack_ms: u64,
        horizon_ms: u64,
        touch_interval_ms: u64,
    ) -> Outlook {
        let freed_by = ClusterMs(now.0.saturating_sub(slack_ms));
        let expired = lifetimes.expired_by(freed_by);
        let live_bytes = live_bytes.saturating_sub(expired);
        if horizon_ms == 0 {
            return Outlook {
                live_bytes,
                ending_bytes: 0,
            };
        }
        let ending = lifetimes.expiring_between(freed_by, freed_by.plus_ms(horizon_ms));
        // Touches come at exponential intervals; h / (h + m) is close enough to 1 - exp(-h / m).
        let touches = u64::from(lifetimes.touches);
        let superseded = match touch_interval_ms {
            0 => 0,
            mean => touches * horizon_ms.min(1 << 32) / (horizon_ms.min(1 << 32) + mean),
        };
        Outlook {
            live_bytes,
            ending_bytes: (ending + superseded).min(live_bytes),
        }
    }

    /// How well what is gained by copying will keep, as one part of those bytes that end meanwhile: a segment from which
    /// nothing goes soon is not emptier later, and need not be copied again soon. Without a horizon all are alike.
    pub fn stability(&self) -> f64 {
        let live = self.live_bytes as f64 + 1.0;
        1.0 / (self.ending_bytes as f64 / live + LITTLE)
    }

    /// True if the segment should be left alone: what copying costs now falls to half or less by waiting as
    /// long as memory lasts. The shorter memory gets, the shorter that is, so that in the end nothing waits.
    pub fn can_wait(&self) -> bool {
        self.ending_bytes > 0 && self.ending_bytes * 2 >= self.live_bytes
    }
}

/// What lives about equally long, in the order in which survivors are filled. Survivors are sorted by this and, within
/// one, by age; so a segment of what ends soon ends as a whole and costs nothing, and what stays is not
/// copied again for its sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prospect(u8);

/// What an entry is, to judge how long it will be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// As long as the session.
    Object,
    /// Until the next touch, or as long as the session if none comes.
    Touch,
    /// Until older segments have left.
    Tombstone,
}

impl Prospect {
    /// Groups of sessions that nobody uses any more, by when they end: within 1, 2, 4, … of these.
    const ENDING_MS: u64 = 1 << 18;
    const ENDING_GROUPS: u8 = 12;
    const TOUCH: Prospect = Prospect(Self::ENDING_GROUPS);
    const TOMBSTONE: Prospect = Prospect(Self::ENDING_GROUPS + 1);
    const IN_USE: Prospect = Prospect(Self::ENDING_GROUPS + 2);
    const LASTING: Prospect = Prospect(Self::ENDING_GROUPS + 3);

    /// Coarser, by who is copied to the same survivor: what ends soon, touches, and what lasts. More survivors at once
    /// would be many half-empty segments.
    pub fn group(self) -> usize {
        match self {
            it if it < Self::TOUCH => 0,
            Self::TOUCH => 1,
            _ => 2,
        }
    }

    /// How many groups there are.
    pub const GROUPS: usize = 3;

    /// `idle_ms` is how far a touch moves the session's deadline, if that is known.
    ///
    /// Users come back at intervals much shorter than the idle time (or would be logged out all the time); with
    /// exponential ones of a fifth of it, fewer than one in twelve of those that have let half of it pass still comes. So
    /// less than half of it left means abandoned, and the deadline will hold.
    pub fn of(
        needed: Needed,
        deadline: Option<ClusterMs>,
        idle_ms: Option<u32>,
        now: ClusterMs,
    ) -> Prospect {
        if needed == Needed::Tombstone {
            return Self::TOMBSTONE;
        }
        let left_ms = deadline.map(|deadline| deadline.0.saturating_sub(now.0));
        let in_use = match (left_ms, idle_ms) {
            (Some(left_ms), Some(idle_ms)) => left_ms > u64::from(idle_ms) / 2,
            // Only touches tell, then: what was touched once is touched again.
            (Some(_), None) => needed == Needed::Touch,
            (None, _) => true,
        };
        match (needed, left_ms) {
            (Needed::Touch, _) if in_use => Self::TOUCH,
            (_, None) => Self::LASTING,
            _ if in_use => Self::IN_USE,
            (_, Some(left_ms)) => {
                let group = (left_ms / Self::ENDING_MS + 1).ilog2() as u8;
                match group < Self::ENDING_GROUPS {
                    true => Prospect(group),
                    false => Self::LASTING,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    /// In the year 2026, at no round place of any ring.
    const NOW: u64 = 1_795_000_123_456;

    fn ms(ms: u64) -> ClusterMs {
        ClusterMs(ms)
    }

    /// xorshift64*
    fn roll(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn all(lifetimes: &Lifetimes) -> [u64; 5] {
        let sum = |ring: &[u32]| ring.iter().map(|&it| u64::from(it)).sum();
        let Lifetimes {
            fine,
            mid,
            long,
            eons,
            ..
        } = lifetimes;
        [
            sum(fine),
            sum(mid),
            sum(long),
            sum(eons),
            u64::from(lifetimes.far),
        ]
    }

    #[test]
    fn taking_undoes_adding() {
        let mut dice = 7;
        let mut lifetimes = Lifetimes::new(ms(NOW));
        let deadlines: Vec<_> = (0..5_000)
            .map(|n| match n % 7 {
                0 => None,
                1 => Some(ms(roll(&mut dice) % NOW)),
                2 => Some(ms(u64::MAX - roll(&mut dice))),
                _ => Some(ms(NOW + roll(&mut dice) % (60 * DAY))),
            })
            .collect();
        for &deadline in &deadlines {
            lifetimes.add(deadline, 123);
        }
        assert!(all(&lifetimes).iter().all(|&sum| sum > 0));
        for &deadline in &deadlines {
            lifetimes.take(deadline, 123);
        }
        assert_eq!(all(&lifetimes), [0; 5]);
        assert_eq!(lifetimes.expired_by(ms(NOW + 90 * DAY)), 0);
        // More than ever came is not less than nothing.
        lifetimes.take(Some(ms(NOW)), 1);
        lifetimes.take(None, 1);
        assert_eq!(all(&lifetimes), [0; 5]);
    }

    /// The estimate against the truth, at many times. Returns the largest error as a part of all.
    fn worst_error(opened: u64, deadlines: &[u64], from: u64, to: u64) -> f64 {
        let mut lifetimes = Lifetimes::new(ms(opened));
        for &deadline in deadlines {
            lifetimes.add(Some(ms(deadline)), 100);
        }
        let mut worst = 0.0f64;
        let (mut last, steps) = (0, 500);
        for step in 0..=steps {
            let time = from + (to - from) * step / steps;
            let estimate = lifetimes.expired_by(ms(time));
            assert!(estimate >= last, "time goes on and less has expired");
            last = estimate;
            let truth = deadlines.iter().filter(|&&it| it <= time).count() as f64 * 100.0;
            worst = worst.max((estimate as f64 - truth).abs());
        }
        worst / (deadlines.len() as f64 * 100.0)
    }

    #[test]
    fn one_idle_time_is_told_exactly_wherever_it_lies_in_the_rings() {
        let mut dice = 11;
        for n in 0..40 {
            // Across the borders of every ring, in segments opened long ago.
            let now = NOW + n * (11 * HOUR + 7 * MINUTE);
            let opened = now - n % 20 * 23 * HOUR;
            let deadlines: Vec<u64> = (0..2_000)
                .map(|_| now + roll(&mut dice) % (30 * MINUTE))
                .collect();
            let error = worst_error(opened, &deadlines, now - HOUR, now + 2 * HOUR);
            assert!(error < 0.02, "{error} at {now}");
        }
    }

    #[test]
    fn mixed_times_to_live_are_told_well_enough_to_choose() {
        let mut dice = 13;
        for n in 0..20 {
            let now = NOW + n * (13 * HOUR + 5 * MINUTE);
            let ttls = [10 * MINUTE, 30 * MINUTE, 8 * HOUR, DAY, 7 * DAY, 14 * DAY];
            let deadlines: Vec<u64> = (0..6_000)
                .map(|n| now + ttls[n % 6] - roll(&mut dice) % (15 * MINUTE).min(ttls[n % 6]))
                .collect();
            let error = worst_error(now, &deadlines, now, now + 20 * DAY);
            assert!(
                error < 0.15,
                "{error} at {now}: nearly one time to live of six is misplaced"
            );
        }
    }

    #[test]
    fn what_never_ends_never_counts_as_expired() {
        let mut lifetimes = Lifetimes::new(ms(NOW));
        lifetimes.add(None, 1000);
        lifetimes.add(Some(ms(NOW + 40 * DAY)), 1000);
        lifetimes.add(Some(ms(NOW + 400 * DAY)), 1000);
        lifetimes.add(Some(ms(NOW + HOUR)), 10);
        for day in 0..30 {
            assert_eq!(lifetimes.expired_by(ms(NOW + day * DAY + 4 * HOUR)), 10);
        }
        // The eons come round; they are not counted again.
        assert_eq!(lifetimes.expired_by(ms(u64::MAX)), 10);
        assert_eq!(lifetimes.expired_by(ms(0)), 0);
    }

    #[test]
    fn a_deadline_before_the_opening_is_over_at_once() {
        let mut lifetimes = Lifetimes::new(ms(NOW));
        lifetimes.add(Some(ms(1)), 1000);
        assert_eq!(lifetimes.expired_by(ms(NOW - DAY)), 0);
        assert!(lifetimes.expired_by(ms(NOW + (1 << FINE_SHIFT))) == 1000);
    }

    #[test]
    fn a_touch_moves_bytes_from_one_time_to_another() {
        let mut lifetimes = Lifetimes::new(ms(NOW));
        lifetimes.add(Some(ms(NOW + 30 * MINUTE)), 600);
        lifetimes.take(Some(ms(NOW + 30 * MINUTE)), 600);
        lifetimes.add(Some(ms(NOW + 55 * MINUTE)), 600);
        let between = |from, to| lifetimes.expiring_between(ms(NOW + from), ms(NOW + to));
        assert_eq!(between(0, 50 * MINUTE), 0);
        assert_eq!(between(50 * MINUTE, HOUR), 600);
        assert_eq!(between(HOUR, 50 * MINUTE), 0, "an empty time");
    }

    #[test]
    fn the_horizon_is_how_long_memory_lasts() {
        assert_eq!(horizon_ms(1000, 0, 50), u64::MAX);
        assert_eq!(horizon_ms(0, 10, 50), 0);
        assert_eq!(horizon_ms(1000, 10, 50), 5000);
        assert_eq!(horizon_ms(u64::MAX, u64::MAX, 50), 1);
    }

    #[test]
    fn a_segment_that_is_about_to_be_empty_is_left_alone_while_memory_lasts() {
        let mut lifetimes = Lifetimes::new(ms(NOW));
        for minute in 10..20 {
            lifetimes.add(Some(ms(NOW + minute * MINUTE)), 100);
        }
        lifetimes.add(None, 200);
        let outlook = |now, horizon| Outlook::of(&lifetimes, 1200, ms(now), 1000, horizon, 0);
        assert!(!outlook(NOW, 0).can_wait(), "there is no time");
        assert!(!outlook(NOW, 12 * MINUTE).can_wait(), "too little ends");
        assert!(outlook(NOW, 20 * MINUTE).can_wait());
        assert!(outlook(NOW, u64::MAX).can_wait());
        // Afterwards it is as good as empty, at once.
        let later = outlook(NOW + HOUR, u64::MAX);
        assert_eq!(
            later,
            Outlook {
                live_bytes: 200,
                ending_bytes: 0
            }
        );
        assert!(!later.can_wait());
    }

    #[test]
    fn touches_are_expected_to_be_superseded() {
        let mut lifetimes = Lifetimes::new(ms(NOW));
        lifetimes.add(Some(ms(NOW + 30 * MINUTE)), 1000);
        lifetimes.add_touch(600);
        let of = |lifetimes: &Lifetimes, horizon, mean| {
            Outlook::of(lifetimes, 1000, ms(NOW), 0, horizon, mean).ending_bytes
        };
        assert_eq!(
            of(&lifetimes, 4 * MINUTE, 0),
            0,
            "nothing is known of the next ones"
        );
        assert_eq!(of(&lifetimes, 0, 4 * MINUTE), 0);
        assert_eq!(of(&lifetimes, 4 * MINUTE, 4 * MINUTE), 300);
        assert_eq!(of(&lifetimes, u64::MAX, 4 * MINUTE), 1000);
        lifetimes.take_touch(700);
        assert_eq!(of(&lifetimes, 4 * MINUTE, 4 * MINUTE), 0);
        let outlook = |ending_bytes| Outlook {
            live_bytes: 1000,
            ending_bytes,
        };
        assert!(outlook(0).stability() > 10.0 * outlook(400).stability());
    }

    #[test]
    fn abandoned_sessions_are_told_from_those_in_use() {
        let idle = Some(30 * MINUTE as u32);
        let of = |needed, minutes: u64, idle| {
            Prospect::of(needed, Some(ms(NOW + minutes * MINUTE)), idle, ms(NOW))
        };
        use Needed::{Object, Touch};
        assert_eq!(of(Object, 29, idle), of(Object, 16, idle), "in use, both");
        assert_eq!(of(Touch, 29, idle), of(Touch, 16, idle));
        assert_ne!(
            of(Touch, 29, idle),
            of(Object, 29, idle),
            "its next touch ends it"
        );
        assert_eq!(of(Touch, 9, idle), of(Object, 9, idle), "they end together");
        assert!(of(Object, 1, idle) < of(Object, 9, idle));
        assert!(of(Object, 9, idle) < of(Object, 29, idle));
        // Without an idle time the deadline is all there is to know.
        assert!(of(Object, 29, None) < of(Object, 29, idle));
        assert!(of(Object, 29, None) < of(Object, 3 * 24 * 60, None));
        assert_eq!(
            of(Object, 90 * 24 * 60, None),
            Prospect::of(Object, None, None, ms(NOW)),
            "far is as good as never"
        );
        // Overdue, and a clock that runs behind.
        assert_eq!(
            Prospect::of(Object, Some(ms(1)), idle, ms(NOW)),
            Prospect(0)
        );
    }
}
