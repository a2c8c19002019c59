//! The audit trail in a file that others may read, rotate and share: the log that a
//! [`Forwarder`](https://docs.rs/genesys-attributes/latest/genesys_attributes/struct.Forwarder.html)
//! reads.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::report::audit::parts::{
    Identity, Part, identity, is_torn, is_unwritten, lock_all, lock_shared, siblings, sync_folder,
};
use crate::report::audit::{AuditPhase, AuditRecord, AuditSink};
use crate::report::receipt::Status;
use crate::util::clock::{Clock, SystemClock};
use crate::util::process::Process;
use crate::util::sync::lock;
use crate::values::kind::TargetKind;

/// An [`AuditSink`] that appends to a file: one JSON line a record, in one write, before the update
/// goes on.
///
/// - What is written survives the end of the process; a power loss only with
///   [`sync`](AuditFile::sync).
/// - A new file is readable by its owner only (0600 on Unix), since records may hold values.
/// - A file that was renamed or removed under it (a rotation) is noticed by the next record, which
///   goes to a new file of the old name, and may be at the end of the old one too. One that is
///   copied and cut (`copytruncate`) cannot be forwarded from.
/// - Several processes may append to one file. A line that one of them could not finish does not
///   swallow the next one: that is written on a line of its own.
/// - While it lives it holds a shared lock on the file, by which a reader sees whether an intent
///   without outcome may still get one. Where it is opened and nobody else writes the log, although
///   there may be intents without outcome, it appends a record of the phase
///   [`Opened`](AuditPhase::Opened): what has no outcome by then gets none from its writer.
/// - A forked child must open a file of its own: records to its parent's are errors there.
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
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AuditFile {
    process: Process,
    path: PathBuf,
    sync: bool,
    state: Mutex<Open>,
}

struct Open {
    file: File,
    /// `None` where a rotation is not noticed: on systems without inodes, and for what is no file.
    identity: Option<Identity>,
    is_regular: bool,
    /// Where the last line of this process ends; `None` when that is not known.
    end: Option<u64>,
    /// The next line begins with a line end.
    torn: bool,
    /// When it was last seen that the file has its name.
    looked: Option<Instant>,
    /// Its name is on the disk as well.
    is_named: bool,
}

/// After so long without a record, the file's name is looked at before the next one too: else each
/// rotation would leave a record in both files.
const LOOK_AFTER: Duration = Duration::from_millis(10);

/// Options for a file that only its owner may read, where it is new.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

impl AuditFile {
    /// Opens the file to append to, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// Those of opening and locking it; `TimedOut` where another program keeps it locked.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<AuditFile> {
        let path = path.into();
        let state = Open::first(&path)?;
        Ok(AuditFile::new(path, state))
    }

    /// Appends what was found out about other writers, which is not to begin to write.
    #[cfg(feature = "forward")]
    pub(crate) fn join(path: &Path) -> io::Result<AuditFile> {
        Ok(AuditFile::new(path.to_owned(), Open::at(path)?))
    }

    fn new(path: PathBuf, state: Open) -> AuditFile {
        AuditFile {
            process: Process::current(),
            path,
            sync: false,
            state: Mutex::new(state),
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
    fn at(path: &Path) -> io::Result<Open> {
        loop {
            let file = appending(path)?;
            lock_shared(&file)?;
            if let Some(open) = Open::of(file, path)? {
                return Ok(open);
            }
        }
    }

    /// Begins to write, and says so where that tells a reader something.
    fn first(path: &Path) -> io::Result<Open> {
        loop {
            let file = appending(path)?;
            let is_regular = file.metadata()?.is_file();
            if !is_regular || !is_unwritten(&file) {
                break;
            }
            let Some(mut open) = Open::of(file, path)? else {
                continue;
            };
            let others = lock_all(path, open.identity)?;
            if others.is_some() && may_hold_orphans(path, &open.file)? {
                let mut line = vec![b'\n'];
                serde_json::to_writer(&mut line, &opened())?;
                line.push(b'\n');
                let line = line.get(usize::from(!open.torn)..).unwrap_or_default();
                open.file.write_all(line)?;
            }
            break;
        }
        // The locks are let go before: nothing of this process is in flight yet.
        Open::at(path)
    }

    /// `None` where it was renamed before it was locked: nobody may be looking at it any more.
    fn of(file: File, path: &Path) -> io::Result<Option<Open>> {
        let metadata = file.metadata()?;
        let is_regular = metadata.is_file();
        let identity = identity(&metadata).filter(|_| is_regular);
        if identity.is_some() && !is_at(path, identity) {
            return Ok(None);
        }
        Ok(Some(Open {
            torn: is_regular && is_torn(&file, metadata.len())?,
            end: Some(metadata.len()),
            file,
            identity,
            is_regular,
            looked: None,
            is_named: false,
        }))
    }

    /// Writes a line, which is given with a line end before it as well.
    fn write(&mut self, path: &Path, line: &[u8], sync: bool) -> io::Result<()> {
        const TRIES: usize = 8;
        let mut line = Cow::Borrowed(line);
        for _ in 0..TRIES {
            let now = SystemClock.now();
            let is_seen = |at| now.saturating_duration_since(at) < LOOK_AFTER;
            if self.identity.is_some()
                && !self.looked.is_some_and(is_seen)
                && !is_at(path, self.identity)
            {
                // The new one is locked before the old one is let go.
                *self = Open::at(path)?;
            }
            let bytes = line.get(usize::from(!self.torn)..).unwrap_or_default();
            let expected = self.end.map(|end| end + bytes.len() as u64);
            // In case that it fails half-way.
            let began_anew = std::mem::replace(&mut self.torn, true);
            self.end = None;
            self.file.write_all(bytes)?;
            if sync {
                self.file.sync_data()?;
                if !std::mem::replace(&mut self.is_named, true) && self.is_regular {
                    sync_folder(path)?;
                }
            }
            self.torn = false;
            if !self.is_regular {
                return Ok(());
            }
            let found = std::fs::metadata(path);
            if self.identity.is_some()
                && !found
                    .as_ref()
                    .is_ok_and(|found| identity(found) == self.identity)
            {
                // Renamed meanwhile: a reader may have read it to its end already. So it is
                // written again, into the new one, and may be read twice. With one more empty
                // line before it no two files begin alike.
                *self = Open::at(path)?;
                self.torn = true;
                if began_anew {
                    line.to_mut().insert(0, b'\n');
                }
                continue;
            }
            self.looked = Some(now);
            self.end = match expected {
                // Nothing came between.
                Some(end) if found.is_ok_and(|found| found.len() == end) => Some(end),
                _ => {
                    let end = self.file.stream_position()?;
                    let start = end.saturating_sub(bytes.len() as u64);
                    // What came between lacks its end, and swallowed the line: it is written
                    // again, on a line of its own.
                    if !began_anew && is_torn(&self.file, start)? {
                        continue;
                    }
                    Some(end)
                }
            };
            return Ok(());
        }
        Ok(())
    }
}

fn appending(path: &Path) -> io::Result<File> {
    private().read(true).append(true).create(true).open(path)
}

fn is_at(path: &Path, wanted: Option<Identity>) -> bool {
    std::fs::metadata(path).is_ok_and(|found| identity(&found) == wanted)
}

/// Whether an intent without outcome may be in the log, for which no record of this kind stands
/// yet. Only the end of the log is read.
fn may_hold_orphans(path: &Path, mut file: &File) -> io::Result<bool> {
    const TAIL: u64 = 1 << 16;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut is_known = from == 0 && siblings(path)?.iter().all(|other| !is_part(path, other));
    let mut pending: HashSet<String> = HashSet::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        let Ok(record) = serde_json::from_slice::<AuditRecord>(&line) else {
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

fn is_part(path: &Path, other: &Path) -> bool {
    other != path && Part::open(other).is_ok_and(|part| part.began.is_some())
}

/// The record that says that nobody else writes.
fn opened() -> AuditRecord {
    let now = SystemClock.wall();
    let since = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    AuditRecord {
        id: format!("opened-{:x}-{}", since.as_nanos(), std::process::id()),
        phase: AuditPhase::Opened,
        timestamp: now,
        conversation_id: "".into(),
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
        let mut line = Vec::with_capacity(512);
        line.push(b'\n');
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        lock(&self.state).write(&self.path, &line, self.sync)
    }

    fn flush(&self) -> io::Result<()> {
        self.process.check().map_err(io::Error::other)?;
        match lock(&self.state).file.sync_data() {
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
        assert_eq!(found[1], found[2]);
        // Another process that shares the file dies in the middle of a line.
        let mut other = File::options().append(true).open(folder.log()).unwrap();
        other.write_all(b"{\"id\"").unwrap();
        log.record(&sample()).unwrap();
        let found = lines(&folder.log());
        assert_eq!(found.len(), 5);
        assert_eq!(found[4], found[1]);
    }

    /// Whether the name is looked at before the next record.
    fn look_before(log: &AuditFile, look: bool) {
        let later = SystemClock.now() + Duration::from_secs(3_600);
        lock(&log.state).looked = (!look).then_some(later);
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
        for (rotation, renamed) in ["audit.jsonl.2", "audit.jsonl.1"].iter().enumerate() {
            std::fs::rename(folder.log(), folder.0.join(renamed)).unwrap();
            look_before(&log, false);
            log.record(&sample()).unwrap();
            assert_eq!(
                lines(&folder.0.join(renamed)).last(),
                lines(&folder.log()).last()
            );
            // The new file does not begin as the old one does.
            assert_eq!(lines(&folder.log()).len(), 2, "{rotation}");
            assert_eq!(lines(&folder.log())[0], "");
        }
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
        let other = File::create(folder.log()).unwrap();
        other.lock().unwrap();
        let error = AuditFile::open(folder.log()).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn audit_file_holds_a_shared_lock_until_it_is_dropped() {
        let folder = Folder::new("locked");
        let first = AuditFile::open(folder.log()).unwrap();
        let second = AuditFile::open(folder.log()).unwrap();
        let reader = File::open(folder.log()).unwrap();
        drop(first);
        assert!(reader.try_lock().is_err());
        drop(second);
        reader.try_lock().unwrap();
    }
}
