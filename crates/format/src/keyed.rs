//! The fixed part of an entry that has a key, read where it stands.
//!
//! A look-up asks of most entries only whether they belong to its key, the cleaner how long they are and
//! what their hash is. Decoding all of an `Entry` for that would cost more than the look-up itself.

use crate::checksum::crc32c;
use crate::entry::{
    FLAG_LONG, FLAG_SHADOWING, HEADER_BYTES, LONG_HEADER_BYTES, OBJECT_FLAGS, TYPE_MASK,
    TYPE_OBJECT, TYPE_TOMBSTONE, TYPE_TOUCH, header_bytes, long_expiry,
};
use crate::{ClusterMs, Expiry, KeyHash, Namespace, Object, Version};

/// An object, touch or tombstone in memory whose entries were checked when they came in.
#[derive(Clone, Copy, Debug)]
pub struct Keyed<'a> {
    fixed: &'a [u8; HEADER_BYTES],
    /// The entry and whatever follows it.
    bytes: &'a [u8],
}

impl<'a> Keyed<'a> {
    /// The entry at the start of `bytes`; they may go on after it. `None` if it is not one with a key, or
    /// if its fixed part is not all there.
    #[inline]
    pub fn at(bytes: &'a [u8]) -> Option<Keyed<'a>> {
        let fixed = bytes.first_chunk()?;
        let keyed = Keyed { fixed, bytes };
        matches!(keyed.kind(), TYPE_OBJECT | TYPE_TOUCH | TYPE_TOMBSTONE).then_some(keyed)
    }

    /// The object at the start of `bytes`, if there is one and `Entry::decode` would find nothing wrong with it; what is
    /// wrong, or what else it is, that one says. For untrusted bytes: nearly all of what a recovery reads are objects,
    /// of which it needs the key, and whose other fields come with the bytes.
    #[inline]
    pub fn checked_object(bytes: &'a [u8]) -> Option<Keyed<'a>> {
        let keyed = Keyed::at(bytes).filter(Keyed::is_object)?;
        let flags = keyed.fixed[4] & !TYPE_MASK;
        let entry = bytes.get(..keyed.length())?;
        let found = u32::from_le_bytes(*keyed.fixed.first_chunk().expect("24 bytes"));
        let is_good = flags & !OBJECT_FLAGS == 0
            && crc32c(&entry[4..]) == found
            && (flags & FLAG_LONG == 0 || long_expiry(entry, flags, keyed.deadline()).is_ok());
        is_good.then_some(keyed)
    }

    /// True if it is an object.
    #[inline]
    pub fn is_object(&self) -> bool {
        self.kind() == TYPE_OBJECT
    }

    /// True if older copies or touches of the key may outlive it on replicas.
    #[inline]
    pub fn is_shadowing(&self) -> bool {
        self.fixed[4] & FLAG_SHADOWING != 0
    }

    #[inline]
    pub fn namespace(&self) -> Namespace {
        Namespace(self.fixed[5])
    }

    #[inline]
    pub fn version(&self) -> Version {
        Version(self.eight_at(11) & ((1 << 56) - 1))
    }

    /// Of objects and touches: their own deadline, which a newer touch may have moved. `None`: never.
    #[inline]
    pub fn deadline(&self) -> Option<ClusterMs> {
        let ms = self.eight_at(16) >> 16;
        (ms != 0).then_some(ClusterMs(ms))
    }

    /// How long the entry is.
    #[inline]
    pub fn length(&self) -> usize {
        // Touches and tombstones have 0 where objects have the length of their value.
        let value = u32::from_le_bytes([self.fixed[8], self.fixed[9], self.fixed[10], 0]);
        self.header_bytes() + self.key_bytes() + value as usize
    }

    /// Panics if the key is not all there.
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        let header = self.header_bytes();
        &self.bytes[header..header + self.key_bytes()]
    }

    #[inline]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.namespace(), self.key())
    }

    /// True if this entry belongs to `key`.
    #[inline]
    pub fn is_of(&self, namespace: Namespace, key: &[u8]) -> bool {
        let header = self.header_bytes();
        self.namespace() == namespace
            && self.key_bytes() == key.len()
            && (self.bytes.get(header..header + key.len())).is_some_and(|own| same(own, key))
    }

    /// If it is an object: all of it. Panics if it is not all there.
    #[inline]
    pub fn object(&self) -> Option<Object<'a>> {
        if !self.is_object() {
            return None;
        }
        let flags = self.fixed[4] & !TYPE_MASK;
        let header = self.header_bytes();
        let (fixed, rest) = self.bytes[..self.length()].split_at(header);
        let (key, value) = rest.split_at(self.key_bytes());
        let deadline = self.deadline();
        let expiry = match flags & FLAG_LONG {
            0 => Expiry {
                deadline,
                ..Expiry::default()
            },
            _ => long_expiry(fixed, flags, deadline).ok()?,
        };
        Some(Object {
            namespace: self.namespace(),
            key,
            value,
            version: self.version(),
            expiry,
            shadowing: self.is_shadowing(),
        })
    }

    #[inline]
    fn kind(&self) -> u8 {
        self.fixed[4] & TYPE_MASK
    }

    #[inline]
    fn header_bytes(&self) -> usize {
        match self.kind() {
            TYPE_TOUCH => LONG_HEADER_BYTES,
            _ => header_bytes(self.fixed[4]),
        }
    }

    #[inline]
    fn key_bytes(&self) -> usize {
        usize::from(u16::from_le_bytes([self.fixed[6], self.fixed[7]]))
    }

    #[inline]
    fn eight_at(&self, at: usize) -> u64 {
        let eight = self.fixed[at..at + 8].try_into();
        u64::from_le_bytes(eight.expect("eight of the fixed bytes"))
    }
}

/// True if two keys of the same length are the same. In line, because keys are short: calling the library's
/// comparison takes as long as comparing.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    let eight = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    match (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        (Some(a_last), Some(b_last)) => {
            let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
            let differ = pairs.fold(eight(a_last) ^ eight(b_last), |differ, (a, b)| {
                differ | (eight(a) ^ eight(b))
            });
            differ == 0
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, SegmentId, Tombstone, Touch};

    /// What is read where it stands is what decoding gives.
    #[test]
    fn agrees_with_decoding() {
        let (namespace, key, version) = (Namespace(3), &b"sess:1"[..], Version((1 << 55) + 7));
        let object = |expiry, value| Object {
            namespace,
            key,
            value,
            version,
            expiry,
            shadowing: true,
        };
        let idle = Expiry {
            idle_ms: Some(5),
            ..Expiry::at(ClusterMs((1 << 47) + 3))
        };
        let entries = [
            Entry::Object(object(Expiry::default(), &b"value"[..])),
            Entry::Object(object(idle, &[9; 600][..])),
            Entry::Tombstone(Tombstone {
                namespace,
                key,
                version,
                birth: SegmentId(0),
            }),
            Entry::Touch(Touch {
                namespace,
                key,
                version,
                number: 9,
                deadline: Some(ClusterMs(77)),
                shadowing: false,
            }),
        ];
        for entry in entries {
            let mut bytes = Vec::new();
            entry.append_to(&mut bytes);
            let length = bytes.len();
            bytes.extend([0xFF; 3]);
            let keyed = Keyed::at(&bytes).unwrap();
            assert_eq!((keyed.length(), keyed.version()), (length, version));
            assert!(keyed.is_of(namespace, key) && !keyed.is_of(Namespace(4), key));
            assert!(!keyed.is_of(namespace, b"sess:2") && !keyed.is_of(namespace, b"sess:12"));
            assert_eq!(Some(keyed.hash()), entry.key_hash());
            let (deadline, shadowing) = match entry {
                Entry::Object(object) => (object.expiry.deadline, object.shadowing),
                Entry::Touch(touch) => (touch.deadline, touch.shadowing),
                _ => (None, false),
            };
            assert_eq!(
                (keyed.deadline(), keyed.is_shadowing()),
                (deadline, shadowing)
            );
            match entry {
                Entry::Object(object) => assert_eq!(keyed.object(), Some(object)),
                _ => assert!(!keyed.is_object() && keyed.object().is_none()),
            }
            // Checking agrees with decoding, too, also when something is wrong.
            for place in 0..length {
                for change in [0u8, 1, 0x10, 0x20, 0x40, 0x80] {
                    let mut bytes = bytes.clone();
                    bytes[place] ^= change;
                    if change > 1 && place == 4 {
                        let crc = crc32c(&bytes[4..length]);
                        bytes[..4].copy_from_slice(&crc.to_le_bytes());
                    }
                    let decoded = match Entry::decode(&bytes) {
                        Ok((Entry::Object(object), length)) => Some((object, length)),
                        _ => None,
                    };
                    let checked = Keyed::checked_object(&bytes)
                        .map(|keyed| (keyed.object().expect("an object"), keyed.length()));
                    assert_eq!(checked, decoded);
                    if place > 40 {
                        break; // All the same.
                    }
                }
            }
            for end in 0..length.min(50) {
                assert!(Keyed::checked_object(&bytes[..end]).is_none());
            }
        }
        for len in 0..40 {
            let (a, mut b) = (vec![7; len], vec![7; len]);
            assert!(same(&a, &b));
            for place in 0..len {
                b[place] ^= 1;
                assert!(!same(&a, &b), "{len} bytes, another at {place}");
                b[place] ^= 1;
            }
        }
        assert!(Keyed::at(&[0; 24]).is_none() && Keyed::at(&[TYPE_OBJECT; 23]).is_none());
    }
}
