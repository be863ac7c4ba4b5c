//! What the cache holds and what it is searched by stay the same, whatever happens in whatever order.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    id: u8,
    owner: u8,
    is_final: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Keep { question: u8, found: Option<Entry> },
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
    let entry = entry.prop_map(|(id, owner, is_final)| Entry { id, owner, is_final });
    let keep = (0..16_u8, proptest::option::weighted(0.9, entry));
    let target = prop_oneof![
        4 => (0..8_u8).prop_map(Target::Key),
        4 => (0..3_u8).prop_map(Target::Owner),
        1 => Just(Target::Added),
        1 => Just(Target::All),
    ];
    let step = prop_oneof![
        8 => keep.prop_map(|(question, found)| Step::Keep { question, found }),
        3 => target.prop_map(Step::Invalidate),
    ];
    vec(step, 0..100)
}

/// The rules, without any index.
#[derive(Default)]
struct Model(BTreeMap<u8, Option<Entry>>);

impl Model {
    fn take(&mut self, step: Step) {
        match step {
            Step::Keep { question, found } => {
                if let Some(new) = found {
                    self.0.retain(|_, kept| kept.is_none_or(|kept| kept.id != new.id));
                }
                self.0.insert(question, found);
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

fn question(number: u8) -> KeyHash {
    KeyHash::from_bytes([number; 32])
}

fn take(copies: &Copies, step: Step) {
    match step {
        Step::Keep { question: number, found } => {
            let record = found.map(|entry| {
                let (id, owner) = (entry.id.to_string(), entry.owner.to_string());
                Arc::new(KeyRecord::new(id.into(), owner.into(), question(number)))
            });
            let is_final = found.is_some_and(|entry| entry.is_final);
            let position = copies.ledger().changes.position();
            let reading = Reading { record, is_final };
            copies.keep(question(number), position, copies.now(), &reading);
        }
        Step::Invalidate(target) => copies.invalidate(match target {
            Target::Key(id) => Change::Key(id.to_string().into()),
            Target::Owner(owner) => Change::Owner(owner.to_string().into()),
            Target::Added => Change::Added,
            Target::All => Change::All,
        }),
    }
}

/// What is kept, after a look whether the ledger knows just that.
fn kept(copies: &Copies) -> BTreeMap<u8, Option<Entry>> {
    let ledger = copies.ledger();
    let (mut by_id, mut by_owner) = (HashMap::new(), BTreeSet::new());
    let mut all = BTreeMap::new();
    for (question, Kept { record, .. }) in copies.known.iter() {
        by_id.insert(record.id.clone(), question);
        by_owner.insert((record.owner.clone(), *question.as_bytes()));
        let number = |text: String| text.parse().expect("a number");
        let entry = Entry {
            id: number(record.id.to_string()),
            owner: number(record.owner.to_string()),
            is_final: !ledger.provisional.contains(&question),
        };
        all.insert(question.as_bytes()[0], Some(entry));
    }
    assert_eq!(ledger.by_id, by_id);
    assert_eq!(ledger.by_owner, by_owner);
    assert!(ledger.provisional.iter().all(|question| copies.known.peek(question).is_some()));
    let unknown = copies.unknown.iter().map(|(question, _)| (question.as_bytes()[0], None));
    for (question, none) in unknown {
        assert_eq!(all.insert(question, none), None, "known and unknown at once");
    }
    all
}

proptest! {
    #[test]
    fn with_room_for_all_just_what_the_rules_say_is_kept(steps in steps()) {
        let (copies, mut model) = (Copies::new(CacheOptions::default()), Model::default());
        for step in steps {
            take(&copies, step);
            model.take(step);
            prop_assert_eq!(kept(&copies), model.0.clone());
        }
    }

    #[test]
    fn without_room_for_all_nothing_else_is_kept(steps in steps(), entries in 0..6_u64) {
        let options = CacheOptions::default().max_bytes(entries * 1024).max_unknown_bytes(1024);
        let (copies, mut model) = (Copies::new(options), Model::default());
        for step in steps {
            take(&copies, step);
            model.take(step);
            let kept = kept(&copies);
            // What was evicted may not come back.
            model.0.retain(|question, _| kept.contains_key(question));
            prop_assert_eq!(kept, model.0.clone());
        }
    }
}
