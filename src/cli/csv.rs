//! CSV: rows by csv-core's grammar, and what their cells mean by the header row.

use std::io::{self, BufRead};

use genesys_attributes::Update;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::digest::Digest;
use super::table::distance;

/// The longest line that is kept. A longer one is read to its end and dropped.
pub(crate) const LONGEST_LINE: usize = 1 << 20;

/// Takes rows out of a source.
pub(crate) struct Rows {
    core: csv_core::Reader,
    cells: Vec<u8>,
    ends: Vec<usize>,
    /// Physical lines that were read to their end.
    lines: u64,
    /// Nothing comes any more.
    over: bool,
}

/// One row.
pub(crate) struct Row {
    /// The physical line that it begins on.
    pub(crate) line: u64,
    /// The digest of its text, line end left out.
    pub(crate) digest: Digest,
    /// Its text, where that is asked for and not too long.
    pub(crate) raw: Vec<u8>,
    /// Its cells, or what is wrong with it.
    pub(crate) cells: Result<Vec<String>, String>,
}

impl Rows {
    pub(crate) fn new() -> Rows {
        Rows {
            core: csv_core::Reader::new(),
            cells: vec![0; 1 << 12],
            ends: vec![0; 64],
            lines: 0,
            over: false,
        }
    }

    /// The next row that is not blank, or `None` at the end.
    pub(crate) fn next(&mut self, source: &mut dyn BufRead, keep: bool) -> io::Result<Option<Row>> {
        loop {
            match self.row(source, keep)? {
                Some(Row {
                    cells: Ok(cells), ..
                }) if matches!(cells.as_slice(), [only] if only.trim().is_empty()) => {}
                row => return Ok(row),
            }
        }
    }

    fn row(&mut self, source: &mut dyn BufRead, keep: bool) -> io::Result<Option<Row>> {
        let mut row = Row {
            line: 0,
            digest: Digest::new(),
            raw: Vec::new(),
            cells: Ok(Vec::new()),
        };
        if self.over {
            return Ok(None);
        }
        let (mut used, mut ended, mut length) = (0, 0, 0usize);
        let (mut unclosed, mut bare) = (false, false);
        loop {
            let buffer = fill(source)?;
            let at_end = buffer.is_empty();
            // A line end after the last row ends it, but inside of quotes.
            let probe = at_end && row.line > 0;
            let input = if probe { b"\n" } else { buffer };
            let (result, read, written, ends) =
                self.core
                    .read_record(input, &mut self.cells[used..], &mut self.ends[ended..]);
            if probe && result == csv_core::ReadRecordResult::InputEmpty {
                (unclosed, self.over) = (true, true);
                break;
            }
            let read = if probe { 0 } else { read };
            let is_row = result == csv_core::ReadRecordResult::Record;
            let mut chunk = &buffer[..read];
            if row.line == 0 {
                // Ends of lines before the row begins.
                let blank = chunk
                    .iter()
                    .take_while(|b| matches!(b, b'\r' | b'\n'))
                    .count();
                self.lines += newlines(&chunk[..blank]);
                chunk = &chunk[blank..];
                if !chunk.is_empty() {
                    row.line = self.lines + 1;
                }
            }
            self.lines += newlines(chunk);
            let end = chunk.last().copied().filter(|_| is_row && !at_end);
            let text = &chunk[..chunk.len() - usize::from(end.is_some())];
            row.digest.add(text);
            length += chunk.len();
            if keep && length <= LONGEST_LINE {
                row.raw.extend_from_slice(text);
            }
            source.consume(read);
            (used, ended) = (used + written, ended + ends);
            match result {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull if length > LONGEST_LINE => used = 0,
                csv_core::ReadRecordResult::OutputEndsFull if length > LONGEST_LINE => ended = 0,
                csv_core::ReadRecordResult::OutputFull => {
                    self.cells.resize(2 * self.cells.len(), 0)
                }
                csv_core::ReadRecordResult::OutputEndsFull => {
                    self.ends.resize(2 * self.ends.len(), 0);
                }
                csv_core::ReadRecordResult::End if row.line == 0 => return Ok(None),
                csv_core::ReadRecordResult::Record | csv_core::ReadRecordResult::End => {
                    // csv-core also ends a row at a bare carriage return: what follows up to
                    // the end of the line would be taken for another row.
                    if end == Some(b'\r') && fill(source)?.first() != Some(&b'\n') {
                        bare = true;
                        if !fill(source)?.is_empty() {
                            (used, ended) = (0, 0);
                            continue;
                        }
                    }
                    break;
                }
            }
        }
        row.cells = if unclosed {
            Err(
                "a quoted cell of the row has no closing quote: the rest of the file belongs to \
                 it"
                .into(),
            )
        } else if bare {
            Err(
                "the row holds a bare carriage return: lines must end in LF or CR LF, and a cell \
                 with line breaks must be quoted"
                    .into(),
            )
        } else if length > LONGEST_LINE {
            row.raw = Vec::new();
            Err(format!(
                "the row is {length} bytes long; at most {LONGEST_LINE} are read"
            ))
        } else {
            let mut from = 0;
            let ends = self.ends.get(..ended).unwrap_or_default();
            let cells = ends.iter().map(|end| {
                let cell = self.cells.get(from..*end).unwrap_or_default();
                from = *end;
                std::str::from_utf8(cell).map(str::to_owned)
            });
            cells
                .collect::<Result<_, _>>()
                .map_err(|_| "the row is not valid UTF-8".to_owned())
        };
        Ok(Some(row))
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// What is buffered; empty at the end.
pub(crate) fn fill(source: &mut dyn BufRead) -> io::Result<&[u8]> {
    loop {
        match source.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // What was just filled is given again; in two steps for the borrow checker's sake.
    source.fill_buf()
}

/// What the header row of a CSV says.
pub(crate) struct Columns {
    names: Vec<Column>,
    has_participant: bool,
    has_target: bool,
}

enum Column {
    /// A field of the record: its name.
    Field(&'static str),
    Attribute {
        key: String,
        is_json: bool,
    },
}

/// The fields of a record that a CSV has columns for.
const FIELDS: [&str; 8] = [
    "conversationId",
    "participant",
    "target",
    "record",
    "schema",
    "ifVersion",
    "skipUnchanged",
    "unlocked",
];

/// Names that are easily taken for one of them, without case and separators.
const ALIASES: [(&str, &str); 12] = [
    ("custom", "target"),
    ("purpose", "participant"),
    ("secure", "target"),
    ("skip", "skipUnchanged"),
    ("who", "participant"),
    ("conversation", "conversationId"),
    ("participantid", "participant"),
    ("participantpurpose", "participant"),
    ("targetkind", "target"),
    ("targettype", "target"),
    ("recordid", "record"),
    ("schemaid", "schema"),
];

/// Fields of the JSON lines that a CSV cannot have.
const ONLY_JSON: [&str; 3] = ["attributes", "remove", "verify"];

const ESCAPE: &str = "attr:";

impl Columns {
    pub(crate) fn of(header: &[String]) -> Result<Columns, String> {
        if let [only] = header
            && only.contains([';', '\t', '|'])
        {
            return Err("the header row of the CSV has one cell: separate cells by commas".into());
        }
        let mut names: Vec<Column> = Vec::new();
        for (index, name) in header.iter().enumerate() {
            let name = match name.strip_prefix('\u{FEFF}') {
                Some(rest) if index == 0 => rest,
                _ => name,
            };
            let column = match FIELDS.iter().find(|field| **field == name) {
                Some(field) => Column::Field(field),
                None => attribute(name, index + 1)?,
            };
            let again = names.iter().any(|other| match (other, &column) {
                (Column::Field(a), Column::Field(b)) => a == b,
                (Column::Attribute { key: a, .. }, Column::Attribute { key: b, .. }) => a == b,
                _ => false,
            });
            if again {
                return Err(format!("the CSV has two columns for {name:?}"));
            }
            names.push(column);
        }
        let has = |wanted: &str| {
            names
                .iter()
                .any(|column| matches!(column, Column::Field(name) if *name == wanted))
        };
        if !has("conversationId") {
            return Err(
                "the CSV has no column conversationId in its header row (are its cells separated \
                 by commas?)"
                    .into(),
            );
        }
        let (has_participant, has_target) = (has("participant"), has("target"));
        Ok(Columns {
            names,
            has_participant,
            has_target,
        })
    }

    /// What a row asks for: the same record as a JSON line's.
    pub(crate) fn update(&self, cells: &[String]) -> Result<Update, String> {
        if cells.len() != self.names.len() {
            return Err(format!(
                "the row has {} cells, the header {}",
                cells.len(),
                self.names.len()
            ));
        }
        let mut record = Map::new();
        let mut attributes = Map::new();
        for (column, cell) in self.names.iter().zip(cells) {
            match column {
                _ if cell.is_empty() => {}
                Column::Field(name) => {
                    record.insert((*name).to_owned(), field(name, cell)?);
                }
                Column::Attribute {
                    key,
                    is_json: false,
                } => {
                    attributes.insert(key.clone(), Value::from(cell.as_str()));
                }
                Column::Attribute { key, is_json: true } => {
                    let value = serde_json::from_str(cell)
                        .map_err(|_| format!("the cell of {key:?} is not JSON"))?;
                    attributes.insert(key.clone(), value);
                }
            }
        }
        // An empty cell where a target is told apart must not turn the line into another one.
        let target = record.get("target").and_then(Value::as_str);
        if self.has_participant
            && !record.contains_key("participant")
            && matches!(target, None | Some("participant"))
        {
            return Err("the cell of participant is empty".into());
        }
        if self.has_target && target.is_none() && !record.contains_key("participant") {
            return Err("the cell of target is empty".into());
        }
        if !record.contains_key("conversationId") {
            return Err("the cell of conversationId is empty".into());
        }
        record.insert("attributes".into(), Value::Object(attributes));
        Update::deserialize(Value::Object(record)).map_err(|error| error.to_string())
    }

    /// The conversation that a row names, though it may be no update.
    pub(crate) fn conversation(&self, cells: &[String]) -> Option<String> {
        let is_it = |column: &Column| matches!(column, Column::Field("conversationId"));
        let cell = cells.get(self.names.iter().position(is_it)?)?;
        (!cell.is_empty()).then(|| cell.clone())
    }
}

/// The value of a record's field. Its text is not told: a row may have slipped by a column.
fn field(name: &str, cell: &str) -> Result<Value, String> {
    match name {
        "skipUnchanged" | "unlocked" => match cell.to_ascii_lowercase().as_str() {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err(format!("the cell of {name} must be true, false or empty")),
        },
        "target" if !["conversation", "participant", "secure", "custom"].contains(&cell) => {
            Err("the cell of target must be conversation, participant, secure or custom".into())
        }
        _ if cell.trim().is_empty() => Err(format!("the cell of {name} is blank")),
        _ => Ok(cell.into()),
    }
}

fn attribute(name: &str, number: usize) -> Result<Column, String> {
    if name.trim() != name {
        return Err(format!(
            "the header {name:?} of the CSV has spaces around it"
        ));
    }
    let (name, on_purpose) = match name.strip_prefix(ESCAPE) {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let (key, is_json) = match name.strip_suffix(':') {
        Some(key) => (key, true),
        None => (name, false),
    };
    if key.is_empty() {
        return Err(format!("column {number} of the CSV has no name"));
    }
    if !on_purpose {
        let escaped = format!(
            "as {:?} for an attribute of that name",
            format!("{ESCAPE}{name}")
        );
        match resembled(key) {
            Some(field) if ONLY_JSON.contains(&field) => {
                return Err(format!(
                    "the header {key:?} of the CSV resembles {field}, which only JSON lines can \
                     have: use JSON lines{}, or write it {escaped}",
                    if field == "verify" {
                        " or --verify"
                    } else {
                        ""
                    }
                ));
            }
            Some(field) => {
                return Err(format!(
                    "the header {key:?} of the CSV resembles the column {field}: write it as \
                     {field}, or {escaped}"
                ));
            }
            None => {}
        }
    }
    Ok(Column::Attribute {
        key: key.to_owned(),
        is_json,
    })
}

/// The field that a header may be meant to be: a near miss would write an attribute of that name,
/// and to another target.
fn resembled(key: &str) -> Option<&'static str> {
    let letters = key.chars().filter(|c| c.is_alphanumeric());
    let bare: String = letters.flat_map(char::to_lowercase).collect();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == bare);
    alias.map(|(_, field)| *field).or_else(|| {
        FIELDS.into_iter().chain(ONLY_JSON).find(|field| {
            let far = distance(&bare, &field.to_lowercase());
            far <= if field.len() >= 11 { 2 } else { 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Result<Columns, String> {
        let cells: Vec<String> = text.split(',').map(str::to_owned).collect();
        Columns::of(&cells)
    }

    #[test]
    fn header_that_resembles_a_field_is_refused_by_name() {
        for (name, field) in [
            ("conversationid", "conversationId"),
            ("conversation_id", "conversationId"),
            ("Conversation ID", "conversationId"),
            ("participantId", "participant"),
            ("Participant", "participant"),
            ("particpant", "participant"),
            ("TARGET", "target"),
            ("target:", "target"),
            ("if_version", "ifVersion"),
            ("if-version", "ifVersion"),
            ("skip unchanged", "skipUnchanged"),
            ("Unlocked", "unlocked"),
            ("schema_id", "schema"),
            ("records", "record"),
            ("remove", "remove"),
            ("attributes", "attributes"),
        ] {
            let error = header(&format!("conversationId,{name}")).err().unwrap();
            assert!(
                error.contains(&format!("{:?}", name.trim_end_matches(':'))),
                "{error}"
            );
            assert!(error.contains(field) && error.contains("attr:"), "{error}");
            header(&format!("conversationId,attr:{name}")).ok().unwrap();
        }
        for (text, problem) in [
            ("id,k", "conversationId"),
            ("conversationId;k", "separate cells by commas"),
            ("conversationId, participant,k", "spaces around"),
            ("conversationId,k ", "spaces around"),
            ("conversationId,k,k:", "two columns"),
            ("conversationId,k,attr:k", "two columns"),
            ("conversationId,conversationId", "two columns"),
            ("conversationId,", "no name"),
            ("conversationId,attr:", "no name"),
        ] {
            let error = header(text).err().unwrap();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
        for name in [
            "tier",
            "score:",
            "version",
            "customer.tier",
            "crmId",
            "locked",
            "order",
        ] {
            header(&format!("conversationId,{name}")).ok().unwrap();
        }
    }

    fn update(head: &str, row: &str) -> Result<Value, String> {
        let cells: Vec<String> = row.split(',').map(str::to_owned).collect();
        let update = header(head)?.update(&cells)?;
        Ok(serde_json::to_value(update).unwrap())
    }

    #[test]
    fn row_means_what_the_same_json_line_means() {
        let head = "conversationId,participant,target,record,schema,ifVersion,skipUnchanged,\
                    unlocked,k,n:";
        for (row, json) in [
            (
                "c,customer,,,,,,,v,1",
                r#"{"conversationId":"c","participant":"customer","target":"participant","attributes":{"k":"v","n":1}}"#,
            ),
            (
                "c,,secure,,,,,true,v,",
                r#"{"conversationId":"c","target":"secure","unlocked":true,"attributes":{"k":"v"}}"#,
            ),
            (
                "c,,custom,r,s,7,TRUE,,v,",
                r#"{"conversationId":"c","target":"custom","record":"r","schema":"s","ifVersion":"7","skipUnchanged":true,"attributes":{"k":"v"}}"#,
            ),
            (
                "c,,conversation,,,,false,,v,",
                r#"{"conversationId":"c","attributes":{"k":"v"}}"#,
            ),
        ] {
            let expected: Value = serde_json::from_str(json).unwrap();
            assert_eq!(update(head, row).unwrap(), expected, "{row}");
        }
        for (row, problem) in [
            ("c,,,,,,,,v,", "participant is empty"),
            ("c,,participant,,,,,,v,", "participant is empty"),
            ("c, ,,,,,,,v,", "participant is blank"),
            (",customer,,,,,,,v,", "conversationId is empty"),
            ("c,customer,DE89,,,,,,v,", "target must be"),
            ("c,customer,secure,,,,,,v,", "participant does not go with"),
            ("c,,secure,r,,,,,v,", "record does not go with"),
            ("c,,custom,,,,,,v,", "record"),
            ("c,customer,,,,,yes,,v,", "skipUnchanged must be"),
            ("c,customer,,,,,,,v,x", "not JSON"),
            ("c,customer,,,,,,,v", "9 cells, the header 10"),
        ] {
            let error = update(head, row).err().unwrap();
            assert!(error.contains(problem), "{row}: {error}");
            assert!(!error.contains("DE89"), "{error}");
        }
        let error = update("conversationId,target,k", "c,,v").err().unwrap();
        assert!(error.contains("target is empty"), "{error}");
    }
}
