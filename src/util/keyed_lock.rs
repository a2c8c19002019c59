//! One update of a conversation at a time: a lock for each key, first come, first served.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::util::clock::Clock;
use crate::util::sync::{Cancel, Condvar, Mutex, lock, wait};

/// Threads that work on different keys rarely meet in one of these.
const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };

/// A lock for each key. A released one is handed to the thread that waits longest, and only that
/// thread is woken.
pub(crate) struct KeyedLock {
    shards: [Mutex<Vec<Held>>; SHARDS],
}

struct Held {
    key: String,
    waiters: VecDeque<Arc<Waiter>>,
}

/// A thread that waits. Its `granted` is read and written under the shard's lock.
struct Waiter {
    granted: AtomicBool,
    woken: Condvar,
}

/// The locks of which a thread holds a key.
type HeldHere = RefCell<Vec<*const KeyedLock>>;

#[cfg(not(loom))]
thread_local! {
    static HELD_HERE: HeldHere = const { RefCell::new(Vec::new()) };
}
#[cfg(loom)]
loom::thread_local! {
    static HELD_HERE: HeldHere = RefCell::new(Vec::new());
}

/// The exclusive right to a key, until it is dropped. It stays on its thread.
pub(crate) struct KeyGuard<'a> {
    owner: &'a KeyedLock,
    key: &'a str,
    waited_since: Option<Instant>,
    _stays: std::marker::PhantomData<*const ()>,
}

impl Default for KeyedLock {
    fn default() -> KeyedLock {
        KeyedLock {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl KeyedLock {
    /// Waits for the key, for `limit` at most.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when this thread holds a key already: it is inside of an `update_with`
    /// closure, say, and waiting could be for itself. `Timeout`, `Cancelled`.
    pub(crate) fn acquire<'a>(
        &'a self,
        key: &'a str,
        clock: &dyn Clock,
        limit: Duration,
        cancel: Option<&Cancel>,
    ) -> Result<KeyGuard<'a>> {
        if HELD_HERE.with(|held| held.borrow().contains(&std::ptr::from_ref(self))) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "code that is called from inside of an update (an update_with closure, an audit \
                 sink, a transport) must not update through the same client: do it after the \
                 update",
            ));
        }
        let shard = self.shard(key);
        let mut held = lock(shard);
        let mut waited_since = None;
        match held.iter_mut().find(|held| held.key == key) {
            None => held.push(Held {
                key: key.to_owned(),
                waiters: VecDeque::new(),
            }),
            Some(busy) => {
                let waiter = Arc::new(Waiter {
                    granted: false.into(),
                    woken: Condvar::new(),
                });
                busy.waiters.push_back(waiter.clone());
                drop(held);
                // A clock of the caller's may panic: the key must not be granted to nobody.
                let mut queued = Queued {
                    owner: self,
                    key,
                    waiter,
                    granted: false,
                };
                let begun = clock.now();
                queued.await_grant(begun + limit, clock, cancel)?;
                waited_since = Some(begun);
            }
        }
        HELD_HERE.with(|held| held.borrow_mut().push(self));
        Ok(KeyGuard {
            owner: self,
            key,
            waited_since,
            _stays: std::marker::PhantomData,
        })
    }

    /// Hands the key to the thread that waits longest.
    fn hand_on(&self, key: &str) {
        let mut held = lock(self.shard(key));
        let Some(at) = held.iter().position(|held| held.key == key) else {
            return;
        };
        match held[at].waiters.pop_front() {
            Some(next) => {
                next.granted.store(true, Relaxed);
                drop(held);
                next.woken.notify_one();
            }
            None => {
                held.swap_remove(at);
            }
        }
    }

    fn shard(&self, key: &str) -> &Mutex<Vec<Held>> {
        // FNV-1a: it spreads, and that is all it has to do.
        let hash = key.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl KeyGuard<'_> {
    /// Since when this thread waited for the key, if it had to.
    pub(crate) fn waited_since(&self) -> Option<Instant> {
        self.waited_since
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        HELD_HERE.with(|held| {
            let mut held = held.borrow_mut();
            let of_owner = |lock: &*const KeyedLock| std::ptr::eq(*lock, self.owner);
            if let Some(at) = held.iter().position(of_owner) {
                held.swap_remove(at);
            }
        });
        self.owner.hand_on(self.key);
    }
}

/// A place in the queue for a key.
struct Queued<'a> {
    owner: &'a KeyedLock,
    key: &'a str,
    waiter: Arc<Waiter>,
    /// The key is this thread's.
    granted: bool,
}

impl Queued<'_> {
    fn await_grant(
        &mut self,
        deadline: Instant,
        clock: &dyn Clock,
        cancel: Option<&Cancel>,
    ) -> Result<()> {
        // A clock that is moved by hand does not wake a condition variable.
        const LOOK_UP: Duration = Duration::from_secs(1);

        loop {
            let left = deadline.saturating_duration_since(clock.now());
            let held = lock(self.owner.shard(self.key));
            if self.waiter.granted.load(Relaxed) {
                self.granted = true;
                return Ok(());
            }
            Cancel::check(cancel)?;
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "another update of this conversation was still under way when the deadline \
                     passed: update a conversation from fewer threads, or give a longer deadline",
                ));
            }
            drop(wait(
                &self.waiter.woken,
                held,
                Some(left.min(LOOK_UP)),
                cancel,
            ));
        }
    }
}

/// Leaves the queue; a key that was granted meanwhile goes to the next one.
impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        let mut held = lock(self.owner.shard(self.key));
        if self.waiter.granted.load(Relaxed) {
            drop(held);
            self.owner.hand_on(self.key);
        } else if let Some(busy) = held.iter_mut().find(|held| held.key == self.key) {
            busy.waiters
                .retain(|other| !Arc::ptr_eq(other, &self.waiter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::clock::{ManualClock, SystemClock};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn keyed_lock_same_key_is_exclusive_and_leaves_nothing_behind() {
        let locks = KeyedLock::default();
        let inside = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _held = locks.acquire("c", &SystemClock, LONG, None).unwrap();
                        let mut inside = inside.try_lock().expect("alone");
                        *inside += 1;
                    }
                });
            }
        });
        assert_eq!(*lock(&inside), 1_600);
        assert!(locks.shards.iter().all(|shard| lock(shard).is_empty()));
    }

    #[test]
    fn keyed_lock_waiters_are_served_in_the_order_they_came() {
        let locks = KeyedLock::default();
        let order = Mutex::new(Vec::new());
        let first = locks.acquire("c", &SystemClock, LONG, None).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (locks, order) = (&locks, &order);
                scope.spawn(move || {
                    let _held = locks.acquire("c", &SystemClock, LONG, None).unwrap();
                    lock(order).push(n);
                });
                // The next one starts when this one waits.
                while lock(locks.shard("c"))[0].waiters.len() <= n {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*lock(&order), Vec::from_iter(0..8));
    }

    #[test]
    fn keyed_lock_waiting_past_the_limit_is_a_timeout_and_frees_its_place() {
        let clock = ManualClock::new();
        let locks = KeyedLock::default();
        let held = locks.acquire("c", &clock, LONG, None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let error = locks.acquire("c", &clock, Duration::ZERO, None).err();
                error.map(|e| e.kind())
            });
            assert_eq!(waiting.join().unwrap(), Some(ErrorKind::Timeout));
            let cancelled = scope.spawn(|| {
                let cancel = Cancel::new();
                cancel.cancel();
                let error = locks.acquire("c", &clock, LONG, Some(&cancel)).err();
                error.map(|e| e.kind())
            });
            assert_eq!(cancelled.join().unwrap(), Some(ErrorKind::Cancelled));
        });
        assert!(lock(locks.shard("c"))[0].waiters.is_empty());
        drop(held);
        assert!(locks.acquire("c", &clock, LONG, None).is_ok());
    }

    #[test]
    fn keyed_lock_second_key_on_one_thread_is_refused() {
        let locks = KeyedLock::default();
        let kind = |key| {
            let error = locks.acquire(key, &SystemClock, LONG, None).err();
            error.map(|e| e.kind())
        };
        let held = locks.acquire("a", &SystemClock, LONG, None).unwrap();
        assert_eq!(kind("a"), Some(ErrorKind::InvalidInput));
        assert_eq!(kind("b"), Some(ErrorKind::InvalidInput));
        let other = KeyedLock::default();
        assert!(other.acquire("a", &SystemClock, LONG, None).is_ok());
        drop(held);
        assert_eq!(kind("b"), None);
    }

    #[test]
    fn keyed_lock_clock_that_panics_leaves_the_queue() {
        #[derive(Debug)]
        struct Broken;
        impl Clock for Broken {
            fn now(&self) -> Instant {
                panic!("on purpose")
            }
            fn wall(&self) -> std::time::SystemTime {
                std::time::UNIX_EPOCH
            }
            fn sleep(&self, _: Duration) {}
        }
        let locks = KeyedLock::default();
        let held = locks.acquire("c", &SystemClock, LONG, None).unwrap();
        let broken = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(locks.acquire("c", &Broken, LONG, None)));
            waiting.join()
        });
        assert!(broken.is_err());
        assert!(lock(locks.shard("c"))[0].waiters.is_empty());
        drop(held);
        drop(locks.acquire("c", &SystemClock, LONG, None).unwrap());
    }
}
