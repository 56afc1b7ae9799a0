//! What the cleaner does next: which segments, and at which of its two levels.
//!
//! Utilisation `u` is the part of a segment that lives and has not expired. Compaction takes the segment with the
//! least `u` of its memory, since that alone is what a byte gained costs in copying. Combined cleaning chooses by
//! `(1 - u) · age / u` of the bytes on replicas, as RAMCloud does (`CleanableSegmentManager.cc`): the free space of old
//! segments is worth more, because what still lives in them is likely to stay, and need not be copied again soon.
//!
//! What has expired counts as free at once, and a segment half of which will be gone before its garbage is needed is left
//! alone (`lifetimes`).
//!
//! Which level: memory short is answered by compaction, the number of replicas short by combined cleaning; also
//! memory, if compaction can gain too little or is switched off. Tombstones are garbage only when all segments older
//! than they have left, which compaction never brings about; when they weigh too much, the oldest segments are
//! cleaned one after another, whatever lives in them, until those tombstones can go.

use holdfast_format::{SEGMENT_HEADER_BYTES, SegmentId};

use crate::SegmentKind;
use crate::copying::SHARE_SEGLETS;
use crate::lifetimes::{Outlook, Prospect, horizon_ms};
use crate::log::Log;
use crate::pacing::Need;
use crate::region::Run;
use crate::segments::{Segment, Slot};
use crate::space::Class;

/// Victims of one combination, and how many segments full of what lives they may have together: enough to make
/// some full survivors of segments that are almost empty, few enough that the memory lent out stays small.
const VICTIMS_MAX: usize = 16;
const SURVIVORS_MAX: u64 = 4;

/// Candidates with which a choice of victims is begun in turn, until one is worth it.
const STARTS_MAX: usize = 8;

/// The part of a victim's memory that must be gained, in percent, when memory is nearly out and when there is just too
/// little to be idle: at 2 % a byte gained costs 49 copied, at 50 % it costs one.
const GAIN_PERCENT_MIN: u32 = 2;
const GAIN_PERCENT_MAX: u32 = 50;

/// From this shortage on the least gain is enough: a little before all that is left is done at once.
const LEAST_GAIN: Shortage = Shortage(240);

/// Segments with at most this part alive, in percent, are combined before anything is short: emptying them
/// costs next to nothing.
const NEARLY_DEAD_PERCENT: u64 = 5;

/// Tombstones may weigh so much of what lives, as one part of this many, before the oldest segments are cleaned for
/// their sake. To end an eighth of what lives at most all the rest is copied once.
const TOMBSTONES_PART: u64 = 8;

/// The same when there is no other garbage to be had: better than refusing writers.
const LAST_TOMBSTONES_PART: u64 = 64;

/// From this shortage of memory on no segment is left alone because it will be emptier soon.
const NOTHING_WAITS: Shortage = Shortage(208);

/// How short of something the log is: 0 is not at all, 256 is out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Shortage(pub u32);

impl Shortage {
    /// Of what is `left`, when shortage begins below `ahead`.
    fn of(left: u32, ahead: u32) -> Shortage {
        let missing = ahead.saturating_sub(left);
        Shortage((u64::from(missing) * 256 / u64::from(ahead.max(1))) as u32)
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    slot: Slot,
    score: f64,
    live: u64,
    /// What surely lives, or may do so as far as memory is concerned.
    reserve: u64,
    seglets: u32,
    largest: u32,
}

/// The best few of many, best first.
#[derive(Debug, Default)]
struct Best {
    list: Vec<Candidate>,
}

impl Best {
    fn add(&mut self, candidate: Candidate) {
        let worse = |it: &Candidate| it.score < candidate.score;
        if self.list.len() == VICTIMS_MAX && !self.list.last().is_some_and(worse) {
            return;
        }
        let at = self.list.partition_point(|it| !worse(it));
        self.list.truncate(VICTIMS_MAX - 1);
        self.list.insert(at, candidate);
    }
}

impl Log {
    /// Shortage of memory for puts.
    pub(crate) fn memory_shortage(&self) -> Shortage {
        let left = self.available().saturating_sub(self.limit(Class::Put));
        Shortage::of(left, self.free_ahead())
    }

    /// Seglets that the next job may take: what its own reserve has left, or more if enough for puts remains. What
    /// jobs hold is missing until they are done, and a writer should not be refused because of that.
    fn job_seglets(&self) -> u32 {
        let reserve = self.cleaner_seglets();
        let lent = self.cleaner.lent_seglets();
        let others = self.limit(Class::Put) - reserve.saturating_sub(lent);
        let spare = self
            .available()
            .saturating_sub(others + self.free_ahead() / 4);
        let most = self.available().saturating_sub(self.commit_seglets());
        spare.max(reserve.saturating_sub(lent)).min(most)
    }

    /// Seglets free for puts below which memory is short: room for what arrives while a job or two go on.
    fn free_ahead(&self) -> u32 {
        let seglets = self.region.seglets();
        (2 * self.config.segment_seglets() + seglets / 128).min(seglets / 6)
    }

    /// Shortage of segments that replicas may have.
    pub(crate) fn segment_shortage(&self) -> Shortage {
        let max = self.config.replica_segments_max();
        let ahead = 4 + max / 16;
        let left = max.saturating_sub(12 + self.segments.len());
        Shortage::of(left as u32, ahead as u32)
    }

    /// True if deletes and touches have used up half of what is kept for them. Then every seglet is worth its price:
    /// without it, what only deletes can end would last for ever.
    fn is_used_up(&self) -> bool {
        self.available() < self.limit(Class::Small) + self.small_seglets() / 2
    }

    /// True if waiting for the head to fill up costs more than a short head does.
    pub(crate) fn is_urgent(&self) -> bool {
        self.memory_shortage() > Shortage(128) || self.segment_shortage() > Shortage(128)
    }

    /// Live bytes of a segment that the cleaner would have to copy, as far as is known: without tombstones that
    /// nothing needs any more, and without what has expired.
    pub(crate) fn lasting_bytes(&self, segment: &Segment, oldest: SegmentId) -> u32 {
        self.outlook(segment, oldest, 0).live_bytes as u32
    }

    fn outlook(&self, segment: &Segment, oldest: SegmentId, horizon_ms: u64) -> Outlook {
        let live = kept_at_most(segment, oldest);
        match &segment.lifetimes {
            None => Outlook {
                live_bytes: u64::from(live),
                ending_bytes: 0,
            },
            Some(lifetimes) => {
                let slack_ms = u64::from(self.config.expiry_slack_ms);
                let live = u64::from(live);
                let interval_ms = self.touch_interval_ms;
                Outlook::of(
                    lifetimes,
                    live,
                    self.clock,
                    slack_ms,
                    horizon_ms,
                    interval_ms,
                )
            }
        }
    }

    /// How long the log can do without a segment's garbage, if it goes on as it did lately: until what is free
    /// is used up, and half of the other garbage.
    fn horizon_ms(&self) -> u64 {
        if !self.config.cleaner.lifetimes || self.memory_shortage() > NOTHING_WAITS {
            return 0;
        }
        let free = self.available().saturating_sub(self.limit(Class::Put));
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let used = self.region.seglets() - self.region.free_seglets();
        let others = self.segments.live() + self.index.bytes(&self.region);
        let garbage = (u64::from(used) * seglet_bytes).saturating_sub(others);
        let bytes = u64::from(free) * seglet_bytes + garbage / 2;
        let (appended, elapsed_ms) = self.cleaner.pace.lately();
        horizon_ms(bytes, appended, elapsed_ms)
    }

    /// Seglets of garbage that the cleaner could give back.
    pub(crate) fn reclaimable_seglets(&self) -> u32 {
        let oldest = self.needed_since();
        (self.segments.iter_unordered())
            .filter(|(_, it)| it.closed)
            .map(|(_, it)| {
                let lasting = self.lasting_bytes(it, oldest);
                let seglets = lasting.div_ceil(self.config.seglet_bytes);
                it.bytes.seglets().saturating_sub(seglets)
            })
            .sum()
    }

    /// Begins the next job for the sake of `need`, or opens a head that lets empty segments go. False if nothing is
    /// worth it.
    pub(crate) fn choose(&mut self, need: Need) -> bool {
        let shortage = self.shortage_of(need);
        let idle = self.cleaner.combination.is_none();
        match need {
            Need::Memory => self.choose_for_memory(shortage, idle),
            Need::Segments if shortage > Shortage(0) => idle && self.combine_for_segments(),
            Need::Segments => idle && self.combine_nearly_dead(),
        }
    }

    fn choose_for_memory(&mut self, shortage: Shortage, idle: bool) -> bool {
        if shortage > Shortage(64) && self.shed_empty() {
            return true;
        }
        if shortage == Shortage(0) {
            return false;
        }
        if idle && self.tombstones_weigh(TOMBSTONES_PART) && self.combine_oldest() {
            return true;
        }
        let percent = match self.is_used_up() {
            true => 0,
            false => gain_percent(shortage),
        };
        if self.config.cleaner.two_level && self.compact_one(percent) {
            return true;
        }
        if idle && self.combine_for_memory(percent) {
            return true;
        }
        let last = shortage >= NOTHING_WAITS && self.tombstones_weigh(LAST_TOMBSTONES_PART);
        idle && last && self.combine_oldest()
    }

    /// Opens a head if that frees more than it costs: what is empty leaves with it.
    fn shed_empty(&mut self) -> bool {
        let empty: u32 = (self.segments.iter_unordered())
            .filter(|(_, it)| it.live == 0 && self.segments.is_cleanable(it))
            .map(|(_, it)| it.bytes.seglets())
            .sum();
        empty > self.commit_seglets() && self.roll(Class::Commit).is_ok()
    }

    // ---- compaction ----

    fn compact_one(&mut self, percent: u32) -> bool {
        let oldest = self.needed_since();
        let horizon_ms = self.horizon_ms();
        let seglet_bytes = self.config.seglet_bytes;
        let mut best = Best::default();
        for (slot, segment) in self.segments.iter_unordered() {
            if !self.segments.is_cleanable(segment) {
                continue;
            }
            let outlook = self.outlook(segment, oldest, horizon_ms);
            if outlook.can_wait() {
                continue;
            }
            let opening = opening_bytes(segment);
            let live = outlook.live_bytes as u32 + opening;
            let seglets = segment.bytes.seglets();
            let gain = seglets.saturating_sub(live.div_ceil(seglet_bytes));
            if gain == 0 || gain * 100 < seglets * percent {
                continue;
            }
            // The longest entry may waste what is gained; the best must be some that can be had.
            let reserve = u64::from(kept_at_most(segment, oldest) + opening);
            if self.least_held(reserve, segment.largest, 1) >= seglets {
                continue;
            }
            best.add(Candidate {
                slot,
                score: f64::from(gain) / f64::from(live) * outlook.stability(),
                live: u64::from(live),
                reserve,
                seglets,
                largest: segment.largest,
            });
        }
        for candidate in best.list {
            let held = self.hold(candidate.reserve, candidate.largest, 1, candidate.seglets);
            if let Some(held) = held {
                let gain = candidate.seglets - (candidate.live as u32).div_ceil(seglet_bytes);
                let scanned = self.segments.get(candidate.slot).length();
                let cost = u64::from(scanned) + candidate.live;
                let gained = u64::from(gain) * u64::from(seglet_bytes);
                self.cleaner.pace.price(Need::Memory, cost, gained);
                self.begin_compaction(candidate.slot, held);
                return true;
            }
        }
        false
    }

    // ---- combined cleaning ----

    /// Candidates for combined cleaning, scored by their replicas' bytes.
    fn victims(&self, need: Need, wanted: impl Fn(&Segment, u64) -> bool) -> Vec<Candidate> {
        let oldest = self.needed_since();
        let horizon_ms = self.horizon_ms();
        let last = self.segments.last_id().0;
        let mut best = Best::default();
        for (slot, segment) in self.segments.iter_unordered() {
            // What is empty leaves by itself.
            if segment.live == 0 || !self.segments.is_cleanable(segment) {
                continue;
            }
            let outlook = self.outlook(segment, oldest, horizon_ms);
            let live = outlook.live_bytes;
            if outlook.can_wait() || !wanted(segment, live) {
                continue;
            }
            // Of what is short: a segment compacted to a tenth is nearly empty on backups, and full in memory.
            let whole = match need {
                Need::Memory => segment.bytes.seglets() * self.config.seglet_bytes,
                Need::Segments => self.config.segment_bytes,
            };
            let used = live as f64 / f64::from(whole);
            let age = (last - segment.id.0 + 1) as f64;
            best.add(Candidate {
                slot,
                score: (1.0 - used) * age / (used + 0.01),
                live,
                reserve: u64::from(kept_at_most(segment, oldest)),
                seglets: segment.bytes.seglets(),
                largest: segment.largest,
            });
        }
        best.list
    }

    fn combine_for_segments(&mut self) -> bool {
        let whole = u64::from(self.config.segment_bytes);
        let chosen = self.victims(Need::Segments, |_, live| live * 100 < whole * 98);
        self.combine(Need::Segments, chosen, |log, victims| {
            let live: u64 = victims.iter().map(|it| it.live).sum();
            let survivors = log.survivors(live);
            let gain = (victims.len() as u64).saturating_sub(survivors);
            // In memory the survivors take what the victims had, and a seglet or two more.
            (gain > 0).then_some(gain * whole)
        })
    }

    fn combine_for_memory(&mut self, percent: u32) -> bool {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let chosen = self.victims(Need::Memory, |segment, live| {
            live * 100 <= u64::from(segment.bytes.seglets()) * seglet_bytes * 98
        });
        self.combine(Need::Memory, chosen, |log, victims| {
            let live: u64 = victims.iter().map(|it| it.live).sum();
            let used: u32 = victims.iter().map(|it| it.seglets).sum();
            let survivors = live.div_ceil(seglet_bytes) as u32;
            let gain = used.saturating_sub(survivors + 1);
            let worth = gain > log.commit_seglets() && gain * 100 >= used * percent;
            worth.then_some(u64::from(gain) * seglet_bytes)
        })
    }

    fn combine_nearly_dead(&mut self) -> bool {
        let whole = u64::from(self.config.segment_bytes);
        let chosen = self.victims(Need::Segments, |_, live| {
            live * 100 <= whole * NEARLY_DEAD_PERCENT
        });
        self.combine(Need::Segments, chosen, |_, victims| {
            (victims.len() >= 4).then_some(victims.len() as u64 * whole)
        })
    }

    /// True if tombstones that must be kept are a great part of what lives.
    fn tombstones_weigh(&self, part: u64) -> bool {
        self.segments.tombstones() * part > self.segments.live()
    }

    fn combine_oldest(&mut self) -> bool {
        // Not by their score: those that keep the most tombstones from going.
        let mut chosen = Vec::new();
        let oldest = self.needed_since();
        for (slot, segment) in self.segments.iter().take(VICTIMS_MAX) {
            if !self.segments.is_cleanable(segment) || segment.live == 0 {
                continue;
            }
            chosen.push(Candidate {
                slot,
                score: 0.0,
                live: u64::from(self.lasting_bytes(segment, oldest)),
                reserve: u64::from(kept_at_most(segment, oldest)),
                seglets: segment.bytes.seglets(),
                largest: segment.largest,
            });
        }
        let first = chosen.first().map(|it| self.segments.get(it.slot).id);
        // One younger segment in the way of the others and it is all for nothing; they come next time.
        if first != Some(oldest) {
            return false;
        }
        let tombstones = self.segments.tombstones();
        let all = self.segments.live().max(1);
        self.combine(Need::Memory, chosen, |_, victims| {
            let live: u64 = victims.iter().map(|it| it.live).sum();
            Some((live * tombstones / all).max(1))
        })
    }

    /// Combines as many of the chosen as there is memory for, if the gain in bytes that `worth` sees in them is
    /// something.
    fn combine(
        &mut self,
        need: Need,
        chosen: Vec<Candidate>,
        worth: impl Fn(&Log, &[Candidate]) -> Option<u64>,
    ) -> bool {
        // What fits beside the best need not be worth it together with them; what fits beside others may be.
        (0..chosen.len().min(STARTS_MAX))
            .any(|start| self.combine_some_of(need, &chosen[start..], &worth))
    }

    fn combine_some_of(
        &mut self,
        need: Need,
        chosen: &[Candidate],
        worth: impl Fn(&Log, &[Candidate]) -> Option<u64>,
    ) -> bool {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let free = self.job_seglets();
        let limit = (u64::from(free) * seglet_bytes)
            .min(SURVIVORS_MAX * u64::from(self.config.segment_bytes));
        let (mut victims, mut reserve, mut largest) = (Vec::new(), 0, 0);
        for &candidate in chosen {
            let most = largest.max(candidate.largest);
            let together = reserve + candidate.reserve;
            if together + u64::from(most) <= limit {
                (reserve, largest) = (together, most);
                victims.push(candidate);
            }
        }
        while !victims.is_empty() {
            let Some(gain) = worth(self, &victims) else {
                return false;
            };
            let survivors = self.survivors(reserve) as u32;
            if !self.is_covered(&victims, survivors) {
                return false;
            }
            // Several survivors begun must not be as many as the victims (C3).
            let more = Prospect::GROUPS as u32 - 1;
            let grouped = self.config.cleaner.lifetimes && victims.len() as u32 > survivors + more;
            let unused = u64::from(more * SHARE_SEGLETS.min(self.config.segment_seglets()));
            let room = reserve + unused * seglet_bytes;
            let held = grouped
                .then(|| self.hold(room, largest, survivors + more, u32::MAX))
                .flatten();
            let grouped = held.is_some();
            let held = held.or_else(|| self.hold(reserve, largest, survivors, u32::MAX));
            if let Some(held) = held {
                let live: u64 = victims.iter().map(|it| it.live).sum();
                let slots: Vec<Slot> = victims.iter().map(|it| it.slot).collect();
                let scanned = |&slot: &Slot| u64::from(self.segments.get(slot).length());
                let cost = slots.iter().map(scanned).sum::<u64>() + live;
                self.cleaner.pace.price(need, cost, gain);
                self.begin_combination(need, slots, held, grouped);
                return true;
            }
            let gone = victims.pop().expect("not empty");
            reserve -= gone.reserve;
        }
        false
    }

    /// True if what deletes need stays available although survivors may take more than their victims gave (L2): for
    /// replicas' sake and that of tombstones combinations are begun that gain no memory.
    fn is_covered(&self, victims: &[Candidate], survivors: u32) -> bool {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let live: u64 = victims.iter().map(|it| it.live).sum();
        let taken = live.div_ceil(seglet_bytes) as u32 + survivors + self.commit_seglets();
        let given: u32 = victims.iter().map(|it| it.seglets).sum();
        self.available() + given >= self.limit(Class::Small) + self.small_seglets() / 2 + taken
            || given > taken
    }

    /// Survivors that so many bytes fill.
    fn survivors(&self, live: u64) -> u64 {
        live.div_ceil(u64::from(self.config.segment_bytes) - SEGMENT_HEADER_BYTES as u64)
    }

    /// Takes memory that surely suffices for `bytes` of entries no longer than `largest`, to be written to so many
    /// segments, if that is less than `below` seglets (C2). The shortest run comes first.
    fn hold(&mut self, bytes: u64, largest: u32, segments: u32, below: u32) -> Option<Vec<Run>> {
        if bytes == 0 {
            return Some(Vec::new());
        }
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let free = self.job_seglets();
        let min = (largest.max(1) + SEGMENT_HEADER_BYTES as u32).div_ceil(self.config.seglet_bytes);
        let (mut missing, waste) = missing_bytes(bytes, largest, segments);
        let (mut held, mut taken) = (Vec::new(), 0);
        loop {
            let want = (missing.div_ceil(seglet_bytes) as u32).max(min);
            let run = (taken + want <= free.min(below - 1) || !held.is_empty())
                .then(|| self.region.take(min, want))
                .flatten()
                .filter(|run| {
                    taken + run.count <= free.min(below - 1) || {
                        self.region.give_back(*run);
                        false
                    }
                });
            let Some(run) = run else {
                held.into_iter().for_each(|run| self.region.give_back(run));
                return None;
            };
            held.push(run);
            taken += run.count;
            let holds = u64::from(run.count) * seglet_bytes;
            match missing.checked_sub(holds) {
                None | Some(0) => break,
                Some(rest) => missing = rest + waste,
            }
        }
        held.sort_by_key(|run| run.count);
        Some(held)
    }

    /// Seglets that `hold` takes at least.
    fn least_held(&self, bytes: u64, largest: u32, segments: u32) -> u32 {
        let (missing, _) = missing_bytes(bytes, largest, segments);
        missing.div_ceil(u64::from(self.config.seglet_bytes)) as u32
    }
}

/// Live bytes of a segment that a job must have room for: tombstones that nothing needs any more surely go, and nothing
/// will ever need them again, because `needed_since` only rises.
fn kept_at_most(segment: &Segment, oldest: SegmentId) -> u32 {
    match segment.births < oldest {
        true => segment.live - segment.tombstones,
        false => segment.live,
    }
}

/// What `bytes` of entries may take in one run, and what each further one may waste.
fn missing_bytes(bytes: u64, largest: u32, segments: u32) -> (u64, u64) {
    // What may be lost at the end of a run or segment: less than the longest entry. Where a segment's end cuts a
    // run in two, both may lose that.
    let waste = u64::from(largest.max(1)) + SEGMENT_HEADER_BYTES as u64 - 1;
    let missing = bytes + u64::from(segments) * (SEGMENT_HEADER_BYTES as u64 + 2 * waste) - waste;
    (missing, waste)
}

/// What compaction copies besides what lives.
fn opening_bytes(segment: &Segment) -> u32 {
    match segment.kind {
        SegmentKind::Head { opening, .. } => opening,
        SegmentKind::Side => SEGMENT_HEADER_BYTES as u32,
    }
}

/// The gain that is asked for: the more, the less memory is short.
fn gain_percent(memory: Shortage) -> u32 {
    let away = LEAST_GAIN.0.saturating_sub(memory.0);
    GAIN_PERCENT_MIN + (GAIN_PERCENT_MAX - GAIN_PERCENT_MIN) * away / LEAST_GAIN.0
}
