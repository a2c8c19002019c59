//! 401 and final answers.

use super::*;

#[test]
fn unauthorized_write_refreshes_token_once() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        fake.status("PATCH", 401).token().patch(8);
        let receipt = fake.client().update(&kind.update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2 + kind.reads()));
        let writes = fake.sent("PATCH");
        assert_eq!(writes[0].authorization(), "Bearer token-1");
        assert_eq!(writes[1].authorization(), "Bearer token-2");
        assert_eq!(writes[0].if_match(), writes[1].if_match());
        assert_eq!(writes[0].body, writes[1].body);
        assert!(fake.sleeps().is_empty());
    }
}

#[test]
fn unauthorized_twice_is_final() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        fake.status("PATCH", 401).token().status("PATCH", 401);
        let error = fake.client().update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert_eq!(error.http_status(), Some(401));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert_eq!(error.attempts(), 2);
        assert!(fake.sleeps().is_empty());
    }
}

#[test]
fn unauthorized_read_refreshes_token() {
    let fake = Fake::new();
    fake.token().status("GET", 401).token().get(7).patch(8);
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 3));
    assert_eq!(fake.methods(), "POST GET POST GET PATCH");
}

#[test]
fn unauthorized_given_token_is_final() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin_again(&fake);
        fake.status("PATCH", 401);
        let client = fake.builder_with_token().build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert_eq!(error.attempts(), 1);
        assert_eq!(fake.sent("PATCH")[0].authorization(), "Bearer given");
        assert!(fake.sent("POST").is_empty());
    }
}

#[test]
fn write_final_statuses_have_documented_kind() {
    for (statuses, expected) in [
        (&[400, 405, 415, 422, 428][..], ErrorKind::InvalidInput),
        (&[403], ErrorKind::Forbidden),
        (&[404, 410], ErrorKind::NotFound),
        (&[413], ErrorKind::PayloadTooLarge),
        (&[501, 505, 599], ErrorKind::Server),
        (&[300, 301, 302, 303, 304, 307, 308], ErrorKind::Protocol),
        (&[402, 406, 418, 451], ErrorKind::Protocol),
    ] {
        for &status in statuses {
            for kind in [Locked, Unlocked] {
                let fake = Fake::named(format!("{kind:?} {status}"));
                kind.begin(&fake);
                let body =
                    json!({ "code": "some.code", "message": "in words", "contextId": "ctx" });
                fake.answer("PATCH", json_response(status, &body));
                // After a 404 for a participant's id a read tells who is there.
                let reads = u32::from([404, 410].contains(&status) && matches!(kind, Unlocked));
                if reads > 0 {
                    fake.status("GET", 403);
                }
                let error = fake.client().update(&kind.update()).unwrap_err();
                assert_eq!(error.kind(), expected, "{status}");
                assert_eq!(error.http_status(), Some(status));
                assert_eq!(error.code(), Some("some.code"));
                assert_eq!(error.correlation_id(), Some("ctx"));
                let requests = 1 + kind.reads() + reads;
                assert_eq!((error.attempts(), error.requests()), (1, requests));
                // 599 and its like are a gateway's: what is behind it may have done the work.
                assert_eq!(error.may_have_applied(), status == 599, "{status}");
                assert_eq!(error.is_transient(), status == 599, "{status}");
                assert!(fake.sleeps().is_empty());
                says(&error, &["c-1", "some.code", "in words", "ctx"]);
            }
        }
    }
}

#[test]
fn read_final_statuses_have_documented_kind_and_write_nothing() {
    for (status, expected) in [
        (400, ErrorKind::InvalidInput),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (409, ErrorKind::Conflict),
        (412, ErrorKind::Conflict),
        (302, ErrorKind::Protocol),
        (501, ErrorKind::Server),
    ] {
        let fake = Fake::named(status.to_string());
        fake.token().status("GET", status);
        let error = fake.client().update(&update()).unwrap_err();
        assert_eq!(error.kind(), expected, "{status}");
        assert_eq!((error.attempts(), error.requests()), (0, 1));
        assert!(!error.may_have_applied());
    }
}

#[test]
fn forbidden_names_missing_permission() {
    let fake = Fake::new();
    let body = json!({
        "code": "missing.any.permissions",
        "message": "… at least one of the following permissions assigned: [conversation:participant:attributesedit]",
    });
    fake.token().answer("PATCH", json_response(403, &body));
    let error = fake.client().update(&Unlocked.update()).unwrap_err();
    assert_eq!(
        error.missing_permissions(),
        ["conversation:participant:attributesedit"]
    );
    says(&error, &["conversation:participant:attributesedit", "role"]);
}

/// What the platform says of a value must not carry it into logs and reports.
#[test]
fn refusal_quoting_values_shows_none_of_them() {
    let update = || {
        Update::custom("c-1", "r-1")
            .set("name", "Erika Mustermann")
            .set("pin", "x7")
            .set("score", 918_273)
            .set("quoted", "a \"b\"\nc")
            .set(
                "nested",
                json!({ "deep": ["hidden-5ecret", { "more": "elsewhere-5ecret" }] }),
            )
            .set("inside", "Mustermann")
    };
    let messages = [
        "value 'Erika Mustermann' of name is too long",
        "Mustermann, Erika Mustermann and once more Erika Mustermann",
        "pin x7 is refused, and (x7) too",
        "score 918273 is over 918272",
        r#"got "a \"b\"\nc""#,
        "got hidden-5ecret and elsewhere-5ecret",
    ];
    for message in messages {
        for status in [400, 403, 409, 413, 422, 500] {
            let fake = Fake::named(message);
            let body = json!({
                "message": message,
                "code": "bad.value",
                "contextId": "ctx",
            });
            let read = json!({ "version": 1, "customAttributes": {} });
            fake.token()
                .get_body(read)
                .answer("PATCH", json_response(status, &body));
            let policy = RetryPolicy::default()
                .with_max_attempts(1)
                .with_max_conflicts(0);
            let client = fake.builder().retry(policy).build().unwrap();
            let error = client.update(&update()).unwrap_err();
            let shown = format!(
                "{error} {error:?} {error:#?} {} {:?} {:?}",
                serde_json::to_string(&error).unwrap(),
                error.code(),
                error.correlation_id(),
            );
            for value in [
                "Mustermann",
                "Erika",
                "x7",
                "918273",
                "\"b\"",
                "\\\"b",
                "5ecret",
            ] {
                assert!(!shown.contains(value), "{value} in {shown}");
            }
            assert!(error.to_string().contains("[value]"), "{error}");
        }
    }
}

/// A short value is masked where it stands alone, and leaves other words whole.
#[test]
fn refusal_text_stays_readable_beside_short_values() {
    let fake = Fake::new();
    let body = json!({ "message": "the attribute a of an array at 1 is not 10: bad a" });
    fake.token()
        .get(7)
        .answer("PATCH", json_response(400, &body));
    let update = Update::conversation("c-1").set("k", "a").set("n", 1);
    let error = fake.client().update(&update).unwrap_err();
    says(
        &error,
        &["the attribute [value] of an array at [value] is not 10: bad [value]"],
    );
}

#[test]
fn refusal_of_secure_update_shows_neither_its_values_nor_those_there() {
    let fake = Fake::new();
    let body = json!({ "message": "keep-5ecret and new-5ecret do not go together" });
    fake.token()
        .get_body(json!({ "attributes": { "old": "keep-5ecret" }, "version": 3 }))
        .answer("PUT", json_response(400, &body));
    let error = fake
        .client()
        .update(&Update::secure("c-1").set("iban", "new-5ecret"))
        .unwrap_err();
    assert!(!format!("{error} {error:?}").contains("5ecret"), "{error}");
    says(&error, &["[value] and [value] do not go together"]);
}

#[test]
fn refusal_of_any_size_is_cut() {
    let fake = Fake::new();
    let body = json!({ "message": "m".repeat(400_000), "code": "é".repeat(450_000) });
    fake.token()
        .get(7)
        .answer("PATCH", json_response(400, &body));
    let error = fake.client().update(&update()).unwrap_err();
    let code = error.code().unwrap();
    assert!(code.chars().count() <= 101, "{}", code.len());
    assert!(code.starts_with("éé"));
    assert!(error.to_string().len() < 2_000);
    assert!(format!("{error:?}").len() < 4_000);
    assert!(serde_json::to_string(&error).unwrap().len() < 4_000);
}

#[test]
fn refusal_of_verifying_read_shows_no_value() {
    let fake = Fake::new();
    let body = json!({ "message": "cannot show new-5ecret" });
    fake.token()
        .get_body(json!({ "attributes": {}, "version": 3 }))
        .status("PUT", 202)
        .answer("GET", json_response(400, &body));
    let update = Update::secure("c-1").set("iban", "new-5ecret").verify();
    let error = fake.client().update(&update).unwrap_err();
    assert!(error.may_have_applied());
    assert!(!format!("{error} {error:?}").contains("5ecret"), "{error}");
    says(&error, &["cannot show [value]"]);
}

/// Wherever in a call the transport panics, it is an error of that call, and the next one works.
#[test]
fn transport_panic_is_an_internal_error_of_the_call() {
    type Call = fn(&Client) -> Option<Error>;
    let calls: [(Call, &[&str]); 5] = [
        (
            |client| client.update(&Locked.update()).err(),
            &["POST", "GET", "PATCH"],
        ),
        (
            |client| client.read(Locked.update().target()).err(),
            &["POST", "GET"],
        ),
        (
            |client| client.preview(&Locked.update()).err(),
            &["POST", "GET"],
        ),
        (|client| client.verify_credentials().err(), &["POST", "GET"]),
        (
            |client| {
                let customer =
                    Target::participant("5b2f0c1e-0000-4000-8000-000000000001", "customer");
                client.prefetch_participants([&customer]).err()
            },
            &["POST", "GET"],
        ),
    ];
    for (call, requests) in calls {
        for (at, method) in requests.iter().enumerate() {
            let fake = Fake::named(format!("{requests:?} {method}"));
            if at > 0 {
                fake.token();
            }
            if at > 1 {
                fake.get(7);
            }
            fake.panics(method);
            let client = fake.client();
            let error = call(&client).unwrap();
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            assert_eq!(error.may_have_applied(), *method == "PATCH");
            says(&error, &["the transport panicked", "correct it"]);
            assert_eq!(fake.seen().len(), at + 1);
            if at == 0 {
                fake.token();
            }
            fake.get(7).patch(8);
            client.update(&Locked.update()).unwrap();
        }
    }
}
