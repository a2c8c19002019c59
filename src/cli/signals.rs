//! SIGINT and SIGTERM: the first asks, the second ends the program at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use genesys_attributes::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

#[derive(Clone)]
pub(crate) struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// From now on the first signal is only written down.
    pub(crate) fn catch() -> io::Result<Signals> {
        let (caught, seen) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first one finds the flag unset, and sets it.
            flag::register_conditional_shutdown(signal, status(signal), seen.clone())?;
            flag::register(signal, seen.clone())?;
            flag::register_usize(signal, caught.clone(), signal as usize)?;
        }
        Ok(Signals(caught))
    }

    /// The exit status of the signal that came, and its name.
    pub(crate) fn caught(&self) -> Option<(u8, &'static str)> {
        match self.0.load(Ordering::Acquire) as i32 {
            0 => None,
            SIGTERM => Some((status(SIGTERM) as u8, "SIGTERM")),
            _ => Some((status(SIGINT) as u8, "SIGINT")),
        }
    }
}

/// A flag that the first signal sets; the second one ends the program at once.
pub(crate) fn cancel() -> io::Result<Cancel> {
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, status(signal), seen.clone())?;
        flag::register(signal, seen.clone())?;
    }
    Ok(Cancel::from(seen))
}

/// By the custom of shells.
fn status(signal: i32) -> i32 {
    128 + signal
}
