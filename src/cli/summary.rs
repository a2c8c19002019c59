//! The summary at the end of a batch: one line, the failures by kind, and the latencies if a person
//! watches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use genesys_attributes::batch::BatchReport;
use genesys_attributes::clock::short;
use serde_json::{Value, json};

/// How many line numbers are shown for each kind of failure.
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
            let mut shown: Vec<String> = lines.iter().map(u64::to_string).collect();
            if *count > lines.len() as u64 {
                shown.push("...".into());
            }
            let plural = if *count == 1 { "" } else { "s" };
            let shown = shown.join(", ");
            let _ = writeln!(text, "  {count:>9}  {kind} (line{plural} {shown})");
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
    let mut text = format!("genesys-attributes: {report}\n");
    text += &failures.table();
    let latency = &report.latency;
    if watched && latency.count() > 0 {
        let _ = writeln!(
            text,
            "latency: p50 {}, p90 {}, p99 {}, max {}",
            short(latency.quantile(0.5)),
            short(latency.quantile(0.9)),
            short(latency.quantile(0.99)),
            short(latency.max())
        );
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
    summary["failures"] = failures.json();
    summary["auditFailures"] = audit_failures.into();
    if let Some(wait) = retry_after {
        summary["retryAfterSeconds"] = wait.as_secs().into();
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_kind_with_their_first_lines() {
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

    #[test]
    fn counts_agree_with_their_nouns() {
        for (count, text) in [(0, "0 lines"), (1, "1 line"), (2, "2 lines")] {
            assert_eq!(many(count, "line"), text);
        }
    }
}
