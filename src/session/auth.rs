//! Access tokens: fetched by client credentials or given, kept until shortly before they end, and
//! replaced when the platform refuses them, by one thread at a time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, clip, one_line};
use crate::http::{Method, Request, Response};
use crate::session::exchange::{Call, Class, Purpose, Reply, Stop, Wire, is_throttled_login};
use crate::session::retry::Patience;
use crate::util::base64;
use crate::util::clock::sleep_unless;
use crate::util::sync::{Cancel, Condvar, Mutex, lock, wait};

/// How the client proves who it is.
///
/// `Debug` shows no secret.
#[derive(Clone)]
pub struct Credentials(Kind);

#[derive(Clone)]
enum Kind {
    Client { id: String, secret: Secret },
    Token(Secret),
}

impl Credentials {
    /// An OAuth client of the grant type *Client Credentials* (RFC 6749 §4.4): its id and secret,
    /// as shown in the platform's admin pages.
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Credentials {
        Credentials(Kind::Client {
            id: id.into(),
            secret: Secret::new(secret),
        })
    }

    /// An access token that was issued elsewhere. It cannot be renewed: when the platform refuses
    /// it, calls fail with [`ErrorKind::Auth`].
    pub fn access_token(token: impl Into<String>) -> Credentials {
        Credentials(Kind::Token(Secret::new(token)))
    }

    /// Names what is missing or cannot be sent.
    pub(crate) fn check(&self) -> Result<()> {
        let problem = |name, text: &str, what| {
            if text.is_empty() {
                Some(Error::config(name, format!("is empty: give {what}")))
            } else if !is_header_text(text) {
                Some(Error::config(
                    name,
                    "holds a control character, a space or a character beyond ASCII (a line break \
                     at its end, perhaps)",
                ))
            } else {
                None
            }
        };
        let problem = match &self.0 {
            // RFC 7617: the secret would begin there.
            Kind::Client { id, .. } if id.contains(':') => Some(Error::config(
                "client id",
                "holds a colon: give the id alone, without the secret",
            )),
            Kind::Client { id, secret } => problem("client id", id, "the OAuth client's id")
                .or_else(|| {
                    problem(
                        "client secret",
                        secret.expose(),
                        "the OAuth client's secret",
                    )
                }),
            Kind::Token(token) => problem("access token", token.expose(), "an access token"),
        };
        problem.map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Client { id, secret } => f
                .debug_struct("Credentials")
                .field("id", id)
                .field("secret", secret)
                .finish(),
            Kind::Token(token) => f
                .debug_struct("Credentials")
                .field("access_token", token)
                .finish(),
        }
    }
}

/// A token as requests carry it.
pub(crate) struct Token {
    pub(crate) header: Arc<Secret>,
    generation: u64,
    /// `None` for a given token, whose end is not known.
    pub(crate) expires: Option<Instant>,
    refresh_at: Option<Instant>,
    /// The platform took it at least once.
    proven: AtomicBool,
}

impl Token {
    /// The platform took it.
    pub(crate) fn accepted(&self) {
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
    }
}

/// How long a failed login is not tried again, so that many threads do not try it one by one.
const HOLD_OFF: Duration = Duration::from_secs(5);
/// The longest that a refresh takes while the old token is still good.
const MAX_EARLY: Duration = Duration::from_secs(2);
/// The platform's longest token life.
const MAX_LIFE: u64 = 172_800;
/// Used when the answer does not say it in a number: the platform's shortest.
const DEFAULT_LIFE: u64 = 300;

/// Hands out the current token and replaces it in time.
pub(crate) struct TokenSource {
    credentials: Credentials,
    login_url: String,
    wire: Wire,
    state: Mutex<State>,
    refreshed: Condvar,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    generation: u64,
    refreshing: bool,
    /// The last login failed: its error, and until when it is not tried again.
    failed: Option<(Error, Instant)>,
    /// An early refresh failed: until when no other is tried.
    early_after: Option<Instant>,
    /// How many new tokens in a row were refused at once.
    refused_in_a_row: u32,
}

/// Ends a refresh, also when the transport panics: no caller may wait for ever.
struct Refreshing<'a> {
    source: &'a TokenSource,
    /// The old token was still good.
    early: bool,
    /// There was less time than a login may take: its failure says nothing about the next one.
    hurried: bool,
    outcome: Option<Result<Arc<Token>>>,
}

impl Drop for Refreshing<'_> {
    fn drop(&mut self) {
        let until = self.source.wire.clock.now() + HOLD_OFF;
        let mut state = lock(&self.source.state);
        state.refreshing = false;
        match self.outcome.take() {
            Some(Ok(token)) => {
                let was_good = |old: &Arc<Token>| old.proven.load(Ordering::Relaxed);
                if state.token.as_ref().is_some_and(was_good) {
                    state.refused_in_a_row = 0;
                }
                state.token = Some(token);
                state.failed = None;
            }
            // One caller's cancellation is no error of another.
            Some(Err(error)) if error.kind() == ErrorKind::Cancelled => {}
            Some(Err(_)) if self.early => state.early_after = Some(until),
            Some(Err(error)) if self.hurried && error.kind() == ErrorKind::Timeout => {}
            Some(Err(error)) => state.failed = Some((error, until)),
            None => {}
        }
        self.source.refreshed.notify_all();
    }
}

impl TokenSource {
    pub(crate) fn new(credentials: Credentials, login_url: String, wire: Wire) -> TokenSource {
        TokenSource {
            credentials,
            login_url,
            wire,
            state: Mutex::default(),
            refreshed: Condvar::new(),
        }
    }

    /// Whether a login of this client ever succeeded.
    pub(crate) fn has_logged_in(&self) -> bool {
        lock(&self.state).generation > 0
    }

    /// The current token, and the time then. Who finds it near its end replaces it; everybody else
    /// goes on with it meanwhile. Without a usable one, all wait for the one login, and after one
    /// that failed for the next, within the deadline of the call.
    pub(crate) fn token(
        &self,
        call: &mut Call<'_>,
        mut now: Instant,
    ) -> Result<(Arc<Token>, Instant), Stop> {
        // A clock that is moved by hand does not wake a condition variable.
        const LOOK_UP: Duration = Duration::from_secs(1);

        let clock = self.wire.clock.as_ref();
        let mut state = lock(&self.state);
        loop {
            let current = state
                .token
                .as_ref()
                .filter(|token| token.expires.is_none_or(|end| now < end));
            if let Some(token) = current {
                let token = token.clone();
                let due = token.refresh_at.is_some_and(|at| now >= at);
                let held_off = state.early_after.is_some_and(|at| now < at);
                let tried = call.refreshed_early;
                if !due || tried || state.refreshing || held_off || self.wire.is_paused(now) {
                    return Ok((token, now));
                }
                state.refreshing = true;
                call.refreshed_early = true;
                drop(state);
                // The old one is still good when the new one cannot be had: one attempt, over well
                // before it ends.
                let left = token
                    .expires
                    .map(|end| end.saturating_duration_since(now) / 2);
                let limit = left.unwrap_or(MAX_EARLY).min(MAX_EARLY);
                let begun = now;
                let (refreshed, _) = self.refresh(call, limit, true);
                now = clock.now();
                // It costs time, and not the update's success.
                call.budget.extend(now.saturating_duration_since(begun));
                match refreshed {
                    Ok(token) => return Ok((token, now)),
                    Err(error) if error.kind() == ErrorKind::Cancelled => {
                        return Err(Stop::Cancelled(error));
                    }
                    // The old one will do, unless the platform refused it meanwhile.
                    Err(_) => state = lock(&self.state),
                }
                continue;
            }
            let rest = call.budget.rest(now);
            if let Some((error, until)) = &state.failed
                && now < *until
            {
                let wait = until.saturating_duration_since(now);
                // Refused credentials stay refused, and a batch waits as a whole.
                let final_now = error.kind() == ErrorKind::Auth || call.budget.in_batch();
                if final_now || wait >= rest {
                    return Err(Stop::Login(error.clone()));
                }
                drop(state);
                sleep_unless(clock, wait, call.cancel).map_err(Stop::Cancelled)?;
                state = lock(&self.state);
            } else if rest.is_zero() && state.refreshing {
                return Err(Stop::OutOfTime(login_error(Error::new(
                    ErrorKind::Timeout,
                    "another thread's login was still under way when the deadline passed: try \
                     again later",
                ))));
            } else if state.refreshing {
                // What the login endpoint asks for counts for those who wait no more than for the
                // one who logs in.
                let limited = self
                    .wire
                    .limiter
                    .limited_until()
                    .is_some_and(|end| now < end);
                state = wait(&self.refreshed, state, Some(rest.min(LOOK_UP)), call.cancel);
                Cancel::check(call.cancel).map_err(Stop::Cancelled)?;
                if limited && call.budget.patience == Patience::Batch {
                    let waited = clock.now().saturating_duration_since(now);
                    call.budget.extend(waited);
                }
            } else if rest.is_zero() {
                let error = self.wire.too_late();
                // Where none failed, no caller is to wait for the next one.
                let held_off = state.failed.is_some();
                return Err(Stop::OutOfTime(if held_off {
                    login_error(error)
                } else {
                    error
                }));
            } else {
                state.refreshing = true;
                state.failed = None;
                drop(state);
                let (refreshed, free) = self.refresh(call, rest, false);
                call.budget.extend(free);
                let token = refreshed.map_err(|error| {
                    if error.kind() == ErrorKind::Cancelled {
                        Stop::Cancelled(error)
                    } else {
                        Stop::Login(error)
                    }
                })?;
                return Ok((token, clock.now()));
            }
            now = clock.now();
        }
    }

    /// The platform refused this token: it is not handed out again; a newer one stays. `false` when
    /// there is no use in another login: the token was given, or the tokens of two logins were
    /// refused at once.
    pub(crate) fn refused(&self, token: &Token) -> bool {
        if let Kind::Token(_) = self.credentials.0 {
            return false;
        }
        let now = self.wire.clock.now();
        let mut state = lock(&self.state);
        let is_current = state
            .token
            .as_ref()
            .is_some_and(|current| current.generation == token.generation);
        if is_current {
            state.token = None;
            // A token that was taken may have been revoked; but some request was refused with it,
            // and may be with the next one.
            if token.proven.load(Ordering::Relaxed) {
                state.refused_in_a_row = 1;
            } else {
                state.refused_in_a_row += 1;
            }
            if state.refused_in_a_row > 1 {
                state.failed = Some((
                    login_error(Error::new(
                        ErrorKind::Auth,
                        "the platform refuses the tokens that it issues: check that the login URL \
                         and the API belong to one region, and that the OAuth client is active",
                    ))
                    .with_http_status(401),
                    now + HOLD_OFF,
                ));
                return false;
            }
        }
        true
    }

    /// Logs in, in the name of everybody, within `limit`; `early` while there is no need for it
    /// yet. Says as well how much of the time does not count against the deadline of the update.
    fn refresh(
        &self,
        call: &Call<'_>,
        limit: Duration,
        early: bool,
    ) -> (Result<Arc<Token>>, Duration) {
        let mut refreshing = Refreshing {
            source: self,
            early,
            hurried: limit < self.wire.longest_request,
            outcome: None,
        };
        let (outcome, free) = self.login(call, limit, early);
        refreshing.outcome = Some(outcome.clone());
        (outcome, free)
    }

    fn login(&self, of: &Call<'_>, limit: Duration, early: bool) -> (Result<Arc<Token>>, Duration) {
        let (id, secret) = match &self.credentials.0 {
            Kind::Token(token) => return (Ok(self.issued(token.expose(), None)), Duration::ZERO),
            Kind::Client { id, secret } => (id, secret),
        };
        let mut request = Request::new(Method::Post, format!("{}/oauth/token", self.login_url));
        let basic = base64::encode(format!("{id}:{}", secret.expose()).as_bytes());
        request.authorization = Some(Arc::new(Secret::new(format!("Basic {basic}"))));
        request.content_type = "application/x-www-form-urlencoded";
        request.body = Some(b"grant_type=client_credentials".to_vec());

        let mut policy = self.wire.policy;
        policy.deadline = policy.deadline.min(limit);
        let (max_attempts, patience) = if early {
            (1, Patience::Deadline)
        } else {
            (policy.max_attempts, of.budget.patience)
        };
        let mut call = self.wire.begin(policy, patience, "login", of.cancel);
        // Its deadline is the rest of the update's, which runs: a pause of the login endpoint counts.
        call.budget.start(self.wire.clock.now());
        let granted = self.wire.until_settled(&mut call, max_attempts, |call| {
            let sent = |_: &mut Request, _: &mut Call<'_>, now| Ok(now);
            let reply = self.wire.send(call, &mut request, Purpose::Login, sent)?;
            let result = reply
                .result
                .and_then(|response| granted(&response, self.wire.retry_after(&response)));
            let class = match (reply.class, &result) {
                // Whatever answers is not the login endpoint, perhaps only for a moment. A batch
                // decides for all of its lines.
                (Class::Settled { .. }, Err(error))
                    if error.kind() == ErrorKind::Server && patience == Patience::Deadline =>
                {
                    Class::Transient { may: false }
                }
                (class, _) => class,
            };
            Ok(Reply { result, class })
        });
        let free = call.budget.extended();
        let (token, life) = match granted {
            Ok(granted) => granted,
            Err(error) if error.kind() == ErrorKind::Cancelled => return (Err(error), free),
            Err(error) => return (Err(login_error(error)), free),
        };
        self.wire.counters.token_refreshes.increment();
        // Counted from before the request: the safe side.
        let from = call.sent.unwrap_or_else(|| self.wire.clock.now());
        (Ok(self.issued(&token, Some((from, life)))), free)
    }

    fn issued(&self, token: &str, life: Option<(Instant, Duration)>) -> Arc<Token> {
        let mut state = lock(&self.state);
        state.generation += 1;
        Arc::new(Token {
            header: Arc::new(Secret::new(format!("Bearer {token}"))),
            generation: state.generation,
            expires: life.map(|(from, life)| from + life),
            refresh_at: life.map(|(from, life)| {
                let margin = (life / 10).min(Duration::from_secs(60));
                from + (life - margin)
            }),
            proven: AtomicBool::new(false),
        })
    }
}

/// The token in an answer of the login endpoint, and its life.
pub(crate) fn granted(
    response: &Response,
    retry_after: Option<Duration>,
) -> Result<(String, Duration)> {
    if !response.is_success() {
        return Err(problem(response, retry_after));
    }
    // What answers like this is not the login endpoint, or not itself today: nothing that the
    // caller of an update could correct.
    let strange = |why: String| {
        Error::new(
            ErrorKind::Server,
            format!(
                "the answer of the login endpoint cannot be used: {why}: check the region or \
                 login URL, or try again later"
            ),
        )
        .with_http_status(response.status)
    };
    let grant = response
        .object()
        .map_err(|unreadable| strange(unreadable.into_error("not a token").to_string()))?;
    let token = grant
        .get("access_token")
        .and_then(Value::as_str)
        .filter(|token| is_header_text(token))
        .ok_or_else(|| strange("it has no access_token of visible ASCII characters".into()))?;
    let life = match grant.get("expires_in").and_then(Value::as_f64) {
        None => DEFAULT_LIFE,
        Some(seconds) if seconds >= 1.0 => (seconds as u64).min(MAX_LIFE),
        // A life of nothing would mean a login for every request.
        Some(_) => 1,
    };
    Ok((token.to_owned(), Duration::from_secs(life)))
}

/// The token endpoint's error answers have a shape of their own (RFC 6749 §5.2, and the
/// platform's `description` beside it).
fn problem(response: &Response, retry_after: Option<Duration>) -> Error {
    let body = response.object().unwrap_or_default();
    let text = |name| body.get(name).and_then(Value::as_str);
    let code = text("error").unwrap_or_default();
    let description = text("error_description")
        .or_else(|| text("description"))
        .unwrap_or_default();
    let status = response.status;
    let throttled = status == 429 || status == 400 && is_throttled_login(response);
    let (kind, advice) = match status {
        _ if throttled => (
            ErrorKind::RateLimited,
            "logins are limited: share one client between threads, and try again later",
        ),
        _ if code == "invalid_client" => (
            ErrorKind::Auth,
            "check the client id, the client secret and the region",
        ),
        408 => (ErrorKind::Timeout, "try again later"),
        // Only the login endpoint itself refuses credentials.
        ..=399 | 404 | 405 | 410 | 500.. => (
            ErrorKind::Server,
            "check the region or login URL, or try again later",
        ),
        _ => (
            ErrorKind::Auth,
            "check that the OAuth client is active and its grant type is Client Credentials",
        ),
    };
    Error::new(
        kind,
        format!(
            "the login endpoint answered {status}{}{}: {advice}",
            prefixed(" ", code),
            prefixed(": ", description),
        ),
    )
    .with_http_status(status)
    .with_code(text("error").map(|code| one_line(&clip(code, 100))))
    .with_correlation_id(response.correlation_id().map(str::to_owned))
    .with_retry_after(retry_after.filter(|_| throttled))
}

/// Says that it was logging in that failed.
fn login_error(error: Error) -> Error {
    error.within("login failed").with_login()
}

/// Foreign text behind a separator, or nothing where there is none.
fn prefixed(separator: &str, text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!("{separator}{}", clip(text, 300)),
    }
}

/// Text that fits into a header field after its scheme: visible ASCII.
fn is_header_text(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}
