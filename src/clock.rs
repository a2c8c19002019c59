//! Time: the only place that reads a clock or sleeps, and the texts that times travel in.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};

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
/// use genesys_attributes::{Clock, ManualClock};
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

/// A mutex whose data is consistent at every step, so that a panic elsewhere changes nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on a condition variable; see [`lock`] for the poisoning. With a `cancel` it returns now
/// and then, for the caller to look at it.
pub(crate) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    cancel: Option<&Cancel>,
) -> MutexGuard<'a, T> {
    match cancel {
        None => condition
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner),
        Some(_) => {
            condition
                .wait_timeout(guard, SLICE)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
    }
}

/// A waiting thread cannot be woken by a [`Cancel`], so it looks up this often.
const SLICE: Duration = Duration::from_millis(100);

/// A flag that ends work early. Clones share it.
///
/// Work that was told to stop finishes the request it has in flight, ends a wait within a tenth of
/// a second, and starts nothing new.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error once the flag is set.
    pub(crate) fn check(cancel: Option<&Cancel>) -> Result<()> {
        match cancel {
            Some(cancel) if cancel.is_cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "cancelled by the caller"))
            }
            _ => Ok(()),
        }
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

/// A time as RFC 3339 text in UTC with milliseconds, such as `2026-01-31T09:05:00.250Z`: what
/// JavaScript's `toISOString` prints. Times before 1970 print as its first moment.
///
/// ```
/// use genesys_attributes::rfc3339;
/// use std::time::{Duration, UNIX_EPOCH};
///
/// let time = UNIX_EPOCH + Duration::from_millis(1_767_225_600_250);
/// assert_eq!(rfc3339(time), "2026-01-01T00:00:00.250Z");
/// ```
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let of_day = seconds % 86_400;
    // Digit by digit: `format!` costs many times as much, and every update needs two of these.
    let mut out = *b"0000-00-00T00:00:00.000Z";
    let mut put = |digits: std::ops::Range<usize>, mut value: u64| {
        for digit in out[digits].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0..4, year);
    put(5..7, month);
    put(8..10, day);
    put(11..13, of_day / 3_600);
    put(14..16, of_day / 60 % 60);
    put(17..19, of_day % 60);
    put(20..23, since.subsec_millis().into());
    String::from_utf8_lossy(&out).into_owned()
}

/// The wait that a `Retry-After` field asks for: seconds or an HTTP date (RFC 9110 §10.2.3).
/// `None` when it is neither; zero when the date has passed.
pub(crate) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit mean longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = http_date(text, now)?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Reads the three forms of an HTTP date (RFC 9110 §5.6.7).
fn http_date(text: &str, now: SystemTime) -> Option<SystemTime> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month, year, time) = match words.as_slice() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [weekday, day, month, year, time, "GMT"] if weekday.ends_with(',') => {
            (number(day)?, *month, number(year)?, *time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [weekday, date, time, "GMT"] if weekday.ends_with(',') => {
            let mut parts = date.split('-');
            let (day, month, short) = (parts.next()?, parts.next()?, number(parts.next()?)?);
            if parts.next().is_some() || short > 99 {
                return None;
            }
            // A two-digit year more than 50 years ahead means the past century.
            let today = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
            let this_year = civil_from_days(today).0;
            let mut year = this_year - this_year % 100 + short;
            if year > this_year + 50 {
                year -= 100;
            }
            (number(day)?, month, year, *time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (number(day)?, *month, number(year)?, *time),
        _ => return None,
    };
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let mut parts = time.split(':');
    let (hour, minute, second) = (
        number(parts.next()?)?,
        number(parts.next()?)?,
        number(parts.next()?)?,
    );
    // 60 is a leap second.
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    UNIX_EPOCH.checked_add(Duration::from_secs(
        days * 86_400 + hour * 3_600 + minute * 60 + second,
    ))
}

fn number(text: &str) -> Option<u64> {
    (text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// Days since 1970-01-01 to year, month and day, by counting in 400-year cycles that begin in
/// March, so that the leap day comes last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let cycle = shifted / 146_097;
    let of_cycle = shifted % 146_097;
    let year_of_cycle =
        (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_cycle + cycle * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (cycle, year_of_cycle) = (year / 400, year % 400);
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + of_year;
    cycle * 146_097 + of_cycle - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn rfc3339_table() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (784_111_777, "1994-11-06T08:49:37.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(at(seconds)), text);
        }
        let time = at(1) + Duration::from_millis(7);
        assert_eq!(rfc3339(time), "1970-01-01T00:00:01.007Z");
    }

    #[test]
    fn retry_after_table() {
        let now = at(784_111_777);
        let seconds = |s| Some(Duration::from_secs(s));
        for (text, wait) in [
            ("0", seconds(0)),
            (" 7 ", seconds(7)),
            ("180", seconds(180)),
            ("99999999999999999999999", seconds(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", seconds(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", seconds(10)),
            ("Sun Nov  6 08:49:47 1994", seconds(10)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", seconds(0)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:47 CET", None),
            ("Sun, 06 Nov 1994 25:00:00 GMT", None),
            ("Sun, 06 Foo 1994 08:49:47 GMT", None),
            ("Sun, 00 Nov 1994 08:49:47 GMT", None),
            ("Sun, 06 Nov 0001 08:49:47 GMT", None),
        ] {
            assert_eq!(retry_after(text, now), wait, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn days_round_trip(days in 0u64..3_000_000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert_eq!(days_from_civil(year, month, day), days);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&day));
        }

        #[test]
        fn retry_after_never_panics(text in "\\PC{0,60}") {
            let _ = retry_after(&text, at(1_767_225_600));
        }
    }

    #[test]
    fn a_cancelled_sleep_ends_early() {
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
