//! What the program says and shows, and how it ends.

use super::files::Killed;
use super::*;

#[test]
fn argument_errors_name_names_and_never_values() {
    const VALUE: &str = "DE89370400440532013000";
    let pair = format!("iban:{VALUE}");
    let option = format!("--{VALUE}=1");
    let flagged = format!("--secure={VALUE}");
    for args in [
        &["update", "c", "--secure", VALUE][..],
        &["update", "c", "--secure", &pair],
        &["update", "c", "--secure", &format!("iban:={VALUE}")],
        &[
            "update",
            "c",
            "--secure",
            &format!("iban=@/nonexistent/{VALUE}"),
        ],
        &[VALUE, "c"],
        &[&option],
        &["update", "c", "k=v", &flagged],
        &["get", "c", VALUE],
        &["check", VALUE],
        &["man", VALUE],
        &["completions", VALUE],
        &["batch", "--workers", VALUE],
        &["batch", "--rate", VALUE],
        &["batch", "--stop-after", VALUE],
        &["batch", "--max-outage", VALUE],
        &["batch", "--shard", VALUE],
        &["batch", "a", VALUE],
        &[
            "update",
            "c",
            "k=v",
            "--if-version",
            VALUE,
            "--if-version",
            VALUE,
        ],
        &[
            "update",
            "c",
            "k=v",
            "--participant",
            "customer",
            "--if-version",
            VALUE,
        ],
    ] {
        for json in [None, Some("--json")] {
            let ended = run(bare().args(args).args(json));
            assert_eq!(
                (ended.code, ended.out.as_str()),
                (2, ""),
                "{args:?}: {}",
                ended.err
            );
            assert!(!ended.err.contains("DE89"), "{args:?}: {}", ended.err);
            assert!(!ended.err.is_empty());
            if json.is_some() {
                records(&ended.err);
            }
        }
    }
    let ended = run(bare().args(["batch", "--workers", "0"]));
    assert!(
        ended.err.contains("genesys-attributes batch --help"),
        "{}",
        ended.err
    );
    let ended = run(bare().args(["updaet", "c"]));
    assert!(ended.err.contains("did you mean update?"), "{}", ended.err);
    let ended = run(bare().args(["batch", "--retry-faild"]));
    assert!(
        ended.err.contains("did you mean --retry-failed?"),
        "{}",
        ended.err
    );
}

#[test]
fn value_comes_from_a_file_or_from_standard_input() {
    let (store, server) = plain();
    let folder = Folder::new("values-from");
    let text = folder.file("text", "from a file\r\n");
    let number = folder.file("number", "85\n");
    let ended = with_stdin(
        program(&server).args([
            "update",
            "c",
            "--conversation",
            &format!("a=@{}", text.display()),
            &format!("b:=@{}", number.display()),
            "c=@-",
            "d:=\"@literal\"",
        ]),
        b"from input\n",
    );
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    store.with("c", |c| {
        assert_eq!(
            Value::from(c.attributes.clone()),
            json!({ "a": "from a file", "b": 85, "c": "from input", "d": "@literal" })
        );
    });
    let two = run(bare().args(["update", "c", "--secure", "a=@-", "b=@-"]));
    assert_eq!(two.code, 2);
    let both = run(bare().args(["update", "c", "--secure", "a=@-", "--credentials", "-"]));
    assert_eq!(both.code, 2);
}

#[test]
fn command_without_a_target_lists_the_four_and_sends_nothing() {
    let (_, server) = plain();
    for args in [&["update", "c-7", "k=v"][..], &["get", "c-7"]] {
        let ended = run(program(&server).args(args));
        assert_eq!((ended.code, ended.out.as_str()), (2, ""));
        for way in ["--participant", "--secure", "--custom", "--conversation"] {
            assert!(ended.err.contains(way), "{}", ended.err);
        }
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn dry_run_and_diff_show_what_would_change_and_write_nothing() {
    let (store, server) = plain();
    let set = ["update", "c", "--conversation", "tier=gold", "n:=1"];
    assert_eq!(run(program(&server).args(set)).code, 0);
    let ended = run(program(&server).args([
        "update",
        "c",
        "--conversation",
        "--dry-run",
        "tier=silver",
        "n:=1.0",
        "new:=true",
    ]));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(
        ended.out,
        "wouldChange: c (conversation), nothing is written\n  \"new\": (none) → true\n  \"tier\": \"gold\" → \"silver\"\n"
    );
    let folder = Folder::new("diff");
    let input = folder.file(
        "in",
        "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"silver\"}}\n\
         {\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"gold\"}}\nnope\n",
    );
    let ended = run(program(&server)
        .args(["batch", "--diff", "--json"])
        .arg(&input));
    assert_eq!(ended.code, 1, "{}", ended.err);
    let found = records(&ended.out);
    assert_eq!(
        found[0],
        json!({ "line": 1, "conversationId": "c", "target": "conversation", "status": "wouldChange",
                "changes": [{ "key": "tier", "old": "gold", "new": "silver", "change": "changed" }] })
    );
    assert_eq!(found[1]["status"], "unchanged");
    assert_eq!(found[2]["status"], "failed");
    let summary = records(&ended.err);
    for (name, count) in [("wouldChange", 1), ("unchanged", 1), ("failed", 1)] {
        assert_eq!(summary[0][name], count);
    }
    store.with("c", |c| assert_eq!(c.writes.len(), 1));
}

#[test]
fn summary_is_one_line_and_a_table_of_failures_where_nobody_watches() {
    let store = Store::default();
    let server = store.serve(|req, _| req.path.contains("gone").then(|| Resp::json(404, "{}")));
    let folder = Folder::new("summary");
    let good = folder.file("good", line("a", 1));
    let ended = run(program(&server).arg("batch").arg(&good));
    assert_eq!(ended.code, 0);
    assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    assert!(
        ended.err.contains("1 line in") && ended.err.contains("1 applied"),
        "{}",
        ended.err
    );
    let ended = run(program(&server).args(["batch", "-q"]).arg(&good));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));

    let bad: String = (0..9).map(|n| line(&format!("gone-{n}"), n)).collect();
    let bad = folder.file("bad", bad + &line("b", 1));
    let ended = run(program(&server).arg("batch").arg(&bad));
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("9  notFound (lines "), "{}", ended.err);
    let ended = run(program(&server).args(["batch", "--json"]).arg(&bad));
    let summary = records(&ended.err).pop().unwrap();
    assert_eq!(summary["failures"]["notFound"]["count"], 9);
    let ended = run(program(&server).args(["batch", "--exit-zero"]).arg(&bad));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let ended = run(bare().args(["batch", "--exit-zero", "/nonexistent/file"]));
    assert_eq!(ended.code, 2, "{}", ended.err);
}

#[test]
fn throttled_batch_says_how_long_to_wait() {
    let folder = Folder::new("throttled");
    let input = folder.file("in", line("a", 1));
    let down = crate::server::Server::start(|req| match req.path {
        "/oauth/token" => Resp::json(200, r#"{"access_token":"t","expires_in":86400}"#),
        _ => Resp::json(429, "{}").header("Retry-After", "9999"),
    });
    let ended = run(program(&down).args(["batch"]).arg(&input));
    assert_eq!(ended.code, 5, "{}", ended.err);
    assert!(ended.err.contains("9999 s (2 h 46 min)"), "{}", ended.err);
    let ended = run(program(&down).args(["batch", "--json"]).arg(&input));
    let summary = records(&ended.err).pop().unwrap();
    assert_eq!(summary["retryAfterSeconds"], 9999);
}

#[test]
fn first_signal_lets_what_is_in_flight_end_and_the_second_stops_at_once() {
    let signal = |name: &str, child: &std::process::Child| {
        let sent = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    };
    for (name, status, twice) in [
        ("-INT", 130, false),
        ("-TERM", 143, false),
        ("-HUP", 129, false),
        ("-INT", 130, true),
    ] {
        let store = Store::default();
        let (arrived, gate, hold) = held();
        let server = store.serve(move |req, _| {
            if req.method == "PATCH" && req.path.contains("c-5/") {
                hold();
            }
            None
        });
        let folder = Folder::new(&format!("signal{name}{twice}"));
        let text: String = (0..500).map(|n| line(&format!("c-{n}"), n)).collect();
        let input = folder.file("in", text);
        let file = folder.path("results");
        let child = resume(&server, &input, &file)
            .args(["--workers", "1"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        arrived.wait();
        signal(name, &child.0);
        // Its note says that the signal was taken.
        let mut err = std::io::BufReader::new(child.0.stderr.take().unwrap());
        let mut note = String::new();
        std::io::BufRead::read_line(&mut err, &mut note).unwrap();
        assert!(note.contains("what is in flight ends"), "{note}");
        if twice {
            signal(name, &child.0);
            assert_eq!(child.0.wait().unwrap().code(), Some(status));
            gate.open();
            continue;
        }
        gate.open();
        let mut rest = String::new();
        err.read_to_string(&mut rest).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(status), "{rest}");
        assert!(rest.contains("6 applied"), "{rest}");
        assert_eq!(results(&file).len(), 6);
        let ended = run(&mut resume(&server, &input, &file));
        assert_eq!(ended.code, 0, "{}", ended.err);
        store.with("c-5", |c| assert_eq!(c.writes.len(), 1));
    }
}

#[test]
fn metrics_of_two_shards_have_no_series_in_common() {
    let (_, server) = plain();
    let folder = Folder::new("metrics-of-shards");
    let input = folder.file(
        "in",
        (0..20)
            .map(|n| line(&format!("c-{n}"), 1))
            .collect::<String>()
            + "no JSON\n",
    );
    let mut all = std::collections::BTreeSet::new();
    let mut lines = 0;
    for shard in ["1/2", "2/2"] {
        let file = folder.path("m.prom");
        run(program(&server)
            .arg("batch")
            .arg(&input)
            .args(["--shard", shard, "--metrics"])
            .arg(&file));
        for sample in std::fs::read_to_string(&file).unwrap().lines() {
            let Some((series, value)) =
                sample.rsplit_once(' ').filter(|_| !sample.starts_with('#'))
            else {
                continue;
            };
            assert!(series.contains(&format!("{{shard=\"{shard}\"")), "{series}");
            assert!(all.insert(series.to_owned()), "{series} is there twice");
            if series.starts_with("genesys_attributes_lines_total") {
                lines += value.parse::<u64>().unwrap();
            }
        }
    }
    assert_eq!(lines, 21);
}

#[test]
fn line_that_is_corrected_into_another_shard_is_run_there() {
    let (store, server) = plain();
    let folder = Folder::new("moved");
    let input = folder.path("in");
    // Of parts 1, 3 and 2.
    let rest = [line("c-0", 1), line("c-1", 1), line("c-3", 1)].concat();
    let write = |wrong: [&str; 3]| {
        std::fs::write(
            &input,
            [&wrong.concat(), &rest].map(String::as_str).concat(),
        )
        .unwrap();
    };
    let codes = |retry: bool| -> Vec<i32> {
        let shards = (1..=3).map(|n| {
            let mut command = resume(&server, &input, &folder.path(&format!("done{n}")));
            command.args(["--shard", &format!("{n}/3")]);
            command.args(retry.then_some("--retry-failed"));
            run(&mut command).code
        });
        shards.collect()
    };
    // By its number of part 2; by their conversations of parts 3 and 3.
    write([
        "no JSON\n",
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\"}\n",
        "{\"conversationId\":\"c-2\",\"target\":\"conversation\",\"unknown\":1}\n",
    ]);
    assert_eq!(codes(false), [0, 1, 1]);
    // The first is of part 1 now, and still wrong; the second stays; the third is of part 2.
    let (one, three) = (line("c-1", 100), line("c-3", 100));
    write([
        "{\"conversationId\":\"c-0\",\"target\":\"conversation\",\"unknown\":1}\n",
        &one,
        &three,
    ]);
    assert_eq!(codes(false), [1, 0, 2]);
    assert_eq!(codes(true), [1, 0, 0]);
    // And back.
    write([&line("c-3", 200), &one, &three]);
    assert_eq!(codes(true), [0, 0, 0]);
    assert_eq!(codes(false), [0, 0, 0]);
    let written = |id: &str, values: &[u64]| {
        store.with(id, |c| {
            let found: Vec<_> = c.writes.iter().map(|write| write["n"].clone()).collect();
            assert_eq!(found, values, "{id}");
        });
    };
    written("c-0", &[1]);
    written("c-1", &[1, 100, 1]);
    written("c-3", &[1, 100, 1, 200, 100, 1]);
}

#[test]
fn metrics_file_is_there_at_the_end_and_an_impossible_one_is_refused() {
    let (_, server) = plain();
    let folder = Folder::new("metrics");
    let input = folder.file("in", [line("a", 1), line("b", 1)].concat());
    let file = folder.file("m.prom", "# HELP genesys_attributes_old Old.\n");
    let ended = run(program(&server)
        .arg("batch")
        .arg(&input)
        .arg("--metrics")
        .arg(&file));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("genesys_attributes_applied_total 2\n"),
        "{text}"
    );
    assert!(text.contains("genesys_attributes_lines_total{status=\"applied\"} 2\n"));
    assert!(text.contains("genesys_attributes_lines_total{status=\"failed\"} 0\n"));
    assert!(text.contains("genesys_attributes_outage 0\n"));
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing is left over: {left:?}");
    let before = server.requests();
    let ended = run(program(&server)
        .arg("batch")
        .arg(&input)
        .args(["--metrics", "/nonexistent/m"]));
    assert_eq!(ended.code, 2, "{}", ended.err);
    let ended = run(program(&server)
        .arg("batch")
        .arg(&input)
        .args(["--failed", "/nonexistent/f"]));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert_eq!(server.requests(), before);
}

// A file has a mode on Unix alone.
#[test]
#[cfg(unix)]
fn credentials_file_is_told_of_by_name_and_line() {
    use std::os::unix::fs::PermissionsExt;
    let (_, server) = plain();
    let folder = Folder::new("credentials");
    let text = format!(
        "\u{FEFF}# all of it\nGENESYS_CLOUD_BASE_URL={} # where\nGENESYS_CLOUD_CLIENT_ID='id'\n\
         GENESYS_CLOUD_CLIENT_SECRET={SECRET}\n",
        server.url()
    );
    let file = folder.file("env", &text);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let ended = run(bare().args(["check", "--credentials"]).arg(&file));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = run(bare().args(["check", "--credentials"]).arg(&file));
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains("other users can read"), "{}", ended.err);
    let ended = with_stdin(
        bare().args(["check", "--credentials", "-"]),
        text.as_bytes(),
    );
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    let wrong = folder.file("wrong", format!("\nGENESYS_CLOUD_CLIENTSECRET={SECRET}\n"));
    let ended = run(bare().args(["check", "--credentials"]).arg(&wrong));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 2 of") && ended.err.contains("wrong"),
        "{}",
        ended.err
    );
    assert!(!ended.err.contains(SECRET));
    let short = folder.file("short", "GENESYS_CLOUD_CLIENT_ID=id\n");
    let ended = run(bare().args(["check", "--credentials"]).arg(&short));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("settings are from") && ended.err.contains("short"),
        "{}",
        ended.err
    );
}

#[test]
fn completions_are_shell_that_the_shell_takes() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(bare().args(["completions", shell]));
        assert_eq!((ended.code, ended.err.as_str()), (0, ""));
        assert!(ended.out.contains("genesys-attributes"));
        let mut check = Command::new(shell);
        check.arg("-n").stdin(Stdio::piped());
        // Not every machine has all of them.
        if let Ok(mut child) = check.spawn() {
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(ended.out.as_bytes()).unwrap();
            drop(stdin);
            assert!(child.wait().unwrap().success(), "{shell}");
        }
    }
    let ended = run(bare().arg("man"));
    assert!(ended.out.contains(".TH genesys-attributes 1"));
}

#[test]
fn outage_of_the_login_at_the_start_is_waited_for() {
    let store = Store::default();
    let down = Arc::new(AtomicUsize::new(3));
    let left = down.clone();
    let server = store.serve(move |req, _| {
        let refused = req.path == "/oauth/token"
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        refused.then(|| Resp::json(503, "{}"))
    });
    let folder = Folder::new("outage");
    let text: String = (0..20).map(|n| line(&format!("c-{n}"), n)).collect();
    let input = folder.file("in", text);
    let ended = run(program(&server).args(["batch", "--rate", "0"]).arg(&input));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.err.contains("20 applied"), "{}", ended.err);
}

#[test]
fn outage_beyond_the_limit_has_its_exit_status_and_spends_no_line() {
    let folder = Folder::new("long-outage");
    let text: String = (0..50).map(|n| line(&format!("c-{n}"), n)).collect();
    let input = folder.file("in", text);
    let file = folder.path("results");
    let down = Server::start(|_| Resp::json(503, "{}"));
    let ended = run(resume(&down, &input, &file).args(["--max-outage", "0"]));
    assert_eq!(ended.code, 6, "{}", ended.err);
    assert!(ended.err.contains("--max-outage"), "{}", ended.err);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("\"final\":true"), "{text}");
    let (store, server) = plain();
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    assert_eq!(store.ids().len(), 50);
}

#[test]
fn login_that_can_never_succeed_stops_the_batch_at_once() {
    let folder = Folder::new("login");
    let input = folder.file("in", line("a", 1));
    for (status, body) in [(404, "{}"), (200, "<html></html>")] {
        let wrong = Server::start(move |_| Resp::json(status, body));
        let ended = run(program(&wrong).arg("batch").arg(&input));
        assert_eq!((ended.code, ended.out.as_str()), (3, ""), "{}", ended.err);
        assert!(ended.err.contains("check the region"), "{}", ended.err);
    }
}

#[test]
fn settings_file_makes_the_client_and_is_named_where_it_is_wrong() {
    let (store, server) = plain();
    let folder = Folder::new("settings-json");
    let file = folder.file(
        "settings.json",
        json!({ "baseUrl": server.url(), "clientId": "id", "clientSecret": SECRET }).to_string(),
    );
    let ended = run(bare()
        .args(["update", "c", "k=v", "--conversation", "--settings"])
        .arg(&file));
    assert_eq!(ended.code, 0, "{}", ended.err);
    store.with("c", |c| assert_eq!(c.writes.len(), 1));
    let wrong = folder.file("wrong.json", json!({ "clientSecrets": SECRET }).to_string());
    let ended = run(bare().args(["check", "--settings"]).arg(&wrong));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("clientSecrets") && ended.err.contains("wrong.json"),
        "{}",
        ended.err
    );
    assert!(!ended.err.contains(SECRET));
}

/// What the run would refuse, the dry run refuses; and it makes no file.
#[test]
fn dry_run_checks_what_the_update_checks() {
    let (store, server) = plain();
    assert_eq!(
        run(program(&server).args(["update", "c", "--conversation", "k=1"])).code,
        0
    );
    let folder = Folder::new("dry-guards");
    let audit = folder.path("audit");
    for words in [vec!["k=2", "--if-version", "77"], vec!["n:=1.5"]] {
        let mut command = program(&server);
        command
            .args(["update", "c", "--conversation", "--dry-run", "--audit"])
            .arg(&audit);
        let ended = run(command.args(&words));
        assert_ne!(ended.code, 0, "{words:?}: {}", ended.out);
        assert!(!ended.out.contains("wouldChange"), "{words:?}");
    }
    let text = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"k\":\"2\"},\"ifVersion\":\"77\"}\n";
    let input = folder.file("in", text);
    let mut command = program(&server);
    command
        .args(["batch", "--diff", "--audit"])
        .arg(&audit)
        .arg(&input);
    let ended = run(&mut command);
    assert_eq!(ended.code, 1, "{}", ended.out);
    assert_eq!(records(&ended.out)[0]["error"]["kind"], "conflict");
    assert!(!audit.exists());
    store.with("c", |c| assert_eq!(c.writes.len(), 1));
}

#[test]
fn attribute_in_place_of_an_id_is_refused_without_being_shown() {
    let (store, server) = plain();
    for words in [
        &["update", "iban=DE89370400440532013000", "tier=gold"][..],
        &["get", "iban=DE89370400440532013000"],
        &[
            "update",
            "c",
            "--participant",
            "iban=DE89370400440532013000",
            "a=b",
        ],
    ] {
        let ended = run(program(&server).args(words));
        assert_eq!(ended.code, 2, "{words:?}");
        assert!(
            ended.err.contains("looks like an attribute"),
            "{}",
            ended.err
        );
        assert!(!ended.err.contains("DE89"), "{}", ended.err);
    }
    assert!(store.ids().is_empty());
}
