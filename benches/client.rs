//! A pipelining client of the Redis and the memcached protocol, as much as the benchmarks need.
//!
//! Blocking, one connection: commands are collected, sent together, and then all their replies are read.
//! `Load` runs several of them on threads, so that a server never waits for its load.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::keys::{self, Random};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Resp,
    Memcache,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done,
    Missing,
    Value(Vec<u8>),
    /// The server's words.
    Refused(String),
}

#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    dialect: Dialect,
    out: Vec<u8>,
    waiting: usize,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have been understood.
    read: usize,
}

/// A server that answers nothing for so long has failed the benchmark.
const PATIENCE: Duration = Duration::from_secs(120);

impl Client {
    pub fn connect(address: SocketAddr, dialect: Dialect) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client {
            stream,
            dialect,
            out: Vec::new(),
            waiting: 0,
            buffer: Vec::new(),
            read: 0,
        })
    }

    /// With a time to live, if one is given.
    pub fn set(&mut self, key: &[u8], value: &[u8], ttl_seconds: Option<u32>) {
        self.waiting += 1;
        let ttl = ttl_seconds.map(|seconds| seconds.to_string());
        match (self.dialect, &ttl) {
            (Dialect::Resp, Some(ttl)) => self.resp(&[b"SET", key, value, b"EX", ttl.as_bytes()]),
            (Dialect::Resp, None) => self.resp(&[b"SET", key, value]),
            (Dialect::Memcache, ttl) => {
                self.out.extend_from_slice(b"set ");
                self.out.extend_from_slice(key);
                let ttl = ttl.as_deref().unwrap_or("0");
                let rest = format!(" 0 {ttl} {}\r\n", value.len());
                self.out.extend_from_slice(rest.as_bytes());
                self.out.extend_from_slice(value);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.waiting += 1;
        match self.dialect {
            Dialect::Resp => self.resp(&[b"DEL", key]),
            Dialect::Memcache => self.line(b"delete ", key),
        }
    }

    /// A new time to live; not of memcached.
    pub fn expire(&mut self, key: &[u8], ttl_seconds: u32) {
        assert_eq!(
            self.dialect,
            Dialect::Resp,
            "only Redis's protocol is asked"
        );
        self.waiting += 1;
        self.resp(&[b"EXPIRE", key, ttl_seconds.to_string().as_bytes()]);
    }

    pub fn get(&mut self, key: &[u8]) {
        self.waiting += 1;
        match self.dialect {
            Dialect::Resp => self.resp(&[b"GET", key]),
            Dialect::Memcache => self.line(b"get ", key),
        }
    }

    /// Commands not sent yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Sends what was collected and hands over the replies in order.
    pub fn exchange(&mut self, mut reply: impl FnMut(usize, Reply)) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        for number in 0..std::mem::take(&mut self.waiting) {
            let next = self.reply()?;
            reply(number, next);
        }
        Ok(())
    }

    fn resp(&mut self, arguments: &[&[u8]]) {
        self.out
            .extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
        for argument in arguments {
            self.out
                .extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            self.out.extend_from_slice(argument);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn line(&mut self, word: &[u8], key: &[u8]) {
        self.out.extend_from_slice(word);
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(b"\r\n");
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let line = self.take_line()?;
        Ok(match self.dialect {
            Dialect::Resp => match line.as_bytes().first() {
                Some(b'+') => Reply::Done,
                Some(b'-') => Reply::Refused(line[1..].to_string()),
                Some(b':') if line == ":0" => Reply::Missing,
                Some(b':') => Reply::Done,
                Some(b'_') => Reply::Missing,
                Some(b'$') if line == "$-1" => Reply::Missing,
                Some(b'$') => Reply::Value(self.take_block(&line[1..])?),
                _ => return Err(strange(&line)),
            },
            Dialect::Memcache => match line.split(' ').next().unwrap_or("") {
                "STORED" | "DELETED" => Reply::Done,
                "NOT_FOUND" | "END" => Reply::Missing,
                "SERVER_ERROR" | "CLIENT_ERROR" | "ERROR" | "NOT_STORED" => Reply::Refused(line),
                "VALUE" => {
                    let length = line.split(' ').nth(3).unwrap_or("").to_string();
                    let value = self.take_block(&length)?;
                    match self.take_line()?.as_str() {
                        "END" => Reply::Value(value),
                        other => return Err(strange(other)),
                    }
                }
                _ => return Err(strange(&line)),
            },
        })
    }

    fn take_line(&mut self) -> io::Result<String> {
        let mut searched = self.read;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|&it| it == b'\n') {
                let end = searched + at;
                let line = self.buffer[self.read..end].strip_suffix(b"\r");
                let line = line.ok_or_else(|| strange("a line that does not end in CR LF"))?;
                let line = String::from_utf8_lossy(line).into_owned();
                self.read = end + 1;
                return Ok(line);
            }
            let known = self.buffer.len() - self.read;
            self.receive()?;
            searched = self.read + known;
        }
    }

    fn take_block(&mut self, length: &str) -> io::Result<Vec<u8>> {
        let length: usize = length.parse().map_err(|_| strange(length))?;
        while self.buffer.len() - self.read < length + 2 {
            self.receive()?;
        }
        let block = self.buffer[self.read..self.read + length].to_vec();
        self.read += length + 2;
        Ok(block)
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.read);
        self.read = 0;
        let known = self.buffer.len();
        self.buffer.resize(known + (64 << 10), 0);
        let received = self.stream.read(&mut self.buffer[known..])?;
        self.buffer.truncate(known + received);
        match received {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn strange(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a strange reply: {line}"),
    )
}

/// How many of the writes of a load went which way.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    pub written: u64,
    pub refused: u64,
    pub first_refusal: Option<String>,
}

impl Outcome {
    pub fn count(&mut self, reply: Reply) {
        match reply {
            Reply::Refused(words) => {
                self.refused += 1;
                self.first_refusal.get_or_insert(words);
            }
            Reply::Done | Reply::Missing | Reply::Value(_) => self.written += 1,
        }
    }

    fn add(&mut self, other: Outcome) {
        self.written += other.written;
        self.refused += other.refused;
        self.first_refusal = self.first_refusal.take().or(other.first_refusal);
    }
}

/// Writes of sessions from several connections at once, each with its own part of them.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub dialect: Dialect,
    pub sessions: u64,
    pub value_bytes: usize,
    pub ttl_seconds: u32,
}

/// When overwriting ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    Written(u64),
}

const CONNECTIONS: u64 = 4;
const PIPELINE: usize = 128;

impl Load {
    /// Every session once, with values of just `value_bytes`.
    pub fn fill(&self) -> io::Result<Outcome> {
        self.on_threads(|part, mut client| {
            let mut outcome = Outcome::default();
            let mut value = vec![b'v'; self.value_bytes];
            for number in (part..self.sessions).step_by(CONNECTIONS as usize) {
                stamp(&mut value, number);
                client.set(&keys::session(number), &value, Some(self.ttl_seconds));
                if client.waiting() == PIPELINE {
                    client.exchange(|_, reply| outcome.count(reply))?;
                }
            }
            client.exchange(|_, reply| outcome.count(reply))?;
            Ok(outcome)
        })
    }

    /// Sessions chosen uniformly, with values of half to one and a half times `value_bytes`. The same
    /// sequence for every server.
    pub fn overwrite(&self, until: Until) -> io::Result<Outcome> {
        let began = Instant::now();
        self.on_threads(|part, mut client| {
            let mut outcome = Outcome::default();
            let mut random = Random::new(part + 1);
            let mut value = vec![b'v'; self.value_bytes * 3 / 2];
            let own = self.sessions / CONNECTIONS;
            loop {
                let over = match until {
                    Until::Elapsed(time) => began.elapsed() >= time,
                    Until::Written(all) => outcome.written + outcome.refused >= all / CONNECTIONS,
                };
                if over {
                    return Ok(outcome);
                }
                for _ in 0..PIPELINE {
                    let number = random.roll() % own * CONNECTIONS + part;
                    let bytes = random.between(self.value_bytes / 2, self.value_bytes * 3 / 2);
                    stamp(&mut value, random.roll());
                    client.set(
                        &keys::session(number),
                        &value[..bytes],
                        Some(self.ttl_seconds),
                    );
                }
                client.exchange(|_, reply| outcome.count(reply))?;
            }
        })
    }

    fn on_threads(
        &self,
        work: impl Fn(u64, Client) -> io::Result<Outcome> + Sync,
    ) -> io::Result<Outcome> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTIONS)
                .map(|part| {
                    let work = &work;
                    scope.spawn(move || work(part, Client::connect(self.address, self.dialect)?))
                })
                .collect();
            let mut all = Outcome::default();
            for thread in threads {
                all.add(thread.join().expect("it does not panic")?);
            }
            Ok(all)
        })
    }
}

/// Makes a value that was not stored before: storing an equal one would only be a touch.
pub fn stamp(value: &mut [u8], number: u64) {
    for (byte, stamp) in value.iter_mut().zip(number.to_le_bytes()) {
        *byte = stamp;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that says `answer` in pieces, whatever it is told.
    fn replies(dialect: Dialect, answer: &'static str, commands: usize) -> Vec<Reply> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            for piece in answer.as_bytes().chunks(3) {
                stream.write_all(piece).unwrap();
                stream.flush().unwrap();
            }
        });
        let mut client = Client::connect(address, dialect).unwrap();
        for _ in 0..commands {
            client.get(b"key");
        }
        let mut all = Vec::new();
        client.exchange(|_, reply| all.push(reply)).unwrap();
        server.join().unwrap();
        all
    }

    #[test]
    fn replies_of_both_protocols_are_told_apart() {
        let value = || Reply::Value(b"a\r\nb".to_vec());
        let refused = |words: &str| Reply::Refused(words.to_string());
        assert_eq!(
            replies(
                Dialect::Resp,
                "+OK\r\n$4\r\na\r\nb\r\n$-1\r\n:0\r\n-OOM full\r\n:1\r\n",
                6
            ),
            [
                Reply::Done,
                value(),
                Reply::Missing,
                Reply::Missing,
                refused("OOM full"),
                Reply::Done
            ]
        );
        let memcache =
            "STORED\r\nVALUE key 0 4\r\na\r\nb\r\nEND\r\nEND\r\nSERVER_ERROR out of memory\r\n";
        assert_eq!(
            replies(Dialect::Memcache, memcache, 4),
            [
                Reply::Done,
                value(),
                Reply::Missing,
                refused("SERVER_ERROR out of memory")
            ]
        );
    }
}
