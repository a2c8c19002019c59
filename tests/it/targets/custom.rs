//! Custom records.

use super::*;

#[test]
fn custom_patch_carries_version_and_divisions() {
    let sandbox = with_record();
    let client = client(&sandbox);
    let receipt = client.update(&record().set("tier", 3)).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Custom);
    assert_eq!(receipt.resource_id.as_deref(), Some("r-1"));
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    assert_eq!((receipt.version.as_ref(), receipt.response()), (None, None));
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_body(
        &sandbox,
        json!({
            "id": "r-1",
            "divisions": ["d-1", "d-2"],
            "version": 7,
            "customAttributes": {"tier": 3},
        }),
    );
    assert_seen(
        &sandbox,
        [
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes 200",
        ],
    );
    let now = record_now(&sandbox);
    assert_eq!(now.divisions, ["d-1", "d-2"]);
    assert_eq!((now.version, now.schema.as_str()), (8, "s-1"));
    assert_eq!(
        Value::Object(now.attributes),
        json!({"kept": {"deep": [1]}, "tier": 3})
    );
    // A schema that is given is only for creating.
    client
        .update(&record().schema("s-1").set("tier", 4))
        .unwrap();
    assert_eq!(last_write(&sandbox).method, "PATCH");
    assert_eq!(last_write(&sandbox).body.get("schemaId"), None);
    assert_eq!(record_now(&sandbox).divisions, ["d-1", "d-2"]);
}

#[test]
fn custom_divisions_go_back_as_read() {
    for divisions in [
        Some(json!([])),
        Some(json!(["d-1"])),
        Some(json!([{"id": "d-1", "name": "Home", "selfUri": "/d-1"}])),
        None,
    ] {
        let sandbox = with_record();
        let mut read = json!({"id": "r-1", "version": 3, "customAttributes": {}});
        if let Some(divisions) = &divisions {
            read["divisions"] = divisions.clone();
        }
        script(
            &sandbox,
            [
                Fault::on_read(raw(200, read)),
                Fault::on_write(raw(200, "")),
            ],
        );
        client(&sandbox).update(&record().set("k", "v")).unwrap();
        let body = last_write(&sandbox).body;
        assert_eq!(body.get("divisions"), divisions.as_ref());
    }
}

/// The divisions of the first read are as stale as its version.
#[test]
fn custom_conflict_takes_divisions_of_new_read() {
    for as_400 in [false, true] {
        let sandbox = with_record();
        sandbox.world(|world| world.custom_conflict_as_400 = as_400);
        let stale = json!({
            "id": "r-1", "version": 6, "divisions": ["d-old"], "customAttributes": {"tier": 1},
        });
        script(&sandbox, [Fault::on_read(raw(200, stale))]);
        let client = client(&sandbox);
        let receipt = client.update(&record().set("tier", 3)).unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 2));
        assert_eq!(receipt.previous_version.as_deref(), Some("7"));
        assert_seen(
            &sandbox,
            [
                "GET ~/customattributes/r-1 200",
                if as_400 {
                    "PATCH ~/customattributes 400"
                } else {
                    "PATCH ~/customattributes 409"
                },
                "GET ~/customattributes/r-1 200",
                "PATCH ~/customattributes 200",
            ],
        );
        let now = record_now(&sandbox);
        assert_eq!((now.version, now.divisions.len()), (8, 2));
        assert_eq!(client.metrics().conflicts, 1);
    }
}

#[test]
fn custom_400_without_conflict_is_final() {
    let sandbox = with_record();
    script(&sandbox, [Fault::on_write(status(400))]);
    let client = client(&sandbox);
    let error = assert_error(
        client.update(&record().set("tier", 3)),
        ErrorKind::InvalidInput,
    );
    assert_eq!((error.code(), error.attempts()), (Some("bad.request"), 1));
    // Only this store says it like that.
    let body = json!({"code": "bad.request", "message": "x does not match the current version y"});
    let other = Action::Status { status: 400, body };
    for update in [
        customer(),
        Update::secure("c-1"),
        Update::secure("c-1").unlocked(),
        Update::conversation("c-1"),
    ] {
        script(&sandbox, [Fault::on_write(other.clone())]);
        let error = assert_error(
            client.update(&update.set("k", "v")),
            ErrorKind::InvalidInput,
        );
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(client.metrics().conflicts, 0);
}

#[test]
fn custom_missing_record_is_created_with_schema() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let update = record().set("tier", 3).set("list", json!([1, null]));
    let error = assert_error(client.update(&update), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains("r-1") && text.contains("schema id"), "{text}");
    assert_eq!((error.attempts(), error.http_status()), (0, Some(404)));
    assert_seen(&sandbox, ["GET ~/customattributes/r-1 404"]);

    let receipt = client.update(&update.schema("s-1")).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.resource_id.as_deref(), Some("r-1"));
    assert_eq!(
        (&receipt.version, &receipt.previous_version),
        (&None, &None)
    );
    assert_eq!(receipt.response(), Some(json!({"id": "r-1"})));
    assert_body(
        &sandbox,
        json!({
            "id": "r-1",
            "schemaId": "s-1",
            "customAttributes": {"list": [1, null], "tier": 3},
        }),
    );
    assert_seen(
        &sandbox,
        [
            "GET ~/customattributes/r-1 404",
            "PUT ~/customattributes 200",
        ],
    );
    assert_eq!(
        (
            record_now(&sandbox).version,
            record_now(&sandbox).schema.as_str()
        ),
        (1, "s-1")
    );

    // A wrong schema is the platform's to refuse; a missing conversation is not made by it.
    let elsewhere = Update::custom("c-9", "r-1").schema("s-1").set("k", 1);
    let error = assert_error(client.update(&elsewhere), ErrorKind::NotFound);
    assert_eq!(error.attempts(), 1);
    assert_eq!(sandbox.api_requests().len(), 2);
}

#[test]
fn custom_record_appearing_during_creation_is_patched() {
    let sandbox = with_record();
    script(
        &sandbox,
        [Fault::on_read(status(404)), Fault::on_write(status(409))],
    );
    let receipt = client(&sandbox)
        .update(&record().schema("s-1").set("tier", 3))
        .unwrap();
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    assert_seen(
        &sandbox,
        [
            "GET ~/customattributes/r-1 404",
            "PUT ~/customattributes 409",
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes 200",
        ],
    );
    let now = record_now(&sandbox);
    assert_eq!(now.divisions, ["d-1", "d-2"]);
    assert_eq!(now.attributes.len(), 2);
}

#[test]
fn custom_any_json_is_written_verbatim() {
    let values = [
        json!(null),
        json!(1.5),
        json!(85.0),
        json!(-1),
        json!(9_007_199_254_740_991_u64),
        json!(0.1),
        json!(1e300),
        json!("x".repeat(5_000)),
        json!([1, "two", [3.25], {}]),
        json!({"a": {"b": null, "": [true]}}),
        json!([]),
    ];
    let sandbox = with_record();
    let update = values
        .iter()
        .enumerate()
        .fold(record(), |update, (n, value)| {
            update.set(format!("k{n}"), value.clone())
        });
    client(&sandbox).update(&update).unwrap();
    let sent = last_write(&sandbox);
    for (n, value) in values.iter().enumerate() {
        let sent = &sent.body["customAttributes"][format!("k{n}")];
        assert_eq!(sent.to_string(), value.to_string());
    }
    let receipt = client(&sandbox).update(&update.skip_unchanged()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    let empty = record().set("", 1);
    let error = assert_error(client(&sandbox).update(&empty), ErrorKind::InvalidInput);
    assert_eq!(violations(&error), [": keyEmpty"]);
}

/// There is nothing to read, but with a schema there is something to write.
#[test]
fn custom_missing_record_is_computed_from_nothing() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let update = record().schema("s-1");
    let receipt = client
        .update_with(update.target(), |now| {
            assert!(now.attributes.is_empty() && now.version.is_none());
            Ok(Some(Attributes::from_iter([("n".to_owned(), json!(1))])))
        })
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_seen(
        &sandbox,
        [
            "GET ~/customattributes/r-1 404",
            "PUT ~/customattributes 200",
        ],
    );
    // And for an unlocked secure target: read, then written without the lock.
    let open = Update::secure("c-1").unlocked();
    let value = || Attributes::from_iter([("n".to_owned(), json!(1))]);
    client
        .update_with(open.target(), |_| Ok(Some(value())))
        .unwrap();
    assert_seen(
        &sandbox,
        ["GET ~/secureattributes 200", "PATCH ~/secureattributes 202"],
    );
}
