//! Replacing a token in time.

use super::*;

/// Checks that a token is replaced when it is `refresh_at` old, and not a millisecond earlier.
#[track_caller]
fn refreshed_at(fake: &Fake, refresh_at: Duration) {
    fake.status("PATCH", 202).status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(refresh_at - ms(1));
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sent("POST").len(), 1, "too early");
    fake.clock.advance(ms(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sent("POST").len(), 2);
    let used = tokens(fake);
    assert_eq!(used[0], used[1]);
    assert_ne!(used[1], used[2]);
    assert_eq!(client.metrics().token_refreshes, 2);
}

#[test]
fn token_near_expiry_is_refreshed_at_a_tenth_or_a_minute() {
    for (life, refresh_at) in [
        (10, 9),
        (100, 90),
        (300, 270),
        (600, 540),
        (601, 541),
        (3_600, 3_540),
        (86_400, 86_340),
        (172_800, 172_740),
    ] {
        let fake = Fake::named(life.to_string());
        fake.token_for(life);
        refreshed_at(&fake, secs(refresh_at));
    }
}

#[test]
fn token_lifetime_out_of_range_is_clamped() {
    for (expires_in, life) in [
        (None, 300),
        (Some(json!(null)), 300),
        (Some(json!("3600")), 300),
        (Some(json!("soon")), 300),
        (Some(json!(true)), 300),
        (Some(json!([])), 300),
        (Some(json!(0)), 1),
        (Some(json!(-5)), 1),
        (Some(json!(i64::MIN)), 1),
        (Some(json!(0.5)), 1),
        (Some(json!(100.9)), 100),
        (Some(json!(172_801)), 172_800),
        (Some(json!(u64::MAX)), 172_800),
        (Some(json!(1e300)), 172_800),
    ] {
        let fake = Fake::named(format!("{expires_in:?}"));
        let mut grant = json!({ "access_token": "first", "token_type": "bearer" });
        if let Some(expires_in) = expires_in {
            grant["expires_in"] = expires_in;
        }
        fake.login(grant);
        let life = secs(life);
        refreshed_at(&fake, life - (life / 10).min(secs(60)));
    }
}

#[test]
fn token_lifetime_counts_from_before_login() {
    let fake = Fake::new();
    fake.token_for(100).takes(secs(30)).status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(60));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(tokens(&fake), ["token-1", "token-2"]);
}

#[test]
fn refresh_failed_with_valid_token_uses_old_token() {
    for (name, end) in [
        ("503", Ok(Response::new(503))),
        (
            "invalid_client",
            Ok(json_response(400, &refusal("invalid_client", "x"))),
        ),
        ("unusable", Ok(json_response(200, &json!({})))),
        ("refused", Err(Sent::No)),
        ("reset", Err(Sent::Maybe)),
    ] {
        let fake = Fake::named(name);
        fake.token_for(100).status("PATCH", 202);
        let client = fake.builder().retry(once()).build().unwrap();
        client.update(&update("c-1")).unwrap();
        let fail = || match end.clone() {
            Ok(response) => fake.answer("POST", response),
            Err(sent) => fake.fault("POST", ErrorKind::Connect, sent),
        };

        fake.clock.advance(secs(90));
        fail();
        fake.status("PATCH", 202);
        client.update(&update("c-1")).unwrap();

        // Within the hold-off the login is not tried again.
        fake.clock.advance(ms(4_999));
        fake.status("PATCH", 202);
        client.update(&update("c-1")).unwrap();
        assert_eq!(fake.sent("POST").len(), 2);

        fake.clock.advance(ms(1));
        fail();
        fake.status("PATCH", 202);
        client.update(&update("c-1")).unwrap();
        assert_eq!(fake.sent("POST").len(), 3);

        // At its end there is a new login, and the new token is used.
        fake.clock.advance(ms(4_999));
        fake.status("PATCH", 202);
        client.update(&update("c-1")).unwrap();
        fake.clock.advance(ms(1));
        fake.token().status("PATCH", 202);
        client.update(&update("c-1")).unwrap();
        assert_eq!(
            tokens(&fake),
            [
                "token-1", "token-1", "token-1", "token-1", "token-1", "token-2"
            ]
        );
    }
}

#[test]
fn token_expired_is_not_sent() {
    let fake = Fake::new();
    fake.token_for(100).status("PATCH", 202);
    let client = fake.builder().retry(once()).build().unwrap();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(ms(99_000));
    fake.status("POST", 503).status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    // Now it is over, and a login is needed: the early one that failed does not stand in its way.
    fake.clock.advance(secs(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
    assert_eq!(tokens(&fake), ["token-1", "token-1", "token-2"]);
}

#[test]
fn token_refused_during_a_failed_early_refresh_is_not_sent() {
    let fake = Fake::new();
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let other = slot.clone();
    fake.token_for(1_000).status("PATCH", 202);
    // While the early refresh is under way, another thread learns that the old token is refused.
    fake.answer("POST", Response::new(503))
        .meanwhile(move || {
            let client = lock(&other).take().unwrap();
            let cancel = Cancel::new();
            thread::scope(|scope| {
                scope.spawn(|| client.update_cancellable(&update("c-2"), &cancel));
                while client.metrics().requests < 2 {
                    thread::yield_now();
                }
                cancel.cancel();
            });
        })
        .status("PATCH", 401)
        .token()
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    *lock(&slot) = Some(client.clone());
    fake.clock.advance(secs(950));
    client.update(&update("c-1")).unwrap();
    assert_eq!(tokens(&fake), ["token-1", "token-1", "token-2"]);
}

#[test]
fn update_cancelled_during_a_login_sends_nothing() {
    for status in [200, 503] {
        let fake = Fake::named(status.to_string());
        let cancel = Cancel::new();
        let elsewhere = cancel.clone();
        fake.token_for(1_000).status("PATCH", 202);
        match status {
            200 => fake.token(),
            _ => fake.answer("POST", Response::new(status)),
        }
        .meanwhile(move || elsewhere.cancel());
        let client = fake.client();
        client.update(&update("c-1")).unwrap();
        fake.clock.advance(secs(950));
        let error = client
            .update_cancellable(&update("c-1"), &cancel)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(tokens(&fake), ["token-1"]);
    }
}

#[test]
fn refresh_before_expiry_is_tried_once_by_one_call() {
    let fake = Fake::new();
    fake.token_for(300).status("PATCH", 202);
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(275));
    // The login hangs for as long as it may; the API asks for pauses beyond the hold-off.
    fake.fault("POST", ErrorKind::Timeout, Sent::Maybe)
        .takes(secs(2));
    for _ in 0..2 {
        let slow = Response::new(429).with_header("Retry-After", "6");
        fake.answer("PATCH", slow);
    }
    fake.status("PATCH", 202);
    let receipt = client.update(&update("c-1")).unwrap();
    assert_eq!((receipt.attempts, fake.sent("POST").len()), (3, 2));
}
