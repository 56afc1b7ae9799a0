//! `holdfast bench load`: offers load to any server that speaks the Redis protocol and reports
//! throughput, latency and what the server's processes spent on it.
//!
//! Closed loop: every connection keeps `pipeline` commands in flight. Open loop (`--rate`): commands
//! are due at fixed times whatever the server does, and latency counts from when a command was due,
//! so a stalled server cannot hide behind a waiting client.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cpu::ProcessesCpu;
use super::keys::{self, Source};
use super::replies;
use crate::cli::ClientTlsArgs;
use crate::stream::Stream;
use crate::tls::server_name;

/// Longest latency told apart; longer ones count as this.
const LATENCY_MAX_US: u64 = 60_000_000;

#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench load                                   # against `holdfast dev`, half reads
  holdfast bench load --read-share 1 --pipeline 16      # GET only, 16 in flight per connection
  holdfast bench load --rate 20000 --seconds 30         # open loop
  holdfast bench load --address 127.0.0.1:6379          # the same against a redis-server
  holdfast bench load --open-loop --seconds 3           # goodput under overload, protected and not")]
pub struct LoadArgs {
    /// RESP address of the server under load.
    #[arg(long, default_value = "127.0.0.1:6380", env = "HOLDFAST_RESP")]
    address: String,
    /// Password, if the server asks for one.
    #[arg(long, env = "HOLDFAST_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) connections: u32,
    /// Commands in flight on each connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(super) value_bytes: u32,
    /// Sessions touched, uniformly.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) sessions: u64,
    /// Share of GETs; the rest are SET … EX.
    #[arg(long, default_value_t = 0.5)]
    pub(super) read_share: f64,
    /// Seconds until a session written expires.
    #[arg(long, default_value_t = 3600)]
    pub(super) ttl_seconds: u64,
    #[arg(long, default_value_t = 10.0)]
    pub(super) seconds: f64,
    /// Commands per second, offered whatever the server does. Default: as fast as it answers.
    #[arg(long)]
    rate: Option<f64>,
    /// Send `WAIT N 0` behind each batch of `pipeline` commands and count them as answered when it is:
    /// for Redis, which acknowledges before its replicas have anything. Holdfast needs no such thing.
    #[arg(long, value_name = "N", conflicts_with = "rate")]
    wait_replicas: Option<u32>,
    /// Do not write every session once before measuring.
    #[arg(long)]
    no_fill: bool,
    /// Seed of the keys and values. Default: another one each time, because a run with the seed of an earlier one
    /// writes what is there already, which is only a touch.
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Server processes whose CPU time is summed. Default: the one that INFO names.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Take the processes from a ready file of `holdfast dev` instead.
    #[arg(long, conflicts_with = "pids")]
    ready_file: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Find out what becomes of answers in time under overload: starts a server of its own, with protection and
    /// without, offers it ever more, and writes `overload.{txt,json,svg}`. --seconds are those of one step
    /// (3 are enough).
    #[arg(long, conflicts_with_all = ["rate", "wait_replicas", "pids", "ready_file"], help_heading = "Overload")]
    open_loop: bool,
    /// Answers that come later than this after their request was due do not count.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000), help_heading = "Overload")]
    pub(super) deadline_ms: u64,
    /// The part of a core that the server may use.
    #[arg(long, default_value_t = 0.25, help_heading = "Overload")]
    pub(super) held_to: f64,
    /// The same for the server behind a gateway of its own, which needs processor time beside the generator.
    #[arg(long, default_value_t = 0.05, help_heading = "Overload")]
    pub(super) window_held_to: f64,
    /// Share of the writes that create sessions.
    #[arg(long, default_value_t = 0.0, help_heading = "Overload")]
    pub(super) create_share: f64,
    /// Replicas that the server makes; their keepers live in its process and take from the same share.
    #[arg(long, default_value_t = 0, help_heading = "Overload")]
    pub(super) replicas: u8,
    #[arg(long, default_value = super::overload::report_dir().as_os_str(), help_heading = "Overload")]
    pub(super) report_dir: PathBuf,
}

#[derive(Serialize, Debug)]
struct Report {
    address: String,
    connections: u32,
    pipeline: u32,
    value_bytes: u32,
    read_share: f64,
    offered_per_second: Option<f64>,
    seed: u64,
    seconds: f64,
    operations: u64,
    errors: u64,
    operations_per_second: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    server_cpu_us_per_operation: Option<f64>,
    server_processes: usize,
}

#[derive(Debug)]
struct Tally {
    latency_us: Histogram<u64>,
    operations: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn new() -> Tally {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("valid bounds");
        Tally {
            latency_us,
            operations: 0,
            errors: 0,
            first_error: None,
        }
    }

    fn count(&mut self, due: Instant, reply: &replies::Reply) {
        let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(LATENCY_MAX_US);
        self.latency_us.saturating_record(us.max(1));
        self.operations += 1;
        if let replies::Reply::Error(text) = reply {
            self.errors += 1;
            self.first_error.get_or_insert_with(|| text.clone());
        }
    }

    fn add(&mut self, other: Tally) {
        self.latency_us.add(&other.latency_us).expect("same bounds");
        self.operations += other.operations;
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
    }
}

/// Runs the load and prints its report.
pub async fn run(mut args: LoadArgs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if !(0.0..=1.0).contains(&args.read_share) {
        return Err("--read-share lies between 0 (only SET) and 1 (only GET)".into());
    }
    if args.seconds <= 0.0 || args.rate.is_some_and(|rate| rate <= 0.0) {
        return Err("--seconds and --rate must be positive".into());
    }
    let seed = *args.seed.get_or_insert_with(keys::another_seed);
    if args.open_loop {
        return tokio::task::spawn_blocking(move || super::overload::run(&args, seed)).await?;
    }
    let mut probe = Connection::open(&args).await?;
    let pids = server_pids(&args, &mut probe).await?;
    if !args.no_fill {
        fill(&args).await?;
    }

    let before = ProcessesCpu::of(&pids);
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(args.seconds);
    let mut tasks = Vec::new();
    for number in 0..args.connections {
        let connection = Connection::open(&args).await?;
        let args = args.clone();
        tasks.push(tokio::spawn(async move {
            match args.rate {
                None => closed_loop(&args, number, connection, end).await,
                Some(rate) => open_loop(&args, number, connection, rate, began, end).await,
            }
        }));
    }
    let mut tally = Tally::new();
    for task in tasks {
        tally.add(task.await??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu_us = before.and_then(|before| before.spent_us(&pids));

    let report = Report {
        address: args.address.clone(),
        connections: args.connections,
        pipeline: args.pipeline,
        value_bytes: args.value_bytes,
        read_share: args.read_share,
        offered_per_second: args.rate,
        seed,
        seconds,
        operations: tally.operations,
        errors: tally.errors,
        operations_per_second: tally.operations as f64 / seconds,
        p50_us: tally.latency_us.value_at_quantile(0.5),
        p99_us: tally.latency_us.value_at_quantile(0.99),
        p999_us: tally.latency_us.value_at_quantile(0.999),
        max_us: tally.latency_us.max(),
        server_cpu_us_per_operation: cpu_us.map(|us| us / tally.operations.max(1) as f64),
        server_processes: pids.len(),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    match tally.first_error {
        Some(text) => {
            Err(format!("{} commands failed, the first with: {text}", report.errors).into())
        }
        None => Ok(()),
    }
}

fn print_report(report: &Report) {
    println!(
        "{} connections, pipeline {}, {} byte values, {:.0} % GET, {:.1} s",
        report.connections,
        report.pipeline,
        report.value_bytes,
        report.read_share * 100.0,
        report.seconds
    );
    println!(
        "  throughput   {:>10.0} operations/s",
        report.operations_per_second
    );
    println!(
        "  latency      p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs",
        report.p50_us, report.p99_us, report.p999_us, report.max_us
    );
    match report.server_cpu_us_per_operation {
        Some(us) => println!(
            "  server CPU   {us:>10.2} µs per operation over {} process(es)",
            report.server_processes
        ),
        None => println!("  server CPU   unknown: the server's processes are not on this machine"),
    }
}

/// A loaded connection: its socket, and its reply parser's buffer.
struct Connection {
    stream: Stream,
    replies: replies::Replies,
}

impl Connection {
    async fn open(args: &LoadArgs) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&args.address)
            .await
            .map_err(|error| format!("cannot connect to {}: {error}", args.address))?;
        stream.set_nodelay(true)?;
        let stream = match args.tls.keys()? {
            None => Stream::Plain(stream),
            Some(keys) => {
                let name = server_name(&args.address)?;
                let stream = keys.connector()?.connect(name, stream).await;
                let stream = stream.map_err(|error| format!("{}: {error}", args.address))?;
                Stream::Tls(Box::new(stream.into()))
            }
        };
        let mut connection = Connection {
            stream,
            replies: replies::Replies::default(),
        };
        if let Some(password) = &args.password {
            let mut bytes = Vec::new();
            replies::write_command(&mut bytes, &[b"AUTH", password.as_bytes()]);
            connection.stream.write_all(&bytes).await?;
            connection.stream.flush().await?;
            if let replies::Reply::Error(text) = connection.reply().await? {
                return Err(format!("AUTH: {text}").into());
            }
        }
        Ok(connection)
    }

    async fn reply(&mut self) -> std::io::Result<replies::Reply> {
        loop {
            if let Some(reply) = self.replies.take()? {
                return Ok(reply);
            }
            if self.stream.read_buf(self.replies.buffer()).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Writes the next command of the mix.
struct Mix {
    source: Source,
    ttl: String,
}

impl Mix {
    fn new(args: &LoadArgs, number: u32) -> Mix {
        let seed = args.seed.expect("one was chosen at the start");
        let number = u64::from(number);
        Mix {
            source: Source::new(
                seed,
                number,
                args.sessions,
                args.read_share,
                args.value_bytes,
            ),
            ttl: args.ttl_seconds.to_string(),
        }
    }

    fn write_next(&mut self, out: &mut Vec<u8>) {
        let session = self.source.session();
        match self.source.reads() {
            true => replies::write_command(out, &[b"GET", &keys::session(session)]),
            false => self.write_set(out, session),
        }
    }

    fn write_set(&mut self, out: &mut Vec<u8>, session: u64) {
        let key = keys::session(session);
        let ttl = self.ttl.as_bytes();
        replies::write_command(out, &[b"SET", &key, self.source.value(), b"EX", ttl]);
    }
}

type TaskResult = Result<Tally, Box<dyn std::error::Error + Send + Sync>>;

async fn closed_loop(
    args: &LoadArgs,
    number: u32,
    mut connection: Connection,
    end: Instant,
) -> TaskResult {
    let mut mix = Mix::new(args, number + 1);
    let mut tally = Tally::new();
    let mut out = Vec::new();
    let mut replies = Vec::new();
    let wait = args.wait_replicas.map(|count| count.to_string());
    while Instant::now() < end {
        out.clear();
        for _ in 0..args.pipeline {
            mix.write_next(&mut out);
        }
        if let Some(count) = &wait {
            replies::write_command(&mut out, &[b"WAIT", count.as_bytes(), b"0"]);
        }
        let sent = Instant::now();
        connection.stream.write_all(&out).await?;
        connection.stream.flush().await?;
        for _ in 0..args.pipeline {
            let reply = connection.reply().await?;
            match wait {
                Some(_) => replies.push(reply),
                None => tally.count(sent, &reply),
            }
        }
        if wait.is_some() {
            let waited = connection.reply().await?;
            for reply in replies.drain(..) {
                // WAIT refused, or answered with an error: nothing was acknowledged by replicas.
                let refused = matches!(waited, replies::Reply::Error(_));
                tally.count(sent, if refused { &waited } else { &reply });
            }
        }
    }
    Ok(tally)
}

/// Sends what is due without waiting for replies, as long as `pipeline` × 64 are not yet answered
/// (beyond that the backlog is counted as latency, for commands keep their due times).
async fn open_loop(
    args: &LoadArgs,
    number: u32,
    connection: Connection,
    rate: f64,
    began: Instant,
    end: Instant,
) -> TaskResult {
    let interval = Duration::from_secs_f64(f64::from(args.connections) / rate);
    let offset = interval.mul_f64(f64::from(number) / f64::from(args.connections));
    let (sender, mut due_times) =
        tokio::sync::mpsc::channel::<Instant>(args.pipeline as usize * 64);
    let Connection {
        stream,
        mut replies,
    } = connection;
    let (mut read, mut write) = tokio::io::split(stream);
    let writer_args = args.clone();
    let writer = tokio::spawn(async move {
        let mut mix = Mix::new(&writer_args, number + 1);
        let mut out = Vec::new();
        let mut due = began + offset;
        while due < end {
            tokio::time::sleep_until(due.into()).await;
            out.clear();
            let now = Instant::now();
            while due <= now && due < end {
                if sender.capacity() == 0 {
                    // Room comes with replies, also to what has not left yet.
                    write.write_all(&out).await?;
                    write.flush().await?;
                    out.clear();
                }
                if sender.send(due).await.is_err() {
                    return Ok(());
                }
                mix.write_next(&mut out);
                due += interval;
            }
            write.write_all(&out).await?;
            write.flush().await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let mut tally = Tally::new();
    while let Some(due) = due_times.recv().await {
        let reply = loop {
            if let Some(reply) = replies.take()? {
                break reply;
            }
            if read.read_buf(replies.buffer()).await? == 0 {
                return Err("the server closed the connection".into());
            }
        };
        tally.count(due, &reply);
    }
    writer.await??;
    Ok(tally)
}

async fn fill(args: &LoadArgs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = Connection::open(args).await?;
    let mut mix = Mix::new(args, 0);
    let mut out = Vec::new();
    let mut session = 0;
    while session < args.sessions {
        let batch = (args.sessions - session).min(500);
        out.clear();
        for number in session..session + batch {
            mix.write_set(&mut out, number);
        }
        connection.stream.write_all(&out).await?;
        connection.stream.flush().await?;
        for _ in 0..batch {
            if let replies::Reply::Error(text) = connection.reply().await? {
                return Err(format!("filling failed at about session {session}: {text}").into());
            }
        }
        session += batch;
    }
    Ok(())
}

async fn server_pids(
    args: &LoadArgs,
    probe: &mut Connection,
) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
    if !args.pids.is_empty() {
        return Ok(args.pids.clone());
    }
    if let Some(path) = &args.ready_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let ready: serde_json::Value = serde_json::from_str(&text)?;
        let mut pids: Vec<u32> = ready["processes"]
            .as_array()
            .ok_or("the ready file lists no processes")?
            .iter()
            .filter_map(|process| process["pid"].as_u64())
            .filter_map(|pid| u32::try_from(pid).ok())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        return Ok(pids);
    }
    let mut out = Vec::new();
    replies::write_command(&mut out, &[b"INFO", b"server"]);
    probe.stream.write_all(&out).await?;
    probe.stream.flush().await?;
    let pid = match probe.reply().await? {
        replies::Reply::Bulk(text) => String::from_utf8_lossy(&text)
            .lines()
            .find_map(|line| line.strip_prefix("process_id:").map(str::to_owned))
            .and_then(|pid| pid.trim().parse().ok()),
        _ => None,
    };
    Ok(pid.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: LoadArgs,
    }

    /// Commands that were due while nobody ran are more than may be unanswered: they must leave all the same.
    #[tokio::test]
    async fn a_generator_that_comes_late_catches_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let words = [
            "load",
            "--connections",
            "1",
            "--read-share",
            "1",
            "--seed",
            "1",
        ];
        let mut args = Alone::parse_from(words).args;
        args.address = address;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            loop {
                let count = stream.read(&mut bytes).await.unwrap();
                if count == 0 {
                    return;
                }
                // One in each GET.
                let commands = bytes[..count].iter().filter(|&&byte| byte == b'*').count();
                stream
                    .write_all(&b"$-1\r\n".repeat(commands))
                    .await
                    .unwrap();
            }
        });
        let connection = Connection::open(&args).await.unwrap();
        let end = Instant::now();
        let began = end - Duration::from_secs(1);
        let run = open_loop(&args, 0, connection, 1_000.0, began, end);
        let run = tokio::time::timeout(Duration::from_secs(60), run).await;
        let tally = run.expect("it waits for ever").unwrap();
        assert_eq!((tally.operations, tally.errors), (1_000, 0));
        server.await.unwrap();
    }
}
