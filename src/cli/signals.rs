//! SIGINT and SIGTERM: the first asks, the second ends the program at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use genesys_attributes::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

#[derive(Clone)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    seen: Arc<AtomicBool>,
}

impl Signals {
    /// From now on the first signal is only written down.
    pub(crate) fn catch() -> io::Result<Signals> {
        let signals = Signals {
            caught: Arc::new(AtomicUsize::new(0)),
            seen: Arc::new(AtomicBool::new(false)),
        };
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first one finds the flag unset, and sets it last, so that whoever
            // sees it set knows the signal.
            flag::register_conditional_shutdown(signal, status(signal), signals.seen.clone())?;
            flag::register_usize(signal, signals.caught.clone(), signal as usize)?;
            flag::register(signal, signals.seen.clone())?;
        }
        Ok(signals)
    }

    /// A flag that the first signal sets.
    pub(crate) fn cancel(&self) -> Cancel {
        Cancel::from(self.seen.clone())
    }

    /// The exit status of the signal that came, and its name.
    pub(crate) fn caught(&self) -> Option<(u8, &'static str)> {
        match self.caught.load(Ordering::Acquire) as i32 {
            0 => None,
            SIGTERM => Some((status(SIGTERM) as u8, "SIGTERM")),
            _ => Some((status(SIGINT) as u8, "SIGINT")),
        }
    }
}

/// By the custom of shells.
fn status(signal: i32) -> i32 {
    128 + signal
}
