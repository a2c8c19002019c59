//! Changes attributes on Genesys Cloud conversations safely.
#![deny(missing_docs, unsafe_code, unreachable_pub)]
#![warn(rustdoc::broken_intra_doc_links)]

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
