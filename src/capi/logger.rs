//! The log callback: one for the process, which can be changed and removed.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{OnceLock, PoisonError, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::boundary::{answer, c_text, invalid, log_once};
use super::callbacks::UserData;
use crate::error::{Error, ErrorKind};

type OnLog = unsafe extern "C" fn(*mut c_void, c_int, *const c_char, *const c_char);

struct Callback {
    call: OnLog,
    userdata: UserData,
}

/// Read for as long as the callback runs, so that a callback which was replaced runs no more.
static CALLBACK: RwLock<Option<Callback>> = RwLock::new(None);

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ureq's own records hold whole requests at its trace level, the token included.
        !metadata.target().starts_with("ureq")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        log_once(|| {
            let callback = CALLBACK.read().unwrap_or_else(PoisonError::into_inner);
            let Some(Callback { call, userdata }) = &*callback else {
                return;
            };
            let level = match record.level() {
                Level::Error => 1,
                Level::Warn => 2,
                Level::Info => 3,
                Level::Debug => 4,
                Level::Trace => 5,
            };
            let (target, message) = (c_text(record.target()), c_text(record.args().to_string()));
            // SAFETY: the function and its userdata are what the caller gave for this; the texts
            // live until the call is over.
            unsafe { call(userdata.get(), level, target.as_ptr(), message.as_ptr()) };
        });
    }

    fn flush(&self) {}
}

/// True once this library's logger is that of the process.
static INSTALLED: OnceLock<bool> = OnceLock::new();

#[unsafe(no_mangle)]
pub(super) extern "C" fn gca_set_logger(
    log: Option<OnLog>,
    userdata: *mut c_void,
    max_level: c_int,
) -> c_int {
    answer(std::ptr::null_mut(), || {
        let level = match max_level {
            _ if log.is_none() => LevelFilter::Off,
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => return Err(invalid("max_level must be between 0 and 5")),
        };
        if !*INSTALLED.get_or_init(|| log::set_logger(&Logger).is_ok()) {
            return Err(Error::new(
                ErrorKind::Config,
                "the process has another logger than that of gca_set_logger: use that one",
            ));
        }
        let callback = log.map(|call| Callback {
            call,
            userdata: UserData(userdata),
        });
        *CALLBACK.write().unwrap_or_else(PoisonError::into_inner) = callback;
        log::set_max_level(level);
        Ok(String::new())
    })
}
