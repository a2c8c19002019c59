//! One request to the Platform API: with the current token, and once more with a new one when the
//! platform refuses it.

use crate::auth::TokenSource;
use crate::call::{Call, Caller, Purpose};
use crate::error::Result;
use crate::http::{Method, Request, Response};
use crate::target::Write;

/// The Platform API at one address, with one identity.
pub(crate) struct Api {
    pub(crate) base_url: String,
    pub(crate) tokens: TokenSource,
    pub(crate) caller: Caller,
}

impl Api {
    pub(crate) fn get(&self, call: &mut Call<'_>, path: &str) -> Result<Response> {
        let request = Request::new(Method::Get, [self.base_url.as_str(), path].concat());
        self.send(call, request, Purpose::Read)
    }

    pub(crate) fn write(
        &self,
        call: &mut Call<'_>,
        write: Write,
        purpose: Purpose,
    ) -> Result<Response> {
        let mut request =
            Request::new(write.method, [self.base_url.as_str(), &write.path].concat());
        request.if_match = write.if_match;
        request.body = Some(write.body);
        self.send(call, request, purpose)
    }

    fn send(
        &self,
        call: &mut Call<'_>,
        mut request: Request,
        purpose: Purpose,
    ) -> Result<Response> {
        call.begin_request(purpose);
        let mut renewed = false;
        loop {
            let token = self.tokens.token(call.cancel)?;
            request.authorization = Some(token.header.clone());
            let response = self.caller.send(call, &mut request, purpose)?;
            if response.status != 401 || renewed || !self.tokens.can_renew() {
                return Ok(response);
            }
            self.tokens.invalidate(&token);
            renewed = true;
        }
    }
}
