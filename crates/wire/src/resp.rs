//! RESP2 and RESP3 as bytes: requests taken apart without copying, replies written in place.
//!
//! A connection's driver hands over whatever arrived, in pieces of any size. `RespParser` keeps
//! what does not yet make a whole command and remembers how far it has read, so that a command
//! arriving byte by byte costs time in proportion to its length.
//!
//! P1. Nothing is allocated on the word of a length prefix: ranges and buffer grow with the bytes
//!     that have really arrived, up to `RespLimits`.
//! P2. Arguments of a whole command share the receive buffer (`Args::bytes` counts a reference).
//!     Requests that have arrived together are read together (`read`), so that their keys can be looked for
//!     together; each stays with the parser until it is turned to (`turn`).
//! P3. After an error the stream has no meaning any more; the parser answers every later call with
//!     the same error, and the connection is to be closed after the error is written.

mod reply;
mod skip;

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use reply::ReplyWriter;
pub use skip::Found;

/// Which version of the protocol replies are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

impl Protocol {
    /// As HELLO names it.
    pub fn number(self) -> i64 {
        match self {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RespLimits {
    /// The longest single argument.
    pub bulk_bytes_max: u32,
    /// The longest whole request, which also bounds what the parser buffers.
    pub command_bytes_max: u32,
    /// The most arguments.
    pub arguments_max: u32,
}

impl RespLimits {
    /// Limits for values up to `value_bytes_max`: room for one such value besides a key and options,
    /// and as many keys as Redis allows in requests of at least 16 MiB.
    pub fn for_values(value_bytes_max: u32) -> RespLimits {
        let bulk_bytes_max = value_bytes_max.saturating_add(64 * 1024);
        RespLimits {
            bulk_bytes_max,
            command_bytes_max: bulk_bytes_max
                .saturating_add(1024 * 1024)
                .max(16 * 1024 * 1024),
            arguments_max: 1024 * 1024,
        }
    }

    /// What a connection may send before it has authenticated, as in Redis.
    pub const UNAUTHENTICATED: RespLimits = RespLimits {
        bulk_bytes_max: 16 * 1024,
        command_bytes_max: 256 * 1024,
        arguments_max: 10,
    };
}

/// The longest inline request, and the longest length line, as in Redis.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes that are no RESP request. `Display` is the error line without `-`, in Redis's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespProtocolError {
    #[error("ERR Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    #[error("ERR Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    #[error("ERR Protocol error: too big mbulk count string")]
    MultibulkLineTooLong,
    #[error("ERR Protocol error: expected '$', got '{}'", printable(*.0))]
    ExpectedBulk(u8),
    #[error("ERR Protocol error: invalid bulk length")]
    InvalidBulkLength,
    #[error("ERR Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    #[error("ERR Protocol error: too big bulk count string")]
    BulkLineTooLong,
    #[error("ERR Protocol error: too big inline request")]
    InlineTooLong,
    #[error("ERR Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// Redis closes without a word; a reason costs nothing.
    #[error("ERR Protocol error: request over the limit of {limit} bytes")]
    CommandTooLong { limit: u32 },
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() {
        char::from(byte)
    } else {
        '?'
    }
}

/// The arguments of a request, the command's name first: of the one that was last turned to (`advance`) among those
/// that were read together. Reused from reading to reading.
#[derive(Clone, Debug, Default)]
pub struct Args {
    frame: Bytes,
    /// Of all requests, counted from the start of `frame`.
    ranges: Vec<Range<u32>>,
    requests: Vec<Framed>,
    /// How many of `requests` have been turned to.
    passed: usize,
    /// Which of `ranges` are those of the current request.
    current: Range<usize>,
}

/// Where a request ends.
#[derive(Clone, Copy, Debug)]
struct Framed {
    /// In `Args::ranges`.
    ranges_end: u32,
    /// In the parser's bytes, counted from where reading began.
    bytes_end: u32,
}

impl Args {
    /// Arguments from parts, as tests and in-process callers have them.
    pub fn of(parts: &[&[u8]]) -> Args {
        let mut frame = BytesMut::new();
        let mut args = Args::default();
        for part in parts {
            let start = offset(frame.len());
            frame.put_slice(part);
            args.ranges.push(start..offset(frame.len()));
        }
        args.end_request(frame.len());
        args.frame = frame.freeze();
        args.advance();
        args
    }

    /// Turns to the next of the requests that were read; false if there is none.
    pub fn advance(&mut self) -> bool {
        let Some(next) = self.requests.get(self.passed) else {
            return false;
        };
        self.current = self.current.end..next.ranges_end as usize;
        self.passed += 1;
        true
    }

    /// The second word of every request not yet turned to, which for most commands is a key.
    pub fn coming(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [self.current.end].into_iter();
        let ends = self.requests[self.passed..].iter();
        let starts = starts.chain(ends.clone().map(|it| it.ranges_end as usize));
        starts.zip(ends).filter_map(|(start, request)| {
            let range = self.ranges[start..request.ranges_end as usize].get(1)?;
            Some(&self.frame[range.start as usize..range.end as usize])
        })
    }

    /// How many there are, at least 1 after a successful `RespParser::next`.
    pub fn len(&self) -> usize {
        self.current.len()
    }

    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    fn range(&self, index: usize) -> Range<usize> {
        let range = &self.ranges[self.current.clone()][index];
        range.start as usize..range.end as usize
    }

    /// The argument; panics if there is none.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.frame[self.range(index)]
    }

    /// True if the argument is this word, in any case; panics if there is none.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// The argument, sharing the receive buffer; panics if there is none.
    pub fn bytes(&self, index: usize) -> Bytes {
        self.frame.slice(self.range(index))
    }

    /// Lets go of the receive buffer but keeps the room for ranges.
    pub fn clear(&mut self) {
        self.frame = Bytes::new();
        self.ranges.clear();
        self.requests.clear();
        self.passed = 0;
        self.current = 0..0;
    }

    /// The ranges added since the last request are another one, which ends here in the parser's bytes.
    fn end_request(&mut self, bytes_end: usize) {
        self.requests.push(Framed {
            ranges_end: offset(self.ranges.len()),
            bytes_end: offset(bytes_end),
        });
    }

    /// Bytes of the request that was last turned to, with those before it that nobody else has.
    pub fn bytes_taken(&self) -> usize {
        let end = |request: usize| self.requests[request].bytes_end as usize;
        match self.passed {
            0 => 0,
            1 => end(0),
            passed => end(passed - 1) - end(passed - 2),
        }
    }
}

/// Takes a connection's bytes apart into requests.
#[derive(Debug)]
pub struct RespParser {
    limits: RespLimits,
    authenticated: bool,
    /// Bytes not yet parsed. As long as everything arrives whole they are the driver's own buffer
    /// (`whole`); what is left of a command that came in pieces is gathered in `pieces`, and
    /// then `whole` is empty.
    whole: Bytes,
    pieces: BytesMut,
    /// So many of them were given out by `read` and not yet turned to. The command under way, which the
    /// next four fields are about, begins after them.
    framed: usize,
    /// How far the current command has been read.
    at: usize,
    /// Arguments still to come of the current multibulk; `None` before its first line.
    remaining: Option<u32>,
    /// Length of the bulk whose line has been read.
    bulk: Option<u32>,
    ranges: Vec<Range<u32>>,
    failed: Option<RespProtocolError>,
}

impl RespParser {
    /// A parser for a new connection. Until `set_authenticated` the narrower of `limits` and
    /// `RespLimits::UNAUTHENTICATED` hold.
    pub fn new(limits: RespLimits) -> RespParser {
        RespParser {
            limits,
            authenticated: false,
            whole: Bytes::new(),
            pieces: BytesMut::new(),
            framed: 0,
            at: 0,
            remaining: None,
            bulk: None,
            ranges: Vec::new(),
            failed: None,
        }
    }

    /// Chooses between the full limits and those of a stranger, from the next length read on.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Takes bytes that have arrived.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.failed.is_some() {
            return;
        }
        if self.whole.is_empty() && self.pieces.is_empty() {
            self.whole = bytes;
        } else {
            self.gather();
            self.pieces.extend_from_slice(&bytes);
        }
    }

    /// Bytes taken and not yet given out as requests.
    pub fn buffered_bytes(&self) -> usize {
        self.whole.len() + self.pieces.len()
    }

    /// Memory held for the request under way, for whoever accounts for a connection's memory.
    pub fn allocated_bytes(&self) -> usize {
        self.whole.len() + self.pieces.capacity() + self.ranges.capacity() * size_of::<Range<u32>>()
    }

    /// The next request into `args`; false if more bytes are needed. Empty requests (`*0`, an empty
    /// line) are passed over, as in Redis.
    pub fn next(&mut self, args: &mut Args) -> Result<bool, RespProtocolError> {
        Ok(self.read(args, 1)? > 0 && self.turn(args))
    }

    /// Reads as many requests as have arrived, up to `requests_max`, and says how many. What follows those that
    /// are never turned to is read again. Until `set_authenticated` it is one at a time.
    pub fn read(
        &mut self,
        args: &mut Args,
        requests_max: usize,
    ) -> Result<usize, RespProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        args.clear();
        if self.framed > 0 {
            self.framed = 0;
            self.begin_command();
        }
        let requests_max = if self.authenticated { requests_max } else { 1 };
        while args.requests.len() < requests_max {
            match self.step() {
                Ok(Step::Command(_)) if self.ranges.is_empty() => {
                    self.pass_over(self.framed + self.at, args);
                }
                Ok(Step::Command(bytes)) => {
                    let start = offset(self.framed);
                    let shifted = |range: Range<u32>| range.start + start..range.end + start;
                    args.ranges.extend(self.ranges.drain(..).map(shifted));
                    self.framed += bytes;
                    args.end_request(self.framed);
                    self.begin_command();
                }
                // Its arguments are not as they stand in the buffer: it is read alone.
                Ok(Step::Inline { .. }) if !args.requests.is_empty() => break,
                Ok(Step::Inline { line, end }) => {
                    let buffer = self.buffer();
                    let split = split_inline(&buffer[self.framed..][..line], args);
                    split.inspect_err(|&e| self.fail(e))?;
                    if args.ranges.is_empty() {
                        self.pass_over(self.framed + end, args);
                        continue;
                    }
                    self.framed += end;
                    args.end_request(self.framed);
                    self.begin_command();
                    return Ok(1);
                }
                Ok(Step::NeedMore) if args.requests.is_empty() => {
                    // Give the driver's buffer back instead of pinning it under half a command.
                    self.gather();
                    return Ok(0);
                }
                Ok(Step::NeedMore) => break,
                // It is found again when it is its turn.
                Err(_) if !args.requests.is_empty() => {
                    self.begin_command();
                    break;
                }
                Err(error) => {
                    self.fail(error);
                    return Err(error);
                }
            }
        }
        if self.whole.is_empty() {
            self.whole = std::mem::take(&mut self.pieces).freeze();
        }
        args.frame = self.whole.slice(..self.framed);
        Ok(args.requests.len())
    }

    /// Turns to the next request that `read` has put into `args`, whose bytes now belong to it alone.
    pub fn turn(&mut self, args: &mut Args) -> bool {
        if self.framed == 0 || !args.advance() {
            return false;
        }
        let bytes = args.bytes_taken();
        self.framed -= bytes;
        self.drop_front(bytes);
        true
    }

    fn buffer(&self) -> &[u8] {
        match self.pieces.is_empty() {
            true => &self.whole,
            false => &self.pieces,
        }
    }

    /// An empty request ends here. It goes with the one before it, or at once.
    fn pass_over(&mut self, end: usize, args: &mut Args) {
        self.begin_command();
        match args.requests.last_mut() {
            Some(last) => {
                last.bytes_end = offset(end);
                self.framed = end;
            }
            None => self.drop_front(end),
        }
    }

    fn drop_front(&mut self, bytes: usize) {
        let from = match self.pieces.is_empty() {
            true => {
                self.whole.advance(bytes);
                if self.whole.is_empty() {
                    self.whole = Bytes::new();
                }
                return;
            }
            false => &mut self.pieces,
        };
        from.advance(bytes);
        if from.is_empty() {
            self.pieces = BytesMut::new();
        }
    }

    fn begin_command(&mut self) {
        self.at = 0;
        self.remaining = None;
        self.bulk = None;
        self.ranges.clear();
    }

    fn limits(&self) -> RespLimits {
        let stranger = RespLimits::UNAUTHENTICATED;
        if self.authenticated {
            return self.limits;
        }
        RespLimits {
            bulk_bytes_max: self.limits.bulk_bytes_max.min(stranger.bulk_bytes_max),
            command_bytes_max: self
                .limits
                .command_bytes_max
                .min(stranger.command_bytes_max),
            arguments_max: self.limits.arguments_max.min(stranger.arguments_max),
        }
    }

    /// Reads on from `at` until the command is whole or bytes run out.
    fn step(&mut self) -> Result<Step, RespProtocolError> {
        let limits = self.limits();
        let buffer = match self.pieces.is_empty() {
            true => &self.whole[self.framed..],
            false => &self.pieces[self.framed..],
        };
        let Some(&first) = buffer.first() else {
            return Ok(Step::NeedMore);
        };
        if self.remaining.is_none() {
            if first != b'*' {
                let searched = &buffer[..buffer.len().min(LINE_BYTES_MAX)];
                let newline = memchr::memchr(b'\n', &searched[self.at..]);
                return match newline.map(|found| self.at + found) {
                    Some(newline) => {
                        let line = searched[..newline]
                            .strip_suffix(b"\r")
                            .map_or(newline, <[u8]>::len);
                        Ok(Step::Inline {
                            line,
                            end: newline + 1,
                        })
                    }
                    None if buffer.len() < LINE_BYTES_MAX => {
                        self.at = buffer.len();
                        Ok(Step::NeedMore)
                    }
                    None => Err(RespProtocolError::InlineTooLong),
                };
            }
            let Some(line) = length_line(&buffer[1..], RespProtocolError::MultibulkLineTooLong)?
            else {
                return Ok(Step::NeedMore);
            };
            let count = parse_integer(line)
                .filter(|&n| n <= i64::from(self.limits.arguments_max))
                .ok_or(RespProtocolError::InvalidMultibulkLength)?;
            if count > i64::from(limits.arguments_max) {
                return Err(RespProtocolError::UnauthenticatedMultibulkLength);
            }
            self.at = 1 + line.len() + 2;
            // Not positive: an empty request, as in Redis.
            self.remaining = Some(u32::try_from(count).unwrap_or(0));
        }
        while self.remaining != Some(0) {
            let length = match self.bulk {
                Some(length) => length,
                None => {
                    let rest = &buffer[self.at..];
                    match rest.first() {
                        None => return Ok(Step::NeedMore),
                        Some(b'$') => {}
                        Some(&other) => return Err(RespProtocolError::ExpectedBulk(other)),
                    }
                    let Some(line) = length_line(&rest[1..], RespProtocolError::BulkLineTooLong)?
                    else {
                        return Ok(Step::NeedMore);
                    };
                    let length = parse_integer(line)
                        .and_then(|n| u32::try_from(n).ok())
                        .filter(|&n| n <= self.limits.bulk_bytes_max)
                        .ok_or(RespProtocolError::InvalidBulkLength)?;
                    if length > limits.bulk_bytes_max {
                        return Err(RespProtocolError::UnauthenticatedBulkLength);
                    }
                    self.at += 1 + line.len() + 2;
                    if self.at + length as usize + 2 > limits.command_bytes_max as usize {
                        return Err(RespProtocolError::CommandTooLong {
                            limit: limits.command_bytes_max,
                        });
                    }
                    self.bulk = Some(length);
                    length
                }
            };
            let end = self.at + length as usize;
            if buffer.len() < end + 2 {
                return Ok(Step::NeedMore);
            }
            // The two bytes after a bulk are passed over unread, as in Redis.
            self.ranges.push(offset(self.at)..offset(end));
            self.at = end + 2;
            self.bulk = None;
            self.remaining = self.remaining.map(|n| n - 1);
        }
        Ok(Step::Command(self.at))
    }

    /// Moves what is left to `pieces`, with room for what is known to be coming.
    fn gather(&mut self) {
        if !self.whole.is_empty() {
            self.pieces.extend_from_slice(&self.whole);
            self.whole = Bytes::new();
        }
        // P1 bends here, once: a bulk's length is known and within the limits, and growing by
        // doubling would copy a large value several times over. At most 64 KiB is taken on trust.
        if let Some(length) = self.bulk {
            let needed = self.framed + self.at + length as usize + 2;
            let missing = needed.saturating_sub(self.pieces.len());
            self.pieces.reserve(missing.min(64 * 1024));
        }
    }

    fn fail(&mut self, error: RespProtocolError) {
        self.failed = Some(error);
        self.framed = 0;
        self.whole = Bytes::new();
        self.pieces = BytesMut::new();
        self.ranges = Vec::new();
    }
}

enum Step {
    NeedMore,
    /// A multibulk command of so many bytes; its arguments are in `ranges`.
    Command(usize),
    Inline {
        line: usize,
        end: usize,
    },
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("requests are bounded by command_bytes_max, a u32")
}

/// The digits before CRLF; `None` if the line is not whole yet.
fn length_line(
    buffer: &[u8],
    too_long: RespProtocolError,
) -> Result<Option<&[u8]>, RespProtocolError> {
    // No valid length has more than 20 characters, so there is no need to look far.
    match memchr::memchr(b'\r', &buffer[..buffer.len().min(64)]) {
        Some(end) if buffer.len() > end + 1 => Ok(Some(&buffer[..end])),
        None if buffer.len() >= 64 => Err(too_long),
        _ => Ok(None),
    }
}

/// A decimal integer as Redis's `string2ll` takes it: no plus, no leading zeros, no white space.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        // Built on the negative side, which is one longer.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative {
        Some(value)
    } else {
        value.checked_neg()
    }
}

/// Splits an inline request as Redis's `sdssplitargs`: white space, "…" with escapes, '…'.
fn split_inline(line: &[u8], args: &mut Args) -> Result<(), RespProtocolError> {
    // Redis reads a C string.
    let mut rest = &line[..memchr::memchr(0, line).unwrap_or(line.len())];
    let mut out = BytesMut::with_capacity(rest.len());
    args.ranges.clear();
    loop {
        while let Some(b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c) = rest.first() {
            rest.advance(1);
        }
        if rest.is_empty() {
            break;
        }
        let start = offset(out.len());
        rest = split_inline_argument(rest, &mut out)?;
        args.ranges.push(start..offset(out.len()));
    }
    args.frame = out.freeze();
    Ok(())
}

fn split_inline_argument<'a>(
    mut rest: &'a [u8],
    out: &mut BytesMut,
) -> Result<&'a [u8], RespProtocolError> {
    let mut quote = None;
    loop {
        let Some((&byte, after)) = rest.split_first() else {
            return if quote.is_some() {
                Err(RespProtocolError::UnbalancedQuotes)
            } else {
                Ok(rest)
            };
        };
        rest = after;
        match (quote, byte) {
            (None, b' ' | b'\t' | b'\r' | b'\n') => return Ok(rest),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(b'"'), b'\\') => match rest {
                [b'x', high, low, tail @ ..]
                    if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    out.put_u8(hex_digit(*high) << 4 | hex_digit(*low));
                    rest = tail;
                }
                [escaped, tail @ ..] => {
                    out.put_u8(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 0x08,
                        b'a' => 0x07,
                        other => *other,
                    });
                    rest = tail;
                }
                [] => return Err(RespProtocolError::UnbalancedQuotes),
            },
            (Some(b'\''), b'\\') if rest.first() == Some(&b'\'') => {
                out.put_u8(b'\'');
                rest = &rest[1..];
            }
            (Some(open), byte) if byte == open => {
                // A closing quote must end the argument.
                return match rest.first() {
                    None | Some(b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c) => Ok(rest),
                    Some(_) => Err(RespProtocolError::UnbalancedQuotes),
                };
            }
            (_, byte) => out.put_u8(byte),
        }
    }
}

fn hex_digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => byte - b'A' + 10,
    }
}

#[cfg(test)]
mod tests;
