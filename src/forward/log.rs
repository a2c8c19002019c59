//! Reading an audit file line by line while others append to it, through its rotations.
//!
//! A file is known again by its first line, whatever its name. The part that comes next is the one
//! whose number says so; parts without a number come in the order of their names.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Mark, Tail};
use super::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::AuditRecord;
use crate::report::audit::parts::{
    Head, MAX_LINE, Part, hash, id_of, lock_of, renamed, siblings, try_lock,
};
use crate::util::sync::Cancel;

/// How much of the end of a line is kept, to know the line again.
const TAIL: usize = 1 << 12;
/// How many first lines of parts without a number are kept.
const MOST_LEFT: usize = 4_096;

/// What is read next.
pub(super) enum Found {
    Record(Box<AuditRecord>),
    /// A line that is no record.
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
    /// Where the line that was read last begins.
    start: u64,
    /// A line whose end is not there yet, and how much of it was too long to keep.
    line: Vec<u8>,
    skipped: u64,
    /// The file was renamed, and read to its end after that was seen.
    drained: bool,
    /// The parts that come next, as the folder showed them.
    upcoming: VecDeque<Part>,
    /// The first lines of parts without a number that are not to be read.
    left: Vec<u64>,
    /// Up to where everything is done, and the parts that were left by then.
    done: (Mark, Vec<u64>),
    #[cfg(test)]
    when_renamed: Option<Box<dyn FnMut()>>,
}

impl Log {
    /// Opens the log where the cursor stands, or at its beginning; `None` while there is neither
    /// a file of its name nor the cursor's.
    pub(super) fn open(path: &Path, cursor: Option<&Cursor>) -> Result<Option<Log>> {
        let here = present(path)?;
        let Some(Cursor { mark, left, .. }) = cursor else {
            let Some((file, head)) = here else {
                return Ok(None);
            };
            let left = parts_before(path, head.place.is_some())?;
            return Log::at(path, file, Mark::beginning(head), left).map(Some);
        };
        if mark.first.is_some() {
            let found = found(path, here, mark)?;
            let log = found.map(|file| Log::at(path, file, mark.clone(), left.clone()));
            return log.transpose();
        }
        // Nothing was read yet.
        let mut next = Next {
            path,
            mark,
            left,
            upcoming: &mut VecDeque::new(),
        };
        let Some((file, head)) = next.part()?.or(here) else {
            return Ok(None);
        };
        Log::at(path, file, Mark::beginning(head), left.clone()).map(Some)
    }

    fn at(path: &Path, file: File, mark: Mark, left: Vec<u64>) -> Result<Log> {
        let mut log = Log {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            start: mark.offset,
            line: Vec::new(),
            skipped: 0,
            drained: false,
            upcoming: VecDeque::new(),
            done: (mark.clone(), left.clone()),
            mark,
            left,
            #[cfg(test)]
            when_renamed: None,
        };
        let seek = log.reader.seek(SeekFrom::Start(log.mark.offset));
        seek.map_err(|e| log.failed(e))?;
        log.check()?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the line that was read last begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Notes that everything that was read is done. True if that is news.
    pub(super) fn passed(&mut self) -> bool {
        if self.done.0 == self.mark {
            return false;
        }
        if self.done.0.first != self.mark.first {
            self.done.1.clone_from(&self.left);
        }
        self.done.0.clone_from(&self.mark);
        true
    }

    /// The cursor of what is done.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor::at(self.done.0.clone(), self.done.1.clone())
    }

    /// Shows each record up to the end to `look`, without moving.
    pub(super) fn ahead(
        &mut self,
        cancel: &Cancel,
        mut look: impl FnMut(&AuditRecord),
    ) -> Result<()> {
        let mut file = self.reader.get_ref();
        let before = file.stream_position().map_err(|e| self.failed(e))?;
        let copy = file.try_clone().map_err(|e| self.failed(e))?;
        let read = || -> Result<()> {
            let mut ahead = Log::at(&self.path, copy, self.mark.clone(), self.left.clone())?;
            loop {
                Cancel::check(Some(cancel))?;
                match ahead.next()? {
                    Found::Record(record) => look(&record),
                    Found::Torn { .. } => {}
                    Found::End => return Ok(()),
                }
            }
        };
        let result = read();
        // Both share one position.
        let back = file.seek(SeekFrom::Start(before));
        back.map_err(|e| self.failed(e))?;
        result
    }

    pub(super) fn next(&mut self) -> Result<Found> {
        loop {
            if let Some(found) = self.line()? {
                return Ok(found);
            }
            let length = self.reader.get_ref().metadata();
            let length = length.map_err(|e| self.failed(e))?.len();
            if length < self.mark.offset + self.line.len() as u64 + self.skipped {
                return Err(truncated(&self.path, self.mark.offset));
            }
            if self.is_present()? {
                return Ok(self.end());
            }
            #[cfg(test)]
            if let Some(hook) = self.when_renamed.as_mut() {
                hook();
            }
            // What was written before the rename is there by now.
            if !std::mem::replace(&mut self.drained, true) {
                continue;
            }
            let mut next = Next {
                path: &self.path,
                mark: &self.mark,
                left: &self.left,
                upcoming: &mut self.upcoming,
            };
            let Some((file, head)) = next.part()? else {
                return Ok(self.end());
            };
            if !self.line.is_empty() || self.skipped > 0 {
                return Ok(self.torn());
            }
            if let (Some(first), None) = (self.mark.first, &self.mark.place) {
                self.left.push(first);
                if self.left.len() > MOST_LEFT {
                    self.left.remove(0);
                }
            }
            self.upcoming.pop_front();
            self.mark = Mark::beginning(head);
            self.reader = BufReader::with_capacity(1 << 16, file);
            self.reader.rewind().map_err(|e| self.failed(e))?;
            self.start = 0;
            self.drained = false;
        }
    }

    fn end(&mut self) -> Found {
        self.drained = false;
        Found::End
    }

    /// True if the file that is read has the log's name.
    fn is_present(&mut self) -> Result<bool> {
        let here = match Head::open(&self.path) {
            Ok((_, here)) => here,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(self.failed(e)),
        };
        if self.mark.first.is_none() && here.first.is_some() {
            // Its first line may have come since it was opened.
            self.look_at_the_beginning()?;
        }
        Ok(here.first == self.mark.first)
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
            self.consumed(&line, line.len() as u64);
            let found = match serde_json::from_slice::<AuditRecord>(&line) {
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

    /// Moves the mark behind a line, of which `line` is the end.
    fn consumed(&mut self, line: &[u8], bytes: u64) {
        let tail = line.get(line.len().saturating_sub(TAIL)..).unwrap_or(line);
        self.start = self.mark.offset;
        self.mark.offset += bytes;
        self.mark.last = Some(Tail {
            hash: hash(tail),
            bytes: tail.len() as u64,
        });
    }

    fn look_at_the_beginning(&mut self) -> Result<()> {
        let head = Head::of(self.reader.get_ref()).map_err(|e| self.failed(e))?;
        (self.mark.first, self.mark.place) = (head.first, head.place);
        Ok(())
    }

    fn torn(&mut self) -> Found {
        let bytes = self.skipped + self.line.len() as u64;
        let line = std::mem::take(&mut self.line);
        self.consumed(&line, bytes);
        self.skipped = 0;
        Found::Torn {
            offset: self.start,
            bytes,
        }
    }

    /// Refuses a file that was cut or changed before the mark: the line that was read last is no
    /// longer where it was.
    fn check(&self) -> Result<()> {
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
        match read.map_err(|e| self.failed(e))? {
            Ok(()) if hash(&bytes) == last.hash => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(self.failed(e)),
            _ => Err(truncated(&self.path, self.mark.offset)),
        }
    }

    /// Runs `while_locked` if no process writes the log, and before one may.
    pub(super) fn unwritten<R>(
        &mut self,
        while_locked: impl FnOnce(&mut Log) -> Result<R>,
    ) -> Result<Option<R>> {
        let lock = match File::open(lock_of(&self.path)) {
            Ok(lock) if try_lock(&lock) => Some(lock),
            // Only writers make it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            _ => return Ok(None),
        };
        let result = while_locked(self).map(Some);
        drop(lock);
        result
    }

    fn failed(&self, error: io::Error) -> Error {
        unread(&self.path, error)
    }
}

/// The file that has the log's name, and its beginning.
fn present(path: &Path) -> Result<Option<(File, Head)>> {
    match Head::open(path) {
        Ok((_, head)) if head.is_foreign => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} is no audit log: give the file that --audit wrote",
                path.display()
            ),
        )),
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unopened(path).with_source(e)),
    }
}

/// The first lines of the parts that were renamed before the first run, which does not read them.
/// Where the log's own file has a number, theirs are known to be lower.
pub(super) fn parts_before(path: &Path, is_numbered: bool) -> Result<Vec<u64>> {
    let mut left = Vec::new();
    for sibling in siblings(path).map_err(|e| unread(path, e))? {
        let head = Head::open(&sibling).map(|(_, head)| head);
        let head = head.ok().filter(|head| head.began.is_some());
        left.extend(
            head.filter(|head| !is_numbered || head.place.is_none())
                .and_then(|h| h.first),
        );
    }
    Ok(left)
}

/// The search for the part that comes next.
struct Next<'a> {
    path: &'a Path,
    mark: &'a Mark,
    left: &'a [u64],
    /// What an earlier search found.
    upcoming: &'a mut VecDeque<Part>,
}

impl Next<'_> {
    /// The part that comes next; `None` while there is none.
    fn part(&mut self) -> Result<Option<(File, Head)>> {
        let mut problem = None;
        for _ in 0..20 {
            if let Some(part) = self.upcoming.front() {
                match Head::open(&part.path) {
                    Ok((file, head)) if head.first == part.head.first => {
                        return Ok(Some((file, head)));
                    }
                    // Renamed once more.
                    _ => self.upcoming.clear(),
                }
            }
            // Opened before the search: a rename in between shows there.
            let here = present(self.path)?;
            let head = here.as_ref().map(|(_, head)| head.clone());
            let parts = self.unread(head.as_ref())?;
            let firsts =
                |parts: &VecDeque<Part>| Vec::from_iter(parts.iter().map(|p| p.head.first));
            // A file that is renamed during a search may be missing from it.
            if firsts(&parts) != firsts(&self.unread(head.as_ref())?) {
                continue;
            }
            let first = parts.front().map(|part| (&part.path, &part.head));
            let next = match (first, &here) {
                (Some((path, head)), _) => (path.as_path(), head),
                (None, Some((_, head))) if head.first.is_some() => (self.path, head),
                _ => return Ok(None),
            };
            problem = self.check(next.0, next.1).err();
            if problem.is_some() {
                continue;
            }
            match parts.is_empty() {
                true => return Ok(here),
                false => *self.upcoming = parts,
            }
        }
        problem.map_or(Ok(None), Err)
    }

    /// The renamed parts that are still to be read, in the order of writing.
    fn unread(&self, here: Option<&Head>) -> Result<VecDeque<Part>> {
        let of = |head: &Head| head.place.as_ref().map(|place| place.log.clone());
        let own = self.mark.place.as_ref().map(|place| place.log.clone());
        let id = own
            .or_else(|| here.and_then(of))
            .or_else(|| id_of(self.path));
        let mut parts = renamed(self.path, id.as_deref()).map_err(|e| unread(self.path, e))?;
        let is_now = |part: &Part| part.head.first == self.mark.first;
        let now = parts
            .iter()
            .find(|part| is_now(part))
            .map(|part| by_name(&part.path));
        // Of copies the longest.
        let mut longest: HashMap<u64, u64> = HashMap::new();
        for part in &parts {
            let most = longest
                .entry(part.head.first.unwrap_or_default())
                .or_default();
            *most = part.length.max(*most);
        }
        parts.retain(|part| {
            let first = part.head.first.unwrap_or_default();
            let is_before = match (&self.mark.place, &part.head.place) {
                (Some(now), Some(place)) => place.part < now.part,
                _ => false,
            };
            let is_copy = longest.get(&first) != Some(&part.length);
            let is_here = here.is_some_and(|here| here.first == part.head.first);
            let is_next = !(is_before || is_copy || is_here || is_now(part));
            if is_next {
                longest.remove(&first);
            }
            is_next && !self.left.contains(&first)
        });
        // Numbers count up or down from one rotation to the next, and the part that was read
        // before tells which.
        let unnumbered = parts
            .iter()
            .filter(|part| part.head.place.is_none())
            .count();
        if let (Some(now), Some(parts)) = (now, parts.get_mut(..unnumbered)) {
            parts.sort_by_key(|part| by_name(&part.path));
            if parts.last().is_some_and(|part| by_name(&part.path) < now) {
                parts.reverse();
            }
        }
        Ok(parts.into())
    }

    /// Refuses a file that does not continue the part that was read before.
    fn check(&self, path: &Path, next: &Head) -> Result<()> {
        let Some(now) = &self.mark.place else {
            return self.check_compressed();
        };
        let problem = match &next.place {
            Some(next) if next.log == now.log && next.part <= now.part + 1 => return Ok(()),
            Some(next) if next.log == now.log => format!(
                "part {} of the log is missing before {}: bring it back into the folder under a \
                 name that begins with the log's, decompressed",
                now.part + 1,
                path.display()
            ),
            _ => format!(
                "{} does not continue the log, whose last part is {}: rotate by renaming (no \
                 copytruncate), and bring the right file back",
                path.display(),
                now.part
            ),
        };
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{problem}; to go on without it, remove the cursor"),
        ))
    }

    /// Refuses to go on where the name of a compressed file without a number is between that of
    /// the part that was read and the log's.
    fn check_compressed(&self) -> Result<()> {
        let Some(first) = self.mark.first else {
            return Ok(());
        };
        let others = siblings(self.path).map_err(|e| unread(self.path, e))?;
        let is_now =
            |other: &&PathBuf| Head::open(other).is_ok_and(|(_, h)| h.first == Some(first));
        let Some(now) = others.iter().find(is_now) else {
            return Ok(());
        };
        let counts_down = now.extension().is_some_and(|number| {
            let number = number.as_encoded_bytes();
            number.len() < 6 && number.iter().all(u8::is_ascii_digit)
        });
        let now = by_name(now);
        for other in others.iter().filter(|other| is_compressed(other)) {
            let name = by_name(&other.with_extension(""));
            if name != now && counts_down == (name < now) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "{} was compressed before it was forwarded: decompress it, and compress \
                         later from now on (delaycompress)",
                        other.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn is_compressed(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ["gz", "zst", "xz", "bz2", "lz4"]
        .iter()
        .any(|known| ending == *known)
}

/// Orders names that end in numbers.
fn by_name(path: &Path) -> (usize, PathBuf) {
    (path.as_os_str().len(), path.to_owned())
}

/// The file in which the cursor stands, which may have been renamed since; `None` when no file has
/// the log's name either.
fn found(path: &Path, here: Option<(File, Head)>, wanted: &Mark) -> Result<Option<File>> {
    let is_it = |head: &Head| head.first == wanted.first;
    let mut best: Option<(u64, File)> = None;
    let mut compressed = None;
    let is_absent = here.is_none();
    let others = siblings(path).map_err(|e| unread(path, e))?;
    let others = others
        .into_iter()
        .map(|other| (Head::open(&other).ok(), other));
    for (found, name) in [(here, path.to_owned())].into_iter().chain(others) {
        let Some((file, _)) = found.filter(|(_, head)| is_it(head)) else {
            if is_compressed(&name) {
                compressed = Some(name);
            }
            continue;
        };
        let length = file.metadata().map_err(|e| unread(&name, e))?.len();
        // Of copies the longest.
        if best.as_ref().is_none_or(|(most, _)| length > *most) {
            best = Some((length, file));
        }
    }
    let problem = match (best, compressed) {
        (Some((length, _)), _) if length < wanted.offset => {
            return Err(truncated(path, wanted.offset));
        }
        (Some((_, file)), _) => return Ok(Some(file)),
        (None, Some(name)) => format!(
            "the rotated file that the cursor stands in is gone: if {} is that file, decompress \
             it, and compress later from now on (delaycompress)",
            name.display()
        ),
        (None, None) if is_absent => return Ok(None),
        (None, None) => format!(
            "the cursor belongs to another file than {}, or the file was truncated: rotate by \
             renaming (no copytruncate), and bring the file that it stands in back into the \
             folder, under a name that begins with the log's; without a cursor the log is \
             forwarded from its beginning",
            path.display()
        ),
    };
    Err(Error::new(ErrorKind::InvalidInput, problem))
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
