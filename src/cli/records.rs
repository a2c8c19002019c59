//! Updates out of files: JSON lines or CSV, one line at a time, whatever the size of the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};

use genesys_attributes::Update;

use super::csv::{Columns, LONGEST_LINE, Rows, fill};
use super::digest::Digest;
use super::options::{Input, Shard};
use super::sniff;

/// One line of the input: its number, the digest of its text, and what it asks for, or why it is
/// no update.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) digest: u64,
    pub(crate) update: Result<Update, String>,
}

/// Where lines are read from.
type Source = Box<dyn BufRead + Send>;

/// An input that can be read from its beginning again, if it is a file.
pub(crate) struct Opened<'a> {
    input: &'a Input,
    spool: Option<File>,
}

impl<'a> Opened<'a> {
    pub(crate) fn of(input: &'a Input) -> Result<Opened<'a>, String> {
        let opened = Opened { input, spool: None };
        // Told at once, rather than after the settings are checked. A pipe is opened only once:
        // what one reader has taken out of it, the next does not see.
        if !opened.is_stream() {
            if input.file.as_ref().is_some_and(|path| path.is_dir()) {
                return Err(format!(
                    "the input {} cannot be read: it is a directory",
                    opened.name()
                ));
            }
            opened.lines()?;
        }
        Ok(opened)
    }

    /// Whether it can be read only once: standard input, a named pipe, a process substitution.
    fn is_stream(&self) -> bool {
        match &self.input.file {
            None => true,
            Some(path) => {
                std::fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir())
            }
        }
    }

    /// Whether a person is expected to type it.
    pub(crate) fn is_typed(&self) -> bool {
        self.input.file.is_none() && io::IsTerminal::is_terminal(&io::stdin())
    }

    /// Keeps such an input in a file, so that it can be read more than once.
    pub(crate) fn spool(&mut self) -> Result<(), String> {
        if self.is_stream() && self.spool.is_none() {
            let kept = self.source().and_then(spooled);
            self.spool = Some(kept.map_err(|e| {
                format!(
                    "the input {} cannot be kept for a second reading: {e}",
                    self.name()
                )
            })?);
        }
        Ok(())
    }

    fn source(&self) -> io::Result<Source> {
        const BUFFER: usize = 1 << 16;
        Ok(match (&self.spool, &self.input.file) {
            (Some(spool), _) => {
                let mut file = spool.try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                Box::new(BufReader::with_capacity(BUFFER, file))
            }
            (None, Some(path)) => Box::new(BufReader::with_capacity(BUFFER, File::open(path)?)),
            (None, None) => Box::new(BufReader::with_capacity(BUFFER, io::stdin())),
        })
    }

    /// Its lines, once its format is what was said.
    pub(crate) fn lines(&self) -> Result<Lines, String> {
        let name = self.name();
        let unreadable = |e| format!("the input {name} cannot be read: {e}");
        let mut source = self.source().map_err(unreadable)?;
        let start = fill(source.as_mut()).map_err(unreadable)?;
        // A file gives as much at once as there is, up to the buffer's size. From a pipe only
        // what is there is looked at: more may be long in coming.
        let whole = !self.is_stream() && start.len() < 1 << 16;
        sniff::check(start, whole, self.input.csv)
            .map_err(|problem| format!("the input {name} cannot be used: {problem}"))?;
        let mut lines = Lines::json(source, self.input.shard);
        if self.input.csv {
            lines
                .read_header()
                .map_err(|problem| format!("the input {name} cannot be used: {problem}"))?;
        }
        Ok(lines)
    }

    pub(crate) fn name(&self) -> String {
        match &self.input.file {
            Some(path) => path.display().to_string(),
            None => "from standard input".into(),
        }
    }

    /// About how many lines there are to run, where that can be known without waiting for them.
    pub(crate) fn count(&self) -> Option<u64> {
        if self.is_stream() && self.spool.is_none() {
            return None;
        }
        let mut all = self.lines().ok()?;
        let mut lines = 0;
        while all.next_record().is_some() {
            lines += 1;
        }
        Some(self.input.shard.map_or(lines, |shard| lines / shard.count))
    }
}

/// A pipe, or standard input, kept in a file. The file is removed at once where the system lets an
/// open file be removed, else it is left to the system's temporary folder.
fn spooled(mut source: Source) -> io::Result<File> {
    let name = format!("genesys-attributes-{}.input", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    // It may hold personal data, and is nobody else's business while it has a name.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut spool = options.open(&path)?;
    let removed = std::fs::remove_file(&path);
    let copied = io::copy(&mut source, &mut spool);
    drop(removed);
    copied?;
    spool.seek(SeekFrom::Start(0))?;
    Ok(spool)
}

/// The lines of an input. It ends early at a read error, which is kept in `failed`.
pub(crate) struct Lines {
    source: Source,
    format: Format,
    /// The number of physical lines of JSON read so far.
    number: u64,
    shard: Option<Shard>,
    /// Whether the text of each line is kept.
    keep: bool,
    pub(crate) failed: Option<io::Error>,
}

enum Format {
    Json,
    Csv(Box<Table>),
}

struct Table {
    rows: Rows,
    columns: Columns,
    header: Vec<u8>,
    /// Under another header row a row is another record.
    digest: [u8; 8],
}

/// A line that is not taken apart yet.
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) digest: u64,
    /// The text of a JSON line, or of a row that is kept.
    pub(crate) text: Vec<u8>,
    content: Content,
}

enum Content {
    Json,
    Cells(Vec<String>),
    Wrong(String),
}

impl Lines {
    pub(super) fn json(source: Source, shard: Option<Shard>) -> Lines {
        Lines {
            source,
            format: Format::Json,
            number: 0,
            shard,
            keep: false,
            failed: None,
        }
    }

    fn read_header(&mut self) -> Result<(), String> {
        let mut rows = Rows::new();
        let row = rows
            .next(self.source.as_mut(), true)
            .map_err(|error| format!("the input cannot be read: {error}"))?
            .ok_or("the CSV is empty: it needs a header row")?;
        let cells = row
            .cells
            .map_err(|problem| format!("the header row of the CSV cannot be used: {problem}"))?;
        self.format = Format::Csv(Box::new(Table {
            rows,
            columns: Columns::of(&cells)?,
            header: row.raw,
            digest: row.digest.value().to_le_bytes(),
        }));
        Ok(())
    }

    /// The header row of a CSV.
    pub(crate) fn header(&self) -> Option<&[u8]> {
        match &self.format {
            Format::Json => None,
            Format::Csv(table) => Some(&table.header),
        }
    }

    /// Keeps the text of each line from now on.
    pub(crate) fn keep_text(&mut self) {
        self.keep = true;
    }

    /// The next line that is not blank.
    pub(crate) fn next_record(&mut self) -> Option<Record> {
        let read = match &mut self.format {
            Format::Json => self.json_line(),
            Format::Csv(table) => {
                let row = table.rows.next(self.source.as_mut(), self.keep);
                row.map(|row| {
                    row.map(|mut row| {
                        row.digest.add(&table.digest);
                        Record {
                            number: row.line,
                            digest: row.digest.value(),
                            text: row.raw,
                            content: row.cells.map_or_else(Content::Wrong, Content::Cells),
                        }
                    })
                })
            }
        };
        read.unwrap_or_else(|error| {
            self.failed = Some(error);
            None
        })
    }

    fn json_line(&mut self) -> io::Result<Option<Record>> {
        loop {
            let (mut text, mut digest) = (Vec::new(), Digest::new());
            let (mut length, mut ended) = (0usize, false);
            // A carriage return may be the end of the line or a part of it.
            let mut held = false;
            while !ended {
                let buffer = fill(self.source.as_mut())?;
                if buffer.is_empty() {
                    break;
                }
                let newline = buffer.iter().position(|byte| *byte == b'\n');
                let mut chunk = &buffer[..newline.unwrap_or(buffer.len())];
                ended = newline.is_some();
                let used = chunk.len() + usize::from(ended);
                length += chunk.len();
                if held && !chunk.is_empty() {
                    digest.add(b"\r");
                    text.push(b'\r');
                    held = false;
                }
                if let Some(rest) = chunk.strip_suffix(b"\r") {
                    (chunk, held) = (rest, true);
                }
                digest.add(chunk);
                match length <= LONGEST_LINE {
                    true => text.extend_from_slice(chunk),
                    false => text = Vec::new(),
                }
                self.source.consume(used);
            }
            if length == 0 && !ended {
                return Ok(None);
            }
            self.number += 1;
            let content = match length <= LONGEST_LINE {
                true if text.trim_ascii().is_empty() => continue,
                true => Content::Json,
                false => Content::Wrong(format!(
                    "the line is {length} bytes long; at most {LONGEST_LINE} are read"
                )),
            };
            return Ok(Some(Record {
                number: self.number,
                digest: digest.value(),
                text,
                content,
            }));
        }
    }

    /// What a line asks for; `None` when it belongs to another shard.
    pub(crate) fn read(&self, record: Record) -> Option<Line> {
        let update = match (&record.content, &self.format) {
            (Content::Wrong(problem), _) => Err(problem.clone()),
            (Content::Cells(cells), Format::Csv(table)) => table.columns.update(cells),
            _ => json(&record.text, record.number),
        };
        let ours = self.shard.is_none_or(|shard| {
            let named = match &update {
                Ok(update) => Some(update.target().conversation_id().to_owned()),
                // Of the same part before and after it is corrected, where that can be.
                Err(_) => self.conversation(&record),
            };
            match named {
                Some(conversation) => shard.has(&conversation),
                None => shard.has_line(record.number),
            }
        });
        ours.then_some(Line {
            number: record.number,
            digest: record.digest,
            update,
        })
    }

    /// The conversation that a line names, though it may be no update.
    fn conversation(&self, record: &Record) -> Option<String> {
        match (&record.content, &self.format) {
            (Content::Wrong(_), _) => None,
            (Content::Cells(cells), Format::Csv(table)) => table.columns.conversation(cells),
            _ => {
                let text = without_mark(&record.text, record.number);
                let line: serde_json::Value = serde_json::from_slice(text).ok()?;
                Some(line.get("conversationId")?.as_str()?.to_owned())
            }
        }
    }

    /// The lines whose numbers are wanted; the others are not taken apart.
    pub(crate) fn wanted(&mut self, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = Line> {
        std::iter::from_fn(move || {
            loop {
                let record = self.next_record()?;
                if wanted(record.number)
                    && let Some(line) = self.read(record)
                {
                    return Some(line);
                }
            }
        })
    }
}

/// Some editors begin a file with a byte order mark.
fn without_mark(text: &[u8], line: u64) -> &[u8] {
    match text.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) if line == 1 => rest,
        _ => text,
    }
}

fn json(text: &[u8], line: u64) -> Result<Update, String> {
    let text = without_mark(text, line);
    let text = std::str::from_utf8(text).map_err(|_| "the line is not valid UTF-8".to_owned())?;
    serde_json::from_str(text).map_err(|error| {
        // Only the shape of JSON is told by its column; serde_json's other messages are ours.
        match error.classify() {
            // Such a message would show the value, as `"…", expected a map`.
            serde_json::error::Category::Data if !text.trim_start().starts_with('{') => {
                "the line is not a JSON object".to_owned()
            }
            serde_json::error::Category::Data => without_position(&error.to_string()),
            _ => format!("the line is not JSON (column {})", error.column()),
        }
    })
}

/// serde_json adds the position within the line to its messages.
fn without_position(message: &str) -> String {
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message.to_owned(),
    }
}

/// Says that an input could not be read to its end.
pub(crate) fn cut(error: io::Error) -> String {
    format!("the input could not be read to its end: {error}")
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
