"""The acts: archive, let a schema grow, compact in the middle of archiving, archive on. After each, all readers agree."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.types import StringType

from engines import DuckDb, PyIceberg, Spark, Tidemill, load
from truth import TYPES, Sender, summary_of

PATIENCE = 120
# Each commit is a file per day: many small ones, for Spark to put together.
COMMIT_MS = 500


class Play:
    def __init__(self, options):
        self.options, self.project = options, options.project
        self.database, self.warehouse = os.environ["DATABASE_URL"], os.environ["WAREHOUSE_URL"]
        self.sender = Sender(os.environ["KAFKA_BROKERS"], os.environ["SCHEMA_REGISTRY_URL"], f"events.{self.project}")
        self.promoted, self.declared, self.checks, self.failed = [], {}, 0, 0
        self.archiver = self.start("archiver")
        query = self.start("query")
        self.query = query
        jars = ",".join(str(jar) for jar in Path(options.jars).glob("*.jar"))
        self.spark = Spark(self.database, self.warehouse, self.project, jars, options.work)
        self.ours = Tidemill(query.url, options.key)
        self.engines = [PyIceberg(self.table), DuckDb(self.table), self.spark, self.ours]

    def start(self, service: str):
        """Starts a service of ours and waits until it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            f"TIDEMILL_{service.upper()}__PORT": str(port), "TIDEMILL_LISTEN__HOST": "127.0.0.1",
            "TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS": str(COMMIT_MS), "TIDEMILL_ARCHIVER__SESSION_TIMEOUT_MS": "3000",
            "TIDEMILL_ARCHIVER__SEEN_DIR": f"{self.options.work}/seen", "LOG_LEVEL": "warn",
        }
        log = Path(self.options.work, f"{service}.log").open("ab")
        process = subprocess.Popen([self.options.tidemill, service], env=os.environ | settings, stdout=log, stderr=log)
        process.url = f"http://127.0.0.1:{port}"
        self.until(f"{service} is ready", lambda: answers(f"{process.url}/readyz"))
        return process

    def table(self):
        return load(self.database, self.warehouse, self.project)

    def send(self, count: int):
        self.sender.send(count)

    def archived(self):
        """Waits until the table's positions have passed everything that was sent."""
        ends = {}
        for row in self.sender.rows:
            ends[row["kafka_partition"]] = max(row["kafka_offset"] + 1, ends.get(row["kafka_partition"], 0))

        def passed():
            properties = self.table().properties
            positions = [(f"kafka.offsets.events.{self.project}.{partition}", end) for partition, end in ends.items()]
            return all(name in properties and json.loads(properties[name])["next"] >= end for name, end in positions)

        self.until("the archive has passed the log", passed)

    def compare(self, act: str):
        """All readers against what was sent."""
        expected = summary_of(self.sender.rows, self.promoted)
        files = len(list(self.table().scan().plan_files()))
        print(f"{act}: {expected.rows} rows, {len(expected.days)} days and types, {files} files")
        newest = self.table().current_snapshot().snapshot_id
        # Without a stream there is no tail that has what an older snapshot lacks.
        self.until("our SQL asks the newest snapshot", lambda: self.ours.snapshot() == newest)
        for engine in self.engines:
            name, found = type(engine).__name__, engine.summary(self.promoted)
            differences = [part for part in ("rows", "days", "checksum") if getattr(found, part) != getattr(expected, part)]
            self.checks += 1
            self.failed += bool(differences)
            print(f"  {'FAIL' if differences else 'ok':5}{name}{''.join(f', {part} differ' for part in differences)}")
            if "rows" in differences:
                print(f"        {found.rows} rows instead of {expected.rows}")

    def promote(self, **properties):
        """Gives properties columns of their own, of the same names, and waits until the archiver fills them."""
        self.declared |= {name: {"type": kind, "x-column": name} for name, kind in properties.items()}
        schema = Path(self.options.work, "schema.json")
        schema.write_text(json.dumps({"type": "object", "properties": self.declared}))
        for event_type in TYPES:
            # No producer sends other values; the properties are new only to the schema.
            command = [self.options.tidemill, "schemas", "register", "--yes", "--force", self.project, event_type, str(schema)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        def there():
            self.sender.send_bare()
            self.archived()
            return {field.name for field in self.table().schema().fields} >= set(properties)

        self.until(f"the table has the columns {list(properties)}", there)
        # What was begun without them is through now.
        self.sender.send_bare()
        self.archived()
        self.sender.promoted |= {name: name for name in properties}
        self.promoted += properties

    def add_columns(self, **columns):
        """Adds columns, as another engine may at any time. Our archiver knows nothing of them: they are null."""
        while True:
            try:
                with self.table().update_schema() as update:
                    for name, kind in columns.items():
                        update.add_column(name, kind)
                break
            except CommitFailedException:  # the archiver was faster
                continue
        self.promoted += columns

    def until(self, what: str, holds):
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                sys.exit(f"not within {PATIENCE} s: {what}; the logs are in {self.options.work}")
            time.sleep(0.05)

    def stop(self):
        for process in (self.archiver, self.query):
            process.kill()
            process.wait()
        self.spark.session.stop()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def act_1(play: Play, rows: int):
    for _ in range(4):
        play.send(rows // 4)
        play.archived()
    play.compare("archived")


def act_2(play: Play, rows: int):
    play.promote(page="string")
    play.send(rows)
    play.archived()
    play.compare("a column added")


def act_3(play: Play, rows: int):
    """Spark rewrites files while new ones come, and is beside them when they are committed."""
    stop = threading.Event()

    def keep_sending():
        while not stop.is_set():
            play.send(rows // 20)
            time.sleep(0.2)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    rewritten = play.spark.call("rewrite_data_files", ", options => map('min-input-files', '2', 'partial-progress.enabled', 'true')")
    stop.set()
    sender.join()
    play.archived()
    if not rewritten.get("rewritten_data_files_count"):
        sys.exit(f"Spark has rewritten nothing: {rewritten}")
    play.compare(f"compacted in the middle ({rewritten['rewritten_data_files_count']} files to {rewritten['added_data_files_count']})")


def act_4(play: Play, rows: int):
    play.promote(price="integer", paid="boolean")
    play.add_columns(note=StringType())
    play.send(rows)
    play.archived()
    play.compare("three more columns, one of them not ours")


def act_5(play: Play, rows: int):
    """The archiver dies; meanwhile Spark tidies up all that it can. The table's properties say where to go on."""
    play.archiver.send_signal(signal.SIGKILL)
    play.archiver.wait()
    play.send(rows)
    play.spark.call("rewrite_data_files", ", options => map('rewrite-all', 'true')")
    play.spark.call("rewrite_manifests")
    play.spark.call("expire_snapshots", ", older_than => TIMESTAMP '2100-01-01 00:00:00', retain_last => 1")
    play.archiver = play.start("archiver")
    play.archived()
    play.compare("rewritten as a whole, snapshots expired, an archiver started anew")


def main():
    arguments = argparse.ArgumentParser()
    for name in ("work", "tidemill", "project", "key", "jars"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--rows", type=int, default=5_000)
    options = arguments.parse_args()
    began, play = time.monotonic(), Play(options)
    try:
        for act in (act_1, act_2, act_3, act_4, act_5):
            act(play, options.rows)
    finally:
        play.stop()
    print(json.dumps({"checks": play.checks, "failed": play.failed, "seconds": round(time.monotonic() - began)}))
    sys.exit(bool(play.failed))


if __name__ == "__main__":
    main()
