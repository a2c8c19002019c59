//! Jitter: small random numbers, from a seed of the system's or of the caller's.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use crate::util::clock::{Clock, SystemClock};

/// Where the jitter of each call starts.
#[derive(Debug)]
pub(crate) struct Seeds(AtomicU64);

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Seeds {
    /// From a given seed, or from a random one.
    pub(crate) fn new(seed: Option<u64>) -> Seeds {
        Seeds(AtomicU64::new(seed.unwrap_or_else(random)))
    }

    pub(crate) fn next(&self) -> Random {
        Random(self.0.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// A number from the system's randomness, which std has for its hash maps only.
///
/// Forked processes share what std keeps of it, so their ids and the time are mixed in.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let since = SystemClock.wall().duration_since(UNIX_EPOCH);
    hasher.write_u128(since.unwrap_or_default().as_nanos());
    hasher.finish()
}

/// A name that no other call in this process gets, and in practice none in another.
pub(crate) fn unique_name() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:016x}-{call:x}", std::process::id(), random())
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
