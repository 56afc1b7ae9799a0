//! The gRPC face of a real process: calls, batches and streams, deadlines, and what generic tools see.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use bytes::Bytes;
use holdfast_format::{Namespace, Version};
use holdfast_wire::grpc::{ClientError, SessionCall, SessionsClient};
use holdfast_wire::{Command, Condition, ExpiryChange, Op, Outcome};
use support::{Dev, http};
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

async fn ask(address: &str, request: MessageRequest) -> MessageResponse {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    answer.unwrap().message_response.unwrap()
}

#[test]
fn reflection_tells_every_service_and_its_definition() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let grpc = dev.address("grpc");
        let list = ask(grpc, MessageRequest::ListServices(String::new())).await;
        let MessageResponse::ListServicesResponse(list) = list else {
            panic!("{list:?}");
        };
        let names: Vec<&str> = list.service.iter().map(|one| one.name.as_str()).collect();
        for service in [
            "holdfast.v1.Sessions",
            "holdfast.v1.Admin",
            "grpc.health.v1.Health",
        ] {
            assert!(names.contains(&service), "{service} is not in {names:?}");
            let symbol = MessageRequest::FileContainingSymbol(service.to_string());
            let MessageResponse::FileDescriptorResponse(files) = ask(grpc, symbol).await else {
                panic!("no definition of {service}");
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }
    });
}

fn command(key: &str, op: Op) -> SessionCall {
    SessionCall {
        command: Command {
            namespace: Namespace(0),
            key: Bytes::copy_from_slice(key.as_bytes()),
            op,
        },
        once: None,
        within_ms: None,
    }
}

fn put(key: &str, value: &str, condition: Condition) -> SessionCall {
    let op = Op::Put {
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition,
        expiry: ExpiryChange::Session {
            idle_ms: Some(60_000),
            absolute: None,
        },
        return_old: false,
    };
    command(key, op)
}

fn value_of(outcome: &Result<Outcome, ClientError>) -> &[u8] {
    match outcome {
        Ok(Outcome::Value { value, .. }) => value,
        other => panic!("{other:?}"),
    }
}

/// Several shards, so that some keys belong to the gateway's own thread and some do not.
#[test]
fn calls_batches_and_streams_do_the_same_to_the_same_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--masters", "2"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let address = dev.address("grpc");
        let mut client = SessionsClient::connect(address, None, None).await.unwrap();
        let keys: Vec<String> = (0..1_000).map(|n| format!("sess:{n}")).collect();

        // As many as a batch may have: more than are under way at a time.
        let writes = keys.iter().map(|key| put(key, key, Condition::Absent));
        for outcome in client.batch(writes.collect()).await.unwrap() {
            assert!(matches!(outcome, Ok(Outcome::Done { .. })), "{outcome:?}");
        }
        let reads = keys.iter().map(|key| command(key, Op::Get));
        let told = client.batch(reads.collect()).await.unwrap();
        for (key, outcome) in keys.iter().zip(&told) {
            assert_eq!(value_of(outcome), key.as_bytes());
        }

        // On one stream each request sees what those before it did, whatever their kind.
        let mut requests = Vec::new();
        for key in &keys {
            requests.push(put(key, "changed", Condition::Present));
            requests.push(command(key, Op::Get));
            let delete = Op::Delete {
                condition: Condition::Always,
                return_old: false,
            };
            requests.push(command(key, delete));
            requests.push(command(key, Op::Get));
            requests.push(put(key, "", Condition::Version(Version(1))));
        }
        let count = requests.len();
        let results = client.stream(tokio_stream::iter(requests)).await.unwrap();
        let results: Vec<_> = results.collect().await;
        assert_eq!(results.len(), count);
        for five in results.chunks(5) {
            assert!(matches!(five[0], Ok(Outcome::Done { .. })), "{five:?}");
            assert_eq!(value_of(&five[1]), b"changed");
            assert!(matches!(five[2], Ok(Outcome::Done { .. })), "{five:?}");
            assert!(matches!(five[3], Ok(Outcome::Absent { .. })), "{five:?}");
            assert!(matches!(five[4], Ok(Outcome::Absent { .. })), "{five:?}");
        }

        // A request that makes no sense has an error in its place, and the stream goes on.
        let mixed = [
            put("sess:a", "v", Condition::Always),
            command("", Op::Get),
            command("sess:a", Op::Get),
        ];
        let results = client.stream(tokio_stream::iter(mixed)).await.unwrap();
        let results: Vec<_> = results.collect().await;
        assert!(matches!(
            &results[1],
            Err(ClientError::Refused { code, .. }) if code == "InvalidArgument"
        ));
        assert_eq!(value_of(&results[2]), b"v");

        // Many at once over one connection.
        let mut tasks = Vec::new();
        for number in 0..200 {
            let mut client = client.clone();
            tasks.push(tokio::spawn(async move {
                let key = format!("own:{number}");
                client
                    .call(put(&key, &key, Condition::Absent))
                    .await
                    .unwrap();
                let told = client.call(command(&key, Op::Get)).await;
                assert_eq!(value_of(&told), key.as_bytes());
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let metrics = http(dev.address("http"), "/metrics").1;
        let beside = metrics
            .lines()
            .find(|line| line.starts_with("holdfast_gateway_beside_total"))
            .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        let beside = beside.unwrap();
        // Some keys belong to the gateway's thread, others to the other shard.
        assert!(
            0.0 < beside && beside < 7_402.0,
            "{beside} were executed beside"
        );
    });
}

fn all_threads_stand_still(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
        stat.contains(") T ")
    })
}

/// Long before the transport gives up, so that the caller is told why.
#[test]
fn a_deadline_that_cannot_be_met_is_told_and_nothing_is_executed_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--masters", "1"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let address = dev.address("grpc");
        let mut client = SessionsClient::connect(address, None, None).await.unwrap();
        client
            .call(put("k", "old", Condition::Always))
            .await
            .unwrap();
        // The whole process stands still for longer than the caller waits.
        let pid = rustix::process::Pid::from_raw(dev.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // Other threads go on until one of them has had time to take the signal.
        while !all_threads_stand_still(dev.child.id()) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let hurried = SessionCall {
            within_ms: Some(200),
            ..put("k", "new", Condition::Always)
        };
        let told = client.call(hurried.clone()).await;
        let Err(ClientError::Refused { code, .. }) = told else {
            panic!("{told:?}");
        };
        assert!(code == "DeadlineExceeded" || code == "Cancelled", "{code}");
        // What tells the server that nobody waits any more leaves as soon as this thread has time for it.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        let told = client.call(command("k", Op::Get)).await;
        assert_eq!(value_of(&told), b"old", "it was executed after its time");
        // With time enough it is.
        let patient = SessionCall {
            within_ms: Some(30_000),
            ..hurried
        };
        client.call(patient).await.unwrap();
        let told = client.call(command("k", Op::Get)).await;
        assert_eq!(value_of(&told), b"new");
    });
}
