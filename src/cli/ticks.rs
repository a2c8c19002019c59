//! The thread that looks at signals, shows the progress and writes the metrics while a batch runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use genesys_attributes::batch::{ProgressHandle, Waiting};
use genesys_attributes::clock::{Clock, SystemClock};
use genesys_attributes::{Cancel, Client};

use super::Exit;
use super::files::replace;
use super::options::Shard;
use super::progress::{self, Counts};
use super::screen::{self, Style};
use super::signals::Signals;

/// What the thread looks at and writes.
pub(crate) struct Ticks {
    pub(crate) progress: ProgressHandle,
    pub(crate) signals: Signals,
    pub(crate) cancel: Cancel,
    pub(crate) metrics: Option<MetricsFile>,
    pub(crate) style: Style,
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
            let line = progress::line(&self.progress.look(), screen::width());
            match self.style {
                Style::Redrawn => screen::draw(&line),
                Style::Plain if half_minute && !begun => screen::note(&line),
                _ => {}
            }
        }
        if half_minute && !begun {
            screen::unfold();
        }
        if let Some(file) = &self.metrics
            && metrics
            && !begun
            && let Err(error) = file.write(None)
            && !std::mem::replace(&mut self.course.metrics_failed, true)
        {
            screen::warn(&format!("the file of --metrics cannot be written: {error}"));
        }
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
        // A panic there printed its own message.
        let _ = self.thread.join();
    }
}

/// The file of `--metrics`.
#[derive(Clone)]
pub(crate) struct MetricsFile {
    pub(crate) path: PathBuf,
    pub(crate) client: Client,
    pub(crate) counts: Arc<Counts>,
    pub(crate) progress: ProgressHandle,
    pub(crate) shard: Option<Shard>,
}

impl MetricsFile {
    /// Replaces the file. `end` is the exit status, and whether each line has an outcome.
    pub(crate) fn write(&self, end: Option<(Exit, bool)>) -> io::Result<()> {
        let outage = matches!(self.progress.look().waiting, Some(Waiting::Outage(_)));
        let mut text = self.client.metrics().to_prometheus() + &self.counts.to_prometheus(outage);
        let mut gauge = |name: &str, help: &str, value: u64| {
            let name = format!("genesys_attributes_batch_{name}");
            text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        };
        let complete = end.is_some_and(|(_, complete)| complete);
        gauge(
            "complete",
            "1 if the batch has ended and each line of its input has an outcome.",
            complete.into(),
        );
        if let Some((exit, _)) = end {
            let now = SystemClock.wall().duration_since(UNIX_EPOCH);
            let now = now.unwrap_or_default().as_secs();
            gauge(
                "end_timestamp_seconds",
                "Time at which the batch ended.",
                now,
            );
            let status = exit.status().into();
            gauge("exit_status", "Exit status of the program.", status);
        }
        if let Some(shard) = self.shard {
            text = labelled(&text, &format!("shard=\"{shard}\""));
        }
        replace(&self.path, |out| out.write_all(text.as_bytes()))
    }
}

/// Prometheus text with one more label on each series. A collector refuses one series in two files.
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
