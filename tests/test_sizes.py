"""Each field says how much it may come to, or there is no schema."""

from typing import Any

import pytest
import strawberry

from schema.engine.engine import Engine
from schema.engine.limits.sizes import AS_ABOVE, UndeclaredSize, given_length, of_bytes, records, text
from schema.root import engine


@strawberry.type
class Part:
    number: int


def engine_of(**fields: tuple[Any, dict[str, Any]]) -> Engine:
    """Return the engine of a schema with a type of these fields: each has a type, and what it says of itself."""
    body = {name: strawberry.field(metadata=metadata, default=None) for name, (_, metadata) in fields.items()}
    annotations = {name: type_ for name, (type_, _) in fields.items()}
    made = strawberry.type(type("Thing", (), body | {"__annotations__": annotations}))

    @strawberry.type
    class Query:
        found: made  # type: ignore[valid-type]  # It is made above.

    return Engine(strawberry.Schema(Query), scalar_bytes={})


@pytest.mark.parametrize(
    ("type_", "metadata", "message"),
    [
        (list[Part], {}, "Thing.part is a list, and does not say how many records it has."),
        (list[Part] | None, text(5), "Thing.part is a list, and does not say how many records it has."),
        (str, {}, "Thing.part does not say how long its values are."),
        (strawberry.ID | None, {}, "Thing.part does not say how long its values are."),
        (list[str], text(5), "Thing.part is a list, and does not say how many values it has."),
        (list[int], {}, "Thing.part is a list, and does not say how many values it has."),
        (float, {}, "Thing.part does not say how long its values are."),
    ],
)
def test_a_field_that_does_not_say_how_much_it_may_come_to_is_refused(
    type_: Any, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(UndeclaredSize) as refused:
        engine_of(part=(type_, metadata))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("type_", "metadata"),
    [
        (list[Part], records(given_length("ids"))),
        (list[Part], AS_ABOVE),
        (Part | None, {}),
        (str, text(5)),
        (list[str], text(5, items=2)),
        (float, of_bytes(24)),
        (bool, {}),
    ],
)
def test_one_that_says_it_is_taken(type_: Any, metadata: dict[str, Any]) -> None:
    assert isinstance(engine_of(part=(type_, metadata)), Engine)


def test_the_lists_of_the_schema_are_these() -> None:
    assert {".".join(place) for place, said in engine._sizes.records.items() if said.maximum is not None} == {
        "BillingMeter.alerts",
        "BillingMeter.burnDown",
        "BillingMeter.creditGrants",
        "BillingMeter.holds",
        "BillingMeter.ledger",
        "BillingMeter.usage",
        "AutoRefill.requests",
        "Customer.billingMeters",
        "Event.deliveries",
        "Query.webhookEndpoints",
        "WebhookDelivery.attempts",
        "WebhookEndpoint.deliveries",
        "LedgerEntry.draws",
        "Mutation.recordUsageBatch",
        "Query.alerts",
        "Query.billingMeters",
        "Query.customers",
        "Query.events",
        "Query.nodes",
        "Query.usage",
    }
