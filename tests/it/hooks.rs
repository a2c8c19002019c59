//! Who is told of an update, when and in which order: events, hooks, subscriptions, audit, metrics.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use genesys_attributes::{
    Attributes, AuditMode, AuditPhase, AuditRecord, AuditSink, AuditStatus, Client, Clock,
    ErrorKind, JsonLines, Outcome, Response, RetryPolicy, Sent, Target, Update, UpdateEvent,
};
use serde_json::{Value, json};

use crate::fake::{AlarmClock, Fake, Gate, PATIENCE, Server, json_response, lock, ms, says, secs};

fn update() -> Update {
    Update::conversation("c-1").set("tier", "gold")
}

/// Something written down by many.
#[derive(Clone, Default)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    fn new() -> Log<T> {
        Log(Arc::default())
    }

    fn push(&self, entry: T) {
        lock(&self.0).push(entry);
    }

    fn all(&self) -> Vec<T> {
        lock(&self.0).clone()
    }
}

type Events = Log<UpdateEvent>;

impl Events {
    fn hook(&self) -> impl Fn(&UpdateEvent) + Send + Sync + 'static {
        let log = self.clone();
        move |event| log.push(event.clone())
    }
}

/// An audit sink that keeps what it gets, and fails as it is told.
#[derive(Clone, Default)]
struct Sink {
    records: Arc<Mutex<Vec<AuditRecord>>>,
    flushes: Arc<AtomicUsize>,
    fails: Option<(AuditPhase, Failing)>,
    fails_to_flush: Option<Failing>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    Error,
    Panic,
}
use Failing::{Error, Panic};

impl Failing {
    fn fail(self) -> io::Result<()> {
        match self {
            Error => Err(io::Error::other("disk full")),
            Panic => panic!("the sink panics on purpose"),
        }
    }
}

impl Sink {
    fn new() -> Sink {
        Sink::default()
    }

    fn failing(phase: AuditPhase, how: Failing) -> Sink {
        Sink {
            fails: Some((phase, how)),
            ..Sink::default()
        }
    }

    fn records(&self) -> Vec<AuditRecord> {
        lock(&self.records).clone()
    }
}

impl AuditSink for Sink {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        match self.fails {
            Some((phase, how)) if phase == record.phase => how.fail(),
            _ => {
                lock(&self.records).push(record.clone());
                Ok(())
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.fails_to_flush.map_or(Ok(()), Failing::fail)
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Events

/// One way that an update can go: its script, the update, what came of it.
type Way = (
    &'static str,
    fn(&Fake),
    Update,
    Result<Outcome, ErrorKind>,
    bool,
);

/// The ways, with whether a write was begun.
fn ways() -> Vec<Way> {
    vec![
        (
            "applied",
            |f| {
                f.token().get(7).patch(8);
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "applied, unreadable",
            |f| {
                f.token()
                    .get(7)
                    .answer("PATCH", Response::new(200).with_broken_body("cut"));
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "applied after a conflict and a fault",
            |f| {
                f.token()
                    .get(7)
                    .status("PATCH", 412)
                    .get(8)
                    .status("PATCH", 503)
                    .patch(9);
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "already applied",
            |f| {
                f.token()
                    .get(7)
                    .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
                    .status("PATCH", 412)
                    .get_with(8, json!({ "tier": "gold" }));
            },
            update(),
            Ok(Outcome::AlreadyApplied),
            true,
        ),
        (
            "unchanged",
            |f| {
                f.token().get_with(7, json!({ "tier": "gold" }));
            },
            update().skip_unchanged(),
            Ok(Outcome::Unchanged),
            false,
        ),
        (
            "invalid",
            |_| {},
            Update::conversation("c-1"),
            Err(ErrorKind::InvalidInput),
            false,
        ),
        (
            "not found",
            |f| {
                f.token().status("GET", 404);
            },
            update(),
            Err(ErrorKind::NotFound),
            false,
        ),
        (
            "guarded",
            |f| {
                f.token()
                    .get_body(json!({ "version": 7, "state": "terminated" }));
            },
            update().set("system.a", 1),
            Err(ErrorKind::InvalidInput),
            false,
        ),
        (
            "forbidden",
            |f| {
                f.token().get(7).status("PATCH", 403);
            },
            update(),
            Err(ErrorKind::Forbidden),
            true,
        ),
        (
            "unclear to the end",
            |f| {
                f.token().get(7);
                for _ in 0..4 {
                    f.fault("PATCH", ErrorKind::Timeout, Sent::Maybe);
                }
            },
            update(),
            Err(ErrorKind::Timeout),
            true,
        ),
        (
            "conflict",
            |f| {
                f.token().status("PATCH", 412);
            },
            update().if_version("7"),
            Err(ErrorKind::Conflict),
            true,
        ),
        (
            "a panic",
            |f| {
                f.token().get(7).panics("PATCH");
            },
            update(),
            Err(ErrorKind::Internal),
            true,
        ),
    ]
}

#[test]
fn exactly_one_event_tells_of_what_is_in_place_and_none_of_the_rest() {
    for (name, script, update, expected, _) in ways() {
        let fake = Fake::named(name);
        script(&fake);
        let events = Events::new();
        let client = fake.builder().on_update(events.hook()).build().unwrap();
        let subscription = client.subscribe(10);
        let result = client.update(&update);
        assert_eq!(
            result.as_ref().map(|r| r.outcome).map_err(|e| e.kind()),
            expected,
            "{name}"
        );
        let told = matches!(expected, Ok(Outcome::Applied | Outcome::AlreadyApplied));
        assert_eq!(events.all().len(), usize::from(told), "{name}");
        if let Some(event) = events.all().first() {
            assert_eq!(*subscription.try_recv().unwrap().event, *event);
            let receipt = result.unwrap();
            assert_eq!(event.version, receipt.version);
            assert_eq!(event.previous_version, receipt.previous_version);
            assert_eq!(event.timestamp, receipt.timestamp);
        }
        assert!(subscription.try_recv().is_none(), "{name}");
    }
}

#[test]
fn every_intent_has_one_outcome_with_its_id_and_nothing_else_is_recorded() {
    for (name, script, update, expected, begun) in ways() {
        let fake = Fake::named(name);
        script(&fake);
        let sink = Sink::new();
        let client = fake.builder().audit(sink.clone()).build().unwrap();
        let result = client.update(&update);
        let records = sink.records();
        if !begun {
            assert_eq!(records, [], "{name}");
            continue;
        }
        let [intent, outcome] = &records[..] else {
            panic!("{name}: {records:#?}")
        };
        assert_eq!(intent.phase, AuditPhase::Intent);
        assert_eq!(intent.status, AuditStatus::Pending);
        assert_eq!(outcome.phase, AuditPhase::Outcome);
        assert_eq!(intent.id, outcome.id);
        assert!(!intent.id.is_empty());
        for record in &records {
            assert_eq!(record.conversation_id, "c-1");
            assert_eq!(record.target, "conversation");
            assert_eq!(record.updated_keys, ["tier"]);
            assert_eq!(record.attributes, None);
        }
        assert_eq!(intent.previous_version.as_deref(), Some("7"));
        assert_eq!(intent.version, None);
        match result {
            Ok(receipt) => {
                let status = match receipt.outcome {
                    Outcome::AlreadyApplied => AuditStatus::AlreadyApplied,
                    _ => AuditStatus::Success,
                };
                assert_eq!(outcome.status, status);
                assert_eq!(outcome.version, receipt.version);
                assert_eq!(outcome.previous_version, receipt.previous_version);
                assert_eq!(outcome.attempts, receipt.attempts);
                assert_eq!(outcome.requests, receipt.requests);
                assert_eq!(outcome.error_kind, None);
                assert!(!receipt.audit_failed);
            }
            Err(error) => {
                assert_eq!(outcome.status, AuditStatus::Failed);
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
fn audit_comes_first_then_the_hooks_in_order_then_the_receipt() {
    let fake = Fake::new();
    let log = Log::new();
    let write = log.clone();
    fake.token()
        .get(7)
        .patch(8)
        .meanwhile(move || write.push("write"));
    struct Order(Log<&'static str>);
    impl AuditSink for Order {
        fn record(&self, record: &AuditRecord) -> io::Result<()> {
            self.0.push(match record.phase {
                AuditPhase::Intent => "intent",
                AuditPhase::Outcome => "outcome",
            });
            Ok(())
        }
    }
    let (first, second) = (log.clone(), log.clone());
    let client = fake
        .builder()
        .on_update(move |_| first.push("hook 1"))
        .audit(Order(log.clone()))
        .on_update(move |_| second.push("hook 2"))
        .build()
        .unwrap();
    client.update(&update()).unwrap();
    log.push("receipt");
    assert_eq!(
        log.all(),
        ["intent", "write", "outcome", "hook 1", "hook 2", "receipt"]
    );
}

#[test]
fn an_event_carries_what_the_briefs_does() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .takes(ms(11))
        .answer(
            "PATCH",
            json_response(200, &json!({ "version": 8 })).with_header("ININ-Correlation-Id", "abc"),
        )
        .takes(ms(30));
    let events = Events::new();
    let client = fake.builder().on_update(events.hook()).build().unwrap();
    client
        .update(
            &Update::conversation("c-1")
                .set("routing.score", 85.0)
                .set("customer.tier", "premium"),
        )
        .unwrap();
    let event = &events.all()[0];
    let id = event.audit.id.clone();
    assert_eq!(
        serde_json::to_value(event).unwrap(),
        json!({
            "sequence": 1,
            "conversationId": "c-1",
            "target": "conversation",
            "attributes": { "customer.tier": "premium", "routing.score": 85 },
            "updatedKeys": ["customer.tier", "routing.score"],
            "version": "8",
            "previousVersion": "7",
            "latencyMs": 41,
            "timestamp": "2026-01-01T00:00:00.041Z",
            "auditLog": {
                "id": id,
                "phase": "outcome",
                "timestamp": "2026-01-01T00:00:00.041Z",
                "conversationId": "c-1",
                "target": "conversation",
                "status": "success",
                "updatedKeys": ["customer.tier", "routing.score"],
                "previousVersion": "7",
                "version": "8",
                "attempts": 1,
                "requests": 2,
                "latencyMs": 41,
                "correlationId": "abc",
            },
        })
    );
}

#[test]
fn the_webhook_envelope_is_the_briefs() {
    for (answer, version) in [
        (json_response(200, &json!({ "version": 8 })), json!("8")),
        (Response::new(204), json!(null)),
    ] {
        let fake = Fake::new();
        fake.token().get(7).answer("PATCH", answer);
        let events = Events::new();
        let client = fake.builder().on_update(events.hook()).build().unwrap();
        client.update(&update().set("score", 85)).unwrap();
        assert_eq!(
            events.all()[0].webhook_payload(),
            json!({
                "eventType": "CONVERSATION_ATTRIBUTES_UPDATED",
                "payload": {
                    "conversationId": "c-1",
                    "updatedAttributes": { "tier": "gold", "score": 85 },
                    "version": version,
                    "processedAt": "2026-01-01T00:00:00.000Z",
                },
            })
        );
    }
}

#[test]
fn an_event_tells_the_participant_that_was_found_and_the_text_that_was_written() {
    let fake = Fake::new();
    fake.token()
        .get_body(json!({ "participants": [
            { "id": "p-1", "purpose": "agent" },
            { "id": "p-2", "purpose": "customer" },
        ] }))
        .status("PATCH", 202);
    let events = Events::new();
    let client = fake.builder().on_update(events.hook()).build().unwrap();
    let receipt = client
        .update(
            &Update::participant("c-1", "customer")
                .set("n", 5)
                .set("b", true),
        )
        .unwrap();
    assert_eq!(receipt.item.as_deref(), Some("p-2"));
    let event = &events.all()[0];
    assert_eq!(
        (event.target, event.item.as_deref()),
        ("participant", Some("p-2"))
    );
    assert_eq!(
        Value::Object(event.attributes.clone()),
        json!({ "n": "5", "b": "true" })
    );
    assert_eq!(event.audit.item.as_deref(), Some("p-2"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Hooks

#[test]
fn a_panicking_hook_is_counted_and_flagged_and_the_others_still_run() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9);
    let events = Events::new();
    let sink = Sink::new();
    let client = fake
        .builder()
        .on_update(|_| panic!("hook 1 panics on purpose"))
        .on_update(events.hook())
        .on_update(|event| assert_eq!(event.sequence, 2, "hook 3 panics on purpose"))
        .on_update(events.hook())
        .audit(sink.clone())
        .build()
        .unwrap();
    for panics in [2, 1] {
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!(receipt.hook_panics, panics);
    }
    let sequences: Vec<_> = events.all().iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [1, 1, 2, 2]);
    assert_eq!(client.metrics().hook_panics, 3);
    assert_eq!(client.metrics().applied, 2);
    assert_eq!(sink.records()[1].status, AuditStatus::Success);
}

#[test]
fn a_hook_may_update_the_same_conversation() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9).patch(10);
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let (client_in_hook, log) = (slot.clone(), Log::new());
    let hook_log = log.clone();
    let client = fake
        .builder()
        .on_update(move |event| {
            hook_log.push(event.version.clone().unwrap());
            let depth = event.attributes["depth"].as_u64().unwrap();
            if depth < 2 {
                let client = lock(&client_in_hook).clone().unwrap();
                let again = Update::conversation("c-1").set("depth", depth + 1);
                assert_eq!(client.update(&again).unwrap().requests, 1);
                hook_log.push(format!("back in {depth}"));
            }
        })
        .build()
        .unwrap();
    *lock(&slot) = Some(client.clone());
    let receipt = client
        .update(&Update::conversation("c-1").set("depth", 0))
        .unwrap();
    assert_eq!(receipt.version.as_deref(), Some("8"));
    assert_eq!(receipt.hook_panics, 0);
    assert_eq!(log.all(), ["8", "9", "10", "back in 1", "back in 0"]);
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\"", "\"9\""]);
    *lock(&slot) = None;
}

#[test]
fn a_hook_that_takes_long_holds_up_nobody_else_on_the_same_conversation() {
    let server = Server::new();
    let gate = Gate::new();
    let in_hook = gate.clone();
    let client = server
        .builder()
        .on_update(move |event| {
            if event.sequence == 1 {
                in_hook.pass();
            }
        })
        .build()
        .unwrap();
    let slow = thread::spawn({
        let client = client.clone();
        move || client.update(&update())
    });
    gate.await_waiting(1);
    let (done, other) = mpsc::channel();
    thread::spawn({
        let client = client.clone();
        move || done.send(client.update(&update())).unwrap()
    });
    let receipt = other
        .recv_timeout(PATIENCE)
        .expect("it waits for the hook")
        .unwrap();
    assert_eq!(receipt.version.as_deref(), Some("2"));
    assert!(!slow.is_finished());
    gate.open();
    assert_eq!(slow.join().unwrap().unwrap().version.as_deref(), Some("1"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Subscriptions

#[test]
fn a_full_subscription_loses_the_newest_and_says_how_many() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let small = client.subscribe(2);
    let large = client.clone().subscribe(100);
    let send = |n: u64| {
        for _ in 0..n {
            client.update(&update()).unwrap();
        }
    };
    send(5);
    assert_eq!(small.lost(), 3);
    assert_eq!(client.metrics().events_dropped, 3);
    let next = || {
        let delivery = small.try_recv().unwrap();
        (delivery.sequence, delivery.lost_before)
    };
    assert_eq!(next(), (1, 0));
    send(1);
    assert_eq!(next(), (2, 0));
    assert_eq!(next(), (6, 3));
    assert!(small.try_recv().is_none());
    send(1);
    assert_eq!(next(), (7, 0));
    assert_eq!(small.lost(), 3);

    assert_eq!(large.lost(), 0);
    let all: Vec<_> = std::iter::from_fn(|| large.try_recv())
        .map(|d| d.sequence)
        .collect();
    assert_eq!(all, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_subscription_has_at_least_one_place() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let subscription = client.subscribe(0);
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    assert_eq!(subscription.try_recv().unwrap().sequence, 1);
    assert_eq!(subscription.lost(), 1);
}

#[test]
fn a_subscription_that_was_dropped_is_forgotten_and_harms_nobody() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let dropped = client.subscribe(1);
    let kept = client.subscribe(10);
    client.update(&update()).unwrap();
    drop(dropped);
    for _ in 0..3 {
        client.update(&update()).unwrap();
    }
    let sequences: Vec<_> = std::iter::from_fn(|| kept.try_recv())
        .map(|d| d.sequence)
        .collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
    // The one that it left unread; later ones are not counted as lost on it.
    assert_eq!(client.metrics().events_dropped, 1);

    // When the last one is gone too, one more event finds that out, and then none is made.
    drop(kept);
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    let late = client.subscribe(1);
    client.update(&update()).unwrap();
    assert_eq!(late.try_recv().unwrap().sequence, 6);
}

#[test]
fn a_subscription_begins_when_it_is_made_and_ends_with_the_client() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    client.update(&update()).unwrap();
    let subscription = client.subscribe(10);
    let clone = client.clone();
    client
        .update(&Update::conversation("c-2").set("k", 1))
        .unwrap();
    drop(client);
    assert_eq!(subscription.recv().unwrap().conversation_id, "c-2");
    clone
        .update(&Update::conversation("c-3").set("k", 1))
        .unwrap();
    drop(clone);
    let rest: Vec<_> = subscription
        .iter()
        .map(|d| d.conversation_id.clone())
        .collect();
    assert_eq!(rest, ["c-3"]);
    assert!(subscription.recv().is_none());
}

#[test]
fn subscriptions_get_the_events_in_the_order_of_the_writes() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let subscriptions = [client.subscribe(1_000), client.subscribe(1_000)];
    let started = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (client, started) = (client.clone(), &started);
            scope.spawn(move || {
                started.wait();
                for n in 0..24 {
                    let id = format!("c-{}", n % 2);
                    let update = Update::conversation(id).set(format!("t-{thread}"), n);
                    client.update(&update).unwrap();
                }
            });
        }
    });
    for subscription in subscriptions {
        let mut last: HashMap<String, (u64, u64)> = HashMap::new();
        let mut count = 0;
        while let Some(event) = subscription.try_recv() {
            count += 1;
            let version: u64 = event.version.as_deref().unwrap().parse().unwrap();
            let before = last.entry(event.conversation_id.clone()).or_default();
            assert_eq!(version, before.0 + 1, "{}", event.conversation_id);
            assert!(event.sequence > before.1);
            *before = (version, event.sequence);
        }
        assert_eq!(count, 192);
        assert!(last.values().all(|(version, _)| *version == 96));
    }
    assert_eq!(server.inside().conflicts, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Confidential values

#[test]
fn secure_values_are_nowhere_unless_they_are_asked_for() {
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
        assert_eq!(event.updated_keys, ["iban"]);
        assert_eq!(event.removed_keys, ["old"]);
        assert_eq!(event.audit.attributes, None);
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
fn values_are_audited_only_when_asked_for() {
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
            assert_eq!(record.attributes, expected);
            let json = serde_json::to_string(&record).unwrap();
            assert_eq!(json.contains("gold"), asked);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Audit

#[test]
fn the_audit_ids_of_updates_and_clients_differ() {
    let sink = Sink::new();
    let fake = Fake::new();
    let mut clients = Vec::new();
    for start in 0..2 {
        // The id holds the start of the client.
        fake.clock.advance(ms(start));
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

#[test]
fn the_records_are_json_lines() {
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
fn in_strict_mode_no_intent_means_no_write() {
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
        // No outcome without an intent, and no event.
        assert_eq!(sink.records(), []);
        assert!(events.all().is_empty());
        assert_eq!(client.metrics().audit_failures, 1);
        assert_eq!(client.metrics().failed(ErrorKind::Audit), 1);
    }
}

#[test]
fn a_sink_that_fails_otherwise_is_flagged_and_counted_and_no_error() {
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
fn a_failing_update_stays_the_error_it_is_when_its_outcome_cannot_be_kept() {
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
fn a_write_that_panics_closes_its_intent() {
    let fake = Fake::new();
    fake.token().get(7).panics("PATCH").get(8).patch(9);
    let sink = Sink::new();
    let client = fake.builder().audit(sink.clone()).build().unwrap();
    client.update(&update()).unwrap_err();
    client.update(&update()).unwrap();
    let records = sink.records();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].id, records[1].id);
    assert_eq!(records[1].status, AuditStatus::Failed);
    assert_eq!(records[1].error_kind, Some(ErrorKind::Internal));
    assert!(records[1].may_have_applied);
    assert_eq!(records[3].status, AuditStatus::Success);
}

#[test]
fn a_closure_that_panics_after_the_intent_closes_it_too() {
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
fn what_turns_out_unchanged_after_its_intent_closes_it_too() {
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
    assert_eq!(records[1].status, AuditStatus::Unchanged);
    assert_eq!(records[1].version.as_deref(), Some("8"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Metrics, flush

#[test]
fn the_metrics_tell_what_happened() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .takes(ms(10))
        .patch(8)
        .takes(ms(30))
        // A conflict and a fault.
        .status("PATCH", 412)
        .takes(ms(5))
        .get(9)
        .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
        .status("PATCH", 412)
        .get_with(10, json!({ "tier": "gold" }))
        // Throttled for good.
        .answer(
            "PATCH",
            Response::new(429).with_header("Retry-After", "999"),
        )
        // Unchanged.
        .get_with(11, json!({ "tier": "gold" }))
        // A server that fails.
        .get(11)
        .status("PATCH", 503)
        .status("PATCH", 501)
        // A new token.
        .get(11)
        .status("PATCH", 401)
        .token()
        .patch(12);
    let client = fake
        .builder()
        .on_update(|event| assert_ne!(event.sequence, 1, "on purpose"))
        .build()
        .unwrap();
    let _full = client.subscribe(1);
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    client.update(&update()).unwrap_err();
    client.update(&update().skip_unchanged()).unwrap();
    client.update(&update()).unwrap_err();
    client.update(&update()).unwrap();
    client.update(&Update::conversation("c-1")).unwrap_err();

    let json = client.metrics().to_json();
    for (name, value) in [
        ("totalAttempts", 7),
        ("successfulUpdates", 3),
        ("applied", 2),
        ("alreadyApplied", 1),
        ("unchanged", 1),
        ("validationErrors", 1),
        ("lockingConflicts", 2),
        ("rateLimited", 1),
        ("requests", 15),
        ("retries", 2),
        ("tokenRefreshes", 2),
        ("transportErrors", 1),
        ("serverErrors", 2),
        ("hookPanics", 1),
        ("eventsDropped", 2),
        ("auditFailures", 0),
    ] {
        assert_eq!(json[name], value, "{name} in {json:#}");
    }
    assert_eq!(
        json["failed"],
        json!({ "invalidInput": 1, "rateLimited": 1, "server": 1 })
    );
    let latency = &json["latencyMs"];
    assert_eq!(latency["count"], 3);
    let mean = json["averageLatencyMs"].as_f64().unwrap();
    assert!((15.0..2_100.0).contains(&mean), "{json:#}");
    assert!(latency["max"].as_f64().unwrap() >= 40.0);

    let text = client.metrics().to_prometheus();
    for line in [
        "genesys_attributes_calls_total 7",
        "genesys_attributes_applied_total 2",
        "genesys_attributes_already_applied_total 1",
        "genesys_attributes_unchanged_total 1",
        "genesys_attributes_conflicts_total 2",
        "genesys_attributes_requests_total 15",
        "genesys_attributes_token_refreshes_total 2",
        "genesys_attributes_failed_total{kind=\"server\"} 1",
        "genesys_attributes_failed_total{kind=\"conflict\"} 0",
        "genesys_attributes_update_duration_seconds_count 3",
        "genesys_attributes_update_duration_seconds_bucket{le=\"+Inf\"} 3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[test]
fn the_latency_of_applied_updates_is_measured_and_of_no_others() {
    let fake = Fake::new();
    fake.token();
    for n in 1..=4 {
        fake.status("PATCH", 202).takes(secs(n));
    }
    fake.status("PATCH", 403).takes(secs(100));
    let client = fake.client();
    let update = Update::participant("c-1", "p-1").set("k", "v");
    for _ in 0..4 {
        client.update(&update).unwrap();
    }
    client.update(&update).unwrap_err();
    let latency = client.metrics().latency;
    assert_eq!(latency.count(), 4);
    assert_eq!(latency.mean(), ms(2_500));
    assert_eq!(latency.max(), secs(4));
    assert_eq!(client.metrics().to_json()["averageLatencyMs"], 2_500.0);
}

#[test]
fn flush_flushes_the_sink_and_tells_of_its_failure() {
    for (failing, expected) in [
        (None, None),
        (Some(Error), Some(ErrorKind::Audit)),
        (Some(Panic), Some(ErrorKind::Audit)),
    ] {
        let fake = Fake::named(format!("{failing:?}"));
        let sink = Sink {
            fails_to_flush: failing,
            ..Sink::default()
        };
        let client = fake.builder().audit(sink.clone()).build().unwrap();
        let result = client.flush(secs(1));
        assert_eq!(result.err().map(|e| e.kind()), expected);
        assert_eq!(sink.flushes.load(Ordering::SeqCst), 1);
        assert!(fake.sleeps().is_empty());
    }
    assert!(Fake::new().client().flush(ms(0)).is_ok());
}

#[test]
fn flush_gives_up_on_updates_that_do_not_end() {
    for timeout in [ms(0), ms(7), secs(1)] {
        let server = Server::new();
        let gate = Gate::new();
        let in_hook = gate.clone();
        let fake = Fake::new();
        let sink = Sink::new();
        let client = server
            .builder()
            .clock(fake.clock.clone())
            .audit(sink.clone())
            .on_update(move |_| in_hook.pass())
            .build()
            .unwrap();
        let slow = thread::spawn({
            let client = client.clone();
            move || client.update(&update())
        });
        gate.await_waiting(1);
        let start = fake.clock.now();
        let error = client.flush(timeout).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let waited = fake.clock.now() - start;
        assert!(timeout <= waited && waited < timeout + ms(5), "{waited:?}");
        assert_eq!(sink.flushes.load(Ordering::SeqCst), 0);
        gate.open();
        slow.join().unwrap().unwrap();
        client.flush(timeout).unwrap();
    }
}

#[test]
fn flush_waits_for_updates_and_their_hooks() {
    let server = Server::new();
    let gate = Gate::new();
    let (in_hook, asleep) = (gate.clone(), gate.clone());
    let hook_done = Arc::new(AtomicBool::new(false));
    let done = hook_done.clone();
    let thread: Arc<Mutex<Option<thread::JoinHandle<()>>>> = Arc::default();
    let to_join = thread.clone();
    let fake = Fake::new();
    // The first sleep of flush lets the hook go on, and its update end.
    let alarm = AlarmClock::new(fake.clock.clone(), move || {
        asleep.open();
        lock(&to_join).take().unwrap().join().unwrap();
    });
    let client = server
        .builder()
        .clock(alarm)
        .on_update(move |_| {
            in_hook.pass();
            done.store(true, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    let worker = client.clone();
    *lock(&thread) = Some(thread::spawn(move || {
        worker.update(&update()).unwrap();
    }));
    gate.await_waiting(1);
    assert!(!hook_done.load(Ordering::SeqCst));
    client.flush(secs(1)).unwrap();
    assert!(hook_done.load(Ordering::SeqCst));
    assert_eq!(fake.sleeps().len(), 1);
}

#[test]
fn nobody_is_told_of_reads() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({ "k": 1 }));
    let (sink, events) = (Sink::new(), Events::new());
    let client = fake
        .builder()
        .audit(sink.clone())
        .on_update(events.hook())
        .build()
        .unwrap();
    let snapshot = client.read(&Target::conversation("c-1")).unwrap();
    assert_eq!(snapshot.version.as_deref(), Some("7"));
    assert_eq!(snapshot.attributes["k"], 1);
    assert_eq!(sink.records(), []);
    assert!(events.all().is_empty());
    assert_eq!(client.metrics().calls, 0);
    assert_eq!(client.metrics().requests, 1);
}

#[test]
fn a_retry_policy_of_one_leaves_one_event_for_one_write() {
    let fake = Fake::new();
    fake.token().get(7).patch(8);
    let events = Events::new();
    let client = fake
        .builder()
        .retry(
            RetryPolicy::default()
                .with_max_attempts(1)
                .with_max_conflicts(0),
        )
        .on_update(events.hook())
        .build()
        .unwrap();
    client.update(&update()).unwrap();
    assert_eq!(events.all()[0].audit.attempts, 1);
}

#[test]
fn what_an_ended_subscription_leaves_unread_is_counted() {
    let fake = Fake::new();
    fake.token().get(1).patch(2).patch(3).patch(4);
    let client = fake.client();
    let subscription = client.subscribe(8);
    for _ in 0..3 {
        client
            .update(&Update::conversation("c-1").set("k", "v"))
            .unwrap();
    }
    assert!(subscription.recv().is_some());
    drop(subscription);
    assert_eq!(client.metrics().events_dropped, 2);
}
