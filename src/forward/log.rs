//! Reading an audit file line by line while others append to it, through its rotations.
//!
//! A file is known again by its device and inode, and by its first line, which holds an id that no
//! other file begins with: inodes are used again.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cursor::{Cursor, Place};
use super::failed;
use crate::audit::AuditRecord;
use crate::audit::file::{Identity, identity};
use crate::error::{Error, ErrorKind, Result};

/// The longest line that is read; a longer one is no record.
const MAX_LINE: usize = 16 << 20;
/// As much of a file's beginning is looked at to know it.
const HEAD: usize = 1 << 16;

/// What is read next.
pub(super) enum Found {
    Record(Box<AuditRecord<'static>>),
    /// A line that is none.
    Torn {
        offset: u64,
        bytes: u64,
    },
    /// Nothing more for now.
    End,
}

pub(super) struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    place: Place,
    /// Where the line that was read last begins, and where the next one does.
    start: u64,
    offset: u64,
    /// A line whose end is not there yet, and how much of it was too long to keep.
    line: Vec<u8>,
    skipped: u64,
    /// The file was renamed, and read to its end after that was seen.
    drained: bool,
    /// The files that were read to their end.
    left: HashSet<Identity>,
    /// Up to where everything is done.
    done: (Place, u64),
}

impl Log {
    /// Opens the log where the cursor stands, or at its beginning.
    pub(super) fn open(path: &Path, cursor: Option<&Cursor>) -> Result<Log> {
        let here = Candidate::open(path).map_err(|e| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the audit file {} cannot be opened: check it",
                    path.display()
                ),
            )
            .with_source(e)
        })?;
        let (found, offset) = match cursor {
            None => (here, 0),
            Some(cursor) => located(path, here, cursor)?,
        };
        if offset == 0 && found.is_foreign {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is no audit log: give the file that --audit wrote",
                    path.display()
                ),
            ));
        }
        if found.length < offset {
            return Err(truncated(path, offset));
        }
        let mut log = Log {
            path: path.to_owned(),
            place: found.place,
            reader: BufReader::with_capacity(HEAD, found.file),
            start: offset,
            offset,
            line: Vec::new(),
            skipped: 0,
            drained: false,
            left: HashSet::new(),
            done: (found.place, offset),
        };
        let seek = log.reader.seek(SeekFrom::Start(offset));
        seek.map_err(|e| log.failed(e))?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the line that was read last begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.place.file
    }

    /// Everything that was read is done.
    pub(super) fn passed(&mut self) {
        self.done = (self.place, self.offset);
    }

    pub(super) fn done(&self) -> (Place, u64) {
        self.done
    }

    pub(super) fn next(&mut self) -> Result<Found> {
        loop {
            if let Some(found) = self.line().map_err(|e| self.failed(e))? {
                return Ok(found);
            }
            let length = self
                .reader
                .get_ref()
                .metadata()
                .map_err(|e| self.failed(e))?;
            if length.len() < self.offset + self.line.len() as u64 + self.skipped {
                return Err(truncated(&self.path, self.offset));
            }
            match std::fs::metadata(&self.path) {
                Ok(found) if identity(&found) != self.place.file => {}
                // Renamed, and nobody has written since.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::End),
                Err(e) => return Err(self.failed(e)),
                Ok(_) => return Ok(Found::End),
            }
            // What was written before it was renamed is there by now.
            if !self.drained {
                self.drained = true;
                continue;
            }
            if !self.line.is_empty() || self.skipped > 0 {
                return Ok(self.torn());
            }
            if !self.turn()? {
                return Ok(Found::End);
            }
        }
    }

    /// The next whole line, if there is one.
    fn line(&mut self) -> io::Result<Option<Found>> {
        loop {
            let room = (MAX_LINE + 1).saturating_sub(self.line.len()) as u64;
            let mut part = self.reader.by_ref().take(room);
            let read = part.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                if self.line.len() > MAX_LINE {
                    self.skipped += self.line.len() as u64;
                    self.line.clear();
                    continue;
                }
                if read == 0 {
                    return Ok(None);
                }
                continue;
            }
            if self.offset == 0 && self.skipped == 0 {
                self.place.first = Some(fingerprint(&self.line));
            }
            if self.skipped > 0 {
                return Ok(Some(self.torn()));
            }
            self.start = self.offset;
            let bytes = self.line.len() as u64;
            self.offset += bytes;
            let record = serde_json::from_slice::<AuditRecord<'_>>(&self.line);
            let found = match record {
                Ok(record) => Found::Record(Box::new(record.into_owned())),
                Err(_) if self.line == b"\n" => {
                    self.line.clear();
                    continue;
                }
                Err(_) => Found::Torn {
                    offset: self.start,
                    bytes,
                },
            };
            self.line.clear();
            return Ok(Some(found));
        }
    }

    fn torn(&mut self) -> Found {
        let bytes = self.skipped + self.line.len() as u64;
        self.start = self.offset;
        self.offset += bytes;
        self.skipped = 0;
        self.line.clear();
        Found::Torn {
            offset: self.start,
            bytes,
        }
    }

    /// Goes on with the file that came after this one; `false` when that cannot be told now.
    fn turn(&mut self) -> Result<bool> {
        self.left.extend(self.place.file);
        // A file that is renamed while the folder is read may be in neither place: only what is
        // found twice is sure to be the next.
        let Some(first) = self.after().map_err(|e| self.failed(e))?? else {
            return Ok(false);
        };
        let Some(next) = self.after().map_err(|e| self.failed(e))?? else {
            return Ok(false);
        };
        if first.place.file != next.place.file {
            return Ok(false);
        }
        self.place = next.place;
        self.reader = BufReader::with_capacity(HEAD, next.file);
        self.reader.rewind().map_err(|e| self.failed(e))?;
        (self.start, self.offset) = (0, 0);
        self.drained = false;
        Ok(true)
    }

    /// The file that came after this one; `None` when files were renamed meanwhile.
    fn after(&self) -> io::Result<Result<Option<Candidate>>> {
        let now = Candidate::of(self.reader.get_ref().try_clone()?)?;
        // Files follow each other by their last writes: the times in records are taken earlier,
        // by many threads.
        let mut next: Option<Candidate> = None;
        for path in siblings(&self.path)? {
            let found = match Candidate::open(&path) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
                // A folder, or nothing of ours.
                Err(_) => continue,
            };
            if is_compressed(&path) && found.modified > now.modified {
                return Ok(Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "{} was compressed before it was forwarded: decompress it, and compress \
                         later from now on (delaycompress)",
                        path.display()
                    ),
                )));
            }
            // The present file comes last, whatever its clock said.
            let is_rotated = path != self.path && found.began.is_some();
            let is_new = found
                .place
                .file
                .is_some_and(|file| !self.left.contains(&file));
            let is_earlier = |next: &Candidate| found.order() < next.order();
            if is_rotated
                && is_new
                && found.modified >= now.modified
                && next.as_ref().is_none_or(is_earlier)
            {
                next = Some(found);
            }
        }
        match next {
            Some(next) => Ok(Ok(Some(next))),
            None => match Candidate::open(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
                present => present.map(Some).map(Ok),
            },
        }
    }

    /// Whether no process that writes holds one of `files`, this one or the present one. Given in
    /// the order in which a writer moves through them. `while_locked` runs before they may go on.
    pub(super) fn unwritten<R>(
        &mut self,
        files: &[Option<Identity>],
        while_locked: impl FnOnce(&mut Log) -> Result<R>,
    ) -> Result<Option<R>> {
        let mut locked: Vec<File> = Vec::new();
        let mut seen: Vec<Identity> = Vec::new();
        let mut rotated = None;
        for wanted in files.iter().copied().flatten() {
            if Some(wanted) == self.place.file || seen.contains(&wanted) {
                continue;
            }
            seen.push(wanted);
            let rotated = match &rotated {
                Some(found) => found,
                None => rotated.insert(siblings(&self.path).map_err(|e| self.failed(e))?),
            };
            let of = |path: &&PathBuf| {
                std::fs::metadata(path).is_ok_and(|found| identity(&found) == Some(wanted))
            };
            // One that was removed has no writer that anybody could see.
            if let Some(file) = rotated
                .iter()
                .find(of)
                .and_then(|path| File::open(path).ok())
            {
                match lock_exclusive(&file) {
                    true => locked.push(file),
                    false => return Ok(None),
                }
            }
        }
        if !lock_exclusive(self.reader.get_ref()) {
            return Ok(None);
        }
        let mut present = None;
        let mut free = true;
        if let Ok(file) = File::open(&self.path) {
            let is_other = file
                .metadata()
                .is_ok_and(|found| identity(&found) != self.place.file);
            if is_other {
                free = lock_exclusive(&file);
                present = Some(file);
            }
        }
        let result = match free {
            true => while_locked(self).map(Some),
            false => Ok(None),
        };
        // The reader's own file stays open: its lock has to be given back by hand.
        let _ = self.reader.get_ref().unlock();
        drop((present, locked));
        result
    }

    fn failed(&self, error: io::Error) -> Error {
        failed("the audit file", &self.path, "read", error)
    }
}

/// A lock that is not to be had means that somebody writes, or that nobody can tell.
fn lock_exclusive(file: &File) -> bool {
    loop {
        return match file.try_lock() {
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            result => result.is_ok(),
        };
    }
}

/// A file that may be the log or a rotated part of it.
struct Candidate {
    file: File,
    place: Place,
    length: u64,
    modified: Option<SystemTime>,
    /// The time of its first record.
    began: Option<SystemTime>,
    /// It has lines, and none of the first ones is a record.
    is_foreign: bool,
}

impl Candidate {
    fn open(path: &Path) -> io::Result<Candidate> {
        Candidate::of(File::open(path)?)
    }

    fn of(mut file: File) -> io::Result<Candidate> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        let mut head = Vec::new();
        let before = file.stream_position()?;
        file.rewind()?;
        file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        file.seek(SeekFrom::Start(before))?;
        let mut lines = head.split_inclusive(|byte| *byte == b'\n');
        let first = lines
            .next()
            .filter(|line| line.ends_with(b"\n") || line.len() == HEAD);
        let whole = |line: &&[u8]| line.ends_with(b"\n");
        let began = head
            .split_inclusive(|byte| *byte == b'\n')
            .filter(whole)
            .find_map(|line| serde_json::from_slice::<AuditRecord<'_>>(line).ok())
            .map(|record| record.timestamp);
        Ok(Candidate {
            place: Place {
                file: identity(&metadata),
                first: first.map(fingerprint),
            },
            length: metadata.len(),
            modified: metadata.modified().ok(),
            began,
            // A record may be longer than the head, and its end may not be there yet.
            is_foreign: began.is_none()
                && (head.first().is_some_and(|byte| *byte != b'{')
                    || first.is_some_and(|line| line.ends_with(b"\n"))),
            file,
        })
    }

    fn order(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        (self.modified, self.began)
    }
}

/// The file in which the cursor stands, which may have been renamed since.
fn located(path: &Path, here: Candidate, cursor: &Cursor) -> Result<(Candidate, u64)> {
    let wanted = cursor.place;
    let matches = |found: &Candidate| match wanted.first {
        Some(_) => found.place.first == wanted.first,
        None => found.place.file == wanted.file,
    };
    if matches(&here) && (here.place.file == wanted.file || wanted.first.is_none()) {
        return Ok((here, cursor.offset));
    }
    let was_cut = here.place.file == wanted.file && wanted.file.is_some();
    let mut copy = None;
    for sibling in siblings(path).unwrap_or_default() {
        let Ok(found) = Candidate::open(&sibling) else {
            continue;
        };
        if matches(&found) {
            if found.place.file == wanted.file {
                return Ok((found, cursor.offset));
            }
            copy = Some(found);
        }
    }
    // Restored or moved to another disk: the same lines under another number.
    if matches(&here) {
        return Ok((here, cursor.offset));
    }
    if let Some(copy) = copy {
        return Ok((copy, cursor.offset));
    }
    if cursor.offset == 0 && cursor.pending.is_empty() {
        return Ok((here, 0));
    }
    Err(match was_cut {
        true => truncated(path, cursor.offset),
        false => Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the cursor belongs to another file than {}: give its own, or bring the rotated \
                 file that it stands in back into the folder; without a cursor the file is \
                 forwarded from its beginning",
                path.display()
            ),
        ),
    })
}

fn truncated(path: &Path, offset: u64) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{} was truncated or replaced: the cursor stands at offset {offset}, which it had \
             before: rotate by renaming (no copytruncate), and remove the cursor to forward the \
             file from its beginning",
            path.display()
        ),
    )
}

/// The files in the log's folder whose names begin with its name, itself included.
fn siblings(path: &Path) -> io::Result<Vec<PathBuf>> {
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

fn is_compressed(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ["gz", "zst", "xz", "bz2", "lz4"]
        .iter()
        .any(|known| ending == *known)
}

/// FNV-1a of a file's first line, or of what the head holds of it.
fn fingerprint(line: &[u8]) -> u64 {
    line.iter()
        .take(HEAD)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
