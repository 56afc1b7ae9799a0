//! A backup's store as the machine keeps it: what processes wrote, and what power failures leave.
//!
//! S1. `write` lands in the shared mapping at once: a process that dies afterwards loses none of it.
//! S2. What was written before a `sync` was asked for is durable once that sync has completed.
//! S3. A power failure takes every sector with unsynced writes back to some moment between its last
//!     durable state and now, each sector on its own: lost, torn and reordered writes in one.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_cluster::{FRAME_HEADER_BYTES, FrameId};

use crate::chance::Chance;

const SECTOR_BYTES: usize = 512;

/// The frames of one backup's machine. Outlives every process.
#[derive(Debug)]
pub struct Store {
    frame_bytes: usize,
    frames: Vec<Frame>,
    /// Without it a power failure must not be simulated; recording what it could undo costs time.
    tracks_power: bool,
}

#[derive(Debug, Default)]
struct Frame {
    /// Empty until first written.
    bytes: Vec<u8>,
    /// One past the last byte ever written.
    high: usize,
    /// Unsynced writes, oldest first, with what they replaced.
    undo: Vec<Replaced>,
    /// How many writes left `undo` because a sync covered them.
    durable_writes: usize,
    /// A sync failed: by S2 nothing later can make the frame durable again.
    sync_failed: bool,
}

#[derive(Debug)]
struct Replaced {
    offset: usize,
    old: Vec<u8>,
}

/// Counts a frame's writes at the moment a sync is asked for: what that sync covers.
#[derive(Clone, Copy, Debug)]
pub struct SyncMark(usize);

impl Store {
    /// An empty store of `frames` frames for segments of `segment_bytes`.
    pub fn new(frames: u32, segment_bytes: u32, tracks_power: bool) -> Store {
        Store {
            frame_bytes: (FRAME_HEADER_BYTES + segment_bytes) as usize,
            frames: (0..frames).map(|_| Frame::default()).collect(),
            tracks_power,
        }
    }

    /// The header of every frame, as a driver reads them at start.
    pub fn headers(&self) -> Vec<(FrameId, Bytes)> {
        let header = FRAME_HEADER_BYTES as usize;
        let zeros = Bytes::from(vec![0; header]);
        let of = |frame: &Frame| match frame.bytes.get(..header) {
            Some(bytes) => Bytes::copy_from_slice(bytes),
            None => zeros.clone(),
        };
        (0u32..)
            .map(FrameId)
            .zip(self.frames.iter().map(of))
            .collect()
    }

    /// S1.
    pub fn write(&mut self, frame: FrameId, offset: u32, bytes: &[u8]) {
        let size = self.frame_bytes;
        let frame = &mut self.frames[frame.0 as usize];
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        assert!(
            to <= size,
            "a backup wrote past the end of a frame: {to} of {size}"
        );
        if frame.bytes.is_empty() {
            frame.bytes = vec![0; size];
        }
        if self.tracks_power {
            frame.undo.push(Replaced {
                offset: from,
                old: frame.bytes[from..to].to_vec(),
            });
        }
        frame.bytes[from..to].copy_from_slice(bytes);
        frame.high = frame.high.max(to);
    }

    /// Begins a sync of what the frame holds now.
    pub fn sync_begin(&self, frame: FrameId) -> SyncMark {
        let frame = &self.frames[frame.0 as usize];
        SyncMark(frame.durable_writes + frame.undo.len())
    }

    /// Completes a sync; false if an earlier one failed. Syncs of one frame complete in any order.
    pub fn sync_end(&mut self, frame: FrameId, mark: SyncMark) -> bool {
        let frame = &mut self.frames[frame.0 as usize];
        if frame.sync_failed {
            return false;
        }
        let covered = mark
            .0
            .saturating_sub(frame.durable_writes)
            .min(frame.undo.len());
        frame.undo.drain(..covered);
        frame.durable_writes += covered;
        true
    }

    /// The device lost what it was told to sync (and says so once).
    pub fn sync_fails(&mut self, frame: FrameId) {
        self.frames[frame.0 as usize].sync_failed = true;
    }

    /// Bytes of a frame, as the mapping shows them now.
    pub fn read(&self, frame: FrameId, offset: u32, length: u32) -> Bytes {
        let (from, to) = (offset as usize, offset as usize + length as usize);
        assert!(
            to <= self.frame_bytes,
            "a backup read past the end of a frame"
        );
        let bytes = &self.frames[frame.0 as usize].bytes;
        if bytes.is_empty() {
            return Bytes::from(vec![0; length as usize]);
        }
        Bytes::copy_from_slice(&bytes[from..to])
    }

    /// S3, for every frame. Returns how many sectors lost something.
    pub fn power_failure(&mut self, chance: &mut Chance) -> u64 {
        assert!(
            self.tracks_power,
            "this store does not remember what a power failure undoes"
        );
        let mut hurt = 0;
        for frame in &mut self.frames {
            let writes = frame.undo.len();
            let mut cuts: BTreeMap<usize, usize> = BTreeMap::new();
            for (index, replaced) in std::mem::take(&mut frame.undo)
                .into_iter()
                .enumerate()
                .rev()
            {
                let (from, to) = (replaced.offset, replaced.offset + replaced.old.len());
                let mut at = from;
                while at < to {
                    let sector = at / SECTOR_BYTES;
                    let end = ((sector + 1) * SECTOR_BYTES).min(to);
                    let cut = *cuts
                        .entry(sector)
                        .or_insert_with(|| match chance.below(10) {
                            0..=3 => 0,
                            4..=6 => writes,
                            _ => chance.below(writes as u64 + 1) as usize,
                        });
                    if index >= cut {
                        frame.bytes[at..end].copy_from_slice(&replaced.old[at - from..end - from]);
                    }
                    at = end;
                }
            }
            hurt += cuts.values().filter(|&&cut| cut < writes).count() as u64;
        }
        hurt
    }

    /// Flips one bit of something that was written; false if nothing was.
    pub fn flip_bit(&mut self, chance: &mut Chance) -> bool {
        let written: Vec<usize> = (0..self.frames.len())
            .filter(|&f| self.frames[f].high > 0)
            .collect();
        if written.is_empty() {
            return false;
        }
        let frame = &mut self.frames[*chance.pick(&written)];
        // Mostly the segment: headers are a few dozen bytes and would hardly ever be hit otherwise,
        // so one flip in eight aims at them.
        let header = FRAME_HEADER_BYTES as usize;
        let at = if frame.high <= header || chance.percent(12) {
            chance.below(frame.high.min(128) as u64) as usize
        } else {
            chance.between(header as u64, frame.high as u64 - 1) as usize
        };
        frame.bytes[at] ^= 1 << chance.below(8);
        true
    }

    /// Flips a bit at one place, for scenarios.
    pub fn flip_bit_at(&mut self, frame: FrameId, offset: u32) {
        let frame = &mut self.frames[frame.0 as usize];
        if let Some(byte) = frame.bytes.get_mut(offset as usize) {
            *byte ^= 0x10;
        }
    }

    /// Frames that were ever written.
    pub fn written(&self) -> Vec<FrameId> {
        let used = |&f: &u32| self.frames[f as usize].high > 0;
        (0..self.frames.len() as u32)
            .filter(used)
            .map(FrameId)
            .collect()
    }

    /// A new disk in place of the old one.
    pub fn wipe(&mut self) {
        self.frames
            .iter_mut()
            .for_each(|frame| *frame = Frame::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_writes_survive_and_unsynced_sectors_may_go_back() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut store = Store::new(2, 8192, true);
            store.write(FrameId(1), 0, &[1; 1024]);
            let mark = store.sync_begin(FrameId(1));
            assert!(store.sync_end(FrameId(1), mark));
            store.write(FrameId(1), 256, &[2; 1024]);
            store.power_failure(&mut Chance::new(seed, 0));
            let after = store.read(FrameId(1), 0, 1280);
            assert!(after[..256].iter().all(|&b| b == 1));
            for sector in after[256..].chunks(256) {
                assert!(sector.iter().all(|&b| b == sector[0]), "a sector is atomic");
            }
            lost += u32::from(after[256..1024].contains(&1));
        }
        assert!(lost > 10, "power failures must hurt: {lost} of 50");
    }

    #[test]
    fn overlapping_syncs_cover_what_they_were_asked_for() {
        let mut store = Store::new(1, 8192, true);
        store.write(FrameId(0), 0, &[1; 512]);
        let first = store.sync_begin(FrameId(0));
        store.write(FrameId(0), 512, &[1; 512]);
        let second = store.sync_begin(FrameId(0));
        store.write(FrameId(0), 1024, &[1; 512]);
        assert!(store.sync_end(FrameId(0), second));
        assert!(store.sync_end(FrameId(0), first));
        for seed in 0..20 {
            store.power_failure(&mut Chance::new(seed, 0));
        }
        let after = store.read(FrameId(0), 0, 1536);
        assert!(after[..1024].iter().all(|&b| b == 1));
        assert!(
            after[1024..].iter().all(|&b| b == 0),
            "nothing made the third write durable"
        );
    }

    #[test]
    fn a_failed_sync_stays_failed() {
        let mut store = Store::new(1, 8192, true);
        store.write(FrameId(0), 0, &[1; 512]);
        store.sync_fails(FrameId(0));
        let mark = store.sync_begin(FrameId(0));
        assert!(!store.sync_end(FrameId(0), mark));
    }
}
