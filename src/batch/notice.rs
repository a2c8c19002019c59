//! What happens to a batch as a whole.

use std::fmt;
use std::time::Duration;

use crate::error::Error;

/// Something that happened to the whole batch. `Display` is one line.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// The platform cannot be reached. All lines wait, and none fails because of it.
    #[non_exhaustive]
    OutageBegan {
        /// What the last line met.
        error: Error,
    },
    /// A line is sent to see whether the outage is over.
    #[non_exhaustive]
    Probing {
        /// The number of the line.
        line: u64,
        /// How long the outage has lasted.
        after: Duration,
    },
    /// The platform answers again, and all lines go on.
    #[non_exhaustive]
    OutageEnded {
        /// How long the outage lasted.
        after: Duration,
    },
    /// The platform asked to slow down: no request is sent for this long.
    #[non_exhaustive]
    RateLimited {
        /// How long.
        wait: Duration,
    },
    /// The client's own rate limit is used up: no request is sent for this long.
    #[non_exhaustive]
    OwnRateLimit {
        /// How long.
        wait: Duration,
    },
    /// Ids of participants are no longer looked up in bulk. A line that names a participant by
    /// its purpose takes one request more from here on.
    #[non_exhaustive]
    LookAheadOff {
        /// Why.
        error: Error,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::OutageBegan { error } => {
                write!(f, "the platform cannot be reached, all lines wait: {error}")
            }
            Notice::Probing { line, after } => write!(
                f,
                "line {line} is sent to see whether the platform is back ({:.1} s so far)",
                after.as_secs_f64()
            ),
            Notice::OutageEnded { after } => write!(
                f,
                "the platform answers again after {:.1} s: going on",
                after.as_secs_f64()
            ),
            Notice::RateLimited { wait } => write!(
                f,
                "the platform asked to slow down: waiting for {:.1} s",
                wait.as_secs_f64()
            ),
            Notice::OwnRateLimit { wait } => write!(
                f,
                "the rate limit of this client is used up: waiting for {:.1} s",
                wait.as_secs_f64()
            ),
            Notice::LookAheadOff { error } => write!(
                f,
                "participants are read one by one from here on, which takes a request more a line: \
                 {error}"
            ),
        }
    }
}
