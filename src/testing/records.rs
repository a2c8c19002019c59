//! Records to give to code of yours that takes them: hooks, audit sinks, readers of outcomes.

use std::time::{Duration, SystemTime};

use crate::batch::BatchOutcome;
use crate::error::Result;
use crate::report::audit::{AuditPhase, AuditRecord};
use crate::report::event::UpdateEvent;
use crate::report::metrics::{Counters, Metrics};
use crate::report::receipt::{Answer, Outcome, Receipt, Snapshot, Status};
use crate::store::{Target, TargetKind};
use crate::{Attributes, Update};

/// The receipt of an update that was applied with one write, from version 1 to version 2 where the
/// target has versions, at the Unix epoch. Its fields are public: set what your test needs.
///
/// ```
/// use genesys_attributes::{Outcome, Update, testing};
///
/// let mut receipt = testing::receipt(&Update::secure("c-1").set("iban", "DE00"));
/// receipt.outcome = Outcome::AlreadyApplied;
/// assert_eq!(receipt.version.as_deref(), Some("2"));
/// ```
pub fn receipt(update: &Update) -> Receipt {
    let target = update.target();
    let locked = target.kind() != TargetKind::Participant && !target.is_unlocked();
    let version = |text: &str| locked.then(|| text.to_owned());
    Receipt {
        outcome: Outcome::Applied,
        conversation_id: target.conversation_id().to_owned(),
        target: target.kind(),
        resource_id: resource_id(target),
        version: version("2"),
        previous_version: version("1"),
        attempts: 1,
        requests: 2,
        latency: Duration::from_millis(40),
        correlation_id: None,
        timestamp: SystemTime::UNIX_EPOCH,
        conversation_ended: None,
        verified: false,
        audit_failed: false,
        hook_panics: 0,
        answer: Answer::default(),
    }
}

fn resource_id(target: &Target) -> Option<String> {
    match target.participant_selector() {
        // Of a purpose, the one that was found.
        Some(who) => Some(who.as_id().unwrap_or("p-1").to_owned()),
        None => target.record().map(str::to_owned),
    }
}

/// What a read of `target` would give, with version 1 where the target has versions.
///
/// ```
/// use genesys_attributes::{Attributes, Target, testing};
///
/// let attributes = Attributes::from_iter([("calls".to_owned(), "7".into())]);
/// let now = testing::snapshot(&Target::participant("c-1", "customer"), attributes);
/// assert_eq!(now.get::<u32>("calls")?, Some(7));
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
pub fn snapshot(target: &Target, attributes: Attributes) -> Snapshot {
    let has_version = target.kind() != TargetKind::Participant;
    Snapshot {
        conversation_id: target.conversation_id().to_owned(),
        target: target.kind(),
        resource_id: resource_id(target),
        version: has_version.then(|| "1".to_owned()),
        attributes,
        conversation_ended: None,
    }
}

/// The event of an update with this receipt, with the sequence number 1. The values are in it,
/// those of secure attributes too.
///
/// ```
/// use genesys_attributes::{Update, testing};
///
/// let update = Update::participant("c-1", "customer").set("tier", "gold");
/// let event = testing::event(&update, testing::receipt(&update));
/// assert_eq!(event.webhook_payload()["payload"]["updatedAttributes"]["tier"], "gold");
/// ```
pub fn event(update: &Update, receipt: Receipt) -> UpdateEvent {
    UpdateEvent {
        sequence: 1,
        attributes: update.attributes().clone(),
        audit_log: outcome(update, receipt),
    }
}

/// The outcome record of an applied update, without values. Its fields are public.
///
/// ```
/// use genesys_attributes::audit::AuditPhase;
/// use genesys_attributes::{Status, Update, testing};
///
/// let mut record = testing::audit_record(&Update::secure("c-1").set("iban", "DE00"));
/// assert_eq!(record.updated_keys, ["iban"]);
/// (record.phase, record.status) = (AuditPhase::Intent, Status::Pending);
/// ```
pub fn audit_record(update: &Update) -> AuditRecord {
    outcome(update, receipt(update))
}

fn outcome(update: &Update, receipt: Receipt) -> AuditRecord {
    AuditRecord {
        id: "test-1".to_owned(),
        phase: AuditPhase::Outcome,
        timestamp: receipt.timestamp,
        conversation_id: receipt.conversation_id,
        target: receipt.target,
        resource_id: receipt.resource_id,
        status: Status::from(receipt.outcome),
        updated_keys: update.attributes().keys().cloned().collect(),
        removed_keys: update.removals().to_vec(),
        attributes: None,
        previous_version: receipt.previous_version,
        version: receipt.version,
        attempts: receipt.attempts,
        requests: receipt.requests,
        latency: receipt.latency,
        error_kind: None,
        http_status: None,
        may_have_applied: false,
        correlation_id: receipt.correlation_id,
        settled: false,
    }
}

/// What a batch hands back for a line that ended like this, at the Unix epoch.
///
/// ```
/// use genesys_attributes::{Error, ErrorKind, Status, Update, testing};
///
/// let update = Update::participant("c-1", "customer").set("tier", "gold");
/// let applied = testing::batch_outcome(1, &update, Ok(testing::receipt(&update)));
/// assert_eq!(applied.status, Status::Applied);
/// let refused = Error::new(ErrorKind::NotFound, "no such conversation");
/// assert!(testing::batch_outcome(2, &update, Err(refused)).is_final());
/// ```
pub fn batch_outcome(line: u64, update: &Update, result: Result<Receipt>) -> BatchOutcome {
    BatchOutcome::of(line, update.target(), result, SystemTime::UNIX_EPOCH)
}

/// The metrics of a client that did nothing yet. Its counters are public.
///
/// ```
/// let mut metrics = genesys_attributes::testing::metrics();
/// metrics.conflicts = 3;
/// assert!(metrics.to_prometheus().contains("conflicts_total 3"));
/// ```
pub fn metrics() -> Metrics {
    Counters::default().snapshot()
}
