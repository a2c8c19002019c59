//! The JSON records: an [`Update`] as a batch reads it, and what comes back.
//!
//! Long, since it is tables: one file tells all that is promised about JSON.

use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Rule;
use genesys_attributes::{
    Attributes, Client, Credentials, ErrorKind, RateLimit, Region, RetryPolicy, Target, TargetKind,
    Update,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::sandbox::{Action, CLIENT_ID, CLIENT_SECRET, Fault, Record, Sandbox};

fn read(text: &str) -> Result<Update, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(record: &str) -> String {
    match read(record) {
        Err(message) => message,
        Ok(update) => panic!("{record} was read as {update:?}"),
    }
}

// Reading.

#[test]
fn update_record_documented_forms_are_read() {
    for (record, update) in [
        (
            r#"{"conversationId":"5b2f","target":"conversation","attributes":{"customer.tier":"premium","routing.score":85}}"#,
            Update::conversation("5b2f")
                .set("customer.tier", "premium")
                .set("routing.score", 85),
        ),
        (
            r#"{"conversationId":"5b2f","target":"participant","participant":"customer","attributes":{"crmId":"987"}}"#,
            Update::participant("5b2f", "customer").set("crmId", "987"),
        ),
        (
            r#"{"conversationId":"5b2f","target":"secure","attributes":{"iban":"IE1"},"remove":["old"]}"#,
            Update::secure("5b2f").set("iban", "IE1").remove("old"),
        ),
        (
            r#"{"conversationId":"5b2f","target":"custom","record":"crm-1","schema":"s-1","attributes":{"tier":3}}"#,
            Update::custom("5b2f", "crm-1").schema("s-1").set("tier", 3),
        ),
        (
            r#"{"conversationId":"5b2f","target":"conversation","attributes":{"k":true},"ifVersion":"7","skipUnchanged":true}"#,
            Update::conversation("5b2f")
                .set("k", true)
                .if_version("7")
                .skip_unchanged(),
        ),
        (
            r#"{"conversationId":"5b2f","target":"secure","attributes":{"k":"v"},"unlocked":true}"#,
            Update::secure("5b2f").set("k", "v").unlocked(),
        ),
        (
            r#"{"conversationId":"5b2f","target":"secure","remove":["a","b"],"unlocked":false,"skipUnchanged":false}"#,
            Update::secure("5b2f").remove("a").remove("b"),
        ),
        (
            r#"{"conversationId":"5b2f","target":"custom","record":"crm-1","attributes":{"deep":{"list":[1.5,null]}}}"#,
            Update::custom("5b2f", "crm-1").set("deep", json!({"list": [1.5, null]})),
        ),
    ] {
        assert_eq!(read(record).unwrap(), update, "{record}");
        update.validate().unwrap();
        // However it is handed over.
        let value: Value = serde_json::from_str(record).unwrap();
        assert_eq!(serde_json::from_value::<Update>(value).unwrap(), update);
        let spaced = format!(" \t\r\n{record}\n ");
        assert_eq!(
            serde_json::from_reader::<_, Update>(spaced.as_bytes()).unwrap(),
            update
        );
    }
}

#[test]
fn update_record_has_no_default_target() {
    for (fields, kind) in [
        (r#""x":1"#, None),
        ("", None),
        (r#","target":null"#, None),
        (
            r#","target":"conversation""#,
            Some(TargetKind::Conversation),
        ),
        (
            r#","participant":"customer""#,
            Some(TargetKind::Participant),
        ),
        (
            r#","participant":"p-1","target":null"#,
            Some(TargetKind::Participant),
        ),
        (
            r#","participant":"p-1","target":"participant""#,
            Some(TargetKind::Participant),
        ),
        (r#","target":"secure""#, Some(TargetKind::Secure)),
        (
            r#","target":"custom","record":"r""#,
            Some(TargetKind::Custom),
        ),
        // A record or schema alone does not say it.
        (r#","record":"r""#, None),
        (r#","target":"Secure""#, None),
        (r#","target":"""#, None),
        (r#","target":"conversations""#, None),
    ] {
        let record = format!(r#"{{"conversationId":"c","attributes":{{"k":"v"}}{fields}}}"#);
        let found = read(&record).ok().map(|update| update.target().kind());
        assert_eq!(found, kind, "{record}");
        if kind.is_none() && !fields.contains(r#""x""#) && !fields.contains(r#"target":""#) {
            let message = refused(&record);
            for way in ["participant", "secure", "custom", "conversation"] {
                assert!(message.contains(&format!("{way:?}")), "{message}");
            }
        }
    }
    let who = |who: &str| {
        let record = json!({"conversationId": "c", "participant": who, "attributes": {}});
        let update: Update = serde_json::from_value(record).unwrap();
        update
            .target()
            .participant_selector()
            .map(ToString::to_string)
    };
    for (selector, read) in [
        ("customer", "customer"),
        ("agent", "agent"),
        ("purpose:agent", "agent"),
        // Exactly that purpose, where the word alone looks further.
        ("purpose:customer", "purpose:customer"),
        ("purpose:robot", "purpose:robot"),
        ("purpose:", "purpose:"),
        ("5b2f", "5b2f"),
        ("id:5b2f", "5b2f"),
        ("id:agent", "id:agent"),
        ("", ""),
    ] {
        assert_eq!(who(selector).as_deref(), Some(read), "{selector}");
        assert_eq!(who(read).as_deref(), Some(read), "{selector}");
    }
}

#[test]
fn update_record_unknown_target_is_named() {
    let message = refused(r#"{"conversationId":"c","target":"queue","attributes":{"k":"v"}}"#);
    assert!(message.contains(r#""queue""#), "{message}");
    for known in ["conversation", "participant", "secure", "custom"] {
        assert!(message.contains(known), "{message}");
    }
}

#[test]
fn update_record_unknown_fields_are_named() {
    for name in [
        "attribute",
        "conversationid",
        "conversation_id",
        "ConversationId",
        "ifversion",
        "skip_unchanged",
        "skipUnchanged ",
        "removed",
        "schemaId",
        "recordId",
        "version",
        "metadata",
        "",
        "$schema",
        "line\nbreak",
    ] {
        let mut record =
            json!({"conversationId": "c", "target": "conversation", "attributes": {"k": "v"}});
        record[name] = json!(null);
        let message = refused(&record.to_string());
        assert!(
            message.contains(&format!("unknown field {name:?}")),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
        assert!(
            message.contains("ifVersion") && message.contains("skipUnchanged"),
            "{message}"
        );
    }
    // Before what is missing, with the name that was meant.
    for (record, hint) in [
        (r#"{"conversation_id":"c"}"#, "conversationId"),
        (r#"{"conversationId":"c","attribute":{}}"#, "attributes"),
        (r#"{"Participant":"customer"}"#, "participant"),
    ] {
        let message = refused(record);
        assert!(
            message.contains(&format!("did you mean {hint:?}?")),
            "{message}"
        );
    }
    let mut record = json!({"conversationId": "c", "target": "conversation"});
    record["n".repeat(100_000)] = json!(1);
    assert!(refused(&record.to_string()).len() < 1_000);
    // Keys of attributes are the caller's.
    let inner = r#"{"conversationId":"c","participant":"agent","attributes":{"target":"x","unknown":1,"":2}}"#;
    assert_eq!(read(inner).unwrap().attributes().len(), 3);
}

#[test]
fn update_record_wrong_types_are_named() {
    let texts = [
        "conversationId",
        "target",
        "participant",
        "record",
        "schema",
        "ifVersion",
    ];
    let not_text = [json!(7), json!(true), json!(["c"]), json!({"id": "c"})];
    let flags = ["skipUnchanged", "unlocked"];
    let not_flag = [json!("true"), json!(1), json!(0), json!([]), json!({})];
    let not_object = [json!("k"), json!([["k", "v"]]), json!(1), json!(false)];
    let not_list = [
        json!("k"),
        json!({"k": 1}),
        json!([1]),
        json!(["k", null]),
        json!(true),
    ];
    let cases = texts
        .iter()
        .flat_map(|name| not_text.iter().map(move |value| (*name, value)))
        .chain(
            flags
                .iter()
                .flat_map(|name| not_flag.iter().map(move |value| (*name, value))),
        )
        .chain(not_object.iter().map(|value| ("attributes", value)))
        .chain(not_list.iter().map(|value| ("remove", value)));
    for (name, value) in cases {
        let mut record =
            json!({"conversationId": "c", "target": "conversation", "attributes": {"k": "v"}});
        record[name] = value.clone();
        let message = refused(&record.to_string());
        assert!(
            message.contains(&format!("{name} must be")),
            "{record}: {message}"
        );
    }
    for text in [
        "null",
        "[]",
        "1",
        "\"c\"",
        r#"["c",{"k":"v"}]"#,
        "true",
        "",
        "{",
        "{}}",
        "{'a':1}",
    ] {
        refused(text);
    }
    // A record a line: what follows it is not part of it.
    refused(
        r#"{"conversationId":"c","target":"conversation","attributes":{}} {"conversationId":"d","target":"conversation","attributes":{}}"#,
    );
}

#[test]
fn update_record_null_is_absent() {
    let record = json!({
        "conversationId": "c", "target": "conversation", "participant": null, "record": null, "schema": null,
        "attributes": {"k": "v"}, "remove": null, "ifVersion": null, "skipUnchanged": null,
        "unlocked": null,
    });
    let update: Update = serde_json::from_value(record).unwrap();
    assert_eq!(update, Update::conversation("c").set("k", "v"));
}

#[test]
fn update_record_repeated_key_is_refused_by_name() {
    for (record, key) in [
        (
            r#"{"conversationId":"a","conversationId":"c","target":"conversation","attributes":{"k":1}}"#,
            "conversationId",
        ),
        (
            r#"{"conversationId":"c","target":"conversation","attributes":{"k":1,"j":0,"k":1}}"#,
            "k",
        ),
        (
            r#"{"attributes":{"lost":1},"conversationId":"c","target":"conversation","attributes":{"k":1}}"#,
            "attributes",
        ),
        (
            r#"{"conversationId":"c","target":"custom","record":"r","attributes":{"o":{"y":[{"z":1,"z":2}]}}}"#,
            "z",
        ),
        (
            r#"{"conversationId":"c","target":"secure","participant":"p","participant":null}"#,
            "participant",
        ),
        // The same key by another spelling.
        (
            "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"k\":1,\"\\u006b\":2}}",
            "k",
        ),
    ] {
        let message = refused(record);
        let expected = format!("the key {key:?} is given twice");
        assert!(message.contains(&expected), "{record}: {message}");
    }
}

#[test]
fn update_record_number_arrives_as_written_or_is_refused() {
    #[derive(Debug, serde::Deserialize)]
    struct Job {
        #[serde(flatten)]
        update: Update,
    }
    let line = |number: &str| {
        format!(
            r#"{{"conversationId":"c","target":"custom","record":"r","attributes":{{"n":{{"deep":[{number}]}}}}}}"#
        )
    };
    for number in [
        "18446744073709551615",
        "-9223372036854775808",
        "0.1",
        "-2.5e-7",
        "1e300",
    ] {
        let update = read(&line(number)).unwrap();
        let written = serde_json::to_string(&update.attributes()["n"]["deep"][0]).unwrap();
        assert_eq!(written.parse::<f64>(), number.parse::<f64>(), "{number}");
        assert!(number.contains(['.', 'e']) || written == number);
        assert_eq!(
            serde_json::from_str::<Update>(&line(number)).unwrap(),
            update
        );
    }
    for number in [
        "18446744073709551616",
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
        "9007199254740993.0",
        "0.12345678901234567890",
        "1e400",
    ] {
        let message = refused(&line(number));
        assert!(
            message.contains("\"deep\" cannot be kept exactly"),
            "{message}"
        );
        assert!(!message.contains("12345"), "{message}");
        let error = serde_json::from_str::<Update>(&line(number)).unwrap_err();
        assert!(
            error.to_string().contains("exactly") || number == "1e400",
            "{error}"
        );
    }
    let job: Job = serde_json::from_str(&line("1.5")).unwrap();
    assert_eq!(job.update, read(&line("1.5")).unwrap());
    serde_json::from_str::<Job>(&line("123456789012345678901234567890")).unwrap_err();
}

#[test]
fn update_record_key_removed_twice_is_removed_once() {
    let read = read(r#"{"conversationId":"c","target":"secure","remove":["a","b","a"]}"#).unwrap();
    assert_eq!(read.removals(), ["a", "b"]);
    let built = Update::secure("c").remove("a").remove("b").remove("a");
    assert_eq!(read, built);
}

#[test]
fn update_record_missing_fields_are_named() {
    for (record, name) in [
        (r#"{}"#, "conversationId"),
        (r#"{"attributes":{"k":"v"}}"#, "conversationId"),
        (
            r#"{"conversationId":null,"target":"conversation","attributes":{"k":"v"}}"#,
            "conversationId",
        ),
        (
            r#"{"conversationId":"c","target":"participant","attributes":{"k":"v"}}"#,
            "participant",
        ),
        (
            r#"{"conversationId":"c","target":"participant","participant":null}"#,
            "participant",
        ),
        (
            r#"{"conversationId":"c","target":"custom","attributes":{"k":"v"}}"#,
            "record",
        ),
    ] {
        let message = refused(record);
        assert!(
            message.contains(&format!("missing field `{name}`")),
            "{message}"
        );
    }
    // Without attributes there is nothing to do, which the check of the update says.
    for record in [
        r#"{"conversationId":"c","target":"conversation"}"#,
        r#"{"conversationId":"c","target":"conversation","attributes":null}"#,
    ] {
        let error = read(record).unwrap().validate().unwrap_err();
        assert_eq!(error.violations()[0].rule, Rule::NothingToDo);
    }
}

#[test]
fn update_record_fields_of_other_targets_are_refused() {
    for (fields, name, kind) in [
        (
            r#""target":"conversation","participant":"p""#,
            "participant",
            "conversation",
        ),
        (
            r#""target":"secure","participant":"p""#,
            "participant",
            "secure",
        ),
        (
            r#""target":"custom","record":"r","participant":"p""#,
            "participant",
            "custom",
        ),
        (
            r#""target":"conversation","record":"r""#,
            "record",
            "conversation",
        ),
        (r#""participant":"p","record":"r""#, "record", "participant"),
        (r#""target":"secure","record":"r""#, "record", "secure"),
    ] {
        let message = refused(&format!(
            r#"{{"conversationId":"c","attributes":{{"k":"v"}},{fields}}}"#
        ));
        assert!(
            message.contains(&format!("{name} does not go with target {kind}")),
            "{message}"
        );
    }
    // Those that the builder can misuse as well are violations, all at once.
    let misused = r#"{"conversationId":"c","participant":"p","attributes":{"k":"v"},
        "schema":"s","unlocked":true,"remove":["x"],"ifVersion":"1"}"#;
    let error = read(misused).unwrap().validate().unwrap_err();
    let keys: Vec<&str> = error.violations().iter().map(|v| v.key.as_str()).collect();
    assert_eq!(keys, ["unlocked", "schema", "remove", "ifVersion"]);
}

#[test]
fn update_record_error_never_repeats_value() {
    for record in [
        r#"{"conversationId":"c","target":"conversation","attributes":"SECRET"}"#,
        r#"{"conversationId":"c","target":"conversation","attributes":["SECRET"]}"#,
        r#"{"conversationId":"c","target":"conversation","attributes":{"k":"SECRET"},"more":"SECRET"}"#,
        r#"{"conversationId":"c","remove":{"SECRET":1}}"#,
        r#"{"conversationId":"c","target":"conversation","attributes":{"k":"SECRET"},"unlocked":"SECRET"}"#,
        r#"{"conversationId":"c","target":"conversation","attributes":{"k":"SECRET}"#,
    ] {
        let message = refused(record);
        assert!(!message.contains("SECRET"), "{message}");
    }
}

// Writing.

#[test]
fn update_record_written_omits_defaults() {
    for (update, record) in [
        (
            Update::conversation("5b2f")
                .set("b", 85)
                .set("a", "premium"),
            r#"{"conversationId":"5b2f","target":"conversation","attributes":{"a":"premium","b":85}}"#,
        ),
        (
            Update::participant("5b2f", "customer").set("k", "v"),
            r#"{"conversationId":"5b2f","target":"participant","participant":"customer","attributes":{"k":"v"}}"#,
        ),
        (
            Update::secure("5b2f")
                .set("k", "v")
                .remove("old")
                .if_version("7"),
            r#"{"conversationId":"5b2f","target":"secure","ifVersion":"7","attributes":{"k":"v"},"remove":["old"]}"#,
        ),
        (
            Update::secure("5b2f")
                .set("k", "v")
                .unlocked()
                .skip_unchanged(),
            r#"{"conversationId":"5b2f","target":"secure","attributes":{"k":"v"},"skipUnchanged":true,"unlocked":true}"#,
        ),
        (
            Update::custom("5b2f", "r")
                .schema("s")
                .set("k", json!([85.0, null])),
            r#"{"conversationId":"5b2f","target":"custom","record":"r","schema":"s","attributes":{"k":[85.0,null]}}"#,
        ),
        (
            Update::secure("5b2f").remove("k"),
            r#"{"conversationId":"5b2f","target":"secure","attributes":{},"remove":["k"]}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&update).unwrap(), record);
        assert_eq!(read(record).unwrap(), update);
    }
}

#[test]
fn update_record_of_misplaced_option_is_refused_as_the_update_is() {
    for (update, option) in [
        (Update::conversation("c").unlocked(), "unlocked"),
        (Update::custom("c", "r").unlocked(), "unlocked"),
        (Update::participant("c", "customer").schema("s"), "schema"),
        (Update::secure("c").unlocked().schema("s"), "schema"),
    ] {
        let update = update.set("k", "v");
        let line = serde_json::to_string(&update).unwrap();
        let again = read(&line).unwrap();
        assert_eq!(again, update, "{line}");
        for update in [update, again] {
            let error = update.validate().unwrap_err();
            assert_eq!(error.violations().len(), 1, "{error}");
            assert_eq!(error.violations()[0].key, option);
        }
    }
}

/// Any JSON value, deep ones included.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            attributes(inner).prop_map(Value::from),
        ]
    })
}

fn attributes(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Attributes> {
    prop::collection::btree_map(text(), value, 0..5).prop_map(|map| map.into_iter().collect())
}

/// Printable text, control characters, and the names of the fields themselves.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,12}",
        any::<String>(),
        "conversationId|attributes|target|remove|unlocked",
    ]
}

fn update() -> impl Strategy<Value = Update> {
    let target = prop_oneof![
        text().prop_map(Target::conversation),
        (text(), text()).prop_map(|(c, who)| Target::participant(c, who)),
        text().prop_map(Target::secure),
        (text(), text()).prop_map(|(c, record)| Target::custom(c, record)),
    ];
    let options = (
        prop::collection::vec(text(), 0..4),
        prop::option::of(text()),
        prop::option::of(text()),
        any::<bool>(),
        any::<bool>(),
    );
    (target, attributes(value()), options).prop_map(
        |(target, attributes, (remove, if_version, schema, skip_unchanged, unlocked))| {
            let mut update = Update::new(target);
            for (key, value) in attributes {
                update = update.set(key, value);
            }
            for key in remove {
                update = update.remove(key);
            }
            if let Some(version) = if_version {
                update = update.if_version(version);
            }
            if let Some(schema) = schema {
                update = update.schema(schema);
            }
            if skip_unchanged {
                update = update.skip_unchanged();
            }
            if unlocked {
                update = update.unlocked();
            }
            update
        },
    )
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases: if crate::fake::full() { 1_000 } else { 64 },
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn update_record_round_trips(update in update()) {
        let line = serde_json::to_string(&update).unwrap();
        prop_assert!(!line.contains('\n'), "a record is one line");
        let again: Update = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(&again, &update);
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), line);
        let by_value: Update = serde_json::from_value(serde_json::to_value(&update).unwrap()).unwrap();
        prop_assert_eq!(by_value, update);
    }

    /// What a record says, its check says as well, and neither panics.
    #[test]
    fn update_record_arbitrary_json_never_panics(
        fields in prop::collection::btree_map(
            "conversationId|target|participant|record|schema|attributes|remove|ifVersion|skipUnchanged|unlocked|x",
            prop_oneof![
                value(),
                "conversation|participant|secure|custom".prop_map(Value::from),
                attributes(value()).prop_map(Value::from),
            ],
            0..8,
        ),
    ) {
        let unknown = fields.contains_key("x");
        let named = matches!(fields.get("conversationId"), Some(Value::String(_)));
        let record = json!(fields);
        match serde_json::from_value::<Update>(record) {
            Ok(update) => {
                prop_assert!(!unknown && named);
                let _ = update.validate();
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}

// What comes back.

fn client(sandbox: &Sandbox) -> Client {
    let tiny = Duration::from_micros(10);
    Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(sandbox.url())
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .retry(
        RetryPolicy::default()
            .with_backoff(tiny, tiny)
            .with_max_conflicts(1),
    )
    .clock(ManualClock::new())
    .build()
    .unwrap()
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        let conversation = world.add("c-1");
        let record = Record {
            version: 7,
            ..Record::default()
        };
        conversation.custom.insert("r-1".into(), record);
    });
    sandbox
}

/// The record's value, and its correlation id, which is the sandbox's to choose.
#[track_caller]
fn split(record: &impl serde::Serialize) -> (Value, Option<String>) {
    let mut value = serde_json::to_value(record).unwrap();
    let fields = value.as_object_mut().expect("an object");
    let id = fields.remove("correlationId");
    (value, id.and_then(|id| id.as_str().map(str::to_owned)))
}

#[test]
fn receipt_json_form() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let first = client
        .update(&Update::conversation("c-1").set("k", 1))
        .unwrap();
    let (value, id) = split(&first);
    assert_eq!(
        value,
        json!({
            "outcome": "applied",
            "conversationId": "c-1",
            "target": "conversation",
            "version": "2",
            "previousVersion": "1",
            "attempts": 1,
            "requests": 2,
            "latencyMs": 0,
            "timestamp": "2026-01-01T00:00:00.000Z",
            "response": {"id": "c-1", "attributes": {"k": 1}, "version": "2"},
            "conversationEnded": false,
            "auditFailed": false,
            "hookPanics": 0,
        })
    );
    assert_eq!(id, first.correlation_id);
    assert!(id.is_some());

    // What is not known is null where every target may have one, and left out elsewhere.
    let participant = Update::participant("c-1", "customer")
        .set("k", 1)
        .skip_unchanged();
    client.update(&participant).unwrap();
    let (value, id) = split(&client.update(&participant).unwrap());
    assert_eq!(
        value,
        json!({
            "outcome": "unchanged",
            "conversationId": "c-1",
            "target": "participant",
            "resourceId": "c-1-customer",
            "version": null,
            "previousVersion": null,
            "attempts": 0,
            "requests": 1,
            "latencyMs": 0,
            "timestamp": "2026-01-01T00:00:00.000Z",
            "conversationEnded": false,
            "auditFailed": false,
            "hookPanics": 0,
        })
    );
    assert_eq!(id, None);

    sandbox.world(|world| {
        world.script(Fault::on_write(Action::ApplyThenStatus {
            status: 503,
            body: Value::Null,
        }));
    });
    let custom = Update::custom("c-1", "r-1").set("k", 1);
    let (value, _) = split(&client.update(&custom).unwrap());
    assert_eq!(value["outcome"], "alreadyApplied");
    assert_eq!(
        (&value["target"], &value["resourceId"]),
        (&json!("custom"), &json!("r-1"))
    );
    assert_eq!(value["version"], "8");

    let (value, _) = split(&client.read(custom.target()).unwrap());
    assert_eq!(
        value,
        json!({
            "conversationId": "c-1",
            "target": "custom",
            "resourceId": "r-1",
            "version": "8",
            "attributes": {"k": 1},
        })
    );
    // Said where the read tells it.
    let (value, _) = split(&client.read(&Target::conversation("c-1")).unwrap());
    assert_eq!(value["conversationEnded"], false);
    let (value, _) = split(&client.verify_credentials().unwrap());
    assert_eq!(
        value,
        json!({
            "organizationId": "5a4db0c5-0000-4000-9000-000000000001",
            "organizationName": "Sandbox",
            "clientId": CLIENT_ID,
            "clientName": "Sandbox client",
            "expiresAt": "2026-01-02T00:00:00.000Z",
        })
    );
}

#[test]
fn error_json_form() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let update = Update::conversation("c-1").set("k", 1);
    let interfere = || {
        Fault::on_write(Action::Interfere {
            key: "theirs".into(),
            value: json!(1),
        })
    };
    // The one that design and README show.
    sandbox.world(|world| {
        [interfere(), interfere()]
            .into_iter()
            .for_each(|s| world.script(s))
    });
    let error = client.update(&update).unwrap_err();
    let (value, id) = split(&error);
    assert_eq!(
        value,
        json!({
            "kind": "conflict",
            "message": error.to_string(),
            "httpStatus": 412,
            "code": "precondition.failed",
            "mayHaveApplied": false,
            "duringLogin": false,
            "transient": true,
            "violations": [],
        })
    );
    assert!(id.is_some() && id.as_deref() == error.correlation_id());

    // Each of the fields that are only there where they are known.
    let seen = |action: Action, times: usize| {
        sandbox.world(|world| {
            for _ in 0..times {
                world.script(Fault::on_write(action.clone()));
            }
        });
        split(&client.update(&update).unwrap_err()).0
    };
    let limited = Action::RateLimited {
        retry_after: Some("3600".into()),
    };
    let value = seen(limited, 1);
    assert_eq!(
        (&value["kind"], &value["httpStatus"]),
        (&json!("rateLimited"), &json!(429))
    );
    assert_eq!(value["retryAfterSeconds"], 3600);
    assert_eq!(value["mayHaveApplied"], false);

    let unclear = Action::Status {
        status: 503,
        body: Value::Null,
    };
    let value = seen(unclear, 4);
    assert_eq!(
        (&value["kind"], &value["mayHaveApplied"]),
        (&json!("server"), &json!(true))
    );

    sandbox.world(|world| world.permissions_missing = vec!["a:b:c".into(), "d:e:f".into()]);
    let value = split(&client.update(&update).unwrap_err()).0;
    assert_eq!(value["kind"], "forbidden");
    assert_eq!(value["missingPermissions"], json!(["a:b:c", "d:e:f"]));

    // Never sent: no status, no code.
    let error = Update::conversation("c-1").validate().unwrap_err();
    let value = serde_json::to_value(&error).unwrap();
    let fields: Vec<&String> = value.as_object().unwrap().keys().collect();
    let always = "duringLogin kind mayHaveApplied message transient violations";
    assert_eq!(fields, always.split(' ').collect::<Vec<_>>());
}

#[test]
fn error_kind_names_are_stable() {
    let names: Vec<&str> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(
        names,
        [
            "invalidInput",
            "config",
            "auth",
            "forbidden",
            "notFound",
            "conflict",
            "rateLimited",
            "timeout",
            "connect",
            "transport",
            "server",
            "protocol",
            "payloadTooLarge",
            "audit",
            "cancelled",
            "internal",
        ]
    );
    for kind in ErrorKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

#[test]
fn violations_json_form() {
    let violations = |update: Update| {
        let error = update.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        serde_json::to_value(&error).unwrap()["violations"].clone()
    };
    let one = |key: &str, rule: &str, limit: Option<u64>, found: &str| json!({"key": key, "rule": rule, "limit": limit, "found": found});
    let conversation = Update::conversation("c-1")
        .set("", 1)
        .set("k".repeat(129), 1)
        .set("a", "x".repeat(1_025))
        .set("b", -1)
        .set("c", 1_000_000_000)
        .set("d", 1.5)
        .set("e", Value::Null);
    let cut = format!("{}…", "k".repeat(64));
    assert_eq!(
        violations(conversation),
        json!([
            one("", "keyEmpty", None, "0 UTF-16 units"),
            one("a", "valueLength", Some(1_024), "1025 UTF-16 units"),
            one("b", "integerMin", None, "a negative number"),
            one("c", "integerMax", Some(999_999_999), "a larger number"),
            one("d", "integer", None, "a fraction"),
            one("e", "type", None, "null"),
            one(&cut, "keyLength", Some(128), "129 UTF-16 units"),
        ])
    );
    let rules = |update: Update| -> Vec<String> {
        let violations = violations(update);
        let list = violations.as_array().unwrap();
        list.iter()
            .map(|v| {
                assert_eq!(v.as_object().unwrap().len(), 4, "{v}");
                format!(
                    "{} {}",
                    v["key"].as_str().unwrap(),
                    v["rule"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(
        rules(Update::conversation("")),
        ["conversationId identifier", "attributes nothingToDo"]
    );
    assert_eq!(
        rules(
            Update::secure("c")
                .set("k", 1)
                .remove("k")
                .if_version(" ")
                .schema("s")
        ),
        ["schema unsupported", "k setAndRemoved", "ifVersion version"]
    );

    // Those that only a read can find.
    let sandbox = sandbox();
    sandbox.world(|world| {
        let conversation = world.conversations.get_mut("c-1").unwrap();
        conversation.state = Some("terminated".into());
    });
    let update = Update::conversation("c-1")
        .set("system.owner", "x")
        .set("k", 1);
    let error = client(&sandbox).update(&update).unwrap_err();
    assert_eq!(
        serde_json::to_value(&error).unwrap()["violations"],
        json!([one("system.owner", "systemKey", None, "terminated")])
    );
}
