//! Login and API have pauses of their own.

use super::*;

#[test]
fn early_login_throttled_pauses_neither_api_nor_valid_token() {
    let fake = Fake::new();
    fake.token_for(1_000)
        .status("PATCH", 202)
        .answer("POST", Response::new(429).with_header("Retry-After", "30"))
        .status("PATCH", 202)
        .status("PATCH", 202)
        .token()
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(945));
    // The login is due, tried once, and told to wait: the token is still good.
    client.update(&update("c-1")).unwrap();
    // While the token endpoint wants to be left alone, it is.
    client.update(&update("c-2")).unwrap();
    assert!(fake.sleeps().is_empty());
    fake.clock.advance(secs(31));
    client.update(&update("c-3")).unwrap();
    assert_eq!(tokens(&fake), ["token-1", "token-1", "token-1", "token-2"]);
}

#[test]
fn early_login_hanging_takes_two_seconds_at_most() {
    // The life of the token, when it is tried again, and how long that may take.
    for (life, age, limit) in [
        (1_000, secs(950), secs(2)),
        (100, secs(98), secs(1)),
        (100, ms(99_500), ms(250)),
    ] {
        let fake = Fake::named(format!("{age:?}"));
        fake.token_for(life)
            .status("PATCH", 202)
            .fault("POST", ErrorKind::Timeout, Sent::Maybe)
            .takes(limit)
            .status("PATCH", 202);
        let client = fake.client();
        client.update(&update("c-1")).unwrap();
        fake.clock.advance(age);
        client.update(&update("c-1")).unwrap();
        let logins = fake.sent("POST");
        assert_eq!(logins.len(), 2, "one attempt, not four");
        assert_eq!(logins[1].timeout, Some(limit));
        assert!(fake.sleeps().is_empty());
        assert_eq!(tokens(&fake), ["token-1", "token-1"]);
    }
}

#[test]
fn early_login_time_does_not_count_against_deadline() {
    let fake = Fake::new();
    fake.token_for(1_000)
        .status("PATCH", 202)
        .fault("POST", ErrorKind::Timeout, Sent::Maybe)
        .takes(secs(2))
        .status("PATCH", 202);
    let policy = RetryPolicy::default().with_deadline(secs(1));
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(950));
    client.update(&update("c-1")).unwrap();
    // All of the deadline is left for the write.
    assert_eq!(fake.sent("PATCH")[1].timeout, Some(secs(1)));
}

#[test]
fn token_lifetime_excludes_waits_of_login() {
    let fake = Fake::new();
    fake.answer("POST", Response::new(429).with_header("Retry-After", "170"))
        .token_for(120)
        .status("PATCH", 202)
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    client.update(&update("c-1")).unwrap();
    assert_eq!(fake.sent("POST").len(), 2);
}

#[test]
fn api_throttled_takes_token_after_the_pause() {
    // While a write is told to wait, another thread comes, and the token ends before the pause does.
    let fake = Fake::new();
    fake.token_for(100)
        .answer("PATCH", Response::new(429).with_header("Retry-After", "30"))
        .takes(secs(95))
        .token()
        .get_body(json!({ "attributes": {} }))
        .status("PATCH", 202);
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let other = slot.clone();
    let alarm = AlarmClock::new(fake.clock.clone(), move || {
        let client = lock(&other).take().unwrap();
        thread::spawn(move || client.read(&Target::secure("c-2")).unwrap())
            .join()
            .unwrap();
    });
    let client = fake
        .builder()
        .retry(without_jitter())
        .clock(alarm)
        .build()
        .unwrap();
    *lock(&slot) = Some(client.clone());
    client.update(&update("c-1")).unwrap();

    // A token that was taken before would be over by now.
    let logins: Vec<_> = fake.sent("POST").iter().map(|login| login.at).collect();
    assert_eq!(logins, [secs(0), secs(125)]);
    let read = &fake.sent("GET")[0];
    assert_eq!(
        (read.at, read.authorization()),
        (secs(125), "Bearer token-2")
    );
    assert_eq!(tokens(&fake), ["token-1", "token-2"]);
}

#[test]
fn login_pause_beyond_the_deadline_is_not_waited_for() {
    let fake = Fake::new();
    fake.answer("POST", Response::new(429).with_header("Retry-After", "60"));
    let policy = without_jitter().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    // The second one comes when the failed login is no longer held off, but the pause goes on.
    for update in [update("c-1"), update("c-2")] {
        let error = client.update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(error.during_login());
        fake.clock.advance(secs(6));
    }
    assert!(fake.sleeps().is_empty());
    assert_eq!(fake.methods(), "POST");
}

#[test]
fn login_held_off_until_the_deadline_passed_is_not_begun() {
    let fake = Fake::new();
    fake.answer("POST", Response::new(503));
    let late = fake.clock.clone();
    let alarm = AlarmClock::new(fake.clock.clone(), move || late.advance(secs(9)));
    let client = fake
        .builder()
        .clock(alarm)
        .retry(once().with_deadline(secs(6)))
        .build()
        .unwrap();
    client.update(&update("c-1")).unwrap_err();
    // The wait for the next login takes longer than it was to.
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.during_login());
    assert_eq!(fake.methods(), "POST");
}
