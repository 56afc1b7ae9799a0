//! Hash slots, exactly as in Redis Cluster: CRC16 (XMODEM) of the key, or of its `{tag}`, mod 16384.

/// How many slots there are.
pub const SLOTS: u16 = 16384;

/// Statistics are kept for so many equal parts of the slots: enough to see where a skewed log is heavy, and so few that
/// every heartbeat can bring them.
pub const SLOT_PARTS: usize = 64;
const SLOTS_PER_PART: u16 = SLOTS / SLOT_PARTS as u16;
const _: () = assert!(SLOTS_PER_PART as usize * SLOT_PARTS == SLOTS as usize);

/// One of the 16384 hash slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Slot(pub u16);

impl Slot {
    /// The slot of `key`. Only the part between the first `{` and the next `}` counts if it is not empty.
    pub fn of(key: &[u8]) -> Slot {
        let tag = match has_brace(key) {
            true => tag_of(key),
            false => key,
        };
        Slot(crc16(tag) % SLOTS)
    }

    /// Which of the `SLOT_PARTS` it is in.
    pub fn part(self) -> usize {
        usize::from(self.0 / SLOTS_PER_PART)
    }
}

/// A contiguous, inclusive range of slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotRange {
    pub first: Slot,
    pub last: Slot,
}

impl SlotRange {
    /// Every slot.
    pub const ALL: SlotRange = SlotRange {
        first: Slot(0),
        last: Slot(SLOTS - 1),
    };

    /// True if `slot` lies in the range.
    pub fn contains(&self, slot: Slot) -> bool {
        self.first <= slot && slot <= self.last
    }

    /// How many slots the range holds.
    pub fn slots(&self) -> u32 {
        u32::from(self.last.0) - u32::from(self.first.0) + 1
    }

    /// The slots that are in both.
    pub fn common(self, other: SlotRange) -> Option<SlotRange> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(SlotRange { first, last })
    }
}

/// `ranges` without the slots of `taken`.
pub fn without(ranges: &[SlotRange], taken: &[SlotRange]) -> Vec<SlotRange> {
    let mut left: Vec<SlotRange> = ranges.to_vec();
    for cut in taken {
        left = (left.into_iter())
            .flat_map(|range| {
                let Some(hit) = range.common(*cut) else {
                    return [Some(range), None];
                };
                let below = (range.first < hit.first).then(|| SlotRange {
                    first: range.first,
                    last: Slot(hit.first.0 - 1),
                });
                let above = (hit.last < range.last).then(|| SlotRange {
                    first: Slot(hit.last.0 + 1),
                    last: range.last,
                });
                [below, above]
            })
            .flatten()
            .collect();
    }
    left
}

/// `CRC16_TABLES[n]`: what a byte does to the checksum when `n` more bytes come after it. With eight of
/// them, eight bytes are looked up independently of one another instead of one after the other: the slot of
/// every new key is computed, and of every key of every request.
const CRC16_TABLES: [[u16; 256]; 8] = {
    let mut tables = [[0u16; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut i = 0;
        while i < 256 {
            let crc = tables[n - 1][i];
            tables[n][i] = (crc << 8) ^ tables[0][(crc >> 8) as usize];
            i += 1;
        }
        n += 1;
    }
    tables
};

/// What stands between the first brace and the next closing one, if anything does; otherwise the key.
fn tag_of(key: &[u8]) -> &[u8] {
    let mut parts = key.splitn(2, |&b| b == b'{').skip(1);
    let inner = parts.next().and_then(|rest| {
        let end = rest.iter().position(|&b| b == b'}')?;
        (end > 0).then(|| &rest[..end])
    });
    inner.unwrap_or(key)
}

fn crc16(bytes: &[u8]) -> u16 {
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(0u16, |crc, eight| {
        let [high, low] = crc.to_be_bytes();
        CRC16_TABLES[7][usize::from(eight[0] ^ high)]
            ^ CRC16_TABLES[6][usize::from(eight[1] ^ low)]
            ^ CRC16_TABLES[5][usize::from(eight[2])]
            ^ CRC16_TABLES[4][usize::from(eight[3])]
            ^ CRC16_TABLES[3][usize::from(eight[4])]
            ^ CRC16_TABLES[2][usize::from(eight[5])]
            ^ CRC16_TABLES[1][usize::from(eight[6])]
            ^ CRC16_TABLES[0][usize::from(eight[7])]
    });
    rest.iter().fold(crc, |crc, &b| {
        (crc << 8) ^ CRC16_TABLES[0][usize::from((crc >> 8) as u8 ^ b)]
    })
}

/// True if `key` has an opening brace. Looked for in all bytes of eight at once: hardly any key has one.
fn has_brace(key: &[u8]) -> bool {
    let (eights, rest) = key.as_chunks::<8>();
    let found = eights.iter().fold(0u64, |found, eight| {
        // A byte of `x` is zero where there is a brace; this sets its top bit, and that of no byte below.
        let x = u64::from_le_bytes(*eight) ^ 0x7B7B_7B7B_7B7B_7B7B;
        found | (x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080)
    });
    found != 0 || rest.contains(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_match_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // Eight bytes at a time and the rest agree with one at a time, wherever a brace stands.
        let long: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(37)).collect();
        for len in 0..long.len() {
            let each = long[..len].iter().fold(0u16, |crc, &b| {
                (crc << 8) ^ CRC16_TABLES[0][usize::from((crc >> 8) as u8 ^ b)]
            });
            assert_eq!(crc16(&long[..len]), each);
            let mut key = vec![b'x'; len];
            assert!(!has_brace(&key));
            key.extend(b"{a}");
            assert_eq!(Slot::of(&key), Slot::of(b"a"));
            key.extend([b'y'; 9]);
            assert_eq!(Slot::of(&key), Slot::of(b"a"));
        }
        assert_eq!(Slot::of(b"foo"), Slot(12182));
        assert_eq!(
            Slot::of(b"{user1000}.following"),
            Slot::of(b"{user1000}.followers")
        );
        assert_eq!(Slot::of(b"foo{}{bar}"), Slot(crc16(b"foo{}{bar}") % SLOTS));
        assert_eq!(Slot::of(b"foo{{bar}}zap"), Slot(crc16(b"{bar") % SLOTS));
        assert_eq!(Slot::of(b"foo{bar}{zap}"), Slot::of(b"bar"));
    }
}
