//! A plain blocking RESP2 client: what it sends and gets is all there is, with no retry to hide a fault.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

#[derive(Debug)]
pub struct Resp {
    reader: BufReader<TcpStream>,
}

impl Resp {
    /// Replies that take longer than `timeout` are errors.
    pub fn connect(address: &str, timeout: Duration) -> io::Result<Resp> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Resp {
            reader: BufReader::new(stream),
        })
    }

    pub fn send(&mut self, arguments: &[&[u8]]) -> io::Result<()> {
        let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            out.extend_from_slice(argument);
            out.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&out)
    }

    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(rest.parse().map_err(|_| io::ErrorKind::InvalidData)?),
            "$" => {
                let length: i64 = rest.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                let Ok(length) = usize::try_from(length) else {
                    return Ok(Reply::Bulk(None));
                };
                let mut value = vec![0; length + 2];
                self.reader.read_exact(&mut value)?;
                value.truncate(length);
                Reply::Bulk(Some(value))
            }
            "*" => {
                let length: i64 = rest.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                Reply::Array(
                    (0..length)
                        .map(|_| self.receive())
                        .collect::<io::Result<_>>()?,
                )
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }

    pub fn call(&mut self, arguments: &[&[u8]]) -> io::Result<Reply> {
        self.send(arguments)?;
        self.receive()
    }

    pub fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        match self.call(&[b"GET", key.as_bytes()])? {
            Reply::Bulk(value) => Ok(value),
            other => Err(io::Error::other(format!("GET {key}: {other:?}"))),
        }
    }
}
