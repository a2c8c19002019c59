//! From the audit file to the world: every outcome that was applied is handed to a [`Sink`], at
//! least once and in the order of the file, also when a process died between the write and the
//! delivery.
//!
//! The audit file is the outbox: no second file is written while updating, and no thread runs
//! there. `run` has the loop; `log` reads the file through rotations, `cursor` remembers how far it
//! was delivered, `settle` finds out what became of writes whose process died.

pub mod webhook;

mod cursor;
mod log;
mod run;
mod settle;
mod sink;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::parts::beside;
use crate::session::retry::RetryPolicy;
use crate::util::clock::{Clock, SystemClock};
use crate::util::sync::Cancel;

pub use sink::{Envelope, EnvelopeLines, ForwardReport, Orphan, Sink, Undelivered};

/// Reads an audit file from where it was left, and hands every outcome that was applied to a
/// [`Sink`], in the order of the file.
///
/// What it promises: each event at least once, in the order of the log, which for each conversation
/// is the order of the writes, but for [settled](Forwarder::settle) ones. An event is sent again when its answer was lost; after a crash of
/// the forwarder those since its cursor was written last are (100 at most, or those of 1 s and the
/// delivery under way); and a rotation may repeat one. The `webhook-id` tells repeats. What is not taken is tried again with backoff, and what comes after
/// it waits.
///
/// It needs a log with values ([`audit_values`](crate::ClientBuilder::audit_values)), best written
/// by [`AuditFile`](crate::report::audit::AuditFile). Updates of secure attributes are events with
/// `updatedKeys` alone, unless the log holds their values and
/// [`secure_values`](Forwarder::secure_values) asks for them. Files that were renamed
/// (`audit.jsonl.1`, or any other name in the same folder that begins with the log's) are read to
/// their end first, in the order of writing, also when the forwarder was down meanwhile. A file that
/// was cut, compressed or moved away before it was read is an error, and nothing moves: compress
/// later (`delaycompress`). The first run begins with the file that has the log's name.
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
    max_outage: Option<Duration>,
    follow: bool,
    settle: Option<Client>,
    secure_values: bool,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    progress: Box<dyn FnMut(&ForwardReport) + Send>,
}

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
            max_outage: None,
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
    ///
    /// The later events of its conversation go on. So a dead letter that is forwarded again later
    /// arrives behind newer values: its receiver must keep the newer `processedAt`.
    pub fn dead_letters(mut self, path: impl Into<PathBuf>) -> Forwarder {
        self.dead_letters = path.into();
        self
    }

    /// Gives an event up after this many tries, at least 1, and writes it to the dead letters.
    /// Default: never, so that a receiver that is down holds up what comes after, and nothing is
    /// lost. Answers that concern the receiver and not the event (401, 403, 404, 405, 410) do not
    /// count.
    pub fn max_attempts(mut self, attempts: u32) -> Forwarder {
        self.max_attempts = Some(attempts.max(1));
        self
    }

    /// Ends the run with an error when the receiver has taken no event for this long, measured from
    /// the first failure in a row. The event stays, for the next run. Default: waits without end.
    pub fn max_outage(mut self, longest: Duration) -> Forwarder {
        self.max_outage = Some(longest);
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
    /// A process has died if no process writes the log, or if a record
    /// [`Opened`](crate::audit::AuditPhase::Opened) says that none did when its writer began. Writes
    /// are settled at the end of the log, so that their events may come after later ones of their
    /// conversation. What cannot be read then is tried again later, every 30 s. A write is left
    /// alone for 3 s after its intent, since a request may outlive its sender.
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

    /// Calls `progress` with the counts so far each time the cursor is written, at the end of the
    /// log, every few seconds of a longer wait, and when the run ends, also by an error.
    pub fn on_progress(
        mut self,
        progress: impl FnMut(&ForwardReport) + Send + 'static,
    ) -> Forwarder {
        self.progress = Box::new(progress);
        self
    }

    /// True if another forwarder uses the cursor now.
    ///
    /// # Errors
    ///
    /// `Audit` when the lock beside the cursor cannot be opened.
    pub fn is_in_use(&self) -> Result<bool> {
        Ok(cursor::lock(&self.cursor)?.is_none())
    }

    /// Forwards what is there, or with [`follow`](Forwarder::follow) what comes until `cancel` is
    /// set. Whatever ends it, what was delivered is not delivered again by the next run.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, before anything is delivered or the cursor moves, when a file is no audit
    /// log, cursor or dead letters, when a part of the log was cut or is missing, or when another
    /// forwarder uses the cursor; at the first record without values, before that one. `Config`
    /// for a wrong backoff. `Audit` when a file cannot be read or written. The receiver's error
    /// after [`max_outage`](Forwarder::max_outage). The error of a sink that takes no more, and of
    /// a settling client whose credentials are refused.
    pub fn run(&mut self, cancel: &Cancel) -> Result<ForwardReport> {
        self.policy.check()?;
        let _lock = cursor::lock(&self.cursor)?.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "another forwarder uses the cursor {}, or its folder has no locks: wait for \
                     it, or give this one another",
                    self.cursor.display()
                ),
            )
        })?;
        run::run(self, cancel)
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
