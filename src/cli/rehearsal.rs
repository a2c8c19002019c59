//! `batch --dry-run` and `batch --diff`: what a run would do, without any write.

use genesys_attributes::{Client, Error, ErrorKind};
use serde::Serialize;

use super::batch::{config, pending, print_line};
use super::commands::refusals;
use super::diff::{Diff, diff};
use super::options::{Batch, Options};
use super::records::Lines;
use super::source::Opened;
use super::summary::many;
use super::{Exit, Failure, Run, closed, screen};

/// Neither the platform nor a file is written.
pub(crate) fn rehearse(options: &Options, batch: &Batch) -> Run {
    let config = config(options, batch)?;
    let mut opened = Opened::of(&batch.input).map_err(Failure::usage)?;
    let pending = pending(&mut opened, batch).map_err(Failure::usage)?;
    let lines = opened.lines().map_err(Failure::usage)?;
    let wanted = |line| pending.as_ref().is_none_or(|lines| lines.contains(&line));
    if batch.diff {
        return show_diffs(&config.reader()?, lines, wanted);
    }
    let (valid, refused) = refusals(lines, &config.checker()?, wanted)?;
    screen::summary(
        &format!(
            "{} would be sent, {} would be refused; nothing was sent or written",
            many(valid, "update"),
            many(refused, "line")
        ),
        serde_json::json!({ "wouldBeSent": valid, "refused": refused }),
    );
    Ok(if refused == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Each line against what is there now.
fn show_diffs(client: &Client, mut lines: Lines, wanted: impl Fn(u64) -> bool) -> Run {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown<'a> {
        line: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        conversation_id: Option<&'a str>,
        #[serde(flatten)]
        diff: Option<Diff>,
        #[serde(flatten)]
        failed: Option<Failed>,
    }
    #[derive(Serialize)]
    struct Failed {
        status: &'static str,
        error: Error,
    }

    let (mut change, mut same, mut failed) = (0u64, 0u64, 0u64);
    for line in lines.wanted(wanted) {
        let result = match &line.update {
            Ok(update) => diff(client, update),
            Err(problem) => Err(problem.clone()),
        };
        let (diff, failure) = match result {
            Ok(diff) => (Some(diff), None),
            // It would be the same with every line.
            Err(error) if error.kind() == ErrorKind::Auth || error.during_login() => {
                return Err(error.into());
            }
            Err(error) => (
                None,
                Some(Failed {
                    status: "failed",
                    error,
                }),
            ),
        };
        match &diff {
            None => failed += 1,
            Some(diff) if diff.changes.is_empty() => same += 1,
            Some(_) => change += 1,
        }
        let update = line.update.as_ref().ok();
        let shown = Shown {
            line: line.number,
            conversation_id: update.map(|update| update.target().conversation_id()),
            diff,
            failed: failure,
        };
        print_line(&shown).map_err(|error| closed(&error, Exit::BrokenPipe))?;
    }
    lines.end()?;
    screen::summary(
        &format!(
            "{} would change something, {same} nothing, {failed} failed; nothing was written",
            many(change, "line")
        ),
        serde_json::json!({ "wouldChange": change, "unchanged": same, "failed": failed }),
    );
    Ok(if failed == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}
