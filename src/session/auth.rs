//! Access tokens: fetched by client credentials or given, kept until shortly before they end, and
//! replaced when the platform refuses them, by one thread at a time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, clip, one_line};
use crate::http::{Method, Request, Response};
use crate::session::exchange::{Call, Purpose, Stop, Token, Tokens, Wire, is_throttled_login};
use crate::session::retry::Caller;
use crate::util::base64;
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

/// How a caller gets a token.
enum Plan {
    Use(Arc<Token>),
    /// Replace this one, which is still valid.
    RefreshEarly(Arc<Token>),
    /// Log in, within this time.
    LogIn(Duration),
    /// Wait for another caller's login, for this long at most.
    AwaitLogin(Duration),
    /// Wait before the next login: the last one failed.
    HoldOff(Duration),
}

/// Ends a refresh, also when the clock panics: no caller may wait for ever.
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

    /// True if a login of this client ever succeeded.
    pub(crate) fn has_logged_in(&self) -> bool {
        lock(&self.state).generation > 0
    }

    /// Decides how this caller gets a token. One caller at a time logs in.
    fn plan(&self, call: &mut Call<'_>, now: Instant) -> Result<Plan, Stop> {
        let mut state = lock(&self.state);
        let is_valid = |token: &&Arc<Token>| token.expires.is_none_or(|end| now < end);
        if let Some(token) = state.token.as_ref().filter(is_valid).cloned() {
            let is_due = token.refresh_at.is_some_and(|at| now >= at);
            let is_held_off = state.early_after.is_some_and(|at| now < at);
            if !is_due
                || call.refreshed_early
                || state.refreshing
                || is_held_off
                || self.wire.is_paused(now)
            {
                return Ok(Plan::Use(token));
            }
            call.refreshed_early = true;
            state.refreshing = true;
            return Ok(Plan::RefreshEarly(token));
        }
        let rest = call.budget.rest(now);
        match &state.failed {
            Some((error, until)) if now < *until => {
                let wait = *until - now;
                // Refused credentials stay refused, and a batch waits as a whole.
                let is_final = error.kind() == ErrorKind::Auth || call.budget.in_batch();
                if is_final || wait >= rest {
                    return Err(Stop::Refused(error.clone()));
                }
                Ok(Plan::HoldOff(wait))
            }
            _ if rest.is_zero() && state.refreshing => {
                Err(Stop::OutOfTime(login_error(Error::new(
                    ErrorKind::Timeout,
                    "another thread's login was still under way when the deadline passed: try \
                     again later",
                ))))
            }
            _ if state.refreshing => Ok(Plan::AwaitLogin(rest)),
            Some(_) if rest.is_zero() => Err(Stop::OutOfTime(login_error(self.wire.too_late()))),
            None if rest.is_zero() => Err(Stop::OutOfTime(self.wire.too_late())),
            _ => {
                state.refreshing = true;
                state.failed = None;
                Ok(Plan::LogIn(rest))
            }
        }
    }

    /// Replaces a token that is still valid: one attempt, over well before the token expires. It
    /// costs an update time, and not its success.
    fn refresh_early(
        &self,
        call: &mut Call<'_>,
        valid: &Token,
        now: Instant,
    ) -> Result<Option<Arc<Token>>, Stop> {
        let left = valid
            .expires
            .map(|end| end.saturating_duration_since(now) / 2);
        let limit = left.unwrap_or(MAX_EARLY).min(MAX_EARLY);
        let refreshed = self.refresh(call, limit, true);
        let took = self.wire.clock.now().saturating_duration_since(now);
        call.budget.extend(took);
        match refreshed {
            Ok(token) => Ok(Some(token)),
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(Stop::Cancelled(error)),
            // The old one is still valid, unless the platform refused it meanwhile.
            Err(_) => Ok(None),
        }
    }

    /// Waits until another caller's login ends, for `rest` at most.
    fn await_login(&self, call: &mut Call<'_>, rest: Duration, now: Instant) -> Result<(), Stop> {
        // A clock that is moved by hand does not wake a condition variable.
        const LOOK_UP: Duration = Duration::from_secs(1);

        let limited_until = self.wire.limiter.limited_until();
        let is_limited = limited_until.is_some_and(|end| now < end);
        let state = lock(&self.state);
        if state.refreshing {
            let limit = Some(rest.min(LOOK_UP));
            drop(wait(&self.refreshed, state, limit, call.cancel));
        }
        Cancel::check(call.cancel).map_err(Stop::Cancelled)?;
        // A pause that the login endpoint asked for does not use up a batch line's deadline.
        if is_limited && call.budget.caller == Caller::Batch {
            let waited = self.wire.clock.now().saturating_duration_since(now);
            call.budget.extend(waited);
        }
        Ok(())
    }

    /// Logs in, for all callers, within `rest`.
    fn log_in(&self, call: &mut Call<'_>, rest: Duration) -> Result<Arc<Token>, Stop> {
        self.refresh(call, rest, false)
            .map_err(|error| match error.kind() {
                ErrorKind::Cancelled => Stop::Cancelled(error),
                _ => Stop::Refused(error),
            })
    }

    /// Logs in within `limit` and tells the waiting callers; `early`: the old token is still valid.
    fn refresh(&self, call: &mut Call<'_>, limit: Duration, early: bool) -> Result<Arc<Token>> {
        let mut refreshing = Refreshing {
            source: self,
            early,
            hurried: limit < self.wire.longest_request,
            outcome: None,
        };
        let outcome = self.login(call, limit, early);
        refreshing.outcome = Some(outcome.clone());
        outcome
    }

    /// Asks the login endpoint for a token, in a call of its own.
    fn login(&self, of: &mut Call<'_>, limit: Duration, early: bool) -> Result<Arc<Token>> {
        let (id, secret) = match &self.credentials.0 {
            Kind::Token(token) => return Ok(self.issued(token.expose(), None)),
            Kind::Client { id, secret } => (id, secret),
        };
        let mut request = Request::new(Method::Post, format!("{}/oauth/token", self.login_url));
        let basic = base64::encode(format!("{id}:{}", secret.expose()).as_bytes());
        request.authorization = Some(Arc::new(Secret::new(format!("Basic {basic}"))));
        request.content_type = "application/x-www-form-urlencoded";
        request.body = Some(b"grant_type=client_credentials".to_vec());

        let mut policy = self.wire.policy;
        policy.deadline = policy.deadline.min(limit);
        let (max_attempts, caller) = if early {
            (1, Caller::Single)
        } else {
            (policy.max_attempts, of.budget.caller)
        };
        let mut call = self.wire.begin(policy, caller, "login", of.cancel);
        // Its deadline is the rest of the update's, which runs: a pause of the login endpoint counts.
        call.budget.start(self.wire.clock.now());
        let login = Purpose::Login;
        let granted = self
            .wire
            .request(&mut call, request, login, max_attempts, |reply| {
                let result = reply
                    .result
                    .and_then(|response| granted(&response, self.wire.retry_after(&response)));
                // What answers may be another server, perhaps only for a moment. A batch decides for
                // all of its lines.
                let is_strange = |error: &Error| error.kind() == ErrorKind::Server;
                let again = caller == Caller::Single && result.as_ref().is_err_and(is_strange);
                (result, reply.failure.or_again(again))
            });
        if !early {
            of.budget.extend(call.budget.extended());
        }
        let (token, life) = granted.map_err(|error| match error.kind() {
            ErrorKind::Cancelled => error,
            _ => login_error(error),
        })?;
        self.wire.counters.token_refreshes.increment();
        // Counted from before the request: the safe side.
        let from = call.sent.unwrap_or_else(|| self.wire.clock.now());
        Ok(self.issued(&token, Some((from, life))))
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
            proven: false.into(),
        })
    }
}

impl Tokens for TokenSource {
    /// Returns a valid token and the time. One caller refreshes a token that is about to expire; the
    /// others keep using the old one. Without a valid token all wait for the one login, and after
    /// one that failed for the next, within the deadline of the call.
    fn token(&self, call: &mut Call<'_>, mut now: Instant) -> Result<(Arc<Token>, Instant), Stop> {
        loop {
            let token = match self.plan(call, now)? {
                Plan::Use(token) => return Ok((token, now)),
                Plan::RefreshEarly(valid) => self.refresh_early(call, &valid, now)?,
                Plan::LogIn(rest) => Some(self.log_in(call, rest)?),
                Plan::AwaitLogin(rest) => {
                    self.await_login(call, rest, now)?;
                    None
                }
                Plan::HoldOff(wait) => {
                    self.wire.sleep(call, wait, false)?;
                    None
                }
            };
            now = self.wire.clock.now();
            if let Some(token) = token {
                return Ok((token, now));
            }
        }
    }

    /// Discards a token that the platform refused; a newer one stays. False if another login is of
    /// no use: the token was given, or the tokens of two logins were refused at once.
    fn refused(&self, token: &Token) -> bool {
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
            // A token that was accepted before may have been revoked. The next one may be refused
            // all the same.
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
