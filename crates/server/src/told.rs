//! The coordinator's status as the wire tells it to operators.

use holdfast_coordinator::{Hold, PartitionStatus, Phase, RecoveryStatus as Recovery, Status};
use holdfast_format::{ServerId, SlotRange};
use holdfast_wire::grpc::{
    ClusterStatus, RecoveryHold, RecoveryPart, RecoveryPhase, RecoveryStage, RecoveryStatus,
    StoreAway,
};
use holdfast_wire::{Member, RecoveryFailure, Role, View, add_uses};

/// The coordinator's status as the wire tells it. The coordinator is no member of its own view, but
/// an operator looks for it (and its process id) among the others.
pub fn told(status: Status) -> ClusterStatus {
    let coordinator = Member {
        id: ServerId::COORDINATOR,
        role: Role::Coordinator,
        address: String::new(),
        machine: String::new(),
        pid: std::process::id(),
        resp_cluster: String::new(),
        name: "coordinator".to_string(),
        store: 0,
    };
    ClusterStatus {
        cluster: status.config.cluster,
        replicas: status.config.replicas,
        ack_quorum: status.config.ack_quorum,
        view: View {
            version: status.view_version,
            members: std::iter::once(coordinator)
                .chain(status.members.iter().map(|member| member.member.clone()))
                .collect(),
            tablets: status.tablets.clone(),
            recovering: status
                .recoveries
                .iter()
                .map(|recovery| recovery.log)
                .collect(),
            namespaces: status.namespaces.clone(),
            slow: (status.members.iter())
                .filter(|member| member.slow)
                .map(|member| member.member.id)
                .collect(),
        },
        namespaces: {
            let mut all = Vec::new();
            for member in &status.members {
                add_uses(&mut all, &member.namespaces);
            }
            all
        },
        figures: status
            .members
            .iter()
            .map(|member| (member.member.id, member.figures))
            .collect(),
        recoveries: status
            .recoveries
            .iter()
            .map(|recovery| told_recovery(recovery, &status, false))
            .chain(
                status
                    .finished
                    .iter()
                    .map(|recovery| told_recovery(recovery, &status, true)),
            )
            .collect(),
        not_ready_because: status.not_ready_because,
    }
}

fn told_recovery(recovery: &Recovery, status: &Status, finished: bool) -> RecoveryStatus {
    let since_ms = status.cluster_time.0.saturating_sub(recovery.detected_at.0);
    let parts = &recovery.partitions;
    RecoveryStatus {
        log: recovery.log,
        name: recovery.name.clone(),
        stage: stage_of(recovery),
        hold: recovery.hold.as_ref().map(|hold| told_hold(hold, recovery)),
        abandoned: recovery.abandoned,
        slots_left: recovery.slots_left,
        parts: parts.iter().map(told_part).collect(),
        attempt: parts.iter().map(|part| part.attempt).max().unwrap_or(0),
        state: state_of(recovery),
        entries: parts.iter().map(|part| part.entries).sum(),
        bytes: parts.iter().map(|part| part.bytes).sum(),
        running_ms: recovery.done_ms.unwrap_or(since_ms),
        detected: recovery.detected_at,
        finished,
        phases: phases_of(recovery, status),
    }
}

fn stage_of(recovery: &Recovery) -> RecoveryStage {
    match recovery.phase {
        Phase::Fencing => RecoveryStage::Fencing,
        Phase::Held => RecoveryStage::Held,
        Phase::Planning => RecoveryStage::Planning,
        Phase::Replaying => RecoveryStage::Replaying,
        Phase::Leaning => RecoveryStage::Leaning,
        Phase::Done => RecoveryStage::Done,
    }
}

fn told_hold(hold: &Hold, recovery: &Recovery) -> RecoveryHold {
    let (of_log, segments, count) = hold.missing();
    let away = |away: &holdfast_coordinator::StoreAway| StoreAway {
        store: away.store,
        name: away.name.clone().unwrap_or_default(),
    };
    RecoveryHold {
        why: hold.to_string(),
        of_log,
        segments: segments.to_vec(),
        segments_missing: count as u64,
        stores_away: recovery.stores_away.iter().map(away).collect(),
    }
}

fn told_part(part: &PartitionStatus) -> RecoveryPart {
    let failure = match part.failure {
        None => String::new(),
        Some(RecoveryFailure::OutOfMemory) => "out of memory".to_string(),
        Some(RecoveryFailure::SegmentMissing(segment)) => {
            format!("segment {segment} could not be read")
        }
    };
    RecoveryPart {
        attempt: part.attempt,
        master: part.master,
        slots: part.ranges.iter().map(SlotRange::slots).sum(),
        entries: part.entries,
        bytes: part.bytes,
        done_bytes: part.done_bytes,
        total_bytes: part.total_bytes,
        began_ms: part.began_ms,
        running_ms: part.running_ms,
        taken_over_ms: part.taken_over_ms,
        bytes_left: part.bytes_left,
        failure,
    }
}

/// What the recovery has reached, in order of time. A recovery master's own times count from its order to
/// recover, which goes out when the plan is made.
fn phases_of(recovery: &Recovery, status: &Status) -> Vec<RecoveryPhase> {
    let mut phases: Vec<RecoveryPhase> = [
        ("log fenced", recovery.fenced_ms),
        ("log sealed", recovery.sealed_ms),
        ("partitions planned", recovery.planned_ms),
        ("all taken over", recovery.taken_over_ms),
        ("all replicated", recovery.done_ms),
    ]
    .into_iter()
    .filter_map(|(name, at_ms)| {
        Some(RecoveryPhase {
            name: name.to_string(),
            at_ms: at_ms?,
        })
    })
    .collect();
    for part in &recovery.partitions {
        let name = status
            .members
            .iter()
            .find(|one| one.member.id == part.master)
            .map_or_else(|| part.master.to_string(), |one| one.member.name.clone());
        let planned_ms = recovery.planned_ms.unwrap_or(0);
        if let Some(timings) = part.timings {
            for (what, ms) in [
                ("first bytes", timings.first_byte_ms),
                ("replayed", timings.replayed_ms),
                ("replicated", timings.replicated_ms),
            ] {
                // Not yet, or sooner than can be told.
                if ms == 0 {
                    continue;
                }
                phases.push(RecoveryPhase {
                    name: format!("{name} {what}"),
                    at_ms: planned_ms + u64::from(ms),
                });
            }
        }
        if let Some(at_ms) = part.taken_over_ms {
            phases.push(RecoveryPhase {
                name: format!("{name} took over"),
                at_ms,
            });
        }
    }
    phases.sort_by_key(|phase| phase.at_ms);
    phases
}

fn state_of(recovery: &Recovery) -> String {
    match recovery.phase {
        Phase::Fencing => "waiting for backups to say what they hold".to_string(),
        Phase::Held => match &recovery.hold {
            Some(hold) => format!("on hold: {hold}"),
            None => "on hold".to_string(),
        },
        Phase::Planning => "waiting for masters with room".to_string(),
        Phase::Replaying if recovery.abandoned => "given up: masters begin without it".to_string(),
        Phase::Replaying => {
            let open = recovery
                .partitions
                .iter()
                .filter(|part| part.taken_over_ms.is_none());
            format!("{} masters replay it", open.count())
        }
        Phase::Leaning => {
            let left: u64 = recovery.partitions.iter().map(|part| part.bytes_left).sum();
            format!(
                "leaning: served, {:.1} MB to be replicated (or replayed before)",
                left as f64 / 1e6
            )
        }
        Phase::Done => "done".to_string(),
    }
}
