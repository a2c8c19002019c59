//! Reads without an answer, or with one that cannot be used.

use super::*;

#[test]
fn read_unanswered_is_retried() {
    for (name, fault, kind) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![fault, then(&[&read_ok(), &write_ok(), &kept()])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 1);

        let tries = tries(&fault);
        let (result, seen) = play_fault(&fault, vec![fault.clone(); tries as usize], &update());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.may_have_applied());
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (0, tries));
        assert!(seen.writes().is_empty());
        assert_eq!(seen.report.connections, tries as usize);
    }
}

#[test]
fn read_body_broken_never_leads_to_write() {
    for (name, fault, kind) in broken_bodies() {
        eprintln!("{name}");
        let broken = then(&[&[Act::ReadRequest], &fault]);
        let passes = kind != ErrorKind::Protocol;
        let tries = if passes { tries(&fault) as usize } else { 1 };
        let (result, seen) = play_fault(&fault, vec![broken.clone(); tries], &update());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.is_transient(), passes, "{error}");
        assert_eq!(error.http_status(), Some(200));
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (0, tries as u32));
        assert_eq!(seen.methods(), vec!["GET"; tries]);
        assert_eq!(seen.report.connections, tries);
        if !passes {
            assert!(error.to_string().contains("1048576 bytes"), "{error}");
            continue;
        }
        let (result, seen) = play_fault(
            &fault,
            scripts![broken, then(&[&read_ok(), &write_ok(), &kept()])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(seen.methods(), ["GET", "GET", "PATCH"]);
    }
}

#[test]
fn read_without_version_is_protocol_error_and_never_writes() {
    // What is not JSON may be another's, and pass: it is read as often as there are attempts.
    for (name, answer, reads) in [
        ("empty", respond(200, ""), 4),
        ("204", respond(204, ""), 4),
        ("not JSON", respond(200, "<html>sign in</html>"), 4),
        ("truncated JSON", respond(200, r#"{"version":"6","#), 4),
        ("not an object", respond(200, r#"["6"]"#), 1),
        ("no version", respond(200, r#"{"id":"c-1"}"#), 1),
        ("null version", respond(200, r#"{"version":null}"#), 1),
        ("empty version", respond(200, r#"{"version":""}"#), 1),
        ("an object as version", respond(200, r#"{"version":{}}"#), 1),
    ] {
        eprintln!("{name}");
        let all = vec![[Act::ReadRequest, answer]; reads].concat();
        let (result, seen) = play_one(scripts![then(&[&all, &kept()])], &update());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(matches!(error.http_status(), Some(200 | 204)));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert_eq!((error.attempts(), error.requests()), (0, reads as u32));
        assert_eq!(seen.methods(), vec!["GET"; reads]);
        assert_eq!(seen.sleeps, reads - 1);
    }
}

#[test]
fn read_not_json_then_json_is_used() {
    for answer in ["", "<html>sign in</html>", r#"{"version":"6","#] {
        let (result, seen) = play_one(
            scripts![then(&[
                &[Act::ReadRequest, respond(200, answer)],
                &read_ok(),
                &write_ok(),
                &kept()
            ])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(seen.methods(), ["GET", "GET", "PATCH"]);
    }
}

/// An answer that is no object must not pass for a map that was never written: the write of that
/// has no version, and replaces everything.
#[test]
fn secure_read_of_non_object_is_protocol_error() {
    for answer in ["[]", r#" [{"iban":"x"},"3"]"#, "null", "true", "\"6\"", "7"] {
        for update in [
            Update::secure(ID).set("a", "b"),
            Update::custom(ID, "r-1").set("a", "b"),
            update(),
        ] {
            let (result, seen) = play_one(
                scripts![[Act::ReadRequest, respond(200, answer), Act::WaitClientClose]],
                &update,
            );
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{answer}: {error}");
            assert_eq!(seen.methods(), ["GET"], "{answer}");
        }
    }
}

/// Nor must an object that speaks of something else, or whose version cannot be read.
#[test]
fn secure_read_of_strange_object_is_protocol_error() {
    for answer in [
        r#"{"status":"ok"}"#,
        r#"{"error":"maintenance"}"#,
        r#"{"version":null,"id":1}"#,
        r#"{"attributes":{},"version":true}"#,
        r#"{"attributes":{},"version":""}"#,
        r#"{"attributes":{},"version":"a b"}"#,
        r#"{"attributes":{"other":"x"}}"#,
    ] {
        let (result, seen) = play_one(
            scripts![[Act::ReadRequest, respond(200, answer), Act::WaitClientClose]],
            &Update::secure(ID).set("a", "b"),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{answer}: {error}");
        assert_eq!(seen.methods(), ["GET"], "{answer}");
    }
}
