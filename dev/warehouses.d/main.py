"""One archive, read by our own SQL and by each engine behind the same endpoint: the same answers, the same limits, and no way
to another project's rows."""

import argparse
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from datetime import datetime
from pathlib import Path

import pyarrow.ipc
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import StringType

from engines import PASSWORD, ClickHouse, Trino, until
from service import Service

sys.path.append(str(Path(__file__).parent.parent / "readers.d"))
from truth import COLUMNS, Sender, summary_of  # noqa: E402

MAX_ROWS = 4_000
TIMEOUT_S = 8
# Goes on for longer than anybody waits.
ENDLESS = "SELECT count(*) AS n FROM events a, events b, events c WHERE length(concat(a.event_id, b.event_id, c.event_id)) = 7"


class Play:
    def __init__(self, options):
        self.options, self.work, self.checks, self.failed = options, Path(options.work), 0, 0
        self.project, self.other = options.projects
        self.key, self.other_key = options.keys
        self.catalog = SqlCatalog("tidemill", uri=os.environ["DATABASE_URL"].replace("postgres://", "postgresql+psycopg2://", 1),
                                  warehouse=os.environ["WAREHOUSE_URL"])
        settings = {"TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS": "500", "TIDEMILL_ARCHIVER__SEEN_DIR": f"{options.work}/seen"}
        self.archiver = Service(options, "archiver", "archiver", **settings)
        self.ours = Service(options, "query", "query")
        self.senders = {project: Sender(os.environ["KAFKA_BROKERS"], os.environ["SCHEMA_REGISTRY_URL"], f"events.{project}", seed)
                        for seed, project in enumerate(options.projects, 1)}

    def table(self, project: str):
        return self.catalog.load_table(("tidemill", project, "events"))

    def send(self, project: str, count: int):
        """Waits until all of it is archived, too."""
        sender = self.senders[project]
        sender.send(count)
        ends = {}
        for row in sender.rows:
            ends[row["kafka_partition"]] = max(row["kafka_offset"] + 1, ends.get(row["kafka_partition"], 0))

        def passed():
            try:
                properties = self.table(project).properties
            except Exception:  # not there yet
                return False
            names = {f"kafka.offsets.events.{project}.{partition}": end for partition, end in ends.items()}
            return all(name in properties and json.loads(properties[name])["next"] >= end for name, end in names.items())

        until("the archive has passed the log", passed)

    def setup(self, engine) -> str:
        """What an operator would be shown."""
        settings = self.settings(engine) | {"DATABASE_URL": os.environ["DATABASE_URL"]}
        command = [self.options.tidemill, "archive", "warehouse-setup", "--output", "json"]
        return subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, text=True).stdout

    def settings(self, engine) -> dict[str, str]:
        secret = self.work / "password"
        secret.write_text(PASSWORD + "\n")
        return {
            "TIDEMILL_QUERY__WAREHOUSE": engine.word, "TIDEMILL_QUERY__WAREHOUSE_URL": engine.url,
            "QUERY_WAREHOUSE_PASSWORD_FILE": str(secret), "TIDEMILL_QUERY__SQL_MAX_ROWS": str(MAX_ROWS),
            "TIDEMILL_QUERY__SQL_TIMEOUT_S": str(TIMEOUT_S), **engine.settings,
        }

    def check(self, what: str, holds, found=""):
        self.checks += 1
        self.failed += not holds
        print(f"  {'ok' if holds else 'FAIL':5}{what}{'' if holds else f': {str(found)[:600]}'}", flush=True)

    def same(self, what: str, found, expected):
        self.check(what, found == expected, f"{found} instead of {expected}")


def expected_rows(play: Play, engine, theirs: Service):
    """Answers that our own engine gives as well, and all rows as they were sent."""
    by_type = f"SELECT event_type, {engine.count} AS n, count(DISTINCT user_id) AS u, min(occurred_at) AS first FROM events GROUP BY 1 ORDER BY 1"
    ours = by_type.replace(engine.count, "count(*)")
    play.same("types", theirs.rows(play.key, by_type), play.ours.rows(play.key, ours))
    days = f"SELECT {engine.day} AS day, sum({engine.price}) AS cents FROM events GROUP BY {engine.day} ORDER BY 1"
    ours = "to_char(occurred_at, '%Y-%m-%d')"
    ours = f"SELECT {ours} AS day, sum(json_get_int(properties, 'price')) AS cents FROM events GROUP BY {ours} ORDER BY 1"
    play.same("revenue by day", theirs.rows(play.key, days), play.ours.rows(play.key, ours))
    rows = []
    for kind in {row["event_type"] for row in play.senders[play.project].rows}:
        rows += theirs.rows(play.key, f"SELECT {', '.join(COLUMNS)} FROM events WHERE event_type = '{kind}'")
    for row in rows:
        for name in (name for name, is_time in COLUMNS.items() if is_time and row[name] is not None):
            moment = datetime.fromisoformat(row[name].replace("Z", "+00:00"))
            row[name] = int(moment.timestamp()) * 1_000_000 + moment.microsecond
    sent = summary_of(play.senders[play.project].rows, [])
    play.same("every row as it was sent", summary_of(rows, []), sent)
    for sql, answer in engine.odd.items():
        status, found = theirs.ask(play.key, sql)
        play.check(f"its dialect: {sql[:60]}…", status == 200 and answer in (None, found.get("rows")), found)


def formats(play: Play, theirs: Service):
    sql = "SELECT eventType, kafka_offset + 0.5e0 AS x, occurred_at FROM events ORDER BY event_id LIMIT 5"
    rows = theirs.rows(play.key, sql)
    play.same("JSON names", list(rows[0]), ["eventType", "x", "occurred_at"])
    _, headers, body = theirs.raw(play.key, sql, "application/x-ndjson")
    play.same("NDJSON", [json.loads(line) for line in body.splitlines()], rows)
    _, _, body = theirs.raw(play.key, sql, "text/csv")
    play.same("CSV", [row["eventType"] for row in csv.DictReader(io.StringIO(body.decode()))], [row["eventType"] for row in rows])
    _, _, body = theirs.raw(play.key, sql, "application/vnd.apache.arrow.stream")
    table = pyarrow.ipc.open_stream(body).read_all()
    types = [str(field.type) for field in table.schema]
    play.same("Arrow", (table["eventType"].to_pylist(), types),
              ([row["eventType"] for row in rows], ["string", "double", "timestamp[us, tz=+00:00]"]))
    return headers


def limits(play: Play, engine, theirs: Service):
    status, answer = theirs.ask(play.key, "SELECT event_id FROM events")
    play.same("rows beyond the limit are cut off", (status, len(answer["rows"]), answer["truncated"]), (200, MAX_ROWS, True))
    began = time.monotonic()
    status, answer = theirs.ask(play.key, ENDLESS)
    took = time.monotonic() - began
    play.check("a query that takes too long is ended", status == 422 and took < TIMEOUT_S + 3, (status, answer, took))
    if isinstance(engine, ClickHouse):
        return  # the shell around it knows no cancelling
    until("Trino runs nothing any more", lambda: not engine.running())
    query = urllib.parse.urlencode({"sql": ENDLESS})
    with socket.create_connection(("127.0.0.1", theirs.port)) as caller:
        head = f"GET /v1/query?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {play.key}\r\n\r\n"
        caller.sendall(head.encode())
        until("Trino runs the query", engine.running)
        began = time.monotonic()
    until("Trino runs nothing any more", lambda: not engine.running())
    play.check("a caller that hangs up ends the query", time.monotonic() - began < TIMEOUT_S / 2)


def refusals(play: Play, engine, theirs: Service):
    for sql in ["DROP TABLE events", f"SELECT * FROM events, {engine.table_of(play.other)}", "SELECT nothing FROM events",
                "SELECT * FROM events, sessions", "SELECT current_user FROM events", "SELECT sleep(1) FROM events"]:
        status, problem = theirs.ask(play.key, sql)
        play.check(f"refused: {sql}", status == 400 and problem["type"].endswith(":bad-sql"), (status, problem))
    play.same("sessions are answered here", theirs.rows(play.key, "SELECT count(*) AS n FROM sessions"), [{"n": 0}])


def tenants(play: Play, engine, theirs: Service):
    """The second line: whatever our service sent, the engine gives a project its own rows only."""
    count = f"SELECT {engine.count} AS n FROM events"
    for project, key in zip(play.options.projects, play.options.keys):
        play.same(f"{project} sees its own", theirs.rows(key, count), [{"n": len(play.senders[project].rows)}])
    for sql in [f"SELECT * FROM {engine.table_of(play.other)}", "DROP TABLE events", "DELETE FROM events WHERE true",
                "INSERT INTO events SELECT * FROM events"]:
        play.check(f"the engine refuses: {sql}", *refused(engine, play.project, sql))
    strangers = {
        "trino": ["SELECT * FROM system.runtime.queries", 'SELECT * FROM "events$files"', "SET SESSION query_priority = 9"],
        "clickhouse": [f"SELECT * FROM icebergLocal('{urllib.parse.urlsplit(play.table(play.other).location()).path}')",
                       f"SELECT 1 IN ({engine.table_of(play.other)})", "SELECT * FROM file('/etc/passwd', 'LineAsString')",
                       "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')", "SET readonly = 0", "CREATE TABLE t (a int) ENGINE = Memory"],
    }
    for sql in strangers[engine.word]:
        play.check(f"the engine refuses: {sql[:80]}", *refused(engine, play.project, sql))
    if isinstance(engine, Trino):
        def denied(user, as_user):
            try:
                return False, engine.direct(user, f"SELECT count(*) FROM {engine.table_of(play.project)}", as_user)
            except PermissionError as error:
                return True, error
        play.check("our own user reads nothing", *denied("tidemill", "tidemill"))
        play.check("nobody else may become a project", *denied("admin", f"tidemill_{play.project}"))
    else:
        try:
            play.check("without a role there is nothing", False, engine.direct(f"SELECT count() FROM {engine.table_of(play.project)}", play.project, role=""))
        except PermissionError:
            play.check("without a role there is nothing", True)


def refused(engine, project: str, sql: str):
    try:
        return False, engine.as_tenant(project, sql)
    except PermissionError as error:
        return any(word in str(error) for word in ("denied", "DENIED", "ACCESS", "READONLY", "Not enough privileges")), error


def later(play: Play, engine, theirs: Service):
    """A column is added, more is archived, and somebody left a metadata file that was never committed."""
    count = f"SELECT {engine.count} AS n FROM events"
    until_added(play)
    play.send(play.project, 300)  # columns are a snapshot's own
    n = len(play.senders[play.project].rows)
    until("the new rows are seen", lambda: theirs.rows(play.key, count) == [{"n": n}])
    play.same("a column that was added later", theirs.rows(play.key, "SELECT note FROM events LIMIT 1"), [{"note": None}])
    table = play.table(play.project)
    place = Path(urllib.parse.urlsplit(table.metadata_location).path)
    metadata = json.loads(place.read_text())
    # As a commit leaves it that lost against another one: of the same base, with a number that is the newest.
    metadata["snapshots"] = [one for one in metadata["snapshots"] if one["snapshot-id"] != metadata["current-snapshot-id"]]
    last = max(metadata["snapshots"], key=lambda one: one["sequence-number"])
    metadata |= {"current-snapshot-id": last["snapshot-id"], "refs": {"main": {"snapshot-id": last["snapshot-id"], "type": "branch"}}}
    metadata["snapshot-log"] = [one for one in metadata["snapshot-log"] if one["snapshot-id"] in {s["snapshot-id"] for s in metadata["snapshots"]}]
    number = int(place.name.split("-")[0]) + 1
    orphan = place.with_name(f"{number:05}-00000000-0000-4000-8000-000000000000.metadata.json")
    orphan.write_text(json.dumps(metadata))
    status, answer = theirs.ask(play.key, count)
    fine = answer.get("rows") == [{"n": n}] or (status == 503 and isinstance(engine, ClickHouse))
    play.check("a file that was not committed gives no wrong answer", fine, (status, answer))
    if isinstance(engine, ClickHouse):
        unpinned = engine.as_tenant(play.project, count)
        play.check("(without the snapshot's id it would)", unpinned != [[n]] and unpinned != [[str(n)]], unpinned)
    orphan.unlink()


def until_added(play: Play):
    def add():
        try:
            with play.table(play.project).update_schema() as update:
                update.add_column("note", StringType())
            return True
        except Exception as error:  # the archiver was faster, or it is there
            return "note" in {field.name for field in play.table(play.project).schema().fields} or print(error)

    until("a column is added", add)


def act(play: Play, engine):
    print(f"{engine.name} {engine.version}", flush=True)
    theirs = Service(play.options, "query", f"query-{engine.word}", **play.settings(engine))
    try:
        expected_rows(play, engine, theirs)
        headers = formats(play, theirs)
        snapshot = headers["Tidemill-Snapshot"]
        play.same("headers", (headers["Tidemill-Warehouse"], headers["Tidemill-Tail"], snapshot is not None),
                  (engine.word, "off", isinstance(engine, ClickHouse)))
        limits(play, engine, theirs)
        refusals(play, engine, theirs)
        tenants(play, engine, theirs)
        later(play, engine, theirs)
    finally:
        theirs.stop()


def main():
    arguments = argparse.ArgumentParser()
    for name in ("work", "tidemill", "chdb", "trino", "java"):
        arguments.add_argument(f"--{name}", required=True)
    for name in ("projects", "keys"):
        arguments.add_argument(f"--{name}", nargs=2, required=True)
    arguments.add_argument("--rows", type=int, default=5_000)
    options = arguments.parse_args()
    began, play, versions = time.monotonic(), Play(options), {}
    started = [play.archiver, play.ours]
    try:
        play.send(play.project, options.rows)
        play.send(play.other, options.rows // 5)
        engines = [lambda: ClickHouse(play.work, options.chdb, play.setup)]
        if options.java:
            engines.append(lambda: Trino(play.work, Path(options.trino), options.java, play.setup, os.environ["DATABASE_URL"]))
        for start in engines:
            engine = start()
            versions[engine.word] = engine.version
            try:
                act(play, engine)
            finally:
                engine.process.kill()
                engine.process.wait()
    finally:
        if kept := os.environ.get("WAREHOUSES_LOGS"):
            shutil.copytree(play.work, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data", "postgres", "kafka", "redis", "registry", "seen"))
        for service in started:
            service.stop()
    result = {"checks": play.checks, "failed": play.failed, "trino": versions.get("trino", "left out"),
              "clickhouse": f"{versions['clickhouse']}, embedded", "seconds": round(time.monotonic() - began)}
    print(json.dumps(result))
    sys.exit(bool(play.failed))


if __name__ == "__main__":
    main()
