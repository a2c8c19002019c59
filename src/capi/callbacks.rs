//! Calls into C. None is made under a lock of this library but the log callback's.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::sync::{Mutex, OnceLock};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Deserialize;
use serde_json::Value;

use super::boundary::{ClientId, Here, Place, c_text, invalid, json, object, parsed, text};
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::{AuditRecord, AuditSink};
use crate::report::event::UpdateEvent;
use crate::report::receipt::Snapshot;
use crate::update::Update;
use crate::util::sync::lock;
use crate::values::attributes::Attributes;

pub(super) type OnText = unsafe extern "C" fn(*mut c_void, *const c_char);
pub(super) type Compute = unsafe extern "C" fn(*mut c_void, *const c_char, *mut Reply) -> c_int;
pub(super) type NextLine = unsafe extern "C" fn(*mut c_void) -> *const c_char;
pub(super) type OnOutcome = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
pub(super) type OnLog = unsafe extern "C" fn(*mut c_void, c_int, *const c_char, *const c_char);

/// The caller's own pointer, which only goes back to the caller.
#[derive(Clone, Copy)]
pub(super) struct UserData(pub(super) *mut c_void);

// SAFETY: it is never looked at here; the header says that the callbacks which get it are called
// from any thread, so that what it points to must bear that.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    /// By a method, so that a closure captures the whole and not the bare pointer.
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// `gca_callbacks` of the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Callbacks {
    size: usize,
    userdata: *mut c_void,
    on_update: Option<OnText>,
    on_audit: Option<OnText>,
}

/// What a client calls.
pub(super) struct Hooks {
    pub(super) on_update: Option<Hook>,
    pub(super) on_audit: Option<Hook>,
}

impl Hooks {
    /// The callbacks of the client with this number.
    ///
    /// # Safety
    ///
    /// `callbacks` is NULL or points to a `gca_callbacks` of the size that its first field says.
    pub(super) unsafe fn read(callbacks: *const Callbacks, client: ClientId) -> Result<Hooks> {
        if callbacks.is_null() {
            return Ok(Hooks {
                on_update: None,
                on_audit: None,
            });
        }
        // Later versions only add fields, so what is as long as this one begins with it.
        // SAFETY: there is at least the first field.
        let size = unsafe { (&raw const (*callbacks).size).read() };
        if size < size_of::<Callbacks>() {
            return Err(invalid(
                "callbacks.size is too small: set it to sizeof(gca_callbacks)",
            ));
        }
        // SAFETY: its size says that the whole of it is there.
        let callbacks = unsafe { callbacks.read() };
        let hook = |call: Option<OnText>| {
            call.map(|call| Hook {
                call,
                userdata: UserData(callbacks.userdata),
                client,
            })
        };
        Ok(Hooks {
            on_update: hook(callbacks.on_update),
            on_audit: hook(callbacks.on_audit),
        })
    }
}

/// A callback that gets a record.
pub(super) struct Hook {
    call: OnText,
    userdata: UserData,
    client: ClientId,
}

impl Hook {
    pub(super) fn update(&self, event: &UpdateEvent) {
        self.call(Place::Hook, json(event));
    }

    fn call(&self, place: Place, text: String) {
        let text = c_text(text);
        // SAFETY: the function and its userdata are what the caller gave for this; the text lives
        // until the call is over.
        let call = || unsafe { (self.call)(self.userdata.get(), text.as_ptr()) };
        Here::current().inside(place, self.client).run(call);
    }
}

impl AuditSink for Hook {
    fn record(&self, record: &AuditRecord) -> std::io::Result<()> {
        self.call(Place::Update, json(record));
        Ok(())
    }
}

/// `gca_reply` of the header: what a `compute` callback wants.
#[derive(Default)]
pub(super) struct Reply(Mutex<Option<Result<Attributes>>>);

impl Reply {
    /// # Safety
    ///
    /// As for [`text`].
    pub(super) unsafe fn set(&self, attributes: *const c_char) -> Result<()> {
        // SAFETY: as this function asks for.
        let read = unsafe { object("attributes_json", attributes) };
        let outcome = read.as_ref().map(drop).map_err(Error::clone);
        // Kept also when it is refused: nothing is written then, and the update says why.
        *lock(&self.0) = Some(read);
        outcome
    }
}

/// Asks a `compute` callback what to write.
pub(super) fn compute(
    call: Compute,
    userdata: UserData,
    client: ClientId,
    now: &Snapshot,
) -> Result<Option<Attributes>> {
    let snapshot = c_text(json(now));
    let mut reply = Reply::default();
    let reply_pointer = &raw mut reply;
    // SAFETY: the function and its userdata are what the caller gave for this; the text and the
    // reply live until the call is over, which is how long the header allows their use.
    let asked = || unsafe { call(userdata.get(), snapshot.as_ptr(), reply_pointer) };
    let status = Here::current().inside(Place::Update, client).run(asked);
    if status != 0 {
        return Err(Error::new(
            ErrorKind::Cancelled,
            format!("the compute callback ended the update ({status})"),
        ));
    }
    let wanted = lock(&reply.0).take();
    wanted.transpose()
}

/// The lines of a batch.
pub(super) struct Lines {
    pub(super) next: NextLine,
    pub(super) userdata: UserData,
    /// Where the batch was called: its lines may call no more than that, since it waits for them.
    pub(super) here: Here,
    pub(super) ended: bool,
}

impl Iterator for Lines {
    type Item = Result<Update>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        // SAFETY: the function and its userdata are what the caller gave for this.
        let next = || unsafe { (self.next)(self.userdata.get()) };
        let line = self.here.run(next);
        if line.is_null() {
            self.ended = true;
            return None;
        }
        // SAFETY: the header asks for a text that stays until the next call of the function, and
        // it is copied before that.
        let line = unsafe { text("the line", line) };
        Some(line.and_then(|line| update(parsed("the line", line)?)))
    }
}

/// An update of the record form.
pub(super) fn update(record: serde_json::Map<String, Value>) -> Result<Update> {
    Update::deserialize(Value::Object(record)).map_err(|error| invalid(error.to_string()))
}

/// Hands an outcome over; `true` when the batch is to stop.
pub(super) fn outcome(call: OnOutcome, userdata: UserData, record: String) -> bool {
    let record: CString = c_text(record);
    // SAFETY: the function and its userdata are what the caller gave for this; the text lives until
    // the call is over.
    unsafe { call(userdata.get(), record.as_ptr()) != 0 }
}

/// The one logger of this process.
struct Logger {
    call: OnLog,
    userdata: UserData,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Whether the log callback could be set: it can be, once.
pub(super) fn set_logger(call: OnLog, userdata: UserData, level: LevelFilter) -> bool {
    struct Once;
    impl Log for Once {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            // ureq's own records hold whole requests at its trace level, the token included.
            !metadata.target().starts_with("ureq")
        }

        fn log(&self, record: &Record<'_>) {
            // One that is made while the callback runs would only bring about the next.
            if let Some(logger) = LOGGER.get()
                && self.enabled(record.metadata())
                && Here::current().place != Place::Log
            {
                logger.log(record);
            }
        }

        fn flush(&self) {}
    }

    if LOGGER.set(Logger { call, userdata }).is_err() || log::set_logger(&Once).is_err() {
        return false;
    }
    log::set_max_level(level);
    true
}

impl Logger {
    fn log(&self, record: &Record<'_>) {
        let level: c_int = match record.level() {
            Level::Error => 1,
            Level::Warn => 2,
            Level::Info => 3,
            Level::Debug => 4,
            Level::Trace => 5,
        };
        let (target, message) = (c_text(record.target()), c_text(record.args().to_string()));
        // SAFETY: the function and its userdata are what the caller gave for this; the texts live
        // until the call is over.
        Here::current().in_log().run(|| unsafe {
            (self.call)(
                self.userdata.get(),
                level,
                target.as_ptr(),
                message.as_ptr(),
            );
        });
    }
}
