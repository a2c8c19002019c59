//! `update_with`: read, compute, write.

use super::*;

#[test]
fn update_with_sees_snapshot_and_writes_result() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1, "s": "x" }))
        .patch(8)
        .get_with(8, json!({ "n": 2 }))
        .patch(9);
    let client = fake.client();
    for expected in [1, 2] {
        let receipt = client
            .update_with(&Target::conversation("c-1"), |now| {
                assert_eq!(now.conversation_id, "c-1");
                assert_eq!(
                    now.version.as_deref(),
                    Some((expected + 6).to_string().as_str())
                );
                assert_eq!(now.attributes["n"], expected);
                Ok(Some(attributes(json!({ "n": expected + 1 }))))
            })
            .unwrap();
        // It reads although the version is remembered: it needs the values.
        assert_eq!((receipt.attempts, receipt.requests), (1, 2));
        let write = fake.sent("PATCH").pop().unwrap();
        assert_eq!(write.body["attributes"], json!({ "n": expected + 1 }));
    }
}

#[test]
fn update_with_none_is_unchanged() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({ "n": 1 }));
    let client = fake.client();
    let receipt = client
        .update_with(&Target::conversation("c-1"), |_| Ok(None))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_eq!((receipt.attempts, receipt.requests), (0, 1));
    assert_eq!(client.metrics().unchanged, 1);
}

#[test]
fn update_with_conflict_computes_again() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1 }))
        .status("PATCH", 412)
        .get_with(8, json!({ "n": 10 }))
        .patch(9);
    let receipt = fake
        .client()
        .update_with(&Target::conversation("c-1"), |now| {
            let n = now.attributes["n"].as_u64().unwrap();
            Ok(Some(attributes(json!({ "n": n + 1 }))))
        })
        .unwrap();
    assert_eq!(receipt.attempts, 2);
    let bodies: Vec<_> = fake
        .sent("PATCH")
        .iter()
        .map(|r| r.body["attributes"]["n"].clone())
        .collect();
    assert_eq!(bodies, [2, 11]);
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
}

#[test]
fn update_with_conflict_may_end_unchanged() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1 }))
        .status("PATCH", 412)
        .get_with(8, json!({ "n": 10 }));
    let receipt = fake
        .client()
        .update_with(&Target::conversation("c-1"), |now| {
            Ok((now.attributes["n"] == 1).then(|| attributes(json!({ "n": 2 }))))
        })
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_eq!(receipt.version.as_deref(), Some("8"));
}

#[test]
fn update_with_result_is_validated_and_error_passed_on() {
    let fake = Fake::new();
    fake.token();
    let client = fake.client();
    for (result, kind) in [
        (
            Err(Error::new(ErrorKind::NotFound, "no such customer")),
            ErrorKind::NotFound,
        ),
        (
            Ok(Some(attributes(json!({ "a": 1.5, "b": null })))),
            ErrorKind::InvalidInput,
        ),
        (Ok(Some(Attributes::new())), ErrorKind::InvalidInput),
    ] {
        fake.get_with(7, json!({}));
        let error = client
            .update_with(&Target::conversation("c-1"), |_| result.clone())
            .unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!((error.attempts(), error.requests()), (0, 1));
    }
    // The guard looks at computed keys too.
    fake.get_body(json!({ "version": 7, "state": "terminated", "attributes": {} }));
    let error = client
        .update_with(&Target::conversation("c-1"), |_| {
            Ok(Some(attributes(json!({ "system.a": 1 }))))
        })
        .unwrap_err();
    assert_eq!(error.violations()[0].rule, Rule::SystemKey);
}

#[test]
fn update_with_unreadable_values_computes_nothing() {
    let fake = Fake::new();
    fake.token().get(7).get(7);
    let client = fake.client();
    let target = Target::conversation("c-1");
    let error = client
        .update_with(&target, |_| panic!("not called"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(
        client.read(&target).unwrap_err().kind(),
        ErrorKind::Protocol
    );
}

#[test]
fn update_with_panic_is_error_and_client_lives_on() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({})).get(7).patch(8);
    let client = fake.client();
    let error = client
        .update_with(&Target::conversation("c-1"), |_| panic!("on purpose"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (0, 1));
    assert_eq!(client.metrics().failed(ErrorKind::Internal), 1);
    // The conversation's turn was given back.
    client.update(&update()).unwrap();
}

#[test]
fn update_with_panic_after_conflict_is_not_ambiguous() {
    // Both answers were clear: not applied.
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({}))
        .status("PATCH", 412)
        .get_with(8, json!({}));
    let mut calls = 0;
    let error = fake
        .client()
        .update_with(&Target::conversation("c-1"), |_| {
            calls += 1;
            assert!(calls == 1, "on purpose");
            Ok(Some(attributes(json!({ "n": 1 }))))
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(error.attempts(), 1);
    assert!(!error.may_have_applied());
}

#[test]
fn update_with_nested_update_is_refused() {
    for other in ["c-1", "c-2"] {
        let fake = Fake::named(other);
        fake.token().get_with(7, json!({})).patch(8);
        let client = fake.client();
        let mut inner = None;
        client
            .update_with(&Target::conversation("c-1"), |_| {
                inner = Some(client.update(&Update::conversation(other).set("k", 1)));
                Ok(Some(attributes(json!({ "n": 1 }))))
            })
            .unwrap();
        let error = inner.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        says(&error, &["update_with"]);
    }
}
