//! What threads share in a client, under every order in which they can take its locks: a wake-up that is lost, a key
//! that is granted to nobody or a login that two threads make shows as a deadlock or an assertion.
//!
//! `cd loom && cargo run --release` compiles the files of `src/` below with loom's locks in the place of std's, and
//! without their tests.

#[path = "../../src/error/mod.rs"]
mod error;
#[path = "../../src/http/mod.rs"]
mod http;
#[path = "../../src/report"]
mod report {
    pub(crate) mod metrics;
}
#[path = "../../src/session"]
mod session {
    pub(crate) mod auth;
    pub(crate) mod exchange;
    pub(crate) mod limiter;
    pub(crate) mod retry;
}
#[path = "../../src/store"]
mod store {
    pub(crate) mod cache;
}
#[path = "../../src/util/mod.rs"]
mod util;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use loom::thread;

use error::{Error, ErrorKind};
use http::{Request, Response, TransportError};
use session::auth::{Credentials, TokenSource};
use session::exchange::{Call, Tokens, Wire};
use session::limiter::{Limiter, RateLimit, Wait};
use session::retry::{Caller, RetryPolicy};
use store::cache::{Cache, Cached};
use util::clock::Clock;
use util::keyed_lock::KeyedLock;
use util::sync::Cancel;

const LONG: Duration = Duration::from_secs(60);

/// A time that stands still.
#[derive(Debug, Clone)]
struct Still(Instant);

impl Clock for Still {
    fn now(&self) -> Instant {
        self.0
    }
    fn wall(&self) -> SystemTime {
        UNIX_EPOCH
    }
    fn sleep(&self, _: Duration) {
        thread::yield_now();
    }
}

/// Tries every order of a model's steps, and says how many there were.
fn every_order(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let orders = Arc::new(AtomicU64::new(0));
    let counted = orders.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{name}: {} orders", orders.load(Ordering::Relaxed));
}

/// Takes the key, and looks whether it is alone with it.
fn alone(
    locks: &KeyedLock,
    inside: &AtomicUsize,
    clock: &Still,
    limit: Duration,
    cancel: Option<&Cancel>,
) -> bool {
    match locks.acquire("c", clock, limit, cancel) {
        Ok(_held) => {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two with one key");
            thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
            true
        }
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Cancelled),
                "{error}"
            );
            false
        }
    }
}

fn keyed_lock_models() {
    every_order("three threads on one key", || {
        let (locks, inside) = (
            Arc::new(KeyedLock::default()),
            Arc::new(AtomicUsize::new(0)),
        );
        let clock = Still(Instant::now());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (locks, inside, clock) = (locks.clone(), inside.clone(), clock.clone());
                thread::spawn(move || assert!(alone(&locks, &inside, &clock, LONG, None)))
            })
            .collect();
        assert!(alone(&locks, &inside, &clock, LONG, None));
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    // One that gives up, perhaps just when it is granted, must not keep the key from the others.
    for cancelled in [false, true] {
        every_order("one of three gives up", move || {
            let (locks, inside) = (
                Arc::new(KeyedLock::default()),
                Arc::new(AtomicUsize::new(0)),
            );
            let clock = Still(Instant::now());
            let patient = {
                let (locks, inside, clock) = (locks.clone(), inside.clone(), clock.clone());
                thread::spawn(move || assert!(alone(&locks, &inside, &clock, LONG, None)))
            };
            let hasty = {
                let (locks, inside, clock) = (locks.clone(), inside.clone(), clock.clone());
                thread::spawn(move || {
                    let cancel = Cancel::new();
                    let limit = match cancelled {
                        true => LONG,
                        false => Duration::ZERO,
                    };
                    cancelled.then(|| cancel.cancel());
                    alone(&locks, &inside, &clock, limit, Some(&cancel));
                })
            };
            assert!(alone(&locks, &inside, &clock, LONG, None));
            patient.join().unwrap();
            hasty.join().unwrap();
            // Nobody is left behind.
            assert!(alone(&locks, &inside, &clock, Duration::ZERO, None));
        });
    }
}

fn limiter_models() {
    every_order("three threads and two slots", || {
        let limiter = Arc::new(Limiter::new(RateLimit::per_minute(2)));
        let in_flight = Arc::new(AtomicUsize::new(0));
        let now = Instant::now();
        let request = {
            let (limiter, in_flight) = (limiter.clone(), in_flight.clone());
            move || {
                if limiter.acquire(now).is_ok() {
                    assert!(
                        in_flight.fetch_add(1, Ordering::SeqCst) < 2,
                        "three in flight"
                    );
                    thread::yield_now();
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                    limiter.release(|| now);
                }
            }
        };
        let threads: Vec<_> = (0..2).map(|_| thread::spawn(request.clone())).collect();
        request();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        // Both slots are used up for a minute.
        assert!(matches!(limiter.acquire(now), Err(Wait::Slot(wait)) if wait == LONG));
        assert!(limiter.acquire(now + LONG).is_ok());
    });
    every_order("a pause holds whoever comes after it", || {
        let limiter = Arc::new(Limiter::new(RateLimit::unlimited()));
        // Loom's, so that it is looked at between the two pauses as well.
        let paused = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let now = Instant::now();
        let pausing = {
            let (limiter, paused) = (limiter.clone(), paused.clone());
            thread::spawn(move || {
                limiter.pause(now + LONG, true);
                paused.store(true, Ordering::SeqCst);
                limiter.pause(now, true);
            })
        };
        let before = paused.load(Ordering::SeqCst);
        assert!(
            !before || limiter.acquire(now).is_err(),
            "sent inside of a pause"
        );
        pausing.join().unwrap();
        assert!(limiter.acquire(now).is_err() && limiter.acquire(now + LONG).is_ok());
    });
}

fn cache_models() {
    every_order("what is forgotten is not remembered", || {
        let cache = Arc::new(Cache::new(2));
        let writer = {
            let cache = cache.clone();
            thread::spawn(move || {
                cache.put("a".into(), Cached::Version("1".into()));
                cache.put("b".into(), Cached::Untrusted);
                cache.forget("a");
            })
        };
        let _ = cache.get("a");
        cache.put("c".into(), Cached::Version("2".into()));
        writer.join().unwrap();
        assert_eq!(cache.get("a"), None);
    });
}

/// A login endpoint that gives `t-1`, `t-2` and so on, to one at a time.
fn tokens(clock: &Still, fails: usize) -> (Arc<TokenSource>, Arc<AtomicUsize>) {
    let (logins, busy) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let counted = logins.clone();
    let transport = move |_: &Request| -> Result<Response, TransportError> {
        assert!(!busy.swap(true, Ordering::SeqCst), "two logins at once");
        thread::yield_now();
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        busy.store(false, Ordering::SeqCst);
        if number <= fails {
            return Ok(Response::new(400).with_body(r#"{"error":"invalid_client"}"#));
        }
        let body = format!(r#"{{"access_token":"t-{number}","expires_in":3600}}"#);
        Ok(Response::new(200).with_body(body))
    };
    let wire = Wire {
        process: util::process::Process::current(),
        tokens: None,
        transport: Arc::new(transport),
        clock: Arc::new(clock.clone()),
        counters: Arc::default(),
        policy: RetryPolicy::default(),
        limiter: Limiter::new(RateLimit::unlimited()),
        longest_request: LONG,
        seeds: Arc::new(util::random::Seeds::new(Some(1))),
    };
    let source = TokenSource::new(
        Credentials::new("id", "secret"),
        "https://login".into(),
        wire,
    );
    (Arc::new(source), logins)
}

fn call() -> Call<'static> {
    // A wire of its own begins the call; only the budget matters.
    let clock = Still(Instant::now());
    let wire = Wire {
        process: util::process::Process::current(),
        tokens: None,
        transport: Arc::new(|_: &Request| Ok(Response::new(200))),
        clock: Arc::new(clock),
        counters: Arc::default(),
        policy: RetryPolicy::default(),
        limiter: Limiter::new(RateLimit::unlimited()),
        longest_request: LONG,
        seeds: Arc::new(util::random::Seeds::new(Some(1))),
    };
    wire.begin(RetryPolicy::default(), Caller::Single, "loom", None)
}

fn token_models() {
    every_order("two threads without a token make one login", || {
        let clock = Still(Instant::now());
        let (source, logins) = tokens(&clock, 0);
        let other = {
            let (source, now) = (source.clone(), clock.0);
            thread::spawn(move || source.token(&mut call(), now).is_ok())
        };
        assert!(source.token(&mut call(), clock.0).is_ok());
        assert!(other.join().unwrap());
        assert_eq!(logins.load(Ordering::SeqCst), 1);
    });
    every_order(
        "a token that two threads find refused is replaced once",
        || {
            let clock = Still(Instant::now());
            let (source, logins) = tokens(&clock, 0);
            let Ok((old, _)) = source.token(&mut call(), clock.0) else {
                panic!("no token");
            };
            old.accepted();
            let replace = {
                let (source, now) = (source.clone(), clock.0);
                move || {
                    assert!(source.refused(&old));
                    assert!(source.token(&mut call(), now).is_ok());
                }
            };
            let other = thread::spawn(replace.clone());
            replace();
            other.join().unwrap();
            assert_eq!(logins.load(Ordering::SeqCst), 2);
        },
    );
    every_order(
        "credentials that are refused are refused to both, once",
        || {
            let clock = Still(Instant::now());
            let (source, logins) = tokens(&clock, 9);
            let other = {
                let (source, now) = (source.clone(), clock.0);
                thread::spawn(move || source.token(&mut call(), now).is_err())
            };
            assert!(source.token(&mut call(), clock.0).is_err());
            assert!(other.join().unwrap());
            assert_eq!(logins.load(Ordering::SeqCst), 1);
        },
    );
}

fn main() {
    keyed_lock_models();
    limiter_models();
    cache_models();
    token_models();
}
