//! Events: for what, how many, what they carry, and the webhook payload made of them.

use super::*;

#[test]
fn event_is_sent_once_for_applied_never_for_others() {
    for (name, script, update, expected, _) in ways() {
        let fake = Fake::named(name);
        script(&fake);
        let events = Events::new();
        let client = fake.builder().on_update(events.hook()).build().unwrap();
        let subscription = client.subscribe(10);
        let result = client.update(&update);
        assert_eq!(
            result.as_ref().map(|r| r.outcome).map_err(|e| e.kind()),
            expected,
            "{name}"
        );
        let told = matches!(expected, Ok(Outcome::Applied | Outcome::AlreadyApplied));
        assert_eq!(events.all().len(), usize::from(told), "{name}");
        if let Some(event) = events.all().first() {
            assert_eq!(*subscription.try_recv().unwrap().event, *event);
            let receipt = result.unwrap();
            assert_eq!(event.version, receipt.version);
            assert_eq!(event.previous_version, receipt.previous_version);
            assert_eq!(event.timestamp, receipt.timestamp);
        }
        assert!(subscription.try_recv().is_none(), "{name}");
    }
}

#[test]
fn event_carries_documented_fields() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .takes(ms(11))
        .answer(
            "PATCH",
            json_response(200, &json!({ "version": 8 })).with_header("ININ-Correlation-Id", "abc"),
        )
        .takes(ms(30));
    let events = Events::new();
    let client = fake.builder().on_update(events.hook()).build().unwrap();
    client
        .update(
            &Update::conversation("c-1")
                .set("routing.score", 85.0)
                .set("customer.tier", "premium"),
        )
        .unwrap();
    let event = &events.all()[0];
    let id = event.id.clone();
    assert_eq!(
        serde_json::to_value(event).unwrap(),
        json!({
            "id": id,
            "sequence": 1,
            "conversationId": "c-1",
            "target": "conversation",
            "attributes": { "customer.tier": "premium", "routing.score": 85 },
            "updatedKeys": ["customer.tier", "routing.score"],
            "version": "8",
            "previousVersion": "7",
            "latencyMs": 41,
            "timestamp": "2026-01-01T00:00:00.041Z",
            "auditLog": {
                "id": id,
                "phase": "outcome",
                "timestamp": "2026-01-01T00:00:00.041Z",
                "conversationId": "c-1",
                "target": "conversation",
                "status": "applied",
                "updatedKeys": ["customer.tier", "routing.score"],
                "previousVersion": "7",
                "version": "8",
                "attempts": 1,
                "requests": 2,
                "latencyMs": 41,
                "correlationId": "abc",
            },
        })
    );
}

#[test]
fn webhook_payload_has_documented_form() {
    for (answer, version) in [
        (json_response(200, &json!({ "version": 8 })), json!("8")),
        (Response::new(204), json!(null)),
    ] {
        let fake = Fake::new();
        fake.token().get(7).answer("PATCH", answer);
        let events = Events::new();
        let client = fake.builder().on_update(events.hook()).build().unwrap();
        client.update(&update().set("score", 85)).unwrap();
        assert_eq!(
            events.all()[0].webhook_payload(),
            json!({
                "eventType": "CONVERSATION_ATTRIBUTES_UPDATED",
                "payload": {
                    "id": events.all()[0].id,
                    "target": "conversation",
                    "conversationId": "c-1",
                    "updatedAttributes": { "tier": "gold", "score": 85 },
                    "version": version,
                    "processedAt": "2026-01-01T00:00:00.000Z",
                },
            })
        );
    }
}

#[test]
fn event_of_participant_has_id_and_text_values() {
    let fake = Fake::new();
    fake.token()
        .get_body(json!({ "participants": [
            { "id": "p-1", "purpose": "agent" },
            { "id": "p-2", "purpose": "customer" },
        ] }))
        .status("PATCH", 202);
    let events = Events::new();
    let client = fake.builder().on_update(events.hook()).build().unwrap();
    let receipt = client
        .update(
            &Update::participant("c-1", "customer")
                .set("n", 5)
                .set("b", true),
        )
        .unwrap();
    assert_eq!(receipt.resource_id.as_deref(), Some("p-2"));
    let event = &events.all()[0];
    assert_eq!(
        (event.target, event.resource_id.as_deref()),
        (genesys_attributes::TargetKind::Participant, Some("p-2"))
    );
    assert_eq!(
        Value::Object(event.attributes.clone()),
        json!({ "n": "5", "b": "true" })
    );
    assert_eq!(event.audit().resource_id.as_deref(), Some("p-2"));
    let payload = &event.webhook_payload()["payload"];
    assert_eq!(payload["id"], *event.audit().id);
    assert_eq!(payload["target"], "participant");
    assert_eq!(payload["resourceId"], "p-2");
    let written = serde_json::to_string(event).unwrap();
    assert_eq!(*event, serde_json::from_str(&written).unwrap());
}

#[test]
fn read_sends_no_event_and_no_audit() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({ "k": 1 }));
    let (sink, events) = (Sink::new(), Events::new());
    let client = fake
        .builder()
        .audit(sink.clone())
        .on_update(events.hook())
        .build()
        .unwrap();
    let snapshot = client.read(&Target::conversation("c-1")).unwrap();
    assert_eq!(snapshot.version.as_deref(), Some("7"));
    assert_eq!(snapshot.attributes["k"], 1);
    assert_eq!(sink.records(), []);
    assert!(events.all().is_empty());
    assert_eq!(client.metrics().calls, 0);
    assert_eq!(client.metrics().requests, 1);
}

#[test]
fn event_single_attempt_policy_is_sent_once() {
    let fake = Fake::new();
    fake.token().get(7).patch(8);
    let events = Events::new();
    let client = fake
        .builder()
        .retry(
            RetryPolicy::default()
                .with_max_attempts(1)
                .with_max_conflicts(0),
        )
        .on_update(events.hook())
        .build()
        .unwrap();
    client.update(&update()).unwrap();
    assert_eq!(events.all()[0].audit().attempts, 1);
}
