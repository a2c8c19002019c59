//! Secure attributes, and what all targets with a version in the body have in common.

use super::*;

#[test]
fn secure_locked_write_merges_and_puts_with_version() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let receipt = client
        .update(&Update::secure("c-1").set("iban", "IE1").set("old", 2))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Secure);
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    // The platform does not tell it, and it is not guessed.
    assert_eq!((receipt.version, receipt.resource_id), (None, None));
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_body(
        &sandbox,
        json!({"attributes": {"iban": "IE1", "kept": "k", "old": "2"}, "version": 7}),
    );
    assert_seen(
        &sandbox,
        ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
    );
    // The whole map is needed each time.
    client.update(&Update::secure("c-1").set("x", "y")).unwrap();
    assert_body(
        &sandbox,
        json!({"attributes": {"iban": "IE1", "kept": "k", "old": "2", "x": "y"}, "version": 8}),
    );
    assert_seen(
        &sandbox,
        ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
    );
}

#[test]
fn secure_first_write_needs_no_version() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let first = client.update(&Update::secure("c-1").set("a", "1")).unwrap();
    assert_eq!(first.previous_version, None);
    assert_body(&sandbox, json!({"attributes": {"a": "1"}}));
    client.update(&Update::secure("c-1").set("b", "2")).unwrap();
    assert_body(
        &sandbox,
        json!({"attributes": {"a": "1", "b": "2"}, "version": 1}),
    );
    assert_eq!(secure_now(&sandbox), secure(2, &[("a", "1"), ("b", "2")]));
}

#[test]
fn secure_empty_map_spellings_are_accepted() {
    for (read, version) in [
        (json!({}), None),
        (json!({"attributes": {}}), None),
        (json!({"attributes": {}, "version": null}), None),
        (json!({"attributes": null}), None),
        (json!({"attributes": null, "version": 0}), Some(0)),
        (json!({"attributes": {}, "version": 0}), Some(0)),
        (json!({"version": 4}), Some(4)),
        (
            json!({"attributes": {}, "version": u64::MAX}),
            Some(u64::MAX),
        ),
        // The schema says integer, whatever the answer's type.
        (json!({"attributes": {}, "version": "4"}), Some(4)),
    ] {
        let sandbox = sandbox();
        script(
            &sandbox,
            [
                Fault::on_read(raw(200, &read)),
                Fault::on_write(raw(202, "")),
            ],
        );
        let result = client(&sandbox).update(&Update::secure("c-1").set("k", "v"));
        assert!(result.is_ok(), "{read}: {result:?}");
        let mut expected = json!({"attributes": {"k": "v"}});
        if let Some(version) = version {
            expected["version"] = json!(version);
        }
        assert_body(&sandbox, expected);
    }
}

#[test]
fn locked_target_read_without_lock_is_protocol_error() {
    for (update, read) in [
        (Update::secure("c-1"), json!({"attributes": {"a": "1"}})),
        (
            Update::secure("c-1"),
            json!({"attributes": ["a"], "version": 1}),
        ),
        (Update::secure("c-1"), json!([])),
        (record(), json!({"id": "r-1", "customAttributes": {}})),
        (
            record(),
            json!({"id": "r-1", "customAttributes": {"a": 1}, "version": null}),
        ),
        (record(), json!({"customAttributes": 5, "version": 1})),
        (record(), json!("text")),
    ] {
        let sandbox = with_record();
        script(&sandbox, [Fault::on_read(raw(200, &read))]);
        let update = update.set("k", "v");
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Protocol);
        assert_eq!(
            (error.attempts(), error.http_status()),
            (0, Some(200)),
            "{read}"
        );
        assert!(error.correlation_id().is_some());
        assert_eq!(sandbox.api_requests().len(), 1);
    }
}

/// Gateways add entity tags to whatever passes them. One is no version of these stores.
#[test]
fn secure_and_custom_entity_tag_is_no_version() {
    let server = Server::start(|req| match (req.method, req.path) {
        ("POST", _) => Resp::json(200, r#"{"access_token":"t","expires_in":86400}"#),
        ("GET", path) if path.ends_with("/secureattributes") => {
            Resp::json(200, r#"{"attributes":{}}"#).header("ETag", r#"W/"5d41""#)
        }
        ("GET", _) => {
            Resp::json(200, r#"{"id":"r-1","customAttributes":{}}"#).header("ETag", r#"W/"5d41""#)
        }
        ("PUT", _) => {
            assert_eq!(req.json(), json!({"attributes": {"k": "v"}}));
            Resp::empty(202)
        }
        _ => panic!("{req:?}"),
    });
    let client = at(server.url()).build().unwrap();
    assert_error(client.update(&record().set("k", "v")), ErrorKind::Protocol);
    let first = client.update(&Update::secure("c-1").set("k", "v")).unwrap();
    assert_eq!((first.previous_version, server.panics()), (None, 0));
}

#[test]
fn secure_conflict_is_read_and_merged_again() {
    let sandbox = with_secure();
    script(&sandbox, [interfere("theirs", "t"), interfere("old", "o")]);
    let client = client(&sandbox);
    let receipt = client
        .update(&Update::secure("c-1").set("ours", "u").remove("kept"))
        .unwrap();
    assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
    assert_eq!(receipt.previous_version.as_deref(), Some("9"));
    assert_body(
        &sandbox,
        json!({"attributes": {"old": "o", "ours": "u", "theirs": "t"}, "version": 9}),
    );
    assert_seen(
        &sandbox,
        [
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 409",
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 409",
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 202",
        ],
    );
    assert_eq!(client.metrics().conflicts, 2);
}

/// A key that somebody removed in the meantime must not come back with our write.
#[test]
fn secure_conflict_keeps_removals_of_others() {
    let sandbox = with_secure();
    let stale = json!({"attributes": {"gone": "g", "kept": "k", "old": "1"}, "version": 6});
    script(&sandbox, [Fault::on_read(raw(200, stale))]);
    client(&sandbox)
        .update(&Update::secure("c-1").set("ours", "u"))
        .unwrap();
    assert_eq!(
        secure_now(&sandbox),
        secure(8, &[("kept", "k"), ("old", "1"), ("ours", "u")])
    );
}

#[test]
fn secure_two_first_writers_both_apply() {
    let sandbox = sandbox();
    script(&sandbox, [interfere("theirs", "t")]);
    let receipt = client(&sandbox)
        .update(&Update::secure("c-1").set("ours", "u"))
        .unwrap();
    assert_eq!(receipt.previous_version.as_deref(), Some("1"));
    assert_eq!(
        secure_now(&sandbox),
        secure(2, &[("ours", "u"), ("theirs", "t")])
    );
}

#[test]
fn secure_and_custom_conflicts_are_bounded() {
    for (sandbox, update) in [
        (with_secure(), Update::secure("c-1")),
        (with_record(), record()),
    ] {
        let client = patient(&sandbox, 2);
        let events = client.subscribe(4);
        script(&sandbox, [1, 2, 3].map(|n| interfere("theirs", n)));
        let error = assert_error(client.update(&update.set("ours", "u")), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (3, 6));
        assert_eq!(error.http_status(), Some(409));
        assert!(error.is_transient() && !error.may_have_applied());
        assert!(
            !conversation_now(&sandbox)
                .custom
                .values()
                .any(|r| r.attributes.contains_key("ours"))
        );
        assert!(
            !conversation_now(&sandbox)
                .secure
                .is_some_and(|s| s.attributes.contains_key("ours"))
        );
        assert!(events.try_recv().is_none());
        let none = patient(&sandbox, 0);
        script(&sandbox, [interfere("theirs", 4)]);
        let error = assert_error(
            none.update(&Update::secure("c-1").set("k", "v")),
            ErrorKind::Conflict,
        );
        assert_eq!((error.attempts(), error.requests()), (1, 2));
    }
}

#[test]
fn secure_unlocked_write_is_one_patch_without_version() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let receipt = client
        .update(
            &Update::secure("c-1")
                .unlocked()
                .set("iban", "IE1")
                .set("n", 5),
        )
        .unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!((receipt.version, receipt.previous_version), (None, None));
    assert_body(&sandbox, json!({"attributes": {"iban": "IE1", "n": "5"}}));
    assert_seen(&sandbox, ["PATCH ~/secureattributes 202"]);
    assert_eq!(
        secure_now(&sandbox),
        secure(
            8,
            &[("iban", "IE1"), ("kept", "k"), ("n", "5"), ("old", "1")]
        )
    );
}

#[test]
fn secure_removal_puts_map_without_keys() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let events = client.subscribe(9);
    let update = Update::secure("c-1")
        .remove("old")
        .remove("never")
        .remove("old");
    let receipt = client.update(&update).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_body(&sandbox, json!({"attributes": {"kept": "k"}, "version": 7}));
    let event = events.try_recv().unwrap();
    assert_eq!(*event.removed_keys, ["old", "never"]);
    assert!(event.updated_keys().is_empty() && event.attributes.is_empty());

    // Together with setting; keys are case-sensitive.
    client
        .update(&Update::secure("c-1").set("new", "n").remove("KEPT"))
        .unwrap();
    assert_eq!(
        secure_now(&sandbox),
        secure(9, &[("kept", "k"), ("new", "n")])
    );

    // Down to nothing, which is still a map with a version.
    client
        .update(&Update::secure("c-1").remove("kept").remove("new"))
        .unwrap();
    assert_body(&sandbox, json!({"attributes": {}, "version": 9}));
    assert_eq!(secure_now(&sandbox), secure(10, &[]));

    let nothing = Update::secure("c-1").remove("kept").skip_unchanged();
    sandbox.clear_requests();
    assert_eq!(client.update(&nothing).unwrap().outcome, Outcome::Unchanged);
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
}

#[test]
fn secure_values_stay_out_of_events_audit_and_errors() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for asked_for in [false, true] {
        let sandbox = with(|c| c.secure = Some(secure(7, &[("theirs", "SECRET-theirs")])));
        let audit = Lines::default();
        let events: Arc<Mutex<Vec<UpdateEvent>>> = Arc::default();
        let kept = Arc::clone(&events);
        let client = builder(&sandbox)
            .audit(JsonLines::new(audit.clone()))
            .audit_values(true)
            .secure_values_in_events(asked_for)
            .on_update(move |event| kept.lock().unwrap().push(event.clone()))
            .build()
            .unwrap();
        let locked = Update::secure("c-1")
            .set("iban", "SECRET-1")
            .remove("theirs");
        let open = Update::secure("c-1").set("iban", "SECRET-2").unlocked();
        let receipts = [&locked, &open].map(|update| client.update(update).unwrap());
        script(&sandbox, [applied_then_503()]);
        let unclear = client
            .update(&Update::secure("c-1").set("iban", "SECRET-3"))
            .unwrap();
        assert_eq!(unclear.outcome, Outcome::AlreadyApplied);
        script(&sandbox, [503; 4].map(|s| Fault::on_write(status(s))));
        let errors = [
            client.update(&locked).unwrap_err(),
            client
                .update(&Update::secure("c-1").set("iban", json!(["SECRET-4"])))
                .unwrap_err(),
            client
                .update(&Update::secure("c-1").set("iban", "SECRET-5".repeat(70_000)))
                .unwrap_err(),
        ];

        let events = events.lock().unwrap();
        assert_eq!(events.len(), 3);
        for event in events.iter() {
            assert_eq!(event.updated_keys(), ["iban"]);
            // Asked for or not.
            let debug = format!("{event:?} {event:#?}");
            assert!(
                debug.contains("iban") && !debug.contains("SECRET"),
                "{debug}"
            );
            let told = [
                serde_json::to_string(event).unwrap(),
                event.webhook_payload().to_string(),
            ];
            for text in told {
                assert_eq!(text.contains("SECRET"), asked_for, "{text}");
                assert!(
                    !text.contains("theirs") || text.contains("removed"),
                    "{text}"
                );
            }
            assert_eq!(event.audit().attributes, None);
        }
        let audit = String::from_utf8(audit.0.lock().unwrap().clone()).unwrap();
        // An intent and an outcome for each that was begun, and one for each that was refused.
        assert_eq!(audit.lines().count(), 4 * 2 + 2);
        assert_eq!(audit.matches(r#""status":"refused""#).count(), 2);
        assert!(
            audit.contains("iban") && !audit.contains("SECRET"),
            "{audit}"
        );
        for error in errors {
            let told = format!(
                "{error} {error:?} {}",
                serde_json::to_string(&error).unwrap()
            );
            assert!(!told.contains("SECRET"), "{told}");
        }
        let receipts = serde_json::to_string(&receipts).unwrap();
        assert!(!receipts.contains("SECRET"), "{receipts}");
    }
}

#[test]
fn secure_merged_map_too_large_is_refused() {
    let big = "x".repeat(MAX_BYTES - 100);
    let sandbox = with(|c| c.secure = Some(secure(1, &[("big", &big)])));
    let client = client(&sandbox);
    let update = Update::secure("c-1").set("k", "y".repeat(200));
    let error = assert_error(client.update(&update), ErrorKind::PayloadTooLarge);
    assert!(!error.may_have_applied());
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
    // Removing makes room.
    client.update(&update.clone().remove("big")).unwrap();
    // Bytes count, not characters.
    let wide = Update::secure("c-1").set("k", "\u{20ac}".repeat(MAX_BYTES / 3));
    assert_error(client.update(&wide), ErrorKind::PayloadTooLarge);
}
