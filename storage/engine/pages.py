"""Pages of lists ordered by id, newest first, by keyset: a deep page costs what the first one costs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    UnaryExpression,
    bindparam,
    literal_column,
    select,
    true,
)
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.types import TypeEngine

from storage.engine.statements import Prepared, in_bucket, keys_table


class Page(NamedTuple):
    """Which rows of a list, newest first: `limit` of those strictly between two ids, from the newest or the oldest on.

    One row more than `limit` is read, which shows whether there is another page.
    """

    limit: int
    older_than: str | int | None = None
    newer_than: str | int | None = None
    backward: bool = False

    @property
    def shape(self) -> "Page":
        """The page without its cursors' ids: pages of one shape have one statement, whose parameters these are."""
        return self._replace(
            older_than=None if self.older_than is None else "", newer_than=None if self.newer_than is None else ""
        )

    @property
    def parameters(self) -> dict[str, str | int]:
        """The parameters of the page's statement: the ids of its cursors."""
        cursors = {_OLDER: self.older_than, _NEWER: self.newer_than}
        return {name: id_ for name, id_ in cursors.items() if id_ is not None}


_OLDER, _NEWER = "older_than", "newer_than"


def between(page: Page, id_column: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """Return the conditions that keep the ids between the page's two cursors, which are the page's `parameters`."""
    conditions: list[ColumnElement[bool]] = []
    if page.older_than is not None:
        conditions.append(id_column < bindparam(_OLDER, type_=_type_of(id_column)))
    if page.newer_than is not None:
        conditions.append(id_column > bindparam(_NEWER, type_=_type_of(id_column)))
    return conditions


def _type_of(id_column: ColumnElement[Any]) -> TypeEngine[Any]:
    return BigInteger() if isinstance(id_column.type, BigInteger) else Text()


def page_order(page: Page, id_column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the order in which the page is read: from its near end to its far end."""
    return id_column.asc() if page.backward else id_column.desc()


def page_statement(statement: Select[Any], id_column: ColumnElement[Any], page: Page) -> Select[Any]:
    """Return the statement's rows of this page, in the order of reading, and one more.

    It has the page's `parameters`.
    """
    # PostgreSQL plans a statement once, and not at each run, where it knows how many rows are wanted.
    limit = literal_column(str(page.limit + 1), Integer())
    return statement.where(*between(page, id_column)).order_by(page_order(page, id_column)).limit(limit)


Row = TypeVar("Row")


def on_page(page: Page, rows: Iterable[Row], id_of: Callable[[Row], Any]) -> list[Row]:
    """Return those of the rows that are on the page, in the order of reading, and one more."""
    older_than, newer_than = page.older_than, page.newer_than
    found = [
        row
        for row in sorted(rows, key=id_of, reverse=not page.backward)
        if (older_than is None or id_of(row) < older_than) and (newer_than is None or id_of(row) > newer_than)
    ]
    return found[: page.limit + 1]


def unindexed(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Return the column so that SQLite goes by no index of it; PostgreSQL knows what its tables hold, and chooses.

    Without statistics, SQLite takes two constants of the tenant, or the order of the ids, for narrower than whatever is
    asked for besides, and reads all rows of the tenant. So a list that is filtered leaves it one index to go by.
    """
    if dialect == "postgresql":
        return column
    # In SQLite's own words: a unary plus changes nothing, and makes a term of no use to an index.
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def numbered_pages(
    dialect: str,
    table: Table,
    page: Page,
    *conditions: ColumnElement[bool],
    columns: Sequence[ColumnElement[Any]],
    wanted: FromClause | None = None,
    number: str = "seq",
) -> Prepared:
    """Return the statement of a page for each meter that `keys` names, of a table whose key is (meter id, `number`).

    It reads no more rows than are on the pages, and has the page's `parameters` and those of the conditions. `wanted`
    is the table of the keys where these are more than the meters' ids, which come first.
    """
    wanted = keys_table(dialect, meter_id=Text()) if wanted is None else wanted
    other = table if dialect == "postgresql" else table.alias("on_page")
    some = select(*(columns if dialect == "postgresql" else [other.c[number]])).where(
        in_bucket(other),
        other.c.meter_id == wanted.c.meter_id,
        *[_of(condition, table, other) for condition in conditions],
    )
    paged = page_statement(some.correlate(wanted), other.c[number], page)
    if dialect == "postgresql":
        each = paged.lateral()
        return Prepared(dialect, select(*each.c).select_from(wanted).join(each, true()))
    # SQLite joins a table with no rows that hang on the table, but it looks up numbers that do.
    is_on_page = in_bucket(table) & (table.c.meter_id == wanted.c.meter_id) & table.c[number].in_(paged)
    return Prepared(dialect, select(*columns).select_from(wanted).join(table, is_on_page))


def _of(condition: ColumnElement[bool], table: Table, other: FromClause) -> ColumnElement[bool]:
    """Return the condition on another name of the table."""
    return ClauseAdapter(other).traverse(condition) if other is not table else condition
