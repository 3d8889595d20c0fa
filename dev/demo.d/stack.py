"""The running system: its addresses, as `dev/up` prints them, and plain readers for each part of it."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from terminal import Bar, DemoError

POLL_SECONDS = 0.25


@dataclass
class Stack:
    """Where everything is. The keys belong to a project that is new in each run, so that a run on data
    that was kept counts only its own events."""

    ingest: str
    query: str
    project: str
    write_key: str
    read_key: str
    kafka: str
    redis: str
    postgres: str
    registry: str

    @classmethod
    def load(cls, path: Path) -> "Stack":
        described = json.loads(path.read_text())
        return cls(**{name: described[name] for name in cls.__dataclass_fields__})

    @property
    def topic(self) -> str:
        return f"events.{self.project}"

    def database(self) -> Any:
        connection = psycopg2.connect(self.postgres)
        connection.set_session(readonly=True, autocommit=True)
        return connection

    def get(self, path: str, **parameters: str) -> Any:
        """An answer of the query service."""
        url = f"{self.query}{path}" + ("?" + urllib.parse.urlencode(parameters) if parameters else "")
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.read_key}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")[:500]
            raise DemoError(f"GET {path} of the query service answered {error.code}: {answer}") from error
        except OSError as error:
            raise DemoError(f"GET {path} of the query service: {error}; see its log") from error

    def sql(self, text: str) -> list[dict[str, Any]]:
        return self.get("/v1/query", sql=text)["rows"]


def wait_for(label: str, total: int, unit: str, reached: Callable[[], int], patience: float) -> None:
    """Polls how far a view is until it has reached the total, or has stood still for `patience` seconds: what is
    missing then shows in the comparison."""
    bar = Bar(label, total, unit)
    done, moved = reached(), time.monotonic()
    while done < total and time.monotonic() - moved < patience:
        bar.update(done)
        time.sleep(POLL_SECONDS)
        before, done = done, reached()
        if done != before:
            moved = time.monotonic()
    bar.finish(done)
