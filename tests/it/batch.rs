//! The batch engine: order, skipping, stopping, parking, and how far it reads ahead.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use genesys_attributes::{
    Batch, BatchItem, BatchOutcome, BatchReport, Cancel, Client, ClientBuilder, Clock, Credentials,
    EndedPolicy, Error, ErrorKind, ManualClock, Method, RateLimit, Region, Request, Response,
    RetryPolicy, Sent, Status, StopReason, TransportError, Update,
};
use serde_json::json;

use crate::fake::AlarmClock;
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

fn set(id: &str, n: u64) -> Update {
    Update::conversation(id).set("n", n)
}

/// Runs and collects the outcomes, sorted by line.
fn collected(
    batch: Batch,
    updates: Vec<impl BatchItem + Send>,
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
        Ok(set("down", 1)),
        Ok(set("wrong", 1)),
        Ok(set("fine", 1)),
        Ok(set("down", 2)),
        Ok(set("wrong", 2)),
        Err(Error::new(ErrorKind::InvalidInput, "not JSON")),
        Ok(set("fine", 2)),
        Ok(set("down", 3)),
    ];
    let (report, outcomes) = collected(Batch::new(&client).workers(3), updates);
    let status: Vec<Status> = outcomes.values().map(|o| o.status).collect();
    use Status::{Applied, Failed, Skipped};
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
        r#"{"line":1,"conversationId":"c","status":"applied","version":"2","attempts":1,"requests":2,"latencyMs":0,"target":"conversation","timestamp":"2026-01-01T00:00:00.000Z"}"#
    );
}

#[test]
fn batch_429s_park_the_workers_and_fail_nothing() {
    // More in a row than one update tries; for one worker also more than it has time for. The
    // sleeps of several on one manual clock add up.
    for (workers, throttled) in [(2, 12), (1, 200)] {
        let clock = ManualClock::new();
        let writes = AtomicUsize::new(0);
        let client = faked(
            &clock,
            conversations(move |_| {
                let number = writes.fetch_add(1, Ordering::Relaxed);
                if (3..throttled).contains(&number) {
                    Response::new(429).with_header("Retry-After", "7")
                } else {
                    applied()
                }
            }),
        )
        .retry(RetryPolicy::default())
        .build()
        .unwrap();
        let updates = (0..40).map(|n| set(&format!("c-{n}"), n)).collect();
        let (report, outcomes) = collected(Batch::new(&client).workers(workers), updates);
        assert!(report.is_complete(), "{report:?}");
        let sent: u32 = outcomes.values().map(|o| o.attempts).sum();
        assert_eq!(sent as usize, 40 + throttled - 3);
    }
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
    let updates = (0..1_500u64).map(move |n| {
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
    assert_eq!(report.applied, 1_500);
    store.with("slow", |conversation| {
        let order: Vec<u64> = conversation
            .writes
            .iter()
            .map(|w| w["n"].as_u64().unwrap())
            .collect();
        assert_eq!(order, (2..1_500).collect::<Vec<_>>());
    });
}

#[test]
fn large_lines_fill_the_read_ahead_by_their_bytes() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let pulled = AtomicUsize::new(0);
    let text = json!("x".repeat(1_000));
    let updates = (0..20u64).map(|_| {
        pulled.fetch_add(1, Ordering::SeqCst);
        // 400 kB a line: eleven of them fill the read-ahead.
        (0..400).fold(Update::conversation("one"), |update, key| {
            update.set(format!("k{key}"), text.clone())
        })
    });
    let report = Batch::new(&client).workers(2).run(updates, |outcome| {
        let ahead = pulled.load(Ordering::SeqCst) as u64 - outcome.line;
        // A few more for the lines on their way to this closure.
        assert!(ahead <= 11 + 8, "{ahead} lines read ahead");
        ControlFlow::Continue(())
    });
    assert_eq!(report.applied, 20);
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

/// A platform that can be away: what it answers, and what it saw.
#[derive(Clone)]
struct Platform {
    clock: ManualClock,
    start: Instant,
    seen: Arc<Mutex<Vec<String>>>,
    notices: Arc<Mutex<Vec<String>>>,
}

type Answer = Result<Response, TransportError>;

impl Platform {
    fn new() -> Platform {
        let clock = ManualClock::new();
        Platform {
            start: clock.now(),
            clock,
            seen: Arc::default(),
            notices: Arc::default(),
        }
    }

    fn seconds(&self) -> u64 {
        (self.clock.now() - self.start).as_secs()
    }

    /// `first` may answer in the platform's stead.
    fn builder(
        &self,
        first: impl Fn(&Platform, &Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> ClientBuilder {
        let this = self.clone();
        let serve = conversations(|_| applied());
        builder()
            .base_url("http://127.0.0.1:1")
            .clock(self.clock.clone())
            .retry(RetryPolicy::default())
            .transport(move |request: &Request| -> Answer {
                let path = request.url().trim_start_matches("http://127.0.0.1:1");
                let seen = format!("{} {path}", request.method().as_str());
                this.seen.lock().unwrap().push(seen);
                if let Some(answer) = first(&this, request) {
                    return answer;
                }
                if path == "/oauth/token" {
                    let body = r#"{"access_token":"t","expires_in":300}"#;
                    return Ok(Response::new(200).with_body(body));
                }
                Ok(serve(request))
            })
    }

    fn client(
        &self,
        first: impl Fn(&Platform, &Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Client {
        self.builder(first).build().unwrap()
    }

    fn batch(&self, client: &Client) -> Batch {
        let notices = self.notices.clone();
        Batch::new(client).on_notice(move |notice| notices.lock().unwrap().push(notice.to_string()))
    }

    fn requests(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|line| !line.contains("oauth")).count()
    }

    fn saw(&self, part: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|line| line.contains(part)).count()
    }

    /// The first words of each notice, without repetitions in a row.
    fn story(&self) -> Vec<String> {
        let mut story: Vec<String> = Vec::new();
        for notice in self.notices.lock().unwrap().iter() {
            assert!(!notice.contains('\n'), "{notice:?}");
            let words: Vec<&str> = notice.split(' ').take(3).collect();
            let words = match words.as_slice() {
                ["line", _, more] => format!("line {more}"),
                words => words.join(" "),
            };
            if story.last() != Some(&words) {
                story.push(words);
            }
        }
        story
    }
}

const OUTAGE: [&str; 3] = ["the platform cannot", "line is", "the platform answers"];

fn refused() -> Answer {
    Err(TransportError::new(
        Error::new(ErrorKind::Connect, "nothing is listening"),
        Sent::No,
    ))
}

fn broken() -> Answer {
    Err(TransportError::new(
        Error::new(ErrorKind::Transport, "the connection broke"),
        Sent::Maybe,
    ))
}

fn lines(count: u64) -> Vec<Update> {
    (0..count).map(|n| set(&format!("c-{n}"), n)).collect()
}

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
            // With nobody else left, several in a row cannot be told from an outage.
            if bad.end < 40 {
                assert_eq!(report.stopped, None, "{workers} {bad:?}");
                for (line, outcome) in outcomes {
                    let failed = outcome.status == Status::Failed;
                    assert_eq!(failed, bad.contains(&(line - 1)), "{line}");
                }
            } else {
                // Where the clock is manual, an outage may be over before a line under way is.
                assert!((32..=35).contains(&report.applied), "{report:?}");
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

/// A clock that sets a flag in a sleep once it is told to, and counts what is slept after that.
#[derive(Debug, Clone)]
struct Cancelling {
    manual: ManualClock,
    cancel: Arc<OnceLock<Cancel>>,
    sleeps: Arc<AtomicUsize>,
    after: Arc<Mutex<Duration>>,
}

impl Clock for Cancelling {
    fn now(&self) -> Instant {
        self.manual.now()
    }
    fn wall(&self) -> SystemTime {
        self.manual.wall()
    }
    fn sleep(&self, duration: Duration) {
        let cancel = self.cancel.get().unwrap();
        if cancel.is_cancelled() {
            *self.after.lock().unwrap() += duration;
        } else if self.sleeps.fetch_add(1, Ordering::SeqCst) == 300 {
            cancel.cancel();
        }
        self.manual.sleep(duration);
    }
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
fn batch_pause_of_the_platform_is_noticed() {
    let platform = Platform::new();
    let asked = AtomicUsize::new(0);
    let client = platform.builder(move |_, request| {
        let login = request.url().ends_with("/oauth/token");
        let first = !login && asked.fetch_add(1, Ordering::SeqCst) == 0;
        first.then(|| Ok(Response::new(429).with_header("Retry-After", "31")))
    });
    // The first sleep does not begin before the notice has come.
    let gate = Gate::new();
    let held = gate.clone();
    let clock = AlarmClock::new(platform.clock.clone(), move || held.wait());
    let client = client.clock(clock).build().unwrap();
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = notices.clone();
    let batch = Batch::new(&client).on_notice(move |notice| {
        heard.lock().unwrap().push(notice.to_string());
        gate.open();
    });
    let report = batch.run(lines(3), |_| ControlFlow::Continue(()));
    assert!(report.is_complete(), "{report:?}");
    let notices = notices.lock().unwrap();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(
        notices[0].contains("slow down: waiting for 31."),
        "{notices:?}"
    );
}

#[test]
fn batch_takes_plain_updates_and_results() {
    let platform = Platform::new();
    let client = platform.client(|_, _| None);
    let go = |_: &BatchOutcome| ControlFlow::Continue(());
    assert_eq!(Batch::new(&client).run([set("c", 1)], go).applied, 1);
    assert_eq!(Batch::new(&client).run([Ok(set("c", 1))], go).applied, 1);
    let tagged = [(7, "tag", set("c", 1))];
    let report = Batch::new(&client).run_tagged(tagged, |tag, outcome| {
        assert_eq!((tag, outcome.line), ("tag", 7));
        ControlFlow::Continue(())
    });
    assert_eq!(report.applied, 1);
    assert_eq!(Batch::new(&client).run(Vec::<Update>::new(), go).lines(), 0);
}

#[test]
fn batch_outcome_tells_target_and_resource_and_hides_values() {
    let platform = Platform::new();
    let client = platform.client(|_, request| {
        let url = request.url();
        let body = if url.ends_with("/p") {
            r#"{"participants":[{"id":"p-7","purpose":"customer"}],"endTime":"2026-01-01T00:00:00Z"}"#
        } else if url.contains("custom") {
            return Some(Ok(Response::new(404)));
        } else {
            return None;
        };
        Some(Ok(Response::new(200).with_body(body)))
    });
    let updates = vec![
        Update::participant("p", "customer").set("iban", "DE89"),
        Update::custom("c", "crm-1").set("iban", "DE89"),
        Update::conversation("c").set("iban", "DE89"),
    ];
    let (_, outcomes) = collected(Batch::new(&client), updates);
    let json = |line| serde_json::to_value(&outcomes[&line]).unwrap();
    assert_eq!(json(1)["target"], "participant");
    assert_eq!(json(1)["resourceId"], "p-7");
    assert_eq!(json(1)["conversationEnded"], true);
    assert_eq!(json(1).get("verified"), None);
    assert_eq!(json(2)["target"], "custom");
    assert_eq!(json(2)["resourceId"], "crm-1");
    assert_eq!(json(2)["status"], "failed");
    assert_eq!(json(3)["target"], "conversation");
    assert_eq!(json(3).get("resourceId"), None);
    assert_eq!(json(3).get("conversationEnded"), None);
    assert_eq!(outcomes[&1], outcomes[&1].clone());
    assert_ne!(outcomes[&1], outcomes[&2]);
    assert!(!format!("{outcomes:?}").contains("DE89"));
}

#[test]
fn batch_threads_start_as_there_is_work_and_up_to_the_limit() {
    // One line, one worker.
    let threads = Arc::new(Mutex::new(HashSet::new()));
    let platform = Platform::new();
    let seen = threads.clone();
    let client = platform.client(move |_, _| {
        seen.lock().unwrap().insert(std::thread::current().id());
        None
    });
    let (report, _) = collected(platform.batch(&client).workers(64), lines(1));
    assert!(report.is_complete());
    assert_eq!(threads.lock().unwrap().len(), 1);
    // More updates at the same time than are begun eagerly.
    let gate = Gate::new();
    let (held, under_way) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let platform = Platform::new();
    let count = under_way.clone();
    let client = platform.client(move |_, request| {
        if request.method() == Method::Get {
            if count.fetch_add(1, Ordering::SeqCst) + 1 == 100 {
                held.open();
            }
            held.wait();
        }
        None
    });
    let (report, _) = collected(platform.batch(&client).workers(100), lines(200));
    assert!(report.is_complete());
}

#[test]
fn batch_two_on_one_client_do_not_disturb_each_other() {
    let platform = Platform::new();
    let client = platform.client(|p, _| (p.seconds() < 20).then(refused));
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (client, platform) = (&client, &platform);
            scope.spawn(move || {
                let updates: Vec<_> = (0..200)
                    .map(|n| set(&format!("c-{}-{n}", if n % 2 == 0 { 9 } else { part }), 1))
                    .collect();
                let (report, _) = collected(platform.batch(client).workers(4), updates);
                assert!(report.is_complete(), "{report:?}");
                assert_eq!(report.applied, 200);
            });
        }
    });
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

#[test]
fn batch_input_that_blocks_does_not_hold_a_line_back() {
    let platform = Platform::new();
    let client = platform.client(|_, request| request.url().contains("c-0").then(broken));
    let gate = Gate::new();
    let held = gate.clone();
    let updates = (0..2u64).map(move |n| {
        if n == 1 {
            held.wait();
        }
        set(&format!("c-{n}"), n)
    });
    let mut status = Vec::new();
    platform.batch(&client).run(updates, |outcome| {
        status.push(outcome.status);
        gate.open();
        ControlFlow::Continue(())
    });
    assert_eq!(status, [Status::Failed, Status::Applied]);
}

/// The answer to a read of many conversations, without those that `lacks` names.
fn details_body(url: &str, lacks: impl Fn(&str) -> bool) -> serde_json::Value {
    let ids = url.split("?id=").nth(1).unwrap_or_default().split(',');
    let conversations: Vec<_> = ids
        .filter(|id| !lacks(id))
        .map(|id| {
            json!({ "conversationId": id, "participants": [
                { "participantId": format!("agent-{id}"), "purpose": "agent" },
                { "participantId": format!("p-{id}"), "purpose": "customer" },
            ]})
        })
        .collect();
    json!({ "conversations": conversations })
}

/// A platform with participants; `bulk` may answer the read of many in its stead, and `single` the
/// read of one.
fn participants(
    platform: &Platform,
    bulk: impl Fn(&Platform, &str) -> Option<Answer> + Send + Sync + 'static,
    single: impl Fn(&str) -> Option<serde_json::Value> + Send + Sync + 'static,
) -> ClientBuilder {
    platform.builder(move |platform, request| {
        let url = request.url();
        if url.contains("/analytics/") {
            return Some(bulk(platform, url).unwrap_or_else(|| {
                Ok(Response::new(200).with_body(details_body(url, |_| false).to_string()))
            }));
        }
        if request.method() == Method::Get {
            let id = url.rsplit('/').next().unwrap_or_default();
            let body = single(id).unwrap_or_else(
                || json!({ "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }] }),
            );
            return Some(Ok(Response::new(200).with_body(body.to_string())));
        }
        if request.method() == Method::Patch {
            let parts: Vec<&str> = url.rsplit('/').collect();
            let (participant, id) = (parts[1], parts[3]);
            return Some(Ok(Response::new(match participant == format!("p-{id}") {
                true => 202,
                false => 404,
            })));
        }
        None
    })
}

fn customers(count: u64) -> Vec<Update> {
    let update = |n| Update::participant(format!("c-{n}"), "customer").set("n", n);
    (0..count).map(update).collect()
}

#[test]
fn look_ahead_costs_one_request_for_a_hundred_updates() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let client = participants(&platform, |_, _| None, |_| None);
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, outcomes) = collected(batch, customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert_eq!((platform.requests(), platform.saw("details")), (1_010, 10));
        assert!(outcomes.values().all(|o| o.requests == 1));
        assert_eq!(outcomes[&1].resource_id.as_deref(), Some("p-c-0"));
        assert!(platform.story().is_empty());
    }
}

#[test]
fn look_ahead_leaves_what_it_cannot_tell_to_single_reads() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, url| {
            let mut body = details_body(url, |id| id.ends_with('7'));
            for conversation in body["conversations"].as_array_mut().unwrap() {
                let id = conversation["conversationId"].as_str().unwrap().to_owned();
                let people = conversation["participants"].as_array_mut().unwrap();
                match id.chars().last() {
                    // Nobody yet; two of them; one without an id.
                    Some('1') => people.truncate(1),
                    Some('2') => people.push(people[1].clone()),
                    Some('3') => people[1]["participantId"] = json!(null),
                    _ => {}
                }
            }
            Some(Ok(Response::new(200).with_body(body.to_string())))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let batch = platform.batch(&client).workers(4);
    let (report, outcomes) = collected(batch, customers(100));
    assert!(report.is_complete(), "{report:?}");
    for (line, outcome) in outcomes {
        let alone = matches!((line - 1) % 10, 1 | 2 | 3 | 7);
        assert_eq!(outcome.requests, 1 + u32::from(alone), "{line}");
    }
}

#[test]
fn look_ahead_that_is_not_permitted_is_off_with_one_notice() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, _| {
            Some(Ok(
                Response::new(403).with_body(r#"{"code":"missing.permissions"}"#)
            ))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let batch = platform.batch(&client).workers(4);
    let (report, _) = collected(batch, customers(500));
    assert!(report.is_complete(), "{report:?}");
    assert!(platform.saw("details") <= 4);
    let notices = platform.notices.lock().unwrap();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("analytics:conversationDetail:view"));
}

#[test]
fn look_ahead_survives_faults_and_one_bad_id() {
    let platform = Platform::new();
    let asked = AtomicUsize::new(0);
    let client = participants(
        &platform,
        move |_, url| {
            if url.contains("c-555") {
                return Some(Ok(Response::new(400)));
            }
            match asked.fetch_add(1, Ordering::SeqCst) % 6 {
                1 => Some(Ok(Response::new(503))),
                2 => Some(broken()),
                3 => Some(Ok(Response::new(200).with_broken_body("cut"))),
                4 => Some(Ok(Response::new(429).with_header("Retry-After", "2"))),
                _ => None,
            }
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let batch = platform.batch(&client).workers(4);
    let (report, _) = collected(batch, customers(1_000));
    assert!(report.is_complete(), "{report:?}");
    assert!(platform.requests() < 1_150, "{}", platform.requests());
}

/// What a run costs where the look-up works but for single faults.
#[test]
fn look_ahead_with_single_faults_costs_at_most_two_percent() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let asked = AtomicUsize::new(0);
        let client = participants(
            &platform,
            move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
                1 => Some(Ok(Response::new(503))),
                7 => Some(broken()),
                13 => Some(Ok(Response::new(200).with_broken_body("cut"))),
                19 => Some(Ok(Response::new(200).with_body("<html>"))),
                _ => None,
            },
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(3_000));
        assert!(report.is_complete(), "{report:?}");
        let requests = platform.requests();
        assert!(requests <= 3_060, "{workers} workers: {requests}");
    }
}

#[test]
fn look_ahead_that_never_answers_is_off_and_no_outage() {
    for body in [
        Response::new(200).with_body("<html>"),
        Response::new(200).with_body("[]"),
        Response::new(503),
    ] {
        let platform = Platform::new();
        let client = participants(&platform, move |_, _| Some(Ok(body.clone())), |_| None);
        let client = client.build().unwrap();
        let (report, _) = collected(platform.batch(&client).workers(2), customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert!(platform.saw("details") <= 30, "{}", platform.saw("details"));
        assert_eq!(platform.story(), ["participants are read"]);
    }
}

#[test]
fn look_ahead_with_a_wrong_id_reads_and_writes_again() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, url| {
            let ids = url.split("?id=").nth(1)?.split(',');
            let wrong: Vec<_> = ids
                .map(|id| {
                    json!({ "conversationId": id, "participants": [
                        { "participantId": "stale", "purpose": "customer" } ]})
                })
                .collect();
            let body = json!({ "conversations": wrong }).to_string();
            Some(Ok(Response::new(200).with_body(body)))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let (report, outcomes) = collected(platform.batch(&client), customers(9));
    assert!(report.is_complete(), "{report:?}");
    assert!(outcomes.values().all(|o| o.requests == 3));
}

#[test]
fn look_ahead_tells_and_refuses_conversations_that_are_over() {
    let over = |url: &str| {
        let ids = url.split("?id=").nth(1)?.split(',');
        let ended: Vec<_> = ids
            .map(|id| {
                json!({ "conversationId": id, "conversationEnd": "2026-01-01T00:00:00Z",
                    "participants": [{ "participantId": format!("p-{id}"), "purpose": "customer" }]})
            })
            .collect();
        let body = json!({ "conversations": ended }).to_string();
        Some(Ok(Response::new(200).with_body(body)))
    };
    let single = |id: &str| {
        Some(json!({ "endTime": "2026-01-01T00:00:00Z",
            "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }]}))
    };
    for policy in [EndedPolicy::Allow, EndedPolicy::Warn, EndedPolicy::Refuse] {
        let platform = Platform::new();
        let client = participants(&platform, move |_, url| over(url), single);
        let client = client.ended_conversations(policy).build().unwrap();
        let (report, outcomes) = collected(platform.batch(&client), customers(100));
        if policy == EndedPolicy::Refuse {
            assert_eq!((report.failed, platform.saw("PATCH")), (100, 0));
        } else {
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(platform.requests(), 101);
            assert!(outcomes.values().all(|o| o.conversation_ended));
        }
    }
}

#[test]
fn look_ahead_keeps_the_order_and_leaves_other_targets_alone() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let update = |n: u64| {
        let id = format!("c-{}", n % 70);
        match n % 5 {
            0 => Update::participant(id, "purpose:customer"),
            1 => Update::participant(id, "p-x"),
            _ => Update::participant(id, "customer"),
        }
        .set("n", n)
    };
    let mut last = HashMap::new();
    let batch = platform.batch(&client).workers(8);
    let report = batch.run((0..700).map(update), |outcome| {
        let before = last.insert(outcome.conversation_id.clone(), outcome.line);
        assert!(before.is_none_or(|before| before < outcome.line));
        ControlFlow::Continue(())
    });
    assert_eq!(report.lines(), 700);
    // Those by a participant's id are not found here, and not looked up.
    assert_eq!(report.failed, 140);
    // Each of 70 conversations is found once a name for it.
    assert!(
        platform.requests() <= 700 + 140 + 4,
        "{}",
        platform.requests()
    );
}

#[test]
fn look_ahead_does_not_wait_for_input_that_does_not_come() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let gate = Gate::new();
    let held = gate.clone();
    let updates = customers(10)
        .into_iter()
        .enumerate()
        .map(move |(n, update)| {
            if n == 5 {
                held.wait();
            }
            update
        });
    let mut seen = 0;
    let report = platform.batch(&client).run(updates, |_| {
        seen += 1;
        if seen == 5 {
            gate.open();
        }
        ControlFlow::Continue(())
    });
    assert!(report.is_complete());
    assert_eq!(platform.requests(), 12);
}

#[test]
fn prefetched_participants_spare_each_update_its_read() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let updates = customers(250);
    let found = client.prefetch_participants(updates.iter().map(Update::target));
    assert_eq!(found.unwrap(), 250);
    assert_eq!(platform.requests(), 3);
    for update in &updates {
        assert_eq!(client.update(update).unwrap().requests, 1);
    }
    // What is known is not asked for, nor what is no purpose that stays.
    let others = [
        Update::participant("x", "purpose:agent"),
        Update::secure("x"),
    ];
    let all = updates.iter().chain(&others).map(Update::target);
    assert_eq!(client.prefetch_participants(all).unwrap(), 0);
    assert_eq!(platform.saw("details"), 3);
}

#[test]
fn prefetch_that_is_not_permitted_names_the_permission() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| Some(Ok(Response::new(403))), |_| None);
    let client = client.build().unwrap();
    let error = client
        .prefetch_participants(customers(5).iter().map(Update::target))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(
        error
            .to_string()
            .contains("analytics:conversationDetail:view")
    );
}

#[test]
fn look_ahead_finds_how_many_are_taken_and_asks_for_as_many() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let client = participants(
            &platform,
            |_, url| (url.matches(',').count() >= 20).then(|| Ok(Response::new(400))),
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        // 50 at the least.
        let asked = platform.saw("details");
        assert!(asked <= 56, "{workers} workers: {asked}");
        assert_eq!(platform.requests(), 1_000 + asked);
        assert!(platform.story().is_empty());
    }
}

#[test]
fn look_ahead_with_one_id_that_is_refused_reads_a_few_alone() {
    for bad in ["c-0", "c-77", "c-555"] {
        for workers in [1, 8] {
            let platform = Platform::new();
            let client = participants(
                &platform,
                move |_, url| {
                    let ids = url.split("?id=").nth(1)?;
                    let refused = ids.split(',').any(|id| id == bad);
                    refused.then(|| Ok(Response::new(400)))
                },
                |_| None,
            );
            let client = client.build().unwrap();
            let batch = platform.batch(&client).workers(workers);
            let (report, _) = collected(batch, customers(2_000));
            assert!(report.is_complete(), "{report:?}");
            let requests = platform.requests();
            assert!(requests <= 2_040, "{bad}, {workers} workers: {requests}");
            assert!(platform.story().is_empty());
        }
    }
}

#[test]
fn look_ahead_that_is_refused_however_few_it_asks_for_is_off() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| Some(Ok(Response::new(400))), |_| None);
    let client = client.build().unwrap();
    let (report, _) = collected(platform.batch(&client).workers(4), customers(1_000));
    assert!(report.is_complete(), "{report:?}");
    // Three times 100, 50, 25, 12, 6 and 3.
    assert_eq!(platform.saw("details"), 18);
    assert_eq!(platform.story(), ["participants are read"]);
}

#[test]
fn look_ahead_at_a_low_rate_reads_nobody_twice() {
    // With several workers time passes while one of them does not run.
    for (workers, chance) in [(1, 0), (8, 20)] {
        let platform = Platform::new();
        let client = participants(&platform, |_, _| None, |_| None);
        let client = client.rate_limit(RateLimit::per_minute(10));
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(400));
        assert!(report.is_complete(), "{report:?}");
        assert!(platform.seconds() > 2_000);
        assert_eq!(platform.saw("details"), 4);
        assert!(
            platform.requests() <= 404 + chance,
            "{}",
            platform.requests()
        );
    }
}

#[test]
fn look_ahead_that_is_always_throttled_is_suspended() {
    for answer in [
        Response::new(429).with_header("Retry-After", "1"),
        Response::new(429),
        Response::new(429).with_header("Retry-After", "3600"),
    ] {
        let platform = Platform::new();
        let client = participants(&platform, move |_, _| Some(Ok(answer.clone())), |_| None);
        let client = client.build().unwrap();
        let (report, _) = collected(platform.batch(&client).workers(4), customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        // Once more where 500 lines are left to be read by then.
        assert!((4..=5).contains(&platform.saw("details")));
        let told = platform.story();
        assert!(
            told.contains(&"participants are read".to_owned()),
            "{told:?}"
        );
    }
}

#[test]
fn prefetch_that_is_always_throttled_ends_at_the_deadline() {
    let platform = Platform::new();
    let throttled = || Some(Ok(Response::new(429).with_header("Retry-After", "7")));
    let client = participants(&platform, move |_, _| throttled(), |_| None);
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::RateLimited);
    assert!((280..=300).contains(&platform.seconds()));
}

#[test]
fn prefetch_of_what_is_refused_is_the_refusal_where_nothing_was_answered() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| Some(Ok(Response::new(400))), |_| None);
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn look_ahead_that_fails_for_a_while_is_suspended_and_comes_back() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let asked = AtomicUsize::new(0);
        let client = participants(
            &platform,
            move |_, _| {
                let fails = asked.fetch_add(1, Ordering::SeqCst) < 8;
                fails.then(|| Ok(Response::new(503)))
            },
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(5_000));
        assert!(report.is_complete(), "{report:?}");
        // Two attempts each: three times, once more after 500 lines, and then it works.
        let requests = platform.requests();
        assert!(requests < 5_000 + 60 + 500 + 1_000 + 400, "{requests}");
        assert_eq!(
            platform.story(),
            ["participants are read", "participants are looked"]
        );
    }
}

#[test]
fn look_ahead_that_hangs_holds_the_lines_up_twice() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |platform, _| {
            platform.clock.advance(Duration::from_secs(20));
            Some(Err(TransportError::new(
                Error::new(ErrorKind::Timeout, "no answer in time"),
                Sent::Maybe,
            )))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let (report, _) = collected(platform.batch(&client).workers(8), customers(300));
    assert!(report.is_complete(), "{report:?}");
    // The first before anybody got an answer, the second after that.
    assert_eq!((platform.saw("details"), platform.seconds()), (2, 40));
    assert_eq!(platform.story(), ["participants are read"]);
}

#[test]
fn look_ahead_takes_nobody_else_for_the_customer() {
    // Analytics shows the external participant, and not yet the customer.
    let platform = Platform::new();
    let external = |url: &str| {
        let mut body = details_body(url, |_| false);
        for conversation in body["conversations"].as_array_mut().unwrap() {
            let id = conversation["conversationId"].as_str().unwrap();
            let id = match id.starts_with("c-") {
                true => "other".to_owned(),
                false => format!("p-{id}"),
            };
            conversation["participants"][1] = json!({ "participantId": id, "purpose": "external" });
        }
        body
    };
    let bulk = move |_: &Platform, url: &str| {
        Some(Ok(Response::new(200).with_body(external(url).to_string())))
    };
    let client = participants(&platform, bulk, |_| None).build().unwrap();
    let (report, outcomes) = collected(platform.batch(&client), customers(50));
    assert!(report.is_complete(), "{report:?}");
    assert!(outcomes.values().all(|o| o.requests == 2));
    assert_eq!(platform.saw("participants/other/"), 0);
    // Asked for by name, it is meant.
    let update = |n: u64| Update::participant(format!("x-{n}"), "external").set("n", n);
    let (_, outcomes) = collected(platform.batch(&client), (0..50).map(update).collect());
    assert!(outcomes.values().all(|o| o.requests == 1));
}

#[test]
fn look_ahead_finds_participants_for_lines_behind_others_of_their_conversation() {
    let by_id = |n: u64| Update::participant(format!("c-{n}"), format!("p-c-{n}")).set("n", 0);
    let customer = |n: u64| Update::participant(format!("c-{n}"), "customer").set("n", 1);
    let purpose = |n: u64| Update::participant(format!("c-{n}"), "purpose:customer").set("n", 2);
    let beside = (0..500).flat_map(|n| [by_id(n), customer(n)]).collect();
    let after = (0..500).map(by_id).chain((0..500).map(customer)).collect();
    let both = (0..500).flat_map(|n| [customer(n), purpose(n)]).collect();
    for (updates, asked) in [(beside, 16), (after, 16), (both, 5)] {
        for workers in [1, 8] {
            let updates: &Vec<Update> = &updates;
            let platform = Platform::new();
            let client = participants(&platform, |_, _| None, |_| None);
            let client = client.build().unwrap();
            let batch = platform.batch(&client).workers(workers);
            let (report, _) = collected(batch, updates.clone());
            assert!(report.is_complete(), "{report:?}");
            let requests = platform.requests();
            assert!(requests <= 1_000 + asked, "{workers} workers: {requests}");
        }
    }
}

#[test]
fn look_ahead_finds_in_a_later_answer_what_an_earlier_one_lacked() {
    let platform = Platform::new();
    let asked = Mutex::new(HashSet::new());
    let client = participants(
        &platform,
        move |_, url| {
            let mut asked = asked.lock().unwrap();
            let fresh: HashSet<String> = url
                .split("?id=")
                .nth(1)?
                .split(',')
                .filter(|id| asked.insert(id.to_string()))
                .map(str::to_owned)
                .collect();
            let body = details_body(url, |id| fresh.contains(id));
            Some(Ok(Response::new(200).with_body(body.to_string())))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let updates = ["customer", "purpose:customer"]
        .into_iter()
        .flat_map(|who| {
            (0..100).map(move |n| Update::participant(format!("c-{n}"), who).set("n", n))
        })
        .collect();
    let (report, outcomes) = collected(platform.batch(&client).workers(4), updates);
    assert!(report.is_complete(), "{report:?}");
    for (line, outcome) in outcomes {
        // The last of a few are not worth a look-up.
        assert!(
            outcome.requests == 1 + u32::from(line <= 100) || line > 100,
            "{line}"
        );
    }
    assert!(platform.requests() <= 320, "{}", platform.requests());
}

#[test]
fn look_ahead_whose_ids_are_all_wrong_is_off() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let wrong = |url: &str| {
            let body = details_body(url, |_| false).to_string();
            body.replace("\"p-", "\"wrong-")
        };
        let client = participants(
            &platform,
            move |_, url| Some(Ok(Response::new(200).with_body(wrong(url)))),
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, outcomes) = collected(batch, customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert!(outcomes.values().filter(|o| o.requests == 3).count() <= 10 + workers);
        assert!(platform.saw("details") <= 2);
        assert_eq!(platform.story(), ["participants are read"]);
    }
}

#[test]
fn failed_look_up_is_logged_without_its_ids() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let logged = lines.clone();
    crate::secrets::on_log(move |record| logged.lock().unwrap().push(record.args().to_string()));
    let platform = Platform::new();
    let asked = AtomicUsize::new(0);
    let client = participants(
        &platform,
        move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Ok(Response::new(429).with_header("Retry-After", "7"))),
            _ => Some(broken()),
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Transport);
    let lines = lines.lock().unwrap();
    let told = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(
        told("participants of 5 conversations: rate limited"),
        "{lines:?}"
    );
    assert!(
        told("/conversations/details: the connection broke"),
        "{lines:?}"
    );
    assert!(!told("c-1"), "{lines:?}");
}

#[test]
fn look_up_takes_a_larger_answer_than_other_requests() {
    let server = crate::server::Server::start(|req| {
        if req.path.contains("/oauth/") {
            return Resp::json(200, r#"{"access_token":"t","expires_in":86400}"#);
        }
        let mut body = details_body(req.path, |_| false);
        body["padding"] = json!("x".repeat(3 << 20));
        Resp::json(200, body.to_string())
    });
    let client = builder().base_url(server.url()).build().unwrap();
    let found = client.prefetch_participants(customers(100).iter().map(Update::target));
    assert_eq!(found.unwrap(), 100);
    // The token, and one request.
    assert_eq!(server.requests(), 2);
}

#[test]
fn look_ahead_in_an_outage_loses_no_line() {
    for workers in [1, 4] {
        for (from, to) in [(0, 30), (2, 60)] {
            let platform = Platform::new();
            let down = move |p: &Platform| (from..to).contains(&p.seconds());
            // Time passes with each request, and lines come behind others of their conversation.
            let client = platform.client(move |p, request| {
                p.clock.advance(Duration::from_millis(20));
                if down(p) {
                    return Some(refused());
                }
                let url = request.url();
                let body = match (request.method(), url.contains("details")) {
                    (Method::Get, true) => details_body(url, |id| id.ends_with('3')),
                    (Method::Get, false) => {
                        let id = url.rsplit('/').next().unwrap_or_default();
                        json!({ "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }] })
                    }
                    (Method::Patch, _) => json!({}),
                    _ => return None,
                };
                Some(Ok(Response::new(200).with_body(body.to_string())))
            });
            let updates = (0..900)
                .map(|n| Update::participant(format!("c-{}", n % 300), "customer").set("n", n))
                .collect();
            let (report, outcomes) = collected(platform.batch(&client).workers(workers), updates);
            assert!(report.is_complete(), "{workers} {from} {report:?}");
            assert_eq!(outcomes.len(), 900);
        }
    }
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
        let story = platform.story();
        assert!(
            !story
                .iter()
                .any(|line| line.starts_with("the platform cannot")),
            "{story:?}"
        );
        assert!(platform.seconds() >= 300, "{}", platform.seconds());
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
