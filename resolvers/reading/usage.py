"""The usage days that a query means, and those that it leaves blank."""

from collections.abc import Sequence
from datetime import date

from resolvers.bounds import Bounds
from resolvers.errors import BadUserInput, LimitExceeded
from resolvers.reading.keys import UsageOfMeter
from storage.engine.turns import turn_for
from storage.meters.usage import UsageDayRow

#: The days of a query that names none.
DEFAULT_DAYS = 30


def usage_days(first: date | None, last: date | None, *, today: date, most: int) -> tuple[date, date]:
    """Return the inclusive days that a query means, where `today` is the meter's.

    Neither given: the 30 days ending today; only the first: to today; only the last: the 30 days ending there.

    Raises `BadUserInput` when they are reversed or more than `most`.
    """
    last = last or today
    first = first or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
    if first > last:
        raise BadUserInput(f"from must not be after to: {first} is after {last}.")
    if (last - first).days >= most:
        raise BadUserInput(f"from and to must span at most {most} days; they span {(last - first).days + 1}.")
    return first, last


def with_zeros(
    days: Sequence[UsageDayRow], *, meter_id: str, first: date, last: date, usage_names: Sequence[str] | None, most: int
) -> list[UsageDayRow]:
    """Return the days and, between the first and the last, a row of 0 for each missing one.

    They are filled for the names asked for, else for those seen in the range. Raises `LimitExceeded` for more than
    `most` rows.
    """
    names = sorted(set(usage_names)) if usage_names is not None else sorted({day.usage_name for day in days})
    if len(names) * ((last - first).days + 1) > most:
        raise LimitExceeded(f"usage answers at most {most} usage days a meter; ask for fewer days or names.")
    known = {(day.day, day.usage_name): day for day in days}
    every_day = (date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1))
    return [known.get((day, name)) or UsageDayRow(meter_id, day, name, 0) for day in every_day for name in names]


def unforeseen_days(found: Sequence[Sequence[UsageDayRow]], wanted: Sequence[UsageOfMeter], *, names_a_day: int) -> int:
    """Return how many days are more than so many names a day, as nobody knows how many names there are."""
    count = sum(map(len, found)) - names_a_day * len(wanted)
    # There is a day in each range.
    return count if count <= 0 else count - names_a_day * sum((key.last - key.first).days for key in wanted)


async def all_with_zeros(
    found: Sequence[Sequence[UsageDayRow]],
    wanted: Sequence[UsageOfMeter],
    usage_names: Sequence[str] | None,
    bounds: Bounds,
) -> list[list[UsageDayRow]]:
    """Return the usage days of each meter with those that are missing, in turns with others who work long."""
    turn = await turn_for(sum((key.last - key.first).days + 1 for key in wanted) * len(usage_names or (None,)))
    filled = []
    for key, rows in zip(wanted, found, strict=True):
        if turn.is_over:
            await turn.next()
        filled.append(
            with_zeros(
                rows,
                meter_id=key.meter_id,
                first=key.first,
                last=key.last,
                usage_names=usage_names,
                most=bounds.usage_days,
            )
        )
    return filled
