//! The batch engine: order, skipping, and how far it reads ahead; what the other files share.

mod journal;
mod lookahead;
mod outage;
mod stops;

use genesys_attributes::batch::{BatchItem, BatchOutcome, BatchReport, StopReason};
use genesys_attributes::clock::{Clock, ManualClock};
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Method, Request, Response, TransportError};
use genesys_attributes::{
    Batch, Cancel, Client, ClientBuilder, Credentials, EndedPolicy, Error, ErrorKind, RateLimit,
    Region, RetryPolicy, Status, Update,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crate::fake::AlarmClock;
use crate::server::Resp;
use crate::store::Store;
use crate::wire::Gate;
use serde_json::json;

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
    updates: Vec<impl BatchItem>,
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
fn an_input_that_waits_does_not_stall_outcomes() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let seen = Cell::new(0);
    let mut lines = Vec::new();
    // The fourth line comes only after three outcomes.
    let updates = waiting(4, |n| n < 3 || seen.get() == 3);
    let report = Batch::new(&client).workers(2).run(updates, |outcome| {
        seen.set(seen.get() + 1);
        lines.push(outcome.line);
        ControlFlow::Continue(())
    });
    assert_eq!(report.applied, 4);
    lines.sort_unstable();
    assert_eq!(lines, [1, 2, 3, 4], "what is not there yet gets no number");
}

/// So many lines, each of which comes only once it may.
fn waiting(lines: u64, may: impl Fn(u64) -> bool) -> impl Iterator<Item = Option<Update>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        if next == lines {
            return None;
        }
        if !may(next) {
            return Some(None);
        }
        next += 1;
        Some(Some(set(&format!("c-{}", next - 1), next - 1)))
    })
}

#[test]
fn input_and_closure_that_are_not_send_run_on_the_calling_thread() {
    let clock = ManualClock::new();
    let client = faked(&clock, conversations(|_| applied())).build().unwrap();
    let here = std::thread::current().id();
    let cursor = Rc::new(RefCell::new(0..50u64));
    let rows = cursor.clone();
    let updates = std::iter::from_fn(move || {
        assert_eq!(std::thread::current().id(), here);
        let n = rows.borrow_mut().next()?;
        Some(set(&format!("c-{n}"), n))
    });
    let done = Rc::new(Cell::new(0));
    let report = Batch::new(&client).workers(4).run(updates, |_| {
        assert_eq!(std::thread::current().id(), here);
        done.set(done.get() + 1);
        ControlFlow::Continue(())
    });
    assert_eq!((report.applied, done.get()), (50, 50));
    assert!(cursor.borrow().is_empty());
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
fn batch_input_that_waits_does_not_hold_a_line_back() {
    let platform = Platform::new();
    let client = platform.client(|_, request| request.url().contains("c-0").then(broken));
    let status = RefCell::new(Vec::new());
    let updates = waiting(2, |n| n < 1 || !status.borrow().is_empty());
    platform.batch(&client).run(updates, |outcome| {
        status.borrow_mut().push(outcome.status);
        ControlFlow::Continue(())
    });
    assert_eq!(status.into_inner(), [Status::Failed, Status::Applied]);
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

/// The id of a conversation, as the platform makes them.
fn uuid(n: u64) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

fn customers(count: u64) -> Vec<Update> {
    let update = |n| Update::participant(uuid(n), "customer").set("n", n);
    (0..count).map(update).collect()
}
