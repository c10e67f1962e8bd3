"""Meters on a database that is divided: all that is written of them, and all that can be asked about them."""

from datetime import timedelta
from typing import Any

from storage.engine.database import Database
from storage.meters.billing_meters import MeterName, billing_meters
from storage.tables import TABLES
from storage.tenants import Environment
from tests.conftest import NOW, Gateway, gateway_on
from tests.steps import disagreements, execute, hold, make_grant, make_meter, must, rows_of

#: The tables of meters and of what is theirs.
OF_METERS = [table for table in TABLES if "bucket" in table.c]

#: All that can be asked about a meter and what is of it.
ALL_OF_A_METER = """{
  id externalMeterId usedCredits availableCredits totalCredits heldCredits
  usage(from: "2026-03-01", to: "2026-03-31") { day billingUsageName totalBillingUsage }
  ledger(first: 20) { nodes { id kind amount key usedCreditsAfter metadata } }
  creditGrants(first: 5) { nodes { id amount openCredits drawnCredits state } }
  holds(first: 5) { nodes { id holdId amount state } }
  burnDown { openCredits }
}"""


def bucket_of(gateway: Gateway, name: str) -> int:
    """Return where the meter of this name lies."""
    return gateway.database.buckets.of_names(MeterName(gateway.org_id, Environment.SANDBOX, "w", name))


def one_of_each(gateway: Gateway) -> list[str]:
    """Return the name of a meter for each bucket, in the order of the buckets."""
    # As many as are enough for one to lie in each, whatever the organization is called.
    found = {bucket_of(gateway, name): name for name in (f"m{number}" for number in range(200))}
    return [found[bucket] for bucket in gateway.database.buckets.values]


async def fill(gateway: Gateway, name: str, **values: Any) -> str:
    """Make a meter, do everything with it that writes a row, and return its id."""
    meter_id = await make_meter(gateway, name, totalCredits="100", **values)
    meter = {"externalMeterId": name}
    await must(gateway, "recordUsage", eventId="e1", amount="7", metadata={"of": name}, **meter)
    await must(gateway, "recordUsage", eventId="e2", amount="5", usageName="other", **meter)
    await must(gateway, "voidUsage", eventId="e2", amount="2", reason="r", idempotencyKey="v", **meter)
    await must(gateway, "refillBillingMeter", refill="50", idempotencyKey="r", **meter)
    await must(gateway, "updateBillingMeter", allowOverages=True, **meter)
    grant_id = await make_grant(gateway, 20, expiresAt=(NOW + timedelta(days=1)).isoformat(), **meter)
    await gateway.mutate("updateCreditGrant", "", id=grant_id, priority=3)
    await hold(gateway, "h1", 9, **meter)
    await must(gateway, "commitHold", holdId="h1", amount="4", **meter)
    await hold(gateway, "h2", 3, **meter)
    await must(gateway, "createAlert", kind="REMAINING_BELOW", threshold="100", **meter)
    caps: dict[str, Any] = {"maxRefills": 1, "maxCredits": "1000", "windowSeconds": 60}
    await must(gateway, "setAutoRefill", mode="FIXED", below="200", amount="10", **caps, **meter)
    await must(gateway, "recordUsage", eventId="e3", amount="90", **meter)
    return meter_id


async def seen(gateway: Gateway, names: list[str]) -> dict[str, Any]:
    """Return all that is said of these meters."""
    named = " ".join(
        f'n{place}: billingMeter(workspaceId: "w", externalMeterId: "{name}") {ALL_OF_A_METER}'
        for place, name in enumerate(names)
    )
    return await gateway.data(f"{{ {named} }}")


async def give_id(database: Database, old: str, new: str) -> None:
    """Give a meter another id, as no code of ours does."""
    for table in OF_METERS:
        column = "id" if table is billing_meters else "meter_id"
        statement = f"UPDATE {table.name} SET {column} = :new WHERE {column} = :old"  # noqa: S608  # Our own names.
        await execute(database, statement, new=new, old=old)


async def rows_but_buckets(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables, in the order of their keys, without where they lie."""
    rows = await rows_of(database)
    for table in OF_METERS:
        place = [*table.c].index(table.c.bucket)
        rows[table.name] = [(*row[:place], *row[place + 1 :]) for row in rows[table.name]]
    return rows


async def check_moved(url: str, gateway: Gateway, names: list[str], before: dict[str, Any]) -> None:
    """Assert that all of the gateway's database is on this one as it was seen, and goes on."""
    async with gateway_on(url) as after:
        after.org_id, after.key = gateway.org_id, gateway.key
        assert await seen(after, names) == before
        assert await disagreements(after.database, now=after.clock()) == []
        for name in names:
            debit: dict[str, Any] = {"externalMeterId": name, "amount": "7", "metadata": {"of": name}}
            again = await must(after, "recordUsage", "replayed", eventId="e1", **debit)
            assert again["replayed"]
            await must(after, "recordUsage", eventId="e9", **debit)
        assert await disagreements(after.database, now=after.clock()) == []
