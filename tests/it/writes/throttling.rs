//! 429: waits, and the pause that clones share.

use super::*;

#[test]
fn throttled_429_waits_retry_after() {
    let half = ms(500);
    for kind in [Locked, Unlocked] {
        for (header, least, most) in [
            (Some("0"), ms(0), half),
            (Some("7"), secs(7), secs(7) + half),
            (Some("180"), secs(180), secs(180) + half),
            (
                Some("Thu, 01 Jan 2026 00:00:10 GMT"),
                secs(10),
                secs(10) + half,
            ),
            (
                Some("Thursday, 01-Jan-26 00:00:10 GMT"),
                secs(10),
                secs(10) + half,
            ),
            (Some("Wed, 31 Dec 2025 23:59:50 GMT"), ms(0), half),
            // None that can be read: five seconds at first.
            (Some("soon"), secs(5), secs(5) + half),
            (Some("-7"), secs(5), secs(5) + half),
            (Some("1.5"), secs(5), secs(5) + half),
            (None, secs(5), secs(5) + half),
        ] {
            let fake = Fake::named(format!("{kind:?} {header:?}"));
            kind.begin(&fake);
            let mut response = Response::new(429);
            if let Some(header) = header {
                response = response.with_header("Retry-After", header);
            }
            fake.answer("PATCH", response).patch(8);
            let client = fake.client();
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{header:?}");
            assert_eq!((receipt.attempts, receipt.requests), (2, 2 + kind.reads()));
            fake.slept(&[(least, most)]);
            let writes = fake.sent("PATCH");
            assert!(writes[1].at - writes[0].at >= least);
            assert_eq!(writes[0].if_match(), writes[1].if_match());
            assert_eq!(client.metrics().rate_limited, 1);
        }
    }
}

/// The answer's own clock counts, and not the local one, which says 2026-01-01.
#[test]
fn throttled_429_with_a_date_waits_by_the_answers_own_date() {
    for (date, least) in [
        ("Thu, 01 Jan 2026 01:00:00 GMT", secs(10)),
        ("Wed, 31 Dec 2025 23:00:00 GMT", secs(7_210)),
        ("Thu, 01 Jan 2026 03:00:00 GMT", ms(0)),
        // No date: the local clock.
        ("soon", secs(3_610)),
    ] {
        let fake = Fake::named(date);
        Unlocked.begin(&fake);
        let response = Response::new(429)
            .with_header("Retry-After", "Thu, 01 Jan 2026 01:00:10 GMT")
            .with_header("Date", date);
        fake.answer("PATCH", response).patch(8);
        let policy = RetryPolicy::default()
            .with_max_retry_after(secs(8_000))
            .with_deadline(secs(9_000));
        let client = fake.builder().retry(policy).build().unwrap();
        client.update(&Unlocked.update()).unwrap();
        fake.slept(&[(least, least + ms(500))]);
    }
}

#[test]
fn throttled_429_until_deadline_is_not_applied() {
    for kind in [Locked, Unlocked] {
        for attempts in [1, 4] {
            let fake = Fake::named(format!("{kind:?} {attempts}"));
            kind.begin(&fake);
            // More often than there are attempts: 33 waits fit into 100 s.
            for _ in 0..34 {
                fake.answer("PATCH", Response::new(429).with_header("Retry-After", "3"));
            }
            let policy = without_jitter()
                .with_deadline(secs(100))
                .with_max_attempts(attempts);
            let client = fake.builder().retry(policy).build().unwrap();
            let error = client.update(&kind.update()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RateLimited);
            assert_eq!(error.retry_after(), Some(secs(3)));
            assert!(!error.may_have_applied() && error.is_transient());
            assert_eq!(error.attempts(), 34);
            assert_eq!(fake.sleeps(), [secs(3); 33]);
            assert_eq!(client.metrics().rate_limited, 34);
        }
    }
}

#[test]
fn throttled_429_without_retry_after_doubles_to_a_minute_until_deadline() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        for _ in 0..8 {
            fake.status("PATCH", 429);
        }
        let error = fake.client().update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(!error.may_have_applied());
        assert_eq!(error.attempts(), 8);
        // 255 s; another minute would end after the 300 s.
        let waits = [5, 10, 20, 40, 60, 60, 60];
        fake.slept(&waits.map(|wait| (secs(wait), secs(wait) + ms(500))));
    }
}

#[test]
fn throttled_429_uses_up_no_attempts() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        // Among the three failures that four attempts allow.
        for _ in 0..3 {
            for _ in 0..5 {
                fake.answer("PATCH", Response::new(429).with_header("Retry-After", "1"));
            }
            fake.fault("PATCH", ErrorKind::Connect, Sent::No);
        }
        fake.patch(8);
        let client = fake.builder().retry(without_jitter()).build().unwrap();
        let receipt = client.update(&kind.update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!(receipt.attempts, 19);
    }
}

#[test]
fn throttled_read_is_waited_for_until_deadline() {
    let fake = Fake::new();
    fake.token();
    for _ in 0..6 {
        fake.answer("GET", Response::new(429).with_header("Retry-After", "7"));
    }
    fake.get(7).patch(8);
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 8));
    assert_eq!(fake.sleeps(), [secs(7); 6]);
}

#[test]
fn throttled_503_waits_retry_after_and_uses_up_no_attempts() {
    for kind in [Locked, Unlocked] {
        for header in ["7", "Thu, 01 Jan 2026 00:00:07 GMT"] {
            let fake = Fake::named(format!("{kind:?} {header}"));
            kind.begin(&fake);
            let response = Response::new(503).with_header("Retry-After", header);
            fake.answer("PATCH", response).patch(8);
            let policy = without_jitter().with_max_attempts(1);
            let client = fake.builder().retry(policy).build().unwrap();
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied);
            assert_eq!(fake.sleeps(), [secs(7)]);
            // The same write, under the same version: it may be in place.
            let writes = fake.sent("PATCH");
            assert_eq!(writes[0].if_match(), writes[1].if_match());
            assert_eq!(writes[0].body, writes[1].body);
        }
    }
}

#[test]
fn throttled_503_until_deadline_may_have_applied() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        for _ in 0..10 {
            fake.answer("PATCH", Response::new(503).with_header("Retry-After", "30"));
        }
        let client = fake.builder().retry(without_jitter()).build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server);
        assert_eq!(error.retry_after(), Some(secs(30)));
        assert!(error.may_have_applied());
        assert_eq!(fake.sleeps(), [secs(30); 9]);
    }
}

#[test]
fn throttled_503_then_conflict_is_looked_up() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .answer("PATCH", Response::new(503).with_header("Retry-After", "1"))
        .status("PATCH", 412)
        .get_with(8, json!({ "tier": "gold" }));
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
}

#[test]
fn throttled_503_pauses_all_clones() {
    let fake = Fake::new();
    fake.token()
        .answer("PATCH", Response::new(503).with_header("Retry-After", "60"))
        .status("PATCH", 202);
    let policy = without_jitter().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&Unlocked.update()).unwrap_err();
    let other = Update::participant("c-2", "p-2").set("k", "v");
    client.update(&other).unwrap();
    let writes = fake.sent("PATCH");
    assert_eq!(writes[1].at - writes[0].at, secs(60));
}

#[test]
fn throttled_429_beyond_max_fails_at_once_with_retry_after() {
    for (header, most, told) in [
        ("181", 180, 181),
        ("86400", 180, 86_400),
        ("86401", 180, 86_400),
        // As much as any time can take.
        ("99999999999999999999999", 180, 86_400),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 180, 86_400),
        ("Thu, 01 Jan 2026 00:05:00 GMT", 180, 300),
        ("11", 10, 11),
    ] {
        let fake = Fake::named(header);
        fake.token().get(7).answer(
            "PATCH",
            Response::new(429).with_header("Retry-After", header),
        );
        let policy = RetryPolicy::default().with_max_retry_after(secs(most));
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.retry_after(), Some(secs(told)));
        assert_eq!(error.attempts(), 1);
        assert!(fake.sleeps().is_empty());
        // It can be added to a time.
        let _ = fake.clock.now() + error.retry_after().unwrap();
    }
    assert_eq!(RetryPolicy::default().max_retry_after, secs(180));
}

#[test]
fn throttled_429_pauses_all_clones() {
    // The first update is cancelled while it waits; the pause that it was told of goes on.
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 202)
        .answer("PATCH", Response::new(429).with_header("Retry-After", "60"))
        .status("PATCH", 202);
    let cancel = Cancel::new();
    let alarm = cancel.clone();
    let client = fake
        .builder()
        .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    let error = client
        .update_cancellable(&Unlocked.update(), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!error.may_have_applied());

    let other = Update::participant("c-2", "p-2").set("k", "v");
    let receipt = client.clone().update(&other).unwrap();
    let writes = fake.sent("PATCH");
    assert!(writes[2].at - writes[1].at >= secs(60), "{writes:#?}");
    // The wait came before the first request of that update.
    assert_eq!(receipt.latency, Duration::ZERO);
}

#[test]
fn throttled_429_without_retry_after_pauses_clones_for_backoff() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 202)
        .status("PATCH", 429)
        .status("PATCH", 202)
        .status("PATCH", 202);
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let other = slot.clone();
    // While the first one waits, another thread comes with an update of another conversation.
    let alarm = AlarmClock::new(fake.clock.clone(), move || {
        let client = lock(&other).take().unwrap();
        let update = Update::participant("c-2", "p-2").set("k", "v");
        std::thread::spawn(move || client.update(&update).unwrap())
            .join()
            .unwrap();
    });
    let client = fake
        .builder()
        .retry(RetryPolicy::default().with_backoff(secs(20), secs(20)))
        .clock(alarm)
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    *lock(&slot) = Some(client.clone());
    client.update(&Unlocked.update()).unwrap();
    let sleeps = fake.sleeps();
    assert_eq!(sleeps.len(), 2);
    assert_eq!(sleeps[0], sleeps[1]);
    let writes = fake.sent("PATCH");
    assert!(writes[2].path.contains("c-2"));
    assert_eq!(writes[2].at, sleeps[0]);
}

#[test]
fn throttled_429_beyond_deadline_pauses_clones() {
    let fake = Fake::new();
    fake.token()
        .answer("PATCH", Response::new(429).with_header("Retry-After", "60"))
        .status("PATCH", 202);
    let policy = without_jitter().with_deadline(secs(60));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&Unlocked.update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    assert!(fake.sleeps().is_empty());
    client.update(&Unlocked.update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60)]);
}

#[test]
fn throttled_429_beyond_max_pauses_nobody() {
    let fake = Fake::new();
    fake.token()
        .answer(
            "PATCH",
            Response::new(429).with_header("Retry-After", "3600"),
        )
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&Unlocked.update()).unwrap_err();
    client.update(&Unlocked.update()).unwrap();
    assert!(fake.sleeps().is_empty());
}
