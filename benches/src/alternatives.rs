//! What one would use instead of this crate, each as its documentation shows it.

use std::collections::HashMap;
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use prefixed_api_key::PrefixedApiKey;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{BASE62, SECRETS};

/// HMAC-SHA-256 under the current secret, by the `hmac` crate.
pub fn hmac_sha256(key: &str) -> [u8; 32] {
    hmac(SECRETS[0].as_bytes(), key)
}

/// The tag of a key under the current secret.
pub fn tag(signed: &str) -> String {
    let subkey = hmac(SECRETS[0].as_bytes(), "lexikon-auth v1 key tag");
    let mac = hmac(&subkey, signed);
    let words = mac.as_chunks::<4>().0.iter().map(|bytes| u64::from(u32::from_be_bytes(*bytes)));
    words.map(|word| char::from(BASE62[((word * 62) >> 32) as usize])).collect()
}

fn hmac(key: &[u8], message: &str) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    hmac.update(message.as_bytes());
    hmac.finalize().into_bytes().into()
}

/// SHA-256, by the `sha2` crate.
pub fn sha256(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// What a request needs to know of a key.
pub struct Row {
    pub owner: String,
    pub scopes: String,
    pub active: bool,
    pub expires_at: Option<SystemTime>,
    /// In hex.
    pub hash: String,
}

impl Row {
    pub fn new(number: usize, hash: String) -> Self {
        let owner = format!("user-{}", number / 10);
        Self { owner, scopes: "read,write".into(), active: true, expires_at: None, hash }
    }

    fn is_in_force(&self) -> bool {
        self.active && self.expires_at.is_none_or(|date| SystemTime::now() < date)
    }
}

/// Both formats written plainly: `hmac`, `sha2`, `hex` and a `HashMap` of strings, one look-up for
/// each format.
#[derive(Default)]
pub struct Plain(pub HashMap<String, Row>);

impl Plain {
    pub fn verify(&self, key: &str) -> Option<&Row> {
        if !key.starts_with("lxk_") {
            return None;
        }
        let row = self.find(hmac_sha256(key)).or_else(|| self.find(sha256(key)))?;
        row.is_in_force().then_some(row)
    }

    fn find(&self, digest: [u8; 32]) -> Option<&Row> {
        let hash = hex::encode(digest);
        let row = self.0.get(&hash)?;
        bool::from(row.hash.as_bytes().ct_eq(hash.as_bytes())).then_some(row)
    }
}

/// The crate `prefixed-api-key`: plain SHA-256 of the long token, found by the short one.
pub struct Prefixed {
    controller: prefixed_api_key::PrefixedApiKeyController<
        prefixed_api_key::rand::rngs::OsRng,
        prefixed_api_key::sha2::Sha256,
    >,
    rows: HashMap<String, Row>,
}

impl Prefixed {
    /// Takes keys of [`Prefixed::text`]'s form.
    pub fn new(texts: &[String]) -> Self {
        let controller = prefixed_api_key::PrefixedApiKeyController::configure()
            .prefix("lxk".to_owned())
            .seam_defaults()
            .finalize()
            .expect("everything is set");
        let row = |(number, text): (usize, &String)| {
            let key = PrefixedApiKey::from_string(text).expect("the form is its own");
            let hash = controller.long_token_hashed(&key);
            (key.short_token().to_owned(), Row::new(number, hash))
        };
        let rows = texts.iter().enumerate().map(row).collect();
        Self { controller, rows }
    }

    /// One of our keys in this crate's form: an underscore behind the eighth character ends the short
    /// token.
    pub fn text(key: &str) -> String {
        let (short, long) = key.split_at("lxk_".len() + 8);
        format!("{short}_{long}")
    }

    pub fn verify(&self, key: &str) -> Option<&Row> {
        let key = PrefixedApiKey::from_string(key).ok()?;
        let row = self.rows.get(key.short_token())?;
        (self.controller.check_hash(&key, &row.hash) && row.is_in_force()).then_some(row)
    }
}

/// The crate `api-keys-simplified`: Argon2id of the key, found by a BLAKE3 id.
pub struct Simplified {
    manager: api_keys_simplified::ApiKeyManagerV0,
    rows: HashMap<String, Row>,
}

impl Simplified {
    /// Draws `count` keys. They are its own: its form and its checksum admit no other.
    pub fn new(count: usize) -> (Self, Vec<api_keys_simplified::SecureString>) {
        use api_keys_simplified::{ApiKeyManagerV0, Environment};
        let manager = ApiKeyManagerV0::init_default_config("lxk").expect("a valid prefix");
        let mut rows = HashMap::new();
        let mut keys = Vec::new();
        for number in 0..count {
            let key = manager.generate(Environment::production()).expect("a key");
            let hash = key.expose_hash();
            rows.insert(hash.key_id().clone(), Row::new(number, hash.hash().clone()));
            keys.push(key.into_key());
        }
        (Self { manager, rows }, keys)
    }

    pub fn verify(&self, key: &api_keys_simplified::SecureString) -> Option<&Row> {
        let row = self.rows.get(&self.manager.extract_key_id(key))?;
        let status = self.manager.verify(key, &row.hash).ok()?;
        (status == api_keys_simplified::KeyStatus::Valid && row.is_in_force()).then_some(row)
    }
}
