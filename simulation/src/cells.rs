//! What a schedule is made of: its random choices, and values that one thread after the other changes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A value that is shared by the threads of a schedule, of which only one runs at a time.
#[derive(Default)]
pub struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Shared<T> {
        Shared(RwLock::new(value))
    }

    pub fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn borrow_mut(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> T
    where
        T: Default,
    {
        std::mem::take(&mut self.borrow_mut())
    }
}

/// A number that is shared in the same way.
#[derive(Default)]
pub struct Number(AtomicU64);

impl Number {
    pub fn new(value: u64) -> Number {
        Number(AtomicU64::new(value))
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}

/// SplitMix64: every choice of a schedule, from its seed.
pub struct Random(Number);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Number::new(
            seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5DEE_CE66,
        ))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From zero to `n`, without `n`.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn index(&self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    pub fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn of<T: Copy>(&self, all: &[T]) -> T {
        all[self.index(all.len())]
    }
}
