"""The ledgers that tests damage, and what a check finds then."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from resolvers.actor import Scope
from resolvers.api_keys import digest_of
from storage import api_keys
from storage.tenants import Environment
from tests.conftest import Gateway
from tests.steps import found_after, make_customer, make_meter, must, session_of

#: Where the meter `M` is.
ZONE = "America/New_York"


@dataclasses.dataclass
class Books:
    """The gateway, and what stands for the ids of its rows in the statements and findings below."""

    gateway: Gateway
    names: Mapping[str, str]


def named(text_: str, names: Mapping[str, str]) -> str:
    """Return the text with the ids for their names, which stand in it like `<M>`."""
    return re.sub("<([A-Za-z_]+)>", lambda match: names[match[1]], text_)


async def found_in(books: Books, statements: Sequence[str]) -> list[str]:
    """Return what `verify` finds when these statements have been run."""
    found = await found_after(books.gateway.database, [named(each, books.names) for each in statements])
    return [f"{each.id} {each.message}" for each in found]


def change(table: str, values: str, where: str) -> str:
    return f"UPDATE {table} SET {values} WHERE {where}"  # noqa: S608  # All of it is our own.


async def keep_books(gateway: Gateway) -> Mapping[str, str]:
    """Make customers, meters, keys and a session, and the ledger below of the meter `M`; return their ids.

    All is recorded at noon UTC of 2026-03-16, a morning in the meter's zone.

    | seq | kind     | key  | amount | total | used | limit | day        | asked       |
    | --- | -------- | ---- | ------ | ----- | ---- | ----- | ---------- | ----------- |
    | 1   | OPENING  | open | 100    | 100   | 0    | 150   |            |             |
    | 2   | USAGE    | a    | 10     | 100   | 10   | 150   | 2026-03-16 | 10, REJECT  |
    | 3   | USAGE    | b    | 140    | 100   | 150  | 150   | 2026-03-15 | 200, PARTIAL|
    | 4   | USAGE    | c    | 7      | 100   | 157  | 150   | 2026-03-16 | 7, FORCE    |
    | 5   | REFILL   | r    | 20     | 120   | 157  | 170   |            |             |
    | 6   | VOID     | v    | 4      | 120   | 153  | 170   | 2026-03-16 | of a        |
    | 7   | USAGE    | d    | 5      | 120   | 158  | 170   | 2026-03-16 | 5, PARTIAL  |
    | 8   | SETTINGS |      | 0      | 120   | 158  | 180   |            | cap 60      |
    """
    names = {"org": gateway.org_id, "other_org": f"{gateway.org_id}-other"}
    live = await gateway.caller(environment=Environment.LIVE)
    other = await gateway.caller(org_id=names["other_org"])
    limited = await gateway.caller(Scope.USAGE_WRITE)
    reading = await gateway.caller(Scope.BILLING_READ)
    for name, caller in (("customer", gateway), ("second", gateway), ("live", live), ("other", other)):
        names[f"C_{name}"] = await make_customer(caller, f"{name}@example.com", idempotencyKey=f"{name}-key")
    for name, caller in (("M", gateway), ("neighbour", gateway), ("other", other)):
        names["M" if name == "M" else f"M_{name}"] = await make_meter(
            caller,
            name,
            totalCredits="100",
            allowOverages=True,
            spendCap="50",
            timezone=ZONE,
            customerId=names["C_other" if caller is other else "C_customer"],
            idempotencyKey="open" if name == "M" else f"{name}-open",
        )
    meter = {"externalMeterId": "M"}
    await must(gateway, "recordUsage", **meter, eventId="a", amount="10")
    await must(
        gateway, "recordUsage", **meter, eventId="b", amount="200", policy="PARTIAL", occurredAt="2026-03-16T02:00:00Z"
    )
    await must(gateway, "recordUsage", **meter, eventId="c", amount="7", policy="FORCE")
    await must(gateway, "refillBillingMeter", **meter, refill="20", idempotencyKey="r")
    await must(gateway, "voidUsage", **meter, eventId="a", amount="4", reason="x", idempotencyKey="v")
    await must(limited, "recordUsage", **meter, eventId="d", amount="5", policy="PARTIAL", metadata={"model": "m"})
    await must(gateway, "updateBillingMeter", **meter, spendCap="60", customerId=names["C_second"])
    await session_of(gateway, names["C_customer"])
    narrow = await gateway.caller(workspaces=["elsewhere"])
    async with gateway.database.read() as reader:
        for name, caller in (
            *(("all", gateway), ("limited", limited), ("other", other), ("narrow", narrow)),
            *(("live", live), ("reading", reading)),
        ):
            row = await api_keys.by_digest(reader, digest_of(caller.key))
            assert row is not None
            names[f"K_{name}"] = row.id
        session = await reader.fetch_one(text("SELECT id FROM api_keys WHERE parent_id IS NOT NULL"))
    assert session is not None
    return names | {"S": session.id}


async def keep_credits(gateway: Gateway) -> Mapping[str, str]:
    """Make a meter `G` with grants and holds and the ledger below; return its id and the organization's.

    It is opened with 100 and a cap of 50, at noon UTC of 2026-03-16. `draws` are [seq of the grant or 0, credits].

    | seq | kind          | key | amount | at       | total | used | held | draws               |
    | --- | ------------- | --- | ------ | -------- | ----- | ---- | ---- | ------------------- |
    | 1   | OPENING       |     | 100    | 12:00:00 | 100   | 0    | 0    |                     |
    | 2   | GRANT         | p   | 30     |          | 130   | 0    | 0    |                     |
    | 3   | GRANT         | q   | 20     |          | 150   | 0    | 0    |                     |
    | 4   | USAGE         | a   | 40     |          | 150   | 40   | 0    | [2, 30], [0, 10]    |
    | 5   | HOLD          | h   | 15     |          | 150   | 40   | 15   | [0, 15]             |
    | 6   | GRANT         | s   | 10     |          | 160   | 40   | 15   |                     |
    | 7   | HOLD          | i   | 6      |          | 160   | 40   | 21   | [6, 6]              |
    | 8   | USAGE         | h   | 20     |          | 160   | 60   | 6    | [0, 15], [6, 4], [0, 1] |
    | 9   | HOLD_EXPIRY   | i   | 6      | 12:00:20 | 160   | 60   | 0    |                     |
    | 10  | EXPIRY        |     | 6      | 12:00:30 | 154   | 60   | 0    | of s                |
    | 11  | REVOCATION    | x   | 5      | 12:00:40 | 149   | 60   | 0    | of q                |
    | 12  | VOID          | v   | 12     |          | 149   | 48   | 0    | [0, 10], [2, 2]     |
    | 13  | GRANT_CHANGED |     | 0      |          | 149   | 48   | 0    | of p                |
    | 14  | HOLD          | k   | 5      |          | 149   | 48   | 5    | [2, 2], [0, 3]      |
    | 15  | HOLD          | j   | 4      |          | 149   | 48   | 9    | [0, 4]              |
    | 16  | RELEASE       | j   | 4      |          | 149   | 48   | 5    |                     |
    | 17  | USAGE         | u   | 106    |          | 149   | 154  | 5    | [0, 81], [3, 15]    |
    | 18  | GRANT         | t   | 6      |          | 155   | 154  | 5    |                     |
    """
    meter = {"externalMeterId": "G"}
    names = {"org": gateway.org_id}
    reading = await gateway.caller(Scope.BILLING_READ)
    names["G"] = await make_meter(gateway, "G", totalCredits="100", allowOverages=True, spendCap="50")

    async def grant(key: str, amount: str, **values: Any) -> str:
        selection = "creditGrant { id }"
        made = await must(gateway, "grantCredits", selection, **meter, amount=amount, idempotencyKey=key, **values)
        return str(made["creditGrant"]["id"])

    async def hold(hold_id: str, amount: str, seconds: int) -> None:
        await must(gateway, "holdCredits", **meter, holdId=hold_id, amount=amount, expiresInSeconds=seconds)

    terms = {"category": "PROMOTIONAL", "priority": 10, "reason": "welcome", "metadata": {"campaign": "spring"}}
    promotional = await grant("p", "30", expiresAt="2026-03-16T12:01:00Z", **terms)
    paid = await grant("q", "20")
    await must(gateway, "recordUsage", **meter, eventId="a", amount="40")
    await hold("h", "15", 900)
    await grant("s", "10", priority=0, expiresAt="2026-03-16T12:00:30Z")
    await hold("i", "6", 20)
    await must(gateway, "commitHold", **meter, holdId="h", amount="20")
    gateway.clock.forward(seconds=40)
    revocation = {"id": paid, "amount": "5", "reason": "wrong", "idempotencyKey": "x"}
    await gateway.mutate("revokeCreditGrant", "", **revocation)
    await must(gateway, "voidUsage", **meter, eventId="a", amount="12", reason="x", idempotencyKey="v")
    await gateway.mutate("updateCreditGrant", "", id=promotional, priority=20)
    await hold("k", "5", 900)
    await hold("j", "4", 900)
    await must(gateway, "releaseHold", **meter, holdId="j")
    await must(gateway, "recordUsage", **meter, eventId="u", amount="106", policy="FORCE")
    await grant("t", "6")
    async with gateway.database.read() as reader:
        row = await api_keys.by_digest(reader, digest_of(reading.key))
    assert row is not None
    return names | {"K_reading": row.id}
