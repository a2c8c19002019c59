//! Writes whose process died before their outcome was recorded: what became of them.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::failed;
use super::log::Found;
use super::run::Run;
use crate::client::Client;
use crate::error::{ErrorKind, Result};
use crate::report::audit::parts::{lock_of, try_lock};
use crate::report::audit::{AuditFile, AuditPhase, AuditRecord, AuditSink};
use crate::report::receipt::Status;
use crate::store::{Participant, Target, TargetKind, TargetState};
use crate::util::clock::sleep_unless;
use crate::util::sync::Cancel;

/// How old an intent is before what became of it is read.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// How long a write that could not be settled is left alone.
const SETTLE_AGAIN: Duration = Duration::from_secs(30);

impl Run<'_> {
    /// Looks for writers of the log. Without one, the intents that have no outcome get none. What
    /// was written until the look is returned, and is to be handled first.
    pub(super) fn find_orphans(&mut self) -> Result<Option<Found>> {
        if self.pending.iter().all(|pending| pending.is_orphan()) {
            return Ok(None);
        }
        let lock = File::open(lock_of(self.log.path()));
        let is_unwritten = match &lock {
            Ok(lock) => try_lock(lock),
            // Only writers make it.
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if !is_unwritten {
            return Ok(None);
        }
        match self.log.next()? {
            Found::End => self.orphan_all(false),
            found => return Ok(Some(found)),
        }
        Ok(None)
    }

    /// None of the intents will get an outcome from its writer.
    pub(super) fn orphan_all(&mut self, by_log: bool) {
        let now = self.of.clock.now();
        for pending in &mut self.pending {
            if !pending.is_orphan() && self.of.follow {
                log::warn!(
                    "the process of write {} (conversation {}) died before its outcome was \
                     recorded",
                    pending.record.id,
                    pending.record.conversation_id
                );
            }
            pending.orphan |= by_log;
            pending.since.get_or_insert(now);
        }
    }

    /// Settles one orphan at the end of the log: reads its target, and appends the outcome when the
    /// log is read to its end again. True if there may be something to read.
    pub(super) fn settle(&mut self) -> Result<bool> {
        let Some(client) = self.of.settle.clone() else {
            return Ok(false);
        };
        let now = self.of.clock.now();
        let is_due = |at| now.saturating_duration_since(at) >= SETTLE_AGAIN;
        let mut pending = self.pending.iter_mut();
        let orphan = pending
            .find(|one| one.is_orphan() && one.unknown.as_ref().is_none_or(|(at, _)| is_due(*at)));
        let Some(orphan) = orphan else {
            return Ok(false);
        };
        // A request may outlive the process that sent it, and what it wrote may not show at once.
        // A record that is dated in the future waits no longer than others.
        let known = now.saturating_duration_since(*orphan.since.get_or_insert(now));
        let age = self.of.clock.wall().duration_since(orphan.record.timestamp);
        let left = SETTLE_AFTER.saturating_sub(age.unwrap_or_default().max(known));
        if !left.is_zero() {
            if !self.of.follow {
                sleep_unless(self.of.clock.as_ref(), left, Some(self.cancel))?;
            }
            return Ok(!self.of.follow);
        }
        let intent = orphan.record.clone();
        let (status, may_have_applied) = match orphan.verdict.take() {
            _ if orphan.superseded => (Status::Failed, false),
            Some(verdict) => verdict,
            None => {
                match verdict(&client, &intent, self.cancel)? {
                    Ok(verdict) => orphan.verdict = Some(verdict),
                    Err(why) => {
                        log::warn!("what became of write {} is not known: {why}", intent.id);
                        orphan.unknown = Some((now, why));
                    }
                }
                return Ok(true);
            }
        };
        let outcome = AuditRecord {
            phase: AuditPhase::Outcome,
            timestamp: self.of.clock.wall(),
            settled: true,
            status,
            may_have_applied,
            ..intent
        };
        let append = || {
            let log = AuditFile::of_others(self.log.path());
            log.record(&outcome)?;
            log.flush()
        };
        append().map_err(|e| failed("the audit file", self.log.path(), "appended to", e))?;
        self.report.settled += 1;
        Ok(true)
    }
}

/// What a read says about a write: the status of its outcome, and whether it may have been applied
/// all the same. Or why it says nothing.
fn verdict(
    client: &Client,
    intent: &AuditRecord,
    cancel: &Cancel,
) -> Result<std::result::Result<(Status, bool), String>> {
    let Some(wanted) = &intent.attributes else {
        return Ok(Err("the log holds no values of it".to_owned()));
    };
    let conversation = intent.conversation_id.as_str();
    let target = match (intent.target, intent.resource_id.as_deref()) {
        (TargetKind::Conversation, _) => Target::conversation(conversation),
        (TargetKind::Secure, _) => Target::secure(conversation),
        (TargetKind::Participant, Some(who)) => {
            Target::participant(conversation, Participant::from(who))
        }
        (TargetKind::Custom, Some(record)) => Target::custom(conversation, record),
        _ => {
            let problem = "the log does not say which participant or record it went to";
            return Ok(Err(problem.to_owned()));
        }
    };
    let now = match client.read_once(&target, cancel) {
        Ok(now) => now,
        // The other targets could not be read, either.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Auth | ErrorKind::Config | ErrorKind::Cancelled
            ) =>
        {
            return Err(error);
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    // Every write that is applied on top of a version makes another.
    let untouched = intent.previous_version.is_some()
        && now.version.as_deref() == intent.previous_version.as_deref();
    let state = TargetState::with(now.attributes);
    let in_place = state.holds(wanted, &intent.removed_keys) == Some(true);
    Ok(Ok(match in_place && !untouched {
        true => (Status::AlreadyApplied, false),
        false => (Status::Failed, !untouched),
    }))
}
