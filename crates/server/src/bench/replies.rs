//! The client's side of RESP2, as much as the benchmarks need: write commands, tell replies apart.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest bulk reply accepted, so that a confused server cannot make the benchmark allocate without end.
const BULK_BYTES_MAX: i64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Simple,
    Integer(i64),
    /// So many replies follow, its elements.
    Array(i64),
    Bulk(Bytes),
    Nil,
    Error(String),
}

pub fn write_command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        out.push(b'$');
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(digits.format(argument.len()).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// Splits what was received into replies.
#[derive(Debug, Default)]
pub struct Replies {
    buffer: BytesMut,
}

impl Replies {
    /// Where received bytes are to be put.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole reply; `None` if more bytes are needed.
    pub fn take(&mut self) -> io::Result<Option<Reply>> {
        let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else {
            return Ok(None);
        };
        if end < 2 || self.buffer[end - 1] != b'\r' {
            return Err(invalid("a line without its end"));
        }
        let line = &self.buffer[1..end - 1];
        let reply = match self.buffer[0] {
            b'+' => Reply::Simple,
            b'-' => Reply::Error(String::from_utf8_lossy(line).into_owned()),
            b':' => Reply::Integer(number(line)?),
            b'*' => Reply::Array(number(line)?),
            b'_' => Reply::Nil,
            b'$' | b'=' => {
                let length = number(line)?;
                if length > BULK_BYTES_MAX {
                    return Err(invalid("a bulk string that is too long"));
                }
                let Ok(length) = usize::try_from(length) else {
                    self.buffer.advance(end + 1);
                    return Ok(Some(Reply::Nil));
                };
                if self.buffer.len() < end + 1 + length + 2 {
                    return Ok(None);
                }
                self.buffer.advance(end + 1);
                let value = self.buffer.split_to(length).freeze();
                self.buffer.advance(2);
                return Ok(Some(Reply::Bulk(value)));
            }
            other => return Err(invalid(&format!("a reply of type '{}'", other as char))),
        };
        self.buffer.advance(end + 1);
        Ok(Some(reply))
    }
}

/// One that asks and waits.
#[derive(Debug)]
pub struct Connection {
    pub stream: TcpStream,
    replies: Replies,
}

impl Connection {
    pub async fn open(address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            replies: Replies::default(),
        })
    }

    /// The next reply, whenever it comes.
    pub async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = self.replies.take()? {
                return Ok(reply);
            }
            if self.stream.read_buf(self.replies.buffer()).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends one command and waits for its reply.
    pub async fn ask(&mut self, arguments: &[&[u8]]) -> io::Result<Reply> {
        let mut out = Vec::new();
        write_command(&mut out, arguments);
        self.stream.write_all(&out).await?;
        self.reply().await
    }
}

fn number(line: &[u8]) -> io::Result<i64> {
    std::str::from_utf8(line)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a number that is none"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_split_wherever_the_bytes_are() {
        let all = b"+OK\r\n-ERR no\r\n*3\r\n:12\r\n$5\r\nhe\r\no\r\n$-1\r\n";
        let wanted = vec![
            Reply::Simple,
            Reply::Error("ERR no".into()),
            Reply::Array(3),
            Reply::Integer(12),
            Reply::Bulk(Bytes::from_static(b"he\r\no")),
            Reply::Nil,
        ];
        for cut in 0..all.len() {
            let mut replies = Replies::default();
            let mut got = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                replies.buffer().extend_from_slice(part);
                while let Some(reply) = replies.take().unwrap() {
                    got.push(reply);
                }
            }
            assert_eq!(got, wanted, "cut at {cut}");
        }
        let mut replies = Replies::default();
        replies.buffer().extend_from_slice(b"?what\r\n");
        assert!(replies.take().is_err());
    }
}
