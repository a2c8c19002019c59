//! The results file: one outcome a line, and what a later run can tell from it.
//!
//! Each line carries the digest of the input line that it came from. A resumed run first holds the
//! file against the input, in memory of a few bits a line, and refuses an input whose lines have
//! changed before anything is sent.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use genesys_attributes::BatchOutcome;
use serde::Deserialize;

use super::input::{Digest, Lines};

/// A growing set of line numbers, one bit each.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn get(&self, line: u64) -> bool {
        let word = self.0.get((line / 64) as usize).copied().unwrap_or(0);
        word >> (line % 64) & 1 == 1
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn set(&mut self, line: u64, on: bool) {
        let index = (line / 64) as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        let bit = 1 << (line % 64);
        if on {
            self.0[index] |= bit;
        } else {
            self.0[index] &= !bit;
        }
    }
}

/// What earlier runs left in the results file.
#[derive(Default)]
pub(crate) struct Past {
    /// Lines that have any outcome.
    seen: Bits,
    /// Lines whose last outcome needs no further run.
    done: Bits,
    /// Lines whose last outcome is a failure for good; a part of `done`.
    failed: Bits,
    /// The largest number of `seen`.
    last: u64,
    /// For each block of lines, its lines' digests in a sum that does not depend on the order.
    sums: Vec<u64>,
}

/// Lines whose digests are kept as one sum. A changed line is found by its block.
const BLOCK: u64 = 1_024;

/// Line numbers beyond this are no line numbers of ours.
const MOST_LINES: u64 = 1 << 36;

impl Past {
    /// Whether there is nothing to resume from.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Whether the line is to be run.
    pub(crate) fn wants(&self, line: u64, retry_failed: bool) -> bool {
        !self.done.get(line) || retry_failed && self.failed.get(line)
    }

    /// How many lines failed for good.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.count()
    }

    /// How many lines are not to be run.
    pub(crate) fn settled(&self, retry_failed: bool) -> u64 {
        self.done.count() - if retry_failed { self.failed.count() } else { 0 }
    }

    fn read(&mut self, record: &Recorded) -> Result<(), String> {
        let Recorded { line, .. } = *record;
        if line == 0 || line > MOST_LINES {
            return Err(format!("it has no usable line number ({line})"));
        }
        let digest = u64::from_str_radix(&record.digest, 16)
            .map_err(|_| "it has no usable digest".to_owned())?;
        if !self.seen.get(line) {
            self.seen.set(line, true);
            add(&mut self.sums, line, digest);
        }
        self.done.set(line, record.is_final);
        self.failed
            .set(line, record.is_final && record.status == "failed");
        self.last = self.last.max(line);
        Ok(())
    }

    /// Holds the input against the past. Gives the first line of a block whose lines have changed,
    /// or as an error the last line of an input that is too short.
    fn first_changed_block(
        &self,
        input: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Option<u64>, u64> {
        let mut sums = Vec::new();
        let mut last = 0;
        for (line, digest) in input.take_while(|(line, _)| *line <= self.last) {
            last = line;
            if self.seen.get(line) {
                add(&mut sums, line, digest);
            }
        }
        if last < self.last {
            return Err(last);
        }
        sums.resize(self.sums.len().max(sums.len()), 0);
        let changed = sums.iter().zip(&self.sums).position(|(a, b)| a != b);
        Ok(changed.map(|block| block as u64 * BLOCK))
    }
}

fn add(sums: &mut Vec<u64>, line: u64, digest: u64) {
    let block = (line / BLOCK) as usize;
    if block >= sums.len() {
        sums.resize(block + 1, 0);
    }
    let mut mixed = Digest::new();
    mixed.add(&line.to_le_bytes());
    mixed.add(&digest.to_le_bytes());
    sums[block] = sums[block].wrapping_add(mixed.value());
}

/// The parts of an outcome that a later run needs.
#[derive(Deserialize)]
struct Recorded {
    line: u64,
    status: String,
    digest: String,
    #[serde(rename = "final")]
    is_final: bool,
}

/// How the first line of a results file begins, as [`line_of`] writes it.
const LINE_START: &[u8] = b"{\"line\":";

/// An outcome as one line of text, with what a later run needs.
pub(crate) fn line_of(outcome: &BatchOutcome, digest: u64) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(outcome)?;
    // An object: its last byte closes it.
    line.pop();
    writeln!(
        line,
        ",\"digest\":\"{digest:016x}\",\"final\":{}}}",
        outcome.is_final()
    )?;
    Ok(line)
}

/// A results file that this process alone writes.
pub(crate) struct Results {
    file: File,
    path: PathBuf,
}

impl Results {
    /// Opens and locks the file. Unless it is resumed, it must be new or empty.
    pub(crate) fn open(path: &Path, resume: bool) -> Result<Results, String> {
        let shown = path.display();
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|e| format!("the results file {shown} cannot be opened: {e}"))?;
        match file.try_lock() {
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
        let length = metadata.len();
        if length > 0 && !resume {
            return Err(format!(
                "the results file {shown} holds outcomes already: give --resume to go on with it, \
                 or another file"
            ));
        }
        Ok(Results {
            file,
            path: path.to_owned(),
        })
    }

    /// Reads what earlier runs left, and cuts off a line that was torn by a crash.
    pub(crate) fn past(&mut self) -> Result<Past, String> {
        let shown = self.path.display().to_string();
        let unreadable = |e| format!("the results file {shown} cannot be read: {e}");
        self.file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut past = Past::default();
        let mut reader = BufReader::with_capacity(1 << 16, &self.file);
        let mut text = Vec::new();
        let (mut number, mut whole) = (0u64, 0u64);
        // What is not ours is neither read nor cut.
        let start = reader.fill_buf().map_err(unreadable)?;
        if !start.iter().zip(LINE_START).all(|(a, b)| a == b) {
            return Err(format!(
                "{shown} does not hold the outcomes of a batch: give another file for --results"
            ));
        }
        loop {
            text.clear();
            let read = reader.read_until(b'\n', &mut text).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            if text.last() != Some(&b'\n') {
                // Each outcome is one write: only the last one can be torn.
                self.file.set_len(whole).map_err(unreadable)?;
                break;
            }
            number += 1;
            whole += read as u64;
            serde_json::from_slice(&text)
                .map_err(|_| "it is no outcome of a batch".to_owned())
                .and_then(|record: Recorded| past.read(&record))
                .map_err(|problem| {
                    format!("line {number} of the results file {shown} cannot be used: {problem}")
                })?;
        }
        Ok(past)
    }

    /// Refuses an input whose lines are not those of the past. `input` gives the lines anew on
    /// each call.
    pub(crate) fn check(
        &mut self,
        past: &Past,
        input: impl Fn() -> Result<Lines, String>,
    ) -> Result<(), String> {
        let shown = self.path.display().to_string();
        let from = match past.first_changed_block(input()?.digests()) {
            Ok(None) => return Ok(()),
            Err(last) => {
                return Err(format!(
                    "the input ends at line {last}, but {shown} has outcomes up to line {}: is it \
                     the same input?",
                    past.last
                ));
            }
            Ok(Some(from)) => from,
        };
        let recorded = self.digests_of_block(from)?;
        let block = from..from + BLOCK;
        let mut present = HashSet::new();
        for (line, digest) in input()?.digests().take_while(|(line, _)| *line < block.end) {
            if block.contains(&line) && past.seen.get(line) {
                present.insert((line, digest));
            }
        }
        let number = recorded
            .iter()
            .filter(|entry| !present.contains(entry))
            .map(|(line, _)| *line)
            .min()
            .unwrap_or(from);
        Err(format!(
            "line {number} of the input has changed since its outcome was written to {shown} (or, in \
             a CSV, its header row has): put it back, or use a new results file"
        ))
    }

    fn digests_of_block(&mut self, from: u64) -> Result<Vec<(u64, u64)>, String> {
        let shown = self.path.display().to_string();
        let unreadable = |e| format!("the results file {shown} cannot be read: {e}");
        self.file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut found: Vec<(u64, u64)> = Vec::new();
        for text in BufReader::new(&self.file).split(b'\n') {
            let text = text.map_err(unreadable)?;
            let Ok(record) = serde_json::from_slice::<Recorded>(&text) else {
                continue;
            };
            let known = found.iter().any(|(line, _)| *line == record.line);
            if (from..from + BLOCK).contains(&record.line)
                && !known
                && let Ok(digest) = u64::from_str_radix(&record.digest, 16)
            {
                found.push((record.line, digest));
            }
        }
        Ok(found)
    }

    /// Reopens the lines that come after a failed one of the same conversation, so that retrying
    /// it does not put an older value over a newer one. Written down before anything is sent, so
    /// that a crash in between loses nothing.
    pub(crate) fn reopen_after_failed(
        &mut self,
        past: &mut Past,
        mut input: Lines,
    ) -> Result<(), String> {
        let mut retried = HashSet::new();
        let last = past.last;
        for line in input
            .wanted(|_| true)
            .take_while(|line| line.number <= last)
        {
            let Ok(update) = &line.update else { continue };
            let mut conversation = Digest::new();
            conversation.add(update.target().conversation_id().as_bytes());
            if past.failed.get(line.number) {
                retried.insert(conversation.value());
            } else if past.done.get(line.number) && retried.contains(&conversation.value()) {
                past.done.set(line.number, false);
                let record = serde_json::json!({
                    "line": line.number,
                    "conversationId": update.target().conversation_id(),
                    "status": "skipped",
                    "reason": "run again after an earlier failed line of this conversation",
                    "digest": format!("{:016x}", line.digest),
                    "final": false,
                });
                self.write(format!("{record}\n").as_bytes())
                    .map_err(|e| format!("the results file cannot be written: {e}"))?;
            }
        }
        Ok(())
    }

    /// Appends one outcome, in one write.
    pub(crate) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)
    }

    /// Makes what was written survive a loss of power.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
