"""Sends events over HTTP as a well-behaved producer does: in batches, and what is told to retry again."""

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from terminal import DemoError

Event = dict[str, Any]
BATCH = 500
CONNECTIONS = 4
PATIENCE_SECONDS = 120
TIMEOUT_SECONDS = 30
BACKOFF_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


@dataclass
class Tally:
    """What became of the events sent."""

    sent: int = 0
    duplicates: int = 0
    accepted: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    retried: int = 0
    first_after: float | None = None  # clock time of the first acceptance


@dataclass
class Answer:
    """The gateway's answer to a batch; no results where the outcome is unknown."""

    results: list[dict[str, Any]] | None
    pause: float | None = None


class Sender:
    """Sends batches over some connections at once and keeps the tally."""

    def __init__(self, url: str, key: str, progress: Callable[[int], None]) -> None:
        address = urllib.parse.urlsplit(url)
        self.host, self.port = address.hostname, address.port
        self.key, self.progress = key, progress
        self.tally = Tally()
        self.lock = threading.Lock()
        self.local = threading.local()

    def send(self, events: list[Event]) -> Tally:
        batches = [events[at : at + BATCH] for at in range(0, len(events), BATCH)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for result in [pool.submit(self._send_batch, batch) for batch in batches]:
                result.result()
        return self.tally

    def _send_batch(self, batch: list[Event]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        pending, in_doubt, attempt = batch, False, 0
        while pending:
            answer = self._post(pending)
            if answer.results is None:
                in_doubt, again = True, pending
            else:
                again = self._settle(pending, answer.results, in_doubt)
            if again:
                self._pause(answer, attempt, deadline, len(again))
            pending, attempt = again, attempt + 1

    def _pause(self, answer: Answer, attempt: int, deadline: float, count: int) -> None:
        if time.monotonic() > deadline:
            raise DemoError(f"{count} events were not taken within {PATIENCE_SECONDS} s; see the log of ingest")
        with self.lock:
            self.tally.retried += count
        backoff = min(BACKOFF_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
        time.sleep(min(answer.pause or backoff, LONGEST_PAUSE_SECONDS))

    def _settle(self, batch: list[Event], results: list[dict[str, Any]], in_doubt: bool) -> list[Event]:
        """Books the events that have their final answer; returns those to be sent again. `in_doubt`: an
        earlier attempt ended without an answer, so `duplicate` may be said of what that one brought in."""
        again: list[Event] = []
        with self.lock:
            tally = self.tally
            for result in sorted(results, key=lambda result: result["index"]):
                event, status = batch[result["index"]], result["status"]
                if status in ("retry", "limited"):
                    again.append(event)
                    continue
                tally.sent += 1
                if status == "accepted" or (
                    status == "duplicate" and in_doubt and event["eventId"] not in tally.accepted
                ):
                    tally.first_after = tally.first_after or time.time()
                    tally.accepted.add(event["eventId"])
                elif status == "duplicate":
                    tally.duplicates += 1
                else:
                    tally.refused.append(f"{event['eventId']}: {status}, {result.get('error')}")
            done = tally.sent
        self.progress(done)
        return again

    def _post(self, batch: list[Event]) -> Answer:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection = self._connection()
        try:
            connection.request("POST", "/v1/events", json.dumps(batch), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return Answer(None)
        pause = response.getheader("Retry-After")
        if response.status == 202:
            return Answer(json.loads(body)["results"], seconds(pause))
        if response.status in (429, 503):
            everything = [{"index": index, "status": "retry"} for index in range(len(batch))]
            return Answer(everything, seconds(pause))
        raise DemoError(f"POST /v1/events answered {response.status}: {body.decode(errors='replace')[:500]}")

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)
        return self.local.connection


def seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None
