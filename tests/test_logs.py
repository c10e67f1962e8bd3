"""The log: what its lines say, and that no secret is in any of them, nor in an answer."""

import asyncio
import json
import logging
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError

from gateway.telemetry.logs import JSONLines, ReadableLines, RequestLog
from gateway.telemetry.requests import Request
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from tests import commands
from tests.conftest import Gateway, gateway_on
from tests.servers import Server, serving
from tests.steps import execute, key_in, plant_secret

METER = 'query Meter { billingMeter(workspaceId: "w", externalMeterId: "m") { id } }'


class Logged(NamedTuple):
    """A gateway, and the file that holds the lines of its requests."""

    gateway: Gateway
    file: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@asynccontextmanager
async def logged(url: str, folder: Path, level: int = logging.INFO) -> AsyncIterator[Logged]:
    file = folder / "log"
    with file.open("w") as stream:
        async with gateway_on(url, request_log=RequestLog(stream, level=level, as_json=True)) as gateway:
            yield Logged(gateway, file)


class TestRequestLines:
    async def test_a_request_has_one_line_of_json(self, database_url: str, tmp_path: Path) -> None:
        before = datetime.now(UTC)
        async with logged(database_url, tmp_path) as (gateway, file):
            response = await gateway.post(METER)
            (line,) = [json.loads(line) for line in file.read_text().splitlines()]
            assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
            assert line.pop("duration_ms") > 0
            key_id = line.pop("key_id")
            assert key_id.startswith("key_")
            assert line == {
                "level": "info",
                "logger": "tollgate.requests",
                "message": "request",
                "request_id": response.headers["x-request-id"],
                "method": "POST",
                "path": "/graphql",
                "status": 200,
                "outcome": "OK",
                "operation": "Meter",
                "kind": "query",
                "document": line["document"],
                # Its key was not known yet.
                "statements": 2,
                "cost": 1,
            }

    @pytest.mark.parametrize(
        ("level", "levels"),
        [
            (logging.DEBUG, ["debug", "info", "info", "error"]),
            (logging.INFO, ["info", "info", "error"]),
            (logging.WARNING, ["error"]),
            (logging.ERROR, ["error"]),
        ],
    )
    async def test_what_is_logged_depends_on_the_level(
        self, level: int, levels: list[str], database_url: str, tmp_path: Path
    ) -> None:
        async with logged(database_url, tmp_path, level) as log:
            gateway = log.gateway
            await gateway.client.get("/healthz")
            await gateway.client.get("/graphql")
            await gateway.client.get("/nowhere")
            await plant_secret(gateway.database, gateway.org_id, "scope")
            assert (await gateway.post("{ __typename }")).status_code == 500
            assert [line["level"] for line in log.lines()] == levels

    async def test_a_log_that_nobody_reads_fails_no_request(self, database_url: str) -> None:
        with open("/dev/full", "w") as full:  # noqa: ASYNC230, PTH123
            async with gateway_on(
                database_url, request_log=RequestLog(full, level=logging.INFO, as_json=True)
            ) as gateway:
                assert (await gateway.post("{ __typename }")).status_code == 200

    def test_a_log_that_is_closed_is_written_to_no_other_file(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("w") as stream:
            log = RequestLog(stream, level=logging.INFO, as_json=True)
            number = stream.fileno()
        # The next file that is opened has the number of the one that was closed.
        with (tmp_path / "other").open("w") as other:
            assert other.fileno() == number
            log(Request())
        assert ((tmp_path / "log").read_text(), (tmp_path / "other").read_text()) == ("", "")

    def test_people_read_it_as_text(self, tmp_path: Path) -> None:
        request = Request()
        request.method, request.path, request.status, request.outcome = "POST", "/graphql", 200, "OK"
        request.took_ns, request.request_id, request.key_id = 4_321_000, "0123456789abcdef", "key_1"
        with (tmp_path / "log").open("w") as stream:
            log = RequestLog(stream, level=logging.INFO, as_json=False)
            log(request)
            request.kind, request.operation, request.statements, request.cost = "query", "Meter", 1, 12
            log(request)
            request.operation, request.statements, request.status, request.outcome = None, 0, None, "DISCONNECTED"
            log(request)
        lines = [line[9:] for line in (tmp_path / "log").read_text().splitlines()]
        assert lines == [
            "INFO    POST /graphql  200 OK  4.3 ms  key_1  0123456789abcdef",
            "INFO    POST /graphql  200 OK  4.3 ms  query Meter  1 statement  cost 12  key_1  0123456789abcdef",
            "INFO    POST /graphql  --- DISCONNECTED  4.3 ms  query (anonymous)  cost 12  key_1  0123456789abcdef",
        ]


def line_of(formatter: logging.Formatter, message: object, *args: object, **record: Any) -> str:
    """Return the line of an event."""
    name = record.pop("name", "gateway.app")
    made = logging.LogRecord(name, logging.ERROR, __file__, 1, message, args or None, record.get("exc_info"))
    return formatter.format(made)


def json_of(message: object, *args: object, **record: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line_of(JSONLines(), message, *args, **record))
    return found


class TestEvents:
    def test_an_event_has_one_line_of_json(self) -> None:
        line = json_of("Request %s failed", "a1")
        assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
        assert line == {"level": "error", "logger": "gateway.app", "message": "Request a1 failed"}

    def test_a_traceback_shows_where_and_what_but_not_what_it_said(self) -> None:
        line: dict[str, Any] = {}
        try:
            try:
                int("hidden-cause")
            except ValueError as error:
                raise KeyError("hidden-key") from error
        except KeyError:
            line = json_of("It failed", exc_info=sys.exc_info())
        frames = [row for row in line["traceback"].splitlines() if not row.startswith("    ")]
        here = f'  File "{__file__}", line '
        assert [row[: len(here)] if row.startswith(here) else row for row in frames] == [
            "Traceback (most recent call last):",
            here,
            "builtins.ValueError",
            "",
            "from which came:",
            "",
            "Traceback (most recent call last):",
            here,
            "builtins.KeyError from ValueError",
        ]
        shown = "\n".join(
            row for row in line["traceback"].splitlines() if "raise KeyError" not in row and "int(" not in row
        )
        assert "hidden" not in shown

    @pytest.mark.parametrize(
        ("message", "args", "expected"),
        [
            ("key sk_live_abcDEF-_123 and cst_test_x", (), "key sk_live_… and cst_test_…"),
            ("%s", ("postgresql+asyncpg://user:hidden@db/x",), "postgresql+asyncpg://user:…@db/x"),
            ("it was %r", (ValueError("hidden"),), "it was 'ValueError'"),
            ("it was %s", (ConnectionRefusedError(111, "hidden"),), "it was ConnectionRefusedError (ECONNREFUSED)"),
            (ValueError("hidden"), (), "ValueError"),
            (
                "Traceback (most recent call last):\n  File x\n    code\nValueError: hidden\n",
                (),
                "Traceback (most recent call last):\n  File x\n    code\nValueError",
            ),
        ],
    )
    def test_a_message_shows_no_secret(self, message: object, args: tuple[object, ...], expected: str) -> None:
        assert json_of(message, *args)["message"] == expected

    def test_what_the_event_loop_reports_is_cut(self) -> None:
        for message, expected in (
            (
                "Task exception was never retrieved\nfuture: <Task exception=ValueError('hidden')>",
                "Task exception was never retrieved",
            ),
            ("Exception in callback work('hidden')\nhandle: <Handle work('hidden')>", "Exception in callback"),
        ):
            assert json_of(message, name="asyncio")["message"] == expected

    def test_people_read_it_as_text(self) -> None:
        plain = line_of(
            ReadableLines(is_coloured=False),
            "Request %s failed\ntwice",
            "a1",
            exc_info=(KeyError, KeyError("hidden"), None),
        )
        first, second, *rest = plain.splitlines()
        assert first[9:] == "ERROR   Request a1 failed"
        assert second == "  twice"
        assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", "builtins.KeyError")
        assert "\x1b[31mERROR  \x1b[0m" in line_of(ReadableLines(is_coloured=True), "x")

    @pytest.mark.slow
    async def test_what_a_database_says_is_not_logged(self, gateway: Gateway) -> None:
        """PostgreSQL names the row that breaks a rule, and SQLAlchemy the statement and its parameters."""
        columns = "environment, scopes, digest, created_at"
        copy = (
            f"INSERT INTO api_keys (id, org_id, {columns})"  # noqa: S608  # It is made of nothing from outside.
            f" SELECT :id, :other, {columns} FROM api_keys WHERE org_id = :org"
        )
        values = {"id": secrets.token_hex(), "other": secrets.token_hex(), "org": gateway.org_id}
        with pytest.raises(IntegrityError) as caught:
            await execute(gateway.database, copy, **values)
        error = caught.value
        line = json_of("It was %s", error, exc_info=(type(error), error, error.__traceback__))
        is_postgresql = gateway.database.dialect == "postgresql"
        assert line["message"] == (
            "It was UniqueViolationError (23505) from UniqueViolationError (23505)"
            if is_postgresql
            else "It was IntegrityError (SQLITE_CONSTRAINT_UNIQUE)"
        )
        for hidden in (*values.values(), "INSERT", "Key (", "UNIQUE constraint"):
            assert hidden not in json.dumps(line)
        # What others make of it shows no parameters either.
        for value in values.values():
            assert value not in str(error)

    def test_the_database_s_absence_is_logged_by_its_cause(self) -> None:
        error = DatabaseUnavailable(Outcome.NOT_WRITTEN)
        error.__cause__ = ConnectionRefusedError(111, "hidden")
        assert json_of("%s", error)["message"] == "DatabaseUnavailable from ConnectionRefusedError (ECONNREFUSED)"


class TestSecrets:
    """Secrets are sent through every place that takes something, and none is found in the log or in another answer."""

    async def test_no_secret_is_in_a_log_or_an_answer(
        self, migrated_url: str, tmp_path: Path, subtests: pytest.Subtests
    ) -> None:
        url = migrated_url
        if url.startswith("postgresql"):
            url = make_url(url).set(password="hidden-password").render_as_string(hide_password=False)
        database = Database(migrated_url)
        key = await key_in(database, "acme")
        spoilt = await key_in(database, "spoilt")
        await plant_secret(database, "spoilt", "hidden-in-exception")
        made_up = "sk_live_" + "hidden0" * 6 + "x"
        async with serving(
            url, tmp_path, TOLLGATE_LOG_LEVEL="debug", TOLLGATE_METRICS_TOKEN="hidden-metrics-token"
        ) as server:
            answers = await send_secrets(server, key, spoilt, made_up)
            await asyncio.sleep(0)
        await database.close()
        lines = server.logged
        request_lines = [json.loads(line) for line in lines.splitlines() if '"logger":"tollgate.requests"' in line]
        # What one connection asks without a key has one line for several.
        assert sum(line.get("repeated", 1) for line in request_lines) >= len(answers)
        assert '"level":"error"' in lines
        assert "builtins.ValueError" in lines
        for secret in (key, key[8:], spoilt[8:], made_up[8:], "hidden", "@example.com", "SELECT ", "INSERT "):
            with subtests.test("the log", secret=secret):
                assert secret not in lines
        for line in lines.splitlines():
            assert json.loads(line)["level"] in {"debug", "info", "warning", "error"}
        for what, answer in answers.items():
            for secret in (
                key,
                spoilt,
                made_up[8:],
                "hidden-in-exception",
                "hidden-password",
                "hidden-metrics",
                "SELECT ",
                "Traceback",
            ):
                with subtests.test("the answer", what=what, secret=secret):
                    assert secret not in answer.text
                    assert secret not in str(answer.headers)

    async def test_a_database_that_is_away_is_reported_without_its_password(self, tmp_path: Path) -> None:
        environment = {
            "TOLLGATE_DATABASE_URL": "postgresql+asyncpg://hidden-user:hidden-password@127.0.0.1:1/x",
            "TOLLGATE_LOG_LEVEL": "debug",
        }
        done = await asyncio.to_thread(commands.run, "serve", folder=tmp_path, environment=environment)
        assert done.code == 1
        assert "The database is unavailable" in done.err
        assert "hidden-password" not in done.out + done.err


async def send_secrets(server: Server, key: str, spoilt: str, made_up: str) -> dict[str, httpx.Response]:
    """Send what must not be shown in every place of a request, and return each answer."""
    create = "mutation ($input: CreateCustomerInput!) { createCustomer(input: $input) { __typename } }"
    customer = {
        "email": "hidden@example.com",
        "name": "hidden-name",
        "externalId": "hidden-id",
        "metadata": {"a": "hidden"},
    }
    bearer = {"authorization": f"Bearer {key}"}
    meter = {"workspaceId": "hidden-w", "externalMeterId": "hidden-m"}
    requests: dict[str, dict[str, Any]] = {
        "authorization": {"headers": {"authorization": f"Bearer {made_up}"}, "json": {"query": "{ __typename }"}},
        "no bearer": {"headers": {"authorization": "Basic hidden-credentials"}, "json": {"query": "{ __typename }"}},
        "a malformed key": {"headers": {"authorization": "Bearer hidden-key"}, "json": {"query": "{ __typename }"}},
        "an exception": {"headers": {"authorization": f"Bearer {spoilt}"}, "json": {"query": "{ __typename }"}},
        "request id": {"headers": bearer | {"x-request-id": made_up}, "json": {"query": "{ __typename }"}},
        "trace": {"headers": bearer | {"traceparent": made_up}, "json": {"query": "{ __typename }"}},
        "variables": {"headers": bearer, "json": {"query": create, "variables": {"input": customer}}},
        "again": {"headers": bearer, "json": {"query": create, "variables": {"input": customer}}},
        "bad variables": {
            "headers": bearer,
            "json": {"query": create, "variables": {"input": {"email": 1, "no": "hidden"}}},
        },
        "a name": {"headers": bearer, "json": {"query": "query sk_live_hidden { __typename }"}},
        "a literal": {
            "headers": bearer,
            "json": {"query": '{ customerByExternalId(externalId: "hidden-literal") { email } } # hidden-comment'},
        },
        "a syntax error": {"headers": bearer, "json": {"query": '{ a(b: "hidden-literal" } '}},
        "no JSON": {"headers": bearer | {"content-type": "application/json"}, "content": b'{"hidden-body'},
        "a query string": {
            "method": "GET",
            "headers": bearer,
            "params": {"query": "{ __typename }", "variables": '{"x": "hidden"}', "token": key},
        },
        "a path": {"method": "GET", "url": f"/{key}/hidden@example.com"},
        "a method": {"method": "HIDDEN", "url": "/graphql"},
        "REST": {"url": "/api/v1/customer-billing", "headers": bearer, "json": meter},
        "REST's query string": {"method": "GET", "url": "/api/v1/customer-billing", "headers": bearer, "params": meter},
        "REST's path": {"method": "GET", "url": "/api/v1/usage/hidden-id", "headers": bearer},
        "metrics": {"method": "GET", "url": "/metrics", "headers": {"authorization": "Bearer hidden-metrics-token"}},
        "metrics' token": {"method": "GET", "url": "/metrics", "headers": bearer},
        "readyz": {"method": "GET", "url": "/readyz", "headers": bearer},
    }
    async with server.client() as client:
        return {
            what: await client.request(**({"method": "POST", "url": "/graphql"} | request))
            for what, request in requests.items()
        }
