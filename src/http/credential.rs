//! The key in the headers of a request.

use ::http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue, OccupiedEntry};

use crate::crypto::key::KEY_PREFIX;

/// The default header of a key.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Why the headers of a request do not say which key is meant. Nothing was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum BadCredential {
    /// A header that holds a key is there more than once.
    #[error("a header that holds an API key is repeated; send it once")]
    Repeated,
    /// Two headers hold different keys.
    #[error("the request holds two different API keys; send one")]
    Different,
    /// A key stands in `Authorization` without a scheme.
    #[error(
        "an API key stands in Authorization without the scheme Bearer; write it before the key"
    )]
    NoScheme,
    /// A header that holds a key is empty, or has white space or non-ASCII characters inside.
    #[error(
        "the header of the API key is empty, or has white space or non-ASCII characters inside"
    )]
    Characters,
}

/// The headers that may hold a key.
#[derive(Clone, Debug)]
pub(crate) struct KeyHeaders {
    /// Those that hold a key and nothing else.
    pub(crate) names: Vec<HeaderName>,
    /// Whether `Authorization: Bearer` may hold one too.
    pub(crate) bearer: bool,
    /// Whether the service behind the layer sees them.
    pub(crate) keep: bool,
}

impl Default for KeyHeaders {
    fn default() -> Self {
        Self { names: vec![KEY_HEADER], bearer: true, keep: false }
    }
}

/// The credential in the headers of a request.
#[derive(Debug)]
pub(crate) enum Credential {
    Missing,
    /// An `Authorization` of a scheme other than `Bearer`.
    OtherScheme,
    /// A bearer token that is not a key, for instance a JWT.
    OtherToken(RawKey),
    Key(RawKey),
}

/// A key as it stands in a header, not parsed yet.
#[derive(Debug)]
pub(crate) struct RawKey {
    /// Shares the buffer of the request; nothing is copied.
    value: HeaderValue,
    /// Where the key begins.
    start: usize,
    /// Whether it stands in `Authorization`. Shared caches know that header, and treat the response
    /// accordingly (RFC 9111, section 3.5).
    pub(crate) in_authorization: bool,
}

impl RawKey {
    /// Returns the key, with no white space around.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.value.as_bytes()[self.start..]
    }

    /// Refuses what cannot be one value. All else, such as a quotation mark or a comma, is left to the
    /// parser of keys.
    fn check(self) -> Result<Self, BadCredential> {
        let key = self.as_bytes();
        let is_one_value = !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
        if is_one_value { Ok(self) } else { Err(BadCredential::Characters) }
    }
}

impl KeyHeaders {
    /// Takes the key out of the headers, unless they are kept. What stays in them is marked as sensitive, so
    /// that no `Debug` of the request shows it.
    pub(crate) fn take(&self, headers: &mut HeaderMap) -> Result<Credential, BadCredential> {
        let mut found = Ok(None);
        // All headers are cleaned, also after an error: a request that needs no key may still pass.
        for name in &self.names {
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            mark_sensitive(&mut values);
            let is_repeated = values.iter().nth(1).is_some();
            let value = if self.keep { values.get().clone() } else { values.remove() };
            let presented = RawKey { value, start: 0, in_authorization: false };
            found = found.and_then(|found: Option<RawKey>| {
                let presented =
                    if is_repeated { Err(BadCredential::Repeated) } else { presented.check() }?;
                match found {
                    Some(other) if other.as_bytes() != presented.as_bytes() => {
                        Err(BadCredential::Different)
                    }
                    _ => Ok(Some(presented)),
                }
            });
        }
        let bearer =
            if self.bearer { take_bearer(headers, self.keep) } else { Ok(Credential::Missing) };
        match (found?, bearer?) {
            (None, bearer) => Ok(bearer),
            (Some(key), Credential::Key(bearer)) if key.as_bytes() != bearer.as_bytes() => {
                Err(BadCredential::Different)
            }
            (Some(key), _) => Ok(Credential::Key(key)),
        }
    }
}

fn mark_sensitive(values: &mut OccupiedEntry<'_, HeaderValue>) {
    values.iter_mut().for_each(|value| value.set_sensitive(true));
}

/// Returns the credential in `Authorization`. Takes it out only if it is a key: other schemes and tokens stay.
fn take_bearer(headers: &mut HeaderMap, keep: bool) -> Result<Credential, BadCredential> {
    let Entry::Occupied(mut values) = headers.entry(header::AUTHORIZATION) else {
        return Ok(Credential::Missing);
    };
    mark_sensitive(&mut values);
    let mut found = Credential::OtherScheme;
    for value in &values {
        if value.as_bytes().trim_ascii_start().starts_with(KEY_PREFIX.as_bytes()) {
            if !keep {
                values.remove();
            }
            return Err(BadCredential::NoScheme);
        }
        found = match bearer_token_start(value) {
            None => Credential::OtherScheme,
            Some(start) => {
                let presented = RawKey { value: value.clone(), start, in_authorization: true };
                if presented.as_bytes().starts_with(KEY_PREFIX.as_bytes()) {
                    Credential::Key(presented)
                } else {
                    Credential::OtherToken(presented)
                }
            }
        };
        if matches!(found, Credential::Key(_)) {
            break;
        }
    }
    let Credential::Key(key) = found else { return Ok(found) };
    let is_repeated = values.iter().nth(1).is_some();
    if !keep {
        values.remove();
    }
    if is_repeated { Err(BadCredential::Repeated) } else { key.check().map(Credential::Key) }
}

/// Returns where the token begins, if the scheme is `Bearer` in upper or lower case (RFC 9110, section 11.1).
/// A tab separates too: otherwise a key behind a tab would pass for a credential of another scheme.
fn bearer_token_start(value: &HeaderValue) -> Option<usize> {
    const SCHEME: &[u8] = b"bearer";
    let bytes = value.as_bytes();
    let (scheme, rest) = bytes.split_at_checked(SCHEME.len())?;
    let separators = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    (scheme.eq_ignore_ascii_case(SCHEME) && separators > 0).then_some(SCHEME.len() + separators)
}
