//! Sixteen clients race on one secure map with a round trip of 50 ms: how many updates give up, and
//! how many requests and how much time each takes. `cargo bench --features testing --bench conflicts`.
//!
//! Fails when an update gives up.

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
    for (clients, millis) in [(1, 50), (4, 50), (16, 5), (16, 20), (16, 50), (16, 200)] {
        gave_up += race(clients, Duration::from_millis(millis))?;
    }
    match gave_up {
        0 => Ok(()),
        _ => Err(format!("{gave_up} updates gave up").into()),
    }
}

fn race(clients: u64, round_trip: Duration) -> Result<u64> {
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
    println!(
        "{clients:>2} clients, {:>3} ms: {updates} updates, {} gave up, {:.2} requests an update, \
         {:.1} s in all, {:.1} s the longest",
        round_trip.as_millis(),
        updates - applied,
        requests as f64 / updates as f64,
        began.elapsed().as_secs_f64(),
        longest.as_secs_f64(),
    );
    Ok(updates - applied)
}
