//! Reading an audit file line by line while others append to it, through its rotations.
//!
//! The reader knows a file by its first line, whatever the file's name is. The next part of the log
//! is the one whose number says so. Parts without numbers come in the order of their names.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::cursor::{Mark, Tail};
use super::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::AuditRecord;
use crate::report::audit::parts::{Head, MAX_LINE, Part, hash, id_of, parts};

/// How much of the end of a line is kept, to know the line again.
const TAIL: usize = 1 << 12;
/// How often a search is repeated while files are renamed.
const TRIES: usize = 20;

/// What the reader finds next.
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

/// A reader of the log.
pub(super) struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    /// Up to where it has read.
    mark: Mark,
    /// Where the line begins that it read last.
    start: u64,
    /// A line without its end, and how many bytes before it were too many to keep.
    line: Vec<u8>,
    skipped: u64,
    /// The file was renamed, and read to its end after that showed.
    drained: bool,
    /// The parts that come next, as the folder showed them.
    upcoming: VecDeque<Part>,
    /// Up to where everything is done.
    pub(super) done: Mark,
}

impl Log {
    /// Opens the log at the mark. Without one: at the beginning of the file that has the log's
    /// name, or behind the last part. `None` while there is no part yet.
    pub(super) fn open(path: &Path, mark: Option<&Mark>) -> Result<Option<Log>> {
        for _ in 0..TRIES {
            let is_here = present(path)?.is_some();
            let parts = parts_now(path, mark)?;
            let mut begun = parts.iter().filter(|part| part.head.began.is_some());
            let (part, mark) = match mark {
                None => match parts.iter().find(|part| part.path == path) {
                    None => {
                        let last = begun.next_back();
                        (last, last.map(Mark::end_of))
                    }
                    own => (own, None),
                },
                Some(Mark { first: None, .. }) => (begun.next(), None),
                Some(mark) => {
                    let known = begun.find(|part| part.head.first == mark.first);
                    (Some(known.ok_or_else(|| gone(path))?), Some(mark.clone()))
                }
            };
            let (file, head) = match part {
                Some(part) => match reopened(part) {
                    Some(found) => found,
                    None => continue,
                },
                None if is_here => Head::open(path).map_err(|e| unread(path, e))?,
                None => return Ok(None),
            };
            let mark = mark.unwrap_or_else(|| Mark::beginning(head));
            return Log::at(path, file, mark).map(Some);
        }
        Err(gone(path))
    }

    fn at(path: &Path, mut file: File, mark: Mark) -> Result<Log> {
        file.seek(SeekFrom::Start(mark.offset))
            .map_err(|e| unread(path, e))?;
        let log = Log {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            start: mark.offset,
            line: Vec::new(),
            skipped: 0,
            drained: false,
            upcoming: VecDeque::new(),
            done: mark.clone(),
            mark,
        };
        log.check()?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the line begins that was read last.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Notes that everything that was read is done. True if that is news.
    pub(super) fn passed(&mut self) -> bool {
        let is_news = self.done != self.mark;
        self.done.clone_from(&self.mark);
        is_news
    }

    pub(super) fn next(&mut self) -> Result<Found> {
        loop {
            if let Some(found) = self.line()? {
                return Ok(found);
            }
            if let Some(found) = self.at_its_end()? {
                return Ok(found);
            }
        }
    }

    /// Goes on to the next part, if the file was renamed. `None` when there may be more to read.
    fn at_its_end(&mut self) -> Result<Option<Found>> {
        let length = self.reader.get_ref().metadata();
        let length = length.map_err(|e| unread(&self.path, e))?.len();
        if length < self.mark.offset + self.line.len() as u64 + self.skipped {
            return Err(truncated(&self.path, self.mark.offset));
        }
        // What was written before the rename is there after it.
        let was_drained = std::mem::take(&mut self.drained);
        if self.is_present()? {
            return Ok(Some(Found::End));
        }
        if !was_drained {
            self.drained = true;
            return Ok(None);
        }
        let Some((file, head)) = self.next_part()? else {
            return Ok(Some(Found::End));
        };
        if !self.line.is_empty() || self.skipped > 0 {
            let line = std::mem::take(&mut self.line);
            return Ok(Some(self.torn(&line)));
        }
        self.upcoming.pop_front();
        self.mark = Mark::beginning(head);
        self.reader = BufReader::with_capacity(1 << 16, file);
        self.start = 0;
        Ok(None)
    }

    /// True if the file that is read has the log's name.
    fn is_present(&mut self) -> Result<bool> {
        let here = match Head::open(&self.path) {
            Ok((_, here)) => here,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(unread(&self.path, e)),
        };
        if self.mark.first.is_none() {
            // Its first line may have come since it was opened.
            self.look_at_the_beginning()?;
        }
        Ok(here.first == self.mark.first)
    }

    /// The next whole line, if there is one.
    fn line(&mut self) -> Result<Option<Found>> {
        loop {
            let buffered = self.reader.buffer().len();
            let room = MAX_LINE.saturating_sub(self.line.len()) as u64;
            let mut reader = self.reader.by_ref().take(room);
            let read = reader.read_until(b'\n', &mut self.line);
            let read = read.map_err(|e| unread(&self.path, e))?;
            if read == 0 {
                return Ok(None);
            }
            if read > buffered {
                // After it was read: what is there now was there then.
                self.check()?;
            }
            if !self.line.ends_with(b"\n") {
                if self.line.len() >= MAX_LINE {
                    self.skipped += self.line.len() as u64;
                    self.line.clear();
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let is_whole = self.skipped == 0;
            let torn = self.torn(&line);
            if is_whole && line == b"\n" {
                continue;
            }
            if self.mark.first.is_none() {
                self.look_at_the_beginning()?;
            }
            return Ok(Some(match serde_json::from_slice(&line) {
                Ok(record) if is_whole => Found::Record(Box::new(record)),
                _ => torn,
            }));
        }
    }

    /// Moves the mark behind a line, of which `line` is the end, and takes it for torn.
    fn torn(&mut self, line: &[u8]) -> Found {
        let bytes = line.len() as u64 + std::mem::take(&mut self.skipped);
        let tail = line.get(line.len().saturating_sub(TAIL)..).unwrap_or(line);
        self.start = self.mark.offset;
        self.mark.offset += bytes;
        self.mark.last = Some(Tail {
            hash: hash(tail),
            bytes: tail.len() as u64,
        });
        Found::Torn {
            offset: self.start,
            bytes,
        }
    }

    fn look_at_the_beginning(&mut self) -> Result<()> {
        let head = Head::of(self.reader.get_ref()).map_err(|e| unread(&self.path, e))?;
        (self.mark.first, self.mark.place) = (head.first, head.place);
        Ok(())
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
        match read.map_err(|e| unread(&self.path, e))? {
            Ok(()) if hash(&bytes) == last.hash => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(unread(&self.path, e)),
            _ => Err(truncated(&self.path, self.mark.offset)),
        }
    }

    /// The part that comes next; `None` while there is none.
    fn next_part(&mut self) -> Result<Option<(File, Head)>> {
        let mut problem = gone(&self.path);
        for _ in 0..TRIES {
            if let Some(part) = self.upcoming.front() {
                match reopened(part) {
                    Some(found) => return Ok(Some(found)),
                    // Renamed once more.
                    None => self.upcoming.clear(),
                }
            }
            let here = present(&self.path)?.and_then(|head| head.first);
            let mut parts = parts_now(&self.path, Some(&self.mark))?;
            let is_now = |part: &Part| match self.mark.first {
                Some(_) => part.head.first == self.mark.first,
                None => part.head.began.is_none(),
            };
            let after = match (parts.iter().rposition(is_now), &self.mark.place) {
                (Some(now), _) => now + 1,
                (None, Some(now)) => parts.partition_point(|part| part.number() <= now.part),
                (None, None) if self.mark.first.is_none() => 0,
                (None, None) => continue,
            };
            let next = parts.split_off(after);
            match next.first() {
                Some(part) => match self.refusal(part) {
                    None => self.upcoming = next.into(),
                    Some(error) => problem = error,
                },
                None if here.is_none() || here == self.mark.first => return Ok(None),
                None => {
                    let path = self.path.display();
                    problem = refused(&format!("{path} does not continue the log"));
                }
            }
        }
        Err(problem)
    }

    /// Why a part does not continue the one that was read before.
    fn refusal(&self, next: &Part) -> Option<Error> {
        let path = next.path.display();
        match (&self.mark.place, &next.head.place) {
            (Some(now), Some(next)) if next.part > now.part + 1 => {
                let missing = now.part + 1;
                Some(refused(&format!(
                    "part {missing} of the log is missing before {path}"
                )))
            }
            _ if next.head.began.is_none() => Some(refused(&format!(
                "{path} was compressed before it was forwarded"
            ))),
            _ => None,
        }
    }
}

/// The parts of the log, as two looks at the folder show them: a file that is renamed during a look
/// may be missing from it.
fn parts_now(path: &Path, mark: Option<&Mark>) -> Result<Vec<Part>> {
    let place = match mark.and_then(|mark| mark.place.clone()) {
        None => present(path)?.and_then(|head| head.place),
        place => place,
    };
    let id = place.map(|place| place.log).or_else(|| id_of(path));
    let look = || parts(path, id.as_deref()).map_err(|e| unread(path, e));
    let firsts = |parts: &[Part]| Vec::from_iter(parts.iter().map(|part| part.head.first));
    let mut found = look()?;
    for _ in 0..TRIES {
        let before = firsts(&found);
        found = look()?;
        if firsts(&found) == before {
            break;
        }
    }
    Ok(found)
}

/// Opens a part; `None` if its name leads to another file by now.
fn reopened(part: &Part) -> Option<(File, Head)> {
    let found = Head::open(&part.path).ok();
    found.filter(|(_, head)| head.first == part.head.first)
}

/// The beginning of the file that has the log's name.
fn present(path: &Path) -> Result<Option<Head>> {
    match Head::open(path) {
        Ok((_, head)) if head.is_foreign => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} is no audit log: give the file that --audit wrote",
                path.display()
            ),
        )),
        Ok((_, head)) => Ok(Some(head)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unopened(path).with_source(e)),
    }
}

fn unread(path: &Path, error: io::Error) -> Error {
    failed("the audit file", path, "read", error)
}

/// The error of a log that is not there.
pub(super) fn unopened(path: &Path) -> Error {
    let path = path.display();
    let problem = format!("the audit file {path} cannot be opened: check it");
    Error::new(ErrorKind::InvalidInput, problem)
}

fn truncated(path: &Path, offset: u64) -> Error {
    let path = path.display();
    let problem = format!("{path} was truncated or its lines were changed before offset {offset}");
    refused(&problem)
}

fn gone(path: &Path) -> Error {
    let path = path.display();
    refused(&format!(
        "the file that the cursor stands in is gone, and {path} is another file, or was truncated"
    ))
}

fn refused(problem: &str) -> Error {
    const ADVICE: &str = "rotate by renaming (no copytruncate) and compress later         (delaycompress); bring the file back into the folder, decompressed, under a name that         begins with the log's. To go on without it, remove the cursor: then the log's own file is         forwarded from its beginning";
    Error::new(ErrorKind::InvalidInput, format!("{problem}: {ADVICE}"))
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
        assert!(log.line().unwrap().is_none());
        append(&path, &record("b"));
        std::fs::rename(&path, &old).unwrap();
        append(&path, &record("c"));
        assert!(log.at_its_end().unwrap().is_none());
        assert_eq!(id(log.next().unwrap()).unwrap(), "b");
        assert_eq!(id(log.next().unwrap()).unwrap(), "c");
        assert_eq!(id(log.next().unwrap()), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
