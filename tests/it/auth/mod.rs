//! Tokens: how they are asked for, kept, replaced in time, and what happens when they cannot be had.

mod failures;
mod hold_off;
mod identity;
mod pauses;
mod refresh;
mod requests;
mod threads;

use std::error::Error as _;

use std::sync::atomic::{AtomicUsize, Ordering};

use std::sync::{Arc, Barrier, Mutex, OnceLock, mpsc};

use std::thread;

use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Request, Response, TransportError};
use genesys_attributes::{
    Cancel, Client, ClientBuilder, Credentials, Error, ErrorKind, RateLimit, Receipt, Region,
    RetryPolicy, Target, Update,
};

use serde_json::{Value, json};

use crate::fake::{
    AlarmClock, BASE, CLIENT_ID, CLIENT_SECRET, Fake, Gate, PATIENCE, Seen, json_response, lock,
    ms, says, secs,
};

/// `Basic` of the fake's credentials.
const BASIC: &str = "Y2xpZW50LWlkOmNsaWVudC01ZWNyZXQ=";

/// An update of one request.
fn update(conversation: &str) -> Update {
    Update::participant(conversation, "p-1").set("k", "v")
}

fn once() -> RetryPolicy {
    RetryPolicy::default().with_max_attempts(1)
}

fn without_jitter() -> RetryPolicy {
    RetryPolicy::default().with_backoff(Duration::ZERO, Duration::ZERO)
}

fn refusal(error: &str, description: &str) -> Value {
    json!({ "error": error, "description": description, "error_description": description })
}

/// The token that each write carried, in order.
fn tokens(fake: &Fake) -> Vec<String> {
    let writes = fake.sent("PATCH");
    writes
        .iter()
        .map(|write| write.authorization().replace("Bearer ", ""))
        .collect()
}
