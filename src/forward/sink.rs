//! What a forwarder hands over, where to, and what it reports.

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::store::TargetKind;

/// One event as a [`Sink`] gets it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Envelope<'a> {
    /// The id of the update's audit records: the same when an event is handed over again.
    pub id: &'a str,
    /// The conversation's id.
    pub conversation_id: &'a str,
    /// The [webhook envelope](crate::audit::AuditRecord::webhook_payload), as JSON in one line without an end.
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
    /// The receiver takes no events at all for now: its address is wrong, or the credentials. The
    /// forwarder waits, and never makes a dead letter of it.
    Unavailable {
        /// What happened.
        error: Error,
        /// The beginning of the receiver's answer.
        answer: String,
    },
    /// The receiver does not take this event, however often it is tried: it goes to the dead
    /// letters.
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
            Undelivered::Unavailable { error, answer } => ("Unavailable", error, answer.len()),
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
            | Undelivered::Unavailable { error, .. }
            | Undelivered::Never { error, .. }
            | Undelivered::Closed(error) => error,
        }
    }
}

/// Where a [`Forwarder`](crate::forward::Forwarder) hands events to: a [`Webhook`](crate::forward::webhook::Webhook), [`EnvelopeLines`], or
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

/// What a [`Forwarder`](crate::forward::Forwarder) did. As JSON its fields are in camel case, `lagSeconds` in seconds.
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
    /// Intents without an outcome whose writer has gone: only a settling forwarder will give them
    /// one.
    pub orphans: Vec<Orphan>,
    /// The run ended since the receiver took nothing for
    /// [`max_outage`](crate::forward::Forwarder::max_outage).
    pub gave_up: bool,
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

/// A write that may have been applied, or not.
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
