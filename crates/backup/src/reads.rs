//! Reading whole replicas: which reads wait, which are under way, and which replicas are still in
//! memory because several recovery masters ask for the same segments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_cluster::FrameId;
use holdfast_wire::Certificate;

use crate::contents::Contents;

/// Reads that wait and reads under way. A frame waits at most once, so both are bounded by the frames.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: VecDeque<FrameId>,
    wanted: BTreeSet<FrameId>,
    under_way: BTreeMap<u64, Reading>,
}

/// What a read under way was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub frame: FrameId,
    /// The replica it is about: the frame may hold another one when the read completes.
    pub birth: u64,
    pub certificate: Certificate,
}

impl Reads {
    /// Asks for the replica in a frame, unless that has been asked already.
    pub fn want(&mut self, frame: FrameId) {
        if self.wanted.insert(frame) {
            self.waiting.push_back(frame);
        }
    }

    /// Nobody waits for a read.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty()
    }

    /// The next frame to read, while fewer than `in_flight_max` reads are under way.
    pub fn next(&mut self, in_flight_max: u32) -> Option<FrameId> {
        if self.under_way.len() >= in_flight_max as usize {
            return None;
        }
        self.waiting.pop_front()
    }

    pub fn begin(&mut self, token: u64, reading: Reading) {
        self.under_way.insert(token, reading);
    }

    /// Nothing to read after all.
    pub fn skip(&mut self, frame: FrameId) {
        self.wanted.remove(&frame);
    }

    pub fn end(&mut self, token: u64) -> Option<Reading> {
        let reading = self.under_way.remove(&token)?;
        self.wanted.remove(&reading.frame);
        Some(reading)
    }
}

/// Verified bytes of replicas, the least recently used given up first.
#[derive(Debug)]
pub(crate) struct Cache {
    limit_bytes: u64,
    used_bytes: u64,
    entries: BTreeMap<FrameId, Cached>,
    order: VecDeque<FrameId>,
}

#[derive(Debug)]
struct Cached {
    /// Of the replica that the bytes are of.
    birth: u64,
    bytes: Bytes,
    /// Outside the bound: as large as an eighth of the bytes if entries are small.
    contents: Contents,
}

impl Cache {
    pub fn new(limit_bytes: u64) -> Cache {
        Cache {
            limit_bytes,
            used_bytes: 0,
            entries: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// With what is known of the entries.
    pub fn used_bytes(&self) -> u64 {
        let contents = self.entries.values().map(|it| it.contents.bytes());
        self.used_bytes + contents.sum::<u64>()
    }

    /// At least `length` verified bytes of the replica `birth` in `frame`.
    pub fn get(&mut self, frame: FrameId, birth: u64, length: u32) -> Option<Bytes> {
        let cached = self.entries.get(&frame)?;
        if cached.birth != birth || cached.bytes.len() < length as usize {
            return None;
        }
        let bytes = cached.bytes.clone();
        self.order.retain(|&other| other != frame);
        self.order.push_back(frame);
        Some(bytes)
    }

    /// What is known of the entries in just these bytes.
    pub fn contents(&mut self, frame: FrameId, bytes: &Bytes) -> Option<&mut Contents> {
        let cached = self.entries.get_mut(&frame)?;
        let same = cached.bytes.as_ptr() == bytes.as_ptr() && cached.bytes.len() == bytes.len();
        same.then_some(&mut cached.contents)
    }

    pub fn put(&mut self, frame: FrameId, birth: u64, bytes: Bytes) {
        self.drop_frame(frame);
        let length = bytes.len() as u64;
        if length > self.limit_bytes {
            return;
        }
        while self.used_bytes + length > self.limit_bytes {
            let oldest = *self.order.front().expect("used bytes are those of entries");
            self.drop_frame(oldest);
        }
        self.used_bytes += length;
        let cached = Cached {
            birth,
            bytes,
            contents: Contents::default(),
        };
        self.entries.insert(frame, cached);
        self.order.push_back(frame);
    }

    pub fn drop_frame(&mut self, frame: FrameId) {
        if let Some(cached) = self.entries.remove(&frame) {
            self.used_bytes -= cached.bytes.len() as u64;
            self.order.retain(|&other| other != frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_to_its_bound_and_gives_up_the_oldest() {
        let mut cache = Cache::new(100);
        for frame in 0..5 {
            cache.put(FrameId(frame), 1, Bytes::from(vec![0; 30]));
            assert!(cache.used_bytes() <= 100);
            if frame >= 1 {
                assert!(
                    cache.get(FrameId(0), 1, 30).is_some(),
                    "used again and again"
                );
            }
        }
        assert!(cache.get(FrameId(1), 1, 30).is_none());
        assert!(
            cache.get(FrameId(4), 2, 30).is_none(),
            "another replica's bytes"
        );
        assert!(cache.get(FrameId(4), 1, 31).is_none(), "too short");
        cache.put(FrameId(9), 1, Bytes::from(vec![0; 101]));
        assert!(cache.get(FrameId(9), 1, 1).is_none());
    }

    #[test]
    fn a_frame_is_read_once_for_all_who_want_it() {
        let mut reads = Reads::default();
        reads.want(FrameId(3));
        reads.want(FrameId(3));
        reads.want(FrameId(4));
        let frame = reads.next(1).unwrap();
        let certificate = Certificate::default();
        reads.begin(
            7,
            Reading {
                frame,
                birth: 1,
                certificate,
            },
        );
        reads.want(FrameId(3));
        assert_eq!(reads.next(1), None);
        assert_eq!(reads.end(7).unwrap().frame, FrameId(3));
        assert!(reads.end(7).is_none());
        assert_eq!(reads.next(1), Some(FrameId(4)));
        assert_eq!(reads.next(1), None);
    }
}
