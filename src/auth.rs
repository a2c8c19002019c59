//! Access tokens: fetched by client credentials or given, kept until shortly before they end,
//! replaced when the platform refuses them, by one thread at a time.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::call::{Caller, Purpose, says_throttled};
use crate::clock::{Cancel, lock, wait};
use crate::error::{Error, ErrorKind, Result, one_line, shortened};
use crate::http::{Method, Request, Response};
use crate::problem;
use crate::secret::Secret;

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
            Kind::Client { id, .. } if id.contains(':') => {
                Some(Error::config("client id", "holds a colon"))
            }
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
}

/// How long a failed login is not tried again, so that many threads do not try it one by one.
const HOLD_OFF: Duration = Duration::from_secs(5);
/// The platform's longest token life.
const LONGEST_LIFE: u64 = 172_800;
/// Used when the answer does not say it in a number: the platform's shortest.
const DEFAULT_LIFE: u64 = 300;

/// Hands out the current token and replaces it in time.
pub(crate) struct TokenSource {
    credentials: Credentials,
    login_url: String,
    caller: Caller,
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
}

/// Ends a refresh, also when the transport panics: nobody may wait for ever.
struct Refreshing<'a> {
    source: &'a TokenSource,
    /// The old token was still good.
    early: bool,
    outcome: Option<Result<Arc<Token>>>,
}

impl Drop for Refreshing<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.source.state);
        state.refreshing = false;
        match self.outcome.take() {
            Some(Ok(token)) => {
                state.token = Some(token);
                state.failed = None;
            }
            Some(Err(error)) if error.kind() == ErrorKind::Cancelled => {
                // One caller's cancellation is nobody else's error.
            }
            Some(Err(error)) => {
                let until = self.source.caller.clock.now() + HOLD_OFF;
                if self.early {
                    state.early_after = Some(until);
                } else {
                    state.failed = Some((error, until));
                }
            }
            None => {}
        }
        self.source.refreshed.notify_all();
    }
}

impl TokenSource {
    pub(crate) fn new(credentials: Credentials, login_url: String, caller: Caller) -> TokenSource {
        TokenSource {
            credentials,
            login_url,
            caller,
            state: Mutex::default(),
            refreshed: Condvar::new(),
        }
    }

    /// Whether a refused token can be replaced.
    pub(crate) fn can_renew(&self) -> bool {
        matches!(self.credentials.0, Kind::Client { .. })
    }

    /// The current token. Who finds it near its end replaces it; everybody else goes on with it
    /// meanwhile. Without a usable one, all wait for the one login.
    pub(crate) fn token(&self, cancel: Option<&Cancel>) -> Result<Arc<Token>> {
        let mut state = lock(&self.state);
        loop {
            let now = self.caller.clock.now();
            let current = state
                .token
                .clone()
                .filter(|token| token.expires.is_none_or(|end| now < end));
            let held_off = state.failed.as_ref().filter(|(_, until)| now < *until);
            match (current, held_off) {
                (Some(token), held_off) => {
                    let due = token.refresh_at.is_some_and(|at| now >= at);
                    let waits = held_off.is_some() || state.early_after.is_some_and(|at| now < at);
                    if !due || state.refreshing || waits || self.caller.is_paused() {
                        return Ok(token);
                    }
                    state.refreshing = true;
                    drop(state);
                    // The old one is still good when the new one cannot be had: one attempt, over
                    // well before it ends.
                    let left = token
                        .expires
                        .map(|end| end.saturating_duration_since(now) / 2);
                    return Ok(self.refresh(left, cancel).unwrap_or(token));
                }
                (None, Some((error, _))) => return Err(error.clone()),
                (None, None) if state.refreshing => {
                    state = wait(&self.refreshed, state, cancel);
                    Cancel::check(cancel)?;
                }
                (None, None) => {
                    state.refreshing = true;
                    state.failed = None;
                    drop(state);
                    return self.refresh(None, cancel);
                }
            }
        }
    }

    /// The platform refused this token: it is not handed out again. A newer one stays.
    pub(crate) fn invalidate(&self, token: &Token) {
        let mut state = lock(&self.state);
        if state
            .token
            .as_ref()
            .is_some_and(|current| current.generation == token.generation)
        {
            state.token = None;
        }
    }

    /// Logs in, in the name of everybody; within `limit` where there is no need for it yet.
    fn refresh(&self, limit: Option<Duration>, cancel: Option<&Cancel>) -> Result<Arc<Token>> {
        let mut refreshing = Refreshing {
            source: self,
            early: limit.is_some(),
            outcome: None,
        };
        let outcome = self.login(limit, cancel);
        refreshing.outcome = Some(outcome.clone());
        outcome
    }

    fn login(&self, limit: Option<Duration>, cancel: Option<&Cancel>) -> Result<Arc<Token>> {
        let (id, secret) = match &self.credentials.0 {
            Kind::Token(token) => return Ok(self.issued(token.expose(), None)),
            Kind::Client { id, secret } => (id, secret),
        };
        let mut request = Request::new(Method::Post, format!("{}/oauth/token", self.login_url));
        let basic = base64(format!("{id}:{}", secret.expose()).as_bytes());
        request.authorization = Some(Arc::new(Secret::new(format!("Basic {basic}"))));
        request.content_type = "application/x-www-form-urlencoded";
        request.body = Some(b"grant_type=client_credentials".to_vec());

        let begun = self.caller.clock.now();
        let mut policy = self.caller.policy;
        if let Some(limit) = limit {
            (policy.max_attempts, policy.deadline) = (1, limit);
        }
        let mut call = self.caller.begin_with(policy, cancel);
        call.begin_request(Purpose::Token);
        let response = self.caller.send(&mut call, &mut request, Purpose::Token)?;
        if !response.is_success() {
            return Err(self.refused(&response));
        }
        let unusable = |why: &str| {
            Error::new(
                ErrorKind::Protocol,
                format!("the token endpoint's answer cannot be used: {why}"),
            )
            .with_http_status(response.status)
        };
        let grant = response.object().map_err(|why| unusable(&why))?;
        let token = grant
            .get("access_token")
            .and_then(Value::as_str)
            .filter(|token| is_header_text(token))
            .ok_or_else(|| unusable("its access_token is not one"))?;
        self.caller.counters.token_refreshes.increment();
        let life = match grant.get("expires_in").and_then(Value::as_f64) {
            None => DEFAULT_LIFE,
            Some(seconds) if seconds >= 1.0 => (seconds as u64).min(LONGEST_LIFE),
            // A life of nothing would mean a login for every request.
            Some(_) => 1,
        };
        Ok(self.issued(
            token,
            // Counted from before the request: the safe side.
            Some((call.sent.unwrap_or(begun), Duration::from_secs(life))),
        ))
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
        })
    }

    /// The token endpoint's error answers have a shape of their own (RFC 6749 §5.2, and the
    /// platform's `description` beside it).
    fn refused(&self, response: &Response) -> Error {
        let body = response.object().unwrap_or_default();
        let text = |name| body.get(name).and_then(Value::as_str);
        let code = text("error").unwrap_or_default();
        let told = text("error_description")
            .or_else(|| text("description"))
            .unwrap_or_default();
        let throttled =
            response.status == 429 || response.status == 400 && says_throttled(response);
        let (kind, advice) = match response.status {
            _ if throttled => (
                ErrorKind::RateLimited,
                "the token endpoint limits logins: share one client between threads and wait",
            ),
            _ if code == "invalid_client" => (
                ErrorKind::Auth,
                "check the client id, the client secret and the region",
            ),
            status @ (408 | 300..=399 | 404 | 410 | 500..) => (
                problem::kind_of(status),
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
                "login failed: the token endpoint answered {}{}{}: {advice}",
                response.status,
                prefixed(" ", code),
                prefixed(": ", told),
            ),
        )
        .with_http_status(response.status)
        .with_code(text("error").map(|code| one_line(&shortened(code, 100))))
        .with_correlation_id(response.correlation_id().map(str::to_owned))
        .with_retry_after(self.caller.retry_after(response).filter(|_| throttled))
    }
}

/// Foreign text behind a separator, or nothing where there is none.
fn prefixed(separator: &str, text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!("{separator}{}", shortened(text, 300)),
    }
}

/// Text that fits into a header field after its scheme: visible ASCII.
fn is_header_text(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            if i <= chunk.len() {
                let index = group >> (18 - 6 * i) & 63;
                out.push(char::from(ALPHABET[index as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}
