//! What earlier runs left in a journal, in 16 bytes a line, and how an input is compared with it.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Status;

use super::item::{BatchItem, Line, Mark, hash};
use super::spool::Spool;

/// How far a deleted or added line is looked for.
const NEAR: usize = 100;

/// Which lines that failed for good a run with a journal runs again.
///
/// From a `bool`: all of them, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Retry {
    /// None of them. A changed line is an error.
    #[default]
    None,
    /// Those whose update has changed since.
    Changed,
    /// All of them, as they are now.
    All,
}

impl From<bool> for Retry {
    fn from(all: bool) -> Retry {
        if all { Retry::All } else { Retry::None }
    }
}

/// The fields of an outcome that a later run needs.
#[derive(Deserialize)]
pub(super) struct Recorded<'a> {
    pub(super) line: u64,
    pub(super) status: Status,
    #[serde(borrow)]
    digest: &'a str,
    #[serde(rename = "final")]
    pub(super) is_final: bool,
    #[serde(default)]
    partial: bool,
    pub(super) error: Option<RecordedError>,
}

#[derive(Deserialize)]
pub(super) struct RecordedError {
    pub(super) kind: ErrorKind,
}

impl Recorded<'_> {
    pub(super) fn digest(&self) -> std::result::Result<u64, &'static str> {
        u64::from_str_radix(self.digest, 16).map_err(|_| "it has no usable digest")
    }
}

/// The last outcome of one line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The line's number, and below it the kind of its error, its status and four flags.
    key: u64,
    digest: u64,
}

impl Entry {
    const FINAL: u64 = 1;
    /// The line failed, or was skipped and never applied: its text may be corrected.
    const OPEN: u64 = 2;
    /// The line was cut short, perhaps, and may have been completed since.
    const PARTIAL: u64 = 4;
    /// The line was done, and runs again after an earlier line of its conversation.
    const REOPENED: u64 = 8;
    const STATUS: u32 = 4;
    const KIND: u32 = 8;
    const BITS: u32 = 16;

    pub(super) fn line(self) -> u64 {
        self.key >> Entry::BITS
    }

    pub(super) fn mark(self) -> Mark {
        Mark {
            digest: self.digest,
            is_partial: self.is_partial(),
        }
    }

    pub(super) fn status(self) -> Option<Status> {
        let index = self.key >> Entry::STATUS & 0xF;
        Status::ALL.get(index as usize).copied()
    }

    /// The kind of the error, where there was one.
    pub(super) fn kind(self) -> Option<ErrorKind> {
        let index = self.key >> Entry::KIND & 0xFF;
        ErrorKind::ALL
            .get((index as usize).checked_sub(1)?)
            .copied()
    }

    pub(super) fn is_final(self) -> bool {
        self.key & Entry::FINAL != 0
    }

    fn is_open(self) -> bool {
        self.key & Entry::OPEN != 0
    }

    fn is_partial(self) -> bool {
        self.key & Entry::PARTIAL != 0
    }

    pub(super) fn has_failed(self) -> bool {
        self.is_final() && self.is_open()
    }

    /// True if the line is done, and runs again only after an earlier line of its conversation.
    fn is_done(self) -> bool {
        self.is_final() && !self.is_open()
    }
}

/// The last outcome of each line, by their numbers.
#[derive(Default)]
pub(super) struct Past(pub(super) Vec<Entry>);

/// What a run does first, as the journal and its input have it.
pub(super) struct Checked<T> {
    /// Lines to run before the rest of the input.
    pub(super) lines: Spool<T>,
    /// Lines that are not run, and how many of them failed.
    pub(super) finished: u64,
    pub(super) failed: u64,
}

/// The lines of an input. `wait` is called while there is nothing yet, and gives false to stop.
pub(super) struct Lines<I, W> {
    input: I,
    wait: W,
    stopped: bool,
}

impl<I, W> Lines<I, W> {
    pub(super) fn new(input: I, wait: W) -> Lines<I, W> {
        Lines {
            input,
            wait,
            stopped: false,
        }
    }
}

impl<T, U, I, W> Iterator for Lines<I, W>
where
    U: BatchItem,
    I: Iterator<Item = (u64, T, U)>,
    W: FnMut() -> bool,
{
    type Item = Line<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = Line::read(self.input.next()?);
            if line.is_some() {
                return line;
            }
            self.stopped = !(self.wait)();
            if self.stopped {
                return None;
            }
        }
    }
}

impl Past {
    /// Takes an outcome in. The last one of a line counts.
    pub(super) fn take(&mut self, record: &Recorded<'_>) -> std::result::Result<(), &'static str> {
        let line = record.line;
        if line == 0 || line > u64::MAX >> Entry::BITS {
            return Err("it has no usable line number");
        }
        // Outcomes come nearly in order.
        let found = match self.0.last() {
            Some(last) if last.line() >= line => self.0.binary_search_by_key(&line, |e| e.line()),
            _ => Err(self.0.len()),
        };
        let open = match record.status {
            Status::Failed => true,
            Status::Skipped => found.is_err() || found.is_ok_and(|at| self.0[at].is_open()),
            _ => false,
        };
        let kind = record
            .error
            .as_ref()
            .map_or(0, |error| error.kind as u64 + 1);
        let flags = u64::from(record.is_final) * Entry::FINAL
            + u64::from(open) * Entry::OPEN
            + u64::from(record.partial) * Entry::PARTIAL
            + ((record.status as u64) << Entry::STATUS)
            + (kind << Entry::KIND);
        let entry = Entry {
            key: line << Entry::BITS | flags,
            digest: record.digest()?,
        };
        match found {
            Ok(at) => self.0[at] = entry,
            Err(at) => self.0.insert(at, entry),
        }
        Ok(())
    }

    /// Lines that were done, and run again after an earlier line of their conversation.
    pub(super) fn reopened(&self) -> impl Iterator<Item = Entry> {
        let all = self.0.iter().copied();
        all.filter(|entry| entry.key & Entry::REOPENED != 0)
    }

    /// The largest number of a line that has an outcome.
    pub(super) fn last(&self) -> u64 {
        self.0.last().map_or(0, |entry| entry.line())
    }

    /// Compares the input with the outcomes, up to the last one of them.
    pub(super) fn check<T, U, I, W>(
        &mut self,
        input: &mut Lines<I, W>,
        retry: Retry,
        path: &Path,
    ) -> Result<Checked<T>>
    where
        U: BatchItem,
        I: Iterator<Item = (u64, T, U)>,
        W: FnMut() -> bool,
    {
        let mut checked = Checked {
            lines: Spool::new(),
            finished: 0,
            failed: 0,
        };
        // Conversations with a line that runs, while a later line may have to follow it.
        let mut running = HashSet::new();
        let mut done = self.0.iter().filter(|entry| entry.is_done()).count();
        let (mut at, mut previous) = (0, 0);
        while at < self.0.len() {
            let Some(line) = input.next() else {
                if input.stopped {
                    return Err(Error::new(ErrorKind::Cancelled, "cancelled by the caller"));
                }
                self.may_be_missing(at, self.0.len(), retry, path, Some(previous))?;
                break;
            };
            let number = line.number;
            if number <= previous {
                return Err(mismatch(format_args!(
                    "line {number} comes after line {previous}: with a journal, line numbers increase"
                )));
            }
            previous = number;
            let here = at + self.0[at..].partition_point(|entry| entry.line() < number);
            self.may_be_missing(at, here, retry, path, None)?;
            at = here;
            let conversation = line.update.as_ref().ok().map(|update| {
                let id = update.target().conversation_id();
                hash(|out| out.write_all(id.as_bytes()))
            });
            let entry = self.0.get(at).filter(|entry| entry.line() == number);
            let Some(entry) = entry.copied() else {
                running.extend(conversation.filter(|_| done > 0));
                checked.lines.push(line)?;
                continue;
            };
            at += 1;
            done -= usize::from(entry.is_done());
            let changed = line.mark.digest != entry.digest;
            if changed && !entry.is_partial() && (retry == Retry::None || !entry.is_open()) {
                return Err(self.changed(at, entry, line.mark.digest, input, path));
            }
            let retried = retry == Retry::All || retry == Retry::Changed && changed;
            let completed = changed && entry.is_partial();
            if !entry.is_final() || completed || entry.is_open() && retried {
                running.extend(conversation.filter(|_| done > 0));
                checked.lines.push(line)?;
            } else if !entry.is_open() && conversation.is_some_and(|id| running.contains(&id)) {
                self.0[at - 1].key |= Entry::REOPENED;
                checked.lines.push(line)?;
            } else {
                checked.finished += 1;
                checked.failed += u64::from(entry.is_open());
            }
        }
        Ok(checked)
    }

    /// The input has none of the lines of these entries. That is an error, unless all of them
    /// failed and are retried, or were corrected and belong to another shard now. `end` is the
    /// last line of an input that has ended.
    fn may_be_missing(
        &self,
        from: usize,
        to: usize,
        retry: Retry,
        path: &Path,
        end: Option<u64>,
    ) -> Result<()> {
        let missing = &self.0[from..to];
        let Some(first) = missing
            .iter()
            .find(|entry| !entry.is_open() || retry == Retry::None && end.is_some())
        else {
            return Ok(());
        };
        let shown = path.display();
        let fix = match first.is_open() {
            true => {
                "put it back, leave out failed lines by retrying (retry_failed, --retry-failed)"
            }
            false => "put it back",
        };
        Err(match end {
            Some(end) => mismatch(format_args!(
                "the input ends at line {end}, but {shown} has outcomes up to line {}: is it the \
                 same input? Line {} is missing: {fix}, or use a new journal",
                self.last(),
                first.line()
            )),
            None => mismatch(format_args!(
                "the input does not have line {} any more, but {shown} has its outcome: {fix}, or \
                 use a new journal (each shard needs its own)",
                first.line()
            )),
        })
    }

    /// Says how the input differs from the journal at `entry`, which is the one before `at`.
    fn changed<T, U, I, W>(
        &self,
        at: usize,
        entry: Entry,
        digest: u64,
        input: &mut Lines<I, W>,
        path: &Path,
    ) -> Error
    where
        U: BatchItem,
        I: Iterator<Item = (u64, T, U)>,
        W: FnMut() -> bool,
    {
        let (line, shown) = (entry.line(), path.display());
        let fix = "a journal goes by line numbers";
        let later = self.0[at..].iter().take(NEAR);
        let mut later = later.filter(|later| later.digest == digest);
        if let Some(moved) = later.next() {
            let was = moved.line();
            return mismatch(format_args!(
                "line {line} of the input has changed since its outcome was written to {shown}: it \
                 is what line {was} was, so lines were deleted before it. {fix}: put them back, or \
                 use a new journal"
            ));
        }
        let mut next = input.take(NEAR);
        if let Some(moved) = next.find(|line| line.mark.digest == entry.digest) {
            let now = moved.number;
            return mismatch(format_args!(
                "line {line} of the input has changed since its outcome was written to {shown}: what \
                 it was is line {now} now, so lines were added before it. {fix}: add lines at the \
                 end only, or use a new journal"
            ));
        }
        let fix = match entry.is_open() {
            true => {
                "retry failed lines (retry_failed, --retry-failed) to run it as it is now, put it back"
            }
            false => "put it back",
        };
        mismatch(format_args!(
            "line {line} of the input has changed since its outcome was written to {shown} (or, in a \
             CSV, its header row has): {fix}, or use a new journal"
        ))
    }
}

fn mismatch(text: impl Display) -> Error {
    Error::new(ErrorKind::InvalidInput, text.to_string())
}
