//! What the table is asked, imports, secrets and the round trip.

use super::*;

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
