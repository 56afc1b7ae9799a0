//! Many requests of one call on their way: those of a stream as they arrive, or the items of a batch.
//!
//! What has arrived is begun together, and what has been answered is told together: a task, a channel and a
//! wake-up for each request would cost more than executing it.
//!
//! ```text
//! requests --take--> lane.push … lane.begin --> shards
//! results <--tell--- lane.poll_outcome <------- outcomes, in order
//! ```

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use tonic::Status;

use super::convert::{Answers, Asked};
use super::failure::CallError;
use super::v1;
use super::v1::result::Result as Told;
use super::{SessionCall, SessionLane};
use crate::command::Outcome;

/// Results of requests, in their order.
pub(super) struct Results<S, L> {
    /// `None` once it has ended.
    requests: Option<S>,
    lane: L,
    /// Every request without a result, in order.
    waiting: VecDeque<Waiting>,
    waiting_max: usize,
    within_ms: Option<u32>,
}

enum Waiting {
    /// For the lane.
    Outcome(Answers),
    /// It made no sense.
    Refused(CallError),
    /// The stream of requests broke here; nothing follows.
    Broken(Status),
}

impl<S, L: SessionLane> Results<S, L> {
    /// At most `waiting_max` requests are taken on that have no result.
    pub(super) fn new(
        requests: S,
        lane: L,
        waiting_max: usize,
        within_ms: Option<u32>,
    ) -> Results<S, L> {
        assert!(waiting_max > 0, "nothing would ever be taken on");
        Results {
            requests: Some(requests),
            lane,
            waiting: VecDeque::new(),
            waiting_max,
            within_ms,
        }
    }

    fn take_on(&mut self, asked: Result<Asked, CallError>) {
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => return self.waiting.push_back(Waiting::Refused(error)),
        };
        self.waiting.push_back(Waiting::Outcome(asked.answers()));
        let Asked { command, once, .. } = asked;
        self.lane.push(SessionCall {
            command,
            once,
            within_ms: self.within_ms,
        });
    }
}

impl<S, T, L> Results<S, L>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
    T: TryInto<Asked, Error = CallError>,
    L: SessionLane,
{
    /// Begins what has arrived; false if nothing has.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.waiting.len();
        while self.waiting.len() < self.waiting_max
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => self.take_on(request.try_into()),
                Poll::Ready(Some(Err(status))) => {
                    self.waiting.push_back(Waiting::Broken(status));
                    self.requests = None;
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => break,
            }
        }
        self.lane.begin();
        self.waiting.len() > before
    }

    /// The next result, if it is known.
    fn tell(&mut self, cx: &mut Context<'_>) -> Option<Result<v1::Result, Status>> {
        let outcome: Option<Outcome> = match self.waiting.front()? {
            Waiting::Outcome(_) => match self.lane.poll_outcome(cx) {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => return None,
            },
            Waiting::Refused(_) | Waiting::Broken(_) => None,
        };
        match (self.waiting.pop_front()?, outcome) {
            (Waiting::Outcome(answers), Some(outcome)) => {
                Some(Ok(item_of(Asked::answer(answers, outcome))))
            }
            (Waiting::Refused(error), _) => Some(Ok(item_of(Err(error)))),
            (Waiting::Broken(status), _) => Some(Err(status)),
            (Waiting::Outcome(_), None) => unreachable!("it has just been looked at"),
        }
    }
}

impl<S, T, L> Stream for Results<S, L>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
    T: TryInto<Asked, Error = CallError>,
    L: SessionLane + Unpin,
{
    type Item = Result<v1::Result, Status>;

    /// Tells before it takes: while there are results to be told, more requests gather.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(result) = this.tell(cx) {
                return Poll::Ready(Some(result));
            }
            if !this.take(cx) {
                let ended = this.requests.is_none() && this.waiting.is_empty();
                return if ended {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                };
            }
        }
    }
}

pub(super) fn item_of(answer: Result<Told, CallError>) -> v1::Result {
    let told = answer.unwrap_or_else(|error| Told::Error(error.into_item()));
    v1::Result { result: Some(told) }
}
