//! What one update wants and did. Its receipt, events and audit records are made from this.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::error::Error;
use crate::http::{Body, Response};
use crate::report::audit::{AuditPhase, AuditRecord};
use crate::report::event::UpdateEvent;
use crate::report::receipt::{Answer, Outcome, Receipt, Status};
use crate::session::exchange::Call;
use crate::store::{Target, TargetState};
use crate::values::attributes::Attributes;

/// What one update wants and did.
pub(super) struct Summary<'a> {
    pub(super) target: &'a Target,
    /// What is written, in the form that is written.
    pub(super) wanted: Cow<'a, Attributes>,
    pub(super) removed: Cow<'a, [String]>,
    /// What the last read established, or was known without one.
    pub(super) state: TargetState,
    /// The version that the last write was based on, also when a read came after it.
    pub(super) last_write_base: Option<String>,
    /// True if a read showed that the conversation has ended; `None` where no read could tell.
    pub(super) conversation_ended: Option<bool>,
    /// Joins the audit records; made when the first one is.
    pub(super) audit_id: Option<String>,
    /// What is wanted now has its intent.
    pub(super) intended: bool,
    pub(super) audit_failed: bool,
    /// Records may hold the values.
    pub(super) audit_values: bool,
}

impl<'a> Summary<'a> {
    pub(super) fn new(
        target: &'a Target,
        wanted: Cow<'a, Attributes>,
        removed: &'a [String],
    ) -> Summary<'a> {
        Summary {
            target,
            wanted,
            removed: Cow::Borrowed(removed),
            state: TargetState::default(),
            last_write_base: None,
            conversation_ended: None,
            audit_id: None,
            intended: false,
            audit_failed: false,
            audit_values: false,
        }
    }

    /// True if the target holds every wanted value and no removed key.
    pub(super) fn in_place(&self) -> bool {
        self.state.holds(&self.wanted, &self.removed) == Some(true)
    }

    /// Takes over what the last read showed about the end of the conversation.
    pub(super) fn note_end(&mut self) {
        if self.target.shows_end() {
            self.conversation_ended = Some(self.state.ended.is_some());
        }
    }

    /// The receipt of an update that did not fail. `answer` is that of the write, if one was
    /// confirmed.
    pub(super) fn receipt(
        &self,
        outcome: Outcome,
        version: Option<String>,
        answer: Option<Response>,
        call: &Call<'_>,
        timestamp: SystemTime,
    ) -> Receipt {
        let previous_version = match outcome {
            Outcome::Unchanged => version.clone(),
            _ => self.last_write_base.clone(),
        };
        let correlation_id = answer
            .as_ref()
            .and_then(|response| response.correlation_id().map(str::to_owned));
        let (attempts, requests, latency) = call.effort();
        Receipt {
            outcome,
            conversation_id: self.target.conversation_id().to_owned(),
            target: self.target.kind(),
            resource_id: self.target.resource_id(&self.state),
            version,
            previous_version,
            attempts,
            requests,
            latency,
            correlation_id,
            timestamp,
            conversation_ended: self.conversation_ended,
            verified: false,
            audit_failed: self.audit_failed,
            hook_panics: 0,
            answer: Answer(match answer.map(|response| response.body) {
                Some(Body::Whole(bytes)) => bytes,
                _ => Vec::new(),
            }),
        }
    }

    /// The record before a write.
    pub(super) fn intent(&self, id: String, call: &Call<'_>, timestamp: SystemTime) -> AuditRecord {
        let (attempts, requests, latency) = call.effort();
        AuditRecord {
            attempts,
            requests,
            latency,
            ..self.record(id, timestamp)
        }
    }

    fn record(&self, id: String, timestamp: SystemTime) -> AuditRecord {
        AuditRecord {
            id,
            phase: AuditPhase::Intent,
            timestamp,
            conversation_id: self.target.conversation_id().to_owned(),
            target: self.target.kind(),
            resource_id: self.target.resource_id(&self.state),
            status: Status::Pending,
            updated_keys: self.wanted.keys().cloned().collect(),
            removed_keys: self.removed.to_vec(),
            attributes: self.audit_values.then(|| self.wanted.clone().into_owned()),
            previous_version: self.state.version.clone(),
            version: None,
            attempts: 0,
            requests: 0,
            latency: std::time::Duration::ZERO,
            error_kind: None,
            http_status: None,
            may_have_applied: false,
            correlation_id: None,
            settled: false,
        }
    }

    /// The record of an update that did not fail.
    pub(super) fn outcome(&self, id: String, receipt: &Receipt) -> AuditRecord {
        AuditRecord {
            phase: AuditPhase::Outcome,
            resource_id: receipt.resource_id.clone(),
            status: Status::from(receipt.outcome),
            previous_version: receipt.previous_version.clone(),
            version: receipt.version.clone(),
            attempts: receipt.attempts,
            requests: receipt.requests,
            latency: receipt.latency,
            correlation_id: receipt.correlation_id.clone(),
            ..self.record(id, receipt.timestamp)
        }
    }

    /// The record of an update that failed, or was refused before anything was written.
    pub(super) fn failure(
        &self,
        id: String,
        status: Status,
        error: &Error,
        timestamp: SystemTime,
    ) -> AuditRecord {
        AuditRecord {
            phase: AuditPhase::Outcome,
            status,
            previous_version: self.last_write_base.clone(),
            attempts: error.attempts(),
            requests: error.requests(),
            latency: error.latency(),
            error_kind: Some(error.kind()),
            http_status: error.http_status(),
            may_have_applied: error.may_have_applied(),
            correlation_id: error.correlation_id().map(str::to_owned),
            ..self.record(id, timestamp)
        }
    }

    /// The event of an applied update, from the record of its outcome.
    ///
    /// `secure_values`: the values of secure attributes may be in it.
    pub(super) fn event(
        &self,
        sequence: u64,
        mut audit_log: AuditRecord,
        secure_values: bool,
    ) -> UpdateEvent {
        let hidden = self.target.is_confidential() && !secure_values;
        if hidden {
            audit_log.attributes = None;
        }
        UpdateEvent {
            sequence,
            attributes: if hidden {
                Attributes::new()
            } else {
                self.wanted.clone().into_owned()
            },
            audit_log,
        }
    }
}
