//! The batch engine against what is possible: the rate that 16 workers reach when each request
//! takes 20 ms, what 64 and 1,024 workers make of it when none takes any time, how many requests an
//! update of a participant by purpose costs, and the memory that a million lines need beyond a
//! thousand.
//!
//! `cargo bench --bench batch` measures; with `-- --check` it only runs, in a few seconds.

#[path = "../tests/support/server.rs"]
mod server;

use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use genesys_attributes::batch::BatchReport;
use genesys_attributes::http::{Request, Response, TransportError};
use genesys_attributes::{Batch, Client, Credentials, RateLimit, Region, Update};
use server::{Resp, Server};

const WORKERS: usize = 16;
const LATENCY: Duration = Duration::from_millis(20);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--child") {
        return child(&args[at + 1], args[at + 2].parse().unwrap());
    }
    let check = args.iter().any(|arg| arg == "--check");
    rate(if check { 160 } else { 4_000 });
    crowd(
        if check { 2_000 } else { 40_000 },
        if check { 1 } else { 5 },
    );
    look_ahead(if check { 500 } else { 5_000 });
    memory(if check { 20_000 } else { 1_000_000 });
}

fn client(url: &str) -> Client {
    Client::builder(
        Region::parse("us-east-1").unwrap(),
        Credentials::access_token("token"),
    )
    .base_url(url)
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .build()
    .unwrap()
}

fn run(client: &Client, updates: impl Iterator<Item = Update> + Send) -> BatchReport {
    run_with(client, WORKERS, updates)
}

fn run_with(
    client: &Client,
    workers: usize,
    updates: impl Iterator<Item = Update> + Send,
) -> BatchReport {
    let report = Batch::new(client)
        .workers(workers)
        .run(updates, |_| ControlFlow::Continue(()));
    assert!(report.is_complete(), "{report:?}");
    report
}

/// Cold updates: a read and a write each.
fn rate(updates: u64) {
    let server = Server::start(|req| {
        let body = match req.method {
            "GET" => r#"{"version":"1"}"#,
            _ => r#"{"version":"2"}"#,
        };
        Resp::json(200, body).delay(LATENCY)
    });
    let client = client(&server.url());
    // Connections are made once.
    run(
        &client,
        (0..WORKERS as u64).map(|n| conversation(n, "warm")),
    );
    let start = Instant::now();
    run(&client, (0..updates).map(|n| conversation(n, "c")));
    let reached = updates as f64 / start.elapsed().as_secs_f64();
    let ideal = WORKERS as f64 / (2.0 * LATENCY.as_secs_f64());
    println!(
        "rate: {reached:.0} updates/s of {ideal:.0} possible ({WORKERS} workers, {} ms a request): \
         {:.1} % (budget: 95 % or more)",
        LATENCY.as_millis(),
        100.0 * reached / ideal
    );
}

/// Many workers when the platform takes no time: what they cost beyond what they do. The answers
/// come from this process, without a socket.
fn crowd(updates: u64, rounds: usize) {
    let client = Client::builder(
        Region::parse("us-east-1").unwrap(),
        Credentials::access_token("token"),
    )
    .base_url("http://127.0.0.1:1")
    .rate_limit(RateLimit::unlimited())
    .transport(|_: &Request| -> Result<Response, TransportError> { Ok(Response::new(202)) })
    .build()
    .unwrap();
    let crowds = [8, 64, 1_024];
    let mut rates = [0.0f64; 3];
    for _ in 0..rounds {
        // Interleaved, and the best of each: the machine has other work as well.
        for (workers, best) in crowds.iter().zip(&mut rates) {
            let start = Instant::now();
            run_with(&client, *workers, (0..updates).map(participant));
            *best = best.max(updates as f64 / start.elapsed().as_secs_f64());
        }
    }
    let [few, some, many] = rates;
    println!(
        "crowd: {few:.0} updates/s with 8 workers at no latency; 64 workers {:.2} of that, 1024 \
         workers {:.2} of 64's (budget: 1.00 or more, within noise)",
        some / few,
        many / some
    );
}

fn participant(n: u64) -> Update {
    Update::participant(format!("c-{n}"), "p-1").set("n", n)
}

/// Updates of participants by purpose: one request finds a hundred of them.
fn look_ahead(updates: u64) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let server = Server::start(move |req| {
        count.fetch_add(1, Ordering::Relaxed);
        let Some(ids) = req.path.split("?id=").nth(1) else {
            return Resp::empty(202);
        };
        let conversations: Vec<String> = ids
            .split(',')
            .map(|id| {
                format!(
                    r#"{{"conversationId":"{id}","participants":[{{"participantId":"p","purpose":"customer"}}]}}"#
                )
            })
            .collect();
        Resp::json(
            200,
            format!(r#"{{"conversations":[{}]}}"#, conversations.join(",")),
        )
    });
    run(
        &client(&server.url()),
        (0..updates).map(|n| {
            Update::participant(format!("{n:08}-0000-4000-8000-000000000000"), "customer")
                .set("n", n)
        }),
    );
    println!(
        "look-ahead: {:.3} requests an update (budget: 1.02)",
        requests.load(Ordering::Relaxed) as f64 / updates as f64
    );
}

fn conversation(n: u64, prefix: &str) -> Update {
    Update::conversation(format!("{prefix}-{n}")).set("n", n % 1_000)
}

/// The server stays in this process; each batch runs in one of its own.
fn memory(lines: u64) {
    let server = Server::start(|_| Resp::empty(202));
    let peak = |lines: u64| -> u64 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--child", &server.url(), &lines.to_string()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let few = peak(1_000);
    let many = peak(lines);
    println!(
        "memory: {few} KiB at its peak for 1000 lines, {many} KiB for {lines} (budget: 32768 KiB)"
    );
}

/// Updates of one participant each, by id: one request a line. Prints the peak memory in KiB.
fn child(url: &str, lines: u64) {
    let client = client(url);
    run(&client, (0..lines).map(participant));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0");
    println!("{peak}");
}
