"""What is sent to the log, and so what every reader has to find: the rows of the archive as the sender knows them."""

import hashlib
import io
import json
import random
import struct
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone

import fastavro
from confluent_kafka import Producer

TYPES = ["page_view", "click", "purchase", "add_to_cart"]
DAY = 86_400_000_000
DAYS = 5
COPIES = 0.03
# Every table's columns, in the order in which they make a row's text; and whether they are times.
COLUMNS = {
    "event_id": False, "event_type": False, "event_action": False, "user_id": False, "session_id": False,
    "occurred_at": True, "received_at": True, "append_time": True, "properties": False, "client_address": False,
    "user_agent": False, "kafka_partition": False, "kafka_offset": False,
}
NULL = "\\N"


@dataclass
class Summary:
    """What is compared: rows, per day and type their number and the sum of their prices in cents, and a checksum over all
    of every row, whatever their order."""

    rows: int
    days: dict[tuple[str, str], tuple[int, int]]
    checksum: int


def digest(text: str) -> int:
    """The first 48 bits of a text's MD5: small enough for every engine to add up."""
    return int(hashlib.md5(text.encode()).hexdigest()[:12], 16)


def text_of(value) -> str:
    if value is None:
        return NULL
    return str(value).lower() if isinstance(value, bool) else str(value)


def summary_of(rows: list[dict], promoted: list[str]) -> Summary:
    """The summary of rows whose times are microseconds since 1970."""
    days, checksum = defaultdict(lambda: (0, 0)), 0
    for row in rows:
        checksum += digest("|".join(text_of(row.get(name)) for name in [*COLUMNS, *promoted]))
        day = datetime.fromtimestamp(row["occurred_at"] // 1_000_000, timezone.utc).strftime("%Y-%m-%d")
        count, cents = days[day, row["event_type"]]
        price = json.loads(row["properties"])["price"] if row["properties"] else 0
        days[day, row["event_type"]] = (count + 1, cents + price)
    return Summary(len(rows), dict(days), checksum)


@dataclass
class Sender:
    """A native producer that remembers what became of what it sent."""

    brokers: str
    registry: str
    topic: str
    seed: int = 1
    rows: list[dict] = field(default_factory=list)
    # What a property's column is called, once it has one.
    promoted: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        latest = json.load(urllib.request.urlopen(f"{self.registry}/subjects/{self.topic}-value/versions/latest", timeout=10))
        self.schema_id, self.schema = latest["id"], fastavro.parse_schema(json.loads(latest["schema"]))
        self.random, self.number = random.Random(self.seed), 0
        self.producer = Producer(
            {"bootstrap.servers": self.brokers, "partitioner": "murmur2_random", "acks": "all", "linger.ms": 5}
        )

    def send(self, count: int):
        """Sends events over some days, some of them again, and waits until they are in the log."""
        sent, first = [], {}
        now = time.time_ns() // 1_000
        for _ in range(count):
            event = self.random.choice(sent) if sent and self.random.random() < COPIES else self.event(now)
            sent.append(event)
            self.producer.produce(self.topic, key=event["eventId"], value=self.encoded(event), on_delivery=self.noted(event, first))
            self.producer.poll(0)
        if self.producer.flush(60):
            raise SystemExit("Kafka does not take what is sent")
        # A copy of an event stands behind it in the same partition, so the lowest offset is the first sight.
        self.rows += first.values()

    def send_bare(self):
        """Sends an event without properties."""
        first, event = {}, self.event(time.time_ns() // 1_000) | {"properties": None}
        self.producer.produce(self.topic, key=event["eventId"], value=self.encoded(event), on_delivery=self.noted(event, first))
        self.producer.flush(60)
        self.rows += first.values()

    def event(self, now: int) -> dict:
        self.number += 1
        event_type, price = self.random.choice(TYPES), self.random.randrange(1, 50_000)
        properties = {"page": f"/p/{self.random.randrange(40)}", "price": price, "paid": price % 2 == 0}
        named = self.random.random() < 0.9
        return {
            "eventId": f"e-{self.seed}-{self.number}", "eventType": event_type,
            "timestamp": now - self.random.randrange(DAYS * DAY), "receivedAt": now if named else None,
            "userId": f"u-{price % 200}" if named else None, "sessionId": f"s-{price % 900}" if named else None,
            "eventAction": None, "clientAddress": None, "userAgent": "Mozilla/5.0 (ünïcode; | and \\)",
            "properties": json.dumps(properties) if self.random.random() < 0.95 else None,
        }

    def encoded(self, event: dict) -> bytes:
        value = io.BytesIO()
        value.write(struct.pack(">bI", 0, self.schema_id))
        fastavro.schemaless_writer(value, self.schema, event)
        return value.getvalue()

    def noted(self, event: dict, first: dict):
        promoted = dict(self.promoted)

        def note(error, message):
            if error:
                raise SystemExit(f"not delivered: {error}")
            known = first.get(event["eventId"])
            if known is None or message.offset() < known["kafka_offset"]:
                first[event["eventId"]] = row_of(event, message, promoted)

        return note


def row_of(event: dict, message, promoted: dict[str, str]) -> dict:
    """The archive's row of an event."""
    properties = json.loads(event["properties"]) if event["properties"] else {}
    columns = {
        "event_id": "eventId", "event_type": "eventType", "event_action": "eventAction", "user_id": "userId",
        "session_id": "sessionId", "occurred_at": "timestamp", "received_at": "receivedAt", "properties": "properties",
        "client_address": "clientAddress", "user_agent": "userAgent",
    }
    row = {column: event[name] for column, name in columns.items()}
    row |= {"append_time": message.timestamp()[1] * 1_000, "kafka_partition": message.partition()}
    row |= {"kafka_offset": message.offset()}
    return row | {column: properties.get(name) for name, column in promoted.items()}
