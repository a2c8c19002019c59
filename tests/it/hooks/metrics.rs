//! Metrics, and flush.

use super::*;

#[test]
fn metrics_count_what_happened() {
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
        // Throttled for good. After that conflict no version that a write told is used.
        .get(10)
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
        ("requests", 16),
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
        "genesys_attributes_requests_total 16",
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
fn metrics_latency_counts_applied_only() {
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
fn flush_flushes_sink_and_reports_failure() {
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
fn flush_with_stuck_update_times_out() {
    for timeout in [ms(0), ms(7), secs(1)] {
        let server = Memory::new();
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
fn flush_waits_for_updates_and_hooks() {
    let server = Memory::new();
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
