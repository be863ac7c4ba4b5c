//! The table of keys as a whole, on SQLite and on PostgreSQL.
#![cfg(all(feature = "cache", feature = "postgres", feature = "sqlite"))]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::admin::{BatchObserver, DeprecatedKeys, KeyFilter, KeyTable, KnownFormat};
use lexikon_auth::clock::ManualClock;
use lexikon_auth::crypto::{HashFormat, KeyHash};
use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, KeyStore, PolicySource, PostgresStore, SqliteStore,
    TimeZone,
};
use lexikon_auth::{KeyId, KeyManager, KeyRecord, LegacyPolicy, Rotation, StoreError, Verifier};
use lexikon_auth_tests::{SECRETS, clock_at_noon, noon, one_secret, postgres, ring, secret};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::sleep;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The same table, a day later.
fn a_day_later(table: &KeyTable) -> KeyTable {
    table.clone().with_clock(Arc::new(ManualClock::new(noon() + DAY)))
}

/// An empty table in each database, at noon.
async fn tables() -> Vec<(KeyTable, DynKeyStore, Option<TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open_or_create(folder.path().join("keys.db")).await.unwrap();
    let postgres = PostgresStore::connect(postgres::database().await).await.unwrap();
    let table = KeyTable::from(postgres).with_clock(clock_at_noon());
    let store = table.store();
    let sqlite = KeyTable::from(sqlite).with_clock(clock_at_noon());
    vec![(sqlite.clone(), sqlite.store(), Some(folder)), (table, store, None)]
}

/// A key whose hash is made of its number.
fn numbered(number: u32) -> KeyRecord {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    let id = KeyId::from(format!("key-{number:06}"));
    let mut record = KeyRecord::new(id, "user-1".into(), KeyHash::from_bytes(hash));
    record.created_at = Some(noon() - 30 * DAY);
    record
}

fn legacy(number: u32) -> KeyRecord {
    let mut record = numbered(number);
    record.format = Some(HashFormat::Sha256);
    record
}

async fn add(store: &DynKeyStore, records: &[KeyRecord]) {
    for record in records {
        store.insert(record).await.unwrap();
    }
}

async fn expiry(store: &DynKeyStore, number: u32) -> Option<SystemTime> {
    store.find_by_id(&numbered(number).id).await.unwrap().unwrap().expires_at
}

async fn expiries(store: &DynKeyStore, numbers: &[u32]) -> Vec<Option<SystemTime>> {
    let mut all = Vec::new();
    for number in numbers {
        all.push(expiry(store, *number).await);
    }
    all
}

async fn ids(table: &KeyTable, filter: &KeyFilter) -> Vec<String> {
    let mut ids = Vec::new();
    let listed = table.each_key(filter, |key| {
        ids.push(key.record.id.to_string());
        Ok::<_, StoreError>(())
    });
    listed.await.unwrap();
    assert_eq!(table.count(filter).await.unwrap(), ids.len() as u64);
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn deprecated_keys_expire_never_later_than_they_did_and_get_back_what_they_had() {
    for (table, store, _folder) in tables().await {
        let (soon, late) = (noon() + DAY, noon() + 90 * DAY);
        let mut rows: Vec<_> = (0..8).map(legacy).collect();
        rows[1].expires_at = Some(late);
        rows[2].expires_at = Some(soon);
        rows[3].revocation = Some(Box::default());
        rows[4].format = Some(HashFormat::HmacSha256);
        rows[5].format = None; // made before the first deployment
        rows[6].format = None;
        rows[6].created_at = Some(noon() - DAY); // after it
        add(&store, &rows).await;
        let before = expiries(&store, &[0, 1, 2, 3, 4, 5, 6, 7]).await;

        let filter = KeyFilter::legacy(Some(noon() - 10 * DAY));
        let date = noon() + 7 * DAY;
        assert_eq!(table.count_deprecatable(&filter, date).await.unwrap(), 4);
        let changed = table.deprecate(&filter, date, &mut ()).await.unwrap();
        assert_eq!(changed, 4);
        let set = Some(date);
        let after = expiries(&store, &[0, 1, 2, 3, 4, 5, 6, 7]).await;
        assert_eq!(after, [set, set, Some(soon), None, None, set, None, set]);

        // Again: nothing. Earlier: moved. What was there first is still what is given back.
        assert_eq!(table.deprecate(&filter, date, &mut ()).await.unwrap(), 0);
        let earlier = date - DAY;
        assert_eq!(table.deprecate(&filter, earlier, &mut ()).await.unwrap(), 4);
        assert_eq!(expiry(&store, 1).await, Some(earlier));

        // Somebody gives one key another expiry, and another key is upgraded.
        let other = noon() + 400 * DAY;
        let update = lexikon_auth::KeyUpdate::default().expires_at(other);
        store.update(&rows[7].id, &update).await.unwrap();
        let change = lexikon_auth::store::HashChange {
            id: rows[0].id.clone(),
            expected: rows[0].hash,
            replacement: KeyHash::from_bytes([9; 32]),
        };
        assert!(store.replace_hash(&change).await.unwrap());
        assert_eq!(table.count_deprecated(DeprecatedKeys::Upgraded).await.unwrap(), 1);
        // Not the one that has another expiry by now.
        assert_eq!(table.count_deprecated(DeprecatedKeys::All).await.unwrap(), 3);
        assert_eq!(store.expiry_before_deprecation(&rows[1].id).await.unwrap(), Some(Some(late)));
        assert_eq!(store.expiry_before_deprecation(&rows[0].id).await.unwrap(), Some(None));
        assert_eq!(store.expiry_before_deprecation(&rows[7].id).await.unwrap(), None);
        assert_eq!(table.undo_deprecation(DeprecatedKeys::Upgraded, &mut ()).await.unwrap(), 1);
        assert_eq!(expiries(&store, &[0, 1]).await, [None, Some(earlier)]);

        assert_eq!(table.undo_deprecation(DeprecatedKeys::All, &mut ()).await.unwrap(), 2);
        let mut restored = before.clone();
        restored[7] = Some(other);
        assert_eq!(expiries(&store, &[0, 1, 2, 3, 4, 5, 6, 7]).await, restored);
        assert_eq!(table.undo_deprecation(DeprecatedKeys::All, &mut ()).await.unwrap(), 0, "twice");
        assert_eq!(table.count_deprecated(DeprecatedKeys::All).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_a_deprecation_does_not_bring_back_what_was_rotated() {
    for (table, store, _folder) in tables().await {
        let rows: Vec<_> = (0..2).map(legacy).collect();
        add(&store, &rows).await;
        let date = noon() + 7 * DAY;
        table.deprecate(&KeyFilter::legacy(None), date, &mut ()).await.unwrap();
        let manager = KeyManager::new(store.clone(), &one_secret()).with_clock(clock_at_noon());
        // Longer than the deprecation leaves it.
        let rotation = Rotation::default().overlap(30 * DAY);
        let _ = manager.rotate(&rows[0].id, rotation).await.unwrap();
        assert_eq!(table.undo_deprecation(DeprecatedKeys::All, &mut ()).await.unwrap(), 1);
        let expiry =
            async |row: &KeyRecord| store.find_by_id(&row.id).await.unwrap().unwrap().expires_at;
        let rotated = expiry(&rows[0]).await.expect("the old key still ends");
        assert!(rotated <= date && rotated > date - Duration::from_millis(1), "{rotated:?}");
        assert_eq!(expiry(&rows[1]).await, None, "the other one is restored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_gets_the_expiry_from_before_a_deprecation() {
    for (table, store, _folder) in tables().await {
        let mut rows: Vec<_> = (0..3).map(legacy).collect();
        rows[1].expires_at = Some(noon() + 90 * DAY);
        rows[2].expires_at = Some(noon() + 2 * DAY); // earlier than the deprecation's
        add(&store, &rows).await;
        let date = noon() + 7 * DAY;
        let filter = KeyFilter::legacy(None);
        assert_eq!(table.deprecate(&filter, date, &mut ()).await.unwrap(), 2);
        // Caches pass the question on.
        #[cfg(feature = "redis")]
        {
            let client = redis::Client::open("redis://127.0.0.1:1").unwrap();
            let (ring, options) = (one_secret(), lexikon_auth::store::RedisOptions::default());
            let tier =
                lexikon_auth::store::RedisStore::new(store.clone(), client, &ring, options).await;
            let before = tier.expiry_before_deprecation(&rows[1].id).await.unwrap();
            assert_eq!(before, Some(rows[1].expires_at));
        }
        let manager = KeyManager::new(
            CachedStore::new(store.clone(), CacheOptions::default()),
            &one_secret(),
        );
        let manager = manager.with_clock(clock_at_noon());
        for row in &rows {
            let issued = manager.rotate(&row.id, Rotation::default().overlap(DAY)).await.unwrap();
            assert_eq!(issued.record.expires_at, row.expires_at);
            assert_eq!(
                store.find_by_id(&row.id).await.unwrap().unwrap().expires_at,
                Some(noon() + DAY)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deprecation_that_is_interrupted_is_run_again_and_does_the_rest() {
    const KEYS: u32 = 2500;
    for (table, store, _folder) in tables().await {
        let rows: Vec<_> = (0..KEYS).map(legacy).collect();
        for batch in rows.chunks(1000) {
            assert_eq!(table.import(batch).await.unwrap().added, batch.len() as u64);
        }
        let (filter, date) = (KeyFilter::legacy(None), noon() + DAY);
        let reached = Arc::new(Notify::new());
        let first_batch = reached.clone();
        let first = {
            let (table, filter) = (table.clone(), filter.clone());
            tokio::spawn(async move {
                let mut observer = Observer { reached: Some(first_batch), ..Observer::default() };
                table.deprecate(&filter, date, &mut observer).await
            })
        };
        reached.notified().await;
        first.abort();
        let ended = first.await;
        let left = table.count_deprecatable(&filter, date).await.unwrap();
        assert!(left <= 1500, "the first batch is durable: {left} left");
        if ended.is_err() {
            assert_eq!(left % 500, 0, "a batch is done as a whole or not at all: {left} left");
        }

        let mut observer = Observer::default();
        let rest = table.deprecate(&filter, date, &mut observer).await;
        assert_eq!(rest.unwrap(), left);
        let steps: Vec<_> = observer.seen.iter().flatten().copied().collect();
        assert!(steps.is_sorted() && steps.last().copied().unwrap_or_default() == left);
        assert_eq!(expiry(&store, KEYS - 1).await, Some(date));
        assert_eq!(
            table.undo_deprecation(DeprecatedKeys::All, &mut ()).await.unwrap(),
            u64::from(KEYS)
        );
        assert_eq!(expiry(&store, 0).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_batch_is_told_before_the_next_begins_and_an_observer_ends_a_change() {
    for (table, _store, _folder) in tables().await {
        let rows: Vec<_> = (0..2500).map(legacy).collect();
        for batch in rows.chunks(1000) {
            table.import(batch).await.unwrap();
        }
        let filter = KeyFilter::legacy(None);
        let in_force = async || table.count(&filter.clone().in_force()).await.unwrap();
        let mut observer = Observer { ends_before: Some(2), ..Observer::default() };
        let ended = table.revoke_all(&filter, "why", &mut observer).await;
        assert!(matches!(ended, Err(Ended::Asked)), "{ended:?}");
        assert_eq!(observer.seen, [None, Some(1000), None]);
        assert_eq!(in_force().await, 1500, "what was changed stays changed, and nothing else is");
        let mut observer = Observer::default();
        assert_eq!(table.revoke_all(&filter, "why", &mut observer).await.unwrap(), 1500);
        assert_eq!(observer.seen, [None, Some(1000), None, Some(1500)]);
    }
}

/// Notes what it sees: `None` before a batch, and how many rows were changed after it.
#[derive(Default)]
struct Observer {
    seen: Vec<Option<u64>>,
    reached: Option<Arc<Notify>>,
    /// The number of a batch, from 1.
    ends_before: Option<usize>,
}

#[derive(Debug)]
enum Ended {
    Asked,
    Failed(#[expect(dead_code, reason = "for whoever reads why a test failed")] StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl BatchObserver for Observer {
    type Error = Ended;

    async fn before_batch(&mut self) -> Result<(), Ended> {
        self.seen.push(None);
        let begun = self.seen.iter().filter(|seen| seen.is_none()).count();
        if self.ends_before == Some(begun) { Err(Ended::Asked) } else { Ok(()) }
    }

    async fn after_batch(&mut self, changed: u64) -> Result<(), Ended> {
        self.seen.push(Some(changed));
        if let Some(reached) = &self.reached {
            reached.notify_one();
        }
        Ok(())
    }
}

/// Holds a batch up, in its turn.
#[cfg(feature = "redis")]
#[derive(Default)]
struct Gate {
    reached: Arc<Notify>,
    opened: Arc<Notify>,
}

#[cfg(feature = "redis")]
impl BatchObserver for Gate {
    type Error = StoreError;

    async fn before_batch(&mut self) -> Result<(), StoreError> {
        self.reached.notify_one();
        self.opened.notified().await;
        Ok(())
    }
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn work_in_a_turn_waits_for_the_batch_that_is_under_way() {
    for (table, store, _folder) in tables().await {
        add(&store, &[legacy(1)]).await;
        let mut gate = Gate::default();
        let (reached, opened) = (gate.reached.clone(), gate.opened.clone());
        let filter = KeyFilter::legacy(None);
        let change = table.revoke_all(&filter, "why", &mut gate);
        let look = async {
            let record = store.find_by_id(&numbered(1).id).await?.unwrap();
            Ok::<_, StoreError>(record.is_revoked())
        };
        let waiting = async {
            reached.notified().await;
            let open = async {
                sleep(Duration::from_millis(300)).await;
                opened.notify_one();
            };
            tokio::join!(table.in_turn(look), open).0
        };
        let (revoked, was_committed) = tokio::join!(change, waiting);
        assert_eq!((revoked.unwrap(), was_committed.unwrap()), (1, true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_revoked_and_expired_in_batches() {
    for (table, store, _folder) in tables().await {
        let mut rows: Vec<_> = (0..4).map(legacy).collect();
        rows[1].format = Some(HashFormat::HmacSha256);
        rows[1].expires_at = Some(noon());
        rows[2].revocation = Some(Box::default());
        rows[2].expires_at = Some(noon());
        rows[3].expires_at = Some(noon() + DAY);
        add(&store, &rows).await;
        assert_eq!(table.count_expired().await.unwrap(), 1);
        assert_eq!(table.expire(&mut ()).await.unwrap(), 1);
        let filter = KeyFilter::legacy(None);
        let revoked = table.revoke_all(&filter, "why", &mut ()).await.unwrap();
        assert_eq!(revoked, 2);
        let mut reasons = BTreeMap::new();
        let all = KeyFilter::default();
        let listed = table.each_key(&all, |key| {
            let revocation = key.record.revocation.unwrap();
            reasons.insert(key.record.id.to_string(), (revocation.reason, revocation.at));
            Ok::<_, StoreError>(())
        });
        listed.await.unwrap();
        let reasons: Vec<_> = reasons.into_values().collect();
        let (why, expired) = (Some("why".into()), Some("expired".into()));
        let at = Some(noon());
        assert_eq!(reasons, [(why.clone(), at), (expired, at), (None, None), (why, at)]);
        assert_eq!(table.revoke_all(&filter, "why", &mut ()).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_keeps_its_clock_when_its_schema_is_extended() {
    for (table, store, _folder) in tables().await {
        let mut row = legacy(0);
        row.expires_at = Some(noon() + DAY);
        add(&store, &[row]).await;
        let later = a_day_later(&table).extend_schema().await.unwrap();
        assert_eq!(later.count_expired().await.unwrap(), 1);
        let later = later.with_time_zone(&TimeZone::UTC).unwrap();
        assert_eq!(later.count_expired().await.unwrap(), 1);
        assert_eq!(table.count_expired().await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_what_is_known_and_from_where() {
    for (table, store, _folder) in tables().await {
        let mut rows: Vec<_> = (0..8).map(legacy).collect();
        rows[0].last_used_at = Some(noon() - Duration::from_secs(3600));
        rows[1].last_used_at = Some(noon() - 3 * DAY);
        rows[1].owner = "user-2".into();
        rows[2].last_used_at = Some(noon() - 8 * DAY);
        rows[3].format = None; // by date
        rows[3].last_used_at = rows[0].last_used_at;
        rows[4].format = None;
        rows[4].created_at = None; // unknown
        rows[5].format = Some(HashFormat::HmacSha256);
        rows[6].expires_at = Some(noon());
        rows[7].revocation = Some(Box::default());
        add(&store, &rows).await;

        let status = table.migration_status(Some(noon())).await.unwrap();
        let classes: Vec<_> = status
            .classes
            .iter()
            .map(|class| {
                let used = (class.used_in_day, class.used_in_week);
                let known = (class.format.as_str(), class.by_date);
                (known, class.keys, class.in_force, used, class.owners)
            })
            .collect();
        let expected = [
            (("hmac-sha256", false), 1, 1, (0, 0), 1),
            (("sha256", false), 4, 3, (1, 2), 2),
            (("sha256", true), 1, 1, (1, 1), 1),
            (("unknown", false), 1, 1, (0, 0), 1),
        ];
        assert_eq!(classes, expected);
        let impact = status.impact;
        let impact = (impact.keys, impact.used_in_week, impact.owners, impact.unknown);
        assert_eq!(impact, (4, 3, 2, 1));

        let legacy = KeyFilter::legacy(Some(noon()));
        let recent = legacy.clone().used_since(noon() - 5 * DAY);
        let days = table.last_uses_by_day(&recent).await.unwrap();
        let counts: Vec<_> = days.iter().map(|uses| uses.keys).collect();
        assert_eq!(counts, [1, 2]);
        assert!(days[0].day < days[1].day && days[0].day.len() == 10, "{days:?}");
        let days = table.last_uses_by_day(&legacy).await.unwrap();
        let counts: Vec<_> = days.iter().map(|uses| uses.keys).collect();
        assert_eq!(counts, [1, 1, 2], "keys that were never used are left out");

        // Without the date, less is known.
        let status = table.migration_status(None).await.unwrap();
        assert_eq!((status.impact.keys, status.impact.unknown), (3, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_what_they_say() {
    for (table, store, _folder) in tables().await {
        let mut rows: Vec<_> = (0..5).map(legacy).collect();
        rows[0].last_used_at = Some(noon() - DAY);
        rows[1].owner = "user-0".into();
        rows[1].expires_at = Some(noon() + DAY);
        rows[2].format = None;
        rows[2].created_at = Some(noon());
        rows[3].format = Some(HashFormat::HmacSha256);
        rows[4].revocation = Some(Box::default());
        add(&store, &rows).await;
        let all = KeyFilter::default;
        let key = |numbers: &[u32]| -> Vec<String> {
            numbers.iter().map(|number| numbered(*number).id.to_string()).collect()
        };
        let expectations: [(KeyFilter, &[u32]); 18] = [
            (all(), &[0, 1, 2, 3, 4]),
            (all().by_owner(), &[1, 0, 2, 3, 4]),
            (all().owner("user-0"), &[1]),
            (all().owner("nobody"), &[]),
            (all().format(KnownFormat::HmacSha256), &[3]),
            (all().format(KnownFormat::Unknown), &[2]),
            (KeyFilter::legacy(None), &[0, 1, 4]),
            (KeyFilter::legacy(Some(noon() + DAY)), &[0, 1, 2, 4]),
            (all().used_since(noon() - DAY), &[0]),
            (all().used_since(noon()), &[]),
            (all().unused_since(noon()), &[0, 1, 3, 4]),
            (all().unused_since(noon() - DAY), &[1, 3, 4]),
            (all().expiring_before(noon() + 2 * DAY), &[1]),
            (all().in_force(), &[0, 1, 2, 3]),
            (all().usable().owner("user-0"), &[1]),
            (all().unrevoked(), &[0, 1, 2, 3]),
            (all().bound_to_secret_before(noon()), &[3]),
            (all().bound_to_secret_before(noon() + DAY), &[2, 3]),
        ];
        for (filter, expected) in expectations {
            assert_eq!(ids(&table, &filter).await, key(expected), "{filter:?}");
        }
        let later = a_day_later(&table);
        assert_eq!(ids(&later, &all().in_force()).await, key(&[0, 2, 3]));
        assert_eq!(ids(&later, &all().usable().owner("user-0")).await, key(&[]));
        // The owner may be enabled again.
        let mut disabled = legacy(5);
        (disabled.owner, disabled.owner_active) = ("user-9".into(), false);
        table.import(&[disabled]).await.unwrap();
        let disabled = || all().owner("user-9");
        assert_eq!(ids(&table, &disabled().in_force()).await, key(&[]));
        assert_eq!(ids(&table, &disabled().usable()).await, key(&[5]));
        // What the callback answers ends the list.
        let mut seen = 0;
        let filter = all();
        let ended = table.each_key(&filter, |_| {
            seen += 1;
            Err(StoreError::Conflict)
        });
        assert!(matches!(ended.await, Err(StoreError::Conflict)));
        assert_eq!(seen, 1);
        assert_eq!(table.count(&filter).await.unwrap(), 6, "the connection is good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_adds_all_or_nothing_and_can_be_run_again() {
    for (table, store, _folder) in tables().await {
        let mut rows: Vec<_> = (0..3).map(legacy).collect();
        rows[1].owner = "disabled".into();
        rows[1].owner_active = false;
        rows[2].revocation = Some(Box::default());
        let imported = table.import(&rows).await.unwrap();
        assert_eq!((imported.added, imported.unchanged), (3, 0));
        assert_eq!(*store.find_by_id(&rows[1].id).await.unwrap().unwrap(), rows[1]);

        // Traces of use come and go in between.
        let usage = lexikon_auth::store::Usage {
            id: rows[0].id.clone(),
            at: noon(),
            format: HashFormat::Sha256,
        };
        store.record_usage(&[usage]).await.unwrap();
        rows.push(legacy(3));
        let imported = table.import(&rows).await.unwrap();
        assert_eq!((imported.added, imported.unchanged), (1, 3));

        let mut other_name = legacy(0);
        other_name.name = "another".into();
        let mut other_id = legacy(1);
        other_id.id = "another".into();
        let imported = table.import(&[legacy(4), other_name, other_id]).await.unwrap();
        assert_eq!((imported.added, imported.unchanged), (0, 0));
        assert_eq!(imported.conflicts, [legacy(0).id, "another".into()]);
        assert!(store.find_by_id(&legacy(4).id).await.unwrap().is_none(), "all or nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_follow_the_stored_policy() {
    for (table, _, _folder) in tables().await {
        assert!(table.policies(9).await.unwrap().is_empty());
        let verifier = Arc::new(Verifier::new(table.store(), one_secret()));
        verifier.set_legacy_policy(LegacyPolicy::UpgradeOnUse);
        let follower = verifier.follow_policy(Source(table.clone())).await.unwrap();
        assert_eq!(verifier.legacy_policy(), LegacyPolicy::Accept, "that of its Policy");

        let until = LegacyPolicy::AcceptUntil(noon());
        for policy in [LegacyPolicy::Shadow, until, LegacyPolicy::Refuse] {
            table.set_policy(policy, "somebody").await.unwrap();
            for _ in 0..100 {
                if verifier.legacy_policy() == policy {
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(verifier.legacy_policy(), policy);
        }
        drop(follower);
        a_day_later(&table).set_policy(LegacyPolicy::Accept, "somebody else").await.unwrap();
        let history = table.policies(2).await.unwrap();
        let history: Vec<_> = history
            .iter()
            .map(|stored| (stored.policy, &*stored.changed_by, stored.changed_at))
            .collect();
        let expected = [
            (LegacyPolicy::Accept, "somebody else", noon() + DAY),
            (LegacyPolicy::Refuse, "somebody", noon()),
        ];
        assert_eq!(history, expected);
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(verifier.legacy_policy(), LegacyPolicy::Refuse, "followed no more");
    }
}

/// What a table says of the policy, by the stores' own way of reading it.
struct Source(KeyTable);

impl PolicySource for Source {
    async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
        Ok(self.0.policies(1).await?.first().map(|stored| stored.policy))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_read_the_policy_as_it_was_set() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open_or_create(folder.path().join("keys.db")).await.unwrap();
    let postgres = PostgresStore::connect(postgres::database().await).await.unwrap();
    let policies = [
        LegacyPolicy::Accept,
        LegacyPolicy::AcceptUntil(noon() + Duration::from_micros(1)),
        LegacyPolicy::UpgradeOnUse,
        LegacyPolicy::Shadow,
        LegacyPolicy::Refuse,
    ];
    assert_eq!(sqlite.legacy_policy().await.unwrap(), None);
    assert_eq!(postgres.legacy_policy().await.unwrap(), None);
    for policy in policies {
        KeyTable::from(sqlite.clone()).set_policy(policy, "x").await.unwrap();
        KeyTable::from(postgres.clone()).set_policy(policy, "x").await.unwrap();
        assert_eq!(sqlite.legacy_policy().await.unwrap(), Some(policy));
        assert_eq!(postgres.legacy_policy().await.unwrap(), Some(policy));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_source_is_gone_a_verifier_keeps_its_policy() {
    struct Broken;
    impl PolicySource for Broken {
        async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
            Err(StoreError::Unavailable("gone".into()))
        }
    }
    let (table, ..) = tables().await.remove(0);
    let verifier = Arc::new(Verifier::new(table.store(), one_secret()));
    assert!(verifier.follow_policy(Broken).await.is_err(), "nothing is known at the start");

    struct Once(std::sync::atomic::AtomicBool);
    impl PolicySource for Once {
        async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
            match self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                false => Ok(Some(LegacyPolicy::Refuse)),
                true => Err(StoreError::Unavailable("gone".into())),
            }
        }
    }
    let _follower = verifier.follow_policy(Once(false.into())).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(verifier.legacy_policy(), LegacyPolicy::Refuse);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_known_by_fingerprint_and_by_when_they_became_current() {
    for (table, _, _folder) in tables().await {
        assert!(table.secrets().await.unwrap().is_empty());
        table.check_secrets(&one_secret()).await.unwrap();
        let (old, new) = (secret(SECRETS[0]), secret(SECRETS[1]));
        assert!(table.check_secrets(&ring(&SECRETS[1..2])).await.is_err());
        assert!(!table.switch_to_secret(&new).await.unwrap(), "not known yet");
        table.add_secret(&new).await.unwrap();
        assert!(table.switch_to_secret(&new).await.unwrap());
        assert!(a_day_later(&table).switch_to_secret(&new).await.unwrap());
        let known = table.secrets().await.unwrap();
        let since: BTreeMap<_, _> =
            known.iter().map(|known| (known.fingerprint.clone(), known.current_since)).collect();
        assert_eq!(since[&new.fingerprint().to_string()], Some(noon()), "the first time stands");
        assert_eq!(since[&old.fingerprint().to_string()], None);
        assert!(table.forget_secret(&old.fingerprint().to_string()).await.unwrap());
        assert!(!table.forget_secret(&old.fingerprint().to_string()).await.unwrap());
        assert!(table.check_secrets(&one_secret()).await.is_err());
        table.check_secrets(&ring(&SECRETS[1..2])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_leaves_nothing_behind() {
    for (table, _, _folder) in tables().await {
        table.try_round_trip(&one_secret()).await.unwrap();
        assert_eq!(table.count(&KeyFilter::default()).await.unwrap(), 0);
        assert!(table.has_hash_index().await.unwrap());
        assert!(table.missing_schema().await.unwrap().is_empty());
    }
}
