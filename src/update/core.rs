//! What all clones of a client share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use log::warn;

use super::summary::Summary;
use super::{Edit, Update};
use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::http::Response;
use crate::report::audit::{self, AuditMode, AuditRecord, AuditSink};
use crate::report::event::Listeners;
use crate::report::metrics::Counters;
use crate::report::receipt::Snapshot;
use crate::session::Session;
use crate::session::exchange::Call;
use crate::session::problem;
use crate::session::retry::{Caller, RetryPolicy};
use crate::store::cache::Cache;
use crate::store::{Participant, ParticipantInfo, ReadFailure, Target, TargetState};
use crate::util::clock::Clock;
use crate::util::keyed_lock::KeyedLock;
use crate::util::process::Process;
use crate::util::sync::Cancel;
use crate::values::attributes::{Attributes, ValidationLimits};
use crate::values::schema::Schema;

/// What to do about a conversation that has ended, where a read shows that it has.
///
/// The platform's analytics drops attributes that are written after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EndedPolicy {
    /// Write, and only flag it in the receipt.
    Allow,
    /// Write, flag it in the receipt and log a warning.
    #[default]
    Warn,
    /// Refuse with [`ErrorKind::InvalidInput`]. Every update then reads before it writes: secure
    /// attributes and custom records need a read of the conversation beside their own.
    Refuse,
}

/// What all clones of a client share.
pub(crate) struct Core {
    /// The process that made the client.
    pub(crate) process: Process,
    pub(crate) session: Session,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) listeners: Listeners,
    pub(crate) audit: Option<Audit>,
    /// Keeps the audit ids of this client apart from those of another.
    pub(crate) audit_prefix: String,
    pub(crate) audit_sequence: AtomicU64,
    pub(crate) limits: ValidationLimits,
    pub(crate) schemas: Vec<Schema>,
    pub(crate) metadata_source: String,
    pub(crate) ended: EndedPolicy,
    pub(crate) secure_values_in_events: bool,
    pub(crate) cache: Cache,
    pub(crate) locks: KeyedLock,
    pub(crate) in_flight: AtomicUsize,
}

/// The audit trail's settings.
pub(crate) struct Audit {
    pub(crate) sink: Arc<dyn AuditSink>,
    pub(crate) mode: AuditMode,
    pub(crate) values: bool,
    pub(crate) secure_values: bool,
}

/// Reads the current values and says what to write, or that there is nothing to.
pub(crate) type Compute<'a> = &'a mut (dyn FnMut(&Snapshot) -> Result<Option<Edit>> + 'a);

/// An update, and how to run it.
pub(crate) struct Job<'a> {
    pub(crate) update: &'a Update,
    pub(crate) compute: Option<Compute<'a>>,
    /// Only this call can have written the computed values.
    pub(crate) unique: bool,
    pub(crate) caller: Caller,
    pub(crate) policy: RetryPolicy,
    pub(crate) cancel: Option<&'a Cancel>,
}

impl<'a> Job<'a> {
    /// An update whose values are given.
    pub(crate) fn new(
        update: &'a Update,
        caller: Caller,
        policy: RetryPolicy,
        cancel: Option<&'a Cancel>,
    ) -> Job<'a> {
        Job {
            update,
            compute: None,
            unique: false,
            caller,
            policy,
            cancel,
        }
    }
}

impl Core {
    pub(super) fn audit_id(&self, summary: &mut Summary<'_>) -> String {
        summary
            .audit_id
            .get_or_insert_with(|| {
                let number = self.audit_sequence.fetch_add(1, Ordering::Relaxed) + 1;
                [&self.audit_prefix, "-", &number.to_string()].concat()
            })
            .clone()
    }

    /// Records in the audit sink. False if that failed, which is no error of the update.
    pub(super) fn keep(&self, record: &AuditRecord) -> bool {
        let Some(audit) = &self.audit else {
            return true;
        };
        audit::record(audit.sink.as_ref(), record)
            .inspect_err(|e| {
                self.counters.audit_failures.increment();
                warn!("an audit record could not be kept: {e}");
            })
            .is_ok()
    }

    pub(super) fn forget(&self, target: &Target) {
        if let Some(key) = target.cache_key() {
            self.cache.forget(&key);
        }
    }

    /// Reads a target for a caller.
    pub(crate) fn read(
        &self,
        target: &Target,
        policy: RetryPolicy,
        cancel: Option<&Cancel>,
    ) -> Result<Snapshot> {
        target.checked()?;
        let wire = &self.session.wire;
        let id = target.conversation_id();
        let mut call = wire.begin(policy, Caller::Single, id, cancel);
        let read = self.read_with(target, &mut call, &[]);
        read.map_err(|error| call.failed(error))
    }

    /// Reads who takes part in the target's conversation.
    pub(crate) fn participants(
        &self,
        target: &Target,
        policy: RetryPolicy,
        cancel: Option<&Cancel>,
    ) -> Result<Vec<ParticipantInfo>> {
        target.checked()?;
        let wire = &self.session.wire;
        let id = target.conversation_id();
        let mut call = wire.begin(policy, Caller::Single, id, cancel);
        let read = self.read_conversation(target, &mut call, Target::participants_of);
        read.map_err(|error| call.failed(error))
    }

    pub(super) fn read_with(
        &self,
        target: &Target,
        call: &mut Call<'_>,
        hidden: &[&Attributes],
    ) -> Result<Snapshot> {
        let state = self.read_state(target, call, hidden)?;
        snapshot(target, &state)
    }

    pub(super) fn read_state(
        &self,
        target: &Target,
        call: &mut Call<'_>,
        hidden: &[&Attributes],
    ) -> Result<TargetState> {
        self.session.fetch(call, &target.read_path(), |response| {
            if response.is_success() {
                let read = target.parse(response);
                read.map_err(|failure| (failure.error, failure.transient))
            } else {
                let error = self.refusal(target, response, hidden);
                Err((with_advice(error, target, response, false), false))
            }
        })
    }

    /// Reads the conversation where ended ones are refused and the target does not show the end.
    pub(super) fn end_elsewhere(
        &self,
        target: &Target,
        call: &mut Call<'_>,
    ) -> Result<Option<bool>> {
        if self.ended != EndedPolicy::Refuse || target.shows_end() {
            return Ok(None);
        }
        match self.read_conversation(target, call, Target::end_of)? {
            Some(how) => Err(ended(&how)),
            None => Ok(Some(false)),
        }
    }

    /// Adds to a 404 for a participant's id which participants the conversation has.
    pub(super) fn explained(&self, target: &Target, call: &mut Call<'_>, error: Error) -> Error {
        let by_id = target.participant_selector().and_then(Participant::as_id);
        if error.kind() != ErrorKind::NotFound || by_id.is_none() {
            return error;
        }
        match self.read_conversation(target, call, |read| Ok(target.who_is_there(read))) {
            Ok(Some(there)) => error.and(&there),
            Err(read) if read.kind() == ErrorKind::NotFound => {
                error.and("the conversation itself does not exist: check its id and the region")
            }
            _ => error,
        }
    }

    fn read_conversation<T>(
        &self,
        target: &Target,
        call: &mut Call<'_>,
        parse: impl Fn(&Response) -> Result<T, ReadFailure>,
    ) -> Result<T> {
        self.session.fetch(call, &target.path(), |response| {
            if response.is_success() {
                parse(response).map_err(|failure| (failure.error, failure.transient))
            } else {
                Err((self.refusal(target, response, &[]), false))
            }
        })
    }

    /// The error for an answer that is no success. Values of `hidden` are masked in its text.
    pub(super) fn refusal(
        &self,
        target: &Target,
        response: &Response,
        hidden: &[&Attributes],
    ) -> Error {
        let wait = self.session.wire.retry_after(response);
        let kind = if target.is_conflict(response) {
            ErrorKind::Conflict
        } else {
            problem::kind_of(response.status)
        };
        problem::error_of_kind(kind, response, &target.description(), wait, hidden)
    }
}

/// Adds what the target knows to do about an answer. `missing`: the endpoint is not offered.
pub(super) fn with_advice(
    error: Error,
    target: &Target,
    response: &Response,
    missing: bool,
) -> Error {
    if !error.missing_permissions().is_empty() {
        return error;
    }
    match target.advice(response.status, missing) {
        Some(advice) => error.and(&advice),
        None => error,
    }
}

pub(super) fn snapshot(target: &Target, state: &TargetState) -> Result<Snapshot> {
    let attributes = state.attributes.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "{}: the answer holds no attributes, so they cannot be read",
                target.description()
            ),
        )
    })?;
    Ok(Snapshot {
        conversation_id: target.conversation_id().to_owned(),
        target: target.kind(),
        resource_id: target.resource_id(state),
        version: state.version.clone(),
        attributes,
        conversation_ended: target.shows_end().then_some(state.ended.is_some()),
    })
}

/// The refusal of an update of a conversation that has ended.
pub(super) fn ended(how: &str) -> Error {
    Error::violated(vec![Violation::new("conversationId", Rule::Ended, how)])
}
