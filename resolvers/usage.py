"""The usage days that a query means, and those that it leaves blank."""

from collections.abc import Sequence
from datetime import date

from resolvers.errors import BadUserInput, LimitExceeded
from storage.usage import UsageDayRow

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
