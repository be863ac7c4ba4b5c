//! Where a request carries its key.

use ::http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};

use crate::key::KEY_PREFIX;

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
    /// Has no `Debug` of the request show what may be a key.
    pub(crate) fn mark_sensitive(&self, headers: &mut HeaderMap) {
        for name in self.names.iter().chain(self.bearer.then_some(&header::AUTHORIZATION)) {
            if let Entry::Occupied(mut values) = headers.entry(name) {
                values.iter_mut().for_each(|value| value.set_sensitive(true));
            }
        }
    }

    /// Finds the key.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Result<Credential, BadCredential> {
        let mut found: Option<Presented> = None;
        for name in &self.names {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(BadCredential::Repeated);
            }
            let value = value.clone();
            let presented = Presented { value, start: 0, in_authorization: false }.check()?;
            match &found {
                Some(other) if other.as_bytes() != presented.as_bytes() => {
                    return Err(BadCredential::Different);
                }
                _ => found = Some(presented),
            }
        }
        let authorization = if self.bearer { authorization(headers)? } else { Credential::Nothing };
        match (found, authorization) {
            (None, authorization) => Ok(authorization),
            (Some(key), Credential::Key(bearer)) if key.as_bytes() != bearer.as_bytes() => {
                Err(BadCredential::Different)
            }
            (Some(key), _) => Ok(Credential::Key(key)),
        }
    }

    /// Takes away what held a key. Other schemes and tokens stay.
    pub(crate) fn remove(&self, headers: &mut HeaderMap) {
        for name in &self.names {
            headers.remove(name);
        }
        if self.bearer && matches!(authorization(headers), Ok(Credential::Key(_))) {
            headers.remove(header::AUTHORIZATION);
        }
    }
}

/// What `Authorization` holds.
fn authorization(headers: &HeaderMap) -> Result<Credential, BadCredential> {
    let mut found = Credential::Nothing;
    let values = headers.get_all(header::AUTHORIZATION);
    for value in &values {
        found = match bearer_token(value) {
            None => Credential::OtherScheme,
            Some(start) => {
                let presented = Presented { value: value.clone(), start, in_authorization: true };
                if presented.as_bytes().starts_with(KEY_PREFIX.as_bytes()) {
                    Credential::Key(presented.check()?)
                } else {
                    Credential::OtherToken(presented)
                }
            }
        };
        if matches!(found, Credential::Key(_)) && values.iter().nth(1).is_some() {
            return Err(BadCredential::Repeated);
        }
    }
    Ok(found)
}

/// Where the token begins, when the scheme is `Bearer`, in any case of letters (RFC 9110, section 11.1).
fn bearer_token(value: &HeaderValue) -> Option<usize> {
    const SCHEME: &[u8] = b"bearer ";
    let bytes = value.as_bytes();
    let (scheme, rest) = bytes.split_at_checked(SCHEME.len())?;
    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
    scheme.eq_ignore_ascii_case(SCHEME).then_some(SCHEME.len() + spaces)
}
