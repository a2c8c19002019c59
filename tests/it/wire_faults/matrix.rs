//! Every fault, on a read, a write and a login, on a fresh connection and on one that has been used:
//! it happens once, and what comes after it is counted, at the client and at the server.

use super::*;

/// The request that the fault meets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum On {
    Read,
    Write,
    Login,
}

/// What the fault leaves to do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leaves {
    /// The request is sent again.
    Again,
    /// A write is confirmed, whatever became of its body; anything else is sent again.
    Confirmed,
    /// The answer is final, but for a login: whatever answers like this is not the login endpoint,
    /// perhaps only for a moment.
    Final,
    /// It is the answer.
    Nothing,
}

/// A fault: its name, its steps from a request on, what it leaves to do, and whether the connection
/// can carry the next request.
struct Row {
    name: &'static str,
    steps: Vec<Act>,
    leaves: Leaves,
    reusable: bool,
}

fn rows(on: On) -> Vec<Row> {
    let row = |name, steps: &[Act], leaves, reusable| Row {
        name,
        steps: steps.to_vec(),
        leaves,
        reusable,
    };
    let mut rows = Vec::new();
    for (name, steps, _) in unanswered() {
        rows.push(row(name, &steps, Leaves::Again, false));
    }
    for (name, steps, _) in broken_bodies() {
        // A body that is too large is so every time.
        let leaves = match (on, name.starts_with("50 MiB")) {
            (On::Read, true) => Leaves::Final,
            _ => Leaves::Confirmed,
        };
        let steps = then(&[&[Act::ReadRequest], &steps]);
        rows.push(row(name, &steps, leaves, false));
    }
    let with = |status, name: &'static str, value: &str| Act::Respond {
        status,
        headers: vec![(name, value.to_owned())],
        body: "{}".to_owned(),
    };
    let throttle = Act::Respond {
        status: 429,
        headers: vec![
            ("Retry-After", "1".to_owned()),
            ("Connection", "close".to_owned()),
        ],
        body: "{}".to_owned(),
    };
    rows.push(row(
        "early 429",
        &[Act::ReadHead, throttle, Act::Close],
        Leaves::Again,
        false,
    ));
    rows.push(row(
        "429",
        &[Act::ReadRequest, with(429, "Retry-After", "1")],
        Leaves::Again,
        true,
    ));
    rows.push(row(
        "503",
        &[Act::ReadRequest, respond(503, "{}")],
        Leaves::Again,
        true,
    ));
    let redirect = [
        Act::ReadRequest,
        with(307, "Location", "http://127.0.0.1:1/"),
    ];
    rows.push(row("redirect", &redirect, Leaves::Final, true));
    let interim = raw("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    let answer = respond(200, answer_to(on));
    let interims = [
        Act::ReadRequest,
        interim.clone(),
        interim.clone(),
        interim,
        answer,
    ];
    rows.push(row(
        "three interim answers",
        &interims,
        Leaves::Nothing,
        true,
    ));
    if on == On::Write {
        rows.push(row(
            "204",
            &[Act::ReadRequest, respond(204, "")],
            Leaves::Nothing,
            true,
        ));
    }
    rows
}

fn answer_to(on: On) -> &'static str {
    match on {
        On::Read => READ,
        On::Write => WRITTEN,
        On::Login => r#"{"access_token":"token","expires_in":20}"#,
    }
}

fn login_ok() -> [Act; 2] {
    [Act::ReadRequest, respond(200, answer_to(On::Login))]
}

/// What comes before the faulty request on its connection, and after it on the next one.
fn around(on: On, reused: bool) -> (Vec<Act>, Vec<Act>) {
    let used = match (on, reused) {
        (_, false) => Vec::new(),
        (On::Read, true) => then(&[&read_ok(), &write_ok()]),
        (On::Write, true) => write_ok().to_vec(),
        (On::Login, true) => then(&[&login_ok(), &write_ok()]),
    };
    let rest = match on {
        On::Read => then(&[&read_ok(), &write_ok()]),
        On::Write => write_ok().to_vec(),
        On::Login => then(&[&login_ok(), &write_ok()]),
    };
    (used, rest)
}

fn check(on: On) {
    for reused in [false, true] {
        for row in rows(on) {
            let name = format!("{:?}, reused: {reused}: {}", on, row.name);
            // A connection that is closed before it is used again is found closed.
            if reused
                && row
                    .steps
                    .first()
                    .is_some_and(|act| matches!(act, Act::Close))
            {
                continue;
            }
            play_row(on, reused, &row, &name);
        }
    }
}

fn play_row(on: On, reused: bool, row: &Row, name: &str) {
    let leaves = match (row.leaves, on) {
        (Leaves::Confirmed, On::Write) => Leaves::Nothing,
        (Leaves::Confirmed, _) | (Leaves::Final, On::Login) => Leaves::Again,
        (leaves, _) => leaves,
    };
    let (used, rest) = around(on, reused);
    // What is left to do once the faulty request is answered.
    let after_answer = &rest[match (leaves, on) {
        (Leaves::Nothing, On::Write) | (Leaves::Final, _) => rest.len(),
        (Leaves::Nothing, _) => 2,
        (Leaves::Again | Leaves::Confirmed, _) => 0,
    }..];
    let faulty = then(&[&used, &row.steps]);
    let scripts = match (row.reusable, after_answer.is_empty()) {
        (true, _) => scripts![then(&[&faulty, after_answer, &kept()])],
        (false, true) => scripts![faulty],
        (false, false) => scripts![faulty, then(&[after_answer, &kept()])],
    };
    let connections = scripts.len();
    let clock = ManualClock::new();
    let configure = |url: &str| {
        let builder = match on {
            On::Login => builder_of(url, Credentials::new("id", "secret")),
            _ => builder(url),
        };
        let slow = stalls(&row.steps);
        let limit = if slow { SHORT } else { Duration::from_secs(20) };
        let timeouts = Timeouts::default().with_response(limit).with_body(limit);
        builder.timeouts(timeouts).clock(clock.clone())
    };
    let wire = Wire::start(scripts);
    let client = configure(&wire.url()).build().unwrap();
    // One that reads each time.
    let update = |id: &str| match on {
        On::Read => Update::conversation(id).set("k", 1),
        _ => Update::conversation(id).set("k", 1).if_version("6"),
    };
    if reused {
        client
            .update(&update("c-0"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        // The login's token is used up.
        clock.advance(Duration::from_secs(30));
    }
    let result = client.update(&update("c-1"));
    let refreshes = client.metrics().token_refreshes;
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert_eq!(report.connections, connections, "{name}");

    let again = u32::from(leaves == Leaves::Again);
    match (leaves, &result) {
        (Leaves::Final, Err(error)) => {
            assert_eq!(error.kind(), ErrorKind::Protocol, "{name}: {error}");
            assert!(!error.may_have_applied(), "{name}");
            assert_eq!(error.requests(), 1, "{name}");
        }
        (_, Ok(receipt)) => {
            assert_eq!(receipt.outcome, Outcome::Applied, "{name}");
            let writes = 1 + again * u32::from(on == On::Write);
            let reads = match on {
                On::Read => 1 + again,
                _ => 0,
            };
            assert_eq!(
                (receipt.attempts, receipt.requests),
                (writes, writes + reads),
                "{name}"
            );
        }
        (_, Err(error)) => panic!("{name}: {error}"),
    }
    if on == On::Login {
        assert_eq!(refreshes, 1 + u64::from(reused), "{name}");
    }
    // What the server saw: everything that was read whole, in order.
    let seen_whole = row
        .steps
        .iter()
        .any(|act| matches!(act, Act::ReadRequest | Act::ReadHead));
    let method = match on {
        On::Read => "GET",
        On::Write => "PATCH",
        On::Login => "POST",
    };
    let mut expected: Vec<&str> = Vec::new();
    let whole = |expected: &mut Vec<&'static str>| {
        expected.extend(match on {
            On::Read => &["GET", "PATCH"][..],
            On::Write => &["PATCH"],
            On::Login => &["POST", "PATCH"],
        });
    };
    if reused {
        whole(&mut expected);
    }
    match leaves {
        Leaves::Again => {
            expected.extend(seen_whole.then_some(method));
            whole(&mut expected);
        }
        Leaves::Final => expected.push(method),
        _ => whole(&mut expected),
    }
    assert_eq!(methods(&report.requests), expected, "{name}");
}

#[test]
fn matrix_of_faults_on_reads() {
    check(On::Read);
}

#[test]
fn matrix_of_faults_on_writes() {
    check(On::Write);
}

#[test]
fn matrix_of_faults_on_logins() {
    check(On::Login);
}
