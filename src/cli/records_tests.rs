use std::io::{BufReader, Cursor};

use super::super::options::Format;
use super::*;

fn input(delimiter: Option<u8>, shard: Option<Shard>) -> Input {
    Input {
        file: None,
        format: Format {
            csv: false,
            delimiter,
        },
        which: Which {
            conversation: true,
            ..Which::default()
        },
        shard,
    }
}

fn reading(text: &[u8], buffer: usize, input: &Input) -> Result<Lines, String> {
    let source = BufReader::with_capacity(buffer, Cursor::new(text.to_vec()));
    Lines::new(Box::new(source), input, None)
}

fn json(text: &[u8]) -> Lines {
    reading(text, 1 << 16, &input(None, None)).ok().unwrap()
}

fn table(text: &[u8]) -> Result<Lines, String> {
    reading(text, 1 << 16, &input(Some(b','), None))
}

fn lines(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
    shown(json(text))
}

fn rows(text: &str) -> Vec<(u64, Result<String, String>)> {
    shown(table(text.as_bytes()).ok().unwrap())
}

fn shown(mut lines: Lines) -> Vec<(u64, Result<String, String>)> {
    let shown = |line: Line| {
        let update = line
            .update
            .map(|update| serde_json::to_string(&update).unwrap())
            .map_err(|error| error.to_string());
        (line.number, update)
    };
    lines.wanted(|_| true).map(shown).collect()
}

fn texts(mut lines: Lines) -> Vec<(u64, Vec<u8>)> {
    std::iter::from_fn(|| lines.next_record())
        .map(|record| (record.number, record.piece.text))
        .collect()
}

#[test]
fn json_lines_are_numbered_as_in_the_file() {
    let text = b"{\"conversationId\":\"a\",\"target\":\"conversation\",\"attributes\":{\"k\":1}}\r\n\n  \nnot json\n\xFF\n{\"conversationId\":\"b\",\"target\":\"conversation\",\"atributes\":{}}";
    let found = lines(text);
    assert_eq!(found.len(), 4);
    assert_eq!(found[0].0, 1);
    assert!(found[0].1.as_ref().unwrap().contains("\"k\":1"));
    assert_eq!((found[1].0, found[2].0), (4, 5));
    let problem = found[1].1.as_ref().unwrap_err();
    assert!(problem.contains("not JSON"), "{problem}");
    let problem = found[2].1.as_ref().unwrap_err();
    assert!(problem.contains("not valid UTF-8"), "{problem}");
    assert_eq!(found[3].0, 6);
    let problem = found[3].1.as_ref().unwrap_err();
    assert!(problem.contains("atributes"), "{problem}");
    assert!(!problem.contains("at line"), "{problem}");
}

#[test]
fn long_line_is_one_failure_and_the_next_is_read() {
    let mut text = vec![b'x'; 3 * LONGEST];
    text.extend(
        b"\n{\"conversationId\":\"a\",\"target\":\"conversation\",\"attributes\":{\"k\":1}}\n",
    );
    let found = lines(&text);
    assert_eq!(found.len(), 2);
    assert!(found[0].1.as_ref().unwrap_err().contains("3145728 bytes"));
    assert!(found[1].1.is_ok());
    assert_eq!(found[1].0, 2);

    let long = "x,".repeat(LONGEST);
    let found = rows(&format!("conversationId,k\na,{long}\nb,1\n"));
    assert_eq!(found.len(), 2);
    assert!(found[0].1.as_ref().unwrap_err().contains("bytes long"));
    assert_eq!(found[1].0, 3);
    assert!(found[1].1.as_ref().unwrap().contains("\"k\":\"1\""));
}

#[test]
fn csv_cells_become_attributes() {
    let found = rows(
        "\u{FEFF}conversationId,tier,score:,note\r\n\
         a,premium,85,\"two\nlines, and \"\"quotes\"\"\"\r\n\
         b,gold,,\n\
         \r\n  \n\
         c,x,nope,\n\
         d,short\n",
    );
    let numbers: Vec<u64> = found.iter().map(|f| f.0).collect();
    assert_eq!(numbers, [2, 4, 7, 8]);
    assert_eq!(
        found[0].1.as_ref().unwrap(),
        r#"{"conversationId":"a","target":"conversation","attributes":{"note":"two\nlines, and \"quotes\"","score":85,"tier":"premium"}}"#
    );
    assert_eq!(
        found[1].1.as_ref().unwrap(),
        r#"{"conversationId":"b","target":"conversation","attributes":{"tier":"gold"}}"#
    );
    let problem = found[2].1.as_ref().unwrap_err();
    assert!(
        problem.contains("the cell of \"score\" is not JSON"),
        "{problem}"
    );
    let problem = found[3].1.as_ref().unwrap_err();
    assert!(
        problem.contains("the row has 2 cells, the header 4"),
        "{problem}"
    );
}

#[test]
fn quote_in_the_middle_of_a_cell_does_not_swallow_rows() {
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
    let problem = found[0].1.as_ref().unwrap_err();
    assert!(problem.contains("bare carriage return"), "{problem}");
    let problem = found[1].1.as_ref().unwrap_err();
    assert!(problem.contains("no closing quote"), "{problem}");
    let problem = table(b"conversationId,k\ra,1\r").err().unwrap();
    assert!(problem.contains("bare carriage return"), "{problem}");
    assert!(table(b"").err().unwrap().contains("empty"));
    // A line break inside of quotes is the cell's own, of any kind.
    let found = rows("conversationId,k\na,\"x\ry\r\nz\"\nb,1");
    assert!(found[0].1.as_ref().unwrap().contains("x\\ry\\r\\nz"));
    assert_eq!(found[1].0, 4);
}

#[test]
fn rows_are_the_same_however_the_source_is_cut() {
    let text = "conversationId,k,n:\r\na,\"x\"\"\r\n\n\",1\r\n\r\n\nb,y,2\nc,\"open";
    let whole = rows(text);
    for size in 1..12 {
        let lines = reading(text.as_bytes(), size, &input(Some(b','), None))
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(shown(lines), whole, "{size}");
    }
    let text = b"{\"a\":1}\r\n\r\n\r{\"b\":\r1}\r\n";
    let all = texts(json(text));
    for size in 1..12 {
        let lines = reading(text, size, &input(None, None)).ok().unwrap();
        assert_eq!(texts(lines), all, "{size}");
    }
}

#[test]
fn values_are_not_shown_in_what_is_wrong() {
    for text in ["\"SECRET\"", "12345678", "[\"SECRET\"]"] {
        let found = lines(text.as_bytes());
        let problem = found[0].1.as_ref().unwrap_err();
        assert!(problem.contains("must be an object"), "{text}: {problem}");
        assert!(
            !problem.contains("SECRET") && !problem.contains("1234"),
            "{problem}"
        );
    }
}

#[test]
fn shard_takes_its_conversations_and_its_part_of_the_unreadable_lines() {
    let mut text = String::new();
    for n in 0..50 {
        text += &format!(
            "{{\"conversationId\":\"c-{n}\",\"target\":\"conversation\",\"attributes\":{{\"k\":1}}}}\nnope {n}\n"
        );
    }
    let mut seen = Vec::new();
    for index in 0..3 {
        let shard = Shard { index, count: 3 };
        let input = input(None, Some(shard));
        let mut lines = reading(text.as_bytes(), 1 << 16, &input).ok().unwrap();
        seen.extend(lines.wanted(|_| true).map(|line| line.number));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=100).collect::<Vec<u64>>());
}

#[test]
fn shard_of_a_wrong_line_is_that_of_its_conversation_where_it_names_one() {
    let count = 1_000;
    let shard_of = |text: &str, csv: bool| {
        let found = (0..count).filter(|index| {
            let shard = Shard {
                index: *index,
                count,
            };
            let input = input(csv.then_some(b','), Some(shard));
            let mut lines = reading(text.as_bytes(), 1 << 16, &input).ok().unwrap();
            lines.wanted(|_| true).count() == 1
        });
        let found: Vec<u64> = found.collect();
        assert_eq!(found.len(), 1, "{text}");
        found[0]
    };
    let good = shard_of(
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":{\"k\":1}}",
        false,
    );
    for wrong in [
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\"}",
        "\u{FEFF}{\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":{\"k\":1},\"unknown\":2}",
        "{\"conversationId\":\"x\",\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":7}",
    ] {
        assert_eq!(shard_of(wrong, false), good, "{wrong}");
    }
    assert_eq!(shard_of("k:,conversationId\noops,c-1", true), good);
    for none in [
        "nope",
        "{\"conversationId\":7,\"target\":\"conversation\"}",
        "[]",
        "\n\n\n{}",
    ] {
        let line = none.lines().count() as u64;
        assert_eq!(shard_of(none, false), line, "{none}");
    }
    assert_eq!(shard_of("conversationId,k\n,1", true), 2);
}

#[test]
fn conversation_of_a_line_that_is_no_update_is_found_where_it_is_legible() {
    for text in [
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\",\"attributes\":{\"k\":",
        "{\"conversationId\" : \"c-1\", k}",
        "{\"attributes\":{\"k\":1},\"conversationId\":\"c-1\",\"participant\":7}",
        "{\"conversationId\":\"c-1\",\"target\":\"conversation\"} {}",
    ] {
        let mut lines = json(text.as_bytes());
        let record = lines.next_record().unwrap();
        assert_eq!(
            lines.conversation(&record).as_deref(),
            Some("c-1"),
            "{text}"
        );
    }
    for row in [
        &b"1,c-1"[..],
        b"1,c-1,x,y",
        b"x,c-1,\"open",
        b"1,c-1,\xFF",
        b"\xFF,c-1,k",
        b"1,c-1,bare\rreturn",
    ] {
        let mut lines = table(&[b"n:,conversationId,k\n", row].concat())
            .ok()
            .unwrap();
        let record = lines.next_record().unwrap();
        assert!(lines.read(&record).unwrap().update.is_err());
        assert_eq!(
            lines.conversation(&record).as_deref(),
            Some("c-1"),
            "{row:?}"
        );
    }
    let long = format!(
        "{{\"conversationId\":\"c-1\",\"k\":\"{}\"}}\n",
        "x".repeat(LONGEST)
    );
    let mut lines = json(long.as_bytes());
    let record = lines.next_record().unwrap();
    assert_eq!(lines.conversation(&record).as_deref(), Some("c-1"));
}

#[test]
fn last_line_without_a_line_end_is_told_apart() {
    for (text, ended) in [
        ("a,1\nb,2\n", true),
        ("a,1\nb,2", false),
        ("a,1\r\nb,2\r", false),
    ] {
        let mut lines = table(format!("conversationId,k\n{text}").as_bytes())
            .ok()
            .unwrap();
        let found: Vec<bool> = lines.wanted(|_| true).map(|line| line.ended).collect();
        assert_eq!(found, [true, ended], "{text:?}");
    }
}

#[test]
fn rows_are_split_at_the_delimiter_that_is_named() {
    for (delimiter, text) in [
        (b';', "conversationId;k;n:\nc;\"a;b\nc\";1\nd;x,y;2\n"),
        (
            b'\t',
            "conversationId\tk\tn:\nc\t\"a;b\nc\"\t1\nd\tx,y\t2\n",
        ),
    ] {
        let lines = reading(text.as_bytes(), 3, &input(Some(delimiter), None));
        let found = shown(lines.ok().unwrap());
        assert_eq!((found[0].0, found[1].0), (2, 4));
        assert!(
            found[0].1.as_ref().unwrap().contains("\"a;b\\nc\""),
            "{found:?}"
        );
        assert!(
            found[1].1.as_ref().unwrap().contains("\"n\":2"),
            "{found:?}"
        );
    }
}
