"""A small Tidemill client for Python 3.8+, without dependencies: it sends events until each has its verdict or
the tries are used up. README.md beside it says what it promises.

    client = Tidemill("https://events.example", key)
    [verdict] = client.send([{"eventType": "purchase", "properties": {"price": 12.3}}])
"""

import email.utils
import http.client
import json
import time
import urllib.request
import uuid

FINAL = ("accepted", "duplicate", "invalid")
BATCH_EVENTS = 500
BATCH_BYTES = 1_000_000
LONGEST_PAUSE = 60


class Tidemill:
    """`retries` come after the first try; `timeout` is in seconds, of one try. `sleep` and `now` are for tests."""

    def __init__(self, url, key, retries=3, timeout=15, sleep=time.sleep, now=time.time):
        self.url = url.rstrip("/") + "/v1/events"
        self.key, self.retries, self.timeout, self.sleep, self.now = key, retries, timeout, sleep, now
        self.opener = urllib.request.build_opener(_AsTheyAre)

    def send(self, events):
        """Gives a verdict for each event, in order: a dict of event, eventId, status, position, error."""
        parcels = [_Parcel(event) for event in events]
        for batch in _batches(parcels):
            self._deliver(batch)
        return [parcel.verdict for parcel in parcels]

    def _deliver(self, batch):
        for attempt in range(self.retries + 1):
            status, retry_after, body = self._post(batch)
            batch = _settle(batch, status, body)
            pause = max(2 ** min(attempt, 3), _pause_asked_for(retry_after, self.now()))
            if not batch or attempt == self.retries or pause > LONGEST_PAUSE:
                return
            self.sleep(pause)

    def _post(self, batch):
        """Status (0: no answer), Retry-After and body."""
        body = b"[" + b",".join(parcel.text for parcel in batch) + b"]"
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url, body, headers)
        status, retry_after = 0, None
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                text = response.read()
            status, retry_after = response.status, response.headers["Retry-After"]
            return status, retry_after, json.loads(text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return status, retry_after, {"detail": f"no usable answer (status {status}): {error}"}


class _Parcel:
    """An event on its way, and what is known of it."""

    def __init__(self, event):
        if event.get("eventId") is None:
            event = {**event, "eventId": uuid.uuid4().hex}
        # Made once: what is sent again is the same to the byte.
        self.text = json.dumps(event, allow_nan=False).encode()
        self.verdict = {"event": event, "eventId": event["eventId"], "status": "failed", "position": None, "error": None}


class _AsTheyAre(urllib.request.HTTPErrorProcessor):
    """Errors are answers like any other, and redirections are not followed: the key is for one host only."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def _settle(batch, status, body):
    """Writes down the verdicts that there are; gives what is to be sent again."""
    again = status in (0, 408, 429) or status >= 500
    if again or not 200 <= status <= 299:
        for parcel in batch:
            parcel.verdict.update(status="failed" if again else "refused", error=body)
        return batch if again else []
    for parcel in batch:
        parcel.verdict["error"] = {"detail": "the answer has no verdict on it"}
    results = body.get("results") if isinstance(body, dict) else None
    for result in results if isinstance(results, list) else []:
        index = result.get("index") if isinstance(result, dict) else None
        if isinstance(index, int) and 0 <= index < len(batch):
            status = result["status"] if result.get("status") in FINAL else "failed"
            batch[index].verdict.update(status=status, position=result.get("position"), error=result.get("error"))
    return [parcel for parcel in batch if parcel.verdict["status"] == "failed"]


def _pause_asked_for(retry_after, now):
    """In seconds; the header has seconds or a date."""
    try:
        if retry_after and retry_after.isdecimal():
            return int(retry_after)
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - now
    except (TypeError, ValueError):
        return 0


def _batches(parcels):
    batch, size = [], 0
    for parcel in parcels:
        if len(batch) == BATCH_EVENTS or (batch and size + len(parcel.text) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(parcel)
        size += len(parcel.text)
    if batch:
        yield batch
