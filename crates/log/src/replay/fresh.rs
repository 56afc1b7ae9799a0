//! Objects of keys that the log does not have yet: nearly all of what a recovery brings.
//!
//! Each is a copy, a word in the index and a few sums. What can be known or told once for many of them is: that there is
//! memory, where in which segment they go, how many bytes of that segment live.
//!
//! F1. What a `Room` has taken is no part of its segment until `leave` is called: before anything else looks at segments,
//!     or memory is taken or given back.

use holdfast_format::Keyed;

use super::ReplayError;
use crate::ReplayId;
use crate::index::{Kind, Vacancy, Word};
use crate::log::Log;
use crate::segments::Slot;

/// The rest of a replay's open extent while objects are put there.
#[derive(Debug)]
pub(super) struct Room {
    side: Slot,
    first: u64,
    /// Where the next one goes, and where room ends.
    next: u64,
    end: u64,
    largest: u32,
}

impl Log {
    /// Puts an object where `vacancy` has room for its word.
    #[inline]
    pub(super) fn replay_fresh(
        &mut self,
        id: ReplayId,
        room: &mut Option<Room>,
        (object, raw): (Keyed<'_>, &[u8]),
        vacancy: Vacancy,
    ) -> Result<(), ReplayError> {
        let fits = |room: &&mut Room| room.end - room.next >= raw.len() as u64;
        let room = match room.as_mut().filter(fits) {
            Some(room) if self.index.has_room() => room,
            _ => self.enter(id, room, raw.len())?,
        };
        let (side, offset) = (room.side, room.next);
        let at = offset as usize;
        // As it is: its checksum, just checked, goes with it.
        self.region.memory_mut()[at..at + raw.len()].copy_from_slice(raw);
        room.next += raw.len() as u64;
        room.largest = room.largest.max(raw.len() as u32);
        let word = Word::new(Kind::Object, offset);
        (self.index).fill_vacancy(&mut self.region, vacancy, word);
        let deadline = object.deadline();
        let count = &mut self.counts[usize::from(object.namespace().0)];
        count.sessions += 1;
        count.with_deadline += u64::from(deadline.is_some());
        count.bytes += raw.len() as u64;
        if let Some(deadline) = deadline.filter(|_| self.config.cleaner.lifetimes) {
            (self.segments).add_lifetime(side, deadline, raw.len() as u32, self.clock);
        }
        Ok(())
    }

    /// Finds room for `bytes` at least.
    #[cold]
    fn enter<'a>(
        &mut self,
        id: ReplayId,
        room: &'a mut Option<Room>,
        bytes: usize,
    ) -> Result<&'a mut Room, ReplayError> {
        self.leave(room);
        let side = self.side_space(id, bytes)?;
        let extents = &self.segments.get(side).bytes;
        let first = extents.next(&self.region);
        Ok(room.insert(Room {
            side,
            first,
            next: first,
            end: first + u64::from(extents.room()),
            largest: 0,
        }))
    }

    /// Makes what a room has taken a part of its segment (F1).
    pub(super) fn leave(&mut self, room: &mut Option<Room>) {
        let Some(room) = room.take().filter(|room| room.next > room.first) else {
            return;
        };
        let bytes = room.next - room.first;
        let first = (self.segments).place_all(&self.region, room.side, bytes as u32, room.largest);
        assert_eq!(first, room.first, "F1");
        self.segments.add_live(room.side, bytes as usize);
        self.cleaner.pace.appended(bytes as usize);
    }
}
