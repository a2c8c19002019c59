//! Inputs, results and other files that are not what they should be.

use super::*;

/// The program on an input, with the outcomes on standard output.
fn batch(server: &Server, input: &Path) -> Command {
    let mut command = program(server);
    command
        .args(["batch", "--conversation", "--rate", "0"])
        .arg(input);
    command
}

#[test]
fn input_of_another_format_is_one_error_and_nothing_is_sent() {
    let (_, server) = plain();
    let folder = Folder::new("formats");
    let json = line("a", 1);
    let utf16: Vec<u8> = json.bytes().flat_map(|b| [b, 0]).collect();
    for (name, text, csv, problem) in [
        (
            "csv",
            b"conversationId,k\na,1\n".to_vec(),
            false,
            "Give --csv",
        ),
        ("json", json.clone().into_bytes(), true, "leave --csv out"),
        ("gzip", vec![0x1F, 0x8B, 8, 0, 1, 2], false, "gunzip"),
        ("gzip", vec![0x1F, 0x8B, 8, 0, 1, 2], true, "gunzip"),
        (
            "utf16",
            [&[0xFF, 0xFE][..], &utf16].concat(),
            false,
            "UTF-16",
        ),
        ("utf16", utf16, false, "UTF-16"),
        (
            "array",
            format!("[{}]", json.trim()).into_bytes(),
            false,
            "one JSON array",
        ),
        (
            "pretty",
            b"{\n  \"conversationId\": \"a\"\n}\n".to_vec(),
            false,
            "jq -c",
        ),
    ] {
        let input = folder.file(name, &text);
        for command in ["batch", "validate"] {
            let mut command = match command {
                "batch" => batch(&server, &input),
                _ => {
                    let mut command = bare();
                    command.arg("validate").arg(&input);
                    command
                }
            };
            if csv {
                command.arg("--csv");
            }
            let ended = run(&mut command);
            assert_eq!(
                (ended.code, ended.out.as_str()),
                (2, ""),
                "{name}: {}",
                ended.err
            );
            assert!(ended.err.contains(problem), "{name}: {}", ended.err);
            assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
        }
        let mut command = program(&server);
        command.args(["batch", "-"]).args(csv.then_some("--csv"));
        let ended = with_stdin(&mut command, &text);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (2, ""),
            "{name}: {}",
            ended.err
        );
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn csv_header_that_resembles_a_column_is_refused_and_an_escaped_one_is_not() {
    let (store, server) = plain();
    let folder = Folder::new("headers");
    for header in [
        "participantId",
        "remove",
        "if_version",
        "Target",
        "PARTICIPANT",
        "unlocked ",
    ] {
        let input = folder.file("in.csv", format!("conversationId,{header}\na,x\n"));
        let ended = run(batch(&server, &input).arg("--csv"));
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{header}");
        assert!(ended.err.contains(header), "{}", ended.err);
    }
    assert_eq!(server.requests(), 0);
    let input = folder.file("in.csv", "conversationId,attr:remove,attr:n:\na,x,3\n");
    let ended = run(batch(&server, &input).arg("--csv"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    store.with("a", |c| {
        assert_eq!(
            Value::from(c.attributes.clone()),
            json!({ "remove": "x", "n": 3 })
        );
    });
}

#[test]
fn csv_row_never_turns_into_another_target() {
    let sandbox = crate::sandbox::Sandbox::start();
    sandbox.world(|world| {
        world.auto_create = true;
    });
    let folder = Folder::new("targets");
    let input = folder.file(
        "in.csv",
        "conversationId,participant,target,iban\n\
         c-1,,secure,SECRET\n\
         c-2,,,SECRET\n\
         c-3,customer,,gold\n\
         c-4,,participant,SECRET\n\
         c-5,customer,secure,SECRET\n\
         c-6, ,,SECRET\n",
    );
    let mut command = bare();
    command
        .env("GENESYS_CLOUD_BASE_URL", sandbox.url())
        .env("GENESYS_CLOUD_CLIENT_ID", crate::sandbox::CLIENT_ID)
        .env("GENESYS_CLOUD_CLIENT_SECRET", crate::sandbox::CLIENT_SECRET)
        .args(["batch", "--csv"])
        .arg(&input);
    let ended = run(&mut command);
    assert_eq!(ended.code, 1, "{}", ended.err);
    let mut found = records(&ended.out);
    found.sort_by_key(|record| record["line"].as_u64());
    let told: Vec<&str> = found
        .iter()
        .map(|r| r["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        told,
        ["applied", "failed", "applied", "failed", "failed", "failed"]
    );
    assert!(!ended.out.contains("SECRET") && !ended.err.contains("SECRET"));
    sandbox.world(|world| {
        let secure = world.conversations["c-1"].secure.as_ref().unwrap();
        assert_eq!(secure.attributes["iban"], "SECRET");
        for (id, conversation) in &world.conversations {
            assert!(conversation.attributes.is_empty(), "{id}");
        }
        for id in ["c-2", "c-4", "c-5", "c-6"] {
            assert!(!world.conversations.contains_key(id), "{id}");
        }
    });
}

#[test]
fn hole_in_the_results_does_not_leave_an_older_value() {
    let (store, server) = plain();
    let folder = Folder::new("hole");
    let input = folder.file(
        "in",
        [line("a", 1), line("b", 1), line("a", 2), line("b", 2)].concat(),
    );
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("{\"line\":1,"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&file, kept).unwrap();
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    store.with("a", |c| {
        let order: Vec<_> = c.writes.iter().map(|w| w["n"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2, 1, 2]);
    });
    store.with("b", |c| assert_eq!(c.writes.len(), 2));
}

#[test]
fn line_number_beyond_the_input_is_refused_by_number_in_little_memory() {
    let (_, server) = plain();
    let folder = Folder::new("number");
    let input = folder.file("in", line("a", 1));
    let file = folder.file(
        "results",
        "{\"line\":60000000000,\"status\":\"applied\",\"digest\":\"00\",\"final\":true}\n",
    );
    let ended = run(&mut resume(&server, &input, &file));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("60000000000"), "{}", ended.err);
    let ended = run(bare().arg("status").arg(&file));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(server.requests(), 0);
}

#[test]
fn dry_run_of_a_resume_writes_nothing() {
    let (_, server) = plain();
    let folder = Folder::new("dry-resume");
    let input = folder.file("in", [line("a", 1), line("a", 2)].concat());
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 0);
    // A hole and a torn last line, which a run would write about and cut.
    let text = std::fs::read_to_string(&file).unwrap();
    let torn = text.lines().nth(1).unwrap().to_owned() + "\n{\"line\":7,\"st";
    std::fs::write(&file, &torn).unwrap();
    let requests = server.requests();
    for option in ["--dry-run", "--diff"] {
        let ended = run(resume(&server, &input, &file).arg(option));
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), torn);
        if option == "--dry-run" {
            assert!(
                ended.err.contains("2 updates would be sent"),
                "{}",
                ended.err
            );
            assert_eq!(server.requests(), requests);
        }
    }
    // A login and a read for each of the two lines.
    assert!(server.requests() <= requests + 3);
}

#[test]
fn failed_line_may_be_corrected_in_place_and_an_applied_one_may_not() {
    let (store, server) = plain();
    let folder = Folder::new("correct");
    let bad = "{\"conversationId\":\"b\",\"target\":\"conversation\",\"atributes\":{\"n\":1}}\n";
    let input = folder.file("in", [&line("a", 1), bad, &line("c", 1)].concat());
    let (file, failed) = (folder.path("results"), folder.path("failed"));
    let ended = run(resume(&server, &input, &file).arg("--failed").arg(&failed));
    assert_eq!(ended.code, 1);
    assert_eq!(std::fs::read_to_string(&failed).unwrap(), bad);
    let corrected = folder.file("in", [line("a", 1), line("b", 1), line("c", 1)].concat());
    let ended = run(&mut resume(&server, &corrected, &file));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 2 of the input has changed")
            && ended.err.contains("--retry-failed"),
        "{}",
        ended.err
    );
    let changed = folder.file(
        "changed",
        [line("a", 9), line("b", 1), line("c", 1)].concat(),
    );
    let ended = run(resume(&server, &changed, &file).arg("--retry-failed"));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 1 of the input has changed"),
        "{}",
        ended.err
    );
    let ended = run(resume(&server, &corrected, &file)
        .arg("--retry-failed")
        .arg("--failed")
        .arg(&failed));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&failed).unwrap(), "");
    for id in ["a", "b", "c"] {
        store.with(id, |c| assert_eq!(c.writes.len(), 1, "{id}"));
    }
    // The corrected text is what counts from now on.
    assert_eq!(run(&mut resume(&server, &corrected, &file)).code, 0);
}

#[test]
fn failed_rows_are_written_with_their_header_from_a_pipe_too() {
    let (_, server) = plain();
    let folder = Folder::new("failed-rows");
    let failed = folder.path("failed.csv");
    let text = "conversationId,k:,note\r\na,1,\"x\ny\"\r\nb,oops,\"two\r\nlines\"\r\nc,2,\n";
    let ended = with_stdin(
        program(&server)
            .args(["batch", "--conversation", "--csv", "-", "--failed"])
            .arg(&failed),
        text.as_bytes(),
    );
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert_eq!(
        std::fs::read_to_string(&failed).unwrap(),
        "conversationId,k:,note\nb,oops,\"two\r\nlines\"\n"
    );
}

// Windows lets only an administrator make a symbolic link.
#[test]
#[cfg(unix)]
fn one_file_for_two_purposes_is_refused_before_anything_is_written() {
    let (_, server) = plain();
    let folder = Folder::new("same");
    let input = folder.file("in", line("a", 1));
    let settings = folder.file("settings", "GENESYS_CLOUD_CLIENT_ID=id\n");
    let hard = folder.path("hard");
    std::fs::hard_link(&input, &hard).unwrap();
    let link = folder.path("link");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let dotted = folder.0.join(".").join("in");
    let new = folder.path("new");
    let new_dotted = folder.0.join(".").join("new");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    for option in ["--audit", "--results", "--failed", "--metrics"] {
        let ended = run(batch(&server, &input)
            .current_dir(&folder.0)
            .args([option, "-"]));
        assert_eq!(ended.code, 2, "{option}: {}", ended.err);
        let told = format!("{option} cannot be -");
        assert!(ended.err.contains(&told), "{}", ended.err);
        assert!(!folder.path("-").exists(), "{option}");
    }
    for words in [
        vec!["--audit".to_owned(), path(&hard)],
        vec!["--results".to_owned(), path(&link)],
        vec!["--failed".to_owned(), path(&dotted)],
        vec!["--metrics".to_owned(), path(&hard)],
        vec![
            "--results".to_owned(),
            path(&new),
            "--audit".to_owned(),
            path(&new_dotted),
        ],
        vec![
            "--results".to_owned(),
            path(&new),
            "--failed".to_owned(),
            path(&new),
        ],
        vec![
            "--credentials".to_owned(),
            path(&settings),
            "--audit".to_owned(),
            path(&settings),
        ],
    ] {
        let ended = run(batch(&server, &input).args(&words));
        assert_eq!(ended.code, 2, "{words:?}: {}", ended.err);
        assert!(ended.err.contains("same file"), "{words:?}: {}", ended.err);
    }
    let out = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&new)
        .unwrap();
    let status = batch(&server, &input)
        .args(["--audit".as_ref(), new.as_os_str()])
        .stdout(out)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
    let ended = run(program(&server)
        .args(["update", "a", "k=v", "--conversation", "--credentials"])
        .arg(&settings)
        .arg("--audit")
        .arg(&settings));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&input).unwrap(), line("a", 1));
    assert_eq!(std::fs::metadata(&new).unwrap().len(), 0);
    assert_eq!(server.requests(), 0);
}

#[test]
fn lost_audit_records_have_an_exit_status_and_strict_writes_nothing() {
    let (store, server) = plain();
    let folder = Folder::new("full");
    let input = folder.file(
        "in",
        (0..50)
            .map(|n| line(&format!("c-{n}"), n))
            .collect::<String>(),
    );
    let ended = run(batch(&server, &input).args(["--audit", "/dev/full"]));
    assert_eq!(ended.code, 7, "{}", ended.err);
    assert!(
        ended
            .err
            .contains("100 audit records were lost, and 50 updates are in place"),
        "{}",
        ended.err
    );
    let ended = run(program(&server).args([
        "update",
        "u",
        "--conversation",
        "k=v",
        "--audit",
        "/dev/full",
    ]));
    assert_eq!(ended.code, 7, "{}", ended.err);
    let writes = |store: &Store| -> usize {
        let ids = store.ids();
        ids.iter()
            .map(|id| store.with(id, |c| c.writes.len()))
            .sum()
    };
    let before = writes(&store);
    let ended = run(batch(&server, &input).args(["--audit", "/dev/full", "--audit-strict"]));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(ended.err.contains("strict audit"), "{}", ended.err);
    assert_eq!(writes(&store), before);
}

#[test]
fn audit_values_are_recorded_only_where_they_are_asked_for() {
    let (_, server) = plain();
    let folder = Folder::new("values");
    for (option, recorded) in [(None, false), (Some("--audit-values"), true)] {
        let audit = folder.path("audit");
        let ended = run(program(&server)
            .args([
                "update",
                "a",
                "k=visible-value",
                "--conversation",
                "--audit",
            ])
            .arg(&audit)
            .args(option));
        assert_eq!(ended.code, 0, "{}", ended.err);
        let text = std::fs::read_to_string(&audit).unwrap();
        assert_eq!(text.contains("visible-value"), recorded);
        std::fs::remove_file(&audit).unwrap();
    }
    let ended = run(bare().args(["update", "a", "--secure", "k=v", "--audit-strict"]));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("--audit FILE"), "{}", ended.err);
}

#[test]
fn results_of_another_shard_are_refused() {
    let (store, server) = plain();
    let folder = Folder::new("shard");
    let text: String = (0..60).map(|n| line(&format!("c-{}", n % 20), n)).collect();
    let input = folder.file("in", text);
    let shard =
        |part: &str, file: &Path| run(resume(&server, &input, file).args(["--shard", part]));
    let files: Vec<PathBuf> = (1..=3).map(|n| folder.path(&format!("r{n}"))).collect();
    for (index, file) in files.iter().enumerate() {
        for _ in 0..2 {
            let ended = shard(&format!("{}/3", index + 1), file);
            assert_eq!(ended.code, 0, "{}", ended.err);
        }
    }
    let lines: usize = files.iter().map(|file| results(file).len()).sum();
    assert_eq!(lines, 60);
    for id in store.ids() {
        store.with(&id, |c| assert_eq!(c.writes.len(), 3, "{id}"));
    }
    let requests = server.requests();
    for part in ["2/3", "1/4"] {
        let ended = shard(part, &files[0]);
        assert_eq!(ended.code, 2, "{part}: {}", ended.err);
        assert!(
            ended.err.contains("each shard needs its own"),
            "{}",
            ended.err
        );
    }
    assert_eq!(server.requests(), requests);
    for part in ["0/3", "4/3", "x", "1/0", "-1/2"] {
        assert_eq!(shard(part, &folder.path("none")).code, 2, "{part}");
    }
}

#[test]
fn status_counts_without_the_lock_while_a_batch_runs() {
    let store = Store::default();
    let (arrived, gate, hold) = held();
    let server = store.serve(move |req, _| {
        if req.path.contains("held") {
            hold();
        }
        req.path.contains("gone").then(|| Resp::json(404, "{}"))
    });
    let folder = Folder::new("status");
    let input = folder.file(
        "in",
        [line("a", 1), line("gone", 1), line("held", 1), line("b", 1)].concat(),
    );
    let file = folder.path("results");
    let child = resume(&server, &input, &file)
        .args(["--workers", "1"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    arrived.wait();
    // The outcomes before it are on their way to the file.
    while std::fs::read_to_string(&file).unwrap().lines().count() < 2 {
        std::thread::yield_now();
    }
    let ended = run(bare().args(["status", "--json"]).arg(&file).arg(&input));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let status: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(status["byStatus"], json!({ "applied": 1, "failed": 1 }));
    assert_eq!(
        status["failedByKind"]["notFound"],
        json!({ "count": 1, "lines": [2] })
    );
    assert_eq!(
        (
            &status["resume"],
            &status["retryFailed"],
            &status["withoutOutcome"]
        ),
        (&json!(0), &json!(1), &json!(2))
    );
    gate.open();
    assert_eq!(child.0.wait().unwrap().code(), Some(1));
    let ended = run(bare().arg("status").arg(&file));
    assert!(ended.out.contains("outcomes of 4 lines"), "{}", ended.out);
    assert!(
        ended.out.contains("notFound (for good; line 2)"),
        "{}",
        ended.out
    );
    for wrong in ["/nonexistent/file", "/dev/null"] {
        assert_eq!(run(bare().args(["status", wrong])).code, 2);
    }
    assert_eq!(run(bare().arg("status").arg(&input)).code, 2);
}

/// A process that does not outlive a test that fails.
pub struct Killed(pub std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A settings file names files of its own.
#[test]
fn files_that_the_settings_name_have_no_second_purpose_either() {
    let (_, server) = plain();
    let folder = Folder::new("same-settings");
    let input = folder.file("in", line("a", 1));
    let trail = folder.file("trail", "{\"id\":\"x\",\"phase\":\"intent\"}\n");
    let schema = folder.file("schema", "{\"keys\":{}}");
    let settings = |audit: &Path| {
        let text = json!({
            "baseUrl": server.url(), "clientId": "id", "clientSecret": "secret", "proxy": false,
            "ratePerMinute": 0, "audit": { "file": audit },
        });
        folder.file("settings.json", text.to_string())
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let own = folder.path("settings.json");
    for (audit, words) in [
        (&trail, vec!["--failed".to_owned(), path(&trail)]),
        (&trail, vec!["--metrics".to_owned(), path(&trail)]),
        (&input, vec![]),
        (&own, vec![]),
    ] {
        let settings = settings(audit);
        let before = [&trail, &input, &settings].map(|path| std::fs::read(path).unwrap());
        let mut command = bare();
        command
            .arg("batch")
            .arg(&input)
            .arg("--settings")
            .arg(&settings);
        let ended = run(command.args(&words));
        assert_eq!(ended.code, 2, "{words:?}: {}", ended.err);
        assert!(ended.err.contains("same file"), "{words:?}: {}", ended.err);
        let after = [&trail, &input, &settings].map(|path| std::fs::read(path).unwrap());
        assert_eq!(before, after, "{words:?}");
    }
    for option in ["--failed", "--metrics", "--audit", "--results"] {
        let mut command = batch(&server, &input);
        command
            .arg("--schema-file")
            .arg(&schema)
            .arg(option)
            .arg(&schema);
        let ended = run(&mut command);
        assert_eq!(ended.code, 2, "{option}: {}", ended.err);
        assert_eq!(std::fs::read_to_string(&schema).unwrap(), "{\"keys\":{}}");
    }
    let value = folder.file("value", "x");
    let word = format!("k=@{}", value.display());
    let ended = run(program(&server)
        .args(["update", "a", "--conversation", &word, "--audit"])
        .arg(&value));
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&value).unwrap(), "x");
}

#[test]
fn failed_file_has_the_later_lines_of_its_conversations_too() {
    let (store, server) = plain();
    let folder = Folder::new("failed-order");
    let input = folder.file(
        "in",
        "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"old\",\"score\":1.5}}\n\
         {\"conversationId\":\"d\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"x\"}}\n\
         {\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"new\"}}\n",
    );
    let failed = folder.path("failed");
    let ended = run(batch(&server, &input).arg("--failed").arg(&failed));
    assert_eq!(ended.code, 1, "{}", ended.err);
    let text = std::fs::read_to_string(&failed).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    // Corrected and run, the newer value stays.
    let again = folder.file("again", text.replace("1.5", "1"));
    assert_eq!(run(&mut batch(&server, &again)).code, 0);
    store.with("c", |c| assert_eq!(c.attributes["tier"], "new"));
}

#[test]
#[cfg(unix)]
fn failed_file_is_for_its_owner_and_a_link_to_it_stays() {
    use std::os::unix::fs::PermissionsExt;
    let (_, server) = plain();
    let folder = Folder::new("failed-mode");
    let input = folder.file(
        "in",
        "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"k\":1.5}}\n",
    );
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let new = folder.path("new");
    assert_eq!(
        run(batch(&server, &input).arg("--failed").arg(&new)).code,
        1
    );
    assert_eq!(mode(&new), 0o600);
    let old = folder.file("old", "");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path("link");
    std::os::unix::fs::symlink(&old, &link).unwrap();
    assert_eq!(
        run(batch(&server, &input).arg("--failed").arg(&link)).code,
        1
    );
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(mode(&old), 0o640);
    assert_eq!(std::fs::read_to_string(&old).unwrap().lines().count(), 1);
}

#[test]
fn csv_header_of_a_json_field_or_a_target_is_refused() {
    let (store, server) = plain();
    let folder = Folder::new("csv-fields");
    for name in ["verify", "Verify?", "secure", "custom", "purpose"] {
        let input = folder.file("in", format!("conversationId,{name},iban\nc,true,DE1\n"));
        let ended = run(batch(&server, &input).arg("--csv"));
        assert_eq!(ended.code, 2, "{name}: {}", ended.err);
        assert!(ended.err.contains("resembles"), "{name}: {}", ended.err);
    }
    assert!(store.ids().is_empty());
}

#[test]
fn status_counts_what_a_resume_over_the_input_would_run() {
    let store = Store::default();
    let server = store.serve(|req, _| req.path.contains("gone").then(|| Resp::json(404, "{}")));
    let folder = Folder::new("status-input");
    let lines = [line("gone", 1), line("a", 1), line("gone", 2), line("a", 2)];
    let input = folder.file("in", lines.concat());
    let file = folder.path("results");
    assert_eq!(run(&mut resume(&server, &input, &file)).code, 1);
    let counts = || {
        let ended = run(bare().args(["status", "--json"]).arg(&file).arg(&input));
        let status: Value = serde_json::from_str(&ended.out).unwrap();
        ["resume", "retryFailed", "withoutOutcome"].map(|name| status[name].as_u64().unwrap())
    };
    assert_eq!(counts(), [0, 2, 0]);
    // A hole: the line behind it of the same conversation runs again, too.
    let text = std::fs::read_to_string(&file).unwrap();
    let kept = text.lines().filter(|line| !line.contains("\"line\":2,"));
    std::fs::write(
        &file,
        kept.map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    assert_eq!(counts(), [1, 2, 1]);
    // Its own output is not its input.
    let out = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap();
    let before = std::fs::read(&file).unwrap();
    let status = bare()
        .arg("status")
        .arg(&file)
        .stdout(out)
        .stderr(Stdio::null())
        .status();
    assert_eq!(status.unwrap().code(), Some(2));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
