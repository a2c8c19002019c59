//! Writes of unknown outcome on targets with a lock.

use super::*;

#[test]
fn locked_target_ambiguous_write_in_place_is_already_applied() {
    for (sandbox, update, read, write, conflict) in [
        (
            with_secure(),
            Update::secure("c-1").set("k", "v").remove("old"),
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes",
            409,
        ),
        (
            with_record(),
            record().set("k", json!({"n": 85.0})),
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes",
            409,
        ),
        (
            with_record(),
            record().set("k", json!({"n": 85.0})),
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes",
            400,
        ),
    ] {
        sandbox.world(|world| world.custom_conflict_as_400 = conflict == 400);
        script(&sandbox, [applied_then_503()]);
        let before = conversation_now(&sandbox);
        let client = client(&sandbox);
        let events = client.subscribe(2);
        let receipt = client.update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        let write = |status| format!("{write} {status}");
        assert_seen(&sandbox, [read, &write(503), &write(conflict), read]);
        let now = conversation_now(&sandbox);
        let version = |c: &Conversation| {
            let record = c.custom.get("r-1").map(|r| r.version);
            record.or(c.secure.as_ref().map(|s| s.version))
        };
        assert_eq!(
            version(&now),
            Some(version(&before).unwrap_or(0) + 1),
            "written once"
        );
        // What it was before the write, and what it is now.
        let text = |version: Option<u64>| version.map(|v| v.to_string());
        assert_eq!(receipt.version, text(version(&now)));
        assert_eq!(receipt.previous_version, text(version(&before)));
        let event = events.try_recv().expect("one event");
        assert_eq!(event.audit().status, Status::AlreadyApplied);
        assert_eq!(event.previous_version, text(version(&before)));
        assert!(events.try_recv().is_none());
        assert_eq!(client.metrics().already_applied, 1);
    }
}

/// Somebody else may have written the same on top of the version that was demanded.
#[test]
fn locked_target_ambiguous_write_under_if_version_ends_as_conflict_with_may() {
    for (sandbox, update, read, write) in [
        (
            with_record(),
            record().set("k", 1).if_version("7"),
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes",
        ),
        (
            with_secure(),
            Update::secure("c-1").set("k", "v").if_version("7"),
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes",
        ),
    ] {
        script(&sandbox, [applied_then_503()]);
        let client = client(&sandbox);
        let events = client.subscribe(2);
        let error = client.update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.may_have_applied() && !error.is_transient());
        assert_eq!((error.attempts(), error.requests()), (2, 3));
        let write = |status| format!("{write} {status}");
        assert_seen(&sandbox, [read, &write(503), &write(409)]);
        assert!(events.try_recv().is_none(), "an event for an error");
    }
}

#[test]
fn locked_target_ambiguous_write_not_in_place_is_rewritten() {
    for (sandbox, update) in [
        (with_secure(), Update::secure("c-1")),
        (with_record(), record()),
    ] {
        // Not applied, and somebody else was faster with the same key.
        script(
            &sandbox,
            [Fault::on_write(status(503)), interfere("k", "theirs")],
        );
        let receipt = client(&sandbox)
            .update(&update.clone().set("k", "ours"))
            .unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
        assert_eq!(receipt.previous_version.as_deref(), Some("8"));

        // Not applied at all: the same version still holds.
        script(&sandbox, [Fault::on_write(status(503))]);
        let receipt = client(&sandbox)
            .update(&update.clone().set("k", "more"))
            .unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 2));

        // A version that was given is gone for good; whether ours was written in between is not
        // known.
        let now = client(&sandbox).read(update.target()).unwrap();
        let given = update
            .clone()
            .if_version(now.version.unwrap())
            .set("k", "given");
        script(&sandbox, [applied_then_503(), interfere("k", "theirs")]);
        let error = assert_error(client(&sandbox).update(&given), ErrorKind::Conflict);
        assert!(error.may_have_applied(), "{error}");

        // The last attempt that is allowed, and still no answer.
        script(&sandbox, [503; 4].map(|s| Fault::on_write(status(s))));
        let error = assert_error(
            client(&sandbox).update(&update.set("k", "x")),
            ErrorKind::Server,
        );
        assert!(error.may_have_applied() && error.attempts() == 4);
    }
}

#[test]
fn locked_target_ambiguous_write_is_looked_up_without_conflicts_left() {
    for (sandbox, update) in [
        (with_secure(), Update::secure("c-1")),
        (with_record(), record()),
    ] {
        let client = patient(&sandbox, 0);
        script(&sandbox, [applied_then_503()]);
        let receipt = client.update(&update.clone().set("k", "v")).unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        script(&sandbox, [applied_then_503(), interfere("k", "theirs")]);
        let error = assert_error(client.update(&update.set("k", "w")), ErrorKind::Conflict);
        assert!(error.may_have_applied());
    }
}

/// There is no version yet, so a second PUT would replace what somebody wrote after the first.
#[test]
fn locked_target_ambiguous_first_write_is_looked_up_before_resend() {
    let theirs = Fault::on_read(Action::Interfere {
        key: "theirs".into(),
        value: "t".into(),
    });
    let get = ["GET ~/customattributes/r-1", "GET ~/secureattributes"];
    let put = ["PUT ~/customattributes", "PUT ~/secureattributes"];
    for (at, update, absent, accepted) in [
        (0, record().schema("s-1"), 404, 200),
        (1, Update::secure("c-1"), 200, 202),
    ] {
        let update = update.set("ours", "u");
        let first_read = || match at {
            0 => Fault::on_read(status(404)),
            _ => Fault::on_read(raw(200, json!({"attributes": {}}))),
        };
        let line = |what: [&str; 2], status: u16| format!("{} {status}", what[at]);
        let short = |sandbox: &Sandbox| -> Vec<String> {
            let seen = seen(sandbox);
            seen.iter().map(|line| line.replace(C, "~")).collect()
        };
        // Applied, and then amended by somebody else, who was told so.
        let both = sandbox();
        script(&both, [first_read(), applied_then_503(), theirs.clone()]);
        let receipt = client(&both).update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(receipt.previous_version, None);
        assert_eq!(receipt.version.as_deref(), Some("2"));
        assert_eq!(
            short(&both),
            [line(get, absent), line(put, 503), line(get, 200)]
        );
        let now = client(&both).read(update.target()).unwrap();
        assert_eq!(
            Value::Object(now.attributes),
            json!({"ours": "u", "theirs": "t"})
        );

        // Not applied, and created by somebody else in the meantime.
        let other = sandbox();
        let unclear = Fault::on_write(status(503));
        script(&other, [first_read(), unclear.clone(), theirs.clone()]);
        let receipt = client(&other).update(&update).unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 2));
        assert_eq!(receipt.previous_version.as_deref(), Some("1"));
        let now = client(&other).read(update.target()).unwrap();
        assert_eq!(
            Value::Object(now.attributes),
            json!({"ours": "u", "theirs": "t"})
        );

        // Not applied.
        let lost = sandbox();
        script(&lost, [unclear.clone(), unclear.clone()]);
        let receipt = client(&lost).update(&update).unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
        let [absent, unclear_put] = [line(get, absent), line(put, 503)];
        assert_eq!(
            short(&lost),
            [
                &absent,
                &unclear_put,
                &absent,
                &unclear_put,
                &absent,
                &line(put, accepted)
            ]
            .map(String::as_str)
        );

        // Never: bounded as any other write.
        let never = sandbox();
        script(&never, [503; 9].map(|s| Fault::on_write(status(s))));
        let error = assert_error(client(&never).update(&update), ErrorKind::Server);
        assert!(error.may_have_applied() && error.attempts() == 4);

        // Values that were computed are not computed twice.
        let counted = sandbox();
        let count = |times: &mut u32| {
            client(&counted).update_with(update.target(), |now| {
                *times += 1;
                assert!(now.attributes.is_empty());
                Ok(Some(update.attributes().clone()))
            })
        };
        let mut times = 0;
        script(&counted, [first_read(), unclear.clone(), theirs.clone()]);
        let error = assert_error(count(&mut times), ErrorKind::Conflict);
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), error.requests(), times), (1, 3, 1));
        let empty = |sandbox: &Sandbox| {
            change_in(sandbox, |c| (c.secure, c.custom) = Default::default());
        };
        // While there is nothing, what was computed from nothing holds.
        empty(&counted);
        script(&counted, [unclear.clone()]);
        assert_eq!(count(&mut times).unwrap().outcome, Outcome::Applied);
        // In place it proves nothing: somebody else may have computed the same.
        empty(&counted);
        script(&counted, [applied_then_503()]);
        let error = assert_error(count(&mut times), ErrorKind::Conflict);
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), error.requests(), times), (1, 3, 3));
        // But what only this call can have written does.
        empty(&counted);
        script(&counted, [applied_then_503()]);
        let unique = UpdateOptions::new().unique();
        let receipt = client(&counted)
            .update_with_options(update.target(), unique, |_| {
                Ok(Some(update.attributes().clone().into()))
            })
            .unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!(receipt.attempts, 1);
    }
}
