//! What a batch hands back: an outcome for each line, and a report of the whole.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{SerializeMap, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::{Receipt, Status};
use crate::store::{Target, TargetKind};
use crate::util::date::{rfc3339, whole_millis};
use crate::util::histogram::{Histogram, Latency};

/// What came of one line of a batch.
///
/// As JSON it is the record `{"line":1,"conversationId":"…","status":"applied","version":"7",
/// "attempts":1,"requests":2,"latencyMs":41,"target":"conversation",
/// "timestamp":"2026-01-31T09:05:00.250Z"}`, with an `error` object where it failed, a `reason` where
/// it was skipped, `resourceId` where one was written, and `conversationEnded` and `verified` where
/// they are true.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchOutcome {
    /// The number of the item in the input, from 1.
    pub line: u64,
    /// The conversation's id, where the line could be read.
    pub conversation_id: Option<String>,
    /// How it ended.
    pub status: Status,
    /// The version now, where the platform returned it.
    pub version: Option<String>,
    /// Writes sent.
    pub attempts: u32,
    /// API requests sent.
    pub requests: u32,
    /// From the first request to the end of the last. Where an outage made the line run again, of
    /// its last run.
    pub latency: Duration,
    /// Why it failed.
    pub error: Option<Error>,
    /// The kind of what was to be written, where the line could be read.
    pub target: Option<TargetKind>,
    /// The participant or the custom record that was written, where it is known.
    pub resource_id: Option<String>,
    /// When the line ended.
    pub timestamp: SystemTime,
    /// The conversation is over, as far as the reads of this line showed.
    pub conversation_ended: bool,
    /// The values were read back and found in place.
    pub verified: bool,
}

impl BatchOutcome {
    /// Whether running the line again would be pointless: it is done, or failed for good. What
    /// failed transiently, may be in place, was skipped, or failed for the sake of the credentials
    /// or the organization is not final.
    pub fn is_final(&self) -> bool {
        match (self.status, &self.error) {
            (Status::Skipped, _) => false,
            (Status::Failed, Some(error)) => {
                !error.is_transient()
                    && !error.may_have_applied()
                    && !error.during_login()
                    && !error.endpoint_missing()
                    && !matches!(error.kind(), ErrorKind::Auth | ErrorKind::Internal)
            }
            _ => true,
        }
    }

    /// The outcome of a line that is no update.
    pub(super) fn unreadable(line: u64, error: Error, timestamp: SystemTime) -> BatchOutcome {
        BatchOutcome {
            line,
            conversation_id: None,
            status: Status::Failed,
            version: None,
            attempts: 0,
            requests: 0,
            latency: Duration::ZERO,
            error: Some(error),
            target: None,
            resource_id: None,
            timestamp,
            conversation_ended: false,
            verified: false,
        }
    }

    /// The outcome of a line that was not written, after the requests that were sent for it.
    pub(super) fn skipped(
        line: u64,
        target: &Target,
        stopped: Option<&Error>,
        timestamp: SystemTime,
    ) -> BatchOutcome {
        BatchOutcome {
            line,
            conversation_id: Some(target.conversation_id().to_owned()),
            status: Status::Skipped,
            version: None,
            attempts: stopped.map_or(0, Error::attempts),
            requests: stopped.map_or(0, Error::requests),
            latency: stopped.map_or(Duration::ZERO, Error::latency),
            error: None,
            target: Some(target.kind()),
            resource_id: target.record().map(str::to_owned),
            timestamp,
            conversation_ended: false,
            verified: false,
        }
    }

    pub(crate) fn of(
        line: u64,
        target: &Target,
        result: Result<Receipt>,
        timestamp: SystemTime,
    ) -> BatchOutcome {
        match result {
            Ok(receipt) => BatchOutcome {
                line,
                conversation_id: Some(receipt.conversation_id),
                status: receipt.outcome.into(),
                version: receipt.version,
                attempts: receipt.attempts,
                requests: receipt.requests,
                latency: receipt.latency,
                error: None,
                target: Some(receipt.target),
                resource_id: receipt.resource_id,
                timestamp,
                conversation_ended: receipt.conversation_ended == Some(true),
                verified: receipt.verified,
            },
            Err(error) => BatchOutcome {
                status: Status::Failed,
                ..BatchOutcome::skipped(line, target, Some(&error), timestamp)
            }
            .with_error(error),
        }
    }

    fn with_error(mut self, error: Error) -> BatchOutcome {
        self.error = Some(error);
        self
    }
}

/// Errors are the same when they have the same kind and text.
impl PartialEq for BatchOutcome {
    fn eq(&self, other: &BatchOutcome) -> bool {
        let error = |outcome: &BatchOutcome| {
            let error = outcome.error.as_ref()?;
            Some((error.kind(), error.to_string()))
        };
        self.line == other.line
            && self.conversation_id == other.conversation_id
            && self.status == other.status
            && self.version == other.version
            && (self.attempts, self.requests) == (other.attempts, other.requests)
            && self.latency == other.latency
            && error(self) == error(other)
            && self.target == other.target
            && self.resource_id == other.resource_id
            && self.timestamp == other.timestamp
            && self.conversation_ended == other.conversation_ended
            && self.verified == other.verified
    }
}

/// Reads what serializing wrote.
impl<'de> Deserialize<'de> for BatchOutcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            line: u64,
            #[serde(default)]
            conversation_id: Option<String>,
            status: Status,
            #[serde(default)]
            version: Option<String>,
            attempts: u32,
            requests: u32,
            #[serde(rename = "latencyMs", with = "crate::util::date::millis")]
            latency: Duration,
            #[serde(default)]
            error: Option<Error>,
            #[serde(default)]
            target: Option<TargetKind>,
            #[serde(default)]
            resource_id: Option<String>,
            #[serde(with = "crate::util::date::text")]
            timestamp: SystemTime,
            #[serde(default)]
            conversation_ended: bool,
            #[serde(default)]
            verified: bool,
        }
        let fields = Fields::deserialize(deserializer)?;
        Ok(BatchOutcome {
            line: fields.line,
            conversation_id: fields.conversation_id,
            status: fields.status,
            version: fields.version,
            attempts: fields.attempts,
            requests: fields.requests,
            latency: fields.latency,
            error: fields.error,
            target: fields.target,
            resource_id: fields.resource_id,
            timestamp: fields.timestamp,
            conversation_ended: fields.conversation_ended,
            verified: fields.verified,
        })
    }
}

impl Serialize for BatchOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("line", &self.line)?;
        if let Some(id) = &self.conversation_id {
            map.serialize_entry("conversationId", id)?;
        }
        map.serialize_entry("status", &self.status)?;
        if let Some(version) = &self.version {
            map.serialize_entry("version", version)?;
        }
        map.serialize_entry("attempts", &self.attempts)?;
        map.serialize_entry("requests", &self.requests)?;
        map.serialize_entry("latencyMs", &whole_millis(self.latency))?;
        if let Some(error) = &self.error {
            map.serialize_entry("error", error)?;
        }
        if self.status == Status::Skipped {
            // Only what the batch itself stopped was begun.
            let reason = if self.requests == 0 {
                "an earlier update of this conversation failed in a way that may pass"
            } else {
                "the batch was stopped before this update was written"
            };
            map.serialize_entry("reason", reason)?;
        }
        if let Some(target) = self.target {
            map.serialize_entry("target", target.name())?;
        }
        if let Some(id) = &self.resource_id {
            map.serialize_entry("resourceId", id)?;
        }
        map.serialize_entry("timestamp", &rfc3339(self.timestamp))?;
        for (name, flag) in [
            ("conversationEnded", self.conversation_ended),
            ("verified", self.verified),
        ] {
            if flag {
                map.serialize_entry(name, &true)?;
            }
        }
        map.end()
    }
}

/// Why a batch ended before its input did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum StopReason {
    /// The caller's closure broke off.
    Break,
    /// The cancel handle was used.
    Cancelled,
    /// As many updates failed as [`Batch::stop_after`](super::Batch::stop_after) allows.
    Failures,
    /// The credentials were refused: every further update would be, too.
    Auth,
    /// The login endpoint answered what none would (a redirect, 404, a web page), and no login had
    /// succeeded before: the region or login URL is wrong. No line was spent.
    Login,
    /// The first 20 results were the same refusal for want of permission.
    Forbidden,
    /// The organization does not offer the endpoint that the lines ask for.
    EndpointMissing,
    /// The platform asked to wait longer than the retry policy allows. What is left can be run
    /// later.
    RateLimited,
    /// An outage lasted longer than [`Batch::max_outage`](super::Batch::max_outage). What is left
    /// can be run later.
    Outage,
    /// The client was made before a fork: make one in each process. No line was begun.
    Forked,
}

impl StopReason {
    /// The name in records, such as `"endpointMissing"`.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::Break => "break",
            StopReason::Cancelled => "cancelled",
            StopReason::Failures => "failures",
            StopReason::Auth => "auth",
            StopReason::Login => "login",
            StopReason::Forbidden => "forbidden",
            StopReason::EndpointMissing => "endpointMissing",
            StopReason::RateLimited => "rateLimited",
            StopReason::Outage => "outage",
            StopReason::Forked => "forked",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a batch did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchReport {
    /// Updates written and confirmed.
    pub applied: u64,
    /// Updates found in place after an attempt without an answer.
    pub already_applied: u64,
    /// Updates that had nothing to change.
    pub unchanged: u64,
    /// Lines that failed.
    pub failed: u64,
    /// Lines that were not written, after an earlier failure of their conversation or because the
    /// batch was stopped.
    pub skipped: u64,
    /// How long the batch took.
    pub elapsed: Duration,
    /// Latency of the updates that were applied.
    pub latency: Latency,
    /// Why it ended before its input did, if it did.
    pub stopped: Option<StopReason>,
    /// The error that stopped it, where that is no line's: with [`StopReason::Outage`],
    /// [`StopReason::Login`] and [`StopReason::Forked`].
    pub error: Option<Error>,
    failed_by_kind: [u64; ErrorKind::ALL.len()],
}

impl BatchReport {
    /// How many lines have an outcome.
    pub fn lines(&self) -> u64 {
        self.applied + self.already_applied + self.unchanged + self.failed + self.skipped
    }

    /// How many lines failed with the given kind.
    pub fn failed_with(&self, kind: ErrorKind) -> u64 {
        self.failed_by_kind[kind as usize]
    }

    /// Outcomes per minute.
    pub fn per_minute(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.lines() as f64 * 60.0 / seconds
        } else {
            0.0
        }
    }

    /// Whether every line of the input is in place.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.skipped == 0 && self.stopped.is_none()
    }
}

impl Serialize for BatchReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = |q| self.latency.quantile(q).as_micros() as f64 / 1_000.0;
        let by_kind: serde_json::Map<String, serde_json::Value> = ErrorKind::ALL
            .iter()
            .filter(|kind| self.failed_with(**kind) > 0)
            .map(|kind| (kind.name().to_owned(), self.failed_with(*kind).into()))
            .collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("lines", &self.lines())?;
        map.serialize_entry("applied", &self.applied)?;
        map.serialize_entry("alreadyApplied", &self.already_applied)?;
        map.serialize_entry("unchanged", &self.unchanged)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("skipped", &self.skipped)?;
        map.serialize_entry("failedByKind", &by_kind)?;
        map.serialize_entry("elapsedMs", &whole_millis(self.elapsed))?;
        map.serialize_entry("perMinute", &self.per_minute())?;
        map.serialize_entry(
            "latencyMs",
            &serde_json::json!({ "p50": ms(0.5), "p90": ms(0.9), "p99": ms(0.99), "max": ms(1.0) }),
        )?;
        map.serialize_entry("stopped", &self.stopped)?;
        if let Some(error) = &self.error {
            map.serialize_entry("error", error)?;
        }
        map.end()
    }
}

/// As many equal refusals at the start mean that no line would fare better.
const SAME_REFUSALS: u64 = 20;

/// The report in the making, and the reasons to stop early.
pub(super) struct Tally {
    report: BatchReport,
    latency: Histogram,
    stop_after: Option<u64>,
    /// How many of the first results were the same refusal; `None` once one was not.
    refusals: Option<(u64, Option<String>)>,
}

impl Tally {
    pub(super) fn new(stop_after: Option<u64>) -> Tally {
        let latency = Histogram::default();
        Tally {
            report: BatchReport {
                applied: 0,
                already_applied: 0,
                unchanged: 0,
                failed: 0,
                skipped: 0,
                elapsed: Duration::ZERO,
                latency: latency.snapshot(),
                stopped: None,
                error: None,
                failed_by_kind: [0; ErrorKind::ALL.len()],
            },
            latency,
            stop_after,
            refusals: Some((0, None)),
        }
    }

    pub(super) fn stopped(&self) -> Option<StopReason> {
        self.report.stopped
    }

    /// The first reason counts.
    pub(super) fn stop(&mut self, reason: StopReason, error: Option<Error>) {
        if self.report.stopped.is_none() {
            self.report.stopped = Some(reason);
            self.report.error = error;
        }
    }

    pub(super) fn count(&mut self, outcome: &BatchOutcome) {
        let report = &mut self.report;
        match outcome.status {
            Status::Applied => report.applied += 1,
            Status::AlreadyApplied => report.already_applied += 1,
            Status::Unchanged => report.unchanged += 1,
            Status::Failed | Status::Refused | Status::Pending => report.failed += 1,
            Status::Skipped => report.skipped += 1,
        }
        if matches!(outcome.status, Status::Applied | Status::AlreadyApplied) {
            self.latency.record(outcome.latency);
        }
        let Some(error) = &outcome.error else {
            self.refusals = None;
            return;
        };
        report.failed_by_kind[error.kind() as usize] += 1;
        self.refusals = match self.refusals.take() {
            Some((count, code))
                if error.kind() == ErrorKind::Forbidden
                    && (count == 0 || code.as_deref() == error.code()) =>
            {
                Some((count + 1, error.code().map(str::to_owned)))
            }
            _ => None,
        };
        let reason = match error.kind() {
            ErrorKind::Auth => StopReason::Auth,
            ErrorKind::RateLimited => StopReason::RateLimited,
            _ if error.endpoint_missing() => StopReason::EndpointMissing,
            _ if matches!(self.refusals, Some((SAME_REFUSALS.., _))) => StopReason::Forbidden,
            _ if self.stop_after.is_some_and(|most| report.failed >= most) => StopReason::Failures,
            _ => return,
        };
        self.stop(reason, None);
    }

    pub(super) fn report(self, elapsed: Duration) -> BatchReport {
        BatchReport {
            elapsed,
            latency: self.latency.snapshot(),
            ..self.report
        }
    }
}
