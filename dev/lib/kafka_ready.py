"""Ends with 0 when the broker at the address given answers as the unfenced leader of a cluster."""

import sys

from confluent_kafka.admin import AdminClient

client = AdminClient({"bootstrap.servers": sys.argv[1], "log_level": 0, "reconnect.backoff.ms": 50})
cluster = client.describe_cluster(request_timeout=5).result()
sys.exit(0 if cluster.nodes and cluster.controller else 1)
