//! Batches as they are asked for.

use super::*;

#[test]
fn batch_reads_json_lines_and_writes_json_lines() {
    let (store, server) = plain();
    let mut input: Vec<u8> = Vec::new();
    input.extend(line("a", 1).bytes());
    input.extend(b"not json\n\n");
    input.extend(b"{\"conversationId\":\"a\",\"target\":\"conversation\",\"atributes\":{}}\n");
    input.extend(b"{\"conversationId\":7,\"target\":\"conversation\",\"attributes\":{}}\n");
    input.extend(b"\xFF\xFE\n");
    input.extend(vec![b'x'; 10 << 20]);
    input.extend(b"\n");
    input.extend(line("a", 2).bytes());
    input
        .extend(b"{\"conversationId\":\"b\",\"target\":\"conversation\",\"attributes\":{\"n\":3}}");
    for (args, text) in [
        (&["batch"][..], &input),
        (&["batch", "-", "--workers", "3"], &input),
    ] {
        let ended = with_stdin(program(&server).args(args), text);
        assert_eq!(ended.code, 1);
        assert!(
            ended.err.starts_with("genesys-attributes: 8 lines in "),
            "{}",
            ended.err
        );
        assert!(
            ended.err.contains("5  invalidInput (lines 2, 4, 5, 6, 7)"),
            "{}",
            ended.err
        );
        let mut found = records(&ended.out);
        found.sort_by_key(|record| record["line"].as_u64());
        let told: Vec<(u64, &str)> = found
            .iter()
            .map(|r| (r["line"].as_u64().unwrap(), r["status"].as_str().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                (1, "applied"),
                (2, "failed"),
                (4, "failed"),
                (5, "failed"),
                (6, "failed"),
                (7, "failed"),
                (8, "applied"),
                (9, "applied")
            ]
        );
        for (index, reason) in [
            (1, "not JSON"),
            (2, "atributes"),
            (3, "conversationId"),
            (4, "UTF-8"),
            (5, "10485760 bytes"),
        ] {
            let message = found[index]["error"]["message"].as_str().unwrap();
            assert!(message.contains(reason), "{message}");
            assert_eq!(found[index]["error"]["kind"], "invalidInput");
        }
        store.with("a", |c| assert_eq!(c.attributes["n"], 2));
        store.with("b", |c| assert_eq!(c.attributes["n"], 3));
    }
}

#[test]
fn batch_reads_csv() {
    let (store, server) = plain();
    let folder = Folder::new("csv");
    let input = folder.file(
        "in.csv",
        "conversationId,tier,score:,note\nc-1,gold,85,\"two\nlines\"\nc-2,,7,\nc-3,x,oops,\n",
    );
    let ended = run(program(&server)
        .args(["batch", "--conversation", "--csv", "--json"])
        .arg(&input));
    assert_eq!(ended.code, 1);
    let summary: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(
        (&summary["applied"], &summary["failed"]),
        (&json!(2), &json!(1))
    );
    store.with("c-1", |c| {
        assert_eq!(
            Value::from(c.attributes.clone()),
            json!({ "tier": "gold", "score": 85, "note": "two\nlines" })
        );
    });
    store.with("c-2", |c| {
        assert_eq!(Value::from(c.attributes.clone()), json!({ "score": 7 }))
    });
    let bad = folder.file("bad.csv", "id,k\n1,2\n");
    let ended = run(program(&server).args(["batch", "--csv"]).arg(&bad));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("conversationId"), "{}", ended.err);
}

#[test]
fn schema_file_is_checked_by_validate_update_and_batch_before_anything_is_sent() {
    let folder = Folder::new("schema-file");
    let rules = r#"{"keys": {"n": {"type": "integer", "max": 5}}, "onlyKnownKeys": true}"#;
    let schema = folder.file("schema", rules);
    let input = folder.file("input", [line("a", 5), line("b", 6)].concat());
    let with_schema = |command: &mut Command, words: &[&str]| {
        let ended = run(command.args(words).arg("--schema-file").arg(&schema));
        let refused = if words.contains(&"update") { 2 } else { 1 };
        assert_eq!(ended.code, refused, "{words:?}: {}", ended.err);
        ended
    };
    let (_store, server) = plain();
    let path = input.to_str().unwrap();
    let validated = with_schema(&mut bare(), &["validate", path]);
    assert_eq!(records(&validated.out)[0]["line"], 2);
    let rehearsed = with_schema(&mut bare(), &["batch", "--dry-run", path]);
    assert_eq!(records(&rehearsed.out)[0]["line"], 2);
    let words = ["update", "a", "other=x", "--conversation"];
    let updated = with_schema(&mut bare(), &words);
    assert!(updated.err.contains("\"other\""), "{}", updated.err);
    let words = ["batch", path];
    let batched = records(&with_schema(&mut program(&server), &words).out);
    let refused = batched.iter().find(|record| record["line"] == 2).unwrap();
    assert_eq!(refused["error"]["violations"][0]["rule"], "schema");
    let others = batched.iter().filter(|record| record["line"] != 2);
    assert!(
        others.eq(batched
            .iter()
            .filter(|record| record["status"] == "applied"))
    );
    let broken = folder.file("broken", "{\"key\": {}}");
    let ended = run(bare()
        .args(["validate", path, "--schema-file"])
        .arg(&broken));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("broken"), "{}", ended.err);
}

#[test]
fn validate_needs_no_network_and_names_lines() {
    let folder = Folder::new("validate");
    let input = folder.file(
        "in",
        [
            line("a", 1),
            line("a b", 1),
            "{}\n".into(),
            line("c", 1_000_000_000),
            line("d", 2),
        ]
        .concat(),
    );
    let ended = run(bare().arg("validate").arg(&input));
    assert_eq!(ended.code, 1);
    let found = records(&ended.out);
    let lines: Vec<u64> = found.iter().map(|r| r["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4]);
    assert_eq!(found[0]["error"]["violations"][0]["rule"], "identifier");
    assert_eq!(found[2]["conversationId"], "c");
    let good = folder.file("good", line("a", 1));
    let ended = run(bare().args(["validate", "--json"]).arg(&good));
    assert_eq!((ended.code, ended.out.as_str()), (0, ""));
    let summary = &records(&ended.err)[0];
    assert_eq!(
        (&summary["valid"], &summary["refused"]),
        (&json!(1), &json!(0))
    );
}

#[test]
fn an_early_stop_does_not_wait_for_an_input_that_gives_nothing() {
    let refusing = Server::start(|_| Resp::json(401, r#"{"error":"invalid_client"}"#));
    let mut child = program(&refusing)
        .arg("batch")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line("a", 1).as_bytes()).unwrap();
    // The pipe stays open until the program has ended.
    assert_eq!(child.wait().unwrap().code(), Some(3));
    drop(stdin);
}

#[test]
fn a_dry_run_sends_nothing_and_writes_nothing() {
    let (_, server) = plain();
    let folder = Folder::new("dry");
    let input = folder.file("in", [line("a", 1), "nope\n".into()].concat());
    let file = folder.path("results");
    let ended = run(resume(&server, &input, &file).arg("--dry-run"));
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .err
            .contains("1 update would be sent, 1 line would be refused"),
        "{}",
        ended.err
    );
    assert_eq!(records(&ended.out)[0]["line"], 2);
    assert_eq!(server.requests(), 0);
    assert!(!file.exists());
}

#[test]
fn it_stops_early_with_its_own_status() {
    let store = Store::default();
    let server = store.serve(|req, _| match req.path.contains("gone") {
        true => Some(Resp::json(404, "{}")),
        false => None,
    });
    let folder = Folder::new("stop");
    let text: String = (0..500).map(|n| line(&format!("gone-{n}"), n)).collect();
    let input = folder.file("in", text);
    let ended = run(program(&server)
        .args([
            "batch",
            "--rate",
            "0",
            "--stop-after",
            "3",
            "--workers",
            "1",
        ])
        .arg(&input));
    assert_eq!(ended.code, 3);
    assert!(ended.err.contains("--stop-after"), "{}", ended.err);
    assert!(records(&ended.out).len() < 20);

    let refusing = Server::start(|_| Resp::json(401, r#"{"error":"invalid_client"}"#));
    let ended = run(program(&refusing).arg("batch").arg(&input));
    assert_eq!(ended.code, 3);
    assert!(ended.err.contains("credentials"), "{}", ended.err);
}
