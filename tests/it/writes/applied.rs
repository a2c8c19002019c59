//! 2xx: applied, and what it cost.

use super::*;

#[test]
fn write_2xx_is_applied_and_never_resent_whatever_its_body() {
    let version = |version: Value| Response::new(200).with_body(version.to_string());
    for (name, response, told) in [
        ("readable", version(json!({ "version": 8 })), Some("8")),
        (
            "accepted",
            Response::new(202).with_body("{\"version\":\"8\"}"),
            Some("8"),
        ),
        (
            // The read told text: a tag is something else.
            "entity tag",
            Response::new(204).with_header("ETag", "\"8\""),
            None,
        ),
        ("without a version", version(json!({ "id": "c-1" })), None),
        ("null version", version(json!({ "version": null })), None),
        ("an array", version(json!([1])), None),
        ("empty", Response::new(200), None),
        ("no content", Response::new(204), None),
        ("unreadable", Response::new(200).with_body("<html>"), None),
        (
            "not UTF-8",
            Response::new(200).with_body(vec![0xff, 0xfe]),
            None,
        ),
        (
            "truncated",
            Response::new(200)
                .with_header("ETag", "\"8\"")
                .with_broken_body("cut"),
            None,
        ),
    ] {
        for kind in [Locked, Unlocked] {
            let fake = Fake::named(format!("{name}, {kind:?}"));
            kind.begin(&fake);
            fake.answer("PATCH", response.clone());
            let client = fake.client();

            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}");
            assert_eq!((receipt.attempts, receipt.requests), (1, 1 + kind.reads()));
            assert!(fake.sleeps().is_empty());
            if kind == Locked {
                assert_eq!(receipt.version.as_deref(), told, "{name}");
                assert_eq!(receipt.previous_version.as_deref(), Some("7"));
            }

            // Only a version that was told is used again; what was not told is read, never guessed.
            let warm = kind == Unlocked || told.is_some();
            if !warm {
                fake.get(30);
            }
            fake.patch(31);
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.requests, 1 + u32::from(!warm), "{name}");
            if kind == Locked {
                let tag = fake.if_matches().pop().unwrap();
                let expected = told.map_or("30", |told| told.trim_matches('"'));
                assert_eq!(tag, format!("\"{expected}\""), "{name}");
            }
        }
    }
}

#[test]
fn update_costs_two_requests_cold_one_warm() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9);
    let client = fake.client();
    for requests in [2, 1] {
        let receipt = client.update(&update()).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, requests));
    }
    assert_eq!(
        fake.lines(),
        [
            "POST /oauth/token",
            "GET /api/v2/conversations/c-1",
            "PATCH /api/v2/conversations/c-1/attributes",
            "PATCH /api/v2/conversations/c-1/attributes",
        ]
    );
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
    assert_eq!(client.metrics().requests, 3);
}

#[test]
fn client_clones_share_token_and_cache() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9);
    let client = fake.client();
    client.clone().update(&update()).unwrap();
    assert_eq!(client.update(&update()).unwrap().requests, 1);
    assert_eq!(client.clone().metrics().applied, 2);
}

#[test]
fn version_cache_disabled_makes_updates_cold() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).get(8).patch(9);
    let client = fake.builder().version_cache(0).build().unwrap();
    for _ in 0..2 {
        assert_eq!(client.update(&update()).unwrap().requests, 2);
    }
}

#[test]
fn participant_by_id_is_written_without_read_or_lock() {
    let fake = Fake::new();
    fake.token().status("PATCH", 202);
    let receipt = fake.client().update(&Unlocked.update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!(receipt.resource_id.as_deref(), Some("p-1"));
    let write = &fake.sent("PATCH")[0];
    assert_eq!(
        write.path,
        "/api/v2/conversations/c-1/participants/p-1/attributes"
    );
    assert_eq!(write.if_match(), None);
    assert_eq!(write.body, json!({ "attributes": { "tier": "gold" } }));
}
