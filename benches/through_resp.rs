//! Overwriting a server at low and at high utilisation with the same load: what the cleaner adds to latency, as
//! clients see it.
//!
//! Two clusters hold the same sessions, one in three times the memory of the other. `holdfast bench load` offers
//! the same rate to both, in turns, so that whatever else the machine does meets both alike.

use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use crate::keys::KEY_BYTES;
use crate::servers::{Kind, Server, Setup, holdfast_program};

#[derive(Debug, Clone)]
pub struct Settings {
    pub value_bytes: usize,
    /// Bound of the full cluster.
    pub memory_bytes: u64,
    /// Percent of the two bounds.
    pub low: f64,
    pub high: f64,
    /// Overwrites per second, open loop.
    pub rate: f64,
    pub seconds: f64,
    /// Each cluster is measured so often; the median of every figure counts.
    pub rounds: usize,
    pub replicas: u8,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub value_bytes: usize,
    pub utilisation_percent: f64,
    pub sessions: u64,
    pub memory_bytes: u64,
    pub rate: f64,
    pub errors: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub server_cpu_us: f64,
}

/// Index bytes per session at its usual load.
const INDEX_BYTES: usize = 12;
/// Commands in flight per connection while filling up and warming up.
const PIPELINE: &str = "16";

/// The low utilisation's row and the high one's.
pub fn measure(settings: &Settings) -> Result<[Row; 2], String> {
    let each = holdfast_format::HEADER_BYTES + KEY_BYTES + settings.value_bytes + INDEX_BYTES;
    let kept = settings.memory_bytes as f64 * settings.high / 100.0;
    let sessions = (kept / each as f64) as u64;
    let mut clusters = Vec::new();
    for percent in [settings.low, settings.high] {
        let memory_bytes = (kept / (percent / 100.0)) as u64;
        let setup = Setup {
            memory_bytes,
            touch_memory: true,
            replicas: settings.replicas,
        };
        let server = Server::start(Kind::Holdfast, &setup)?.ok_or("Holdfast is always there")?;
        let load = |more: &[&str]| load(&server, settings, sessions, more);
        // Fills, and overwrites as much as the smaller memory again, so that the cleaner has begun.
        load(&["--pipeline", PIPELINE, "--seconds", "1"])?;
        let mut overwritten = 0.0;
        while overwritten * (each as f64) < settings.memory_bytes as f64 {
            let report = load(&["--no-fill", "--pipeline", PIPELINE, "--seconds", "2"])?;
            overwritten += number(&report, "operations")?;
        }
        clusters.push((percent, memory_bytes, server, Vec::new()));
    }
    let rate = settings.rate.to_string();
    let seconds = settings.seconds.to_string();
    for _ in 0..settings.rounds {
        for (_, _, server, reports) in &mut clusters {
            let measured = ["--no-fill", "--rate", &rate, "--seconds", &seconds];
            reports.push(load(server, settings, sessions, &measured)?);
        }
    }
    let mut rows = Vec::new();
    for (percent, memory_bytes, _, reports) in clusters {
        let median = |name: &str| -> Result<f64, String> {
            let all: Result<Vec<f64>, String> = reports.iter().map(|it| number(it, name)).collect();
            let mut all = all?;
            all.sort_by(f64::total_cmp);
            Ok(all[all.len() / 2])
        };
        let errors: Result<Vec<f64>, String> =
            reports.iter().map(|it| number(it, "errors")).collect();
        rows.push(Row {
            value_bytes: settings.value_bytes,
            utilisation_percent: percent,
            sessions,
            memory_bytes,
            rate: settings.rate,
            errors: errors?.iter().sum(),
            p50_us: median("p50_us")?,
            p99_us: median("p99_us")?,
            p999_us: median("p999_us")?,
            max_us: median("max_us")?,
            server_cpu_us: median("server_cpu_us_per_operation")?,
        });
    }
    Ok(rows.try_into().expect("there are two clusters"))
}

/// One run of `holdfast bench load`, all writes, and its report.
fn load(
    server: &Server,
    settings: &Settings,
    sessions: u64,
    more: &[&str],
) -> Result<Value, String> {
    let output = Command::new(holdfast_program()?)
        .args([
            "bench",
            "load",
            "--json",
            "--read-share",
            "0",
            "--ttl-seconds",
            "86400",
        ])
        .args(["--address", &server.address.to_string()])
        .args(["--sessions", &sessions.to_string()])
        .args(["--value-bytes", &settings.value_bytes.to_string()])
        .args(["--pids", &server.pid().to_string()])
        .args(more)
        .output()
        .map_err(|error| error.to_string())?;
    // With errors it prints its report all the same, and they are counted in it.
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("`holdfast bench load` gave no report ({error}): {words}")
    })
}

fn number(report: &Value, name: &str) -> Result<f64, String> {
    let number = report[name].as_f64();
    number.ok_or_else(|| format!("the load's report has no {name}: {report}"))
}
