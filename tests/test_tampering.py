"""What is changed behind the gateway's back is found by `tollgate verify`, which names the row.

Each case changes rows so that the sums still agree where they can, and is undone by a rollback.
"""

from collections.abc import AsyncIterator

import pytest

from resolvers.maintenance.entry_rules import OPTIONAL_FIELDS, RULES
from storage.meters.ledger import LedgerEntryKind, ledger_entries
from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.ledgers import Books, found_in, keep_books, named
from tests.tamperings import TAMPERINGS, day, entry, meter


@pytest.fixture(scope="module")
async def books(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Books]:
    """Books that are found to be right, on a database of this module."""
    url = empty_database(dialect, request, tmp_path_factory.mktemp("tampered"))
    async with gateway_on(await migrated(url)) as gateway:
        yield Books(gateway, await keep_books(gateway))


@pytest.mark.parametrize("name", TAMPERINGS)
async def test_what_is_changed_is_found(books: Books, name: str) -> None:
    statements, expected = TAMPERINGS[name]
    assert await found_in(books, statements) == [named(each, books.names) for each in expected]


@pytest.mark.slow
async def test_what_sqlite_keeps_of_another_type_is_found(on_sqlite: Gateway) -> None:
    names = await keep_books(on_sqlite)
    books = Books(on_sqlite, names)
    assert await found_in(books, []) == []
    for statement, expected in (
        (
            entry(2, "amount = 'ten'"),
            "entry 2: it cannot be read: it holds a value of another type than its column's",
        ),
        (entry(2, "recorded_at = 'noon'"), "entry 2: it cannot be read: Invalid isoformat string: 'noon'"),
        (entry(2, "day = 'today'"), "entry 2: it cannot be read: Invalid isoformat string: 'today'"),
        (meter("used_credits = 'x'"), "it cannot be read: it holds a value of another type than its column's"),
        (meter("created_at = 'noon'"), "it cannot be read: Invalid isoformat string: 'noon'"),
        (
            day("2026-03-15", "day = '2026-13'"),
            "of its usage days: it cannot be read: Invalid isoformat string: '2026-13'",
        ),
    ):
        assert (await found_in(books, [statement]))[0] == f"{names['M']} {expected}"


def test_each_kind_has_its_rule_and_each_field_that_may_be_empty_stands_in_one() -> None:
    assert set(RULES) == set(LedgerEntryKind)
    nullable = {column.name for column in ledger_entries.c if column.nullable}
    # The limit, too, may be empty: where there is none.
    assert set(OPTIONAL_FIELDS) == nullable - {"limit_credits"} | {"metadata"}
    for rule in RULES.values():
        assert not rule.has & rule.may_have
        assert rule.has | rule.may_have <= set(OPTIONAL_FIELDS)
