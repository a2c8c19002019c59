//! The results file: one outcome a line, and what a later run can tell from it.
//!
//! Each line carries the digest of the input line that it came from. A resumed run first holds the
//! file against the input, and refuses an input whose lines have changed before anything is sent.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::digest::Digest;
use super::options::Shard;
use super::past::{Mismatch, Past, Recorded};
use super::records::Lines;

/// How the first line of a results file begins, as [`line_of`] writes it.
const LINE_START: &[u8] = b"{\"line\":";

/// An outcome as one line of text, with what a later run needs.
pub(crate) fn line_of(
    outcome: &impl Serialize,
    digest: u64,
    is_final: bool,
    ended: bool,
    shard: Option<Shard>,
) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(outcome)?;
    // An object: its last byte closes it.
    line.pop();
    write!(line, ",\"digest\":\"{digest:016x}\",\"final\":{is_final}")?;
    if !ended {
        line.extend_from_slice(b",\"partial\":true");
    }
    if let Some(shard) = shard {
        write!(line, ",\"shard\":\"{shard}\"")?;
    }
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// A results file that this process alone writes, or one that is only looked at.
pub(crate) struct Results {
    file: File,
    path: PathBuf,
    shard: Option<Shard>,
    writable: bool,
}

impl Results {
    /// Opens the file and, unless it is only looked at, locks it. Unless it is resumed, it must
    /// be new or empty. `None` when there is nothing to look at.
    pub(crate) fn open(
        path: &Path,
        resume: bool,
        shard: Option<Shard>,
        writable: bool,
    ) -> Result<Option<Results>, String> {
        let shown = path.display();
        if !writable && !path.exists() {
            return Ok(None);
        }
        let file = File::options()
            .read(true)
            .append(writable)
            .create(writable)
            .open(path)
            .map_err(|e| format!("the results file {shown} cannot be opened: {e}"))?;
        match file.try_lock() {
            _ if !writable => {}
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "the results file {shown} is in use by another process: wait for it to end"
                ));
            }
            Err(TryLockError::Error(e)) => {
                return Err(format!("the results file {shown} cannot be locked: {e}"));
            }
        }
        let metadata = file
            .metadata()
            .map_err(|e| format!("the results file {shown} cannot be read: {e}"))?;
        if !metadata.is_file() {
            return Err(format!("the results file {shown} is not a regular file"));
        }
        if metadata.len() > 0 && !resume {
            return Err(format!(
                "the results file {shown} holds outcomes already: give --resume to go on with it, \
                 or another file"
            ));
        }
        Ok(Some(Results {
            file,
            path: path.to_owned(),
            shard,
            writable,
        }))
    }

    /// Reads what earlier runs left, and cuts off a line that was torn by a crash.
    pub(crate) fn past(&mut self) -> Result<Past, String> {
        let shown = self.path.display().to_string();
        let mut past = Past::default();
        let ours = self.shard.map(|shard| shard.to_string());
        let whole = each_outcome(&self.file, &shown, |record| {
            if record.shard != ours {
                let theirs = record.shard.as_deref();
                return Err(match theirs {
                    Some(theirs) => format!(
                        "it is of shard {theirs}: give --shard {theirs}, or another file for \
                         --results"
                    ),
                    None => "it is of a run without --shard: leave --shard out, or give another \
                             file for --results"
                        .to_owned(),
                });
            }
            past.read(record).map_err(str::to_owned)
        })?;
        if self.writable {
            self.file
                .set_len(whole)
                .map_err(|e| format!("the results file {shown} cannot be written: {e}"))?;
        }
        Ok(past)
    }

    /// Refuses an input whose lines are not those of the past, and reopens the lines that must
    /// run again. `input` gives the lines anew on each call.
    pub(crate) fn take_up(
        &mut self,
        past: &mut Past,
        retry_failed: bool,
        input: impl Fn() -> Result<Lines, String>,
    ) -> Result<(), String> {
        let shown = self.path.display().to_string();
        let mut lines = input()?;
        let compared = past.compare(digests(&mut lines), retry_failed);
        lines.failure()?;
        let changed = match compared {
            Ok(None) => return Ok(()),
            Ok(Some(from)) => return self.reopen(past, retry_failed, from, input()?),
            Err(Mismatch::Short(last)) => {
                return Err(format!(
                    "the input ends at line {last}, but {shown} has outcomes up to line {}: is it \
                     the same input?",
                    past.last()
                ));
            }
            Err(Mismatch::Line(line)) => line,
            Err(Mismatch::Block(from)) => self.changed_line(past, from, input()?)?,
        };
        let corrected = if past.is_failed(changed) {
            "--retry-failed runs it as it is now; else "
        } else {
            ""
        };
        Err(format!(
            "line {changed} of the input has changed since its outcome was written to {shown} (or, \
             in a CSV, its header row has): {corrected}put it back, or use a new results file"
        ))
    }

    /// The first line of a block that is not as it was.
    fn changed_line(&mut self, past: &Past, from: u64, mut input: Lines) -> Result<u64, String> {
        let shown = self.path.display().to_string();
        // Of each line the last one: it may have been corrected since an earlier one.
        let mut recorded = HashMap::new();
        each_outcome(&self.file, &shown, |record| {
            if past.counts_in(from, record.line) {
                recorded.extend(record.digest().map(|digest| (record.line, digest)));
            }
            Ok(())
        })?;
        let present: HashSet<(u64, u64)> = digests(&mut input)
            .skip_while(|(line, _)| *line < from)
            .take_while(|(line, _)| past.counts_in(from, *line) || *line < from + 1_024)
            .collect();
        let gone = recorded
            .into_iter()
            .filter(|entry| !present.contains(entry));
        Ok(gone.map(|(line, _)| line).min().unwrap_or(from))
    }

    /// Reopens the lines that come after one of the same conversation that is to be run, so that
    /// an older value does not come after a newer one. Settles those that failed and are of another
    /// shard since they were corrected. Written down before anything is sent, so that a crash in
    /// between loses nothing.
    fn reopen(
        &mut self,
        past: &mut Past,
        retry_failed: bool,
        from: u64,
        mut input: Lines,
    ) -> Result<(), String> {
        let mut rerun = HashSet::new();
        let last = past.last();
        let unwritable = |e| format!("the results file cannot be written: {e}");
        while let Some(record) = input.next_record() {
            let (number, digest) = (record.number, record.digest);
            if number < from {
                continue;
            }
            if number > last {
                break;
            }
            let Some(line) = input.read(&record) else {
                if retry_failed && past.is_failed(number) {
                    past.moved(number);
                    let record = Moved {
                        line: number,
                        status: "skipped",
                        reason: "corrected since it failed, and of another shard now",
                        moved: true,
                    };
                    line_of(&record, digest, true, true, self.shard)
                        .and_then(|line| self.write(&line))
                        .map_err(unwritable)?;
                }
                continue;
            };
            let Ok(update) = &line.update else { continue };
            let id = update.target().conversation_id();
            let conversation = Digest::of(id.as_bytes());
            if past.wants(line.number, retry_failed) {
                rerun.insert(conversation);
            } else if rerun.contains(&conversation) && !past.is_failed(line.number) {
                past.reopen(line.number);
                let record = Reopened {
                    line: line.number,
                    conversation_id: id,
                    status: "skipped",
                    reason: "run again after an earlier line of this conversation",
                };
                line_of(&record, line.digest, false, line.ended, self.shard)
                    .and_then(|line| self.write(&line))
                    .map_err(unwritable)?;
            }
        }
        input.failure()
    }

    /// Appends one outcome, in one write.
    pub(crate) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.writable {
            self.file.write_all(line)?;
        }
        Ok(())
    }

    /// Makes what was written survive a loss of power.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The record of a line that is to be run again.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reopened<'a> {
    line: u64,
    conversation_id: &'a str,
    status: &'a str,
    reason: &'a str,
}

/// The record of a line that another shard runs.
#[derive(Serialize)]
struct Moved<'a> {
    line: u64,
    status: &'a str,
    reason: &'a str,
    moved: bool,
}

fn digests(lines: &mut Lines) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(|| {
        let record = lines.next_record()?;
        Some((record.number, record.digest))
    })
}

/// Hands over each whole outcome of a results file. Gives their length in bytes: what is beyond
/// it is the beginning of one.
pub(crate) fn each_outcome(
    mut file: &File,
    shown: &str,
    mut each: impl FnMut(&Recorded) -> Result<(), String>,
) -> Result<u64, String> {
    let unreadable = |e| format!("the results file {shown} cannot be read: {e}");
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    // What is not ours is neither read nor cut.
    let start = reader.fill_buf().map_err(unreadable)?;
    if !start.iter().zip(LINE_START).all(|(a, b)| a == b) {
        return Err(format!(
            "{shown} does not hold the outcomes of a batch: give another file for the results"
        ));
    }
    let mut text = Vec::new();
    let (mut number, mut whole) = (0u64, 0u64);
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).map_err(unreadable)?;
        // Each outcome is one write: only the last one can be torn.
        if text.last() != Some(&b'\n') {
            return Ok(whole);
        }
        number += 1;
        whole += read as u64;
        serde_json::from_slice(&text)
            .map_err(|_| "it is no outcome of a batch".to_owned())
            .and_then(|record: Recorded| each(&record))
            .map_err(|problem| {
                format!("line {number} of the results file {shown} cannot be used: {problem}")
            })?;
    }
}
