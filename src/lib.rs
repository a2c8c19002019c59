//! Changes attributes on Genesys Cloud conversations safely: a small, blocking client that logs
//! in, checks the values, locks optimistically, writes, settles conflicts and faults, and tells
//! the world (hooks, audit, metrics). No async runtime, and no thread that was not asked for.
//!
//! ```no_run
//! use genesys_attributes::{Client, Update};
//!
//! let client = Client::from_env()?;
//! let receipt = client.update(
//!     &Update::participant("5b2f0c1e-0000-4000-8000-000000000001", "customer")
//!         .set("customer.tier", "premium")
//!         .set("routing.score", 85),
//! )?;
//! println!("{} after {} requests", receipt.outcome.name(), receipt.requests);
//! # Ok::<(), genesys_attributes::Error>(())
//! ```
//!
//! # Where to begin
//!
//! - [`Client`] does the work; [`ClientBuilder`] has its settings.
//! - [`Target`] is what can be written: a participant, the secure attributes, a custom record, or
//!   the conversation-level attributes of the brief that this library was built from, which
//!   today's public Platform API does not offer.
//! - [`Update`] is what to write; [`Receipt`] is the proof; [`Error`] says what went wrong and
//!   what to do.
//! - [`Batch`] runs many updates, in order for each conversation.
//!
//! # What is promised
//!
//! - Nothing is sent before every key and value is checked, and all that is wrong is told at once.
//! - A write to a target with a lock never goes out without its version, once there is one.
//! - A write that was confirmed is not sent again, whatever became of the rest of its answer.
//! - There is exactly one event for each `Ok` of [`Outcome::Applied`] or
//!   [`Outcome::AlreadyApplied`], and none for any other end. Every change at the platform belongs
//!   to an event or to an error with [`Error::may_have_applied`].
//! - Hooks that panic, block or call the client again do no harm to the update.
//!
//! What is not: on a target without a lock (participants, unlocked secure attributes) the last
//! writer wins, and a copy of a write that a network held back may land late. So may a copy of the
//! first write of a secure map or custom record, which has no version yet.
//!
//! # Secrets and logging
//!
//! The crate logs through [`log`]: each request's method, URL and status at `debug`, what is worth
//! a look at `warn`. Secrets, tokens and attribute values are never in what it logs, in errors or
//! in `Debug` output. ureq writes its own records under the target `ureq`; at its `trace` level
//! they hold whole requests, the token included: filter that target in a logger of yours, as the
//! program of this crate does.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `rustls` (default) | https; without it only loopback http, `allow_http` or an own [`Transport`] |
//! | `cli` | the program `genesys-attributes` |
//!
//! # The house
//!
//! One noun a file, and each imports only from those before it: error, clock, secret, region,
//! http, problem, validate, target, update, retry, limiter, histogram, metrics, call, auth, api,
//! audit, event, version_cache, receipt, client, builder, batch.
#![deny(missing_docs, unsafe_code, unreachable_pub)]
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod api;
mod audit;
mod auth;
mod batch;
mod builder;
mod call;
mod client;
mod clock;
mod error;
mod event;
mod histogram;
mod http;
mod limiter;
mod metrics;
mod problem;
mod receipt;
mod region;
mod retry;
mod secret;
mod target;
mod update;
mod validate;
mod version_cache;

pub use audit::{AuditMode, AuditPhase, AuditRecord, AuditSink, AuditStatus, JsonLines, LogSink};
pub use auth::Credentials;
pub use batch::{Batch, BatchOutcome, BatchReport, BatchStatus, LineError, StopReason};
pub use builder::ClientBuilder;
pub use client::{Client, EndedPolicy};
pub use clock::{Cancel, Clock, ManualClock, SystemClock, rfc3339};
pub use error::{Error, ErrorKind, Result, Rule, Sent, Violation};
pub use event::{Delivery, Subscription, UpdateEvent};
pub use histogram::Latency;
pub use http::{Method, Request, Response, Timeouts, Transport, TransportError};
pub use limiter::RateLimit;
pub use metrics::Metrics;
pub use receipt::{Identity, Outcome, Receipt, Snapshot};
pub use region::Region;
pub use retry::RetryPolicy;
pub use target::{Target, TargetKind};
pub use update::Update;
pub use validate::{Attributes, ValidationLimits};

/// The code of the README, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What callers rely on from any thread, checked when this is compiled.
const _: () = {
    const fn shared<T: Send + Sync + 'static>() {}
    const fn sent<T: Send + 'static>() {}
    shared::<Client>();
    shared::<Error>();
    shared::<Update>();
    shared::<Receipt>();
    shared::<Metrics>();
    shared::<UpdateEvent>();
    shared::<Cancel>();
    sent::<ClientBuilder>();
    sent::<Subscription>();
    sent::<Batch>();
};
