//! Journals: runs that go on with what earlier ones left.

use super::*;
use genesys_attributes::batch::{Journal, Retry, Waiting};
use std::path::{Path, PathBuf};

/// A file of its own for each test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> File {
        let name = format!("ga-batch-{}-{name}.jsonl", std::process::id());
        let file = File(std::env::temp_dir().join(name));
        file.remove();
        file
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.lock());
    }

    fn lock(&self) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(".lock");
        name.into()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What the writes of each conversation set, in order.
type Writes = Arc<Mutex<BTreeMap<String, Vec<u64>>>>;

/// A client whose platform keeps what is written; `refused` writes get this status.
fn keeping(
    writes: &Writes,
    refused: impl Fn(&str, u64) -> Option<u16> + Send + Sync + 'static,
) -> Client {
    let clock = ManualClock::new();
    let kept = writes.clone();
    faked(&clock, move |request: &Request| {
        if request.method() == Method::Get {
            return Response::new(200).with_body(r#"{"version":"1"}"#);
        }
        let id = request.url().split('/').nth_back(1).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(request.body().unwrap()).unwrap();
        let value = body["attributes"]["n"].as_u64().unwrap();
        if let Some(status) = refused(id, value) {
            return Response::new(status);
        }
        let mut kept = kept.lock().unwrap();
        kept.entry(id.to_owned()).or_default().push(value);
        applied()
    })
    .retry(RetryPolicy::default().with_max_attempts(1))
    .build()
    .unwrap()
}

fn input() -> Vec<Update> {
    (0..40).map(|n| set(&format!("c-{}", n % 9), n)).collect()
}

fn run(client: &Client, path: &Path, retry: Retry, updates: Vec<Update>) -> BatchReport {
    let batch = Batch::new(client).journal(path).retry_failed(retry);
    batch.run(updates, |_| ControlFlow::Continue(()))
}

#[test]
fn journal_killed_at_every_byte_resumes_to_the_same_end() {
    let file = File::new("every-byte");
    let writes = Writes::default();
    let client = keeping(&writes, |id, _| (id == "c-2").then_some(400));
    let input: Vec<Update> = (0..6).map(|n| set(&format!("c-{}", n % 3), n)).collect();
    let report = run(&client, &file.0, Retry::None, input.clone());
    assert_eq!((report.applied, report.failed), (4, 2));
    let whole = file.text();
    let end = |writes: &Writes| -> Vec<Option<u64>> {
        let writes = writes.lock().unwrap();
        writes.values().map(|all| all.last().copied()).collect()
    };
    assert_eq!(end(&writes), [Some(3), Some(4)]);
    for length in 0..=whole.len() {
        // The platform still has what the lines set whose outcome was cut off.
        std::fs::write(&file.0, &whole[..length]).unwrap();
        let done = whole[..length].matches('\n').count() as u64;
        let report = run(&client, &file.0, Retry::None, input.clone());
        assert_eq!(report.stopped, None, "{length}: {report:?}");
        assert_eq!(report.failed + report.failed_before, 2, "{length}");
        assert!(report.finished_before <= done, "{length}: {report:?}");
        assert_eq!(report.lines() + report.finished_before, 6, "{length}");
        assert_eq!(end(&writes), [Some(3), Some(4)], "{length}");
        let summary = Journal::summary(&file.0).unwrap();
        let found = (summary.lines, summary.failed, summary.unfinished);
        assert_eq!(found, (6, 2, 0), "{length}");
        // Each line of it is an outcome.
        for line in file.text().lines() {
            serde_json::from_str::<BatchOutcome>(line).unwrap();
        }
    }
}

#[test]
fn journal_keeps_later_lines_behind_failed_ones_over_runs() {
    let file = File::new("behind");
    let writes = Writes::default();
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = down.clone();
    let client = keeping(&writes, move |id, n| {
        (id == "c-2" && n == 11 && flag.load(Ordering::SeqCst)).then_some(500)
    });
    let report = run(&client, &file.0, Retry::None, input());
    assert_eq!((report.failed, report.skipped, report.applied), (1, 3, 36));
    let summary = Journal::summary(&file.0).unwrap();
    assert_eq!(
        (summary.lines, summary.unfinished, summary.failed),
        (40, 4, 0)
    );
    down.store(false, Ordering::SeqCst);
    let report = run(&client, &file.0, Retry::None, input());
    assert_eq!((report.applied, report.finished_before), (4, 36));
    assert!(report.is_complete());
    assert_eq!(writes.lock().unwrap()["c-2"], [2, 11, 20, 29, 38]);
    // Nothing is left to do, and nothing is appended.
    let before = file.text();
    let report = run(&client, &file.0, Retry::None, input());
    assert_eq!((report.lines(), report.finished_before), (0, 40));
    assert_eq!(file.text(), before);
}

#[test]
fn journal_retries_failed_lines_and_those_of_their_conversation_after_them() {
    let file = File::new("retry");
    let writes = Writes::default();
    let refuse = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = refuse.clone();
    let client = keeping(&writes, move |_, n| {
        (n == 2 && flag.load(Ordering::SeqCst)).then_some(400)
    });
    run(&client, &file.0, Retry::None, input());
    // The same again: it still fails, and is recorded once more only if asked for.
    let before = file.text();
    for retry in [Retry::None, Retry::Changed] {
        let report = run(&client, &file.0, retry, input());
        assert_eq!((report.lines(), report.failed_before), (0, 1), "{retry:?}");
        assert!(!report.is_complete());
        assert_eq!(file.text(), before);
    }
    refuse.store(false, Ordering::SeqCst);
    let report = run(&client, &file.0, Retry::All, input());
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(
        writes.lock().unwrap()["c-2"],
        [11, 20, 29, 38, 2, 11, 20, 29, 38]
    );
    assert_eq!(report.applied, 5);
}

#[test]
fn changed_failed_line_runs_once_and_is_told_otherwise() {
    let file = File::new("changed");
    let writes = Writes::default();
    let client = keeping(&writes, |_, n| (n == 39).then_some(400));
    run(&client, &file.0, Retry::None, input());
    let mut corrected = input();
    corrected[39] = set("c-3", 1_000);
    let report = run(&client, &file.0, Retry::None, corrected.clone());
    assert_eq!(report.stopped, Some(StopReason::Journal));
    let error = report.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(
        error
            .to_string()
            .contains("line 40 of the input has changed"),
        "{error}"
    );
    let report = run(&client, &file.0, Retry::Changed, corrected.clone());
    assert_eq!((report.applied, report.is_complete()), (1, true));
    assert_eq!(writes.lock().unwrap()["c-3"].last(), Some(&1_000));
    let report = run(&client, &file.0, Retry::Changed, corrected);
    assert_eq!((report.lines(), report.is_complete()), (0, true));
}

#[test]
fn changed_applied_line_is_an_error_before_anything_is_sent() {
    let file = File::new("applied");
    let writes = Writes::default();
    let client = keeping(&writes, |_, _| None);
    run(&client, &file.0, Retry::None, input()[..20].to_vec());
    let (before, requests) = (file.text(), client.metrics().requests);
    let mut changed = input();
    changed[4] = set("c-4", 99);
    for retry in [Retry::None, Retry::Changed, Retry::All] {
        let report = run(&client, &file.0, retry, changed.clone());
        assert_eq!(
            (report.lines(), report.stopped),
            (0, Some(StopReason::Journal))
        );
        let text = report.error.unwrap().to_string();
        assert!(text.contains("line 5 of the input has changed"), "{text}");
    }
    assert_eq!((file.text(), client.metrics().requests), (before, requests));
    // More lines at the end are welcome.
    assert!(run(&client, &file.0, Retry::None, input()).is_complete());
}

#[test]
fn journal_has_one_writer_and_any_number_of_readers() {
    let file = File::new("lock");
    let writes = Writes::default();
    let client = keeping(&writes, |_, _| None);
    let mut inner = None;
    let batch = Batch::new(&client).journal(&file.0);
    let report = batch.run(input(), |_| {
        if inner.is_none() {
            inner = Some(run(&client, &file.0, Retry::None, input()));
            assert!(Journal::summary(&file.0).unwrap().lines >= 1);
        }
        ControlFlow::Continue(())
    });
    assert!(report.is_complete());
    let second = inner.unwrap();
    assert_eq!(
        (second.lines(), second.stopped),
        (0, Some(StopReason::Journal))
    );
    let text = second.error.unwrap().to_string();
    assert!(text.contains("in use by another process"), "{text}");
    // Over, it is free again.
    assert!(run(&client, &file.0, Retry::None, input()).is_complete());
}

#[test]
fn journal_has_what_a_broken_off_batch_applied() {
    for panics in [false, true] {
        let file = File::new("broken-off");
        let writes = Writes::default();
        let client = keeping(&writes, |_, _| None);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let batch = Batch::new(&client).workers(4).journal(&file.0);
            batch.run(input(), |outcome| match outcome.line {
                10 if panics => panic!("on purpose"),
                10 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        }));
        assert_eq!(ended.is_err(), panics);
        let written: usize = writes.lock().unwrap().values().map(Vec::len).sum();
        let summary = Journal::summary(&file.0).unwrap();
        assert_eq!(summary.by_status["applied"], written as u64, "{summary:?}");
        assert!(run(&client, &file.0, Retry::None, input()).is_complete());
        let written: usize = writes.lock().unwrap().values().map(Vec::len).sum();
        assert_eq!(written, 40);
    }
}

#[test]
fn journal_that_cannot_be_opened_stops_the_batch_with_the_reason() {
    let writes = Writes::default();
    let client = keeping(&writes, |_, _| None);
    for path in ["/nonexistent/folder/journal", "/dev/null", "/"] {
        let report = run(&client, Path::new(path), Retry::None, input());
        assert_eq!(
            (report.lines(), report.stopped),
            (0, Some(StopReason::Journal))
        );
        assert!(report.error.unwrap().to_string().contains(path));
    }
    assert_eq!(client.metrics().requests, 0);
}

#[test]
fn progress_tells_what_is_done_and_left() {
    let platform = Platform::new();
    let client = platform.client(|_, _| None);
    let batch = platform.batch(&client).expect_lines(40);
    let progress = batch.progress();
    let mut looks = Vec::new();
    batch.run(lines(40), |_| {
        looks.push(progress.look());
        ControlFlow::Continue(())
    });
    assert_eq!(looks.len(), 40);
    assert_eq!((looks[0].done, looks[0].total), (1, Some(40)));
    let end = progress.look();
    assert_eq!(
        (end.done, end.failed, end.skipped, end.waiting),
        (40, 0, 0, None)
    );
    assert_eq!(end.left, Some(Duration::ZERO));
    serde_json::to_value(&end).unwrap();
}

#[test]
fn progress_tells_a_pause_with_its_end_and_an_outage() {
    // Each sleep is looked into from the thread that sleeps.
    let platform = Platform::new();
    let seen: Arc<Mutex<Vec<Waiting>>> = Arc::default();
    let handle: Arc<OnceLock<genesys_attributes::batch::ProgressHandle>> = Arc::default();
    let (looks, look) = (seen.clone(), handle.clone());
    let clock = AlarmClock::new(platform.clock.clone(), move || {
        looks
            .lock()
            .unwrap()
            .extend(look.get().and_then(|handle| handle.look().waiting));
    });
    let asked = AtomicUsize::new(0);
    let client = platform.builder(move |_, request| {
        if request.url().ends_with("/oauth/token") {
            return None;
        }
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Ok(Response::new(429).with_header("Retry-After", "31"))),
            _ => None,
        }
    });
    let client = client.clock(clock).build().unwrap();
    let batch = Batch::new(&client);
    handle.set(batch.progress()).ok().unwrap();
    assert!(
        batch
            .run(lines(3), |_| ControlFlow::Continue(()))
            .is_complete()
    );
    let seen = seen.lock().unwrap();
    let pauses = seen.iter().filter(
        |waiting| matches!(waiting, Waiting::Pause(left) if (29..33).contains(&left.as_secs())),
    );
    assert!(pauses.count() >= 1, "{seen:?}");
}
