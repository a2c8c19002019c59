//! What goes wrong, by script.

use serde_json::{Value, json};

use super::{Call, TOKEN_PATH};

/// Something other than the usual for one request, or for many: which requests, what happens, and how often.
///
/// ```
/// use genesys_attributes::testing::{Action, Fault};
///
/// // The next write is applied, and its answer is lost.
/// let lost = Fault::on_write(Action::ApplyThenLose);
/// // Every tenth request of the API is asked to come back in two seconds.
/// let throttled = Fault::on_api(Action::rate_limited(2)).every(10);
/// // One conversation is broken for good.
/// let broken = Fault::on_api(Action::status(500)).path("/c-13").always();
/// # let _ = (lost, throttled, broken);
/// ```
#[must_use = "a fault does nothing until a platform is given it"]
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Empty: any.
    methods: &'static [&'static str],
    /// Each is looked for in the path as sent and in the decoded one.
    path_contains: Vec<String>,
    pub(super) action: Action,
    when: When,
}

#[derive(Clone, Debug, PartialEq)]
enum When {
    Times(u64),
    Every { n: u64, seen: u64, due: u64 },
    Always,
}

/// What happens in a [`Fault`].
///
/// Those that let the work go on ([`Interfere`](Action::Interfere), [`ApplyThenStatus`](Action::ApplyThenStatus),
/// [`ApplyThenLose`](Action::ApplyThenLose)) are left for the next request when one is refused before any work (401, 403, 413).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Answered instead of doing the work.
    Status {
        /// 200 to 999.
        status: u16,
        /// `Null` stands for what the platform says with an error status, and for no body otherwise.
        body: Value,
    },
    /// 429 with the platform's body.
    RateLimited {
        /// The header as given, or none.
        retry_after: Option<String>,
    },
    /// 503 with the platform's body.
    Unavailable {
        /// The header as given, or none.
        retry_after: Option<String>,
    },
    /// Another writer comes first and raises the version of the store that the request addresses; then the request is
    /// handled as usual, so that a locked write meets a conflict.
    Interfere {
        /// The key that the other writes.
        key: String,
        /// Its value.
        value: Value,
    },
    /// The work is done, but the answer is this one. Work that is refused is answered as usual.
    ApplyThenStatus {
        /// 200 to 999.
        status: u16,
        /// As for `Status`.
        body: Value,
    },
    /// Any text as body, instead of doing the work.
    Raw {
        /// 200 to 999.
        status: u16,
        /// Sent as `text/html`.
        body: String,
    },
    /// The request is lost: nothing is done, and no answer comes.
    Lose,
    /// The work is done, but its answer is lost.
    ApplyThenLose,
    /// No connection, so that nothing was sent. Over HTTP this is the same as `Lose`.
    Unreachable,
}

impl Fault {
    /// For a PATCH or PUT of the API: the next one.
    pub fn on_write(action: Action) -> Fault {
        Fault::new(&["PATCH", "PUT"], Some("/api/"), action)
    }

    /// For a GET of the API: the next one.
    pub fn on_read(action: Action) -> Fault {
        Fault::new(&["GET"], Some("/api/"), action)
    }

    /// For a request of the API: the next one.
    pub fn on_api(action: Action) -> Fault {
        Fault::new(&[], Some("/api/"), action)
    }

    /// For a request for a token: the next one.
    pub fn on_token(action: Action) -> Fault {
        Fault::new(&["POST"], Some(TOKEN_PATH), action)
    }

    /// For any request, one for a token included: the next one.
    pub fn any(action: Action) -> Fault {
        Fault::new(&[], None, action)
    }

    fn new(methods: &'static [&'static str], path: Option<&str>, action: Action) -> Fault {
        Fault {
            methods,
            path_contains: path.map(str::to_owned).into_iter().collect(),
            action,
            when: When::Times(1),
        }
    }

    /// Only for requests whose path holds this too.
    pub fn path(mut self, part: impl Into<String>) -> Fault {
        self.path_contains.push(part.into());
        self
    }

    /// For the next so many requests that it is for.
    pub fn times(mut self, number: u64) -> Fault {
        self.when = When::Times(number);
        self
    }

    /// For each `n`-th request that it is for, as long as the platform lives.
    pub fn every(mut self, n: u64) -> Fault {
        let (n, seen, due) = (n.max(1), 0, 0);
        self.when = When::Every { n, seen, due };
        self
    }

    /// For all requests that it is for, as long as the platform lives.
    pub fn always(mut self) -> Fault {
        self.when = When::Always;
        self
    }

    fn matches(&self, call: &Call) -> bool {
        (self.methods.is_empty() || self.methods.contains(&call.method.as_str()))
            && self
                .path_contains
                .iter()
                .all(|part| call.path_contains(part))
    }

    /// Takes note of a request.
    pub(super) fn count(&mut self, call: &Call) {
        let matches = self.matches(call);
        if let When::Every { n, seen, due } = &mut self.when
            && matches
        {
            *seen += 1;
            // What falls due while another fault has its turn is made up for.
            *due += u64::from(*seen % *n == 0);
        }
    }

    pub(super) fn is_due(&self, call: &Call) -> bool {
        let now = match self.when {
            When::Times(left) => left > 0,
            When::Every { due, .. } => due > 0,
            When::Always => true,
        };
        now && self.matches(call)
    }

    /// Counts one occurrence, and says whether it was the last.
    pub(super) fn ends(&mut self) -> bool {
        match &mut self.when {
            When::Times(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            When::Every { due, .. } => {
                *due = due.saturating_sub(1);
                false
            }
            When::Always => false,
        }
    }
}

impl Action {
    /// Answers this status with the platform's body for it.
    pub fn status(status: u16) -> Action {
        let body = Value::Null;
        Action::Status { status, body }
    }

    /// 429 with `Retry-After` in seconds.
    pub fn rate_limited(seconds: u64) -> Action {
        Action::RateLimited {
            retry_after: Some(seconds.to_string()),
        }
    }

    /// How the token endpoint throttles: a 400.
    pub fn token_rate_limited() -> Action {
        let text = "rate limit exceeded; please try again later";
        let body =
            json!({"error": "invalid_request", "description": text, "error_description": text});
        Action::Status { status: 400, body }
    }

    pub(super) fn lets_work_go_on(&self) -> bool {
        matches!(
            self,
            Action::Interfere { .. } | Action::ApplyThenStatus { .. } | Action::ApplyThenLose
        )
    }

    pub(super) fn is_possible(&self) -> bool {
        match self {
            Action::Status { status, .. }
            | Action::ApplyThenStatus { status, .. }
            | Action::Raw { status, .. } => (200..1000).contains(status),
            _ => true,
        }
    }
}
