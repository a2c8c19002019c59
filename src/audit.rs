//! The audit trail: what is about to be changed, and what came of it.
//!
//! Each update that gets as far as writing leaves two records with the same id: its *intent* just
//! before the first write, and its *outcome*. An intent without an outcome is the evidence of a
//! crash in between.

use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::clock::lock;
use crate::error::ErrorKind;
use crate::validate::Attributes;

/// Which of the two records of an update it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AuditPhase {
    /// Before the first write.
    Intent,
    /// After the last answer.
    Outcome,
}

/// What came of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum AuditStatus {
    /// Not known yet: the record is an intent.
    Pending,
    /// Written and confirmed.
    Success,
    /// Found in place after an attempt without an answer.
    AlreadyApplied,
    /// A conflict showed that somebody else had set the same values.
    Unchanged,
    /// Failed; see `error_kind` and `may_have_applied`.
    Failed,
}

/// One record of the audit trail.
///
/// It holds the keys of the attributes, not their values, which may be personal data; see
/// [`ClientBuilder::audit_values`](crate::ClientBuilder::audit_values). As JSON its fields are in
/// camel case, `conversationId`, `updatedKeys`, `latencyMs`, `status` and `timestamp` among them
/// as the brief has them; fields without content are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct AuditRecord {
    /// Joins the two records of one update; unique within a process and, by the start of the
    /// client that it holds, in practice beyond.
    pub id: String,
    /// Intent or outcome.
    pub phase: AuditPhase,
    /// When it was made: RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// The conversation's id.
    pub conversation_id: String,
    /// The kind of the target, such as `"conversation"`.
    pub target: &'static str,
    /// The participant that is written, or the custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// What came of it.
    pub status: AuditStatus,
    /// The keys that are set.
    pub updated_keys: Vec<String>,
    /// The keys that are removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_keys: Vec<String>,
    /// The values, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Attributes>,
    /// The version that the write was based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// The version that the write made, where the platform tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Writes sent so far.
    pub attempts: u32,
    /// API requests sent so far.
    pub requests: u32,
    /// From the first request to the end of the last, in milliseconds.
    pub latency_ms: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<ErrorKind>,
    /// The status of the platform's last answer to a failed update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// Whether a failed update may be in place all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_have_applied: bool,
    /// The id under which the platform knows the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
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

/// What happens when an intent cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
/// What is flushed to a file survives the end of the process, not a power loss; for that give a
/// writer that syncs in `flush`.
///
/// ```
/// use genesys_attributes::JsonLines;
///
/// # let path = std::env::temp_dir().join(format!("audit-doc-{}.jsonl", std::process::id()));
/// let file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
/// let sink = JsonLines::new(file);
/// # drop(sink); std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
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

/// Records in a sink of the caller's, whose panic is an error like any other.
pub(crate) fn record(sink: &dyn AuditSink, record: &AuditRecord) -> io::Result<()> {
    caught(|| sink.record(record))
}

/// Flushes a sink of the caller's, with the same care.
pub(crate) fn flush(sink: &dyn AuditSink) -> io::Result<()> {
    caught(|| sink.flush())
}

fn caught(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::other("the audit sink panicked")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> AuditRecord {
        AuditRecord {
            id: "1-1".into(),
            phase: AuditPhase::Outcome,
            timestamp: "2026-01-01T00:00:00.000Z".into(),
            conversation_id: "c-1".into(),
            target: "conversation",
            item: None,
            status: AuditStatus::Success,
            updated_keys: vec!["a\u{7}\nb".into()],
            removed_keys: Vec::new(),
            attributes: None,
            previous_version: Some("6".into()),
            version: Some("7".into()),
            attempts: 1,
            requests: 2,
            latency_ms: 41,
            error_kind: None,
            http_status: None,
            may_have_applied: false,
            correlation_id: Some("abc".into()),
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
    fn the_format_is_fixed() {
        let sink = JsonLines::new(Vec::new());
        sink.record(&sample()).unwrap();
        assert_eq!(
            String::from_utf8(sink.into_inner()).unwrap(),
            concat!(
                r#"{"id":"1-1","phase":"outcome","timestamp":"2026-01-01T00:00:00.000Z","#,
                r#""conversationId":"c-1","target":"conversation","status":"success","#,
                r#""updatedKeys":["a\u0007\nb"],"previousVersion":"6","version":"7","attempts":1,"#,
                r#""requests":2,"latencyMs":41,"correlationId":"abc"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
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
    fn a_panicking_sink_is_an_error() {
        struct Bad;
        impl AuditSink for Bad {
            fn record(&self, _: &AuditRecord) -> io::Result<()> {
                panic!("on purpose")
            }
        }
        assert!(record(&Bad, &sample()).is_err());
    }
}
