//! From the audit file to the world: what arrives, how often and in which order.

mod delivery;
mod log;
#[cfg(feature = "cli")]
mod program;
mod settle;
mod webhook;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use genesys_attributes::clock::ManualClock;
use genesys_attributes::forward::{Envelope, ForwardReport, Forwarder, Sink, Undelivered};
use genesys_attributes::{Cancel, Error, ErrorKind};
use serde_json::{Value, json};

use crate::fake::lock;

/// A folder of the test's own, removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ga-fwd-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn log(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// Appends to a file of the folder.
    pub fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let file = File::options()
            .append(true)
            .create(true)
            .open(self.path(name));
        file.unwrap().write_all(text.as_ref()).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One line of a log: the record with the id `u-N`, of a conversation that changes with N.
pub fn record(n: u64, phase: &str, status: &str) -> Value {
    json!({
        "id": format!("u-{n}"),
        "phase": phase,
        "timestamp": format!("2026-01-01T00:00:{:02}.{:03}Z", n / 1_000 % 60, n % 1_000),
        "conversationId": format!("c-{}", n % 3),
        "target": "conversation",
        "status": status,
        "updatedKeys": ["n"],
        "attributes": { "n": n },
        "previousVersion": format!("{n}"),
        "version": format!("{}", n + 1),
        "attempts": 1,
        "requests": 2,
        "latencyMs": 5,
    })
}

pub fn line(record: &Value) -> String {
    format!("{record}\n")
}

pub fn applied(n: u64) -> String {
    line(&record(n, "outcome", "applied"))
}

pub fn intent(n: u64) -> String {
    let mut record = record(n, "intent", "pending");
    record.as_object_mut().unwrap().remove("version");
    line(&record)
}

/// A sink that keeps what it takes, and fails as it is told.
#[derive(Clone, Default)]
pub struct Taker(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    taken: Vec<(String, Value)>,
    script: VecDeque<Act>,
}

#[derive(Clone)]
pub enum Act {
    Take,
    Fail(Undelivered),
    /// The process dies before the event is handed over.
    DieBefore,
    /// The process dies when it was, and the answer is lost.
    DieAfter,
}

impl Taker {
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        lock(&self.0).script.extend(acts);
    }

    /// How many acts of the script are left.
    pub fn left(&self) -> usize {
        lock(&self.0).script.len()
    }

    pub fn clear(&self) {
        lock(&self.0).script.clear();
    }

    /// The ids that were taken, in order.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.0)
            .taken
            .iter()
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub fn bodies(&self) -> Vec<Value> {
        lock(&self.0)
            .taken
            .iter()
            .map(|(_, body)| body.clone())
            .collect()
    }
}

impl Sink for Taker {
    fn hand_over(&mut self, envelope: &Envelope<'_>) -> Result<(), Undelivered> {
        let act = lock(&self.0).script.pop_front().unwrap_or(Act::Take);
        match act {
            Act::Fail(undelivered) => return Err(undelivered),
            Act::DieBefore => panic!("killed before event {}", envelope.id),
            Act::Take | Act::DieAfter => {
                let body = serde_json::from_slice(envelope.body).unwrap();
                lock(&self.0).taken.push((envelope.id.to_owned(), body));
            }
        }
        if let Act::DieAfter = act {
            panic!("killed after event {}", envelope.id);
        }
        Ok(())
    }
}

pub fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("u-{n}")).collect()
}

pub fn later(message: &str) -> Act {
    Act::Fail(Undelivered::Later {
        error: Error::new(ErrorKind::Server, message),
        answer: "busy".into(),
    })
}

pub fn never(message: &str) -> Act {
    Act::Fail(Undelivered::Never {
        error: Error::new(ErrorKind::InvalidInput, message),
        answer: "no such field".into(),
    })
}

pub fn forwarder(log: &Path, taker: &Taker) -> Forwarder {
    Forwarder::new(log, taker.clone()).clock(ManualClock::new())
}

/// One run over all that is there.
pub fn run(log: &Path, taker: &Taker) -> Result<ForwardReport, Error> {
    forwarder(log, taker).run(&Cancel::new())
}
