//! `batch`: the input, the library's engine, the outcomes and the end of it all.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use genesys_attributes::batch::{BatchItem, BatchOutcome, Journal, Notice, Retry, StopReason};
use genesys_attributes::{Batch as Engine, Client, Error, ErrorKind, Status, Update};
use serde::Serialize;

use super::client::Config;
use super::digest::Digest;
use super::ending::End;
use super::files::{replace_private, replaceable};
use super::kinds::{self, Kind};
use super::options::{Batch, Options};
use super::progress::Counts;
use super::records::{Line, Lines};
use super::screen::{self, Style};
use super::signals::Signals;
use super::source::Opened;
use super::split::LONGEST;
use super::summary::{Failures, many};
use super::ticks::{MetricsFile, Ticker, Ticks};
use super::{Exit, Failure, Run, closed};

/// What the client is made from, once no file has two purposes.
pub(crate) fn config<'a>(options: &'a Options, batch: &Batch) -> Result<Config<'a>, Failure> {
    let (input, from_stdin) = (batch.input.file.as_deref(), batch.input.file.is_none());
    if from_stdin && options.client.source.reads_stdin() {
        return Err(Failure::usage(
            "standard input can be the input or the settings, not both",
        ));
    }
    let config = Config::read(options)?;
    config
        .files()?
        .read("the input", input)
        .and_then(|files| files.written("--results", batch.results.as_deref()))
        .and_then(|files| files.written("--failed", batch.failed.as_deref()))
        .and_then(|files| files.written("--metrics", batch.metrics.as_deref()))
        .and_then(|files| files.streams(from_stdin))
        .and_then(|_| kinds::check("--results", batch.results.as_deref(), Kind::Results))
        .and_then(|()| kinds::check("--failed", batch.failed.as_deref(), Kind::Input))
        .and_then(|()| kinds::check("--metrics", batch.metrics.as_deref(), Kind::Metrics))
        .map_err(Failure::usage)?;
    config.check_audit()?;
    Ok(config)
}

/// The lines that a run would run because of its results file; `None` is all of them.
pub(crate) fn pending(
    opened: &mut Opened<'_>,
    batch: &Batch,
) -> Result<Option<HashSet<u64>>, String> {
    let Some(path) = &batch.results else {
        return Ok(None);
    };
    refuse_unless_resumed(path, batch)?;
    opened.spool()?;
    let mut lines = opened.lines()?;
    let pending = Journal::pending(path, retry(batch), numbered(&mut lines))
        .map(|lines| lines.map(|(line, _)| line).collect());
    lines.failure()?;
    pending.map(Some).map_err(|error| error.to_string())
}

fn retry(batch: &Batch) -> Retry {
    match (batch.retry_failed, batch.retry_changed) {
        (true, _) => Retry::All,
        (false, true) => Retry::Changed,
        (false, false) => Retry::None,
    }
}

/// The lines of an input, as a journal takes them.
pub(crate) fn numbered(lines: &mut Lines) -> impl Iterator<Item = (u64, Line)> {
    lines.wanted(|_| true).map(|line| (line.number, line))
}

/// Only a resume goes on with outcomes that are there.
fn refuse_unless_resumed(path: &Path, batch: &Batch) -> Result<(), String> {
    let holds_some = std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() > 0);
    if batch.resume || !holds_some {
        return Ok(());
    }
    Err(format!(
        "the results file {} holds outcomes already: give --resume to go on with it, or another \
         file",
        path.display()
    ))
}

/// One record, in one write.
pub(crate) fn print_line(record: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// The engine of the library, with the options of the command line.
fn engine(client: &Client, batch: &Batch, total: Option<u64>) -> Engine {
    let engine = Engine::new(client)
        .workers(batch.workers)
        .max_outage(Duration::from_secs(batch.max_outage))
        .on_notice(|notice| match notice {
            // Each outage is shown; other warnings of one kind are counted.
            Notice::OutageBegan { .. } | Notice::OutageEnded { .. } => {
                screen::warn(&notice.to_string());
            }
            _ => screen::log(log::Level::Warn, &notice.to_string()),
        });
    let engine = match total {
        Some(lines) => engine.expect_lines(lines),
        None => engine,
    };
    let engine = match &batch.results {
        Some(path) => engine.journal(path).retry_failed(retry(batch)),
        None => engine,
    };
    match batch.stop_after {
        Some(failures) => engine.stop_after(failures),
        None => engine,
    }
}

pub(crate) fn run(options: &Options, batch: &Batch) -> Run {
    let config = config(options, batch)?;
    let mut opened = Opened::of(&batch.input).map_err(Failure::usage)?;
    let strict = config.is_strict();
    let client = config.client(batch.workers)?;
    if let Some(path) = &batch.results {
        refuse_unless_resumed(path, batch).map_err(Failure::usage)?;
    }
    if let Some(path) = &batch.failed {
        // The failed lines are copied at the end.
        opened.spool().map_err(Failure::usage)?;
        replaceable(path).map_err(|e| unwritable_failed(path, &e))?;
    }
    let engine = engine(&client, batch, total(&opened, batch));
    let counts = Arc::new(Counts::default());
    let metrics = batch.metrics.as_ref().map(|path| MetricsFile {
        path: path.clone(),
        client: client.clone(),
        counts: counts.clone(),
        progress: engine.progress(),
        shard: batch.input.shard,
    });
    if let Some(metrics) = &metrics {
        metrics
            .write(None)
            .map_err(|e| Failure::usage(format!("the file of --metrics cannot be written: {e}")))?;
    }
    let lines = opened.lines().map_err(Failure::usage)?;
    let signals =
        Signals::catch().map_err(|e| Failure::usage(format!("signals cannot be caught: {e}")))?;
    screen::fold();
    let ticker = Ticker::start(Ticks {
        progress: engine.progress(),
        signals: signals.clone(),
        cancel: engine.cancel_handle(),
        metrics: metrics.clone(),
        style: progress_style(batch),
        course: Default::default(),
    });

    let mut reader = Reader::start(lines, batch.guards.verify);
    let mut outcomes = Outcomes {
        prints: batch.results.is_none(),
        counts: &counts,
        failures: Failures::default(),
        bad: HashSet::new(),
        keep_bad: batch.failed.is_some(),
        strict,
        retry_after: None,
        unwritable: None,
    };
    let report = engine.run_tagged(reader.by_ref(), |(), outcome| outcomes.take(outcome));
    ticker.end();
    screen::clear();
    screen::unfold();

    let Outcomes {
        failures,
        mut bad,
        retry_after,
        mut unwritable,
        ..
    } = outcomes;
    if report.stopped == Some(StopReason::Journal)
        && let Some(error) = &report.error
    {
        unwritable.get_or_insert(Failure::usage(error.to_string()));
    }
    // A closure of the audit's file may be what fails.
    let flushed = client.flush(Duration::from_secs(5)).is_ok();
    let lost = client.metrics().audit_failures + u64::from(!flushed);
    let end = End {
        report: &report,
        failures: &failures,
        lost,
        strict,
        retry_after,
        signal: signals.caught(),
    };
    // A journal that refuses the input is the only thing to tell.
    if report.stopped != Some(StopReason::Journal) || report.lines() > 0 {
        end.report(options, report.failed_before, batch.retry_failed);
    }
    if let (Some(results), Some(_)) = (&batch.results, &batch.failed) {
        let failures = Journal::failures(results).map_err(|e| Failure::usage(e.to_string()))?;
        bad = failures.iter().map(|outcome| outcome.line).collect();
    }
    let read = reader.finish(batch.failed.is_some());
    let read = read.and_then(|mut lines| {
        if let (Some(path), Some(lines)) = (&batch.failed, &lines) {
            write_failed(path, &opened, lines, |line| bad.contains(&line))?;
        }
        lines.as_mut().map_or(Ok(()), Lines::end)
    });
    let complete = read.is_ok() && unwritable.is_none() && report.stopped.is_none();
    let earlier = !batch.retry_failed && report.failed_before > 0;
    let ended = unwritable.map_or(read, Err).map(|()| match end.exit() {
        Exit::Done | Exit::Failed if lost > 0 => Exit::AuditLost,
        Exit::Done | Exit::Failed if batch.exit_zero => Exit::Done,
        Exit::Done if earlier => Exit::Failed,
        exit => exit,
    });
    let exit = ended
        .as_ref()
        .map_or_else(|failure| failure.exit, |exit| *exit);
    if let Some(metrics) = &metrics
        && let Err(error) = metrics.write(Some((exit, complete)))
    {
        screen::warn(&format!("the file of --metrics cannot be written: {error}"));
    }
    ended
}

fn progress_style(batch: &Batch) -> Style {
    // Where the outcomes themselves scroll by on the terminal, a line that moves would mix with
    // them.
    match batch.results.is_none() && io::stdout().is_terminal() {
        true => Style::None,
        false => screen::style(),
    }
}

fn total(opened: &Opened<'_>, batch: &Batch) -> Option<u64> {
    match progress_style(batch) {
        Style::None => None,
        _ => opened.count(),
    }
}

/// Takes each outcome of the batch.
struct Outcomes<'a> {
    /// Without a results file they go to standard output.
    prints: bool,
    counts: &'a Counts,
    failures: Failures,
    /// Lines that failed or were skipped in this run, where they are asked for.
    bad: HashSet<u64>,
    keep_bad: bool,
    strict: bool,
    retry_after: Option<Duration>,
    unwritable: Option<Failure>,
}

impl Outcomes<'_> {
    fn take(&mut self, outcome: &BatchOutcome) -> ControlFlow<()> {
        let is_bad = matches!(outcome.status, Status::Failed | Status::Skipped);
        self.counts.count(outcome.status);
        if let Some(error) = &outcome.error {
            self.failures.count(error.kind().name(), outcome.line);
            self.retry_after = self.retry_after.max(error.retry_after());
        }
        if self.keep_bad && is_bad {
            self.bad.insert(outcome.line);
        }
        let written = match self.prints {
            true => print_line(outcome).map_err(|error| closed(&error, Exit::OutputClosed)),
            false => Ok(()),
        };
        let audit = outcome.error.as_ref().map(Error::kind) == Some(ErrorKind::Audit);
        let failure = match written {
            Err(failure) => failure,
            Ok(()) if self.strict && audit => Failure::usage(
                "the audit file cannot be written, and a strict audit sends nothing without its \
                 record: make room and resume",
            ),
            Ok(()) => return ControlFlow::Continue(()),
        };
        self.unwritable.get_or_insert(failure);
        ControlFlow::Break(())
    }
}

fn unwritable_failed(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    Failure::usage(format!(
        "the file {shown} of --failed cannot be written: {error}"
    ))
}

/// Copies the lines that failed, as input for a next run, and the later lines of their
/// conversations: without those a next run would put an older value over a newer one. `read` is
/// the reading that the batch ran from.
fn write_failed(
    path: &Path,
    opened: &Opened<'_>,
    read: &Lines,
    is_bad: impl Fn(u64) -> bool,
) -> Result<(), Failure> {
    let mut lines = opened.lines().map_err(Failure::usage)?;
    let mut too_long = 0u64;
    let mut conversations = HashSet::new();
    replace_private(path, |out| {
        if let Some(header) = lines.header() {
            out.write_all(header)?;
            out.write_all(b"\n")?;
        }
        let mut unchanged = lines.seen == read.seen;
        while !(read.over && lines.seen.records == read.seen.records)
            && let Some(record) = lines.next_record()
        {
            unchanged |= lines.seen == read.seen;
            let is_bad = is_bad(record.number);
            if !is_bad && conversations.is_empty() {
                continue;
            }
            let id = lines.conversation(&record);
            let conversation = id.map(|id| Digest::of(id.as_bytes()));
            if is_bad {
                conversations.extend(conversation);
            } else if !conversation.is_some_and(|id| conversations.contains(&id)) {
                continue;
            }
            if record.piece.is_too_long() {
                too_long += 1;
                continue;
            }
            out.write_all(&record.piece.text)?;
            out.write_all(b"\n")?;
        }
        match unchanged {
            true => lines.failure().map_err(io::Error::other),
            false => Err(io::Error::other(format!(
                "the input {} changed while the batch ran, so that the lines which it read are no \
                 longer there; the outcomes tell which ones failed",
                opened.name()
            ))),
        }
    })
    .map_err(|error| unwritable_failed(path, &error))?;
    if too_long > 0 {
        screen::warn(&format!(
            "the file of --failed lacks {} of more than {LONGEST} bytes",
            many(too_long, "line")
        ));
    }
    Ok(())
}

/// Reads the input on a thread of its own, so that outcomes do not wait for a pipe that gives
/// nothing.
struct Reader {
    lines: Receiver<Line>,
    thread: JoinHandle<Lines>,
    over: bool,
    verify: bool,
}

impl Reader {
    fn start(mut lines: Lines, verify: bool) -> Reader {
        // A line may be large: few of them wait here.
        let (sender, receiver) = sync_channel(8);
        let thread = std::thread::spawn(move || {
            for line in lines.wanted(|_| true) {
                if sender.send(line).is_err() {
                    break;
                }
            }
            lines
        });
        Reader {
            lines: receiver,
            thread,
            over: false,
            verify,
        }
    }

    /// The reading, as far as it went. `None` if it may still wait for a pipe; `wait` says that the
    /// input is a file.
    fn finish(self, wait: bool) -> Result<Option<Lines>, Failure> {
        drop(self.lines);
        if !self.over && !wait {
            return Ok(None);
        }
        let joined = self.thread.join().map(Some);
        joined.map_err(|_| Failure::usage("the input could not be read: its reader panicked"))
    }
}

impl Iterator for Reader {
    /// Without a line if none has come for a moment.
    type Item = (u64, (), Option<Line>);

    fn next(&mut self) -> Option<Self::Item> {
        match self.lines.recv_timeout(Duration::from_millis(10)) {
            Ok(mut line) => {
                if self.verify {
                    line.update = line.update.map(Update::verify);
                }
                Some((line.number, (), Some(line)))
            }
            Err(RecvTimeoutError::Timeout) => Some((0, (), None)),
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                None
            }
        }
    }
}

impl BatchItem for Line {
    fn into_update(self) -> Result<Update, Error> {
        self.update
    }

    fn is_partial(&self) -> bool {
        !self.ended
    }
}
