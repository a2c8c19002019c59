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
//! | test your own code | [Testing](_guides::testing) |
//! | see the requests | [On the wire](_guides::on_the_wire) |
//! | know the JSON, field by field | [JSON](_guides::json) |
//!
//! # Guides
//!
//! [Targets](_guides::targets) · [Batches](_guides::batches) · [Resuming](_guides::resuming) ·
//! [Forwarding](_guides::forwarding) · [Spark and shards](_guides::spark_and_shards) ·
//! [Errors and waiting](_guides::errors) · [Configuration](_guides::configuration) ·
//! [Guarantees](_guides::guarantees) · [Performance](_guides::performance) · [C](_guides::c) ·
//! [Python](_guides::python) · [Async and GUI](_guides::async_and_gui) ·
//! [Testing](_guides::testing) · [Migrating](_guides::migrating) · [JSON](_guides::json) ·
//! [On the wire](_guides::on_the_wire)
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
//! | `client-certificate` | [`ClientBuilder::client_certificate`], for gateways that ask for one |
//! | `testing` | an in-memory platform to test your own code with |
//! | `forward` | the modules `forward` and `webhook`: from the audit file to webhooks and queues, also after a crash |
//! | `cli` | the program `genesys-attributes` |
//! | `capi` | the C interface; see `include/genesys_attributes.h` |
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

/// Guides beside the reference.
pub mod _guides {
    /// Where the links of a guide lead here: the first definition of a name counts, before those of
    /// the file, which lead to other files.
    macro_rules! links {
        () => {
            concat!(
            "[async-and-gui]: crate::_guides::async_and_gui\n",
            "[batches]: crate::_guides::batches\n",
            "[c]: crate::_guides::c\n",
            "[configuration]: crate::_guides::configuration\n",
            "[errors]: crate::_guides::errors\n",
            "[forwarding]: crate::_guides::forwarding\n",
            "[guarantees]: crate::_guides::guarantees\n",
            "[json]: crate::_guides::json\n",
            "[migrating]: crate::_guides::migrating\n",
            "[on-the-wire]: crate::_guides::on_the_wire\n",
            "[performance]: crate::_guides::performance\n",
            "[python]: crate::_guides::python\n",
            "[resuming]: crate::_guides::resuming\n",
            "[spark-and-shards]: crate::_guides::spark_and_shards\n",
            "[targets]: crate::_guides::targets\n",
            "[testing]: crate::_guides::testing\n",
            "[security]: https://docs.rs/crate/genesys-attributes/latest/source/SECURITY.md\n",
            "[header]: https://docs.rs/crate/genesys-attributes/latest/source/include/genesys_attributes.h\n",
            "[module]: https://docs.rs/crate/genesys-attributes/latest/source/examples/python/genesys_attributes.py\n\n"
            )
        };
    }
    macro_rules! guide {
        ($name:ident, $file:literal) => {
            #[doc = links!()]
            #[doc = include_str!($file)]
            pub mod $name {}
        };
    }
    guide!(async_and_gui, "../docs/async-and-gui.md");
    guide!(batches, "../docs/batches.md");
    guide!(c, "../docs/c.md");
    guide!(configuration, "../docs/configuration.md");
    guide!(errors, "../docs/errors.md");
    guide!(forwarding, "../docs/forwarding.md");
    guide!(guarantees, "../docs/guarantees.md");
    guide!(json, "../docs/json.md");
    guide!(migrating, "../docs/migrating.md");
    guide!(on_the_wire, "../docs/on-the-wire.md");
    guide!(performance, "../docs/performance.md");
    guide!(python, "../docs/python.md");
    guide!(resuming, "../docs/resuming.md");
    guide!(spark_and_shards, "../docs/spark-and-shards.md");
    guide!(targets, "../docs/targets.md");
    guide!(testing, "../docs/testing.md");
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
