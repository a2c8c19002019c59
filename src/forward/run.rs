//! One run of a forwarder: reads, delivers, remembers.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use ::log::warn;
use serde::Serialize;

use super::cursor::{Cursor, Mark, Pending};
use super::log::{self, Found, Log};
use super::sink::{Envelope, ForwardReport, Orphan, Undelivered};
use super::{Forwarder, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::parts::{is_torn, private};
use crate::report::audit::{AuditPhase, AuditRecord};
use crate::report::receipt::Status;
use crate::session::retry::{Budget, Caller, Wait};
use crate::store::TargetKind;
use crate::util::clock::sleep_unless;
use crate::util::random::Seeds;
use crate::util::sync::Cancel;

/// The cursor is written after this many deliveries at the latest, or this much time.
const SAVE_EVERY: u32 = 100;
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// How often a follower looks for more at the end of the log.
const POLL: Duration = Duration::from_millis(100);
/// How often a run looks for writers, while there are intents without outcome.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often progress is told during a long wait.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// One run of a forwarder. Dropping it writes nothing: a crash is no different.
pub(super) struct Run<'r> {
    pub(super) of: &'r mut Forwarder,
    pub(super) cancel: &'r Cancel,
    pub(super) log: Log,
    /// Read while the lock was held, and still to be handled.
    pub(super) peeked: Option<Found>,
    pub(super) pending: Vec<Pending>,
    /// The settled and delivered writes whose outcome is still to be read.
    pub(super) told: Vec<String>,
    pub(super) report: ForwardReport,
    /// Deliveries since the cursor was written.
    unsaved: u32,
    pub(super) moved: bool,
    /// This run has written the cursor.
    is_begun: bool,
    saved_at: Instant,
    /// When the run last looked for writers.
    looked_at: Option<Instant>,
    /// When the record that waits for delivery was made.
    waiting: Option<SystemTime>,
    /// Orphans that could not be settled, with the reason.
    pub(super) unknown: Vec<(String, String)>,
    pub(super) unknown_since: Instant,
    seeds: Seeds,
}

/// Runs a forwarder, whose cursor is locked.
pub(super) fn run(of: &mut Forwarder, cancel: &Cancel) -> Result<ForwardReport> {
    check_dead_letters(&of.dead_letters)?;
    let mut known = Cursor::read(&of.cursor)?;
    let Some(log) = open(of, &mut known, cancel)? else {
        return Ok(ForwardReport::default());
    };
    let now = of.clock.now();
    let (pending, told) = known
        .map(|cursor| (cursor.pending, cursor.told))
        .unwrap_or_default();
    let mut run = Run {
        report: ForwardReport::default(),
        pending,
        told,
        log,
        peeked: None,
        unsaved: 0,
        moved: false,
        is_begun: false,
        saved_at: now,
        looked_at: None,
        waiting: None,
        unknown: Vec::new(),
        unknown_since: now,
        seeds: Seeds::new(None),
        cancel,
        of,
    };
    let ended = run.until_done();
    let saved = run.save();
    if ended.is_ok() {
        // A cancelled run has not looked at what is left.
        let _ = run.find_orphans();
    }
    run.tell();
    let report = run.report;
    ended.and(saved)?;
    Ok(report)
}

/// Opens the log, whose first writer may come later; `None` when that was cancelled.
fn open(of: &Forwarder, known: &mut Option<Cursor>, cancel: &Cancel) -> Result<Option<Log>> {
    loop {
        match Log::open(&of.log, known.as_ref())? {
            None if !of.follow => return Err(log::unopened(&of.log)),
            None => {}
            log => return Ok(log),
        }
        if known.is_none() {
            // What comes from now on is read, also when it is renamed before it is seen.
            let left = log::parts_before(&of.log, false)?;
            known
                .insert(Cursor::at(Mark::default(), left))
                .write(&of.cursor)?;
        }
        if sleep_unless(of.clock.as_ref(), POLL, Some(cancel)).is_err() {
            return Ok(None);
        }
    }
}

/// Refuses to append dead letters to a file of another kind.
fn check_dead_letters(path: &Path) -> Result<()> {
    const BEGINNING: &[u8] = b"{\"record\":";
    // A pipe or a device is only written to.
    if !std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(BEGINNING.len() as u64).read_to_end(&mut bytes));
    read.map_err(|e| failed("the dead letters", path, "read", e))?;
    match BEGINNING.starts_with(&bytes) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} holds something else than dead letters: give another file",
                path.display()
            ),
        )),
    }
}

impl Run<'_> {
    fn until_done(&mut self) -> Result<()> {
        while !self.cancel.is_cancelled() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == ErrorKind::Cancelled => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and handles one line, or waits for more; `false` at the end.
    fn step(&mut self) -> Result<bool> {
        // The cursor stands behind what is handled now only when that is done.
        let found = match self.peeked.take() {
            Some(found) => found,
            None => self.log.next()?,
        };
        match found {
            Found::Record(record) => self.handle(*record)?,
            Found::Torn { offset, bytes } => {
                self.report.torn += 1;
                warn!(
                    "{}: the {bytes} bytes at offset {offset} are no whole record: skipped",
                    self.log.path().display()
                );
            }
            Found::End => return self.at_the_end(),
        }
        self.moved |= self.log.passed();
        let late = || self.of.clock.now().saturating_duration_since(self.saved_at);
        if self.unsaved >= SAVE_EVERY || self.unsaved > 0 && late() >= SAVE_AFTER {
            self.save()?;
            self.tell();
        }
        Ok(true)
    }

    fn at_the_end(&mut self) -> Result<bool> {
        self.waiting = None;
        self.moved |= self.log.passed();
        self.begin()?;
        self.save()?;
        let now = self.of.clock.now();
        let is_due = |at| now.saturating_duration_since(at) >= LOOK_EVERY;
        if !self.of.follow || self.looked_at.is_none_or(is_due) {
            self.looked_at = Some(now);
            self.find_orphans()?;
        }
        if self.peeked.is_some() || self.settle()? {
            return Ok(true);
        }
        self.tell();
        if !self.of.follow {
            return Ok(false);
        }
        sleep_unless(self.of.clock.as_ref(), POLL, Some(self.cancel))?;
        Ok(true)
    }

    fn handle(&mut self, record: AuditRecord) -> Result<()> {
        match record.phase {
            AuditPhase::Opened => {
                self.orphan_all(true);
                return self.settle_all();
            }
            AuditPhase::Intent => {
                // Before anything is delivered, rather than at its outcome.
                self.check_values(&record)?;
                self.forget(&record.id);
                self.pending.push(Pending::new(record));
                return Ok(());
            }
            AuditPhase::Outcome => {}
        }
        if let Some(at) = self.told.iter().position(|id| *id == record.id) {
            self.told.remove(at);
        } else if is_applied(&record) {
            self.deliver(&record)?;
        }
        for pending in &mut self.pending {
            pending.superseded |= rules_out(&record, &pending.record);
        }
        self.decided(&record);
        self.forget(&record.id);
        Ok(())
    }

    /// Takes a write off the intents without outcome.
    pub(super) fn forget(&mut self, id: &str) {
        self.pending.retain(|pending| pending.record.id != id);
    }

    fn check_values(&self, record: &AuditRecord) -> Result<()> {
        if record.attributes.is_some() || record.target == TargetKind::Secure {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: the record at offset {} holds no values: write the log with audit_values \
                 (--audit-values). To go on without what was written so far, rename the log, so \
                 that a new one is begun, and remove the cursor {}",
                self.log.path().display(),
                self.log.start(),
                self.of.cursor.display()
            ),
        ))
    }

    pub(super) fn deliver(&mut self, record: &AuditRecord) -> Result<()> {
        self.check_values(record)?;
        let keys_only;
        let record = match record.target {
            TargetKind::Secure if !self.of.secure_values => {
                keys_only = AuditRecord {
                    attributes: None,
                    ..record.clone()
                };
                &keys_only
            }
            _ => record,
        };
        self.begin()?;
        self.waiting = Some(record.timestamp);
        let body = record.webhook_payload().to_string();
        let envelope = Envelope {
            id: &record.id,
            conversation_id: &record.conversation_id,
            body: body.as_bytes(),
        };
        let (mut attempts, mut failures) = (0, 0);
        let mut since = None;
        let mut budget = Budget::new(
            self.of.policy,
            Caller::Single,
            Duration::ZERO,
            self.seeds.next(),
        );
        loop {
            attempts += 1;
            let (error, answer, is_final) = match self.of.sink.hand_over(&envelope) {
                Ok(()) => {
                    self.report.delivered += 1;
                    self.unsaved += 1;
                    return Ok(());
                }
                Err(Undelivered::Closed(error)) => return Err(error),
                Err(Undelivered::Later { error, answer }) => {
                    failures += 1;
                    let most = self.of.max_attempts;
                    (error, answer, most.is_some_and(|most| failures >= most))
                }
                Err(Undelivered::Unavailable { error, answer }) => (error, answer, false),
                Err(Undelivered::Never { error, answer }) => (error, answer, true),
            };
            if is_final {
                warn!("event {} goes to the dead letters: {error}", record.id);
                self.bury(record, &error, &answer)?;
                self.report.dead += 1;
                self.unsaved += 1;
                return Ok(());
            }
            let asked = error.retry_after();
            let pause = match asked {
                Some(_) => Wait::Throttled {
                    retry_after: asked,
                    limited: true,
                },
                None => Wait::Backoff { attempts },
            };
            let now = self.of.clock.now();
            // Without a deadline there is always a wait.
            let mut delay = budget.delay(pause, now).unwrap_or(POLL);
            let since = *since.get_or_insert(now);
            if let Some(most) = self.of.max_outage {
                let left = most.saturating_sub(now.saturating_duration_since(since));
                if left.is_zero() || asked.is_some_and(|asked| asked > left) {
                    self.report.gave_up = true;
                    return Err(outage(&error, most));
                }
                delay = delay.min(left);
            }
            warn!("event {} is sent again in {delay:?}: {error}", record.id);
            // The wait may be long: what was delivered before is remembered first.
            if self.unsaved > 0 {
                self.save()?;
            }
            self.tell();
            while !delay.is_zero() {
                let step = delay.min(TELL_EVERY);
                sleep_unless(self.of.clock.as_ref(), step, Some(self.cancel))?;
                delay -= step;
                self.tell();
            }
            self.report.repeated += 1;
        }
    }

    /// Writes the cursor before this run's first delivery. So events are not sent again and again
    /// where it cannot be written; and what is renamed from now on is read.
    fn begin(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.moved = true;
            self.save()?;
        }
        Ok(())
    }

    fn bury(&self, record: &AuditRecord, error: &Error, answer: &str) -> Result<()> {
        #[derive(Serialize)]
        struct DeadLetter<'a> {
            record: &'a AuditRecord,
            status: Option<u16>,
            body: &'a str,
            error: String,
        }
        let letter = DeadLetter {
            record,
            status: error.http_status(),
            body: answer,
            error: error.to_string(),
        };
        let path = &self.of.dead_letters;
        let write = || -> std::io::Result<()> {
            let is_file = std::fs::metadata(path).map_or(true, |found| found.is_file());
            let mut options = private();
            options.read(is_file).append(true).create(true);
            let mut file = options.open(path)?;
            let mut line = Vec::new();
            if is_file && is_torn(&file, file.metadata()?.len())? {
                line.push(b'\n');
            }
            serde_json::to_writer(&mut line, &letter)?;
            line.push(b'\n');
            file.write_all(&line)?;
            match is_file {
                true => file.sync_data(),
                false => Ok(()),
            }
        };
        write().map_err(|e| failed("the dead letters", path, "written", e))
    }

    /// Writes the cursor, where it moved.
    fn save(&mut self) -> Result<()> {
        if !self.moved {
            return Ok(());
        }
        let cursor = Cursor {
            pending: self.pending.clone(),
            told: self.told.clone(),
            ..self.log.cursor()
        };
        cursor.write(&self.of.cursor)?;
        self.moved = false;
        self.unsaved = 0;
        self.saved_at = self.of.clock.now();
        Ok(())
    }

    fn tell(&mut self) {
        self.report.pending = self.pending.len() as u64;
        let orphans = self.pending.iter().filter(|pending| pending.is_orphan());
        self.report.orphans = orphans.map(|one| self.orphan(&one.record)).collect();
        let age = |since| self.of.clock.wall().duration_since(since).ok();
        self.report.lag = self.waiting.and_then(age).unwrap_or_default();
        (self.of.progress)(&self.report);
    }

    fn orphan(&self, record: &AuditRecord) -> Orphan {
        let known = self.unknown.iter().find(|(id, _)| *id == record.id);
        Orphan {
            id: record.id.clone(),
            conversation_id: record.conversation_id.clone(),
            target: record.target,
            timestamp: record.timestamp,
            why: match known {
                Some((_, why)) => why.clone(),
                None => "its process died before the outcome was recorded".to_owned(),
            },
        }
    }
}

/// The error of a receiver that took nothing for too long.
fn outage(error: &Error, most: Duration) -> Error {
    let seconds = most.as_secs_f64();
    let text = format!("the receiver took no event for {seconds} s, the longest outage: {error}");
    let of_status = |new: Error| match error.http_status() {
        Some(status) => new.with_http_status(status),
        None => new,
    };
    of_status(Error::new(error.kind(), text)).with_transient(true)
}

pub(super) fn is_applied(outcome: &AuditRecord) -> bool {
    matches!(outcome.status, Status::Applied | Status::AlreadyApplied)
}

/// True if both go to the same target, on top of the same version.
pub(super) fn on_one_version(one: &AuditRecord, other: &AuditRecord) -> bool {
    one.id != other.id
        && one.target != TargetKind::Participant
        && one.previous_version.is_some()
        && one.previous_version == other.previous_version
        && one.target == other.target
        && one.conversation_id == other.conversation_id
        && one.resource_id == other.resource_id
}

/// True if an outcome shows that another write was not applied: of writes on top of one version a
/// lock lets only one through. One that was found in place may be the other one's.
pub(super) fn rules_out(outcome: &AuditRecord, other: &AuditRecord) -> bool {
    outcome.status == Status::Applied && on_one_version(outcome, other)
}
