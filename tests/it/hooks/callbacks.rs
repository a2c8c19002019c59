//! Hooks: in which order, what they may do, and what becomes of a panic.

use super::*;

#[test]
fn audit_then_hooks_then_receipt_in_order() {
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
                _ => "outcome",
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
fn hook_panic_is_counted_and_others_run() {
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
    assert_eq!(sink.records()[1].status, Status::Applied);
}

#[test]
fn hook_updating_same_conversation_does_not_deadlock() {
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
fn hook_slow_does_not_block_same_conversation() {
    let server = Memory::new();
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

/// The payload of a panic, whose drop panics in turn, with a payload that does so again.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(next) = self.0.checked_sub(1) {
            std::panic::panic_any(Bomb(next));
        }
    }
}

#[test]
fn hook_panic_payload_that_panics_on_drop_is_contained() {
    for depth in [1, 2, 3] {
        let fake = Fake::named(depth.to_string());
        fake.token().get(7).patch(8).patch(9);
        let events = Events::new();
        let client = fake
            .builder()
            .on_update(move |event| {
                if event.sequence == 1 {
                    std::panic::panic_any(Bomb(depth));
                }
            })
            .on_update(events.hook())
            .build()
            .unwrap();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(
            (receipt.outcome, receipt.hook_panics),
            (Outcome::Applied, 1)
        );
        assert_eq!(events.all().len(), 1);
        client.update(&update()).unwrap();
        assert_eq!(client.metrics().hook_panics, 1);
    }
}

#[test]
fn sink_and_closure_panic_payload_that_panics_on_drop_is_contained() {
    struct Exploding;
    impl AuditSink for Exploding {
        fn record(&self, _: &AuditRecord) -> io::Result<()> {
            std::panic::panic_any(Bomb(2))
        }
        fn flush(&self) -> io::Result<()> {
            std::panic::panic_any(Bomb(2))
        }
    }
    let fake = Fake::new();
    fake.token().get(7).patch(8).get_with(8, json!({}));
    let client = fake.builder().audit(Exploding).build().unwrap();
    assert!(client.update(&update()).unwrap().audit_failed);
    assert_eq!(client.flush(secs(0)).unwrap_err().kind(), ErrorKind::Audit);
    let error = client
        .update_with(&Target::conversation("c-1"), |_| {
            std::panic::panic_any(Bomb(2))
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!error.may_have_applied());
}
