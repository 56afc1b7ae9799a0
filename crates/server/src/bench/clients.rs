//! Clients that fill a server, check what it holds, and keep asking while it fails: through one address that stays, or
//! through Redis Sentinels, which tell who serves now.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::keys;
use super::local::{Failure, PATIENCE, Size, value};
use super::replies::{self, Connection, Reply};

/// Commands in flight while filling and checking.
const BATCH: usize = 200;
/// Before what was refused for load is sent again, as the refusal says.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Connections that fill and check.
const WORKERS: u64 = 4;
/// Between two attempts of a client to find who serves.
const RETRY: Duration = Duration::from_millis(10);

/// Where a client connects.
#[derive(Debug, Clone)]
pub enum Endpoint {
    Fixed(String),
    /// Addresses of Sentinels that watch one master, called `name`.
    Sentinels {
        addresses: Vec<String>,
        name: &'static str,
    },
}

impl Endpoint {
    /// Connects to who serves now, as soon as somebody does.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let began = Instant::now();
        loop {
            if let Ok(address) = self.resolve().await
                && let Ok(connection) = Connection::open(&address).await
            {
                return Ok(connection);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("nobody answers at {self:?}").into());
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn resolve(&self) -> io::Result<String> {
        let (addresses, name) = match self {
            Endpoint::Fixed(address) => return Ok(address.clone()),
            Endpoint::Sentinels { addresses, name } => (addresses, name),
        };
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match ask_sentinel(address, name).await {
                Ok(master) => return Ok(master),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// `SENTINEL get-master-addr-by-name`.
async fn ask_sentinel(address: &str, name: &str) -> io::Result<String> {
    let mut sentinel = Connection::open(address).await?;
    let question: &[&[u8]] = &[b"SENTINEL", b"get-master-addr-by-name", name.as_bytes()];
    if sentinel.ask(question).await? != Reply::Array(2) {
        return Err(io::ErrorKind::NotFound.into());
    }
    match (sentinel.reply().await?, sentinel.reply().await?) {
        (Reply::Bulk(host), Reply::Bulk(port)) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(format!("{}:{}", text(&host), text(&port)))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Fill,
    Check,
}

/// Writes the first value of every session.
pub async fn fill(endpoint: &Endpoint, size: &Size) -> Result<(), Failure> {
    on_sessions(endpoint, size, 0, Work::Fill).await.map(drop)
}

/// How many of the sessions from number `first` on have not the value that they were filled with.
pub async fn check(endpoint: &Endpoint, size: &Size, first: u64) -> Result<u64, Failure> {
    on_sessions(endpoint, size, first, Work::Check).await
}

async fn on_sessions(
    endpoint: &Endpoint,
    size: &Size,
    first: u64,
    work: Work,
) -> Result<u64, Failure> {
    let mut tasks = Vec::new();
    for worker in 0..WORKERS {
        let (sessions, bytes) = (size.sessions, size.value_bytes);
        let mut connection = endpoint.connect().await?;
        tasks.push(tokio::spawn(async move {
            let mut wrong = 0;
            let mut out = Vec::new();
            let mut mine = (first + worker..sessions).step_by(WORKERS as usize);
            let mut batch: Vec<u64> = Vec::new();
            let mut refused_since: Option<Instant> = None;
            loop {
                batch.extend(mine.by_ref().take(BATCH - batch.len()));
                if batch.is_empty() {
                    break;
                }
                out.clear();
                for &number in &batch {
                    let key = keys::session(number);
                    match work {
                        Work::Fill => replies::write_command(
                            &mut out,
                            &[b"SET", &key, &value(number, bytes), b"EX", b"86400"],
                        ),
                        Work::Check => replies::write_command(&mut out, &[b"GET", &key]),
                    }
                }
                connection.stream.write_all(&out).await?;
                let mut refused = Vec::new();
                for &number in &batch {
                    match (work, connection.reply().await?) {
                        (Work::Fill, Reply::Simple) => {}
                        (Work::Check, Reply::Bulk(read)) if read == value(number, bytes) => {}
                        (Work::Check, Reply::Bulk(_) | Reply::Nil) => wrong += 1,
                        // More than the machine can take now.
                        (_, Reply::Error(text)) if text.starts_with("BUSY") => {
                            refused.push(number);
                        }
                        (_, other) => return Err(format!("session {number}: {other:?}").into()),
                    }
                }
                batch = refused;
                if batch.is_empty() {
                    refused_since = None;
                } else if refused_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err("the servers refuse as overloaded without end".into());
                } else {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
            }
            Ok::<u64, Failure>(wrong)
        }));
    }
    let mut wrong = 0;
    for task in tasks {
        wrong += task.await??;
    }
    Ok(wrong)
}

/// Connections that each ask for their part of a sample over and over until all of it was read.
#[derive(Debug)]
pub struct Probes {
    tasks: Vec<(Connection, Vec<u64>)>,
    endpoint: Endpoint,
    value_bytes: u32,
}

impl Probes {
    /// `sample`: numbers of sessions that still have their first value. Replies come in order: of two sessions of one
    /// connection the second is not seen before the first.
    pub async fn connect(
        endpoint: &Endpoint,
        value_bytes: u32,
        sample: &[u64],
        connections: usize,
    ) -> Result<Probes, Failure> {
        let mut tasks = Vec::new();
        for part in sample.chunks(sample.len().div_ceil(connections)) {
            tasks.push((endpoint.connect().await?, part.to_vec()));
        }
        Ok(Probes {
            tasks,
            endpoint: endpoint.clone(),
            value_bytes,
        })
    }

    /// Milliseconds from `killed` to the first right answer, for every session of the sample, in ascending order.
    pub async fn until_all_read(self, killed: Instant) -> Result<Vec<f64>, Failure> {
        let mut tasks = Vec::new();
        for (connection, part) in self.tasks {
            let endpoint = self.endpoint.clone();
            let probing = probe(endpoint, connection, part, self.value_bytes, killed);
            tasks.push(tokio::spawn(probing));
        }
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

async fn probe(
    endpoint: Endpoint,
    mut connection: Connection,
    mut waiting: Vec<u64>,
    value_bytes: u32,
    killed: Instant,
) -> Result<Vec<f64>, Failure> {
    let mut times = Vec::new();
    let mut out = Vec::new();
    while !waiting.is_empty() && killed.elapsed() < PATIENCE {
        out.clear();
        for &number in &waiting {
            replies::write_command(&mut out, &[b"GET", &keys::session(number)]);
        }
        let mut still = Vec::new();
        let mut is_broken = connection.stream.write_all(&out).await.is_err();
        for &number in &waiting {
            if is_broken {
                still.push(number);
                continue;
            }
            match connection.reply().await {
                Ok(Reply::Bulk(read)) if read == value(number, value_bytes) => {
                    times.push(killed.elapsed().as_secs_f64() * 1e3);
                }
                // Not yet: a gateway gave up waiting, or a replica is not what it is going to be.
                Ok(Reply::Error(_)) => still.push(number),
                Err(_) => {
                    is_broken = true;
                    still.push(number);
                }
                // Anything else is a lie.
                Ok(other) => return Err(format!("session {number}: {other:?}").into()),
            }
        }
        waiting = still;
        if is_broken {
            connection = endpoint.connect().await?;
        }
    }
    if waiting.is_empty() {
        Ok(times)
    } else {
        Err(format!("{} sessions never became readable", waiting.len()).into())
    }
}
