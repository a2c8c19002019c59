//! How far a batch is: the line that shows it, and the counts for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use genesys_attributes::Status;
use genesys_attributes::batch::{Progress, Waiting};

/// The outcomes so far, by their status.
#[derive(Default)]
pub(crate) struct Counts([AtomicU64; Status::ALL.len()]);

impl Counts {
    pub(crate) fn count(&self, status: Status) {
        let mut all = Status::ALL.iter().zip(&self.0);
        if let Some((_, counter)) = all.find(|(one, _)| **one == status) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the client's own metrics do not have, as Prometheus text.
    pub(crate) fn to_prometheus(&self, outage: bool) -> String {
        const LINES: &str = "genesys_attributes_lines_total";
        const OUTAGE: &str = "genesys_attributes_outage";
        let mut text = format!("# HELP {LINES} Lines by how they ended.\n# TYPE {LINES} counter\n");
        for (status, counter) in Status::ALL.iter().zip(&self.0) {
            if !matches!(status, Status::Pending | Status::Refused) {
                let count = counter.load(Ordering::Relaxed);
                text += &format!("{LINES}{{status=\"{}\"}} {count}\n", status.name());
            }
        }
        let outage = u8::from(outage);
        text + &format!(
            "# HELP {OUTAGE} Whether the platform is out of reach.\n# TYPE {OUTAGE} gauge\n{OUTAGE} {outage}\n"
        )
    }
}

/// The progress in one line of fewer columns than `width`.
pub(crate) fn line(progress: &Progress, width: usize) -> String {
    let mut parts = vec![match progress.total {
        Some(total) => format!("{}/{total}", progress.done),
        None => format!("{} done", progress.done),
    }];
    if let Some(waiting) = progress.waiting {
        let (long, short) = reason(waiting);
        let fits = long.chars().count() + 30 <= width;
        parts.push(if fits { long } else { short });
    }
    if let Some(left) = progress.left {
        parts.push(format!("{} left", in_words(left)));
    }
    if progress.failed > 0 || progress.skipped == 0 {
        parts.push(format!("{} failed", progress.failed));
    }
    if progress.skipped > 0 {
        parts.push(format!("{} skipped", progress.skipped));
    }
    parts.push(format!("{:.0} a minute", progress.per_minute));
    let mut line = String::new();
    for part in parts {
        let comma = if line.is_empty() { "" } else { ", " };
        // The last column stays free: some terminals begin a new line there.
        if line.chars().count() + comma.len() + part.chars().count() < width {
            line += comma;
            line += &part;
        }
    }
    line
}

/// What the batch waits for: in full, and in few words.
fn reason(waiting: Waiting) -> (String, String) {
    match waiting {
        Waiting::RateLimit(wait) => {
            let wait = in_words(wait);
            (
                format!("waiting for the rate limit, next in {wait}"),
                format!("rate limit {wait}"),
            )
        }
        Waiting::Pause(wait) => {
            let wait = in_words(wait);
            (
                format!("the platform asked for a pause, which ends in {wait}"),
                format!("pause {wait}"),
            )
        }
        Waiting::Outage(since) => (
            format!("the platform is out of reach for {}", in_words(since)),
            "out of reach".into(),
        ),
        _ => ("waiting".into(), "waiting".into()),
    }
}

pub(crate) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A progress of 150 of 300 lines, which waits for `what` with 31 s to go.
    fn progress(what: Option<&str>) -> Progress {
        let wait = json!({ "secs": 31, "nanos": 0 });
        let waiting = what.map(|what| json!({ what: wait.clone() }));
        let progress = json!({
            "done": 150, "failed": 3, "skipped": 0, "total": 300, "waiting": waiting,
            "per_minute": 299.6, "left": wait,
        });
        serde_json::from_value(progress).unwrap()
    }

    #[test]
    fn line_says_what_is_waited_for_and_until_when() {
        for (what, long, short) in [
            (
                None,
                "150/300, 31 s left, 3 failed, 300 a minute",
                "150/300, 31 s left, 3 failed",
            ),
            (
                Some("rateLimit"),
                "150/300, waiting for the rate limit, next in 31 s, 31 s left, 3 failed, 300 a minute",
                "150/300, rate limit 31 s, 31 s left",
            ),
            (
                Some("pause"),
                "150/300, the platform asked for a pause, which ends in 31 s, 31 s left, 3 failed, 300 a minute",
                "150/300, pause 31 s, 31 s left",
            ),
            (
                Some("outage"),
                "150/300, the platform is out of reach for 31 s, 31 s left, 3 failed, 300 a minute",
                "150/300, out of reach, 31 s left",
            ),
        ] {
            assert_eq!(line(&progress(what), 120), long);
            assert!(line(&progress(what), 40).starts_with(short), "{what:?}");
        }
    }

    #[test]
    fn line_never_reaches_the_last_column() {
        for what in [None, Some("rateLimit"), Some("pause"), Some("outage")] {
            for width in 10..120 {
                let line = line(&progress(what), width);
                assert!(line.chars().count() < width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn durations_in_words() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (7_260, "2 h 1 min"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
