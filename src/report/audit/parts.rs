//! The files of a log: the one that has its name, and its renamed parts.
//!
//! The first record of each part says which log it belongs to, and which part of it it is. So a
//! reader knows the parts, and their order, whatever their names and times are.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::report::audit::AuditRecord;
use crate::util::clock::{Clock, SystemClock};

/// The longest line that is read; a longer one is no record.
pub(crate) const MAX_LINE: usize = 16 << 20;
/// The part of a file that is searched for its first record.
const HEAD: usize = 1 << 16;

/// Options for a file that only its owner may read, where it is new.
pub(crate) fn private() -> OpenOptions {
    #[allow(unused_mut)]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// `path` with `ending` after its name.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Which log a file belongs to, and which part of it it is: in the first record of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The id of the log.
    pub(crate) log: String,
    /// 1 for the first part.
    pub(crate) part: u64,
}

/// The beginning of a file that may be a part of a log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    /// A hash of the file's first line, by which it is known again. `None` while the end of that
    /// line is not there.
    pub(crate) first: Option<u64>,
    /// `None` if [`AuditFile`](crate::report::audit::AuditFile) did not write the first record.
    pub(crate) place: Option<Place>,
    /// The time of the first record.
    pub(crate) began: Option<SystemTime>,
    /// The file holds something else than audit records.
    pub(crate) is_foreign: bool,
}

impl Head {
    /// Opens a regular file, and reads its beginning.
    pub(crate) fn open(path: &Path) -> io::Result<(File, Head)> {
        // Opening a pipe would wait for a writer.
        if !std::fs::metadata(path)?.is_file() {
            let problem = "it is no regular file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let file = File::open(path)?;
        let head = Head::of(&file)?;
        Ok((file, head))
    }

    /// Reads the beginning of a file, and leaves the file at its position.
    pub(crate) fn of(mut file: &File) -> io::Result<Head> {
        let before = file.stream_position()?;
        file.rewind()?;
        let head = Head::read(&mut BufReader::new(file));
        file.seek(SeekFrom::Start(before))?;
        head
    }

    fn read(reader: &mut impl BufRead) -> io::Result<Head> {
        let (mut head, mut line, mut seen) = (Head::default(), Vec::new(), 0);
        while seen < HEAD {
            line.clear();
            let mut part = reader.by_ref().take(MAX_LINE as u64);
            seen += part.read_until(b'\n', &mut line)?;
            if line == b"\n" {
                continue;
            }
            let is_whole = line.ends_with(b"\n") || line.len() == MAX_LINE;
            if head.first.is_none() && is_whole {
                head.first = Some(hash(&line));
            }
            if let Ok(record) = serde_json::from_slice::<AuditRecord>(&line) {
                head.began = Some(record.timestamp);
                head.place = serde_json::from_slice(&line).ok();
                break;
            }
            head.is_foreign = !line.is_empty() && !is_torn_record(&line);
            if head.is_foreign || !is_whole {
                break;
            }
        }
        Ok(head)
    }
}

/// True if a process may have died while it wrote this line as a record.
fn is_torn_record(line: &[u8]) -> bool {
    let begins = |start: &[u8]| line.starts_with(start) || start.starts_with(line);
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
    !is_json && (begins(b"{\"id\":") || begins(b"{\"attempts\":"))
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The files in the folder of `path` whose names begin with its name, and itself.
pub(crate) fn siblings(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let other = entry?.file_name();
        if other.as_encoded_bytes().starts_with(name) {
            found.push(path.with_file_name(other));
        }
    }
    Ok(found)
}

/// A part of a log.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) head: Head,
    pub(crate) length: u64,
}

impl Part {
    /// 0 for a part that another program wrote.
    pub(crate) fn number(&self) -> u64 {
        self.head.place.as_ref().map_or(0, |place| place.part)
    }
}

/// The parts of the log with this id, in the order of writing.
///
/// A file without a [`Place`] counts if its name is the log's with a number or a date after it, also
/// a compressed one. Its place follows from its name as logrotate gives it: the largest number is
/// the oldest part, and so is the smallest date. If the times of the records are in order when the
/// numbers count up, then they count up.
pub(crate) fn parts(path: &Path, id: Option<&str>) -> io::Result<Vec<Part>> {
    let ending = |part: &Path| {
        let name = part.as_os_str().as_encoded_bytes();
        let ending = name.get(path.as_os_str().len()..).unwrap_or_default();
        let compressed: [&[u8]; 4] = [b".gz", b".zst", b".xz", b".bz2"];
        let bare = compressed.iter().find_map(|end| ending.strip_suffix(*end));
        bare.unwrap_or(ending).to_vec()
    };
    let mut parts = Vec::new();
    for other in siblings(path)? {
        // An error means that the file is renamed at this moment, or is no part.
        let Ok((file, head)) = Head::open(&other) else {
            continue;
        };
        let is_dated = |byte: &u8| byte.is_ascii_digit() || b"-_.:TZ".contains(byte);
        let belongs = match &head.place {
            Some(place) => Some(place.log.as_str()) == id,
            None => {
                (head.began.is_some() || head.is_foreign) && ending(&other).iter().all(is_dated)
            }
        };
        if belongs {
            let length = file.metadata()?.len();
            let path = other;
            parts.push(Part { path, head, length });
        }
    }
    let key = |part: &Part| {
        let ending = ending(&part.path);
        let number = std::str::from_utf8(&ending).unwrap_or_default();
        let count: u16 = number.trim_start_matches('.').parse().unwrap_or(0);
        (part.number(), part.path == path, count, ending)
    };
    parts.sort_by_cached_key(key);
    let is_before =
        |one: &Part, next: &Part| one.head.began.is_some() && one.head.began < next.head.began;
    if !parts.is_sorted_by(is_before) {
        parts.sort_by_cached_key(|part| {
            let (number, is_own, count, ending) = key(part);
            (number, is_own, std::cmp::Reverse(count), ending)
        });
    }
    // Of copies, the longest counts.
    parts.dedup_by(|copy, kept| {
        let is_copy = copy.head.first == kept.head.first && copy.head.began.is_some();
        if is_copy && copy.length > kept.length {
            std::mem::swap(copy, kept);
        }
        is_copy
    });
    Ok(parts)
}

/// The file beside a log that its writers lock, and that holds the log's id.
///
/// The log's own files have no locks: on Windows a lock keeps others from reading.
pub(crate) fn lock_of(log: &Path) -> PathBuf {
    beside(log, ".lock")
}

/// The id of a log, if [`AuditFile`](crate::report::audit::AuditFile) has written it.
pub(crate) fn id_of(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(lock_of(log)).ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Opens a lock file, or makes it, readable for those who can read the file beside it. Links are
/// refused, since others may have planted them.
pub(crate) fn open_lock(of: &Path) -> io::Result<File> {
    let path = lock_of(of);
    let mut options = private();
    options.read(true).write(true);
    match options.clone().create_new(true).open(&path) {
        Ok(file) => {
            if let Ok(found) = std::fs::metadata(of) {
                file.set_permissions(found.permissions())?;
            }
            Ok(file)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !path.is_symlink() => {
            options.open(&path)
        }
        Err(e) => Err(e),
    }
}

/// Tries an exclusive lock. False if another process holds a lock or locks are not supported.
pub(crate) fn try_lock(file: &File) -> bool {
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(TryLockError::Error(_)) => return false,
            Err(TryLockError::WouldBlock) => {}
        }
        // A shared lock means a writer; an exclusive one is held for a moment only.
        if file.try_lock_shared().is_ok() {
            let _ = file.unlock();
            return false;
        }
        SystemClock.sleep(Duration::from_millis(1));
    }
    false
}

/// Takes a shared lock. It waits for processes that try an exclusive one, for 2 s at most.
pub(crate) fn lock_shared(file: &File) -> io::Result<()> {
    const TRIES: usize = if cfg!(test) { 20 } else { 2_000 };
    for _ in 0..TRIES {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            // The log can be written without locks, but no orphan in it can be settled.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => SystemClock.sleep(Duration::from_millis(1)),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "another program keeps the .lock file beside it locked: end that program, or give another \
         file",
    ))
}

/// True if the bytes before `end` lack a line end: a process died while it wrote them.
pub(crate) fn is_torn(mut file: &File, end: u64) -> io::Result<bool> {
    let Some(last) = end.checked_sub(1) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.seek(SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte != *b"\n")
}

/// Hands a new name over to the disk.
#[cfg(unix)]
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
