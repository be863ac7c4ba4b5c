//! Key hashes, their formats, and the candidates of a presented key.

use std::fmt;

use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::crypto::hmac::{Blocks, DIGEST, Message};
use crate::crypto::key::{ApiKey, PresentedKey};
use crate::crypto::secret::{SecretRing, ServerSecret};

/// The 32-byte digest that a key is stored under. Comparison takes constant time.
///
/// Stores keep it as 64 lower-case hex digits. `Debug` prints the first eight, enough to find a row.
///
/// ```
/// use lexikon_auth::crypto::KeyHash;
/// let hash = KeyHash::from_hex(&"0123456789abcdef".repeat(4)).unwrap();
/// assert_eq!(format!("{hash:?}"), "KeyHash(01234567…)");
/// assert_eq!(hash.to_hex(), "0123456789abcdef".repeat(4));
/// ```
#[derive(Clone, Copy, Default)]
pub struct KeyHash([u8; DIGEST]);

impl KeyHash {
    /// Returns the hash with these bytes.
    pub const fn from_bytes(bytes: [u8; DIGEST]) -> Self {
        Self(bytes)
    }

    /// Reads 64 lower-case hex digits, the only form that is ever stored. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; DIGEST];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Returns the hash under which a new `key` is stored: HMAC-SHA-256 under `secret`.
    pub fn of(key: &ApiKey, secret: &ServerSecret) -> Self {
        Self(
            secret
                .hash_key()
                .authenticate(&Message::new(key.expose_secret().as_bytes(), &mut Blocks::empty())),
        )
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; DIGEST] {
        &self.0
    }

    /// Returns the hash as 64 lower-case hex digits.
    pub fn to_hex(&self) -> String {
        let mut text = [0; 2 * DIGEST];
        hex::encode_to_slice(self.0, &mut text).expect("two digits a byte");
        str::from_utf8(&text).expect("hex is ASCII").to_owned()
    }
}

impl ConstantTimeEq for KeyHash {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        // Four words folded into one, so that subtle's optimisation barrier is paid once, not 32 times.
        let words = |hash: &Self| -> [u64; 4] {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(hash.0.as_chunks::<8>().0) {
                *word = u64::from_ne_bytes(*bytes);
            }
            words
        };
        let difference =
            words(self).into_iter().zip(words(other)).fold(0, |all, (a, b)| all | (a ^ b));
        difference.ct_eq(&0)
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for KeyHash {}

impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}…)", &self.to_hex()[..8])
    }
}

/// How a key was turned into its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashFormat {
    /// HMAC-SHA-256 under a server secret: what this crate writes.
    HmacSha256,
    /// Plain SHA-256: what version 0.9 of the lexikon service wrote.
    Sha256,
}

impl HashFormat {
    /// Returns `hmac-sha256` or `sha256`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Sha256 => "sha256",
        }
    }

    /// Returns the format with this name, as [`as_str`](Self::as_str) gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::HmacSha256, Self::Sha256].into_iter().find(|format| format.as_str() == name)
    }
}

impl fmt::Display for HashFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Every hash that a presented key may be stored under, in order of preference: HMAC under the
/// current secret, under each retired one, and plain SHA-256 for an untagged key.
///
/// All are computed before any look-up, whatever the policy, so that timing does not tell which one
/// matched and a refusal can say that the legacy format is closed.
#[derive(Clone, Debug)]
pub struct Candidates {
    hashes: [KeyHash; Self::MAX],
    length: usize,
    legacy: bool,
}

impl Candidates {
    /// Most candidates that a key has.
    pub const MAX: usize = SecretRing::MAX_SECRETS + 1;

    /// Computes the candidates of `key`. `None` when it carries a tag that no secret of the ring made.
    ///
    /// A tagged key can be under any secret of the ring, not only the one that made its tag: its hash
    /// may have moved to a newer secret, and a rotation of secrets may have been rolled back since.
    #[inline]
    pub fn compute(key: &PresentedKey<'_>, ring: &SecretRing) -> Option<Self> {
        let tag_is_valid = !key.is_tagged() || key.tag_is_valid(ring).into();
        tag_is_valid.then(|| {
            let mut candidates = Self::none();
            candidates.fill(key, ring);
            candidates
        })
    }

    pub(crate) const fn none() -> Self {
        Self { hashes: [KeyHash([0; DIGEST]); Self::MAX], length: 0, legacy: false }
    }

    /// Computes the candidates of a key that has no tag, or a valid one. In place: to move a hash that
    /// has just been written is to wait for memory.
    #[inline]
    pub(crate) fn fill(&mut self, key: &PresentedKey<'_>, ring: &SecretRing) {
        self.legacy = !key.is_tagged();
        self.length = ring.retired().len() + 1 + usize::from(self.legacy);
        let [current, others @ ..] = &mut self.hashes[..self.length] else { return };
        let (retired, plain) = others.split_at_mut(ring.retired().len());

        let mut blocks = Blocks::empty();
        let message = Message::new(key.as_bytes(), &mut blocks);
        let secret = ring.current().hash_key();
        let inner = secret.begin(&message);
        if let [plain] = plain {
            message.sha256(&mut plain.0);
        }
        secret.finish(&inner, &mut current.0);
        for (hash, secret) in retired.iter_mut().zip(ring.retired()) {
            let secret = secret.hash_key();
            secret.finish(&secret.begin(&message), &mut hash.0);
        }
    }

    /// Returns the hashes, most preferred first; at least one. A store that finds several rows returns the
    /// row of the earliest hash.
    pub fn as_slice(&self) -> &[KeyHash] {
        &self.hashes[..self.length]
    }

    /// Returns the position of the candidate that equals `stored`, or [`u8::MAX`]: the comparison that decides.
    /// It looks at every candidate, in constant time.
    #[inline]
    pub(crate) fn position(&self, stored: &KeyHash) -> u8 {
        let mut position = u8::MAX;
        for (candidate, hash) in (0..).zip(self.as_slice()) {
            position.conditional_assign(&candidate, hash.ct_eq(stored));
        }
        position
    }

    /// Returns what the candidate is that equals `stored`.
    #[inline]
    pub(crate) fn matching(&self, stored: &KeyHash) -> Option<Match> {
        match usize::from(self.position(stored)) {
            position if position >= self.length => None,
            position if self.legacy && position == self.length - 1 => Some(Match::Legacy),
            0 => Some(Match::Current),
            _ => Some(Match::Retired),
        }
    }

    /// Returns one name for all candidates together, for caches: the same for the same key under the same
    /// secrets. Nobody can aim for one without the secrets, as each is the sum of HMACs with at most
    /// one plain hash.
    #[cfg(feature = "cache")]
    pub(crate) fn identity(&self) -> KeyHash {
        let mut sum = [0; DIGEST];
        for hash in self.as_slice() {
            sum.iter_mut().zip(hash.0).for_each(|(sum, byte)| *sum ^= byte);
        }
        KeyHash(sum)
    }

    /// Returns the hash that the key has under the current secret.
    pub(crate) fn current(&self) -> KeyHash {
        self.hashes[0]
    }
}

/// What a stored hash turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// HMAC-SHA-256 under the current secret.
    Current,
    /// HMAC-SHA-256 under a retired secret.
    Retired,
    /// Plain SHA-256.
    Legacy,
}

impl Match {
    pub(crate) fn format(self) -> HashFormat {
        match self {
            Self::Current | Self::Retired => HashFormat::HmacSha256,
            Self::Legacy => HashFormat::Sha256,
        }
    }
}
