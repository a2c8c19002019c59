//! Connections: refused, closed, slow; logins.

use super::*;

#[test]
fn idle_connection_closed_costs_nothing() {
    let wire = Wire::start(scripts![
        then(&[&read_ok(), &write_ok(), &[Act::Close]]),
        then(&[
            &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
            &kept(),
        ]),
    ]);
    let client = builder(&wire.url()).build().unwrap();
    client.update(&update()).unwrap();
    wire.wait_closed(0);
    let receipt = client.update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!(receipt.version.as_deref(), Some("8"));
    assert_eq!(client.metrics().transport_errors, 0);
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["GET", "PATCH", "PATCH"]);
    assert_eq!(report.requests[2].header("if-match"), Some("\"7\""));
    assert_eq!(report.connections, 2);
}

#[test]
fn reused_connection_closed_on_request_is_replaced() {
    // A warm write meets it: sent again with the version that the first write returned.
    let (results, seen) = play(
        scripts![
            then(&[&read_ok(), &write_ok(), &[Act::ReadRequest, Act::Close]]),
            then(&[
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        builder,
        |client| [client.update(&update()), client.update(&update())],
    );
    let second = &results[1].as_ref().unwrap();
    assert_eq!((second.attempts, second.requests), (2, 2));
    assert_eq!(second.outcome, Outcome::Applied);
    let writes = seen.writes();
    assert_eq!(writes[1].header("if-match"), Some("\"7\""));
    assert_eq!(writes[2].header("if-match"), Some("\"7\""));
    assert_eq!(writes[1].body, writes[2].body);
    assert_eq!(seen.report.connections, 2);
}

#[test]
fn connection_refused_sends_nothing() {
    for (update, attempts) in [(update(), 0), (direct(), 4)] {
        let clock = ManualClock::new();
        let client = builder(&refused_url())
            .clock(clock.clone())
            .build()
            .unwrap();
        let error = client.update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(!error.may_have_applied() && error.is_transient());
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (attempts, 4));
        assert_eq!(clock.sleeps().len(), 3);
    }
}

#[test]
fn host_unresolvable_is_connect_error() {
    let client = builder("http://nonexistent.invalid")
        .allow_http(true)
        .retry(RetryPolicy::default().with_max_attempts(1))
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    let text = error.to_string();
    assert!(
        text.contains("nonexistent.invalid") && text.contains("does not resolve"),
        "{text}"
    );
    assert!(!error.may_have_applied() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (1, 1));
}

#[test]
fn login_unanswered_is_retried() {
    let token = r#"{"access_token":"fresh","token_type":"bearer","expires_in":86400}"#;
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play(
            scripts![
                fault,
                then(&[
                    &[Act::ReadRequest, respond(200, token)],
                    &read_ok(),
                    &write_ok(),
                    &kept(),
                ]),
            ],
            |url| {
                let limits = if stalls(&fault) { SHORT } else { SHORT * 100 };
                builder_of(url, Credentials::new("id", "secret"))
                    .timeouts(Timeouts::default().with_response(limits))
            },
            |client| client.update(&update()),
        );
        let receipt = result.unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 2));
        assert_eq!(
            seen.report.requests.last().unwrap().header("authorization"),
            Some("Bearer fresh")
        );
        assert_eq!(seen.report.connections, 2);
    }
}

/// The only connect that takes long on loopback: the other side never says hello.
#[test]
fn connect_timeout_sends_nothing() {
    let wire = Wire::start(vec![vec![Act::WaitClientClose]; 2]);
    let client = builder(&wire.url().replace("http:", "https:"))
        .timeouts(Timeouts::default().with_connect(SHORT))
        .retry(RetryPolicy::default().with_max_attempts(2))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("too long"), "{error}");
    assert!(!error.may_have_applied() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (2, 2));
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert!(report.requests.is_empty());
}

/// The limit that a deadline sets is of another kind to ureq than those of the phases.
#[test]
fn request_near_deadline_gets_rest_as_timeout() {
    let policy = RetryPolicy::default().with_max_attempts(1);
    let (result, seen) = play(
        scripts![[Act::ReadRequest, Act::WaitClientClose]],
        |url| builder(url).retry(policy.with_deadline(SHORT)),
        |client| client.update(&direct()),
    );
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.may_have_applied());
    seen.assert_same_writes("6");

    // Shorter than the limits of all phases together: connections are kept all the same.
    let (result, seen) = play(
        scripts![then(&[&read_ok(), &write_ok(), &kept()])],
        |url| builder(url).retry(policy.with_deadline(Duration::from_secs(20))),
        |client| client.update(&update()),
    );
    assert_eq!(result.unwrap().outcome, Outcome::Applied);
    assert_eq!(seen.report.connections, 1);
}
