"""The ledger that tests damage, and all that a check of it reads."""

from collections.abc import Mapping

from sqlalchemy import text

from resolvers.actor import Scope
from resolvers.api_keys import digest_of
from storage import api_keys
from storage.tenants import Environment
from tests.conftest import Gateway
from tests.steps import make_customer, make_meter, must, session_of

#: Where the meter `M` is.
ZONE = "America/New_York"


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
        for name, caller in (("all", gateway), ("limited", limited), ("other", other), ("narrow", narrow)):
            row = await api_keys.by_digest(reader, digest_of(caller.key))
            assert row is not None
            names[f"K_{name}"] = row.id
        session = await reader.fetch_one(text("SELECT id FROM api_keys WHERE parent_id IS NOT NULL"))
    assert session is not None
    return names | {"S": session.id}
