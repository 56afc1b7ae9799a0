//! Keys that commands wait for, looked up one by one in the segments that are still to be replayed (E8).
//!
//! ```text
//! command waits ──> waiting ──LookUp──> in flight ──LookedUp──> answers ──replayed──> consulted: final when all have been
//!                      └─ too many of one segment, no answer, or none to be had: the segment is fetched before others
//! ```
//!
//! Bounds: `KEYS_MAX` keys, `IN_FLIGHT_MAX` questions, `OF_SEGMENT_MAX` for each segment. Beyond them segments are fetched whole.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{Now, Outputs};
use holdfast_format::{BadEntry, ClusterMs, Entries, KeyHash, Located, LogId, SegmentId, ServerId};
use holdfast_log::Log;
use holdfast_wire::{Message, View};

use super::part::{Recovery, ranges_of};

/// Some 100 bytes each. Commands that wait are fewer; these are all that have waited.
const KEYS_MAX: usize = 16_384;

/// For a segment of 8 MiB reading, sending and replaying cost as much processor time as some 150 questions. With fewer it is
/// sooner had by itself, and with these at most a third is added to the whole.
const OF_SEGMENT_MAX: usize = 64;

/// As many as keep the backups busy, no more: what is replayed meanwhile need not be asked.
const IN_FLIGHT_MAX: usize = 128;

/// A question that is not answered for so long has its segment fetched. Under load an answer takes some 10 ms.
const ANSWER_US: u64 = 250_000;

/// A segment of a log.
pub(crate) type Of = (LogId, SegmentId);

/// What a backup sent of a key.
#[derive(Debug)]
struct Answer {
    key: KeyHash,
    of: Of,
    entries: Bytes,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    backup: ServerId,
    due_us: u64,
}

/// All keys of one recovery that were looked up or are.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    /// The segments that are still to be consulted, or were when they were replayed.
    keys: BTreeMap<KeyHash, Vec<Of>>,
    /// Questions so far about each segment.
    of_segment: BTreeMap<Of, usize>,
    waiting: VecDeque<(KeyHash, Of)>,
    in_flight: BTreeMap<(KeyHash, Of), Asked>,
    answers: VecDeque<Answer>,
    /// Since they were last counted.
    questions: u64,
}

impl Lookups {
    /// The segments that are still to be consulted about a key, some of which may have been replayed since; `None`: nobody
    /// has asked for it.
    pub fn left(&self, key: KeyHash) -> Option<&[Of]> {
        self.keys.get(&key).map(Vec::as_slice)
    }

    /// Somebody waits for a key of which these segments may hold something. Returns those that are to be fetched whole
    /// instead.
    pub fn begin(&mut self, key: KeyHash, admitting: Vec<Of>) -> Vec<Of> {
        if self.keys.contains_key(&key) {
            return Vec::new();
        }
        if self.keys.len() >= KEYS_MAX {
            return admitting;
        }
        let mut whole = Vec::new();
        for of in &admitting {
            let questions = self.of_segment.entry(*of).or_default();
            if *questions >= OF_SEGMENT_MAX {
                whole.push(*of);
            } else {
                *questions += 1;
                self.questions += 1;
                self.waiting.push_back((key, *of));
            }
        }
        self.keys.insert(key, admitting);
        whole
    }

    /// Questions since this was last asked.
    pub fn take_questions(&mut self) -> u64 {
        std::mem::take(&mut self.questions)
    }

    /// The next question, if one may be asked.
    fn next(&mut self) -> Option<(KeyHash, Of)> {
        match self.in_flight.len() < IN_FLIGHT_MAX {
            true => self.waiting.pop_front(),
            false => None,
        }
    }

    /// Strikes a question out that `from` answers. False if it was not asked that, or no more.
    fn strike_out(&mut self, from: ServerId, key: KeyHash, of: Of) -> bool {
        let asked = self.in_flight.get(&(key, of));
        asked.is_some_and(|asked| asked.backup == from)
            && self.in_flight.remove(&(key, of)).is_some()
    }

    /// All that the segment has of the key has been replayed.
    fn consulted(&mut self, key: KeyHash, of: Of) {
        if let Some(left) = self.keys.get_mut(&key) {
            left.retain(|it| *it != of);
        }
    }

    /// All of a segment has been replayed.
    pub fn replayed(&mut self, of: Of) {
        self.in_flight.retain(|(_, it), _| *it != of);
        self.waiting.retain(|(_, it)| *it != of);
        self.of_segment.remove(&of);
    }

    /// Gives up the questions that `is_over` is true of: their segments.
    fn give_up(&mut self, is_over: impl Fn(&Asked) -> bool) -> Vec<Of> {
        let mut over = Vec::new();
        self.in_flight.retain(|(_, of), asked| {
            let is_over = is_over(asked);
            over.extend(is_over.then_some(*of));
            !is_over
        });
        over
    }

    pub fn wakeup(&self) -> Option<u64> {
        self.in_flight.values().map(|asked| asked.due_us).min()
    }

    /// Memory of answers that are to be replayed, and of what is known of keys, about.
    pub fn memory_bytes(&self) -> u64 {
        let answers = self.answers.iter().map(|it| it.entries.len() as u64);
        answers.sum::<u64>() + 100 * (self.keys.len() + self.waiting.len()) as u64
    }
}

impl Recovery {
    /// Replays what has been looked up, and asks for more. Returns the keys that are final now.
    pub(super) fn look_up(
        &mut self,
        now: Now,
        clock: ClusterMs,
        view: &View,
        log: &mut Log,
        out: &mut Outputs,
    ) -> Vec<KeyHash> {
        let mut found = Vec::new();
        let Some(mut early) = self.early.take() else {
            return found;
        };
        let mut whole = early.lookups.give_up(|asked| asked.due_us <= now.mono_us);
        while let Some(Answer { key, of, entries }) = early.lookups.answers.pop_front() {
            if !early.is_to_come(of) {
                continue;
            }
            // From the network: what it was not asked for would not be covered by what is known of the key.
            let ranges = ranges_of(&self.recover, of.0);
            let is_asked = |it: Result<Located<'_>, BadEntry>| {
                it.is_ok_and(|it| it.entry.key_hash() == Some(key) && it.entry.concerns(&ranges))
            };
            let is_good = Entries::new(&entries).all(is_asked);
            if !is_good || log.replay(self.replay, &entries, clock).is_err() {
                whole.push(of);
                continue;
            }
            early.lookups.consulted(key, of);
            if early.with_key(key).next().is_none() {
                found.push(key);
            }
        }
        while let Some((key, of)) = early.lookups.next() {
            match early.holder(key, of, view) {
                Some(holder) => {
                    let due_us = now.mono_us + ANSWER_US;
                    let backup = holder.backup;
                    early
                        .lookups
                        .in_flight
                        .insert((key, of), Asked { backup, due_us });
                    let look_up = Message::LookUp {
                        log: of.0,
                        segment: of.1,
                        attempt: self.fetch_id,
                        certificate: holder.certificate,
                        key,
                    };
                    out.send(backup, look_up);
                }
                None => whole.push(of),
            }
        }
        self.early = Some(early);
        for (log, segment) in whole {
            self.pull(log, segment);
        }
        found
    }

    /// A backup answers a question; `None`: it cannot.
    pub(super) fn looked_up(
        &mut self,
        from: ServerId,
        key: KeyHash,
        of: Of,
        entries: Option<Bytes>,
    ) {
        let Some(early) = self.early.as_mut() else {
            return;
        };
        if !early.lookups.strike_out(from, key, of) {
            return;
        }
        match entries {
            Some(entries) => early.lookups.answers.push_back(Answer { key, of, entries }),
            None => self.pull(of.0, of.1),
        }
    }

    /// Whoever was asked there will not answer.
    pub(super) fn look_up_elsewhere(&mut self, peer: ServerId) {
        let early = self.early.as_mut();
        let asked = early.map(|early| early.lookups.give_up(|asked| asked.backup == peer));
        for (log, segment) in asked.into_iter().flatten() {
            self.pull(log, segment);
        }
    }
}
