//! Many threads and one login.

use super::*;

/// A platform for many threads: logins by `login`, which gets their number, and writes by `write`, which gets the
/// request; what came is kept.
struct Platform {
    clock: ManualClock,
    logins: Arc<AtomicUsize>,
    writes: Arc<Mutex<Vec<Seen>>>,
    builder: ClientBuilder,
}

impl Platform {
    fn new(
        login: impl Fn(usize, &AtomicUsize) -> Response + Send + Sync + 'static,
        write: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Platform {
        let clock = ManualClock::new();
        let logins = Arc::new(AtomicUsize::new(0));
        let writes = Arc::new(Mutex::new(Vec::new()));
        let (count, record) = (logins.clone(), writes.clone());
        let transport = move |request: &Request| -> Result<Response, TransportError> {
            let seen = Seen::of(request, Duration::ZERO);
            if seen.method == "POST" {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                return Ok(login(number, &count));
            }
            let response = write(&seen);
            lock(&record).push(seen);
            Ok(response)
        };
        let builder = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new(CLIENT_ID, CLIENT_SECRET),
        )
        .base_url(BASE)
        .rate_limit(RateLimit::unlimited())
        .clock(clock.clone())
        .transport(transport);
        Platform {
            clock,
            logins,
            writes,
            builder,
        }
    }
}

fn granted(number: usize) -> Response {
    json_response(
        200,
        &json!({ "access_token": format!("token-{number}"), "expires_in": 100 }),
    )
}

/// Gives other threads every chance to log in too.
fn linger(logins: &AtomicUsize) {
    for _ in 0..200 {
        if logins.load(Ordering::SeqCst) > 1 {
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn threads_without_token_make_one_login() {
    let platform = Platform::new(
        |number, logins| {
            linger(logins);
            granted(number)
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    let started = Barrier::new(16);
    thread::scope(|scope| {
        for n in 0..16 {
            let (client, started) = (client.clone(), &started);
            scope.spawn(move || {
                started.wait();
                client.update(&update(&format!("c-{n}"))).unwrap();
            });
        }
    });
    assert_eq!(platform.logins.load(Ordering::SeqCst), 1);
    let writes = lock(&platform.writes);
    assert_eq!(writes.len(), 16);
    assert!(writes.iter().all(|w| w.authorization() == "Bearer token-1"));
}

#[test]
fn refresh_in_flight_does_not_block_valid_token() {
    let gate = Gate::new();
    let at_login = gate.clone();
    let platform = Platform::new(
        move |number, _| {
            if number == 2 {
                at_login.pass();
            }
            granted(number)
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    client.update(&update("c-1")).unwrap();
    platform.clock.advance(secs(95));

    let refreshing = thread::spawn({
        let client = client.clone();
        move || client.update(&update("c-1"))
    });
    gate.await_waiting(1);
    let (done, others) = mpsc::channel();
    for n in 2..6 {
        let (client, done) = (client.clone(), done.clone());
        thread::spawn(move || {
            let result = client.update(&update(&format!("c-{n}")));
            done.send(result).unwrap();
        });
    }
    for _ in 2..6 {
        let result = others.recv_timeout(PATIENCE);
        result.expect("it waits for the refresh").unwrap();
    }
    assert!(!refreshing.is_finished());
    gate.open();
    refreshing.join().unwrap().unwrap();

    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    let writes = lock(&platform.writes);
    let used: Vec<_> = writes.iter().map(Seen::authorization).collect();
    assert_eq!(used[..5], ["Bearer token-1"; 5]);
    assert_eq!(used[5], "Bearer token-2");
}

#[test]
fn login_waiters_share_failure() {
    let platform = Platform::new(
        |_, logins| {
            linger(logins);
            json_response(401, &refusal("invalid_client", "client not found"))
        },
        |_| Response::new(202),
    );
    let client = platform.builder.build().unwrap();
    let started = Barrier::new(8);
    let errors: Vec<Error> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (client, started) = (client.clone(), &started);
                scope.spawn(move || {
                    started.wait();
                    client.update(&update(&format!("c-{n}"))).unwrap_err()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(platform.logins.load(Ordering::SeqCst), 1);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Auth);
        says(&error, &["client not found"]);
    }
}

#[test]
fn login_failed_holds_off_five_seconds() {
    let fake = Fake::new();
    let refused = json_response(400, &refusal("invalid_client", "authentication failed"));
    fake.answer("POST", refused);
    let client = fake.client();
    for wait in [ms(0), ms(0), ms(4_999)] {
        fake.clock.advance(wait);
        let error = client.update(&update("c-1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        says(&error, &["authentication failed"]);
    }
    assert_eq!(fake.sent("POST").len(), 1);
    fake.clock.advance(ms(1));
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn login_cancelled_does_not_fail_other_waiters() {
    let fake = Fake::new();
    fake.status("POST", 503);
    let cancel = Cancel::new();
    let alarm = cancel.clone();
    let client = fake
        .builder()
        .clock(AlarmClock::new(fake.clock.clone(), move || alarm.cancel()))
        .retry(RetryPolicy::default().with_backoff(secs(20), secs(20)))
        .build()
        .unwrap();
    let error = client
        .update_cancellable(&update("c-1"), &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    fake.token().status("PATCH", 202);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn login_panic_releases_waiters() {
    let fake = Fake::new();
    fake.panics("POST").token().status("PATCH", 202);
    let client = fake.client();
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    client.update(&update("c-1")).unwrap();
}

#[test]
fn late_401_of_old_token_keeps_new_token() {
    let gate = Gate::new();
    let at_write = gate.clone();
    let platform = Platform::new(
        |number, _| granted(number),
        move |seen| {
            if seen.authorization() != "Bearer token-1" {
                return Response::new(202);
            }
            if seen.path.contains("c-late") {
                at_write.pass();
            }
            Response::new(401)
        },
    );
    let client = platform.builder.build().unwrap();
    let late = thread::spawn({
        let client = client.clone();
        move || client.update(&update("c-late"))
    });
    gate.await_waiting(1);
    // Meanwhile another one finds out, and gets a new token.
    client.update(&update("c-early")).unwrap();
    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    gate.open();
    late.join().unwrap().unwrap();

    client.update(&update("c-next")).unwrap();
    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
    let writes = lock(&platform.writes);
    let used: Vec<_> = writes.iter().map(Seen::authorization).collect();
    assert_eq!(
        used,
        [
            "Bearer token-1",
            "Bearer token-2",
            "Bearer token-1",
            "Bearer token-2",
            "Bearer token-2"
        ]
    );
}

#[test]
fn tokens_always_refused_make_two_logins_whatever_the_number_of_updates() {
    let platform = Platform::new(|number, _| granted(number), |_| Response::new(401));
    let client = platform.builder.build().unwrap();
    let started = Barrier::new(8);
    thread::scope(|scope| {
        for n in 0..8 {
            let (client, started) = (client.clone(), &started);
            scope.spawn(move || {
                started.wait();
                for m in 0..25 {
                    let result = client.update(&update(&format!("c-{n}-{m}")));
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::Auth);
                }
            });
        }
    });
    assert_eq!(platform.logins.load(Ordering::SeqCst), 2);
}

#[test]
fn login_waiter_gives_up_at_its_own_deadline() {
    let gate = Gate::new();
    let at_login = gate.clone();
    let platform = Platform::new(
        move |number, _| {
            at_login.pass();
            granted(number)
        },
        |_| Response::new(202),
    );
    let policy = RetryPolicy::default().with_deadline(secs(30));
    let client = platform.builder.retry(policy).build().unwrap();
    let first = thread::spawn({
        let client = client.clone();
        move || client.update(&update("c-1"))
    });
    gate.await_waiting(1);
    // It looks up now and then, as everybody does who can be cancelled.
    let waiter = thread::spawn({
        let client = client.clone();
        move || client.update_cancellable(&update("c-2"), &Cancel::new())
    });
    while !waiter.is_finished() {
        platform.clock.advance(secs(1));
        thread::yield_now();
    }
    let error = waiter.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.during_login() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (0, 0));
    gate.open();
    let _ = first.join().unwrap();
    assert_eq!(platform.logins.load(Ordering::SeqCst), 1);
}

#[test]
fn pause_that_begins_during_a_login_holds_the_request() {
    let (at_write, at_login) = (Gate::new(), Gate::new());
    let (write_gate, login_gate) = (at_write.clone(), at_login.clone());
    let platform = Platform::new(
        move |number, _| {
            if number == 2 {
                login_gate.pass();
            }
            granted(number)
        },
        move |seen| {
            if !seen.path.contains("c-slow") {
                return Response::new(202);
            }
            write_gate.pass();
            Response::new(429).with_header("Retry-After", "60")
        },
    );
    let policy = without_jitter().with_deadline(secs(70));
    let client = platform.builder.retry(policy).build().unwrap();
    let spawn = |id: &'static str| {
        let client = client.clone();
        thread::spawn(move || client.update(&update(id)))
    };
    let slow = spawn("c-slow");
    at_write.await_waiting(1);
    platform.clock.advance(secs(100));
    let other = spawn("c-2");
    at_login.await_waiting(1);
    // While that one logs in, everybody is told to slow down.
    at_write.open();
    slow.join().unwrap().unwrap_err();
    platform.clock.advance(secs(1));
    at_login.open();
    other.join().unwrap().unwrap();
    assert_eq!(platform.clock.sleeps(), [secs(59)]);
}

/// An update whose first `refusals` tokens are refused, each after a request of another thread was accepted with it.
fn refused_after_use_by_another(refusals: usize) -> (usize, genesys_attributes::Result<Receipt>) {
    let other = Arc::new(OnceLock::<Client>::new());
    let clone = other.clone();
    let refused = AtomicUsize::new(0);
    let platform = Platform::new(
        |number, _| granted(number),
        move |seen| {
            if !seen.path.contains("c-unlucky")
                || refused.fetch_add(1, Ordering::SeqCst) >= refusals
            {
                return Response::new(202);
            }
            let client = clone.get().unwrap();
            thread::scope(|scope| {
                scope
                    .spawn(|| client.update(&update("c-other")).map(drop))
                    .join()
            })
            .unwrap()
            .unwrap();
            Response::new(401)
        },
    );
    let client = platform.builder.build().unwrap();
    assert!(other.set(client.clone()).is_ok());
    let result = client.update(&update("c-unlucky"));
    (platform.logins.load(Ordering::SeqCst), result)
}

#[test]
fn tokens_refused_one_after_the_other_are_renewed_while_others_use_them() {
    for refusals in 1..=4 {
        let (logins, result) = refused_after_use_by_another(refusals);
        assert_eq!(result.unwrap().attempts as usize, refusals + 1);
        assert_eq!(logins, refusals + 1);
    }
    // As often as a request is sent at most.
    let (logins, result) = refused_after_use_by_another(100);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(logins, 5);
}

/// A gateway that lets reads pass and refuses the token of every write.
#[test]
fn tokens_taken_by_reads_and_refused_by_writes_are_held_off() {
    let fake = Fake::new();
    let client = fake.builder().retry(without_jitter()).build().unwrap();
    let write = Update::conversation("c-1").set("k", "v");
    fake.token().get(1).status("PATCH", 401);
    fake.token().status("PATCH", 401);
    let error = client.update(&write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    for _ in 0..20 {
        assert_eq!(client.update(&write).unwrap_err().kind(), ErrorKind::Auth);
    }
    assert_eq!(fake.sent("POST").len(), 2, "within the hold-off");
    fake.clock.advance(secs(5));
    fake.token().get(1).status("PATCH", 401);
    fake.token().status("PATCH", 401);
    client.update(&write).unwrap_err();
    client.update(&write).unwrap_err();
    assert_eq!(fake.sent("POST").len(), 4);
}
