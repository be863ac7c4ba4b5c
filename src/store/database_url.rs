//! The URL of a database, in the forms that programs beside this one write it in.

use std::fmt;
#[cfg(feature = "sqlite")]
use std::path::PathBuf;
use std::str::FromStr;

#[cfg(feature = "sqlite")]
use percent_encoding::percent_decode_str;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgConnectOptions;

const UNKNOWN: &str = "the database URL begins with neither sqlite: nor postgres:; write it as \
    sqlite:path/to/keys.db or postgres://user:password@host:port/database";
#[cfg(feature = "sqlite")]
const NOT_SQLITE: &str = "the database URL cannot be read; write it as sqlite:path/to/keys.db, with \
    ?mode=rw where the file must be there already";
#[cfg(feature = "sqlite")]
const NO_FILE: &str = "the database URL names no file; write it as sqlite:path/to/keys.db, and for keys \
    in memory use a MemoryStore";
#[cfg(feature = "postgres")]
const NOT_POSTGRES: &str = "the database URL cannot be read; write it as \
    postgres://user:password@host:port/database, with %2F for / in a password, %23 for #, %3F for ? and %40 for @";
#[cfg(feature = "postgres")]
const UNKNOWN_PARAMETER: &str = "the database URL has a parameter that is not known; those of sqlx are, \
    such as sslmode, sslrootcert and application_name";
#[cfg(not(feature = "sqlite"))]
const NEEDS_SQLITE: &str =
    "the database URL is one of SQLite; enable the feature sqlite of lexikon-auth";
#[cfg(not(feature = "postgres"))]
const NEEDS_POSTGRES: &str =
    "the database URL is one of PostgreSQL; enable the feature postgres of lexikon-auth";

/// Where a database is.
///
/// | URL | database |
/// | --- | --- |
/// | `sqlite:keys.db`, `sqlite://keys.db` | a file in the current folder |
/// | `sqlite:/var/lib/keys.db`, `sqlite:///var/lib/keys.db` | a file by its absolute path |
/// | `sqlite:keys.db?mode=rw` | a file that has to be there; without it, or with `rwc`, a missing one is created |
/// | `sqlite:keys.db?mode=ro` | a file that is only read: for tools, since [`ApiKeys`](crate::ApiKeys) writes |
/// | `postgres://user:password@host:5432/database` | PostgreSQL, with the parameters of `PgConnectOptions`, such as `sslmode=verify-full` |
/// | `postgresql+asyncpg://…`, `sqlite+aiosqlite:///keys.db` | as SQLAlchemy writes them |
///
/// SQLAlchemy counts slashes in another way: with a driver, `sqlite+aiosqlite:///keys.db` is a file in the
/// current folder, and four slashes make the path absolute. Without one, `sqlite:///keys.db` is absolute
/// here, and a file in the current folder there: to share such a URL, write four slashes and the whole path.
///
/// What is percent-encoded is decoded; in a password, `/`, `#`, `?` and `@` have to be. A parameter that would
/// be passed over is refused. A database in memory has no URL: see [`MemoryStore`](crate::store::MemoryStore).
///
/// `Debug` shows no password.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use lexikon_auth::store::{DatabaseUrl, SqliteMode};
/// let url: DatabaseUrl = "sqlite+aiosqlite:////var/lib/lexikon/keys.db?mode=rw".parse().unwrap();
/// assert!(matches!(url, DatabaseUrl::Sqlite { path, mode: SqliteMode::ReadWrite }
///     if path.as_os_str() == "/var/lib/lexikon/keys.db"));
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)] // a program has one
pub enum DatabaseUrl {
    /// A database file of SQLite.
    #[cfg(feature = "sqlite")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// How it is to be opened.
        mode: SqliteMode,
    },
    /// A database of PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(PgConnectOptions),
}

/// How the file of a [`DatabaseUrl`] is to be opened, as SQLite's own parameter
/// [`mode`](https://www.sqlite.org/uri.html) says it.
#[cfg(feature = "sqlite")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqliteMode {
    /// `ro`: only read.
    ReadOnly,
    /// `rw`: read and written, and there already.
    ReadWrite,
    /// `rwc`, or no mode: read and written, and created where there is none.
    Create,
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(url: &str) -> Result<Self, DatabaseUrlError> {
        let (scheme, rest) = url.split_once(':').ok_or(DatabaseUrlError(UNKNOWN))?;
        let (dialect, driver) = match scheme.split_once('+') {
            Some((dialect, driver)) => (dialect, Some(driver)),
            None => (scheme, None),
        };
        match dialect {
            "sqlite" => sqlite(rest, driver.is_some()),
            "postgres" | "postgresql" => postgres(rest),
            _ => Err(DatabaseUrlError(UNKNOWN)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite { path, mode } => {
                f.debug_struct("Sqlite").field("path", path).field("mode", mode).finish()
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(options) => {
                let mut debug = f.debug_struct("Postgres");
                debug.field("host", &options.get_host()).field("port", &options.get_port());
                debug.field("database", &options.get_database()).finish_non_exhaustive()
            }
        }
    }
}

/// Says how to write a URL of a database, and nothing of the one that was given, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseUrlError(&'static str);

#[cfg(feature = "sqlite")]
fn sqlite(rest: &str, is_of_sqlalchemy: bool) -> Result<DatabaseUrl, DatabaseUrlError> {
    let (name, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let name = match name.strip_prefix("//") {
        // Behind an empty host and a slash, which are not part of the path.
        Some(path) if is_of_sqlalchemy => path.strip_prefix('/').unwrap_or_default(),
        Some(path) => path,
        None => name,
    };
    let name = percent_decode_str(name).decode_utf8().map_err(|_| DatabaseUrlError(NOT_SQLITE))?;
    let path = match name.trim_start_matches('/') {
        "" | ":memory:" => return Err(DatabaseUrlError(NO_FILE)),
        // SQLite would take it for a URL.
        path if path.starts_with("sqlite:") || path.starts_with("file:") => {
            return Err(DatabaseUrlError(NOT_SQLITE));
        }
        path if name.starts_with('/') => format!("/{path}"),
        path => path.to_owned(),
    };
    let mode = match parameters {
        "" | "mode=rwc" => SqliteMode::Create,
        "mode=rw" => SqliteMode::ReadWrite,
        "mode=ro" => SqliteMode::ReadOnly,
        _ => return Err(DatabaseUrlError(NOT_SQLITE)),
    };
    Ok(DatabaseUrl::Sqlite { path: path.into(), mode })
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(_: &str, _: bool) -> Result<DatabaseUrl, DatabaseUrlError> {
    Err(DatabaseUrlError(NEEDS_SQLITE))
}

#[cfg(feature = "postgres")]
fn postgres(rest: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
    let place = rest.strip_prefix("//").ok_or(DatabaseUrlError(NOT_POSTGRES))?;
    let (_, behind_host) = place.split_at(place.find(['/', '?', '#']).unwrap_or(place.len()));
    // The rest of a password in which that character stood: it would be taken for the name of the database, and
    // shown.
    if behind_host.contains(['@', '#']) {
        return Err(DatabaseUrlError(NOT_POSTGRES));
    }
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    if !parameters.split('&').all(|parameter| parameter.is_empty() || is_known(parameter)) {
        return Err(DatabaseUrlError(UNKNOWN_PARAMETER));
    }
    let parameters = format!("&{parameters}").replace("&ssl=", "&sslmode=");
    let options = format!("postgres:{place}?{parameters}").parse();
    let options = options.map_err(|_| DatabaseUrlError(NOT_POSTGRES))?;
    Ok(DatabaseUrl::Postgres(options))
}

/// The parameters that sqlx 0.9 knows, and asyncpg's `ssl`. Others it would pass over, and log with their values.
#[cfg(feature = "postgres")]
const PARAMETERS: &str = "application_name dbname host hostaddr options password port ssl ssl-ca ssl-cert \
    ssl-key ssl-mode ssl-root-cert sslcert sslkey sslmode sslrootcert statement-cache-capacity user";

#[cfg(feature = "postgres")]
fn is_known(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    // With its brackets encoded or not.
    let is_option =
        name.to_ascii_lowercase().starts_with("options%5b") || name.starts_with("options[");
    is_option || PARAMETERS.split(' ').any(|known| known == name)
}

#[cfg(not(feature = "postgres"))]
fn postgres(_: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
    Err(DatabaseUrlError(NEEDS_POSTGRES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> &'static str {
        url.parse::<DatabaseUrl>().expect_err(url).0
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn files_are_named_as_sqlx_and_as_sqlalchemy_do() {
        for (url, expected, expected_creation) in [
            ("sqlite:keys.db", "keys.db", true),
            ("sqlite://keys.db", "keys.db", true),
            ("sqlite:///var/keys.db", "/var/keys.db", true),
            ("sqlite:/var/keys.db?mode=rwc", "/var/keys.db", true),
            ("sqlite:keys.db?mode=rw", "keys.db", false),
            ("sqlite:of%20mine%3F.db", "of mine?.db", true),
            ("sqlite:////var/lib/keys.db", "/var/lib/keys.db", true),
            ("sqlite:///%2Fvar/keys.db", "/var/keys.db", true),
            ("sqlite+aiosqlite:///keys.db", "keys.db", true),
            ("sqlite+aiosqlite:////var/keys.db", "/var/keys.db", true),
            ("sqlite+aiosqlite://///var/keys.db", "/var/keys.db", true),
            ("sqlite+aiosqlite:////var/lib/keys.db?mode=rw", "/var/lib/keys.db", false),
            ("sqlite+pysqlite:///./keys.db?mode=rw", "./keys.db", false),
        ] {
            match url.parse() {
                Ok(DatabaseUrl::Sqlite { path, mode }) => {
                    assert_eq!(path.as_os_str(), expected, "{url}");
                    assert_eq!(mode == SqliteMode::Create, expected_creation, "{url}");
                }
                other => panic!("{url}: {other:?}"),
            }
        }
        for url in ["sqlite:", "sqlite://", "sqlite:////", "sqlite::memory:", "sqlite:///:memory:"]
        {
            assert_eq!(problem(url), NO_FILE, "{url}");
        }
        for url in ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite:%3Amemory%3A"] {
            assert_eq!(problem(url), NO_FILE, "{url}");
        }
        let url = "sqlite+aiosqlite:///keys.db?mode=ro";
        let read_only = url.parse();
        assert!(matches!(read_only, Ok(DatabaseUrl::Sqlite { mode: SqliteMode::ReadOnly, .. })));
        // What would be passed over is refused, and what is no text.
        for url in [
            "sqlite:keys.db?mode=memory",
            "sqlite:keys.db?mode=rw&cache=shared",
            "sqlite:%FF.db",
            "sqlite:sqlite:keys.db",
            "sqlite:file:keys.db",
        ] {
            assert_eq!(problem(url), NOT_SQLITE, "{url}");
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn drivers_of_sqlalchemy_are_passed_over_and_their_tls_is_not() {
        use sqlx::postgres::PgSslMode;
        for scheme in ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"] {
            let url = format!("{scheme}://lexikon:p%40ss@db.example.org:6432/keys?ssl=verify-full");
            let url: DatabaseUrl = url.parse().unwrap();
            let text = format!("{url:?} {url:#?}");
            assert!(!text.contains("p@ss") && !text.contains("p%40ss"), "{text}");
            #[allow(irrefutable_let_patterns)] // the only variant without the feature `sqlite`
            let DatabaseUrl::Postgres(options) = url else { panic!("{text}") };
            assert_eq!(options.get_host(), "db.example.org");
            assert_eq!(options.get_port(), 6432);
            assert_eq!(options.get_username(), "lexikon");
            assert_eq!(options.get_database(), Some("keys"));
            assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull), "{text}");
        }
        let url = "postgresql+asyncpg://host/keys?application_name=a&ssl=nonsense";
        assert_eq!(problem(url), NOT_POSTGRES);
        assert_eq!(problem("postgres://user:secret@host:not-a-port/keys"), NOT_POSTGRES);
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_password_that_would_be_taken_for_something_else_is_refused() {
        for url in [
            "postgres://lexikon:2024/Secret@db.example.org/keys",
            "postgres://lexikon:2024/Secret@db.example.org/keys?sslmode=require",
            "postgres:lexikon:Secret@db.example.org/keys",
            "postgres:////lexikon:Secret@db.example.org/keys",
            "postgres://lexikon:2024?user=Secret@db.example.org/keys",
            "postgres://lexikon:2024#Secret@db.example.org/keys",
            "postgres://lexikon@db.example.org/keys#Secret",
        ] {
            assert_eq!(problem(url), NOT_POSTGRES, "{url}");
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn parameters_that_would_be_passed_over_are_refused() {
        let url = "postgresql+asyncpg://lexikon@host/keys?";
        for parameters in
            ["async_fallback=true", "sslmode=require&sslpasword=a", "a", "Ssl=require"]
        {
            assert_eq!(problem(&format!("{url}{parameters}")), UNKNOWN_PARAMETER, "{parameters}");
        }
        let known = "sslmode=require&&application_name=a&options%5Block_timeout%5D=1s&host=%2Frun";
        assert!(format!("{url}{known}").parse::<DatabaseUrl>().is_ok());
    }

    #[test]
    fn what_is_no_url_of_a_database_is_not_repeated() {
        for url in
            ["", "keys.db", "mysql://root:secret@host/keys", "file:keys.db", "Sqlite:keys.db"]
        {
            assert_eq!(problem(url), UNKNOWN, "{url}");
        }
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn the_feature_that_is_missing_is_named() {
        assert!(problem("postgresql+asyncpg://host/keys").contains("feature postgres"));
    }

    #[cfg(not(feature = "sqlite"))]
    #[test]
    fn the_feature_that_is_missing_is_named() {
        assert!(problem("sqlite:keys.db").contains("feature sqlite"));
    }
}
