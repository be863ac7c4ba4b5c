//! The layers before servers without axum, over real connections: hyper, and tonic with gRPC's own health
//! service.
#![cfg(feature = "tower")]

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use lexikon_auth::VerifiedKey;
use lexikon_auth::http::{ApiKeyLayer, RequireScope, Write, grpc_status};
use lexikon_auth_tests::{FORGED, SECRETS, TAGGED, UNTAGGED, hmac_hash, record, store, verifier};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::Layer;

async fn client() -> HealthClient<Channel> {
    let mut writer = record("writer", hmac_hash(SECRETS[0], TAGGED));
    writer.scopes = "write".into();
    let store = store(&[writer, record("reader", hmac_hash(SECRETS[0], UNTAGGED))]);
    let layer = ApiKeyLayer::new(Arc::new(verifier(store))).respond_with(grpc_status);
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

#[tokio::test]
async fn a_hyper_service_is_protected_by_the_same_layer() {
    let store = store(&[record("key", hmac_hash(SECRETS[0], TAGGED))]);
    let hello = tower::service_fn(async |request: http::Request<Incoming>| {
        let key = request.extensions().get::<VerifiedKey>().expect("the layer lets none pass else");
        Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::from(key.id().to_string())))
    });
    let service = ApiKeyLayer::new(Arc::new(verifier(store))).layer(hello);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let get = async |key: &str| {
        let response = reqwest::Client::new().get(&url).header("x-api-key", key).send().await;
        let response = response.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get(TAGGED).await, (200, "key".to_owned()));
    let (status, body) = get(FORGED).await;
    assert_eq!(status, 401);
    assert!(body.contains("the API key was refused"), "{body}");
}
