//! The program, as a user drives it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::server::{Resp, Server};
use crate::store::Store;
use crate::wire::Gate;

const SECRET: &str = "cli-secret-7Q2x";

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ga-cli-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program with no settings at all.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genesys-attributes"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The program with the settings of a server.
fn program(server: &Server) -> Command {
    let mut command = bare();
    command
        .env("GENESYS_CLOUD_BASE_URL", server.url())
        .env("GENESYS_CLOUD_CLIENT_ID", "id")
        .env("GENESYS_CLOUD_CLIENT_SECRET", SECRET);
    command
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ended {
    ended(command.output().unwrap())
}

fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn with_stdin(command: &mut Command, text: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that stops reading early is no failure of the writer's.
    let _ = stdin.write_all(text);
    drop(stdin);
    ended(child.wait_with_output().unwrap())
}

fn records(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn line(id: &str, n: u64) -> String {
    format!("{{\"conversationId\":\"{id}\",\"attributes\":{{\"n\":{n}}}}}\n")
}

fn plain() -> (Store, Server) {
    let store = Store::default();
    let server = store.serve(|_, _| None);
    (store, server)
}

#[test]
fn help_and_version_need_nothing() {
    for arg in ["--help", "-h", "--version", "-V"] {
        let ended = run(bare().arg(arg));
        assert_eq!((ended.code, ended.err.as_str()), (0, ""));
        assert!(ended.out.contains("genesys-attributes"));
    }
    let help = run(bare().arg("--help")).out;
    for text in ["update", "get", "batch", "validate", "check", "status"] {
        assert!(help.contains(text), "{text}");
    }
    for args in [
        &["batch", "--help"][..],
        &["help", "batch"],
        &["-h", "batch"],
    ] {
        let help = run(bare().args(args)).out;
        for text in ["--resume", "--max-outage", "--shard", "Exit status"] {
            assert!(help.contains(text), "{text}");
        }
        assert!(!help.contains("--if-version"));
    }
}

#[test]
fn wrong_usage_is_status_2_and_says_why() {
    for (args, why) in [
        (&[][..], "give a command"),
        (&["frob"], "unknown command"),
        (&["update"], "conversation id"),
        (
            &["update", "c", "novalue"],
            "neither KEY=TEXT nor KEY:=JSON",
        ),
        (&["update", "c", "k:=nope"], "not JSON"),
        (
            &["update", "c", "k=v", "--secure", "--custom", "r"],
            "only one of",
        ),
        (
            &["update", "c", "k=v", "--results", "x"],
            "does not go with update",
        ),
        (&["get", "c", "d"], "one conversation"),
        (&["check", "x"], "no argument"),
        (&["batch", "a", "b"], "one input file"),
        (&["batch", "a", "--resume"], "--results"),
        (
            &["batch", "a", "--results", "r", "--retry-failed"],
            "--resume",
        ),
        (&["batch", "a", "--workers", "0"], "--workers"),
        (
            &["batch", "a", "--workers", "x"],
            "--workers takes a number",
        ),
        (&["batch", "--frob"], "--frob"),
        (&["batch", "/nonexistent/input"], "cannot be read"),
    ] {
        let ended = run(bare().args(args));
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.err);
        assert!(ended.err.contains(why), "{args:?}: {}", ended.err);
        assert_eq!(ended.out, "");
    }
}

#[test]
fn missing_settings_are_named() {
    for args in [
        &["check"][..],
        &["update", "c", "k=v"],
        &["get", "c"],
        &["batch"],
    ] {
        let ended = run(bare().env("GENESYS_CLOUD_CLIENT_ID", "id").args(args));
        assert_eq!(ended.code, 2);
        assert!(ended.err.contains("GENESYS_CLOUD_REGION"), "{}", ended.err);
    }
}

#[test]
fn update_get_and_check() {
    let (store, server) = plain();
    let ended =
        run(program(&server).args(["update", "c-1", "tier=gold=x", "score:=85", "on:=true"]));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(
        ended.out.starts_with("applied: c-1, version 1 (was 0)"),
        "{}",
        ended.out
    );
    store.with("c-1", |c| {
        assert_eq!(
            Value::from(c.attributes.clone()),
            json!({ "tier": "gold=x", "score": 85, "on": true })
        );
    });
    let ended = run(program(&server).args(["get", "c-1"]));
    let snapshot: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(snapshot["version"], "1");
    assert_eq!(snapshot["attributes"]["score"], 85);

    let ended = run(program(&server).args(["update", "c-1", "--json", "--if-version", "0", "a=b"]));
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("412"), "{}", ended.err);
    let ended = run(program(&server).args(["update", "c-1", "--json", "--if-version", "1", "a=b"]));
    let receipt: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(receipt["outcome"], "applied");
    assert_eq!(receipt["requests"], 1);

    let ended = run(program(&server).arg("check"));
    assert_eq!(ended.code, 0);
    assert!(
        ended.out.contains("Org") && ended.out.contains("token until"),
        "{}",
        ended.out
    );
    let ended = run(program(&server).args(["check", "--json"]));
    assert_eq!(
        serde_json::from_str::<Value>(&ended.out).unwrap()["organizationName"],
        "Org"
    );
}

#[test]
fn check_says_whether_the_bulk_look_up_is_permitted() {
    for (status, words, permitted) in [
        (200, "bulk look-up: permitted (", json!(true)),
        (403, "bulk look-up: not permitted: ", json!(false)),
        (404, "bulk look-up: unknown: ", Value::Null),
    ] {
        let store = Store::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let server = store.serve(move |req, _| {
            req.path.contains("/analytics/").then(|| {
                count.fetch_add(1, Ordering::SeqCst);
                Resp::json(status, r#"{"conversations":[]}"#)
            })
        });
        let ended = run(program(&server).arg("check"));
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert!(ended.out.contains(words), "{}", ended.out);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let ended = run(program(&server).args(["check", "--json"]));
        let checked: Value = serde_json::from_str(&ended.out).unwrap();
        let bulk = &checked["bulkLookUp"];
        assert_eq!(bulk["permitted"], permitted, "{bulk}");
        assert_eq!(bulk["permission"], "analytics:conversationDetail:view");
        assert_eq!(bulk.get("error").is_some(), permitted.is_null());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}

#[test]
fn an_invalid_update_is_told_before_any_setting_is_needed() {
    let ended = run(bare().args(["update", "c 1", "k:=1.5", "=x"]));
    assert_eq!(ended.code, 2);
    for part in ["conversationId", "\"k\"", "empty key"] {
        assert!(ended.err.contains(part), "{}", ended.err);
    }
}

#[test]
fn settings_come_from_a_file_and_no_secret_is_shown() {
    let (_, server) = plain();
    let folder = Folder::new("settings");
    let file = folder.file(
        "settings",
        format!(
            "# comment\nexport GENESYS_CLOUD_BASE_URL=\"{}\"\nGENESYS_CLOUD_CLIENT_ID = 'id'\n\nGENESYS_CLOUD_CLIENT_SECRET={SECRET}\n",
            server.url()
        ),
    );
    let ended = run(bare()
        .env("RUST_LOG", "trace")
        .args(["update", "c", "k=cli-value-9X", "-v", "--credentials"])
        .arg(&file));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(
        ended.err.contains("PATCH"),
        "the library's own log is there: {}",
        ended.err
    );
    for secret in [SECRET, "sandbox-token", "cli-value-9X", "Basic "] {
        assert!(!ended.err.contains(secret), "{}", ended.err);
    }
    let broken = folder.file("broken", format!("{SECRET}\n"));
    let ended = run(bare().args(["check", "--credentials"]).arg(&broken));
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("line 1") && !ended.err.contains(SECRET),
        "{}",
        ended.err
    );
    let ended = run(bare().args(["check", "--credentials", "/nonexistent/file"]));
    assert_eq!(ended.code, 2);
}

#[test]
fn settings_of_a_file_come_before_the_programs_own() {
    let folder = Folder::new("settings-first");
    for (idle, connections) in [("0", 3), ("null", 1)] {
        let (_store, server) = plain();
        let settings = format!(
            r#"{{"baseUrl": "{}", "clientId": "id", "clientSecret": "{SECRET}", "proxy": false,
                "maxIdleConnections": {idle}, "audit": {{"values": true}}}}"#,
            server.url()
        );
        let settings = folder.file("settings", settings);
        let audit = folder.path("audit.jsonl");
        let words = ["update", "c-1", "tier=gold", "--conversation", "--settings"];
        let ended = run(bare().args(words).arg(settings).arg("--audit").arg(&audit));
        assert_eq!(ended.code, 0, "{}", ended.err);
        // The login, the read and the write, each on one of its own where none is kept.
        assert_eq!(server.connections(), connections);
        let audit = std::fs::read_to_string(audit).unwrap();
        assert!(audit.contains("gold"), "{audit}");
    }
}

/// A thread's stack that no address space holds: whoever starts one fails.
#[cfg(target_pointer_width = "64")]
#[test]
fn update_with_a_deadline_and_a_host_name_starts_no_thread() {
    let folder = Folder::new("threads");
    let (_store, server) = plain();
    let url = server.url().replace("127.0.0.1", "localhost");
    let without_threads = |timeouts: &str| {
        let settings = format!(
            r#"{{"baseUrl": "{url}", "clientId": "id", "clientSecret": "{SECRET}", "proxy": false,
                "retry": {{"deadlineSeconds": 60, "maxAttempts": 1}}, "timeouts": {timeouts}}}"#
        );
        let settings = folder.file("settings", settings);
        let mut command = bare();
        command.env("RUST_MIN_STACK", (1_u64 << 50).to_string());
        let words = ["update", "c-1", "n:=1", "--conversation", "--settings"];
        run(command.args(words).arg(settings))
    };
    let ended = without_threads("{}");
    assert_eq!(ended.code, 0, "{}", ended.err);
    // The price of a limit on looking names up; and the proof that a thread would be noticed.
    let ended = without_threads(r#"{"resolveSeconds": 30}"#);
    assert_ne!(ended.code, 0, "{}", ended.out);
}

#[test]
fn batch_reads_json_lines_and_writes_json_lines() {
    let (store, server) = plain();
    let mut input: Vec<u8> = Vec::new();
    input.extend(line("a", 1).bytes());
    input.extend(b"not json\n\n");
    input.extend(b"{\"conversationId\":\"a\",\"atributes\":{}}\n");
    input.extend(b"{\"conversationId\":7,\"attributes\":{}}\n");
    input.extend(b"\xFF\xFE\n");
    input.extend(vec![b'x'; 10 << 20]);
    input.extend(b"\n");
    input.extend(line("a", 2).bytes());
    input.extend(b"{\"conversationId\":\"b\",\"attributes\":{\"n\":3}}");
    for (args, text) in [
        (&["batch"][..], &input),
        (&["batch", "-", "--workers", "3"], &input),
    ] {
        let ended = with_stdin(program(&server).args(args), text);
        assert_eq!(ended.code, 1);
        assert!(
            ended.err.starts_with("genesys-attributes: 8 lines in "),
            "{}",
            ended.err
        );
        assert!(
            ended.err.contains("5  invalidInput (lines 2, 4, 5, 6, 7)"),
            "{}",
            ended.err
        );
        let mut found = records(&ended.out);
        found.sort_by_key(|record| record["line"].as_u64());
        let told: Vec<(u64, &str)> = found
            .iter()
            .map(|r| (r["line"].as_u64().unwrap(), r["status"].as_str().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                (1, "applied"),
                (2, "failed"),
                (4, "failed"),
                (5, "failed"),
                (6, "failed"),
                (7, "failed"),
                (8, "applied"),
                (9, "applied")
            ]
        );
        for (index, reason) in [
            (1, "not JSON"),
            (2, "atributes"),
            (3, "conversationId"),
            (4, "UTF-8"),
            (5, "10485760 bytes"),
        ] {
            let message = found[index]["error"]["message"].as_str().unwrap();
            assert!(message.contains(reason), "{message}");
            assert_eq!(found[index]["error"]["kind"], "invalidInput");
        }
        store.with("a", |c| assert_eq!(c.attributes["n"], 2));
        store.with("b", |c| assert_eq!(c.attributes["n"], 3));
    }
}

#[test]
fn batch_reads_csv() {
    let (store, server) = plain();
    let folder = Folder::new("csv");
    let input = folder.file(
        "in.csv",
        "conversationId,tier,score:,note\nc-1,gold,85,\"two\nlines\"\nc-2,,7,\nc-3,x,oops,\n",
    );
    let ended = run(program(&server)
        .args(["batch", "--csv", "--json"])
        .arg(&input));
    assert_eq!(ended.code, 1);
    let summary: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(
        (&summary["applied"], &summary["failed"]),
        (&json!(2), &json!(1))
    );
    store.with("c-1", |c| {
        assert_eq!(
            Value::from(c.attributes.clone()),
            json!({ "tier": "gold", "score": 85, "note": "two\nlines" })
        );
    });
    store.with("c-2", |c| {
        assert_eq!(Value::from(c.attributes.clone()), json!({ "score": 7 }))
    });
    let bad = folder.file("bad.csv", "id,k\n1,2\n");
    let ended = run(program(&server).args(["batch", "--csv"]).arg(&bad));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("conversationId"), "{}", ended.err);
}

#[test]
fn schema_file_is_checked_by_validate_update_and_batch_before_anything_is_sent() {
    let folder = Folder::new("schema-file");
    let rules = r#"{"keys": {"n": {"type": "integer", "max": 5}}, "onlyKnownKeys": true}"#;
    let schema = folder.file("schema", rules);
    let input = folder.file("input", [line("a", 5), line("b", 6)].concat());
    let with_schema = |command: &mut Command, words: &[&str]| {
        let ended = run(command.args(words).arg("--schema-file").arg(&schema));
        let refused = if words.contains(&"update") { 2 } else { 1 };
        assert_eq!(ended.code, refused, "{words:?}: {}", ended.err);
        ended
    };
    let (_store, server) = plain();
    let path = input.to_str().unwrap();
    let validated = with_schema(&mut bare(), &["validate", path]);
    assert_eq!(records(&validated.out)[0]["line"], 2);
    let rehearsed = with_schema(&mut bare(), &["batch", "--dry-run", path]);
    assert_eq!(records(&rehearsed.out)[0]["line"], 2);
    let words = ["update", "a", "other=x", "--conversation"];
    let updated = with_schema(&mut bare(), &words);
    assert!(updated.err.contains("\"other\""), "{}", updated.err);
    let words = ["batch", path];
    let batched = records(&with_schema(&mut program(&server), &words).out);
    let refused = batched.iter().find(|record| record["line"] == 2).unwrap();
    assert_eq!(refused["error"]["violations"][0]["rule"], "schema");
    let others = batched.iter().filter(|record| record["line"] != 2);
    assert!(
        others.eq(batched
            .iter()
            .filter(|record| record["status"] == "applied"))
    );
    let broken = folder.file("broken", "{\"key\": {}}");
    let ended = run(bare()
        .args(["validate", path, "--schema-file"])
        .arg(&broken));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("broken"), "{}", ended.err);
}

#[test]
fn validate_needs_no_network_and_names_lines() {
    let folder = Folder::new("validate");
    let input = folder.file(
        "in",
        [
            line("a", 1),
            line("a b", 1),
            "{}\n".into(),
            line("c", 1_000_000_000),
            line("d", 2),
        ]
        .concat(),
    );
    let ended = run(bare().arg("validate").arg(&input));
    assert_eq!(ended.code, 1);
    let found = records(&ended.out);
    let lines: Vec<u64> = found.iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4]);
    assert_eq!(found[0]["error"]["violations"][0]["rule"], "identifier");
    assert_eq!(found[2]["conversationId"], "c");
    let good = folder.file("good", line("a", 1));
    let ended = run(bare().args(["validate", "--json"]).arg(&good));
    assert_eq!((ended.code, ended.out.as_str()), (0, ""));
    assert_eq!(records(&ended.err), [json!({ "valid": 1, "refused": 0 })]);
}

#[test]
fn a_closed_pipe_ends_quietly_or_with_its_own_status() {
    let (_, server) = plain();
    let folder = Folder::new("pipe");
    let bad: String = line("a", 1) + &"nope\n".repeat(20_000);
    let bad = folder.file("bad", bad);
    let good: String = (0..2_000).map(|n| line(&format!("c-{n}"), n)).collect();
    let good = folder.file("good", good);
    let run_closed = |command: &mut Command| {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        (child.wait().unwrap().code().unwrap(), err)
    };
    assert_eq!(run_closed(bare().arg("--help")), (0, String::new()));
    assert_eq!(
        run_closed(bare().arg("validate").arg(&bad)),
        (0, String::new())
    );
    assert_eq!(
        run_closed(program(&server).args(["get", "c-1", "--conversation"])),
        (0, String::new())
    );
    let (code, err) = run_closed(program(&server).args(["batch", "--rate", "0"]).arg(&good));
    assert_eq!(code, 4);
    assert!(err.contains("standard output"), "{err}");
}

/// The results file with its outcomes by line, the last of each.
fn results(path: &Path) -> std::collections::BTreeMap<u64, Vec<Value>> {
    let mut found = std::collections::BTreeMap::<u64, Vec<Value>>::new();
    for record in records(&std::fs::read_to_string(path).unwrap()) {
        found
            .entry(record["line"].as_u64().unwrap())
            .or_default()
            .push(record);
    }
    found
}

fn resume(server: &Server, input: &Path, file: &Path) -> Command {
    let mut command = program(server);
    command
        .args(["batch", "--rate", "0", "--resume", "--results"])
        .arg(file)
        .arg(input);
    command
}

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
    let (gate, arrived) = (Gate::new(), Gate::new());
    let (held, here) = (gate.clone(), arrived.clone());
    let server = store.serve(move |req, _| {
        if req.path.contains("held") {
            here.open();
            held.wait();
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

#[test]
fn an_early_stop_does_not_wait_for_an_input_that_gives_nothing() {
    let refusing = Server::start(|_| Resp::json(401, r#"{"error":"invalid_client"}"#));
    let mut child = program(&refusing)
        .arg("batch")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line("a", 1).as_bytes()).unwrap();
    // The pipe stays open until the program has ended.
    assert_eq!(child.wait().unwrap().code(), Some(3));
    drop(stdin);
}

#[test]
fn nobody_reading_the_messages_is_no_panic() {
    let open = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    for args in [&["frob"][..], &["batch", "/nonexistent/file"], &["check"]] {
        let status = bare().args(args).stderr(open()).status().unwrap();
        assert_eq!(status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn errors_are_json_where_that_is_asked_for() {
    let (_, server) = plain();
    let ended = run(program(&server).args(["update", "c", "--json", "--if-version", "9", "a=b"]));
    assert_eq!(ended.code, 1);
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["kind"], "conflict");
    assert_eq!(error["httpStatus"], 412);
}

#[test]
fn a_dry_run_sends_nothing_and_writes_nothing() {
    let (_, server) = plain();
    let folder = Folder::new("dry");
    let input = folder.file("in", [line("a", 1), "nope\n".into()].concat());
    let file = folder.path("results");
    let ended = run(resume(&server, &input, &file).arg("--dry-run"));
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.contains("1 updates would be sent"),
        "{}",
        ended.err
    );
    assert_eq!(records(&ended.out)[0]["line"], 2);
    assert_eq!(server.requests(), 0);
    assert!(!file.exists());
}

#[test]
fn it_stops_early_with_its_own_status() {
    let store = Store::default();
    let server = store.serve(|req, _| match req.path.contains("gone") {
        true => Some(Resp::json(404, "{}")),
        false => None,
    });
    let folder = Folder::new("stop");
    let text: String = (0..500).map(|n| line(&format!("gone-{n}"), n)).collect();
    let input = folder.file("in", text);
    let ended = run(program(&server)
        .args([
            "batch",
            "--rate",
            "0",
            "--stop-after",
            "3",
            "--workers",
            "1",
        ])
        .arg(&input));
    assert_eq!(ended.code, 3);
    assert!(ended.err.contains("--stop-after"), "{}", ended.err);
    assert!(records(&ended.out).len() < 20);

    let refusing = Server::start(|_| Resp::json(401, r#"{"error":"invalid_client"}"#));
    let ended = run(program(&refusing).arg("batch").arg(&input));
    assert_eq!(ended.code, 3);
    assert!(ended.err.contains("credentials"), "{}", ended.err);
}

#[test]
fn the_audit_file_has_both_records_of_each_update() {
    let (_, server) = plain();
    let folder = Folder::new("audit");
    let input = folder.file("in", [line("a", 1), line("b", 1)].concat());
    let audit = folder.path("audit");
    let ended = run(program(&server)
        .args(["batch", "--audit"])
        .arg(&audit)
        .arg(&input));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let found = records(&std::fs::read_to_string(&audit).unwrap());
    assert_eq!(found.len(), 4);
    assert_eq!(found.iter().filter(|r| r["phase"] == "intent").count(), 2);
}

/// Thirty kills, each when so many more requests have arrived, and a resume after each: in the
/// end the server holds exactly the right values, and every line has one success.
#[test]
fn kills_and_resumes_lose_nothing() {
    let store = Store::default();
    let requests = Arc::new(AtomicUsize::new(0));
    let limit = Arc::new(AtomicUsize::new(usize::MAX));
    let reached: Arc<std::sync::Mutex<Gate>> = Arc::default();
    let (count, most, gate) = (requests.clone(), limit.clone(), reached.clone());
    let server = store.serve(move |req, _| {
        if req.path != "/oauth/token"
            && count.fetch_add(1, Ordering::SeqCst) + 1 == most.load(Ordering::SeqCst)
        {
            gate.lock().unwrap().open();
        }
        None
    });
    let folder = Folder::new("kill");
    // More than the kills can let through, however late they come.
    let (conversations, rounds) = (40u64, 75u64);
    let text: String = (0..conversations * rounds)
        .map(|i| line(&format!("c-{}", i % conversations), i / conversations))
        .collect();
    let input = folder.file("in", text);
    let file = folder.path("results");
    for kill in 0..30usize {
        let next = Gate::new();
        *reached.lock().unwrap() = next.clone();
        // Uneven steps, so that kills fall on all kinds of moments.
        limit.store(
            requests.load(Ordering::SeqCst) + 5 + kill * 7 % 43,
            Ordering::SeqCst,
        );
        let mut child = resume(&server, &input, &file).spawn().unwrap();
        next.wait();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    limit.store(usize::MAX, Ordering::SeqCst);
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
    let requests = Arc::new(AtomicUsize::new(0));
    let limit = Arc::new(AtomicUsize::new(usize::MAX));
    let reached: Arc<std::sync::Mutex<Gate>> = Arc::default();
    let (count, most, gate) = (requests.clone(), limit.clone(), reached.clone());
    let server = store.serve(move |req, _| {
        if req.path != "/oauth/token"
            && count.fetch_add(1, Ordering::SeqCst) + 1 == most.load(Ordering::SeqCst)
        {
            gate.lock().unwrap().open();
        }
        None
    });
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
        let next = Gate::new();
        *reached.lock().unwrap() = next.clone();
        limit.store(
            requests.load(Ordering::SeqCst) + 20 + kill * 17 % 43,
            Ordering::SeqCst,
        );
        let mut running: Vec<_> = (0..4).map(|n| shard(n).spawn().unwrap()).collect();
        next.wait();
        // Each time another one is killed first.
        running.rotate_left(kill % 4);
        for child in &mut running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    limit.store(usize::MAX, Ordering::SeqCst);
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

mod files;
mod operator;
