//! The functions of the header, in its order.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::LevelFilter;

use super::boundary::{
    self, ClientId, Here, Place, answer, invalid, is_null, json, object, quietly, text,
};
use super::callbacks::{
    self, Callbacks, Compute, Hooks, Lines, NextLine, OnLog, OnOutcome, Reply, UserData,
};
use crate::batch::{Batch, BatchOutcome, BatchReport, NO_THREAD};
use crate::client::settings::{Fields, Settings};
use crate::client::{Client, UpdateOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Target;
use crate::update::{Edit, Update};
use crate::util::process::Process;
use crate::util::sync::{Cancel, lock};

/// `gca_client` of the header.
#[derive(Clone)]
struct Handle {
    client: Client,
    id: ClientId,
}

/// `gca_cancel` of the header.
struct CancelHandle(Arc<Linked>);

/// A flag, and those of the batches that it ends too: a batch has its own, which it also sets for
/// itself.
struct Linked {
    process: Process,
    flag: Cancel,
    batches: Mutex<BTreeMap<u64, Cancel>>,
}

/// What is said where there is nothing to say.
fn nothing() -> String {
    "{}".to_owned()
}

/// What a handle holds: a clone, so that it lives for as long as it is used.
///
/// # Safety
///
/// `client` is NULL, or came from `gca_client_new` and was not freed.
unsafe fn handle_of(client: *const Handle) -> Result<Handle> {
    // SAFETY: as this function asks for.
    unsafe { client.as_ref() }
        .cloned()
        .ok_or_else(|| is_null("client"))
}

/// Its client.
///
/// # Safety
///
/// As for [`handle_of`].
unsafe fn client_of(client: *const Handle) -> Result<Client> {
    // SAFETY: as this function asks for.
    Ok(unsafe { handle_of(client) }?.client)
}

/// The flag of a handle, if there is one.
///
/// # Safety
///
/// `cancel` is NULL, or came from `gca_cancel_new` and was not freed.
unsafe fn cancel_of(cancel: *const CancelHandle) -> Option<Arc<Linked>> {
    // SAFETY: as this function asks for.
    unsafe { cancel.as_ref() }.map(|handle| handle.0.clone())
}

/// # Safety
///
/// As for [`text`].
unsafe fn update_of(update_json: *const c_char) -> Result<Update> {
    // SAFETY: as this function asks for.
    callbacks::update(unsafe { object("update_json", update_json) }?)
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
    Ok(callbacks::update(record)?.target().clone())
}

#[unsafe(no_mangle)]
extern "C" fn gca_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn gca_status_name(status: c_int) -> *const c_char {
    boundary::status_name(status).as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: the header asks for a text that this library gave, once.
        quietly(|| drop(unsafe { CString::from_raw(text) }));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_client_new(
    config_json: *const c_char,
    callbacks: *const Callbacks,
    client: *mut *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        if client.is_null() {
            return Err(is_null("client"));
        }
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let id = CLIENTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the header asks for a gca_callbacks with its size, or NULL.
        let hooks = unsafe { Hooks::read(callbacks, id) }?;
        let settings = if config_json.is_null() {
            Settings::default()
        } else {
            // SAFETY: the header asks for a text.
            Settings::from_json(unsafe { text("config_json", config_json) }?)?
        };
        let sink = hooks.on_audit.map(|hook| Arc::new(hook) as _);
        let mut builder = settings.builder_with_sink(sink)?;
        if let Some(hook) = hooks.on_update {
            builder = builder.on_update(move |event| hook.update(event));
        }
        let made = builder.build()?;
        let made = Box::new(Handle { client: made, id });
        // SAFETY: it is not NULL, and the header asks for a place that can be written.
        unsafe { client.write(Box::into_raw(made)) };
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_client_free(client: *mut Handle) {
    if !client.is_null() {
        // SAFETY: the header asks for a client of gca_client_new, once.
        quietly(|| drop(unsafe { Box::from_raw(client) }));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_update(
    client: *mut Handle,
    update_json: *const c_char,
    cancel: *mut CancelHandle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, a text and a cancel handle, or NULL.
        let (Handle { client, id }, update, cancel) = unsafe {
            (
                handle_of(client)?,
                update_of(update_json)?,
                cancel_of(cancel),
            )
        };
        Here::current().may_update(id)?;
        let receipt = match &cancel {
            None => client.update(&update),
            Some(cancel) => client.update_cancellable(&update, &cancel.flag),
        }?;
        Ok(json(&receipt))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_update_with(
    client: *mut Handle,
    target_json: *const c_char,
    compute: Option<Compute>,
    userdata: *mut c_void,
    cancel: *mut CancelHandle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, a text and a cancel handle, or NULL.
        let (Handle { client, id }, target, cancel) = unsafe {
            (
                handle_of(client)?,
                target_of(target_json)?,
                cancel_of(cancel),
            )
        };
        let compute = compute.ok_or_else(|| is_null("compute"))?;
        Here::current().may_update(id)?;
        let mut options = UpdateOptions::new();
        if let Some(cancel) = &cancel {
            options = options.cancel(&cancel.flag);
        }
        let receipt = client.update_with_options(&target, options, |now| {
            let computed = callbacks::compute(compute, UserData(userdata), id, now)?;
            Ok(computed.map(Edit::from))
        })?;
        Ok(json(&receipt))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_reply_set(reply: *mut Reply, attributes_json: *const c_char) -> c_int {
    answer(std::ptr::null_mut(), || {
        // SAFETY: the header asks for the reply of the compute callback that is running, or NULL.
        let reply = unsafe { reply.as_ref() }.ok_or_else(|| is_null("reply"))?;
        // SAFETY: the header asks for a text.
        unsafe { reply.set(attributes_json) }?;
        Ok(String::new())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_read(
    client: *mut Handle,
    target_json: *const c_char,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client and a text, or NULL.
        let (client, target) = unsafe { (client_of(client)?, target_of(target_json)?) };
        Ok(json(&client.read(&target)?))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_validate(
    client: *mut Handle,
    update_json: *const c_char,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client and a text, or NULL.
        let (client, update) = unsafe { (client_of(client)?, update_of(update_json)?) };
        client.validate(&update)?;
        Ok(nothing())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_verify_credentials(
    client: *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, or NULL.
        let client = unsafe { client_of(client) }?;
        Ok(json(&client.verify_credentials()?))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_metrics(client: *mut Handle, result: *mut *mut c_char) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, or NULL.
        let client = unsafe { client_of(client) }?;
        Ok(json(&client.metrics().to_json()))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_metrics_prometheus(
    client: *mut Handle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, or NULL.
        let client = unsafe { client_of(client) }?;
        Ok(client.metrics().to_prometheus())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_flush(
    client: *mut Handle,
    timeout_ms: c_uint,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client, or NULL.
        let client = unsafe { client_of(client) }?;
        if matches!(Here::current().place, Place::Hook | Place::Update) {
            return Err(invalid(
                "a callback of an update cannot wait for that update: flush after it",
            ));
        }
        client.flush(Duration::from_millis(timeout_ms.into()))?;
        Ok(nothing())
    })
}

fn with_options(mut batch: Batch, options: &mut Fields) -> Result<Batch> {
    if let Some(workers) = options.whole("workers")? {
        batch = batch.workers(workers);
    }
    if let Some(failures) = options.whole("stopAfter")? {
        batch = batch.stop_after(failures);
    }
    if let Some(longest) = options.seconds("maxOutageSeconds")? {
        batch = batch.max_outage(longest);
    }
    Ok(batch)
}

/// Ends a batch with the caller's flag for as long as it lives.
struct Link<'a> {
    to: &'a Linked,
    id: u64,
}

impl<'a> Link<'a> {
    fn new(to: &'a Linked, batch: Cancel) -> Link<'a> {
        let mut batches = lock(&to.batches);
        if to.flag.is_cancelled() {
            batch.cancel();
        }
        let id = batches.last_key_value().map_or(0, |(last, _)| last + 1);
        batches.insert(id, batch);
        Link { to, id }
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        lock(&self.to.batches).remove(&self.id);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_batch(
    client: *mut Handle,
    options_json: *const c_char,
    next_line: Option<NextLine>,
    on_outcome: Option<OnOutcome>,
    userdata: *mut c_void,
    cancel: *mut CancelHandle,
    result: *mut *mut c_char,
) -> c_int {
    answer(result, || {
        // SAFETY: the header asks for a client and a cancel handle, or NULL.
        let (Handle { client, id }, cancel) = unsafe { (handle_of(client)?, cancel_of(cancel)) };
        let next = next_line.ok_or_else(|| is_null("next_line"))?;
        client.core()?;
        let mut batch = Batch::new(&client);
        if !options_json.is_null() {
            // SAFETY: the header asks for a text.
            let mut options = Fields::new(unsafe { object("options_json", options_json) }?);
            batch = with_options(batch, &mut options)
                .and_then(|batch| options.finish().map(|()| batch))
                .map_err(|error| invalid(format!("options_json: {error}")))?;
        }
        let here = Here::current();
        if here.place == Place::Update {
            return Err(invalid(
                "a compute or on_audit callback holds its conversation, for which a batch could \
                 wait: run the batch after the update",
            ));
        }
        here.may_update(id)?;
        let userdata = UserData(userdata);
        let _link = cancel
            .as_ref()
            .map(|cancel| Link::new(cancel, batch.cancel_handle()));
        let here = here.inside(Place::Outside, id);
        let lines = Lines {
            next,
            userdata,
            here,
            ended: false,
        };
        let report = run(batch, lines, |record| match on_outcome {
            Some(call) => here.run(|| callbacks::outcome(call, userdata, json(record))),
            None => false,
        })?;
        Ok(json(&report))
    })
}

/// Runs a batch, until `each` says that it is to stop.
fn run(
    batch: Batch,
    lines: Lines,
    mut each: impl FnMut(&BatchOutcome) -> bool,
) -> Result<BatchReport> {
    let run = || {
        batch.run(lines, |record| match each(record) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    };
    // The library panics where the system has no thread for it, which is no defect.
    catch_unwind(AssertUnwindSafe(run)).or_else(|panic| match panic.downcast_ref::<String>() {
        Some(why) if why.starts_with(NO_THREAD) => Err(Error::new(
            ErrorKind::Config,
            format!("{why}: allow the process more threads or more memory"),
        )),
        _ => resume_unwind(panic),
    })
}

#[unsafe(no_mangle)]
extern "C" fn gca_cancel_new() -> *mut CancelHandle {
    Box::into_raw(Box::new(CancelHandle(Arc::new(Linked {
        process: Process::current(),
        flag: Cancel::new(),
        batches: Mutex::default(),
    }))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_cancel_trigger(cancel: *mut CancelHandle) {
    quietly(|| {
        // SAFETY: the header asks for a cancel handle, or NULL.
        if let Some(cancel) = unsafe { cancel_of(cancel) } {
            if !cancel.process.is_current() {
                // A thread of the parent may have held the lock at the fork.
                return cancel.flag.cancel();
            }
            // Under the lock, so that a batch which begins sees either the flag or this.
            let batches = lock(&cancel.batches);
            cancel.flag.cancel();
            for batch in batches.values() {
                batch.cancel();
            }
        }
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gca_cancel_free(cancel: *mut CancelHandle) {
    if !cancel.is_null() {
        // SAFETY: the header asks for a handle of gca_cancel_new, once.
        quietly(|| drop(unsafe { Box::from_raw(cancel) }));
    }
}

#[unsafe(no_mangle)]
extern "C" fn gca_set_logger(log: Option<OnLog>, userdata: *mut c_void, max_level: c_int) -> c_int {
    answer(std::ptr::null_mut(), || {
        let call = log.ok_or_else(|| is_null("log"))?;
        let level = match max_level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => return Err(invalid("max_level must be between 0 and 5")),
        };
        if callbacks::set_logger(call, UserData(userdata), level) {
            Ok(String::new())
        } else {
            Err(Error::new(ErrorKind::Config, "a logger is set already"))
        }
    })
}
