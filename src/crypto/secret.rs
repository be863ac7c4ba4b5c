//! The server secret and the ring of secrets that verify: loading, strength, subkeys, fingerprints.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::hmac::{Blocks, HmacKey, Message};
use crate::util::random::{EntropyError, fill_random};

/// Environment variable that holds the current secret.
const CURRENT: &str = "API_KEY_SECRET";
/// Environment variable that holds the secret before it.
const PREVIOUS: &str = "API_KEY_SECRET_PREVIOUS";

/// Shortest secret that is taken, in bytes: the output size of SHA-256, as RFC 2104 section 3 asks.
const MIN_LENGTH: usize = 32;
/// Fewest different bytes that a secret may hold. Of 32 random hex digits, fewer than 8 differ less
/// than once in 10^7 draws.
const MIN_DISTINCT: usize = 8;
/// Longest secret file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// What a secret copied from documentation contains, in lower case, letters and digits only.
const PLACEHOLDERS: [&str; 13] = [
    "changeinproduction",
    "changeit",
    "changeme",
    "changethis",
    "devsecret",
    "donotuse",
    "examplesecret",
    "insecure",
    "placeholder",
    "replaceme",
    "replacewith",
    "yourapikey",
    "yoursecret",
];

/// A server secret, reduced to what verification needs of it: HMAC states, wiped on drop.
///
/// The text itself is not kept. `Debug` shows the [fingerprint](Self::fingerprint).
#[derive(Clone)]
pub struct ServerSecret {
    hash_key: HmacKey,
    tag_key: HmacKey,
    fingerprint: SecretFingerprint,
}

impl ServerSecret {
    /// Takes the secret's UTF-8 bytes as they are: a hex text is not decoded. A `String` becomes a
    /// [`SecretString`] by `into()`, and is wiped with it.
    ///
    /// # Errors
    /// [`SecretError`] when the secret is shorter than 32 bytes, a placeholder from documentation, or
    /// made of fewer than 8 different bytes.
    ///
    /// # Examples
    /// ```
    /// use lexikon_auth::ServerSecret;
    /// assert!(ServerSecret::new(&"changeme".into()).is_err());
    /// assert!(ServerSecret::new(&ServerSecret::generate()?).is_ok());
    ///
    /// let text = "1f4a6c0c55ab2e5b0e0a9d3f7c8e4b12".to_owned(); // from your own configuration
    /// assert!(ServerSecret::new(&text.into()).is_ok());
    /// # Ok::<(), lexikon_auth::crypto::EntropyError>(())
    /// ```
    pub fn new(secret: &SecretString) -> Result<Self, SecretError> {
        Self::named("the server secret", secret.expose_secret().as_bytes())
    }

    /// Draws a good secret: 64 hex digits of 256 random bits, to be kept by the operator.
    ///
    /// # Errors
    /// [`EntropyError`] when the operating system's random generator fails.
    pub fn generate() -> Result<SecretString, EntropyError> {
        let mut random = Zeroizing::new([0; 32]);
        fill_random(&mut *random)?;
        let mut text = Zeroizing::new([0; 64]);
        hex::encode_to_slice(*random, &mut *text).expect("two digits a byte");
        let text: Box<str> = str::from_utf8(&*text).expect("hex is ASCII").into();
        Ok(text.into())
    }

    /// Returns a public name for the secret: equal for equal secrets, and no help in finding it.
    pub fn fingerprint(&self) -> SecretFingerprint {
        self.fingerprint
    }

    fn named(name: &str, secret: &[u8]) -> Result<Self, SecretError> {
        check_strength(name, secret)?;
        let hash_key = HmacKey::new(secret);
        let mut fingerprint = SecretFingerprint([0; 8]);
        let digest = subkey(&hash_key, "fingerprint");
        fingerprint.0.copy_from_slice(&digest[..8]);
        let tag_key = HmacKey::new(&*subkey(&hash_key, "key tag"));
        Ok(Self { hash_key, tag_key, fingerprint })
    }

    pub(crate) fn hash_key(&self) -> &HmacKey {
        &self.hash_key
    }

    pub(crate) fn tag_key(&self) -> &HmacKey {
        &self.tag_key
    }

    /// Returns the key that entries in Redis are authenticated under.
    #[cfg(feature = "redis")]
    pub(crate) fn entry_key(&self) -> HmacKey {
        HmacKey::new(&*subkey(&self.hash_key, "redis entry"))
    }
}

impl fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerSecret({})", self.fingerprint)
    }
}

/// Returns a subkey for one purpose: HMAC as a pseudorandom function over a label (NIST SP 800-108r1,
/// section 4). No label begins with `lxk_`, so a subkey is never the hash of a key.
fn subkey(secret: &HmacKey, purpose: &str) -> Zeroizing<[u8; 32]> {
    let label = format!("lexikon-auth v1 {purpose}");
    Zeroizing::new(secret.authenticate(&Message::new(label.as_bytes(), &mut Blocks::empty())))
}

fn check_strength(name: &str, secret: &[u8]) -> Result<(), SecretError> {
    let name = || name.to_owned();
    if secret.is_empty() {
        return Err(SecretError::Missing { name: name() });
    }
    // Before the length, so that `changeme` is called what it is.
    let mut letters = Zeroizing::new(secret.to_ascii_lowercase());
    letters.retain(u8::is_ascii_alphanumeric);
    let contains = |word: &str| letters.windows(word.len()).any(|part| part == word.as_bytes());
    if PLACEHOLDERS.into_iter().any(contains) {
        return Err(SecretError::Placeholder { name: name() });
    }
    if secret.len() < MIN_LENGTH {
        return Err(SecretError::TooShort { name: name(), length: secret.len() });
    }
    let mut seen = [false; 256];
    secret.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    let distinct = seen.into_iter().filter(|&seen| seen).count();
    seen.zeroize();
    if distinct < MIN_DISTINCT {
        return Err(SecretError::Repetitive { name: name() });
    }
    Ok(())
}

/// The public name of a secret: 64 bits of HMAC under it, printed as 16 hex digits.
///
/// It is safe to log and to compare between machines. It identifies the secret, and like any
/// function of it lets somebody test a guess; that is why weak secrets are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretFingerprint([u8; 8]);

impl fmt::Display for SecretFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SecretFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretFingerprint({self})")
    }
}

/// The secrets that verify: one current, which also issues, and up to three retired ones.
#[derive(Clone, Debug)]
pub struct SecretRing {
    current: ServerSecret,
    retired: Vec<ServerSecret>,
}

impl SecretRing {
    /// Most secrets that a ring holds. Each costs every verification two SHA-256 compressions.
    pub const MAX_SECRETS: usize = 4;

    /// Makes a ring of one secret.
    pub fn new(current: ServerSecret) -> Self {
        Self { current, retired: Vec::new() }
    }

    /// Adds a retired secret: its keys still verify, no key is issued under it. To retire more than
    /// the one of `API_KEY_SECRET_PREVIOUS`: `SecretRing::from_env()?.with_retired(older)?`.
    ///
    /// A key carries the tag of the secret it was issued under, so keep a retired secret until its
    /// keys have been rotated, also when their hashes have moved to the current one.
    ///
    /// # Errors
    /// [`SecretError::Repeated`] when the ring holds the secret already, [`SecretError::RingFull`]
    /// when it holds four.
    pub fn with_retired(self, retired: ServerSecret) -> Result<Self, SecretError> {
        if self.fingerprints().any(|known| known == retired.fingerprint) {
            return Err(SecretError::Repeated { fingerprint: retired.fingerprint });
        }
        if self.secrets().count() == Self::MAX_SECRETS {
            return Err(SecretError::RingFull);
        }
        // Not pushed: a vector that grows would leave copies of the secrets in freed memory.
        let retired = self.retired.iter().cloned().chain([retired]).collect();
        Ok(Self { retired, ..self })
    }

    /// Reads `API_KEY_SECRET`, and `API_KEY_SECRET_PREVIOUS` where it is set.
    ///
    /// Each may instead be given as a file whose path stands in the variable of that name with
    /// `_FILE` at the end, as container platforms mount secrets; one newline at the end of the file
    /// is dropped. A variable that is set but empty counts as not set.
    ///
    /// # Errors
    /// [`SecretError`] names the variable and what to do.
    pub fn from_env() -> Result<Self, SecretError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// Does what [`from_env`](Self::from_env) does, with the look-up of variables given.
    ///
    /// # Errors
    /// [`SecretError`] names the variable and what to do.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, SecretError> {
        let current = read_variable(CURRENT, &lookup)?
            .ok_or_else(|| SecretError::Missing { name: CURRENT.into() })?;
        match read_variable(PREVIOUS, &lookup)? {
            Some(previous) => Self::new(current).with_retired(previous),
            None => Ok(Self::new(current)),
        }
    }

    /// Returns the secret that issues.
    pub fn current(&self) -> &ServerSecret {
        &self.current
    }

    /// Returns the fingerprints of all secrets, current first.
    pub fn fingerprints(&self) -> impl Iterator<Item = SecretFingerprint> + '_ {
        self.secrets().map(ServerSecret::fingerprint)
    }

    pub(crate) fn retired(&self) -> &[ServerSecret] {
        &self.retired
    }

    /// Returns all secrets, current first.
    pub fn secrets(&self) -> impl Iterator<Item = &ServerSecret> {
        std::iter::once(&self.current).chain(&self.retired)
    }
}

/// Returns a secret from the variable `name`, or from the file that `name`_FILE points to.
fn read_variable(
    name: &str,
    lookup: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<ServerSecret>, SecretError> {
    let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let (name, file_name) = (name.to_owned(), format!("{name}_FILE"));
    let value = lookup(&name).map(|value| Zeroizing::new(value.into_encoded_bytes()));
    let (name, secret) = match (value, lookup(&file_name)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(SecretError::Ambiguous { name }),
        (Some(value), None) => (name, value),
        (None, Some(path)) => match read_file(path.as_ref()) {
            Ok(secret) => (file_name, secret),
            Err(source) => return Err(SecretError::Unreadable { name: file_name, source }),
        },
    };
    if secret.is_empty() {
        return Err(SecretError::EmptyFile { name });
    }
    if str::from_utf8(&secret).is_err() {
        return Err(SecretError::NotUtf8 { name });
    }
    ServerSecret::named(&name, &secret).map(Some)
}

fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = File::open(path)?.take(MAX_FILE + 1);
    // The whole bound at once: a buffer that grows would leave copies of the secret behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.read_to_end(&mut secret)?;
    if secret.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 KiB"));
    }
    for end in [b"\r\n".as_slice(), b"\n"] {
        if secret.ends_with(end) {
            let length = secret.len() - end.len();
            secret.truncate(length);
            break;
        }
    }
    Ok(secret)
}

/// Why a server secret is refused, with the variable's name and what to do. Never the secret.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// No secret, or an empty one.
    #[error("{name} is not set; set it to the output of: openssl rand -hex 32")]
    Missing {
        /// The variable, or `the server secret` where it came through the API.
        name: String,
    },
    /// The file holds nothing but perhaps a newline.
    #[error("{name} names an empty file; fill it with the output of: openssl rand -hex 32")]
    EmptyFile {
        /// The variable.
        name: String,
    },
    /// Fewer than 32 bytes.
    #[error(
        "{name} is {length} bytes long, at least 32 are needed; make one with: openssl rand -hex 32"
    )]
    TooShort {
        /// The variable, or `the server secret` where it came through the API.
        name: String,
        /// Its length, in bytes.
        length: usize,
    },
    /// A value known from documentation.
    #[error("{name} holds a placeholder from documentation; make one with: openssl rand -hex 32")]
    Placeholder {
        /// The variable, or `the server secret` where it came through the API.
        name: String,
    },
    /// One repeated character, or nearly.
    #[error("{name} repeats a few characters; make one with: openssl rand -hex 32")]
    Repetitive {
        /// The variable, or `the server secret` where it came through the API.
        name: String,
    },
    /// Not UTF-8.
    #[error("{name} is not UTF-8 text; make one with: openssl rand -hex 32")]
    NotUtf8 {
        /// The variable.
        name: String,
    },
    /// The variable and its `_FILE` variant are both set.
    #[error("{name} and {name}_FILE are both set; unset one of them")]
    Ambiguous {
        /// The variable.
        name: String,
    },
    /// The file cannot be read. The path is not told: it may be the secret, put there by mistake.
    #[error("{name} names a file that cannot be read; check the path and its permissions")]
    Unreadable {
        /// The variable.
        name: String,
        /// What the operating system answered.
        source: io::Error,
    },
    /// The same secret twice.
    #[error(
        "the secret with fingerprint {fingerprint} is in the ring already; remove one of the two"
    )]
    Repeated {
        /// The fingerprint of the secret.
        fingerprint: SecretFingerprint,
    },
    /// More secrets than a ring holds.
    #[error("a ring holds at most 4 secrets; remove the retired ones that no key needs")]
    RingFull,
}

/// The message: a program whose `main` returns the error prints this.
impl fmt::Debug for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subkeys_differ_by_purpose_and_secret() {
        let secret = |text: &str| HmacKey::new(text.as_bytes());
        let (one, other) = (secret("0123456789abcdef0123456789abcdef"), secret("another"));
        assert_ne!(*subkey(&one, "key tag"), *subkey(&one, "fingerprint"));
        assert_ne!(*subkey(&one, "key tag"), *subkey(&other, "key tag"));
    }
}
