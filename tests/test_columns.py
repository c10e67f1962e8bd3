"""Records by their columns: stretches of lists that others share."""

from typing import Any, NamedTuple

import pytest

from storage.engine.columns import Columns, joined


class Point(NamedTuple):
    x: int
    y: str


LISTS: list[list[Any]] = [[0, 1, 2, 3, 4, 5], list("abcdef")]
RECORDS = [Point(x, y) for x, y in zip(*LISTS, strict=True)]


@pytest.mark.parametrize("places", [None, slice(0, 6), slice(2, 5), slice(3, 3)], ids=str)
def test_it_is_the_sequence_of_its_records(places: slice | None) -> None:
    columns = Columns(Point, LISTS, places)
    records = RECORDS[places or slice(None)]
    assert list(columns) == records
    assert len(columns) == len(records)
    assert columns.column("y") == [record.y for record in records]
    assert list(reversed(columns)) == records[::-1]
    for first in range(-7, 8):
        for last in range(-7, 8):
            assert list(columns[first:last]) == records[first:last]
            assert list(columns[first:last:-2]) == records[first:last:-2]
    for place in range(-len(records), len(records)):
        assert columns[place] == records[place]
    for place in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            columns[place]


def test_stretches_that_follow_one_another_are_joined() -> None:
    stretches = [Columns(Point, LISTS, slice(*places)) for places in ((1, 2), (2, 2), (2, 5))]
    together = joined(stretches)
    assert together is not None
    assert list(together) == RECORDS[1:5]


@pytest.mark.parametrize(
    "stretches",
    [
        [Columns(Point, LISTS, slice(0, 2)), Columns(Point, LISTS, slice(3, 4))],
        [Columns(Point, LISTS, slice(2, 4)), Columns(Point, LISTS, slice(0, 2))],
        [Columns(Point, LISTS, slice(0, 2)), Columns(Point, list(LISTS), slice(2, 4))],
        [Columns(Point, LISTS, slice(0, 2)), RECORDS[2:4]],
        [RECORDS[:2], RECORDS[2:4]],
    ],
    ids=["a gap", "another order", "other lists", "a list after", "lists"],
)
def test_others_are_not(stretches: list[Columns[Point]]) -> None:
    assert joined(stretches) is None
