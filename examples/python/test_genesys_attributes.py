"""Tests of genesys_attributes.py against the server of tests/it/capi.rs, which runs them."""

import gc
import os
import subprocess
import sys
import threading
import unittest

import genesys_attributes as ga
from genesys_attributes import Cancel, Client

QUICK = {"maxAttempts": 50, "maxConflicts": 50, "backoffBaseMs": 1, "backoffMaxMs": 2}


def client(**options):
    config = {"ratePerMinute": 0, "retry": QUICK}
    return Client(config, **options)


def update(conversation, **attributes):
    return {"conversationId": conversation, "attributes": attributes}


class ClientTest(unittest.TestCase):
    def test_update_and_read(self):
        events, records = [], []
        with client(on_update=events.append, on_audit=records.append) as c:
            receipt = c.update(update("python", tier="gold ä \0", n=1))
            self.assertEqual(receipt["outcome"], "applied")
            snapshot = c.read({"conversationId": "python"})
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
                c.read({"conversationId": "c"})

    def test_update_with_computes_from_what_is_there(self):
        with client() as c:
            for _ in range(3):
                c.update_with(
                    {"conversationId": "computed"}, lambda now: {"n": now["attributes"].get("n", 0) + 1}
                )
            self.assertEqual(c.read({"conversationId": "computed"})["attributes"], {"n": 3})
            receipt = c.update_with({"conversationId": "computed"}, lambda now: None)
            self.assertEqual(receipt["outcome"], "unchanged")

    def test_what_compute_raises_is_raised(self):
        with client() as c:
            with self.assertRaises(KeyError):
                c.update_with({"conversationId": "computed-2"}, lambda now: {"n": now["attributes"]["absent"]})
            with self.assertRaises(ga.InvalidInputError):
                c.update_with(
                    {"conversationId": "computed-2"}, lambda now: c.update(update("computed-2", n=1)) and None
                )
            self.assertEqual(c.read({"conversationId": "computed-2"})["attributes"], {})

    def test_errors_are_exceptions_by_kind(self):
        with client() as c:
            with self.assertRaises(ga.InvalidInputError) as caught:
                c.update(update("c", n=1.5, **{"": "x"}))
            self.assertEqual({v["rule"] for v in caught.exception.violations}, {"integer", "keyEmpty"})
            with self.assertRaises(ga.InvalidInputError):
                c.validate(update("c", n=-1))
            self.assertIsNone(c.validate(update("c", n=1)))
            with self.assertRaises(ga.NotFoundError) as caught:
                c.read({"conversationId": "absent"})
            self.assertEqual(caught.exception.http_status, 404)
            with self.assertRaises(ga.ForbiddenError) as caught:
                c.read({"conversationId": "forbidden"})
            self.assertEqual(caught.exception.missing_permissions, ["a:b:edit"])
            with self.assertRaises(ga.GenesysError):
                c.update({"conversationId": "c", "attribtues": {}})
        with self.assertRaisesRegex(ga.ConfigError, "regoin"):
            Client({"regoin": "eu-west-1"})
        with self.assertRaises(ValueError):
            c.read({"conversationId": "c"})

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
                    target=lambda: [c.update_with({"conversationId": "busy"}, count) for _ in range(5)]
                )
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(c.read({"conversationId": "busy"})["attributes"], {"n": 30})

    def test_cancel_ends_an_update(self):
        cancel = Cancel()
        slow = {"maxAttempts": 1000000, "deadlineSeconds": 86400, "backoffBaseMs": 50, "backoffMaxMs": 50}
        # The intent is recorded just before the first write.
        with Client({"retry": slow, "ratePerMinute": 0}, on_audit=lambda record: cancel.trigger()) as c:
            with self.assertRaises(ga.CancelledError):
                c.update(update("down", n=1), cancel=cancel)

    def test_a_hook_may_call_back(self):
        def on_update(event):
            if event["conversationId"] == "python-calls":
                c.update(update("python-called", n=event["attributes"]["n"]))

        with client(on_update=on_update) as c:
            c.update(update("python-calls", n=5))
            self.assertEqual(c.read({"conversationId": "python-called"})["attributes"], {"n": 5})

    def test_version_is_that_of_the_library(self):
        self.assertRegex(ga.version(), r"^\d+\.\d+\.\d+")


class BatchTest(unittest.TestCase):
    def test_generator_in_outcomes_out(self):
        def updates():
            for n in range(1, 51):
                yield update(f"batch-{n % 7}", n=n)
            yield '{"conversationId":"batch-text","attributes":{"n":1}}'
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
            "line = {'conversationId': 'endless', 'attributes': {'n': 1}}\n"
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
            with self.assertRaisesRegex(RuntimeError, "the source is gone"):
                for outcome in c.batch(broken()):
                    seen.append(outcome["status"])
            with self.assertRaises(ga.InvalidInputError):
                list(c.batch([], workers=-1))
        self.assertEqual(seen, ["applied"])


if __name__ == "__main__":
    if "GENESYS_ATTRIBUTES_LIBRARY" not in os.environ:
        print("set GENESYS_ATTRIBUTES_LIBRARY and GENESYS_CLOUD_... first; cargo test does")
    unittest.main()
