//! Who gets which outcome of the core.

use holdfast_cluster::ConnectionId;
use holdfast_format::KeyHash;

/// Who gets an outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Reply {
        connection: ConnectionId,
        reply: u64,
        part: u32,
        /// It was to touch only a session that exists (`gate.rs`).
        shed: bool,
    },
    Call {
        token: u64,
        key: KeyHash,
        shed: bool,
    },
}

/// Waiters by token. The core answers every token once, so a token may be used again after that.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) list: Vec<Option<Waiter>>,
    pub(crate) free: Vec<u64>,
}

impl Waiters {
    pub(crate) fn put(&mut self, waiter: Waiter) -> u64 {
        match self.free.pop() {
            Some(token) => {
                self.list[token as usize] = Some(waiter);
                token
            }
            None => {
                self.list.push(Some(waiter));
                self.list.len() as u64 - 1
            }
        }
    }

    pub(crate) fn take(&mut self, token: u64) -> Waiter {
        let waiter = self.list[token as usize]
            .take()
            .expect("the core answers a token once");
        self.free.push(token);
        waiter
    }
}
