//! What a benchmark leaves behind: a table for people, `target/reports/NAME.json` for programs, and
//! `NAME.svg`.

use std::fmt::Display;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::chart::Chart;

/// Prints rows under a header, columns aligned: the first to the left, numbers to the right.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(i, title)| {
            let cells = rows.iter().filter_map(|row| row.get(i));
            let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            longest.max(title.chars().count())
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (i, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
            match i {
                0 => text += &format!("{cell:<width$}"),
                _ => text += &format!("  {cell:>width$}"),
            }
        }
        println!("{}", text.trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    println!();
}

/// `value` with so many decimals; "-" if there is none.
pub fn cell<T: Display>(value: Option<T>, decimals: usize) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.decimals$}"))
}

/// Where reports go: `target/reports`, or that below `CARGO_TARGET_DIR`.
pub fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")))
        .join("reports")
}

/// Writes `NAME.json` (the rows, with the machine they were measured on) and `NAME.svg`, and says where.
pub fn write(name: &str, settings: Value, rows: &impl Serialize, charts: &[Chart]) {
    let directory = directory();
    std::fs::create_dir_all(&directory).expect("the target directory can be written");
    let report = json!({
        "benchmark": name,
        "machine": Machine::look(),
        "settings": settings,
        "rows": rows,
    });
    let text = serde_json::to_string_pretty(&report).expect("reports are plain data");
    for (suffix, text) in [("json", text), ("svg", Chart::page(charts))] {
        let path = directory.join(format!("{name}.{suffix}"));
        std::fs::write(&path, text).expect("the target directory can be written");
        println!("wrote {}", path.display());
    }
}

/// What it was measured on. The load says how much others disturbed it.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory_kb: u64,
    load_1_minute: f64,
}

impl Machine {
    /// Blanks and zeros where `/proc` does not tell.
    fn look() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: String, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| Some(line.split_once(':')?.1.trim().to_string()));
            value.unwrap_or_default()
        };
        let first = |text: String| {
            let word = text.split_whitespace().next().map(str::to_string);
            word.unwrap_or_default()
        };
        Machine {
            processor: field(read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, |cores| cores.get()),
            memory_kb: first(field(read("/proc/meminfo"), "MemTotal"))
                .parse()
                .unwrap_or(0),
            load_1_minute: first(read("/proc/loadavg")).parse().unwrap_or(0.0),
        }
    }
}
