"""The reference model of a meter with grants and holds: rows computed by hand from the rules, then random commands."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.credit_ledger import MAX
from tests.credit_model import Answer, Meter

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


# Random commands.

SITUATIONS = {
    "second EXPIRY",
    "keyless REVOCATION",
    "commit from an ended grant",
    "uncovered",
    "several draws",
    "void of several draws",
    "void of what is uncovered",
    "void to an ended grant",
    "covered by a grant",
    "replay",
}
Command = Callable[[Meter, datetime], Answer]


class Run:
    """A meter under random commands. `seen` counts answers and the situations that the rules are about."""

    def __init__(self, chance: random.Random, seen: Counter[str]) -> None:
        self.chance, self.seen, self.now = chance, seen, START
        overages, cap = chance.random() < 0.4, chance.choice([None, 0, 5])
        self.meter = Meter(now=START, total=chance.randrange(15), overages=overages, cap=cap, max_grants=4, max_holds=4)
        self.done: list[tuple[Command, Answer]] = []

    def amount(self) -> int:
        return MAX - self.chance.randrange(9) if self.chance.random() < 0.02 else self.chance.randrange(10)

    def name(self, letter: str, known: list[str]) -> str:
        """A new name, or one that is known."""
        return self.chance.choice(known) if known and self.chance.random() < 0.1 else f"{letter}{self.chance.random()}"

    def drawn(self) -> tuple[str, Command]:
        """A command, with values that mostly fit the meter and sometimes miss it."""
        meter, some, amount = self.meter, self.chance.choice, self.amount()
        keys = [entry.key for entry in meter.entries if entry.key]
        key, event, hold = self.name("k", keys), self.name("e", keys), self.name("h", keys)
        used = some([entry.key for entry in meter.entries if entry.kind == "USAGE" and entry.key] or [event])
        opened = [hold_id for hold_id, of_id in meter.holds.items() if of_id.state == "OPEN"]
        held = some(opened or [hold]) if self.chance.random() < 0.8 else some([*meter.holds, event])
        debit, hold_policy = some(["REJECT", "PARTIAL", "FORCE"]), some(["REJECT", "PARTIAL"])
        seconds = some([1, 5, 10, 20, 86_400])
        end = some([None, self.now + timedelta(seconds=seconds), *[of_id.expires_at for of_id in meter.holds.values()]])
        grant = some([grant.seq for grant in meter.grants()][-3:] or [0])
        maybe, priority, category = some([None, amount]), some([50, 50, 40, 60]), some(["PAID", "PROMOTIONAL"])
        overages, cap, closed = some([None, True, False]), some([None, amount]), some(["REFUSE", "RECORD"])
        commands: list[tuple[int, str, Command]] = [
            (1, "refill", lambda m, t: m.refill(t, key, amount)),
            (1, "settings", lambda m, t: m.settings(t, overages=overages, cap=cap)),
            (6, "record", lambda m, t: m.record(t, event, amount, debit)),
            (5, "void", lambda m, t: m.void(t, key, used, maybe)),
            (5, "grant", lambda m, t: m.grant(t, key, amount, priority=priority, category=category, expires_at=end)),
            (1, "update", lambda m, t: m.update_grant(t, grant, priority=priority, expires_at=end)),
            (1, "revoke", lambda m, t: m.revoke(t, key, grant, maybe)),
            (7, "hold", lambda m, t: m.hold(t, hold, amount, hold_policy, seconds)),
            (8, "commit", lambda m, t: m.commit(t, held, amount, debit, closed)),
            (1, "release", lambda m, t: m.release(t, held)),
            (1, "extend", lambda m, t: m.extend(t, held, seconds)),
        ]
        return self.chance.choices([named[1:] for named in commands], [named[0] for named in commands])[0]

    def step(self) -> None:
        meter, chance = self.meter, self.chance
        due = meter.next_due()
        wanted = due if due and chance.random() < 0.1 else self.now + timedelta(seconds=chance.choice([0, 0, 1, 2, -3]))
        self.now = max(START, wanted)
        before, shown = meter.as_settled(self.now).entries, meter.state(self.now)
        if chance.random() < 0.5:
            while (moment := meter.next_due()) is not None and moment <= self.now:
                meter.settle(moment)
                meter.check()
        if self.done and chance.random() < 0.1:
            command, first = chance.choice(self.done)
            answer = command(meter, self.now)
            assert answer == Answer("Success", first.seq, replayed=True, facts=first.facts)
            self.seen["replay"] += 1
        else:
            name, command = self.drawn()
            answer = command(meter, self.now)
            self.seen[f"{name} {answer.outcome}"] += 1
            if answer.seq is not None and not answer.replayed and name not in {"settings", "update"}:
                self.done.append((command, answer))
        meter.settle(self.now)
        if answer.outcome == "Success" and answer.seq is not None and not answer.replayed:
            assert meter.entries[: len(before)] == before
            assert meter.entries[len(before)].seq == answer.seq
        else:  # Nothing but what was due is booked, and a read had shown it.
            assert meter.entries == before
            assert answer.outcome == "Success" or meter.state(self.now) == shown
        meter.check()

    def count_situations(self) -> None:
        entries, seen = self.meter.entries, self.seen
        for entry in entries:
            seen[entry.kind] += 1
            before = entries[: entry.seq - 1]
            ended = {of.grant for of in before if of.kind in {"EXPIRY", "REVOCATION"} and of.sent[1] is None}
            if entry.kind == "EXPIRY":
                seen["second EXPIRY"] += entry.grant in ended
            if entry.kind == "REVOCATION":
                seen["keyless REVOCATION"] += entry.key is None
            if entry.kind == "USAGE":
                seen["commit from an ended grant"] += any(seq in ended for seq, _ in entry.draws)
                seen["uncovered"] += entry.uncovered > 0
                seen["several draws"] += len(entry.draws) > 2
            if entry.kind == "VOID":
                seen["void of several draws"] += len(entry.draws) > 1
                seen["void of what is uncovered"] += sum(amount for _, amount in entry.draws) < entry.amount
                seen["void to an ended grant"] += any(seq in ended for seq, _ in entry.draws)
        seen["covered by a grant"] += any(grant.covered for grant in self.meter.grants())


@pytest.mark.parametrize("seed", range(6))
def test_identities_hold_after_random_commands(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # So that a run can be repeated.
    seen: Counter[str] = Counter()
    for _ in range(40):
        run = Run(chance, seen)
        for _ in range(60):
            run.step()
        run.count_situations()
    assert {name for name, times in seen.items() if times} >= SITUATIONS
