//! What a client remembers of conversations between updates.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::util::sync::{Mutex, lock};

/// How long the id of a participant is remembered.
const PARTICIPANT_LIFE: Duration = Duration::from_secs(300);

/// What is remembered under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cached {
    /// The version that the last write of a conversation returned.
    Version(String),
    /// The versions that writes of this conversation return cannot be used: one met a conflict.
    Untrusted,
    /// The id of the participant with a purpose, and since when it is known.
    Participant(String, Instant),
}

impl Cached {
    /// What the next write can use.
    pub(crate) fn into_value(self, now: impl FnOnce() -> Instant) -> Option<String> {
        match self {
            Cached::Version(version) => Some(version),
            Cached::Participant(id, since) => {
                (now().saturating_duration_since(since) < PARTICIPANT_LIFE).then_some(id)
            }
            Cached::Untrusted => None,
        }
    }
}

/// A bounded cache. When it is full, the half that was not used lately goes.
pub(crate) struct Cache {
    /// How many entries each generation holds; 0 remembers nothing.
    half: usize,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<String, Cached>,
    old: HashMap<String, Cached>,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Cache {
        Cache {
            half: capacity.div_ceil(2),
            generations: Mutex::default(),
        }
    }

    /// How much it remembers at most.
    pub(crate) fn capacity(&self) -> usize {
        2 * self.half
    }

    pub(crate) fn get(&self, key: &str) -> Option<Cached> {
        if self.half == 0 {
            return None;
        }
        let mut generations = lock(&self.generations);
        if let Some(value) = generations.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = generations.old.remove_entry(key)?;
        self.insert(&mut generations, key, value.clone());
        Some(value)
    }

    /// Remembers `value`.
    pub(crate) fn put(&self, key: Cow<'_, str>, value: Cached) {
        if self.half == 0 {
            return;
        }
        let mut generations = lock(&self.generations);
        match generations.young.get_mut(key.as_ref()) {
            Some(present) => *present = value,
            None => self.insert(&mut generations, key.into_owned(), value),
        }
    }

    /// Forgets what could be wrong; that versions are not to be trusted stays known.
    pub(crate) fn forget(&self, key: &str) {
        let mut generations = lock(&self.generations);
        let Generations { young, old } = &mut *generations;
        for generation in [young, old] {
            match generation.get(key) {
                None | Some(Cached::Untrusted) => {}
                Some(_) => {
                    generation.remove(key);
                }
            }
        }
    }

    fn insert(&self, generations: &mut Generations, key: String, value: Cached) {
        if generations.young.len() >= self.half {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.old.remove(&key);
        generations.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::clock::{Clock, ManualClock};

    fn version(text: &str) -> Cached {
        Cached::Version(text.to_owned())
    }

    #[test]
    fn cache_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(100);
        for n in 0..1_000 {
            cache.put(Cow::Owned(n.to_string()), version("v"));
            let used = cache.get("used").unwrap_or(version("u"));
            cache.put(Cow::Borrowed("used"), used);
            let generations = lock(&cache.generations);
            assert!(generations.young.len() + generations.old.len() <= 100);
        }
        assert_eq!(cache.get("used"), Some(version("u")));
        assert_eq!(cache.get("999"), Some(version("v")));
        assert_eq!(cache.get("1"), None);
    }

    #[test]
    fn cache_forgets_in_both_generations_all_but_distrust() {
        let cache = Cache::new(4);
        for key in ["a", "b", "c"] {
            cache.put(Cow::Borrowed(key), version("1"));
        }
        cache.put(Cow::Borrowed("d"), Cached::Untrusted);
        for key in ["a", "b", "c", "d"] {
            cache.forget(key);
        }
        assert_eq!((cache.get("a"), cache.get("b")), (None, None));
        assert_eq!(
            (cache.get("c"), cache.get("d")),
            (None, Some(Cached::Untrusted))
        );
    }

    #[test]
    fn cache_replaced_value_does_not_come_back_from_the_old_generation() {
        let cache = Cache::new(2);
        for (key, value) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")] {
            cache.put(Cow::Borrowed(key), version(value));
        }
        assert_ne!(cache.get("a"), Some(version("1")));
    }

    #[test]
    fn cache_of_capacity_zero_remembers_nothing() {
        let cache = Cache::new(0);
        cache.put(Cow::Borrowed("a"), version("1"));
        assert_eq!(cache.get("a"), None);
    }

    #[test]
    fn cached_participant_is_used_for_minutes_only() {
        let clock = ManualClock::new();
        let cached = Cached::Participant("p".into(), clock.now());
        let now = || clock.now();
        assert_eq!(cached.clone().into_value(now).as_deref(), Some("p"));
        clock.advance(PARTICIPANT_LIFE);
        assert_eq!(cached.into_value(now), None);
        assert_eq!(Cached::Untrusted.into_value(now), None);
    }
}
