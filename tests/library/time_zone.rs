//! The service writes and compares its local time. Keys expire here when they do there, and what is
//! written here means the same there: in zones east and west of Greenwich, around both changes of the
//! clocks, in both databases.
#![cfg(all(feature = "postgres", feature = "sqlite"))]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::{Timestamp, tz};
use lexikon_auth::admin::{DeprecatedKeys, ImpossibleUse, KeyFilter, KeyTable, ZoneReplacement};
use lexikon_auth::clock::ManualClock;
use lexikon_auth::store::{DynKeyStore, KeyStore, PostgresStore, SqliteStore, TimeZone, Usage};
use lexikon_auth::{KeyManager, KeyUpdate, NewKey, Refusal, Rotation, StoreError, Verifier};
use lexikon_auth_tests::{SECRETS, UNTAGGED, data, hmac_hash, one_secret, postgres};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::SqlitePool;
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
const PARIS: &str = "Europe/Paris";
const NEW_YORK: &str = "America/New_York";

/// The service's tables, with one key of its own: [`UNTAGGED`].
enum Service {
    Sqlite { folder: TempDir, pool: SqlitePool },
    Postgres { options: Box<PgConnectOptions>, pool: PgPool },
}

impl Service {
    async fn both() -> [Self; 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        std::fs::write(&path, data::SQLITE).unwrap();
        let pool = SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        let sqlite = Self::Sqlite { folder, pool };
        let options = postgres::database().await;
        let pool = PgPool::connect_with(options.clone()).await.unwrap();
        let dump = data::POSTGRES;
        sqlx::raw_sql(dump).execute(&pool).await.unwrap();
        pool.close().await; // the dump leaves its settings behind
        let pool = PgPool::connect_with(options.clone()).await.unwrap();
        let both = [sqlite, Self::Postgres { options: Box::new(options), pool }];
        for service in &both {
            let hash = hmac_hash(SECRETS[0], UNTAGGED).to_hex();
            service.run("DELETE FROM api_keys").await;
            service
                .run(&format!(
                    "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
                     VALUES ('key', 'user-1', '{hash}', 'key', 'read', TRUE, '2026-01-01 00:00:00')"
                ))
                .await;
        }
        both
    }

    async fn run(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite { pool, .. } => {
                sqlx::raw_sql(statement).execute(pool).await.map(drop).unwrap();
            }
            Self::Postgres { pool, .. } => {
                sqlx::raw_sql(statement).execute(pool).await.map(drop).unwrap();
            }
        }
    }

    /// What stands in a column, to the second.
    async fn text(&self, column: &str, id: &str) -> String {
        let select = |text: &str| {
            sqlx::AssertSqlSafe(format!("SELECT {text} FROM api_keys WHERE id = '{id}'"))
        };
        match self {
            Self::Sqlite { pool, .. } => {
                let select = select(&format!("coalesce(substr({column}, 1, 19), '')"));
                sqlx::query_scalar(select).fetch_one(pool).await.unwrap()
            }
            Self::Postgres { pool, .. } => {
                let text = format!("coalesce(to_char({column}, 'YYYY-MM-DD HH24:MI:SS'), '')");
                sqlx::query_scalar(select(&text)).fetch_one(pool).await.unwrap()
            }
        }
    }

    async fn set(&self, column: &str, local: &str) {
        self.run(&format!("UPDATE api_keys SET {column} = '{local}' WHERE id = 'key'")).await;
    }

    /// An instance that starts, given this zone or none.
    async fn start(&self, zone: Option<&str>, extend: bool) -> Result<KeyTable, StoreError> {
        macro_rules! start {
            ($store:expr) => {{
                let mut store = $store;
                if let Some(zone) = zone {
                    store = store.with_time_zone(zone.parse().unwrap()).await?;
                }
                if extend {
                    store = store.extend_schema().await?;
                }
                Ok(KeyTable::from(store))
            }};
        }
        match self {
            Self::Sqlite { folder, .. } => {
                start!(SqliteStore::open(folder.path().join("keys.db")).await?)
            }
            Self::Postgres { options, .. } => {
                start!(PostgresStore::connect(PgConnectOptions::clone(options)).await?)
            }
        }
    }

    async fn table(&self, zone: &str) -> KeyTable {
        self.start(Some(zone), true).await.unwrap()
    }
}

fn time(text: &str) -> SystemTime {
    text.parse::<Timestamp>().unwrap().try_into().unwrap()
}

fn clock(now: SystemTime) -> Arc<ManualClock> {
    Arc::new(ManualClock::new(now))
}

async fn refusal(store: DynKeyStore, now: SystemTime) -> Option<Refusal> {
    let verifier = Verifier::new(store, one_secret()).with_clock(clock(now));
    let answer = verifier.verify(UNTAGGED).await;
    answer.err().map(|error| error.refusal().expect("a refusal").clone())
}

/// What `str(datetime.now())` of the service says, to the second.
fn local_now(zone: &str, now: SystemTime) -> String {
    let zone = tz::TimeZone::get(zone).unwrap();
    let now = Timestamp::try_from(now).unwrap();
    zone.to_datetime(now).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// What the service wrote, and the instant from which its key is refused.
const DATES: [(&str, &str, &str); 13] = [
    ("UTC", "2026-07-01 12:00:00", "2026-07-01T12:00:00Z"),
    (PARIS, "2026-07-01 12:00:00", "2026-07-01T10:00:00Z"),
    (PARIS, "2026-12-01 12:00:00", "2026-12-01T11:00:00Z"),
    (PARIS, "2026-03-29 01:59:00", "2026-03-29T00:59:00Z"),
    // Skipped: past as soon as a clock shows a later time.
    (PARIS, "2026-03-29 02:30:00", "2026-03-29T01:00:00Z"),
    (PARIS, "2026-03-29 03:01:00", "2026-03-29T01:01:00Z"),
    // Shown twice.
    (PARIS, "2026-10-25 02:30:00", "2026-10-25T00:30:00Z"),
    (PARIS, "2026-10-25 03:00:00", "2026-10-25T02:00:00Z"),
    (NEW_YORK, "2026-07-01 12:00:00", "2026-07-01T16:00:00Z"),
    (NEW_YORK, "2026-03-08 02:30:00", "2026-03-08T07:00:00Z"),
    (NEW_YORK, "2026-03-08 03:01:00", "2026-03-08T07:01:00Z"),
    (NEW_YORK, "2026-11-01 01:30:00", "2026-11-01T05:30:00Z"),
    (NEW_YORK, "2026-11-01 02:00:00", "2026-11-01T07:00:00Z"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_service_is_refused_from_its_local_date_on() {
    for service in Service::both().await {
        for (zone, local, instant) in DATES {
            // Each without the extension, where the setting alone counts.
            let table = service.start(Some(zone), false).await.unwrap();
            for fraction in ["", ".000000"] {
                service.set("expires_at", &format!("{local}{fraction}")).await;
                let instant = time(instant);
                let before = refusal(table.store(), instant - Duration::from_micros(1)).await;
                assert_eq!(before, None, "{zone} {local}");
                let expired = Some(Refusal::Expired("key".into()));
                for late in
                    [0, 1, 29, 30, 59, 60, 61, 120].map(|minutes| instant + minutes * MINUTE)
                {
                    assert_eq!(refusal(table.store(), late).await, expired, "{zone} {local}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn marking_and_counting_say_what_verification_says() {
    for service in Service::both().await {
        for (zone, local, instant) in DATES {
            let table = service.start(Some(zone), false).await.unwrap();
            service.set("expires_at", local).await;
            let instant = time(instant);
            for minutes in [0, 20, 40, 60, 90] {
                let (early, late) =
                    (instant - Duration::from_micros(1), instant + minutes * MINUTE);
                for (now, is_past) in [(early, false), (late, true)] {
                    let past = u64::from(is_past);
                    let table = table.clone().with_clock(clock(now));
                    let context = format!("{zone} {local} after {minutes} minutes");
                    assert_eq!(table.count_expired().await.unwrap(), past, "{context}");
                    let in_force = KeyFilter::default().usable();
                    assert_eq!(table.count(&in_force).await.unwrap(), 1 - past, "{context}");
                    let status = table.migration_status(None).await.unwrap();
                    let in_force: u64 = status.classes.iter().map(|class| class.in_force).sum();
                    assert_eq!(in_force, 1 - past, "{context}");
                    assert_eq!(table.store().expire(now).await.unwrap(), past, "{context}");
                    service.run("UPDATE api_keys SET is_active = TRUE").await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_instance_obeys_the_dates_that_are_written() {
    for service in Service::both().await {
        for (zone, _, instant) in DATES {
            let table = service.start(Some(zone), false).await.unwrap();
            let store = table.store();
            let date = time(instant);
            store.update(&"key".into(), &KeyUpdate::default().expires_at(date)).await.unwrap();
            let written = service.text("expires_at", "key").await;
            assert_eq!(written, local_now(zone, date), "{zone}");
            // Its rule: refused when expires_at is before datetime.now().
            assert!(written >= local_now(zone, date - MINUTE), "{zone} {written}");
            assert!(written < local_now(zone, date + 61 * MINUTE), "{zone} {written}");
            let read = store.find_by_id(&"key".into()).await.unwrap().unwrap();
            assert_eq!(read.expires_at, Some(date), "{zone}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn issuing_rotating_and_using_keys_writes_local_time_and_the_rest_utc() {
    for service in Service::both().await {
        let store = service.table(PARIS).await.store();
        let now = time("2026-07-01T10:00:00Z");
        let manager = KeyManager::new(store.clone(), &one_secret()).with_clock(clock(now));
        let new = NewKey::new("user-1", "new").scopes("read");
        let issued = manager.issue(new.expires_at(time("2026-12-01T11:00:00Z"))).await.unwrap();
        let id = issued.record.id.to_string();
        assert_eq!(service.text("expires_at", &id).await, "2026-12-01 12:00:00");
        assert_eq!(service.text("created_at", &id).await, "2026-07-01 10:00:00");

        let overlap = Rotation::default().overlap(60 * MINUTE);
        let successor = manager.rotate(&issued.record.id, overlap).await.unwrap();
        assert_eq!(service.text("expires_at", &id).await, "2026-07-01 13:00:00");
        let successor = successor.record.id.to_string();
        assert_eq!(service.text("expires_at", &successor).await, "2026-12-01 12:00:00");

        let verifier = Verifier::new(store.clone(), one_secret()).with_clock(clock(now));
        let _ = verifier.verify(UNTAGGED).await.unwrap();
        verifier.flush().await.unwrap();
        assert_eq!(service.text("last_used_at", "key").await, "2026-07-01 12:00:00");
        let format = lexikon_auth::crypto::HashFormat::HmacSha256;
        for (at, stays) in
            [("2026-07-01T09:59:00Z", "12:00:00"), ("2026-07-01T10:01:00Z", "12:01:00")]
        {
            let usage = Usage { id: "key".into(), at: time(at), format };
            store.record_usage(&[usage]).await.unwrap();
            let used = service.text("last_used_at", "key").await;
            assert_eq!(used, format!("2026-07-01 {stays}"));
        }
        manager.revoke(&"key".into(), None).await.unwrap();
        assert_eq!(service.text("revoked_at", "key").await, "2026-07-01 10:00:00");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deprecation_gives_back_the_very_date_that_was_there() {
    for service in Service::both().await {
        let now = time("2026-03-01T00:00:00Z");
        let table = service.table(PARIS).await.with_clock(clock(now));
        service.run("UPDATE api_keys SET hash_format = 'sha256'").await;
        for before in ["2026-10-25 02:30:00", "2026-03-29 02:30:00", "2026-12-01 12:00:00"] {
            service.set("expires_at", before).await;
            let legacy = KeyFilter::legacy(None);
            let date = time("2026-03-10T12:00:00Z");
            let changed = table.deprecate(&legacy, date, &mut ()).await.unwrap();
            assert_eq!(changed, 1);
            assert_eq!(service.text("expires_at", "key").await, "2026-03-10 13:00:00");
            let dates = table.deprecation_dates().await.unwrap().unwrap();
            assert_eq!((dates.earliest, dates.latest), (date, date));
            let remembered = table.store().expiry_before_deprecation(&"key".into()).await.unwrap();
            let (_, _, instant) = DATES.iter().find(|row| row.1 == before).unwrap();
            let instant = if before.contains("12-01") { "2026-12-01T11:00:00Z" } else { instant };
            assert_eq!(remembered, Some(Some(time(instant))), "{before}");
            assert_eq!(table.undo_deprecation(DeprecatedKeys::All, &mut ()).await.unwrap(), 1);
            assert_eq!(service.text("expires_at", "key").await, before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_keeps_one_zone_for_all() {
    let mismatch = |answer: Result<KeyTable, StoreError>| match answer {
        Err(StoreError::TimeZoneMismatch { given, kept }) => (given, kept),
        other => panic!("{other:?}"),
    };
    let named = |names: [&str; 2]| (names[0].to_owned(), names[1].to_owned());
    for service in Service::both().await {
        // Without the extension, each for itself.
        assert_eq!(service.start(Some(PARIS), false).await.unwrap().time_zone().name(), PARIS);
        assert_eq!(service.start(None, false).await.unwrap().time_zone(), &TimeZone::UTC);
        assert!(!service.start(None, false).await.unwrap().can_keep_time_zone());

        // Of two that extend it at once, the first one decides.
        let (one, other) =
            tokio::join!(service.start(Some(PARIS), true), service.start(Some(NEW_YORK), true));
        let kept = match (one, other) {
            (Ok(table), refused) => {
                assert_eq!(mismatch(refused), named([NEW_YORK, PARIS]));
                table
            }
            (refused, Ok(table)) => {
                assert_eq!(mismatch(refused), named([PARIS, NEW_YORK]));
                table
            }
            (one, other) => panic!("{one:?} {other:?}"),
        };
        let zone = kept.kept_time_zone().await.unwrap().unwrap();
        let other = if zone.name() == PARIS { NEW_YORK } else { PARIS };

        // Who says nothing uses it, and who says another is refused, with what to run.
        for extend in [false, true] {
            assert_eq!(service.start(None, extend).await.unwrap().time_zone(), &zone);
            assert_eq!(service.start(Some(zone.name()), extend).await.unwrap().time_zone(), &zone);
            let refused = service.start(Some(other), extend).await;
            let advice = format!("lxk schema time-zone {other} --replace {zone}");
            assert!(refused.as_ref().unwrap_err().to_string().contains(&advice), "{refused:?}");
            assert_eq!(mismatch(refused), named([other, zone.name()]));
        }
        let refused = kept.keep_time_zone(&other.parse().unwrap()).await.unwrap_err();
        assert!(matches!(refused, StoreError::TimeZoneMismatch { .. }), "{refused:?}");

        // Replaced by its name, and by nothing else.
        let (utc, other) = (TimeZone::UTC, other.parse().unwrap());
        let refused = kept
            .replace_time_zone(ZoneReplacement { wrong: &utc, right: &other })
            .await
            .unwrap_err();
        assert!(matches!(refused, StoreError::TimeZoneMismatch { .. }), "{refused:?}");
        kept.replace_time_zone(ZoneReplacement { wrong: &zone, right: &other }).await.unwrap();
        assert_eq!(service.start(None, false).await.unwrap().time_zone(), &other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_share_a_zone_also_one_that_comes_later() {
    for service in Service::both().await {
        service.set("expires_at", "2026-07-01 12:00:00").await;
        let table = service.start(None, true).await.unwrap();
        let clone = table.store();
        let noon = time("2026-07-01T11:59:00Z");
        assert_eq!(refusal(clone.clone(), noon).await, None);
        let table = table.with_time_zone(&PARIS.parse().unwrap()).unwrap();
        assert_eq!(refusal(clone, noon).await, Some(Refusal::Expired("key".into())));
        // For an operator who looks: nothing is kept.
        assert_eq!(table.kept_time_zone().await.unwrap(), None);
        let table = service.start(Some(NEW_YORK), false).await.unwrap();
        assert_eq!(table.kept_time_zone().await.unwrap(), Some(NEW_YORK.parse().unwrap()));
        service.run("UPDATE lexikon_auth_settings SET value = 'Mars/Olympus'").await;
        let refused = service.start(None, false).await.unwrap_err().to_string();
        assert!(refused.contains("Mars/Olympus") && refused.contains("update this program"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_zone_shows_in_uses_that_cannot_have_been() {
    let now = time("2026-07-01T10:00:00Z");
    let cases = [
        // Where it ran, what it wrote, the zone that is set, what shows.
        (PARIS, "2026-07-01 11:58:00", "UTC", Some(ImpossibleUse::Ahead(118 * MINUTE))),
        (PARIS, "2026-07-01 11:58:00", PARIS, None),
        (NEW_YORK, "2026-07-01 05:50:00", "UTC", Some(ImpossibleUse::BeforeCreation(229 * MINUTE))),
        (NEW_YORK, "2026-07-01 05:50:00", NEW_YORK, None),
        // Nonsense says nothing of a zone.
        (PARIS, "2999-01-01 00:00:00", "UTC", None),
    ];
    for service in Service::both().await {
        service.set("created_at", "2026-07-01 09:39:00").await;
        for (ran_in, written, zone, shows) in cases {
            service.set("last_used_at", written).await;
            let table = service.start(Some(zone), false).await.unwrap().with_clock(clock(now));
            let seen = table.impossible_use().await.unwrap();
            assert_eq!(seen, shows, "{ran_in} {written} read in {zone}");
        }
        // Used a minute after it was made, when the hour came for the second time.
        service.set("created_at", "2026-10-25 01:10:00").await;
        service.set("last_used_at", "2026-10-25 02:11:00").await;
        let later = clock(time("2026-10-26T00:00:00Z"));
        let table = service.start(Some(PARIS), false).await.unwrap().with_clock(later);
        assert_eq!(table.impossible_use().await.unwrap(), None);
    }
}
