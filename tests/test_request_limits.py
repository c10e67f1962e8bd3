"""How much one request may ask for: of its document, of the rows it may read, and who may ask for the schema."""

import asyncio
import json
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
from graphql import get_introspection_query

from gateway.http.trusted_documents import BadManifest, TrustedDocuments
from gateway.settings import Settings
from resolvers.bounds import Bounds
from resolvers.errors import Unavailable
from schema.engine.engine import MAX_FIELD_ERRORS
from schema.engine.faults import MAX_MESSAGE_LENGTH
from schema.engine.limits.document import NOT_INTROSPECTED, Limits
from storage.engine.database import Outcome
from storage.meters import usage
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway, gateway_on
from tests.steps import bucket_with, make_customer, make_grant, make_meter, session_of, usage_event

DEFAULT = Limits()

METER = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { %s } }'
BATCH = "mutation { recordUsageBatch(input: [%s]) { __typename } }"
EVENT = '{workspaceId: "w", externalMeterId: "m", eventId: "e%s", amount: 1}'

#: Two months of a meter's usage for each meter of each customer.
WIDE = """query ($first: Int, $last: Int, $meters: Int, $from: Date, $to: Date, $names: [String!]) {
  customers(first: $first, last: $last) { nodes {
    billingMeters(first: $meters) { nodes { usage(from: $from, to: $to, names: $names) { day } } }
  } }
}"""


async def refused(caller: Caller, query: str, variables: dict[str, Any] | None = None) -> str:
    """Send an operation that must pass a limit, and return the message of its error."""
    error = await caller.error(query, variables)
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
    assert "path" not in error
    return str(error["message"])


async def cost(caller: Caller, query: str, variables: dict[str, Any] | None = None) -> int:
    """Send an operation and return the rows that it may read, as the answer reports on request."""
    response = await caller.post(query, variables, extensions={"cost": True})
    body = response.json()
    assert set(body) - {"errors"} == {"data", "extensions"}, body
    assert set(body["extensions"]["cost"]) == {"rows", "most", "values", "mostValues", "bytes", "mostBytes"}
    assert body["extensions"]["cost"]["most"] == DEFAULT.cost
    return int(body["extensions"]["cost"]["rows"])


def nested(levels: int) -> str:
    """Return a query of as many levels of fields."""
    voids = levels - 4
    return f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{
      ledger(first: 1) {{ nodes {{ {"voids { " * voids} id {"} " * voids} }} }}
    }} }}"""


def doubling(fragments: int) -> str:
    """Return a query whose fragments each spread the next one twice: some bytes a fragment, and twice the fields."""
    chain = " ".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(fragments - 1))
    return f"{{ ...F0 }} {chain} fragment F{fragments - 1} on Query {{ viewer {{ orgId }} }}"


class TestDocuments:
    @pytest.mark.slow
    async def test_as_much_as_the_limit_is_run_and_one_more_is_refused(
        self, own: Gateway, subtests: pytest.Subtests
    ) -> None:
        aliases = "{ %s }"
        # 22 tokens beside those of the last list.
        tokens = "{ nodes(ids: [" + f"[{'1 ' * 1_000}]" * 4 + "[%s]]) { id } }"
        row = "id email name externalId createdAt updatedAt environment metadata orgId"
        fields = " ".join(f'a{n}: customer(id: "x") {{ {row} }}' for n in range(100))
        fragments = " ".join(f"fragment F{n} on Query {{ viewer {{ orgId }} }}" for n in range(99))
        spreads = " ".join(f"...F{n}" for n in range(99))
        last = "fragment G on Query { __typename }"
        for what, largest, too_large, message in (
            (
                "tokens",
                tokens % ("1 " * 978),
                tokens % ("1 " * 979),
                "Document contains more than 5000 tokens. Parsing aborted.",
            ),
            (
                "comments",
                "#\n" * 5_000 + "{ viewer { orgId } }",
                "#\n" * 5_001 + "{ viewer { orgId } }",
                "Document contains more than 5000 comments. Parsing aborted.",
            ),
            ("depth", nested(20), nested(21), "The document nests fields more than 20 levels deep."),
            (
                "fields",
                f"{{ {fields} }}",
                f"{{ {fields} __typename }}",
                "The document selects more than 1000 fields and fragments, its fragments written out.",
            ),
            (
                "aliases",
                aliases % " ".join(f"a{n}: viewer {{ orgId }}" for n in range(100)),
                aliases % " ".join(f"a{n}: viewer {{ orgId }}" for n in range(101)),
                "The document selects more than 100 aliases and repeated fields, its fragments written out.",
            ),
            (
                "repeated fields",
                "{ %s }" % ("viewer { orgId } " * 101),
                "{ %s }" % ("viewer { orgId } " * 102),
                "The document selects more than 100 aliases and repeated fields, its fragments written out.",
            ),
            (
                "directives",
                "{ viewer { %s } }" % ("orgId @skip(if: false) " * 100),
                "{ viewer { %s } }" % ("orgId @skip(if: false) " * 101),
                "The document selects more than 100 directives, its fragments written out.",
            ),
            (
                "fragments",
                f"{{ {spreads} ...G }} {fragments} {last}",
                f"{{ {spreads} ...G ...H }} {fragments} {last} {last.replace('G', 'H')}",
                "The document has 101 fragments, and may have at most 100.",
            ),
            (
                "items",
                "{ customerByExternalId(externalId: [%s]) { id } }" % ('"x" ' * 1_000),
                "{ customerByExternalId(externalId: [%s]) { id } }" % ('"x" ' * 1_001),
                "A list in the document has 1001 items, and may have at most 1000: send it as a variable.",
            ),
        ):
            with subtests.test(what=what):
                # It may not be valid, but another rule reports it.
                body = (await own.post(largest)).json()
                codes = [error["extensions"]["code"] for error in body.get("errors", ())]
                assert "LIMIT_EXCEEDED" not in codes
                assert what in {"items", "tokens"} or codes == []
                assert await refused(own, too_large) == message

    async def test_fragments_are_counted_where_they_are_spread(self, own: Gateway) -> None:
        message = "The document selects more than 1000 fields and fragments, its fragments written out."
        assert (await own.data(doubling(8)))["viewer"] == {"orgId": own.org_id}
        for fragments in (9, 20, 30, 100):
            assert await refused(own, doubling(fragments)) == message
        # Also what has no field at all.
        assert await refused(own, doubling(30).replace("{ viewer { orgId } }", "{ }")) == message
        far = "{ customers { nodes { billingMeters { nodes { ...Far } } } } } fragment Far on BillingMeter { %s }"
        below = "ledger(first: 1) { nodes { %s } }" % ("voids { " * 13 + "id" + " }" * 13)
        assert await own.data(far % below) == {"customers": {"nodes": []}}
        assert await refused(own, far % below.replace("id", "voids { id }")) == (
            "The document nests fields more than 20 levels deep."
        )

    async def test_fragments_that_lead_to_themselves_are_reported_by_their_own_rule(self, own: Gateway) -> None:
        body = await own.run("{ ...A } fragment A on Query { viewer { orgId } ...A ...A }")
        codes = {error["extensions"]["code"] for error in body["errors"]}
        assert codes == {"GRAPHQL_VALIDATION_FAILED"}
        assert body["errors"][0]["message"] == "Cannot spread fragment 'A' within itself."

    async def test_what_is_refused_changes_nothing(self, own: Gateway) -> None:
        await make_meter(own)
        refills = " ".join(
            f'a{n}: refillBillingMeter(input: {{workspaceId: "w", externalMeterId: "m", refill: 1}}) {{ __typename }}'
            for n in range(101)
        )
        await refused(own, f"mutation {{ {refills} }}")
        meter = await own.data('{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits } }')
        assert meter == {"billingMeter": {"totalCredits": "0"}}

    @pytest.mark.slow
    async def test_the_limits_are_settings(self, database_url: str, subtests: pytest.Subtests) -> None:
        for setting, least, too_large in (
            ("max_tokens", 100, "{ viewer { %s } }" % ("orgId " * 96)),
            ("max_depth", 3, nested(4)),
            ("max_fields", 10, "{ viewer { %s } }" % ("orgId " * 10)),
            ("max_aliases", 0, "{ a: viewer { orgId } }"),
            ("max_directives", 0, "{ viewer @skip(if: false) { orgId } }"),
            ("max_fragments", 0, "{ ...A } fragment A on Query { viewer { orgId } }"),
            ("max_list_items", 1, '{ nodes(ids: ["a", "b"]) { id } }'),
            ("max_cost", 1, "{ customers(first: 2) { nodes { id } } }"),
        ):
            with subtests.test(setting=setting):
                own_limit: dict[str, Any] = {setting: least}
                async with gateway_on(database_url, **own_limit) as gateway:
                    await refused(gateway, too_large)
                    assert await gateway.data("{ viewer { orgId } }") == {"viewer": {"orgId": gateway.org_id}}
                async with gateway_on(database_url) as gateway:
                    assert "errors" not in await gateway.run(too_large)

    async def test_trusted_documents_are_held_to_the_same_limits_when_the_gateway_starts(self, tmp_path: Path) -> None:
        file = tmp_path / "documents.json"
        file.write_text(json.dumps({"deep-1": nested(21), "viewer-1": "{ viewer { orgId } }"}), "utf-8")
        with pytest.raises(BadManifest) as caught:
            TrustedDocuments(Settings(documents=str(file)))
        assert str(caught.value) == (
            f"{file} has documents that cannot be run.\ndeep-1: The document nests fields more than 20 levels deep."
        )
        TrustedDocuments(Settings(documents=str(file), max_depth=21))

    async def test_no_names_are_suggested(self, own: Gateway, subtests: pytest.Subtests) -> None:
        for query, variables in (
            ("{ viewr { orgId } }", None),
            ("{ viewer { orgid } }", None),
            ("{ customers(frist: 1) { nodes { id } } }", None),
            ('{ customers(filter: {emial: "a"}) { nodes { id } } }', None),
            ("query ($f: CustomerFiltr) { customers(filter: $f) { nodes { id } } }", None),
            ("mutation ($i: RecordUsageInput!) { recordUsage(input: $i) { __typename } }", {"i": {"amuont": 1}}),
            (
                "mutation ($i: RecordUsageInput!) { recordUsage(input: $i) { __typename } }",
                {"i": {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": 1, "policy": "REJCT"}},
            ),
            ("{ node(id: 1) { ... on Custmer { id } } }", None),
        ):
            with subtests.test(query=query):
                body = (await own.post(query, variables)).json()
                assert body["errors"]
                assert "Did you mean" not in json.dumps(body)


#: How many times each fault is repeated, and the one error that it is.
REPEATED = (
    ("{ viewer { orgId " + "@nope " * 10 + "} }", "Unknown directive '@nope'."),
    ("{ viewer { " + "nope " * 10 + "} }", "Cannot query field 'nope' on type 'Viewer'."),
    (
        "{ " + " ".join(f"a{n}: viewer(nope: 1) {{ orgId }}" for n in range(10)) + " }",
        "Unknown argument 'nope' on field 'Query.viewer'.",
    ),
    ("{ " + "...Nope " * 10 + "}", "Unknown fragment 'Nope'."),
    ("{ viewer { orgId } " + "... on Nope { id } " * 10 + "}", "Unknown type 'Nope'."),
    (
        "{ " + " ".join(f"a{n}: customers(first: $nope) {{ nodes {{ id }} }}" for n in range(10)) + " }",
        "Variable '$nope' is not defined.",
    ),
    (
        "{ " + " ".join(f"a{n}: customers(filter: {{nope: 1}}) {{ nodes {{ id }} }}" for n in range(10)) + " }",
        "Expected value of type 'CustomerFilter' not to include unknown field 'nope', found: { nope: 1 }.",
    ),
)


class TestErrors:
    @pytest.mark.parametrize(("query", "message"), REPEATED)
    async def test_a_fault_that_is_repeated_is_one_error(self, on_sqlite: Gateway, query: str, message: str) -> None:
        error = await on_sqlite.error(query)
        assert (error["message"], error["extensions"]) == (message, {"code": "GRAPHQL_VALIDATION_FAILED"})

    async def test_what_is_beside_many_repetitions_is_reported_too(self, on_sqlite: Gateway) -> None:
        body = await on_sqlite.run("{ viewer { orgId " + "@nope " * 99 + "missing } }")
        assert [error["message"] for error in body["errors"]] == [
            "Unknown directive '@nope'.",
            "Cannot query field 'missing' on type 'Viewer'.",
        ]

    async def test_the_same_fault_of_two_arguments_is_two_errors(self, on_sqlite: Gateway) -> None:
        day = "A date is a day of the calendar, written YYYY-MM-DD."
        body = await on_sqlite.run('{ usage(billingId: "x", from: "y", to: "y") { day } }')
        assert [error["message"] for error in body["errors"]] == [f"from: {day}", f"to: {day}"]

    @pytest.mark.slow
    async def test_errors_are_few_and_short_whatever_is_sent(
        self, on_sqlite: Gateway, subtests: pytest.Subtests
    ) -> None:
        unknown = " ".join(f"f{number}: 1" for number in range(1_000))
        long = "x" * 100_000
        for what, query, variables, count in (
            ("unknown input fields", f"{{ customers(filter: {{{unknown}}}) {{ nodes {{ id }} }} }}", None, 18),
            ("long literals", f'{{ customers(first: "{long}", last: "{long}") {{ nodes {{ id }} }} }}', None, 1),
            ("unknown fields", "{ " + " ".join(f"a{number}" for number in range(900)) + " }", None, 21),
            ("a long field", f"{{ {long} }}", None, 1),
            ("a long name where none may be", f"{{ viewer }} {long}", None, 1),
            ("a long argument", f"{{ viewer({long}: 1) {{ orgId }} }}", None, 1),
            ("a long directive", f"{{ viewer {{ orgId @{long} }} }}", None, 1),
            ("a long fragment", f"{{ ...{long} }}", None, 1),
            ("a long variable", f"query (${long}: Int!) {{ customers(first: ${long}) {{ nodes {{ id }} }} }}", {}, 1),
            (
                "unknown fields of a variable",
                "query ($f: CustomerFilter) { customers(filter: $f) { nodes { id } } }",
                {"f": {f"{long}{number}": 1 for number in range(5)}},
                5,
            ),
        ):
            with subtests.test(what=what):
                response = await on_sqlite.post(query, variables)
                errors = response.json()["errors"]
                assert len(errors) == count
                assert max(len(error["message"]) for error in errors) <= MAX_MESSAGE_LENGTH
                assert len(response.content) < 10_000
        response = await on_sqlite.post("query A { __typename }", operationName=long)
        assert len(response.content) < 1_000
        assert response.json()["errors"][0]["message"].startswith("The document has no operation 'xxx")
        response = await on_sqlite.client.post(
            "/graphql", json={"documentId": long}, headers={"authorization": f"Bearer {on_sqlite.key}"}
        )
        assert len(response.content) < 1_000

    @pytest.mark.slow
    async def test_a_query_that_fails_everywhere_reports_some_of_its_errors(self, on_sqlite: Gateway) -> None:
        customer_id = await make_customer(on_sqlite)
        for number in range(30):
            await make_meter(on_sqlite, f"m{number}", customerId=customer_id)
        # Each of them is null alone: the customer is what may be null above it.
        aliases = " ".join(f"a{n}: customer {{ billingMeters(first: 0) {{ nodes {{ id }} }} }}" for n in range(9))
        body = await on_sqlite.run(f"{{ billingMeters(first: 30) {{ nodes {{ {aliases} }} }} }}")
        assert len(body["errors"]) == MAX_FIELD_ERRORS + 1
        assert body["errors"][0]["message"] == "first must be 1 to 100; it is 0."
        assert body["errors"][-1] == {
            "message": f"There are {30 * 9 - MAX_FIELD_ERRORS} more errors, which are not listed.",
            "extensions": {"code": "BAD_USER_INPUT"},
        }


class TestCost:
    @pytest.mark.slow
    async def test_a_page_counts_the_rows_that_it_may_have_and_all_below_it(
        self, own: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query, rows in (
            ("{ viewer { orgId } }", 0),
            ("{ __typename }", 0),
            ('{ customer(id: "x") { id } }', 1),
            ('{ a: node(id: "x") { id } b: node(id: "x") { id } }', 2),
            ('{ nodes(ids: ["a", "b", "c"]) { ... on BillingMeter { customer { id } } } }', 6),
            ("{ customers { nodes { id } } }", 25),
            ("{ customers { pageInfo { hasNextPage } } }", 25),
            ("{ customers(first: 7) { edges { node { id } } nodes { id } } }", 7),
            ("{ customers(last: 7) { nodes { id } } }", 7),
            ("{ customers(first: 0) { nodes { id } } }", 25),
            ("{ customers(first: 101) { nodes { id } } }", 100),
            ("{ customers { nodes { id } edges { cursor } } }", 25),
            ("{ customers(first: 10) { nodes { billingMeters { nodes { id } } } } }", 260),
            ("{ customers(first: 10) { nodes { billingMeters(first: 2) { nodes { customer { id } } } } } }", 50),
            ('{ usage(billingId: "x") { day } }', 30),
            ('{ usage(billingId: "x", to: "2026-03-01") { day } }', 30),
            ('{ usage(billingId: "x", from: "2026-03-01", to: "2026-03-02") { day } }', 2),
            ('{ usage(billingId: "x", from: "2026-03-07") { day } }', 10),
            ('{ usage(billingId: "x", from: "2027-03-07") { day } }', 1),
            ('{ usage(billingId: "x", from: "2026-01-01", to: "2024-01-01") { day } }', 1),
            ('{ usage(billingId: "x", from: "2020-01-01", to: "2024-01-01") { day } }', 366),
            ('{ usage(billingId: "x", names: ["a", "b"], fillZeros: true) { day } }', 60),
            ('{ usage(billingId: "x", fillZeros: true) { day } }', 30 * 27),
            (f'{{ usage(billingId: "x", names: {json.dumps(list(ascii_letters))}) {{ day }} }}', 30 * 52),
            (
                f'{{ usage(billingId: "x", from: "2025-03-16", names: {json.dumps(list(ascii_letters))}) {{ day }} }}',
                10_000,
            ),
            ('{ usage(billingId: "x", fillZeros: false) { day } }', 30),
            ("{ billingMeters(first: 3) { nodes { ledger(first: 4) { nodes { voids { id } } } } } }", 3 + 3 * 8),
            ("{ ...A ...A } fragment A on Query { customers(first: 2) { nodes { id } } }", 4),
            ("{ customers @skip(if: true) { nodes { id } } viewer { orgId } }", 0),
            ("{ customers @include(if: false) { nodes { id } } viewer { orgId } }", 0),
            ("{ ... @include(if: true) { customers { nodes { id } } } }", 25),
        ):
            with subtests.test(query=query):
                assert await cost(own, query) == rows

    async def test_variables_decide_it_for_each_request(self, own: Gateway, subtests: pytest.Subtests) -> None:
        for variables, rows in (
            ({}, 25 + 25 * 25 * 31),
            ({"first": 2, "meters": 3}, 2 + 2 * 3 * 31),
            ({"last": 2, "meters": 3}, 2 + 2 * 3 * 31),
            ({"first": 2, "meters": 3, "from": "2026-03-16"}, 2 + 2 * 3 * 2),
            ({"first": 2, "meters": 3, "from": "2026-03-01", "to": "2026-03-02"}, 2 + 2 * 3 * 3),
            ({"first": 2, "meters": 3, "names": ["a", "b", "c"]}, 2 + 2 * 3 * 91),
            ({"first": None, "meters": None}, 25 + 25 * 25 * 31),
            ({"first": 2, "meters": 3}, 2 + 2 * 3 * 31),
        ):
            with subtests.test(variables=variables):
                assert await cost(own, WIDE, variables) == rows

    async def test_a_range_without_an_end_grows_with_the_days(self, own: Gateway) -> None:
        query = 'query ($from: Date!) { usage(billingId: "x", from: $from) { day } }'
        assert await cost(own, query, {"from": "2026-03-16"}) == 1
        own.clock.forward(days=2)
        assert await cost(own, query, {"from": "2026-03-16"}) == 3

    async def test_a_mutation_counts_what_it_writes_and_what_is_read_of_it(self, own: Gateway) -> None:
        batch = """mutation ($input: [RecordUsageInput!]!) {
          recordUsageBatch(input: $input) {
            ... on RecordUsageSuccess { entry { id } billingMeter { customer { id } } }
          }
        }"""
        event = {"workspaceId": "w", "externalMeterId": "nobody", "amount": "1"}
        events = [event | {"eventId": f"e{number}"} for number in range(10)]
        assert await cost(own, batch, {"input": events}) == 10 + 10 * 3
        assert await cost(own, batch, {"input": events[:1]}) == 1 + 3
        single = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
        assert await cost(own, single, {"input": events[0]}) == 1

    async def test_as_much_as_the_limit_is_run_and_one_more_is_refused(self, database_url: str) -> None:
        async with gateway_on(database_url, max_cost=2 + 2 * 3 * 31) as gateway:
            variables = {"first": 2, "meters": 3}
            assert await gateway.data(WIDE, variables) == {"customers": {"nodes": []}}
            assert await refused(gateway, WIDE, variables | {"first": 3}) == (
                "The operation may read 282 rows, and at most 188 may be read at once: "
                "ask for smaller pages or fewer days."
            )
            # The document is still good for what is within the limit.
            assert await gateway.data(WIDE, variables) == {"customers": {"nodes": []}}

    async def test_a_mutation_beyond_the_limit_writes_nothing(self, database_url: str) -> None:
        async with gateway_on(database_url, max_cost=2) as gateway:
            await make_meter(gateway)
            refill = '{workspaceId: "w", externalMeterId: "m", refill: 1}'
            await refused(
                gateway,
                f"mutation {{ a: refillBillingMeter(input: {refill}) {{ __typename }} "
                f"b: refillBillingMeter(input: {refill}) {{ __typename }} "
                f"c: refillBillingMeter(input: {refill}) {{ __typename }} }}",
            )
            meter = await gateway.data('{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits } }')
            assert meter == {"billingMeter": {"totalCredits": "0"}}

    async def test_it_is_returned_only_on_request(self, own: Gateway) -> None:
        query = "{ customers { nodes { id } } }"
        expected = {
            "cost": {
                "rows": 25,
                "most": 100_000,
                "values": 101,
                "mostValues": 1_000_000,
                "bytes": 1_942,
                "mostBytes": 83_886_080,
            }
        }
        assert (await own.post(query, extensions={"cost": True})).json()["extensions"] == expected
        for extensions in (None, {}, {"cost": False}, {"cost": None}, {"cost": 1}, {"cost": "true"}):
            assert set((await own.post(query, extensions=extensions)).json()) == {"data"}
        response = await own.client.get(
            "/graphql",
            params={"query": query, "extensions": '{"cost": true}'},
            headers={"authorization": f"Bearer {own.key}"},
        )
        assert response.json()["extensions"] == expected


#: What each of these settings refuses where it is as low as may be, and the message of the error.
LISTS = (
    ("max_page_rows", 1, "{ customers(first: 2) { nodes { id } } }", "first must be 1 to 1; it is 2."),
    ("max_page_rows", 1, "{ billingMeters(last: 2) { nodes { id } } }", "last must be 1 to 1; it is 2."),
    ("max_page_rows", 1, METER % "ledger(first: 2) { nodes { id } }", "first must be 1 to 1; it is 2."),
    (
        "max_page_rows",
        1,
        "{ customers { nodes { billingMeters(first: 2) { nodes { id } } } } }",
        "first must be 1 to 1; it is 2.",
    ),
    ("max_nodes", 1, '{ nodes(ids: ["a", "b"]) { id } }', "ids must have at most 1 items; it has 2."),
    ("max_batch_events", 1, BATCH % (EVENT % 1 + EVENT % 2), "input must have at most 1 items; it has 2."),
    (
        "max_range_days",
        30,
        METER % 'usage(from: "2026-02-14", to: "2026-03-16") { day }',
        "from and to must span at most 30 days; they span 31.",
    ),
    (
        "max_range_days",
        30,
        METER % 'usage(from: "2026-02-14") { day }',
        "from and to must span at most 30 days; they span 31.",
    ),
    (
        "max_usage_names",
        1,
        METER % 'usage(names: ["default", "b"]) { day }',
        "names must have 1 to 1 items; it has 2.",
    ),
    (
        "max_usage_days",
        366,
        METER % f"usage(names: {json.dumps(list(ascii_letters[:13]))}, fillZeros: true) {{ day }}",
        "usage answers at most 366 usage days a meter; ask for fewer days or names.",
    ),
)

#: What the page of limits says of each list: the code of what is beyond it.
CODES = dict(
    re.findall(
        r"^\| .+ \| `TOLLGATE_(\w+)` \| `([A-Z_]+)` \|$",
        (Path(__file__).parent.parent / "docs" / "limits.md").read_text("utf-8"),
        re.MULTILINE,
    )
)


class TestLists:
    @pytest.mark.parametrize(("setting", "least", "too_large", "message"), LISTS)
    async def test_a_setting_lowers_what_may_be_asked_for_and_is_reported(
        self, database_url: str, setting: str, least: int, too_large: str, message: str
    ) -> None:
        own: dict[str, Any] = {setting: least}
        async with gateway_on(database_url, **own) as gateway:
            await make_meter(gateway, totalCredits="10")
            await gateway.mutate("createCustomer", "", email="ada@example.com")
            error = await gateway.error(too_large)
            assert error["message"] == message
            assert error["extensions"]["code"] == CODES[setting.upper()]
            assert await gateway.data(METER % "usedCredits ledger(first: 1) { nodes { kind } }") == {
                "billingMeter": {"usedCredits": "0", "ledger": {"nodes": [{"kind": "OPENING"}]}}
            }
        async with gateway_on(database_url) as gateway:
            await make_meter(gateway, totalCredits="10")
            assert "errors" not in await gateway.run(too_large)

    async def test_as_much_as_is_left_is_answered(self, database_url: str) -> None:
        async with gateway_on(
            database_url, max_page_rows=2, max_nodes=2, max_batch_events=2, max_range_days=30, max_usage_names=2
        ) as gateway:
            await make_meter(gateway, totalCredits="10")
            recorded = await gateway.data(BATCH % (EVENT % 1 + EVENT % 2))
            assert [each["__typename"] for each in recorded["recordUsageBatch"]] == ["RecordUsageSuccess"] * 2
            assert await gateway.data(METER % "ledger { nodes { key } pageInfo { hasNextPage } }") == {
                "billingMeter": {"ledger": {"nodes": [{"key": "e2"}, {"key": "e1"}], "pageInfo": {"hasNextPage": True}}}
            }
            assert await gateway.data('{ nodes(ids: ["a", "b"]) { id } }') == {"nodes": [None, None]}
            days = (await gateway.data(METER % 'usage(names: ["default", "b"], fillZeros: true) { day }'))[
                "billingMeter"
            ]
            assert (len(days["usage"]), days["usage"][0]) == (60, {"day": "2026-02-15"})
            # Without `first` and `last`, a page is as large as it may be.
            response = await gateway.post("{ customers { nodes { id } } }", extensions={"cost": True})
            assert response.json()["extensions"]["cost"]["rows"] == 2

    async def test_days_and_entries_of_all_meters_together_are_bounded_too(self, database_url: str) -> None:
        everything = "{ billingMeters { nodes { %s } } }"
        async with gateway_on(database_url, max_request_entries=101) as gateway:
            for number in range(3):
                await make_meter(gateway, externalMeterId=f"m{number}", totalCredits="100")
            async with asyncio.TaskGroup() as tasks:
                for number in range(3):
                    events = "".join(EVENT.replace('"m"', f'"m{number}"') % each for each in range(50))
                    tasks.create_task(gateway.data(BATCH % events))
            error = await gateway.error(everything % "ledger(first: 50) { nodes { id } }")
            assert error["message"] == "The ledgers of one request answer at most 101 entries."
            assert error["extensions"]["code"] == CODES["MAX_REQUEST_ENTRIES"]
            answered = await gateway.data(everything % "ledger(first: 30) { nodes { id } }")
            assert [len(meter["ledger"]["nodes"]) for meter in answered["billingMeters"]["nodes"]] == [30] * 3

    @pytest.mark.slow
    async def test_steps_of_the_order_of_use_of_all_meters_together_are_bounded_too(self, database_url: str) -> None:
        async with gateway_on(database_url, max_request_entries=101) as gateway:
            for number, grants in enumerate((51, 50)):
                await make_meter(gateway, externalMeterId=f"m{number}", totalCredits="0")
                for _ in range(grants):
                    await make_grant(gateway, 1, externalMeterId=f"m{number}")
            everything = "{ billingMeters { nodes { burnDown { openCredits } } } }"
            answered = await gateway.data(everything)
            assert [len(meter["burnDown"]) for meter in answered["billingMeters"]["nodes"]] == [50, 51]
            await make_grant(gateway, 1, externalMeterId="m1")
            error = await gateway.error(everything)
            assert error["message"] == "burnDown answers at most 101 credit grants a request; ask for fewer meters."
            assert error["extensions"]["code"] == CODES["MAX_REQUEST_ENTRIES"]

    @pytest.mark.slow
    async def test_the_recorded_days_of_all_meters_are_bounded(self, database_url: str) -> None:
        async with gateway_on(database_url, max_request_usage_days=10_000) as gateway:
            ids = [await make_meter(gateway, externalMeterId=f"m{number}") for number in range(2)]
            names = [f"n{number}" for number in range(14)]
            days = [NOW.date() - timedelta(days=day) for day in range(366)]
            for id_ in ids:
                used = {(id_, day, name): 1 for day in days for name in names}
                await gateway.database.write(partial(usage.add, usage=used), bucket=bucket_with(gateway.database, id_))
            query = """query ($names: [String!]) {
              billingMeters(first: 2) { nodes { usage(from: "2025-03-16", names: $names) { day } } }
            }"""
            error = await gateway.error(query, {"names": names})
            assert error["message"] == (
                "usage answers at most 10000 usage days a meter and 10000 a request; ask for fewer days or names."
            )
            assert error["extensions"]["code"] == CODES["MAX_REQUEST_USAGE_DAYS"]
            answered = await gateway.data(query, {"names": names[:13]})
            assert [len(meter["usage"]) for meter in answered["billingMeters"]["nodes"]] == [13 * 366] * 2

    async def test_the_rest_operations_keep_to_the_same(self, database_url: str) -> None:
        async with gateway_on(database_url, max_range_days=30) as gateway:
            meter_id = await make_meter(gateway, totalCredits="10")
            headers = {"authorization": f"Bearer {gateway.key}"}
            path = f"/api/v1/usage/{meter_id}"
            for days_ago in (29, 30):
                await gateway.data(
                    BATCH
                    % EVENT.replace("}", f', occurredAt: "{NOW - timedelta(days=days_ago):%Y-%m-%dT%H:%M:%SZ}"}}')
                    % days_ago
                )
            answered = await gateway.client.get(path, headers=headers)
            assert [day["day"] for day in answered.json()["data"]] == ["2026-02-15"]
            refused_ = await gateway.client.get(f"{path}?from=2026-02-14", headers=headers)
            assert (refused_.status_code, refused_.json()["error"]["message"]) == (
                400,
                "from and to must span at most 30 days; they span 31.",
            )

    async def test_the_defaults_are_what_the_api_promises(self) -> None:
        assert Settings().bounds == Bounds()

    async def test_as_many_events_wait_as_the_setting_says(self, database_url: str) -> None:
        async with gateway_on(database_url, max_waiting_events=1_000) as gateway:
            await make_meter(gateway, totalCredits="2000")
            events = [usage_event(gateway, str(number)) for number in range(1_001)]
            with pytest.raises(Unavailable) as caught:
                await gateway.services.meter_writer.submit(events)
            assert caught.value.outcome is Outcome.NOT_WRITTEN
            assert len(await gateway.services.meter_writer.submit(events[:1_000])) == 1_000


class TestIntrospection:
    async def callers(self, gateway: Gateway) -> dict[str, Caller]:
        live = await gateway.caller(environment=Environment.LIVE)
        customer_id = await make_customer(gateway)
        return {"sandbox": gateway, "live": live, "session": await session_of(gateway, customer_id)}

    @pytest.mark.slow
    async def test_the_setting_says_who_may_ask_for_the_schema(
        self, database_url: str, subtests: pytest.Subtests
    ) -> None:
        for setting, allowed in (
            ("all", {"sandbox", "live", "session"}),
            ("keys", {"sandbox", "live"}),
            ("sandbox", {"sandbox"}),
            ("none", set[str]()),
        ):
            async with gateway_on(database_url, introspection=setting) as gateway:
                for name, caller in (await self.callers(gateway)).items():
                    with subtests.test(setting=setting, caller=name):
                        headers = {"authorization": f"Bearer {caller.key}"}
                        definition = await gateway.client.get("/schema.graphql", headers=headers)
                        # What an object is, is no question about the schema.
                        assert await caller.data("{ __typename }") == {"__typename": "Query"}
                        if name in allowed:
                            assert (await caller.data(get_introspection_query()))["__schema"]["types"]
                            assert definition.status_code == 200
                            continue
                        for query in (
                            get_introspection_query(),
                            '{ __type(name: "Query") { name } }',
                            "{ viewer { orgId } ...A } fragment A on Query { ... { s: __schema { types { name } } } }",
                        ):
                            error = await caller.error(query)
                            assert (error["message"], error["extensions"]) == (NOT_INTROSPECTED, {"code": "FORBIDDEN"})
                        assert definition.status_code == 403
                        assert definition.json()["errors"][0]["message"] == NOT_INTROSPECTED

    async def test_any_caller_that_holds_a_key_or_token_may_by_default(self) -> None:
        assert Settings().introspection == "all"

    @pytest.mark.slow
    async def test_the_usual_introspection_is_far_within_the_limits_and_a_bomb_of_it_is_not(self, own: Gateway) -> None:
        assert 5_000 < await cost(own, get_introspection_query(descriptions=True)) < 30_000
        fields = "{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }"
        error = await own.error(fields)
        assert (error["message"], error["extensions"]["code"]) == (
            "Maximum introspection depth exceeded",
            "GRAPHQL_VALIDATION_FAILED",
        )
        arguments = "{ __schema { types { fields { args { type { fields { args { type { name } } } } } } } } }"
        assert "The operation may read " in await refused(own, arguments)
