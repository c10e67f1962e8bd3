"""What the deliverer asks again and again goes by its index, however many deliveries there are."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from storage.engine.database import Database
from storage.engine.pages import Page
from storage.engine.transactions import Writer
from storage.meters import new_events, webhook_deliveries
from storage.meters.webhook_deliveries import DeliveryRow, DeliveryState
from tests.conftest import NOW
from tests.steps import execute, opened

pytestmark = pytest.mark.slow

PAGE = Page(25)

ENDPOINTS = [f"whe_{number:024x}" for number in range(200)]

#: What is asked, how many rows that is, and the index that it goes by, on SQLite and on PostgreSQL.
QUESTIONS: dict[str, tuple[Callable[[Writer], Awaitable[Any]], int, str]] = {
    "what is waiting": (webhook_deliveries.waiting, 200, "webhook_deliveries_due_idx"),
    "what is due": (
        lambda writer: webhook_deliveries.lock_due(writer, ENDPOINTS[3], now=NOW, limit=8),
        8,
        "webhook_deliveries_due_idx",
    ),
    "a page of an endpoint": (
        lambda writer: webhook_deliveries.page_of_endpoint(writer, ENDPOINTS[3], PAGE, None),
        26,
        "webhook_deliveries_endpoint_id_id_idx",
    ),
    "a page of an endpoint in a state": (
        lambda writer: webhook_deliveries.page_of_endpoint(writer, ENDPOINTS[3], PAGE, DeliveryState.FAILED),
        26,
        "webhook_deliveries_endpoint_id_state_id_idx",
    ),
    "those of events": (
        lambda writer: webhook_deliveries.of_events(writer, [("mtr_1", 1), ("mtr_1", 2)]),
        400,
        "webhook_deliveries_owner_id_number_endpoint_id_key",
    ),
    "those of ids": (
        lambda writer: webhook_deliveries.lock(writer, [f"whd_{number:024x}" for number in (1, 2, 3)]),
        3,
        "webhook_deliveries_pkey",
    ),
    "whether an event is new": (new_events.are_there, 0, "events_new_idx"),
}


@pytest.fixture
async def filled(migrated_url: str) -> AsyncIterator[Database]:
    """A database of many deliveries, most of which have come to an end."""
    async with opened(migrated_url) as database:

        async def fill(writer: Writer) -> None:
            await webhook_deliveries.insert_deliveries(
                writer, [delivery(number, place) for number in range(100) for place in range(200)]
            )

        await database.write(fill)
        if database.dialect == "postgresql":
            await execute(database, "ANALYZE webhook_deliveries")
        yield database


def delivery(number: int, place: int) -> DeliveryRow:
    state = (DeliveryState.DELIVERED, DeliveryState.FAILED, DeliveryState.PENDING)[number % 20 // 9]
    at = NOW - timedelta(seconds=number) if state is DeliveryState.PENDING else None
    id_ = f"whd_{200 * number + place:024x}"
    return DeliveryRow(id_, ENDPOINTS[place], "mtr_1", number, state, [], 0, at, None, NOW, NOW)


def size(found: Any) -> int:
    return int(found) if isinstance(found, bool) else len(found)


def plan_text(rows: Sequence[Any]) -> str:
    return "\n".join(str(row[-1]) for row in rows)


@pytest.mark.parametrize("name", QUESTIONS)
async def test_it_goes_by_its_index(filled: Database, name: str) -> None:
    ask, count, index = QUESTIONS[name]
    statements: list[tuple[str, Any]] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    async def explain(writer: Writer) -> str:
        event.listen(filled.engines[0].sync_engine, "before_cursor_execute", record)
        try:
            assert size(await ask(writer)) == count
        finally:
            event.remove(filled.engines[0].sync_engine, "before_cursor_execute", record)
        ((statement, parameters),) = statements
        how = "EXPLAIN" if writer.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
        assert writer._connection is not None
        result = await writer._connection.exec_driver_sql(f"{how} {statement}", parameters)
        return plan_text(result.all())

    plan = await filled.write(explain)
    if filled.dialect == "sqlite":
        # It names the indexes of keys by itself.
        index = index if index.endswith("_idx") else "sqlite_autoindex_webhook_deliveries_"
        # The first of an index is no scan of it.
        assert re.search(r"SCAN webhook_deliveries(?! USING INDEX webhook_deliveries_due_idx)", plan) is None
    else:
        assert "Seq Scan on webhook_deliveries" not in plan
        # Of a partition it is named after that.
        index = "is_new" if index == "events_new_idx" else index
    assert index in plan, plan


async def test_a_delivery_is_given_an_endpoint_once(filled: Database) -> None:
    async with filled.read() as reader:
        rows = await reader.fetch(text("SELECT count(*) AS found FROM webhook_deliveries"))
    assert rows[0].found == 20_000
