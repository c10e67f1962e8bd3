"""What a request makes goes with it: nothing of it leads back to itself, which Python would keep until it searches.

Searches are rare, and a request's answer may be large.
"""

import gc
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest

from resolvers.actor import Scope
from tests.conftest import REFUSALS, Gateway
from tests.steps import ENTRY, METER, make_customer, make_meter, must

pytestmark = pytest.mark.slow

USAGE = f"""__typename ... on RecordUsageSuccess {{ accepted entry {{ {ENTRY} }} billingMeter {{ {METER} }} }}
  ... on InsufficientCredits {{ available billingMeter {{ id }} }} {REFUSALS}"""
RECORD = f"mutation ($input: RecordUsageInput!) {{ recordUsage(input: $input) {{ {USAGE} }} }}"
BATCH = f"mutation ($input: [RecordUsageInput!]!) {{ recordUsageBatch(input: $input) {{ {USAGE} }} }}"
REFILL = """mutation ($input: RefillBillingMeterInput!) { refillBillingMeter(input: $input) {
  __typename ... on RefillBillingMeterSuccess { billingMeter { totalCredits customer { name } usage { day } } }
} }"""
BY_NAMES = f"query ($w: String!, $m: String!) {{ billingMeter(workspaceId: $w, externalMeterId: $m) {{ {METER} }} }}"

#: Queries, and what each is answered with: the first field of the data, or the code of the error.
QUERIES = {
    "the plain fields of one meter": (BY_NAMES, "billingMeter"),
    "edges that are compiled": (
        "{ customers { nodes { name billingMeters { nodes { id usage { day totalBillingUsage } } } } } }",
        "customers",
    ),
    "edges in fields of their own": (
        f"""{{ billingMeters {{ edges {{ node {{
          id customer {{ name }} ledger {{ nodes {{ {ENTRY} billingMeter {{ id usage {{ day }} }} }} }}
        }} }} }} viewer {{ orgId }} }}""",
        "billingMeters",
    ),
    "an interface": ('{ node(id: "cus_000000000000000000000000") { __typename id } }', "node"),
    "an argument that is refused": ("{ customers(first: 0) { nodes { id } } }", "BAD_USER_INPUT"),
    "an edge that is refused": (
        '{ customers { nodes { id billingMeters { nodes { usage(names: [""]) { day } } } } } }',
        "BAD_USER_INPUT",
    ),
    "a document that is not valid": ("{ nothing }", "GRAPHQL_VALIDATION_FAILED"),
    "a variable that is missing": ("query ($id: ID!) { customer(id: $id) { id } }", "BAD_USER_INPUT"),
    "too much": (
        "{ customers(first: 99) { nodes { billingMeters(first: 99) { nodes { ledger { nodes { id } } } } } } }",
        "LIMIT_EXCEEDED",
    ),
}

NAMES = {"workspaceId": "w", "externalMeterId": "m"}

#: Usage events, and what each comes to. A number makes an event's id a new one.
EVENTS = {
    "RecordUsageSuccess": NAMES | {"eventId": "new-%d", "amount": "1"},
    "IdempotencyConflict": NAMES | {"eventId": "first", "amount": "2"},
    "BillingMeterNotFound": NAMES | {"externalMeterId": "none", "eventId": "e", "amount": "1"},
    "InsufficientCredits": NAMES | {"eventId": "e", "amount": "1000000"},
    "InvalidInput": NAMES | {"eventId": "e", "amount": "1", "occurredAt": "2040-01-01T00:00:00Z"},
}
MALFORMED = NAMES | {"eventId": "", "amount": "1"}


class Asker:
    """Sends requests to the application itself: a client would leave objects of its own."""

    def __init__(self, gateway: Gateway) -> None:
        transport = gateway.client._transport
        assert isinstance(transport, httpx.ASGITransport)
        self._app = transport.app
        self._key = gateway.key

    async def ask(
        self, method: str, target: str, body: object = None, *, key: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a request, and return its status and what it is answered."""
        path, _, query = target.partition("?")
        content = b"" if body is None else orjson.dumps(body)
        scope = {
            "type": "http",
            "scheme": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [
                (b"authorization", f"Bearer {key or self._key}".encode()),
                (b"content-length", b"%d" % len(content)),
                *([(b"content-type", b"application/json")] if content else []),
            ],
        }
        received = [{"type": "http.disconnect"}, {"type": "http.request", "body": content}]
        sent: list[Any] = []

        async def receive() -> Any:
            return received.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return sent[0]["status"], orjson.loads(b"".join(message.get("body", b"") for message in sent))

    async def gql(self, query: str, variables: Mapping[str, Any] | None = None, *, key: str | None = None) -> Any:
        """Send an operation, and return its answer."""
        status, answer = await self.ask("POST", "/graphql", {"query": query, "variables": variables}, key=key)
        assert status == 200
        return answer


@contextmanager
def left_over() -> Iterator[Counter[str]]:
    """Count by their classes the objects that only a search for cycles would free, of what is made inside."""
    found: Counter[str] = Counter()
    gc.disable()
    others = gc.get_objects()  # Such as an earlier test's, which are held here so that they do not count.
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(type(each).__qualname__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        others.clear()
        gc.enable()


def test_a_cycle_is_found() -> None:
    with left_over() as found:
        one: list[Any] = []
        one.append(one)
        del one
    assert found == {"list": 1}


async def asker_of(gateway: Gateway) -> Asker:
    """Make a customer with a meter that has usage, and return who sends requests."""
    customer_id = await make_customer(gateway, "a@example.com")
    await make_meter(gateway, totalCredits="1000", customerId=customer_id)
    await must(gateway, "recordUsage", eventId="first", amount="1")
    return Asker(gateway)


async def left_by(ask: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Return what is left over of three requests, once others have filled what is kept for all of them."""
    for _ in range(3):
        await ask()
    with left_over() as found:
        for _ in range(3):
            await ask()
    return found


@pytest.mark.parametrize("case", QUERIES)
async def test_nothing_is_left_over_of_a_query(gateway: Gateway, case: str) -> None:
    asker = await asker_of(gateway)
    query, expected = QUERIES[case]

    async def ask() -> None:
        answer = await asker.gql(query, {"w": "w", "m": "m"})
        codes = [error["extensions"]["code"] for error in answer.get("errors", ())]
        assert (codes or [*answer["data"]])[0] == expected

    assert await left_by(ask) == {}


@pytest.mark.parametrize("expected", EVENTS)
async def test_nothing_is_left_over_of_a_debit(gateway: Gateway, expected: str) -> None:
    asker, numbers = await asker_of(gateway), itertools.count()

    async def ask() -> None:
        answer = await asker.gql(RECORD, {"input": numbered(EVENTS[expected], next(numbers))})
        assert answer["data"]["recordUsage"]["__typename"] == expected

    assert await left_by(ask) == {}


async def test_nothing_is_left_over_of_a_batch(gateway: Gateway) -> None:
    asker, numbers = await asker_of(gateway), itertools.count()

    async def ask() -> None:
        number = next(numbers)
        answer = await asker.gql(BATCH, {"input": [numbered(each, number) for each in (*EVENTS.values(), MALFORMED)]})
        types = [result["__typename"] for result in answer["data"]["recordUsageBatch"]]
        assert types == [*EVENTS, "InvalidInput"]

    assert await left_by(ask) == {}


@pytest.mark.parametrize(("meter", "expected"), [("m", "RefillBillingMeterSuccess"), ("none", "BillingMeterNotFound")])
async def test_nothing_is_left_over_of_a_refill(gateway: Gateway, meter: str, expected: str) -> None:
    asker = await asker_of(gateway)

    async def ask() -> None:
        answer = await asker.gql(REFILL, {"input": NAMES | {"externalMeterId": meter, "refill": "1"}})
        assert answer["data"]["refillBillingMeter"]["__typename"] == expected

    assert await left_by(ask) == {}


async def test_nothing_is_left_over_of_what_the_key_may_not_do(gateway: Gateway) -> None:
    asker = await asker_of(gateway)
    reader = await gateway.caller(Scope.BILLING_READ)

    async def ask() -> None:
        answer = await asker.gql(RECORD, {"input": EVENTS["IdempotencyConflict"]}, key=reader.key)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"

    assert await left_by(ask) == {}


@pytest.mark.parametrize(
    ("method", "target", "body", "expected"),
    [
        ("GET", "/api/v1/customer-billing?workspaceId=w&externalMeterId=m", None, 200),
        ("GET", "/api/v1/customer-billing?workspaceId=w", None, 400),
        ("POST", "/api/v1/customer-billing/refill", {"workspaceId": "w", "externalMeterId": "m", "refill": 1}, 200),
        ("POST", "/api/v1/customer-billing/refill", {"workspaceId": "w", "externalMeterId": "none", "refill": 1}, 400),
        ("GET", "/api/v1/usage/none", None, 200),
        ("GET", "/nowhere", None, 404),
        ("PUT", "/graphql", None, 405),
    ],
)
async def test_nothing_is_left_over_of_other_requests(
    gateway: Gateway, method: str, target: str, body: object, expected: int
) -> None:
    asker = await asker_of(gateway)

    async def ask() -> None:
        status, _ = await asker.ask(method, target, body)
        assert status == expected

    assert await left_by(ask) == {}


async def test_nothing_is_left_over_of_a_request_without_a_key(gateway: Gateway) -> None:
    asker = await asker_of(gateway)

    async def ask() -> None:
        status, _ = await asker.ask("POST", "/graphql", {"query": "{ __typename }"}, key="none")
        assert status == 401

    assert await left_by(ask) == {}


def numbered(event: dict[str, str], number: int) -> dict[str, str]:
    """Return the event; where its id has a place for a number, it is filled in."""
    return event | {"eventId": event["eventId"].replace("%d", str(number))}
