//! The one reserved piece of memory of a log, and who uses which seglet of it.
//!
//! ```text
//! block 0          block 1          block 2      …     last block
//! |SSSSSSSSSSSSSSs.|SSSSSSSSSSSSSSSS|................|  |IIIIIII.........|
//!  one segment, its  a full segment   entirely free      chunks of the index
//!  tail given back
//! ```
//!
//! The region is cut in blocks of one segment's size, and blocks in seglets. A segment is a run of
//! seglets inside one block, so that a segment's bytes are one slice and cleaning every segment of a
//! block always gives back room for a whole segment, whatever fragments there are elsewhere.
//! Index chunks never move; they fill blocks of their own, from the top.
//!
//! I1. A seglet is used by at most one segment or index chunk (`used` bits).
//! I2. `free_seglets` and `free_blocks` count what segments may use: not what is left in index blocks.
//! I3. The memory is zeroed by the allocator, and the system maps a page of it when it is first written:
//!     by whoever uses it, or before that by `touch_ahead`, which changes no byte.

use std::hint::black_box;

use crate::prefetch::prefetch;

/// A run of seglets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub first: u32,
    pub count: u32,
}

#[derive(Debug)]
pub(crate) struct Region {
    bytes: Vec<u8>,
    /// Bytes skipped so that offsets are cache-line aligned.
    base: usize,
    seglet_bytes: usize,
    seglets_per_block: u32,
    blocks: Vec<Block>,
    free_seglets: u32,
    free_blocks: u32,
    /// Pages before this byte have been touched.
    touched: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// One bit per seglet.
    used: u128,
    index: bool,
}

/// Cache line, and size of an index bucket.
const LINE_BYTES: usize = 64;

/// The smallest page that any system maps; with larger ones some touches are for nothing.
const PAGE_BYTES: usize = 4 << 10;

impl Region {
    pub fn new(blocks: u32, block_bytes: usize, seglet_bytes: usize) -> Region {
        let seglets_per_block = (block_bytes / seglet_bytes) as u32;
        assert!(
            (1..=128).contains(&seglets_per_block),
            "validated in Config"
        );
        let bytes = vec![0u8; blocks as usize * block_bytes + LINE_BYTES];
        let base = bytes.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
        Region {
            bytes,
            base,
            seglet_bytes,
            seglets_per_block,
            blocks: vec![
                Block {
                    used: 0,
                    index: false
                };
                blocks as usize
            ],
            free_seglets: blocks * seglets_per_block,
            free_blocks: blocks,
            touched: 0,
        }
    }

    /// Makes the system map the next `budget_bytes`, at least a page. True if more is left.
    pub fn touch_ahead(&mut self, budget_bytes: u64) -> bool {
        let pages = budget_bytes.div_ceil(PAGE_BYTES as u64).max(1) as usize;
        let end = (self
            .touched
            .saturating_add(pages.saturating_mul(PAGE_BYTES)))
        .min(self.bytes.len());
        for place in (self.touched..end).step_by(PAGE_BYTES) {
            // A write that the compiler cannot know to change nothing.
            self.bytes[place] |= black_box(0);
        }
        self.touched = end;
        end < self.bytes.len()
    }

    /// All of the memory; offsets count from its start.
    #[inline]
    pub fn memory(&self) -> &[u8] {
        &self.bytes[self.base..]
    }

    #[inline]
    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.base..]
    }

    #[inline]
    pub fn prefetch(&self, offset: u64) {
        prefetch(&self.bytes, self.base + offset as usize);
    }

    pub fn seglet_bytes(&self) -> usize {
        self.seglet_bytes
    }

    pub fn seglets_per_block(&self) -> u32 {
        self.seglets_per_block
    }

    pub fn blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub fn seglets(&self) -> u32 {
        self.blocks() * self.seglets_per_block
    }

    pub fn free_seglets(&self) -> u32 {
        self.free_seglets
    }

    pub fn free_blocks(&self) -> u32 {
        self.free_blocks
    }

    pub fn is_used(&self, seglet: u32) -> bool {
        let (block, bit) = self.split(seglet);
        self.blocks[block].used >> bit & 1 == 1
    }

    /// Seglets of blocks that the index has taken, used or not.
    pub fn index_seglets(&self) -> u32 {
        self.blocks.iter().filter(|block| block.index).count() as u32 * self.seglets_per_block
    }

    pub fn block_of(&self, seglet: u32) -> u32 {
        seglet / self.seglets_per_block
    }

    /// The seglet that holds the byte at `offset`.
    #[inline]
    pub fn seglet_of(&self, offset: u64) -> u32 {
        (offset / self.seglet_bytes as u64) as u32
    }

    pub fn offset_of(&self, seglet: u32) -> u64 {
        u64::from(seglet) * self.seglet_bytes as u64
    }

    /// Takes a run of `min..=want` seglets and leaves at least `keep_blocks` entirely free blocks.
    ///
    /// A run in a block that is in use already is preferred if it is long enough to be worth a
    /// segment, because entirely free blocks are what the cleaner and the index need.
    pub fn take(&mut self, min: u32, want: u32, keep_blocks: u32) -> Option<Run> {
        assert!(min >= 1 && min <= want && want <= self.seglets_per_block);
        let worth = min.max(self.seglets_per_block / 4).min(want);
        let (mut partial, mut free) = (None::<Run>, None);
        for (i, block) in self.blocks.iter().enumerate() {
            if block.index {
                continue;
            }
            if block.used == 0 {
                free = free.or(Some(i as u32));
            } else {
                let run = self.longest_run(i);
                if run.count >= min && partial.is_none_or(|best| best.count < run.count) {
                    partial = Some(run);
                }
            }
        }
        let free = free
            .filter(|_| self.free_blocks > keep_blocks)
            .map(|i| Run {
                first: i * self.seglets_per_block,
                count: self.seglets_per_block,
            });
        let mut run = match (partial, free) {
            (Some(partial), _) if partial.count >= worth => partial,
            (partial, free) => free.or(partial)?,
        };
        run.count = run.count.min(want);
        self.mark(run, true);
        Some(run)
    }

    /// Takes every free seglet of a block.
    pub fn take_rest(&mut self, block: u32) -> Vec<Run> {
        let mut taken = Vec::new();
        loop {
            let run = self.longest_run(block as usize);
            if run.count == 0 {
                return taken;
            }
            self.mark(run, true);
            taken.push(run);
        }
    }

    /// Takes an entirely free block.
    pub fn take_block(&mut self) -> Option<Run> {
        let block = self
            .blocks
            .iter()
            .position(|block| !block.index && block.used == 0)?;
        let run = Run {
            first: block as u32 * self.seglets_per_block,
            count: self.seglets_per_block,
        };
        self.mark(run, true);
        Some(run)
    }

    /// Takes a seglet for the index, a new block for it only if `may_take_block`. Its bytes are zero.
    pub fn take_index_seglet(&mut self, may_take_block: bool) -> Option<u32> {
        let full = self.full();
        let open = self
            .blocks
            .iter()
            .rposition(|block| block.index && block.used != full);
        let block = match open {
            Some(block) => block,
            None if may_take_block => {
                let block = self
                    .blocks
                    .iter()
                    .rposition(|block| !block.index && block.used == 0)?;
                self.blocks[block].index = true;
                self.free_blocks -= 1;
                self.free_seglets -= self.seglets_per_block;
                block
            }
            None => return None,
        };
        let bit = (!self.blocks[block].used).trailing_zeros();
        self.blocks[block].used |= 1 << bit;
        let seglet = block as u32 * self.seglets_per_block + bit;
        let start = self.offset_of(seglet) as usize;
        let end = start + self.seglet_bytes;
        self.memory_mut()[start..end].fill(0);
        Some(seglet)
    }

    pub fn give_back(&mut self, run: Run) {
        self.mark(run, false);
    }

    /// Takes just this run again, which was given back a moment ago.
    pub fn take_back(&mut self, run: Run) {
        self.mark(run, true);
    }

    fn full(&self) -> u128 {
        if self.seglets_per_block == 128 {
            u128::MAX
        } else {
            (1 << self.seglets_per_block) - 1
        }
    }

    fn split(&self, seglet: u32) -> (usize, u32) {
        (
            (seglet / self.seglets_per_block) as usize,
            seglet % self.seglets_per_block,
        )
    }

    fn mark(&mut self, run: Run, used: bool) {
        if run.count == 0 {
            return;
        }
        let (block, bit) = self.split(run.first);
        assert!(
            bit + run.count <= self.seglets_per_block,
            "a run crosses blocks"
        );
        let mask = if run.count == 128 {
            u128::MAX
        } else {
            ((1u128 << run.count) - 1) << bit
        };
        let block = &mut self.blocks[block];
        assert!(!block.index, "index chunks are never given back");
        assert_eq!(
            block.used & mask,
            if used { 0 } else { mask },
            "a seglet changed hands twice"
        );
        let was_free = block.used == 0;
        block.used ^= mask;
        match (was_free, block.used == 0) {
            (true, false) => self.free_blocks -= 1,
            (false, true) => self.free_blocks += 1,
            _ => {}
        }
        if used {
            self.free_seglets -= run.count;
        } else {
            self.free_seglets += run.count;
        }
    }

    fn longest_run(&self, block: usize) -> Run {
        let used = self.blocks[block].used;
        let mut best = Run { first: 0, count: 0 };
        let mut bit = 0;
        while bit < self.seglets_per_block {
            let rest = used >> bit;
            let gap = rest.trailing_zeros().min(self.seglets_per_block - bit);
            if gap > best.count {
                best = Run {
                    first: block as u32 * self.seglets_per_block + bit,
                    count: gap,
                };
            }
            bit += gap;
            if bit < self.seglets_per_block {
                bit += (!(used >> bit)).trailing_zeros();
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_blocks_kept() {
        let mut region = Region::new(4, 64 << 10, 4 << 10);
        let a = region.take(1, 16, 1).unwrap();
        assert_eq!(
            a,
            Run {
                first: 0,
                count: 16
            }
        );
        region.give_back(Run {
            first: 6,
            count: 10,
        });
        assert_eq!(
            region.take(1, 16, 1).unwrap(),
            Run {
                first: 6,
                count: 10
            }
        );
        region.give_back(Run { first: 2, count: 3 });
        assert_eq!(
            region.take(1, 16, 1).unwrap(),
            Run {
                first: 16,
                count: 16
            },
            "3 are too few"
        );
        assert_eq!(region.take_index_seglet(true), Some(48));
        assert_eq!(region.take(4, 16, 1), None, "the last free block is kept");
        assert_eq!(region.take(1, 16, 1).unwrap(), Run { first: 2, count: 3 });
        assert_eq!(region.take_block().unwrap().first, 32);
        assert_eq!((region.free_blocks(), region.free_seglets()), (0, 0));
        assert_eq!(region.take_index_seglet(false), Some(49));
    }
}
