//! Versions: how they are read from an answer, and how they travel with a write.

use serde_json::Value;

use crate::http::Response;

/// Whether text can travel as a version: as the inside of an entity tag, or as a whole one.
pub(crate) fn is_version(text: &str) -> bool {
    is_entity_tag(text) || is_opaque(text) && !text.is_empty()
}

/// The characters that an entity tag may hold (RFC 9110 §8.8.3), without those beyond ASCII.
fn is_opaque(text: &str) -> bool {
    text.bytes()
        .all(|b| b == b'!' || (b'#'..=b'~').contains(&b))
}

fn is_entity_tag(text: &str) -> bool {
    text.strip_prefix("W/")
        .unwrap_or(text)
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .is_some_and(is_opaque)
}

/// Whether two versions are written in the same way: both as plain text, both as strong entity
/// tags, or both as weak ones. A version of another form than the one that was read is something
/// else than a version: frameworks tag bodies by themselves.
pub(crate) fn same_form(a: &str, b: &str) -> bool {
    let form = |version: &str| (is_entity_tag(version), version.starts_with("W/"));
    form(a) == form(b)
}

/// The `If-Match` value of a version: an entity tag goes back verbatim, other text in quotes.
pub(crate) fn entity_tag(version: &str) -> String {
    if is_entity_tag(version) {
        version.to_owned()
    } else {
        ["\"", version, "\""].concat()
    }
}

/// The version that a body holds, as text or integer: any other number would not go back as it came.
pub(crate) fn version_in_body(version: Option<&Value>) -> Option<String> {
    match version {
        Some(Value::String(text)) if is_version(text) => Some(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// The version of an answer whose target locks by `If-Match`: the body's, or else the entity tag.
pub(crate) fn version_of(in_body: Option<&Value>, response: &Response) -> Option<String> {
    version_in_body(in_body).or_else(|| {
        let tag = response.header("etag").filter(|tag| is_entity_tag(tag));
        tag.map(str::to_owned)
    })
}

/// A version in a body: a number where it is one, since the platform's schema says integer.
pub(crate) fn json_version(version: &str) -> Value {
    version
        .parse::<u64>()
        .ok()
        .filter(|n| n.to_string() == version)
        .map_or_else(|| Value::from(version), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn version_text_by_table() {
        for (text, version, tag) in [
            ("7", true, false),
            ("a!b", true, false),
            ("\"7\"", true, true),
            ("W/\"7\"", true, true),
            ("\"\"", true, true),
            ("", false, false),
            ("a b", false, false),
            ("a\"b", false, false),
            ("\"", false, false),
            ("\"a\"b\"", false, false),
            ("é", false, false),
            ("a\nb", false, false),
        ] {
            assert_eq!(is_version(text), version, "{text:?}");
            assert_eq!(is_entity_tag(text), tag, "{text:?}");
        }
    }

    #[test]
    fn version_entity_tag_goes_back_verbatim_and_text_in_quotes() {
        assert_eq!(entity_tag("7"), "\"7\"");
        assert_eq!(entity_tag("\"7\""), "\"7\"");
        assert_eq!(entity_tag("W/\"7\""), "W/\"7\"");
    }

    #[test]
    fn version_forms_differ_between_text_strong_and_weak_tags() {
        let forms = ["7", "\"7\"", "W/\"7\""];
        for (i, a) in forms.iter().enumerate() {
            for (j, b) in forms.iter().enumerate() {
                assert_eq!(same_form(a, b), i == j, "{a} {b}");
            }
        }
    }

    #[test]
    fn version_in_a_body_is_a_number_where_it_was_one() {
        assert_eq!(version_in_body(Some(&json!(7))).as_deref(), Some("7"));
        assert_eq!(version_in_body(Some(&json!("7"))).as_deref(), Some("7"));
        assert_eq!(version_in_body(Some(&json!(null))), None);
        assert_eq!(version_in_body(Some(&json!("a b"))), None);
        assert_eq!(json_version("7"), json!(7));
        assert_eq!(json_version("07"), json!("07"));
        assert_eq!(json_version("v7"), json!("v7"));
    }

    #[test]
    fn version_of_an_answer_prefers_the_body() {
        let tagged = Response::new(200).with_header("ETag", "\"9\"");
        assert_eq!(version_of(Some(&json!(7)), &tagged).as_deref(), Some("7"));
        assert_eq!(version_of(None, &tagged).as_deref(), Some("\"9\""));
        let bare = Response::new(200).with_header("ETag", "9");
        assert_eq!(version_of(None, &bare), None);
    }
}
