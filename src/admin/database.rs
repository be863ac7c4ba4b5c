//! The databases that a table of keys may be in.

#[cfg(feature = "postgres")]
use crate::store::PostgresStore;
#[cfg(feature = "sqlite")]
use crate::store::SqliteStore;

#[derive(Clone, Debug)]
pub(super) enum Database {
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteStore),
    #[cfg(feature = "postgres")]
    Postgres(PostgresStore),
}

/// Evaluates one expression for whichever database a [`Database`] or a `Session` is of, whose
/// [`Dialect`](crate::store::sql::dialect::Dialect) has a name in it.
macro_rules! for_either {
    ($value:expr, $either:ident<$dialect:ident>($inner:ident) => $result:expr) => {
        match $value {
            #[cfg(feature = "sqlite")]
            $either::Sqlite($inner) => {
                #[allow(dead_code)]
                type $dialect = sqlx::Sqlite;
                $result
            }
            #[cfg(feature = "postgres")]
            $either::Postgres($inner) => {
                #[allow(dead_code)]
                type $dialect = sqlx::Postgres;
                $result
            }
        }
    };
}
pub(super) use for_either;

/// A statement that is not the same in both databases.
pub(super) struct Statement {
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code))]
    pub(super) sqlite: &'static str,
    #[cfg_attr(not(feature = "postgres"), expect(dead_code))]
    pub(super) postgres: &'static str,
}

impl Database {
    pub(super) fn statement(&self, statement: Statement) -> &'static str {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => statement.sqlite,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => statement.postgres,
        }
    }
}
