//! The encoding of a record in Redis: bytes, and a MAC over them and the name that they are stored under.

use std::time::SystemTime;

use subtle::ConstantTimeEq;

use crate::crypto::hash::{HashFormat, KeyHash};
use crate::crypto::hmac::{Blocks, DIGEST, HmacKey, Message};
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, Revocation};
use crate::util::time::{from_microseconds, to_microseconds};

/// The layout. An entry of another one is not read.
const VERSION: u8 = 3;

/// Microseconds since 1970, by the clock of the Redis server.
pub(super) type ServerTime = u64;

/// One run of a server, from its start to its end or until it changes its master.
pub(super) type Run = u64;

/// The time between two invalidations of everything.
pub(super) type Generation = u64;

/// When a read began, by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timestamp {
    /// The run of the server. Another one may not have its marks of changes.
    pub(super) run: Run,
    /// The generation at that time. In another one the entry does not count.
    pub(super) generation: Generation,
    pub(super) time: ServerTime,
}

/// The parts of the name of an entry.
#[derive(Clone, Copy)]
pub(super) struct EntryName<'a> {
    pub(super) prefix: &'a str,
    pub(super) hash: &'a KeyHash,
}

impl EntryName<'_> {
    /// Returns what the MAC covers besides the bytes of the entry.
    fn associated_data(self) -> Vec<u8> {
        let mut bytes = self.hash.as_bytes().to_vec();
        write_text(self.prefix, &mut bytes);
        bytes
    }
}

/// A record, and until when it counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) record: KeyRecord,
    /// When the read that found the record began.
    pub(super) read_at: Timestamp,
    pub(super) valid_until: ServerTime,
}

impl Entry {
    pub(super) fn encode(&self, prefix: &str, key: &HmacKey) -> Vec<u8> {
        let mut bytes = EntryName { prefix, hash: &self.record.hash }.associated_data();
        let start = bytes.len();
        write(self, &mut bytes);
        let mac = key.authenticate(&Message::new(&bytes, &mut Blocks::empty()));
        bytes.drain(..start);
        bytes.extend(mac);
        bytes
    }

    /// Returns `None` for anything that no instance with one of the keys wrote under this very name.
    pub(super) fn decode<'k>(
        bytes: &[u8],
        name: EntryName<'_>,
        keys: impl IntoIterator<Item = &'k HmacKey>,
    ) -> Option<Self> {
        let (body, mac) = bytes.split_last_chunk::<DIGEST>()?;
        let signed = [&*name.associated_data(), body].concat();
        let mut blocks = Blocks::empty();
        let signed = Message::new(&signed, &mut blocks);
        let is_of = |key: &HmacKey| key.authenticate(&signed).ct_eq(mac).into();
        keys.into_iter().any(is_of).then(|| read(*name.hash, body))?
    }
}

fn write(entry: &Entry, bytes: &mut Vec<u8>) {
    let record = &entry.record;
    bytes.push(VERSION);
    let Timestamp { run, generation, time } = entry.read_at;
    for number in [run, generation, time, entry.valid_until] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(u8::from(record.owner_active));
    bytes.push(match record.format {
        None => 0,
        Some(HashFormat::HmacSha256) => 1,
        Some(HashFormat::Sha256) => 2,
    });
    write_time(record.created_at, bytes);
    write_time(record.expires_at, bytes);
    write_time(record.last_used_at, bytes);
    let id = record.id.to_string();
    for text in [&*id, record.owner.as_str(), &*record.name, record.scopes.as_str()] {
        write_text(text, bytes);
    }
    bytes.push(u8::from(record.is_revoked()));
    if let Some(revocation) = &record.revocation {
        write_time(revocation.at, bytes);
        bytes.push(u8::from(revocation.reason.is_some()));
        write_text(revocation.reason.as_deref().unwrap_or_default(), bytes);
    }
}

fn write_time(time: Option<SystemTime>, bytes: &mut Vec<u8>) {
    bytes.push(u8::from(time.is_some()));
    bytes.extend(time.map_or(0, to_microseconds).to_le_bytes());
}

fn write_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Reads what [`write`] wrote, all of it. The MAC has said that it is that; still nothing here panics.
fn read(hash: KeyHash, bytes: &[u8]) -> Option<Entry> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return None;
    }
    let read_at =
        Timestamp { run: reader.number()?, generation: reader.number()?, time: reader.number()? };
    let valid_until = reader.number()?;
    let owner_active = reader.flag()?;
    let format = match reader.byte()? {
        0 => None,
        1 => Some(HashFormat::HmacSha256),
        2 => Some(HashFormat::Sha256),
        _ => return None,
    };
    let (created_at, expires_at, last_used_at) = (reader.time()?, reader.time()?, reader.time()?);
    let id = KeyId::from(reader.text()?);
    let mut record = KeyRecord::new(id, OwnerId::from(reader.text()?), hash);
    record.owner_active = owner_active;
    record.format = format;
    record.created_at = created_at;
    record.expires_at = expires_at;
    record.last_used_at = last_used_at;
    record.name = reader.text()?.into();
    record.scopes = reader.text()?.into();
    if reader.flag()? {
        let (at, has_reason, reason) = (reader.time()?, reader.flag()?, reader.text()?);
        if !has_reason && !reason.is_empty() {
            return None;
        }
        let reason = has_reason.then(|| reason.into());
        record.revocation = Some(Box::new(Revocation { at, reason }));
    }
    reader.0.is_empty().then_some(Entry { record, read_at, valid_until })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().filter(|&byte| byte <= 1).map(|byte| byte == 1)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?.try_into().ok()?;
        str::from_utf8(self.take(length)?).ok()
    }

    /// Reads a time. The outer `None` is a failure.
    fn time(&mut self) -> Option<Option<SystemTime>> {
        let is_known = self.flag()?;
        let microseconds = i64::from_le_bytes(self.number()?.to_le_bytes());
        let time = is_known.then(|| from_microseconds(microseconds));
        (is_known || microseconds == 0).then_some(time)
    }
}

/// Checks, for the fuzzer, that the decoder never panics, and that what it reads has one encoding alone.
#[cfg(fuzzing)]
pub(crate) fn check(bytes: &[u8]) {
    if let Some(entry) = read(KeyHash::from_bytes([0; DIGEST]), bytes) {
        let mut written = Vec::new();
        write(&entry, &mut written);
        assert_eq!(written, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = SystemTime> {
        any::<i64>().prop_map(from_microseconds)
    }

    fn format() -> impl Strategy<Value = Option<HashFormat>> {
        of(prop_oneof![Just(HashFormat::HmacSha256), Just(HashFormat::Sha256)])
    }

    prop_compose! {
        fn entry()(
            hash: [u8; DIGEST],
            (id, owner, name, scopes) in (".*", ".*", ".*", ".*"),
            (owner_active, format) in (any::<bool>(), format()),
            (created_at, expires_at, last_used_at) in (of(time()), of(time()), of(time())),
            revocation in of((of(time()), of(".*"))),
            (run, generation, time, valid_until) in any::<(u64, u64, u64, u64)>(),
        ) -> Entry {
            let hash = KeyHash::from_bytes(hash);
            let mut record = KeyRecord::new((&*id).into(), (&*owner).into(), hash);
            (record.name, record.scopes) = (name.into(), (&*scopes).into());
            (record.owner_active, record.format) = (owner_active, format);
            (record.created_at, record.expires_at) = (created_at, expires_at);
            record.last_used_at = last_used_at;
            record.revocation = revocation.map(|(at, reason)| {
                Box::new(Revocation { at, reason: reason.map(Into::into) })
            });
            let read_at = Timestamp { run, generation, time };
            Entry { record, read_at, valid_until }
        }
    }

    const PREFIX: &str = "lexikon:";

    fn name(hash: &KeyHash) -> EntryName<'_> {
        EntryName { prefix: PREFIX, hash }
    }

    fn keys() -> [HmacKey; 2] {
        [HmacKey::new(b"one"), HmacKey::new(b"another")]
    }

    proptest! {
        #[test]
        fn an_entry_is_read_as_it_was_written(entry in entry()) {
            for key in &keys() {
                let bytes = entry.encode(PREFIX, key);
                let name = name(&entry.record.hash);
                prop_assert_eq!(Entry::decode(&bytes, name, &keys()), Some(entry.clone()));
            }
        }

        #[test]
        fn nothing_else_is_read(entry in entry(), at: usize, change in 1..=255u8, other: [u8; DIGEST]) {
            let [key, stranger] = keys();
            let mut bytes = entry.encode(PREFIX, &key);
            let own = name(&entry.record.hash);
            prop_assert_eq!(Entry::decode(&bytes, own, [&stranger]), None, "another secret's");
            let other = KeyHash::from_bytes(other);
            prop_assert_eq!(Entry::decode(&bytes, name(&other), [&key]), None, "moved");
            let elsewhere = EntryName { prefix: "lexikon", ..own };
            prop_assert_eq!(Entry::decode(&bytes, elsewhere, [&key]), None, "of another prefix");
            let at = at % bytes.len();
            prop_assert_eq!(Entry::decode(&bytes[..at], own, [&key]), None, "truncated");
            prop_assert_eq!(Entry::decode(&bytes[at + 1..], own, [&key]), None, "truncated");
            bytes[at] ^= change;
            prop_assert_eq!(Entry::decode(&bytes, own, [&key]), None, "altered");
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, version in 0..4u8) {
            let _ = read(KeyHash::from_bytes([0; DIGEST]), &[&[version], &*bytes].concat());
        }
    }

    #[test]
    fn an_entry_of_another_version_is_not_read() {
        let entry = Entry {
            record: KeyRecord::new("id".into(), "owner".into(), KeyHash::from_bytes([7; DIGEST])),
            read_at: Timestamp { run: 0, generation: 0, time: 1 },
            valid_until: 2,
        };
        let [key, _] = keys();
        let name = name(&entry.record.hash);
        let mut bytes = name.associated_data();
        let start = bytes.len();
        write(&entry, &mut bytes);
        bytes[start] = VERSION + 1;
        let mac = key.authenticate(&Message::new(&bytes, &mut Blocks::empty()));
        bytes.extend(mac);
        assert_eq!(Entry::decode(&bytes[start..], name, [&key]), None);
    }
}
