"""`tollgate migrate` repairs what gateways of an older release have written since, and nothing else."""

import pytest

from resolvers.maintenance.repairs import Repaired, repair
from tests.conftest import Gateway
from tests.steps import disagreements, execute, make_customer, make_meter, must, rows_of


async def found(gateway: Gateway, email: str) -> list[str]:
    query = "query ($email: String!) { customers(filter: { email: $email }) { nodes { id } } }"
    data = await gateway.data(query, {"email": email})
    return [node["id"] for node in data["customers"]["nodes"]]


@pytest.mark.slow
async def test_what_an_older_release_wrote_is_found_again(own: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resolvers.maintenance.repairs.PORTION", 2)
    ids = [await make_customer(own, f"Ä{number}@Example.com", name="Straße" if number else None) for number in range(5)]
    meters = [await make_meter(own, f"m{number}", totalCredits="100") for number in range(5)]
    right = await rows_of(own.database)

    # Made by it, renamed by it, and debited by it.
    await execute(
        own.database, "UPDATE customers SET email_folded = NULL, name_folded = NULL WHERE id = :id", id=ids[0]
    )
    await execute(
        own.database, "UPDATE customers SET email_folded = NULL, name_folded = NULL WHERE id = :id", id=ids[4]
    )
    await execute(own.database, "UPDATE customers SET name_folded = 'before' WHERE id = :id", id=ids[2])
    await execute(own.database, "UPDATE billing_meters SET available_bits = NULL WHERE id = :id", id=meters[1])
    await execute(own.database, "UPDATE billing_meters SET available_bits = 60 WHERE id = :id", id=meters[4])
    assert await found(own, "ä4@example.com") == []
    assert len(await disagreements(own.database)) == 6
    assert await repair(own.database) == Repaired(customers=3, meters=2)
    assert await rows_of(own.database) == right
    assert await found(own, "ä4@example.com") == [ids[4]]
    assert await disagreements(own.database) == []
    # Again, it only reads.
    with own.statements() as statements:
        assert await repair(own.database) == Repaired(customers=0, meters=0)
    assert {statement.split()[0] for statement in statements} == {"SELECT"}


async def test_what_is_held_counts_for_the_available_credits(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="100")
    await must(own, "holdCredits", holdId="h", amount="97")
    right = await rows_of(own.database)
    # Of 100 it would be 7.
    await execute(own.database, "UPDATE billing_meters SET available_bits = NULL WHERE id = :id", id=meter_id)
    assert await repair(own.database) == Repaired(customers=0, meters=1)
    assert await rows_of(own.database) == right
    assert await disagreements(own.database) == []
