//! Telling others what was changed: closures, and bounded channels.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::warn;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::audit::AuditRecord;
use crate::report::metrics::Counters;
use crate::util::process::Process;
use crate::util::sync::{discard, lock};
use crate::values::attributes::Attributes;

/// An update that was applied.
///
/// It dereferences to the [`AuditRecord`] of the outcome: `event.conversation_id`, `event.version`,
/// `event.latency`. `Debug` shows keys, and no values.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UpdateEvent {
    /// Counts the events of one client, from 1, for each conversation in the order of its writes.
    /// Subscriptions get them in that order. Hooks run on the threads that update: where several
    /// update one conversation at the same moment, their hooks may overlap, and this gives the
    /// order.
    pub sequence: u64,
    /// The attributes as they were written. Empty for secure attributes, unless the client was
    /// told otherwise by
    /// [`secure_values_in_events`](crate::ClientBuilder::secure_values_in_events).
    pub attributes: Attributes,
    pub(crate) audit_log: AuditRecord,
}

impl Deref for UpdateEvent {
    type Target = AuditRecord;

    fn deref(&self) -> &AuditRecord {
        &self.audit_log
    }
}

impl UpdateEvent {
    /// The keys that were set, those of secure attributes too.
    pub fn updated_keys(&self) -> &[String] {
        &self.audit_log.updated_keys
    }

    /// The webhook envelope, as of [`AuditRecord::webhook_payload`], with the values of
    /// [`attributes`](UpdateEvent::attributes).
    pub fn webhook_payload(&self) -> Value {
        self.audit_log.envelope(Some(&self.attributes))
    }

    /// The outcome as it is audited.
    pub fn audit(&self) -> &AuditRecord {
        &self.audit_log
    }
}

impl fmt::Debug for UpdateEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateEvent")
            .field("sequence", &self.sequence)
            .field("audit_log", &self.audit_log)
            .finish_non_exhaustive()
    }
}

/// `id`, `sequence`, `conversationId`, `target`, `resourceId`, `attributes`, `updatedKeys`,
/// `removedKeys`, `version`, `previousVersion`, `latencyMs`, `timestamp` and `auditLog`.
impl Serialize for UpdateEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("sequence", &self.sequence)?;
        map.serialize_entry("conversationId", &self.conversation_id)?;
        map.serialize_entry("target", &self.target)?;
        if let Some(id) = &self.resource_id {
            map.serialize_entry("resourceId", id)?;
        }
        map.serialize_entry("attributes", &self.attributes)?;
        map.serialize_entry("updatedKeys", self.updated_keys())?;
        if !self.removed_keys.is_empty() {
            map.serialize_entry("removedKeys", &self.removed_keys)?;
        }
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("previousVersion", &self.previous_version)?;
        map.serialize_entry("latencyMs", &crate::util::date::whole_millis(self.latency))?;
        map.serialize_entry("timestamp", &crate::util::date::rfc3339(self.timestamp))?;
        map.serialize_entry("auditLog", &self.audit_log)?;
        map.end()
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
/// When it is full, new events are dropped and counted, and the next one that fits holds their number.
/// Dropping it ends the subscription; events that wait in it then are counted and logged. A full
/// or slow one does not hold an update up.
#[must_use = "a subscription that is dropped ends"]
pub struct Subscription {
    process: Process,
    /// `None` once it is leaked.
    receiver: Option<Receiver<Delivery>>,
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
        let Some(receiver) = self.receiver() else {
            // A forked child leaks it: it may hold locks that no thread of the child frees.
            std::mem::forget(self.receiver.take());
            return;
        };
        // No more than fit, since others may go on sending meanwhile.
        let unread = receiver.try_iter().take(MAX_PLACES).count();
        if unread > 0 {
            self.counters.events_dropped.add(unread as u64);
            warn!("a subscription ended with {unread} events unread");
        }
    }
}

/// The largest capacity of a subscription.
const MAX_PLACES: usize = 1 << 16;

impl Subscription {
    /// The channel, which a forked child must not touch.
    fn receiver(&self) -> Option<&Receiver<Delivery>> {
        self.receiver.as_ref().filter(|_| self.process.is_current())
    }

    /// Waits for the next event. `None` when the client and all of its clones are gone, and in a
    /// forked child.
    pub fn recv(&self) -> Option<Delivery> {
        let received = self.receiver().and_then(|receiver| receiver.recv().ok());
        self.closed.fetch_or(received.is_none(), Ordering::Relaxed);
        received
    }

    /// Waits for the next event, for `timeout` at most. `None` when none came.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Delivery> {
        let disconnected = Err(RecvTimeoutError::Disconnected);
        let receiver = self.receiver();
        let received = receiver.map_or(disconnected, |r| r.recv_timeout(timeout));
        let closed = matches!(received, Err(RecvTimeoutError::Disconnected));
        self.closed.fetch_or(closed, Ordering::Relaxed);
        received.ok()
    }

    /// The next event, if one is there already.
    pub fn try_recv(&self) -> Option<Delivery> {
        let disconnected = Err(TryRecvError::Disconnected);
        let received = self.receiver().map_or(disconnected, Receiver::try_recv);
        let closed = matches!(received, Err(TryRecvError::Disconnected));
        self.closed.fetch_or(closed, Ordering::Relaxed);
        received.ok()
    }

    /// Whether a receive found that the client is gone and every event was taken: no more will
    /// come.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// How many events were lost so far, those that no delivery has reported yet included.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The events as they come, until the client is gone.
    ///
    /// ```no_run
    /// # let client = genesys_attributes::Client::from_env()?;
    /// let events = client.subscribe(1_000);
    /// std::thread::spawn(move || {
    ///     for event in events {
    ///         println!("{} is at version {:?}", event.conversation_id, event.version);
    ///     }
    /// });
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Delivery> + '_ {
        std::iter::from_fn(|| self.recv())
    }
}

impl IntoIterator for Subscription {
    type Item = Delivery;
    type IntoIter = IntoIter;

    /// The events as they come, until the client is gone.
    fn into_iter(self) -> IntoIter {
        IntoIter(self)
    }
}

/// The events of a [`Subscription`], as an iterator that owns it.
#[derive(Debug)]
pub struct IntoIter(Subscription);

impl Iterator for IntoIter {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        self.0.recv()
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

    /// `process` made the client.
    pub(crate) fn subscribe(
        &self,
        capacity: usize,
        counters: Arc<Counters>,
        process: Process,
    ) -> Subscription {
        // A channel of none would only ever deliver to a receiver that waits at that moment; and
        // all places are allocated at once.
        let capacity = capacity.clamp(1, MAX_PLACES);
        let (sender, receiver) = std::sync::mpsc::sync_channel(capacity);
        let lost = Arc::new(AtomicU64::new(0));
        if process.is_current() {
            lock(&self.subscribers).push(Subscriber {
                sender,
                gap: 0,
                lost: lost.clone(),
            });
            self.subscribed.store(true, Ordering::Release);
        }
        Subscription {
            process: Process::current(),
            receiver: Some(receiver),
            lost,
            closed: AtomicBool::new(false),
            counters,
        }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Calls every hook, in the order of their registration. Returns how many panicked.
    pub(crate) fn run_hooks(&self, event: &UpdateEvent, counters: &Counters) -> u32 {
        let mut panics = 0;
        for hook in &self.hooks {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| hook(event))) {
                discard(payload);
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

    /// Whether there is any listener.
    pub(crate) fn any(&self) -> bool {
        !self.hooks.is_empty() || self.has_subscribers()
    }

    /// Whether somebody is to be sent events of their own.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.subscribed.load(Ordering::Acquire)
    }

    /// Puts the event into every subscription. It does not wait, so it is done while the
    /// conversation's lock is held, which keeps the order of the writes.
    pub(crate) fn deliver(&self, event: UpdateEvent, counters: &Counters) {
        let event = Arc::new(event);
        let mut newly_full = 0;
        {
            let mut subscribers = lock(&self.subscribers);
            subscribers.retain_mut(|subscriber| {
                let delivery = Delivery {
                    event: event.clone(),
                    lost_before: subscriber.gap,
                };
                match subscriber.sender.try_send(delivery) {
                    Ok(()) => subscriber.gap = 0,
                    Err(TrySendError::Full(_)) => {
                        newly_full += usize::from(subscriber.gap == 0);
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
        // Outside of the lock: a logger may subscribe.
        for _ in 0..newly_full {
            warn!("a subscription is full: events are dropped until it is read");
        }
    }
}
