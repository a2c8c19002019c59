//! Asking for a token, and the token that is given.

use super::*;

#[test]
fn login_request_has_documented_form() {
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
fn login_url_set_receives_login() {
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
fn token_first_use_is_requested_once_and_cached() {
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
fn given_token_is_sent_verbatim() {
    let fake = Fake::new();
    fake.status("PATCH", 202).status("PATCH", 202);
    let client = fake.builder_with_token().build().unwrap();
    client.update(&update("c-1")).unwrap();
    fake.clock.advance(secs(1_000_000));
    client.update(&update("c-1")).unwrap();
    assert_eq!(tokens(&fake), ["given", "given"]);
    assert_eq!(client.metrics().token_refreshes, 0);
}
