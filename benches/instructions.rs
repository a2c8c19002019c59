//! The instructions of one update, counted by valgrind, against bare ureq making the same requests.
//!
//! Each figure is the difference of two runs of different length, so that the start, the login and
//! the connection fall out. Unlike times they repeat, whatever else the machine does.
//!
//! `cargo bench --bench instructions` measures and fails when a budget is exceeded. It needs
//! valgrind.

#[path = "../tests/support/server.rs"]
mod server;
#[path = "support/sides.rs"]
mod sides;

use std::hint::black_box;
use std::process::{Command, ExitCode};

use genesys_attributes::audit::JsonLines;
use sides::{Bare, Result, builder, platform, update};

const SHORT: u64 = 40;
const LONG: u64 = 240;

/// What is measured: its name for the child process, what it is, the bare side, and the budget.
const ROWS: [(&str, &str, &str, f64); 4] = [
    ("cold", "cold update", "bare-cold", 1.10),
    ("warm", "warm update", "bare-warm", 1.10),
    (
        "hook",
        "warm, one hook that reads the event",
        "bare-warm",
        1.17,
    ),
    (
        "audit",
        "warm, hook and audit lines to a sink",
        "bare-warm",
        1.30,
    ),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [] | ["--check"] => measure(),
        ["--child", side, url, times] => child(side, url, times),
        _ => Err("usage: instructions".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let server = platform();
    let url = server.url();
    let cold = per_update("bare-cold", &url)?;
    let warm = per_update("bare-warm", &url)?;
    println!("bare ureq: GET and PATCH {cold} instructions, PATCH {warm}");
    let mut over = Vec::new();
    for (side, name, bare, budget) in ROWS {
        let found = per_update(side, &url)?;
        let ratio = found as f64 / if bare == "bare-cold" { cold } else { warm } as f64;
        let verdict = if ratio <= budget { "PASS" } else { "OVER" };
        println!("{name:<38} {found:>7} instructions, {ratio:.3} (budget {budget:.2}) {verdict}");
        if ratio > budget {
            over.push(name);
        }
    }
    if over.is_empty() {
        Ok(())
    } else {
        Err(format!("over budget: {}", over.join(", ")).into())
    }
}

fn per_update(side: &str, url: &str) -> Result<u64> {
    let (short, long) = (count(side, url, SHORT)?, count(side, url, LONG)?);
    Ok((long - short) / (LONG - SHORT))
}

/// The instructions of a whole process.
fn count(side: &str, url: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--child", side, url, &times.to_string()])
        .output()
        .map_err(|e| format!("valgrind cannot be started ({e}): install it"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{side}: {text}").into());
    }
    let line = text.lines().find(|line| line.contains("Collected :"));
    let number = line.and_then(|line| line.rsplit(' ').next());
    Ok(number.ok_or("valgrind says no number")?.parse()?)
}

fn child(side: &str, url: &str, times: &str) -> Result<()> {
    let times: u64 = times.parse()?;
    if let Some(kind) = side.strip_prefix("bare-") {
        let bare = Bare::new(url)?;
        let mut version = bare.version()?;
        for _ in 0..times {
            if kind == "cold" {
                version = bare.version()?;
            }
            version = bare.patch(&version)?;
        }
        return Ok(());
    }
    let mut builder = builder(url, if side == "cold" { 0 } else { 16 })?;
    if matches!(side, "hook" | "audit") {
        builder = builder.on_update(|event| {
            black_box((&event.conversation_id, &event.attributes, &event.version));
        });
    }
    if side == "audit" {
        builder = builder.audit(JsonLines::new(std::io::sink()));
    }
    let client = builder.build()?;
    for _ in 0..times {
        let _receipt = black_box(client.update(&update())?);
    }
    Ok(())
}
