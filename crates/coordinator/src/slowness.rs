//! Which backups are much slower than the others, by robust statistics over peers (SSM and Pinpoint, NSDI 2004).
//!
//! ```text
//! good --out of line for 3 s in 3--> slow --in line for 5 s, or nobody has asked it for a term--> good, on trial
//! ```
//!
//! Each shard reports how long appends to each backup of its heads took in the last second (`AppendWait`). A backup's
//! figure is the median of what shards say of it, so that one bad link accuses nobody, and it is compared with the
//! other backups': median and median absolute deviation, which one or two outliers do not move.
//!
//! Z1. What all have in common (load, a slow network, a paused shard) makes nobody slow: only being out of line does, by
//!     much (`DEVIATIONS`, `TIMES`) and by something that a writer would notice (`FLOOR_US`).
//! Z2. To be slow is to be avoided, not refused: new replicas go elsewhere if there is elsewhere, and open heads leave if
//!     they can. So there are always as many backups as before, and with just R of them nothing changes but what is shown.
//! Z3. It has no consequence for safety, and is not recorded; a new coordinator finds out again.
//! Z4. Nobody is slow for ever. One that nobody appends to any more cannot show that it is well: after a term it is
//!     given another trial, and each trial that ends badly doubles the next term.

use std::collections::BTreeMap;

use holdfast_cluster::{Level, Outputs};
use holdfast_format::ServerId;
use holdfast_wire::Role;

use crate::membership::Servers;

/// Between two judgements: the window of which shards report.
const JUDGE_US: u64 = 1_000_000;

/// Below so many backups with figures there is no majority to be out of line with.
const PEERS_MIN: usize = 3;

/// Out of line are figures above the median by so many deviations (3.5 standard ones if all were normal: the MAD is 0.67 of
/// one), by so many medians, and by so much: a writer notices 5 ms, and a disk that syncs in 2 ms is not slow beside
/// one that does in 1.
const DEVIATIONS: u64 = 5;
const TIMES: u64 = 1;
const FLOOR_US: u64 = 5_000;

/// So many judgements out of line, more than in line, make slow; so many in line make good again.
const STRIKES: u32 = 3;
const CLEAR: u32 = 5;

/// The first term and the longest.
const TERM_MIN_US: u64 = 15_000_000;
const TERM_MAX_US: u64 = 240_000_000;

/// What is known of one backup.
#[derive(Debug, Default)]
struct Judged {
    /// Out of line more often than in line lately; at most `STRIKES`.
    strikes: u32,
    slow: Option<Slow>,
    /// Terms so far that ended on trial, each doubling the next.
    terms: u32,
    /// When it was last found in line, after a trial.
    good_since_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slow {
    /// It was asked by someone, and judged, at that time last.
    judged_us: u64,
    in_line: u32,
}

/// The median and how far a typical figure is from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    median_us: u64,
    deviation_us: u64,
}

impl Line {
    fn of(figures: &[u64]) -> Line {
        let median_us = median(figures.to_vec());
        let distances = figures.iter().map(|it| it.abs_diff(median_us)).collect();
        Line {
            median_us,
            deviation_us: median(distances),
        }
    }

    /// Z1.
    fn is_out(&self, figure_us: u64) -> bool {
        let margin_us = (DEVIATIONS * self.deviation_us)
            .max(TIMES * self.median_us)
            .max(FLOOR_US);
        figure_us > self.median_us.saturating_add(margin_us)
    }
}

/// The lower one of two in the middle.
fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all.get(all.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0)
}

/// The judge of backups.
#[derive(Debug, Default)]
pub(crate) struct Slowness {
    backups: BTreeMap<ServerId, Judged>,
    due_us: u64,
    pub(crate) found: u64,
}

impl Slowness {
    /// Backups that are slow, by id.
    pub(crate) fn slow(&self) -> Vec<ServerId> {
        let slow = self.backups.iter().filter(|(_, it)| it.slow.is_some());
        slow.map(|(id, _)| *id).collect()
    }

    pub(crate) fn is_slow(&self, backup: ServerId) -> bool {
        self.backups
            .get(&backup)
            .is_some_and(|it| it.slow.is_some())
    }

    /// Judges by what shards have reported. True if `slow` has changed.
    pub(crate) fn judge(&mut self, now_us: u64, servers: &Servers, out: &mut Outputs) -> bool {
        let before = self.slow();
        self.backups.retain(|id, _| {
            servers
                .get(*id)
                .is_some_and(|it| it.member.role == Role::Backup)
        });
        if now_us >= self.due_us {
            self.due_us = now_us + JUDGE_US;
            let figures = figures(servers);
            self.weigh(now_us, &figures, servers, out);
        }
        before != self.slow()
    }

    fn weigh(
        &mut self,
        now_us: u64,
        figures: &BTreeMap<ServerId, u64>,
        servers: &Servers,
        out: &mut Outputs,
    ) {
        let all: Vec<u64> = figures.values().copied().collect();
        let line = Line::of(&all);
        let comparable = all.len() >= PEERS_MIN;
        for (&id, &figure_us) in figures.iter().filter(|_| comparable) {
            let backup = self.backups.entry(id).or_default();
            let name = name_of(servers, id);
            match (line.is_out(figure_us), &mut backup.slow) {
                (true, Some(slow)) => (slow.judged_us, slow.in_line) = (now_us, 0),
                (true, None) => {
                    backup.strikes += 1;
                    if backup.strikes < STRIKES {
                        continue;
                    }
                    backup.slow = Some(Slow {
                        judged_us: now_us,
                        in_line: 0,
                    });
                    self.found += 1;
                    let (ms, us) = (figure_us / 1_000, line.median_us);
                    let text = format!(
                        "{name} is slow: appends to it take {ms} ms, to the median backup {us} us (deviation {} us); \
                         new segments avoid it",
                        line.deviation_us
                    );
                    out.event(Level::Warn, text);
                }
                (false, Some(slow)) => {
                    slow.judged_us = now_us;
                    slow.in_line += 1;
                    if slow.in_line >= CLEAR {
                        backup.acquit(now_us, 0);
                        out.event(
                            Level::Info,
                            format!("{name} is as quick as the others again"),
                        );
                    }
                }
                (false, None) => {
                    backup.strikes = backup.strikes.saturating_sub(1);
                    if now_us.saturating_sub(backup.good_since_us) > TERM_MAX_US {
                        backup.terms = 0;
                    }
                }
            }
        }
        for (id, backup) in &mut self.backups {
            let term_us = (TERM_MIN_US << backup.terms.min(8)).min(TERM_MAX_US);
            // Z4. Those who ask it say how it is; nobody does for as long as there are others.
            if backup
                .slow
                .is_some_and(|it| now_us - it.judged_us >= term_us)
            {
                backup.terms += 1;
                // The next time out of line ends the trial.
                backup.acquit(now_us, STRIKES - 1);
                let text = format!("{} is on trial again: it was slow", name_of(servers, *id));
                out.event(Level::Info, text);
            }
        }
    }
}

impl Judged {
    fn acquit(&mut self, now_us: u64, strikes: u32) {
        self.slow = None;
        self.strikes = strikes;
        self.good_since_us = now_us;
    }
}

/// For each backup the median of what shards say.
fn figures(servers: &Servers) -> BTreeMap<ServerId, u64> {
    let mut said: BTreeMap<ServerId, Vec<u64>> = BTreeMap::new();
    for shard in servers.with_role(Role::Shard) {
        for wait in &shard.append_waits {
            let is_up = servers.get(wait.backup).is_some_and(|it| it.heard);
            if is_up {
                said.entry(wait.backup)
                    .or_default()
                    .push(wait.wait_us.into());
            }
        }
    }
    said.into_iter()
        .map(|(id, all)| (id, median(all)))
        .collect()
}

fn name_of(servers: &Servers, id: ServerId) -> String {
    let name = servers.get(id).map(|it| it.member.name.clone());
    name.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cluster::Output;
    use holdfast_wire::{AppendWait, Member};

    const GOOD_US: u32 = 300;

    fn member(id: u64, role: Role) -> Member {
        Member {
            id: ServerId(id),
            role,
            address: String::new(),
            machine: String::new(),
            pid: 0,
            resp_cluster: String::new(),
            name: format!("member-{id}"),
            store: id,
        }
    }

    /// Two shards (1 and 2) and so many backups from 10 on.
    struct Bench {
        servers: Servers,
        slowness: Slowness,
        second: u64,
        said: Vec<String>,
    }

    impl Bench {
        fn new(backups: u64) -> Bench {
            let mut servers = Servers::default();
            let shards = (1..=2).map(|id| member(id, Role::Shard));
            let backups = (10..10 + backups).map(|id| member(id, Role::Backup));
            shards
                .chain(backups)
                .for_each(|it| servers.add(it, 0, true));
            Bench {
                servers,
                slowness: Slowness::default(),
                second: 0,
                said: Vec::new(),
            }
        }

        /// A second in which shards report these waits, by shard and backup. Returns who is slow.
        fn pass(&mut self, waits: &[(u64, u64, u32)]) -> Vec<u64> {
            for shard in 1..=2 {
                let of_shard = waits.iter().filter(|(by, _, _)| *by == shard);
                let waits = of_shard.map(|&(_, backup, wait_us)| AppendWait {
                    backup: ServerId(backup),
                    appends: 100,
                    wait_us,
                });
                let server = self.servers.get_mut(ServerId(shard)).unwrap();
                server.append_waits = waits.collect();
            }
            self.second += 1;
            let mut out = Outputs::default();
            (self.slowness).judge(self.second * JUDGE_US, &self.servers, &mut out);
            self.said
                .extend(out.list.into_iter().filter_map(|it| match it {
                    Output::Event(event) => Some(event.text),
                    _ => None,
                }));
            self.slowness.slow().iter().map(|id| id.0).collect()
        }
    }

    /// Every backup of 10 to 13 as seen by both shards, with one that is different.
    fn with(odd: u64, wait_us: u32) -> Vec<(u64, u64, u32)> {
        let of = |shard, backup| match backup == odd {
            true => (shard, backup, wait_us),
            false => (shard, backup, GOOD_US + backup as u32),
        };
        let all = (1..=2).flat_map(|shard| (10..=13).map(move |backup| (shard, backup)));
        all.map(|(shard, backup)| of(shard, backup)).collect()
    }

    #[test]
    fn who_is_out_of_line_three_times_is_slow_and_good_again_after_five() {
        let mut bench = Bench::new(4);
        assert!(bench.pass(&with(12, 40_000)).is_empty());
        assert!(bench.pass(&with(12, 40_000)).is_empty());
        // One good second between does not acquit.
        assert!(bench.pass(&with(12, GOOD_US)).is_empty());
        assert!(bench.pass(&with(12, 40_000)).is_empty());
        assert_eq!(bench.pass(&with(12, 40_000)), [12]);
        for _ in 0..4 {
            assert_eq!(bench.pass(&with(12, GOOD_US)), [12]);
        }
        assert!(bench.pass(&with(12, GOOD_US)).is_empty());
        assert_eq!(bench.said.len(), 2, "{:?}", bench.said);
    }

    /// Waits of 10 and those after it, in milliseconds, as one shard sees them.
    fn of_ms(waits_ms: &[u32]) -> Vec<(u64, u64, u32)> {
        let of = |(wait_ms, backup): (&u32, u64)| (1, backup, 1_000 * wait_ms);
        waits_ms.iter().zip(10..).map(of).collect()
    }

    /// Nobody, however long it lasts.
    #[track_caller]
    fn makes_nobody_slow(waits: &[(u64, u64, u32)]) {
        let mut bench = Bench::new(5);
        for _ in 0..10 {
            assert!(bench.pass(waits).is_empty(), "{:?}", bench.said);
        }
    }

    /// Z1.
    #[test]
    fn what_all_have_in_common_makes_nobody_slow() {
        makes_nobody_slow(&of_ms(&[80, 89, 98, 107]));
        // Far from the others by any measure but what a writer notices.
        makes_nobody_slow(&with(11, 4_000));
        // By what a writer notices, and not by much of what all take.
        makes_nobody_slow(&of_ms(&[20, 20, 20, 20, 30]));
        // Where all are far from each other, more than twice the median is nothing.
        makes_nobody_slow(&of_ms(&[5, 10, 15, 20, 40]));
        // Two of two: who of them is the odd one?
        makes_nobody_slow(&of_ms(&[1, 90]));
    }

    #[test]
    fn who_falls_back_begins_to_be_good_anew() {
        let mut bench = Bench::new(4);
        while bench.pass(&with(12, 40_000)).is_empty() {}
        (0..4).for_each(|_| drop(bench.pass(&with(12, GOOD_US))));
        assert_eq!(bench.pass(&with(12, 40_000)), [12]);
        for _ in 0..4 {
            assert_eq!(bench.pass(&with(12, GOOD_US)), [12]);
        }
        assert!(bench.pass(&with(12, GOOD_US)).is_empty());
    }

    #[test]
    fn one_bad_link_accuses_nobody() {
        let mut bench = Bench::new(4);
        let mut waits = with(99, 0);
        waits.push((1, 13, GOOD_US));
        for wait in waits.iter_mut().filter(|it| (it.0, it.1) == (1, 13)) {
            wait.2 = 90_000;
        }
        // The lower median of two shards is the good one's.
        for _ in 0..10 {
            waits.truncate(8);
            assert!(bench.pass(&waits).is_empty());
        }
    }

    /// Z4.
    #[test]
    fn nobody_is_slow_for_ever_and_trials_become_rarer() {
        let mut bench = Bench::new(4);
        let others = |bench: &mut Bench| {
            bench.pass(
                &with(12, 0)
                    .into_iter()
                    .filter(|it| it.1 != 12)
                    .collect::<Vec<_>>(),
            )
        };
        let term = |bench: &mut Bench| {
            let began = bench.second;
            while !others(bench).is_empty() {}
            bench.second - began
        };
        while bench.pass(&with(12, 40_000)).is_empty() {}
        for seconds in [15, 30, 60, 120, 240, 240] {
            assert_eq!(term(&mut bench), seconds);
            // On trial: once out of line is enough.
            assert_eq!(bench.pass(&with(12, 40_000)), [12]);
        }
        // A trial that goes well is the last, and by and by forgotten.
        (0..5).for_each(|_| drop(bench.pass(&with(12, GOOD_US))));
        for _ in 0..300 {
            assert!(bench.pass(&with(12, GOOD_US)).is_empty());
        }
        assert_eq!(bench.slowness.found, 7);
        while bench.pass(&with(12, 40_000)).is_empty() {}
        assert_eq!(term(&mut bench), 15);
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut bench = Bench::new(4);
        (0..3).for_each(|_| drop(bench.pass(&with(12, 40_000))));
        assert_eq!(bench.slowness.slow(), [ServerId(12)]);
        bench.servers.remove(ServerId(12));
        assert!(bench.pass(&with(12, 40_000)).is_empty());
    }
}
