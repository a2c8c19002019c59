//! `batch`: the input, the library's engine, the outcomes and the end of it all.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use genesys_attributes::batch::{BatchOutcome, Notice};
use genesys_attributes::clock::{Clock, SystemClock};
use genesys_attributes::{Batch as Engine, Cancel, Client, Error, ErrorKind, Status, Update};
use serde::Serialize;

use super::client::Config;
use super::digest::Digest;
use super::ending::End;
use super::files::{replace_private, replaceable};
use super::kinds::{self, Kind};
use super::options::{Batch, Options, Shard};
use super::past::Past;
use super::progress::{Counts, Pace};
use super::records::{Line, Lines};
use super::results::{Results, line_of};
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

/// The results file, and what earlier runs left in it.
pub(crate) fn earlier(
    opened: &mut Opened<'_>,
    batch: &Batch,
    writable: bool,
) -> Result<(Option<Results>, Past), String> {
    let Some(path) = &batch.results else {
        return Ok(Default::default());
    };
    let shard = batch.input.shard;
    let Some(mut results) = Results::open(path, batch.resume, shard, writable)? else {
        return Ok(Default::default());
    };
    let mut past = results.past()?;
    if !past.is_empty() {
        opened.spool()?;
        results.take_up(&mut past, batch.retry_failed, || opened.lines())?;
    }
    Ok((Some(results), past))
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
fn engine(client: &Client, batch: &Batch, counts: &Arc<Counts>) -> Engine {
    let counts = counts.clone();
    let engine = Engine::new(client)
        .workers(batch.workers)
        .max_outage(Duration::from_secs(batch.max_outage))
        .on_notice(move |notice| {
            // Each outage is told, however alike; its probes are folded like other warnings.
            match notice {
                Notice::OutageBegan { .. } => {
                    counts.outage.store(true, Ordering::Relaxed);
                    screen::warn(&notice.to_string());
                }
                Notice::OutageEnded { .. } => {
                    counts.outage.store(false, Ordering::Relaxed);
                    screen::warn(&notice.to_string());
                }
                _ => screen::log(log::Level::Warn, &notice.to_string()),
            }
        });
    match batch.stop_after {
        Some(failures) => engine.stop_after(failures),
        None => engine,
    }
}

pub(crate) fn run(options: &Options, batch: &Batch) -> Run {
    let config = config(options, batch)?;
    let mut opened = Opened::of(&batch.input).map_err(Failure::usage)?;
    let (rate, strict) = (config.rate(), config.is_strict());
    let client = config.client(batch.workers)?;
    let (mut results, past) = earlier(&mut opened, batch, true).map_err(Failure::usage)?;
    if let Some(path) = &batch.failed {
        // The failed lines are copied at the end.
        opened.spool().map_err(Failure::usage)?;
        replaceable(path).map_err(|e| unwritable_failed(path, &e))?;
    }
    let counts = Arc::new(Counts::default());
    let metrics = batch.metrics.as_ref().map(|path| MetricsFile {
        path: path.clone(),
        client: client.clone(),
        counts: counts.clone(),
        shard: batch.input.shard,
    });
    if let Some(metrics) = &metrics {
        metrics
            .write(None)
            .map_err(|e| Failure::usage(format!("the file of --metrics cannot be written: {e}")))?;
    }
    let lines = opened.lines().map_err(Failure::usage)?;
    let past = Arc::new(past);
    let engine = engine(&client, batch, &counts);
    let signals =
        Signals::catch().map_err(|e| Failure::usage(format!("signals cannot be caught: {e}")))?;
    screen::fold();
    let ticker = Ticker::start(Ticks {
        client: client.clone(),
        counts: counts.clone(),
        signals: signals.clone(),
        cancel: engine.cancel_handle(),
        metrics: metrics.clone(),
        style: progress_style(batch),
        pace: Pace::new(SystemClock.now(), total(&opened, batch, &past), rate),
        course: Default::default(),
    });

    let mut reader = {
        let (past, retry_failed) = (past.clone(), batch.retry_failed);
        let wanted = move |line| past.wants(line, retry_failed);
        Reader::start(lines, wanted, engine.cancel_handle(), batch.guards.verify)
    };
    let mut outcomes = Outcomes {
        past: &past,
        shard: batch.input.shard,
        results: results.as_mut(),
        counts: &counts,
        failures: Failures::default(),
        bad: HashSet::new(),
        good: HashSet::new(),
        keep_bad: batch.failed.is_some(),
        strict,
        retry_after: None,
        unwritable: None,
    };
    let report = engine.run_tagged(reader.by_ref(), |tag, outcome| outcomes.take(tag, outcome));
    ticker.end();
    screen::clear();
    screen::unfold();

    let Outcomes {
        failures,
        bad,
        good,
        retry_after,
        unwritable,
        ..
    } = outcomes;
    if let Some(results) = &results
        && let Err(error) = results.sync()
    {
        screen::warn(&format!(
            "the results may not survive a loss of power: {error}"
        ));
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
    end.report(options, past.failures(), batch.retry_failed);
    let is_bad = |line| bad.contains(&line) || past.is_failed(line) && !good.contains(&line);
    let read = reader.finish(batch.failed.is_some());
    let read = read.and_then(|mut lines| {
        if let (Some(path), Some(lines)) = (&batch.failed, &lines) {
            write_failed(path, &opened, lines, is_bad)?;
        }
        lines.as_mut().map_or(Ok(()), Lines::end)
    });
    let complete = read.is_ok() && unwritable.is_none() && report.stopped.is_none();
    let earlier = !batch.retry_failed && past.failures() > 0;
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

fn total(opened: &Opened<'_>, batch: &Batch, past: &Past) -> Option<u64> {
    let count = match progress_style(batch) {
        Style::None => None,
        _ => opened.count(),
    };
    count.map(|lines| lines.saturating_sub(past.settled(batch.retry_failed)))
}

/// What is done with each outcome.
struct Outcomes<'a> {
    past: &'a Past,
    shard: Option<Shard>,
    results: Option<&'a mut Results>,
    counts: &'a Counts,
    failures: Failures,
    /// Lines that failed or were skipped in this run, where they are asked for.
    bad: HashSet<u64>,
    /// Lines that failed earlier and are in place now.
    good: HashSet<u64>,
    keep_bad: bool,
    strict: bool,
    retry_after: Option<Duration>,
    unwritable: Option<Failure>,
}

impl Outcomes<'_> {
    fn take(&mut self, tag: Tag, outcome: &BatchOutcome) -> ControlFlow<()> {
        let is_bad = matches!(outcome.status, Status::Failed | Status::Skipped);
        self.counts.count(outcome.status);
        if let Some(error) = &outcome.error {
            self.failures.count(error.kind().name(), outcome.line);
            self.retry_after = self.retry_after.max(error.retry_after());
        }
        if self.keep_bad {
            if is_bad {
                self.bad.insert(outcome.line);
            } else if self.past.is_failed(outcome.line) {
                self.good.insert(outcome.line);
            }
        }
        let written = match &mut self.results {
            Some(results) => {
                let Tag { digest, ended } = tag;
                line_of(outcome, digest, outcome.is_final(), ended, self.shard)
                    .and_then(|line| results.write(&line))
            }
            .map_err(|e| Failure::usage(format!("the results file cannot be written: {e}"))),
            None => print_line(outcome).map_err(|error| closed(&error, Exit::OutputClosed)),
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

/// Reads the input on a thread of its own, so that a batch that stops early does not wait for a
/// pipe that gives nothing.
struct Reader {
    lines: Receiver<Line>,
    thread: JoinHandle<Lines>,
    over: bool,
    cancel: Cancel,
    verify: bool,
}

impl Reader {
    fn start(
        mut lines: Lines,
        wanted: impl Fn(u64) -> bool + Send + 'static,
        cancel: Cancel,
        verify: bool,
    ) -> Reader {
        // A line may be large: few of them wait here.
        let (sender, receiver) = sync_channel(2);
        let thread = std::thread::spawn(move || {
            for line in lines.wanted(wanted) {
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
            cancel,
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
    type Item = (u64, Tag, Result<Update, Error>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    let update = match self.verify {
                        true => line.update.map(Update::verify),
                        false => line.update,
                    };
                    let tag = Tag {
                        digest: line.digest,
                        ended: line.ended,
                    };
                    return Some((line.number, tag, update));
                }
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.over = true;
                    return None;
                }
            }
        }
    }
}

/// What the results keep of an input line.
struct Tag {
    digest: u64,
    ended: bool,
}
