//! `holdfast ctl`: what the coordinator says, for people and for scripts.

pub mod memory;
pub mod namespaces;
pub mod recoveries;

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use holdfast_format::ServerId;
use holdfast_wire::grpc::{AdminClient, ClusterStatus};
use holdfast_wire::{Figures, Role};
use serde::Serialize;

use crate::cli::ClientArgs;
use crate::error::{Context, Outcome};
use crate::options::{ByteSize, read_secret};
use crate::tls::ClientKeys;

/// `holdfast ctl status`.
pub fn status(client: &ClientArgs, json: bool) -> Outcome<()> {
    let status = ask(client)?;
    if json {
        let text = serde_json::to_string_pretty(&StatusJson::of(&status));
        println!("{}", text.expect("strings and numbers are JSON"));
    } else {
        print!("{}", tables(&status));
    }
    Ok(())
}

/// `holdfast ctl memory`.
pub fn memory(client: &ClientArgs, json: bool) -> Outcome<()> {
    let status = ask(client)?;
    if json {
        println!("{}", memory::json(&status));
    } else {
        print!("{}", memory::text(&status));
    }
    Ok(())
}

fn ask(client: &ClientArgs) -> Outcome<ClusterStatus> {
    block_on(async {
        let mut admin = connect(client).await?;
        told(client, &mut admin).await
    })
}

async fn connect(client: &ClientArgs) -> Outcome<AdminClient> {
    let password = client.password()?;
    let keys = client.tls.keys()?;
    let tls = keys.as_ref().map(ClientKeys::for_grpc);
    AdminClient::connect(&client.grpc, password.as_deref(), tls)
        .await
        .context(String::new)
}

async fn told(client: &ClientArgs, admin: &mut AdminClient) -> Outcome<ClusterStatus> {
    let status = admin.status().await;
    status.context(|| format!("{}: no status", client.grpc))
}

/// Runs a client's command on a small runtime.
pub fn block_on<T>(command: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start tokio".to_string())?
        .block_on(command)
}

impl ClientArgs {
    pub fn password(&self) -> Outcome<Option<String>> {
        self.password_file
            .as_deref()
            .map(|path| read_secret(path, "password"))
            .transpose()
    }
}

/// The status as scripts read it. Ids are strings: JSON's numbers are too short for them.
#[derive(Serialize)]
struct StatusJson {
    ready: bool,
    not_ready_because: Vec<String>,
    cluster: String,
    view_version: u64,
    replicas: u8,
    ack_quorum: u8,
    members: Vec<MemberJson>,
    tablets: Vec<TabletJson>,
    recoveries: Vec<RecoveryJson>,
    replication: ReplicationJson,
}

#[derive(Serialize)]
struct MemberJson {
    id: String,
    role: &'static str,
    name: String,
    address: String,
    machine: String,
    pid: u32,
    resp_cluster: String,
    sessions: u64,
    bytes_used: u64,
    bytes_limit: u64,
    segments: u64,
    under_replicated: u64,
    operations: u64,
    disk_used: u64,
    disk_limit: u64,
    scrub_permille: u64,
    scrub_passes: u64,
    scrub_bad: u64,
    clock_error_us: u64,
    slow: bool,
}

#[derive(Serialize)]
struct TabletJson {
    first_slot: u16,
    last_slot: u16,
    owner: String,
    owner_name: String,
    epoch: u64,
    available: bool,
}

#[derive(Serialize)]
struct RecoveryJson {
    log: String,
    attempt: u64,
    state: String,
    entries: u64,
    bytes: u64,
    running_ms: u64,
    detected_ms: u64,
    finished: bool,
    phases: Vec<PhaseJson>,
}

#[derive(Serialize)]
struct PhaseJson {
    name: String,
    at_ms: u64,
}

#[derive(Serialize)]
struct ReplicationJson {
    replicas: u8,
    segments: u64,
    under_replicated: u64,
}

impl StatusJson {
    fn of(status: &ClusterStatus) -> StatusJson {
        let (segments, under_replicated) = replication(status);
        StatusJson {
            ready: status.not_ready_because.is_empty(),
            not_ready_because: status.not_ready_because.clone(),
            cluster: format!("{:016x}", status.cluster),
            view_version: status.view.version,
            replicas: status.replicas,
            ack_quorum: status.ack_quorum,
            members: status
                .view
                .members
                .iter()
                .map(|member| {
                    let figures = figures_of(status, member.id);
                    MemberJson {
                        id: member.id.to_string(),
                        role: role_name(member.role),
                        name: member.name.clone(),
                        address: member.address.clone(),
                        machine: member.machine.clone(),
                        pid: member.pid,
                        resp_cluster: member.resp_cluster.clone(),
                        sessions: figures.sessions,
                        bytes_used: figures.bytes_used,
                        bytes_limit: figures.bytes_limit,
                        segments: figures.segments,
                        under_replicated: figures.under_replicated,
                        operations: figures.operations,
                        disk_used: figures.disk_used,
                        disk_limit: figures.disk_limit,
                        scrub_permille: figures.scrub_permille,
                        scrub_passes: figures.scrub_passes,
                        scrub_bad: figures.scrub_bad,
                        clock_error_us: figures.clock_error_us,
                        slow: status.view.slow.contains(&member.id),
                    }
                })
                .collect(),
            tablets: status
                .view
                .tablets
                .iter()
                .map(|tablet| TabletJson {
                    first_slot: tablet.range.first.0,
                    last_slot: tablet.range.last.0,
                    owner: tablet.owner.shard().to_string(),
                    owner_name: name_of(status, tablet.owner.shard()),
                    epoch: tablet.epoch.0,
                    available: tablet.available,
                })
                .collect(),
            recoveries: status
                .recoveries
                .iter()
                .map(|recovery| RecoveryJson {
                    log: recovery.log.to_string(),
                    attempt: recovery.attempt,
                    state: recovery.state.clone(),
                    entries: recovery.entries,
                    bytes: recovery.bytes,
                    running_ms: recovery.running_ms,
                    detected_ms: recovery.detected.0,
                    finished: recovery.finished,
                    phases: recovery
                        .phases
                        .iter()
                        .map(|phase| PhaseJson {
                            name: phase.name.clone(),
                            at_ms: phase.at_ms,
                        })
                        .collect(),
                })
                .collect(),
            replication: ReplicationJson {
                replicas: status.replicas,
                segments,
                under_replicated,
            },
        }
    }
}

fn tables(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let mut members = table(&[
        "member", "role", "pid", "address", "sessions", "memory", "disk", "scrub",
    ]);
    for member in &status.view.members {
        let figures = figures_of(status, member.id);
        let share = |used: u64, limit: u64| match limit {
            0 => String::new(),
            _ => format!("{} of {}", rounded(used), rounded(limit)),
        };
        let sessions = match member.role {
            Role::Shard => figures.sessions.to_string(),
            _ => String::new(),
        };
        members.add_row([
            member.name.clone(),
            match status.view.slow.contains(&member.id) {
                true => format!("{}, slow", role_name(member.role)),
                false => role_name(member.role).to_string(),
            },
            member.pid.to_string(),
            if member.address.is_empty() {
                "-".to_string()
            } else {
                member.address.clone()
            },
            sessions,
            share(figures.bytes_used, figures.bytes_limit),
            share(figures.disk_used, figures.disk_limit),
            scrub_of(member.role, &figures),
        ]);
    }
    let _ = writeln!(text, "{members}\n");

    let mut tablets = table(&["slots", "owner", "epoch", "state"]);
    for tablet in &status.view.tablets {
        tablets.add_row([
            format!("{}-{}", tablet.range.first.0, tablet.range.last.0),
            name_of(status, tablet.owner.shard()),
            tablet.epoch.0.to_string(),
            if tablet.available {
                "served"
            } else {
                "being recovered"
            }
            .to_string(),
        ]);
    }
    let _ = writeln!(text, "{tablets}\n");

    if !status.recoveries.is_empty() {
        let mut recoveries = table(&["recovery of", "attempt", "entries", "bytes", "for", "state"]);
        for recovery in &status.recoveries {
            recoveries.add_row([
                recovery.log.to_string(),
                recovery.attempt.to_string(),
                recovery.entries.to_string(),
                rounded(recovery.bytes),
                format!("{} ms", recovery.running_ms),
                recovery.state.clone(),
            ]);
        }
        let _ = writeln!(text, "{recoveries}\n");
    }
    let (segments, under_replicated) = replication(status);
    let acknowledge = match status.ack_quorum == status.replicas {
        true => String::new(),
        false => format!(", {} of which acknowledge", status.ack_quorum),
    };
    let _ = writeln!(
        text,
        "replication: {} replicas{acknowledge} of {segments} segments, {under_replicated} incomplete",
        status.replicas
    );
    match status.not_ready_because.as_slice() {
        [] => text.push_str("ready: everything is recovered and fully replicated\n"),
        reasons => {
            for reason in reasons {
                let _ = writeln!(text, "not ready: {reason}");
            }
        }
    }
    text
}

/// `pass 3 at 42 %, 1 bad`, of a backup.
fn scrub_of(role: Role, figures: &Figures) -> String {
    if role != Role::Backup {
        return String::new();
    }
    let bad = match figures.scrub_bad {
        0 => String::new(),
        bad => format!(", {bad} bad"),
    };
    let (pass, percent) = (figures.scrub_passes + 1, figures.scrub_permille / 10);
    format!("pass {pass} at {percent} %{bad}")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column
            .set_padding((0, 2))
            .set_cell_alignment(CellAlignment::Left);
    }
    table
}

fn figures_of(status: &ClusterStatus, id: ServerId) -> Figures {
    status
        .figures
        .iter()
        .find(|(of, _)| *of == id)
        .map_or_else(Figures::default, |(_, f)| *f)
}

fn name_of(status: &ClusterStatus, id: ServerId) -> String {
    match status.view.members.iter().find(|member| member.id == id) {
        Some(member) => member.name.clone(),
        None => format!("{id} (gone)"),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Coordinator => "coordinator",
        Role::Shard => "master",
        Role::Backup => "backup",
        Role::Gateway => "gateway",
    }
}

fn replication(status: &ClusterStatus) -> (u64, u64) {
    let shards = status
        .view
        .members
        .iter()
        .filter(|member| member.role == Role::Shard);
    shards
        .map(|member| figures_of(status, member.id))
        .fold((0, 0), |(all, lacking), figures| {
            (all + figures.segments, lacking + figures.under_replicated)
        })
}

/// `1.4 GiB`: three digits are enough for people.
fn rounded(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let value = bytes as f64 / (1u64 << shift) as f64;
            return match value {
                value if value < 10.0 => format!("{value:.1} {unit}"),
                value => format!("{value:.0} {unit}"),
            };
        }
    }
    format!("{} B", ByteSize(bytes).0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_format::{Epoch, LogId, SlotRange};
    use holdfast_wire::{Member, Tablet, View};

    pub fn sample() -> ClusterStatus {
        let member = Member {
            id: ServerId(0xab),
            role: Role::Shard,
            address: "127.0.0.1:4000".to_string(),
            machine: String::new(),
            pid: 77,
            resp_cluster: "127.0.0.1:6381".to_string(),
            name: "master-1.0".to_string(),
            store: 0,
        };
        let figures = Figures {
            sessions: 12,
            bytes_used: 3 << 20,
            bytes_limit: 512 << 20,
            segments: 4,
            under_replicated: 1,
            ..Figures::default()
        };
        let tablet = |owner| Tablet {
            range: SlotRange::ALL,
            owner: LogId(owner),
            epoch: Epoch(3),
            available: owner == 0xab,
        };
        ClusterStatus {
            cluster: 5,
            replicas: 3,
            ack_quorum: 3,
            view: View {
                version: 9,
                members: vec![member],
                tablets: vec![tablet(0xab), tablet(0xcd)],
                recovering: vec![],
                namespaces: vec![],
                slow: vec![],
            },
            namespaces: vec![],
            figures: vec![(ServerId(0xab), figures)],
            recoveries: vec![],
            not_ready_because: vec!["one segment lacks a replica".to_string()],
        }
    }

    #[test]
    fn people_see_members_tablets_and_what_is_missing() {
        let text = tables(&sample());
        for part in [
            "master-1.0",
            "77",
            "3.0 MiB of 512 MiB",
            "0-16383",
            "scd (gone)",
            "being recovered",
            "3 replicas of 4 segments, 1 incomplete",
            "not ready: one segment lacks a replica",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn scripts_see_the_same() {
        let json = serde_json::to_value(StatusJson::of(&sample())).unwrap();
        assert_eq!(json["ready"], false);
        assert_eq!(json["members"][0]["name"], "master-1.0");
        assert_eq!(json["members"][0]["pid"], 77);
        assert_eq!(json["tablets"][1]["available"], false);
        assert_eq!(json["replication"]["under_replicated"], 1);
    }
}
