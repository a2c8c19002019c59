//! Settings beside options: what guards a write, what is opened, and what is said.

use super::*;

impl Folder {
    /// A settings file for this server with more fields.
    fn settings(&self, server: &Server, more: Value) -> PathBuf {
        let mut fields = json!({ "baseUrl": server.url(), "clientId": "id", "clientSecret": SECRET,
            "proxy": false, "ratePerMinute": 0, "retry": { "maxAttempts": 1 } });
        let target = fields.as_object_mut().unwrap();
        target.extend(more.as_object().unwrap().clone());
        let file = self.file("settings.json", fields.to_string());
        // On Unix a secret that others may read is warned of.
        #[cfg(unix)]
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        file
    }
}

fn with_settings(file: &Path, args: &[&str]) -> Command {
    let mut command = bare();
    command.args(args).arg("--settings").arg(file);
    command
}

const UPDATE: [&str; 4] = ["update", "c", "--conversation", "tier=gold"];

#[test]
fn schema_of_the_settings_and_of_the_option_both_hold_in_every_mode() {
    let (store, server) = plain();
    let folder = Folder::new("two-schemas");
    let settings = folder.settings(
        &server,
        json!({ "schema": { "keys": { "tier": { "type": "text", "oneOf": ["gold", "silver"] } } } }),
    );
    let schema = r#"{"keys":{"tier":{"type":"text","oneOf":["gold","bronze"]}}}"#;
    let schema = folder.file("schema.json", schema);
    for (tier, code) in [("silver", 1), ("bronze", 1), ("gold", 0)] {
        let text = format!(
            "{{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{{\"tier\":\"{tier}\"}}}}\n"
        );
        let input = folder.file("in", text);
        let word = format!("tier={tier}");
        let before = store.ids().len();
        for args in [
            &["update", "c", "--conversation", "--dry-run", &word][..],
            &["update", "c", "--conversation", &word],
            &["validate", input.to_str().unwrap()],
            &["batch", "--dry-run", input.to_str().unwrap()],
            &["batch", "--diff", input.to_str().unwrap()],
            &["batch", input.to_str().unwrap()],
        ] {
            let mut command = with_settings(&settings, args);
            let ended = run(command.arg("--schema-file").arg(&schema));
            let expected = if args[0] == "update" { code * 2 } else { code };
            assert_eq!(ended.code, expected, "{tier} {args:?}: {}", ended.err);
        }
        assert_eq!(store.ids().len() > before, code == 0, "{tier}");
    }
}

#[test]
fn limits_of_the_settings_hold_without_the_network() {
    let (_, server) = plain();
    let folder = Folder::new("limits");
    let settings = folder.settings(
        &server,
        json!({ "validationLimits": { "stringLength": 3 } }),
    );
    let text =
        "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":\"gold\"}}\n";
    let input = folder.file("in", text);
    for args in [
        &["validate", input.to_str().unwrap()][..],
        &["batch", "--dry-run", input.to_str().unwrap()],
        &UPDATE,
    ] {
        let ended = run(&mut with_settings(&settings, args));
        assert_ne!(ended.code, 0, "{args:?}: {}", ended.err);
    }
    assert_eq!(server.requests(), 0);
    for args in [&["validate"][..], &["batch", "--dry-run"]] {
        let ended = run(&mut with_settings(Path::new("/nonexistent"), args));
        assert_eq!(ended.code, 2, "{args:?}");
    }
}

/// Each pair of what the settings and the options say about the audit.
#[test]
fn audit_of_the_settings_and_of_the_options_is_one_or_refused() {
    let (_, server) = plain();
    let folder = Folder::new("audit-pairs");
    let own = folder.path("own");
    let own_text = own.to_str().unwrap();
    for (audit, options, refused) in [
        (json!({}), &["--audit"][..], None),
        (json!({ "strict": true }), &["--audit"], None),
        (json!({ "values": true }), &["--audit"], None),
        (
            json!({ "file": own_text }),
            &["--audit"],
            Some("both name an audit file"),
        ),
        (json!({ "file": own_text }), &[], None),
        (json!({ "file": own_text }), &["--audit-strict"], None),
        (json!({ "file": own_text }), &["--audit-values"], None),
        (json!({}), &["--audit-strict"], Some("--audit FILE")),
        (json!({}), &["--audit-values"], Some("--audit FILE")),
        (json!({ "strict": true }), &[], Some("audit.file")),
        (
            json!({ "strict": true }),
            &["--audit-strict"],
            Some("--audit FILE"),
        ),
    ] {
        let settings = folder.settings(&server, json!({ "audit": audit }));
        let other = folder.path("other");
        let mut command = with_settings(&settings, &UPDATE);
        command.args(options);
        if options == ["--audit"] {
            command.arg(&other);
        }
        let before = server.requests();
        let ended = run(&mut command);
        let at = format!("{audit} {options:?}: {}", ended.err);
        if let Some(why) = refused {
            assert_eq!((ended.code, server.requests()), (2, before), "{at}");
            assert!(ended.err.contains(why), "{at}");
            assert!(!own.exists() && !other.exists(), "{at}");
            continue;
        }
        assert_eq!(ended.code, 0, "{at}");
        let written = if options == ["--audit"] { &other } else { &own };
        let text = std::fs::read_to_string(written).unwrap();
        let values = audit["values"] == true || options == ["--audit-values"];
        assert_eq!(text.contains("gold"), values, "{at}");
        let _ = (std::fs::remove_file(&own), std::fs::remove_file(&other));
    }
}

#[test]
fn strict_audit_of_the_settings_stops_a_batch_before_its_first_write() {
    let (store, server) = plain();
    let folder = Folder::new("strict-settings");
    let text = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":1}}\n";
    let input = folder.file("in", text.repeat(40));
    for (audit, options) in [
        (json!({ "file": "/dev/full", "strict": true }), &[][..]),
        (json!({ "strict": true }), &["--audit", "/dev/full"]),
        (json!({ "file": "/dev/full" }), &["--audit-strict"]),
    ] {
        let settings = folder.settings(&server, json!({ "audit": audit }));
        let mut command = with_settings(&settings, &["batch", input.to_str().unwrap()]);
        let ended = run(command.args(options));
        assert_eq!(ended.code, 2, "{audit}: {}", ended.err);
        assert!(
            ended.err.contains("0 updates are in place"),
            "{}",
            ended.err
        );
        assert!(ended.err.contains("make room and resume"), "{}", ended.err);
        assert!(
            store
                .ids()
                .iter()
                .all(|id| store.with(id, |c| c.writes.is_empty()))
        );
    }
}

#[test]
fn what_only_reads_opens_no_audit_file() {
    let (_, server) = plain();
    let folder = Folder::new("readers");
    let audit = folder.path("audit");
    let settings = folder.settings(
        &server,
        json!({ "audit": { "file": audit, "strict": true } }),
    );
    let text = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":1}}\n";
    let input = folder.file("in", text);
    let input = input.to_str().unwrap();
    assert_eq!(run(program(&server).args(UPDATE)).code, 0);
    for args in [
        &["get", "c", "--conversation"][..],
        &["check"],
        &["update", "c", "--conversation", "--dry-run", "t:=1"],
        &["batch", "--diff", input],
        &["batch", "--dry-run", input],
        &["validate", input],
    ] {
        let ended = run(&mut with_settings(&settings, args));
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.err);
        assert!(!audit.exists(), "{args:?}");
    }
    assert_eq!(run(&mut with_settings(&settings, &UPDATE)).code, 0);
    assert!(audit.exists());
}

#[test]
fn output_file_of_another_kind_is_refused_before_anything_is_sent() {
    let (_, server) = plain();
    let folder = Folder::new("foreign");
    let audit = "{\"id\":\"x\",\"phase\":\"intent\"}\n";
    let outcome = "{\"line\":1,\"status\":\"applied\",\"digest\":\"00\",\"final\":true}\n";
    let text = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":1}}\n";
    let metrics = "# HELP genesys_attributes_x X.\n";
    let input = folder.file("in", text);
    let kinds = [
        ("--audit", audit),
        ("--results", outcome),
        ("--failed", text),
        ("--metrics", metrics),
    ];
    let contents = kinds
        .map(|kind| kind.1)
        .into_iter()
        .chain(["notes\n", "a,b\n", "{}\n"]);
    for content in contents {
        for (option, own) in kinds {
            if content == own {
                continue;
            }
            let file = folder.file("file", content);
            let mut command = program(&server);
            command.arg("batch").arg(&input).arg(option).arg(&file);
            if option == "--results" {
                command.arg("--resume");
            }
            let ended = run(&mut command);
            assert_eq!(ended.code, 2, "{option} {content}: {}", ended.err);
            assert!(
                ended.err.contains("is there already"),
                "{option}: {}",
                ended.err
            );
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
        if content != audit {
            let file = folder.file("file", content);
            let ended = run(program(&server).args(UPDATE).arg("--audit").arg(&file));
            assert_eq!(ended.code, 2, "{content}: {}", ended.err);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
    }
    for option in ["--results", "--failed", "--metrics", "--audit"] {
        let ended = run(program(&server)
            .arg("batch")
            .arg(&input)
            .args([option, "-"]));
        assert_eq!(ended.code, 2, "{option}: {}", ended.err);
        assert!(
            ended.err.contains(&format!("{option} cannot be -")),
            "{}",
            ended.err
        );
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn credentials_come_beside_settings_unless_both_say_who_logs_in() {
    let (_, server) = plain();
    let folder = Folder::new("beside");
    let credentials = folder.file(
        "env",
        format!(
            "GENESYS_CLOUD_BASE_URL={}\nGENESYS_CLOUD_CLIENT_ID=id\nGENESYS_CLOUD_CLIENT_SECRET={SECRET}\n",
            server.url()
        ),
    );
    let audit = folder.path("audit");
    let only = folder.file(
        "only.json",
        json!({ "proxy": false, "audit": { "file": audit } }).to_string(),
    );
    let ended = run(with_settings(&only, &UPDATE)
        .arg("--credentials")
        .arg(&credentials));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(audit.exists());
    for warned in ["the credentials file", "the settings file"] {
        assert!(
            ended
                .err
                .contains(&format!("other users can read {warned}")),
            "{}",
            ended.err
        );
    }
    let both = folder.settings(&server, json!({}));
    let ended = run(with_settings(&both, &UPDATE)
        .arg("--credentials")
        .arg(&credentials));
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("both say who logs in"), "{}", ended.err);
    let ended = run(bare().args(["check", "--settings", "-", "--credentials", "-"]));
    assert_eq!(ended.code, 2);
}

#[test]
fn profile_of_the_official_tool_logs_in() {
    let folder = Folder::new("profile");
    std::fs::create_dir(folder.path(".gc")).unwrap();
    let text = format!(
        "[default]\nenvironment = \"nowhere.example\"\nclient_secret = \"{SECRET}\"\nclient_credentials = \"id\"\n"
    );
    folder.file(".gc/config.toml", text);
    let check = |name: &str| {
        run(bare()
            .env("HOME", &folder.0)
            .args(["check", "--profile", name]))
    };
    let ended = check("default");
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("region") && ended.err.contains("config.toml"),
        "{}",
        ended.err
    );
    let ended = check("other");
    assert!(ended.err.contains("it has default"), "{}", ended.err);
    assert!(!ended.err.contains(SECRET));
}

#[test]
fn forwarders_files_with_secrets_are_warned_of() {
    let folder = Folder::new("forward-secrets");
    let log = folder.file("log", "");
    let secret = folder.file("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
    let header = folder.file("header", "x\n");
    let ended = run(bare()
        .args(["forward", "--url", "http://127.0.0.1:1/"])
        .arg(&log)
        .arg("--secret-file")
        .arg(&secret)
        .args(["--header", &format!("Authorization=@{}", header.display())]));
    for file in [&secret, &header] {
        assert!(
            ended.err.contains(&format!("chmod 600 {}", file.display())),
            "{}",
            ended.err
        );
    }
}

/// One table of statuses for the commands of one update or none.
#[test]
fn status_says_what_kind_of_failure_it_was() {
    let folder = Folder::new("statuses");
    for (status, code) in [(401, 3), (403, 3), (404, 1), (429, 5), (500, 6), (503, 6)] {
        let store = Store::default();
        let server = store.serve(move |req, _| {
            let api = req.path.starts_with("/api/");
            api.then(|| Resp::json(status, "{}").header("Retry-After", "9999"))
        });
        let settings = folder.settings(&server, json!({}));
        for args in [&UPDATE[..], &["get", "c", "--conversation"]] {
            for json in [None, Some("--json")] {
                let ended = run(with_settings(&settings, args).args(json));
                assert_eq!(ended.code, code, "{status} {args:?}: {}", ended.err);
                if json.is_some() {
                    one_shape(&ended.err);
                }
            }
        }
    }
    let refused = Server::start(|_| Resp::json(401, "{\"error\":\"invalid_client\"}"));
    let settings = folder.settings(&refused, json!({}));
    assert_eq!(run(&mut with_settings(&settings, &["check"])).code, 3);
    let gone = folder.settings(&refused, json!({ "baseUrl": "http://127.0.0.1:1" }));
    assert_eq!(run(&mut with_settings(&gone, &["check"])).code, 6);
}

/// Every line on standard error has the same first fields.
fn one_shape(err: &str) -> Vec<Value> {
    let found = records(err);
    assert!(!found.is_empty());
    for record in &found {
        for name in ["level", "type", "message"] {
            assert!(record[name].is_string(), "{record}");
        }
        assert!(record["causes"].is_array(), "{record}");
    }
    found
}

#[test]
fn lines_of_json_on_standard_error_have_one_shape() {
    let (_, server) = plain();
    let folder = Folder::new("shape");
    let input = folder.file(
        "in",
        "nope\n{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":1}}\n",
    );
    let input = input.to_str().unwrap();
    for (args, kind) in [
        (&["batch", input][..], "summary"),
        (&["batch", "--dry-run", input], "summary"),
        (&["batch", "--diff", input], "summary"),
        (&["validate", input], "summary"),
        (&["frob"], "error"),
        (&["update", "c"], "error"),
        (
            &[
                "get",
                "c",
                "--conversation",
                "--credentials",
                "/nonexistent",
            ],
            "error",
        ),
        (&["batch", "/nonexistent"], "error"),
    ] {
        // A wrong RUST_LOG is a line like every other.
        let ended = run(program(&server)
            .env("RUST_LOG", "a=b=c,/x")
            .args(args)
            .arg("--json"));
        let found = one_shape(&ended.err);
        assert_eq!(
            found.last().unwrap()["type"],
            kind,
            "{args:?}: {}",
            ended.err
        );
        let bad = found
            .iter()
            .filter(|r| r["message"].to_string().contains("RUST_LOG"));
        assert_eq!(
            bad.count(),
            usize::from(args[0] != "frob"),
            "{args:?}: {}",
            ended.err
        );
    }
    let ended = run(bare().args(["get", "c", "--conversation", "--json"]));
    assert_eq!(one_shape(&ended.err)[0]["kind"], "config");
}

#[test]
fn nothing_that_the_platform_says_moves_the_terminal() {
    const NAME: &str = r#"{"organization":{"id":"1","name":"a\u001b[2J\u009b1mb"},"OAuthClient":{"id":"2","name":"\u202ec"}}"#;
    let store = Store::default();
    let server = store.serve(|req, _| match req.path {
        path if path.contains("/tokens/me") => Some(Resp::json(200, NAME)),
        path if path.ends_with("/c") => Some(Resp::json(
            200,
            r#"{"id":"c","version":"\u001b[31m7","state":"a","attributes":{"k":"\u001b]0;x\u0007\u009b"}}"#,
        )),
        _ => None,
    });
    for args in [
        &["check"][..],
        &["check", "--json"],
        &["get", "c", "--conversation"],
        &["update", "c", "--conversation", "--dry-run", "k=2"],
        &["update", "c", "--conversation", "k=2"],
        &["update", "c", "--conversation", "k=2", "--if-version", "1"],
    ] {
        let ended = run(program(&server).args(args));
        for text in [&ended.out, &ended.err] {
            let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!text.chars().any(obeyed), "{args:?}: {text:?}");
        }
    }
}

/// As under nohup: what was ignored at the start stays ignored.
#[cfg(target_os = "linux")]
#[test]
fn signal_that_was_ignored_at_the_start_does_not_stop_a_batch() {
    let store = Store::default();
    let (arrived, gate, hold) = held();
    let server = store.serve(move |req, _| {
        if req.method == "PATCH" {
            hold();
        }
        None
    });
    let folder = Folder::new("nohup");
    let text = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"t\":1}}\n";
    let input = folder.file("in", text);
    let ours = program(&server);
    let mut command = Command::new("sh");
    command.env_clear().envs(
        ours.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command
        .args(["-c", "trap '' HUP INT; exec \"$0\" batch \"$1\""])
        .arg(ours.get_program())
        .arg(&input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    arrived.wait();
    for signal in ["-HUP", "-INT"] {
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
    gate.open();
    let ended = ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.err);
}

#[test]
fn batch_gives_a_target_to_the_lines_that_name_none() {
    let sandbox = crate::sandbox::Sandbox::start();
    sandbox.world(|world| world.auto_create = true);
    let folder = Folder::new("default-target");
    let json = "{\"conversationId\":\"c-1\",\"attributes\":{\"k\":\"v\"}}\n\
                {\"conversationId\":\"c-2\",\"target\":\"secure\",\"attributes\":{\"k\":\"w\"}}\n";
    let csv = "conversationId,k\nc-3,v\n";
    for (text, option, ids) in [
        (json, None, ["c-1", "c-2"]),
        (csv, Some("--csv"), ["c-3", "c-4"]),
    ] {
        let input = folder.file("in", text);
        let mut command = bare();
        command
            .env("GENESYS_CLOUD_BASE_URL", sandbox.url())
            .env("GENESYS_CLOUD_CLIENT_ID", crate::sandbox::CLIENT_ID)
            .env("GENESYS_CLOUD_CLIENT_SECRET", crate::sandbox::CLIENT_SECRET)
            .args(["batch", "--participant", "customer"])
            .arg(&input)
            .args(option);
        let ended = run(&mut command);
        assert_eq!(ended.code, 0, "{}", ended.err);
        sandbox.world(|world| {
            let customer = &world.conversations[ids[0]].participants;
            let customer = customer
                .iter()
                .find(|one| one.purpose == "customer")
                .unwrap();
            assert_eq!(customer.attributes["k"], "v");
            if option.is_none() {
                let secure = world.conversations[ids[1]].secure.as_ref().unwrap();
                assert_eq!(secure.attributes["k"], "w");
            }
        });
    }
}

#[test]
fn line_that_names_no_target_is_refused_by_every_command_and_never_sent() {
    let (_, server) = plain();
    let folder = Folder::new("no-target");
    let json = "{\"conversationId\":\"c-1\",\"attributes\":{\"k\":\"v\"}}\n";
    let csv = "conversationId,k\nc-1,v\n";
    for (text, option) in [(json, None), (csv, Some("--csv"))] {
        let input = folder.file("in", text);
        for args in [
            &["validate"][..],
            &["batch", "--dry-run"],
            &["batch", "--diff"],
            &["batch"],
        ] {
            let ended = run(program(&server).args(args).arg(&input).args(option));
            assert_eq!(ended.code, 1, "{args:?} {}", ended.err);
            for way in ["participant", "secure", "custom", "conversation"] {
                assert!(ended.out.contains(way), "{args:?} {}", ended.out);
            }
        }
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn participants_of_a_conversation_are_printed_as_a_table_and_as_json() {
    let sandbox = crate::sandbox::Sandbox::start();
    sandbox.world(|world| world.auto_create = true);
    let asked = |id: &str, more: &[&str]| {
        let mut command = bare();
        command
            .env("GENESYS_CLOUD_BASE_URL", sandbox.url())
            .env("GENESYS_CLOUD_CLIENT_ID", crate::sandbox::CLIENT_ID)
            .env("GENESYS_CLOUD_CLIENT_SECRET", crate::sandbox::CLIENT_SECRET)
            .args(["participants", id])
            .args(more);
        run(&mut command)
    };
    let ended = asked("c-1", &[]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let rows = Vec::from_iter(
        ended
            .out
            .lines()
            .map(|row| Vec::from_iter(row.split_whitespace())),
    );
    assert_eq!(rows[0], ["id", "purpose", "connected", "left", "name"]);
    let customer = rows.iter().find(|row| row[1] == "customer").unwrap();
    assert_eq!((customer[0], customer[3]), ("c-1-customer", "active"));
    let ended = asked("c-1", &["--json"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), rows.len() - 1);
    let customer = found
        .iter()
        .find(|one| one["purpose"] == "customer")
        .unwrap();
    assert_eq!(
        (&customer["id"], &customer["active"]),
        (&json!("c-1-customer"), &json!(true))
    );
}

#[test]
fn sandbox_prints_what_a_shell_needs_and_answers() {
    let mut child = bare();
    child.args(["sandbox", "--port", "0", "--fault", "conflict=2"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = super::files::Killed(child.unwrap());
    let mut out = std::io::BufReader::new(child.0.stdout.take().unwrap());
    let mut update = bare();
    for name in ["BASE_URL", "CLIENT_ID", "CLIENT_SECRET"] {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let (found, value) = line.trim().split_once('=').unwrap();
        assert_eq!(found, format!("export GENESYS_CLOUD_{name}"));
        update.env(format!("GENESYS_CLOUD_{name}"), value);
    }
    let ended = run(update.args(["update", "c-1", "--participant", "customer", "tier=gold"]));
    assert_eq!(ended.code, 0, "{}", ended.err);
}
