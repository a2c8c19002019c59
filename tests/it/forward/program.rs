//! `genesys-attributes forward`, as it is run and killed.

use std::collections::HashSet;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::server::{Resp, Server};
use crate::store::Store;
use crate::wire::Gate;

fn program(folder: &Folder, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genesys-attributes"));
    command
        .env_clear()
        .stdin(Stdio::null())
        .current_dir(&folder.0)
        .args(words);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn program_forwards_to_standard_output_once() {
    let folder = Folder::new("p-stdout");
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    let words = [
        "forward",
        "audit.jsonl",
        "--stdout",
        "--metrics",
        "metrics.prom",
    ];
    let output = program(&folder, &words).output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let out = text(&output.stdout);
    let bodies: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[1]["payload"]["updatedAttributes"]["n"], 2);
    assert!(text(&output.stderr).contains("delivered 2, repeated 0, dead 0, pending 0, lag 0.0 s"));
    let metrics = folder.read("metrics.prom");
    assert!(
        metrics.contains("genesys_attributes_forward_delivered_total 2\n"),
        "{metrics}"
    );
    let output = program(&folder, &["forward", "audit.jsonl", "--stdout", "--json"]).output();
    let output = output.unwrap();
    assert_eq!(text(&output.stdout), "");
    let report: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&report["delivered"], &report["lagSeconds"]),
        (&json!(0), &json!(0.0))
    );
}

#[test]
fn program_wrong_usage_is_status_2_and_nothing_moves() {
    let folder = Folder::new("p-usage");
    folder.append("audit.jsonl", applied(1));
    folder.append("none.jsonl", "{\"a\":1}\n");
    folder.append("bad-secret", "not base64!\n");
    folder.append("bad-cursor", "x");
    let bare = applied(1).replace("\"attributes\"", "\"other\"");
    folder.append("bare.jsonl", bare);
    for (words, says) in [
        (&["--stdout"][..], "AUDIT-FILE"),
        (&["audit.jsonl"], "--url URL or --stdout"),
        (&["audit.jsonl", "--url", "crm.example/x"], "no scheme"),
        (
            &["audit.jsonl", "--url", "http://crm.example/"],
            "in the clear",
        ),
        (
            &[
                "audit.jsonl",
                "--url",
                "http://localhost:1",
                "--secret-file",
                "bad-secret",
            ],
            "base64",
        ),
        (
            &[
                "audit.jsonl",
                "--url",
                "http://localhost:1",
                "--secret-file",
                "absent",
            ],
            "absent",
        ),
        (
            &[
                "audit.jsonl",
                "--url",
                "http://localhost:1",
                "--header",
                "A=hidden",
            ],
            "NAME=@FILE",
        ),
        (
            &["audit.jsonl", "--stdout", "--cursor", "bad-cursor"],
            "no cursor",
        ),
        (&["none.jsonl", "--stdout"], "no audit log"),
        (&["absent.jsonl", "--stdout"], "absent.jsonl"),
        (&["bare.jsonl", "--stdout"], "--audit-values"),
        (
            &["audit.jsonl", "--stdout", "--metrics", "audit.jsonl"],
            "the audit file and --metrics are the same file",
        ),
        (
            &["audit.jsonl", "--stdout", "--metrics", "audit.jsonl.dead"],
            "--dead-letters and --metrics",
        ),
        (
            &["audit.jsonl", "--stdout", "--cursor", "./audit.jsonl"],
            "the audit file and --cursor",
        ),
    ] {
        let words = [&["forward"], words].concat();
        let output = program(&folder, &words).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(code(&output), 2, "{words:?}: {err}");
        assert!(err.contains(says), "{words:?}: {err}");
        assert!(
            !err.contains("hidden") && !err.contains("not base64!"),
            "{err}"
        );
        assert_eq!(text(&output.stdout), "");
        assert!(!folder.path("audit.jsonl.cursor").exists(), "{words:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn program_that_cannot_write_is_status_2() {
    let folder = Folder::new("p-full");
    folder.append("audit.jsonl", applied(1));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = program(&folder, &["forward", "audit.jsonl", "--stdout"]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(code(&output), 2, "{err}");
    assert!(err.contains("the events cannot be written"), "{err}");
    let words = ["audit.jsonl", "--stdout", "--cursor", "absent/cursor"];
    let output = program(&folder, &[&["forward"], &words[..]].concat()).output();
    let output = output.unwrap();
    let err = text(&output.stderr);
    assert_eq!(code(&output), 2, "{err}");
    assert!(err.contains("absent/cursor"), "{err}");
}

#[test]
fn program_quiet_leaves_no_summary_but_orphans() {
    let folder = Folder::new("p-quiet");
    folder.append("audit.jsonl", applied(1));
    folder.append(
        "lines",
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":{\"a\":1}}\n",
    );
    for words in [
        &["forward", "audit.jsonl", "--stdout"][..],
        &["validate", "lines"],
        &["batch", "lines", "--dry-run"],
    ] {
        for json in [&["-q"][..], &["-q", "--json"]] {
            let output = program(&folder, &[words, json].concat()).output().unwrap();
            assert_eq!(text(&output.stderr), "", "{words:?} {json:?}");
            assert_eq!(code(&output), 0, "{words:?} {json:?}");
        }
    }
    folder.append("audit.jsonl", intent(2));
    for json in [&["-q"][..], &["-q", "--json"]] {
        let words = [&["forward", "audit.jsonl", "--stdout"], json].concat();
        let output = program(&folder, &words).output().unwrap();
        let err = text(&output.stderr);
        assert!(err.contains("u-2") && err.lines().count() == 1, "{err}");
    }
}

#[test]
fn program_orphans_and_dead_letters_are_status_1() {
    let folder = Folder::new("p-orphan");
    folder.append("audit.jsonl", [applied(1), intent(2)].concat());
    let output = program(&folder, &["forward", "audit.jsonl", "--stdout"])
        .output()
        .unwrap();
    let err = text(&output.stderr);
    assert_eq!(code(&output), 1, "{err}");
    assert!(
        err.contains("without outcome: u-2 (conversation c-2"),
        "{err}"
    );
    assert!(err.contains("pending 1"), "{err}");
    let words = ["forward", "audit.jsonl", "--stdout", "--metrics", "m"];
    assert_eq!(code(&program(&folder, &words).output().unwrap()), 1);
    let metrics = folder.read("m");
    assert!(metrics.contains("genesys_attributes_forward_orphans 1\n"));
    let receiver = Server::start(|_| Resp::empty(400));
    folder.append("audit.jsonl", applied(2));
    let url = receiver.url();
    let words = [
        "forward",
        "audit.jsonl",
        "--url",
        &url,
        "--dead-letters",
        "dead",
    ];
    let output = program(&folder, &words).output().unwrap();
    assert_eq!(code(&output), 1, "{}", text(&output.stderr));
    assert!(folder.read("dead").contains("\"status\":400"));
}

/// Cron starts the next one while the last one is at work.
#[test]
fn program_that_finds_another_one_at_work_ends_quietly() {
    let folder = Folder::new("p-cron");
    folder.append("audit.jsonl", applied(1));
    let words = ["forward", "audit.jsonl", "--stdout"];
    let _ = program(&folder, &words).output().unwrap();
    folder.append("audit.jsonl", applied(2));
    let other = File::open(folder.path("audit.jsonl.cursor.lock")).unwrap();
    other.lock().unwrap();
    let output = program(&folder, &words).output().unwrap();
    assert_eq!((code(&output), text(&output.stderr)), (8, String::new()));
    assert_eq!(text(&output.stdout), "");
    other.unlock().unwrap();
    let output = program(&folder, &words).output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
}

#[test]
fn program_stops_when_the_receiver_takes_nothing_for_too_long() {
    let folder = Folder::new("p-outage");
    folder.append("audit.jsonl", applied(1));
    for status in [401, 403, 404, 405, 410, 503] {
        let receiver = Server::start(move |_| Resp::empty(status));
        let url = receiver.url();
        let words = [
            "forward",
            "audit.jsonl",
            "--url",
            &url,
            "--max-outage",
            "0",
            "--json",
        ];
        let output = program(&folder, &words).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(code(&output), 9, "{err}");
        assert!(
            err.contains("\"gaveUp\":true") && err.contains(&status.to_string()),
            "{err}"
        );
        assert!(!folder.path("audit.jsonl.dead").exists());
    }
    let output = program(&folder, &["forward", "audit.jsonl", "--stdout"]).output();
    assert_eq!(text(&output.unwrap().stdout).lines().count(), 1);
}

/// The address may hold a token: it comes from a file or the settings, and shows nowhere.
#[test]
fn program_takes_the_url_from_a_file_or_the_settings() {
    let folder = Folder::new("p-url");
    let receiver = Server::start(|_| Resp::empty(204));
    let url = receiver.url() + "/hook?key=url-5ecret";
    let settings = |webhook: Value| json!({ "webhook": webhook, "region": "eu-west-1" });
    folder.append("url", url.clone() + "\n");
    folder.append(
        "settings",
        settings(json!({ "url": url, "proxy": false })).to_string(),
    );
    folder.append(
        "proxy",
        settings(json!({ "url": "http://crm.invalid/", "timeouts": { "connectSeconds": 1 } }))
            .to_string(),
    );
    folder.append(
        "wrong",
        settings(json!({ "url": url, "bodySeconds": 1 })).to_string(),
    );
    folder.append(
        "roots",
        settings(json!({ "rootCertificatesFile": "absent" })).to_string(),
    );
    for (n, (words, status, says)) in [
        (&["--url-file", "url"][..], 0, "delivered 1"),
        (&["--settings", "settings"], 0, "delivered 1"),
        (
            &["--settings", "proxy", "--url-file", "url"],
            0,
            "delivered 1",
        ),
        (&["--settings", "wrong"], 2, "webhook.bodySeconds"),
        (&["--settings", "roots", "--url-file", "url"], 2, "absent"),
        (&["--settings", "proxy"], 2, "in the clear"),
        (&["--url-file", "nothing"], 2, "nothing"),
    ]
    .into_iter()
    .enumerate()
    {
        folder.append("audit.jsonl", applied(n as u64));
        let words = [&["forward", "audit.jsonl"], words].concat();
        let output = program(&folder, &words).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(code(&output), status, "{words:?}: {err}");
        assert!(err.contains(says), "{words:?}: {err}");
        assert!(!err.contains("url-5ecret"), "{err}");
    }
}

#[test]
#[cfg(unix)]
fn program_warns_of_files_with_secrets_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("p-readers");
    let receiver = Server::start(|_| Resp::empty(204));
    folder.append("url", receiver.url());
    folder.append("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    folder.append("value", "Bearer t0ken");
    let words = [
        "forward",
        "audit.jsonl",
        "--url-file",
        "url",
        "--secret-file",
        "secret",
    ];
    let words = [&words[..], &["--header", "Authorization=@value"]].concat();
    for (mode, count) in [(0o644, 3), (0o640, 3), (0o600, 0)] {
        for name in ["url", "secret", "value"] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path(name), mode).unwrap();
        }
        folder.append("audit.jsonl", applied(1));
        let output = program(&folder, &words).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(code(&output), 0, "{err}");
        assert_eq!(err.matches("chmod 600").count(), count, "{err}");
    }
}

/// The settings name the log that is followed: the client that only reads neither writes nor locks it.
#[test]
fn program_that_settles_by_settings_opens_no_audit_file() {
    let (folder, store) = (Folder::new("p-sink"), Store::default());
    let platform = store.serve(|_, _| None);
    let settings = json!({
        "region": "eu-west-1", "clientId": "id", "clientSecret": "s", "baseUrl": platform.url(),
        "audit": { "file": "audit.jsonl", "values": true },
    });
    folder.append("settings", settings.to_string());
    folder.append("audit.jsonl", applied(1) + &intent(2));
    let words = [
        "forward",
        "audit.jsonl",
        "--stdout",
        "--settle",
        "--settings",
        "settings",
    ];
    let output = program(&folder, &words).output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(code(&output), 0, "{err}");
    assert!(
        err.contains("settled 1") && err.contains("pending 0"),
        "{err}"
    );
    assert_eq!(folder.read("audit.jsonl").lines().count(), 3);
    assert!(!folder.read("audit.jsonl").contains("opened"));
}

#[test]
#[cfg(unix)]
fn program_follow_ends_cleanly_on_sigterm() {
    let folder = Folder::new("p-term");
    folder.append("audit.jsonl", applied(1));
    let arrived = Gate::new();
    let open = arrived.clone();
    let receiver = Server::start(move |_| {
        open.open();
        Resp::empty(204)
    });
    let url = receiver.url();
    let mut command = program(
        &folder,
        &["forward", "audit.jsonl", "--url", &url, "--follow"],
    );
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    arrived.wait();
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("delivered 1,"),
        "{}",
        text(&output.stderr)
    );
    let output = program(&folder, &["forward", "audit.jsonl", "--stdout"])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "");
}

/// What was there is not delivered: that is no success.
#[test]
#[cfg(unix)]
fn program_stopped_without_follow_says_so() {
    let folder = Folder::new("p-stop");
    folder.append("audit.jsonl", applied(1));
    for (name, status) in [("-TERM", 143), ("-INT", 130)] {
        let tried = Gate::new();
        let open = tried.clone();
        let receiver = Server::start(move |_| {
            open.open();
            Resp::empty(503)
        });
        let url = receiver.url();
        let mut command = program(
            &folder,
            &["forward", "audit.jsonl", "--url", &url, "--metrics", "m"],
        );
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        tried.wait();
        let id = child.id().to_string();
        let kill = Command::new("kill").args([name, &id]).status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(code(&output), status, "{err}");
        assert!(err.contains("delivered 0,"), "{err}");
        assert!(!folder.read("m").is_empty());
    }
}

/// Kills of `batch`, which is started again at once, and of `forward --follow`, at all kinds of
/// moments, while the log is rotated and the receiver fails in a third of the cases: every write
/// that the server applied arrives, no other values do, and in order for each conversation but for
/// the settled ones.
///
/// Each line sets a key of its own, so that a write can be found in place whatever came after it.
#[test]
#[cfg(unix)]
fn program_kills_of_writer_and_forwarder_lose_nothing() {
    const CONVERSATIONS: u64 = 6;
    let (lines, kills) = if crate::fake::full() {
        (300, 20)
    } else {
        (90, 3)
    };
    let (folder, store) = (Folder::new("p-kills"), Store::default());
    let (limit, gate): (Arc<AtomicUsize>, Arc<Mutex<Gate>>) = Default::default();
    limit.store(usize::MAX, Ordering::SeqCst);
    let (count, most, opened) = (Arc::new(AtomicUsize::new(0)), limit.clone(), gate.clone());
    let requests = count.clone();
    let platform = store.serve(move |req, _| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        if req.path != "/oauth/token" && n >= most.load(Ordering::SeqCst) {
            most.store(usize::MAX, Ordering::SeqCst);
            lock(&opened).open();
        }
        None
    });
    let arrived: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let (theirs, seen) = (arrived.clone(), AtomicUsize::new(0));
    let receiver = Server::start(move |req| {
        let take = || {
            let id = req.header("webhook-id").unwrap().to_owned();
            lock(&theirs).push((id, req.json()["payload"].clone()));
        };
        match seen.fetch_add(1, Ordering::SeqCst) % 9 {
            2 => Resp::empty(503),
            5 => Resp::reset(),
            8 => {
                take();
                Resp::reset()
            }
            _ => {
                take();
                Resp::empty(200)
            }
        }
    });
    let input: String = (0..lines)
        .map(|n| {
            let id = format!("c-{}", n % CONVERSATIONS);
            let key = format!("k{:03}", n / CONVERSATIONS);
            line(&json!({ "conversationId": id, "target": "conversation", "attributes": { key: n } }))
        })
        .collect();
    folder.append("in", input);
    let with_platform = |words: &[&str]| {
        let mut command = program(&folder, words);
        command
            .env("GENESYS_CLOUD_BASE_URL", platform.url())
            .env("GENESYS_CLOUD_CLIENT_ID", "id")
            .env("GENESYS_CLOUD_CLIENT_SECRET", "s")
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    let batch = [
        "batch",
        "in",
        "--results",
        "out",
        "--resume",
        "--audit",
        "audit.jsonl",
        "--audit-values",
        "--rate",
        "0",
    ];
    let url = receiver.url();
    let forward = [
        "forward",
        "audit.jsonl",
        "--url",
        &url,
        "--settle",
        "--rate",
        "0",
        "--follow",
    ];
    let mut forwarder = with_platform(&forward).spawn().unwrap();
    for kill in 0..kills {
        let next = Gate::new();
        *lock(&gate) = next.clone();
        // Counted from here: the forwarder reads there as well.
        limit.store(
            requests.load(Ordering::SeqCst) + 12 + kill * 3,
            Ordering::SeqCst,
        );
        let mut writer = with_platform(&batch).spawn().unwrap();
        next.wait();
        writer.kill().unwrap();
        writer.wait().unwrap();
        if kill % 2 == 0 {
            let to = folder.path(&format!("audit.jsonl-{kill:02}"));
            std::fs::rename(folder.log(), to).unwrap();
        }
        // The forwarder dies somewhere on its way, and may be waiting for the age of an orphan.
        let before = lock(&arrived).len();
        let begun = std::time::Instant::now();
        while lock(&arrived).len() < before + 2 + kill && begun.elapsed() < crate::fake::ms(200) {
            std::thread::yield_now();
        }
        forwarder.kill().unwrap();
        forwarder.wait().unwrap();
        forwarder = with_platform(&forward).spawn().unwrap();
    }
    limit.store(usize::MAX, Ordering::SeqCst);
    assert!(with_platform(&batch).status().unwrap().success());
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
    // To its end: the last batch left no orphan behind.
    let output = with_platform(&forward[..7])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let status = output.status;
    assert!(status.success(), "{status}: {}", text(&output.stderr));

    let arrived = lock(&arrived).clone();
    let mut written = 0;
    for c in 0..CONVERSATIONS {
        let id = format!("c-{c}");
        let applied: Vec<Value> = store.with(&id, |c| {
            let writes = c.writes.iter();
            writes.map(|write| Value::Object(write.clone())).collect()
        });
        written += applied.len();
        let mut ids = HashSet::new();
        let first: Vec<Value> = arrived
            .iter()
            .filter(|(_, payload)| payload["conversationId"] == id)
            .filter(|(event, _)| ids.insert(event.clone()))
            .map(|(_, payload)| payload["updatedAttributes"].clone())
            .collect();
        // An event for each write, and no values that were not written. Of two writes on one version
        // whose processes died, either may be the one that was applied: both may have an event.
        let count = |all: &[Value], value| all.iter().filter(|other| *other == value).count();
        for value in &applied {
            assert!(
                count(&first, value) >= count(&applied, value),
                "{id}: {value}"
            );
        }
        assert!(first.iter().all(|value| applied.contains(value)), "{id}");
        // What is told last of each value is told in the order of the writes, but for the settled.
        let is_settled = |value: &Value| {
            let of_value = |(_, payload): &&(String, Value)| payload["updatedAttributes"] == *value;
            arrived
                .iter()
                .filter(of_value)
                .any(|(_, payload)| payload["settled"] == true)
        };
        let last = |all: &[Value]| {
            let behind = |(at, value): &(usize, &Value)| {
                !all[at + 1..].contains(value) && !is_settled(value)
            };
            let last = all.iter().enumerate().filter(behind);
            Vec::from_iter(last.map(|(_, value)| value.clone()))
        };
        assert_eq!(last(&first), last(&applied), "{id}");
    }
    assert!(written as u64 >= lines);
}
