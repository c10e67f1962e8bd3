"""Filters: which customers and meters a list keeps, alone and together, and page after page."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from alembic import command
from graphql import (
    GraphQLInputObjectType,
    GraphQLObjectType,
    get_named_type,
    is_non_null_type,
    is_required_argument,
)
from sqlalchemy import Connection, select, text

from resolvers.actor import Scope
from resolvers.rules.balances import available_bits
from schema.root import schema
from storage import migrations
from storage.customers import folded, past_prefix
from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.meters.billing_meters import billing_meters
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway
from tests.steps import delete_row, disagreements, make_customer, make_endpoint, make_meter, must

if TYPE_CHECKING:
    from collections.abc import Callable

CUSTOMERS = """query ($filter: CustomerFilter, $first: Int, $after: String, $last: Int, $before: String) {
  rows: customers(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { id email name externalId createdAt } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""
METERS = """query ($filter: BillingMeterFilter, $first: Int, $after: String, $last: Int, $before: String) {
  rows: billingMeters(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { id workspaceId availableCredits customer { id } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""

GREATEST = "\U0010ffff"


async def ids_of(caller: Caller, query: str, **wanted: Any) -> list[str]:
    """Return the ids of the first 100 rows that the filter keeps."""
    data = await caller.data(query, {"filter": wanted, "first": 100})
    return [node["id"] for node in data["rows"]["nodes"]]


# Customers


async def test_an_email_is_found_without_regard_to_case(gateway: Gateway, subtests: pytest.Subtests) -> None:
    emails = ["Ada@Example.com", "ada@example.com", "STRASSE@example.com", "straße@example.com", "λόγος@example.com"]
    made = {email: await make_customer(gateway, email=email) for email in emails}
    for email, found in (
        ("ada@example.com", ["ada@example.com", "Ada@Example.com"]),
        ("ADA@EXAMPLE.COM", ["ada@example.com", "Ada@Example.com"]),
        ("Strasse@example.com", ["straße@example.com", "STRASSE@example.com"]),
        ("STRAẞE@EXAMPLE.COM", ["straße@example.com", "STRASSE@example.com"]),
        ("ΛΌΓΟΣ@example.com", ["λόγος@example.com"]),
        ("ada@example.co", []),
        ("da@example.com", []),
        ("a%@example.com", []),
        ("no address", []),
    ):
        with subtests.test(email=email):
            assert await ids_of(gateway, CUSTOMERS, email=email) == [made[each] for each in found]
    # It is stored as it was given.
    data = await gateway.data(CUSTOMERS, {"filter": {"email": "ADA@example.com"}})
    assert [node["email"] for node in data["rows"]["nodes"]] == ["ada@example.com", "Ada@Example.com"]


async def test_a_name_is_found_by_its_beginning_without_regard_to_case(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    names: list[str | None] = [
        None,
        "Ada Lovelace",
        "ADAM",
        "adb",
        "Äda",
        "100% legal",
        "100 percent",
        "under_score",
        "underXscore",
        "back\\slash",
        f"{GREATEST}",
        f"{GREATEST}{GREATEST}x",
        f"a{GREATEST}",
        f"a{GREATEST}z",
        "\ud7ffx",
        "\ue000x",
        "Straße",
        "STRASSE",
    ]
    made = {name: await make_customer(gateway, name=name) for name in names}
    for prefix, found in (
        ("ada", ["Ada Lovelace", "ADAM"]),
        ("ADA ", ["Ada Lovelace"]),
        ("äDA", ["Äda"]),
        ("100%", ["100% legal"]),
        ("under_", ["under_score"]),
        ("back\\", ["back\\slash"]),
        (GREATEST, [GREATEST, f"{GREATEST}{GREATEST}x"]),
        (GREATEST * 2, [f"{GREATEST}{GREATEST}x"]),
        (f"A{GREATEST}", [f"a{GREATEST}", f"a{GREATEST}z"]),
        ("\ud7ff", ["\ud7ffx"]),
        ("\ue000", ["\ue000x"]),
        ("STRASS", ["Straße", "STRASSE"]),
        ("straß", ["Straße", "STRASSE"]),
        ("Ada Lovelace and more", []),
        ("zz", []),
    ):
        with subtests.test(prefix=prefix):
            assert await ids_of(gateway, CUSTOMERS, namePrefix=prefix) == [made[name] for name in found][::-1]


async def test_an_external_id_is_found_by_its_beginning_as_it_is_written(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    made = {name: await make_customer(gateway, externalId=name) for name in ("crm-1", "crm-12", "CRM-1", "crm%", "ä")}
    await make_customer(gateway)
    for prefix, found in (
        ("crm-1", ["crm-12", "crm-1"]),
        ("crm-12", ["crm-12"]),
        ("CRM", ["CRM-1"]),
        ("crm", ["crm%", "crm-12", "crm-1"]),
        ("crm%", ["crm%"]),
        ("Ä", []),
        ("rm", []),
    ):
        with subtests.test(prefix=prefix):
            assert await ids_of(gateway, CUSTOMERS, externalIdPrefix=prefix) == [made[name] for name in found]


async def test_the_time_of_making_is_a_range_without_its_end(gateway: Gateway, subtests: pytest.Subtests) -> None:
    made = []
    for seconds in (0, 0.25, 0.75):
        made.append(await make_customer(gateway))
        gateway.clock.forward(seconds=seconds)
    first, second, third = made
    # Made at 12:00:00, at 12:00:00 again, and a quarter of a second later.
    for wanted, found in (
        ({"createdFrom": "2026-03-16T12:00:00Z"}, [third, second, first]),
        ({"createdFrom": "2026-03-16T12:00:00.000001Z"}, [third]),
        ({"createdFrom": "2026-03-16T12:00:00.25Z"}, [third]),
        ({"createdFrom": "2026-03-16T12:00:00.250001Z"}, []),
        ({"createdBefore": "2026-03-16T12:00:00Z"}, []),
        ({"createdBefore": "2026-03-16T12:00:00.000001Z"}, [second, first]),
        ({"createdBefore": "2026-03-16T12:00:00.25Z"}, [second, first]),
        ({"createdBefore": "2026-03-16T12:00:00.250001Z"}, [third, second, first]),
        ({"createdFrom": "2026-03-16T13:00:00+01:00", "createdBefore": "2026-03-16T12:00:00.1Z"}, [second, first]),
        ({"createdFrom": "2026-03-16T12:00:00Z", "createdBefore": "2026-03-16T12:00:00Z"}, []),
        ({"createdFrom": "2027-01-01T00:00:00Z", "createdBefore": "2026-01-01T00:00:00Z"}, []),
        ({"createdFrom": "0001-01-01T00:00:00Z", "createdBefore": "9999-12-31T23:59:59Z"}, [third, second, first]),
    ):
        with subtests.test(wanted=wanted):
            assert await ids_of(gateway, CUSTOMERS, **wanted) == found


def keeps(node: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the filter keeps the customer, by the rules' own words."""
    created_at = datetime.fromisoformat(node["createdAt"])
    tests: dict[str, Callable[[Any], bool]] = {
        "email": lambda value: node["email"].casefold() == value.casefold(),
        "namePrefix": lambda value: (node["name"] or "").casefold().startswith(value.casefold()),
        "externalIdPrefix": (node["externalId"] or "").startswith,
        "createdFrom": lambda value: created_at >= datetime.fromisoformat(value),
        "createdBefore": lambda value: created_at < datetime.fromisoformat(value),
    }
    return all(tests[name](value) for name, value in wanted.items() if value is not None)


@pytest.mark.slow
async def test_the_filters_of_customers_combine(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for number in range(40):
        await make_customer(
            gateway,
            email=["ada@example.com", "ADA@example.com", "bob@example.com"][number % 3],
            name=[None, "Ada", "adam", "Bob"][number % 4],
            externalId=f"{'ab'[number % 2]}{number}",
        )
        gateway.clock.forward(seconds=1)
    nodes = (await gateway.data(CUSTOMERS, {"first": 100}))["rows"]["nodes"]
    assert len(nodes) == 40
    sizes = set()
    for email, name, external_id, first, before in product(
        (None, "Ada@Example.com"), (None, "AD"), (None, "a", "b1"), (None, 5), (None, 30)
    ):
        wanted = {
            "email": email,
            "namePrefix": name,
            "externalIdPrefix": external_id,
            "createdFrom": (NOW + timedelta(seconds=first)).isoformat() if first is not None else None,
            "createdBefore": (NOW + timedelta(seconds=before)).isoformat() if before is not None else None,
        }
        with subtests.test(wanted=wanted):
            expected = [node["id"] for node in nodes if keeps(node, wanted)]
            given = {key: value for key, value in wanted.items() if value is not None}
            assert await ids_of(gateway, CUSTOMERS, **given) == expected
            sizes.add(len(expected))
    # The combinations differ.
    assert len(sizes) == 24


async def test_a_customer_is_found_by_what_it_is_called_now(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway, email="old@example.com", name="Old")
    await gateway.mutate("updateCustomer", "", id=customer_id, email="New@example.com", name="Née")
    assert await ids_of(gateway, CUSTOMERS, email="old@example.com") == []
    assert await ids_of(gateway, CUSTOMERS, email="NEW@example.com") == [customer_id]
    assert await ids_of(gateway, CUSTOMERS, namePrefix="old") == []
    assert await ids_of(gateway, CUSTOMERS, namePrefix="NÉ") == [customer_id]
    await gateway.mutate("updateCustomer", "", id=customer_id, name=None)
    assert await ids_of(gateway, CUSTOMERS, namePrefix="n") == []
    assert await ids_of(gateway, CUSTOMERS, email="NEW@example.com") == [customer_id]


async def test_a_filter_stays_in_the_tenant_and_in_the_workspaces_of_the_key(gateway: Gateway) -> None:
    values = {"email": "ada@example.com", "name": "Ada", "externalId": "ada"}
    filters = (
        {"email": "ada@example.com"},
        {"namePrefix": "a"},
        {"externalIdPrefix": "a"},
        {"createdFrom": "2026-01-01T00:00:00Z"},
        {"email": "ada@example.com", "namePrefix": "a", "externalIdPrefix": "a"},
    )
    outsiders = [
        await gateway.caller(environment=Environment.LIVE),
        await gateway.caller(org_id=f"{gateway.org_id}-other"),
    ]
    seen, unseen = [await make_customer(gateway, **values | {"externalId": name}) for name in ("ada", "adam")]
    await make_meter(gateway, "in w", customerId=seen)
    await make_meter(gateway, "in v", workspaceId="v", customerId=unseen)
    limited = await gateway.caller(workspaces=["w"])
    for wanted in filters:
        assert await ids_of(gateway, CUSTOMERS, **wanted) == [unseen, seen]
        assert await ids_of(limited, CUSTOMERS, **wanted) == [seen]
        for outsider in outsiders:
            assert await ids_of(outsider, CUSTOMERS, **wanted) == []


async def test_a_malformed_filter_is_refused_before_permission(gateway: Gateway, subtests: pytest.Subtests) -> None:
    writer = await gateway.caller(Scope.BILLING_WRITE)
    for name in ("email", "namePrefix", "externalIdPrefix"):
        for value in ("", "x" * 257, "a\0b"):
            with subtests.test(name=name, value=value[:5]):
                for caller in (gateway, writer):
                    error = await caller.error(CUSTOMERS, {"filter": {name: value}})
                    assert error["message"].startswith(f"{name} must ")
                    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    for wanted in ({"createdFrom": "2026-03-16T12:00:00"}, {"createdBefore": "yesterday"}, {"email": 1}):
        with subtests.test(wanted=wanted):
            assert (await gateway.error(CUSTOMERS, {"filter": wanted}))["extensions"] == {"code": "BAD_USER_INPUT"}
    error = await writer.error(CUSTOMERS, {"filter": {"email": "x"}})
    assert error["extensions"] == {"code": "FORBIDDEN"}


class TestPrefixes:
    def test_the_text_past_a_prefix_is_the_least_that_is_greater_than_all_with_it(
        self, subtests: pytest.Subtests
    ) -> None:
        for prefix, past in (
            ("a", "b"),
            ("az", "a{"),
            (f"a{GREATEST}", "b"),
            (f"a{GREATEST}{GREATEST}", "b"),
            (GREATEST, None),
            (GREATEST * 3, None),
            ("\ud7ff", "\ue000"),
            (f"\ud7ff{GREATEST}", "\ue000"),
            ("\U0010fffe", GREATEST),
            ("\uffff", "\U00010000"),
        ):
            with subtests.test(prefix=prefix):
                assert past_prefix(prefix) == past
                for text_ in (prefix, f"{prefix}\x01", f"{prefix}{GREATEST * 5}"):
                    # As both databases compare: by the bytes of UTF-8.
                    assert prefix.encode() <= text_.encode()
                    assert past is None or text_.encode() < past.encode()
                    if past is not None:
                        assert not past.startswith(prefix)

    @pytest.mark.slow
    def test_the_folded_beginning_of_a_text_is_the_beginning_of_the_folded_text(self) -> None:
        # Of every character there is, after one that joins with some of them.
        for code in [*range(1, 0xD800), *range(0xE000, 0x110000)]:
            character = chr(code)
            assert folded(f"e{character}x") == folded("e") + folded(character) + folded("x")
            # The longest name fits into an index of PostgreSQL, whose rows have at most 2,704 bytes.
            assert len(folded(character).encode()) <= 6


# Meters


@pytest.mark.slow
async def test_meters_are_found_by_how_much_is_available(gateway: Gateway, subtests: pytest.Subtests) -> None:
    amounts = [0, 1, 2, 3, 4, 7, 8, 9, 1023, 1024, 2**62, 2**63 - 2, 2**63 - 1]
    made = {amount: await make_meter(gateway, f"{amount}", totalCredits=str(amount)) for amount in amounts}
    await make_meter(gateway, "unlimited", allowOverages=True)
    # As much is used as there is, and more.
    past = await make_meter(gateway, "past", totalCredits="10", allowOverages=True, spendCap="90")
    await must(gateway, "recordUsage", externalMeterId="past", eventId="e", amount="60")
    await must(gateway, "updateBillingMeter", externalMeterId="past", allowOverages=False)
    for below in sorted({max(0, amount + more) for amount in amounts for more in (-1, 0, 1)} - {2**63}):
        with subtests.test(below=below):
            expected = [made[amount] for amount in amounts if amount < below] + ([past] if below > 0 else [])
            assert await ids_of(gateway, METERS, availableBelow=str(below)) == expected[::-1]


@pytest.mark.slow
async def test_a_meter_is_found_by_what_is_available_after_every_change(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    names = {"workspaceId": "w", "externalMeterId": "m"}
    for field, values, available in (
        ("recordUsage", {"eventId": "a", "amount": "36"}, 64),
        ("recordUsage", {"eventId": "b", "amount": "1"}, 63),
        ("recordUsage", {"eventId": "c", "amount": "1000", "policy": "PARTIAL"}, 0),
        ("voidUsage", {"eventId": "c", "reason": "r", "idempotencyKey": "v", "amount": "32"}, 32),
        ("refillBillingMeter", {"refill": "1000"}, 1032),
        ("updateBillingMeter", {"allowOverages": True, "spendCap": "0"}, 1032),
        ("updateBillingMeter", {"spendCap": "5000"}, 6032),
        ("recordUsage", {"eventId": "d", "amount": "6031"}, 1),
        ("updateBillingMeter", {"removeSpendCap": True}, None),
        ("recordUsage", {"eventId": "e", "amount": "7"}, None),
        ("updateBillingMeter", {"allowOverages": False}, 0),
        ("recordUsage", {"eventId": "f", "amount": "7", "policy": "FORCE"}, 0),
    ):
        with subtests.test(field=field, values=values):
            answer = await gateway.mutate(field, "", **names, **values)
            assert answer["__typename"].endswith("Success")
            if available is None:
                assert await ids_of(gateway, METERS, availableBelow=str(2**63 - 1)) == []
            else:
                assert await ids_of(gateway, METERS, availableBelow=str(available)) == []
                assert await ids_of(gateway, METERS, availableBelow=str(available + 1)) == [meter_id]
            assert await disagreements(gateway.database, meter_id) == []


@pytest.mark.one_server("it counts statements or reads their text, and in a bucket there are others")
async def test_a_debit_writes_what_changes_and_the_index_only_when_it_crosses_a_power_of_two(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="66")
    for number, is_crossing in enumerate([False, False, True, False]):
        with gateway.statements() as statements:
            await gateway.mutate(
                "recordUsage", "", workspaceId="w", externalMeterId="m", eventId=f"{number}", amount="1"
            )
        (update,) = [statement for statement in statements if statement.startswith("UPDATE billing_meters")]
        # The tests' clock stands still, so that a meter is as old afterwards.
        written = re.findall(r"(\w+)=keys", update)
        assert sorted(written) == [*(["available_bits"] if is_crossing else []), "last_seq", "used_credits"]
        (insert,) = [statement for statement in statements if statement.startswith("INSERT INTO ledger_entries")]
        named = insert[insert.index("(") + 1 : insert.index(")")].replace('"', "").split(", ")
        assert "used_credits_after" in named
        # On SQLite the rows share one parameter for it.
        assert ("voids_seq" in named) is (gateway.database.dialect == "sqlite")


async def test_debits_of_one_group_write_each_meter_once(gateway: Gateway) -> None:
    meters = [await make_meter(gateway, f"{total}", totalCredits=str(total)) for total in (64, 70)]
    batch = [
        {"workspaceId": "w", "externalMeterId": name, "eventId": "e", "amount": "1"} for name in ("64", "70", "70")
    ]
    batch[2] = batch[2] | {"eventId": "f"}
    query = "mutation ($input: [RecordUsageInput!]!) { recordUsageBatch(input: $input) { __typename } }"
    with gateway.statements() as statements:
        await gateway.data(query, {"input": batch})
    assert len([statement for statement in statements if statement.startswith("UPDATE billing_meters")]) == 2
    assert await ids_of(gateway, METERS, availableBelow="64") == [meters[0]]
    assert await ids_of(gateway, METERS, availableBelow="69") == meters[::-1]
    assert await disagreements(gateway.database, *meters) == []


def test_fewer_credits_never_have_more_bits() -> None:
    for limit, used, bits in (
        (None, 5, None),
        (0, 0, 0),
        (5, 9, 0),
        (1, 0, 1),
        (8, 1, 3),
        (8, 0, 4),
        (2**63 - 1, 0, 63),
        (0, 2**63 - 1, 0),
    ):
        assert available_bits(limit, used, 0) == bits
    bits_of = [available_bits(available, 0, 0) or 0 for available in range(5_000)]
    assert bits_of == sorted(bits_of)
    # So whatever is below `x` passes the condition of the index.
    assert all(bits_of[x - 1] <= (x - 1).bit_length() for x in range(1, 5_000))


@pytest.mark.slow
async def test_the_filters_of_meters_combine(gateway: Gateway, subtests: pytest.Subtests) -> None:
    customers = [await make_customer(gateway) for _ in range(2)]
    for number in range(24):
        await make_meter(
            gateway,
            f"{number}",
            workspaceId="wv"[number % 2],
            customerId=[*customers, None][number % 3],
            totalCredits=str(number),
        )
    nodes = (await gateway.data(METERS, {"first": 100}))["rows"]["nodes"]
    assert len(nodes) == 24
    for workspace, customer, below in product((None, "w", "x"), (None, *customers), (None, "0", "1", "13", "1000")):
        wanted = {"workspaceId": workspace, "customerId": customer, "availableBelow": below}
        with subtests.test(wanted=wanted):
            expected = [
                node["id"]
                for node in nodes
                if workspace in {None, node["workspaceId"]}
                and (customer is None or (node["customer"] or {}).get("id") == customer)
                and (below is None or int(node["availableCredits"]) < int(below))
            ]
            given = {key: value for key, value in wanted.items() if value is not None}
            assert await ids_of(gateway, METERS, **given) == expected


# Null

#: What clients send as null for what they leave out: it says where a page lies, and never which rows are in the list.
PAGE_ARGUMENTS = {"first", "after", "last", "before"}

#: How a query comes to an object of each type whose fields take arguments, and how it ends.
WAYS = {
    "Query": ("", ""),
    "Customer": ("customers { nodes { ", " } }"),
    "BillingMeter": ("billingMeters { nodes { ", " } }"),
    "WebhookEndpoint": ("webhookEndpoints { nodes { ", " } }"),
}
#: A value of each type of a required argument.
VALUES = {"ID!": f'"mtr_{0:024x}"', "String!": '"w"', "[ID!]!": "[]"}


class Nullable(NamedTuple):
    """An argument that may be left out, or a field of one that is an input: its place, and how to ask for it."""

    path: str
    #: Where the value goes, it has `%s`.
    query: str
    type_: str


def nullable() -> list[Nullable]:
    """Return every argument of a query's fields that restricts what is answered, and every field of a filter."""
    found = []
    for type_name, type_ in schema._schema.type_map.items():
        if not isinstance(type_, GraphQLObjectType) or type_name.startswith("__") or type_name == "Mutation":
            continue
        for name, field in type_.fields.items():
            required = {
                argument: VALUES[str(definition.type)]
                for argument, definition in field.args.items()
                if is_required_argument(definition)
            }
            selection = " { __typename }" if isinstance(get_named_type(field.type), GraphQLObjectType) else ""
            for argument, definition in field.args.items():
                if is_non_null_type(definition.type) or argument in PAGE_ARGUMENTS:
                    continue
                before, after = WAYS[type_name]
                arguments = ", ".join(f"{key}: {value}" for key, value in required.items())
                query = f"{before}{name}({arguments} {argument}: %s){selection}{after}"
                found.append(Nullable(argument, query, str(definition.type)))
                if isinstance(definition.type, GraphQLInputObjectType):
                    found += [
                        Nullable(f"{argument}.{key}", query.replace("%s", f"{{{key}: %s}}"), str(each.type))
                        for key, each in definition.type.fields.items()
                    ]
    return found


def test_every_filter_is_asked_about() -> None:
    assert {each.path for each in nullable()} == {
        *("filter", "filter.email", "filter.namePrefix", "filter.externalIdPrefix"),
        *("filter.createdFrom", "filter.createdBefore"),
        *("filter.workspaceId", "filter.customerId", "filter.availableBelow"),
        *("filter.state", "filter.category", "filter.expiresBefore", "state"),
        *("from", "to", "names"),
        *("workspaceId", "types", "billingMeterId"),
    }
    assert len(nullable()) == 2 + 8 + 2 * 3 + 4 + 1 + 4


@pytest.mark.parametrize("asked", nullable(), ids=lambda asked: asked.query.replace("%s", "null"))
async def test_a_null_in_a_filter_is_refused(on_sqlite: Gateway, asked: Nullable) -> None:
    """A variable that is lost must not widen what is answered."""
    await make_meter(on_sqlite, customerId=await make_customer(on_sqlite))
    await make_endpoint(on_sqlite)
    message = f"{asked.path} must not be null; leave it out where it is not to restrict the answer."
    literal = f"{{ {asked.query % 'null'} }}"
    variable = f"query ($value: {asked.type_}) {{ {asked.query % '$value'} }}"
    by_default = f"query ($value: {asked.type_} = null) {{ {asked.query % '$value'} }}"
    for query, variables in ((literal, None), (variable, {"value": None}), (by_default, {})):
        # At first by graphql-core, then compiled.
        for _ in range(4):
            error = await on_sqlite.error(query, variables)
            assert (error["message"], error["extensions"]) == (message, {"code": "BAD_USER_INPUT"})
    # What is not sent is left out.
    for _ in range(4):
        await on_sqlite.data(variable, {})


async def test_a_null_in_a_filter_that_is_a_variable_as_a_whole_is_refused(on_sqlite: Gateway) -> None:
    for query, wanted, path in (
        (METERS, {"workspaceId": "w", "customerId": None}, "filter.customerId"),
        (CUSTOMERS, {"email": None, "namePrefix": "a"}, "filter.email"),
        (METERS, None, "filter"),
        (CUSTOMERS, None, "filter"),
    ):
        for _ in range(4):
            error = await on_sqlite.error(query, {"filter": wanted})
            assert error["message"].startswith(f"{path} must not be null;")


async def test_a_null_of_a_page_is_left_out(on_sqlite: Gateway) -> None:
    await make_meter(on_sqlite, customerId=await make_customer(on_sqlite))
    query = """query ($first: Int, $after: String, $last: Int, $before: String) {
      customers(first: $first, after: $after, last: $last, before: $before) { nodes {
        billingMeters(first: $first, after: $after, last: $last, before: $before) { nodes {
          ledger(first: $first, after: $after, last: $last, before: $before) { nodes { kind } }
        } }
      } }
      billingMeters(first: $first, after: $after, last: $last, before: $before) { nodes { workspaceId } }
    }"""
    for _ in range(4):
        assert await on_sqlite.data(query, dict.fromkeys(PAGE_ARGUMENTS)) == {
            "customers": {"nodes": [{"billingMeters": {"nodes": [{"ledger": {"nodes": [{"kind": "OPENING"}]}}]}}]},
            "billingMeters": {"nodes": [{"workspaceId": "w"}]},
        }


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/customer-billing?workspaceId=&externalMeterId=m",
        "/api/v1/customer-billing?workspaceId=w&externalMeterId=",
        "/api/v1/usage/METER?from=",
        "/api/v1/usage/METER?to=",
        "/api/v1/usage/METER?from=2026-03-01&to=",
    ],
)
async def test_an_empty_parameter_is_refused(on_sqlite: Gateway, path: str) -> None:
    meter_id = await make_meter(on_sqlite)
    headers = {"authorization": f"Bearer {on_sqlite.key}"}
    response = await on_sqlite.client.get(path.replace("METER", meter_id), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"].split()[0] in {"workspaceId", "externalMeterId", "from", "to"}


# Pages of filtered lists

#: Each filter, by the list that it is of: rows of number 0 to 2 it drops, all others it keeps.
WALKS: dict[str, tuple[str, dict[str, Any]]] = {
    "email": ("customers", {"email": "KEPT@example.com"}),
    "name": ("customers", {"namePrefix": "KEPT"}),
    "external id": ("customers", {"externalIdPrefix": "kept"}),
    "made from": ("customers", {"createdFrom": "2026-03-16T12:00:03Z"}),
    "made before": ("customers", {"createdBefore": "2026-03-17T00:00:00Z"}),
    "all of customers": (
        "customers",
        {
            "email": "kept@example.com",
            "namePrefix": "kept",
            "externalIdPrefix": "kept",
            "createdFrom": "2026-03-16T12:00:03Z",
            "createdBefore": "2026-03-17T00:00:00Z",
        },
    ),
    "workspace": ("billing_meters", {"workspaceId": "kept"}),
    "customer": ("billing_meters", {"customerId": "CUSTOMER"}),
    "available": ("billing_meters", {"availableBelow": "9"}),
    "all of meters": ("billing_meters", {"workspaceId": "kept", "customerId": "CUSTOMER", "availableBelow": "9"}),
}


class Walk:
    """A filtered list of rows, of which each third is dropped by the filter."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        self.gateway = gateway
        self.table, self.wanted = WALKS[name]
        self.is_dropping = name != "made before"
        self.customer_id = ""
        self.ids: list[str] = []
        self.made = 0

    async def open(self) -> None:
        if self.table == "billing_meters":
            self.customer_id = await make_customer(self.gateway)
            if "customerId" in self.wanted:
                self.wanted = self.wanted | {"customerId": self.customer_id}
        # So that the time of making drops the first three.
        for _ in range(3):
            await self.add(is_kept=False)
        for _ in range(12):
            await self.add()

    async def add(self, *, is_kept: bool = True) -> None:
        self.made += 1
        word = "kept" if is_kept else "other"
        if self.table == "customers":
            name = f"{word} {self.made}"
            id_ = await make_customer(self.gateway, email=f"{word}@example.com", name=name, externalId=name)
            self.gateway.clock.forward(seconds=1)
        else:
            id_ = await make_meter(
                self.gateway,
                f"{self.made}",
                workspaceId=word,
                customerId=self.customer_id if is_kept else None,
                totalCredits="8" if is_kept else "9",
            )
        if is_kept or not self.is_dropping:
            self.ids.insert(0, id_)

    async def page(self, **page: Any) -> tuple[list[str], dict[str, Any]]:
        query = CUSTOMERS if self.table == "customers" else METERS
        rows = (await self.gateway.data(query, {"filter": self.wanted} | page))["rows"]
        return [node["id"] for node in rows["nodes"]], rows["pageInfo"]


@pytest.fixture(params=list(WALKS))
async def walk(request: pytest.FixtureRequest, gateway: Gateway) -> Walk:
    """Each filtered list in turn."""
    walk = Walk(gateway, request.param)
    await walk.open()
    return walk


async def test_a_walk_forward_neither_repeats_nor_skips_a_row(walk: Walk) -> None:
    there = list(walk.ids)
    seen: list[str] = []
    deleted: set[str] = set()
    after, is_more = None, True
    while is_more:
        ids, info = await walk.page(first=3, after=after)
        assert info["hasPreviousPage"] is (after is not None)
        seen += ids
        after, is_more = info["endCursor"], info["hasNextPage"]
        # New rows come before the cursor; the cursor's own row goes, and one that is yet to come.
        await walk.add()
        await walk.add(is_kept=False)
        unseen = [id_ for id_ in there if id_ not in seen and id_ not in deleted]
        for id_ in (ids[-1], *unseen[1:2]):
            await delete_row(walk.gateway.database, id_)
            deleted.add(id_)
    assert len(seen) == len(set(seen))
    assert [id_ for id_ in there if id_ in seen or id_ not in deleted] == seen
    assert deleted - set(seen)


async def test_a_walk_backward_neither_repeats_nor_skips_a_row(walk: Walk) -> None:
    there = list(walk.ids)
    seen: list[str] = []
    deleted: set[str] = set()
    before, is_more = None, True
    while is_more:
        ids, info = await walk.page(last=3, before=before)
        assert info["hasNextPage"] is (before is not None)
        seen = ids + seen
        before, is_more = info["startCursor"], info["hasPreviousPage"]
        if not deleted:
            # It comes to the new rows last.
            await walk.add()
        unseen = [id_ for id_ in walk.ids if id_ not in seen and id_ not in deleted]
        for id_ in (ids[0], *unseen[-2:-1]):
            await delete_row(walk.gateway.database, id_)
            deleted.add(id_)
    assert len(seen) == len(set(seen))
    assert [id_ for id_ in walk.ids if id_ in seen or id_ not in deleted] == seen
    assert len(walk.ids) == len(there) + 1
    assert deleted - set(seen)


# Rows of the release before


async def upgrade_to(database: Database, revision: str) -> None:
    def run(connection: Connection) -> None:
        configuration = migrations.config()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, revision)

    async with database.connect_to_migrate() as connection:
        await connection.run_sync(run)


@pytest.mark.slow
async def test_the_migration_fills_what_is_there_a_portion_at_a_time(new_database_url: str) -> None:
    database = Database(new_database_url)

    try:
        await upgrade_to(database, "2026_11_21_customer_sessions")
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        shown = moment.isoformat() if database.dialect == "sqlite" else moment
        count = 2_345
        greatest = 2**63 - 1
        limits = [None, 0, 5, 1024, greatest]
        used = [0, 9, 3, 0, 0]
        customer = (
            "INSERT INTO customers (id, org_id, environment, email, name, metadata, created_at, updated_at)"
            " VALUES (:id, 'org', 'sandbox', :email, :name, '{}', :at, :at)"
        )
        meter = (
            "INSERT INTO billing_meters (id, org_id, environment, workspace_id, external_meter_id, timezone,"
            " total_credits, used_credits, allow_overages, limit_credits, last_seq, created_at, updated_at)"
            " VALUES (:id, 'org', 'sandbox', 'w', :name, 'UTC', 0, :used, :no, :limit, 1, :at, :at)"
        )

        async def fill(writer: Any) -> None:
            for number in range(count):
                digits = f"{number:024x}"
                names = {"email": f"Ä{number}@Example.com", "name": None if number % 2 else f"STRAẞE {number}"}
                await writer.execute(text(customer), {"id": f"cus_{digits}", "at": shown} | names)
                credits_ = {"used": used[number % 5], "limit": limits[number % 5], "no": False}
                await writer.execute(text(meter), {"id": f"mtr_{digits}", "name": digits, "at": shown} | credits_)

        await database.write(fill)
        await upgrade_to(database, "head")
        assert await migrations.is_current(database)
        async with database.read() as reader:
            customers = await reader.fetch(text("SELECT email_folded, name_folded FROM customers ORDER BY id"))
            meters = await reader.fetch(text("SELECT available_bits FROM billing_meters ORDER BY id"))
        assert [tuple(row) for row in customers] == [
            (f"ä{number}@example.com", None if number % 2 else f"strasse {number}") for number in range(count)
        ]
        assert [row.available_bits for row in meters] == [[None, 0, 2, 11, 63][number % 5] for number in range(count)]
    finally:
        await database.close()


async def test_the_release_before_goes_on_writing_and_the_next_write_repairs_its_rows(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    await gateway.database.write(
        lambda writer: writer.execute(
            text("UPDATE billing_meters SET used_credits = 98 WHERE id = :id"), {"id": meter_id}
        )
    )
    # The column still stands for 100 credits: the meter is missed, and never answered wrongly.
    assert await ids_of(gateway, METERS, availableBelow="3") == []
    assert await ids_of(gateway, METERS, availableBelow="100") == [meter_id]
    await asyncio.gather(*[must(gateway, "recordUsage", eventId=f"{number}", amount="1") for number in range(2)])
    assert await ids_of(gateway, METERS, availableBelow="1") == [meter_id]


async def test_the_migration_waits_for_a_gateway_that_gives_a_meter_to_a_customer(new_database_url: str) -> None:
    database, gateway = Database(new_database_url), Database(new_database_url)
    try:
        await upgrade_to(database, "2026_11_20_index_of_voids")
        has_locked, may_go_on = asyncio.Event(), asyncio.Event()

        async def give(writer: Writer) -> None:
            await writer.fetch(select(billing_meters.c.id).with_for_update())
            has_locked.set()
            await may_go_on.wait()
            await writer.fetch(text("SELECT id FROM customers"))
            await writer.fetch(text("SELECT id FROM api_keys"))

        giving = asyncio.create_task(gateway.write(give))
        await has_locked.wait()
        migrating = asyncio.create_task(migrations.upgrade(database))
        while database.dialect == "postgresql":
            async with gateway.read() as reader:
                waiting = (
                    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE NOT granted"
                )
                if await reader.fetch_one(text(f"{waiting} AND datname = current_database()")) == (1,):
                    break
        may_go_on.set()
        await asyncio.gather(giving, migrating)
        assert await migrations.is_current(database)
    finally:
        await database.close()
        await gateway.close()
