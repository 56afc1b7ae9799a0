//! RESP as an application reads it: replies out of a stream of fragments, commands into bytes.

use bytes::{Buf, Bytes, BytesMut};

/// A reply of either protocol version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    Null,
    Array(Vec<Reply>),
}

/// Reads replies from what a connection delivers.
#[derive(Debug, Default)]
pub struct ReplyReader {
    buffer: BytesMut,
}

impl ReplyReader {
    /// Takes what arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole reply; an error if the bytes are not RESP.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, String> {
        let mut at = 0;
        let reply = parse(&self.buffer, &mut at)?;
        if reply.is_some() {
            self.buffer.advance(at);
        }
        Ok(reply)
    }
}

fn parse(bytes: &[u8], at: &mut usize) -> Result<Option<Reply>, String> {
    let rest = &bytes[*at..];
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let (kind, line) = match rest[..end].split_first() {
        Some((&kind, line)) => (kind, String::from_utf8_lossy(line).into_owned()),
        None => return Err("an empty line where a reply should begin".to_owned()),
    };
    *at += end + 2;
    let number = || {
        line.parse::<i64>()
            .map_err(|_| format!("{line:?} is not a number"))
    };
    Ok(Some(match kind {
        b'+' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Null,
        b',' | b'(' => Reply::Simple(line),
        b'#' => Reply::Integer(i64::from(line == "t")),
        b'$' | b'=' => match number()? {
            -1 => Reply::Null,
            length => {
                let length = usize::try_from(length).map_err(|_| "a negative length".to_owned())?;
                let Some(body) = bytes.get(*at..*at + length + 2) else {
                    return Ok(None);
                };
                if &body[length..] != b"\r\n" {
                    return Err("a bulk string is longer than it says".to_owned());
                }
                *at += length + 2;
                Reply::Bulk(Bytes::copy_from_slice(&body[..length]))
            }
        },
        b'*' | b'~' | b'>' | b'%' => match number()? {
            -1 => Reply::Null,
            count => {
                let items = if kind == b'%' { 2 * count } else { count };
                let mut list = Vec::new();
                for _ in 0..items {
                    match parse(bytes, at)? {
                        Some(reply) => list.push(reply),
                        None => return Ok(None),
                    }
                }
                Reply::Array(list)
            }
        },
        other => return Err(format!("{:?} begins no reply", char::from(other))),
    }))
}

/// A command as clients send it.
pub fn command(arguments: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_out_of_any_fragments() {
        let stream =
            b"+OK\r\n$5\r\nhe\r\no\r\n*2\r\n:7\r\n$-1\r\n_\r\n%1\r\n+a\r\n+b\r\n-ERR no\r\n";
        let expected = vec![
            Reply::Simple("OK".into()),
            Reply::Bulk(Bytes::from_static(b"he\r\no")),
            Reply::Array(vec![Reply::Integer(7), Reply::Null]),
            Reply::Null,
            Reply::Array(vec![Reply::Simple("a".into()), Reply::Simple("b".into())]),
            Reply::Error("ERR no".into()),
        ];
        for step in 1..stream.len() {
            let mut reader = ReplyReader::default();
            let mut replies = Vec::new();
            for fragment in stream.chunks(step) {
                reader.feed(fragment);
                while let Some(reply) = reader.next_reply().unwrap() {
                    replies.push(reply);
                }
            }
            assert_eq!(replies, expected, "fragments of {step}");
        }
    }

    #[test]
    fn what_is_not_resp_is_an_error() {
        let mut reader = ReplyReader::default();
        reader.feed(b"hello\r\n");
        assert!(reader.next_reply().is_err());
    }
}
