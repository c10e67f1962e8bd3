"""A reference model of one meter with credit grants and holds: the oracle of tests, written from the rules alone.

A command says what refuses it, in the order of precedence, and then what it books in the ledger (`credit_ledger.py`).

Readings, where the rules leave something open:
 1. What is malformed by its values alone (`InvalidInput`) never reaches the meter and books nothing. What is due is the
    same entry whenever it is booked: call `settle` before entries are compared.
 2. A revoke without `amount` closes a grant that has expired, too. Its shortfall is 0: it asks for what is open.
 3. An update that changes nothing is a success without an entry. That its expiry is past comes after
    `CreditGrantNotLive`, as at a commit the state comes before times. An extension beyond 24 hours comes after
    `HoldNotOpen`.
 4. A commit of 0 on `RELEASED` is a replay of the release, also under `RECORD` and also where a `USAGE` has the id by
    now, so that a repetition is answered like the first. On `COMMITTED` it is a conflict.
 5. A commit under `RECORD` is a plain debit in its refusals, too: `PARTIAL` of which nothing fits is refused.
 6. The limit of open holds is the lower of the meter's and the operator's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from functools import wraps
from typing import Any, ParamSpec

from tests.credit_ledger import BASE, MAX, NEVER, Entry, Facts, Hold, Ledger, Source

Unset = Enum("Unset", ["UNSET"])
UNSET = Unset.UNSET
P = ParamSpec("P")


@dataclass
class Answer:
    """What a command came to. `seq` is its entry's, of a replay the first's."""

    outcome: str
    seq: int | None = None
    replayed: bool = False
    facts: Facts = field(default_factory=dict)


class Refused(Exception):
    """A refusal, as it is answered."""


def refuse(outcome: str, *, when: bool = True, **facts: int | str | None) -> None:
    if when:
        raise Refused(Answer(outcome, facts=facts))


def answered(decide: Callable[P, Answer]) -> Callable[P, Answer]:
    @wraps(decide)
    def command(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return decide(*args, **kwargs)
        except Refused as refused:
            answer: Answer = refused.args[0]
            return answer

    return command


class Meter(Ledger):
    def settle(self, now: datetime) -> None:
        """Book what is due, as each command does first."""
        self.settled(now)

    def _write(self, kind: str, at: datetime, amount: int, **of_entry: Any) -> Answer:
        entry = self.book(kind, at, amount, **of_entry)
        self.end(at)
        return Answer("Success", entry.seq, facts=entry.facts)

    def _repeated(self, first: Entry, sent: tuple[Any, ...]) -> Answer:
        refuse("IdempotencyConflict", when=first.sent != sent, firstEntry=first.seq)
        return Answer("Success", first.seq, replayed=True, facts=first.facts)

    def _accepted(self, amount: int, policy: str, *, may_be_none: bool = False) -> int:
        """What is accepted of a debit, a hold, or the part of a commit that is beyond its hold."""
        available = self.available
        accepted = amount if available is None or policy == "FORCE" else min(amount, available)
        short = (policy == "REJECT" and accepted < amount) or (accepted == 0 and not may_be_none)
        outcome = "SpendCapExceeded" if self.overages else "InsufficientCredits"
        refuse(outcome, when=short, available=available, held=self.held, openHolds=len(self.open_holds()))
        refuse("AmountOutOfRange", when=self.used + self.held + accepted > MAX)
        return accepted

    def _debit(self, at: datetime, key: str, amount: int, policy: str) -> Answer:
        if amount == 0:
            over = self.limit is not None and self.used + self.held > self.limit
            return Answer("Success", facts={"accepted": 0, "refused": 0, "overLimit": over})
        return self._write("USAGE", at, self._accepted(amount, policy), key=key, sent=(amount, policy))

    @answered
    def refill(self, now: datetime, key: str, amount: int) -> Answer:
        refuse("InvalidInput", when=amount == 0)
        at = self.settled(now)
        if first := self.first("REFILL", key):
            return self._repeated(first, (amount,))
        refuse("AmountOutOfRange", when=self.total + amount > MAX)
        return self._write("REFILL", at, amount, key=key, sent=(amount,))

    @answered
    def settings(
        self, now: datetime, *, overages: bool | None = None, cap: int | Unset | None = UNSET,
        max_open_holds: int | Unset | None = UNSET
    ) -> Answer:  # fmt: skip
        at = self.settled(now)
        old = (self.overages, self.cap, self.max_open_holds)
        new_cap = self.cap if cap is UNSET else cap
        new_max = self.max_open_holds if max_open_holds is UNSET else max_open_holds
        new = (self.overages if overages is None else overages, new_cap, new_max)
        return Answer("Success") if new == old else self._write("SETTINGS", at, 0, sent=new)

    @answered
    def record(self, now: datetime, event_id: str, amount: int, policy: str = "REJECT") -> Answer:
        at = self.settled(now)
        if amount and (first := self.first("HOLD", event_id) or self.first("USAGE", event_id)):
            return self._repeated(
                first, (amount, policy)
            )  # Under a hold's id it is a conflict: a hold has more values.
        return self._debit(at, event_id, amount, policy)

    @answered
    def void(self, now: datetime, key: str, event_id: str, amount: int | None) -> Answer:
        refuse("InvalidInput", when=amount == 0)
        at = self.settled(now)
        event = self.first("USAGE", event_id)
        if event is None:
            return Answer("UsageEventNotFound")
        if first := self.first("VOID", key):
            return self._repeated(first, (event_id, amount))
        voidable = event.amount - self.voided(event)
        refuse("ExceedsVoidable", when=voidable == 0 or (amount or 0) > voidable, voidable=voidable)
        return self._write("VOID", at, amount or voidable, key=key, sent=(event_id, amount), voids_seq=event.seq)

    @answered
    def grant(
        self, now: datetime, key: str, amount: int, *, priority: int = 50, category: str = "PAID",
        expires_at: datetime | None = None
    ) -> Answer:  # fmt: skip
        refuse("InvalidInput", when=amount == 0 or not 0 <= priority <= 100)
        at = self.settled(now)
        sent = (amount, priority, category, expires_at)
        if first := self.first("GRANT", key):
            return self._repeated(first, sent)
        refuse("InvalidInput", when=(expires_at or NEVER) <= at)
        live = sum(self.state_of(grant, at) == "LIVE" for grant in self.grants())
        refuse("TooManyCreditGrants", when=live >= self.max_grants, max=self.max_grants)
        refuse("AmountOutOfRange", when=self.total + amount > MAX)
        return self._write("GRANT", at, amount, key=key, sent=sent)

    def _grant(self, seq: int) -> Source:
        refuse("CreditGrantNotFound", when=seq == BASE or seq not in self.sources)
        return self.sources[seq]

    @answered
    def update_grant(
        self, now: datetime, grant: int, *, priority: int | None = None, expires_at: datetime | None = None,
        remove_expiry: bool = False
    ) -> Answer:  # fmt: skip
        new_priority_is_bad = priority is not None and not 0 <= priority <= 100
        refuse("InvalidInput", when=new_priority_is_bad or (remove_expiry and expires_at is not None))
        at = self.settled(now)
        source = self._grant(grant)
        refuse("CreditGrantNotLive", when=source.ended(at), state=self.state_of(source, at))
        refuse("InvalidInput", when=(expires_at or NEVER) <= at)
        old = (source.priority, source.expires_at)
        new = (old[0] if priority is None else priority, None if remove_expiry else expires_at or old[1])
        return Answer("Success") if new == old else self._write("GRANT_CHANGED", at, 0, sent=new, grant=grant)

    @answered
    def revoke(self, now: datetime, key: str, grant: int, amount: int | None) -> Answer:
        refuse("InvalidInput", when=amount == 0)
        at = self.settled(now)
        source = self._grant(grant)
        if first := self.first("REVOCATION", key):
            return self._repeated(first, (grant, amount))
        taken = min(source.open, amount or MAX)
        return self._write("REVOCATION", at, taken, key=key, sent=(grant, amount), grant=grant)

    @answered
    def hold(self, now: datetime, hold_id: str, amount: int, policy: str = "REJECT", expires_in: int = 900) -> Answer:
        refuse("InvalidInput", when=amount == 0 or policy == "FORCE" or not 1 <= expires_in <= 86_400)
        at = self.settled(now)
        sent = (amount, policy, expires_in)
        if first := self.first("HOLD", hold_id) or self.first("USAGE", hold_id):
            return self._repeated(first, sent)
        allowed = self.max_holds if self.max_open_holds is None else min(self.max_holds, self.max_open_holds)
        refuse("TooManyHolds", when=len(self.open_holds()) >= allowed, max=allowed)
        return self._write("HOLD", at, self._accepted(amount, policy), key=hold_id, sent=sent, hold_id=hold_id)

    def _hold(self, hold_id: str) -> Hold:
        refuse("HoldNotFound", when=hold_id not in self.holds)
        return self.holds[hold_id]

    def _refuse_closed(self, hold: Hold) -> None:
        closed_at = hold.closed_at.isoformat() if hold.closed_at else None
        refuse("HoldNotOpen", when=hold.state != "OPEN", state=hold.state, closedAt=closed_at)

    @answered
    def commit(
        self, now: datetime, hold_id: str, amount: int, policy: str = "PARTIAL", if_closed: str = "REFUSE"
    ) -> Answer:
        at = self.settled(now)
        hold = self._hold(hold_id)
        if amount == 0 and hold.state in {"OPEN", "RELEASED"}:
            return self.release(now, hold_id)
        if first := self.first("USAGE", hold_id):
            return self._repeated(first, (amount, policy))
        if hold.state != "OPEN" and if_closed == "RECORD":
            return self._debit(at, hold_id, amount, policy)
        self._refuse_closed(hold)
        within = min(amount, hold.amount)
        accepted = within + self._accepted(amount - within, policy, may_be_none=True)
        return self._write("USAGE", at, accepted, key=hold_id, sent=(amount, policy), hold_id=hold_id)

    @answered
    def release(self, now: datetime, hold_id: str) -> Answer:
        at = self.settled(now)
        hold = self._hold(hold_id)
        if first := self.first("RELEASE", hold_id):
            return self._repeated(first, ())
        self._refuse_closed(hold)
        return self._write("RELEASE", at, hold.amount, key=hold_id, hold_id=hold_id)

    @answered
    def extend(self, now: datetime, hold_id: str, expires_in: int) -> Answer:
        refuse("InvalidInput", when=not 1 <= expires_in <= 86_400)
        at = self.settled(now)
        hold = self._hold(hold_id)
        self._refuse_closed(hold)
        wanted = at + timedelta(seconds=expires_in)
        refuse("InvalidInput", when=wanted > hold.made_at + timedelta(hours=24))
        hold.expires_at = max(hold.expires_at, wanted)
        return Answer("Success")
