//! How a batch ended: what is said of it, and its exit status.

use std::time::Duration;

use genesys_attributes::batch::{BatchReport, StopReason};

use super::Exit;
use super::options::Options;
use super::progress::in_words;
use super::screen::{self, Style};
use super::summary::{self, Failures, many};

/// What there is to say at the end.
pub(crate) struct End<'a> {
    pub(crate) report: &'a BatchReport,
    pub(crate) failures: &'a Failures,
    /// Audit records that could not be written.
    pub(crate) lost: u64,
    /// True if nothing is sent without its audit record.
    pub(crate) strict: bool,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) signal: Option<(u8, &'static str)>,
}

impl End<'_> {
    pub(crate) fn report(&self, options: &Options, failed_earlier: u64, retried: bool) {
        let End {
            report,
            failures,
            lost,
            ..
        } = *self;
        let mut more = summary::json(report, failures, lost, self.retry_after);
        if !retried && failed_earlier > 0 {
            more["failedEarlier"] = failed_earlier.into();
        }
        let watched = screen::style() != Style::None;
        let text = summary::text(report, failures, watched);
        let text = text.strip_prefix("genesys-attributes: ").unwrap_or(&text);
        screen::summary(text, more);
        if options.json {
            return;
        }
        if lost > 0 {
            let records = many(lost, "audit record");
            let made = many(report.applied + report.already_applied, "update");
            let made = format!(
                "{made} {}",
                if made.starts_with("1 ") { "is" } else { "are" }
            );
            screen::error(&match self.strict {
                true => format!(
                    "{records} could not be written: a strict audit sends nothing without its \
                     record, and {made} in place"
                ),
                false => format!(
                    "{records} were lost, and {made} in place (--audit-strict sends nothing \
                     without its record)"
                ),
            });
        }
        if let Some(why) = self.why_stopped() {
            let text = format!("stopped early: {why}; lines without an outcome were not sent");
            match self.report.stopped {
                Some(StopReason::Cancelled) => screen::note(&text),
                // Also told where only errors are.
                _ => screen::error(&text),
            }
        }
        if !retried && failed_earlier > 0 {
            screen::note(&format!(
                "{} failed for good in an earlier run; --retry-failed runs them again",
                many(failed_earlier, "line")
            ));
        }
    }

    fn why_stopped(&self) -> Option<String> {
        Some(match self.report.stopped? {
            StopReason::Break | StopReason::Journal => return None,
            StopReason::Cancelled => match self.signal {
                Some((_, name)) => format!("{name} came (--results and --resume go on later)"),
                None => "it was cancelled".into(),
            },
            StopReason::Failures => "as many lines failed as --stop-after allows".into(),
            StopReason::Auth => "the credentials were refused".into(),
            StopReason::Forbidden => "the first 20 results were all the same refusal (once it is \
                                      mended, --retry-failed runs them again)"
                .into(),
            StopReason::RateLimited => match self.retry_after {
                Some(wait) => format!(
                    "the platform asks to wait {} s ({}), which is longer than is waited for; run \
                     the same command later",
                    wait.as_secs(),
                    in_words(wait)
                ),
                None => "the platform asks to wait for longer than is waited for; run the same \
                         command later"
                    .into(),
            },
            StopReason::Outage => format!(
                "the platform was out of reach for longer than --max-outage ({}); run the same \
                 command later",
                self.cause()
            ),
            StopReason::Login => {
                format!(
                    "no login can succeed with these settings ({})",
                    self.cause()
                )
            }
            StopReason::EndpointMissing => {
                "this organization does not offer the endpoint: use --participant, --secure or \
                 --custom, or the field target"
                    .into()
            }
            _ => "it could not go on".into(),
        })
    }

    /// What the batch met, in the platform's or the system's words.
    fn cause(&self) -> String {
        let error = self.report.error.as_ref();
        error.map_or_else(|| "unknown".into(), ToString::to_string)
    }

    pub(crate) fn exit(&self) -> Exit {
        match (self.report.stopped, self.signal) {
            (Some(StopReason::Cancelled), Some((status, _))) => Exit::Signal(status),
            (Some(StopReason::RateLimited), _) => Exit::RateLimited,
            (Some(StopReason::Outage), _) => Exit::Outage,
            (Some(_), _) => Exit::Refused,
            (None, _) if self.report.is_complete() => Exit::Done,
            (None, _) => Exit::Failed,
        }
    }
}
