//! Answers as the platform words them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{Call, VersionStyle};

/// What becomes of a request.
pub(crate) enum Reply {
    Answer(Answer),
    /// It arrived, but no answer does.
    Lost,
    /// It never arrived.
    Unreachable,
}

impl Reply {
    /// 0 without an answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Reply::Answer(answer) => answer.status,
            Reply::Lost | Reply::Unreachable => 0,
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply::Answer(answer)
    }
}

#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    correlation: String,
    media: &'static str,
    retry_after: Option<String>,
    etag: Option<String>,
    pub(crate) body: Vec<u8>,
    /// A write was refused for its version.
    pub(super) is_conflict: bool,
}

impl Answer {
    pub(crate) fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("ININ-Correlation-Id", self.correlation.clone())];
        if !self.body.is_empty() {
            headers.push(("Content-Type", self.media.to_owned()));
        }
        let more = [("Retry-After", &self.retry_after), ("ETag", &self.etag)];
        headers.extend(
            more.into_iter()
                .filter_map(|(name, value)| Some((name, value.clone()?))),
        );
        headers
    }

    pub(super) fn conflict(self) -> Answer {
        let is_conflict = true;
        Answer {
            is_conflict,
            ..self
        }
    }

    pub(super) fn empty(status: u16) -> Answer {
        // Unique in the process, not in the sandbox only: a mixed-up log then still tells them apart.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Answer {
            status,
            correlation: format!("5a4db0c5-0000-4000-8000-{number:012x}"),
            media: "application/json",
            retry_after: None,
            etag: None,
            body: Vec::new(),
            is_conflict: false,
        }
    }

    pub(super) fn json(status: u16, body: &Value) -> Answer {
        Answer {
            body: body.to_string().into_bytes(),
            ..Answer::empty(status)
        }
    }

    pub(super) fn raw(status: u16, body: String) -> Answer {
        Answer {
            media: "text/html",
            body: body.into_bytes(),
            ..Answer::empty(status)
        }
    }

    pub(super) fn scripted(call: &Call, status: u16, body: Value) -> Answer {
        if !body.is_null() {
            return Answer {
                media: "application/json",
                ..Answer::raw(status, body.to_string())
            };
        }
        match status {
            400.. if call.is_api() => Answer::platform_error(status),
            400.. => Answer::token_error(status, "server_error", "scripted"),
            _ => Answer::raw(status, String::new()),
        }
    }

    pub(super) fn versioned(mut body: Value, version: u64, style: VersionStyle) -> Answer {
        let mut etag = None;
        match style {
            VersionStyle::Text => body["version"] = json!(version.to_string()),
            VersionStyle::Number => body["version"] = json!(version),
            VersionStyle::ETag => etag = Some(format!("\"{version}\"")),
            VersionStyle::Missing => {}
        }
        Answer {
            etag,
            ..Answer::json(200, &body)
        }
    }

    pub(super) fn rate_limited(retry_after: Option<String>) -> Answer {
        let seconds = retry_after.as_deref().unwrap_or("60");
        let message =
            format!("Rate limit exceeded the maximum. Retry the request in [{seconds}] seconds");
        Answer {
            retry_after: retry_after.clone(),
            ..Answer::error(429, "too.many.requests.retry.after", &message)
        }
    }

    pub(super) fn unavailable(call: &Call, retry_after: Option<String>) -> Answer {
        Answer {
            retry_after,
            ..Answer::scripted(call, 503, Value::Null)
        }
    }

    pub(super) fn missing_permissions(missing: &[String]) -> Answer {
        let start = "Unable to perform the requested action. You must have at least one of the following \
                     permissions assigned:";
        let names = format!("[{}]", missing.join(", "));
        let extra = json!({
            "messageWithParams": format!("{start} {{permissions}}"),
            "messageParams": {"permissions": names},
        });
        Answer::error_with(
            403,
            "missing.any.permissions",
            &format!("{start} {names}"),
            extra,
        )
    }

    pub(super) fn bad_request(message: &str) -> Answer {
        Answer::error(400, "bad.request", message)
    }

    /// What the platform says with this status when there is nothing more to say.
    pub(super) fn platform_error(status: u16) -> Answer {
        let (code, message) = match status {
            400 => (
                "bad.request",
                "The request could not be understood by the server due to malformed syntax.",
            ),
            401 => ("bad.credentials", "Invalid login credentials."),
            403 => (
                "not.authorized",
                "You are not authorized to perform the requested action.",
            ),
            404 => ("not.found", "The requested resource was not found."),
            405 => (
                "method.not.allowed",
                "The requested method is not allowed for this resource.",
            ),
            408 => (
                "client.timeout",
                "The client did not produce a request in time.",
            ),
            409 => (
                "general.conflict",
                "The request conflicts with the current state of the target resource.",
            ),
            412 => (
                "precondition.failed",
                "A precondition of the request was not met.",
            ),
            413 => (
                "request.entity.too.large",
                "The request is over the size limit. Maximum bytes: 512000",
            ),
            415 => (
                "unsupported.media.type",
                "The content type of the request is not supported.",
            ),
            429 => return Answer::rate_limited(None),
            500 => (
                "internal.server.error",
                "The server encountered an unexpected condition which prevented it from fulfilling the request.",
            ),
            503 => (
                "service.unavailable",
                "Service Unavailable - The server is currently unavailable (because it is overloaded or down for \
                 maintenance).",
            ),
            504 => ("request.timeout", "The request timed out."),
            _ => (
                "sandbox.error",
                "The sandbox was told to answer this status.",
            ),
        };
        Answer::error(status, code, message)
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
        Answer::error_with(status, code, message, json!({}))
    }

    fn error_with(status: u16, code: &str, message: &str, extra: Value) -> Answer {
        let blank = Answer::empty(status);
        let mut body = json!({
            "message": message,
            "code": code,
            "status": status,
            "contextId": blank.correlation,
            "details": [],
            "errors": [],
        });
        if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
            body.extend(extra);
        }
        Answer {
            body: body.to_string().into_bytes(),
            ..blank
        }
    }

    /// The token endpoint's errors have a shape of their own.
    pub(super) fn token_error(status: u16, error: &str, text: &str) -> Answer {
        let body = json!({"error": error, "description": text, "error_description": text});
        Answer::json(status, &body)
    }
}
