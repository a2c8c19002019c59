//! The batch engine: order, skipping, stopping, parking, and how far it reads ahead.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use genesys_attributes::{
    Batch, BatchOutcome, BatchReport, BatchStatus, Cancel, Client, ClientBuilder, Credentials,
    ErrorKind, LineError, ManualClock, Method, RateLimit, Region, Request, Response, RetryPolicy,
    StopReason, TransportError, Update,
};
use serde_json::json;

use crate::server::Resp;
use crate::store::Store;
use crate::wire::Gate;

fn builder() -> ClientBuilder {
    Client::builder(
        Region::parse("us-east-1").unwrap(),
        Credentials::new("id", "secret"),
    )
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .retry(
        RetryPolicy::default()
            .with_max_attempts(60)
            .with_max_conflicts(50)
            .with_backoff(Duration::from_millis(1), Duration::from_millis(1)),
    )
}

/// A client whose answers to API requests come from `api`, and whose clock is manual.
fn faked(
    clock: &ManualClock,
    api: impl Fn(&Request) -> Response + Send + Sync + 'static,
) -> ClientBuilder {
    builder()
        .base_url("http://127.0.0.1:1")
        .clock(clock.clone())
        .transport(
            move |request: &Request| -> Result<Response, TransportError> {
                if request.url().ends_with("/oauth/token") {
                    let body = r#"{"access_token":"t","expires_in":86400}"#;
                    return Ok(Response::new(200).with_body(body));
                }
                Ok(api(request))
            },
        )
}

/// Reads succeed with version 1, writes as `write` says.
fn conversations(
    write: impl Fn(&str) -> Response + Send + Sync + 'static,
) -> impl Fn(&Request) -> Response {
    move |request| {
        if request.method() == Method::Get {
            return Response::new(200).with_body(r#"{"version":"1"}"#);
        }
        let id = request.url().split('/').nth_back(1).unwrap_or_default();
        write(id)
    }
}

fn applied() -> Response {
    Response::new(200).with_body(r#"{"version":"2"}"#)
}

fn set(id: &str, n: u64) -> Result<Update, LineError> {
    Ok(Update::conversation(id).set("n", n))
}

/// Runs and collects the outcomes, sorted by line.
fn collected(
    batch: Batch,
    updates: Vec<Result<Update, LineError>>,
) -> (BatchReport, BTreeMap<u64, BatchOutcome>) {
    let mut outcomes = BTreeMap::new();
    let report = batch.run(updates, |outcome| {
        assert!(outcomes.insert(outcome.line, outcome.clone()).is_none());
        ControlFlow::Continue(())
    });
    assert_eq!(report.lines(), outcomes.len() as u64);
    (report, outcomes)
}

#[test]
fn order_holds_for_each_conversation_under_faults() {
    let store = Store::default();
    let seen = AtomicUsize::new(0);
    let server = store.serve(move |req, store| {
        if req.path == "/oauth/token" {
            return None;
        }
        match seen.fetch_add(1, Ordering::Relaxed) % 11 {
            2 => Some(Resp::json(503, "{}")),
            // Applied, but the answer is an error.
            5 => {
                store.answer(req);
                Some(Resp::json(504, "{}"))
            }
            7 => Some(Resp::reset()),
            // Applied, but no answer comes.
            9 => {
                store.answer(req);
                Some(Resp::reset())
            }
            _ => None,
        }
    });
    let client = builder().base_url(server.url()).build().unwrap();
    let (conversations, lines) = (30u64, 20u64);
    let updates: Vec<_> = (0..conversations * lines)
        .map(|i| set(&format!("c-{}", i % conversations), i / conversations))
        .collect();
    let last = Mutex::new(HashMap::<String, u64>::new());
    let report = Batch::new(&client).workers(8).run(updates, |outcome| {
        let id = outcome.conversation_id.clone().unwrap();
        let before = last.lock().unwrap().insert(id, outcome.line);
        assert!(before.is_none_or(|before| before < outcome.line));
        ControlFlow::Continue(())
    });
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.lines(), conversations * lines);
    assert!(report.already_applied > 0, "{report:?}");
    for id in store.ids() {
        store.with(&id, |conversation| {
            let order: Vec<u64> = conversation
                .writes
                .iter()
                .map(|write| write["n"].as_u64().unwrap())
                .collect();
            assert!(order.is_sorted(), "{id}: {order:?}");
            assert_eq!(order.last(), Some(&(lines - 1)));
        });
    }
    assert_eq!(server.panics(), 0);
}

#[test]
fn a_failure_that_may_pass_skips_the_rest_of_its_conversation_only() {
    let clock = ManualClock::new();
    let client = faked(
        &clock,
        conversations(|id| match id {
            "down" => Response::new(503),
            "wrong" => Response::new(400),
            _ => applied(),
        }),
    )
    .build()
    .unwrap();
    let updates = vec![
        set("down", 1),
        set("wrong", 1),
        set("fine", 1),
        set("down", 2),
        set("wrong", 2),
        Err(LineError::new("not JSON")),
        set("fine", 2),
        set("down", 3),
    ];
    let (report, outcomes) = collected(Batch::new(&client).workers(3), updates);
    let status: Vec<BatchStatus> = outcomes.values().map(|o| o.status).collect();
    use BatchStatus::{Applied, Failed, Skipped};
    assert_eq!(
        status,
        [
            Failed, Failed, Applied, Skipped, Failed, Failed, Applied, Skipped
        ]
    );
    assert_eq!((report.failed, report.skipped, report.applied), (4, 2, 2));
    assert_eq!(report.failed_with(ErrorKind::Server), 1);
    assert_eq!(report.failed_with(ErrorKind::InvalidInput), 3);
    assert_eq!(report.stopped, None);
    assert!(!report.is_complete());
    // What may pass or was skipped is to be run again, what failed for good is not.
    let again: Vec<u64> = outcomes
        .values()
        .filter(|o| !o.is_final())
        .map(|o| o.line)
        .collect();
    assert_eq!(again, [1, 4, 8]);
    assert!(outcomes[&1].error.as_ref().unwrap().may_have_applied());
    assert_eq!(outcomes[&6].conversation_id, None);
    let json = serde_json::to_value(&outcomes[&4]).unwrap();
    assert_eq!(json["status"], "skipped");
    assert!(json["reason"].is_string());
}

#[test]
fn outcomes_have_the_documented_form() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let (_, outcomes) = collected(Batch::new(&client), vec![set("c", 1)]);
    assert_eq!(
        serde_json::to_string(&outcomes[&1]).unwrap(),
        r#"{"line":1,"conversationId":"c","status":"applied","version":"2","attempts":1,"requests":2,"latencyMs":0}"#
    );
}

#[test]
fn a_429_parks_the_workers_and_nothing_fails_because_of_it() {
    let clock = ManualClock::new();
    let writes = AtomicUsize::new(0);
    let client = faked(
        &clock,
        conversations(move |_| match writes.fetch_add(1, Ordering::Relaxed) {
            // More in a row than one update tries.
            3..12 => Response::new(429).with_header("Retry-After", "7"),
            _ => applied(),
        }),
    )
    .retry(RetryPolicy::default())
    .build()
    .unwrap();
    let updates = (0..40).map(|n| set(&format!("c-{n}"), n)).collect();
    let (report, outcomes) = collected(Batch::new(&client).workers(2), updates);
    assert!(report.is_complete(), "{report:?}");
    let sent: u32 = outcomes.values().map(|o| o.attempts).sum();
    assert_eq!(sent, 49, "attempts of every round are counted");
    assert!(
        clock
            .sleeps()
            .iter()
            .any(|s| *s >= Duration::from_millis(100))
    );
}

#[test]
fn a_retry_after_beyond_the_maximum_stops_the_batch() {
    let clock = ManualClock::new();
    let client = faked(
        &clock,
        conversations(|id| match id {
            "c-5" => Response::new(429).with_header("Retry-After", "3600"),
            _ => applied(),
        }),
    )
    .build()
    .unwrap();
    let updates = (0..10_000).map(|n| set(&format!("c-{n}"), n)).collect();
    let (report, outcomes) = collected(Batch::new(&client).workers(2), updates);
    assert_eq!(report.stopped, Some(StopReason::RateLimited));
    assert!(report.lines() < 1_000, "{}", report.lines());
    assert!(!outcomes[&6].is_final());
    assert!(clock.sleeps().is_empty());
}

#[test]
fn refused_credentials_stop_it_at_once() {
    let client = builder()
        .base_url("http://127.0.0.1:1")
        .transport(|_: &Request| -> Result<Response, TransportError> {
            Ok(Response::new(401).with_body(r#"{"error":"invalid_client"}"#))
        })
        .build()
        .unwrap();
    let updates = (0..10_000).map(|n| set(&format!("c-{n}"), n)).collect();
    let (report, outcomes) = collected(Batch::new(&client).workers(4), updates);
    assert_eq!(report.stopped, Some(StopReason::Auth));
    assert!(report.lines() < 100, "{}", report.lines());
    assert!(outcomes.values().all(|o| !o.is_final()));
}

#[test]
fn twenty_equal_refusals_at_the_start_stop_it_and_a_success_among_them_does_not() {
    for (lucky, stopped) in [(None, Some(StopReason::Forbidden)), (Some("c-9"), None)] {
        let clock = ManualClock::new();
        let client = faked(
            &clock,
            conversations(move |id| match Some(id) == lucky {
                true => applied(),
                false => Response::new(403).with_body(r#"{"code":"missing.any.permissions"}"#),
            }),
        )
        .build()
        .unwrap();
        let updates = (0..200).map(|n| set(&format!("c-{n}"), n)).collect();
        let (report, _) = collected(Batch::new(&client), updates);
        assert_eq!(report.stopped, stopped);
        assert_eq!(report.lines() == 200, stopped.is_none());
    }
}

#[test]
fn it_stops_after_so_many_failures() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| Response::new(404)))
        .build()
        .unwrap();
    let updates = (0..10_000).map(|n| set(&format!("c-{n}"), n)).collect();
    let (report, _) = collected(Batch::new(&client).stop_after(5), updates);
    assert_eq!(report.stopped, Some(StopReason::Failures));
    assert!((5..20).contains(&report.failed), "{}", report.failed);
}

#[test]
fn the_closure_and_the_handle_stop_it() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let mut calls = 0;
    let report =
        Batch::new(&client)
            .workers(4)
            .run((0..).map(|n| set(&format!("c-{n}"), 1)), |_| {
                calls += 1;
                if calls == 10 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
    assert_eq!(report.stopped, Some(StopReason::Break));
    assert_eq!((calls, report.lines()), (10, 10));

    let batch = Batch::new(&client).workers(4);
    let handle = batch.cancel_handle();
    let report = batch.run((0..).map(|n| set(&format!("c-{n}"), 1)), |outcome| {
        if outcome.line == 50 {
            handle.cancel();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(report.stopped, Some(StopReason::Cancelled));
}

#[test]
fn a_cancelled_batch_with_lines_that_were_not_begun_is_not_complete() {
    let clock = ManualClock::new();
    let handle: Arc<OnceLock<Cancel>> = Arc::default();
    let cancels = handle.clone();
    // The first write cancels the batch. By then most lines wait for the rate, with nothing sent.
    let client = faked(
        &clock,
        conversations(move |_| {
            cancels.get().unwrap().cancel();
            applied()
        }),
    )
    .rate_limit(RateLimit::per_minute(2))
    .build()
    .unwrap();
    let batch = Batch::new(&client).workers(8);
    handle.set(batch.cancel_handle()).unwrap();
    let report = batch.run((0..8).map(|n| set(&format!("c-{n}"), n)), |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(report.stopped, Some(StopReason::Cancelled), "{report:?}");
    assert!(!report.is_complete());
    assert!(report.applied < 8);
}

#[test]
fn a_slow_conversation_does_not_hold_up_the_others_and_fills_the_read_ahead_only() {
    let store = Store::default();
    let gate = Gate::new();
    let held = gate.clone();
    let server = store.serve(move |req, _| {
        if req.path.contains("slow") {
            held.wait();
        }
        None
    });
    let client = builder().base_url(server.url()).build().unwrap();
    let pulled = Arc::new(AtomicUsize::new(0));
    let counter = pulled.clone();
    // Two fast lines, then nothing but the slow conversation.
    let updates = (0..3_000u64).map(move |n| {
        counter.fetch_add(1, Ordering::SeqCst);
        match n {
            0..=1 => set(&format!("fast-{n}"), n),
            _ => set("slow", n),
        }
    });
    let mut fast = 0;
    let report = Batch::new(&client).workers(4).run(updates, |outcome| {
        if outcome.conversation_id.as_deref() != Some("slow") {
            fast += 1;
            if fast == 2 {
                // Both fast lines are done while the slow one is under way.
                gate.open();
            }
        } else {
            let ahead = pulled.load(Ordering::SeqCst) as u64 - outcome.line;
            assert!(ahead <= 1_000 + 20, "{ahead} lines read ahead");
        }
        ControlFlow::Continue(())
    });
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.applied, 3_000);
    store.with("slow", |conversation| {
        let order: Vec<u64> = conversation
            .writes
            .iter()
            .map(|w| w["n"].as_u64().unwrap())
            .collect();
        assert_eq!(order, (2..3_000).collect::<Vec<_>>());
    });
}

#[test]
fn large_lines_fill_the_read_ahead_by_their_bytes() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let pulled = AtomicUsize::new(0);
    let text = json!("x".repeat(1_000));
    let updates = (0..100u64).map(|_| {
        pulled.fetch_add(1, Ordering::SeqCst);
        // 400 kB a line: eleven of them fill the read-ahead.
        Ok((0..400).fold(Update::conversation("one"), |update, key| {
            update.set(format!("k{key}"), text.clone())
        }))
    });
    let report = Batch::new(&client).workers(2).run(updates, |outcome| {
        let ahead = pulled.load(Ordering::SeqCst) as u64 - outcome.line;
        // A few more for the lines on their way to this closure.
        assert!(ahead <= 11 + 8, "{ahead} lines read ahead");
        ControlFlow::Continue(())
    });
    assert_eq!(report.applied, 100);
}

#[test]
fn an_input_that_blocks_does_not_stall_outcomes() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let gate = Gate::new();
    let held = gate.clone();
    let updates = (0..4u64).map(move |n| {
        if n == 3 {
            held.wait();
        }
        set(&format!("c-{n}"), n)
    });
    let mut seen = 0;
    let report = Batch::new(&client).workers(2).run(updates, |_| {
        seen += 1;
        if seen == 3 {
            // Only now does the input go on: three outcomes came while it blocked.
            gate.open();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(report.applied, 4);
}

#[test]
fn a_panicking_input_is_the_caller_s_panic() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let mut seen = 0;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let updates = (0..5u64).map(|n| {
            assert!(n < 3, "on purpose");
            set(&format!("c-{n}"), n)
        });
        Batch::new(&client).workers(2).run(updates, |_| {
            seen += 1;
            ControlFlow::Continue(())
        })
    }));
    assert!(result.is_err());
    assert_eq!(seen, 3);
}

#[test]
fn a_panicking_closure_is_the_caller_s_panic_and_ends_the_workers() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let endless = (0..).map(|n| set(&format!("c-{n}"), 1));
        Batch::new(&client)
            .workers(4)
            .run(endless, |_| panic!("on purpose"))
    }));
    assert!(result.is_err());
}

#[test]
fn tags_come_back_with_their_outcomes() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let messages = (0..50u64).map(|n| (n * 10, format!("handle-{n}"), set(&format!("c-{n}"), n)));
    let mut acknowledged = Vec::new();
    Batch::new(&client)
        .workers(4)
        .run_tagged(messages, |handle, outcome| {
            assert_eq!(handle, format!("handle-{}", outcome.line / 10));
            assert_eq!(
                outcome.conversation_id,
                Some(format!("c-{}", outcome.line / 10))
            );
            acknowledged.push(handle);
            ControlFlow::Continue(())
        });
    assert_eq!(acknowledged.len(), 50);
}
