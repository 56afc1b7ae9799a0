//! The cleaner: turns garbage into free memory, and emptied segments into free replicas.
//!
//! Two levels, as in RAMCloud (FAST '14, TOCS '15 §4.3):
//!
//! ```text
//! compaction   one segment ─copy─> fresh runs ─ all durable? ─> in the old bytes' place, which are free
//! combined     victims ─copy─> survivors ─ durable? ─> digest of the next head ─ durable? ─> victims are freed
//! ```
//!
//! *Compaction* frees memory and costs replication nothing: replicas of the segment stay as they are. *Combined*
//! cleaning writes survivors, which are replicated, and frees the victims' replicas too. `choosing` decides which of
//! the two and what next, `pacing` how much of it and when, `copying` does the work in bounded slices.
//!
//! C1. A segment is cleaned only if it is closed and durable, named by a durable digest, and older than the head
//!     that carries this digest. A victim keeps its memory and replicas until a durable digest names the survivors
//!     instead (S, I2).
//! C2. A job has all memory it may need before it begins, so it always comes to its end; that memory is lent out
//!     of the cleaner's reserve (L2).
//! C3. A job is begun only if it gives back more than it costs: seglets for memory's sake, segments for replicas'
//!     sake. So cleaning ends when there is nothing to gain.
//! C4. Tombstones, touches and shadowing entries are judged by what replicas hold; see `verdict`. Compaction leaves
//!     out only what `verdict` lets go anyway, and never writes anything new: replicas will not have it.
//! C5. Copies of a compacted segment take its bytes' place as S, I4 says. In a survivor everything is as durable as
//!     in its victims, which stay until it is.

use holdfast_format::{ClusterMs, Entry, Position, SegmentId, Slot as KeySlot, Tombstone};

use crate::copying::{Combination, Compaction, Phase};
use crate::log::{KeyWords, Log};
use crate::pacing::{Need, Pace};
use crate::region::Run;
use crate::segments::{Slot, State};

#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    pub compaction: Option<Compaction>,
    pub combination: Option<Combination>,
    /// Compacted, but not yet in the place of the old bytes (C5).
    pub copied: Vec<Copied>,
    /// Seglets that jobs hold; see `Log::recount_lent`.
    lent: u32,
    pub pace: Pace,
    pub cleaned_bytes: u64,
    pub compacted_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub slot: Slot,
    /// The log's end when the copying ended.
    until: Position,
}

/// What becomes of a key's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// No replica holds anything that they hide: forget the key.
    Drop,
    /// The touch belongs to no object that exists.
    DropTouch,
    /// Expired, and something older may still be on replicas: a tombstone takes its place.
    Entomb,
}

impl Cleaner {
    #[inline]
    pub fn lent_seglets(&self) -> u32 {
        self.lent
    }

    /// Names the runs that jobs hold, for `verify`.
    pub fn verify(&self, own: &mut impl FnMut(Run)) {
        let compaction = self.compaction.iter().flat_map(|it| it.held());
        let combination = self.combination.iter().flat_map(|it| it.held());
        compaction.chain(combination).for_each(|&run| own(run));
    }
}

impl Log {
    /// Does one slice of the cleaning that is due: reads and copies about `slice_bytes`, less if less is due. How
    /// much is due follows from what has been appended since, from what is free, and from what the best victims
    /// cost. True: more is due now.
    ///
    /// A slice of 128 KiB takes some 50 to 150 microseconds; choosing the next victims some 10 ns per segment.
    pub fn clean(&mut self, now: ClusterMs, slice_bytes: u64) -> bool {
        self.clock = self.clock.max(now);
        self.accrue(now);
        self.commit();
        let mut left = slice_bytes as i64;
        loop {
            let Some(need) = self.due() else {
                return false;
            };
            if left <= 0 {
                return true;
            }
            if self.may_go_on(need) {
                let worked = self.copy_some(need, left, now);
                left -= worked;
                self.cleaner.pace.spend(need, worked);
            } else if !self.choose(need) {
                self.found_nothing(need);
            }
        }
    }

    /// True if a job is under way that helps `need`. A job begun for segments' sake helps memory when nothing else
    /// does: it holds what the next one would need.
    pub(crate) fn may_go_on(&self, need: Need) -> bool {
        let combining = (self.cleaner.combination.as_ref()).filter(|it| it.phase == Phase::Copying);
        match (combining, need) {
            (Some(job), _) if job.need == need => true,
            (_, Need::Memory) if self.cleaner.compaction.is_some() => true,
            (Some(_), Need::Memory) => !self.may_look(need),
            _ => false,
        }
    }

    /// True if the survivors, if any, may enter the next digest.
    fn cleaning_is_ready(&self) -> bool {
        self.cleaner.combination.as_ref().is_some_and(|it| {
            it.phase == Phase::Waiting
                && (it.survivors.iter()).all(|&slot| self.segments.get(slot).durable_closed)
        })
    }

    /// True if the survivors should not wait for the head to fill up before they enter a digest.
    pub(crate) fn cleaning_should_commit(&self) -> bool {
        self.cleaning_is_ready() && self.is_urgent()
    }

    /// The digest of head `id` names the survivors instead of the victims.
    pub(crate) fn commit_cleaning(&mut self, id: SegmentId) {
        if !self.cleaning_is_ready() {
            return;
        }
        let combination = self.cleaner.combination.as_mut().expect("it is ready");
        combination.phase = Phase::Committed(id);
        for &survivor in &combination.survivors {
            self.segments.get_mut(survivor).state = State::Member;
        }
        for &victim in &combination.victims {
            self.segments.get_mut(victim).state = State::Leaving(id);
        }
    }

    /// Ends what has become durable: a combination whose victims have been freed, compactions that may take the
    /// old bytes' place.
    pub(crate) fn settle_cleaning(&mut self) {
        let settled = self.segments.settled();
        let over = |it: &mut Combination| matches!(it.phase, Phase::Committed(by) if by <= settled);
        let mut changed = self.cleaner.combination.take_if(over).is_some();
        let mut at = 0;
        while at < self.cleaner.copied.len() {
            let Copied { slot, until } = self.cleaner.copied[at];
            if self.segments.is_durable(until) {
                self.cleaner.copied.remove(at);
                self.segments.replace(&mut self.region, slot);
                changed = true;
            } else {
                at += 1;
            }
        }
        if changed {
            self.recount_lent();
        }
    }

    /// The copying of a segment has ended.
    pub(crate) fn end_compaction(&mut self, slot: Slot) {
        let until = self.end();
        self.cleaner.copied.push(Copied { slot, until });
        self.settle_cleaning();
        self.recount_lent();
    }

    /// Counts anew what the cleaner's jobs hold. They are few.
    pub(crate) fn recount_lent(&mut self) {
        self.cleaner.lent = self.counted_lent();
    }

    pub(crate) fn counted_lent(&self) -> u32 {
        let fresh = |slot: Slot| self.segments.get(slot).fresh.seglets();
        let mut lent: u32 = self.cleaner.copied.iter().map(|it| fresh(it.slot)).sum();
        if let Some(compaction) = &self.cleaner.compaction {
            lent += compaction.held_seglets() + fresh(compaction.slot);
        }
        if let Some(combination) = &self.cleaner.combination {
            let survivors = combination.survivors.iter();
            lent += combination.held_seglets();
            lent += survivors
                .map(|&it| self.segments.get(it).bytes.seglets())
                .sum::<u32>();
        }
        lent
    }

    /// What becomes of a key (C4).
    pub(crate) fn verdict(&self, words: KeyWords, now: ClusterMs) -> Verdict {
        let unsettled = self.is_unsettled(words);
        let Some(main) = words.main else {
            return match unsettled {
                true => Verdict::Keep,
                false => Verdict::DropTouch,
            };
        };
        let Some(current) = self.current(words) else {
            return match self.is_needed(&self.tombstone(main)) {
                true => Verdict::Keep,
                false => Verdict::Drop,
            };
        };
        let slack_ms = u64::from(self.config.expiry_slack_ms);
        let over = current
            .deadline
            .is_some_and(|deadline| deadline.plus_ms(slack_ms) <= now);
        if current.flushed {
            Verdict::Drop
        } else if unsettled {
            Verdict::Keep
        } else if over && !current.shadowing {
            Verdict::Drop
        } else if over {
            Verdict::Entomb
        } else if words.touch.is_some() && current.touches == 0 {
            Verdict::DropTouch
        } else {
            Verdict::Keep
        }
    }

    /// True if the key's newest touch may still be to come, or somebody else's answers about it count still.
    fn is_unsettled(&self, words: KeyWords) -> bool {
        let Some(word) = words
            .main
            .or(words.touch)
            .filter(|_| !self.unsettled.is_empty())
        else {
            return false;
        };
        let slot = KeySlot::of(self.keyed(word.offset()).key());
        self.unsettled.iter().any(|range| range.contains(slot))
    }

    /// The tombstone that takes an expired object's place, encoded. It has the object's version, at
    /// which tombstones win.
    pub(crate) fn entombed(&self, words: KeyWords) -> Vec<u8> {
        let object = self.object(words.main.expect("an object expired"));
        let tombstone = Tombstone {
            namespace: object.namespace,
            key: object.key,
            version: object.version,
            birth: self.segments.last_id(),
        };
        let mut bytes = Vec::new();
        Entry::Tombstone(tombstone).append_to(&mut bytes);
        bytes
    }
}
