"""Many records of one class, by their columns."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

R = TypeVar("R", bound=tuple[Any, ...])


class Columns(Sequence[R]):
    """Records of a named tuple's class, kept as one list for each of its fields, or a stretch of such records.

    Where there are thousands, making a record of each takes longer than all that is done with it. Iteration makes the
    records one by one; `column` makes none.
    """

    __slots__ = ("class_", "columns", "places")

    def __init__(self, class_: type[R], columns: Sequence[Sequence[Any]], places: slice | None = None) -> None:
        self.class_: Any = class_
        """The class of the records."""
        self.columns = columns
        """The lists that the records, and perhaps others, are kept in."""
        self.places = places if places is not None else slice(0, len(columns[0]))
        """Where they are in the lists."""

    def column(self, name: str) -> Sequence[Any]:
        """Return the values of a field, in the order of the records."""
        return self.columns[self.class_._fields.index(name)][self.places]

    def __len__(self) -> int:
        return self.places.stop - self.places.start

    def __iter__(self) -> Iterator[R]:
        return map(self.class_._make, zip(*[column[self.places] for column in self.columns], strict=True))

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Columns[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Columns[R]":
        places = range(self.places.start, self.places.stop)[index]
        if isinstance(places, int):
            record: R = self.class_._make([column[places] for column in self.columns])
            return record
        if places.step == 1:
            return Columns(self.class_, self.columns, slice(places.start, max(places.start, places.stop)))
        return Columns(self.class_, [[column[place] for place in places] for column in self.columns])


def joined(stretches: Sequence[Sequence[Any]]) -> Columns[Any] | None:
    """Return all the records of stretches that follow one another in the same lists; None: they are no such."""
    first = stretches[0]
    if not isinstance(first, Columns):
        return None
    end = first.places.start
    for stretch in stretches:
        if not (isinstance(stretch, Columns) and stretch.columns is first.columns and stretch.places.start == end):
            return None
        end = stretch.places.stop
    return Columns(first.class_, first.columns, slice(first.places.start, end))
