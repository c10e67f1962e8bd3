"""One meter's grants and holds, replayed from its ledger by the order of use, and then the rows against the replay."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from resolvers.maintenance.entry_rules import RULES
from resolvers.meters.holds import MAX_SECONDS
from resolvers.rules.alerts import BY_TIME
from resolvers.rules.booking import OVERDUE, released
from resolvers.rules.credits import BASE, Credits, Draws, joined, parts_of, uncovered
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantCategory, CreditGrantRow
from storage.meters.holds import HoldRow, HoldState
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

_Kind = LedgerEntryKind

#: The entries that close a hold, with the state that it then has.
CLOSING = {
    _Kind.USAGE: HoldState.COMMITTED,
    _Kind.RELEASE: HoldState.RELEASED,
    _Kind.HOLD_EXPIRY: HoldState.EXPIRED,
}


@dataclass(slots=True)
class CreditCheck:
    """Follows what one meter's entries do to its grants and holds, from the first of them on."""

    #: The meter's totals as the entries so far leave them, once it has a grant or a hold.
    meter: BillingMeterRow
    credits_: Credits | None = None
    #: The holds that are open, by `seq`, and whether there was one.
    holds: dict[int, HoldRow] = field(default_factory=dict)
    has_holds: bool = False
    #: What the rows of holds that were closed differ in, by `seq`.
    differing: list[tuple[int, str]] = field(default_factory=list)
    recorded_at: datetime | None = None
    #: The end of a grant that was found to be written too late, so that it is reported once.
    reported: datetime | None = None
    is_lost: bool = False

    def follow(
        self,
        entry: LedgerEntryRow,
        before: tuple[int, int],
        voided: tuple[LedgerEntryRow, int] | None,
        closed: HoldRow | None,
    ) -> Iterator[str]:
        """Take the next entry. `before` are the total and used credits before it.

        `voided` are, of a `VOID`, the usage that it gives back and what earlier ones gave back of it; `closed` is, of
        an entry that closes a hold, that hold's row, where there is one.
        """
        if self.is_lost:
            return
        if self.credits_ is None and entry.kind not in {_Kind.GRANT, _Kind.HOLD}:
            yield from _without_credits(entry)
            return
        if self.credits_ is None:
            total, used = before
            self.meter = self.meter._replace(
                total_credits=total, used_credits=used, held_credits=0, pinned_credits=0, open_holds=0
            )
            self.credits_ = Credits.of(self.meter, ())
        try:
            yield from self._names(entry, self.credits_, closed)
            yield from self._moment(entry, self.credits_)
            if not self.is_lost:
                yield from self._entry(entry, self.credits_, voided, closed)
        except (LookupError, ValueError, TypeError) as error:
            # What follows would be held against a state that is not known.
            self.is_lost = True
            yield f"what it does to grants and holds cannot be replayed: {error}"

    def _names(self, entry: LedgerEntryRow, credits_: Credits, closed: HoldRow | None) -> Iterator[str]:
        """Check which grant or hold an entry names; where it names none, what follows is not known."""
        # A hold that is no longer open has a row.
        hold = self.holds.get(entry.hold_seq or 0) or (
            closed if closed is not None and closed.seq < entry.seq else None
        )
        for what, seq, making, known in (
            ("grant", entry.grant_seq, _Kind.GRANT, credits_.grants.keys()),
            ("hold", entry.hold_seq, _Kind.HOLD, () if hold is None else (hold.seq,)),
        ):
            if entry.kind is making:
                if seq != entry.seq:
                    yield f"its {what} is {seq} and should be {entry.seq}"
            elif seq is None:
                # That it has none is reported with its other fields.
                self.is_lost = self.is_lost or f"{what}_seq" in RULES[entry.kind].has
            elif seq == BASE or seq not in known:
                self.is_lost = True
                yield f"its {what} is {seq}, which no entry before it makes"
        if hold is not None and entry.key != hold.hold_id:
            yield f"its key is {entry.key!r} and should be {hold.hold_id!r}, that of its hold"

    def _moment(self, entry: LedgerEntryRow, credits_: Credits) -> Iterator[str]:
        """Check that what was due before an entry has been written, each at its own moment."""
        end, now = credits_.next_end(), entry.recorded_at
        is_later = self.recorded_at is None or self.recorded_at < now
        is_late = end is not None and ((end < now and is_later) or (end <= now and entry.recorded_by != BY_TIME))
        if is_late and end != self.reported:
            self.reported = end
            yield f"what was due at {end} is not written before it"
        self.recorded_at = now

    def _entry(  # noqa: C901  # One branch for each kind of entry.
        self,
        entry: LedgerEntryRow,
        credits_: Credits,
        voided: tuple[LedgerEntryRow, int] | None,
        closed: HoldRow | None,
    ) -> Iterator[str]:
        at, kind = entry.recorded_at, entry.kind
        draws: Draws | None = None
        held: dict[str, Any] = {}
        if kind is _Kind.USAGE and entry.hold_seq is None:
            draws = credits_.draw(entry.amount, at)
        elif kind in CLOSING:
            hold = self.holds.pop(entry.hold_seq or 0, None)
            if hold is None:
                yield f"it closes the hold {entry.key!r}, which is {closed.state.value if closed else 'closed'} already"
                return
            held = dict(released(self.meter, hold))
            draws = self._close(entry, hold, credits_, closed)
        elif kind is _Kind.HOLD:
            draws = credits_.pin(entry.amount, at)
            held = dict(self._hold(entry, draws))
        elif kind is _Kind.VOID and voided is not None:
            draws = credits_.give_back(voided[0], entry.amount, voided=voided[1], meter=self.meter)
        elif kind is _Kind.REFILL:
            credits_.refill(entry.amount)
        elif kind is _Kind.GRANT:
            grant = _granted(entry)
            if entry.metadata.keys() != (terms := _terms(grant).keys()):
                yield f"it records {', '.join(sorted(entry.metadata))}, and should record {', '.join(sorted(terms))}"
            credits_.add(grant)
        elif kind in {_Kind.GRANT_CHANGED, _Kind.REVOCATION, _Kind.EXPIRY}:
            yield from self._grant(entry, credits_)
        if draws is not None and (entry.draws or _of_base(draws, entry)) != draws:
            yield f"its draws are {entry.draws} and should be {draws}"
        self.meter = self.meter._replace(
            total_credits=entry.total_credits_after, used_credits=entry.used_credits_after, **held
        )
        if entry.held_credits_after != self.meter.held_credits:
            yield f"the held credits after it are {entry.held_credits_after} and should be {self.meter.held_credits}"
        credits_.cover(self.meter, at)

    def _hold(self, entry: LedgerEntryRow, pins: Draws) -> dict[str, int]:
        self.has_holds = True
        self.holds[entry.seq] = HoldRow(
            meter_id=entry.meter_id,
            seq=entry.seq,
            hold_id=entry.key or "",
            amount=entry.amount,
            requested_amount=entry.requested_amount or 0,
            expires_in_seconds=0,
            state=HoldState.OPEN,
            committed_amount=None,
            expires_at=entry.recorded_at,
            created_at=entry.recorded_at,
            closed_at=None,
            pins=pins,
            metadata=entry.metadata,
        )
        return {
            "held_credits": self.meter.held_credits + entry.amount,
            "pinned_credits": self.meter.pinned_credits + sum(credits_ for _, credits_ in pins),
            "open_holds": self.meter.open_holds + 1,
        }

    def _close(self, entry: LedgerEntryRow, hold: HoldRow, credits_: Credits, closed: HoldRow | None) -> Draws | None:
        """Close a hold, hold its row against that, and return what the usage drew if it commits it."""
        is_usage = entry.kind is _Kind.USAGE
        draws = credits_.draw_pins(hold.pins, entry.amount if is_usage else 0)
        if is_usage:
            rest = entry.amount - sum(credits_ for _, credits_ in draws)
            draws = joined([*draws, *credits_.draw(rest, entry.recorded_at)])
        self._compare(
            hold._replace(
                state=CLOSING[entry.kind],
                committed_amount=entry.amount if is_usage else None,
                closed_at=entry.recorded_at,
            ),
            closed,
        )
        return draws if is_usage else None

    def _compare(self, hold: HoldRow, row: HoldRow | None) -> None:
        """Note what a hold's row differs in from what the ledger makes of it."""
        self.differing += [(hold.seq, message) for message in _differences(hold, row, _HOLD_FIELDS)]
        self.differing += [(hold.seq, message) for message in (() if row is None else _times(row))]

    def _grant(self, entry: LedgerEntryRow, credits_: Credits) -> Iterator[str]:
        grant = credits_.grants[entry.grant_seq or -1]
        if entry.kind is _Kind.GRANT_CHANGED:
            if unknown := entry.metadata.keys() - _CHANGING:
                yield f"it changes {', '.join(sorted(unknown))}, which is not a term that changes"
            for term in sorted(entry.metadata.keys() & _CHANGING):
                old, new = entry.metadata[term]
                if (was := _terms(grant)[term]) != old:
                    yield f"the {term} of the grant was {old!r} before it and should be {was!r}"
                grant = _with_term(grant, term, new)
            credits_.add(grant)
            return
        is_expiry, is_caused = entry.kind is _Kind.EXPIRY, entry.recorded_by == BY_TIME
        if entry.amount > grant.open_credits or (is_caused and entry.amount != grant.open_credits):
            yield f"it takes {entry.amount} of the grant, of which {grant.open_credits} are open"
        if is_caused and grant.is_live(entry.recorded_at):
            yield f"it ends a grant at {entry.recorded_at} that ends at {grant.expires_at}"
        ended = "expired_credits" if is_expiry else "revoked_credits"
        credits_.add(
            grant._replace(
                open_credits=max(0, grant.open_credits - entry.amount),
                is_closed=grant.is_closed or (not is_expiry and not is_caused and entry.requested_amount is None),
                **{ended: getattr(grant, ended) + entry.amount},
            )
        )

    def finish(
        self,
        meter: BillingMeterRow,
        grants: Iterable[CreditGrantRow],
        holds: Mapping[int, HoldRow],
        now: datetime | None,
    ) -> Iterator[str]:
        """Hold the rows against the replay, and, where the time is given, what is due against it.

        `holds` are the rows of those that are open, by `seq`.
        """
        if self.is_lost:
            return
        replayed = {} if self.credits_ is None else dict(self.credits_.grants)
        replayed.pop(BASE, None)
        rows = {row.seq: row for row in grants}
        for seq in sorted({*replayed, *rows}):
            yield from (
                f"grant {seq}: {each}" for each in _differences(replayed.get(seq), rows.get(seq), _GRANT_FIELDS)
            )
        for seq, hold in self.holds.items():
            self._compare(hold, holds.get(seq))
        yield from (f"hold {seq}: {message}" for seq, message in sorted(self.differing, key=itemgetter(0)))
        of_replay = self.meter if self.credits_ is not None else None
        for name in ("held_credits", "pinned_credits", "open_holds"):
            expected = 0 if of_replay is None else getattr(of_replay, name)
            if getattr(meter, name) != expected:
                yield f"its {name} is {getattr(meter, name)} and should be {expected}"
        for name, has in (("has_grants", bool(replayed)), ("has_holds", self.has_holds)):
            if getattr(meter, name) != has:
                yield f"its {name} is {getattr(meter, name)} and should be {has}"
        if uncovered(meter) and any(grant.open_credits for grant in rows.values()):
            yield "some of its usage is paid by no credit, and some of its credits are open"
        yield from self._due(meter, holds, now)

    def _due(self, meter: BillingMeterRow, holds: Mapping[int, HoldRow], now: datetime | None) -> Iterator[str]:
        """Hold what the meter says of when something is due against its grants and holds."""
        ends = [hold.expires_at for hold in holds.values() if hold.state is HoldState.OPEN]
        end = None if self.credits_ is None else self.credits_.next_end()
        due = min(ends if end is None else [*ends, end], default=None)
        if due is not None and (meter.next_due_at is None or meter.next_due_at > due):
            yield f"something of it is due at {due}, and it says {meter.next_due_at}"
        if now is not None and due is not None and due < now - OVERDUE:
            yield f"what was due at {due} is not written, as a running gateway does within seconds"


_GRANT_FIELDS = (
    *("key", "amount", "priority", "category", "expires_at", "open_credits", "pinned_credits", "drawn_credits"),
    *("covered_credits", "expired_credits", "revoked_credits", "is_closed", "created_at", "reason"),
)
#: The terms of a grant that a `GRANT_CHANGED` changes.
_CHANGING = frozenset(("priority", "expiresAt"))
_HOLD_FIELDS = (
    *("hold_id", "amount", "requested_amount", "state", "committed_amount", "created_at", "closed_at", "pins"),
    "metadata",
)


def _without_credits(entry: LedgerEntryRow) -> Iterator[str]:
    """Check an entry of a meter that has neither a grant nor a hold yet."""
    if entry.held_credits_after:
        yield f"the held credits after it are {entry.held_credits_after} and should be 0"
    for name in ("draws", "grant_seq", "hold_seq"):
        if (value := getattr(entry, name)) is not None:
            yield f"its {name} is {value}, and its meter has neither a grant nor a hold yet"


def _times(hold: HoldRow) -> Iterator[str]:
    """Check a hold's end. An extension has no entry, so of the end it is only known between what it lies."""
    first, last = (hold.created_at + timedelta(seconds=seconds) for seconds in (hold.expires_in_seconds, MAX_SECONDS))
    if not hold.created_at < first <= hold.expires_at <= last:
        yield f"its expires_at is {hold.expires_at} and should be {first} to {last}"
    if hold.closed_at is None:
        return
    if hold.state is HoldState.EXPIRED and hold.closed_at != hold.expires_at:
        yield f"its expires_at is {hold.expires_at}, and it expired at {hold.closed_at}"
    if hold.state is not HoldState.EXPIRED and hold.closed_at >= hold.expires_at:
        yield f"its expires_at is {hold.expires_at}, and it was closed later, at {hold.closed_at}"


def _differences(expected: object | None, row: object | None, fields: tuple[str, ...]) -> Iterator[str]:
    if expected is None or row is None:
        yield "no entry makes it" if expected is None else "it is missing"
        return
    for name in fields:
        is_, should_be = getattr(row, name), getattr(expected, name)
        if is_ != should_be:
            yield f"its {name} is {is_} and should be {should_be}"


def _of_base(draws: Draws, entry: LedgerEntryRow) -> Draws:
    """Return the draws of an entry without them: all that is not uncovered is the base's."""
    _, rest = parts_of(entry) if entry.kind is _Kind.USAGE else ((), 0)
    return [[BASE, entry.amount - rest]] if draws and all(seq == BASE for seq, _ in draws) else []


def _terms(grant: CreditGrantRow) -> dict[str, int | str | None]:
    expires_at = None if grant.expires_at is None else grant.expires_at.isoformat()
    return {"priority": grant.priority, "category": grant.category.name, "expiresAt": expires_at}


def _with_term(grant: CreditGrantRow, term: str, value: object) -> CreditGrantRow:
    if term == "priority" and isinstance(value, int):
        return grant._replace(priority=value)
    if term == "category":
        return grant._replace(category=CreditGrantCategory[str(value)])
    if term == "expiresAt":
        return grant._replace(expires_at=None if value is None else datetime.fromisoformat(str(value)))
    raise ValueError(term)


def _granted(entry: LedgerEntryRow) -> CreditGrantRow:
    """Return the grant that an entry makes."""
    grant = CreditGrantRow(
        meter_id=entry.meter_id,
        seq=entry.seq,
        key=entry.key or "",
        amount=entry.amount,
        priority=0,
        category=CreditGrantCategory.PAID,
        expires_at=None,
        open_credits=entry.amount,
        pinned_credits=0,
        drawn_credits=0,
        covered_credits=0,
        expired_credits=0,
        revoked_credits=0,
        is_closed=False,
        created_at=entry.recorded_at,
        reason=entry.reason,
        metadata={},
    )
    for term, (_none, value) in entry.metadata.items():
        grant = _with_term(grant, term, value)
    return grant
