//! A platform for tests: the in-memory one behind a port of this machine.

use std::ffi::{c_char, c_int};

use serde_json::json as value;

use super::boundary::{answer, free, invalid, is_null, object, out, text};
use super::functions::nothing;
use crate::client::settings::Fields;
use crate::error::{Error, ErrorKind, Result};
use crate::testing::{CLIENT_ID, CLIENT_SECRET, Platform, Server};

/// `gca_sandbox` of the header.
pub(super) struct Sandbox {
    platform: Platform,
    _server: Server,
}

/// Starts a sandbox, and gives the settings of a client for it.
fn start(port: u16) -> Result<(*mut Sandbox, String)> {
    let platform = Platform::new();
    let server = platform.serve(port).map_err(|error| {
        let problem = format!("port {port} cannot be used: {error}; give another one, or 0");
        Error::new(ErrorKind::Config, problem)
    })?;
    let config = value!({
        "baseUrl": server.url(),
        "clientId": CLIENT_ID,
        "clientSecret": CLIENT_SECRET,
        "ratePerMinute": 0,
    });
    let sandbox = Box::new(Sandbox {
        platform,
        _server: server,
    });
    Ok((Box::into_raw(sandbox), config.to_string()))
}

/// Runs the body of a function that takes a sandbox.
///
/// # Safety
///
/// `sandbox` is NULL, or came from `gca_sandbox_start` and was not freed.
unsafe fn with_platform(
    sandbox: *const Sandbox,
    result: *mut *mut c_char,
    work: impl FnOnce(&Platform) -> Result<()>,
) -> c_int {
    // SAFETY: as this function asks for.
    let sandbox = unsafe { sandbox.as_ref() };
    answer(result, || {
        work(&sandbox.ok_or_else(|| is_null("sandbox"))?.platform)?;
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_sandbox_start(
    options_json: *const c_char,
    sandbox: *mut *mut Sandbox,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        let mut port = 0;
        if !options_json.is_null() {
            // SAFETY: it is not NULL, and the header asks for a text.
            let mut options = Fields::new(unsafe { object("options_json", options_json) }?);
            port = options.whole("port")?.unwrap_or(0);
            options.finish()?;
        }
        let mut config = nothing();
        let start = || {
            let started;
            (started, config) = start(port)?;
            Ok(started)
        };
        // SAFETY: the header asks for a place that can be written, or NULL.
        unsafe { out("sandbox", sandbox, start) }?;
        Ok(config)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_sandbox_add(
    sandbox: *mut Sandbox,
    conversation_id: *const c_char,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for a sandbox and a text, or NULL.
    unsafe {
        with_platform(sandbox, result, |platform| {
            platform.add_conversation(text("conversation_id", conversation_id)?);
            Ok(())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_sandbox_fail_next(
    sandbox: *mut Sandbox,
    http_status: c_int,
    result: *mut *mut c_char,
) -> c_int {
    let fail = |platform: &Platform| {
        match u16::try_from(http_status) {
            Ok(0) => platform.lose_next_answer(),
            Ok(429) => platform.throttle_next(1),
            Ok(status @ 400..=599) => platform.fail_next(status),
            _ => return Err(invalid("http_status must be 0, or 400 to 599")),
        }
        Ok(())
    };
    // SAFETY: the header asks for a sandbox, or NULL.
    unsafe { with_platform(sandbox, result, fail) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_sandbox_free(sandbox: *mut Sandbox) {
    // SAFETY: the header asks for a sandbox of gca_sandbox_start, once, or NULL.
    unsafe { free(sandbox) };
}
