//! Targets whose values are text, and those without a lock.

use super::*;

#[test]
fn text_targets_integers_and_booleans_become_text() {
    let values = [
        (json!("85"), "85"),
        (json!(""), ""),
        (json!(85), "85"),
        (json!(-5), "-5"),
        (json!(85.0), "85"),
        (json!(-0.0), "0"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!(i64::MIN), "-9223372036854775808"),
        (json!(true), "true"),
        (json!(false), "false"),
    ];
    for (kind, update, sandbox) in [
        ("participant", customer(), sandbox()),
        ("secure", Update::secure("c-1"), sandbox()),
        ("unlocked", Update::secure("c-1").unlocked(), sandbox()),
    ] {
        let mut update = update;
        let mut expected = Attributes::new();
        for (n, (value, text)) in values.iter().enumerate() {
            update = update.set(format!("k{n}"), value.clone());
            expected.insert(format!("k{n}"), json!(text));
        }
        let client = client(&sandbox);
        let events = client.subscribe(1);
        client.update(&update).unwrap();
        assert_body(&sandbox, json!({"attributes": expected}));
        if kind == "participant" {
            // The event tells what was written.
            assert_eq!(events.try_recv().unwrap().attributes, expected);
        }
        // And so does the comparison with what is there.
        let again = client.update(&update.skip_unchanged()).unwrap();
        assert_eq!(again.outcome, Outcome::Unchanged, "{kind}");
    }
}

#[test]
fn text_targets_other_values_are_violations() {
    let sandbox = sandbox();
    for update in [
        customer(),
        Update::secure("c-1"),
        Update::secure("c-1").unlocked(),
    ] {
        let update = update
            .set("a", 1.5)
            .set("b", Value::Null)
            .set("c", json!(["secret-1"]))
            .set("d", json!({"secret-2": 1}))
            .set("e", 1e300)
            .set("", "v")
            .set("fine", "v");
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::InvalidInput);
        assert_eq!(
            violations(&error),
            [": keyEmpty", "b: type", "c: type", "d: type"]
        );
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(error.requests(), 0);
    }
    assert!(sandbox.requests().is_empty());
}

#[test]
fn keys_unusual_pass_through_unchanged() {
    let long = "k".repeat(300);
    let keys = [
        " ani_in_identity_platform",
        "trailing ",
        "Numero  VIP",
        "LLM (AW) question",
        "context.email",
        "Tier",
        "tier",
        "system.owner",
        "a/b?c#d%20e&f=g",
        "quote\" back\\slash",
        "tab\tnewline\n",
        "\u{e9}\u{1f600}\u{202e}",
        "__proto__",
        " ",
        long.as_str(),
    ];
    let updates = [
        customer(),
        Update::participant("c-1", "c-1-customer"),
        Update::secure("c-1"),
        Update::secure("c-1").unlocked(),
    ];
    for update in updates {
        let sandbox = sandbox();
        let update = keys
            .iter()
            .fold(update, |update, key| update.set(*key, *key));
        client(&sandbox).update(&update).unwrap();
        let sent = last_write(&sandbox).body["attributes"].clone();
        let now = client(&sandbox).read(update.target()).unwrap().attributes;
        for attributes in [sent.as_object().unwrap(), &now] {
            assert_eq!(attributes.len(), keys.len());
            for key in keys {
                assert_eq!(attributes[key], key);
            }
        }
    }
}

#[test]
fn unlocked_target_conflict_is_retried_within_bounds() {
    for (update, read, write) in [
        (
            customer().set("k", "v"),
            Some("GET ~ 200"),
            "PATCH ~/participants/c-1-customer/attributes",
        ),
        (
            Update::participant("c-1", "c-1-agent").set("k", "v"),
            None,
            "PATCH ~/participants/c-1-agent/attributes",
        ),
        (
            Update::secure("c-1").unlocked().set("k", "v"),
            None,
            "PATCH ~/secureattributes",
        ),
    ] {
        let lines = |statuses: &[u16]| -> Vec<String> {
            let writes = statuses.iter().map(|s| format!("{write} {s}"));
            read.map(str::to_owned).into_iter().chain(writes).collect()
        };
        let short = |sandbox: &Sandbox| -> Vec<String> {
            let seen = seen(sandbox);
            seen.iter().map(|line| line.replace(C, "~")).collect()
        };
        let sandbox = sandbox();
        script(&sandbox, [409, 409].map(|s| Fault::on_write(status(s))));
        let receipt = client(&sandbox).update(&update).unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
        assert_eq!(short(&sandbox), lines(&[409, 409, 202]));

        script(&sandbox, [409; 3].map(|s| Fault::on_write(status(s))));
        let client = patient(&sandbox, 2);
        let error = assert_error(client.update(&update), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.http_status()), (3, Some(409)));
        assert!(error.is_transient() && !error.may_have_applied());
        assert_eq!(short(&sandbox), lines(&[409; 3]));
        assert_eq!(client.metrics().conflicts, 3);
    }
}

#[test]
fn unlocked_target_ambiguous_write_is_resent() {
    for (update, requests) in [
        (customer(), 3),
        (Update::participant("c-1", "c-1-agent"), 2),
        (Update::secure("c-1").unlocked(), 2),
    ] {
        let update = update.set("k", "v");
        let sandbox = sandbox();
        script(&sandbox, [applied_then_503()]);
        let receipt = client(&sandbox).update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, requests));
        let mut bodies = sandbox.api_requests();
        bodies.retain(|one| one.method == "PATCH");
        assert_eq!(bodies[0].raw_body, bodies[1].raw_body);

        script(&sandbox, [503; 4].map(|s| Fault::on_write(status(s))));
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Server);
        assert!(error.may_have_applied() && error.is_transient());
        assert_eq!(error.attempts(), 4);
    }
}
