//! Whether the platform can be reached at all: decisions about failures that are no line's fault,
//! without I/O, clock or locks.
//!
//! A line that ends without an answer is held back, and what comes next decides about it. An
//! answer to anybody else, before more lines miss theirs, means that the platform is there: the
//! held line runs again, and a line that goes on missing its answer while others get theirs
//! fails. More lines without an answer in a row are an outage: everybody waits, and one line at a
//! time is sent to see whether it is over. A failed login is no line's fault, and an outage at once.

use std::fmt;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;

/// As many lines in a row without an answer are an outage.
const MAX_UNANSWERED: u32 = 3;
/// A line fails once it has this much against it: an answer to another line right after its own
/// failure counts 2; one that ended an outage, or one that was no line's, 1.
const MAX_STRIKES: u32 = 4;
/// The ceiling of the first wait before a probe, which doubles up to the longest.
const PROBE_BASE: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(30);

/// Something about the whole batch that whoever watches it may want to know. `Display` is one line.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// The platform cannot be reached. All lines wait, and none fails because of it.
    #[non_exhaustive]
    OutageBegan {
        /// What the last line met.
        error: Error,
    },
    /// A line is sent to see whether the outage is over.
    #[non_exhaustive]
    Probing {
        /// The number of the line.
        line: u64,
        /// How long the outage has lasted.
        after: Duration,
    },
    /// The platform answers again, and all lines go on.
    #[non_exhaustive]
    OutageEnded {
        /// How long the outage lasted.
        after: Duration,
    },
    /// The platform asked to slow down: no request is sent for this long.
    #[non_exhaustive]
    RateLimited {
        /// How long.
        wait: Duration,
    },
    /// Ids of participants are no longer looked up in bulk: one more request for each line that
    /// names a participant by its purpose.
    #[non_exhaustive]
    LookAheadOff {
        /// Why.
        error: Error,
    },
    /// The same for a while, since it failed several times. It is tried again after 500 lines, and
    /// after twice as many each time that it fails again.
    #[non_exhaustive]
    LookAheadSuspended {
        /// Why.
        error: Error,
    },
    /// Ids of participants are looked up in bulk again.
    #[non_exhaustive]
    LookAheadResumed {},
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::OutageBegan { error } => {
                write!(f, "the platform cannot be reached, all lines wait: {error}")
            }
            Notice::Probing { line, after } => write!(
                f,
                "line {line} is sent to see whether the platform is back ({:.1} s so far)",
                after.as_secs_f64()
            ),
            Notice::OutageEnded { after } => write!(
                f,
                "the platform answers again after {:.1} s: going on",
                after.as_secs_f64()
            ),
            Notice::RateLimited { wait } => write!(
                f,
                "the platform asked to slow down: waiting for {:.1} s",
                wait.as_secs_f64()
            ),
            Notice::LookAheadOff { error } => write!(
                f,
                "participants are read one by one from here on, which takes a request more a line: \
                 {error}"
            ),
            Notice::LookAheadSuspended { error } => write!(
                f,
                "participants are read one by one for a while, which takes a request more a line: \
                 {error}"
            ),
            Notice::LookAheadResumed {} => {
                f.write_str("participants are looked up for many conversations at once again")
            }
        }
    }
}

/// What the end of one run of a line says about the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It is there.
    Answered,
    /// It may not be; during a login, it is not.
    Missed { login: bool },
    /// No login could ever work with these settings.
    WrongLogin,
    /// Nothing.
    Silent,
}

impl Sign {
    /// `logged_in`: some login of this client succeeded before.
    pub(super) fn of(result: &Result<Receipt>, logged_in: impl Fn() -> bool) -> Sign {
        let error = match result {
            Ok(_) => return Sign::Answered,
            Err(error) => error,
        };
        let login = error.during_login();
        match error.kind() {
            ErrorKind::Cancelled
            | ErrorKind::Internal
            | ErrorKind::Config
            | ErrorKind::Audit
            | ErrorKind::RateLimited
            | ErrorKind::Auth => Sign::Silent,
            // Trust in a certificate does not come by waiting.
            ErrorKind::Connect if login && !error.is_transient() && !logged_in() => {
                Sign::WrongLogin
            }
            // The write was answered, and its values did not come in time.
            ErrorKind::Timeout if error.http_status().is_some_and(|s| s < 400) => Sign::Answered,
            ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Transport => {
                Sign::Missed { login }
            }
            // Whatever answers like this is not the login endpoint.
            ErrorKind::Server
                if login && !logged_in() && error.http_status().is_some_and(|s| s < 500) =>
            {
                Sign::WrongLogin
            }
            ErrorKind::Server if login || error.is_transient() => Sign::Missed { login },
            _ if login && !logged_in() => Sign::WrongLogin,
            _ if login => Sign::Missed { login },
            // What the transport could not read as HTTP; answers that cannot be used have a status.
            ErrorKind::Protocol if error.http_status().is_none() => Sign::Missed { login },
            _ if error.requests() > 0 => Sign::Answered,
            _ => Sign::Silent,
        }
    }
}

/// An outage under way.
#[derive(Debug)]
pub(super) struct Parked {
    /// Distinguishes this outage from an earlier one.
    pub(super) number: u64,
    since: Instant,
    /// What the last line met.
    pub(super) error: Error,
    probes: u32,
    /// Somebody waits to send a probe, or has sent it.
    pub(super) probing: bool,
    /// The probe was answered by the wish for a pause.
    pub(super) paused: bool,
}

impl Parked {
    pub(super) fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The longest wait before the next probe.
    pub(super) fn ceiling(&self) -> Duration {
        ceiling(self.probes)
    }

    /// Counts a probe. Says whether it should be a line that has not been tried: a line that is at
    /// fault itself must not be the only one that is asked.
    pub(super) fn probe(&mut self) -> bool {
        self.probes = self.probes.saturating_add(1);
        self.paused = false;
        self.probes.is_multiple_of(2)
    }
}

fn ceiling(tries: u32) -> Duration {
    let factor = 1u32.checked_shl(tries).unwrap_or(u32::MAX);
    PROBE_BASE.saturating_mul(factor).min(PROBE_MAX)
}

/// What is known about the platform.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Lines without an answer since the last answer to anybody, and when the first of them began.
    unanswered: Option<(u32, Instant)>,
    number: u64,
    /// How often something that is no line's was asked for since the last answer to a line.
    pings: u32,
    pub(super) parked: Option<Parked>,
}

impl Outage {
    /// A line that began at `begun` ended without an answer. Says whether that makes it an outage.
    pub(super) fn missed(&mut self, error: &Error, login: bool, begun: Instant) -> bool {
        let (count, since) = self.unanswered.unwrap_or((0, begun));
        self.unanswered = Some((count.saturating_add(1), since));
        match &mut self.parked {
            Some(parked) => {
                parked.error = error.clone();
                false
            }
            None if login || count + 1 >= MAX_UNANSWERED => {
                self.park(error, begun);
                true
            }
            None => false,
        }
    }

    /// It is an outage, since the first line without an answer began, or else since `begun`.
    pub(super) fn park(&mut self, error: &Error, begun: Instant) {
        self.number += 1;
        self.parked = Some(Parked {
            number: self.number,
            since: self.unanswered.map_or(begun, |(_, since)| since),
            error: error.clone(),
            probes: 0,
            probing: false,
            paused: false,
        });
    }

    /// The outage of this number, if it is not over.
    pub(super) fn parked_as(&mut self, number: u64) -> Option<&mut Parked> {
        self.parked
            .as_mut()
            .filter(|parked| parked.number == number)
    }

    /// Something that is no line's is to be asked for: the longest wait before.
    pub(super) fn ping(&mut self) -> Duration {
        let wait = ceiling(self.pings);
        self.pings = self.pings.saturating_add(1);
        wait
    }

    /// Somebody got an answer: how long the outage lasted that this ends, if there was one.
    pub(super) fn answered(&mut self, to_line: bool, now: Instant) -> Option<Duration> {
        if to_line {
            self.pings = 0;
        }
        self.unanswered = None;
        self.parked.take().map(|parked| parked.lasted(now))
    }
}

/// What a line has against it so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Strikes(u32);

impl Strikes {
    /// Somebody got an answer after this line did not; `clearly` where that was another line, and
    /// no outage lay in between. Says whether this one fails.
    pub(super) fn add(&mut self, clearly: bool) -> bool {
        self.0 += if clearly { 2 } else { 1 };
        self.0 >= MAX_STRIKES
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
    fn signs_by_table() {
        let missed = Sign::Missed { login: false };
        let login = Sign::Missed { login: true };
        for (error, fresh, later) in [
            (asked(ErrorKind::Connect), missed, missed),
            (asked(ErrorKind::Timeout), missed, missed),
            (asked(ErrorKind::Transport), missed, missed),
            (asked(ErrorKind::Server), missed, missed),
            (asked(ErrorKind::Protocol), missed, missed),
            (
                asked(ErrorKind::Server).with_transient(false),
                Sign::Answered,
                Sign::Answered,
            ),
            (
                asked(ErrorKind::Protocol).with_http_status(302),
                Sign::Answered,
                Sign::Answered,
            ),
            (
                asked(ErrorKind::Timeout).with_http_status(408),
                missed,
                missed,
            ),
            (
                asked(ErrorKind::Timeout).with_http_status(202),
                Sign::Answered,
                Sign::Answered,
            ),
            (asked(ErrorKind::NotFound), Sign::Answered, Sign::Answered),
            (asked(ErrorKind::Forbidden), Sign::Answered, Sign::Answered),
            (error(ErrorKind::InvalidInput), Sign::Silent, Sign::Silent),
            (asked(ErrorKind::Cancelled), Sign::Silent, Sign::Silent),
            (error(ErrorKind::Auth), Sign::Silent, Sign::Silent),
            (error(ErrorKind::Connect).with_login(), login, login),
            (error(ErrorKind::Timeout).with_login(), login, login),
            (error(ErrorKind::Transport).with_login(), login, login),
            (error(ErrorKind::Server).with_login(), login, login),
            (
                error(ErrorKind::Connect).with_transient(false).with_login(),
                Sign::WrongLogin,
                login,
            ),
            (
                error(ErrorKind::Server).with_http_status(404).with_login(),
                Sign::WrongLogin,
                login,
            ),
            (
                error(ErrorKind::Server).with_http_status(200).with_login(),
                Sign::WrongLogin,
                login,
            ),
            (
                error(ErrorKind::Auth).with_login(),
                Sign::Silent,
                Sign::Silent,
            ),
        ] {
            assert_eq!(Sign::of(&Err(error.clone()), || false), fresh, "{error:?}");
            assert_eq!(Sign::of(&Err(error.clone()), || true), later, "{error:?}");
        }
    }

    #[test]
    fn three_in_a_row_are_an_outage_and_an_answer_in_between_is_not() {
        let now = ManualClock::new().now();
        let mut outage = Outage::default();
        let error = error(ErrorKind::Connect);
        assert!(!outage.missed(&error, false, now));
        assert!(!outage.missed(&error, false, now));
        assert_eq!(outage.answered(true, now), None);
        assert!(!outage.missed(&error, false, now));
        assert!(!outage.missed(&error, false, now + PROBE_BASE));
        assert!(outage.missed(&error, false, now + PROBE_BASE));
        // It began with the first of them.
        assert_eq!(outage.answered(true, now + PROBE_MAX), Some(PROBE_MAX));
    }

    #[test]
    fn probe_waits_double_to_their_maximum() {
        let mut outage = Outage::default();
        outage.park(&error(ErrorKind::Connect), ManualClock::new().now());
        let parked = outage.parked.as_mut().unwrap();
        let mut waits = Vec::new();
        for _ in 0..40 {
            waits.push(parked.ceiling().as_secs());
            parked.probe();
        }
        assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert!(waits[7..].iter().all(|wait| *wait == 30));
    }
}
