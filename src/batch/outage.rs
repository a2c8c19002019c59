//! Whether the platform can be reached: what a result says about it, and the breaker.
//!
//! A line that ends without an answer is held back. If another line then gets one, the held line
//! runs again, and fails once that has happened three times. If three lines in a row get none, the
//! breaker opens: all lines wait, and one line at a time is sent until one is answered.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;

/// So many lines in a row without an answer open the breaker.
pub(super) const MAX_HELD: usize = 3;
/// A held line fails when other lines have been answered so many times after it was not.
pub(super) const MAX_STRIKES: u32 = 3;
/// The longest wait before the first probe. It doubles up to `PROBE_MAX`.
const PROBE_BASE: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(30);

/// What the result of a line says about whether the platform can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The platform answered.
    Answered,
    /// The platform did not answer.
    Missed,
    /// No login can succeed with these settings.
    WrongLogin,
    /// The result says nothing about the platform.
    Unknown,
}

impl Reach {
    /// `logged_in` says whether an earlier login of this client succeeded.
    pub(super) fn of(result: &Result<Receipt>, logged_in: impl Fn() -> bool) -> Reach {
        let error = match result {
            Ok(_) => return Reach::Answered,
            Err(error) => error,
        };
        let login = error.during_login();
        match error.kind() {
            ErrorKind::Cancelled
            | ErrorKind::Internal
            | ErrorKind::Config
            | ErrorKind::Audit
            | ErrorKind::RateLimited
            | ErrorKind::Auth => Reach::Unknown,
            // Waiting does not make a certificate trusted.
            ErrorKind::Connect if login && !error.is_transient() && !logged_in() => {
                Reach::WrongLogin
            }
            // The platform answered the write, but its values did not show in time.
            ErrorKind::Timeout if error.http_status().is_some_and(|s| s < 400) => Reach::Answered,
            ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Transport => Reach::Missed,
            // The login endpoint does not answer like this.
            ErrorKind::Server
                if login && !logged_in() && error.http_status().is_some_and(|s| s < 500) =>
            {
                Reach::WrongLogin
            }
            ErrorKind::Server if login || error.is_transient() => Reach::Missed,
            _ if login && !logged_in() => Reach::WrongLogin,
            _ if login => Reach::Missed,
            // The transport could not read the answer as HTTP.
            ErrorKind::Protocol if error.http_status().is_none() => Reach::Missed,
            _ if error.requests() > 0 => Reach::Answered,
            _ => Reach::Unknown,
        }
    }
}

/// An outage under way.
#[derive(Debug)]
pub(super) struct Breaker {
    /// When the first line without an answer began.
    pub(super) since: Instant,
    /// What the last line met.
    pub(super) error: Error,
    probes: u32,
}

impl Breaker {
    pub(super) fn new(since: Instant, error: Error) -> Breaker {
        Breaker {
            since,
            error,
            probes: 0,
        }
    }

    pub(super) fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Counts a probe, and gives the longest wait before it.
    pub(super) fn probe(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.probes).unwrap_or(u32::MAX);
        self.probes = self.probes.saturating_add(1);
        PROBE_BASE.saturating_mul(factor).min(PROBE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::clock::{Clock, ManualClock};

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "scripted")
    }

    fn asked(kind: ErrorKind) -> Error {
        error(kind).with_effort(0, 1, Duration::ZERO)
    }

    #[test]
    fn reach_by_table() {
        let missed = Reach::Missed;
        for (error, fresh, later) in [
            (asked(ErrorKind::Connect), missed, missed),
            (asked(ErrorKind::Timeout), missed, missed),
            (asked(ErrorKind::Transport), missed, missed),
            (asked(ErrorKind::Server), missed, missed),
            (asked(ErrorKind::Protocol), missed, missed),
            (
                asked(ErrorKind::Server).with_transient(false),
                Reach::Answered,
                Reach::Answered,
            ),
            (
                asked(ErrorKind::Protocol).with_http_status(302),
                Reach::Answered,
                Reach::Answered,
            ),
            (
                asked(ErrorKind::Timeout).with_http_status(408),
                missed,
                missed,
            ),
            (
                asked(ErrorKind::Timeout).with_http_status(202),
                Reach::Answered,
                Reach::Answered,
            ),
            (asked(ErrorKind::NotFound), Reach::Answered, Reach::Answered),
            (
                asked(ErrorKind::Forbidden),
                Reach::Answered,
                Reach::Answered,
            ),
            (
                error(ErrorKind::InvalidInput),
                Reach::Unknown,
                Reach::Unknown,
            ),
            (asked(ErrorKind::Cancelled), Reach::Unknown, Reach::Unknown),
            (error(ErrorKind::Auth), Reach::Unknown, Reach::Unknown),
            (error(ErrorKind::Connect).with_login(), missed, missed),
            (error(ErrorKind::Timeout).with_login(), missed, missed),
            (error(ErrorKind::Transport).with_login(), missed, missed),
            (error(ErrorKind::Server).with_login(), missed, missed),
            (
                error(ErrorKind::Connect).with_transient(false).with_login(),
                Reach::WrongLogin,
                missed,
            ),
            (
                error(ErrorKind::Server).with_http_status(404).with_login(),
                Reach::WrongLogin,
                missed,
            ),
            (
                error(ErrorKind::Server).with_http_status(200).with_login(),
                Reach::WrongLogin,
                missed,
            ),
            (
                error(ErrorKind::Auth).with_login(),
                Reach::Unknown,
                Reach::Unknown,
            ),
        ] {
            assert_eq!(Reach::of(&Err(error.clone()), || false), fresh, "{error:?}");
            assert_eq!(Reach::of(&Err(error.clone()), || true), later, "{error:?}");
        }
    }

    #[test]
    fn probe_waits_double_to_their_maximum() {
        let now = ManualClock::new().now();
        let mut breaker = Breaker::new(now, error(ErrorKind::Connect));
        let waits: Vec<u64> = (0..40).map(|_| breaker.probe().as_secs()).collect();
        assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert!(waits[7..].iter().all(|wait| *wait == 30));
        assert_eq!(breaker.lasted(now + PROBE_MAX), PROBE_MAX);
    }
}
