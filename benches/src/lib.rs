//! What the groups share: the unit, secrets, stores full of keys, and the answer of a future that
//! never waits.

use std::error::Error;
use std::fs;
use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::thread::available_parallelism;
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::KeyHash;
use lexikon_auth::store::{KeyStore, MemoryStore, Revocation};
use lexikon_auth::{KeyId, KeyRecord, SecretRing, ServerSecret, Verifier};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

pub mod alternatives;

/// The name of the unit in every group.
pub const UNIT: &str = "three compressions";

/// Uses after which [`Verifier::spawn_flush`] would flush before its time: a run over more keys than
/// the verifier notes flushes that often, outside of what is timed.
pub const USES_A_FLUSH: u64 = 57_344;

/// Server secrets, current first.
pub const SECRETS: [&str; 3] = [
    "3f9a71c05be8d2466c07e19bd3825a4ff01e6b97ca58347d29b6e0c4135d8fa2",
    "b84c2e6f915d03a7d8e1467a0c9f35b2e72b50d4683fa91c1d60c785f2ae4b39",
    "60d7a3e81b4f925cc5380be7f61d29a493e5074fa8bd16c27e0c59f4b2168d3a",
];

/// A ring of the first `count` secrets.
pub fn ring(count: usize) -> SecretRing {
    let mut secrets = SECRETS[..count].iter().map(|&secret| {
        ServerSecret::new(&secret.to_owned().into()).expect("the secrets are strong")
    });
    let ring = SecretRing::new(secrets.next().expect("a ring holds a secret"));
    secrets.fold(ring, |ring, secret| ring.with_retired(secret).expect("the secrets differ"))
}

/// The answer of a future that is ready at once, as those of the memory store are: no runtime, and no
/// cost of one in the figures.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the memory store never waits"),
    }
}

/// What the keys of a store are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Issued by this crate.
    Tagged,
    /// Issued by version 1.0 of the service: no tag, stored as HMAC.
    Untagged,
    /// Issued by version 0.9 of the service: no tag, stored as plain SHA-256.
    Legacy,
    /// Tagged, past their expiry.
    Expired,
    /// Tagged, revoked.
    Revoked,
}

impl Kind {
    fn is_tagged(self) -> bool {
        !matches!(self, Self::Untagged | Self::Legacy)
    }
}

/// A verifier over a memory store, and the plaintext of every key in it, in random order.
pub struct Keys {
    pub verifier: Verifier<MemoryStore>,
    pub texts: Texts,
}

impl Keys {
    /// A store of `count` keys, all of one kind.
    pub fn new(kind: Kind, count: usize) -> Self {
        let store = MemoryStore::new();
        let mut rng = rng();
        let mut texts = Vec::with_capacity(count);
        for number in 0..count {
            let (text, record) = draw(kind, number, &mut rng);
            now(store.insert(&record)).expect("random keys differ");
            texts.push(text);
        }
        texts.shuffle(&mut rng);
        Self { verifier: Verifier::new(store, ring(1)), texts: Texts::new(&texts) }
    }
}

/// Keys that no store holds.
pub struct Strangers {
    /// Without a tag: nothing but the look-up tells.
    pub unknown: Texts,
    /// With a tag that no secret made.
    pub forged: Texts,
    /// With a space in the last place, which is where a parser finds it last.
    pub malformed: Texts,
}

impl Strangers {
    pub fn new(count: usize) -> Self {
        let rng = &mut rng();
        let mut texts = |alphabet: &[u8], length, end: &str| {
            let text = |_| format!("{}{end}", text(alphabet, length - end.len(), rng));
            Texts::new(&(0..count).map(text).collect::<Vec<_>>())
        };
        Self {
            unknown: texts(BASE64URL, 43, ""),
            forged: texts(BASE62, 51, ""),
            malformed: texts(BASE62, 51, " "),
        }
    }
}

/// Keys of one length, one behind the other in memory and presented in that order: as in a server, a
/// key has just arrived, while its record has not been touched for long.
pub struct Texts {
    all: String,
    length: usize,
}

impl Texts {
    pub fn new(texts: &[String]) -> Self {
        Self { all: texts.concat(), length: texts[0].len() }
    }

    pub fn count(&self) -> usize {
        self.all.len() / self.length
    }

    pub fn first(&self) -> &str {
        &self.all[..self.length]
    }

    /// All keys once.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.count()).map(|number| &self.all[number * self.length..][..self.length])
    }

    /// All keys over and over, from the one with this number on.
    pub fn endless<'a>(&'a self, first: usize) -> impl FnMut() -> &'a str {
        let mut start = first * self.length;
        move || {
            let text = &self.all[start..start + self.length];
            start += self.length;
            if start == self.all.len() {
                start = 0;
            }
            text
        }
    }
}

/// A key of this kind and its record, under the first of [`SECRETS`].
pub fn draw(kind: Kind, number: usize, rng: &mut StdRng) -> (String, KeyRecord) {
    let mut text = text(if kind.is_tagged() { BASE62 } else { BASE64URL }, 43, rng);
    if kind.is_tagged() {
        text += &alternatives::tag(&text);
    }
    let digest = match kind {
        Kind::Legacy => alternatives::sha256(&text),
        _ => alternatives::hmac_sha256(&text),
    };
    let (owner, hash) = (format!("user-{}", number / 10), KeyHash::from_bytes(digest));
    let id = KeyId::random().expect("the system gives random bytes");
    let mut record = KeyRecord::new(id, owner.as_str().into(), hash);
    record.name = "deploy".into();
    record.scopes = "read,write".into();
    record.created_at = Some(SystemTime::now());
    if kind == Kind::Expired {
        record.expires_at = Some(SystemTime::now() - Duration::from_secs(3600));
    }
    if kind == Kind::Revoked {
        record.revocation = Some(Box::new(Revocation::default()));
    }
    (text, record)
}

/// The same keys in every run.
pub fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BASE64URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn text(alphabet: &[u8], length: usize, rng: &mut StdRng) -> String {
    let character = |_| char::from(*alphabet.choose(rng).expect("an alphabet has characters"));
    "lxk_".chars().chain((0..length).map(character)).collect()
}

/// Processor, cores, compiler and date, for a line of text.
pub fn machine() -> Result<String, Box<dyn Error>> {
    let output = |program: &str, argument: &str| -> Result<String, Box<dyn Error>> {
        let output = Command::new(program).arg(argument).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value)
    };
    let has_sha = field("flags").split(' ').any(|flag| flag == "sha_ni");
    let model = format!("model {}", field("model\t"));
    let sha = if has_sha { "with SHA extensions" } else { "without SHA extensions" };
    let compiler = output("rustc", "--version")?;
    let compiler = compiler.split(" (").next().unwrap_or_default();
    Ok(format!(
        "{} ({model}, {sha}), {} cores, {compiler}, {}",
        field("model name"),
        available_parallelism()?,
        output("date", "+%F")?,
    ))
}
