//! Buffers for reading whole replicas, used again and again.
//!
//! Fresh memory costs 0.4 to 2.5 GB/s, page by page, and a recovery reads all that it can at once: with a new buffer for each
//! read, a third of the processors' time until everything was replayed went into clearing pages. So some buffers are made and
//! touched beforehand, and what comes back is kept for the next read.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// Why the lock here is never poisoned.
const LOCKED_BRIEFLY: &str = "nothing that could panic happens under this lock";

/// Buffers of one size. Threads: any.
#[derive(Debug)]
pub struct Buffers {
    buffer_bytes: usize,
    /// More than these are given back to the system.
    kept_max: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

/// What was read into a buffer, which comes back when nobody looks at it any more.
struct Lent {
    bytes: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// None yet.
    pub fn new(buffer_bytes: usize, kept_max: usize) -> Arc<Buffers> {
        Arc::new(Buffers {
            buffer_bytes,
            kept_max,
            free: Mutex::new(Vec::new()),
        })
    }

    /// Makes all that are kept, their memory mapped. Takes milliseconds for each.
    pub fn prepare(&self) {
        while self.free.lock().expect(LOCKED_BRIEFLY).len() < self.kept_max {
            // Zeros would be promised only.
            self.put(vec![1; self.buffer_bytes]);
        }
    }

    /// One of `buffer_bytes`, whatever is in it.
    pub fn take(&self) -> Vec<u8> {
        let free = self.free.lock().expect(LOCKED_BRIEFLY).pop();
        free.unwrap_or_else(|| vec![0; self.buffer_bytes])
    }

    fn put(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock().expect(LOCKED_BRIEFLY);
        if free.len() < self.kept_max {
            free.push(buffer);
        }
    }

    /// The first `length` bytes of one that was taken.
    pub fn lend(self: &Arc<Self>, bytes: Vec<u8>, length: usize) -> Bytes {
        assert!(length <= bytes.len());
        Bytes::from_owner(Lent {
            bytes,
            length,
            home: self.clone(),
        })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.put(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_used_again_and_no_more_is_kept_than_is_said() {
        let buffers = Buffers::new(100, 2);
        buffers.prepare();
        let free = || buffers.free.lock().unwrap().len();
        assert_eq!(free(), 2);
        let read = |byte| {
            let mut buffer = buffers.take();
            buffer[..50].fill(byte);
            buffers.lend(buffer, 50)
        };
        let all: Vec<Bytes> = (0..3).map(read).collect();
        assert_eq!(all[2], [2; 50].as_slice());
        assert_eq!(free(), 0);
        let part = all[1].slice(10..20);
        drop(all);
        assert_eq!(
            free(),
            2,
            "the third would be one too many, or is still looked at"
        );
        assert_eq!(part, [1; 10].as_slice());
        drop(part);
        assert_eq!(free(), 2);
    }
}
