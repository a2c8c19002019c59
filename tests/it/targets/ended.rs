//! Conversations that have ended.

use super::*;

#[test]
fn ended_conversation_policy_table() {
    use EndedPolicy::{Allow, Refuse, Warn};
    let by_id = || Update::participant("c-1", "c-1-customer");
    for policy in [None, Some(Allow), Some(Warn), Some(Refuse)] {
        // The update, and whether it reads what tells the end when that is not refused.
        for (update, reads) in [
            (customer(), true),
            (by_id(), false),
            (by_id().skip_unchanged(), true),
            (Update::conversation("c-1"), true),
            (Update::conversation("c-1").if_version("1"), false),
            (Update::secure("c-1"), false),
            (record(), false),
        ] {
            for terminated in [false, true] {
                let sandbox = with_record();
                change_in(&sandbox, |c| match terminated {
                    true => c.state = Some("terminated".into()),
                    false => c.end_time = Some(END.into()),
                });
                let builder = builder(&sandbox);
                let client = match policy {
                    None => builder,
                    Some(policy) => builder.ended_conversations(policy),
                }
                .build()
                .unwrap();
                let result = client.update(&update.clone().set("k", "v"));
                if policy == Some(Refuse) {
                    let error = assert_error(result, ErrorKind::InvalidInput);
                    assert_eq!(violations(&error), ["conversationId: ended"]);
                    assert_eq!(error.violations()[0].rule, Rule::Ended);
                    assert_eq!((error.attempts(), error.requests()), (0, 1));
                    assert!(!error.is_transient());
                } else {
                    let receipt = result.unwrap();
                    assert_eq!(receipt.outcome, Outcome::Applied);
                    let shown = reads.then_some(true);
                    assert_eq!(receipt.conversation_ended, shown, "{policy:?} {update:?}");
                }
            }
        }
    }
}

#[test]
fn ended_conversation_is_flagged_where_read_shows_it() {
    let sandbox = with(|c| c.end_time = Some(END.into()));
    let client = client(&sandbox);
    let who = Target::participant("c-1", "customer");
    for target in [&who, &Target::conversation("c-1")] {
        assert_eq!(client.read(target).unwrap().conversation_ended, Some(true));
        let unchanged = client.update_with(target, |now| {
            assert_eq!(now.conversation_ended, Some(true));
            Ok(None)
        });
        assert_eq!(unchanged.unwrap().conversation_ended, Some(true));
        let update = Update::new(target.clone()).set("k", "v");
        client.update(&update).unwrap();
        let unchanged = client.update(&update.skip_unchanged()).unwrap();
        assert_eq!(unchanged.outcome, Outcome::Unchanged);
        assert_eq!(unchanged.conversation_ended, Some(true));
    }
    let secure = client.read(&Target::secure("c-1")).unwrap();
    assert_eq!(secure.conversation_ended, None);

    // It ends while a warm update settles what became of its write.
    let sandbox = with(|_| {});
    let client = builder(&sandbox).build().unwrap();
    let update = Update::conversation("c-1").set("k", 1);
    assert_eq!(
        client.update(&update).unwrap().conversation_ended,
        Some(false)
    );
    change_in(&sandbox, |c| c.end_time = Some(END.into()));
    script(&sandbox, [applied_then_503()]);
    let receipt = client.update(&update.set("k", 2)).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    assert_eq!(receipt.conversation_ended, Some(true), "the read shows it");
}

#[test]
fn ended_conversation_is_refused_also_when_the_client_is_warm() {
    for update in [
        customer(),
        Update::participant("c-1", "c-1-customer"),
        Update::conversation("c-1"),
        Update::secure("c-1"),
        Update::secure("c-1").unlocked(),
        record(),
    ] {
        let sandbox = with_record();
        let client = builder(&sandbox)
            .ended_conversations(EndedPolicy::Refuse)
            .build()
            .unwrap();
        let update = update.set("k", "v");
        for _ in 0..2 {
            client.update(&update).unwrap();
        }
        change_in(&sandbox, |c| c.end_time = Some(END.into()));
        let error = assert_error(client.update(&update), ErrorKind::InvalidInput);
        assert_eq!(violations(&error), ["conversationId: ended"], "{update:?}");
        assert_eq!((error.attempts(), error.requests()), (0, 1), "{update:?}");
        let error = client.preview(&update).unwrap_err();
        assert_eq!(violations(&error), ["conversationId: ended"], "{update:?}");
    }
}

/// What is in place is in place: a refusal afterwards would say that nothing was written.
#[test]
fn ended_conversation_refused_does_not_hide_applied_write() {
    let sandbox = sandbox();
    let client = builder(&sandbox)
        .ended_conversations(EndedPolicy::Refuse)
        .build()
        .unwrap();
    let before = json!({"id": "c-1", "version": "1", "attributes": {}});
    let after = json!({"id": "c-1", "version": "2", "attributes": {"k": 1}, "endTime": END});
    let reads = [before, after].map(|body| Fault::on_read(raw(200, body)));
    let [first, second] = reads;
    script(&sandbox, [first, applied_then_503(), second]);
    let receipt = client
        .update(&Update::conversation("c-1").set("k", 1))
        .unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    // A conflict shows the end, and then nothing is written.
    let sandbox = with(|c| c.end_time = Some(END.into()));
    let client = builder(&sandbox)
        .ended_conversations(EndedPolicy::Refuse)
        .build()
        .unwrap();
    let stale = json!({"id": "c-1", "version": "0", "attributes": {}});
    script(&sandbox, [Fault::on_read(raw(200, stale))]);
    let error = assert_error(
        client.update(&Update::conversation("c-1").set("k", 1)),
        ErrorKind::InvalidInput,
    );
    assert_eq!(violations(&error), ["conversationId: ended"]);
    assert!(!error.may_have_applied());
    assert_eq!(conversation_now(&sandbox).version, 1);
}
