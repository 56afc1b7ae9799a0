//! Bytes of process memory per session, Holdfast against its peers. `docs/benchmarks.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "clocks are what is measured with here"
)]

use std::time::Duration;

use clap::Parser;
use holdfast_benches::chart::{Chart, Kind as ChartKind, Series};
use holdfast_benches::client::{Load, Outcome, Until};
use holdfast_benches::keys::KEY_BYTES;
use holdfast_benches::report::{self, cell};
use holdfast_benches::servers::{Kind, Server, Setup};
use serde::Serialize;
use serde_json::json;

#[derive(Parser, Debug)]
struct Arguments {
    /// Numbers of sessions of the first part.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000])]
    sessions: Vec<u64>,
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500, 1024, 4096])]
    value_bytes: Vec<usize>,
    /// Second part: Holdfast's memory bound, filled with one session for every (key + value + 46) / 0.90 bytes; 0
    /// leaves the part out.
    #[arg(long, default_value_t = 2 << 30)]
    bound_bytes: u64,
    /// How long Holdfast is then overwritten with sizes varying by half. The peers get as many writes.
    #[arg(long, default_value_t = 20.0)]
    overwrite_seconds: f64,
    /// Only Holdfast.
    #[arg(long)]
    alone: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a session may cost beyond its key and value, and how full memory may be: the goals of this benchmark.
const OVERHEAD_GOAL_BYTES: u64 = 46;
const FULL_GOAL: f64 = 0.90;

const TTL_SECONDS: u32 = 86_400;

/// Growth by the first fill of an empty server.
#[derive(Debug, Serialize)]
struct Fill {
    server: &'static str,
    sessions: u64,
    value_bytes: usize,
    outcome: Outcome,
    /// (Growth of resident memory) / sessions, less key and value.
    overhead_resident: f64,
    /// The same of what Holdfast's log says it uses.
    overhead_used: Option<f64>,
    /// And without what the cleaner would free if memory were short: dead completion records, above all.
    overhead_kept: Option<f64>,
}

/// After overwrites with other sizes.
#[derive(Debug, Serialize)]
struct Overwritten {
    server: &'static str,
    sessions: u64,
    value_bytes: usize,
    bound_bytes: Option<u64>,
    fill: Outcome,
    overwrites: Outcome,
    seconds: f64,
    resident_bytes: u64,
    peak_resident_bytes: u64,
    resident_per_session: f64,
    used_bytes: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct Rows {
    fills: Vec<Fill>,
    overwritten: Vec<Overwritten>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|&kind| kind == Kind::Holdfast || !arguments.alone)
        .filter(|kind| !matches!(kind, Kind::RedisDefrag | Kind::ValkeyDefrag))
        .collect();
    let mut rows = Rows::default();
    for &value_bytes in &arguments.value_bytes {
        for &sessions in &arguments.sessions {
            for &kind in &kinds {
                rows.fills.extend(fill(kind, sessions, value_bytes)?);
            }
        }
        if arguments.bound_bytes > 0 {
            // Set by Holdfast's: the peers get the same writes.
            let mut writes = None;
            for &kind in &kinds {
                let row = overwrite(kind, value_bytes, &arguments, writes)?;
                if let Some(row) = &row {
                    let made = row.overwrites.written + row.overwrites.refused;
                    if kind == Kind::Holdfast {
                        writes = Some(made);
                    }
                    eprintln!(
                        "{}: {made} overwrites, {:.0} MB resident",
                        kind.name(),
                        row.resident_bytes as f64 / 1e6
                    );
                }
                rows.overwritten.extend(row);
            }
        }
    }
    print(&rows);
    let settings = json!({
        "bound_bytes": arguments.bound_bytes,
        "overwrite_seconds": arguments.overwrite_seconds,
        "key_bytes": KEY_BYTES,
    });
    report::write("memory", settings, &rows, &charts(&rows));
    Ok(())
}

fn fill(
    kind: Kind,
    sessions: u64,
    value_bytes: usize,
) -> Result<Option<Fill>, Box<dyn std::error::Error>> {
    let content = (KEY_BYTES + value_bytes) as u64;
    let setup = Setup {
        // Ample: what a session costs is asked here, not what a bound does.
        memory_bytes: (sessions * (content + 100) * 5 / 4).max(256 << 20),
        touch_memory: false,
        replicas: 0,
    };
    let Some(server) = Server::start(kind, &setup)? else {
        return Ok(None);
    };
    let load = load(&server, sessions, value_bytes);
    eprintln!("{}: {sessions} of {value_bytes} B", kind.name());
    let used = || server.metric("holdfast_shard_memory_used_bytes");
    let before = (server.usage().resident_bytes, used());
    let outcome = load.fill()?;
    // Metrics are gathered now and then, and buffers given back.
    std::thread::sleep(Duration::from_secs(2));
    let per_session = |bytes: f64| bytes / sessions as f64 - content as f64;
    check(&server, sessions)?;
    let reclaimable = server.metric("holdfast_shard_memory_reclaimable_bytes");
    let grown = server.usage().resident_bytes as f64 - before.0 as f64;
    Ok(Some(Fill {
        server: kind.name(),
        sessions,
        value_bytes,
        outcome,
        overhead_resident: per_session(grown),
        overhead_used: used()
            .zip(before.1)
            .map(|(after, before)| per_session(after - before)),
        overhead_kept: used()
            .zip(before.1)
            .zip(reclaimable)
            .map(|((after, before), garbage)| per_session(after - before - garbage)),
    }))
}

fn overwrite(
    kind: Kind,
    value_bytes: usize,
    arguments: &Arguments,
    writes: Option<u64>,
) -> Result<Option<Overwritten>, Box<dyn std::error::Error>> {
    let each = KEY_BYTES as u64 + value_bytes as u64 + OVERHEAD_GOAL_BYTES;
    let sessions = (arguments.bound_bytes as f64 * FULL_GOAL / each as f64) as u64;
    let setup = Setup {
        memory_bytes: arguments.bound_bytes,
        touch_memory: false,
        replicas: 0,
    };
    let Some(server) = Server::start(kind, &setup)? else {
        return Ok(None);
    };
    eprintln!("{}: {sessions} of about {value_bytes} B", kind.name());
    let load = load(&server, sessions, value_bytes);
    let fill = load.fill()?;
    let began = std::time::Instant::now();
    let overwrites = load.overwrite(match writes {
        Some(writes) => Until::Written(writes),
        None => Until::Elapsed(Duration::from_secs_f64(arguments.overwrite_seconds)),
    })?;
    let seconds = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(2));
    if fill.refused == 0 {
        check(&server, sessions)?;
    }
    let usage = server.usage();
    Ok(Some(Overwritten {
        server: kind.name(),
        sessions,
        value_bytes,
        bound_bytes: (kind == Kind::Holdfast).then_some(arguments.bound_bytes),
        fill,
        overwrites,
        seconds,
        resident_bytes: usage.resident_bytes,
        peak_resident_bytes: usage.peak_resident_bytes,
        resident_per_session: usage.resident_bytes as f64 / sessions as f64,
        used_bytes: server.metric("holdfast_shard_memory_used_bytes"),
    }))
}

/// Without replicas a server that was declared dead is an empty one: its figures would be worth nothing.
fn check(server: &Server, sessions: u64) -> Result<(), String> {
    match server.sessions() {
        Some(found) if found < sessions => Err(format!("{found} of {sessions} sessions are there")),
        _ => Ok(()),
    }
}

fn load(server: &Server, sessions: u64, value_bytes: usize) -> Load {
    Load {
        address: server.address,
        dialect: server.kind.dialect(),
        sessions,
        value_bytes,
        ttl_seconds: TTL_SECONDS,
    }
}

fn print(rows: &Rows) {
    println!("\nOverhead in bytes per session beyond its {KEY_BYTES}-byte key and its value:\n");
    let header = [
        "server", "value", "sessions", "resident", "used", "kept", "errors",
    ];
    let table: Vec<Vec<String>> = rows
        .fills
        .iter()
        .map(|row| {
            vec![
                row.server.to_string(),
                row.value_bytes.to_string(),
                row.sessions.to_string(),
                format!("{:.1}", row.overhead_resident),
                cell(row.overhead_used, 1),
                cell(row.overhead_kept, 1),
                row.outcome.refused.to_string(),
            ]
        })
        .collect();
    report::print_table(&header, &table);
    if rows.overwritten.is_empty() {
        return;
    }
    println!("After overwrites with values of half to one and a half times the size:\n");
    let header = [
        "server",
        "value",
        "sessions",
        "overwrites",
        "s",
        "errors",
        "resident MB",
        "per session",
        "of bound",
        "/ Redis's",
        "/ Valkey's",
    ];
    let table: Vec<Vec<String>> = rows
        .overwritten
        .iter()
        .map(|row| {
            let against = |name: &str| {
                let peer = rows
                    .overwritten
                    .iter()
                    .find(|it| it.server == name && it.value_bytes == row.value_bytes);
                peer.map(|peer| row.resident_bytes as f64 / peer.resident_bytes as f64)
            };
            let of_bound = row
                .bound_bytes
                .map(|bound| row.peak_resident_bytes as f64 / bound as f64);
            vec![
                row.server.to_string(),
                row.value_bytes.to_string(),
                row.sessions.to_string(),
                row.overwrites.written.to_string(),
                format!("{:.0}", row.seconds),
                (row.fill.refused + row.overwrites.refused).to_string(),
                format!("{:.0}", row.resident_bytes as f64 / 1e6),
                format!("{:.1}", row.resident_per_session),
                cell(of_bound, 3),
                cell(against("Redis"), 2),
                cell(against("Valkey"), 2),
            ]
        })
        .collect();
    report::print_table(&header, &table);
    for row in &rows.overwritten {
        let words = row.fill.first_refusal.as_ref();
        if let Some(words) = words.or(row.overwrites.first_refusal.as_ref()) {
            println!("{} at {} B: {words}", row.server, row.value_bytes);
        }
    }
}

fn charts(rows: &Rows) -> Vec<Chart> {
    let bars = |title: &str, all: Vec<(&'static str, String, f64)>| {
        let mut categories: Vec<String> = Vec::new();
        let mut series: Vec<Series> = Vec::new();
        for (server, category, value) in all {
            let x = categories.iter().position(|it| *it == category);
            let x = x.unwrap_or_else(|| {
                categories.push(category);
                categories.len() - 1
            });
            let point = (x as f64, value.max(0.0));
            match series.iter_mut().find(|it| it.name == server) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name: server.to_string(),
                    points: vec![point],
                }),
            }
        }
        Chart {
            title: title.to_string(),
            x_label: "value bytes".to_string(),
            y_label: "bytes per session".to_string(),
            kind: ChartKind::Bars(categories),
            logarithmic: false,
            series,
        }
    };
    let fills = rows.fills.iter().map(|row| {
        let category = format!("{} ({:.1} M)", row.value_bytes, row.sessions as f64 / 1e6);
        (row.server, category, row.overhead_resident)
    });
    let overwritten = rows.overwritten.iter().map(|row| {
        let size = row.value_bytes.to_string();
        (row.server, size, row.resident_per_session)
    });
    vec![
        bars(
            "Resident memory beyond key and value, after one fill",
            fills.collect(),
        ),
        bars(
            "Resident memory after overwrites with sizes varying by half",
            overwritten.collect(),
        ),
    ]
}
