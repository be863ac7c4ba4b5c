//! `lxk secret check`.

use serde_json::json;

use super::known::{find, missing_secret, unknown};
use crate::database::Database;
use crate::environment::{ring, variable};
use crate::failure::Failure;
use crate::output::{Output, pluralize};

pub async fn run(url: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let ring = ring()?;
    let is_named = url.is_some() || variable("DATABASE_URL").is_some();
    let asked = if is_named {
        let table = Database::open(url).await?.table;
        let known = table.secrets().await?;
        Some((table, known))
    } else {
        None
    };
    let mut is_unknown = false;
    for (index, fingerprint) in ring.fingerprints().enumerate() {
        let fingerprint = fingerprint.to_string();
        let role = if index == 0 { "current" } else { "retired" };
        let knowledge = match &asked {
            None => "not asked",
            Some((_, known)) if known.is_empty() => "knows none yet",
            Some((_, known)) if find(known, &fingerprint).is_some() => "known",
            Some(_) => "unknown",
        };
        is_unknown |= knowledge == "unknown" && index == 0;
        output.object(&json!({
            "fingerprint": fingerprint,
            "role": role,
            "strong": true,
            "database": knowledge,
        }));
        output.line(format!("{fingerprint}  {role}, strong; database: {knowledge}"));
    }
    if is_unknown {
        return Err(unknown(&ring));
    }
    if let Some((table, known)) = &asked
        && let Some((fingerprint, keys)) = missing_secret(table, &ring, known).await?
    {
        return Err(Failure::Refused(format!(
            "{} may need {fingerprint}, which the environment lacks; set it as API_KEY_SECRET_PREVIOUS",
            pluralize(keys, "key")
        )));
    }
    Ok(())
}
