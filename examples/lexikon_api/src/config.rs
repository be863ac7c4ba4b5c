//! What the environment says.

use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
#[cfg(doc)]
use lexikon_auth::store::DatabaseUrl;
use lexikon_auth::{SecretRing, ServerSecret};
use tempfile::TempDir;

const FIRST_KEY_FILE: &str = "first_key.header";

/// | variable | meaning |
/// | --- | --- |
/// | `API_KEY_SECRET`, `API_KEY_SECRET_FILE`, … | the server secret. Without it and `DATABASE_URL` this is a demo |
/// | `DATABASE_URL` | `sqlite:path` or `postgres://…`, as a [`DatabaseUrl`]. Default `sqlite:lexikon_api.db` |
/// | `REDIS_URL` | `redis://…`, a level of cache that instances share. Optional |
/// | `ADDRESS` | where to listen. Default `127.0.0.1:8080` |
/// | `TRUSTED_PROXIES` | networks of proxies whose `X-Forwarded-For` is believed, separated by commas |
/// | `FIRST_KEY_FOR` | makes a key with the scope `admin` for this owner, unless it has keys |
/// | `FIRST_KEY_FILE` | where to write that key, as a header. Default `first_key.header` |
pub struct Config {
    pub ring: SecretRing,
    pub database_url: String,
    pub redis_url: Option<String>,
    pub address: String,
    pub trusted_proxies: Vec<IpNet>,
    pub first_key_for: Option<String>,
    pub first_key_file: PathBuf,
    /// Holds the database of a demo.
    pub demo: Option<TempDir>,
}

impl Config {
    pub fn from_env() -> Result<Self, Box<dyn Error>> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut config = Self {
            ring: match (set("API_KEY_SECRET"), set("API_KEY_SECRET_FILE"), set("DATABASE_URL")) {
                (None, None, None) => {
                    SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?)
                }
                _ => SecretRing::from_env()?,
            },
            database_url: set("DATABASE_URL").unwrap_or("sqlite:lexikon_api.db".to_owned()),
            redis_url: set("REDIS_URL"),
            address: set("ADDRESS").unwrap_or("127.0.0.1:8080".to_owned()),
            trusted_proxies: networks(
                "TRUSTED_PROXIES",
                &set("TRUSTED_PROXIES").unwrap_or_default(),
            )?,
            first_key_for: set("FIRST_KEY_FOR"),
            first_key_file: set("FIRST_KEY_FILE").unwrap_or(FIRST_KEY_FILE.to_owned()).into(),
            demo: None,
        };
        let has_secret = ["API_KEY_SECRET", "API_KEY_SECRET_FILE", "DATABASE_URL"];
        if !has_secret.iter().any(|name| set(name).is_some()) {
            let folder = tempfile::tempdir()?;
            config.database_url = format!("sqlite:{}/demo.db", folder.path().display());
            config.first_key_for.get_or_insert("demo".to_owned());
            if set("FIRST_KEY_FILE").is_none() {
                config.first_key_file = folder.path().join(FIRST_KEY_FILE);
            }
            config.demo = Some(folder);
            println!("A demo: its database is gone at the end. Set API_KEY_SECRET for a real one.");
        }
        Ok(config)
    }
}

fn networks(name: &str, text: &str) -> Result<Vec<IpNet>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let network = |item: &str| {
        // An address is a network of one.
        let network = item.parse().or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        network.map_err(|error| format!("{name}: {item}: {error}; write 10.0.0.0/8 or 10.0.0.1"))
    };
    items.map(network).collect()
}
