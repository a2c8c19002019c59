//! Many clients against one platform, with faults, under every order of events that a seed can think of.
//!
//! - `cargo test` runs a few hundred schedules, and 300,000 with `GENESYS_ATTRIBUTES_TEST=full`.
//! - `SIMULATION_SCHEDULES=1000000 cargo test` runs so many, and `SIMULATION_START` says from which seed on.
//! - `SIMULATION_SEED=4711 cargo test -- --nocapture` replays one, and prints what happened in it.
#![cfg(test)]

mod answer;
mod cells;
mod platform;
mod schedule;
mod verdict;

use std::collections::BTreeMap;

use schedule::Counted;

/// The schedules of a run, without and with `GENESYS_ATTRIBUTES_TEST=full`.
const SCHEDULES: (u64, u64) = (500, 300_000);
/// Disjoint seeds go to so many threads.
const THREADS: u64 = 2;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Replays a schedule, and fails with what happened in it.
fn replay(seed: u64) {
    let report = schedule::run(seed, true);
    println!("{}", report.trace.join("\n"));
    if let Some(violation) = report.violation {
        panic!(
            "schedule {seed}: {violation}\nreplay it with SIMULATION_SEED={seed} cargo test -- --nocapture"
        );
    }
}

/// The seeds of one thread, up to the first that finds something: what happened how often, and that seed.
fn run(seeds: impl Iterator<Item = u64>) -> (BTreeMap<Counted, u64>, Option<u64>) {
    let mut tally = BTreeMap::new();
    for seed in seeds {
        let report = schedule::run(seed, false);
        if report.violation.is_some() {
            return (tally, Some(seed));
        }
        for what in report.tally {
            *tally.entry(what).or_default() += 1;
        }
    }
    (tally, None)
}

#[test]
fn simulation_schedules_keep_every_promise() {
    if let Some(seed) = variable("SIMULATION_SEED") {
        return replay(seed);
    }
    let full = std::env::var("GENESYS_ATTRIBUTES_TEST").is_ok_and(|value| value == "full");
    let schedules = if full { SCHEDULES.1 } else { SCHEDULES.0 };
    let schedules = variable("SIMULATION_SCHEDULES").unwrap_or(schedules);
    let start = variable("SIMULATION_START").unwrap_or(0);
    let seeds = |thread| (start + thread..start + schedules).step_by(THREADS as usize);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads = Vec::from_iter((0..THREADS).map(|n| scope.spawn(move || run(seeds(n)))));
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    });
    let mut all: BTreeMap<Counted, u64> = BTreeMap::new();
    for (tally, failed) in results {
        if let Some(seed) = failed {
            return replay(seed);
        }
        for (what, n) in tally {
            *all.entry(what).or_default() += n;
        }
    }
    println!("{schedules} schedules");
    for ((group, what), n) in &all {
        println!("{n:>10} {group}: {what}");
    }
    // A schedule in which nothing goes wrong shows nothing.
    if schedules >= SCHEDULES.0 {
        for needed in [
            ("end", "applied"),
            ("end", "alreadyApplied"),
            ("end", "conflict"),
            ("fault", "reset, done later"),
            ("meanwhile", "another thread"),
            ("meanwhile", "another writer"),
            ("meanwhile", "reentrant call"),
        ] {
            assert!(all.contains_key(&needed), "never happened: {needed:?}");
        }
    }
}

#[test]
fn simulation_schedule_of_a_seed_repeats() {
    for seed in 0..20 {
        let runs = [(); 2].map(|()| schedule::run(seed, true).trace);
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}
