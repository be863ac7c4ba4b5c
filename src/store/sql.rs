//! Keys in a SQL database, whichever it is: the lexikon service's tables, and the statements on them. What
//! is not the same in SQLite and PostgreSQL is a [`Dialect`](dialect::Dialect).

pub(crate) mod detect;
pub(crate) mod dialect;
mod keys;
pub(crate) mod row;
pub(crate) mod schema;
pub(crate) mod settings;
pub(crate) mod statements;
pub(crate) mod store;
pub(crate) mod timestamp;
pub(crate) mod value;
