//! What every public type promises: no value in `Debug`. The list of types is read from the
//! sources, so that a new one is not forgotten here.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use genesys_attributes::audit::{
    AuditFile, AuditMode, AuditPhase, AuditRecord, JsonLines, LogSink,
};
use genesys_attributes::batch::{Journal, Notice, Retry, StopReason, Waiting};
use genesys_attributes::clock::{ManualClock, SystemClock};
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Method, Request, Response, TransportError};
use genesys_attributes::validate::{Field, Schema, ValidationLimits};
use genesys_attributes::{
    Attributes, Batch, Cancel, Client, Credentials, Edit, EndedPolicy, Error, ErrorKind, Outcome,
    Participant, RateLimit, Region, RetryPolicy, Settings, Status, TargetKind, Timeouts, Update,
    UpdateEvent, UpdateOptions,
};
use serde_json::json;

const VALUE: &str = "value-Gk52wR";
const SECRET: &str = "secret-Pn83xT";

/// The types of `Debug` texts that were looked at, by name.
#[derive(Default)]
struct Seen(BTreeSet<&'static str>);

impl Seen {
    #[track_caller]
    fn check(&mut self, name: &'static str, thing: &dyn Debug) {
        let text = format!("{thing:?}\n{thing:#?}");
        for hidden in [VALUE, SECRET] {
            assert!(!text.contains(hidden), "{name}: {hidden} is in {text}");
        }
        self.0.insert(name);
    }
}

/// A transport that answers reads and writes of every store, with the value in it.
fn answer(request: &Request) -> Result<Response, TransportError> {
    let attributes = json!({ "k": VALUE });
    let body = match request.method() {
        Method::Post => json!({ "access_token": SECRET, "expires_in": 3600 }),
        _ if request.url().contains("tokens/me") => json!({ "organization": { "id": "o" } }),
        _ => json!({
            "version": 7, "attributes": attributes, "customAttributes": attributes,
            "participants": [{ "id": "p-1", "purpose": "customer", "attributes": attributes }],
        }),
    };
    Ok(Response::new(200).with_body(body.to_string()))
}

/// What a batch tells when nothing answers.
fn notices() -> Vec<Notice> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let client = Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new("id", SECRET),
    )
    .transport(|_: &Request| {
        let refused = Error::new(ErrorKind::Connect, "refused");
        Err(TransportError::new(refused, Sent::No))
    })
    .clock(ManualClock::new())
    .build()
    .unwrap();
    let update = Update::conversation("c-1").set("k", VALUE);
    Batch::new(&client)
        .max_outage(Duration::from_secs(30))
        .on_notice(move |notice| heard.lock().unwrap().push(notice.clone()))
        .run([update], |_| ControlFlow::Continue(()));
    let told = told.lock().unwrap().clone();
    assert!(told.len() > 1, "{told:?}");
    told
}

/// An envelope as a sink gets it, and the report of a run that met an orphan.
#[cfg(feature = "forward")]
fn forwarded() -> (String, genesys_attributes::forward::ForwardReport) {
    use genesys_attributes::forward::{Envelope, Forwarder, Sink, Undelivered};

    struct Shown(Arc<Mutex<String>>);
    impl Sink for Shown {
        fn hand_over(&mut self, envelope: &Envelope<'_>) -> Result<(), Undelivered> {
            *self.0.lock().unwrap() = format!("{envelope:?}");
            Ok(())
        }
    }
    let folder = std::env::temp_dir().join(format!("ga-debug-log-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("audit.jsonl");
    let record = |id: &str, phase: &str, status: &str| {
        json!({
            "id": id, "phase": phase, "timestamp": "2026-01-01T00:00:00.000Z", "conversationId": "c-1",
            "target": "participant", "resourceId": "p-1", "status": status, "updatedKeys": ["k"],
            "attributes": { "k": VALUE }, "attempts": 1, "requests": 1, "latencyMs": 1,
        })
    };
    let lines = [
        record("1", "intent", "pending"),
        record("1", "outcome", "applied"),
        record("2", "intent", "pending"),
    ];
    std::fs::write(&log, lines.map(|line| format!("{line}\n")).concat()).unwrap();
    let shown = Arc::default();
    let report = Forwarder::new(&log, Shown(Arc::clone(&shown))).run(&Cancel::new());
    std::fs::remove_dir_all(&folder).unwrap();
    (shown.lock().unwrap().clone(), report.unwrap())
}

/// The names of the public structs and enums below `folder`.
fn declared(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Test data of the feature `testing` may be shown; C and the program have no public types.
        if path.is_dir() && !matches!(name.as_str(), "testing" | "capi" | "cli") {
            declared(&path, found);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines().map(str::trim_start) {
                let item = ["pub struct ", "pub enum "]
                    .iter()
                    .find_map(|start| line.strip_prefix(start));
                if let Some(rest) = item {
                    let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap();
                    // A macro declares what its caller names.
                    if end > 0 {
                        found.insert(rest[..end].to_owned());
                    }
                }
            }
        }
    }
}

#[test]
fn debug_of_every_public_type_holds_no_value() {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let record_seen = seen.clone();
    let hook_seen = seen.clone();
    let builder = || {
        Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new("id", SECRET),
        )
        .transport(answer)
        .clock(ManualClock::new())
        .secure_values_in_events(true)
        .audit_values(true)
    };
    let audit = move |record: &AuditRecord| {
        let mut seen = record_seen.lock().unwrap();
        seen.check("AuditRecord", record);
        Ok(())
    };
    let hook = move |event: &UpdateEvent| {
        let mut seen = hook_seen.lock().unwrap();
        seen.check("UpdateEvent", event);
    };
    seen.lock().unwrap().check("ClientBuilder", &builder());
    let client = builder().audit(audit).on_update(hook).build().unwrap();
    let subscription = client.subscribe(8);
    let updates = [
        Update::conversation("c").set("k", VALUE),
        Update::participant("c", "customer").set("k", VALUE),
        Update::secure("c").set("k", VALUE),
        Update::custom("c", "r").set("k", VALUE),
    ];
    let mut outcomes = Vec::new();
    for update in &updates {
        let receipt = client.update(update).unwrap();
        let snapshot = client.read(update.target()).unwrap();
        assert_eq!(snapshot.attributes["k"], VALUE);
        let mut seen = seen.lock().unwrap();
        seen.check("Update", update);
        seen.check("Target", update.target());
        seen.check("Receipt", &receipt);
        seen.check("Snapshot", &snapshot);
    }
    seen.lock().unwrap().check("Batch", &Batch::new(&client));
    let report = Batch::new(&client).run(updates.to_vec(), |outcome| {
        outcomes.push(outcome.clone());
        std::ops::ControlFlow::Continue(())
    });
    let delivery = subscription.try_recv().unwrap();

    let journal = std::env::temp_dir().join(format!("ga-debug-{}.jsonl", std::process::id()));
    let kept = Batch::new(&client).journal(&journal);
    let progress = kept.progress();
    kept.run(updates.to_vec(), |_| ControlFlow::Continue(()));

    let lock = &mut *seen.lock().unwrap();
    let mut check = |name, thing: &dyn Debug| lock.check(name, thing);
    check("Delivery", &delivery);
    check("Subscription", &subscription);
    check("IntoIter", &client.subscribe(1).into_iter());
    outcomes
        .iter()
        .for_each(|outcome| check("BatchOutcome", outcome));
    check("BatchReport", &report);
    check("ProgressHandle", &progress);
    check("Progress", &progress.look());
    check("Waiting", &Waiting::Pause(Duration::ZERO));
    check("Retry", &Retry::Changed);
    check("JournalSummary", &Journal::summary(&journal).unwrap());
    check(
        "FailedLines",
        &Journal::summary(&journal).unwrap().failed_by_kind,
    );
    // A run has it, and callers do not.
    check("Journal", &"only read from");
    std::fs::remove_file(&journal).unwrap();
    std::fs::remove_file(journal.with_extension("jsonl.lock")).unwrap();
    check("Client", &client);
    check("Identity", &client.verify_credentials().unwrap());
    check("ParticipantInfo", &client.participants("c").unwrap());
    check("Metrics", &client.metrics());
    check("Latency", &client.metrics().latency);
    check("Credentials", &Credentials::access_token(SECRET));
    let settings = format!(
        r#"{{"region": "eu-west-1", "clientId": "i", "clientSecret": "{SECRET}",
            "proxy": "http://u:{SECRET}@h:1", "schema": {{"keys": {{"k": {{"oneOf": ["{VALUE}"]}}}}}}}}"#
    );
    check("Settings", &Settings::from_json(&settings).unwrap());
    let field = Field::any().one_of([VALUE]);
    check("Field", &field);
    let schema = Schema::new().key("k", field);
    check("Schema", &schema);
    let refused = Update::conversation("c").set("k", json!([VALUE]));
    let error = schema.validate(&refused).unwrap_err();
    check("Violation", &error.violations()[0]);
    check("Rule", &error.violations()[0].rule);
    check(
        "TransportError",
        &TransportError::new(error.clone(), Sent::No),
    );
    check("Error", &error);
    check("Edit", &Edit::new().set("k", VALUE).remove("old"));
    let attributes = Attributes::from_iter([("k".to_owned(), VALUE.into())]);
    check("Edit", &Edit::from(attributes));
    check(
        "Response",
        &Response::new(200).with_header("H", SECRET).with_body(VALUE),
    );
    // A request is seen by a transport only.
    let looked = Arc::new(Mutex::new(Seen::default()));
    let transport_seen = looked.clone();
    let looking = builder().transport(move |request: &Request| {
        transport_seen.lock().unwrap().check("Request", request);
        answer(request)
    });
    looking.build().unwrap().update(&updates[2]).unwrap();
    assert!(looked.lock().unwrap().0.contains("Request"));
    check("Request", &"seen above");
    check("JsonLines", &JsonLines::new(VALUE.as_bytes().to_vec()));
    check("LogSink", &LogSink);
    check("ManualClock", &ManualClock::new());
    check("SystemClock", &SystemClock);
    check("Cancel", &Cancel::new());
    check("UpdateOptions", &UpdateOptions::new().unique());
    check("Participant", &Participant::customer());
    check("Region", &Region::parse("eu-west-1").unwrap());
    check("RateLimit", &RateLimit::default());
    check("RetryPolicy", &RetryPolicy::default());
    check("Timeouts", &Timeouts::default());
    check("ValidationLimits", &ValidationLimits::default());
    check("TargetKind", &TargetKind::ALL);
    check("ErrorKind", &ErrorKind::ALL);
    check("Status", &Status::ALL);
    check("Outcome", &Outcome::Applied);
    check("Sent", &Sent::Maybe);
    check("Method", &Method::Get);
    check("AuditPhase", &AuditPhase::Intent);
    check("AuditMode", &AuditMode::Strict);
    check("EndedPolicy", &EndedPolicy::Warn);
    check("StopReason", &StopReason::Auth);
    for notice in notices() {
        check("Notice", &notice);
    }
    let log = std::env::temp_dir().join(format!("ga-debug-{}", std::process::id()));
    check("AuditFile", &AuditFile::open(&log).unwrap());
    std::fs::remove_file(&log).unwrap();
    #[cfg(feature = "forward")]
    {
        use genesys_attributes::forward::{EnvelopeLines, Forwarder, Undelivered};
        use genesys_attributes::webhook::Webhook;

        let lines = || EnvelopeLines::new(VALUE.as_bytes().to_vec());
        check("EnvelopeLines", &lines());
        check("Forwarder", &Forwarder::new("log", lines()));
        let error = Error::new(ErrorKind::Connect, "refused");
        let answer = VALUE.to_owned();
        check("Undelivered", &Undelivered::Later { error, answer });
        let webhook = Webhook::new("https://example.com").unwrap();
        check("Webhook", &webhook.header("X-Key", SECRET).unwrap());
        let (envelope, report) = forwarded();
        assert!(
            !envelope.contains(VALUE) && !report.orphans.is_empty(),
            "{envelope}"
        );
        check("Envelope", &envelope);
        check("Orphan", &report.orphans[0]);
        check("ForwardReport", &report);
    }
    #[cfg(not(feature = "forward"))]
    for name in [
        "Envelope",
        "EnvelopeLines",
        "ForwardReport",
        "Forwarder",
        "Orphan",
        "Undelivered",
        "Webhook",
    ] {
        check(name, &"not built");
    }

    let mut all = BTreeSet::new();
    declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let unseen: Vec<_> = all
        .iter()
        .filter(|name| !lock.0.contains(name.as_str()))
        .collect();
    assert!(
        unseen.is_empty(),
        "types whose Debug was not looked at: {unseen:?}"
    );
    assert!(all.len() > 40, "{all:?}");
}
