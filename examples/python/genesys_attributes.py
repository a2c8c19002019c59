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

A client may be used from any number of threads: other threads of Python run while it waits for the network. A call that
waits is not interrupted by Ctrl-C; give it a Cancel, or run it in a batch, which is.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import queue
import sys
import threading
from types import TracebackType
from typing import Any, Callable, Generator, Iterable, Iterator, Mapping, Optional, Type, Union

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
    status = function(*arguments, ctypes.byref(result))
    text = (ctypes.string_at(result.value) if result.value else b"{}").decode()
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


class Cancel:
    """A flag that ends the calls which it was given to, for good. Any thread may trigger it."""

    def __init__(self) -> None:
        self._free = _library().gca_cancel_free
        self._handle: Optional[int] = _library().gca_cancel_new()

    def trigger(self) -> None:
        """Sets the flag: what was given it ends at its next wait or request, with CancelledError."""
        _library().gca_cancel_trigger(self._handle)

    def __del__(self) -> None:
        # Whoever uses the handle holds this object, so nobody does any more.
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._free(handle)


class Client:
    """Changes attributes on conversations: the entry point. May be used from any number of threads.

    config: a mapping of settings (region, clientId, clientSecret, accessToken, baseUrl, ratePerMinute, retry, ...).
    Where region and credentials are left out, they come from the environment.
    on_update: called with the event of every update that was applied, on the thread that updated or one of a batch.
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
        self._free = _library().gca_client_free
        self._handle: Optional[int] = None
        self._users = 0
        self._changed = threading.Condition()
        self._batches: set[Callable[[], None]] = set()

        def hook(function: Optional[Callable[[dict[str, Any]], Any]]) -> Any:
            if function is None:
                return _ON_TEXT()
            return _ON_TEXT(lambda _, text: function(_object(text)) and None)

        # Kept for as long as the client lives, which calls them.
        self._callbacks = _Callbacks(ctypes.sizeof(_Callbacks), None, hook(on_update), hook(on_audit))
        handle = ctypes.c_void_p()
        text = None if config is None else _json(dict(config))
        _call(_library().gca_client_new, text, ctypes.byref(self._callbacks), ctypes.byref(handle))
        self._handle = handle.value

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
        """Stops its batches, waits for the calls of other threads, and frees the client.

        Later calls raise ValueError.
        """
        for stop in list(self._batches):
            stop()
        with self._changed:
            handle, self._handle = self._handle, None
            self._changed.wait_for(lambda: self._users == 0)
        if handle is not None:
            self._free(handle)

    def __del__(self) -> None:
        # Whoever uses the handle holds this object, so nobody does any more.
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._free(handle)

    def _call(self, name: str, *arguments: Any) -> str:
        with self._changed:
            if self._handle is None:
                raise ValueError("the client is closed")
            handle = self._handle
            self._users += 1
        try:
            return _call(getattr(_library(), name), handle, *arguments)
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def update(self, update: Record, *, cancel: Optional[Cancel] = None) -> dict[str, Any]:
        """Changes attributes and gives the receipt, when that is settled.

        update: conversationId and attributes; participant, or target ("secure", or "custom" with record), for other
        stores than the conversation's own; optionally remove, ifVersion, skipUnchanged, unlocked and schema.

        Raises the kind of GenesysError that says why it was refused or failed. Where its may_have_applied is true, the
        change may be in place.
        """
        return _object(self._call("gca_update", _json(dict(update)), cancel and cancel._handle))

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
            text = self._call(
                "gca_update_with", _json(dict(target)), _COMPUTE(ask), None, cancel and cancel._handle
            )
        except GenesysError:
            if raised:
                raise raised[0] from None
            raise
        return _object(text)

    def read(self, target: Record) -> dict[str, Any]:
        """Reads a target's attributes and version: one request."""
        return _object(self._call("gca_read", _json(dict(target))))

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
        time. What it raises stops the batch, and is raised after the outcomes of the updates before.
        workers: how many updates run at the same time. stop_after: stops after so many failures.
        max_outage: for how many seconds an outage of the platform is waited out, 600 by default.

        The batch begins with the first outcome that is asked for. Ending the loop early stops it.
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
        return _object(self._call("gca_verify_credentials"))

    def flush(self, timeout: float = 10.0) -> None:
        """Waits, for timeout seconds at most, until no update is under way, and flushes the audit file.

        Raises TimedOutError when some still are.
        """
        self._call("gca_flush", min(max(int(timeout * 1000), 0), 0xFFFFFFFF))


class Batch(Iterator[dict[str, Any]]):
    """The outcomes of Client.batch: an iterator, with the report once it is at its end."""

    def __init__(self, client: Client, updates: Iterable[Union[Record, str]], options: Record) -> None:
        #: What the batch did: counts, times, and "stopped" where it ended early. None before its end.
        self.report: Optional[dict[str, Any]] = None
        self._outcomes = self._run(client, updates, options)

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self._outcomes)
        except StopIteration as end:
            if end.value is not None:
                self.report = end.value
            raise StopIteration from None

    def close(self) -> None:
        """Stops the batch, if it runs: updates under way end at their next wait or request."""
        self._outcomes.close()

    @staticmethod
    def _run(
        client: Client, updates: Iterable[Union[Record, str]], options: Record
    ) -> Generator[dict[str, Any], None, dict[str, Any]]:
        outcomes: queue.SimpleQueue[Optional[dict[str, Any]]] = queue.SimpleQueue()
        room = threading.Semaphore(1000)
        cancel = Cancel()
        stopped = threading.Event()
        source = iter(updates)
        line = b""  # Kept until the next call, as the library asks for.
        ended: list[dict[str, Any]] = []
        raised: list[BaseException] = []

        def next_line(_: Any) -> Optional[int]:
            nonlocal line
            try:
                if stopped.is_set() or not threading.main_thread().is_alive():
                    return None
                update = next(source)
                line = update.encode() if isinstance(update, str) else _json(dict(update))
                return ctypes.cast(ctypes.c_char_p(line), ctypes.c_void_p).value
            except StopIteration:
                return None
            except BaseException as error:  # It must not be lost in C.
                raised.append(error)
                return None

        def on_outcome(_: Any, text: bytes) -> int:
            # At the end of the program nobody iterates any more, and this thread is waited for.
            while not room.acquire(timeout=0.2):
                if stopped.is_set() or not threading.main_thread().is_alive():
                    return 1
            outcomes.put(_object(text))
            return int(stopped.is_set())

        def stop() -> None:
            stopped.set()
            cancel.trigger()

        callbacks = _NEXT_LINE(next_line), _ON_OUTCOME(on_outcome)

        def run() -> None:
            try:
                text = client._call("gca_batch", _json(options), *callbacks, None, cancel._handle)
                ended.append(_object(text))
            except BaseException as error:  # It is raised on the thread that iterates.
                raised.append(error)
            outcomes.put(None)

        thread = threading.Thread(target=run, name="genesys-attributes-batch")
        client._batches.add(stop)
        thread.start()
        try:
            while True:
                outcome = outcomes.get()
                if outcome is None:
                    break
                room.release()
                yield outcome
        finally:
            stop()
            thread.join()
            client._batches.discard(stop)
        if raised:
            raise raised[0]
        return ended[0]
