//! Every kind of target against the sandbox: which requests are sent, what their bodies hold, and
//! what comes of conflicts, faults and misuse.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use genesys_attributes::{
    Attributes, AuditStatus, Client, ClientBuilder, Credentials, EndedPolicy, Error, ErrorKind,
    JsonLines, ManualClock, Outcome, RateLimit, Receipt, Region, RetryPolicy, Rule, Target,
    TargetKind, Update, UpdateEvent,
};
use serde_json::{Value, json};

use crate::sandbox::{
    Action, CLIENT_ID, CLIENT_SECRET, Conversation, Participant, Record, Sandbox, Scripted, Secure,
    Seen, VersionStyle,
};
use crate::server::{Resp, Server};

const MOST_BYTES: usize = 512_000;
const END: &str = "2026-01-01T00:10:00.000Z";

const C: &str = "/api/v2/conversations/c-1";

// Setting the scene.

/// With the conversation `c-1`: version 1, participants `c-1-agent` and `c-1-customer`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    sandbox
}

fn with(change: impl FnOnce(&mut Conversation)) -> Sandbox {
    let sandbox = sandbox();
    change_in(&sandbox, change);
    sandbox
}

fn change_in(sandbox: &Sandbox, change: impl FnOnce(&mut Conversation)) {
    sandbox.world(|world| change(world.conversations.get_mut("c-1").unwrap()));
}

fn with_secure() -> Sandbox {
    with(|c| c.secure = Some(secure(7, &[("old", "1"), ("kept", "k")])))
}

fn with_record() -> Sandbox {
    with(|c| {
        let mut record = Record {
            version: 7,
            divisions: vec!["d-1".into(), "d-2".into()],
            schema: "s-1".into(),
            ..Record::default()
        };
        record
            .attributes
            .insert("kept".into(), json!({"deep": [1]}));
        c.custom.insert("r-1".into(), record);
    })
}

fn secure(version: u64, attributes: &[(&str, &str)]) -> Secure {
    Secure {
        version,
        attributes: attributes
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    }
}

fn participant(id: &str, purpose: &str, ended: bool) -> Participant {
    Participant {
        id: id.into(),
        purpose: purpose.into(),
        end_time: ended.then(|| END.to_owned()),
        attributes: Default::default(),
    }
}

/// A clock of its own, so that nothing here sleeps.
fn builder(sandbox: &Sandbox) -> ClientBuilder {
    at(sandbox.url())
}

fn at(url: String) -> ClientBuilder {
    let tiny = Duration::from_micros(10);
    Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(url)
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .retry(RetryPolicy::default().with_backoff(tiny, tiny))
    .clock(ManualClock::new())
}

fn client(sandbox: &Sandbox) -> Client {
    builder(sandbox).build().unwrap()
}

fn patient(sandbox: &Sandbox, max_conflicts: u32) -> Client {
    let policy = RetryPolicy::default().with_max_conflicts(max_conflicts);
    builder(sandbox).retry(policy).build().unwrap()
}

fn customer() -> Update {
    Update::participant("c-1", "customer")
}

fn record() -> Update {
    Update::custom("c-1", "r-1")
}

fn status(status: u16) -> Action {
    let body = Value::Null;
    Action::Status { status, body }
}

/// The write is done, and the answer says 503.
fn applied_then_503() -> Scripted {
    Scripted::on_write(Action::ApplyThenStatus {
        status: 503,
        body: Value::Null,
    })
}

fn interfere(key: &str, value: impl Into<Value>) -> Scripted {
    Scripted::on_write(Action::Interfere {
        key: key.into(),
        value: value.into(),
    })
}

fn raw(status: u16, body: impl ToString) -> Action {
    let body = body.to_string();
    Action::Raw { status, body }
}

fn script(sandbox: &Sandbox, scripted: impl IntoIterator<Item = Scripted>) {
    sandbox.world(|world| scripted.into_iter().for_each(|one| world.script(one)));
}

// Looking at what happened.

/// `METHOD path status` of each API request since the last look.
fn seen(sandbox: &Sandbox) -> Vec<String> {
    let lines = sandbox
        .api_requests()
        .iter()
        .map(|one| format!("{} {} {}", one.method, one.path, one.status))
        .collect();
    sandbox.clear_requests();
    lines
}

/// The requests as `METHOD rest-of-path status`, below the conversation `c-1`.
#[track_caller]
fn assert_seen<const N: usize>(sandbox: &Sandbox, expected: [&str; N]) {
    let seen = seen(sandbox);
    let short: Vec<String> = seen.iter().map(|line| line.replace(C, "~")).collect();
    assert_eq!(short, expected);
}

/// The body of the only or last write, which must be JSON without conditions of HTTP.
#[track_caller]
fn last_write(sandbox: &Sandbox) -> Seen {
    let mut seen = sandbox.api_requests();
    seen.retain(|one| one.method != "GET");
    let last = seen.pop().expect("a write");
    assert_eq!(last.content_type.as_deref(), Some("application/json"));
    assert_eq!(last.if_match, None);
    last
}

#[track_caller]
fn assert_body(sandbox: &Sandbox, expected: Value) {
    let last = last_write(sandbox);
    // As text, so that `7` and `7.0` differ.
    let text = |value: &Value| value.to_string();
    assert_eq!(text(&last.body), text(&expected));
}

#[track_caller]
fn assert_error(result: Result<Receipt, Error>, kind: ErrorKind) -> Error {
    let error = result.expect_err("an error");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// `field: rule` of each violation.
fn violations(error: &Error) -> Vec<String> {
    error
        .violations()
        .iter()
        .map(|v| format!("{}: {}", v.key, v.rule.name()))
        .collect()
}

fn conversation_now(sandbox: &Sandbox) -> Conversation {
    sandbox.world(|world| world.conversations["c-1"].clone())
}

fn secure_now(sandbox: &Sandbox) -> Secure {
    conversation_now(sandbox).secure.expect("a secure map")
}

fn record_now(sandbox: &Sandbox) -> Record {
    conversation_now(sandbox).custom["r-1"].clone()
}

// 1. Participants.

#[test]
fn a_purpose_costs_one_get_and_none_when_it_was_resolved_before() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let receipt = client
        .update(&customer().set("crmId", "987").set("tier", "gold"))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Participant);
    assert_eq!(receipt.item.as_deref(), Some("c-1-customer"));
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
    assert_eq!(warm.item.as_deref(), Some("c-1-customer"));
    // Only what is set is sent; the platform keeps the rest.
    assert_body(&sandbox, json!({"attributes": {"tier": "silver"}}));
    assert_seen(
        &sandbox,
        ["PATCH ~/participants/c-1-customer/attributes 202"],
    );

    // Each way to say who is resolved by itself, and each conversation.
    let agent = Update::participant("c-1", "purpose:agent").set("k", "v");
    let exact = Update::participant("c-1", "purpose:customer").set("k", "v");
    sandbox.world(|world| {
        world.add("c-2");
    });
    let other = Update::participant("c-2", "customer").set("k", "v");
    for (update, item) in [
        (&agent, "c-1-agent"),
        (&exact, "c-1-customer"),
        (&other, "c-2-customer"),
    ] {
        for requests in [2, 1] {
            let receipt = client.update(update).unwrap();
            assert_eq!(receipt.item.as_deref(), Some(item));
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
fn a_participant_id_costs_one_request() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    for _ in 0..2 {
        let receipt = client
            .update(&Update::participant("c-1", "c-1-agent").set("k", "v"))
            .unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        assert_eq!(receipt.item.as_deref(), Some("c-1-agent"));
        assert_seen(&sandbox, ["PATCH ~/participants/c-1-agent/attributes 202"]);
    }
    // Nobody: final, and not looked for.
    let unknown = Update::participant("c-1", "nobody").set("k", "v");
    let error = assert_error(client.update(&unknown), ErrorKind::NotFound);
    assert_eq!((error.http_status(), error.requests()), (Some(404), 1));
    assert!(!error.may_have_applied() && !error.is_transient());
    assert_seen(&sandbox, ["PATCH ~/participants/nobody/attributes 404"]);
}

#[test]
fn who_is_meant_by_table() {
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
                    result.unwrap().item.as_deref(),
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
                    client.read(update.target()).unwrap().item.as_deref(),
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
fn participants_without_an_id_or_purpose_are_no_candidates() {
    let sandbox = sandbox();
    let read = json!({"id": "c-1", "participants": [
        {"purpose": "customer"},
        {"id": "x"},
        {"id": "y", "purpose": null},
        {"id": "c-1-customer", "purpose": "customer", "endTime": null, "attributes": null},
    ]});
    script(&sandbox, [Scripted::on_read(raw(200, read))]);
    let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
    assert_eq!(receipt.item.as_deref(), Some("c-1-customer"));
}

#[test]
fn every_answer_that_says_accepted_is_a_success() {
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
        script(&sandbox, [Scripted::on_write(action)]);
        let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.response), (1, response));
        assert!(receipt.correlation_id.is_some());
    }
    // A body that is not JSON changes nothing either.
    let sandbox = sandbox();
    script(&sandbox, [Scripted::on_write(raw(202, "Accepted"))]);
    let receipt = client(&sandbox).update(&customer().set("k", "v")).unwrap();
    assert_eq!((receipt.attempts, receipt.response), (1, None));
}

#[test]
fn integers_and_booleans_are_written_as_text() {
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
fn other_values_than_text_are_violations_all_at_once() {
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
            [
                ": keyEmpty",
                "a: integer",
                "b: type",
                "c: type",
                "d: type",
                "e: integer"
            ]
        );
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(error.requests(), 0);
    }
    assert!(sandbox.requests().is_empty());
}

#[test]
fn keys_pass_through_unchanged() {
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
fn a_remembered_participant_that_is_gone_is_resolved_anew_once() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    client.update(&customer().set("k", "1")).unwrap();
    sandbox.clear_requests();

    change_in(&sandbox, |c| c.participants[1].id = "new".into());
    let receipt = client.update(&customer().set("k", "2")).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.item.as_deref(), Some("new"));
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
fn a_participant_that_is_found_and_refused_is_not_looked_for_forever() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    client.update(&customer().set("k", "1")).unwrap();
    sandbox.clear_requests();
    script(&sandbox, [404, 404].map(|s| Scripted::on_write(status(s))));
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
    script(&sandbox, [Scripted::on_write(status(404))]);
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
fn a_conflict_on_a_target_without_a_lock_is_waited_out_within_bounds() {
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
        script(&sandbox, [409, 409].map(|s| Scripted::on_write(status(s))));
        let receipt = client(&sandbox).update(&update).unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
        assert_eq!(short(&sandbox), lines(&[409, 409, 202]));

        script(&sandbox, [409; 3].map(|s| Scripted::on_write(status(s))));
        let client = patient(&sandbox, 2);
        let error = assert_error(client.update(&update), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.http_status()), (3, Some(409)));
        assert!(error.is_transient() && !error.may_have_applied());
        assert_eq!(short(&sandbox), lines(&[409; 3]));
        assert_eq!(client.metrics().conflicts, 3);
    }
}

#[test]
fn an_unclear_write_to_a_target_without_a_lock_is_sent_again() {
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

        script(&sandbox, [503; 4].map(|s| Scripted::on_write(status(s))));
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Server);
        assert!(error.may_have_applied() && error.is_transient());
        assert_eq!(error.attempts(), 4);
    }
}

// 2. Secure attributes.

#[test]
fn a_locked_secure_write_reads_merges_and_puts_with_the_version() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let receipt = client
        .update(&Update::secure("c-1").set("iban", "IE1").set("old", 2))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Secure);
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    // The platform does not tell it, and it is not guessed.
    assert_eq!((receipt.version, receipt.item), (None, None));
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_body(
        &sandbox,
        json!({"attributes": {"iban": "IE1", "kept": "k", "old": "2"}, "version": 7}),
    );
    assert_seen(
        &sandbox,
        ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
    );
    // The whole map is needed each time.
    client.update(&Update::secure("c-1").set("x", "y")).unwrap();
    assert_body(
        &sandbox,
        json!({"attributes": {"iban": "IE1", "kept": "k", "old": "2", "x": "y"}, "version": 8}),
    );
    assert_seen(
        &sandbox,
        ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
    );
}

#[test]
fn the_first_write_of_a_secure_map_works() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let first = client.update(&Update::secure("c-1").set("a", "1")).unwrap();
    assert_eq!(first.previous_version, None);
    assert_body(&sandbox, json!({"attributes": {"a": "1"}}));
    client.update(&Update::secure("c-1").set("b", "2")).unwrap();
    assert_body(
        &sandbox,
        json!({"attributes": {"a": "1", "b": "2"}, "version": 1}),
    );
    assert_eq!(secure_now(&sandbox), secure(2, &[("a", "1"), ("b", "2")]));
}

#[test]
fn an_empty_secure_map_by_all_its_spellings() {
    for (read, version) in [
        (json!({}), None),
        (json!({"attributes": {}}), None),
        (json!({"attributes": {}, "version": null}), None),
        (json!({"attributes": null}), None),
        (json!({"attributes": null, "version": 0}), Some(0)),
        (json!({"attributes": {}, "version": 0}), Some(0)),
        (json!({"version": 4}), Some(4)),
        (
            json!({"attributes": {}, "version": u64::MAX}),
            Some(u64::MAX),
        ),
        // The schema says integer, whatever the answer's type.
        (json!({"attributes": {}, "version": "4"}), Some(4)),
    ] {
        let sandbox = sandbox();
        script(
            &sandbox,
            [
                Scripted::on_read(raw(200, &read)),
                Scripted::on_write(raw(202, "")),
            ],
        );
        let result = client(&sandbox).update(&Update::secure("c-1").set("k", "v"));
        assert!(result.is_ok(), "{read}: {result:?}");
        let mut expected = json!({"attributes": {"k": "v"}});
        if let Some(version) = version {
            expected["version"] = json!(version);
        }
        assert_body(&sandbox, expected);
    }
}

#[test]
fn an_answer_that_cannot_lock_the_write_is_a_protocol_error() {
    for (update, read) in [
        (Update::secure("c-1"), json!({"attributes": {"a": "1"}})),
        (
            Update::secure("c-1"),
            json!({"attributes": ["a"], "version": 1}),
        ),
        (Update::secure("c-1"), json!([])),
        (record(), json!({"id": "r-1", "customAttributes": {}})),
        (
            record(),
            json!({"id": "r-1", "customAttributes": {"a": 1}, "version": null}),
        ),
        (record(), json!({"customAttributes": 5, "version": 1})),
        (record(), json!("text")),
    ] {
        let sandbox = with_record();
        script(&sandbox, [Scripted::on_read(raw(200, &read))]);
        let update = update.set("k", "v");
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Protocol);
        assert_eq!(
            (error.attempts(), error.http_status()),
            (0, Some(200)),
            "{read}"
        );
        assert!(error.correlation_id().is_some());
        assert_eq!(sandbox.api_requests().len(), 1);
    }
}

/// Gateways add entity tags to whatever passes them. One is no version of these stores.
#[test]
fn an_entity_tag_is_no_version_of_a_secure_map_or_custom_record() {
    let server = Server::start(|req| match (req.method, req.path) {
        ("POST", _) => Resp::json(200, r#"{"access_token":"t","expires_in":86400}"#),
        ("GET", path) if path.ends_with("/secureattributes") => {
            Resp::json(200, r#"{"attributes":{}}"#).header("ETag", r#"W/"5d41""#)
        }
        ("GET", _) => {
            Resp::json(200, r#"{"id":"r-1","customAttributes":{}}"#).header("ETag", r#"W/"5d41""#)
        }
        ("PUT", _) => {
            assert_eq!(req.json(), json!({"attributes": {"k": "v"}}));
            Resp::empty(202)
        }
        _ => panic!("{req:?}"),
    });
    let client = at(server.url()).build().unwrap();
    assert_error(client.update(&record().set("k", "v")), ErrorKind::Protocol);
    let first = client.update(&Update::secure("c-1").set("k", "v")).unwrap();
    assert_eq!((first.previous_version, server.panics()), (None, 0));
}

#[test]
fn a_conflict_on_a_secure_map_is_read_and_merged_again() {
    let sandbox = with_secure();
    script(&sandbox, [interfere("theirs", "t"), interfere("old", "o")]);
    let client = client(&sandbox);
    let receipt = client
        .update(&Update::secure("c-1").set("ours", "u").remove("kept"))
        .unwrap();
    assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
    assert_eq!(receipt.previous_version.as_deref(), Some("9"));
    assert_body(
        &sandbox,
        json!({"attributes": {"old": "o", "ours": "u", "theirs": "t"}, "version": 9}),
    );
    assert_seen(
        &sandbox,
        [
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 409",
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 409",
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes 202",
        ],
    );
    assert_eq!(client.metrics().conflicts, 2);
}

/// A key that somebody removed in the meantime must not come back with our write.
#[test]
fn what_others_removed_stays_removed() {
    let sandbox = with_secure();
    let stale = json!({"attributes": {"gone": "g", "kept": "k", "old": "1"}, "version": 6});
    script(&sandbox, [Scripted::on_read(raw(200, stale))]);
    client(&sandbox)
        .update(&Update::secure("c-1").set("ours", "u"))
        .unwrap();
    assert_eq!(
        secure_now(&sandbox),
        secure(8, &[("kept", "k"), ("old", "1"), ("ours", "u")])
    );
}

#[test]
fn two_first_writers_of_a_secure_map_both_count() {
    let sandbox = sandbox();
    script(&sandbox, [interfere("theirs", "t")]);
    let receipt = client(&sandbox)
        .update(&Update::secure("c-1").set("ours", "u"))
        .unwrap();
    assert_eq!(receipt.previous_version.as_deref(), Some("1"));
    assert_eq!(
        secure_now(&sandbox),
        secure(2, &[("ours", "u"), ("theirs", "t")])
    );
}

#[test]
fn conflicts_are_bounded_and_leave_nothing_behind() {
    for (sandbox, update) in [
        (with_secure(), Update::secure("c-1")),
        (with_record(), record()),
    ] {
        let client = patient(&sandbox, 2);
        let events = client.subscribe(4);
        script(&sandbox, [1, 2, 3].map(|n| interfere("theirs", n)));
        let error = assert_error(client.update(&update.set("ours", "u")), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (3, 6));
        assert_eq!(error.http_status(), Some(409));
        assert!(error.is_transient() && !error.may_have_applied());
        assert!(
            !conversation_now(&sandbox)
                .custom
                .values()
                .any(|r| r.attributes.contains_key("ours"))
        );
        assert!(
            !conversation_now(&sandbox)
                .secure
                .is_some_and(|s| s.attributes.contains_key("ours"))
        );
        assert!(events.try_recv().is_none());
        let none = patient(&sandbox, 0);
        script(&sandbox, [interfere("theirs", 4)]);
        let error = assert_error(
            none.update(&Update::secure("c-1").set("k", "v")),
            ErrorKind::Conflict,
        );
        assert_eq!((error.attempts(), error.requests()), (1, 2));
    }
}

#[test]
fn an_unlocked_secure_write_is_one_patch_without_a_version() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let receipt = client
        .update(
            &Update::secure("c-1")
                .unlocked()
                .set("iban", "IE1")
                .set("n", 5),
        )
        .unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!((receipt.version, receipt.previous_version), (None, None));
    assert_body(&sandbox, json!({"attributes": {"iban": "IE1", "n": "5"}}));
    assert_seen(&sandbox, ["PATCH ~/secureattributes 202"]);
    assert_eq!(
        secure_now(&sandbox),
        secure(
            8,
            &[("iban", "IE1"), ("kept", "k"), ("n", "5"), ("old", "1")]
        )
    );
}

#[test]
fn removing_secure_attributes() {
    let sandbox = with_secure();
    let client = client(&sandbox);
    let events = client.subscribe(9);
    let update = Update::secure("c-1")
        .remove("old")
        .remove("never")
        .remove("old");
    let receipt = client.update(&update).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_body(&sandbox, json!({"attributes": {"kept": "k"}, "version": 7}));
    let event = events.try_recv().unwrap();
    assert_eq!(event.removed_keys, ["old", "never"]);
    assert!(event.updated_keys.is_empty() && event.attributes.is_empty());

    // Together with setting; keys are case-sensitive.
    client
        .update(&Update::secure("c-1").set("new", "n").remove("KEPT"))
        .unwrap();
    assert_eq!(
        secure_now(&sandbox),
        secure(9, &[("kept", "k"), ("new", "n")])
    );

    // Down to nothing, which is still a map with a version.
    client
        .update(&Update::secure("c-1").remove("kept").remove("new"))
        .unwrap();
    assert_body(&sandbox, json!({"attributes": {}, "version": 9}));
    assert_eq!(secure_now(&sandbox), secure(10, &[]));

    let nothing = Update::secure("c-1").remove("kept").skip_unchanged();
    sandbox.clear_requests();
    assert_eq!(client.update(&nothing).unwrap().outcome, Outcome::Unchanged);
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
}

#[test]
fn secure_values_stay_out_of_events_and_audit_and_errors() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for asked_for in [false, true] {
        let sandbox = with(|c| c.secure = Some(secure(7, &[("theirs", "SECRET-theirs")])));
        let audit = Lines::default();
        let events: Arc<Mutex<Vec<UpdateEvent>>> = Arc::default();
        let kept = Arc::clone(&events);
        let client = builder(&sandbox)
            .audit(JsonLines::new(audit.clone()))
            .audit_values(true)
            .secure_values_in_events(asked_for)
            .on_update(move |event| kept.lock().unwrap().push(event.clone()))
            .build()
            .unwrap();
        let locked = Update::secure("c-1")
            .set("iban", "SECRET-1")
            .remove("theirs");
        let open = Update::secure("c-1").set("iban", "SECRET-2").unlocked();
        let receipts = [&locked, &open].map(|update| client.update(update).unwrap());
        script(&sandbox, [applied_then_503()]);
        let unclear = client
            .update(&Update::secure("c-1").set("iban", "SECRET-3"))
            .unwrap();
        assert_eq!(unclear.outcome, Outcome::AlreadyApplied);
        script(&sandbox, [503; 4].map(|s| Scripted::on_write(status(s))));
        let errors = [
            client.update(&locked).unwrap_err(),
            client
                .update(&Update::secure("c-1").set("iban", json!(["SECRET-4"])))
                .unwrap_err(),
            client
                .update(&Update::secure("c-1").set("iban", "SECRET-5".repeat(70_000)))
                .unwrap_err(),
        ];

        let events = events.lock().unwrap();
        assert_eq!(events.len(), 3);
        for event in events.iter() {
            assert_eq!(event.updated_keys, ["iban"]);
            let told = [
                serde_json::to_string(event).unwrap(),
                format!("{event:?}"),
                event.webhook_payload().to_string(),
            ];
            for text in told {
                assert_eq!(text.contains("SECRET"), asked_for, "{text}");
                assert!(
                    !text.contains("theirs") || text.contains("removed"),
                    "{text}"
                );
            }
            assert_eq!(event.audit.attributes, None);
        }
        let audit = String::from_utf8(audit.0.lock().unwrap().clone()).unwrap();
        assert_eq!(audit.lines().count(), 8);
        assert!(
            audit.contains("iban") && !audit.contains("SECRET"),
            "{audit}"
        );
        for error in errors {
            let told = format!(
                "{error} {error:?} {}",
                serde_json::to_string(&error).unwrap()
            );
            assert!(!told.contains("SECRET"), "{told}");
        }
        let receipts = serde_json::to_string(&receipts).unwrap();
        assert!(!receipts.contains("SECRET"), "{receipts}");
    }
}

// 3. Custom records.

#[test]
fn a_record_is_patched_with_its_version_and_its_divisions() {
    let sandbox = with_record();
    let client = client(&sandbox);
    let receipt = client.update(&record().set("tier", 3)).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.target, TargetKind::Custom);
    assert_eq!(receipt.item.as_deref(), Some("r-1"));
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    assert_eq!((receipt.version, receipt.response), (None, None));
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
fn divisions_go_back_as_they_were_read() {
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
                Scripted::on_read(raw(200, read)),
                Scripted::on_write(raw(200, "")),
            ],
        );
        client(&sandbox).update(&record().set("k", "v")).unwrap();
        let body = last_write(&sandbox).body;
        assert_eq!(body.get("divisions"), divisions.as_ref());
    }
}

/// The divisions of the first read are as stale as its version.
#[test]
fn after_a_conflict_the_divisions_are_those_of_the_new_read() {
    for as_400 in [false, true] {
        let sandbox = with_record();
        sandbox.world(|world| world.custom_conflict_as_400 = as_400);
        let stale = json!({
            "id": "r-1", "version": 6, "divisions": ["d-old"], "customAttributes": {"tier": 1},
        });
        script(&sandbox, [Scripted::on_read(raw(200, stale))]);
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
fn a_400_that_is_no_conflict_is_final() {
    let sandbox = with_record();
    script(&sandbox, [Scripted::on_write(status(400))]);
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
        script(&sandbox, [Scripted::on_write(other.clone())]);
        let error = assert_error(
            client.update(&update.set("k", "v")),
            ErrorKind::InvalidInput,
        );
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(client.metrics().conflicts, 0);
}

#[test]
fn a_missing_record_says_what_to_give_and_is_created_with_a_schema() {
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
    assert_eq!(receipt.item.as_deref(), Some("r-1"));
    assert_eq!((receipt.version, receipt.previous_version), (None, None));
    assert_eq!(receipt.response, Some(json!({"id": "r-1"})));
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
fn a_record_that_appears_while_it_is_created_is_amended() {
    let sandbox = with_record();
    script(
        &sandbox,
        [
            Scripted::on_read(status(404)),
            Scripted::on_write(status(409)),
        ],
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
fn a_record_takes_any_json_as_it_is() {
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

// Unclear outcomes under a lock.

#[test]
fn an_unclear_write_under_a_lock_that_is_found_in_place_is_already_applied() {
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
        (
            with_record(),
            record().set("k", 1).if_version("7"),
            "GET ~/customattributes/r-1 200",
            "PATCH ~/customattributes",
            409,
        ),
        (
            with_secure(),
            Update::secure("c-1").set("k", "v").if_version("7"),
            "GET ~/secureattributes 200",
            "PUT ~/secureattributes",
            409,
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
        assert_eq!(event.audit.status, AuditStatus::AlreadyApplied);
        assert_eq!(event.previous_version, text(version(&before)));
        assert!(events.try_recv().is_none());
        assert_eq!(client.metrics().already_applied, 1);
    }
}

#[test]
fn an_unclear_write_under_a_lock_that_is_not_found_is_written_again() {
    for (sandbox, update) in [
        (with_secure(), Update::secure("c-1")),
        (with_record(), record()),
    ] {
        // Not applied, and somebody else was faster with the same key.
        script(
            &sandbox,
            [Scripted::on_write(status(503)), interfere("k", "theirs")],
        );
        let receipt = client(&sandbox)
            .update(&update.clone().set("k", "ours"))
            .unwrap();
        assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 3));
        assert_eq!(receipt.previous_version.as_deref(), Some("8"));

        // Not applied at all: the same version still holds.
        script(&sandbox, [Scripted::on_write(status(503))]);
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
        script(&sandbox, [503; 4].map(|s| Scripted::on_write(status(s))));
        let error = assert_error(
            client(&sandbox).update(&update.set("k", "x")),
            ErrorKind::Server,
        );
        assert!(error.may_have_applied() && error.attempts() == 4);
    }
}

#[test]
fn an_unclear_write_is_looked_up_even_when_no_conflict_is_allowed() {
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
fn an_unclear_first_write_is_looked_up_before_it_is_sent_again() {
    let theirs = Scripted::on_read(Action::Interfere {
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
            0 => Scripted::on_read(status(404)),
            _ => Scripted::on_read(raw(200, json!({"attributes": {}}))),
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
        let unclear = Scripted::on_write(status(503));
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
        script(&never, [503; 9].map(|s| Scripted::on_write(status(s))));
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
        let error = assert_error(count(&mut times), ErrorKind::Server);
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), times), (1, 1));
        for (scripted, outcome) in [
            (unclear.clone(), Outcome::Applied),
            (applied_then_503(), Outcome::AlreadyApplied),
        ] {
            change_in(&counted, |c| (c.secure, c.custom) = Default::default());
            script(&counted, [scripted]);
            assert_eq!(count(&mut times).unwrap().outcome, outcome);
        }
        assert_eq!(times, 3);
    }
}

// 4. Ended conversations.

#[test]
fn ended_conversations_by_policy_and_target() {
    use EndedPolicy::{Allow, Refuse, Warn};
    let by_id = || Update::participant("c-1", "c-1-customer");
    for policy in [None, Some(Allow), Some(Warn), Some(Refuse)] {
        // The update, and whether it reads what tells the end.
        for (update, reads) in [
            (customer(), true),
            (by_id(), false),
            (by_id().skip_unchanged(), true),
            (Update::conversation("c-1"), true),
            (Update::conversation("c-1").if_version("1"), false),
            (Update::secure("c-1"), false),
            (record(), false),
        ] {
            for terminated in [false, true] {
                let sandbox = with_record();
                change_in(&sandbox, |c| match terminated {
                    true => c.state = Some("terminated".into()),
                    false => c.end_time = Some(END.into()),
                });
                let builder = builder(&sandbox);
                let client = match policy {
                    None => builder,
                    Some(policy) => builder.ended_conversations(policy),
                }
                .build()
                .unwrap();
                let result = client.update(&update.clone().set("k", "v"));
                if policy == Some(Refuse) && reads {
                    let error = assert_error(result, ErrorKind::InvalidInput);
                    assert_eq!(violations(&error), ["conversationId: ended"]);
                    assert_eq!(error.violations()[0].rule, Rule::Ended);
                    assert_eq!((error.attempts(), error.requests()), (0, 1));
                    assert!(!error.is_transient());
                } else {
                    let receipt = result.unwrap();
                    assert_eq!(receipt.outcome, Outcome::Applied);
                    assert_eq!(receipt.conversation_ended, reads, "{policy:?} {update:?}");
                }
            }
        }
    }
}

#[test]
fn the_end_is_flagged_in_every_receipt_and_snapshot_whose_read_shows_it() {
    let sandbox = with(|c| c.end_time = Some(END.into()));
    let client = client(&sandbox);
    let who = Target::participant("c-1", "customer");
    for target in [&who, &Target::conversation("c-1")] {
        assert!(client.read(target).unwrap().conversation_ended);
        let unchanged = client.update_with(target, |now| {
            assert!(now.conversation_ended);
            Ok(None)
        });
        assert!(unchanged.unwrap().conversation_ended);
        let update = Update::new(target.clone()).set("k", "v");
        client.update(&update).unwrap();
        let unchanged = client.update(&update.skip_unchanged()).unwrap();
        assert_eq!(unchanged.outcome, Outcome::Unchanged);
        assert!(unchanged.conversation_ended);
    }
    assert!(
        !client
            .read(&Target::secure("c-1"))
            .unwrap()
            .conversation_ended
    );

    // It ends while a warm update settles what became of its write.
    let sandbox = with(|_| {});
    let client = builder(&sandbox).build().unwrap();
    let update = Update::conversation("c-1").set("k", 1);
    assert!(!client.update(&update).unwrap().conversation_ended);
    change_in(&sandbox, |c| c.end_time = Some(END.into()));
    script(&sandbox, [applied_then_503()]);
    let receipt = client.update(&update.set("k", 2)).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    assert!(receipt.conversation_ended, "the read shows it");
}

/// What is in place is in place: a refusal afterwards would say that nothing was written.
#[test]
fn refusing_ended_conversations_does_not_hide_what_was_applied() {
    let sandbox = sandbox();
    let client = builder(&sandbox)
        .ended_conversations(EndedPolicy::Refuse)
        .build()
        .unwrap();
    let update = Update::conversation("c-1").set("k", 1);
    client.update(&update).unwrap();
    change_in(&sandbox, |c| c.end_time = Some(END.into()));
    script(&sandbox, [applied_then_503()]);
    let receipt = client.update(&update.set("k", 2)).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    // A conflict shows the end, and then nothing is written.
    let sandbox = with(|c| c.end_time = Some(END.into()));
    let client = builder(&sandbox)
        .ended_conversations(EndedPolicy::Refuse)
        .build()
        .unwrap();
    let stale = json!({"id": "c-1", "version": "0", "attributes": {}});
    script(&sandbox, [Scripted::on_read(raw(200, stale))]);
    let error = assert_error(
        client.update(&Update::conversation("c-1").set("k", 1)),
        ErrorKind::InvalidInput,
    );
    assert_eq!(violations(&error), ["conversationId: ended"]);
    assert!(!error.may_have_applied());
    assert_eq!(conversation_now(&sandbox).version, 1);
}

// 5. Reading.

#[test]
fn each_target_is_read_by_one_request() {
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
        assert_eq!(snapshot.item.as_deref(), item, "{target:?}");
        assert_eq!(snapshot.version.as_deref(), version, "{target:?}");
        assert_eq!(Value::Object(snapshot.attributes), attributes);
        assert!(!snapshot.conversation_ended);
        assert_seen(&sandbox, [path]);
    }
    // Reading is not counted as updating.
    assert_eq!((client.metrics().calls, client.metrics().requests), (0, 6));
}

#[test]
fn reading_what_is_not_there() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let never = client.read(&Target::secure("c-1")).unwrap();
    assert_eq!((never.version, never.attributes.len()), (None, 0));
    let with_schema = record().schema("s-1");
    for target in [
        &Target::conversation("c-9"),
        &Target::participant("c-9", "customer"),
        &Target::participant("c-1", "nobody"),
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
    let misused = record().unlocked();
    for target in [
        &Target::conversation(""),
        &Target::participant("c-1", "purpose:"),
        &Target::custom("c-1", "a/b"),
        misused.target(),
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
            Scripted::on_read(raw(200, json!({"id": "c-1", "version": "4"}))),
            Scripted::on_read(raw(200, json!({"id": "c-1", "participants": []}))),
        ],
    );
    for _ in 0..2 {
        let error = client.read(&Target::conversation("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

#[test]
fn credentials_are_verified_by_asking_whose_token_it_is() {
    let sandbox = sandbox();
    let client = client(&sandbox);
    let identity = client.verify_credentials().unwrap();
    assert_eq!(identity.client_id.as_deref(), Some(CLIENT_ID));
    assert_eq!(identity.client_name.as_deref(), Some("Sandbox client"));
    assert_eq!(identity.organization_name.as_deref(), Some("Sandbox"));
    assert!(identity.organization_id.is_some());
    // The manual clock's wall time, and the sandbox's day.
    assert_eq!(
        identity.expires_at.as_deref(),
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

// 6. Size.

/// An update of `update`'s target whose whole body has exactly `bytes` bytes, `other` being what
/// the body holds besides the text.
fn of_size(update: Update, other: &Value, bytes: usize) -> Update {
    let rest = bytes - other.to_string().len();
    update.set("big", "x".repeat(rest))
}

#[test]
fn the_whole_body_is_measured_before_it_is_sent() {
    let attributes = json!({"attributes": {"big": ""}});
    let merged = json!({"attributes": {"big": "", "kept": "k", "old": "1"}, "version": 7});
    let patch = json!({
        "id": "r-1", "divisions": ["d-1", "d-2"], "version": 7, "customAttributes": {"big": ""},
    });
    let put = json!({"id": "r-1", "schemaId": "s-1", "customAttributes": {"big": ""}});
    // The update, its body without the text, and the reads before it.
    for (name, update, other, reads) in [
        (
            "participant",
            Update::participant("c-1", "c-1-agent"),
            &attributes,
            0,
        ),
        ("purpose", customer(), &attributes, 1),
        ("unlocked", Update::secure("c-1").unlocked(), &attributes, 0),
        ("secure", Update::secure("c-1"), &merged, 1),
        ("custom", record(), &patch, 1),
        ("create", record().schema("s-1"), &put, 1),
    ] {
        let sandbox = || {
            let sandbox = if name == "create" {
                with(|_| {})
            } else {
                with_record()
            };
            change_in(&sandbox, |c| {
                c.secure = with_secure().world(|w| w.conversations["c-1"].secure.clone())
            });
            sandbox
        };
        let fits = sandbox();
        let receipt = client(&fits).update(&of_size(update.clone(), other, MOST_BYTES));
        assert_eq!(receipt.unwrap().requests, reads + 1, "{name}");
        assert_eq!(last_write(&fits).raw_body.len(), MOST_BYTES, "{name}");

        let over = sandbox();
        let client = client(&over);
        let result = client.update(&of_size(update.clone(), other, MOST_BYTES + 1));
        let error = assert_error(result, ErrorKind::PayloadTooLarge);
        assert_eq!((error.attempts(), error.requests()), (0, reads), "{name}");
        assert_eq!(error.http_status(), None);
        assert!(error.to_string().contains("512000"), "{error}");
        assert!(over.api_requests().iter().all(|one| one.method == "GET"));

        // What is too large by itself is not even read for.
        over.clear_requests();
        let alone = update.set("big", "x".repeat(MOST_BYTES));
        assert_eq!(
            alone.validate().unwrap_err().kind(),
            ErrorKind::PayloadTooLarge
        );
        assert_error(client.update(&alone), ErrorKind::PayloadTooLarge);
        assert!(over.api_requests().is_empty());
    }
}

#[test]
fn a_small_change_of_a_large_secure_map_is_measured_with_it() {
    let big = "x".repeat(MOST_BYTES - 100);
    let sandbox = with(|c| c.secure = Some(secure(1, &[("big", &big)])));
    let client = client(&sandbox);
    let update = Update::secure("c-1").set("k", "y".repeat(200));
    let error = assert_error(client.update(&update), ErrorKind::PayloadTooLarge);
    assert!(!error.may_have_applied());
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
    // Removing makes room.
    client.update(&update.clone().remove("big")).unwrap();
    // Bytes count, not characters.
    let wide = Update::secure("c-1").set("k", "\u{20ac}".repeat(MOST_BYTES / 3));
    assert_error(client.update(&wide), ErrorKind::PayloadTooLarge);
}

// What all targets have in common.

/// A fresh world, an update without values, and the path of its reads, for each kind of target.
fn each_target() -> [(Sandbox, Update, &'static str); 4] {
    [
        (sandbox(), Update::conversation("c-1"), "GET ~ 200"),
        (sandbox(), customer(), "GET ~ 200"),
        (
            with_secure(),
            Update::secure("c-1"),
            "GET ~/secureattributes 200",
        ),
        (with_record(), record(), "GET ~/customattributes/r-1 200"),
    ]
}

#[test]
fn reading_computing_and_writing_on_each_target() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let target = update.target();
        let unchanged = client.update_with(target, |_| Ok(None)).unwrap();
        assert_eq!(unchanged.outcome, Outcome::Unchanged);
        assert_eq!((unchanged.attempts, unchanged.requests), (0, 1));
        assert_seen(&sandbox, [read]);

        let count = |times: &mut u32| {
            *times = 0;
            let add = |now: &genesys_attributes::Snapshot| {
                *times += 1;
                let n: u64 = match now.attributes.get("n") {
                    Some(Value::String(text)) => text.parse().unwrap(),
                    Some(number) => number.as_u64().unwrap(),
                    None => 0,
                };
                Ok(Some(Attributes::from_iter([(
                    "n".to_owned(),
                    (n + 1).into(),
                )])))
            };
            client.update_with(target, add)
        };
        let now = || {
            let attributes = client.read(target).unwrap().attributes;
            attributes["n"].to_string().trim_matches('"').to_owned()
        };
        let mut times = 0;
        for n in ["1", "2"] {
            let receipt = count(&mut times).unwrap();
            assert_eq!((receipt.outcome, receipt.requests), (Outcome::Applied, 2));
            assert_eq!((now().as_str(), times), (n, 1));
        }

        if target.kind() == TargetKind::Participant {
            // No lock: what is unclear is written again, with the values that were computed.
            script(&sandbox, [applied_then_503()]);
            assert_eq!(count(&mut times).unwrap().attempts, 2);
            assert_eq!((now().as_str(), times), ("3", 1));
        } else {
            // Somebody else is faster: computed again from the new value.
            script(&sandbox, [interfere("n", 10)]);
            assert_eq!(count(&mut times).unwrap().attempts, 2);
            assert_eq!((now().as_str(), times), ("11", 2));

            script(&sandbox, [applied_then_503()]);
            let receipt = count(&mut times).unwrap();
            assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
            assert_eq!((now().as_str(), times), ("12", 1));

            // Whether it counted is not known, so it is not counted twice.
            script(&sandbox, [applied_then_503(), interfere("n", 50)]);
            let error = assert_error(count(&mut times), ErrorKind::Conflict);
            assert!(error.may_have_applied());
            assert_eq!((now().as_str(), times), ("50", 1));
        }

        // What is computed is checked, and errors of the closure are passed on.
        sandbox.clear_requests();
        let empty = client.update_with(target, |_| Ok(Some(Attributes::new())));
        assert_eq!(
            violations(&assert_error(empty, ErrorKind::InvalidInput)),
            ["attributes: nothingToDo"]
        );
        let nameless = Attributes::from_iter([(String::new(), json!("v"))]);
        let bad = client.update_with(target, |_| Ok(Some(nameless.clone())));
        assert_eq!(
            violations(&assert_error(bad, ErrorKind::InvalidInput)),
            [": keyEmpty"]
        );
        let own = client.update_with(target, |_| Err(Error::new(ErrorKind::Internal, "own")));
        let own = assert_error(own, ErrorKind::Internal);
        assert_eq!((own.to_string().as_str(), own.requests()), ("own", 1));
        assert_seen(&sandbox, [read; 3]);
    }
}

/// There is nothing to read, but with a schema there is something to write.
#[test]
fn computing_the_first_values_of_a_record() {
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

#[test]
fn what_is_in_place_is_not_written_when_asked_not_to() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let events = client.subscribe(8);
        let update = update.set("a", "1").set("b", true).skip_unchanged();
        assert_eq!(client.update(&update).unwrap().outcome, Outcome::Applied);
        assert!(events.try_recv().is_some());
        sandbox.clear_requests();
        let receipt = client.update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::Unchanged);
        assert_eq!((receipt.attempts, receipt.requests), (0, 1));
        assert_eq!(receipt.version, receipt.previous_version);
        assert_seen(&sandbox, [read]);
        assert!(events.try_recv().is_none());
        // One that differs is enough, and keys are not the same in another case.
        for other in [
            update.clone().set("b", false),
            update.clone().set("A", "1"),
            update.clone().set("a", ""),
        ] {
            assert_eq!(client.update(&other).unwrap().outcome, Outcome::Applied);
            client.update(&update).unwrap();
        }
        // After a conflict the new values count.
        let wanted = update.set("a", "2").set("b", "2");
        if wanted.target().kind() != TargetKind::Participant {
            client.update(&wanted.clone().set("a", "1")).unwrap();
            script(&sandbox, [interfere("a", "2")]);
            let receipt = client.update(&wanted).unwrap();
            assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Unchanged, 1));
        }
    }
    let sandbox = with_secure();
    let open = Update::secure("c-1")
        .unlocked()
        .set("old", "1")
        .skip_unchanged();
    let receipt = client(&sandbox).update(&open).unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_seen(&sandbox, ["GET ~/secureattributes 200"]);
    // Nothing is in place of a record that does not exist.
    let new = Update::custom("c-1", "r-9")
        .schema("s-1")
        .set("k", 1)
        .skip_unchanged();
    assert_eq!(
        client(&sandbox).update(&new).unwrap().outcome,
        Outcome::Applied
    );
}

#[test]
fn a_given_version_is_all_or_nothing() {
    for (sandbox, update, read) in each_target() {
        let client = client(&sandbox);
        let update = update.set("k", "v");
        let kind = update.target().kind();
        let current = match kind {
            TargetKind::Participant => {
                let error = assert_error(
                    client.update(&update.if_version("1")),
                    ErrorKind::InvalidInput,
                );
                assert_eq!(violations(&error), ["ifVersion: unsupported"]);
                assert!(sandbox.requests().is_empty());
                continue;
            }
            TargetKind::Conversation => "1",
            _ => "7",
        };
        for wrong in ["0", "6", "8", "07", "\"7\"", "x"] {
            let before = conversation_now(&sandbox);
            let error = assert_error(
                client.update(&update.clone().if_version(wrong)),
                ErrorKind::Conflict,
            );
            assert!(
                !error.is_transient() && !error.may_have_applied(),
                "{error}"
            );
            assert_eq!(conversation_now(&sandbox), before);
            if kind != TargetKind::Conversation {
                // Seen by the read that is made anyway.
                assert_eq!(error.attempts(), 0);
                assert_seen(&sandbox, [read]);
                assert!(error.to_string().contains('7'), "{error}");
            }
        }
        let receipt = client.update(&update.clone().if_version(current)).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!(receipt.previous_version.as_deref(), Some(current));

        // Somebody is faster between the read and the write: final, and nothing of ours is there.
        let now = client.read(update.target()).unwrap().version.unwrap();
        script(&sandbox, [interfere("theirs", 1)]);
        let late = update.clone().if_version(now).set("late", "l");
        let error = assert_error(client.update(&late), ErrorKind::Conflict);
        // At once: without another look.
        let reads = u32::from(kind != TargetKind::Conversation);
        assert_eq!((error.attempts(), error.requests()), (1, reads + 1));
        assert!(!error.is_transient() && !error.may_have_applied());
        let now = client.read(update.target()).unwrap();
        assert!(!now.attributes.contains_key("late") && now.attributes.contains_key("theirs"));
    }
    // There is no version to be at.
    let sandbox = sandbox();
    for update in [Update::secure("c-1"), record().schema("s-1")] {
        let update = update.set("k", "v").if_version("1");
        let error = assert_error(client(&sandbox).update(&update), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (0, 1));
    }
    let open = Update::secure("c-1")
        .unlocked()
        .set("k", "v")
        .if_version("1");
    let error = assert_error(client(&sandbox).update(&open), ErrorKind::InvalidInput);
    assert_eq!(violations(&error), ["ifVersion: unsupported"]);
    for version in ["", "a b", "a\"b", "\u{e9}"] {
        let update = Update::secure("c-1").set("k", "v").if_version(version);
        let error = update.validate().unwrap_err();
        assert_eq!(violations(&error), ["ifVersion: version"]);
    }
}

#[test]
fn options_that_do_not_go_with_a_target_are_violations() {
    let conversation = || Update::conversation("c-1").set("k", "v");
    let participant = || customer().set("k", "v");
    let secure = || Update::secure("c-1").set("k", "v");
    let custom = || record().set("k", "v");
    let sandbox = sandbox();
    let client = client(&sandbox);
    for (update, expected) in [
        (conversation().remove("x"), &["remove: unsupported"][..]),
        (participant().remove("x"), &["remove: unsupported"]),
        (custom().remove("x"), &["remove: unsupported"]),
        (secure().unlocked().remove("x"), &["remove: unsupported"]),
        (secure().remove("k"), &["k: setAndRemoved"]),
        (conversation().unlocked(), &["unlocked: unsupported"]),
        (participant().unlocked(), &["unlocked: unsupported"]),
        (custom().unlocked(), &["unlocked: unsupported"]),
        (conversation().schema("s"), &["schema: unsupported"]),
        (participant().schema("s"), &["schema: unsupported"]),
        (secure().schema("s"), &["schema: unsupported"]),
        (custom().schema(""), &["schema: identifier"]),
        (custom().schema("a b"), &["schema: identifier"]),
        (participant().if_version("1"), &["ifVersion: unsupported"]),
        (
            secure().unlocked().if_version("1"),
            &["ifVersion: unsupported"],
        ),
        (Update::secure("c-1"), &["attributes: nothingToDo"]),
        (record(), &["attributes: nothingToDo"]),
        (customer(), &["attributes: nothingToDo"]),
        (
            Update::custom("c-1", "a/b").set("k", 1),
            &["record: identifier"],
        ),
        (
            Update::participant("c-1", "").set("k", 1),
            &["participant: identifier"],
        ),
        (
            Update::participant("c-1", "purpose:").set("k", 1),
            &["participant: identifier"],
        ),
        (
            Update::participant("c-1", "purpose:a b").set("k", 1),
            &["participant: identifier"],
        ),
        // All at once.
        (
            Update::participant("a?b", "c d")
                .unlocked()
                .schema("s")
                .remove("k")
                .if_version("1"),
            &[
                "conversationId: identifier",
                "participant: identifier",
                "unlocked: unsupported",
                "schema: unsupported",
                "remove: unsupported",
                "ifVersion: unsupported",
            ],
        ),
    ] {
        let error = assert_error(client.update(&update), ErrorKind::InvalidInput);
        assert_eq!(violations(&error), expected, "{error}");
        assert_eq!(error.requests(), 0);
        assert_eq!(violations(&update.validate().unwrap_err()), expected);
    }
    assert!(sandbox.requests().is_empty());
    assert_eq!(client.metrics().validation_errors, 23);
}

#[test]
fn identifiers_are_percent_encoded_in_every_path() {
    let id = "c:1%2F\u{e9}+&=;@!~._-";
    let path = "/api/v2/conversations/c%3A1%252F%C3%A9%2B%26%3D%3B%40%21~._-";
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        let conversation = world.add(id);
        conversation
            .participants
            .push(participant("p:%\u{e9}", "ivr", false));
        let record = Record {
            version: 1,
            ..Record::default()
        };
        conversation.custom.insert("r:%\u{e9}".into(), record);
    });
    let client = client(&sandbox);
    for (update, expected) in [
        (
            Update::conversation(id),
            ["GET ~ 200", "PATCH ~/attributes 200"],
        ),
        (
            Update::participant(id, "purpose:ivr"),
            [
                "GET ~ 200",
                "PATCH ~/participants/p%3A%25%C3%A9/attributes 202",
            ],
        ),
        (
            Update::secure(id),
            ["GET ~/secureattributes 200", "PUT ~/secureattributes 202"],
        ),
        (
            Update::custom(id, "r:%\u{e9}"),
            [
                "GET ~/customattributes/r%3A%25%C3%A9 200",
                "PATCH ~/customattributes 200",
            ],
        ),
    ] {
        let receipt = client.update(&update.set("k", "v")).unwrap();
        assert_eq!(receipt.conversation_id, id);
        let seen = seen(&sandbox);
        let short: Vec<String> = seen.iter().map(|line| line.replace(path, "~")).collect();
        assert_eq!(short, expected);
    }
    // The record's id travels in the body as it is.
    client
        .update(&Update::custom(id, "r:%\u{e9}").set("k", 1))
        .unwrap();
    assert_eq!(last_write(&sandbox).body["id"], "r:%\u{e9}");
}

#[test]
fn the_brief_s_target_beside_the_others() {
    // One conversation, all its stores, one client: what is remembered of one is not of another.
    let sandbox = with_record();
    sandbox.world(|world| world.version_style = VersionStyle::Number);
    let client = client(&sandbox);
    for requests in [2, 1] {
        let receipt = client
            .update(&Update::conversation("c-1").set("k", 1))
            .unwrap();
        assert_eq!(receipt.requests, requests);
        assert!(receipt.version.is_some() && receipt.item.is_none());
        assert_eq!(
            client.update(&customer().set("k", 1)).unwrap().requests,
            requests
        );
        assert_eq!(
            client
                .update(&Update::secure("c-1").set("k", 1))
                .unwrap()
                .requests,
            2
        );
        assert_eq!(client.update(&record().set("k", 1)).unwrap().requests, 2);
    }
    let tags: Vec<Option<String>> = sandbox
        .api_requests()
        .into_iter()
        .filter(|one| one.path == format!("{C}/attributes"))
        .map(|one| one.if_match)
        .collect();
    assert_eq!(tags, [Some("\"1\"".to_owned()), Some("\"2\"".to_owned())]);
    let now = conversation_now(&sandbox);
    assert_eq!((now.version, record_now(&sandbox).version), (3, 9));
    assert_eq!(now.secure.unwrap().version, 2);
}
