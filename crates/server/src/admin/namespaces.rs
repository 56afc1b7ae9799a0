//! `holdfast ctl namespace`: limits of namespaces, and what they use.

use clap::{Args, Subcommand};
use comfy_table::CellAlignment;
use holdfast_format::Namespace;
use holdfast_wire::grpc::ClusterStatus;
use holdfast_wire::{Eviction, NamespaceLimits, NamespacePolicy};
use serde::Serialize;

use super::{block_on, connect, rounded, table};
use crate::cli::ClientArgs;
use crate::error::{Context, Fatal, Outcome};
use crate::namespace::{Evict, evict_name};
use crate::options::ByteSize;

#[derive(Subcommand, Debug)]
pub enum NamespaceCommand {
    /// Limits and use of every namespace that has either.
    List {
        /// One JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Change limits; those not named stay as they are.
    Set(SetArgs),
    /// Take all limits from a namespace.
    Unset {
        /// 0 to 255; RESP's SELECT and gRPC's field name the same.
        namespace: u8,
    },
}

/// The limits hold for the whole cluster.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// 0 to 255; RESP's SELECT and gRPC's field name the same.
    namespace: u8,
    /// Most sessions, or `none`.
    #[arg(long, value_name = "N")]
    sessions: Option<Limit<u64>>,
    /// Most bytes of keys, values and headers, or `none`.
    #[arg(long, value_name = "SIZE")]
    bytes: Option<Limit<ByteSize>>,
    /// Largest value, or `none`.
    #[arg(long, value_name = "SIZE")]
    value_bytes: Option<Limit<ByteSize>>,
    /// Who makes room at the limit, and when memory is nearly full.
    #[arg(long, value_enum)]
    evict: Option<Evict>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit<T>(Option<T>);

impl<T: std::str::FromStr<Err: std::fmt::Display>> std::str::FromStr for Limit<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit<T>, String> {
        match text {
            "none" => Ok(Limit(None)),
            text => match text.parse() {
                Ok(limit) => Ok(Limit(Some(limit))),
                Err(error) => Err(format!("{error}; or `none`")),
            },
        }
    }
}

/// Runs `holdfast ctl namespace`.
pub fn run(client: &ClientArgs, command: NamespaceCommand) -> Outcome<()> {
    block_on(async {
        let mut admin = connect(client).await?;
        let refused = || client.grpc.clone();
        match command {
            NamespaceCommand::List { json } => {
                let status = admin.status().await.context(refused)?;
                match json {
                    true => println!("{}", json_of(&status)),
                    false => print!("{}", text_of(&status)),
                }
            }
            NamespaceCommand::Set(args) => {
                let status = admin.status().await.context(refused)?;
                let policy = args.change(&status)?;
                admin.set_namespace(policy).await.context(refused)?;
                println!("{}", told(&policy));
            }
            NamespaceCommand::Unset { namespace } => {
                let namespace = Namespace(namespace);
                admin.unset_namespace(namespace).await.context(refused)?;
                println!("namespace {}: no limits", namespace.0);
            }
        }
        Ok(())
    })
}

impl SetArgs {
    /// The limits there are, with what was asked for.
    fn change(&self, status: &ClusterStatus) -> Outcome<NamespacePolicy> {
        let namespace = Namespace(self.namespace);
        let mut limits = limits_of(status, namespace).unwrap_or_default();
        if let Some(Limit(sessions)) = self.sessions {
            limits.sessions = sessions;
        }
        if let Some(Limit(bytes)) = self.bytes {
            limits.bytes = bytes.map(|size| size.0);
        }
        if let Some(Limit(bytes)) = self.value_bytes {
            let bytes = bytes.map(|size| u32::try_from(size.0)).transpose();
            limits.value_bytes =
                bytes.map_err(|_| Fatal::new("--value-bytes: no value is so large"))?;
        }
        if let Some(evict) = self.evict {
            limits.evict = evict.into();
        }
        Ok(NamespacePolicy { namespace, limits })
    }
}

fn limits_of(status: &ClusterStatus, namespace: Namespace) -> Option<NamespaceLimits> {
    let mut policies = status.view.namespaces.iter();
    let policy = policies.find(|policy| policy.namespace == namespace)?;
    Some(policy.limits)
}

fn told(policy: &NamespacePolicy) -> String {
    let NamespacePolicy { namespace, limits } = policy;
    let number = |limit: Option<u64>| limit.map_or("any number of".to_string(), |n| n.to_string());
    let size = |limit: Option<u64>| limit.map_or("any number of bytes".to_string(), rounded);
    let evict = match limits.evict {
        Eviction::Never => "beyond that writes are refused",
        Eviction::OldestIdle => "beyond that sessions that were idle for longest make room",
    };
    format!(
        "namespace {}: {} sessions, {}, values of {}; {evict}",
        namespace.0,
        number(limits.sessions),
        size(limits.bytes),
        size(limits.value_bytes.map(u64::from)),
    )
}

/// One namespace as scripts read it.
#[derive(Serialize)]
struct Row {
    namespace: u8,
    sessions: u64,
    sessions_limit: Option<u64>,
    with_deadline: u64,
    bytes: u64,
    bytes_limit: Option<u64>,
    value_bytes_limit: Option<u32>,
    evict: &'static str,
    evicted_total: u64,
}

fn rows(status: &ClusterStatus) -> Vec<Row> {
    let used = status.namespaces.iter().map(|used| used.namespace);
    let limited = status.view.namespaces.iter().map(|policy| policy.namespace);
    let mut all: Vec<Namespace> = used.chain(limited).collect();
    all.sort_unstable();
    all.dedup();
    let row = |namespace: Namespace| {
        let limits = limits_of(status, namespace).unwrap_or_default();
        let used = status
            .namespaces
            .iter()
            .find(|it| it.namespace == namespace);
        Row {
            namespace: namespace.0,
            sessions: used.map_or(0, |used| used.sessions),
            sessions_limit: limits.sessions,
            with_deadline: used.map_or(0, |used| used.with_deadline),
            bytes: used.map_or(0, |used| used.bytes),
            bytes_limit: limits.bytes,
            value_bytes_limit: limits.value_bytes,
            evict: evict_name(limits.evict),
            evicted_total: used.map_or(0, |used| used.evicted),
        }
    };
    all.into_iter().map(row).collect()
}

fn text_of(status: &ClusterStatus) -> String {
    let mut list = table(&[
        "namespace",
        "sessions",
        "limit",
        "bytes",
        "limit",
        "largest value",
        "evict",
        "evicted",
    ]);
    for column in list.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let size = |limit: Option<u64>| limit.map_or("-".to_string(), rounded);
    for row in rows(status) {
        let sessions = row
            .sessions_limit
            .map_or("-".to_string(), |n| n.to_string());
        list.add_row([
            row.namespace.to_string(),
            row.sessions.to_string(),
            sessions,
            rounded(row.bytes),
            size(row.bytes_limit),
            size(row.value_bytes_limit.map(u64::from)),
            row.evict.to_string(),
            row.evicted_total.to_string(),
        ]);
    }
    format!("{list}\n")
}

fn json_of(status: &ClusterStatus) -> String {
    serde_json::to_string_pretty(&rows(status)).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::sample;
    use holdfast_wire::NamespaceUse;

    fn status() -> ClusterStatus {
        let mut status = sample();
        status.view.namespaces.push(NamespacePolicy {
            namespace: Namespace(3),
            limits: NamespaceLimits {
                sessions: Some(1_000),
                evict: Eviction::OldestIdle,
                ..NamespaceLimits::default()
            },
        });
        for namespace in [0, 3] {
            status.namespaces.push(NamespaceUse {
                namespace: Namespace(namespace),
                sessions: 12,
                with_deadline: 2,
                bytes: 3 << 10,
                evicted: 5,
            });
        }
        status
    }

    #[test]
    fn limits_and_use_stand_side_by_side() {
        let text = text_of(&status());
        for part in ["1000", "oldest-idle", "3.0 KiB", "never"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&json_of(&status())).unwrap();
        assert_eq!(json[0]["sessions_limit"], serde_json::Value::Null);
        assert_eq!(json[1]["sessions_limit"], 1_000);
        assert_eq!(json[1]["evicted_total"], 5);
    }

    #[test]
    fn what_is_not_named_stays() {
        let args = SetArgs {
            namespace: 3,
            sessions: None,
            bytes: Some("1MiB".parse().unwrap()),
            value_bytes: None,
            evict: None,
        };
        let policy = args.change(&status()).unwrap();
        assert_eq!(policy.limits.sessions, Some(1_000));
        assert_eq!(policy.limits.bytes, Some(1 << 20));
        assert_eq!(policy.limits.evict, Eviction::OldestIdle);
        let args = SetArgs {
            sessions: Some("none".parse().unwrap()),
            ..args
        };
        assert_eq!(args.change(&status()).unwrap().limits.sessions, None);
        assert!("some".parse::<Limit<u64>>().is_err());
    }
}
