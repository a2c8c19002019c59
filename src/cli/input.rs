//! Updates out of files: JSON lines or CSV, one line at a time, whatever the size of the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use genesys_attributes::{LineError, Update};
use serde_json::Value;

/// The longest line that is kept. A longer one is read to its end and dropped.
const LONGEST_LINE: usize = 1 << 20;

/// One line of the input: its number, the digest of its text, and what it asks for.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) digest: u64,
    pub(crate) update: Result<Update, LineError>,
}

/// A digest of text (FNV-1a, 64 bits): tells a changed line from an unchanged one.
#[derive(Clone, Copy)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn new() -> Digest {
        Digest(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// Where lines are read from.
pub(crate) type Source = Box<dyn BufRead + Send>;

/// Opens the input; `None` is standard input.
pub(crate) fn open(file: Option<&Path>) -> io::Result<Source> {
    Ok(match file {
        Some(path) => Box::new(BufReader::with_capacity(1 << 16, File::open(path)?)),
        None => Box::new(BufReader::with_capacity(1 << 16, io::stdin())),
    })
}

/// A pipe, or standard input, kept in a file, so that it can be read twice. The file is removed at once where
/// the system lets an open file be removed, else it is left to the system's temporary folder.
pub(crate) fn spooled(mut source: Source) -> io::Result<File> {
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
    /// The number of physical lines read so far.
    number: u64,
    pub(crate) failed: Option<io::Error>,
}

enum Format {
    Json,
    Csv(Box<Columns>),
}

/// What the header row of a CSV says.
struct Columns {
    cells: Cells,
    conversation: usize,
    participant: Option<usize>,
    /// The other columns: where, which key, and whether the cells hold JSON.
    attributes: Vec<(usize, String, bool)>,
    count: usize,
    digest: Digest,
}

impl Lines {
    /// Lines of JSON.
    pub(crate) fn json(source: Source) -> Lines {
        Lines {
            source,
            format: Format::Json,
            number: 0,
            failed: None,
        }
    }

    /// Rows of CSV; reads the header row.
    pub(crate) fn csv(source: Source) -> Result<Lines, String> {
        let mut lines = Lines::json(source);
        let (header, digest) = match lines.record(true) {
            Ok(Some(Record {
                text: Some(text),
                digest,
                ..
            })) => (text, digest),
            Ok(Some(_)) => return Err("the header row of the CSV is longer than 1 MiB".into()),
            Ok(None) => return Err("the CSV is empty: it needs a header row".into()),
            Err(error) => return Err(format!("the input cannot be read: {error}")),
        };
        let mut cells = Cells::new();
        let names = cells
            .of(header)
            .map_err(|problem| format!("the header row of the CSV {problem}"))?;
        lines.format = Format::Csv(Box::new(Columns::of(cells, &names, digest)?));
        Ok(lines)
    }

    /// The next record as text: a line, or in CSV as many as a quoted cell spans.
    fn record(&mut self, csv: bool) -> io::Result<Option<Record>> {
        let first_line = self.number + 1;
        let mut text = Vec::new();
        let mut digest = Digest::new();
        let mut length = 0usize;
        let mut quotes = Quotes::default();
        let (mut any, mut unclosed) = (false, false);
        loop {
            let buffer = match self.source.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                if !any {
                    return Ok(None);
                }
                self.number += 1;
                unclosed = quotes.open;
                break;
            }
            any = true;
            let newline = buffer.iter().position(|byte| *byte == b'\n');
            let chunk = &buffer[..newline.unwrap_or(buffer.len())];
            if csv {
                quotes.read(chunk);
            }
            digest.add(chunk);
            length += chunk.len();
            if length <= LONGEST_LINE {
                text.extend_from_slice(chunk);
            } else {
                text = Vec::new();
            }
            let used = chunk.len() + usize::from(newline.is_some());
            self.source.consume(used);
            if newline.is_some() {
                self.number += 1;
                if !quotes.open {
                    break;
                }
                digest.add(b"\n");
                length += 1;
                if length <= LONGEST_LINE {
                    text.push(b'\n');
                }
                quotes.at_start = false;
            }
        }
        // The end of a line may be written either way without the line being another.
        if let Some(bare) = text.strip_suffix(b"\r") {
            digest = Digest::new();
            digest.add(bare);
        }
        Ok(Some(Record {
            line: first_line,
            text: (length <= LONGEST_LINE).then_some(text),
            length,
            unclosed,
            digest,
        }))
    }
}

/// Where a quoted cell begins and ends, by the rules of the `csv` crate: a quote opens a cell only
/// at its start, and a doubled one inside of it stands for itself.
struct Quotes {
    open: bool,
    at_start: bool,
}

impl Default for Quotes {
    fn default() -> Quotes {
        Quotes {
            open: false,
            at_start: true,
        }
    }
}

impl Quotes {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let closes = self.open && *byte == b'"';
            if *byte == b'"' {
                self.open = !self.open && self.at_start;
            }
            // Right after a closing quote another one reopens the cell.
            self.at_start = closes || !self.open && *byte == b',';
        }
    }
}

struct Record {
    line: u64,
    /// `None` when it is too long to keep.
    text: Option<Vec<u8>>,
    length: usize,
    /// A quoted cell of it has no end: it swallowed the rest of the file.
    unclosed: bool,
    digest: Digest,
}

impl Lines {
    /// The next record that is not blank.
    fn next_record(&mut self) -> Option<Record> {
        let csv = matches!(self.format, Format::Csv(_));
        loop {
            let mut record = match self.record(csv) {
                Ok(record) => record?,
                Err(error) => {
                    self.failed = Some(error);
                    return None;
                }
            };
            let text = record.text.as_deref().filter(|_| !record.unclosed);
            match (text, &self.format) {
                (Some(text), _) if text.trim_ascii().is_empty() => continue,
                (Some(_), Format::Csv(columns)) => {
                    // Under another header row it is another record.
                    let header = columns.digest.value().to_le_bytes();
                    record.digest.add(&header);
                }
                _ => {}
            }
            return Some(record);
        }
    }

    /// What a record asks for.
    fn read(&mut self, record: Record) -> Line {
        let Record {
            line,
            text,
            length,
            unclosed,
            digest,
        } = record;
        let update = match (text, &mut self.format) {
            _ if unclosed => Err(LineError::new(
                "a quoted cell of the row has no closing quote: the rest of the file belongs to it",
            )),
            (None, _) => Err(LineError::new(format!(
                "the line is {length} bytes long; at most {LONGEST_LINE} are read"
            ))),
            (Some(text), Format::Json) => json(&text, line),
            (Some(text), Format::Csv(columns)) => columns.update(text),
        };
        Line {
            number: line,
            digest: digest.value(),
            update,
        }
    }

    /// The lines whose numbers are wanted; the others are not taken apart.
    pub(crate) fn wanted(&mut self, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = Line> {
        std::iter::from_fn(move || {
            loop {
                let record = self.next_record()?;
                if wanted(record.line) {
                    return Some(self.read(record));
                }
            }
        })
    }

    /// The numbers and digests of all lines, none of which is taken apart.
    pub(crate) fn digests(mut self) -> impl Iterator<Item = (u64, u64)> {
        std::iter::from_fn(move || {
            let record = self.next_record()?;
            Some((record.line, record.digest.value()))
        })
    }
}

fn json(text: &[u8], line: u64) -> Result<Update, LineError> {
    // Some editors begin a file with a byte order mark.
    let text = match text.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) if line == 1 => rest,
        _ => text,
    };
    let text =
        std::str::from_utf8(text).map_err(|_| LineError::new("the line is not valid UTF-8"))?;
    serde_json::from_str(text).map_err(|error| {
        // Only the shape of JSON is told by its column; serde_json's other messages are ours.
        LineError::new(match error.classify() {
            // Such a message would show the value, as `"…", expected a map`.
            serde_json::error::Category::Data if !text.trim_start().starts_with('{') => {
                "the line is not a JSON object".to_owned()
            }
            serde_json::error::Category::Data => without_position(&error.to_string()),
            _ => format!("the line is not JSON (column {})", error.column()),
        })
    })
}

/// serde_json adds the position within the line to its messages.
fn without_position(message: &str) -> String {
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message.to_owned(),
    }
}

/// Takes records apart. One reader for all of them, since making one takes far longer than reading
/// a record does.
struct Cells(csv::Reader<io::Cursor<Vec<u8>>>);

impl Cells {
    fn new() -> Cells {
        Cells(
            csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .from_reader(io::Cursor::default()),
        )
    }

    /// The cells of one record, or what is wrong with it.
    fn of(&mut self, text: Vec<u8>) -> Result<Vec<String>, &'static str> {
        *self.0.get_mut() = io::Cursor::new(text);
        let mut record = csv::StringRecord::new();
        self.0
            .seek_raw(SeekFrom::Start(0), csv::Position::new())
            .and_then(|()| self.0.read_record(&mut record))
            .map_err(|_| "is not valid UTF-8")?;
        // The csv crate also ends a record at a bare carriage return; what follows would be lost.
        let more = self.0.read_record(&mut csv::StringRecord::new());
        if !matches!(more, Ok(false)) {
            return Err(
                "holds a bare carriage return: lines must end in LF or CR LF, and a cell \
                        with line breaks must be quoted",
            );
        }
        Ok(record.iter().map(str::to_owned).collect())
    }
}

impl Columns {
    fn of(cells: Cells, header: &[String], digest: Digest) -> Result<Columns, String> {
        let mut conversation = None;
        let mut participant = None;
        let mut attributes: Vec<(usize, String, bool)> = Vec::new();
        for (index, name) in header.iter().enumerate() {
            let name = match name.strip_prefix('\u{FEFF}') {
                Some(rest) if index == 0 => rest,
                _ => name,
            };
            // A near miss would write an attribute of that name, and to another target.
            let bare = name.trim();
            for known in ["conversationId", "participant"] {
                if name != known && bare.eq_ignore_ascii_case(known) {
                    return Err(format!("write the header {name:?} of the CSV as {known}"));
                }
            }
            if bare != name {
                return Err(format!(
                    "the header {name:?} of the CSV has spaces around it"
                ));
            }
            let slot = match name {
                "conversationId" => &mut conversation,
                "participant" => &mut participant,
                _ => {
                    let (key, is_json) = match name.strip_suffix(':') {
                        Some(key) => (key, true),
                        None => (name, false),
                    };
                    if key.is_empty() {
                        return Err(format!("column {} of the CSV has no name", index + 1));
                    }
                    if attributes.iter().any(|(_, other, _)| other == key) {
                        return Err(format!("the CSV has two columns for {key:?}"));
                    }
                    attributes.push((index, key.to_owned(), is_json));
                    continue;
                }
            };
            if slot.replace(index).is_some() {
                return Err(format!("the CSV has two columns {name:?}"));
            }
        }
        Ok(Columns {
            cells,
            conversation: conversation.ok_or(
                "the CSV has no column conversationId in its header row (are its cells \
                     separated by commas?)",
            )?,
            participant,
            attributes,
            count: header.len(),
            digest,
        })
    }

    fn update(&mut self, text: Vec<u8>) -> Result<Update, LineError> {
        let cells = self
            .cells
            .of(text)
            .map_err(|problem| LineError::new(format!("the row {problem}")))?;
        if cells.len() != self.count {
            return Err(LineError::new(format!(
                "the row has {} cells, the header {}",
                cells.len(),
                self.count
            )));
        }
        let conversation = cells[self.conversation].as_str();
        let participant = self.participant.map(|index| cells[index].as_str());
        let mut update = match participant.filter(|who| !who.is_empty()) {
            Some(who) => Update::participant(conversation, who),
            None => Update::conversation(conversation),
        };
        for (index, key, is_json) in &self.attributes {
            let cell = cells[*index].as_str();
            if cell.is_empty() {
                continue;
            }
            update = if *is_json {
                let value: Value = serde_json::from_str(cell)
                    .map_err(|_| LineError::new(format!("the cell of {key:?} is not JSON")))?;
                update.set(key, value)
            } else {
                update.set(key, cell)
            };
        }
        Ok(update)
    }
}

/// How many lines a file has, for the progress display. The file's position is put back.
pub(crate) fn count_lines(file: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let (mut lines, mut last) = (0, b'\n');
    loop {
        let read = file.read(&mut buffer)?;
        let Some(end) = buffer[..read].last() else {
            break;
        };
        lines += buffer[..read].iter().filter(|b| **b == b'\n').count() as u64;
        last = *end;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(lines + u64::from(last != b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
        shown(Lines::json(Box::new(io::Cursor::new(text.to_vec()))))
    }

    fn rows(text: &str) -> Vec<(u64, Result<String, String>)> {
        shown(Lines::csv(Box::new(io::Cursor::new(text.as_bytes().to_vec()))).unwrap())
    }

    fn shown(lines: Lines) -> Vec<(u64, Result<String, String>)> {
        let mut lines = lines;
        lines
            .wanted(|_| true)
            .map(|line| {
                let update = line
                    .update
                    .map(|update| serde_json::to_string(&update).unwrap())
                    .map_err(|problem| problem.to_string());
                (line.number, update)
            })
            .collect()
    }

    #[test]
    fn json_lines_are_numbered_as_in_the_file() {
        let text = b"{\"conversationId\":\"a\",\"attributes\":{\"k\":1}}\r\n\n  \nnot json\n\xFF\n{\"conversationId\":\"b\",\"atributes\":{}}";
        let found = lines(text);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].0, 1);
        assert!(found[0].1.as_ref().unwrap().contains("\"k\":1"));
        assert_eq!(found[1], (4, Err("the line is not JSON (column 2)".into())));
        assert_eq!(found[2], (5, Err("the line is not valid UTF-8".into())));
        assert_eq!(found[3].0, 6);
        let problem = found[3].1.as_ref().unwrap_err();
        assert!(
            problem.starts_with("unknown field \"atributes\""),
            "{problem}"
        );
        assert!(!problem.contains("at line"), "{problem}");
    }

    #[test]
    fn a_long_line_is_one_failure_and_the_next_is_read() {
        let mut text = vec![b'x'; 3 * LONGEST_LINE];
        text.extend(b"\n{\"conversationId\":\"a\",\"attributes\":{\"k\":1}}\n");
        let found = lines(&text);
        assert_eq!(found.len(), 2);
        assert!(found[0].1.as_ref().unwrap_err().contains("3145728 bytes"));
        assert!(found[1].1.is_ok());
        assert_eq!(found[1].0, 2);
    }

    #[test]
    fn csv_cells_become_attributes() {
        let found = rows(
            "\u{FEFF}conversationId,participant,tier,score:,note\r\n\
             a,,premium,85,\"two\nlines, and \"\"quotes\"\"\"\r\n\
             b,customer,gold,,\n\
             c,,x,nope,\n\
             d,,short\n",
        );
        let numbers: Vec<u64> = found.iter().map(|f| f.0).collect();
        assert_eq!(numbers, [2, 4, 5, 6]);
        assert_eq!(
            found[0].1.as_ref().unwrap(),
            r#"{"conversationId":"a","attributes":{"note":"two\nlines, and \"quotes\"","score":85,"tier":"premium"}}"#
        );
        assert_eq!(
            found[1].1.as_ref().unwrap(),
            r#"{"conversationId":"b","target":"participant","participant":"customer","attributes":{"tier":"gold"}}"#
        );
        assert_eq!(found[2].1, Err("the cell of \"score\" is not JSON".into()));
        assert_eq!(found[3].1, Err("the row has 3 cells, the header 5".into()));
    }

    #[test]
    fn a_quote_in_the_middle_of_a_cell_does_not_swallow_rows() {
        let found = rows("conversationId,k\na,3\"\" pipe\nb,\"x\"\"\"\n");
        assert_eq!(found.len(), 2);
        assert!(found[0].1.as_ref().unwrap().contains("3\\\"\\\" pipe"));
        assert!(found[1].1.as_ref().unwrap().contains("x\\\""));
        let found = rows("conversationId,k\na,5\" disk\nb,\"x\"\n");
        assert_eq!(found.len(), 2);
        assert!(found[0].1.as_ref().unwrap().contains("5\\\" disk"));
    }

    #[test]
    fn rows_that_would_lose_data_are_refused() {
        let found = rows("conversationId,k\na,x\ry\nb,\"open\nc,1\nd,2\n");
        assert_eq!(found.len(), 2);
        assert!(
            found[0]
                .1
                .as_ref()
                .unwrap_err()
                .contains("bare carriage return")
        );
        assert!(
            found[1]
                .1
                .as_ref()
                .unwrap_err()
                .contains("no closing quote")
        );
        let mac = Box::new(io::Cursor::new(b"conversationId,k\ra,1\r".to_vec()));
        assert!(
            Lines::csv(mac)
                .err()
                .unwrap()
                .contains("bare carriage return")
        );
    }

    #[test]
    fn values_are_not_shown_in_what_is_wrong() {
        for text in ["\"SECRET\"", "12345678", "[\"SECRET\"]"] {
            let found = lines(text.as_bytes());
            let problem = found[0].1.as_ref().unwrap_err();
            assert_eq!(problem, "the line is not a JSON object", "{text}");
        }
    }

    #[test]
    fn headers_are_checked() {
        for (header, problem) in [
            ("", "empty"),
            ("id,k\n", "conversationId"),
            ("conversationId;k\n", "separated by commas"),
            ("conversationid,k\n", "as conversationId"),
            ("conversationId, participant,k\n", "as participant"),
            ("conversationId,k \n", "spaces around"),
            ("conversationId,k,k:\n", "two columns"),
            ("conversationId,conversationId\n", "two columns"),
            ("conversationId,\n", "no name"),
        ] {
            let source = Box::new(io::Cursor::new(header.as_bytes().to_vec()));
            let error = Lines::csv(source).err().unwrap();
            assert!(error.contains(problem), "{header:?}: {error}");
        }
    }

    #[test]
    fn digests_tell_changes_apart() {
        let digest = |text: &str| {
            Lines::json(Box::new(io::Cursor::new(text.as_bytes().to_vec())))
                .digests()
                .next()
                .unwrap()
                .1
        };
        assert_eq!(digest("abc\n"), digest("abc\nother"));
        assert_eq!(digest("abc\r\n"), digest("abc"));
        assert_ne!(digest("abc"), digest("abd"));
        let row = |header: &str| {
            let text = format!("conversationId,{header}\nc,1\n");
            Lines::csv(Box::new(io::Cursor::new(text.into_bytes())))
                .unwrap()
                .digests()
                .next()
                .unwrap()
                .1
        };
        assert_ne!(row("a"), row("b"));
    }
}
