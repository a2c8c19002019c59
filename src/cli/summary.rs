//! What is said at the end of a batch: one line always, a table of the failures where there are
//! some, and a drawing of the latencies for somebody who watches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use genesys_attributes::batch::BatchReport;
use genesys_attributes::metrics::Latency;
use serde_json::{Value, json};

/// How many line numbers are told of each kind of failure.
const FIRST: usize = 5;

/// The failures of a run by their kind: how many, and the first lines.
#[derive(Default)]
pub(crate) struct Failures(BTreeMap<String, (u64, BTreeSet<u64>)>);

impl Failures {
    pub(crate) fn count(&mut self, kind: &str, line: u64) {
        let (count, first) = self.0.entry(kind.to_owned()).or_default();
        *count += 1;
        first.insert(line);
        if first.len() > FIRST {
            first.pop_last();
        }
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for (kind, (count, lines)) in &self.0 {
            let shown: Vec<String> = lines.iter().map(u64::to_string).collect();
            let more = if *count > lines.len() as u64 {
                ", ..."
            } else {
                ""
            };
            let plural = if *count == 1 { "" } else { "s" };
            let _ = writeln!(
                text,
                "  {count:>9}  {kind} (line{plural} {}{more})",
                shown.join(", ")
            );
        }
        text
    }

    fn json(&self) -> Value {
        let kinds = self.0.iter().map(|(kind, (count, lines))| {
            (kind.clone(), json!({ "count": count, "lines": lines }))
        });
        Value::Object(kinds.collect())
    }
}

/// A count and its noun, such as "1 line" and "2 lines".
pub(crate) fn many(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The summary in words.
pub(crate) fn text(report: &BatchReport, failures: &Failures, watched: bool) -> String {
    let mut text = format!(
        "genesys-attributes: {} in {:.1} s: {} applied, {} already applied, {} unchanged, \
         {} failed, {} skipped\n",
        many(report.lines(), "line"),
        report.elapsed.as_secs_f64(),
        report.applied,
        report.already_applied,
        report.unchanged,
        report.failed,
        report.skipped
    );
    text += &failures.table();
    if watched {
        text += &drawing(&report.latency);
    }
    text
}

/// The summary as an object: the report's fields, and the first lines of each kind of failure.
pub(crate) fn json(
    report: &BatchReport,
    failures: &Failures,
    audit_failures: u64,
    retry_after: Option<Duration>,
) -> Value {
    let mut summary = serde_json::to_value(report).unwrap_or_else(|_| json!({}));
    if let Some(fields) = summary.as_object_mut() {
        fields.insert("failures".into(), failures.json());
        fields.insert("auditFailures".into(), audit_failures.into());
        if let Some(wait) = retry_after {
            fields.insert("retryAfterSeconds".into(), wait.as_secs().into());
        }
    }
    summary
}

/// The latencies as bars, a row for each power of two.
fn drawing(latency: &Latency) -> String {
    let count = latency.count();
    if count == 0 {
        return String::new();
    }
    let mut text = format!(
        "latency: p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, max {:.1?}\n",
        latency.quantile(0.5),
        latency.quantile(0.9),
        latency.quantile(0.99),
        latency.max()
    );
    let edge = |power: u32| Duration::from_micros(1 << power);
    // Powers of two from 0.26 ms to 134 s.
    let rows: Vec<(u32, u64)> = (8..28)
        .map(|power| {
            let below = if power == 8 {
                0
            } else {
                latency.count_below(edge(power))
            };
            let upto = if power == 27 {
                count
            } else {
                latency.count_below(edge(power + 1))
            };
            (power, upto.saturating_sub(below))
        })
        .collect();
    let most = rows.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    let shown = |row: &&(u32, u64)| row.1 > 0;
    let first = rows.iter().find(shown).map_or(8, |row| row.0);
    let last = rows.iter().rev().find(shown).map_or(8, |row| row.0);
    for (power, n) in rows
        .iter()
        .filter(|(power, _)| (first..=last).contains(power))
    {
        // Narrow enough for 40 columns.
        let bar = "#".repeat(((n * 16).div_ceil(most)) as usize);
        let below = format!("{:.1?}", edge(power + 1));
        let _ = writeln!(text, "  < {below:>8} {bar:<16} {n}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_by_kind_with_their_first_lines() {
        let mut failures = Failures::default();
        for line in [9, 2, 30, 4, 5, 6, 7] {
            failures.count("notFound", line);
        }
        failures.count("conflict", 8);
        assert_eq!(
            failures.table(),
            "          1  conflict (line 8)\n          7  notFound (lines 2, 4, 5, 6, 7, ...)\n"
        );
        assert_eq!(
            failures.json()["conflict"],
            json!({ "count": 1, "lines": [8] })
        );
    }
}
