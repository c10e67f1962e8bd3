"""Automatic refills: setting when a meter asks for credits, and saying that a request could not be fulfilled."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import AutoRefillNotFound, AutoRefillNotOpen, InvalidInput
from resolvers.meters.names import meter_name
from resolvers.reading.places import locate
from resolvers.rules.auto_refills import MAX_WINDOW_SECONDS, RefillBook, fail
from resolvers.rules.commands import Decision, Known, gateway_key
from resolvers.values import MAX_AMOUNT, REASON_LENGTH, check_text
from storage import ids
from storage.meters import billing_meters
from storage.meters.auto_refills import AutoRefillMode, AutoRefillRequestState, AutoRefillRow
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind

#: The settings of an automatic refill by what the API calls them, each with its least and its greatest value.
RANGES: Mapping[str, tuple[str, int, int]] = {
    "below": ("below", 0, MAX_AMOUNT),
    "amount": ("amount", 1, MAX_AMOUNT),
    "maxRefills": ("max_refills", 1, 100),
    "maxCredits": ("max_credits", 1, MAX_AMOUNT),
    "windowSeconds": ("window_seconds", 60, MAX_WINDOW_SECONDS),
    "cooldownSeconds": ("cooldown_seconds", 0, 86_400),
    "requestSeconds": ("request_seconds", 60, 43_200),
    "maxFailures": ("max_failures", 1, 100),
}

#: What the first one must say, in the order of the API, and what the others are where it does not.
REQUIRED = {
    "mode": "mode",
    "below": "below",
    "amount": "amount",
    "maxRefills": "max_refills",
    "maxCredits": "max_credits",
    "windowSeconds": "window_seconds",
}
DEFAULTS = {"is_enabled": True, "cooldown_seconds": 60, "request_seconds": 3_600, "max_failures": 3}


class SetAutoRefill(NamedTuple):
    """The settings that a meter's automatic refill is to have, by column; the others stay."""

    meter: MeterName
    settings: Mapping[str, Any]

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None: setting the same again changes nothing."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:  # noqa: ARG002  # A command's.
        """Change what differs, or set the first one. Switching it off always succeeds. Raises `InvalidInput`."""
        book = known.refills
        if book is None:
            for name, column in REQUIRED.items():
                if column not in self.settings:
                    raise InvalidInput(name, "must be given where the meter has no automatic refill yet.")
            settings = AutoRefillRow(meter_id=meter.id, **DEFAULTS | dict(self.settings))
        else:
            settings = book.settings._replace(**self.settings)
        if settings.mode is AutoRefillMode.TARGET and settings.amount < settings.below:
            raise InvalidInput("amount", f"must be at least below, {settings.below}, as it is a target.")
        if book is None:
            book = known.refills = RefillBook(settings)
        book.settings = settings
        return Decision(meter._replace(has_auto_refill=True), None, auto_refill=book.shown)


class ResumeAutoRefill(NamedTuple):
    """A meter whose automatic refill is to go on after it was suspended."""

    meter: MeterName

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None: resuming what is not suspended changes nothing."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:  # noqa: ARG002  # A command's.
        """Let it ask for credits again, and count its failures anew. Raises `AutoRefillNotFound`."""
        book = known.refills
        if book is None:
            raise AutoRefillNotFound
        if book.settings.is_suspended:
            book.set(is_suspended=False, failures=0, last_failure=None)
        return Decision(meter, None, auto_refill=book.shown)


class FailAutoRefill(NamedTuple):
    """A request that could not be fulfilled, and why. `key` is the gateway's."""

    meter: MeterName
    number: int
    request_id: str
    reason: str
    key: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """That of the refill that would have fulfilled it, by which the request is known."""
        return ((LedgerEntryKind.REFILL, self.request_id),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Close a request that is open or has expired. Raises `AutoRefillNotFound` and `AutoRefillNotOpen`."""
        book = known.refills
        request = None if book is None else book.requests.get(self.number)
        if book is None or request is None:
            raise AutoRefillNotFound
        if request.state is AutoRefillRequestState.FULFILLED:
            raise AutoRefillNotOpen(request)
        replayed = request.state is AutoRefillRequestState.FAILED
        if not replayed:
            failing = request._replace(failure=self.reason, failure_key=self.key)
            known.events += fail(meter, book, failing, now)
            request = book.requests[self.number]
        # What an attempt has done whose COMMIT was not answered is no replay.
        is_first = request.failure_key == self.key
        return Decision(meter, None, replayed and not is_first, refill_request=request, auto_refill=book.shown)


async def set_auto_refill(
    context: Context, *, workspace_id: str, external_meter_id: str, settings: Mapping[str, Any]
) -> Decision:
    """Set when a meter asks for credits, by the columns of `AutoRefillRow`; what is left out stays.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `SetAutoRefill.decide` raises.
    """
    name = meter_name(context.actor, workspace_id, external_meter_id)
    for field, (column, least, most) in RANGES.items():
        value = settings.get(column, least)
        if not least <= value <= most:
            raise InvalidInput(field, f"must be {least} to {most}.")
    _require(context, workspace_id)
    return await context.change(SetAutoRefill(name, settings))


async def resume_auto_refill(context: Context, *, workspace_id: str, external_meter_id: str) -> Decision:
    """Let a meter's automatic refill go on that failures have suspended.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `ResumeAutoRefill.decide` raises.
    """
    name = meter_name(context.actor, workspace_id, external_meter_id)
    _require(context, workspace_id)
    return await context.change(ResumeAutoRefill(name))


async def fail_auto_refill(context: Context, *, request_id: str, reason: str) -> Decision:
    """Say that a request could not be fulfilled, such as because a payment was declined.

    Raises `InvalidInput`, `Forbidden` and `AutoRefillNotFound`, then what `FailAutoRefill.decide` raises.
    """
    check_text("reason", reason, length=REASON_LENGTH)
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    place = ids.parse_numbered_id(request_id, ids.AUTO_REFILL_REQUEST)
    if place is None:
        raise AutoRefillNotFound
    (bucket,) = await locate(context.database, [place[0]])
    async with context.database.read(bucket) as reader:
        meters = await billing_meters.by_ids(
            reader,
            [place[0]],
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
        )
    if place[0] not in meters:
        raise AutoRefillNotFound
    command = FailAutoRefill(meters[place[0]].full_name, place[1], request_id, reason, gateway_key())
    return await context.change(command)


def _require(context: Context, workspace_id: str) -> None:
    context.actor.require(Scope.BILLING_WRITE)
    context.actor.require_workspace(workspace_id)
