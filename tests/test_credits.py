"""Grants and holds against the reference model: the same commands have the same outcomes, entries and draws."""

import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from resolvers.errors import Refusal
from resolvers.meters.commands import Command, Decision, gateway_key
from resolvers.meters.grants import GrantCredits, RevokeCreditGrant, UpdateCreditGrant
from resolvers.meters.holds import CommitHold, ExtendHold, HoldCredits, ReleaseHold
from resolvers.meters.record_usage import RecordUsage
from resolvers.meters.refill import Refill
from resolvers.meters.settings import ChangeSettings
from resolvers.meters.void_usage import VoidUsage
from storage import ledger
from storage.billing_meters import MeterName, ids_by_names
from storage.credit_grants import CreditGrantCategory
from storage.ledger import LedgerEntryRow, OverLimitPolicy
from storage.maintenance import audit
from storage.tenants import Environment
from tests.conftest import NOW, Gateway
from tests.credit_ledger import BASE, MAX, Entry
from tests.credit_model import Answer, Meter
from tests.steps import disagreements, make_meter, must, new_key

if TYPE_CHECKING:
    from collections.abc import Callable


class Pair:
    """A meter of the gateway and one of the model, to which the same is done."""

    meter_id: str

    def __init__(self, gateway: Gateway, name: str, model: Meter, recorded_by: str) -> None:
        self.gateway = gateway
        self.model = model
        self.name = MeterName(gateway.org_id, Environment.SANDBOX, "w", name)
        self.recorded_by = recorded_by
        self.seen = 0

    async def submit(self, *commands: Command) -> list[Decision | Refusal]:
        return await self.gateway.services.meter_writer.submit(commands)

    async def new_entries(self) -> list[tuple[Any, ...]]:
        """Return the gateway's entries that have not been seen."""
        async with self.gateway.database.read() as reader:
            (self.meter_id,) = (await ids_by_names(reader, [self.name])).values()
            (entries,) = await ledger.by_ranges(reader, [(self.meter_id, self.seen + 1, MAX)])
        return [shown(entry) for entry in entries[::-1]]

    def expected_entries(self) -> list[tuple[Any, ...]]:
        """Return the model's entries that have not been seen, and see them."""
        entries = self.model.entries[self.seen :]
        self.seen += len(entries)
        return [shown(entry) for entry in entries]

    async def check_rows(self) -> None:
        """Hold the gateway's grants and holds against the model's."""
        async with self.gateway.database.read() as reader:
            grants = await audit.grants_of(reader, [self.meter_id])
            found = await audit.holds_of(reader, [self.meter_id])
        sources = self.model.sources
        assert {row.seq for row in grants[self.meter_id]} == set(sources) - {BASE}
        for row in grants[self.meter_id]:
            source = sources[row.seq]
            sums = (row.open_credits, row.pinned_credits, row.drawn_credits, row.covered_credits)
            assert sums == (source.open, self.model.pinned(row.seq), source.drawn + source.covered, source.covered)
            ends = (row.expired_credits, row.revoked_credits, row.is_closed)
            assert ends == (source.expired, source.revoked, source.closed)
        assert {row.hold_id for row in found[self.meter_id]} == set(self.model.holds)
        for hold in found[self.meter_id]:
            other = self.model.holds[hold.hold_id]
            assert (hold.state.name, hold.committed_amount) == (other.state, other.committed)
            assert (hold.expires_at, hold.closed_at) == (other.expires_at, other.closed_at)


def command_of(pair: Pair, what: str, values: dict[str, Any], grant_keys: dict[int, str]) -> Command:
    """Return the command that asks the gateway for what the model is asked for."""
    name, key, by = pair.name, values.get("key", ""), pair.recorded_by

    def usage(event_id: str) -> RecordUsage:
        policy = OverLimitPolicy[values["policy"]]
        return RecordUsage(name, event_id, values["amount"], "default", None, policy, {}, by, may_backfill=False)

    def grant() -> GrantCredits:
        terms = (values["priority"], CreditGrantCategory[values["category"]], values["expires_at"])
        return GrantCredits(name, values["amount"], *terms, None, {}, key, by, pair.model.max_grants)

    def hold() -> HoldCredits:
        policy = OverLimitPolicy[values["policy"]]
        asked = (values["hold_id"], values["amount"], policy, values["expires_in"])
        return HoldCredits(name, *asked, {}, by, pair.model.max_holds)

    def settings() -> ChangeSettings:
        columns: dict[str, str] = {"overages": "allow_overages", "cap": "spend_cap", "max_open_holds": "max_open_holds"}
        changes = {columns[setting]: value for setting, value in values.items()}
        return ChangeSettings(name, changes, may_attach=True, key=gateway_key(), recorded_by=by)

    grant_key = grant_keys.get(values.get("grant", 0), "missing")
    changes: dict[str, Any] = {str(column): values[column] for column in ("priority", "expires_at") if column in values}
    commands: dict[str, Callable[[], Command]] = {
        "refill": lambda: Refill(name, values["amount"], key, by),
        "settings": settings,
        "record": lambda: usage(values["event_id"]),
        "void": lambda: VoidUsage(name, values["event_id"], values["amount"], "wrong", key, by),
        "grant": grant,
        "update_grant": lambda: UpdateCreditGrant(name, grant_key, changes, None, gateway_key(), by),
        "revoke": lambda: RevokeCreditGrant(name, grant_key, values["amount"], None, key, by),
        "hold": hold,
        "commit": lambda: CommitHold(usage(values["hold_id"]), values["if_closed"] == "RECORD"),
        "release": lambda: ReleaseHold(name, values["hold_id"], by),
        "extend": lambda: ExtendHold(name, values["hold_id"], values["expires_in"]),
    }
    return commands[what]()


def drawn(chance: random.Random, now: datetime, seqs: list[int]) -> tuple[str, dict[str, Any]]:
    """Draw a command and its values, of which few differ, so that they often meet."""
    amount = chance.choice([0, 1, 2, 3, 5, 7, 12])
    some = max(1, amount)
    policy = chance.choice(["REJECT", "PARTIAL", "FORCE"])
    ids = [f"id{number}" for number in range(8)]
    keys = [f"key{number}" for number in range(150)]
    ends = [None, *[now + timedelta(seconds=seconds) for seconds in (-5, 0, 5, 10, 20, 40)]]
    what = chance.choices(
        [
            "refill",
            "settings",
            "record",
            "void",
            "grant",
            "update_grant",
            "revoke",
            "hold",
            "commit",
            "release",
            "extend",
        ],
        [2, 2, 10, 5, 6, 2, 3, 8, 8, 3, 2],
    )[0]
    values: dict[str, dict[str, Any]] = {
        "refill": {"key": chance.choice(keys), "amount": some},
        "settings": chance.choice(
            [{"overages": True}, {"overages": False}, {"cap": amount}, {"cap": None}, {"max_open_holds": 1 + amount}]
        ),
        "record": {"event_id": chance.choice(ids), "amount": amount, "policy": policy},
        "void": {"key": chance.choice(keys), "event_id": chance.choice(ids), "amount": chance.choice([None, some])},
        "grant": {
            "key": chance.choice(keys),
            "amount": some,
            "priority": chance.choice([0, 50, 50, 100]),
            "category": chance.choice(["PAID", "PROMOTIONAL"]),
            "expires_at": chance.choice(ends),
        },
        "update_grant": {
            "grant": chance.choice(seqs),
            **chance.choice([{"priority": chance.choice([0, 50, 100])}, {"expires_at": chance.choice(ends[1:])}]),
            **chance.choice([{}, {}]),
        },
        "revoke": {"key": chance.choice(keys), "grant": chance.choice(seqs), "amount": chance.choice([None, some])},
        "hold": {
            "hold_id": chance.choice(ids),
            "amount": some,
            "policy": chance.choice(["REJECT", "PARTIAL"]),
            "expires_in": chance.choice([5, 10, 20, 900]),
        },
        "commit": {
            "hold_id": chance.choice(ids),
            "amount": amount,
            "policy": policy,
            "if_closed": chance.choice(["REFUSE", "RECORD"]),
        },
        "release": {"hold_id": chance.choice(ids)},
        "extend": {"hold_id": chance.choice(ids), "expires_in": chance.choice([5, 20, 86_400])},
    }
    return what, values[what]


def shown(entry: LedgerEntryRow | Entry) -> tuple[Any, ...]:
    """Return what both the gateway's entries and the model's say; draws of the base alone may be left out."""
    if isinstance(entry, LedgerEntryRow):
        draws = [(seq, amount) for seq, amount in entry.draws or ()]
        held, at, voids, kind, grant = (
            *(entry.held_credits_after, entry.recorded_at, entry.voids_seq, entry.kind.name, entry.grant_seq),
        )
        totals = (entry.total_credits_after, entry.used_credits_after, held, entry.limit_credits)
    else:
        draws, at, voids, kind, grant = entry.draws, entry.at, entry.voids_seq, entry.kind, entry.grant
        totals = (entry.total_after, entry.used_after, entry.held_after, entry.limit)
    of_grants = [] if all(seq == BASE for seq, _ in draws) else draws
    return (entry.seq, kind, entry.amount, totals, at, of_grants, voids, grant)


@pytest.mark.parametrize("seed", range(20))
async def test_any_sequence_is_decided_as_the_model_does(gateway: Gateway, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # It draws commands.
    overages, cap = chance.choice([(False, None), (True, None), (True, 5)])
    total = chance.choice([0, 5, 30])
    settings: dict[str, Any] = {"allowOverages": overages} | ({} if cap is None else {"spendCap": str(cap)})
    meter_id = await make_meter(gateway, totalCredits=str(total), **settings)
    model = Meter(now=NOW, total=total, overages=overages, cap=cap, max_grants=4, max_holds=5)
    key_id, _ = await new_key(gateway)
    pair = Pair(gateway, "m", model, key_id)
    grant_keys: dict[int, str] = {}
    for _ in range(60):
        gateway.clock.forward(seconds=chance.choice([0, 0, 1, 5, 5, 10]))
        now = gateway.clock.now
        what, values = drawn(chance, now, [*grant_keys, 999])
        (result,) = await pair.submit(command_of(pair, what, values, grant_keys))
        answer: Answer = getattr(model, what)(now, **values)
        outcome = type(result).__name__ if isinstance(result, Refusal) else "Success"
        assert outcome == answer.outcome, (what, values)
        if isinstance(result, Decision):
            assert (result.entry and result.entry.seq, result.replayed) == (answer.seq, answer.replayed), (what, values)
            if what == "grant" and result.entry is not None:
                grant_keys.setdefault(result.entry.seq, values["key"])
        assert await pair.new_entries() == pair.expected_entries(), (what, values)
    await pair.check_rows()
    assert await disagreements(gateway.database, meter_id) == []


async def test_a_hold_is_extended_beside_another_one_that_ends_before(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    for hold_id in ("a", "b"):
        await must(gateway, "holdCredits", holdId=hold_id, amount="10")
    extended = await must(gateway, "extendHold", "hold { expiresAt }", holdId="a", expiresInSeconds=3_600)
    assert extended["hold"] == {"expiresAt": "2026-03-16T13:00:00Z"}
    gateway.clock.forward(seconds=900)
    query = "query ($id: ID!) { node(id: $id) { ... on BillingMeter { holds { nodes { holdId state expiresAt } } } } }"
    assert (await gateway.data(query, {"id": meter_id}))["node"]["holds"]["nodes"] == [
        {"holdId": "b", "state": "EXPIRED", "expiresAt": "2026-03-16T12:15:00Z"},
        {"holdId": "a", "state": "OPEN", "expiresAt": "2026-03-16T13:00:00Z"},
    ]
    committed = await must(gateway, "commitHold", "accepted", holdId="a", amount="10")
    assert committed["accepted"] == "10"
    assert await disagreements(gateway.database, meter_id) == []
