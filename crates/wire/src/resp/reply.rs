//! Replies as bytes, in either version of the protocol.

use bytes::{BufMut, BytesMut};

use super::Protocol;

/// Writes replies at the end of a connection's send buffer.
///
/// The caller counts: `array(n)` must be followed by `n` replies, `map(n)` by `2 n`.
#[derive(Debug)]
pub struct ReplyWriter<'a> {
    out: &'a mut BytesMut,
    protocol: Protocol,
}

impl<'a> ReplyWriter<'a> {
    pub fn new(out: &'a mut BytesMut, protocol: Protocol) -> ReplyWriter<'a> {
        ReplyWriter { out, protocol }
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.put_slice(b"+OK\r\n");
    }

    /// A status line. Line ends in it become spaces.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// An error: `text` is the whole line with its code (`ERR …`), without the `-`. Line ends in it
    /// become spaces, because it may quote what a client sent.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// An error from anything that displays as an error line.
    pub fn refuse(&mut self, error: &impl std::fmt::Display) {
        self.error(&error.to_string());
    }

    pub fn integer(&mut self, value: i64) {
        self.header(b':', value);
    }

    pub fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + 32);
        self.length(b'$', bytes.len());
        self.out.put_slice(bytes);
        self.out.put_slice(b"\r\n");
    }

    /// Nothing there: `$-1`, or `_` in RESP3.
    pub fn null(&mut self) {
        self.out.put_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n".as_slice(),
            Protocol::Resp3 => b"_\r\n".as_slice(),
        });
    }

    /// No array: `*-1`, or `_` in RESP3.
    pub fn null_array(&mut self) {
        self.out.put_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n".as_slice(),
            Protocol::Resp3 => b"_\r\n".as_slice(),
        });
    }

    /// Begins an array of `count` replies.
    pub fn array(&mut self, count: usize) {
        self.length(b'*', count);
    }

    /// Begins a map of `count` pairs; in RESP2 an array of twice as many.
    pub fn map(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', 2 * count),
            Protocol::Resp3 => self.length(b'%', count),
        }
    }

    /// Begins a set; in RESP2 an array.
    pub fn set(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', count),
            Protocol::Resp3 => self.length(b'~', count),
        }
    }

    /// Begins an out-of-band push; in RESP2 an array.
    pub fn push(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', count),
            Protocol::Resp3 => self.length(b'>', count),
        }
    }

    /// Text for people; in RESP2 a bulk string.
    pub fn verbatim(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.length(b'=', text.len() + 4);
                self.out.put_slice(b"txt:");
                self.out.put_slice(text.as_bytes());
                self.out.put_slice(b"\r\n");
            }
        }
    }

    /// A number with a fraction; in RESP2 a bulk string.
    pub fn double(&mut self, value: f64) {
        let text = if value.is_nan() {
            "nan".to_owned()
        } else if value.is_infinite() {
            if value > 0.0 {
                "inf".to_owned()
            } else {
                "-inf".to_owned()
            }
        } else {
            value.to_string()
        };
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => self.line(b',', &text),
        }
    }

    /// True or false; in RESP2 1 or 0.
    pub fn boolean(&mut self, value: bool) {
        match self.protocol {
            Protocol::Resp2 => self.integer(i64::from(value)),
            Protocol::Resp3 => self
                .out
                .put_slice(if value { b"#t\r\n" } else { b"#f\r\n" }),
        }
    }

    fn line(&mut self, kind: u8, text: &str) {
        self.out.reserve(text.len() + 3);
        self.out.put_u8(kind);
        for byte in text.bytes() {
            self.out.put_u8(if byte == b'\r' || byte == b'\n' {
                b' '
            } else {
                byte
            });
        }
        self.out.put_slice(b"\r\n");
    }

    fn length(&mut self, kind: u8, length: usize) {
        self.header(
            kind,
            i64::try_from(length).expect("lengths are below isize::MAX"),
        );
    }

    fn header(&mut self, kind: u8, value: i64) {
        self.out.put_u8(kind);
        self.out
            .put_slice(itoa::Buffer::new().format(value).as_bytes());
        self.out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_written_for_both_versions() {
        let check = |resp2: &str, resp3: &str, write: &dyn Fn(&mut ReplyWriter<'_>)| {
            for (protocol, expected) in [(Protocol::Resp2, resp2), (Protocol::Resp3, resp3)] {
                let mut out = BytesMut::new();
                write(&mut ReplyWriter::new(&mut out, protocol));
                assert_eq!(std::str::from_utf8(&out), Ok(expected));
            }
        };
        check("+OK\r\n", "+OK\r\n", &|r| r.ok());
        check("-ERR a  b\r\n", "-ERR a  b\r\n", &|r| r.error("ERR a\r\nb"));
        check(":-7\r\n", ":-7\r\n", &|r| r.integer(-7));
        check("$5\r\nhello\r\n", "$5\r\nhello\r\n", &|r| r.bulk(b"hello"));
        check("$-1\r\n", "_\r\n", &|r| r.null());
        check("*-1\r\n", "_\r\n", &|r| r.null_array());
        check("*2\r\n", "*2\r\n", &|r| r.array(2));
        check("*4\r\n", "%2\r\n", &|r| r.map(2));
        check("*2\r\n", "~2\r\n", &|r| r.set(2));
        check("*2\r\n", ">2\r\n", &|r| r.push(2));
        check("$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n", &|r| r.verbatim("hi"));
        check("$3\r\n1.5\r\n", ",1.5\r\n", &|r| r.double(1.5));
        check("$4\r\n-inf\r\n", ",-inf\r\n", &|r| {
            r.double(f64::NEG_INFINITY)
        });
        check(":1\r\n", "#t\r\n", &|r| r.boolean(true));
    }
}
