//! One update by the library against bare ureq making the same requests, in the same run.
//!
//! Absolute times drift with the machine, so what counts are ratios: both sides take turns in
//! short rounds, each round gives one ratio, and the median of those is compared with the budget.
//! Two rows compare the library with itself: updates with an audit file, by those with plain lines.
//! A ratio above its budget is printed, and fails nothing; wrong request counts do. One whose lower
//! quartile is within the budget is not called over: the first lines, bare against bare, show how
//! much the machine's noise alone makes.
//!
//! `cargo bench --bench update` measures, `cargo bench --bench update -- --check` only proves in a
//! few seconds that both sides do the same work.

#[path = "../tests/support/server.rs"]
mod server;
#[path = "support/sides.rs"]
mod sides;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use genesys_attributes::audit::AuditFile;
use genesys_attributes::audit::JsonLines;
use server::Server;
use sides::{Bare, Result, builder, client, other_update, platform, update};

fn main() -> ExitCode {
    // Cargo itself adds `--bench`.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [] => pinned().unwrap_or_else(|| run(&Effort::FULL)),
        ["--pinned"] => run(&Effort::FULL),
        ["--check"] => run(&Effort::CHECK),
        ["--child", side, url] => child(side, url),
        _ => Err("usage: update [--check]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program once more, on one processor. Where the threads of client and server share a
/// processor an exchange costs half of what it costs across two, and the scheduler keeps each pair
/// of threads as it once put it: chance would decide. `None` where there is no `taskset`.
fn pinned() -> Option<Result<()>> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status
        .lines()
        .find(|l| l.starts_with("Cpus_allowed_list:"))?;
    let last = allowed.rsplit([':', ',', '-']).next()?.trim();
    let program = std::env::current_exe().ok()?;
    let mut command = Command::new("taskset");
    command.args(["-c", last]).arg(program).arg("--pinned");
    let status = command.status().ok()?;
    Some(if status.success() {
        Ok(())
    } else {
        Err(format!("the pinned run: {status}").into())
    })
}

/// How much to measure.
struct Effort {
    rounds: usize,
    /// Updates by each side in one round.
    updates: usize,
    /// Processes started by each side.
    starts: usize,
}

impl Effort {
    const FULL: Effort = Effort {
        rounds: 101,
        updates: 200,
        starts: 101,
    };
    const CHECK: Effort = Effort {
        rounds: 5,
        updates: 20,
        starts: 3,
    };
}

fn run(effort: &Effort) -> Result<()> {
    let server = platform();
    let url = server.url();
    if !std::env::args().any(|a| a == "--pinned") {
        println!("not pinned to one processor: expect noise");
    }
    println!(
        "{} rounds of {} updates by each side, taking turns; medians (quartiles) of the rounds' ratios",
        effort.rounds, effort.updates
    );
    println!(
        "{:<30} {:>11} {:>11}   {:<19} {:>6}",
        "", "library", "bare ureq", "ratio", "budget"
    );

    let cold_client = client(&url, 0)?;
    let cold_bare = Bare::new(&url)?;
    let other_bare = Bare::new(&url)?;
    let by_other = || other_bare.patch(&other_bare.version()?).map(drop);
    let by_bare = || cold_bare.patch(&cold_bare.version()?).map(drop);
    let noise = compare(&server, effort, 2, by_other, by_bare)?;
    report("noise: bare by bare, wall", &noise.wall, None);
    report("noise: bare by bare, CPU", &noise.cpu, None);

    let cold_by_library = || cold_client.update(&update()).map(drop).map_err(Into::into);
    let cold_by_bare = || cold_bare.patch(&cold_bare.version()?).map(drop);
    let cold = compare(&server, effort, 2, cold_by_library, cold_by_bare)?;
    report("cold update, wall", &cold.wall, Some(1.05));
    report("cold update, client CPU", &cold.cpu, Some(1.07));

    let warm_client = client(&url, 16)?;
    warm_client.update(&update())?;
    let warm_bare = Bare::new(&url)?;
    let mut version = warm_bare.version()?;
    let warm_by_library = || warm_client.update(&update()).map(drop).map_err(Into::into);
    let warm_by_bare = || {
        version = warm_bare.patch(&version)?;
        Ok(())
    };
    let warm = compare(&server, effort, 1, warm_by_library, warm_by_bare)?;
    report("warm update, wall", &warm.wall, Some(1.03));
    report("warm update, client CPU", &warm.cpu, Some(1.05));

    let logs = Logs::new()?;
    let by_file = builder(&url, 16)?.audit(AuditFile::open(logs.0.join("file"))?);
    let by_file = by_file.audit_values(true).build()?;
    let lines = File::create(logs.0.join("lines"))?;
    let by_lines = builder(&url, 16)?.audit(JsonLines::new(lines));
    let by_lines = by_lines.audit_values(true).build()?;
    let audited_file = || by_file.update(&update()).map(drop).map_err(Into::into);
    let audited_lines = || {
        let done = by_lines.update(&other_update());
        done.map(drop).map_err(Into::into)
    };
    let logged = compare(&server, effort, 1, audited_file, audited_lines)?;
    report("AuditFile by JsonLines, wall", &logged.wall, Some(1.10));
    report("AuditFile by JsonLines, CPU", &logged.cpu, Some(1.20));

    let start = starts(&server, effort)?;
    report("start to first update done", &start, Some(1.3));

    expect(
        "connections",
        server.connections(),
        7 + 2 * (effort.starts + 1),
    )?;
    expect("handlers that panicked", server.panics(), 0)?;
    Ok(())
}

/// A folder for two audit trails, removed at the end.
struct Logs(PathBuf);

impl Logs {
    fn new() -> Result<Logs> {
        let path = std::env::temp_dir().join(format!("ga-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Logs(path))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What one side spent in each round, per update.
#[derive(Default)]
struct Series {
    library: Vec<f64>,
    bare: Vec<f64>,
}

impl Series {
    fn of(&mut self, library: bool) -> &mut Vec<f64> {
        if library {
            &mut self.library
        } else {
            &mut self.bare
        }
    }
}

#[derive(Default)]
struct Comparison {
    wall: Series,
    cpu: Series,
}

fn compare(
    server: &Server,
    effort: &Effort,
    requests: usize,
    mut library: impl FnMut() -> Result<()>,
    mut bare: impl FnMut() -> Result<()>,
) -> Result<Comparison> {
    // Fetches tokens, connects, fills caches.
    for _ in 0..effort.updates {
        library()?;
        bare()?;
    }
    let mut found = Comparison::default();
    for round in 0..effort.rounds {
        let mut bytes = [0; 2];
        for (turn, bytes) in bytes.iter_mut().enumerate() {
            let of_library = (round + turn) % 2 == 0;
            let side: &mut dyn FnMut() -> Result<()> =
                if of_library { &mut library } else { &mut bare };
            let (requests_before, bytes_before) = (server.requests(), server.bytes_received());
            let (wall_start, cpu_start) = (Instant::now(), ThreadTime::now());
            for _ in 0..effort.updates {
                side()?;
            }
            let (cpu_spent, wall_spent) = (cpu_start.elapsed(), wall_start.elapsed());
            let per_update = |d: Duration| d.as_secs_f64() / effort.updates as f64;
            found.wall.of(of_library).push(per_update(wall_spent));
            found.cpu.of(of_library).push(per_update(cpu_spent));
            let sent = server.requests() - requests_before;
            expect("requests in a round", sent, requests * effort.updates)?;
            *bytes = server.bytes_received() - bytes_before;
        }
        if bytes[0] != bytes[1] {
            return Err(format!("the sides sent different numbers of bytes: {bytes:?}").into());
        }
    }
    Ok(found)
}

/// Whole processes: start, log in, read, write, end.
fn starts(server: &Server, effort: &Effort) -> Result<Series> {
    let program = std::env::current_exe()?;
    let url = server.url();
    let mut found = Series::default();
    for round in 0..=effort.starts {
        for turn in 0..2 {
            let of_library = (round + turn) % 2 == 0;
            let side = if of_library { "library" } else { "bare" };
            let before = server.requests();
            let start = Instant::now();
            let status = Command::new(&program)
                .args(["--child", side, &url])
                .status()?;
            let spent = start.elapsed().as_secs_f64();
            if !status.success() {
                return Err(format!("--child {side}: {status}").into());
            }
            expect("requests of a process", server.requests() - before, 3)?;
            // The first of each loads the program from disk.
            if round > 0 {
                found.of(of_library).push(spent);
            }
        }
    }
    Ok(found)
}

fn child(side: &str, url: &str) -> Result<()> {
    match side {
        "library" => {
            client(url, 16)?.update(&update())?;
        }
        "bare" => {
            let bare = Bare::new(url)?;
            bare.patch(&bare.version()?)?;
        }
        _ => return Err("no such side".into()),
    }
    Ok(())
}

fn report(name: &str, series: &Series, budget: Option<f64>) {
    let mut ratios: Vec<f64> = series
        .library
        .iter()
        .zip(&series.bare)
        .map(|(library, bare)| library / bare)
        .collect();
    let (low, ratio, high) = (
        at(&mut ratios, 0.25),
        at(&mut ratios, 0.5),
        at(&mut ratios, 0.75),
    );
    let spread = format!("{ratio:.3} ({low:.2}-{high:.2})");
    let micros = |values: &[f64]| at(&mut values.to_vec(), 0.5) * 1e6;
    print!(
        "{name:<30} {:>8.1} µs {:>8.1} µs   {spread:<19}",
        micros(&series.library),
        micros(&series.bare)
    );
    match budget {
        Some(budget) => println!(" {budget:>6.2} {}", verdict(ratio, low, budget)),
        None => println!(),
    }
}

fn verdict(ratio: f64, low: f64, budget: f64) -> &'static str {
    if ratio <= budget {
        "PASS"
    } else if low <= budget {
        "within its spread"
    } else {
        "OVER"
    }
}

/// The value below which that share of the values lies.
fn at(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn expect(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found}, expected {expected}").into())
    }
}
