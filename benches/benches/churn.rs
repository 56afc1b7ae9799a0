//! Object sizes that change (W1 to W8 of FAST '14): what a log needs, and what processes grow to. `docs/benchmarks.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "clocks are what is measured with here"
)]

use std::time::Duration;

use clap::Parser;
use holdfast_benches::chart::{Chart, Kind as ChartKind, Series};
use holdfast_benches::churn::{
    self, EngineRow, KEY_BYTES, Store, VALUE_BYTES_MAX, WORKLOADS, Workload,
};
use holdfast_benches::client::{Client, Outcome, stamp};
use holdfast_benches::report::{self, cell};
use holdfast_benches::servers::{Kind, Server, Setup};
use serde::Serialize;
use serde_json::json;

#[derive(Parser, Debug)]
struct Arguments {
    /// Live value bytes.
    #[arg(long, default_value_t = 300_000_000)]
    live_bytes: u64,
    /// Live value bytes' worth of objects that each writing phase writes.
    #[arg(long, default_value_t = 1.0)]
    turns: f64,
    /// Of W1, W2, …
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Only the log, no processes.
    #[arg(long)]
    engine_only: bool,
    /// No peers.
    #[arg(long)]
    alone: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Serialize)]
struct ProcessRow {
    server: &'static str,
    workload: &'static str,
    /// Holdfast's: the log's smallest bound, and as many segments more as the process needed.
    bound_bytes: Option<u64>,
    outcome: Outcome,
    /// Resident memory at its most, and 5 seconds after the end, ÷ live value bytes.
    peak_to_values: f64,
    later_to_values: f64,
}

#[derive(Debug, Default, Serialize)]
struct Rows {
    engine: Vec<EngineRow>,
    processes: Vec<ProcessRow>,
}

/// By how much the process's bound is raised until no write is refused, and how often: by a segment, or a percent.
const STEP_BYTES: u64 = 8 << 20;
const STEP_SHARE: u64 = 100;
const STEPS_MAX: u64 = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let chosen: Vec<Workload> = WORKLOADS
        .into_iter()
        .filter(|it| {
            let names = &arguments.workloads;
            names.is_empty() || names.iter().any(|name| name == it.name)
        })
        .collect();
    let mut rows = Rows::default();
    for workload in &chosen {
        eprintln!("{}: the log", workload.name);
        let config = churn::engine_config();
        let row = churn::smallest_bound(workload, arguments.live_bytes, arguments.turns, &config);
        let bound_bytes = row.bound_bytes;
        rows.engine.push(row);
        if arguments.engine_only {
            continue;
        }
        for kind in Kind::ALL {
            if arguments.alone && kind != Kind::Holdfast {
                continue;
            }
            eprintln!("{}: {}", workload.name, kind.name());
            let row = match kind {
                Kind::Holdfast => holdfast(workload, &arguments, bound_bytes)?,
                kind => process(kind, workload, &arguments, arguments.live_bytes)?,
            };
            rows.processes.extend(row);
        }
    }
    print(&rows);
    let settings = json!({ "live_bytes": arguments.live_bytes, "turns": arguments.turns });
    report::write("churn", settings, &rows, &charts(&rows, &chosen));
    Ok(())
}

/// At the log's smallest bound, and a segment more until the process gets through: its buffers count, too.
fn holdfast(
    workload: &Workload,
    arguments: &Arguments,
    bound_bytes: u64,
) -> Result<Option<ProcessRow>, Box<dyn std::error::Error>> {
    let mut last = None;
    for step in 0..STEPS_MAX {
        let step_bytes = (bound_bytes / STEP_SHARE).next_multiple_of(STEP_BYTES);
        let bound_bytes = bound_bytes + step * step_bytes;
        last = process(Kind::Holdfast, workload, arguments, bound_bytes)?;
        if let Some(row) = &mut last {
            row.bound_bytes = Some(bound_bytes);
            if row.outcome.refused == 0 {
                break;
            }
        }
    }
    Ok(last)
}

fn process(
    kind: Kind,
    workload: &Workload,
    arguments: &Arguments,
    memory_bytes: u64,
) -> Result<Option<ProcessRow>, Box<dyn std::error::Error>> {
    let setup = Setup {
        memory_bytes,
        touch_memory: false,
        replicas: 0,
    };
    let server = match Server::start(kind, &setup) {
        Ok(Some(server)) => server,
        Ok(None) => return Ok(None),
        // Active defragmentation needs an allocator that not every build has.
        Err(words) if matches!(kind, Kind::RedisDefrag | Kind::ValkeyDefrag) => {
            eprintln!("{}: left out: {words}", kind.name());
            return Ok(None);
        }
        Err(words) => return Err(words.into()),
    };
    let mut store = Remote {
        client: server.client()?,
        value: vec![b'v'; VALUE_BYTES_MAX],
        number: 0,
        outcome: Outcome::default(),
        failed: None,
        strict: kind == Kind::Holdfast,
    };
    churn::run(workload, arguments.live_bytes, arguments.turns, &mut store);
    store.send();
    if let Some(error) = store.failed {
        return Err(error.into());
    }
    let peak = server.usage().peak_resident_bytes;
    std::thread::sleep(Duration::from_secs(5));
    let to_values = |bytes: u64| bytes as f64 / arguments.live_bytes as f64;
    Ok(Some(ProcessRow {
        server: kind.name(),
        workload: workload.name,
        bound_bytes: None,
        outcome: store.outcome,
        peak_to_values: to_values(peak),
        later_to_values: to_values(server.usage().resident_bytes),
    }))
}

/// A server behind one connection, pipelined.
struct Remote {
    client: Client,
    value: Vec<u8>,
    number: u64,
    outcome: Outcome,
    failed: Option<std::io::Error>,
    /// End at the first refusal: another bound will be tried.
    strict: bool,
}

const PIPELINE: usize = 128;

impl Remote {
    fn send(&mut self) -> bool {
        let outcome = &mut self.outcome;
        let sent = self.client.exchange(|_, reply| outcome.count(reply));
        if let Err(error) = sent {
            self.failed = Some(error);
        }
        self.failed.is_none() && !(self.strict && self.outcome.refused > 0)
    }

    fn sent(&mut self) -> bool {
        self.client.waiting() < PIPELINE || self.send()
    }
}

impl Store for Remote {
    fn set(&mut self, key: &[u8; KEY_BYTES], value_bytes: usize) -> bool {
        self.number += 1;
        stamp(&mut self.value, self.number);
        self.client.set(key, &self.value[..value_bytes], None);
        self.sent()
    }

    fn delete(&mut self, key: &[u8; KEY_BYTES]) -> bool {
        self.client.delete(key);
        self.sent()
    }
}

fn print(rows: &Rows) {
    println!("\nThe log alone, at the smallest bound where no write was refused:\n");
    let header = [
        "workload",
        "bound MB",
        "entries MB",
        "segments MB",
        "segments / entries",
        "write cost",
    ];
    let mb = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    let table: Vec<Vec<String>> = rows
        .engine
        .iter()
        .map(|row| {
            vec![
                row.workload.to_string(),
                mb(row.bound_bytes),
                mb(row.peak.entry_bytes),
                mb(row.peak_segment_bytes),
                format!("{:.3}", row.segments_to_entries),
                format!("{:.2}", row.write_cost),
            ]
        })
        .collect();
    report::print_table(&header, &table);
    if rows.processes.is_empty() {
        return;
    }
    println!("Processes: resident memory / live value bytes, at its most and 5 s after the end:\n");
    let header = ["server", "workload", "most", "later", "bound MB", "refused"];
    let table: Vec<Vec<String>> = rows
        .processes
        .iter()
        .map(|row| {
            vec![
                row.server.to_string(),
                row.workload.to_string(),
                format!("{:.2}", row.peak_to_values),
                format!("{:.2}", row.later_to_values),
                cell(row.bound_bytes.map(|it| it as f64 / 1e6), 0),
                row.outcome.refused.to_string(),
            ]
        })
        .collect();
    report::print_table(&header, &table);
    for row in &rows.processes {
        if let Some(words) = &row.outcome.first_refusal {
            println!("{} on {}: {words}", row.server, row.workload);
        }
    }
}

fn charts(rows: &Rows, chosen: &[Workload]) -> Vec<Chart> {
    let names: Vec<String> = chosen.iter().map(|it| it.name.to_string()).collect();
    let x_of = |workload: &str| {
        let x = chosen.iter().position(|it| it.name == workload);
        x.expect("only chosen ones were run") as f64
    };
    let chart = |title: &str, series| Chart {
        title: title.to_string(),
        x_label: "workload".to_string(),
        y_label: String::new(),
        kind: ChartKind::Bars(names.clone()),
        logarithmic: false,
        series,
    };
    let engine = Series {
        name: "Holdfast's log".to_string(),
        points: rows
            .engine
            .iter()
            .map(|row| (x_of(row.workload), row.segments_to_entries))
            .collect(),
    };
    let processes = Kind::ALL
        .into_iter()
        .map(|kind| Series {
            name: kind.name().to_string(),
            points: rows
                .processes
                .iter()
                .filter(|row| row.server == kind.name())
                .map(|row| (x_of(row.workload), row.peak_to_values))
                .collect(),
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    vec![
        chart("Peak segment memory / bytes of live entries", vec![engine]),
        chart("Peak resident memory / live value bytes", processes),
    ]
}
