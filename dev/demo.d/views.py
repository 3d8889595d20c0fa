"""What Postgres and the archive hold, read past the pipeline: by psycopg2, PyIceberg and DuckDB."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
from pyiceberg.table import StaticTable

from stack import Stack
from truth import Window


class Postgres:
    """The project's rows of the live generation."""

    def __init__(self, stack: Stack) -> None:
        self.project, self.topic = stack.project, stack.topic
        self.connection = stack.database()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()

    def passed(self, column: str) -> int:
        """How many offsets of the topic the stream has counted (`next_offset`) or also projected into
        Redis (`projected_offset`)."""
        assert column in ("next_offset", "projected_offset")
        query = f"SELECT coalesce(sum({column}), 0)::bigint FROM ledger WHERE view = 'stream' AND topic = %s"
        return self.rows(query, self.topic)[0][0]

    def windows(self, granularity: str) -> dict[Window, int]:
        """Counted events by window."""
        rows = self.rows(
            """SELECT CASE dimension_key WHEN '' THEN 'events' ELSE dimension_value END,
                      extract(epoch FROM window_start)::bigint, sum(count)::bigint
               FROM metric_rollups r JOIN projects p ON p.id = r.project AND p.generation = r.generation
               WHERE r.project = %s AND metric_name = 'events' AND dimension_key IN ('', 'event_type')
                 AND granularity = %s
               GROUP BY 1, 2""",
            self.project,
            granularity,
        )
        return {Window(metric, start): count for metric, start, count in rows}

    def sessions(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Sessions as `truth.sessions` has them, but for what is derived on reading (`isNew`)."""
        rows = self.rows(
            """SELECT session_id, (extract(epoch FROM first_event_at) * 1000000)::bigint,
                      (extract(epoch FROM last_event_at) * 1000000)::bigint,
                      total_events, page_views, conversions, user_id, current_page
               FROM sessions s JOIN projects p ON p.id = s.project AND p.generation = s.generation
               WHERE s.project = %s""",
            self.project,
        )
        return {
            (row[0], row[1]): {
                "lastEventAt": row[2], "totalEvents": row[3], "pageViews": row[4],
                "hasConversion": row[5] > 0, "userId": row[6], "currentPage": row[7],
            }
            for row in rows
        }  # fmt: skip

    def dead_letters(self) -> int:
        return self.rows("SELECT count(*) FROM dead_letters WHERE project = %s", self.project)[0][0]

    def table_metadata(self) -> str | None:
        """Where the archive's catalog, which is in the same database, says that the table's metadata is."""
        rows = self.rows(
            "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = %s AND table_name = 'events'",
            f"tidemill.{self.project}",
        )
        return rows[0][0] if rows else None


def archived(postgres: Postgres) -> list[tuple[Any, ...]]:
    """All rows of the archive as (event_id, event_type, user_id, session_id, microseconds): PyIceberg says
    which Parquet files make up the table (there may be others in its folder), DuckDB reads them."""
    metadata = postgres.table_metadata()
    if metadata is None:
        return []
    files = [task.file.file_path for task in StaticTable.from_metadata(metadata).scan().plan_files()]
    return read_parquet(local(path) for path in files)


def read_parquet(paths: Iterable[Path]) -> list[tuple[Any, ...]]:
    files = [str(path) for path in paths]
    if not files:
        return []
    query = """SELECT event_id, event_type, user_id, session_id, epoch_us(occurred_at)
               FROM read_parquet(?, hive_partitioning = false)"""
    return duckdb.execute(query, [files]).fetchall()


def local(location: str) -> Path:
    return Path(unquote(urlsplit(location).path)) if location.startswith("file:") else Path(location)
