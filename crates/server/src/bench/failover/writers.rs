//! Applications that write while their server dies, and remember what was acknowledged.
//!
//! W1. Every session has one writer, and its values count up: one that reads less than the last acknowledged count has
//!     lost what was acknowledged in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::clients::Endpoint;
use super::super::keys;
use super::super::local::Failure;
use super::super::replies::{Connection, Reply};

const WRITERS: u64 = 8;

/// What one session's writer knows.
#[derive(Debug, Clone, Default)]
struct Known {
    sent: u64,
    /// Counts acknowledged since the last look, ascending.
    acknowledged: Vec<u64>,
}

/// What writers of all sessions know between two loads.
#[derive(Debug)]
pub struct Ledger {
    /// Session `n` belongs to writer `n % WRITERS`, at `n / WRITERS`.
    known: Vec<Vec<Known>>,
    value_bytes: u32,
}

/// What acknowledged writes became.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    pub acknowledged: u64,
    pub lost_writes: u64,
    pub lost_sessions: u64,
}

/// Shared by the writers of one load.
#[derive(Debug)]
struct Signals {
    stop: AtomicBool,
    /// Microseconds from `began` to the kill; `u64::MAX` before it.
    killed_us: AtomicU64,
    /// The same to the first acknowledged write to a session of the victim that was sent after the kill.
    first_us: AtomicU64,
    began: Instant,
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    signals: Arc<Signals>,
    tasks: Vec<tokio::task::JoinHandle<Result<Vec<Known>, Failure>>>,
    value_bytes: u32,
}

impl Ledger {
    /// Of the sessions with numbers below `sessions`.
    pub fn new(sessions: u64, value_bytes: u32) -> Ledger {
        let of_writer = |writer| (writer..sessions).step_by(WRITERS as usize).count();
        Ledger {
            known: (0..WRITERS)
                .map(|writer| vec![Known::default(); of_writer(writer)])
                .collect(),
            value_bytes,
        }
    }

    /// Begins to write about `per_second` sessions in all; `of_victim` tells which belong to who will be killed.
    pub async fn begin(
        self,
        endpoint: &Endpoint,
        per_second: u32,
        of_victim: impl Fn(u64) -> bool + Clone + Send + 'static,
    ) -> Result<Load, Failure> {
        let signals = Arc::new(Signals {
            stop: AtomicBool::new(false),
            killed_us: AtomicU64::new(u64::MAX),
            first_us: AtomicU64::new(u64::MAX),
            began: Instant::now(),
        });
        let pause = Duration::from_secs_f64(WRITERS as f64 / f64::from(per_second));
        let mut tasks = Vec::new();
        for (writer, known) in self.known.into_iter().enumerate() {
            let writer = Writer {
                number: writer as u64,
                endpoint: endpoint.clone(),
                value_bytes: self.value_bytes as usize,
                pause,
                signals: signals.clone(),
                known,
            };
            let connection = endpoint.connect().await?;
            tasks.push(tokio::spawn(writer.write(connection, of_victim.clone())));
        }
        Ok(Load {
            signals,
            tasks,
            value_bytes: self.value_bytes,
        })
    }

    /// Reads every session that was written, and counts what was acknowledged and is not there any more. What is read is
    /// what is known from then on.
    pub async fn settle(&mut self, endpoint: &Endpoint) -> Result<Account, Failure> {
        let mut account = Account::default();
        let mut connection = endpoint.connect().await?;
        for (writer, sessions) in self.known.iter_mut().enumerate() {
            for (index, known) in sessions.iter_mut().enumerate() {
                if known.acknowledged.is_empty() {
                    continue;
                }
                let number = index as u64 * WRITERS + writer as u64;
                let key = keys::session(number);
                let read = match connection.ask(&[b"GET", &key]).await? {
                    Reply::Bulk(value) => count_in(&value),
                    Reply::Nil => None,
                    other => return Err(format!("session {number}: {other:?}").into()),
                };
                let read = read.unwrap_or(0);
                if read > known.sent {
                    return Err(format!("session {number}: {read} was never written").into());
                }
                let lost = known.acknowledged.iter().filter(|&&it| it > read).count() as u64;
                account.acknowledged += known.acknowledged.len() as u64;
                account.lost_writes += lost;
                account.lost_sessions += u64::from(lost > 0);
                known.acknowledged.clear();
            }
        }
        Ok(account)
    }
}

impl Load {
    /// Says that the victim has been killed, at `at`.
    pub fn killed(&self, at: Instant) {
        let us = at.duration_since(self.signals.began).as_micros() as u64;
        self.signals.killed_us.store(us, Ordering::SeqCst);
    }

    /// From the kill to the first acknowledged write to a session of the victim, if there was one yet.
    pub fn first_write_ms(&self) -> Option<f64> {
        let first = self.signals.first_us.load(Ordering::SeqCst);
        let killed = self.signals.killed_us.load(Ordering::SeqCst);
        (first != u64::MAX).then(|| (first - killed) as f64 / 1e3)
    }

    /// Ends the load.
    pub async fn end(self) -> Result<Ledger, Failure> {
        self.signals.stop.store(true, Ordering::SeqCst);
        let mut known = Vec::new();
        for task in self.tasks {
            known.push(task.await??);
        }
        Ok(Ledger {
            known,
            value_bytes: self.value_bytes,
        })
    }
}

struct Writer {
    number: u64,
    endpoint: Endpoint,
    value_bytes: usize,
    pause: Duration,
    signals: Arc<Signals>,
    known: Vec<Known>,
}

impl Writer {
    async fn write(
        mut self,
        mut connection: Connection,
        of_victim: impl Fn(u64) -> bool + Send,
    ) -> Result<Vec<Known>, Failure> {
        let mut due = Instant::now();
        for index in (0..self.known.len()).cycle() {
            if self.signals.stop.load(Ordering::SeqCst) {
                break;
            }
            let number = index as u64 * WRITERS + self.number;
            self.known[index].sent += 1;
            let count = self.known[index].sent;
            let value = value_of(count, self.value_bytes);
            let sent = Instant::now();
            let command: &[&[u8]] = &[b"SET", &keys::session(number), &value, b"EX", b"86400"];
            match connection.ask(command).await {
                Ok(Reply::Simple) => {
                    self.known[index].acknowledged.push(count);
                    if of_victim(number) {
                        self.tell_first(sent);
                    }
                }
                // Refused, or unknown: it may be there or not.
                Ok(Reply::Error(_)) => {}
                Ok(other) => return Err(format!("session {number}: {other:?}").into()),
                Err(_) => connection = self.endpoint.connect().await?,
            }
            // Who was held up writes on at the same rate, as an application's users do.
            due = (due + self.pause).max(Instant::now());
            tokio::time::sleep_until(due.into()).await;
        }
        Ok(self.known)
    }

    fn tell_first(&self, sent: Instant) {
        let sent_us = sent.duration_since(self.signals.began).as_micros() as u64;
        if sent_us >= self.signals.killed_us.load(Ordering::SeqCst) {
            let now_us = self.signals.began.elapsed().as_micros() as u64;
            self.signals.first_us.fetch_min(now_us, Ordering::SeqCst);
        }
    }
}

/// The count in hexadecimal digits, and filling.
fn value_of(count: u64, bytes: usize) -> Vec<u8> {
    let mut value = format!("{count:016x}").into_bytes();
    value.resize(bytes, b'.');
    value
}

fn count_in(value: &[u8]) -> Option<u64> {
    let digits = value.get(..16)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_from_what_was_written() {
        for count in [0, 1, u64::MAX] {
            assert_eq!(count_in(&value_of(count, 16)), Some(count));
            assert_eq!(count_in(&value_of(count, 1024)), Some(count));
        }
        assert_eq!(count_in(b"short"), None);
        assert_eq!(count_in(b"no count at all in this"), None);
    }

    #[test]
    fn every_session_has_one_writer() {
        let ledger = Ledger::new(1_001, 16);
        let sessions: usize = ledger.known.iter().map(Vec::len).sum();
        assert_eq!(sessions, 1_001);
        assert_eq!(ledger.known[0].len(), 126);
        assert_eq!(ledger.known[1].len(), 125);
    }
}
