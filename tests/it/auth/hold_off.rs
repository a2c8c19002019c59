//! After a login that failed: who waits for how long, and when the next one is tried.

use super::*;

#[test]
fn hold_off_is_waited_for_within_deadline() {
    for (name, end) in [
        ("503", Ok(Response::new(503))),
        ("404", Ok(Response::new(404))),
        ("302", Ok(Response::new(302))),
        ("HTML", Ok(Response::new(200).with_body("<html>"))),
        ("no token", Ok(json_response(200, &json!({})))),
        ("refused", Err(Sent::No)),
        ("reset", Err(Sent::Maybe)),
    ] {
        let fake = Fake::named(name);
        match end {
            Ok(response) => fake.answer("POST", response),
            Err(sent) => fake.fault("POST", ErrorKind::Connect, sent),
        };
        let client = fake.builder().retry(once()).build().unwrap();
        let error = client.update(&update("c-1")).unwrap_err();
        assert!(
            error.is_transient() && error.during_login(),
            "{name}: {error}"
        );
        assert!(error.to_string().starts_with("login failed"), "{error}");

        // Two seconds later the rest of the hold-off is waited for; then it logs in by itself.
        fake.clock.advance(secs(2));
        fake.token().status("PATCH", 202);
        let receipt = client.update(&update("c-2")).unwrap();
        assert_eq!(fake.sleeps(), [secs(3)], "{name}");
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        assert_eq!(fake.sent("POST").len(), 2);
        // It comes before the first API request, so it is no part of the latency.
        assert_eq!(receipt.latency, Duration::ZERO);
    }
}

#[test]
fn hold_off_longer_than_deadline_is_login_error_at_once() {
    let fake = Fake::new();
    fake.status("POST", 404);
    let policy = once().with_deadline(secs(5));
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&update("c-1")).unwrap_err();
    for _ in 0..3 {
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server);
        assert!(error.is_transient() && error.during_login());
        assert_eq!((error.attempts(), error.requests()), (0, 0));
    }
    assert!(fake.sleeps().is_empty());
    // A millisecond less, and there is time to wait.
    fake.clock.advance(ms(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sleeps(), [ms(4_999)]);
}

#[test]
fn hold_off_wait_is_part_of_deadline() {
    let fake = Fake::new();
    fake.status("POST", 404);
    let policy = once().with_deadline(secs(30));
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&update("c-1")).unwrap_err();
    fake.token().takes(secs(10)).status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sent("POST")[1].timeout, Some(secs(25)));
    assert_eq!(fake.sent("PATCH")[0].timeout, Some(secs(15)));
}

#[test]
fn hold_off_cancelled_ends_at_once() {
    let fake = Fake::new();
    fake.status("POST", 404);
    let cancel = Cancel::new();
    let alarm = cancel.clone();
    let client = fake
        .builder()
        .retry(once())
        .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
        .build()
        .unwrap();
    client.update(&update("c-1")).unwrap_err();
    let error = client
        .update_cancellable(&update("c-1"), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(fake.sent("POST").len(), 1);
}

#[test]
fn new_tokens_refused_twice_in_a_row_start_hold_off() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 401)
        .token()
        .status("PATCH", 401);
    let client = fake.client();
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert_eq!(error.http_status(), Some(401));
    for wait in [ms(0), ms(4_999)] {
        fake.clock.advance(wait);
        let error = client.update(&update("c-2")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert!(error.during_login() && !error.is_transient());
        assert_eq!(error.http_status(), Some(401));
        assert_eq!((error.attempts(), error.requests()), (0, 0));
        says(&error, &["login failed", "region"]);
    }
    assert!(fake.sleeps().is_empty());
    fake.clock.advance(ms(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sent("POST").len(), 3);
}

#[test]
fn new_token_refused_once_after_a_good_one_is_replaced() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 401)
        .token()
        .status("PATCH", 401);
    let client = fake.client();
    client.update(&update("c-1")).unwrap_err();
    fake.clock.advance(secs(5));
    fake.token_for(100).status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    // The good one ends by itself; its successor is the first in a row.
    fake.clock.advance(secs(100));
    fake.token()
        .status("PATCH", 401)
        .token()
        .status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn login_is_bounded_by_rest_of_deadline() {
    // The token ends in mid-call; what is left of the deadline is left for the login.
    let fake = Fake::new();
    fake.token_for(20)
        .get_body(json!({ "attributes": {}, "version": 1 }))
        .takes(secs(20))
        .fault("POST", ErrorKind::Timeout, Sent::Maybe)
        .takes(secs(10));
    let policy = RetryPolicy::default().with_deadline(secs(30));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client
        .update(&Update::secure("c-1").set("k", "v"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.during_login() && error.is_transient());
    assert!(!error.may_have_applied());
    assert_eq!(fake.sent("POST")[1].timeout, Some(secs(10)));
    assert!(fake.sleeps().is_empty());
}

#[test]
fn login_throttled_beyond_deadline_is_not_waited_for() {
    let fake = Fake::new();
    let told = json_response(400, &refusal("invalid_request", "rate limit exceeded"));
    fake.answer("POST", told.with_header("Retry-After", "30"));
    let policy = without_jitter().with_deadline(secs(20));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    assert_eq!(error.retry_after(), Some(secs(30)));
    assert!(fake.sleeps().is_empty());
}

#[test]
fn call_out_of_time_before_its_login_holds_nobody_off() {
    let fake = Fake::new();
    fake.token_for(20)
        .get_body(json!({ "attributes": {}, "version": 1 }))
        .takes(secs(30));
    let policy = RetryPolicy::default().with_deadline(secs(30));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client
        .update(&Update::secure("c-1").set("k", "v"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(!error.during_login() && !error.may_have_applied());
    says(&error, &["deadline of 30s"]);
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert!(fake.sleeps().is_empty());
}
