//! Brings replies on, outcome by outcome.

use bytes::Bytes;
use holdfast_cluster::{ConnectionId, Now};
use holdfast_wire::redis::{Next, ReplyShape, Scan, glob_matches};
use holdfast_wire::{Op, Outcome};

use super::{Executor, KEYS_PER_SCAN, key_space};
use crate::connection::{Connection, Progress, outcome_bytes, write_outcome};
use crate::info;

impl Executor {
    /// Brings a reply on by one outcome.
    pub(crate) fn outcome(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        number: u64,
        part: u32,
        outcome: Outcome,
    ) {
        let face = self.face();
        let bytes = outcome_bytes(&outcome);
        self.counters.count(&outcome);
        let Some(reply) = connection.reply(number) else {
            unreachable!("a reply waits for its outcomes");
        };
        let protocol = reply.protocol;
        match &mut reply.progress {
            Progress::Waiting { shape } => {
                reply.progress = Progress::Outcome {
                    shape: *shape,
                    outcome,
                };
                connection.hold(bytes);
            }
            Progress::Many(many) => {
                many.answered += 1;
                if let Outcome::Failed(failure) = &outcome {
                    many.failure.get_or_insert(failure.clone());
                }
                many.outcomes[part as usize] = Some(outcome);
                connection.hold(bytes);
                if connection.paused_by == Some(number) {
                    self.submit_many(now, id, connection, number);
                }
            }
            Progress::ReadThen { then } => {
                match then.clone().next(&outcome) {
                    Next::Integer(value) => connection.settle(number, |reply| reply.integer(value)),
                    Next::Failed(failure) => {
                        let outcome = Outcome::Failed(failure);
                        connection.settle(number, |reply| {
                            write_outcome(face, ReplyShape::Flag, &outcome, reply);
                        });
                    }
                    Next::Ask { command, shape } => {
                        reply.progress = Progress::Waiting { shape };
                        self.ask(now, id, number, 0, command);
                    }
                }
                connection.paused_by = None;
            }
            Progress::Scan { scan } => {
                let scan = scan.clone();
                connection.settle(number, |reply| match &outcome {
                    Outcome::Scanned { keys, next } => {
                        let told: Vec<&Bytes> = keys
                            .iter()
                            .map(|(_, key)| key)
                            .filter(|key| scan.matches(key))
                            .collect();
                        reply.array(2);
                        reply.bulk(Scan::cursor(*next).to_string().as_bytes());
                        reply.array(told.len());
                        for key in told {
                            reply.bulk(key);
                        }
                    }
                    outcome => write_outcome(face, ReplyShape::Ok, outcome, reply),
                });
            }
            Progress::Keys {
                pattern,
                namespace,
                found,
                found_bytes,
            } => {
                let Outcome::Scanned { keys, next } = outcome else {
                    connection.paused_by = None;
                    connection.settle(number, |reply| {
                        write_outcome(face, ReplyShape::Ok, &outcome, reply);
                    });
                    return;
                };
                for (_, key) in keys {
                    if glob_matches(pattern, &key) {
                        *found_bytes += key.len() + 16;
                        found.push(key);
                    }
                }
                let limit = self.config.output_bytes_max / 2;
                match next {
                    _ if *found_bytes > limit => {
                        self.counters.errors_total += 1;
                        connection.paused_by = None;
                        connection.settle(number, |reply| {
                            reply.error(&format!(
                                "ERR KEYS found more than {limit} bytes of keys; use SCAN"
                            ));
                        });
                    }
                    Some(next) => {
                        let op = Op::Scan {
                            from: next,
                            limit: KEYS_PER_SCAN,
                        };
                        let command = key_space(*namespace, op);
                        self.ask(now, id, number, 0, command);
                    }
                    None => {
                        let found = std::mem::take(found);
                        connection.paused_by = None;
                        connection.settle(number, |reply| {
                            reply.array(found.len());
                            for key in &found {
                                reply.bulk(key);
                            }
                        });
                    }
                }
            }
            Progress::DbSize => connection.settle(number, |reply| match &outcome {
                Outcome::Counted { sessions, .. } => {
                    reply.integer(i64::try_from(*sessions).unwrap_or(i64::MAX));
                }
                outcome => write_outcome(face, ReplyShape::Ok, outcome, reply),
            }),
            Progress::Flush { missing, failure } => {
                *missing -= 1;
                if let Outcome::Failed(why) = outcome {
                    failure.get_or_insert(why);
                }
                if *missing == 0 {
                    let failure = failure.take();
                    connection.settle(number, |reply| match failure {
                        Some(failure) => {
                            let outcome = Outcome::Failed(failure);
                            write_outcome(face, ReplyShape::Ok, &outcome, reply);
                        }
                        None => reply.ok(),
                    });
                }
            }
            Progress::Info { sections } => {
                let sections = sections.clone();
                if let Outcome::Usage(usage) = outcome {
                    self.note_usage(now, usage);
                }
                let text = info::info_text(&self.facts(now), &sections);
                connection.settle(number, |reply| reply.verbatim(&text));
            }
            Progress::Ready(_) | Progress::Withheld { .. } | Progress::Outcome { .. } => {
                unreachable!("a complete reply waits for nothing, in {protocol:?} or otherwise")
            }
        }
    }
}
