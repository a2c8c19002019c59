//! Panics, cancelling, threads.

use super::*;

#[test]
fn transport_panic_in_write_is_error_that_may_have_applied() {
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
fn transport_panic_before_write_is_not_ambiguous() {
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
fn update_cancelled_before_start_sends_nothing() {
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
fn update_cancelled_in_wait_ends_within_tenth_of_a_second() {
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
fn update_cancelled_during_write_is_applied() {
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
fn threads_on_one_conversation_make_no_conflict() {
    let server = Memory::new();
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
    server.world(|world| {
        let counters = world.counters;
        assert_eq!((counters.logins, counters.reads), (1, 1));
        assert_eq!((counters.writes, counters.conflicts), (200, 0));
        let conversation = &world.conversations["c-1"];
        let keys = conversation.attributes.len();
        assert_eq!((conversation.version, keys), (200, 50));
    });
    let mut versions = lock(&versions).clone();
    versions.sort_unstable();
    assert_eq!(versions, Vec::from_iter(1..=200));
}

#[test]
fn threads_counting_lose_no_step() {
    let server = Memory::new();
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
    server.world(|world| assert_eq!(world.conversations["c-1"].attributes["n"], 50));
}

#[test]
fn clients_separate_settle_their_conflicts() {
    let server = Memory::new();
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
    server.world(|world| {
        assert_eq!(world.conversations["c-1"].attributes["n"], 80);
        let sent = world.requests.iter().filter(|one| one.method == "PATCH");
        let counters = world.counters;
        assert_eq!(counters.writes, 80);
        assert_eq!(sent.count() as u64, 80 + counters.conflicts);
    });
}

/// A clock that tells how often a thread of some name looked at it, which is how a test knows that
/// the thread has come as far as to wait.
#[derive(Debug, Clone)]
struct Watched {
    manual: ManualClock,
    looks: Arc<Mutex<HashMap<String, usize>>>,
}

impl Watched {
    fn new(manual: ManualClock) -> Watched {
        let looks = Arc::default();
        Watched { manual, looks }
    }

    /// Until the thread waits for its turn: it looks when it begins to, and again once it is in line.
    fn await_in_line(&self, thread: &str) {
        while lock(&self.looks).get(thread).copied().unwrap_or(0) < 2 {
            thread::yield_now();
        }
    }
}

impl Clock for Watched {
    fn now(&self) -> Instant {
        if let Some(name) = thread::current().name() {
            *lock(&self.looks).entry(name.to_owned()).or_default() += 1;
        }
        self.manual.now()
    }

    fn wall(&self) -> SystemTime {
        self.manual.wall()
    }

    fn sleep(&self, duration: Duration) {
        self.manual.sleep(duration);
    }
}

/// An update on a thread of its own, which looks up now and then since it could be cancelled.
fn spawn(client: &Client, name: &str, update: Update) -> thread::JoinHandle<Result<(), Error>> {
    let client = client.clone();
    let run = move || {
        client
            .update_cancellable(&update, &Cancel::new())
            .map(|_| ())
    };
    thread::Builder::new().name(name.into()).spawn(run).unwrap()
}

#[test]
fn turn_wait_is_part_of_deadline() {
    let fake = Fake::new();
    let gate = Gate::new();
    let hold = gate.clone();
    fake.token()
        .status("PATCH", 202)
        .meanwhile(move || hold.pass())
        .status("PATCH", 202);
    let clock = Watched::new(fake.clock.clone());
    let client = fake
        .builder()
        .retry(RetryPolicy::default().with_deadline(secs(30)))
        .clock(clock.clone())
        .build()
        .unwrap();
    let holder = spawn(&client, "holder", Unlocked.update());
    gate.await_waiting(1);
    let late = spawn(&client, "late", Unlocked.update());
    clock.await_in_line("late");
    fake.clock.advance(secs(8));
    let next = spawn(&client, "next", Unlocked.update());
    clock.await_in_line("next");
    fake.clock.advance(secs(22));
    // The first in line is out of time, and leaves the line; the other one is not.
    let error = late.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(!error.may_have_applied() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (0, 0));
    says(&error, &["under way", "deadline"]);
    gate.open();
    holder.join().unwrap().unwrap();
    next.join().unwrap().unwrap();
    let writes = fake.sent("PATCH");
    assert_eq!(writes[1].timeout, Some(secs(8)));
    // Other conversations never waited.
    fake.status("PATCH", 202);
    let other = Update::participant("c-2", "p-1").set("k", "v");
    client.update(&other).unwrap();
}

#[test]
fn turns_are_given_first_come_first_served() {
    let fake = Fake::new();
    let gate = Gate::new();
    let hold = gate.clone();
    fake.token()
        .status("PATCH", 202)
        .meanwhile(move || hold.pass());
    for _ in 0..6 {
        fake.status("PATCH", 202);
    }
    let clock = Watched::new(fake.clock.clone());
    let client = fake.builder().clock(clock.clone()).build().unwrap();
    let numbered = |n: usize| Update::participant("c-1", "p-1").set("n", n);
    let mut threads = vec![spawn(&client, "0", numbered(0))];
    gate.await_waiting(1);
    for n in 1..7 {
        let name = n.to_string();
        threads.push(spawn(&client, &name, numbered(n)));
        clock.await_in_line(&name);
    }
    gate.open();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let order: Vec<_> = fake
        .sent("PATCH")
        .iter()
        .map(|write| write.body["attributes"]["n"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "5", "6"]);
}

#[test]
fn transport_panic_in_the_login_before_a_write_is_not_ambiguous() {
    let fake = Fake::new();
    fake.panics("POST").token().status("PATCH", 202);
    let write = Update::participant("c-1", "p-1").set("k", "v");
    let client = fake.client();
    let error = client.update(&write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!error.may_have_applied() && error.attempts() == 0);
    client.update(&write).unwrap();
    // In the write itself nobody knows.
    fake.panics("PATCH");
    let error = client.update(&write).unwrap_err();
    assert!(error.may_have_applied() && error.attempts() == 1);
}
