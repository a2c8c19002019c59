//! The C functions as C calls them, on a platform in memory, so that Miri can see them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use serde_json::{Value, json};

use super::batch::*;
use super::callbacks::{Callbacks, Hooks, Reply};
use super::functions::*;
use super::logger::gca_set_logger;
use crate::error::ErrorKind;
use crate::testing::{Action, Fault, Platform};
use crate::util::sync::Cancel;

const INVALID: c_int = 1;
const CANCELLED: c_int = 15;

/// Calls a function whose last argument is the result, and gives its status and text.
fn called(call: impl FnOnce(*mut *mut c_char) -> c_int) -> (c_int, String) {
    let mut result = null_mut();
    let status = call(&mut result);
    // SAFETY: the function gave it.
    let text = unsafe { CStr::from_ptr(result) }
        .to_str()
        .unwrap()
        .to_owned();
    unsafe { gca_string_free(result) };
    (status, text)
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

struct Fixture {
    platform: Platform,
    client: *mut Handle,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(Hooks::default())
    }

    fn with(hooks: Hooks) -> Fixture {
        let platform = Platform::new();
        for id in ["c-1", "c-2"] {
            platform.add_conversation(id);
        }
        let handle = Handle::of_hooks(platform.client_builder(), hooks, Arc::default()).unwrap();
        Fixture {
            platform,
            client: Box::into_raw(Box::new(handle)),
        }
    }

    fn update(&self, update: &CStr, cancel: *mut Cancel) -> (c_int, String) {
        called(|result| unsafe { gca_update(self.client, update.as_ptr(), cancel, result) })
    }

    fn update_with(
        &self,
        target: &CStr,
        compute: Compute,
        userdata: *mut c_void,
    ) -> (c_int, String) {
        called(|result| unsafe {
            gca_update_with(
                self.client,
                target.as_ptr(),
                Some(compute),
                userdata,
                null_mut(),
                result,
            )
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        unsafe { gca_client_free(self.client) };
    }
}

type Compute = unsafe extern "C" fn(*mut c_void, *const c_char, *mut Reply) -> c_int;

const TARGET: &CStr = cr#"{"conversationId":"c-1","participant":"customer"}"#;
const UPDATE: &CStr =
    cr#"{"conversationId":"c-1","participant":"customer","attributes":{"tier":"gold"}}"#;

unsafe extern "C" fn count(_: *mut c_void, snapshot: *const c_char, reply: *mut Reply) -> c_int {
    let snapshot = parsed(unsafe { CStr::from_ptr(snapshot) }.to_str().unwrap());
    let calls: u64 = match &snapshot["attributes"]["calls"] {
        Value::String(text) => text.parse().unwrap(),
        _ => 0,
    };
    let wanted = CString::new(json!({"calls": calls + 1}).to_string()).unwrap();
    // The last good answer counts.
    assert_eq!(
        unsafe { gca_reply_set(reply, c"no JSON".as_ptr()) },
        INVALID
    );
    unsafe { gca_reply_set(reply, wanted.as_ptr()) }
}

#[test]
fn capi_client_updates_reads_and_computes() {
    let fixture = Fixture::new();
    let (status, receipt) = fixture.update(UPDATE, null_mut());
    assert_eq!(
        (status, &parsed(&receipt)["outcome"]),
        (0, &json!("applied"))
    );
    for calls in ["1", "2"] {
        assert_eq!(fixture.update_with(TARGET, count, null_mut()).0, 0);
        let (status, read) = called(|result| unsafe {
            gca_read(fixture.client, TARGET.as_ptr(), null_mut(), result)
        });
        assert_eq!(status, 0);
        assert_eq!(
            parsed(&read)["attributes"],
            json!({"tier": "gold", "calls": calls})
        );
    }
    let (status, preview) = called(|result| unsafe {
        gca_preview(fixture.client, UPDATE.as_ptr(), null_mut(), result)
    });
    assert_eq!(
        (status, &parsed(&preview)["attributes"]["calls"]),
        (0, &json!("2"))
    );
    assert_eq!(fixture.platform.writes().len(), 3);
    let (status, _) =
        called(|result| unsafe { gca_validate(fixture.client, UPDATE.as_ptr(), result) });
    assert_eq!(status, 0);
    let (_, metrics) = called(|result| unsafe { gca_metrics(fixture.client, result) });
    assert_eq!(parsed(&metrics)["totalAttempts"], 3);
    let (status, _) = called(|result| unsafe { gca_flush(fixture.client, 0, null_mut(), result) });
    assert_eq!(status, 0);
}

#[test]
fn capi_client_is_made_of_settings_and_callbacks_of_their_size() {
    let config = cr#"{"baseUrl":"http://127.0.0.1:1","accessToken":"t"}"#.as_ptr();
    let mut client = null_mut();
    let (status, text) =
        called(|result| unsafe { gca_client_new(config, null(), &mut client, result) });
    assert_eq!((status, &*text), (0, "{}"));
    unsafe { gca_client_free(client) };
    // Only the size can be read of a structure that is too small.
    let small = size_of::<usize>();
    let callbacks = (&raw const small).cast::<Callbacks>();
    let (status, text) =
        called(|result| unsafe { gca_client_new(config, callbacks, &mut client, result) });
    assert_eq!(status, INVALID, "{text}");
    let invalid = c"\xff".as_ptr();
    assert_eq!(
        unsafe { gca_client_new(invalid, null(), &mut client, null_mut()) },
        INVALID
    );
}

unsafe extern "C" fn remove_old(_: *mut c_void, _: *const c_char, reply: *mut Reply) -> c_int {
    assert_eq!(unsafe { gca_reply_remove(reply, null()) }, INVALID);
    assert_eq!(
        unsafe { gca_reply_set(reply, cr#"{"new":"1"}"#.as_ptr()) },
        0
    );
    unsafe { gca_reply_remove(reply, c"old".as_ptr()) }
}

#[test]
fn capi_compute_removes_keys() {
    let fixture = Fixture::new();
    let secure = cr#"{"conversationId":"c-1","target":"secure"}"#;
    let old = cr#"{"conversationId":"c-1","target":"secure","attributes":{"old":"1","kept":"1"}}"#;
    assert_eq!(fixture.update(old, null_mut()).0, 0);
    let (status, text) = fixture.update_with(secure, remove_old, null_mut());
    assert_eq!(status, 0, "{text}");
    let (_, read) =
        called(|result| unsafe { gca_read(fixture.client, secure.as_ptr(), null_mut(), result) });
    assert_eq!(
        parsed(&read)["attributes"],
        json!({"kept": "1", "new": "1"})
    );
}

/// What a callback that updates is given, and what came of that.
struct Inside {
    client: *mut Handle,
    elsewhere: bool,
    seen: Vec<(c_int, String)>,
}

/// A pointer that goes to another thread, as some languages do with callbacks.
struct Moved(*mut Handle);
unsafe impl Send for Moved {}

unsafe extern "C" fn update_inside(
    userdata: *mut c_void,
    _: *const c_char,
    _: *mut Reply,
) -> c_int {
    let inside = unsafe { &mut *userdata.cast::<Inside>() };
    let client = Moved(inside.client);
    let update = move || {
        let Moved(client) = { client };
        called(|result| unsafe { gca_update(client, UPDATE.as_ptr(), null_mut(), result) })
    };
    let seen = match inside.elsewhere {
        true => std::thread::spawn(update).join().unwrap(),
        false => update(),
    };
    inside.seen.push(seen);
    0
}

#[test]
fn capi_update_that_its_own_compute_waits_for_is_refused_on_any_thread() {
    for elsewhere in [false, true] {
        let fixture = Fixture::new();
        let mut inside = Inside {
            client: fixture.client,
            elsewhere,
            seen: Vec::new(),
        };
        let userdata = (&raw mut inside).cast();
        let (status, receipt) = fixture.update_with(TARGET, update_inside, userdata);
        assert_eq!(
            (status, &parsed(&receipt)["outcome"]),
            (0, &json!("unchanged"))
        );
        let (status, error) = &inside.seen[0];
        assert_eq!(*status, INVALID, "{error}");
        assert_eq!(parsed(error)["transient"], elsewhere);
        // The conversation is free again.
        assert_eq!(fixture.update(UPDATE, null_mut()).0, 0);
        assert_eq!(fixture.platform.writes().len(), 1);
    }
}

#[test]
fn capi_cancel_ends_every_call_that_waits() {
    let fixture = Fixture::new();
    let cancel = gca_cancel_new();
    unsafe { gca_cancel_trigger(cancel) };
    let client = fixture.client;
    assert_eq!(fixture.update(UPDATE, cancel).0, CANCELLED);
    for (status, text) in [
        called(|result| unsafe { gca_read(client, TARGET.as_ptr(), cancel, result) }),
        called(|result| unsafe { gca_preview(client, UPDATE.as_ptr(), cancel, result) }),
        called(|result| unsafe { gca_participants(client, c"c-1".as_ptr(), cancel, result) }),
        called(|result| unsafe { gca_verify_credentials(client, cancel, result) }),
    ] {
        assert_eq!(status, CANCELLED, "{text}");
    }
    assert_eq!(fixture.platform.requests().len(), 0);
    unsafe { gca_cancel_free(cancel) };
}

struct Lines {
    left: u32,
    line: CString,
    seen: Vec<Value>,
    stop_after: usize,
}

unsafe extern "C" fn next_line(userdata: *mut c_void) -> *const c_char {
    let lines = unsafe { &mut *userdata.cast::<Lines>() };
    if lines.left == 0 {
        return null();
    }
    lines.left -= 1;
    let (conversation, n) = (1 + lines.left % 2, lines.left);
    let line = json!({"conversationId": format!("c-{conversation}"), "participant": "customer", "attributes": {"n": n}});
    lines.line = CString::new(line.to_string()).unwrap();
    lines.line.as_ptr()
}

unsafe extern "C" fn on_outcome(userdata: *mut c_void, outcome: *const c_char) -> c_int {
    let lines = unsafe { &mut *userdata.cast::<Lines>() };
    lines
        .seen
        .push(parsed(unsafe { CStr::from_ptr(outcome) }.to_str().unwrap()));
    (lines.seen.len() >= lines.stop_after).into()
}

fn run_batch(fixture: &Fixture, stop_after: usize, cancel: *mut Cancel) -> (Lines, Value) {
    let mut lines = Lines {
        left: 12,
        line: CString::default(),
        seen: Vec::new(),
        stop_after,
    };
    let userdata = (&raw mut lines).cast();
    let (status, report) = called(|result| unsafe {
        let options = cr#"{"workers":2}"#.as_ptr();
        gca_batch(
            fixture.client,
            options,
            Some(next_line),
            Some(on_outcome),
            userdata,
            cancel,
            result,
        )
    });
    assert_eq!(status, 0, "{report}");
    (lines, parsed(&report))
}

#[test]
fn capi_batch_runs_its_callbacks_on_the_calling_thread() {
    let fixture = Fixture::new();
    let (lines, report) = run_batch(&fixture, usize::MAX, null_mut());
    assert_eq!((lines.left, &report["applied"]), (0, &json!(12)));
    for conversation in ["c-1", "c-2"] {
        let order: Vec<_> = lines
            .seen
            .iter()
            .filter(|outcome| outcome["conversationId"] == conversation)
            .map(|outcome| outcome["line"].as_u64())
            .collect();
        assert!(order.is_sorted() && order.len() == 6, "{order:?}");
    }
}

#[test]
fn capi_batch_that_is_broken_off_reports_what_it_handed_over() {
    let fixture = Fixture::new();
    let (lines, report) = run_batch(&fixture, 3, null_mut());
    assert_eq!(lines.seen.len(), 3);
    assert_eq!(
        (&report["lines"], &report["stopped"]),
        (&json!(3), &json!("break"))
    );
    let cancel = gca_cancel_new();
    unsafe { gca_cancel_trigger(cancel) };
    let (lines, report) = run_batch(&fixture, usize::MAX, cancel);
    assert_eq!(
        (lines.seen.len(), &report["stopped"]),
        (0, &json!("cancelled"))
    );
    unsafe { gca_cancel_free(cancel) };
}

/// A batch that is pushed and asked.
struct Pushed(*mut Run);

impl Pushed {
    fn start(fixture: &Fixture, options: &CStr) -> Pushed {
        let mut batch = null_mut();
        let (status, text) = called(|result| unsafe {
            gca_batch_start(fixture.client, options.as_ptr(), &mut batch, result)
        });
        assert_eq!(status, 0, "{text}");
        Pushed(batch)
    }

    fn push(&self, line: &CStr, tag: *const c_char) -> (c_int, c_int) {
        let mut full = -1;
        let (status, _) = called(|result| unsafe {
            gca_batch_push(self.0, line.as_ptr(), tag, &mut full, result)
        });
        (status, full)
    }

    fn next(&self) -> (c_int, Value) {
        let mut what = -1;
        let (status, text) =
            called(|result| unsafe { gca_batch_next(self.0, 60_000, &mut what, result) });
        assert_eq!(status, 0, "{text}");
        (what, parsed(&text))
    }

    fn finish(&self) {
        let (status, text) = called(|result| unsafe { gca_batch_finish(self.0, result) });
        assert_eq!(status, 0, "{text}");
    }

    /// All outcomes that are left, and the report.
    fn rest(&self) -> (Vec<Value>, Value) {
        let mut outcomes = Vec::new();
        loop {
            match self.next() {
                (1, outcome) => outcomes.push(outcome),
                (3, report) => return (outcomes, report),
                (what, text) => assert_eq!(what, 2, "{text}"),
            }
        }
    }
}

impl Drop for Pushed {
    fn drop(&mut self) {
        unsafe { gca_batch_free(self.0) };
    }
}

#[test]
fn capi_pushed_lines_have_their_outcomes_and_tags() {
    let fixture = Fixture::new();
    let batch = Pushed::start(&fixture, cr#"{"workers":2}"#);
    assert_eq!(batch.push(UPDATE, c"first".as_ptr()), (0, 0));
    // The first outcome comes without any further line.
    let (what, outcome) = batch.next();
    assert_eq!(
        (what, &outcome["tag"], &outcome["line"]),
        (1, &json!("first"), &json!(1))
    );
    assert_eq!(batch.push(c"no JSON", null()), (0, 0));
    batch.finish();
    assert_eq!(batch.push(UPDATE, null()).0, INVALID);
    let (outcomes, report) = batch.rest();
    assert_eq!(outcomes[0]["error"]["kind"], "invalidInput");
    assert_eq!(
        (&report["applied"], &report["failed"]),
        (&json!(1), &json!(1))
    );
    // The report is given again.
    assert_eq!(batch.next(), (3, report));
}

#[test]
fn capi_batch_goes_on_with_its_journal() {
    let fixture = Fixture::new();
    let name = format!("ga-capi-{}.jsonl", std::process::id());
    let path = std::env::temp_dir().join(name);
    let _ = std::fs::remove_file(&path);
    let options = json!({ "journal": path, "retryFailed": true }).to_string();
    let options = CString::new(options).unwrap();
    let run = |lines: &[&CStr]| {
        let batch = Pushed::start(&fixture, &options);
        for line in lines {
            assert_eq!(batch.push(line, null()), (0, 0));
        }
        batch.finish();
        let (outcomes, report) = batch.rest();
        let lines: Vec<_> = outcomes.iter().map(|o| o["line"].as_u64()).collect();
        (lines, report)
    };
    assert_eq!(run(&[UPDATE, c"no JSON"]).0.len(), 2);
    let (lines, report) = run(&[UPDATE, c"no JSON", UPDATE]);
    assert_eq!(lines, [Some(2), Some(3)]);
    assert_eq!(report["finishedBefore"], 1);
    let (lines, report) = run(&[c"no JSON"]);
    assert_eq!((lines.len(), &report["stopped"]), (0, &json!("journal")));
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(path.with_extension("jsonl.lock"));
}

#[test]
fn capi_full_batch_takes_no_line_and_loses_none() {
    let fixture = Fixture::new();
    let batch = Pushed::start(&fixture, c"{}");
    // No call asks for outcomes: after some lines the batch takes no more.
    let taken = (0..1_000).filter(|_| {
        std::thread::yield_now();
        batch.push(c"no JSON", null()) == (0, 0)
    });
    let taken = taken.count() as u64;
    assert!((64..200).contains(&taken), "{taken}");
    batch.finish();
    let (outcomes, _) = batch.rest();
    let numbers: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome["line"].as_u64())
        .collect();
    assert_eq!(numbers, (1..=taken).map(Some).collect::<Vec<_>>());
}

#[test]
fn capi_cancelled_batch_ends_and_a_freed_one_too() {
    let fixture = Fixture::new();
    let outage = Fault::any(Action::Unreachable).always();
    fixture.platform.script(outage);
    let batch = Pushed::start(&fixture, cr#"{"workers":2,"maxOutageSeconds":86400000}"#);
    for _ in 0..5 {
        assert_eq!(batch.push(UPDATE, null()), (0, 0));
    }
    let (what, notice) = batch.next();
    assert_eq!((what, &notice["notice"]), (2, &json!("outageBegan")));
    assert_eq!(notice["error"]["kind"], ErrorKind::Connect.name());
    unsafe { gca_batch_cancel(batch.0) };
    let (_, report) = batch.rest();
    assert_eq!(report["stopped"], "cancelled");
    let freed = Pushed::start(&fixture, c"{}");
    assert_eq!(freed.push(UPDATE, null()), (0, 0));
}

#[test]
fn capi_null_is_refused_by_name_or_does_nothing() {
    unsafe {
        gca_client_free(null_mut());
        gca_cancel_free(null_mut());
        gca_cancel_trigger(null_mut());
        gca_batch_cancel(null_mut());
        gca_batch_free(null_mut());
        gca_string_free(null_mut());
    }
    let fixture = Fixture::new();
    let client = fixture.client;
    let batch = Pushed::start(&fixture, c"{}");
    let (mut full, mut what) = (0, 0);
    let name = |(status, text): (c_int, String)| {
        assert_eq!(status, INVALID, "{text}");
        let message = parsed(&text)["message"].as_str().unwrap().to_owned();
        message.strip_suffix(" is NULL").unwrap().to_owned()
    };
    unsafe {
        assert_eq!(
            name(called(|r| gca_update(
                null_mut(),
                UPDATE.as_ptr(),
                null_mut(),
                r
            ))),
            "client"
        );
        assert_eq!(
            name(called(|r| gca_update(client, null(), null_mut(), r))),
            "update_json"
        );
        assert_eq!(
            name(called(|r| gca_read(client, null(), null_mut(), r))),
            "target_json"
        );
        assert_eq!(
            name(called(|r| gca_batch_start(client, null(), null_mut(), r))),
            "batch"
        );
        assert_eq!(
            name(called(|r| gca_batch_push(
                null_mut(),
                UPDATE.as_ptr(),
                null(),
                &mut full,
                r
            ))),
            "batch"
        );
        assert_eq!(
            name(called(|r| gca_batch_push(
                batch.0,
                UPDATE.as_ptr(),
                null(),
                null_mut(),
                r
            ))),
            "full"
        );
        assert_eq!(
            name(called(|r| gca_batch_next(null_mut(), 0, &mut what, r))),
            "batch"
        );
        assert_eq!(
            name(called(|r| gca_batch_next(batch.0, 0, null_mut(), r))),
            "what"
        );
        assert_eq!(name(called(|r| gca_batch_finish(null_mut(), r))), "batch");
        let none = called(|r| gca_batch(client, null(), None, None, null_mut(), null_mut(), r));
        assert_eq!(name(none), "next_line");
        assert_eq!(gca_reply_set(null_mut(), c"{}".as_ptr()), INVALID);
        assert_eq!(gca_reply_remove(null_mut(), c"k".as_ptr()), INVALID);
        assert_eq!(gca_set_logger(None, null_mut(), 9), 0);
    }
}

/// Counts what a callback gets.
unsafe extern "C" fn on_text(userdata: *mut c_void, text: *const c_char) {
    let seen = unsafe { &*userdata.cast::<std::sync::Mutex<Vec<Value>>>() };
    let text = parsed(unsafe { CStr::from_ptr(text) }.to_str().unwrap());
    seen.lock().unwrap().push(text);
}

#[test]
fn capi_hooks_get_events_and_audit_records() {
    let seen = std::sync::Mutex::new(Vec::<Value>::new());
    let callbacks = Callbacks {
        size: size_of::<Callbacks>(),
        userdata: (&raw const seen).cast_mut().cast(),
        on_update: Some(on_text),
        on_audit: Some(on_text),
    };
    let hooks = unsafe { Hooks::read(&callbacks, &Arc::default()) }.unwrap();
    let fixture = Fixture::with(hooks);
    assert_eq!(fixture.update(UPDATE, null_mut()).0, 0);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(
        (&seen[0]["phase"], &seen[1]["phase"]),
        (&json!("intent"), &json!("outcome"))
    );
    assert_eq!(seen[2]["attributes"], json!({"tier": "gold"}));
}
