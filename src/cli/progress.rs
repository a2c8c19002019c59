//! What a person sees: a line that moves while a batch runs, and a summary with a drawing at its
//! end. Only on a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use genesys_attributes::{
    BatchOutcome, BatchReport, BatchStatus, Clock, ErrorKind, Latency, SystemClock,
};

/// The line that moves, on standard error.
pub(crate) struct Progress {
    started: Instant,
    drawn: Option<Instant>,
    /// How many lines there are to run, where that is known.
    total: Option<u64>,
    done: u64,
    failed: u64,
}

/// Whether somebody is watching.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

impl Progress {
    /// `None` when nobody is watching.
    pub(crate) fn start(total: Option<u64>) -> Option<Progress> {
        is_watched().then(|| Progress {
            started: SystemClock.now(),
            drawn: None,
            total,
            done: 0,
            failed: 0,
        })
    }

    pub(crate) fn count(&mut self, outcome: &BatchOutcome) {
        self.done += 1;
        if matches!(outcome.status, BatchStatus::Failed | BatchStatus::Skipped) {
            self.failed += 1;
        }
        let now = SystemClock.now();
        let due = self
            .drawn
            .is_none_or(|drawn| now - drawn >= Duration::from_millis(100));
        if due {
            self.drawn = Some(now);
            // A terminal that is gone is no reason to stop.
            let _ = write!(io::stderr(), "\r\x1b[K{}", self.line(now - self.started));
        }
    }

    /// Clears the line.
    pub(crate) fn end(self) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }

    fn line(&self, elapsed: Duration) -> String {
        let Progress {
            total,
            done,
            failed,
            ..
        } = *self;
        let per_second = done as f64 / elapsed.as_secs_f64().max(0.001);
        let mut line = match total {
            Some(total) => format!("{done} of {total}"),
            None => format!("{done} done"),
        };
        let _ = write!(line, ", {:.0} a minute, {failed} failed", per_second * 60.0);
        if let Some(total) = total
            && per_second > 0.0
        {
            let left = total.saturating_sub(done) as f64 / per_second;
            let _ = write!(line, ", {} left", in_words(Duration::from_secs_f64(left)));
        }
        line
    }
}

fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// The summary of a batch, in words and with a histogram of the latencies.
pub(crate) fn summary(report: &BatchReport) -> String {
    let mut text = format!(
        "{} lines in {:.1} s ({:.0} a minute): {} applied, {} already applied, {} unchanged, {} \
         failed, {} skipped\n",
        report.lines(),
        report.elapsed.as_secs_f64(),
        report.per_minute(),
        report.applied,
        report.already_applied,
        report.unchanged,
        report.failed,
        report.skipped
    );
    for kind in ErrorKind::ALL {
        let count = report.failed_with(kind);
        if count > 0 {
            let _ = writeln!(text, "  failed with {kind}: {count}");
        }
    }
    text + &drawing(&report.latency)
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
    let Some(first) = rows.iter().position(|(_, n)| *n > 0) else {
        return text;
    };
    let last = rows.iter().rposition(|(_, n)| *n > 0).unwrap_or(first);
    let most = rows.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    for (power, n) in &rows[first..=last] {
        let bar = "#".repeat(((n * 40).div_ceil(most)) as usize);
        let below = format!("{:.1?}", edge(power + 1));
        let _ = writeln!(text, "  < {below:>8} {bar:<40} {n}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_known() {
        let mut progress = Progress {
            started: SystemClock.now(),
            drawn: None,
            total: Some(400),
            done: 100,
            failed: 2,
        };
        assert_eq!(
            progress.line(Duration::from_secs(20)),
            "100 of 400, 300 a minute, 2 failed, 1 min 0 s left"
        );
        progress.total = None;
        assert_eq!(
            progress.line(Duration::from_secs(20)),
            "100 done, 300 a minute, 2 failed"
        );
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
