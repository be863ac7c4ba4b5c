//! A handler that does next to nothing, with and without the layer before it.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use lexikon_auth::crypto::PresentedKey;
use lexikon_auth::http::ApiKeyLayer;
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{KeyRecord, Verifier};
use lexikon_auth_benches::ring;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::Failure;

/// The variable that makes this process the service: `none`, `passing` or `verifying`.
pub const LAYER: &str = "LEXIKON_BENCH_LAYER";

/// Serves until the standard input closes. Reads the keys that it is to know from there first.
pub async fn serve(layer: &str) -> Result<(), Failure> {
    let app = Router::new().route("/api/entries/lexikon", get(async || ENTRY));
    let app = match layer {
        "none" => app,
        "passing" => app.layer(axum::middleware::from_fn(
            async |request: axum::extract::Request, next: axum::middleware::Next| {
                next.run(request).await
            },
        )),
        _ => app.layer(ApiKeyLayer::new(Arc::new(verifier().await?))),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("Listening on http://{}", listener.local_addr()?);
    let mut input = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        served = axum::serve(listener, app) => served?,
        _ = stdin.read_to_end(&mut input) => {}
    }
    Ok(())
}

/// As long as what the reference service answers.
const ENTRY: &str = r#"{"success":true,"data":{"definition":"a book of words"}}"#;

async fn verifier() -> Result<Verifier<MemoryStore>, Failure> {
    let (ring, store) = (ring(1), MemoryStore::new());
    let path = std::env::var(KEYS)?;
    for (number, key) in std::fs::read_to_string(path)?.lines().enumerate() {
        let key = PresentedKey::parse(key)?;
        let candidates =
            lexikon_auth::crypto::Candidates::compute(&key, &ring).ok_or("a forged key")?;
        let (id, hash) = (number.to_string().into(), candidates.as_slice()[0]);
        store.insert(&KeyRecord::new(id, "user-1".into(), hash)).await?;
    }
    Ok(Verifier::new(store, ring))
}

/// The variable with the path of a file of keys.
pub const KEYS: &str = "LEXIKON_BENCH_KEYS";
