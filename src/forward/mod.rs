//! From the audit file to the world: every outcome that was applied is handed to a [`Sink`], at
//! least once and in the order of the file, also when a process died between the write and the
//! delivery.
//!
//! The audit file is the outbox: no second file is written while updating, and no thread runs
//! there. Here is the loop; `log` reads the file through rotations, `cursor` remembers how far it
//! was delivered, `settle` finds out what became of writes whose process died.

pub mod webhook;

mod cursor;
mod log;
mod settle;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ::log::warn;
use serde::Serialize;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::file::private;
use crate::report::audit::parts::is_torn;
use crate::report::audit::{AuditPhase, AuditRecord};
use crate::report::receipt::Status;
use crate::session::retry::{Budget, Patience, Pause, RetryPolicy};
use crate::store::TargetKind;
use crate::util::clock::{Clock, SystemClock, sleep_unless};
use crate::util::random::Seeds;
use crate::util::sync::Cancel;

use cursor::{Cursor, Mark, Pending};
use log::{Found, Log};

/// One event as a [`Sink`] gets it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Envelope<'a> {
    /// The id of the update's audit records: the same when an event is handed over again.
    pub id: &'a str,
    /// The conversation's id.
    pub conversation_id: &'a str,
    /// The [webhook envelope](AuditRecord::webhook_payload), as JSON in one line without an end.
    pub body: &'a [u8],
}

impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("conversation_id", &self.conversation_id)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Why a [`Sink`] did not take an event. `Debug` shows how long a receiver's answer is, not what it
/// says, since it may quote the event.
#[derive(Clone)]
#[non_exhaustive]
pub enum Undelivered {
    /// Another try may help: after a backoff, or after the error's
    /// [`retry_after`](Error::retry_after).
    Later {
        /// What happened.
        error: Error,
        /// The beginning of the receiver's answer.
        answer: String,
    },
    /// It will not be taken, however often it is tried: it goes to the dead letters.
    Never {
        /// What happened.
        error: Error,
        /// The beginning of the receiver's answer.
        answer: String,
    },
    /// The sink takes no more events; the forwarder ends.
    Closed(Error),
}

impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, error, answer) = match self {
            Undelivered::Later { error, answer } => ("Later", error, answer.len()),
            Undelivered::Never { error, answer } => ("Never", error, answer.len()),
            Undelivered::Closed(error) => ("Closed", error, 0),
        };
        f.debug_struct(name)
            .field("error", error)
            .field("answer_bytes", &answer)
            .finish()
    }
}

impl Undelivered {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Undelivered::Later { error, .. }
            | Undelivered::Never { error, .. }
            | Undelivered::Closed(error) => error,
        }
    }
}

/// Where a [`Forwarder`] hands events to: a [`Webhook`](crate::forward::webhook::Webhook), [`EnvelopeLines`], or
/// anything of the caller's, such as a queue's producer.
pub trait Sink: Send {
    /// Hands one event over. With `Ok` it counts as delivered, for good.
    ///
    /// # Errors
    ///
    /// Why it was not taken, and whether another try may help.
    fn hand_over(&mut self, envelope: &Envelope<'_>) -> std::result::Result<(), Undelivered>;
}

/// A [`Sink`] that writes each envelope as a line of JSON, flushed before it counts as delivered.
///
/// ```
/// use genesys_attributes::forward::{EnvelopeLines, Forwarder};
///
/// let to_stdout = Forwarder::new("audit.jsonl", EnvelopeLines::new(std::io::stdout()));
/// ```
pub struct EnvelopeLines<W>(W);

impl<W> fmt::Debug for EnvelopeLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvelopeLines").finish_non_exhaustive()
    }
}

impl<W: Write + Send> EnvelopeLines<W> {
    /// A sink that writes to `writer`.
    pub fn new(writer: W) -> EnvelopeLines<W> {
        EnvelopeLines(writer)
    }
}

impl<W: Write + Send> Sink for EnvelopeLines<W> {
    fn hand_over(&mut self, envelope: &Envelope<'_>) -> std::result::Result<(), Undelivered> {
        let line = [envelope.body, b"\n"].concat();
        let written = self.0.write_all(&line).and_then(|()| self.0.flush());
        written.map_err(|e| {
            Undelivered::Closed(
                Error::new(
                    ErrorKind::Transport,
                    "the events cannot be written: their reader has gone, or there is no space",
                )
                .with_source(e),
            )
        })
    }
}

/// What a [`Forwarder`] did. As JSON its fields are in camel case, `lagSeconds` in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ForwardReport {
    /// Events delivered.
    pub delivered: u64,
    /// How often an event was sent again because it failed or its answer was lost.
    pub repeated: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
    /// Lines that are no whole record, and were skipped.
    pub torn: u64,
    /// Writes of processes that died, for which an outcome was found and appended to the log.
    pub settled: u64,
    /// Intents without an outcome yet, the orphans included.
    pub pending: u64,
    /// Intents without an outcome whose writer has gone: nobody but a settling forwarder will
    /// give them one.
    pub orphans: Vec<Orphan>,
    /// The age of the oldest record that is not delivered yet; zero when there is none.
    #[serde(rename = "lagSeconds", serialize_with = "in_seconds")]
    pub lag: Duration,
}

fn in_seconds<S: serde::Serializer>(
    lag: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(lag.as_millis() as f64 / 1_000.0)
}

/// A write of which nobody knows whether it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Orphan {
    /// The id of the audit record.
    pub id: String,
    /// The conversation's id.
    pub conversation_id: String,
    /// The kind of the target.
    pub target: TargetKind,
    /// When the write was about to be sent.
    #[serde(with = "crate::util::date::text")]
    pub timestamp: SystemTime,
    /// Why it is not known.
    pub why: String,
}

/// Reads an audit file from where it was left, and hands every outcome that was applied to a
/// [`Sink`], in the order of the file.
///
/// What it promises: each event at least once, in the order of the log, which for each conversation
/// is the order of the writes. An event is sent again when its answer was lost; after a crash of
/// the forwarder those since its cursor was written last are (100 at most, or those of 1 s and the
/// delivery under way); and a rotation may repeat one. The `webhook-id` tells repeats. What is not taken is tried again with backoff, and what comes after
/// it waits.
///
/// It needs a log with values ([`audit_values`](crate::ClientBuilder::audit_values)), best written
/// by [`AuditFile`](crate::report::audit::AuditFile). Updates of secure attributes are events with
/// `updatedKeys` alone, unless the log holds their values and
/// [`secure_values`](Forwarder::secure_values) asks for them. Files that were renamed
/// (`audit.jsonl.1`, or any other name in the same folder that begins with the log's) are read to
/// their end first, also when the forwarder was down meanwhile; compress them only later
/// (`delaycompress`). The first run begins with the file that has the log's name.
///
/// ```
/// use genesys_attributes::Cancel;
/// use genesys_attributes::forward::Forwarder;
/// use genesys_attributes::webhook::Webhook;
///
/// # let folder = std::env::temp_dir().join(format!("forward-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let log = folder.join("audit.jsonl");
/// # std::fs::write(&log, "")?;
/// let webhook = Webhook::new("https://crm.example/hooks/genesys")?;
/// let report = Forwarder::new(&log, webhook).run(&Cancel::new())?;
/// assert_eq!(report.delivered, 0);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// On a thread of the caller's, for as long as the program runs:
///
/// ```no_run
/// # use genesys_attributes::{Cancel, forward::Forwarder, webhook::Webhook};
/// # let webhook = Webhook::new("https://crm.example/hooks/genesys")?;
/// let cancel = Cancel::new();
/// let until = cancel.clone();
/// let forwarding = std::thread::spawn(move || {
///     Forwarder::new("audit.jsonl", webhook).follow(true).run(&until)
/// });
/// // … updates …
/// cancel.cancel();
/// let report = forwarding.join();
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[must_use = "a forwarder does nothing until it is run"]
pub struct Forwarder {
    log: PathBuf,
    cursor: PathBuf,
    dead_letters: PathBuf,
    sink: Box<dyn Sink>,
    max_attempts: Option<u32>,
    follow: bool,
    settle: Option<Client>,
    secure_values: bool,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    progress: Box<dyn FnMut(&ForwardReport) + Send>,
}

/// The cursor is written after this many deliveries at the latest, or this much time.
const SAVE_EVERY: u32 = 100;
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// How often a file that has no more is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How old an intent is before what became of it is read.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// How long a write that could not be settled is left alone.
const SETTLE_AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked whether anybody writes the log, while there are intents without outcome.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often progress is told during a long wait.
const TELL_EVERY: Duration = Duration::from_secs(5);

impl Forwarder {
    /// A forwarder of the audit file `log`. Its cursor is `log` with `.cursor` after it, its dead
    /// letters `log` with `.dead` after it.
    pub fn new(log: impl Into<PathBuf>, sink: impl Sink + 'static) -> Forwarder {
        let log = log.into();
        Forwarder {
            cursor: beside(&log, ".cursor"),
            dead_letters: beside(&log, ".dead"),
            log,
            sink: Box::new(sink),
            max_attempts: None,
            follow: false,
            settle: None,
            secure_values: false,
            policy: RetryPolicy::default()
                .with_backoff(Duration::from_millis(100), Duration::from_secs(30))
                .with_max_retry_after(Duration::from_secs(86_400)),
            clock: Arc::new(SystemClock),
            progress: Box::new(|_| {}),
        }
    }

    /// Remembers there how far the log was delivered. Each sink of one log needs a cursor of its
    /// own. It holds the intents that have no outcome yet, with their values.
    pub fn cursor(mut self, path: impl Into<PathBuf>) -> Forwarder {
        self.cursor = path.into();
        self
    }

    /// Writes what the sink does not take there, as JSON lines of `record` (the audit record),
    /// `status` and `body` (the first 200 characters of the answer).
    pub fn dead_letters(mut self, path: impl Into<PathBuf>) -> Forwarder {
        self.dead_letters = path.into();
        self
    }

    /// Gives an event up after this many tries, at least 1, and writes it to the dead letters.
    /// Default: never, so that a receiver that is down holds up what comes after, and nothing is
    /// lost.
    pub fn max_attempts(mut self, attempts: u32) -> Forwarder {
        self.max_attempts = Some(attempts.max(1));
        self
    }

    /// Sets the first and the longest backoff after a failed delivery; the wait is a random part
    /// of it. Default 0.1 s and 30 s. [`run`](Forwarder::run) checks them.
    pub fn backoff(mut self, base: Duration, max: Duration) -> Forwarder {
        self.policy = self.policy.with_backoff(base, max);
        self
    }

    /// Waits for more at the end of the log, until it is cancelled. Default: end there.
    pub fn follow(mut self, follow: bool) -> Forwarder {
        self.follow = follow;
        self
    }

    /// Finds out what became of writes whose process died before their outcome was recorded, by
    /// reading their targets through this client: one try of 5 s at most each. Where the values
    /// are in place, an outcome `alreadyApplied` is appended to the log, and its event is forwarded
    /// with `settled: true` and without a version; else an outcome `failed`.
    ///
    /// That a process has died shows when nobody writes the log, or by the record
    /// [`Opened`](AuditPhase::Opened) of one that began to write when nobody did. There the write
    /// is settled before what comes after it is forwarded, so that its event keeps its place; what
    /// cannot be read then is tried again later, every 30 s. A write is left alone for 3 s after
    /// its intent, since a request may outlive its sender.
    pub fn settle(mut self, client: Client) -> Forwarder {
        self.settle = Some(client);
        self
    }

    /// Puts the values of secure attributes into events and dead letters, where the log holds them;
    /// otherwise they have only the keys. Default: no.
    pub fn secure_values(mut self, include: bool) -> Forwarder {
        self.secure_values = include;
        self
    }

    /// Takes the time from another clock; for tests.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Forwarder {
        self.clock = Arc::new(clock);
        self
    }

    /// Is told how far it is, each time the cursor is written, at the end of the log, every few
    /// seconds of a longer wait, and when the run ends, also by an error.
    pub fn on_progress(
        mut self,
        progress: impl FnMut(&ForwardReport) + Send + 'static,
    ) -> Forwarder {
        self.progress = Box::new(progress);
        self
    }

    /// Forwards what is there, or with [`follow`](Forwarder::follow) what comes until `cancel` is
    /// set. Whatever ends it, what was delivered is not delivered again by the next run.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, before anything is delivered or the cursor moves, when the file is no audit
    /// log, is shorter than the cursor says, or is another than the cursor's, or when another
    /// forwarder uses the cursor; at the first record without values, before that one. `Config`
    /// for a wrong backoff. `Audit` when a file cannot be read or written. The error of a sink
    /// that takes no more, and of a settling client whose credentials are refused.
    pub fn run(&mut self, cancel: &Cancel) -> Result<ForwardReport> {
        self.policy.check()?;
        let _lock = cursor::lock(&self.cursor)?;
        let mut known = Cursor::read(&self.cursor)?;
        let Some(log) = self.open(&mut known, cancel)? else {
            return Ok(ForwardReport::default());
        };
        let now = self.clock.now();
        let is_new = known.is_none();
        let (pending, told) = known
            .map(|cursor| (cursor.pending, cursor.told))
            .unwrap_or_default();
        let mut run = Run {
            report: ForwardReport::default(),
            pending,
            told,
            log,
            peeked: None,
            unsaved: 0,
            moved: false,
            is_new,
            saved_at: now,
            looked_at: None,
            waiting: None,
            unknown: Vec::new(),
            unknown_since: now,
            seeds: Seeds::new(None),
            cancel,
            of: self,
        };
        let ended = run.until_done();
        let saved = run.save();
        if ended.is_ok() {
            // A cancelled run has not looked at what is left.
            let _ = run.find_orphans();
        }
        run.tell();
        let report = run.report;
        ended.and(saved)?;
        Ok(report)
    }

    /// Opens the log, whose first writer may come later; `None` when that was cancelled.
    fn open(&self, known: &mut Option<Cursor>, cancel: &Cancel) -> Result<Option<Log>> {
        loop {
            match Log::open(&self.log, known.as_ref())? {
                None if !self.follow => return Err(log::unopened(&self.log)),
                None => {}
                log => return Ok(log),
            }
            if known.is_none() {
                // What comes from now on is read, also when it is renamed before it is seen.
                let left = log::renamed(&self.log)?;
                let cursor = known.insert(Cursor::at(Mark::default(), &left, &[], &[]));
                cursor.write(&self.cursor)?;
            }
            if sleep_unless(self.clock.as_ref(), POLL, Some(cancel)).is_err() {
                return Ok(None);
            }
        }
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder")
            .field("log", &self.log)
            .field("cursor", &self.cursor)
            .field("follow", &self.follow)
            .finish_non_exhaustive()
    }
}

/// One run of a forwarder. Dropping it writes nothing: a crash is no different.
struct Run<'r> {
    of: &'r mut Forwarder,
    cancel: &'r Cancel,
    log: Log,
    /// Read while the locks were held, and still to be handled.
    peeked: Option<Found>,
    pending: Vec<Pending>,
    /// What was settled and delivered, and whose outcome is still to be read.
    told: Vec<String>,
    report: ForwardReport,
    /// Deliveries since the cursor was written.
    unsaved: u32,
    moved: bool,
    /// There is no cursor yet.
    is_new: bool,
    saved_at: Instant,
    /// When it was looked last whether anybody writes.
    looked_at: Option<Instant>,
    /// When the record that waits for delivery was made.
    waiting: Option<SystemTime>,
    /// Orphans that could not be settled, with the reason.
    unknown: Vec<(String, String)>,
    unknown_since: Instant,
    seeds: Seeds,
}

impl Run<'_> {
    fn until_done(&mut self) -> Result<()> {
        while !self.cancel.is_cancelled() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == ErrorKind::Cancelled => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and handles one line, or waits for more; `false` at the end.
    fn step(&mut self) -> Result<bool> {
        // The cursor stands behind what is handled now only when that is done.
        let found = match self.peeked.take() {
            Some(found) => found,
            None => self.log.next()?,
        };
        match found {
            Found::Record(record) => self.handle(*record)?,
            Found::Torn { offset, bytes } => {
                self.report.torn += 1;
                warn!(
                    "{}: the {bytes} bytes at offset {offset} are no whole record: skipped",
                    self.log.path().display()
                );
            }
            Found::End => return self.at_the_end(),
        }
        self.moved |= self.log.passed();
        let late = || self.of.clock.now().saturating_duration_since(self.saved_at);
        if self.unsaved >= SAVE_EVERY || self.unsaved > 0 && late() >= SAVE_AFTER {
            self.save()?;
            self.tell();
        }
        Ok(true)
    }

    fn at_the_end(&mut self) -> Result<bool> {
        self.waiting = None;
        self.moved |= self.log.passed();
        self.begin()?;
        self.save()?;
        let now = self.of.clock.now();
        let is_due = |at| now.saturating_duration_since(at) >= LOOK_EVERY;
        if !self.of.follow || self.looked_at.is_none_or(is_due) {
            self.looked_at = Some(now);
            self.find_orphans()?;
        }
        if self.peeked.is_some() || self.settle()? {
            return Ok(true);
        }
        self.tell();
        if !self.of.follow {
            return Ok(false);
        }
        sleep_unless(self.of.clock.as_ref(), POLL, Some(self.cancel))?;
        Ok(true)
    }

    fn handle(&mut self, record: AuditRecord) -> Result<()> {
        match record.phase {
            AuditPhase::Opened => {
                self.orphan_all(true);
                return self.settle_all();
            }
            AuditPhase::Intent => {
                // Before anything is delivered, rather than at its outcome.
                self.check_values(&record)?;
                self.forget(&record.id);
                self.pending.push(Pending::new(record));
                return Ok(());
            }
            AuditPhase::Outcome => {}
        }
        if let Some(at) = self.told.iter().position(|id| *id == record.id) {
            self.told.remove(at);
        } else if is_applied(&record) {
            self.deliver(&record)?;
        }
        for pending in &mut self.pending {
            pending.superseded |= settle::rules_out(&record, &pending.record);
        }
        self.decided(&record);
        self.forget(&record.id);
        Ok(())
    }

    /// It is pending no longer.
    fn forget(&mut self, id: &str) {
        self.pending.retain(|pending| pending.record.id != id);
    }

    fn check_values(&self, record: &AuditRecord) -> Result<()> {
        if record.attributes.is_some() || record.target == TargetKind::Secure {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: the record at offset {} holds no values: write the log with audit_values \
                 (--audit-values). To go on without what was written so far, rename the log, so \
                 that a new one is begun, and remove the cursor {}",
                self.log.path().display(),
                self.log.start(),
                self.of.cursor.display()
            ),
        ))
    }

    fn deliver(&mut self, record: &AuditRecord) -> Result<()> {
        self.check_values(record)?;
        let keys_only;
        let record = match record.target {
            TargetKind::Secure if !self.of.secure_values => {
                keys_only = AuditRecord {
                    attributes: None,
                    ..record.clone()
                };
                &keys_only
            }
            _ => record,
        };
        self.begin()?;
        self.waiting = Some(record.timestamp);
        let body = record.webhook_payload().to_string();
        let envelope = Envelope {
            id: &record.id,
            conversation_id: &record.conversation_id,
            body: body.as_bytes(),
        };
        let mut attempts = 0;
        let mut budget = Budget::new(
            self.of.policy,
            Patience::Deadline,
            Duration::ZERO,
            self.seeds.next(),
        );
        loop {
            attempts += 1;
            let (error, answer, is_final) = match self.of.sink.hand_over(&envelope) {
                Ok(()) => {
                    self.report.delivered += 1;
                    self.unsaved += 1;
                    return Ok(());
                }
                Err(Undelivered::Closed(error)) => return Err(error),
                Err(Undelivered::Later { error, answer }) => (error, answer, false),
                Err(Undelivered::Never { error, answer }) => (error, answer, true),
            };
            if is_final || self.of.max_attempts.is_some_and(|most| attempts >= most) {
                warn!("event {} goes to the dead letters: {error}", record.id);
                self.bury(record, &error, &answer)?;
                self.report.dead += 1;
                self.unsaved += 1;
                return Ok(());
            }
            let asked = error.retry_after();
            let pause = match asked {
                Some(_) => Pause::Throttled {
                    retry_after: asked,
                    limited: true,
                },
                None => Pause::Backoff { attempts },
            };
            // Without a deadline there is always a wait.
            let delay = budget.pause(pause, self.of.clock.now()).unwrap_or(POLL);
            warn!("event {} is sent again in {delay:?}: {error}", record.id);
            // It may last: what was delivered before is remembered first.
            self.save_delivered()?;
            self.tell();
            let mut left = delay;
            while !left.is_zero() {
                let step = left.min(TELL_EVERY);
                sleep_unless(self.of.clock.as_ref(), step, Some(self.cancel))?;
                left -= step;
                self.tell();
            }
            self.report.repeated += 1;
        }
    }

    /// The first cursor is written before anything is delivered, and where there is nothing to:
    /// it says from where on everything is read, also when it is renamed.
    fn begin(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_new) {
            self.moved = true;
            self.save()?;
        }
        Ok(())
    }

    fn save_delivered(&mut self) -> Result<()> {
        match self.unsaved {
            0 => Ok(()),
            _ => self.save(),
        }
    }

    fn bury(&self, record: &AuditRecord, error: &Error, answer: &str) -> Result<()> {
        #[derive(Serialize)]
        struct DeadLetter<'a> {
            record: &'a AuditRecord,
            status: Option<u16>,
            body: &'a str,
            error: String,
        }
        let letter = DeadLetter {
            record,
            status: error.http_status(),
            body: answer,
            error: error.to_string(),
        };
        let path = &self.of.dead_letters;
        let write = || -> std::io::Result<()> {
            let mut file = private().read(true).append(true).create(true).open(path)?;
            let found = file.metadata()?;
            let mut line = Vec::new();
            if found.is_file() && is_torn(&file, found.len())? {
                line.push(b'\n');
            }
            serde_json::to_writer(&mut line, &letter)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_data()
        };
        write().map_err(|e| failed("the dead letters", path, "written", e))
    }

    /// Writes the cursor, where it moved.
    fn save(&mut self) -> Result<()> {
        if !self.moved {
            return Ok(());
        }
        let (mark, left) = self.log.done();
        Cursor::at(mark, left, &self.pending, &self.told).write(&self.of.cursor)?;
        self.moved = false;
        self.unsaved = 0;
        self.saved_at = self.of.clock.now();
        Ok(())
    }

    fn tell(&mut self) {
        self.count();
        (self.of.progress)(&self.report);
    }

    fn count(&mut self) {
        self.report.pending = self.pending.len() as u64;
        let orphans = self.pending.iter().filter(|pending| pending.is_orphan());
        self.report.orphans = orphans.map(|one| self.orphan(&one.record)).collect();
        let age = |since| self.of.clock.wall().duration_since(since);
        self.report.lag = self
            .waiting
            .and_then(|since| age(since).ok())
            .unwrap_or_default();
    }

    fn orphan(&self, record: &AuditRecord) -> Orphan {
        let known = self.unknown.iter().find(|(id, _)| *id == record.id);
        Orphan {
            id: record.id.to_string(),
            conversation_id: record.conversation_id.to_string(),
            target: record.target,
            timestamp: record.timestamp,
            why: match known {
                Some((_, why)) => why.clone(),
                None => "its process died before the outcome was recorded".to_owned(),
            },
        }
    }
}

fn is_applied(outcome: &AuditRecord) -> bool {
    matches!(outcome.status, Status::Applied | Status::AlreadyApplied)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// The error of a file that the forwarder works with.
fn failed(what: &str, path: &Path, be: &str, error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Audit,
        format!(
            "{what} {} cannot be {be}: check it and its folder",
            path.display()
        ),
    )
    .with_source(error)
}
