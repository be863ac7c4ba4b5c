//! Changes of many rows: batch by batch, observed, in turn.

use super::*;

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
