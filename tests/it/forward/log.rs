//! The log under the reader: rotation, torn lines, other files, writers at work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use genesys_attributes::audit::AuditFile;
use genesys_attributes::forward::Forwarder;
use genesys_attributes::{Cancel, ErrorKind, SystemClock, Update};

use super::*;
use crate::fake::PATIENCE;
use crate::memory::Memory;

#[test]
fn log_torn_at_its_end_is_waited_for() {
    let (folder, taker) = (Folder::new("torn-end"), Taker::default());
    let second = applied(2);
    let (head, tail) = second.split_at(40);
    folder.append("audit.jsonl", applied(1) + head);
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!((report.delivered, report.torn), (1, 0));
    folder.append("audit.jsonl", tail);
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 1);
    assert_eq!(taker.ids(), ids(1..=2));
}

#[test]
fn log_torn_in_the_middle_is_skipped_and_counted() {
    let (folder, taker) = (Folder::new("torn-middle"), Taker::default());
    let torn = &applied(2)[..40];
    folder.append(
        "audit.jsonl",
        [&applied(1), torn, "\n", &applied(3)].concat(),
    );
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!((report.delivered, report.torn), (2, 1));
    assert_eq!(taker.ids(), ids([1, 3]));
}

/// A process died in the middle of a line; the next one's first record is whole all the same.
#[test]
fn log_torn_by_a_crash_does_not_swallow_the_next_record() {
    let (folder, taker) = (Folder::new("torn-next"), Taker::default());
    folder.append("audit.jsonl", &applied(1)[..50]);
    let memory = Memory::new();
    let client = memory
        .builder()
        .audit(AuditFile::open(folder.log()).unwrap())
        .audit_values(true)
        .build()
        .unwrap();
    let _ = client
        .update(&Update::conversation("c-9").set("n", 1))
        .unwrap();
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!((report.delivered, report.torn, report.pending), (1, 1, 0));
}

#[test]
fn log_rotated_while_the_forwarder_is_down_is_read_in_order() {
    let (folder, taker) = (Folder::new("rotated"), Taker::default());
    folder.append("audit.jsonl", [applied(1), applied(2)].concat());
    let _ = run(&folder.log(), &taker).unwrap();
    folder.append("audit.jsonl", [applied(3), intent(4)].concat());
    std::fs::rename(folder.log(), folder.path("audit.jsonl.1")).unwrap();
    folder.append("audit.jsonl", [applied(4), applied(5)].concat());
    // And once more.
    for (from, to) in [
        ("audit.jsonl.1", "audit.jsonl.2"),
        ("audit.jsonl", "audit.jsonl.1"),
    ] {
        std::fs::rename(folder.path(from), folder.path(to)).unwrap();
    }
    // Between renaming and the first record there is no file of the name.
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!((report.delivered, report.pending), (3, 0));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
    folder.append("audit.jsonl", applied(6));
    let report = run(&folder.log(), &taker).unwrap();
    assert_eq!((report.delivered, report.pending), (1, 0));
    assert_eq!(taker.ids(), ids(1..=6));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
}

#[test]
fn log_compressed_before_it_was_read_is_an_error() {
    let (folder, taker) = (Folder::new("gz"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    let _ = run(&folder.log(), &taker).unwrap();
    std::fs::rename(folder.log(), folder.path("audit.jsonl.2")).unwrap();
    let old = std::fs::File::options()
        .append(true)
        .open(folder.path("audit.jsonl.2"));
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
    old.unwrap().set_modified(long_ago).unwrap();
    folder.append("audit.jsonl.1.gz", [0x1f, 0x8b]);
    folder.append("audit.jsonl", applied(3));
    let error = run(&folder.log(), &taker).unwrap_err();
    assert!(error.to_string().contains("decompress"), "{error}");
    assert_eq!(taker.ids(), ids([1]));
}

#[test]
fn log_that_is_wrong_is_refused_and_nothing_moves() {
    type Spoil = fn(&Folder);
    let cases: [(&str, Spoil, &str); 8] = [
        (
            "cut",
            |f| f.replace("audit.jsonl", &applied(1)),
            "truncated",
        ),
        ("emptied", |f| f.replace("audit.jsonl", ""), "truncated"),
        (
            "other",
            |f| f.swap(&[applied(7), applied(8), applied(9)].concat()),
            "another file",
        ),
        (
            "rewritten",
            |f| f.replace("audit.jsonl", &applied(8).repeat(9)),
            "truncated",
        ),
        (
            "cursor",
            |f| f.replace("audit.jsonl.cursor", "{\"a\":1}"),
            "no cursor",
        ),
        (
            "values",
            |f| f.append("audit.jsonl", without_values(3)),
            "--audit-values",
        ),
        (
            "gone",
            |f| std::fs::remove_file(f.log()).unwrap(),
            "cannot be opened",
        ),
        ("folder", |f| f.swap_for_folder(), "cannot be opened"),
    ];
    for (name, spoil, says) in cases {
        let (folder, taker) = (Folder::new(&format!("wrong-{name}")), Taker::default());
        folder.append("audit.jsonl", [applied(1), applied(2)].concat());
        let _ = run(&folder.log(), &taker).unwrap();
        spoil(&folder);
        let before = folder.read("audit.jsonl.cursor");
        let error = run(&folder.log(), &taker).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert_eq!(folder.read("audit.jsonl.cursor"), before, "{name}");
        assert_eq!(taker.ids(), ids(1..=2), "{name}");
    }
}

#[test]
fn log_that_is_none_is_refused() {
    for text in [
        "conversationId,tier\nc-1,gold\n",
        "{\"conversationId\":\"c-1\",\"attributes\":{\"tier\":\"gold\"}}\n",
        "\u{7f}ELF",
    ] {
        let (folder, taker) = (Folder::new("none"), Taker::default());
        folder.append("audit.jsonl", text);
        let error = run(&folder.log(), &taker).unwrap_err();
        assert!(
            error.to_string().contains("no audit log"),
            "{text:?}: {error}"
        );
        assert!(!folder.path("audit.jsonl.cursor").exists());
    }
}

#[test]
fn log_without_any_values_delivers_nothing() {
    let (folder, taker) = (Folder::new("values"), Taker::default());
    folder.append("audit.jsonl", without_values(1) + &applied(2));
    let error = run(&folder.log(), &taker).unwrap_err();
    assert!(error.to_string().contains("--audit-values"), "{error}");
    assert_eq!(taker.ids(), ids([]));
    assert!(!folder.path("audit.jsonl.cursor").exists());
}

/// Four threads update while the file is rotated again and again and a forwarder follows.
#[test]
#[cfg(unix)]
fn log_rotated_under_writers_and_a_follower_loses_nothing() {
    let (folder, taker) = (Folder::new("busy"), Taker::default());
    let memory = Memory::new();
    let client = memory
        .builder()
        .clock(SystemClock)
        .audit(AuditFile::open(folder.log()).unwrap())
        .audit_values(true)
        .build()
        .unwrap();
    let cancel = Cancel::new();
    let until = cancel.clone();
    let mut following = Forwarder::new(folder.log(), taker.clone()).follow(true);
    let following = std::thread::spawn(move || following.run(&until).unwrap());
    let (done, rotations) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|t| {
                let client = client.clone();
                scope.spawn(move || {
                    for n in 0..600u64 {
                        let update = Update::conversation(format!("c-{t}")).set("n", n);
                        let _ = client.update(&update).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            // Each rotated file is looked at: more of them take more time, and show nothing new.
            for n in 0..200 {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                // As logrotate does, with names that end in the date, and far enough apart for
                // the times of the files to tell their order.
                let to = folder.path(&format!("audit.jsonl-{n:06}"));
                let begun = std::time::Instant::now();
                while begun.elapsed() < crate::fake::ms(12) {
                    std::thread::yield_now();
                }
                if folder.log().exists() {
                    let _ = std::fs::rename(folder.log(), to);
                    rotations.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    // The last one makes sure that there is a file of the name.
    let _ = client
        .update(&Update::conversation("end").set("n", 1))
        .unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let is_last = |body: &Value| body["payload"]["conversationId"] == "end";
    while !taker.bodies().iter().any(is_last) {
        assert!(
            std::time::Instant::now() < deadline,
            "the last event did not arrive"
        );
        std::thread::yield_now();
    }
    cancel.cancel();
    let report = following.join().unwrap();
    assert!(rotations.load(Ordering::Relaxed) >= 3);
    assert_eq!((report.torn, report.pending), (0, 0));
    for t in 0..4 {
        let mut of_one: Vec<Value> = taker
            .bodies()
            .into_iter()
            .map(|body| body["payload"].clone())
            .filter(|payload| payload["conversationId"] == format!("c-{t}"))
            .map(|payload| payload["updatedAttributes"]["n"].clone())
            .collect();
        of_one.dedup();
        let expected: Vec<Value> = (0..600u64).map(Value::from).collect();
        assert_eq!(of_one, expected);
    }
}

fn without_values(n: u64) -> String {
    let mut bare = record(n, "outcome", "applied");
    bare.as_object_mut().unwrap().remove("attributes");
    line(&bare)
}

impl Folder {
    /// Other content in the same file.
    fn replace(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Another file of the same name.
    fn swap(&self, text: &str) {
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.log()).unwrap();
    }

    fn swap_for_folder(&self) {
        std::fs::remove_file(self.log()).unwrap();
        std::fs::create_dir(self.log()).unwrap();
    }
}
