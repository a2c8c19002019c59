//! `skip_unchanged` and `if_version`.

use super::*;

#[test]
fn skip_unchanged_writes_only_differences() {
    for (name, read, written) in [
        (
            "in place",
            json!({ "tier": "gold", "n": 85, "x": 1 }),
            false,
        ),
        ("as a float", json!({ "tier": "gold", "n": 85.0 }), false),
        ("another value", json!({ "tier": "silver", "n": 85 }), true),
        ("as text", json!({ "tier": "gold", "n": "85" }), true),
        ("a key is missing", json!({ "tier": "gold" }), true),
        ("cannot be read", Value::Null, true),
    ] {
        let fake = Fake::named(name);
        fake.token().get_with(7, read);
        if written {
            fake.patch(8);
        }
        let client = fake.client();
        let receipt = client
            .update(&update().set("n", 85).skip_unchanged())
            .unwrap();
        let outcome = if written {
            Outcome::Applied
        } else {
            Outcome::Unchanged
        };
        assert_eq!(receipt.outcome, outcome, "{name}");
        assert_eq!(receipt.attempts, u32::from(written));
        assert_eq!(receipt.requests, 1 + u32::from(written));
        if !written {
            assert_eq!(receipt.version.as_deref(), Some("7"));
        }
        assert_eq!(client.metrics().unchanged, u64::from(!written));
    }
}

#[test]
fn skip_unchanged_reads_despite_cached_version() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .get_with(8, json!({ "tier": "gold" }));
    let client = fake.client();
    client.update(&update()).unwrap();
    let receipt = client.update(&update().skip_unchanged()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
}

#[test]
fn if_version_needs_no_read_and_is_sent_as_entity_tag() {
    for (given, sent) in [
        ("7", "\"7\""),
        ("abc-1", "\"abc-1\""),
        ("\"abc\"", "\"abc\""),
        ("W/\"abc\"", "W/\"abc\""),
    ] {
        let fake = Fake::named(given);
        fake.token().patch(8);
        let receipt = fake.client().update(&update().if_version(given)).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        assert_eq!(receipt.previous_version.as_deref(), Some(given));
        assert_eq!(fake.if_matches(), [sent]);
    }
}

#[test]
fn if_version_precedes_cached_version() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).status("PATCH", 412);
    let client = fake.client();
    client.update(&update()).unwrap();
    client.update(&update().if_version("5")).unwrap_err();
    assert_eq!(fake.if_matches(), ["\"7\"", "\"5\""]);
}

#[test]
fn if_version_conflict_is_final() {
    for status in [412, 409] {
        let fake = Fake::named(status.to_string());
        fake.token().status("PATCH", status);
        let client = fake.client();
        let error = client.update(&update().if_version("7")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (1, 1));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert!(fake.sleeps().is_empty());
        assert_eq!(client.metrics().conflicts, 1);
    }
}

#[test]
fn if_version_with_read_is_compared_before_write() {
    let fake = Fake::new();
    fake.token().get(9);
    let error = fake
        .client()
        .update(&update().set("system.a", 1).if_version("7"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.attempts(), 0);
    says(&error, &["9", "7"]);
}

#[test]
fn if_version_on_unlocked_target_is_invalid_input() {
    for (update, rule) in [
        (Unlocked.update().if_version("7"), Rule::Unsupported),
        (
            Update::secure("c-1")
                .set("k", "v")
                .unlocked()
                .if_version("7"),
            Rule::Unsupported,
        ),
        (update().if_version(""), Rule::Version),
        (update().if_version("7\r\nX: 1"), Rule::Version),
        (update().if_version("a\"b"), Rule::Version),
        (update().if_version("a b"), Rule::Version),
        (update().if_version("é"), Rule::Version),
    ] {
        let fake = Fake::new();
        let error = fake.client().update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.violations()[0].rule, rule, "{error}");
        assert_eq!(error.violations()[0].key, "ifVersion");
    }
}
