//! What reaches a host thread from its own tasks: socket readers, disk completions and nodes of the
//! same thread. A queue without locks or wake-ups across threads.
//!
//! Q1. Once `lose` was called for (node, peer), nothing the node sends to that peer leaves until the
//!     node has been given `PeerLost` (N2 of the node seam).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use holdfast_cluster::Input;
use holdfast_format::ServerId;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct Local {
    events: RefCell<VecDeque<(ServerId, Input)>>,
    lost: RefCell<BTreeSet<(ServerId, ServerId)>>,
    /// The host loop sleeps. Waking one that runs would only cost it an empty round.
    asleep: Cell<bool>,
    notify: Notify,
}

impl Local {
    pub fn new() -> Rc<Local> {
        Rc::default()
    }

    /// Queues an input for a node of this thread and wakes the host loop.
    pub fn push(&self, node: ServerId, input: Input) {
        self.events.borrow_mut().push_back((node, input));
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

    pub fn len(&self) -> usize {
        self.events.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }

    /// Returns when there is something to pop. For one caller at a time.
    pub async fn pushed(&self) {
        while self.is_empty() {
            self.asleep.set(true);
            self.notify.notified().await;
        }
    }
}
