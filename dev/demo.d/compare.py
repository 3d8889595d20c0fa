"""The comparisons: each takes the same numbers from the truth and from a part of the pipeline."""

import json
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import clickstream
import topics
import truth
import views
from checks import Checks
from live import Redis, hot, latest, typed
from sender import Tally
from stack import Stack
from terminal import say
from truth import Con, Total, Window

SAMPLED_SESSIONS = 50
STORED = ("userId", "lastEventAt", "totalEvents", "pageViews", "hasConversion", "currentPage")

# The same text runs on the archive, through the query service, and on the CSV, in DuckDB.
QUERIES = {
    "what people do": """SELECT event_type, count(*) AS events, count(DISTINCT user_id) AS users
        FROM events GROUP BY event_type ORDER BY event_type""",
    "sessions that buy, by month": """SELECT date_part('month', occurred_at) AS month,
        count(DISTINCT session_id) AS sessions,
        count(DISTINCT CASE WHEN event_type = 'purchase' THEN session_id END) AS buying
        FROM events GROUP BY 1 ORDER BY 1""",
    "carts that nobody bought": """SELECT count(*) AS carts, sum(bought) AS bought, sum(items) AS items FROM (
        SELECT session_id, sum(CASE WHEN event_type = 'add_to_cart' THEN 1 ELSE 0 END) AS items,
        max(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS bought
        FROM events GROUP BY session_id) AS carts WHERE items > 0""",
    "sessions and their page views": """SELECT count(*) AS sessions, sum(page_views) AS page_views,
        max(total_events) AS longest FROM sessions""",
}


def sending(checks: Checks, tally: Tally, sent: int, different: int) -> None:
    checks.number("sent over HTTP", sent, tally.sent)
    checks.number("accepted", different, len(tally.accepted))
    checks.number("answered `duplicate`", sent - different, tally.duplicates)
    for refused in tally.refused[:5]:
        say(f"      {refused}")


def log(checks: Checks, con: Con, stack: Stack) -> int:
    """The topics; returns how many records the project's own has."""
    records = topics.read_events(stack)
    checks.number("records in the log", len(truth.identities(con)), len(records))
    found = {record["eventId"]: log_identity(record) for record in records}
    checks.mapping("different events in the log", truth.identities(con), found)
    processed = Counter(topics.read_keys(stack, f"events.processed.{stack.project}"))
    checks.number("events in the processed topic", len(truth.identities(con)), len(processed))
    checks.number("dead letters", 0, topics.count_records(stack, f"events.dlq.{stack.project}"))
    return len(records)


def log_identity(record: dict[str, Any]) -> tuple[Any, ...]:
    moment: datetime = record["timestamp"]
    micros = int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
    return (record["eventType"], record["userId"], record["sessionId"], micros)


def rollups(checks: Checks, con: Con, postgres: views.Postgres) -> int:
    """Counts in Postgres; returns how many events it has counted."""
    counted = 0
    for granularity, name in (("1d", "day"), ("1h", "hour"), ("1m", "minute")):
        expected = {window: total.count for window, total in truth.windows(con, granularity).items()}
        got = postgres.windows(granularity)
        counted = events_in(got)
        what = f"counted in Postgres by type and {name}"
        checks.mapping(what, expected, got, show=(events_in(expected), counted))
    return counted


def events_in(windows: dict[Window, int]) -> int:
    return sum(count for window, count in windows.items() if window.metric == "events")


def daily_users(checks: Checks, con: Con, stack: Stack) -> None:
    """Counts and different users per day from GET /v1/metrics; the clickstream's are few enough to be exact."""
    expected = truth.windows(con, "1d")
    got: dict[Window, Total] = {}
    for name in sorted({window.metric for window in expected}):
        got |= metric(stack, name, "1d", [window.start for window in expected])
    exact_windows(checks, "/v1/metrics per type and day", expected, got)


def exact_windows(checks: Checks, what: str, expected: dict[Window, Total], got: dict[Window, Total]) -> None:
    def side(windows: dict[Window, Total], value: str) -> dict[Window, int]:
        return {window: getattr(total, value) for window, total in windows.items()}

    def all_of(windows: dict[Window, Total], value: str) -> int:
        return events_in(side(windows, value))

    for value, name in (("count", "events"), ("users", "unique users")):
        show = (all_of(expected, value), all_of(got, value))
        checks.mapping(f"{what}: {name}", side(expected, value), side(got, value), show=show)


def metric(stack: Stack, name: str, granularity: str, starts: list[int]) -> dict[Window, Total]:
    """A metric's windows from the query service; it may or may not list those without events."""
    end = max(starts) + truth.SECONDS[granularity]
    answer = stack.get(
        f"/v1/metrics/{name}", granularity=granularity, startTime=rfc3339(min(starts)), endTime=rfc3339(end)
    )
    return {
        Window(name, int(datetime.fromisoformat(point["timestamp"]).timestamp())): Total(
            point["count"], point["unique_users"]
        )
        for point in answer["data"]
        if point["count"]
    }


def rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def sessions(checks: Checks, con: Con, stack: Stack, postgres: views.Postgres) -> tuple[int, int]:
    """Sessions in Postgres, some of them through the query service; returns how many there are and should be."""
    expected, got = truth.sessions(con), postgres.sessions()
    wanted = {key: {name: session[name] for name in STORED} for key, session in expected.items()}
    checks.mapping("sessions in Postgres", wanted, got)
    page_views = [sum(session["pageViews"] for session in side.values()) for side in (expected, got)]
    checks.number("page views of all sessions", *page_views)
    starts = Counter(first // 1_000_000 // 86_400 * 86_400 for _, first in expected)
    daily = metric(stack, "sessions", "1d", list(starts))
    counts = {window.start: total.count for window, total in daily.items()}
    checks.mapping("sessions per day, /v1/metrics/sessions", starts, counts, show=(len(expected), sum(counts.values())))
    asked = dict(list(latest(expected).items())[:: max(1, len(expected) // SAMPLED_SESSIONS)])
    served(checks, stack, "sessions from /v1/sessions/{id}", asked)
    return len(got), len(expected)


def served(checks: Checks, stack: Stack, what: str, expected: dict[str, dict[str, Any]]) -> None:
    got = {session_id: typed(stack.get(f"/v1/sessions/{session_id}")) for session_id in expected}
    checks.mapping(what, expected, got)


def archive(checks: Checks, con: Con, stack: Stack, postgres: views.Postgres) -> int:
    """The archive's rows, from its Parquet files and by SQL; returns how many there are."""
    rows = views.archived(postgres)
    checks.number("rows in the archive's Parquet files", len(truth.identities(con)), len(rows))
    checks.mapping("different events in them", truth.identities(con), {row[0]: row[1:] for row in rows})
    count = stack.sql("SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM events")[0]
    checks.number("rows in the archive by SQL", len(truth.identities(con)), count["n"])
    return len(rows)


def queries(checks: Checks, con: Con, stack: Stack) -> None:
    con.execute(f"CREATE OR REPLACE VIEW sessions AS SELECT * FROM ({truth.SESSIONS})")
    for name, text in QUERIES.items():
        cursor = con.execute(text)
        columns = [column[0] for column in cursor.description]
        expected = {row: dict(zip(columns, values)) for row, values in enumerate(cursor.fetchall())}
        got = dict(enumerate(stack.sql(text)))
        checks.mapping(f"SQL: {name}", expected, got)


def live_log(checks: Checks, con: Con, stack: Stack) -> None:
    """What loadgen says was taken is in the log as it was sent. The log also tells the names of pages,
    which the journal leaves out."""
    expected = truth.identities(con)
    records = [record for record in topics.read_events(stack) if record["eventId"] in expected]
    checks.number("records in the log", len(expected), len(records))
    checks.mapping("different events in the log", expected, {r["eventId"]: log_identity(r) for r in records})
    truth.name_pages(con, {record["eventId"]: page for record in records if (page := page_name(record))})


def page_name(record: dict[str, Any]) -> str | None:
    return json.loads(record["properties"] or "{}").get("page")


def live_redis(checks: Checks, con: Con, redis: Redis, now: float) -> int:
    """Live sessions and hot windows in Redis; returns how many values differ."""
    wrong = checks.mapping("sessions in Redis", latest(truth.sessions(con)), redis.sessions())
    for granularity in truth.SECONDS:
        windows = truth.windows(con, granularity)
        expected = hot(windows, granularity, now)
        got = redis.windows(granularity, {window.metric for window in windows})
        wrong += hot_windows(checks, f"{granularity} windows in Redis", expected, got)
    users = clickstream.USERS + len({session["userId"] for session in truth.sessions(con).values()})
    return wrong + checks.number("users in Redis, the clickstream's too", users, redis.users())


def hot_windows(checks: Checks, what: str, expected: dict[Window, Total], got: dict[Window, Total]) -> int:
    """Counts are exact; different users are estimated, within 2 %."""
    counts = [{window: total.count for window, total in side.items()} for side in (expected, got)]
    users = [{window: total.users for window, total in side.items()} for side in (expected, got)]
    wrong = checks.mapping(f"{what}: events", *counts, show=(events_in(counts[0]), events_in(counts[1])))
    shown = (events_in(users[0]), events_in(users[1]))
    return wrong + checks.mapping(f"{what}: unique users", *users, show=shown, tolerance=0.02)


def live_served(checks: Checks, con: Con, stack: Stack) -> None:
    """The query service's answers for the live minute."""
    for granularity in truth.SECONDS:
        expected = truth.windows(con, granularity)
        got: dict[Window, Total] = {}
        for name in sorted({window.metric for window in expected}):
            got |= metric(stack, name, granularity, [window.start for window in expected])
        hot_windows(checks, f"{granularity} from /v1/metrics", expected, got)
    asked = dict(list(latest(truth.sessions(con)).items())[:SAMPLED_SESSIONS])
    served(checks, stack, "sessions from /v1/sessions/{id}", asked)


def live_archive(checks: Checks, con: Con, postgres: views.Postgres) -> None:
    expected = truth.identities(con)
    rows = [row for row in views.archived(postgres) if row[0] in expected]
    checks.number("rows in the archive", len(expected), len(rows))
    checks.mapping("different events in them", expected, {row[0]: row[1:] for row in rows})
