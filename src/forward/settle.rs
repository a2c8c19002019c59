//! Writes whose process died before their outcome was recorded: what became of them.

use std::time::Duration;

use super::failed;
use super::log::Found;
use super::run::{LOOK_EVERY, Run, is_applied, on_one_version, rules_out};
use crate::client::Client;
use crate::error::{ErrorKind, Result};
use crate::report::audit::{AuditFile, AuditPhase, AuditRecord, AuditSink};
use crate::report::receipt::Status;
use crate::store::{Participant, Target, TargetKind, TargetState};
use crate::util::clock::sleep_unless;
use crate::util::sync::Cancel;

/// How old an intent is before what became of it is read.
const SETTLE_AFTER: Duration = Duration::from_secs(3);
/// How long a write that could not be settled is left alone.
const SETTLE_AGAIN: Duration = Duration::from_secs(30);

/// What a read says about a write.
enum Verdict {
    InPlace,
    NotInPlace { may_have_applied: bool },
    Unknown(String),
}

impl Run<'_> {
    /// Looks for writers of the log. Without one, the intents that have no outcome get none.
    pub(super) fn find_orphans(&mut self) -> Result<()> {
        if self.pending.iter().all(|pending| pending.is_orphan()) {
            return Ok(());
        }
        match self.log.unwritten(|log| log.next())? {
            None => {}
            Some(Found::End) => self.orphan_all(false),
            // What was written meanwhile is handled before.
            Some(found) => self.peeked = Some(found),
        }
        Ok(())
    }

    /// None of the intents will get an outcome from its writer.
    pub(super) fn orphan_all(&mut self, by_log: bool) {
        for pending in &mut self.pending {
            if pending.orphaned(by_log) && self.of.follow {
                log::warn!(
                    "the process of write {} (conversation {}) died before its outcome was \
                     recorded",
                    pending.record.id,
                    pending.record.conversation_id
                );
            }
        }
    }

    /// At the end of the log: settles one orphan, so that what is written meanwhile does not wait
    /// for the others. `true` when there may be something to read.
    pub(super) fn settle(&mut self) -> Result<bool> {
        let Some(client) = self.of.settle.clone() else {
            return Ok(false);
        };
        let now = self.of.clock.now();
        if now.saturating_duration_since(self.unknown_since) >= SETTLE_AGAIN {
            self.unknown.clear();
            self.unknown_since = now;
        }
        let Some(intent) = self.unsettled() else {
            return Ok(false);
        };
        let left = self.too_young(&intent);
        match left.is_zero() {
            true => self.settle_one(&client, intent)?,
            // What comes meanwhile is not to wait.
            false if self.of.follow => return Ok(false),
            false => sleep_unless(self.of.clock.as_ref(), left, Some(self.cancel))?,
        }
        Ok(true)
    }

    /// Before what comes next is delivered: settles all orphans that can be.
    pub(super) fn settle_all(&mut self) -> Result<()> {
        let Some(client) = self.of.settle.clone() else {
            return Ok(());
        };
        const SLOW: Duration = Duration::from_secs(1);
        let unknown = self.unknown.len();
        while let Some(intent) = self.unsettled() {
            let left = self.too_young(&intent).min(LOOK_EVERY);
            sleep_unless(self.of.clock.as_ref(), left, Some(self.cancel))?;
            let (begun, before) = (self.of.clock.now(), self.unknown.len());
            self.settle_one(&client, intent)?;
            // The platform is out of reach, perhaps: nothing is to wait for that.
            let is_slow = self.of.clock.now().saturating_duration_since(begun) >= SLOW;
            let more = self.unknown.len().saturating_sub(before);
            if more > 0 && is_slow || self.unknown.len() > unknown + 3 {
                break;
            }
        }
        Ok(())
    }

    /// The first orphan that was not tried lately.
    fn unsettled(&self) -> Option<AuditRecord> {
        let is_unknown = |id: &str| self.unknown.iter().any(|(known, _)| known == id);
        let mut pending = self.pending.iter();
        let found = pending.find(|one| one.is_orphan() && !is_unknown(&one.record.id));
        found.map(|one| one.record.clone())
    }

    /// How long to wait: a request may outlive the process that sent it, and what it wrote may not
    /// show at once. A record that is dated in the future waits no longer than others.
    fn too_young(&mut self, intent: &AuditRecord) -> Duration {
        let now = self.of.clock.now();
        let mut pending = self.pending.iter_mut();
        let seen = pending.find(|one| one.record.id == intent.id);
        let since = seen.map_or(now, |one| *one.since.get_or_insert(now));
        let age = self.of.clock.wall().duration_since(intent.timestamp);
        let age = age
            .unwrap_or_default()
            .max(now.saturating_duration_since(since));
        SETTLE_AFTER.saturating_sub(age)
    }

    fn settle_one(&mut self, client: &Client, intent: AuditRecord) -> Result<()> {
        let verdict = match self.is_superseded(&intent.id) {
            true => Verdict::Unknown(String::new()),
            false => verdict(client, &intent, self.cancel)?,
        };
        // What was written since the log was read to here, which the verdict may be about.
        let in_flight = self
            .pending
            .iter()
            .map(|one| (one.is_orphan(), &one.record));
        let mut rivals: Vec<String> = in_flight
            .filter(|(orphan, record)| !orphan && on_one_version(record, &intent))
            .map(|(_, record)| record.id.to_string())
            .collect();
        let mut outcome = None;
        let (pending, cancel) = (&mut self.pending, self.cancel);
        self.log.ahead(cancel, |record| {
            match record.phase {
                AuditPhase::Outcome if record.id == intent.id => {
                    outcome = Some(record.clone());
                }
                AuditPhase::Intent if on_one_version(record, &intent) => {
                    rivals.push(record.id.to_string());
                }
                AuditPhase::Outcome => rivals.retain(|rival| *rival != record.id),
                _ => {}
            }
            for one in pending.iter_mut() {
                one.superseded |= rules_out(record, &one.record);
            }
        })?;
        if let Some(outcome) = outcome {
            // Somebody else settled it, or this one did before it died.
            return self.settled(&outcome);
        }
        let verdict = match verdict {
            _ if self.is_superseded(&intent.id) => Verdict::NotInPlace {
                may_have_applied: false,
            },
            Verdict::InPlace if !rivals.is_empty() => {
                Verdict::Unknown("another write of the same values is in flight".to_owned())
            }
            verdict => verdict,
        };
        let (status, may_have_applied) = match verdict {
            Verdict::InPlace => (Status::AlreadyApplied, false),
            Verdict::NotInPlace { may_have_applied } => (Status::Failed, may_have_applied),
            Verdict::Unknown(why) => {
                log::warn!("what became of write {} is not known: {why}", intent.id);
                self.unknown.push((intent.id, why));
                return Ok(());
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
        self.settled(&outcome)
    }

    /// Delivers a settled write at once, so that its event keeps its place. Its outcome is read
    /// later, and not delivered again.
    fn settled(&mut self, outcome: &AuditRecord) -> Result<()> {
        if is_applied(outcome) {
            self.deliver(outcome)?;
            self.told.push(outcome.id.to_string());
            for pending in &mut self.pending {
                // One of two writes of the same values went through, and its event is delivered.
                pending.superseded |= on_one_version(outcome, &pending.record)
                    && outcome.attributes == pending.record.attributes
                    && outcome.removed_keys == pending.record.removed_keys;
            }
        }
        self.decided(outcome);
        self.forget(&outcome.id);
        self.moved = true;
        Ok(())
    }

    /// What was not known while another write on the same version was in flight can be found out
    /// now.
    pub(super) fn decided(&mut self, outcome: &AuditRecord) {
        let rivals = self.pending.iter().map(|one| &one.record);
        for rival in rivals.filter(|record| on_one_version(outcome, record)) {
            self.unknown.retain(|(id, _)| *id != rival.id);
        }
    }

    fn is_superseded(&self, id: &str) -> bool {
        let mut pending = self.pending.iter();
        pending.any(|one| one.superseded && one.record.id == id)
    }
}

fn verdict(client: &Client, intent: &AuditRecord, cancel: &Cancel) -> Result<Verdict> {
    let unknown = |why: &str| Ok(Verdict::Unknown(why.to_owned()));
    let Some(wanted) = &intent.attributes else {
        return unknown("the log holds no values of it");
    };
    let conversation = intent.conversation_id.as_str();
    let target = match (intent.target, intent.resource_id.as_deref()) {
        (TargetKind::Conversation, _) => Target::conversation(conversation),
        (TargetKind::Secure, _) => Target::secure(conversation),
        (TargetKind::Participant, Some(who)) => {
            Target::participant(conversation, Participant::from(who))
        }
        (TargetKind::Custom, Some(record)) => Target::custom(conversation, record),
        _ => return unknown("the log does not say which participant or record it went to"),
    };
    let now = match client.read_once(&target, cancel) {
        Ok(now) => now,
        // The others could not be read, either.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Auth | ErrorKind::Config | ErrorKind::Cancelled
            ) =>
        {
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
        true => Verdict::InPlace,
        false => Verdict::NotInPlace {
            may_have_applied: !untouched,
        },
    })
}
