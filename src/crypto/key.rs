//! The plaintext key: made once, presented many times, never stored.
//!
//! ```text
//! lxk_ + 43 random base62 characters (256 bits) + 8 base62 characters of keyed tag = 55 bytes
//! lxk_ + 16 to 124 base64url characters, as the lexikon service issued them (43)     untagged
//! ```
//!
//! 55 bytes is the longest message that fits one SHA-256 block, so HMAC costs two compressions.
//! Base62 lets a double click select the whole key.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::crypto::hmac::{Blocks, HmacKey, Message};
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::util::random::{EntropyError, fill_random};

/// What every key begins with.
pub const KEY_PREFIX: &str = "lxk_";
/// Length of an untagged key, in bytes.
const UNTAGGED_LENGTH: std::ops::RangeInclusive<usize> = 20..=128;
/// Random characters of a tagged key: 43 × log2(62) = 256.03 bits.
const RANDOM_LENGTH: usize = 43;
const TAG_LENGTH: usize = 8;
/// What the tag covers: prefix and random part.
const SIGNED_LENGTH: usize = KEY_PREFIX.len() + RANDOM_LENGTH;
const TAGGED_LENGTH: usize = SIGNED_LENGTH + TAG_LENGTH;

/// A freshly issued key, to be shown to its owner once.
///
/// The text is wiped when the value is dropped. `Debug` does not print it, there is no `Display`, no
/// `Clone` and no comparison: every read is a visible [`expose_secret`](ApiKey::expose_secret).
///
/// ```
/// # use lexikon_auth::{ApiKey, ServerSecret};
/// let secret = ServerSecret::new(&ServerSecret::generate()?)?;
/// let key = ApiKey::generate(&secret)?;
/// assert_eq!(key.expose_secret().len(), 55);
/// assert_eq!(format!("{key:?}"), "ApiKey([REDACTED])");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Draws a new key and signs it with `secret`'s tag.
    ///
    /// # Errors
    /// [`EntropyError`] when the operating system's random generator fails.
    pub fn generate(secret: &ServerSecret) -> Result<Self, EntropyError> {
        let mut text = Zeroizing::new([0; TAGGED_LENGTH]);
        text[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX.as_bytes());
        fill_base62(&mut text[KEY_PREFIX.len()..SIGNED_LENGTH])?;
        let tag =
            tag(secret.tag_key(), &Message::new(&text[..SIGNED_LENGTH], &mut Blocks::empty()));
        text[SIGNED_LENGTH..].copy_from_slice(&tag);
        // One allocation of the exact size: a buffer that grows would leave copies behind.
        let text: Box<str> = str::from_utf8(&*text).expect("base62 is ASCII").into();
        Ok(Self(text.into()))
    }

    /// Returns the plaintext: for the answer to the owner, and for nothing else.
    pub fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey([REDACTED])")
    }
}

/// Fills `out` with uniform base62 characters: 6 bits at a time, 62 and 63 rejected, no modulo.
fn fill_base62(mut out: &mut [u8]) -> Result<(), EntropyError> {
    let mut random = Zeroizing::new([0; 64]);
    while !out.is_empty() {
        fill_random(&mut *random)?;
        let accepted = random.iter().map(|byte| byte & 63).filter(|&value| value < 62);
        let mut filled = 0;
        for (slot, value) in out.iter_mut().zip(accepted) {
            *slot = base62(value);
            filled += 1;
        }
        out = &mut out[filled..];
    }
    Ok(())
}

/// Returns the base62 digit of a value below 62, in ASCII order. Arithmetic, because a table indexed by
/// secret data would leak it through the cache.
fn base62(value: u8) -> u8 {
    let upper = u8::from(value > 9) * (b'A' - b'9' - 1);
    let lower = u8::from(value > 35) * (b'a' - b'Z' - 1);
    b'0' + value + upper + lower
}

/// Returns the tag over a key's prefix and random part: 4 bytes of HMAC for each character. Scaling them to
/// 0..62 is off uniform by less than 2^-26.
fn tag(key: &HmacKey, signed: &Message<'_>) -> [u8; TAG_LENGTH] {
    let mac = key.authenticate(signed);
    let mut tag = [0; TAG_LENGTH];
    for (character, bytes) in tag.iter_mut().zip(mac.as_chunks::<4>().0) {
        let scaled = (u64::from(u32::from_be_bytes(*bytes)) * 62) >> 32;
        *character = base62(scaled as u8);
    }
    tag
}

/// A key as a caller presented it: well-formed, borrowed, not yet verified.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    text: &'a [u8],
    tagged: bool,
}

impl<'a> PresentedKey<'a> {
    /// Checks length, prefix and alphabet, in time that does not grow with the input.
    ///
    /// # Errors
    /// [`MalformedKey`] says what is wrong. It never holds the text.
    ///
    /// # Examples
    /// ```
    /// use lexikon_auth::crypto::{MalformedKey, PresentedKey};
    /// assert!(PresentedKey::parse(b"lxk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").is_ok());
    /// assert_eq!(PresentedKey::parse(b"lxk_").unwrap_err(), MalformedKey::Length);
    /// ```
    pub fn parse(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, MalformedKey> {
        let text = text.as_ref();
        if !UNTAGGED_LENGTH.contains(&text.len()) {
            return Err(MalformedKey::Length);
        }
        let body = text.strip_prefix(KEY_PREFIX.as_bytes()).ok_or(MalformedKey::Prefix)?;
        let alphabet = Alphabet::of(body);
        if !alphabet.base64url {
            return Err(MalformedKey::Alphabet);
        }
        Ok(Self { text, tagged: alphabet.base62 && text.len() == TAGGED_LENGTH })
    }

    /// Returns whether the key carries a tag: 51 base62 characters after the prefix.
    pub fn is_tagged(&self) -> bool {
        self.tagged
    }

    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        self.text
    }

    /// Returns whether a secret of the ring made the tag. Every secret is tried, in constant time.
    pub(crate) fn tag_is_valid(&self, ring: &SecretRing) -> Choice {
        let parts = self.text.split_first_chunk::<SIGNED_LENGTH>();
        let parts = parts.and_then(|(signed, tag)| Some((signed, tag.first_chunk()?)));
        let (signed, presented) = parts.expect("a tagged key has this length");
        let mut blocks = Blocks::empty();
        let signed = Message::new(signed, &mut blocks);
        let presented = u64::from_ne_bytes(*presented);
        let mut valid = Choice::from(0);
        for secret in ring.secrets() {
            valid |= u64::from_ne_bytes(tag(secret.tag_key(), &signed)).ct_eq(&presented);
        }
        valid
    }
}

/// Which alphabets a text keeps to.
struct Alphabet {
    base62: bool,
    base64url: bool,
}

impl Alphabet {
    /// Looks at sixteen characters at a time, the last sixteen overlapping, and leaves a mark for each
    /// place instead of a branch: the compiler makes three vector steps of it for a usual key.
    #[inline]
    fn of(body: &[u8]) -> Self {
        let mut not_base62 = [0; 16];
        let mut not_base64url = [0; 16];
        let mut look = |chunk: &[u8; 16]| {
            for ((byte, not_base62), not_base64url) in
                chunk.iter().zip(&mut not_base62).zip(&mut not_base64url)
            {
                let digit = byte.wrapping_sub(b'0') < 10;
                let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
                let extra = (*byte == b'-') | (*byte == b'_');
                let mark = |condition: bool| u8::from(condition).wrapping_neg();
                *not_base62 |= mark(!(digit | letter));
                *not_base64url |= mark(!(digit | letter | extra));
            }
        };
        look(body.last_chunk().expect("a body has at least 16 characters"));
        body.as_chunks().0.iter().for_each(look);
        Self { base62: not_base62 == [0; 16], base64url: not_base64url == [0; 16] }
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentedKey([REDACTED])")
    }
}

/// Why a text cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedKey {
    /// Not 20 to 128 bytes long. A key that this crate issues has 55 bytes, and one that the lexikon
    /// service issued 47; the bounds leave room for other keys without a tag.
    #[error("a key is 20 to 128 bytes long")]
    Length,
    /// Does not begin with `lxk_`.
    #[error("a key begins with lxk_")]
    Prefix,
    /// A character outside `A-Z a-z 0-9 - _` after the prefix.
    #[error("a key holds only A-Z a-z 0-9 - _")]
    Alphabet,
}
