"""The demo: sends a real clickstream through the running pipeline and checks every number it makes.

`dev/demo` starts the system and calls this; `--help` tells the arguments.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

import clickstream
import compare
import truth
import urls
from checks import Checks
from live import Loadgen, Redis
from sender import Sender
from stack import Stack, wait_for
from terminal import Bar, DemoError, bold, red, say, step
from topics import Topic
from views import Postgres

PATIENCE_SECONDS = 120.0
ENDLESS_SECONDS = 7 * 86_400
RESULT = (
    "sent", "accepted", "duplicates", "log", "postgres", "archive", "sessions", "expected_sessions",
    "live_sent", "live_redis_mismatches", "mismatches", "seconds",
)  # fmt: skip


class Demo:
    """One run: where everything is, what was compared, and the numbers for the last line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.stack = Stack.load(arguments.stack)
        self.postgres = Postgres(self.stack)
        self.clicks = duckdb.connect()
        self.live = duckdb.connect()
        self.checks = Checks()
        self.result: dict[str, Any] = dict.fromkeys(RESULT)

    def run(self) -> None:
        self.send_clickstream()
        self.wait_for_views(clickstream.EVENTS)
        self.compare_clickstream()
        self.send_live()
        self.wait_for_views(clickstream.EVENTS + len(truth.identities(self.live)))
        self.compare_live()
        step("What was checked")
        self.checks.print()

    def send_clickstream(self) -> None:
        step(f"Sending the clickstream of {clickstream.PACKAGE} to {self.stack.ingest}, project {self.stack.project}")
        clickstream.load(self.clicks, clickstream.fetch(self.arguments.cache), self.stack.project)
        events = clickstream.with_copies(clickstream.events(self.clicks))
        say(f"  {clickstream.EVENTS:,} events; every {clickstream.COPY_EVERY}th is sent a second time")
        bar = Bar("POST /v1/events", len(events), "events")
        tally = Sender(self.stack.ingest, self.stack.write_key, bar.update).send(events)
        bar.finish(tally.sent)
        if tally.first_after:
            say(f"  the first event was in {tally.first_after - self.arguments.started:.1f} s after the demo's start")
        if tally.retried:
            say(f"  {tally.retried:,} were told to retry, and sent again")
        self.checks.section("clickstream")
        compare.sending(self.checks, tally, len(events), clickstream.EVENTS)
        self.result |= {"sent": tally.sent, "accepted": len(tally.accepted), "duplicates": tally.duplicates}

    def wait_for_views(self, events: int) -> None:
        step("Waiting for the views to reach the end of the log")
        topic = Topic(self.stack, self.stack.topic)
        end = sum(high for _, high in topic.ends().values())
        topic.close()
        for name, column in (("Postgres", "next_offset"), ("Redis", "projected_offset")):
            wait_for(name, end, "offsets", lambda: self.postgres.passed(column), PATIENCE_SECONDS)
        wait_for("archive", events, "rows", self.archived, PATIENCE_SECONDS)

    def archived(self) -> int:
        try:
            # Without the tail: what SQL sees beside the archive is not in its files yet.
            return self.stack.get("/v1/query", sql="SELECT count(*) AS n FROM events", tail="false")["rows"][0]["n"]
        except DemoError:
            return 0  # the table is made with the first commit

    def compare_clickstream(self) -> None:
        step("Comparing with what DuckDB computes from the CSV")
        checks, con, stack, postgres = self.checks, self.clicks, self.stack, self.postgres
        self.result["log"] = compare.log(checks, con, stack)
        self.result["postgres"] = compare.rollups(checks, con, postgres)
        compare.daily_users(checks, con, stack)
        found, expected = compare.sessions(checks, con, stack, postgres)
        self.result |= {"sessions": found, "expected_sessions": expected}
        self.result["archive"] = compare.archive(checks, con, stack, postgres)
        compare.queries(checks, con, stack)

    def send_live(self) -> None:
        seconds = self.arguments.live_seconds
        step(f"Sending {seconds} s of live traffic (tidemill loadgen)")
        journal = self.arguments.work / "journal.ndjson"
        loadgen = Loadgen(self.arguments.tidemill, self.stack, seconds, seed=1, journal=journal)
        try:
            summary = loadgen.follow(seconds)
        finally:
            loadgen.stop()
        truth.load_journal(self.live, str(journal))
        say("  " + ", ".join(f"{name} {value}" for name, value in summary.items()))
        self.checks.section("live traffic")
        self.checks.number("taken, by loadgen's journal", summary["events"], len(truth.identities(self.live)))
        self.checks.number("without an answer, or invalid", 0, summary["failed"] + summary["invalid"])
        self.result["live_sent"] = summary["sent"]

    def compare_live(self) -> None:
        step("Comparing live sessions and hot windows with loadgen's journal")
        checks, con = self.checks, self.live
        compare.live_log(checks, con, self.stack)
        wrong = compare.live_redis(checks, con, Redis(self.stack), time.time())
        self.result["live_redis_mismatches"] = wrong
        compare.live_served(checks, con, self.stack)
        compare.live_archive(checks, con, self.postgres)

    def feed(self) -> None:
        """Live traffic until Ctrl-C, with a line that shows that it arrives."""
        loadgen = Loadgen(self.arguments.tidemill, self.stack, ENDLESS_SECONDS, seed=int(time.time()))
        try:
            while loadgen.process.poll() is None:
                urls.show_last_minute(self.stack)
                time.sleep(1)
            say(red(f"\n  loadgen has ended: {loadgen.summary()}"))
        except KeyboardInterrupt:  # the way to end it
            say(bold("\n\nLive traffic has stopped. The services go on; `make down` stops them"))
        finally:
            loadgen.stop()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=Path, required=True, help="file with the JSON that dev/up prints")
    parser.add_argument("--tidemill", required=True, help="the tidemill binary")
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--work", type=Path, required=True, help="folder for the journal and result.json")
    parser.add_argument("--started", type=float, required=True, help="when the demo started, in seconds since 1970")
    parser.add_argument("--live-seconds", type=int, default=60, help="how long live traffic is compared")
    parser.add_argument("--stay", action="store_true", help="go on with live traffic until Ctrl-C")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    demo, failed = Demo(arguments), 1
    try:
        demo.run()
        failed = 0
    except DemoError as error:
        say(red(f"\nerror: {error}"))
    finally:
        # A run that broke off is wrong by at least one number.
        wrong = demo.checks.mismatches() + failed
        demo.result |= {"mismatches": wrong, "seconds": round(time.time() - arguments.started, 1)}
        (arguments.work / "result.json").write_text(json.dumps(demo.result) + "\n")
    if arguments.stay and not failed:
        urls.print_urls(demo.stack, demo.live)
        demo.feed()
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("\n\nThe demo was broken off" + ("; `make down` stops the services" if "--stay" in sys.argv else ""))
        sys.exit(130)
