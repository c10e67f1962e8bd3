"""Customers: making, changing and finding them."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from tests.conftest import Caller, Gateway

FIELDS = "id orgId email name externalId metadata environment createdAt updatedAt"
CREATED = f"... on CreateCustomerSuccess {{ customer {{ {FIELDS} }} replayed }} ... on AlreadyExists {{ existingId }}"
UPDATED = f"... on UpdateCustomerSuccess {{ customer {{ {FIELDS} }} }} ... on AlreadyExists {{ existingId }}"

CUSTOMER = f"query ($id: ID!) {{ customer(id: $id) {{ {FIELDS} }} }}"
BY_EXTERNAL_ID = f"query ($id: String!) {{ customerByExternalId(externalId: $id) {{ {FIELDS} }} }}"
CUSTOMERS = f"{{ customers(first: 100) {{ nodes {{ {FIELDS} }} }} }}"
NODE = f"query ($id: ID!) {{ node(id: $id) {{ ... on Customer {{ {FIELDS} }} }} }}"

#: Of the form of a customer's id, and nobody's.
NOBODY = "cus_0123456789abcdef01234567"

#: Each is equal to the others in Python and in some databases, and none is written as the same JSON.
ONES = [1, 1.0, True]


async def create(caller: Caller, **values: Any) -> dict[str, Any]:
    return await caller.mutate("createCustomer", CREATED, **values)


async def update(caller: Caller, id_: str, **values: Any) -> dict[str, Any]:
    return await caller.mutate("updateCustomer", UPDATED, id=id_, **values)


async def created(caller: Caller, **values: Any) -> dict[str, Any]:
    """Create a customer and return it."""
    answer = await create(caller, **{"email": "ada@example.com", **values})
    assert answer["__typename"] == "CreateCustomerSuccess", answer
    assert answer["replayed"] is False
    customer: dict[str, Any] = answer["customer"]
    return customer


async def read(caller: Caller, id_: str) -> Any:
    return (await caller.data(CUSTOMER, {"id": id_}))["customer"]


async def by_external_id(caller: Caller, external_id: str) -> Any:
    return (await caller.data(BY_EXTERNAL_ID, {"id": external_id}))["customerByExternalId"]


async def everyone(caller: Caller) -> list[dict[str, Any]]:
    """Return the organization's customers, newest first."""
    nodes: list[dict[str, Any]] = (await caller.data(CUSTOMERS))["customers"]["nodes"]
    return nodes


def exactly(value: object) -> str:
    """Return the JSON of a value, which distinguishes 1 from 1.0 and from true; the order of keys means nothing."""
    return json.dumps(value, sort_keys=True)


async def race(*requests: Coroutine[Any, Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the requests at once, a few turns of the event loop apart, so that each meets the others at another step."""

    async def begin(turns: int, request: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await request

    return await asyncio.gather(*[begin(3 * place, request) for place, request in enumerate(requests)])


# Creating and finding


async def test_a_customer_is_made_of_what_was_given(gateway: Gateway) -> None:
    customer = await created(
        gateway,
        email="ada@example.com",
        name="Ada Lovelace",
        externalId="crm-1",
        metadata={"plan": "pro"},
    )
    assert customer == {
        "id": customer["id"],
        "orgId": gateway.org_id,
        "email": "ada@example.com",
        "name": "Ada Lovelace",
        "externalId": "crm-1",
        "metadata": {"plan": "pro"},
        "environment": "SANDBOX",
        "createdAt": "2026-03-16T12:00:00Z",
        "updatedAt": "2026-03-16T12:00:00Z",
    }


async def test_a_customer_is_found_by_its_id_and_its_external_id_and_in_the_list(gateway: Gateway) -> None:
    ada = await created(gateway, email="ada@example.com", externalId="crm-1")
    bob = await created(gateway, email="bob@example.com", externalId="crm-2")
    assert await read(gateway, ada["id"]) == ada
    assert await read(gateway, bob["id"]) == bob
    assert await by_external_id(gateway, "crm-1") == ada
    assert await by_external_id(gateway, "crm-2") == bob
    assert (await gateway.data(NODE, {"id": ada["id"]}))["node"] == ada
    assert await everyone(gateway) == [bob, ada]


async def test_of_a_new_customer_only_the_email_is_required(gateway: Gateway) -> None:
    absent: list[dict[str, None]] = [{}, {"name": None, "externalId": None, "metadata": None, "idempotencyKey": None}]
    for values in absent:
        customer = await created(gateway, email="ada@example.com", **values)
        assert (customer["name"], customer["externalId"], customer["metadata"]) == (None, None, {})
        assert await read(gateway, customer["id"]) == customer


async def test_an_email_is_kept_as_given(gateway: Gateway) -> None:
    for email in ("Ada.Lovelace+bills@Example.COM", "ada@xn--zrich-kva.example", "zoë@example.org"):
        customer = await created(gateway, email=email)
        assert customer["email"] == email
        assert (await read(gateway, customer["id"]))["email"] == email


async def test_an_id_that_no_customer_has_finds_none(gateway: Gateway) -> None:
    ada = await created(gateway)
    for id_ in (NOBODY, ada["id"].upper(), ada["id"] + "0", ada["id"].removeprefix("cus_"), "cus_", ""):
        assert await read(gateway, id_) is None, id_


async def test_an_external_id_is_compared_exactly(gateway: Gateway) -> None:
    lower = await created(gateway, externalId="crm-é")
    upper = await created(gateway, externalId="CRM-É")
    padded = await created(gateway, externalId="crm-é ")
    assert await by_external_id(gateway, "crm-é") == lower
    assert await by_external_id(gateway, "CRM-É") == upper
    assert await by_external_id(gateway, "crm-é ") == padded
    assert await by_external_id(gateway, "crm-e\u0301") is None
    assert await by_external_id(gateway, "crm") is None


async def test_a_malformed_value_makes_no_customer(gateway: Gateway) -> None:
    malformed: list[tuple[str, object]] = [
        ("email", ""),
        ("email", "ada"),
        ("email", "ada@"),
        ("email", "ada@example.com, bob@example.com"),
        ("name", ""),
        ("name", "n" * 257),
        ("externalId", ""),
        ("externalId", "x" * 257),
        ("externalId", "a\0b"),
        ("metadata", []),
        ("metadata", "text"),
        ("metadata", 1),
        ("metadata", {"key": "a\0b"}),
        ("idempotencyKey", ""),
        ("idempotencyKey", "k" * 256),
    ]
    for field, value in malformed:
        answer = await create(gateway, **{"email": "ada@example.com", field: value})
        assert answer["__typename"] == "InvalidInput", value
        assert answer["code"] == "INVALID_INPUT"
        assert answer["field"] == ["input", field]
        assert await everyone(gateway) == []


async def test_the_longest_texts_are_kept_whole(gateway: Gateway) -> None:
    name, external_id, key = "é" * 256, "🜁" * 256, "k" * 255
    customer = await created(gateway, name=name, externalId=external_id, idempotencyKey=key)
    assert await by_external_id(gateway, external_id) == customer
    assert customer["name"] == name


# Changing


async def test_an_update_changes_what_it_names_and_keeps_the_rest(gateway: Gateway) -> None:
    ada = await created(gateway, name="Ada", externalId="crm-1", metadata={"plan": "pro"})
    bob = await created(gateway, name="Bob")
    gateway.clock.forward(hours=1)
    answer = await update(gateway, ada["id"], email="ada@example.org", name="Ada L.")
    changed = ada | {"email": "ada@example.org", "name": "Ada L.", "updatedAt": "2026-03-16T13:00:00Z"}
    assert answer == {"__typename": "UpdateCustomerSuccess", "customer": changed}
    gateway.clock.forward(hours=1)
    answer = await update(gateway, ada["id"], externalId="crm-2", metadata={"seats": 3})
    changed |= {"externalId": "crm-2", "metadata": {"seats": 3}, "updatedAt": "2026-03-16T14:00:00Z"}
    assert answer == {"__typename": "UpdateCustomerSuccess", "customer": changed}
    assert await everyone(gateway) == [bob, changed]
    assert await by_external_id(gateway, "crm-1") is None
    assert await by_external_id(gateway, "crm-2") == changed


async def test_null_clears_the_name_and_the_external_id(gateway: Gateway) -> None:
    ada = await created(gateway, name="Ada", externalId="crm-1")
    answer = await update(gateway, ada["id"], name=None, externalId=None)
    assert answer["customer"] == ada | {"name": None, "externalId": None}
    assert await read(gateway, ada["id"]) == answer["customer"]
    assert await by_external_id(gateway, "crm-1") is None
    bob = await created(gateway, externalId="crm-1")
    assert await by_external_id(gateway, "crm-1") == bob


async def test_a_malformed_update_changes_nothing(gateway: Gateway) -> None:
    ada = await created(gateway, name="Ada", externalId="crm-1", metadata={"plan": "pro"})
    malformed: list[tuple[str, object]] = [
        ("email", None),
        ("email", "ada"),
        ("name", ""),
        ("name", "n" * 257),
        ("externalId", ""),
        ("metadata", None),
        ("metadata", [1]),
        ("metadata", "{}"),
    ]
    for field, value in malformed:
        answer = await update(gateway, ada["id"], **{"email": "ada@example.org", "name": "Ada L.", field: value})
        assert answer["__typename"] == "InvalidInput", value
        assert answer["code"] == "INVALID_INPUT"
        assert answer["field"] == ["input", field]
        assert await read(gateway, ada["id"]) == ada


async def test_a_customer_that_is_not_there_is_not_changed(gateway: Gateway) -> None:
    ada = await created(gateway)
    for id_ in (NOBODY, "cus_", "mtr_0123456789abcdef01234567", ""):
        answer = await update(gateway, id_, name="Ada")
        assert answer["__typename"] == "CustomerNotFound", id_
        assert answer["code"] == "CUSTOMER_NOT_FOUND"
    assert await everyone(gateway) == [ada]


async def test_a_malformed_update_is_reported_before_a_customer_that_is_not_there(gateway: Gateway) -> None:
    answer = await update(gateway, NOBODY, email=None)
    assert answer["__typename"] == "InvalidInput"


async def test_updated_at_moves_only_when_something_changes(gateway: Gateway) -> None:
    metadata = {"plan": "pro", "seats": {"used": 1, "free": 2}}
    ada = await created(gateway, name="Ada", externalId="crm-1", metadata=metadata)
    gateway.clock.forward(hours=1)
    reordered = {"seats": {"free": 2, "used": 1}, "plan": "pro"}
    same: list[dict[str, Any]] = [
        {},
        {"email": "ada@example.com"},
        {"name": "Ada", "externalId": "crm-1"},
        {"metadata": metadata},
        {"metadata": reordered},
    ]
    for values in same:
        answer = await update(gateway, ada["id"], **values)
        assert answer == {"__typename": "UpdateCustomerSuccess", "customer": ada}
    assert await read(gateway, ada["id"]) == ada
    answer = await update(gateway, ada["id"], name="ada")
    assert answer["customer"] == ada | {"name": "ada", "updatedAt": "2026-03-16T13:00:00Z"}


# Metadata


#: What a careless reader or database would change.
METADATA: list[dict[str, Any]] = [
    {},
    {"": {"": [[], {}, [None, [None]], ""]}},
    {"true": True, "false": False, "null": None, "text": "null"},
    {
        "ü": "Zürich",
        "日本": "東京",
        "emoji": "👩‍🚀",
        "combining": "e\u0301",
        "right": "\u202eabc",
        "line": 'a\u2028\n\t\\"/',
    },
    {"small": -(2**63), "large": 2**63 - 1, "larger": 2**64 - 1, "past float": 2**53 + 1, "zero": 0},
    {"ones": ONES, "tenth": 0.1, "sum": 0.30000000000000004, "least": 5e-324, "most": 1.7976931348623157e308},
    {"whole": 100.0, "negative zero": -0.0, "exponent": 1e22, "third": -0.3333333333333333},
    {"deep": [[[[[[[[{"a": [{"b": [{"c": 1}]}]}]]]]]]]]},
]


async def test_metadata_is_kept_exactly(gateway: Gateway) -> None:
    for metadata in METADATA:
        ada = await created(gateway, metadata=metadata)
        assert exactly(ada["metadata"]) == exactly(metadata)
        assert exactly((await read(gateway, ada["id"]))["metadata"]) == exactly(metadata)
        bob = await created(gateway, metadata={"will be": "replaced"})
        answer = await update(gateway, bob["id"], metadata=metadata)
        assert exactly(answer["customer"]["metadata"]) == exactly(metadata)
        assert exactly((await read(gateway, bob["id"]))["metadata"]) == exactly(metadata)


async def test_metadata_written_in_the_document_is_kept_exactly(gateway: Gateway) -> None:
    data = await gateway.data(
        """mutation ($seats: JSON) {
          createCustomer(input: {
            email: "ada@example.com"
            metadata: {
              plan: "pro", ones: [1, 1.0, true], none: null, seats: $seats, small: -9223372036854775808, tenth: 0.1
            }
          }) { ... on CreateCustomerSuccess { customer { id metadata } } }
        }""",
        {"seats": {"used": [1, 1.0]}},
    )
    ada = data["createCustomer"]["customer"]
    written = {
        "plan": "pro",
        "ones": ONES,
        "none": None,
        "seats": {"used": [1, 1.0]},
        "small": -(2**63),
        "tenth": 0.1,
    }
    assert exactly(ada["metadata"]) == exactly(written)
    assert exactly((await read(gateway, ada["id"]))["metadata"]) == exactly(written)


async def test_metadata_is_replaced_whole(gateway: Gateway) -> None:
    ada = await created(gateway, metadata={"plan": "pro", "seats": {"used": 1, "free": 2}})
    answer = await update(gateway, ada["id"], metadata={"seats": {"used": 2}})
    assert answer["customer"]["metadata"] == {"seats": {"used": 2}}
    answer = await update(gateway, ada["id"], metadata={})
    assert answer["customer"]["metadata"] == {}
    assert (await read(gateway, ada["id"]))["metadata"] == {}


async def test_another_kind_of_number_in_the_metadata_is_a_change(gateway: Gateway) -> None:
    ada = await created(gateway, metadata={"value": [0]})
    for number in (False, 0.0, -0.0, 0, *ONES, 1):
        gateway.clock.forward(hours=1)
        answer = await update(gateway, ada["id"], metadata={"value": [number]})
        assert exactly(answer["customer"]["metadata"]) == exactly({"value": [number]})
        assert answer["customer"]["updatedAt"] == gateway.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        assert exactly(await read(gateway, ada["id"])) == exactly(answer["customer"])


#: Too long for the 64 bits in which every reader of JSON that keeps integers exact keeps them.
TOO_LONG = [2**64, -(2**63) - 1, 10**30]


async def test_an_integer_that_cannot_be_kept_exactly_is_refused_and_not_rounded(gateway: Gateway) -> None:
    for number in TOO_LONG:
        answer = await create(gateway, email="ada@example.com", metadata={"value": number})
        assert answer["__typename"] == "InvalidInput", number
        assert answer["field"] == ["input", "metadata"]
        assert await everyone(gateway) == []


async def test_an_integer_in_the_document_that_cannot_be_kept_exactly_is_refused(gateway: Gateway) -> None:
    for number in TOO_LONG:
        values = f'{{email: "ada@example.com", metadata: {{value: {number}}}}}'
        data = await gateway.data(
            f"mutation {{ createCustomer(input: {values}) {{ __typename ... on InvalidInput {{ field }} }} }}"
        )
        assert data["createCustomer"] == {"__typename": "InvalidInput", "field": ["input", "metadata"]}
        assert await everyone(gateway) == []


# External ids


async def test_an_external_id_names_one_customer(gateway: Gateway) -> None:
    ada = await created(gateway, email="ada@example.com", externalId="crm-1")
    answer = await create(gateway, email="bob@example.com", externalId="crm-1")
    assert answer["__typename"] == "AlreadyExists"
    assert answer["code"] == "ALREADY_EXISTS"
    assert answer["existingId"] == ada["id"]
    assert await everyone(gateway) == [ada]


async def test_customers_without_an_external_id_do_not_collide(gateway: Gateway) -> None:
    ada = await created(gateway)
    bob = await created(gateway, externalId=None)
    eve = await created(gateway, externalId="crm-1")
    answer = await update(gateway, eve["id"], externalId=None)
    assert answer["customer"] == eve | {"externalId": None}
    assert await everyone(gateway) == [answer["customer"], bob, ada]


async def test_an_update_to_a_taken_external_id_is_refused(gateway: Gateway) -> None:
    ada = await created(gateway, externalId="crm-1")
    bob = await created(gateway, externalId="crm-2", name="Bob")
    gateway.clock.forward(hours=1)
    answer = await update(gateway, bob["id"], externalId="crm-1", name="Robert")
    assert answer["__typename"] == "AlreadyExists"
    assert answer["code"] == "ALREADY_EXISTS"
    assert answer["existingId"] == ada["id"]
    assert await everyone(gateway) == [bob, ada]


# Idempotency keys


async def test_a_replay_answers_the_first_customer(gateway: Gateway) -> None:
    values = {"email": "ada@example.com", "externalId": "crm-1", "metadata": {"a": 1, "b": {"c": 2, "d": 3}}}
    ada = await created(gateway, **values, idempotencyKey="k")
    gateway.clock.forward(days=400)
    assert await create(gateway, **values, idempotencyKey="k") == {
        "__typename": "CreateCustomerSuccess",
        "customer": ada,
        "replayed": True,
    }
    assert await everyone(gateway) == [ada]


async def test_a_replay_may_write_numbers_in_another_way(gateway: Gateway) -> None:
    ada = await created(gateway, metadata={"a": 1, "b": [2.0, -0.0]}, idempotencyKey="k")
    again = await create(gateway, email="ada@example.com", metadata={"a": 1.0, "b": [2, 0]}, idempotencyKey="k")
    assert (again["customer"]["id"], again["replayed"]) == (ada["id"], True)
    answer = await create(gateway, email="ada@example.com", metadata={"a": True, "b": [2, 0]}, idempotencyKey="k")
    assert answer["__typename"] == "IdempotencyConflict"


async def test_a_replay_may_write_the_same_values_in_another_way(gateway: Gateway) -> None:
    ada = await created(gateway, metadata={"a": 1, "b": {"c": 2, "d": 3}}, idempotencyKey="ordered")
    answer = await create(
        gateway, email="ada@example.com", metadata={"b": {"d": 3, "c": 2}, "a": 1}, idempotencyKey="ordered"
    )
    assert (answer["replayed"], answer["customer"]) == (True, ada)
    bob = await created(gateway, idempotencyKey="bare")
    answer = await create(
        gateway, email="ada@example.com", name=None, externalId=None, metadata={}, idempotencyKey="bare"
    )
    assert (answer["replayed"], answer["customer"]) == (True, bob)
    assert await everyone(gateway) == [bob, ada]


async def test_a_replay_answers_the_customer_as_it_is_now(gateway: Gateway) -> None:
    values = {"email": "ada@example.com", "name": "Ada", "externalId": "crm-1"}
    ada = await created(gateway, **values, idempotencyKey="k")
    gateway.clock.forward(hours=1)
    changed = (await update(gateway, ada["id"], name="Ada L.", externalId="crm-2"))["customer"]
    bob = await created(gateway, externalId="crm-1")
    answer = await create(gateway, **values, idempotencyKey="k")
    assert answer == {"__typename": "CreateCustomerSuccess", "customer": changed, "replayed": True}
    assert await everyone(gateway) == [bob, changed]


async def test_a_key_used_for_another_customer_is_a_conflict(gateway: Gateway) -> None:
    values = {"email": "ada@example.com", "name": "Ada", "externalId": "crm-1", "metadata": {"plan": "pro"}}
    ada = await created(gateway, **values, idempotencyKey="k")
    others: list[dict[str, Any]] = [
        {"email": "ADA@example.com"},
        {"name": "ada"},
        {"name": None},
        {"externalId": "crm-2"},
        {"externalId": None},
        {"metadata": {}},
        {"metadata": {"plan": "Pro"}},
        {"metadata": {"plan": "pro", "more": None}},
    ]
    for other in others:
        answer = await gateway.mutate(
            "createCustomer",
            "... on IdempotencyConflict { entry: firstEntry { id } }",
            **(values | other),
            idempotencyKey="k",
        )
        assert answer["__typename"] == "IdempotencyConflict", other
        assert answer["code"] == "IDEMPOTENCY_CONFLICT"
        assert answer["entry"] is None
        assert await everyone(gateway) == [ada]


async def test_numbers_in_the_metadata_are_compared_by_value_and_are_no_booleans(gateway: Gateway) -> None:
    for first in ONES:
        key = f"{first}"
        ada = await created(gateway, metadata={"value": [first]}, idempotencyKey=key)
        for other in ONES:
            answer = await create(gateway, email="ada@example.com", metadata={"value": [other]}, idempotencyKey=key)
            is_same = isinstance(first, bool) == isinstance(other, bool)
            expected = "CreateCustomerSuccess" if is_same else "IdempotencyConflict"
            assert answer["__typename"] == expected, (first, other)
        assert exactly(await read(gateway, ada["id"])) == exactly(ada)
    assert len(await everyone(gateway)) == 3


async def test_a_conflict_is_reported_before_a_taken_external_id(gateway: Gateway) -> None:
    ada = await created(gateway, idempotencyKey="k")
    bob = await created(gateway, externalId="crm-1")
    answer = await create(gateway, email="ada@example.com", externalId="crm-1", idempotencyKey="k")
    assert answer["__typename"] == "IdempotencyConflict"
    assert await everyone(gateway) == [bob, ada]


async def test_a_refusal_does_not_use_the_key_up(gateway: Gateway) -> None:
    first = await created(gateway, externalId="crm-1")
    answer = await create(gateway, email="bad", externalId="crm-2", idempotencyKey="k")
    assert answer["__typename"] == "InvalidInput"
    answer = await create(gateway, email="ada@example.com", externalId="crm-1", idempotencyKey="k")
    assert answer["__typename"] == "AlreadyExists"
    second = await created(gateway, externalId="crm-2", idempotencyKey="k")
    assert await everyone(gateway) == [second, first]


async def test_without_a_key_the_same_request_makes_another_customer(gateway: Gateway) -> None:
    first = await created(gateway, name="Ada")
    second = await created(gateway, name="Ada")
    assert first["id"] != second["id"]
    assert await everyone(gateway) == [second, first]


async def test_a_key_of_a_customer_may_also_name_the_making_of_a_meter(gateway: Gateway) -> None:
    await created(gateway, idempotencyKey="k")
    answer = await gateway.mutate(
        "createBillingMeter",
        "... on CreateBillingMeterSuccess { replayed }",
        workspaceId="w",
        externalMeterId="m",
        idempotencyKey="k",
    )
    assert answer == {"__typename": "CreateBillingMeterSuccess", "replayed": False}


# Races


async def test_of_racing_creates_under_one_key_one_makes_the_customer(gateway: Gateway) -> None:
    made: list[dict[str, Any]] = []
    for number in range(4):
        values = {"email": "ada@example.com", "externalId": f"crm-{number}", "idempotencyKey": f"k{number}"}
        answers = await race(*[create(gateway, **values) for _ in range(8)])
        assert [answer["__typename"] for answer in answers] == ["CreateCustomerSuccess"] * 8
        assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 7
        made.insert(0, answers[0]["customer"])
        assert [answer["customer"] for answer in answers] == made[:1] * 8
    assert await everyone(gateway) == made


async def test_of_racing_creates_of_different_customers_under_one_key_one_succeeds(gateway: Gateway) -> None:
    made: list[dict[str, Any]] = []
    for number in range(4):
        values = {"externalId": f"crm-{number}", "idempotencyKey": f"k{number}"}
        answers = await race(*[create(gateway, email=f"c{racer}@example.com", **values) for racer in range(8)])
        kinds = sorted(answer["__typename"] for answer in answers)
        assert kinds == ["CreateCustomerSuccess"] + ["IdempotencyConflict"] * 7
        (first,) = [answer for answer in answers if answer["__typename"] == "CreateCustomerSuccess"]
        assert first["replayed"] is False
        made.insert(0, first["customer"])
    assert await everyone(gateway) == made


async def test_of_racing_creates_of_one_external_id_one_succeeds(gateway: Gateway) -> None:
    answers = await race(*[create(gateway, email=f"c{number}@example.com", externalId="crm-1") for number in range(8)])
    (made,) = [answer["customer"] for answer in answers if answer["__typename"] == "CreateCustomerSuccess"]
    refused = [answer for answer in answers if answer["__typename"] == "AlreadyExists"]
    assert [answer["existingId"] for answer in refused] == [made["id"]] * 7
    assert await everyone(gateway) == [made]


async def test_of_racing_updates_to_one_external_id_one_succeeds(gateway: Gateway) -> None:
    ids = [(await created(gateway))["id"] for _ in range(4)]
    answers = await race(*[update(gateway, id_, externalId="crm-1") for id_ in ids])
    (winner,) = [answer["customer"] for answer in answers if answer["__typename"] == "UpdateCustomerSuccess"]
    refused = [answer for answer in answers if answer["__typename"] == "AlreadyExists"]
    assert [answer["existingId"] for answer in refused] == [winner["id"]] * 3
    assert {customer["id"]: customer["externalId"] for customer in await everyone(gateway)} == {
        id_: "crm-1" if id_ == winner["id"] else None for id_ in ids
    }


async def test_racing_updates_of_different_fields_are_all_kept(gateway: Gateway) -> None:
    ada = await created(gateway)
    changes: dict[str, Any] = {
        "email": "ada@example.org",
        "name": "Ada",
        "externalId": "crm-1",
        "metadata": {"plan": "pro"},
    }
    answers = await race(*[update(gateway, ada["id"], **{field: value}) for field, value in changes.items()])
    assert [answer["__typename"] for answer in answers] == ["UpdateCustomerSuccess"] * 4
    assert await read(gateway, ada["id"]) == ada | changes
