//! What a batch hands back: an outcome for each line, and a report of the whole.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::names::named_enum;
use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::{Receipt, Status};
use crate::store::{Target, TargetKind};
use crate::util::date::short;
use crate::util::histogram::{Histogram, Latency};

/// What came of one line of a batch.
///
/// As JSON it is the record `{"line":1,"conversationId":"…","status":"applied","version":"7",
/// "attempts":1,"requests":2,"latencyMs":41,"target":"conversation",
/// "timestamp":"2026-01-31T09:05:00.250Z"}`, with an `error` object where it failed, a `reason` where
/// it was skipped, `resourceId` where one was written, and `conversationEnded` and `verified` where
/// they are true.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct BatchOutcome {
    /// The number of the item in the input, from 1.
    pub line: u64,
    /// The conversation's id, where the line could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// How it ended.
    pub status: Status,
    /// The version now, where the platform returned it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Writes sent.
    pub attempts: u32,
    /// API requests sent.
    pub requests: u32,
    /// From the first request to the end of the last. Where an outage made the line run again, of
    /// its last run.
    #[serde(rename = "latencyMs", with = "crate::util::date::millis")]
    pub latency: Duration,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Why it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kind of what was to be written, where the line could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetKind>,
    /// The participant or the custom record that was written, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// When the line ended.
    #[serde(with = "crate::util::date::text")]
    pub timestamp: SystemTime,
    /// The conversation is over, as far as the reads of this line showed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub conversation_ended: bool,
    /// The values were read back and found in place.
    #[serde(default, skip_serializing_if = "is_false")]
    pub verified: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !flag
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
            attempts: error.attempts(),
            requests: error.requests(),
            latency: error.latency(),
            error: Some(error),
            reason: None,
            target: None,
            resource_id: None,
            timestamp,
            conversation_ended: false,
            verified: false,
        }
    }

    fn failed(line: u64, target: &Target, error: Error, timestamp: SystemTime) -> BatchOutcome {
        BatchOutcome {
            conversation_id: Some(target.conversation_id().to_owned()),
            target: Some(target.kind()),
            resource_id: target.record().map(str::to_owned),
            ..BatchOutcome::unreadable(line, error, timestamp)
        }
    }

    /// The outcome of a line that was not written. `stopped` has the requests that were sent for it.
    pub(super) fn skipped(
        line: u64,
        target: &Target,
        reason: &str,
        stopped: Error,
        timestamp: SystemTime,
    ) -> BatchOutcome {
        BatchOutcome::failed(line, target, stopped, timestamp).skip(reason)
    }

    /// The same for a line that was not written.
    pub(super) fn skip(self, reason: &str) -> BatchOutcome {
        BatchOutcome {
            status: Status::Skipped,
            error: None,
            reason: Some(reason.to_owned()),
            ..self
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
                reason: None,
                target: Some(receipt.target),
                resource_id: receipt.resource_id,
                timestamp,
                conversation_ended: receipt.conversation_ended == Some(true),
                verified: receipt.verified,
            },
            Err(error) => BatchOutcome::failed(line, target, error, timestamp),
        }
    }
}

/// Errors are the same when they have the same kind and text.
impl PartialEq for BatchOutcome {
    fn eq(&self, other: &BatchOutcome) -> bool {
        let record = |outcome| serde_json::to_value(outcome).ok();
        record(self) == record(other)
    }
}

named_enum! {
    /// Why a batch ended before its input did.
    pub enum StopReason, "reason" {
        /// The caller's closure broke off.
        Break = "break",
        /// The cancel handle was used.
        Cancelled = "cancelled",
        /// As many updates failed as [`Batch::stop_after`](super::Batch::stop_after) allows.
        Failures = "failures",
        /// The credentials were refused: every further update would be, too.
        Auth = "auth",
        /// The login endpoint gave no login's answer (a redirect, 404, a web page), and no login had
        /// succeeded before: the region or login URL is wrong. No line was spent.
        Login = "login",
        /// The journal cannot be used or written, or does not fit the input. The report has the error.
        Journal = "journal",
        /// The first 20 results were the same refusal for want of permission.
        Forbidden = "forbidden",
        /// The organization does not offer the endpoint that the lines ask for.
        EndpointMissing = "endpointMissing",
        /// The platform asked to wait longer than the retry policy allows. What is left can be run
        /// later.
        RateLimited = "rateLimited",
        /// An outage lasted longer than [`Batch::max_outage`](super::Batch::max_outage). What is left
        /// can be run later.
        Outage = "outage",
        /// The client was made before a fork: make one in each process. No line was begun.
        Forked = "forked",
    }
}

/// What a batch did.
///
/// Read back from its JSON, it has the latency's four quantiles and no more of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "Record", from = "Record")]
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
    /// Lines that were not run, since the journal has their final outcome.
    pub finished_before: u64,
    /// How many of those failed for good in an earlier run.
    pub failed_before: u64,
    /// How long the batch took.
    pub elapsed: Duration,
    /// Latency of the updates that were applied.
    pub latency: Latency,
    /// Why it ended before its input did, if it did.
    pub stopped: Option<StopReason>,
    /// The error that stopped it, where no line has it: with [`StopReason::Outage`],
    /// [`StopReason::Login`], [`StopReason::Journal`] and [`StopReason::Forked`].
    pub error: Option<Error>,
    failed_by_kind: [u64; ErrorKind::ALL.len()],
}

/// One line, such as `3 lines in 1.3 s: 2 applied, 0 already applied, 0 unchanged, 1 failed, 0 skipped`.
impl fmt::Display for BatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        write!(
            f,
            "{lines} line{} in {}: {} applied, {} already applied, {} unchanged, {} failed, {} \
             skipped",
            if lines == 1 { "" } else { "s" },
            short(self.elapsed),
            self.applied,
            self.already_applied,
            self.unchanged,
            self.failed,
            self.skipped
        )
    }
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
        self.failed == 0 && self.skipped == 0 && self.failed_before == 0 && self.stopped.is_none()
    }
}

/// A report as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    lines: u64,
    applied: u64,
    already_applied: u64,
    unchanged: u64,
    failed: u64,
    skipped: u64,
    #[serde(default)]
    finished_before: u64,
    #[serde(default)]
    failed_before: u64,
    failed_by_kind: BTreeMap<String, u64>,
    #[serde(with = "crate::util::date::millis")]
    elapsed_ms: Duration,
    per_minute: f64,
    latency_ms: Quantiles,
    stopped: Option<StopReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

#[derive(Serialize, Deserialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl From<BatchReport> for Record {
    fn from(report: BatchReport) -> Record {
        let ms = |q| report.latency.quantile(q).as_micros() as f64 / 1_000.0;
        let failed = ErrorKind::ALL
            .iter()
            .map(|kind| (kind, report.failed_with(*kind)));
        Record {
            lines: report.lines(),
            applied: report.applied,
            already_applied: report.already_applied,
            unchanged: report.unchanged,
            failed: report.failed,
            skipped: report.skipped,
            finished_before: report.finished_before,
            failed_before: report.failed_before,
            failed_by_kind: failed
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| (kind.name().to_owned(), count))
                .collect(),
            elapsed_ms: report.elapsed,
            per_minute: report.per_minute(),
            latency_ms: Quantiles {
                p50: ms(0.5),
                p90: ms(0.9),
                p99: ms(0.99),
                max: ms(1.0),
            },
            stopped: report.stopped,
            error: report.error,
        }
    }
}

/// Of the latency, the record has the count and four quantiles.
impl From<Record> for BatchReport {
    fn from(record: Record) -> BatchReport {
        let Quantiles { p50, p90, p99, max } = record.latency_ms;
        let micros = |ms: f64| (ms * 1_000.0).round() as u64;
        let count = record.applied + record.already_applied;
        let (mut buckets, mut before) = (Vec::new(), 0);
        for (percent, ms) in [(50, p50), (90, p90), (99, p99), (100, max)] {
            let below = (count * percent).div_ceil(100);
            buckets.push((micros(ms), below - before));
            before = below;
        }
        let sum = buckets.iter().map(|(micros, count)| micros * count).sum();
        let mut failed_by_kind = [0; ErrorKind::ALL.len()];
        for kind in ErrorKind::ALL.iter().copied() {
            let count = record.failed_by_kind.get(kind.name());
            failed_by_kind[kind as usize] = count.copied().unwrap_or_default();
        }
        BatchReport {
            applied: record.applied,
            already_applied: record.already_applied,
            unchanged: record.unchanged,
            failed: record.failed,
            skipped: record.skipped,
            finished_before: record.finished_before,
            failed_before: record.failed_before,
            elapsed: record.elapsed_ms,
            latency: Latency::from_parts(sum, micros(max), &buckets),
            stopped: record.stopped,
            error: record.error,
            failed_by_kind,
        }
    }
}

/// So many equal refusals at the start mean that every line would be refused.
const SAME_REFUSALS: u64 = 20;

/// Counts outcomes, and finds the reasons to stop early.
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
                finished_before: 0,
                failed_before: 0,
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

    /// Lines that the journal has final outcomes of, and how many of them failed.
    pub(super) fn before(&mut self, finished: u64, failed: u64) {
        (self.report.finished_before, self.report.failed_before) = (finished, failed);
    }

    pub(super) fn finished_before(&self) -> u64 {
        self.report.finished_before
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_reads_back_from_its_json() {
        let mut tally = Tally::new(None);
        let target = Target::conversation("c-1");
        let at = SystemTime::UNIX_EPOCH;
        for count in [0, 1, 2, 150] {
            for n in 0..count {
                let failed = Error::new(ErrorKind::NotFound, "gone");
                let mut outcome = BatchOutcome::of(n, &target, Err(failed), at);
                if n % 10 > 0 {
                    (outcome.status, outcome.error) = (Status::Applied, None);
                    outcome.latency = Duration::from_micros(40 + n * n * 7);
                }
                tally.count(&outcome);
            }
            tally.stop(
                StopReason::Journal,
                Some(Error::new(ErrorKind::Config, "why")),
            );
            let report = BatchReport {
                latency: tally.latency.snapshot(),
                elapsed: Duration::from_millis(250),
                ..tally.report.clone()
            };
            let json = serde_json::to_value(&report).unwrap();
            let again: BatchReport = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap(), json, "{count}");
            let failed = |report: &BatchReport| report.failed_with(ErrorKind::NotFound);
            assert_eq!(
                (again.lines(), failed(&again)),
                (report.lines(), failed(&report))
            );
        }
    }
}
