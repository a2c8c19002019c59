//! Batches that are fed and emptied by calls, so that a language with one thread can run them.

use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json as value};

use super::boundary::{answer, c_text, free, invalid, is_null, json, object, out, parsed, text};
use super::functions::{Handle, nothing, update, with_client};
use crate::batch::{Batch, BatchOutcome, BatchReport, NO_THREAD, Notice};
use crate::client::Client;
use crate::client::settings::Fields;
use crate::error::{Error, ErrorKind, Result};
use crate::update::Update;
use crate::util::sync::{Cancel, SLICE, lock, wait};

type NextLine = unsafe extern "C" fn(*mut c_void) -> *const c_char;
type OnOutcome = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;

/// The numbers that `gca_batch_next` writes to `what`.
const NOTHING: c_int = 0;
const OUTCOME: c_int = 1;
const NOTICE: c_int = 2;
const REPORT: c_int = 3;

/// The bounds of what was pushed and not begun, and of the outcomes that were not asked for.
const MAX_LINES: usize = 64;
const MAX_BYTES: usize = 1 << 20;
const MAX_OUTCOMES: usize = 64;

/// `gca_batch_run` of the header.
pub(super) struct Run {
    client: Client,
    queue: Arc<Queue>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

/// A line that was pushed.
struct Line {
    update: Result<Update>,
    tag: Option<String>,
}

impl Line {
    fn bytes(&self) -> usize {
        self.update.as_ref().map_or(0, Update::approximate_size)
    }
}

/// The state between the caller's thread and those of the batch.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The batch waits until each outcome was dealt with, so that none is counted after a stop.
    in_step: bool,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    bytes: usize,
    /// No line comes any more.
    finished: bool,
    /// Outcomes and notices that were not asked for yet.
    out: VecDeque<(c_int, String)>,
    /// An outcome is with the caller.
    busy: bool,
    /// The caller wants no more outcomes.
    broken: bool,
    end: Option<Result<String>>,
    /// The caller knows about the end.
    reported: bool,
}

impl State {
    fn is_full(&self) -> bool {
        self.lines.len() >= MAX_LINES || self.bytes >= MAX_BYTES
    }
}

impl Queue {
    /// Changes the state and wakes those who wait for that.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut lock(&self.state));
        self.changed.notify_all();
        result
    }

    /// Waits until the state is as wanted.
    fn until(&self, wanted: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        while !wanted(&state) {
            state = wait(&self.changed, state, None, None);
        }
        state
    }

    /// The next line for the batch; none inside if there is nothing yet.
    fn take(&self, cancel: &Cancel) -> Option<Option<Line>> {
        let mut state = lock(&self.state);
        let Some(line) = state.lines.pop_front() else {
            let over = state.finished || cancel.is_cancelled();
            return (!over).then_some(None);
        };
        state.bytes -= line.bytes();
        self.changed.notify_all();
        Some(Some(line))
    }

    fn hand_over(&self, tag: Option<String>, outcome: &BatchOutcome) -> ControlFlow<()> {
        #[derive(Serialize)]
        struct Tagged<'a> {
            #[serde(flatten)]
            outcome: &'a BatchOutcome,
            #[serde(skip_serializing_if = "Option::is_none")]
            tag: Option<String>,
        }
        let record = json(&Tagged { outcome, tag });
        let mut state = self.until(|state| state.broken || state.out.len() < MAX_OUTCOMES);
        state.out.push_back((OUTCOME, record));
        self.changed.notify_all();
        drop(state);
        let dealt_with = |state: &State| state.out.is_empty() && !state.busy;
        let state = self.until(|state| !self.in_step || state.broken || dealt_with(state));
        match state.broken {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// A notice as JSON.
pub(super) fn notice(notice: &Notice) -> Value {
    let millis = |time: &Duration| crate::util::date::whole_millis(*time);
    let mut record = match notice {
        Notice::OutageBegan { error } => value!({"notice": "outageBegan", "error": error}),
        Notice::Probing { line, after } => {
            value!({"notice": "probing", "line": line, "afterMs": millis(after)})
        }
        Notice::OutageEnded { after } => {
            value!({"notice": "outageEnded", "afterMs": millis(after)})
        }
        Notice::RateLimited { wait } => value!({"notice": "rateLimited", "waitMs": millis(wait)}),
        Notice::LookAheadOff { error } => value!({"notice": "lookAheadOff", "error": error}),
        Notice::OwnRateLimit { wait } => value!({"notice": "ownRateLimit", "waitMs": millis(wait)}),
    };
    record["message"] = notice.to_string().into();
    record
}

/// A batch with the options of `options_json`.
///
/// # Safety
///
/// As for [`text`], but it may be NULL.
unsafe fn batch_of(client: &Client, options_json: *const c_char) -> Result<Batch> {
    let batch = Batch::new(client);
    if options_json.is_null() {
        return Ok(batch);
    }
    // SAFETY: as this function asks for.
    let mut options = Fields::new(unsafe { object("options_json", options_json) }?);
    with_options(batch, &mut options)
        .and_then(|batch| options.finish().map(|()| batch))
        .map_err(|error| invalid(format!("options_json: {error}")))
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
    if let Some(path) = options.text("journal")? {
        batch = batch.journal(path);
    }
    if let Some(retry) = options.flag("retryFailed")? {
        batch = batch.retry_failed(retry);
    }
    Ok(batch)
}

fn no_thread(why: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("{why}: allow the process more threads or more memory"),
    )
}

/// Runs a batch to its end.
fn run(batch: Batch, queue: &Arc<Queue>) -> Result<BatchReport> {
    let cancel = batch.cancel_handle();
    let input = queue.clone();
    let lines = std::iter::from_fn(move || input.take(&cancel));
    let mut number = 0;
    let lines = lines.map(|line| {
        number += u64::from(line.is_some());
        let (tag, update) = line.map_or((None, None), |line| (line.tag, Some(line.update)));
        (number, tag, update)
    });
    let run = || batch.run_tagged(lines, |tag, outcome| queue.hand_over(tag, outcome));
    // The library panics where the system has no thread for it, which is no defect.
    catch_unwind(AssertUnwindSafe(run)).or_else(|panic| match panic.downcast_ref::<String>() {
        Some(why) if why.starts_with(NO_THREAD) => Err(no_thread(why)),
        _ => resume_unwind(panic),
    })
}

impl Run {
    fn start(handle: Handle, batch: Batch, in_step: bool) -> Result<Run> {
        handle.client.core()?;
        handle.calling.refuse_callback()?;
        let queue = Arc::new(Queue {
            in_step,
            ..Queue::default()
        });
        let notices = queue.clone();
        let batch = batch.on_notice(move |seen| {
            let record = json(&notice(seen));
            notices.change(|state| state.out.push_back((NOTICE, record)));
        });
        let cancel = batch.cancel_handle();
        let inside = queue.clone();
        let thread = std::thread::Builder::new()
            .spawn(move || {
                let ended = catch_unwind(AssertUnwindSafe(|| run(batch, &inside)));
                let end = ended.unwrap_or_else(|_| {
                    let error = Error::new(ErrorKind::Internal, "the batch panicked: report it");
                    Err(error.with_may_have_applied(true))
                });
                inside.change(|state| state.end = Some(end.map(|report| json(&report))));
            })
            .map_err(|error| no_thread(&format!("{NO_THREAD}: {error}")))?;
        Ok(Run {
            client: handle.client,
            queue,
            cancel,
            thread: Some(thread),
        })
    }

    /// Takes a line, or gives it back where there is no room.
    fn push(&self, line: Line) -> Result<Option<Line>> {
        self.queue.change(|state| {
            if state.finished || state.reported {
                return Err(invalid(
                    "the batch takes no more lines: it was finished or has ended",
                ));
            }
            if state.is_full() || state.end.is_some() || self.cancel.is_cancelled() {
                return Ok(Some(line));
            }
            state.bytes += line.bytes();
            state.lines.push_back(line);
            Ok(None)
        })
    }

    /// Waits for what comes next; also for room for a line, where that is asked for.
    fn next(&self, limit: Duration, or_room: bool) -> Result<(c_int, String)> {
        let waits = |state: &mut State| {
            let room = or_room && !state.is_full() && !self.cancel.is_cancelled();
            state.out.is_empty() && state.end.is_none() && !room
        };
        self.queue.change(|state| state.busy = false);
        let state = lock(&self.queue.state);
        let (mut state, _) = self
            .queue
            .changed
            .wait_timeout_while(state, limit, waits)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(next) = state.out.pop_front() {
            state.busy = next.0 == OUTCOME;
            drop(state);
            self.queue.changed.notify_all();
            return Ok(next);
        }
        let Some(end) = state.end.clone() else {
            return Ok((NOTHING, nothing()));
        };
        state.reported = true;
        Ok((REPORT, end?))
    }

    fn finish(&self) {
        self.queue.change(|state| state.finished = true);
    }

    fn cancel(&self) {
        self.cancel.cancel();
        self.queue.changed.notify_all();
    }

    /// Stops the batch without any further outcome.
    fn break_off(&self) {
        self.queue.change(|state| state.broken = true);
    }

    /// Runs the whole batch on this thread: lines in, outcomes out, until it ends.
    fn pump(
        &self,
        next_line: impl Fn() -> Option<Result<Update>>,
        on_outcome: impl Fn(&str) -> bool,
        cancel: Option<&Cancel>,
    ) -> Result<String> {
        let (mut line, mut ended) = (None, false);
        loop {
            if cancel.is_some_and(Cancel::is_cancelled) {
                self.cancel();
            }
            ended |= self.cancel.is_cancelled();
            if line.is_none() && !ended {
                line = next_line().map(|update| Line { update, tag: None });
                if line.is_none() {
                    ended = true;
                    self.finish();
                }
            }
            if let Some(given) = line.take() {
                line = self.push(given)?;
            }
            let limit = match ended || line.is_some() {
                true => SLICE,
                false => Duration::ZERO,
            };
            match self.next(limit, line.is_some())? {
                (REPORT, report) => return Ok(report),
                (OUTCOME, record) if on_outcome(&record) => self.break_off(),
                _ => {}
            }
        }
    }
}

/// Ends the batch, and waits for the updates under way.
impl Drop for Run {
    fn drop(&mut self) {
        let Ok(core) = self.client.core() else {
            // The thread is the parent's, and may have held the lock at the fork.
            return std::mem::forget(self.thread.take());
        };
        let inside = core.is_updating_here();
        self.cancel();
        self.break_off();
        // An update cannot wait for the batch that it belongs to, which ends without that.
        if let Some(thread) = self.thread.take()
            && !inside
        {
            let _ = thread.join();
        }
    }
}

/// The line of a batch that C gave.
///
/// # Safety
///
/// As for [`text`].
unsafe fn line_of(line: *const c_char) -> Result<Update> {
    // SAFETY: as this function asks for.
    update(parsed("the line", unsafe { text("the line", line) }?)?)
}

/// Runs the body of a function that takes a batch.
///
/// # Safety
///
/// `batch` is NULL, or came from `gca_batch_start` and was not freed.
unsafe fn with_run(
    batch: *const Run,
    result: *mut *mut c_char,
    work: impl FnOnce(&Run) -> Result<String>,
) -> c_int {
    // SAFETY: as this function asks for.
    let run = unsafe { batch.as_ref() };
    answer(result, || {
        let run = run.ok_or_else(|| is_null("batch"))?;
        run.client.core()?;
        work(run)
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_start(
    client: *mut Handle,
    options_json: *const c_char,
    batch: *mut *mut Run,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for a client, a text and a place that can be written, or NULL.
    unsafe {
        with_client(client, null(), result, |handle, _| {
            let start = || {
                let options = batch_of(&handle.client, options_json)?;
                let run = Run::start(handle, options, false)?;
                Ok(Box::into_raw(Box::new(run)))
            };
            out("batch", batch, start)?;
            Ok(nothing())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_push(
    batch: *mut Run,
    line: *const c_char,
    tag: *const c_char,
    full: *mut c_int,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for a batch, texts and a place that can be written, or NULL.
    unsafe {
        with_run(batch, result, |run| {
            let push = || {
                let tag = match tag.is_null() {
                    true => None,
                    false => Some(text("tag", tag)?.to_owned()),
                };
                let update = line_of(line);
                Ok(run.push(Line { update, tag })?.is_some().into())
            };
            out("full", full, push)?;
            Ok(nothing())
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_next(
    batch: *mut Run,
    timeout_ms: c_uint,
    what: *mut c_int,
    result: *mut *mut c_char,
) -> c_int {
    // SAFETY: the header asks for a batch and a place that can be written, or NULL.
    unsafe {
        with_run(batch, result, |run| {
            let mut next = nothing();
            let wait = || {
                let what;
                (what, next) = run.next(Duration::from_millis(timeout_ms.into()), false)?;
                Ok(what)
            };
            out("what", what, wait)?;
            Ok(next)
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_finish(
    batch: *mut Run,
    result: *mut *mut c_char,
) -> c_int {
    let finish = |run: &Run| {
        run.finish();
        Ok(nothing())
    };
    // SAFETY: the header asks for a batch, or NULL.
    unsafe { with_run(batch, result, finish) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_cancel(batch: *mut Run) {
    // SAFETY: the header asks for a batch, or NULL.
    if let Some(run) = unsafe { batch.as_ref() } {
        run.cancel();
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch_free(batch: *mut Run) {
    // SAFETY: the header asks for a batch of gca_batch_start, once, or NULL.
    unsafe { free(batch) };
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn gca_batch(
    client: *mut Handle,
    options_json: *const c_char,
    next_line: Option<NextLine>,
    on_outcome: Option<OnOutcome>,
    userdata: *mut c_void,
    cancel: *mut Cancel,
    result: *mut *mut c_char,
) -> c_int {
    let run = |handle: Handle, cancel: Option<&Cancel>| {
        let next_line = next_line.ok_or_else(|| is_null("next_line"))?;
        // SAFETY: the header asks for a text, or NULL.
        let options = unsafe { batch_of(&handle.client, options_json) }?;
        let next_line = || {
            // SAFETY: the function and its userdata are what the caller gave for this.
            let line = unsafe { next_line(userdata) };
            // SAFETY: the header asks for a text that stays until the next call of the function.
            (!line.is_null()).then(|| unsafe { line_of(line) })
        };
        let on_outcome = |record: &str| {
            let record = c_text(record);
            // SAFETY: the function and its userdata are what the caller gave for this; the text
            // lives until the call is over.
            on_outcome.is_some_and(|call| unsafe { call(userdata, record.as_ptr()) } != 0)
        };
        Run::start(handle, options, true)?.pump(next_line, on_outcome, cancel)
    };
    // SAFETY: the header asks for a client and a cancel handle, or NULL.
    unsafe { with_client(client, cancel, result, run) }
}
