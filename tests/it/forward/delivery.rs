//! Deliveries: order, repeats, retries, dead letters, crashes of the forwarder.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use genesys_attributes::audit::AuditFile;
use genesys_attributes::clock::{Clock, ManualClock};
use genesys_attributes::forward::Forwarder;
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{Cancel, ErrorKind, Update, UpdateEvent};
use serde_json::Value;

use super::*;
use crate::fake::{ms, secs};
use crate::memory::Memory;
use crate::server::{Resp, Server};

#[test]
fn forward_runs_deliver_each_event_once_and_in_order() {
    let (folder, taker) = (Folder::new("runs"), Taker::default());
    folder.append("audit.jsonl", [intent(1), applied(1), intent(2)].concat());
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!(
        (report.delivered, report.pending, report.orphans.len()),
        (1, 1, 1)
    );
    assert_eq!(report.orphans[0].id, "u-2");
    let skipped = ["failed", "unchanged", "refused"].map(|s| line(&record(9, "outcome", s)));
    folder.append(
        "audit.jsonl",
        [applied(2), skipped.concat(), applied(3)].concat(),
    );
    let already = line(&record(4, "outcome", "alreadyApplied"));
    folder.append("audit.jsonl", already);
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!(
        (report.delivered, report.pending, report.repeated),
        (3, 0, 0)
    );
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
    assert_eq!(taker.ids(), ids(1..=4));
}

/// The envelopes are those of the events, byte for byte, for every kind of target.
#[test]
fn forward_envelope_is_the_event_s() {
    let folder = Folder::new("envelope");
    let memory = Memory::new();
    memory.world(|world| drop(world.add("c-1").clone()));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let events = seen.clone();
    let client = memory
        .builder()
        .audit(AuditFile::open(folder.log()).unwrap())
        .audit_values(true)
        .on_update(move |event: &UpdateEvent| {
            lock(&events).push(event.webhook_payload().to_string());
        })
        .build()
        .unwrap();
    for update in [
        Update::conversation("c-1")
            .set("tier", "gold")
            .set("score", 85),
        Update::participant("c-1", "customer").set("crmId", "987"),
        Update::secure("c-1").set("iban", "DE02"),
        Update::secure("c-1").set("a", "1").remove("iban"),
        Update::custom("c-1", "r-1").schema("s-1").set("tier", 3.5),
    ] {
        let _ = client.update(&update).unwrap();
    }
    let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
    struct Raw(Arc<Mutex<Vec<String>>>);
    impl Sink for Raw {
        fn hand_over(&mut self, envelope: &Envelope<'_>) -> Result<(), Undelivered> {
            lock(&self.0).push(String::from_utf8(envelope.body.to_vec()).unwrap());
            Ok(())
        }
    }
    let report = Forwarder::new(folder.log(), Raw(bodies.clone())).run(&Cancel::new());
    assert_eq!(report.unwrap().delivered, 5);
    assert_eq!(*lock(&bodies), *lock(&seen));
    let secure: Value = serde_json::from_str(&lock(&bodies)[2]).unwrap();
    assert_eq!(secure["payload"]["updatedKeys"], json!(["iban"]));
    assert_eq!(secure["payload"]["updatedAttributes"], json!({}));
    assert!(!folder.read("audit.jsonl").contains("DE02"));
}

#[test]
fn forward_failed_delivery_is_repeated_with_backoff_and_holds_up_the_rest() {
    let (folder, taker) = (Folder::new("retry"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    taker.script([later("busy"), later("busy"), later("busy")]);
    let clock = ManualClock::new();
    let mut forwarder = forwarder(&folder.log(), &taker)
        .clock(clock.clone())
        .backoff(secs(1), secs(3));
    let report = forwarder.run(&Cancel::new()).unwrap();
    assert_eq!((report.delivered, report.repeated), (2, 3));
    assert_eq!(taker.ids(), ids(1..=2));
    let waited: Duration = clock.sleeps().iter().sum();
    assert!(
        waited > Duration::ZERO && waited <= secs(1 + 2 + 3),
        "{waited:?}"
    );
}

#[test]
fn forward_what_is_not_taken_goes_to_the_dead_letters() {
    let (folder, taker) = (Folder::new("dead"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2), applied(3)].concat());
    taker.script([never("400"), later("503"), later("503"), Act::Take]);
    let mut forwarder = forwarder(&folder.log(), &taker).max_attempts(2);
    let report = forwarder.run(&Cancel::new()).unwrap();
    assert_eq!((report.delivered, report.dead), (1, 2));
    assert_eq!(taker.ids(), ids([3]));
    let letters = folder.read("audit.jsonl.dead");
    let letters: Vec<Value> = letters
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(letters[0]["record"]["id"], "u-1");
    assert_eq!(letters[0]["record"]["attributes"]["n"], 1);
    assert_eq!(letters[0]["body"], "no such field");
    assert_eq!(letters[1]["record"]["id"], "u-2");
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
}

/// Each event arrives at least once and first arrivals are in order, wherever the forwarder dies.
#[test]
fn forward_killed_at_every_delivery_loses_nothing() {
    const EVENTS: u64 = 12;
    for at in 0..EVENTS as usize {
        for die in [Act::DieBefore, Act::DieAfter] {
            let (folder, taker) = (Folder::new("killed"), Taker::default());
            let text: String = (1..=EVENTS).map(|n| intent(n) + &applied(n)).collect();
            folder.append("audit.jsonl", text);
            taker.script(vec![Act::Take; at]);
            taker.script([die.clone()]);
            let killed = catch_unwind(AssertUnwindSafe(|| run(&folder.log(), &taker)));
            assert!(killed.is_err());
            let report = run(&folder.log(), &taker).unwrap();
            assert_eq!(report.pending, 0);
            let mut first = taker.ids();
            let all = first.len();
            let mut seen = std::collections::HashSet::new();
            first.retain(|id| seen.insert(id.clone()));
            assert_eq!(first, ids(1..=EVENTS));
            assert!(all <= EVENTS as usize + at + 1);
        }
    }
}

/// A clock that ends the process the n-th time that somebody looks at it.
#[derive(Debug, Clone)]
struct Deadly {
    clock: ManualClock,
    left: Arc<AtomicUsize>,
}

impl Deadly {
    fn look(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            panic!("killed by the clock");
        }
    }
}

impl Clock for Deadly {
    fn now(&self) -> Instant {
        self.look();
        self.clock.now()
    }
    fn wall(&self) -> SystemTime {
        self.look();
        self.clock.wall()
    }
    fn sleep(&self, duration: Duration) {
        self.look();
        self.clock.sleep(duration);
    }
}

#[test]
fn forward_killed_at_every_look_at_the_clock_loses_nothing() {
    let mut steps = 0;
    loop {
        steps += 1;
        let (folder, taker) = (Folder::new("clock"), Taker::default());
        // More than one batch of deliveries, so that the cursor is written in the middle.
        let text: String = (1..=130).map(applied).collect();
        folder.append("audit.jsonl", text);
        taker.script(vec![Act::Take; 5]);
        taker.script([later("busy")]);
        let deadly = Deadly {
            clock: ManualClock::new(),
            left: Arc::new(AtomicUsize::new(steps)),
        };
        let mut dying = forwarder(&folder.log(), &taker).clock(deadly);
        let killed = catch_unwind(AssertUnwindSafe(|| dying.run(&Cancel::new()))).is_err();
        let _ = run(&folder.log(), &taker).unwrap();
        let mut first = taker.ids();
        assert!(first.len() <= 130 + 100, "{} repeats", first.len() - 130);
        let mut seen = std::collections::HashSet::new();
        first.retain(|id| seen.insert(id.clone()));
        assert_eq!(first, ids(1..=130));
        if !killed {
            break;
        }
        // All of the beginning, then a sample.
        if steps > 20 {
            steps += 12;
        }
    }
    assert!(steps > 20);
}

#[test]
fn forward_crash_while_the_cursor_is_written_leaves_a_whole_one() {
    let (folder, taker) = (Folder::new("draft"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    let _ = run(&folder.log(), &taker).unwrap();
    folder.append("audit.jsonl.cursor.0.tmp", "{\"version\":1,\"pl");
    folder.append("audit.jsonl", applied(2));
    let _ = run(&folder.log(), &taker).unwrap();
    assert_eq!(taker.ids(), ids(1..=2));
    assert!(!folder.path("audit.jsonl.cursor.0.tmp").exists());
}

/// Others can write to the folder, and know the names of the files there.
#[test]
#[cfg(unix)]
fn forward_follows_no_link_to_its_drafts_and_locks() {
    let (folder, taker) = (Folder::new("links"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    folder.append("root", "precious");
    for name in ["audit.jsonl.cursor.tmp", ".audit.jsonl.cursor.tmp"] {
        std::os::unix::fs::symlink(folder.path("root"), folder.path(name)).unwrap();
    }
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 1);
    assert_eq!(folder.read("root"), "precious");
    let lock = folder.path("audit.jsonl.cursor.lock");
    std::fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink(folder.path("root"), &lock).unwrap();
    let error = run(&folder.log(), &taker).unwrap_err();
    assert!(
        error.to_string().contains("the lock of the cursor"),
        "{error}"
    );
    assert_eq!(folder.read("root"), "precious");
}

/// What cannot be remembered is not delivered: it would be again at every start.
#[test]
fn forward_cursor_that_cannot_be_saved_delivers_nothing() {
    let (folder, taker) = (Folder::new("unsaved"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 1);
    folder.append("audit.jsonl", applied(2));
    // The folder is gone from under it, at the second run's first look at the clock.
    let full = folder.path("full");
    std::fs::create_dir(&full).unwrap();
    let cursor = full.join("cursor");
    std::fs::copy(folder.path("audit.jsonl.cursor"), &cursor).unwrap();
    let away = folder.path("away");
    let clock = Looked(
        ManualClock::new(),
        Arc::new(move || {
            let _ = std::fs::rename(&full, &away);
        }),
    );
    let mut second = forwarder(&folder.log(), &taker).cursor(cursor).clock(clock);
    let error = second.run(&Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Audit, "{error}");
    assert_eq!(taker.ids(), ids([1]));
}

/// A clock that does something whenever the time is read.
#[derive(Clone)]
struct Looked(ManualClock, Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Looked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Looked")
    }
}

impl Clock for Looked {
    fn now(&self) -> Instant {
        (self.1)();
        self.0.now()
    }
    fn wall(&self) -> SystemTime {
        self.0.wall()
    }
    fn sleep(&self, duration: Duration) {
        self.0.sleep(duration);
    }
}

/// Each of the forwarder's files: a file of another kind stays as it is, and nothing is sent.
#[test]
fn forward_files_of_another_kind_are_refused() {
    let texts = [
        "{\"line\":1,\"conversationId\":\"c-1\",\"status\":\"applied\"}\n",
        "conversationId,tier\nc-1,gold\n",
        "{}\n",
        &applied(1),
    ];
    for text in texts {
        for name in ["audit.jsonl.dead", "audit.jsonl.cursor"] {
            let (folder, taker) = (Folder::new("kinds"), Taker::default());
            folder.append("audit.jsonl", applied(1));
            folder.append(name, text);
            taker.script([never("400")]);
            let error = run(&folder.log(), &taker).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("give another file"), "{error}");
            assert_eq!(folder.read(name), text);
            assert_eq!(taker.left(), 1);
        }
    }
}

pub fn unavailable(message: &str) -> Act {
    Act::Fail(Undelivered::Unavailable {
        error: Error::new(ErrorKind::NotFound, message),
        answer: "no such hook".into(),
    })
}

/// A wrong address says nothing about the event.
#[test]
fn forward_waits_for_a_receiver_that_takes_nothing() {
    let (folder, taker) = (Folder::new("unavailable"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    taker.script(vec![unavailable("404"); 50]);
    let mut forwarder = forwarder(&folder.log(), &taker).max_attempts(2);
    let report = forwarder.run(&Cancel::new()).unwrap();
    assert_eq!((report.delivered, report.dead, report.repeated), (2, 0, 50));
    assert!(!folder.path("audit.jsonl.dead").exists());
}

#[test]
fn forward_outage_that_lasts_too_long_ends_the_run_and_loses_nothing() {
    for (act, most) in [
        (unavailable("404"), 60),
        (later("503"), 60),
        (later("503"), 0),
        (later("503"), 7),
    ] {
        let (folder, taker) = (Folder::new("outage"), Taker::default());
        folder.append("audit.jsonl", [1, 2, 3].map(applied).concat());
        taker.script([Act::Take]);
        taker.script(vec![act; 1_000]);
        let (clock, last) = (ManualClock::new(), Arc::new(Mutex::new(None)));
        let told = last.clone();
        let mut ending = forwarder(&folder.log(), &taker)
            .clock(clock.clone())
            .max_outage(secs(most))
            .on_progress(move |report| *lock(&told) = Some(report.clone()));
        let error = ending.run(&Cancel::new()).unwrap_err();
        assert!(error.to_string().contains("took no event"), "{error}");
        assert!(error.is_transient());
        let waited: Duration = clock.sleeps().iter().sum();
        assert_eq!(waited, secs(most));
        let report = lock(&last).clone().unwrap();
        assert!(report.gave_up && report.delivered == 1);
        taker.clear();
        assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 2);
        assert_eq!(taker.ids(), ids(1..=3));
    }
}

/// Failures with deliveries between them are no outage.
#[test]
fn forward_outage_is_counted_from_the_first_failure_in_a_row() {
    let (folder, taker) = (Folder::new("flaky"), Taker::default());
    folder.append("audit.jsonl", (1..=20).map(applied).collect::<String>());
    for _ in 0..20 {
        taker.script([later("503"), Act::Take]);
    }
    let mut forwarder = forwarder(&folder.log(), &taker)
        .backoff(secs(5), secs(5))
        .max_outage(secs(6));
    assert_eq!(forwarder.run(&Cancel::new()).unwrap().delivered, 20);
}

#[test]
fn forward_cancelled_in_a_backoff_keeps_what_was_delivered() {
    let (folder, taker) = (Folder::new("cancel"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    taker.script([Act::Take, later("busy")]);
    let cancel = Cancel::new();
    let clock = crate::fake::AlarmClock::new(ManualClock::new(), {
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let mut forwarder = forwarder(&folder.log(), &taker)
        .clock(clock)
        .backoff(secs(60), secs(60));
    let report = forwarder.run(&cancel).unwrap();
    assert_eq!((report.delivered, report.dead), (1, 0));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 1);
    assert_eq!(taker.ids(), ids(1..=2));
}

#[test]
fn forward_second_forwarder_on_one_cursor_is_told_so() {
    struct Nested(PathBuf);
    impl Sink for Nested {
        fn hand_over(&mut self, _: &Envelope<'_>) -> Result<(), Undelivered> {
            let error = run(&self.0, &Taker::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("another forwarder"), "{error}");
            let other = Taker::default();
            let mut second = forwarder(&self.0, &other).cursor(self.0.with_extension("second"));
            assert_eq!(second.run(&Cancel::new()).unwrap().delivered, 1);
            Ok(())
        }
    }
    let folder = Folder::new("two");
    folder.append("audit.jsonl", applied(1));
    let mut first = Forwarder::new(folder.log(), Nested(folder.log()));
    assert_eq!(first.run(&Cancel::new()).unwrap().delivered, 1);
}

#[test]
fn forward_closed_sink_ends_with_its_error_and_the_event_stays() {
    let (folder, taker) = (Folder::new("closed"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    let gone = Error::new(ErrorKind::Transport, "nobody reads any more");
    taker.script([Act::Take, Act::Fail(Undelivered::Closed(gone))]);
    let error = run(&folder.log(), &taker).unwrap_err();
    assert!(error.to_string().contains("nobody reads"));
    let _ = run(&folder.log(), &taker).unwrap();
    assert_eq!(taker.ids(), ids(1..=2));
}

/// The whole chain over HTTP, with a receiver that fails in a third of the cases, in three ways.
#[test]
fn forward_to_a_failing_receiver_loses_nothing() {
    let folder = Folder::new("failing");
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let (theirs, count) = (taken.clone(), AtomicUsize::new(0));
    let server = Server::start(move |req| {
        let id = req.header("webhook-id").unwrap_or_default().to_owned();
        match count.fetch_add(1, Ordering::Relaxed) % 9 {
            1 => return Resp::empty(503),
            4 => return Resp::reset(),
            7 => {
                lock(&theirs).push(id);
                return Resp::reset();
            }
            _ => lock(&theirs).push(id),
        }
        Resp::empty(204)
    });
    let text: String = (1..=200).map(applied).collect();
    folder.append("audit.jsonl", text);
    let webhook = Webhook::new(server.url()).unwrap();
    let mut forwarder = Forwarder::new(folder.log(), webhook).backoff(ms(1), ms(2));
    let report = forwarder.run(&Cancel::new()).unwrap();
    assert_eq!((report.delivered, report.dead), (200, 0));
    let mut first = lock(&taken).clone();
    let mut seen = std::collections::HashSet::new();
    first.retain(|id| seen.insert(id.clone()));
    assert_eq!(first, ids(1..=200));
}

/// Values of secure attributes stay in the log, unless they are asked for.
#[test]
fn forward_secure_values_only_when_asked_for() {
    let mut secret = record(1, "outcome", "applied");
    secret["target"] = "secure".into();
    for (wanted, values) in [(false, json!({})), (true, json!({ "n": 1 }))] {
        let (folder, taker) = (Folder::new("secure"), Taker::default());
        folder.append("audit.jsonl", line(&secret) + &line(&secret));
        taker.script([Act::Take, never("400")]);
        let mut forwarder = forwarder(&folder.log(), &taker).secure_values(wanted);
        let _ = forwarder.run(&Cancel::new()).unwrap();
        let payload = &taker.bodies()[0]["payload"];
        assert_eq!(payload["updatedAttributes"], values);
        let letter: Value = serde_json::from_str(&folder.read("audit.jsonl.dead")).unwrap();
        assert_eq!(letter["record"].get("attributes").is_some(), wanted);
    }
}

#[test]
fn forward_dead_letter_after_a_torn_one_is_whole() {
    let (folder, taker) = (Folder::new("torn-dead"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    folder.append("audit.jsonl.dead", "{\"record\":{");
    taker.script([never("400")]);
    let _ = run(&folder.log(), &taker).unwrap();
    let text = folder.read("audit.jsonl.dead");
    let letter: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(letter["record"]["id"], "u-1");
}

/// The run ends in an error, and what it did until then is told.
#[test]
fn forward_tells_what_was_done_before_an_error() {
    let (folder, taker) = (Folder::new("told"), Taker::default());
    folder.append("audit.jsonl", applied(1) + &applied(2));
    let gone = Error::new(ErrorKind::Transport, "nobody reads any more");
    taker.script([Act::Take, Act::Fail(Undelivered::Closed(gone))]);
    let last: Arc<Mutex<ForwardReport>> = Arc::default();
    let told = last.clone();
    let mut forwarder =
        forwarder(&folder.log(), &taker).on_progress(move |report| *lock(&told) = report.clone());
    assert!(forwarder.run(&Cancel::new()).is_err());
    assert_eq!(lock(&last).delivered, 1);
}
