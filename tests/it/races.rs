//! Many threads and many clients on one store at the same moment: nothing that was confirmed is
//! lost.
//!
//! The stand-in answers in parallel here, after a random short delay, so that reads and writes overtake each other. Its log
//! tells of each write what it changed: one that changed more than what its writer set has lost somebody's value on the way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Method, Request, Response, Transport, TransportError};
use genesys_attributes::{
    Attributes, Cancel, Client, Credentials, Error, ErrorKind, Metrics, Outcome, RateLimit, Region,
    RetryPolicy, Target, Update,
};
use serde_json::{Map, Value};

use crate::memory::Memory;
use crate::sandbox::{Backend, Record, Sandbox};

const ROUNDS: u64 = 25;
/// Each worker sets this many keys in turn, so that some of them rest while others change.
const KEYS: u64 = 3;

/// The three stores that have a lock.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Conversation,
    Secure,
    Custom,
}

impl Kind {
    fn target(self) -> Target {
        match self {
            Kind::Conversation => Target::conversation("c-1"),
            Kind::Secure => Target::secure("c-1"),
            Kind::Custom => Target::custom("c-1", "r-1"),
        }
    }

    /// Secure attributes are text.
    fn value(self, n: u64) -> Value {
        match self {
            Kind::Secure => Value::from(n.to_string()),
            _ => Value::from(n),
        }
    }
}

/// The platform, and which of its stores the race is about.
struct Race {
    sandbox: Sandbox,
    kind: Kind,
}

/// What is in the store, without what the kinds do differently.
struct Stored {
    version: u64,
    attributes: Map<String, Value>,
}

impl Race {
    fn new(kind: Kind) -> Race {
        let dice = AtomicU64::new(1);
        let sandbox = Sandbox::start_with(move |req, backend: &Backend| {
            let roll = dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
            let roll = (roll ^ (roll >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32;
            Some(
                backend
                    .answer(req)
                    .delay(Duration::from_micros(roll % 1_000)),
            )
        });
        sandbox.world(|world| {
            world.check_credentials = false;
            let record = Record {
                version: 1,
                divisions: vec!["d-1".into()],
                ..Record::default()
            };
            world.add("c-1").custom.insert("r-1".into(), record);
        });
        Race { sandbox, kind }
    }

    fn stored(&self) -> Stored {
        self.sandbox.world(|world| {
            let conversation = world.conversations["c-1"].clone();
            let record = conversation.custom["r-1"].clone();
            assert_eq!(record.divisions, ["d-1"], "the divisions were lost");
            match self.kind {
                Kind::Conversation => Stored {
                    version: conversation.version,
                    attributes: conversation.attributes,
                },
                // A secure map that was never written has no version.
                Kind::Secure => {
                    let secure = conversation.secure.unwrap_or_default();
                    let texts = secure.attributes.into_iter();
                    Stored {
                        version: secure.version,
                        attributes: texts.map(|(key, text)| (key, text.into())).collect(),
                    }
                }
                Kind::Custom => Stored {
                    version: record.version,
                    attributes: record.attributes,
                },
            }
        })
    }

    /// Writes by writer (the part of a key before its dot), after a look at each: it changed one writer's keys, and dropped
    /// nobody's.
    fn writes_by_writer(&self) -> BTreeMap<String, u64> {
        let mut by_writer = BTreeMap::new();
        for write in self.sandbox.world(|world| world.writes.clone()) {
            assert_eq!(write.removed, [""; 0], "dropped by {:?}", write.sent);
            let mut writers: Vec<&str> = write
                .changed
                .iter()
                .map(|key| key.split('.').next().unwrap_or_default())
                .collect();
            writers.dedup();
            let [one] = writers.as_slice() else {
                panic!("one write changed {writers:?}");
            };
            *by_writer.entry((*one).to_owned()).or_default() += 1;
        }
        by_writer
    }

    fn client(&self) -> Client {
        let tiny = Duration::from_micros(10);
        Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new("id", "secret"),
        )
        .base_url(self.sandbox.url())
        .no_proxy()
        .rate_limit(RateLimit::unlimited())
        .retry(RetryPolicy::default().with_backoff(tiny, tiny))
        .build()
        .unwrap()
    }

    /// `threads` threads of each of `clients` set their own keys; looks at what is left.
    fn run(&self, clients: usize, threads: usize) -> Tally {
        let clients: Vec<Client> = (0..clients).map(|_| self.client()).collect();
        let version_before = self.stored().version;
        let gave_up = AtomicU64::new(0);
        let start = Barrier::new(clients.len() * threads);
        let last: Vec<Map<String, Value>> = thread::scope(|scope| {
            let workers: Vec<_> = clients
                .iter()
                .enumerate()
                .flat_map(|(c, client)| (0..threads).map(move |t| (format!("c{c}t{t}"), client)))
                .map(|(name, client)| {
                    scope.spawn(|| {
                        start.wait();
                        self.work(name, client, &gave_up)
                    })
                })
                .collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect()
        });

        let stored = self.stored();
        let counters = self.sandbox.world(|world| world.counters);
        let workers = (clients.len() * threads) as u64;
        assert_eq!(counters.writes, workers * ROUNDS);
        assert_eq!(stored.version, version_before + counters.writes);
        let by_writer = self.writes_by_writer();
        assert!(by_writer.values().all(|writes| *writes == ROUNDS));
        let expected: Map<String, Value> = last.into_iter().flatten().collect();
        assert_eq!(stored.attributes, expected);
        assert_eq!(self.sandbox.server().panics(), 0);

        let metrics: Vec<Metrics> = clients.iter().map(Client::metrics).collect();
        let sum = |count: fn(&Metrics) -> u64| metrics.iter().map(count).sum::<u64>();
        assert_eq!(sum(|m| m.applied), counters.writes);
        // Every conflict that the platform saw is one that a client counted, and no other.
        assert_eq!(sum(|m| m.conflicts), counters.conflicts);
        let gave_up = gave_up.load(Ordering::Relaxed);
        assert_eq!(sum(|m| m.failed(ErrorKind::Conflict)), gave_up);
        let tally = Tally {
            updates: sum(|m| m.calls),
            gave_up,
            conflicts: counters.conflicts,
            requests: sum(|m| m.requests),
        };
        eprintln!("{:?}: {tally:?}", self.kind);
        tally
    }

    /// What one thread does; returns its keys with the values that were confirmed last.
    fn work(&self, name: String, client: &Client, gave_up: &AtomicU64) -> Map<String, Value> {
        let mut confirmed = Map::new();
        for round in 1..=ROUNDS {
            let key = format!("{name}.{}", round % KEYS);
            let value = self.kind.value(round);
            let mut update = Update::new(self.kind.target());
            update = update.set(&key, value.clone());
            loop {
                match client.update(&update) {
                    Ok(receipt) => {
                        assert_eq!(receipt.outcome, Outcome::Applied);
                        break;
                    }
                    // Too many others, as the policy sees it. Nothing was written, so again.
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                        assert!(error.is_transient() && !error.may_have_applied(), "{error}");
                        gave_up.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            confirmed.insert(key, value);
        }
        confirmed
    }
}

#[derive(Debug)]
struct Tally {
    /// Calls of `update`.
    updates: u64,
    /// Those that failed because they met too many conflicts.
    gave_up: u64,
    conflicts: u64,
    requests: u64,
}

#[test]
fn threads_of_one_client_never_conflict() {
    for kind in [Kind::Conversation, Kind::Secure, Kind::Custom] {
        let tally = Race::new(kind).run(1, 8);
        assert_eq!((tally.conflicts, tally.gave_up), (0, 0), "{kind:?}");
        let reads = match kind {
            // Read once, and then known from its own writes.
            Kind::Conversation => 1,
            Kind::Secure | Kind::Custom => tally.updates,
        };
        assert_eq!(tally.requests, tally.updates + reads, "{kind:?}");
    }
}

#[test]
fn clients_racing_on_secure_map_lose_no_write() {
    let tally = Race::new(Kind::Secure).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

#[test]
fn clients_racing_on_custom_record_lose_no_write() {
    let tally = Race::new(Kind::Custom).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

#[test]
fn clients_racing_on_conversation_lose_no_write() {
    let tally = Race::new(Kind::Conversation).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

/// Adds one to a number that all share: a lost update shows in the sum.
#[test]
fn clients_counting_together_lose_no_step() {
    const ADDITIONS: u64 = 20;
    for kind in [Kind::Conversation, Kind::Secure, Kind::Custom] {
        let race = Race::new(kind);
        let clients: Vec<Client> = (0..4).map(|_| race.client()).collect();
        thread::scope(|scope| {
            for client in clients.iter().flat_map(|client| [client, client]) {
                let target = kind.target();
                scope.spawn(move || {
                    let mut added = 0;
                    while added < ADDITIONS {
                        let result = client.update_with(&target, |now| {
                            let sum = match now.attributes.get("all.sum") {
                                None => 0,
                                Some(Value::String(text)) => text.parse().unwrap(),
                                Some(number) => number.as_u64().unwrap(),
                            };
                            let sum = ("all.sum".to_owned(), kind.value(sum + 1));
                            Ok(Some(Attributes::from_iter([sum])))
                        });
                        match result {
                            Ok(receipt) => {
                                assert_eq!(receipt.outcome, Outcome::Applied);
                                added += 1;
                            }
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                                assert!(!error.may_have_applied(), "{error}");
                            }
                        }
                    }
                });
            }
        });
        race.writes_by_writer();
        assert_eq!(
            race.stored().attributes["all.sum"],
            kind.value(8 * ADDITIONS)
        );
        assert_eq!(
            race.sandbox.world(|world| world.counters.writes),
            8 * ADDITIONS
        );
    }
}

/// 64 threads on one client, whose token expires all the time, whose platform throttles, refuses and
/// loses answers, and whose hooks panic, update, block and drop what they subscribed to; half of the
/// threads are cancelled on the way.
#[test]
fn threads_through_expiry_throttling_faults_hooks_and_a_cancel_keep_every_promise() {
    const THREADS: usize = 64;
    const UPDATES: u64 = 40;
    let memory = Memory::new();
    memory.world(|world| world.check_credentials = false);
    let clock = ManualClock::new();
    let (requests, logins) = (AtomicU64::new(0), AtomicU64::new(0));
    let logging_in = AtomicBool::new(false);
    let (platform, time) = (memory.clone(), clock.clone());
    let transport = move |request: &Request| {
        if request.method() == Method::Post {
            assert!(
                !logging_in.swap(true, Ordering::SeqCst),
                "two logins at once"
            );
            thread::yield_now();
            let number = logins.fetch_add(1, Ordering::SeqCst);
            logging_in.store(false, Ordering::SeqCst);
            let token = format!("{{\"access_token\":\"t-{number}\",\"expires_in\":2}}");
            return Ok(Response::new(200).with_body(token));
        }
        let number = requests.fetch_add(1, Ordering::SeqCst);
        // Tokens age while requests are made.
        time.advance(Duration::from_millis(3));
        match number % 53 {
            7 => Ok(Response::new(429).with_header("Retry-After", "1")),
            19 => Ok(Response::new(401)),
            23 => Ok(Response::new(503).with_header("Retry-After", "1")),
            31 | 37 => {
                // It takes effect, and the answer is lost.
                let _ = platform.send(request);
                let lost = Error::new(ErrorKind::Transport, "lost");
                Err(TransportError::new(lost, Sent::Maybe))
            }
            _ => platform.send(request),
        }
    };
    let events = Arc::new(AtomicU64::new(0));
    let counted = events.clone();
    let inside: Arc<OnceLock<Client>> = Arc::default();
    let (nested, receivers) = (inside.clone(), inside.clone());
    let client = Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new("id", "secret"),
    )
    .base_url("http://127.0.0.1:1")
    .transport(transport)
    .clock(clock.clone())
    .rate_limit(RateLimit::unlimited())
    // The sleeps of all threads add up on one clock.
    .retry(RetryPolicy::default().with_deadline(Duration::from_secs(86_400)))
    .on_update(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    })
    .on_update(|event| assert!(event.sequence % 7 != 0, "on purpose"))
    .on_update(move |event| {
        let again = !event.conversation_id.starts_with("hook") && event.sequence % 5 == 0;
        if let (true, Some(client)) = (again, nested.get()) {
            let id = format!("hook-{}", event.sequence % 3);
            let _ = client.update(&Update::conversation(id).set("n", event.sequence));
        }
    })
    .on_update(move |event| {
        if let (0, Some(client)) = (event.sequence % 11, receivers.get()) {
            drop(client.subscribe(1));
        }
        thread::yield_now();
    })
    .build()
    .unwrap();
    assert!(inside.set(client.clone()).is_ok());

    let cancel = Cancel::new();
    let (done, confirmed, cancelled) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (client, cancel, memory) = (client.clone(), &cancel, &memory);
            let (start, done, confirmed, cancelled) = (&start, &done, &confirmed, &cancelled);
            scope.spawn(move || {
                start.wait();
                let own = format!("own-{n}");
                for round in 1..=UPDATES {
                    // Its own conversation, and one that all share.
                    for id in [own.as_str(), "shared"] {
                        let key = format!("k-{n}");
                        let update = Update::conversation(id).set(&key, round);
                        let result = match n % 2 {
                            0 => client.update(&update),
                            _ => client.update_cancellable(&update, cancel),
                        };
                        match result {
                            Ok(receipt) => {
                                assert_ne!(receipt.outcome, Outcome::Unchanged);
                                confirmed.fetch_add(1, Ordering::SeqCst);
                                let value = memory.world(|world| {
                                    world.conversations[id].attributes[&key].as_u64()
                                });
                                assert_eq!(value, Some(round), "{id}: confirmed, and not there");
                            }
                            Err(error) if error.kind() == ErrorKind::Cancelled && n % 2 == 1 => {
                                cancelled.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(error) => panic!("{id}: {error}"),
                        }
                        if done.fetch_add(1, Ordering::SeqCst) == THREADS as u64 * UPDATES {
                            cancel.cancel();
                        }
                    }
                }
            });
        }
    });
    let metrics = client.metrics();
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert!(count(&cancelled) > 0, "nobody was cancelled");
    assert_eq!(
        count(&confirmed) + count(&cancelled),
        2 * THREADS as u64 * UPDATES
    );
    assert_eq!(count(&events), metrics.applied + metrics.already_applied);
    assert!(count(&events) > count(&confirmed), "no hook updated");
    assert!(
        metrics.hook_panics > 0 && metrics.token_refreshes > 10,
        "{metrics:?}"
    );
    assert!(
        metrics.rate_limited > 0 && metrics.conflicts > 0,
        "{metrics:?}"
    );
}
