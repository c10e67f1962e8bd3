"""The costliest requests that the limits admit: what each costs, and that none holds up the others.

What is promised is in `docs/limits.md`, whose table these tests hold against the gateway. A request holds the others up
for as long as the event loop is in one of its rounds, which is measured by the processor's time of its thread.
"""

import asyncio
import gc
import re
import secrets
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import process_time, thread_time
from typing import Any

import httpx
import orjson
import pytest
from graphql import get_introspection_query, parse
from hypothesis import given, settings, target
from hypothesis import strategies as st

from gateway.services import collect_less_often
from schema.engine import documents
from schema.engine.documents import LONGEST_KEPT, MAX_KEPT_BYTES, Document, KeptDocuments
from schema.engine.execution.plans import MAX_PLANS
from schema.engine.limits.cost import Size
from schema.engine.limits.document import DEFAULT, Limits
from schema.engine.limits.room import MAX_WEIGHT, Room, _making
from schema.engine.operations import LARGE_VALUES, LimitedOperation
from schema.root import engine
from storage.engine.transactions import Writer
from storage.meters import usage as usage_days
from storage.meters.ledger import LedgerEntryRow
from tests.conftest import NOW, Gateway, gateway_on
from tests.steps import ENTRY, METER, make_customer, make_meter, session_of

pytestmark = pytest.mark.slow

#: How long one request may hold up the others.
MAX_HELD_SECONDS = 0.25

#: How long the machine of the page parses the query for a whole schema 20 times. Seconds of another are as many more.
SECONDS_OF_20_PARSES = 0.0475

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"

YEAR = 'from: "2025-03-17", to: "2026-03-16"'
#: As many names as a year of a meter may be filled with zeros for.
NAMES = 27


def usage(fields: int, leaves: int) -> str:
    """Return a query of so many years of usage, each of so many aliases of the usage's name."""
    leaf = " ".join(f"l{number}: billingUsageName" for number in range(leaves))
    years = " ".join(
        f"u{n}: usage(billingId: $m, {YEAR}, fillZeros: true, names: $n) {{ {leaf} }}" for n in range(fields)
    )
    return f"query Q{secrets.token_hex(4)} ($m: ID!, $n: [String!]) {{ {years} }}"


def ledgers(pages: int) -> str:
    page = " ".join(f"l{n}: ledger(first: 100) {{ nodes {{ metadata }} }}" for n in range(pages))
    return f"query Q{secrets.token_hex(4)} ($m: ID!) {{ node(id: $m) {{ ... on BillingMeter {{ {page} }} }} }}"


def introspection(count: int) -> str:
    each = "{ types { name description fields { name description args { name } } } }"
    return f"query Q{secrets.token_hex(4)} {{ {' '.join(f's{n}: __schema {each}' for n in range(count))} }}"


def failing(count: int) -> str:
    fields = " ".join(f"c{n}: customer {{ billingMeters(first: 0) {{ nodes {{ id }} }} }}" for n in range(count))
    return f"query Q{secrets.token_hex(4)} {{ billingMeters(first: 100) {{ nodes {{ {fields} }} }} }}"


def voids(count: int) -> str:
    chain = "voids { " * 15 + "id key" + " }" * 15
    pages = " ".join(f"l{n}: ledger(first: 2) {{ nodes {{ {chain} }} }}" for n in range(count))
    return f"query Q{secrets.token_hex(4)} {{ billingMeters {{ nodes {{ {pages} }} }} }}"


def fragments(count: int) -> str:
    spreads = " ".join(f"...F{number}" for number in range(count))
    each = " ".join(f"fragment F{number} on Query {{ viewer {{ orgId }} }}" for number in range(count))
    return f"query Q{secrets.token_hex(4)} {{ {spreads} }} {each}"


def unknown(count: int) -> str:
    fields = " ".join(f"f{number}: 1" for number in range(count))
    return f"query Q{secrets.token_hex(4)} {{ customers(filter: {{ {fields} }}) {{ nodes {{ id }} }} }}"


def batch(_: int) -> str:
    return f"""mutation M{secrets.token_hex(4)} ($events: [RecordUsageInput!]!) {{ recordUsageBatch(input: $events) {{
      ... on RecordUsageSuccess {{ accepted replayed entry {{ {ENTRY} }} billingMeter {{ {METER} }} }}
      ... on IdempotencyConflict {{ code message entry: firstEntry {{ {ENTRY} }} }}
    }} }}"""


@dataclass(frozen=True)
class Request:
    """One kind of request: a document that grows by a number, and the values of its variables."""

    document: Callable[[int], str]
    names: list[str]
    #: As much as the limits of a document let it grow, whatever it costs.
    most: int


SHORT = [f"n{number}" for number in range(NAMES)]
ASTRAL = [chr(0x1F600) * 127 + chr(0x1F600 + number) for number in range(NAMES)]
CONTROL = ["\x01" * 127 + chr(0x61 + number) for number in range(NAMES)]

REQUESTS = {
    "usage of a year, ten times, of nine aliases": Request(lambda n: usage(10, n), SHORT, 9),
    "usage of a year, of a hundred aliases": Request(lambda n: usage(1, n), SHORT, 99),
    "usage under the longest names": Request(lambda n: usage(n, 1), ASTRAL, 90),
    "usage under names of control characters": Request(lambda n: usage(n, 1), CONTROL, 90),
    "metadata of ledger entries": Request(ledgers, SHORT, 98),
    "introspection": Request(introspection, SHORT, 90),
    "a field that fails in every row": Request(failing, SHORT, 95),
    "a document of many levels": Request(voids, SHORT, 50),
    "a document of many fragments": Request(fragments, SHORT, 99),
    "a document of unknown fields": Request(unknown, SHORT, 1_600),
    "a batch of 1,000 events": Request(batch, SHORT, 1),
}


def size_of(text: str, names: list[str], limits: Limits = DEFAULT) -> Size | None:
    """Return what an operation comes to at most; None: its document is refused."""
    document = engine.prepare(text, limits)
    if not isinstance(document, Document):
        return None
    operation = document.operation(None)
    assert operation is not None
    events = [{"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1"}] * 1_000
    values = operation._operation.variables.read({"m": "x", "n": names, "events": events})
    assert not isinstance(values, list), values
    return operation._cost.of(values.coerced, lambda: NOW)


def is_admitted(size: Size, limits: Limits = DEFAULT) -> bool:
    return size.rows <= limits.cost and size.values <= limits.answer_values and size.bytes <= limits.answer_bytes


def largest(request: Request) -> str:
    """Return the largest document of this kind that is admitted, or refused for what it says and not for its size."""
    least, most = 1, request.most
    if size_of(request.document(least), request.names) is None:
        return request.document(most)
    while least < most:
        middle = (least + most + 1) // 2
        size = size_of(request.document(middle), request.names)
        least, most = (middle, most) if size is None or is_admitted(size) else (least, middle - 1)
    return request.document(least)


class Watch:
    """Measures the longest round of the event loop, in seconds of its thread's processor time.

    A round is what the loop does between one look for what has come and the next. While it waits nothing is done, so
    that the processor's time of the process is the request's.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # There is no hook.
        self._select = self._selector.select
        self._began = thread_time()
        self._selector.select = self._look

    def _look(self, seconds: float | None = None) -> Any:
        self.longest = max(self.longest, thread_time() - self._began)
        try:
            return self._select(seconds)
        finally:
            self._began = thread_time()

    def stop(self) -> None:
        self.longest = max(self.longest, thread_time() - self._began)
        del self._selector.select


@contextmanager
def watch() -> Iterator[Watch]:
    watch = Watch()
    try:
        yield watch
    finally:
        watch.stop()


def slowness() -> float:
    """Return how many times as long as the machine of the page this one takes, now, for work of the same kind."""
    parse(get_introspection_query())
    began = thread_time()
    for _ in range(20):
        parse(get_introspection_query())
    return (thread_time() - began) / SECONDS_OF_20_PARSES


async def send(gateway: Gateway, query: str, variables: dict[str, Any]) -> tuple[int, bytes]:
    """Send an operation to the application itself, and return its status and body: a client would take time, too."""
    transport = gateway.client._transport
    assert isinstance(transport, httpx.ASGITransport)
    content = orjson.dumps({"query": query, "variables": variables})
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    scope = {
        "type": "http",
        "scheme": "http",
        "method": "POST",
        "path": "/graphql",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": content}

    async def send(message: Any) -> None:
        sent.append(message)

    await transport.app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


METADATA = {"m": "x" * 16_000}


@pytest.fixture
async def meter(on_sqlite: Gateway) -> str:
    """A meter of a customer among others, with 100 entries whose metadata is as large as may be."""
    customer_id = await make_customer(on_sqlite, metadata=METADATA)
    input_ = '{workspaceId: "w", externalMeterId: "m%s", customerId: "%s"}'
    made_each = " ".join(
        f"m{n}: createBillingMeter(input: {input_ % (n, customer_id)}) {{ __typename }}" for n in range(99)
    )
    await on_sqlite.data(f"mutation {{ {made_each} }}")
    meter = await make_meter(on_sqlite, totalCredits="1000000", customerId=customer_id)
    for first in (0, 50):
        events = [event(number) | {"metadata": METADATA} for number in range(first, first + 50)]
        await on_sqlite.data(
            "mutation ($e: [RecordUsageInput!]!) { recordUsageBatch(input: $e) { __typename } }", {"e": events}
        )
    return meter


def event(number: int) -> dict[str, Any]:
    return {"workspaceId": "w", "externalMeterId": "m", "eventId": f"e{number}", "amount": "1"}


async def use(gateway: Gateway, meter: str, names: list[str], *, days: int = 365) -> None:
    """Have the meter used under each of the names on each of the last days."""
    used = {(meter, NOW.date() - timedelta(days=day), name): 1 for day in range(days) for name in names}
    await gateway.database.write(lambda writer: usage_days.add(writer, used))


@contextmanager
def peak_of_memory() -> Iterator[Callable[[], int]]:
    """Yield what returns how much more memory, in bytes, the process has had meanwhile than it had at the beginning."""
    process = Path("/proc/self")

    def bytes_of(name: str) -> int:
        (found,) = re.findall(rf"^{name}:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
        return int(found) * 1024

    gc.collect()
    (process / "clear_refs").write_text("5")  # The peak is that of now.
    before = bytes_of("VmRSS")
    yield lambda: bytes_of("VmHWM") - before


def promised() -> dict[str, list[int]]:
    """Return the table of the page: of each request the seconds of CPU, and the megabytes of answer and of memory."""
    section = PAGE.read_text("utf-8").partition("## The costliest requests")[2]
    rows = re.findall(r"^\| ([a-z].*?) \| (\d+) s \| (\d+) MB \| (\d+) MB \|", section, re.MULTILINE)
    return {name: [int(number) for number in numbers] for name, *numbers in rows}


_CUSTOMER = ("CreateCustomerInput!", "createCustomer(input: $v)")
_BATCH = ("[RecordUsageInput!]!", "recordUsageBatch(input: $v)")

#: Variables of a megabyte, which graphql-core reads again and describes what is wrong with: their type, the field that
#: they are for, the value, and the code of the errors.
MALFORMED: dict[str, tuple[str, str, Any, str]] = {
    "a list of numbers": ("[String!]!", 'usage(billingId: "x", names: $v)', [1] * 200_000, "LIMIT_EXCEEDED"),
    "a batch of nothing": (*_BATCH, [{}] * 300_000, "LIMIT_EXCEEDED"),
    "a batch of unknown fields": (*_BATCH, [{f"f{n}": 1 for n in range(90)}] * 1_000, "BAD_USER_INPUT"),
    "unknown fields": (*_CUSTOMER, {f"f{number}": 1 for number in range(80_000)}, "LIMIT_EXCEEDED"),
    "a name of repeated errors": (*_CUSTOMER, {", but encountered error '" * 40_000: 1}, "BAD_USER_INPUT"),
    "a name of escaped quotes": (*_CUSTOMER, {"\\'" * 300_000: 1}, "BAD_USER_INPUT"),
}


class TestTheCostliest:
    @pytest.mark.parametrize("name", REQUESTS)
    async def test_the_costliest_request_costs_what_the_page_says_and_holds_nobody_up(
        self, on_sqlite: Gateway, meter: str, name: str
    ) -> None:
        request = REQUESTS[name]
        text = largest(request)
        variables = {"m": meter, "n": request.names, "events": [event(1_000 + number) for number in range(1_000)]}
        await send(on_sqlite, "{ __typename }", {})
        collect_less_often()  # Or the time is also that of a search through what other tests have left.
        slowest = slowness()
        with peak_of_memory() as peak, watch() as watched:
            began = process_time()
            status, body = await send(on_sqlite, text, variables)
            seconds, memory = process_time() - began, peak()
        slowest = max(slowest, slowness())
        print(  # noqa: T201
            f"{name}: {seconds:.2f} s, {len(body) / 1e6:.1f} MB, {memory / 1e6:.1f} MB of memory,"
            f" held {watched.longest * 1_000:.0f} ms, by a machine {slowest:.2f} times as slow"
        )
        assert status == 200
        assert b"LIMIT_EXCEEDED" not in body[:1_000]
        max_seconds, max_megabytes, max_memory_megabytes = promised()[name]
        assert seconds < max_seconds * slowest
        assert len(body) < max_megabytes * 1_000_000
        assert memory < max_memory_megabytes * 1_000_000
        assert watched.longest < MAX_HELD_SECONDS * slowest

    async def test_what_is_long_and_not_asked_for_takes_no_memory(self, on_sqlite: Gateway, meter: str) -> None:
        """Two thousand metadata of 16 KB would take 700 MB once they are parsed."""
        columns = ", ".join(LedgerEntryRow._fields)
        others = ", ".join(
            {"meter_id": "m.id", "metadata": "?"}.get(name, f"e.{name}") for name in LedgerEntryRow._fields
        )
        copy = f"""INSERT INTO ledger_entries ({columns}) SELECT {others} FROM ledger_entries e JOIN billing_meters m
            WHERE e.meter_id = ? AND e.seq > 1 AND m.id IN (SELECT id FROM billing_meters WHERE id != ? LIMIT 20)"""  # noqa: S608
        lists = '{"m":[' + "[]," * 5_000 + "[]]}"

        async def fill(writer: Writer) -> None:
            await writer._connection.exec_driver_sql(copy, (lists, meter, meter))
            await writer._connection.exec_driver_sql("UPDATE billing_meters SET last_seq = 101")

        await on_sqlite.database.write(fill)
        await send(on_sqlite, "{ __typename }", {})
        query = "{ billingMeters(first: 100) { nodes { customer { id } ledger(first: 100) { nodes { id } } } } }"
        with peak_of_memory() as peak:
            _, body = await send(on_sqlite, query, {})
            memory = peak()
        meters = orjson.loads(body)["data"]["billingMeters"]["nodes"]
        assert sum(len(each["ledger"]["nodes"]) for each in meters) > 2_000
        assert memory < 50_000_000

    @pytest.mark.parametrize("name", MALFORMED)
    async def test_malformed_variables_hold_nobody_up(self, on_sqlite: Gateway, name: str) -> None:
        type_, field, value, code = MALFORMED[name]
        operation = "query" if type_ == "[String!]!" else "mutation"
        await send(on_sqlite, "{ __typename }", {})
        collect_less_often()  # Or the time is also that of a search through what other tests have left.
        slowest = slowness()
        with on_sqlite.statements() as statements, watch() as watched:
            _, body = await send(on_sqlite, f"{operation} ($v: {type_}) {{ {field} {{ __typename }} }}", {"v": value})
        answer = orjson.loads(body)
        assert {error["extensions"]["code"] for error in answer["errors"]} == {code}
        assert "data" not in answer
        assert statements == []
        assert len(body) < 20_000
        assert watched.longest < MAX_HELD_SECONDS * max(slowest, slowness())

    def test_the_page_lists_them_all(self) -> None:
        assert promised().keys() == REQUESTS.keys()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(fields=st.integers(1, 20), leaves=st.integers(1, 60), length=st.integers(1, 128), count=st.integers(1, 100))
    def test_whatever_usage_is_asked_for_what_is_admitted_is_no_larger(
        self, fields: int, leaves: int, length: int, count: int
    ) -> None:
        names = [chr(0x1F600) * (length - 1) + chr(0x1F600 + number) for number in range(count)]
        size = size_of(usage(fields, leaves), names)
        if size is not None and is_admitted(size):
            target(size.weight)
            # Of each row the alias and the name are written at least.
            assert size.rows * leaves * 4 * length < DEFAULT.answer_bytes
            assert size.weight < MAX_WEIGHT

    async def test_a_session_cannot_ask_for_half_a_gigabyte(self, on_sqlite: Gateway, meter: str) -> None:
        query = usage(10, 9)
        data = await on_sqlite.data(f'{{ node(id: "{meter}") {{ ... on BillingMeter {{ customer {{ id }} }} }} }}')
        session = await session_of(on_sqlite, data["node"]["customer"]["id"])
        for caller in (session, on_sqlite):
            await caller.data("{ viewer { orgId } }")  # Its key is looked up.
            with on_sqlite.statements() as statements:
                error = await caller.error(query, {"m": meter, "n": ASTRAL})
            assert statements == []
            assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
            assert re.fullmatch(
                r"The answer may have 4\d{8} bytes, and at most 83886080 may be returned at once: "
                r"ask for fewer fields, smaller pages, fewer days, or the usage names that are needed\.",
                error["message"],
            )

    async def test_days_of_many_names_are_within_the_size_of_an_answer(self, on_sqlite: Gateway, meter: str) -> None:
        await use(on_sqlite, meter, ASTRAL)
        leaf = " ".join(f"l{number}: billingUsageName" for number in range(9))
        one = f"usage(billingId: $m, {YEAR}) {{ {leaf} }}"
        # As many as a day has one name come to 8 MB, and are 27 times as many.
        several = " ".join(f"u{number}: {one}" for number in range(3))
        answer = await on_sqlite.run(f"query ($m: ID!) {{ {several} }}", {"m": meter})
        assert [answer["data"][f"u{number}"] is None for number in range(3)] == [False, True, True]
        for error in answer["errors"]:
            assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
            assert re.match(
                r"The answer may have 14\d{7} bytes, and at most 83886080 may be returned", error["message"]
            )
        _, body = await send(on_sqlite, f"query ($m: ID!) {{ {one} }}", {"m": meter})
        assert len(orjson.loads(body)["data"]["usage"]) == NAMES * 365 + 1  # Today under another name.
        assert len(body) < DEFAULT.answer_bytes
        # The room that it took is free again.
        assert _making.weight == 0

    async def test_filled_days_of_many_names_are_within_the_size_of_an_answer(
        self, on_sqlite: Gateway, meter: str
    ) -> None:
        await use(on_sqlite, meter, [f"{number:03}" * 42 for number in range(99)], days=1)
        leaf = " ".join(f"l{number}: billingUsageName" for number in range(20))
        one = f'usage(billingId: $m, from: "2025-12-07", to: "2026-03-16", fillZeros: true) {{ {leaf} }}'
        error = await on_sqlite.error(f"query ($m: ID!) {{ {one} }}", {"m": meter})
        assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        assert error["message"].startswith("The answer may have ")


ROW = "id email name externalId createdAt updatedAt environment metadata orgId"

#: What is large and ordinary.
ORDINARY = (
    f"""{{ customers(first: 100) {{ nodes {{ {ROW} billingMeters(first: 25) {{ nodes {{
      id workspaceId externalMeterId totalCredits usedCredits availableCredits
      usage {{ day totalBillingUsage billingUsageName }} }} }} }} }} }}""",
    f"{{ customers(first: 100) {{ nodes {{ {ROW} }} edges {{ cursor }} pageInfo {{ hasNextPage endCursor }} }} }}",
    f'{{ usage(billingId: "x", {YEAR}, fillZeros: true) {{ billingId day totalBillingUsage billingUsageName }} }}',
    f"{{ billingMeters(first: 25) {{ nodes {{ {METER} ledger(first: 100) {{ nodes {{ {ENTRY} }} }} }} }} }}",
    batch(1),
    get_introspection_query(),
)


#: An alias is in the answer as often as there are records.
ALIAS = "a" * 1_000
ALIASED = f"query ($m: ID!) {{ node(id: $m) {{ ... on BillingMeter {{ ledger {{ nodes {{ {ALIAS}: kind }} }} }} }} }}"


class TestSize:
    @pytest.mark.parametrize("query", ORDINARY)
    def test_what_is_large_and_ordinary_is_admitted(self, query: str) -> None:
        size = size_of(query, [])
        assert size is not None
        assert is_admitted(size), size

    async def test_no_answer_is_larger_than_it_may_be(
        self, on_sqlite: Gateway, meter: str, subtests: pytest.Subtests
    ) -> None:
        for name, request in (REQUESTS | {"a long alias": Request(lambda _: ALIASED, SHORT, 1)}).items():
            if "unknown" in name or "events" in name:
                continue
            with subtests.test(name=name):
                text = request.document(1)
                size = size_of(text, request.names)
                _, body = await send(on_sqlite, text, {"m": meter, "n": request.names})
                assert size is not None
                assert len(body) <= size.bytes + len('{"data":}')
                assert values_of(orjson.loads(body)["data"]) <= size.values + 1

    async def test_the_limits_are_settings(self, on_sqlite: Gateway) -> None:
        url = on_sqlite.services.settings.database_url
        query = "{ customers(first: 100) { nodes { id email } } }"
        for setting, least, what in (("max_answer_values", 300, "values"), ("max_answer_bytes", 100_000, "bytes")):
            own: dict[str, Any] = {setting: least}
            async with gateway_on(url, **own) as gateway:
                error = await gateway.error(query)
                assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
                assert f" {what}, and at most {least} may be returned at once" in error["message"]
                assert await gateway.data("{ customers(first: 10) { nodes { id } } }") == {"customers": {"nodes": []}}


def values_of(value: Any) -> int:
    """Return how many values an answer has."""
    if isinstance(value, dict):
        return 1 + sum(map(values_of, value.values()))
    return 1 + (sum(map(values_of, value)) if isinstance(value, list) else 0)


class TestKeptDocuments:
    @staticmethod
    def document(number: int) -> str:
        """Return a document of 9 kB whose four variables decide what is selected."""
        skips = " ".join(f"s{place}: viewer @skip(if: $v{place}) {{ orgId }}" for place in range(4))
        fields = " ".join(
            f"a{n}: billingMeter(workspaceId: $w, externalMeterId: $w) {{ id timezone }}" for n in range(90)
        )
        variables = " ".join(f"$v{place}: Boolean!" for place in range(4))
        return f"query Q{number}($w: String!, {variables}) {{ {skips} {fields} }}"

    def test_documents_and_their_plans_take_no_more_than_they_may(self) -> None:
        kept = KeptDocuments()
        assert len(self.document(1)) > 6_000
        for number in range(12):
            text = self.document(number)
            document = engine.prepare(text)
            assert isinstance(document, Document)
            kept.put(text, DEFAULT, document)
            for values in range(4):
                self.run(document, values)
                self.run(document, values)
            kept.trim()
            assert kept.weight <= MAX_KEPT_BYTES
        assert kept.get(self.document(11), DEFAULT) is not None
        assert kept.get(self.document(0), DEFAULT) is None

    def test_what_grows_makes_others_be_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        *texts, last = [self.document(2_000 + number) for number in range(8)]
        newest = [asyncio.run(engine.document_of(text)) for text in texts][-1]
        assert isinstance(newest, Document)
        # An operation, its first plan, and another document: what none of them may add to what is kept.
        for grow in (
            lambda: newest.operation(None),
            lambda: [self.run(newest, 0) for _ in range(2)],
            lambda: asyncio.run(engine.document_of(last)),
        ):
            before = engine.kept.weight
            monkeypatch.setattr(documents, "MAX_KEPT_BYTES", before)
            grow()
            assert engine.kept.weight <= before
        assert engine.kept.get(texts[-1], DEFAULT) is newest
        assert engine.kept.get(last, DEFAULT) is not None

    def test_a_document_that_is_too_long_is_not_kept(self) -> None:
        for length, is_kept in ((LONGEST_KEPT, True), (LONGEST_KEPT + 1, False)):
            text = "{ viewer { orgId } } #".ljust(length, "x")
            assert isinstance(asyncio.run(engine.document_of(text)), Document)
            assert (engine.kept.get(text, DEFAULT) is not None) is is_kept

    @pytest.mark.parametrize("plans", [0, 3])
    def test_what_a_document_takes_is_no_more_than_is_estimated(self, plans: int) -> None:
        engine.prepare(self.document(0))
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            document = engine.prepare(self.document(1))
            assert isinstance(document, Document)
            assert document.operation(None) is not None
            for values in range(plans):
                self.run(document, values)
                self.run(document, values)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < document.weight

    def test_a_further_plan_is_made_when_its_values_recur(self) -> None:
        document = engine.prepare(self.document(1))
        assert isinstance(document, Document)
        counts = [self.run(document, values) for values in (0, 0, 1, 2, 1, 2, 3)]
        # The first is made the second time that the document is run, whatever its values.
        assert counts == [0, 1, 1, 1, 2, 3, 3]
        # What is large is compiled each time, and a further plan is kept likewise.
        document = engine.prepare(self.document(1))
        assert isinstance(document, Document)
        large = Size(values=LARGE_VALUES + 1)
        counts = [self.run(document, values, large) for values in (0, 0, 1, 2, 1, 2, 3)]
        assert counts == [1, 1, 1, 1, 2, 3, 3]

    def test_no_more_plans_are_kept_than_may_be(self) -> None:
        document = engine.prepare(self.document(1))
        assert isinstance(document, Document)
        assert [self.run(document, values) for values in range(16)] == [0, *[1] * 15]
        # As many combinations are remembered that were seen once, the last ones.
        assert [self.run(document, values) for values in (2, 15)] == [1, 2]
        for values in range(16):
            for size in (Size(), Size(values=LARGE_VALUES + 1)):
                self.run(document, values, size)
        assert self.run(document, 0) == MAX_PLANS

    @staticmethod
    def run(document: Document, number: int, size: Size | None = None) -> int:
        """Compile it as for a run with the variables' values of this number; return how many plans it has."""
        operation = document.operation(None)
        assert isinstance(operation, LimitedOperation)
        given = {"w": "w"} | {f"v{place}": bool(number >> place & 1) for place in range(4)}
        values = operation._operation.variables.read(given)
        assert not isinstance(values, list)
        asyncio.run(operation._plan(values, size or Size()))
        return operation.plan_count

    def test_nothing_stays_of_a_document_that_is_given_up(self) -> None:
        def prepare_some(first: int) -> None:
            for number in range(first, first + 100):
                document = engine.prepare(f"query Q{number}($ids: [ID!]!) {{ nodes(ids: $ids) {{ id }} }}")
                assert isinstance(document, Document)
                assert document.operation(None) is not None

        tracemalloc.start()
        try:
            # What Python itself keeps of names is kept once.
            prepare_some(0)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            prepare_some(100)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 20_000

    async def test_what_was_asked_for_lately_is_not_prepared_again(self) -> None:
        first = await engine.document_of(self.document(1_000))
        assert await engine.document_of(self.document(1_000)) is first
        wrong = await engine.document_of("{ nothing }")
        assert await engine.document_of("{ nothing }") is wrong


class TestRoom:
    async def test_a_large_answer_is_made_when_there_is_room(self, on_sqlite: Gateway, meter: str) -> None:
        other = Room()
        await other.take(MAX_WEIGHT)
        try:
            large = asyncio.ensure_future(send(on_sqlite, ledgers(10), {"m": meter}))
            while not (_making.waiting or large.done()):  # noqa: ASYNC110  # Nothing reports what waits for room.
                await asyncio.sleep(0)
            # What is small does not wait.
            assert (await send(on_sqlite, "{ viewer { orgId } }", {}))[0] == 200
            assert not large.done()
        finally:
            other.leave()
        assert (await large)[0] == 200
        assert _making.weight == 0

    async def test_what_is_large_waits_until_there_is_room(self) -> None:
        first, second, third = Room(), Room(), Room()
        await first.take(MAX_WEIGHT - 1)
        waiting = asyncio.ensure_future(second.take(MAX_WEIGHT))
        after = asyncio.ensure_future(third.take(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        # It came later, and does not go first.
        assert not after.done()
        first.leave()
        await waiting
        assert not after.done()
        second.leave()
        await after
        third.leave()

    async def test_who_gives_up_leaves_the_room_to_others(self) -> None:
        first, second, third = Room(), Room(), Room()
        await first.take(MAX_WEIGHT)
        waiting = asyncio.ensure_future(second.take(MAX_WEIGHT))
        after = asyncio.ensure_future(third.take(1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        first.leave()
        await after
        third.leave()
        await first.take(MAX_WEIGHT)
        first.leave()
