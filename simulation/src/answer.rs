//! An answer of the platform, as the schedule looks at it before the client gets it.

use genesys_attributes::http::Response;
use serde_json::{Map, Value};

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<u64>,
    pub etag: Option<String>,
    pub body: String,
    /// The connection broke inside of the body.
    pub cut: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<String>) -> Answer {
        Answer {
            status,
            retry_after: None,
            etag: None,
            body: body.into(),
            cut: false,
        }
    }

    pub fn wait(self, retry_after: Option<u64>) -> Answer {
        Answer {
            retry_after,
            ..self
        }
    }

    pub fn etag(self, version: impl std::fmt::Display) -> Answer {
        let etag = Some(format!("\"{version}\""));
        Answer { etag, ..self }
    }

    pub fn cut(self) -> Answer {
        Answer { cut: true, ..self }
    }

    /// The body, if it is an object and arrives.
    pub fn object(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(&self.body).ok().filter(|_| !self.cut)
    }

    pub fn response(self) -> Response {
        let mut response = Response::new(self.status).with_body(self.body);
        if let Some(seconds) = self.retry_after {
            response = response.with_header("Retry-After", seconds.to_string());
        }
        if let Some(etag) = self.etag {
            response = response.with_header("ETag", etag);
        }
        match self.cut {
            true => response.with_broken_body("cut"),
            false => response,
        }
    }
}
