//! Writes without an answer.

use super::*;

/// A read after somebody wrote what [`update`] wants, and after somebody wrote something else.
const IN_PLACE: &str = r#"{"version":"7","attributes":{"tier":"premium","score":85,"x":1}}"#;

const OTHERS: &str = r#"{"version":"7","attributes":{"tier":"basic","score":85}}"#;

#[test]
fn write_unanswered_is_resent_with_same_version() {
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![fault, then(&[&write_ok(), &kept()])],
            &direct(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2));
        assert_eq!(receipt.version.as_deref(), Some("7"));
        assert_eq!(receipt.previous_version.as_deref(), Some("6"));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 1);
        assert_eq!(
            (seen.metrics.transport_errors, seen.metrics.retries),
            (1, 1)
        );
    }
}

#[test]
fn write_never_answered_may_have_applied() {
    for (name, fault, kind) in unanswered() {
        eprintln!("{name}");
        let tries = tries(&fault);
        let (result, seen) = play_fault(&fault, vec![fault.clone(); tries as usize], &direct());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.may_have_applied());
        assert!(error.to_string().contains("may have been applied"));
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (tries, tries));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, tries as usize);
        assert_eq!(seen.sleeps, tries as usize - 1);
        assert_eq!(seen.metrics.transport_errors, u64::from(tries));
    }
}

#[test]
fn fault_on_reused_connection_is_settled_the_same_way() {
    for (name, fault, _) in unanswered() {
        if name == "closed before reading" {
            // Whether the client finds it closed before or after it sends is a race.
            continue;
        }
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![then(&[&read_ok(), &fault]), then(&[&write_ok(), &kept()]),],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 3));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
    }
}

#[test]
fn conflict_with_own_unanswered_write_is_already_applied() {
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        if !matches!(fault[0], Act::ReadRequest) {
            // The same to the client as another row.
            continue;
        }
        let first = then(&[&read_ok(), &fault]);
        let (result, seen) = play(
            scripts![
                first,
                then(&[
                    &[Act::ReadRequest, respond(412, "{}")],
                    &[Act::ReadRequest, respond(200, IN_PLACE)],
                    &kept(),
                ]),
            ],
            |url| builder_for(&fault, url).retry(RetryPolicy::default()),
            |client| client.update(&update()),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        assert_eq!(receipt.version.as_deref(), Some("7"));
        assert_eq!(receipt.previous_version.as_deref(), Some("6"));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.metrics.conflicts, 1);
    }
}

/// Answers after which the write may be in place all the same, as after none.
#[test]
fn conflict_after_5xx_with_values_in_place_is_already_applied() {
    for status in [408, 500, 502, 503, 504] {
        let (result, seen) = play_one(
            scripts![then(&[
                &read_ok(),
                &[Act::ReadRequest, respond(status, "{}")],
                &[Act::ReadRequest, respond(412, "{}")],
                &[Act::ReadRequest, respond(200, IN_PLACE)],
                &kept(),
            ])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 1);
    }
}

#[test]
fn conflict_with_other_writer_after_unanswered_write_is_rewritten() {
    let (result, seen) = play_one(
        scripts![
            then(&[&read_ok(), &[Act::ReadRequest, Act::Close]]),
            then(&[
                &[Act::ReadRequest, respond(412, "{}")],
                &[Act::ReadRequest, respond(200, OTHERS)],
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        &update(),
    );
    let receipt = result.unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (3, 5));
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    assert_eq!(receipt.version.as_deref(), Some("8"));
    let versions: Vec<_> = seen.writes().iter().map(|w| w.header("if-match")).collect();
    assert_eq!(versions, [Some("\"6\""), Some("\"6\""), Some("\"7\"")]);
}

/// Whatever ends the update later, the lost write stays in doubt.
#[test]
fn unanswered_write_then_other_failure_may_have_applied() {
    let lost = then(&[&read_ok(), &[Act::ReadRequest, Act::Close]]);
    for (status, kind) in [
        (400, ErrorKind::InvalidInput),
        (401, ErrorKind::Auth),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (413, ErrorKind::PayloadTooLarge),
    ] {
        let (result, seen) = play_one(
            scripts![
                lost,
                [
                    Act::ReadRequest,
                    respond(status, "{}"),
                    Act::WaitClientClose
                ]
            ],
            &update(),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (2, 3));
        seen.assert_same_writes("6");
    }
    // The read that would settle it fails.
    let (result, seen) = play_one(
        scripts![
            lost,
            [
                Act::ReadRequest,
                respond(412, "{}"),
                Act::ReadRequest,
                respond(404, "{}"),
                Act::WaitClientClose
            ]
        ],
        &update(),
    );
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (2, 4));
    assert_eq!(seen.methods(), ["GET", "PATCH", "PATCH", "GET"]);
}

/// Neither of these may be written a second time on top of what somebody else wrote.
#[test]
fn conflict_maybe_own_ends_computed_or_versioned_write() {
    let conflict = [
        Act::ReadRequest,
        respond(412, "{}"),
        Act::ReadRequest,
        respond(200, OTHERS),
        Act::WaitClientClose,
    ];
    let lost = [Act::ReadRequest, Act::Close];
    let settled = [Act::ReadRequest, respond(412, "{}"), Act::WaitClientClose];
    let (result, seen) = play_one(scripts![lost, settled], &direct());
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.may_have_applied());
    assert_eq!(error.http_status(), Some(412));
    assert_eq!((error.attempts(), error.requests()), (2, 2));
    seen.assert_same_writes("6");

    let read = r#"{"version":"6","attributes":{"score":84}}"#;
    let start = then(&[&[Act::ReadRequest, respond(200, read)], &lost]);
    // A computed value proves nothing, so it is not even looked for.
    let mut calls = 0;
    let (result, seen) = play(scripts![start, settled], builder, |client| {
        client.update_with(update().target(), |now| {
            calls += 1;
            let score = now.attributes["score"].as_u64().unwrap();
            Ok(Some(Attributes::from_iter([(
                "score".to_owned(),
                (score + 1).into(),
            )])))
        })
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (2, 3));
    assert_eq!(calls, 1);
    seen.assert_same_writes("6");
    assert_eq!(seen.methods(), ["GET", "PATCH", "PATCH"]);

    // What only this call can have written does: somebody else's, and then our own.
    let unique = |answer: &str| {
        let mut conflict = conflict.clone();
        conflict[3] = respond(200, answer);
        let mut calls = 0;
        let (result, seen) = play(scripts![start, conflict], builder, |client| {
            let options = UpdateOptions::new().unique();
            client.update_with_options(update().target(), options, |_| {
                calls += 1;
                Ok(Some(Edit::new().set("score", 85)))
            })
        });
        assert_eq!(calls, 1);
        seen.assert_same_writes("6");
        assert_eq!(seen.methods(), ["GET", "PATCH", "PATCH", "GET"]);
        result
    };
    let error = unique(r#"{"version":"7","attributes":{"score":90}}"#).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.may_have_applied());
    let receipt = unique(OTHERS).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
}

/// The same with a server that keeps state: the write arrives, the answer is lost.
#[test]
fn write_unanswered_is_applied_exactly_once() {
    struct World {
        version: u64,
        attributes: Attributes,
        applied: Vec<String>,
    }
    let world = Arc::new(Mutex::new(World {
        version: 6,
        attributes: Attributes::new(),
        applied: Vec::new(),
    }));
    let theirs = Arc::clone(&world);
    let server = Server::start(move |request| {
        let mut world = theirs.lock().unwrap();
        if request.method == "GET" {
            let body = json!({"version": world.version, "attributes": world.attributes});
            return Resp::json(200, body.to_string());
        }
        if request.header("if-match") != Some(&format!("\"{}\"", world.version)) {
            return Resp::json(412, "{}");
        }
        let body = request.json();
        world.version += 1;
        world
            .attributes
            .extend(body["attributes"].as_object().unwrap().clone());
        world.applied.push(body["attributes"].to_string());
        Resp::reset()
    });
    let client = builder(&server.url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let events = client.subscribe(8);
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    assert_eq!((receipt.attempts, receipt.requests), (2, 4));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    let world = world.lock().unwrap();
    assert_eq!(world.version, 7);
    assert_eq!(world.applied, [r#"{"score":85,"tier":"premium"}"#]);
    let event = events.try_recv().unwrap();
    assert_eq!(event.version.as_deref(), Some("7"));
    assert!(events.try_recv().is_none());
}
