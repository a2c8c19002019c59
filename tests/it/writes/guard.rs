//! Keys of the platform on conversations that have ended.

use super::*;

#[test]
fn system_keys_on_ended_conversation_are_refused() {
    for (read, state) in [
        (json!({ "version": 7, "state": "terminated" }), "terminated"),
        (json!({ "version": 7, "state": "abandoned" }), "abandoned"),
        (
            json!({ "version": 7, "endTime": "2025-12-31T00:00:00Z" }),
            "ended",
        ),
        (
            json!({ "version": 7, "state": "connected", "endTime": "2025-12-31T00:00:00Z" }),
            "ended",
        ),
    ] {
        for policy in [EndedPolicy::Allow, EndedPolicy::Warn] {
            let fake = Fake::named(read.to_string());
            fake.token().get_body(read.clone());
            let client = fake.builder().ended_conversations(policy).build().unwrap();
            let error = client
                .update(
                    &update()
                        .set("system.a", 1)
                        .set("system.b", 2)
                        .set("systemic", 3),
                )
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let violations: Vec<_> = error
                .violations()
                .iter()
                .map(|v| (v.key.as_str(), v.rule))
                .collect();
            assert_eq!(
                violations,
                [("system.a", Rule::SystemKey), ("system.b", Rule::SystemKey)]
            );
            says(&error, &["system.a", "system.b", state]);
            assert!(!error.to_string().contains("systemic"));
            assert_eq!((error.attempts(), error.requests()), (0, 1));
            assert_eq!(client.metrics().validation_errors, 1);
        }
    }
}

#[test]
fn system_keys_on_live_conversation_are_written() {
    for read in [
        json!({ "version": 7 }),
        json!({ "version": 7, "state": "connected" }),
        json!({ "version": 7, "state": null, "endTime": null }),
    ] {
        let fake = Fake::named(read.to_string());
        fake.token().get_body(read).patch(8);
        let receipt = fake.client().update(&update().set("system.a", 1)).unwrap();
        assert_ne!(receipt.conversation_ended, Some(true));
    }
}

#[test]
fn system_keys_always_read() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .get(8)
        .patch(9)
        .get_body(json!({ "version": 9, "state": "terminated" }));
    let client = fake.client();
    client.update(&update()).unwrap();
    let receipt = client.update(&update().set("system.a", 1)).unwrap();
    assert_eq!(receipt.requests, 2);
    let error = client.update(&update().set("system.a", 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn system_keys_guard_applies_to_read_after_conflict() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 412)
        .get_body(json!({ "version": 8, "state": "abandoned" }));
    let error = fake
        .client()
        .update(&update().set("system.a", 1))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.attempts(), 1);
    assert!(!error.may_have_applied());
}

#[test]
fn ended_conversation_other_keys_follow_policy() {
    for (policy, refused) in [
        (EndedPolicy::Allow, false),
        (EndedPolicy::Warn, false),
        (EndedPolicy::Refuse, true),
    ] {
        let fake = Fake::named(format!("{policy:?}"));
        fake.token()
            .get_body(json!({ "version": 7, "state": "terminated" }));
        if !refused {
            fake.patch(8);
        }
        let client = fake.builder().ended_conversations(policy).build().unwrap();
        match client.update(&update()) {
            Ok(receipt) => {
                assert!(!refused);
                assert_eq!(receipt.conversation_ended, Some(true));
            }
            Err(error) => {
                assert!(refused);
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert_eq!(error.violations()[0].rule, Rule::Ended);
            }
        }
    }
}
