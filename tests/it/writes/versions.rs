//! The version: where it is told, and how it goes back.

use super::*;

#[test]
fn version_is_sent_back_verbatim() {
    let read = |version: Value| json_response(200, &json!({ "version": version }));
    let tagged = |tag: &str| Response::new(200).with_body("{}").with_header("ETag", tag);
    for (name, response, sent, told) in [
        ("number", read(json!(7)), "\"7\"", "7"),
        (
            "large number",
            read(json!(u64::MAX)),
            "\"18446744073709551615\"",
            "18446744073709551615",
        ),
        ("text", read(json!("7")), "\"7\"", "7"),
        ("any text", read(json!("a-1.b:c")), "\"a-1.b:c\"", "a-1.b:c"),
        ("a tag in the body", read(json!("\"7\"")), "\"7\"", "\"7\""),
        (
            "a weak tag in the body",
            read(json!("W/\"7\"")),
            "W/\"7\"",
            "W/\"7\"",
        ),
        ("strong tag", tagged("\"abc\""), "\"abc\"", "\"abc\""),
        ("weak tag", tagged("W/\"abc\""), "W/\"abc\"", "W/\"abc\""),
        ("empty tag", tagged("\"\""), "\"\"", "\"\""),
        (
            "the body goes first",
            read(json!(7)).with_header("ETag", "\"x\""),
            "\"7\"",
            "7",
        ),
        (
            "null and a tag",
            read(json!(null)).with_header("ETag", "\"x\""),
            "\"x\"",
            "\"x\"",
        ),
        (
            "unusable text and a tag",
            read(json!("7\r\nX-Evil: 1")).with_header("ETag", "\"x\""),
            "\"x\"",
            "\"x\"",
        ),
    ] {
        let fake = Fake::named(name);
        fake.token().answer("GET", response).patch(8);
        let receipt = fake.client().update(&update()).unwrap();
        assert_eq!(fake.if_matches(), [sent], "{name}");
        assert_eq!(receipt.previous_version.as_deref(), Some(told), "{name}");
    }
}

/// A tag that is a hash of the answer's body would be a conflict at every warm update.
#[test]
fn version_of_write_counts_only_in_the_form_of_the_read() {
    let tagged = |tag: &str| Response::new(200).with_body("{}").with_header("ETag", tag);
    let told = |version: Value| json_response(200, &json!({ "version": version }));
    for (name, read, written, warm) in [
        (
            "text, number",
            told(json!("7")),
            told(json!(8)),
            Some("\"8\""),
        ),
        ("text, strong tag", told(json!(7)), tagged("\"9f8e\""), None),
        ("text, weak tag", told(json!(7)), tagged("W/\"9f8e\""), None),
        (
            "strong tag, strong tag",
            tagged("\"x-8\""),
            tagged("\"x-9\""),
            Some("\"x-9\""),
        ),
        (
            "strong tag, weak tag",
            tagged("\"x-8\""),
            tagged("W/\"x-9\""),
            None,
        ),
        ("strong tag, text", tagged("\"x-8\""), told(json!(9)), None),
        (
            "weak tag, weak tag",
            tagged("W/\"x-8\""),
            tagged("W/\"x-9\""),
            Some("W/\"x-9\""),
        ),
        (
            "weak tag, strong tag",
            tagged("W/\"x-8\""),
            tagged("\"x-9\""),
            None,
        ),
        ("weak tag, text", tagged("W/\"x-8\""), told(json!(9)), None),
    ] {
        let fake = Fake::named(name);
        fake.token().answer("GET", read).answer("PATCH", written);
        if warm.is_none() {
            fake.get(30);
        }
        fake.patch(31);
        let client = fake.client();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.version.is_some(), warm.is_some(), "{name}");
        client.update(&update()).unwrap();
        assert_eq!(fake.if_matches()[1], warm.unwrap_or("\"30\""), "{name}");
    }
}

#[test]
fn version_of_write_that_met_a_conflict_ends_trust_in_the_next_ones() {
    let tagged = |tag: &str| Response::new(200).with_body("{}").with_header("ETag", tag);
    let fake = Fake::new();
    fake.token()
        .answer("GET", tagged("\"a\""))
        .answer("PATCH", tagged("\"hash-1\""))
        // The first warm one finds out.
        .status("PATCH", 412)
        .answer("GET", tagged("\"b\""))
        .answer("PATCH", tagged("\"hash-2\""))
        // The others are cold, and meet none.
        .answer("GET", tagged("\"c\""))
        .answer("PATCH", tagged("\"hash-3\""))
        .answer("GET", tagged("\"d\""))
        .status("PATCH", 403)
        .answer("GET", tagged("\"e\""))
        .answer("PATCH", tagged("\"hash-5\""))
        // Another conversation is another matter.
        .answer("GET", tagged("\"x\""))
        .answer("PATCH", tagged("\"y\""))
        .answer("PATCH", tagged("\"z\""));
    let client = fake.client();
    for _ in 0..3 {
        client.update(&update()).unwrap();
    }
    client.update(&update()).unwrap_err();
    client.update(&update()).unwrap();
    let other = Update::conversation("c-2").set("k", 1);
    client.update(&other).unwrap();
    client.update(&other).unwrap();
    assert_eq!(
        fake.if_matches(),
        [
            "\"a\"",
            "\"hash-1\"",
            "\"b\"",
            "\"c\"",
            "\"d\"",
            "\"e\"",
            "\"x\"",
            "\"y\""
        ]
    );
    assert_eq!(client.metrics().conflicts, 1);
}

/// Frameworks tag bodies by themselves, weakly; `If-Match` never matches such a tag.
#[test]
fn entity_tag_weak_of_write_counts_only_after_read_with_one() {
    let tagged = || {
        Response::new(200)
            .with_body("{}")
            .with_header("ETag", "W/\"x-9\"")
    };
    let fake = Fake::new();
    fake.token()
        .get(7)
        .answer("PATCH", tagged())
        .get(8)
        .patch(9);
    let client = fake.client();
    assert_eq!(client.update(&update()).unwrap().version, None);
    client.update(&update()).unwrap();
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);

    let fake = Fake::new();
    fake.token()
        .answer("GET", tagged())
        .answer("PATCH", tagged())
        .patch(9);
    let client = fake.client();
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    assert_eq!(fake.if_matches(), ["W/\"x-9\"", "W/\"x-9\""]);
}

#[test]
fn version_missing_writes_nothing() {
    // The answer, and how often it is read: what is not JSON may be another's, and pass.
    for (name, response, reads) in [
        ("none", Response::new(200).with_body("{}"), 1),
        (
            "null",
            Response::new(200).with_body(r#"{"version":null}"#),
            1,
        ),
        (
            "empty",
            Response::new(200).with_body(r#"{"version":""}"#),
            1,
        ),
        (
            "an object",
            Response::new(200).with_body(r#"{"version":{}}"#),
            1,
        ),
        (
            "a line break",
            Response::new(200).with_body(r#"{"version":"7\r\nX: 1"}"#),
            1,
        ),
        (
            "a quote inside",
            Response::new(200).with_body(r#"{"version":"7\"8"}"#),
            1,
        ),
        (
            "not a tag",
            Response::new(200).with_body("{}").with_header("ETag", "7"),
            1,
        ),
        ("no body", Response::new(200), 4),
        ("no JSON", Response::new(200).with_body("<html>"), 4),
        ("no object", Response::new(200).with_body("[7]"), 1),
    ] {
        let fake = Fake::named(name);
        fake.token();
        let response = response.with_header("ININ-Correlation-Id", "abc");
        for _ in 0..reads {
            fake.answer("GET", response.clone());
        }
        let error = fake.client().update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{name}");
        assert_eq!(error.http_status(), Some(200));
        assert_eq!(error.correlation_id(), Some("abc"));
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (0, reads), "{name}");
        assert_eq!(fake.sleeps().len() as u32, reads - 1, "{name}");
    }
}
