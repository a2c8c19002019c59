//! The audit trail: what is about to be changed, and what came of it.
//!
//! Each update that gets as far as writing leaves records with the same id: its *intent* just
//! before the first write, and its *outcome*. An intent without an outcome is the evidence of a
//! crash in between. An update that is refused before it writes leaves one outcome.

pub(crate) mod file;
pub(crate) mod parts;

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::names::named_enum;
use crate::error::{Error, ErrorKind};
use crate::report::receipt::Status;
use crate::util::sync::{discard, lock};
use crate::values::attributes::Attributes;
use crate::values::kind::TargetKind;

pub use file::AuditFile;

named_enum! {
    /// Which record of an update it is.
    pub enum AuditPhase, "phase" {
        /// Before a write.
        Intent = "intent",
        /// After the last answer.
        Outcome = "outcome",
        /// A process began to write the log when no other one was writing it.
        ///
        /// It belongs to no update: its conversation is empty and its status `skipped`. An intent
        /// before it that has no outcome by then gets none from its writer, which has died.
        /// [`AuditFile`] appends it.
        Opened = "opened",
    }
}

/// One record of the audit trail.
///
/// It holds the keys of the attributes, not their values, which may be personal data; see
/// [`ClientBuilder::audit_values`](crate::ClientBuilder::audit_values). As JSON its fields are in
/// camel case (`conversationId`, `updatedKeys`, `latencyMs` in milliseconds, `timestamp` as
/// RFC 3339); fields without content are left out. `Debug` shows no values.
///
/// ```
/// use genesys_attributes::Status;
/// use genesys_attributes::audit::AuditRecord;
///
/// let line = r#"{"id":"1-1","phase":"outcome","timestamp":"2026-01-01T00:00:00.000Z",
///     "conversationId":"c-1","target":"secure","status":"applied","updatedKeys":["iban"],
///     "attempts":1,"requests":2,"latencyMs":41}"#;
/// let record: AuditRecord = serde_json::from_str(line).unwrap();
/// assert_eq!(record.status, Status::Applied);
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AuditRecord {
    /// Joins the records of one update. Unique within a process, and in practice beyond.
    pub id: String,
    /// Intent or outcome.
    pub phase: AuditPhase,
    /// When it was made.
    #[serde(with = "crate::util::date::text")]
    pub timestamp: SystemTime,
    /// The conversation's id.
    pub conversation_id: String,
    /// The kind of the target.
    pub target: TargetKind,
    /// The id of what is written: the participant, or the custom record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// What came of it.
    pub status: Status,
    /// The keys that are set.
    pub updated_keys: Vec<String>,
    /// The keys that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_keys: Vec<String>,
    /// The values, where they are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Attributes>,
    /// The version that the write was based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// The version that the write made, where the platform says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Writes sent so far.
    pub attempts: u32,
    /// API requests sent so far.
    pub requests: u32,
    /// From the first request to the end of the last.
    #[serde(rename = "latencyMs", with = "crate::util::date::millis")]
    pub latency: Duration,
    /// Why it failed or was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<ErrorKind>,
    /// The status of the platform's last answer to a failed update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// Whether a failed update may be in place all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_applied: bool,
    /// The id under which the platform knows the last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The outcome was found by a later read of the target: who wrote the intent was gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
}

impl AuditRecord {
    /// The webhook envelope of what was applied: `eventType` and a `payload` of `id`,
    /// `conversationId`, `target`, `resourceId`, `updatedAttributes`, `version` and `processedAt`
    /// (RFC 3339).
    ///
    /// The `id` is the same when the update is delivered again. Where the record holds no values, as
    /// for secure attributes, `updatedAttributes` is empty and `updatedKeys` lists the keys.
    /// `resourceId`, `removedKeys` and `settled` are left out where they have no content.
    pub fn webhook_payload(&self) -> Value {
        self.envelope(self.attributes.as_ref())
    }

    pub(crate) fn envelope(&self, values: Option<&Attributes>) -> Value {
        let mut payload = json!({
            "id": self.id,
            "conversationId": self.conversation_id,
            "target": self.target,
            "updatedAttributes": {},
            "version": self.version,
            "processedAt": crate::util::date::rfc3339(self.timestamp),
        });
        if let Some(id) = &self.resource_id {
            payload["resourceId"] = json!(id);
        }
        match values {
            Some(attributes) if !attributes.is_empty() => {
                payload["updatedAttributes"] = Value::Object(attributes.clone());
            }
            _ => payload["updatedKeys"] = json!(self.updated_keys),
        }
        if !self.removed_keys.is_empty() {
            payload["removedKeys"] = json!(self.removed_keys);
        }
        if self.settled {
            payload["settled"] = json!(true);
        }
        json!({ "eventType": "CONVERSATION_ATTRIBUTES_UPDATED", "payload": payload })
    }
}

impl fmt::Debug for AuditRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditRecord")
            .field("id", &self.id)
            .field("phase", &self.phase)
            .field("conversation_id", &self.conversation_id)
            .field("target", &self.target)
            .field("resource_id", &self.resource_id)
            .field("status", &self.status)
            .field("updated_keys", &self.updated_keys)
            .field("removed_keys", &self.removed_keys)
            .field("version", &self.version)
            .field("error_kind", &self.error_kind)
            .finish_non_exhaustive()
    }
}

/// Where audit records go.
///
/// Both methods are called from whichever thread runs the update, one record at a time per
/// update, and in any order between conversations.
pub trait AuditSink: Send + Sync {
    /// Keeps one record.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being kept. For an intent in strict mode the update then fails with
    /// [`ErrorKind::Audit`] and nothing is written; otherwise the failure is counted, logged and
    /// flagged in the receipt.
    fn record(&self, record: &AuditRecord) -> io::Result<()>;

    /// Hands over what the sink still holds; called by [`Client::flush`](crate::Client::flush).
    ///
    /// # Errors
    ///
    /// Whatever kept it from doing so.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink that is shared, so that its owner can still reach it.
impl<S: AuditSink + ?Sized> AuditSink for Arc<S> {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        (**self).record(record)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
}

/// A closure that keeps one record. Its parameter needs its type:
///
/// ```
/// use genesys_attributes::audit::AuditRecord;
/// use genesys_attributes::{Client, Credentials, Region};
///
/// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
///     .audit(|record: &AuditRecord| {
///         println!("{} {}", record.conversation_id, record.status);
///         Ok(())
///     });
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
impl<F> AuditSink for F
where
    F: Fn(&AuditRecord) -> io::Result<()> + Send + Sync,
{
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        self(record)
    }
}

/// What happens when an intent cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AuditMode {
    /// The update goes on; the failure is counted, logged and flagged in the receipt.
    #[default]
    BestEffort,
    /// The update fails with [`ErrorKind::Audit`]: no record, no write.
    Strict,
}

/// An [`AuditSink`] of JSON lines: one record a line, in one write, flushed before the update
/// goes on.
///
/// It is for streams: standard error, a pipe, a socket. For a file take [`AuditFile`], which survives
/// rotation and the torn line of a process that died, and can be forwarded from.
///
/// ```
/// use genesys_attributes::audit::JsonLines;
///
/// let sink = JsonLines::new(std::io::stderr());
/// ```
pub struct JsonLines<W> {
    state: Mutex<Lines<W>>,
}

struct Lines<W> {
    writer: W,
    /// A write failed half-way: the next line must not continue the torn one.
    torn: bool,
}

impl<W: Write + Send> JsonLines<W> {
    /// A sink that writes to `writer`.
    pub fn new(writer: W) -> JsonLines<W> {
        JsonLines {
            state: Mutex::new(Lines {
                writer,
                torn: false,
            }),
        }
    }

    /// The writer back.
    pub fn into_inner(self) -> W {
        self.state
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .writer
    }
}

impl<W: Write + Send> AuditSink for JsonLines<W> {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        let mut state = lock(&self.state);
        let mut line = Vec::with_capacity(512);
        if state.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        // Set first, so that a writer that panics counts as torn too.
        state.torn = true;
        state.writer.write_all(&line)?;
        state.torn = false;
        state.writer.flush()
    }

    fn flush(&self) -> io::Result<()> {
        lock(&self.state).writer.flush()
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}

/// An [`AuditSink`] that writes each record as JSON to `log`, at level info with the target
/// `genesys_attributes::audit`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogSink;

impl AuditSink for LogSink {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        let line = serde_json::to_string(record)?;
        log::info!(target: "genesys_attributes::audit", "{line}");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        log::logger().flush();
        Ok(())
    }
}

thread_local! {
    /// This thread is inside of a sink.
    static RECORDING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is called from inside of a sink, whose own updates are not recorded: each record
/// would lead to the next.
pub(crate) fn is_recording() -> bool {
    RECORDING.get()
}

/// Records in a sink of the caller's, whose panic is an error like any other.
pub(crate) fn record(sink: &dyn AuditSink, record: &AuditRecord) -> io::Result<()> {
    let outer = RECORDING.replace(true);
    let result = caught(|| sink.record(record));
    RECORDING.set(outer);
    result
}

/// Flushes a sink of the caller's, with the same care.
pub(crate) fn flush(sink: &dyn AuditSink) -> io::Result<()> {
    caught(|| sink.flush())
}

fn caught(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        discard(payload);
        Err(io::Error::other("the audit sink panicked"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> AuditRecord {
        AuditRecord {
            id: "1-1".into(),
            phase: AuditPhase::Outcome,
            timestamp: std::time::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
            conversation_id: "c-1".into(),
            target: TargetKind::Conversation,
            resource_id: None,
            status: Status::Applied,
            updated_keys: vec!["a\u{7}\nb".into()],
            removed_keys: Vec::new(),
            attributes: None,
            previous_version: Some("6".into()),
            version: Some("7".into()),
            attempts: 1,
            requests: 2,
            latency: Duration::from_millis(41),
            error_kind: None,
            http_status: None,
            may_have_applied: false,
            correlation_id: Some("abc".into()),
            settled: false,
        }
    }

    /// Fails on the second write, after half of its bytes.
    #[derive(Default)]
    struct Tearing {
        bytes: Vec<u8>,
        writes: usize,
    }

    impl Write for Tearing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes += 1;
            match self.writes {
                2 => {
                    self.bytes.extend(&bytes[..10]);
                    Ok(10)
                }
                3 => Err(io::Error::other("disk full")),
                _ => {
                    self.bytes.extend(bytes);
                    Ok(bytes.len())
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_sink_format_is_fixed() {
        let sink = JsonLines::new(Vec::new());
        sink.record(&sample()).unwrap();
        assert_eq!(
            String::from_utf8(sink.into_inner()).unwrap(),
            concat!(
                r#"{"id":"1-1","phase":"outcome","timestamp":"2026-01-01T00:00:00.000Z","#,
                r#""conversationId":"c-1","target":"conversation","status":"applied","#,
                r#""updatedKeys":["a\u0007\nb"],"previousVersion":"6","version":"7","attempts":1,"#,
                r#""requests":2,"latencyMs":41,"correlationId":"abc"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn json_lines_torn_line_does_not_spoil_next() {
        let sink = JsonLines::new(Tearing::default());
        sink.record(&sample()).unwrap();
        sink.record(&sample()).unwrap_err();
        sink.record(&sample()).unwrap();
        let text = String::from_utf8(sink.into_inner().bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], lines[2]);
    }

    #[test]
    fn audit_sink_panic_is_error() {
        struct Bad;
        impl AuditSink for Bad {
            fn record(&self, _: &AuditRecord) -> io::Result<()> {
                panic!("on purpose")
            }
        }
        assert!(record(&Bad, &sample()).is_err());
    }

    #[test]
    fn audit_record_reads_back_what_was_written() {
        let line = serde_json::to_string(&sample()).unwrap();
        assert_eq!(
            serde_json::from_str::<AuditRecord>(&line).unwrap(),
            sample()
        );
    }
}
