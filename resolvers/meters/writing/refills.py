"""What a group of commands reads, decides and writes of the automatic refills of its meters."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from resolvers.rules.auto_refills import MAX_WINDOW_SECONDS, MOMENT, RefillBook, expire, look
from resolvers.rules.booking import next_due
from resolvers.rules.commands import Known
from resolvers.rules.credits import by_meter
from storage import ids
from storage.engine.transactions import Writer
from storage.meters import auto_refills
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import LedgerEntryKind, LedgerKey


class _Locked(Protocol):
    """A meter that the transaction has locked: see `group.LockedMeter`."""

    meter: BillingMeterRow
    known: Known

    @property
    def now(self) -> datetime: ...


async def read_refills(writer: Writer, meters: Mapping[str, _Locked], wanted: Sequence[LedgerKey]) -> None:
    """Read the automatic refills of these meters, with the requests that count and those that the keys name."""
    found = await auto_refills.by_meters(writer, [*meters])
    longest = timedelta(seconds=MAX_WINDOW_SECONDS)
    counted = await auto_refills.counted(writer, {id_: of.now - longest for id_, of in meters.items()})
    of_meters = by_meter(counted)
    for meter_id, refill in found.items():
        meters[meter_id].known.refills = RefillBook.of(refill, of_meters[meter_id])
    named = {
        place
        for meter_id, kind, key in wanted
        if kind is LedgerEntryKind.REFILL
        and (place := ids.parse_numbered_id(key, ids.AUTO_REFILL_REQUEST)) is not None
        and place[0] == meter_id
        and (book := meters[meter_id].known.refills if meter_id in meters else None) is not None
        and place[1] not in book.requests
    }
    for (meter_id, number), request in (await auto_refills.by_numbers(writer, [*named]) if named else {}).items():
        book = meters[meter_id].known.refills
        assert book is not None  # noqa: S101  # It was among those that were read.
        book.requests[number] = request


def expire_request(of: _Locked) -> None:
    """Close the meter's open request if it is over, before a command may close it in another way."""
    if of.known.refills is not None:
        expire(of.known.refills, of.known.refills.clock(of.now))


def look_at_refill(of: _Locked) -> None:
    """Have a meter that has an automatic refill ask for credits if it wants any, and know when to look again."""
    if of.known.refills is None:
        return
    events, moment = look(of.meter, of.known.refills, of.now)
    of.known.events += events
    of.known.moments.pop(MOMENT, None)
    if moment is not None:
        of.known.moments[MOMENT] = moment
    of.meter = of.meter._replace(next_due_at=next_due(of.meter, of.known))


async def write_refills(writer: Writer, meters: Collection[_Locked]) -> None:
    """Write the automatic refills and requests of the meters that were made or changed."""
    books = [book for of in meters if (book := of.known.refills) is not None]
    if made := [book.settings for book in books if book.before is None]:
        await auto_refills.insert_auto_refills(writer, made)
    if kept := [book.settings for book in books if book.before not in (None, book.settings)]:
        await auto_refills.update_auto_refills(writer, kept)
    requests = [
        (book.before is None or number > book.before.last_request, book.requests[number])
        for book in books
        for number in sorted(book.changed)
    ]
    if new := [request for is_new, request in requests if is_new]:
        await auto_refills.insert_requests(writer, new)
    if closed := [request for is_new, request in requests if not is_new]:
        await auto_refills.update_requests(writer, closed)
