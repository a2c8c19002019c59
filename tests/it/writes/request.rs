//! What is sent, and what is refused before anything is sent.

use super::*;

#[test]
fn conversation_write_has_documented_form() {
    let fake = Fake::new();
    fake.token().get(7).takes(ms(1_250)).patch(8);
    let update = Update::conversation("c-1")
        .set("customer.tier", "premium")
        .set("routing.score", 85.0)
        .set("zero", -0.0)
        .set("vip", true);
    fake.client().update(&update).unwrap();
    let write = &fake.sent("PATCH")[0];
    assert_eq!(write.path, "/api/v2/conversations/c-1/attributes");
    assert_eq!(
        write.body.to_string(),
        json!({
            "attributes": { "customer.tier": "premium", "routing.score": 85, "vip": true, "zero": 0 },
            "metadata": { "source": "external-integration", "timestamp": "2026-01-01T00:00:01.250Z" },
        })
        .to_string()
    );
    assert_eq!(write.authorization(), "Bearer token-1");
    assert_eq!(write.header("Content-Type"), Some("application/json"));
    assert_eq!(write.header("Accept"), Some("application/json"));
    assert_eq!(write.if_match(), Some("\"7\""));
    let read = &fake.sent("GET")[0];
    assert_eq!((read.if_match(), read.header("Content-Type")), (None, None));
    assert_eq!(read.body, Value::Null);
}

#[test]
fn metadata_source_set_is_sent() {
    let fake = Fake::new();
    fake.token().get(7).patch(8);
    let client = fake
        .builder()
        .metadata_source("crm-sync \"1\"")
        .build()
        .unwrap();
    client.update(&update()).unwrap();
    let metadata = fake.sent("PATCH")[0].body["metadata"].clone();
    assert_eq!(metadata["source"], "crm-sync \"1\"");
}

#[test]
fn metadata_timestamp_changes_on_rewrite_not_on_resend() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 503)
        .takes(secs(1))
        .status("PATCH", 412)
        .takes(secs(1))
        .get_with(8, json!({}))
        .takes(secs(1))
        .patch(9);
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    client.update(&update()).unwrap();
    let writes = fake.sent("PATCH");
    let stamps: Vec<_> = writes
        .iter()
        .map(|r| r.body["metadata"]["timestamp"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(stamps[0], "2026-01-01T00:00:00.000Z");
    assert_eq!(stamps[1], stamps[0]);
    // The moment at which it was written anew: after two answers, a wait and a read. That write
    // took no time.
    assert!(writes[2].at >= secs(3));
    assert_eq!(
        stamps[2],
        genesys_attributes::clock::rfc3339(fake.clock.wall())
    );
}

#[test]
fn identifiers_odd_are_percent_encoded() {
    for (id, encoded) in [
        (
            "5b2f0c1e-0000-4000-8000-000000000001",
            "5b2f0c1e-0000-4000-8000-000000000001",
        ),
        ("a.b_c~d", "a.b_c~d"),
        ("a%2Fb", "a%252Fb"),
        ("a\\b", "a%5Cb"),
        ("a&b=c;d", "a%26b%3Dc%3Bd"),
        ("a:b@c", "a%3Ab%40c"),
        ("é😀", "%C3%A9%F0%9F%98%80"),
        ("\"<>`{}|", "%22%3C%3E%60%7B%7D%7C"),
    ] {
        let fake = Fake::named(id);
        fake.token().get(7).patch(8).status("PATCH", 202);
        let client = fake.client();
        client
            .update(&Update::conversation(id).set("k", 1))
            .unwrap();
        client
            .update(&Update::participant(id, id).set("k", 1))
            .unwrap();
        assert_eq!(
            fake.lines()[1..],
            [
                format!("GET /api/v2/conversations/{encoded}"),
                format!("PATCH /api/v2/conversations/{encoded}/attributes"),
                format!("PATCH /api/v2/conversations/{encoded}/participants/{encoded}/attributes"),
            ]
        );
    }
}

#[test]
fn identifiers_bad_are_violations_and_send_nothing() {
    for id in [
        "",
        " ",
        "a b",
        "a\tb",
        "a\nb",
        "a\r\nX: 1",
        "a\0b",
        "a\u{7f}b",
        "a\u{85}b",
        "a\u{a0}b",
        "a/b",
        "/",
        "a?b",
        "a#b",
        "..",
        "a..b",
        ".",
    ] {
        for (update, field) in [
            (Update::conversation(id).set("k", 1), "conversationId"),
            (Update::participant("c-1", id).set("k", 1), "participant"),
            (
                Update::participant("c-1", format!("purpose:{id}")).set("k", 1),
                "participant",
            ),
            (Update::secure(id).set("k", "v"), "conversationId"),
            (Update::custom("c-1", id).set("k", 1), "record"),
        ] {
            let fake = Fake::named(format!("{id:?}"));
            let client = fake.client();
            let error = client.update(&update).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{id:?}");
            assert_eq!(error.violations()[0].key, field);
            assert_eq!(error.violations()[0].rule, Rule::Identifier);
            assert_eq!(error.requests(), 0);
            says(&error, &[field]);
            let error = client.read(update.target()).unwrap_err();
            assert_eq!(error.violations()[0].key, field);
            let error = client
                .update_with(update.target(), |_| panic!("not called"))
                .unwrap_err();
            assert_eq!(error.violations()[0].key, field);
        }
    }
}

#[test]
fn violations_are_told_at_once_before_sending() {
    let fake = Fake::new();
    let client = fake.client();
    let error = client
        .update(
            &Update::conversation("a b")
                .set("", 1)
                .set("float", 1.5)
                .set("list", json!([]))
                .set("long", "x".repeat(1_025))
                .set("negative", -1)
                .set("nothing", Value::Null)
                .set("x".repeat(129), 1)
                .remove("long")
                .if_version("a b"),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let mut rules: Vec<_> = error.violations().iter().map(|v| v.rule.name()).collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        [
            "identifier",
            "integer",
            "integerMin",
            "keyEmpty",
            "keyLength",
            "setAndRemoved",
            "type",
            "type",
            "unsupported",
            "valueLength",
            "version",
        ]
    );
    assert!(fake.seen().is_empty());
    assert_eq!(client.metrics().validation_errors, 1);
    assert_eq!(client.metrics().calls, 1);
}

#[test]
fn update_without_attributes_is_refused() {
    let fake = Fake::new();
    for update in [
        Update::conversation("c-1"),
        Update::participant("c-1", "p-1"),
    ] {
        let error = fake.client().update(&update).unwrap_err();
        assert_eq!(error.violations()[0].rule, Rule::NothingToDo);
    }
}

#[test]
fn body_beyond_limit_is_refused_and_sends_nothing() {
    for (limit, length, fits) in [
        (512_000, 511_900, true),
        (512_000, 512_000, false),
        (100, 101, false),
    ] {
        let fake = Fake::named(format!("{limit} {length}"));
        if fits {
            fake.token().status("PATCH", 202);
        }
        let client = fake
            .builder()
            .validation_limits(ValidationLimits::default().with_body_bytes(limit))
            .build()
            .unwrap();
        let update = Update::participant("c-1", "p-1").set("k", "x".repeat(length));
        match client.update(&update) {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert!(!fits, "{error}");
                assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
                assert_eq!(error.requests(), 0);
                says(&error, &[&limit.to_string()]);
            }
        }
    }
}

#[test]
fn body_beyond_limit_by_its_frame_is_refused() {
    let fake = Fake::new();
    fake.token().get(7);
    let client = fake
        .builder()
        .validation_limits(ValidationLimits::default().with_body_bytes(40))
        .build()
        .unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    assert_eq!(error.attempts(), 0);
}
