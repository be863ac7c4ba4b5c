//! What keys, secrets and hashes are made of: no async, no SQL, no HTTP.
//!
//! Keys and secrets themselves stand at the [root](crate): [`ApiKey`](crate::ApiKey),
//! [`ServerSecret`](crate::ServerSecret), [`SecretRing`](crate::SecretRing). Here is what authors of
//! stores and tools need besides.

pub(crate) mod hash;
pub(crate) mod hmac;
pub(crate) mod key;
pub(crate) mod secret;

pub use secrecy::SecretString;

pub use self::hash::{Candidates, HashFormat, KeyHash};
pub use self::key::{KEY_PREFIX, MalformedKey, PresentedKey};
pub use self::secret::SecretFingerprint;
pub use crate::util::random::EntropyError;
