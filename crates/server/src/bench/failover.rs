//! `holdfast bench failover`: who serves sessions is killed while applications write and read them, many times; how long
//! they wait, and what that was acknowledged is lost. The same is done to Redis with Sentinels, in turn.
//!
//! F1. Windows count from `kill -9` to the first right answer that a client gets which never stops asking.
//! F2. What is read to tell the window was written before the load begins; what is written meanwhile has sessions of its own.
//! F3. A master of Holdfast holds its part of the sessions, the one of Redis all. So that both lose as much, Redis is
//!     given as many sessions as the victim has.

mod sentinel;
mod writers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use holdfast_format::Slot;
use serde::Serialize;

use self::sentinel::Pair;
use self::writers::{Account, Ledger};
use super::clients::{self, Endpoint, Probes};
use super::keys;
use super::local::{Cluster, Failure, Scratch, Size, Victim, kill_9};

/// Sessions of the victim that are asked for without pause.
const SAMPLE_MAX: usize = 1_000;
/// Sessions that are written while the victim dies.
const WRITTEN_MAX: u64 = 4_000;
/// Load before the kill, and after everything can be read.
const AROUND: Duration = Duration::from_secs(1);

#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  holdfast bench failover
  holdfast bench failover --kills 20 --sessions 1000000 --no-redis
  holdfast bench failover --json > report.json

Redis is measured beside Holdfast if there is a redis-server. Needs memory and disk for
(replicas + 2) times the data. All servers are its own: free ports, a temporary directory, removed
at the end.")]
pub struct FailoverArgs {
    #[command(flatten)]
    size: Size,
    /// How often who serves is killed, of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Writes a second, of all clients together.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    writes_per_second: u32,
    /// Silence after which a Sentinel takes the master for dead.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..))]
    down_after_ms: u32,
    /// Measure Holdfast only.
    #[arg(long)]
    no_redis: bool,
    /// Where the servers keep their files. Default: a new temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Debug)]
struct Report {
    sessions: u64,
    value_bytes: u32,
    masters: u32,
    backups: u32,
    replicas: u8,
    writes_per_second: u32,
    down_after_ms: u32,
    holdfast: Side,
    redis: Option<Side>,
}

#[derive(Serialize, Debug, Default)]
struct Side {
    server: String,
    kills: Vec<Kill>,
    acknowledged_writes: u64,
    lost_writes: u64,
    lost_sessions: u64,
    /// Of those that nobody wrote meanwhile, how many were lost or changed.
    wrong_sessions: u64,
}

/// Milliseconds from one kill on.
#[derive(Serialize, Debug, Clone, Copy)]
struct Kill {
    /// Sessions that the victim had.
    sessions: u64,
    detected: Option<f64>,
    first_read: f64,
    half_read: f64,
    all_read: f64,
    first_write: Option<f64>,
    replicated: Option<f64>,
}

/// Runs the benchmark and prints its report.
pub async fn run(args: FailoverArgs) -> Result<(), Failure> {
    args.size.check()?;
    let scratch = Scratch::new(args.dir.as_deref())?;
    let report = measure(&args, &scratch.path).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    let lost = report.holdfast.lost_writes + report.holdfast.wrong_sessions;
    if lost > 0 {
        return Err(format!("Holdfast lost {lost} sessions or acknowledged writes").into());
    }
    Ok(())
}

async fn measure(args: &FailoverArgs, dir: &Path) -> Result<Report, Failure> {
    let redis = match sentinel::version() {
        Some(version) if !args.no_redis => Some(version),
        _ => None,
    };
    let mut holdfast = Subject::start(args, dir).await?;
    let mut beside = redis.map(|version| Side {
        server: format!("Redis {version}, Sentinel"),
        ..Side::default()
    });
    for round in 0..args.kills {
        let kill = holdfast.kill(args).await?;
        if let Some(side) = &mut beside {
            let dir = dir.join(format!("redis-{round}"));
            kill_redis(args, &dir, kill.sessions, side).await?;
            std::fs::remove_dir_all(&dir)?;
        }
    }
    Ok(Report {
        sessions: args.size.sessions,
        value_bytes: args.size.value_bytes,
        masters: args.size.masters,
        backups: args.size.backups,
        replicas: args.size.replicas,
        writes_per_second: args.writes_per_second,
        down_after_ms: args.down_after_ms,
        holdfast: holdfast.side,
        redis: beside,
    })
}

/// A cluster that is hurt again and again, and heals.
struct Subject {
    cluster: Cluster,
    endpoint: Endpoint,
    ledger: Ledger,
    side: Side,
}

impl Subject {
    async fn start(args: &FailoverArgs, dir: &Path) -> Result<Subject, Failure> {
        let cluster = Cluster::start(&args.size, dir).await?;
        let endpoint = Endpoint::Fixed(cluster.resp.clone());
        clients::fill(&endpoint, &args.size).await?;
        Ok(Subject {
            cluster,
            endpoint,
            ledger: Ledger::new(written(args.size.sessions), args.size.value_bytes),
            side: Side {
                server: format!("Holdfast {}", env!("CARGO_PKG_VERSION")),
                ..Side::default()
            },
        })
    }

    async fn kill(&mut self, args: &FailoverArgs) -> Result<Kill, Failure> {
        self.cluster.until_mapped().await;
        let status = self.cluster.status();
        let status = status.ok_or("the cluster answers no status")?;
        let victim = Victim::choose(&status)?;
        let owner = victim.clone();
        let of_victim = move |number| owner.owns(Slot::of(&keys::session(number)));
        let load = Loaded {
            args,
            endpoint: &self.endpoint,
            sessions: args.size.sessions,
            pid: victim.pid,
        };
        let ledger = std::mem::replace(&mut self.ledger, Ledger::new(0, 0));
        let felt = load.kill_under_load(ledger, of_victim).await?;
        self.ledger = felt.ledger;
        let replicated = self.cluster.ready_after_ms(felt.at).await?;
        let detected = self.cluster.recovery_of(&victim)["detected_ms"].as_f64();
        let kill = Kill {
            replicated: Some(replicated),
            detected: detected.map(|at_ms| at_ms - felt.at_unix_ms),
            ..felt.kill
        };
        self.side
            .add(kill, self.ledger.settle(&self.endpoint).await?);
        let first = written(args.size.sessions);
        self.side.wrong_sessions += clients::check(&self.endpoint, &args.size, first).await?;
        Ok(kill)
    }
}

/// A pair of Redis servers that is new each time: a Sentinel's failover ends with one of them dead.
async fn kill_redis(
    args: &FailoverArgs,
    dir: &Path,
    sessions: u64,
    side: &mut Side,
) -> Result<(), Failure> {
    let pair = Pair::start(dir, args.down_after_ms).await?;
    let endpoint = pair.endpoint();
    let size = Size {
        sessions,
        ..args.size.clone()
    };
    clients::fill(&endpoint, &size).await?;
    let load = Loaded {
        args,
        endpoint: &endpoint,
        sessions,
        pid: pair.master_pid(),
    };
    let ledger = Ledger::new(written(sessions), args.size.value_bytes);
    let mut felt = load.kill_under_load(ledger, |_| true).await?;
    side.add(felt.kill, felt.ledger.settle(&endpoint).await?);
    side.wrong_sessions += clients::check(&endpoint, &size, written(sessions)).await?;
    Ok(())
}

/// Who is to be killed, and by which clients that is felt.
struct Loaded<'a> {
    args: &'a FailoverArgs,
    endpoint: &'a Endpoint,
    sessions: u64,
    pid: u32,
}

/// What clients felt of a kill, and when it was, by both clocks.
struct Felt {
    kill: Kill,
    at: Instant,
    at_unix_ms: f64,
    ledger: Ledger,
}

impl Loaded<'_> {
    /// Kills it while clients write and read.
    async fn kill_under_load(
        &self,
        ledger: Ledger,
        of_victim: impl Fn(u64) -> bool + Clone + Send + 'static,
    ) -> Result<Felt, Failure> {
        let idle: Vec<u64> = (written(self.sessions)..self.sessions)
            .filter(|&number| of_victim(number))
            .collect();
        if idle.is_empty() {
            return Err("who is to be killed has none of the sessions: use more".into());
        }
        let stride = idle.len().div_ceil(SAMPLE_MAX);
        let sample: Vec<u64> = idle.iter().copied().step_by(stride).collect();
        let sessions = (0..self.sessions).filter(|&it| of_victim(it)).count() as u64;
        let (endpoint, rate) = (self.endpoint, self.args.writes_per_second);
        let load = ledger.begin(endpoint, rate, of_victim).await?;
        // Each on a connection of its own, as users are.
        let value_bytes = self.args.size.value_bytes;
        let probes = Probes::connect(endpoint, value_bytes, &sample, sample.len()).await?;
        tokio::time::sleep(AROUND).await;
        let killed = Instant::now();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        load.killed(killed);
        kill_9(self.pid)?;
        let times = probes.until_all_read(killed).await?;
        tokio::time::sleep(AROUND).await;
        let kill = Kill {
            sessions,
            detected: None,
            first_read: times[0],
            half_read: times[(times.len() - 1) / 2],
            all_read: times[times.len() - 1],
            first_write: load.first_write_ms(),
            replicated: None,
        };
        Ok(Felt {
            kill,
            at: killed,
            at_unix_ms: unix.as_secs_f64() * 1e3,
            ledger: load.end().await?,
        })
    }
}

/// So many of the first sessions are written under load.
fn written(sessions: u64) -> u64 {
    WRITTEN_MAX.min(sessions / 10)
}

impl Side {
    fn add(&mut self, kill: Kill, account: Account) {
        self.kills.push(kill);
        self.acknowledged_writes += account.acknowledged;
        self.lost_writes += account.lost_writes;
        self.lost_sessions += account.lost_sessions;
    }

    /// Median and 95th percentile over the kills; `None` if it was never told.
    fn over_kills(&self, of: impl Fn(&Kill) -> Option<f64>) -> Option<(f64, f64)> {
        let mut all: Vec<f64> = self.kills.iter().filter_map(of).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
        (!all.is_empty()).then(|| (at(0.5), at(0.95)))
    }
}

fn print_report(report: &Report) {
    let kills = report.holdfast.kills.len();
    let victim = report
        .holdfast
        .kills
        .iter()
        .map(|it| it.sessions)
        .sum::<u64>()
        / kills as u64;
    println!(
        "{kills} kills of a master with about {victim} sessions of {} bytes ({:.0} MB), {} writes a second",
        report.value_bytes,
        victim as f64 * f64::from(report.value_bytes) / 1e6,
        report.writes_per_second
    );
    println!(
        "{} masters, {} backups, {} replicas; Sentinel takes a master for dead after {} ms",
        report.masters, report.backups, report.replicas, report.down_after_ms
    );
    let sides: Vec<&Side> = [Some(&report.holdfast), report.redis.as_ref()]
        .into_iter()
        .flatten()
        .collect();
    print!("\n{:<34}", "milliseconds after the kill");
    for side in &sides {
        print!("{:>28}", side.server);
    }
    print!("\n{:<34}", "");
    for _ in &sides {
        print!("{:>28}", "p50 / p95");
    }
    println!();
    type Figure = (&'static str, fn(&Kill) -> Option<f64>);
    let figures: [Figure; 6] = [
        ("declared dead", |it| it.detected),
        ("first session read", |it| Some(it.first_read)),
        ("half of the sessions readable", |it| Some(it.half_read)),
        ("all sessions readable", |it| Some(it.all_read)),
        ("first write acknowledged", |it| it.first_write),
        ("fully replicated again", |it| it.replicated),
    ];
    for (what, of) in figures {
        print!("{what:<34}");
        for side in &sides {
            let cell = side
                .over_kills(of)
                .map_or("-".to_owned(), |(p50, p95)| format!("{p50:.0} / {p95:.0}"));
            print!("{cell:>28}");
        }
        println!();
    }
    type Count = (&'static str, fn(&Side) -> u64);
    let counts: [Count; 4] = [
        ("acknowledged writes", |it| it.acknowledged_writes),
        ("of them lost", |it| it.lost_writes),
        ("sessions that lost some", |it| it.lost_sessions),
        ("idle sessions lost or changed", |it| it.wrong_sessions),
    ];
    for (what, of) in counts {
        print!("{what:<34}");
        for side in &sides {
            print!("{:>28}", of(side));
        }
        println!();
    }
    if let Some(redis) = &report.redis {
        let last = |side: &Side| side.over_kills(|it| Some(it.all_read)).map(|it| it.0);
        if let (Some(ours), Some(theirs)) = (last(&report.holdfast), last(redis)) {
            println!(
                "\nthe last session was back after {:.2} of the other's time",
                ours / theirs
            );
        }
    }
}
