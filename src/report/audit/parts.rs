//! The files of a log: the one that has its name, and those that were renamed to a longer one.

use std::fs::{File, Metadata, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::report::audit::AuditRecord;
use crate::util::clock::{Clock, SystemClock};

/// The longest line that is read; a longer one is no record.
pub(crate) const MAX_LINE: usize = 16 << 20;
/// A file without a record in as many bytes is no log.
const HEAD: usize = 1 << 16;

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

/// A file that may be the log or a renamed part of it.
#[cfg_attr(not(feature = "forward"), allow(dead_code))] // most of it is for those who read
pub(crate) struct Part {
    pub(crate) file: File,
    pub(crate) identity: Option<Identity>,
    /// A hash of its beginning up to the end of the first line that is not empty, which holds an id
    /// that no other file begins with. `None` while that end is not there.
    pub(crate) first: Option<u64>,
    pub(crate) length: u64,
    pub(crate) modified: Option<SystemTime>,
    /// The time of its first record.
    pub(crate) began: Option<SystemTime>,
    /// It has lines, and none of the first ones is a record.
    pub(crate) is_foreign: bool,
}

impl Part {
    pub(crate) fn open(path: &Path) -> io::Result<Part> {
        // Before it is opened: a pipe would wait for a writer.
        match std::fs::metadata(path)?.is_file() {
            true => Part::of(File::open(path)?),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            )),
        }
    }

    /// Looks at a file, and leaves it at the position that it has.
    pub(crate) fn of(file: File) -> io::Result<Part> {
        let metadata = file.metadata()?;
        let before = (&file).stream_position()?;
        (&file).rewind()?;
        let head = Head::read(&mut BufReader::new(&file))?;
        (&file).seek(SeekFrom::Start(before))?;
        Ok(Part {
            identity: identity(&metadata),
            first: head.first,
            length: metadata.len(),
            modified: metadata.modified().ok(),
            began: head.began,
            is_foreign: head.is_foreign,
            file,
        })
    }

    /// When it was written last.
    #[cfg(feature = "forward")]
    pub(crate) fn ended(&self) -> io::Result<Option<SystemTime>> {
        const TAIL: u64 = 1 << 16;
        let mut bytes = Vec::new();
        let mut file = &self.file;
        let before = file.stream_position()?;
        file.seek(SeekFrom::Start(self.length.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(before))?;
        let mut lines = bytes.rsplit(|byte| *byte == b'\n');
        let last = lines.find_map(|line| serde_json::from_slice::<AuditRecord>(line).ok());
        Ok(ended(self.modified, last.map(|record| record.timestamp)))
    }
}

/// When a file was written last, by its own time and that of its last record. The first is the
/// better one, since records are made a moment earlier, by many threads; but a file that was
/// restored or decompressed has a new one.
#[cfg(feature = "forward")]
pub(crate) fn ended(modified: Option<SystemTime>, last: Option<SystemTime>) -> Option<SystemTime> {
    let (Some(modified), Some(last)) = (modified, last) else {
        return modified.or(last);
    };
    let apart = modified
        .duration_since(last)
        .unwrap_or_else(|earlier| earlier.duration());
    match apart <= Duration::from_millis(100) {
        true => Some(modified),
        false => Some(last),
    }
}

#[derive(Default)]
struct Head {
    first: Option<u64>,
    began: Option<SystemTime>,
    is_foreign: bool,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> io::Result<Head> {
        let (mut head, mut hash, mut seen) = (Head::default(), Hash::new(), 0);
        let mut line = Vec::new();
        while seen < HEAD {
            line.clear();
            // A line is read to its end, however long it is: nothing else tells the file.
            let mut part = reader.by_ref().take(MAX_LINE as u64);
            seen += part.read_until(b'\n', &mut line)?;
            let is_whole = line.ends_with(b"\n") || line.len() == MAX_LINE;
            if !is_whole {
                // A record whose end is not there yet may be the first one.
                head.is_foreign |= line.first().is_some_and(|byte| *byte != b'{');
                break;
            }
            if head.first.is_none() {
                hash.add(&line);
                head.first = (line != b"\n").then_some(hash.0);
            }
            if let Ok(record) = serde_json::from_slice::<AuditRecord>(&line) {
                head.began = Some(record.timestamp);
                head.is_foreign = false;
                break;
            }
            head.is_foreign |= line != b"\n";
        }
        Ok(head)
    }
}

/// FNV-1a.
pub(crate) struct Hash(pub(crate) u64);

impl Hash {
    pub(crate) fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }
}

/// The files in the log's folder whose names begin with its name, itself included.
pub(crate) fn siblings(path: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = path.file_name().map(|name| name.as_encoded_bytes()) else {
        return Ok(Vec::new());
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(name) {
            found.push(match folder {
                Some(folder) => folder.join(entry.file_name()),
                None => PathBuf::from(entry.file_name()),
            });
        }
    }
    found.sort();
    Ok(found)
}

/// Locks every file of the log, besides the one of `but`, against those who write; `None` when
/// somebody writes one of them, or nobody can tell. A writer that moves on has the next file
/// before it lets go of the last, so it is in one of them.
pub(crate) fn lock_all(path: &Path, but: Option<Identity>) -> io::Result<Option<Vec<File>>> {
    'folder: for _ in 0..20 {
        let mut locked = Vec::new();
        let mut seen = Vec::from_iter(but);
        for sibling in siblings(path)? {
            let part = match Part::open(&sibling) {
                Ok(part) => part,
                // Renamed at this moment: to where was looked already, perhaps.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue 'folder,
                // A folder, or nothing of ours.
                Err(_) => continue,
            };
            let is_seen = match part.identity {
                Some(file) => seen.contains(&file),
                // There only the file of the name is the log.
                None => sibling == path,
            };
            if !is_seen && (part.began.is_some() || sibling == path) {
                if !is_unwritten(&part.file) {
                    return Ok(None);
                }
                seen.extend(part.identity);
                locked.push(part.file);
            }
        }
        return Ok(Some(locked));
    }
    Ok(None)
}

/// Takes the lock that a writer leaves to nobody else; `false` where one has the file, or nobody can
/// tell.
pub(crate) fn is_unwritten(file: &File) -> bool {
    let mut shared = 0;
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(TryLockError::Error(_)) => return false,
            Err(TryLockError::WouldBlock) => {}
        }
        // Shared with writers (or for a moment with a process that one of them has just started);
        // else somebody is asking the same.
        if file.try_lock_shared().is_ok() {
            let _ = file.unlock();
            shared += 1;
            if shared == 3 {
                return false;
            }
        }
        SystemClock.sleep(Duration::from_millis(1));
    }
    false
}

/// Waits for those who look whether somebody writes, but not without end: another program may keep
/// the file locked.
pub(crate) fn lock_shared(file: &File) -> io::Result<()> {
    const TRIES: usize = if cfg!(test) { 20 } else { 2_000 };
    for _ in 0..TRIES {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            // Without locks nobody can settle; the log is as good as ever.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => SystemClock.sleep(Duration::from_millis(1)),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "another program has locked it for itself: end that program, or give another file",
    ))
}

/// Whether what is there before `end` lacks its line end: somebody died in the middle of it.
pub(crate) fn is_torn(mut file: &File, end: u64) -> io::Result<bool> {
    let Some(last) = end.checked_sub(1) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.seek(SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte != *b"\n")
}

/// A new name reaches the disk as well.
#[cfg(unix)]
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
