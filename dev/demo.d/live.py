"""Live traffic by `tidemill loadgen`, and what Redis must hold because of it."""

import json
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import redis

from stack import Stack
from terminal import Bar, DemoError
from truth import SECONDS, Total, Window

RATE = 200
USERS = 300


class Loadgen:
    """A running `tidemill loadgen`. It has a process group of its own, so that Ctrl-C reaches only us and
    we stop it in order."""

    def __init__(self, tidemill: str, stack: Stack, seconds: int, seed: int, journal: Path | None = None) -> None:
        command = [
            tidemill, "loadgen", "--url", stack.ingest, "--key", stack.write_key, "--rate", str(RATE),
            "--users", str(USERS), "--duration", f"{seconds}s", "--seed", str(seed), "--output", "json",
        ]  # fmt: skip
        if journal:
            command += ["--journal", str(journal)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def follow(self, seconds: int) -> dict[str, Any]:
        """Waits for its end with a progress bar; returns its summary."""
        bar = Bar("live traffic", seconds, "seconds")
        began = time.monotonic()
        while self.process.poll() is None:
            passed = int(time.monotonic() - began)
            if passed > 2 * seconds + 60:
                self.stop()
                raise DemoError("tidemill loadgen did not end; see the log of ingest")
            bar.update(passed)
            time.sleep(0.2)
        bar.finish(seconds)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        output, errors = self.process.communicate()
        try:
            return json.loads(output.strip().splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise DemoError(f"tidemill loadgen ended with {self.process.returncode}: {errors[-800:]}") from error

    def stop(self) -> None:
        """SIGTERM, so that it waits for what is in flight; SIGKILL if it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Redis:
    """The project's hot copies."""

    def __init__(self, stack: Stack) -> None:
        self.project = stack.project
        self.client = redis.Redis.from_url(stack.redis, decode_responses=True)

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Live sessions by session id, their fields as `truth.sessions` has them."""
        prefix = f"analytics:session:{self.project}:"
        return {key.removeprefix(prefix): typed(fields) for key, fields in self._hashes(prefix).items()}

    def windows(self, granularity: str, metrics: set[str]) -> dict[Window, Total]:
        """The windows of these metrics; others than those of events have other values."""
        prefix = f"metric:{self.project}:"
        parts = [(key, key.removeprefix(prefix).rsplit(":", 2)) for key in self._keys(prefix)]
        keys = [key for key, (metric, length, _) in parts if length == granularity and metric in metrics]
        found: dict[Window, Total] = {}
        for key, value in zip(keys, self.client.mget(keys) if keys else []):
            if value is None:
                continue  # it has expired since
            metric, _, start = key.removeprefix(prefix).rsplit(":", 2)
            hot = json.loads(value)
            found[Window(metric, int(start))] = Total(hot["count"], hot["unique_users"])
        return found

    def users(self) -> int:
        return self.client.scard(f"analytics:seen_users:{self.project}")

    def _keys(self, prefix: str) -> list[str]:
        return list(self.client.scan_iter(match=f"{prefix}*", count=1_000))

    def _hashes(self, prefix: str) -> dict[str, dict[str, str]]:
        keys = self._keys(prefix)
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return {key: fields for key, fields in zip(keys, pipeline.execute()) if fields}


def typed(fields: dict[str, Any]) -> dict[str, Any]:
    """A session's fields out of Redis, or out of a JSON answer, in the types of `truth.sessions`."""
    return {
        "firstEventAt": micros(fields.get("firstEventAt")),
        "lastEventAt": micros(fields.get("lastEventAt")),
        "totalEvents": int(fields.get("totalEvents", -1)),
        "pageViews": int(fields.get("pageViews", -1)),
        "hasConversion": str(fields.get("hasConversion")).lower() in ("true", "1"),
        "isNew": str(fields.get("isNew")).lower() in ("true", "1"),
        "userId": fields.get("userId") or None,
        "currentPage": fields.get("currentPage") or None,
    }


def micros(timestamp: str | None) -> int | None:
    """RFC 3339 to microseconds since 1970, in whole numbers: floats would round them."""
    if timestamp is None:
        return None
    moment = datetime.fromisoformat(timestamp)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def latest(sessions: dict[tuple[str, int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last session of each session id: the one that Redis holds while it is live."""
    return {session_id: fields | {"firstEventAt": first} for (session_id, first), fields in sorted(sessions.items())}


def hot(windows: dict[Window, Total], granularity: str, now: float) -> dict[Window, Total]:
    """Those windows that Redis still holds: 1m for an hour, 1h for two, 1d for two days."""
    kept = {"1m": 3_600, "1h": 2 * 3_600, "1d": 2 * 86_400}[granularity]
    assert granularity in SECONDS
    return {window: total for window, total in windows.items() if window.start + kept > now}
