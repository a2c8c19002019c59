//! What a write does with every result that it can get: the table of the design, row by row, and the bounds around it.

mod applied;
mod bounds;
mod computed;
mod conflicts;
mod guard;
mod options;
mod refusals;
mod request;
mod retries;
mod threads;
mod throttling;
mod versions;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use genesys_attributes::clock::{Clock, ManualClock};
use genesys_attributes::error::{Rule, Sent};
use genesys_attributes::http::Response;
use genesys_attributes::validate::ValidationLimits;
use genesys_attributes::{
    Attributes, Cancel, Client, EndedPolicy, Error, ErrorKind, Outcome, RateLimit, RetryPolicy,
    Target, Update, UpdateOptions,
};
use serde_json::{Value, json};

use crate::fake::{AlarmClock, Fake, Gate, json_response, lock, ms, says, secs};
use crate::memory::Memory;

/// The two kinds of targets that the table tells apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lock {
    Locked,
    Unlocked,
}
use Lock::{Locked, Unlocked};

impl Lock {
    fn update(self) -> Update {
        match self {
            Locked => Update::conversation("c-1").set("tier", "gold"),
            Unlocked => Update::participant("c-1", "p-1").set("tier", "gold"),
        }
    }

    /// Logs in, and reads version 7 where there is one.
    fn begin(self, fake: &Fake) {
        fake.token();
        if self == Locked {
            fake.get(7);
        }
    }

    /// As [`Lock::begin`], with a token in hand.
    fn begin_again(self, fake: &Fake) {
        if self == Locked {
            fake.get(8);
        }
    }

    fn reads(self) -> u32 {
        u32::from(self == Locked)
    }
}

fn attributes(value: Value) -> Attributes {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

fn update() -> Update {
    Locked.update()
}

/// No backoff, so that the sleeps are what the server asked for.
fn without_jitter() -> RetryPolicy {
    RetryPolicy::default().with_backoff(Duration::ZERO, Duration::ZERO)
}

/// The ends of a write that leave open whether it was applied, and the kind when all attempts end so.
fn unclear() -> Vec<(&'static str, Result<u16, ErrorKind>, ErrorKind)> {
    vec![
        ("reset", Err(ErrorKind::Transport), ErrorKind::Transport),
        ("time out", Err(ErrorKind::Timeout), ErrorKind::Timeout),
        ("not HTTP", Err(ErrorKind::Protocol), ErrorKind::Protocol),
        ("408", Ok(408), ErrorKind::Timeout),
        ("500", Ok(500), ErrorKind::Server),
        ("502", Ok(502), ErrorKind::Server),
        ("503", Ok(503), ErrorKind::Server),
        ("504", Ok(504), ErrorKind::Server),
    ]
}

fn end_unclear(fake: &Fake, end: Result<u16, ErrorKind>) {
    match end {
        Ok(status) => fake.status("PATCH", status),
        Err(kind) => fake.fault("PATCH", kind, Sent::Maybe),
    };
}
