"""What is changed of grants and holds behind the gateway's back is found by `tollgate verify`, which names the row.

Each case is undone by a rollback.
"""

import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from storage.engine.transactions import Reader
from storage.maintenance import audit
from storage.meters.billing_meters import billing_meters
from storage.meters.credit_grants import credit_grants
from storage.meters.holds import HoldRow, holds
from storage.meters.ledger import ledger_entries
from tests.conftest import empty_database, gateway_on, migrated
from tests.credit_tamperings import BROKEN, COLUMNS, RECORDED_ONCE
from tests.ledgers import Books, found_in, keep_credits, named
from tests.steps import disagreements


@pytest.fixture(scope="module")
async def books(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Books]:
    """Books that are found to be right, on a database of this module."""
    url = empty_database(dialect, request, tmp_path_factory.mktemp("tampered"))
    async with gateway_on(await migrated(url)) as gateway:
        yield Books(gateway, await keep_credits(gateway))


async def check(books: Books, statements: list[str], expected: list[str]) -> None:
    """Assert what is found first: what follows from it may be reported, too."""
    found = await found_in(books, statements)
    written = [
        re.sub("@([0-9:]+)", r"2026-03-16 \1+00:00", re.sub("@@([0-9:]+)", r"2026-03-17 \1+00:00", each))
        for each in expected
    ]
    assert found[: len(expected)] == [named(each, books.names) for each in written]
    assert bool(found) == bool(expected)


@pytest.mark.parametrize("name", COLUMNS)
async def test_a_column_that_is_changed_is_found(books: Books, name: str) -> None:
    statement, expected = COLUMNS[name]
    await check(books, [statement], expected)


@pytest.mark.parametrize("name", BROKEN)
async def test_a_rule_that_is_broken_is_found(books: Books, name: str) -> None:
    await check(books, *BROKEN[name])


@pytest.mark.parametrize(("at_once", "longest"), [(1, 1), (2, 1), (5, 2)])
async def test_no_more_holds_are_read_at_once_than_entries(
    books: Books, monkeypatch: pytest.MonkeyPatch, at_once: int, longest: int
) -> None:
    monkeypatch.setattr("resolvers.maintenance.verify.ENTRIES_AT_ONCE", at_once)
    read: list[int] = []
    by_seqs = audit.holds_by_seqs

    async def counted(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], HoldRow]:
        read.append(len(wanted))
        return await by_seqs(reader, wanted)

    monkeypatch.setattr(audit, "holds_by_seqs", counted)
    await check(books, [], [])
    # Three are closed, and one is open at the end.
    assert (sum(read), max(read)) == (4, longest)
    await check(books, *BROKEN["a hold that was committed for more, by no entry"])


def test_every_column_of_grants_and_holds_is_changed() -> None:
    of_both = {str(column) for table in (credit_grants, holds) for column in table.c}
    of_meters = {
        f"billing_meters.{name}" for name in ("held_credits", "pinned_credits", "open_holds", "max_open_holds")
    }
    of_meters |= {f"billing_meters.{name}" for name in ("has_grants", "has_holds", "next_due_at")}
    of_entries = {f"ledger_entries.{name}" for name in ("held_credits_after", "grant_seq", "hold_seq", "draws")}
    known = {str(column) for table in (billing_meters, ledger_entries) for column in table.c}
    assert of_meters | of_entries <= known
    changed = {name.partition(",")[0] for name in COLUMNS}
    assert changed == (of_both | of_meters | of_entries) - RECORDED_ONCE


async def test_what_is_overdue_by_more_than_a_minute_is_found(books: Books) -> None:
    gateway = books.gateway
    due = datetime(2026, 3, 16, 12, 15, 40, tzinfo=UTC)
    assert await disagreements(gateway.database, now=due + timedelta(minutes=1)) == []
    found = await disagreements(gateway.database, now=due + timedelta(minutes=1, microseconds=1))
    assert [each.message for each in found] == [
        "what was due at 2026-03-16 12:15:40+00:00 is not written, as a running gateway does within seconds"
    ]
    # Without a time, nothing is.
    assert await disagreements(gateway.database) == []
