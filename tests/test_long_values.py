"""JSON values that pages leave out because they are long: they are answered as they are, and compared as they are."""

from typing import Any

import pytest

from storage.engine.long_values import MAX_SHORT
from tests.conftest import Gateway, gateway_on
from tests.credit_walks import Walk
from tests.steps import hold, make_customer, make_grant, make_meter, must

#: As compact JSON, with its name and quotes: as long as is read with a row, and longer.
SHORT = {"m": "x" * (MAX_SHORT - 8)}
LONG = {"m": "x" * (MAX_SHORT - 7)}

NAMES = {"workspaceId": "w", "externalMeterId": "m"}

METER = "query ($workspaceId: String!, $externalMeterId: String!) { billingMeter(workspaceId: $workspaceId,"
METER += " externalMeterId: $externalMeterId) { %s } }"

#: A page of each kind of row that has metadata.
PAGES = {
    "customers": ("{ customers { nodes { id metadata } } }", {}, ["customers"]),
    "entries": (METER % "ledger { nodes { id kind metadata } }", NAMES, ["billingMeter", "ledger"]),
    "grants": (METER % "creditGrants { nodes { id metadata } }", NAMES, ["billingMeter", "creditGrants"]),
    "holds": (METER % "holds { nodes { id metadata } }", NAMES, ["billingMeter", "holds"]),
}


async def make(gateway: Gateway, metadata: dict[str, str]) -> None:
    """Make a row of each kind with this metadata."""
    await make_customer(gateway, metadata=metadata)
    await make_meter(gateway, totalCredits="10")
    await make_grant(gateway, 1, metadata=metadata)
    await hold(gateway, "h", 1, metadata=metadata)
    await must(gateway, "recordUsage", "accepted", eventId="e", amount="1", metadata=metadata)


async def page_of(gateway: Gateway, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of the page that what was made is on, and how many statements read them."""
    query, variables, path = PAGES[name]
    with gateway.statements() as statements:
        found = await gateway.data(query, variables)
    for field in path:
        found = found[field]
    made = [row for row in found["nodes"] if row.get("kind", "USAGE") == "USAGE"]
    return made, len(statements)


@pytest.mark.one_server("it counts statements or reads their text, and in a bucket there are others")
@pytest.mark.parametrize("name", PAGES)
async def test_metadata_is_answered_whatever_its_length_and_read_apart_where_it_is_long(
    gateway: Gateway, name: str
) -> None:
    other = await gateway.for_new_organization()
    counts = {}
    for organization, metadata in ((gateway, SHORT), (other, LONG)):
        await make(organization, metadata)
        (row,), counts[len(metadata["m"])] = await page_of(organization, name)
        assert row["metadata"] == metadata
        # By its id, too.
        on_type = {"customers": "Customer", "entries": "LedgerEntry", "grants": "CreditGrant", "holds": "Hold"}[name]
        query = f"query ($id: ID!) {{ node(id: $id) {{ ... on {on_type} {{ metadata }} }} }}"
        assert (await organization.data(query, {"id": row["id"]}))["node"] == {"metadata": metadata}
    short, long = counts.values()
    assert long == short + 1


async def test_what_is_repeated_is_compared_with_metadata_that_is_long(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    mutations = {
        "grantCredits": {"idempotencyKey": "g"},
        "holdCredits": {"holdId": "h"},
        "recordUsage": {"eventId": "e"},
    }
    for field, key in mutations.items():
        answers = []
        query = f"""mutation ($input: {field[0].upper()}{field[1:]}Input!) {{ {field}(input: $input) {{
            __typename ... on {field[0].upper()}{field[1:]}Success {{ replayed }} }} }}"""
        for metadata in (LONG, LONG, LONG | {"m": "y"}):
            input_ = {**NAMES, **key, "amount": "1", "metadata": metadata}
            answers.append((await gateway.data(query, {"input": input_}))[field])
        success = f"{field[0].upper()}{field[1:]}Success"
        assert answers == [
            {"__typename": success, "replayed": False},
            {"__typename": success, "replayed": True},
            {"__typename": "IdempotencyConflict"},
        ]


@pytest.mark.slow
async def test_draws_are_answered_however_many_they_are(gateway: Gateway) -> None:
    walk = Walk(gateway)
    count = 80
    await walk.take("meter 0; " + "; ".join(f"grant g{number} 1" for number in range(count)))
    await walk.take(f"use e {count}; void e")
    data = await gateway.data(METER % "ledger(first: 2) { nodes { kind draws { amount creditGrant { id } } } }", NAMES)
    void, usage = data["billingMeter"]["ledger"]["nodes"]
    assert [draw["amount"] for draw in usage["draws"]] == ["1"] * count
    assert void["draws"] == usage["draws"][::-1]
    await walk.check()


@pytest.mark.slow
async def test_draws_that_are_too_many_are_refused_before_they_are_read(migrated_url: str) -> None:
    async with gateway_on(migrated_url, max_answer_values=1_000) as gateway:
        count = 80
        await Walk(gateway).take("meter 0; " + "; ".join(f"grant g{number} 1" for number in range(count)))
        await must(gateway, "recordUsage", "accepted", eventId="e", amount=str(count))
        query = METER % "ledger(first: 1) { nodes { draws { %s } } }"
        with gateway.statements() as statements:
            error = await gateway.error(query % " ".join(f"a{number}: amount" for number in range(15)), NAMES)
        assert error["extensions"]["code"] == "LIMIT_EXCEEDED"
        with gateway.statements() as admitted:
            data = await gateway.data(query % "amount", NAMES)
        assert data["billingMeter"]["ledger"]["nodes"] == [{"draws": [{"amount": "1"}] * count}]
        # The draws, and then the grants.
        assert admitted[: len(statements)] == statements
        assert "ledger_entries.draws" in admitted[len(statements)]
