//! The batch engine against what is possible: the rate that 16 workers reach when each request
//! takes 20 ms, and the memory that a million lines need beyond a thousand.
//!
//! `cargo bench --bench batch` measures; with `-- --check` it only runs, in a few seconds.

#[path = "../tests/support/server.rs"]
mod server;

use std::ops::ControlFlow;
use std::process::Command;
use std::time::{Duration, Instant};

use genesys_attributes::{Batch, BatchReport, Client, Credentials, RateLimit, Region, Update};
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
    let report = Batch::new(client)
        .workers(WORKERS)
        .run(updates.map(Ok), |_| ControlFlow::Continue(()));
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
    run(
        &client,
        (0..lines).map(|n| Update::participant(format!("c-{n}"), "p-1").set("n", n)),
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0");
    println!("{peak}");
}
