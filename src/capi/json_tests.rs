//! The page about JSON against the JSON that is written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::batch::notice;
use crate::batch::{Batch, BatchOutcome, Notice};
use crate::error::{Error, ErrorKind, Rule, Violation};
use crate::report::receipt::{Answer, Identity, Status};
use crate::store::Target;
use crate::testing;
use crate::update::Update;
use crate::values::attributes::Attributes;

/// A row of the page: the types of the value, and whether the field is always there.
type Fields = BTreeMap<String, (BTreeSet<String>, bool)>;

fn page() -> BTreeMap<String, Fields> {
    let mut sections = BTreeMap::new();
    let mut section = String::new();
    for line in include_str!("../../docs/json.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split(" | ").collect();
            let name = cells[0].trim_end_matches('`').to_owned();
            let types = cells[1].split(" or ").map(str::to_owned).collect();
            let fields: &mut Fields = sections.entry(section.clone()).or_default();
            fields.insert(name, (types, cells[2] == "always"));
        }
    }
    sections
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// What the samples do not do as the section says.
fn problems(fields: &Fields, samples: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for sample in samples {
        let sample = sample.as_object().unwrap();
        for (name, value) in sample {
            seen.insert(name.clone());
            match fields.get(name) {
                None => problems.push(format!("{name} is not described")),
                Some((types, _)) if types.contains(type_of(value)) || types.contains("any") => {}
                Some(_) => problems.push(format!("{name} is {value}")),
            }
        }
        for (name, (_, always)) in fields {
            if *always && !sample.contains_key(name) {
                problems.push(format!("{name} is missing in {sample:?}"));
            }
        }
    }
    let never = fields.keys().filter(|name| !seen.contains(*name));
    problems.extend(never.map(|name| format!("{name} is never written")));
    problems
}

/// An error with nothing but its kind, and one with all there is.
fn errors() -> [Error; 2] {
    let full = Error::violated(vec![
        Violation::new("key", Rule::ValueLength, "1025 UTF-16 units"),
        Violation::new("", Rule::KeyEmpty, "an empty key"),
    ])
    .with_http_status(400)
    .with_code(Some("bad.request".into()))
    .with_correlation_id(Some("id".into()))
    .with_missing_permissions(vec!["a:b:edit".into()])
    .with_retry_after(Some(Duration::from_secs(3)))
    .with_may_have_applied(true)
    .with_login()
    .with_transient(true);
    [Error::new(ErrorKind::Server, "it failed"), full]
}

/// One or several samples of each section, the richest first.
fn samples() -> BTreeMap<&'static str, Vec<Value>> {
    let value = |value: &dyn erased::Json| value.json();
    let update = Update::secure("c-1").set("iban", "DE00").remove("old");
    let mut receipt = testing::receipt(&Update::participant("c-1", "customer").set("a", "b"));
    receipt.correlation_id = Some("id".into());
    receipt.conversation_ended = Some(true);
    receipt.verified = true;
    receipt.answer = Answer(b"{}".to_vec());
    let mut snapshot =
        testing::snapshot(&Target::participant("c-1", "customer"), Attributes::new());
    snapshot.conversation_ended = Some(false);
    let bare = testing::receipt(&update);
    let event = testing::event(&update, bare.clone());
    let mut plain = testing::receipt(&Update::participant("c-1", "customer").set("a", "b"));
    plain.resource_id = Some("p-1".into());
    let plain_event = testing::event(&Update::participant("c-1", "customer").set("a", "b"), plain);
    let mut audit = testing::audit_record(&update);
    audit.resource_id = Some("p-1".into());
    audit.attributes = Some(Attributes::new());
    audit.error_kind = Some(ErrorKind::Server);
    audit.http_status = Some(503);
    audit.may_have_applied = true;
    audit.correlation_id = Some("id".into());
    audit.settled = true;
    let mut short = testing::audit_record(&update);
    (short.version, short.previous_version) = (None, None);
    short.removed_keys.clear();
    let target = Target::participant("c-1", "customer");
    let now = SystemTime::UNIX_EPOCH;
    let outcome = |result| BatchOutcome::of(1, &target, result, now);
    let mut applied = outcome(Ok(receipt.clone()));
    applied.version = Some("2".into());
    let mut tagged = value(&applied);
    tagged["tag"] = "tag".into();
    let mut skipped = outcome(Err(errors()[0].clone()));
    (skipped.status, skipped.error) = (Status::Skipped, None);
    skipped.reason = Some("why".into());
    let platform = testing::Platform::new();
    let client = platform.client_builder().build().unwrap();
    let broken = || Err::<Update, _>(errors()[1].clone());
    let go_on = |_: &BatchOutcome| std::ops::ControlFlow::Continue(());
    let report = Batch::new(&client).run([broken()], go_on);
    let [server, _] = errors();
    let mut stopped = report.clone();
    (stopped.finished_before, stopped.failed_before) = (2, 1);
    stopped.error = Some(server.clone());
    stopped.stopped = Some(crate::batch::StopReason::Outage);
    let wait = Duration::from_secs(1);
    let notices = [
        Notice::OutageBegan {
            error: server.clone(),
        },
        Notice::Probing {
            line: 1,
            after: wait,
        },
        Notice::OutageEnded { after: wait },
        Notice::RateLimited { wait },
        Notice::OwnRateLimit { wait },
        Notice::LookAheadOff { error: server },
    ];
    let identity = Identity {
        organization_id: Some("o".into()),
        organization_name: None,
        client_id: Some("c".into()),
        client_name: None,
        expires_at: Some(now),
    };
    let participant = |end: Value| {
        let participant = json!({"id": "p-1", "purpose": "agent", "name": "Ann", "endTime": end,
            "connectedTime": "2026-01-01T00:00:00Z", "active": end.is_null()});
        let participant: crate::ParticipantInfo = serde_json::from_value(participant).unwrap();
        value(&participant)
    };
    let errors: Vec<Value> = errors().iter().map(|error| value(error)).collect();
    let violations = errors[1]["violations"].as_array().unwrap().clone();
    BTreeMap::from([
        ("Receipt", vec![value(&receipt), value(&bare)]),
        ("Snapshot", vec![value(&snapshot)]),
        ("Event", vec![value(&event), value(&plain_event)]),
        ("Audit record", vec![value(&audit), value(&short)]),
        (
            "Outcome of a line",
            vec![
                tagged,
                value(&skipped),
                value(&outcome(Err(crate::Error::new(ErrorKind::Server, "x")))),
            ],
        ),
        ("Notice", notices.iter().map(notice).collect()),
        ("Report", vec![value(&report), value(&stopped)]),
        ("Error", errors),
        ("Violation", violations),
        ("Metrics", vec![client.metrics().to_json()]),
        ("Identity", vec![value(&identity)]),
        (
            "Participants",
            vec![
                participant(json!("2026-01-01T00:10:00Z")),
                participant(json!(null)),
            ],
        ),
    ])
}

/// Serialization by a trait object, so that one closure takes all.
mod erased {
    use super::{Value, json};

    pub(super) trait Json {
        fn json(&self) -> Value;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> Value {
            json!(self)
        }
    }
}

#[test]
fn capi_page_about_json_describes_what_is_written() {
    let (page, samples) = (page(), samples());
    let sections: Vec<&str> = page.keys().map(String::as_str).collect();
    assert_eq!(sections, samples.keys().copied().collect::<Vec<_>>());
    for (section, samples) in &samples {
        let found = problems(&page[*section], samples);
        assert!(found.is_empty(), "{section}: {found:#?}");
    }
}

#[test]
fn capi_page_about_json_would_be_complained_of() {
    let mut fields = page().remove("Violation").unwrap();
    let sample = json!({"key": 1, "rule": "r", "limit": null, "more": true});
    let found = problems(&fields, std::slice::from_ref(&sample));
    assert_eq!(found.len(), 4, "{found:#?}");
    fields.clear();
    assert_eq!(problems(&fields, &[sample]).len(), 4);
}

#[test]
fn capi_page_about_json_names_every_kind_of_batch_end_and_status() {
    let text = include_str!("../../docs/json.md");
    for status in Status::ALL {
        assert!(text.contains(&format!("`{status}`")), "{status}");
    }
}
