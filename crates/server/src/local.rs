//! What reaches a host thread from its own tasks: socket readers, disk completions and nodes of the
//! same thread. A queue without locks or wake-ups across threads.
//!
//! What clients have sent waits apart, behind everything that members say: a shard that is told last what its
//! backups have acknowledged answers last, and one with more clients than it can serve must not be taken for dead.
//!
//! Q1. Once `lose` was called for (node, peer), nothing the node sends to that peer leaves until the
//!     node has been given `PeerLost` (N2 of the node seam).
//! Q2. The reader of a client's socket waits until what it has read was served, if that was much or if there is more than a round
//!     can serve: so what waits here is bounded by one read of each.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};

use holdfast_cluster::Input;
use holdfast_format::ServerId;
use tokio::sync::Notify;

use crate::clock;

#[derive(Debug, Default)]
pub struct Local {
    events: RefCell<VecDeque<(ServerId, Input)>>,
    clients: RefCell<VecDeque<(ServerId, Input)>>,
    /// How many were ever taken from `clients`.
    taken: Cell<u64>,
    /// Readers that wait until what they have read is served, with its number.
    readers: RefCell<VecDeque<(u64, Waker)>>,
    turn: Cell<Turn>,
    /// The last round has left something that clients had sent.
    behind: Cell<bool>,
    lost: RefCell<BTreeSet<(ServerId, ServerId)>>,
    /// The host loop sleeps. Waking one that runs would only cost it an empty round.
    asleep: Cell<bool>,
    notify: Notify,
}

/// Sockets are read between two rounds of the host loop: a turn. Readers that wait for nothing else find in a turn what has come
/// since the turn before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    pub began_us: u64,
    pub before_us: u64,
}

impl Local {
    pub fn new() -> Rc<Local> {
        Rc::default()
    }

    /// Queues an input for a node of this thread and wakes the host loop.
    pub fn push(&self, node: ServerId, input: Input) {
        let queue = match &input {
            Input::Connected { .. } | Input::Received { .. } | Input::Disconnected { .. } => {
                &self.clients
            }
            _ => &self.events,
        };
        queue.borrow_mut().push_back((node, input));
        if self.asleep.replace(false) {
            self.notify.notify_one();
        }
    }

    /// The connection between `node` and `peer` broke: queues `PeerLost` and closes the way out (Q1).
    pub fn lose(&self, node: ServerId, peer: ServerId, ended: bool) {
        if self.lost.borrow_mut().insert((node, peer)) {
            self.push(node, Input::PeerLost { peer, ended });
        }
    }

    /// True while `PeerLost` is on its way to `node`.
    pub fn is_lost(&self, node: ServerId, peer: ServerId) -> bool {
        let lost = self.lost.borrow();
        !lost.is_empty() && lost.contains(&(node, peer))
    }

    /// The next input. Taking a `PeerLost` opens the way out to that peer again.
    pub fn pop(&self) -> Option<(ServerId, Input)> {
        let (node, input) = self.events.borrow_mut().pop_front()?;
        if let Input::PeerLost { peer, .. } = &input {
            self.lost.borrow_mut().remove(&(node, *peer));
        }
        Some((node, input))
    }

    /// The next of what clients have sent.
    pub fn pop_client(&self) -> Option<(ServerId, Input)> {
        let next = self.clients.borrow_mut().pop_front()?;
        let taken = self.taken.get() + 1;
        self.taken.set(taken);
        let mut readers = self.readers.borrow_mut();
        while readers.front().is_some_and(|reader| reader.0 <= taken) {
            let (_, reader) = readers.pop_front().expect("just looked at");
            reader.wake();
        }
        Some(next)
    }

    /// True if `pop` has something.
    pub fn has_news(&self) -> bool {
        !self.events.borrow().is_empty()
    }

    /// Inputs for `pop`.
    pub fn len(&self) -> usize {
        self.events.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.borrow().is_empty() && self.clients.borrow().is_empty()
    }

    /// The number of the client's input that was queued last, for `served`.
    pub fn last_queued(&self) -> u64 {
        self.taken.get() + self.clients.borrow().len() as u64
    }

    /// Returns when the client's input of this number, and with it every earlier one, was taken. To be awaited by
    /// whoever queued it, before anything else is.
    pub async fn served(&self, number: u64) {
        let mut waits = false;
        std::future::poll_fn(|context| {
            if self.taken.get() >= number {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut waits, true) {
                let reader = (number, context.waker().clone());
                self.readers.borrow_mut().push_back(reader);
            }
            Poll::Pending
        })
        .await;
    }

    /// Notes that sockets are read next, and what the round before has left.
    pub fn begin_turn(&self, now_us: u64) {
        let before_us = self.turn.get().began_us;
        self.turn.set(Turn {
            began_us: now_us,
            before_us,
        });
        self.behind.set(!self.clients.borrow().is_empty());
    }

    /// The turn that goes on. To be asked before what was read is pushed.
    pub fn turn(&self) -> Turn {
        // Nothing had come until now.
        if self.asleep.get() {
            let now_us = clock::mono_us();
            self.turn.set(Turn {
                began_us: now_us,
                before_us: now_us,
            });
        }
        self.turn.get()
    }

    /// True if clients have sent more than the last round could serve.
    pub fn is_behind(&self) -> bool {
        self.behind.get()
    }

    /// Returns when there is something to pop. For one caller at a time.
    pub async fn pushed(&self) {
        while self.is_empty() {
            self.asleep.set(true);
            self.notify.notified().await;
        }
    }
}
