//! The audit trail in a file that others may read, rotate and share: the log that a
//! [`Forwarder`](https://docs.rs/genesys-attributes/latest/genesys_attributes/struct.Forwarder.html)
//! reads.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::report::audit::parts::{
    Head, Part, Place, id_of, is_torn, lock_of, lock_shared, open_lock, parts, private,
    sync_folder, try_lock,
};
use crate::report::audit::{AuditPhase, AuditRecord, AuditSink};
use crate::report::receipt::Status;
use crate::util::clock::{Clock, SystemClock};
use crate::util::process::Process;
use crate::util::random::unique_name;
use crate::util::sync::lock;
use crate::values::kind::TargetKind;

/// An [`AuditSink`] that appends to a file: one JSON line a record, in one write, before the update
/// goes on.
///
/// - What is written survives the end of the process; a power loss only with
///   [`sync`](AuditFile::sync).
/// - A new file is readable by its owner only (0600 on Unix), since records may hold values. A file
///   that holds something else than audit records is refused.
/// - The next record after the file was renamed or removed (a rotation) goes to a new file of the
///   old name, and may be at the end of the old one too. The first record of each file says which
///   part of the log it is (`log` and `part`). One that is copied and cut (`copytruncate`) cannot
///   be forwarded from.
/// - Several processes may append to one file. A line that a process could not finish does not
///   swallow the next one, which begins a line of its own.
/// - A writer holds a shared lock on the file of the same name with `.lock` after it, by which a
///   reader sees whether an intent without outcome may still get one. A writer that begins alone
///   after a crash appends a record of the phase [`Opened`](AuditPhase::Opened): an intent before
///   it that has no outcome yet gets none from its writer.
/// - A forked child must open a file of its own: records to its parent's are errors there.
/// - A pipe or a device is only written to. A pipe without a reader, or whose reader does not read
///   for 5 s, is a failing sink.
///
/// ```
/// use genesys_attributes::audit::AuditFile;
/// use genesys_attributes::{Client, Credentials, Region};
///
/// # let path = std::env::temp_dir().join(format!("audit-file-doc-{}.jsonl", std::process::id()));
/// let log = AuditFile::open(&path)?;
/// let client = Client::builder(Region::parse("eu-west-1")?, Credentials::new("id", "secret"))
///     .audit(log)
///     .audit_values(true)
///     .build()?;
/// # std::fs::remove_file(&path)?;
/// # std::fs::remove_file(path.with_extension("jsonl.lock"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AuditFile {
    process: Process,
    path: PathBuf,
    sync: bool,
    /// Says where it begins to write alone.
    announces: bool,
    /// `None` before the first record of a file that is opened later.
    state: Mutex<Option<Open>>,
}

struct Open {
    file: File,
    /// The lock and the id of the log; `None` for a pipe or a device.
    log: Option<(File, String)>,
    /// Which part of the log the file is.
    part: u64,
    /// The file has its first record.
    is_begun: bool,
    /// Where the last line of this process ends; `None` when that is not known.
    end: Option<u64>,
    /// The next line begins with a line end.
    torn: bool,
    /// The reader of the pipe has stopped reading.
    stalled: bool,
    /// When the file was last seen to have its name.
    looked: Option<Instant>,
    /// The file's name is on the disk as well.
    is_named: bool,
}

/// How long the file's name is believed, so that most records need one look at it.
const LOOK_AFTER: Duration = Duration::from_millis(10);
/// How long a record waits for the reader of a pipe.
const PIPE_WAIT: Duration = match cfg!(test) {
    true => Duration::from_millis(20),
    false => Duration::from_secs(5),
};
const PIPE_STEP: Duration = Duration::from_millis(5);

impl AuditFile {
    /// Opens the file to append to, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// Those of opening it and the `.lock` file beside it; `InvalidInput` where it holds something
    /// else than audit records; `TimedOut` where another program keeps the log locked.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<AuditFile> {
        let file = AuditFile::lazy(path);
        *lock(&file.state) = Some(Open::log(&file.path, true)?);
        Ok(file)
    }

    /// The file, to be opened with its first record: a client that only reads makes none.
    ///
    /// Where it cannot be opened, the records fail.
    pub fn lazy(path: impl Into<PathBuf>) -> AuditFile {
        AuditFile {
            process: Process::current(),
            path: path.into(),
            sync: false,
            announces: true,
            state: Mutex::new(None),
        }
    }

    /// Refuses what no record can be written to, and makes nothing: a file of another kind, a
    /// folder, a file in a folder that is not there, a pipe without a reader.
    pub(crate) fn check(&self) -> io::Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(found) if found.is_file() => Open::foreign(&Head::open(&self.path)?.1),
            Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => {
                *lock(&self.state) = Some(Open::stream(&self.path)?);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
                folder.map_or(Ok(()), |folder| std::fs::metadata(folder).map(drop))
            }
            Err(e) => Err(e),
        }
    }

    /// A file for outcomes that were found out about other writers.
    #[cfg(feature = "forward")]
    pub(crate) fn of_others(path: &Path) -> AuditFile {
        AuditFile {
            announces: false,
            ..AuditFile::lazy(path)
        }
    }

    /// Hands each record over to the disk before the update goes on, so that it survives a power
    /// loss. It costs the time of two syncs an update.
    #[must_use = "it gives the file back"]
    pub fn sync(mut self, each_record: bool) -> AuditFile {
        self.sync = each_record;
        self
    }
}

impl Open {
    /// Joins the writers of a log.
    fn log(path: &Path, announces: bool) -> io::Result<Open> {
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Open::stream(path);
        }
        // A foreign file is refused before anything is made beside it.
        let known = match Head::open(path) {
            Ok((_, head)) => {
                Open::foreign(&head)?;
                head.place.map(|place| place.log)
            }
            Err(_) => None,
        };
        let mut lock = open_lock(path).map_err(|e| {
            let advice = "the folder of an audit file must be writable";
            named(e, &lock_of(path), advice)
        })?;
        let is_alone = try_lock(&lock);
        if !is_alone {
            lock_shared(&lock)?;
        }
        let id = known.or_else(|| id_of(path)).unwrap_or_else(unique_name);
        if id_of(path).as_ref() != Some(&id) {
            lock.set_len(0)?;
            lock.write_all(id.as_bytes())?;
        }
        let mut open = Open::at(path, (lock.try_clone()?, id), 0)?;
        if is_alone {
            if announces && open.may_hold_orphans()? {
                open.write(path, &line(&opened())?, false)?;
            }
            // No update of this process is in flight yet, so others may hold it for a moment.
            lock.unlock()?;
            lock_shared(&lock)?;
        }
        Ok(open)
    }

    /// Opens the part of the log that has the log's name, which comes after the part `after`.
    fn at(path: &Path, log: (File, String), after: u64) -> io::Result<Open> {
        let file = private().read(true).append(true).create(true).open(path)?;
        let head = Head::of(&file)?;
        Open::foreign(&head)?;
        let part = match head.place {
            Some(place) => place.part,
            None => {
                let parts = parts(path, Some(&log.1))?;
                let last = parts.iter().map(Part::number).max();
                last.unwrap_or(0).max(after) + 1
            }
        };
        let end = file.metadata()?.len();
        Ok(Open {
            torn: is_torn(&file, end)?,
            end: Some(end),
            is_begun: head.began.is_some(),
            part,
            log: Some(log),
            file,
            stalled: false,
            looked: None,
            is_named: false,
        })
    }

    fn foreign(head: &Head) -> io::Result<()> {
        let problem = "it holds something else than audit records: give another file";
        match head.is_foreign {
            true => Err(io::Error::new(io::ErrorKind::InvalidInput, problem)),
            false => Ok(()),
        }
    }

    /// Opens a pipe or a device, and waits a moment for the reader of a pipe.
    fn stream(path: &Path) -> io::Result<Open> {
        let mut options = File::options();
        options.write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
        let mut waited = Duration::ZERO;
        let file = loop {
            match options.open(path) {
                Err(e) if is_unread(&e) && waited < PIPE_WAIT => {
                    SystemClock.sleep(PIPE_STEP);
                    waited += PIPE_STEP;
                }
                Err(e) if is_unread(&e) => {
                    return Err(named(
                        e,
                        path,
                        "no program reads the pipe: start its reader first",
                    ));
                }
                opened => break opened?,
            }
        };
        Ok(Open {
            file,
            log: None,
            part: 0,
            is_begun: true,
            end: None,
            torn: false,
            stalled: false,
            looked: None,
            is_named: true,
        })
    }

    /// Writes a line, which is given with a line end before it as well.
    fn write(&mut self, path: &Path, line: &[u8], sync: bool) -> io::Result<()> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let now = SystemClock.now();
            let is_seen = |at| now.saturating_duration_since(at) < LOOK_AFTER;
            if !self.looked.is_some_and(is_seen) && self.length(path)?.is_none() {
                self.go_on(path)?;
            }
            let line = self.placed(line)?;
            let bytes = line.get(usize::from(!self.torn)..).unwrap_or_default();
            let expected = self.end.map(|end| end + bytes.len() as u64);
            // In case that it fails half-way.
            let began_anew = std::mem::replace(&mut self.torn, true);
            self.end = None;
            self.write_all(bytes)?;
            self.torn = false;
            self.is_begun = true;
            if self.log.is_none() {
                return Ok(());
            }
            if sync {
                self.file.sync_data()?;
                if !std::mem::replace(&mut self.is_named, true) {
                    sync_folder(path)?;
                }
            }
            let Some(length) = self.length(path)? else {
                // A reader may have read the old file to its end already: the record is written
                // again, into the new file, and may be read twice.
                self.go_on(path)?;
                continue;
            };
            self.looked = Some(now);
            let mut end = length;
            if expected != Some(length) {
                end = self.file.stream_position()?;
                let start = end.saturating_sub(bytes.len() as u64);
                // Another process died in the middle of a line, which swallowed this one: it is
                // written again, on a line of its own.
                if !began_anew && is_torn(&self.file, start)? {
                    continue;
                }
            }
            self.end = Some(end);
            return Ok(());
        }
        Ok(())
    }

    /// The first record of a file says which part of the log the file is.
    fn placed<'l>(&self, line: &'l [u8]) -> io::Result<Cow<'l, [u8]>> {
        let (Some((_, id)), false) = (&self.log, self.is_begun) else {
            return Ok(Cow::Borrowed(line));
        };
        let place = Place {
            log: id.clone(),
            part: self.part,
        };
        let mut record = line.strip_suffix(b"}\n").unwrap_or(line).to_vec();
        let place = serde_json::to_vec(&place)?;
        record.push(b',');
        record.extend_from_slice(place.get(1..).unwrap_or_default());
        record.push(b'\n');
        Ok(Cow::Owned(record))
    }

    /// Opens the file that has the log's name now.
    fn go_on(&mut self, path: &Path) -> io::Result<()> {
        if let Some((lock, id)) = &self.log {
            // A file that was renamed without a record is no part.
            let after = self.part.saturating_sub(u64::from(!self.is_begun));
            *self = Open::at(path, (lock.try_clone()?, id.clone()), after)?;
        }
        Ok(())
    }

    /// The length of the file; `None` if it was renamed: the log's name leads to another file, or to
    /// none. A pipe has no length.
    fn length(&self, path: &Path) -> io::Result<Option<u64>> {
        if self.log.is_none() {
            return Ok(Some(0));
        }
        let own = self.file.metadata()?;
        #[cfg(unix)]
        let is_own = {
            use std::os::unix::fs::MetadataExt;
            let of = |found: &std::fs::Metadata| (found.dev(), found.ino());
            std::fs::metadata(path).is_ok_and(|found| of(&found) == of(&own))
        };
        #[cfg(not(unix))]
        let is_own = {
            let first = Head::of(&self.file)?.first;
            Head::open(path).is_ok_and(|(_, found)| found.first == first)
        };
        Ok(is_own.then_some(own.len()))
    }

    /// Writes to a file or a pipe; a pipe that stays full is an error.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    self.stalled = false;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.stalled || waited >= PIPE_WAIT {
                        self.stalled = true;
                        let problem = "the reader of the pipe does not read";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                    }
                    SystemClock.sleep(PIPE_STEP);
                    waited += PIPE_STEP;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// True if an intent without outcome may be in the log, and no record says yet that its writer
    /// has gone. Only the end of the log is read.
    fn may_hold_orphans(&self) -> io::Result<bool> {
        const TAIL: u64 = 1 << 16;
        let mut file = &self.file;
        let from = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut is_known = from == 0 && self.part == 1;
        let mut pending: HashSet<String> = HashSet::new();
        for line in BufReader::new(file.take(TAIL)).split(b'\n') {
            let Ok(record) = serde_json::from_slice::<AuditRecord>(&line?) else {
                continue;
            };
            match record.phase {
                AuditPhase::Opened => {
                    pending.clear();
                    is_known = true;
                }
                AuditPhase::Intent => drop(pending.insert(record.id)),
                AuditPhase::Outcome => drop(pending.remove(&record.id)),
            }
        }
        Ok(!is_known || !pending.is_empty())
    }
}

/// A write to a pipe returns at once, so that no wait is without an end.
#[cfg(unix)]
const NONBLOCK: i32 = match cfg!(any(target_os = "linux", target_os = "android")) {
    true => 0o4000,
    false => 4,
};

/// True for a pipe that is opened to write while no process reads it (ENXIO).
fn is_unread(error: &io::Error) -> bool {
    cfg!(unix) && error.raw_os_error() == Some(6)
}

/// An error with the name of its file, and what to do.
fn named(error: io::Error, path: &Path, advice: &str) -> io::Error {
    let shown = path.display();
    io::Error::new(error.kind(), format!("{shown}: {error}: {advice}"))
}

fn line(record: &AuditRecord) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(512);
    line.push(b'\n');
    serde_json::to_writer(&mut line, record)?;
    line.push(b'\n');
    Ok(line)
}

/// The record that says that no other process writes.
fn opened() -> AuditRecord {
    AuditRecord {
        id: format!("opened-{}", unique_name()),
        phase: AuditPhase::Opened,
        timestamp: SystemClock.wall(),
        conversation_id: String::new(),
        target: TargetKind::Conversation,
        resource_id: None,
        status: Status::Skipped,
        updated_keys: Vec::new(),
        removed_keys: Vec::new(),
        attributes: None,
        previous_version: None,
        version: None,
        attempts: 0,
        requests: 0,
        latency: Duration::ZERO,
        error_kind: None,
        http_status: None,
        may_have_applied: false,
        correlation_id: None,
        settled: false,
    }
}

impl AuditSink for AuditFile {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        self.process.check().map_err(io::Error::other)?;
        let line = line(record)?;
        let mut state = lock(&self.state);
        let open = match &mut *state {
            Some(open) => open,
            None => state.insert(Open::log(&self.path, self.announces)?),
        };
        open.write(&self.path, &line, self.sync)
    }

    fn flush(&self) -> io::Result<()> {
        self.process.check().map_err(io::Error::other)?;
        let state = lock(&self.state);
        match state.as_ref().map_or(Ok(()), |open| open.file.sync_data()) {
            // A pipe or a device holds nothing that could be synced.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }
}

impl fmt::Debug for AuditFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditFile")
            .field("path", &self.path)
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::audit::tests::sample;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("ga-log-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn log(&self) -> PathBuf {
            self.0.join("audit.jsonl")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn audit_file_after_a_torn_line_begins_a_new_one() {
        let folder = Folder::new("torn");
        std::fs::write(folder.log(), "{\"id\":\"1").unwrap();
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&sample()).unwrap();
        log.record(&sample()).unwrap();
        let found = lines(&folder.log());
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], "{\"id\":\"1");
        let read = |line: &String| serde_json::from_str::<AuditRecord>(line).unwrap();
        assert_eq!(read(&found[1]), read(&found[2]));
        // Another process that shares the file dies in the middle of a line.
        let mut other = File::options().append(true).open(folder.log()).unwrap();
        other.write_all(b"{\"id\"").unwrap();
        log.record(&sample()).unwrap();
        let found = lines(&folder.log());
        assert_eq!(found.len(), 5);
        assert_eq!(found[4], found[2]);
    }

    /// Whether the name is looked at before the next record.
    fn look_before(log: &AuditFile, look: bool) {
        let later = SystemClock.now() + Duration::from_secs(3_600);
        let mut state = lock(&log.state);
        state.as_mut().unwrap().looked = (!look).then_some(later);
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_renamed_goes_on_in_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new("rotated");
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&sample()).unwrap();
        let old = folder.0.join("audit.jsonl.1");
        std::fs::rename(folder.log(), &old).unwrap();
        look_before(&log, true);
        log.record(&sample()).unwrap();
        assert_eq!((lines(&old).len(), lines(&folder.log()).len()), (1, 1));
        std::fs::remove_file(folder.log()).unwrap();
        look_before(&log, true);
        log.record(&sample()).unwrap();
        assert_eq!(lines(&folder.log()).len(), 1);
        let mode = std::fs::metadata(folder.log())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A reader may have read the old file to its end, and gone on.
    #[test]
    #[cfg(unix)]
    fn audit_file_renamed_during_a_write_has_the_record_again_in_the_new_one() {
        let folder = Folder::new("meanwhile");
        let log = AuditFile::open(folder.log()).unwrap();
        for renamed in ["audit.jsonl.2", "audit.jsonl.1"] {
            std::fs::rename(folder.log(), folder.0.join(renamed)).unwrap();
            look_before(&log, false);
            log.record(&sample()).unwrap();
            let read = |path: &Path| {
                let last = lines(path).pop().unwrap();
                serde_json::from_str::<AuditRecord>(&last).unwrap()
            };
            assert_eq!(read(&folder.0.join(renamed)), read(&folder.log()));
            // Each file begins otherwise.
            assert_eq!(lines(&folder.log()).len(), 1);
        }
        let place = |path: &Path| Head::open(path).unwrap().1.place.unwrap();
        let parts = ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"];
        let parts = parts.map(|name| place(&folder.0.join(name)));
        assert_eq!(parts.each_ref().map(|place| place.part), [1, 2, 3]);
        assert!(parts.iter().all(|place| place.log == parts[0].log));
    }

    /// A reader would look for the part that has no record.
    #[test]
    #[cfg(unix)]
    fn audit_file_renamed_before_its_first_record_is_no_part() {
        let folder = Folder::new("empty");
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&sample()).unwrap();
        std::fs::rename(folder.log(), folder.0.join("audit.jsonl.1")).unwrap();
        look_before(&log, true);
        {
            let mut state = lock(&log.state);
            state.as_mut().unwrap().go_on(&folder.log()).unwrap();
        }
        std::fs::rename(folder.log(), folder.0.join("audit.jsonl.2")).unwrap();
        look_before(&log, true);
        log.record(&sample()).unwrap();
        let place = Head::open(&folder.log()).unwrap().1.place.unwrap();
        assert_eq!(place.part, 2);
    }

    /// The log goes on after a rotation while no process wrote it.
    #[test]
    fn audit_file_that_begins_after_a_rotation_counts_on() {
        let folder = Folder::new("counts");
        for (part, renamed) in [
            (1, "audit.jsonl-7"),
            (2, "audit.jsonl-3"),
            (3, "audit.jsonl-5"),
        ] {
            AuditFile::open(folder.log())
                .unwrap()
                .record(&sample())
                .unwrap();
            let place = Head::open(&folder.log()).unwrap().1.place.unwrap();
            assert_eq!(place.part, part);
            std::fs::rename(folder.log(), folder.0.join(renamed)).unwrap();
        }
        // Another log beside it has an id and numbers of its own.
        let other = folder.0.join("audit.jsonl-eu");
        AuditFile::open(&other).unwrap().record(&sample()).unwrap();
        let head = |name: &str| Head::open(&folder.0.join(name)).unwrap().1.place.unwrap();
        assert_eq!(head("audit.jsonl-eu").part, 1);
        assert_ne!(head("audit.jsonl-eu").log, head("audit.jsonl-7").log);
    }

    #[test]
    fn audit_file_of_another_kind_is_refused_and_stays_as_it_was() {
        for text in [
            "{\"line\":1,\"conversationId\":\"c-1\",\"status\":\"applied\"}\n",
            "{\"line\":1,\"conv",
            "conversationId,tier\nc-1,gold\n",
            "{\"conversationId\":\"c-1\",\"attributes\":{\"tier\":\"gold\"}}\n",
            "{\"version\":3,\"mark\":null}",
            "\u{7f}ELF\n",
        ] {
            let folder = Folder::new("kind");
            std::fs::write(folder.log(), text).unwrap();
            let error = AuditFile::open(folder.log()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}: {error}");
            AuditFile::lazy(folder.log()).record(&sample()).unwrap_err();
            assert_eq!(std::fs::read_to_string(folder.log()).unwrap(), text);
            assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "{text}");
        }
    }

    #[test]
    fn audit_file_that_is_opened_later_is_made_by_the_first_record() {
        let folder = Folder::new("lazy");
        let log = AuditFile::lazy(folder.log());
        log.flush().unwrap();
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
        log.record(&sample()).unwrap();
        assert_eq!(lines(&folder.log()).len(), 1);
    }

    #[cfg(unix)]
    fn pipe(folder: &Folder) -> PathBuf {
        let path = folder.0.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        path
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_to_a_pipe_fails_without_a_reader() {
        let folder = Folder::new("pipe");
        let path = pipe(&folder);
        let error = AuditFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("start its reader"), "{error}");
        // Opened for both, so that it waits for no writer.
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let log = AuditFile::open(&path).unwrap();
        log.record(&sample()).unwrap();
        let mut line = String::new();
        BufReader::new(&reader).read_line(&mut line).unwrap();
        assert_eq!(
            serde_json::from_str::<AuditRecord>(&line).unwrap(),
            sample()
        );
        drop(reader);
        let error = log.record(&sample()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    /// Its reader is there and does not read: the wait ends, and the next record does not wait.
    #[test]
    #[cfg(unix)]
    fn audit_file_to_a_full_pipe_fails() {
        let folder = Folder::new("full-pipe");
        let path = pipe(&folder);
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let log = AuditFile::open(&path).unwrap();
        let written = (0..100_000)
            .take_while(|_| log.record(&sample()).is_ok())
            .count();
        assert!(written > 0);
        let error = log.record(&sample()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // The line that was cut off does not swallow the next one.
        let mut lines = BufReader::new(&reader).lines();
        for _ in 0..written {
            lines.next().unwrap().unwrap();
        }
        log.record(&sample()).unwrap();
        let last = lines.find(|line| {
            let line = line.as_ref().unwrap();
            serde_json::from_str::<AuditRecord>(line).is_ok()
        });
        assert!(last.is_some());
    }

    fn opened_records(folder: &Folder) -> usize {
        let phase = "\"phase\":\"opened\"";
        let all = lines(&folder.log());
        all.iter().filter(|line| line.contains(phase)).count()
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_says_where_nobody_else_writes_what_may_be_left() {
        let folder = Folder::new("opened");
        let intent = AuditRecord {
            phase: AuditPhase::Intent,
            ..sample()
        };
        // Nothing can be left behind.
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&intent).unwrap();
        log.record(&sample()).unwrap();
        drop(log);
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&intent).unwrap();
        assert_eq!(opened_records(&folder), 0);
        // Its writer lives, here or in a file that was renamed.
        drop(AuditFile::open(folder.log()).unwrap());
        assert_eq!(opened_records(&folder), 0);
        let renamed = folder.0.join("audit.jsonl.1");
        std::fs::rename(folder.log(), &renamed).unwrap();
        drop(AuditFile::open(folder.log()).unwrap());
        assert_eq!(opened_records(&folder), 0);
        std::fs::rename(&renamed, folder.log()).unwrap();
        drop(log);
        drop(AuditFile::open(folder.log()).unwrap());
        assert_eq!(opened_records(&folder), 1);
        // Once is enough.
        drop(AuditFile::open(folder.log()).unwrap());
        assert_eq!(opened_records(&folder), 1);
        // What is in a renamed file is not known.
        std::fs::rename(folder.log(), &renamed).unwrap();
        drop(AuditFile::open(folder.log()).unwrap());
        assert_eq!(opened_records(&folder), 1);
        for line in lines(&folder.log()) {
            serde_json::from_str::<AuditRecord>(&line).unwrap();
        }
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_that_another_program_keeps_locked_is_an_error() {
        let folder = Folder::new("kept");
        let other = File::create(lock_of(&folder.log())).unwrap();
        other.lock().unwrap();
        let error = AuditFile::open(folder.log()).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
    }

    #[test]
    fn audit_file_holds_a_shared_lock_beside_it_until_it_is_dropped() {
        let folder = Folder::new("locked");
        let first = AuditFile::open(folder.log()).unwrap();
        let second = AuditFile::open(folder.log()).unwrap();
        let reader = File::open(lock_of(&folder.log())).unwrap();
        File::open(folder.log()).unwrap().try_lock().unwrap();
        drop(first);
        assert!(reader.try_lock().is_err());
        drop(second);
        reader.try_lock().unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_follows_no_link_to_its_lock() {
        let folder = Folder::new("link");
        let planted = folder.0.join("planted");
        std::os::unix::fs::symlink(&planted, lock_of(&folder.log())).unwrap();
        AuditFile::open(folder.log()).unwrap_err();
        assert!(!planted.exists());
    }
}
