//! Many threads and many clients on one store at the same moment: nothing that was confirmed is
//! lost.
//!
//! The sandbox answers one request at a time, which is no race. Here a small store of strict
//! locking answers in parallel, after a random short delay, so that reads and writes overtake each
//! other. It also looks at each write: one that changes more than what its writer set has lost
//! somebody's value on the way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use genesys_attributes::{
    Attributes, Client, Credentials, ErrorKind, Metrics, Outcome, RateLimit, Region, RetryPolicy,
    Target, Update,
};
use serde_json::{Map, Value, json};

use crate::server::{Req, Resp, Server};

const CONVERSATION: &str = "/api/v2/conversations/c-1";
const ROUNDS: u64 = 100;
/// Each worker sets this many keys in turn, so that some of them rest while others change.
const KEYS: u64 = 3;

/// One versioned map, and what was wrong with the writes to it.
#[derive(Default)]
struct Store {
    version: u64,
    attributes: Map<String, Value>,
    writes: u64,
    conflicts: u64,
    /// Writes by writer: the part of a key before its dot.
    by_writer: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl Store {
    /// A write of the whole map, based on `version`; says whether it was let through.
    fn replace(&mut self, version: Option<u64>, attributes: &Map<String, Value>) -> bool {
        if version.unwrap_or(0) != self.version {
            self.conflicts += 1;
            return false;
        }
        let gone = self
            .attributes
            .keys()
            .filter(|key| !attributes.contains_key(*key));
        for key in gone {
            self.wrong.push(format!("{key} was dropped"));
        }
        let mut writers: Vec<&str> = attributes
            .iter()
            .filter(|(key, value)| self.attributes.get(*key) != Some(value))
            .map(|(key, _)| key.split('.').next().unwrap_or_default())
            .collect();
        writers.dedup();
        match writers.as_slice() {
            [one] => *self.by_writer.entry((*one).to_owned()).or_default() += 1,
            several => self.wrong.push(format!("one write changed {several:?}")),
        }
        self.attributes = attributes.clone();
        self.version += 1;
        self.writes += 1;
        true
    }

    /// A write of some keys.
    fn amend(&mut self, version: Option<u64>, some: &Map<String, Value>) -> bool {
        let mut merged = self.attributes.clone();
        merged.extend(some.clone());
        self.replace(version, &merged)
    }
}

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

/// The platform, with one of its stores.
struct Race {
    server: Server,
    store: Arc<Mutex<Store>>,
    kind: Kind,
}

impl Race {
    fn new(kind: Kind) -> Race {
        let store = Arc::new(Mutex::new(Store {
            // A secure map that was never written has no version.
            version: if matches!(kind, Kind::Secure) { 0 } else { 1 },
            ..Store::default()
        }));
        let theirs = Arc::clone(&store);
        let dice = AtomicU64::new(1);
        let server = Server::start(move |req| {
            let resp = answer(kind, &mut locked(&theirs), req);
            let roll = dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
            let roll = (roll ^ (roll >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32;
            resp.delay(Duration::from_micros(roll % 1_000))
        });
        Race {
            server,
            store,
            kind,
        }
    }

    fn client(&self) -> Client {
        let tiny = Duration::from_micros(10);
        Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new("id", "secret"),
        )
        .base_url(self.server.url())
        .no_proxy()
        .rate_limit(RateLimit::unlimited())
        .retry(RetryPolicy::default().with_backoff(tiny, tiny))
        .build()
        .unwrap()
    }

    /// `threads` threads of each of `clients` set their own keys; looks at what is left.
    fn run(&self, clients: usize, threads: usize) -> Tally {
        let clients: Vec<Client> = (0..clients).map(|_| self.client()).collect();
        let version_before = locked(&self.store).version;
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

        let store = locked(&self.store);
        assert_eq!(store.wrong, [""; 0]);
        let workers = (clients.len() * threads) as u64;
        assert_eq!(store.writes, workers * ROUNDS);
        assert_eq!(store.version, version_before + store.writes);
        assert!(store.by_writer.values().all(|writes| *writes == ROUNDS));
        let expected: Map<String, Value> = last.into_iter().flatten().collect();
        assert_eq!(store.attributes, expected);
        assert_eq!(self.server.panics(), 0);

        let metrics: Vec<Metrics> = clients.iter().map(Client::metrics).collect();
        let sum = |count: fn(&Metrics) -> u64| metrics.iter().map(count).sum::<u64>();
        assert_eq!(sum(|m| m.applied), store.writes);
        // Every conflict that the store saw is one that a client counted, and no other.
        assert_eq!(sum(|m| m.conflicts), store.conflicts);
        let gave_up = gave_up.load(Ordering::Relaxed);
        assert_eq!(sum(|m| m.failed(ErrorKind::Conflict)), gave_up);
        let tally = Tally {
            updates: sum(|m| m.calls),
            gave_up,
            conflicts: store.conflicts,
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

fn locked(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(kind: Kind, store: &mut Store, req: &Req) -> Resp {
    let path = req.path.strip_prefix(CONVERSATION).unwrap_or(req.path);
    let done = |applied: bool, status, body: Value| match applied {
        true => Resp::json(status, body.to_string()),
        false if matches!(kind, Kind::Conversation) => Resp::json(412, "{}"),
        false => Resp::json(409, r#"{"code":"general.conflict"}"#),
    };
    match (kind, req.method, path) {
        (_, "POST", "/oauth/token") => Resp::json(
            200,
            r#"{"access_token":"t","token_type":"bearer","expires_in":86400}"#,
        ),
        (Kind::Conversation, "GET", "") => Resp::json(
            200,
            json!({"id": "c-1", "version": store.version.to_string(), "attributes": store.attributes})
                .to_string(),
        ),
        (Kind::Conversation, "PATCH", "/attributes") => {
            let version = req
                .header("if-match")
                .and_then(|tag| tag.trim_matches('"').parse().ok());
            let body = req.json();
            let applied = store.amend(Some(version.unwrap()), body["attributes"].as_object().unwrap());
            done(applied, 200, json!({"version": store.version.to_string()}))
        }
        (Kind::Secure, "GET", "/secureattributes") => {
            let mut body = json!({"attributes": store.attributes});
            if store.version > 0 {
                body["version"] = json!(store.version);
            }
            Resp::json(200, body.to_string())
        }
        (Kind::Secure, "PUT", "/secureattributes") => {
            let body = req.json();
            let version = body.get("version").map(|v| v.as_u64().unwrap());
            let applied = store.replace(version, body["attributes"].as_object().unwrap());
            done(applied, 202, json!("set request was accepted"))
        }
        (Kind::Custom, "GET", "/customattributes/r-1") => Resp::json(
            200,
            json!({
                "id": "r-1",
                "divisions": ["d-1"],
                "version": store.version,
                "customAttributes": store.attributes,
            })
            .to_string(),
        ),
        (Kind::Custom, "PATCH", "/customattributes") => {
            let body = req.json();
            if body["id"] != "r-1" || body["divisions"] != json!(["d-1"]) {
                store.wrong.push("the divisions were lost".to_owned());
            }
            let version = body["version"].as_u64().unwrap();
            let applied = store.amend(Some(version), body["customAttributes"].as_object().unwrap());
            if applied {
                Resp::empty(200)
            } else {
                done(false, 0, Value::Null)
            }
        }
        _ => Resp::empty(405),
    }
}

#[test]
fn the_threads_of_one_client_never_conflict() {
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
fn four_clients_on_one_secure_map_lose_nothing() {
    let tally = Race::new(Kind::Secure).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

#[test]
fn four_clients_on_one_custom_record_lose_nothing() {
    let tally = Race::new(Kind::Custom).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

#[test]
fn four_clients_on_one_conversation_lose_nothing() {
    let tally = Race::new(Kind::Conversation).run(4, 4);
    assert!(tally.conflicts > 0, "no race took place");
}

/// Adds one to a number that all share: a lost update shows in the sum.
#[test]
fn four_clients_count_together() {
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
        let store = locked(&race.store);
        assert_eq!(store.wrong, [""; 0]);
        assert_eq!(store.attributes["all.sum"], kind.value(8 * ADDITIONS));
        assert_eq!(store.writes, 8 * ADDITIONS);
    }
}
