"""What schemathesis cannot tell from the document.

NDJSON, which of the headers stand together, that bodies are compressed as they say, and whose Idempotency-Key is whose.
"""

import gzip
import itertools
import zlib

import schemathesis
from schemathesis.core.parameters import ParameterLocation

ATTRIBUTES = {"ce-specversion", "ce-id", "ce-source", "ce-type"}
CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
NUMBERS = itertools.count()


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(ctx, case, kwargs):
    headers, number = case.headers or {}, next(NUMBERS)
    if number % 4 == 0 and case.media_type == "application/json" and ATTRIBUTES <= set(headers):
        headers["ce-id"] += str(number)
    else:
        for name in [name for name in headers if name.startswith("ce-")]:
            del headers[name]
    if number % 2:  # else an event is often a copy of one before
        case.body = renamed(case.body, number)
    if 0 < len(headers.get("Idempotency-Key", "")) < 200:
        headers["Idempotency-Key"] += str(number)
    if headers.get("Content-Encoding") in ("br", "zstd"):  # Python cannot write these by itself
        headers["Content-Encoding"] = "gzip"
    kwargs["auth"] = compress


def renamed(event, number):
    """The same event with an id of its own, where it has a good one."""
    for name in ("eventId", "id") if isinstance(event, dict) else ():
        if isinstance(event.get(name), str) and 0 < len(event[name]) < 100:
            return {**event, name: f"{event[name]}-{number}"}
    return event


def compress(request):
    """Called by requests when all else of the request is made."""
    body, coding = request.body, CODINGS.get(request.headers.get("Content-Encoding"))
    if body and coding:
        request.body = coding(body if isinstance(body, bytes) else body.encode())
    return request


@schemathesis.check
def what_is_no_event_is_not_accepted(ctx, response, case):
    """Of several events each has its verdict, so only those that stand alone can be told from the status."""
    binary = "ce-id" in response.request.headers  # then the body is but an event's data
    alone = response.status_code == 202 and not binary and "results" not in response.json()
    if alone and case.meta and case.meta.is_negative_at(ParameterLocation.BODY):
        raise AssertionError("what is no event was accepted")
