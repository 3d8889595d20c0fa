"""What to try while the system runs."""

import sys
import time
from urllib.parse import quote

import duckdb

from compare import rfc3339
from stack import Stack
from terminal import bold, say, step


def print_urls(stack: Stack, live: duckdb.DuckDBPyConnection) -> None:
    """Ready curl lines, with keys and names of this run."""
    session = live.execute("SELECT session_id FROM events ORDER BY occurred_at DESC LIMIT 1").fetchone()[0]
    read = f"curl -sH 'Authorization: Bearer {stack.read_key}'"
    metrics = f"{stack.query}/v1/metrics"
    hour = rfc3339(int(time.time()) // 3_600 * 3_600)
    sql = quote("SELECT event_type, count(*) AS n FROM events GROUP BY 1 ORDER BY n DESC")
    step("Try it: copy a line into another terminal")
    for title, command in (
        ("send an event", f"""curl -s {stack.ingest}/v1/events -H 'Authorization: Bearer {stack.write_key}' \\
      -H 'Content-Type: application/json' -d '{{"eventId":"hello-1","eventType":"hello","userId":"me"}}'"""),
        ("and once more: it is a duplicate", "the same line again"),
        ("events per minute, from Redis", f"{read} '{metrics}/events?granularity=1m&startTime={hour}'"),
        ("purchases per day in 2024, from Postgres",
         f"{read} '{metrics}/purchase?granularity=1d&startTime=2024-01-01T00:00:00Z&endTime=2024-07-01T00:00:00Z'"),
        ("users per day", f"{read} '{metrics}/daily_active_users?granularity=1d&startTime=2024-06-01T00:00:00Z'"),
        ("a live session", f"{read} {stack.query}/v1/sessions/{quote(session, safe='')}"),
        ("a session of 2024", f"{read} {stack.query}/v1/sessions/sess_000001"),
        ("SQL on the archive", f"{read} '{stack.query}/v1/query?sql={sql}'"),
        ("how the services are", f"curl -s {stack.ingest}/health; curl -s {stack.query}/health"),
    ):  # fmt: skip
        say(f"  {bold(title)}\n    {command}")
    step("Live traffic goes on; Ctrl-C ends it")


def show_last_minute(stack: Stack) -> None:
    """One line that is written over and over."""
    start = int(time.time()) // 60 * 60
    data = stack.get("/v1/metrics/events", granularity="1m", startTime=rfc3339(start), endTime=rfc3339(start + 60))
    count, users = next(((point["count"], point["unique_users"]) for point in data["data"]), (0, 0))
    minute = time.strftime("%H:%M UTC", time.gmtime(start))
    sys.stdout.write(f"\r\033[K  {minute}: {count:,} events by {users:,} users so far")
    sys.stdout.flush()
