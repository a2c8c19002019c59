//! Subscriptions: order, capacity, end.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;

#[test]
fn subscription_full_drops_newest_and_counts() {
    let server = Memory::new();
    let client = server.builder().build().unwrap();
    let small = client.subscribe(2);
    let large = client.clone().subscribe(100);
    let send = |n: u64| {
        for _ in 0..n {
            client.update(&update()).unwrap();
        }
    };
    send(5);
    assert_eq!(small.lost(), 3);
    assert_eq!(client.metrics().events_dropped, 3);
    let next = || {
        let delivery = small.try_recv().unwrap();
        (delivery.sequence, delivery.lost_before)
    };
    assert_eq!(next(), (1, 0));
    send(1);
    assert_eq!(next(), (2, 0));
    assert_eq!(next(), (6, 3));
    assert!(small.try_recv().is_none());
    send(1);
    assert_eq!(next(), (7, 0));
    assert_eq!(small.lost(), 3);

    assert_eq!(large.lost(), 0);
    let all: Vec<_> = std::iter::from_fn(|| large.try_recv())
        .map(|d| d.sequence)
        .collect();
    assert_eq!(all, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn subscription_capacity_zero_holds_one() {
    let server = Memory::new();
    let client = server.builder().build().unwrap();
    let subscription = client.subscribe(0);
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    assert_eq!(subscription.try_recv().unwrap().sequence, 1);
    assert_eq!(subscription.lost(), 1);
}

#[test]
fn subscription_dropped_is_forgotten() {
    let server = Memory::new();
    let client = server.builder().build().unwrap();
    let dropped = client.subscribe(1);
    let kept = client.subscribe(10);
    client.update(&update()).unwrap();
    drop(dropped);
    for _ in 0..3 {
        client.update(&update()).unwrap();
    }
    let sequences: Vec<_> = std::iter::from_fn(|| kept.try_recv())
        .map(|d| d.sequence)
        .collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
    // The one that it left unread; later ones are not counted as lost on it.
    assert_eq!(client.metrics().events_dropped, 1);

    // When the last one is gone too, one more event finds that out, and then none is made.
    drop(kept);
    client.update(&update()).unwrap();
    client.update(&update()).unwrap();
    let late = client.subscribe(1);
    client.update(&update()).unwrap();
    assert_eq!(late.try_recv().unwrap().sequence, 6);
}

#[test]
fn subscription_lives_from_creation_to_last_client() {
    let server = Memory::new();
    let client = server.builder().build().unwrap();
    client.update(&update()).unwrap();
    let subscription = client.subscribe(10);
    let clone = client.clone();
    client
        .update(&Update::conversation("c-2").set("k", 1))
        .unwrap();
    drop(client);
    assert_eq!(subscription.recv().unwrap().conversation_id, "c-2");
    clone
        .update(&Update::conversation("c-3").set("k", 1))
        .unwrap();
    drop(clone);
    let rest: Vec<_> = subscription
        .iter()
        .map(|d| d.conversation_id.clone())
        .collect();
    assert_eq!(rest, ["c-3"]);
    assert!(subscription.recv().is_none());
}

#[test]
fn subscription_events_come_in_write_order() {
    let server = Memory::new();
    let client = server.builder().build().unwrap();
    let subscriptions = [client.subscribe(1_000), client.subscribe(1_000)];
    let started = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (client, started) = (client.clone(), &started);
            scope.spawn(move || {
                started.wait();
                for n in 0..24 {
                    let id = format!("c-{}", n % 2);
                    let update = Update::conversation(id).set(format!("t-{thread}"), n);
                    client.update(&update).unwrap();
                }
            });
        }
    });
    for subscription in subscriptions {
        let mut last: HashMap<String, (u64, u64)> = HashMap::new();
        let mut count = 0;
        while let Some(event) = subscription.try_recv() {
            count += 1;
            let version: u64 = event.version.as_deref().unwrap().parse().unwrap();
            let before = last.entry(event.conversation_id.clone()).or_default();
            assert_eq!(version, before.0 + 1, "{}", event.conversation_id);
            assert!(event.sequence > before.1);
            *before = (version, event.sequence);
        }
        assert_eq!(count, 192);
        assert!(last.values().all(|(version, _)| *version == 96));
    }
    assert_eq!(server.world(|world| world.counters.conflicts), 0);
}

#[test]
fn subscription_ended_unread_events_are_counted() {
    let fake = Fake::new();
    fake.token().get(1).patch(2).patch(3).patch(4);
    let client = fake.client();
    let subscription = client.subscribe(8);
    for _ in 0..3 {
        client
            .update(&Update::conversation("c-1").set("k", "v"))
            .unwrap();
    }
    assert!(subscription.recv().is_some());
    drop(subscription);
    assert_eq!(client.metrics().events_dropped, 2);
}

#[test]
fn logger_that_subscribes_while_a_subscription_is_full_does_not_deadlock() {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let server = Memory::new();
        let client = server.builder().build().unwrap();
        let full = client.subscribe(1);
        client.update(&update()).unwrap();
        let made = Rc::new(RefCell::new(Vec::new()));
        let (log, in_logger) = (made.clone(), client.clone());
        crate::secrets::on_log(move |record| {
            if record.level() == log::Level::Warn {
                log.borrow_mut().push(in_logger.subscribe(8));
                // And whatever else it may ask.
                in_logger.metrics();
            }
        });
        client.update(&update()).unwrap();
        client.update(&update()).unwrap();
        let lost = full.lost();
        // The subscription that it made gets the next event.
        let made = made.borrow();
        let next = made[0].try_recv().map(|event| event.sequence);
        done.send((lost, made.len(), next)).unwrap();
    });
    let result = finished.recv_timeout(PATIENCE).expect("it deadlocks");
    assert_eq!(result, (2, 1, Some(3)));
}
