//! Logins that fail.

use super::*;

#[test]
fn login_refused_names_reason_without_retry() {
    for (name, response, parts) in [
        (
            "400 invalid_client",
            json_response(400, &refusal("invalid_client", "client not found")),
            &["400", "invalid_client", "client not found", "client id"][..],
        ),
        (
            "401 invalid_client",
            json_response(401, &refusal("invalid_client", "authentication failed")),
            &["401", "invalid_client", "authentication failed", "region"],
        ),
        (
            "only description",
            json_response(
                400,
                &json!({ "error": "invalid_client", "description": "in words" }),
            ),
            &["in words"],
        ),
        (
            "another code",
            json_response(400, &refusal("unsupported_grant_type", "not here")),
            &["unsupported_grant_type", "not here", "Client Credentials"],
        ),
        ("401 alone", Response::new(401), &["401"]),
        ("403 alone", Response::new(403), &["403"]),
        (
            "400 in HTML",
            Response::new(400).with_body("<html>"),
            &["400"],
        ),
        (
            "a line break",
            json_response(401, &refusal("invalid_client", "a\r\nb")),
            &["a  b"],
        ),
    ] {
        let fake = Fake::named(name);
        fake.answer("POST", response.with_header("ININ-Correlation-Id", "abc"));
        let error = fake.client().update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{name}");
        assert!(!error.is_transient() && !error.may_have_applied());
        assert!(error.during_login());
        assert!(error.to_string().starts_with("login failed"), "{error}");
        assert_eq!(error.correlation_id(), Some("abc"));
        assert_eq!((error.attempts(), error.requests()), (0, 0));
        assert!(fake.sleeps().is_empty());
        says(&error, parts);
    }
}

#[test]
fn login_throttled_is_waited_for_until_deadline_then_rate_limited() {
    let told = "rate limit exceeded; try again later";
    for (name, response) in [
        (
            "the platform's 400",
            json_response(400, &refusal("invalid_request", told)),
        ),
        (
            "in capitals",
            json_response(400, &refusal("invalid_request", &told.to_uppercase())),
        ),
        ("429", Response::new(429)),
    ] {
        let fake = Fake::named(name);
        // More often than there are attempts.
        for _ in 0..6 {
            fake.answer("POST", response.clone());
        }
        fake.token().status("PATCH", 202);
        let client = fake.client();
        let receipt = client.update(&update("c-1")).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        let waits = [5, 10, 20, 40, 60, 60];
        fake.slept(&waits.map(|wait| (secs(wait), secs(wait) + ms(500))));
        assert_eq!(client.metrics().rate_limited, 6);
        assert_eq!(client.metrics().token_refreshes, 1);

        // Until the deadline of the update.
        let fake = Fake::named(name);
        for _ in 0..4 {
            fake.answer("POST", response.clone().with_header("Retry-After", "3"));
        }
        let policy = without_jitter().with_deadline(secs(10));
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited, "{name}");
        assert_eq!(error.retry_after(), Some(secs(3)));
        assert!(error.is_transient() && error.during_login());
        assert!(error.to_string().starts_with("login failed"), "{error}");
        assert_eq!(fake.sleeps(), [secs(3); 3]);
    }
    // Other words with the same code are no throttling.
    let fake = Fake::new();
    fake.answer(
        "POST",
        json_response(400, &refusal("invalid_request", "no")),
    );
    let error = fake.client().update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
}

#[test]
fn api_400_with_throttling_words_is_not_throttling() {
    let fake = Fake::new();
    let body = json!({ "message": "rate limit exceeded" });
    fake.token().answer("PATCH", json_response(400, &body));
    let error = fake.client().update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn login_transient_failure_is_retried() {
    for (name, end, kind) in [
        ("408", Ok(408), ErrorKind::Timeout),
        ("500", Ok(500), ErrorKind::Server),
        ("502", Ok(502), ErrorKind::Server),
        ("503", Ok(503), ErrorKind::Server),
        ("504", Ok(504), ErrorKind::Server),
        (
            "refused",
            Err((ErrorKind::Connect, Sent::No)),
            ErrorKind::Connect,
        ),
        (
            "reset",
            Err((ErrorKind::Transport, Sent::Maybe)),
            ErrorKind::Transport,
        ),
        (
            "time out",
            Err((ErrorKind::Timeout, Sent::Maybe)),
            ErrorKind::Timeout,
        ),
    ] {
        for recovers in [true, false] {
            let fake = Fake::named(name);
            for _ in 0..if recovers { 3 } else { 4 } {
                match end {
                    Ok(status) => fake.status("POST", status),
                    Err((kind, sent)) => fake.fault("POST", kind, sent),
                };
            }
            if recovers {
                fake.token().status("PATCH", 202);
            }
            let result = fake.client().update(&update("c-1"));
            match result {
                Ok(receipt) => {
                    assert!(recovers);
                    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
                }
                Err(error) => {
                    assert!(!recovers, "{error}");
                    assert_eq!(error.kind(), kind, "{name}");
                    assert!(error.is_transient() && !error.may_have_applied());
                    assert!(error.during_login());
                    assert!(error.to_string().starts_with("login failed"), "{error}");
                }
            }
            fake.slept(&[(ms(0), ms(500)), (ms(0), secs(1)), (ms(0), secs(2))]);
        }
    }
}

#[test]
fn login_answered_by_something_else_is_transient_and_tried_again() {
    for status in [301, 302, 304, 307, 404, 405, 410, 501, 505] {
        // For a moment: the update waits for it.
        let fake = Fake::named(status.to_string());
        fake.status("POST", status).token().status("PATCH", 202);
        let client = fake.builder().retry(without_jitter()).build().unwrap();
        client.update(&update("c-1")).unwrap();
        assert_eq!(fake.sent("POST").len(), 2);

        let fake = Fake::named(status.to_string());
        fake.status("POST", status);
        let client = fake.builder().retry(once()).build().unwrap();
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server);
        assert_eq!(error.http_status(), Some(status));
        assert!(error.is_transient() && error.during_login());
        assert!(!error.may_have_applied());
        assert!(error.to_string().starts_with("login failed"), "{error}");
        says(&error, &["login URL"]);
        assert!(fake.sleeps().is_empty());

        // Nor for good: the next one waits for the hold-off, and logs in.
        fake.token().status("PATCH", 202);
        client.update(&update("c-1")).unwrap();
        assert_eq!(fake.sleeps(), [secs(5)]);
    }
}

#[test]
fn login_answer_without_token_is_not_used() {
    for body in [
        "",
        "<html>",
        "{}",
        "null",
        "[\"a-token\", 300]",
        r#"{"access_token":null}"#,
        r#"{"access_token":7}"#,
        r#"{"access_token":""}"#,
        r#"{"access_token":"a b"}"#,
        r#"{"access_token":"a\r\nX-Evil: 1"}"#,
        r#"{"access_token":"a\u0000"}"#,
        r#"{"access_token":"a\u007f"}"#,
        r#"{"access_token":"é"}"#,
    ] {
        let fake = Fake::named(body);
        fake.answer("POST", Response::new(200).with_body(body));
        let client = fake.builder().retry(once()).build().unwrap();
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server, "{body}");
        assert_eq!(error.http_status(), Some(200));
        assert!(error.is_transient() && error.during_login());
        assert_eq!(client.metrics().token_refreshes, 0);
        assert!(error.to_string().starts_with("login failed"), "{error}");
        says(&error, &["login endpoint", "login URL"]);
    }
}

#[test]
fn token_invalidated_early_is_requested_again() {
    let fake = Fake::new();
    fake.answer("POST", Response::new(200).with_broken_body("cut"))
        .token()
        .status("PATCH", 202);
    fake.client().update(&update("c-1")).unwrap();
    fake.slept(&[(ms(0), ms(500))]);
}
