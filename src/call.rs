//! The only loop that sends: ask the limiter and the retry machine, send, count, sleep, feed the
//! outcome back.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::clock::{Cancel, Clock, retry_after, sleep_unless};
use crate::error::{Error, ErrorKind, Result, Sent};
use crate::http::{Body, Request, Response, Transport, TransportError};
use crate::limiter::{Limiter, Wait};
use crate::metrics::Counters;
use crate::retry::{Outcome, Retry, RetryPolicy, Step};

/// What a request is for: what an unclear end of it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Its answer is all that matters: one that cannot be read is asked for again.
    Read,
    /// It changes the platform's state: an end without an answer leaves that open.
    Write,
    /// A write that replaces whatever is there by then, without a lock: once its end is unclear, it
    /// is handed back after the backoff instead of being sent again unseen.
    Replace,
    /// The token endpoint, which throttles in a way of its own.
    Token,
}

/// Sends requests to one service, under that service's limit.
pub(crate) struct Caller {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) policy: RetryPolicy,
    pub(crate) limiter: Limiter,
    /// The longest that one request takes by the limits of its phases.
    pub(crate) longest_request: Duration,
    pub(crate) seeds: Seeds,
}

/// Where the jitter of each call starts.
pub(crate) struct Seeds(AtomicU64);

impl Seeds {
    pub(crate) fn new() -> Seeds {
        // The only randomness that std offers.
        let seed = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish();
        Seeds(AtomicU64::new(seed))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}

/// The state of one call of the library: what it has sent so far, over all of its requests.
pub(crate) struct Call<'c> {
    retry: Retry,
    pub(crate) cancel: Option<&'c Cancel>,
    /// Writes sent.
    pub(crate) attempts: u32,
    /// Requests sent.
    pub(crate) requests: u32,
    /// Some write ended without a clear answer: the platform may have applied it.
    pub(crate) may_have_applied: bool,
    /// The last write did, or is still under way.
    pub(crate) unclear: bool,
    /// A write that replaces what is there ended unclear, and its backoff is over: look at the
    /// target before it is sent again.
    pub(crate) look: bool,
    started: Option<Instant>,
    /// When the last request was sent.
    pub(crate) sent: Option<Instant>,
    ended: Option<Instant>,
}

impl Call<'_> {
    /// A new request begins. One that replaces what is there is one request over all of its
    /// looks at the target in between.
    pub(crate) fn begin_request(&mut self, purpose: Purpose) {
        self.retry.begin(match purpose {
            Purpose::Replace => self.attempts,
            _ => 0,
        });
    }

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
    caller: &'a Caller,
    used: bool,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if self.used {
            self.caller.limiter.release(self.caller.clock.now());
        } else {
            self.caller.limiter.give_back();
        }
    }
}

impl Caller {
    pub(crate) fn begin<'c>(&self, cancel: Option<&'c Cancel>) -> Call<'c> {
        self.begin_with(self.policy, cancel)
    }

    pub(crate) fn begin_with<'c>(
        &self,
        policy: RetryPolicy,
        cancel: Option<&'c Cancel>,
    ) -> Call<'c> {
        Call {
            retry: Retry::new(policy, self.longest_request, self.seeds.next()),
            cancel,
            attempts: 0,
            requests: 0,
            may_have_applied: false,
            unclear: false,
            look: false,
            started: None,
            sent: None,
            ended: None,
        }
    }

    /// Sends a request that was [begun](Call::begin_request) until there is an answer that a retry
    /// would not change, or the attempts or the time run out. The answer may be of any status.
    ///
    /// # Errors
    ///
    /// The last transport error when there was no answer; `Cancelled`.
    pub(crate) fn send(
        &self,
        call: &mut Call<'_>,
        request: &mut Request,
        purpose: Purpose,
    ) -> Result<Response> {
        let mut last: Option<Result<Response, Error>> = None;
        loop {
            let now = match (self.await_permission(call), last.take()) {
                (Ok(now), before) => {
                    last = before;
                    now
                }
                // The last real error says more than that there is no time for another attempt.
                (Err(error), Some(before)) if error.kind() == ErrorKind::RateLimited => {
                    return before;
                }
                (Err(error), _) => return Err(error),
            };
            let mut slot = Slot {
                caller: self,
                used: false,
            };
            match call.retry.permitted(now) {
                Step::Send { timeout } => request.timeout = timeout,
                _ => return last.unwrap_or_else(|| Err(self.too_late())),
            }
            slot.used = true;
            call.started.get_or_insert(now);
            call.sent = Some(now);
            if purpose != Purpose::Token {
                call.requests += 1;
                self.counters.requests.increment();
            }
            let writes = matches!(purpose, Purpose::Write | Purpose::Replace);
            if writes {
                call.attempts += 1;
                // Also what a transport that panics leaves behind.
                call.unclear = true;
            }
            if last.is_some() {
                self.counters.retries.increment();
            }
            let result = self.transport.send(request);
            drop(slot);
            let now = self.clock.now();
            call.ended = Some(now);

            let outcome = self.judge(request, purpose, &result);
            if writes {
                call.unclear = is_unclear(&result);
                call.may_have_applied |= call.unclear;
            }
            let result = result.map_err(|failure| failure.error);
            let Some(outcome) = outcome else {
                return result;
            };
            let step = call.retry.after(outcome, now);
            match (outcome, step) {
                (Outcome::Throttled { .. }, Step::Wait(delay)) => self.limiter.pause(now + delay),
                // Also when this was the last attempt: the others must wait all the same.
                (
                    Outcome::Throttled {
                        retry_after: Some(wait),
                    },
                    _,
                ) if wait <= self.policy.max_retry_after => self.limiter.pause(now + wait),
                _ => {}
            }
            let Step::Wait(delay) = step else {
                return result;
            };
            debug!(
                "{} {} will be sent again in {delay:?}",
                request.method.as_str(),
                request.url
            );
            self.sleep(delay, call.cancel)?;
            if purpose == Purpose::Replace && call.unclear {
                call.look = true;
                return result;
            }
            last = Some(result);
        }
    }

    /// Waits out a conflict's backoff; `false` when no further attempt is allowed.
    pub(crate) fn settle_conflict(&self, call: &mut Call<'_>) -> Result<bool> {
        match call.retry.conflicted(self.clock.now()) {
            Step::Wait(delay) => {
                self.sleep(delay, call.cancel)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The wait that a response asks for.
    pub(crate) fn retry_after(&self, response: &Response) -> Option<Duration> {
        retry_after(response.header("retry-after")?, self.clock.wall())
    }

    /// What a result means for retrying; `None` when there is no point in it. Counts it.
    fn judge(
        &self,
        request: &Request,
        purpose: Purpose,
        result: &std::result::Result<Response, TransportError>,
    ) -> Option<Outcome> {
        let response = match result {
            Ok(response) => response,
            Err(TransportError { error, sent }) => {
                self.counters.transport_errors.increment();
                warn!("{} {}: {error}", request.method.as_str(), request.url);
                let hopeless = *sent == Sent::No && !error.is_transient();
                return (!hopeless).then_some(Outcome::Fault);
            }
        };
        debug!(
            "{} {} answered {}",
            request.method.as_str(),
            request.url,
            response.status
        );
        if response.status >= 500 {
            self.counters.server_errors.increment();
        }
        Some(match response.status {
            429 => self.throttled(response),
            400 if purpose == Purpose::Token && says_throttled(response) => {
                self.throttled(response)
            }
            408 | 500 | 502 | 503 | 504 => Outcome::Fault,
            200..=299
                if matches!(purpose, Purpose::Read | Purpose::Token)
                    && matches!(response.body, Body::Broken(_)) =>
            {
                self.counters.transport_errors.increment();
                Outcome::Fault
            }
            _ => Outcome::Settled,
        })
    }

    fn throttled(&self, response: &Response) -> Outcome {
        self.counters.rate_limited.increment();
        Outcome::Throttled {
            retry_after: self.retry_after(response),
        }
    }

    /// Takes a slot of the limiter, and says when. The wait for the client's own rate is outside of
    /// the deadline; a pause that the platform asked for is not, once the call has begun.
    fn await_permission(&self, call: &mut Call<'_>) -> Result<Instant> {
        loop {
            Cancel::check(call.cancel)?;
            let now = self.clock.now();
            match self.limiter.acquire(now) {
                Ok(()) => return Ok(now),
                Err(Wait::Slot(wait)) => {
                    self.sleep(wait, call.cancel)?;
                    call.retry
                        .extend(self.clock.now().saturating_duration_since(now));
                }
                Err(Wait::Pause(wait)) if call.retry.has_time(wait, now) => {
                    self.sleep(wait, call.cancel)?;
                }
                Err(Wait::Pause(wait)) => {
                    return Err(Error::new(
                        ErrorKind::RateLimited,
                        "the platform asked this client to slow down for longer than is left for \
                         the update",
                    )
                    // Jitter may have taken it beyond what is waited for.
                    .with_retry_after(Some(wait.min(self.policy.max_retry_after))));
                }
            }
        }
    }

    /// Whether the platform asked for a pause that is not over.
    pub(crate) fn is_paused(&self) -> bool {
        self.limiter.is_paused(self.clock.now())
    }

    fn sleep(&self, duration: Duration, cancel: Option<&Cancel>) -> Result<()> {
        sleep_unless(self.clock.as_ref(), duration, cancel)
    }

    fn too_late(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "the deadline of {:?} for one update passed",
                self.policy.deadline
            ),
        )
    }
}

/// Whether the platform may have applied a write that ended like this, without saying so.
fn is_unclear(result: &std::result::Result<Response, TransportError>) -> bool {
    match result {
        // 501 and 505 refuse; any other failure of a server or gateway leaves it open.
        Ok(response) => {
            let status = response.status;
            status == 408 || status >= 500 && !matches!(status, 501 | 505)
        }
        Err(failure) => failure.sent != Sent::No,
    }
}

/// The token endpoint's own way to say 429, which the official Terraform provider recognizes by
/// the same words.
pub(crate) fn says_throttled(response: &Response) -> bool {
    const WORDS: &[u8] = b"rate limit exceeded";
    match &response.body {
        Body::Whole(bytes) => bytes
            .windows(WORDS.len())
            .any(|part| part.eq_ignore_ascii_case(WORDS)),
        _ => false,
    }
}
