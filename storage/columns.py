"""Many records of one class, by their columns."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

R = TypeVar("R", bound=tuple[Any, ...])


class Columns(Sequence[R]):
    """Records of a named tuple's class, kept as one list for each of its fields.

    Where there are thousands, making a record of each takes longer than all that is done with it. Whoever goes through
    them gets records; whoever can, takes a column.
    """

    __slots__ = ("_class", "_columns")

    def __init__(self, class_: type[R], columns: Sequence[Sequence[Any]]) -> None:
        self._class: Any = class_
        self._columns = columns

    def column(self, name: str) -> Sequence[Any]:
        """Return the values of a field, in the order of the records."""
        return self._columns[self._class._fields.index(name)]

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[R]:
        return map(self._class._make, zip(*self._columns, strict=True))

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Columns[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Columns[R]":
        if isinstance(index, slice):
            return Columns(self._class, [column[index] for column in self._columns])
        record: R = self._class._make([column[index] for column in self._columns])
        return record
