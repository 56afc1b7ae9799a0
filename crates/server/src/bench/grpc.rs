//! `holdfast bench grpc`: calls, batches and streams of sessions over gRPC, and what tonic itself costs.
//!
//! With `--floor` every measurement is a pair: the server, and a process of this program that answers the same
//! calls with messages of the same sizes and does nothing else (`grpc::echo_server`). It has the runtime and the
//! settings of a real gRPC face; what the server spends beyond it is Holdfast's own.

use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use holdfast_format::Namespace;
use holdfast_wire::grpc::{AdminClient, ClientError, SessionCall, SessionsClient, echo_server};
use holdfast_wire::{Command, Condition, ExpiryChange, Op, Outcome};
use serde::Serialize;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::cpu::ProcessesCpu;
use super::keys::{self, Source};
use crate::cli::ClientArgs;
use crate::door::Door;
use crate::grpc::server_settings;
use crate::tls::{ClientKeys, Face};

/// Longest latency told apart; longer ones count as this.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Items of a batch while filling.
const FILL_ITEMS: u64 = 500;
/// Nothing here may take longer to start.
const PATIENCE: Duration = Duration::from_secs(60);

type Run<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench grpc                                      # one stream, 256 in flight, against `holdfast dev`
  holdfast bench grpc --mode unary --in-flight 64 --floor  # calls of their own, beside tonic's own cost
  holdfast bench grpc --mode batch --in-flight 100 --read-share 1")]
pub struct GrpcArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    mode: Mode,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Requests unanswered on each connection: calls at a time, items of a batch, or of the stream.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    in_flight: u32,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    value_bytes: u32,
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    sessions: u64,
    /// Share of reads; the rest are writes. A batch is all of one kind.
    #[arg(long, default_value_t = 0.5)]
    read_share: f64,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Measure tonic alone beside it, in alternating turns.
    #[arg(long)]
    floor: bool,
    /// Times that each is measured; medians are told.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Server processes whose CPU time is summed. Default: all that `ctl status` tells.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Seed of the sessions and values. Default: another one each time, because a run with the seed of an earlier one
    /// writes what is there already, which is only a touch.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// A call of its own for every session.
    Unary,
    /// One call for `--in-flight` sessions.
    Batch,
    /// One bidirectional stream for each connection.
    Stream,
}

/// What `bench grpc --floor` runs.
#[derive(Args, Debug, Clone)]
pub struct EchoArgs {
    #[arg(long)]
    value_bytes: u32,
    /// Where to tell the address.
    #[arg(long)]
    address_file: PathBuf,
}

#[derive(Serialize, Debug)]
struct Report {
    mode: Mode,
    connections: u32,
    in_flight: u32,
    value_bytes: u32,
    read_share: f64,
    pairs: u32,
    seed: u64,
    server: Figures,
    tonic_alone: Option<Figures>,
    /// Median of the pairs' CPU time per operation, server ÷ tonic alone.
    cpu_ratio: Option<f64>,
    cpu_ratio_lowest: Option<f64>,
    cpu_ratio_highest: Option<f64>,
}

/// Medians.
#[derive(Serialize, Debug, Clone, Copy)]
struct Figures {
    operations_per_second: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    cpu_us_per_operation: Option<f64>,
}

/// Runs the load and prints its report.
pub async fn run(mut args: GrpcArgs) -> Run<()> {
    if !(0.0..=1.0).contains(&args.read_share) || args.seconds <= 0.0 {
        return Err("--read-share lies between 0 and 1, and --seconds must be positive".into());
    }
    let seed = *args.seed.get_or_insert_with(keys::another_seed);
    let password = args.client.password()?;
    let keys = args.client.tls.keys()?;
    let server = Target {
        address: args.client.grpc.clone(),
        password,
        keys,
    };
    let pids = server.pids(&args).await?;
    fill(&args, &server).await?;
    let echo = match args.floor {
        true => Some(Echo::start(args.value_bytes)?),
        false => None,
    };
    let (mut of_server, mut of_tonic) = (Vec::new(), Vec::new());
    // The fill has the first.
    let mut sources = 1;
    for _ in 0..args.pairs {
        of_server.push(measure(&args, &mut sources, &server, &pids).await?);
        if let Some(echo) = &echo {
            let pid = echo.child.id();
            of_tonic.push(measure(&args, &mut sources, &echo.target, &[pid]).await?);
        }
    }
    let mut ratios: Vec<f64> = (of_server.iter().zip(&of_tonic))
        .filter_map(|(server, tonic)| {
            Some(server.cpu_us_per_operation? / tonic.cpu_us_per_operation?)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let report = Report {
        mode: args.mode,
        connections: args.connections,
        in_flight: args.in_flight,
        value_bytes: args.value_bytes,
        read_share: args.read_share,
        pairs: args.pairs,
        seed,
        server: medians(&of_server),
        tonic_alone: (!of_tonic.is_empty()).then(|| medians(&of_tonic)),
        cpu_ratio: ratios.get(ratios.len() / 2).copied(),
        cpu_ratio_lowest: ratios.first().copied(),
        cpu_ratio_highest: ratios.last().copied(),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(())
}

fn print_report(report: &Report) {
    println!(
        "{:?}: {} connections, {} in flight on each, {} byte values, {:.0} % reads",
        report.mode,
        report.connections,
        report.in_flight,
        report.value_bytes,
        report.read_share * 100.0
    );
    let line = |name: &str, figures: &Figures| {
        let cpu = match figures.cpu_us_per_operation {
            Some(us) => format!("{us:.2} µs of CPU per operation"),
            None => "CPU unknown: not on this machine".to_string(),
        };
        println!(
            "  {name:<12} {:>9.0} operations/s, p50 {} µs, p99 {} µs, p99.9 {} µs, {cpu}",
            figures.operations_per_second, figures.p50_us, figures.p99_us, figures.p999_us
        );
    };
    line("server", &report.server);
    if let Some(tonic) = &report.tonic_alone {
        line("tonic alone", tonic);
    }
    if let (Some(ratio), Some(low), Some(high)) = (
        report.cpu_ratio,
        report.cpu_ratio_lowest,
        report.cpu_ratio_highest,
    ) {
        println!("  server ÷ tonic alone: {ratio:.2} ({low:.2} to {high:.2})");
    }
}

fn medians(all: &[Figures]) -> Figures {
    fn middle<T: Copy + PartialOrd>(all: &[Figures], of: impl Fn(&Figures) -> T) -> T {
        let mut values: Vec<T> = all.iter().map(of).collect();
        values.sort_by(|a, b| a.partial_cmp(b).expect("no figure is NaN"));
        values[values.len() / 2]
    }
    Figures {
        operations_per_second: middle(all, |one| one.operations_per_second),
        p50_us: middle(all, |one| one.p50_us),
        p99_us: middle(all, |one| one.p99_us),
        p999_us: middle(all, |one| one.p999_us),
        cpu_us_per_operation: middle(all, |one| one.cpu_us_per_operation),
    }
}

/// A server to be measured.
struct Target {
    address: String,
    password: Option<String>,
    keys: Option<ClientKeys>,
}

impl Target {
    async fn connect(&self) -> Result<SessionsClient, ClientError> {
        let tls = self.keys.as_ref().map(ClientKeys::for_grpc);
        SessionsClient::connect(&self.address, self.password.as_deref(), tls).await
    }

    async fn pids(&self, args: &GrpcArgs) -> Run<Vec<u32>> {
        if !args.pids.is_empty() {
            return Ok(args.pids.clone());
        }
        let tls = self.keys.as_ref().map(ClientKeys::for_grpc);
        let mut admin = AdminClient::connect(&self.address, self.password.as_deref(), tls).await?;
        let members = admin.status().await?.view.members;
        let mut pids: Vec<u32> = members.iter().map(|member| member.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

/// A process that only echoes; ends with this value.
struct Echo {
    child: Child,
    target: Target,
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Echo {
    fn start(value_bytes: u32) -> Run<Echo> {
        let name = format!("holdfast-echo-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        let child = Process::new(std::env::current_exe()?)
            .args(["bench", "grpc-echo", "--value-bytes"])
            .arg(value_bytes.to_string())
            .arg("--address-file")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        // From here on its end is ours to see to.
        let mut echo = Echo {
            child,
            target: Target {
                address: String::new(),
                password: None,
                keys: None,
            },
        };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Some(address) = text.strip_suffix('\n')
            {
                echo.target.address = address.to_string();
                let _ = std::fs::remove_file(&file);
                return Ok(echo);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("the process that echoes does not start".into())
    }
}

/// Serves echoes until killed.
pub async fn echo(args: EchoArgs) -> Run<()> {
    crate::children::end_with_parent()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let door = Door::open(listener, None, Face::Grpc, 10_000)?;
    let value = Bytes::from(vec![b'v'; args.value_bytes as usize]);
    std::fs::write(&args.address_file, format!("{address}\n"))?;
    server_settings()
        .add_service(echo_server(value))
        .serve_with_incoming(door)
        .await?;
    Ok(())
}

/// Writes every session once.
async fn fill(args: &GrpcArgs, server: &Target) -> Run<()> {
    let mut client = server.connect().await?;
    let mut mix = Mix::new(args, 0);
    for first in (0..args.sessions).step_by(FILL_ITEMS as usize) {
        let numbers = first..args.sessions.min(first + FILL_ITEMS);
        let calls = numbers.map(|number| mix.write(number)).collect();
        for result in client.batch(calls).await? {
            result.map_err(|error| format!("filling failed: {error}"))?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Tally {
    latency_us: Histogram<u64>,
    operations: u64,
}

impl Tally {
    fn new() -> Tally {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("valid bounds");
        Tally {
            latency_us,
            operations: 0,
        }
    }

    fn count(&mut self, sent: Instant, operations: u64) {
        let us = u64::try_from(sent.elapsed().as_micros()).unwrap_or(LATENCY_MAX_US);
        self.latency_us.saturating_record(us.max(1));
        self.operations += operations;
    }
}

/// `sources`: how many the run has had.
async fn measure(
    args: &GrpcArgs,
    sources: &mut u64,
    target: &Target,
    pids: &[u32],
) -> Run<Figures> {
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(target.connect().await?);
    }
    let before = ProcessesCpu::of(pids);
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(args.seconds);
    let mut tasks = Vec::new();
    for client in clients {
        let lanes = match args.mode {
            Mode::Unary => args.in_flight,
            Mode::Batch | Mode::Stream => 1,
        };
        for _ in 0..lanes {
            let mix = Mix::new(args, *sources);
            *sources += 1;
            let client = client.clone();
            let in_flight = args.in_flight;
            tasks.push(match args.mode {
                Mode::Unary => tokio::spawn(unary(client, mix, end)),
                Mode::Batch => tokio::spawn(batch(client, mix, in_flight, end)),
                Mode::Stream => tokio::spawn(stream(client, mix, in_flight, end)),
            });
        }
    }
    let mut tally = Tally::new();
    for task in tasks {
        let one = task.await??;
        tally.latency_us.add(&one.latency_us).expect("same bounds");
        tally.operations += one.operations;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu_us = before.and_then(|before| before.spent_us(pids));
    Ok(Figures {
        operations_per_second: tally.operations as f64 / seconds,
        p50_us: tally.latency_us.value_at_quantile(0.5),
        p99_us: tally.latency_us.value_at_quantile(0.99),
        p999_us: tally.latency_us.value_at_quantile(0.999),
        cpu_us_per_operation: cpu_us.map(|us| us / tally.operations.max(1) as f64),
    })
}

async fn unary(mut client: SessionsClient, mut mix: Mix, end: Instant) -> Run<Tally> {
    let mut tally = Tally::new();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(tally);
        }
        expected(client.call(mix.next()).await)?;
        tally.count(sent, 1);
    }
}

async fn batch(mut client: SessionsClient, mut mix: Mix, items: u32, end: Instant) -> Run<Tally> {
    let mut tally = Tally::new();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(tally);
        }
        let calls = mix.next_of_one_kind(items);
        for result in client.batch(calls).await? {
            expected(result)?;
        }
        tally.count(sent, u64::from(items));
    }
}

async fn stream(
    mut client: SessionsClient,
    mut mix: Mix,
    in_flight: u32,
    end: Instant,
) -> Run<Tally> {
    let mut tally = Tally::new();
    let (calls, waiting) = tokio::sync::mpsc::channel(in_flight as usize);
    let mut sent = std::collections::VecDeque::new();
    for _ in 0..in_flight {
        calls.try_send(mix.next())?;
        sent.push_back(Instant::now());
    }
    let mut calls = Some(calls);
    let mut results = client.stream(ReceiverStream::new(waiting)).await?;
    while let Some(result) = results.next().await {
        expected(result)?;
        let first = sent.pop_front().ok_or("more results than requests")?;
        tally.count(first, 1);
        let now = Instant::now();
        match &calls {
            Some(_) if now >= end => calls = None,
            Some(calls) => {
                // There is room: as many are in flight as at the beginning.
                calls.try_send(mix.next())?;
                sent.push_back(now);
            }
            None => {}
        }
    }
    match sent.len() {
        0 => Ok(tally),
        missing => Err(format!("{missing} requests of the stream had no result").into()),
    }
}

/// Only what the benchmark asks for: a session that is there, or was written.
fn expected(result: Result<Outcome, ClientError>) -> Run<()> {
    match result? {
        Outcome::Value { .. } | Outcome::Done { .. } => Ok(()),
        other => Err(format!("a session that was written is {other:?}").into()),
    }
}

/// Chooses what to ask next.
struct Mix(Source);

impl Mix {
    fn new(args: &GrpcArgs, number: u64) -> Mix {
        let seed = args.seed.expect("one was chosen at the start");
        Mix(Source::new(
            seed,
            number,
            args.sessions,
            args.read_share,
            args.value_bytes,
        ))
    }

    fn call(number: u64, op: Op) -> SessionCall {
        SessionCall {
            command: Command {
                namespace: Namespace(0),
                key: Bytes::copy_from_slice(&keys::session(number)),
                op,
            },
            once: None,
            within_ms: None,
        }
    }

    fn write(&mut self, number: u64) -> SessionCall {
        let op = Op::Put {
            value: Bytes::copy_from_slice(self.0.value()),
            condition: Condition::Always,
            expiry: ExpiryChange::Session {
                idle_ms: Some(3_600_000),
                absolute: None,
            },
            return_old: false,
        };
        Mix::call(number, op)
    }

    fn next(&mut self) -> SessionCall {
        let number = self.0.session();
        match self.0.reads() {
            true => Mix::call(number, Op::Get),
            false => self.write(number),
        }
    }

    fn next_of_one_kind(&mut self, items: u32) -> Vec<SessionCall> {
        let reads = self.0.reads();
        let one = |mix: &mut Mix| {
            let number = mix.0.session();
            match reads {
                true => Mix::call(number, Op::Get),
                false => mix.write(number),
            }
        };
        (0..items).map(|_| one(self)).collect()
    }
}
