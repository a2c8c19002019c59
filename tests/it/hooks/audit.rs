//! Audit records: intents and outcomes, failing sinks, and values that stay out.

use super::*;

#[test]
fn audit_intent_has_one_outcome_and_refusal_has_one_alone() {
    for (name, script, update, expected, begun) in ways() {
        let fake = Fake::named(name);
        script(&fake);
        let sink = Sink::new();
        let client = fake.builder().audit(sink.clone()).build().unwrap();
        let result = client.update(&update);
        let records = sink.records();
        if !begun {
            let Err(error) = result else {
                assert_eq!(records, [], "{name}");
                continue;
            };
            let [refused] = &records[..] else {
                panic!("{name}: {records:#?}")
            };
            assert_eq!(refused.phase, AuditPhase::Outcome, "{name}");
            assert_eq!(refused.status, Status::Refused, "{name}");
            assert_eq!(refused.error_kind, expected.err(), "{name}");
            assert_eq!(refused.http_status, error.http_status(), "{name}");
            assert_eq!((refused.attempts, refused.requests), (0, error.requests()));
            assert!(!refused.may_have_applied && !refused.id.is_empty());
            assert_eq!(refused.conversation_id, "c-1");
            let keys: Vec<&str> = update.attributes().keys().map(String::as_str).collect();
            assert_eq!(refused.updated_keys, keys);
            continue;
        }
        let [intent, outcome] = &records[..] else {
            panic!("{name}: {records:#?}")
        };
        assert_eq!(intent.phase, AuditPhase::Intent);
        assert_eq!(intent.status, Status::Pending);
        assert_eq!(outcome.phase, AuditPhase::Outcome);
        assert_eq!(intent.id, outcome.id);
        assert!(!intent.id.is_empty());
        for record in &records {
            assert_eq!(record.conversation_id, "c-1");
            assert_eq!(record.target.name(), "conversation");
            assert_eq!(record.updated_keys, ["tier"]);
            assert_eq!(record.attributes, None);
        }
        assert_eq!(intent.previous_version.as_deref(), Some("7"));
        assert_eq!(intent.version, None);
        match result {
            Ok(receipt) => {
                let status = match receipt.outcome {
                    Outcome::AlreadyApplied => Status::AlreadyApplied,
                    _ => Status::Applied,
                };
                assert_eq!(outcome.status, status);
                assert_eq!(outcome.version.as_deref(), receipt.version.as_deref());
                assert_eq!(
                    outcome.previous_version.as_deref(),
                    receipt.previous_version.as_deref()
                );
                assert_eq!(outcome.attempts, receipt.attempts);
                assert_eq!(outcome.requests, receipt.requests);
                assert_eq!(outcome.error_kind, None);
                assert!(!receipt.audit_failed);
            }
            Err(error) => {
                assert_eq!(outcome.status, Status::Failed);
                assert_eq!(outcome.error_kind, expected.err());
                assert_eq!(outcome.http_status, error.http_status());
                assert_eq!(outcome.may_have_applied, error.may_have_applied());
                assert_eq!(outcome.attempts, error.attempts());
                assert_eq!(outcome.requests, error.requests());
            }
        }
    }
}

#[test]
fn secure_values_are_left_out_unless_asked_for() {
    for (in_events, in_audit) in [(false, false), (true, false), (false, true), (true, true)] {
        let fake = Fake::new();
        fake.token()
            .get_body(json!({ "attributes": { "old": "older-5ecret" }, "version": 3 }))
            .answer("PUT", json_response(200, &json!({ "version": 4 })));
        let (events, sink) = (Events::new(), Sink::new());
        let client = fake
            .builder()
            .secure_values_in_events(in_events)
            .audit_values(in_audit)
            .on_update(events.hook())
            .audit(sink.clone())
            .build()
            .unwrap();
        let subscription = client.subscribe(1);
        client
            .update(
                &Update::secure("c-1")
                    .set("iban", "new-5ecret")
                    .remove("old"),
            )
            .unwrap();
        assert_eq!(
            fake.sent("PUT")[0].body,
            json!({ "attributes": { "iban": "new-5ecret" }, "version": 3 })
        );

        let event = events.all().remove(0);
        assert_eq!(*subscription.try_recv().unwrap().event, event);
        assert_eq!(event.updated_keys(), ["iban"]);
        assert_eq!(*event.removed_keys, ["old"]);
        assert_eq!(event.audit().attributes, None);
        let shown = format!(
            "{event:?} {} {}",
            serde_json::to_string(&event).unwrap(),
            event.webhook_payload()
        );
        assert!(!shown.contains("older-5ecret"));
        assert_eq!(shown.contains("new-5ecret"), in_events);
        let payload = &event.webhook_payload()["payload"];
        if in_events {
            assert_eq!(
                payload["updatedAttributes"],
                json!({ "iban": "new-5ecret" })
            );
        } else {
            assert_eq!(payload["updatedAttributes"], json!({}));
            assert_eq!(payload["updatedKeys"], json!(["iban"]));
        }

        // Not even when values are audited.
        let audited = format!("{:?}", sink.records());
        assert!(!audited.contains("5ecret"), "{audited}");
        assert!(audited.contains("iban"));
    }
}

#[test]
fn audit_values_are_left_out_unless_asked_for() {
    for asked in [false, true] {
        let fake = Fake::new();
        fake.token().get(7).patch(8);
        let sink = Sink::new();
        let client = fake
            .builder()
            .audit_values(asked)
            .audit(sink.clone())
            .build()
            .unwrap();
        client.update(&update()).unwrap();
        let records = sink.records();
        assert_eq!(records.len(), 2);
        for record in records {
            let expected: Option<Attributes> =
                asked.then(|| [("tier".to_owned(), json!("gold"))].into_iter().collect());
            assert_eq!(record.attributes.as_ref(), expected.as_ref());
            let json = serde_json::to_string(&record).unwrap();
            assert_eq!(json.contains("gold"), asked);
        }
    }
}

#[test]
fn audit_ids_are_unique_across_clients() {
    let sink = Sink::new();
    let fake = Fake::new();
    let mut clients = Vec::new();
    // On one clock that stands still.
    for _ in 0..2 {
        fake.token().get(7).patch(8).patch(9);
        let client = fake.builder().audit(sink.clone()).build().unwrap();
        client.update(&update()).unwrap();
        client.update(&update()).unwrap();
        clients.push(client);
    }
    let ids: Vec<_> = sink.records().iter().map(|r| r.id.clone()).collect();
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), unique.len()), (8, 4));
}

/// Updates of another client in a sink: what it writes has an intent and one outcome, however it ends.
#[test]
fn audit_update_inside_of_another_clients_sink_has_both_records_or_none() {
    for (status, expected) in [
        (202, Status::Applied),
        (403, Status::Failed),
        (500, Status::Failed),
    ] {
        let inner = Fake::named(status.to_string());
        let records = Sink::new();
        inner.token().status("PATCH", status);
        let policy = RetryPolicy::default().with_max_attempts(1);
        let builder = inner.builder().retry(policy);
        let other = builder.audit(records.clone()).build().unwrap();
        let asked = AtomicBool::new(false);
        let sink = move |_: &AuditRecord| {
            if !asked.swap(true, Ordering::SeqCst) {
                let _ = other.update(&Update::participant("c-2", PARTICIPANT).set("k", "v"));
                // Refused before anything is written.
                let _ = other.update(&Update::participant("c-2", PARTICIPANT));
            }
            Ok(())
        };
        let fake = Fake::named(status.to_string());
        fake.token().get(7).patch(8);
        let client = fake.builder().audit(sink).build().unwrap();
        client.update(&update()).unwrap();
        let found = records.records();
        let found: Vec<_> = found.iter().map(|r| (r.phase, r.status)).collect();
        assert_eq!(
            found,
            [
                (AuditPhase::Intent, Status::Pending),
                (AuditPhase::Outcome, expected)
            ]
        );
    }
}

const PARTICIPANT: &str = "5b2f0c1e-0000-4000-8000-0000000000aa";

#[test]
fn audit_records_are_json_lines() {
    let path = std::env::temp_dir().join(format!("it-hooks-audit-{}.jsonl", std::process::id()));
    let fake = Fake::new();
    fake.token().get(7).patch(8).takes(ms(41));
    let file = std::fs::File::create(&path).unwrap();
    let client = fake.builder().audit(JsonLines::new(file)).build().unwrap();
    client.update(&update()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["phase"], "intent");
    assert_eq!(lines[0]["status"], "pending");
    assert_eq!(lines[1]["phase"], "outcome");
    assert_eq!(lines[1]["latencyMs"], 41);
    assert_eq!(lines[0]["id"], lines[1]["id"]);
}

#[test]
fn audit_strict_intent_failure_prevents_write() {
    for how in [Error, Panic] {
        let fake = Fake::named(format!("{how:?}"));
        fake.token().get(7);
        let (sink, events) = (Sink::failing(AuditPhase::Intent, how), Events::new());
        let client = fake
            .builder()
            .audit(sink.clone())
            .audit_mode(AuditMode::Strict)
            .on_update(events.hook())
            .build()
            .unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Audit);
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (0, 1));
        says(&error, &["audit"]);
        assert!(std::error::Error::source(&error).is_some());
        // The sink may hold the intent all the same, which must not look like a crash.
        let records = sink.records();
        assert_eq!(records.len(), 1, "{records:#?}");
        assert_eq!(records[0].phase, AuditPhase::Outcome);
        assert_eq!(records[0].status, Status::Failed);
        assert_eq!(records[0].error_kind, Some(ErrorKind::Audit));
        assert!(!records[0].may_have_applied);
        assert_eq!(records[0].attempts, 0);
        assert!(events.all().is_empty());
        assert_eq!(client.metrics().audit_failures, 1);
        assert_eq!(client.metrics().failed(ErrorKind::Audit), 1);
    }
}

#[test]
fn audit_sink_failure_is_flagged_counted_no_error() {
    for (phase, how, mode) in [
        (AuditPhase::Intent, Error, AuditMode::BestEffort),
        (AuditPhase::Intent, Panic, AuditMode::BestEffort),
        (AuditPhase::Outcome, Error, AuditMode::BestEffort),
        (AuditPhase::Outcome, Panic, AuditMode::BestEffort),
        (AuditPhase::Outcome, Error, AuditMode::Strict),
        (AuditPhase::Outcome, Panic, AuditMode::Strict),
    ] {
        let fake = Fake::named(format!("{phase:?} {how:?} {mode:?}"));
        fake.token().get(7).patch(8);
        let events = Events::new();
        let client = fake
            .builder()
            .audit(Sink::failing(phase, how))
            .audit_mode(mode)
            .on_update(events.hook())
            .build()
            .unwrap();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert!(receipt.audit_failed);
        assert_eq!(events.all().len(), 1);
        assert_eq!(client.metrics().audit_failures, 1);
        assert_eq!(client.metrics().applied, 1);
    }
}

#[test]
fn audit_sink_failure_on_outcome_keeps_update_error() {
    for how in [Error, Panic] {
        let fake = Fake::named(format!("{how:?}"));
        fake.token().get(7).status("PATCH", 403);
        let client = fake
            .builder()
            .audit(Sink::failing(AuditPhase::Outcome, how))
            .audit_mode(AuditMode::Strict)
            .build()
            .unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        assert_eq!(client.metrics().audit_failures, 1);
    }
}

#[test]
fn audit_write_panic_writes_outcome() {
    let fake = Fake::new();
    fake.token().get(7).panics("PATCH").get(8).patch(9);
    let sink = Sink::new();
    let client = fake.builder().audit(sink.clone()).build().unwrap();
    client.update(&update()).unwrap_err();
    client.update(&update()).unwrap();
    let records = sink.records();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].id, records[1].id);
    assert_eq!(records[1].status, Status::Failed);
    assert_eq!(records[1].error_kind, Some(ErrorKind::Internal));
    assert!(records[1].may_have_applied);
    assert_eq!(records[3].status, Status::Applied);
}

#[test]
fn audit_panic_while_values_are_read_back_writes_outcome() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).panics("GET");
    let sink = Sink::new();
    let client = fake.builder().audit(sink.clone()).build().unwrap();
    let error = client.update(&update().verify()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.may_have_applied());
    let records = sink.records();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].status, Status::Failed);
}

#[test]
fn audit_closure_panic_after_intent_writes_outcome() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({}))
        .status("PATCH", 412)
        .get_with(8, json!({}));
    let sink = Sink::new();
    let client = fake.builder().audit(sink.clone()).build().unwrap();
    let calls = AtomicUsize::new(0);
    client
        .update_with(&Target::conversation("c-1"), |_| {
            assert_eq!(calls.fetch_add(1, Ordering::SeqCst), 0, "on purpose");
            Ok(Some([("n".to_owned(), json!(1))].into_iter().collect()))
        })
        .unwrap_err();
    let phases: Vec<_> = sink.records().iter().map(|r| r.phase).collect();
    assert_eq!(phases, [AuditPhase::Intent, AuditPhase::Outcome]);
}

#[test]
fn audit_unchanged_after_intent_writes_outcome() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1 }))
        .status("PATCH", 412)
        .get_with(8, json!({ "n": 10 }));
    let (sink, events) = (Sink::new(), Events::new());
    let client = fake
        .builder()
        .audit(sink.clone())
        .on_update(events.hook())
        .build()
        .unwrap();
    let receipt = client
        .update_with(&Target::conversation("c-1"), |now| {
            let write = now.attributes["n"] == 1;
            Ok(write.then(|| [("n".to_owned(), json!(2))].into_iter().collect()))
        })
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert!(events.all().is_empty());
    // Else the intent would look like a crash.
    let records = sink.records();
    assert_eq!(records.len(), 2, "{records:#?}");
    assert_eq!(records[0].id, records[1].id);
    assert_eq!(records[1].phase, AuditPhase::Outcome);
    assert_eq!(records[1].status, Status::Unchanged);
    assert_eq!(records[1].version.as_deref(), Some("8"));
}

#[test]
fn audit_computed_update_has_an_intent_for_each_changed_write() {
    for (name, second, phases) in [
        ("changed key", json!({ "b": 1 }), 3),
        ("changed value", json!({ "a": 2 }), 3),
        ("the same", json!({ "a": 1 }), 2),
    ] {
        let fake = Fake::named(name);
        fake.token()
            .get_with(7, json!({}))
            .status("PATCH", 412)
            .get_with(8, json!({}))
            .status("PATCH", 412)
            .get_with(9, json!({}))
            .patch(10);
        let sink = Sink::new();
        let client = fake.builder().audit(sink.clone()).build().unwrap();
        let mut calls = 0;
        client
            .update_with(&Target::conversation("c-1"), |_| {
                calls += 1;
                let values = if calls == 1 {
                    json!({ "a": 1 })
                } else {
                    second.clone()
                };
                let Value::Object(values) = values else {
                    unreachable!()
                };
                Ok(Some(values))
            })
            .unwrap();
        assert_eq!(calls, 3);
        let records = sink.records();
        assert_eq!(records.len(), phases, "{name}: {records:#?}");
        assert!(records.iter().all(|record| record.id == records[0].id));
        let (outcome, intents) = records.split_last().unwrap();
        assert_eq!(outcome.status, Status::Applied);
        assert!(
            intents
                .iter()
                .all(|intent| intent.phase == AuditPhase::Intent)
        );
        assert_eq!(intents[0].updated_keys, ["a"]);
        assert_eq!(intents[0].previous_version.as_deref(), Some("7"));
        // The last intent names what the outcome does.
        assert_eq!(
            intents.last().unwrap().updated_keys,
            outcome.updated_keys,
            "{name}"
        );
        if phases == 3 {
            assert_eq!(intents[1].previous_version.as_deref(), Some("8"));
        }
    }
}

#[test]
fn audit_strict_second_intent_failure_prevents_second_write() {
    struct Once(Sink);
    impl AuditSink for Once {
        fn record(&self, record: &AuditRecord) -> io::Result<()> {
            if record.phase == AuditPhase::Intent && !self.0.records().is_empty() {
                return Error.fail();
            }
            self.0.record(record)
        }
    }
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({}))
        .status("PATCH", 412)
        .get_with(8, json!({}));
    let sink = Sink::new();
    let client = fake
        .builder()
        .audit(Once(sink.clone()))
        .audit_mode(AuditMode::Strict)
        .build()
        .unwrap();
    let mut calls = 0;
    let error = client
        .update_with(&Target::conversation("c-1"), |_| {
            calls += 1;
            let values = [("n".to_owned(), json!(calls))];
            Ok(Some(values.into_iter().collect()))
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Audit);
    assert!(!error.may_have_applied());
    let statuses: Vec<_> = sink.records().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [Status::Pending, Status::Failed]);
}

/// The line is in the file, and then the sink says that it is not.
#[test]
fn audit_strict_flush_failure_after_the_line_leaves_a_failed_outcome() {
    #[derive(Clone, Default)]
    struct Lines {
        text: Arc<Mutex<Vec<u8>>>,
        flushes: Arc<AtomicUsize>,
    }
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.text).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            match self.flushes.fetch_add(1, Ordering::SeqCst) {
                0 => Err(io::Error::other("disk full")),
                _ => Ok(()),
            }
        }
    }
    let fake = Fake::new();
    fake.token().get(7);
    let lines = Lines::default();
    let client = fake
        .builder()
        .audit(JsonLines::new(lines.clone()))
        .audit_mode(AuditMode::Strict)
        .build()
        .unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Audit);
    assert!(!error.may_have_applied());
    let text = String::from_utf8(lock(&lines.text).clone()).unwrap();
    let records: Vec<AuditRecord> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [intent, outcome] = &records[..] else {
        panic!("{text}")
    };
    assert_eq!(
        (intent.phase, intent.status),
        (AuditPhase::Intent, Status::Pending)
    );
    assert_eq!(
        (outcome.phase, outcome.status),
        (AuditPhase::Outcome, Status::Failed)
    );
    assert_eq!(intent.id, outcome.id);
    assert_eq!(outcome.error_kind, Some(ErrorKind::Audit));
    assert!(!outcome.may_have_applied);
}

#[test]
fn audit_update_from_inside_of_a_closure_is_recorded_as_refused() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({})).patch(8);
    let sink = Sink::new();
    let client = fake.builder().audit(sink.clone()).build().unwrap();
    let target = Target::conversation("c-1");
    client
        .update_with(&target, |_| {
            let inside = client.update(&Update::conversation("c-2").set("k", "v"));
            assert_eq!(inside.unwrap_err().kind(), ErrorKind::InvalidInput);
            Ok(Some(Attributes::from_iter([(
                "tier".into(),
                "gold".into(),
            )])))
        })
        .unwrap();
    let seen = sink.records();
    let seen: Vec<_> = seen
        .iter()
        .map(|r| (&*r.conversation_id, r.status, r.requests))
        .collect();
    assert_eq!(
        seen,
        [
            ("c-2", Status::Refused, 0),
            // The read was sent before.
            ("c-1", Status::Pending, 1),
            ("c-1", Status::Applied, 2),
        ]
    );
}
