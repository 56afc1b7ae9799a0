//! Figures as Prometheus text: those of the nodes of this process and of the process itself, and
//! the merging of several processes' texts into one.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::inbox::NodeReport;

/// Metric families by name. Prometheus wants all samples of a family together, under one header.
#[derive(Debug, Default)]
pub struct Families {
    by_name: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    samples: Vec<String>,
}

impl Families {
    /// The figures of this process.
    pub fn of_process(process: &str, reports: &[NodeReport]) -> Families {
        let mut families = Families::default();
        for report in reports {
            let labels = format!(
                "role=\"{}\",node=\"{}\"",
                report.role,
                escaped(&report.name)
            );
            families.add("ready", "1 if recovered and fully replicated", &labels, {
                f64::from(u8::from(report.ready))
            });
            for (name, value) in &report.metrics {
                families.add(name, &words(name), &labels, *value);
            }
            for used in &report.namespaces {
                let labels = format!("{labels},namespace=\"{}\"", used.namespace.0);
                for (name, value) in [
                    ("namespace_sessions", used.sessions),
                    ("namespace_bytes", used.bytes),
                    ("namespace_evicted_total", used.evicted),
                ] {
                    families.add(name, &words(name), &labels, value as f64);
                }
            }
        }
        let labels = format!("process=\"{}\"", escaped(process));
        let usage = ProcessUsage::read();
        families.add(
            "process_cpu_seconds_total",
            "User and system time of the process",
            &labels,
            usage.cpu_seconds,
        );
        families.add(
            "process_resident_bytes",
            "Resident memory of the process",
            &labels,
            usage.resident_bytes,
        );
        families
    }

    /// Certificates taken anew, and those that could not be used.
    pub fn add_tls(&mut self, process: &str, (reloads, failed): (u64, u64)) {
        let labels = format!("process=\"{}\"", escaped(process));
        for (name, help, value) in [
            (
                "tls_reloads_total",
                "Times that new certificates were taken",
                reloads,
            ),
            (
                "tls_failed_reloads_total",
                "Times that new certificates could not be used",
                failed,
            ),
        ] {
            self.add(name, help, &labels, value as f64);
        }
    }

    fn add(&mut self, name: &str, help: &str, labels: &str, value: f64) {
        let name = match name.strip_prefix("holdfast_") {
            Some(_) => name.to_string(),
            None => format!("holdfast_{name}"),
        };
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        let sample = format!("{name}{{{labels}}} {value}");
        let family = self.by_name.entry(name).or_default();
        family.help = help.to_string();
        family.kind = kind.to_string();
        family.samples.push(sample);
    }

    /// Adds what another process of this program wrote with `text`. Lines that make no sense are
    /// left out.
    pub fn absorb(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut parts = rest.splitn(3, ' ');
                let (Some(what), Some(name), Some(said)) =
                    (parts.next(), parts.next(), parts.next())
                else {
                    continue;
                };
                let family = self.by_name.entry(name.to_string()).or_default();
                match what {
                    "HELP" => family.help = said.to_string(),
                    "TYPE" => family.kind = said.to_string(),
                    _ => {}
                }
            } else if let Some((name, _)) = line.split_once('{') {
                let family = self.by_name.entry(name.to_string()).or_default();
                family.samples.push(line.to_string());
            }
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.by_name {
            let _ = writeln!(text, "# HELP {name} {}", family.help);
            let _ = writeln!(text, "# TYPE {name} {}", family.kind);
            for sample in &family.samples {
                text.push_str(sample);
                text.push('\n');
            }
        }
        text
    }
}

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default)]
struct ProcessUsage {
    cpu_seconds: f64,
    resident_bytes: f64,
}

impl ProcessUsage {
    /// Zero where `/proc` does not tell.
    fn read() -> ProcessUsage {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name in parentheses may hold blanks; fields are counted after it, from the third on.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or(vec![], |(_, rest)| rest.split_whitespace().collect());
        let field = |number: usize| {
            fields
                .get(number - 3)
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        ProcessUsage {
            cpu_seconds: (field(14) + field(15)) / ticks_per_second,
            resident_bytes: field(24) * rustix::param::page_size() as f64,
        }
    }
}

/// `replayed_bytes_total` reads "replayed bytes".
fn words(name: &str) -> String {
    let name = name.strip_prefix("holdfast_").unwrap_or(name);
    name.strip_suffix("_total")
        .unwrap_or(name)
        .replace('_', " ")
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::ServerId;
    use holdfast_wire::Figures;

    fn report(name: &str, sessions: f64) -> NodeReport {
        NodeReport {
            role: "master",
            id: ServerId(1),
            name: name.to_string(),
            metrics: vec![("sessions", sessions), ("appends_total", 7.0)],
            figures: Figures::default(),
            namespaces: Vec::new(),
            ready: true,
            reasons: Vec::new(),
        }
    }

    #[test]
    fn families_of_several_processes_are_merged_under_one_header() {
        let mut all = Families::of_process("a", &[report("master-1.0", 3.0)]);
        all.absorb(&Families::of_process("b", &[report("master-2.0", 4.0)]).text());
        let text = all.text();
        assert_eq!(
            text.matches("# TYPE holdfast_sessions gauge").count(),
            1,
            "{text}"
        );
        assert_eq!(
            text.matches("# TYPE holdfast_appends_total counter")
                .count(),
            1,
            "{text}"
        );
        assert!(
            text.contains("holdfast_sessions{role=\"master\",node=\"master-1.0\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("holdfast_sessions{role=\"master\",node=\"master-2.0\"} 4\n"),
            "{text}"
        );
        assert!(
            text.contains("holdfast_process_resident_bytes{process=\"b\"} "),
            "{text}"
        );
    }

    #[test]
    fn a_process_knows_its_own_size() {
        assert!(ProcessUsage::read().resident_bytes > 100_000.0);
    }
}
