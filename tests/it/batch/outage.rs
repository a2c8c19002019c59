//! A platform or a login that is out of reach, and lines that only seem to meet one.

use super::*;

#[test]
fn batch_outage_at_the_start_parks_and_resumes() {
    for workers in [1, 2, 8, 64] {
        for failure in [refused, broken, || Ok(Response::new(503))] {
            let platform = Platform::new();
            let client = platform.client(move |p, _| (p.seconds() < 20).then(failure));
            let (report, outcomes) =
                collected(platform.batch(&client).workers(workers), lines(300));
            assert!(report.is_complete(), "{workers}: {report:?}");
            assert_eq!(report.applied, 300);
            assert_eq!(outcomes.len(), 300);
            assert_eq!(platform.story(), OUTAGE);
        }
    }
}

#[test]
fn batch_outage_in_the_middle_parks_and_resumes() {
    for workers in [1, 2, 8] {
        for failure in [refused, broken, || Ok(Response::new(502))] {
            let platform = Platform::new();
            // Time passes with each request.
            let client = platform.client(move |p, request| {
                p.clock.advance(Duration::from_millis(20));
                let down = (2..40).contains(&p.seconds()) || (90..140).contains(&p.seconds());
                (down && !request.url().ends_with("/oauth/token")).then(failure)
            });
            let (report, _) = collected(platform.batch(&client).workers(workers), lines(2_000));
            assert!(report.is_complete(), "{workers}: {report:?}");
            assert_eq!(report.lines(), 2_000);
            let story = platform.story();
            assert_eq!(story, [OUTAGE, OUTAGE].concat(), "{workers}");
        }
    }
}

#[test]
fn batch_outage_for_good_stops_and_spends_no_line() {
    for workers in [1, 8] {
        for login_only in [false, true] {
            let platform = Platform::new();
            let client = platform.client(move |_, request| {
                (!login_only || request.url().ends_with("/oauth/token")).then(refused)
            });
            let batch = platform.batch(&client).workers(workers);
            let batch = batch.max_outage(Duration::from_secs(60));
            let (report, outcomes) = collected(batch, lines(100));
            assert_eq!(report.stopped, Some(StopReason::Outage));
            assert_eq!(outcomes, BTreeMap::new());
            let error = report.error.as_ref().unwrap();
            assert_eq!(error.kind(), ErrorKind::Connect);
            assert!(!report.is_complete());
            assert!((60..70).contains(&report.elapsed.as_secs()), "{report:?}");
            // 1, 2, 4, 8, 16, 30 s at most: at least one a wait, and not one a line.
            assert!(platform.story().starts_with(&OUTAGE.map(String::from)[..2]));
            let json = serde_json::to_value(&report).unwrap();
            assert_eq!(json["stopped"], "outage");
            assert_eq!(json["error"]["kind"], "connect");
        }
    }
}

#[test]
fn batch_outage_for_good_fails_only_what_may_be_in_place() {
    let platform = Platform::new();
    // Reads succeed until the outage; then writes leave, and get no answer.
    let client = platform.client(move |p, request| {
        if request.method() == Method::Patch && p.saw("PATCH") > 10 {
            return Some(broken());
        }
        (p.saw("PATCH") > 10 && !request.url().ends_with("/oauth/token")).then(refused)
    });
    let batch = platform.batch(&client).workers(4);
    let updates = (0..400)
        .map(|n| set(&format!("c-{}", n % 100), n))
        .collect();
    let (report, outcomes) = collected(batch, updates);
    assert_eq!(report.stopped, Some(StopReason::Outage));
    assert!((1..=4).contains(&report.failed), "{report:?}");
    assert_eq!(report.skipped, 0);
    // Up to four were counted before the first of them was answered.
    assert!((7..=10).contains(&report.applied), "{report:?}");
    for outcome in outcomes.values().filter(|o| o.error.is_some()) {
        let error = outcome.error.as_ref().unwrap();
        assert!(error.may_have_applied() && !outcome.is_final());
        assert!(outcome.attempts >= 1);
    }
}

#[test]
fn batch_one_bad_conversation_among_good_ones_fails_alone() {
    for workers in [1, 2, 8] {
        for bad in [0, 1, 20, 39] {
            let platform = Platform::new();
            let client = platform.client(move |_, request| {
                let url = request.url();
                url.ends_with(&format!("/c-{bad}"))
                    .then(|| Ok(Response::new(503)))
            });
            let (report, outcomes) = collected(platform.batch(&client).workers(workers), lines(40));
            assert_eq!((report.failed, report.applied), (1, 39), "{workers} {bad}");
            let error = outcomes[&(bad + 1)].error.as_ref().unwrap();
            assert_eq!(error.kind(), ErrorKind::Server);
            assert!(platform.story().is_empty(), "{:?}", platform.story());
        }
    }
}

#[test]
fn batch_bad_conversations_in_a_row_fail_and_the_others_do_not() {
    for workers in [1, 4] {
        for bad in [0..5u64, 10..20, 35..40] {
            let platform = Platform::new();
            let range = bad.clone();
            let client = platform.client(move |_, request| {
                let url = request.url();
                let id = url.split('/').find_map(|part| part.strip_prefix("c-"));
                let id = id.and_then(|id| id.parse().ok());
                id.is_some_and(|id| range.contains(&id)).then(broken)
            });
            let batch = platform.batch(&client).workers(workers);
            let (report, outcomes) = collected(batch, lines(40));
            // With nobody else left, several in a row cannot be told from an outage. Several workers
            // may be through with the others before the bad ones have used up their attempts.
            if bad.end < 40 && (workers == 1 || report.stopped.is_none()) {
                assert_eq!(report.stopped, None, "{workers} {bad:?}");
                for (line, outcome) in outcomes {
                    let failed = outcome.status == Status::Failed;
                    assert_eq!(failed, bad.contains(&(line - 1)), "{line}");
                }
            } else {
                // Where the clock is manual, an outage may be over before a line under way is.
                let good = 40 - (bad.end - bad.start);
                assert!((good - 3..=good).contains(&report.applied), "{report:?}");
                assert_eq!(report.stopped, Some(StopReason::Outage));
            }
        }
    }
}

#[test]
fn batch_single_line_without_an_answer_waits_or_fails_by_whether_the_platform_is_there() {
    // The platform is there, as another endpoint shows.
    let platform = Platform::new();
    let client = platform.client(|_, request| request.url().contains("c-0").then(broken));
    let (report, _) = collected(platform.batch(&client), lines(1));
    assert_eq!((report.failed, report.stopped), (1, None));
    // It is not.
    let platform = Platform::new();
    let client = platform.client(|p, _| (p.seconds() < 30).then(refused));
    let (report, _) = collected(platform.batch(&client), lines(1));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(platform.story(), OUTAGE);
}

#[test]
fn batch_login_that_never_worked_and_is_a_wrong_setting_stops_at_once() {
    let html = "<html><body>Sign in</body></html>";
    for answer in [
        Response::new(302).with_header("Location", "/login"),
        Response::new(404).with_body(html),
        Response::new(200).with_body(html),
    ] {
        for workers in [1, 8] {
            let platform = Platform::new();
            let answer = answer.clone();
            let client = platform.client(move |_, request| {
                let login = request.url().ends_with("/oauth/token");
                login.then(|| Ok(answer.clone()))
            });
            let (report, outcomes) =
                collected(platform.batch(&client).workers(workers), lines(100));
            assert_eq!(report.stopped, Some(StopReason::Login));
            assert_eq!(outcomes, BTreeMap::new());
            assert!(report.error.unwrap().to_string().contains("login endpoint"));
            assert_eq!(platform.requests(), 0);
            assert!(platform.clock.sleeps().is_empty());
        }
    }
}

#[test]
fn batch_login_that_worked_before_and_is_answered_strangely_is_an_outage() {
    let platform = Platform::new();
    // Tokens are good for 300 s; each request takes a second.
    let client = platform.client(|p, request| {
        let login = request.url().ends_with("/oauth/token");
        if !login {
            p.clock.advance(Duration::from_secs(1));
        }
        let down = (100..400).contains(&p.seconds());
        (login && down).then(|| Ok(Response::new(404).with_body("<html>")))
    });
    let (report, _) = collected(platform.batch(&client).workers(2), lines(300));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(platform.story(), OUTAGE);
}

#[test]
fn batch_cancelled_while_parked_ends_at_once() {
    for workers in [1, 32] {
        let platform = Platform::new();
        let clock = Cancelling {
            manual: platform.clock.clone(),
            cancel: Arc::default(),
            sleeps: Arc::default(),
            after: Arc::default(),
        };
        let client = platform.builder(|_, _| Some(refused()));
        let client = client.clock(clock.clone()).build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        clock.cancel.set(batch.cancel_handle()).unwrap();
        let (report, outcomes) = collected(batch, lines(100));
        assert_eq!(report.stopped, Some(StopReason::Cancelled));
        assert_eq!(outcomes, BTreeMap::new());
        let after = *clock.after.lock().unwrap();
        // Others may have begun a slice of a tenth of a second just before.
        assert!(
            after <= Duration::from_millis(100) * workers as u32,
            "{after:?}"
        );
    }
}

#[test]
fn batch_input_that_panics_while_parked_ends_it() {
    let platform = Platform::new();
    let gate = Gate::new();
    let held = gate.clone();
    let client = platform.client(move |_, _| {
        held.wait();
        Some(refused())
    });
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let updates = (0..50u64).map(|n| {
            if n == 30 {
                gate.open();
                panic!("on purpose");
            }
            set(&format!("c-{n}"), n)
        });
        platform
            .batch(&client)
            .workers(4)
            .run(updates, |_| ControlFlow::Continue(()))
    }));
    assert!(result.is_err());
}

#[test]
fn batch_outage_that_ends_with_a_429_goes_on_after_the_pause() {
    let platform = Platform::new();
    let throttled = AtomicUsize::new(0);
    let client = platform.client(move |p, request| {
        if p.seconds() < 50 {
            return Some(refused());
        }
        if request.url().ends_with("/oauth/token") {
            return None;
        }
        match throttled.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Ok(Response::new(429).with_header("Retry-After", "40"))),
            _ => None,
        }
    });
    let batch = platform.batch(&client).workers(2);
    let (report, _) = collected(batch.max_outage(Duration::from_secs(200)), lines(50));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(platform.story(), OUTAGE);
}

/// A maintenance page that says when to come again.
#[test]
fn batch_503_with_retry_after_is_an_outage_and_bounded() {
    let platform = Platform::new();
    let client = platform.client(|_, request| {
        let login = request.url().ends_with("/oauth/token");
        (!login).then(|| Ok(Response::new(503).with_header("Retry-After", "5")))
    });
    let batch = platform.batch(&client).max_outage(Duration::from_secs(900));
    let (report, outcomes) = collected(batch, lines(20));
    assert_eq!(report.stopped, Some(StopReason::Outage));
    assert_eq!(
        report.error.as_ref().map(Error::kind),
        Some(ErrorKind::Server)
    );
    assert_eq!(outcomes, BTreeMap::new());
    let story = platform.story();
    assert!(
        story
            .iter()
            .any(|line| line.starts_with("the platform cannot")),
        "{story:?}"
    );
    assert!(
        !story
            .iter()
            .any(|line| line.starts_with("the platform asked")),
        "{story:?}"
    );
}

/// The login's pauses add up to more than the deadline of a line.
#[test]
fn batch_login_throttled_for_longer_than_a_deadline_is_waited_out() {
    for workers in [1, 4] {
        let platform = Platform::new();
        let logins = AtomicUsize::new(0);
        let client = platform.client(move |_, request| {
            if !request.url().ends_with("/oauth/token") {
                return None;
            }
            let number = logins.fetch_add(1, Ordering::SeqCst);
            (number < 8).then(|| Ok(Response::new(429)))
        });
        let batch = platform.batch(&client).workers(workers);
        let (report, outcomes) = collected(batch, lines(20));
        assert_eq!((report.applied, report.stopped), (20, None), "{outcomes:?}");
        assert!(platform.seconds() >= 300, "{}", platform.seconds());
        // Each of several workers moves the one clock on by its own wait, so that a line may see
        // time pass in which it did not wait: only one worker shows what counts as an outage.
        let story = platform.story();
        let outage = |line: &String| line.starts_with("the platform cannot");
        assert!(workers > 1 || !story.iter().any(outage), "{story:?}");
    }
}

/// Values that are confirmed and do not show are one line's matter, and are not written again.
#[test]
fn batch_values_that_lag_behind_fail_their_line_and_are_no_outage() {
    let platform = Platform::new();
    let client = platform.client(|_, request| {
        let body = r#"{"participants":[{"id":"p-1","purpose":"customer","attributes":{}}]}"#;
        match request.method() {
            Method::Get => Some(Ok(Response::new(200).with_body(body))),
            Method::Patch => Some(Ok(Response::new(202))),
            _ => None,
        }
    });
    let updates: Vec<Update> = (0..12)
        .map(|n| {
            Update::participant(format!("c-{n}"), "p-1")
                .set("k", "v")
                .verify()
        })
        .collect();
    let (report, outcomes) = collected(platform.batch(&client).workers(4), updates);
    assert_eq!((report.failed, report.stopped), (12, None), "{outcomes:?}");
    assert_eq!(platform.story(), [""; 0]);
    for outcome in outcomes.values() {
        let error = outcome.error.as_ref().unwrap();
        assert_eq!((outcome.attempts, error.kind()), (1, ErrorKind::Timeout));
        assert_eq!(error.http_status(), Some(202));
        assert!(error.may_have_applied());
    }
}

/// A platform that takes connections and never answers is noticed after one limit, not after those
/// of all attempts, and the time before that counts.
#[test]
fn batch_platform_that_never_answers_is_an_outage_after_one_limit() {
    let platform = Platform::new();
    let hanging = platform.clock.clone();
    let client = platform.client(move |_, request| {
        (request.method() == Method::Get).then(|| {
            hanging.advance(Duration::from_secs(20));
            let late = Error::new(ErrorKind::Timeout, "no answer in time");
            Err(TransportError::new(late, Sent::Maybe))
        })
    });
    let batch = platform.batch(&client).max_outage(Duration::from_secs(90));
    let (report, outcomes) = collected(batch, lines(10));
    assert_eq!(report.stopped, Some(StopReason::Outage));
    assert_eq!(outcomes, BTreeMap::new());
    assert!((90..=130).contains(&report.elapsed.as_secs()), "{report:?}");
}
