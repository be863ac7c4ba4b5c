//! The stored policy, and who follows it.

use super::*;

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
