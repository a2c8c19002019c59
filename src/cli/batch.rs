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
use super::files::{is_standard_input, replace_private, replaceable};
use super::options::{Batch, Options, Shard};
use super::past::Past;
use super::progress::{Counts, Pace};
use super::records::{Line, Lines, Opened, cut};
use super::results::{Results, line_of};
use super::screen::{self, Style};
use super::signals::Signals;
use super::summary::Failures;
use super::ticks::{Ticker, Ticks, write_metrics};
use super::{Exit, Failure, Run, closed};

/// What the client is made from, once no file has two purposes.
pub(crate) fn config<'a>(options: &'a Options, batch: &Batch) -> Result<Config<'a>, Failure> {
    let client = &options.client;
    let settings = client.credentials.as_deref().or(client.settings.as_deref());
    let (input, from_stdin) = (batch.input.file.as_deref(), batch.input.file.is_none());
    if from_stdin && settings.is_some_and(is_standard_input) {
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
        .map_err(Failure::usage)?;
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
    let rate = config.rate();
    let client = config.client(batch.workers)?;
    if opened.is_typed() {
        screen::note("the input is read from this terminal; Ctrl-D ends it");
    }
    let (mut results, past) = earlier(&mut opened, batch, true).map_err(Failure::usage)?;
    if let Some(path) = &batch.failed {
        // It is read once more at the end.
        opened.spool().map_err(Failure::usage)?;
        replaceable(path).map_err(|e| {
            Failure::usage(format!(
                "the file {} of --failed cannot be written: {e}",
                path.display()
            ))
        })?;
    }
    let counts = Arc::new(Counts::default());
    let shard = batch.input.shard;
    if let Some(path) = &batch.metrics {
        write_metrics(path, &client, &counts, shard)
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
        metrics: batch.metrics.clone(),
        shard,
        style: progress_style(batch),
        pace: Pace::new(SystemClock.now(), total(&opened, batch, &past), rate),
        course: Default::default(),
    });

    let mut reader = {
        let (past, retry_failed) = (past.clone(), batch.retry_failed);
        let wanted = move |line| past.wants(line, retry_failed);
        Reader::start(lines, wanted, engine.cancel_handle(), batch.verify)
    };
    let mut outcomes = Outcomes {
        past: &past,
        shard,
        results: results.as_mut(),
        counts: &counts,
        failures: Failures::default(),
        bad: HashSet::new(),
        good: HashSet::new(),
        keep_bad: batch.failed.is_some(),
        strict: options.client.audit_strict,
        retry_after: None,
        unwritable: None,
    };
    let report = engine.run_tagged(reader.by_ref(), |digest, outcome| {
        outcomes.take(digest, outcome)
    });
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
    let signal = signals.caught();
    let end = End {
        report: &report,
        failures: &failures,
        lost,
        retry_after,
        signal,
    };
    end.report(options, past.failures(), batch.retry_failed);
    if let Some(path) = &batch.metrics
        && let Err(error) = write_metrics(path, &client, &counts, shard)
    {
        screen::warn(&format!("the file of --metrics cannot be written: {error}"));
    }
    if let Some(path) = &batch.failed {
        let wanted = |line| bad.contains(&line) || past.is_failed(line) && !good.contains(&line);
        write_failed(path, &opened, wanted).map_err(Failure::usage)?;
    }
    if let Some(failure) = unwritable {
        return Err(failure);
    }
    if let Some(error) = reader.failed.take() {
        return Err(Failure::usage(cut(error)));
    }
    let earlier = !batch.retry_failed && past.failures() > 0;
    Ok(match end.exit() {
        Exit::Done | Exit::Failed if lost > 0 => Exit::AuditLost,
        Exit::Done | Exit::Failed if batch.exit_zero => Exit::Done,
        Exit::Done if earlier => Exit::Failed,
        exit => exit,
    })
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
    fn take(&mut self, digest: u64, outcome: &BatchOutcome) -> ControlFlow<()> {
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
            Some(results) => line_of(outcome, digest, outcome.is_final(), self.shard)
                .and_then(|line| results.write(&line))
                .map_err(|e| Failure::usage(format!("the results file cannot be written: {e}"))),
            None => print_line(outcome).map_err(|error| closed(&error, Exit::OutputClosed)),
        };
        let audit = outcome.error.as_ref().map(Error::kind) == Some(ErrorKind::Audit);
        let failure = match written {
            Err(failure) => failure,
            Ok(()) if self.strict && audit => Failure::usage(
                "the audit file cannot be written, and with --audit-strict nothing is sent without \
                 its record: make room and resume",
            ),
            Ok(()) => return ControlFlow::Continue(()),
        };
        self.unwritable.get_or_insert(failure);
        ControlFlow::Break(())
    }
}

/// The input lines that failed, as input for a next run, and the later lines of their
/// conversations: without those a next run would put an older value over a newer one.
fn write_failed(
    path: &Path,
    opened: &Opened<'_>,
    wanted: impl Fn(u64) -> bool,
) -> Result<(), String> {
    let unwritable = |e: io::Error| {
        format!(
            "the file {} of --failed cannot be written: {e}",
            path.display()
        )
    };
    let mut lines = opened.lines()?;
    lines.keep_text();
    let mut too_long = 0u64;
    let mut conversations = HashSet::new();
    replace_private(path, |out| {
        if let Some(header) = lines.header() {
            out.write_all(header)?;
            out.write_all(b"\n")?;
        }
        while let Some(record) = lines.next_record() {
            let is_bad = wanted(record.number);
            if !is_bad && conversations.is_empty() {
                continue;
            }
            let text = record.text.clone();
            let update = lines.read(record).and_then(|line| line.update.ok());
            let conversation =
                update.map(|update| Digest::of(update.target().conversation_id().as_bytes()));
            if is_bad {
                conversations.extend(conversation);
            } else if !conversation.is_some_and(|id| conversations.contains(&id)) {
                continue;
            }
            if text.is_empty() {
                too_long += 1;
                continue;
            }
            out.write_all(&text)?;
            out.write_all(b"\n")?;
        }
        match lines.failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    })
    .map_err(unwritable)?;
    if too_long > 0 {
        screen::warn(&format!(
            "{too_long} lines are too long for the file of --failed"
        ));
    }
    Ok(())
}

/// Reads the input on a thread of its own, so that a batch that stops early does not wait for an
/// input that gives nothing.
struct Reader {
    lines: Receiver<Result<Line, io::Error>>,
    /// Until it was found to have ended.
    thread: Option<JoinHandle<()>>,
    cancel: Cancel,
    verify: bool,
    failed: Option<io::Error>,
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
                if sender.send(Ok(line)).is_err() {
                    return;
                }
            }
            if let Some(error) = lines.failed.take() {
                // Nobody is there to hear it when the batch has stopped.
                let _ = sender.send(Err(error));
            }
        });
        Reader {
            lines: receiver,
            thread: Some(thread),
            cancel,
            verify,
            failed: None,
        }
    }
}

impl Iterator for Reader {
    type Item = (u64, u64, Result<Update, Error>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(line)) => {
                    let update = line
                        .update
                        .map_err(|problem| Error::new(ErrorKind::InvalidInput, problem));
                    let update = match self.verify {
                        true => update.map(Update::verify),
                        false => update,
                    };
                    return Some((line.number, line.digest, update));
                }
                Ok(Err(error)) => {
                    self.failed = Some(error);
                    return None;
                }
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let ended = self.thread.take().map(JoinHandle::join);
                    if let Some(Err(_)) = ended {
                        self.failed = Some(io::Error::other("its reader panicked"));
                    }
                    return None;
                }
            }
        }
    }
}
