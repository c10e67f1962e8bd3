"""The machines of Citus that tests run on, and the databases that they make there.

TOLLGATE_TEST_CITUS_URL names the coordinator, to which its machines are known, and a role that may make databases on
each of them.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
from sqlalchemy import make_url

from storage import migrations
from storage.engine.database import Database
from storage.maintenance.distribution import distribute

#: Has what follows be done on the machine that is connected to, and on no other.
_ALONE = "SET citus.enable_create_database_propagation TO off"

URL = os.environ.get("TOLLGATE_TEST_CITUS_URL", "")


async def connected(host: str, port: int, database: str) -> asyncpg.Connection:
    """Connect to a database of one machine, with the role of the coordinator's URL."""
    return await asyncpg.connect(URL, host=host, port=port, database=database)


async def machines() -> list[tuple[str, int]]:
    """Return the host and port of each machine, the coordinator's first."""
    coordinator = await asyncpg.connect(URL)
    nodes = "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"
    found = [(node["nodename"], node["nodeport"]) for node in await coordinator.fetch(nodes)]
    await coordinator.close()
    return found


async def new_database(template: str | None = None, *, workers: int | None = None) -> str:
    """Make a database on all machines and return its URL: a copy of one that has no connections, or without tables.

    Where a number of workers is given, a database without tables has the first ones alone, and may be given the others.
    """
    name = f"test_{secrets.token_hex(6)}"
    places = await machines()
    for host, port in places:
        await _copy(host, port, template or "template1", name)
        if template is None:
            await _run(host, port, name, "CREATE EXTENSION citus")
    if template is None:
        own_place, *others = places
        nodes = [add_node(place) for place in others[:workers]]
        await _run(*own_place, name, f"SELECT citus_set_coordinator_host('{own_place[0]}', {own_place[1]})", *nodes)
    host, port = places[0]
    return (
        make_url(URL)
        .set(drivername="postgresql+asyncpg", host=host, port=port, database=name)
        .render_as_string(hide_password=False)
    )


def name_of(url: str) -> str:
    """Return the name of the database of a URL."""
    name = make_url(url).database
    assert name is not None
    return name


def add_node(place: tuple[str, int]) -> str:
    """Return the statement that gives a database another worker."""
    return f"SELECT citus_add_node('{place[0]}', {place[1]})"


async def _copy(host: str, port: int, template: str, name: str) -> None:
    """Copy one machine's part of a database, to which Citus, or who copies it too, may be connected for a moment."""
    ended = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{template}'"  # noqa: S608  # Our own name.
    while True:
        with suppress(asyncpg.ObjectInUseError):
            await _run(host, port, "postgres", _ALONE, ended, f"CREATE DATABASE {name} TEMPLATE {template}")
            return


async def drop_database(url: str) -> None:
    """Drop a database that `new_database` made."""
    for host, port in reversed(await machines()):
        await _run(
            host,
            port,
            "postgres",
            _ALONE,
            f"DROP DATABASE {name_of(url)} WITH (FORCE)",
        )


async def asked(place: tuple[str, int], url: str, statement: str) -> list[asyncpg.Record]:
    """Return what one machine answers to a statement about this database."""
    connection = await connected(*place, name_of(url))
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


@asynccontextmanager
async def lost(place: tuple[str, int], url: str) -> AsyncIterator[None]:
    """Let a machine end all sessions of this database, and take none, while the body runs."""
    name = name_of(url)
    alone = "SET citus.enable_ddl_propagation TO off"
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608  # Our own name.
    await _run(*place, "postgres", alone, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", ended)
    try:
        yield
    finally:
        await _run(*place, "postgres", alone, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def _run(host: str, port: int, database: str, *statements: str) -> None:
    connection = await connected(host, port, database)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def divided(url: str, count: int = 4, **options: Any) -> None:
    """Bring the database to the newest schema, and divide it."""
    database = Database(url)
    try:
        await migrations.upgrade(database)
        await distribute(database, count, **options)
    finally:
        await database.close()
