//! Overwrites at rising utilisation: the engine alone, and a server through RESP. `docs/benchmarks.md`.

use clap::Parser;
use holdfast_benches::chart::{Chart, Kind, Series};
use holdfast_benches::cleaner::{Measured, Row, Settings, measure};
use holdfast_benches::engine;
use holdfast_benches::report::{self, cell};
use holdfast_benches::through_resp;
use serde_json::json;

#[derive(Parser, Debug)]
struct Arguments {
    /// Memory bound.
    #[arg(long, default_value_t = 1 << 30)]
    memory_bytes: u64,
    #[arg(long, value_delimiter = ',', default_values_t = [30.0, 50.0, 70.0, 80.0, 90.0, 95.0])]
    utilisations: Vec<f64>,
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1024])]
    value_bytes: Vec<usize>,
    /// Theta of Zipf's law; 0 for uniform choice.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.99])]
    zipf: Vec<f64>,
    /// Memory bounds' worth of overwriting before measuring.
    #[arg(long, default_value_t = 1.0)]
    warm: f64,
    /// And for each of the two measurements.
    #[arg(long, default_value_t = 1.0)]
    turns: f64,
    /// Overwrites per second offered through RESP; 0 leaves that part out.
    #[arg(long, default_value_t = 20_000.0)]
    resp_rate: f64,
    /// Leaves the engine alone.
    #[arg(long)]
    resp_only: bool,
    /// Seconds of each of the measurements through RESP, and how many there are of each cluster.
    #[arg(long, default_value_t = 10.0)]
    resp_seconds: f64,
    #[arg(long, default_value_t = 3)]
    resp_rounds: usize,
    /// Memory bound of the cluster at 90 %; the other has three times as much.
    #[arg(long, default_value_t = 1 << 30)]
    resp_memory_bytes: u64,
    /// Replicas, each on a backup process of its own, in the part through RESP.
    #[arg(long, default_value_t = 0)]
    replicas: u8,
    /// Also with compaction switched off.
    #[arg(long)]
    one_level: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), String> {
    let arguments = Arguments::parse();
    let mut rows = Vec::new();
    for &value_bytes in arguments
        .value_bytes
        .iter()
        .filter(|_| !arguments.resp_only)
    {
        for &theta in &arguments.zipf {
            let levels: &[bool] = if arguments.one_level {
                &[true, false]
            } else {
                &[true]
            };
            let points = levels.iter().flat_map(|two_level| {
                let all = arguments.utilisations.iter();
                all.map(move |percent| (*two_level, *percent))
            });
            for (two_level, percent) in points {
                let mut config = engine::config(arguments.memory_bytes);
                config.cleaner.two_level = two_level;
                let settings = Settings {
                    config,
                    value_bytes,
                    utilisation: percent / 100.0,
                    zipf: (theta > 0.0).then_some(theta),
                    warm: arguments.warm,
                    turns: arguments.turns,
                };
                eprintln!("{value_bytes} B, Zipf {theta}, {percent} %, two levels: {two_level}");
                rows.push(measure(&settings));
            }
        }
    }
    if !rows.is_empty() {
        print(&rows);
    }
    let mut through_resp = Vec::new();
    for &value_bytes in &arguments.value_bytes {
        if arguments.resp_rate > 0.0 {
            eprintln!("{value_bytes} B through RESP");
            through_resp.extend(through_resp::measure(&through_resp::Settings {
                value_bytes,
                memory_bytes: arguments.resp_memory_bytes,
                low: 30.0,
                high: 90.0,
                rate: arguments.resp_rate,
                seconds: arguments.resp_seconds,
                rounds: arguments.resp_rounds,
                replicas: arguments.replicas,
            })?);
        }
    }
    if !through_resp.is_empty() {
        print_through_resp(&through_resp);
    }
    let settings = json!({
        "replicas": arguments.replicas,
        "memory_bytes": arguments.memory_bytes,
        "warm": arguments.warm,
        "turns": arguments.turns,
    });
    let all = json!({ "engine": rows, "through_resp": through_resp });
    report::write("cleaner", settings, &all, &charts(&rows));
    Ok(())
}

fn print_through_resp(rows: &[through_resp::Row]) {
    println!(
        "\nOverwrites through RESP, open loop, the same sessions in more and in less memory; µs, median of the rounds:\n"
    );
    let header = [
        "value",
        "full %",
        "per s",
        "errors",
        "p50",
        "p99",
        "p99.9",
        "longest",
        "server CPU",
        "p50 / first",
        "p99.9 / first",
    ];
    let table: Vec<Vec<String>> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let first = &rows[i / 2 * 2];
            vec![
                row.value_bytes.to_string(),
                row.utilisation_percent.to_string(),
                row.rate.to_string(),
                row.errors.to_string(),
                row.p50_us.to_string(),
                row.p99_us.to_string(),
                row.p999_us.to_string(),
                row.max_us.to_string(),
                format!("{:.2}", row.server_cpu_us),
                format!("{:.3}", row.p50_us / first.p50_us),
                format!("{:.2}", row.p999_us / first.p999_us),
            ]
        })
        .collect();
    report::print_table(&header, &table);
}

fn print(rows: &[Row]) {
    println!(
        "\nk/s and ns: CPU time of the engine's thread, cleaning included. append: µs by CPU time, and the longest\n\
         by wall clock. cost: (appended + copied) / appended. ship: survivors' bytes / appended bytes.\n"
    );
    let header = [
        "value",
        "choice",
        "levels",
        "full %",
        "k/s",
        "ns",
        "of it cleaning",
        "relocated",
        "ns each",
        "cost",
        "ship",
        "p50",
        "p99",
        "p99.9",
        "longest",
        "(wall)",
        "slice",
        "(wall)",
        "refused",
    ];
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let it = row.measured.as_ref();
            let get = |field: fn(&Measured) -> f64, decimals| cell(it.map(field), decimals);
            let levels = if row.two_level { "two" } else { "one" };
            vec![
                row.value_bytes.to_string(),
                row.choice.clone(),
                levels.to_string(),
                row.utilisation_percent.to_string(),
                get(|it| it.overwrites_per_second / 1e3, 0),
                get(|it| it.cpu_ns_per_overwrite, 0),
                get(|it| it.cleaning_ns_per_overwrite, 0),
                get(|it| it.relocated_per_overwrite, 2),
                cell(it.and_then(|it| it.ns_per_relocated), 0),
                get(|it| it.write_cost, 2),
                get(|it| it.replication_overhead, 2),
                get(|it| it.append_cpu_us.p50, 2),
                get(|it| it.append_cpu_us.p99, 1),
                get(|it| it.append_cpu_us.p999, 0),
                get(|it| it.append_cpu_us.max, 0),
                get(|it| it.append_us.max, 0),
                get(|it| it.longest_slice_cpu_us, 0),
                get(|it| it.longest_slice_us, 0),
                get(|it| it.refused as f64, 0),
            ]
        })
        .collect();
    report::print_table(&header, &table);
}

fn charts(rows: &[Row]) -> Vec<Chart> {
    let chart = |title: &str, y_label: &str, logarithmic, y: fn(&Measured) -> f64| {
        let mut series: Vec<Series> = Vec::new();
        for row in rows {
            let Some(measured) = &row.measured else {
                continue;
            };
            let levels = if row.two_level { "" } else { ", one level" };
            let name = format!("{} B, {}{levels}", row.value_bytes, row.choice);
            let point = (row.utilisation_percent, y(measured));
            match series.iter_mut().find(|it| it.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name,
                    points: vec![point],
                }),
            }
        }
        Chart {
            title: title.to_string(),
            x_label: "live entries and index, % of the memory bound".to_string(),
            y_label: y_label.to_string(),
            kind: Kind::Lines,
            logarithmic,
            series,
        }
    };
    vec![
        chart(
            "Overwrites, engine alone, cleaning included",
            "per second of CPU time",
            false,
            |it| it.overwrites_per_second,
        ),
        chart("p99.9 of a single append", "µs of CPU time", true, |it| {
            it.append_cpu_us.p999.max(0.001)
        }),
        chart(
            "Write cost in memory: (appended + copied) / appended",
            "",
            false,
            |it| it.write_cost,
        ),
        chart(
            "Traffic of cleaning to each backup / appended",
            "",
            false,
            |it| it.replication_overhead,
        ),
    ]
}
