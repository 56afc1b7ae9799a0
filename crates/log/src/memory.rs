//! The piece of memory that a log reserves: asked of the system once, in large pages if it has them.
//!
//! A page of 4 KiB needs an entry of the processor's translation cache for every 20 sessions or so; with random
//! access to gigabytes nearly every look-up misses it and walks page tables that miss the cache themselves. Pages of
//! 2 MiB end that. The advice is only advice: without it everything works, slower.
//!
//! M1. Fresh memory is zero. The system maps a page when it is first written.

use std::io;

/// Zeroed memory whose first byte lies at the start of a page, or nearly (under miri).
#[derive(Debug)]
pub(crate) struct Memory {
    #[cfg(not(miri))]
    bytes: memmap2::MmapMut,
    #[cfg(miri)]
    bytes: Vec<u8>,
    huge: bool,
}

impl Memory {
    pub fn new(length: usize) -> io::Result<Memory> {
        #[cfg(not(miri))]
        {
            let bytes = memmap2::MmapMut::map_anon(length)?;
            #[cfg(target_os = "linux")]
            let huge = bytes.advise(memmap2::Advice::HugePage).is_ok();
            #[cfg(not(target_os = "linux"))]
            let huge = false;
            Ok(Memory { bytes, huge })
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

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
