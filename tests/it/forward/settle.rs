//! Writes whose process died before their outcome was recorded.

use genesys_attributes::audit::AuditFile;
use genesys_attributes::{Cancel, Client, ManualClock, Update};
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
    std::fs::write(folder.log(), text).unwrap();
}

fn logging(folder: &Folder, memory: &Memory) -> Client {
    let log = AuditFile::open(folder.log()).unwrap();
    let builder = memory.builder().audit(log).audit_values(true);
    builder.secure_values_in_audit(true).build().unwrap()
}

fn settled(folder: &Folder, memory: &Memory, taker: &Taker) -> ForwardReport {
    let client = memory.builder().build().unwrap();
    let mut forwarder = forwarder(&folder.log(), taker).settle(client);
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
    crashed(
        &folder,
        &memory,
        &[Update::conversation("c-1").set("tier", "gold")],
    );
    let writer = AuditFile::open(folder.log()).unwrap();
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
    folder.append("audit.jsonl", intent(1));
    let writer = AuditFile::open(folder.log()).unwrap();
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
