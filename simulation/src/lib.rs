//! Many clients against one platform, with faults, under every order of events that a seed can
//! think of; and the proof that it finds the mistakes it is made for.
//!
//! - `SIMULATION_SCHEDULES=1000000 cargo test --lib simulation` runs more of them, and
//!   `SIMULATION_START` says from which seed on.
//! - `SIMULATION_SEED=4711 cargo test --lib simulation_schedules -- --nocapture` replays one, and
//!   prints what happened in it.

pub(crate) mod mistake;
mod platform;
mod random;
mod schedule;
mod verdict;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mistake::{Mistake, plant};

const SCHEDULES: u64 = 100_000;
/// Disjoint seeds go to so many threads.
const THREADS: u64 = 2;
/// A planted mistake must be found within so many schedules.
const PATIENCE: u64 = 20_000;

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
            "schedule {seed}: {violation}\nreplay it with SIMULATION_SEED={seed} cargo test --lib \
             simulation_schedules -- --nocapture"
        );
    }
}

#[test]
fn simulation_schedules_keep_every_promise() {
    if let Some(seed) = variable("SIMULATION_SEED") {
        return replay(seed);
    }
    let schedules = variable("SIMULATION_SCHEDULES").unwrap_or(SCHEDULES);
    let start = variable("SIMULATION_START").unwrap_or(0);
    let begun = Instant::now();
    let stop = AtomicBool::new(false);
    let run = |thread: u64| {
        let mut tally: BTreeMap<schedule::Counted, u64> = BTreeMap::new();
        let mut seed = start + thread;
        while seed < start + schedules && !stop.load(Ordering::Relaxed) {
            let report = schedule::run(seed, false);
            if report.violation.is_some() {
                stop.store(true, Ordering::Relaxed);
                return (tally, Some(seed));
            }
            for what in report.tally {
                *tally.entry(what).or_default() += 1;
            }
            seed += THREADS;
        }
        (tally, None)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let run = &run;
        let threads = Vec::from_iter((0..THREADS).map(|n| scope.spawn(move || run(n))));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut all: BTreeMap<schedule::Counted, u64> = BTreeMap::new();
    for (tally, failed) in results {
        if let Some(seed) = failed {
            return replay(seed);
        }
        for (what, n) in tally {
            *all.entry(what).or_default() += n;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{schedules} schedules in {took:.1} s: {:.0} a second",
        schedules as f64 / took
    );
    for ((group, what), n) in all {
        println!("{n:>10} {group}: {what}");
    }
}

#[test]
fn simulation_schedule_of_a_seed_repeats() {
    for seed in 0..20 {
        let runs = [(); 2].map(|()| schedule::run(seed, true).trace);
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

#[test]
fn simulation_finds_each_planted_mistake() {
    let find = |mistake: Mistake| {
        plant(Some(mistake));
        let found = (0..PATIENCE).find_map(|seed| {
            let violation = schedule::run(seed, false).violation?;
            Some((seed + 1, violation))
        });
        plant(None);
        (mistake, found)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let (even, odd): (Vec<_>, Vec<_>) = Mistake::ALL
            .into_iter()
            .enumerate()
            .partition(|(n, _)| n % 2 == 0);
        let threads = [even, odd].map(|mistakes| {
            scope.spawn(move || Vec::from_iter(mistakes.into_iter().map(|(_, m)| find(m))))
        });
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut missed = Vec::new();
    for (mistake, found) in results {
        match found {
            Some((schedules, violation)) => {
                println!("{mistake:?}: found after {schedules} schedules: {violation}");
            }
            None => missed.push(mistake),
        }
    }
    assert!(
        missed.is_empty(),
        "not found in {PATIENCE} schedules: {missed:?}"
    );
}
