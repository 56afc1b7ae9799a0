//! The one reserved piece of memory of a log, cut in seglets, and which of them are free.
//!
//! ```text
//! |SSSSSSSSSS|TTTTT|......|SSSS|UUUUUUUUUUU|.............|SS|......|I|II|IIIIII|
//!  an extent        a free run                                      index chunks
//! ```
//!
//! Seglets are handed out as *runs*: neighbours, so that what stands in them is one slice. A segment is a list of
//! extents, each a run, so any free seglets will do for it, however scattered; longer runs waste less at
//! their ends and make shorter lists, so the longest are given first. Index chunks are single seglets that
//! never move; they come from the top, out of the way.
//!
//! I1. A seglet is free or belongs to one segment, one index chunk or one job of the cleaner. Whoever has it says
//!     so by not giving it back: taking what is not free, or giving back twice, panics.
//! I2. No two free runs touch: what is given back joins its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::io;

use crate::memory::{Memory, Toucher};
use crate::prefetch::prefetch;

/// Seglets side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub first: u32,
    pub count: u32,
}

impl Run {
    pub fn end(self) -> u32 {
        self.first + self.count
    }
}

#[derive(Debug)]
pub(crate) struct Region {
    memory: Memory,
    seglet_bytes: usize,
    /// `seglet_bytes` is a power of two.
    seglet_shift: u32,
    seglets: u32,
    free_seglets: u32,
    /// First seglet and count of every free run.
    by_place: BTreeMap<u32, u32>,
    /// The same as (count, first).
    by_size: BTreeSet<(u32, u32)>,
    /// Pages before this byte have been touched.
    touched: usize,
}

/// The smallest page that any system maps; with larger ones some touches are for nothing.
const PAGE_BYTES: usize = 4 << 10;

impl Region {
    pub fn new(seglets: u32, seglet_bytes: usize) -> io::Result<Region> {
        assert!(
            seglets > 0 && seglet_bytes.is_power_of_two(),
            "validated in Config"
        );
        Ok(Region {
            memory: Memory::new(seglets as usize * seglet_bytes)?,
            seglet_bytes,
            seglet_shift: seglet_bytes.trailing_zeros(),
            seglets,
            free_seglets: seglets,
            by_place: BTreeMap::from([(0, seglets)]),
            by_size: BTreeSet::from([(seglets, 0)]),
            touched: 0,
        })
    }

    /// Makes the system map the next `budget_bytes`, at least a page. True if more is left.
    pub fn touch_ahead(&mut self, budget_bytes: u64) -> bool {
        let pages = budget_bytes.div_ceil(PAGE_BYTES as u64).max(1) as usize;
        let bytes = self.memory.bytes_mut();
        let end = (self
            .touched
            .saturating_add(pages.saturating_mul(PAGE_BYTES)))
        .min(bytes.len());
        for place in (self.touched..end).step_by(PAGE_BYTES) {
            // A write that the compiler cannot know to change nothing.
            bytes[place] |= black_box(0);
        }
        self.touched = end;
        end < bytes.len()
    }

    pub fn toucher(&self) -> Option<Toucher> {
        self.memory.toucher()
    }

    pub fn is_huge(&self) -> bool {
        self.memory.is_huge()
    }

    /// All of the memory; offsets count from its start.
    #[inline]
    pub fn memory(&self) -> &[u8] {
        self.memory.bytes()
    }

    #[inline]
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    #[inline]
    pub fn prefetch(&self, offset: u64) {
        prefetch(self.memory.bytes(), offset as usize);
    }

    pub fn seglet_bytes(&self) -> usize {
        self.seglet_bytes
    }

    pub fn seglets(&self) -> u32 {
        self.seglets
    }

    pub fn free_seglets(&self) -> u32 {
        self.free_seglets
    }

    /// The seglet that holds the byte at `offset`.
    #[inline]
    pub fn seglet_of(&self, offset: u64) -> u32 {
        (offset >> self.seglet_shift) as u32
    }

    #[inline]
    pub fn offset_of(&self, seglet: u32) -> u64 {
        u64::from(seglet) << self.seglet_shift
    }

    /// Takes a run of `min..=want` seglets: the shortest that has all of them, else the longest there is.
    pub fn take(&mut self, min: u32, want: u32) -> Option<Run> {
        assert!(min >= 1 && min <= want);
        let fits = self.by_size.range((want, 0)..).next();
        let &(count, first) = fits.or_else(|| self.by_size.last())?;
        if count < min {
            return None;
        }
        let run = Run {
            first,
            count: count.min(want),
        };
        self.take_at(run);
        Some(run)
    }

    /// Takes up to `want` free seglets that follow `seglet` without a gap; fewer than `min` are not taken.
    pub fn take_next(&mut self, seglet: u32, min: u32, want: u32) -> Option<Run> {
        let &count = self.by_place.get(&seglet)?;
        let run = Run {
            first: seglet,
            count: count.min(want),
        };
        if run.count < min.max(1) {
            return None;
        }
        self.take_at(run);
        Some(run)
    }

    /// Takes the highest free seglet, for the index. Its bytes are zero.
    pub fn take_index_seglet(&mut self, may_take: bool) -> Option<u32> {
        if !may_take {
            return None;
        }
        let (&first, &count) = self.by_place.last_key_value()?;
        let seglet = first + count - 1;
        self.take_at(Run {
            first: seglet,
            count: 1,
        });
        let start = self.offset_of(seglet) as usize;
        let end = start + self.seglet_bytes;
        self.memory_mut()[start..end].fill(0);
        Some(seglet)
    }

    /// Takes just this run, all of which is free.
    pub fn take_at(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        let (&first, &count) = self
            .by_place
            .range(..=run.first)
            .next_back()
            .expect("a free run holds the seglets (I1)");
        assert!(run.end() <= first + count, "a seglet is taken twice (I1)");
        self.forget(first, count);
        self.note(first, run.first - first);
        self.note(run.end(), first + count - run.end());
        self.free_seglets -= run.count;
    }

    pub fn give_back(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        assert!(run.end() <= self.seglets);
        let Run { mut first, .. } = run;
        let mut count = run.count;
        if let Some((&before, &length)) = self.by_place.range(..=run.first).next_back() {
            assert!(
                before + length <= run.first,
                "a seglet is given back twice (I1)"
            );
            if before + length == run.first {
                self.forget(before, length);
                (first, count) = (before, length + count);
            }
        }
        if let Some((&after, &length)) = self.by_place.range(run.first..).next() {
            assert!(run.end() <= after, "a seglet is given back twice (I1)");
            if run.end() == after {
                self.forget(after, length);
                count += length;
            }
        }
        self.note(first, count);
        self.free_seglets += run.count;
    }

    /// Walks the free runs, for `verify`.
    pub fn check(&self, mut visit: impl FnMut(Run)) {
        let (mut end, mut free) = (None, 0);
        for (&first, &count) in &self.by_place {
            assert!(count > 0 && end.is_none_or(|end| end < first), "I2");
            assert!(self.by_size.contains(&(count, first)));
            end = Some(first + count);
            free += count;
            visit(Run { first, count });
        }
        assert_eq!(
            (free, self.by_size.len()),
            (self.free_seglets, self.by_place.len())
        );
    }

    fn note(&mut self, first: u32, count: u32) {
        if count > 0 {
            self.by_place.insert(first, count);
            self.by_size.insert((count, first));
        }
    }

    fn forget(&mut self, first: u32, count: u32) {
        self.by_place.remove(&first);
        self.by_size.remove(&(count, first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32) -> Run {
        Run { first, count }
    }

    #[test]
    fn runs_are_cut_and_joined() {
        let mut region = Region::new(64, 4 << 10).unwrap();
        assert_eq!(region.take(1, 16), Some(run(0, 16)));
        assert_eq!(region.take(1, 16), Some(run(16, 16)));
        region.give_back(run(6, 10));
        assert_eq!(region.take(1, 9), Some(run(6, 9)), "the shortest that fits");
        assert_eq!(region.take_next(15, 1, 5), Some(run(15, 1)));
        assert_eq!(region.take_next(16, 1, 5), None, "in use");
        assert_eq!(region.take_index_seglet(true), Some(63));
        assert_eq!(region.take_index_seglet(false), None);
        assert_eq!(region.take(32, 40), None);
        assert_eq!(
            region.take(8, 40),
            Some(run(32, 31)),
            "the longest there is"
        );
        assert_eq!(region.free_seglets(), 0);
        assert_eq!(region.take(1, 1), None);
        region.give_back(run(3, 2));
        region.give_back(run(10, 4));
        region.give_back(run(5, 5));
        region.check(|free| assert_eq!(free, run(3, 11)));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_panics() {
        let mut region = Region::new(64, 4 << 10).unwrap();
        region.take(16, 16);
        region.give_back(run(4, 4));
        region.give_back(run(0, 5));
    }

    #[test]
    #[should_panic(expected = "I1")]
    fn taking_what_is_not_free_panics() {
        let mut region = Region::new(64, 4 << 10).unwrap();
        region.take(16, 16);
        region.take_at(run(10, 10));
    }
}
