//! Telling others what was changed: closures, and bounded channels.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::warn;
use serde::Serialize;
use serde_json::{Value, json};

use crate::audit::AuditRecord;
use crate::clock::lock;
use crate::metrics::Counters;
use crate::validate::Attributes;

/// An update that was applied: what the brief's listeners get.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UpdateEvent {
    /// Counts the events of one client, from 1, for each conversation in the order of its writes.
    /// Subscriptions get them in that order. Hooks run on the threads that update: where several
    /// update one conversation at the same moment, their hooks may overlap, and this tells the
    /// order.
    pub sequence: u64,
    /// The conversation's id.
    pub conversation_id: String,
    /// The kind of the target, such as `"participant"`.
    pub target: &'static str,
    /// The participant that was written, or the custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The attributes as they were written. Empty for secure attributes, unless the client was
    /// told otherwise by
    /// [`secure_values_in_events`](crate::ClientBuilder::secure_values_in_events).
    pub attributes: Attributes,
    /// The keys that were set.
    pub updated_keys: Vec<String>,
    /// The keys that were removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_keys: Vec<String>,
    /// The version that the write made, where the platform tells it.
    pub version: Option<String>,
    /// The version that the write was based on.
    pub previous_version: Option<String>,
    /// From the first request of the update to the end of the last, in milliseconds.
    pub latency_ms: u64,
    /// When the update was done: RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// The outcome as it was audited.
    #[serde(rename = "auditLog")]
    pub audit: AuditRecord,
}

impl UpdateEvent {
    /// The brief's webhook envelope: `eventType` and a `payload` of `conversationId`,
    /// `updatedAttributes`, `version` and `processedAt`.
    ///
    /// For secure attributes `updatedAttributes` is empty and `updatedKeys` lists the keys.
    pub fn webhook_payload(&self) -> Value {
        let mut payload = json!({
            "conversationId": self.conversation_id,
            "updatedAttributes": self.attributes,
            "version": self.version,
            "processedAt": self.timestamp,
        });
        if self.attributes.is_empty() {
            payload["updatedKeys"] = json!(self.updated_keys);
        }
        if !self.removed_keys.is_empty() {
            payload["removedKeys"] = json!(self.removed_keys);
        }
        json!({ "eventType": "CONVERSATION_ATTRIBUTES_UPDATED", "payload": payload })
    }
}

/// An event as a [`Subscription`] delivers it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// The event. `Delivery` dereferences to it.
    pub event: Arc<UpdateEvent>,
    /// How many events this subscription lost since the one before, because it was full.
    pub lost_before: u64,
}

impl Deref for Delivery {
    type Target = UpdateEvent;

    fn deref(&self) -> &UpdateEvent {
        &self.event
    }
}

/// The receiving end of a bounded channel of events.
///
/// When it is full, new events are dropped and counted, and the next one that fits tells how many.
/// Dropping it ends the subscription; events that wait in it then are counted and logged. It holds
/// no lock and never slows an update down.
pub struct Subscription {
    receiver: Receiver<Delivery>,
    lost: Arc<AtomicU64>,
    closed: AtomicBool,
    counters: Arc<Counters>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("lost", &self.lost())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // No more than fit, since others may go on sending meanwhile.
        let unread = self.receiver.try_iter().take(MOST_PLACES).count();
        if unread > 0 {
            self.counters.events_dropped.add(unread as u64);
            warn!("a subscription ended with {unread} events unread");
        }
    }
}

/// The largest capacity of a subscription.
const MOST_PLACES: usize = 1 << 16;

impl Subscription {
    /// Waits for the next event. `None` when the client and all of its clones are gone.
    pub fn recv(&self) -> Option<Delivery> {
        let received = self.receiver.recv().ok();
        self.closed.fetch_or(received.is_none(), Ordering::Relaxed);
        received
    }

    /// Waits for the next event, for `timeout` at most. `None` when none came.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Delivery> {
        let received = self.receiver.recv_timeout(timeout);
        let closed = matches!(received, Err(RecvTimeoutError::Disconnected));
        self.closed.fetch_or(closed, Ordering::Relaxed);
        received.ok()
    }

    /// The next event, if one is there already.
    pub fn try_recv(&self) -> Option<Delivery> {
        let received = self.receiver.try_recv();
        let closed = matches!(received, Err(TryRecvError::Disconnected));
        self.closed.fetch_or(closed, Ordering::Relaxed);
        received.ok()
    }

    /// Whether a receive found that the client is gone and every event was taken: no more will
    /// come.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// How many events were lost so far, those that no delivery has told of yet included.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The events as they come, until the client is gone.
    pub fn iter(&self) -> impl Iterator<Item = Delivery> + '_ {
        std::iter::from_fn(|| self.recv())
    }
}

pub(crate) type Hook = Box<dyn Fn(&UpdateEvent) + Send + Sync>;

struct Subscriber {
    sender: SyncSender<Delivery>,
    /// Lost since the last delivery.
    gap: u64,
    lost: Arc<AtomicU64>,
}

/// Everybody who wants to know.
#[derive(Default)]
pub(crate) struct Listeners {
    hooks: Vec<Hook>,
    subscribers: Mutex<Vec<Subscriber>>,
    /// Spares an update without listeners the making of an event.
    subscribed: AtomicBool,
    sequence: AtomicU64,
}

impl Listeners {
    pub(crate) fn new(hooks: Vec<Hook>) -> Listeners {
        Listeners {
            hooks,
            ..Listeners::default()
        }
    }

    pub(crate) fn subscribe(&self, capacity: usize, counters: Arc<Counters>) -> Subscription {
        // A channel of none would only ever deliver to a receiver that waits at that moment; and
        // all places are allocated at once.
        let capacity = capacity.clamp(1, MOST_PLACES);
        let (sender, receiver) = std::sync::mpsc::sync_channel(capacity);
        let lost = Arc::new(AtomicU64::new(0));
        lock(&self.subscribers).push(Subscriber {
            sender,
            gap: 0,
            lost: lost.clone(),
        });
        self.subscribed.store(true, Ordering::Release);
        Subscription {
            receiver,
            lost,
            closed: AtomicBool::new(false),
            counters,
        }
    }

    /// Whether there is anybody to tell.
    pub(crate) fn any(&self) -> bool {
        !self.hooks.is_empty() || self.subscribed.load(Ordering::Acquire)
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Calls every hook, in the order of their registration. Returns how many panicked.
    pub(crate) fn run_hooks(&self, event: &UpdateEvent, counters: &Counters) -> u32 {
        let mut panics = 0;
        for hook in &self.hooks {
            if catch_unwind(AssertUnwindSafe(|| hook(event))).is_err() {
                panics += 1;
                counters.hook_panics.increment();
                warn!(
                    "an update hook panicked on conversation {}; the update itself is applied",
                    event.conversation_id
                );
            }
        }
        panics
    }

    /// Puts the event into every subscription. It never waits, so it is done while the
    /// conversation's turn is held, which keeps the order of the writes.
    pub(crate) fn deliver(&self, event: &Arc<UpdateEvent>, counters: &Counters) {
        if !self.subscribed.load(Ordering::Acquire) {
            return;
        }
        let mut subscribers = lock(&self.subscribers);
        subscribers.retain_mut(|subscriber| {
            let delivery = Delivery {
                event: event.clone(),
                lost_before: subscriber.gap,
            };
            match subscriber.sender.try_send(delivery) {
                Ok(()) => subscriber.gap = 0,
                Err(TrySendError::Full(_)) => {
                    if subscriber.gap == 0 {
                        warn!("a subscription is full: events are dropped until it is read");
                    }
                    subscriber.gap += 1;
                    subscriber.lost.fetch_add(1, Ordering::Relaxed);
                    counters.events_dropped.increment();
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
            true
        });
        self.subscribed
            .store(!subscribers.is_empty(), Ordering::Release);
    }
}
