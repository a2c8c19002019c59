//! When to send again, and how long to wait before: a state machine that is fed with outcomes and
//! the time, and has neither I/O nor a clock.
//!
//! Three things end a request: an answer that a retry cannot improve is handed back; the attempts
//! run out; or the next wait would end after the deadline, in which case the request fails at
//! once with the last real error instead of sleeping first.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often and for how long to try.
///
/// ```
/// use genesys_attributes::RetryPolicy;
/// use std::time::Duration;
///
/// let patient = RetryPolicy::default()
///     .with_max_attempts(10)
///     .with_deadline(Duration::from_secs(900));
/// assert_eq!(patient.max_conflicts, 8);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often one request is sent at most. Default 4.
    pub max_attempts: u32,
    /// How many version conflicts one update settles at most. Default 8.
    pub max_conflicts: u32,
    /// The time for one update, counted from its first request; waits for the client's own rate
    /// limit are not counted. Default 300 s.
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
            max_conflicts: 8,
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
        self.max_conflicts = conflicts;
        self
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

/// What came of sending a request, as far as retrying is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer that a retry does not change.
    Settled,
    /// Told to slow down, perhaps with a time.
    Throttled { retry_after: Option<Duration> },
    /// A failure that may pass.
    Fault,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the request, with a limit of its own when little time is left.
    Send { timeout: Option<Duration> },
    /// Wait, then ask again.
    Wait(Duration),
    /// Hand the last outcome back: sending again would not help, or is not allowed any more.
    HandBack,
}

/// The first wait after a conflict, and the longest. Conflicts are races that are over at once,
/// so they wait far less than faults do.
const CONFLICT_BASE: Duration = Duration::from_millis(20);
const CONFLICT_MAX: Duration = Duration::from_secs(1);

/// The state of one update's retries.
#[derive(Debug)]
pub(crate) struct Retry {
    policy: RetryPolicy,
    /// The longest that one request takes by the limits of its phases.
    longest_request: Duration,
    random: SplitMix64,
    deadline: Option<Instant>,
    attempts: u32,
    conflicts: u32,
}

impl Retry {
    pub(crate) fn new(policy: RetryPolicy, longest_request: Duration, seed: u64) -> Retry {
        Retry {
            policy,
            longest_request,
            random: SplitMix64(seed),
            deadline: None,
            attempts: 0,
            conflicts: 0,
        }
    }

    /// A new request begins, of which so many attempts count as made.
    pub(crate) fn begin(&mut self, attempts: u32) {
        self.attempts = attempts;
    }

    /// Whether there is time to wait for `delay`. Always before the first request.
    pub(crate) fn has_time(&self, delay: Duration, now: Instant) -> bool {
        self.deadline
            .is_none_or(|deadline| delay < deadline.saturating_duration_since(now))
    }

    /// Whether the next request may be sent. The first call starts the deadline.
    pub(crate) fn permitted(&mut self, now: Instant) -> Step {
        let deadline = *self.deadline.get_or_insert(now + self.policy.deadline);
        let rest = deadline.saturating_duration_since(now);
        if rest.is_zero() {
            return Step::HandBack;
        }
        self.attempts += 1;
        Step::Send {
            timeout: (rest < self.longest_request).then_some(rest),
        }
    }

    /// Time that passed waiting for the client's own rate limit does not count.
    pub(crate) fn extend(&mut self, waited: Duration) {
        if let Some(deadline) = &mut self.deadline {
            *deadline += waited;
        }
    }

    /// What to do after an attempt.
    pub(crate) fn after(&mut self, outcome: Outcome, now: Instant) -> Step {
        let delay = match outcome {
            Outcome::Settled => return Step::HandBack,
            Outcome::Throttled {
                retry_after: Some(wait),
            } => {
                if wait > self.policy.max_retry_after {
                    return Step::HandBack;
                }
                // A floor: never earlier than asked, and not everybody at the same moment.
                wait + self.random.up_to(self.policy.backoff_base)
            }
            Outcome::Throttled { retry_after: None } | Outcome::Fault => {
                let ceiling = doubled(
                    self.policy.backoff_base,
                    self.attempts.saturating_sub(1),
                    self.policy.backoff_max,
                );
                self.random.up_to(ceiling)
            }
        };
        if self.attempts >= self.policy.max_attempts {
            return Step::HandBack;
        }
        self.wait(delay, now)
    }

    /// What to do after a version conflict.
    pub(crate) fn conflicted(&mut self, now: Instant) -> Step {
        if self.conflicts >= self.policy.max_conflicts {
            return Step::HandBack;
        }
        let ceiling = doubled(CONFLICT_BASE, self.conflicts, CONFLICT_MAX);
        self.conflicts += 1;
        let delay = self.random.up_to(ceiling);
        self.wait(delay, now)
    }

    fn wait(&self, delay: Duration, now: Instant) -> Step {
        if self.has_time(delay, now) {
            Step::Wait(delay)
        } else {
            Step::HandBack
        }
    }
}

fn doubled(base: Duration, times: u32, max: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(max)
}

/// Steele, Lea and Flood's generator: enough for jitter, and eight bytes of state.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A random duration from zero to `most`, both included.
    fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let scaled = (u128::from(self.next()) * (u128::from(nanos) + 1)) >> 64;
        Duration::from_nanos(scaled as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use proptest::prelude::*;

    const LONGEST: Duration = Duration::from_secs(55);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn started(policy: RetryPolicy, seed: u64, now: Instant) -> Retry {
        let mut retry = Retry::new(policy, LONGEST, seed);
        retry.begin(0);
        assert_eq!(retry.permitted(now), Step::Send { timeout: None });
        retry
    }

    #[test]
    fn one_attempt_by_table() {
        let now = ManualClock::new().now();
        let throttled = |s| Outcome::Throttled {
            retry_after: Some(secs(s)),
        };
        // Outcome, and the shortest and longest wait; none = handed back.
        for (outcome, wait) in [
            (Outcome::Settled, None),
            (Outcome::Fault, Some((secs(0), Duration::from_millis(500)))),
            (
                Outcome::Throttled { retry_after: None },
                Some((secs(0), Duration::from_millis(500))),
            ),
            (throttled(0), Some((secs(0), Duration::from_millis(500)))),
            (throttled(7), Some((secs(7), Duration::from_millis(7_500)))),
            (
                throttled(180),
                Some((secs(180), Duration::from_millis(180_500))),
            ),
            (throttled(181), None),
            (throttled(u64::MAX), None),
        ] {
            for seed in 0..50 {
                let step = started(RetryPolicy::default(), seed, now).after(outcome, now);
                match (step, wait) {
                    (Step::HandBack, None) => {}
                    (Step::Wait(d), Some((least, most))) => {
                        assert!(least <= d && d <= most, "{outcome:?}: {d:?}");
                    }
                    _ => panic!("{outcome:?}: {step:?}"),
                }
            }
        }
    }

    #[test]
    fn attempts_are_counted_per_request() {
        let now = ManualClock::new().now();
        let mut retry = started(RetryPolicy::default(), 1, now);
        for _ in 0..3 {
            assert!(matches!(retry.after(Outcome::Fault, now), Step::Wait(_)));
            assert!(matches!(retry.permitted(now), Step::Send { .. }));
        }
        assert_eq!(retry.after(Outcome::Fault, now), Step::HandBack);
        retry.begin(0);
        assert!(matches!(retry.permitted(now), Step::Send { .. }));
        assert!(matches!(retry.after(Outcome::Fault, now), Step::Wait(_)));
    }

    #[test]
    fn one_attempt_means_no_retry() {
        let now = ManualClock::new().now();
        let mut retry = started(RetryPolicy::default().with_max_attempts(1), 1, now);
        assert_eq!(retry.after(Outcome::Fault, now), Step::HandBack);
    }

    #[test]
    fn conflicts_are_bounded_and_wait_little() {
        let now = ManualClock::new().now();
        let mut retry = started(RetryPolicy::default(), 3, now);
        for n in 0..8 {
            let Step::Wait(delay) = retry.conflicted(now) else {
                panic!("conflict {n}")
            };
            assert!(
                delay <= Duration::from_millis(20 << n).min(secs(1)),
                "{delay:?}"
            );
        }
        assert_eq!(retry.conflicted(now), Step::HandBack);
    }

    #[test]
    fn the_deadline_shortens_the_last_request_and_forbids_the_next() {
        let clock = ManualClock::new();
        let mut retry = started(RetryPolicy::default(), 1, clock.now());
        clock.advance(secs(290));
        assert_eq!(
            retry.permitted(clock.now()),
            Step::Send {
                timeout: Some(secs(10))
            }
        );
        clock.advance(secs(10));
        assert_eq!(retry.permitted(clock.now()), Step::HandBack);
        // Waiting for the rate limit moves it.
        retry.extend(secs(100));
        assert_eq!(retry.permitted(clock.now()), Step::Send { timeout: None });
    }

    #[test]
    fn it_never_sleeps_into_the_deadline() {
        let clock = ManualClock::new();
        let policy = RetryPolicy::default().with_deadline(secs(10));
        let mut retry = Retry::new(policy, LONGEST, 1);
        retry.begin(0);
        retry.permitted(clock.now());
        let step = retry.after(
            Outcome::Throttled {
                retry_after: Some(secs(10)),
            },
            clock.now(),
        );
        assert_eq!(step, Step::HandBack);
    }

    #[test]
    fn policies_are_checked() {
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

    #[test]
    fn jitter_covers_its_range() {
        let mut random = SplitMix64(42);
        let most = Duration::from_nanos(3);
        let mut seen = [false; 4];
        for _ in 0..200 {
            seen[random.up_to(most).as_nanos() as usize] = true;
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(random.up_to(Duration::ZERO), Duration::ZERO);
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Fault),
            Just(Outcome::Throttled { retry_after: None }),
            (0u64..400).prop_map(|s| Outcome::Throttled {
                retry_after: Some(secs(s))
            }),
        ]
    }

    proptest! {
        /// Whatever happens: no wait is shorter than the server asked, none ends after the
        /// deadline, no request is sent after it, and the attempts are bounded.
        #[test]
        fn invariants_hold(
            seed: u64,
            deadline in 1u64..400,
            attempts in 1u32..6,
            events in prop::collection::vec((outcome(), 0u64..30_000), 1..40),
        ) {
            let policy = RetryPolicy::default()
                .with_max_attempts(attempts)
                .with_deadline(secs(deadline));
            let clock = ManualClock::new();
            let end = clock.now() + secs(deadline);
            let mut retry = Retry::new(policy, LONGEST, seed);
            retry.begin(0);
            let mut sent = 0;
            for (outcome, took) in events {
                match retry.permitted(clock.now()) {
                    Step::Send { timeout } => {
                        sent += 1;
                        prop_assert!(clock.now() < end);
                        prop_assert_eq!(timeout.is_some(), end - clock.now() < LONGEST);
                    }
                    step => {
                        prop_assert_eq!(step, Step::HandBack);
                        prop_assert!(clock.now() >= end);
                        break;
                    }
                }
                clock.advance(Duration::from_millis(took));
                match retry.after(outcome, clock.now()) {
                    Step::Wait(delay) => {
                        if let Outcome::Throttled { retry_after: Some(asked) } = outcome {
                            prop_assert!(delay >= asked);
                            prop_assert!(asked <= policy.max_retry_after);
                        }
                        prop_assert!(clock.now() + delay < end);
                        clock.advance(delay);
                    }
                    step => {
                        prop_assert_eq!(step, Step::HandBack);
                        break;
                    }
                }
            }
            prop_assert!(sent <= attempts);
        }
    }
}
