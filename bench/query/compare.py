"""Asks Tidemill and DuckDB the same questions over the same files of an archive, and compares answers and times.

DuckDB gets the files' names from the table (PyIceberg) before the clock runs, as Tidemill knows its table; its time is
that of the query with its whole result as an Arrow table, Tidemill's is that of the HTTP request with its JSON. Cold: no
page of the table is in the kernel's cache, and DuckDB's connection is new. Warm: asked once before. Results that Tidemill
caches in Redis are removed before each question. With a tail, Tidemill is asked once more with the events that are not
archived yet, which DuckDB cannot see.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import time
import urllib.parse
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import duckdb
import redis
from pyiceberg.catalog.sql import SqlCatalog


def questions(table, files):
    """Name and SQL, the same text for both; about what the table holds."""
    user = duckdb.execute("SELECT max(user_id) FROM read_parquet(?)", [files[0]]).fetchone()[0]
    latest = max(row["upper_bound"] for row in bounds(table))
    day = latest.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    span = f"occurred_at >= TIMESTAMPTZ '{day:%F}T00:00:00Z' AND occurred_at < TIMESTAMPTZ '{day + timedelta(days=1):%F}T00:00:00Z'"
    return {
        "count_by_type_for_a_day": f"SELECT event_type, count(*) AS events FROM events WHERE {span} GROUP BY event_type",
        "unique_users_per_hour": "SELECT date_trunc('hour', occurred_at) AS hour, count(DISTINCT user_id) AS users"
        " FROM events GROUP BY 1",
        "top_20_paths": "SELECT properties->>'page' AS path, count(*) AS views FROM events WHERE event_type = 'page_view'"
        " OR event_type = 'product_view' GROUP BY 1 ORDER BY views DESC, path LIMIT 20",
        "one_users_events": f"SELECT event_id, event_type, occurred_at, properties FROM events WHERE user_id = '{user}'"
        " ORDER BY occurred_at, event_id",
        "revenue_by_country_and_week": "SELECT properties->>'country' AS country, date_trunc('week', occurred_at) AS week,"
        " sum(CAST(properties->>'revenue' AS DECIMAL(18, 2))) AS revenue FROM events WHERE event_type = 'purchase' GROUP BY 1, 2",
    }


def bounds(table):
    """The times that each file ends at, from the manifests."""
    field = table.schema().find_field("occurred_at").field_id
    for task in table.scan().plan_files():
        micros = int.from_bytes(task.file.upper_bounds[field], "little", signed=True)
        yield {"upper_bound": datetime.fromtimestamp(micros / 1e6, timezone.utc)}


class Tidemill:
    """`GET /v1/query` over one kept-alive connection."""

    def __init__(self, url, key, cache, tail):
        self.address, self.key, self.cache, self.tail = urllib.parse.urlsplit(url).netloc, key, cache, tail
        self.connection = http.client.HTTPConnection(self.address, timeout=300)

    def prepare(self, cold):
        for key in self.cache.scan_iter("query:*"):
            self.cache.delete(key)

    def ask(self, sql):
        path = "/v1/query?" + urllib.parse.urlencode({"sql": sql, "tail": "true" if self.tail else "false"})
        self.connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            sys.exit(f"tidemill answered {response.status} to {sql}: {body[:500].decode()}")
        return body

    @staticmethod
    def rows(body):
        return [list(row.values()) for row in json.loads(body, parse_float=Decimal)["rows"]]


class DuckDb:
    """The same files, with as many threads as the machine has cores."""

    def __init__(self, files):
        self.files, self.connection = files, None

    def prepare(self, cold):
        if cold or self.connection is None:
            self.connection = duckdb.connect()
            self.connection.execute("SET TimeZone = 'UTC'")
            self.connection.execute(f"CREATE VIEW events AS SELECT * FROM read_parquet({self.files!r})")

    def ask(self, sql):
        return self.connection.sql(sql).to_arrow_table()

    @staticmethod
    def rows(table):
        return [list(row.values()) for row in table.to_pylist()]


def forget(folder):
    """Has the kernel drop what it keeps of files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(value):
    """A value in a form that both have."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")
    if isinstance(value, str) and len(value) >= 19 and value[10] == "T" and value.endswith("Z"):
        return plain(datetime.fromisoformat(value.replace("Z", "+00:00")))
    if isinstance(value, (int, float, Decimal)):
        return str(Decimal(str(value)).normalize() + 0)
    try:
        return str(Decimal(value).normalize() + 0)
    except Exception:  # no number
        return value


def same(ours, theirs):
    canonical = [sorted([plain(value) for value in row] for row in rows) for rows in (ours, theirs)]
    return canonical[0] == canonical[1]


def measure(engine, sql, rounds, cold, folder):
    """The median time of a question in milliseconds, and its answer."""
    times, answer = [], None
    if not cold:
        engine.prepare(False)
        engine.ask(sql)
    for _ in range(rounds):
        engine.prepare(cold)
        if cold:
            forget(folder)
        began = time.perf_counter()
        answer = engine.ask(sql)
        times.append((time.perf_counter() - began) * 1_000)
    return statistics.median(times), engine.rows(answer)


def expect(tidemill, rows):
    """Waits until the tail is whole."""
    deadline = time.monotonic() + 60
    while (found := int(tidemill.rows(tidemill.ask("SELECT count(*) FROM events"))[0][0])) != rows:
        if time.monotonic() > deadline:
            sys.exit(f"with the tail there should be {rows} events, and there are {found}")
        tidemill.prepare(False)
        time.sleep(0.2)


def main():
    arguments = argparse.ArgumentParser()
    for name in ("url", "database", "warehouse", "project", "redis"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tail", type=int, default=0)
    arguments.add_argument("--only", action="append", default=[])
    options = arguments.parse_args()
    database = options.database.replace("postgres://", "postgresql+psycopg2://", 1)
    catalog = SqlCatalog("tidemill", uri=database, warehouse=options.warehouse)
    table = catalog.load_table(("tidemill", options.project, "events"))
    files = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    folder = Path(options.warehouse.removeprefix("file://"))
    key, cache = os.environ["TIDEMILL_BENCH_KEY"], redis.Redis.from_url(options.redis)
    tidemill, fresh = Tidemill(options.url, key, cache, False), Tidemill(options.url, key, cache, True)
    if options.tail:
        expect(fresh, sum(task.file.record_count for task in table.scan().plan_files()) + options.tail)
    duck = DuckDb(files)
    print(f"\n{len(files)} files\n{'':30}{'tidemill ms':>14}{'DuckDB ms':>14}{'wanted':>14}")
    measured = []
    for name, sql in questions(table, files).items():
        if options.only and name not in options.only:
            continue
        for heat in ("cold", "warm"):
            ours, our_rows = measure(tidemill, sql, options.rounds, heat == "cold", folder)
            theirs, their_rows = measure(duck, sql, options.rounds, heat == "cold", folder)
            if not same(our_rows, their_rows):
                sys.exit(f"{name}: the answers differ: {our_rows[:3]} … {their_rows[:3]}")
            wanted = 1.6 * theirs + 15
            verdict = "reached" if ours <= wanted else "MISSED"
            print(f"{name + ', ' + heat:30}{ours:14.1f}{theirs:14.1f} ≤ {wanted:8.1f}: {verdict}  {len(our_rows)} rows")
            figures = {"name": f"{name}_{heat}", "tidemill_ms": round(ours, 2), "duckdb_ms": round(theirs, 2)}
            if options.tail and heat == "warm":
                with_tail, _ = measure(fresh, sql, options.rounds, False, folder)
                verdict = "reached" if with_tail <= 2 * theirs + 15 else "MISSED"
                print(f"{'  with the tail':30}{with_tail:14.1f}{'':14} ≤ {2 * theirs + 15:8.1f}: {verdict}")
                figures["tail_ms"] = round(with_tail, 2)
            measured.append(figures)
    print(json.dumps({"queries": measured}))


if __name__ == "__main__":
    main()
