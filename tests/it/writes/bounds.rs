//! Deadline, rate limit, latency.

use super::*;

#[test]
fn deadline_is_never_slept_into() {
    for (header, deadline) in [
        ("10", 10),
        ("100", 60),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 30),
    ] {
        let fake = Fake::named(header);
        fake.token().get(7).answer(
            "PATCH",
            Response::new(429)
                .with_header("Retry-After", header)
                .with_header("ININ-Correlation-Id", "the-last"),
        );
        let policy = RetryPolicy::default().with_deadline(secs(deadline));
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.correlation_id(), Some("the-last"));
        assert!(fake.sleeps().is_empty());
    }
    assert_eq!(RetryPolicy::default().deadline, secs(300));
}

#[test]
fn deadline_ends_attempts_with_last_real_error() {
    let fake = Fake::new();
    fake.token().get(7);
    for _ in 0..3 {
        fake.status("PATCH", 503).takes(secs(4));
    }
    let policy = without_jitter()
        .with_deadline(secs(10))
        .with_max_attempts(9);
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_eq!(error.http_status(), Some(503));
    assert_eq!(error.attempts(), 3);
    assert_eq!(error.latency(), secs(12));
    let timeouts: Vec<_> = fake.sent("PATCH").iter().map(|r| r.timeout).collect();
    assert_eq!(timeouts, [Some(secs(10)), Some(secs(6)), Some(secs(2))]);
}

#[test]
fn deadline_at_conflict_is_conflict_error() {
    let fake = Fake::new();
    fake.token().get(7).status("PATCH", 412).takes(secs(10));
    let policy = RetryPolicy::default().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(fake.sleeps().is_empty());
}

#[test]
fn deadline_passed_sends_nothing() {
    let fake = Fake::new();
    fake.token().get(7).takes(secs(10));
    let policy = RetryPolicy::default().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.attempts(), 0);
    assert!(!error.may_have_applied());
    says(&error, &["deadline", "10"]);
}

#[test]
fn deadline_near_gives_request_its_own_timeout() {
    // The phases' limits add up to 5 + 10 + 10 + 20 + 20 s.
    for (took, timeout) in [(235, None), (236, Some(64)), (299, Some(1))] {
        let fake = Fake::named(took.to_string());
        fake.token().get(7).takes(secs(took)).patch(8);
        fake.client().update(&update()).unwrap();
        let seen = fake.seen();
        assert_eq!(seen[1].timeout, None);
        assert_eq!(seen[2].timeout, timeout.map(secs));
    }
}

#[test]
fn rate_limit_wait_is_outside_deadline() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .takes(secs(1))
        .patch(8)
        .takes(secs(1))
        .patch(9)
        .takes(secs(2));
    let client = fake
        .builder()
        .rate_limit(RateLimit::per_minute(1))
        .retry(RetryPolicy::default().with_deadline(secs(30)))
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60)]);
    // Waits between requests are part of the latency, and the deadline has 29 s left.
    assert_eq!(receipt.latency, secs(62));
    assert_eq!(fake.sent("PATCH")[0].timeout, Some(secs(29)));

    let receipt = client.update(&update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60), secs(60)]);
    // The wait before the first request is not.
    assert_eq!(receipt.latency, secs(2));
    assert_eq!(fake.sent("PATCH")[1].timeout, Some(secs(30)));
}

#[test]
fn rate_limit_does_not_count_logins_and_token_is_taken_after_its_wait() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 401)
        .token()
        .status("PATCH", 202);
    let client = fake
        .builder()
        .rate_limit(RateLimit::per_minute(1))
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    let at: Vec<_> = fake.seen().iter().map(|request| request.at).collect();
    assert_eq!(at, [secs(0), secs(0), secs(60), secs(60)]);
    assert_eq!(fake.methods(), "POST PATCH POST PATCH");
}

#[test]
fn rate_limit_burst_uses_all_slots_freed_a_minute_after_answer() {
    let fake = Fake::new();
    fake.token();
    for _ in 0..301 {
        fake.status("PATCH", 202).takes(ms(10));
    }
    let client = fake.client();
    for _ in 0..301 {
        client.update(&Unlocked.update()).unwrap();
    }
    let writes = fake.sent("PATCH");
    assert_eq!(writes[299].at, ms(2_990));
    // The first answer came at 10 ms.
    assert_eq!(writes[300].at, ms(60_010));
    assert_eq!(fake.sleeps(), [ms(57_010)]);
}

#[test]
fn latency_runs_from_first_request_to_last_answer() {
    let fake = Fake::new();
    fake.token()
        .takes(secs(5))
        .get(7)
        .takes(ms(100))
        .answer("PATCH", Response::new(429).with_header("Retry-After", "2"))
        .takes(ms(30))
        .answer(
            "PATCH",
            json_response(200, &json!({ "version": 8 })).with_header("ININ-Correlation-Id", "abc"),
        )
        .takes(ms(200));
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.latency, ms(2_330));
    assert_eq!((receipt.attempts, receipt.requests), (2, 3));
    assert_eq!(receipt.correlation_id.as_deref(), Some("abc"));
    assert_eq!(
        genesys_attributes::clock::rfc3339(receipt.timestamp),
        "2026-01-01T00:00:07.330Z"
    );
    assert_eq!(receipt.response(), Some(json!({ "version": 8 })));
    assert_eq!(receipt.conversation_id, "c-1");
    assert_eq!(client.metrics().latency.count(), 1);
    assert_eq!(client.metrics().latency.max(), ms(2_330));
}
