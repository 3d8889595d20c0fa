"""Sends one message of each kind with Segment's own library: HOST WRITE_KEY [gzip]."""

import sys

from segment.analytics.client import Client

host, write_key, *options = sys.argv[1:]
errors = []
client = Client(
    write_key, host=host, gzip="gzip" in options, max_retries=3, on_error=lambda error, items: errors.append(repr(error))
)
context = {"sessionId": "s-1"}
client.track("u-1", "Order Completed", {"price": 12.5, "page": "checkout"}, context=context, message_id="m-track")
client.page("u-1", "Shop", "Home", {"url": "https://shop.example/"}, context=context, message_id="m-page")
client.screen("u-1", "Shop", "Main", message_id="m-screen")
client.identify("u-1", {"plan": "pro"}, message_id="m-identify")
client.group("u-1", "g-1", {"name": "Acme"}, message_id="m-group")
client.alias("old", "u-1", message_id="m-alias")
client.track(None, "Anonymous", anonymous_id="a-1", message_id="m-anonymous")
client.flush()
client.join()
if errors:
    sys.exit("; ".join(errors))
