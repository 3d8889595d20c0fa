"""Engines that read the archive. Each gives a `Summary` computed by itself, with its own functions where it has some."""

import contextlib
import json
import os
import urllib.parse
import urllib.request
from datetime import datetime

import duckdb
from pyiceberg.catalog.sql import SqlCatalog
from pyspark.sql import SparkSession

from truth import COLUMNS, NULL, Summary, summary_of


def load(database: str, warehouse: str, project: str):
    """The table as PyIceberg knows it now."""
    uri = database.replace("postgres://", "postgresql+psycopg2://", 1)
    return SqlCatalog("tidemill", uri=uri, warehouse=warehouse).load_table(("tidemill", project, "events"))


class PyIceberg:
    """Rows as Arrow; the sums are Python's."""

    def __init__(self, table):
        self.table = table

    def summary(self, promoted: list[str]) -> Summary:
        table = self.table().scan().to_arrow()
        times = [name for name, is_time in COLUMNS.items() if is_time]
        for name in times:
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast("int64"))
        return summary_of(table.to_pylist(), promoted)


class DuckDb:
    """SQL on what PyIceberg reads."""

    def __init__(self, table):
        self.table = table

    def summary(self, promoted: list[str]) -> Summary:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("events", self.table().scan().to_arrow())
        digest = f"('0x' || substr(md5({row_text('epoch_us({})', 'VARCHAR', promoted)}), 1, 12))::BIGINT"
        rows, checksum = connection.execute(f"SELECT count(*), sum({digest}) FROM events").fetchone()
        days = connection.execute(
            "SELECT strftime(occurred_at, '%Y-%m-%d'), event_type, count(*),"
            " coalesce(sum((properties->>'price')::BIGINT), 0) FROM events GROUP BY 1, 2"
        )
        return Summary(rows, {(day, kind): (count, int(cents)) for day, kind, count, cents in days.fetchall()}, int(checksum))


class Spark:
    """Spark SQL, by the same catalog; it also rewrites the table."""

    def __init__(self, database: str, warehouse: str, project: str, jars: str, work: str):
        settings = {
            "spark.jars": jars,
            "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
            "spark.sql.catalog.tidemill": "org.apache.iceberg.spark.SparkCatalog",
            "spark.sql.catalog.tidemill.type": "jdbc",
            "spark.sql.catalog.tidemill.uri": "jdbc:postgresql://" + database.split("@")[-1],
            "spark.sql.catalog.tidemill.jdbc.user": urllib.parse.urlsplit(database).username,
            "spark.sql.catalog.tidemill.jdbc.schema-version": "V1",
            "spark.sql.catalog.tidemill.warehouse": warehouse,
            # Others write: nothing of the table is kept between queries.
            "spark.sql.catalog.tidemill.cache-enabled": "false",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.shuffle.partitions": "2",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.memory": "1g",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.local.dir": f"{work}/spark",
            "spark.sql.warehouse.dir": f"{work}/spark-warehouse",
        }
        builder = SparkSession.builder.master("local[2]").appName("tidemill-readers")
        for name, value in settings.items():
            builder = builder.config(name, value)
        with stderr_to(f"{work}/spark.log"):  # its Java process keeps it
            self.session = builder.getOrCreate()
        self.session.sparkContext.setLogLevel("ERROR")
        # The catalog's name is the namespace's first level, too.
        self.name = f"tidemill.tidemill.`{project}`.events"

    def summary(self, promoted: list[str]) -> Summary:
        digest = f"cast(conv(substr(md5({row_text('unix_micros({})', 'STRING', promoted)}), 1, 12), 16, 10) AS DECIMAL(20))"
        rows, checksum = self.session.sql(f"SELECT count(*), sum({digest}) FROM {self.name}").first()
        days = self.session.sql(
            "SELECT date_format(occurred_at, 'yyyy-MM-dd'), event_type, count(*),"
            f" coalesce(sum(cast(get_json_object(properties, '$.price') AS BIGINT)), 0) FROM {self.name} GROUP BY 1, 2"
        )
        return Summary(rows, {(day, kind): (count, cents) for day, kind, count, cents in days.collect()}, int(checksum))

    def call(self, procedure: str, arguments: str = "") -> dict:
        """Runs one of Iceberg's procedures."""
        row = self.session.sql(f"CALL tidemill.system.{procedure}(table => '{self.name}'{arguments})").first()
        return row.asDict() if row else {}


class Tidemill:
    """Our own SQL: the rows over HTTP; the sums are Python's."""

    def __init__(self, url: str, key: str):
        self.url, self.key = url, key

    def summary(self, promoted: list[str]) -> Summary:
        rows = [row for kind in self.ask("SELECT DISTINCT event_type FROM events") for row in self.of_type(kind["event_type"], promoted)]
        return summary_of(rows, promoted)

    def of_type(self, event_type: str, promoted: list[str]) -> list[dict]:
        """An answer has a limited size."""
        columns = ", ".join([*COLUMNS, *promoted])
        rows = self.ask(f"SELECT {columns} FROM events WHERE event_type = '{event_type}'")
        for row in rows:
            for name in (name for name, is_time in COLUMNS.items() if is_time and row[name] is not None):
                time = datetime.fromisoformat(row[name].replace("Z", "+00:00"))
                row[name] = int(time.timestamp()) * 1_000_000 + time.microsecond
        return rows

    def snapshot(self) -> int:
        """The table's snapshot that is asked now: a new one is looked for every 2 s."""
        with self.open("SELECT 1 FROM events LIMIT 1") as answer:
            return int(answer.headers["Tidemill-Snapshot"].split(".")[0])

    def ask(self, sql: str) -> list[dict]:
        answer = json.load(self.open(sql))
        if answer.get("truncated"):
            raise SystemExit(f"the answer to {sql} was cut off; send fewer events")
        return answer["rows"]

    def open(self, sql: str):
        url = f"{self.url}/v1/query?" + urllib.parse.urlencode({"sql": sql})
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.key}"})
        return urllib.request.urlopen(request, timeout=60)


@contextlib.contextmanager
def stderr_to(path: str):
    """What is started meanwhile writes its errors to a file."""
    ours = os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def row_text(micros: str, text: str, promoted: list[str]) -> str:
    """SQL for a row's text: what `truth.summary_of` makes of it."""
    value = {name: micros.format(name) if is_time else name for name, is_time in COLUMNS.items()}
    value |= {name: name for name in promoted}
    null = NULL.replace("\\", "\\\\") if text == "STRING" else NULL  # Spark's texts know escapes
    parts = [f"coalesce(CAST({sql} AS {text}), '{null}')" for sql in value.values()]
    return f"concat_ws('|', {', '.join(parts)})"
