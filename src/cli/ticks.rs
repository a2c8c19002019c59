//! What happens while a batch runs, whether outcomes come or not: signals, the progress, metrics.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use genesys_attributes::clock::{Clock, SystemClock};
use genesys_attributes::{Cancel, Client, Status};

use super::files::replace;
use super::options::Shard;
use super::progress::{Counts, Pace, Seen};
use super::screen::{self, Style};
use super::signals::Signals;

/// What happens while the batch runs, whether outcomes come or not.
pub(crate) struct Ticks {
    pub(crate) client: Client,
    pub(crate) counts: Arc<Counts>,
    pub(crate) signals: Signals,
    pub(crate) cancel: Cancel,
    pub(crate) metrics: Option<PathBuf>,
    pub(crate) shard: Option<Shard>,
    pub(crate) style: Style,
    pub(crate) pace: Pace,
    pub(crate) course: Course,
}

/// How far the ticks have come.
#[derive(Default)]
pub(crate) struct Course {
    ticks: u64,
    signal_told: bool,
    metrics_failed: bool,
}

impl Ticks {
    /// Every tenth of a second.
    fn tick(&mut self) {
        if !self.course.signal_told
            && let Some((_, name)) = self.signals.caught()
        {
            self.course.signal_told = true;
            self.cancel.cancel();
            screen::note(&format!(
                "{name}: what is in flight ends; a second signal stops at once"
            ));
        }
        let every = |seconds: u64| self.course.ticks.is_multiple_of(seconds * 10);
        let (second, metrics, half_minute) = (every(1), every(15), every(30));
        let begun = self.course.ticks == 0;
        self.course.ticks += 1;
        if second && self.style != Style::None {
            let line = self.line();
            match self.style {
                Style::Redrawn => screen::draw(&line),
                Style::Plain if half_minute && !begun => screen::note(&line),
                _ => {}
            }
        }
        if half_minute && !begun {
            screen::unfold();
        }
        if let Some(path) = &self.metrics
            && metrics
            && !begun
            && let Err(error) = write_metrics(path, &self.client, &self.counts, self.shard)
            && !std::mem::replace(&mut self.course.metrics_failed, true)
        {
            screen::warn(&format!("the file of --metrics cannot be written: {error}"));
        }
    }

    fn line(&mut self) -> String {
        let metrics = self.client.metrics();
        let seen = Seen {
            done: self.counts.done(),
            failed: self.counts.of(Status::Failed),
            skipped: self.counts.of(Status::Skipped),
            requests: metrics.requests,
            rate_limited: metrics.rate_limited,
            outage: self.counts.outage.load(Ordering::Relaxed),
        };
        self.pace.line(SystemClock.now(), seen, screen::width())
    }
}

/// The thread that ticks.
pub(crate) struct Ticker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Ticker {
    pub(crate) fn start(mut ticks: Ticks) -> Ticker {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            loop {
                ticks.tick();
                let wait = stopped.recv_timeout(Duration::from_millis(100));
                if wait != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Ticker { stop, thread }
    }

    pub(crate) fn end(self) {
        drop(self.stop);
        // A panic there has been told by its own message.
        let _ = self.thread.join();
    }
}

/// Puts the metrics into the file, whole.
pub(crate) fn write_metrics(
    path: &Path,
    client: &Client,
    counts: &Counts,
    shard: Option<Shard>,
) -> io::Result<()> {
    let mut text = client.metrics().to_prometheus() + &counts.to_prometheus();
    if let Some(shard) = shard {
        text = labelled(&text, &format!("shard=\"{shard}\""));
    }
    replace(path, |out| out.write_all(text.as_bytes()))
}

/// Prometheus text with one more label on each series: one collector refuses the same series in two
/// files.
fn labelled(text: &str, label: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for line in text.lines() {
        match line.split_once([' ', '{']) {
            Some((name, rest)) if name != "#" => match line.contains('{') {
                true => out += &format!("{name}{{{label},{rest}"),
                false => out += &format!("{name}{{{label}}} {rest}"),
            },
            _ => out += line,
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_is_added_to_each_series() {
        let text = "# HELP a_total Things {of a kind}.\n# TYPE a_total counter\na_total 3\n\
                    b{le=\"+Inf\"} 2\nc{} 1\n";
        let expected = "# HELP a_total Things {of a kind}.\n# TYPE a_total counter\n\
                        a_total{shard=\"1/4\"} 3\nb{shard=\"1/4\",le=\"+Inf\"} 2\n\
                        c{shard=\"1/4\",} 1\n";
        assert_eq!(labelled(text, "shard=\"1/4\""), expected);
    }
}
