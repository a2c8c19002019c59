//! Journals as files: what is refused, what counts, and what a later run would do.

use super::super::item::Line;
use super::*;
use crate::store::Target;

fn file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("ga-journal-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn update(n: u64) -> Update {
    Update::conversation(format!("c-{}", n % 7)).set("n", n)
}

fn input(lines: u64) -> impl Iterator<Item = (u64, Update)> {
    (1..=lines).map(|n| (n, update(n)))
}

/// The text of a line's outcome.
fn text(line: u64, status: Status, item: Update) -> String {
    let at = std::time::SystemTime::UNIX_EPOCH;
    let target = Target::conversation(item.target().conversation_id());
    let unsent = Error::new(ErrorKind::InvalidInput, "wrong");
    let mut outcome = BatchOutcome::skipped(line, &target, "why", unsent.clone(), at);
    outcome.status = status;
    if status == Status::Failed {
        outcome.error = Some(unsent);
    }
    let mark = Line::read((line, (), item)).unwrap().mark;
    String::from_utf8(line_of(&outcome, mark).unwrap()).unwrap()
}

fn pending(path: &Path, retry: Retry, lines: u64) -> Result<Vec<u64>> {
    Ok(Journal::pending(path, retry, input(lines))?
        .map(|(line, _)| line)
        .collect())
}

#[test]
fn foreign_files_are_refused_and_left_as_they_are() {
    for content in [
        "precious",
        "{}\n",
        "{\"other\":1}",
        "{\"id\":\"a-1\",\"phase\":\"intent\"}\n",
        "{\"conversationId\":\"c\",\"attributes\":{}}\n",
        "conversationId,k\nc,1\n",
        "{\"line\":\"text\"",
        "{\"line\":1}\n",
        "{\"line\":1 ,\"status\"",
        "{\"line\":1,\"status\":\"applied\"}\n",
        "\n",
    ] {
        let path = file("foreign", content);
        let resumed = Journal::resume::<(), Update>(
            &path,
            Retry::None,
            std::iter::empty(),
            || true,
            std::time::SystemTime::UNIX_EPOCH,
        );
        assert_eq!(
            resumed.err().map(|e| e.kind()),
            Some(ErrorKind::Config),
            "{content}"
        );
        assert!(Journal::summary(&path).is_err(), "{content}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn last_outcome_of_a_line_counts_in_whatever_order_they_come() {
    let content: String = [
        (3, Status::Applied),
        (1, Status::Failed),
        (2, Status::Skipped),
        (5, Status::Unchanged),
        (2, Status::AlreadyApplied),
    ]
    .map(|(line, status)| text(line, status, update(line)))
    .concat();
    let path = file("last", content);
    let summary = Journal::summary(&path).unwrap();
    assert_eq!((summary.lines, summary.last_line), (4, 5));
    assert_eq!((summary.unfinished, summary.failed), (0, 1));
    let by_status: Vec<_> = summary
        .by_status
        .iter()
        .map(|(k, n)| (k.as_str(), *n))
        .collect();
    assert_eq!(
        by_status,
        [
            ("alreadyApplied", 1),
            ("applied", 1),
            ("failed", 1),
            ("unchanged", 1)
        ]
    );
    assert_eq!(summary.failed_by_kind["invalidInput"].lines, [1]);
    let json = serde_json::to_string(&summary).unwrap();
    assert_eq!(
        serde_json::from_str::<JournalSummary>(&json).unwrap(),
        summary
    );
    let failures = Journal::failures(&path).unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].error.as_ref().unwrap().to_string(), "wrong");
    // Line 4 has none. No other of its conversation came before.
    assert_eq!(pending(&path, Retry::None, 6).unwrap(), [4, 6]);
    assert_eq!(pending(&path, Retry::All, 6).unwrap(), [1, 4, 6]);
    assert_eq!(pending(&path, Retry::Changed, 6).unwrap(), [4, 6]);
}

#[test]
fn changed_missing_and_added_lines_are_told_by_their_numbers() {
    let content: String = (1..=20)
        .map(|line| text(line, Status::Applied, update(line)))
        .collect();
    let path = file("changed", content);
    let lines = || (1..=20).map(update).collect::<Vec<_>>();
    let told = |lines: Vec<Update>| {
        let numbered = (1..).zip(lines);
        Journal::pending(&path, true, numbered)
            .err()
            .unwrap()
            .to_string()
    };
    let mut changed = lines();
    changed[3] = update(99);
    let text = told(changed);
    assert!(
        text.contains("line 4 of the input has changed since"),
        "{text}"
    );
    assert!(
        text.contains("put it back") && !text.contains("retry"),
        "{text}"
    );
    let mut deleted = lines();
    deleted.drain(4..6);
    let text = told(deleted);
    assert!(text.contains("line 5 of the input has changed"), "{text}");
    assert!(text.contains("it is what line 7 was"), "{text}");
    let mut added = lines();
    added.insert(4, update(99));
    let text = told(added);
    assert!(text.contains("what it was is line 6 now"), "{text}");
    let text = told(lines()[..15].to_vec());
    assert!(
        text.contains("ends at line 15") && text.contains("Line 16 is missing"),
        "{text}"
    );
    // A number that the input does not have, as in another shard.
    let sparse = (1..=20).filter(|n| *n != 9).map(|n| (n, update(n)));
    let text = Journal::pending(&path, true, sparse)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("does not have line 9 any more"), "{text}");
    let twice = [(1, update(1)), (1, update(1))];
    let text = Journal::pending(&path, true, twice)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("line numbers increase"), "{text}");
}

#[test]
fn failed_lines_may_change_only_if_they_are_retried() {
    let mut content: String = (1..=4)
        .map(|line| text(line, Status::Applied, update(line)))
        .collect();
    content += &text(5, Status::Failed, update(5));
    content += &text(6, Status::Failed, update(6));
    let path = file("failed", content);
    let run = |retry: Retry, five: Update, last: u64| {
        let lines = (1..=last).map(|n| (n, if n == 5 { five.clone() } else { update(n) }));
        let pending = Journal::pending(&path, retry, lines)?;
        Ok::<Vec<u64>, Error>(pending.map(|(line, _)| line).collect())
    };
    assert_eq!(run(Retry::None, update(5), 6).unwrap(), [0; 0]);
    assert_eq!(run(Retry::All, update(5), 6).unwrap(), [5, 6]);
    assert_eq!(run(Retry::Changed, update(5), 6).unwrap(), [0; 0]);
    assert_eq!(run(Retry::Changed, update(99), 6).unwrap(), [5]);
    assert_eq!(run(Retry::All, update(99), 6).unwrap(), [5, 6]);
    let told = run(Retry::None, update(99), 6).unwrap_err().to_string();
    assert!(
        told.contains("line 5") && told.contains("--retry-failed"),
        "{told}"
    );
    // They may be taken from the end, too.
    assert_eq!(run(Retry::All, update(5), 5).unwrap(), [5]);
    let told = run(Retry::None, update(5), 5).unwrap_err().to_string();
    assert!(told.contains("Line 6 is missing"), "{told}");
}

#[test]
fn later_lines_of_a_conversation_run_again_after_one_that_does() {
    let mut content = text(1, Status::Failed, update(1));
    for line in 2..=20 {
        content += &text(line, Status::Applied, update(line));
    }
    let path = file("order", content);
    assert_eq!(pending(&path, Retry::None, 20).unwrap(), [0; 0]);
    assert_eq!(pending(&path, Retry::All, 20).unwrap(), [1, 8, 15]);
}

#[test]
fn partial_line_runs_again_once_it_is_completed() {
    struct Partial(Update);
    impl BatchItem for Partial {
        fn into_update(self) -> Result<Update> {
            Ok(self.0)
        }
        fn is_partial(&self) -> bool {
            true
        }
    }
    let whole = text(1, Status::Applied, update(1));
    let mark = Line::read((1, (), Partial(update(1)))).unwrap().mark;
    let outcome: BatchOutcome = serde_json::from_str(&whole).unwrap();
    let path = file("partial", line_of(&outcome, mark).unwrap());
    assert_eq!(pending(&path, Retry::None, 1).unwrap(), [0; 0]);
    let completed = Journal::pending(&path, Retry::None, [(1, update(8))]).unwrap();
    assert_eq!(completed.count(), 1);
}
