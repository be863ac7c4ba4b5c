//! Over PostgreSQL: causes of failed connections, caches, pools of the application.

use std::net::TcpListener;

use lexikon_auth::StoreError;
use lexikon_auth::store::PostgresStore;
use lexikon_auth_tests::postgres::{Server, database};
use lexikon_auth_tests::{assert_reveals_nothing, printed};
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

const PASSWORD: &str = "a-password-of-lexikon";

fn url(options: &PgConnectOptions) -> String {
    let (port, database) = (options.get_port(), options.get_database().unwrap());
    format!("postgresql+asyncpg://postgres:{PASSWORD}@127.0.0.1:{port}/{database}")
}

/// The error of opening, which reveals no password.
async fn error_of(url: &str) -> StoreError {
    let error = ApiKeys::open(url, one_secret()).await.unwrap_err();
    assert_reveals_nothing(&printed(&error), PASSWORD);
    error
}

/// A port on which nobody listens for as long as this is held.
struct ClosedPort(TcpSocket);

impl ClosedPort {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}

#[tokio::test]
async fn a_closed_port_is_said() {
    let closed = ClosedPort::new();
    let port = closed.number();
    let error = error_of(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/keys")).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
}

/// Takes a connection, and says that the server is not yet ready for one.
async fn is_starting(listener: &tokio::net::TcpListener) {
    let (mut client, _) = listener.accept().await.unwrap();
    let _ = client.read(&mut [0; 1024]).await.unwrap();
    let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
    let length = u32::try_from(fields.len() + 4).unwrap();
    client.write_all(&[b"E", &length.to_be_bytes()[..], fields].concat()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_starts_at_the_same_time_is_waited_for() {
    let server = database().await;
    let (port, database) = (server.get_port(), server.get_database().unwrap());
    let closed = ClosedPort::new();
    let url = format!("postgres://postgres@127.0.0.1:{}", closed.number());
    let url = format!("{url}/{database}?sslmode=disable");
    let opening = tokio::spawn(async move { ApiKeys::open(&url, one_secret()).await });
    sleep(Duration::from_millis(500)).await;
    let listener = closed.0.listen(16).unwrap();
    timeout(PATIENCE, is_starting(&listener)).await.unwrap();
    let forwarding = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    opening.await.unwrap().unwrap().shutdown().await.unwrap();
    forwarding.abort();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_said() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = error_of(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/keys")).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn a_database_that_falls_silent_does_not_hold_up_a_health_endpoint() {
    use lexikon_auth_tests::proxy::{Mode, Proxy};
    let options = database().await;
    let proxy = Proxy::to(options.get_port()).await;
    let keys = ApiKeys::open(&url(&options.port(proxy.port)), one_secret()).await.unwrap();
    keys.ping().await.unwrap();
    proxy.set(Mode::Blackhole);
    let error = timeout(PATIENCE, keys.ping()).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_wrong_database_and_a_wrong_password_are_said() {
    let server = Server::start();
    let pool = PgPool::connect_with(server.options()).await.unwrap();
    let port = server.options().get_port();
    // As the server's own user, who may write to its files.
    for statement in [
        "CREATE ROLE lexikon LOGIN PASSWORD 'another-password'",
        "COPY (VALUES ('host all lexikon 127.0.0.1/32 scram-sha-256'), \
         ('host all postgres 127.0.0.1/32 trust')) \
         TO PROGRAM 'cat > pg_hba.conf'",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::raw_sql(statement).execute(&pool).await.unwrap();
    }
    let error = error_of(&format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/nowhere")).await;
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("database \"nowhere\" does not exist"), "{error}");

    // The server reads its file again when it comes to it.
    let url = format!("postgres://lexikon:{PASSWORD}@127.0.0.1:{port}/postgres");
    wait_until("the password is refused", async || {
        let error = error_of(&url).await;
        assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
        error.to_string().contains("password authentication failed for user \"lexikon\"")
    })
    .await;
}

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native-tls")))]
#[tokio::test]
async fn tls_without_its_feature_is_said() {
    let url = url(&database().await);
    let error = error_of(&format!("{url}?ssl=require")).await;
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("feature tls-rustls"), "{error}");
}

#[cfg(all(feature = "cache", feature = "redis"))]
#[tokio::test]
async fn a_change_that_somebody_else_makes_reaches_the_caches() {
    use lexikon_auth::store::CacheOptions;
    use lexikon_auth_tests::redis_server;
    let options = database().await;
    let hour = Duration::from_secs(3600);
    let cache = CacheOptions::default().max_age(hour).max_age_unfollowed(hour);
    let keys = ApiKeys::options(one_secret())
        .cache(cache)
        .redis(&redis_server::shared_url())
        .redis_options(redis_server::patient().prefix(&redis_server::prefix()))
        .open(&url(&options))
        .await
        .unwrap();
    wait_until("changes are reported", async || keys.is_following()).await;
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    for _ in 0..3 {
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    }
    let counts = keys.redis().unwrap().counts();
    assert!(counts.hits + counts.misses + counts.bypassed > 0, "{counts:?}");
    let other = PgPool::connect_with(options).await.unwrap();
    sqlx::query("UPDATE api_keys SET is_active = FALSE").execute(&other).await.unwrap();
    wait_until("the key is refused", async || {
        keys.verify(issued.key.expose_secret()).await.is_err()
    })
    .await;
    keys.shutdown().await.unwrap();
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis_that_is_down_keeps_nobody_from_starting() {
    let url = url(&database().await);
    let closed = ClosedPort::new();
    let redis = format!("redis://127.0.0.1:{}", closed.number());
    let keys = ApiKeys::options(one_secret()).redis(&redis).open(&url).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    keys.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pool_of_the_application_stays_open() {
    let pool = PgPool::connect_with(database().await).await.unwrap();
    let store = PostgresStore::from_pool(pool.clone(), Duration::from_secs(10)).await.unwrap();
    let keys = ApiKeys::options(one_secret()).over_postgres(store).await.unwrap();
    keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    keys.shutdown().await.unwrap();
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM api_keys").fetch_one(&pool).await.unwrap();
    assert_eq!(count, 1);
}
