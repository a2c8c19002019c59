//! Identifiers: what they may hold, and how they stand in a path.

use std::borrow::Cow;

use crate::error::{Rule, Violation};

/// Adds what is wrong with an identifier to `found`.
pub(super) fn identifier(name: &str, id: &str, found: &mut Vec<Violation>) {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !id.is_empty() && id.bytes().all(is_plain) {
        return;
    }
    let problem = if id.is_empty() {
        "nothing"
    } else if id.chars().any(char::is_control) {
        "a control character"
    } else if id.chars().any(char::is_whitespace) {
        "whitespace"
    } else if id.contains(['/', '?', '#']) {
        "'/', '?' or '#'"
    } else if id.contains("..") {
        "'..'"
    } else if id == "." {
        // A dot segment: servers and proxies remove it from a path.
        "'.' alone"
    } else {
        return;
    };
    found.push(Violation::new(name, Rule::Identifier, problem));
}

/// An identifier as a path segment (RFC 3986 §2.3: all but the unreserved characters).
pub(crate) fn encoded(id: &str) -> Cow<'_, str> {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if id.bytes().all(unreserved) {
        return Cow::Borrowed(id);
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(id.len() * 3);
    for b in id.bytes() {
        if unreserved(b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_segment_encodes_all_but_the_unreserved_characters() {
        for (id, segment) in [
            ("aZ9-._~", "aZ9-._~"),
            ("a:b@c", "a%3Ab%40c"),
            ("é%", "%C3%A9%25"),
        ] {
            assert_eq!(encoded(id), segment);
        }
    }

    #[test]
    fn identifier_bad_characters_are_named() {
        for (id, problem) in [
            ("ok-id_1", None),
            ("a:b", None),
            ("a.b", None),
            ("", Some("nothing")),
            ("a\u{7}", Some("a control character")),
            ("a b", Some("whitespace")),
            ("a/b", Some("'/', '?' or '#'")),
            ("a..b", Some("'..'")),
            (".", Some("'.' alone")),
        ] {
            let mut found = Vec::new();
            identifier("conversationId", id, &mut found);
            assert_eq!(found.first().map(|v| v.found.as_str()), problem, "{id:?}");
        }
    }
}
