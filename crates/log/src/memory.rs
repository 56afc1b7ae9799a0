//! The piece of memory that a log reserves: asked of the system once, in large pages if it has them.
//!
//! A page of 4 KiB needs an entry of the processor's translation cache for every 20 sessions or so; with random
//! access to gigabytes nearly every look-up misses it and walks page tables that miss the cache themselves. Pages of
//! 2 MiB end that. The advice is only advice: without it everything works, slower.
//!
//! Large pages have a price at their first use: the system clears 2 MiB, some 5 ms on a virtual machine, in the
//! middle of whatever request came first. So a `Toucher` maps them ahead, on a thread of its own.
//!
//! M1. Fresh memory is zero. The system maps a page when it is first written, or when a toucher asks for it.
//! M2. Only `Memory` makes references to the bytes. A toucher shares the mapping and never reads or writes it: it
//!     asks the system for pages, which changes no byte.

#![allow(
    unsafe_code,
    reason = "a mapping that a toucher shares has no safe slices; this module gives them out, by M2"
)]

use std::io;
#[cfg(not(miri))]
use std::sync::Arc;

/// Zeroed memory whose first byte lies at the start of a page, or nearly (under miri).
#[derive(Debug)]
pub(crate) struct Memory {
    #[cfg(not(miri))]
    mapping: Arc<memmap2::MmapRaw>,
    #[cfg(miri)]
    bytes: Vec<u8>,
    huge: bool,
}

/// Has the system map a log's memory before it is needed. May be used on another thread than the log.
#[derive(Debug)]
pub struct Toucher {
    #[cfg(not(miri))]
    mapping: Arc<memmap2::MmapRaw>,
    /// What is left, from both ends: segments are taken from below and the index from above.
    below: usize,
    above: usize,
    /// The index needs no more than what lies from here on.
    index_from: usize,
}

/// A large page.
const STEP_BYTES: usize = 2 << 20;

/// The index's part of a memory full of small sessions is about a sixteenth.
const INDEX_PART: usize = 16;

impl Memory {
    pub fn new(length: usize) -> io::Result<Memory> {
        #[cfg(not(miri))]
        {
            let bytes = memmap2::MmapMut::map_anon(length)?;
            #[cfg(target_os = "linux")]
            let huge = bytes.advise(memmap2::Advice::HugePage).is_ok();
            #[cfg(not(target_os = "linux"))]
            let huge = false;
            let mapping = Arc::new(memmap2::MmapRaw::from(bytes));
            Ok(Memory { mapping, huge })
        }
        #[cfg(miri)]
        Ok(Memory {
            bytes: vec![0; length],
            huge: false,
        })
    }

    /// True if the system has taken the advice to use large pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// What maps this memory from another thread. `None` where the system has no way to ask for pages.
    pub fn toucher(&self) -> Option<Toucher> {
        #[cfg(all(target_os = "linux", not(miri)))]
        {
            let length = self.mapping.len();
            Some(Toucher {
                mapping: self.mapping.clone(),
                below: 0,
                above: length,
                index_from: length - length / INDEX_PART,
            })
        }
        #[cfg(not(all(target_os = "linux", not(miri))))]
        None
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        #[cfg(not(miri))]
        // SAFETY: the mapping is readable, as long as it says, initialised (zeroed by the system) and kept by
        // `self`. References to it come only from `self`, so the borrow checker sees all of them (M2).
        unsafe {
            std::slice::from_raw_parts(self.mapping.as_ptr(), self.mapping.len())
        }
        #[cfg(miri)]
        &self.bytes
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        #[cfg(not(miri))]
        // SAFETY: as in `bytes`; the mapping is writeable, and `&mut self` makes this the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(self.mapping.as_mut_ptr(), self.mapping.len())
        }
        #[cfg(miri)]
        &mut self.bytes
    }
}

impl Toucher {
    /// Has the next 2 MiB mapped, which takes up to some 5 ms. False: that was all.
    ///
    /// An error means that this system cannot do it (Linux before 5.14): pages are then mapped as they are used.
    pub fn touch(&mut self) -> io::Result<bool> {
        if self.below >= self.above || self.is_orphan() {
            return Ok(false);
        }
        let left = self.above - self.below;
        // In turns while the index may need it.
        let from_above = self.above > self.index_from && self.above - self.index_from > self.below;
        let step = left.min(STEP_BYTES);
        let start = match from_above {
            true => self.above - step,
            false => self.below,
        };
        self.map(start, step)?;
        match from_above {
            true => self.above = start,
            false => self.below = start + step,
        }
        Ok(self.below < self.above)
    }

    /// The log is gone: its memory must not live on for us.
    fn is_orphan(&self) -> bool {
        #[cfg(not(miri))]
        return Arc::strong_count(&self.mapping) == 1;
        #[cfg(miri)]
        true
    }

    fn map(&self, start: usize, length: usize) -> io::Result<()> {
        #[cfg(all(target_os = "linux", not(miri)))]
        return (self.mapping).advise_range(memmap2::Advice::PopulateWrite, start, length);
        #[cfg(not(all(target_os = "linux", not(miri))))]
        {
            let _ = (start, length);
            unreachable!("only where the system can there are touchers")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "what is tested is that a thread of its own may do it"
    )]
    fn a_toucher_changes_nothing_and_ends() {
        let mut memory = Memory::new(STEP_BYTES * 9 / 2).unwrap();
        memory.bytes_mut()[STEP_BYTES + 7] = 9;
        let Some(mut toucher) = memory.toucher() else {
            return; // Not on this system.
        };
        let thread = std::thread::spawn(move || {
            let mut steps = 0;
            while toucher.touch().unwrap_or(false) {
                steps += 1;
            }
            steps
        });
        memory.bytes_mut()[3 * STEP_BYTES] = 8;
        let steps = thread.join().unwrap();
        assert!(steps <= 5, "{steps} steps for four and a half of them");
        let sum: u64 = memory.bytes().iter().map(|&byte| u64::from(byte)).sum();
        assert_eq!((sum, memory.bytes()[STEP_BYTES + 7]), (17, 9));
    }
}
