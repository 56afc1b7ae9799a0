//! Walking a segment's bytes, wherever they come from.

use crate::{Entry, EntryError, HeaderKind, SegmentHeader, SegmentId};

/// The entries of a segment or of a part of one, in order. Stops for good at the first bad one.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Checksums have been looked at before.
    trusted: bool,
}

/// An entry and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located<'a> {
    /// From the start of the bytes that are walked.
    pub offset: usize,
    pub length: usize,
    pub entry: Entry<'a>,
}

/// Entries end at `offset`, and not because the bytes end there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad entry at offset {offset}: {error}")]
pub struct BadEntry {
    pub offset: usize,
    pub error: EntryError,
}

impl<'a> Entries<'a> {
    /// Walks `bytes`, which must end where an entry ends.
    pub fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            bytes,
            offset: 0,
            trusted: false,
        }
    }

    /// As `new`, for bytes that have just been verified as a whole: the entries' own checksums are not looked
    /// at. Still memory-safe, still no panic.
    pub fn trusted(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            trusted: true,
            ..Entries::new(bytes)
        }
    }

    /// Where the next entry begins: every entry before it was good.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Located<'a>, BadEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.offset..];
        if rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let decoded = match self.trusted {
            true => Entry::decode_trusted(rest),
            false => Entry::decode(rest),
        };
        match decoded {
            Ok((entry, length)) => {
                self.offset += length;
                Some(Ok(Located {
                    offset,
                    length,
                    entry,
                }))
            }
            Err(error) => {
                self.bytes = &self.bytes[..offset];
                Some(Err(BadEntry { offset, error }))
            }
        }
    }
}

/// What the first bytes of a segment say about it and about its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    pub header: SegmentHeader,
    /// Every segment of the log when this one was opened as its head. `None` for side segments, and
    /// for a head of which only the header is there.
    pub digest: Option<Vec<SegmentId>>,
    /// Bytes of header and digest.
    pub length: usize,
}

impl Opening {
    /// Reads the opening of a segment. For untrusted bytes; they may go on after it.
    pub fn parse(bytes: &[u8]) -> Result<Opening, BadEntry> {
        let header = SegmentHeader::parse(bytes).map_err(|error| BadEntry { offset: 0, error })?;
        let offset = crate::SEGMENT_HEADER_BYTES;
        if header.kind == HeaderKind::Side || bytes.len() == offset {
            return Ok(Opening {
                header,
                digest: None,
                length: offset,
            });
        }
        match Entry::decode(&bytes[offset..]) {
            Ok((Entry::Digest(digest), length)) => Ok(Opening {
                header,
                digest: Some(digest.segments().collect()),
                length: offset + length,
            }),
            Ok(_) => {
                let error = EntryError::Invalid("a head's second entry is its digest");
                Err(BadEntry { offset, error })
            }
            Err(error) => Err(BadEntry { offset, error }),
        }
    }
}
