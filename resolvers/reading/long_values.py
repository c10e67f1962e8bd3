"""JSON values that pages leave out of their rows because they are long: see `storage.engine.long_values`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Table

from storage.customers import CustomerRow, customers
from storage.engine.long_values import json_values
from storage.engine.transactions import Reader
from storage.meters.credit_grants import CreditGrantRow, credit_grants
from storage.meters.holds import HoldRow, holds
from storage.meters.ledger import LedgerEntryRow, ledger_entries


class LongValue(NamedTuple):
    """The key of a JSON value that its row was read without: the rows' class, the value's name, the primary key."""

    rows: type
    name: str
    key: tuple[Any, ...]

    @classmethod
    def of(cls, row: Any, name: str) -> "LongValue":
        """Return the key of the value of this name of the row, which is of one of `TABLES`."""
        key = (row.id,) if type(row) is CustomerRow else (row.meter_id, row.seq)
        return cls(type(row), name, key)


#: The tables that have such values.
TABLES: dict[type, Table] = {
    CustomerRow: customers,
    LedgerEntryRow: ledger_entries,
    CreditGrantRow: credit_grants,
    HoldRow: holds,
}


async def values_of(reader: Reader, keys: Sequence[LongValue]) -> list[Any]:
    """Return the values of these keys, all of rows of one class and of one name."""
    column = TABLES[keys[0].rows].c[keys[0].name]
    found = await json_values(reader, column, [key.key for key in keys])
    return [found[key.key] for key in keys]
