//! Reads of each target, and whose token it is.

use super::*;

#[test]
fn participants_are_told_with_one_request_and_in_one_line_each() {
    let sandbox = with(|c| c.participants[0].end_time = Some(END.into()));
    let client = client(&sandbox);
    let found = client.participants("c-1").unwrap();
    let lines = Vec::from_iter(found.iter().map(ToString::to_string));
    assert_eq!(
        lines,
        [
            "agent c-1-agent since 2026-01-01T00:00:00.000Z, left",
            "customer c-1-customer since 2026-01-01T00:00:00.000Z, active"
        ]
    );
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        json[1],
        json!({
            "id": "c-1-customer", "purpose": "customer", "active": true,
            "connectedTime": "2026-01-01T00:00:00.000Z",
        })
    );
    assert_eq!(json[0]["endTime"], END);
    assert_eq!(client.metrics().requests, 1);
    let absent = client.participants("absent").unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    assert_eq!(absent.http_status(), Some(404));
    let wrong = client.participants("a/b").unwrap_err();
    assert_eq!(wrong.violations()[0].key, "conversationId");
}

#[test]
fn every_call_of_a_client_with_bounds_keeps_them() {
    let sandbox = sandbox();
    sandbox.world(|world| world.script(Fault::on_api(Action::status(503)).always()));
    let clock = ManualClock::new();
    let plain = builder(&sandbox)
        .clock(clock.clone())
        .retry(RetryPolicy::default().with_max_attempts(40))
        .build()
        .unwrap();
    let target = Target::participant("c-1", "customer");
    let update = Update::new(target.clone()).set("k", "v");
    type Call<'c> = &'c dyn Fn(&Client) -> Option<Error>;
    let calls: [(&str, Call<'_>); 6] = [
        ("read", &|client| client.read(&target).err()),
        ("participants", &|client| client.participants("c-1").err()),
        ("preview", &|client| client.preview(&update).err()),
        ("verify_credentials", &|client| {
            client.verify_credentials().err()
        }),
        ("update", &|client| client.update(&update).err()),
        ("update_with", &|client| {
            client.update_with(&target, |_| Ok(None)).err()
        }),
    ];
    let bounded = plain.with_deadline(Duration::from_secs(3));
    let cancel = genesys_attributes::Cancel::new();
    cancel.cancel();
    let cancelled = plain.with_cancel(&cancel);
    for (name, call) in calls {
        let slept = |client: &Client| {
            let before = clock.sleeps().len();
            assert_eq!(call(client).unwrap().kind(), ErrorKind::Server, "{name}");
            clock.sleeps()[before..].iter().sum::<Duration>()
        };
        assert!(slept(&bounded) <= Duration::from_secs(3), "{name}");
        assert!(slept(&plain) > Duration::from_secs(30), "{name}");
        assert_eq!(
            call(&cancelled).unwrap().kind(),
            ErrorKind::Cancelled,
            "{name}"
        );
    }
}

#[test]
fn receipts_and_targets_are_shown_in_one_line() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let update = Update::participant("c-1", "customer").set("k", "v");
    assert_eq!(
        update.target().to_string(),
        "participant customer of conversation c-1"
    );
    let receipt = client.update(&update).unwrap();
    assert_eq!(
        receipt.to_string(),
        "applied: c-1 / c-1-customer, 1 write, 2 requests, 0 ms"
    );
    let receipt = client
        .update(&Update::conversation("c-1").set("k", 1))
        .unwrap();
    assert_eq!(
        receipt.to_string(),
        "applied: c-1, version 2 (was 1), 1 write, 2 requests, 0 ms"
    );
    let odd = Target::conversation("a\nb").to_string();
    assert!(!odd.contains('\n'), "{odd}");
}

#[test]
fn forbidden_names_permissions_of_its_own_store_or_none() {
    for (target, named, others) in [
        (Target::participant("c-1", "p-1"), None, "conversation:"),
        (
            Target::secure("c-1"),
            Some("conversation:participant:attributesedit"),
            "customAttributes",
        ),
        (
            Target::custom("c-1", "r-1"),
            Some("conversation:customAttributes"),
            "attributesedit",
        ),
        (
            Target::conversation("c-1"),
            Some("conversation:attributes:write"),
            "attributesedit",
        ),
    ] {
        let sandbox = sandbox();
        let refusal = raw(403, json!({ "code": "not.authorized", "message": "no" }));
        script(&sandbox, [Fault::on_api(refusal).always()]);
        let client = client(&sandbox);
        for error in [
            client
                .update(&Update::new(target.clone()).set("k", "v"))
                .unwrap_err(),
            client.read(&target).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Forbidden);
            let text = error.to_string().replace("conversation: ", "");
            assert!(named.is_none_or(|named| text.contains(named)), "{text}");
            assert!(!text.contains(others), "{text}");
        }
        // What the platform names is all that is told.
        let body = json!({ "code": "missing.any.permissions", "message": "[a:b:c]" });
        let listed = crate::targets::sandbox();
        script(&listed, [Fault::on_api(raw(403, body)).always()]);
        let error = crate::targets::client(&listed).read(&target).unwrap_err();
        assert_eq!(error.missing_permissions(), ["a:b:c"]);
        assert!(
            !error.to_string().contains(" asks for") && !error.to_string().contains(" ask for"),
            "{error}"
        );
    }
}

#[test]
fn set_all_takes_maps_and_structs_and_refuses_the_rest() {
    let update = || Update::participant("c-1", "customer");
    let map = std::collections::BTreeMap::from([("a", Some("x")), ("b", None)]);
    assert_eq!(update().set_all(&map), update().set("a", "x"));
    assert_eq!(
        update().set_all(json!({"n": 1, "z": null})),
        update().set("n", 1)
    );
    assert_eq!(
        update().set("a", 1).set_all(None::<()>),
        update().set("a", 1)
    );
    for wrong in [json!([1]), json!("text"), json!(7)] {
        let error = update().set("a", 1).set_all(wrong).validate().unwrap_err();
        assert_eq!(error.violations()[0].rule, Rule::Type);
        assert!(error.to_string().contains("set_all"), "{error}");
    }
}

#[test]
fn read_each_target_costs_one_request() {
    let sandbox = with_record();
    change_in(&sandbox, |c| {
        c.version = 4;
        c.attributes.insert("a".into(), json!(1));
        c.secure = Some(secure(5, &[("s", "t")]));
        c.participants[1].attributes.insert("p".into(), "q".into());
    });
    let client = client(&sandbox);
    for (target, path, item, version, attributes) in [
        (
            Target::conversation("c-1"),
            "GET ~ 200",
            None,
            Some("4"),
            json!({"a": 1}),
        ),
        (
            Target::participant("c-1", "customer"),
            "GET ~ 200",
            Some("c-1-customer"),
            None,
            json!({"p": "q"}),
        ),
        (
            Target::participant("c-1", "purpose:agent"),
            "GET ~ 200",
            Some("c-1-agent"),
            None,
            json!({}),
        ),
        (
            Target::participant("c-1", "c-1-customer"),
            "GET ~ 200",
            Some("c-1-customer"),
            None,
            json!({"p": "q"}),
        ),
        (
            Target::secure("c-1"),
            "GET ~/secureattributes 200",
            None,
            Some("5"),
            json!({"s": "t"}),
        ),
        (
            Target::custom("c-1", "r-1"),
            "GET ~/customattributes/r-1 200",
            Some("r-1"),
            Some("7"),
            json!({"kept": {"deep": [1]}}),
        ),
    ] {
        let snapshot = client.read(&target).unwrap();
        assert_eq!(snapshot.conversation_id, "c-1");
        assert_eq!(snapshot.target, target.kind());
        assert_eq!(snapshot.resource_id.as_deref(), item, "{target:?}");
        assert_eq!(snapshot.version.as_deref(), version, "{target:?}");
        assert_eq!(Value::Object(snapshot.attributes), attributes);
        let tells = matches!(
            target.kind(),
            TargetKind::Conversation | TargetKind::Participant
        );
        assert_eq!(snapshot.conversation_ended, tells.then_some(false));
        assert_seen(&sandbox, [path]);
    }
    // Reading is not counted as updating.
    assert_eq!((client.metrics().calls, client.metrics().requests), (0, 6));
}

#[test]
fn read_of_absent_resource_is_told() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let never = client.read(&Target::secure("c-1")).unwrap();
    assert_eq!((never.version, never.attributes.len()), (None, 0));
    let with_schema = record().schema("s-1");
    for target in [
        &Target::conversation("c-9"),
        &Target::participant("c-9", "customer"),
        &Target::participant("c-1", "id:nobody"),
        &Target::participant("c-1", "purpose:ivr"),
        &Target::secure("c-9"),
        &Target::custom("c-1", "r-1"),
        // A schema makes it writable, not readable.
        with_schema.target(),
    ] {
        let error = client.read(target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{target:?}: {error}");
        assert_eq!((error.attempts(), error.requests()), (0, 1));
    }
    for target in [
        &Target::conversation(""),
        &Target::participant("c-1", "purpose:"),
        &Target::custom("c-1", "a/b"),
    ] {
        sandbox.clear_requests();
        let error = client.read(target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{target:?}: {error}");
        assert_eq!(error.violations().len(), 1);
        assert!(sandbox.requests().is_empty());
    }
    // The platform's own conversations have no attributes at the top level.
    script(
        &sandbox,
        [
            Fault::on_read(raw(200, json!({"id": "c-1", "version": "4"}))),
            Fault::on_read(raw(200, json!({"id": "c-1", "participants": []}))),
        ],
    );
    for _ in 0..2 {
        let error = client.read(&Target::conversation("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

#[test]
fn verify_credentials_against_platform() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let identity = client.verify_credentials().unwrap();
    assert_eq!(identity.client_id.as_deref(), Some(CLIENT_ID));
    assert_eq!(identity.client_name.as_deref(), Some("Sandbox client"));
    assert_eq!(identity.organization_name.as_deref(), Some("Sandbox"));
    assert!(identity.organization_id.is_some());
    // The manual clock's wall time, and the sandbox's day.
    assert_eq!(
        identity
            .expires_at
            .map(genesys_attributes::clock::rfc3339)
            .as_deref(),
        Some("2026-01-02T00:00:00.000Z")
    );
    let lines: Vec<String> = sandbox
        .requests()
        .iter()
        .map(|one| format!("{} {}", one.method, one.path))
        .collect();
    assert_eq!(lines, ["POST /oauth/token", "GET /api/v2/tokens/me"]);

    let with = |credentials| {
        Client::builder(Region::parse("eu-west-1").unwrap(), credentials)
            .base_url(sandbox.url())
            .no_proxy()
            .clock(ManualClock::new())
            .build()
            .unwrap()
    };
    let wrong = with(Credentials::new(CLIENT_ID, "wrong"));
    let error = wrong.verify_credentials().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
    let given = with(Credentials::access_token("given"));
    let error = given.verify_credentials().unwrap_err();
    assert_eq!(
        (error.kind(), error.http_status()),
        (ErrorKind::Auth, Some(401))
    );
    sandbox.world(|world| world.accept_token("given"));
    let identity = given.verify_credentials().unwrap();
    assert_eq!(identity.client_id.as_deref(), Some(CLIENT_ID));
    assert_eq!(identity.expires_at, None);

    sandbox.world(|world| world.permissions_missing = vec!["a:b:c".into()]);
    let error = client.verify_credentials().unwrap_err();
    assert_eq!(error.missing_permissions(), ["a:b:c"]);
}
