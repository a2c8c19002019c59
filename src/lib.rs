//! Changes attributes on Genesys Cloud conversations safely.
//!
//! A small, blocking client: it logs in, checks keys and values, locks optimistically, writes, and
//! settles conflicts and faults. It reports by events, audit records and metrics. No async runtime.
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
//! println!("{} after {} requests", receipt.outcome, receipt.requests);
//! # Ok::<(), genesys_attributes::Error>(())
//! ```
//!
//! # By task
//!
//! | to | use |
//! |---|---|
//! | make a client | [`Client::from_env`], [`Client::builder`], [`Settings`] (from JSON) |
//! | set attributes | [`Client::update`] with an [`Update`] |
//! | choose what is written | [`Target`]: a [`Participant`], the secure attributes, a custom record, or the conversation-level endpoint, which today's public API does not offer |
//! | read | [`Client::read`], then [`Snapshot::get`] |
//! | read, compute and write | [`Client::update_with`], [`Client::update_with_options`] |
//! | run many updates | [`Batch`] |
//! | check before sending | [`Update::validate`], [`Client::validate`], rules of your own with a [`validate::Schema`] |
//! | see what an update would change | [`Client::preview`] |
//! | hear of changes | [`ClientBuilder::on_update`], [`Client::subscribe`] |
//! | keep a record | [`ClientBuilder::audit`] with an [`audit::AuditFile`] |
//! | pass changes on, also after a crash | `forward::Forwarder` with a `webhook::Webhook` (feature `forward`) |
//! | spare a read for each participant | [`Client::prefetch_participants`] |
//! | see whose token it is | [`Client::verify_credentials`] |
//! | end a program in order | [`Client::flush`] |
//! | measure | [`Client::metrics`] |
//! | bound time and attempts | [`RetryPolicy`], [`Timeouts`], [`RateLimit`], [`Cancel`] |
//! | decide what an error means | [`Error::kind`], [`Error::is_transient`], [`Error::may_have_applied`] |
//! | test your own code | [Testing your code](_documentation::testing_your_code) |
//! | see the requests | [On the wire](_documentation::on_the_wire) |
//! | know the JSON, field by field | [JSON](_documentation::json) |
//!
//! # Guarantees
//!
//! | guaranteed | unless |
//! |---|---|
//! | Nothing is written before every key and value is checked, and an update with given values is refused before any request; all violations are reported at once. | Computed values, and `system.` keys of a conversation that has ended, are checked after the read. |
//! | A write to a target with a lock carries its version. | There is none yet: the first write of a secure map or custom record. |
//! | A confirmed write is not sent again, whatever became of the rest of its answer. | |
//! | `Ok` means that the platform confirmed the write, or that a read found the values in place. | A participant's values are stored shortly after the answer: [`Update::verify`] waits for them. Without a lock a delayed copy of an earlier write may land later. |
//! | An error without [`Error::may_have_applied`] means that this update changed nothing. | |
//! | One event for each `Ok` of [`Outcome::Applied`] or [`Outcome::AlreadyApplied`], none otherwise. | |
//! | Updates of one conversation through one client take turns, first come, first served. | |
//! | No request is sent inside a pause that the platform asked for, nor beyond the rate limit. | A pause longer than [`RetryPolicy::max_retry_after`]: the update fails at once, and the next one asks again. Other clients with the same token. |
//!
//! On a target without a lock (participants, unlocked secure attributes) the last writer wins.
//!
//! # Secrets and logging
//!
//! The crate logs through [`log`]: each request's method, URL and status at `debug`, what is worth
//! a look at `warn`. Secrets and tokens are in none of its log lines, errors and `Debug` outputs, nor
//! are attribute values, but for what the platform's own text quotes in part or in another encoding,
//! and for [`audit::LogSink`] when you ask for `audit_values`. ureq writes its own records under the
//! target `ureq`; at its `trace` level they hold whole requests, the token included: filter that
//! target in a logger of yours, as the program of this crate does.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `rustls` (default) | https; without it only loopback http, `allow_http` or an own [`http::Transport`] |
//! | `testing` | an in-memory platform to test your own code with |
//! | `forward` | the modules `forward` and `webhook`: from the audit file to webhooks and queues, also after a crash |
//! | `cli` | the program `genesys-attributes` |
//! | `capi` | the C interface; see `include/genesys_attributes.h` |
//!
//! # Module layout
//!
//! A room imports only from itself and from those before it:
//!
//! ```text
//! error/     error, violation, secret, text         words that everything uses
//! util/      base64, random, date, clock, locks, histogram
//! http/      request, answer, transport, address, region
//! values/    attributes, schema, version            what may be written
//! report/    receipt, event, metrics, audit/        what users get to know
//! session/   token, limiter, retry, exchange        one request: permitted, authorized, retried
//! store/     a kind of store a file; cache          what is remembered of them
//! update/    data, rules (machine), driver          one update
//! client/    client, builder, settings              the handle and its options
//! batch/     queue, workers, outage, look-ahead     many updates
//! forward/   log, cursor, settle, webhook           from the audit file to the world
//! capi/ cli/ testing/                               C; the program; for tests
//! ```
#![deny(missing_docs, unsafe_code, unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod batch;
#[cfg(feature = "capi")]
#[allow(unsafe_code)] // the only place: what comes from C cannot be checked by the compiler
mod capi;
mod client;
pub mod error;
#[cfg(feature = "forward")]
pub mod forward;
pub mod http;
mod report;
mod session;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod update;
mod util;
mod values;

pub use batch::Batch;
pub use client::builder::ClientBuilder;
pub use client::settings::Settings;
pub use client::{Client, UpdateOptions};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "forward")]
pub use forward::webhook;
pub use http::Timeouts;
pub use http::region::Region;
pub use report::event::{Subscription, UpdateEvent};
pub use report::metrics::Metrics;
pub use report::receipt::{Identity, Outcome, Receipt, Snapshot, Status};
pub use report::{audit, event, metrics};
pub use session::auth::Credentials;
pub use session::retry;
pub use session::retry::{RateLimit, RetryPolicy};
pub use store::{Participant, ParticipantInfo, Target, TargetKind};
pub use update::core::EndedPolicy;
pub use update::{Edit, Update};
pub use util::clock;
pub use util::sync::Cancel;
pub use values::attributes::Attributes;

/// What keys and values may be: the platform's limits, and rules of your own.
pub mod validate {
    pub use crate::error::{Rule, Violation};
    pub use crate::values::attributes::{Attributes, ValidationLimits, same};
    pub use crate::values::json::parse;
    pub use crate::values::schema::{Field, Schema};
}

/// Pages beside the reference.
pub mod _documentation {
    #[doc = include_str!("documentation/json.md")]
    pub mod json {}
    #[doc = include_str!("documentation/on_the_wire.md")]
    pub mod on_the_wire {}
    #[doc = include_str!("documentation/testing_your_code.md")]
    pub mod testing_your_code {}
}

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
    shared::<audit::AuditRecord>();
    shared::<Snapshot>();
    shared::<Cancel>();
    sent::<ClientBuilder>();
    sent::<Subscription>();
    sent::<Batch>();
};
