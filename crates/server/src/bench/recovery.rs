//! `holdfast bench recovery`: a local cluster of real processes, one master killed, and how soon each
//! share of its sessions can be read again by an application that only keeps asking.
//!
//! The window is what a client sees: from the moment of `kill -9` until the first right answer for a
//! session of the dead master. What the coordinator did meanwhile is told beside it, phase by phase.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use holdfast_format::Slot;
use serde::Serialize;
use serde_json::Value;

use super::clients::{self, Endpoint, Probes};
use super::keys;
use super::local::{Cluster, Failure, Scratch, Size, Victim, kill_9};
use super::timeline::{Event, Timeline};
use super::watch::{Process, Watch};

/// Sessions of the dead master that are asked for without pause; enough to tell the last percent.
const SAMPLE_MAX: usize = 1_000;
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench recovery --sessions 500000 --value-bytes 1024
  holdfast bench recovery --masters 5 --backups 6 --json > report.json
  holdfast bench recovery --svg recovery.svg

Needs memory and disk for (replicas + 2) times the data. The cluster is its own: free ports, a
temporary directory, removed at the end.")]
pub struct RecoveryArgs {
    #[command(flatten)]
    size: Size,
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
pub async fn run(args: RecoveryArgs) -> Result<(), Failure> {
    args.size.check()?;
    let scratch = Scratch::new(args.dir.as_deref())?;
    let (report, drawing) = measure(&args, &scratch.path).await?;
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

async fn measure(args: &RecoveryArgs, dir: &Path) -> Result<(Report, String), Failure> {
    let cluster = Cluster::start(&args.size, dir).await?;
    let endpoint = Endpoint::Fixed(cluster.resp.clone());

    let began = Instant::now();
    clients::fill(&endpoint, &args.size).await?;
    let fill_seconds = began.elapsed().as_secs_f64();

    let status = cluster.status().ok_or("the cluster answers no status")?;
    let victim = Victim::choose(&status)?;
    let of_victim: Vec<u64> = (0..args.size.sessions)
        .filter(|&number| victim.owns(Slot::of(&keys::session(number))))
        .collect();
    if of_victim.is_empty() {
        return Err("the first master owns none of the sessions: use more".into());
    }
    let stride = of_victim.len().div_ceil(SAMPLE_MAX);
    let sample: Vec<u64> = of_victim.iter().copied().step_by(stride).collect();
    // Each on a connection of its own, as users are.
    let probes = Probes::connect(&endpoint, args.size.value_bytes, &sample, sample.len()).await?;

    cluster.until_mapped().await;
    let watch = Watch::begin(cluster.child.id())?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    let killed_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    kill_9(victim.pid)?;
    let readable = probes.until_all_read(killed).await?;

    let ready_ms = cluster.ready_after_ms(killed).await?;
    let seen: Vec<Process> = watch.end(killed);
    let recovery = cluster.recovery_of(&victim);
    let wrong_sessions = clients::check(&endpoint, &args.size, 0).await?;

    let at = |share: f64| readable[((readable.len() - 1) as f64 * share) as usize];
    let all_seconds = at(1.0) / 1e3;
    let victim_value_bytes = of_victim.len() as u64 * u64::from(args.size.value_bytes);
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
        args.size.value_bytes,
        args.size.masters,
        args.size.backups,
        args.size.replicas
    );
    let drawing = timeline.svg(&title, &readable, &seen);
    let report = Report {
        sessions: args.size.sessions,
        value_bytes: args.size.value_bytes,
        masters: args.size.masters,
        backups: args.size.backups,
        replicas: args.size.replicas,
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
        verified_sessions: args.size.sessions,
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
