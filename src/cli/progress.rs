//! How far a batch is, how fast it goes, and how long it will take: the line that moves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use genesys_attributes::Status;

/// What the outcomes so far add up to.
#[derive(Default)]
pub(crate) struct Counts {
    /// Lines by their status, in the order of [`Status::ALL`].
    by_status: [AtomicU64; Status::ALL.len()],
    /// The platform is out of reach.
    pub(crate) outage: AtomicBool,
}

impl Counts {
    pub(crate) fn count(&self, status: Status) {
        let mut all = Status::ALL.iter().zip(&self.by_status);
        if let Some((_, counter)) = all.find(|(one, _)| **one == status) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn of(&self, status: Status) -> u64 {
        let mut all = self.each();
        all.find(|(one, _)| *one == status).map_or(0, |(_, n)| n)
    }

    pub(crate) fn done(&self) -> u64 {
        self.each().map(|(_, count)| count).sum()
    }

    /// Each status that a line can end with, and how many lines did.
    fn each(&self) -> impl Iterator<Item = (Status, u64)> {
        let all = Status::ALL.iter().zip(&self.by_status);
        all.map(|(status, counter)| (*status, counter.load(Ordering::Relaxed)))
            .filter(|(status, _)| !matches!(status, Status::Pending | Status::Refused))
    }

    /// What the client's own metrics do not tell, as Prometheus text.
    pub(crate) fn to_prometheus(&self) -> String {
        const LINES: &str = "genesys_attributes_lines_total";
        const OUTAGE: &str = "genesys_attributes_outage";
        let mut text = format!("# HELP {LINES} Lines by how they ended.\n# TYPE {LINES} counter\n");
        for (status, count) in self.each() {
            text += &format!("{LINES}{{status=\"{}\"}} {count}\n", status.name());
        }
        let outage = u8::from(self.outage.load(Ordering::Relaxed));
        text + &format!(
            "# HELP {OUTAGE} Whether the platform is out of reach.\n# TYPE {OUTAGE} gauge\n{OUTAGE} {outage}\n"
        )
    }
}

/// What a tick sees.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// API requests so far.
    pub(crate) requests: u64,
    /// Answers so far that asked to slow down.
    pub(crate) rate_limited: u64,
    /// The platform is out of reach.
    pub(crate) outage: bool,
}

/// A slot of the rate limit is free again after so long.
const WINDOW: Duration = Duration::from_secs(60);

/// The course of a batch, from one look a second.
pub(crate) struct Pace {
    started: Instant,
    /// How many lines there are to run, where that is known.
    total: Option<u64>,
    /// Requests a minute at most.
    limit: Option<u32>,
    /// When how many requests had been sent, over the last minute and the look before it.
    samples: VecDeque<(Instant, u64)>,
    /// When the number of requests last grew, and how many slow-downs there had been by then.
    moved: (Instant, u64),
}

impl Pace {
    pub(crate) fn new(now: Instant, total: Option<u64>, limit: Option<u32>) -> Pace {
        Pace {
            started: now,
            total,
            limit,
            samples: VecDeque::from([(now, 0)]),
            moved: (now, 0),
        }
    }

    /// The line for a terminal of `width` columns.
    pub(crate) fn line(&mut self, now: Instant, seen: Seen, width: usize) -> String {
        self.look(now, seen);
        let mut parts = vec![match self.total {
            Some(total) => format!("{}/{total}", seen.done),
            None => format!("{} done", seen.done),
        }];
        let waiting = self.waiting(now, seen);
        // The longer form where there is room for it.
        if let Some((long, brief)) = waiting {
            let room = width.saturating_sub(30);
            parts.push(if long.chars().count() <= room {
                long
            } else {
                brief
            });
        }
        if let Some(left) = self.left(now, seen) {
            parts.push(format!("{} left", in_words(left)));
        }
        if seen.failed > 0 || seen.skipped == 0 {
            parts.push(format!("{} failed", seen.failed));
        }
        if seen.skipped > 0 {
            parts.push(format!("{} skipped", seen.skipped));
        }
        let minutes = (now - self.started).as_secs_f64().max(1.0) / 60.0;
        parts.push(format!("{:.0} a minute", seen.done as f64 / minutes));
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

    fn look(&mut self, now: Instant, seen: Seen) {
        if self
            .samples
            .back()
            .is_none_or(|(_, last)| *last < seen.requests)
        {
            self.moved = (now, seen.rate_limited);
        }
        self.samples.push_back((now, seen.requests));
        // The newest look from before the window stays, as what the window began with.
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| *at + WINDOW <= now)
        {
            self.samples.pop_front();
        }
    }

    /// How many requests the last minute saw, and when the first of them no longer counts.
    fn window(&self, now: Instant) -> (u64, Duration) {
        let Some((_, before)) = self.samples.front() else {
            return (0, Duration::ZERO);
        };
        let used = self.samples.back().map_or(0, |(_, last)| last - before);
        let first = self.samples.iter().find(|(_, requests)| requests > before);
        let frees = first.map_or(Duration::ZERO, |(at, _)| {
            (*at + WINDOW).saturating_duration_since(now)
        });
        (used, frees)
    }

    /// What the batch waits for, where it is a limit: in full, and briefly.
    fn waiting(&self, now: Instant, seen: Seen) -> Option<(String, String)> {
        if seen.outage {
            return Some((
                "waiting, since the platform is out of reach".to_owned(),
                "out of reach".to_owned(),
            ));
        }
        let still = now.saturating_duration_since(self.moved.0);
        if still < Duration::from_secs(2) {
            return None;
        }
        let (used, frees) = self.window(now);
        if self.limit.is_some_and(|limit| used >= u64::from(limit)) {
            let seconds = frees.as_secs().max(1);
            return Some((
                format!("waiting for the rate limit, next in {seconds} s"),
                format!("rate limit {seconds} s"),
            ));
        }
        (seen.rate_limited > self.moved.1).then(|| {
            (
                "waiting, since the platform asked to slow down".to_owned(),
                "slowed down".to_owned(),
            )
        })
    }

    /// How long the rest takes: not less than the rate limit makes it.
    fn left(&self, now: Instant, seen: Seen) -> Option<Duration> {
        let lines = self.total?.saturating_sub(seen.done);
        let elapsed = (now - self.started).as_secs_f64();
        if seen.done == 0 || elapsed < 1.0 {
            return None;
        }
        let by_speed = lines as f64 * elapsed / seen.done as f64;
        let mut seconds = by_speed;
        if let Some(limit) = self.limit.map(f64::from) {
            let needed = lines as f64 * seen.requests as f64 / seen.done as f64;
            let (used, frees) = self.window(now);
            let free = (limit - used as f64).max(0.0);
            if needed > free {
                let rounds = ((needed - free - 1.0).max(0.0) / limit).floor();
                let by_limit = frees.as_secs_f64() + rounds * WINDOW.as_secs_f64();
                // While slots are used up in bursts the speed so far says nothing.
                seconds = match now - self.started < 2 * WINDOW {
                    true => by_limit,
                    false => by_limit.max(by_speed),
                };
            }
        }
        Some(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
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
    use genesys_attributes::clock::{Clock, SystemClock};

    fn seen(done: u64, requests: u64) -> Seen {
        Seen {
            done,
            failed: 3,
            skipped: 0,
            requests,
            rate_limited: 0,
            outage: false,
        }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn line_without_a_limit_goes_by_the_speed() {
        let start = SystemClock.now();
        let mut pace = Pace::new(start, Some(400), None);
        assert_eq!(
            pace.line(after(start, 20), seen(100, 200), 80),
            "100/400, 1 min 0 s left, 3 failed, 300 a minute"
        );
        assert_eq!(
            pace.line(after(start, 20), seen(100, 200), 20),
            "100/400, 3 failed"
        );
        let mut pace = Pace::new(start, None, None);
        assert_eq!(
            pace.line(after(start, 20), seen(100, 200), 80),
            "100 done, 3 failed, 300 a minute"
        );
    }

    #[test]
    fn burst_over_the_limit_promises_no_less_than_the_limit_takes() {
        let start = SystemClock.now();
        let mut pace = Pace::new(start, Some(300), Some(300));
        // 150 lines of two requests in the first second; 300 requests are left.
        let line = pace.line(after(start, 1), seen(150, 300), 80);
        assert!(line.contains("1 min 0 s left"), "{line}");
        for second in 2..30 {
            pace.line(after(start, second), seen(150, 300), 80);
        }
        let line = pace.line(after(start, 30), seen(150, 300), 100);
        assert!(
            line.contains("waiting for the rate limit, next in 31 s"),
            "{line}"
        );
        assert!(line.contains("31 s left"), "{line}");
        let line = pace.line(after(start, 30), seen(150, 300), 40);
        assert_eq!(line, "150/300, rate limit 31 s, 31 s left");
        // Many lines: the rounds that are needed, not the burst's speed.
        let mut pace = Pace::new(start, Some(3_000), Some(300));
        let line = pace.line(after(start, 1), seen(150, 300), 80);
        assert!(line.contains("19 min 0 s left"), "{line}");
    }

    #[test]
    fn line_never_reaches_the_last_column() {
        let start = SystemClock.now();
        for width in 10..120 {
            let mut pace = Pace::new(start, Some(1_000_000), Some(300));
            for second in 1..70 {
                let line = pace.line(after(start, second), seen(second * 9, 300), width);
                assert!(line.chars().count() < width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn slow_down_of_the_platform_is_told() {
        let start = SystemClock.now();
        let mut pace = Pace::new(start, None, None);
        pace.line(after(start, 1), seen(5, 10), 80);
        let slowed = Seen {
            rate_limited: 1,
            ..seen(5, 10)
        };
        let line = pace.line(after(start, 4), slowed, 80);
        assert!(line.contains("the platform asked to slow down"), "{line}");
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
