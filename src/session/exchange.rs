//! Requests and their answers: the one retry loop, and what happens to each request in it.
//!
//! [`Wire::run`] sends and waits as a piece of [`Work`] says. A request waits for permission, gets a
//! token, is sent and counted, and its end is told to the work together with what it means for
//! sending it again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, Sent};
use crate::http::{Body, Request, Response, Transport, TransportError};
use crate::report::metrics::Counters;
use crate::session::limiter::{self, Limiter};
use crate::session::retry::{Budget, Caller, Failure, RetryPolicy, Wait};
use crate::util::clock::{Clock, short, sleep_unless};
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

/// What the transport made of a request.
type Transported = Result<Response, TransportError>;

/// How a request ended.
pub(crate) struct Reply {
    pub(crate) result: Result<Response>,
    /// What the end means for sending it again, where it is no success.
    pub(crate) failure: Failure,
}

/// Why a request was not sent, or a wait not begun.
pub(crate) enum Stop {
    OutOfTime(Error),
    Cancelled(Error),
    /// No token can be had, or the process was forked.
    Refused(Error),
}

impl Stop {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Stop::OutOfTime(error) | Stop::Cancelled(error) | Stop::Refused(error) => error,
        }
    }
}

/// What the retry loop tells a piece of work.
pub(crate) enum Progress {
    Begun,
    Answered(Reply),
    /// The wait is over.
    Waited,
    /// The last step was not taken.
    Stopped(Stop),
}

/// What a piece of work asks the retry loop for.
pub(crate) enum Next<'a, D> {
    Send(&'a mut Request, Purpose),
    Wait(Wait),
    Done(D),
}

/// Work that takes requests: a read, a login, an update.
pub(crate) trait Work {
    type Done;

    /// What to do next.
    fn next(&mut self, call: &mut Call<'_>, progress: Progress) -> Next<'_, Self::Done>;
}

/// A token as requests carry it.
pub(crate) struct Token {
    pub(crate) header: Arc<Secret>,
    pub(crate) generation: u64,
    /// `None` for a given token, whose end is not known.
    pub(crate) expires: Option<Instant>,
    pub(crate) refresh_at: Option<Instant>,
    /// The platform accepted it at least once.
    pub(crate) proven: AtomicBool,
}

impl Token {
    /// Notes that the platform accepted it.
    pub(crate) fn accepted(&self) {
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
    }
}

/// Where the requests to an API get their tokens.
pub(crate) trait Tokens: Send + Sync {
    /// Returns a valid token and the time.
    fn token(&self, call: &mut Call<'_>, now: Instant) -> Result<(Arc<Token>, Instant), Stop>;

    /// Discards a token that the platform refused. False if another login is of no use.
    fn refused(&self, token: &Token) -> bool;
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
    /// `None` for the login endpoint.
    pub(crate) tokens: Option<Arc<dyn Tokens>>,
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
    /// It has tried to replace a token that was about to expire.
    pub(crate) refreshed_early: bool,
    ended: Option<Instant>,
    /// The last failure that may pass.
    failed_by: Option<String>,
}

impl Call<'_> {
    /// From the first request to the end of the last.
    fn latency(&self) -> Duration {
        match (self.started, self.ended) {
            (Some(started), Some(ended)) => ended.saturating_duration_since(started),
            _ => Duration::ZERO,
        }
    }

    /// Attempts, requests and latency, as receipts, records and errors have them.
    pub(crate) fn effort(&self) -> (u32, u32, Duration) {
        (self.attempts, self.requests, self.latency())
    }

    /// Puts what the call took into its error.
    pub(crate) fn failed(&self, error: Error) -> Error {
        error.with_effort(self.attempts, self.requests, self.latency())
    }
}

/// Gives a slot of the limiter back, also when the clock panics.
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

/// One request, sent until its answer would stay the same, or the attempts or the time run out.
struct Single<'r, F, T> {
    request: Request,
    purpose: Purpose,
    max_attempts: u32,
    failed: u32,
    read: &'r mut F,
    last: Option<Result<T>>,
}

impl<T, F: FnMut(Reply) -> (Result<T>, Failure)> Work for Single<'_, F, T> {
    type Done = Result<T>;

    fn next(&mut self, _: &mut Call<'_>, progress: Progress) -> Next<'_, Result<T>> {
        match progress {
            Progress::Begun | Progress::Waited => Next::Send(&mut self.request, self.purpose),
            Progress::Answered(reply) => {
                let (result, failure) = (self.read)(reply);
                match failure.wait(&mut self.failed, self.max_attempts) {
                    Some(wait) => {
                        self.last = Some(result);
                        Next::Wait(wait)
                    }
                    None => Next::Done(result),
                }
            }
            // The last answer says more than that there is no time for another attempt.
            Progress::Stopped(Stop::OutOfTime(error)) => {
                Next::Done(self.last.take().unwrap_or(Err(error)))
            }
            Progress::Stopped(stop) => Next::Done(Err(stop.into_error())),
        }
    }
}

impl Wire {
    pub(crate) fn begin<'c>(
        &self,
        policy: RetryPolicy,
        caller: Caller,
        subject: &'c str,
        cancel: Option<&'c Cancel>,
    ) -> Call<'c> {
        Call {
            budget: Budget::new(policy, caller, self.longest_request, self.seeds.next()),
            cancel,
            subject,
            attempts: 0,
            requests: 0,
            started: None,
            sent: None,
            refreshed_early: false,
            ended: None,
            failed_by: None,
        }
    }

    /// Sends and waits as `work` says, until it is done. This is the one retry loop.
    pub(crate) fn run<W: Work>(&self, call: &mut Call<'_>, work: &mut W) -> W::Done {
        let mut progress = Progress::Begun;
        loop {
            let taken = match work.next(call, progress) {
                Next::Send(request, purpose) => {
                    self.send(call, request, purpose).map(Progress::Answered)
                }
                Next::Wait(wait) => self.wait(call, wait).map(|()| Progress::Waited),
                Next::Done(done) => return done,
            };
            progress = taken.unwrap_or_else(Progress::Stopped);
        }
    }

    /// Sends one request until its answer would stay the same, or the attempts or the time run out.
    ///
    /// `read` takes each end, and may make a failure of what looks like a success.
    pub(crate) fn request<T>(
        &self,
        call: &mut Call<'_>,
        request: Request,
        purpose: Purpose,
        max_attempts: u32,
        mut read: impl FnMut(Reply) -> (Result<T>, Failure),
    ) -> Result<T> {
        let mut single = Single {
            request,
            purpose,
            max_attempts,
            failed: 0,
            read: &mut read,
            last: None,
        };
        self.run(call, &mut single)
    }

    /// Sends a request once. A token that is refused is replaced, which does not count.
    ///
    /// A new token is asked for while some request was accepted with the last one: several threads
    /// may find tokens revoked one after the other.
    fn send(
        &self,
        call: &mut Call<'_>,
        request: &mut Request,
        purpose: Purpose,
    ) -> Result<Reply, Stop> {
        let mut renewals = 0;
        loop {
            let (token, result) = self.send_once(call, request, purpose)?;
            match (&result, token) {
                (Ok(response), Some(token)) if response.status == 401 => {
                    let may_renew = self.tokens.as_ref().is_some_and(|t| t.refused(&token));
                    if may_renew && renewals < call.budget.max_attempts() {
                        renewals += 1;
                        continue;
                    }
                }
                (Ok(response), Some(token)) if response.status < 500 => token.accepted(),
                _ => {}
            }
            let failure = self.failure_of(call, request, purpose, &result);
            let result = result.map_err(|failure| failure.error);
            return Ok(Reply { result, failure });
        }
    }

    /// Waits for permission, gets a token, and sends. Also returns the token.
    fn send_once(
        &self,
        call: &mut Call<'_>,
        request: &mut Request,
        purpose: Purpose,
    ) -> Result<(Option<Arc<Token>>, Transported), Stop> {
        // A callback of the caller's may have forked since the call began.
        self.process.check().map_err(Stop::Refused)?;
        let (mut slot, token, now) = loop {
            let permitted = self.await_permission(call)?;
            let slot = Slot {
                wire: self,
                used: false,
            };
            call.budget.start(permitted);
            let Some(tokens) = &self.tokens else {
                break (slot, None, permitted);
            };
            let (token, now) = tokens.token(call, permitted)?;
            // A login takes time, in which the platform may have asked another thread to slow down.
            if now == permitted || !self.limiter.is_paused(now) {
                request.authorization = Some(token.header.clone());
                break (slot, Some(token), now);
            }
        };
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
        call.attempts += u32::from(purpose == Purpose::Write);
        let result = self.transported(request);
        drop(slot);
        let ended = self.clock.now();
        call.ended = Some(ended);
        call.budget.round_trip = ended.saturating_duration_since(now);
        Ok((token, result))
    }

    /// Hands a request to the transport, which may be the caller's own code and may panic.
    fn transported(&self, request: &Request) -> Transported {
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

    /// Waits before something is sent again.
    fn wait(&self, call: &mut Call<'_>, wait: Wait) -> Result<(), Stop> {
        let now = self.clock.now();
        let delay = call.budget.delay(wait, now);
        if let Wait::Throttled {
            retry_after,
            limited,
        } = wait
        {
            // The other threads wait too, also when this call does not.
            let asked = retry_after.filter(|wait| *wait <= self.policy.max_retry_after);
            if let Some(delay) = delay.or(asked) {
                self.limiter.pause(now + delay, limited);
            }
        }
        let Some(delay) = delay.filter(|_| !call.budget.gives_up(wait)) else {
            return Err(Stop::OutOfTime(self.too_late()));
        };
        let (subject, again) = (call.subject, short(delay));
        match wait {
            Wait::Throttled { limited: true, .. } => {
                warn!("{subject}: rate limited by the platform; sent again in {again}");
            }
            Wait::Throttled { limited: false, .. } => {
                warn!("{subject}: the platform is unavailable; sent again in {again}");
            }
            Wait::Conflict { locked: true, .. } => {
                warn!("{subject}: optimistic locking conflict; read and written again in {again}")
            }
            Wait::Conflict { locked: false, .. } => {
                warn!("{subject}: conflict with another write; sent again in {again}")
            }
            Wait::Backoff { attempts } => {
                let (next, most) = (attempts + 1, call.budget.max_attempts());
                let failed = call.failed_by.as_deref().unwrap_or("a request failed");
                warn!("{subject}: {failed}; attempt {next} of {most}, again in {again}");
            }
        }
        self.sleep(call, delay, call.budget.is_free(wait))?;
        if !matches!(wait, Wait::Conflict { .. }) {
            self.counters.retries.increment();
        }
        Ok(())
    }

    /// The wait that a response asks for.
    pub(crate) fn retry_after(&self, response: &Response) -> Option<Duration> {
        response.retry_after(self.clock.wall())
    }

    /// What the end of a request means for sending it again. Counts and logs it.
    fn failure_of(
        &self,
        call: &mut Call<'_>,
        request: &Request,
        purpose: Purpose,
        result: &Transported,
    ) -> Failure {
        // Without the ids that a look-up asks for: there may be a hundred.
        let url = request.url.split('?').next().unwrap_or_default();
        let method = request.method.as_str();
        let failure = match result {
            Ok(response) => {
                debug!("{method} {url} answered {}", response.status);
                let failure = self.failure_of_status(purpose, response);
                if matches!(failure, Failure::Transient { .. }) {
                    let status = response.status;
                    call.failed_by = Some(format!("{method} {url} answered {status}"));
                }
                failure
            }
            Err(TransportError { error, sent }) => {
                self.counters.transport_errors.increment();
                call.failed_by = Some(format!("{method} {url}: {error}"));
                let may = *sent != Sent::No;
                // In a batch one line finds out whether the platform answers, and not each.
                let left_to_batch = error.kind() == ErrorKind::Timeout
                    && purpose != Purpose::Write
                    && call.budget.in_batch();
                if left_to_batch || error.kind() == ErrorKind::Internal {
                    Failure::Final { may }
                } else if may || error.is_transient() {
                    Failure::Transient { may }
                } else {
                    Failure::Final { may }
                }
            }
        };
        if !matches!(failure, Failure::Throttled { .. }) {
            call.budget.answered();
        }
        failure
    }

    /// What a status means for sending the request again.
    fn failure_of_status(&self, purpose: Purpose, response: &Response) -> Failure {
        let status = response.status;
        if status < 400 {
            let lost = matches!(response.body, Body::Broken(_) | Body::TimedOut);
            if lost && purpose != Purpose::Write {
                self.counters.transport_errors.increment();
                return Failure::Transient { may: false };
            }
            return Failure::Final { may: false };
        }
        if status >= 500 {
            self.counters.server_errors.increment();
        }
        let retry_after = self.retry_after(response);
        let limited = status == 429
            || purpose == Purpose::Login && status == 400 && is_throttled_login(response);
        if limited || status == 503 && retry_after.is_some() {
            self.counters.rate_limited.increment();
            return Failure::Throttled {
                retry_after,
                may: !limited,
            };
        }
        match status {
            408 | 500 | 502 | 503 | 504 => Failure::Transient { may: true },
            // These refuse; any other failure of a server or gateway leaves it open.
            501 | 505 => Failure::Final { may: false },
            _ => Failure::Final { may: status > 500 },
        }
    }

    /// Takes a slot of the limiter, and returns the time. The wait for the client's own rate is
    /// outside of the deadline; a pause that the platform asked for is not, but for a batch.
    fn await_permission(&self, call: &mut Call<'_>) -> Result<Instant, Stop> {
        loop {
            Cancel::check(call.cancel).map_err(Stop::Cancelled)?;
            let now = self.clock.now();
            let (wait, is_free) = match self.limiter.acquire(now) {
                Ok(()) => return Ok(now),
                Err(limiter::Wait::Slot(wait)) => (wait, true),
                Err(limiter::Wait::Pause(wait)) => (wait, call.budget.caller == Caller::Batch),
            };
            if !is_free && !call.budget.has_time(wait, now) {
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
            self.sleep(call, wait, is_free)?;
        }
    }

    /// True while a pause lasts that the platform asked for.
    pub(crate) fn is_paused(&self, now: Instant) -> bool {
        self.limiter.is_paused(now)
    }

    /// Sleeps; `is_free`: outside of the deadline.
    pub(crate) fn sleep(
        &self,
        call: &mut Call<'_>,
        duration: Duration,
        is_free: bool,
    ) -> Result<(), Stop> {
        let begun = self.clock.now();
        sleep_unless(self.clock.as_ref(), duration, call.cancel).map_err(Stop::Cancelled)?;
        if is_free {
            let waited = self.clock.now().saturating_duration_since(begun);
            call.budget.extend(waited);
        }
        Ok(())
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

/// True for the login endpoint's own way to say 429. The official Terraform provider recognizes it
/// by the same words.
pub(crate) fn is_throttled_login(response: &Response) -> bool {
    const WORDS: &[u8] = b"rate limit exceeded";
    match &response.body {
        Body::Whole(bytes) => bytes
            .windows(WORDS.len())
            .any(|part| part.eq_ignore_ascii_case(WORDS)),
        _ => false,
    }
}
