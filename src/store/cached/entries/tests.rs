//! The entries and the index agree, whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    id: u8,
    owner: u8,
    is_final: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert { cache_key: u8, found: Option<Found> },
    Invalidate(Target),
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Key(u8),
    Owner(u8),
    Added,
    All,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entry = (0..8_u8, 0..3_u8, any::<bool>());
    let entry = entry.prop_map(|(id, owner, is_final)| Found { id, owner, is_final });
    let insert = (0..16_u8, proptest::option::weighted(0.9, entry));
    let target = prop_oneof![
        4 => (0..8_u8).prop_map(Target::Key),
        4 => (0..3_u8).prop_map(Target::Owner),
        1 => Just(Target::Added),
        1 => Just(Target::All),
    ];
    let step = prop_oneof![
        8 => insert.prop_map(|(cache_key, found)| Step::Insert { cache_key, found }),
        3 => target.prop_map(Step::Invalidate),
    ];
    vec(step, 0..100)
}

/// The rules, without any index.
#[derive(Default)]
struct Model(BTreeMap<u8, Option<Found>>);

impl Model {
    fn take(&mut self, step: Step) {
        match step {
            Step::Insert { cache_key, found } => {
                if let Some(new) = found {
                    self.0.retain(|_, found| found.is_none_or(|found| found.id != new.id));
                }
                self.0.insert(cache_key, found);
            }
            Step::Invalidate(target) => self.0.retain(|_, kept| match (target, kept) {
                (Target::Key(id), kept) => kept.is_none_or(|kept| kept.id != id),
                (Target::Owner(owner), kept) => kept.is_none_or(|kept| kept.owner != owner),
                (Target::Added, kept) => kept.is_some_and(|kept| kept.is_final),
                (Target::All, _) => false,
            }),
        }
    }
}

fn cache_key(number: u8) -> KeyHash {
    KeyHash::from_bytes([number; 32])
}

fn take(entries: &Entries, step: Step) {
    match step {
        Step::Insert { cache_key: number, found } => {
            let record = found.map(|entry| {
                let (id, owner) = (entry.id.to_string(), entry.owner.to_string());
                Arc::new(KeyRecord::new(id.into(), owner.into(), cache_key(number)))
            });
            let is_final = found.is_some_and(|entry| entry.is_final);
            let loaded = Loaded { record, is_final };
            entries.insert(cache_key(number), &loaded, entries.position(), entries.now());
        }
        Step::Invalidate(target) => entries.invalidate(match target {
            Target::Key(id) => Change::Key(id.to_string().into()),
            Target::Owner(owner) => Change::Owner(owner.to_string().into()),
            Target::Added => Change::Added,
            Target::All => Change::All,
        }),
    }
}

/// Returns the entries, after a check that the index has just those.
fn contents(entries: &Entries) -> BTreeMap<u8, Option<Found>> {
    let State { index, .. } = &*entries.state();
    let (mut by_id, mut by_owner) = (HashMap::new(), BTreeSet::new());
    let mut all = BTreeMap::new();
    for (cache_key, Entry { record, .. }) in entries.known.iter() {
        by_id.insert(record.id.clone(), cache_key);
        by_owner.insert((record.owner.clone(), *cache_key.as_bytes()));
        let number = |text: String| text.parse().expect("a number");
        let entry = Found {
            id: number(record.id.to_string()),
            owner: number(record.owner.to_string()),
            is_final: !index.provisional.contains(&cache_key),
        };
        all.insert(cache_key.as_bytes()[0], Some(entry));
    }
    assert_eq!(index.by_id, by_id);
    assert_eq!(index.by_owner, by_owner);
    assert!(index.provisional.iter().all(|cache_key| entries.known.peek(cache_key).is_some()));
    let unknown = entries.unknown.iter().map(|(cache_key, _)| (cache_key.as_bytes()[0], None));
    for (cache_key, none) in unknown {
        assert_eq!(all.insert(cache_key, none), None, "known and unknown at once");
    }
    all
}

proptest! {
    #[test]
    fn with_room_for_all_just_what_the_rules_say_is_kept(steps in steps()) {
        let (entries, mut model) = (Entries::new(CacheOptions::default()), Model::default());
        for step in steps {
            take(&entries, step);
            model.take(step);
            prop_assert_eq!(contents(&entries), model.0.clone());
        }
    }

    #[test]
    fn without_room_for_all_nothing_else_is_kept(steps in steps(), entries in 0..6_u64) {
        let options = CacheOptions::default().max_bytes(entries * 1024).max_unknown_bytes(1024);
        let (entries, mut model) = (Entries::new(options), Model::default());
        for step in steps {
            take(&entries, step);
            model.take(step);
            let contents = contents(&entries);
            // What was evicted may not come back.
            model.0.retain(|cache_key, _| contents.contains_key(cache_key));
            prop_assert_eq!(contents, model.0.clone());
        }
    }
}
