//! `status`: what a results file holds, without its lock, so also while a batch writes it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::options::{Input, Shard};
use super::past::Recorded;
use super::records::{Opened, cut};
use super::results::each_outcome;
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
        let number = u8::try_from(number + 1).map_err(|_| "it has too many kinds".to_owned())?;
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

pub(crate) fn status(results: &Path, input: Option<&Input>, as_json: bool) -> Run {
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
    let without = match input {
        Some(input) => Some(without_outcome(&tally, input).map_err(Failure::usage)?),
        None => None,
    };
    let counts = tally.counts();
    let sum = |wanted: &dyn Fn(&Kind) -> bool| -> u64 {
        let wanted = counts.iter().filter(|(kind, _)| wanted(kind));
        wanted.map(|(_, (count, _))| count).sum()
    };
    let lines = sum(&|_| true);
    let (again, retried) = (
        sum(&|kind| !kind.is_final),
        sum(&|kind| kind.is_final && kind.status == "failed"),
    );
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
    let _ = writeln!(
        text,
        "A resume would run {again} of these lines again; with --retry-failed {retried} more."
    );
    let _ = match without {
        Some(without) => writeln!(text, "{without} lines of the input have no outcome yet."),
        None => writeln!(
            text,
            "It would also run every line that has no outcome yet."
        ),
    };
    print(&text)
}

/// How many lines of the input, of the results' shard, have no outcome.
fn without_outcome(tally: &Tally, input: &Input) -> Result<u64, String> {
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
    let mut lines = Opened::of(&input)?.lines()?;
    let mut count = 0;
    while let Some(record) = lines.next_record() {
        if !tally.has(record.number) && (shard.is_none() || lines.read(record).is_some()) {
            count += 1;
        }
    }
    match lines.failed.take() {
        Some(error) => Err(cut(error)),
        None => Ok(count),
    }
}
