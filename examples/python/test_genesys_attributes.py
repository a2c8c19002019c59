"""Tests of genesys_attributes.py against the server of tests/it/capi.rs, which runs them."""

import contextlib
import copy
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import warnings
from pathlib import Path

import genesys_attributes as ga
from genesys_attributes import Cancel, Client

QUICK = {"maxAttempts": 50, "maxConflicts": 50, "backoffBaseMs": 1, "backoffMaxMs": 2}


def client(on_update=None, on_audit=None, **settings):
    config = {"ratePerMinute": 0, "retry": QUICK, **settings}
    return Client(config, on_update=on_update, on_audit=on_audit)


def update(conversation, **attributes):
    return {"conversationId": conversation, "target": "conversation", "attributes": attributes}


# An update of the conversation "down" ends by a Cancel only.
SLOW = {"maxAttempts": 1000000, "deadlineSeconds": 86400, "backoffBaseMs": 50, "backoffMaxMs": 50}


def interrupt():
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def interruptible():
    # Whoever runs the tests in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(code):
    """Runs a program, which is killed when it hangs, and gives what it printed."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import genesys_attributes as ga\n" + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return ended.stdout if ended.returncode == 0 else f"{ended.stdout}\nexit status {ended.returncode}"


class ClientTest(unittest.TestCase):
    def test_update_and_read(self):
        events, records = [], []
        with client(on_update=events.append, on_audit=records.append) as c:
            receipt = c.update(update("python", tier="gold ä \0", n=1))
            self.assertEqual(receipt["outcome"], "applied")
            self.assertIn("customer", [one["purpose"] for one in c.participants("python")])
            snapshot = c.read({"conversationId": "python", "target": "conversation"})
            self.assertEqual(snapshot["attributes"], {"tier": "gold ä \0", "n": 1})
            self.assertEqual(c.metrics()["successfulUpdates"], 1)
            self.assertIn("genesys_attributes_calls_total 1", c.metrics_prometheus())
            self.assertEqual(c.verify_credentials()["organizationName"], "Org")
            c.flush()
        self.assertEqual([event["conversationId"] for event in events], ["python"])
        self.assertEqual([record["phase"] for record in records], ["intent", "outcome"])

    def test_a_client_without_config_uses_the_environment(self):
        with Client() as c:
            c.update(update("environment", n=1))

    def test_given_settings_are_not_completed_from_the_environment(self):
        with self.assertRaisesRegex(ga.ConfigError, "clientId and clientSecret: not given"):
            Client({"region": "eu-west-1"})
        with self.assertRaisesRegex(ga.ConfigError, "region: not given"):
            Client({"accessToken": "token"})
        # A base URL alone goes with the credentials of the environment, and before its own.
        with Client({"baseUrl": "http://127.0.0.1:1", "retry": {"maxAttempts": 1}}) as c:
            with self.assertRaises(ga.ConnectError):
                c.read({"conversationId": "c", "target": "conversation"})

    def test_update_with_computes_from_what_is_there(self):
        with client() as c:
            for _ in range(3):
                c.update_with(
                    {"conversationId": "computed", "target": "conversation"}, lambda now: {"n": now["attributes"].get("n", 0) + 1}
                )
            self.assertEqual(c.read({"conversationId": "computed", "target": "conversation"})["attributes"], {"n": 3})
            receipt = c.update_with({"conversationId": "computed", "target": "conversation"}, lambda now: None)
            self.assertEqual(receipt["outcome"], "unchanged")

    def test_what_compute_raises_is_raised(self):
        with client() as c:
            with self.assertRaises(KeyError):
                c.update_with({"conversationId": "computed-2", "target": "conversation"}, lambda now: {"n": now["attributes"]["absent"]})
            with self.assertRaises(ga.InvalidInputError):
                c.update_with(
                    {"conversationId": "computed-2", "target": "conversation"}, lambda now: c.update(update("computed-2", n=1)) and None
                )
            self.assertEqual(c.read({"conversationId": "computed-2", "target": "conversation"})["attributes"], {})

    def test_errors_are_exceptions_by_kind(self):
        with client() as c:
            with self.assertRaises(ga.InvalidInputError) as caught:
                c.update(update("c", n=1.5, **{"": "x"}))
            self.assertEqual({v["rule"] for v in caught.exception.violations}, {"integer", "keyEmpty"})
            error = caught.exception
            self.assertEqual((error.transient, error.during_login, error.may_have_applied), (False, False, False))
            with self.assertRaises(ga.InvalidInputError):
                c.validate(update("c", n=-1))
            self.assertIsNone(c.validate(update("c", n=1)))
            with self.assertRaises(ga.NotFoundError) as caught:
                c.read({"conversationId": "absent", "target": "conversation"})
            self.assertEqual(caught.exception.http_status, 404)
            with self.assertRaises(ga.ForbiddenError) as caught:
                c.read({"conversationId": "forbidden", "target": "conversation"})
            self.assertEqual(caught.exception.missing_permissions, ["a:b:edit"])
            with self.assertRaises(ga.GenesysError):
                c.update({"conversationId": "c", "target": "conversation", "attribtues": {}})
        with self.assertRaisesRegex(ga.ConfigError, "regoin"):
            Client({"regoin": "eu-west-1"})
        with self.assertRaises(ValueError):
            c.read({"conversationId": "c", "target": "conversation"})

    def test_text_where_a_mapping_belongs_is_named(self):
        line = '{"conversationId":"c","target":"conversation","attributes":{"n":1}}'
        with self.assertRaisesRegex(TypeError, "config must be a mapping, and not str"):
            Client("eu-west-1")
        with client() as c:
            for name, call in [
                ("update", c.update),
                ("update", c.validate),
                ("update", c.preview),
                ("target", c.read),
                ("target", lambda target: c.update_with(target, lambda now: None)),
            ]:
                for wrong in [line, line.encode(), 7, None, ["c"]]:
                    with self.assertRaisesRegex(TypeError, f"{name} must be a mapping, and not {type(wrong).__name__}"):
                        call(wrong)
            with self.assertRaisesRegex(TypeError, "what compute returns must be a mapping"):
                c.update_with({"conversationId": "c-text", "target": "conversation"}, lambda now: line)

    def test_preview_shows_what_is_there_and_writes_nothing(self):
        with client() as c:
            c.update(update("previewed", n=1))
            self.assertEqual(c.preview(update("previewed", n=2))["attributes"], {"n": 1})
            with self.assertRaises(ga.InvalidInputError):
                c.preview(update("previewed", n=1.5))
            self.assertEqual(c.read({"conversationId": "previewed", "target": "conversation"})["attributes"], {"n": 1})

    def test_log_records_go_to_logging_until_that_is_ended(self):
        with self.assertLogs("genesys_attributes", logging.DEBUG) as logs:
            ga.log_to("genesys_attributes", logging.DEBUG)
            with client() as c:
                c.update(update("logged", n=1))
            ga.log_to(None)
            with client() as c:
                c.update(update("not-logged", n=1))
        text = "\n".join(logs.output)
        self.assertIn("/conversations/logged", text)
        self.assertNotIn("not-logged", text)

    def test_sandbox_is_a_platform_of_ones_own(self):
        with ga.Sandbox() as sandbox, Client(sandbox.config) as c:
            sandbox.add("c-1")
            target = {"conversationId": "c-1", "target": "secure"}
            sandbox.fail_next(503)
            receipt = c.update({**target, "attributes": {"old": "1", "kept": "2"}})
            self.assertGreater(receipt["requests"], 1)
            c.update_with(target, lambda now: ga.Edit({"new": "3"}, remove=["old"]))
            self.assertEqual(c.read(target)["attributes"], {"kept": "2", "new": "3"})

    def test_every_kind_has_its_exception(self):
        kinds = {kind.kind for kind in ga.GenesysError.__subclasses__()}
        self.assertEqual(len(kinds), 16)
        self.assertEqual(kinds, set(ga._KINDS))
        for kind in ga.GenesysError.__subclasses__():
            self.assertIn(kind.__name__, ga.__all__)

    def test_threads_share_a_client(self):
        def count(now):
            return {"n": now["attributes"].get("n", 0) + 1}

        with client() as c:
            threads = [
                threading.Thread(
                    target=lambda: [c.update_with({"conversationId": "busy", "target": "conversation"}, count) for _ in range(5)]
                )
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(c.read({"conversationId": "busy", "target": "conversation"})["attributes"], {"n": 30})

    def test_cancel_ends_an_update(self):
        cancel = Cancel()
        # The intent is recorded just before the first write.
        with Client({"retry": SLOW, "ratePerMinute": 0}, on_audit=lambda record: cancel.trigger()) as c:
            with self.assertRaises(ga.CancelledError):
                c.update(update("down", n=1), cancel=cancel)
            # It stays set, and on any thread.
            with self.assertRaises(ga.CancelledError):
                c.update(update("down", n=1), cancel=cancel)
            caught = []

            def on_another_thread():
                try:
                    c.update(update("down", n=1), cancel=cancel)
                except ga.CancelledError as error:
                    caught.append(error)

            thread = threading.Thread(target=on_another_thread)
            thread.start()
            thread.join()
            self.assertEqual(len(caught), 1)
            for call in [
                lambda: c.read({"conversationId": "c", "target": "conversation"}, cancel=cancel),
                lambda: c.preview(update("c", n=1), cancel=cancel),
                lambda: c.verify_credentials(cancel=cancel),
            ]:
                with self.assertRaises(ga.CancelledError):
                    call()

    @unittest.skipIf(os.name == "nt", "there is no signal to send")
    def test_ctrl_c_ends_a_call_of_the_main_thread(self):
        seen = []

        def on_audit(record):
            seen.append(record["phase"])
            if record["phase"] == "intent":
                interrupt()

        config = {"retry": SLOW, "ratePerMinute": 0}
        with interruptible(), Client(config, on_update=lambda event: None, on_audit=on_audit) as c:
            cancel = Cancel()
            with self.assertRaises(KeyboardInterrupt):
                c.update(update("down", n=1), cancel=cancel)
            with self.assertRaises(KeyboardInterrupt):
                c.update_with({"conversationId": "down", "target": "conversation"}, lambda now: {"n": 1}, cancel=cancel)
            # Both were waited for, and the caller's flag is as it was.
            self.assertEqual(seen, ["intent", "outcome"] * 2)
            self.assertFalse(cancel._triggered or cancel._followers)

    @unittest.skipIf(os.name == "nt", "there is no signal to send")
    def test_ctrl_c_in_compute_is_raised(self):
        asked, go_on = [], threading.Event()

        def compute(now):
            asked.append(now)
            interrupt()
            go_on.wait()  # By then the main thread has the signal.
            return {"n": 1}

        def handler(number, frame):
            go_on.set()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, handler)
        try:
            with client(on_update=lambda event: None) as c:
                with self.assertRaises(KeyboardInterrupt):
                    c.update_with({"conversationId": "interrupted", "target": "conversation"}, compute)
                self.assertEqual(len(asked), 1)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_text_is_freed_whatever_happens(self):
        freed, library = [], ga._library()

        class Counting:
            gca_string_free = staticmethod(freed.append)

        ga._loaded = Counting
        try:
            with self.assertRaises(ZeroDivisionError):
                ga._call(lambda result: 1 // 0)
        finally:
            ga._loaded = library
        self.assertEqual(len(freed), 1)

    def test_closing_from_inside_of_a_call_is_refused(self):
        message = "close the client after the call"
        with client() as c:

            def compute(now):
                with c:
                    return {"n": 1}

            with self.assertRaisesRegex(RuntimeError, message):
                c.update_with({"conversationId": "closing", "target": "conversation"}, compute)

            def source():
                yield update("closing", n=1)
                c.close()

            with self.assertRaisesRegex(RuntimeError, message):
                list(c.batch(source()))
            # Another client may be closed there.
            c.update_with({"conversationId": "closing", "target": "conversation"}, lambda now: client().close())
        caught = []

        def on_update(event):
            try:
                c.close()
            except RuntimeError as error:
                caught.append(error)

        with client(on_update=on_update) as c:
            c.update(update("closing", n=2))
            self.assertEqual(len(caught), 1)
            list(c.batch([update("closing", n=3)]))
            self.assertEqual(len(caught), 2)

    def test_exceptions_can_be_copied_and_sent_to_other_processes(self):
        with client() as c:
            with self.assertRaises(ga.InvalidInputError) as caught:
                c.update(update("c", n=1.5))
        error = caught.exception
        error.note = "of the caller"
        for again in [pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)]:
            self.assertIs(type(again), ga.InvalidInputError)
            self.assertEqual((str(again), again.error, again.note), (str(error), error.error, error.note))
            self.assertEqual(again.violations, error.violations)

    def test_what_a_hook_returns_is_ignored(self):
        class Ambiguous:
            def __bool__(self):
                raise ValueError("an array, say")

        printed, before = [], sys.unraisablehook
        sys.unraisablehook = printed.append
        try:
            with client(on_update=lambda event: Ambiguous()) as c:
                c.update(update("python", n=1))
        finally:
            sys.unraisablehook = before
        self.assertEqual(printed, [])

    def test_a_target_says_where_only(self):
        with client() as c:
            for name in ["attributes", "remove", "ifVersion", "skipUnchanged", "verify"]:
                for call in [c.read, lambda target: c.update_with(target, lambda now: None)]:
                    with self.assertRaisesRegex(ga.InvalidInputError, name):
                        call({"conversationId": "python", name: None})

    def test_a_hook_may_call_back(self):
        def on_update(event):
            if event["conversationId"] == "python-calls":
                c.update(update("python-called", n=event["attributes"]["n"]))

        with client(on_update=on_update) as c:
            c.update(update("python-calls", n=5))
            self.assertEqual(c.read({"conversationId": "python-called", "target": "conversation"})["attributes"], {"n": 5})

    def test_version_is_that_of_the_library(self):
        self.assertRegex(ga.version(), r"^\d+\.\d+\.\d+")


class BatchTest(unittest.TestCase):
    def test_generator_in_outcomes_out(self):
        def updates():
            for n in range(1, 51):
                yield update(f"batch-{n % 7}", n=n)
            yield '{"conversationId":"batch-text","target":"conversation","attributes":{"n":1}}'
            yield "no JSON"

        with client() as c:
            batch = c.batch(updates(), workers=6)
            outcomes = list(batch)
            self.assertEqual(sorted(o["line"] for o in outcomes), list(range(1, 53)))
            failed = [o for o in outcomes if o["status"] == "failed"]
            self.assertEqual([o["line"] for o in failed], [52])
            self.assertEqual((batch.report["applied"], batch.report["failed"]), (51, 1))
            self.assertIsNone(batch.report["stopped"])
            for conversation in range(7):
                lines = [o["line"] for o in outcomes if o.get("conversationId") == f"batch-{conversation}"]
                self.assertEqual(lines, sorted(lines))

    def test_journal_goes_on_with_what_an_earlier_batch_left(self):
        lines = [update(f"journal-{n}", n=n) for n in range(5)] + [update("journal-5", n=-1)]
        with tempfile.TemporaryDirectory() as folder, client() as c:
            path = Path(folder) / "done.jsonl"
            self.assertEqual(len(list(c.batch(lines[:3], journal=path))), 3)
            self.assertEqual([o["line"] for o in c.batch(lines, journal=path)], [4, 5, 6])
            batch = c.batch(lines, journal=path, retry_failed=True)
            self.assertEqual([o["line"] for o in batch], [6])
            self.assertEqual(batch.report["finishedBefore"], 5)
            lines[0] = update("journal-0", n=99)
            batch = c.batch(lines, journal=str(path))
            self.assertEqual(list(batch), [])
            self.assertEqual(batch.report["stopped"], "journal")
            self.assertIn("line 1 of the input has changed", batch.report["error"]["message"])

    def test_stop_after_failures(self):
        with client() as c:
            batch = c.batch((update("c", n=-1) for _ in range(1000)), stop_after=3)
            self.assertGreaterEqual(len(list(batch)), 3)
            self.assertEqual(batch.report["stopped"], "failures")

    def test_ending_the_loop_early_stops_the_batch(self):
        taken = []

        def endless():
            while True:
                taken.append(1)
                yield update("endless", n=1)

        with client() as c:
            batch = c.batch(endless(), workers=4)
            for outcome in batch:
                break
            batch.close()
            self.assertEqual(list(batch), [])
            # Dropped, it stops as well.
            batch = c.batch(endless(), workers=4)
            next(batch)
            del batch, outcome
            gc.collect()
        self.assertLess(len(taken), 10000)

    def test_an_abandoned_batch_that_the_collector_finds_in_a_hook_ends(self):
        printed = run(
            "import gc, itertools, threading\n"
            "gc.disable()\n"
            "abandoned, found = threading.Event(), threading.Event()\n"
            "def collect(event):\n"
            "    abandoned.wait()\n"
            "    if not found.is_set():\n"
            "        print('found:', gc.collect() > 0)\n"
            "        found.set()\n"
            "def job(c):\n"
            "    lines = ({'conversationId': 'endless', 'target': 'conversation', 'attributes': {'n': n}} for n in itertools.count())\n"
            "    batch = c.batch(lines, workers=4)\n"
            "    try:\n"
            "        batch._begin(); batch._feed(batch._run)\n"
            "        raise ValueError\n"
            "    except ValueError as error:\n"
            "        kept = error  # frame, error, traceback, frame\n"
            "c = ga.Client({'ratePerMinute': 0}, on_update=collect)\n"
            "job(c)\n"
            "abandoned.set()\n"
            "found.wait()\n"
            "c.close()\n"
            "print('closed', len(ga._runs))\n"
        )
        self.assertEqual(printed, "found: True\nclosed 0\n")

    def test_abandoned_batches_do_not_pile_up(self):
        with client() as c:
            for _ in range(20):
                next(c.batch(update("endless", n=n) for n in range(10**6)))
                gc.collect()
            self.assertLess(len(ga._runs), 20)
        self.assertEqual(len(ga._runs), 0)

    def test_everything_of_a_batch_runs_on_the_thread_that_iterates(self):
        here, threads = threading.get_ident(), threading.active_count()
        seen = set()

        def source():
            for n in range(20):
                seen.add(threading.get_ident())
                self.assertEqual(threading.active_count(), threads)
                yield update("one-thread", n=n)

        with client() as c, c.batch(source(), workers=4) as batch:
            self.assertEqual(len(list(batch)), 20)
        self.assertEqual(seen, {here})

    def test_notices_of_an_outage(self):
        notices = []

        def on_notice(notice):
            notices.append(notice)
            batch.close()

        with Client({"baseUrl": "http://127.0.0.1:1", "accessToken": "t"}) as c:
            batch = c.batch([update("down", n=n) for n in range(5)], on_notice=on_notice)
            self.assertEqual(list(batch), [])
        self.assertEqual((notices[0]["notice"], notices[0]["error"]["kind"]), ("outageBegan", "connect"))
        self.assertEqual(batch.report["stopped"], "cancelled")

    def test_a_hook_may_close_the_batch(self):
        printed = run(
            "lines = ({'conversationId': f'closed-{n}', 'target': 'conversation', 'attributes': {'n': 1}} for n in iter(int, 1))\n"
            "c = ga.Client({'ratePerMinute': 0}, on_update=lambda event: batch.close())\n"
            "batch = c.batch(lines)\n"
            "for outcome in batch: pass\n"
            "print(batch.report['applied'] >= 1, batch.report['stopped'] is not None)\n"
        )
        self.assertEqual(printed, "True True\n")

    @unittest.skipIf(os.name == "nt", "there is no signal to send")
    def test_ctrl_c_ends_a_batch(self):
        def source():
            for n in range(10**9):
                if n == 100:
                    interrupt()
                yield update("endless", n=1)

        with interruptible(), client() as c:
            batch = c.batch(source())
            with self.assertRaises(KeyboardInterrupt):
                for outcome in batch:
                    pass
            batch.close()
            self.assertIsNotNone(batch.report["stopped"])

    def test_a_record_that_is_no_json_fails_alone(self):
        good = update("python", n=1)
        circular = update("python", n=1)
        circular["attributes"]["n"] = circular
        text = '{"conversationId":"python","target":"conversation","attributes":{"n":1}}'
        bad = [
            (update("python", n=float("nan")), "Out of range float"),
            (update("python", n="\udc80"), "surrogates"),
            (circular, "Circular"),
            (None, "mapping or a line of JSON, and not NoneType"),
            (7, "not int"),
            (update("python", n=object()), "not JSON serializable"),
            ("\udc80", "surrogates"),
            (text + "\0, garbage", "NUL"),
            (text[:-1], "not JSON"),
        ]
        with client() as c:
            batch = c.batch([good, *(record for record, _ in bad), good])
            outcomes = {outcome["line"]: outcome for outcome in batch}
            self.assertEqual(len(outcomes), len(bad) + 2)
            self.assertEqual((batch.report["applied"], batch.report["failed"]), (2, len(bad)))
            for line, (record, part) in enumerate(bad, 2):
                self.assertEqual(outcomes[line]["error"]["kind"], "invalidInput")
                self.assertIn(part, outcomes[line]["error"]["message"])

    def test_closing_the_client_stops_its_batches(self):
        c = client()
        batch = c.batch((update("endless", n=1) for _ in iter(int, 1)), workers=4)
        next(batch)
        c.close()
        self.assertLessEqual(len(list(batch)), 2000)
        self.assertIsNotNone(batch.report["stopped"])

    def test_a_program_that_ends_in_the_middle_of_a_batch_ends(self):
        code = (
            "import genesys_attributes as ga\n"
            "c = ga.Client({'ratePerMinute': 0})\n"
            "line = {'conversationId': 'endless', 'target': 'conversation', 'attributes': {'n': 1}}\n"
            "batch = c.batch((line for _ in iter(int, 1)), workers=4)\n"
            "print(next(batch)['status'])\n"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        self.assertEqual((ended.returncode, ended.stdout), (0, "applied\n"), ended.stderr)

    def test_what_the_input_raises_is_raised_after_the_outcomes(self):
        def broken():
            yield update("broken", n=1)
            raise RuntimeError("the source is gone")

        seen = []
        with client() as c:
            batch = c.batch(broken())
            with self.assertRaisesRegex(RuntimeError, "the source is gone"):
                for outcome in batch:
                    seen.append(outcome["status"])
            self.assertEqual((batch.report["applied"], list(batch)), (1, []))
            with self.assertRaises(ga.InvalidInputError):
                list(c.batch([], workers=-1))
        self.assertEqual(seen, ["applied"])


def addresses():
    """Settings by http, and by https where the caller has a server of it."""
    yield {}
    if "TEST_HTTPS_URL" in os.environ:
        yield {"baseUrl": os.environ["TEST_HTTPS_URL"], "rootCertificatesFile": os.environ["TEST_HTTPS_CA"]}


#: A client that forked processes find made.
shared = None


def own_conversation(number):
    # The server counts a connection that carries requests of two processes as an error.
    return f"of-process-{os.getpid()}-{number}"


def write(settings, number):
    """Runs in a worker, which may have been forked."""
    global shared
    if shared is None:
        shared = client(**settings)
    target = {"conversationId": own_conversation(number), "participant": "customer"}
    shared.update({**target, "attributes": {"n": str(number)}})
    return shared.read(target)["attributes"] == {"n": str(number)}


def forked(work):
    """Runs work in a forked child, for 30 s at most, and says how that ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Newer Pythons warn of threads.
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@unittest.skipUnless(hasattr(os, "fork"), "there is no fork here")
class ForkTest(unittest.TestCase):
    def test_pools_of_every_start_method_write_their_own_values_on_their_own_connections(self):
        global shared
        for settings in addresses():
            for method in multiprocessing.get_all_start_methods():
                with self.subTest(method=method, **settings), client(**settings) as shared, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.assertTrue(write(settings, 0))
                    with multiprocessing.get_context(method).Pool(4) as pool:
                        done = pool.starmap(write, [(settings, number) for number in range(200)], chunksize=5)
                    self.assertEqual(done, [True] * 200)
                    self.assertTrue(write(settings, 1))
        shared = None

    def test_a_child_that_is_forked_during_a_call_uses_and_closes_the_client(self):
        for settings in addresses():
            entered, leave = threading.Event(), threading.Event()

            def hold(record):
                if record["conversationId"] == "held":
                    entered.set()
                    leave.wait(30)

            with self.subTest(**settings), client(on_audit=hold, **settings) as c:
                c.update(update(own_conversation(0), n=1))
                threads = [threading.Thread(target=c.update, args=(update("held", n=1),))]
                threads.append(threading.Thread(target=c.update, args=(update("held", n=2),)))
                for thread in threads:
                    thread.start()
                entered.wait(30)

                def work():
                    c.update(update(own_conversation(1), n=1))
                    assert c.metrics()["totalAttempts"] == 1
                    c.close()

                try:
                    self.assertEqual(forked(work), 0)
                    self.assertEqual(forked(c.close), 0)
                finally:
                    leave.set()
                    for thread in threads:
                        thread.join()
                self.assertEqual(c.metrics()["successfulUpdates"], 3)

    def test_a_batch_goes_on_only_in_the_process_that_began_it(self):
        with client() as c:
            batch = c.batch(update("batch-and-fork", n=n) for n in range(2000))
            next(batch)

            def work():
                try:
                    next(batch)
                except ga.ConfigError as error:
                    assert "before a fork" in str(error), error
                    batch.close()
                    c.close()
                    return
                raise AssertionError("it goes on")

            self.assertEqual(forked(work), 0)
            self.assertEqual(sum(1 for _ in batch), 1999)

    def test_a_closed_client_stays_closed_in_a_child(self):
        c = client()
        c.close()

        def work():
            try:
                c.update(update("closed", n=1))
            except ValueError:
                return
            raise AssertionError("it is open")

        self.assertEqual(forked(work), 0)


if __name__ == "__main__":
    if "GENESYS_ATTRIBUTES_LIBRARY" not in os.environ:
        print("set GENESYS_ATTRIBUTES_LIBRARY and GENESYS_CLOUD_... first; cargo test does")
    unittest.main()
