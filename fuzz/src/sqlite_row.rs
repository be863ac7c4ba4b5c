//! Rows of SQLite, where any column can hold anything.

use std::cell::OnceCell;
use std::time::SystemTime;

use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth::store::{KeyStore, Page, SqliteStore};
use lexikon_auth::{OwnerId, StoreError, Verifier, VerifyError};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tokio::runtime::Runtime;

use crate::ring;

const KEY: &str = "lxk_0000000000000000000000000000000000000000000";
const COLUMNS: [&str; 11] = [
    "user_id",
    "name",
    "scopes",
    "is_active",
    "last_used_at",
    "created_at",
    "expires_at",
    "revoked_at",
    "revoked_reason",
    "hash_format",
    "id",
];

struct Database {
    runtime: Runtime,
    pool: SqlitePool,
    store: SqliteStore,
    verifier: Verifier<SqliteStore>,
}

impl Database {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (pool, store) = runtime.block_on(async {
            let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(false);
            let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None);
            let pool = pool.max_lifetime(None).connect_with(options).await.expect("a database");
            // Columns without a type keep what they are given.
            let columns = COLUMNS.join(", ");
            for statement in [
                "CREATE TABLE users (id, is_active)".to_owned(),
                format!("CREATE TABLE api_keys ({columns}, key_hash)"),
            ] {
                sqlx::query(AssertSqlSafe(statement)).execute(&pool).await.expect("a table");
            }
            let store = SqliteStore::from_pool(pool.clone()).await.expect("the schema is known");
            (pool, store)
        });
        let verifier = Verifier::new(store.clone(), ring());
        Self { runtime, pool, store, verifier }
    }
}

/// A value of one of SQLite's storage classes.
enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// Takes a value from the input: a byte for the class and the length, then the content.
fn value(data: &mut &[u8]) -> Value {
    let Some((&head, rest)) = data.split_first() else { return Value::Null };
    let (content, rest) = rest.split_at(rest.len().min(usize::from(head) >> 3));
    *data = rest;
    match head & 7 {
        0 => Value::Null,
        1 => Value::Integer(content.iter().fold(0, |number, &byte| number << 8 | i64::from(byte))),
        2 => Value::Real(content.iter().fold(0.5, |number, &byte| number * 7.0 + f64::from(byte))),
        3 => Value::Blob(content.to_vec()),
        _ => Value::Text(String::from_utf8_lossy(content).into_owned()),
    }
}

/// A row that holds anything: nothing panics, and what is granted is in force.
pub fn sqlite_row(mut data: &[u8]) {
    thread_local!(static DATABASE: OnceCell<Database> = const { OnceCell::new() });
    DATABASE.with(|database| {
        let database = database.get_or_init(Database::new);
        let owner_state = value(&mut data);
        let values = COLUMNS.map(|_| value(&mut data));
        database.runtime.block_on(check(database, owner_state, values));
    });
}

async fn check(database: &Database, owner_state: Value, values: [Value; COLUMNS.len()]) {
    let key = PresentedKey::parse(KEY).expect("well-formed");
    let candidates = Candidates::compute(&key, &ring()).expect("no tag to be wrong");
    let hash = candidates.as_slice()[0].to_hex();
    let in_force =
        matches!(values[3], Value::Integer(1)) && matches!(owner_state, Value::Integer(1));
    let expiry_is_text = matches!(values[6], Value::Null | Value::Text(_));
    let owner = match &values[0] {
        Value::Text(owner) => OwnerId::from(&**owner),
        _ => OwnerId::from("owner"),
    };

    let run = async |statement: String, values: Vec<Value>| {
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for value in values {
            query = match value {
                Value::Null => query.bind(None::<i64>),
                Value::Integer(integer) => query.bind(integer),
                Value::Real(real) => query.bind(real),
                Value::Text(text) => query.bind(text),
                Value::Blob(blob) => query.bind(blob),
            };
        }
        query.execute(&database.pool).await.expect("the statement runs");
    };
    run("DELETE FROM users".into(), vec![]).await;
    run("DELETE FROM api_keys".into(), vec![]).await;
    let columns = COLUMNS.join(", ");
    let places =
        (1..=COLUMNS.len()).map(|place| format!("${place}")).collect::<Vec<_>>().join(", ");
    let insert = format!("INSERT INTO api_keys (key_hash, {columns}) VALUES ('{hash}', {places})");
    run(insert, values.into()).await;
    let insert = "INSERT INTO users SELECT user_id, $1 FROM api_keys";
    run(insert.into(), vec![owner_state]).await;

    match database.verifier.verify(KEY).await {
        Ok(verified) => {
            assert!(in_force, "a row that is not in force was granted");
            assert!(expiry_is_text, "an unreadable date was granted");
            assert!(verified.expires_at().is_none_or(|date| date > SystemTime::now()));
        }
        Err(VerifyError::Refused(_))
        | Err(VerifyError::Unavailable(StoreError::InvalidRow { .. })) => {}
        Err(error) => panic!("a row is refused or unreadable, nothing else: {error:?}"),
    }
    match database.store.list(&owner, &Page::first(10)).await {
        Ok(_) | Err(StoreError::InvalidRow { .. }) => {}
        Err(error) => panic!("a row is listed or unreadable, nothing else: {error:?}"),
    }
}
