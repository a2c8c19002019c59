//! `status`: what a results file holds, without its lock, so also while a batch writes it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::files::Files;
use super::options::{Input, Shard, Status};
use super::past::{Past, Recorded};
use super::results::{Results, each_outcome};
use super::source::Opened;
use super::{Failure, Run, print, print_json};

const BLOCK: u64 = 1_024;

/// The last outcome of each line, as the number of its kind.
#[derive(Default)]
struct Tally {
    blocks: HashMap<u64, Box<[u8; BLOCK as usize]>>,
    kinds: Vec<Kind>,
    last: u64,
    shard: Option<String>,
}

/// One way that a line can have ended.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Kind {
    status: String,
    error: Option<String>,
    is_final: bool,
}

impl Tally {
    fn read(&mut self, record: &Recorded) -> Result<(), String> {
        let kind = Kind {
            status: record.status.clone(),
            error: record.error.as_ref().map(|error| error.kind.clone()),
            is_final: record.is_final,
        };
        let known = self.kinds.iter().position(|other| *other == kind);
        let number = known.unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
        // A line of another shard has no outcome here.
        let number = u8::try_from(if record.moved { 0 } else { number + 1 })
            .map_err(|_| "it has too many kinds".to_owned())?;
        let block = self.blocks.entry(record.line / BLOCK);
        let block = block.or_insert_with(|| Box::new([0; BLOCK as usize]));
        if let Some(slot) = block.get_mut((record.line % BLOCK) as usize) {
            *slot = number;
        }
        self.last = self.last.max(record.line);
        if self.shard.is_none() {
            self.shard.clone_from(&record.shard);
        }
        Ok(())
    }

    fn has(&self, line: u64) -> bool {
        let slot = self.blocks.get(&(line / BLOCK));
        slot.and_then(|block| block.get((line % BLOCK) as usize))
            .is_some_and(|number| *number > 0)
    }

    /// How many lines ended in each way, and the first few of them.
    fn counts(&self) -> BTreeMap<&Kind, (u64, Vec<u64>)> {
        let mut counts: BTreeMap<&Kind, (u64, Vec<u64>)> = BTreeMap::new();
        let mut numbers: Vec<&u64> = self.blocks.keys().collect();
        numbers.sort_unstable();
        for number in numbers {
            let block = self.blocks.get(number).into_iter().flat_map(|b| b.iter());
            for (at, kind) in block.enumerate() {
                let kind = usize::from(*kind)
                    .checked_sub(1)
                    .and_then(|n| self.kinds.get(n));
                if let Some(kind) = kind {
                    let (count, first) = counts.entry(kind).or_default();
                    *count += 1;
                    if first.len() < 5 {
                        first.push(number * BLOCK + at as u64);
                    }
                }
            }
        }
        counts
    }
}

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
    let shown = results.display().to_string();
    let file = File::open(results)
        .map_err(|e| Failure::usage(format!("the results file {shown} cannot be opened: {e}")))?;
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Err(Failure::usage(format!(
            "the results file {shown} is not a regular file"
        )));
    }
    let mut tally = Tally::default();
    each_outcome(&file, &shown, |record| tally.read(record)).map_err(Failure::usage)?;
    let ahead = match input {
        Some(input) => Some(Ahead::of(&tally, results, input).map_err(Failure::usage)?),
        None => None,
    };
    let counts = tally.counts();
    let sum = |wanted: &dyn Fn(&Kind) -> bool| -> u64 {
        let wanted = counts.iter().filter(|(kind, _)| wanted(kind));
        wanted.map(|(_, (count, _))| count).sum()
    };
    let lines = sum(&|_| true);
    let (again, retried) = match &ahead {
        Some(ahead) => (ahead.again, ahead.retried),
        None => (
            sum(&|kind| !kind.is_final),
            sum(&|kind| kind.is_final && kind.status == "failed"),
        ),
    };
    let without = ahead.as_ref().map(|ahead| ahead.without);
    let refused = ahead.as_ref().and_then(|ahead| ahead.refused.as_deref());
    if as_json {
        let mut by_status: BTreeMap<&str, u64> = BTreeMap::new();
        let mut by_kind: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
        for (kind, (count, first)) in &counts {
            *by_status.entry(&kind.status).or_default() += count;
            if let Some(error) = &kind.error {
                let entry = by_kind
                    .entry(error)
                    .or_insert_with(|| json!({ "count": 0, "lines": [] }));
                entry["count"] = (entry["count"].as_u64().unwrap_or(0) + count).into();
                if let Some(lines) = entry["lines"].as_array_mut() {
                    lines.extend(first.iter().map(|line| json!(line)));
                    lines.truncate(5);
                }
            }
        }
        return print_json(&json!({
            "lines": lines,
            "lastLine": tally.last,
            "byStatus": by_status,
            "failedByKind": by_kind,
            "resume": again,
            "retryFailed": retried,
            "withoutOutcome": without,
            "resumeRefused": refused,
            "shard": tally.shard,
        }));
    }
    let mut text = format!(
        "{shown}: outcomes of {lines} lines, up to line {}",
        tally.last
    );
    if let Some(shard) = &tally.shard {
        let _ = write!(text, ", of shard {shard}");
    }
    text.push('\n');
    for (kind, (count, first)) in &counts {
        let mut what = kind.status.clone();
        if let Some(error) = &kind.error {
            let _ = write!(what, " with {error}");
        }
        let _ = write!(text, "  {count:>9}  {what}");
        if kind.status == "failed" {
            let first: Vec<String> = first.iter().map(u64::to_string).collect();
            let how = if kind.is_final {
                "for good"
            } else {
                "may pass"
            };
            let more = if *count > first.len() as u64 {
                ", ..."
            } else {
                ""
            };
            let plural = if *count == 1 { "" } else { "s" };
            let _ = write!(text, " ({how}; line{plural} {}{more})", first.join(", "));
        }
        text.push('\n');
    }
    let behind = match ahead {
        Some(_) => "",
        None => ", and the later lines of their conversations",
    };
    let _ = writeln!(
        text,
        "A resume would run {again} of these lines again{behind}; with --retry-failed {retried} \
         more."
    );
    if let Some(problem) = refused {
        let _ = writeln!(text, "A resume would be refused: {problem}.");
    }
    let _ = match without {
        Some(1) => writeln!(text, "1 line of the input has no outcome yet."),
        Some(without) => writeln!(text, "{without} lines of the input have no outcome yet."),
        None => writeln!(
            text,
            "It would also run every line that has no outcome yet."
        ),
    };
    print(&text)
}

/// What a resume over the input would do.
struct Ahead {
    /// Lines that have an outcome and would run again.
    again: u64,
    /// How many more of them with `--retry-failed`.
    retried: u64,
    /// Lines of the results' shard that have no outcome.
    without: u64,
    /// Why a resume without `--retry-failed` would do nothing.
    refused: Option<String>,
}

impl Ahead {
    fn of(tally: &Tally, results: &Path, input: &Input) -> Result<Ahead, String> {
        let shard = tally.shard.as_deref().and_then(|text| {
            let (index, count) = text.split_once('/')?;
            let index = index.parse::<u64>().ok()?.checked_sub(1)?;
            let count = count.parse().ok().filter(|count| *count > 0)?;
            Some(Shard { index, count })
        });
        let input = Input {
            shard,
            ..input.clone()
        };
        let mut opened = Opened::of(&input)?;
        opened.spool()?;
        // As the resume does it, but nothing is written.
        let past = |retry_failed: bool| -> Result<Past, String> {
            let Some(mut results) = Results::open(results, true, shard, false)? else {
                return Ok(Past::default());
            };
            let mut past = results.past()?;
            if !past.is_empty() {
                results.take_up(&mut past, retry_failed, || opened.lines())?;
            }
            Ok(past)
        };
        let (plain, retrying) = (past(false), past(true));
        let mut ahead = Ahead {
            again: 0,
            retried: 0,
            without: 0,
            refused: plain.as_ref().err().cloned(),
        };
        let mut lines = opened.lines()?;
        while let Some(record) = lines.next_record() {
            let line = record.number;
            let ours = || shard.is_none() || lines.read(&record).is_some();
            if !tally.has(line) {
                ahead.without += u64::from(ours());
                continue;
            }
            let runs = |past: &Result<Past, String>, retry| {
                past.as_ref().is_ok_and(|past| past.wants(line, retry))
            };
            let again = runs(&plain, false);
            ahead.again += u64::from(again);
            // A line that was corrected may be another shard's now.
            ahead.retried += u64::from(!again && runs(&retrying, true) && ours());
        }
        lines.failure().map(|()| ahead)
    }
}
