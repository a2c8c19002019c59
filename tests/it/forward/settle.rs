//! Writes whose process died before their outcome was recorded.

use genesys_attributes::audit::AuditFile;
use std::sync::atomic::{AtomicUsize, Ordering};

use genesys_attributes::clock::ManualClock;
use genesys_attributes::forward::Forwarder;
use genesys_attributes::http::{Request, Response, Transport, TransportError};
use genesys_attributes::{Cancel, Client, Update};
use serde_json::Value;

use super::*;
use crate::memory::Memory;

/// Runs updates with the log, and takes the last one's outcome away: its process died there.
fn crashed(folder: &Folder, memory: &Memory, updates: &[Update]) {
    let client = logging(folder, memory);
    for update in updates {
        let _ = client.update(update).unwrap();
    }
    drop(client);
    let text = folder.read("audit.jsonl");
    let kept = text.lines().count() - 1;
    let text: String = text
        .lines()
        .take(kept)
        .map(|line| format!("{line}\n"))
        .collect();
    // Another client that begins at the same time has the same ids.
    let text = text.replace("\"id\":\"", "\"id\":\"lost-");
    std::fs::write(folder.log(), text).unwrap();
}

fn logging(folder: &Folder, memory: &Memory) -> Client {
    let log = AuditFile::open(folder.log()).unwrap();
    let builder = memory.builder().audit(log).audit_values(true);
    builder.secure_values_in_audit(true).build().unwrap()
}

fn settled(folder: &Folder, memory: &Memory, taker: &Taker) -> ForwardReport {
    let client = memory.builder().build().unwrap();
    let mut forwarder = forwarder(&folder.log(), taker)
        .secure_values(true)
        .settle(client);
    forwarder.run(&Cancel::new()).unwrap()
}

fn last_record(folder: &Folder) -> Value {
    serde_json::from_str(folder.read("audit.jsonl").lines().last().unwrap()).unwrap()
}

#[test]
fn settle_values_in_place_are_forwarded_for_every_target() {
    for update in [
        Update::conversation("c-1").set("tier", "gold"),
        Update::participant("c-1", "customer").set("tier", "gold"),
        Update::secure("c-1").set("tier", "gold"),
        Update::custom("c-1", "r-1")
            .schema("s-1")
            .set("tier", "gold"),
    ] {
        let (folder, taker, memory) = (Folder::new("in"), Taker::default(), Memory::new());
        memory.world(|world| drop(world.add("c-1").clone()));
        crashed(&folder, &memory, &[update]);
        let report = settled(&folder, &memory, &taker);
        assert_eq!(
            (report.settled, report.delivered, report.pending),
            (1, 1, 0)
        );
        let body = &taker.bodies()[0];
        assert_eq!(body["eventType"], "CONVERSATION_ATTRIBUTES_UPDATED");
        assert_eq!(body["payload"]["settled"], true);
        assert_eq!(
            body["payload"]["updatedAttributes"],
            json!({ "tier": "gold" })
        );
        let outcome = last_record(&folder);
        assert_eq!(outcome["status"], "alreadyApplied");
        assert_eq!(
            outcome["id"].as_str(),
            taker.ids().first().map(String::as_str)
        );
        let again = settled(&folder, &memory, &taker);
        assert_eq!((again.settled, again.delivered), (0, 0));
    }
}

#[test]
fn settle_values_not_in_place_are_failed_and_not_forwarded() {
    let (folder, taker, memory) = (Folder::new("out"), Taker::default(), Memory::new());
    crashed(
        &folder,
        &memory,
        &[Update::conversation("c-1").set("tier", "gold")],
    );
    // Somebody else wrote since.
    let other = memory.builder().build().unwrap();
    let _ = other
        .update(&Update::conversation("c-1").set("tier", "none"))
        .unwrap();
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.settled, report.delivered, report.pending),
        (1, 0, 0)
    );
    let outcome = last_record(&folder);
    assert_eq!(outcome["status"], "failed");
    assert_eq!(outcome["mayHaveApplied"], true);
    assert_eq!(outcome["settled"], true);
}

/// The values were in place before, and the version says that nothing was written since.
#[test]
fn settle_version_of_the_intent_unchanged_is_failed_whatever_the_values() {
    let (folder, taker, memory) = (Folder::new("same"), Taker::default(), Memory::new());
    let gold = Update::conversation("c-1").set("tier", "gold");
    let client = memory.builder().build().unwrap();
    let receipt = client.update(&gold).unwrap();
    let mut intent = record(1, "intent", "pending");
    intent["conversationId"] = "c-1".into();
    intent["attributes"] = json!({ "tier": "gold" });
    intent["previousVersion"] = receipt.version.clone().into();
    folder.append("audit.jsonl", line(&intent));
    let report = settled(&folder, &memory, &taker);
    assert_eq!((report.settled, report.delivered), (1, 0));
    assert_eq!(last_record(&folder)["mayHaveApplied"], Value::Null);
}

/// Two writes on top of one version: the lock let only the second one through, whose values are
/// the same.
#[test]
fn settle_write_that_another_one_rules_out_is_failed() {
    let (folder, taker, memory) = (Folder::new("ruled"), Taker::default(), Memory::new());
    let client = memory.builder().build().unwrap();
    let receipt = client
        .update(&Update::conversation("c-1").set("n", 1))
        .unwrap();
    let mut intent = record(1, "intent", "pending");
    intent["conversationId"] = "c-1".into();
    intent["previousVersion"] = receipt.previous_version.clone().into();
    let mut outcome = record(2, "outcome", "applied");
    outcome["conversationId"] = "c-1".into();
    outcome["attributes"] = json!({ "n": 1 });
    outcome["previousVersion"] = receipt.previous_version.clone().into();
    folder.append("audit.jsonl", line(&intent));
    let waiting = run(&folder.log(), &taker).unwrap();
    assert_eq!(waiting.orphans.len(), 1);
    folder.append("audit.jsonl", line(&outcome));
    // What rules it out is remembered by the cursor.
    let _ = run(&folder.log(), &taker).unwrap();
    let report = settled(&folder, &memory, &taker);
    assert_eq!((report.settled, report.delivered), (1, 0));
    assert_eq!(taker.ids(), ids([2]));
}

#[test]
fn settle_what_cannot_be_known_is_listed_with_the_reason() {
    let (folder, taker, memory) = (Folder::new("unknown"), Taker::default(), Memory::new());
    memory.world(|world| world.auto_create = false);
    let mut bare = record(1, "intent", "pending");
    bare.as_object_mut().unwrap().remove("attributes");
    bare["target"] = "secure".into();
    folder.append("audit.jsonl", line(&bare) + &intent(2));
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.settled, report.delivered, report.pending),
        (0, 0, 2)
    );
    let why: Vec<&str> = report
        .orphans
        .iter()
        .map(|orphan| orphan.why.as_str())
        .collect();
    assert!(why[0].contains("no values"), "{why:?}");
    assert!(why[1].contains("c-2"), "{why:?}");
}

#[test]
fn settle_leaves_writes_alone_while_a_writer_lives() {
    let (folder, taker, memory) = (Folder::new("alive"), Taker::default(), Memory::new());
    let writer = AuditFile::open(folder.log()).unwrap();
    crashed(
        &folder,
        &memory,
        &[Update::conversation("c-1").set("tier", "gold")],
    );
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.settled, report.pending, report.orphans.len()),
        (0, 1, 0)
    );
    drop(writer);
    assert_eq!(settled(&folder, &memory, &taker).settled, 1);
}

/// The writer has its lock on a file that was rotated since, where its intent is.
#[test]
#[cfg(unix)]
fn settle_sees_a_writer_of_a_rotated_file() {
    let (folder, taker, memory) = (Folder::new("moved"), Taker::default(), Memory::new());
    let writer = AuditFile::open(folder.log()).unwrap();
    folder.append("audit.jsonl", intent(1));
    std::fs::rename(folder.log(), folder.path("audit.jsonl.1")).unwrap();
    folder.append("audit.jsonl", applied(2));
    // The forwarder began with the old file.
    let mut began = forwarder(&folder.path("audit.jsonl.1"), &Taker::default())
        .cursor(folder.path("audit.jsonl.cursor"));
    let _ = began.run(&Cancel::new()).unwrap();
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.delivered, report.settled, report.pending),
        (1, 0, 1)
    );
    drop(writer);
    assert_eq!(settled(&folder, &memory, &taker).settled, 1);
}

/// A request may outlive its sender: a young intent is waited for, and then read.
#[test]
fn settle_waits_until_an_intent_is_old_enough() {
    let (folder, taker, memory) = (Folder::new("young"), Taker::default(), Memory::new());
    crashed(
        &folder,
        &memory,
        &[Update::conversation("c-1").set("tier", "gold")],
    );
    let clock = ManualClock::new();
    let client = memory.builder().build().unwrap();
    let mut forwarder = forwarder(&folder.log(), &taker)
        .clock(clock.clone())
        .settle(client);
    assert_eq!(forwarder.run(&Cancel::new()).unwrap().delivered, 1);
    let waited: std::time::Duration = clock.sleeps().iter().sum();
    assert_eq!(waited, std::time::Duration::from_secs(3));
}

/// A clock that was ahead when the intent was written: the wait is that of any other intent.
#[test]
fn settle_of_an_intent_dated_in_the_future_waits_no_longer() {
    for date in ["2126-01-01T00:00:00.000Z", "2026-01-01T00:10:00.000Z"] {
        let (folder, taker, memory) = (Folder::new("future"), Taker::default(), Memory::new());
        let mut early = record(1, "intent", "pending");
        early["timestamp"] = date.into();
        folder.append("audit.jsonl", line(&early));
        let clock = ManualClock::new();
        let client = memory.builder().build().unwrap();
        let mut settling = forwarder(&folder.log(), &taker)
            .clock(clock.clone())
            .settle(client);
        assert_eq!(settling.run(&Cancel::new()).unwrap().settled, 1);
        let waited: std::time::Duration = clock.sleeps().iter().sum();
        assert_eq!(waited, std::time::Duration::from_secs(3));
    }
}

fn gold() -> Update {
    Update::conversation("c-1").set("tier", "gold")
}

/// A process that begins to write alone says that the others have died: what they left is settled
/// although a process writes now, and may come after later events.
#[test]
fn settle_after_a_new_writer_began_is_one_event_at_the_end() {
    let (folder, taker, memory) = (Folder::new("began"), Taker::default(), Memory::new());
    crashed(&folder, &memory, &[gold()]);
    let writer = logging(&folder, &memory);
    let _ = writer
        .update(&Update::conversation("c-1").set("n", 1))
        .unwrap();
    let listed = run(&folder.log(), &Taker::default()).unwrap();
    assert_eq!((listed.orphans.len(), listed.delivered), (1, 1));
    std::fs::remove_file(folder.path("audit.jsonl.cursor")).unwrap();
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.settled, report.delivered, report.pending),
        (1, 2, 0)
    );
    let values: Vec<Value> = taker
        .bodies()
        .iter()
        .map(|body| body["payload"]["updatedAttributes"].clone())
        .collect();
    assert_eq!(values, [json!({ "n": 1 }), json!({ "tier": "gold" })]);
    // It has no version: that of the read may be another write's.
    assert_eq!(taker.bodies()[1]["payload"]["version"], Value::Null);
    // Its outcome in the log is not another event.
    assert_eq!(settled(&folder, &memory, &taker).delivered, 0);
    assert_eq!(taker.ids().len(), 2);
}

/// A forwarder that died between the outcome and its delivery finds the outcome.
#[test]
fn settle_interrupted_before_the_delivery_delivers_the_outcome_once() {
    let (folder, taker, memory) = (Folder::new("cut"), Taker::default(), Memory::new());
    crashed(&folder, &memory, &[gold()]);
    let writer = logging(&folder, &memory);
    let _ = writer
        .update(&Update::conversation("c-1").set("n", 1))
        .unwrap();
    taker.script([Act::Take, Act::DieBefore]);
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        settled(&folder, &memory, &taker)
    }));
    assert!(killed.is_err());
    let report = settled(&folder, &memory, &taker);
    assert_eq!((report.settled, report.delivered), (0, 1));
    assert_eq!(taker.bodies()[1]["payload"]["settled"], true);
    assert_eq!(taker.ids().len(), 2);
}

/// The same line ran again meanwhile, on the same version: the values are its own.
#[test]
fn settle_values_that_a_later_write_put_in_place_are_not_the_orphan_s() {
    let (folder, taker, memory) = (Folder::new("again"), Taker::default(), Memory::new());
    let client = memory.builder().build().unwrap();
    let before = client
        .update(&Update::conversation("c-1").set("tier", "none"))
        .unwrap();
    let mut lost = record(1, "intent", "pending");
    lost["conversationId"] = "c-1".into();
    lost["attributes"] = json!({ "tier": "gold" });
    lost["previousVersion"] = before.version.clone().into();
    folder.append("audit.jsonl", line(&lost));
    let writer = logging(&folder, &memory);
    let _ = writer.update(&gold()).unwrap();
    let report = settled(&folder, &memory, &taker);
    assert_eq!((report.settled, report.delivered), (1, 1));
    assert_eq!(taker.bodies()[0]["payload"].get("settled"), None);
    assert_eq!(last_record(&folder)["status"], "failed");
}

/// Two writes of the same values on top of one version: one of them is in place.
#[test]
fn settle_two_of_the_same_write_is_one_event() {
    let (folder, taker, memory) = (Folder::new("twins"), Taker::default(), Memory::new());
    crashed(&folder, &memory, &[gold()]);
    let text = folder.read("audit.jsonl");
    let mut twin: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    twin["id"] = "twin".into();
    folder.append("audit.jsonl", line(&twin));
    let report = settled(&folder, &memory, &taker);
    assert_eq!(
        (report.settled, report.delivered, report.pending),
        (2, 1, 0)
    );
    // One that was found in place rules nothing out: it may be the other one's.
    let (folder, taker) = (Folder::new("found"), Taker::default());
    let mut found = twin.clone();
    found["id"] = "found".into();
    found["phase"] = "outcome".into();
    found["status"] = "alreadyApplied".into();
    folder.append("audit.jsonl", line(&twin) + &line(&found));
    let report = settled(&folder, &memory, &taker);
    assert_eq!((report.settled, report.delivered), (1, 2));
}

/// What is written does not wait for targets that cannot be read.
#[test]
fn settle_of_what_is_out_of_reach_holds_nothing_up() {
    #[derive(Clone)]
    struct Counting(Arc<AtomicUsize>);
    impl Transport for Counting {
        fn send(&self, request: &Request) -> Result<Response, TransportError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            match request.url().ends_with("/oauth/token") {
                true => Ok(Response::new(200)
                    .with_body(r#"{"access_token":"t","token_type":"bearer","expires_in":86400}"#)),
                false => Ok(Response::new(503)),
            }
        }
    }
    struct Noting(Counting, Arc<AtomicUsize>, Cancel);
    impl Sink for Noting {
        fn hand_over(&mut self, _: &Envelope<'_>) -> Result<(), Undelivered> {
            self.1
                .store(self.0.0.load(Ordering::SeqCst), Ordering::SeqCst);
            self.2.cancel();
            Ok(())
        }
    }
    let folder = Folder::new("reach");
    let orphans: String = (1..=20).map(intent).collect();
    folder.append("audit.jsonl", orphans);
    let _writer = AuditFile::open(folder.log()).unwrap();
    folder.append("audit.jsonl", applied(30));
    let (requests, cancel) = (Counting(Arc::default()), Cancel::new());
    let client = Memory::new()
        .builder()
        .transport(requests.clone())
        .build()
        .unwrap();
    let at_delivery = Arc::new(AtomicUsize::new(0));
    let sink = Noting(requests.clone(), at_delivery.clone(), cancel.clone());
    let report = Forwarder::new(folder.log(), sink)
        .clock(ManualClock::new())
        .settle(client)
        .follow(true)
        .run(&cancel)
        .unwrap();
    assert_eq!(report.delivered, 1);
    assert_eq!(at_delivery.load(Ordering::SeqCst), 0);
    // They are listed, also by a run that was cancelled.
    assert_eq!(report.orphans.len(), 20);
}
