//! Updates out of an input: JSON lines or CSV, one line at a time, whatever its size.

use std::fs::File;
use std::io::{self, BufRead};
use std::sync::Arc;

use genesys_attributes::{Error, ErrorKind, Update};

use super::csv::{Columns, cells};
use super::digest::Digest;
use super::options::{Input, Shard, Which};
use super::split::{self, LONGEST, Piece};
use super::{Failure, screen};

/// One line of the input.
pub(crate) struct Line {
    pub(crate) number: u64,
    /// False for a last line without a line end: it may be completed later.
    pub(crate) ended: bool,
    /// What it asks for, or why it is no update.
    pub(crate) update: Result<Update, Error>,
}

/// A line that is not taken apart yet.
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) piece: Piece,
}

type Source = Box<dyn BufRead + Send>;

/// One reading of an input. It ends early at an error, which [`Lines::end`] tells.
pub(crate) struct Lines {
    source: Source,
    table: Option<Table>,
    /// The target of lines that name none.
    which: Which,
    shard: Option<Shard>,
    /// The file that is read, and its size when it was opened.
    watched: Option<(Arc<File>, u64)>,
    /// Lines read so far, as an editor counts them.
    number: u64,
    /// The last record, if it has no line end.
    unended: Option<u64>,
    failed: Option<io::Error>,
    pub(crate) over: bool,
    pub(crate) seen: Seen,
}

/// What a reading has read: equal for two readings of the same text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) records: u64,
    digest: Digest,
}

/// What a CSV has beyond its rows.
struct Table {
    delimiter: u8,
    header: Vec<u8>,
    columns: Columns,
}

impl Lines {
    /// Reads the header row of a CSV. `watched` is the file of the source and its size.
    pub(crate) fn new(
        source: Source,
        input: &Input,
        watched: Option<(Arc<File>, u64)>,
    ) -> Result<Lines, String> {
        let mut lines = Lines {
            source,
            table: None,
            which: input.which.clone(),
            shard: input.shard,
            watched,
            number: 0,
            unended: None,
            failed: None,
            over: false,
            seen: Seen {
                records: 0,
                digest: Digest::new(),
            },
        };
        if let Some(delimiter) = input.format.delimiter() {
            // Some spreadsheets begin a file with a line that names the separator.
            let named = [b"sep=", &[delimiter][..]].concat();
            let piece = loop {
                let read = lines.piece(Some(delimiter));
                let read = read.map_err(|error| format!("it cannot be read: {error}"))?;
                let (_, piece) = read.ok_or("the CSV is empty: it needs a header row")?;
                if piece.text != named {
                    break piece;
                }
            };
            let columns = readable(&piece)
                .and_then(|()| cells(&piece.text, delimiter))
                .map_err(|problem| format!("the header row cannot be used: {problem}"))
                .and_then(|names| Columns::of(&names, &piece.text, delimiter))?;
            lines.table = Some(Table {
                delimiter,
                header: piece.text,
                columns,
            });
        }
        Ok(lines)
    }

    /// The header row of a CSV.
    pub(crate) fn header(&self) -> Option<&[u8]> {
        self.table.as_ref().map(|table| table.header.as_slice())
    }

    /// The next piece that is not blank, and the number of its first line.
    fn piece(&mut self, delimiter: Option<u8>) -> io::Result<Option<(u64, Piece)>> {
        loop {
            let Some(mut piece) = split::next(self.source.as_mut(), delimiter)? else {
                return Ok(None);
            };
            let number = self.number + 1;
            self.number += piece.lines;
            // Some editors begin a file with a byte order mark.
            if number == 1 && piece.text.starts_with(b"\xEF\xBB\xBF") {
                piece.text.drain(..3);
            }
            if !piece.is_blank() {
                return Ok(Some((number, piece)));
            }
        }
    }

    /// The next line that is not blank.
    pub(crate) fn next_record(&mut self) -> Option<Record> {
        if self.over || self.failed.is_some() {
            return None;
        }
        let delimiter = self.table.as_ref().map(|table| table.delimiter);
        let (number, piece) = match self.piece(delimiter) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.over = true;
                return None;
            }
            Err(error) => {
                self.failed = Some(error);
                return None;
            }
        };
        if !piece.ended {
            self.over = true;
            if self.has_changed() {
                self.failed = Some(io::Error::other(format!(
                    "its last line, {number}, has no line end, and the file changed while it was \
                     read: that line was not run; give the file again once it is complete"
                )));
                return None;
            }
            self.unended = Some(number).filter(|_| !piece.unclosed);
        }
        let mut digest = Digest::new();
        digest.add(&piece.text);
        digest.add(&piece.length.to_le_bytes()[..usize::from(piece.is_too_long()) * 8]);
        digest.add(self.header().unwrap_or_default());
        let digest = digest.value();
        self.seen.records += 1;
        self.seen.digest.add(&digest.to_le_bytes());
        Some(Record { number, piece })
    }

    fn has_changed(&self) -> bool {
        let Some((file, size)) = &self.watched else {
            return false;
        };
        file.metadata().is_ok_and(|data| data.len() != *size)
    }

    /// What a line asks for; `None` if it belongs to another shard.
    pub(crate) fn read(&self, record: &Record) -> Option<Line> {
        let text = &record.piece.text;
        let update = readable(&record.piece).and_then(|()| match &self.table {
            Some(table) => table.columns.record(&cells(text, table.delimiter)?),
            None => match std::str::from_utf8(text) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err("the line is not valid UTF-8".into()),
            },
        });
        let update = update
            .map_err(|problem| Error::new(ErrorKind::InvalidInput, problem))
            .and_then(|record| self.which.name_in(record).parse::<Update>());
        let ours = self.shard.is_none_or(|shard| {
            let named = match &update {
                Ok(update) => Some(update.target().conversation_id().to_owned()),
                // Of the same shard before and after it is corrected, if that can be.
                Err(_) => self.conversation(record),
            };
            match named {
                Some(conversation) => shard.has(&conversation),
                None => shard.has_line(record.number),
            }
        });
        ours.then_some(Line {
            number: record.number,
            ended: record.piece.ended,
            update,
        })
    }

    /// The conversation that a line names, even if the line is no update.
    pub(crate) fn conversation(&self, record: &Record) -> Option<String> {
        if let Some(table) = &self.table {
            return table
                .columns
                .conversation(&record.piece.text, table.delimiter);
        }
        let text = String::from_utf8_lossy(&record.piece.text);
        if let Ok(line) = serde_json::from_str::<serde_json::Value>(&text) {
            return Some(line.get("conversationId")?.as_str()?.to_owned());
        }
        // No JSON as a whole: the first field of that name.
        let (_, rest) = text.split_once("\"conversationId\"")?;
        let value = rest.trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<String>();
        values.next()?.ok()
    }

    /// The lines whose numbers are wanted; the others are not taken apart.
    pub(crate) fn wanted(&mut self, wanted: impl Fn(u64) -> bool) -> impl Iterator<Item = Line> {
        std::iter::from_fn(move || {
            loop {
                let record = self.next_record()?;
                if wanted(record.number)
                    && let Some(line) = self.read(&record)
                {
                    return Some(line);
                }
            }
        })
    }

    /// How the reading ended: an error, or a warning where the last line may be torn.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        if let Some(error) = self.failed.take() {
            return Err(Failure::usage(cut(&error)));
        }
        if let Some(number) = self.unended.take() {
            screen::warn(&format!(
                "line {number}, the last one, has no line end: it was taken as complete"
            ));
        }
        Ok(())
    }

    /// The error that a reading ended with.
    pub(crate) fn failure(&mut self) -> Result<(), String> {
        self.failed.take().map_or(Ok(()), |error| Err(cut(&error)))
    }
}

/// Refuses what cannot be taken apart.
fn readable(piece: &Piece) -> Result<(), String> {
    if piece.unclosed {
        return Err(
            "a quoted cell of the row has no closing quote: the rest of the file belongs to it"
                .into(),
        );
    }
    if piece.is_too_long() {
        return Err(format!(
            "the line is {} bytes long; at most {LONGEST} are read",
            piece.length
        ));
    }
    Ok(())
}

/// Says that an input could not be read to its end.
fn cut(error: &io::Error) -> String {
    format!("the input could not be read to its end: {error}")
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
