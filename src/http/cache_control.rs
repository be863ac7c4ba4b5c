//! What shared caches may do with an answer to a key.

use ::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};

/// Keeps shared caches off an answer, unless the service has said what they may do.
///
/// They keep off by themselves where a request has `Authorization`, unless one of `public`, `s-maxage` and
/// `must-revalidate` lets them store the answer (RFC 9111, section 3.5). A key in another header means
/// nothing to them, and `must-revalidate` says nothing of who may store.
pub(super) fn keep_private(headers: &mut HeaderMap) {
    let lines = headers.get_all(CACHE_CONTROL).iter();
    if !lines.flat_map(|line| directives(line.as_bytes())).any(decides) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

/// Whether a directive says if shared caches may store the whole answer. With an argument, `private`
/// speaks of single headers.
fn decides(directive: &[u8]) -> bool {
    let is = |name: &str| directive.eq_ignore_ascii_case(name.as_bytes());
    let begins = |name: &str| {
        directive.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
    };
    is("private") || is("no-store") || is("public") || begins("s-maxage=")
}

/// The directives of a line. A comma in a quoted string does not end one (RFC 9110, section 5.6).
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
