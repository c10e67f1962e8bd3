"""Making meters, and reading all that is known of one: through the API, and by the check of the whole database.

Rows are deleted here too, which the API never does.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any

from sqlalchemy import text

from resolvers.maintenance.meter_check import Disagreement
from resolvers.maintenance.verify import Verified, verify, verify_snapshot
from storage.engine.database import Database
from storage.engine.transactions import Writer
from tests.conftest import NOW, Caller

#: Selects the scalars of a meter that change, and its id.
METER = "id totalCredits usedCredits overageCredits availableCredits allowOverages spendCap"

#: Selects all of a ledger entry but its meter.
ENTRY = """id kind amount totalCreditsAfter usedCreditsAfter key usageName day requestedAmount policy voids { id }
  occurredAt recordedAt recordedBy reason metadata"""

WHOLE_METER = f"""query ($w: String!, $m: String!, $from: Date!, $to: Date!, $before: String) {{
  billingMeter(workspaceId: $w, externalMeterId: $m) {{
    {METER}
    usage(from: $from, to: $to) {{ day billingUsageName totalBillingUsage }}
    ledger(last: 100, before: $before) {{ pageInfo {{ hasPreviousPage startCursor }} nodes {{ {ENTRY} }} }}
  }}
}}"""


async def make_meter(caller: Caller, external_meter_id: str = "m", **values: Any) -> str:
    """Make a meter and return its id."""
    made = await caller.mutate(
        "createBillingMeter",
        "... on CreateBillingMeterSuccess { billingMeter { id } }",
        **{"workspaceId": "w", "externalMeterId": external_meter_id} | values,
    )
    return str(made["billingMeter"]["id"])


async def meter_of(
    caller: Caller, external_meter_id: str = "m", *, workspace_id: str = "w", around: date | None = None
) -> dict[str, Any]:
    """Return all that the API tells of a meter: its scalars, its `ledger` from the oldest entry on, and its `usage`.

    The usage is by (day, usage name), of half a year before and after `around`.
    """
    around = around or NOW.date()
    variables = {
        "w": workspace_id,
        "m": external_meter_id,
        "from": str(around - timedelta(days=180)),
        "to": str(around + timedelta(days=180)),
        "before": None,
    }
    entries: list[dict[str, Any]] = []
    while True:
        meter: dict[str, Any] = (await caller.data(WHOLE_METER, variables))["billingMeter"]
        page = meter.pop("ledger")
        # Backward, so that the oldest come first: a page is in the list's own order, which is newest first.
        entries += reversed(page["nodes"])
        if not page["pageInfo"]["hasPreviousPage"]:
            break
        variables["before"] = page["pageInfo"]["startCursor"]
    usage = {(day["day"], day["billingUsageName"]): int(day["totalBillingUsage"]) for day in meter["usage"]}
    return meter | {"ledger": entries, "usage": usage}


@asynccontextmanager
async def unchanged(caller: Caller, *external_meter_ids: str) -> AsyncIterator[None]:
    """Assert that what is done inside changes nothing of the meters."""
    names = external_meter_ids or ("m",)
    before = [await meter_of(caller, name) for name in names]
    yield
    assert [await meter_of(caller, name) for name in names] == before


async def delete_row(database: Database, id_: str) -> None:
    """Delete a customer without meters, or a meter and its ledger, as no code of ours does."""
    places = {"cus": [("customers", "id")], "mtr": [("ledger_entries", "meter_id"), ("billing_meters", "id")]}[id_[:3]]

    async def run(writer: Writer) -> None:
        for table, column in places:
            await writer.execute(text(f"DELETE FROM {table} WHERE {column} = :id"), {"id": id_})  # noqa: S608  # Our own names.

    await database.write(run)


class Undo(Exception):
    """Ends a transaction that is to leave nothing behind."""


async def found_after(database: Database, statements: Sequence[str]) -> list[Disagreement]:
    """Return what `tollgate verify` finds when these statements have been run, and undo them."""
    found: list[Disagreement] = []

    async def tamper(writer: Writer) -> None:
        for statement in statements:
            # A colon would begin a parameter.
            await writer.execute(text(statement.replace(":", r"\:")))
        found.extend([each async for each in verify_snapshot(writer, Verified())])
        raise Undo

    with contextlib.suppress(Undo):
        await database.write(tamper)
    return found


async def disagreements(database: Database, *meter_ids: str) -> list[Disagreement]:
    """Return what `tollgate verify` finds wrong with these meters."""
    return [found async for found in verify(database, Verified()) if found.id in meter_ids]
