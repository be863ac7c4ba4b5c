//! Deprecations, and what undoing them gives back.

use super::*;

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
