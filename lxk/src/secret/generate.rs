//! `lxk secret generate`.

use lexikon_auth::ServerSecret;
use secrecy::ExposeSecret;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, stderr_line};

pub fn run(output: &mut Output) -> Result<(), Failure> {
    let secret = ServerSecret::generate()?;
    let fingerprint = ServerSecret::new(&secret)?.fingerprint().to_string();
    output.object(&json!({"secret": secret.expose_secret(), "fingerprint": fingerprint}));
    // Alone on its line, so that the output can be a secret file.
    output.line(secret.expose_secret());
    stderr_line(format_args!("fingerprint {fingerprint}"));
    Ok(())
}
