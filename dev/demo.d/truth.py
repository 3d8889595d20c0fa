"""The expected numbers, computed by DuckDB from what was sent. Shares no code with the pipeline.

Every function works on a table `events(event_id, event_type, user_id, session_id, occurred_at, is_page_view,
page)`, be it the clickstream or the journal of live traffic.
"""

from datetime import datetime, timezone
from typing import Any, NamedTuple

import duckdb

SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}
PAGE_VIEWS = "('page', 'page_view', 'pageview', 'screen')"
CONVERSIONS = "('purchase', 'order_completed', 'Order Completed', 'conversion')"
Con = duckdb.DuckDBPyConnection


class Window(NamedTuple):
    """A window of a metric: the events of a type, or all of them (`events`). `start` is epoch seconds."""

    metric: str
    start: int

    def __str__(self) -> str:
        return f"{self.metric} {datetime.fromtimestamp(self.start, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


class Total(NamedTuple):
    count: int
    users: int


def windows(con: Con, granularity: str) -> dict[Window, Total]:
    """Events and different users per window, for all events and for each type."""
    seconds = SECONDS[granularity]
    rows = con.execute(
        f"""SELECT coalesce(event_type, 'events'), epoch_us(occurred_at) // 1000000 // {seconds} * {seconds} AS start,
               count(*), count(DISTINCT user_id)
        FROM events GROUP BY GROUPING SETS ((start), (start, event_type))"""
    ).fetchall()
    return {Window(name, start): Total(count, users) for name, start, count, users in rows}


# A session: neighbours in event time are at most 30 minutes apart. Ties in time are settled by the value.
SESSIONS = f"""
WITH cut AS (
    SELECT *, coalesce(occurred_at - lag(occurred_at) OVER w > INTERVAL 30 MINUTE, false)::INT AS starts
    FROM events WHERE session_id IS NOT NULL WINDOW w AS (PARTITION BY session_id ORDER BY occurred_at)
), numbered AS (
    SELECT *, sum(starts) OVER (PARTITION BY session_id ORDER BY occurred_at) AS number FROM cut
), firsts AS (
    SELECT user_id, min(occurred_at) AS first_seen FROM events GROUP BY user_id
), summed AS (
    SELECT session_id, min(occurred_at) AS first, max(occurred_at) AS last,
           count(*) AS total_events, count(*) FILTER (is_page_view) AS page_views,
           count(*) FILTER (event_type IN {CONVERSIONS}) AS conversions,
           min({{'at': occurred_at, 'value': user_id}}) FILTER (user_id IS NOT NULL).value AS user_id,
           max({{'at': occurred_at, 'value': page}}) FILTER (page IS NOT NULL).value AS page
    FROM numbered GROUP BY session_id, number
)
SELECT session_id, epoch_us(first), epoch_us(last), total_events, page_views, conversions, user_id, page,
       coalesce(first_seen BETWEEN first AND last, false)
FROM summed LEFT JOIN firsts USING (user_id)"""


def sessions(con: Con) -> dict[tuple[str, int], dict[str, Any]]:
    """Sessions by session id and start, under the names that the query service gives to their fields.
    Times are microseconds since 1970."""
    return {
        (row[0], row[1]): {
            "lastEventAt": row[2], "totalEvents": row[3], "pageViews": row[4], "hasConversion": row[5] > 0,
            "userId": row[6], "currentPage": row[7], "isNew": row[8],
        }
        for row in con.execute(SESSIONS).fetchall()
    }  # fmt: skip


def identities(con: Con) -> dict[str, tuple[Any, ...]]:
    """Each event by its id: what every copy of it in any view must say."""
    rows = con.execute("SELECT event_id, event_type, user_id, session_id, epoch_us(occurred_at) FROM events").fetchall()
    return {row[0]: row[1:] for row in rows}


def load_journal(con: Con, journal: str) -> None:
    """Makes the table `events` from what loadgen has noted of each event that was taken. It notes no
    properties, so the names of pages come later: `name_pages`."""
    con.execute(
        f"""CREATE TABLE events AS
        SELECT DISTINCT ON (eventId) eventId AS event_id, eventType AS event_type, userId AS user_id,
               sessionId AS session_id, timestamp::TIMESTAMP AS occurred_at,
               eventType IN {PAGE_VIEWS} AS is_page_view, NULL::VARCHAR AS page
        FROM read_json('{journal}', format = 'newline_delimited', columns = {{'eventId': 'VARCHAR',
             'eventType': 'VARCHAR', 'userId': 'VARCHAR', 'sessionId': 'VARCHAR', 'timestamp': 'VARCHAR',
             'status': 'VARCHAR'}})
        WHERE status IN ('accepted', 'duplicate')"""
    )


def name_pages(con: Con, pages: dict[str, str]) -> None:
    """Notes the pages' names by eventId."""
    query = """UPDATE events SET page = named.page
               FROM (SELECT unnest(?) AS event_id, unnest(?) AS page) AS named
               WHERE events.event_id = named.event_id"""
    con.execute(query, [list(pages.keys()), list(pages.values())])
