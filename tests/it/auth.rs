//! Tokens: how they are asked for, kept, replaced in time, and what happens when they cannot be had.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use genesys_attributes::{
    Cancel, Client, ClientBuilder, Credentials, Error, ErrorKind, ManualClock, RateLimit, Region,
    Request, Response, RetryPolicy, Sent, Target, TransportError, Update,
};
use serde_json::{Value, json};

use crate::fake::{
    AlarmClock, BASE, CLIENT_ID, CLIENT_SECRET, Fake, Gate, PATIENCE, Seen, json_response, lock,
    ms, says, secs,
};

/// `Basic` of the fake's credentials.
const BASIC: &str = "Y2xpZW50LWlkOmNsaWVudC01ZWNyZXQ=";

/// An update of one request.
fn update(conversation: &str) -> Update {
    Update::participant(conversation, "p-1").set("k", "v")
}

fn once() -> RetryPolicy {
    RetryPolicy::default().with_max_attempts(1)
}

fn without_jitter() -> RetryPolicy {
    RetryPolicy::default().with_backoff(Duration::ZERO, Duration::ZERO)
}

fn refusal(error: &str, description: &str) -> Value {
    json!({ "error": error, "description": description, "error_description": description })
}

/// The token that each write carried, in order.
fn tokens(fake: &Fake) -> Vec<String> {
    let writes = fake.sent("PATCH");
    writes
        .iter()
        .map(|write| write.authorization().replace("Bearer ", ""))
        .collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Asking

#[test]
fn a_login_is_the_documented_request() {
    for (id, secret, basic) in [
        (CLIENT_ID, CLIENT_SECRET, BASIC),
        ("i", "s", "aTpz"),
        ("id", "se", "aWQ6c2U="),
        ("ab", "c+/=", "YWI6YysvPQ=="),
    ] {
        let clock = ManualClock::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let record = log.clone();
        let client = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new(id, secret),
        )
        .base_url(BASE)
        .clock(clock)
        .transport(move |request: &Request| {
            let seen = Seen::of(request, Duration::ZERO);
            let is_login = seen.method == "POST";
            lock(&record).push(seen);
            Ok(if is_login {
                json_response(
                    200,
                    &json!({ "access_token": "a.b-c_d~e+f/g=", "expires_in": 300 }),
                )
            } else {
                Response::new(202)
            })
        })
        .build()
        .unwrap();
        client.update(&update("c-1")).unwrap();
        let log = lock(&log);
        let login = &log[0];
        assert_eq!(login.line(), "POST /oauth/token");
        assert_eq!(login.authorization(), format!("Basic {basic}"));
        assert_eq!(
            login.header("Content-Type"),
            Some("application/x-www-form-urlencoded")
        );
        assert_eq!(login.header("Accept"), Some("application/json"));
        assert_eq!(login.if_match(), None);
        assert_eq!(login.body, "grant_type=client_credentials");
        assert_eq!(log[1].authorization(), "Bearer a.b-c_d~e+f/g=");
        assert_eq!(log.len(), 2);
    }
}

#[test]
fn logins_go_to_the_login_address() {
    for (base, login, expected) in [
        (None, None, "https://login.mypurecloud.ie/oauth/token"),
        (
            Some("http://127.0.0.1:1/gw/"),
            None,
            "http://127.0.0.1:1/gw/oauth/token",
        ),
        (
            Some("http://127.0.0.1:1"),
            Some("http://127.0.0.1:2/login/"),
            "http://127.0.0.1:2/login/oauth/token",
        ),
        (
            None,
            Some("http://127.0.0.1:2"),
            "http://127.0.0.1:2/oauth/token",
        ),
    ] {
        let log = Arc::new(Mutex::new(Vec::new()));
        let record = log.clone();
        let mut builder = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new(CLIENT_ID, CLIENT_SECRET),
        )
        .clock(ManualClock::new())
        .transport(move |request: &Request| {
            lock(&record).push(request.url().to_owned());
            Ok(json_response(200, &json!({ "access_token": "t" })))
        });
        if let Some(base) = base {
            builder = builder.base_url(base);
        }
        if let Some(login) = login {
            builder = builder.login_url(login);
        }
        builder.build().unwrap().update(&update("c-1")).unwrap();
        let log = lock(&log);
        assert_eq!(log[0], expected);
        let api = base.map_or("https://api.mypurecloud.ie", |b| b.trim_end_matches('/'));
        let path = "/api/v2/conversations/c-1/participants/p-1/attributes";
        assert_eq!(log[1], format!("{api}{path}"));
    }
}

#[test]
fn a_token_is_asked_for_once_and_kept() {
    let fake = Fake::new();
    fake.token();
    let client = fake.client();
    assert!(fake.seen().is_empty());
    for n in 0..5 {
        fake.status("PATCH", 202);
        client.clone().update(&update(&format!("c-{n}"))).unwrap();
    }
    assert_eq!(fake.sent("POST").len(), 1);
    assert_eq!(tokens(&fake), ["token-1"; 5]);
    assert_eq!(client.metrics().token_refreshes, 1);
    // Logins are no API requests.
    assert_eq!(client.metrics().requests, 5);
}

#[test]
fn a_given_token_is_used_as_it_is() {
    let fake = Fake::new();
    fake.status("PATCH", 202).status("PATCH", 202);
    let client = fake.builder_with_token().build().unwrap();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(1_000_000));
    client.update(&update("c-1")).unwrap();
    assert_eq!(tokens(&fake), ["given", "given"]);
    assert_eq!(client.metrics().token_refreshes, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Replacing in time

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
fn a_token_is_replaced_when_a_tenth_of_its_life_is_left_or_a_minute() {
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
fn a_life_that_makes_no_sense_is_clamped() {
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
fn the_life_counts_from_before_the_login() {
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
fn while_the_token_is_good_a_failed_refresh_harms_nobody() {
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
fn a_token_that_ended_is_never_used() {
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

// ---------------------------------------------------------------------------------------------------------------------
// Threads

/// A platform for many threads: logins by `login`, which gets their number, and writes by `write`, which gets the
/// request; what came is kept.
struct Platform {
    clock: ManualClock,
    logins: Arc<AtomicUsize>,
    writes: Arc<Mutex<Vec<Seen>>>,
    builder: ClientBuilder,
}

impl Platform {
    fn new(
        login: impl Fn(usize, &AtomicUsize) -> Response + Send + Sync + 'static,
        write: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Platform {
        let clock = ManualClock::new();
        let logins = Arc::new(AtomicUsize::new(0));
        let writes = Arc::new(Mutex::new(Vec::new()));
        let (count, record) = (logins.clone(), writes.clone());
        let transport = move |request: &Request| -> Result<Response, TransportError> {
            let seen = Seen::of(request, Duration::ZERO);
            if seen.method == "POST" {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                return Ok(login(number, &count));
            }
            let response = write(&seen);
            lock(&record).push(seen);
            Ok(response)
        };
        let builder = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new(CLIENT_ID, CLIENT_SECRET),
        )
        .base_url(BASE)
        .rate_limit(RateLimit::unlimited())
        .clock(clock.clone())
        .transport(transport);
        Platform {
            clock,
            logins,
            writes,
            builder,
        }
    }
}

fn granted(number: usize) -> Response {
    json_response(
        200,
        &json!({ "access_token": format!("token-{number}"), "expires_in": 100 }),
    )
}

/// Gives other threads every chance to log in too.
fn linger(logins: &AtomicUsize) {
    for _ in 0..20_000 {
        if logins.load(Ordering::SeqCst) > 1 {
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn many_threads_without_a_token_make_one_login() {
    let platform = Platform::new(
        |number, logins| {
            linger(logins);
            granted(number)
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    let started = Barrier::new(16);
    thread::scope(|scope| {
        for n in 0..16 {
            let (client, started) = (client.clone(), &started);
            scope.spawn(move || {
                started.wait();
                client.update(&update(&format!("c-{n}"))).unwrap();
            });
        }
    });
    assert_eq!(platform.logins.load(Ordering::SeqCst), 1);
    let writes = lock(&platform.writes);
    assert_eq!(writes.len(), 16);
    assert!(writes.iter().all(|w| w.authorization() == "Bearer token-1"));
}

#[test]
fn nobody_with_a_good_token_waits_for_a_refresh() {
    let gate = Gate::new();
    let at_login = gate.clone();
    let platform = Platform::new(
        move |number, _| {
            if number == 2 {
                at_login.pass();
            }
            granted(number)
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    client.update(&update("c-1")).unwrap();
    platform.clock.advance(secs(95));

    let refreshing = thread::spawn({
        let client = client.clone();
        move || client.update(&update("c-1"))
    });
    gate.await_waiting(1);
    let (done, others) = mpsc::channel();
    for n in 2..6 {
        let (client, done) = (client.clone(), done.clone());
        thread::spawn(move || {
            let result = client.update(&update(&format!("c-{n}")));
            done.send(result).unwrap();
        });
    }
    for _ in 2..6 {
        let result = others.recv_timeout(PATIENCE);
        result.expect("it waits for the refresh").unwrap();
    }
    assert!(!refreshing.is_finished());
    gate.open();
    refreshing.join().unwrap().unwrap();

    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    let writes = lock(&platform.writes);
    let used: Vec<_> = writes.iter().map(Seen::authorization).collect();
    assert_eq!(used[..5], ["Bearer token-1"; 5]);
    assert_eq!(used[5], "Bearer token-2");
}

#[test]
fn who_waits_for_a_login_shares_its_failure() {
    let platform = Platform::new(
        |_, logins| {
            linger(logins);
            json_response(401, &refusal("invalid_client", "client not found"))
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    let started = Barrier::new(8);
    let errors: Vec<Error> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (client, started) = (client.clone(), &started);
                scope.spawn(move || {
                    started.wait();
                    client.update(&update(&format!("c-{n}"))).unwrap_err()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(platform.logins.load(Ordering::SeqCst), 1);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Auth);
        says(&error, &["client not found"]);
    }
}

#[test]
fn a_failed_login_is_not_tried_again_for_five_seconds() {
    let fake = Fake::new();
    let refused = json_response(400, &refusal("invalid_client", "authentication failed"));
    fake.answer("POST", refused);
    let client = fake.client();
    for wait in [ms(0), ms(0), ms(4_999)] {
        fake.clock.advance(wait);
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        says(&error, &["authentication failed"]);
    }
    assert_eq!(fake.sent("POST").len(), 1);
    fake.clock.advance(ms(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn a_login_that_was_cancelled_is_nobody_elses_failure() {
    let fake = Fake::new();
    fake.status("POST", 503);
    let cancel = Cancel::new();
    let alarm = cancel.clone();
    let client = fake
        .builder()
        .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
        .retry(RetryPolicy::default().with_backoff(secs(20), secs(20)))
        .build()
        .unwrap();
    let error = client
        .update_cancellable(&update("c-1"), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn a_login_that_panicked_keeps_nobody_waiting() {
    let fake = Fake::new();
    fake.panics("POST").token().status("PATCH", 202);
    let client = fake.client();
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn a_late_401_of_an_old_token_leaves_the_new_one_alone() {
    let gate = Gate::new();
    let at_write = gate.clone();
    let platform = Platform::new(
        |number, _| granted(number),
        move |seen| {
            if seen.authorization() != "Bearer token-1" {
                return Response::new(202);
            }
            if seen.path.contains("c-late") {
                at_write.pass();
            }
            Response::new(401)
        },
    );
    let client = platform.builder.build().unwrap();
    let late = thread::spawn({
        let client = client.clone();
        move || client.update(&update("c-late"))
    });
    gate.await_waiting(1);
    // Meanwhile another one finds out, and gets a new token.
    client.update(&update("c-early")).unwrap();
    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    gate.open();
    late.join().unwrap().unwrap();

    client.update(&update("c-next")).unwrap();
    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    let writes = lock(&platform.writes);
    let used: Vec<_> = writes.iter().map(Seen::authorization).collect();
    assert_eq!(
        used,
        [
            "Bearer token-1",
            "Bearer token-2",
            "Bearer token-1",
            "Bearer token-2",
            "Bearer token-2"
        ]
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Failing

#[test]
fn a_refused_login_says_why_and_is_not_repeated() {
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
        assert_eq!(error.correlation_id(), Some("abc"));
        assert_eq!((error.attempts(), error.requests()), (0, 0));
        assert!(fake.sleeps().is_empty());
        says(&error, parts);
    }
}

#[test]
fn a_throttled_login_is_repeated_and_then_rate_limited() {
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
        for _ in 0..3 {
            fake.answer("POST", response.clone());
        }
        fake.token().status("PATCH", 202);
        let client = fake.client();
        client.update(&update("c-1")).unwrap();
        fake.slept(&[(ms(0), ms(500)), (ms(0), secs(1)), (ms(0), secs(2))]);
        assert_eq!(client.metrics().rate_limited, 3);

        let fake = Fake::named(name);
        for _ in 0..4 {
            fake.answer("POST", response.clone().with_header("Retry-After", "3"));
        }
        let client = fake.builder().retry(without_jitter()).build().unwrap();
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited, "{name}");
        assert_eq!(error.retry_after(), Some(secs(3)));
        assert!(error.is_transient());
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
fn the_same_words_from_the_api_are_no_throttling() {
    let fake = Fake::new();
    let body = json!({ "message": "rate limit exceeded" });
    fake.token().answer("PATCH", json_response(400, &body));
    let error = fake.client().update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_login_that_fails_in_passing_is_repeated() {
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
                }
            }
            fake.slept(&[(ms(0), ms(500)), (ms(0), secs(1)), (ms(0), secs(2))]);
        }
    }
}

#[test]
fn a_login_that_fails_for_good_is_not_repeated() {
    for (status, kind) in [
        (302, ErrorKind::Protocol),
        (404, ErrorKind::NotFound),
        (410, ErrorKind::NotFound),
        (501, ErrorKind::Server),
    ] {
        let fake = Fake::named(status.to_string());
        fake.status("POST", status);
        let error = fake.client().update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.http_status(), Some(status));
        assert!(fake.sleeps().is_empty());
    }
}

#[test]
fn an_answer_that_is_no_token_is_never_used() {
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
        let client = fake.client();
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{body}");
        assert_eq!(error.http_status(), Some(200));
        assert_eq!(client.metrics().token_refreshes, 0);
        says(&error, &["token endpoint"]);
    }
}

#[test]
fn a_token_that_was_cut_short_is_asked_for_again() {
    let fake = Fake::new();
    fake.answer("POST", Response::new(200).with_broken_body("cut"))
        .token()
        .status("PATCH", 202);
    fake.client().update(&update("c-1")).unwrap();
    fake.slept(&[(ms(0), ms(500))]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Pauses of their own

#[test]
fn a_throttled_early_login_pauses_neither_the_api_nor_anybody_with_a_good_token() {
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
fn an_early_login_that_hangs_is_over_before_the_token_ends() {
    let fake = Fake::new();
    fake.token_for(1_000)
        .status("PATCH", 202)
        .answer("POST", Response::new(503))
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(950));
    client.update(&update("c-1")).unwrap();
    let logins = fake.sent("POST");
    assert_eq!(logins.len(), 2, "one attempt, not four");
    assert_eq!(logins[1].timeout, Some(secs(25)), "half of what is left");
}

#[test]
fn the_waits_of_a_login_do_not_count_as_the_token_s_life() {
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
fn a_throttled_api_does_not_pause_logins() {
    // While a write is told to wait, another thread finds the token at its end.
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

    // It logs in at once, and waits only then.
    let logins: Vec<_> = fake.sent("POST").iter().map(|login| login.at).collect();
    assert_eq!(logins, [secs(0), secs(95)]);
    assert_eq!(fake.sent("GET")[0].at, secs(125));
    assert_eq!(tokens(&fake), ["token-1", "token-1"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Secrets, identity

#[test]
fn no_error_shows_a_secret() {
    let hidden = [CLIENT_SECRET, BASIC, "token-1", "Bearer", "Basic"];
    let mut errors = Vec::new();
    let ends: Vec<Response> = vec![
        Response::new(400),
        json_response(400, &refusal("invalid_client", "no")),
        Response::new(403),
        Response::new(429).with_header("Retry-After", "999"),
        Response::new(500),
        Response::new(200).with_body("<html>"),
        Response::new(302),
    ];
    for end in &ends {
        let fake = Fake::new();
        fake.answer("POST", end.clone());
        let client = fake.builder().retry(once()).build().unwrap();
        errors.push(client.update(&update("c-1")).unwrap_err());
    }
    for end in &ends {
        let fake = Fake::new();
        fake.token().answer("GET", end.clone());
        let client = fake.builder().retry(once()).build().unwrap();
        errors.push(
            client
                .update(&Update::secure("c-1").set("k", "v"))
                .unwrap_err(),
        );
    }
    for method in ["POST", "GET"] {
        for sent in [Sent::No, Sent::Maybe] {
            let fake = Fake::new();
            if method == "GET" {
                fake.token();
            }
            fake.fault(method, ErrorKind::Transport, sent);
            let client = fake.builder().retry(once()).build().unwrap();
            errors.push(
                client
                    .update(&Update::secure("c-1").set("k", "v"))
                    .unwrap_err(),
            );
        }
    }
    assert_eq!(errors.len(), 2 * ends.len() + 4);
    for error in errors {
        let mut shown = format!("{error} {error:?} {error:#?}");
        shown += &serde_json::to_string(&error).unwrap();
        let mut source = error.source();
        while let Some(cause) = source {
            shown += &format!("{cause} {cause:?}");
            source = cause.source();
        }
        for secret in hidden {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}

#[test]
fn nothing_printable_shows_a_secret() {
    let fake = Fake::new();
    fake.token().status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    let given = Credentials::access_token("given-t0ken");
    let id = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let builder = fake.builder();
    let mut shown = format!("{client:?} {client:#?} {builder:?} {builder:#?}");
    shown += &format!("{given:?} {given:#?} {id:?} {id:#?}");
    for secret in [CLIENT_SECRET, BASIC, "token-1", "given-t0ken"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains(CLIENT_ID) && shown.contains("[redacted]"));
}

#[test]
fn credentials_are_verified_by_asking_whose_token_it_is() {
    let fake = Fake::new();
    fake.token_for(600).takes(secs(1)).get_body(json!({
        "organization": { "id": "o-1", "name": "Org" },
        "OAuthClient": { "id": "client-id", "name": "Sync" },
    }));
    let identity = fake.client().verify_credentials().unwrap();
    assert_eq!(fake.lines(), ["POST /oauth/token", "GET /api/v2/tokens/me"]);
    assert_eq!(identity.organization_id.as_deref(), Some("o-1"));
    assert_eq!(identity.organization_name.as_deref(), Some("Org"));
    assert_eq!(identity.client_id.as_deref(), Some("client-id"));
    assert_eq!(identity.client_name.as_deref(), Some("Sync"));
    assert_eq!(
        identity.expires_at.as_deref(),
        Some("2026-01-01T00:10:00.000Z")
    );
}

#[test]
fn the_end_of_a_given_token_is_not_known() {
    let fake = Fake::new();
    fake.get_body(json!({}));
    let client = fake.builder_with_token().build().unwrap();
    let identity = client.verify_credentials().unwrap();
    assert_eq!(identity.expires_at, None);
    assert_eq!(identity.organization_id, None);
    assert_eq!(fake.seen()[0].authorization(), "Bearer given");
}

#[test]
fn credentials_that_are_refused_are_an_auth_error() {
    let fake = Fake::new();
    fake.token().status("GET", 401).token().status("GET", 401);
    let error = fake.client().verify_credentials().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert_eq!(fake.methods(), "POST GET POST GET");

    let fake = Fake::new();
    fake.answer("POST", json_response(401, &refusal("invalid_client", "x")));
    let error = fake.client().verify_credentials().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
}
