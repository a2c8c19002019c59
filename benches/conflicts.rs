//! Clients race on one secure map: how many updates give up, and how many requests and how much time
//! each takes. `cargo bench --features testing --bench conflicts`.
//!
//! Sixteen clients with a round trip of 50 ms race five times, since one run says little about the
//! longest. Fails when an update gives up.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use genesys_attributes::{Client, Credentials, RateLimit, Region, Target, Update};
use sandbox::Backend;
use server::Server;

const UPDATES: u64 = 10;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut gave_up = 0;
    for (clients, millis) in [(1, 50), (4, 50), (16, 5), (16, 20), (16, 200)] {
        gave_up += race(clients, millis)?.gave_up;
    }
    let races = (0..5).map(|_| race(16, 50)).collect::<Result<Vec<_>>>()?;
    gave_up += races.iter().map(|race| race.gave_up).sum::<u64>();
    let range = |value: fn(&Race) -> f64| {
        let values = races.iter().map(value);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        format!("{least:.1} to {:.1}", values.fold(0.0, f64::max))
    };
    println!(
        "16 clients,  50 ms, in {} runs: {} requests an update, {} s in all, {} s the longest",
        races.len(),
        range(|race| race.requests),
        range(|race| race.took),
        range(|race| race.longest),
    );
    match gave_up {
        0 => Ok(()),
        _ => Err(format!("{gave_up} updates gave up").into()),
    }
}

/// What came of a race: requests an update, and times in seconds.
struct Race {
    gave_up: u64,
    requests: f64,
    took: f64,
    longest: f64,
}

fn race(clients: u64, millis: u64) -> Result<Race> {
    let round_trip = Duration::from_millis(millis);
    let backend = Backend::new();
    backend.world(|world| {
        world.check_credentials = false;
        world.add("c-1");
    });
    let platform = backend.clone();
    let server = Server::start(move |req| platform.answer(req).delay(round_trip));
    let start = Arc::new(Barrier::new(clients as usize));
    let began = Instant::now();
    let mut threads = Vec::new();
    for number in 0..clients {
        let client = Client::builder(
            Region::parse("us-east-1")?,
            Credentials::new("id", "secret"),
        )
        .base_url(server.url())
        .no_proxy()
        .rate_limit(RateLimit::unlimited())
        .build()?;
        let start = start.clone();
        threads.push(thread::spawn(move || {
            start.wait();
            let mut longest = Duration::ZERO;
            for n in 0..UPDATES {
                let key = format!("k{number}");
                let update = Update::new(Target::secure("c-1")).set(key, n.to_string());
                let began = Instant::now();
                if let Err(error) = client.update(&update) {
                    eprintln!("{error}");
                }
                longest = longest.max(began.elapsed());
            }
            (client.metrics(), longest)
        }));
    }
    let (mut requests, mut applied, mut longest) = (0, 0, Duration::ZERO);
    for thread in threads {
        let (metrics, one) = thread.join().map_err(|_| "a thread panicked")?;
        requests += metrics.requests;
        applied += metrics.applied;
        longest = longest.max(one);
    }
    let updates = clients * UPDATES;
    let race = Race {
        gave_up: updates - applied,
        requests: requests as f64 / updates as f64,
        took: began.elapsed().as_secs_f64(),
        longest: longest.as_secs_f64(),
    };
    println!(
        "{clients:>2} clients, {millis:>3} ms: {updates} updates, {} gave up, {:.2} requests an update, \
         {:.1} s in all, {:.1} s the longest",
        race.gave_up, race.requests, race.took, race.longest,
    );
    Ok(race)
}
