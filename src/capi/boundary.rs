//! What crosses the boundary: status codes, strings, and no panic.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::size_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Thread;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

pub(super) const OK: c_int = 0;

/// The status of an error.
pub(super) fn status_of(kind: ErrorKind) -> c_int {
    kind.code()
}

/// The name of a status, as C text.
pub(super) fn status_name(status: c_int) -> &'static CStr {
    const NAMES: [(ErrorKind, &CStr); 16] = [
        (ErrorKind::InvalidInput, c"invalidInput"),
        (ErrorKind::Config, c"config"),
        (ErrorKind::Auth, c"auth"),
        (ErrorKind::Forbidden, c"forbidden"),
        (ErrorKind::NotFound, c"notFound"),
        (ErrorKind::Conflict, c"conflict"),
        (ErrorKind::RateLimited, c"rateLimited"),
        (ErrorKind::Timeout, c"timeout"),
        (ErrorKind::Connect, c"connect"),
        (ErrorKind::Transport, c"transport"),
        (ErrorKind::Server, c"server"),
        (ErrorKind::Protocol, c"protocol"),
        (ErrorKind::PayloadTooLarge, c"payloadTooLarge"),
        (ErrorKind::Audit, c"audit"),
        (ErrorKind::Cancelled, c"cancelled"),
        (ErrorKind::Internal, c"internal"),
    ];
    if status == OK {
        return c"ok";
    }
    NAMES
        .iter()
        .find(|(kind, _)| status_of(*kind) == status)
        .map_or(c"unknown", |(_, name)| name)
}

/// Runs the body of a function that answers with a status and a text. Nothing unwinds out of it.
///
/// `result` is NULL or points to a place for a pointer, as the header asks.
pub(super) fn answer(result: *mut *mut c_char, work: impl FnOnce() -> Result<String>) -> c_int {
    give(result, None);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        keep_thread_reachable();
        let answer = match in_log() {
            true => Err(invalid(
                "this was called from inside of the log callback: call it after the callback returned",
            )),
            false => work(),
        };
        match answer {
            Ok(text) => (OK, text),
            Err(error) => (status_of(error.kind()), json(&error)),
        }
    }));
    let (status, text) = caught.unwrap_or_else(|_| {
        let error = Error::new(
            ErrorKind::Internal,
            "the library panicked: please report it",
        )
        .with_may_have_applied(true);
        (status_of(error.kind()), json(&error))
    });
    if !result.is_null() {
        give(result, Some(text));
    }
    status
}

/// Makes a thread's handle look to leak checkers like what it is: in use.
///
/// The standard library keeps the handle of a thread by a pointer into the middle of its
/// allocation, and never frees that of a main thread which is not Rust's. valgrind calls that
/// "possibly lost", an error by default. A pointer to its beginning makes it "still reachable".
fn keep_thread_reachable() {
    thread_local! {
        /// Never followed.
        static HANDLE: Cell<usize> = const { Cell::new(0) };
    }
    if HANDLE.get() == 0 && size_of::<Thread>() == size_of::<usize>() {
        let handle = std::thread::current();
        // SAFETY: the sizes are equal, and any bits are an integer.
        HANDLE.set(unsafe { std::mem::transmute_copy::<Thread, usize>(&handle) });
    }
}

/// Runs the body of a function that has no answer.
pub(super) fn quietly(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

fn give(result: *mut *mut c_char, text: Option<String>) {
    if result.is_null() {
        return;
    }
    let text = text.map_or(std::ptr::null_mut(), |text| c_text(text).into_raw());
    // SAFETY: it is not NULL, and the header asks for a place that can be written.
    unsafe { result.write(text) };
}

/// A text for C. JSON has no NUL; what else there is loses its own.
pub(super) fn c_text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap_or_else(|error| {
        let mut bytes = error.into_vec();
        bytes.retain(|byte| *byte != 0);
        CString::new(bytes).unwrap_or_default()
    })
}

/// A value of ours as JSON, which cannot fail for those that there are.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, problem)
}

pub(super) fn is_null(name: &str) -> Error {
    invalid(format!("{name} is NULL"))
}

/// Writes what a function makes to the place that C gave. It is not made where there is no place.
///
/// # Safety
///
/// `place` is NULL, or can be written.
pub(super) unsafe fn out<T>(
    name: &str,
    place: *mut T,
    made: impl FnOnce() -> Result<T>,
) -> Result<()> {
    if place.is_null() {
        return Err(is_null(name));
    }
    let made = made()?;
    // SAFETY: it is not NULL, and this function asks for the rest.
    unsafe { place.write(made) };
    Ok(())
}

/// Frees what a handle of this library holds.
///
/// # Safety
///
/// `handle` is NULL, or came from `Box::into_raw` and was not freed.
pub(super) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: as this function asks for.
        quietly(|| drop(unsafe { Box::from_raw(handle) }));
    }
}

/// The text that C gave.
///
/// # Safety
///
/// `text` is NULL, or points to bytes that end with a NUL and stay as they are for `'a`.
pub(super) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(is_null(name));
    }
    // SAFETY: as this function asks for.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| invalid(format!("{name} is not UTF-8")))
}

/// The JSON object that C gave.
///
/// # Safety
///
/// As for [`text`].
pub(super) unsafe fn object(name: &str, json: *const c_char) -> Result<Map<String, Value>> {
    // SAFETY: as this function asks for.
    parsed(name, unsafe { text(name, json) }?)
}

/// A JSON object.
pub(super) fn parsed(name: &str, json: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(json) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid(format!("{name} is not a JSON object"))),
        Err(error) => Err(invalid(format!(
            "{name} is not JSON (line {}, column {})",
            error.line(),
            error.column()
        ))),
    }
}

thread_local! {
    /// This thread is in the log callback, where any lock may be held.
    static IN_LOG: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in the log callback.
pub(super) fn in_log() -> bool {
    IN_LOG.get()
}

/// Runs the log callback, unless this thread is in it already: its records would bring about more.
pub(super) fn log_once(call: impl FnOnce()) {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            IN_LOG.set(false);
        }
    }
    if !IN_LOG.replace(true) {
        let _leave = Leave;
        call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_are_those_of_the_error_kinds() {
        assert_eq!(status_name(0), c"ok");
        assert_eq!(status_name(-1), c"unknown");
        assert_eq!(status_name(c_int::MAX), c"unknown");
        for kind in ErrorKind::ALL.iter().copied() {
            assert_eq!(status_name(status_of(kind)).to_str().unwrap(), kind.name());
        }
    }

    #[test]
    fn panic_inside_becomes_status_internal() {
        let mut result = std::ptr::null_mut();
        let status = answer(&mut result, || panic!("on purpose"));
        assert_eq!(status, 255);
        // SAFETY: `answer` gave it.
        let text = unsafe { CString::from_raw(result) }.into_string().unwrap();
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["kind"], "internal");
        assert_eq!(error["violations"], Value::Array(Vec::new()));
    }

    #[test]
    fn text_with_nul_loses_it() {
        assert_eq!(c_text("a\0b"), c"ab".to_owned());
    }

    #[test]
    fn log_callback_is_left_after_a_panic() {
        quietly(|| log_once(|| panic!("on purpose")));
        assert!(!in_log());
    }

    #[test]
    fn nothing_is_called_and_nothing_logged_inside_of_the_log_callback() {
        log_once(|| {
            assert_eq!(answer(std::ptr::null_mut(), || Ok(String::new())), 1);
            log_once(|| panic!("called inside of itself"));
        });
        assert_eq!(answer(std::ptr::null_mut(), || Ok(String::new())), OK);
    }
}
