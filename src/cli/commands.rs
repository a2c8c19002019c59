//! What each command does.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use genesys_attributes::{
    BatchOutcome, BatchReport, BatchStatus, Cancel, Client, ClientBuilder, Error, ErrorKind,
    JsonLines, LineError, RateLimit, StopReason, Target, Update,
};
use serde::Serialize;

use super::args::{Batch, Command, Input, Options};
use super::input::{self, Line, Lines, Source};
use super::progress::{self, Progress};
use super::results::{self, Past, Results};

/// The exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    Stopped,
    OutputClosed,
    RateLimited,
    /// Nobody reads what is printed any more, which is no failure.
    Quiet,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Exit::Done | Exit::Quiet => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Stopped => 3,
            Exit::OutputClosed => 4,
            Exit::RateLimited => 5,
        })
    }
}

/// Why a command ends without its result.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// The library's error, for machines.
    pub(crate) error: Option<Box<Error>>,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure {
            exit: Exit::Usage,
            message: message.into(),
            error: None,
        }
    }

    /// Says why on standard error, unless nobody is to be told.
    pub(crate) fn tell(&self, as_json: bool) {
        match &self.error {
            _ if self.exit == Exit::Quiet => {}
            Some(error) if as_json => {
                if let Ok(text) = serde_json::to_string(error) {
                    eprintln!("{text}");
                }
            }
            _ => eprintln!("genesys-attributes: {}", self.message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = match error.kind() {
            ErrorKind::Config => Exit::Usage,
            _ => Exit::Failed,
        };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message += &format!("\n  because: {error}");
            cause = error.source();
        }
        Failure {
            exit,
            message,
            error: Some(Box::new(error)),
        }
    }
}

type Run = Result<Exit, Failure>;

/// Prints text that ends a command. A closed pipe ends it quietly.
pub(crate) fn print(text: &str) -> Run {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(closed(&error, Exit::Quiet)),
    }
}

fn closed(error: &io::Error, exit: Exit) -> Failure {
    let exit = match error.kind() {
        io::ErrorKind::BrokenPipe => exit,
        _ => Exit::Usage,
    };
    Failure {
        exit,
        message: format!("standard output cannot be written: {error}"),
        error: None,
    }
}

fn print_json(value: &impl Serialize) -> Run {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}

pub(crate) fn run(options: &Options) -> Run {
    match &options.command {
        Command::Update(update) => run_update(options, update),
        Command::Get(target) => get(options, target),
        Command::Batch(batch) if batch.dry_run => dry_run(options, batch),
        Command::Batch(batch) => run_batch(options, batch),
        Command::Validate(input) => {
            validate(options, Opened::of(input)?.lines()?, |_| true).map(|(exit, _)| exit)
        }
        Command::Check => check(options),
    }
}

/// The client that the settings and options make.
fn client(options: &Options, workers: usize) -> Result<Client, Failure> {
    let mut builder = match &options.credentials {
        None => ClientBuilder::from_env()?,
        Some(path) => {
            let settings = settings(path)?;
            ClientBuilder::from_variables(|name| Ok(settings.get(name).cloned()))?
        }
    };
    if let Some(per_minute) = options.rate {
        builder = builder.rate_limit(match per_minute {
            0 => RateLimit::unlimited(),
            n => RateLimit::per_minute(n),
        });
    }
    if let Some(path) = &options.audit {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| {
                Failure::usage(format!(
                    "the audit file {} cannot be opened: {e}",
                    path.display()
                ))
            })?;
        builder = builder.audit(JsonLines::new(file));
    }
    Ok(builder.max_idle_connections(workers.max(4)).build()?)
}

/// `NAME=VALUE` lines, as a shell would read them: `export`, quotes and comments are understood.
fn settings(path: &Path) -> Result<HashMap<String, String>, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("the settings file {shown} cannot be read: {e}")))?;
    let mut settings = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        // The line itself may hold a secret: only its number is told.
        let (name, value) = line.split_once('=').ok_or_else(|| {
            Failure::usage(format!("line {} of {shown} is not NAME=VALUE", index + 1))
        })?;
        let value = value.trim();
        let unquoted = ['"', '\'']
            .iter()
            .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        settings.insert(name.trim().to_owned(), unquoted.unwrap_or(value).to_owned());
    }
    Ok(settings)
}

fn run_update(options: &Options, update: &Update) -> Run {
    // What is wrong with the update is told without any settings.
    update.validate()?;
    let receipt = client(options, 1)?.update(update)?;
    if options.json {
        return print_json(&receipt);
    }
    let mut text = format!("{}: {}", receipt.outcome.name(), receipt.conversation_id);
    if let Some(item) = &receipt.item {
        text += &format!(" / {item}");
    }
    match (&receipt.version, &receipt.previous_version) {
        (Some(now), Some(before)) if now != before => {
            text += &format!(", version {now} (was {before})");
        }
        (Some(now), _) => text += &format!(", version {now}"),
        (None, _) => {}
    }
    text += &format!(
        ", {} writes, {} requests, {:.0?}\n",
        receipt.attempts, receipt.requests, receipt.latency
    );
    print(&text)
}

fn get(options: &Options, target: &Target) -> Run {
    print_json(&client(options, 1)?.read(target)?)
}

fn check(options: &Options) -> Run {
    let identity = client(options, 1)?.verify_credentials()?;
    if options.json {
        return print_json(&identity);
    }
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    print(&format!(
        "The settings are complete and the login works.\n\
         organization: {} ({})\nOAuth client: {} ({})\ntoken until:  {}\n",
        or_unknown(&identity.organization_name),
        or_unknown(&identity.organization_id),
        or_unknown(&identity.client_name),
        or_unknown(&identity.client_id),
        or_unknown(&identity.expires_at),
    ))
}

/// An input that can be read from its beginning again, if it is a file.
struct Opened<'a> {
    input: &'a Input,
    spool: Option<File>,
}

impl<'a> Opened<'a> {
    fn of(input: &'a Input) -> Result<Opened<'a>, Failure> {
        let opened = Opened { input, spool: None };
        // Told at once, rather than after the settings are checked. A pipe is opened only once:
        // what one reader has taken out of it, the next does not see.
        if !opened.is_stream() {
            if input.file.as_ref().is_some_and(|path| path.is_dir()) {
                return Err(Failure::usage(format!(
                    "the input {} cannot be read: it is a directory",
                    opened.name()
                )));
            }
            opened.source()?;
        }
        Ok(opened)
    }

    /// Whether it can be read only once: standard input, a named pipe, a process substitution.
    fn is_stream(&self) -> bool {
        match &self.input.file {
            None => true,
            Some(path) => {
                std::fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir())
            }
        }
    }

    /// Keeps such an input in a file, so that it can be read more than once.
    fn spool(&mut self) -> Result<(), Failure> {
        if self.is_stream() && self.spool.is_none() {
            self.spool = Some(input::spooled(self.source()?).map_err(|e| {
                Failure::usage(format!(
                    "the input {} cannot be kept for a resume: {e}",
                    self.name()
                ))
            })?);
        }
        Ok(())
    }

    fn source(&self) -> Result<Source, Failure> {
        let opened = match &self.spool {
            Some(spool) => spool.try_clone().and_then(|mut file| {
                file.seek(SeekFrom::Start(0))?;
                Ok(Box::new(BufReader::with_capacity(1 << 16, file)) as Source)
            }),
            None => input::open(self.input.file.as_deref()),
        };
        opened.map_err(|e| Failure::usage(format!("the input {} cannot be read: {e}", self.name())))
    }

    fn lines(&self) -> Result<Lines, Failure> {
        let source = self.source()?;
        if self.input.csv {
            Lines::csv(source).map_err(Failure::usage)
        } else {
            Ok(Lines::json(source))
        }
    }

    fn name(&self) -> String {
        match &self.input.file {
            Some(path) => path.display().to_string(),
            None => "from standard input".into(),
        }
    }

    /// How many lines there are, where that can be known without waiting for them.
    fn count(&self) -> Option<u64> {
        let mut file = match (&self.spool, &self.input.file) {
            (Some(spool), _) => spool.try_clone().ok()?,
            (None, Some(path)) if !self.is_stream() => File::open(path).ok()?,
            _ => return None,
        };
        let regular = file.metadata().is_ok_and(|data| data.is_file());
        let header = u64::from(self.input.csv);
        regular
            .then(|| input::count_lines(&mut file).ok())
            .flatten()
            .map(|lines| lines.saturating_sub(header))
    }
}

/// Checks every wanted line without any network, and prints those that would be refused. Gives
/// the number of lines that would be sent, too.
fn validate(
    options: &Options,
    mut lines: Lines,
    wanted: impl Fn(u64) -> bool,
) -> Result<(Exit, u64), Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Refused<'a> {
        line: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        conversation_id: Option<&'a str>,
        status: BatchStatus,
        error: Error,
    }

    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut valid, mut refused) = (0u64, 0u64);
    for line in lines.wanted(wanted) {
        let result = match &line.update {
            Ok(update) => update.validate(),
            Err(problem) => Err(Error::new(ErrorKind::InvalidInput, problem.to_string())),
        };
        let Err(error) = result else {
            valid += 1;
            continue;
        };
        refused += 1;
        let record = Refused {
            line: line.number,
            conversation_id: line
                .update
                .as_ref()
                .ok()
                .map(|update| update.target().conversation_id()),
            status: BatchStatus::Failed,
            error,
        };
        let written = serde_json::to_writer(&mut out, &record)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        if let Err(error) = written {
            return Err(closed(&error, Exit::Quiet));
        }
    }
    out.flush().map_err(|error| closed(&error, Exit::Quiet))?;
    fail_if_cut(&mut lines.failed)?;
    if options.json {
        let summary = serde_json::json!({ "valid": valid, "refused": refused });
        eprintln!("{summary}");
    } else if progress::is_watched() {
        eprintln!("{valid} lines are valid, {refused} would be refused");
    }
    let exit = if refused == 0 {
        Exit::Done
    } else {
        Exit::Failed
    };
    Ok((exit, valid))
}

fn fail_if_cut(failed: &mut Option<io::Error>) -> Result<(), Failure> {
    match failed.take() {
        None => Ok(()),
        Some(error) => Err(Failure::usage(format!(
            "the input could not be read to its end: {error}"
        ))),
    }
}

/// The results file, and what earlier runs left in it.
fn resumed(opened: &mut Opened<'_>, batch: &Batch) -> Result<(Option<Results>, Past), Failure> {
    let path = match &batch.results {
        Some(path) if !batch.dry_run || path.exists() => path,
        _ => return Ok((None, Past::default())),
    };
    let mut results = Results::open(path, batch.resume).map_err(Failure::usage)?;
    let mut past = results.past().map_err(Failure::usage)?;
    if !past.is_empty() {
        opened.spool()?;
        let lines = || opened.lines().map_err(|failure| failure.message);
        results.check(&past, lines).map_err(Failure::usage)?;
        if batch.retry_failed && !batch.dry_run {
            results
                .reopen_after_failed(&mut past, opened.lines()?)
                .map_err(Failure::usage)?;
        }
    }
    Ok((Some(results), past))
}

fn dry_run(options: &Options, batch: &Batch) -> Run {
    let mut opened = Opened::of(&batch.input)?;
    let (_results, past) = resumed(&mut opened, batch)?;
    let (exit, valid) = validate(options, opened.lines()?, |line| {
        past.wants(line, batch.retry_failed)
    })?;
    eprintln!("{valid} updates would be sent");
    Ok(exit)
}

/// Refuses one file for two purposes, which would spoil it.
fn files_differ(options: &Options, batch: &Batch) -> Result<(), Failure> {
    let files = [
        ("the input", &batch.input.file),
        ("--results", &batch.results),
        ("--audit", &options.audit),
    ];
    for (index, (name, file)) in files.iter().enumerate() {
        for (other_name, other) in &files[index + 1..] {
            if let (Some(file), Some(other)) = (file, other)
                && (file == other
                    || matches!((file.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b))
            {
                return Err(Failure::usage(format!(
                    "{name} and {other_name} are the same file: {}",
                    file.display()
                )));
            }
        }
    }
    Ok(())
}

fn run_batch(options: &Options, batch: &Batch) -> Run {
    files_differ(options, batch)?;
    let mut opened = Opened::of(&batch.input)?;
    let client = client(options, batch.workers)?;
    let (mut results, past) = resumed(&mut opened, batch)?;
    let lines = opened.lines()?;
    let total = progress::is_watched()
        .then(|| opened.count())
        .flatten()
        .map(|lines| lines.saturating_sub(past.settled(batch.retry_failed)));
    // Where the outcomes themselves scroll by on the terminal, a line that moves would mix with them.
    let mut progress = (batch.results.is_some() || !io::stdout().is_terminal())
        .then(|| Progress::start(total))
        .flatten();

    let mut engine = genesys_attributes::Batch::new(&client).workers(batch.workers);
    if let Some(failures) = batch.stop_after {
        engine = engine.stop_after(failures);
    }
    let mut unwritable: Option<Failure> = None;
    let past = Arc::new(past);
    let wanted = {
        let (past, retry_failed) = (past.clone(), batch.retry_failed);
        move |line| past.wants(line, retry_failed)
    };
    let mut lines = Reader::start(lines, wanted, engine.cancel_handle());
    let report = engine.run_tagged(lines.by_ref(), |digest, outcome| {
        if let Some(progress) = &mut progress {
            progress.count(outcome);
        }
        match write_outcome(&mut results, outcome, digest) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                unwritable.get_or_insert(failure);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(progress) = progress {
        progress.end();
    }
    if let Some(results) = &results
        && let Err(error) = results.sync()
    {
        eprintln!("genesys-attributes: the results may not survive a loss of power: {error}");
    }
    summarize(options, &report);
    if let Some(failure) = unwritable {
        return Err(failure);
    }
    fail_if_cut(&mut lines.failed)?;
    let earlier = if batch.retry_failed {
        0
    } else {
        past.failures()
    };
    if earlier > 0 {
        eprintln!(
            "genesys-attributes: {earlier} lines failed for good in an earlier run; \
             --retry-failed runs them again"
        );
    }
    Ok(match exit_of(&report) {
        Exit::Done if earlier > 0 => Exit::Failed,
        exit => exit,
    })
}

/// Reads the input on a thread of its own, so that a batch that stops early does not wait for an
/// input that gives nothing.
struct Reader {
    lines: Receiver<Result<Line, io::Error>>,
    /// Until it was found to have ended.
    thread: Option<JoinHandle<()>>,
    cancel: Cancel,
    failed: Option<io::Error>,
}

impl Reader {
    fn start(
        mut lines: Lines,
        wanted: impl Fn(u64) -> bool + Send + 'static,
        cancel: Cancel,
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
            failed: None,
        }
    }
}

impl Iterator for Reader {
    type Item = (u64, u64, Result<Update, LineError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(line)) => return Some((line.number, line.digest, line.update)),
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

/// Each outcome is one write, so that a crash tears the last line at most.
fn write_outcome(
    results: &mut Option<Results>,
    outcome: &BatchOutcome,
    digest: u64,
) -> Result<(), Failure> {
    match results {
        Some(results) => results::line_of(outcome, digest)
            .and_then(|line| results.write(&line))
            .map_err(|e| Failure::usage(format!("the results file cannot be written: {e}"))),
        None => serde_json::to_vec(outcome)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            })
            .map_err(|error| closed(&error, Exit::OutputClosed)),
    }
}

fn summarize(options: &Options, report: &BatchReport) {
    if options.json {
        if let Ok(text) = serde_json::to_string(report) {
            eprintln!("{text}");
        }
    } else if progress::is_watched() {
        eprint!("{}", progress::summary(report));
    }
    let why = match report.stopped {
        None | Some(StopReason::Break | StopReason::Cancelled) => return,
        Some(StopReason::Failures) => "as many lines failed as --stop-after allows",
        Some(StopReason::Auth) => "the credentials were refused",
        Some(StopReason::Forbidden) => {
            "the first 20 results were all the same refusal (once it is mended, --retry-failed \
             runs them again)"
        }
        Some(StopReason::RateLimited) => {
            "the platform asks to wait for longer than is waited for; run the same command later"
        }
        Some(_) => "it could not go on",
    };
    eprintln!("genesys-attributes: stopped early: {why}; lines without an outcome were not sent");
}

fn exit_of(report: &BatchReport) -> Exit {
    match report.stopped {
        Some(StopReason::RateLimited) => Exit::RateLimited,
        Some(_) => Exit::Stopped,
        None if report.is_complete() => Exit::Done,
        None => Exit::Failed,
    }
}
