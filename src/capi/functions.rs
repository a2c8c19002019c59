//! The functions of the header, in its order.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::boundary::{self, answer, free, invalid, is_null, json, object, out, quietly, text};
use super::callbacks::{self, Callbacks, Compute, Hooks, Reply, UserData};
use super::calling::Calling;
use crate::client::builder::ClientBuilder;
use crate::client::settings::Settings;
use crate::client::{Client, UpdateOptions};
use crate::error::Result;
use crate::store::Target;
use crate::update::Update;
use crate::util::sync::Cancel;

/// `gca_client` of the header.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) client: Client,
    pub(super) calling: Arc<Calling>,
}

impl Handle {
    pub(super) fn of_hooks(
        mut builder: ClientBuilder,
        hooks: Hooks,
        calling: Arc<Calling>,
    ) -> Result<Handle> {
        if let Some(hook) = hooks.on_audit {
            builder = builder.audit(hook);
        }
        if let Some(hook) = hooks.on_update {
            builder = builder.on_update(move |event| hook.update(event));
        }
        let client = builder.build()?;
        Ok(Handle { client, calling })
    }

    /// Lets an update of this target begin, unless the update could wait for itself.
    fn begin(&self, target: &Target, cancel: Option<&Cancel>) -> Result<()> {
        self.client.core()?;
        self.calling.begin(target.conversation_id(), cancel)
    }
}

/// What is said where there is nothing to say.
pub(super) fn nothing() -> String {
    "{}".to_owned()
}

/// Runs the body of a function that takes a client and a flag, which may be NULL.
///
/// # Safety
///
/// Both are NULL, or came from `gca_client_new` and `gca_cancel_new` and were not freed.
pub(super) unsafe fn with_client(
    client: *const Handle,
    cancel: *const Cancel,
    result: *mut *mut c_char,
    work: impl FnOnce(Handle, Option<&Cancel>) -> Result<String>,
) -> c_int {
    // SAFETY: as this function asks for.
    let (client, cancel) = unsafe { (client.as_ref(), cancel.as_ref()) };
    // Clones, so that both live for as long as they are used.
    let (client, cancel) = (client.cloned(), cancel.cloned());
    answer(result, || {
        work(client.ok_or_else(|| is_null("client"))?, cancel.as_ref())
    })
}

/// An update in the form of a record.
pub(super) fn update(record: Map<String, Value>) -> Result<Update> {
    Update::deserialize(Value::Object(record)).map_err(|error| invalid(error.to_string()))
}

/// # Safety
///
/// As for [`text`].
unsafe fn update_of(update_json: *const c_char) -> Result<Update> {
    // SAFETY: as this function asks for.
    update(unsafe { object("update_json", update_json) }?)
}

/// # Safety
///
/// As for [`text`].
unsafe fn target_of(target_json: *const c_char) -> Result<Target> {
    // SAFETY: as this function asks for.
    let record = unsafe { object("target_json", target_json) }?;
    for name in [
        "attributes",
        "remove",
        "ifVersion",
        "skipUnchanged",
        "verify",
    ] {
        if record.contains_key(name) {
            return Err(invalid(format!(
                "target_json: {name} says what to write or how, and a target only where: leave it \
                 out"
            )));
        }
    }
    Ok(update(record)?.target().clone())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn gca_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn gca_status_name(status: c_int) -> *const c_char {
    boundary::status_name(status).as_ptr()
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: the header asks for a text that this library gave, once.
        quietly(|| drop(unsafe { CString::from_raw(text) }));
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_client_new(
    config_json: *const c_char,
    callbacks: *const Callbacks,
    client: *mut *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    let make = || {
        let calling = Arc::default();
        // SAFETY: the header asks for a gca_callbacks with its size, or NULL.
        let mut hooks = unsafe { Hooks::read(callbacks, &calling) }?;
        let settings = if config_json.is_null() {
            Settings::default()
        } else {
            // SAFETY: the header asks for a text.
            Settings::from_json(unsafe { text("config_json", config_json) }?)?
        };
        // Beside the file of the settings.
        let sink = hooks.on_audit.take().map(|hook| Arc::new(hook) as _);
        let builder = settings.builder_with_sink(sink)?;
        let made = Handle::of_hooks(builder, hooks, calling)?;
        Ok(Box::into_raw(Box::new(made)))
    };
    answer(result, || {
        // SAFETY: the header asks for a place that can be written, or NULL.
        unsafe { out("client", client, make) }?;
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_client_free(client: *mut Handle) {
    // SAFETY: the header asks for a client of gca_client_new, once, or NULL.
    unsafe { free(client) };
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_update(
    client: *mut Handle,
    update_json: *const c_char,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let update = update_of(update_json)?;
            handle.begin(update.target(), cancel)?;
            let receipt = match cancel {
                None => handle.client.update(&update),
                Some(cancel) => handle.client.update_cancellable(&update, cancel),
            };
            Ok(json(&receipt?))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_update_with(
    client: *mut Handle,
    target_json: *const c_char,
    compute: Option<Compute>,
    userdata: *mut c_void,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let target = target_of(target_json)?;
            let compute = compute.ok_or_else(|| is_null("compute"))?;
            handle.begin(&target, cancel)?;
            let mut options = UpdateOptions::new();
            if let Some(cancel) = cancel {
                options = options.cancel(cancel);
            }
            let ask =
                |now: &_| callbacks::compute(compute, UserData(userdata), &handle.calling, now);
            Ok(json(
                &handle.client.update_with_options(&target, options, ask)?,
            ))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_reply_set(
    reply: *mut Reply,
    attributes_json: *const c_char,
) -> c_int {
    answer(null_mut(), || {
        // SAFETY: the header asks for the reply of the compute callback that is running and a text,
        // or NULL.
        unsafe {
            let reply = reply.as_ref().ok_or_else(|| is_null("reply"))?;
            reply.set(attributes_json)?;
        }
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_reply_remove(reply: *mut Reply, key: *const c_char) -> c_int {
    answer(null_mut(), || {
        // SAFETY: the header asks for the reply of the compute callback that is running and a text,
        // or NULL.
        unsafe {
            let reply = reply.as_ref().ok_or_else(|| is_null("reply"))?;
            reply.remove(key)?;
        }
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_read(
    client: *mut Handle,
    target_json: *const c_char,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let target = target_of(target_json)?;
            Ok(json(&handle.client.read_until(&target, cancel)?))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_participants(
    client: *mut Handle,
    conversation_id: *const c_char,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let conversation = text("conversation_id", conversation_id)?;
            Ok(json(
                &handle.client.participants_until(conversation, cancel)?,
            ))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_preview(
    client: *mut Handle,
    update_json: *const c_char,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let update = update_of(update_json)?;
            Ok(json(&handle.client.preview_until(&update, cancel)?))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_validate(
    client: *mut Handle,
    update_json: *const c_char,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, null(), result, |handle, _| {
            handle.client.validate(&update_of(update_json)?)?;
            Ok(nothing())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_verify_credentials(
    client: *mut Handle,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            Ok(json(&handle.client.verify_credentials_until(cancel)?))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_metrics(
    client: *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, null(), result, |handle, _| {
            Ok(json(&handle.client.metrics().to_json()))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_metrics_prometheus(
    client: *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, null(), result, |handle, _| {
            Ok(handle.client.metrics().to_prometheus())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_flush(
    client: *mut Handle,
    timeout_ms: c_uint,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for handles and texts of this library, or NULL.
    unsafe {
        with_client(client, cancel, result, |handle, cancel| {
            let timeout = Duration::from_millis(timeout_ms.into());
            handle.client.flush_until(timeout, cancel)?;
            Ok(nothing())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn gca_cancel_new() -> *mut Cancel {
    Box::into_raw(Box::new(Cancel::new()))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_cancel_trigger(cancel: *mut Cancel) {
    // SAFETY: the header asks for a cancel handle, or NULL.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.cancel();
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_cancel_free(cancel: *mut Cancel) {
    // SAFETY: the header asks for a handle of gca_cancel_new, once, or NULL.
    unsafe { free(cancel) };
}
