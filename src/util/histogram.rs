//! Durations counted in fixed buckets: log-linear, lock-free, of constant size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Every power of two is cut into this many equal buckets, so a bucket is at most 1/32 wide.
const PER_POWER: u64 = 32;
const PRECISION: u32 = PER_POWER.trailing_zeros();
/// Values of 2^36 µs (19 hours) and more fall into the last bucket.
const TOP: u32 = 36;
const BUCKETS: usize = ((TOP - PRECISION + 1) as u64 * PER_POWER) as usize;

/// A histogram that any number of threads write to.
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum_micros: AtomicU64,
    max_micros: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]),
            sum_micros: AtomicU64::new(0),
            max_micros: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(index_of(micros)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
        self.max_micros.fetch_max(micros, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Latency {
        Latency {
            buckets: self
                .buckets
                .iter()
                .map(|bucket| bucket.load(Ordering::Relaxed))
                .collect(),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
            max_micros: self.max_micros.load(Ordering::Relaxed),
        }
    }
}

/// The bucket of a value: its power of two, and the bits below the leading one. Values below
/// `PER_POWER` have a bucket each.
fn index_of(micros: u64) -> usize {
    let micros = micros.min((1 << TOP) - 1);
    let power = micros.max(PER_POWER).ilog2() - PRECISION;
    let within = micros >> power;
    (u64::from(power) * PER_POWER + within) as usize
}

/// The smallest value of a bucket, and the smallest of the next one.
fn bounds_of(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < 2 * PER_POWER {
        return (index, index + 1);
    }
    let power = index / PER_POWER - 1;
    let within = index % PER_POWER + PER_POWER;
    (within << power, (within + 1) << power)
}

/// Latencies at one moment: count, mean, quantiles and maximum.
///
/// Quantiles are exact to 1/32 (3.2 %). Values above 19 hours count as 19 hours in them.
#[derive(Clone, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    sum_micros: u64,
    max_micros: u64,
}

/// The rank of a quantile. `0.07 * 100.0` is a little above 7, and means the seventh all the same.
fn rank_of(position: f64) -> f64 {
    let nearest = position.round();
    if (position - nearest).abs() <= nearest * 1e-9 {
        nearest
    } else {
        position.ceil()
    }
}

impl Latency {
    /// What it was counted from: the sum and the longest in microseconds, and the highest value and
    /// the number of each bucket that is not empty.
    pub(crate) fn parts(&self) -> (u64, u64, Vec<(u64, u64)>) {
        let buckets = self.buckets.iter().enumerate();
        let filled = buckets
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| (bounds_of(index).1 - 1, *count));
        (self.sum_micros, self.max_micros, filled.collect())
    }

    /// The same again from its [`parts`](Latency::parts).
    pub(crate) fn from_parts(sum_micros: u64, max_micros: u64, filled: &[(u64, u64)]) -> Latency {
        let mut buckets = vec![0_u64; BUCKETS];
        for (highest, count) in filled {
            if let Some(bucket) = buckets.get_mut(index_of(*highest)) {
                *bucket = bucket.saturating_add(*count);
            }
        }
        Latency {
            buckets,
            sum_micros,
            max_micros,
        }
    }

    /// How many updates were measured.
    pub fn count(&self) -> u64 {
        // Derived, so that it always agrees with the quantiles.
        self.buckets.iter().sum()
    }

    /// The mean, or zero when there is none.
    pub fn mean(&self) -> Duration {
        match self.count() {
            0 => Duration::ZERO,
            count => Duration::from_micros(self.sum_micros / count),
        }
    }

    /// The sum of all.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_micros)
    }

    /// The duration that the share `q` (0 to 1, else it is clamped) of the updates did not exceed;
    /// zero when there are none.
    pub fn quantile(&self, q: f64) -> Duration {
        let count = self.count();
        if count == 0 {
            return Duration::ZERO;
        }
        let q = if q.is_nan() { 1.0 } else { q.clamp(0.0, 1.0) };
        let rank = (rank_of(q * count as f64) as u64).clamp(1, count);
        let mut seen = 0;
        for (index, in_bucket) in self.buckets.iter().enumerate() {
            seen += in_bucket;
            if seen >= rank {
                let highest = bounds_of(index).1 - 1;
                return Duration::from_micros(highest.min(self.max_micros));
            }
        }
        self.max()
    }

    /// How many took less than `limit`, by whole buckets: exact where `limit` is 32 µs or more
    /// times a power of two, else exact to 1/32.
    pub fn count_below(&self, limit: Duration) -> u64 {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        self.buckets[..index_of(micros)].iter().sum()
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latency")
            .field("count", &self.count())
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn histogram_buckets_join_without_gap() {
        assert_eq!(BUCKETS, 1_024);
        let mut next = 0;
        for index in 0..BUCKETS {
            let (low, high) = bounds_of(index);
            assert_eq!(low, next);
            assert_eq!(index_of(low), index);
            assert_eq!(index_of(high - 1), index);
            assert!((high - low) * PER_POWER <= low.max(PER_POWER));
            next = high;
        }
        assert_eq!(next, 1 << TOP);
        assert_eq!(index_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn histogram_empty_is_zero() {
        let latency = Histogram::default().snapshot();
        assert_eq!(latency.count(), 0);
        assert_eq!(latency.mean(), Duration::ZERO);
        assert_eq!(latency.quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn histogram_absurd_values_are_counted() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.snapshot().count(), 1);
        assert_eq!(
            histogram.snapshot().quantile(f64::NAN),
            Duration::from_micros((1 << 36) - 1)
        );
    }

    #[test]
    fn histogram_quantile_of_whole_percents_is_of_the_exact_rank() {
        for count in [1u64, 7, 10, 30, 100, 300, 1_000] {
            let histogram = Histogram::default();
            // One bucket each, so that a rank shows.
            for n in 0..count {
                let index = n as usize * BUCKETS / 2 / count as usize;
                histogram.record(Duration::from_micros(bounds_of(index).0));
            }
            let latency = histogram.snapshot();
            for percent in 1..=100u64 {
                let rank = (percent * count).div_ceil(100);
                let index = (rank - 1) as usize * BUCKETS / 2 / count as usize;
                let (low, high) = bounds_of(index);
                let found = latency.quantile(percent as f64 / 100.0).as_micros() as u64;
                assert!(
                    (low..high).contains(&found),
                    "{percent} % of {count}: {found}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn histogram_quantiles_are_within_one_bucket(
            mut values in prop::collection::vec(0u64..10_000_000_000, 1..200),
            q in 0.0f64..=1.0,
        ) {
            let histogram = Histogram::default();
            for value in &values {
                histogram.record(Duration::from_micros(*value));
            }
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let truth = values[rank - 1];
            let found = histogram.snapshot().quantile(q).as_micros() as u64;
            prop_assert!(found >= truth && found - truth <= truth / PER_POWER + 1, "{found} {truth}");
            prop_assert_eq!(histogram.snapshot().max().as_micros() as u64, *values.last().unwrap());
        }
    }
}
