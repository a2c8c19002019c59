//! Answers whose head arrived: broken bodies, redirects, interim answers.

use super::*;

#[test]
fn write_accepted_is_never_resent_whatever_its_body() {
    for (name, fault, _) in broken_bodies() {
        eprintln!("{name}");
        let read = [Act::ReadRequest, respond(200, r#"{"version":7}"#)];
        let (results, seen) = play(
            scripts![
                then(&[&read_ok(), &[Act::ReadRequest], &fault]),
                // The version is not known any more, and the broken connection not used again.
                then(&[&read, &write_ok(), &kept()]),
            ],
            |url| builder_for(&fault, url),
            |client| [client.update(&update()), client.update(&update())],
        );
        let [first, second] = results.map(Result::unwrap);
        assert_eq!(first.outcome, Outcome::Applied);
        assert_eq!((first.attempts, first.requests), (1, 2));
        assert_eq!(first.previous_version.as_deref(), Some("6"));
        assert_eq!((first.version.as_ref(), first.response()), (None, None));
        assert_eq!((second.attempts, second.requests), (1, 2));
        assert_eq!(seen.methods(), ["GET", "PATCH", "GET", "PATCH"]);
        assert_eq!(seen.writes()[1].header("if-match"), Some("\"7\""));
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 0);
    }
}

#[test]
fn write_accepted_needs_no_usable_body() {
    let answers = [
        ("empty", respond(200, ""), true),
        ("not JSON", respond(200, "<html>fine</html>"), true),
        ("half of JSON", respond(202, r#"{"version":"#), true),
        ("204", respond(204, ""), true),
        // What follows a 204 cannot be told from an answer nobody asked for.
        (
            "204 with a body",
            raw("HTTP/1.1 204 No Content\r\nContent-Length: 15\r\n\r\n{\"version\":\"9\"}"),
            false,
        ),
    ];
    for (name, answer, reused) in answers {
        eprintln!("{name}");
        let start = then(&[&read_ok(), &[Act::ReadRequest, answer]]);
        let more = then(&[&read_ok(), &write_ok(), &kept()]);
        let scripts = if reused {
            vec![then(&[&start, &more])]
        } else {
            vec![then(&[&start, &kept()]), more]
        };
        let connections = scripts.len();
        let (results, seen) = play(scripts, builder, |client| {
            [client.update(&update()), client.update(&update())]
        });
        let [first, second] = results.map(Result::unwrap);
        assert_eq!(first.outcome, Outcome::Applied);
        assert_eq!((first.attempts, first.requests), (1, 2));
        assert_eq!((first.version.as_ref(), first.response()), (None, None));
        assert_eq!((second.attempts, second.requests), (1, 2));
        assert_eq!(second.version.as_deref(), Some("7"));
        assert_eq!(seen.methods(), ["GET", "PATCH", "GET", "PATCH"]);
        assert_eq!(seen.report.connections, connections);
    }
}

/// An answer nobody asked for must not become the answer to the next write.
#[test]
fn bytes_after_answer_are_not_the_next_answer() {
    let answer = |version: u8| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{{\"version\":\"{version}\"}}")
    };
    let (results, seen) = play(
        scripts![
            then(&[
                &read_ok(),
                &[Act::ReadRequest, raw(&(answer(7) + &answer(9)))],
                &kept(),
            ]),
            then(&[
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        builder,
        |client| [client.update(&update()), client.update(&update())],
    );
    let versions = results.map(|result| result.unwrap().version.unwrap());
    assert_eq!(versions, ["7", "8"]);
    assert_eq!(seen.writes()[1].header("if-match"), Some("\"7\""));
    assert_eq!(seen.report.connections, 2);
}

/// The status decides, not the body that it came with.
#[test]
fn error_answer_with_broken_body_keeps_its_kind() {
    let cut = |status: u16| {
        raw(&format!(
            "HTTP/1.1 {status} X\r\nContent-Length: 100\r\n\r\n{{\"mess"
        ))
    };
    for (status, kind) in [
        (400, ErrorKind::InvalidInput),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (412, ErrorKind::Conflict),
        (413, ErrorKind::PayloadTooLarge),
    ] {
        let (result, seen) = play_one(
            scripts![[Act::ReadRequest, cut(status), Act::Close]],
            &direct(),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (1, 1));
        seen.assert_same_writes("6");
    }
    // This one may be the platform giving up half-way.
    let (result, seen) = play_one(
        scripts![
            [Act::ReadRequest, cut(502), Act::Close],
            then(&[&write_ok(), &kept()]),
        ],
        &direct(),
    );
    assert_eq!(result.unwrap().attempts, 2);
    seen.assert_same_writes("6");
}

/// The answer may be lost with the connection, so what the client makes of it is either; the write
/// is not applied, and is sent again.
#[test]
fn early_429_leads_to_another_attempt() {
    let throttle = Act::Respond {
        status: 429,
        headers: vec![
            ("Retry-After", "1".to_owned()),
            // Or the client may find the connection alive for one request more.
            ("Connection", "close".to_owned()),
        ],
        body: "{}".to_owned(),
    };
    for early in [
        vec![throttle.clone(), Act::Close],
        vec![Act::ReadHead, throttle.clone(), Act::Close],
        vec![Act::ReadHead, throttle, Act::Reset],
    ] {
        let (result, seen) = play_one(scripts![early, then(&[&write_ok(), &kept()])], &direct());
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2));
        seen.assert_same_writes("6");
        assert_eq!(seen.sleeps, 1);
        assert_eq!(seen.metrics.rate_limited + seen.metrics.transport_errors, 1);
        assert_eq!(seen.report.connections, 2);
    }
}

#[test]
fn redirect_is_not_followed_and_gets_no_credentials() {
    let elsewhere = Wire::start(Vec::new());
    for status in [301, 302, 303, 307, 308] {
        let redirect = Act::Respond {
            status,
            headers: vec![("Location", format!("{}/api", elsewhere.url()))],
            body: "moved".to_owned(),
        };
        let answer = [Act::ReadRequest, redirect, Act::WaitClientClose];
        for (update, writes) in [(update(), 0), (direct(), 1)] {
            let (result, seen) = play_one(scripts![answer], &update);
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            assert_eq!(error.http_status(), Some(status));
            assert!(!error.may_have_applied());
            assert_eq!((error.attempts(), error.requests()), (writes, 1));
            assert_eq!(seen.report.requests.len(), 1);
        }
        // The login carries the client's secret.
        let wire = Wire::start(scripts![answer]);
        let client = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new("id", "secret"),
        )
        .base_url(wire.url())
        .no_proxy()
        .retry(RetryPolicy::default().with_max_attempts(1))
        .build()
        .unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server, "{error}");
        assert!(error.is_transient() && error.during_login());
        assert!(error.to_string().starts_with("login failed"), "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert_eq!(error.requests(), 0);
        drop(client);
        let report = wire.finish();
        report.assert_clean();
        assert_eq!(methods(&report.requests), ["POST"]);
    }
    assert_eq!(elsewhere.finish().connections, 0);
}

#[test]
fn interim_answers_are_skipped() {
    let hint = raw("HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n");
    let together = raw(&format!(
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{WRITTEN}",
        WRITTEN.len()
    ));
    let (result, seen) = play_one(
        scripts![then(&[
            &[Act::ReadRequest, hint.clone(), hint.clone(), hint],
            &[respond(200, READ)],
            &[Act::ReadRequest, together],
            &kept(),
        ])],
        &update(),
    );
    let receipt = result.unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    assert_eq!(seen.report.connections, 1);
}
