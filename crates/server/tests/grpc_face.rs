//! The gRPC face of a real process, as generic tools see it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use support::Dev;
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
