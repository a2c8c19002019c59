"""Applies the updates of a DataFrame to Genesys Cloud conversations with the program `genesys-attributes`.

    spark-submit --files client.env,genesys-attributes update_attributes.py updates.jsonl outcomes.parquet \\
        --tasks 4 --rate 280 --credentials client.env --checkpoints hdfs:///tmp/checkpoints

The program must be on every executor: `--files` takes it there, or it is in their PATH already.

Each line of the input is one update as `genesys-attributes batch` takes it. The updates of one conversation are in
one task and in their order. Every task runs one process, which gets an equal share of the rate. A task that Spark
runs again sends its lines again, from its first on: they set the same values.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading

from pyspark import SparkFiles
from pyspark.sql import SparkSession, functions as F
from pyspark.sql.types import LongType, StringType, StructField, StructType

# For prctl, as in linux/prctl.h.
PR_SET_PDEATHSIG = 1

# What the platform takes in a minute for one token.
PLATFORM_RATE = 300

OUTCOME = StructType(
    [
        StructField("position", LongType()),
        StructField("conversationId", StringType()),
        StructField("status", StringType()),
        StructField("outcome", StringType()),
    ]
)


def read_json_lines(spark, path):
    """A DataFrame of `position` and `update`. The position is the order of the lines of one file; of several
    files, the order of their names."""
    lines = spark.sparkContext.textFile(path).zipWithIndex().filter(lambda line: line[0].strip())
    return spark.createDataFrame(
        lines.map(lambda line: (line[1], line[0])),
        StructType([StructField("position", LongType(), False), StructField("update", StringType(), False)]),
    )


def update_conversations(updates, tasks, rate=PLATFORM_RATE, program="genesys-attributes", arguments=()):
    """Applies `updates` and returns their outcomes as a DataFrame of `position`, `conversationId`, `status` and
    `outcome` (the program's whole record, as JSON).

    `updates` has a column `position` (a number, which gives the order) and a column `update` (the update as JSON).
    `tasks` is how many tasks the cluster runs at the same time, at most; each gets `rate` / `tasks` requests a
    minute. `arguments` are further arguments of the program, such as `--credentials FILE`; a name given to
    `--files`, also the program's, becomes the path of that file on the executor.

    The ordered updates are first kept in the checkpoint folder (`SparkContext.setCheckpointDir`), which all executors
    must share, and which then holds their values. Speculative execution must be off (it is unless switched on).

    The DataFrame is computed when it is used, and computed again each time: write it out once, or cache it.
    """
    share = rate // tasks
    if share < 1:
        raise ValueError(f"{tasks} tasks cannot share {rate} requests a minute: use fewer tasks")
    spark = updates.sparkSession
    if spark.sparkContext.getCheckpointDir() is None:
        raise ValueError("there is no checkpoint folder: name one with SparkContext.setCheckpointDir")
    if spark.conf.get("spark.speculation", "false").lower() == "true":
        raise ValueError("two copies of a task would overwrite each other: set spark.speculation to false")
    command = [program, "batch", "-", "--exit-zero", "--rate", str(share), *arguments]
    # Lines that name no conversation are the program's to refuse; they need an order, too.
    conversation = F.coalesce(F.get_json_object("update", "$.conversationId"), F.lit(""))
    partitions = (
        updates.select(F.col("position").cast("long"), F.col("update"), conversation.alias("conversation"))
        # A number that is given is kept by adaptive execution: more tasks would use more than the rate.
        .repartition(tasks, "conversation")
        .sortWithinPartitions("position")
        # Without it, a lost executor takes a part of the shuffle along. Spark then starts the tasks of the stage
        # anew while the old ones go on, and ends the new ones half-way when the old ones are done: older values
        # would be left over newer ones.
        .checkpoint()
    )
    rows = partitions.rdd.mapPartitions(lambda rows: _through_program(rows, command))
    return spark.createDataFrame(rows, OUTCOME)


def _through_program(rows, command):
    """Pipes the rows through one process, and yields its records with the positions of their lines."""
    first = next(rows, None)
    if first is None:
        return
    command = [SparkFiles.get(a) if os.path.isfile(SparkFiles.get(a)) else a for a in command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=_dying_with(os.getpid()) if sys.platform == "linux" else None,
    )
    # The program numbers the lines it gets from 1 on.
    positions = []
    broken = []

    def feed():
        try:
            with process.stdin as pipe:
                for row in _chain(first, rows):
                    positions.append(row["position"])
                    # One line each, whatever line ends a hand-written update holds.
                    pipe.write(" ".join(row["update"].splitlines()) + "\n")
        except BrokenPipeError:
            pass  # The exit status tells why it stopped reading.
        except BaseException as error:
            broken.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    told = 0
    try:
        for line in process.stdout:
            record = json.loads(line)
            told += 1
            yield positions[record["line"] - 1], record.get("conversationId"), record["status"], line.rstrip("\n")
        feeder.join()
        status = process.wait()
    finally:
        # The task was ended, or nobody wants more of its outcomes.
        if process.poll() is None:
            process.terminate()
            process.wait()
    if broken:
        raise broken[0]
    if status != 0:
        raise RuntimeError(f"{command[0]} ended with status {status}: its messages are in the executor's stderr")
    if told != len(positions):
        raise RuntimeError(f"{len(positions)} lines were given and {told} outcomes came back")


def _dying_with(parent):
    """Ends the program when this worker ends, also when it is killed. It has read its lines by then, and would go on
    beside the task that sends them again: its older values would come over newer ones. Only Linux can do it."""

    # Loaded before the fork, and not by the module: Spark sends what the module holds to the workers.
    libc = ctypes.CDLL(None)

    def in_child():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It has ended already.
            os._exit(1)

    return in_child


def _chain(first, rest):
    yield first
    yield from rest


def main():
    parser = argparse.ArgumentParser(description="Applies updates of attributes and writes their outcomes.")
    parser.add_argument("input", help="JSON lines")
    parser.add_argument("output", help="folder for the outcomes, as Parquet")
    parser.add_argument("--tasks", type=int, required=True, help="tasks that run at the same time")
    parser.add_argument("--rate", type=int, default=PLATFORM_RATE, help="requests a minute of all tasks together")
    parser.add_argument("--program", default="genesys-attributes")
    parser.add_argument("--credentials", help="a file of settings, distributed by --files")
    parser.add_argument("--checkpoints", required=True, help="a folder that all executors share, for the ordered updates")
    options = parser.parse_args()
    arguments = ["--credentials", options.credentials] if options.credentials else []

    spark = SparkSession.builder.appName("genesys-attributes").getOrCreate()
    spark.sparkContext.setCheckpointDir(options.checkpoints)
    updates = read_json_lines(spark, options.input)
    outcomes = update_conversations(updates, options.tasks, options.rate, options.program, arguments)
    outcomes.write.mode("overwrite").parquet(options.output)
    spark.read.parquet(options.output).groupBy("status").count().show()
    spark.stop()


if __name__ == "__main__":
    main()
