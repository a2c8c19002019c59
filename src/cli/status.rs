//! `status`: what a results file holds, also while a batch writes it.

use std::fmt::Write as _;
use std::path::Path;

use genesys_attributes::Error;
use genesys_attributes::batch::{Journal, JournalSummary};
use serde_json::{Value, json};

use super::batch::numbered;
use super::files::Files;
use super::options::{Input, Status};
use super::source::Opened;
use super::summary::many;
use super::{Exit, Failure, Run, print, print_json};

pub(crate) fn status(asked: &Status, as_json: bool) -> Run {
    let results = asked.results.as_path();
    let input = asked.file.as_ref().map(|file| Input {
        file: Some(file.clone()).filter(|file| file.as_os_str() != "-"),
        format: asked.format.clone(),
        which: Default::default(),
        shard: None,
    });
    let input = input.as_ref();
    Files::default()
        .read("the results file", Some(results))
        .and_then(|files| files.read("the input", input.and_then(|input| input.file.as_deref())))
        .and_then(|files| files.streams(input.is_some_and(|input| input.file.is_none())))
        .map_err(Failure::usage)?;
    if asked.failed {
        return list_failures(results, as_json);
    }
    let summary = Journal::summary(results).map_err(|e| Failure::usage(e.to_string()))?;
    let ahead = match input {
        Some(input) => Some(Ahead::of(&summary, results, input).map_err(Failure::usage)?),
        None => None,
    };
    let (resume, retried) = match &ahead {
        Some(ahead) => (ahead.resume, ahead.retried),
        None => (summary.unfinished, summary.failed),
    };
    let without = ahead.as_ref().map(|ahead| ahead.without);
    let refused = ahead.as_ref().and_then(|ahead| ahead.refused.as_deref());
    if as_json {
        let mut record = json!(summary);
        let more = json!({
            "resume": resume,
            "retryFailed": retried,
            "withoutOutcome": without,
            "resumeRefused": refused,
        });
        if let (Value::Object(record), Value::Object(more)) = (&mut record, more) {
            record.extend(more);
        }
        return print_json(&record);
    }
    let mut text = counted(results, &summary);
    let behind = match ahead {
        Some(_) => "",
        None => ", and the later lines of their conversations",
    };
    let _ = writeln!(
        text,
        "A resume would run {resume} of these lines again{behind}; with --retry-failed {retried} \
         more."
    );
    if let Some(problem) = refused {
        let _ = writeln!(text, "A resume would be refused: {problem}.");
    }
    let _ = match without {
        Some(without) => {
            let has = if without == 1 { "has" } else { "have" };
            writeln!(
                text,
                "{} of the input {has} no outcome yet.",
                many(without, "line")
            )
        }
        None => writeln!(
            text,
            "It would also run every line that has no outcome yet."
        ),
    };
    print(&text)
}

/// Lists the lines that failed or were skipped. The exit status says whether there are some.
fn list_failures(results: &Path, as_json: bool) -> Run {
    let failures = Journal::failures(results).map_err(|e| Failure::usage(e.to_string()))?;
    let mut text = String::new();
    for outcome in &failures {
        if as_json {
            text += &json!(outcome).to_string();
        } else {
            let _ = write!(text, "line {}", outcome.line);
            if let Some(id) = &outcome.conversation_id {
                let _ = write!(text, ", conversation {id}");
            }
            let _ = match (&outcome.error, &outcome.reason) {
                (Some(error), _) => write!(text, ": {}: {error}", error.kind().name()),
                (None, Some(reason)) => write!(text, ": skipped: {reason}"),
                (None, None) => write!(text, ": {}", outcome.status.name()),
            };
        }
        text.push('\n');
    }
    print(&text)?;
    Ok(if failures.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// How many lines ended in each way.
fn counted(results: &Path, summary: &JournalSummary) -> String {
    let mut text = format!(
        "{}: outcomes of {}, up to line {}\n",
        results.display(),
        many(summary.lines, "line"),
        summary.last_line
    );
    for (status, count) in &summary.by_status {
        if status != "failed" {
            let _ = writeln!(text, "  {count:>9}  {status}");
        }
    }
    for (kind, failed) in &summary.failed_by_kind {
        let first: Vec<String> = failed.lines.iter().map(u64::to_string).collect();
        let more = match failed.count > failed.lines.len() as u64 {
            true => ", ...",
            false => "",
        };
        let plural = if failed.count == 1 { "" } else { "s" };
        let how = match failed.may_pass {
            0 => "for good".to_owned(),
            all if all == failed.count => "may pass".to_owned(),
            some => format!("{some} may pass"),
        };
        let _ = writeln!(
            text,
            "  {:>9}  failed with {kind} ({how}; line{plural} {}{more})",
            failed.count,
            first.join(", ")
        );
    }
    text
}

/// What a resume over the input would do.
struct Ahead {
    /// Lines that have an outcome and would run again.
    resume: u64,
    /// How many more of them with `--retry-failed`.
    retried: u64,
    /// Lines that have no outcome.
    without: u64,
    /// Why a resume without `--retry-failed` would do nothing.
    refused: Option<String>,
}

impl Ahead {
    fn of(summary: &JournalSummary, results: &Path, input: &Input) -> Result<Ahead, String> {
        let mut opened = Opened::of(input)?;
        opened.spool()?;
        let mut all = opened.lines()?;
        let count = all.wanted(|_| true).count() as u64;
        all.failure()?;
        let pending = |retry: bool| -> Result<Result<u64, Error>, String> {
            let mut lines = opened.lines()?;
            let pending = Journal::pending(results, retry, numbered(&mut lines));
            Ok(pending.map(|lines| lines.count() as u64))
        };
        let (plain, retrying) = (pending(false)?, pending(true)?);
        let without = count.saturating_sub(summary.lines);
        let again = |pending: &Result<u64, Error>| {
            let lines = pending.as_ref().copied().unwrap_or(without);
            lines.saturating_sub(without)
        };
        let resume = again(&plain);
        Ok(Ahead {
            resume,
            retried: again(&retrying).saturating_sub(resume),
            without,
            refused: plain.err().map(|error| error.to_string()),
        })
    }
}
