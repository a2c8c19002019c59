//! Tells the format of an input by its first bytes and lines. A file of another format would fail
//! line by line, for good.

use serde_json::{Map, Value};

use super::csv::cells;
use super::split;

/// How many lines are looked at.
const LINES: usize = 20;

/// How the compressed formats begin, and the command that unpacks each.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1F\x8B", "gunzip -c"),
    (b"BZh", "bunzip2 -c"),
    (b"\x28\xB5\x2F\xFD", "zstd -dc"),
    (b"\xFD7zXZ", "xz -dc"),
];

/// Refuses an input of another format than JSON lines or, with a delimiter, CSV. `whole` says that
/// `start` is all of the input.
pub(crate) fn check(start: &[u8], whole: bool, delimiter: Option<u8>) -> Result<(), String> {
    if let Some((_, how)) = COMPRESSED
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
    {
        return Err(format!(
            "it is compressed: unpack it first, as by {how} FILE | genesys-attributes batch -"
        ));
    }
    if start.starts_with(b"PK\x03\x04") {
        return Err(
            "it is a ZIP archive or a workbook (such as .xlsx): unpack it, or save it as CSV in \
             UTF-8"
                .into(),
        );
    }
    if matches!(
        start,
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [0, _, ..] | [_, 0, ..]
    ) {
        return Err(
            "it is not UTF-8, but probably UTF-16: convert it, as by iconv -f UTF-16 -t UTF-8"
                .into(),
        );
    }
    let text = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    let mut pieces = text.split(|byte| *byte == b'\n');
    // What follows the last line end may go on beyond what was read.
    let rest = pieces.next_back().unwrap_or_default();
    let mut lines: Vec<&[u8]> = pieces.map(<[u8]>::trim_ascii).collect();
    if whole {
        lines.push(rest.trim_ascii());
    }
    lines.retain(|line| !line.is_empty());
    lines.truncate(LINES);
    if lines.iter().any(|line| line.contains(&0)) {
        return Err("it is binary".into());
    }
    let first = lines.first().copied().unwrap_or_else(|| rest.trim_ascii());
    match (first.first(), delimiter) {
        (None, _) => Ok(()),
        (Some(b'['), _) => {
            Err("it is one JSON array: write one object a line, as by jq -c '.[]' FILE".into())
        }
        (Some(b'{'), Some(_)) => Err("it is JSON lines: leave --csv out".into()),
        (Some(_), Some(delimiter)) => check_rows(text, whole, delimiter),
        (Some(b'{'), None) if lines.is_empty() => Ok(()),
        (Some(start), None) => {
            let is_object = |line: &&[u8]| {
                serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
                    && line.starts_with(b"{")
            };
            if lines.iter().any(is_object) {
                return check_records(&lines);
            }
            Err(match start {
                b'{' if first == b"{" => {
                    "its objects stretch over several lines: write one object a line, as by jq -c \
                     . FILE"
                        .into()
                }
                b'{' => no_object(lines.len()),
                _ if first.contains(&b',') || first == b"conversationId" => {
                    format!("{}: is it CSV? Give --csv", no_object(lines.len()))
                }
                _ => no_object(lines.len()),
            })
        }
    }
}

/// Refuses objects that are all something else than updates.
fn check_records(lines: &[&[u8]]) -> Result<(), String> {
    let records = lines.iter().filter_map(|line| {
        let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        Some(fields)
    });
    let records = Vec::from_iter(records);
    let all_have = |name: &str| records.iter().all(|fields| fields.contains_key(name));
    if records.len() > 1 && all_have("digest") && all_have("status") {
        return Err("it holds the outcomes of a batch: give the input of that batch".into());
    }
    if records.len() > 1
        && !records
            .iter()
            .any(|fields| fields.contains_key("conversationId"))
    {
        return Err(format!(
            "none of its first {} lines has the field conversationId: is it the right file?",
            lines.len()
        ));
    }
    Ok(())
}

/// Refuses rows that all have another number of cells than the header.
fn check_rows(mut text: &[u8], whole: bool, delimiter: u8) -> Result<(), String> {
    let mut counts = Vec::new();
    while counts.len() <= LINES
        && let Ok(Some(piece)) = split::next(&mut text, Some(delimiter))
        && (piece.ended || whole)
    {
        let names_separator = counts.is_empty() && piece.text.starts_with(b"sep=");
        if !piece.is_blank() && !names_separator {
            counts.extend(cells(&piece.text, delimiter).map(|cells| cells.len()));
        }
    }
    match counts.split_first() {
        Some((header, rows)) if rows.len() > 1 && rows.iter().all(|n| n != header) => Err(format!(
            "its header has {header} cells, and none of its first {} rows as many (the first \
                 has {}): is a separator missing, or one too many?",
            rows.len(),
            rows[0]
        )),
        _ => Ok(()),
    }
}

fn no_object(lines: usize) -> String {
    match lines {
        0 | 1 => "its first line is no JSON object".to_owned(),
        n => format!("none of its first {n} lines is a JSON object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_format_is_refused_with_what_to_do() {
        for (start, csv, problem) in [
            (&b"\x1F\x8B\x08\x00rest"[..], false, "gunzip"),
            (b"\x1F\x8B\x08\x00rest", true, "gunzip"),
            (b"PK\x03\x04", true, "workbook"),
            (b"\xFF\xFE{\0", false, "UTF-16"),
            (b"{\0\"\0", false, "UTF-16"),
            (b"\0c\0o", true, "UTF-16"),
            (b"[{\"conversationId\":\"a\"}]\n", false, "one JSON array"),
            (b"[\n", true, "one JSON array"),
            (
                b"{\n  \"conversationId\": \"a\"\n}\n",
                false,
                "several lines",
            ),
            (b"conversationId,tier\na,b\n", false, "--csv"),
            (b"conversationId\na\n", false, "--csv"),
            (b"{\"conversationId\":\"a\"}\n", true, "leave --csv out"),
            (
                b"\xEF\xBB\xBF{\"conversationId\":\"a\"}\n",
                true,
                "leave --csv out",
            ),
            (b"nope\nnope\n", false, "none of its first 2 lines"),
            (b"nope", false, "first line is no JSON object"),
            (b"\n\n12\n", false, "first line is no JSON object"),
            (b"{\"a\":1}\na\0b\n", false, "binary"),
            (b"{\"a\":1}\n{\"b\":1}\n", false, "conversationId"),
            (
                b"{\"line\":1,\"status\":\"applied\",\"digest\":\"0\"}\n{\"line\":2,\"status\":\"failed\",\"digest\":\"0\"}\n",
                false,
                "outcomes of a batch",
            ),
            (b"conversationId,a\nc,1,\nd,2,\n", true, "2 cells"),
        ] {
            let error = check(start, true, csv.then_some(b',')).err().unwrap_or_default();
            assert!(error.contains(problem), "{start:?}: {error:?}");
        }
    }

    #[test]
    fn input_of_its_format_is_taken() {
        for (start, csv) in [
            (&b""[..], false),
            (b"", true),
            (b"\n \n", false),
            (b"\xEF\xBB\xBF{}\n", false),
            (b"nope\n{\"conversationId\":\"a\"}\n", false),
            // One wrong line is told as that line's.
            (b"{\"a\":1}\n", false),
            (b"conversationId,a\nc,1,\n", true),
            (b"conversationId,a\nc,1,\nd,2\n", true),
            (b"conversationId,a\nc,\"1\n2\"\nd,2\n", true),
            (b"conversationId,k\na,{\n", true),
            (b"{\"half a line", false),
        ] {
            let whole = csv || !start.starts_with(b"{\"half");
            check(start, whole, csv.then_some(b',')).unwrap();
        }
    }
}
