//! Which conversations are held by a callback, so that a call which that callback waits for is
//! refused instead of waiting back.
//!
//! Some languages run a callback on another thread than the one that called C. The conversation's
//! lock does not know that thread.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{ThreadId, current};

use super::boundary::invalid;
use crate::error::Result;
use crate::update::execute::limit_nesting;
use crate::util::sync::{Cancel, SLICE, lock};

/// The time, in tenths of a second, that a call waits for a callback which may wait for that call.
const LIMIT: u32 = if cfg!(test) { 1 } else { 50 };

/// The `compute` and `on_audit` callbacks of a client that run now.
#[derive(Default)]
pub(super) struct Calling {
    callbacks: Mutex<Callbacks>,
    ended: Condvar,
}

#[derive(Default)]
struct Callbacks {
    begun: u64,
    running: Vec<Running>,
}

struct Running {
    number: u64,
    conversation: String,
    thread: ThreadId,
}

impl Calling {
    /// Runs a callback that holds this conversation.
    pub(super) fn during<R>(&self, conversation: &str, callback: impl FnOnce() -> R) -> R {
        let mut callbacks = lock(&self.callbacks);
        let number = callbacks.begun;
        callbacks.begun += 1;
        callbacks.running.push(Running {
            number,
            conversation: conversation.to_owned(),
            thread: current().id(),
        });
        drop(callbacks);
        // The callback is C: it does not unwind.
        let result = callback();
        lock(&self.callbacks)
            .running
            .retain(|running| running.number != number);
        self.ended.notify_all();
        result
    }

    /// Refuses an update or a batch on a thread that runs a callback: it could wait for itself.
    pub(super) fn refuse_callback(&self) -> Result<()> {
        let here = current().id();
        let inside = |running: &Running| running.thread == here;
        if lock(&self.callbacks).running.iter().any(inside) {
            return Err(invalid(
                "a compute or on_audit callback must not update through the same client: do it \
                 after the update",
            ));
        }
        limit_nesting()
    }

    /// Lets an update of this conversation begin, once no callback holds it on another thread.
    pub(super) fn begin(&self, conversation: &str, cancel: Option<&Cancel>) -> Result<()> {
        self.refuse_callback()?;
        let mut callbacks = lock(&self.callbacks);
        let now = callbacks.begun;
        for _ in 0..LIMIT {
            Cancel::check(cancel)?;
            let (again, waited) = self
                .ended
                .wait_timeout_while(callbacks, SLICE, |callbacks| {
                    let holds = |running: &Running| running.conversation == conversation;
                    let mut before = callbacks.running.iter().filter(|held| held.number < now);
                    before.any(holds)
                })
                .unwrap_or_else(PoisonError::into_inner);
            if !waited.timed_out() {
                return Ok(());
            }
            callbacks = again;
        }
        Err(invalid(format!(
            "a compute or on_audit callback has held this conversation for {} s and may be waiting \
             for this call: update the conversation after the callback returned",
            (SLICE * LIMIT).as_secs()
        ))
        .with_transient(true))
    }
}
