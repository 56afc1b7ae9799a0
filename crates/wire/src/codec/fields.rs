//! How single fields are written.
//!
//! Counts, times, versions: varint (seven bits a byte, lowest first, the top bit says that more
//! follow). Random ids and hashes: 8 bytes, since a varint of them would take 9 or 10. Signed: zigzag
//! varint. Byte strings, texts and lists: a varint length, then the content. Options: 0, or 1 and the
//! content. Enums: a tag byte, then the variant's fields.

use bytes::{BufMut, Bytes};
use holdfast_format::{
    ClientId, ClusterMs, Epoch, KeyHash, LogId, Namespace, SLOTS, SegmentId, ServerId, Slot,
    SlotRange, Version,
};

use super::ITEMS_MAX;

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    #[error("{what} has no variant {tag}")]
    UnknownVariant { what: &'static str, tag: u8 },
    #[error("a number is out of its range")]
    Number,
    #[error("a number is written with more bytes than it needs")]
    PaddedNumber,
    #[error("a text is not UTF-8")]
    NotText,
    #[error("a list of {0} items is too long")]
    TooManyItems(u64),
    #[error("slots {first} to {last} are no range")]
    SlotRange { first: u16, last: u16 },
    #[error("a tail is missing, or is there without need")]
    Tail,
}

/// Something that can be written and read back.
pub(super) trait Field: Sized {
    fn put<B: BufMut>(&self, out: &mut B);
    fn take(from: &mut Reader) -> Result<Self, DecodeError>;
}

/// Bytes being read.
pub(super) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Reader {
        Reader { bytes, at: 0 }
    }

    /// Fails if anything is left.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn u32_le(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.bytes[self.at..];
        let array = *rest.first_chunk().ok_or(DecodeError::Truncated)?;
        self.at += N;
        Ok(array)
    }

    fn slice(&mut self, length: u64) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
        if length > self.bytes.len() - self.at {
            return Err(DecodeError::Truncated);
        }
        let slice = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(slice)
    }
}

impl Field for u64 {
    fn put<B: BufMut>(&self, out: &mut B) {
        let mut rest = *self;
        while rest >= 0x80 {
            out.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.put_u8(rest as u8);
    }

    fn take(from: &mut Reader) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        let mut shift = 0;
        loop {
            let byte = from.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 {
                    Err(DecodeError::PaddedNumber)
                } else {
                    Ok(value)
                };
            }
            if shift == 63 {
                return Err(DecodeError::Number);
            }
            shift += 7;
        }
    }
}

impl Field for u32 {
    fn put<B: BufMut>(&self, out: &mut B) {
        u64::from(*self).put(out);
    }
    fn take(from: &mut Reader) -> Result<u32, DecodeError> {
        u32::try_from(u64::take(from)?).map_err(|_| DecodeError::Number)
    }
}

impl Field for i64 {
    fn put<B: BufMut>(&self, out: &mut B) {
        (((*self << 1) ^ (*self >> 63)) as u64).put(out);
    }
    fn take(from: &mut Reader) -> Result<i64, DecodeError> {
        let zigzag = u64::take(from)?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }
}

impl Field for u8 {
    fn put<B: BufMut>(&self, out: &mut B) {
        out.put_u8(*self);
    }
    fn take(from: &mut Reader) -> Result<u8, DecodeError> {
        from.byte()
    }
}

impl Field for bool {
    fn put<B: BufMut>(&self, out: &mut B) {
        out.put_u8(u8::from(*self));
    }
    fn take(from: &mut Reader) -> Result<bool, DecodeError> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::UnknownVariant { what: "bool", tag }),
        }
    }
}

impl Field for Bytes {
    fn put<B: BufMut>(&self, out: &mut B) {
        (self.len() as u64).put(out);
        out.put_slice(self);
    }
    fn take(from: &mut Reader) -> Result<Bytes, DecodeError> {
        let length = u64::take(from)?;
        from.slice(length)
    }
}

impl Field for String {
    fn put<B: BufMut>(&self, out: &mut B) {
        (self.len() as u64).put(out);
        out.put_slice(self.as_bytes());
    }
    fn take(from: &mut Reader) -> Result<String, DecodeError> {
        let bytes = Bytes::take(from)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError::NotText)?;
        Ok(text.to_owned())
    }
}

impl<T: Field> Field for Option<T> {
    fn put<B: BufMut>(&self, out: &mut B) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut Reader) -> Result<Option<T>, DecodeError> {
        if bool::take(from)? {
            T::take(from).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<T: Field> Field for Box<T> {
    fn put<B: BufMut>(&self, out: &mut B) {
        (**self).put(out);
    }
    fn take(from: &mut Reader) -> Result<Box<T>, DecodeError> {
        T::take(from).map(Box::new)
    }
}

impl<T: Field> Field for Vec<T> {
    fn put<B: BufMut>(&self, out: &mut B) {
        (self.len() as u64).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn take(from: &mut Reader) -> Result<Vec<T>, DecodeError> {
        let count = u64::take(from)?;
        if count > ITEMS_MAX as u64 {
            return Err(DecodeError::TooManyItems(count));
        }
        // Grows as items really come (F3).
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::take(from)?);
        }
        Ok(items)
    }
}

impl<T: Field, U: Field> Field for (T, U) {
    fn put<B: BufMut>(&self, out: &mut B) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut Reader) -> Result<(T, U), DecodeError> {
        Ok((T::take(from)?, U::take(from)?))
    }
}

macro_rules! fixed_ids {
    ($($id:ident)*) => {$(
        impl Field for $id {
            fn put<B: BufMut>(&self, out: &mut B) {
                out.put_u64_le(self.0);
            }
            fn take(from: &mut Reader) -> Result<$id, DecodeError> {
                Ok($id(u64::from_le_bytes(from.array()?)))
            }
        }
    )*};
}
fixed_ids!(ServerId LogId ClientId KeyHash);

macro_rules! varint_ids {
    ($($id:ident)*) => {$(
        impl Field for $id {
            fn put<B: BufMut>(&self, out: &mut B) {
                self.0.put(out);
            }
            fn take(from: &mut Reader) -> Result<$id, DecodeError> {
                Field::take(from).map($id)
            }
        }
    )*};
}
varint_ids!(SegmentId Epoch Version ClusterMs Namespace);

impl Field for SlotRange {
    fn put<B: BufMut>(&self, out: &mut B) {
        out.put_u16_le(self.first.0);
        out.put_u16_le(self.last.0);
    }
    fn take(from: &mut Reader) -> Result<SlotRange, DecodeError> {
        let first = u16::from_le_bytes(from.array()?);
        let last = u16::from_le_bytes(from.array()?);
        if first > last || last >= SLOTS {
            return Err(DecodeError::SlotRange { first, last });
        }
        Ok(SlotRange {
            first: Slot(first),
            last: Slot(last),
        })
    }
}
