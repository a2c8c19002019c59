//! What a client remembers of conversations between updates, and whose turn it is on one of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::thread::ThreadId;

use crate::clock::{Cancel, lock, wait};
use crate::error::{Error, ErrorKind, Result};

/// A bounded memory of strings by key. When it is full, the half that was not used lately goes.
pub(crate) struct VersionCache {
    /// How many entries each generation holds; 0 remembers nothing.
    half: usize,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<String, String>,
    old: HashMap<String, String>,
}

impl VersionCache {
    pub(crate) fn new(capacity: usize) -> VersionCache {
        VersionCache {
            half: capacity.div_ceil(2),
            generations: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let mut generations = lock(&self.generations);
        if let Some(value) = generations.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = generations.old.remove_entry(key)?;
        self.insert(&mut generations, key, value.clone());
        Some(value)
    }

    /// Remembers `value`, or forgets the key without one.
    pub(crate) fn put(&self, key: Cow<'_, str>, value: Option<String>) {
        let mut generations = lock(&self.generations);
        match value {
            Some(value) if self.half > 0 => match generations.young.get_mut(key.as_ref()) {
                Some(present) => *present = value,
                None => self.insert(&mut generations, key.into_owned(), value),
            },
            _ => {
                generations.young.remove(key.as_ref());
                generations.old.remove(key.as_ref());
            }
        }
    }

    fn insert(&self, generations: &mut Generations, key: String, value: String) {
        if generations.young.len() >= self.half {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.old.remove(&key);
        generations.young.insert(key, value);
    }
}

/// One update at a time for each conversation.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<Holders>,
    given_back: Condvar,
}

#[derive(Default)]
struct Holders {
    /// One for each thread that updates: few enough to look through.
    holders: Vec<(String, ThreadId)>,
    /// Without any, giving a turn back needs no system call.
    waiting: usize,
}

/// The right to write to a conversation, until it is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    conversation: &'a str,
}

impl Turns {
    /// Waits for the conversation's turn.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when this thread holds a turn already: it is inside of an `update_with`
    /// closure, say, and waiting could be for itself. `Cancelled`.
    pub(crate) fn take<'a>(
        &'a self,
        conversation: &'a str,
        cancel: Option<&Cancel>,
    ) -> Result<Turn<'a>> {
        let me = std::thread::current().id();
        let mut state = lock(&self.state);
        if state.holders.iter().any(|(_, holder)| *holder == me) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "code that is called from inside of an update (an update_with closure, an audit \
                 sink, a transport) must not update through the same client",
            ));
        }
        while state.holders.iter().any(|(held, _)| held == conversation) {
            state.waiting += 1;
            state = wait(&self.given_back, state, cancel);
            state.waiting -= 1;
            Cancel::check(cancel)?;
        }
        state.holders.push((conversation.to_owned(), me));
        Ok(Turn {
            turns: self,
            conversation,
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.turns.state);
        state.holders.retain(|(held, _)| held != self.conversation);
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.turns.given_back.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let cache = VersionCache::new(100);
        for n in 0..1_000 {
            cache.put(Cow::Owned(n.to_string()), Some("v".into()));
            cache.put(
                Cow::Borrowed("used"),
                cache.get("used").or(Some("u".into())),
            );
            let generations = lock(&cache.generations);
            assert!(generations.young.len() + generations.old.len() <= 100);
        }
        assert_eq!(cache.get("used").as_deref(), Some("u"));
        assert_eq!(cache.get("999").as_deref(), Some("v"));
        assert_eq!(cache.get("1"), None);
    }

    #[test]
    fn forgetting_reaches_both_generations() {
        let cache = VersionCache::new(2);
        cache.put(Cow::Borrowed("a"), Some("1".into()));
        cache.put(Cow::Borrowed("b"), Some("1".into()));
        cache.put(Cow::Borrowed("a"), None);
        cache.put(Cow::Borrowed("b"), None);
        assert_eq!((cache.get("a"), cache.get("b")), (None, None));
    }

    #[test]
    fn a_stale_value_never_comes_back_from_the_old_generation() {
        let cache = VersionCache::new(2);
        cache.put(Cow::Borrowed("a"), Some("1".into()));
        cache.put(Cow::Borrowed("b"), Some("1".into()));
        cache.put(Cow::Borrowed("a"), Some("2".into()));
        cache.put(Cow::Borrowed("c"), Some("1".into()));
        assert_ne!(cache.get("a").as_deref(), Some("1"));
    }

    #[test]
    fn a_capacity_of_none_remembers_nothing() {
        let cache = VersionCache::new(0);
        cache.put(Cow::Borrowed("a"), Some("1".into()));
        assert_eq!(cache.get("a"), None);
    }

    #[test]
    fn turns_exclude_each_other_per_conversation() {
        let turns = Turns::default();
        let inside = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take("c", None).unwrap();
                        let mut inside = inside.try_lock().expect("alone");
                        *inside += 1;
                    }
                });
            }
        });
        assert_eq!(*lock(&inside), 1_600);
        assert!(lock(&turns.state).holders.is_empty());
    }

    #[test]
    fn a_thread_that_would_wait_for_itself_is_told_so() {
        let turns = Turns::default();
        let turn = turns.take("a", None).unwrap();
        assert_eq!(
            turns.take("a", None).err().map(|e| e.kind()),
            Some(ErrorKind::InvalidInput)
        );
        assert_eq!(
            turns.take("b", None).err().map(|e| e.kind()),
            Some(ErrorKind::InvalidInput)
        );
        drop(turn);
        assert!(turns.take("b", None).is_ok());
    }
}
