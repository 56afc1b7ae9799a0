//! Which slots the entries of a replica concern: looked up once, however many recovery masters take part of it.
//!
//! Telling an entry's slot takes reading its header and hashing its key, some 40 ns. A log that is recovered by a hundred masters would have
//! each of its segments looked through a hundred times; so what was found is kept beside the bytes, 12 bytes an entry, and
//! whoever comes next goes through that, about a nanosecond an entry.

use bytes::{Bytes, BytesMut};
use holdfast_format::{BadEntry, Entries, SlotRange};

/// Where an entry lies that concerns the slots from `first` to `last`.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: u16,
    last: u16,
    offset: u32,
    length: u32,
}

/// What is known of one verified replica's entries. It is looked through part by part, as its parts are asked for.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    places: Vec<Place>,
    /// Where each part ends: its offset, and so many places are before it.
    ends: Vec<(u32, u32)>,
}

impl Contents {
    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        (self.places.capacity() * size_of::<Place>()
            + self.ends.capacity() * size_of::<(u32, u32)>()) as u64
    }

    /// Of the part that begins at `at`, the entries that concern `ranges`, and where the next part begins. `at` is 0 or
    /// where an earlier part ended. A part is about `part_bytes` of `bytes`, at least one entry; what lies together in it is
    /// handed out without a copy.
    ///
    /// `bytes` have been verified as a whole, and each recovery master verifies what it gets entry by entry: doing so
    /// here as well would cost each byte's checksum once more for every recovery master.
    pub fn cut(
        &mut self,
        bytes: &Bytes,
        at: usize,
        ranges: &[SlotRange],
        part_bytes: usize,
    ) -> Result<(Bytes, usize), BadEntry> {
        let examined = |it: &Contents| it.ends.last().map_or(0, |&(end, _)| end as usize);
        while examined(self) <= at && examined(self) < bytes.len() {
            self.look_through(bytes, examined(self), part_bytes)?;
        }
        let known = self.ends.partition_point(|&(end, _)| end as usize <= at);
        let begin = known.checked_sub(1).map_or(0, |before| self.ends[before].0);
        assert!(begin as usize == at, "parts begin where parts end");
        let Some(&(end, places_end)) = self.ends.get(known) else {
            return Ok((Bytes::new(), at)); // All of it has been handed out.
        };
        let places_from = known.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let places = &self.places[places_from as usize..places_end as usize];
        Ok((pick(bytes, places, ranges), end as usize))
    }

    fn look_through(
        &mut self,
        bytes: &Bytes,
        at: usize,
        part_bytes: usize,
    ) -> Result<(), BadEntry> {
        let before = self.places.len();
        let mut entries = Entries::trusted(&bytes[at..]);
        while entries.offset() < part_bytes {
            let Some(located) = entries.next() else {
                break;
            };
            let located = located.map_err(|bad| {
                self.places.truncate(before);
                BadEntry {
                    offset: at + bad.offset,
                    ..bad
                }
            })?;
            if let Some(slots) = located.entry.slots() {
                self.places.push(Place {
                    first: slots.first.0,
                    last: slots.last.0,
                    offset: (at + located.offset) as u32,
                    length: located.length as u32,
                });
            }
        }
        let end = (at + entries.offset()) as u32;
        self.ends.push((end, self.places.len() as u32));
        Ok(())
    }
}

/// The bytes of those places that concern `ranges`, in order.
fn pick(bytes: &Bytes, places: &[Place], ranges: &[SlotRange]) -> Bytes {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for place in places {
        let concerns =
            |range: &SlotRange| place.first <= range.last.0 && range.first.0 <= place.last;
        if !ranges.iter().any(concerns) {
            continue;
        }
        let from = place.offset as usize;
        let to = from + place.length as usize;
        match runs.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => runs.push((from, to)),
        }
    }
    match runs[..] {
        [] => Bytes::new(),
        [(from, to)] => bytes.slice(from..to),
        _ => {
            let length = runs.iter().map(|(from, to)| to - from).sum();
            let mut part = BytesMut::with_capacity(length);
            for (from, to) in runs {
                part.extend_from_slice(&bytes[from..to]);
            }
            part.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::{
        Entry, Expiry, Namespace, Object, RangeTombstone, SegmentId, Slot, Version,
    };

    /// Objects of different lengths, and range tombstones among them.
    fn replica() -> Bytes {
        let mut bytes = Vec::new();
        let mut add = |entry: Entry<'_>| {
            let mut out = vec![0; entry.encoded_len()];
            let length = entry.encode(&mut out);
            bytes.extend_from_slice(&out[..length]);
        };
        for number in 0..300_u64 {
            let key = format!("session{number}");
            let value = vec![7; (number * 13 % 37) as usize];
            let version = Version(number + 1);
            add(Entry::Object(Object {
                namespace: Namespace(0),
                key: key.as_bytes(),
                value: &value,
                version,
                expiry: Expiry::default(),
                shadowing: false,
            }));
            if number % 100 == 50 {
                let range = range(number as u16 * 40, number as u16 * 50);
                add(Entry::RangeTombstone(RangeTombstone {
                    namespace: Namespace(0),
                    range,
                    up_to: version,
                    birth: SegmentId(1),
                }));
            }
        }
        Bytes::from(bytes)
    }

    fn range(first: u16, last: u16) -> SlotRange {
        SlotRange {
            first: Slot(first),
            last: Slot(last),
        }
    }

    /// What should be handed out: every entry that concerns the ranges, in order.
    fn wanted(bytes: &Bytes, ranges: &[SlotRange]) -> Vec<u8> {
        let located = Entries::new(bytes).map(|it| it.expect("just written"));
        located
            .filter(|it| it.entry.concerns(ranges))
            .flat_map(|it| bytes[it.offset..it.offset + it.length].to_vec())
            .collect()
    }

    const PART_BYTES: usize = 500;

    #[test]
    fn every_requester_gets_its_part_in_whatever_order_they_ask() {
        let bytes = replica();
        let all = [
            vec![range(0, 16_383)],
            vec![range(0, 8_000)],
            vec![range(8_001, 16_383)],
            vec![range(100, 200), range(6_000, 6_100), range(16_000, 16_383)],
            vec![range(5, 5)],
        ];
        let mut contents = Contents::default();
        let mut got = vec![(Vec::new(), 0); all.len()];
        // The third begins last and the fourth goes twice as fast as the others.
        for turn in 0.. {
            for (requester, (part, at)) in got.iter_mut().enumerate() {
                let steps = match requester {
                    2 => u32::from(turn > 5),
                    3 => 2,
                    _ => 1,
                };
                for _ in 0..steps {
                    let ranges = &all[requester];
                    let (more, next) = contents.cut(&bytes, *at, ranges, PART_BYTES).unwrap();
                    assert!(next > *at || next == bytes.len());
                    part.extend_from_slice(&more);
                    *at = next;
                }
            }
            if got.iter().all(|(_, at)| *at == bytes.len()) {
                break;
            }
        }
        for ((part, _), ranges) in got.iter().zip(&all) {
            assert_eq!(part, &wanted(&bytes, ranges), "{ranges:?}");
        }
        assert_eq!(contents.bytes() / 12 / 300, 1, "12 bytes an entry, about");
    }

    /// The bytes were forgotten, and with them what was known.
    #[test]
    fn who_is_half_done_goes_on_with_new_contents() {
        let bytes = replica();
        let ranges = [range(0, 9_000)];
        let mut got = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let mut contents = Contents::default();
            let (part, next) = contents.cut(&bytes, at, &ranges, PART_BYTES).unwrap();
            got.extend_from_slice(&part);
            at = next;
            // Nobody is given less because somebody was further.
            let (first, _) = contents.cut(&bytes, 0, &ranges, PART_BYTES).unwrap();
            assert!(!first.is_empty());
            assert!(wanted(&bytes, &ranges).starts_with(&first));
        }
        assert_eq!(got, wanted(&bytes, &ranges));
    }

    #[test]
    fn what_makes_no_sense_is_told_each_time() {
        let mut bytes = replica().to_vec();
        let at = bytes.len();
        bytes.extend_from_slice(&[0xFF; 64]);
        let bytes = Bytes::from(bytes);
        let mut contents = Contents::default();
        for _ in 0..2 {
            let mut from = 0;
            let bad = loop {
                match contents.cut(&bytes, from, &[range(0, 16_383)], PART_BYTES) {
                    Ok((_, next)) => from = next,
                    Err(bad) => break bad,
                }
            };
            assert_eq!(bad.offset, at);
        }
    }
}
