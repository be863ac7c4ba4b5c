//! What the keys are for: a lexikon, in memory, to be read and written.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lexikon_auth::http::{Read, Scoped, Write};
use serde::{Deserialize, Serialize};

use crate::answer::{Failure, Success, success};
use crate::body::Body;

/// Most entries that are kept.
const CAPACITY: usize = 1000;
const MAX_WORD: usize = 100;

#[derive(Clone, Default)]
pub struct Entries(Arc<RwLock<HashMap<String, Definition>>>);

#[derive(Clone, Serialize, Deserialize)]
pub struct Definition {
    definition: String,
}

/// Needs the scope `read`.
pub async fn read(
    _: Scoped<Read>,
    State(Entries(entries)): State<Entries>,
    Path(word): Path<String>,
) -> Result<Json<Success<Definition>>, Failure> {
    let found = entries.read().expect("no writer panics").get(&word).cloned();
    found
        .map(success)
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "not_found", "there is no such entry"))
}

/// Needs the scope `write`.
pub async fn write(
    _: Scoped<Write>,
    State(Entries(entries)): State<Entries>,
    Path(word): Path<String>,
    Body(definition): Body<Definition>,
) -> Result<Json<Success<Definition>>, Failure> {
    let mut entries = entries.write().expect("no writer panics");
    if word.len() > MAX_WORD || (entries.len() >= CAPACITY && !entries.contains_key(&word)) {
        let message = "the word is too long, or the lexikon is full";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message));
    }
    entries.insert(word, definition.clone());
    Ok(success(definition))
}
