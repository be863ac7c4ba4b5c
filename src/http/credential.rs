//! Where a request carries its key.

use ::http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue, OccupiedEntry};

use crate::crypto::key::KEY_PREFIX;

/// The header that holds a key and nothing else.
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

/// The headers that a key is looked for in.
#[derive(Clone, Debug)]
pub(crate) struct KeyHeaders {
    /// Those that hold a key and nothing else.
    pub(crate) names: Vec<HeaderName>,
    /// Whether `Authorization: Bearer` may hold one too.
    pub(crate) bearer: bool,
}

impl Default for KeyHeaders {
    fn default() -> Self {
        Self { names: vec![KEY_HEADER], bearer: true }
    }
}

/// What the headers of a request hold.
#[derive(Debug)]
pub(crate) enum Credential {
    Nothing,
    /// An `Authorization` of another scheme.
    OtherScheme,
    /// A bearer token that is no key of ours: perhaps a JWT.
    OtherToken(Presented),
    Key(Presented),
}

/// A key as it stands in a header.
#[derive(Debug)]
pub(crate) struct Presented {
    /// Shares the buffer of the request; nothing is copied.
    value: HeaderValue,
    /// Where the key begins.
    start: usize,
    /// Whether HTTP itself knows the header for one that authorizes: caches keep such answers apart.
    pub(crate) in_authorization: bool,
}

impl Presented {
    /// The key, with no white space around.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.value.as_bytes()[self.start..]
    }

    fn check(self) -> Result<Self, BadCredential> {
        let key = self.as_bytes();
        // A quotation mark or a comma is left to the parser of keys: only what no single value can
        // have is an ill-formed request.
        let is_one_value = !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
        if is_one_value { Ok(self) } else { Err(BadCredential::Characters) }
    }
}

impl KeyHeaders {
    /// Takes the key out of the headers, or leaves it there where `keeps` says so. What stays of headers
    /// that may hold a key is marked as sensitive, so that no `Debug` of the request shows it.
    pub(crate) fn take(
        &self,
        headers: &mut HeaderMap,
        keeps: bool,
    ) -> Result<Credential, BadCredential> {
        let mut found = Ok(None);
        // To the end also after a problem: a request that needs no key passes with what is left.
        for name in &self.names {
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            mark_sensitive(&mut values);
            let is_repeated = values.iter().nth(1).is_some();
            let value = if keeps { values.get().clone() } else { values.remove() };
            let presented = Presented { value, start: 0, in_authorization: false };
            found = found.and_then(|found: Option<Presented>| {
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
            if self.bearer { take_bearer(headers, keeps) } else { Ok(Credential::Nothing) };
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

/// What `Authorization` holds. Taken out only where it is a key: other schemes and tokens stay.
fn take_bearer(headers: &mut HeaderMap, keeps: bool) -> Result<Credential, BadCredential> {
    let Entry::Occupied(mut values) = headers.entry(header::AUTHORIZATION) else {
        return Ok(Credential::Nothing);
    };
    mark_sensitive(&mut values);
    let mut found = Credential::OtherScheme;
    for value in &values {
        if value.as_bytes().trim_ascii_start().starts_with(KEY_PREFIX.as_bytes()) {
            if !keeps {
                values.remove();
            }
            return Err(BadCredential::NoScheme);
        }
        found = match bearer_token(value) {
            None => Credential::OtherScheme,
            Some(start) => {
                let presented = Presented { value: value.clone(), start, in_authorization: true };
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
    if !keeps {
        values.remove();
    }
    if is_repeated { Err(BadCredential::Repeated) } else { key.check().map(Credential::Key) }
}

/// Where the token begins, when the scheme is `Bearer`, in any case of letters (RFC 9110, section 11.1).
/// A tab separates too, or a key behind one would pass for another scheme.
fn bearer_token(value: &HeaderValue) -> Option<usize> {
    const SCHEME: &[u8] = b"bearer";
    let bytes = value.as_bytes();
    let (scheme, rest) = bytes.split_at_checked(SCHEME.len())?;
    let separators = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    (scheme.eq_ignore_ascii_case(SCHEME) && separators > 0).then_some(SCHEME.len() + separators)
}
