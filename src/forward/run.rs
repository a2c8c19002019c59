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
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often progress is told during a long wait.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// One run of a forwarder. Dropping it writes nothing: a crash is no different.
pub(super) struct Run<'r> {
    pub(super) of: &'r mut Forwarder,
    pub(super) cancel: &'r Cancel,
    pub(super) log: Log,
    pub(super) pending: Vec<Pending>,
    pub(super) report: ForwardReport,
    /// Deliveries since the cursor was written.
    unsaved: u32,
    /// The cursor has to be written: it moved, or this run has not written it yet.
    moved: bool,
    is_begun: bool,
    saved_at: Instant,
    /// When the run last looked for writers.
    looked_at: Option<Instant>,
    /// When the record that waits for delivery was made.
    waiting: Option<SystemTime>,
    seeds: Seeds,
}

/// Runs a forwarder, whose cursor is locked.
pub(super) fn run(of: &mut Forwarder, cancel: &Cancel) -> Result<ForwardReport> {
    check_dead_letters(&of.dead_letters)?;
    let (mut mark, pending) = match Cursor::read(&of.cursor)? {
        Some(cursor) => (Some(cursor.mark), cursor.pending),
        None => (None, Vec::new()),
    };
    // The first writer of the log may come later.
    let log = loop {
        match Log::open(&of.log, mark.as_ref())? {
            None if !of.follow => return Err(log::unopened(&of.log)),
            None => {}
            Some(log) => break log,
        }
        if mark.is_none() {
            // What comes from now on is read, also when it is renamed before it is seen.
            let beginning = Cursor::new(mark.insert(Mark::default()).clone(), Vec::new());
            beginning.write(&of.cursor)?;
        }
        if sleep_unless(of.clock.as_ref(), POLL, Some(cancel)).is_err() {
            return Ok(ForwardReport::default());
        }
    };
    let mut run = Run {
        report: ForwardReport::default(),
        pending,
        log,
        unsaved: 0,
        moved: true,
        is_begun: false,
        saved_at: of.clock.now(),
        looked_at: None,
        waiting: None,
        seeds: Seeds::new(None),
        cancel,
        of,
    };
    let ended = run.until_done();
    let saved = match run.is_begun {
        true => run.save(),
        false => Ok(()),
    };
    run.tell();
    let report = run.report;
    ended.and(saved)?;
    Ok(report)
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
        match self.log.next()? {
            Found::End => self.at_the_end(),
            found => self.handle(found),
        }
    }

    fn handle(&mut self, found: Found) -> Result<bool> {
        match found {
            Found::Record(record) => self.handle_record(*record)?,
            Found::Torn { offset, bytes } => {
                self.report.torn += 1;
                warn!(
                    "{}: the {bytes} bytes at offset {offset} are no whole record: skipped",
                    self.log.path().display()
                );
            }
            Found::End => {}
        }
        // The cursor moves behind what was read when that is done.
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
        self.save()?;
        let now = self.of.clock.now();
        let is_due = |at| now.saturating_duration_since(at) >= LOOK_EVERY;
        if !self.of.follow || self.looked_at.is_none_or(is_due) {
            self.looked_at = Some(now);
            if let Some(found) = self.find_orphans()? {
                return self.handle(found);
            }
        }
        if self.settle()? {
            return Ok(true);
        }
        self.tell();
        if !self.of.follow {
            return Ok(false);
        }
        sleep_unless(self.of.clock.as_ref(), POLL, Some(self.cancel))?;
        Ok(true)
    }

    fn handle_record(&mut self, record: AuditRecord) -> Result<()> {
        match record.phase {
            AuditPhase::Opened => self.orphan_all(true),
            AuditPhase::Intent => {
                // Before anything is delivered, rather than at its outcome.
                self.check_values(&record)?;
                self.pending
                    .retain(|pending| pending.record.id != record.id);
                self.pending.push(Pending::new(record));
            }
            AuditPhase::Outcome => {
                if is_applied(&record) {
                    self.deliver(&record)?;
                }
                self.pending
                    .retain(|pending| pending.record.id != record.id);
                for pending in &mut self.pending {
                    pending.superseded |= rules_out(&record, &pending.record);
                }
            }
        }
        Ok(())
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

    fn deliver(&mut self, record: &AuditRecord) -> Result<()> {
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
        if !self.is_begun {
            // Before the first delivery: what cannot be remembered would be sent at every start.
            self.save()?;
        }
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
        let cursor = Cursor::new(self.log.done.clone(), self.pending.clone());
        cursor.write(&self.of.cursor)?;
        (self.moved, self.is_begun, self.unsaved) = (false, true, 0);
        self.saved_at = self.of.clock.now();
        Ok(())
    }

    fn tell(&mut self) {
        self.report.pending = self.pending.len() as u64;
        let orphans = self.pending.iter().filter(|pending| pending.is_orphan());
        self.report.orphans = orphans.map(orphan).collect();
        let age = |since| self.of.clock.wall().duration_since(since).ok();
        self.report.lag = self.waiting.and_then(age).unwrap_or_default();
        (self.of.progress)(&self.report);
    }
}

fn orphan(pending: &Pending) -> Orphan {
    let record = &pending.record;
    let why = match &pending.unknown {
        Some((_, why)) => why.as_str(),
        None => "its process died before the outcome was recorded",
    };
    Orphan {
        id: record.id.clone(),
        conversation_id: record.conversation_id.clone(),
        target: record.target,
        timestamp: record.timestamp,
        why: why.to_owned(),
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

fn is_applied(outcome: &AuditRecord) -> bool {
    matches!(outcome.status, Status::Applied | Status::AlreadyApplied)
}

/// True if an outcome shows that another write was not applied, or needs no event of its own: of
/// writes on top of one version a lock lets only one through. Values that the writer found in place
/// may be the other write's. Where both died and wrote the same values, one event is enough.
fn rules_out(outcome: &AuditRecord, other: &AuditRecord) -> bool {
    let is_the_same =
        outcome.attributes == other.attributes && outcome.removed_keys == other.removed_keys;
    outcome.target != TargetKind::Participant
        && outcome.previous_version.is_some()
        && outcome.previous_version == other.previous_version
        && outcome.target == other.target
        && outcome.conversation_id == other.conversation_id
        && outcome.resource_id == other.resource_id
        && match outcome.status {
            Status::Applied => true,
            Status::AlreadyApplied => outcome.settled && is_the_same,
            _ => false,
        }
}
