//! Recovery: entries of a dead log become entries of this one, in side segments.
//!
//! They come in any order, several times over, from any mixture of replicas. What wins for a key is the
//! highest version, and at one version tombstone over touch over object, touches by number. Objects, touches
//! and completion records are copied as they are: their shadowing flags were true of all that the
//! dead log's replicas held, and what comes here is a part of that. Only tombstones of both kinds are written
//! anew, because their birth names segments of the dead log and must name ours.
//!
//! P1. Of slots that are being replayed no key is served of which something may still come, so nobody sees a state
//!     half-way. What expires there stays until all has come (`Log::set_unsettled`): a touch may be on its way.
//! P2. Side segments of a replay are neither cleaned nor swept, and enter a digest all at once when the
//!     replay is finished and all of them are durable.
//! P3. Applying an entry again changes nothing.
//! P4. A replay that brought nothing is committed too if it raised the counter past what the durable head
//!     allows: whoever recovers this log must start above every version of the dead one.
//! P5. Nothing is committed before some head is durable: the owner of a range must have left a trace of
//!     itself on all its backups, or its death with R - 1 of them would look like the loss of all.
//! P6. One recovery may consist of several replays, of which one becomes part of the log before the others. What
//!     is replayed of one key may then be spread over them, and it counts only together.
//! P7. Of a range tombstone a replay keeps only what lies in its own ranges. Another replay of the same
//!     log, of other ranges, has the rest: if this one is aborted, nothing of the other's may come back.
//! P8. Sessions lie in the slots that were told as the replay began: backups send no others (`Entry::concerns`). Which
//!     slots this log may have sessions in is noted then, and not looked up for every key.

mod fresh;

use holdfast_format::{
    BadEntry, ClusterMs, Entry, KeyHash, Keyed, Namespace, RangeTombstone, SEGMENT_HEADER_BYTES,
    SegmentId, Slot as KeySlot, SlotRange, Version,
};

use crate::completions::Recorded;
use crate::flushes::{FLUSHES_MAX, Flush, supersedes};
use crate::index::{Home, Kind, Word};
use crate::log::{KeyWords, Log};
use crate::prefetch::prefetch;
use crate::segments::{Owner, Slot, State};
use crate::space::{Class, birth};
use crate::{ReplayError, ReplayId, Replayed};

use fresh::Room;

#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub sides: Vec<Slot>,
    open: Option<Slot>,
    finished: bool,
    /// Its segments need no replicas before it is finished.
    held_back: bool,
    /// What it is about (P7, P8).
    ranges: Vec<SlotRange>,
    /// Bytes given, and words that the index has more because of them.
    bytes: u64,
    words: u64,
    /// The durable head's version ceiling may be below the counter (P4).
    raises_ceiling: bool,
    /// The head whose digest names the sides.
    pub committed_by: Option<SegmentId>,
}

impl Replay {
    /// Finished, it leaves nothing for a digest or a header to tell.
    fn is_nothing(&self) -> bool {
        self.sides.is_empty() && !self.raises_ceiling
    }
}

/// An entry that was checked and is still to be applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    /// In the bytes of this call.
    offset: u32,
    length: u32,
    hash: KeyHash,
}

/// So many entries before it is applied, an entry's bucket is asked for; and when half of them are left,
/// what the bucket leads to. A prototype replayed a quarter more in the same time with 32 than with 16.
const AHEAD: usize = 32;

/// Bytes that are checked are asked for so far ahead: what the processor does by itself ends at each page, and in
/// memory that others use too that was a tenth of a replay of 1 KB entries.
const READ_AHEAD_BYTES: usize = 1_024;

impl Log {
    /// Begins a replay of these slots: what it is given is about no others (P8), but for range tombstones. Several
    /// may be under way.
    pub fn replay_begin(&mut self, ranges: &[SlotRange]) -> ReplayId {
        self.last_replay = ReplayId(self.last_replay.0 + 1);
        for range in ranges {
            (range.first.0..=range.last.0).for_each(|slot| self.note_slot(KeySlot(slot)));
        }
        let replay = Replay {
            ranges: ranges.to_vec(),
            ..Replay::default()
        };
        self.replays.insert(self.last_replay, replay);
        self.last_replay
    }

    /// As `replay_begin`, but what it brings is not to be replicated before it is finished (`is_held_back`): somebody
    /// else keeps it meanwhile, and there is something more urgent to do.
    pub fn replay_begin_held_back(&mut self, ranges: &[SlotRange]) -> ReplayId {
        let id = self.replay_begin(ranges);
        self.replays.get_mut(&id).expect("just begun").held_back = true;
        id
    }

    /// True of a segment among the goals that nobody needs to replicate yet.
    pub fn is_held_back(&self, segment: SegmentId) -> bool {
        let state = self.segments.by_id(segment).map(|it| it.state);
        let Some(State::Side(Owner::Replay(id))) = state else {
            return false;
        };
        let replay = self.replays.get(&id);
        replay.is_some_and(|replay| replay.held_back && !replay.finished)
    }

    /// Applies whole entries of the dead log, in any order, duplicates allowed.
    ///
    /// After an error some of the entries before it have been applied, and the same bytes may be
    /// given again.
    pub fn replay(
        &mut self,
        id: ReplayId,
        entries: &[u8],
        now: ClusterMs,
    ) -> Result<Replayed, ReplayError> {
        assert!(!self.replays[&id].finished, "{id:?} is finished");
        assert!(entries.len() <= u32::MAX as usize, "replicas are segments");
        let mut list = std::mem::take(&mut self.replay_list);
        list.clear();
        self.clock = self.clock.max(now);
        let error = check(entries, &mut list).err();
        let words = self.index.words();
        let mut room = None;
        let replayed = self.replay_checked(id, entries, &list, now, &mut room);
        self.leave(&mut room);
        self.replay_list = list;
        let replay = self.replays.get_mut(&id).expect("a replay under way");
        replay.bytes += entries.len() as u64;
        replay.words += self.index.words().saturating_sub(words);
        let error = error.map(|error| ReplayError::Corrupt {
            offset: error.offset,
            error: error.error,
        });
        error.map_or(replayed, |error| replayed.and(Err(error)))
    }

    /// Tells that about so many bytes are still to be replayed, so that the index grows for all of them at once
    /// and not in many small steps. A guess that is wrong costs memory or time, nothing else.
    pub fn replay_expect(&mut self, id: ReplayId, bytes_to_come: u64) {
        let replay = &self.replays[&id];
        if replay.bytes > 0 {
            let to_come = u128::from(bytes_to_come) * u128::from(replay.words);
            let to_come = (to_come / u128::from(replay.bytes)) as u64;
            let words = self.index.words() + to_come;
            self.index.expect(&self.region, words);
        }
    }

    /// What this replay is to bring has come: it grows no more, so that its replicas can be closed while other
    /// replays of the same recovery go on. It becomes part of the log when it is finished.
    pub fn replay_close(&mut self, id: ReplayId) {
        let replay = self.replays.get_mut(&id).expect("a replay under way");
        if let Some(open) = replay.open.take() {
            self.segments.close(&mut self.region, open);
        }
    }

    /// Bytes of this replay that are not on all replicas yet.
    pub fn replay_left(&self, id: ReplayId) -> u64 {
        let sides = self.replays.get(&id).map_or(&[][..], |it| &it.sides);
        // Once they are members they were durable, and may have been freed since.
        let is_side = self
            .replays
            .get(&id)
            .is_some_and(|it| it.committed_by.is_none());
        let sides = sides
            .iter()
            .filter(|_| is_side)
            .map(|&side| self.segments.get(side));
        let left = sides.filter(|it| !it.durable_closed);
        left.map(|it| u64::from(it.length())).sum()
    }

    /// In these ranges nothing expires in the background, and no touch goes for want of its object: not everything has
    /// been replayed there.
    pub fn set_unsettled(&mut self, ranges: Vec<SlotRange>) {
        self.unsettled = ranges;
    }

    /// Bytes of memory that a replay can still fill.
    pub fn replay_room(&self) -> u64 {
        let seglets = self.available().saturating_sub(self.limit(Class::Small));
        u64::from(seglets) * u64::from(self.config.seglet_bytes)
    }

    /// True if what there is of the key is newer than every version up to `version`: nothing that a replay may still
    /// bring changes it.
    pub fn is_newer(&self, namespace: Namespace, key: &[u8], version: Version) -> bool {
        let words = self.words(namespace, key, KeyHash::of(namespace, key));
        words
            .main
            .is_some_and(|main| self.keyed(main.offset()).version() > version)
    }

    /// While pinned, no tombstone of either kind ends that was needed as the pin was set or came later: besides what
    /// replicas of this log hold, it may be needed against what those of another one hold, from which this log would be
    /// recovered too. Of the other log's keys there are no older ones.
    pub fn pin(&mut self, pinned: bool) {
        self.pinned_since = match pinned {
            true => self.pinned_since.or(Some(self.segments.oldest_id())),
            false => None,
        };
    }

    /// Tombstones with this birth or a later one are needed. It only rises: jobs have no room for those that were not
    /// needed when they began.
    pub(crate) fn needed_since(&self) -> SegmentId {
        self.pinned_since.unwrap_or(self.segments.oldest_id())
    }

    /// Everything has been replayed. Later versions of this log are above `version_ceiling`.
    pub fn replay_finish(&mut self, id: ReplayId, version_ceiling: Version) {
        let replay = self.replays.get_mut(&id).expect("a replay under way");
        replay.finished = true;
        replay.raises_ceiling = version_ceiling > self.version_ceiling;
        if let Some(open) = replay.open.take() {
            self.segments.close(&mut self.region, open);
        }
        self.replay_list = Vec::new();
        self.index.expect(&self.region, 0);
        self.last_version = self.last_version.max(version_ceiling);
        self.commit();
    }

    /// True once everything replayed is durable and named by a durable digest.
    pub fn replay_committed(&self, id: ReplayId) -> bool {
        self.replays.get(&id).is_some_and(|replay| {
            replay.finished
                && match replay.is_nothing() {
                    true => self.segments.settled() > SegmentId(0),
                    false => (replay.committed_by).is_some_and(|by| by <= self.segments.settled()),
                }
        })
    }

    /// Forgets all that a replay of `ranges` has brought. Not after it was committed.
    pub fn replay_abort(&mut self, id: ReplayId, ranges: &[SlotRange]) {
        self.replay_abort_all(&[id], ranges);
    }

    /// As `replay_abort`, of all replays of one recovery: what one of them has flushed may have come by another.
    pub fn replay_abort_all(&mut self, ids: &[ReplayId], ranges: &[SlotRange]) {
        let mut sides = Vec::new();
        for id in ids {
            let Some(replay) = self.replays.remove(id) else {
                continue;
            };
            assert!(replay.committed_by.is_none(), "{id:?} is part of the log");
            sides.extend(replay.sides);
        }
        self.index.expect(&self.region, 0);
        let mut flushes = Vec::new();
        for &side in &sides {
            let extents = self.segments.get(side).bytes.list().to_vec();
            for extent in extents {
                let mut place = self.region.offset_of(extent.run.first);
                let end = place + u64::from(extent.used);
                while place < end {
                    let (entry, bytes) = self.sized_entry(place);
                    match entry {
                        Entry::RangeTombstone(_) => flushes.push(place),
                        _ if entry.concerns(ranges) => self.unreplay(place),
                        _ => {}
                    }
                    place += bytes as u64;
                }
            }
        }
        // Only now: sessions were counted as these say.
        for place in flushes {
            if self.flushes.at_mut(place).is_some() {
                self.flushes.take(|flush| flush.offset == place);
                self.kill(place);
            }
        }
        for side in sides {
            if !self.segments.get(side).closed {
                self.segments.close(&mut self.region, side);
            }
            self.segments.free(&mut self.region, side);
        }
    }

    pub(crate) fn replay_is_ready(&self, replay: &Replay) -> bool {
        replay.finished
            && replay.committed_by.is_none()
            && !replay.is_nothing()
            && replay
                .sides
                .iter()
                .all(|&side| self.segments.get(side).durable_closed)
    }

    // ---- private ----

    /// Applies what was checked, the last first: what they replace need not be kept, and a log that was
    /// full fits again.
    fn replay_checked(
        &mut self,
        id: ReplayId,
        bytes: &[u8],
        list: &[Checked],
        now: ClusterMs,
        room: &mut Option<Room>,
    ) -> Result<Replayed, ReplayError> {
        let mut replayed = Replayed::default();
        let mut homes = [Home::default(); AHEAD];
        let mut layout = self.index.layout();
        for (at, checked) in list.iter().enumerate().rev().take(AHEAD) {
            homes[at % AHEAD] = self.prefetch_home(checked.hash);
        }
        for at in (0..list.len()).rev() {
            if layout != self.index.layout() {
                // Of this one and those before it that are loading.
                layout = self.index.layout();
                for at in at.saturating_sub(AHEAD - 1)..=at {
                    homes[at % AHEAD] = self.prefetch_home(list[at].hash);
                }
            }
            let home = homes[at % AHEAD];
            if let Some(ahead) = at.checked_sub(AHEAD) {
                homes[ahead % AHEAD] = self.prefetch_home(list[ahead].hash);
            }
            if let Some(ahead) = at.checked_sub(AHEAD / 2) {
                (self.index).prefetch_vacancy(&self.region, homes[ahead % AHEAD]);
            }
            let Checked {
                offset,
                length,
                hash,
            } = list[at];
            let raw = &bytes[offset as usize..(offset + length) as usize];
            replayed.entries += 1;
            replayed.bytes += u64::from(length);
            let kept = match Keyed::at(raw) {
                Some(object) if object.is_object() => {
                    self.replay_object(id, room, (object, raw, hash), home)?
                }
                _ => {
                    self.leave(room);
                    let (entry, _) = Entry::decode_trusted(raw).expect("it was checked");
                    self.replay_entry(id, entry, hash, now)?
                }
            };
            replayed.kept += u64::from(kept);
        }
        Ok(replayed)
    }

    #[inline]
    fn prefetch_home(&self, hash: KeyHash) -> Home {
        let home = self.index.home_of(&self.region, hash);
        self.region.prefetch(home.bucket);
        home
    }

    /// Applies an object, of which nearly all of a log consists. True if it won, for now.
    fn replay_object(
        &mut self,
        id: ReplayId,
        room: &mut Option<Room>,
        (object, raw, hash): (Keyed<'_>, &[u8], KeyHash),
        home: Home,
    ) -> Result<bool, ReplayError> {
        let (namespace, version) = (object.namespace(), object.version());
        if self.flushes.may_cover(namespace, version)
            && self.flushes.cover(namespace, object.key(), version)
        {
            return Ok(false);
        }
        if let Some(vacancy) = self.index.vacancy(&self.region, home) {
            self.replay_fresh(id, room, (object, raw), vacancy)?;
            if self.index.is_growth_due() {
                self.leave(room);
                self.grow_index();
            }
            return Ok(true);
        }
        let words = self.words(namespace, object.key(), hash);
        let rank = (version.0, 0);
        if words.main.is_some_and(|main| self.rank_of(main) >= rank) {
            return Ok(false);
        }
        self.leave(room);
        let side = self.side_space(id, raw.len())?;
        let offset = self.append(side, raw.len(), |out| {
            out.copy_from_slice(raw);
            raw.len()
        });
        self.replace_main(hash, words, Word::new(Kind::Object, offset), rank);
        Ok(true)
    }

    /// Applies any entry but an object. True if it won, for now.
    fn replay_entry(
        &mut self,
        id: ReplayId,
        entry: Entry<'_>,
        hash: KeyHash,
        now: ClusterMs,
    ) -> Result<bool, ReplayError> {
        let (namespace, key) = match entry {
            Entry::SegmentHeader(_) | Entry::Digest(_) => return Ok(false),
            Entry::RangeTombstone(tombstone) => return self.replay_flushes(id, tombstone),
            Entry::Completion(record) => {
                let known = (record.client, record.sequence);
                if self.completions.contains_key(&known)
                    || self.lease_is_over(record.lease_until, now)
                {
                    return Ok(false);
                }
                let offset = self.append_side(id, &entry)?;
                let recorded = Recorded {
                    offset,
                    lease_until: record.lease_until,
                };
                self.completions.insert(known, recorded);
                let bytes = entry.encoded_len() as u32;
                self.note_lifetime(offset, Some(record.lease_until), bytes, true);
                return Ok(true);
            }
            Entry::Touch(_) | Entry::Tombstone(_) => entry.key().expect("these have keys"),
            Entry::Object(_) => unreachable!("objects are dealt with elsewhere"),
        };
        let words = self.words(namespace, key, hash);
        let rank = match entry {
            Entry::Touch(touch) => (touch.version.0, touch.number),
            Entry::Tombstone(tombstone) => (tombstone.version.0, u64::MAX),
            _ => unreachable!("the others were dealt with"),
        };
        // An object does not end its own touch.
        let is_ended = |main: Word| match (main.kind(), entry) {
            (Kind::Object, Entry::Touch(_)) => self.rank_of(main).0 > rank.0,
            _ => self.rank_of(main) >= rank,
        };
        if self.flushes.cover(namespace, key, Version(rank.0)) || words.main.is_some_and(is_ended) {
            return Ok(false);
        }
        match entry {
            Entry::Touch(_) => {
                if words.touch.is_some_and(|touch| self.rank_of(touch) >= rank) {
                    return Ok(false);
                }
                let offset = self.append_side(id, &entry)?;
                self.retouch(hash, words, Word::new(Kind::Touch, offset));
            }
            Entry::Tombstone(mut tombstone) => {
                self.side_space(id, tombstone.encoded_len())?;
                tombstone.birth = self.segments.last_id();
                let offset = self.append_side(id, &Entry::Tombstone(tombstone))?;
                self.replace_main(hash, words, Word::new(Kind::Tombstone, offset), rank);
            }
            _ => unreachable!("the others were dealt with"),
        }
        Ok(true)
    }

    /// Orders what is known of one key: by version, then object, touches by number, tombstone.
    #[inline]
    fn rank_of(&self, word: Word) -> (u64, u64) {
        let version = self.keyed(word.offset()).version().0;
        match word.kind() {
            Kind::Object => (version, 0),
            Kind::Touch => (version, self.touch_entry(word).number),
            Kind::Tombstone => (version, u64::MAX),
        }
    }

    /// As `supersede`, but a touch that is newer than `main` stays: its object is still to come,
    /// or is this one.
    fn replace_main(&mut self, hash: KeyHash, words: KeyWords, main: Word, rank: (u64, u64)) {
        let newer = |touch: &Word| self.rank_of(*touch) > rank;
        let touch = words.touch.filter(newer);
        self.exchange(
            hash,
            words,
            KeyWords {
                main: Some(main),
                touch,
                ..words
            },
        );
    }

    /// P7.
    fn replay_flushes(
        &mut self,
        id: ReplayId,
        tombstone: RangeTombstone,
    ) -> Result<bool, ReplayError> {
        let ranges = self.replays[&id].ranges.clone();
        let mut kept = false;
        for range in ranges {
            if let Some(range) = range.common(tombstone.range) {
                let part = RangeTombstone { range, ..tombstone };
                kept |= self.replay_flush(id, part)?;
            }
        }
        Ok(kept)
    }

    fn replay_flush(
        &mut self,
        id: ReplayId,
        mut tombstone: RangeTombstone,
    ) -> Result<bool, ReplayError> {
        if self
            .flushes
            .list
            .iter()
            .any(|flush| supersedes(&flush.tombstone, &tombstone))
        {
            return Ok(false);
        }
        if self.flushes.list.len() >= FLUSHES_MAX {
            return Err(ReplayError::OutOfMemory);
        }
        self.side_space(id, Entry::RangeTombstone(tombstone).encoded_len())?;
        tombstone.birth = self.segments.last_id();
        let offset = self.append_side(id, &Entry::RangeTombstone(tombstone))?;
        self.count_flushed(&tombstone);
        self.add_flush(Flush { tombstone, offset });
        Ok(true)
    }

    /// Makes room in the replay's open side segment, and in the index. Sessions that were taken before
    /// come before writers now: a log that was full when its owner died must fit into one just as large.
    ///
    /// If need be the head lends its empty part: it would hold as much of what comes later, and without it
    /// the completion records, which the dead log needed no memory for any more, would not fit.
    fn side_space(&mut self, id: ReplayId, bytes: usize) -> Result<Slot, ReplayError> {
        match self.try_side_space(id, bytes) {
            Err(ReplayError::OutOfMemory) => {
                self.segments.cut_tail(&mut self.region, self.head);
                self.try_side_space(id, bytes)
            }
            done => done,
        }
    }

    fn try_side_space(&mut self, id: ReplayId, bytes: usize) -> Result<Slot, ReplayError> {
        if self.available() < self.limit(Class::Small) {
            return Err(ReplayError::OutOfMemory);
        }
        if !self.index.has_room() {
            let may_take = self.index_may_take(Class::Small);
            if !self.index.make_room(&mut self.region, may_take) {
                return Err(ReplayError::OutOfMemory);
            }
        }
        let open = self.replays[&id].open;
        if let Some(open) = open {
            let fits = self.segments.get(open).bytes.room() as usize >= bytes;
            if fits || self.grow(open, bytes, Class::Small) {
                return Ok(open);
            }
            if self.could_take(open, bytes) {
                return Err(ReplayError::OutOfMemory);
            }
            self.segments.close(&mut self.region, open);
            self.replays.get_mut(&id).expect("a replay under way").open = None;
        }
        let run = self
            .take_run(SEGMENT_HEADER_BYTES + bytes, Class::Small)
            .ok_or(ReplayError::OutOfMemory)?;
        let side = self.open_side(run, Owner::Replay(id));
        let replay = self.replays.get_mut(&id).expect("a replay under way");
        replay.sides.push(side);
        replay.open = Some(side);
        Ok(side)
    }

    fn append_side(&mut self, id: ReplayId, entry: &Entry<'_>) -> Result<u64, ReplayError> {
        let bytes = entry.encoded_len();
        let side = self.side_space(id, bytes)?;
        Ok(match birth(entry) {
            Some(_) => self.append_tombstone(side, entry),
            None => self.append(side, bytes, |out| entry.encode(out)),
        })
    }

    /// Takes back what the entry at `place` of a side segment brought, if it is still what counts.
    fn unreplay(&mut self, place: u64) {
        if let Entry::Completion(record) = self.entry(place) {
            let key = (record.client, record.sequence);
            if self
                .completions
                .get(&key)
                .is_some_and(|recorded| recorded.offset == place)
            {
                self.completions.remove(&key);
                self.kill(place);
            }
            return;
        }
        let (hash, words) = self.words_at(place);
        let here = |word: &Word| word.offset() == place;
        if words.main.is_some_and(|word| here(&word)) {
            // Its touch, if any, came by the same replay.
            self.supersede(hash, words, None);
        } else if words.touch.is_some_and(|word| here(&word)) {
            self.tally(words, false);
            self.drop_touch(hash, words);
            self.tally(
                KeyWords {
                    touch: None,
                    ..words
                },
                true,
            );
        }
    }
}

/// Checks every entry of `entries`, up to the first bad one, and lists what is good.
fn check(entries: &[u8], list: &mut Vec<Checked>) -> Result<(), BadEntry> {
    let mut offset = 0;
    while let Some(rest) = entries.get(offset..).filter(|rest| !rest.is_empty()) {
        let (length, hash) = match Keyed::checked_object(rest) {
            Some(object) => (object.length(), object.hash()),
            None => {
                let (entry, length) =
                    Entry::decode(rest).map_err(|error| BadEntry { offset, error })?;
                (length, entry.key_hash().unwrap_or_default())
            }
        };
        list.push(Checked {
            offset: offset as u32,
            length: length as u32,
            hash,
        });
        let next = offset + length + READ_AHEAD_BYTES;
        (next..next + length)
            .step_by(64)
            .for_each(|at| prefetch(entries, at));
        offset += length;
    }
    Ok(())
}
