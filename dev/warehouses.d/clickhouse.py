"""ClickHouse's HTTP interface, as far as our service speaks it, before ClickHouse in this process (chDB). It takes ports of
its own only as a server, which is not in any package registry; so this is a shell around the real engine: users, roles,
settings and formats are the engine's, streaming and cancelling are not there.

The engine here cannot store users and roles, so the grants that `tidemill archive warehouse-setup` prints are given to it
in a file, statement by statement as they are, and all other statements are run as they are."""

import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import run
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import chdb.session

# What ClickHouse's server answers to these errors; to others 500.
STATUS = {**dict.fromkeys([46, 47, 50, 60, 81], 404), **dict.fromkeys([6, 27, 38, 41, 42, 43, 53, 62, 69, 70, 72], 400)}
STATUS |= dict.fromkeys([164, 497, 511, 512, 516], 403)
NOT_SETTINGS = {"database", "role", "default_format"}


def session(folder: Path, name: str):
    return chdb.session.Session(f"file:{folder}/data?config-file={folder}/{name}.xml")


def configure(folder: Path, name: str, roles: dict[str, list[str]], grants: list[str] | None):
    """The only user there is, with these grants; with none it may do everything."""
    def listed(statements):
        return "<grants>" + "".join(f"<query>{escape(statement)}</query>" for statement in statements) + "</grants>"

    files = {
        f"{name}.xml": f"<user_directories><users_xml><path>{folder}/{name}-users.xml</path></users_xml></user_directories>",
        f"{name}-users.xml": (
            f"<profiles><default>{'' if grants is None else '<readonly>2</readonly>'}</default></profiles><quotas><default/></quotas>"
            f"<roles>{''.join(f'<{role}>{listed(statements)}</{role}>' for role, statements in roles.items())}</roles>"
            "<users><default><password></password><networks><ip>::/0</ip></networks><profile>default</profile>"
            f"<quota>default</quota>{'' if grants is None else listed(grants)}</default></users>"
        ),
    }
    for file, content in files.items():
        (folder / file).write_text(f"<clickhouse>{content}</clickhouse>")


def set_up(folder: Path, statements: list[str]):
    """Runs what makes databases and tables; in a process of its own, since one process has one folder and one file of users."""
    configure(folder, "admin", {}, None)
    admin = session(folder, "admin")
    for statement in statements:
        # That the server would understand it.
        admin.query(f"SELECT formatQuery({quoted(statement)})")
        if re.match("CREATE (DATABASE|TABLE)", statement):
            admin.query(statement)


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def serve(folder: Path, port: int, user: str, password: str, statements: list[str]):
    roles, memberships = {}, []
    for statement in statements:
        if table := re.fullmatch(r"(GRANT SELECT ON .*) TO `(.*)`", statement):
            roles.setdefault(table[2], []).append(table[1])
        elif role := re.fullmatch(r"GRANT (`.*`) TO `.*`", statement):
            memberships.append(f"GRANT {role[1]}")
    configure(folder, "service", roles, memberships)
    engine = session(folder, "service")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            said = dict(parse_qsl(urlsplit(self.path).query))
            sql = self.rfile.read(int(self.headers["content-length"])).decode()
            if (self.headers["x-clickhouse-user"], self.headers["x-clickhouse-key"]) != (user, password):
                return self.answer(403, b"Code: 516. DB::Exception: Authentication failed", 516)
            try:
                engine.query("SET iceberg_snapshot_id = DEFAULT")
                engine.query(f"SET ROLE {'`%s`' % said['role'] if said.get('role') else 'NONE'}")
                engine.query(f"USE `{said['database']}`")
                for name, value in said.items():
                    if name not in NOT_SETTINGS:
                        engine.query(f"SET {name} = {quoted(value)}")
                self.answer(200, engine.query(sql, said["default_format"]).bytes())
            except RuntimeError as error:
                code = int(re.search(r"Code: (\d+)", str(error))[1])
                self.answer(STATUS.get(code, 500), str(error).encode(), code)

        def do_GET(self):
            self.answer(200, b"Ok.\n")

        def answer(self, status: int, body: bytes, code: int | None = None):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if code:
                self.send_header("x-clickhouse-exception-code", str(code))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def main():
    what, folder, statements = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    os.chdir("/")  # below which it lets files be read
    if what == "set-up":
        return set_up(folder, statements)
    folder.mkdir(exist_ok=True)
    run([sys.executable, "-B", __file__, "set-up", *sys.argv[2:4]], check=True)
    serve(folder, int(sys.argv[4]), sys.argv[5], sys.argv[6], statements)


if __name__ == "__main__":
    main()
