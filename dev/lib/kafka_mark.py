"""Writes a record into a topic, or checks that it is there (for dev/selftest)."""

import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

brokers, action = sys.argv[1:]
if action == "write":
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic("mark", 1, 1)])["mark"].result(30)
    producer = Producer({"bootstrap.servers": brokers, "acks": "all"})
    producer.produce("mark", b"42")
    sys.exit(producer.flush(30))

consumer = Consumer({"bootstrap.servers": brokers, "group.id": "mark"})
consumer.assign([TopicPartition("mark", 0, 0)])
message = consumer.poll(30)
sys.exit(0 if message and not message.error() and message.value() == b"42" else 1)
