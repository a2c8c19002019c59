//! What ends a batch before its input does.

use super::*;

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
    let client = faked(&clock, conversations(|_| Response::new(400)))
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
fn batch_endpoint_that_is_not_offered_stops_at_the_first_such_line() {
    let platform = Platform::new();
    let client = platform
        .client(|_, request| (request.method() == Method::Patch).then(|| Ok(Response::new(404))));
    let (report, outcomes) = collected(platform.batch(&client), lines(100));
    assert_eq!(report.stopped, Some(StopReason::EndpointMissing));
    assert!(report.failed <= 3, "{report:?}");
    assert!(!outcomes[&1].is_final());
}

#[test]
fn batch_of_conversations_without_a_version_stops_at_the_first_such_line() {
    let platform = Platform::new();
    let client = platform.client(|_, request| {
        let body = r#"{"id":"c-1","participants":[]}"#;
        (request.method() == Method::Get).then(|| Ok(Response::new(200).with_body(body)))
    });
    let (report, outcomes) = collected(platform.batch(&client), lines(100));
    assert_eq!(report.stopped, Some(StopReason::EndpointMissing));
    assert!(report.failed <= 3, "{report:?}");
    assert_eq!(platform.saw("PATCH"), 0);
    let error = outcomes[&1].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.to_string().contains("use the participant"));
    // It can be run where they have one.
    assert!(!outcomes[&1].is_final());
}

#[test]
fn batch_neighbours_of_a_line_that_stops_it_are_skipped() {
    let platform = Platform::new();
    let gate = Gate::new();
    let (held, opens) = (gate.clone(), gate.clone());
    let stopped: Arc<OnceLock<Cancel>> = Arc::default();
    let stop = stopped.clone();
    let tried = AtomicUsize::new(0);
    let client = platform.client(move |_, request| {
        if request.method() != Method::Get {
            return None;
        }
        if request.url().ends_with("c-0") {
            return Some(Ok(Response::new(429).with_header("Retry-After", "3600")));
        }
        held.wait();
        if tried.fetch_add(1, Ordering::SeqCst) >= 3 {
            // Sent again: no pause of the manual clock may pass, since each is everybody's time.
            while !stop.get().is_some_and(Cancel::is_cancelled) {
                std::thread::yield_now();
            }
        }
        Some(Ok(Response::new(429).with_header("Retry-After", "7")))
    });
    let batch = platform.batch(&client).workers(4);
    stopped.set(batch.cancel_handle()).unwrap();
    let mut outcomes = Vec::new();
    let report = batch.run(lines(4), |outcome| {
        outcomes.push(outcome.clone());
        if outcomes.len() == 1 {
            opens.open();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(report.stopped, Some(StopReason::RateLimited));
    assert_eq!(report.failed, 1, "{outcomes:?}");
    for outcome in outcomes.iter().filter(|o| o.line != 1) {
        assert_eq!(outcome.status, Status::Skipped, "{outcome:?}");
        let json = serde_json::to_value(outcome).unwrap();
        assert!(
            json["reason"].as_str().unwrap().contains("stopped"),
            "{json}"
        );
        assert!(!outcome.is_final());
    }
}

#[test]
fn batch_observer_that_panics_is_the_caller_s_panic() {
    let platform = Platform::new();
    let client = platform.client(|_, _| Some(refused()));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let batch = Batch::new(&client)
            .workers(4)
            .on_notice(|_| panic!("on purpose"));
        batch.run(lines(100), |_| ControlFlow::Continue(()))
    }));
    assert!(result.is_err());
}

/// In its look-up of participants, its pings and its reads.
#[test]
fn batch_transport_that_panics_on_reads_fails_its_lines() {
    let clock = ManualClock::new();
    let api = |request: &Request| match request.method() {
        Method::Get => panic!("the transport panics on purpose"),
        _ => Response::new(202),
    };
    let client = faked(&clock, api).build().unwrap();
    let updates = (0..40).map(|n| Update::participant(format!("c-{n}"), "customer").set("k", "v"));
    let mut kinds = Vec::new();
    let report = Batch::new(&client).workers(4).run(updates, |outcome| {
        kinds.push(outcome.error.as_ref().map(Error::kind));
        ControlFlow::Continue(())
    });
    assert_eq!((report.failed, report.stopped), (40, None));
    assert_eq!(kinds, vec![Some(ErrorKind::Internal); 40]);
}
