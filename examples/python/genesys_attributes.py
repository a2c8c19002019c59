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
import collections
import contextlib
import contextvars
import ctypes
import ctypes.util
import json
import logging
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
    "Edit",
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
    "Sandbox",
    "log_to",
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
        #: Whether the login failed, and not the request itself.
        self.during_login: bool = bool(error.get("duringLogin"))
        #: Whether the same call may succeed later.
        self.transient: bool = bool(error.get("transient"))

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
_ON_LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)


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
    number = ctypes.POINTER(ctypes.c_int)
    result = ctypes.POINTER(ctypes.c_void_p)
    for name, restype, arguments in [
        ("gca_version", text, []),
        ("gca_string_free", None, [pointer]),
        ("gca_client_new", status, [text, ctypes.POINTER(_Callbacks), ctypes.POINTER(pointer), result]),
        ("gca_client_free", None, [pointer]),
        ("gca_update", status, [pointer, text, pointer, result]),
        ("gca_update_with", status, [pointer, text, _COMPUTE, pointer, pointer, result]),
        ("gca_reply_set", status, [pointer, text]),
        ("gca_reply_remove", status, [pointer, text]),
        ("gca_read", status, [pointer, text, pointer, result]),
        ("gca_participants", status, [pointer, text, pointer, result]),
        ("gca_preview", status, [pointer, text, pointer, result]),
        ("gca_validate", status, [pointer, text, result]),
        ("gca_verify_credentials", status, [pointer, pointer, result]),
        ("gca_metrics", status, [pointer, result]),
        ("gca_metrics_prometheus", status, [pointer, result]),
        ("gca_flush", status, [pointer, ctypes.c_uint, pointer, result]),
        ("gca_batch_start", status, [pointer, text, ctypes.POINTER(pointer), result]),
        ("gca_batch_push", status, [pointer, text, text, number, result]),
        ("gca_batch_next", status, [pointer, ctypes.c_uint, number, result]),
        ("gca_batch_finish", status, [pointer, result]),
        ("gca_batch_cancel", None, [pointer]),
        ("gca_batch_free", None, [pointer]),
        ("gca_set_logger", status, [_ON_LOG, pointer, status]),
        ("gca_cancel_new", pointer, []),
        ("gca_cancel_trigger", None, [pointer]),
        ("gca_cancel_free", None, [pointer]),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = restype, arguments
    if hasattr(library, "gca_sandbox_free"):
        library.gca_sandbox_free.restype = None
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


def _record(name: str, value: Any, alternative: str = "") -> dict[str, Any]:
    """A mapping as a dictionary, or an error that names what is none."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return dict(value)
    except (TypeError, ValueError):
        wanted = " ".join(filter(None, [f"{name} must be a mapping", alternative]))
        raise TypeError(f"{wanted}, and not {type(value).__name__}") from None


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


def _aside(work: Callable[[], str], cancel: Callable[[], None], settles: bool) -> str:
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
        cancel()
        while settles and thread.is_alive():
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


class Edit:
    """What compute of Client.update_with may return: attributes to set, and keys to remove (secure attributes only)."""

    def __init__(self, set: Optional[Record] = None, remove: Iterable[str] = ()) -> None:
        self.set = set
        self.remove = [remove] if isinstance(remove, str) else list(remove)


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

        def hook(function: Optional[Callable[[dict[str, Any]], Any]]) -> Any:
            if function is None:
                return _ON_TEXT()

            def call(_: Any, text: bytes) -> None:
                with _inside(key):
                    function(_object(text))

            return _ON_TEXT(call)

        self._callbacks = _Callbacks(ctypes.sizeof(_Callbacks), None, hook(on_update), hook(on_audit))
        self._config = None if config is None else _json(_record("config", config))
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
        self._changed, self._users = threading.Condition(), 0
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

        Later calls raise ValueError. From inside of a call, that is in a callback or in the input of a batch, it raises
        RuntimeError.
        """
        if self._key in _here.clients:
            raise RuntimeError("the client cannot be closed from inside of its call: close the client after the call")
        with self._changed:
            # First, so that no batch begins after this.
            handle, self._handle, self._forked = self._handle, None, False
        runs = [run for run in list(_runs) if run.handle is handle]
        for run in runs:
            run.cancel()
        for run in runs:
            run.end()
        del handle
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

    def _wait(self, name: str, *arguments: Any, cancel: Optional[Cancel] = None, settles: bool = False) -> str:
        """Calls a function that waits for the network. settles: it is waited for also after Ctrl-C."""
        function, key = getattr(_library(), name), self._key
        if threading.get_ident() != threading.main_thread().ident or _here.clients:
            # The library knows a call from inside of a callback by its thread.
            return self._call(name, *arguments, cancel and cancel._handle)
        own = Cancel()

        def work() -> str:
            # It holds what the library uses, also when nobody waits for it any more.
            with _inside(key):
                return _call(function, handle.value, *arguments, own._handle)

        with self._use() as handle, own._following(cancel):
            return _aside(work, own.trigger, settles)

    def update(self, update: Record, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Changes attributes and gives the receipt, when that is settled.

        update: conversationId and attributes; participant, or target ("secure", or "custom" with record), for other
        stores than the conversation's own; optionally remove, ifVersion, skipUnchanged, unlocked, schema and verify.

        Raises the kind of GenesysError that says why it was refused or failed. Where its may_have_applied is true, the
        change may be in place.
        """
        return _object(self._wait("gca_update", _json(_record("update", update)), cancel=cancel, settles=True))

    def update_with(
        self,
        target: Record,
        compute: Callable[[dict[str, Any]], Union[Record, Edit, None]],
        *,
        cancel: Optional[Cancel] = None,
    ) -> dict[str, Any]:
        """Reads, computes and writes under the lock of the target, and gives the receipt.

        target: an update without attributes. compute: gets the snapshot, whose "attributes" are the current values, and
        returns the attributes to set, an Edit to remove keys too, or None to change nothing. It is called again after a
        conflict, and must not update through the same client. What it raises ends the update and is raised here.

        Raises GenesysError as update does.
        """
        raised: list[BaseException] = []

        def ask(_: Any, snapshot: bytes, reply: int) -> int:
            try:
                wanted = compute(_object(snapshot))
                if isinstance(wanted, Edit):
                    for key in wanted.remove:
                        _library().gca_reply_remove(reply, key.encode())
                    wanted = wanted.set
                if wanted is not None:
                    attributes = _json(_record("what compute returns", wanted, "of the attributes to set, an Edit or None"))
                    _library().gca_reply_set(reply, attributes)
                return 0
            except BaseException as error:  # It must not be lost in C.
                raised.append(error)
                return 1

        try:
            record = _json(_record("target", target))
            text = self._wait("gca_update_with", record, _COMPUTE(ask), None, cancel=cancel, settles=True)
        except GenesysError:
            if raised:
                raise raised.pop() from None
            raise
        return _object(text)

    def read(self, target: Record, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Reads a target's attributes and version: one request."""
        return _object(self._wait("gca_read", _json(_record("target", target)), cancel=cancel))

    def participants(self, conversation: str, *, cancel: Optional[Cancel] = None) -> list[dict[str, Any]]:
        """Reads who takes part in a conversation, or did: one request."""
        text = self._wait("gca_participants", conversation.encode(), cancel=cancel)
        participants: list[dict[str, Any]] = json.loads(text)
        return participants

    def preview(self, update: Record, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Reads what the target of an update holds, after all checks that it would make before its first write."""
        return _object(self._wait("gca_preview", _json(_record("update", update)), cancel=cancel))

    def validate(self, update: Record) -> None:
        """Checks an update without any request. Raises InvalidInputError with all violations at once."""
        self._call("gca_validate", _json(_record("update", update)))

    def batch(
        self,
        updates: Iterable[Union[Record, str]],
        *,
        workers: int = 1,
        stop_after: Optional[int] = None,
        max_outage: Optional[float] = None,
        journal: Union[str, os.PathLike[str], None] = None,
        retry_failed: bool = False,
        on_notice: Optional[Callable[[dict[str, Any]], Any]] = None,
    ) -> Batch:
        """Runs many updates, those of one conversation in order, and gives the outcomes as they complete.

            for outcome in client.batch(updates, workers=8):
                if outcome["status"] == "failed":
                    print(outcome["line"], outcome["error"]["message"])

        updates: mappings or lines of JSON, taken from the iterable as there is room, on the thread that asks for
        outcomes. While the iterable waits for its next item, no outcome is given. One that is no update fails alone. What
        the iterable raises ends the input, and is raised after the outcomes of the updates before.
        workers: how many updates run at the same time. stop_after: stops after so many failures.
        max_outage: for how many seconds an outage of the platform is waited out, 600 by default.
        journal: a file for the outcomes. A batch with the file of an earlier one goes on with it: lines that are done don't
        run again. A line that was applied and has changed is an error before anything is sent: the report's "stopped" is
        "journal", and its "error" says why.
        retry_failed: with a journal, runs lines again that failed for good.
        on_notice: called between outcomes with what happens to the batch as a whole, such as an outage.

        The batch begins with the first outcome that is asked for. A Batch that nobody holds any more is stopped, as by
        leaving the loop early; its close() also waits for the end, and so do the client's and the end of the program.
        """
        options: dict[str, Any] = {"workers": workers}
        if stop_after is not None:
            options["stopAfter"] = stop_after
        if max_outage is not None:
            options["maxOutageSeconds"] = max_outage
        if journal is not None:
            options["journal"] = os.fspath(journal)
        if retry_failed:
            options["retryFailed"] = True
        return Batch(self, updates, options, on_notice)

    def metrics(self) -> dict[str, Any]:
        """What the client did so far."""
        return _object(self._call("gca_metrics"))

    def metrics_prometheus(self) -> str:
        """The same in the text format of Prometheus."""
        return self._call("gca_metrics_prometheus")

    def verify_credentials(self, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Logs in if need be, and asks whose token it is."""
        return _object(self._wait("gca_verify_credentials", cancel=cancel))

    def flush(self, timeout: float = 10.0, *, cancel: Optional[Cancel] = None) -> None:
        """Waits, for timeout seconds at most, until no update is under way, and flushes the audit file.

        Raises TimedOutError when some still are.
        """
        self._wait("gca_flush", min(max(int(timeout * 1000), 0), 0xFFFFFFFF), cancel=cancel)


class Batch(Iterator[dict[str, Any]]):
    """The outcomes of Client.batch: an iterator, with the report once it is at its end.

    `with client.batch(updates) as batch:` closes it at the end of the block.
    """

    def __init__(
        self,
        client: Client,
        updates: Iterable[Union[Record, str]],
        options: Record,
        on_notice: Optional[Callable[[dict[str, Any]], Any]],
    ) -> None:
        self._client, self._updates, self._options, self._on_notice = client, updates, options, on_notice
        self._iterating = threading.RLock()
        self._run: Optional[_Run] = None
        self._source: Optional[Iterator[Union[Record, str]]] = None
        self._line: Optional[bytes] = None  # The library had no room for it.
        self._taken = 0
        self._refused: dict[int, str] = {}
        self._raised: Optional[BaseException] = None
        self._over = False

    @property
    def report(self) -> Optional[dict[str, Any]]:
        """What the batch did: counts, times, and "stopped" where it ended early. None before its end."""
        return self._run and self._run.report

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> dict[str, Any]:
        with self._iterating:
            try:
                if self._run is None and not self._over:
                    self._begin()
                while self._run is not None and not self._over:
                    item = self._run.next(self._feed(self._run))
                    if item is None and self._run.ended:
                        self._over = True
                    elif item is not None and "notice" in item:
                        if self._on_notice is not None:
                            self._on_notice(item)
                    elif item is not None:
                        return self._outcome(item)
            except BaseException:
                self.close()
                raise
            if self._run is not None and not self._run.ended:
                self.close()  # A hook closed it, and did not wait.
            if self._raised is not None:
                raised, self._raised = self._raised, None
                raise raised
            raise StopIteration

    def _begin(self) -> None:
        source = iter(self._updates)
        with self._client._changed:
            handle = self._client._opened()
        self._run = _Run(handle, self._options)
        self._source = source

    def _feed(self, run: _Run) -> int:
        """Gives the library one more line, and says for how many milliseconds to wait for an outcome then."""
        if self._line is None and self._source is not None:
            with _inside(self._client._key):
                try:
                    update = next(self._source, _END)
                except Exception as error:  # It is raised after the outcomes of the lines before.
                    self._raised, update = error, _END
            if update is _END:
                self._source = None
                run.finish()
            else:
                self._line = self._json_of(update)
        if self._line is None:
            return _SLICE_MS
        if not run.push(self._line):
            return _SLICE_MS
        self._line = None
        self._taken += 1
        return 0

    def _json_of(self, update: Any) -> bytes:
        try:
            if isinstance(update, str):
                if "\0" in update:
                    raise ValueError("the line holds a NUL, which no JSON does: write it as \\u0000")
                return update.encode()
            return _json(_record("an update", update, "or a line of JSON"))
        except Exception as error:
            # The library gets what is no update, so that this line fails alone.
            self._refused[self._taken + 1] = f"the update cannot be written as JSON: {error}"
            return b"-"

    def _outcome(self, outcome: dict[str, Any]) -> dict[str, Any]:
        problem = self._refused.pop(outcome["line"], None)
        if problem is not None:
            outcome["error"]["message"] = problem
        return outcome

    def close(self) -> None:
        """Stops the batch, if it runs: updates under way end at their next wait or request. Waits for that, but not from
        inside of a callback or of the input."""
        self._over = True
        run = self._run
        if run is not None:
            run.cancel()
            if self._client._key not in _here.clients:
                run.end()

    def __del__(self) -> None:
        # It does not wait: finalizers run on any thread, those of the batch among them, and at any place.
        run = getattr(self, "_run", None)
        if run is not None:
            run.abandoned = True
            run.cancel()


_END: Any = object()
#: For how many milliseconds the library is asked to wait in one piece: signals are handled in between.
_SLICE_MS = 100
#: The batches of the library that have not ended. They hold what the library calls.
_runs: set[_Run] = set()


class _Run:
    """A batch of the library. It does not know its Batch, which is to end when nobody holds it any more."""

    def __init__(self, handle: _Handle, options: Record) -> None:
        self.report: Optional[dict[str, Any]] = None
        self.ended = False
        self.abandoned = False
        self._after: Optional[GenesysError] = None
        self._left: collections.deque[dict[str, Any]] = collections.deque()
        self._lock, self._freeing = threading.RLock(), threading.RLock()
        for other in list(_runs):
            other.reap()
        value = ctypes.c_void_p()
        _call(_library().gca_batch_start, handle.value, _json(options), ctypes.byref(value))
        self.handle: Optional[_Handle] = handle
        self._value = value.value
        _runs.add(self)

    def push(self, line: bytes) -> bool:
        """Gives a line; False where there is no room for it."""
        full = ctypes.c_int(1)
        with self._lock:
            if self._value is not None:
                _call(_library().gca_batch_push, self._value, line, None, ctypes.byref(full))
        return full.value == 0

    def finish(self) -> None:
        with self._lock:
            if self._value is not None:
                _call(_library().gca_batch_finish, self._value)

    def next(self, timeout_ms: int) -> Optional[dict[str, Any]]:
        """The next outcome or notice. None: there is none yet, or it has ended."""
        with self._lock:
            if not self._left:
                self._fetch(timeout_ms)
            if self._left:
                return self._left.popleft()
            if self._after is not None:
                after, self._after = self._after, None
                raise after
            self.ended = self._value is None
            return None

    def _fetch(self, timeout_ms: int) -> None:
        if self._value is None:
            return
        what = ctypes.c_int()
        try:
            text = _call(_library().gca_batch_next, self._value, timeout_ms, ctypes.byref(what))
        except GenesysError as error:
            self._after = error
            self._free()
            return
        if what.value in (1, 2):
            self._left.append(_object(text))
        elif what.value == 3:
            self.report = _object(text)
            self._free()

    def _free(self) -> None:
        with self._freeing:
            value, self._value = self._value, None
        _library().gca_batch_free(value)
        self.handle = None
        _runs.discard(self)

    def cancel(self) -> None:
        with self._freeing:  # And not _lock, which a call that waits holds.
            if self._value is not None:
                _library().gca_batch_cancel(self._value)

    def end(self) -> None:
        """Cancels it, and waits for its end."""
        self.cancel()
        while self._value is not None:
            with self._lock:
                self._fetch(_SLICE_MS)

    def reap(self) -> None:
        """Frees it where nobody asks for its outcomes any more and it has ended."""
        while self.abandoned and self._value is not None:
            with self._lock:
                before = len(self._left)
                self._fetch(0)
                if self._value is not None and len(self._left) == before:
                    return
                self._left.clear()

    def after_fork(self) -> None:
        # The parent's threads run it, and one of them may have held the locks.
        self._lock, self._freeing = threading.RLock(), threading.RLock()
        self._value, self.handle = None, None
        self._left.clear()
        problem = "the batch was begun before a fork: go on with it in the process that began it"
        self._after = ConfigError({"kind": "config", "message": problem})


class Sandbox:
    """A stand-in for the platform, to test your own code with: needs a library with the features capi,testing.

        with Sandbox() as sandbox, Client(sandbox.config) as client:
            sandbox.add("c-1")
            client.update({"conversationId": "c-1", "participant": "customer", "attributes": {"tier": "gold"}})
    """

    def __init__(self, port: int = 0) -> None:
        library, value = _library(), ctypes.c_void_p()
        if not hasattr(library, "gca_sandbox_start"):
            raise RuntimeError("the library has no sandbox: build it with --features capi,testing")
        self._free = library.gca_sandbox_free
        #: The settings of a client for it.
        self.config = _object(_call(library.gca_sandbox_start, _json({"port": port}), ctypes.byref(value)))
        self._value: Optional[int] = value.value

    def add(self, conversation: str) -> None:
        """Adds a conversation with the participants "<id>-agent" and "<id>-customer", or empties one."""
        _call(_library().gca_sandbox_add, ctypes.c_void_p(self._value), conversation.encode())

    def fail_next(self, status: int) -> None:
        """Answers the next request with this status, 400 to 599. 0: does the next write and loses its answer."""
        _call(_library().gca_sandbox_fail_next, ctypes.c_void_p(self._value), status)

    def close(self) -> None:
        """Ends it."""
        value, self._value = self._value, None
        self._free(ctypes.c_void_p(value))

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_value", None) is not None:
            self.close()


_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG, 5: logging.DEBUG}
#: The callback that the library logs to.
_log_callback: Any = None


def log_to(logger: Union[logging.Logger, str, None] = "genesys_attributes", level: int = logging.INFO) -> None:
    """Sends the library's log records to a logger of the module logging, in place of the one before; None ends that.

    level: the lowest that is sent, whatever the logger's own level is. logging.DEBUG has each request's method, URL and
    status. The logger is called on the thread that logs, which may be one of a batch.
    """
    global _log_callback
    if logger is None:
        callback, highest = _ON_LOG(), 0
    else:
        target = logging.getLogger(logger) if isinstance(logger, str) else logger

        def write(_: Any, number: int, source: bytes, message: bytes) -> None:
            target.log(_LEVELS[number], "%s", message.decode(), extra={"source": source.decode()})

        callback = _ON_LOG(write)
        highest = max((number for number in range(1, 5) if _LEVELS[number] >= level), default=0)
    if _library().gca_set_logger(callback, None, highest) != 0:
        raise ConfigError({"kind": "config", "message": "the process has another logger: use that one"})
    _log_callback = callback  # The one before is called no more.


#: The clients that a forked process makes anew.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked process: waits for no lock of the parent, and uses nothing that both have."""
    global _loading
    _loading = threading.Lock()
    for client in list(_clients):
        client._after_fork()
    for run in list(_runs):
        run.after_fork()
    _runs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _stop_all() -> None:
    """Ends all batches and the log at the end of the program, after which the library could not call Python any more."""
    runs = list(_runs)
    for run in runs:
        run.cancel()
    for run in runs:
        run.end()
    if _log_callback is not None:
        log_to(None)
