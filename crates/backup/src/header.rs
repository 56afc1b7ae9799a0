//! The first `FRAME_HEADER_BYTES` of a frame: which replica it holds, and what was promised about it.
//!
//! ```text
//!  0     HeaderSlot with an even sequence number (80 bytes), rest zero
//!  2048  HeaderSlot with an odd one
//!
//!  0 magic "hfframe1"   8 sequence    16 log       24 segment      32 epoch   40 fence
//!  48 expiry ceiling   56 certificate length, checksum   64 state  65 synced  66 zero (10)
//!  76 CRC32C of bytes 0..76                       (integers are little-endian)
//! ```
//!
//! H1. The slot with the higher sequence number counts; writing takes the other one. So a torn write
//!     leaves what stood before, and the two never share a disk sector.
//! H2. With `synced` (acknowledgements wait for the disk) a slot is overwritten only when the other
//!     one has been synced, and a slot that says `Closed` is written only after a sync of all its
//!     bytes. So after a power failure, either the newer slot's bytes verify, or it says `Open` and
//!     those of the older one do.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_cluster::FRAME_HEADER_BYTES;
use holdfast_format::{ClusterMs, Epoch, LogId, SegmentId, crc32c};
use holdfast_wire::Certificate;

const MAGIC: [u8; 8] = *b"hfframe1";
const SLOT_BYTES: usize = 80;
const CRC_AT: usize = 76;
const SECOND_SLOT: u32 = FRAME_HEADER_BYTES / 2;
// A sector is 512 bytes or 4 KiB; on 4 KiB ones the header is one sector, which is written whole.
const _: () = assert!(SLOT_BYTES <= 512 && SECOND_SLOT.is_multiple_of(512));

/// One header slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub sequence: u64,
    pub state: State,
    pub log: LogId,
    pub segment: SegmentId,
    /// Of the last append that was accepted.
    pub epoch: Epoch,
    /// Appends of the log below this are refused.
    pub fence: Epoch,
    pub ceiling: ClusterMs,
    pub certificate: Certificate,
    /// Written under H2.
    pub synced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Open,
    Closed,
    /// A sync or a read failed: out of service for good.
    Broken,
}

/// What the two slots of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Slots {
    pub newest: Option<Header>,
    pub older: Option<Header>,
    /// A slot holds something that is no header: torn, or rotten.
    pub damaged: bool,
}

impl Header {
    /// Where in the frame the slot of this header is.
    pub fn offset(&self) -> u32 {
        if self.sequence.is_multiple_of(2) {
            0
        } else {
            SECOND_SLOT
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(SLOT_BYTES);
        out.put_slice(&MAGIC);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.log.0);
        out.put_u64_le(self.segment.0);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.fence.0);
        out.put_u64_le(self.ceiling.0);
        out.put_u32_le(self.certificate.length);
        out.put_u32_le(self.certificate.checksum);
        out.put_u8(match self.state {
            State::Free => 0,
            State::Open => 1,
            State::Closed => 2,
            State::Broken => 3,
        });
        out.put_u8(u8::from(self.synced));
        out.put_bytes(0, 10);
        assert_eq!(out.len(), CRC_AT, "the layout above");
        let crc = crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// `None` if the slot is torn, rotten, of another version, or at the wrong place.
    fn decode(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.get(..SLOT_BYTES)?;
        let u64_at = |at: usize| {
            u64::from_le_bytes(
                bytes[at..at + 8]
                    .try_into()
                    .expect("eight bytes were taken"),
            )
        };
        let u32_at = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
        };
        if bytes[..8] != MAGIC || crc32c(&bytes[..CRC_AT]) != u32_at(CRC_AT) {
            return None;
        }
        Some(Header {
            sequence: u64_at(8),
            log: LogId(u64_at(16)),
            segment: SegmentId(u64_at(24)),
            epoch: Epoch(u64_at(32)),
            fence: Epoch(u64_at(40)),
            ceiling: ClusterMs(u64_at(48)),
            certificate: Certificate {
                length: u32_at(56),
                checksum: u32_at(60),
            },
            state: match bytes[64] {
                0 => State::Free,
                1 => State::Open,
                2 => State::Closed,
                3 => State::Broken,
                _ => return None,
            },
            synced: bytes[65] == 1,
        })
    }
}

impl Slots {
    /// Reads a frame's header block, untrusted bytes of any length.
    pub fn read(block: &[u8]) -> Slots {
        let slot = |at: u32| {
            let bytes = block.get(at as usize..).unwrap_or(&[]);
            let bytes = &bytes[..bytes.len().min(SLOT_BYTES)];
            let header = Header::decode(bytes).filter(|header| header.offset() == at);
            (
                header,
                header.is_none() && bytes.iter().any(|&byte| byte != 0),
            )
        };
        let ((even, even_damaged), (odd, odd_damaged)) = (slot(0), slot(SECOND_SLOT));
        let even_is_newer = even.map(|header| header.sequence) > odd.map(|header| header.sequence);
        let (newest, older) = if even_is_newer {
            (even, odd)
        } else {
            (odd, even)
        };
        Slots {
            newest,
            older,
            damaged: even_damaged || odd_damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(sequence: u64) -> Header {
        Header {
            sequence,
            state: State::Closed,
            log: LogId(0x1234_5678_9abc),
            segment: SegmentId(77),
            epoch: Epoch(3),
            fence: Epoch(9),
            ceiling: ClusterMs(1_700_000_000_123),
            certificate: Certificate {
                length: 8 << 20,
                checksum: 0xfeed_beef,
            },
            synced: true,
        }
    }

    fn put(block: &mut [u8], header: &Header) {
        let at = header.offset() as usize;
        block[at..at + SLOT_BYTES].copy_from_slice(&header.encode());
    }

    /// H1, at every byte at which a write can tear.
    #[test]
    fn a_torn_slot_leaves_the_other_one() {
        let mut before = vec![0; FRAME_HEADER_BYTES as usize];
        put(&mut before, &header(4));
        put(&mut before, &header(5));
        let newer = Header {
            epoch: Epoch(4),
            state: State::Open,
            ..header(6)
        };
        for torn_at in 0..=SLOT_BYTES {
            let mut block = before.clone();
            block[..torn_at].copy_from_slice(&newer.encode()[..torn_at]);
            let slots = Slots::read(&block);
            let found = slots.newest.expect("one slot is whole");
            assert!(
                found == header(5) || found == newer,
                "torn at {torn_at}: {found:?}"
            );
            assert_eq!(found == newer, torn_at == SLOT_BYTES);
        }
    }

    #[test]
    fn zeros_are_a_free_frame_and_no_damage() {
        assert_eq!(Slots::read(&[0; 4096]), Slots::default());
        assert_eq!(Slots::read(&[]), Slots::default());
        assert!(Slots::read(&[1; 4096]).damaged);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_flip_goes_unseen(at in 0..SLOT_BYTES, bit in 0..8u8, noise in proptest::collection::vec(any::<u8>(), 0..5000)) {
            Slots::read(&noise);
            let mut block = vec![0; 4096];
            put(&mut block, &header(2));
            block[at] ^= 1 << bit;
            let slots = Slots::read(&block);
            prop_assert!(slots.newest.is_none() && slots.damaged);
        }
    }
}
