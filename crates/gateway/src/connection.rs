//! One RESP connection: its settings, what has arrived of its next request, and its replies in order.
//!
//! ```text
//! bytes -> parser -> request -> [ reply 7: waits | reply 8: has its outcome | reply 9: ready ] -> out
//! ```
//!
//! Q1. Replies leave in the order of the requests, each in the protocol that was in force when its
//!     request was read.
//! Q2. While a reply has further commands to submit (`paused_by`), no later request is read:
//!     otherwise a later command could overtake them.
//! Q3. `held_bytes` counts what waits in replies; with `out` it stays below the configured bound, or
//!     the connection is closed.
//! Q4. What a shard on this thread has answered stands in `out` already and is withheld there: everything
//!     from the first withheld reply on waits until that one may be heard, or is given up.
//! Q5. A command passes earlier ones that are under way as messages only if by one and the same view it is for the
//!     shard on this thread and they are for others (`UnderWay`): then none of them is about its key, and
//!     none is under way to that shard. Its reply waits its turn (Q1).
//! Q6. While further replies are under way, those that could leave wait for them, for `GATHER_US` at most: what a shard
//!     on this thread has answered would otherwise leave before what others have, in two packets, and the kernel takes
//!     as long for a packet as everything else for eight commands.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use holdfast_cluster::Arrival;
use holdfast_format::{Namespace, Position};
use holdfast_wire::redis::{
    self, AfterRead, InfoSections, Join, Many, ReplyShape, Scan, write_failure,
};
use holdfast_wire::resp::{Protocol, ReplyWriter, RespLimits, RespParser};
use holdfast_wire::{Failure, Outcome};

/// The most that is allocated for replies before there are any: more than 16 values of 1 KB, which would otherwise be
/// copied when the buffer grows. An idle connection has none.
const OUT_BYTES_USUAL_MAX: usize = 64 << 10;

/// See Q6; more than a shard of another thread needs to answer, and less than anybody notices.
const GATHER_US: u64 = 500;
/// So much leaves at once.
const GATHER_BYTES: usize = 16 << 10;

/// Which words failures are told in: cluster clients look for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    Flat,
    Cluster,
}

#[derive(Debug)]
pub(crate) struct Connection {
    /// As CLIENT ID tells it.
    pub(crate) number: u64,
    pub(crate) client_address: String,
    pub(crate) parser: RespParser,
    /// When what the parser holds came, and how much that was.
    arrival: Arrival,
    arrived_bytes: usize,
    pub(crate) protocol: Protocol,
    pub(crate) namespace: Namespace,
    pub(crate) authenticated: bool,
    pub(crate) name: Bytes,
    pub(crate) library_name: Bytes,
    pub(crate) library_version: Bytes,
    pub(crate) since_us: u64,
    pub(crate) heard_us: u64,
    pub(crate) paused_by: Option<u64>,
    /// No further request is read; closed when every reply has left.
    pub(crate) closing: bool,
    replies: VecDeque<Reply>,
    /// Number of the first of `replies`.
    first: u64,
    /// Written replies of `Progress::Withheld`, one after the other, from `queued_from` on; empty when there are none.
    queued: BytesMut,
    queued_from: usize,
    /// When what is gathered leaves (Q6); `None` if nothing is.
    pub(crate) gathers_until_us: Option<u64>,
    /// `None` if no command is; kept while there are `replies`.
    under_way: Option<UnderWay>,
    out: BytesMut,
    /// How many bytes have left.
    sent_bytes: u64,
    /// In the order of `out` (Q4).
    withheld: VecDeque<Withheld>,
    /// What `out` grew to last time, so that it is allocated once.
    out_bytes_usual: usize,
    held_bytes: usize,
    /// What of this connection is in the sum of all that is withheld.
    pub(crate) withheld_counted: u64,
}

/// Replies in `out` that are not to be heard yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Withheld {
    /// What must be audible first.
    needs: Position,
    /// Where they stand, counted from the first byte ever sent.
    from: u64,
    to: u64,
    replies: u32,
    /// Given up then.
    until_us: u64,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) protocol: Protocol,
    pub(crate) progress: Progress,
}

/// Where the commands of a connection that are under way as messages have gone (Q5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnderWay {
    /// By the view of this version none is for the shard on this thread.
    Elsewhere { view_version: u64 },
    /// Perhaps to it.
    Anywhere,
}

/// What a reply still needs.
#[derive(Debug)]
pub(crate) enum Progress {
    Ready(BytesMut),
    /// Answered by the shard on this thread: written, as the next so many bytes of `queued`, and to be withheld in `out`.
    Withheld {
        bytes: usize,
        needs: Position,
        until_us: u64,
    },
    Outcome {
        shape: ReplyShape,
        outcome: Outcome,
    },
    Waiting {
        shape: ReplyShape,
    },
    Many(ManyProgress),
    ReadThen {
        then: AfterRead,
    },
    Scan {
        scan: Scan,
    },
    Keys {
        pattern: Bytes,
        namespace: Namespace,
        found: Vec<Bytes>,
        found_bytes: usize,
    },
    DbSize,
    Flush {
        missing: u32,
        failure: Option<Failure>,
    },
    Info {
        sections: InfoSections,
    },
}

/// A request on many keys, submitted a window at a time.
#[derive(Debug)]
pub(crate) struct ManyProgress {
    pub(crate) many: Many,
    pub(crate) outcomes: Vec<Option<Outcome>>,
    pub(crate) submitted: usize,
    pub(crate) answered: usize,
    pub(crate) failure: Option<Failure>,
}

impl ManyProgress {
    pub(crate) fn new(many: Many) -> ManyProgress {
        ManyProgress {
            many,
            outcomes: Vec::new(),
            submitted: 0,
            answered: 0,
            failure: None,
        }
    }

    /// True if all has been submitted that will be: after a failure the rest is pointless.
    pub(crate) fn all_submitted(&self) -> bool {
        self.failure.is_some() || self.submitted == self.many.keys.len()
    }

    fn complete(&self) -> bool {
        self.all_submitted() && self.answered == self.submitted
    }

    fn write(self, face: Face, reply: &mut ReplyWriter<'_>) {
        if let Some(failure) = &self.failure {
            return write_failed(face, failure, reply);
        }
        let outcomes: Vec<Outcome> = self
            .outcomes
            .into_iter()
            .map(|outcome| outcome.expect("complete: every key has its outcome"))
            .collect();
        let join: Join = self.many.join;
        join.write(&outcomes, reply);
    }
}

impl Connection {
    pub(crate) fn new(
        number: u64,
        client_address: String,
        limits: RespLimits,
        authenticated: bool,
        now_us: u64,
    ) -> Connection {
        let mut parser = RespParser::new(limits);
        parser.set_authenticated(authenticated);
        Connection {
            number,
            client_address,
            parser,
            arrival: Arrival::default(),
            arrived_bytes: 0,
            protocol: Protocol::default(),
            namespace: Namespace(0),
            authenticated,
            name: Bytes::new(),
            library_name: Bytes::new(),
            library_version: Bytes::new(),
            since_us: now_us,
            heard_us: now_us,
            paused_by: None,
            closing: false,
            replies: VecDeque::new(),
            first: 0,
            queued: BytesMut::new(),
            queued_from: 0,
            gathers_until_us: None,
            under_way: None,
            out: BytesMut::new(),
            sent_bytes: 0,
            withheld: VecDeque::new(),
            out_bytes_usual: 0,
            held_bytes: 0,
            withheld_counted: 0,
        }
    }

    pub(crate) fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
        self.parser.set_authenticated(authenticated);
    }

    /// RESET: as a new connection, but for its number and what is already on the way.
    pub(crate) fn reset(&mut self, authenticated: bool) {
        self.protocol = Protocol::default();
        self.namespace = Namespace(0);
        self.name = Bytes::new();
        self.set_authenticated(authenticated);
    }

    /// Takes what has come.
    pub(crate) fn feed(&mut self, bytes: Bytes, arrival: Arrival) {
        let behind = self.parser.buffered_bytes();
        let from_us = match behind {
            0 => arrival.from_us,
            _ => self.arrival.of(behind, self.arrived_bytes),
        };
        self.arrival = Arrival {
            from_us,
            to_us: arrival.to_us,
        };
        self.parser.feed(bytes);
        self.arrived_bytes = self.parser.buffered_bytes();
    }

    /// Passes over the next requests about sessions that came before `since_us`, at most so many. Says how many.
    pub(crate) fn skip_late(&mut self, since_us: u64, requests_max: usize) -> usize {
        let in_time = self.arrival.since(since_us, self.arrived_bytes);
        let mut left = requests_max;
        self.parser.skip_while(|found| {
            let skips = left > 0
                && came_before(in_time, found.behind, found.bytes)
                && redis::is_about_sessions(found.name);
            left -= usize::from(skips);
            skips
        })
    }

    /// True if the request that was read last, of so many bytes, came before `since_us`.
    pub(crate) fn was_late(&self, since_us: u64, bytes: usize) -> bool {
        let in_time = self.arrival.since(since_us, self.arrived_bytes);
        came_before(in_time, self.parser.buffered_bytes(), bytes)
    }

    /// True if the next request may be read.
    pub(crate) fn reads(&self, replies_max: usize) -> bool {
        !self.closing && self.paused_by.is_none() && self.replies.len() < replies_max
    }

    /// Replies that wait, or wait for ones that do.
    pub(crate) fn waiting(&self) -> usize {
        self.replies.len()
    }

    /// Writes a reply that needs nobody's answer.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        if self.replies.is_empty() {
            return write(&mut ReplyWriter::new(&mut self.out, self.protocol));
        }
        let mut ready = BytesMut::new();
        write(&mut ReplyWriter::new(&mut ready, self.protocol));
        self.held_bytes += ready.len();
        self.replies.push_back(Reply {
            protocol: self.protocol,
            progress: Progress::Ready(ready),
        });
    }

    /// The same with a reply that is written already.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        if self.replies.is_empty() {
            return self.out.extend_from_slice(bytes);
        }
        self.held_bytes += bytes.len();
        // Nobody asks for a finished reply by its number, so this one may stand for several.
        if let Some(Progress::Ready(ready)) = self.replies.back_mut().map(|last| &mut last.progress)
        {
            return ready.extend_from_slice(bytes);
        }
        let progress = Progress::Ready(BytesMut::from(bytes));
        self.replies.push_back(Reply {
            protocol: self.protocol,
            progress,
        });
    }

    /// Begins a reply that waits for commands anywhere; gives its number.
    pub(crate) fn begin(&mut self, progress: Progress) -> u64 {
        self.begin_on_way(progress, UnderWay::Anywhere)
    }

    /// The same for a command that goes that way.
    pub(crate) fn begin_on_way(&mut self, progress: Progress, way: UnderWay) -> u64 {
        self.under_way = match self.under_way {
            Some(before) if before != way => Some(UnderWay::Anywhere),
            _ => Some(way),
        };
        self.replies.push_back(Reply {
            protocol: self.protocol,
            progress,
        });
        self.first + self.replies.len() as u64 - 1
    }

    /// A reply that has not left.
    pub(crate) fn reply(&mut self, number: u64) -> Option<&mut Reply> {
        let at = number.checked_sub(self.first)?;
        self.replies.get_mut(usize::try_from(at).ok()?)
    }

    /// Completes a reply with what `write` says.
    pub(crate) fn settle(&mut self, number: u64, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        let Some(reply) = self.reply(number) else {
            return;
        };
        let mut ready = BytesMut::new();
        write(&mut ReplyWriter::new(&mut ready, reply.protocol));
        let bytes = ready.len();
        reply.progress = Progress::Ready(ready);
        self.held_bytes += bytes;
    }

    /// Notes that `bytes` wait in a reply (Q3).
    pub(crate) fn hold(&mut self, bytes: usize) {
        self.held_bytes += bytes;
    }

    /// Writes out every reply whose turn has come (Q1).
    pub(crate) fn pump(&mut self, face: Face) {
        while let Some(reply) = self.replies.front() {
            let complete = match &reply.progress {
                Progress::Ready(_) | Progress::Withheld { .. } | Progress::Outcome { .. } => true,
                Progress::Many(many) => many.complete(),
                _ => false,
            };
            if !complete {
                return;
            }
            let reply = self.replies.pop_front().expect("just looked at");
            self.first += 1;
            if self.replies.is_empty() {
                self.under_way = None;
            }
            let mut writer = ReplyWriter::new(&mut self.out, reply.protocol);
            match reply.progress {
                Progress::Withheld {
                    bytes,
                    needs,
                    until_us,
                } => {
                    self.held_bytes -= bytes;
                    let from = self.written_bytes();
                    let end = self.queued_from + bytes;
                    self.out
                        .extend_from_slice(&self.queued[self.queued_from..end]);
                    self.queued_from = end;
                    if end == self.queued.len() {
                        self.forget_queued();
                    }
                    self.withhold_from(from, needs, until_us);
                }
                Progress::Ready(ready) => {
                    self.held_bytes -= ready.len();
                    self.out.extend_from_slice(&ready);
                }
                Progress::Outcome { shape, outcome } => {
                    self.held_bytes -= outcome_bytes(&outcome);
                    write_outcome(face, shape, &outcome, &mut writer);
                }
                Progress::Many(many) => {
                    let bytes: usize = many.outcomes.iter().flatten().map(outcome_bytes).sum();
                    self.held_bytes -= bytes;
                    many.write(face, &mut writer);
                }
                _ => unreachable!("not complete"),
            }
        }
    }

    /// Bytes that the driver has not been given (Q3).
    pub(crate) fn output_bytes(&self) -> usize {
        self.out.len() + self.held_bytes
    }

    /// True if an answer written now would stand in the right place.
    pub(crate) fn is_direct(&self) -> bool {
        self.replies.is_empty()
    }

    /// Writes a reply that must not be heard before `needs` is audible.
    pub(crate) fn withhold(
        &mut self,
        needs: Position,
        until_us: u64,
        write: impl FnOnce(&mut ReplyWriter<'_>),
    ) {
        assert!(self.replies.is_empty(), "a reply overtakes an earlier one");
        if self.out.capacity() == 0 {
            self.out.reserve(self.out_bytes_usual);
        }
        let from = self.written_bytes();
        write(&mut ReplyWriter::new(&mut self.out, self.protocol));
        self.withhold_from(from, needs, until_us);
    }

    /// Bytes sent, and bytes in `out`.
    fn written_bytes(&self) -> u64 {
        self.sent_bytes + self.out.len() as u64
    }

    /// What has been written since `from` is one reply, to be withheld.
    fn withhold_from(&mut self, from: u64, needs: Position, until_us: u64) {
        let to = self.written_bytes();
        match self.withheld.back_mut() {
            // One batch of commands waits as one: it was executed, and will be durable, at once.
            Some(last) if last.to == from && last.until_us == until_us => {
                last.to = to;
                last.needs = last.needs.max(needs);
                last.replies += 1;
            }
            _ => self.withheld.push_back(Withheld {
                needs,
                from,
                to,
                replies: 1,
                until_us,
            }),
        }
    }

    /// Queues a reply that has passed earlier commands (Q5), to be withheld when its turn comes.
    pub(crate) fn withhold_in_turn(
        &mut self,
        needs: Position,
        until_us: u64,
        write: impl FnOnce(&mut ReplyWriter<'_>),
    ) {
        assert!(!self.replies.is_empty(), "there is nobody to wait for");
        let from = self.queued.len();
        write(&mut ReplyWriter::new(&mut self.queued, self.protocol));
        let bytes = self.queued.len() - from;
        self.held_bytes += bytes;
        self.replies.push_back(Reply {
            protocol: self.protocol,
            progress: Progress::Withheld {
                bytes,
                needs,
                until_us,
            },
        });
    }

    /// True if a command for the shard on this thread, by the view of this version, may pass what is under way.
    pub(crate) fn may_pass(&self, view_version: u64) -> bool {
        self.under_way == Some(UnderWay::Elsewhere { view_version })
    }

    /// As `give_up`, for all replies of the shard on this thread that still wait their turn.
    pub(crate) fn give_up_queued(&mut self) -> u32 {
        let mut replies = 0;
        for reply in &mut self.replies {
            if let Progress::Withheld { bytes, .. } = &reply.progress {
                let mut unknown = BytesMut::new();
                let mut writer = ReplyWriter::new(&mut unknown, reply.protocol);
                write_failure(&Failure::OutcomeUnknown, &mut writer);
                self.held_bytes = self.held_bytes - bytes + unknown.len();
                reply.progress = Progress::Ready(unknown);
                replies += 1;
            }
        }
        self.forget_queued();
        replies
    }

    fn forget_queued(&mut self) {
        self.queued_from = 0;
        match self.queued.capacity() <= OUT_BYTES_USUAL_MAX {
            true => self.queued.clear(),
            false => self.queued = BytesMut::new(),
        }
    }

    /// Until when nothing is to leave, because more is on its way (Q6).
    pub(crate) fn gathers(&mut self, now_us: u64) -> Option<u64> {
        let waits = !self.replies.is_empty() && !self.out.is_empty();
        if !waits || self.out.len() >= GATHER_BYTES {
            self.gathers_until_us = None;
            return None;
        }
        let until_us = *self.gathers_until_us.get_or_insert(now_us + GATHER_US);
        (now_us < until_us).then_some(until_us)
    }

    /// Bytes that the first withheld reply keeps back, its own included.
    pub(crate) fn withheld_bytes(&self) -> u64 {
        let end = self.written_bytes();
        self.withheld.front().map_or(0, |first| end - first.from)
    }

    /// What the first withheld reply needs, and when it is given up.
    pub(crate) fn first_withheld(&self) -> Option<(Position, u64)> {
        self.withheld
            .front()
            .map(|first| (first.needs, first.until_us))
    }

    /// What may be sent when everything up to `audible` may be heard.
    pub(crate) fn take_output(&mut self, audible: Option<Position>) -> Option<Bytes> {
        while let Some(first) = self.withheld.front()
            && audible.is_some_and(|audible| first.needs <= audible)
        {
            self.withheld.pop_front();
        }
        let bytes = match self.withheld.front() {
            Some(first) => (first.from - self.sent_bytes) as usize,
            None => self.out.len(),
        };
        if bytes == 0 {
            return None;
        }
        self.sent_bytes += bytes as u64;
        self.gathers_until_us = None;
        if bytes < self.out.len() {
            return Some(self.out.split_to(bytes).freeze());
        }
        self.out_bytes_usual = bytes.min(OUT_BYTES_USUAL_MAX);
        Some(std::mem::take(&mut self.out).freeze())
    }

    /// Answers by "outcome unknown" what is withheld until `now_us` or before. Says how many replies that were.
    pub(crate) fn give_up(&mut self, now_us: u64) -> u32 {
        let mut replies = 0;
        while let Some(first) = self.withheld.front().copied()
            && first.until_us <= now_us
        {
            self.withheld.pop_front();
            replies += first.replies;
            let rest = self.out.split_off((first.to - self.sent_bytes) as usize);
            self.out.truncate((first.from - self.sent_bytes) as usize);
            let mut writer = ReplyWriter::new(&mut self.out, self.protocol);
            for _ in 0..first.replies {
                write_failure(&Failure::OutcomeUnknown, &mut writer);
            }
            let end = self.sent_bytes + self.out.len() as u64;
            self.out.extend_from_slice(&rest);
            for later in &mut self.withheld {
                later.from = later.from - first.to + end;
                later.to = later.to - first.to + end;
            }
        }
        replies
    }
}

/// True if a request came before the last `in_time` bytes, going by its middle: so one that came alone, at an
/// unknown time of a lap, counts as come half a lap ago.
fn came_before(in_time: usize, behind: usize, bytes: usize) -> bool {
    behind + bytes / 2 > in_time
}

/// What an outcome keeps in memory.
pub(crate) fn outcome_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Value { value, .. } => value.len(),
        Outcome::Done { old: Some(old), .. } | Outcome::Refused { old: Some(old), .. } => old.len(),
        _ => 0,
    }
}

/// Writes the reply that follows from an outcome.
pub(crate) fn write_outcome(
    face: Face,
    shape: ReplyShape,
    outcome: &Outcome,
    reply: &mut ReplyWriter<'_>,
) {
    match outcome {
        Outcome::Failed(failure) => write_failed(face, failure, reply),
        outcome => shape.write(outcome, reply),
    }
}

/// Writes the error reply for a failure, with the code that makes clients do the right thing.
pub(crate) fn write_failed(face: Face, failure: &Failure, reply: &mut ReplyWriter<'_>) {
    match (face, failure) {
        (_, Failure::Busy) => reply.error(&format!("BUSY {failure}")),
        (Face::Cluster, Failure::Unreachable) => {
            reply.error("CLUSTERDOWN Hash slot not served");
        }
        (_, failure) => write_failure(failure, reply),
    }
}
