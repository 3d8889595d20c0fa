"""A producer and a consumer that share no code with Tidemill: confluent-kafka and fastavro.

usage: native_client.py BROKERS REGISTRY_URL TOPIC EVENT_JSON

Writes the event to the topic as a native producer does, then prints every record of the topic, a JSON object
a line, decoded with the schema that the registry gives for the id in its frame.
"""

import io
import json
import struct
import sys
import urllib.request

import fastavro
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def produce(brokers: str, registry: str, topic: str, event: dict) -> None:
    latest = get(f"{registry}/subjects/{topic}-value/versions/latest")
    value = io.BytesIO()
    value.write(struct.pack(">bI", 0, latest["id"]))
    fastavro.schemaless_writer(value, fastavro.parse_schema(json.loads(latest["schema"])), event)
    failures = []
    producer = Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random", "acks": "all"})
    producer.produce(topic, key=event["eventId"], value=value.getvalue(), on_delivery=lambda e, _: e and failures.append(e))
    if producer.flush(30) or failures:
        sys.exit(f"not delivered: {failures}")


def consume(brokers: str, registry: str, topic: str) -> None:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "native-client", "enable.auto.commit": False})
    schemas: dict[int, dict] = {}
    for partition in consumer.list_topics(topic, 10).topics[topic].partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
        consumer.assign([TopicPartition(topic, partition, low)])
        while low < high:
            message = consumer.poll(30)
            if message is None or message.error():
                raise KafkaException(message and message.error())
            low = message.offset() + 1
            magic, schema_id = struct.unpack(">bI", message.value()[:5])
            if schema_id not in schemas:
                schemas[schema_id] = fastavro.parse_schema(json.loads(get(f"{registry}/schemas/ids/{schema_id}")["schema"]))
            datum = io.BytesIO(message.value()[5:])
            record = fastavro.schemaless_reader(datum, schemas[schema_id])
            print(json.dumps({
                "magic": magic, "key": message.key().decode(), "partition": message.partition(),
                "leftover": len(datum.read()), "event": record,
            }, default=str))
    consumer.close()


if __name__ == "__main__":
    brokers_, registry_, topic_, event_ = sys.argv[1:]
    produce(brokers_, registry_, topic_, json.loads(event_))
    consume(brokers_, registry_, topic_)
