//! `genesys_attributes::testing`: what users of the library test their own code with. It plays the same platform as the
//! sandbox of these tests; here it is about the front-end, and about what only it has.

use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::testing::{Action, CLIENT_ID, CLIENT_SECRET, Fault, Platform, Store};
use genesys_attributes::{
    Client, Credentials, Error, ErrorKind, Outcome, RateLimit, Region, RetryPolicy, Target, Update,
};
use serde_json::{Value, json};

use crate::sandbox::{self, Backend, Call, Reply, Sandbox};

fn platform() -> (Platform, Client) {
    let platform = Platform::new();
    platform.add_conversation("c-1");
    let client = platform.client_builder().build().unwrap();
    (platform, client)
}

fn update() -> Update {
    Update::conversation("c-1").set("k", "v")
}

#[test]
fn testing_platform_each_target_is_written_and_read_back() {
    let (platform, client) = platform();
    for (update, store) in [
        (update(), Store::Conversation),
        (
            Update::participant("c-1", "customer").set("k", "v"),
            Store::Participant("c-1-customer".into()),
        ),
        (Update::secure("c-1").set("k", "v"), Store::Secure),
        (
            Update::custom("c-1", "r-1").schema("s-1").set("k", "v"),
            Store::Custom("r-1".into()),
        ),
    ] {
        let receipt = client.update(&update).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        let write = platform.writes().pop().unwrap();
        assert_eq!((write.conversation.as_str(), write.store), ("c-1", store));
        assert_eq!(json!(write.sent), json!({"k": "v"}));
        assert_eq!(write.changed, ["k"]);
        let read = client.read(update.target()).unwrap();
        assert_eq!(read.attributes["k"], "v");
    }
    assert_eq!(platform.counters().writes, 4);
    assert_eq!(platform.counters().logins, 1);
}

#[test]
fn testing_platform_answers_over_http() {
    let (platform, _) = platform();
    let server = platform.serve(0).unwrap();
    let client = Client::builder(
        Region::parse("us-east-1").unwrap(),
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(server.url())
    .clock(platform.clock().clone())
    .build()
    .unwrap();
    // A lost answer ends the connection, and the next request opens another one.
    platform.lose_next_answer();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    // Longer than a buffer of the server.
    let secure = Update::secure("c-1").set("k", "v".repeat(20_000));
    assert_eq!(client.update(&secure).unwrap().outcome, Outcome::Applied);
    assert_eq!(platform.counters().writes, 2);
    let url = server.url();
    drop(server);
    let error = client.read(update().target()).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Connect | ErrorKind::Transport),
        "{error}"
    );
    // The port is free again.
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    drop(platform.serve(port).unwrap());
}

#[test]
fn testing_platform_faults_meet_the_requests_they_are_for() {
    let (platform, client) = platform();
    // A lost answer: the write took effect, and the update finds its own values in place.
    platform.lose_next_answer();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    assert_eq!(platform.writes().len(), 1);

    // A conflict with another writer.
    platform.interfere_next("theirs", 1);
    let receipt = client.update(&update().set("k", "w")).unwrap();
    assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 2));
    let now = platform.conversation("c-1").unwrap();
    assert_eq!(json!(now.attributes), json!({"k": "w", "theirs": 1}));
    assert_eq!(platform.counters().conflicts, 2);

    // Throttled: waited for on the platform's clock, and by nobody else.
    platform.throttle_next(7);
    client.update(&update().set("k", "x")).unwrap();
    assert!(platform.clock().sleeps().last() >= Some(&Duration::from_secs(7)));

    // A final answer.
    platform.fail_next(403);
    let error = client.update(&update().set("k", "y")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);

    // A 503 that says when to come back.
    let retry_after = Some("9".into());
    platform.script(Fault::on_api(Action::Unavailable { retry_after }));
    client.update(&update().set("k", "z")).unwrap();
    assert!(platform.requests().iter().any(|one| one.status == 503));
}

#[test]
fn testing_platform_faults_come_once_often_or_always_as_told() {
    let (platform, client) = platform();
    let statuses = |n: usize| -> Vec<u16> {
        platform.world(|world| world.requests.clear());
        for _ in 0..n {
            let _ = client.read(&Target::conversation("c-1"));
        }
        let seen = platform.requests();
        seen.iter()
            .filter(|one| !one.is_login())
            .map(|one| one.status)
            .collect()
    };
    platform.script(Fault::on_read(Action::status(404)));
    assert_eq!(statuses(2), [404, 200]);
    platform.script(Fault::on_read(Action::status(404)).times(2));
    assert_eq!(statuses(3), [404, 404, 200]);
    platform.script(Fault::on_read(Action::status(404)).every(2));
    assert_eq!(statuses(4), [200, 404, 200, 404]);
    platform.clear_faults();
    platform.script(Fault::on_read(Action::status(404)).always());
    platform.script(Fault::on_write(Action::status(400)));
    assert_eq!(statuses(3), [404, 404, 404]);
    platform.clear_faults();
    platform.script(Fault::on_read(Action::status(404)).path("/c-2").always());
    assert_eq!(statuses(1), [200]);
}

#[test]
fn testing_platform_down_is_unreachable_and_comes_back() {
    let platform = Platform::new();
    let once = RetryPolicy::default().with_max_attempts(1);
    let client = platform.client_builder().retry(once).build().unwrap();
    platform.go_down();
    let error = client.update(&update()).unwrap_err();
    assert!(error.is_transient() && !error.may_have_applied(), "{error}");
    platform.clear_faults();
    // The failed login is not tried again at once.
    platform.clock().advance(Duration::from_secs(60));
    platform.add_conversation("c-1");
    client.update(&update()).unwrap();
}

#[test]
fn testing_platform_latency_passes_on_its_clock() {
    let (platform, client) = platform();
    platform.set_latency(Duration::from_millis(40));
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.latency, Duration::from_millis(80));
    assert!(platform.clock().sleeps().is_empty());
}

#[test]
fn testing_platform_rate_limit_is_kept_by_the_client_s_own() {
    let (platform, _) = platform();
    platform.world(|world| world.rate_limit_per_minute = Some(10));
    for (rate, throttled) in [(10, false), (60, true)] {
        let builder = platform.client_builder();
        let client = builder
            .rate_limit(RateLimit::per_minute(rate))
            .build()
            .unwrap();
        let before = platform.counters().throttled;
        platform.clock().advance(Duration::from_secs(60));
        for n in 0..30 {
            client.update(&update().set("n", n)).unwrap();
        }
        assert_eq!(platform.counters().throttled > before, throttled, "{rate}");
    }
}

#[test]
fn testing_platform_token_expired_leads_to_a_new_login() {
    let (platform, client) = platform();
    client.update(&update()).unwrap();
    platform.world(|world| world.expire_tokens());
    client.update(&update().set("k", "w")).unwrap();
    assert_eq!(platform.counters().logins, 2);
    // A client with a token of its own, on the same transport.
    platform.world(|world| world.accept_token("given"));
    let region = Region::parse("eu-west-1").unwrap();
    let given = Client::builder(region, Credentials::access_token("given"))
        .transport(platform.clone())
        .build()
        .unwrap();
    given.update(&update().set("k", "x")).unwrap();
    assert_eq!(platform.counters().logins, 2);
}

#[test]
fn testing_platform_bulk_read_tells_participants_of_the_known_conversations() {
    let backend = Backend::new();
    backend.world(|world| {
        world.check_credentials = false;
        world.add("c-1");
        world.add("c-2").end_time = Some("2026-01-01T00:10:00.000Z".into());
        world.add("c-3");
        world.missing_in_bulk.insert("c-3".into());
    });
    let get = |query: &str| -> (u16, Value) {
        let target = format!("/api/v2/analytics/conversations/details?{query}");
        let headers = [("Authorization", "Bearer any")];
        let call = Call::new("GET", &target, headers, &[], Duration::ZERO);
        let Reply::Answer(answer) = backend.handle(&call) else {
            panic!("no answer");
        };
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    };
    let ids = |body: &Value| -> Vec<String> {
        let all = body["conversations"].as_array().unwrap().iter();
        all.map(|one| one["conversationId"].as_str().unwrap().to_owned())
            .collect()
    };
    for query in [
        "id=c-1,c-2,c-3,none",
        "id=c-1%2Cc-2",
        "id=c-1&id=c-2&id=none",
    ] {
        let (status, body) = get(query);
        assert_eq!(
            (status, ids(&body)),
            (200, vec!["c-1".into(), "c-2".into()]),
            "{query}"
        );
        let customer = &body["conversations"][0]["participants"][1];
        assert_eq!(customer["participantId"], "c-1-customer");
        assert_eq!(customer["purpose"], "customer");
        assert!(customer.get("attributes").is_none());
    }
    let many: Vec<String> = (0..101).map(|n| format!("c-{n}")).collect();
    assert_eq!(get(&format!("id={}", many.join(","))).0, 400);
    assert_eq!(get("").0, 400);
    assert_eq!(backend.world(|world| world.counters.bulk_reads), 3);
    backend.world(|world| world.max_bulk_ids = 1);
    assert_eq!(get("id=c-1").0, 200);
    assert_eq!(get("id=c-1,c-2").0, 400);
}

#[test]
fn testing_sandbox_lost_answers_over_http_are_ambiguous_outcomes() {
    for (action, applied) in [
        (sandbox::Action::ApplyThenLose, 1),
        (sandbox::Action::Lose, 0),
        (sandbox::Action::Unreachable, 0),
    ] {
        let sandbox = Sandbox::start();
        sandbox.world(|world| {
            world.add("c-1");
            world.script(sandbox::Fault::on_write(action.clone()));
        });
        let region = Region::parse("eu-west-1").unwrap();
        let credentials = Credentials::new(sandbox::CLIENT_ID, sandbox::CLIENT_SECRET);
        let client = Client::builder(region, credentials)
            .base_url(sandbox.url())
            .no_proxy()
            .clock(ManualClock::new())
            .retry(RetryPolicy::default().with_max_attempts(1))
            .build()
            .unwrap();
        let error = client.update(&update()).unwrap_err();
        assert!(error.may_have_applied(), "{action:?}: {error}");
        let writes = sandbox.world(|world| world.counters.writes);
        assert_eq!(writes, applied, "{action:?}");
    }
}

/// What is written down by one program and read back by another.
#[test]
fn testing_records_read_back_from_json() {
    use genesys_attributes::testing::{audit_record, batch_outcome, event, metrics, receipt};
    fn read_back<T>(record: &T)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let text = serde_json::to_string(record).unwrap();
        assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *record, "{text}");
    }
    for update in [
        Update::conversation("c-1").set("k", 1),
        Update::participant("c-1", "agent").set("k", "v"),
        Update::secure("c-1").set("k", "v").remove("old"),
        Update::custom("c-1", "r").set("k", serde_json::json!([1.5])),
    ] {
        read_back(&update);
        read_back(&event(&update, receipt(&update)));
        read_back(&audit_record(&update));
        read_back(&batch_outcome(1, &update, Ok(receipt(&update))));
        let error = Error::new(ErrorKind::Timeout, "late");
        read_back(&batch_outcome(2, &update, Err(error)));
    }
    let mut counted = metrics();
    counted.conflicts = 3;
    read_back(&counted);
}
