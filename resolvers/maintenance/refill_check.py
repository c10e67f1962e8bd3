"""One meter's automatic refill and its requests, held against its ledger, its events, and the condition itself."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import orjson

from resolvers.meters.auto_refills import RANGES
from resolvers.rules.auto_refills import RefillBook, look
from resolvers.rules.booking import OVERDUE
from storage import ids
from storage.meters.auto_refills import AutoRefillMode, AutoRefillRequestRow, AutoRefillRequestState, AutoRefillRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventType
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

_State = AutoRefillRequestState


class RefillEvent(NamedTuple):
    """An event of an automatic refill, as it is kept."""

    meter_id: str
    number: int
    type: str
    payload: str


class RefillRows(NamedTuple):
    """What there is of a meter's automatic refill. `since`: what came before has no event any more; None: all have."""

    settings: AutoRefillRow | None = None
    requests: Sequence[AutoRefillRequestRow] = ()
    events: Sequence[RefillEvent] = ()
    since: datetime | None = None


@dataclass(slots=True)
class RefillCheck:
    """Gathers the refills of one meter's ledger that fulfil requests, and then holds the rows against them."""

    refills: dict[int, tuple[str, int, datetime]] = field(default_factory=dict)
    """By `seq` the key, the amount and the moment of each."""

    def follow(self, entry: LedgerEntryRow) -> None:
        """Take the next entry."""
        key = entry.key
        is_request = key is not None and ids.parse_numbered_id(key, ids.AUTO_REFILL_REQUEST) is not None
        if entry.kind is LedgerEntryKind.REFILL and key is not None and is_request:
            self.refills[entry.seq] = (key, entry.amount, entry.recorded_at)

    def finish(self, meter: BillingMeterRow, rows: RefillRows, now: datetime | None) -> Iterator[str]:
        """Hold the rows against the refills and, where the time is given, what is due against it."""
        requests = sorted(rows.requests, key=lambda request: request.number)
        if meter.has_auto_refill != (rows.settings is not None):
            yield f"its has_auto_refill is {meter.has_auto_refill} and should be {rows.settings is not None}"
        yield from self._requests(requests)
        by_id = {request.id: request for request in requests}
        for seq, (key, _, _) in self.refills.items():
            if key not in by_id:
                yield f"entry {seq}: its key is {key}, a request that the meter never made"
            elif by_id[key].entry_seq != seq:
                yield f"entry {seq}: its request is fulfilled by entry {by_id[key].entry_seq}"
        yield from _events(by_id, rows)
        if rows.settings is None:
            if requests:
                yield "it has requests, and no automatic refill"
            return
        yield from _settings(rows.settings, requests)
        yield from _condition(meter, rows.settings, requests, now)

    def _requests(self, requests: Sequence[AutoRefillRequestRow]) -> Iterator[str]:
        before: AutoRefillRequestRow | None = None
        for place, request in enumerate(requests, start=1):
            messages = [*_form(request), *self._fulfilled(request)]
            if request.number != place:
                messages.append(f"its number should be {place}")
            if before is not None and request.requested_at < before.requested_at:
                messages.append(f"it was made at {request.requested_at}, before the one before it")
            if before is not None and before.at(request.requested_at).is_open:
                messages.append("it was made while the one before it was open")
            yield from (f"request {request.number}: {message}" for message in messages)
            before = request

    def _fulfilled(self, request: AutoRefillRequestRow) -> Iterator[str]:
        """Hold a request against the refill that it names."""
        if (request.entry_seq is None) == (request.state is _State.FULFILLED):
            yield f"it is {request.state.value}, and its entry is {request.entry_seq}"
        if request.entry_seq is not None:
            is_, should_be = self.refills.get(request.entry_seq), (request.id, request.amount, request.closed_at)
            if is_ != should_be:
                yield f"entry {request.entry_seq} is not the refill of {request.amount} that fulfils it at its end"


def _form(request: AutoRefillRequestRow) -> Iterator[str]:
    """Hold the fields of a request against its state."""
    least, most = RANGES["requestSeconds"][1:]
    if request.amount < 1:
        yield f"its amount is {request.amount}"
    if not least <= (request.expires_at - request.requested_at).total_seconds() <= most:
        yield f"it is from {request.requested_at} to {request.expires_at}"
    if request.is_open != (request.closed_at is None):
        yield f"it is {request.state.value}, and was closed at {request.closed_at}"
    if request.state is _State.EXPIRED and request.closed_at != request.expires_at:
        yield f"it expired at {request.closed_at} and should have at {request.expires_at}"
    has_failed = request.state is _State.FAILED
    for name in ("failure", "failure_key"):
        if (getattr(request, name) is not None) != has_failed:
            yield f"it is {request.state.value}, and its {name} is {getattr(request, name)!r}"


def _settings(settings: AutoRefillRow, requests: Sequence[AutoRefillRequestRow]) -> Iterator[str]:
    for name, (column, least, most) in RANGES.items():
        if not least <= (value := getattr(settings, column)) <= most:
            yield f"the {name} of its automatic refill is {value}"
    if settings.mode is AutoRefillMode.TARGET and settings.amount < settings.below:
        yield f"the amount of its automatic refill is {settings.amount}, a target below {settings.below}"
    newest = requests[-1].number if requests else 0
    if settings.last_request != newest:
        yield f"the last_request of its automatic refill is {settings.last_request} and should be {newest}"
    reasons = [request.failure for request in requests if request.state is _State.FAILED]
    if not 0 <= settings.failures <= len(reasons):
        yield f"the failures of its automatic refill are {settings.failures}, and {len(reasons)} requests have failed"
    elif settings.last_failure not in (reasons if settings.failures else [None]):
        yield f"the last_failure of its automatic refill is {settings.last_failure!r}, which is no request's"


def _events(by_id: dict[str, AutoRefillRequestRow], rows: RefillRows) -> Iterator[str]:
    """Hold the events of requests against them: one for each step, as far back as events are kept."""
    found: Counter[tuple[str, str]] = Counter()
    for event in rows.events:
        about = orjson.loads(event.payload)["data"]["refill"]
        if "requestId" not in about:
            continue
        request = by_id.get(about["requestId"])
        if request is None or about["amount"] != str(request.amount):
            yield f"event {event.number}: it is of a request of {about['amount']} that the meter never made"
            continue
        found[request.id, event.type] += 1
    for request in by_id.values():
        is_fulfilled, has_failed = request.state is _State.FULFILLED, request.state is _State.FAILED
        for type_, least, most in (
            (EventType.REFILL_REQUESTED, 1, 1),
            (EventType.REFILL_FULFILLED, int(is_fulfilled), int(is_fulfilled)),
            # One that is fulfilled may have failed before.
            (EventType.REFILL_FAILED, int(has_failed), int(has_failed or is_fulfilled)),
        ):
            count = found[request.id, type_]
            is_kept = rows.since is None or request.requested_at > rows.since
            if count > most or (count < least and is_kept):
                yield f"request {request.number}: it has {count} events {type_.value}"


def _condition(
    meter: BillingMeterRow, settings: AutoRefillRow, requests: Sequence[AutoRefillRequestRow], now: datetime | None
) -> Iterator[str]:
    """Check that the meter has asked if it meets the condition, and is looked at when time may make it do so."""
    last = settings.last_request

    def looked(at: datetime) -> tuple[bool, datetime | None]:
        book = RefillBook(settings, {request.number: request for request in requests})
        _, moment = look(meter, book, at)
        return book.settings.last_request > last, moment

    if last and all(request.number != last for request in requests):
        return
    has_asked, moment = looked(meter.updated_at)
    if has_asked:
        yield "it meets the condition of its automatic refill, and has not asked"
    elif moment is not None and (meter.next_due_at is None or meter.next_due_at > moment):
        yield f"its automatic refill is to be looked at at {moment}, and it says {meter.next_due_at}"
    elif now is not None and moment is not None and moment < now - OVERDUE:
        yield f"its automatic refill was to be looked at at {moment}, as a running gateway does within seconds"
