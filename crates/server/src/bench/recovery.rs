//! `holdfast bench recovery`: a local cluster of real processes, one master killed, and how soon each
//! share of its sessions can be read again by an application that only keeps asking.
//!
//! The window is what a client sees: from the moment of `kill -9` until the first right answer for a
//! session of the dead master. What the coordinator did meanwhile is told beside it, phase by phase.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use holdfast_format::Slot;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::keys::{self, Random};
use super::replies::{self, Reply};
use super::timeline::{Event, Timeline};
use super::watch::{Process, Watch};

/// Sessions of the dead master that are asked for without pause; enough to tell the last percent.
const SAMPLE_MAX: usize = 2_000;
/// Commands in flight while filling and checking.
const BATCH: u64 = 200;
/// Connections that fill and check.
const WORKERS: u64 = 4;
/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench recovery --sessions 500000 --value-bytes 1024
  holdfast bench recovery --masters 5 --backups 6 --json > report.json
  holdfast bench recovery --svg recovery.svg

Needs memory and disk for (replicas + 2) times the data. The cluster is its own: free ports, a
temporary directory, removed at the end.")]
pub struct RecoveryArgs {
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..))]
    sessions: u64,
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    value_bytes: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..))]
    masters: u32,
    #[arg(long, default_value_t = 4)]
    backups: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    replicas: u8,
    /// Where the cluster keeps its files. Default: a new temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Draw the share of sessions that can be read, and what each process does, over time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Serialize, Debug)]
struct Report {
    sessions: u64,
    value_bytes: u32,
    masters: u32,
    backups: u32,
    replicas: u8,
    fill_seconds: f64,
    /// Sessions that the killed master owned.
    victim_sessions: u64,
    victim_value_bytes: u64,
    /// Milliseconds from the kill until this share of sampled sessions had been read.
    readable_ms: Readable,
    /// The coordinator's account of the recovery.
    recovery: Value,
    /// The same from the kill on, with what clients saw and what each stage cost.
    timeline: Timeline,
    /// Value bytes and sessions of the victim per second, from the kill until all were readable.
    recovered_mb_per_second: f64,
    recovered_sessions_per_second: f64,
    /// From the kill until everything was recovered and had all its replicas again.
    ready_ms: f64,
    verified_sessions: u64,
    wrong_sessions: u64,
}

#[derive(Serialize, Debug)]
struct Readable {
    sample: usize,
    first: f64,
    p10: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    all: f64,
}

/// Runs the benchmark and prints its report.
pub async fn run(args: RecoveryArgs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if u32::from(args.replicas) > args.backups {
        return Err("--replicas needs at least as many --backups".into());
    }
    let temporary = tempdir(&args)?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.clone());
    let result = measure(&args, &dir).await;
    if args.dir.is_none() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    let (report, drawing) = result?;
    if let Some(path) = &args.svg {
        std::fs::write(path, drawing)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    if report.wrong_sessions > 0 {
        return Err(format!("{} sessions were lost or wrong", report.wrong_sessions).into());
    }
    Ok(())
}

async fn measure(
    args: &RecoveryArgs,
    dir: &Path,
) -> Result<(Report, String), Box<dyn std::error::Error + Send + Sync>> {
    let cluster = Cluster::start(args, dir).await?;
    let resp = cluster.resp.clone();

    let began = Instant::now();
    on_all_sessions(args, &resp, Work::Fill).await?;
    let fill_seconds = began.elapsed().as_secs_f64();

    let status = cluster.status().ok_or("the cluster answers no status")?;
    let victim = Victim::choose(&status)?;
    let of_victim: Vec<u64> = (0..args.sessions)
        .filter(|&number| victim.owns(Slot::of(&keys::session(number))))
        .collect();
    if of_victim.is_empty() {
        return Err("the first master owns none of the sessions: use more".into());
    }
    let stride = of_victim.len().div_ceil(SAMPLE_MAX);
    let sample: Vec<u64> = of_victim.iter().copied().step_by(stride).collect();
    let probes = Probes::connect(args, &resp, sample).await?;

    let watch = Watch::begin(cluster.child.id())?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    let killed_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    kill_9(victim.pid)?;
    let mut readable = probes.until_all_read(killed).await?;
    readable.sort_by(f64::total_cmp);

    let ready_ms = loop {
        if let Some(status) = cluster.status()
            && status["ready"] == Value::Bool(true)
        {
            break killed.elapsed().as_secs_f64() * 1e3;
        }
        if killed.elapsed() > PATIENCE {
            return Err("the cluster did not become ready again".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let seen: Vec<Process> = watch.end(killed);
    let recovery = cluster
        .status()
        .and_then(|status| {
            // A log is named after its shard: `l` and `s` before the same number.
            let number = victim.shard.trim_start_matches('s').to_owned();
            let recoveries = status["recoveries"].as_array()?;
            let mut of_victim = recoveries.iter().filter(|one| {
                one["log"]
                    .as_str()
                    .is_some_and(|log| log.trim_start_matches('l') == number)
            });
            of_victim.next_back().cloned()
        })
        .unwrap_or(Value::Null);
    let wrong_sessions = on_all_sessions(args, &resp, Work::Check).await?;

    let at = |share: f64| readable[((readable.len() - 1) as f64 * share) as usize];
    let all_seconds = at(1.0) / 1e3;
    let victim_value_bytes = of_victim.len() as u64 * u64::from(args.value_bytes);
    let by_clients = |(what, at_ms): (&str, f64)| Event {
        who: "clients".to_owned(),
        what: what.to_owned(),
        at_ms,
    };
    let clients: Vec<Event> = [
        ("read the first session", at(0.0)),
        ("could read half of the sessions", at(0.5)),
        ("could read all sessions", at(1.0)),
        ("ready again", ready_ms),
    ]
    .map(by_clients)
    .into();
    let timeline = Timeline::new(&recovery, killed_at.as_secs_f64() * 1e3, &clients, &seen);
    let title = format!(
        "kill -9 of a master with {:.0} MB of {} B sessions: {} masters, {} backups, {} replicas",
        victim_value_bytes as f64 / 1e6,
        args.value_bytes,
        args.masters,
        args.backups,
        args.replicas
    );
    let drawing = timeline.svg(&title, &readable, &seen);
    let report = Report {
        sessions: args.sessions,
        value_bytes: args.value_bytes,
        masters: args.masters,
        backups: args.backups,
        replicas: args.replicas,
        fill_seconds,
        victim_sessions: of_victim.len() as u64,
        victim_value_bytes,
        recovered_mb_per_second: victim_value_bytes as f64 / 1e6 / all_seconds,
        recovered_sessions_per_second: of_victim.len() as f64 / all_seconds,
        readable_ms: Readable {
            sample: readable.len(),
            first: at(0.0),
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            all: at(1.0),
        },
        recovery,
        timeline,
        ready_ms,
        verified_sessions: args.sessions,
        wrong_sessions,
    };
    Ok((report, drawing))
}

fn print_report(report: &Report) {
    println!(
        "{} sessions of {} bytes on {} masters, {} backups, {} replicas (filled in {:.1} s)",
        report.sessions,
        report.value_bytes,
        report.masters,
        report.backups,
        report.replicas,
        report.fill_seconds
    );
    println!(
        "kill -9 of one master with {} sessions, {:.0} MB",
        report.victim_sessions,
        report.victim_value_bytes as f64 / 1e6
    );
    print!("{}", report.timeline.table());
    println!(
        "  replayed {} entries, {:.0} MB; {:.1} CPU s for 1 GB until all was replicated",
        report.recovery["entries"],
        report.recovery["bytes"].as_f64().unwrap_or(0.0) / 1e6,
        report.timeline.cpu_s_per_gb
    );
    let readable = &report.readable_ms;
    println!(
        "readable again, milliseconds after the kill ({} sampled):",
        readable.sample
    );
    println!(
        "  first {:.0}, 10 % {:.0}, 50 % {:.0}, 90 % {:.0}, 99 % {:.0}, all {:.0}",
        readable.first, readable.p10, readable.p50, readable.p90, readable.p99, readable.all
    );
    println!(
        "  {:.0} MB/s, {:.0} sessions/s from the kill to the last",
        report.recovered_mb_per_second, report.recovered_sessions_per_second
    );
    println!("fully replicated and ready after {:.0} ms", report.ready_ms);
    println!(
        "all {} sessions read back: {} wrong",
        report.verified_sessions, report.wrong_sessions
    );
}

/// The value of a session: from its number alone, so that checking needs no memory of the fill.
fn value(number: u64, bytes: u32) -> Vec<u8> {
    let mut random = Random::new(number ^ 0x5EED);
    let mut value = Vec::with_capacity(bytes as usize + 8);
    while value.len() < bytes as usize {
        value.extend_from_slice(&random.roll().to_le_bytes());
    }
    value.truncate(bytes as usize);
    value
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Fill,
    Check,
}

/// Writes or reads every session; how many were wrong.
async fn on_all_sessions(
    args: &RecoveryArgs,
    resp: &str,
    work: Work,
) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let mut tasks = Vec::new();
    for worker in 0..WORKERS {
        let (sessions, bytes, resp) = (args.sessions, args.value_bytes, resp.to_owned());
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(&resp).await?;
            let mut wrong = 0;
            let mut out = Vec::new();
            let mine: Vec<u64> = (worker..sessions).step_by(WORKERS as usize).collect();
            for batch in mine.chunks(BATCH as usize) {
                out.clear();
                for &number in batch {
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
                for &number in batch {
                    match (work, connection.reply().await?) {
                        (Work::Fill, Reply::Simple) => {}
                        (Work::Check, Reply::Bulk(read)) if read == value(number, bytes) => {}
                        (Work::Check, Reply::Bulk(_) | Reply::Nil) => wrong += 1,
                        (_, other) => return Err(format!("session {number}: {other:?}").into()),
                    }
                }
            }
            Ok::<u64, Box<dyn std::error::Error + Send + Sync>>(wrong)
        }));
    }
    let mut wrong = 0;
    for task in tasks {
        wrong += task.await??;
    }
    Ok(wrong)
}

struct Connection {
    stream: TcpStream,
    replies: replies::Replies,
}

impl Connection {
    async fn open(address: &str) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            replies: replies::Replies::default(),
        })
    }

    async fn reply(&mut self) -> std::io::Result<Reply> {
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

/// Connections that each ask for their part of the sample over and over until all of it was read.
struct Probes {
    tasks: Vec<(Connection, Vec<u64>)>,
    value_bytes: u32,
}

impl Probes {
    async fn connect(args: &RecoveryArgs, resp: &str, sample: Vec<u64>) -> std::io::Result<Probes> {
        let mut tasks = Vec::new();
        for part in sample.chunks(sample.len().div_ceil(8)) {
            tasks.push((Connection::open(resp).await?, part.to_vec()));
        }
        Ok(Probes {
            tasks,
            value_bytes: args.value_bytes,
        })
    }

    /// Milliseconds from `killed` to the first right answer, for every session of the sample.
    async fn until_all_read(
        self,
        killed: Instant,
    ) -> Result<Vec<f64>, Box<dyn std::error::Error + Send + Sync>> {
        let bytes = self.value_bytes;
        let mut tasks = Vec::new();
        for (mut connection, mut waiting) in self.tasks {
            tasks.push(tokio::spawn(async move {
                let mut times = Vec::new();
                let mut out = Vec::new();
                while !waiting.is_empty() && killed.elapsed() < PATIENCE {
                    out.clear();
                    for &number in &waiting {
                        replies::write_command(&mut out, &[b"GET", &keys::session(number)]);
                    }
                    connection.stream.write_all(&out).await?;
                    let mut still = Vec::new();
                    for &number in &waiting {
                        match connection.reply().await? {
                            Reply::Bulk(read) if read == value(number, bytes) => {
                                times.push(killed.elapsed().as_secs_f64() * 1e3);
                            }
                            // Not yet: the gateway gave up waiting. Anything else would be a lie.
                            Reply::Error(_) => still.push(number),
                            other => return Err(format!("session {number}: {other:?}").into()),
                        }
                    }
                    waiting = still;
                }
                if waiting.is_empty() {
                    Ok(times)
                } else {
                    Err(format!("{} sessions never became readable", waiting.len()).into())
                }
            }));
        }
        let mut times = Vec::new();
        for task in tasks {
            let part: Result<Vec<f64>, Box<dyn std::error::Error + Send + Sync>> = task.await?;
            times.extend(part?);
        }
        Ok(times)
    }
}

/// The master to kill: its process, its log, the slots it owns.
struct Victim {
    pid: u32,
    shard: String,
    ranges: Vec<(u64, u64)>,
}

impl Victim {
    fn choose(status: &Value) -> Result<Victim, Box<dyn std::error::Error + Send + Sync>> {
        let members = status["members"]
            .as_array()
            .ok_or("the status lists no members")?;
        let tablets = status["tablets"]
            .as_array()
            .ok_or("the status lists no tablets")?;
        let owner = &tablets.first().ok_or("nobody owns a slot")?["owner"];
        let member = members
            .iter()
            .find(|member| &member["id"] == owner)
            .ok_or("the owner of the first tablet is no member")?;
        let pid = member["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        Ok(Victim {
            pid: pid.ok_or("a member without a process")?,
            shard: owner
                .as_str()
                .ok_or("a tablet without an owner")?
                .to_owned(),
            ranges: tablets
                .iter()
                .filter(|tablet| &tablet["owner"] == owner)
                .filter_map(|tablet| {
                    Some((
                        tablet["first_slot"].as_u64()?,
                        tablet["last_slot"].as_u64()?,
                    ))
                })
                .collect(),
        })
    }

    fn owns(&self, slot: Slot) -> bool {
        let slot = u64::from(slot.0);
        self.ranges
            .iter()
            .any(|&(first, last)| (first..=last).contains(&slot))
    }
}

struct Cluster {
    child: Child,
    resp: String,
    grpc: String,
}

impl Cluster {
    async fn start(
        args: &RecoveryArgs,
        dir: &Path,
    ) -> Result<Cluster, Box<dyn std::error::Error + Send + Sync>> {
        std::fs::create_dir_all(dir)?;
        let ready_file = dir.join("ready.json");
        // After the death of one master the others hold everything, and a cleaner needs room.
        let per_session = u64::from(args.value_bytes) + 37 + 100;
        let memory = args.sessions * per_session * 2 / u64::from(args.masters - 1) + (128 << 20);
        let log = std::fs::File::create(dir.join("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["dev", "--processes", "--masters", &args.masters.to_string()])
            .args(["--backups", &args.backups.to_string()])
            .args(["--replicas", &args.replicas.to_string()])
            .args(["--memory", &memory.to_string()])
            .args(["--resp", "127.0.0.1:0", "--resp-cluster", "127.0.0.1:0"])
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--dir")
            .arg(dir.join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut cluster = Cluster {
            child,
            resp: String::new(),
            grpc: String::new(),
        };
        let began = Instant::now();
        let ready: Value = loop {
            if let Ok(text) = std::fs::read_to_string(&ready_file)
                && let Ok(ready) = serde_json::from_str(&text)
            {
                break ready;
            }
            if let Some(status) = cluster.child.try_wait()? {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(format!("the cluster ended with {status}:\n{log}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the cluster did not become ready".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        for (field, face) in [(&mut cluster.resp, "resp"), (&mut cluster.grpc, "grpc")] {
            *field = ready[face]
                .as_str()
                .ok_or("the ready file lacks an address")?
                .to_owned();
        }
        Ok(cluster)
    }

    /// What `ctl status --json` says; `None` while nobody answers.
    fn status(&self) -> Option<Value> {
        let output = Command::new(std::env::current_exe().ok()?)
            .args(["ctl", "--grpc", &self.grpc, "status", "--json"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).ok())
            .flatten()
    }
}

impl Drop for Cluster {
    /// SIGTERM, so that `dev` ends its children; they also end when it dies.
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn kill_9(pid: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or("not a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    Ok(())
}

/// A new directory below the system's temporary one.
fn tempdir(args: &RecoveryArgs) -> std::io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("holdfast-bench-{}", std::process::id()));
    if args.dir.is_none() {
        std::fs::create_dir(&path)?;
    }
    Ok(path)
}
