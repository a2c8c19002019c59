//! What a client has done, as numbers, JSON or Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::ErrorKind;
use crate::util::histogram::Histogram;
pub use crate::util::histogram::Latency;

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Each counter once: its field, its JSON name, its Prometheus name and its help text.
macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident, $json:literal, $prometheus:literal, $help:literal;)*) => {
        /// The live counters of a client.
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $field: Counter,)*
            failed: [Counter; ErrorKind::ALL.len()],
            latency: Histogram,
        }

        /// What a client did so far: a snapshot.
        ///
        /// The counters are read one after the other while updates go on, so two of them may
        /// differ by the updates in between.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $field: u64,)*
            /// Latency of the updates that were applied, as in the receipt.
            pub latency: Latency,
            failed: [u64; ErrorKind::ALL.len()],
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Metrics {
                Metrics {
                    $($field: self.$field.get(),)*
                    latency: self.latency.snapshot(),
                    failed: std::array::from_fn(|i| self.failed[i].get()),
                }
            }
        }

        impl Metrics {
            fn from_fields(fields: &serde_json::Map<String, Value>) -> Option<Metrics> {
                let number = |name: &str| fields.get(name).and_then(Value::as_u64);
                let latency = fields.get("latencyMs")?;
                let filled: Vec<(u64, u64)> =
                    serde_json::from_value(latency.get("buckets")?.clone()).ok()?;
                let failed = fields.get("failed")?;
                Some(Metrics {
                    $($field: number($json)?,)*
                    latency: Latency::from_parts(
                        latency.get("sumMicros")?.as_u64()?,
                        latency.get("maxMicros")?.as_u64()?,
                        &filled,
                    ),
                    failed: std::array::from_fn(|i| {
                        let name = ErrorKind::ALL.get(i).map_or("", |kind| kind.name());
                        failed.get(name).and_then(Value::as_u64).unwrap_or(0)
                    }),
                })
            }

            fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
                [$(($json, $prometheus, $help, self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Calls of `update` and `update_with`, once each.
    calls, "totalAttempts", "calls_total", "Calls of update.";
    /// Updates that were written and confirmed.
    applied, "applied", "applied_total", "Updates written and confirmed.";
    /// Updates found in place after an attempt without an answer.
    already_applied, "alreadyApplied", "already_applied_total", "Updates found in place after an attempt without an answer.";
    /// Updates that had nothing to change.
    unchanged, "unchanged", "unchanged_total", "Updates that had nothing to change.";
    /// Updates refused by validation or by the state guard.
    validation_errors, "validationErrors", "validation_errors_total", "Updates refused by validation or the state guard.";
    /// Version conflicts met, settled or not.
    conflicts, "lockingConflicts", "conflicts_total", "Version conflicts met.";
    /// Answers that asked to slow down, at the API and the token endpoint.
    rate_limited, "rateLimited", "rate_limited_total", "Answers that asked to slow down.";
    /// API requests sent.
    requests, "requests", "requests_total", "API requests sent.";
    /// Requests sent again after a failure that may pass.
    retries, "retries", "retries_total", "Requests sent again after a failure that may pass.";
    /// Tokens fetched.
    token_refreshes, "tokenRefreshes", "token_refreshes_total", "Tokens fetched.";
    /// Requests that got no answer, or a read's answer that was cut short.
    transport_errors, "transportErrors", "transport_errors_total", "Requests that got no answer, or one cut short.";
    /// Answers of 500 and above.
    server_errors, "serverErrors", "server_errors_total", "Answers of 500 and above.";
    /// Event hooks that panicked.
    hook_panics, "hookPanics", "hook_panics_total", "Event hooks that panicked.";
    /// Events that a full subscription did not take, or that an ended one left unread.
    events_dropped, "eventsDropped", "events_dropped_total", "Events that subscriptions did not take or left unread.";
    /// Audit records that could not be written.
    audit_failures, "auditFailures", "audit_failures_total", "Audit records that could not be written.";
}

impl Counters {
    pub(crate) fn failed(&self, kind: ErrorKind) {
        self.failed[kind as usize].increment();
    }

    pub(crate) fn latency(&self, latency: Duration) {
        self.latency.record(latency);
    }
}

impl Metrics {
    /// Updates that are in place by this client's doing: applied and already applied.
    pub fn successful_updates(&self) -> u64 {
        self.applied + self.already_applied
    }

    /// Calls of `update` and `update_with` that failed with the given kind.
    pub fn failed(&self, kind: ErrorKind) -> u64 {
        self.failed[kind as usize]
    }

    /// The metrics as JSON, latencies in milliseconds.
    pub fn to_json(&self) -> Value {
        let ms = |d: Duration| d.as_micros() as f64 / 1_000.0;
        let (sum_micros, max_micros, buckets) = self.latency.parts();
        let mut out: serde_json::Map<String, Value> = self
            .counters()
            .map(|(name, _, _, value)| (name.to_owned(), value.into()))
            .collect();
        out.insert("successfulUpdates".into(), self.successful_updates().into());
        out.insert("averageLatencyMs".into(), ms(self.latency.mean()).into());
        out.insert(
            "latencyMs".into(),
            json!({
                "count": self.latency.count(),
                "mean": ms(self.latency.mean()),
                "p50": ms(self.latency.quantile(0.5)),
                "p90": ms(self.latency.quantile(0.9)),
                "p99": ms(self.latency.quantile(0.99)),
                "max": ms(self.latency.max()),
                "sumMicros": sum_micros,
                "maxMicros": max_micros,
                "buckets": buckets,
            }),
        );
        let failed: serde_json::Map<String, Value> = ErrorKind::ALL
            .iter()
            .filter(|kind| self.failed(**kind) > 0)
            .map(|kind| (kind.name().to_owned(), self.failed(*kind).into()))
            .collect();
        out.insert("failed".into(), failed.into());
        Value::Object(out)
    }

    /// The metrics in Prometheus' text format (version 0.0.4). Every name begins with
    /// `genesys_attributes_`; the latency is a histogram in seconds.
    pub fn to_prometheus(&self) -> String {
        const PREFIX: &str = "genesys_attributes_";
        let mut out = String::new();
        // Writing to a string cannot fail.
        for (_, name, help, value) in self.counters() {
            let _ = writeln!(
                out,
                "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} counter\n{PREFIX}{name} {value}"
            );
        }
        let _ = writeln!(
            out,
            "# HELP {PREFIX}failed_total Updates that failed, by kind.\n# TYPE {PREFIX}failed_total counter"
        );
        for kind in ErrorKind::ALL.iter().copied() {
            let _ = writeln!(
                out,
                "{PREFIX}failed_total{{kind=\"{kind}\"}} {}",
                self.failed(kind)
            );
        }
        let name = "update_duration_seconds";
        let _ = writeln!(
            out,
            "# HELP {PREFIX}{name} Latency of applied updates.\n# TYPE {PREFIX}{name} histogram"
        );
        // Powers of two of microseconds, about 1 ms to 134 s: the edges that the buckets have.
        for power in 10..28 {
            let edge = Duration::from_micros(1 << power);
            let _ = writeln!(
                out,
                "{PREFIX}{name}_bucket{{le=\"{}\"}} {}",
                edge.as_secs_f64(),
                self.latency.count_below(edge)
            );
        }
        let count = self.latency.count();
        let _ = writeln!(
            out,
            "{PREFIX}{name}_bucket{{le=\"+Inf\"}} {count}\n{PREFIX}{name}_sum {}\n{PREFIX}{name}_count {count}",
            self.latency.sum().as_secs_f64()
        );
        out
    }
}

/// As [`Metrics::to_json`].
impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Reads what [`Metrics::to_json`] gives.
impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = serde_json::Map::deserialize(deserializer)?;
        Metrics::from_fields(&fields)
            .ok_or_else(|| de::Error::custom("not the metrics of a client"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Metrics {
        let counters = Counters::default();
        counters.calls.add(3);
        counters.applied.increment();
        counters.already_applied.increment();
        counters.conflicts.add(2);
        counters.failed(ErrorKind::RateLimited);
        counters.latency(Duration::from_millis(3));
        counters.latency(Duration::from_millis(5));
        counters.snapshot()
    }

    #[test]
    fn metrics_json_keeps_documented_names() {
        let json = some().to_json();
        assert_eq!(json["totalAttempts"], 3);
        assert_eq!(json["successfulUpdates"], 2);
        assert_eq!(json["validationErrors"], 0);
        assert_eq!(json["lockingConflicts"], 2);
        assert_eq!(json["averageLatencyMs"], 4.0);
        assert_eq!(json["latencyMs"]["count"], 2);
        assert_eq!(json["failed"], json!({ "rateLimited": 1 }));
        let again: Metrics = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(again.to_json(), json);
    }

    #[test]
    fn metrics_prometheus_text_is_well_formed() {
        let text = some().to_prometheus();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                assert!(comment.starts_with("HELP ") || comment.starts_with("TYPE "));
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.starts_with("genesys_attributes_"), "{line}");
                value.parse::<f64>().unwrap();
            }
        }
        assert!(text.contains("genesys_attributes_failed_total{kind=\"rateLimited\"} 1\n"));
        assert!(text.contains("update_duration_seconds_bucket{le=\"0.004096\"} 1\n"));
        assert!(text.contains("update_duration_seconds_bucket{le=\"+Inf\"} 2\n"));
        assert!(text.contains("update_duration_seconds_sum 0.008\n"));
    }
}
