//! What 512 threads that wait for one conversation cost 16 threads on 16 others, through one
//! client: both sides take turns in short rounds, and each round gives one ratio.
//!
//! `cargo bench --bench contention` measures; with `-- --check` it only runs, in a second. A budget
//! that is passed is printed, and fails nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use genesys_attributes::http::{Request, Response, TransportError};
use genesys_attributes::{Client, Credentials, RateLimit, Region, Update};

const THREADS: usize = 16;
const CROWD: usize = 512;
/// A network's time, so that threads wait as they do for a platform.
const LATENCY: Duration = Duration::from_millis(2);
const BUDGET: f64 = 1.05;

/// What a round took: wall time, and processor time of the whole process.
struct Round {
    wall: Duration,
    cpu: Duration,
}

fn main() {
    let check = std::env::args().any(|arg| arg == "--check");
    let (rounds, updates) = if check { (1, 10) } else { (31, 100) };
    let client = client();
    round(&client, updates);
    let (mut wall, mut cpu, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let mut served = 0;
    for n in 0..rounds {
        // Whoever comes first may find the machine in another state.
        let (alone, crowded) = if n % 2 == 0 {
            let alone = round(&client, updates);
            (alone, crowded(&client, updates, &mut served))
        } else {
            let crowded = crowded(&client, updates, &mut served);
            (round(&client, updates), crowded)
        };
        wall.push(crowded.wall.as_secs_f64() / alone.wall.as_secs_f64());
        cpu.push(crowded.cpu.as_secs_f64() / alone.cpu.as_secs_f64());
        let again = round(&client, updates);
        bare.push(again.wall.as_secs_f64() / alone.wall.as_secs_f64());
    }
    println!(
        "{THREADS} threads on {THREADS} conversations, {updates} updates each, with {CROWD} on \
         another one ({served} updates there), by the same without; median (quartiles) of {rounds} \
         rounds"
    );
    report("wall", &mut wall, Some(BUDGET));
    report("processor, the crowd's included", &mut cpu, None);
    report("noise: without by without, wall", &mut bare, None);
}

fn client() -> Client {
    let answer = |_: &Request| -> Result<Response, TransportError> {
        thread::sleep(LATENCY);
        Ok(Response::new(202).with_body("{}"))
    };
    Client::builder(
        Region::parse("us-east-1").unwrap(),
        Credentials::access_token("token"),
    )
    .transport(answer)
    .rate_limit(RateLimit::unlimited())
    .build()
    .unwrap()
}

/// One request each.
fn update(client: &Client, conversation: &str) {
    let update = Update::participant(conversation, "p-1").set("k", "v");
    let receipt = client.update(&update).unwrap();
    assert_eq!(receipt.requests, 1);
}

/// Each thread updates a conversation of its own, so often.
fn round(client: &Client, updates: usize) -> Round {
    let (begun, cpu) = (Instant::now(), ProcessTime::now());
    thread::scope(|scope| {
        for n in 0..THREADS {
            scope.spawn(move || {
                let conversation = format!("c-{n}");
                for _ in 0..updates {
                    update(client, &conversation);
                }
            });
        }
    });
    Round {
        wall: begun.elapsed(),
        cpu: cpu.elapsed(),
    }
}

/// The same while many threads want one other conversation.
fn crowded(client: &Client, updates: usize, served: &mut usize) -> Round {
    let over = AtomicBool::new(false);
    let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CROWD {
            let in_crowd = || {
                begun.fetch_add(1, Ordering::Relaxed);
                while !over.load(Ordering::Relaxed) {
                    update(client, "crowd");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            };
            let small = thread::Builder::new().stack_size(256 << 10);
            small.spawn_scoped(scope, in_crowd).unwrap();
        }
        while begun.load(Ordering::Relaxed) < CROWD || done.load(Ordering::Relaxed) == 0 {
            thread::sleep(LATENCY);
        }
        let before = done.load(Ordering::Relaxed);
        let round = round(client, updates);
        *served += done.load(Ordering::Relaxed) - before;
        // Each of them has its turn once more.
        over.store(true, Ordering::Relaxed);
        round
    })
}

fn report(name: &str, ratios: &mut [f64], budget: Option<f64>) {
    ratios.sort_by(f64::total_cmp);
    let at = |share: usize| ratios[(ratios.len() - 1) * share / 4];
    let verdict = match budget {
        Some(budget) if at(2) > budget => format!("  over the budget of {budget}"),
        Some(budget) => format!("  budget {budget}"),
        None => String::new(),
    };
    println!(
        "{name:<33} {:.3} ({:.3} to {:.3}){verdict}",
        at(2),
        at(1),
        at(3)
    );
}
