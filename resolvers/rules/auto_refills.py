"""Automatic refills: when a meter asks for credits, for how many, and what becomes of a request.

A meter only ever asks: nothing here adds a credit. Whether it asks is a condition, which is looked at after each change
of the meter, and when time alone may have made it true. Amounts are credits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from resolvers.rules.events import NewEvent, request_shown
from resolvers.values import MAX_AMOUNT
from storage.meters.auto_refills import (
    MAX_COUNTED,
    AutoRefill,
    AutoRefillMode,
    AutoRefillRequestRow,
    AutoRefillRequestState,
    AutoRefillRow,
)
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventType

_State = AutoRefillRequestState

#: By this, `Known.moments` says when the condition is to be looked at, whatever happens to the meter.
MOMENT = "auto_refill"

#: The longest window, in seconds: what was requested before it counts against no cap.
MAX_WINDOW_SECONDS = 2_678_400


@dataclass(slots=True)
class RefillBook:
    """The automatic refill of a locked meter, and those of its requests that its commands may need.

    `requests` are by their numbers the newest, those that may count against the caps, and those that commands name.
    `known_since`: as many count from then on as pass every cap, and none before is known. None: all are known.
    """

    settings: AutoRefillRow
    requests: dict[int, AutoRefillRequestRow] = field(default_factory=dict)
    known_since: datetime | None = None
    before: AutoRefillRow | None = None
    """The settings as they are written; None: they are new."""
    changed: set[int] = field(default_factory=set)
    """The numbers of the requests that were made or changed."""

    @classmethod
    def of(cls, read: AutoRefill, counted: Sequence[AutoRefillRequestRow]) -> "RefillBook":
        """Return what was read of a meter."""
        newest = () if read.newest is None else (read.newest,)
        requests = {request.number: request for request in (*counted, *newest)}
        moments = [request.requested_at for request in counted]
        return cls(read.settings, requests, min(moments) if len(moments) >= MAX_COUNTED else None, read.settings)

    @property
    def newest(self) -> AutoRefillRequestRow | None:
        """The newest request; None: there is none yet."""
        return self.requests.get(self.settings.last_request)

    @property
    def shown(self) -> AutoRefill:
        """The automatic refill as it now is."""
        return AutoRefill(self.settings, self.newest)

    def set(self, **changes: Any) -> None:
        """Change the settings, or what has come of them."""
        self.settings = self.settings._replace(**changes)

    def change(self, request: AutoRefillRequestRow) -> None:
        """Know a request that has just been made or changed."""
        self.requests[request.number] = request
        self.changed.add(request.number)

    def clock(self, now: datetime) -> datetime:
        """Return the moment of what happens to requests: like a meter's time, theirs never runs backwards."""
        newest = self.newest
        return now if newest is None else max(now, newest.requested_at, newest.closed_at or now)

    def counted(self, now: datetime) -> list[AutoRefillRequestRow]:
        """Return the known requests that count against the caps at this moment, the oldest first."""
        since = self._since(now)
        found = [
            each for each in self.requests.values() if each.state is not _State.FAILED and each.requested_at > since
        ]
        return sorted(found, key=attrgetter("requested_at", "number"))

    def is_full(self, now: datetime) -> bool:
        """Whether the caps are passed at this moment by requests that are not all known."""
        return self.known_since is not None and self._since(now) < self.known_since

    def _since(self, now: datetime) -> datetime:
        return now - timedelta(seconds=self.settings.window_seconds)


def remaining_credits(meter: BillingMeterRow) -> int:
    """Return what is unspent of a meter, held credits included; below 0 where more is used than was granted."""
    return meter.total_credits - meter.used_credits


def asked_credits(settings: AutoRefillRow, remaining: int) -> int:
    """Return what is asked for where so much is unspent, which is less than `below`, if no cap cuts it."""
    if settings.mode is AutoRefillMode.TARGET:
        return settings.amount - remaining
    return -(-(settings.below - remaining) // settings.amount) * settings.amount


def fitting_credits(settings: AutoRefillRow, asked: int, room: int) -> int:
    """Return how much of what is asked for fits into the room: of `FIXED` whole steps."""
    if asked <= room or settings.mode is AutoRefillMode.TARGET:
        return max(0, min(asked, room))
    return max(0, room // settings.amount * settings.amount)


def look(meter: BillingMeterRow, book: RefillBook, now: datetime) -> tuple[list[NewEvent], datetime | None]:
    """Have the meter ask for credits if the condition holds; a request that is over is closed before.

    Return the events of it, and when time alone may make the condition true: later than `now`, or never.
    """
    now = book.clock(now)
    expire(book, now)
    settings, newest = book.settings, book.newest
    if newest is not None and newest.is_open:
        return [], newest.expires_at
    remaining = remaining_credits(meter)
    if not settings.is_enabled or settings.is_suspended or remaining >= settings.below:
        return [], None
    if newest is not None and newest.closed_at is not None:
        ready = newest.closed_at + timedelta(seconds=settings.cooldown_seconds)
        if ready > now:
            return [], ready
    counted = book.counted(now)
    asked = asked_credits(settings, remaining)
    amount = 0 if book.is_full(now) else _fitting(meter, settings, asked, counted)
    if amount:
        request = _request(book, amount, now)
        return [NewEvent(EventType.REFILL_REQUESTED, meter, now, request_shown(request))], request.expires_at
    events = []
    if not settings.is_capped:
        book.set(is_capped=True)
        events.append(NewEvent(EventType.REFILL_CAPPED, meter, now, _caps(settings)))
    return events, _room_at(meter, settings, asked, counted)


def expire(book: RefillBook, now: datetime) -> None:
    """Close the newest request if it is over."""
    newest = book.newest
    if newest is not None and newest.at(now) != newest:
        book.change(newest.at(now))


def _fitting(
    meter: BillingMeterRow, settings: AutoRefillRow, asked: int, counted: Sequence[AutoRefillRequestRow]
) -> int:
    """Return how much of what is asked for fits under the caps beside the requests that count; 0: nothing."""
    if len(counted) >= settings.max_refills:
        return 0
    room = settings.max_credits - sum(request.amount for request in counted)
    return fitting_credits(settings, asked, min(room, MAX_AMOUNT - meter.total_credits))


def _room_at(
    meter: BillingMeterRow, settings: AutoRefillRow, asked: int, counted: Sequence[AutoRefillRequestRow]
) -> datetime | None:
    """Return when so many of the requests that count have left the window that something fits; None: never."""
    window = timedelta(seconds=settings.window_seconds)
    for place, request in enumerate(counted, start=1):
        if _fitting(meter, settings, asked, counted[place:]):
            return request.requested_at + window
    return None


def _request(book: RefillBook, amount: int, now: datetime) -> AutoRefillRequestRow:
    settings = book.settings
    request = AutoRefillRequestRow(
        meter_id=settings.meter_id,
        number=settings.last_request + 1,
        amount=amount,
        state=_State.OPEN,
        requested_at=now,
        expires_at=now + timedelta(seconds=settings.request_seconds),
    )
    book.change(request)
    book.set(last_request=request.number, is_capped=False)
    return request


def fulfil(meter: BillingMeterRow, book: RefillBook, request: AutoRefillRequestRow, now: datetime) -> list[NewEvent]:
    """Close a request by the refill that is the meter's newest entry, whatever it has become; return the event."""
    is_late = not request.is_open
    book.change(
        request._replace(
            state=_State.FULFILLED, closed_at=now, failure=None, failure_key=None, entry_seq=meter.last_seq
        )
    )
    book.set(failures=0, last_failure=None)
    data = request_shown(request)
    return [NewEvent(EventType.REFILL_FULFILLED, meter, now, {"refill": data["refill"] | {"late": is_late}})]


def fail(meter: BillingMeterRow, book: RefillBook, failing: AutoRefillRequestRow, now: datetime) -> list[NewEvent]:
    """Close a request that is open or has expired, given with its failure and key; return the events."""
    now = book.clock(now)
    book.change(failing._replace(state=_State.FAILED, closed_at=now))
    settings = book.settings
    failures = min(settings.failures + 1, MAX_FAILURES_COUNTED)
    is_suspended = settings.is_suspended or failures >= settings.max_failures
    book.set(failures=failures, last_failure=failing.failure, is_suspended=is_suspended)
    events = [NewEvent(EventType.REFILL_FAILED, meter, now, request_shown(failing))]
    if is_suspended and not settings.is_suspended:
        events.append(NewEvent(EventType.REFILL_SUSPENDED, meter, now, {"refill": {"failures": failures}}))
    return events


#: Where the failures in a row stop being counted: what an `Int` of GraphQL holds.
MAX_FAILURES_COUNTED = 2**31 - 1


def _caps(settings: AutoRefillRow) -> dict[str, Any]:
    caps = {"maxRefills": settings.max_refills, "maxCredits": str(settings.max_credits)}
    return {"refill": caps | {"windowSeconds": settings.window_seconds}}
