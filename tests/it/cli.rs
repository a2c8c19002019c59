//! The program, as a user drives it.

use crate::server::{Resp, Server};
use crate::store::Store;
use crate::wire::Gate;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    format!(
        "{{\"conversationId\":\"{id}\",\"target\":\"conversation\",\"attributes\":{{\"n\":{n}}}}}\n"
    )
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
        &["batch", "-h", "--frob"],
    ] {
        let help = run(bare().args(args)).out;
        for text in ["--resume", "--max-outage", "--shard", "Exit status: 0 done"] {
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
        (&["update"], "CONVERSATION"),
        (&["update", "c", "k=v"], "no target is given"),
        (&["get", "c"], "no target is given"),
        (
            &["update", "c", "--secure", "novalue"],
            "neither KEY=TEXT nor KEY:=JSON",
        ),
        (&["update", "c", "--secure", "k:=nope"], "not JSON"),
        (
            &["update", "c", "--secure", "k=1", "k:=2"],
            "more than once",
        ),
        (
            &["update", "c", "k=v", "--secure", "--custom", "r"],
            "--secure does not go with --custom",
        ),
        (
            &["update", "c", "k=v", "--results", "x"],
            "does not go with update",
        ),
        (&["get", "c", "d"], "too many words"),
        (&["check", "x"], "too many words"),
        (&["batch", "a", "b"], "too many words"),
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
        &["update", "c", "k=v", "--conversation"],
        &["get", "c", "--conversation"],
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
    let ended = run(program(&server).args([
        "update",
        "c-1",
        "--conversation",
        "tier=gold=x",
        "score:=85",
        "on:=true",
    ]));
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
    let ended = run(program(&server).args(["get", "c-1", "--conversation"]));
    let snapshot: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(snapshot["version"], "1");
    assert_eq!(snapshot["attributes"]["score"], 85);

    let ended = run(program(&server).args([
        "update",
        "c-1",
        "--conversation",
        "--json",
        "--if-version",
        "0",
        "a=b",
    ]));
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("412"), "{}", ended.err);
    let ended = run(program(&server).args([
        "update",
        "c-1",
        "--conversation",
        "--json",
        "--if-version",
        "1",
        "a=b",
    ]));
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
    let ended = run(bare().args(["update", "c 1", "--conversation", "k:=1.5", "=x"]));
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
        .args([
            "update",
            "c",
            "--conversation",
            "k=cli-value-9X",
            "-v",
            "--credentials",
        ])
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

/// Holds the answer of a request: the first gate tells that it is here, the second lets it go on.
fn held() -> (Gate, Gate, impl Fn() + Send + Sync + 'static) {
    let (gate, arrived) = (Gate::new(), Gate::new());
    let (held, here) = (gate.clone(), arrived.clone());
    let hold = move || {
        here.open();
        held.wait();
    };
    (arrived, gate, hold)
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
    let ended = run(program(&server).args([
        "update",
        "c",
        "--conversation",
        "--json",
        "--if-version",
        "9",
        "a=b",
    ]));
    assert_eq!(ended.code, 1);
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["kind"], "conflict");
    assert_eq!(error["httpStatus"], 412);
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

mod batch;
mod files;
mod guards;
mod input;
mod operator;
mod resume;
