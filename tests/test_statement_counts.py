"""How many SQL statements a request takes: a fixed number, whatever the page."""

import pytest

from tests.conftest import Gateway
from tests.steps import make_customer, make_meter, must

METER = """query ($w: String!, $m: String!) {
  billingMeter(workspaceId: $w, externalMeterId: $m) { id totalCredits usedCredits availableCredits createdAt }
}"""

CUSTOMERS = """query ($first: Int!) {
  customers(first: $first) {
    nodes { name billingMeters(first: 5) { nodes { externalMeterId usage { day totalBillingUsage } } } }
  }
}"""


async def make_customers(gateway: Gateway, count: int) -> None:
    for number in range(count):
        customer_id = await make_customer(gateway, f"c{number}@example.com", name=f"c{number}")
        # Days begin at other hours in other zones, and the default range with them.
        for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
            name = f"{number} {zone}"
            await make_meter(gateway, name, totalCredits="10", customerId=customer_id, timezone=zone)
            await must(gateway, "recordUsage", externalMeterId=name, eventId="e", amount="3")


async def test_a_meter_by_its_names_takes_one_statement(gateway: Gateway) -> None:
    await make_customers(gateway, 1)
    with gateway.statements() as statements:
        data = await gateway.data(METER, {"w": "w", "m": "0 UTC"})
    assert data["billingMeter"]["usedCredits"] == "3"
    assert len(statements) == 1


@pytest.mark.parametrize("first", [1, 4, 20])
async def test_customers_with_meters_and_usage_take_three_statements(gateway: Gateway, first: int) -> None:
    await make_customers(gateway, 5)
    with gateway.statements() as statements:
        data = await gateway.data(CUSTOMERS, {"first": first})
    shown = data["customers"]["nodes"]
    assert [customer["name"] for customer in shown] == [f"c{number}" for number in range(4, -1, -1)][:first]
    days = [day for customer in shown for meter in customer["billingMeters"]["nodes"] for day in meter["usage"]]
    assert sum(int(day["totalBillingUsage"]) for day in days) == 9 * min(first, 5)
    assert {day["day"] for day in days} == {"2026-03-16", "2026-03-17"}
    assert len(statements) == 3
