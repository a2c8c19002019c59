//! Who is told of an update, when and in which order: events, hooks, subscriptions, audit, metrics.

mod audit;
mod callbacks;
mod events;
mod metrics;
mod subscriptions;

use std::collections::HashMap;

use std::io;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::sync::{Arc, Barrier, Mutex, mpsc};

use std::thread;

use genesys_attributes::audit::{AuditMode, AuditPhase, AuditRecord, AuditSink, JsonLines};
use genesys_attributes::clock::Clock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::Response;
use genesys_attributes::{
    Attributes, Client, ErrorKind, Outcome, RetryPolicy, Status, Target, Update, UpdateEvent,
};

use serde_json::{Value, json};

use crate::fake::{AlarmClock, Fake, Gate, PATIENCE, json_response, lock, ms, says, secs};
use crate::memory::Memory;

fn update() -> Update {
    Update::conversation("c-1").set("tier", "gold")
}

/// Something written down by many.
#[derive(Clone, Default)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    fn new() -> Log<T> {
        Log(Arc::default())
    }

    fn push(&self, entry: T) {
        lock(&self.0).push(entry);
    }

    fn all(&self) -> Vec<T> {
        lock(&self.0).clone()
    }
}

type Events = Log<UpdateEvent>;

impl Events {
    fn hook(&self) -> impl Fn(&UpdateEvent) + Send + Sync + 'static {
        let log = self.clone();
        move |event| log.push(event.clone())
    }
}

/// An audit sink that keeps what it gets, and fails as it is told.
#[derive(Clone, Default)]
struct Sink {
    records: Arc<Mutex<Vec<AuditRecord>>>,
    flushes: Arc<AtomicUsize>,
    fails: Option<(AuditPhase, Failing)>,
    fails_to_flush: Option<Failing>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    Error,
    Panic,
}

use Failing::{Error, Panic};

impl Failing {
    fn fail(self) -> io::Result<()> {
        match self {
            Error => Err(io::Error::other("disk full")),
            Panic => panic!("the sink panics on purpose"),
        }
    }
}

impl Sink {
    fn new() -> Sink {
        Sink::default()
    }

    fn failing(phase: AuditPhase, how: Failing) -> Sink {
        Sink {
            fails: Some((phase, how)),
            ..Sink::default()
        }
    }

    fn records(&self) -> Vec<AuditRecord> {
        lock(&self.records).clone()
    }
}

impl AuditSink for Sink {
    fn record(&self, record: &AuditRecord) -> io::Result<()> {
        match self.fails {
            Some((phase, how)) if phase == record.phase => how.fail(),
            _ => {
                lock(&self.records).push(record.clone());
                Ok(())
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.fails_to_flush.map_or(Ok(()), Failing::fail)
    }
}

/// One way that an update can go: its script, the update, what came of it.
type Way = (
    &'static str,
    fn(&Fake),
    Update,
    Result<Outcome, ErrorKind>,
    bool,
);

/// The ways, with whether a write was begun.
fn ways() -> Vec<Way> {
    vec![
        (
            "applied",
            |f| {
                f.token().get(7).patch(8);
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "applied, unreadable",
            |f| {
                f.token()
                    .get(7)
                    .answer("PATCH", Response::new(200).with_broken_body("cut"));
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "applied after a conflict and a fault",
            |f| {
                f.token()
                    .get(7)
                    .status("PATCH", 412)
                    .get(8)
                    .status("PATCH", 503)
                    .patch(9);
            },
            update(),
            Ok(Outcome::Applied),
            true,
        ),
        (
            "already applied",
            |f| {
                f.token()
                    .get(7)
                    .fault("PATCH", ErrorKind::Transport, Sent::Maybe)
                    .status("PATCH", 412)
                    .get_with(8, json!({ "tier": "gold" }));
            },
            update(),
            Ok(Outcome::AlreadyApplied),
            true,
        ),
        (
            "unchanged",
            |f| {
                f.token().get_with(7, json!({ "tier": "gold" }));
            },
            update().skip_unchanged(),
            Ok(Outcome::Unchanged),
            false,
        ),
        (
            "invalid",
            |_| {},
            Update::conversation("c-1"),
            Err(ErrorKind::InvalidInput),
            false,
        ),
        (
            "not found",
            |f| {
                f.token().status("GET", 404);
            },
            update(),
            Err(ErrorKind::NotFound),
            false,
        ),
        (
            "guarded",
            |f| {
                f.token()
                    .get_body(json!({ "version": 7, "state": "terminated" }));
            },
            update().set("system.a", 1),
            Err(ErrorKind::InvalidInput),
            false,
        ),
        (
            "forbidden",
            |f| {
                f.token().get(7).status("PATCH", 403);
            },
            update(),
            Err(ErrorKind::Forbidden),
            true,
        ),
        (
            "unclear to the end",
            |f| {
                f.token().get(7);
                for _ in 0..4 {
                    f.fault("PATCH", ErrorKind::Timeout, Sent::Maybe);
                }
            },
            update(),
            Err(ErrorKind::Timeout),
            true,
        ),
        (
            "conflict",
            |f| {
                f.token().status("PATCH", 412);
            },
            update().if_version("7"),
            Err(ErrorKind::Conflict),
            true,
        ),
        (
            "a panic",
            |f| {
                f.token().get(7).panics("PATCH");
            },
            update(),
            Err(ErrorKind::Internal),
            true,
        ),
    ]
}
