"""Services of ours, and the endpoint that is asked."""

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from engines import free_port, until


class Service:
    """A process of ours; `settings` say what is different."""

    def __init__(self, options, service: str, name: str, **settings):
        port = free_port()
        settings |= {f"TIDEMILL_{service.upper()}__PORT": str(port), "TIDEMILL_LISTEN__HOST": "127.0.0.1", "LOG_LEVEL": "warn"}
        log = Path(options.work, f"{name}.log").open("ab")
        self.process = subprocess.Popen([options.tidemill, service], env=os.environ | settings, stdout=log, stderr=log)
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        until(f"{name} is ready", self.is_ready)

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/readyz", timeout=2).status == 200
        except OSError:
            return False

    def raw(self, key: str, sql: str, accept: str = "application/json"):
        url = f"{self.url}/v1/query?" + urllib.parse.urlencode({"sql": sql, "tail": "false"})
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}", "Accept": accept})
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        return answer.status, answer.headers, answer.read()

    def ask(self, key: str, sql: str) -> tuple[int, dict]:
        status, _, body = self.raw(key, sql)
        return status, json.loads(body)

    def rows(self, key: str, sql: str) -> list[dict]:
        status, answer = self.ask(key, sql)
        if status != 200:
            raise SystemExit(f"{sql}: {answer}")
        return answer["rows"]

    def stop(self):
        self.process.kill()
        self.process.wait()
