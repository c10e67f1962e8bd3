"""The ledger of the reference model: what each entry does to the credits of a meter with grants and holds.

`Ledger.book` works out draws and coverage from the entry alone, so that `check` can book the same entries on an empty
ledger, and must get the same draws. Lists are read whole wherever that is the plain reading.

Readings, where the rules leave something open:
 1. Draws are kept in full, and neighbours that name one source are one. A commit may name a grant twice, its pin and
    later what was open of it; a void gives the latter back first.
 2. The draws of a `VOID` are what went back to sources, first of what they covered, then of what was drawn. What was
    uncovered until then is the rest of its amount. The base is older than all, so of what is covered it gets back last.
 3. What ends by one command or at one moment is one entry a grant, in the order of use, `EXPIRY` and keyless
    `REVOCATION` alike, after all that the command or the moment has freed.
 4. Pins survive a revocation as they survive an expiry, and a commit draws them.
 5. `RELEASE` and `HOLD_EXPIRY` have the hold's id as key; `GRANT_CHANGED`, `SETTINGS` and what ends have none.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

MAX = 2**63 - 1
BASE = 0
NEVER = datetime.max.replace(tzinfo=UTC)

Draw = tuple[int, int]  # The seq of a grant's entry, or BASE, and an amount.
Facts = dict[str, int | str | None]


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. `sent` are the values that a repetition must have, of a change the new ones."""

    seq: int
    kind: str
    key: str | None
    amount: int
    total_after: int
    used_after: int
    held_after: int
    limit: int | None
    at: datetime
    draws: list[Draw]
    uncovered: int
    voids_seq: int | None
    grant: int | None
    hold_id: str | None
    day: str | None
    sent: tuple[Any, ...]

    @property
    def over_limit(self) -> bool:
        return self.limit is not None and self.used_after + self.held_after > self.limit

    @property
    def facts(self) -> Facts:
        if self.kind == "REVOCATION":
            return {"revoked": self.amount, "shortfall": (self.sent[1] or self.amount) - self.amount}
        if self.kind == "RELEASE":  # By a commit of 0, too.
            return {"released": self.amount, "accepted": 0, "refused": 0, "overLimit": self.over_limit}
        if self.kind in {"USAGE", "HOLD"}:
            return {"accepted": self.amount, "refused": self.sent[0] - self.amount, "overLimit": self.over_limit}
        return {}


@dataclass
class Source:
    """Where credits come from: a grant, or the base. `drawn` is without what it `covered`."""

    seq: int
    amount: int = 0
    priority: int = 50
    category: str = "PAID"
    expires_at: datetime | None = None
    closed: bool = False
    open: int = 0
    drawn: int = 0
    covered: int = 0
    expired: int = 0
    revoked: int = 0

    def ended(self, at: datetime) -> bool:
        return self.closed or (self.expires_at is not None and self.expires_at <= at)

    def order_of_use(self) -> tuple[Any, ...]:
        return (self.priority, self.expires_at or NEVER, self.category != "PROMOTIONAL", self.seq)


@dataclass
class Hold:
    seq: int
    amount: int
    made_at: datetime
    expires_at: datetime
    pins: list[Draw]
    state: str = "OPEN"
    committed: int | None = None
    closed_at: datetime | None = None


def summed(draws: Iterable[Draw]) -> int:
    return sum(amount for _, amount in draws)


def joined(draws: Iterable[Draw]) -> list[Draw]:
    """Draws without those of nothing, and with neighbours of one source as one."""
    result: list[Draw] = []
    for seq, amount in draws:
        if amount and result and result[-1][0] == seq:
            result[-1] = (seq, result[-1][1] + amount)
        elif amount:
            result.append((seq, amount))
    return result


class Ledger:
    def __init__(
        self, *, now: datetime, total: int, overages: bool, cap: int | None, zone: str = "UTC",
        max_grants: int = 1000, max_holds: int = 1000
    ) -> None:  # fmt: skip
        self.zone, self.max_grants, self.max_holds = zone, max_grants, max_holds
        self.total = self.used = self.held = self.uncovered = 0
        self.sources = {BASE: Source(BASE)}
        self.holds: dict[str, Hold] = {}
        self.entries: list[Entry] = []
        self.verified: Ledger | None = None  # What `check` has booked again.
        self.book("OPENING", now, total, sent=(overages, cap, None))

    # What follows from the state.

    @property
    def limit(self) -> int | None:
        if not self.overages:
            return self.total
        return None if self.cap is None else min(self.total + self.cap, MAX)

    @property
    def available(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used - self.held)

    def open_holds(self) -> list[Hold]:
        return [hold for hold in self.holds.values() if hold.state == "OPEN"]

    def pinned(self, *seqs: int) -> int:
        return summed(pin for hold in self.open_holds() for pin in hold.pins if pin[0] in (seqs or self.sources))

    def in_order(self) -> list[Source]:
        return sorted(self.sources.values(), key=Source.order_of_use)

    def grants(self) -> list[Source]:
        return [source for source in self.sources.values() if source.seq != BASE]

    def state_of(self, grant: Source, at: datetime) -> str:
        if grant.ended(at):
            return "REVOKED" if grant.closed else "EXPIRED"
        return "LIVE" if grant.open or self.pinned(grant.seq) else "DEPLETED"

    def next_due(self) -> datetime | None:
        ends = [source.expires_at for source in self.sources.values() if source.expires_at and source.open]
        return min([hold.expires_at for hold in self.open_holds()] + ends, default=None)

    def first(self, kind: str, key: str) -> Entry | None:
        return next((entry for entry in self.entries if (entry.kind, entry.key) == (kind, key)), None)

    def voided(self, event: Entry) -> int:
        return sum(entry.amount for entry in self.entries if entry.voids_seq == event.seq)

    # The ledger. An entry changes what it says; then what is open of what lives covers what is uncovered.

    def book(
        self, kind: str, at: datetime, amount: int, *, key: str | None = None, sent: tuple[Any, ...] = (),
        voids_seq: int | None = None, grant: int | None = None, hold_id: str | None = None
    ) -> Entry:  # fmt: skip
        seq = len(self.entries) + 1
        draws: list[Draw] = []
        uncovered, day = 0, None
        if kind == "USAGE":
            draws = self._draw(amount, at, self.holds[hold_id] if hold_id else None)
            uncovered, day = amount - summed(draws), str(at.astimezone(ZoneInfo(self.zone)).date())
            self.uncovered += uncovered
        elif kind == "VOID" and voids_seq:
            event = self.entries[voids_seq - 1]
            draws, day = self._give_back(event, amount), event.day
        elif kind == "HOLD" and hold_id:
            draws = self._take(amount, at)
            self.holds[hold_id] = Hold(seq, amount, at, at + timedelta(seconds=sent[2]), draws)
            self.held += amount
        elif hold_id:
            self._close(self.holds[hold_id], "RELEASED" if kind == "RELEASE" else "EXPIRED", at, spent=0)
        else:
            grant = seq if kind == "GRANT" else grant
            self._book_credits(kind, amount, sent, self.sources.setdefault(grant or BASE, Source(seq)))
        totals = (self.total, self.used, self.held, self.limit)
        entry = Entry(seq, kind, key, amount, *totals, at, draws, uncovered, voids_seq, grant, hold_id, day, sent)
        self.entries.append(entry)
        for source_seq, covered in self._take(self.uncovered, at):
            self.sources[source_seq].covered += covered
            self.uncovered -= covered
        return entry

    def _book_credits(self, kind: str, amount: int, sent: tuple[Any, ...], source: Source) -> None:
        added = amount if kind in {"OPENING", "REFILL", "GRANT"} else -amount
        self.total += added
        source.open += added
        if kind in {"OPENING", "SETTINGS"}:
            self.overages, self.cap, self.max_open_holds = sent
        if kind in {"OPENING", "REFILL", "GRANT"}:
            source.amount += amount
        if kind == "GRANT":
            source.priority, source.category, source.expires_at = sent[1:]
        if kind == "GRANT_CHANGED":
            source.priority, source.expires_at = sent
        if kind == "EXPIRY":
            source.expired += amount
        if kind == "REVOCATION":
            source.revoked += amount
            source.closed = source.closed or sent[1] is None

    def _draw(self, amount: int, at: datetime, hold: Hold | None) -> list[Draw]:
        """Debit: of a commit the pins of its hold, in their order, then what is open."""
        pins = self._close(hold, "COMMITTED", at, spent=amount) if hold else []
        draws = joined([*pins, *self._take(amount - summed(pins), at)])
        for seq, drawn in draws:
            self.sources[seq].drawn += drawn
        self.used += amount
        return draws

    def _take(self, amount: int, at: datetime) -> list[Draw]:
        """Take what is open of what lives, in the order of use, and return what was taken."""
        taken: list[Draw] = []
        for source in self.in_order():
            part = 0 if source.ended(at) else min(source.open, amount - summed(taken))
            source.open -= part
            taken.append((source.seq, part))
        return joined(taken)

    def _close(self, hold: Hold, state: str, at: datetime, *, spent: int) -> list[Draw]:
        """Close a hold and free its pins, but for the first ones up to `spent`, which are returned."""
        drawn: list[Draw] = []
        for seq, pin in hold.pins:
            drawn.append((seq, min(pin, spent - summed(drawn))))
            self.sources[seq].open += pin - drawn[-1][1]
        hold.state, hold.closed_at, hold.committed = state, at, spent or None
        self.held -= hold.amount
        return joined(drawn)

    def _give_back(self, event: Entry, amount: int) -> list[Draw]:
        """Give back of a usage, last first: its uncovered part, then its draws, less what earlier voids gave back."""
        before = self.voided(event)
        unpaid = min(amount, max(0, event.uncovered - before))
        still = min(unpaid, self.uncovered)
        back: list[Draw] = []
        for source in sorted(self.sources.values(), key=lambda source: -source.seq):
            back.append((source.seq, min(source.covered, unpaid - still - summed(back))))
            source.covered -= back[-1][1]
        skipped = max(0, before - event.uncovered)
        for seq, drawn in reversed(event.draws):
            part = min(max(0, drawn - skipped), amount - still - summed(back))
            skipped = max(0, skipped - drawn)
            self.sources[seq].drawn -= part
            back.append((seq, part))
        for seq, part in back:
            self.sources[seq].open += part
        self.uncovered -= still
        self.used -= amount
        return joined(back)

    def end(self, at: datetime) -> None:
        for source in self.in_order():
            if source.open and source.ended(at):
                kind = "REVOCATION" if source.closed else "EXPIRY"
                self.book(kind, at, source.open, sent=(source.seq, None), grant=source.seq)

    def settled(self, now: datetime) -> datetime:
        """Book what is due, and return the clock of the decision."""
        clock = max(now, self.entries[-1].at)
        while (moment := self.next_due()) is not None and moment <= clock:
            for hold_id, hold in self.holds.items():
                if hold.state == "OPEN" and hold.expires_at == moment:
                    self.book("HOLD_EXPIRY", moment, hold.amount, key=hold_id, hold_id=hold_id)
            self.end(moment)
        return clock

    # What a read shows, and what verify asserts.

    def as_settled(self, now: datetime) -> Self:
        """A copy on which what is due is booked."""
        ledger = copy.copy(self)
        ledger.entries = list(self.entries)
        ledger.sources = {seq: replace(source) for seq, source in self.sources.items()}
        ledger.holds = {hold_id: replace(hold) for hold_id, hold in self.holds.items()}
        ledger.verified = None
        ledger.settled(now)
        return ledger

    def state(self, now: datetime) -> dict[str, Any]:
        """What a read shows: as if what is due were booked."""
        return self.as_settled(now)._shown(max(now, self.entries[-1].at))

    def _shown(self, clock: datetime) -> dict[str, Any]:
        def values(of: object, *names: str) -> dict[str, Any]:
            return {name: getattr(of, name) for name in names}

        grant_values = ("amount", "open", "expired", "revoked", "priority", "category", "expires_at")
        hold_values = ("amount", "state", "committed", "expires_at", "closed_at")
        return values(self, "total", "used", "held", "uncovered", "available") | {
            "pinned": self.pinned(),
            "overage": max(0, self.used - self.total),
            "grants": {
                grant.seq: values(grant, *grant_values)
                | {
                    "pinned": self.pinned(grant.seq),
                    "drawn": grant.drawn + grant.covered,
                    "state": self.state_of(grant, clock),
                }
                for grant in self.grants()
            },
            "holds": {hold_id: values(hold, *hold_values) for hold_id, hold in self.holds.items()},
            "burn_down": [(source.seq, source.open) for source in self.in_order() if source.open],
        }

    def check(self) -> None:
        """Assert the identities that hold between commands."""
        entries, last, sources = self.entries, self.entries[-1].at, self.sources.values()
        open_holds, pinned = self.open_holds(), self.pinned()
        assert pinned <= self.held == sum(hold.amount for hold in open_holds)
        assert 0 <= self.total <= MAX
        assert 0 <= self.used <= self.used + self.held <= MAX
        assert sum(source.open for source in sources) == max(0, self.total - self.used - pinned)
        assert self.uncovered == max(0, self.used + pinned - self.total)
        unpaid = sum(max(0, entry.uncovered - self.voided(entry)) for entry in entries if entry.uncovered)
        assert unpaid == self.uncovered + sum(source.covered for source in sources)
        for source in sources:
            parts = (source.open, source.drawn, source.covered, self.pinned(source.seq), source.expired, source.revoked)
            assert min(parts) >= 0
            assert source.amount == sum(parts)
            assert not (source.open and source.ended(last))
        assert all(hold.expires_at > last for hold in open_holds)
        resolved = [entry.hold_id for entry in entries if entry.hold_id and entry.kind != "HOLD"]
        assert len(resolved) == len(set(resolved)) == len(self.holds) - len(open_holds)
        keys = [(entry.kind, entry.key) for entry in entries if entry.key is not None]
        assert len(keys) == len(set(keys))
        self._check_ledger()

    def _check_ledger(self) -> None:
        """Assert that the entries, booked on another ledger, give every total, draw and coverage again."""
        first = self.entries[0]
        other = self.verified or Ledger(
            now=first.at, total=first.amount, overages=first.sent[0], cap=first.sent[1], zone=self.zone
        )
        for entry in self.entries[len(other.entries) :]:
            before = other.entries[-1]
            assert entry.at >= before.at
            late = [draw for draw in entry.draws if entry.kind != "VOID" and other.sources[draw[0]].ended(entry.at)]
            pins = other.holds[entry.hold_id].pins if late and entry.hold_id else []
            assert all(amount <= summed(pin for pin in pins if pin[0] == seq) for seq, amount in late)
            facts = {name: getattr(entry, name) for name in ("key", "sent", "voids_seq", "grant", "hold_id")}
            ended = [(source, source.covered) for source in other.sources.values() if source.ended(entry.at)]
            assert other.book(entry.kind, entry.at, entry.amount, **facts) == entry
            assert all(source.covered <= covered for source, covered in ended)
            grew = entry.used_after + entry.held_after > before.used_after + before.held_after
            assert not (grew and entry.sent[1] != "FORCE" and entry.over_limit)
        assert (other.uncovered, other.sources) == (self.uncovered, self.sources)
        self.verified = other
