//! TLS to real servers, whose certificates are of an authority that nobody else knows.
#![cfg(all(
    any(feature = "tls-rustls", feature = "tls-native-tls"),
    any(feature = "postgres", feature = "redis")
))]

use lexikon_auth::{ApiKeys, NewKey};
use lexikon_auth_tests::one_secret;

/// Makes an authority, and a certificate of it for `localhost`, in the current folder.
const MAKE_CERTIFICATES: &str = "set -e; \
    new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'; \
    openssl req -x509 $new -subj /CN=authority -days 2 -keyout ca.key -out ca.crt; \
    openssl req $new -subj /CN=localhost -keyout server.key -out server.csr; \
    echo subjectAltName=DNS:localhost > names; \
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
      -extfile names -out server.crt";

/// Issues a key and verifies it.
async fn use_keys(keys: &ApiKeys) {
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgres() {
    use std::time::Duration;

    use lexikon_auth::StoreError;
    use lexikon_auth_tests::postgres::Server;
    use sqlx::postgres::{PgPool, PgSslMode};
    use tokio::time::{sleep, timeout};

    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.crt");
    let pool = PgPool::connect_with(server.options()).await.unwrap();
    // In the folder of the server and as its user, who has to own the private key.
    let quoted = MAKE_CERTIFICATES.replace('\'', "''");
    let make = format!("COPY (SELECT 1) TO PROGRAM '{quoted}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&pool).await.unwrap();
    let read: String =
        sqlx::query_scalar("SELECT pg_read_file('ca.crt')").fetch_one(&pool).await.unwrap();
    std::fs::write(&authority, read).unwrap();
    sqlx::raw_sql("ALTER SYSTEM SET ssl = on").execute(&pool).await.unwrap();
    sqlx::raw_sql("SELECT pg_reload_conf()").execute(&pool).await.unwrap();

    let port = server.options().get_port();
    let url = |host: &str, mode: &str| {
        let authority = authority.display();
        format!(
            "postgresql+asyncpg://postgres@{host}:{port}/postgres?ssl={mode}&sslrootcert={authority}"
        )
    };
    // The server reads its settings again when it comes to it.
    let open = async {
        loop {
            match ApiKeys::open(&url("localhost", "verify-full"), one_secret()).await {
                Ok(keys) => break keys,
                Err(error) => {
                    assert!(error.to_string().contains("does not support TLS"), "{error}")
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let keys = timeout(Duration::from_secs(60), open).await.unwrap();
    use_keys(&keys).await;
    let over_tls = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE ssl AND application_name = '' AND backend_type = 'client backend'";
    let count: i64 = sqlx::query_scalar(over_tls).fetch_one(&pool).await.unwrap();
    assert!(count > 0, "the connections are encrypted");
    keys.shutdown().await.unwrap();

    // The certificate is not one for this name, which matters to one of the two modes.
    ApiKeys::open(&url("127.0.0.1", "verify-ca"), one_secret())
        .await
        .unwrap()
        .shutdown()
        .await
        .unwrap();
    let error = ApiKeys::open(&url("127.0.0.1", "verify-full"), one_secret()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    // Nobody has vouched for the authority.
    std::fs::write(&authority, "").unwrap();
    let options = server.options().host("localhost").ssl_mode(PgSslMode::VerifyCa);
    let error = lexikon_auth::store::PostgresStore::connect(options).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis() {
    use std::process::Command;

    use lexikon_auth::store::{MemoryStore, RedisStore};
    use lexikon_auth_tests::redis_server::{RedisServer, patient};
    use redis::{AsyncCommands, Client, TlsCertificates};

    let server = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("sh").args(["-c", MAKE_CERTIFICATES]).current_dir(&folder).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("tls-cert-file").arg(file("server.crt")).arg("tls-key-file");
    set.arg(file("server.key")).arg("tls-ca-cert-file").arg(file("ca.crt"));
    set.arg("tls-auth-clients").arg("no").arg("tls-port").arg(port);
    let mut connection = server.client().get_multiplexed_async_connection().await.unwrap();
    set.exec_async(&mut connection).await.unwrap();
    // Not every server speaks 1.3.
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("tls-protocols").arg("TLSv1.2");
    set.exec_async(&mut connection).await.unwrap();

    let root = std::fs::read(folder.path().join("ca.crt")).unwrap();
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(root) };
    let url = format!("rediss://localhost:{port}/");
    let client = Client::build_with_tls(url.as_str(), certificates).unwrap();
    let keys = ApiKeys::options(one_secret()).redis_client(client).redis_options(patient());
    let keys = keys.over(MemoryStore::new()).await.unwrap();
    use_keys(&keys).await;
    let entries: Vec<String> = connection.keys("lexikon:auth:key:*").await.unwrap();
    assert_eq!(entries.len(), 1, "the verification left an entry");
    keys.shutdown().await.unwrap();

    // Nobody has vouched for the authority.
    let (client, ring) = (Client::open(url).unwrap(), one_secret());
    let store = RedisStore::new(MemoryStore::new(), client, &ring, patient()).await;
    let fault = store.fault().unwrap();
    assert!(fault.to_lowercase().contains("certificate"), "{fault}");
}
