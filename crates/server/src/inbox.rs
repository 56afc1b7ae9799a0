//! What reaches a host thread from other threads: letters for its nodes, and who hosts whom.
//!
//! Nodes of one process talk without sockets. A thread collects what its nodes say to those of
//! another thread and posts it once per round, so that a busy pair of threads costs one lock and
//! at most one wake-up per batch.
//!
//! Lock order: `Switchboard::homes`, then one `Inbox::queue`. Neither is held across an `await`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use holdfast_cluster::{Call, Order};
use holdfast_coordinator::Status;
use holdfast_format::ServerId;
use holdfast_wire::{Failure, Figures, Message, NamespaceUse, Op, Outcome};
use tokio::sync::{Notify, oneshot};

use crate::calls::Reply;

/// Bytes of payload that may wait for one thread. The roles bound what they have under way (one
/// append per replica, a few fetches, a window of requests) far below it: this is the backstop.
/// Beyond it messages are refused, which the sender sees as a broken connection.
const WAITING_BYTES_MAX: usize = 512 << 20;

/// Something for a host thread.
#[derive(Debug)]
pub enum Letter {
    Message {
        from: ServerId,
        to: ServerId,
        message: Message,
    },
    /// `peer` has left this process; everyone here who talks to it should know.
    Gone { peer: ServerId },
    /// Calls for whichever gateway this thread hosts, in order.
    Calls {
        calls: Vec<(Call, Reply)>,
        /// By the machine's clock (`Now::mono_us`): their deadlines count from here.
        posted_us: u64,
    },
    Report {
        reply: oneshot::Sender<Vec<NodeReport>>,
    },
    /// For the thread that hosts the coordinator.
    Status { reply: oneshot::Sender<Status> },
    /// The same; answered when it is durable, or with why it makes no sense.
    Order {
        order: Order,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Stop the nodes of these roles (see `Phase`); answered when they have stopped.
    Shutdown {
        phase: Phase,
        reply: oneshot::Sender<()>,
    },
}

/// What is left of the time that a caller allows when its call is taken from the inbox; `Err` if nothing is,
/// and so the call is not to be executed.
pub fn time_left(
    within_ms: Option<u32>,
    posted_us: u64,
    now_us: u64,
) -> Result<Option<u32>, Failure> {
    let Some(within_ms) = within_ms else {
        return Ok(None);
    };
    let waited_ms = now_us.saturating_sub(posted_us) / 1_000;
    match u32::try_from(waited_ms) {
        Ok(waited_ms) if waited_ms < within_ms => Ok(Some(within_ms - waited_ms)),
        _ => Err(Failure::TooLate),
    }
}

/// A clean shutdown first stops who serves clients, then who keeps their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Servants,
    Keepers,
}

/// One node's figures, as HTTP shows them.
#[derive(Clone, Debug)]
pub struct NodeReport {
    pub role: &'static str,
    pub id: ServerId,
    pub name: String,
    pub metrics: Vec<(&'static str, f64)>,
    pub figures: Figures,
    pub namespaces: Vec<NamespaceUse>,
    pub ready: bool,
    /// What a node waits for that is not ready, if it can say.
    pub reasons: Vec<String>,
}

#[derive(Debug, Default)]
struct Queue {
    letters: VecDeque<Letter>,
    waiting_bytes: usize,
}

/// The mailbox of one host thread.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    notify: Notify,
}

impl Inbox {
    /// Adds `letter`, however full the inbox is: for the few that people and signals cause.
    pub fn post(&self, letter: Letter) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.letters.push_back(letter);
        drop(queue);
        self.notify.notify_one();
    }

    /// Adds messages in order. When the inbox is full the rest is dropped, and the (from, to) pairs
    /// that lost something are returned.
    pub fn post_messages(
        &self,
        messages: impl Iterator<Item = (ServerId, ServerId, Message)>,
    ) -> Vec<(ServerId, ServerId)> {
        let mut lost: Vec<(ServerId, ServerId)> = Vec::new();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to, message) in messages {
            let bytes = payload_bytes(&message);
            let full = queue.waiting_bytes + bytes > WAITING_BYTES_MAX;
            // N2: once one message is dropped, later ones of the pair must not arrive either.
            if full || lost.contains(&(from, to)) {
                if !lost.contains(&(from, to)) {
                    lost.push((from, to));
                }
                continue;
            }
            queue.waiting_bytes += bytes;
            queue
                .letters
                .push_back(Letter::Message { from, to, message });
        }
        drop(queue);
        self.notify.notify_one();
        lost
    }

    /// Takes everything that waits.
    pub fn take(&self, into: &mut VecDeque<Letter>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting_bytes = 0;
        into.append(&mut queue.letters);
    }

    /// Returns when something was posted since the last call.
    pub async fn posted(&self) {
        self.notify.notified().await;
    }
}

/// What a message keeps in memory while it waits, roughly.
fn payload_bytes(message: &Message) -> usize {
    const BASE: usize = 256;
    BASE + match message {
        Message::Append(append) => append.bytes.len(),
        Message::FetchPart(part) => part.entries.len(),
        Message::Requests(requests) => requests
            .items
            .iter()
            .map(|item| {
                let value = match &item.command.op {
                    Op::Put { value, .. } => value.len(),
                    _ => 0,
                };
                BASE + item.command.key.len() + value
            })
            .sum(),
        Message::Responses(responses) => responses
            .items
            .iter()
            .map(|item| {
                BASE + match &item.outcome {
                    Outcome::Value { value, .. } => value.len(),
                    _ => 0,
                }
            })
            .sum(),
        _ => 0,
    }
}

/// Which thread of this process hosts whom.
#[derive(Debug, Default)]
pub struct Switchboard {
    homes: RwLock<Homes>,
}

#[derive(Debug, Default)]
struct Homes {
    by_id: BTreeMap<ServerId, Arc<Inbox>>,
    inboxes: Vec<Arc<Inbox>>,
}

impl Switchboard {
    /// Makes the inbox of a new host thread.
    pub fn open(&self) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        self.write().inboxes.push(inbox.clone());
        inbox
    }

    /// From now on `id` is reached through `inbox`.
    pub fn register(&self, id: ServerId, inbox: &Arc<Inbox>) {
        let before = self.write().by_id.insert(id, inbox.clone());
        assert!(before.is_none(), "{id} is hosted twice");
    }

    /// `id` has stopped; every thread is told.
    pub fn unregister(&self, id: ServerId) {
        let mut homes = self.write();
        homes.by_id.remove(&id);
        for inbox in &homes.inboxes {
            inbox.post(Letter::Gone { peer: id });
        }
    }

    pub fn find(&self, id: ServerId) -> Option<Arc<Inbox>> {
        self.homes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .get(&id)
            .cloned()
    }

    /// The inboxes of all host threads.
    pub fn inboxes(&self) -> Vec<Arc<Inbox>> {
        self.homes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .inboxes
            .clone()
    }

    /// Asks every thread for the figures of its nodes. A thread that is gone or stuck for a second
    /// is left out.
    pub async fn reports(&self) -> Vec<NodeReport> {
        let mut reports = Vec::new();
        for inbox in self.inboxes() {
            let (reply, answer) = oneshot::channel();
            inbox.post(Letter::Report { reply });
            let patience = std::time::Duration::from_secs(1);
            if let Ok(Ok(mut nodes)) = tokio::time::timeout(patience, answer).await {
                reports.append(&mut nodes);
            }
        }
        reports
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Homes> {
        self.homes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_waited_too_long_is_not_executed() {
        let ms = 1_000;
        assert_eq!(time_left(None, 0, u64::MAX), Ok(None));
        assert_eq!(time_left(Some(50), 7 * ms, 7 * ms), Ok(Some(50)));
        assert_eq!(time_left(Some(50), 7 * ms, 56 * ms), Ok(Some(1)));
        assert_eq!(time_left(Some(50), 7 * ms, 57 * ms), Err(Failure::TooLate));
        assert_eq!(time_left(Some(50), 0, u64::MAX), Err(Failure::TooLate));
    }
}
