//! Results files, and what a later run takes up from them.

use super::*;

#[test]
fn a_resume_runs_what_has_no_final_outcome() {
    let store = Store::default();
    let down = Arc::new(AtomicUsize::new(1));
    let flag = down.clone();
    let server = store.serve(move |req, _| {
        let refused = req.path.contains("down") && flag.load(Ordering::SeqCst) == 1;
        // 503 with nothing retried would take the default backoff: refuse for good, but in a way
        // that may pass.
        refused.then(|| Resp::json(429, "{}").header("Retry-After", "9999"))
    });
    let folder = Folder::new("resume");
    let text = [
        line("a", 1),
        line("bad id", 1),
        line("down", 1),
        line("a", 2),
    ]
    .concat();
    let input = folder.file("in", &text);
    let file = folder.path("results");

    let ended = run(resume(&server, &input, &file).args(["--workers", "1"]));
    assert_eq!(ended.code, 5, "{}", ended.err);
    assert_eq!(ended.out, "");
    assert!(
        ended.err.contains("run the same command later"),
        "{}",
        ended.err
    );
    let first = results(&file);
    assert_eq!(first[&1][0]["final"], true);
    assert_eq!(first[&2][0]["final"], true);
    assert_eq!(first[&3][0]["final"], false);
    assert_eq!(first[&1][0]["digest"].as_str().unwrap().len(), 16);

    // Without --resume the file is not touched.
    let ended = run(program(&server)
        .arg("batch")
        .arg(&input)
        .arg("--results")
        .arg(&file));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("--resume"), "{}", ended.err);

    // A torn last line is cut off, and lines may have been appended to the input.
    let mut torn = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap();
    torn.write_all(b"{\"line\":4,\"stat").unwrap();
    let input = folder.file("in", text.clone() + &line("later", 5));
    down.store(0, Ordering::SeqCst);
    let ended = run(&mut resume(&server, &input, &file));
    // Line 2 failed for good, and is told of again.
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.err.contains("--retry-failed"), "{}", ended.err);
    let second = results(&file);
    assert_eq!(second.len(), 5);
    assert_eq!(second[&1].len(), 1, "done before");
    assert_eq!(second[&2].len(), 1, "failed for good");
    assert_eq!(second[&3].last().unwrap()["status"], "applied");
    assert_eq!(second[&5][0]["status"], "applied");
    store.with("a", |c| assert_eq!(c.attributes["n"], 2));

    // A changed line is refused by its number, before anything is sent.
    let before = server.requests();
    let changed = folder.file(
        "changed",
        text.replace("\"n\":2", "\"n\":3") + &line("later", 5),
    );
    let ended = run(&mut resume(&server, &changed, &file));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 4 of the input has changed"),
        "{}",
        ended.err
    );
    let short = folder.file("short", line("a", 1));
    let ended = run(&mut resume(&server, &short, &file));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("ends at line 1"), "{}", ended.err);
    assert_eq!(server.requests(), before);

    // From standard input, too.
    let text = std::fs::read(&input).unwrap();
    let ended = with_stdin(&mut resume(&server, Path::new("-"), &file), &text);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert_eq!(server.requests(), before);
}

#[test]
fn retrying_a_failed_line_does_not_leave_an_older_value() {
    let store = Store::default();
    let broken = Arc::new(AtomicUsize::new(1));
    let flag = broken.clone();
    let server = store.serve(move |req, _| {
        let refused = req.method == "PATCH" && flag.swap(0, Ordering::SeqCst) == 1;
        refused.then(|| Resp::json(400, "{}"))
    });
    let folder = Folder::new("retry");
    let input = folder.file("in", [line("a", 1), line("a", 2), line("b", 1)].concat());
    let file = folder.path("results");
    assert_eq!(
        run(resume(&server, &input, &file).args(["--workers", "1"])).code,
        1
    );
    store.with("a", |c| assert_eq!(c.attributes["n"], 2));
    let ended = run(resume(&server, &input, &file).arg("--retry-failed"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    store.with("a", |c| {
        let order: Vec<_> = c.writes.iter().map(|w| w["n"].as_u64().unwrap()).collect();
        assert_eq!(
            order,
            [2, 1, 2],
            "the later line runs again after the retried one"
        );
    });
    store.with("b", |c| assert_eq!(c.writes.len(), 1));
    assert_eq!(
        run(resume(&server, &input, &file).arg("--retry-failed")).code,
        0
    );
}

#[test]
fn a_results_file_is_used_by_one_process_at_a_time() {
    let store = Store::default();
    let (arrived, gate, hold) = held();
    let server = store.serve(move |req, _| {
        if req.path.contains("held") {
            hold();
        }
        None
    });
    let folder = Folder::new("lock");
    let input = folder.file("in", line("held", 1));
    let file = folder.path("results");
    let mut first = resume(&server, &input, &file).spawn().unwrap();
    arrived.wait();
    let ended = run(&mut resume(&server, &input, &file));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("in use by another process"),
        "{}",
        ended.err
    );
    gate.open();
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn a_pipe_is_kept_for_a_resume() {
    let (store, server) = plain();
    let folder = Folder::new("fifo");
    let pipe = folder.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let file = folder.path("results");
    let text: String = (0..30).map(|n| line(&format!("c-{n}"), n)).collect();
    let first: String = text
        .lines()
        .take(20)
        .map(|line| line.to_owned() + "\n")
        .collect();
    for (text, outcomes) in [(first, 20), (text, 30)] {
        let mut child = resume(&server, &pipe, &file).spawn().unwrap();
        std::fs::write(&pipe, text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(results(&file).len(), outcomes);
    }
    assert_eq!(store.ids().len(), 30);
    for id in store.ids() {
        store.with(&id, |c| assert_eq!(c.writes.len(), 1, "{id}"));
    }
}

#[test]
fn what_is_no_results_file_is_left_as_it_is() {
    let (_, server) = plain();
    let folder = Folder::new("foreign");
    let input = folder.file("in", line("a", 1));
    for text in ["precious", "{\"other\":1}", "{\"conversationId\":\"a\"}\n"] {
        let file = folder.file("results", text);
        let ended = run(&mut resume(&server, &input, &file));
        assert_eq!(ended.code, 2, "{text}");
        assert!(ended.err.contains("another file"), "{}", ended.err);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
    for special in ["/dev/full", "/dev/null"] {
        let ended = run(&mut resume(&server, &input, Path::new(special)));
        assert_eq!(ended.code, 2);
        assert!(ended.err.contains("regular file"), "{}", ended.err);
    }
    let ended = run(&mut resume(&server, &input, &input));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("same file"), "{}", ended.err);
    assert_eq!(server.requests(), 0);
}

/// Counts the requests of a server, but for logins, and tells when so many more have arrived.
#[derive(Clone, Default)]
struct Counter {
    requests: Arc<AtomicUsize>,
    /// The request that is waited for, by its number from 1 on; 0 for none.
    number: Arc<AtomicUsize>,
    arrived: Arc<std::sync::Mutex<Gate>>,
}

impl Counter {
    fn serve(&self, store: &Store) -> Server {
        let counter = self.clone();
        store.serve(move |req, _| {
            if req.path != "/oauth/token"
                && counter.requests.fetch_add(1, Ordering::SeqCst) + 1
                    == counter.number.load(Ordering::SeqCst)
            {
                counter.arrived.lock().unwrap().open();
            }
            None
        })
    }

    /// Opens when `more` requests have arrived.
    fn after(&self, more: usize) -> Gate {
        let next = Gate::new();
        *self.arrived.lock().unwrap() = next.clone();
        let so_far = self.requests.load(Ordering::SeqCst);
        self.number.store(so_far + more, Ordering::SeqCst);
        next
    }
}

/// Thirty kills, each when so many more requests have arrived, and a resume after each: in the
/// end the server holds exactly the right values, and every line has one success.
#[test]
fn kills_and_resumes_lose_nothing() {
    let store = Store::default();
    let counter = Counter::default();
    let server = counter.serve(&store);
    let folder = Folder::new("kill");
    // More than the kills can let through, however late they come.
    let (conversations, rounds) = (40u64, 75u64);
    let text: String = (0..conversations * rounds)
        .map(|i| line(&format!("c-{}", i % conversations), i / conversations))
        .collect();
    let input = folder.file("in", text);
    let file = folder.path("results");
    for kill in 0..30usize {
        // Uneven steps, so that kills fall on all kinds of moments.
        let next = counter.after(5 + kill * 7 % 43);
        let mut child = resume(&server, &input, &file).spawn().unwrap();
        next.wait();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let ended = run(&mut resume(&server, &input, &file));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let found = results(&file);
    assert_eq!(found.len() as u64, conversations * rounds);
    for (line, outcomes) in &found {
        let successes = outcomes.iter().filter(|o| o["status"] == "applied").count();
        assert_eq!(successes, 1, "line {line}: {outcomes:?}");
    }
    for n in 0..conversations {
        store.with(&format!("c-{n}"), |c| {
            assert_eq!(c.attributes["n"], rounds - 1);
        });
    }
}

/// Four processes share one input; each is killed several times and resumed.
#[test]
fn four_shards_killed_and_resumed_apply_every_line_once() {
    let store = Store::default();
    let counter = Counter::default();
    let server = counter.serve(&store);
    let folder = Folder::new("shards");
    let (conversations, rounds) = (40u64, 40u64);
    let text: String = (0..conversations * rounds)
        .map(|i| line(&format!("c-{}", i % conversations), i / conversations))
        .collect();
    let input = folder.file("in", text);
    let files: Vec<PathBuf> = (1..=4).map(|n| folder.path(&format!("done{n}"))).collect();
    let shard = |index: usize| {
        let mut command = resume(&server, &input, &files[index]);
        command.args(["--shard", &format!("{}/4", index + 1)]);
        command
    };
    for kill in 0..6usize {
        let next = counter.after(20 + kill * 17 % 43);
        let mut running: Vec<_> = (0..4).map(|n| shard(n).spawn().unwrap()).collect();
        next.wait();
        // Each time another one is killed first.
        running.rotate_left(kill % 4);
        for child in &mut running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let running: Vec<_> = (0..4)
        .map(|n| shard(n).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in running {
        let ended = ended(child.wait_with_output().unwrap());
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    let mut lines = std::collections::BTreeSet::new();
    for file in &files {
        for (line, outcomes) in results(file) {
            assert!(lines.insert(line), "line {line} is in two parts");
            let successes = outcomes.iter().filter(|o| o["status"] == "applied").count();
            assert_eq!(successes, 1, "line {line}: {outcomes:?}");
        }
    }
    assert!(lines.into_iter().eq(1..=conversations * rounds));
    for n in 0..conversations {
        store.with(&format!("c-{n}"), |c| {
            assert_eq!(c.attributes["n"], rounds - 1);
        });
    }
}

#[test]
fn a_retry_of_changed_lines_leaves_what_fails_for_good_alone() {
    let store = Store::default();
    let server = store.serve(|req, _| req.path.contains("gone").then(|| Resp::json(404, "{}")));
    let folder = Folder::new("retry-changed");
    let input = folder.file("in", [line("gone", 1), line("a", 1)].concat());
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 1);
    let (before, requests) = (std::fs::read(&file).unwrap(), server.requests());
    for _ in 0..2 {
        let ended = run(resume(&server, &input, &file).arg("--retry-changed"));
        assert_eq!(ended.code, 1, "{}", ended.err);
    }
    // Neither sent nor recorded again.
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(server.requests(), requests);
    let listed = run(bare().args(["status", "--failed"]).arg(&file));
    assert_eq!(listed.code, 1, "{}", listed.err);
    assert!(
        listed
            .out
            .starts_with("line 1, conversation gone: notFound: "),
        "{}",
        listed.out
    );
    let listed = run(bare().args(["status", "--failed", "--json"]).arg(&file));
    let record: Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(record["error"]["kind"], "notFound");
    // Corrected, it runs.
    let input = folder.file("in", [line("b", 1), line("a", 1)].concat());
    let ended = run(resume(&server, &input, &file).arg("--retry-changed"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let listed = run(bare().args(["status", "--failed"]).arg(&file));
    assert_eq!((listed.code, listed.out.as_str()), (0, ""));
}

#[test]
fn a_look_at_the_status_never_keeps_a_batch_from_starting() {
    let (_, server) = plain();
    let folder = Folder::new("status-lock");
    let input = folder.file("in", line("a", 1));
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    for _ in 0..6 {
        // It reads its input from a pipe that stays open, and has the results open all the while.
        let mut looking = bare()
            .args(["status"])
            .arg(&file)
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ended = run(&mut resume(&server, &input, &file));
        assert_eq!(ended.code, 0, "{}", ended.err);
        drop(looking.stdin.take());
        looking.wait().unwrap();
    }
}

#[test]
fn a_deleted_line_is_named_and_no_retry_is_advised() {
    let (_, server) = plain();
    let folder = Folder::new("deleted");
    let text: Vec<String> = (0..6).map(|n| line(&format!("c-{n}"), n)).collect();
    let input = folder.file("in", text.concat());
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    let requests = server.requests();
    let shorter = folder.file("in", [&text[..2], &text[3..]].concat().concat());
    let ended = run(&mut resume(&server, &shorter, &file));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 3 of the input has changed")
            && ended
                .err
                .contains("it is what line 4 was, so lines were deleted before it")
            && !ended.err.contains("retry"),
        "{}",
        ended.err
    );
    assert_eq!(server.requests(), requests);
}
