//! `holdfast bench connections`: opens idle connections and tells what each of them costs the server.
//!
//! Every connection writes and reads one session before it falls silent, so that what its server keeps for
//! it is what remains of a connection that was used, not of one that never spoke.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::replies::{self, Replies, Reply};
use super::watch;
use crate::cli::ClientTlsArgs;
use crate::process::raise_file_limit;
use crate::stream::Stream;
use crate::tls::{ClientKeys, server_name};

/// Connections being opened at a time.
const OPENING: u32 = 64;

/// The server's memory has settled when it grew by less than this in `SETTLE`: after its start it still touches
/// the memory of its log, which has nothing to do with connections.
const SETTLED_BYTES: u64 = 128 << 10;
const SETTLE: Duration = Duration::from_millis(750);
const SETTLES_MAX: u32 = 80;
/// Times that a write is sent before a passing failure counts.
const TRIES: u32 = 5;

type Run<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench connections                            # 10,000 against `holdfast dev`
  holdfast bench connections --connections 2000 --value-bytes 65536")]
pub struct ConnectionsArgs {
    /// RESP address of the server.
    #[arg(long, default_value = "127.0.0.1:6380", env = "HOLDFAST_RESP")]
    address: String,
    #[command(flatten)]
    tls: ClientTlsArgs,
    /// Password, if the server asks for one.
    #[arg(long, env = "HOLDFAST_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Each writes and reads a session of this size before it falls silent.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    value_bytes: u32,
    /// The server's process. Default: the one that INFO names.
    #[arg(long)]
    pid: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Debug)]
struct Report {
    address: String,
    connections: u32,
    value_bytes: u32,
    seconds_to_open: f64,
    resident_before_bytes: u64,
    resident_after_bytes: u64,
    bytes_per_connection: f64,
    answered_after_silence: u32,
}

struct Connection {
    stream: Stream,
    replies: Replies,
}

/// Opens the connections and prints what they cost.
pub async fn run(args: ConnectionsArgs) -> Run<()> {
    raise_file_limit();
    let keys = args.tls.keys()?;
    let mut probe = Connection::open(&args, keys.as_ref()).await?;
    let pid = match args.pid {
        Some(pid) => pid,
        None => probe.server_pid().await?,
    };
    // The same sessions at the end as at the beginning: what differs is the connections.
    let value = vec![b'v'; args.value_bytes as usize];
    for number in 0..OPENING {
        probe.write_and_read(number, &value).await?;
    }
    let before = settled_bytes(pid).await?;
    // A server admits 10,000 clients by default, and so the last one would be refused.
    drop(probe);
    let began = Instant::now();
    let mut open = Vec::with_capacity(args.connections as usize);
    for first in (0..args.connections).step_by(OPENING as usize) {
        let batch: Vec<_> = (first..args.connections.min(first + OPENING))
            .map(|number| {
                let (args, keys, value) = (args.clone(), keys.clone(), value.clone());
                tokio::spawn(async move {
                    let mut connection = Connection::open(&args, keys.as_ref()).await?;
                    connection.write_and_read(number % OPENING, &value).await?;
                    connection.replies = Replies::default();
                    Run::Ok(connection)
                })
            })
            .collect();
        for connection in batch {
            open.push(connection.await??);
        }
    }
    let seconds_to_open = began.elapsed().as_secs_f64();
    let after = settled_bytes(pid).await?;
    let mut answered = 0;
    for connection in &mut open {
        connection.ask(&[b"PING"]).await?;
        answered += 1;
    }
    let report = Report {
        address: args.address.clone(),
        connections: args.connections,
        value_bytes: args.value_bytes,
        seconds_to_open,
        resident_before_bytes: before,
        resident_after_bytes: after,
        bytes_per_connection: after.saturating_sub(before) as f64 / f64::from(args.connections),
        answered_after_silence: answered,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{} connections opened in {:.2} s, each used once with {} byte values, then silent",
            report.connections, report.seconds_to_open, report.value_bytes
        );
        println!(
            "  server memory  {:.1} KiB per connection ({:.1} MiB before, {:.1} MiB after)",
            report.bytes_per_connection / 1024.0,
            before as f64 / 1_048_576.0,
            after as f64 / 1_048_576.0
        );
        println!("  still served   {answered} of {}", report.connections);
    }
    Ok(())
}

impl Connection {
    async fn open(args: &ConnectionsArgs, keys: Option<&ClientKeys>) -> Run<Connection> {
        let stream = TcpStream::connect(&args.address)
            .await
            .map_err(|error| format!("cannot connect to {}: {error}", args.address))?;
        stream.set_nodelay(true)?;
        let stream = match keys {
            None => Stream::Plain(stream),
            Some(keys) => {
                let name = server_name(&args.address)?;
                let stream = keys.connector()?.connect(name, stream).await?;
                Stream::Tls(Box::new(stream.into()))
            }
        };
        let mut connection = Connection {
            stream,
            replies: Replies::default(),
        };
        if let Some(password) = &args.password {
            connection.ask(&[b"AUTH", password.as_bytes()]).await?;
        }
        Ok(connection)
    }

    async fn write_and_read(&mut self, number: u32, value: &[u8]) -> Run<()> {
        let key = format!("idle:{number}");
        // The same again does no harm; a starved server lets answers be late.
        for tries_left in (0..TRIES).rev() {
            let set = [b"SET".as_slice(), key.as_bytes(), value, b"EX", b"600"];
            match self.ask(&set).await {
                Ok(_) => break,
                Err(error) if tries_left == 0 || !is_passing(&error.to_string()) => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(SETTLE).await,
            }
        }
        self.ask(&[b"GET", key.as_bytes()]).await?;
        Ok(())
    }

    async fn server_pid(&mut self) -> Run<u32> {
        let Reply::Bulk(text) = self.ask(&[b"INFO", b"server"]).await? else {
            return Err("INFO tells no process; name it with --pid".into());
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let pid = text
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        pid.and_then(|pid| pid.trim().parse().ok())
            .ok_or("INFO tells no process; name it with --pid".into())
    }

    async fn ask(&mut self, words: &[&[u8]]) -> Run<Reply> {
        let mut bytes = Vec::new();
        replies::write_command(&mut bytes, words);
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        loop {
            match self.replies.take()? {
                Some(Reply::Error(text)) => return Err(text.into()),
                Some(reply) => return Ok(reply),
                None => {}
            }
            if self.stream.read_buf(self.replies.buffer()).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
}

/// True of an answer that another try may better.
fn is_passing(error: &str) -> bool {
    ["ERR outcome unknown", "BUSY", "TRYAGAIN"]
        .iter()
        .any(|prefix| error.starts_with(prefix))
}

async fn settled_bytes(pid: u32) -> Run<u64> {
    let mut last = resident_bytes(pid)?;
    for _ in 0..SETTLES_MAX {
        tokio::time::sleep(SETTLE).await;
        let now = resident_bytes(pid)?;
        if now <= last + SETTLED_BYTES && !watch::maps(pid) {
            return Ok(now);
        }
        last = now;
    }
    Err("the server's memory goes on growing: is somebody else using it?".into())
}

/// Resident memory of a process on this machine.
fn resident_bytes(pid: u32) -> Run<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .map_err(|_| format!("process {pid} is not on this machine; name one with --pid"))?;
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .ok_or("the kernel tells no memory of the process")?;
    Ok(pages * rustix::param::page_size() as u64)
}
