//! No answer, or one that a retry may improve.

use super::*;

#[test]
fn write_unsent_or_unanswered_is_resent_with_same_version() {
    let mut ends = unclear();
    ends.push(("refused", Err(ErrorKind::Connect), ErrorKind::Connect));
    for (name, end, _) in ends {
        for kind in [Locked, Unlocked] {
            let fake = Fake::named(format!("{name}, {kind:?}"));
            kind.begin(&fake);
            for _ in 0..3 {
                match end {
                    Err(ErrorKind::Connect) => {
                        fake.fault("PATCH", ErrorKind::Connect, Sent::No);
                    }
                    end => end_unclear(&fake, end),
                }
            }
            fake.patch(8);
            let client = fake.client();
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}");
            assert_eq!((receipt.attempts, receipt.requests), (4, 4 + kind.reads()));
            let writes = fake.sent("PATCH");
            let version = (kind == Locked).then_some("\"7\"");
            for write in &writes {
                assert_eq!(write.if_match(), version, "{name}");
                assert_eq!(write.body, writes[0].body);
            }
            fake.slept(&[(ms(0), ms(500)), (ms(0), secs(1)), (ms(0), secs(2))]);
            assert_eq!(client.metrics().retries, 3);
        }
    }
}

#[test]
fn attempts_exhausted_error_tells_may_have_applied() {
    let mut ends = unclear();
    ends.push(("refused", Err(ErrorKind::Connect), ErrorKind::Connect));
    for (name, end, kind_of_error) in ends {
        for kind in [Locked, Unlocked] {
            for attempts in [1, 2, 4] {
                let fake = Fake::named(format!("{name}, {kind:?}, {attempts}"));
                kind.begin(&fake);
                for _ in 0..attempts {
                    match end {
                        Err(ErrorKind::Connect) => {
                            fake.fault("PATCH", ErrorKind::Connect, Sent::No);
                        }
                        end => end_unclear(&fake, end),
                    }
                }
                let policy = RetryPolicy::default().with_max_attempts(attempts);
                let client = fake.builder().retry(policy).build().unwrap();
                let error = client.update(&kind.update()).unwrap_err();
                assert_eq!(error.kind(), kind_of_error, "{name}");
                assert_eq!(error.http_status(), end.ok(), "{name}");
                assert_eq!(error.may_have_applied(), name != "refused", "{name}");
                assert_eq!(error.attempts(), attempts);
                assert_eq!(error.requests(), attempts + kind.reads());
                assert_eq!(fake.sleeps().len() as u32, attempts - 1);

                // What is left of it is read, not remembered.
                kind.begin_again(&fake);
                fake.patch(9);
                client.update(&kind.update()).unwrap();
            }
        }
    }
    assert_eq!(RetryPolicy::default().max_attempts, 4);
}

#[test]
fn ambiguous_attempt_marks_all_that_follow() {
    for kind in [Locked, Unlocked] {
        for last in [403, 404, 429] {
            let fake = Fake::named(format!("{kind:?} {last}"));
            kind.begin(&fake);
            fake.fault("PATCH", ErrorKind::Transport, Sent::Maybe)
                .fault("PATCH", ErrorKind::Connect, Sent::No)
                .answer(
                    "PATCH",
                    Response::new(last).with_header("Retry-After", "999"),
                );
            if last == 404 && matches!(kind, Unlocked) {
                fake.status("GET", 403);
            }
            let error = fake.client().update(&kind.update()).unwrap_err();
            assert_eq!(error.http_status(), Some(last));
            assert!(error.may_have_applied());
            assert_eq!(error.attempts(), 3);
        }
    }
}

#[test]
fn version_cache_forgets_on_failed_write() {
    for (name, answer) in [
        ("refused", None),
        ("400", Some(Response::new(400))),
        (
            "unreadable",
            Some(Response::new(200).with_broken_body("cut")),
        ),
        ("503", Some(Response::new(503))),
    ] {
        let fake = Fake::named(name);
        fake.token().get(7).patch(8);
        match answer {
            Some(answer) => fake.answer("PATCH", answer),
            None => fake.fault("PATCH", ErrorKind::Connect, Sent::No),
        };
        fake.get(10).patch(11);
        let policy = RetryPolicy::default().with_max_attempts(1);
        let client = fake.builder().retry(policy).build().unwrap();
        client.update(&update()).unwrap();
        let _ = client.update(&update());
        assert_eq!(client.update(&update()).unwrap().requests, 2, "{name}");
        assert_eq!(fake.if_matches(), ["\"7\"", "\"8\"", "\"10\""]);
    }
}

#[test]
fn fault_permanent_and_unsent_is_final() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .fault("PATCH", ErrorKind::Config, Sent::No);
    let error = fake.client().update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!error.may_have_applied() && fake.sleeps().is_empty());
}

#[test]
fn read_transient_failure_is_retried_without_ambiguity() {
    for (name, end, kind) in unclear() {
        let fake = Fake::named(name);
        fake.token();
        for _ in 0..4 {
            match end {
                Ok(status) => fake.status("GET", status),
                Err(kind) => fake.fault("GET", kind, Sent::Maybe),
            };
        }
        let error = fake.client().update(&update()).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (0, 4));
    }
    let fake = Fake::named("cut short");
    fake.token();
    for _ in 0..3 {
        fake.answer("GET", Response::new(200).with_broken_body("cut"));
    }
    fake.get(7).patch(8);
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 5));
}

#[test]
fn jitter_seed_makes_the_same_waits_again() {
    let waits = |seed: u64| {
        let fake = Fake::new();
        fake.token().get(7);
        for _ in 0..8 {
            fake.status("PATCH", 500);
        }
        fake.status("PATCH", 412)
            .get(8)
            .status("PATCH", 429)
            .patch(9);
        let policy = RetryPolicy::default().with_max_attempts(9);
        let client = fake
            .builder()
            .retry(policy)
            .jitter_seed(seed)
            .build()
            .unwrap();
        client.update(&update()).unwrap();
        fake.sleeps()
    };
    assert_eq!(waits(1), waits(1));
    assert_eq!(waits(1).len(), 10);
    assert_ne!(waits(1), waits(2));
}

/// Reads that no update makes follow the same rules.
#[test]
fn snapshot_and_identity_reads_are_retried_as_those_of_an_update() {
    type Read = fn(&Client) -> Result<u32, Error>;
    let snapshot: Read = |client| {
        let read = client.read(&Target::conversation("c-1"))?;
        Ok(read.attributes.len() as u32)
    };
    let identity: Read = |client| client.verify_credentials().map(|_| 0);
    let good = json!({ "version": 7, "attributes": {} });
    let html = || Response::new(200).with_body("<html>");
    let cut = || Response::new(200).with_broken_body("cut");
    for read in [snapshot, identity] {
        for (name, answer, kind, transient) in [
            ("cut", cut(), ErrorKind::Transport, true),
            ("not JSON", html(), ErrorKind::Protocol, false),
            ("empty", Response::new(200), ErrorKind::Protocol, false),
            ("503", Response::new(503), ErrorKind::Server, true),
        ] {
            let fake = Fake::named(name);
            fake.token();
            for _ in 0..3 {
                fake.answer("GET", answer.clone());
            }
            fake.get_body(good.clone());
            assert_eq!(read(&fake.client()).unwrap(), 0, "{name}");
            fake.slept(&[(ms(0), ms(500)), (ms(0), secs(1)), (ms(0), secs(2))]);

            let fake = Fake::named(name);
            fake.token();
            for _ in 0..4 {
                fake.answer("GET", answer.clone());
            }
            let error = read(&fake.client()).unwrap_err();
            assert_eq!(error.kind(), kind, "{name}");
            assert_eq!(error.is_transient(), transient, "{name}");
            assert_eq!((error.attempts(), error.requests()), (0, 4));
        }
        // Of a wrong shape it stays.
        let fake = Fake::named("a list");
        fake.token().get_body(json!([1]));
        let error = read(&fake.client()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert_eq!(error.requests(), 1);
        // Told to slow down, by either status, more often than there are attempts.
        for status in [429, 503] {
            let fake = Fake::named(status.to_string());
            fake.token();
            for _ in 0..9 {
                fake.answer("GET", Response::new(status).with_header("Retry-After", "4"));
            }
            fake.get_body(good.clone());
            let client = fake.builder().retry(without_jitter()).build().unwrap();
            read(&client).unwrap();
            assert_eq!(fake.sleeps(), [secs(4); 9]);
        }
    }
}
