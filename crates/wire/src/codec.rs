//! Messages between members as framed bytes.
//!
//! ```text
//! length u32 | type u8 | flags u8 | checksum u32 | [tail length u32] | fields | [tail]
//! ```
//!
//! `length` counts everything after itself. Integers are little-endian; `fields` says how fields are
//! written. `docs/protocol.md` has a worked example, which a test here compares.
//!
//! F1. The checksum (CRC32C) covers length, type, flags, tail length and fields, so a damaged header
//! ```text
//! is found before anything in it is believed. A length is believed only up to `FRAME_BYTES_MAX`.
//! ```
//! F2. The tail is the bulk of `Append` (segment bytes) and `FetchPart` (entries). It is outside
//! ```text
//! the checksum because it carries better ones: the certificate of the replica, and the
//! CRC of each entry. Summing it a third time would cost every replicated byte.
//! ```
//! F3. Values decoded share the receive buffer; nothing is allocated on the word of a length or a
//! ```text
//! count beyond what has arrived.
//! ```
//! F4. There is one encoding of each message: a padded varint, a flag or a byte too many is an error.

mod fields;
mod messages;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use fields::DecodeError;

use crate::command::Outcome;
use crate::message::{Message, Request, Requests, Response, Responses};
use fields::{Field, Reader};

/// The longest frame. A segment is 8 MiB; twice that leaves room for whatever else grows.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most items of one list in a message, so that small items cannot unfold into much memory.
/// A view of 16,384 one-slot tablets and an inventory of 512 GB fit.
pub const ITEMS_MAX: usize = 65_536;

/// Requests and responses are split into several frames from about this size on, so that many
/// large values cannot make a frame too long.
const SPLIT_BYTES: usize = 1024 * 1024;
const HEADER_BYTES: usize = 10;
const CHECKSUM_AT: usize = 6;
/// Flag: a tail follows the fields, and its length precedes them.
const WITH_TAIL: u8 = 1;

/// Bytes that are no frame. The stream has no meaning any more: close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(
        "a frame of {bytes} bytes is outside the bounds of {HEADER_BYTES} to {FRAME_BYTES_MAX}"
    )]
    Length { bytes: u64 },
    #[error("the frame's checksum is wrong")]
    Checksum,
    #[error("unknown message type {0}; the peer speaks another version")]
    UnknownType(u8),
    #[error("unknown flags {0:#04x}; the peer speaks another version")]
    UnknownFlags(u8),
    #[error("the frame's tail is longer than the frame")]
    Tail,
    #[error("message type {message_type}: {error}")]
    Fields {
        message_type: u8,
        error: DecodeError,
    },
}

/// A message that cannot be sent, because its receiver would refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("a message of {bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("a list of {items} items is over the limit of {ITEMS_MAX}")]
    TooManyItems { items: usize },
}

/// Appends the message's frame (or frames: long batches of requests and responses are split, which
/// means the same). On an error nothing is appended.
pub fn encode_frame(message: &Message, out: &mut BytesMut) -> Result<(), EncodeError> {
    if let Some(tail) = encode_frame_head(message, out)? {
        out.put_slice(&tail);
    }
    Ok(())
}

/// As `encode_frame`, but leaves the tail, if there is one, for the caller to send right after:
/// replicated bytes then go from the segment to the socket without a copy.
pub fn encode_frame_head(
    message: &Message,
    out: &mut BytesMut,
) -> Result<Option<Bytes>, EncodeError> {
    let start = out.len();
    let result = match message {
        Message::Requests(requests) => encode_requests(requests, out).map(|()| None),
        Message::Responses(responses) => encode_responses(responses, out).map(|()| None),
        message => {
            let tail = messages::tail(message).cloned();
            encode_one(messages::type_of(message), tail.as_deref(), out, |out| {
                messages::put_fields(message, out);
            })
            .map(|()| tail)
        }
    };
    if result.is_err() {
        out.truncate(start);
        return result;
    }
    match messages::longest_list(message) {
        items if items > ITEMS_MAX => {
            out.truncate(start);
            Err(EncodeError::TooManyItems { items })
        }
        _ => result,
    }
}

/// Takes frames off the front of a receive buffer.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    failed: Option<FrameError>,
}

impl FrameDecoder {
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// The next message; `None` if more bytes are needed. After an error every later call gives
    /// the same error.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let taken = take_frame(buffer);
        taken.inspect_err(|&error| self.failed = Some(error))
    }
}

/// Appends an outcome on its own, as completion records keep it.
pub fn encode_outcome(outcome: &Outcome, out: &mut Vec<u8>) {
    outcome.put(out);
}

/// Reads an outcome that `encode_outcome` wrote.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, DecodeError> {
    let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
    let outcome = Outcome::take(&mut reader)?;
    reader.finish()?;
    Ok(outcome)
}

fn encode_one(
    message_type: u8,
    tail: Option<&[u8]>,
    out: &mut BytesMut,
    put_fields: impl FnOnce(&mut BytesMut),
) -> Result<(), EncodeError> {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(message_type);
    out.put_u8(if tail.is_some() { WITH_TAIL } else { 0 });
    out.put_u32_le(0);
    if let Some(tail) = tail {
        let bytes = tail.len();
        out.put_u32_le(u32::try_from(bytes).map_err(|_| EncodeError::TooLong { bytes })?);
    }
    put_fields(out);
    let bytes = out.len() - start + tail.map_or(0, <[u8]>::len);
    if bytes > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLong { bytes });
    }
    let frame = &mut out[start..];
    let length = u32::try_from(bytes - 4).expect("bounded by FRAME_BYTES_MAX");
    frame[..4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(frame);
    frame[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Over everything but the checksum's own place; `frame` ends before the tail.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&frame[..CHECKSUM_AT]),
        &frame[HEADER_BYTES..],
    )
}

fn take_frame(buffer: &mut BytesMut) -> Result<Option<Message>, FrameError> {
    let Some(length) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let bytes = u64::from(u32::from_le_bytes(*length)) + 4;
    let frame_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&frame_bytes) {
        return Err(FrameError::Length { bytes });
    }
    if buffer.len() < frame_bytes {
        // Room for what is missing, but no more than doubling: the length is unproven (F1, F3).
        let missing = frame_bytes - buffer.len();
        buffer.reserve(missing.min(buffer.len().max(64 * 1024)));
        return Ok(None);
    }
    let frame = buffer.split_to(frame_bytes).freeze();
    let (message_type, flags) = (frame[4], frame[5]);
    let mut expected = [0; 4];
    expected.copy_from_slice(&frame[CHECKSUM_AT..HEADER_BYTES]);
    let tail_bytes = match flags {
        0 => None,
        WITH_TAIL => {
            let length = frame
                .get(HEADER_BYTES..HEADER_BYTES + 4)
                .ok_or(FrameError::Tail)?;
            let tail_bytes = (&mut &length[..]).get_u32_le() as usize;
            if tail_bytes > frame_bytes - HEADER_BYTES - 4 {
                return Err(FrameError::Tail);
            }
            Some(tail_bytes)
        }
        other => return Err(FrameError::UnknownFlags(other)),
    };
    let fields_end = frame_bytes - tail_bytes.unwrap_or(0);
    if checksum(&frame[..fields_end]) != u32::from_le_bytes(expected) {
        return Err(FrameError::Checksum);
    }
    let fields_start = HEADER_BYTES + if tail_bytes.is_some() { 4 } else { 0 };
    let mut reader = Reader::new(frame.slice(fields_start..fields_end));
    let tail = tail_bytes.map(|_| frame.slice(fields_end..));
    let fields = |error| FrameError::Fields {
        message_type,
        error,
    };
    let message = messages::take(message_type, &mut reader, tail)
        .map_err(fields)?
        .ok_or(FrameError::UnknownType(message_type))?;
    reader.finish().map_err(fields)?;
    Ok(Some(message))
}

fn encode_requests(requests: &Requests, out: &mut BytesMut) -> Result<(), EncodeError> {
    let Requests {
        client,
        stream,
        first,
        items,
    } = requests;
    let weigh = |item: &Request| messages::command_weight(&item.command);
    encode_batch(messages::REQUESTS, items, weigh, out, |sent, out| {
        client.put(out);
        stream.put(out);
        (first + sent as u64).put(out);
    })
}

fn encode_responses(responses: &Responses, out: &mut BytesMut) -> Result<(), EncodeError> {
    let Responses {
        client,
        stream,
        items,
    } = responses;
    let weigh = |item: &Response| messages::outcome_weight(&item.outcome);
    encode_batch(messages::RESPONSES, items, weigh, out, |_, out| {
        client.put(out);
        stream.put(out);
    })
}

/// As many frames as it takes, each `put_head(items sent before)` and a list of items; one if there
/// are none. How many go into a frame is decided by their weight before anything is written.
fn encode_batch<T: Field>(
    message_type: u8,
    items: &[T],
    weigh: impl Fn(&T) -> usize,
    out: &mut BytesMut,
    put_head: impl Fn(usize, &mut BytesMut),
) -> Result<(), EncodeError> {
    let mut sent = 0;
    loop {
        let mut count = 0;
        let mut weight = 0;
        for item in items[sent..].iter().take(ITEMS_MAX) {
            let this = weigh(item);
            if count > 0 && weight + this > SPLIT_BYTES {
                break;
            }
            count += 1;
            weight += this;
        }
        encode_one(message_type, None, out, |out| {
            put_head(sent, out);
            (count as u64).put(out);
            for item in &items[sent..sent + count] {
                item.put(out);
            }
        })?;
        sent += count;
        if sent == items.len() {
            return Ok(());
        }
    }
}
