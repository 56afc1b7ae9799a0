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
//! Bounds: `PARKED_MAX` commands, and with the answers withheld no more than may be withheld. Who comes then is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_cluster::Now;
use holdfast_format::{ClientId, ServerId, Slot};
use holdfast_wire::{Failure, Request};

use super::{Shard, Turn};
use crate::answers::Answer;

/// All that waits is looked at when a segment has been replayed, or a lease has run out: some microseconds for each.
const PARKED_MAX: usize = 4_096;

/// One command that waits.
#[derive(Debug)]
struct Waiting {
    from: ServerId,
    client: ClientId,
    stream: u64,
    request: Request,
}

impl Waiting {
    fn bytes(&self) -> u64 {
        let command = &self.request.command;
        (size_of::<Waiting>() + size_of::<Line>() + command.key.len() + command.op.value().len())
            as u64
    }

    fn line(&self) -> Line {
        line(self.client, self.stream, &self.request)
    }
}

/// What keeps its order (P2). Commands on the key space keep none.
type Line = (ClientId, u64, Option<Slot>);

fn line(client: ClientId, stream: u64, request: &Request) -> Line {
    let command = &request.command;
    let slot = (!command.op.is_keyspace()).then(|| Slot::of(&command.key));
    (client, stream, slot)
}

/// All that waits, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Parked {
    waiting: VecDeque<Waiting>,
    /// How many wait in each line.
    lines: BTreeMap<Line, u32>,
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
        self.bytes += waiting.bytes();
        *self.lines.entry(waiting.line()).or_default() += 1;
        self.waiting.push_back(waiting);
    }

    fn take_all(&mut self) -> VecDeque<Waiting> {
        self.bytes = 0;
        self.lines.clear();
        std::mem::take(&mut self.waiting)
    }

    /// The client asks all of it again by a newer stream.
    pub fn forget_older(&mut self, client: ClientId, stream: u64) {
        if self.waiting.is_empty() {
            return;
        }
        for waiting in self.take_all() {
            if waiting.client != client || waiting.stream >= stream {
                self.add(waiting);
            }
        }
    }
}

impl Shard {
    /// True if a command must wait behind an earlier one (P2).
    pub(super) fn waits_behind(&self, client: ClientId, stream: u64, request: &Request) -> bool {
        !self.parked.waiting.is_empty()
            && !request.command.op.is_keyspace()
            && (self.parked.lines).contains_key(&line(client, stream, request))
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
        self.recoveries
            .pull(&request.command, request.once.as_ref());
        self.parked.add(Waiting {
            from,
            client,
            stream,
            request: request.clone(),
        });
        true
    }

    /// Executes what need not wait any more.
    pub(super) fn unpark(&mut self, now: Now) {
        let progress = self.recoveries.progress();
        let same = progress == self.parked.progress && !self.parked.held_up;
        if self.parked.waiting.is_empty() || same {
            return;
        }
        self.parked.progress = progress;
        self.parked.held_up = false;
        let mut behind: BTreeSet<Line> = BTreeSet::new();
        for waiting in self.parked.take_all() {
            let (client, stream) = (waiting.client, waiting.stream);
            // P3. Its client has begun a newer stream, or will.
            if self.streams.is_put_off(client, stream) {
                continue;
            }
            let line = waiting.line();
            let held = line.2.is_some() && behind.contains(&line);
            let turn = match held {
                true => Turn::Wait,
                false => self.turn(now, &waiting.request),
            };
            match turn {
                Turn::Now { unseen } => {
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
                    continue;
                }
                Turn::Refused(Failure::NotOwner) => continue,
                Turn::Refused(_) => self.parked.held_up = true,
                Turn::Wait => {}
            }
            behind.insert(line);
            self.parked.add(waiting);
        }
    }
}
