//! What a server that has more to do than it can takes on, and what it refuses at once.
//!
//! A thread that reads sockets and executes what it reads has no queue of its own that could be counted: what it has
//! no time for waits in the kernel. So it judges by *how long* a request has waited when its turn comes
//! (SSM, NSDI 2004, section 8: what is too late when it is dequeued is dropped), and refuses what has waited for longer
//! than `wait_us_max`. Refusing is cheap, and so the rest is served in time, however much is offered.
//!
//! ```text
//!         two thirds of what came were late, in STANDING_INTERVALS in a row
//!   calm -----------------------------------------------------------------> overloaded: what is late is refused,
//!     ^                                                                       | and the share of creations halves with
//!     '---------- nearly nobody was refused for being late in an interval ----' every such interval
//! ```
//!
//! A1. While calm nothing is refused for being late. A pause of the process makes everything late once; only waits that do
//!     not go away by themselves are overload (the standing queue of CoDel, Nichols and Jacobson, 2012), and only those of
//!     enough requests to keep a thread busy: a few that wait on a machine without time for us gain nothing by being refused.
//! A2. While overloaded, a request for an existing session is refused only if it is late; one that would create a
//!     session also by the share, so that creations go first (SSM, section 29).
//! A3. The share of creations comes back by and by, after the overload too: all of them at once could be the next one.
//!
//! Pure: time is an argument, and chance is not needed, because the share is paid out evenly.

/// Judged so often: as long as the kernel's usual period, in which it stops a process that has used up its quota, so that
/// what comes while it runs shows in every interval.
const INTERVAL_US: u64 = 100_000;

/// Late intervals in a row that are overload.
const STANDING_INTERVALS: u64 = 2;

/// An interval was late if not even one byte in so many came in time. What comes evenly while a thread is busy for one lap is late
/// by two thirds when the lap takes three times the maximum; what comes while a quota stops a process for three quarters of
/// each period, by a little less.
const IN_TIME_MIN: u64 = 3;

/// Overload has passed when not even one request in so many was refused for being late: at a little more load than can be served
/// waits then grow by a few laps until it is recognised again.
const REFUSED_MIN: u64 = 8;

/// Nothing judged for so many intervals: there was nothing to do. Less may be a process that was not let run.
const SILENT_INTERVALS: u64 = 10;

/// A read and a write take about 5 us, of 30 requests of a connection that sends 10,000 a second less than 0.2 us each.
const ROUND_US_MAX: u64 = 4_000;

/// The share of creations that is admitted is told in parts of this.
const WHOLE: u32 = 1_000;

/// What the share grows by in an interval without lateness: from nothing to all in 2 s.
const SHARE_STEP: u32 = 50;

/// Decides what is admitted: see the module.
#[derive(Clone, Debug)]
pub struct Admission {
    wait_us_max: u64,
    late_bytes_min: u64,
    overloaded: bool,
    late_intervals: u64,
    interval: Interval,
    /// In the last interval.
    longest_us: u64,
    /// The share of creations that is admitted, of `WHOLE`.
    share: u32,
    /// What creations have been promised of it and not been given, of `WHOLE`.
    owed: u32,
}

/// What came since `began_us`.
#[derive(Clone, Copy, Debug, Default)]
struct Interval {
    began_us: u64,
    /// In bytes, when they were received.
    late: u64,
    in_time: u64,
    /// In requests, when their turn had come.
    refused: u64,
    served: u64,
    longest_us: u64,
}

impl Admission {
    /// Admits what has waited for at most `wait_us_max`; 0: admits everything. An interval with less than `late_bytes_min` that
    /// came late was not late.
    pub fn new(wait_us_max: u64, late_bytes_min: u64) -> Admission {
        Admission {
            wait_us_max,
            late_bytes_min,
            overloaded: false,
            late_intervals: 0,
            interval: Interval::default(),
            longest_us: 0,
            share: WHOLE,
            owed: WHOLE / 2,
        }
    }

    /// `bytes` have come. What stands in a queue before them has waited there for up to `queued_us`.
    pub fn note(&mut self, now_us: u64, arrival: Arrival, queued_us: u64, bytes: usize) {
        if self.wait_us_max == 0 {
            return;
        }
        self.pass(now_us);
        let waited_us = queued_us.max(now_us.saturating_sub(arrival.from_us));
        self.interval.longest_us = self.interval.longest_us.max(waited_us);
        let in_time = match queued_us > self.wait_us_max {
            true => 0,
            false => arrival.since(now_us.saturating_sub(self.wait_us_max), bytes),
        };
        self.interval.in_time += in_time as u64;
        self.interval.late += (bytes - in_time) as u64;
    }

    /// Under overload so many requests were refused for being late, and so many were not.
    pub fn decided(&mut self, refused: usize, served: usize) {
        self.interval.refused += refused as u64;
        self.interval.served += served as u64;
    }

    /// Judges what came until now.
    pub fn pass(&mut self, now_us: u64) {
        if self.wait_us_max > 0 && now_us >= self.interval.began_us + INTERVAL_US {
            self.judge(now_us);
        }
    }

    /// Draws the conclusions from an interval that is over, and from those after it in which nothing came.
    fn judge(&mut self, now_us: u64) {
        let Interval {
            began_us,
            late,
            in_time,
            refused,
            served,
            longest_us,
        } = self.interval;
        self.longest_us = longest_us;
        let came = late + in_time;
        let intervals = (now_us - began_us) / INTERVAL_US;
        self.interval = Interval {
            began_us: began_us + intervals * INTERVAL_US,
            ..Interval::default()
        };
        // One of them, however long nothing came after it: a thread that is busy judges each.
        self.late_intervals = match in_time * IN_TIME_MIN < came && late >= self.late_bytes_min {
            true => self.late_intervals + 1,
            false => 0,
        };
        if intervals > SILENT_INTERVALS {
            self.late_intervals = 0;
            self.overloaded = false;
        } else if self.late_intervals >= STANDING_INTERVALS {
            self.overloaded = true;
        } else if refused * REFUSED_MIN <= refused + served {
            self.overloaded = false;
        }
        let calm = match self.overloaded {
            true => {
                self.share /= 2;
                intervals - 1
            }
            false => intervals,
        };
        let calm = u32::try_from(calm).unwrap_or(u32::MAX);
        let grown = self.share.saturating_add(SHARE_STEP.saturating_mul(calm));
        self.share = grown.min(WHOLE);
    }

    /// True if there is more to do than can be done in time (A2).
    pub fn is_overloaded(&self) -> bool {
        self.overloaded
    }

    /// How long requests have waited at most, when it was last judged.
    pub fn longest_wait_us(&self) -> u64 {
        self.longest_us
    }

    /// True if nothing is refused.
    pub fn is_open(&self) -> bool {
        !self.overloaded && self.share == WHOLE
    }

    /// For how long a request may have waited that is served now.
    pub fn wait_us_max(&self) -> u64 {
        match self.overloaded {
            true => self.wait_us_max,
            false => u64::MAX,
        }
    }

    /// How far apart reads of one connection should be: under overload what a read costs is better shared by many
    /// requests, refused ones above all, and part of the time they may wait is there for it.
    pub fn round_us(&self) -> u64 {
        match self.overloaded {
            true => (self.wait_us_max / 2).min(ROUND_US_MAX),
            false => 0,
        }
    }

    /// True if one that would create a session is served now (A3).
    pub fn admits_creation(&mut self) -> bool {
        self.owed += self.share;
        let paid = self.owed >= WHOLE;
        if paid {
            self.owed -= WHOLE;
        }
        paid
    }

    /// The share of creations that is admitted now, between 0 and 1.
    pub fn creation_share(&self) -> f64 {
        f64::from(self.share) / f64::from(WHOLE)
    }
}

/// When bytes came, as far as a driver can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Arrival {
    /// The first byte came at this time or later, by `Now::mono_us`.
    pub from_us: u64,
    /// The last byte came at this time or earlier.
    pub to_us: u64,
}

impl Arrival {
    /// All at once.
    pub fn at(us: u64) -> Arrival {
        Arrival {
            from_us: us,
            to_us: us,
        }
    }

    /// When a byte came that has `behind` of `bytes` behind it, if they came evenly.
    pub fn of(&self, behind: usize, bytes: usize) -> u64 {
        let span_us = self.to_us.saturating_sub(self.from_us);
        if span_us == 0 || bytes == 0 {
            return self.to_us;
        }
        let behind = behind.min(bytes) as u64;
        self.to_us - span_us.saturating_mul(behind) / bytes as u64
    }

    /// How many of `bytes`, the last ones, came at `us` or later, if they came evenly.
    pub fn since(&self, us: u64, bytes: usize) -> usize {
        if us <= self.from_us {
            return bytes;
        }
        let span_us = self.to_us.saturating_sub(self.from_us);
        let since_us = self.to_us.saturating_sub(us);
        // Not more than `bytes`, since the time is within the span.
        (bytes as u64 * since_us).checked_div(span_us).unwrap_or(0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 10_000;
    const LATE_BYTES_MIN: u64 = 8 << 10;

    fn note(admission: &mut Admission, now_us: u64, waited_us: u64, bytes: usize) {
        // The clock has gone for longer than any wait.
        let now_us = now_us + 1_000_000;
        admission.note(now_us, Arrival::at(now_us - waited_us), 0, bytes);
        if admission.is_overloaded() {
            let late = waited_us > admission.wait_us_max();
            admission.decided(usize::from(late), usize::from(!late));
        }
    }

    /// A batch every millisecond that has waited for `waited_us`.
    fn run(admission: &mut Admission, from_us: u64, ms: u64, waited_us: u64) -> u64 {
        for at in 0..ms {
            note(admission, from_us + at * 1_000, waited_us, 1_000);
        }
        from_us + ms * 1_000
    }

    fn creations_of_100(admission: &mut Admission) -> usize {
        (0..100).filter(|_| admission.admits_creation()).count()
    }

    #[test]
    fn a_pause_is_no_overload() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        let now = run(&mut admission, 0, 150, 500_000);
        assert!(admission.is_open());
        let mut now = run(&mut admission, now, 50, MAX);
        // A process that its quota stops for three quarters of every period.
        for _ in 0..100 {
            now = run(&mut admission, now, 65, 75_000);
            now = run(&mut admission, now, 35, MAX);
        }
        assert!(admission.is_open());
        assert_eq!(admission.wait_us_max(), u64::MAX);
    }

    /// Tests on a crowded machine, a site at night: whoever sends that little is served, however late.
    #[test]
    fn a_few_that_wait_for_the_machine_are_no_overload() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        for at in 0..1_000 {
            note(&mut admission, at * 10_000, 500_000, 700);
            assert!(admission.is_open());
        }
    }

    #[test]
    fn a_newcomer_does_not_hide_standing_waits() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        for at in 0..301 {
            note(&mut admission, at * 1_000, MAX + 1, 1_000);
            note(&mut admission, at * 1_000, 0, 14);
        }
        assert!(admission.is_overloaded());
    }

    #[test]
    fn standing_waits_refuse_what_is_late_and_creations_first() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        let now = run(&mut admission, 0, 201, MAX + 1);
        assert!(admission.is_overloaded());
        assert_eq!(admission.wait_us_max(), MAX);
        assert_eq!(creations_of_100(&mut admission), 50);
        // It stays bad: ever fewer creations.
        let now = run(&mut admission, now, 200, MAX + 1);
        assert!((11..=13).contains(&creations_of_100(&mut admission)));
        run(&mut admission, now, 1_000, MAX + 1);
        assert_eq!(creations_of_100(&mut admission), 0);
    }

    #[test]
    fn it_ends_when_nearly_nothing_is_late_and_creations_come_back_by_and_by() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        let mut now = run(&mut admission, 0, 1_500, MAX + 1);
        assert_eq!(creations_of_100(&mut admission), 0);
        // As with a fifth more than can be served: most is in time, because the rest is refused.
        for _ in 0..50 {
            now = run(&mut admission, now, 4, MAX + 1);
            now = run(&mut admission, now, 16, MAX);
        }
        assert!(admission.is_overloaded());
        let now = run(&mut admission, now, 201, MAX);
        assert!(!admission.is_overloaded());
        assert!(!admission.is_open());
        let share = creations_of_100(&mut admission);
        assert!((4..=12).contains(&share), "{share}");
        run(&mut admission, now, 2_000, MAX);
        assert!(admission.is_open());
        assert_eq!(admission.creation_share(), 1.0);
    }

    #[test]
    fn silence_ends_overload_too() {
        let mut admission = Admission::new(MAX, LATE_BYTES_MIN);
        let now = run(&mut admission, 0, 400, MAX + 1);
        assert!(admission.is_overloaded());
        note(&mut admission, now + 60_000_000, 10, 1_000);
        assert!(admission.is_open());
    }

    #[test]
    fn without_a_maximum_everything_is_admitted() {
        let mut admission = Admission::new(0, LATE_BYTES_MIN);
        run(&mut admission, 0, 10_000, 1_000_000);
        assert!(admission.is_open());
        assert_eq!(admission.wait_us_max(), u64::MAX);
    }

    const COST_US: u64 = 20;

    /// A server in turns, as `server` drives one: reads of what has come as much as it is given at a time, then serves it in
    /// order at `COST_US` each, or refuses it at `REFUSAL_US`. Says how many were answered within `DEADLINE_US` per second, the longest wait of
    /// one that was served, after the first second, and how many were refused.
    fn offered(wait_us_max: u64, every_us: u64) -> (u64, u64, u64) {
        const REFUSAL_US: u64 = 1;
        const REQUESTS_MAX: u64 = 1_000;
        const DEADLINE_US: u64 = 50_000;
        const END_US: u64 = 5_000_000;
        let mut admission = Admission::new(wait_us_max, LATE_BYTES_MIN);
        let (mut now, mut next_due) = (0, 0);
        let (mut in_time, mut longest_us, mut refused) = (0, 0, 0);
        while now < END_US {
            if next_due > now {
                now = next_due;
            }
            let requests = (1 + (now - next_due) / every_us).min(REQUESTS_MAX);
            let arrival = Arrival {
                from_us: next_due,
                to_us: next_due + (requests - 1) * every_us,
            };
            admission.note(now, arrival, 0, requests as usize * 100);
            for _ in 0..requests {
                let served = now - next_due <= admission.wait_us_max();
                now += if served { COST_US } else { REFUSAL_US };
                refused += u64::from(!served);
                if admission.is_overloaded() {
                    admission.decided(usize::from(!served), usize::from(served));
                }
                if served && next_due > 1_000_000 {
                    in_time += u64::from(now - next_due <= DEADLINE_US);
                    longest_us = longest_us.max(now - next_due);
                }
                next_due += every_us;
            }
        }
        (in_time / 4, longest_us, refused)
    }

    /// SSM's Figures 8 and 9, without a machine: 50,000 requests per second can be served.
    #[test]
    fn goodput_stands_at_twice_the_load_and_collapses_without_protection() {
        let (peak, ..) = offered(MAX, COST_US);
        assert!((49_000..=50_100).contains(&peak), "{peak}");
        for every_us in [19, 18, 16, 13, 10, 6] {
            let (goodput, longest_us, _) = offered(MAX, every_us);
            let least = if every_us < COST_US / 2 { 8 } else { 9 };
            assert!(goodput * 10 >= peak * least, "{goodput} of {peak}");
            // Until overload is recognised again, waits grow at a little more load than can be served.
            let longest_max_us = if every_us > 13 { 60_000 } else { MAX + COST_US };
            assert!(
                longest_us <= longest_max_us,
                "{longest_us} us every {every_us}"
            );
        }
        let (unprotected, ..) = offered(0, COST_US / 2);
        assert!(unprotected * 10 < peak, "{unprotected} of {peak}");
    }

    #[test]
    fn nothing_is_refused_below_saturation() {
        for every_us in COST_US..COST_US * 4 {
            assert_eq!(offered(MAX, every_us), offered(0, every_us));
            assert_eq!(offered(MAX, every_us).2, 0, "every {every_us} us");
        }
    }

    #[test]
    fn bytes_are_taken_to_have_come_evenly() {
        let arrival = Arrival {
            from_us: 1_000,
            to_us: 2_000,
        };
        assert_eq!(arrival.of(0, 100), 2_000);
        assert_eq!(arrival.of(100, 100), 1_000);
        assert_eq!(arrival.of(25, 100), 1_750);
        assert_eq!(arrival.of(200, 100), 1_000, "never before the first");
        assert_eq!(Arrival::at(5).of(7, 100), 5);
        assert_eq!(arrival.since(1_000, 100), 100);
        assert_eq!(arrival.since(1_750, 100), 25);
        assert_eq!(arrival.since(2_000, 100), 0);
        assert_eq!(arrival.since(3_000, 100), 0);
        assert_eq!(Arrival::at(5).since(5, 100), 100);
        assert_eq!(Arrival::at(5).since(6, 100), 0);
    }
}
