//! What must hold of every call when it ends, and of a schedule when nothing is left to happen.

use genesys_attributes::{Error, ErrorKind, Outcome, Receipt, Status};

use crate::platform::{Store, count_in};
use crate::schedule::{Call, Schedule, Work};

/// What must hold of a call when it ends.
pub fn check_call(schedule: &Schedule, call: &Call, result: &Result<Receipt, Error>) {
    let check = |holds: bool, what: &str| {
        if !holds {
            schedule.wrong(|| what.to_owned());
        }
    };
    let audited = schedule.knobs.audit.is_some();
    let outcome = call.outcomes.first().copied();
    check(call.outcomes.len() <= 1, "two outcomes of one call");
    if !audited {
        check(call.outcomes.is_empty(), "an outcome without a sink");
    }
    match result {
        Ok(receipt) => {
            check(receipt.attempts == call.attempts, "attempts in the receipt");
            check(receipt.requests == call.requests, "requests in the receipt");
            let latency = Schedule::latency(call);
            check(receipt.latency == latency, "latency in the receipt");
            let tells = receipt.outcome != Outcome::Unchanged;
            check(call.events == u32::from(tells), "one event for each Ok");
            let panics = u32::from(call.hook_panicked);
            check(receipt.hook_panics == panics, "panics in the receipt");
            check(
                receipt.audit_failed == call.audit_failed,
                "audit failure in the receipt",
            );
            let expected =
                (audited && (tells || call.intents_tried > 0)).then(|| receipt.outcome.into());
            check(outcome == expected, "the recorded outcome of an Ok");
            succeeded(schedule, call, receipt);
        }
        Err(error) => {
            check(call.events == 0, "an event for an Err");
            check(error.attempts() == call.attempts, "attempts in the error");
            check(error.requests() == call.requests, "requests in the error");
            let expected = match call.intents_tried {
                0 => Status::Refused,
                _ => Status::Failed,
            };
            let expected = (audited && !call.in_sink).then_some(expected);
            check(outcome == expected, "the recorded outcome of an Err");
            let may = call.doubt || call.verify || call.panicked;
            check(may || !error.may_have_applied(), "a doubt without a cause");
            check(
                error.may_have_applied() || call.applied.is_empty(),
                "not applied, it says, and it was",
            );
            let refused = error.kind() == ErrorKind::InvalidInput;
            check(!call.reentrant || refused, "a call from inside");
        }
    }
}

fn succeeded(schedule: &Schedule, call: &Call, receipt: &Receipt) {
    let check = |holds: bool, what: &str| {
        if !holds {
            schedule.wrong(|| what.to_owned());
        }
    };
    match receipt.outcome {
        Outcome::Applied => {
            let platform = schedule.platform.borrow();
            let written = call.applied.iter().any(|at| {
                let values = &platform.log[*at].values;
                call.wanted
                    .iter()
                    .all(|(key, value)| values.get(key) == Some(value))
                    && call.removed.iter().all(|key| !values.contains_key(key))
            });
            check(written, "applied, it says, and it is not in the log");
            let told = receipt.version.is_none() || receipt.version == call.told;
            check(told, "a version that was not told");
        }
        Outcome::AlreadyApplied => {
            check(call.doubt, "already applied without a doubt");
            let computed = call.work != Work::Set;
            check(
                !computed || call.work == Work::Unique,
                "a computed value in place passes for the update's own",
            );
            let values = call.read.as_ref().map(|seen| &seen.values);
            let in_place = values.is_some_and(|values| {
                call.wanted
                    .iter()
                    .all(|(key, value)| values.get(key) == Some(value))
                    && call.removed.iter().all(|key| !values.contains_key(key))
            });
            check(in_place, "already applied, and it is not in place");
            check(
                call.work != Work::Unique || !call.applied.is_empty(),
                "already applied, and somebody else's",
            );
        }
        _ => {}
    }
}

/// What must hold when nothing is left to happen.
pub fn check(schedule: &Schedule) {
    let calls = schedule.calls.borrow();
    for (number, call) in calls.iter().enumerate() {
        let applied = !call.applied.is_empty();
        let excused = match &call.result {
            Some(Ok(receipt)) => receipt.outcome != Outcome::Unchanged,
            Some(Err(error)) => error.may_have_applied(),
            None => false,
        };
        if applied && !excused {
            schedule.wrong(|| format!("call {number} was not applied, it said, and it was later"));
        }
    }
    counters(schedule, &calls);
    for client in 0..schedule.truths.borrow().len() {
        events(schedule, &calls, client);
        // A snapshot takes as long as several requests.
        if schedule.random.percent(15) {
            metrics(schedule, &calls, client);
        }
    }
}

/// No confirmed count is lost.
fn counters(schedule: &Schedule, calls: &[Call]) {
    let mut platform = schedule.platform.borrow_mut();
    for (at, conversation) in platform.conversations.iter_mut().enumerate() {
        let own = conversation.own.values.clone();
        let confirmed = calls.iter().filter(|call| {
            let here = call.conversation == at && call.store == Store::Own;
            here && call.work == Work::Count && matches!(&call.result, Some(Ok(_)))
        });
        let (confirmed, counted) = (confirmed.count() as u64, count_in(&own));
        if counted < confirmed {
            schedule.wrong(|| format!("{confirmed} counts are confirmed, and it is {counted}"));
        }
    }
}

/// One event for each update that is told, in the order of its conversation's writes.
fn events(schedule: &Schedule, calls: &[Call], client: usize) {
    let subscriptions = schedule.subscriptions.lock().unwrap();
    let delivered = std::iter::from_fn(|| subscriptions[client].try_recv());
    let delivered: Vec<u64> = delivered.map(|delivery| delivery.sequence).collect();
    let told = calls.iter().filter(|call| call.client == client);
    let mut told: Vec<&Call> = told.filter(|call| call.events > 0).collect();
    told.sort_by_key(|call| call.sequence);
    let mut delivered_sorted = delivered.clone();
    delivered_sorted.sort_unstable();
    let sequences: Vec<u64> = told.iter().filter_map(|call| call.sequence).collect();
    if delivered_sorted != sequences {
        schedule.wrong(|| format!("delivered {delivered:?}, and hooks got {sequences:?}"));
    }
    // In the order of delivery.
    told.sort_by_key(|call| delivered.iter().position(|n| Some(*n) == call.sequence));
    for (i, later) in told.iter().enumerate() {
        for earlier in &told[..i] {
            let first = |call: &Call| match &call.result {
                Some(Ok(receipt)) if receipt.outcome == Outcome::Applied => {
                    call.applied.first().copied()
                }
                _ => None,
            };
            if earlier.conversation == later.conversation
                && let (Some(before), Some(after)) = (first(earlier), first(later))
                && before >= after
            {
                schedule.wrong(|| "events in another order than their writes".into());
            }
        }
    }
}

/// The client counted what happened.
fn metrics(schedule: &Schedule, calls: &[Call], client: usize) {
    let counted = schedule.metrics(client);
    let truths = schedule.truths.borrow();
    let truth = &truths[client];
    let mine = || calls.iter().filter(|call| call.client == client);
    let ended = |outcome: Outcome| {
        let all = mine()
            .filter(|call| matches!(&call.result, Some(Ok(receipt)) if receipt.outcome == outcome));
        all.count() as u64
    };
    let failed = mine()
        .filter(|call| matches!(call.result, Some(Err(_))))
        .count() as u64;
    let told = ErrorKind::ALL
        .iter()
        .map(|kind| counted.failed(*kind))
        .sum();
    let rows = [
        ("calls", counted.calls, truth.calls),
        ("applied", counted.applied, ended(Outcome::Applied)),
        (
            "already applied",
            counted.already_applied,
            ended(Outcome::AlreadyApplied),
        ),
        ("unchanged", counted.unchanged, ended(Outcome::Unchanged)),
        ("failed", told, failed),
        ("requests", counted.requests, truth.requests),
        ("conflicts", counted.conflicts, truth.conflicts),
        ("rate limited", counted.rate_limited, truth.rate_limited),
        ("server errors", counted.server_errors, truth.server_errors),
        (
            "transport errors",
            counted.transport_errors,
            truth.transport_errors,
        ),
        ("logins", counted.token_refreshes, truth.logins),
        ("hook panics", counted.hook_panics, truth.hook_panics),
        (
            "audit failures",
            counted.audit_failures,
            truth.audit_failures,
        ),
    ];
    for (name, counted, happened) in rows {
        if counted != happened {
            schedule.wrong(|| format!("{name}: counted {counted}, and there were {happened}"));
        }
    }
}
