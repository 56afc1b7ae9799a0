//! `holdfast ctl memory`: where the memory of each shard is.

use comfy_table::CellAlignment;
use holdfast_wire::grpc::ClusterStatus;
use holdfast_wire::{Figures, Role};
use serde::Serialize;

use super::{figures_of, rounded, table};

/// What one shard, or all of them, have; as scripts read it.
#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    name: String,
    sessions: u64,
    limit_bytes: u64,
    used_bytes: u64,
    live_bytes: u64,
    reclaimable_bytes: u64,
    reserved_bytes: u64,
    index_bytes: u64,
    records_bytes: u64,
    external_bytes: u64,
    /// Of the process; shards of one process tell the same.
    huge_pages_bytes: u64,
    expired_total: u64,
    evicted_total: u64,
}

#[derive(Serialize)]
struct Report {
    shards: Vec<Row>,
    total: Row,
}

impl Row {
    fn of(name: String, figures: &Figures) -> Row {
        Row {
            name,
            sessions: figures.sessions,
            limit_bytes: figures.bytes_limit,
            used_bytes: figures.bytes_used,
            live_bytes: figures.bytes_live,
            reclaimable_bytes: figures.bytes_reclaimable,
            reserved_bytes: figures.bytes_reserved,
            index_bytes: figures.bytes_index,
            records_bytes: figures.bytes_records,
            external_bytes: figures.bytes_external,
            huge_pages_bytes: figures.bytes_huge,
            expired_total: figures.expired,
            evicted_total: figures.evicted,
        }
    }

    fn add(&mut self, other: &Row) {
        for (mine, its) in [
            (&mut self.sessions, other.sessions),
            (&mut self.limit_bytes, other.limit_bytes),
            (&mut self.used_bytes, other.used_bytes),
            (&mut self.live_bytes, other.live_bytes),
            (&mut self.reclaimable_bytes, other.reclaimable_bytes),
            (&mut self.reserved_bytes, other.reserved_bytes),
            (&mut self.index_bytes, other.index_bytes),
            (&mut self.records_bytes, other.records_bytes),
            (&mut self.external_bytes, other.external_bytes),
            (&mut self.expired_total, other.expired_total),
            (&mut self.evicted_total, other.evicted_total),
        ] {
            *mine = mine.saturating_add(its);
        }
    }

    fn cells(&self) -> [String; 12] {
        let percent = match self.limit_bytes {
            0 => String::new(),
            limit => format!("{:.0} %", 100.0 * self.used_bytes as f64 / limit as f64),
        };
        let huge = match self.huge_pages_bytes {
            0 => "no".to_string(),
            bytes => rounded(bytes),
        };
        [
            self.name.clone(),
            self.sessions.to_string(),
            rounded(self.limit_bytes),
            rounded(self.used_bytes),
            percent,
            rounded(self.live_bytes),
            rounded(self.reclaimable_bytes),
            rounded(self.reserved_bytes),
            rounded(self.index_bytes),
            rounded(self.records_bytes),
            rounded(self.external_bytes),
            huge,
        ]
    }
}

impl Report {
    fn of(status: &ClusterStatus) -> Report {
        let shards: Vec<Row> = (status.view.members.iter())
            .filter(|member| member.role == Role::Shard)
            .map(|member| Row::of(member.name.clone(), &figures_of(status, member.id)))
            .collect();
        let mut total = Row {
            name: "total".to_string(),
            ..Row::default()
        };
        // Shards of one process share its huge pages.
        let mut processes: Vec<(u32, &str)> = Vec::new();
        let members = status.view.members.iter();
        for (member, row) in members.filter(|it| it.role == Role::Shard).zip(&shards) {
            total.add(row);
            let process = (member.pid, member.machine.as_str());
            if !processes.contains(&process) {
                processes.push(process);
                total.huge_pages_bytes += row.huge_pages_bytes;
            }
        }
        Report { shards, total }
    }
}

pub fn text(status: &ClusterStatus) -> String {
    let report = Report::of(status);
    let mut rows = table(&[
        "shard",
        "sessions",
        "limit",
        "used",
        "",
        "live",
        "reclaimable",
        "reserved",
        "index",
        "records",
        "external",
        "huge pages",
    ]);
    for column in rows.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in &report.shards {
        rows.add_row(row.cells());
    }
    if report.shards.len() > 1 {
        rows.add_row(report.total.cells());
    }
    format!("{rows}\n")
}

pub fn json(status: &ClusterStatus) -> String {
    serde_json::to_string_pretty(&Report::of(status)).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::sample;

    #[test]
    fn every_shard_and_the_sum_are_told() {
        let mut status = sample();
        let (id, figures) = &mut status.figures[0];
        figures.bytes_live = 2 << 20;
        figures.bytes_huge = 2 << 20;
        let mut other = status.view.members[0].clone();
        other.id = holdfast_format::ServerId(id.0 + 1);
        other.name = "master-1.1".to_string();
        let figures = *figures;
        status.figures.push((other.id, figures));
        status.view.members.push(other);
        let text = text(&status);
        for part in [
            "master-1.0",
            "master-1.1",
            "total",
            "6.0 MiB",
            "1.0 GiB",
            "1 %",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&json(&status)).unwrap();
        assert_eq!(json["total"]["live_bytes"], 4 << 20);
        assert_eq!(json["total"]["huge_pages_bytes"], 2 << 20, "one process");
        assert_eq!(json["shards"][1]["name"], "master-1.1");
    }
}
