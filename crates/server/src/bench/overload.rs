//! `holdfast bench load --open-loop`: what becomes of the answers in time when more is offered than a server can do
//! (SSM, NSDI 2004, Figures 8 and 9).
//!
//! Starts a server of its own for each way of living with overload (`Way`), holds it to a share of a core (`held`) so that
//! the generator (`offered`) can ask for more than it can serve, and offers ever more. Requests are due at fixed times whatever
//! the server does; an answer counts if it is no refusal and comes within the deadline from when its request was due.
//!
//! The machine is often shared. What other work takes from the server shows in its processor time, so that
//! goodput is also told by that.

mod held;
mod offered;

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::held::Servers;
use self::offered::{Client, TICK, Tally, fill, offer};
use super::cpu::ProcessesCpu;
use super::load::LoadArgs;

#[path = "../../../../benches/chart.rs"]
#[allow(dead_code, reason = "it can draw more than this")]
mod chart;

use chart::{Chart, Kind, Series};

type Run<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Offered, as shares of what a closed loop with many requests in flight gets through.
const SHARES: [f64; 11] = [0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0];

/// Nothing offered is quiet but this share of it.
const QUIET_SHARE: f64 = 0.05;

/// Requests before this share of a step are not counted: overload is recognised, or queues build up, meanwhile.
const WARM_SHARE: f64 = 0.4;

/// How a server lives with overload.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// It refuses what is late, as it does by default.
    Protected,
    /// It serves everything, however late.
    Unprotected,
    /// A gateway in a process of its own, which is not held, stands before it: the window of its client core keeps from the
    /// server what it cannot do, and the gateway refuses that. Costs the server nothing.
    Window,
}

#[derive(Serialize, Debug)]
struct Report {
    /// Of a core, that the server may use.
    held_to: f64,
    deadline_ms: u64,
    connections: u32,
    value_bytes: u32,
    read_share: f64,
    /// Of the requests that write: to sessions that did not exist.
    create_share: f64,
    seconds_per_step: f64,
    seed: u64,
    runs: Vec<Sweep>,
}

#[derive(Serialize, Debug)]
struct Sweep {
    way: Way,
    held_to: f64,
    closed_loop_per_second: f64,
    quiet: Step,
    steps: Vec<Step>,
    /// Offered load at which most answers came in time, and how many.
    saturating_per_second: f64,
    peak_goodput_per_second: f64,
    at_twice: Step,
    /// Of the peak, at twice the saturating load; and both for each second of processor time that the server came to.
    goodput_share_at_twice: f64,
    goodput_share_at_twice_by_cpu: f64,
    /// p99 of accepted requests at twice the saturating load, over that of the quiet server.
    accepted_p99_over_quiet: f64,
    /// Of what was offered at most at nine tenths of the saturating load.
    refused_share_below_saturation: f64,
}

#[derive(Serialize, Debug, Clone)]
struct Step {
    /// What was to be offered, and what the generator came to offer.
    asked_per_second: f64,
    offered_per_second: f64,
    goodput_per_second: f64,
    goodput_visits_per_second: f64,
    goodput_creations_per_second: f64,
    late_per_second: f64,
    refused_per_second: f64,
    unanswered_per_second: f64,
    accepted_p50_ms: f64,
    accepted_p99_ms: f64,
    /// While answers were counted.
    server_cores: f64,
}

/// Measures all ways and writes the reports.
pub fn run(args: &LoadArgs, seed: u64) -> Run<()> {
    for share in [args.held_to, args.window_held_to] {
        if !(0.01..=1.0).contains(&share) {
            return Err("a server is held to between 0.01 and 1 core".into());
        }
    }
    let mut runs = Vec::new();
    for way in [Way::Protected, Way::Unprotected, Way::Window] {
        eprintln!("measuring a server that is {} …", way.told());
        runs.push(sweep(args, seed, way)?);
    }
    let report = Report {
        held_to: args.held_to,
        deadline_ms: args.deadline_ms,
        connections: args.connections,
        value_bytes: args.value_bytes,
        read_share: args.read_share,
        create_share: args.create_share,
        seconds_per_step: args.seconds,
        seed,
        runs,
    };
    let table = table(&report);
    std::fs::create_dir_all(&args.report_dir)?;
    let path = |end: &str| args.report_dir.join(format!("overload.{end}"));
    std::fs::write(path("txt"), &table)?;
    std::fs::write(path("json"), serde_json::to_string_pretty(&report)?)?;
    std::fs::write(path("svg"), Chart::page(&charts(&report)))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{table}");
        println!("written to {}", path("{txt,json,svg}").display());
    }
    Ok(())
}

fn sweep(args: &LoadArgs, seed: u64, way: Way) -> Run<Sweep> {
    let servers = Servers::start(args, way)?;
    fill(args, seed, &servers.resp)?;
    let held_to = match way {
        Way::Window => args.window_held_to,
        Way::Protected | Way::Unprotected => args.held_to,
    };
    let held = servers.hold(held_to)?;
    let bench = Bench {
        args,
        seed,
        resp: &servers.resp,
        pid: servers.pid(),
    };
    let closed_loop = bench.closed_loop()?;
    let step = |rate: f64| -> Run<Step> {
        let step = bench.step(rate)?;
        eprintln!("  {}", step.told());
        // What was left in buffers must not burden the next step.
        std::thread::sleep(Duration::from_millis(500));
        Ok(step)
    };
    let quiet = step(closed_loop * QUIET_SHARE)?;
    let mut steps = Vec::new();
    for share in SHARES {
        steps.push(step(closed_loop * share)?);
    }
    let peak = steps
        .iter()
        .max_by(|a, b| a.goodput_per_second.total_cmp(&b.goodput_per_second))
        .expect("there are steps")
        .clone();
    let at_twice = step(peak.offered_per_second * 2.0)?;
    drop(held);
    let below = peak.offered_per_second * 0.9;
    let (offered, refused) = (steps.iter())
        .filter(|step| step.offered_per_second <= below)
        .fold((1.0, 0.0), |(offered, refused), step| {
            (
                offered + step.offered_per_second,
                refused + step.refused_per_second,
            )
        });
    steps.push(at_twice.clone());
    steps.sort_by(|a, b| a.offered_per_second.total_cmp(&b.offered_per_second));
    Ok(Sweep {
        way,
        held_to,
        closed_loop_per_second: closed_loop,
        saturating_per_second: peak.offered_per_second,
        peak_goodput_per_second: peak.goodput_per_second,
        goodput_share_at_twice: at_twice.goodput_per_second / peak.goodput_per_second.max(1.0),
        goodput_share_at_twice_by_cpu: at_twice.goodput_by_cpu() / peak.goodput_by_cpu().max(1.0),
        accepted_p99_over_quiet: at_twice.accepted_p99_ms / quiet.accepted_p99_ms.max(0.001),
        refused_share_below_saturation: refused / offered,
        quiet,
        steps,
        at_twice,
    })
}

struct Bench<'a> {
    args: &'a LoadArgs,
    seed: u64,
    resp: &'a str,
    pid: u32,
}

impl Bench<'_> {
    /// Commands per second that come through when each connection keeps 16 in flight.
    fn closed_loop(&self) -> Run<f64> {
        let seconds = self.args.seconds.min(3.0);
        let mut clients = self.clients()?;
        let (began, mut answered) = (Instant::now(), 0);
        while began.elapsed().as_secs_f64() < seconds {
            let now = Instant::now();
            for client in &mut clients {
                while client.due.len() < 16 {
                    client.ask(now);
                }
                client.turn(&mut |_, _, _| answered += 1)?;
            }
            std::thread::sleep(TICK / 5);
        }
        Ok(f64::from(answered) / began.elapsed().as_secs_f64())
    }

    fn clients(&self) -> Run<Vec<Client>> {
        (0..self.args.connections)
            .map(|_| Client::open(self.args, self.seed, self.resp))
            .collect()
    }

    /// Offers `rate` requests per second for a while.
    fn step(&self, rate: f64) -> Run<Step> {
        let seconds = self.args.seconds;
        let deadline = Duration::from_millis(self.args.deadline_ms);
        let threads = 2.min(self.args.connections);
        let mut parts: Vec<Vec<Client>> = (0..threads).map(|_| Vec::new()).collect();
        for (number, client) in self.clients()?.into_iter().enumerate() {
            parts[number % threads as usize].push(client);
        }
        let began = Instant::now() + Duration::from_millis(20);
        let counted_from = began + Duration::from_secs_f64(seconds * WARM_SHARE);
        let end = began + Duration::from_secs_f64(seconds);
        let threads: Vec<_> = parts
            .into_iter()
            .map(|clients| {
                let share = clients.len() as f64 / f64::from(self.args.connections);
                std::thread::spawn(move || {
                    offer(clients, rate * share, [began, counted_from, end], deadline)
                })
            })
            .collect();
        let pids = [self.pid];
        std::thread::sleep(counted_from.saturating_duration_since(Instant::now()));
        let (counted, cpu) = (Instant::now(), ProcessesCpu::of(&pids));
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        let cpu_us = cpu.and_then(|cpu| cpu.spent_us(&pids));
        let counted_us = counted.elapsed().as_secs_f64() * 1e6;
        let mut tally = Tally::new();
        for thread in threads {
            tally.add(thread.join().map_err(|_| "a generator thread panicked")??);
        }
        let per_second = |count: u64| count as f64 / (seconds * (1.0 - WARM_SHARE));
        let ms = |quantile| tally.accepted_us.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Step {
            offered_per_second: rate - per_second(tally.not_offered),
            asked_per_second: rate,
            goodput_per_second: per_second(tally.visits + tally.creations),
            goodput_visits_per_second: per_second(tally.visits),
            goodput_creations_per_second: per_second(tally.creations),
            late_per_second: per_second(tally.late),
            refused_per_second: per_second(tally.refused),
            unanswered_per_second: per_second(tally.unanswered),
            accepted_p50_ms: ms(0.5),
            accepted_p99_ms: ms(0.99),
            server_cores: cpu_us.map_or(0.0, |us| us / counted_us),
        })
    }
}

// ---- what is told ----

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Protected => "protected",
            Way::Unprotected => "unprotected",
            Way::Window => "window",
        }
    }

    fn told(self) -> &'static str {
        match self {
            Way::Protected => "protected",
            Way::Unprotected => "unprotected",
            Way::Window => "protected by the window of a gateway before it",
        }
    }
}

impl Step {
    /// For each second of processor time that the server used.
    fn goodput_by_cpu(&self) -> f64 {
        self.goodput_per_second / self.server_cores.max(0.001)
    }

    fn told(&self) -> String {
        format!(
            "offered {:>8.0}/s: in time {:>8.0}, late {:>7.0}, refused {:>8.0}, unanswered {:>7.0}; accepted p50 \
             {:>7.2} ms, p99 {:>8.2} ms; {:.2} cores",
            self.offered_per_second,
            self.goodput_per_second,
            self.late_per_second,
            self.refused_per_second,
            self.unanswered_per_second,
            self.accepted_p50_ms,
            self.accepted_p99_ms,
            self.server_cores,
        )
    }
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "goodput against offered load: deadline {} ms, {} connections, {} byte values, {:.0} % GET, {:.0} % of the \
         writes create\n",
        report.deadline_ms,
        report.connections,
        report.value_bytes,
        report.read_share * 100.0,
        report.create_share * 100.0
    );
    for run in &report.runs {
        text += &format!(
            "\n{}, held to {} of a core (closed loop, 16 in flight per connection: {:.0}/s)\n  quiet   {}\n",
            run.way.told(),
            run.held_to,
            run.closed_loop_per_second,
            run.quiet.told()
        );
        for step in &run.steps {
            text += &format!("  {}\n", step.told());
        }
        text += &format!(
            "  saturated by {:.0}/s, peak goodput {:.0}/s; at twice that load {:.0} % of the peak ({:.0} % for each second \
             of the server's processor time), accepted p99 {:.1} times the quiet one; refused below 0.9 of it: {:.2} %\n",
            run.saturating_per_second,
            run.peak_goodput_per_second,
            run.goodput_share_at_twice * 100.0,
            run.goodput_share_at_twice_by_cpu * 100.0,
            run.accepted_p99_over_quiet,
            run.refused_share_below_saturation * 100.0
        );
    }
    text
}

fn charts(report: &Report) -> Vec<Chart> {
    type Pick = fn(&Sweep, &Step) -> f64;
    let lines = |title: &str, y_label: &str, logarithmic, picks: &[(&str, Pick)]| Chart {
        title: title.to_owned(),
        x_label: "offered, of the load that saturates".into(),
        y_label: y_label.to_owned(),
        kind: Kind::Lines,
        logarithmic,
        series: (report.runs.iter())
            .flat_map(|run| {
                let with = run.way.name();
                picks.iter().map(move |(name, pick)| Series {
                    name: format!("{name}{with}"),
                    points: (run.steps.iter())
                        .map(|step| {
                            (
                                step.offered_per_second / run.saturating_per_second.max(1.0),
                                pick(run, step),
                            )
                        })
                        .collect(),
                })
            })
            .collect(),
    };
    vec![
        lines(
            &format!("Answers within {} ms", report.deadline_ms),
            "of the peak",
            false,
            &[("", |run, step| {
                step.goodput_per_second / run.peak_goodput_per_second.max(1.0)
            })],
        ),
        lines(
            "Latency of accepted requests",
            "ms",
            true,
            &[
                ("p50 ", |_, step| step.accepted_p50_ms.max(0.01)),
                ("p99 ", |_, step| step.accepted_p99_ms.max(0.01)),
            ],
        ),
    ]
}

/// Where reports go unless told otherwise.
pub fn report_dir() -> &'static Path {
    Path::new("target/reports")
}
