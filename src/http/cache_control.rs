//! `Cache-Control` of responses to requests with a key.

use ::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};

/// Adds `Cache-Control: private`, unless the service has said itself whether shared caches may store the
/// response.
///
/// If the request has `Authorization`, they may not, without `public`, `s-maxage` or `must-revalidate` in the
/// response (RFC 9111, section 3.5). They do not know other headers that hold a key. `must-revalidate` alone
/// says nothing of who may store, so `private` is added to it.
pub(super) fn forbid_shared_caching(headers: &mut HeaderMap) {
    let lines = headers.get_all(CACHE_CONTROL).iter();
    if !lines.flat_map(|line| directives(line.as_bytes())).any(governs_shared_caches) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

/// Returns whether a directive says if shared caches may store the whole response. `private` with an argument
/// speaks of single headers only.
fn governs_shared_caches(directive: &[u8]) -> bool {
    let is = |name: &str| directive.eq_ignore_ascii_case(name.as_bytes());
    let begins = |name: &str| {
        directive.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
    };
    is("private") || is("no-store") || is("public") || begins("s-maxage=")
}

/// Splits a line into directives. A comma in a quoted string does not end one (RFC 9110, section 5.6).
fn directives(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let ends = move |&byte: &u8| {
        let ends = byte == b',' && !is_quoted;
        is_quoted ^= byte == b'"' && !is_escaped;
        is_escaped = is_quoted && byte == b'\\' && !is_escaped;
        ends
    };
    line.split(ends).map(<[u8]>::trim_ascii)
}
