//! What knowing lifetimes saves on sessions, in simulated time. `docs/benchmarks.md`.

use clap::Parser;
use holdfast_benches::chart::{Chart, Kind, Series};
use holdfast_benches::engine;
use holdfast_benches::report;
use holdfast_benches::sessions::{
    Knowledge, Row, Settings, measure, mixed, office, rewritten, web,
};
use holdfast_log::{CleanerOptions, Config};
use serde_json::json;

#[derive(Parser, Debug)]
struct Arguments {
    /// Memory bound. Segments are of a 256th of it, so that there are as many as in a shard of 2 GB.
    #[arg(long, default_value_t = 64 << 20)]
    memory_bytes: u64,
    #[arg(long, value_delimiter = ',', default_values_t = [50.0, 60.0, 70.0, 80.0])]
    utilisations: Vec<f64>,
    /// Mean length of a value.
    #[arg(long, default_value_t = 600)]
    value_bytes: usize,
    /// Simulated time before anything is counted, and then counted, in minutes; of mixed lives three times as much.
    #[arg(long, default_value_t = 45)]
    warm_minutes: u64,
    #[arg(long, default_value_t = 45)]
    minutes: u64,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Only one: "web", "rewritten", "office" or "mixed".
    #[arg(long)]
    lives: Option<String>,
    /// Only with this knowledge.
    #[arg(long)]
    knowledge: Option<Knowledge>,
    /// Also with combined cleaning alone.
    #[arg(long)]
    one_level: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Levels and knowledge of lifetimes to be measured.
    fn cleaners(&self) -> Vec<(bool, Knowledge)> {
        let levels = if self.one_level {
            vec![true, false]
        } else {
            vec![true]
        };
        let all = vec![Knowledge::Unknown, Knowledge::Swept, Knowledge::Known];
        let known = self.knowledge.map_or(all, |only| vec![only]);
        (levels.iter())
            .flat_map(|&two_level| known.iter().map(move |&known| (two_level, known)))
            .collect()
    }
}

fn main() {
    let arguments = Arguments::parse();
    let segment_bytes = (arguments.memory_bytes / 256)
        .next_power_of_two()
        .max(64 << 10) as u32;
    let mut rows = Vec::new();
    for (name, lives, times) in [
        ("web", web(), 1),
        ("rewritten", rewritten(), 1),
        ("office", office(), 1),
        ("mixed", mixed(), 3),
    ] {
        if arguments.lives.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for &percent in &arguments.utilisations {
            for &(two_level, knowledge) in &arguments.cleaners() {
                let settings = Settings {
                    config: Config {
                        segment_bytes,
                        seglet_bytes: (segment_bytes / 128).max(4 << 10),
                        key_bytes_max: 64,
                        value_bytes_max: segment_bytes / 8,
                        cleaner: CleanerOptions {
                            two_level,
                            ..CleanerOptions::default()
                        },
                        ..engine::config(arguments.memory_bytes)
                    },
                    knowledge,
                    utilisation: percent / 100.0,
                    value_bytes: arguments.value_bytes,
                    lives: lives.clone(),
                    warm_ms: arguments.warm_minutes * 60_000 * times,
                    measured_ms: arguments.minutes * 60_000 * times,
                    seed: arguments.seed,
                };
                eprintln!("{name}, {percent} %, two levels: {two_level}, lifetimes: {knowledge:?}");
                rows.push(measure(&settings, name));
            }
        }
    }
    print(&rows);
    let settings = json!({
        "memory_bytes": arguments.memory_bytes,
        "segment_bytes": segment_bytes,
        "value_bytes": arguments.value_bytes,
        "web": web(),
        "rewritten": rewritten(),
        "office": office(),
        "mixed": mixed(),
        "warm_minutes": arguments.warm_minutes,
        "minutes": arguments.minutes,
        "seed": arguments.seed,
    });
    report::write("sessions", settings, &rows, &[chart(&rows)]);
}

fn print(rows: &[Row]) {
    println!("\nMB, all but the sessions. shipped: survivors, to each backup.\n");
    let header = [
        "lives",
        "full %",
        "levels",
        "lifetimes",
        "sessions",
        "begun",
        "expired",
        "appended",
        "compacted",
        "combined",
        "copied",
        "÷ appended",
        "shipped",
        "refused",
        "full at end %",
    ];
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let table: Vec<Vec<String>> = (rows.iter())
        .map(|row| {
            vec![
                row.lives.clone(),
                row.utilisation_percent.to_string(),
                if row.two_level { "two" } else { "one" }.to_string(),
                told(row.knowledge).to_string(),
                row.sessions.to_string(),
                row.begun.to_string(),
                row.expired.to_string(),
                mb(row.appended_bytes),
                mb(row.compacted_bytes),
                mb(row.combined_bytes),
                mb(row.copied_bytes()),
                format!(
                    "{:.2}",
                    row.copied_bytes() as f64 / row.appended_bytes as f64
                ),
                mb(row.shipped_bytes),
                row.refused.to_string(),
                format!("{:.1}", row.utilisation_end * 100.0),
            ]
        })
        .collect();
    report::print_table(&header, &table);
}

/// What the cleaner knew of lifetimes.
fn told(knowledge: Knowledge) -> &'static str {
    match knowledge {
        Knowledge::Unknown => "unknown until met",
        Knowledge::Swept => "ignored, the sweep tells",
        Knowledge::Known => "known",
    }
}

fn chart(rows: &[Row]) -> Chart {
    let mut categories: Vec<String> = Vec::new();
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let category = format!("{}, {} %", row.lives, row.utilisation_percent);
        let at = categories
            .iter()
            .position(|it| *it == category)
            .unwrap_or_else(|| {
                categories.push(category);
                categories.len() - 1
            });
        let level = if row.two_level {
            "two levels"
        } else {
            "one level"
        };
        let known = told(row.knowledge);
        let name = format!("{level}, {known}");
        let point = (
            at as f64,
            row.copied_bytes() as f64 / row.appended_bytes as f64,
        );
        match series.iter_mut().find(|it| it.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    Chart {
        title: "Bytes that the cleaner copies of each byte appended".to_string(),
        x_label: "sessions, live bytes and index of the memory bound".to_string(),
        y_label: "copied / appended".to_string(),
        kind: Kind::Bars(categories),
        logarithmic: false,
        series,
    }
}
