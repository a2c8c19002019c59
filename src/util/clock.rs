//! Where the library takes the time from, and a clock for tests.

// The only place that reads a clock or sleeps.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::Result;
pub use crate::util::date::{rfc3339, short};
use crate::util::sync::{Cancel, Mutex, SLICE, lock};

/// A source of time, and the way to wait for it to pass.
///
/// The library takes every time and every wait from here, so that code built on it can be tested
/// without sleeping: see [`ManualClock`].
pub trait Clock: Send + Sync + fmt::Debug {
    /// The monotonic time.
    fn now(&self) -> Instant;
    /// The wall-clock time, used in records and to read an HTTP date.
    fn wall(&self) -> SystemTime;
    /// Blocks the thread for `duration`.
    fn sleep(&self, duration: Duration);
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that may
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    #[allow(clippy::disallowed_methods)]
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// A clock that stands still until it is told to move, or until somebody sleeps on it.
///
/// A sleep returns at once, moves the time forward by its length and is written down. Clones share
/// their time.
///
/// ```
/// use genesys_attributes::clock::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let start = clock.now();
/// clock.sleep(Duration::from_secs(3));
/// assert_eq!(clock.now() - start, Duration::from_secs(3));
/// assert_eq!(clock.sleeps(), [Duration::from_secs(3)]);
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    start: Instant,
    wall_start: SystemTime,
    state: Arc<Mutex<ManualState>>,
}

#[derive(Debug, Default)]
struct ManualState {
    passed: Duration,
    sleeps: Vec<Duration>,
}

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock::new()
    }
}

impl ManualClock {
    /// A clock whose wall time is 2026-01-01T00:00:00Z.
    pub fn new() -> ManualClock {
        ManualClock::starting_at(UNIX_EPOCH + Duration::from_secs(1_767_225_600))
    }

    /// A clock with the given wall time.
    pub fn starting_at(wall: SystemTime) -> ManualClock {
        ManualClock {
            start: SystemClock.now(),
            wall_start: wall,
            state: Arc::default(),
        }
    }

    /// Moves the time forward, without this counting as a sleep.
    pub fn advance(&self, duration: Duration) {
        lock(&self.state).passed += duration;
    }

    /// The sleeps so far, in order.
    pub fn sleeps(&self) -> Vec<Duration> {
        lock(&self.state).sleeps.clone()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + lock(&self.state).passed
    }

    fn wall(&self) -> SystemTime {
        self.wall_start + lock(&self.state).passed
    }

    fn sleep(&self, duration: Duration) {
        let mut state = lock(&self.state);
        state.passed += duration;
        state.sleeps.push(duration);
    }
}

/// Sleeps for `duration`, or until `cancel` is set, which is an error.
pub(crate) fn sleep_unless(
    clock: &dyn Clock,
    duration: Duration,
    cancel: Option<&Cancel>,
) -> Result<()> {
    if cancel.is_none() {
        clock.sleep(duration);
        return Ok(());
    }
    let mut left = duration;
    while !left.is_zero() {
        Cancel::check(cancel)?;
        let step = left.min(SLICE);
        clock.sleep(step);
        left -= step;
    }
    Cancel::check(cancel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn sleep_cancelled_ends_early() {
        let clock = ManualClock::new();
        let cancel = Cancel::new();
        sleep_unless(&clock, Duration::from_millis(250), Some(&cancel)).unwrap();
        assert_eq!(
            clock.sleeps().iter().sum::<Duration>(),
            Duration::from_millis(250)
        );
        cancel.cancel();
        let error = sleep_unless(&clock, Duration::from_secs(9), Some(&cancel)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(
            clock.sleeps().iter().sum::<Duration>(),
            Duration::from_millis(250)
        );
    }
}
