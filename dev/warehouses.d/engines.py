"""The engines, set up as `tidemill archive warehouse-setup` says, and asked directly where our service would not."""

import base64
import hashlib
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

USER, PASSWORD, ADMIN = "tidemill", "a secret of the service", "admin"
PATIENCE = 180


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(what: str, holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE} s: {what}")
        time.sleep(0.1)


def ended(process: subprocess.Popen, log: Path):
    if process.poll() is not None:
        raise SystemExit(f"it has ended: {log.read_text(errors='replace')[-2000:]}")


class Trino:
    """A coordinator that works, too: HTTPS, passwords, the rules that were printed, and the catalog in Postgres."""

    name, word = "Trino", "trino"

    def __init__(self, work: Path, home: Path, java: str, setup, database: str):
        self.folder, (self.port, self.tls) = work / "trino", (free_port(), free_port())
        (self.folder / "etc/catalog").mkdir(parents=True)
        self.url, self.home, self.rules = f"https://127.0.0.1:{self.tls}", home, self.folder / "rules.json"
        self.settings = {"SSL_CERT_FILE": str(self.certificate())}
        self.tls_context = ssl.create_default_context(cafile=self.settings["SSL_CERT_FILE"])
        self.apply(setup(self))
        self.configure(database)
        log = (self.folder / "log").open("wb")
        command = [java, "-Xmx1500m", "-Djdk.attach.allowAttachSelf=true", "--add-modules", "jdk.incubator.vector",
                   "-Dnode.environment=test", "-Dnode.id=one", f"-Dnode.data-dir={self.folder}/data",
                   f"-Dplugin.dir={home}/plugin", "-Dconfig=etc/config.properties", "-cp", f"{home}/lib/*",
                   "io.trino.server.TrinoServer"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        said = self.folder / "log"
        until("Trino has started", lambda: "SERVER STARTED" in said.read_text(errors="replace") or ended(self.process, said))
        self.version = self.direct(ADMIN, "SELECT node_version FROM system.runtime.nodes", as_user=ADMIN)[0][0]

    def certificate(self) -> Path:
        at = {name: str(self.folder / name) for name in ("ca.key", "ca.pem", "key.pem", "csr", "cert.pem", "san")}
        Path(at["san"]).write_text("subjectAltName=IP:127.0.0.1")
        for command in (
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", at["ca.key"], "-out", at["ca.pem"], "-subj", "/CN=test"],
            ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", at["key.pem"], "-out", at["csr"], "-subj", "/CN=trino"],
            ["x509", "-req", "-in", at["csr"], "-CA", at["ca.pem"], "-CAkey", at["ca.key"], "-CAcreateserial", "-out", at["cert.pem"],
             "-extfile", at["san"]],
        ):
            subprocess.run(["openssl", *command], check=True, capture_output=True)
        pair = Path(at["key.pem"]).read_text() + Path(at["cert.pem"]).read_text()
        (self.folder / "server.pem").write_text(pair)
        return Path(at["ca.pem"])

    def configure(self, database: str):
        def hashed(password: str) -> str:
            salt = os.urandom(16)
            return f"1000:{salt.hex()}:{hashlib.pbkdf2_hmac('sha1', password.encode(), salt, 1000, 64).hex()}"

        postgres = urllib.parse.urlsplit(database)
        files = {
            "passwords": [f"{user}:{hashed(PASSWORD)}" for user in (USER, ADMIN)],
            "etc/config.properties": [
                "coordinator=true", "node-scheduler.include-coordinator=true", f"http-server.http.port={self.port}",
                f"discovery.uri=http://127.0.0.1:{self.port}", "http-server.https.enabled=true",
                f"http-server.https.port={self.tls}", f"http-server.https.keystore.path={self.folder}/server.pem",
                "http-server.authentication.type=PASSWORD", "internal-communication.shared-secret=only for this test",
            ],
            "etc/password-authenticator.properties": [
                "password-authenticator.name=file", f"file.password-file={self.folder}/passwords",
            ],
            "etc/access-control.properties": [
                "access-control.name=file", f"security.config-file={self.rules}", "security.refresh-period=1s",
            ],
            "etc/catalog/tidemill.properties": [
                "connector.name=iceberg", "iceberg.catalog.type=jdbc", "iceberg.jdbc-catalog.catalog-name=tidemill",
                "iceberg.jdbc-catalog.driver-class=org.postgresql.Driver", "iceberg.jdbc-catalog.schema-version=V1",
                f"iceberg.jdbc-catalog.connection-url=jdbc:postgresql://{postgres.hostname}:{postgres.port}{postgres.path}",
                f"iceberg.jdbc-catalog.connection-user={postgres.username}",
                f"iceberg.jdbc-catalog.default-warehouse-dir={os.environ['WAREHOUSE_URL']}", "fs.hadoop.enabled=true",
            ],
        }
        for name, lines in files.items():
            (self.folder / name).write_text("\n".join(lines) + "\n")

    def apply(self, rules: str):
        self.rules.write_text(rules)

    def direct(self, user: str, sql: str, as_user: str, schema: str = "") -> list[list]:
        """The rows that Trino gives to `as_user` for the password of `user`; its error as an exception."""
        authorization = "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": authorization, "X-Trino-User": as_user, "X-Trino-Catalog": "tidemill", "X-Trino-Schema": schema}
        url, body, rows = f"{self.url}/v1/statement", sql.encode(), []
        while url:
            request = urllib.request.Request(url, body, headers)
            page = json.load(urllib.request.urlopen(request, timeout=60, context=self.tls_context))
            if error := page.get("error"):
                raise PermissionError(f"{error['errorName']}: {error['message']}")
            rows += page.get("data", [])
            url, body = page.get("nextUri"), None
        return rows

    def as_tenant(self, project: str, sql: str):
        return self.direct(USER, sql, f"{USER}_{project}", f"tidemill.{project}")

    def running(self) -> list[str]:
        sql = "SELECT query FROM system.runtime.queries WHERE state NOT IN ('FINISHED', 'FAILED') AND source = 'tidemill'"
        return [row[0] for row in self.direct(ADMIN, sql, ADMIN)]

    def table_of(self, project: str) -> str:
        return f'tidemill."tidemill.{project}".events'

    # In its own words.
    count = "count(*)"
    day = "date_format(occurred_at, '%Y-%m-%d')"
    price = "CAST(json_extract_scalar(properties, '$.price') AS bigint)"
    odd = {
        "SELECT approx_distinct(user_id) > 100 AS a, 1.50 AS d, nan() AS n, array_agg(DISTINCT event_type ORDER BY event_type) AS l FROM events":
            [{"a": True, "d": 1.5, "n": None, "l": '["add_to_cart","click","page_view","purchase"]'}],
        "SELECT count(*) AS n FROM events CROSS JOIN UNNEST(split('a,b', ',')) AS t (x)": None,
        "SELECT CAST('2026-01-01 00:00:00 +02:00' AS timestamp with time zone) AS t, DATE '2026-01-02' AS d FROM events LIMIT 1":
            [{"t": "2025-12-31T22:00:00Z", "d": "2026-01-02"}],
    }


class ClickHouse:
    """The engine in a process that serves its HTTP interface; see clickhouse.py."""

    name, word, settings = "ClickHouse", "clickhouse", {}

    def __init__(self, work: Path, python: str, setup):
        self.work, self.python, self.port, self.process = work, python, free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"
        self.apply(setup(self))
        self.version = self.direct("SELECT version()", "warehouses")[0][0]

    def apply(self, printed: str):
        """Grants are read when it starts."""
        self.stop()
        statements = self.work / "statements.json"
        statements.write_text(json.dumps(json.loads(printed)["statements"]))
        log = (self.work / "clickhouse.log").open("ab")
        command = [self.python, "-B", str(Path(__file__).with_name("clickhouse.py")), "serve", str(self.work / "clickhouse"),
                   str(statements), str(self.port), USER, PASSWORD]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until("ClickHouse answers", lambda: self.answers() or ended(self.process, self.work / "clickhouse.log"))

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(self.url, timeout=2).status == 200
        except OSError:
            return False

    def direct(self, sql: str, project: str, **settings) -> list[list]:
        role = f"{USER}_{project}"
        said = {"database": role, "role": role, "default_format": "JSONCompactEachRow", **settings}
        headers = {"X-ClickHouse-User": USER, "X-ClickHouse-Key": PASSWORD}
        request = urllib.request.Request(f"{self.url}/?" + urllib.parse.urlencode(said), sql.encode(), headers)
        try:
            answer = urllib.request.urlopen(request, timeout=60).read().decode()
        except urllib.error.HTTPError as error:
            raise PermissionError(error.read().decode()) from error
        return [json.loads(line) for line in answer.splitlines()]

    def as_tenant(self, project: str, sql: str):
        return self.direct(sql, project)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def table_of(self, project: str) -> str:
        return f"`{USER}_{project}`.events"

    count = "count()"
    day = "formatDateTime(occurred_at, '%Y-%m-%d')"
    price = "JSONExtractInt(ifNull(properties, ''), 'price')"
    odd = {
        "SELECT uniq(user_id) > 100 AS a, toDecimal64(1.5, 2) AS d, 0 / 0 AS n, arraySort(groupUniqArray(event_type)) AS l FROM events":
            [{"a": 1, "d": 1.5, "n": None, "l": '["add_to_cart","click","page_view","purchase"]'}],
        "SELECT count() AS n FROM events WHERE match(event_id, '^e-\\\\d+-\\\\d+$')": None,
        "SELECT toDateTime('2026-01-01 00:00:00', 'Europe/Berlin') AS t, toDate('2026-01-02') AS d FROM events LIMIT 1":
            [{"t": "2025-12-31T23:00:00Z", "d": "2026-01-02"}],
    }
