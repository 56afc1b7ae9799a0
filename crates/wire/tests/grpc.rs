//! The gRPC face over a real connection: what a handler hears, and what a caller is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use holdfast_format::*;
use holdfast_wire::grpc::*;
use holdfast_wire::*;
use tokio_stream::wrappers::TcpListenerStream;

/// Answers from a script and remembers what it was asked.
#[derive(Clone, Default)]
struct Scripted {
    outcomes: Arc<Mutex<VecDeque<Outcome>>>,
    heard: Arc<Mutex<Vec<SessionCall>>>,
}

impl Scripted {
    fn answer(&self, call: SessionCall) -> Outcome {
        self.heard.lock().expect("no panics").push(call);
        let next = self.outcomes.lock().expect("no panics").pop_front();
        next.unwrap_or(Outcome::Failed(Failure::Busy))
    }
}

/// Answers what was begun, one at a time, each only when it is asked again.
struct ScriptedLane {
    script: Scripted,
    pushed: Vec<SessionCall>,
    begun: VecDeque<SessionCall>,
    hesitates: bool,
}

impl SessionLane for ScriptedLane {
    fn push(&mut self, call: SessionCall) {
        self.pushed.push(call);
    }

    fn begin(&mut self) {
        self.begun.extend(self.pushed.drain(..));
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.hesitates = !self.hesitates;
        if self.hesitates {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.begun.pop_front() {
            Some(call) => Poll::Ready(self.script.answer(call)),
            None => Poll::Pending,
        }
    }
}

impl SessionsHandler for Scripted {
    type Lane = ScriptedLane;

    async fn call(&self, call: SessionCall) -> Outcome {
        self.answer(call)
    }

    fn open_lane(&self) -> ScriptedLane {
        ScriptedLane {
            script: self.clone(),
            pushed: Vec::new(),
            begun: VecDeque::new(),
            hesitates: false,
        }
    }

    async fn open_client(&self) -> Result<ClientGrant, Failure> {
        Ok(ClientGrant {
            client: ClientId(77),
            lease_until: ClusterMs(1_000),
        })
    }
}

impl AdminHandler for Scripted {
    async fn status(&self) -> Result<ClusterStatus, Failure> {
        Ok(status())
    }

    async fn set_namespace(&self, policy: NamespacePolicy) -> Result<(), Failure> {
        match policy.limits.evict {
            Eviction::OldestIdle => Ok(()),
            Eviction::Never => Err(Failure::Invalid(format!("{policy:?}"))),
        }
    }

    async fn unset_namespace(&self, namespace: Namespace) -> Result<(), Failure> {
        match namespace {
            Namespace(3) => Ok(()),
            _ => Err(Failure::Unreachable),
        }
    }

    async fn abandon_recovery(&self, log: LogId, shard: String) -> Result<(), OrderError> {
        match (log, shard.as_str()) {
            (LogId(4), "master-4.0") => Ok(()),
            (LogId(5), _) => Err(OrderError::Failed(Failure::OutcomeUnknown)),
            _ => Err(OrderError::Refused(format!("{log} is not held"))),
        }
    }
}

fn status() -> ClusterStatus {
    let member = |id: u64, role: Role| Member {
        id: ServerId(id),
        role,
        address: "127.0.0.1:7000".to_owned(),
        machine: String::new(),
        pid: 42,
        resp_cluster: String::new(),
        name: format!("member-{id}"),
        store: 0,
    };
    ClusterStatus {
        cluster: 9,
        replicas: 3,
        ack_quorum: 2,
        view: View {
            version: 12,
            members: vec![member(0, Role::Coordinator), member(5, Role::Shard)],
            tablets: vec![Tablet {
                range: SlotRange::ALL,
                owner: LogId(5),
                epoch: Epoch(2),
                available: true,
            }],
            recovering: vec![LogId(4)],
            namespaces: vec![NamespacePolicy {
                namespace: Namespace(3),
                limits: NamespaceLimits {
                    sessions: Some(1_000),
                    bytes: None,
                    value_bytes: Some(0),
                    evict: Eviction::OldestIdle,
                },
            }],
            slow: vec![ServerId(5)],
        },
        namespaces: vec![NamespaceUse {
            namespace: Namespace(3),
            sessions: 7,
            with_deadline: 6,
            bytes: 700,
            evicted: 2,
        }],
        figures: vec![(
            ServerId(5),
            Figures {
                sessions: 10,
                ..Figures::default()
            },
        )],
        recoveries: vec![RecoveryStatus {
            log: LogId(4),
            name: "master-4.0".to_owned(),
            stage: RecoveryStage::Held,
            hold: Some(RecoveryHold {
                why: "a segment is missing".to_owned(),
                of_log: Some(LogId(6)),
                segments: vec![SegmentId(3), SegmentId(9)],
                segments_missing: 2,
                stores_away: vec![StoreAway {
                    store: 77,
                    name: "backup-1".to_owned(),
                }],
            }),
            abandoned: true,
            slots_left: 17,
            parts: vec![RecoveryPart {
                attempt: 3,
                master: ServerId(5),
                slots: 9,
                entries: 1,
                bytes: 2,
                done_bytes: 3,
                total_bytes: 4,
                began_ms: 5,
                running_ms: 6,
                taken_over_ms: Some(7),
                bytes_left: 8,
                failure: "out of memory".to_owned(),
            }],
            attempt: 1,
            state: "replaying".to_owned(),
            entries: 100,
            bytes: 1000,
            running_ms: 30,
            detected: ClusterMs(1_700_000_000_123),
            finished: true,
            phases: vec![RecoveryPhase {
                name: "log fenced".to_owned(),
                at_ms: 12,
            }],
        }],
        not_ready_because: vec!["a log is being recovered".to_owned()],
    }
}

/// Serves `handler` on a free port; its address.
async fn serve(handler: Arc<Scripted>, password: Option<&str>) -> String {
    let config = GrpcConfig {
        password: password.map(str::to_owned),
        batch_items_max: 4,
        stream_requests_max: 2,
        ..GrpcConfig::for_values(1 << 20)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let server = tonic::transport::Server::builder()
        .add_service(sessions_server(handler.clone(), config.clone()))
        .add_service(admin_server(handler, config))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

fn command(op: Op) -> Command {
    Command {
        namespace: Namespace(2),
        key: Bytes::from_static(b"sess:1"),
        op,
    }
}

fn call(op: Op) -> SessionCall {
    SessionCall {
        command: command(op),
        once: None,
        within_ms: None,
    }
}

fn put(condition: Condition, expiry: ExpiryChange) -> Op {
    Op::Put {
        value: Bytes::from_static(b"hello"),
        condition,
        expiry,
        return_old: false,
    }
}

fn meta() -> Meta {
    Meta {
        version: Version(8),
        deadline: Some(ClusterMs(2_000)),
        idle_ms: Some(500),
        absolute: Some(ClusterMs(9_000)),
        remaining_ms: Some(400),
    }
}

fn done() -> Outcome {
    Outcome::Done {
        meta: meta(),
        old: None,
    }
}

/// Sends the call; the handler must hear it unchanged. What the caller is told.
async fn pass(sent: SessionCall, outcome: Outcome) -> Result<Outcome, ClientError> {
    let handler = Arc::new(Scripted::default());
    handler
        .outcomes
        .lock()
        .expect("no panics")
        .push_back(outcome);
    let address = serve(handler.clone(), None).await;
    let mut client = SessionsClient::connect(&address, None, None)
        .await
        .expect("it listens");
    let told = client.call(sent.clone()).await;
    let heard = handler.heard.lock().expect("no panics").pop();
    assert_eq!(heard, Some(sent));
    told
}

#[tokio::test]
async fn commands_reach_the_handler_as_they_were_meant() {
    let session = ExpiryChange::Session {
        idle_ms: Some(500),
        absolute: Some(AbsoluteDeadline::InMs(9_000)),
    };
    let until = ExpiryChange::Session {
        idle_ms: None,
        absolute: Some(AbsoluteDeadline::At(ClusterMs(9_000))),
    };
    let writes = [
        put(Condition::Absent, ExpiryChange::Clear),
        put(Condition::Absent, session),
        put(Condition::Absent, ExpiryChange::Keep),
        put(Condition::Always, ExpiryChange::Keep),
        put(Condition::Present, until),
        put(Condition::Version(Version(7)), ExpiryChange::Clear),
        Op::Touch {
            condition: TouchCondition::Always,
            expiry: ExpiryChange::Slide,
            return_value: false,
        },
        Op::Touch {
            condition: TouchCondition::Version(Version(7)),
            expiry: session,
            return_value: false,
        },
    ];
    for op in writes {
        assert_eq!(pass(call(op), done()).await, Ok(done()));
    }
    let value = Outcome::Value {
        value: Bytes::from_static(b"hello"),
        meta: meta(),
    };
    let slide = Op::Touch {
        condition: TouchCondition::Always,
        expiry: ExpiryChange::Slide,
        return_value: true,
    };
    for op in [Op::Get, Op::Stat, slide] {
        assert_eq!(pass(call(op), value.clone()).await, Ok(value.clone()));
    }
    let deleted = Outcome::Done {
        meta: Meta {
            version: Version(8),
            ..Meta::default()
        },
        old: None,
    };
    for condition in [
        Condition::Always,
        Condition::Present,
        Condition::Version(Version(3)),
    ] {
        let op = Op::Delete {
            condition,
            return_old: false,
        };
        assert_eq!(pass(call(op), deleted.clone()).await, Ok(deleted.clone()));
    }
    let once = Once {
        client: ClientId(77),
        sequence: 5,
        acknowledged: 4,
        lease_until: ClusterMs(1_000),
    };
    let sent = SessionCall {
        once: Some(once),
        ..call(put(Condition::Always, ExpiryChange::Keep))
    };
    assert_eq!(pass(sent, done()).await, Ok(done()));
    let page = Outcome::Scanned {
        keys: vec![(KeyHash::of(Namespace(2), b"a"), Bytes::from_static(b"a"))],
        next: Some(KeyHash(900)),
    };
    let scan = Op::Scan {
        from: KeyHash(7),
        limit: 10,
    };
    let sent = SessionCall {
        command: Command {
            key: Bytes::new(),
            ..command(scan)
        },
        once: None,
        within_ms: None,
    };
    assert_eq!(pass(sent, page.clone()).await, Ok(page));
}

#[tokio::test]
async fn outcomes_and_failures_have_the_status_the_field_expects() {
    let absent = Outcome::Absent {
        version: Version(8),
    };
    let refused = Outcome::Refused {
        version: Version(8),
        current: Some(meta()),
        old: None,
    };
    let told_refused = Outcome::Refused {
        version: Version(8),
        current: Some(Meta {
            version: Version(8),
            ..Meta::default()
        }),
        old: None,
    };
    let gone = Outcome::Refused {
        version: Version(8),
        current: None,
        old: None,
    };
    let write = |condition| call(put(condition, ExpiryChange::Keep));
    // NOT_FOUND, ALREADY_EXISTS and ABORTED carry the version, so they come back as outcomes.
    assert_eq!(
        pass(call(Op::Get), absent.clone()).await,
        Ok(absent.clone())
    );
    assert_eq!(
        pass(write(Condition::Absent), refused.clone()).await,
        Ok(told_refused.clone())
    );
    let version = Condition::Version(Version(7));
    assert_eq!(
        pass(write(version.clone()), refused).await,
        Ok(told_refused)
    );
    assert_eq!(pass(write(version), gone).await, Ok(absent.clone()));
    let delete = Op::Delete {
        condition: Condition::Always,
        return_old: false,
    };
    assert_eq!(pass(call(delete), absent.clone()).await, Ok(absent));

    for (failure, expected, retry) in [
        (Failure::NotReady, "Unavailable", true),
        (Failure::NotOwner, "Unavailable", true),
        (Failure::Unreachable, "Unavailable", true),
        (Failure::Busy, "ResourceExhausted", true),
        (Failure::OutOfMemory, "ResourceExhausted", false),
        (
            Failure::NamespaceFull {
                namespace: Namespace(3),
                quota: holdfast_wire::Quota::Bytes,
                limit: 1 << 20,
            },
            "ResourceExhausted",
            false,
        ),
        (
            Failure::NamespaceValueTooLarge {
                namespace: Namespace(3),
                bytes: 2,
                limit: 1,
            },
            "InvalidArgument",
            false,
        ),
        (Failure::StaleClient, "FailedPrecondition", false),
        (Failure::OutcomeUnknown, "DeadlineExceeded", false),
        (Failure::TooLate, "DeadlineExceeded", false),
        (
            Failure::ValueTooLarge { bytes: 2, limit: 1 },
            "InvalidArgument",
            false,
        ),
        (
            Failure::KeyTooLarge { bytes: 2, limit: 1 },
            "InvalidArgument",
            false,
        ),
        (Failure::Invalid("no".to_owned()), "InvalidArgument", false),
    ] {
        match pass(call(Op::Get), Outcome::Failed(failure.clone())).await {
            Err(ClientError::Refused {
                code,
                message,
                retry_after_ms,
            }) => {
                assert_eq!((code.as_str(), retry_after_ms.is_some()), (expected, retry));
                assert!(message.contains(&failure.to_string()), "{message}");
            }
            other => panic!("{failure:?} became {other:?}"),
        }
    }
    // A handler's answer that cannot be is its fault, not the caller's.
    assert!(matches!(
        pass(call(Op::Get), Outcome::Flushed).await,
        Err(ClientError::Refused { code, .. }) if code == "Internal"
    ));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_without_asking_the_handler() {
    let handler = Arc::new(Scripted::default());
    let address = serve(handler.clone(), None).await;
    let mut client = SessionsClient::connect(&address, None, None)
        .await
        .expect("it listens");
    let nothing = Once {
        client: ClientId(0),
        sequence: 0,
        acknowledged: 9,
        lease_until: ClusterMs(0),
    };
    let idle_0 = ExpiryChange::Session {
        idle_ms: Some(0),
        absolute: None,
    };
    let senseless = SessionCall {
        command: Command {
            key: Bytes::new(),
            ..command(put(Condition::Always, idle_0))
        },
        once: Some(nothing),
        within_ms: None,
    };
    match client.call(senseless).await {
        Err(ClientError::Refused { code, message, .. }) => {
            assert_eq!(code, "InvalidArgument");
            for field in [
                "key",
                "idle_ms",
                "client_id",
                "sequence",
                "acknowledged",
                "lease",
            ] {
                assert!(message.contains(field), "{message}");
            }
        }
        other => panic!("{other:?}"),
    }
    let read_once = SessionCall {
        once: Some(Once {
            client: ClientId(1),
            sequence: 1,
            acknowledged: 0,
            lease_until: ClusterMs(1),
        }),
        ..call(Op::Get)
    };
    assert!(client.call(read_once).await.is_err());
    let too_many = vec![call(Op::Get); 5];
    assert!(matches!(
        client.batch(too_many).await,
        Err(ClientError::Refused { code, .. }) if code == "InvalidArgument"
    ));
    let long = put(Condition::Always, ExpiryChange::Keep);
    let Op::Put {
        condition,
        expiry,
        return_old,
        ..
    } = long
    else {
        unreachable!()
    };
    let value = Bytes::from(vec![0; 5 << 20]);
    let long = call(Op::Put {
        value,
        condition,
        expiry,
        return_old,
    });
    assert!(matches!(
        client.call(long).await,
        Err(ClientError::Refused { code, .. }) if code == "OutOfRange"
    ));
    assert_eq!(
        client.call(call(Op::Flush)).await,
        Err(ClientError::Unsupported)
    );
    assert!(handler.heard.lock().expect("no panics").is_empty());
}

#[tokio::test]
async fn a_password_is_asked_of_every_call() {
    let handler = Arc::new(Scripted::default());
    let address = serve(handler.clone(), Some("secret")).await;
    for wrong in [None, Some("Secret"), Some("secret2"), Some("")] {
        let mut client = SessionsClient::connect(&address, wrong, None)
            .await
            .expect("it listens");
        let refused = |error: ClientError| match error {
            ClientError::Refused { code, .. } => assert_eq!(code, "Unauthenticated"),
            other => panic!("{other:?}"),
        };
        refused(client.call(call(Op::Get)).await.expect_err("no password"));
        refused(client.open_client().await.expect_err("no password"));
        refused(
            client
                .batch(vec![call(Op::Get)])
                .await
                .expect_err("no password"),
        );
        let calls = futures_util::stream::iter([call(Op::Get)]);
        refused(
            client
                .stream(calls)
                .await
                .map(|_| ())
                .expect_err("no password"),
        );
        let mut admin = AdminClient::connect(&address, wrong, None)
            .await
            .expect("it listens");
        refused(admin.status().await.expect_err("no password"));
        let given_up = admin.abandon_recovery(LogId(4), "master-4.0").await;
        refused(given_up.expect_err("no password"));
    }
    assert!(handler.heard.lock().expect("no panics").is_empty());
    let mut client = SessionsClient::connect(&address, Some("secret"), None)
        .await
        .expect("it listens");
    let grant = ClientGrant {
        client: ClientId(77),
        lease_until: ClusterMs(1_000),
    };
    assert_eq!(client.open_client().await, Ok(grant));
}

#[tokio::test]
async fn batches_and_streams_answer_every_item_in_order() {
    let handler = Arc::new(Scripted::default());
    let address = serve(handler.clone(), None).await;
    let mut client = SessionsClient::connect(&address, None, None)
        .await
        .expect("it listens");
    let absent = Outcome::Absent {
        version: Version(8),
    };
    let value = Outcome::Value {
        value: Bytes::from_static(b"hello"),
        meta: meta(),
    };
    let script = |outcomes: &[Outcome]| {
        handler
            .outcomes
            .lock()
            .expect("no panics")
            .extend(outcomes.iter().cloned());
    };

    script(&[value.clone(), absent.clone()]);
    let told = client
        .batch(vec![call(Op::Get); 3])
        .await
        .expect("the call succeeds");
    assert_eq!(told[..2], [Ok(value.clone()), Ok(absent.clone())]);
    assert!(matches!(
        &told[2],
        Err(ClientError::Refused {
            retry_after_ms: Some(_),
            ..
        })
    ));

    for op in [
        put(Condition::Absent, ExpiryChange::Clear),
        put(Condition::Always, ExpiryChange::Keep),
        Op::Touch {
            condition: TouchCondition::Always,
            expiry: ExpiryChange::Slide,
            return_value: false,
        },
    ] {
        script(&[done(), done()]);
        let told = client.batch(vec![call(op); 2]).await;
        assert_eq!(told, Ok(vec![Ok(done()), Ok(done())]));
    }
    script(std::slice::from_ref(&absent));
    let delete = Op::Delete {
        condition: Condition::Always,
        return_old: false,
    };
    assert_eq!(
        client.batch(vec![call(delete.clone())]).await,
        Ok(vec![Ok(absent.clone())])
    );
    assert_eq!(client.batch(Vec::new()).await, Ok(Vec::new()));

    // What does not fit into one reply is told so, and the rest arrives.
    let long = Outcome::Value {
        value: Bytes::from(vec![7; 3 << 20]),
        meta: meta(),
    };
    script(&[long.clone(), long.clone(), absent.clone()]);
    let told = client
        .batch(vec![call(Op::Get); 3])
        .await
        .expect("the call succeeds");
    assert_eq!((&told[0], &told[2]), (&Ok(long), &Ok(absent.clone())));
    assert!(
        matches!(&told[1], Err(ClientError::Refused { code, message, .. })
            if code == "ResourceExhausted" && message.contains("fewer sessions at a time")),
        "{told:?}"
    );
    let mixed = vec![call(Op::Get), call(delete.clone())];
    assert_eq!(client.batch(mixed).await, Err(ClientError::Unsupported));

    let calls: Vec<SessionCall> = (0..100)
        .map(|turn| match turn % 2 {
            0 => call(Op::Get),
            _ => call(delete.clone()),
        })
        .collect();
    let outcomes: Vec<Outcome> = (0..100)
        .map(|turn| {
            if turn % 2 == 0 {
                value.clone()
            } else {
                absent.clone()
            }
        })
        .collect();
    script(&outcomes);
    let told = client
        .stream(futures_util::stream::iter(calls))
        .await
        .expect("it opens");
    let told: Vec<Result<Outcome, ClientError>> = told.collect().await;
    assert_eq!(told, outcomes.into_iter().map(Ok).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_callers_deadline_reaches_the_handler() {
    let handler = Arc::new(Scripted::default());
    let address = serve(handler.clone(), None).await;
    let mut client = SessionsClient::connect(&address, None, None)
        .await
        .expect("it listens");
    let hurried = SessionCall {
        within_ms: Some(5_000),
        ..call(Op::Get)
    };
    assert!(client.call(hurried).await.is_err(), "the script is empty");
    let heard = handler
        .heard
        .lock()
        .expect("no panics")
        .pop()
        .expect("it was asked");
    // A little earlier, so that the answer arrives in time.
    assert!(
        heard
            .within_ms
            .is_some_and(|ms| (4_900..5_000).contains(&ms)),
        "{heard:?}"
    );
}

#[tokio::test]
async fn operators_see_the_cluster_as_it_is() {
    let address = serve(Arc::new(Scripted::default()), None).await;
    let mut admin = AdminClient::connect(&address, None, None)
        .await
        .expect("it listens");
    assert_eq!(admin.status().await, Ok(status()));
    assert_eq!(admin.abandon_recovery(LogId(4), "master-4.0").await, Ok(()));
    for (log, code, text) in [
        (4, "FailedPrecondition", "l4 is not held"),
        (5, "DeadlineExceeded", ""),
    ] {
        let refused = admin.abandon_recovery(LogId(log), "master-5.0").await;
        let Err(ClientError::Refused {
            code: got, message, ..
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(got, code);
        assert!(message.contains(text), "{message}");
    }
    let nobody = AdminClient::connect("127.0.0.1:1", None, None)
        .await
        .expect_err("nobody listens");
    assert!(matches!(nobody, ClientError::Connect { .. }));
}
