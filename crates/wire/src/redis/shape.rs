//! Outcomes as RESP replies.

use std::ops::Range;

use bytes::Bytes;

use crate::command::{Command, ExpiryChange, Failure, Meta, Op, Outcome, TouchCondition};
use crate::resp::{ReplyWriter, parse_integer};

/// How the reply to a RESP command follows from the outcome of its `Command`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyShape {
    /// GET, GETEX: the value or null.
    Value,
    /// SETEX: +OK.
    Ok,
    /// SET: +OK, or null when its condition did not hold.
    OkOrNull,
    /// SET … GET, GETSET, GETDEL: the value there was, or null.
    OldValue,
    /// SETNX, DEL, EXISTS, EXPIRE, …: 1 if done or there, otherwise 0.
    Flag,
    /// STRLEN: the value's length, 0 if it is not there.
    Length,
    /// INCR, APPEND, …: the number that the shard tells.
    Number,
    /// GETRANGE: the bytes from one to another, both counted from the end if negative.
    Range { from: i64, to: i64 },
    /// TYPE: every session is a string.
    Type,
    /// TTL: -2 not there, -1 no deadline, otherwise seconds, rounded to nearest.
    TtlSeconds,
    /// PTTL.
    TtlMs,
    /// EXPIRETIME: the same for the deadline itself.
    DeadlineSeconds,
    /// PEXPIRETIME.
    DeadlineMs,
}

impl ReplyShape {
    /// Writes the reply.
    pub fn write(self, outcome: &Outcome, reply: &mut ReplyWriter<'_>) {
        if let Outcome::Failed(failure) = outcome {
            return write_failure(failure, reply);
        }
        match (self, outcome) {
            (ReplyShape::Value, Outcome::Value { value, .. }) => reply.bulk(value),
            (ReplyShape::Value | ReplyShape::OldValue, Outcome::Absent { .. }) => reply.null(),
            (ReplyShape::Ok | ReplyShape::OkOrNull, Outcome::Done { .. }) => reply.ok(),
            (ReplyShape::OkOrNull, Outcome::Refused { .. }) => reply.null(),
            (ReplyShape::OldValue, Outcome::Done { old, .. } | Outcome::Refused { old, .. }) => {
                match old {
                    Some(old) => reply.bulk(old),
                    None => reply.null(),
                }
            }
            (ReplyShape::Length, Outcome::Value { value, .. }) => {
                reply.integer(signed(value.len()))
            }
            (ReplyShape::Length, Outcome::Absent { .. }) => reply.integer(0),
            (
                ReplyShape::Number,
                Outcome::Done {
                    old: Some(told), ..
                },
            ) => match parse_integer(told) {
                Some(number) => reply.integer(number),
                None => write_mismatch(reply),
            },
            (ReplyShape::Range { from, to }, Outcome::Value { value, .. }) => {
                reply.bulk(&value[range(from, to, value.len())]);
            }
            (ReplyShape::Range { .. }, Outcome::Absent { .. }) => reply.bulk(b""),
            (ReplyShape::Type, Outcome::Value { .. }) => reply.simple("string"),
            (ReplyShape::Type, Outcome::Absent { .. }) => reply.simple("none"),
            (shape, Outcome::Value { meta, .. }) if shape.time(meta).is_some() => {
                reply.integer(shape.time(meta).expect("just asked"));
            }
            (
                ReplyShape::TtlSeconds
                | ReplyShape::TtlMs
                | ReplyShape::DeadlineSeconds
                | ReplyShape::DeadlineMs,
                Outcome::Absent { .. },
            ) => reply.integer(-2),
            (ReplyShape::Flag, outcome) => match flag(outcome) {
                Some(done) => reply.integer(i64::from(done)),
                None => write_mismatch(reply),
            },
            _ => write_mismatch(reply),
        }
    }

    /// What the shapes that tell a time tell of a live session.
    fn time(self, meta: &Meta) -> Option<i64> {
        let ms = match self {
            ReplyShape::TtlSeconds | ReplyShape::TtlMs => meta.remaining_ms,
            ReplyShape::DeadlineSeconds | ReplyShape::DeadlineMs => meta.deadline.map(|at| at.0),
            _ => return None,
        };
        let Some(ms) = ms else { return Some(-1) };
        let told = match self {
            ReplyShape::TtlSeconds | ReplyShape::DeadlineSeconds => ms.saturating_add(500) / 1000,
            _ => ms,
        };
        Some(i64::try_from(told).unwrap_or(i64::MAX))
    }
}

/// How the outcomes of a `Many` become one reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// MGET: an array of values and nulls.
    Values,
    /// DEL, EXISTS, TOUCH: how many were done or there.
    Count,
}

impl Join {
    /// Writes the reply to `outcomes`, which are in the order of the keys. One failure fails the
    /// whole: a count that leaves keys out would be a lie.
    pub fn write(self, outcomes: &[Outcome], reply: &mut ReplyWriter<'_>) {
        let failure = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        });
        if let Some(failure) = failure {
            return write_failure(failure, reply);
        }
        match self {
            Join::Values => {
                reply.array(outcomes.len());
                for outcome in outcomes {
                    ReplyShape::Value.write(outcome, reply);
                }
            }
            Join::Count => {
                let count: Option<i64> = outcomes.iter().map(|o| flag(o).map(i64::from)).sum();
                match count {
                    Some(count) => reply.integer(count),
                    None => write_mismatch(reply),
                }
            }
        }
    }
}

/// What follows the first of two commands that a request takes.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterRead {
    /// EXPIRE … XX LT: only a session with a deadline is touched.
    IfDeadline { touch: Command },
    /// Extending a lock: only one with this token and a deadline.
    Extend {
        lock: Command,
        token: Bytes,
        ms: i64,
        add_to_remaining: bool,
    },
}

/// The next thing to do for a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Integer(i64),
    Failed(Failure),
    Ask { command: Command, shape: ReplyShape },
}

impl AfterRead {
    /// What the outcome of the first command leads to.
    pub fn next(self, outcome: &Outcome) -> Next {
        let (value, meta) = match outcome {
            Outcome::Value { value, meta } => (value, meta),
            Outcome::Absent { .. } => return Next::Integer(0),
            Outcome::Failed(failure) => return Next::Failed(failure.clone()),
            _ => return Next::Failed(Failure::Invalid(MISMATCH.to_owned())),
        };
        let Some(deadline) = meta.deadline else {
            return Next::Integer(0);
        };
        match self {
            AfterRead::IfDeadline { touch } => Next::Ask {
                command: touch,
                shape: ReplyShape::Flag,
            },
            AfterRead::Extend {
                lock,
                token,
                ms,
                add_to_remaining,
            } => {
                if *value != token {
                    return Next::Integer(0);
                }
                let expiry = if add_to_remaining {
                    // By the deadline that was read, not by the time left, so that the way
                    // there and back does not lengthen the lock.
                    ExpiryChange::At {
                        deadline: holdfast_format::ClusterMs(deadline.0.saturating_add_signed(ms)),
                    }
                } else {
                    ExpiryChange::In { ms }
                };
                let op = Op::Touch {
                    condition: TouchCondition::ValueIs(token),
                    expiry,
                    return_value: false,
                };
                Next::Ask {
                    command: Command { op, ..lock },
                    shape: ReplyShape::Flag,
                }
            }
        }
    }
}

/// Writes the error reply for a failed command.
pub fn write_failure(failure: &Failure, reply: &mut ReplyWriter<'_>) {
    match failure {
        // Redis's words: clients and dashboards look for them.
        Failure::OutOfMemory => {
            reply.error("OOM command not allowed when used memory > 'maxmemory'.");
        }
        // The same class, but what to do is up to the namespace.
        Failure::NamespaceFull { .. } => reply.error(&format!("OOM {failure}")),
        Failure::OutcomeUnknown | Failure::StaleClient => {
            reply.error(&format!("ERR outcome unknown: {failure}"));
        }
        failure => reply.error(&format!("ERR {failure}")),
    }
}

const MISMATCH: &str = "the owner gave an answer that does not fit the command";

/// An outcome from another member that the command cannot have: the world's fault, not ours.
fn write_mismatch(reply: &mut ReplyWriter<'_>) {
    reply.error(&format!("ERR {MISMATCH}"));
}

fn flag(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Done { .. } | Outcome::Value { .. } => Some(true),
        Outcome::Absent { .. } | Outcome::Refused { .. } => Some(false),
        _ => None,
    }
}

/// The part of so many bytes that GETRANGE means.
fn range(from: i64, to: i64, bytes: usize) -> Range<usize> {
    let bytes = signed(bytes);
    // Both before the first byte, the wrong way round: nothing, as in Redis.
    if from < 0 && to < 0 && from > to {
        return 0..0;
    }
    let at = |index: i64| match index < 0 {
        true => bytes.saturating_add(index).max(0),
        false => index,
    };
    let (from, to) = (at(from), at(to).min(bytes - 1));
    match from <= to {
        // Neither is below 0 nor above the length.
        true => from as usize..to as usize + 1,
        false => 0..0,
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("lengths are below isize::MAX")
}
