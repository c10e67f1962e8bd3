"""What a command is: a change of one meter that a caller asks for, and what is decided of it.

A command is data, well-formed and permitted, with one pure function, `decide`. It is given the meter as it is locked,
and returns the meter as it is to be with the ledger entry that says so, or raises a refusal. The writer does the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resolvers.rules.auto_refills import RefillBook
from resolvers.rules.balances import available_bits, limit_credits
from resolvers.rules.credits import Credits
from resolvers.rules.events import EVENT_OF_KIND, NewEvent, event_of
from storage import ids
from storage.alerts import AlertRow
from storage.meters.auto_refills import AutoRefill, AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

if TYPE_CHECKING:
    # It is made of what this file has.
    from resolvers.rules.watching import Watch

#: How the keys begin that the gateway gives to commands whose callers sent none. No caller's key may begin so.
GATEWAY_KEY = "tollgate/"

#: The kinds of entries whose commands may come without a key of the caller's.
_KEYED_BY_GATEWAY = frozenset(
    (
        *(LedgerEntryKind.REFILL, LedgerEntryKind.SETTINGS),
        *(LedgerEntryKind.GRANT, LedgerEntryKind.GRANT_CHANGED, LedgerEntryKind.REVOCATION),
    )
)


@dataclass(slots=True)
class Known:
    """What the ledger of a meter holds already of what commands name.

    `entries` are by kind and key, and have those of the commands that were decided before in the same transaction.
    `voided_credits` are what is given back already of usage entries, by their `seq`; 0 may be left out.

    `credits` are the meter's base and grants: those with something open or pinned, and those whose `GRANT` entries are
    known. None: it has had neither a grant nor a hold, and all it has is its base. `holds` are those whose `HOLD`
    entries are known, and where something is due all that are open, by their callers' names.
    """

    entries: dict[tuple[LedgerEntryKind, str], LedgerEntryRow] = field(default_factory=dict)
    voided_credits: dict[int, int] = field(default_factory=dict)
    credits: Credits | None = None
    holds: dict[str, HoldRow] = field(default_factory=dict)
    changed_holds: set[str] = field(default_factory=set)
    events: list[NewEvent] = field(default_factory=list)
    """What has happened in the transaction that is an event."""
    moments: dict[str, datetime] = field(default_factory=dict)
    """When time alone may make something happen that is no end of a grant or hold, at the earliest, by what it is."""
    refills: RefillBook | None = None
    """The automatic refill. None: it has never had one."""
    watch: "Watch | None" = None
    """The meter's alerts; None: it has none."""

    def credits_of(self, meter: BillingMeterRow) -> Credits:
        """Return the credits of the meter, from now on also of one that has had neither a grant nor a hold."""
        if self.credits is None:
            self.credits = Credits.of(meter, ())
        return self.credits

    def change_hold(self, hold: HoldRow) -> None:
        """Know a hold that has just been made or changed."""
        self.holds[hold.hold_id] = hold
        self.changed_holds.add(hold.hold_id)

    def add(self, meter: BillingMeterRow, entry: LedgerEntryRow) -> None:
        """Know an entry that has just been decided, and leaves the meter so."""
        if entry.key is not None:
            self.entries[entry.kind, entry.key] = entry
        if entry.voids_seq is not None:
            self.voided_credits[entry.voids_seq] = self.voided_credits.get(entry.voids_seq, 0) + entry.amount
        if self.watch is not None:
            self.watch.trail.append((meter, entry))
        if entry.kind in EVENT_OF_KIND:
            self.events.append(event_of(meter, entry, {} if self.credits is None else self.credits.grants, self.holds))


class Decision(NamedTuple):
    """An accepted command: the meter, and the entry that records it. `entry` None: nothing changed.

    `billing_meter` is the meter as the command leaves it when it is decided, and as it is after the commit when the
    caller gets the decision.
    """

    billing_meter: BillingMeterRow
    entry: LedgerEntryRow | None
    replayed: bool = False
    was_over_limit: bool = False
    """Of a debit that has no entry: whether more was used and held than the limit when it was decided."""
    credit_grant: CreditGrantRow | None = None
    """The grant that the command is about, as the command leaves it, and after the commit as it then is."""
    hold: HoldRow | None = None
    """The hold that the command is about, likewise."""
    refill_request: AutoRefillRequestRow | None = None
    """The request of an automatic refill that the command is about, likewise."""
    auto_refill: AutoRefill | None = None
    """Of a command about an automatic refill: what it is after the commit."""
    alert: AlertRow | None = None
    """The alert that the command is about."""

    @property
    def accepted(self) -> int:
        """Of a debit: the credits that were taken."""
        return self.entry.amount if self.entry is not None else 0

    @property
    def refused(self) -> int:
        """Of a debit: the credits that were asked for and not taken."""
        return (self.entry.requested_amount or 0) - self.entry.amount if self.entry is not None else 0

    @property
    def is_over_limit(self) -> bool:
        """Whether more is used and held than the limit, right after the debit."""
        entry = self.entry
        if entry is None:
            return self.was_over_limit
        limit = entry.limit_credits
        return limit is not None and entry.used_credits_after + entry.held_credits_after > limit


class Command(Protocol):
    """A change of one meter."""

    @property
    def meter(self) -> MeterName:
        """The name of the meter."""

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The kinds and keys of the entries that the decision depends on, the command's own among them.

        With a `GRANT` its grant is known, and with a `HOLD` its hold; with a `REFILL` the request that its key names.
        """

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Decide the command on its meter as it now is. `now` is not before the meter's newest entry.

        Raises a `Refusal`, and then has no effect.
        """


def gateway_key() -> str:
    """Return a key for a command whose caller sent none, so that its entry is found again after a lost COMMIT."""
    return ids.new_id(GATEWAY_KEY)


def is_gateway_key(kind: LedgerEntryKind, key: str | None) -> bool:
    """Whether the gateway gave an entry of this kind its key, so that callers do not see it and may not send it."""
    return kind in _KEYED_BY_GATEWAY and key is not None and key.startswith(GATEWAY_KEY)


def after(meter: BillingMeterRow, now: datetime, **changes: Any) -> BillingMeterRow:
    """Return the meter as its next entry leaves it: with these changes, and with what follows from them."""
    changed = meter._replace(**changes, last_seq=meter.last_seq + 1, updated_at=now)
    limit = limit_credits(changed.total_credits, allow_overages=changed.allow_overages, spend_cap=changed.spend_cap)
    bits = available_bits(limit, changed.used_credits, changed.held_credits)
    return changed._replace(limit_credits=limit, available_bits=bits)


def newest_entry(
    meter: BillingMeterRow, kind: LedgerEntryKind, *, amount: int, recorded_by: str, **values: Any
) -> LedgerEntryRow:
    """Return the newest entry of the meter, which is given as the entry leaves it; what is not named is null."""
    return LedgerEntryRow(
        meter_id=meter.id,
        seq=meter.last_seq,
        kind=kind,
        amount=amount,
        total_credits_after=meter.total_credits,
        used_credits_after=meter.used_credits,
        held_credits_after=meter.held_credits,
        limit_credits=meter.limit_credits,
        recorded_at=meter.updated_at,
        recorded_by=recorded_by,
        **(_UNSET | values),
    )


_UNSET: dict[str, Any] = {
    "key": None,
    "usage_name": None,
    "day": None,
    "requested_amount": None,
    "policy": None,
    "voids_seq": None,
    "grant_seq": None,
    "hold_seq": None,
    "sent_at": None,
    "reason": None,
    "draws": None,
    "metadata": {},
}
