//! SIGINT, SIGTERM and SIGHUP: the first asks, the second ends the program at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use genesys_attributes::Cancel;
#[cfg(unix)]
use signal_hook::consts::SIGHUP;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

#[cfg(unix)]
const SIGNALS: &[(i32, &str)] = &[(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];
#[cfg(not(unix))]
const SIGNALS: &[(i32, &str)] = &[(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM")];

#[derive(Clone)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    seen: Arc<AtomicBool>,
}

impl Signals {
    /// From now on the first signal only sets a flag. A signal that is ignored stays ignored.
    pub(crate) fn catch() -> io::Result<Signals> {
        let signals = Signals {
            caught: Arc::new(AtomicUsize::new(0)),
            seen: Arc::new(AtomicBool::new(false)),
        };
        let ignored = ignored();
        for (signal, _) in SIGNALS {
            if ignored & 1 << (signal - 1) != 0 {
                continue;
            }
            // In this order: the first signal finds the flag unset and sets it last, so that a
            // thread that sees it set knows the signal.
            let status = i32::from(status(*signal));
            flag::register_conditional_shutdown(*signal, status, signals.seen.clone())?;
            flag::register_usize(*signal, signals.caught.clone(), *signal as usize)?;
            flag::register(*signal, signals.seen.clone())?;
        }
        Ok(signals)
    }

    /// A flag that the first signal sets.
    pub(crate) fn cancel(&self) -> Cancel {
        Cancel::from(self.seen.clone())
    }

    /// The exit status of the signal that came, and its name.
    pub(crate) fn caught(&self) -> Option<(u8, &'static str)> {
        let caught = self.caught.load(Ordering::Acquire);
        let found = SIGNALS
            .iter()
            .find(|(signal, _)| *signal as usize == caught);
        found.map(|(signal, name)| (status(*signal), *name))
    }
}

/// By the custom of shells.
fn status(signal: i32) -> u8 {
    128 + signal as u8
}

/// The signals that this process ignores since its start, as by nohup: a bit each. Known on Linux;
/// elsewhere only a call that Rust deems unsafe tells.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
