//! The cleaner: copies what lives out of segments that are mostly garbage, and gives them back.
//!
//! One pass at a time, each in bounded steps:
//!
//! ```text
//! choose victims ─> Copying ─> Waiting (survivor durable) ─> Committed (digest durable) ─> freed
//! ```
//!
//! A pass takes whole blocks: all segments of one or several blocks whose live bytes together fit in one
//! survivor. So it needs one entirely free block, which the log always keeps for it, and gives at least one
//! back, however fragmented the rest is.
//!
//! C1. A victim is closed, durable and named by the digest; it keeps its memory and replicas until a
//!     durable digest names the survivor instead (S, I2).
//! C2. Nothing new is placed in a block of victims during a pass: its free seglets are held.
//! C3. A pass starts only if it gains more seglets than the head that commits it can cost; or, when free
//!     seglets lie scattered, if it empties three blocks to fill one and begin one with that head.
//!     So cleaning ends when there is nothing to gain.
//! C4. Tombstones, touches and shadowing entries are judged by what replicas hold; see `verdict`.

use holdfast_format::{ClusterMs, Entry, KeyHash, SEGMENT_HEADER_BYTES, SegmentId, Tombstone};

use crate::index::{Kind, Spot, Word};
use crate::log::{Class, KeyWords, Log};
use crate::segments::{Owner, Slot, State};

#[derive(Debug)]
pub(crate) struct Cleaning {
    pub victims: Vec<Slot>,
    /// Free seglets of the victims' blocks (C2).
    held: Vec<crate::region::Run>,
    /// Opened with the first live entry.
    pub survivor: Option<Slot>,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// This victim, from this offset in it.
    Copying { victim: usize, offset: u32 },
    /// Until the survivor is durable and a head can be opened.
    Waiting,
    /// Until the digest of this head is durable.
    Committed(SegmentId),
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

/// Blocks in one pass: enough to make a full survivor of blocks that are almost empty.
const VICTIM_BLOCKS_MAX: usize = 16;
/// Choices tried when the best one gains nothing.
const CHOICES_MAX: usize = 32;

/// The part of the victims' memory that a pass must gain, when memory is out and when there is just too
/// little to be idle: at 2 % a byte gained costs 49 copied, at 50 % it costs one.
const GAIN_PERCENT_MIN: u32 = 2;
const GAIN_PERCENT_MAX: u32 = 50;

/// What the cleaner looks at to choose.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    block: u32,
    live_bytes: u64,
    used_seglets: u32,
    score: f64,
}

impl Cleaning {
    pub fn held_seglets(&self) -> u32 {
        self.held.iter().map(|run| run.count).sum()
    }
}

impl Log {
    /// Cleans if memory is short, reading and copying about `budget_bytes`. True: call again soon,
    /// there is more to do now.
    pub fn clean(&mut self, now: ClusterMs, budget_bytes: u64) -> bool {
        let mut left = budget_bytes as i64;
        loop {
            match self.cleaning.as_ref().map(|cleaning| cleaning.phase) {
                None => {
                    if !self.choose_victims() {
                        return false;
                    }
                }
                Some(Phase::Copying { victim, offset }) => {
                    if left <= 0 {
                        return true;
                    }
                    left -= self.copy_some(victim, offset, left, now);
                }
                Some(Phase::Waiting) => {
                    self.commit();
                    return false;
                }
                Some(Phase::Committed(_)) => return false,
            }
        }
    }

    pub(crate) fn cleaning_is_ready(&self) -> bool {
        self.cleaning.as_ref().is_some_and(|cleaning| {
            cleaning.phase == Phase::Waiting
                && cleaning
                    .survivor
                    .is_none_or(|it| self.segments.get(it).durable_closed)
        })
    }

    /// Ends a pass whose victims have been freed.
    pub(crate) fn forget_settled_cleaning(&mut self) {
        let settled = self.segments.settled();
        let over = |it: &mut Cleaning| matches!(it.phase, Phase::Committed(by) if by <= settled);
        if let Some(cleaning) = self.cleaning.take_if(over) {
            for run in cleaning.held {
                self.region.give_back(run);
            }
        }
    }

    /// What becomes of a key (C4).
    pub(crate) fn verdict(&self, words: KeyWords, now: ClusterMs) -> Verdict {
        let Some(main) = words.main else {
            return Verdict::DropTouch;
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
        if current.flushed || over && !current.shadowing {
            Verdict::Drop
        } else if over {
            Verdict::Entomb
        } else if words.touch.is_some() && current.touches == 0 {
            Verdict::DropTouch
        } else {
            Verdict::Keep
        }
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

    // ---- choosing ----

    fn choose_victims(&mut self) -> bool {
        let block_seglets = self.region.seglets_per_block();
        // Start while there is still room for what arrives during a pass, and be choosy as long as
        // there is much of it: copying what will be garbage soon is work for nothing.
        let ahead = (2 * block_seglets).max(self.region.seglets() / 8);
        let left = self
            .available()
            .saturating_sub(self.limit(Class::Put))
            .min(ahead);
        let scattered = self.region.free_blocks() <= 2;
        if left == ahead && !scattered {
            return false;
        }
        let gain_percent = GAIN_PERCENT_MIN + (GAIN_PERCENT_MAX - GAIN_PERCENT_MIN) * left / ahead;
        let candidates = self.candidates();
        for start in 0..candidates.len().min(CHOICES_MAX) {
            let chosen = self.fill_survivor(&candidates[start..]);
            if self.is_worth_it(&chosen, gain_percent) || scattered && chosen.len() > 2 {
                self.begin(&chosen);
                return true;
            }
        }
        false
    }

    /// Blocks that could be cleaned, the best first: free space gained times its age (old garbage
    /// no longer grows) over the cost of reading and copying, as in log-structured file systems.
    fn candidates(&self) -> Vec<Candidate> {
        let block_bytes = f64::from(self.config.segment_bytes);
        let last_id = self.segments.last_id().0;
        let blocks = self.region.blocks() as usize;
        // Live bytes, used seglets, youngest id; `None` where something may not be moved.
        let mut sums: Vec<Option<(u64, u32, u64)>> = vec![Some((0, 0, 0)); blocks];
        for (_, segment) in self.segments.iter() {
            let sum = &mut sums[self.region.block_of(segment.run.first) as usize];
            *sum = match *sum {
                Some((live, used, youngest))
                    if segment.state == State::Member && segment.durable_closed =>
                {
                    let live = live + u64::from(segment.live);
                    Some((live, used + segment.run.count, youngest.max(segment.id.0)))
                }
                _ => None,
            };
        }
        let mut candidates: Vec<Candidate> = sums
            .iter()
            .enumerate()
            .filter_map(|(block, sum)| {
                let (live_bytes, used_seglets, youngest) = (*sum)?;
                let used = live_bytes as f64 / block_bytes;
                let age = (last_id - youngest + 1) as f64;
                let score = (1.0 - used) * age / (1.0 + used);
                let candidate = Candidate {
                    block: block as u32,
                    live_bytes,
                    used_seglets,
                    score,
                };
                (used_seglets > 0).then_some(candidate)
            })
            .collect();
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.block.cmp(&b.block)));
        candidates
    }

    /// As many of the candidates as one survivor can take.
    fn fill_survivor(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let block_seglets = self.region.seglets_per_block();
        // What is left at the survivor's end must do for the head that commits it.
        let mut room = u64::from(self.config.segment_bytes)
            - SEGMENT_HEADER_BYTES as u64
            - u64::from(self.commit_seglets()) * seglet_bytes;
        // Holding the free seglets of victims' blocks must leave enough for that head, too.
        let mut spare = self
            .available()
            .saturating_sub(self.limit(Class::Commit) + self.commit_seglets() + 1);
        let mut chosen = Vec::new();
        for candidate in candidates {
            let held = block_seglets - candidate.used_seglets;
            if candidate.live_bytes <= room && held <= spare {
                room -= candidate.live_bytes;
                spare -= held;
                chosen.push(*candidate);
                if chosen.len() == VICTIM_BLOCKS_MAX {
                    break;
                }
            }
        }
        chosen
    }

    /// C3, first half.
    fn is_worth_it(&self, chosen: &[Candidate], gain_percent: u32) -> bool {
        let live: u64 = chosen.iter().map(|it| it.live_bytes).sum();
        let used: u32 = chosen.iter().map(|it| it.used_seglets).sum();
        let survivor = match live {
            0 => 0,
            live => (live + SEGMENT_HEADER_BYTES as u64)
                .div_ceil(u64::from(self.config.seglet_bytes)) as u32,
        };
        let gain = used.saturating_sub(survivor);
        gain > self.commit_seglets() && gain * 100 >= used * gain_percent
    }

    fn begin(&mut self, chosen: &[Candidate]) {
        let is_chosen = |block| chosen.iter().any(|it| it.block == block);
        let victims: Vec<Slot> = self
            .segments
            .iter()
            .filter(|(_, it)| is_chosen(self.region.block_of(it.run.first)))
            .map(|(slot, _)| slot)
            .collect();
        let held = chosen
            .iter()
            .flat_map(|it| self.region.take_rest(it.block))
            .collect();
        let phase = Phase::Copying {
            victim: 0,
            offset: 0,
        };
        self.cleaning = Some(Cleaning {
            victims,
            held,
            survivor: None,
            phase,
        });
    }

    // ---- copying ----

    /// Goes on at `offset` of the victim. Returns the bytes read and copied.
    fn copy_some(&mut self, victim: usize, mut offset: u32, budget: i64, now: ClusterMs) -> i64 {
        let victims = self
            .cleaning
            .as_ref()
            .expect("a pass is under way")
            .victims
            .len();
        if victim == victims {
            self.end_copying();
            return 0;
        }
        let slot = self.cleaning.as_ref().expect("a pass is under way").victims[victim];
        let (start, length) = {
            let segment = self.segments.get(slot);
            (segment.start, segment.length)
        };
        let mut worked = 0;
        // Nothing live is left to find in a segment without live bytes.
        while offset < length && self.segments.get(slot).live > 0 && worked < budget {
            let place = start + u64::from(offset);
            let (_, bytes) = self.sized_entry(place);
            worked += bytes as i64 + self.clean_entry(place, bytes, now) as i64;
            offset += bytes as u32;
        }
        let over = offset >= length || self.segments.get(slot).live == 0;
        let cleaning = self.cleaning.as_mut().expect("a pass is under way");
        cleaning.phase = match over {
            true => Phase::Copying {
                victim: victim + 1,
                offset: 0,
            },
            false => Phase::Copying { victim, offset },
        };
        worked
    }

    fn end_copying(&mut self) {
        let cleaning = self.cleaning.as_mut().expect("a pass is under way");
        cleaning.phase = Phase::Waiting;
        for &victim in &cleaning.victims {
            assert_eq!(
                self.segments.get(victim).live,
                0,
                "the cleaner left something behind"
            );
        }
        if let Some(survivor) = cleaning.survivor {
            self.segments.close(&mut self.region, survivor);
        }
        self.commit();
    }

    /// Decides on one entry of a victim. Returns the bytes copied.
    fn clean_entry(&mut self, place: u64, bytes: usize, now: ClusterMs) -> usize {
        match self.entry(place) {
            Entry::SegmentHeader(_) | Entry::Digest(_) => 0,
            Entry::Completion(record) => {
                let key = (record.client, record.sequence);
                let Some(&recorded) = self.completions.get(&key) else {
                    return 0;
                };
                if recorded.offset != place {
                    return 0;
                }
                if self.lease_is_over(recorded.lease_until, now) {
                    self.completions.remove(&key);
                    self.kill(place);
                    return 0;
                }
                let copy = self.copy(place, bytes);
                self.completions.get_mut(&key).expect("just seen").offset = copy;
                bytes
            }
            Entry::RangeTombstone(tombstone) => {
                if self.flushes.at_mut(place).is_none() {
                    return 0;
                }
                if tombstone.birth < self.segments.oldest_id() {
                    self.flushes.take(|flush| flush.offset == place);
                    self.kill(place);
                    return 0;
                }
                let copy = self.copy(place, bytes);
                self.flushes.at_mut(place).expect("just seen").offset = copy;
                bytes
            }
            Entry::Object(_) | Entry::Touch(_) | Entry::Tombstone(_) => {
                // Garbage is known by the index alone.
                let hash = self.keyed(place).hash();
                let Some(spot) = self.index.find_offset(&self.region, hash, place) else {
                    return 0;
                };
                let Spot { at, word, .. } = spot;
                let words = match spot.is_alone() {
                    true => KeyWords {
                        main: Some(word),
                        main_at: at,
                        ..KeyWords::default()
                    },
                    false => self.words_at(place).1,
                };
                match self.verdict(words, now) {
                    Verdict::Drop => {
                        self.tally_expired(words);
                        self.supersede(hash, words, None);
                        0
                    }
                    Verdict::DropTouch if Some(word) == words.touch => {
                        self.drop_touch(hash, words);
                        0
                    }
                    Verdict::Entomb => {
                        self.open_survivor();
                        self.tally_expired(words);
                        let tombstone = self.entombed(words);
                        let survivor = self.survivor();
                        let copy = self.append(survivor, tombstone.len(), |out| {
                            out.copy_from_slice(&tombstone);
                            tombstone.len()
                        });
                        let word = Word::new(Kind::Tombstone, copy);
                        self.supersede(hash, words, Some(word));
                        tombstone.len()
                    }
                    Verdict::Keep | Verdict::DropTouch => {
                        let copy = self.copy(place, bytes);
                        let moved = Word::new(word.kind(), copy);
                        (self.index).replace_at(&mut self.region, hash, at, word, moved);
                        bytes
                    }
                }
            }
        }
    }

    pub(crate) fn drop_touch(&mut self, hash: KeyHash, words: KeyWords) {
        let touch = words.touch.expect("there is a touch to drop");
        self.index.remove(&mut self.region, hash, touch);
        self.kill_word(touch);
    }

    /// Copies an entry to the survivor; whoever pointed at it must now point at the copy.
    fn copy(&mut self, place: u64, bytes: usize) -> u64 {
        self.open_survivor();
        self.cleaned_bytes += bytes as u64;
        let survivor = self.survivor();
        let copy = self.append_copy(survivor, place, bytes);
        self.segments.end_live(&self.region, place, bytes);
        copy
    }

    fn survivor(&self) -> Slot {
        self.cleaning
            .as_ref()
            .and_then(|cleaning| cleaning.survivor)
            .expect("it was opened")
    }

    fn open_survivor(&mut self) {
        let cleaning = self.cleaning.as_ref().expect("a pass is under way");
        if cleaning.survivor.is_none() {
            let run = self
                .region
                .take_block()
                .expect("L2: a block is kept for the cleaner");
            let survivor = self.open_side(run, Owner::Cleaner);
            self.cleaning
                .as_mut()
                .expect("a pass is under way")
                .survivor = Some(survivor);
        }
    }
}
