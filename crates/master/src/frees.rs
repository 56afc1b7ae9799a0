//! Tells backups which replicas are needed no more.
//!
//! `Free` has no answer, so each is said three times. One that is lost three times costs a frame until
//! the whole log is gone; one that is doubled costs nothing.

use std::collections::VecDeque;

use holdfast_cluster::{Now, Outputs};
use holdfast_format::{LogId, SegmentId, ServerId};
use holdfast_wire::Message;

/// Pauses before the second and the third time: longer than a broken stream needs to come back, and longer
/// than a backup that is about to be declared dead is silent.
const REPEATS_US: [u64; 2] = [1_000_000, 5_000_000];

/// Messages that are to be repeated. When full the oldest is not repeated again.
const FREES_MAX: usize = 4_096;

#[derive(Debug)]
struct Free {
    due_us: u64,
    backup: ServerId,
    segments: Vec<SegmentId>,
    said: usize,
}

/// What is to be told, and told again.
#[derive(Debug, Default)]
pub(crate) struct Frees {
    queue: VecDeque<Free>,
}

impl Frees {
    /// `backup` need not keep its replicas of `segments`; it is told at the next `send`.
    pub fn add(&mut self, now: Now, backup: ServerId, segments: Vec<SegmentId>) {
        if self.queue.len() >= FREES_MAX {
            self.queue.pop_front();
        }
        self.queue.push_back(Free {
            due_us: now.mono_us,
            backup,
            segments,
            said: 0,
        });
    }

    /// Says what is due.
    pub fn send(&mut self, now: Now, log: LogId, out: &mut Outputs) {
        for _ in 0..self.queue.len() {
            let mut free = self.queue.pop_front().expect("counted");
            if now.mono_us >= free.due_us {
                let segments = free.segments.clone();
                out.send(free.backup, Message::Free { log, segments });
                match REPEATS_US.get(free.said) {
                    Some(pause_us) => free.due_us = now.mono_us + pause_us,
                    None => continue,
                }
                free.said += 1;
            }
            self.queue.push_back(free);
        }
    }

    /// When `send` has something to say, in `Now::mono_us`.
    pub fn wakeup(&self) -> Option<u64> {
        self.queue.iter().map(|free| free.due_us).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_said_three_times_and_no_more() {
        let mut frees = Frees::default();
        let mut said = Vec::new();
        frees.add(
            Now::default(),
            ServerId(1),
            vec![SegmentId(4), SegmentId(5)],
        );
        for second in 0..20 {
            let mut out = Outputs::default();
            frees.send(
                Now {
                    mono_us: second * 1_000_000,
                    unix_ms: 0,
                },
                LogId(9),
                &mut out,
            );
            said.extend(out.list.iter().map(|_| second));
        }
        assert_eq!(said, [0, 1, 6]);
        assert_eq!(frees.wakeup(), None);
    }

    #[test]
    fn what_is_to_be_repeated_is_bounded() {
        let mut frees = Frees::default();
        for id in 0..10_000 {
            frees.add(Now::default(), ServerId(1), vec![SegmentId(id)]);
        }
        let mut out = Outputs::default();
        frees.send(Now::default(), LogId(9), &mut out);
        assert_eq!(out.list.len(), FREES_MAX);
    }
}
