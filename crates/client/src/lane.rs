//! One shard's stream of requests, as its client sees it.
//!
//! ```text
//! queue (not sent) --send--> sent (in this stream, unanswered) --restart--> queue again, new stream
//! ```
//!
//! L1. Indexes of a stream have no gaps, and a stream number is never used again: a shard executes
//!     the newest stream in order and ignores older ones.
//! L2. The queue is in order of submission, so what a restart repeats keeps its order.
//! L3. A command is sent at most once in a stream, so an answer's stream tells to which attempt it is.

use std::collections::VecDeque;

use crate::config::Config;
use crate::order::Ticket;
use crate::window::Window;

/// Pauses after a refusal for load: doubling from here to there.
const BUSY_PAUSE_MIN_US: u64 = 2_000;
const BUSY_PAUSE_MAX_US: u64 = 200_000;

/// A shard that has answered nothing for so long may have died: what waits for it waits for a recovery.
const ALIVE_US: u64 = 100_000;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) stream: u64,
    pub(crate) next_index: u64,
    pub(crate) queue: VecDeque<Ticket>,
    /// Includes tickets answered out of order or moved away; whoever reads it checks.
    pub(crate) sent: VecDeque<Ticket>,
    pub(crate) in_flight: usize,
    pub(crate) window: Window,
    /// When the shard last answered.
    answered_us: Option<u64>,
    /// Nothing is sent before this.
    pub(crate) not_before_us: u64,
    /// Refusals for load, or lost connections, in a row.
    pauses: u32,
    /// Restarts because of silence in a row.
    silences: u32,
    round_trip_us: u64,
    deviation_us: u64,
}

impl Lane {
    pub(crate) fn new(stream: u64, window_max: usize) -> Lane {
        Lane {
            stream,
            next_index: 0,
            queue: VecDeque::new(),
            sent: VecDeque::new(),
            in_flight: 0,
            window: Window::new(window_max),
            answered_us: None,
            not_before_us: 0,
            pauses: 0,
            silences: 0,
            round_trip_us: 0,
            deviation_us: 0,
        }
    }

    /// True if something waits because the shard has enough to do, and not because it does not answer.
    pub(crate) fn is_congested(&self, now_us: u64) -> bool {
        !self.queue.is_empty()
            && self.in_flight >= self.window.size()
            && self.has_answered_lately(now_us)
    }

    pub(crate) fn has_answered_lately(&self, now_us: u64) -> bool {
        (self.answered_us).is_some_and(|at_us| now_us < at_us + ALIVE_US)
    }

    /// Queues a command in its place by L2; nearly always the last one.
    pub(crate) fn enqueue(&mut self, ticket: Ticket) {
        if self.queue.back().is_none_or(|&last| last < ticket) {
            self.queue.push_back(ticket);
        } else if let Err(at) = self.queue.binary_search(&ticket) {
            self.queue.insert(at, ticket);
        }
    }

    /// The shard answered a command that was sent at `sent_us`.
    pub(crate) fn answered(&mut self, now_us: u64, sent_us: u64) {
        self.window.answered();
        self.answered_us = Some(now_us);
        let sample_us = now_us.saturating_sub(sent_us);
        if self.round_trip_us == 0 {
            self.round_trip_us = sample_us.max(1);
            self.deviation_us = sample_us / 2;
        } else {
            // Jacobson's estimator, as in TCP.
            let error_us = sample_us.abs_diff(self.round_trip_us);
            self.deviation_us = (3 * self.deviation_us + error_us) / 4;
            self.round_trip_us = (7 * self.round_trip_us + sample_us) / 8;
        }
        self.silences = 0;
        self.pauses = 0;
    }

    /// How long a command may stay unanswered before everything is repeated.
    pub(crate) fn silence_us(&self, config: &Config) -> u64 {
        let adapted_us = self.round_trip_us + 4 * self.deviation_us;
        let base_us = adapted_us.max(config.silence_ms_min * 1_000);
        (base_us << self.silences.min(8)).min(config.silence_ms_max * 1_000)
    }

    pub(crate) fn note_silence(&mut self) {
        self.silences = self.silences.saturating_add(1);
    }

    /// Sends nothing for a while: `jitter` in `0..=255` spreads clients out.
    pub(crate) fn pause(&mut self, now_us: u64, jitter: u64) {
        let pause_us = (BUSY_PAUSE_MIN_US << self.pauses.min(10)).min(BUSY_PAUSE_MAX_US);
        self.pauses = self.pauses.saturating_add(1);
        self.not_before_us = now_us + pause_us / 2 + pause_us * jitter / 512;
    }

    /// Begins a new stream; the caller queues what is unanswered again.
    pub(crate) fn restart(&mut self, stream: u64) {
        assert!(stream > self.stream, "a stream number was used again");
        self.stream = stream;
        self.next_index = 0;
        self.sent.clear();
        self.in_flight = 0;
    }
}
