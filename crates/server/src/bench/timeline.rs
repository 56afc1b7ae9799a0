//! A recovery as a sequence of stages: when each ended, by whose word, and what processor time each kind of
//! process spent in it. As JSON, as a table, and as a drawing.
//!
//! ```text
//! kill .. detected .. planned .. replayed .. taken over .. fully replicated
//! ```
//!
//! A master that takes over before it has replayed everything does so between planned and replayed, and the stages are named
//! accordingly. Stages overlap in a recovery (masters ship what they have replayed while they replay the rest), so a stage here
//! is the time between two events that everybody waits for: the *last* master's. What a process spends in it
//! need not be for it, and other work of the same processes (clients that ask) is included.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::watch::Process;

/// Something that happened, in milliseconds after the kill.
#[derive(Serialize, Debug, Clone)]
pub struct Event {
    /// The coordinator, the clients, or a master by its name.
    pub who: String,
    pub what: String,
    pub at_ms: f64,
}

/// The time between two events, and what was spent in it.
#[derive(Serialize, Debug, Clone)]
pub struct Stage {
    pub name: &'static str,
    pub from_ms: f64,
    pub to_ms: f64,
    pub cpu_s: Cpu,
}

/// Processor seconds.
#[derive(Serialize, Debug, Clone, Default)]
pub struct Cpu {
    pub coordinator: f64,
    pub masters: f64,
    pub backups: f64,
    pub gateways: f64,
    /// Memory mapped ahead of its use, by the master that was started again.
    pub mapping_memory: f64,
}

impl Cpu {
    pub fn total(&self) -> f64 {
        self.coordinator + self.masters + self.backups + self.gateways + self.mapping_memory
    }
}

#[derive(Serialize, Debug, Clone)]
pub struct Timeline {
    pub events: Vec<Event>,
    pub stages: Vec<Stage>,
    /// Processor seconds from the kill until all was replicated, for 1 GB of replicas that were replayed.
    pub cpu_s_per_gb: f64,
}

impl Timeline {
    /// `recovery` is what the status says of it, `killed_ms` when the kill was by cluster time.
    pub fn new(recovery: &Value, killed_ms: f64, clients: &[Event], seen: &[Process]) -> Timeline {
        let mut events = clients.to_vec();
        let detected_ms = recovery["detected_ms"].as_f64().unwrap_or(killed_ms) - killed_ms;
        let detected_ms = detected_ms.max(0.0);
        let mut by_coordinator = |what: &str, at_ms: f64| {
            let (who, what) = match what.split_once(' ') {
                Some((who, what)) if who.starts_with("master-") => (who, what),
                _ => ("coordinator", what),
            };
            events.push(Event {
                who: who.to_owned(),
                what: what.to_owned(),
                at_ms,
            });
        };
        by_coordinator("declared it dead", detected_ms);
        for phase in recovery["phases"].as_array().into_iter().flatten() {
            let name = phase["name"].as_str().unwrap_or("?");
            let at_ms = phase["at_ms"].as_f64().unwrap_or(0.0);
            by_coordinator(name, detected_ms + at_ms);
        }
        events.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        let last = |what: &str| {
            let of = events.iter().filter(|event| event.what == what);
            of.map(|event| event.at_ms).max_by(f64::total_cmp)
        };
        let (replayed, taken_over) = (last("replayed"), last("all taken over"));
        let middle = match (replayed, taken_over) {
            (Some(replayed_ms), Some(taken_over_ms)) if taken_over_ms < replayed_ms => [
                ("replay the head", taken_over),
                ("replay the rest", replayed),
            ],
            _ => [("fetch and replay", replayed), ("take over", taken_over)],
        };
        let ends = [
            ("detect", Some(detected_ms)),
            ("fence and plan", last("partitions planned")),
            middle[0],
            middle[1],
            ("replicate", last("replicated")),
            ("settle", last("ready again")),
        ];
        let mut stages: Vec<Stage> = Vec::new();
        for (name, end) in ends {
            let from_ms = stages.last().map_or(0.0, |stage| stage.to_ms);
            let Some(to_ms) = end else { continue };
            stages.push(Stage {
                name,
                from_ms,
                to_ms: to_ms.max(from_ms),
                cpu_s: spent(seen, from_ms, to_ms.max(from_ms)),
            });
        }
        let until_replicated = stages.iter().filter(|stage| stage.name != "settle");
        let cpu_s: f64 = until_replicated.map(|stage| stage.cpu_s.total()).sum();
        let gb = recovery["bytes"].as_f64().unwrap_or(0.0) / 1e9;
        Timeline {
            events,
            stages,
            cpu_s_per_gb: if gb > 0.0 { cpu_s / gb } else { 0.0 },
        }
    }

    /// A line for each stage.
    pub fn table(&self) -> String {
        let mut text = format!(
            "  {:<18}{:>8}{:>8}   CPU s: {:>8}{:>8}{:>8}{:>12}{:>8}\n",
            "stage", "until", "ms", "masters", "backups", "gateway", "coordinator", "mapping"
        );
        for stage in &self.stages {
            let cpu = &stage.cpu_s;
            let _ = writeln!(
                text,
                "  {:<18}{:>8.0}{:>8.0}          {:>8.2}{:>8.2}{:>8.2}{:>12.2}{:>8.2}",
                stage.name,
                stage.to_ms,
                stage.to_ms - stage.from_ms,
                cpu.masters,
                cpu.backups,
                cpu.gateways,
                cpu.coordinator,
                cpu.mapping_memory
            );
        }
        text
    }

    /// Above: the share of sessions that can be read. Below: each process's use of a core, with what it said.
    /// `readable_ms`, in order: when each sampled session could be read.
    pub fn svg(&self, title: &str, readable_ms: &[f64], seen: &[Process]) -> String {
        const LEFT: f64 = 130.0;
        const WIDTH: f64 = 760.0;
        const CURVE: f64 = 200.0;
        const ROW: f64 = 30.0;
        const TOP: f64 = 50.0;
        const COLOURS: [&str; 6] = [
            "#e8eef7", "#fdf3d8", "#e5f4e5", "#fbe6e6", "#efe6f7", "#f2f2f2",
        ];
        let end_ms = (self.stages.last()).map_or(1.0, |stage| stage.to_ms);
        let end_ms = end_ms.max(readable_ms.last().copied().unwrap_or(0.0)) * 1.02;
        let x = |ms: f64| LEFT + WIDTH * (ms / end_ms).clamp(0.0, 1.0);
        let rows: Vec<&Process> = (seen.iter())
            .filter(|process| process.looks.last().is_some_and(|look| look.at_ms > 0.0))
            .collect();
        let bottom = TOP + CURVE + ROW * (rows.len() as f64 + 1.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{title}</text>\n",
            LEFT + WIDTH + 20.0,
            bottom + 30.0
        );
        for (stage, colour) in self.stages.iter().zip(COLOURS) {
            let (from, to) = (x(stage.from_ms), x(stage.to_ms));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                to - from,
                bottom - TOP
            );
            if to - from > 40.0 {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\" font-size=\"11\">{}</text>",
                    from + 2.0,
                    TOP - 5.0,
                    stage.name
                );
            }
        }
        let share_y = |share: f64| TOP + CURVE - 10.0 - (CURVE - 20.0) * share;
        for percent in [0, 50, 100] {
            let y = share_y(f64::from(percent) / 100.0);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        let mut path = format!("M{:.1} {:.1}", x(0.0), share_y(0.0));
        let step = (readable_ms.len() / 400).max(1);
        for (at, ms) in readable_ms.iter().enumerate().step_by(step) {
            let share = (at + 1) as f64 / readable_ms.len() as f64;
            let _ = write!(path, " H{:.1} V{:.1}", x(*ms), share_y(share));
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path} V{:.1} H{:.1}\" fill=\"none\" stroke=\"#1b6ca8\" stroke-width=\"2\"/>",
            share_y(1.0),
            x(end_ms)
        );
        for (row, process) in rows.iter().enumerate() {
            let base = TOP + CURVE + ROW * (row as f64 + 1.0) - 4.0;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                process.name
            );
            for pair in process.looks.windows(2).filter(|pair| pair[0].at_ms >= 0.0) {
                let (from, to) = (x(pair[0].at_ms), x(pair[1].at_ms));
                let seconds = (pair[1].at_ms - pair[0].at_ms) / 1e3;
                let spent = (pair[1].work_s - pair[0].work_s) / seconds.max(1e-3);
                let height = (ROW - 8.0) * spent.clamp(0.0, 1.0);
                if height > 0.2 {
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#8fb3d9\"/>",
                        base - height,
                        to - from
                    );
                }
            }
            // A shard is named after its process: `master-2.0` lives in `master-2`.
            let own = |event: &&Event| {
                event.who.split('.').next() == Some(&process.name) && event.what != "first bytes"
            };
            for event in self.events.iter().filter(own) {
                let at = x(event.at_ms);
                let _ = writeln!(
                    svg,
                    "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{base:.1}\" stroke=\"#d1495b\">\
                     <title>{}</title></line>",
                    base - ROW + 8.0,
                    event.what
                );
            }
        }
        for tick in 0..=4 {
            let ms = end_ms * f64::from(tick) / 4.0;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ms:.0} ms</text>",
                x(ms),
                bottom + 18.0
            );
        }
        svg + "</svg>\n"
    }
}

/// What the processes of each kind spent between two moments.
fn spent(seen: &[Process], from_ms: f64, to_ms: f64) -> Cpu {
    let mut cpu = Cpu::default();
    for process in seen {
        let (work_s, mapping_s) = process.spent(from_ms, to_ms);
        cpu.mapping_memory += mapping_s;
        match process.kind() {
            "master" => cpu.masters += work_s,
            "backup" => cpu.backups += work_s,
            "gateway" => cpu.gateways += work_s,
            _ => cpu.coordinator += work_s,
        }
    }
    cpu
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::watch::Look;
    use super::*;

    fn process(name: &str, spent_s: [f64; 3]) -> Process {
        let look = |(at, work_s): (usize, f64)| Look {
            at_ms: at as f64 * 500.0 - 100.0,
            work_s,
            mapping_s: 0.0,
        };
        Process {
            name: name.to_owned(),
            looks: spent_s.into_iter().enumerate().map(look).collect(),
        }
    }

    #[test]
    fn stages_end_with_the_last_master() {
        let recovery = json!({
            "detected_ms": 10_050, "bytes": 500_000_000,
            "phases": [
                {"name": "log fenced", "at_ms": 20},
                {"name": "partitions planned", "at_ms": 50},
                {"name": "master-1.0 replayed", "at_ms": 300},
                {"name": "master-2.0 replayed", "at_ms": 550},
                {"name": "all taken over", "at_ms": 650},
            ],
        });
        let ready = Event {
            who: "clients".to_owned(),
            what: "ready again".to_owned(),
            at_ms: 900.0,
        };
        let seen = [
            process("master-1", [3.0, 3.5, 4.0]),
            process("backup-1", [1.0, 1.25, 1.25]),
        ];
        let timeline = Timeline::new(&recovery, 10_000.0, &[ready], &seen);
        let ends: Vec<(&str, f64)> = (timeline.stages.iter())
            .map(|stage| (stage.name, stage.to_ms))
            .collect();
        let expected = [
            ("detect", 50.0),
            ("fence and plan", 100.0),
            ("fetch and replay", 600.0),
            ("take over", 700.0),
            ("settle", 900.0),
        ];
        assert_eq!(ends, expected, "nobody said when it was replicated");
        let spent: Vec<f64> = (timeline.stages.iter())
            .map(|stage| stage.cpu_s.total())
            .collect();
        assert_eq!(spent, [0.0, 0.0, 0.75, 0.0, 0.5]);
        assert_eq!(timeline.cpu_s_per_gb, 1.5);
        let who = |event: &Event| (event.who.clone(), event.what.clone());
        assert_eq!(
            who(&timeline.events[3]),
            ("master-1.0".to_owned(), "replayed".to_owned())
        );
        assert_eq!(timeline.table().lines().count(), 6);
        let svg = timeline.svg("a recovery", &[400.0, 700.0], &seen);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("backup-1") && svg.contains("fetch and replay"));
    }
}
