//! What a process (or a `dev` of several) tells about itself: on `/readyz`, and in the ready file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Outcome};
use crate::inbox::NodeReport;

/// The answer of `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    /// What is missing, one sentence each.
    pub reasons: Vec<String>,
    pub members: Vec<ProcessEntry>,
}

/// One member and the process that plays it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    pub role: String,
    pub id: String,
    pub pid: u32,
    pub name: String,
}

/// The ready file: everything a script needs to know, as one JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyFile {
    pub resp: Option<String>,
    pub resp_cluster: Vec<String>,
    pub grpc: Option<String>,
    pub http: Option<String>,
    pub processes: Vec<ProcessEntry>,
}

impl Readiness {
    /// Of the nodes of this process.
    pub fn of(reports: &[NodeReport]) -> Readiness {
        let mut readiness = Readiness {
            ready: true,
            ..Readiness::default()
        };
        for report in reports {
            if !report.ready {
                readiness.ready = false;
                let lacking = report.figures.under_replicated;
                let reasons = match report.reasons.is_empty() {
                    false => report.reasons.clone(),
                    true if lacking > 0 => {
                        vec![format!("{}: {lacking} segments lack replicas", report.name)]
                    }
                    true => vec![format!(
                        "{} has not joined or not recovered yet",
                        report.name
                    )],
                };
                for reason in reasons {
                    readiness.add_reason(reason);
                }
            }
            // A port of its own, but no member that one would look for.
            if report.role != "cluster-port" {
                readiness.members.push(ProcessEntry {
                    role: report.role.to_string(),
                    id: report.id.to_string(),
                    pid: std::process::id(),
                    name: report.name.clone(),
                });
            }
        }
        readiness
    }

    /// What a master says of itself the coordinator says of it, too.
    fn add_reason(&mut self, reason: String) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// Takes in that of another process.
    pub fn absorb(&mut self, other: Readiness) {
        self.ready &= other.ready;
        for reason in other.reasons {
            self.add_reason(reason);
        }
        self.members.extend(other.members);
    }
}

impl ReadyFile {
    /// Writes the file so that a reader sees all of it or none.
    pub fn write(&self, path: &Path) -> Outcome<()> {
        let what = || format!("cannot write the ready file {}", path.display());
        let mut text = serde_json::to_string(self).context(what)?;
        text.push('\n');
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        std::fs::write(&beside, text).context(what)?;
        std::fs::rename(&beside, path).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::ServerId;
    use holdfast_wire::Figures;

    #[test]
    fn one_node_that_is_not_ready_says_why() {
        let report = |name: &str, ready, under_replicated| NodeReport {
            role: "master",
            id: ServerId(0xab),
            name: name.to_string(),
            metrics: vec![],
            figures: Figures {
                under_replicated,
                ..Figures::default()
            },
            namespaces: Vec::new(),
            ready,
            reasons: Vec::new(),
        };
        let lacking = || report("master-2", false, 3);
        let readiness = Readiness::of(&[report("master-1", true, 0), lacking()]);
        assert!(!readiness.ready);
        assert_eq!(readiness.reasons, ["master-2: 3 segments lack replicas"]);
        assert_eq!(readiness.members.len(), 2);
        let mut coordinator = report("coordinator", false, 0);
        let held = "the recovery of log l3 (master-3) is held".to_string();
        coordinator.reasons = vec![readiness.reasons[0].clone(), held.clone()];
        let readiness = Readiness::of(&[lacking(), coordinator]);
        assert_eq!(
            readiness.reasons,
            ["master-2: 3 segments lack replicas", &held],
            "each once"
        );
        assert!(Readiness::of(&[report("master-1", true, 0)]).ready);
    }
}
