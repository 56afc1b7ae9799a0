//! The generator: clients that ask at fixed times, whatever the server does, and count what comes of it.
//!
//! A client does not wait for ever to get rid of a request: when a connection takes nothing more, what is due on it
//! counts as offered and not answered.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::super::keys::{self, Random, Source};
use super::super::replies::{self, Replies, Reply};
use super::{LoadArgs, Run};

/// The generator looks at its connections so often.
pub(super) const TICK: Duration = Duration::from_micros(500);

/// Bytes that wait for a connection to take them before its client gives requests up.
const CLOGGED_BYTES: usize = 32 << 10;

/// A request that the generator comes to later than this part of the deadline is not offered: the delay would be told as the
/// server's.
const GENERATOR_LATE: u32 = 10;

/// One thread of the generator: offers `rate` requests per second on its connections, evenly.
pub(super) fn offer(
    mut clients: Vec<Client>,
    rate: f64,
    [began, counted_from, end]: [Instant; 3],
    deadline: Duration,
) -> Run<Tally> {
    let mut tally = Tally::new();
    let interval = Duration::from_secs_f64(1.0 / rate.max(1.0));
    let (mut due, mut next, connections) = (began, 0, clients.len());
    let patience = end + deadline * 4;
    loop {
        let now = Instant::now();
        while due <= now && due < end {
            let client = &mut clients[next];
            next = (next + 1) % connections;
            let counts = due >= counted_from;
            if now - due > deadline / GENERATOR_LATE {
                tally.not_offered += u64::from(counts);
            } else if client.is_clogged() {
                tally.unanswered += u64::from(counts);
            } else {
                client.ask(due);
            }
            due += interval;
        }
        let mut waiting = 0;
        for client in &mut clients {
            client.turn(&mut |due, creates, reply| {
                if due >= counted_from {
                    tally.count(now.saturating_duration_since(due), deadline, creates, reply);
                }
            })?;
            waiting += client.due.len();
        }
        if (due >= end && waiting == 0) || now > patience {
            let of = |client: &Client| client.due.iter().filter(|d| d.0 >= counted_from).count();
            tally.unanswered += clients.iter().map(of).sum::<usize>() as u64;
            return Ok(tally);
        }
        std::thread::sleep(TICK);
    }
}

pub(super) struct Tally {
    pub(super) accepted_us: Histogram<u64>,
    pub(super) visits: u64,
    pub(super) creations: u64,
    pub(super) late: u64,
    pub(super) refused: u64,
    pub(super) unanswered: u64,
    pub(super) not_offered: u64,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally {
            accepted_us: Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds"),
            visits: 0,
            creations: 0,
            late: 0,
            refused: 0,
            unanswered: 0,
            not_offered: 0,
        }
    }

    fn count(&mut self, took: Duration, deadline: Duration, creates: bool, reply: &Reply) {
        if let Reply::Error(text) = reply {
            // Everything else is a failure, and no refusal.
            match text.starts_with("BUSY") {
                true => self.refused += 1,
                false => self.unanswered += 1,
            }
            return;
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.accepted_us.saturating_record(us.max(1));
        match (took <= deadline, creates) {
            (false, _) => self.late += 1,
            (true, false) => self.visits += 1,
            (true, true) => self.creations += 1,
        }
    }

    pub(super) fn add(&mut self, other: Tally) {
        self.accepted_us
            .add(&other.accepted_us)
            .expect("same bounds");
        self.visits += other.visits;
        self.creations += other.creations;
        self.late += other.late;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.not_offered += other.not_offered;
    }
}

/// A connection, and what it waits for.
pub(super) struct Client {
    stream: TcpStream,
    replies: Replies,
    out: Vec<u8>,
    /// When each unanswered request was due, and whether it creates a session.
    pub(super) due: VecDeque<(Instant, bool)>,
    mix: Mix,
}

/// What is asked for.
struct Mix {
    source: Source,
    /// Which writes create.
    creations: Random,
    create_share: f64,
    ttl: String,
    next_new: u64,
}

impl Mix {
    /// Appends a request; true if it creates a session.
    fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        let session = self.source.session();
        if self.source.reads() {
            replies::write_command(out, &[b"GET", &keys::session(session)]);
            return false;
        }
        let creates = self.creations.share() < self.create_share;
        let key = match creates {
            true => {
                self.next_new += 1;
                keys::session(self.next_new)
            }
            false => keys::session(session),
        };
        let ttl = if creates { "20" } else { &self.ttl };
        let value = self.source.value();
        replies::write_command(out, &[b"SET", &key, value, b"EX", ttl.as_bytes()]);
        creates
    }
}

impl Client {
    pub(super) fn open(args: &LoadArgs, seed: u64, resp: &str) -> Run<Client> {
        // Relaxed: only that no number is given twice matters.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let stream = TcpStream::connect(resp)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            replies: Replies::default(),
            out: Vec::new(),
            due: VecDeque::new(),
            mix: Mix {
                source: Source::new(seed, made, args.sessions, args.read_share, args.value_bytes),
                creations: Random::new(!seed.wrapping_add(made)),
                create_share: args.create_share,
                ttl: args.ttl_seconds.to_string(),
                // Sessions that nobody else makes, in this step or another.
                next_new: (1 << 63) | (made << 32),
            },
        })
    }

    pub(super) fn ask(&mut self, due: Instant) {
        let creates = self.mix.write_next(&mut self.out);
        self.due.push_back((due, creates));
    }

    fn is_clogged(&self) -> bool {
        self.out.len() > CLOGGED_BYTES
    }

    /// Writes what the socket takes and hands over the replies that have come.
    pub(super) fn turn(&mut self, answered: &mut impl FnMut(Instant, bool, &Reply)) -> Run<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(bytes) => {
                    self.out.drain(..bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut block = [0; 16 << 10];
        loop {
            let bytes = match self.stream.read(&mut block) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            self.replies.buffer().extend_from_slice(&block[..bytes]);
            while let Some(reply) = self.replies.take()? {
                let (due, creates) = self.due.pop_front().ok_or("an answer to no question")?;
                answered(due, creates, &reply);
            }
            if bytes < block.len() {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn fill(args: &LoadArgs, seed: u64, resp: &str) -> Run<()> {
    let mut client = Client::open(args, seed, resp)?;
    for first in (0..args.sessions).step_by(500) {
        let mut failed = None;
        for number in first..args.sessions.min(first + 500) {
            let (key, ttl) = (keys::session(number), client.mix.ttl.clone());
            let words: [&[u8]; 5] = [
                b"SET",
                &key,
                client.mix.source.value(),
                b"EX",
                ttl.as_bytes(),
            ];
            replies::write_command(&mut client.out, &words);
            client.due.push_back((Instant::now(), false));
        }
        while !client.due.is_empty() {
            client.turn(&mut |_, _, reply| {
                if let Reply::Error(text) = reply {
                    failed = Some(text.clone());
                }
            })?;
            std::thread::sleep(TICK);
        }
        if let Some(text) = failed {
            return Err(format!("filling failed at about session {first}: {text}").into());
        }
    }
    Ok(())
}
