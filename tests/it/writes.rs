//! What a write does with every result that it can get: the table of the design, row by row, and the bounds around it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use genesys_attributes::{
    Attributes, Cancel, Client, EndedPolicy, Error, ErrorKind, Outcome, RateLimit, Response,
    RetryPolicy, Rule, Sent, Target, Update, ValidationLimits,
};
use serde_json::{Value, json};

use crate::fake::{AlarmClock, Fake, Server, json_response, lock, ms, says, secs};

/// The two kinds of targets that the table tells apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lock {
    Locked,
    Unlocked,
}
use Lock::{Locked, Unlocked};

impl Lock {
    fn update(self) -> Update {
        match self {
            Locked => Update::conversation("c-1").set("tier", "gold"),
            Unlocked => Update::participant("c-1", "p-1").set("tier", "gold"),
        }
    }

    /// Logs in, and reads version 7 where there is one.
    fn begin(self, fake: &Fake) {
        fake.token();
        if self == Locked {
            fake.get(7);
        }
    }

    /// As [`Lock::begin`], with a token in hand.
    fn begin_again(self, fake: &Fake) {
        if self == Locked {
            fake.get(8);
        }
    }

    fn reads(self) -> u32 {
        u32::from(self == Locked)
    }
}

fn attributes(value: Value) -> Attributes {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

fn update() -> Update {
    Locked.update()
}

/// No backoff, so that the sleeps are what the server asked for.
fn without_jitter() -> RetryPolicy {
    RetryPolicy::default().with_backoff(Duration::ZERO, Duration::ZERO)
}

/// The ends of a write that leave open whether it was applied, and the kind when all attempts end so.
fn unclear() -> Vec<(&'static str, Result<u16, ErrorKind>, ErrorKind)> {
    vec![
        ("reset", Err(ErrorKind::Transport), ErrorKind::Transport),
        ("time out", Err(ErrorKind::Timeout), ErrorKind::Timeout),
        ("not HTTP", Err(ErrorKind::Protocol), ErrorKind::Protocol),
        ("408", Ok(408), ErrorKind::Timeout),
        ("500", Ok(500), ErrorKind::Server),
        ("502", Ok(502), ErrorKind::Server),
        ("503", Ok(503), ErrorKind::Server),
        ("504", Ok(504), ErrorKind::Server),
    ]
}

fn end_unclear(fake: &Fake, end: Result<u16, ErrorKind>) {
    match end {
        Ok(status) => fake.status("PATCH", status),
        Err(kind) => fake.fault("PATCH", kind, Sent::Maybe),
    };
}

// ---------------------------------------------------------------------------------------------------------------------
// 2xx

#[test]
fn a_success_is_applied_and_never_sent_again_whatever_its_body() {
    let version = |version: Value| Response::new(200).with_body(version.to_string());
    for (name, response, told) in [
        ("readable", version(json!({ "version": 8 })), Some("8")),
        (
            "accepted",
            Response::new(202).with_body("{\"version\":\"8\"}"),
            Some("8"),
        ),
        (
            "entity tag",
            Response::new(204).with_header("ETag", "\"8\""),
            Some("\"8\""),
        ),
        ("without a version", version(json!({ "id": "c-1" })), None),
        ("null version", version(json!({ "version": null })), None),
        ("an array", version(json!([1])), None),
        ("empty", Response::new(200), None),
        ("no content", Response::new(204), None),
        ("unreadable", Response::new(200).with_body("<html>"), None),
        (
            "not UTF-8",
            Response::new(200).with_body(vec![0xff, 0xfe]),
            None,
        ),
        (
            "truncated",
            Response::new(200)
                .with_header("ETag", "\"8\"")
                .with_broken_body("cut"),
            None,
        ),
    ] {
        for kind in [Locked, Unlocked] {
            let fake = Fake::named(format!("{name}, {kind:?}"));
            kind.begin(&fake);
            fake.answer("PATCH", response.clone());
            let client = fake.client();

            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}");
            assert_eq!((receipt.attempts, receipt.requests), (1, 1 + kind.reads()));
            assert!(fake.sleeps().is_empty());
            if kind == Locked {
                assert_eq!(receipt.version.as_deref(), told, "{name}");
                assert_eq!(receipt.previous_version.as_deref(), Some("7"));
            }

            // Only a version that was told is used again; what was not told is read, never guessed.
            let warm = kind == Unlocked || told.is_some();
            if !warm {
                fake.get(30);
            }
            fake.patch(31);
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.requests, 1 + u32::from(!warm), "{name}");
            if kind == Locked {
                let tag = fake.if_matches().pop().unwrap();
                let expected = told.map_or("30", |told| told.trim_matches('"'));
                assert_eq!(tag, format!("\"{expected}\""), "{name}");
            }
        }
    }
}

#[test]
fn a_cold_update_costs_two_requests_and_a_warm_one_one() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9);
    let client = fake.client();
    for requests in [2, 1] {
        let receipt = client.update(&update()).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, requests));
    }
    assert_eq!(
        fake.lines(),
        [
            "POST /oauth/token",
            "GET /api/v2/conversations/c-1",
            "PATCH /api/v2/conversations/c-1/attributes",
            "PATCH /api/v2/conversations/c-1/attributes",
        ]
    );
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
    assert_eq!(client.metrics().requests, 3);
}

#[test]
fn clones_share_the_token_and_the_memory() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).patch(9);
    let client = fake.client();
    client.clone().update(&update()).unwrap();
    assert_eq!(client.update(&update()).unwrap().requests, 1);
    assert_eq!(client.clone().metrics().applied, 2);
}

#[test]
fn a_memory_of_none_makes_every_update_cold() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).get(8).patch(9);
    let client = fake.builder().version_cache(0).build().unwrap();
    for _ in 0..2 {
        assert_eq!(client.update(&update()).unwrap().requests, 2);
    }
}

#[test]
fn a_participant_by_id_is_written_without_a_read_and_without_a_lock() {
    let fake = Fake::new();
    fake.token().status("PATCH", 202);
    let receipt = fake.client().update(&Unlocked.update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!(receipt.item.as_deref(), Some("p-1"));
    let write = &fake.sent("PATCH")[0];
    assert_eq!(
        write.path,
        "/api/v2/conversations/c-1/participants/p-1/attributes"
    );
    assert_eq!(write.if_match(), None);
    assert_eq!(write.body, json!({ "attributes": { "tier": "gold" } }));
}

// ---------------------------------------------------------------------------------------------------------------------
// 409 and 412

#[test]
fn a_conflict_is_settled_with_the_version_that_is_read_then() {
    for status in [412, 409] {
        let fake = Fake::named(status.to_string());
        fake.token().get(7).status("PATCH", status).get(8).patch(9);
        let client = fake.client();
        let receipt = client.update(&update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        assert_eq!(receipt.previous_version.as_deref(), Some("8"));
        assert_eq!(receipt.version.as_deref(), Some("9"));
        assert_eq!(fake.methods(), "POST GET PATCH GET PATCH");
        assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
        fake.slept(&[(ms(0), ms(20))]);
        assert_eq!(client.metrics().conflicts, 1);
    }
}

#[test]
fn a_conflict_with_a_remembered_version_is_settled_the_same_way() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .status("PATCH", 412)
        .get(20)
        .patch(21);
    let client = fake.client();
    client.update(&update()).unwrap();
    assert_eq!(client.update(&update()).unwrap().requests, 3);
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\"", "\"20\""]);
}

#[test]
fn without_an_unclear_attempt_the_wanted_values_are_somebody_elses_and_are_written() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 412)
        .get_with(8, json!({ "tier": "gold" }))
        .patch(9);
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!(receipt.attempts, 2);
}

#[test]
fn without_a_lock_a_409_is_resent_and_nothing_is_read() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 409)
        .status("PATCH", 409)
        .status("PATCH", 202);
    let client = fake.client();
    let receipt = client.update(&Unlocked.update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (3, 3));
    let bodies: Vec<_> = fake.sent("PATCH").into_iter().map(|r| r.body).collect();
    assert!(
        bodies
            .iter()
            .all(|b| *b == json!({ "attributes": { "tier": "gold" } }))
    );
    fake.slept(&[(ms(0), ms(20)), (ms(0), ms(40))]);
    assert_eq!(client.metrics().conflicts, 2);
}

#[test]
fn without_a_lock_a_412_is_final() {
    let fake = Fake::new();
    fake.token().status("PATCH", 412);
    let error = fake.client().update(&Unlocked.update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.http_status(), Some(412));
    assert!(fake.sleeps().is_empty());
}

#[test]
fn conflicts_are_bounded_and_their_waits_double_up_to_a_second() {
    for (kind, most) in [
        (Locked, 0),
        (Locked, 3),
        (Locked, 8),
        (Unlocked, 0),
        (Unlocked, 8),
    ] {
        let fake = Fake::named(format!("{kind:?} {most}"));
        kind.begin(&fake);
        for conflict in 0..=most {
            fake.answer(
                "PATCH",
                Response::new(409).with_header("ININ-Correlation-Id", format!("id-{conflict}")),
            );
            if conflict < most && kind == Locked {
                fake.get(8 + conflict);
            }
        }
        let policy = RetryPolicy::default().with_max_conflicts(most);
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(error.http_status(), Some(409));
        assert_eq!(error.correlation_id(), Some(format!("id-{most}").as_str()));
        assert_eq!(error.attempts(), most + 1);
        assert_eq!(error.requests(), (most + 1) * (1 + kind.reads()));
        assert!(!error.may_have_applied() && error.is_transient());
        let bounds: Vec<_> = (0..most)
            .map(|n| (ms(0), ms(20 << n).min(secs(1))))
            .collect();
        fake.slept(&bounds);
        assert_eq!(client.metrics().conflicts, u64::from(most) + 1);
        assert_eq!(client.metrics().failed(ErrorKind::Conflict), 1);
    }
    assert_eq!(RetryPolicy::default().max_conflicts, 8);
}

#[test]
fn after_an_unclear_attempt_a_conflict_with_the_values_in_place_is_our_own() {
    for (name, end, _) in unclear() {
        for conflict in [412, 409] {
            let fake = Fake::named(format!("{name}, {conflict}"));
            fake.token().get(7);
            end_unclear(&fake, end);
            fake.status("PATCH", conflict)
                .get_with(8, json!({ "tier": "gold", "other": 1 }));
            let client = fake.client();
            let receipt = client.update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::AlreadyApplied, "{name}");
            assert_eq!((receipt.attempts, receipt.requests), (2, 4));
            assert_eq!(receipt.version.as_deref(), Some("8"));
            assert_eq!(receipt.previous_version.as_deref(), Some("7"));
            assert_eq!(fake.if_matches(), ["\"7\"", "\"7\""]);
            assert_eq!(client.metrics().already_applied, 1);

            // The version that was read is good for the next one.
            fake.patch(9);
            assert_eq!(client.update(&update()).unwrap().requests, 1);
            assert_eq!(fake.if_matches()[2], "\"8\"");
        }
    }
}

#[test]
fn after_an_unclear_attempt_a_conflict_without_the_values_is_written_again() {
    for (name, end, _) in unclear() {
        for (found, read) in [
            (
                "other value",
                json!({ "version": 8, "attributes": { "tier": "silver" } }),
            ),
            ("no value", json!({ "version": 8, "attributes": {} })),
            ("unreadable", json!({ "version": 8 })),
        ] {
            let fake = Fake::named(format!("{name}, {found}"));
            fake.token().get(7);
            end_unclear(&fake, end);
            fake.status("PATCH", 412).get_body(read).patch(9);
            let receipt = fake.client().update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}, {found}");
            assert_eq!((receipt.attempts, receipt.requests), (3, 5));
            assert_eq!(fake.if_matches(), ["\"7\"", "\"7\"", "\"8\""]);
        }
    }
}

#[test]
fn the_values_in_place_are_compared_as_json_and_all_of_them() {
    for (found, in_place) in [
        (json!({ "n": 85, "b": true, "s": "x" }), true),
        (
            json!({ "n": 85.0, "b": true, "s": "x", "more": null }),
            true,
        ),
        (json!({ "n": "85", "b": true, "s": "x" }), false),
        (json!({ "n": 85, "b": "true", "s": "x" }), false),
        (json!({ "n": 85, "b": true }), false),
    ] {
        let fake = Fake::named(found.to_string());
        fake.token()
            .get(7)
            .status("PATCH", 503)
            .status("PATCH", 412)
            .get_with(8, found);
        if !in_place {
            fake.patch(9);
        }
        let update = Update::conversation("c-1")
            .set("n", 85.0)
            .set("b", true)
            .set("s", "x");
        let outcome = fake.client().update(&update).unwrap().outcome;
        assert_eq!(outcome == Outcome::AlreadyApplied, in_place);
    }
}

#[test]
fn when_no_conflict_is_left_the_values_are_still_looked_for_after_an_unclear_attempt() {
    for (found, outcome) in [
        (json!({ "tier": "gold" }), Some(Outcome::AlreadyApplied)),
        (json!({ "tier": "silver" }), None),
    ] {
        let fake = Fake::new();
        fake.token()
            .get(7)
            .status("PATCH", 503)
            .status("PATCH", 412)
            .get_with(8, found);
        let policy = RetryPolicy::default().with_max_conflicts(0);
        let client = fake.builder().retry(policy).build().unwrap();
        match (client.update(&update()), outcome) {
            (Ok(receipt), Some(outcome)) => assert_eq!(receipt.outcome, outcome),
            (Err(error), None) => {
                assert_eq!(error.kind(), ErrorKind::Conflict);
                assert!(error.may_have_applied());
            }
            (result, _) => panic!("{result:?}"),
        }
    }
}

#[test]
fn a_conflict_that_ends_a_rewrite_still_says_that_the_first_may_be_applied() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
        .status("PATCH", 412)
        .get_with(8, json!({}))
        .status("PATCH", 403);
    let error = fake.client().update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(error.may_have_applied());
    says(&error, &["may have been applied"]);
}

#[test]
fn a_computed_update_is_not_computed_twice_after_an_unclear_attempt() {
    for (name, end, _) in unclear() {
        for (found, applied) in [(json!({ "n": 2 }), true), (json!({ "n": 5 }), false)] {
            let fake = Fake::named(format!("{name}, {found}"));
            fake.token().get_with(7, json!({ "n": 1 }));
            end_unclear(&fake, end);
            fake.status("PATCH", 412).get_with(8, found);
            let mut computed = 0;
            let result = fake
                .client()
                .update_with(&Target::conversation("c-1"), |now| {
                    computed += 1;
                    let n = now.attributes["n"].as_u64().unwrap();
                    Ok(Some(attributes(json!({ "n": n + 1 }))))
                });
            assert_eq!(computed, 1, "{name}");
            match result {
                Ok(receipt) => {
                    assert!(applied, "{name}");
                    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
                }
                Err(error) => {
                    assert!(!applied, "{name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Conflict);
                    assert!(error.may_have_applied());
                    assert_eq!((error.attempts(), error.requests()), (2, 4));
                }
            }
        }
    }
}

#[test]
fn a_given_version_is_not_replaced_after_an_unclear_attempt() {
    for (found, applied) in [(json!({ "tier": "gold" }), true), (json!({}), false)] {
        let fake = Fake::named(found.to_string());
        fake.token()
            .status("PATCH", 500)
            .status("PATCH", 412)
            .get_with(8, found);
        match fake.client().update(&update().if_version("7")) {
            Ok(receipt) => {
                assert!(applied);
                assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
            }
            Err(error) => {
                assert!(!applied);
                assert_eq!(error.kind(), ErrorKind::Conflict);
                assert!(error.may_have_applied());
            }
        }
        assert_eq!(fake.if_matches(), ["\"7\"", "\"7\""]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// No answer, or one that a retry may improve

#[test]
fn what_was_not_sent_or_not_answered_is_resent_with_the_same_version() {
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
fn when_the_attempts_run_out_the_error_says_whether_it_may_be_applied() {
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
fn one_unclear_attempt_marks_all_that_follow() {
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
            let error = fake.client().update(&kind.update()).unwrap_err();
            assert_eq!(error.http_status(), Some(last));
            assert!(error.may_have_applied());
            assert_eq!(error.attempts(), 3);
        }
    }
}

#[test]
fn a_remembered_version_is_forgotten_when_its_write_fails() {
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
fn a_fault_that_will_not_pass_and_sent_nothing_is_final() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .fault("PATCH", ErrorKind::Config, Sent::No);
    let error = fake.client().update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!error.may_have_applied() && fake.sleeps().is_empty());
}

#[test]
fn a_read_is_repeated_and_never_leaves_anything_open() {
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

// ---------------------------------------------------------------------------------------------------------------------
// 429

#[test]
fn a_429_waits_as_long_as_it_is_told() {
    let half = ms(500);
    for kind in [Locked, Unlocked] {
        for (header, least, most) in [
            (Some("0"), ms(0), half),
            (Some("7"), secs(7), secs(7) + half),
            (Some("180"), secs(180), secs(180) + half),
            (
                Some("Thu, 01 Jan 2026 00:00:10 GMT"),
                secs(10),
                secs(10) + half,
            ),
            (
                Some("Thursday, 01-Jan-26 00:00:10 GMT"),
                secs(10),
                secs(10) + half,
            ),
            (Some("Wed, 31 Dec 2025 23:59:50 GMT"), ms(0), half),
            (Some("soon"), ms(0), half),
            (Some("-7"), ms(0), half),
            (None, ms(0), half),
        ] {
            let fake = Fake::named(format!("{kind:?} {header:?}"));
            kind.begin(&fake);
            let mut response = Response::new(429);
            if let Some(header) = header {
                response = response.with_header("Retry-After", header);
            }
            fake.answer("PATCH", response).patch(8);
            let client = fake.client();
            let receipt = client.update(&kind.update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied, "{header:?}");
            assert_eq!((receipt.attempts, receipt.requests), (2, 2 + kind.reads()));
            fake.slept(&[(least, most)]);
            let writes = fake.sent("PATCH");
            assert!(writes[1].at - writes[0].at >= least);
            assert_eq!(writes[0].if_match(), writes[1].if_match());
            assert_eq!(client.metrics().rate_limited, 1);
        }
    }
}

#[test]
fn a_429_means_not_applied() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        for _ in 0..4 {
            fake.answer("PATCH", Response::new(429).with_header("Retry-After", "3"));
        }
        let client = fake.builder().retry(without_jitter()).build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.retry_after(), Some(secs(3)));
        assert!(!error.may_have_applied() && error.is_transient());
        assert_eq!(fake.sleeps(), [secs(3); 3]);
        assert_eq!(client.metrics().rate_limited, 4);
    }
}

#[test]
fn a_429_for_longer_than_allowed_fails_at_once_and_says_for_how_long() {
    for (header, most, told) in [
        ("181", 180, 181),
        ("86400", 180, 86_400),
        ("99999999999999999999999", 180, u64::MAX),
        ("Thu, 01 Jan 2026 00:05:00 GMT", 180, 300),
        ("11", 10, 11),
    ] {
        let fake = Fake::named(header);
        fake.token().get(7).answer(
            "PATCH",
            Response::new(429).with_header("Retry-After", header),
        );
        let policy = RetryPolicy::default().with_max_retry_after(secs(most));
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.retry_after(), Some(secs(told)));
        assert_eq!(error.attempts(), 1);
        assert!(fake.sleeps().is_empty());
    }
    assert_eq!(RetryPolicy::default().max_retry_after, secs(180));
}

#[test]
fn the_pause_after_a_429_holds_for_all_clones() {
    // The first update is cancelled while it waits; the pause that it was told of goes on.
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 202)
        .answer("PATCH", Response::new(429).with_header("Retry-After", "60"))
        .status("PATCH", 202);
    let cancel = Cancel::new();
    let alarm = cancel.clone();
    let client = fake
        .builder()
        .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    let error = client
        .update_cancellable(&Unlocked.update(), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!error.may_have_applied());

    let other = Update::participant("c-2", "p-2").set("k", "v");
    let receipt = client.clone().update(&other).unwrap();
    let writes = fake.sent("PATCH");
    assert!(writes[2].at - writes[1].at >= secs(60), "{writes:#?}");
    // The wait came before the first request of that update.
    assert_eq!(receipt.latency, Duration::ZERO);
}

#[test]
fn a_429_without_a_time_pauses_the_others_for_its_backoff() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 202)
        .status("PATCH", 429)
        .status("PATCH", 202)
        .status("PATCH", 202);
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let other = slot.clone();
    // While the first one waits, another thread comes with an update of another conversation.
    let alarm = AlarmClock::new(fake.clock.clone(), move || {
        let client = lock(&other).take().unwrap();
        let update = Update::participant("c-2", "p-2").set("k", "v");
        std::thread::spawn(move || client.update(&update).unwrap())
            .join()
            .unwrap();
    });
    let client = fake
        .builder()
        .retry(RetryPolicy::default().with_backoff(secs(20), secs(20)))
        .clock(alarm)
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    *lock(&slot) = Some(client.clone());
    client.update(&Unlocked.update()).unwrap();
    let sleeps = fake.sleeps();
    assert_eq!(sleeps.len(), 2);
    assert_eq!(sleeps[0], sleeps[1]);
    let writes = fake.sent("PATCH");
    assert!(writes[2].path.contains("c-2"));
    assert_eq!(writes[2].at, sleeps[0]);
}

#[test]
fn the_last_attempts_429_pauses_the_others_too() {
    let fake = Fake::new();
    fake.token()
        .answer("PATCH", Response::new(429).with_header("Retry-After", "60"))
        .status("PATCH", 202);
    let policy = without_jitter().with_max_attempts(1);
    let client = fake.builder().retry(policy).build().unwrap();
    client.update(&Unlocked.update()).unwrap_err();
    assert!(fake.sleeps().is_empty());
    client.update(&Unlocked.update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60)]);
}

#[test]
fn a_429_beyond_the_allowed_wait_pauses_nobody() {
    let fake = Fake::new();
    fake.token()
        .answer(
            "PATCH",
            Response::new(429).with_header("Retry-After", "3600"),
        )
        .status("PATCH", 202);
    let client = fake.client();
    client.update(&Unlocked.update()).unwrap_err();
    client.update(&Unlocked.update()).unwrap();
    assert!(fake.sleeps().is_empty());
}

// ---------------------------------------------------------------------------------------------------------------------
// 401 and final answers

#[test]
fn a_401_is_answered_with_a_new_token_once() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        fake.status("PATCH", 401).token().patch(8);
        let receipt = fake.client().update(&kind.update()).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2 + kind.reads()));
        let writes = fake.sent("PATCH");
        assert_eq!(writes[0].authorization(), "Bearer token-1");
        assert_eq!(writes[1].authorization(), "Bearer token-2");
        assert_eq!(writes[0].if_match(), writes[1].if_match());
        assert_eq!(writes[0].body, writes[1].body);
        assert!(fake.sleeps().is_empty());
    }
}

#[test]
fn a_second_401_is_final() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        fake.status("PATCH", 401).token().status("PATCH", 401);
        let error = fake.client().update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert_eq!(error.http_status(), Some(401));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert_eq!(error.attempts(), 2);
        assert!(fake.sleeps().is_empty());
    }
}

#[test]
fn a_401_to_the_read_is_answered_with_a_new_token_too() {
    let fake = Fake::new();
    fake.token().status("GET", 401).token().get(7).patch(8);
    let receipt = fake.client().update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 3));
    assert_eq!(fake.methods(), "POST GET POST GET PATCH");
}

#[test]
fn with_a_given_token_a_401_is_final_at_once() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin_again(&fake);
        fake.status("PATCH", 401);
        let client = fake.builder_with_token().build().unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert_eq!(error.attempts(), 1);
        assert_eq!(fake.sent("PATCH")[0].authorization(), "Bearer given");
        assert!(fake.sent("POST").is_empty());
    }
}

#[test]
fn other_answers_are_final_and_have_the_documented_kind() {
    for (statuses, expected) in [
        (&[400, 405, 415, 422, 428][..], ErrorKind::InvalidInput),
        (&[403], ErrorKind::Forbidden),
        (&[404, 410], ErrorKind::NotFound),
        (&[413], ErrorKind::PayloadTooLarge),
        (&[501, 505, 599], ErrorKind::Server),
        (&[300, 301, 302, 303, 304, 307, 308], ErrorKind::Protocol),
        (&[402, 406, 418, 451], ErrorKind::Protocol),
    ] {
        for &status in statuses {
            for kind in [Locked, Unlocked] {
                let fake = Fake::named(format!("{kind:?} {status}"));
                kind.begin(&fake);
                let body =
                    json!({ "code": "some.code", "message": "in words", "contextId": "ctx" });
                fake.answer("PATCH", json_response(status, &body));
                let error = fake.client().update(&kind.update()).unwrap_err();
                assert_eq!(error.kind(), expected, "{status}");
                assert_eq!(error.http_status(), Some(status));
                assert_eq!(error.code(), Some("some.code"));
                assert_eq!(error.correlation_id(), Some("ctx"));
                assert_eq!((error.attempts(), error.requests()), (1, 1 + kind.reads()));
                // 599 and its like are a gateway's: what is behind it may have done the work.
                assert_eq!(error.may_have_applied(), status == 599, "{status}");
                assert_eq!(error.is_transient(), status == 599, "{status}");
                assert!(fake.sleeps().is_empty());
                says(&error, &["c-1", "some.code", "in words", "ctx"]);
            }
        }
    }
}

#[test]
fn answers_to_the_read_have_the_same_kinds_and_nothing_is_written() {
    for (status, expected) in [
        (400, ErrorKind::InvalidInput),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (409, ErrorKind::Conflict),
        (412, ErrorKind::Conflict),
        (302, ErrorKind::Protocol),
        (501, ErrorKind::Server),
    ] {
        let fake = Fake::named(status.to_string());
        fake.token().status("GET", status);
        let error = fake.client().update(&update()).unwrap_err();
        assert_eq!(error.kind(), expected, "{status}");
        assert_eq!((error.attempts(), error.requests()), (0, 1));
        assert!(!error.may_have_applied());
    }
}

#[test]
fn a_403_names_the_missing_permission() {
    let fake = Fake::new();
    let body = json!({
        "code": "missing.any.permissions",
        "message": "… at least one of the following permissions assigned: [conversation:participant:attributesedit]",
    });
    fake.token().answer("PATCH", json_response(403, &body));
    let error = fake.client().update(&Unlocked.update()).unwrap_err();
    assert_eq!(
        error.missing_permissions(),
        ["conversation:participant:attributesedit"]
    );
    says(&error, &["conversation:participant:attributesedit", "role"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Bounds

#[test]
fn no_wait_ends_after_the_deadline() {
    for (header, deadline) in [
        ("10", 10),
        ("100", 60),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 30),
    ] {
        let fake = Fake::named(header);
        fake.token().get(7).answer(
            "PATCH",
            Response::new(429)
                .with_header("Retry-After", header)
                .with_header("ININ-Correlation-Id", "the-last"),
        );
        let policy = RetryPolicy::default().with_deadline(secs(deadline));
        let client = fake.builder().retry(policy).build().unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert_eq!(error.correlation_id(), Some("the-last"));
        assert!(fake.sleeps().is_empty());
    }
    assert_eq!(RetryPolicy::default().deadline, secs(300));
}

#[test]
fn the_deadline_ends_the_attempts_with_the_last_real_error() {
    let fake = Fake::new();
    fake.token().get(7);
    for _ in 0..3 {
        fake.status("PATCH", 503).takes(secs(4));
    }
    let policy = without_jitter()
        .with_deadline(secs(10))
        .with_max_attempts(9);
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_eq!(error.http_status(), Some(503));
    assert_eq!(error.attempts(), 3);
    assert_eq!(error.latency(), secs(12));
    let timeouts: Vec<_> = fake.sent("PATCH").iter().map(|r| r.timeout).collect();
    assert_eq!(timeouts, [Some(secs(10)), Some(secs(6)), Some(secs(2))]);
}

#[test]
fn a_conflict_at_the_deadline_is_handed_back() {
    let fake = Fake::new();
    fake.token().get(7).status("PATCH", 412).takes(secs(10));
    let policy = RetryPolicy::default().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(fake.sleeps().is_empty());
}

#[test]
fn nothing_is_sent_after_the_deadline() {
    let fake = Fake::new();
    fake.token().get(7).takes(secs(10));
    let policy = RetryPolicy::default().with_deadline(secs(10));
    let client = fake.builder().retry(policy).build().unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.attempts(), 0);
    assert!(!error.may_have_applied());
    says(&error, &["deadline", "10"]);
}

#[test]
fn only_a_request_for_which_too_little_is_left_gets_a_timeout_of_its_own() {
    // The phases' limits add up to 5 + 10 + 10 + 20 + 20 s.
    for (took, timeout) in [(235, None), (236, Some(64)), (299, Some(1))] {
        let fake = Fake::named(took.to_string());
        fake.token().get(7).takes(secs(took)).patch(8);
        fake.client().update(&update()).unwrap();
        let seen = fake.seen();
        assert_eq!(seen[1].timeout, None);
        assert_eq!(seen[2].timeout, timeout.map(secs));
    }
}

#[test]
fn the_wait_for_the_rate_limit_is_outside_of_the_deadline() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .takes(secs(1))
        .patch(8)
        .takes(secs(1))
        .patch(9)
        .takes(secs(2));
    let client = fake
        .builder()
        .rate_limit(RateLimit::per_minute(1))
        .retry(RetryPolicy::default().with_deadline(secs(30)))
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60)]);
    // Waits between requests are part of the latency, and the deadline has 29 s left.
    assert_eq!(receipt.latency, secs(62));
    assert_eq!(fake.sent("PATCH")[0].timeout, Some(secs(29)));

    let receipt = client.update(&update()).unwrap();
    assert_eq!(fake.sleeps(), [secs(60), secs(60)]);
    // The wait before the first request is not.
    assert_eq!(receipt.latency, secs(2));
    assert_eq!(fake.sent("PATCH")[1].timeout, Some(secs(30)));
}

#[test]
fn logins_do_not_count_for_the_rate_limit() {
    let fake = Fake::new();
    fake.token()
        .status("PATCH", 401)
        .token()
        .status("PATCH", 202);
    let client = fake
        .builder()
        .rate_limit(RateLimit::per_minute(1))
        .build()
        .unwrap();
    client.update(&Unlocked.update()).unwrap();
    let at: Vec<_> = fake.seen().iter().map(|request| request.at).collect();
    assert_eq!(at, [secs(0), secs(0), secs(0), secs(60)]);
}

#[test]
fn a_burst_uses_the_whole_rate_limit_and_a_slot_frees_a_minute_after_its_answer() {
    let fake = Fake::new();
    fake.token();
    for _ in 0..301 {
        fake.status("PATCH", 202).takes(ms(10));
    }
    let client = fake.client();
    for _ in 0..301 {
        client.update(&Unlocked.update()).unwrap();
    }
    let writes = fake.sent("PATCH");
    assert_eq!(writes[299].at, ms(2_990));
    // The first answer came at 10 ms.
    assert_eq!(writes[300].at, ms(60_010));
    assert_eq!(fake.sleeps(), [ms(57_010)]);
}

#[test]
fn the_latency_runs_from_the_first_request_to_the_end_of_the_last() {
    let fake = Fake::new();
    fake.token()
        .takes(secs(5))
        .get(7)
        .takes(ms(100))
        .answer("PATCH", Response::new(429).with_header("Retry-After", "2"))
        .takes(ms(30))
        .answer(
            "PATCH",
            json_response(200, &json!({ "version": 8 })).with_header("ININ-Correlation-Id", "abc"),
        )
        .takes(ms(200));
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.latency, ms(2_330));
    assert_eq!((receipt.attempts, receipt.requests), (2, 3));
    assert_eq!(receipt.correlation_id.as_deref(), Some("abc"));
    assert_eq!(receipt.timestamp, "2026-01-01T00:00:07.330Z");
    assert_eq!(receipt.response, Some(json!({ "version": 8 })));
    assert_eq!(receipt.conversation_id, "c-1");
    assert_eq!(client.metrics().latency.count(), 1);
    assert_eq!(client.metrics().latency.max(), ms(2_330));
}

// ---------------------------------------------------------------------------------------------------------------------
// Versions

#[test]
fn a_version_goes_back_as_it_came() {
    let read = |version: Value| json_response(200, &json!({ "version": version }));
    let tagged = |tag: &str| Response::new(200).with_body("{}").with_header("ETag", tag);
    for (name, response, sent, told) in [
        ("number", read(json!(7)), "\"7\"", "7"),
        (
            "large number",
            read(json!(u64::MAX)),
            "\"18446744073709551615\"",
            "18446744073709551615",
        ),
        ("text", read(json!("7")), "\"7\"", "7"),
        ("any text", read(json!("a-1.b:c")), "\"a-1.b:c\"", "a-1.b:c"),
        ("a tag in the body", read(json!("\"7\"")), "\"7\"", "\"7\""),
        (
            "a weak tag in the body",
            read(json!("W/\"7\"")),
            "W/\"7\"",
            "W/\"7\"",
        ),
        ("strong tag", tagged("\"abc\""), "\"abc\"", "\"abc\""),
        ("weak tag", tagged("W/\"abc\""), "W/\"abc\"", "W/\"abc\""),
        ("empty tag", tagged("\"\""), "\"\"", "\"\""),
        (
            "the body goes first",
            read(json!(7)).with_header("ETag", "\"x\""),
            "\"7\"",
            "7",
        ),
        (
            "null and a tag",
            read(json!(null)).with_header("ETag", "\"x\""),
            "\"x\"",
            "\"x\"",
        ),
        (
            "unusable text and a tag",
            read(json!("7\r\nX-Evil: 1")).with_header("ETag", "\"x\""),
            "\"x\"",
            "\"x\"",
        ),
    ] {
        let fake = Fake::named(name);
        fake.token().answer("GET", response).patch(8);
        let receipt = fake.client().update(&update()).unwrap();
        assert_eq!(fake.if_matches(), [sent], "{name}");
        assert_eq!(receipt.previous_version.as_deref(), Some(told), "{name}");
    }
}

#[test]
fn a_strong_tag_told_by_a_write_is_the_next_ones_version() {
    let fake = Fake::new();
    let tagged = Response::new(200)
        .with_body("{}")
        .with_header("ETag", "\"x-9\"");
    fake.token().get(7).answer("PATCH", tagged).patch(10);
    let client = fake.client();
    assert_eq!(
        client.update(&update()).unwrap().version.as_deref(),
        Some("\"x-9\"")
    );
    client.update(&update()).unwrap();
    assert_eq!(fake.if_matches(), ["\"7\"", "\"x-9\""]);
}

/// Frameworks tag bodies by themselves, weakly; `If-Match` never matches such a tag.
#[test]
fn a_weak_tag_told_by_a_write_is_a_version_only_where_the_read_had_one() {
    let tagged = || {
        Response::new(200)
            .with_body("{}")
            .with_header("ETag", "W/\"x-9\"")
    };
    let fake = Fake::new();
    fake.token()
        .get(7)
        .answer("PATCH", tagged())
        .get(8)
        .patch(9);
    let client = fake.client();
    assert_eq!(client.update(&update()).unwrap().version, None);
    client.update(&update()).unwrap();
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);

    let fake = Fake::new();
    fake.token()
        .answer("GET", tagged())
        .answer("PATCH", tagged())
        .patch(9);
    let client = fake.client();
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    assert_eq!(fake.if_matches(), ["W/\"x-9\"", "W/\"x-9\""]);
}

#[test]
fn without_a_version_nothing_is_written() {
    for (name, response) in [
        ("none", Response::new(200).with_body("{}")),
        ("null", Response::new(200).with_body(r#"{"version":null}"#)),
        ("empty", Response::new(200).with_body(r#"{"version":""}"#)),
        (
            "an object",
            Response::new(200).with_body(r#"{"version":{}}"#),
        ),
        (
            "a line break",
            Response::new(200).with_body(r#"{"version":"7\r\nX: 1"}"#),
        ),
        (
            "a quote inside",
            Response::new(200).with_body(r#"{"version":"7\"8"}"#),
        ),
        (
            "not a tag",
            Response::new(200).with_body("{}").with_header("ETag", "7"),
        ),
        ("no body", Response::new(200)),
        ("no JSON", Response::new(200).with_body("<html>")),
        ("no object", Response::new(200).with_body("[7]")),
    ] {
        let fake = Fake::named(name);
        fake.token()
            .answer("GET", response.with_header("ININ-Correlation-Id", "abc"));
        let error = fake.client().update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{name}");
        assert_eq!(error.http_status(), Some(200));
        assert_eq!(error.correlation_id(), Some("abc"));
        assert!(!error.may_have_applied());
        assert_eq!(error.attempts(), 0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The state guard

#[test]
fn system_keys_are_refused_when_the_conversation_is_over() {
    for (read, state) in [
        (json!({ "version": 7, "state": "terminated" }), "terminated"),
        (json!({ "version": 7, "state": "abandoned" }), "abandoned"),
        (
            json!({ "version": 7, "endTime": "2025-12-31T00:00:00Z" }),
            "ended",
        ),
        (
            json!({ "version": 7, "state": "connected", "endTime": "2025-12-31T00:00:00Z" }),
            "ended",
        ),
    ] {
        for policy in [EndedPolicy::Allow, EndedPolicy::Warn] {
            let fake = Fake::named(read.to_string());
            fake.token().get_body(read.clone());
            let client = fake.builder().ended_conversations(policy).build().unwrap();
            let error = client
                .update(
                    &update()
                        .set("system.a", 1)
                        .set("system.b", 2)
                        .set("systemic", 3),
                )
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let violations: Vec<_> = error
                .violations()
                .iter()
                .map(|v| (v.key.as_str(), v.rule))
                .collect();
            assert_eq!(
                violations,
                [("system.a", Rule::SystemKey), ("system.b", Rule::SystemKey)]
            );
            says(&error, &["system.a", "system.b", state]);
            assert!(!error.to_string().contains("systemic"));
            assert_eq!((error.attempts(), error.requests()), (0, 1));
            assert_eq!(client.metrics().validation_errors, 1);
        }
    }
}

#[test]
fn system_keys_may_be_set_while_the_conversation_lives() {
    for read in [
        json!({ "version": 7 }),
        json!({ "version": 7, "state": "connected" }),
        json!({ "version": 7, "state": null, "endTime": null }),
    ] {
        let fake = Fake::named(read.to_string());
        fake.token().get_body(read).patch(8);
        let receipt = fake.client().update(&update().set("system.a", 1)).unwrap();
        assert!(!receipt.conversation_ended);
    }
}

#[test]
fn an_update_of_a_system_key_always_reads() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .get(8)
        .patch(9)
        .get_body(json!({ "version": 9, "state": "terminated" }));
    let client = fake.client();
    client.update(&update()).unwrap();
    let receipt = client.update(&update().set("system.a", 1)).unwrap();
    assert_eq!(receipt.requests, 2);
    let error = client.update(&update().set("system.a", 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_guard_also_looks_at_what_is_read_after_a_conflict() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 412)
        .get_body(json!({ "version": 8, "state": "abandoned" }));
    let error = fake
        .client()
        .update(&update().set("system.a", 1))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.attempts(), 1);
    assert!(!error.may_have_applied());
}

#[test]
fn other_keys_of_an_ended_conversation_are_written_and_flagged_or_refused_as_told() {
    for (policy, refused) in [
        (EndedPolicy::Allow, false),
        (EndedPolicy::Warn, false),
        (EndedPolicy::Refuse, true),
    ] {
        let fake = Fake::named(format!("{policy:?}"));
        fake.token()
            .get_body(json!({ "version": 7, "state": "terminated" }));
        if !refused {
            fake.patch(8);
        }
        let client = fake.builder().ended_conversations(policy).build().unwrap();
        match client.update(&update()) {
            Ok(receipt) => assert!(!refused && receipt.conversation_ended),
            Err(error) => {
                assert!(refused);
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert_eq!(error.violations()[0].rule, Rule::Ended);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Options

#[test]
fn skip_unchanged_writes_only_what_is_not_there() {
    for (name, read, written) in [
        (
            "in place",
            json!({ "tier": "gold", "n": 85, "x": 1 }),
            false,
        ),
        ("as a float", json!({ "tier": "gold", "n": 85.0 }), false),
        ("another value", json!({ "tier": "silver", "n": 85 }), true),
        ("as text", json!({ "tier": "gold", "n": "85" }), true),
        ("a key is missing", json!({ "tier": "gold" }), true),
        ("cannot be read", Value::Null, true),
    ] {
        let fake = Fake::named(name);
        fake.token().get_with(7, read);
        if written {
            fake.patch(8);
        }
        let client = fake.client();
        let receipt = client
            .update(&update().set("n", 85).skip_unchanged())
            .unwrap();
        let outcome = if written {
            Outcome::Applied
        } else {
            Outcome::Unchanged
        };
        assert_eq!(receipt.outcome, outcome, "{name}");
        assert_eq!(receipt.attempts, u32::from(written));
        assert_eq!(receipt.requests, 1 + u32::from(written));
        if !written {
            assert_eq!(receipt.version.as_deref(), Some("7"));
        }
        assert_eq!(client.metrics().unchanged, u64::from(!written));
    }
}

#[test]
fn skip_unchanged_reads_although_the_version_is_known() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .patch(8)
        .get_with(8, json!({ "tier": "gold" }));
    let client = fake.client();
    client.update(&update()).unwrap();
    let receipt = client.update(&update().skip_unchanged()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
}

#[test]
fn a_given_version_needs_no_read_and_travels_as_an_entity_tag() {
    for (given, sent) in [
        ("7", "\"7\""),
        ("abc-1", "\"abc-1\""),
        ("\"abc\"", "\"abc\""),
        ("W/\"abc\"", "W/\"abc\""),
    ] {
        let fake = Fake::named(given);
        fake.token().patch(8);
        let receipt = fake.client().update(&update().if_version(given)).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 1));
        assert_eq!(receipt.previous_version.as_deref(), Some(given));
        assert_eq!(fake.if_matches(), [sent]);
    }
}

#[test]
fn a_given_version_goes_before_the_remembered_one() {
    let fake = Fake::new();
    fake.token().get(7).patch(8).status("PATCH", 412);
    let client = fake.client();
    client.update(&update()).unwrap();
    client.update(&update().if_version("5")).unwrap_err();
    assert_eq!(fake.if_matches(), ["\"7\"", "\"5\""]);
}

#[test]
fn a_conflict_with_a_given_version_is_final_at_once() {
    for status in [412, 409] {
        let fake = Fake::named(status.to_string());
        fake.token().status("PATCH", status);
        let client = fake.client();
        let error = client.update(&update().if_version("7")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!((error.attempts(), error.requests()), (1, 1));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert!(fake.sleeps().is_empty());
        assert_eq!(client.metrics().conflicts, 1);
    }
}

#[test]
fn where_an_update_reads_a_given_version_is_compared_before_the_write() {
    let fake = Fake::new();
    fake.token().get(9);
    let error = fake
        .client()
        .update(&update().set("system.a", 1).if_version("7"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.attempts(), 0);
    says(&error, &["9", "7"]);
}

#[test]
fn a_given_version_is_refused_where_it_cannot_lock() {
    for (update, rule) in [
        (Unlocked.update().if_version("7"), Rule::Unsupported),
        (
            Update::secure("c-1")
                .set("k", "v")
                .unlocked()
                .if_version("7"),
            Rule::Unsupported,
        ),
        (update().if_version(""), Rule::Version),
        (update().if_version("7\r\nX: 1"), Rule::Version),
        (update().if_version("a\"b"), Rule::Version),
        (update().if_version("a b"), Rule::Version),
        (update().if_version("é"), Rule::Version),
    ] {
        let fake = Fake::new();
        let error = fake.client().update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.violations()[0].rule, rule, "{error}");
        assert_eq!(error.violations()[0].key, "ifVersion");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// update_with

#[test]
fn a_computed_update_sees_what_is_there_and_writes_what_it_returns() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1, "s": "x" }))
        .patch(8)
        .get_with(8, json!({ "n": 2 }))
        .patch(9);
    let client = fake.client();
    for expected in [1, 2] {
        let receipt = client
            .update_with(&Target::conversation("c-1"), |now| {
                assert_eq!(now.conversation_id, "c-1");
                assert_eq!(
                    now.version.as_deref(),
                    Some((expected + 6).to_string().as_str())
                );
                assert_eq!(now.attributes["n"], expected);
                Ok(Some(attributes(json!({ "n": expected + 1 }))))
            })
            .unwrap();
        // It reads although the version is remembered: it needs the values.
        assert_eq!((receipt.attempts, receipt.requests), (1, 2));
        let write = fake.sent("PATCH").pop().unwrap();
        assert_eq!(write.body["attributes"], json!({ "n": expected + 1 }));
    }
}

#[test]
fn a_computed_update_of_nothing_is_unchanged() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({ "n": 1 }));
    let client = fake.client();
    let receipt = client
        .update_with(&Target::conversation("c-1"), |_| Ok(None))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_eq!((receipt.attempts, receipt.requests), (0, 1));
    assert_eq!(client.metrics().unchanged, 1);
}

#[test]
fn after_a_conflict_it_is_computed_again_from_the_new_values() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1 }))
        .status("PATCH", 412)
        .get_with(8, json!({ "n": 10 }))
        .patch(9);
    let receipt = fake
        .client()
        .update_with(&Target::conversation("c-1"), |now| {
            let n = now.attributes["n"].as_u64().unwrap();
            Ok(Some(attributes(json!({ "n": n + 1 }))))
        })
        .unwrap();
    assert_eq!(receipt.attempts, 2);
    let bodies: Vec<_> = fake
        .sent("PATCH")
        .iter()
        .map(|r| r.body["attributes"]["n"].clone())
        .collect();
    assert_eq!(bodies, [2, 11]);
    assert_eq!(fake.if_matches(), ["\"7\"", "\"8\""]);
}

#[test]
fn after_a_conflict_it_may_be_computed_to_be_unchanged() {
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({ "n": 1 }))
        .status("PATCH", 412)
        .get_with(8, json!({ "n": 10 }));
    let receipt = fake
        .client()
        .update_with(&Target::conversation("c-1"), |now| {
            Ok((now.attributes["n"] == 1).then(|| attributes(json!({ "n": 2 }))))
        })
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Unchanged);
    assert_eq!(receipt.version.as_deref(), Some("8"));
}

#[test]
fn what_a_closure_returns_is_checked_and_what_it_fails_with_is_passed_on() {
    let fake = Fake::new();
    fake.token();
    let client = fake.client();
    for (result, kind) in [
        (
            Err(Error::new(ErrorKind::NotFound, "no such customer")),
            ErrorKind::NotFound,
        ),
        (
            Ok(Some(attributes(json!({ "a": 1.5, "b": null })))),
            ErrorKind::InvalidInput,
        ),
        (Ok(Some(Attributes::new())), ErrorKind::InvalidInput),
    ] {
        fake.get_with(7, json!({}));
        let error = client
            .update_with(&Target::conversation("c-1"), |_| result.clone())
            .unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!((error.attempts(), error.requests()), (0, 1));
    }
    // The guard looks at computed keys too.
    fake.get_body(json!({ "version": 7, "state": "terminated", "attributes": {} }));
    let error = client
        .update_with(&Target::conversation("c-1"), |_| {
            Ok(Some(attributes(json!({ "system.a": 1 }))))
        })
        .unwrap_err();
    assert_eq!(error.violations()[0].rule, Rule::SystemKey);
}

#[test]
fn where_values_cannot_be_read_nothing_is_computed() {
    let fake = Fake::new();
    fake.token().get(7).get(7);
    let client = fake.client();
    let target = Target::conversation("c-1");
    let error = client
        .update_with(&target, |_| panic!("not called"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(
        client.read(&target).unwrap_err().kind(),
        ErrorKind::Protocol
    );
}

#[test]
fn a_panicking_closure_is_an_error_and_the_client_lives_on() {
    let fake = Fake::new();
    fake.token().get_with(7, json!({})).get(7).patch(8);
    let client = fake.client();
    let error = client
        .update_with(&Target::conversation("c-1"), |_| panic!("on purpose"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (0, 1));
    assert_eq!(client.metrics().failed(ErrorKind::Internal), 1);
    // The conversation's turn was given back.
    client.update(&update()).unwrap();
}

#[test]
fn a_closure_that_panics_after_a_conflict_leaves_nothing_open() {
    // Both answers were clear: not applied.
    let fake = Fake::new();
    fake.token()
        .get_with(7, json!({}))
        .status("PATCH", 412)
        .get_with(8, json!({}));
    let mut calls = 0;
    let error = fake
        .client()
        .update_with(&Target::conversation("c-1"), |_| {
            calls += 1;
            assert!(calls == 1, "on purpose");
            Ok(Some(attributes(json!({ "n": 1 }))))
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(error.attempts(), 1);
    assert!(!error.may_have_applied());
}

#[test]
fn an_update_inside_of_a_closure_is_refused() {
    for other in ["c-1", "c-2"] {
        let fake = Fake::named(other);
        fake.token().get_with(7, json!({})).patch(8);
        let client = fake.client();
        let mut inner = None;
        client
            .update_with(&Target::conversation("c-1"), |_| {
                inner = Some(client.update(&Update::conversation(other).set("k", 1)));
                Ok(Some(attributes(json!({ "n": 1 }))))
            })
            .unwrap();
        let error = inner.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        says(&error, &["update_with"]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What is sent

#[test]
fn the_write_is_the_briefs() {
    let fake = Fake::new();
    fake.token().get(7).takes(ms(1_250)).patch(8);
    let update = Update::conversation("c-1")
        .set("customer.tier", "premium")
        .set("routing.score", 85.0)
        .set("zero", -0.0)
        .set("vip", true);
    fake.client().update(&update).unwrap();
    let write = &fake.sent("PATCH")[0];
    assert_eq!(write.path, "/api/v2/conversations/c-1/attributes");
    assert_eq!(
        write.body.to_string(),
        json!({
            "attributes": { "customer.tier": "premium", "routing.score": 85, "vip": true, "zero": 0 },
            "metadata": { "source": "external-integration", "timestamp": "2026-01-01T00:00:01.250Z" },
        })
        .to_string()
    );
    assert_eq!(write.authorization(), "Bearer token-1");
    assert_eq!(write.header("Content-Type"), Some("application/json"));
    assert_eq!(write.header("Accept"), Some("application/json"));
    assert_eq!(write.if_match(), Some("\"7\""));
    let read = &fake.sent("GET")[0];
    assert_eq!((read.if_match(), read.header("Content-Type")), (None, None));
    assert_eq!(read.body, Value::Null);
}

#[test]
fn the_metadata_source_is_a_setting() {
    let fake = Fake::new();
    fake.token().get(7).patch(8);
    let client = fake
        .builder()
        .metadata_source("crm-sync \"1\"")
        .build()
        .unwrap();
    client.update(&update()).unwrap();
    let metadata = fake.sent("PATCH")[0].body["metadata"].clone();
    assert_eq!(metadata["source"], "crm-sync \"1\"");
}

#[test]
fn a_rewrite_carries_a_new_timestamp_and_a_resend_the_same() {
    let fake = Fake::new();
    fake.token()
        .get(7)
        .status("PATCH", 503)
        .takes(secs(1))
        .status("PATCH", 412)
        .takes(secs(1))
        .get_with(8, json!({}))
        .takes(secs(1))
        .patch(9);
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    client.update(&update()).unwrap();
    let stamps: Vec<_> = fake
        .sent("PATCH")
        .iter()
        .map(|r| r.body["metadata"]["timestamp"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(stamps[0], "2026-01-01T00:00:00.000Z");
    assert_eq!(stamps[1], stamps[0]);
    // The backoff of the conflict is up to 20 ms.
    assert!(stamps[2].starts_with("2026-01-01T00:00:03.0"), "{stamps:?}");
}

#[test]
fn odd_identifiers_are_percent_encoded() {
    for (id, encoded) in [
        (
            "5b2f0c1e-0000-4000-8000-000000000001",
            "5b2f0c1e-0000-4000-8000-000000000001",
        ),
        ("a.b_c~d", "a.b_c~d"),
        ("a%2Fb", "a%252Fb"),
        ("a\\b", "a%5Cb"),
        ("a&b=c;d", "a%26b%3Dc%3Bd"),
        ("a:b@c", "a%3Ab%40c"),
        ("é😀", "%C3%A9%F0%9F%98%80"),
        ("\"<>`{}|", "%22%3C%3E%60%7B%7D%7C"),
    ] {
        let fake = Fake::named(id);
        fake.token().get(7).patch(8).status("PATCH", 202);
        let client = fake.client();
        client
            .update(&Update::conversation(id).set("k", 1))
            .unwrap();
        client
            .update(&Update::participant(id, id).set("k", 1))
            .unwrap();
        assert_eq!(
            fake.lines()[1..],
            [
                format!("GET /api/v2/conversations/{encoded}"),
                format!("PATCH /api/v2/conversations/{encoded}/attributes"),
                format!("PATCH /api/v2/conversations/{encoded}/participants/{encoded}/attributes"),
            ]
        );
    }
}

#[test]
fn bad_identifiers_are_violations_and_nothing_is_sent() {
    for id in [
        "",
        " ",
        "a b",
        "a\tb",
        "a\nb",
        "a\r\nX: 1",
        "a\0b",
        "a\u{7f}b",
        "a\u{85}b",
        "a\u{a0}b",
        "a/b",
        "/",
        "a?b",
        "a#b",
        "..",
        "a..b",
        ".",
    ] {
        for (update, field) in [
            (Update::conversation(id).set("k", 1), "conversationId"),
            (Update::participant("c-1", id).set("k", 1), "participant"),
            (
                Update::participant("c-1", format!("purpose:{id}")).set("k", 1),
                "participant",
            ),
            (Update::secure(id).set("k", "v"), "conversationId"),
            (Update::custom("c-1", id).set("k", 1), "record"),
        ] {
            let fake = Fake::named(format!("{id:?}"));
            let client = fake.client();
            let error = client.update(&update).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{id:?}");
            assert_eq!(error.violations()[0].key, field);
            assert_eq!(error.violations()[0].rule, Rule::Identifier);
            assert_eq!(error.requests(), 0);
            says(&error, &[field]);
            let error = client.read(update.target()).unwrap_err();
            assert_eq!(error.violations()[0].key, field);
            let error = client
                .update_with(update.target(), |_| panic!("not called"))
                .unwrap_err();
            assert_eq!(error.violations()[0].key, field);
        }
    }
}

#[test]
fn every_violation_is_told_at_once_before_anything_is_sent() {
    let fake = Fake::new();
    let client = fake.client();
    let error = client
        .update(
            &Update::conversation("a b")
                .set("", 1)
                .set("float", 1.5)
                .set("list", json!([]))
                .set("long", "x".repeat(1_025))
                .set("negative", -1)
                .set("nothing", Value::Null)
                .set("x".repeat(129), 1)
                .remove("long")
                .if_version("a b"),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let mut rules: Vec<_> = error.violations().iter().map(|v| v.rule.name()).collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        [
            "identifier",
            "integer",
            "integerMin",
            "keyEmpty",
            "keyLength",
            "setAndRemoved",
            "type",
            "type",
            "unsupported",
            "valueLength",
            "version",
        ]
    );
    assert!(fake.seen().is_empty());
    assert_eq!(client.metrics().validation_errors, 1);
    assert_eq!(client.metrics().calls, 1);
}

#[test]
fn an_update_of_nothing_is_refused() {
    let fake = Fake::new();
    for update in [
        Update::conversation("c-1"),
        Update::participant("c-1", "p-1"),
    ] {
        let error = fake.client().update(&update).unwrap_err();
        assert_eq!(error.violations()[0].rule, Rule::NothingToDo);
    }
}

#[test]
fn a_body_beyond_the_limit_is_refused_and_nothing_is_sent() {
    for (limit, length, fits) in [
        (512_000, 511_900, true),
        (512_000, 512_000, false),
        (100, 101, false),
    ] {
        let fake = Fake::named(format!("{limit} {length}"));
        if fits {
            fake.token().status("PATCH", 202);
        }
        let client = fake
            .builder()
            .validation_limits(ValidationLimits::default().with_body_bytes(limit))
            .build()
            .unwrap();
        let update = Update::participant("c-1", "p-1").set("k", "x".repeat(length));
        match client.update(&update) {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert!(!fits, "{error}");
                assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
                assert_eq!(error.requests(), 0);
                says(&error, &[&limit.to_string()]);
            }
        }
    }
}

#[test]
fn a_body_that_only_its_frame_makes_too_large_is_not_sent_either() {
    let fake = Fake::new();
    fake.token().get(7);
    let client = fake
        .builder()
        .validation_limits(ValidationLimits::default().with_body_bytes(40))
        .build()
        .unwrap();
    let error = client.update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    assert_eq!(error.attempts(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Panics, cancelling, threads

#[test]
fn a_transport_that_panics_in_a_write_is_an_error_that_may_be_applied() {
    for kind in [Locked, Unlocked] {
        let fake = Fake::named(format!("{kind:?}"));
        kind.begin(&fake);
        fake.panics("PATCH");
        let client = fake
            .builder()
            .rate_limit(RateLimit::per_minute(3))
            .build()
            .unwrap();
        let error = client.update(&kind.update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (1, 1 + kind.reads()));
        // Turn and slot of the rate limit were given back, and nothing is remembered.
        kind.begin_again(&fake);
        fake.patch(9);
        let receipt = client.update(&kind.update()).unwrap();
        assert_eq!(receipt.requests, 1 + kind.reads());
        let waited = if kind == Locked {
            vec![secs(60)]
        } else {
            vec![]
        };
        assert_eq!(fake.sleeps(), waited);
    }
}

#[test]
fn a_transport_that_panics_before_the_write_leaves_nothing_open() {
    for method in ["POST", "GET"] {
        let fake = Fake::named(method);
        if method == "POST" {
            fake.panics("POST").token();
        } else {
            fake.token().panics("GET");
        }
        fake.get(7).patch(8);
        let client = fake.client();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!error.may_have_applied());
        client.update(&update()).unwrap();
    }
}

#[test]
fn a_cancelled_update_sends_nothing() {
    let fake = Fake::new();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = fake
        .client()
        .update_cancellable(&update(), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!error.may_have_applied());
    assert!(fake.seen().is_empty());
}

#[test]
fn cancelling_ends_a_wait_within_a_tenth_of_a_second() {
    for (name, status, may) in [("throttled", 429, false), ("failed", 503, true)] {
        let fake = Fake::named(name);
        fake.token().get(7).answer(
            "PATCH",
            Response::new(status).with_header("Retry-After", "60"),
        );
        let cancel = Cancel::new();
        let alarm = cancel.clone();
        let client = fake
            .builder()
            .retry(RetryPolicy::default().with_backoff(secs(20), secs(20)))
            .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
            .build()
            .unwrap();
        let error = client.update_cancellable(&update(), &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.may_have_applied(), may, "{name}");
        assert_eq!(error.attempts(), 1);
        assert!(fake.sleeps().iter().sum::<Duration>() <= ms(100));

        // The next one reads again.
        fake.get(8).patch(9);
        client.update(&update()).unwrap();
    }
}

#[test]
fn an_update_that_is_cancelled_while_its_write_is_answered_is_applied() {
    let fake = Fake::new();
    let cancel = Cancel::new();
    let meanwhile = cancel.clone();
    fake.token()
        .get(7)
        .patch(8)
        .meanwhile(move || meanwhile.cancel());
    let receipt = fake
        .client()
        .update_cancellable(&update(), &cancel)
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
}

#[test]
fn fifty_threads_on_one_conversation_make_no_conflict() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let versions = Mutex::new(Vec::new());
    let started = std::sync::Barrier::new(50);
    std::thread::scope(|scope| {
        for thread in 0..50 {
            let client = client.clone();
            let (versions, started) = (&versions, &started);
            scope.spawn(move || {
                started.wait();
                for n in 0..4 {
                    let update = Update::conversation("c-1").set(format!("key-{thread}"), n);
                    let receipt = client.update(&update).unwrap();
                    assert_eq!(receipt.attempts, 1);
                    lock(versions).push(receipt.version.unwrap().parse::<u64>().unwrap());
                }
            });
        }
    });
    let inside = server.inside();
    assert_eq!((inside.logins, inside.reads), (1, 1));
    assert_eq!((inside.writes, inside.conflicts), (200, 0));
    let (version, attributes) = &inside.stored["/api/v2/conversations/c-1"];
    assert_eq!((*version, attributes.len()), (200, 50));
    let mut versions = lock(&versions).clone();
    versions.sort_unstable();
    assert_eq!(versions, Vec::from_iter(1..=200));
}

#[test]
fn fifty_threads_that_count_lose_no_step() {
    let server = Server::new();
    let client = server.builder().build().unwrap();
    let conflicts = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            let client = client.clone();
            let conflicts = &conflicts;
            scope.spawn(move || {
                let receipt = client
                    .update_with(&Target::conversation("c-1"), |now| {
                        let n = now.attributes.get("n").and_then(Value::as_u64).unwrap_or(0);
                        Ok(Some(attributes(json!({ "n": n + 1 }))))
                    })
                    .unwrap();
                conflicts.fetch_add(receipt.attempts as usize - 1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(conflicts.into_inner(), 0);
    let inside = server.inside();
    assert_eq!(inside.stored["/api/v2/conversations/c-1"].1["n"], 50);
}

#[test]
fn clients_that_do_not_know_of_each_other_settle_their_conflicts() {
    let server = Server::new();
    let policy = RetryPolicy::default().with_max_conflicts(1_000);
    let clients: Arc<Vec<Client>> = Arc::new(
        (0..8)
            .map(|_| {
                server
                    .builder()
                    .retry(policy.with_deadline(secs(86_400)))
                    .build()
                    .unwrap()
            })
            .collect(),
    );
    std::thread::scope(|scope| {
        for client in clients.iter() {
            scope.spawn(move || {
                for _ in 0..10 {
                    client
                        .update_with(&Target::conversation("c-1"), |now| {
                            let n = now.attributes.get("n").and_then(Value::as_u64).unwrap_or(0);
                            Ok(Some(attributes(json!({ "n": n + 1 }))))
                        })
                        .unwrap();
                }
            });
        }
    });
    let inside = server.inside();
    assert_eq!(inside.stored["/api/v2/conversations/c-1"].1["n"], 80);
    assert_eq!(inside.writes, 80 + inside.conflicts);
}
