//! What users get to know: receipts, events, metrics and the audit trail.

pub mod audit;
pub mod event;
pub mod metrics;
pub(crate) mod receipt;
