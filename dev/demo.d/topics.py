"""Reads the topics with a Kafka client and an Avro decoder of their own: confluent-kafka and fastavro."""

import io
import json
import struct
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import fastavro
from confluent_kafka import Consumer, Message, TopicPartition

from stack import Stack
from terminal import DemoError

SILENCE_SECONDS = 20.0


class Topic:
    """A topic between its first and its present last record."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name = name
        # The group's name is asked for, but never used: partitions are assigned and nothing is committed.
        self.consumer = Consumer({
            "bootstrap.servers": stack.kafka, "group.id": "tidemill-demo",
            "enable.auto.commit": False, "auto.offset.reset": "error", "enable.partition.eof": False,
        })  # fmt: skip

    def ends(self) -> dict[int, tuple[int, int]]:
        """The first offset and the one behind the last, by partition."""
        metadata = self.consumer.list_topics(self.name, timeout=20).topics[self.name]
        if metadata.error:
            raise DemoError(f"Kafka topic {self.name}: {metadata.error}")
        return {
            partition: self.consumer.get_watermark_offsets(TopicPartition(self.name, partition), timeout=20)
            for partition in metadata.partitions
        }

    def records(self) -> Iterator[Message]:
        ends = {partition: end for partition, end in self.ends().items() if end[1] > end[0]}
        self.consumer.assign([TopicPartition(self.name, partition, low) for partition, (low, _) in ends.items()])
        heard = time.monotonic()
        while ends:
            # `consume` waits until it has as many as it was asked for, or for its timeout.
            batch = self.consumer.consume(5_000, timeout=0.2)
            if batch:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                raise DemoError(f"Kafka topic {self.name}: partitions {sorted(ends)} went silent before their end")
            for message in batch:
                if message.error():
                    raise DemoError(f"Kafka topic {self.name}: {message.error()}")
                if message.partition() not in ends:
                    continue  # appended since the ends were asked for
                yield message
                if message.offset() + 1 >= ends[message.partition()][1]:
                    del ends[message.partition()]

    def close(self) -> None:
        self.consumer.close()


class Decoder:
    """Confluent framing: a zero byte, the schema's id in the registry (4 bytes), the Avro datum."""

    def __init__(self, stack: Stack) -> None:
        self.registry = stack.registry
        self.schemas: dict[int, Any] = {}

    def decode(self, value: bytes) -> dict[str, Any]:
        magic, schema_id = struct.unpack(">bI", value[:5])
        if magic != 0:
            raise DemoError(f"a record starts with byte {magic}, not with Confluent framing's 0")
        if schema_id not in self.schemas:
            with urllib.request.urlopen(f"{self.registry}/schemas/ids/{schema_id}", timeout=20) as response:
                self.schemas[schema_id] = fastavro.parse_schema(json.loads(json.load(response)["schema"]))
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), self.schemas[schema_id], None)


def read_events(stack: Stack) -> list[dict[str, Any]]:
    """All records of the project's topic, decoded."""
    topic, decoder = Topic(stack, stack.topic), Decoder(stack)
    try:
        return [decoder.decode(message.value()) for message in topic.records()]
    finally:
        topic.close()


def read_keys(stack: Stack, name: str) -> list[str | None]:
    """The keys of all records of a topic."""
    topic = Topic(stack, name)
    try:
        return [message.key() and message.key().decode() for message in topic.records()]
    finally:
        topic.close()


def count_records(stack: Stack, name: str) -> int:
    topic = Topic(stack, name)
    try:
        return sum(high - low for low, high in topic.ends().values())
    finally:
        topic.close()
