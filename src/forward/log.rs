//! Reading an audit file line by line while others append to it, through its rotations.
//!
//! A file is known again by its device and inode, and by its first line, which holds an id that no
//! other file begins with: inodes are used again, and files are copied and restored. Which files
//! come next is decided by what was read already, not by times, which are set back and lost; times
//! only put several of them in order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cursor::{Cursor, Left, Mark, Tail};
use super::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::AuditRecord;
use crate::report::audit::parts::{
    Hash, MAX_LINE, Part, ended, identity, is_unwritten, lock_all, siblings,
};
use crate::util::sync::Cancel;

/// As much of the end of a line is kept in mind.
const TAIL: usize = 1 << 12;

/// What is read next.
pub(super) enum Found {
    Record(Box<AuditRecord>),
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
    /// Up to where it was read.
    mark: Mark,
    /// The time of the file's first record.
    began: Option<SystemTime>,
    /// Where the line that was read last begins.
    start: u64,
    /// A line whose end is not there yet, and how much of it was too long to keep.
    line: Vec<u8>,
    skipped: u64,
    /// The file was renamed, and read to its end after that was seen.
    drained: bool,
    left: Left,
    /// Up to where everything is done, and the files that were left by then.
    done: (Mark, Left),
    #[cfg(test)]
    pub(super) when_renamed: Option<Box<dyn FnMut()>>,
}

impl Log {
    /// Opens the log where the cursor stands, or at its beginning; `None` while there is neither
    /// a file of its name nor the cursor's.
    pub(super) fn open(path: &Path, cursor: Option<&Cursor>) -> Result<Option<Log>> {
        let here = match Part::open(path) {
            Ok(here) => Some(here),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(unopened(path).with_source(e)),
        };
        let (left, mut mark) = match cursor {
            Some(cursor) => (cursor.left.clone(), cursor.mark),
            None => (renamed(path)?, Mark::default()),
        };
        let found = match cursor {
            Some(_) => located(path, here, &mark)?,
            None => here.map(Located::At),
        };
        let part = match found {
            None => return Ok(None),
            Some(Located::At(part)) => part,
            Some(Located::Nowhere(here)) => {
                // Nothing was read yet.
                mark = Mark::default();
                match (next_part(path, &left, &mark, None)?, here) {
                    (Scan::Next(part), _) | (_, Some(part)) => part,
                    _ => return Ok(None),
                }
            }
        };
        if mark.offset == 0 && part.is_foreign {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is no audit log: give the file that --audit wrote",
                    path.display()
                ),
            ));
        }
        if part.length < mark.offset {
            return Err(truncated(path, mark.offset));
        }
        let mark = Mark {
            offset: mark.offset,
            last: mark.last,
            ..Mark::beginning(&part)
        };
        let mut log = Log {
            path: path.to_owned(),
            began: part.began,
            reader: BufReader::with_capacity(1 << 16, part.file),
            start: mark.offset,
            mark,
            line: Vec::new(),
            skipped: 0,
            drained: false,
            done: (mark, left.clone()),
            left,
            #[cfg(test)]
            when_renamed: None,
        };
        let seek = log.reader.seek(SeekFrom::Start(mark.offset));
        seek.map_err(|e| log.failed(e))?;
        log.check()?;
        Ok(Some(log))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the line that was read last begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Everything that was read is done; `true` where that is news.
    pub(super) fn passed(&mut self) -> bool {
        let (done, left) = &mut self.done;
        if (done.file, done.first) != (self.mark.file, self.mark.first) {
            *left = self.left.clone();
        }
        std::mem::replace(done, self.mark) != self.mark
    }

    pub(super) fn done(&self) -> (Mark, &Left) {
        (self.done.0, &self.done.1)
    }

    /// What comes next, up to the end, without moving: `look` is given each record.
    pub(super) fn ahead(
        &mut self,
        cancel: &Cancel,
        mut look: impl FnMut(&AuditRecord),
    ) -> Result<()> {
        let file = self.reader.get_ref();
        let before = (&mut &*file).stream_position();
        let copy = file.try_clone();
        let (before, copy) = before
            .and_then(|at| Ok((at, copy?)))
            .map_err(|e| self.failed(e))?;
        let mut ahead = Log {
            path: self.path.clone(),
            reader: BufReader::with_capacity(1 << 16, copy),
            mark: self.mark,
            began: self.began,
            start: self.start,
            line: Vec::new(),
            skipped: 0,
            drained: false,
            left: self.left.clone(),
            done: (self.mark, Left::default()),
            #[cfg(test)]
            when_renamed: None,
        };
        let seek = ahead.reader.seek(SeekFrom::Start(self.mark.offset));
        let result = seek.map_err(|e| self.failed(e)).and_then(|_| {
            loop {
                Cancel::check(Some(cancel))?;
                match ahead.next()? {
                    Found::Record(record) => look(&record),
                    Found::Torn { .. } => {}
                    Found::End => return Ok(()),
                }
            }
        });
        // Both share one position.
        let back = (&mut self.reader.get_ref()).seek(SeekFrom::Start(before));
        back.map_err(|e| self.failed(e))?;
        result
    }

    pub(super) fn next(&mut self) -> Result<Found> {
        loop {
            if let Some(found) = self.line()? {
                return Ok(found);
            }
            let found = self.reader.get_ref().metadata();
            let length = found.map_err(|e| self.failed(e))?.len();
            if length < self.mark.offset + self.line.len() as u64 + self.skipped {
                return Err(self.truncated());
            }
            match std::fs::metadata(&self.path) {
                Ok(found) if identity(&found) == self.mark.file => return Ok(Found::End),
                // Renamed, and nobody has written since.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.failed(e)),
                Ok(_) => {}
            }
            #[cfg(test)]
            if let Some(hook) = self.when_renamed.as_mut() {
                hook();
            }
            // What was written before it was renamed is there by now.
            if !self.drained {
                self.drained = true;
                continue;
            }
            let Some(next) = self.following()? else {
                return Ok(Found::End);
            };
            if !self.line.is_empty() || self.skipped > 0 {
                return Ok(self.torn());
            }
            // Its first lines may have come since it was opened.
            self.look_at_the_beginning()?;
            self.left.add(self.mark.first, self.began);
            self.mark = Mark::beginning(&next);
            self.began = next.began;
            self.reader = BufReader::with_capacity(1 << 16, next.file);
            self.reader.rewind().map_err(|e| self.failed(e))?;
            self.start = 0;
            self.drained = false;
        }
    }

    /// The next whole line, if there is one.
    fn line(&mut self) -> Result<Option<Found>> {
        loop {
            if self.reader.buffer().is_empty() {
                let read = self.reader.fill_buf().map(<[u8]>::is_empty);
                if read.map_err(|e| self.failed(e))? {
                    return Ok(None);
                }
                // After it was read: what is there now was there then.
                self.check()?;
            }
            let buffer = self.reader.buffer();
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = buffer.get(..end.map_or(buffer.len(), |end| end + 1));
            let part = part.unwrap_or(buffer);
            let bytes = part.len();
            self.line.extend_from_slice(part);
            self.reader.consume(bytes);
            if self.line.len() > MAX_LINE {
                self.skipped += self.line.len() as u64;
                self.line.clear();
            }
            if end.is_none() {
                continue;
            }
            if self.skipped > 0 {
                return Ok(Some(self.torn()));
            }
            let line = std::mem::take(&mut self.line);
            let record = serde_json::from_slice::<AuditRecord>(&line);
            let at = record
                .as_ref()
                .map_or(UNIX_EPOCH, |record| record.timestamp);
            self.consumed(&line, line.len() as u64, at);
            let found = match record {
                Ok(record) => Some(Found::Record(Box::new(record))),
                Err(_) if line == b"\n" => None,
                Err(_) => Some(Found::Torn {
                    offset: self.start,
                    bytes: line.len() as u64,
                }),
            };
            // Its room is used again.
            self.line = line;
            self.line.clear();
            if found.is_some() {
                if self.mark.first.is_none() {
                    self.look_at_the_beginning()?;
                }
                return Ok(found);
            }
        }
    }

    /// A line was read, of which `line` is the end.
    fn consumed(&mut self, line: &[u8], bytes: u64, at: SystemTime) {
        let tail = line.get(line.len().saturating_sub(TAIL)..).unwrap_or(line);
        let mut hash = Hash::new();
        hash.add(tail);
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.start = self.mark.offset;
        self.mark.offset += bytes;
        self.mark.last = Some(Tail {
            hash: hash.0,
            bytes: tail.len() as u64,
            at: since.as_millis() as u64,
        });
    }

    fn look_at_the_beginning(&mut self) -> Result<()> {
        let copy = self.reader.get_ref().try_clone().and_then(Part::of);
        let part = copy.map_err(|e| self.failed(e))?;
        (self.mark.first, self.began) = (part.first, part.began);
        Ok(())
    }

    fn torn(&mut self) -> Found {
        let bytes = self.skipped + self.line.len() as u64;
        let line = std::mem::take(&mut self.line);
        self.consumed(&line, bytes, UNIX_EPOCH);
        self.skipped = 0;
        Found::Torn {
            offset: self.start,
            bytes,
        }
    }

    /// Whether the line that was read last is still where it was: else other content has come into
    /// the file, or it was cut.
    fn check(&mut self) -> Result<()> {
        let Some(last) = self.mark.last else {
            return Ok(());
        };
        let mut file = self.reader.get_ref();
        let mut bytes = vec![0; last.bytes.min(TAIL as u64) as usize];
        let from = self.mark.offset.saturating_sub(last.bytes);
        let read = file.stream_position().and_then(|before| {
            file.seek(SeekFrom::Start(from))?;
            let read = file.read_exact(&mut bytes);
            file.seek(SeekFrom::Start(before))?;
            Ok(read)
        });
        let mut hash = Hash::new();
        hash.add(&bytes);
        match read.map_err(|e| self.failed(e))? {
            Ok(()) if hash.0 == last.hash => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(self.failed(e)),
            _ => Err(self.truncated()),
        }
    }

    /// The file that comes after this one; `None` when there is none yet. A file that is renamed
    /// while the folder is read may be in neither place: only what is found twice is sure.
    fn following(&self) -> Result<Option<Part>> {
        let mut before = None;
        for _ in 0..20 {
            let now = self.reader.get_ref();
            let found = match next_part(&self.path, &self.left, &self.mark, Some(now))? {
                Scan::Next(part) => Some(part),
                Scan::Nothing => None,
                Scan::Moving => continue,
            };
            let identity = found.as_ref().and_then(|part| part.identity);
            if before == Some(identity) {
                return Ok(found);
            }
            before = Some(identity);
        }
        Ok(None)
    }

    /// Runs `while_locked` where no process writes any file of the log, and before one may.
    pub(super) fn unwritten<R>(
        &mut self,
        while_locked: impl FnOnce(&mut Log) -> Result<R>,
    ) -> Result<Option<R>> {
        if !is_unwritten(self.reader.get_ref()) {
            return Ok(None);
        }
        let others = lock_all(&self.path, self.mark.file).map_err(|e| self.failed(e));
        // They may be locked no longer once the reader has gone on: whoever it was is at the end.
        let locked = self.reader.get_ref().try_clone();
        let result = match others {
            Ok(Some(_others)) => while_locked(self).map(Some),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        // Its lock has to be given back by hand: it stays open.
        if let Ok(locked) = locked {
            let _ = locked.unlock();
        }
        result
    }

    fn failed(&self, error: io::Error) -> Error {
        unread(&self.path, error)
    }

    fn truncated(&self) -> Error {
        truncated(&self.path, self.mark.offset)
    }
}

/// The files that were renamed before the first run: it does not read them.
pub(super) fn renamed(path: &Path) -> Result<Left> {
    let mut left = Left::default();
    for sibling in siblings(path).map_err(|e| unread(path, e))? {
        if let Some(other) = Part::open(&sibling).ok().filter(|_| sibling != path) {
            left.add(other.first, other.began);
        }
    }
    Ok(left)
}

/// What the folder shows.
enum Scan {
    Next(Part),
    Nothing,
    /// A file was renamed or removed meanwhile.
    Moving,
}

/// The file that comes after the one at `mark`, which is `now`.
fn next_part(path: &Path, left: &Left, mark: &Mark, now: Option<&File>) -> Result<Scan> {
    let modified = now.and_then(|file| file.metadata().ok()?.modified().ok());
    let last = mark.last.filter(|last| last.at > 0);
    let last = last.and_then(|last| UNIX_EPOCH.checked_add(Duration::from_millis(last.at)));
    let since = ended(modified, last);
    let mut present: Option<Part> = None;
    let mut next: Option<(Part, (Option<SystemTime>, SystemTime))> = None;
    let all = siblings(path).map_err(|e| unread(path, e))?;
    for sibling in &all {
        let found = match Part::open(sibling) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Scan::Moving),
            // A folder, or nothing of ours.
            Err(_) => continue,
        };
        // The present file comes last, whatever its clock said.
        if sibling == path {
            present = Some(found);
            continue;
        }
        if is_compressed(sibling)
            && since.is_some()
            && found.modified > since
            && !all.contains(&sibling.with_extension(""))
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} was compressed before it was forwarded: decompress it, and compress \
                     later from now on (delaycompress)",
                    sibling.display()
                ),
            ));
        }
        let (Some(first), Some(began)) = (found.first, found.began) else {
            continue;
        };
        // A copy of what was read, or is read now, is no further part.
        if Some(first) == mark.first || left.holds(first, began) {
            continue;
        }
        let order = (found.ended().map_err(|e| unread(path, e))?, began);
        let is_next = |(next, before): &(Part, _)| match found.first == next.first {
            // Of copies the longest.
            true => found.length > next.length,
            false => order < *before,
        };
        if next.as_ref().is_none_or(is_next) {
            next = Some((found, order));
        }
    }
    let next = next.map(|(next, _)| next);
    Ok(next.or(present).map_or(Scan::Nothing, Scan::Next))
}

/// Where the cursor stands.
enum Located {
    At(Part),
    /// It stood at the beginning of a file that was empty, and has gone.
    Nowhere(Option<Part>),
}

/// The file in which the cursor stands, which may have been renamed since; `None` when no file has
/// the log's name either.
fn located(path: &Path, here: Option<Part>, wanted: &Mark) -> Result<Option<Located>> {
    let matches = |found: &Part| match wanted.first {
        Some(_) => found.first == wanted.first,
        None => found.identity == wanted.file,
    };
    let is_itself = |found: &Part| matches(found) && found.identity == wanted.file;
    let at = |part| Ok(Some(Located::At(part)));
    let was_cut = here
        .as_ref()
        .is_some_and(|here| here.identity == wanted.file && here.identity.is_some());
    let mut copy: Option<Part> = None;
    let (mut here, is_here) = match here {
        Some(here) if is_itself(&here) => return at(here),
        here => {
            let is_here = here.as_ref().is_some_and(matches);
            (here, is_here)
        }
    };
    for sibling in siblings(path).unwrap_or_default() {
        let Ok(found) = Part::open(&sibling) else {
            continue;
        };
        if is_itself(&found) {
            return at(found);
        }
        // Restored or moved to another disk: the same lines under another number.
        let is_longer = |copy: &Part| copy.length < found.length;
        if matches(&found) && copy.as_ref().is_none_or(is_longer) {
            copy = Some(found);
        }
    }
    if let Some(here) = here.take_if(|_| is_here) {
        return at(here);
    }
    if let Some(copy) = copy {
        return at(copy);
    }
    if wanted.offset == 0 {
        return Ok(Some(Located::Nowhere(here)));
    }
    if here.is_none() {
        return Ok(None);
    }
    Err(match was_cut {
        true => truncated(path, wanted.offset),
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

fn unread(path: &Path, error: io::Error) -> Error {
    failed("the audit file", path, "read", error)
}

/// The error of a log that is not there.
pub(super) fn unopened(path: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "the audit file {} cannot be opened: check it",
            path.display()
        ),
    )
}

fn truncated(path: &Path, offset: u64) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{} was truncated or its lines were changed: what was read last, up to offset \
             {offset}, is not there any more: rotate by renaming (no copytruncate), and remove \
             the cursor to forward the file from its beginning",
            path.display()
        ),
    )
}

fn is_compressed(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ["gz", "zst", "xz", "bz2", "lz4"]
        .iter()
        .any(|known| ending == *known)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn record(id: &str) -> String {
        format!(
            "{{\"id\":\"{id}\",\"phase\":\"outcome\",\"timestamp\":\"2026-01-01T00:00:00.000Z\",\
             \"conversationId\":\"c\",\"target\":\"conversation\",\"status\":\"applied\",\
             \"updatedKeys\":[],\"attempts\":1,\"requests\":1,\"latencyMs\":1}}\n"
        )
    }

    fn append(path: &Path, text: &str) {
        let file = File::options().append(true).create(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn id(found: Found) -> Option<String> {
        match found {
            Found::Record(record) => Some(record.id),
            Found::Torn { .. } => Some("torn".to_owned()),
            Found::End => None,
        }
    }

    /// A record that came after the end was read, and before it was seen that the file was renamed.
    #[test]
    #[cfg(unix)]
    fn log_written_until_it_was_renamed_is_read_to_its_end() {
        let folder = std::env::temp_dir().join(format!("ga-drain-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, old) = (folder.join("audit.jsonl"), folder.join("audit.jsonl.1"));
        append(&path, &record("a"));
        let mut log = Log::open(&path, None).unwrap().unwrap();
        assert_eq!(id(log.next().unwrap()).unwrap(), "a");
        std::fs::rename(&path, &old).unwrap();
        append(&path, &record("c"));
        let late = old.clone();
        let mut text = Some(record("b"));
        log.when_renamed = Some(Box::new(move || {
            if let Some(text) = text.take() {
                append(&late, &text);
            }
        }));
        assert_eq!(id(log.next().unwrap()).unwrap(), "b");
        assert_eq!(id(log.next().unwrap()).unwrap(), "c");
        assert_eq!(id(log.next().unwrap()), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
