"""Changes attributes on Genesys Cloud conversations safely, over the C library of genesys-attributes.

One file on the standard library alone, for Python 3.9 and later: copy it into your project. It needs the shared library
(libgenesys_attributes.so, .dylib or .dll): where GENESYS_ATTRIBUTES_LIBRARY says, beside this file, or where the system
looks for libraries.

    from genesys_attributes import Client, ConflictError

    with Client() as client:                                     # settings of the environment
        receipt = client.update({
            "conversationId": "5b2f0c1e-0000-4000-8000-000000000001",
            "participant": "customer",
            "attributes": {"customer.tier": "premium"},
        })
        print(receipt["outcome"], receipt["attempts"])

Updates, targets, receipts, snapshots and outcomes are dictionaries with the field names of the library's JSON.

A client may be used from any number of threads: other threads of Python run while it waits for the network.

Ctrl-C ends a call that waits on the main thread with KeyboardInterrupt: a read at once, an update or a batch at its next
wait or request (a second Ctrl-C does not wait for that). A change that was under way may then be in place. For this, a
call from the main thread runs on a helper thread, and so do its callbacks: what is bound to its thread, as a connection
of sqlite3 is, cannot be used in them.

A forked process (multiprocessing by "fork") may use the clients of its parent: at its first use there, a client logs in
and connects anew, with a rate limit and metrics of its own. A batch runs in the process that began it only.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import ctypes
import ctypes.util
import json
import os
import queue
import sys
import threading
import weakref
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Type, Union

__all__ = [
    "Batch",
    "Cancel",
    "Client",
    "GenesysError",
    "InvalidInputError",
    "ConfigError",
    "AuthError",
    "ForbiddenError",
    "NotFoundError",
    "ConflictError",
    "RateLimitedError",
    "TimedOutError",
    "ConnectError",
    "TransportError",
    "ServerError",
    "ProtocolError",
    "PayloadTooLargeError",
    "AuditError",
    "CancelledError",
    "InternalError",
    "version",
]

Record = Mapping[str, Any]


class GenesysError(Exception):
    """What the library refused or failed to do. Its subclasses are the kinds.

    str() of it is one line that says why and, where that is known, what to do.
    """

    kind: str = "internal"

    def __init__(self, error: Record) -> None:
        super().__init__(error.get("message", ""))
        #: The whole error as the library tells it.
        self.error: dict[str, Any] = dict(error)
        self.kind = error.get("kind", self.kind)
        #: What is wrong with an update: objects of key, rule, limit and found.
        self.violations: list[dict[str, Any]] = list(error.get("violations") or [])
        #: The status of the platform's last answer, where there was one.
        self.http_status: Optional[int] = error.get("httpStatus")
        #: The platform's own code.
        self.code: Optional[str] = error.get("code")
        #: What to tell the platform's support.
        self.correlation_id: Optional[str] = error.get("correlationId")
        #: How many seconds the platform asked to wait.
        self.retry_after: Optional[int] = error.get("retryAfterSeconds")
        #: The permissions that are missing.
        self.missing_permissions: list[str] = list(error.get("missingPermissions") or [])
        #: Whether the change may be in place all the same: read the target to settle it.
        self.may_have_applied: bool = bool(error.get("mayHaveApplied"))

    def __reduce__(self) -> Any:
        # To go to another process, or to be copied: args alone does not make one again.
        return type(self), (self.error,), self.__dict__


class InvalidInputError(GenesysError):
    """The update is wrong; see violations."""

    kind = "invalidInput"


class ConfigError(GenesysError):
    """A setting is missing or wrong."""

    kind = "config"


class AuthError(GenesysError):
    """The credentials or the token were refused."""

    kind = "auth"


class ForbiddenError(GenesysError):
    """The credentials may not do this; see missing_permissions."""

    kind = "forbidden"


class NotFoundError(GenesysError):
    """There is no such conversation, participant or record."""

    kind = "notFound"


class ConflictError(GenesysError):
    """Somebody else changed the target, and retrying did not settle it."""

    kind = "conflict"


class RateLimitedError(GenesysError):
    """The platform asked to wait for longer than allowed; see retry_after."""

    kind = "rateLimited"


class TimedOutError(GenesysError):
    """A time limit passed."""

    kind = "timeout"


class ConnectError(GenesysError):
    """No connection could be made; nothing was sent."""

    kind = "connect"


class TransportError(GenesysError):
    """The connection failed after something may have been sent."""

    kind = "transport"


class ServerError(GenesysError):
    """The platform failed."""

    kind = "server"


class ProtocolError(GenesysError):
    """An answer of the platform cannot be used."""

    kind = "protocol"


class PayloadTooLargeError(GenesysError):
    """The body is larger than the platform takes."""

    kind = "payloadTooLarge"


class AuditError(GenesysError):
    """A strict audit could not be kept, so nothing was written."""

    kind = "audit"


class CancelledError(GenesysError):
    """A Cancel ended the call."""

    kind = "cancelled"


class InternalError(GenesysError):
    """A defect of the library."""

    kind = "internal"


_KINDS = {kind.kind: kind for kind in GenesysError.__subclasses__()}

_ON_TEXT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
_COMPUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_NEXT_LINE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_ON_OUTCOME = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)


class _Callbacks(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("userdata", ctypes.c_void_p),
        ("on_update", _ON_TEXT),
        ("on_audit", _ON_TEXT),
    ]


def _find_library() -> str:
    given = os.environ.get("GENESYS_ATTRIBUTES_LIBRARY")
    if given:
        return given
    name = {"win32": "genesys_attributes.dll", "darwin": "libgenesys_attributes.dylib"}.get(
        sys.platform, "libgenesys_attributes.so"
    )
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    return beside if os.path.exists(beside) else ctypes.util.find_library("genesys_attributes") or name


def _load(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise OSError(
            f"the shared library {path} cannot be loaded: install it, put it beside this file, or name it by "
            f"GENESYS_ATTRIBUTES_LIBRARY ({error})"
        ) from error
    text, pointer, status = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int
    result = ctypes.POINTER(ctypes.c_void_p)
    for name, restype, arguments in [
        ("gca_version", text, []),
        ("gca_string_free", None, [pointer]),
        ("gca_client_new", status, [text, ctypes.POINTER(_Callbacks), ctypes.POINTER(pointer), result]),
        ("gca_client_free", None, [pointer]),
        ("gca_update", status, [pointer, text, pointer, result]),
        ("gca_update_with", status, [pointer, text, _COMPUTE, pointer, pointer, result]),
        ("gca_reply_set", status, [pointer, text]),
        ("gca_read", status, [pointer, text, result]),
        ("gca_validate", status, [pointer, text, result]),
        ("gca_verify_credentials", status, [pointer, result]),
        ("gca_metrics", status, [pointer, result]),
        ("gca_metrics_prometheus", status, [pointer, result]),
        ("gca_flush", status, [pointer, ctypes.c_uint, result]),
        ("gca_batch", status, [pointer, text, _NEXT_LINE, _ON_OUTCOME, pointer, pointer, result]),
        ("gca_cancel_new", pointer, []),
        ("gca_cancel_trigger", None, [pointer]),
        ("gca_cancel_free", None, [pointer]),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = restype, arguments
    return library


_loaded: Optional[ctypes.CDLL] = None
_loading = threading.Lock()


def _library() -> ctypes.CDLL:
    global _loaded
    # Without the lock once it is there: this is called by finalizers too, which may run while this thread holds it.
    if _loaded is None:
        with _loading:
            if _loaded is None:
                _loaded = _load(_find_library())
    return _loaded


def _json(value: Any) -> bytes:
    # A NUL can only be in a string, where JSON writes it as \u0000. A lone surrogate is no text: refused by encode().
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _call(function: Callable[..., int], *arguments: Any) -> str:
    """Calls a function whose last argument is the result, and gives its text."""
    result = ctypes.c_void_p()
    try:
        status = function(*arguments, ctypes.byref(result))
        text = (ctypes.string_at(result.value) if result.value else b"{}").decode()
    finally:
        _library().gca_string_free(result)
    if status == 0:
        return text
    error = _object(text)
    raise _KINDS.get(error.get("kind", ""), GenesysError)(error)


def _object(text: Union[str, bytes]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def version() -> str:
    """The version of the shared library."""
    text: bytes = _library().gca_version()
    return text.decode()


class _Here(threading.local):
    """The clients that this thread is in: in a call, or in a callback. None of them can be waited for here."""

    def __init__(self) -> None:
        self.clients: list[object] = []


_here = _Here()


@contextlib.contextmanager
def _inside(client: object) -> Iterator[None]:
    _here.clients.append(client)
    try:
        yield
    finally:
        _here.clients.pop()


# For how long to wait in one piece: on Windows a wait is not interrupted, so that it is made of short ones.
_PIECE = 0.2 if os.name == "nt" else None


def _take(items: queue.SimpleQueue[Any]) -> Any:
    """Waits for the next item."""
    while True:
        try:
            return items.get(timeout=_PIECE)
        except queue.Empty:
            pass


def _aside(work: Callable[[], str], cancel: Optional[Callable[[], None]]) -> str:
    """Runs work on a helper thread while the main thread waits for it.

    Signals are handled on the main thread, and not while that is in C: neither Ctrl-C nor anybody else's handler would
    run before the call is over, or would do so in a callback, where an exception is lost.
    """
    ended: queue.SimpleQueue[tuple[str, Optional[BaseException]]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(), None))
        except BaseException as error:  # It is raised on the thread that waits.
            ended.put(("", error))

    run_here = contextvars.copy_context().run
    thread = threading.Thread(target=run_here, args=(run,), name="genesys-attributes-call", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError:  # There is none to be had, as at the end of the program.
            return work()
        result = [_take(ended)]
    except BaseException:
        if cancel is not None:
            cancel()
            while thread.is_alive():
                thread.join(_PIECE)
        raise
    if result[0][1] is not None:
        raise result.pop()[1]
    text: str = result[0][0]
    return text


class Cancel:
    """A flag that ends the calls which it was given to, for good. Any thread may trigger it."""

    def __init__(self) -> None:
        self._free, self._set = _library().gca_cancel_free, _library().gca_cancel_trigger
        self._triggered = False
        self._followers: set[Cancel] = set()
        self._handle: Optional[int] = _library().gca_cancel_new()

    def trigger(self) -> None:
        """Sets the flag: what was given it ends at its next wait or request, with CancelledError."""
        self._triggered = True
        self._set(self._handle)
        for follower in list(self._followers):
            follower.trigger()

    @contextlib.contextmanager
    def _following(self, other: Optional[Cancel]) -> Iterator[None]:
        """Is triggered with the other one, too."""
        if other is None:
            yield
            return
        # Added before it is looked at, and the other way round in trigger(): one of the two sees the other.
        other._followers.add(self)
        try:
            if other._triggered:
                self.trigger()
            yield
        finally:
            other._followers.discard(self)

    def __del__(self) -> None:
        # Whoever uses the handle holds this object, so nobody does any more.
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._free(handle)


class _Handle:
    """The library's client. Whoever uses it holds this object, and the last one frees it."""

    def __init__(self, value: Optional[int], callbacks: _Callbacks) -> None:
        self._free = _library().gca_client_free
        self.value = value
        #: Kept for as long as the client lives, which calls them.
        self.callbacks = callbacks

    def __del__(self) -> None:
        self._free(self.value)


class Client:
    """Changes attributes on conversations: the entry point. May be used from any number of threads.

    config: a mapping of settings (region, clientId, clientSecret, accessToken, baseUrl, ratePerMinute, retry, ...).
    Where region and credentials are left out, they come from the environment.
    on_update: called with the event of every update that was applied, on the thread that updated or one of a batch. An
    update in it calls it again: guard against a loop.
    on_audit: called with every audit record, likewise. It must not update through the same client.

    What on_update and on_audit raise is printed by ctypes and changes nothing.

    Raises ConfigError when a setting is missing or wrong.
    """

    def __init__(
        self,
        config: Optional[Record] = None,
        *,
        on_update: Optional[Callable[[dict[str, Any]], Any]] = None,
        on_audit: Optional[Callable[[dict[str, Any]], Any]] = None,
    ) -> None:
        # What callbacks know of it: the client itself would be held by them, and they by it.
        self._key = key = object()
        self._users = 0
        self._changed = threading.Condition()
        self._batches: set[_Running] = set()

        def hook(function: Optional[Callable[[dict[str, Any]], Any]]) -> Any:
            if function is None:
                return _ON_TEXT()

            def call(_: Any, text: bytes) -> None:
                with _inside(key):
                    function(_object(text))

            return _ON_TEXT(call)

        self._callbacks = _Callbacks(ctypes.sizeof(_Callbacks), None, hook(on_update), hook(on_audit))
        self._config = None if config is None else _json(dict(config))
        self._forked = False
        self._handle: Optional[_Handle] = self._open()
        _clients.add(self)

    def _open(self) -> _Handle:
        handle = ctypes.c_void_p()
        _call(_library().gca_client_new, self._config, ctypes.byref(self._callbacks), ctypes.byref(handle))
        return _Handle(handle.value, self._callbacks)

    def _opened(self) -> _Handle:
        """The library's client, made anew in a forked process. The caller holds _changed."""
        if self._forked:
            self._handle, self._forked = self._open(), False
        if self._handle is None:
            raise ValueError("the client is closed")
        return self._handle

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock, or been in a call.
        self._changed, self._users, self._batches = threading.Condition(), 0, set()
        self._forked, self._handle = self._forked or self._handle is not None, None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops its batches, waits for them and for the calls of other threads, and frees the client.

        A batch whose input blocks is waited for no longer than a second, and ends when the input goes on. Later calls
        raise ValueError. From inside of a call, that is in a callback or in the input of a batch, it raises RuntimeError.
        """
        if self._key in _here.clients:
            raise RuntimeError("the client cannot be closed from inside of its call: close the client after the call")
        with self._changed:
            # First, so that no batch begins after this.
            self._handle, self._forked = None, False
            batches = list(self._batches)
        for batch in batches:
            batch.stop()
        for batch in batches:
            batch.join()
        with self._changed:
            self._changed.wait_for(lambda: self._users <= 0)

    @contextlib.contextmanager
    def _use(self) -> Iterator[_Handle]:
        with self._changed:
            handle = self._opened()
            self._users += 1
        try:
            with _inside(self._key):
                yield handle
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _call(self, name: str, *arguments: Any) -> str:
        with self._use() as handle:
            return _call(getattr(_library(), name), handle.value, *arguments)

    def _wait(self, name: str, *arguments: Any, cancels: bool = False, cancel: Optional[Cancel] = None) -> str:
        """Calls a function that waits for the network. cancels: whether it takes a flag that ends it."""
        function, key = getattr(_library(), name), self._key
        if threading.get_ident() != threading.main_thread().ident or _here.clients:
            # In a callback the library knows by the thread what may be called.
            return self._call(name, *arguments, *([cancel and cancel._handle] if cancels else []))
        own = Cancel()

        def work() -> str:
            # It holds what the library uses, also when nobody waits for it any more.
            with _inside(key):
                return _call(function, handle.value, *arguments, *([own._handle] if cancels else []))

        with self._use() as handle, own._following(cancel):
            return _aside(work, own.trigger if cancels else None)

    def update(self, update: Record, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Changes attributes and gives the receipt, when that is settled.

        update: conversationId and attributes; participant, or target ("secure", or "custom" with record), for other
        stores than the conversation's own; optionally remove, ifVersion, skipUnchanged, unlocked, schema and verify.

        Raises the kind of GenesysError that says why it was refused or failed. Where its may_have_applied is true, the
        change may be in place.
        """
        return _object(self._wait("gca_update", _json(dict(update)), cancels=True, cancel=cancel))

    def update_with(
        self,
        target: Record,
        compute: Callable[[dict[str, Any]], Optional[Record]],
        *,
        cancel: Optional[Cancel] = None,
    ) -> dict[str, Any]:
        """Reads, computes and writes under the lock of the target, and gives the receipt.

        target: an update without attributes. compute: gets the snapshot, whose "attributes" are the current values, and
        returns the attributes to set, or None to change nothing. It is called again after a conflict, and must not
        update through the same client. What it raises ends the update and is raised here.

        Raises GenesysError as update does.
        """
        raised: list[BaseException] = []

        def ask(_: Any, snapshot: bytes, reply: int) -> int:
            try:
                wanted = compute(_object(snapshot))
                if wanted is not None:
                    _library().gca_reply_set(reply, _json(dict(wanted)))
                return 0
            except BaseException as error:  # It must not be lost in C.
                raised.append(error)
                return 1

        try:
            text = self._wait(
                "gca_update_with", _json(dict(target)), _COMPUTE(ask), None, cancels=True, cancel=cancel
            )
        except GenesysError:
            if raised:
                raise raised.pop() from None
            raise
        return _object(text)

    def read(self, target: Record) -> dict[str, Any]:
        """Reads a target's attributes and version: one request."""
        return _object(self._wait("gca_read", _json(dict(target))))

    def validate(self, update: Record) -> None:
        """Checks an update without any request. Raises InvalidInputError with all violations at once."""
        self._call("gca_validate", _json(dict(update)))

    def batch(
        self,
        updates: Iterable[Union[Record, str]],
        *,
        workers: int = 1,
        stop_after: Optional[int] = None,
        max_outage: Optional[float] = None,
    ) -> Batch:
        """Runs many updates, those of one conversation in order, and gives the outcomes as they complete.

            for outcome in client.batch(updates, workers=8):
                if outcome["status"] == "failed":
                    print(outcome["line"], outcome["error"]["message"])

        updates: mappings or lines of JSON, taken from the iterable as there is room, on threads of the batch, one at a
        time. One that is no update fails alone. What the iterable raises stops the batch, and is raised after the outcomes
        of the updates before.
        workers: how many updates run at the same time. stop_after: stops after so many failures.
        max_outage: for how many seconds an outage of the platform is waited out, 600 by default.

        The batch begins with the first outcome that is asked for. A Batch that nobody holds any more is stopped, as by
        leaving the loop early; its close() also waits for the end, and so do the client's and the end of the program. An
        iterable that blocks is waited for no longer than a second.
        """
        options: dict[str, Any] = {"workers": workers}
        if stop_after is not None:
            options["stopAfter"] = stop_after
        if max_outage is not None:
            options["maxOutageSeconds"] = max_outage
        return Batch(self, updates, options)

    def metrics(self) -> dict[str, Any]:
        """What the client did so far."""
        return _object(self._call("gca_metrics"))

    def metrics_prometheus(self) -> str:
        """The same in the text format of Prometheus."""
        return self._call("gca_metrics_prometheus")

    def verify_credentials(self) -> dict[str, Any]:
        """Logs in if need be, and asks whose token it is."""
        return _object(self._wait("gca_verify_credentials"))

    def flush(self, timeout: float = 10.0) -> None:
        """Waits, for timeout seconds at most, until no update is under way, and flushes the audit file.

        Raises TimedOutError when some still are.
        """
        self._wait("gca_flush", min(max(int(timeout * 1000), 0), 0xFFFFFFFF))


class Batch(Iterator[dict[str, Any]]):
    """The outcomes of Client.batch: an iterator, with the report once it is at its end."""

    def __init__(self, client: Client, updates: Iterable[Union[Record, str]], options: Record) -> None:
        #: What the batch did: counts, times, and "stopped" where it ended early. None before its end.
        self.report: Optional[dict[str, Any]] = None
        self._over = False
        self._running = _Running(client, updates, options)

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._over:
            self.close()  # By a hook, perhaps, which did not wait.
            raise StopIteration
        try:
            self._running.start()
            outcome: Optional[dict[str, Any]] = _take(self._running.outcomes)
        except BaseException:
            self.close()
            raise
        if outcome is not None:
            self._running.room.release()
            return outcome
        self._running.outcomes.put(None)  # For another thread that asks.
        stopped, self._over = self._over, True
        self._settle()
        if self._running.raised and not stopped:
            raise self._running.raised.pop(0)
        raise StopIteration

    def close(self) -> None:
        """Stops the batch, if it runs: updates under way end at their next wait or request. Waits for that, but not from
        inside of a callback, and for a second where the input blocks."""
        self._over = True
        self._running.stop()
        if self._running.client._key not in _here.clients:
            self._running.join()
        self._settle()

    def _settle(self) -> None:
        self.report = self._running.report

    def __del__(self) -> None:
        # It does not wait: finalizers run on any thread, those of the batch among them, and at any place.
        running = getattr(self, "_running", None)
        if running is not None:
            running.stop()


_END = object()
#: The batches that the end of the program stops.
_under_way: set[_Running] = set()


class _Running:
    """A batch under way. It does not know its Batch, which is to end when nobody holds it any more."""

    def __init__(self, client: Client, updates: Iterable[Union[Record, str]], options: Record) -> None:
        self.client = client
        self.outcomes: queue.SimpleQueue[Optional[dict[str, Any]]] = queue.SimpleQueue()
        self.room = threading.Semaphore(1000)
        self.report: Optional[dict[str, Any]] = None
        self.raised: list[BaseException] = []
        self._updates = updates
        self._options = options
        self._cancel = Cancel()
        self._stopped = False
        self._reading = False
        self._line = b""  # Kept until the next call, as the library asks for.
        self._lines = 0
        self._refused: dict[int, str] = {}
        self._begin = threading.Lock()
        self._finished = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def start(self) -> None:
        with self._begin:
            if self._thread is not None:
                return
            if self._stopped:
                self.outcomes.put(None)
                return
            source = iter(self._updates)
            # A thread that the end of the program does not wait for: _stop_all does, and may leave it alone.
            thread = threading.Thread(target=self._run, args=(source,), name="genesys-attributes-batch", daemon=True)
            with self.client._changed:
                self._handle: Optional[_Handle] = self.client._opened()
                self.client._batches.add(self)
            _under_way.add(self)
            # Before it starts: when Ctrl-C comes meanwhile, the thread runs and is to be waited for.
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:  # There is none to be had.
                self._thread = None
                self._leave()
                raise

    def stop(self) -> None:
        self._stopped = True
        self._cancel.trigger()

    def join(self) -> None:
        """Waits for its end. An input that blocks may do so for ever: it gets a second to go on."""
        thread = self._thread
        while thread is not None and not self._finished.wait(1.0):
            # After stop() no other line is asked for, so that it is the same since then.
            if self._reading:
                return

    def _after_fork(self) -> None:
        # Its thread is the parent's, and may have held any of these.
        self.outcomes, self.room, self._finished = queue.SimpleQueue(), threading.Semaphore(1000), threading.Event()
        self._begin, self._cancel = threading.Lock(), Cancel()
        self._thread, self._handle, self._stopped = None, None, True
        problem = "the batch was begun before a fork: go on with it in the process that began it"
        self.raised = [ConfigError({"kind": "config", "message": problem})]
        self._finished.set()

    def _leave(self) -> None:
        self._handle = None
        with self.client._changed:
            self.client._batches.discard(self)
        _under_way.discard(self)
        self._finished.set()
        self.outcomes.put(None)

    def _run(self, source: Iterator[Union[Record, str]]) -> None:
        callbacks = _NEXT_LINE(lambda _: self._next_line(source)), _ON_OUTCOME(self._on_outcome)
        try:
            with _inside(self.client._key):
                handle, options = self._handle, _json(self._options)
                assert handle is not None
                text = _call(_library().gca_batch, handle.value, options, *callbacks, None, self._cancel._handle)
                self.report = _object(text)
        except BaseException as error:  # It is raised on the thread that iterates.
            self.raised.append(error)
        handle = None
        self._leave()

    def _next_line(self, source: Iterator[Union[Record, str]]) -> Optional[int]:
        try:
            with _inside(self.client._key):
                if self._stopped:
                    return None
                self._reading = True
                try:
                    update = next(source, _END)
                finally:
                    self._reading = False
                if update is _END:
                    return None
                self._lines += 1
                self._line = self._json_of(update)
                return ctypes.cast(ctypes.c_char_p(self._line), ctypes.c_void_p).value
        except BaseException as error:  # It must not be lost in C.
            self.raised.append(error)
            return None

    def _json_of(self, update: Any) -> bytes:
        try:
            if isinstance(update, str):
                if "\0" in update:
                    raise ValueError("the line holds a NUL, which no JSON does: write it as \\u0000")
                return update.encode()
            try:
                record = dict(update)
            except (TypeError, ValueError):
                name = type(update).__name__
                raise TypeError(f"an update must be a mapping or a line of JSON, and not {name}") from None
            return _json(record)
        except Exception as error:
            # The library gets what is no update, so that this line fails alone.
            self._refused[self._lines] = f"the update cannot be written as JSON: {error}"
            return b"-"

    def _on_outcome(self, _: Any, text: bytes) -> int:
        try:
            outcome = _object(text)
            problem = self._refused.pop(outcome["line"], None)
            if problem is not None:
                outcome["error"]["message"] = problem
            while not self.room.acquire(timeout=0.2):
                if self._stopped:
                    return 1
            self.outcomes.put(outcome)
            return int(self._stopped)
        except BaseException as error:  # As above.
            self.raised.append(error)
            return 1


#: The clients that a forked process makes anew.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked process: waits for no lock of the parent, and uses nothing that both have."""
    global _loading
    _loading = threading.Lock()
    for client in list(_clients):
        client._after_fork()
    for batch in list(_under_way):
        batch._after_fork()
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _stop_all() -> None:
    """Nobody iterates any more when the program ends. What still ran then could not call Python any more."""
    batches = list(_under_way)
    for batch in batches:
        batch.stop()
    for batch in batches:
        batch.join()
