//! Calls on their way from the gRPC face to the gateway of its thread, and outcomes on their way back.
//!
//! K1. Every call that is posted has an outcome: the gateway's, or, if its reply is dropped (no gateway, or it has
//!     ended), that it is unknown or, of what changes nothing, that nobody could be reached.
//! K2. A stream's calls are posted together and its outcomes come without a task or a channel for each: a place in a
//!     queue that the stream looks through when the first of them is there.
//!
//! Threads: the face lives on the gateway's thread, so that nothing is woken across threads; the locks are there
//! because tonic asks its services to be `Send`, and nobody ever waits for one. Lock order: none is taken inside another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use holdfast_cluster::Call;
use holdfast_wire::grpc::{SessionCall, SessionLane};
use holdfast_wire::{Failure, Outcome};
use tokio::sync::oneshot;

use crate::clock;
use crate::inbox::{Inbox, Letter};

/// Where the outcome of one call goes. Dropped unanswered, it tells so (K1).
#[derive(Debug)]
pub struct Reply {
    to: To,
    is_write: bool,
}

#[derive(Debug)]
enum To {
    Alone(oneshot::Sender<Outcome>),
    Lane {
        lane: Arc<Mutex<Places>>,
        number: u64,
    },
    Answered,
}

impl Reply {
    /// True if nobody waits for it any more.
    pub fn is_gone(&self) -> bool {
        match &self.to {
            To::Alone(sender) => sender.is_closed(),
            To::Lane { lane, .. } => lock(lane).abandoned,
            To::Answered => true,
        }
    }

    pub fn send(mut self, outcome: Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Outcome) {
        match std::mem::replace(&mut self.to, To::Answered) {
            // The caller may have given up meanwhile.
            To::Alone(sender) => drop(sender.send(outcome)),
            To::Lane { lane, number } => {
                let waker = lock(&lane).settle(number, outcome);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            To::Answered => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let failure = match self.is_write {
            true => Failure::OutcomeUnknown,
            false => Failure::Unreachable,
        };
        self.answer(Outcome::Failed(failure));
    }
}

/// Makes one call and waits for its outcome.
pub async fn call(gateway: &Inbox, call: SessionCall) -> Outcome {
    let posted_us = clock::mono_us();
    let within_ms = call.within_ms;
    let (sender, outcome) = oneshot::channel();
    let reply = Reply {
        to: To::Alone(sender),
        is_write: call.command.op.is_write(),
    };
    gateway.post(Letter::Calls {
        calls: vec![(as_call(call), reply)],
        posted_us,
    });
    let outcome = outcome
        .await
        .expect("K1: a reply is not dropped unanswered");
    match_deadline(outcome, deadline_us(within_ms, posted_us))
}

fn as_call(call: SessionCall) -> Call {
    let SessionCall {
        command,
        once,
        within_ms,
    } = call;
    Call {
        command,
        once,
        within_ms,
    }
}

fn deadline_us(within_ms: Option<u32>, posted_us: u64) -> Option<u64> {
    within_ms.map(|within_ms| posted_us + u64::from(within_ms) * 1_000)
}

/// Nobody could be reached in time: whose time was over, the caller's or ours?
fn match_deadline(outcome: Outcome, deadline_us: Option<u64>) -> Outcome {
    match (&outcome, deadline_us) {
        (Outcome::Failed(Failure::Unreachable), Some(deadline_us))
            if clock::mono_us() >= deadline_us =>
        {
            Outcome::Failed(Failure::TooLate)
        }
        _ => outcome,
    }
}

/// Outcomes of a lane's calls that it has not taken, by number.
#[derive(Debug, Default)]
struct Places {
    /// Number of the first one.
    first: u64,
    outcomes: VecDeque<Option<Outcome>>,
    /// Wants to know of the first one's outcome.
    waker: Option<Waker>,
    /// The stream is gone.
    abandoned: bool,
}

impl Places {
    fn settle(&mut self, number: u64, outcome: Outcome) -> Option<Waker> {
        let at = number.checked_sub(self.first);
        let at = at.expect("an outcome is taken only after it was settled");
        let place = self.outcomes.get_mut(at as usize);
        let place = place.expect("a place was made when the call was posted");
        assert!(place.is_none(), "a call was answered twice");
        *place = Some(outcome);
        match at {
            0 => self.waker.take(),
            _ => None,
        }
    }
}

/// Calls of one stream or batch.
#[derive(Debug)]
pub struct Lane {
    gateway: Arc<Inbox>,
    pushed: Vec<SessionCall>,
    places: Arc<Mutex<Places>>,
    /// Of the calls without an outcome, in order.
    deadlines_us: VecDeque<Option<u64>>,
}

impl Lane {
    pub fn new(gateway: Arc<Inbox>) -> Lane {
        Lane {
            gateway,
            pushed: Vec::new(),
            places: Arc::default(),
            deadlines_us: VecDeque::new(),
        }
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionLane for Lane {
    fn push(&mut self, call: SessionCall) {
        self.pushed.push(call);
    }

    fn begin(&mut self) {
        if self.pushed.is_empty() {
            return;
        }
        let posted_us = clock::mono_us();
        let mut places = lock(&self.places);
        let mut calls = Vec::with_capacity(self.pushed.len());
        for call in self.pushed.drain(..) {
            let number = places.first + places.outcomes.len() as u64;
            places.outcomes.push_back(None);
            self.deadlines_us
                .push_back(deadline_us(call.within_ms, posted_us));
            let reply = Reply {
                to: To::Lane {
                    lane: self.places.clone(),
                    number,
                },
                is_write: call.command.op.is_write(),
            };
            calls.push((as_call(call), reply));
        }
        drop(places);
        self.gateway.post(Letter::Calls { calls, posted_us });
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut places = lock(&self.places);
        match places.outcomes.front_mut().and_then(Option::take) {
            Some(outcome) => {
                places.outcomes.pop_front();
                places.first += 1;
                drop(places);
                let deadline_us = self.deadlines_us.pop_front().flatten();
                Poll::Ready(match_deadline(outcome, deadline_us))
            }
            None => {
                match &mut places.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        lock(&self.places).abandoned = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use bytes::Bytes;
    use holdfast_format::{Namespace, Version};
    use holdfast_wire::{Command, Op};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(within_ms: Option<u32>) -> SessionCall {
        SessionCall {
            command: Command {
                namespace: Namespace(0),
                key: Bytes::from_static(b"k"),
                op: Op::Get,
            },
            once: None,
            within_ms,
        }
    }

    fn absent(version: u64) -> Outcome {
        Outcome::Absent {
            version: Version(version),
        }
    }

    fn posted(inbox: &Inbox) -> Vec<(Call, Reply)> {
        let mut letters = VecDeque::new();
        inbox.take(&mut letters);
        let calls = letters.into_iter().flat_map(|letter| match letter {
            Letter::Calls { calls, .. } => calls,
            other => panic!("{other:?}"),
        });
        calls.collect()
    }

    #[test]
    fn a_lane_posts_together_and_tells_in_order() {
        let inbox = Arc::new(Inbox::default());
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let cx = &mut Context::from_waker(&waker);
        let mut lane = Lane::new(inbox.clone());
        (0..3).for_each(|_| lane.push(read(None)));
        assert!(posted(&inbox).is_empty());
        lane.begin();
        lane.begin();
        let mut calls = posted(&inbox);
        assert_eq!(calls.len(), 3);
        assert_eq!(lane.poll_outcome(cx), Poll::Pending);
        let (_, last) = calls.pop().expect("three");
        last.send(absent(3));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "its turn has not come");
        assert_eq!(lane.poll_outcome(cx), Poll::Pending);
        let (_, second) = calls.pop().expect("three");
        // K1: dropped unanswered.
        drop(second);
        let (_, first) = calls.pop().expect("three");
        first.send(absent(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(lane.poll_outcome(cx), Poll::Ready(absent(1)));
        assert_eq!(
            lane.poll_outcome(cx),
            Poll::Ready(Outcome::Failed(Failure::Unreachable))
        );
        assert_eq!(lane.poll_outcome(cx), Poll::Ready(absent(3)));
        assert_eq!(lane.poll_outcome(cx), Poll::Pending);
    }

    #[test]
    fn nobody_answers_a_lane_that_is_gone() {
        let inbox = Arc::new(Inbox::default());
        let mut lane = Lane::new(inbox.clone());
        lane.push(read(None));
        lane.begin();
        let (_, reply) = posted(&inbox).pop().expect("one");
        assert!(!reply.is_gone());
        drop(lane);
        assert!(reply.is_gone());
        reply.send(absent(1));
    }

    #[test]
    fn unreachable_after_the_deadline_is_too_late() {
        let inbox = Arc::new(Inbox::default());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut lane = Lane::new(inbox.clone());
        lane.push(read(Some(0)));
        lane.push(read(Some(60_000)));
        lane.begin();
        drop(posted(&inbox));
        for failure in [Failure::TooLate, Failure::Unreachable] {
            assert_eq!(lane.poll_outcome(cx), Poll::Ready(Outcome::Failed(failure)));
        }
    }
}
