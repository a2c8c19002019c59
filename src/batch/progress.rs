//! How far a batch is, what it waits for, and how long the rest will take.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::report::receipt::Status;
use crate::session::limiter::Wait;
use crate::util::sync::lock;

use super::report::BatchOutcome;

/// The rate is that of so much time before the last outcome.
const WINDOW: Duration = Duration::from_secs(60);
/// Shorter waits are not told.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// A look at a batch, from any thread; see [`Batch::progress`](super::Batch::progress).
#[derive(Clone)]
pub struct ProgressHandle(Arc<Inner>);

struct Inner {
    client: Client,
    course: Mutex<Course>,
}

/// How far a batch is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// Lines that have an outcome, of this run.
    pub done: u64,
    /// How many of those failed.
    pub failed: u64,
    /// How many of those were skipped.
    pub skipped: u64,
    /// How many lines there are to run, where that is known.
    pub total: Option<u64>,
    /// What all lines wait for.
    pub waiting: Option<Waiting>,
    /// Lines a minute: of the last minute, and not more than the rate limit lets through.
    pub per_minute: f64,
    /// How long the rest takes at this rate, waits included.
    pub left: Option<Duration>,
}

/// What all lines of a batch wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Waiting {
    /// The client's own rate limit, for this long.
    RateLimit(Duration),
    /// The end of a pause that the platform asked for, in this long.
    Pause(Duration),
    /// The end of an outage, which has lasted this long.
    Outage(Duration),
}

#[derive(Default)]
struct Course {
    started: Option<Instant>,
    done: u64,
    failed: u64,
    skipped: u64,
    requests: u64,
    total: Option<u64>,
    outage: Option<Instant>,
    /// When the last outcome came.
    last: Option<Instant>,
    /// When how many lines had been done, about once a second for a minute.
    samples: VecDeque<(Instant, u64)>,
}

impl Course {
    fn count(&mut self, outcome: &BatchOutcome, now: Instant) {
        self.done += 1;
        self.failed += u64::from(outcome.status == Status::Failed);
        self.skipped += u64::from(outcome.status == Status::Skipped);
        self.requests += u64::from(outcome.requests);
        self.last = Some(now);
        let newest = self.samples.back().map(|(at, _)| *at);
        if newest.is_none_or(|at| now >= at + MIN_WAIT) {
            self.samples.push_back((now, self.done));
        }
        // The newest sample from before the window stays, as what the window began with.
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| *at + WINDOW <= now)
        {
            self.samples.pop_front();
        }
    }

    fn look(&self, now: Instant, wait: Option<Wait>, limit: Option<usize>) -> Progress {
        let waiting = match (self.outage, wait) {
            (Some(since), _) => Some(Waiting::Outage(now.saturating_duration_since(since))),
            (None, Some(Wait::Slot(wait))) if wait >= MIN_WAIT => Some(Waiting::RateLimit(wait)),
            (None, Some(Wait::Pause(wait))) if wait >= MIN_WAIT => Some(Waiting::Pause(wait)),
            _ => None,
        };
        let started = self.started.unwrap_or(now);
        // A wait does not slow the lines down that come after it.
        let end = match (waiting, self.last) {
            (Some(_), Some(last)) => last,
            _ => now,
        };
        let old = self.samples.front().filter(|(at, _)| *at + WINDOW <= end);
        let (from, before) = old.copied().unwrap_or((started, 0));
        let span = end.saturating_duration_since(from).max(MIN_WAIT);
        let mut per_minute = (self.done - before) as f64 * 60.0 / span.as_secs_f64();
        if let Some(limit) = limit
            && self.requests > 0
        {
            per_minute = per_minute.min(limit as f64 * self.done as f64 / self.requests as f64);
        }
        let left = self.total.map(|total| total.saturating_sub(self.done));
        let left = left.filter(|_| per_minute > 0.0).map(|lines| {
            let seconds = (lines as f64 * 60.0 / per_minute).min(1e9);
            let left = Duration::from_secs_f64(seconds);
            match waiting {
                Some(Waiting::RateLimit(wait)) => left
                    .saturating_sub(now.saturating_duration_since(end))
                    .max(wait),
                Some(Waiting::Pause(wait)) => left + wait,
                _ => left,
            }
        });
        Progress {
            done: self.done,
            failed: self.failed,
            skipped: self.skipped,
            total: self.total,
            waiting,
            per_minute,
            left,
        }
    }
}

impl ProgressHandle {
    pub(super) fn new(client: &Client) -> ProgressHandle {
        ProgressHandle(Arc::new(Inner {
            client: client.clone(),
            course: Mutex::default(),
        }))
    }

    /// How far the batch is now.
    pub fn look(&self) -> Progress {
        let Inner { client, course } = &*self.0;
        let now = client.clock().now();
        lock(course).look(now, client.blocked(now), client.rate())
    }

    pub(super) fn expect(&self, lines: u64) {
        lock(&self.0.course).total = Some(lines);
    }

    /// The batch begins, after `finished` lines that need not run.
    pub(super) fn start(&self, now: Instant, finished: u64) {
        let mut course = lock(&self.0.course);
        course.started = Some(now);
        course.total = course.total.map(|total| total.saturating_sub(finished));
    }

    pub(super) fn count(&self, outcome: &BatchOutcome) {
        let now = self.0.client.clock().now();
        lock(&self.0.course).count(outcome, now);
    }

    pub(super) fn outage(&self, since: Option<Instant>) {
        lock(&self.0.course).outage = since;
    }
}

impl fmt::Debug for ProgressHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgressHandle").field(&self.look()).finish()
    }
}
