//! One request and its answer: wait for permission, send, count, and say what the answer means for
//! sending again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::error::{Error, ErrorKind, Sent};
use crate::http::{Body, Request, Response, Transport, TransportError};
use crate::report::metrics::Counters;
use crate::session::limiter::{Limiter, Wait};
use crate::session::retry::{Budget, Patience, Pause, RetryPolicy};
use crate::util::clock::{Clock, sleep_unless};
use crate::util::process::Process;
use crate::util::random::Seeds;
use crate::util::sync::{Cancel, discard};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
    /// The login endpoint, which throttles in a way of its own.
    Login,
}

/// What the end of a request means for sending it again. `may`: it may have taken effect although
/// no answer says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Sending it again changes nothing.
    Settled { may: bool },
    /// 429, perhaps with a time; or a 503 with a time, which leaves open whether it took effect.
    Throttled {
        retry_after: Option<Duration>,
        may: bool,
    },
    /// A failure that may pass.
    Transient { may: bool },
}

/// How a request ended.
pub(crate) struct Reply<T = Response> {
    pub(crate) result: Result<T, Error>,
    pub(crate) class: Class,
}

/// Why a request was not sent, or a wait not begun.
pub(crate) enum Stop {
    OutOfTime(Error),
    Cancelled(Error),
    /// There is no token to send it with.
    Login(Error),
}

impl Stop {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Stop::OutOfTime(error) | Stop::Cancelled(error) | Stop::Login(error) => error,
        }
    }
}

/// Sends requests to one service, under that service's limit.
pub(crate) struct Wire {
    /// The process that made the client.
    pub(crate) process: Process,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) policy: RetryPolicy,
    pub(crate) limiter: Limiter,
    /// The longest that one request takes by the limits of its phases.
    pub(crate) longest_request: Duration,
    pub(crate) seeds: Arc<Seeds>,
}

/// One call of the library: what it has sent so far, over all of its requests.
pub(crate) struct Call<'c> {
    pub(crate) budget: Budget,
    pub(crate) cancel: Option<&'c Cancel>,
    /// What log lines call it.
    subject: &'c str,
    /// Writes sent.
    pub(crate) attempts: u32,
    /// Requests sent.
    pub(crate) requests: u32,
    started: Option<Instant>,
    /// When the last request was sent.
    pub(crate) sent: Option<Instant>,
    /// It has tried to replace a token that was near its end.
    pub(crate) refreshed_early: bool,
    ended: Option<Instant>,
}

impl Call<'_> {
    /// From the first request to the end of the last.
    pub(crate) fn latency(&self) -> Duration {
        match (self.started, self.ended) {
            (Some(started), Some(ended)) => ended.saturating_duration_since(started),
            _ => Duration::ZERO,
        }
    }
}

/// Gives a slot of the limiter back, also when the transport panics.
struct Slot<'a> {
    wire: &'a Wire,
    used: bool,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if self.used {
            self.wire.limiter.release(|| self.wire.clock.now());
        } else {
            self.wire.limiter.give_back();
        }
    }
}

impl Wire {
    pub(crate) fn begin<'c>(
        &self,
        policy: RetryPolicy,
        patience: Patience,
        subject: &'c str,
        cancel: Option<&'c Cancel>,
    ) -> Call<'c> {
        Call {
            budget: Budget::new(policy, patience, self.longest_request, self.seeds.next()),
            cancel,
            subject,
            attempts: 0,
            requests: 0,
            started: None,
            sent: None,
            refreshed_early: false,
            ended: None,
        }
    }

    /// Sends a request once, when it may be sent. `authorize` runs after the wait for that, so that
    /// the token is fresh; it gets the time and gives it back.
    pub(crate) fn send(
        &self,
        call: &mut Call<'_>,
        request: &mut Request,
        purpose: Purpose,
        mut authorize: impl FnMut(&mut Request, &mut Call<'_>, Instant) -> Result<Instant, Stop>,
    ) -> Result<Reply, Stop> {
        // A callback of the caller's may have forked since the call began.
        self.process.check().map_err(Stop::Login)?;
        let (mut slot, now) = loop {
            let permitted = self.await_permission(call)?;
            let slot = Slot {
                wire: self,
                used: false,
            };
            call.budget.start(permitted);
            let now = authorize(request, call, permitted)?;
            // A login takes time, in which the platform may have asked another thread to slow down.
            if now == permitted || !self.limiter.is_paused(now) {
                break (slot, now);
            }
        };
        // A login takes time.
        Cancel::check(call.cancel).map_err(Stop::Cancelled)?;
        if call.budget.rest(now).is_zero() {
            return Err(Stop::OutOfTime(self.too_late()));
        }
        request.timeout = call.budget.request_limit(now);
        slot.used = true;
        call.started.get_or_insert(now);
        call.sent = Some(now);
        if purpose != Purpose::Login {
            call.requests += 1;
            self.counters.requests.increment();
        }
        if purpose == Purpose::Write {
            call.attempts += 1;
        }
        let result = self.transported(request);
        drop(slot);
        let ended = self.clock.now();
        call.ended = Some(ended);
        call.budget.round_trip = ended.saturating_duration_since(now);
        let mut class = self.classify(request, purpose, &result);
        let timed_out = |failure: &TransportError| failure.error.kind() == ErrorKind::Timeout;
        if call.budget.in_batch()
            && purpose != Purpose::Write
            && result.as_ref().is_err_and(timed_out)
        {
            // The batch finds out with one line whether anybody answers, rather than with each.
            class = Class::Settled { may: false };
        }
        if !matches!(class, Class::Throttled { .. }) {
            call.budget.answered();
        }
        Ok(Reply {
            result: result.map_err(|failure| failure.error),
            class,
        })
    }

    /// Hands a request to the transport, which is the caller's own code, perhaps: it may panic.
    fn transported(&self, request: &Request) -> Result<Response, TransportError> {
        let sent = catch_unwind(AssertUnwindSafe(|| self.transport.send(request)));
        sent.unwrap_or_else(|payload| {
            discard(payload);
            let error = Error::new(
                ErrorKind::Internal,
                "the transport panicked while it sent a request: correct it",
            );
            Err(TransportError::new(error, Sent::Maybe))
        })
    }

    /// Sends until there is an answer that sending again would not change, or the attempts or the
    /// time run out. The answer may be of any status.
    ///
    /// # Errors
    ///
    /// The last failure when there was no answer; `Cancelled`.
    pub(crate) fn until_settled<T>(
        &self,
        call: &mut Call<'_>,
        max_attempts: u32,
        mut send: impl FnMut(&mut Call<'_>) -> Result<Reply<T>, Stop>,
    ) -> Result<T, Error> {
        let mut attempts = 0;
        let mut last = None;
        loop {
            let reply = match send(call) {
                Ok(reply) => reply,
                // The last real error says more than that there is no time for another attempt.
                Err(Stop::OutOfTime(error)) => return last.unwrap_or(Err(error)),
                Err(stop) => return Err(stop.into_error()),
            };
            let pause = match reply.class {
                Class::Settled { .. } => return reply.result,
                Class::Throttled { retry_after, may } => Pause::Throttled {
                    retry_after,
                    limited: !may,
                },
                Class::Transient { .. } => {
                    attempts += 1;
                    if attempts >= max_attempts {
                        return reply.result;
                    }
                    Pause::Backoff { attempts }
                }
            };
            match self.wait(call, pause) {
                Ok(()) => last = Some(reply.result),
                Err(Stop::OutOfTime(_)) => return reply.result,
                Err(stop) => return Err(stop.into_error()),
            }
        }
    }

    /// Waits before something is sent again.
    pub(crate) fn wait(&self, call: &mut Call<'_>, pause: Pause) -> Result<(), Stop> {
        let now = self.clock.now();
        let delay = call.budget.pause(pause, now);
        if let Pause::Throttled {
            retry_after,
            limited,
        } = pause
        {
            // Also when this call does not wait: the others must all the same.
            let asked = retry_after.filter(|wait| *wait <= self.policy.max_retry_after);
            if let Some(wait) = delay.or(asked) {
                self.limiter.pause(now + wait, limited);
            }
        }
        let Some(delay) = delay.filter(|_| !call.budget.gives_up(pause)) else {
            return Err(Stop::OutOfTime(self.too_late()));
        };
        let subject = call.subject;
        match pause {
            Pause::Throttled { limited: true, .. } => {
                warn!("{subject}: rate limited by the platform; sent again in {delay:?}");
            }
            Pause::Throttled { limited: false, .. } => {
                warn!("{subject}: the platform is unavailable; sent again in {delay:?}");
            }
            Pause::Conflict { locked: true, .. } => {
                warn!("{subject}: optimistic locking conflict; read and written again in {delay:?}")
            }
            Pause::Conflict { locked: false, .. } => {
                warn!("{subject}: conflict with another write; sent again in {delay:?}")
            }
            Pause::Backoff { .. } => debug!("{subject}: sent again in {delay:?}"),
        }
        self.sleep(delay, call.cancel)?;
        if call.budget.is_free(pause) {
            let waited = self.clock.now().saturating_duration_since(now);
            call.budget.extend(waited);
        }
        if !matches!(pause, Pause::Conflict { .. }) {
            self.counters.retries.increment();
        }
        Ok(())
    }

    /// The wait that a response asks for.
    pub(crate) fn retry_after(&self, response: &Response) -> Option<Duration> {
        response.retry_after(self.clock.wall())
    }

    /// What a result means for sending again. Counts it.
    fn classify(
        &self,
        request: &Request,
        purpose: Purpose,
        result: &Result<Response, TransportError>,
    ) -> Class {
        // Without the ids that a look-up asks for: there may be a hundred.
        let url = request.url.split('?').next().unwrap_or_default();
        let method = request.method.as_str();
        let response = match result {
            Ok(response) => response,
            Err(TransportError { error, sent }) => {
                self.counters.transport_errors.increment();
                warn!("{method} {url}: {error}");
                let may = *sent != Sent::No;
                let defect = error.kind() == ErrorKind::Internal;
                return if !defect && (may || error.is_transient()) {
                    Class::Transient { may }
                } else {
                    Class::Settled { may }
                };
            }
        };
        debug!("{method} {url} answered {}", response.status);
        if response.status < 400 {
            let lost = matches!(response.body, Body::Broken(_) | Body::TimedOut);
            if lost && purpose != Purpose::Write {
                self.counters.transport_errors.increment();
                return Class::Transient { may: false };
            }
            return Class::Settled { may: false };
        }
        if response.status >= 500 {
            self.counters.server_errors.increment();
        }
        let throttled = |may| {
            self.counters.rate_limited.increment();
            Class::Throttled {
                retry_after: self.retry_after(response),
                may,
            }
        };
        match response.status {
            429 => throttled(false),
            400 if purpose == Purpose::Login && is_throttled_login(response) => throttled(false),
            503 if self.retry_after(response).is_some() => throttled(true),
            408 | 500 | 502 | 503 | 504 => Class::Transient { may: true },
            // These refuse; any other failure of a server or gateway leaves it open.
            501 | 505 => Class::Settled { may: false },
            status => Class::Settled { may: status > 500 },
        }
    }

    /// Takes a slot of the limiter, and says when. The wait for the client's own rate is outside of
    /// the deadline; a pause that the platform asked for is not, but for a batch.
    fn await_permission(&self, call: &mut Call<'_>) -> Result<Instant, Stop> {
        loop {
            Cancel::check(call.cancel).map_err(Stop::Cancelled)?;
            let now = self.clock.now();
            let (wait, counts) = match self.limiter.acquire(now) {
                Ok(()) => return Ok(now),
                Err(Wait::Slot(wait)) => (wait, false),
                Err(Wait::Pause(wait)) => (wait, call.budget.patience != Patience::Batch),
            };
            if counts && !call.budget.has_time(wait, now) {
                return Err(Stop::OutOfTime(
                    Error::new(
                        ErrorKind::RateLimited,
                        "the platform asked this client for a pause that ends after the update's \
                         deadline: try again later, or give a longer deadline",
                    )
                    // Jitter may have taken it beyond what is waited for.
                    .with_retry_after(Some(wait.min(self.policy.max_retry_after))),
                ));
            }
            self.sleep(wait, call.cancel)?;
            if !counts {
                let waited = self.clock.now().saturating_duration_since(now);
                call.budget.extend(waited);
            }
        }
    }

    /// Whether the platform asked for a pause that is not over.
    pub(crate) fn is_paused(&self, now: Instant) -> bool {
        self.limiter.is_paused(now)
    }

    fn sleep(&self, duration: Duration, cancel: Option<&Cancel>) -> Result<(), Stop> {
        sleep_unless(self.clock.as_ref(), duration, cancel).map_err(Stop::Cancelled)
    }

    pub(crate) fn too_late(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "the deadline of {:?} for one update passed: give a longer one, or try again later",
                self.policy.deadline
            ),
        )
    }
}

/// The login endpoint's own way to say 429, which the official Terraform provider recognizes by
/// the same words.
pub(crate) fn is_throttled_login(response: &Response) -> bool {
    const WORDS: &[u8] = b"rate limit exceeded";
    match &response.body {
        Body::Whole(bytes) => bytes
            .windows(WORDS.len())
            .any(|part| part.eq_ignore_ascii_case(WORDS)),
        _ => false,
    }
}
