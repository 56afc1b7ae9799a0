//! Where the bytes of a segment stand: extents, each a run of seglets filled from its start.
//!
//! ```text
//! logical   |0            |a        |b      length
//! extents   [eeeeeeeeeee.][eeeeeee..][eeee........]
//! ```
//!
//! An entry never crosses an extent's end, so that it is one slice; what is left unused there is no part of the
//! segment: its offsets, which replicas and positions use, count used bytes only.

use crate::region::{Region, Run};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub run: Run,
    /// Bytes from the run's start that hold entries.
    pub used: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Extents {
    list: Vec<Extent>,
    seglets: u32,
    length: u32,
    /// Bytes that can still be placed in the last extent.
    room: u32,
}

impl Extents {
    /// Used bytes of all extents.
    pub fn length(&self) -> u32 {
        self.length
    }

    pub fn seglets(&self) -> u32 {
        self.seglets
    }

    /// Bytes left in the last extent.
    #[inline]
    pub fn room(&self) -> u32 {
        self.room
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn list(&self) -> &[Extent] {
        &self.list
    }

    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.list.iter().map(|extent| extent.run)
    }

    /// The seglet after the last extent.
    pub fn end(&self) -> Option<u32> {
        self.list.last().map(|extent| extent.run.end())
    }

    /// True if `run` begins where the last extent ends.
    pub fn is_followed_by(&self, run: Run) -> bool {
        self.end() == Some(run.first)
    }

    /// Adds a run: it lengthens the last extent if it follows it, else it is one of its own.
    pub fn push(&mut self, run: Run, seglet_bytes: usize) {
        match self.list.last_mut() {
            Some(last) if last.run.end() == run.first => last.run.count += run.count,
            _ => self.list.push(Extent { run, used: 0 }),
        }
        self.seglets += run.count;
        let last = self.list.last().expect("just pushed");
        self.room = last.run.count * seglet_bytes as u32 - last.used;
    }

    /// Where in the region the next byte of the last extent would go.
    #[inline]
    pub fn next(&self, region: &Region) -> u64 {
        let last = self.list.last().expect("room was made");
        region.offset_of(last.run.first) + u64::from(last.used)
    }

    /// Takes the next `bytes` of the last extent. Returns where they begin in the region.
    #[inline]
    pub fn place(&mut self, region: &Region, bytes: u32) -> u64 {
        let last = self.list.last_mut().expect("room was made");
        assert!(self.room >= bytes, "room was made");
        let offset = region.offset_of(last.run.first) + u64::from(last.used);
        last.used += bytes;
        self.length += bytes;
        self.room -= bytes;
        offset
    }

    /// Lets go of the seglets that have not been begun, and says which.
    pub fn cut_tail(&mut self, seglet_bytes: usize) -> Run {
        let Some(last) = self.list.last_mut() else {
            return Run { first: 0, count: 0 };
        };
        let keep = last.used.div_ceil(seglet_bytes as u32);
        let tail = Run {
            first: last.run.first + keep,
            count: last.run.count - keep,
        };
        last.run.count = keep;
        self.seglets -= tail.count;
        self.room = keep * seglet_bytes as u32 - last.used;
        if keep == 0 {
            self.list.pop();
        }
        tail
    }

    /// The bytes from logical offset `from` to `to`, piece by piece; none is empty.
    pub fn pieces<'a>(
        &'a self,
        region: &'a Region,
        from: u32,
        to: u32,
    ) -> impl Iterator<Item = &'a [u8]> {
        let mut start = 0;
        self.list.iter().filter_map(move |extent| {
            let (first, end) = (from.max(start), to.min(start + extent.used));
            let place = region.offset_of(extent.run.first) + u64::from(first.saturating_sub(start));
            start += extent.used;
            (first < end)
                .then(|| &region.memory()[place as usize..place as usize + (end - first) as usize])
        })
    }
}
