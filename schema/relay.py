"""Relay's `Node` and connections: objects by their ids, and lists of them in pages, newest first.

A cursor is the id of its row, made opaque, and holds still while rows are added. One that is not of the list it is
given to is refused.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Generic, NamedTuple, TypeAlias, TypeVar, cast

import strawberry

from resolvers.context import Context
from resolvers.errors import BadUserInput
from schema.engine.execution.records import RecordType
from schema.engine.limits.sizes import AN_ID, AS_ABOVE, Asked, of_bytes, records
from schema.info import given
from storage import ids
from storage.engine.pages import Page

#: How many rows a page has when none are asked for, if it may have as many.
DEFAULT_PAGE = 25

First: TypeAlias = Annotated[
    int | None,
    strawberry.argument(
        description=(
            "How many of the newest rows to return, 1 to 100, or fewer where the operator says so; 25 when neither "
            "`first` nor `last` is given."
        )
    ),
]
After: TypeAlias = Annotated[
    str | None, strawberry.argument(description="Return rows that come after this cursor, which are older.")
]
Last: TypeAlias = Annotated[
    int | None,
    strawberry.argument(
        description=(
            "How many of the oldest rows to return, 1 to 100, or fewer where the operator says so; not together with "
            "`first`."
        )
    ),
]
Before: TypeAlias = Annotated[
    str | None, strawberry.argument(description="Return rows that come before this cursor, which are newer.")
]

Row = TypeVar("Row")
NodeType = TypeVar("NodeType")

#: The longest cursor, in bytes of JSON.
_CURSOR = of_bytes(80)


@strawberry.interface(description="An object that can be fetched again by its id.")
class Node(RecordType):
    """What has an opaque id, unique among all objects."""

    id: strawberry.ID = strawberry.field(
        description="The object's opaque id, unique among all objects.", metadata=AN_ID
    )


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    """Relay's page information."""

    has_next_page: bool = strawberry.field(description="Whether there are rows after this page, which are older.")
    has_previous_page: bool = strawberry.field(description="Whether there are rows before this page, which are newer.")
    start_cursor: str | None = strawberry.field(
        description="The cursor of the page's first row; null: the page is empty.", metadata=_CURSOR
    )
    end_cursor: str | None = strawberry.field(
        description="The cursor of the page's last row; null: the page is empty.", metadata=_CURSOR
    )


@strawberry.type(description="One row of a page.")
class Edge(Generic[NodeType]):
    """A row and its place."""

    cursor: str = strawberry.field(
        description="The row's place in the list, for `after` and `before`.", metadata=_CURSOR
    )
    node: NodeType = strawberry.field(description="The row.", metadata=AS_ABOVE)


@strawberry.type(description="One page of a list, newest first.")
class Connection(Generic[NodeType]):
    """A page of rows."""

    edges: list[Edge[NodeType]] = strawberry.field(
        description="The rows of the page with their cursors.", metadata=AS_ABOVE
    )
    nodes: list[NodeType] = strawberry.field(description="The rows of the page.", metadata=AS_ABOVE)
    page_info: PageInfo = strawberry.field(description="Where the page lies in its list.")


def _rows_of_page(asked: Asked) -> int:
    wanted = asked.arguments.get("first") or asked.arguments.get("last")
    # What is out of range is refused where the page is read.
    return min(max(wanted, 1) if isinstance(wanted, int) else DEFAULT_PAGE, asked.bounds.page_rows)


#: The metadata of a field that is a connection.
PAGE = records(_rows_of_page)


class PageArguments(NamedTuple):
    """A page as a caller asks for it: checked, with the ids that its cursors stand for."""

    limit: int
    after: str | None
    before: str | None
    backward: bool

    @property
    def page(self) -> Page:
        """The page as the repositories take it."""
        return Page(self.limit, older_than=self.after, newer_than=self.before, backward=self.backward)


def page_arguments(
    context: Context, prefix: str, first: int | None, after: str | None, last: int | None, before: str | None
) -> PageArguments:
    """Return the page that a list of ids with this prefix is asked for.

    Raises `BadUserInput` for `first` with `last`, for fewer than 1 row or more than the bounds allow, and for a foreign
    cursor.
    """
    first, after, last, before = given(first), given(after), given(last), given(before)
    most = context.bounds.page_rows
    if first is not None and last is not None:
        raise BadUserInput("first and last exclude each other.")
    for name, limit in (("first", first), ("last", last)):
        if limit is not None and not 1 <= limit <= most:
            raise BadUserInput(f"{name} must be 1 to {most}; it is {limit}.")
    return PageArguments(
        limit=first or last or min(DEFAULT_PAGE, most),
        after=_id_of("after", after, prefix),
        before=_id_of("before", before, prefix),
        backward=last is not None,
    )


class _RowPage(Generic[Row]):
    """A page of rows, with the attributes of `Connection`, made when they are asked for.

    The rows are in the order of reading, where one row too many shows that there are more.
    """

    def __init__(
        self,
        arguments: PageArguments,
        rows: Sequence[Row],
        *,
        id_of: Callable[[Row], str],
    ) -> None:
        self._arguments = arguments
        self._is_more = len(rows) > arguments.limit
        shown = rows[: arguments.limit]
        self.nodes: Sequence[Row] = shown[::-1] if arguments.backward else shown
        """The rows of the page."""
        self._id_of = id_of

    @cached_property
    def edges(self) -> list[Edge[Row]]:
        """The same with their cursors."""
        return [Edge(cursor=self._cursor(row), node=row) for row in self.nodes]

    @property
    def page_info(self) -> PageInfo:
        """Where the page lies in its list."""
        arguments, rows = self._arguments, self.nodes
        return PageInfo(
            has_next_page=arguments.before is not None or (self._is_more and not arguments.backward),
            has_previous_page=arguments.after is not None or (self._is_more and arguments.backward),
            start_cursor=self._cursor(rows[0]) if rows else None,
            end_cursor=self._cursor(rows[-1]) if rows else None,
        )

    def _cursor(self, row: Row) -> str:
        return _cursor(self._id_of(row))


def connection_of(
    arguments: PageArguments,
    rows: Sequence[Row],
    node_type: type[NodeType],  # noqa: ARG001  # For the type checker: the rows are records of it.
    *,
    id_of: Callable[[Row], str],
) -> Connection[NodeType]:
    """Return the page of these rows, in the order of reading, where one row too many shows that there are more."""
    return cast("Connection[NodeType]", _RowPage(arguments, rows, id_of=id_of))


def _cursor(id_: str) -> str:
    return base64.urlsafe_b64encode(id_.encode()).decode().rstrip("=")


def _id_of(name: str, cursor: str | None, prefix: str) -> str | None:
    if cursor is None:
        return None
    try:
        id_ = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        id_ = ""
    is_numbered = prefix in ids.NUMBERED
    is_of_list = ids.parse_numbered_id(id_, prefix) is not None if is_numbered else ids.is_id(id_, prefix)
    if not is_of_list:
        raise BadUserInput(f"{name} is not a cursor of this list.")
    return id_


#: The lists of a meter, by the prefixes of their ids.
_LISTS = {
    ids.LEDGER_ENTRY: "ledger",
    ids.CREDIT_GRANT: "credit grants",
    ids.HOLD: "holds",
    ids.AUTO_REFILL_REQUEST: "requests",
}


def seq_of(cursor_id: str | None, prefix: str, meter_id: str) -> int | None:
    """Return the number that a cursor of a meter's list stands for. Raises `BadUserInput` for another meter's."""
    if cursor_id is None:
        return None
    of_meter, seq = ids.parse_numbered_id(cursor_id, prefix) or ("", 0)
    if of_meter != meter_id:
        raise BadUserInput(f"after and before must be cursors of this meter's {_LISTS[prefix]}.")
    return seq
