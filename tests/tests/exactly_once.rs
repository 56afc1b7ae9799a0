//! Chains of conditional writes over gRPC, every write sent again and again under its own sequence
//! number while masters die: each happens once, so no link of a chain is ever refused.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // threads, clocks: real processes, and a test

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_format::{Namespace, Version};
use holdfast_tests::cluster::{Cluster, PATIENCE, kill_9};
use holdfast_wire::grpc::{ClientGrant, SessionCall, SessionsClient};
use holdfast_wire::{Command, Condition, ExpiryChange, Meta, Once, Op, Outcome};

const KEYS: u64 = 20;
const CHAINS: u64 = 3;

struct Chain {
    client: SessionsClient,
    grant: ClientGrant,
    address: String,
    number: u64,
    sequence: u64,
    /// Version and value of the last link of each key.
    last: Vec<Option<(Version, String)>>,
}

impl Chain {
    async fn open(address: String, number: u64) -> Chain {
        let mut client = SessionsClient::connect(&address, None, None)
            .await
            .expect("the gateway answers");
        let grant = client.open_client().await.expect("a client id");
        let last = vec![None; KEYS as usize];
        Chain {
            client,
            grant,
            address,
            number,
            sequence: 0,
            last,
        }
    }

    fn key(&self, index: u64) -> String {
        format!("chain{}:{index}", self.number)
    }

    /// Appends one link: a write that demands the version of the last one.
    async fn link(&mut self) {
        self.sequence += 1;
        let index = self.sequence % KEYS;
        let value = format!("link {}", self.sequence);
        let condition = match &self.last[index as usize] {
            None => Condition::Absent,
            Some((version, _)) => Condition::Version(*version),
        };
        let call = SessionCall {
            command: Command {
                namespace: Namespace(0),
                key: self.key(index).into(),
                op: Op::Put {
                    value: value.clone().into(),
                    condition,
                    expiry: ExpiryChange::Session {
                        idle_ms: Some(3_600_000),
                        absolute: None,
                    },
                    return_old: false,
                },
            },
            once: Some(Once {
                client: self.grant.client,
                sequence: self.sequence,
                acknowledged: self.sequence,
                lease_until: self.grant.lease_until,
            }),
            within_ms: Some(10_000),
        };
        let first = self.until_answered(&call).await;
        // The answer may have been lost on its way: ask again, as a careful client would.
        for _ in 0..self.sequence % 3 {
            assert_eq!(
                self.until_answered(&call).await,
                first,
                "the second answer is another"
            );
        }
        let Outcome::Done {
            meta: Meta { version, .. },
            ..
        } = first
        else {
            panic!("{call:?} was answered with {first:?}");
        };
        if let Some((before, _)) = &self.last[index as usize] {
            assert!(
                version > *before,
                "versions went back from {before} to {version}"
            );
        }
        self.last[index as usize] = Some((version, value));
    }

    async fn until_answered(&mut self, call: &SessionCall) -> Outcome {
        let began = Instant::now();
        loop {
            match self.client.call(call.clone()).await {
                Ok(outcome) => return told_alike(outcome),
                Err(error) if began.elapsed() > PATIENCE => panic!("{call:?}: {error}"),
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if let Ok(client) = SessionsClient::connect(&self.address, None, None).await {
                        self.client = client;
                    }
                }
            }
        }
    }

    /// Every key holds the last link, under the version that was answered.
    async fn check(&mut self, after: &str) {
        for index in 0..KEYS {
            let Some((version, value)) = self.last[index as usize].clone() else {
                continue;
            };
            let key = self.key(index);
            let command = Command {
                namespace: Namespace(0),
                key: key.clone().into(),
                op: Op::Get,
            };
            let call = SessionCall {
                command,
                once: None,
                within_ms: Some(10_000),
            };
            match self.until_answered(&call).await {
                Outcome::Value { value: read, meta } => {
                    assert_eq!(
                        (meta.version, &read[..]),
                        (version, value.as_bytes()),
                        "{key} after {after}"
                    );
                }
                other => panic!("{key} after {after}: {other:?}"),
            }
        }
    }
}

/// Without the time left, which differs between two answers.
fn told_alike(mut outcome: Outcome) -> Outcome {
    if let Outcome::Done { meta, .. } | Outcome::Value { meta, .. } = &mut outcome {
        meta.remaining_ms = None;
    }
    outcome
}

#[test]
fn retried_conditional_writes_happen_once_while_masters_die() {
    let cluster = Cluster::of_processes(3, 4, 3, "128MiB", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let links = Arc::new(AtomicU64::new(0));
    let chains: Vec<_> = (0..CHAINS)
        .map(|number| {
            let (stop, links, address) = (stop.clone(), links.clone(), cluster.address("grpc"));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let mut chain = Chain::open(address, number).await;
                    while !stop.load(Ordering::SeqCst) {
                        chain.link().await;
                        links.fetch_add(1, Ordering::SeqCst);
                    }
                    chain.check("every kill").await;
                });
            })
        })
        .collect();
    let progress = |more: u64| {
        let goal = links.load(Ordering::SeqCst) + more;
        cluster.eventually("progress of the chains", || {
            let broken = chains.iter().any(std::thread::JoinHandle::is_finished);
            (broken || links.load(Ordering::SeqCst) >= goal).then_some(())
        });
    };
    progress(300);
    for round in 0..2 {
        let victim = cluster.processes("master")[round].clone();
        kill_9(victim.pid);
        progress(300);
        cluster.wait_until_ready();
    }
    stop.store(true, Ordering::SeqCst);
    for chain in chains {
        chain.join().expect("a chain broke");
    }
}
