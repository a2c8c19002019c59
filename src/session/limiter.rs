//! How fast requests may go: the client's own rate limit, and the pause that everybody keeps
//! after the platform said 429. Takes the time, answers "go" or "wait this long".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::util::sync::{Mutex, lock};

/// How many API requests a client sends at most, over all of its clones and threads.
///
/// The default is 300 a minute, the platform's documented limit for one token
/// (`client.credentials.token.rate.per.minute`).
///
/// ```
/// use genesys_attributes::RateLimit;
///
/// assert_eq!(RateLimit::default(), RateLimit::per_minute(300));
/// ```
#[must_use = "a limit does nothing until a builder is given it"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    per_minute: Option<u32>,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit::per_minute(300)
    }
}

impl RateLimit {
    /// At most this many requests in any 60 seconds. A burst may use them all at once.
    pub fn per_minute(requests: u32) -> RateLimit {
        RateLimit {
            per_minute: Some(requests),
        }
    }

    /// No limit of the client's own; a 429 still pauses every thread.
    pub fn unlimited() -> RateLimit {
        RateLimit { per_minute: None }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.per_minute {
            Some(0) => Err(Error::config(
                "rate_limit",
                "must allow at least 1 request a minute",
            )),
            Some(n) if n > 1_000_000 => Err(Error::config(
                "rate_limit",
                "must be at most 1000000 a minute, or no limit at all",
            )),
            _ => Ok(()),
        }
    }
}

/// A slot frees this long after the *response* to its request came. The server saw the request
/// before that, so no 60 seconds at the server ever hold more requests than there are slots.
const WINDOW: Duration = Duration::from_secs(60);

/// After this long, whether a slot that was taken was given back unused.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a request may not go yet, and for how long at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The client's own rate is used up.
    Slot(Duration),
    /// The platform asked for it.
    Pause(Duration),
}

/// A sliding log of the requests of the last minute.
#[derive(Debug)]
pub(crate) struct Limiter {
    slots: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    /// When the slots of past requests become free, in order.
    frees: VecDeque<Instant>,
    /// Until when nothing is sent, and until when because of a limit of requests.
    paused_until: Option<Instant>,
    limited_until: Option<Instant>,
}

impl Limiter {
    pub(crate) fn new(rate: RateLimit) -> Limiter {
        Limiter {
            slots: rate.per_minute.map(|n| n as usize),
            state: Mutex::default(),
        }
    }

    /// How many requests a minute it lets through.
    pub(crate) fn per_minute(&self) -> Option<usize> {
        self.slots
    }

    /// Takes a slot, or says how long it is until there may be one. A taken slot must be given
    /// back with [`Limiter::release`], or with [`Limiter::give_back`] when nothing was sent.
    pub(crate) fn acquire(&self, now: Instant) -> Result<(), Wait> {
        let mut state = lock(&self.state);
        if let Some(until) = state.paused_until {
            if now < until {
                return Err(Wait::Pause(until - now));
            }
            state.paused_until = None;
        }
        let Some(slots) = self.slots else {
            return Ok(());
        };
        while state.frees.front().is_some_and(|free| *free <= now) {
            state.frees.pop_front();
        }
        if state.in_flight + state.frees.len() < slots {
            state.in_flight += 1;
            return Ok(());
        }
        // With all slots taken none frees within a window, unless one is given back unused.
        let free = state.frees.front();
        Err(Wait::Slot(free.map_or(LOOK_AGAIN, |free| *free - now)))
    }

    /// The response to a request came, or its failure.
    pub(crate) fn release(&self, now: impl FnOnce() -> Instant) {
        if self.slots.is_some() {
            let frees = now() + WINDOW;
            let mut state = lock(&self.state);
            state.in_flight = state.in_flight.saturating_sub(1);
            state.frees.push_back(frees);
        }
    }

    /// A slot was taken, but nothing was sent.
    pub(crate) fn give_back(&self) {
        if self.slots.is_some() {
            let mut state = lock(&self.state);
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    /// Whether no request may be sent for now.
    pub(crate) fn is_paused(&self, now: Instant) -> bool {
        lock(&self.state)
            .paused_until
            .is_some_and(|until| now < until)
    }

    /// Until when no request may be sent because of a limit of requests.
    pub(crate) fn limited_until(&self) -> Option<Instant> {
        lock(&self.state).limited_until
    }

    /// No request is sent before `until`; `limited` because of a limit of requests.
    pub(crate) fn pause(&self, until: Instant, limited: bool) {
        let mut state = lock(&self.state);
        state.paused_until = state.paused_until.max(Some(until));
        if limited {
            state.limited_until = state.limited_until.max(Some(until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::clock::{Clock, ManualClock};
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn limiter_burst_uses_all_slots_then_waits_for_first_response() {
        let clock = ManualClock::new();
        let limiter = Limiter::new(RateLimit::per_minute(3));
        for _ in 0..3 {
            assert_eq!(limiter.acquire(clock.now()), Ok(()));
        }
        // All in flight: nothing frees, unless one is given back.
        assert_eq!(limiter.acquire(clock.now()), Err(Wait::Slot(LOOK_AGAIN)));
        clock.advance(ms(100));
        limiter.release(|| clock.now());
        clock.advance(ms(50));
        limiter.release(|| clock.now());
        assert_eq!(
            limiter.acquire(clock.now()),
            Err(Wait::Slot(WINDOW - ms(50)))
        );
        clock.advance(WINDOW - ms(50));
        assert_eq!(limiter.acquire(clock.now()), Ok(()));
        assert_eq!(limiter.acquire(clock.now()), Err(Wait::Slot(ms(50))));
        // One that was not used is free at once.
        limiter.give_back();
        assert_eq!(limiter.acquire(clock.now()), Ok(()));
    }

    #[test]
    fn limiter_pause_holds_all_and_shorter_does_not_end_it() {
        let clock = ManualClock::new();
        for rate in [RateLimit::unlimited(), RateLimit::default()] {
            let limiter = Limiter::new(rate);
            limiter.pause(clock.now() + ms(7_000), true);
            limiter.pause(clock.now() + ms(2_000), true);
            assert_eq!(limiter.acquire(clock.now()), Err(Wait::Pause(ms(7_000))));
            assert_eq!(limiter.acquire(clock.now() + ms(7_000)), Ok(()));
            assert_eq!(limiter.acquire(clock.now() + ms(7_001)), Ok(()));
        }
    }

    #[test]
    fn rate_limit_out_of_range_is_refused() {
        assert!(RateLimit::per_minute(0).check().is_err());
        assert!(RateLimit::per_minute(u32::MAX).check().is_err());
        assert!(RateLimit::per_minute(1).check().is_ok());
        assert!(RateLimit::unlimited().check().is_ok());
    }

    proptest! {
        /// Requests arrive at the server at any moment between their start and their response.
        /// No 60 seconds there hold more than the limit, and a refusal is never spurious or zero.
        #[test]
        fn limiter_no_server_window_exceeds_limit(
            slots in 1u32..8,
            steps in prop::collection::vec((0u64..20_000, 0u64..3_000, 0u64..1_000), 1..120),
        ) {
            let clock = ManualClock::new();
            let limiter = Limiter::new(RateLimit::per_minute(slots));
            let start = clock.now();
            let mut arrivals = Vec::new();
            for (idle, took, share) in steps {
                clock.advance(ms(idle));
                if let Err(Wait::Slot(wait)) = limiter.acquire(clock.now()) {
                    prop_assert!(!wait.is_zero());
                    clock.advance(wait);
                    prop_assert_eq!(limiter.acquire(clock.now()), Ok(()));
                }
                arrivals.push(clock.now() - start + ms(took * share / 1_000));
                clock.advance(ms(took));
                limiter.release(|| clock.now());
            }
            for (i, from) in arrivals.iter().enumerate() {
                let within = arrivals[i..].iter().filter(|a| **a < *from + WINDOW).count();
                prop_assert!(within <= slots as usize, "{} at {:?}", within, from);
            }
        }

        /// With work always at hand, at least 97 % of the limit is used.
        #[test]
        fn limiter_uses_rate_while_there_is_work(slots in 1u32..40, took in 0u64..1_500) {
            let clock = ManualClock::new();
            let start = clock.now();
            let limiter = Limiter::new(RateLimit::per_minute(slots));
            let mut sent = 0u64;
            let minutes = 20;
            while clock.now() - start < WINDOW * minutes {
                // As many threads as slots: a burst goes out together and returns together.
                let mut burst = 0;
                while limiter.acquire(clock.now()).is_ok() {
                    burst += 1;
                }
                sent += burst;
                clock.advance(ms(took));
                for _ in 0..burst {
                    limiter.release(|| clock.now());
                }
                if let Err(Wait::Slot(wait)) = limiter.acquire(clock.now()) {
                    clock.advance(wait);
                }
            }
            prop_assert!(sent as f64 >= 0.97 * f64::from(slots) * f64::from(minutes));
        }
    }
}
