//! The cleaner's work: going through segments entry by entry, and copying what lives.
//!
//! What makes it fast is that everything is asked for ahead: entries are read in order, and the index bucket of each
//! is loaded while those before it are dealt with. An entry lives if some word of its bucket has just
//! this place, so keys are not compared; only what is not a plain unexpired object is looked at closely.

use std::collections::VecDeque;

use holdfast_format::{
    ClientId, ClusterMs, Entry, KeyHash, Keyed, Namespace, SEGMENT_HEADER_BYTES, SegmentId, Version,
};

use crate::cleaner::Verdict;
use crate::index::{At, Index, Kind, Spot, Word};
use crate::lifetimes::{Needed, Prospect};
use crate::log::{KeyWords, Log};
use crate::pacing::Need;
use crate::region::{Region, Run};
use crate::segments::{Owner, Segments, Slot};

/// Entries that are read, and whose buckets are asked for, before the first of them is dealt with: enough to hide a
/// miss to memory.
const AHEAD: usize = 32;

/// What dealing with an entry costs besides its bytes, as bytes that could be copied in the time.
pub(crate) const ENTRY_COST_BYTES: i64 = 200;

/// Seglets that survivors take at once while several are open: 1 MiB, so that for all of them together it is less than
/// a segment.
pub(crate) const SHARE_SEGLETS: u32 = 16;

/// Copies of one segment's live entries.
#[derive(Debug)]
pub(crate) struct Compaction {
    pub slot: Slot,
    cursor: Cursor,
    /// Memory for the rest (C2), the longest last.
    held: Vec<Run>,
}

/// Copies of several segments' live entries to survivors.
#[derive(Debug)]
pub(crate) struct Combination {
    pub victims: Vec<Slot>,
    cursors: Vec<Cursor>,
    held: Vec<Run>,
    /// In the order in which they were opened.
    pub survivors: Vec<Slot>,
    /// One for each group of what lives about equally long.
    open: [Option<Slot>; Prospect::GROUPS],
    grouped: bool,
    /// What it was begun for.
    pub need: Need,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Copying,
    /// Until the survivors are durable and a head is opened.
    Waiting,
    /// Until the digest of this head is durable.
    Committed(SegmentId),
}

/// How far a segment has been gone through.
#[derive(Debug)]
struct Cursor {
    slot: Slot,
    extent: usize,
    /// The next entry to read, and the end of the extent.
    place: u64,
    end: u64,
    ahead: VecDeque<Ahead>,
}

/// An entry that is dealt with soon.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    place: u64,
    bytes: u32,
    hash: KeyHash,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Object {
        namespace: Namespace,
        version: Version,
        deadline: Option<ClusterMs>,
    },
    /// A touch or tombstone, with its version.
    Keyed(Version),
    Completion(ClientId, u64),
    Flush,
    /// Segment header or digest.
    Opening,
}

/// Who must be told when an entry has moved.
#[derive(Clone, Copy, Debug)]
enum Pointer {
    Word(At, Word),
    Completion(ClientId, u64),
    Flush,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Dead,
    /// With its deadline, that of the newest touch if it is a session.
    Keep(Pointer, Option<ClusterMs>),
    Entomb(Spot, KeyWords),
}

impl Compaction {
    pub fn held(&self) -> &[Run] {
        &self.held
    }

    pub fn held_seglets(&self) -> u32 {
        self.held.iter().map(|run| run.count).sum()
    }
}

impl Combination {
    pub fn held(&self) -> &[Run] {
        &self.held
    }

    pub fn held_seglets(&self) -> u32 {
        self.held.iter().map(|run| run.count).sum()
    }
}

impl Log {
    pub(crate) fn begin_compaction(&mut self, slot: Slot, held: Vec<Run>) {
        self.segments.get_mut(slot).busy = true;
        self.cleaner.compaction = Some(Compaction {
            slot,
            cursor: Cursor::new(slot),
            held,
        });
        self.recount_lent();
    }

    /// `grouped`: there is memory for survivors of several groups at once.
    pub(crate) fn begin_combination(
        &mut self,
        need: Need,
        victims: Vec<Slot>,
        held: Vec<Run>,
        grouped: bool,
    ) {
        for &victim in &victims {
            self.segments.get_mut(victim).busy = true;
        }
        self.cleaner.combination = Some(Combination {
            cursors: victims.iter().map(|&victim| Cursor::new(victim)).collect(),
            victims,
            held,
            survivors: Vec::new(),
            open: [None; Prospect::GROUPS],
            grouped,
            need,
            phase: Phase::Copying,
        });
        self.recount_lent();
    }

    /// Goes on with a job that helps `need`. Returns what was done, in bytes.
    pub(crate) fn copy_some(&mut self, need: Need, budget: i64, now: ClusterMs) -> i64 {
        let alone = self.cleaner.compaction.is_none();
        let helps = |it: &mut Combination| it.phase == Phase::Copying && (it.need == need || alone);
        match self.cleaner.combination.take_if(helps) {
            Some(job) => self.combine_some(job, budget, now),
            None => match self.cleaner.compaction.take() {
                Some(job) => self.compact_some(job, budget, now),
                None => 0,
            },
        }
    }

    // ---- compaction ----

    fn compact_some(&mut self, mut job: Compaction, budget: i64, now: ClusterMs) -> i64 {
        let mut worked = 0;
        while worked < budget {
            let Some(next) = job.cursor.next(&self.segments, &self.region, &self.index) else {
                self.give_back_held(&mut job.held, Some(job.slot));
                self.end_compaction(job.slot);
                return worked.max(1);
            };
            worked += ENTRY_COST_BYTES + i64::from(next.bytes);
            let fate = match next.what {
                What::Opening => {
                    self.copy_fresh(&mut job, &next);
                    continue;
                }
                _ => self.fate(&next, now),
            };
            let pointer = match fate {
                Fate::Dead => continue,
                Fate::Keep(pointer, _) => pointer,
                // C4: the sweep writes the tombstone, to the head.
                Fate::Entomb(spot, _) => Pointer::Word(spot.at, spot.word),
            };
            worked += i64::from(next.bytes);
            self.cleaner.compacted_bytes += u64::from(next.bytes);
            let copy = self.copy_fresh(&mut job, &next);
            self.repoint(pointer, &next, copy);
        }
        self.cleaner.compaction = Some(job);
        self.recount_lent();
        worked
    }

    /// Copies an entry to the end of what will be its segment's bytes.
    #[inline]
    fn copy_fresh(&mut self, job: &mut Compaction, next: &Ahead) -> u64 {
        let bytes = next.bytes;
        if self.segments.get(job.slot).fresh.room() < bytes {
            let tail = self.segments.cut_fresh_tail(&self.region, job.slot);
            self.region.give_back(tail);
            let run = next_run(&mut job.held, bytes, self.config.seglet_bytes);
            self.segments.extend_fresh(&self.region, job.slot, run);
        }
        let fresh = &mut self.segments.get_mut(job.slot).fresh;
        let copy = fresh.place(&self.region, bytes);
        self.copy_bytes(next, copy);
        copy
    }

    // ---- combined cleaning ----

    fn combine_some(&mut self, mut job: Combination, budget: i64, now: ClusterMs) -> i64 {
        let mut worked = 0;
        while worked < budget {
            let Some((at, others)) = self.oldest_cursor(&mut job) else {
                self.end_combining(job);
                return worked.max(1);
            };
            worked += self.combine_run(&mut job, at, others, budget - worked, now);
        }
        self.cleaner.combination = Some(job);
        self.recount_lent();
        worked
    }

    /// Goes on with one victim until another one's next entry is older than its own.
    fn combine_run(
        &mut self,
        job: &mut Combination,
        at: usize,
        others: u64,
        budget: i64,
        now: ClusterMs,
    ) -> i64 {
        let victim = job.cursors[at].slot;
        let mut worked = 0;
        while worked < budget && self.segments.get(victim).live > 0 {
            let cursor = &mut job.cursors[at];
            let age = cursor.age(&self.segments, &self.region, &self.index);
            let Some(next) = age
                .filter(|&age| age <= others)
                .and_then(|_| cursor.ahead.pop_front())
            else {
                break;
            };
            worked += ENTRY_COST_BYTES + i64::from(next.bytes);
            if matches!(next.what, What::Opening) {
                continue;
            }
            match self.fate(&next, now) {
                Fate::Dead => {}
                Fate::Keep(pointer, deadline) => {
                    worked += i64::from(next.bytes);
                    self.cleaner.cleaned_bytes += u64::from(next.bytes);
                    let copy = self.copy_surviving(job, victim, &next, deadline, now);
                    self.repoint(pointer, &next, copy);
                }
                Fate::Entomb(_, words) => {
                    let tombstone = self.entombed(words);
                    self.tally_expired(words);
                    let group = match job.grouped {
                        true => Prospect::of(Needed::Tombstone, None, None, now).group(),
                        false => 0,
                    };
                    let survivor = self.survivor_with_room(job, group, tombstone.len() as u32);
                    let (entry, _) = Entry::decode_trusted(&tombstone).expect("just encoded");
                    let copy = self.append_tombstone(survivor, &entry);
                    let word = Word::new(Kind::Tombstone, copy);
                    self.supersede(next.hash, words, Some(word));
                }
            }
        }
        worked
    }

    /// The cursor whose next entry is the oldest, so that survivors are sorted by age, and the age of the oldest
    /// of the others. Ends cursors of victims in which nothing lives any more.
    fn oldest_cursor(&mut self, job: &mut Combination) -> Option<(usize, u64)> {
        let (mut oldest, mut others) = (None, u64::MAX);
        let mut at = 0;
        while at < job.cursors.len() {
            let cursor = &mut job.cursors[at];
            let live = self.segments.get(cursor.slot).live;
            let age = cursor.age(&self.segments, &self.region, &self.index);
            let Some(age) = age.filter(|_| live > 0) else {
                // What takes its place has not been looked at yet.
                job.cursors.swap_remove(at);
                continue;
            };
            match oldest {
                Some((least, _)) if least <= age => others = others.min(age),
                Some((least, _)) => (oldest, others) = (Some((age, at)), least),
                None => oldest = Some((age, at)),
            }
            at += 1;
        }
        oldest.map(|(_, at)| (at, others))
    }

    fn copy_surviving(
        &mut self,
        job: &mut Combination,
        victim: Slot,
        next: &Ahead,
        deadline: Option<ClusterMs>,
        now: ClusterMs,
    ) -> u64 {
        let group = match job.grouped {
            true => self.group(next, deadline, now),
            false => 0,
        };
        let survivor = self.survivor_with_room(job, group, next.bytes);
        let bytes = next.bytes as usize;
        let copy = self.segments.place(&self.region, survivor, bytes);
        self.copy_bytes(next, copy);
        self.segments.move_live(victim, survivor, bytes);
        if let Some(deadline) = deadline.filter(|_| self.config.cleaner.lifetimes) {
            self.segments.take_lifetime(victim, deadline, next.bytes);
            (self.segments).add_lifetime(survivor, deadline, next.bytes, now);
        }
        if !matches!(next.what, What::Object { .. } | What::Completion(..)) {
            self.move_counted(victim, survivor, copy);
        }
        copy
    }

    /// Which survivor an entry goes to: those that will live about equally long stay together.
    fn group(&self, next: &Ahead, deadline: Option<ClusterMs>, now: ClusterMs) -> usize {
        let (needed, idle_ms) = match self.entry(next.place) {
            Entry::Object(object) => (Needed::Object, object.expiry.idle_ms),
            Entry::Touch(_) => (Needed::Touch, None),
            Entry::Completion(_) => (Needed::Object, None),
            _ => (Needed::Tombstone, None),
        };
        Prospect::of(needed, deadline, idle_ms, now).group()
    }

    /// The statistics follow a tombstone or a touch; of other entries there are none.
    fn move_counted(&mut self, victim: Slot, survivor: Slot, copy: u64) {
        let (entry, bytes) = self.sized_entry(copy);
        if matches!(entry, Entry::Touch(_)) {
            self.segments.count_touch(victim, bytes as u32, false);
            self.segments.count_touch(survivor, bytes as u32, true);
            return;
        }
        if let Some(birth) = crate::space::birth(&entry) {
            self.segments.end_tombstone(victim, bytes);
            self.segments.add_tombstone(survivor, bytes, birth);
        }
    }

    fn survivor_with_room(&mut self, job: &mut Combination, group: usize, bytes: u32) -> Slot {
        if let Some(open) = job.open[group] {
            if self.segments.get(open).bytes.room() >= bytes {
                return open;
            }
            if self.could_take(open, bytes as usize) {
                let tail = self.segments.cut_tail(&mut self.region, open);
                debug_assert!(tail.count * self.config.seglet_bytes < bytes);
                let run = self.survivor_run(job, open, bytes);
                self.segments.extend(&mut self.region, open, run);
                return open;
            }
            self.segments.close(&mut self.region, open);
        }
        let first = bytes + SEGMENT_HEADER_BYTES as u32;
        let mut run = next_run(&mut job.held, first, self.config.seglet_bytes);
        cut_run(&mut run, self.share(job, first), &mut job.held);
        let open = self.open_side(run, Owner::Cleaner);
        job.survivors.push(open);
        job.open[group] = Some(open);
        open
    }

    /// Seglets that a survivor takes at once: several may be open, and what one holds and does not use another one
    /// lacks.
    fn share(&self, job: &Combination, bytes: u32) -> u32 {
        let share = match job.grouped {
            true => SHARE_SEGLETS.min(self.config.segment_seglets()),
            false => self.config.segment_seglets(),
        };
        share.max(bytes.div_ceil(self.config.seglet_bytes))
    }

    fn survivor_run(&mut self, job: &mut Combination, open: Slot, bytes: u32) -> Run {
        let left = self.config.segment_seglets() - self.segments.get(open).bytes.seglets();
        let left = left.min(self.share(job, bytes));
        let mut run = next_run(&mut job.held, bytes, self.config.seglet_bytes);
        cut_run(&mut run, left, &mut job.held);
        run
    }

    fn end_combining(&mut self, mut job: Combination) {
        for &victim in &job.victims {
            assert_eq!(
                self.segments.get(victim).live,
                0,
                "the cleaner left something behind"
            );
        }
        for open in job.open.iter_mut().filter_map(Option::take) {
            self.segments.close(&mut self.region, open);
        }
        self.give_back_held(&mut job.held, None);
        job.phase = Phase::Waiting;
        self.cleaner.combination = Some(job);
        self.recount_lent();
        self.commit();
    }

    // ---- both ----

    fn give_back_held(&mut self, held: &mut Vec<Run>, fresh: Option<Slot>) {
        if let Some(slot) = fresh {
            let tail = self.segments.cut_fresh_tail(&self.region, slot);
            self.region.give_back(tail);
        }
        for run in held.drain(..) {
            self.region.give_back(run);
        }
    }

    #[inline]
    fn copy_bytes(&mut self, next: &Ahead, copy: u64) {
        let place = next.place as usize;
        let end = place + next.bytes as usize;
        self.region
            .memory_mut()
            .copy_within(place..end, copy as usize);
    }

    /// Decides on one entry. What is not needed any more is forgotten.
    #[inline]
    fn fate(&mut self, next: &Ahead, now: ClusterMs) -> Fate {
        let What::Object {
            namespace,
            version,
            deadline,
        } = next.what
        else {
            return self.fate_of_others(next, now);
        };
        let Some(spot) = (self.index).find_offset(&self.region, next.hash, next.place) else {
            return Fate::Dead;
        };
        let slack_ms = u64::from(self.config.expiry_slack_ms);
        let over = deadline.is_some_and(|deadline| deadline.plus_ms(slack_ms) <= now);
        if spot.is_alone() && !over && !self.flushes.may_cover(namespace, version) {
            return Fate::Keep(Pointer::Word(spot.at, spot.word), deadline);
        }
        self.fate_of_others(next, now)
    }

    fn fate_of_others(&mut self, next: &Ahead, now: ClusterMs) -> Fate {
        let place = next.place;
        match next.what {
            What::Opening => Fate::Dead,
            What::Completion(client, sequence) => {
                let key = (client, sequence);
                match self.completions.get(&key).copied() {
                    Some(recorded) if recorded.offset == place => {
                        if !self.lease_is_over(recorded.lease_until, now) {
                            let pointer = Pointer::Completion(client, sequence);
                            return Fate::Keep(pointer, Some(recorded.lease_until));
                        }
                        self.completions.remove(&key);
                        self.kill(place);
                        Fate::Dead
                    }
                    _ => Fate::Dead,
                }
            }
            What::Flush => {
                let oldest = self.needed_since();
                match self.flushes.at_mut(place) {
                    None => Fate::Dead,
                    Some(flush) if flush.tombstone.birth >= oldest => {
                        Fate::Keep(Pointer::Flush, None)
                    }
                    Some(_) => {
                        self.flushes.take(|flush| flush.offset == place);
                        self.kill(place);
                        Fate::Dead
                    }
                }
            }
            What::Object { .. } | What::Keyed(_) => self.fate_of_keyed(next, now),
        }
    }

    fn fate_of_keyed(&mut self, next: &Ahead, now: ClusterMs) -> Fate {
        let spot = (self.index).find_offset(&self.region, next.hash, next.place);
        let Some(spot) = spot else {
            return Fate::Dead;
        };
        let Spot { at, word, .. } = spot;
        let (hash, words) = self.words_at(next.place);
        match self.verdict(words, now) {
            Verdict::Drop => {
                self.tally_expired(words);
                self.supersede(hash, words, None);
                Fate::Dead
            }
            Verdict::DropTouch if Some(word) == words.touch => {
                self.drop_touch(hash, words);
                Fate::Dead
            }
            Verdict::Entomb => Fate::Entomb(spot, words),
            Verdict::Keep | Verdict::DropTouch => {
                let deadline = match word.kind() {
                    Kind::Object => self.current(words).and_then(|it| it.deadline),
                    Kind::Touch => self.keyed(next.place).deadline(),
                    Kind::Tombstone => None,
                };
                Fate::Keep(Pointer::Word(at, word), deadline)
            }
        }
    }

    /// Whoever pointed at an entry now points at its copy.
    #[inline]
    fn repoint(&mut self, pointer: Pointer, next: &Ahead, copy: u64) {
        match pointer {
            Pointer::Word(at, word) => {
                let moved = Word::new(word.kind(), copy);
                (self.index).replace_at(&mut self.region, next.hash, at, word, moved);
            }
            Pointer::Completion(client, sequence) => {
                let recorded = self.completions.get_mut(&(client, sequence));
                recorded.expect("just seen").offset = copy;
            }
            Pointer::Flush => {
                self.flushes.at_mut(next.place).expect("just seen").offset = copy;
            }
        }
    }

    pub(crate) fn drop_touch(&mut self, hash: KeyHash, words: KeyWords) {
        let touch = words.touch.expect("there is a touch to drop");
        self.index.remove(&mut self.region, hash, touch);
        self.kill_word(touch);
    }
}

impl Cursor {
    fn new(slot: Slot) -> Cursor {
        Cursor {
            slot,
            extent: 0,
            place: 0,
            end: 0,
            ahead: VecDeque::with_capacity(AHEAD),
        }
    }

    /// The next entry.
    #[inline]
    fn next(&mut self, segments: &Segments, region: &Region, index: &Index) -> Option<Ahead> {
        self.fill(segments, region, index);
        self.ahead.pop_front()
    }

    /// The age of the next entry. What is no session has none and goes first.
    #[inline]
    fn age(&mut self, segments: &Segments, region: &Region, index: &Index) -> Option<u64> {
        self.fill(segments, region, index);
        self.ahead.front().map(|next| match next.what {
            What::Object { version, .. } | What::Keyed(version) => version.0,
            What::Completion(..) | What::Flush | What::Opening => 0,
        })
    }

    #[inline]
    fn fill(&mut self, segments: &Segments, region: &Region, index: &Index) {
        while self.ahead.len() < AHEAD {
            while self.place == self.end {
                let segment = segments.get(self.slot);
                let Some(extent) = segment.bytes.list().get(self.extent) else {
                    return;
                };
                self.extent += 1;
                self.place = region.offset_of(extent.run.first);
                self.end = self.place + u64::from(extent.used);
            }
            let next = Ahead::read(region, self.place);
            if !matches!(
                next.what,
                What::Opening | What::Flush | What::Completion(..)
            ) {
                index.prefetch(region, next.hash);
            }
            self.place += u64::from(next.bytes);
            self.ahead.push_back(next);
            // Half-way its bucket has come, and tells if the next of the chain is asked for as well.
            if let Some(half) = self.ahead.len().checked_sub(AHEAD / 2) {
                index.prefetch_chain(region, self.ahead[half].hash);
            }
        }
    }
}

impl Ahead {
    #[inline]
    fn read(region: &Region, place: u64) -> Ahead {
        let bytes = &region.memory()[place as usize..];
        if let Some(keyed) = Keyed::at(bytes) {
            let what = match keyed.is_object() {
                true => What::Object {
                    namespace: keyed.namespace(),
                    version: keyed.version(),
                    deadline: keyed.deadline(),
                },
                false => What::Keyed(keyed.version()),
            };
            return Ahead {
                place,
                bytes: keyed.length() as u32,
                hash: keyed.hash(),
                what,
            };
        }
        let (entry, bytes) = Entry::decode_trusted(bytes)
            .expect("segments consist of entries that were checked when they came in");
        let what = match entry {
            Entry::Completion(record) => What::Completion(record.client, record.sequence),
            Entry::RangeTombstone(_) => What::Flush,
            Entry::SegmentHeader(_) | Entry::Digest(_) => What::Opening,
            Entry::Object(_) | Entry::Touch(_) | Entry::Tombstone(_) => {
                unreachable!("these have keys")
            }
        };
        Ahead {
            place,
            bytes: bytes as u32,
            hash: KeyHash::default(),
            what,
        }
    }
}

/// The longest run that a job still holds and that can take `bytes`.
fn next_run(held: &mut Vec<Run>, bytes: u32, seglet_bytes: u32) -> Run {
    let fits = held
        .iter()
        .rposition(|run| run.count * seglet_bytes >= bytes);
    held.remove(fits.expect("C2: the job has all memory it may need"))
}

/// Cuts a run to at most `count` seglets; the job keeps the rest.
fn cut_run(run: &mut Run, count: u32, held: &mut Vec<Run>) {
    if run.count > count {
        held.push(Run {
            first: run.first + count,
            count: run.count - count,
        });
        run.count = count;
    }
}
