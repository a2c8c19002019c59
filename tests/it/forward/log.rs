//! The log under the reader: rotation, torn lines, other files, writers at work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use genesys_attributes::audit::AuditFile;
use genesys_attributes::clock::{ManualClock, SystemClock};
use genesys_attributes::forward::Forwarder;
use genesys_attributes::{Cancel, ErrorKind, Update};

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
            "is gone",
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
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":{\"tier\":\"gold\"}}\n",
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

/// Rotates as logrotate does, and writes the next file.
fn rotate(folder: &Folder, text: impl AsRef<[u8]>) {
    for n in (1..5).rev() {
        let from = folder.path(&format!("audit.jsonl.{n}"));
        if from.exists() {
            std::fs::rename(from, folder.path(&format!("audit.jsonl.{}", n + 1))).unwrap();
        }
    }
    std::fs::rename(folder.log(), folder.path("audit.jsonl.1")).unwrap();
    folder.append("audit.jsonl", text);
}

/// A record of the n-th minute.
fn minute(n: u64) -> String {
    let mut record = record(n, "outcome", "applied");
    record["timestamp"] = format!("2026-01-01T00:{n:02}:00.000Z").into();
    line(&record)
}

/// A file that was restored is newer than those that came after it, and has another inode.
#[test]
fn log_restored_from_a_copy_is_read_in_its_place() {
    // The cursor's own file, and the one after it.
    for restored in ["audit.jsonl.3", "audit.jsonl.2"] {
        let (folder, taker) = (Folder::new("restored"), Taker::default());
        folder.append("audit.jsonl", minute(1));
        let _ = run(&folder.log(), &taker).unwrap();
        folder.append("audit.jsonl", minute(2));
        for n in 3..=5 {
            rotate(&folder, minute(n));
        }
        let bytes = std::fs::read(folder.path(restored)).unwrap();
        std::fs::remove_file(folder.path(restored)).unwrap();
        std::fs::write(folder.path(restored), bytes).unwrap();
        assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 4);
        assert_eq!(taker.ids(), ids(1..=5), "{restored}");
        assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
    }
}

/// The files' own times say nothing about what was read.
#[test]
fn log_whose_clock_was_set_back_loses_nothing() {
    let (folder, taker) = (Folder::new("back"), Taker::default());
    folder.append("audit.jsonl", minute(30) + &minute(31));
    let _ = run(&folder.log(), &taker).unwrap();
    rotate(&folder, minute(5));
    rotate(&folder, minute(6));
    let old = std::fs::File::options()
        .append(true)
        .open(folder.path("audit.jsonl.1"));
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
    old.unwrap().set_modified(long_ago).unwrap();
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 2);
    assert_eq!(taker.ids(), ids([30, 31, 5, 6]));
}

#[test]
fn log_that_begins_with_a_long_line_is_read_when_it_was_rotated() {
    let (folder, taker) = (Folder::new("long"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    let _ = run(&folder.log(), &taker).unwrap();
    let mut long = record(2, "outcome", "applied");
    long["attributes"] = json!({ "n": "x".repeat(200_000) });
    rotate(&folder, line(&long) + &applied(3));
    rotate(&folder, applied(4));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 3);
    assert_eq!(taker.ids(), ids(1..=4));
}

/// Copies of the log are no further parts of it, complete or not, before and after a rotation.
#[test]
fn log_copied_beside_itself_is_read_once() {
    let (folder, taker) = (Folder::new("copied"), Taker::default());
    folder.append("audit.jsonl", applied(1) + &applied(2));
    let _ = run(&folder.log(), &taker).unwrap();
    let copy = |to: &str| {
        let _ = std::fs::copy(folder.log(), folder.path(to)).unwrap();
    };
    copy("audit.jsonl.bak");
    folder.append("audit.jsonl", applied(3));
    copy("audit.jsonl.bak2");
    rotate(&folder, applied(4));
    // One that was not read yet.
    copy("audit.jsonl.bak3");
    folder.append("audit.jsonl", applied(5));
    rotate(&folder, applied(6));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 4);
    assert_eq!(taker.ids(), ids(1..=6));
}

/// What was renamed before the first run is not forwarded; what is renamed after it is, although
/// there was nothing to forward yet.
#[test]
fn log_renamed_after_an_empty_first_run_is_forwarded() {
    let (folder, taker) = (Folder::new("first"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    rotate(&folder, "");
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
    folder.append("audit.jsonl", applied(2));
    rotate(&folder, applied(3));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 2);
    assert_eq!(taker.ids(), ids(2..=3));
}

/// The first run dies before it has come far, and the log is renamed before the next one.
#[test]
fn log_renamed_after_a_first_run_that_died_is_forwarded() {
    let (folder, taker) = (Folder::new("died"), Taker::default());
    folder.append("audit.jsonl", applied(1) + &applied(2));
    taker.script([Act::Take, Act::DieBefore]);
    let killed =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&folder.log(), &taker)));
    assert!(killed.is_err());
    rotate(&folder, applied(3));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 3);
    assert_eq!(taker.ids(), ["u-1", "u-1", "u-2", "u-3"]);
}

/// The forwarder waits for the first writer, and dies; the log comes and is renamed meanwhile.
#[test]
fn log_that_came_and_was_renamed_while_it_was_waited_for_is_forwarded() {
    let (folder, taker) = (Folder::new("waited"), Taker::default());
    folder.append("audit.jsonl.9", applied(9));
    let cancel = Cancel::new();
    let clock = crate::fake::AlarmClock::new(ManualClock::new(), {
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let mut waiting = forwarder(&folder.log(), &taker).clock(clock).follow(true);
    assert_eq!(waiting.run(&cancel).unwrap().delivered, 0);
    folder.append("audit.jsonl", applied(1));
    rotate(&folder, applied(2));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 2);
    assert_eq!(taker.ids(), ids(1..=2));
}

/// The same length, the same first line, and other lines where it was read already.
#[test]
fn log_whose_lines_were_changed_is_refused() {
    let (folder, taker) = (Folder::new("changed"), Taker::default());
    folder.append("audit.jsonl", [1, 2, 3].map(applied).concat());
    let _ = run(&folder.log(), &taker).unwrap();
    let before = folder.read("audit.jsonl.cursor");
    for other in [[1, 3, 4, 5].as_slice(), &[1, 2, 7, 8]] {
        let text: String = other.iter().copied().map(applied).collect();
        std::fs::write(folder.log(), text).unwrap();
        let error = run(&folder.log(), &taker).unwrap_err();
        assert!(error.to_string().contains("lines were changed"), "{error}");
        assert_eq!(folder.read("audit.jsonl.cursor"), before);
    }
    assert_eq!(taker.ids(), ids(1..=3));
}

/// Cut and written again beyond where it was read, while the forwarder follows.
#[test]
fn log_cut_and_grown_again_is_noticed_by_a_follower() {
    let (folder, taker) = (Folder::new("regrown"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    let (log, mut ends) = (folder.log(), 0);
    let mut following = forwarder(&folder.log(), &taker)
        .follow(true)
        .on_progress(move |_| {
            ends += 1;
            if ends == 1 {
                let text: String = (2..=5).map(applied).collect();
                std::fs::write(&log, text).unwrap();
            }
        });
    let error = following.run(&Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
    assert_eq!(taker.ids(), ids([1]));
}

/// Before its outcome: what is delivered until then would be kept in the cursor.
#[test]
fn log_with_an_intent_without_values_is_refused_before_anything_moves() {
    let (folder, taker) = (Folder::new("bare"), Taker::default());
    let mut bare = record(1, "intent", "pending");
    bare.as_object_mut().unwrap().remove("attributes");
    folder.append("audit.jsonl", line(&bare) + &without_values(1));
    let error = run(&folder.log(), &taker).unwrap_err();
    assert!(error.to_string().contains("remove the cursor"), "{error}");
    assert!(!folder.path("audit.jsonl.cursor").exists());
    // As it says.
    rotate(&folder, applied(2));
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 1);
    assert_eq!(taker.ids(), ids([2]));
}

/// Updates of one conversation each, through a log of their own, by a program that ends after it.
fn write(folder: &Folder, name: &str, numbers: impl IntoIterator<Item = u64>) {
    let memory = Memory::new();
    for n in numbers {
        let log = AuditFile::open(folder.path(name)).unwrap();
        let client = memory.builder().audit(log).audit_values(true);
        let update = Update::conversation(format!("c-{name}")).set("n", n);
        let _ = client.build().unwrap().update(&update).unwrap();
    }
}

fn numbers(taker: &Taker) -> Vec<u64> {
    let bodies = taker.bodies();
    let n = |body: &Value| body["payload"]["updatedAttributes"]["n"].as_u64().unwrap();
    bodies.iter().map(n).collect()
}

/// Two logs in one folder: the name of one is the beginning of the other's.
#[test]
fn log_beside_another_one_reads_its_own_parts() {
    for (one, other) in [
        ("audit", "audit-eu"),
        ("audit.jsonl", "audit.jsonl.2"),
        ("audit", "audit-2026"),
        ("a", "ab"),
    ] {
        let (folder, taker) = (Folder::new("beside"), Taker::default());
        let (theirs, path) = (Taker::default(), folder.path(one));
        let both = || {
            run(&path, &taker).unwrap();
            run(&folder.path(other), &theirs).unwrap();
        };
        write(&folder, one, [1]);
        write(&folder, other, [101]);
        both();
        for round in 1..4u64 {
            for (name, n) in [(one, round), (other, 100 + round)] {
                let to = folder.path(&format!("{name}.{}", 10 - round));
                std::fs::rename(folder.path(name), to).unwrap();
                write(&folder, name, [n + 1]);
            }
            if round != 2 {
                both();
            }
        }
        assert_eq!(numbers(&taker), [1, 2, 3, 4], "{one} {other}");
        assert_eq!(numbers(&theirs), [101, 102, 103, 104], "{one} {other}");
    }
}

/// The same without numbers in the files, as other sinks write them.
#[test]
fn log_without_numbers_beside_another_one_reads_its_own_parts() {
    let (folder, taker) = (Folder::new("beside-bare"), Taker::default());
    folder.append("audit", applied(1));
    folder.append("audit-eu", applied(51));
    let path = folder.path("audit");
    let _ = run(&path, &taker).unwrap();
    std::fs::rename(&path, folder.path("audit.1")).unwrap();
    std::fs::rename(folder.path("audit-eu"), folder.path("audit-eu.1")).unwrap();
    folder.append("audit", applied(2));
    folder.append("audit-eu", applied(52));
    assert_eq!(run(&path, &taker).unwrap().delivered, 1);
    assert_eq!(taker.ids(), ids(1..=2));
}

/// Names, the files' times and the records' times all say something else.
#[test]
fn log_parts_are_read_in_the_order_of_writing() {
    let (folder, taker) = (Folder::new("order"), Taker::default());
    write(&folder, "audit.jsonl", [1]);
    let _ = run(&folder.log(), &taker).unwrap();
    for (n, name) in [
        (2, "b"),
        (3, "9"),
        (4, "old"),
        (5, "1"),
        (6, "0"),
        (7, "10"),
    ] {
        std::fs::rename(folder.log(), folder.path(&format!("audit.jsonl.{name}"))).unwrap();
        write(&folder, "audit.jsonl", [n]);
        // The clock is set back for every second file.
        if n % 2 == 0 {
            let text = folder
                .read("audit.jsonl")
                .replace("\"timestamp\":\"2026", "\"timestamp\":\"1996");
            std::fs::write(folder.log(), text).unwrap();
            let file = File::options().append(true).open(folder.log()).unwrap();
            let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(n);
            file.set_modified(long_ago).unwrap();
        }
    }
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 6);
    assert_eq!(numbers(&taker), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 0);
}

/// Files without numbers, as logrotate names them: the largest number is the oldest, or dates.
#[test]
fn log_parts_without_numbers_are_read_in_the_order_of_their_names() {
    for names in [
        [
            "audit.jsonl.4",
            "audit.jsonl.3",
            "audit.jsonl.2",
            "audit.jsonl.1",
        ],
        [
            "audit.jsonl-20260101",
            "audit.jsonl-20260102",
            "audit.jsonl-20260201",
            "audit.jsonl-20270101",
        ],
    ] {
        let (folder, taker) = (Folder::new("names"), Taker::default());
        folder.append("audit.jsonl", minute(50));
        let _ = run(&folder.log(), &taker).unwrap();
        // A record that was made early and written late, and a clock that was set back.
        for (n, name) in [7, 41, 3, 1].into_iter().zip(names) {
            folder.rename("audit.jsonl", name);
            folder.append("audit.jsonl", minute(n));
        }
        assert_eq!(run(&folder.log(), &taker).unwrap().delivered, 4);
        assert_eq!(taker.ids(), ids([50, 7, 41, 3, 1]), "{names:?}");
    }
}

/// A part that was moved away, compressed or cut, by a log with numbers: an error that names what
/// is missing, at every try, and nothing is delivered.
#[test]
fn log_part_that_is_missing_is_an_error_and_nothing_moves() {
    type Spoil = fn(&Folder);
    let cases: [(&str, Spoil, &str); 4] = [
        ("away", |f| f.rename("audit.jsonl.2", "elsewhere"), "part 2"),
        (
            "gz",
            |f| f.rename("audit.jsonl.2", "audit.jsonl.2.gz"),
            "part 2",
        ),
        (
            "own",
            |f| f.rename("audit.jsonl.3", "elsewhere"),
            "another file",
        ),
        (
            "cut",
            |f| f.replace("audit.jsonl", &applied(9)),
            "does not continue",
        ),
    ];
    for (name, spoil, says) in cases {
        let (folder, taker) = (Folder::new(&format!("missing-{name}")), Taker::default());
        write(&folder, "audit.jsonl", [1]);
        let _ = run(&folder.log(), &taker).unwrap();
        for n in 2..=4 {
            folder.rename("audit.jsonl", &format!("audit.jsonl.{}", 5 - n));
            write(&folder, "audit.jsonl", [n]);
        }
        spoil(&folder);
        if name == "gz" {
            std::fs::write(folder.path("audit.jsonl.2.gz"), [0x1f, 0x8b]).unwrap();
        }
        if name == "cut" {
            // What came before it is read.
            let _ = run(&folder.log(), &taker);
        }
        let (before, taken) = (folder.read("audit.jsonl.cursor"), taker.ids().len());
        for _ in 0..2 {
            let error = run(&folder.log(), &taker).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
            assert!(error.to_string().contains(says), "{name}: {error}");
        }
        assert_eq!(taker.ids().len(), taken, "{name}");
        assert_eq!(folder.read("audit.jsonl.cursor"), before, "{name}");
    }
}

/// Each part is opened a few times, not once for each other part.
#[test]
fn log_of_many_parts_is_read_in_order() {
    const PARTS: u64 = 800;
    let (folder, taker) = (Folder::new("many"), Taker::default());
    folder.append("audit.jsonl", applied(1));
    let _ = run(&folder.log(), &taker).unwrap();
    for n in 2..=PARTS {
        folder.rename("audit.jsonl", &format!("audit.jsonl.{n}"));
        folder.append("audit.jsonl", applied(n));
    }
    assert_eq!(run(&folder.log(), &taker).unwrap().delivered, PARTS - 1);
    assert_eq!(taker.ids(), ids(1..=PARTS));
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

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn swap_for_folder(&self) {
        std::fs::remove_file(self.log()).unwrap();
        std::fs::create_dir(self.log()).unwrap();
    }
}
