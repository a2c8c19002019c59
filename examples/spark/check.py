"""Runs update_attributes.py on a local cluster of two executors against the sandbox, kills a Python worker and later
an executor in the middle, and checks that no program outlives its worker, every outcome and every final state.

    pip install pyspark
    cargo build --features cli --bin genesys-attributes --example sandbox
    python examples/spark/check.py
"""

import base64
import collections
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug"
CONVERSATIONS, ROUNDS = 60, 7
# Lines that fail, which must not fail their task.
WRONG = ['{"conversationId":"c-1","target":"conversation"}', '{"conversationId":"c-2","target":"conversation","attributes":{"n":1},"unknown":true}', "no JSON"]
# So low that a task is not over with its first burst.
TASKS, RATE = 2, 400


def sandbox():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [TARGET / "examples/sandbox", "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    settings = {}
    for line in process.stdout:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            settings[name] = value
        if "CLIENT_SECRET" in line:
            break
    return process, settings


def processes(part):
    """Those below this process with such a command line, and the parents of all."""
    parents, commands = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid = int(status.parent.name)
            parents[pid] = int(status.read_text().rpartition(")")[2].split()[1])
            commands[pid] = (status.parent / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue  # It has ended.

    def ours(pid):
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid in commands if part in commands[pid] and ours(pid)], parents


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_some(updates_in_place, killed):
    """Kills the worker of a program when a third of the updates are in place, and an executor at two thirds."""
    while updates_in_place() < CONVERSATIONS * ROUNDS // 3:
        time.sleep(0.05)
    programs, parents = processes(b"\0batch\0-\0")
    program = programs[0]
    os.kill(parents[program], signal.SIGKILL)
    killed["worker"] = parents[program]
    end = time.monotonic() + 5
    while is_running(program) and time.monotonic() < end:
        time.sleep(0.01)
    killed["outlived"] = is_running(program)
    while updates_in_place() < CONVERSATIONS * ROUNDS * 2 // 3:
        time.sleep(0.05)
    executor = processes(b"CoarseGrainedExecutorBackend")[0][0]
    os.kill(executor, signal.SIGKILL)
    killed["executor"] = executor


class Platform:
    def __init__(self, settings):
        self.base = settings["GENESYS_CLOUD_BASE_URL"]
        form = b"grant_type=client_credentials"
        request = urllib.request.Request(self.base + "/oauth/token", form)
        pair = f"{settings['GENESYS_CLOUD_CLIENT_ID']}:{settings['GENESYS_CLOUD_CLIENT_SECRET']}"
        request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
        with urllib.request.urlopen(request) as answer:
            self.token = json.load(answer)["access_token"]

    def conversation(self, id):
        request = urllib.request.Request(f"{self.base}/api/v2/conversations/{id}")
        request.add_header("Authorization", "Bearer " + self.token)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def main():
    from pyspark.sql import SparkSession

    sys.path.insert(0, str(Path(__file__).parent))
    import update_attributes

    server, settings = sandbox()
    platform = Platform(settings)
    folder = tempfile.TemporaryDirectory()
    spark = None
    try:
        lines = [
            json.dumps({"conversationId": f"c-{n}", "target": "conversation", "attributes": {"n": turn, f"turn{turn}": n}})
            for turn in range(ROUNDS)
            for n in range(CONVERSATIONS)
        ]
        source = Path(folder.name, "updates.jsonl")
        source.write_text("\n".join(lines[:100] + WRONG + lines[100:]) + "\n")
        credentials = Path(folder.name, "client.env")
        credentials.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        credentials.chmod(0o600)

        spark = (
            SparkSession.builder.master("local-cluster[2,1,1024]")
            .appName("check")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.executorEnv.PYTHONPATH", str(Path(__file__).parent))
            .config("spark.executorEnv.PATH", os.environ["PATH"])
            .getOrCreate()
        )
        spark.sparkContext.setLogLevel("ERROR")
        spark.sparkContext.addPyFile(str(Path(__file__).with_name("update_attributes.py")))

        spark.sparkContext.setCheckpointDir(str(Path(folder.name, "checkpoints")))

        def written():
            return sum(1 for n in range(CONVERSATIONS) for _ in platform.conversation(f"c-{n}")["attributes"]) - CONVERSATIONS

        killed = {}
        killer = threading.Thread(target=kill_some, args=(written, killed), daemon=True)
        outcomes = update_attributes.update_conversations(
            update_attributes.read_json_lines(spark, str(source)),
            TASKS,
            RATE,
            str(TARGET / "genesys-attributes"),
            ["--credentials", str(credentials), "-q"],
        )
        killer.start()
        output = str(Path(folder.name, "outcomes"))
        start = time.monotonic()
        outcomes.write.parquet(output)
        took = time.monotonic() - start
        assert "executor" in killed, "the job was over before an executor was killed"
        assert not killed["outlived"], "a program outlived its worker"

        rows = spark.read.parquet(output).collect()
        positions = collections.Counter(row["position"] for row in rows)
        assert positions == collections.Counter(range(len(lines) + len(WRONG))), "not one outcome for each line"
        for row in rows:
            wrong = 100 <= row["position"] < 100 + len(WRONG)
            assert row["status"] == ("failed" if wrong else "applied"), row
        for n in range(CONVERSATIONS):
            expected = {"n": ROUNDS - 1, **{f"turn{turn}": n for turn in range(ROUNDS)}}
            found = platform.conversation(f"c-{n}")
            assert found["attributes"] == expected, found
        writes = sum(int(platform.conversation(f"c-{n}")["version"]) - 1 for n in range(CONVERSATIONS))
        assert writes > len(lines), "the executor that was killed had sent nothing"
        print(
            f"{len(rows)} outcomes, {CONVERSATIONS} conversations, all as expected; worker {killed['worker']} and "
            f"executor {killed['executor']} killed; "
            f"{len(lines)} updates took {writes} writes and {took:.1f} s"
        )
    finally:
        if spark is not None:
            spark.stop()
        server.terminate()
        server.wait()
        folder.cleanup()


if __name__ == "__main__":
    main()
