//! Buffers for reading whole replicas, used again and again. They begin at a block's border, as reads past the page cache
//! (`store::direct`) ask for.
//!
//! Fresh memory costs 0.4 to 2.5 GB/s, page by page, and a recovery reads all that it can at once: with a new buffer for each
//! read, a third of the processors' time until everything was replayed went into clearing pages. So some buffers are made and
//! touched beforehand, and what comes back is kept for the next read.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// Why the lock here is never poisoned.
const LOCKED_BRIEFLY: &str = "nothing that could panic happens under this lock";

/// File offsets, lengths and addresses are multiples of this where the page cache is passed by. No disk asks for more.
pub const BLOCK_BYTES: usize = 4096;

/// Buffers of one size. Threads: any.
#[derive(Debug)]
pub struct Buffers {
    buffer_bytes: usize,
    /// More than these are given back to the system.
    kept_max: usize,
    free: Mutex<Vec<Buffer>>,
}

/// Bytes that begin at a block's border.
#[derive(Debug, Default)]
pub struct Buffer {
    /// With room to move them there.
    bytes: Vec<u8>,
    from: usize,
    length: usize,
}

/// What was read into a buffer, which comes back when nobody looks at it any more.
struct Lent {
    buffer: Buffer,
    length: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    /// Each of them `byte`.
    pub fn of(byte: u8, length: usize) -> Buffer {
        let bytes = vec![byte; length + BLOCK_BYTES];
        let from = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Buffer {
            bytes,
            from,
            length,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.length]
    }
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
            self.put(Buffer::of(1, self.buffer_bytes));
        }
    }

    /// One of `buffer_bytes`, whatever is in it.
    pub fn take(&self) -> Buffer {
        let free = self.free.lock().expect(LOCKED_BRIEFLY).pop();
        free.unwrap_or_else(|| Buffer::of(0, self.buffer_bytes))
    }

    fn put(&self, buffer: Buffer) {
        let mut free = self.free.lock().expect(LOCKED_BRIEFLY);
        if free.len() < self.kept_max {
            free.push(buffer);
        }
    }

    /// The first `length` bytes of one that was taken.
    pub fn lend(self: &Arc<Self>, buffer: Buffer, length: usize) -> Bytes {
        assert!(length <= buffer.len());
        Bytes::from_owner(Lent {
            buffer,
            length,
            home: self.clone(),
        })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.put(std::mem::take(&mut self.buffer));
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
        let taken = buffers.take();
        assert_eq!(
            (taken.len(), taken.as_ptr().align_offset(BLOCK_BYTES)),
            (100, 0)
        );
        buffers.put(taken);
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
