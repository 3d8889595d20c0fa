"""Sends events with the client of docs/clients: reads {url, key, retries, timeout, real, events} on standard input,
prints {pauses, verdicts}. Pauses, in seconds, only take their time where `real` says so."""

import copy
import json
import pathlib
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "docs" / "clients"))
from tidemill import Tidemill  # noqa: E402

order = json.load(sys.stdin)
client = Tidemill(order["url"], order["key"], order["retries"], order["timeout"])
pauses, sleep = [], client.sleep


def noted(seconds):
    pauses.append(seconds)
    if order["real"]:
        sleep(seconds)


client.sleep = noted
events = copy.deepcopy(order["events"])
verdicts = client.send(events)
assert events == order["events"], "the caller's events were changed"
print(json.dumps({"pauses": pauses, "verdicts": verdicts}))
