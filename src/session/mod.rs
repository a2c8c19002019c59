//! Requests to the Platform API: permitted, authorized, sent, and sent again.

pub(crate) mod auth;
pub(crate) mod exchange;
pub(crate) mod limiter;
pub(crate) mod problem;
pub mod retry;

use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::{Method, Request, Response};
use crate::report::receipt::Identity;
use crate::session::auth::TokenSource;
use crate::session::exchange::{Call, Purpose, Stop, Tokens, Wire};

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
    pub(crate) tokens: Arc<TokenSource>,
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

    /// Reads until there is an answer, of any status, that would stay the same.
    pub(crate) fn get(
        &self,
        call: &mut Call<'_>,
        request: Request,
        max_attempts: u32,
    ) -> Result<Response> {
        let read = Purpose::Read;
        self.wire
            .request(call, request, read, max_attempts, |reply| {
                (reply.result, reply.failure)
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
        let request = self.read_request(path);
        let max_attempts = call.budget.max_attempts();
        let read = Purpose::Read;
        self.wire
            .request(call, request, read, max_attempts, |reply| {
                let failure = reply.failure;
                match reply.result.map(|response| parse(&response)) {
                    Ok(Ok(parsed)) => (Ok(parsed), failure),
                    Ok(Err((error, again))) => (Err(error), failure.or_again(again)),
                    Err(error) => (Err(error), failure),
                }
            })
    }

    /// The error for an answer that is no success.
    pub(crate) fn problem(&self, response: &Response, what: &str) -> Error {
        problem::error_of(response, what, self.wire.retry_after(response))
    }

    /// Asks whose token it is: `GET /api/v2/tokens/me`.
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
