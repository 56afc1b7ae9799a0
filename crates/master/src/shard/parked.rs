//! Commands that wait, because not all is known yet of what they ask for, or because a former owner may still answer
//! (design notes, "Leases and answers", "Serving early").
//!
//! P1. While an old lease runs, only sessions that are there are told. The former owner can acknowledge nothing any more and
//!     tells nothing of a key of which it holds something that is not durable, so until then both say the same of them.
//!     What changes something waits here, and so does what would be told as absent: our expiry clock may be
//!     ahead of the former owner's, which could still tell of the session afterwards.
//! P2. Of one stream, a command on a slot never overtakes an earlier one on the same slot that waits. On other slots it
//!     does: clients keep no order between slots, and one session that is still to come must not stop all others.
//! P3. What waits here is never refused. Commands behind it are executed meanwhile, and a client takes from a refusal that
//!     nothing behind it was. If it cannot be executed after all, it is dropped, and the client's silence makes it ask again.
//!
//! P4. A command is looked at when what it is known to wait for has come, its key has been looked up, or the one before it
//!     in its line is gone; and when a lease or a flush ends, with all others.
//!
//! Bounds: `PARKED_MAX` commands, and with the answers withheld no more than may be withheld. Who comes then is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_cluster::Now;
use holdfast_format::{ClientId, KeyHash, ServerId, Slot};
use holdfast_wire::{Failure, Request};

use super::Shard;
use super::requests::Turn;
use crate::answers::Answer;
use crate::recovery::Awaited;

/// When a segment has been replayed, what may have waited for it is looked at: some microseconds for each.
const PARKED_MAX: usize = 4_096;

/// One command that waits.
#[derive(Debug)]
struct Waiting {
    from: ServerId,
    client: ClientId,
    stream: u64,
    request: Request,
    /// `None`: on the key space.
    line: Option<Line>,
    /// It waits at least until this has come: nobody need look at it before.
    awaits: Option<Awaited>,
}

impl Waiting {
    fn key(&self) -> Option<KeyHash> {
        let command = &self.request.command;
        (self.line.is_some()).then(|| KeyHash::of(command.namespace, &command.key))
    }

    fn bytes(&self) -> u64 {
        let command = &self.request.command;
        (size_of::<Waiting>() + size_of::<Line>() + command.key.len() + command.op.value().len())
            as u64
    }
}

/// What keeps its order (P2). Commands on the key space keep none.
type Line = (ClientId, u64, Slot);

fn line(client: ClientId, stream: u64, request: &Request) -> Option<Line> {
    let command = &request.command;
    (!command.op.is_keyspace()).then(|| (client, stream, Slot::of(&command.key)))
}

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// In the order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    lines: BTreeMap<Line, VecDeque<u64>>,
    keys: BTreeSet<(KeyHash, u64)>,
    bytes: u64,
    /// What recoveries had done when all that waits was last looked at.
    progress: u64,
    /// Something could not be executed for want of a lease or of replicas: it is looked at again with every flush.
    held_up: bool,
    /// Commands that were executed after they had waited, since start.
    pub served: u64,
}

impl Parked {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, waiting: Waiting) {
        let number = self.next;
        self.next += 1;
        self.bytes += waiting.bytes();
        if let Some(line) = waiting.line {
            self.lines.entry(line).or_default().push_back(number);
        }
        self.keys.extend(waiting.key().map(|key| (key, number)));
        self.waiting.insert(number, waiting);
    }

    fn remove(&mut self, number: u64) -> Waiting {
        let waiting = self.waiting.remove(&number).expect("it waits");
        self.bytes -= waiting.bytes();
        if let Some(key) = waiting.key() {
            self.keys.remove(&(key, number));
        }
        if let Some(line) = waiting.line {
            let numbers = self.lines.get_mut(&line).expect("it is in its line");
            numbers.retain(|it| *it != number);
            if numbers.is_empty() {
                self.lines.remove(&line);
            }
        }
        waiting
    }

    /// False if an earlier one of its line waits.
    fn is_first(&self, number: u64) -> bool {
        let line = self.waiting[&number].line;
        line.is_none_or(|line| self.lines[&line].front() == Some(&number))
    }

    /// The first of a line, if one waits there.
    fn first_of(&self, line: Option<Line>) -> Option<u64> {
        line.and_then(|line| self.lines.get(&line)?.front().copied())
    }

    /// Commands on these keys.
    fn on(&self, keys: &[KeyHash]) -> impl Iterator<Item = u64> {
        let on = |key: &KeyHash| self.keys.range((*key, 0)..=(*key, u64::MAX));
        keys.iter().flat_map(on).map(|(_, number)| *number)
    }

    /// The client asks all of it again by a newer stream.
    pub fn forget_older(&mut self, client: ClientId, stream: u64) {
        let is_older = |it: &Waiting| it.client == client && it.stream < stream;
        let older = self.waiting.iter().filter(|(_, it)| is_older(it));
        for number in older.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.remove(number);
        }
    }
}

impl Shard {
    /// True if a command must wait behind an earlier one (P2).
    pub(super) fn waits_behind(&self, client: ClientId, stream: u64, request: &Request) -> bool {
        !self.parked.waiting.is_empty()
            && line(client, stream, request)
                .is_some_and(|line| self.parked.lines.contains_key(&line))
    }

    /// Lets a command wait. False if there is no room.
    pub(super) fn park(
        &mut self,
        from: ServerId,
        client: ClientId,
        stream: u64,
        request: &Request,
    ) -> bool {
        if self.parked.len() >= PARKED_MAX || self.is_full() {
            return false;
        }
        let (command, once) = (&request.command, request.once.as_ref());
        self.recoveries.pull(command, once);
        self.parked.add(Waiting {
            from,
            client,
            stream,
            request: request.clone(),
            line: line(client, stream, request),
            awaits: self.recoveries.awaited(command, once),
        });
        true
    }

    /// Executes what need not wait any more.
    pub(super) fn unpark(&mut self, now: Now) {
        let found = self.recoveries.take_found();
        if self.parked.waiting.is_empty() {
            return;
        }
        let progress = self.recoveries.progress();
        let same = progress == self.parked.progress && !self.parked.held_up;
        let mut due: BTreeSet<u64> = match same {
            true => self.parked.on(&found).collect(),
            false => {
                let is_due =
                    |it: &Waiting| !it.awaits.is_some_and(|it| self.recoveries.is_to_come(it));
                let waiting = self.parked.waiting.iter();
                let due = waiting.filter(|(_, waiting)| is_due(waiting));
                due.map(|(number, _)| *number).collect()
            }
        };
        self.parked.progress = progress;
        self.parked.held_up = false;
        while let Some(number) = due.pop_first() {
            let waiting = &self.parked.waiting[&number];
            let (client, stream, line) = (waiting.client, waiting.stream, waiting.line);
            // P3. Its client has begun a newer stream, or will.
            if self.streams.is_put_off(client, stream) {
                self.parked.remove(number);
                due.extend(self.parked.first_of(line));
                continue;
            }
            if !self.parked.is_first(number) {
                continue;
            }
            match self.turn(now, &waiting.request) {
                Turn::Now { unseen } => {
                    let waiting = self.parked.remove(number);
                    self.parked.served += 1;
                    let (needs, outcome) = self.execute(client, &waiting.request, unseen);
                    let answer = Answer {
                        to: waiting.from,
                        client,
                        stream,
                        token: waiting.request.token,
                        outcome,
                    };
                    self.answers.hold(needs, answer);
                    due.extend(self.parked.first_of(line));
                }
                Turn::Refused(Failure::NotOwner) => {
                    self.parked.remove(number);
                    due.extend(self.parked.first_of(line));
                }
                Turn::Refused(_) => self.parked.held_up = true,
                Turn::Wait => {
                    let request = &waiting.request;
                    let awaits = (self.recoveries).awaited(&request.command, request.once.as_ref());
                    let waiting = self.parked.waiting.get_mut(&number);
                    waiting.expect("it waits").awaits = awaits;
                }
            }
        }
    }
}
