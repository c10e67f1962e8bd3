"""Pages of lists ordered by id, newest first, by keyset: a deep page costs what the first one costs."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, Text, UnaryExpression, bindparam, literal_column
from sqlalchemy.sql.operators import custom_op


class Page(NamedTuple):
    """Which rows of a list, newest first: `limit` of those strictly between two ids, from the newest or the oldest on.

    One row more than `limit` is read, which shows whether there is another page.
    """

    limit: int
    older_than: str | None = None
    newer_than: str | None = None
    backward: bool = False

    @property
    def shape(self) -> "Page":
        """The page without its cursors' ids: pages of one shape have one statement, whose parameters these are."""
        return self._replace(
            older_than=None if self.older_than is None else "", newer_than=None if self.newer_than is None else ""
        )

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the page's statement: the ids of its cursors."""
        cursors = {_OLDER: self.older_than, _NEWER: self.newer_than}
        return {name: id_ for name, id_ in cursors.items() if id_ is not None}


_OLDER, _NEWER = "older_than", "newer_than"


def between(page: Page, id_column: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """Return the conditions that keep the ids between the page's two cursors, which are the page's `parameters`."""
    conditions: list[ColumnElement[bool]] = []
    if page.older_than is not None:
        conditions.append(id_column < bindparam(_OLDER, type_=Text()))
    if page.newer_than is not None:
        conditions.append(id_column > bindparam(_NEWER, type_=Text()))
    return conditions


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


def unindexed(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Return the column so that SQLite goes by no index of it; PostgreSQL knows what its tables hold, and chooses.

    Without statistics, SQLite takes two constants of the tenant, or the order of the ids, for narrower than whatever is
    asked for besides, and reads all rows of the tenant. So a list that is filtered leaves it one index to go by.
    """
    if dialect == "postgresql":
        return column
    # In SQLite's own words: a unary plus changes nothing, and makes a term of no use to an index.
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)
