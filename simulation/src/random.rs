//! Every choice of a schedule, from its seed.

use std::cell::Cell;

/// SplitMix64, as the library's jitter.
pub(super) struct Random(Cell<u64>);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(Cell::new(
            seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5DEE_CE66,
        ))
    }

    pub(super) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From zero to `n`, without `n`.
    pub(super) fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn index(&self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    pub(super) fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn of<T: Copy>(&self, all: &[T]) -> T {
        all[self.index(all.len())]
    }
}
