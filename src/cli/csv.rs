//! CSV: the cells of a row, and what they mean by the header row.

use serde_json::Value;
use serde_json::de::from_str;

/// The cells of one row, as far as it is one: a bare carriage return ends it.
fn row(text: &[u8], delimiter: u8) -> (csv::ByteRecord, bool) {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .buffer_capacity(text.len().clamp(1, 1 << 13))
        .from_reader(text);
    let mut row = csv::ByteRecord::new();
    let read = reader.read_byte_record(&mut row);
    let used = reader.position().byte();
    let whole = read.is_ok() && used >= text.len() as u64 && !text.ends_with(b"\r");
    (row, whole)
}

/// The cells of one row, whose line end is left out.
pub(crate) fn cells(text: &[u8], delimiter: u8) -> Result<Vec<String>, String> {
    let (row, whole) = row(text, delimiter);
    if !whole {
        return Err(
            "the row holds a bare carriage return: lines must end in LF or CR LF, and a cell with \
             line breaks must be quoted"
                .into(),
        );
    }
    let cells = row
        .iter()
        .map(|cell| std::str::from_utf8(cell).map(str::to_owned));
    cells
        .collect::<Result<_, _>>()
        .map_err(|_| "the row is not valid UTF-8".into())
}

/// A delimiter in words, as `--delimiter` takes it.
fn in_words(delimiter: u8) -> String {
    match delimiter {
        b'\t' => "tab".into(),
        _ => format!("'{}'", char::from(delimiter)),
    }
}

/// The delimiter that the header row was probably written with.
fn other_delimiter(header: &[u8], cells: &[String], delimiter: u8) -> Option<u8> {
    let others = [b',', b';', b'\t', b'|'].into_iter();
    let mut others = others.filter(|other| *other != delimiter && header.contains(other));
    others.find(|other| {
        let (names, _) = row(header, *other);
        cells.len() == 1 || names.iter().any(|name| name == b"conversationId")
    })
}

/// What the header row of a CSV says.
pub(crate) struct Columns {
    names: Vec<Column>,
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

/// Names that people give to such columns, without case and separators.
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
    /// The columns of a header row, from its cells and its text.
    pub(crate) fn of(header: &[String], text: &[u8], delimiter: u8) -> Result<Columns, String> {
        if !header.iter().any(|name| name == "conversationId")
            && let Some(other) = other_delimiter(text, header, delimiter)
        {
            return Err(format!(
                "the cells of its header row are separated by {other}, not by {}: give \
                 --delimiter {other}",
                in_words(delimiter),
                other = in_words(other),
            ));
        }
        let mut names: Vec<Column> = Vec::new();
        for (index, name) in header.iter().enumerate() {
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
        let columns = Columns { names };
        if !columns.has("conversationId") {
            return Err(format!(
                "the CSV has no column conversationId in its header row (its cells are separated \
                 by {}; --delimiter names another character)",
                in_words(delimiter)
            ));
        }
        Ok(columns)
    }

    /// A row as the JSON text of the record that it stands for. The library reads both formats, so
    /// that a number or a repeated key is treated in one way.
    pub(crate) fn record(&self, cells: &[String]) -> Result<String, String> {
        if cells.len() != self.names.len() {
            return Err(format!(
                "the row has {} cells, the header {}",
                cells.len(),
                self.names.len()
            ));
        }
        let (mut fields, mut attributes) = (Vec::new(), Vec::new());
        let entry = |name: &str, json: &str| format!("{}:{json}", Value::from(name));
        for (column, cell) in self.names.iter().zip(cells) {
            match column {
                _ if cell.is_empty() => {}
                Column::Field(name) => fields.push(entry(name, &field(name, cell)?.to_string())),
                Column::Attribute { key, is_json } => {
                    let json = match is_json {
                        false => Value::from(cell.as_str()).to_string(),
                        true => from_str::<Value>(cell)
                            .map(|_| cell.clone())
                            .map_err(|_| format!("the cell of {key:?} is not JSON"))?,
                    };
                    attributes.push(entry(key, &json));
                }
            }
        }
        // A column that chooses the target must not be empty: the row would get another target.
        let target = self.cell("target", cells);
        let no_participant = self.cell("participant", cells).is_none();
        if self.has("participant") && no_participant && matches!(target, None | Some("participant"))
        {
            return Err("the cell of participant is empty".into());
        }
        if self.has("target") && target.is_none() && no_participant {
            return Err("the cell of target is empty".into());
        }
        if self.cell("conversationId", cells).is_none() {
            return Err("the cell of conversationId is empty".into());
        }
        fields.push(entry(
            "attributes",
            &format!("{{{}}}", attributes.join(",")),
        ));
        Ok(format!("{{{}}}", fields.join(",")))
    }

    fn position(&self, field: &str) -> Option<usize> {
        let mut names = self.names.iter();
        names.position(|column| matches!(column, Column::Field(name) if *name == field))
    }

    fn has(&self, field: &str) -> bool {
        self.position(field).is_some()
    }

    /// What a row says in the column of a field, unless that is empty.
    fn cell<'c>(&self, field: &str, cells: &'c [String]) -> Option<&'c str> {
        let cell = cells.get(self.position(field)?)?;
        (!cell.is_empty()).then_some(cell)
    }

    /// The conversation that a row names, even if the row is no update.
    pub(crate) fn conversation(&self, text: &[u8], delimiter: u8) -> Option<String> {
        let (row, _) = row(text, delimiter);
        let cell = row.get(self.position("conversationId")?)?;
        (!cell.is_empty()).then(|| String::from_utf8_lossy(cell).into_owned())
    }
}

/// The value of a record's field. Errors do not show the cell, which may be of another column.
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

/// The field that a header probably means. As an attribute it would be written to another target.
fn resembled(key: &str) -> Option<&'static str> {
    let letters = key.chars().filter(|c| c.is_alphanumeric());
    let bare: String = letters.flat_map(char::to_lowercase).collect();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == bare);
    alias.map(|(_, field)| *field).or_else(|| {
        FIELDS.into_iter().chain(ONLY_JSON).find(|field| {
            let far = strsim::osa_distance(&bare, &field.to_lowercase());
            far <= if field.len() >= 11 { 2 } else { 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Result<Columns, String> {
        Columns::of(&cells(text.as_bytes(), b',')?, text.as_bytes(), b',')
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
            ("conversationId;k", "--delimiter ';'"),
            ("conversationId\tk,l", "--delimiter tab"),
            ("id|k", "--delimiter '|'"),
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
        let record = header(head)?.record(&cells(row.as_bytes(), b',')?)?;
        let update: genesys_attributes::Update = record
            .parse()
            .map_err(|e: genesys_attributes::Error| e.to_string())?;
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
                r#"{"conversationId":"c","target":"conversation","attributes":{"k":"v"}}"#,
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
