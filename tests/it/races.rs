//! Many threads and many clients on one store at the same moment: nothing that was confirmed is
//! lost.
//!
//! The stand-in answers in parallel here, after a random short delay, so that reads and writes overtake each other. Its log
//! tells of each write what it changed: one that changed more than what its writer set has lost somebody's value on the way.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use genesys_attributes::{
    Attributes, Client, Credentials, ErrorKind, Metrics, Outcome, RateLimit, Region, RetryPolicy,
    Target, Update,
};
use serde_json::{Map, Value};

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
