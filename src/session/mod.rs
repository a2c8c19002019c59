//! Requests to the Platform API: with the current token, and once more with a new one when the
//! platform refuses it.

pub(crate) mod auth;
pub(crate) mod exchange;
pub(crate) mod limiter;
pub(crate) mod problem;
pub mod retry;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::{Method, Request, Response};
use crate::report::receipt::Identity;
use crate::session::auth::TokenSource;
use crate::session::exchange::{Call, Class, Purpose, Reply, Stop, Wire};

/// A write, before it is put on the wire.
pub(crate) struct Write {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) if_match: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// The Platform API at one address, with one identity.
pub(crate) struct Session {
    pub(crate) base_url: String,
    pub(crate) tokens: TokenSource,
    pub(crate) wire: Wire,
}

impl Session {
    pub(crate) fn read_request(&self, path: &str) -> Request {
        Request::new(Method::Get, [self.base_url.as_str(), path].concat())
    }

    pub(crate) fn write_request(&self, write: Write) -> Request {
        let url = [self.base_url.as_str(), &write.path].concat();
        let mut request = Request::new(write.method, url);
        request.if_match = write.if_match;
        request.body = Some(write.body);
        request
    }

    /// Sends a request once; a token that is refused is replaced, and does not count.
    ///
    /// A new token is asked for while some request was accepted with the last one: several threads
    /// may find tokens revoked one after the other.
    pub(crate) fn exchange(
        &self,
        call: &mut Call<'_>,
        request: &mut Request,
        purpose: Purpose,
    ) -> Result<Reply, Stop> {
        let mut renewals = 0;
        loop {
            let mut used = None;
            let reply = self
                .wire
                .send(call, request, purpose, |request, call, now| {
                    let (token, now) = self.tokens.token(call, now)?;
                    request.authorization = Some(token.header.clone());
                    used = Some(token);
                    Ok(now)
                })?;
            let Some(token) = used else {
                return Ok(reply);
            };
            match &reply.result {
                Ok(response) if response.status == 401 => {
                    let may_renew = self.tokens.refused(&token);
                    if renewals == call.budget.max_attempts() || !may_renew {
                        return Ok(reply);
                    }
                    renewals += 1;
                }
                Ok(response) => {
                    if response.status < 500 {
                        token.accepted();
                    }
                    return Ok(reply);
                }
                Err(_) => return Ok(reply),
            }
        }
    }

    /// Reads until there is an answer that sending again would not change, of any status.
    pub(crate) fn get(
        &self,
        call: &mut Call<'_>,
        mut request: Request,
        max_attempts: u32,
    ) -> Result<Response> {
        self.wire.until_settled(call, max_attempts, |call| {
            self.exchange(call, &mut request, Purpose::Read)
        })
    }

    /// Reads until there is an answer. `parse` takes it, and says whether another try may bring a
    /// better one.
    pub(crate) fn fetch<T>(
        &self,
        call: &mut Call<'_>,
        path: &str,
        mut parse: impl FnMut(&Response) -> Result<T, (Error, bool)>,
    ) -> Result<T> {
        let mut request = self.read_request(path);
        let max_attempts = call.budget.max_attempts();
        self.wire.until_settled(call, max_attempts, |call| {
            let reply = self.exchange(call, &mut request, Purpose::Read)?;
            let response = match reply.result {
                Ok(response) => response,
                Err(error) => {
                    return Ok(Reply {
                        result: Err(error),
                        class: reply.class,
                    });
                }
            };
            let (result, again) = match parse(&response) {
                Ok(parsed) => (Ok(parsed), false),
                Err((error, again)) => (Err(error), again),
            };
            let class = match reply.class {
                Class::Settled { .. } if again => Class::Transient { may: false },
                class => class,
            };
            Ok(Reply { result, class })
        })
    }

    /// The error for an answer that is no success.
    pub(crate) fn problem(&self, response: &Response, what: &str) -> Error {
        problem::error_of(response, what, self.wire.retry_after(response))
    }

    /// Whose token it is: `GET /api/v2/tokens/me`.
    pub(crate) fn identity(&self, call: &mut Call<'_>) -> Result<Identity> {
        let what = "the token";
        let info = self.fetch(call, "/api/v2/tokens/me", |response| {
            if !response.is_success() {
                return Err((self.problem(response, what), false));
            }
            response.object().map_err(|unreadable| {
                let again = unreadable.is_transient();
                let error = unreadable.into_error("the answer about the token cannot be used");
                (error.with_http_status(response.status), again)
            })
        })?;
        let clock = &self.wire.clock;
        let now = clock.now();
        let (token, now) = self.tokens.token(call, now).map_err(Stop::into_error)?;
        let expires_at = token
            .expires
            .map(|end| clock.wall() + end.saturating_duration_since(now));
        let text = |of: &str, name: &str| -> Option<String> {
            Some(info.get(of)?.get(name).and_then(Value::as_str)?.to_owned())
        };
        Ok(Identity {
            organization_id: text("organization", "id"),
            organization_name: text("organization", "name"),
            client_id: text("OAuthClient", "id"),
            client_name: text("OAuthClient", "name"),
            expires_at,
        })
    }
}
