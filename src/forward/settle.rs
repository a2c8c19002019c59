//! Writes whose process died before their outcome was recorded: what became of them.

use super::log::Found;
use super::{Run, SETTLE_AFTER, SETTLE_AGAIN};
use crate::audit::AuditFile;
use crate::audit::{AuditPhase, AuditRecord, AuditSink};
use crate::client::Client;
use crate::clock::sleep_unless;
use crate::error::{Error, ErrorKind, Result};
use crate::receipt::Status;
use crate::target::{Participant, Target, TargetKind, TargetState};

/// What a read says about a write.
enum Verdict {
    InPlace { version: Option<String> },
    NotInPlace { may_have_applied: bool },
    Unknown(String),
}

/// Whether an applied write shows that another one was not: of writes on top of one version a lock
/// lets only one through.
pub(super) fn rules_out(applied: &AuditRecord<'_>, other: &AuditRecord<'_>) -> bool {
    applied.id != other.id
        && applied.target != TargetKind::Participant
        && applied.previous_version.is_some()
        && applied.previous_version == other.previous_version
        && applied.target == other.target
        && applied.conversation_id == other.conversation_id
        && applied.resource_id == other.resource_id
}

impl Run<'_> {
    /// The intents that will get no outcome, since nobody who writes the log lives; `None` where
    /// somebody does.
    pub(super) fn orphans(&mut self) -> Result<Option<Vec<AuditRecord<'static>>>> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        let files: Vec<_> = self.pending.iter().map(|pending| pending.log).collect();
        let found = self.log.unwritten(&files, |log| log.next())?;
        let pending = self.pending.iter();
        match found {
            None => Ok(None),
            Some(Found::End) => Ok(Some(pending.map(|p| p.record.clone()).collect())),
            // An outcome came meanwhile: first things first.
            Some(found) => {
                self.peeked = Some(found);
                Ok(None)
            }
        }
    }

    /// Settles what can be settled. `true` when there is something new to read.
    pub(super) fn settle(&mut self) -> Result<bool> {
        let Some(client) = self.of.settle.clone() else {
            return Ok(false);
        };
        let now = self.of.clock.now();
        if now.saturating_duration_since(self.unknown_since) >= SETTLE_AGAIN {
            self.unknown.clear();
            self.unknown_since = now;
        }
        if self.pending.iter().all(|p| self.is_unknown(&p.record.id)) {
            return Ok(false);
        }
        let Some(orphans) = self.orphans()? else {
            return Ok(self.peeked.is_some());
        };
        // A request may outlive the process that sent it, and what it wrote may not show at once.
        let now = self.of.clock.wall();
        let age =
            |intent: &AuditRecord<'_>| now.duration_since(intent.timestamp).unwrap_or_default();
        let unsettled = orphans
            .into_iter()
            .filter(|intent| !self.is_unknown(&intent.id));
        let (orphans, young): (Vec<_>, Vec<_>) =
            unsettled.partition(|intent| age(intent) >= SETTLE_AFTER);
        if orphans.is_empty() && !self.of.follow {
            let oldest = young.iter().map(age).max().unwrap_or_default();
            let wait = SETTLE_AFTER.saturating_sub(oldest);
            let clock = self.of.clock.clone();
            // The loop sees whether it was cancelled.
            let _ = sleep_unless(clock.as_ref(), wait, Some(self.cancel));
            return Ok(true);
        }
        if orphans.is_empty() {
            return Ok(false);
        }
        let log = AuditFile::open(self.log.path()).map_err(|e| self.unappended(e))?;
        let mut appended = false;
        for intent in orphans {
            if self.cancel.is_cancelled() {
                break;
            }
            let superseded = self
                .pending
                .iter()
                .any(|pending| pending.superseded && pending.record.id == intent.id);
            let verdict = match superseded {
                true => Verdict::NotInPlace {
                    may_have_applied: false,
                },
                false => verdict(&client, &intent)?,
            };
            let outcome = AuditRecord {
                phase: AuditPhase::Outcome,
                timestamp: self.of.clock.wall(),
                settled: true,
                ..intent
            };
            let outcome = match verdict {
                Verdict::InPlace { version } => AuditRecord {
                    status: Status::AlreadyApplied,
                    version: version.map(Into::into),
                    ..outcome
                },
                Verdict::NotInPlace { may_have_applied } => AuditRecord {
                    status: Status::Failed,
                    may_have_applied,
                    ..outcome
                },
                Verdict::Unknown(why) => {
                    log::warn!("what became of write {} is not known: {why}", outcome.id);
                    self.unknown.push((outcome.id.into_owned(), why));
                    continue;
                }
            };
            log.record(&outcome).map_err(|e| self.unappended(e))?;
            self.report.settled += 1;
            appended = true;
        }
        if appended {
            log.flush().map_err(|e| self.unappended(e))?;
        }
        Ok(appended || !young.is_empty() && !self.of.follow)
    }

    fn is_unknown(&self, id: &str) -> bool {
        self.unknown.iter().any(|(known, _)| known == id)
    }

    fn unappended(&self, error: std::io::Error) -> Error {
        super::failed("the audit file", self.log.path(), "appended to", error)
    }
}

fn verdict(client: &Client, intent: &AuditRecord<'_>) -> Result<Verdict> {
    let unknown = |why: &str| Ok(Verdict::Unknown(why.to_owned()));
    let Some(wanted) = &intent.attributes else {
        return unknown("the log holds no values of it");
    };
    let conversation = intent.conversation_id.as_ref();
    let target = match (intent.target, intent.resource_id.as_deref()) {
        (TargetKind::Conversation, _) => Target::conversation(conversation),
        (TargetKind::Secure, _) => Target::secure(conversation),
        (TargetKind::Participant, Some(who)) => {
            Target::participant(conversation, Participant::from(who))
        }
        (TargetKind::Custom, Some(record)) => Target::custom(conversation, record),
        _ => return unknown("the log does not say which participant or record it went to"),
    };
    let now = match client.read(&target) {
        Ok(now) => now,
        // Nobody else's orphan would fare better.
        Err(error) if matches!(error.kind(), ErrorKind::Auth | ErrorKind::Config) => {
            return Err(error);
        }
        Err(error) => return Ok(Verdict::Unknown(error.to_string())),
    };
    // Every write that is applied on top of a version makes another.
    let untouched = intent.previous_version.is_some()
        && now.version.as_deref() == intent.previous_version.as_deref();
    let state = TargetState::with(now.attributes);
    let in_place = state.holds(wanted, &intent.removed_keys) == Some(true);
    Ok(match in_place && !untouched {
        true => Verdict::InPlace {
            version: now.version,
        },
        false => Verdict::NotInPlace {
            may_have_applied: !untouched,
        },
    })
}
