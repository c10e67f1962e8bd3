"""The digests of creates, which distinguish a repeated request from another one under the same key."""

import dataclasses
from typing import Any, NamedTuple

import pytest

from resolvers import idempotency
from resolvers.customers.customers import NewCustomer
from resolvers.meters.settings import NewBillingMeter
from schema.customers import CreateCustomerInput
from schema.meters.billing_meter_mutations import CreateBillingMeterInput

#: What databases hold: a digest that changes makes every earlier request under a key a conflict.
GOLDEN = [
    (NewBillingMeter("w", "m"), "12593981234279ccadf9db237997b40bda8f11eb142470972dcdc00669b19441"),
    (
        NewBillingMeter(
            "w", "m", 2**63 - 1, allow_overages=True, spend_cap=0, customer_id="cus_1", timezone="Asia/Tokyo"
        ),
        "1e4b48a61cd2ef7d0013b47a29c375d63e9afb94ea853833d477034a5a4cdf62",
    ),
    (NewCustomer("ada@example.com"), "e166e08e3b496ffb6a7469b8f6f573bdc14cdb25813e917b3605fdffd5332e40"),
    (
        NewCustomer("ada@example.com", "Ada", "a-1", {"plan": {"seats": 2.0, "tags": ["x", None]}}),
        "23022821e3fda791deb3d4f486a18c9de74feb0fb0d834809f2d03d84a61f05d",
    ),
]


@pytest.mark.parametrize(("request_", "digest"), GOLDEN)
def test_the_digest_of_a_request_never_changes(request_: Any, digest: str) -> None:
    assert idempotency.digest(request_) == digest


class Before(NamedTuple):
    name: str
    size: int = 3


class After(NamedTuple):
    name: str
    size: int = 3
    label: str | None = None
    priority: int = 50
    tags: list[str] = []  # noqa: RUF012  # It is never changed.


def test_a_field_that_is_added_changes_no_earlier_digest() -> None:
    for size in (3, 4):
        assert idempotency.digest(Before("a", size)) == idempotency.digest(After("a", size))
    digests = [
        idempotency.digest(request)
        for request in (
            After("a"),
            After("b"),
            After("a", 4),
            After("a", label="x"),
            After("a", label=""),
            After("a", priority=0),
            After("a", tags=["x"]),
        )
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("input_", "request_"), [(CreateBillingMeterInput, NewBillingMeter), (CreateCustomerInput, NewCustomer)]
)
def test_each_field_of_an_input_reaches_the_request(input_: Any, request_: Any) -> None:
    fields = {field.name: field for field in dataclasses.fields(input_)}
    assert set(fields) == {*request_._fields, "idempotency_key"}
    for name in request_._fields:
        is_optional = fields[name].default is not dataclasses.MISSING
        assert (name in request_._field_defaults) == is_optional
