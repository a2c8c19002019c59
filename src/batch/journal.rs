//! The journal of a batch: one outcome a line, and what a later run does because of it.
//!
//! Each outcome has the digest of the update that it came from. A later run first compares the
//! input with the journal, and refuses an input whose lines have changed before anything is sent.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use log::warn;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Status;
use crate::update::Update;
use crate::util::process::Process;

use super::item::{BatchItem, Mark};
use super::past::{Checked, Lines, Past, Recorded, Retry};
use super::report::BatchOutcome;

/// How each line of a journal begins.
const START: &[u8] = b"{\"line\":";

/// The file in which a batch keeps its outcomes; see [`Batch::journal`](super::Batch::journal).
///
/// Each line of it is a [`BatchOutcome`] as JSON, with the fields `digest` and `final` beside. The
/// last one of a line counts. These functions only read, at any time, also while a batch writes.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Holds the lock until the journal is dropped.
    lock: File,
    path: PathBuf,
    length: u64,
    appended: bool,
    broken: bool,
    process: Process,
}

/// What a journal holds: the last outcomes of all lines, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct JournalSummary {
    /// How many lines have an outcome.
    pub lines: u64,
    /// The largest number of a line that has one.
    pub last_line: u64,
    /// How many lines ended with each status.
    pub by_status: BTreeMap<String, u64>,
    /// The lines that failed, by the kind of their error.
    pub failed_by_kind: BTreeMap<String, FailedLines>,
    /// How many lines failed in a way that may pass or were skipped: a later run runs them again.
    pub unfinished: u64,
    /// How many lines failed for good.
    pub failed: u64,
}

/// The lines that failed with one kind of error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FailedLines {
    /// How many.
    pub count: u64,
    /// How many of them failed in a way that may pass.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub may_pass: u64,
    /// The first five of them, by their numbers.
    pub lines: Vec<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn problem(path: &Path, what: impl Display) -> Error {
    let shown = path.display();
    Error::new(ErrorKind::Config, format!("the journal {shown} {what}"))
}

impl Journal {
    /// Counts the outcomes in a journal.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the file cannot be read or is no journal.
    pub fn summary(path: impl AsRef<Path>) -> Result<JournalSummary> {
        let path = path.as_ref();
        let mut past = Past::default();
        each_outcome(&open(path)?, path, |record, _| past.take(&record))?;
        let mut summary = JournalSummary {
            lines: past.0.len() as u64,
            last_line: past.last(),
            ..JournalSummary::default()
        };
        for entry in past.0 {
            summary.unfinished += u64::from(!entry.is_final());
            summary.failed += u64::from(entry.has_failed());
            if let Some(status) = entry.status() {
                *summary.by_status.entry(status.name().into()).or_default() += 1;
            }
            if let Some(kind) = entry.kind() {
                let kinds = &mut summary.failed_by_kind;
                let failed = kinds.entry(kind.name().into()).or_default();
                failed.count += 1;
                failed.may_pass += u64::from(!entry.is_final());
                if failed.lines.len() < 5 {
                    failed.lines.push(entry.line());
                }
            }
        }
        Ok(summary)
    }

    /// The last outcomes of the lines that failed or were skipped, by their numbers.
    ///
    /// # Errors
    ///
    /// As [`Journal::summary`].
    pub fn failures(path: impl AsRef<Path>) -> Result<Vec<BatchOutcome>> {
        let path = path.as_ref();
        let mut failures = BTreeMap::new();
        each_outcome(&open(path)?, path, |record, text| {
            failures.remove(&record.line);
            if matches!(record.status, Status::Failed | Status::Skipped) {
                let outcome = serde_json::from_slice(text).map_err(|_| NO_OUTCOME)?;
                failures.insert(record.line, outcome);
            }
            Ok(())
        })?;
        Ok(failures.into_values().collect())
    }

    /// The lines of an input that a run with this journal would run, in order. Nothing is written.
    /// A journal that does not exist yet is an empty one.
    ///
    /// # Errors
    ///
    /// As a run: [`ErrorKind::Config`] if the file is no journal, [`ErrorKind::InvalidInput`] if
    /// the input does not fit it.
    pub fn pending<I, U>(
        path: impl AsRef<Path>,
        retry: impl Into<Retry>,
        input: I,
    ) -> Result<impl Iterator<Item = (u64, Result<Update>)>>
    where
        I: IntoIterator<Item = (u64, U)>,
        U: BatchItem,
    {
        let path = path.as_ref();
        let mut past = Past::default();
        if path.exists() {
            each_outcome(&open(path)?, path, |record, _| past.take(&record))?;
        }
        let input = input.into_iter().map(|(line, item)| (line, (), item));
        let mut lines = Lines::new(input, || true);
        let checked = past.check(&mut lines, retry.into(), path)?;
        let rest = std::iter::from_fn(move || lines.next());
        let all = checked.lines.read()?.chain(rest.map(Ok));
        Ok(all.map(|line| match line {
            Ok(line) => (line.number, line.update),
            Err(error) => (0, Err(error)),
        }))
    }

    /// Opens a journal for a run: locks it, compares the input with it, and cuts a torn end off.
    pub(super) fn resume<T, U: BatchItem>(
        path: &Path,
        retry: Retry,
        input: impl Iterator<Item = (u64, T, U)>,
        wait: impl FnMut() -> bool,
        now: SystemTime,
    ) -> Result<(Journal, Checked<T>)> {
        if std::fs::metadata(path).is_ok_and(|data| !data.is_file()) {
            return Err(problem(path, "is not a regular file"));
        }
        // A link and its file have one lock.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let lock = locked(&path)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| problem(&path, format_args!("cannot be opened: {e}")))?;
        let mut past = Past::default();
        let length = each_outcome(&file, &path, |record, _| past.take(&record))?;
        let checked = past.check(&mut Lines::new(input, wait), retry, &path)?;
        file.set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .map_err(|e| problem(&path, format_args!("cannot be written: {e}")))?;
        let mut journal = Journal {
            file,
            lock,
            path,
            length,
            appended: false,
            broken: false,
            process: Process::current(),
        };
        // Written before anything is sent, so that no crash leaves an older value in place.
        for entry in past.reopened() {
            let reason = "it runs again after an earlier line of its conversation";
            let unsent = Error::new(ErrorKind::Cancelled, reason);
            let outcome = BatchOutcome::unreadable(entry.line(), unsent, now).skip(reason);
            journal.append(&outcome, entry.mark())?;
        }
        Ok((journal, checked))
    }

    /// Appends one outcome, in one write.
    pub(super) fn append(&mut self, outcome: &BatchOutcome, mark: Mark) -> Result<()> {
        if self.broken {
            return Err(problem(&self.path, "cannot be written"));
        }
        if !self.process.is_current() {
            let what = "was opened before a fork: run a batch in the process that made it";
            return Err(problem(&self.path, what));
        }
        let written = line_of(outcome, mark).and_then(|line| {
            self.file.write_all(&line)?;
            self.length += line.len() as u64;
            self.appended = true;
            Ok(())
        });
        written.map_err(|error| {
            // Half an outcome may be there, and nothing may follow it.
            self.broken = true;
            let _ = self.file.set_len(self.length);
            problem(
                &self.path,
                format_args!("cannot be written: {error}; make room, and run the same batch again"),
            )
        })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The lock is the parent's.
            return;
        }
        if self.appended
            && let Err(error) = self.file.sync_data()
        {
            let path = self.path.display();
            warn!("the journal {path} may not survive a loss of power: {error}");
        }
        // A forked child would hold the lock on.
        let _ = self.lock.unlock();
    }
}

/// An outcome as one line of text.
fn line_of(outcome: &BatchOutcome, mark: Mark) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(outcome)?;
    // The last byte closes the object.
    line.pop();
    let (digest, is_final) = (mark.digest, outcome.is_final());
    write!(line, ",\"digest\":\"{digest:016x}\",\"final\":{is_final}")?;
    if mark.is_partial {
        line.extend_from_slice(b",\"partial\":true");
    }
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// Takes the lock of a journal, which is a file beside it, so that readers are never in the way.
fn locked(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .map_err(|e| problem(path, format_args!("cannot be locked: {e}")))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(problem(
            path,
            "is in use by another process or batch: wait for it to end",
        )),
        Err(TryLockError::Error(e)) => Err(problem(path, format_args!("cannot be locked: {e}"))),
    }
}

fn open(path: &Path) -> Result<File> {
    let file =
        File::open(path).map_err(|e| problem(path, format_args!("cannot be opened: {e}")))?;
    if file.metadata().is_ok_and(|data| data.is_file()) {
        return Ok(file);
    }
    Err(problem(path, "is not a regular file"))
}

const NO_OUTCOME: &str = "it is no outcome of a batch";

/// Hands over each whole outcome. Gives their length in bytes: beyond it is the beginning of one.
fn each_outcome(
    file: &File,
    path: &Path,
    mut each: impl FnMut(Recorded<'_>, &[u8]) -> std::result::Result<(), &'static str>,
) -> Result<u64> {
    let unreadable = |e| problem(path, format_args!("cannot be read: {e}"));
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut text = Vec::new();
    let (mut number, mut whole) = (0u64, 0u64);
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).map_err(unreadable)?;
        // Each outcome is one write: only the last one can be torn.
        let torn = text.last() != Some(&b'\n');
        if number == 0 && !begins_an_outcome(&text) {
            return Err(problem(
                path,
                "does not hold the outcomes of a batch: give another file for the journal",
            ));
        }
        if torn {
            return Ok(whole);
        }
        number += 1;
        whole += read as u64;
        serde_json::from_slice(&text)
            .map_err(|_| NO_OUTCOME)
            .and_then(|record| each(record, &text))
            .map_err(|what| {
                problem(
                    path,
                    format_args!("cannot be used: in its line {number}, {what}"),
                )
            })?;
    }
}

/// Whether a text is the beginning of an outcome, or of its first bytes. A file that begins in
/// another way is neither read nor cut.
fn begins_an_outcome(text: &[u8]) -> bool {
    if text.len() <= START.len() {
        return START.starts_with(text);
    }
    let Some(rest) = text.strip_prefix(START) else {
        return false;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let next: &[u8] = b",\"";
    digits > 0 && rest[digits..].iter().zip(next).all(|(a, b)| a == b)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
