//! The platform's error answers, turned into errors that say what to do.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, clip, one_line};
use crate::http::{Body, Response};
use crate::util::date::short;
use crate::values::attributes::Attributes;

/// Which kind of failure a status means.
pub(crate) fn kind_of(status: u16) -> ErrorKind {
    match status {
        400 | 405 | 415 | 422 | 428 => ErrorKind::InvalidInput,
        401 => ErrorKind::Auth,
        403 => ErrorKind::Forbidden,
        404 | 410 => ErrorKind::NotFound,
        408 => ErrorKind::Timeout,
        409 | 412 => ErrorKind::Conflict,
        413 => ErrorKind::PayloadTooLarge,
        429 => ErrorKind::RateLimited,
        500..=599 => ErrorKind::Server,
        _ => ErrorKind::Protocol,
    }
}

/// The text of an error answer, for a target to recognize a conflict by.
pub(crate) fn message_of(response: &Response) -> Option<String> {
    text(&fields(response), "message")
}

/// The platform's `ErrorBody`: every field may be missing, and the body need not be JSON at all.
fn fields(response: &Response) -> Map<String, Value> {
    response.object().unwrap_or_default()
}

fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    fields.get(name)?.as_str().map(str::to_owned)
}

/// The error for an answer that is not a success. `what` names the thing that was addressed, such
/// as `conversation c-1`.
pub(crate) fn error_of(response: &Response, what: &str, retry_after: Option<Duration>) -> Error {
    error_of_kind(kind_of(response.status), response, what, retry_after, &[])
}

/// As [`error_of`], where the target knows better than the status what the answer means. Values of
/// `hidden` are masked in the platform's text, which may quote them.
pub(crate) fn error_of_kind(
    kind: ErrorKind,
    response: &Response,
    what: &str,
    retry_after: Option<Duration>,
    hidden: &[&Attributes],
) -> Error {
    let status = response.status;
    let body = fields(response);
    let (code, message) = (text(&body, "code"), text(&body, "message"));
    let permissions = if kind == ErrorKind::Forbidden {
        permissions(&body, message.as_deref())
    } else {
        Vec::new()
    };
    let correlation_id = response.correlation_id().map(str::to_owned);
    let correlation_id = correlation_id.or_else(|| text(&body, "contextId"));
    let kept: Vec<&str> = [&code, &correlation_id]
        .into_iter()
        .flatten()
        .chain(&permissions)
        .map(String::as_str)
        .collect();
    let values = values_of(hidden);
    let mask = |text: &str| masked(text, &values, &kept);

    let mut described = format!("{what}: the platform answered {status}");
    if let Some(code) = &code {
        described += &format!(" {}", clip(code, 100));
    }
    let more = particulars(&body, &mask);
    let told = message.as_deref().map(|text| clip(mask(text).trim(), 400));
    let told = Vec::from_iter(told.into_iter().chain(more));
    if !told.is_empty() {
        described += &format!(" ({})", told.join("; "));
    } else if let Body::Whole(bytes) = &response.body
        && !bytes.is_empty()
    {
        described += " with a body that is not the platform's: is a proxy or gateway in between?";
    }
    if let Some(id) = &correlation_id {
        described += &format!(" [correlation id {}]", clip(id, 100));
    }
    if let Some(advice) = advice(kind, status, &permissions, retry_after) {
        described += ": ";
        described += &advice;
    }
    let error = Error::new(kind, described)
        .with_http_status(status)
        .with_code(code.map(|code| one_line(&clip(&code, 100))))
        .with_correlation_id(correlation_id.map(|id| one_line(&clip(&id, 200))))
        .with_missing_permissions(permissions)
        .with_retry_after(retry_after);
    if matches!(status, 501 | 505) {
        // What it does not do today it will not do tomorrow.
        return error.with_transient(false);
    }
    error
}

/// What an error body says beside its code and message: the limit, the details, more errors.
fn particulars(body: &Map<String, Value>, mask: &dyn Fn(&str) -> String) -> Vec<String> {
    const MOST: usize = 10;
    let list = |name: &str| {
        let list = body.get(name).and_then(Value::as_array);
        list.map_or(&[][..], Vec::as_slice).iter().take(MOST)
    };
    let named = |name: &str, value: &Value| match value {
        // A code is no free text, and a number here is one of the platform's own.
        Value::String(text) if name.ends_with("ode") || name == "key" => Some(text.clone()),
        Value::String(text) => Some(mask(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let mut found = Vec::new();
    if let Some(Value::Object(limit)) = body.get("limit") {
        let of = |name: &str| limit.get(name).and_then(|value| named(name, value));
        let limit = Vec::from_iter([of("key"), of("value")].into_iter().flatten());
        if !limit.is_empty() {
            found.push(format!("limit {}", limit.join(" = ")));
        }
    }
    for detail in list("details").filter_map(Value::as_object) {
        let fields = detail.iter().filter_map(|(name, value)| {
            let value = named(name, value)?;
            Some(format!("{name} {value}"))
        });
        found.push(Vec::from_iter(fields).join(", "));
    }
    for error in list("errors").filter_map(Value::as_object) {
        let of = |name: &str| error.get(name).and_then(|value| named(name, value));
        found.push(Vec::from_iter([of("code"), of("message")].into_iter().flatten()).join(": "));
    }
    found.retain(|text| !text.is_empty());
    found.iter().map(|text| clip(text, 200)).collect()
}

/// The texts of all values, the longest first: a value that is part of another must not leave the
/// rest of that behind.
fn values_of(hidden: &[&Attributes]) -> Vec<String> {
    let mut values = Vec::new();
    for value in hidden.iter().flat_map(|attributes| attributes.values()) {
        texts_of(value, &mut values);
    }
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values
}

/// The text without the values where they stand as words. Nothing of `kept` is taken for one.
fn masked(text: &str, values: &[String], kept: &[&str]) -> String {
    const MASK: &str = "[value]";
    let found = |word: &str| {
        let found = text
            .match_indices(word)
            .map(|(at, word)| (at, at + word.len()));
        Vec::from_iter(found.filter(|(at, end)| {
            !text[..*at].ends_with(char::is_alphanumeric)
                && !text[*end..].starts_with(char::is_alphanumeric)
        }))
    };
    let kept = kept.iter().filter(|word| !word.is_empty());
    let mut taken = Vec::from_iter(kept.flat_map(|word| found(word)));
    let mut hidden = Vec::new();
    for value in values {
        for (at, end) in found(value) {
            if taken
                .iter()
                .all(|(start, stop)| end <= *start || *stop <= at)
            {
                taken.push((at, end));
                hidden.push((at, end));
            }
        }
    }
    hidden.sort_unstable();
    let (mut out, mut from) = (String::new(), 0);
    for (at, end) in hidden {
        out += &text[from..at];
        out += MASK;
        from = end;
    }
    out + &text[from..]
}

/// The texts as which a value may be quoted.
fn texts_of(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if !text.is_empty() => {
            let quoted = Value::from(text.as_str()).to_string();
            let escaped = &quoted[1..quoted.len() - 1];
            if escaped != text {
                found.push(escaped.to_owned());
            }
            found.push(text.clone());
        }
        Value::Number(number) => found.push(number.to_string()),
        Value::Array(list) => list.iter().for_each(|value| texts_of(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| texts_of(value, found)),
        Value::String(_) | Value::Bool(_) | Value::Null => {}
    }
}

fn advice(
    kind: ErrorKind,
    status: u16,
    permissions: &[String],
    retry_after: Option<Duration>,
) -> Option<String> {
    Some(match kind {
        ErrorKind::InvalidInput if matches!(status, 400 | 422) => {
            "correct the attributes or the identifiers".into()
        }
        ErrorKind::Auth => "the access token was refused; check that the OAuth client is active \
                            and belongs to this region, or that the given access token is still \
                            valid"
            .into(),
        ErrorKind::Forbidden if permissions.is_empty() => {
            "give a role of the OAuth client the permission for this endpoint in the \
             conversation's division; for client credentials roles and divisions count, not scopes"
                .into()
        }
        ErrorKind::Forbidden => format!(
            "give a role of the OAuth client {} in the conversation's division; for client \
             credentials roles count, not scopes",
            permissions.join(" or ")
        ),
        ErrorKind::NotFound => {
            "check the id and the region; a conversation that ended long ago may be gone".into()
        }
        ErrorKind::Conflict => {
            "optimistic locking conflict: somebody else changed it in between; run it again".into()
        }
        ErrorKind::PayloadTooLarge => "send fewer or shorter attributes".into(),
        ErrorKind::RateLimited => match retry_after {
            Some(wait) => format!("try again in {}, at a lower rate", short(wait)),
            None => "try again later, at a lower rate".into(),
        },
        ErrorKind::Protocol if (300..400).contains(&status) => {
            "redirects are not followed; check the base URL".into()
        }
        _ => return None,
    })
}

/// The permissions that a 403 names, from its parameters or else from its text.
fn permissions(body: &Map<String, Value>, message: Option<&str>) -> Vec<String> {
    let from_params = body
        .get("messageParams")
        .and_then(|params| params.get("permissions"))
        .and_then(Value::as_str);
    let from_message = || {
        let message = message?;
        let start = message.rfind('[')?;
        let end = message[start..].find(']')? + start;
        message.get(start..=end)
    };
    let Some(list) = from_params.or_else(from_message) else {
        return Vec::new();
    };
    list.trim_matches(['[', ']'])
        .split(',')
        .map(|p| one_line(p.trim()))
        // Permissions look like domain:entity:action; anything else in brackets is not one.
        .filter(|p| p.contains(':') && !p.contains(' '))
        .take(50)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(body: &str) -> Error {
        error_of(
            &Response::new(403).with_body(body),
            "conversation c-1",
            None,
        )
    }

    #[test]
    fn problem_status_kind_table() {
        for (statuses, kind) in [
            (&[400, 405, 415, 422, 428][..], ErrorKind::InvalidInput),
            (&[401], ErrorKind::Auth),
            (&[403], ErrorKind::Forbidden),
            (&[404, 410], ErrorKind::NotFound),
            (&[408], ErrorKind::Timeout),
            (&[409, 412], ErrorKind::Conflict),
            (&[413], ErrorKind::PayloadTooLarge),
            (&[429], ErrorKind::RateLimited),
            (&[500, 501, 502, 503, 504, 599], ErrorKind::Server),
            (&[300, 302, 307, 402, 418, 600, 100], ErrorKind::Protocol),
        ] {
            for status in statuses {
                assert_eq!(kind_of(*status), kind, "{status}");
            }
        }
    }

    #[test]
    fn problem_403_names_permissions_in_both_places() {
        for body in [
            r#"{"code":"missing.any.permissions","message":"x: [conversation:communication:view, conversation:participant:attributesedit]"}"#,
            r#"{"message":"no list","messageParams":{"permissions":"[conversation:communication:view,conversation:participant:attributesedit]"}}"#,
        ] {
            let error = forbidden(body);
            assert_eq!(
                error.missing_permissions(),
                [
                    "conversation:communication:view",
                    "conversation:participant:attributesedit"
                ]
            );
            assert!(
                error
                    .to_string()
                    .contains("conversation:participant:attributesedit")
            );
            assert!(error.to_string().contains("not scopes"));
        }
    }

    #[test]
    fn problem_403_without_list_says_what_to_do() {
        for body in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"message":"] [ nothing"}"#,
            r#"{"message":"a [b c] d"}"#,
        ] {
            let error = forbidden(body);
            assert!(error.missing_permissions().is_empty(), "{body}");
            let text = error.to_string();
            assert!(text.contains("give a role of the OAuth client"), "{text}");
            // Which permission an endpoint asks for is the kind of store's to know.
            assert!(!text.contains("conversation:"), "{text}");
        }
    }

    #[test]
    fn problem_shows_code_message_and_correlation_id() {
        let response = Response::new(400)
            .with_header("ININ-Correlation-Id", "abc-1")
            .with_body(
                r#"{"message":"malformed\nsyntax","code":"bad.request","contextId":"other"}"#,
            );
        let error = error_of(&response, "conversation c-1", None);
        assert_eq!(error.code(), Some("bad.request"));
        assert_eq!(error.correlation_id(), Some("abc-1"));
        assert_eq!(error.http_status(), Some(400));
        for part in [
            "bad.request",
            "malformed syntax",
            "abc-1",
            "conversation c-1",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn problem_context_id_replaces_missing_header() {
        let response = Response::new(404).with_body(r#"{"contextId":"ctx"}"#);
        assert_eq!(error_of(&response, "x", None).correlation_id(), Some("ctx"));
    }

    #[test]
    fn problem_501_is_not_transient() {
        assert!(error_of(&Response::new(503), "x", None).is_transient());
        assert!(!error_of(&Response::new(501), "x", None).is_transient());
    }

    #[test]
    fn problem_text_that_quotes_a_value_is_masked() {
        let hidden = serde_json::json!({ "iban": "DE89370400440532013000", "pin": "42", "n": 7 });
        let hidden = hidden.as_object().unwrap();
        let values = values_of(&[hidden]);
        for (text, shown) in [
            ("DE89370400440532013000 is bad", "[value] is bad"),
            ("tier:DE89370400440532013000.", "tier:[value]."),
            ("xDE89370400440532013000x", "xDE89370400440532013000x"),
            ("got '42', not 420 or a42", "got '[value]', not 420 or a42"),
            ("7 of 17", "[value] of 17"),
            ("4242 42", "4242 [value]"),
        ] {
            assert_eq!(masked(text, &values, &[]), shown);
        }
    }

    #[test]
    fn problem_code_ids_and_permissions_are_never_masked() {
        let hidden = serde_json::json!({
            "a": "bad", "b": "1", "c": "request", "d": "conversation", "e": "view", "f": "secret",
        });
        let hidden = hidden.as_object().unwrap();
        let body = r#"{"code":"bad.request","contextId":"corr-1",
            "message":"bad.request corr-1: bad 1 secret [conversation:communication:view]"}"#;
        let response = Response::new(403).with_body(body);
        let error = error_of_kind(ErrorKind::Forbidden, &response, "c", None, &[hidden]);
        assert_eq!(error.code(), Some("bad.request"));
        assert_eq!(error.correlation_id(), Some("corr-1"));
        assert_eq!(
            error.missing_permissions(),
            ["conversation:communication:view"]
        );
        let text = error.to_string();
        for part in [
            "403 bad.request (bad.request corr-1: [value] [value] [value] [conversation:communication:view])",
            "[correlation id corr-1]",
            "client conversation:communication:view in",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn problem_shows_details_errors_and_the_limit() {
        let hidden = serde_json::json!({ "iban": "DE89", "n": 300 });
        let hidden = hidden.as_object().unwrap();
        for (status, body, parts) in [
            (
                400,
                serde_json::json!({
                    "code": "bad.request",
                    "message": "no",
                    "details": [
                        { "errorCode": "too.long", "fieldName": "iban", "entityName": "DE89" },
                        { "errorCode": "DE89" }, 7
                    ],
                    "errors": [{ "code": "inner", "message": "DE89 is no IBAN" }, {}]
                }),
                &[
                    "(no; entityName [value], errorCode too.long, fieldName iban; errorCode DE89; \
                     inner: [value] is no IBAN)",
                ][..],
            ),
            (
                429,
                serde_json::json!({ "limit": { "key": "token.rate.per.minute", "value": 300 } }),
                &["429 (limit token.rate.per.minute = 300)"],
            ),
            (
                400,
                serde_json::json!({ "details": "x", "errors": 7, "limit": [] }),
                &["answered 400"],
            ),
        ] {
            let response = Response::new(status).with_body(body.to_string());
            let error = error_of_kind(kind_of(status), &response, "c", None, &[hidden]);
            for part in parts {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }

    #[test]
    fn problem_code_of_any_length_is_cut() {
        let body = serde_json::json!({ "code": "x".repeat(900_000) }).to_string();
        let error = error_of(&Response::new(400).with_body(body), "c", None);
        assert!(error.code().unwrap_or_default().chars().count() <= 101);
    }
}
