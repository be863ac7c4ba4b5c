//! The layers before a tonic server: gRPC's own health service, over a real connection.
#![cfg(feature = "tower")]

mod common;

use std::sync::Arc;

use common::{FORGED, SECRETS, TAGGED, UNTAGGED, hmac_hash, record, store, verifier};
use lexikon_auth::http::{ApiKeyLayer, RequireScope, Write, grpc_status};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

async fn client() -> HealthClient<Channel> {
    let mut writer = record("writer", hmac_hash(SECRETS[0], TAGGED));
    writer.scopes = "write".into();
    let store = store(&[writer, record("reader", hmac_hash(SECRETS[0], UNTAGGED))]);
    let layer = ApiKeyLayer::new(Arc::new(verifier(store))).answer_with(grpc_status);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let mut server = Server::builder().layer(layer).layer(RequireScope::<Write>::new());
    let server = server.add_service(health).serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(async { server.await.unwrap() });
    HealthClient::new(Channel::builder(address.parse().unwrap()).connect().await.unwrap())
}

async fn check(client: &mut HealthClient<Channel>, key: &str) -> Result<i32, Status> {
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    if !key.is_empty() {
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    }
    Ok(client.check(request).await?.into_inner().status)
}

#[tokio::test]
async fn a_grpc_service_is_protected_by_the_same_layers() {
    let mut client = client().await;
    assert_eq!(check(&mut client, TAGGED).await.unwrap(), 1, "serving");
    for (key, code, message) in [
        ("", Code::Unauthenticated, "an API key is required"),
        (FORGED, Code::Unauthenticated, "the API key was refused"),
        ("not a key", Code::InvalidArgument, "the header of the API key is empty, or has"),
        (UNTAGGED, Code::PermissionDenied, "the API key lacks the scope write"),
    ] {
        let status = check(&mut client, key).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with(message), "{}", status.message());
    }
}
