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
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
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

impl Latency {
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
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
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
    fn buckets_join_without_gap_and_their_number_is_fixed() {
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
    fn an_empty_histogram_answers_zero() {
        let latency = Histogram::default().snapshot();
        assert_eq!(latency.count(), 0);
        assert_eq!(latency.mean(), Duration::ZERO);
        assert_eq!(latency.quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn absurd_values_are_counted_not_lost() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.snapshot().count(), 1);
        assert_eq!(
            histogram.snapshot().quantile(f64::NAN),
            Duration::from_micros((1 << 36) - 1)
        );
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_bucket_of_the_truth(
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
