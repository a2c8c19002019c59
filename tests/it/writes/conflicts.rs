//! 409 and 412, before and after an attempt of unknown outcome.

use genesys_attributes::http::{Method, Request, TransportError};
use genesys_attributes::{Credentials, Region};

use super::*;

#[test]
fn conflict_is_settled_with_newly_read_version() {
    for status in [412, 409] {
        let fake = Fake::named(status.to_string());
        fake.token().get(7).status("PATCH", status).get(8).patch(9);
        let client = fake.client();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        assert_eq!(receipt.previous_version.as_deref(), Some("8"));
        assert_eq!(receipt.version.as_deref(), Some("9"));
        assert_eq!(fake.methods(), "POST GET PATCH GET PATCH");
        assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
        fake.slept(&[(ms(0), ms(20))]);
        assert_eq!(client.metrics().conflicts, 1);
    }
}

#[test]
fn conflict_with_cached_version_is_settled_the_same_way() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .status("PATCH", 412)
        .get(20)
        .patch(21);
    let client = fake.client();
    client.update(&update()).unwrap();
    assert_eq!(client.update(&update()).unwrap().requests, 3);
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\"", "\"20\""]);
}

#[test]
fn conflict_without_ambiguity_rewrites_even_values_in_place() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 412)
        .get_with(8, json!({ "tier": "gold" }))
        .patch(9);
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.attempts, 2);
}

#[test]
fn unlocked_409_is_resent_without_read() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 409)
        .status("PATCH", 409)
        .status("PATCH", 202);
    let client = fake.client();
    let receipt = client.update(&Unlocked.update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (3, 3));
    let bodies: Vec<_> = fake.sent("PATCH").into_iter().map(|r| r.body).collect();
    assert!(
        bodies
            .iter()
            .all(|b| *b == json!({ "attributes": { "tier": "gold" } }))
    );
    fake.slept(&[(ms(0), ms(20)), (ms(0), ms(40))]);
    assert_eq!(client.metrics().conflicts, 2);
}

#[test]
fn unlocked_412_is_final() {
    let fake = Fake::new();
    fake.token().status("PATCH", 412);
    let error = fake.client().update(&Unlocked.update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.http_status(), Some(412));
    assert!(fake.sleeps().is_empty());
}

#[test]
fn conflicts_are_bounded_with_doubling_backoff() {
    for (kind, most) in [
        (Locked, 0),
        (Locked, 3),
        (Locked, 8),
        (Unlocked, 0),
        (Unlocked, 8),
    ] {
        let fake = Fake::named(format!("{kind:?} {most}"));
        kind.begin(&fake);
        for conflict in 0..=most {
            fake.answer(
                "PATCH",
                Response::new(409).with_header("ININ-Correlation-Id", format!("id-{conflict}")),
            );
            if conflict < most && kind == Locked {
                fake.get(8 + conflict);
            }
        }
        let policy = RetryPolicy::default().with_max_conflicts(most);
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(error.http_status(), Some(409));
        assert_eq!(error.correlation_id(), Some(format!("id-{most}").as_str()));
        assert_eq!(error.attempts(), most + 1);
        assert_eq!(error.requests(), (most + 1) * (1 + kind.reads()));
        assert!(!error.may_have_applied() && error.is_transient());
        let bounds: Vec<_> = (0..most)
            .map(|n| (ms(0), ms(20 << n).min(secs(1))))
            .collect();
        fake.slept(&bounds);
        assert_eq!(client.metrics().conflicts, u64::from(most) + 1);
        assert_eq!(client.metrics().failed(ErrorKind::Conflict), 1);
    }
}

/// With many writers on one version somebody has to lose often: the time decides, not a count.
#[test]
fn conflicts_are_settled_until_the_deadline() {
    for kind in [Locked, Unlocked] {
        let clock = ManualClock::new();
        let start = clock.now();
        let writes = Arc::new(AtomicUsize::new(0));
        let sent = writes.clone();
        let client = Client::builder(
            Region::parse("us-east-1").unwrap(),
            Credentials::new("id", "secret"),
        )
        .base_url("http://127.0.0.1:1")
        .clock(clock.clone())
        .retry(RetryPolicy::default().with_deadline(secs(30)))
        .transport(
            move |request: &Request| -> Result<Response, TransportError> {
                let body = match request.method() {
                    Method::Post => r#"{"access_token":"t","expires_in":86400}"#,
                    Method::Get => r#"{"version":7}"#,
                    _ => {
                        sent.fetch_add(1, Ordering::SeqCst);
                        return Ok(Response::new(409));
                    }
                };
                Ok(Response::new(200).with_body(body))
            },
        )
        .build()
        .unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(!error.may_have_applied() && error.is_transient());
        let took = clock.now() - start;
        // The next wait, of 1 s at most, would have ended after it.
        assert!(took > secs(29) && took <= secs(30), "{took:?}");
        assert!(writes.load(Ordering::SeqCst) > 30);
    }
}

#[test]
fn ambiguous_then_conflict_with_values_in_place_is_already_applied() {
    for (name, end, _) in unclear() {
        for conflict in [412, 409] {
            let fake = Fake::named(format!("{name}, {conflict}"));
            fake.token().get(7);
            end_unclear(&fake, end);
            fake.status("PATCH", conflict)
                .get_with(8, json!({ "tier": "gold", "other": 1 }));
            let client = fake.client();
            let receipt = client.update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::AlreadyApplied, "{name}");
            assert_eq!((receipt.attempts, receipt.requests), (2, 4));
            assert_eq!(receipt.version.as_deref(), Some("8"));
            assert_eq!(receipt.previous_version.as_deref(), Some("7"));
            assert_eq!(fake.if_matches(), ["\"7\"", "\"7\""]);
            assert_eq!(client.metrics().already_applied, 1);

            // The version that was read is good for the next one.
            fake.patch(9);
            assert_eq!(client.update(&update()).unwrap().requests, 1);
            assert_eq!(fake.if_matches()[2], "\"8\"");
        }
    }
}

#[test]
fn ambiguous_then_conflict_without_values_is_rewritten() {
    for (name, end, _) in unclear() {
        for (found, read) in [
            (
                "other value",
                json!({ "version": 8, "attributes": { "tier": "silver" } }),
            ),
            ("no value", json!({ "version": 8, "attributes": {} })),
            ("unreadable", json!({ "version": 8 })),
        ] {
            let fake = Fake::named(format!("{name}, {found}"));
            fake.token().get(7);
            end_unclear(&fake, end);
            fake.status("PATCH", 412).get_body(read).patch(9);
            let receipt = fake.client().update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}, {found}");
            assert_eq!((receipt.attempts, receipt.requests), (3, 5));
            assert_eq!(fake.if_matches(), ["\"7\"", "\"7\"", "\"8\""]);
        }
    }
}

#[test]
fn ambiguous_values_in_place_are_all_compared_as_json() {
    for (found, in_place) in [
        (json!({ "n": 85, "b": true, "s": "x" }), true),
        (
            json!({ "n": 85.0, "b": true, "s": "x", "more": null }),
            true,
        ),
        (json!({ "n": "85", "b": true, "s": "x" }), false),
        (json!({ "n": 85, "b": "true", "s": "x" }), false),
        (json!({ "n": 85, "b": true }), false),
    ] {
        let fake = Fake::named(found.to_string());
        fake.token()
            .get(7)
            .status("PATCH", 503)
            .status("PATCH", 412)
            .get_with(8, found);
        if !in_place {
            fake.patch(9);
        }
        let update = Update::conversation("c-1")
            .set("n", 85.0)
            .set("b", true)
            .set("s", "x");
        let outcome = fake.client().update(&update).unwrap().outcome;
        assert_eq!(outcome == Outcome::AlreadyApplied, in_place);
    }
}

#[test]
fn ambiguous_without_conflicts_left_still_looks_for_values() {
    for (found, outcome) in [
        (json!({ "tier": "gold" }), Some(Outcome::AlreadyApplied)),
        (json!({ "tier": "silver" }), None),
    ] {
        let fake = Fake::new();
        fake.token()
            .get(7)
            .status("PATCH", 503)
            .status("PATCH", 412)
            .get_with(8, found);
        let policy = RetryPolicy::default().with_max_conflicts(0);
        let client = fake.builder().retry(policy).build().unwrap();
        match (client.update(&update()), outcome) {
            (Ok(receipt), Some(outcome)) => assert_eq!(receipt.outcome, outcome),
            (Err(error), None) => {
                assert_eq!(error.kind(), ErrorKind::Conflict);
                assert!(error.may_have_applied());
            }
            (result, _) => panic!("{result:?}"),
        }
    }
}

#[test]
fn ambiguous_then_final_conflict_may_have_applied() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
        .status("PATCH", 412)
        .get_with(8, json!({}))
        .status("PATCH", 403);
    let error = fake.client().update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(error.may_have_applied());
    says(&error, &["may have been applied"]);
}

/// A count that is found in place may be somebody else's.
#[test]
fn ambiguous_computed_update_then_conflict_ends_as_conflict_without_read() {
    for (name, end, _) in unclear() {
        for conflict in [412, 409] {
            let fake = Fake::named(format!("{name}, {conflict}"));
            fake.token().get_with(7, json!({ "n": 1 }));
            end_unclear(&fake, end);
            fake.status("PATCH", conflict);
            let mut computed = 0;
            let client = fake.client();
            let error = client
                .update_with(&Target::conversation("c-1"), |now| {
                    computed += 1;
                    let n = now.attributes["n"].as_u64().unwrap();
                    Ok(Some(attributes(json!({ "n": n + 1 }))))
                })
                .unwrap_err();
            assert_eq!(computed, 1, "{name}");
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.may_have_applied());
            assert_eq!((error.attempts(), error.requests()), (2, 3));
            says(&error, &["optimistic locking conflict"]);
            assert_eq!(fake.if_matches(), ["\"7\"", "\"7\""]);
            assert_eq!(client.metrics().already_applied, 0);
        }
    }
}

#[test]
fn ambiguous_unique_update_in_place_is_already_applied() {
    for (name, end, _) in unclear() {
        for (found, in_place) in [
            (json!({ "id": "u-1" }), true),
            (json!({ "id": "u-2" }), false),
        ] {
            let fake = Fake::named(format!("{name}, {found}"));
            fake.token().get_with(7, json!({}));
            end_unclear(&fake, end);
            fake.status("PATCH", 412).get_with(8, found);
            let mut computed = 0;
            let unique = UpdateOptions::new().unique();
            let target = Target::conversation("c-1");
            let result = fake.client().update_with_options(&target, unique, |_| {
                computed += 1;
                Ok(Some(attributes(json!({ "id": "u-1" })).into()))
            });
            assert_eq!(computed, 1, "{name}");
            match result {
                Ok(receipt) => {
                    assert!(in_place, "{name}");
                    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
                    assert_eq!((receipt.attempts, receipt.requests), (2, 4));
                    assert_eq!(receipt.version.as_deref(), Some("8"));
                }
                Err(error) => {
                    assert!(!in_place, "{name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Conflict);
                    assert!(error.may_have_applied());
                    assert_eq!((error.attempts(), error.requests()), (2, 4));
                }
            }
        }
    }
}

#[test]
fn ambiguous_if_version_ends_as_conflict_with_may() {
    let fake = Fake::new();
    fake.token().status("PATCH", 500).status("PATCH", 412);
    let update = update().if_version("7");
    let error = fake.client().update(&update).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.may_have_applied() && !error.is_transient());
    assert_eq!(fake.if_matches(), ["\"7\"", "\"7\""]);
    assert!(
        fake.sent("GET").is_empty(),
        "a value in place would prove nothing"
    );
}
