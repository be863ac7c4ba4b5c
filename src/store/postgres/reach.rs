//! Whether a server lets this in, asked without a pool.

use std::io;
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{sleep, timeout};

use crate::error::StoreError;

const NO_TLS: &str = "; enable the feature tls-rustls or tls-native-tls of lexikon-auth";

/// How long to wait before another attempt.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Connects, and tries again until the time limit where the server may be about to start. A pool would then
/// say no more than that it timed out.
pub(super) async fn reach(
    options: &PgConnectOptions,
    time_limit: Duration,
) -> Result<(), StoreError> {
    let mut cause = io::Error::from(io::ErrorKind::TimedOut).into();
    let attempts = async {
        loop {
            match connect(options).await {
                Err(error) if may_be_starting(&error) => cause = error,
                done => return done,
            }
            sleep(RETRY_DELAY).await;
        }
    };
    let done = timeout(time_limit, attempts).await;
    done.unwrap_or(Err(cause)).map_err(|error| {
        let is_to_be_mended = is_to_be_mended(&error);
        let error = Unreachable::new(options, error);
        if is_to_be_mended { StoreError::CannotOpen(error) } else { StoreError::Unavailable(error) }
    })
}

async fn connect(options: &PgConnectOptions) -> sqlx::Result<()> {
    PgConnection::connect_with(options).await?.close().await
}

/// Whether nobody listens, or the server says `cannot_connect_now`.
fn may_be_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

/// A failed connection, and where to. Never shows a password.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL at {address}, database {database}, user {user}: {source}{hint}")]
struct Unreachable {
    address: String,
    database: String,
    user: String,
    source: sqlx::Error,
    hint: &'static str,
}

impl Unreachable {
    fn new(options: &PgConnectOptions, source: sqlx::Error) -> Box<Self> {
        let address = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let user = options.get_username().to_owned();
        // PostgreSQL's own default.
        let database = options.get_database().unwrap_or(&user).to_owned();
        let lacks_tls = source.to_string().contains("without TLS support");
        let hint = if lacks_tls { NO_TLS } else { "" };
        Box::new(Self { address, database, user, source, hint })
    }
}

/// Whether the options are wrong, or the server's settings, so that to try again is of no use. PostgreSQL's
/// codes: <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
fn is_to_be_mended(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        // What rustls says of a certificate.
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // invalid_authorization_specification and its like, invalid_catalog_name,
            // insufficient_privilege
            code.starts_with("28") || matches!(&*code, "3D000" | "42501")
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feature_that_is_missing_for_tls_is_named() {
        let options =
            PgConnectOptions::new_without_pgpass().host("db.example.org").password("secret");
        // The words of sqlx 0.9.
        let error = sqlx::Error::Tls(
            "TLS upgrade required by connect options but SQLx was built without TLS support enabled"
                .into(),
        );
        assert!(is_to_be_mended(&error));
        let text = Unreachable::new(&options, error).to_string();
        assert!(text.contains("the feature tls-rustls or tls-native-tls"), "{text}");
        assert!(text.contains("db.example.org") && !text.contains("secret"), "{text}");
        let refused = Unreachable::new(&options, sqlx::Error::Tls("unknown issuer".into()));
        assert!(!refused.to_string().contains("feature"));
    }
}
