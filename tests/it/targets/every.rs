//! What holds for each target: reading, sizes, options, identifiers.

use super::*;

/// A fresh world, an update without values, and the path of its reads, for each kind of target.
fn each_target() -> [(Sandbox, Update, &'static str); 4] {
    [
        (sandbox(), Update::conversation("c-1"), "GET ~ 200"),
        (sandbox(), customer(), "GET ~ 200"),
        (
            with_secure(),
            Update::secure("c-1"),
            "GET ~/secureattributes 200",
        ),
        (with_record(), record(), "GET ~/customattributes/r-1 200"),
    ]
}

/// An update of `update`'s target whose whole body has exactly `bytes` bytes, `other` being what
/// the body holds besides the text.
fn of_size(update: Update, other: &Value, bytes: usize) -> Update {
    let rest = bytes - other.to_string().len();
    update.set("big", "x".repeat(rest))
}

#[test]
fn body_too_large_is_refused_before_sending() {
    let attributes = json!({"attributes": {"big": ""}});
    let merged = json!({"attributes": {"big": "", "kept": "k", "old": "1"}, "version": 7});
    let patch = json!({
        "id": "r-1", "divisions": ["d-1", "d-2"], "version": 7, "customAttributes": {"big": ""},
    });
    let put = json!({"id": "r-1", "schemaId": "s-1", "customAttributes": {"big": ""}});
    // The update, its body without the text, and the reads before it.
    for (name, update, other, reads) in [
        (
            "participant",
            Update::participant("c-1", "c-1-agent"),
            &attributes,
            0,
        ),
        ("purpose", customer(), &attributes, 1),
        ("unlocked", Update::secure("c-1").unlocked(), &attributes, 0),
        ("secure", Update::secure("c-1"), &merged, 1),
        ("custom", record(), &patch, 1),
        ("create", record().schema("s-1"), &put, 1),
    ] {
        let sandbox = || {
            let sandbox = if name == "create" {
                with(|_| {})
            } else {
                with_record()
            };
            change_in(&sandbox, |c| {
                c.secure = with_secure().world(|w| w.conversations["c-1"].secure.clone())
            });
            sandbox
        };
        let fits = sandbox();
        let receipt = client(&fits).update(&of_size(update.clone(), other, MAX_BYTES));
        assert_eq!(receipt.unwrap().requests, reads + 1, "{name}");
        assert_eq!(last_write(&fits).raw_body.len(), MAX_BYTES, "{name}");

        let over = sandbox();
        let client = client(&over);
        let result = client.update(&of_size(update.clone(), other, MAX_BYTES + 1));
        let error = assert_error(result, ErrorKind::PayloadTooLarge);
        assert_eq!((error.attempts(), error.requests()), (0, reads), "{name}");
        assert_eq!(error.http_status(), None);
        assert!(error.to_string().contains("512000"), "{error}");
        assert!(over.api_requests().iter().all(|one| one.method == "GET"));

        // What is too large by itself is not even read for.
        over.clear_requests();
        let alone = update.set("big", "x".repeat(MAX_BYTES));
        assert_eq!(
            alone.validate().unwrap_err().kind(),
            ErrorKind::PayloadTooLarge
        );
        assert_error(client.update(&alone), ErrorKind::PayloadTooLarge);
        assert!(over.api_requests().is_empty());
    }
}

#[test]
fn update_with_each_target_reads_computes_writes() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let target = update.target();
        let unchanged = client.update_with(target, |_| Ok(None)).unwrap();
        assert_eq!(unchanged.outcome, Outcome::Unchanged);
        assert_eq!((unchanged.attempts, unchanged.requests), (0, 1));
        assert_seen(&sandbox, [read]);

        let count = |times: &mut u32| {
            *times = 0;
            let add = |now: &genesys_attributes::Snapshot| {
                *times += 1;
                let n: u64 = match now.attributes.get("n") {
                    Some(Value::String(text)) => text.parse().unwrap(),
                    Some(number) => number.as_u64().unwrap(),
                    None => 0,
                };
                Ok(Some(Attributes::from_iter([(
                    "n".to_owned(),
                    (n + 1).into(),
                )])))
            };
            client.update_with(target, add)
        };
        let now = || {
            let attributes = client.read(target).unwrap().attributes;
            attributes["n"].to_string().trim_matches('"').to_owned()
        };
        let mut times = 0;
        for n in ["1", "2"] {
            let receipt = count(&mut times).unwrap();
            assert_eq!((receipt.outcome, receipt.requests), (Outcome::Applied, 2));
            assert_eq!((now().as_str(), times), (n, 1));
        }

        if target.kind() == TargetKind::Participant {
            // No lock: what is unclear is written again, with the values that were computed.
            script(&sandbox, [applied_then_503()]);
            assert_eq!(count(&mut times).unwrap().attempts, 2);
            assert_eq!((now().as_str(), times), ("3", 1));
        } else {
            // Somebody else is faster: computed again from the new value.
            script(&sandbox, [interfere("n", 10)]);
            assert_eq!(count(&mut times).unwrap().attempts, 2);
            assert_eq!((now().as_str(), times), ("11", 2));

            // The count that is in place may be somebody else's.
            script(&sandbox, [applied_then_503()]);
            let error = assert_error(count(&mut times), ErrorKind::Conflict);
            assert!(error.may_have_applied());
            assert_eq!((now().as_str(), times), ("12", 1));

            // But not what only this call can have written.
            script(&sandbox, [applied_then_503()]);
            let unique = UpdateOptions::new().unique();
            let receipt = client
                .update_with_options(target, unique, |_| Ok(Some(Edit::new().set("n", "12a"))))
                .unwrap();
            assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
            assert_eq!(now(), "12a");
            client
                .update_with_options(target, unique, |_| Ok(Some(Edit::new().set("n", "12"))))
                .unwrap();

            // Whether it counted is not known, so it is not counted twice.
            script(&sandbox, [applied_then_503(), interfere("n", 50)]);
            let error = assert_error(count(&mut times), ErrorKind::Conflict);
            assert!(error.may_have_applied());
            assert_eq!((now().as_str(), times), ("50", 1));
        }

        // What is computed is checked, and errors of the closure are passed on.
        sandbox.clear_requests();
        let empty = client.update_with(target, |_| Ok(Some(Attributes::new())));
        assert_eq!(
            violations(&assert_error(empty, ErrorKind::InvalidInput)),
            ["attributes: nothingToDo"]
        );
        let nameless = Attributes::from_iter([(String::new(), json!("v"))]);
        let bad = client.update_with(target, |_| Ok(Some(nameless.clone())));
        assert_eq!(
            violations(&assert_error(bad, ErrorKind::InvalidInput)),
            [": keyEmpty"]
        );
        let own = client.update_with(target, |_| Err(Error::new(ErrorKind::Internal, "own")));
        let own = assert_error(own, ErrorKind::Internal);
        assert_eq!((own.to_string().as_str(), own.requests()), ("own", 1));
        assert_seen(&sandbox, [read; 3]);
    }
}

#[test]
fn skip_unchanged_each_target_writes_nothing() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let events = client.subscribe(8);
        let update = update.set("a", "1").set("b", true).skip_unchanged();
        assert_eq!(client.update(&update).unwrap().outcome, Outcome::Applied);
        assert!(events.try_recv().is_some());
        sandbox.clear_requests();
        let receipt = client.update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::Unchanged);
        assert_eq!((receipt.attempts, receipt.requests), (0, 1));
        assert_eq!(receipt.version, receipt.previous_version);
        assert_seen(&sandbox, [read]);
        assert!(events.try_recv().is_none());
        // One that differs is enough, and keys are not the same in another case.
        for other in [
            update.clone().set("b", false),
            update.clone().set("A", "1"),
            update.clone().set("a", ""),
        ] {
            assert_eq!(client.update(&other).unwrap().outcome, Outcome::Applied);
            client.update(&update).unwrap();
        }
        // After a conflict the new values count.
        let wanted = update.set("a", "2").set("b", "2");
        if wanted.target().kind() != TargetKind::Participant {
            client.update(&wanted.clone().set("a", "1")).unwrap();
            script(&sandbox, [interfere("a", "2")]);
            let receipt = client.update(&wanted).unwrap();
            assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Unchanged, 1));
        }
    }
    let sandbox = with_secure();
    let open = Update::secure("c-1")
        .unlocked()
        .set("old", "1")
        .skip_unchanged();
    let receipt = client(&sandbox).update(&open).unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
    // Nothing is in place of a record that does not exist.
    let new = Update::custom("c-1", "r-9")
        .schema("s-1")
        .set("k", 1)
        .skip_unchanged();
    assert_eq!(
        client(&sandbox).update(&new).unwrap().outcome,
        Outcome::Applied
    );
}

#[test]
fn if_version_each_target_is_all_or_nothing() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let update = update.set("k", "v");
        let kind = update.target().kind();
        let current = match kind {
            TargetKind::Participant => {
                let error = assert_error(
                    client.update(&update.if_version("1")),
                    ErrorKind::InvalidInput,
                );
                assert_eq!(violations(&error), ["ifVersion: unsupported"]);
                assert!(sandbox.requests().is_empty());
                continue;
            }
            TargetKind::Conversation => "1",
            _ => "7",
        };
        for wrong in ["0", "6", "8", "07", "\"7\"", "x"] {
            let before = conversation_now(&sandbox);
            let error = assert_error(
                client.update(&update.clone().if_version(wrong)),
                ErrorKind::Conflict,
            );
            assert!(
                !error.is_transient() && !error.may_have_applied(),
                "{error}"
            );
            assert_eq!(conversation_now(&sandbox), before);
            if kind != TargetKind::Conversation {
                // Seen by the read that is made anyway.
                assert_eq!(error.attempts(), 0);
                assert_seen(&sandbox, [read]);
                assert!(error.to_string().contains('7'), "{error}");
            }
        }
        let receipt = client.update(&update.clone().if_version(current)).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!(receipt.previous_version.as_deref(), Some(current));

        // Somebody is faster between the read and the write: final, and nothing of ours is there.
        let now = client.read(update.target()).unwrap().version.unwrap();
        script(&sandbox, [interfere("theirs", 1)]);
        let late = update.clone().if_version(now).set("late", "l");
        let error = assert_error(client.update(&late), ErrorKind::Conflict);
        // At once: without another look.
        let reads = u32::from(kind != TargetKind::Conversation);
        assert_eq!((error.attempts(), error.requests()), (1, reads + 1));
        assert!(!error.is_transient() && !error.may_have_applied());
        let now = client.read(update.target()).unwrap();
        assert!(!now.attributes.contains_key("late") && now.attributes.contains_key("theirs"));
    }
    // There is no version to be at.
    let sandbox = sandbox();
    for update in [Update::secure("c-1"), record().schema("s-1")] {
        let update = update.set("k", "v").if_version("1");
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (0, 1));
    }
    let open = Update::secure("c-1")
        .unlocked()
        .set("k", "v")
        .if_version("1");
    let error = assert_error(client(&sandbox).update(&open), ErrorKind::InvalidInput);
    assert_eq!(violations(&error), ["ifVersion: unsupported"]);
    for version in ["", "a b", "a\"b", "\u{e9}"] {
        let update = Update::secure("c-1").set("k", "v").if_version(version);
        let error = update.validate().unwrap_err();
        assert_eq!(violations(&error), ["ifVersion: version"]);
    }
}

#[test]
fn options_of_other_targets_are_violations() {
    let conversation = || Update::conversation("c-1").set("k", "v");
    let participant = || customer().set("k", "v");
    let secure = || Update::secure("c-1").set("k", "v");
    let custom = || record().set("k", "v");
    let sandbox = sandbox();
    let client = client(&sandbox);
    for (update, expected) in [
        (conversation().remove("x"), &["remove: unsupported"][..]),
        (participant().remove("x"), &["remove: unsupported"]),
        (custom().remove("x"), &["remove: unsupported"]),
        (secure().unlocked().remove("x"), &["remove: unsupported"]),
        (secure().remove("k"), &["k: setAndRemoved"]),
        (conversation().unlocked(), &["unlocked: unsupported"]),
        (participant().unlocked(), &["unlocked: unsupported"]),
        (custom().unlocked(), &["unlocked: unsupported"]),
        (conversation().schema("s"), &["schema: unsupported"]),
        (participant().schema("s"), &["schema: unsupported"]),
        (secure().schema("s"), &["schema: unsupported"]),
        (custom().schema(""), &["schema: identifier"]),
        (custom().schema("a b"), &["schema: identifier"]),
        (participant().if_version("1"), &["ifVersion: unsupported"]),
        (
            secure().unlocked().if_version("1"),
            &["ifVersion: unsupported"],
        ),
        (Update::secure("c-1"), &["attributes: nothingToDo"]),
        (record(), &["attributes: nothingToDo"]),
        (customer(), &["attributes: nothingToDo"]),
        (
            Update::custom("c-1", "a/b").set("k", 1),
            &["record: identifier"],
        ),
        (
            Update::participant("c-1", "").set("k", 1),
            &["participant: identifier"],
        ),
        (
            Update::participant("c-1", "purpose:").set("k", 1),
            &["participant: identifier"],
        ),
        (
            Update::participant("c-1", "purpose:a b").set("k", 1),
            &["participant: identifier"],
        ),
        // All at once.
        (
            Update::participant("a?b", "c d")
                .unlocked()
                .schema("s")
                .remove("k")
                .if_version("1"),
            &[
                "conversationId: identifier",
                "participant: identifier",
                "unlocked: unsupported",
                "schema: unsupported",
                "remove: unsupported",
                "ifVersion: unsupported",
            ],
        ),
    ] {
        let error = assert_error(client.update(&update), ErrorKind::InvalidInput);
        assert_eq!(violations(&error), expected, "{error}");
        assert_eq!(error.requests(), 0);
        assert_eq!(violations(&update.validate().unwrap_err()), expected);
    }
    assert!(sandbox.requests().is_empty());
    assert_eq!(client.metrics().validation_errors, 23);
}

#[test]
fn identifiers_odd_are_percent_encoded_in_each_path() {
    let id = "c:1%2F\u{e9}+&=;@!~._-";
    let path = "/api/v2/conversations/c%3A1%252F%C3%A9%2B%26%3D%3B%40%21~._-";
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        let conversation = world.add(id);
        conversation
            .participants
            .push(participant("p:%\u{e9}", "ivr", false));
        let record = Record {
            version: 1,
            ..Record::default()
        };
        conversation.custom.insert("r:%\u{e9}".into(), record);
    });
    let client = client(&sandbox);
    for (update, expected) in [
        (
            Update::conversation(id),
            ["GET ~ 200", "PATCH ~/attributes 200"],
        ),
        (
            Update::participant(id, "purpose:ivr"),
            [
                "GET ~ 200",
                "PATCH ~/participants/p%3A%25%C3%A9/attributes 202",
            ],
        ),
        (
            Update::secure(id),
            ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
        ),
        (
            Update::custom(id, "r:%\u{e9}"),
            [
                "GET ~/customattributes/r%3A%25%C3%A9 200",
                "PATCH ~/customattributes 200",
            ],
        ),
    ] {
        let receipt = client.update(&update.set("k", "v")).unwrap();
        assert_eq!(receipt.conversation_id, id);
        let seen = seen(&sandbox);
        let short: Vec<String> = seen.iter().map(|line| line.replace(path, "~")).collect();
        assert_eq!(short, expected);
    }
    // The record's id travels in the body as it is.
    client
        .update(&Update::custom(id, "r:%\u{e9}").set("k", 1))
        .unwrap();
    assert_eq!(last_write(&sandbox).body["id"], "r:%\u{e9}");
}

#[test]
fn conversation_target_beside_others_is_written() {
    // One conversation, all its stores, one client: what is remembered of one is not of another.
    let sandbox = with_record();
    sandbox.world(|world| world.version_style = VersionStyle::Number);
    let client = client(&sandbox);
    for requests in [2, 1] {
        let receipt = client
            .update(&Update::conversation("c-1").set("k", 1))
            .unwrap();
        assert_eq!(receipt.requests, requests);
        assert!(receipt.version.is_some() && receipt.resource_id.is_none());
        assert_eq!(
            client.update(&customer().set("k", 1)).unwrap().requests,
            requests
        );
        assert_eq!(
            client
                .update(&Update::secure("c-1").set("k", 1))
                .unwrap()
                .requests,
            2
        );
        assert_eq!(client.update(&record().set("k", 1)).unwrap().requests, 2);
    }
    let tags: Vec<Option<String>> = sandbox
        .api_requests()
        .into_iter()
        .filter(|one| one.path == format!("{C}/attributes"))
        .map(|one| one.if_match)
        .collect();
    assert_eq!(tags, [Some("\"1\"".to_owned()), Some("\"2\"".to_owned())]);
    let now = conversation_now(&sandbox);
    assert_eq!((now.version, record_now(&sandbox).version), (3, 9));
    assert_eq!(now.secure.unwrap().version, 2);
}
