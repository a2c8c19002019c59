//! Inputs that are torn, replaced or written by other programs.

use super::*;

/// A batch whose first update waits at the platform. The rest of the input is read meanwhile.
struct Waiting {
    store: Store,
    arrived: Gate,
    gate: Gate,
    server: Server,
}

fn waiting() -> Waiting {
    let store = Store::default();
    let (arrived, gate, hold) = held();
    let server = store.serve(move |req, _| {
        if req.method == "PATCH" && req.path.contains("held") {
            hold();
        }
        req.path.contains("gone").then(|| Resp::json(404, "{}"))
    });
    Waiting {
        store,
        arrived,
        gate,
        server,
    }
}

impl Waiting {
    /// Runs the command, and `change` while its first update waits.
    fn run(&self, command: &mut Command, change: impl FnOnce()) -> Ended {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        self.arrived.wait();
        change();
        self.gate.open();
        ended(child.wait_with_output().unwrap())
    }
}

#[test]
fn failed_file_holds_the_lines_that_were_read_and_not_those_of_a_new_file() {
    let folder = Folder::new("replaced");
    let text = [line("held", 1), line("gone", 2), line("c", 3)].concat();
    let other = [line("x", 1), line("y", 2), line("z", 3), line("w", 4)].concat();
    let failed = folder.path("failed");
    for (what, code) in [
        ("renamed", 1),
        ("removed", 1),
        ("cut", 2),
        ("overwritten", 2),
    ] {
        let input = folder.file("in", &text);
        folder.file("failed", line("old", 1));
        let waiting = waiting();
        let mut command = program(&waiting.server);
        command
            .arg("batch")
            .arg(&input)
            .arg("--failed")
            .arg(&failed);
        let ended = waiting.run(&mut command, || match what {
            "renamed" => std::fs::rename(folder.file("next", &other), &input).unwrap(),
            "removed" => std::fs::remove_file(&input).unwrap(),
            "cut" => std::fs::write(&input, "").unwrap(),
            _ => std::fs::write(&input, text.replace("gone", "good")).unwrap(),
        });
        assert_eq!(ended.code, code, "{what}: {}", ended.err);
        let held = std::fs::read_to_string(&failed).unwrap();
        if code == 1 {
            assert_eq!(held, line("gone", 2), "{what}");
        } else {
            assert!(
                ended.err.contains("changed while the batch ran"),
                "{}",
                ended.err
            );
            assert_eq!(held, line("old", 1), "{what}");
        }
    }
}

#[test]
fn failed_file_of_a_batch_that_stopped_early_has_later_lines_that_were_not_read() {
    let store = Store::default();
    let server = store.serve(|req, _| req.path.contains("gone").then(|| Resp::json(404, "{}")));
    let folder = Folder::new("early");
    let rest: String = (0..5_000).map(|n| line(&format!("c-{n}"), n)).collect();
    let input = folder.file("in", [line("gone", 1), rest, line("gone", 2)].concat());
    let failed = folder.path("failed");
    let ended = run(program(&server)
        .args(["batch", "--rate", "0", "--stop-after", "1", "--failed"])
        .arg(&failed)
        .arg(&input));
    assert_eq!(ended.code, 3, "{}", ended.err);
    let held = std::fs::read_to_string(&failed).unwrap();
    assert!(held.starts_with(&line("gone", 1)), "{held}");
    assert!(held.ends_with(&line("gone", 2)), "{held}");
}

#[test]
fn later_lines_of_a_row_that_is_no_update_are_held_for_the_next_run() {
    let (store, server) = plain();
    let folder = Folder::new("legible");
    let failed = folder.path("failed.csv");
    let csv = "conversationId,tier\nc,old,x\nd,x\nc,new\n";
    let json = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":old}}\n\
                {\"conversationId\":\"d\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"x\"}}\n\
                {\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"new\"}}\n";
    for (text, wrong, right, option) in [
        (csv, "old,x", "old", Some("--csv")),
        (json, "old", "\"old\"", None),
    ] {
        let input = folder.file("in", text);
        let ended = run(program(&server)
            .args(["batch", "--conversation", "--failed"])
            .arg(&failed)
            .args(option)
            .arg(&input));
        assert_eq!(ended.code, 1, "{}", ended.err);
        let held = std::fs::read_to_string(&failed).unwrap();
        assert!(
            held.contains("new") && !held.contains("\nd,x") && !held.contains("\"d\""),
            "{held}"
        );
        // Corrected and run, the newer value stays.
        let again = folder.file("again", held.replace(wrong, right));
        let ended = run(program(&server)
            .args(["batch", "--conversation"])
            .args(option)
            .arg(&again));
        assert_eq!(ended.code, 0, "{}", ended.err);
        store.with("c", |c| assert_eq!(c.attributes["tier"], "new"));
    }
}

#[test]
fn last_line_without_a_line_end_is_run_with_a_warning_and_again_once_it_is_completed() {
    let (store, server) = plain();
    let folder = Folder::new("unended");
    let json = line("b", 12).trim_end().to_owned();
    for (name, start, torn, rest, end) in [
        (
            "csv",
            "target,conversationId,n:\nconversation,a,1\n",
            "conversation,b,1",
            "2",
            "\nconversation,c,3\n",
        ),
        (
            "csv",
            "target,conversationId,n:\nconversation,a,1\n",
            "conversation,b",
            ",12",
            "\n",
        ),
        (
            "csv",
            "target,conversationId,n:\nconversation,a,1\n",
            "conversation,b,\"1",
            "2\"",
            "\n",
        ),
        ("json", &line("a", 1), &json[..json.len() - 4], "12}}", "\n"),
        ("json", &line("a", 1), &json, "", "\n"),
    ] {
        let file = folder.file("results", "");
        let batch = |text: &str, warned: bool| {
            let input = folder.file("in", text);
            let ended =
                run(resume(&server, &input, &file).args((name == "csv").then_some("--csv")));
            assert_eq!(
                ended.err.contains("no line end"),
                warned,
                "{text}: {}",
                ended.err
            );
            ended.code
        };
        let whole = [start, torn, rest].concat();
        // An open quote is an error of its own.
        batch(
            &[start, torn].concat(),
            !torn.contains('"') || name == "json",
        );
        assert_eq!(batch(&[&whole, end].concat(), false), 0, "{torn}");
        store.with("b", |c| assert_eq!(c.attributes["n"], 12, "{torn}"));
        // What is done is not done again.
        let requests = server.requests();
        assert_eq!(batch(&[&whole, end].concat(), false), 0, "{torn}");
        assert_eq!(server.requests(), requests, "{torn}");
    }
    // A pipe has no size: its last line is taken, too.
    let ended = with_stdin(program(&server).arg("batch"), json.as_bytes());
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.err.contains("no line end"), "{}", ended.err);
}

#[test]
fn last_line_without_a_line_end_is_not_run_from_a_file_that_grew_meanwhile() {
    let folder = Folder::new("growing");
    let start: String = std::iter::once(line("held", 0))
        .chain((0..5_000).map(|n| line(&format!("c-{}", n % 50), n)))
        .collect();
    let append = |input: &Path, text: &str| {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(input)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let input = folder.file("in", &start);
    let waiting = waiting();
    let results = folder.path("results");
    let mut command = resume(&waiting.server, &input, &results);
    let torn = "{\"conversationId\":\"last\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}";
    let ended = waiting.run(&mut command, || append(&input, torn));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(
        ended.err.contains("5002") && ended.err.contains("not run"),
        "{}",
        ended.err
    );
    assert!(!waiting.store.ids().contains(&"last".to_owned()));
    append(&input, "\n");
    let ended = run(&mut resume(&waiting.server, &input, &results));
    assert_eq!(ended.code, 0, "{}", ended.err);
    waiting
        .store
        .with("last", |c| assert_eq!(c.writes.len(), 1));
    waiting
        .store
        .with("c-1", |c| assert_eq!(c.writes.len(), 100));
}

#[test]
fn cells_may_be_separated_by_another_character_and_a_wrong_one_is_named() {
    let (store, server) = plain();
    let folder = Folder::new("delimiter");
    for (name, delimiter, text) in [
        ("semicolon", ";", "conversationId;tier;n:\nc;\"a;b,c\";1\n"),
        (
            "tab",
            "tab",
            "\u{FEFF}conversationId\ttier\tn:\r\nc\ta;b,c\t1\r\n",
        ),
        (
            "named",
            ";",
            "sep=;\r\nconversationId;tier;n:\r\nc;\"a;b,c\";1\r\n",
        ),
        ("pipe", "|", "conversationId|tier|n:\nc|a;b,c|1\n"),
        ("comma", ",", "conversationId,tier,n:\nc,\"a;b,c\",1\n"),
    ] {
        let input = folder.file(name, text);
        let with = |delimiter: &str| {
            run(program(&server)
                .args(["batch", "--conversation"])
                .arg(&input)
                .args(["--delimiter", delimiter]))
        };
        let ended = with(delimiter);
        assert_eq!(ended.code, 0, "{name}: {}", ended.err);
        store.with("c", |c| {
            let found = Value::from(c.attributes.clone());
            assert_eq!(found, json!({ "tier": "a;b,c", "n": 1 }), "{name}");
        });
        for wrong in [",", ";", "tab", "|"]
            .iter()
            .filter(|wrong| **wrong != delimiter)
        {
            let ended = with(wrong);
            let right = match delimiter {
                "tab" => "--delimiter tab".to_owned(),
                _ => format!("--delimiter '{delimiter}'"),
            };
            assert_eq!(ended.code, 2, "{name}: {}", ended.err);
            assert!(ended.err.contains(&right), "{name}: {}", ended.err);
        }
    }
    for wrong in ["", "ab", "\"", "\n", "é", "a"] {
        let ended = run(bare().args(["validate", "--delimiter", wrong, "x"]));
        assert_eq!(ended.code, 2, "{wrong:?}");
        assert!(
            ended.err.contains("--delimiter takes"),
            "{wrong:?}: {}",
            ended.err
        );
    }
}

#[test]
#[cfg(unix)]
fn drafts_follow_no_link_that_others_planted() {
    let (_, server) = plain();
    let folder = Folder::new("planted");
    let victim = folder.file("victim", "precious");
    let input = folder.file(
        "in",
        "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"k\":1.5}}\n",
    );
    let script = "for name in failed metrics; do ln -s \"$PWD/victim\" .$name.$$.tmp; \
                  ln -s \"$PWD/victim\" $name.tmp; done; exec \"$0\" \"$@\"";
    let program = program(&server);
    let mut command = Command::new("sh");
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap());
    }
    let ended = run(command
        .current_dir(&folder.0)
        .args(["-c", script])
        .arg(program.get_program())
        .args(["batch", "--failed", "failed", "--metrics", "metrics"])
        .arg(&input));
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(
        std::fs::read(folder.path("failed")).unwrap(),
        std::fs::read(&input).unwrap()
    );
    assert!(
        std::fs::read_to_string(folder.path("metrics"))
            .unwrap()
            .contains("exit_status 1")
    );
    // Its own drafts are gone.
    let names = std::fs::read_dir(&folder.0).unwrap();
    let hidden = names.filter(|name| {
        let name = name.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".genesys")
    });
    assert_eq!(hidden.count(), 0);
}

#[test]
fn metrics_say_how_and_when_the_batch_ended() {
    let store = Store::default();
    let server = store.serve(|req, _| req.path.contains("gone").then(|| Resp::json(404, "{}")));
    let folder = Folder::new("ended");
    let good = folder.file("good", line("a", 1));
    let bad = folder.file("bad", [line("gone", 1), line("b", 1)].concat());
    let file = folder.path("metrics");
    let value = |name: &str| {
        let text = std::fs::read_to_string(&file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().parse::<u64>().unwrap())
    };
    for (input, option, status, complete) in [
        (&good, vec![], 0, 1),
        (&bad, vec![], 1, 1),
        (&bad, vec!["--exit-zero"], 0, 1),
        (&bad, vec!["--stop-after", "1", "--workers", "1"], 3, 0),
        (&bad, vec!["--failed", "/dev/full"], 2, 0),
    ] {
        let ended = run(program(&server)
            .arg("batch")
            .arg(input)
            .args(&option)
            .arg("--metrics")
            .arg(&file));
        assert_eq!(ended.code, status as i32, "{option:?}: {}", ended.err);
        assert_eq!(
            value("genesys_attributes_batch_exit_status"),
            Some(status),
            "{option:?}"
        );
        assert_eq!(
            value("genesys_attributes_batch_complete"),
            Some(complete),
            "{option:?}"
        );
        assert!(value("genesys_attributes_batch_end_timestamp_seconds") > Some(1_700_000_000));
    }
    // While it runs.
    let waiting = waiting();
    let input = folder.file("in", line("held", 1));
    let mut command = program(&waiting.server);
    command.arg("batch").arg(&input).arg("--metrics").arg(&file);
    waiting.run(&mut command, || {
        assert_eq!(value("genesys_attributes_batch_complete"), Some(0));
        assert_eq!(value("genesys_attributes_batch_exit_status"), None);
    });
}

#[test]
fn odd_inputs_are_told_in_one_line_each() {
    let (_, server) = plain();
    let folder = Folder::new("odd");
    let input = |name: &str, text: &[u8]| folder.file(name, text);
    for (path, csv, code, told) in [
        (folder.0.clone(), false, 2, "it is a directory"),
        (folder.path("nowhere"), false, 2, "cannot be read"),
        (input("empty", b""), false, 0, "0 lines in"),
        (input("empty.csv", b""), true, 2, "needs a header row"),
        (input("blank", b"\n \n\r\n"), false, 0, "0 lines in"),
        (
            input("header", b"conversationId,k\n"),
            true,
            0,
            "0 lines in",
        ),
        (
            input("unended header", b"conversationId,k"),
            true,
            0,
            "0 lines in",
        ),
        (input("mark", b"\xEF\xBB\xBF"), false, 0, "0 lines in"),
        (
            input("nul", b"conversationId,k\na,\0\n"),
            true,
            2,
            "it is binary",
        ),
        (
            input("twice", b"conversationId,k,k:\na,1,2\n"),
            true,
            2,
            "two columns for \"k:\"",
        ),
        (
            input("ids", b"conversationId,conversationId\na,b\n"),
            true,
            2,
            "two columns for \"conversationId\"",
        ),
        (
            input("columns", b"id,tier\na,b\n"),
            true,
            2,
            "no column conversationId",
        ),
    ] {
        let ended = run(program(&server)
            .arg("batch")
            .arg(&path)
            .args(csv.then_some("--csv")));
        assert_eq!(ended.code, code, "{path:?}: {}", ended.err);
        assert!(ended.err.contains(told), "{path:?}: {}", ended.err);
        assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    }
    assert_eq!(server.requests(), 0);
}
