//! Many requests of one call on their way: those of a stream as they arrive, or the items of a batch.
//!
//! What has arrived is begun together, and what has been answered is told together: a task, a channel and a
//! wake-up for each request would cost more than executing it.
//!
//! ```text
//! requests --take--> lane.push … lane.begin --> shards
//! results <--tell--- lane.poll_outcome <------- outcomes, in order
//! ```
//!
//! N1. At most `Bounds::requests_max` requests are without a result.
//! N2. Another one is taken on only while those before it and their answers take less than `Bounds::bytes_max`: so one
//!     request is always taken on, however long. Nobody knows how long a value is before it is read. A read weighs as
//!     much as the longest of those told lately; only where they suddenly become longer, more is kept once.
//!
//! What is not taken on stays with HTTP/2, whose flow control stops the caller.

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

/// How much may be without a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) requests_max: usize,
    pub(super) bytes_max: usize,
}

/// Results of requests, in their order.
pub(super) struct Results<S, L> {
    /// `None` once it has ended.
    requests: Option<S>,
    lane: L,
    /// Every request without a result, in order.
    waiting: VecDeque<Waiting>,
    /// What these weigh (N2).
    waiting_bytes: usize,
    bounds: Bounds,
    /// As long are the values foreseen that will be read: it follows a longer one at once and shorter ones slowly.
    value_bytes: usize,
    within_ms: Option<u32>,
}

enum Waiting {
    /// For the lane; with its weight.
    Outcome(Answers, usize),
    /// It made no sense.
    Refused(CallError),
    /// The stream of requests broke here; nothing follows.
    Broken(Status),
}

impl<S, L: SessionLane> Results<S, L> {
    pub(super) fn new(
        requests: S,
        lane: L,
        bounds: Bounds,
        within_ms: Option<u32>,
    ) -> Results<S, L> {
        assert!(
            bounds.requests_max > 0 && bounds.bytes_max > 0,
            "nothing would ever be taken on"
        );
        Results {
            requests: Some(requests),
            lane,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            // So many short ones are not held up.
            value_bytes: bounds.bytes_max / bounds.requests_max / 2,
            bounds,
            within_ms,
        }
    }

    fn take_on(&mut self, asked: Result<Asked, CallError>) {
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => return self.waiting.push_back(Waiting::Refused(error)),
        };
        let answers = asked.answers();
        let Asked { command, once, .. } = asked;
        let foreseen = match command.op.tells_value() {
            true => self.value_bytes,
            false => 0,
        };
        let bytes = command.held_bytes() + foreseen;
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting::Outcome(answers, bytes));
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
        while self.waiting.len() < self.bounds.requests_max
            && self.waiting_bytes < self.bounds.bytes_max
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
            Waiting::Outcome(..) => match self.lane.poll_outcome(cx) {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => return None,
            },
            Waiting::Refused(_) | Waiting::Broken(_) => None,
        };
        match (self.waiting.pop_front()?, outcome) {
            (Waiting::Outcome(answers, bytes), Some(outcome)) => {
                self.waiting_bytes -= bytes;
                if let Outcome::Value { value, .. } = &outcome {
                    self.value_bytes = value.len().max(self.value_bytes - self.value_bytes / 8);
                }
                Some(Ok(item_of(Asked::answer(answers, outcome))))
            }
            (Waiting::Refused(error), _) => Some(Ok(item_of(Err(error)))),
            (Waiting::Broken(status), _) => Some(Err(status)),
            (Waiting::Outcome(..), None) => unreachable!("it has just been looked at"),
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use holdfast_format::Version;

    use super::*;
    use crate::command::Meta;

    /// Answers when it is told to, reads with values of `value_bytes`.
    #[derive(Default)]
    struct Slow {
        pushed: usize,
        begun: usize,
        may_answer: usize,
        value_bytes: usize,
    }

    impl SessionLane for Slow {
        fn push(&mut self, _: SessionCall) {
            self.pushed += 1;
        }

        fn begin(&mut self) {
            self.begun += std::mem::take(&mut self.pushed);
        }

        fn poll_outcome(&mut self, _: &mut Context<'_>) -> Poll<Outcome> {
            if self.may_answer == 0 || self.begun == 0 {
                return Poll::Pending;
            }
            self.may_answer -= 1;
            self.begun -= 1;
            Poll::Ready(Outcome::Value {
                value: Bytes::from(vec![0; self.value_bytes]),
                meta: Meta {
                    version: Version(1),
                    ..Meta::default()
                },
            })
        }
    }

    fn read() -> v1::ReadRequest {
        v1::ReadRequest {
            key: Bytes::from_static(b"k"),
            ..v1::ReadRequest::default()
        }
    }

    fn write(value_bytes: usize) -> v1::WriteRequest {
        v1::WriteRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from(vec![0; value_bytes]),
            ..v1::WriteRequest::default()
        }
    }

    /// Results of an endless stream of the same request, 100 requests or 100,000 bytes at most.
    fn endless<T: Clone>(
        request: T,
    ) -> Results<impl Stream<Item = Result<T, Status>> + Unpin, Slow> {
        let bounds = Bounds {
            requests_max: 100,
            bytes_max: 100_000,
        };
        let requests = stream::repeat_with(move || Ok(request.clone()));
        Results::new(requests, Slow::default(), bounds, None)
    }

    /// Lets so many more be answered; how many are told, and how many are under way then.
    fn answer<S, T>(results: &mut Results<S, Slow>, count: usize) -> (usize, usize)
    where
        S: Stream<Item = Result<T, Status>> + Unpin,
        T: TryInto<Asked, Error = CallError>,
    {
        results.lane.may_answer = count;
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let mut told = 0;
        while let Poll::Ready(result) = results.poll_next_unpin(cx) {
            assert!(matches!(result, Some(Ok(_))), "an endless stream has ended");
            told += 1;
        }
        (told, results.lane.begun)
    }

    /// N1 and N2 for writes, whose bytes are known.
    #[test]
    fn a_stream_is_not_read_while_too_many_bytes_are_unanswered() {
        let mut short = endless(write(10));
        assert_eq!(answer(&mut short, 0), (0, 100));
        // Four are less than 100,000, and so a fifth is taken on.
        let mut long = endless(write(24_900));
        assert_eq!(answer(&mut long, 0), (0, 5));
        assert_eq!(answer(&mut long, 2), (2, 5), "as many as were answered");
        let mut over = endless(write(200_000));
        assert_eq!(answer(&mut over, 0), (0, 1), "one, however long");
        assert_eq!(answer(&mut over, 3), (3, 1));
    }

    /// N2 for reads, whose bytes are foreseen from those told.
    #[test]
    fn a_stream_is_read_as_fast_as_its_values_are_short() {
        let mut results = endless(read());
        assert_eq!(answer(&mut results, 0), (0, 100));
        results.lane.value_bytes = 50_000;
        assert_eq!(answer(&mut results, 100), (100, 2));
        assert_eq!(answer(&mut results, 10), (10, 2));
        results.lane.value_bytes = 10;
        let (told, under_way) = answer(&mut results, 100);
        assert_eq!((told, under_way), (100, 100));
    }
}
