//! The audit trail in a file that others may read, rotate and share: the log that a
//! [`Forwarder`](https://docs.rs/genesys-attributes/latest/genesys_attributes/struct.Forwarder.html)
//! reads.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::audit::{AuditRecord, AuditSink};
use crate::sync::lock;

/// An [`AuditSink`] that appends to a file: one JSON line a record, in one write, before the update
/// goes on.
///
/// - What is written survives the end of the process; a power loss only with
///   [`sync`](AuditFile::sync).
/// - A new file is readable by its owner only (0600 on Unix), since records may hold values.
/// - A file that was renamed or removed under it (a rotation) is noticed at the next record, which
///   goes to a new file of the old name. One that is copied and cut (`copytruncate`) cannot be
///   forwarded from.
/// - Several processes may append to one file. A line that one of them could not finish does not
///   swallow the next one: that begins on a new line.
/// - While it lives it holds a shared lock on the file, by which a reader sees whether an intent
///   without outcome may still get one.
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
    path: PathBuf,
    sync: bool,
    state: Mutex<Open>,
}

struct Open {
    file: File,
    identity: Option<Identity>,
    /// The length after the last whole line of this process; `None` when that is not known.
    end: Option<u64>,
}

/// What stays the same when a file is renamed: device and inode. Systems without them have none,
/// and rotation by rename is not noticed there.
pub(crate) type Identity = (u64, u64);

#[cfg(unix)]
pub(crate) fn identity(metadata: &Metadata) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
pub(crate) fn identity(_: &Metadata) -> Option<Identity> {
    None
}

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
    /// Those of opening and locking it.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<AuditFile> {
        let path = path.into();
        let state = Mutex::new(Open::at(&path)?);
        Ok(AuditFile {
            path,
            sync: false,
            state,
        })
    }

    /// Hands each record over to the disk before the update goes on, so that it survives a power
    /// loss. It costs the time of two syncs an update.
    pub fn sync(mut self, each_record: bool) -> AuditFile {
        self.sync = each_record;
        self
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        loop {
            let file = private().read(true).append(true).create(true).open(path)?;
            lock_shared(&file)?;
            let identity = identity(&file.metadata()?);
            // Renamed before it was locked: nobody may be looking at it any more.
            if identity.is_none() || is_at(path, identity) {
                return Ok(Open {
                    file,
                    identity,
                    end: None,
                });
            }
        }
    }

    fn write(&mut self, path: &Path, line: &[u8], sync: bool) -> io::Result<()> {
        const ROTATIONS: usize = 8;
        for _ in 0..ROTATIONS {
            if self.identity.is_some() && !is_at(path, self.identity) {
                // The new one is locked before the old one is let go.
                *self = Open::at(path)?;
            }
            let length = self.file.metadata()?.len();
            let torn = self.end != Some(length) && self.is_torn(length)?;
            self.end = None;
            // The line begins with a line end, for this.
            let line = line.get(usize::from(!torn)..).unwrap_or(line);
            self.file.write_all(line)?;
            if sync {
                self.file.sync_data()?;
            }
            self.end = Some(length + line.len() as u64);
            // Renamed meanwhile: a reader may have read it to its end already. So it is written
            // again, into the new one, and may be read twice.
            if self.identity.is_none() || is_at(path, self.identity) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the last line lacks its end: somebody died in the middle of it.
    fn is_torn(&mut self, length: u64) -> io::Result<bool> {
        let Some(last) = length.checked_sub(1) else {
            return Ok(false);
        };
        let mut byte = [0];
        self.file.seek(SeekFrom::Start(last))?;
        self.file.read_exact(&mut byte)?;
        Ok(byte != *b"\n")
    }
}

fn is_at(path: &Path, wanted: Option<Identity>) -> bool {
    std::fs::metadata(path).is_ok_and(|found| identity(&found) == wanted)
}

fn lock_shared(file: &File) -> io::Result<()> {
    loop {
        match file.lock_shared() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Without locks nobody can settle; the log is as good as ever.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(()),
            other => return other,
        }
    }
}

impl AuditSink for AuditFile {
    fn record(&self, record: &AuditRecord<'_>) -> io::Result<()> {
        let mut line = Vec::with_capacity(512);
        line.push(b'\n');
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        lock(&self.state).write(&self.path, &line, self.sync)
    }

    fn flush(&self) -> io::Result<()> {
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
    use crate::audit::tests::sample;

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

    #[test]
    #[cfg(unix)]
    fn audit_file_renamed_goes_on_in_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new("rotated");
        let log = AuditFile::open(folder.log()).unwrap();
        log.record(&sample()).unwrap();
        let old = folder.0.join("audit.jsonl.1");
        std::fs::rename(folder.log(), &old).unwrap();
        log.record(&sample()).unwrap();
        assert_eq!((lines(&old).len(), lines(&folder.log()).len()), (1, 1));
        std::fs::remove_file(folder.log()).unwrap();
        log.record(&sample()).unwrap();
        assert_eq!(lines(&folder.log()).len(), 1);
        let mode = std::fs::metadata(folder.log())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
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
