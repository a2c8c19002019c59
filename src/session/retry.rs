//! How often and how long an update is tried.
//!
//! A wait that would end after the deadline is not begun: the call then fails at once with the last
//! real error.

// It takes the time, and has neither I/O nor a clock.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
pub use crate::session::limiter::RateLimit;
use crate::util::random::Random;

/// How often and for how long to try.
///
/// ```
/// use genesys_attributes::RetryPolicy;
/// use std::time::Duration;
///
/// let patient = RetryPolicy::default()
///     .with_max_attempts(10)
///     .with_deadline(Duration::from_secs(900));
/// assert_eq!(patient.max_attempts, 10);
/// ```
#[must_use = "a policy does nothing until a builder is given it"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often one request is sent at most. Default 4.
    pub max_attempts: u32,
    /// How many version conflicts one update settles at most. Default `None`: as many as the deadline
    /// has time for, which is about two a second.
    pub max_conflicts: Option<u32>,
    /// The time for one update, counted from its first request, or from when it began to wait for
    /// another update of its conversation; waits for the client's own rate limit are not counted.
    /// Default 300 s.
    pub deadline: Duration,
    /// The longest `Retry-After` that is waited for. Default 180 s, as in the official SDKs: longer
    /// ones mean a daily limit.
    pub max_retry_after: Duration,
    /// The first backoff; it doubles with every further attempt. Default 0.5 s.
    pub backoff_base: Duration,
    /// The longest backoff. Default 20 s.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 4,
            max_conflicts: None,
            deadline: Duration::from_secs(300),
            max_retry_after: Duration::from_secs(180),
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(20),
        }
    }
}

impl RetryPolicy {
    /// Sets how often one request is sent at most; 1 switches retries off.
    pub fn with_max_attempts(mut self, attempts: u32) -> RetryPolicy {
        self.max_attempts = attempts;
        self
    }

    /// Sets how many version conflicts one update settles at most; 0 makes the first one final.
    pub fn with_max_conflicts(mut self, conflicts: u32) -> RetryPolicy {
        self.max_conflicts = Some(conflicts);
        self
    }

    /// How many conflicts an update settles.
    pub(crate) fn conflict_budget(&self) -> u32 {
        self.max_conflicts.unwrap_or(u32::MAX)
    }

    /// Sets the time for one update.
    pub fn with_deadline(mut self, deadline: Duration) -> RetryPolicy {
        self.deadline = deadline;
        self
    }

    /// Sets the longest `Retry-After` that is waited for.
    pub fn with_max_retry_after(mut self, longest: Duration) -> RetryPolicy {
        self.max_retry_after = longest;
        self
    }

    /// Sets the first and the longest backoff. The wait is a random part of it (full jitter).
    pub fn with_backoff(mut self, base: Duration, max: Duration) -> RetryPolicy {
        self.backoff_base = base;
        self.backoff_max = max;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        const DAY: Duration = Duration::from_secs(86_400);
        if self.max_attempts == 0 {
            return Err(Error::config(
                "retry.max_attempts",
                "must be at least 1 (1 means no retry)",
            ));
        }
        if self.deadline.is_zero() || self.deadline > DAY {
            return Err(Error::config(
                "retry.deadline",
                "must be more than 0 and at most 24 h",
            ));
        }
        for (name, wait) in [
            ("retry.max_retry_after", self.max_retry_after),
            ("retry.backoff", self.backoff_base),
            ("retry.backoff", self.backoff_max),
        ] {
            if wait > DAY {
                return Err(Error::config(name, "must be at most 24 h"));
            }
        }
        if self.backoff_base > self.backoff_max {
            return Err(Error::config(
                "retry.backoff",
                "the first wait must not be longer than the longest",
            ));
        }
        Ok(())
    }
}

/// What the end of a request means for sending it again.
///
/// `may`: the request may have taken effect although no answer says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// To send it again would change nothing. A success is one too.
    Final { may: bool },
    /// It may pass.
    Transient { may: bool },
    /// The answer was to slow down: a 429, or a 503 with a time, which may have taken effect.
    Throttled {
        retry_after: Option<Duration>,
        may: bool,
    },
}

impl Failure {
    /// True if the request may have taken effect.
    pub(crate) fn may(self) -> bool {
        match self {
            Failure::Final { may }
            | Failure::Transient { may }
            | Failure::Throttled { may, .. } => may,
        }
    }

    /// The same, or transient where another try may bring a better answer.
    pub(crate) fn or_again(self, again: bool) -> Failure {
        match self {
            Failure::Final { .. } if again => Failure::Transient { may: false },
            failure => failure,
        }
    }

    /// The wait before the request is sent again, or `None`. `failed` counts its failures.
    pub(crate) fn wait(self, failed: &mut u32, max_attempts: u32) -> Option<Wait> {
        match self {
            Failure::Final { .. } => None,
            Failure::Transient { .. } => {
                *failed += 1;
                let attempts = *failed;
                (attempts < max_attempts).then_some(Wait::Backoff { attempts })
            }
            Failure::Throttled { retry_after, may } => Some(Wait::Throttled {
                retry_after,
                limited: !may,
            }),
        }
    }
}

/// Why a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A failure that may pass, after so many attempts.
    Backoff { attempts: u32 },
    /// Version conflict number `before + 1`. `locked`: the platform saw it by a version.
    Conflict { before: u32, locked: bool },
    /// The platform asked to slow down, perhaps with a time. `limited`: by a limit of requests
    /// (429), and not because it is unavailable (503).
    Throttled {
        retry_after: Option<Duration>,
        limited: bool,
    },
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A single call: every pause that the platform asks for uses up its deadline.
    Single,
    /// A line of a batch: the pause after a 429 does not use up its deadline, and the batch waits
    /// for a login that is held off.
    Batch,
    /// A look-up that the lines of a batch can do without: it is not sent again after a pause.
    LookUp,
}

/// The first wait after a conflict at least, and the longest where round trips are short. Conflicts
/// are races that are over at once, so they wait far less than faults do.
const CONFLICT_BASE: Duration = Duration::from_millis(20);
const CONFLICT_MAX: Duration = Duration::from_secs(1);
/// The wait after a 429 that does not say how long: the first, and the longest.
const THROTTLED_BASE: Duration = Duration::from_secs(5);
const THROTTLED_MAX: Duration = Duration::from_secs(60);

/// The time of one call.
#[derive(Debug)]
pub(crate) struct Budget {
    policy: RetryPolicy,
    pub(crate) caller: Caller,
    /// The longest that one request takes by the limits of its phases.
    longest_request: Duration,
    random: Random,
    deadline: Option<Instant>,
    /// By how much the deadline was moved.
    extended: Duration,
    /// Answers to slow down, without a time, one after the other.
    throttled: u32,
    /// How long the last request took.
    pub(crate) round_trip: Duration,
}

impl Budget {
    /// How often one request is sent at most.
    pub(crate) fn max_attempts(&self) -> u32 {
        self.policy.max_attempts
    }

    pub(crate) fn new(
        policy: RetryPolicy,
        caller: Caller,
        longest_request: Duration,
        random: Random,
    ) -> Budget {
        Budget {
            policy,
            caller,
            longest_request,
            random,
            deadline: None,
            extended: Duration::ZERO,
            throttled: 0,
            round_trip: Duration::ZERO,
        }
    }

    /// Starts the deadline, the first time.
    pub(crate) fn start(&mut self, now: Instant) {
        self.deadline.get_or_insert(now + self.policy.deadline);
    }

    /// How much time is left. Before the start all of it.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        self.deadline.map_or(self.policy.deadline, |deadline| {
            deadline.saturating_duration_since(now)
        })
    }

    /// The limit of a request that is sent now, where less than the longest one is left.
    pub(crate) fn request_limit(&self, now: Instant) -> Option<Duration> {
        let rest = self.rest(now);
        (rest < self.longest_request).then_some(rest)
    }

    /// Time that does not count.
    pub(crate) fn extend(&mut self, waited: Duration) {
        if let Some(deadline) = &mut self.deadline {
            *deadline += waited;
            self.extended += waited;
        }
    }

    /// The time that did not count so far.
    pub(crate) fn extended(&self) -> Duration {
        self.extended
    }

    /// An answer came that is not a demand to slow down.
    pub(crate) fn answered(&mut self) {
        self.throttled = 0;
    }

    /// How long to wait. `None` when it would last beyond the deadline or is longer than the policy
    /// waits.
    pub(crate) fn delay(&mut self, wait: Wait, now: Instant) -> Option<Duration> {
        let delay = match wait {
            Wait::Throttled { retry_after, .. } => {
                let asked = match retry_after {
                    Some(asked) if asked > self.policy.max_retry_after => return None,
                    Some(asked) => asked,
                    None => {
                        self.throttled += 1;
                        doubled(THROTTLED_BASE, self.throttled - 1, THROTTLED_MAX)
                    }
                };
                // A floor: never earlier than asked, and not everybody at the same moment.
                asked + self.random.up_to(self.policy.backoff_base)
            }
            Wait::Backoff { attempts } => {
                let ceiling = doubled(
                    self.policy.backoff_base,
                    attempts.saturating_sub(1),
                    self.policy.backoff_max,
                );
                self.random.up_to(ceiling)
            }
            Wait::Conflict { before, .. } => {
                // The winner of the race needs a read and a write.
                let base = CONFLICT_BASE.max(2 * self.round_trip.min(CONFLICT_MAX));
                // With many writers on a slow link, all of them must fit into the longest wait.
                self.random
                    .up_to(doubled(base, before, CONFLICT_MAX.max(16 * base)))
            }
        };
        (self.is_free(wait) || self.has_time(delay, now)).then_some(delay)
    }

    /// True if a batch decides for all of its lines about what no line can change.
    pub(crate) fn in_batch(&self) -> bool {
        self.caller != Caller::Single
    }

    /// True if the caller gives up rather than waits, although there is time.
    pub(crate) fn gives_up(&self, wait: Wait) -> bool {
        self.caller == Caller::LookUp && matches!(wait, Wait::Throttled { .. })
    }

    /// True if a wait does not use up the deadline.
    pub(crate) fn is_free(&self, wait: Wait) -> bool {
        self.caller == Caller::Batch && matches!(wait, Wait::Throttled { limited: true, .. })
    }

    /// True if there is time to wait for `delay`. Before the first request there always is.
    pub(crate) fn has_time(&self, delay: Duration, now: Instant) -> bool {
        self.deadline.is_none() || delay < self.rest(now)
    }
}

fn doubled(base: Duration, times: u32, max: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::clock::{Clock, ManualClock};

    const LONGEST: Duration = Duration::from_secs(65);

    fn conflict(before: u32) -> Wait {
        let locked = true;
        Wait::Conflict { before, locked }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn started(policy: RetryPolicy, seed: u64, now: Instant) -> Budget {
        let mut budget = Budget::new(policy, Caller::Single, LONGEST, Random(seed));
        budget.start(now);
        budget
    }

    #[test]
    fn pause_by_table() {
        let now = ManualClock::new().now();
        let asked = |s| Wait::Throttled {
            retry_after: Some(secs(s)),
            limited: true,
        };
        let unasked = Wait::Throttled {
            retry_after: None,
            limited: true,
        };
        // The shortest and the longest wait; none: it is not waited for.
        for (pause, wait) in [
            (
                Wait::Backoff { attempts: 1 },
                Some((millis(0), millis(500))),
            ),
            (Wait::Backoff { attempts: 3 }, Some((millis(0), secs(2)))),
            (Wait::Backoff { attempts: 99 }, Some((millis(0), secs(20)))),
            (unasked, Some((secs(5), millis(5_500)))),
            (asked(0), Some((secs(0), millis(500)))),
            (asked(7), Some((secs(7), millis(7_500)))),
            (asked(180), Some((secs(180), millis(180_500)))),
            (asked(181), None),
            (asked(86_400), None),
            (conflict(0), Some((millis(0), millis(20)))),
            (conflict(4), Some((millis(0), millis(320)))),
            (conflict(60), Some((millis(0), secs(1)))),
        ] {
            for seed in 0..50 {
                let found = started(RetryPolicy::default(), seed, now).delay(pause, now);
                match (found, wait) {
                    (None, None) => {}
                    (Some(d), Some((least, most))) => {
                        assert!(least <= d && d <= most, "{pause:?}: {d:?}");
                    }
                    _ => panic!("{pause:?}: {found:?}"),
                }
            }
        }
    }

    #[test]
    fn pause_without_a_retry_after_doubles_to_a_minute_and_starts_anew_after_an_answer() {
        let now = ManualClock::new().now();
        let mut budget = started(RetryPolicy::default(), 1, now);
        let mut whole_seconds = || {
            let pause = Wait::Throttled {
                retry_after: None,
                limited: true,
            };
            budget.delay(pause, now).map(|d| d.as_secs())
        };
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!(whole_seconds(), Some(seconds));
        }
        budget.answered();
        let pause = Wait::Throttled {
            retry_after: None,
            limited: true,
        };
        assert_eq!(budget.delay(pause, now).map(|d| d.as_secs()), Some(5));
    }

    #[test]
    fn pause_after_a_conflict_follows_the_round_trip() {
        let now = ManualClock::new().now();
        let mut budget = started(RetryPolicy::default(), 1, now);
        budget.round_trip = millis(50);
        let longest = (0..200)
            .filter_map(|_| budget.delay(conflict(0), now))
            .max();
        assert!(
            longest.is_some_and(|d| d > millis(90) && d <= millis(100)),
            "{longest:?}"
        );
    }

    #[test]
    fn deadline_shortens_the_last_request_and_moves_with_what_does_not_count() {
        let clock = ManualClock::new();
        let mut budget = started(RetryPolicy::default(), 1, clock.now());
        assert_eq!(budget.request_limit(clock.now()), None);
        clock.advance(secs(290));
        assert_eq!(budget.request_limit(clock.now()), Some(secs(10)));
        clock.advance(secs(10));
        assert_eq!(budget.rest(clock.now()), Duration::ZERO);
        budget.extend(secs(100));
        assert_eq!(budget.rest(clock.now()), secs(100));
        assert_eq!(budget.request_limit(clock.now()), None);
    }

    #[test]
    fn pause_into_the_deadline_is_not_begun_but_in_a_batch() {
        let clock = ManualClock::new();
        let policy = RetryPolicy::default().with_deadline(secs(10));
        let pause = Wait::Throttled {
            retry_after: Some(secs(10)),
            limited: true,
        };
        assert_eq!(
            started(policy, 1, clock.now()).delay(pause, clock.now()),
            None
        );
        let mut patient = started(policy, 1, clock.now());
        patient.caller = Caller::Batch;
        assert!(patient.is_free(pause) && patient.delay(pause, clock.now()).is_some());
        // What is unavailable may be an outage, which a batch has rules of its own for.
        let unavailable = Wait::Throttled {
            retry_after: Some(secs(10)),
            limited: false,
        };
        assert!(!patient.is_free(unavailable));
        assert_eq!(patient.delay(unavailable, clock.now()), None);
        assert!(!patient.is_free(Wait::Backoff { attempts: 1 }));
    }

    #[test]
    fn retry_policy_out_of_range_is_refused() {
        assert!(RetryPolicy::default().check().is_ok());
        for bad in [
            RetryPolicy::default().with_max_attempts(0),
            RetryPolicy::default().with_deadline(Duration::ZERO),
            RetryPolicy::default().with_deadline(Duration::MAX),
            RetryPolicy::default().with_max_retry_after(Duration::MAX),
            RetryPolicy::default().with_backoff(secs(2), secs(1)),
            RetryPolicy::default().with_backoff(secs(2), Duration::MAX),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
