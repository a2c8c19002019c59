//! Locks that survive a panic elsewhere, waits on them, and the flag that ends work early.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

// In `loom/` every order in which threads can take these is tried.
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};

/// A mutex whose data is consistent at every step, so that a panic elsewhere changes nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on a condition variable for `limit` at most; without one until it is notified. With a
/// `cancel` it returns now and then, for the caller to look at it.
pub(crate) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Option<Duration>,
    cancel: Option<&Cancel>,
) -> MutexGuard<'a, T> {
    let limit = match cancel {
        None => limit,
        Some(_) => Some(limit.map_or(SLICE, |limit| limit.min(SLICE))),
    };
    match limit {
        None => condition
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner),
        Some(limit) => {
            condition
                .wait_timeout(guard, limit)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
    }
}

/// Drops the payload of a panic, which is code of the caller's and may panic in turn.
pub(crate) fn discard(payload: Box<dyn std::any::Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

/// A waiting thread cannot be woken by a [`Cancel`], so it looks up this often.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// A flag that ends work early. Clones share it.
///
/// Work that was told to stop finishes the request it has in flight, ends a wait within a tenth of
/// a second, and starts nothing new.
///
/// ```
/// use genesys_attributes::Cancel;
///
/// let cancel = Cancel::new();
/// let elsewhere = cancel.clone(); // for another thread
/// elsewhere.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// A flag that something else sets: a signal handler, say.
impl From<Arc<AtomicBool>> for Cancel {
    fn from(flag: Arc<AtomicBool>) -> Cancel {
        Cancel(flag)
    }
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error once the flag is set.
    pub(crate) fn check(cancel: Option<&Cancel>) -> Result<()> {
        match cancel {
            Some(cancel) if cancel.is_cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "cancelled by the caller"))
            }
            _ => Ok(()),
        }
    }
}
