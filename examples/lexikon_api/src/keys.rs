//! The keys of a caller: made, listed, revoked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use lexikon_auth::http::{Admin, Scoped};
use lexikon_auth::store::Page;
use lexikon_auth::{
    ApiKeys, IssuedKey, KeyId, KeyRecord, ManageError, NewKey, OwnerId, Scopes, StoreError,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use crate::answer::{Failure, Success, no_such_key, success};
use crate::body::Body;
use crate::claims::{self, Claims};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a repeated request gets the key of the first.
const REPEATABLE: Duration = DAY;
/// Most keys of one page.
const PAGE: u32 = 100;
const SCOPES: [&str; 4] = ["read", "write", "admin", "read,write"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    name: String,
    scopes: String,
    expires_in_days: Option<u64>,
}

impl Wanted {
    fn check(&self) -> Result<(), Failure> {
        let wrong = match self {
            _ if !(1..=100).contains(&self.name.chars().count()) => "name has 1 to 100 characters",
            _ if !SCOPES.contains(&self.scopes.as_str()) => {
                "scopes is one of read, write, admin and read,write"
            }
            _ if self.expires_in_days.is_some_and(|days| !(1..=365).contains(&days)) => {
                "expires_in_days is from 1 to 365"
            }
            _ => return Ok(()),
        };
        Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", wrong))
    }

    fn lifetime(&self) -> Option<Duration> {
        Some(DAY * u32::try_from(self.expires_in_days?).ok()?)
    }

    /// Whether an Idempotency-Key has made this key, and nobody has used it.
    async fn was_made(&self, keys: &ApiKeys, id: &KeyId) -> Result<bool, Failure> {
        // What this instance knows of uses has to be in the table first.
        keys.verifier().flush().await.map_err(ManageError::Store)?;
        let Some(record) = keys.manager().find(id).await? else { return Ok(false) };
        if !self.is_met_by(&record) {
            let message = "this Idempotency-Key came with another request before";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(Failure::new(status, "idempotency_mismatch", message));
        }
        let age = record.created_at.and_then(|created_at| created_at.elapsed().ok());
        let is_old = age.is_none_or(|age| age > REPEATABLE);
        if record.is_revoked() || record.last_used_at.is_some() || is_old {
            let message = "this Idempotency-Key has made a key, which is in use, revoked or old";
            return Err(Failure::new(StatusCode::CONFLICT, "idempotency_used", message));
        }
        Ok(true)
    }

    /// Whether a key is what is wanted here.
    fn is_met_by(&self, record: &KeyRecord) -> bool {
        let lifetime = match (record.created_at, record.expires_at) {
            (Some(created_at), Some(expires_at)) => expires_at.duration_since(created_at).ok(),
            _ => None,
        };
        // The days are counted from before the date that the manager writes.
        let days = |lifetime: Duration| (lifetime + DAY / 2).as_secs() / DAY.as_secs();
        *record.name == self.name
            && record.scopes == Scopes::from(&self.scopes)
            && lifetime.map(days) == self.expires_in_days
    }
}

/// A key as its owner sees it.
#[derive(Serialize)]
pub struct Shown {
    id: String,
    name: String,
    scopes: String,
    is_active: bool,
    created_at: Option<String>,
    expires_at: Option<String>,
}

impl From<&KeyRecord> for Shown {
    fn from(record: &KeyRecord) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.to_string(),
            scopes: record.scopes.to_string(),
            is_active: !record.is_revoked() && !record.is_expired(SystemTime::now()),
            created_at: record.created_at.and_then(shown),
            expires_at: record.expires_at.and_then(shown),
        }
    }
}

/// A time as RFC 3339 writes it.
fn shown(time: SystemTime) -> Option<String> {
    OffsetDateTime::from(time).format(&Rfc3339).ok()
}

/// A key that was just made: the only answer that holds its plaintext.
#[derive(Serialize)]
pub struct Made {
    key: String,
    #[serde(flatten)]
    shown: Shown,
}

type Secret<T> = (StatusCode, [(HeaderName, &'static str); 1], Json<Success<T>>);

fn made(issued: &IssuedKey) -> Secret<Made> {
    let made = Made { key: issued.key.expose_secret().to_owned(), shown: (&issued.record).into() };
    (StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], success(made))
}

/// Makes a key of the caller's.
///
/// With an `Idempotency-Key`, the id of the key is made of it: asked twice, the table takes the key once.
/// Its plaintext is stored nowhere, so the second answer has a new one in place of the first, which was
/// lost on its way. One that was shown a moment ago may not be lost, but in use at another instance, which
/// writes that later: until the claim of that answer has ended, the second is 409.
pub async fn create(
    caller: Scoped<Admin>,
    State(keys): State<ApiKeys>,
    State(claims): State<Claims>,
    headers: HeaderMap,
    Body(wanted): Body<Wanted>,
) -> Result<Secret<Made>, Failure> {
    wanted.check()?;
    let mut new = NewKey::new(caller.owner().clone(), &wanted.name).scopes(&wanted.scopes);
    let expires_at = wanted.lifetime().map(|lifetime| SystemTime::now() + lifetime);
    // Whoever gets hold of a key that expires gets none that does not.
    if let Some(latest) = caller.expires_at()
        && expires_at.is_none_or(|expires_at| expires_at > latest)
    {
        let message = "the key that makes this one expires earlier; choose fewer expires_in_days";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message));
    }
    if let Some(date) = expires_at {
        new = new.expires_at(date);
    }
    let Some(id) = id_from(&headers, caller.owner())? else {
        return Ok(made(&keys.issue(new).await?));
    };
    wanted.was_made(&keys, &id).await?;
    let under_way = || Failure::under_way(claims::HELD);
    let claim = claims.take(&id).await.map_err(ManageError::Store)?.ok_or_else(under_way)?;
    let issued = async {
        let issued = if wanted.was_made(&keys, &id).await? {
            keys.manager().reissue(&id).await?
        } else {
            keys.issue(new.id(id.clone())).await?
        };
        // Another request may have made this key anew.
        let is_ours = claims.renew(&claim).await.map_err(ManageError::Store)?;
        if is_ours { Ok(issued) } else { Err(under_way()) }
    };
    // Well within the claim: whatever is written later than that finds the hash of another.
    let issued = timeout(claims::HELD / 4, issued).await;
    Ok(made(&issued.map_err(|late| ManageError::Store(StoreError::Unavailable(late.into())))??))
}

/// The id of the key that an `Idempotency-Key` of an owner makes.
fn id_from(headers: &HeaderMap, owner: &OwnerId) -> Result<Option<KeyId>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    if !(1..=255).contains(&value.len()) {
        let message = "an Idempotency-Key has 1 to 255 bytes";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", message));
    }
    Ok(Some(id_of(owner, value.as_bytes())))
}

/// An id that only this owner's key can have that is made for this reason: the table takes one.
pub fn id_of(owner: &OwnerId, reason: &[u8]) -> KeyId {
    let owner = Sha256::digest(owner.as_str());
    let digest = Sha256::new().chain_update(owner).chain_update(reason).finalize();
    let bytes = *digest.first_chunk().expect("a digest is longer");
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string().into()
}

#[derive(Deserialize)]
pub struct After {
    after: Option<String>,
}

/// A key among the others of its owner.
#[derive(Serialize)]
pub struct Item {
    #[serde(flatten)]
    shown: Shown,
    last_used_at: Option<String>,
}

#[derive(Serialize)]
pub struct Listed {
    keys: Vec<Item>,
    /// Where the next page begins, if there may be one.
    next: Option<String>,
}

/// The caller's keys, newest first.
pub async fn list(
    caller: Scoped<Admin>,
    State(keys): State<ApiKeys>,
    query: Result<Query<After>, QueryRejection>,
) -> Result<Json<Success<Listed>>, Failure> {
    let Query(After { after }) = query.map_err(|_| {
        Failure::new(StatusCode::BAD_REQUEST, "invalid_query", "after is the id of a key")
    })?;
    let page = Page { limit: PAGE, after: after.map(KeyId::from) };
    let records = keys.manager().list(caller.owner(), &page).await?;
    let last = records.last().filter(|_| records.len() == PAGE as usize);
    let next = last.map(|record| record.id.to_string());
    let item = |record: &Arc<KeyRecord>| Item {
        shown: Shown::from(&**record),
        last_used_at: record.last_used_at.and_then(shown),
    };
    Ok(success(Listed { keys: records.iter().map(item).collect(), next }))
}

/// Revokes a key of the caller's.
pub async fn revoke(
    caller: Scoped<Admin>,
    State(keys): State<ApiKeys>,
    Path(id): Path<String>,
) -> Result<Json<Success<Shown>>, Failure> {
    let id = KeyId::from(id);
    let record = keys.manager().find(&id).await?.filter(|record| record.owner == *caller.owner());
    let mut shown = Shown::from(&*record.ok_or_else(no_such_key)?);
    keys.revoke(&id, Some("by its owner")).await?;
    shown.is_active = false;
    Ok(success(shown))
}
