//! Participants: who is meant, and what is remembered of that.

use super::*;

#[test]
fn participant_customer_is_resolved_once_and_cached_others_are_read() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let receipt = client
        .update(&customer().set("crmId", "987").set("tier", "gold"))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Participant);
    assert_eq!(receipt.resource_id.as_deref(), Some("c-1-customer"));
    assert_eq!((receipt.version, receipt.previous_version), (None, None));
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_body(
        &sandbox,
        json!({"attributes": {"crmId": "987", "tier": "gold"}}),
    );
    assert_seen(
        &sandbox,
        [
            "GET ~ 200",
            "PATCH ~/participants/c-1-customer/attributes 202",
        ],
    );

    let warm = client.update(&customer().set("tier", "silver")).unwrap();
    assert_eq!((warm.attempts, warm.requests), (1, 1));
    assert_eq!(warm.resource_id.as_deref(), Some("c-1-customer"));
    // Only what is set is sent; the platform keeps the rest.
    assert_body(&sandbox, json!({"attributes": {"tier": "silver"}}));
    assert_seen(
        &sandbox,
        ["PATCH ~/participants/c-1-customer/attributes 202"],
    );

    // Each way to say who is resolved by itself, and each conversation; who may be replaced is
    // read each time.
    let agent = Update::participant("c-1", "purpose:agent").set("k", "v");
    let exact = Update::participant("c-1", "purpose:customer").set("k", "v");
    sandbox.world(|world| {
        world.add("c-2");
    });
    let other = Update::participant("c-2", "customer").set("k", "v");
    for (update, item, warm) in [
        (&agent, "c-1-agent", 2),
        (&exact, "c-1-customer", 1),
        (&other, "c-2-customer", 1),
    ] {
        for requests in [2, warm] {
            let receipt = client.update(update).unwrap();
            assert_eq!(receipt.resource_id.as_deref(), Some(item));
            assert_eq!(receipt.requests, requests, "{item}");
        }
    }
    let now = conversation_now(&sandbox);
    assert_eq!(now.participants[0].attributes.len(), 1);
    assert_eq!(
        json!(now.participants[1].attributes),
        json!({"crmId": "987", "tier": "silver", "k": "v"})
    );
}

#[test]
fn participant_by_id_costs_one_request() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    for _ in 0..2 {
        let receipt = client
            .update(&Update::participant("c-1", "c-1-agent").set("k", "v"))
            .unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        assert_eq!(receipt.resource_id.as_deref(), Some("c-1-agent"));
        assert_seen(&sandbox, ["PATCH ~/participants/c-1-agent/attributes 202"]);
    }
    // An id of nobody: final, and one read tells who is there.
    let unknown = Update::participant("c-1", "nobody-1").set("k", "v");
    let error = assert_error(client.update(&unknown), ErrorKind::NotFound);
    assert_eq!((error.http_status(), error.requests()), (Some(404), 2));
    assert!(!error.may_have_applied() && !error.is_transient());
    assert!(error.to_string().contains("agent c-1-agent"), "{error}");
    assert_seen(
        &sandbox,
        ["PATCH ~/participants/nobody-1/attributes 404", "GET ~ 200"],
    );
    let elsewhere = Update::participant("c-9", "nobody-1").set("k", "v");
    let error = assert_error(client.update(&elsewhere), ErrorKind::NotFound);
    let missing = "the conversation itself does not exist";
    assert!(error.to_string().contains(missing), "{error}");
    sandbox.requests();
    // A word is no id: nothing is sent.
    for word in ["Customer", "custmer", "nobody"] {
        let update = Update::participant("c-1", word).set("k", "v");
        let error = assert_error(client.update(&update), ErrorKind::InvalidInput);
        assert_eq!(
            (error.violations()[0].rule, error.requests()),
            (Rule::UnknownPurpose, 0)
        );
    }
}

#[test]
fn participant_selector_table() {
    let (live, gone) = (false, true);
    // Participants (id, purpose, ended) in the platform's order; who; the id that is meant.
    for (participants, who, meant) in [
        (
            &[("a", "agent", live), ("c", "customer", live)][..],
            "customer",
            Ok("c"),
        ),
        (
            &[
                ("u", "user", live),
                ("e", "external", live),
                ("c", "customer", live),
            ],
            "customer",
            Ok("c"),
        ),
        (
            &[("u", "user", live), ("e", "external", live)],
            "customer",
            Ok("e"),
        ),
        (
            &[("a", "agent", live), ("u", "user", live)],
            "customer",
            Ok("u"),
        ),
        // Exactly that purpose.
        (
            &[
                ("u", "user", live),
                ("e", "external", live),
                ("c", "customer", live),
            ],
            "purpose:external",
            Ok("e"),
        ),
        (&[("e", "external", live)], "purpose:customer", Err(vec![])),
        (&[("e", "external", live)], "purpose:External", Err(vec![])),
        (&[("x", "campaign", live)], "purpose:campaign", Ok("x")),
        // Active before ended, wherever they stand.
        (
            &[("c1", "customer", gone), ("c2", "customer", live)],
            "customer",
            Ok("c2"),
        ),
        (
            &[("c1", "customer", live), ("c2", "customer", gone)],
            "customer",
            Ok("c1"),
        ),
        (
            &[
                ("a1", "agent", gone),
                ("a2", "agent", live),
                ("a3", "agent", gone),
            ],
            "purpose:agent",
            Ok("a2"),
        ),
        (&[("c1", "customer", gone)], "customer", Ok("c1")),
        // Several remain.
        (
            &[
                ("c1", "customer", live),
                ("c2", "customer", live),
                ("c3", "customer", gone),
            ],
            "customer",
            Err(vec!["c1", "c2"]),
        ),
        (
            &[("c1", "customer", gone), ("c2", "customer", gone)],
            "customer",
            Err(vec!["c1", "c2"]),
        ),
        (
            &[("a1", "agent", live), ("a2", "agent", live)],
            "purpose:agent",
            Err(vec!["a1", "a2"]),
        ),
        // None.
        (
            &[("a", "agent", live), ("i", "ivr", live)],
            "customer",
            Err(vec![]),
        ),
        (&[], "customer", Err(vec![])),
    ] {
        let sandbox = with(|c| {
            c.participants = participants
                .iter()
                .map(|(id, purpose, ended)| participant(id, purpose, *ended))
                .collect();
        });
        let client = client(&sandbox);
        let update = Update::participant("c-1", who).set("k", "v");
        let result = client.update(&update);
        let lines = seen(&sandbox);
        match meant {
            Ok(id) => {
                assert_eq!(
                    result.unwrap().resource_id.as_deref(),
                    Some(id),
                    "{participants:?}"
                );
                assert_eq!(lines.len(), 2);
                assert_eq!(
                    lines[1],
                    format!("PATCH {C}/participants/{id}/attributes 202"),
                    "{participants:?} {who}"
                );
                assert_eq!(
                    client.read(update.target()).unwrap().resource_id.as_deref(),
                    Some(id)
                );
            }
            Err(several) => {
                let error = result.unwrap_err();
                assert_eq!(lines, [format!("GET {C} 200")], "{participants:?}");
                let text = error.to_string();
                if several.is_empty() {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                    for (_, purpose, _) in participants {
                        assert!(text.contains(purpose), "{text}");
                    }
                } else {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                    let ids = text.rsplit(": ").next().unwrap();
                    assert_eq!(ids.split(", ").collect::<Vec<_>>(), several, "{text}");
                }
                assert!(!error.is_transient() && error.attempts() == 0);
                assert_eq!(
                    client.read(update.target()).unwrap_err().kind(),
                    error.kind()
                );
            }
        }
    }
}

#[test]
fn participant_without_id_or_purpose_is_no_candidate() {
    let sandbox = sandbox();
    let read = json!({"id": "c-1", "participants": [
        {"purpose": "customer"},
        {"id": "x"},
        {"id": "y", "purpose": null},
        {"id": "c-1-customer", "purpose": "customer", "endTime": null, "attributes": null},
    ]});
    script(&sandbox, [Fault::on_read(raw(200, read))]);
    let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
    assert_eq!(receipt.resource_id.as_deref(), Some("c-1-customer"));
}

#[test]
fn participant_write_any_2xx_is_applied() {
    let answered = json!({"attributes": {"k": "v", "other": "o"}});
    for (status, body, response) in [
        (202, Value::Null, None),
        (202, answered.clone(), Some(answered.clone())),
        (202, json!({}), Some(json!({}))),
        (200, answered.clone(), Some(answered)),
        (200, Value::Null, None),
    ] {
        let sandbox = sandbox();
        let action = Action::ApplyThenStatus { status, body };
        script(&sandbox, [Fault::on_write(action)]);
        let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.response()), (1, response));
        assert!(receipt.correlation_id.is_some());
    }
    // A body that is not JSON changes nothing either.
    let sandbox = sandbox();
    script(&sandbox, [Fault::on_write(raw(202, "Accepted"))]);
    let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
    assert_eq!((receipt.attempts, receipt.response()), (1, None));
}

#[test]
fn participant_cached_and_gone_is_resolved_again_once() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    client.update(&customer().set("k", "1")).unwrap();
    sandbox.clear_requests();

    change_in(&sandbox, |c| c.participants[1].id = "new".into());
    let receipt = client.update(&customer().set("k", "2")).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.resource_id.as_deref(), Some("new"));
    assert_eq!((receipt.attempts, receipt.requests), (2, 3));
    assert_seen(
        &sandbox,
        [
            "PATCH ~/participants/c-1-customer/attributes 404",
            "GET ~ 200",
            "PATCH ~/participants/new/attributes 202",
        ],
    );
    client.update(&customer().set("k", "3")).unwrap();
    assert_seen(&sandbox, ["PATCH ~/participants/new/attributes 202"]);

    // Gone, and nobody in its place.
    change_in(&sandbox, |c| {
        c.participants.pop();
    });
    let error = assert_error(
        client.update(&customer().set("k", "4")),
        ErrorKind::NotFound,
    );
    assert!(error.to_string().contains("agent"), "{error}");
    assert_seen(
        &sandbox,
        ["PATCH ~/participants/new/attributes 404", "GET ~ 200"],
    );
    // It is forgotten: the next looks again.
    change_in(&sandbox, |c| {
        c.participants.push(participant("third", "customer", false));
    });
    client.update(&customer().set("k", "5")).unwrap();
    assert_seen(
        &sandbox,
        ["GET ~ 200", "PATCH ~/participants/third/attributes 202"],
    );
}

#[test]
fn participant_found_and_refused_is_not_resolved_forever() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    client.update(&customer().set("k", "1")).unwrap();
    sandbox.clear_requests();
    script(&sandbox, [404, 404].map(|s| Fault::on_write(status(s))));
    assert_error(
        client.update(&customer().set("k", "2")),
        ErrorKind::NotFound,
    );
    assert_seen(
        &sandbox,
        [
            "PATCH ~/participants/c-1-customer/attributes 404",
            "GET ~ 200",
            "PATCH ~/participants/c-1-customer/attributes 404",
        ],
    );
    // Found by a read just now: a 404 is final at once.
    script(&sandbox, [Fault::on_write(status(404))]);
    assert_error(
        client.update(&customer().set("k", "3")),
        ErrorKind::NotFound,
    );
    assert_seen(
        &sandbox,
        [
            "GET ~ 200",
            "PATCH ~/participants/c-1-customer/attributes 404",
        ],
    );
}

#[test]
fn participant_agent_after_transfer_is_the_new_one() {
    for who in ["agent", "purpose:agent"] {
        let sandbox = sandbox();
        let client = client(&sandbox);
        let update = Update::participant("c-1", who).set("k", "v");
        client.update(&update).unwrap();
        sandbox.clear_requests();
        change_in(&sandbox, |c| {
            c.participants[0].end_time = Some(END.into());
            c.participants.push(participant("second", "agent", false));
        });
        // The platform would take a write to the one who left.
        let receipt = client.update(&update).unwrap();
        assert_eq!(receipt.resource_id.as_deref(), Some("second"), "{who}");
        assert_seen(
            &sandbox,
            ["GET ~ 200", "PATCH ~/participants/second/attributes 202"],
        );
    }
}

#[test]
fn participant_user_taken_for_customer_is_not_cached() {
    let sandbox = with(|c| c.participants = vec![participant("u", "user", false)]);
    let client = client(&sandbox);
    client.update(&customer().set("k", "1")).unwrap();
    change_in(&sandbox, |c| {
        c.participants.push(participant("c", "customer", false));
    });
    let receipt = client.update(&customer().set("k", "2")).unwrap();
    assert_eq!(receipt.resource_id.as_deref(), Some("c"));
}

#[test]
fn participant_cached_is_read_again_after_five_minutes() {
    for who in ["customer", "purpose:customer", "external"] {
        let sandbox = sandbox();
        if who == "external" {
            change_in(&sandbox, |c| c.participants[1].purpose = "external".into());
        }
        let clock = ManualClock::new();
        let client = builder(&sandbox).clock(clock.clone()).build().unwrap();
        let update = Update::participant("c-1", who).set("k", "v");
        let requests = || client.update(&update).unwrap().requests;
        assert_eq!(requests(), 2);
        // Uses do not make it younger.
        clock.advance(Duration::from_secs(200));
        assert_eq!(requests(), 1);
        clock.advance(Duration::from_millis(99_999));
        assert_eq!(requests(), 1);
        clock.advance(Duration::from_millis(1));
        assert_eq!(requests(), 2, "{who}");
        clock.advance(Duration::from_millis(299_999));
        assert_eq!(requests(), 1);
    }
}

#[test]
fn participant_cached_and_refused_as_gone_is_read_again() {
    for gone in [404, 409, 410] {
        let sandbox = sandbox();
        let records = Arc::new(Mutex::new(Vec::new()));
        let kept = records.clone();
        let keep = move |record: &genesys_attributes::audit::AuditRecord| {
            let of = record.resource_id.as_deref().map(str::to_owned);
            kept.lock().unwrap().push((record.status, of));
            Ok(())
        };
        let client = builder(&sandbox).audit(keep).build().unwrap();
        client.update(&customer().set("k", "1")).unwrap();
        records.lock().unwrap().clear();
        sandbox.clear_requests();
        change_in(&sandbox, |c| c.participants[1].id = "new".into());
        script(&sandbox, [Fault::on_write(status(gone))]);
        let receipt = client.update(&customer().set("k", "2")).unwrap();
        assert_eq!(receipt.resource_id.as_deref(), Some("new"), "{gone}");
        assert_eq!((receipt.attempts, receipt.requests), (2, 3));
        let refused = format!("PATCH ~/participants/c-1-customer/attributes {gone}");
        assert_seen(
            &sandbox,
            [
                &refused,
                "GET ~ 200",
                "PATCH ~/participants/new/attributes 202",
            ],
        );
        // Each participant that is written to has an intent before.
        let intent = |id: &str| (Status::Pending, Some(id.to_owned()));
        let outcome = (Status::Applied, Some("new".to_owned()));
        assert_eq!(
            *records.lock().unwrap(),
            [intent("c-1-customer"), intent("new"), outcome]
        );
    }
}
