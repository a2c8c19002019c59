//! The callbacks of a client, and what a `compute` callback replies.

use std::ffi::{c_char, c_int, c_void};
use std::mem::size_of;
use std::sync::{Arc, Mutex};

use super::boundary::{c_text, invalid, json, object, text};
use super::calling::Calling;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::{AuditRecord, AuditSink};
use crate::report::event::UpdateEvent;
use crate::report::receipt::Snapshot;
use crate::update::Edit;
use crate::util::sync::lock;

pub(super) type OnText = unsafe extern "C" fn(*mut c_void, *const c_char);
pub(super) type Compute = unsafe extern "C" fn(*mut c_void, *const c_char, *mut Reply) -> c_int;

/// The caller's own pointer, which only goes back to the caller.
#[derive(Clone, Copy)]
pub(super) struct UserData(pub(super) *mut c_void);

// SAFETY: this library only hands the pointer back. The header says that the callbacks which get it
// are called from any thread.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    /// By a method, so that a closure captures the whole and not the bare pointer.
    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}

/// `gca_callbacks` of the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Callbacks {
    pub(super) size: usize,
    pub(super) userdata: *mut c_void,
    pub(super) on_update: Option<OnText>,
    pub(super) on_audit: Option<OnText>,
}

/// The callbacks that a client calls.
#[derive(Default)]
pub(super) struct Hooks {
    pub(super) on_update: Option<Hook>,
    pub(super) on_audit: Option<Hook>,
}

impl Hooks {
    /// # Safety
    ///
    /// `callbacks` is NULL or points to a `gca_callbacks` of the size that its first field says.
    pub(super) unsafe fn read(
        callbacks: *const Callbacks,
        calling: &Arc<Calling>,
    ) -> Result<Hooks> {
        if callbacks.is_null() {
            return Ok(Hooks::default());
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
                calling: calling.clone(),
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
    calling: Arc<Calling>,
}

impl Hook {
    pub(super) fn update(&self, event: &UpdateEvent) {
        self.call(json(event));
    }

    fn call(&self, text: String) {
        let text = c_text(text);
        // SAFETY: the function and its userdata are what the caller gave for this; the text lives
        // until the call is over.
        unsafe { (self.call)(self.userdata.get(), text.as_ptr()) };
    }
}

impl AuditSink for Hook {
    fn record(&self, record: &AuditRecord) -> std::io::Result<()> {
        let conversation = &record.conversation_id;
        self.calling
            .during(conversation, || self.call(json(record)));
        Ok(())
    }
}

/// `gca_reply` of the header: what a `compute` callback wants.
#[derive(Default)]
pub(super) struct Reply(Mutex<Wanted>);

#[derive(Default)]
struct Wanted {
    edit: Option<Edit>,
    /// The last reply, where it could not be used.
    error: Option<Error>,
}

impl Reply {
    /// # Safety
    ///
    /// As for [`text`].
    pub(super) unsafe fn set(&self, attributes: *const c_char) -> Result<()> {
        // SAFETY: as this function asks for.
        let read = unsafe { object("attributes_json", attributes) };
        self.change(read, |wanted, attributes| {
            wanted.error = None;
            wanted.edit.get_or_insert_default().set = attributes;
        })
    }

    /// # Safety
    ///
    /// As for [`text`].
    pub(super) unsafe fn remove(&self, key: *const c_char) -> Result<()> {
        // SAFETY: as this function asks for.
        self.change(unsafe { text("key", key) }, |wanted, key| {
            let edit = wanted.edit.take().unwrap_or_default();
            wanted.edit = Some(edit.remove(key));
        })
    }

    /// Keeps an error too: nothing is written then, and the update fails with it.
    fn change<T>(&self, read: Result<T>, with: impl FnOnce(&mut Wanted, T)) -> Result<()> {
        let mut wanted = lock(&self.0);
        match read {
            Ok(read) => with(&mut wanted, read),
            Err(error) => {
                wanted.error = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Asks a `compute` callback what to write.
pub(super) fn compute(
    call: Compute,
    userdata: UserData,
    calling: &Calling,
    now: &Snapshot,
) -> Result<Option<Edit>> {
    let snapshot = c_text(json(now));
    let mut reply = Reply::default();
    let reply_pointer = &raw mut reply;
    // SAFETY: the function and its userdata are what the caller gave for this; the text and the
    // reply live until the call is over, which is how long the header allows their use.
    let asked = || unsafe { call(userdata.get(), snapshot.as_ptr(), reply_pointer) };
    let status = calling.during(&now.conversation_id, asked);
    if status != 0 {
        return Err(Error::new(
            ErrorKind::Cancelled,
            format!("the compute callback ended the update ({status})"),
        ));
    }
    let wanted = std::mem::take(&mut *lock(&reply.0));
    match wanted.error {
        Some(error) => Err(error),
        None => Ok(wanted.edit),
    }
}
