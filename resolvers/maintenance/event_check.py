"""One meter's events, held against its ledger.

The oldest events are deleted in time, and what happened before there were any has none: so an entry is asked for its
event only where an older one of the meter is still there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import orjson

from resolvers.maintenance.entry_rules import UNREADABLE, unreadable
from resolvers.rules.events import EVENT_OF_KIND
from storage import ids
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventRow, EventType
from storage.meters.ledger import LedgerEntryRow

#: How many messages are kept of a meter's events.
MAX_MESSAGES = 100

_KIND_OF_EVENT: Mapping[str, object] = {type_.value: kind for kind, type_ in EVENT_OF_KIND.items()}


@dataclass(slots=True)
class EventCheck:
    """Follows one meter's events beside its entries, and reports what does not follow."""

    meter: BillingMeterRow
    number: int | None = None
    """The newest number so far."""
    first_seq: int | None = None
    """The entry of the oldest event that is there."""

    messages: list[str] = field(default_factory=list)
    """What does not follow, `MAX_MESSAGES` at most."""

    def follow(self, entries: Sequence[LedgerEntryRow], events: Sequence[EventRow]) -> None:
        """Take the next entries, with the events that are of them, by their numbers."""
        try:
            self.messages += islice(self._follow(entries, events), MAX_MESSAGES - len(self.messages))
        except UNREADABLE as error:
            self.messages.append(unreadable(error))
            self.number = None

    def _follow(self, entries: Sequence[LedgerEntryRow], events: Sequence[EventRow]) -> Iterator[str]:
        by_seq = {entry.seq: entry for entry in entries}
        found: set[tuple[str, int | None]] = set()
        for event in events:
            if self.first_seq is None:
                self.first_seq = event.seq
            elif event.number != (self.number or 0) + 1:
                yield f"event {event.number}: it follows event {self.number}"
            self.number = event.number
            entry = by_seq.get(event.seq or 0)
            for message in self._event(event, entry):
                yield f"event {event.number}: {message}"
            if (event.type, event.seq) in found and event.type in _KIND_OF_EVENT:
                yield f"event {event.number}: there is another one of its type and entry"
            found.add((event.type, event.seq))
        if self.first_seq is None:
            return
        for entry in entries:
            type_ = EVENT_OF_KIND.get(entry.kind)
            if type_ is not None and entry.seq > self.first_seq and (type_.value, entry.seq) not in found:
                yield f"entry {entry.seq}: its event is missing"

    def _event(self, event: EventRow, entry: LedgerEntryRow | None) -> Iterator[str]:
        meter = self.meter
        if event.type not in set(EventType):
            yield f"its type is {event.type!r}"
        if entry is None:
            yield f"it is of entry {event.seq}, and there is none"
            return
        kind = _KIND_OF_EVENT.get(event.type)
        if kind is not None and entry.kind is not kind:
            yield f"it is a {event.type}, and entry {entry.seq} is a {entry.kind.name}"
        if kind is not None and event.created_at != entry.recorded_at:
            yield f"it is of {event.created_at} and should be of {entry.recorded_at}"
        if event.position != ids.event_position(event.created_at, meter.id, event.number):
            yield "its position does not follow from its time and number"
        tenant = (meter.org_id, meter.environment, meter.workspace_id)
        if (event.org_id, event.environment, event.workspace_id) != tenant:
            yield "it is another tenant's, or of another workspace, than its meter"
        yield from self._body(event, entry)

    def _body(self, event: EventRow, entry: LedgerEntryRow) -> Iterator[str]:
        found = orjson.loads(event.payload)
        meter, data = found["data"]["billingMeter"], found["data"]
        expected = {
            "type": (found["type"], event.type),
            "timestamp": (found["timestamp"], event.created_at.isoformat()),
            "number": (data["number"], str(event.number)),
            "seq": (data["seq"], str(event.seq)),
            "meter": (meter["id"], self.meter.id),
            "total credits": (meter["totalCredits"], str(entry.total_credits_after)),
            "used credits": (meter["usedCredits"], str(entry.used_credits_after)),
            "held credits": (meter["heldCredits"], str(entry.held_credits_after)),
        }
        for name, (is_, should_be) in expected.items():
            if is_ != should_be:
                yield f"the {name} of its body is {is_!r} and should be {should_be!r}"

    def finish(self) -> Iterator[str]:
        """Return what does not follow, also the number of the newest event from the meter's word for it.

        It is asked for where the ledger is right: else its events would only say once more that it is not.
        """
        yield from self.messages
        if self.number is not None and self.number != self.meter.last_event:
            yield f"its last event is {self.meter.last_event} and should be {self.number}"
