//! Jitter: small random numbers, from a seed of the system's or of the caller's.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where the jitter of each call starts.
#[derive(Debug)]
pub(crate) struct Seeds(AtomicU64);

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Seeds {
    /// From a given seed, or from the only randomness that std offers.
    pub(crate) fn new(seed: Option<u64>) -> Seeds {
        let seed = seed.unwrap_or_else(|| {
            std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish()
        });
        Seeds(AtomicU64::new(seed))
    }

    pub(crate) fn next(&self) -> Random {
        Random(self.0.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// Steele, Lea and Flood's SplitMix64: enough for jitter, and eight bytes of state.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A random duration from zero to `most`, both included: full jitter.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let scaled = (u128::from(self.next()) * (u128::from(nanos) + 1)) >> 64;
        Duration::from_nanos(scaled as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_covers_its_whole_range() {
        let mut random = Random(42);
        let most = Duration::from_nanos(3);
        let mut seen = [false; 4];
        for _ in 0..200 {
            seen[random.up_to(most).as_nanos() as usize] = true;
        }
        assert_eq!(seen, [true; 4]);
    }

    #[test]
    fn jitter_with_a_seed_repeats() {
        let draw = || {
            let seeds = Seeds::new(Some(7));
            [(); 4].map(|()| seeds.next().up_to(Duration::from_secs(1)))
        };
        assert_eq!(draw(), draw());
    }
}
