//! The short way: a command for the shard on this thread is executed at once, and its reply withheld until it may be
//! heard (Q4 and Q5 of `connection`).

use bytes::Bytes;
use holdfast_cluster::{Answer, Executed, Now, ShardBeside};
use holdfast_format::Slot;
use holdfast_wire::redis::ReplyShape;
use holdfast_wire::resp::ReplyWriter;
use holdfast_wire::{Command, Outcome};

use super::Executor;
use crate::connection::{Connection, UnderWay, write_outcome};

impl Executor {
    /// Has the shard on this thread execute a command and writes its reply, if it may be so; false if the
    /// command has to go the ordinary way.
    pub(crate) fn here(
        &mut self,
        now: Now,
        connection: &mut Connection,
        shard: &mut dyn ShardBeside,
        (command, shape, shed): (&Command, ReplyShape, bool),
    ) -> bool {
        if self.too_large(command).is_some() {
            return false;
        }
        // An earlier command that is under way as a message may come to the same shard later than this (Q5).
        let direct = connection.is_direct();
        if !direct {
            let routes = self.core.routes();
            let passes = connection.may_pass(routes.view_version())
                && routes.owner(Slot::of(&command.key)) == Some(shard.id());
            if !passes {
                return false;
            }
        }
        if self.withheld_bytes >= self.config.pending_bytes_max {
            return false;
        }
        let Some(Executed { needs, answer }) = shard.execute(now, command) else {
            return false;
        };
        let face = self.face();
        let until_us = now.mono_us + u64::from(self.config.retry_ms) * 1_000;
        self.counters.beside += 1;
        let outcome;
        let write: &dyn Fn(&mut ReplyWriter<'_>) = match answer {
            Answer::Value { value, .. } if shape == ReplyShape::Value => {
                self.counters.hits += 1;
                &move |reply| reply.bulk(value)
            }
            answer => {
                outcome = match answer {
                    Answer::Value { value, meta } => Outcome::Value {
                        value: Bytes::copy_from_slice(value),
                        meta,
                    },
                    Answer::Outcome(outcome) => self.unless_shed(shed, outcome),
                };
                self.counters.count(&outcome);
                &|reply| write_outcome(face, shape, &outcome, reply)
            }
        };
        match direct {
            true => connection.withhold(needs, until_us, write),
            false => connection.withhold_in_turn(needs, until_us, write),
        }
        self.count_withheld(connection);
        true
    }

    /// Brings the sum of what is withheld up to date with one connection.
    pub(crate) fn count_withheld(&mut self, connection: &mut Connection) {
        let bytes = connection.withheld_bytes();
        self.withheld_bytes = self.withheld_bytes - connection.withheld_counted + bytes;
        connection.withheld_counted = bytes;
    }

    /// Where a command on one key goes as a message (Q5 of `connection`).
    pub(super) fn way(&self, key: &[u8]) -> UnderWay {
        let (routes, beside) = (self.core.routes(), self.beside);
        let elsewhere = beside.is_some()
            && (routes.owner(Slot::of(key))).is_some_and(|shard| Some(shard) != beside);
        match elsewhere {
            true => UnderWay::Elsewhere {
                view_version: routes.view_version(),
            },
            false => UnderWay::Anywhere,
        }
    }
}
