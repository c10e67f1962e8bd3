"""The endpoints over HTTP: what is no GraphQL request, what of one that cannot be run, and of bugs and outages."""

import asyncio
import gzip
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from gateway.app import create_app
from gateway.settings import Settings
from resolvers.actor import Scope
from schema.root import schema
from storage import migrations
from storage.engine.database import Database
from storage.meters.billing_meters import MeterName
from storage.tenants import Environment
from tests.conftest import Caller, Clock, Gateway, empty_database
from tests.steps import execute, locked, make_customer, make_meter, opened

VIEWER = "{ viewer { orgId } }"
CREATE_CUSTOMER = 'mutation { createCustomer(input: {email: "ada@example.com"}) { __typename } }'
GRAPHQL_RESPONSE = "application/graphql-response+json"
LIMIT = 1_048_576

METER = {"workspaceId": "w", "externalMeterId": "m"}
REFILL = """mutation ($input: RefillBillingMeterInput!) {
  refillBillingMeter(input: $input) { ... on RefillBillingMeterSuccess { billingMeter { totalCredits } } }
}"""
RECORD = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
TOTAL = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits usedCredits } }'


async def send(
    caller: Caller, method: str = "POST", url: str = "/graphql", body: bytes = b"", **headers: str | None
) -> httpx.Response:
    """Send a request as it stands, with the caller's key. A header of None is left out."""
    given = {"authorization": f"Bearer {caller.key}"} | {"content_type": "application/json"} | headers
    named = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    return await caller.client.request(method, url, content=body, headers=named)


def only_error(response: httpx.Response) -> dict[str, Any]:
    """Return the one error of an answer in GraphQL's form, which must have no data."""
    body = response.json()
    assert set(body) == {"errors"}
    (error,) = body["errors"]
    return dict(error)


def problem(response: httpx.Response, status: int, code: str = "BAD_USER_INPUT") -> str:
    """Return the message of a request that was answered by a status of 400 or more, before it came to GraphQL."""
    error = only_error(response)
    assert (response.status_code, error["extensions"]) == (status, {"code": code})
    assert response.headers["content-type"] == "application/json"
    assert set(error) == {"message", "extensions"}
    return str(error["message"])


def body_of(query: str, **fields: Any) -> bytes:
    return json.dumps({"query": query, **fields}).encode()


async def customers(gateway: Gateway) -> list[str]:
    data = await gateway.data("{ customers(first: 100) { nodes { email } } }")
    return [customer["email"] for customer in data["customers"]["nodes"]]


class TestBodies:
    async def test_what_is_no_json_is_400(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        for body in (
            b"",
            b"{",
            b"query",
            b"{ viewer { orgId } }",
            b"\xff",
            b'{"query": "\xff"}',
            b'{"query": "\xed\xa0\x80"}',
            b'\xef\xbb\xbf{"query": "{ viewer { orgId } }"}',
            b'{"query": "\\ud800"}',
            b'{"query": "{ viewer { orgId } }", "variables": {"a\\udc00": 1}}',
            b'{"query": "{ viewer { orgId } }", "variables": {"a": NaN}}',
            b'{"query": "{ viewer { orgId } }", "variables": {"a": Infinity}}',
            b'{"query": "{ viewer { orgId } }", "variables": {"a": 1e999}}',
            b'{"query": "{ viewer { orgId } }", "variables": {"a": ' + b"9" * 5_000 + b"}}",
            b'{"query": "{ viewer { orgId } }", "variables": {"a": -' + b"9" * 5_000 + b"}}",
            b'{"query": "{ viewer { orgId } }"} x',
            b"9" * 5_000,
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"query":' * 100_000,
            b'{"query": "{ viewer { orgId } }", "variables": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        ):
            with subtests.test(body=body[:60]):
                message = problem(await send(gateway, body=body), 400)
                assert message.startswith("The body must be JSON in UTF-8: ")

    async def test_what_is_wrong_with_a_body_is_said_in_plain_words(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for body, reason in (
            (gzip.compress(body_of(VIEWER)), "byte 2 of it, 0x8B, is not."),
            (
                '{"query": "{ viewer { orgId } }", "operationName": "café"}'.encode("latin-1"),
                "byte 56 of it, 0xE9, is not.",
            ),
        ):
            with subtests.test(body=body[:60]):
                message = problem(await send(gateway, body=body), 400)
                assert message == f"The body must be JSON in UTF-8: {reason}"

    async def test_json_that_is_no_object_is_400(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        for body in (b"null", b'"x"', b"1", b"1.5", b"true", b"[]", b"[" + body_of(VIEWER) + b"]"):
            with subtests.test(body=body):
                message = problem(await send(gateway, body=body), 400)
                assert message == "The body must be a JSON object with a query."

    async def test_fields_of_the_wrong_type_are_400(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        cases: tuple[tuple[dict[str, Any], str], ...] = (
            ({}, "query must be a string."),
            ({"query": None}, "query must be a string."),
            ({"query": 1}, "query must be a string."),
            ({"query": [VIEWER]}, "query must be a string."),
            ({"query": VIEWER, "variables": []}, "variables must be an object."),
            ({"query": VIEWER, "variables": "{}"}, "variables must be an object."),
            ({"query": VIEWER, "variables": 1}, "variables must be an object."),
            ({"query": VIEWER, "variables": False}, "variables must be an object."),
            ({"query": VIEWER, "operationName": 1}, "operationName must be a string."),
            ({"query": VIEWER, "operationName": {}}, "operationName must be a string."),
            ({"query": VIEWER, "extensions": "x"}, "extensions must be an object."),
            ({"query": VIEWER, "extensions": []}, "extensions must be an object."),
        )
        for fields, message in cases:
            with subtests.test(fields=fields):
                assert problem(await send(gateway, body=json.dumps(fields).encode()), 400) == message

    async def test_nulls_and_unknown_fields_are_as_if_left_out(self, gateway: Gateway) -> None:
        body = body_of(VIEWER, variables=None, operationName=None, extensions=None, other={"a": [1]})
        response = await send(gateway, body=body)
        assert (response.status_code, response.json()) == (200, {"data": {"viewer": {"orgId": gateway.org_id}}})

    async def test_the_greatest_body_is_read_and_one_byte_more_is_413(self, gateway: Gateway) -> None:
        body = body_of(VIEWER).rjust(LIMIT)
        assert (await send(gateway, body=body)).json() == {"data": {"viewer": {"orgId": gateway.org_id}}}
        message = problem(await send(gateway, body=body + b" "), 413, "LIMIT_EXCEEDED")
        assert message == f"The body must have at most {LIMIT} bytes."

    async def test_a_body_in_pieces_is_measured_as_a_whole(self, gateway: Gateway) -> None:
        read = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(1_000):
                read += 1
                yield b" " * 65_536

        response = await gateway.client.post(
            "/graphql",
            content=pieces(),
            headers={"authorization": f"Bearer {gateway.key}", "content-type": "application/json"},
        )
        assert problem(response, 413, "LIMIT_EXCEEDED") == f"The body must have at most {LIMIT} bytes."
        # No more is read than shows that it is too large, and one piece ahead.
        assert read <= 18

    async def test_a_body_as_large_as_the_setting_allows_is_read(self, database_url: str) -> None:
        async with gateway_with_key(Settings(database_url=database_url, max_body_bytes=1_024)) as gateway:
            assert (await send(gateway, body=body_of(VIEWER).rjust(1_024))).status_code == 200
            message = problem(await send(gateway, body=body_of(VIEWER).rjust(1_025)), 413, "LIMIT_EXCEEDED")
            assert message == "The body must have at most 1024 bytes."

    async def test_a_document_nested_without_end_is_refused_and_not_a_bug(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query in ("{a" * 100_000, "{ viewer(a: " + "[" * 100_000, "query ($a: " + "[" * 100_000, "{" * 100_000):
            with subtests.test(query=query[:40]):
                response = await send(gateway, body=body_of(query))
                assert response.status_code == 200
                assert only_error(response)["extensions"] == {"code": "GRAPHQL_PARSE_FAILED"}

    async def test_numbers_of_5000_digits_in_a_document_are_refused_and_no_bug(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query, code in (
            ("{ customers(first: %s) { nodes { id } } }", "GRAPHQL_VALIDATION_FAILED"),
            ("{ billingMeters(filter: {availableBelow: %s}) { nodes { id } } }", "BAD_USER_INPUT"),
            ("query ($first: Int = %s) { customers(first: $first) { nodes { id } } }", "GRAPHQL_VALIDATION_FAILED"),
        ):
            with subtests.test(query=query):
                response = await send(gateway, body=body_of(query % ("9" * 5_000)))
                assert response.status_code == 200
                assert only_error(response)["extensions"] == {"code": code}


class TestContentTypes:
    async def test_anything_but_json_in_utf_8_is_415(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        for content_type in (
            None,
            "",
            "text/plain",
            "application/graphql",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=latin1",
            "application/json; charset=utf-16",
        ):
            with subtests.test(content_type=content_type):
                response = await send(gateway, body=body_of(CREATE_CUSTOMER), content_type=content_type)
                assert problem(response, 415) == "The body must be application/json in UTF-8."
        assert await customers(gateway) == []

    async def test_json_in_utf_8_is_accepted_however_it_is_spelled(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for content_type in (
            "application/json",
            "APPLICATION/JSON",
            "application/json;charset=utf-8",
            "application/json; charset=UTF-8",
            'application/json; charset="utf-8"',
        ):
            with subtests.test(content_type=content_type):
                response = await send(gateway, body=body_of(VIEWER), content_type=content_type)
                assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}


class TestAccept:
    async def test_the_type_that_the_client_likes_best_is_answered(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for accept, media_type in (
            ("*/*", "application/json"),
            ("application/*", "application/json"),
            ("application/json", "application/json"),
            ("Application/JSON; charset=utf-8", "application/json"),
            (GRAPHQL_RESPONSE, GRAPHQL_RESPONSE),
            (f"{GRAPHQL_RESPONSE}; charset=utf-8, application/json; charset=utf-8", GRAPHQL_RESPONSE),
            (f"application/json, {GRAPHQL_RESPONSE}", "application/json"),
            (f"text/html, image/png;q=0.9, {GRAPHQL_RESPONSE};q=0.8", GRAPHQL_RESPONSE),
            ("text/html, */*;q=0.1", "application/json"),
            # As libraries send it.
            (f"{GRAPHQL_RESPONSE},application/json;q=0.9", GRAPHQL_RESPONSE),
            (f"{GRAPHQL_RESPONSE}, application/graphql+json, application/json", GRAPHQL_RESPONSE),
            # A weight says more than the order, a name more than a pattern, and no weight is the greatest one.
            (f"{GRAPHQL_RESPONSE};q=0.8, application/json;q=0.9", "application/json"),
            (f"application/json;q=0.899, {GRAPHQL_RESPONSE};q=0.9", GRAPHQL_RESPONSE),
            (f"application/json;charset=utf-8;q=0.5 , {GRAPHQL_RESPONSE}; Q=0.6", GRAPHQL_RESPONSE),
            (f"application/json;q=0.999, {GRAPHQL_RESPONSE}", GRAPHQL_RESPONSE),
            (f"*/*, {GRAPHQL_RESPONSE}", GRAPHQL_RESPONSE),
            (f"*/*, {GRAPHQL_RESPONSE};q=0.9", "application/json"),
            (f"*/*;q=0.1, {GRAPHQL_RESPONSE};q=0", "application/json"),
            ("application/json;q=0, application/*", GRAPHQL_RESPONSE),
            ("application/*;q=0.1, */*;q=0, application/json;q=0.05", GRAPHQL_RESPONSE),
            # What is no weight weighs nothing.
            (f"application/json;q=2, {GRAPHQL_RESPONSE};q=high", "application/json"),
            ("", "application/json"),
        ):
            with subtests.test(accept=accept):
                response = await send(gateway, body=body_of(VIEWER), accept=accept)
                assert response.status_code == 200
                assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
                assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}

    async def test_any_other_type_is_406_and_nothing_is_run(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        for accept in (
            "text/html",
            "image/*",
            "application/xml",
            "application/graphql+json",
            "text/event-stream",
            "*/*;q=0",
            f"application/json;q=0, {GRAPHQL_RESPONSE};q=0.0",
            "*/*, application/*;q=0",
        ):
            with subtests.test(accept=accept):
                response = await send(gateway, body=body_of(CREATE_CUSTOMER), accept=accept)
                assert problem(response, 406) == f"Answers are {GRAPHQL_RESPONSE} or application/json."
        assert await customers(gateway) == []

    async def test_several_headers_are_read_as_one(self, gateway: Gateway) -> None:
        response = await gateway.client.post(
            "/graphql",
            json={"query": VIEWER},
            headers=[
                ("authorization", f"Bearer {gateway.key}"),
                ("accept", "application/json;q=0.1"),
                ("accept", GRAPHQL_RESPONSE),
            ],
        )
        assert response.headers["content-type"] == f"{GRAPHQL_RESPONSE}; charset=utf-8"

    async def test_what_is_no_graphql_request_is_reported_in_the_type_that_is_liked_best(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for headers, status in (
            ({}, 400),
            ({"content_type": "text/plain"}, 415),
            ({"authorization": "Bearer nobody"}, 401),
        ):
            for accept in (GRAPHQL_RESPONSE, "application/json"):
                with subtests.test(status=status, accept=accept):
                    response = await send(gateway, body=b"{", accept=accept, **headers)
                    assert (response.status_code, response.headers["content-type"]) == (status, accept)
                    assert set(only_error(response)) == {"message", "extensions"}

    async def test_a_request_that_was_not_run_is_400_in_the_new_type_and_200_in_the_old_one(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        several = "query A { viewer { orgId } } query B { viewer { orgId } }"
        for body in (
            body_of("{"),
            body_of("{ nope }"),
            body_of("query ($first: Int!) { customers(first: $first) { nodes { id } } }"),
            body_of('{ usage(billingId: "x", from: "2026-02-30") { day } }'),
            body_of(several),
            body_of(several, operationName="C"),
        ):
            with subtests.test(body=body):
                new = await send(gateway, body=body, accept=GRAPHQL_RESPONSE)
                old = await send(gateway, body=body, accept="application/json")
                assert (new.status_code, old.status_code) == (400, 200)
                assert new.headers["content-type"] == f"{GRAPHQL_RESPONSE}; charset=utf-8"
                assert only_error(new) == only_error(old)

    async def test_a_request_that_was_run_is_200_whatever_its_fields_answer(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query, data in (
            ("{ customers(first: 0) { nodes { id } } }", None),
            ('{ customerByExternalId(externalId: "") { id } }', {"customerByExternalId": None}),
        ):
            with subtests.test(query=query):
                response = await send(gateway, body=body_of(query), accept=GRAPHQL_RESPONSE)
                assert response.status_code == 200
                assert response.json()["data"] == data
                assert [error["extensions"]["code"] for error in response.json()["errors"]] == ["BAD_USER_INPUT"]


class TestGet:
    async def get(self, gateway: Gateway, **parameters: str) -> httpx.Response:
        url = httpx.URL("/graphql", params=parameters)
        return await send(gateway, "GET", str(url), content_type=None)

    async def test_a_query_is_run(self, gateway: Gateway) -> None:
        response = await self.get(gateway, query=VIEWER)
        assert (response.status_code, response.json()) == (200, {"data": {"viewer": {"orgId": gateway.org_id}}})

    async def test_a_parameter_without_a_value_is_left_out(self, gateway: Gateway) -> None:
        for empty in (
            {"variables": ""},
            {"extensions": ""},
            {"operationName": ""},
            {"documentId": ""},
            {"variables": "", "extensions": "", "operationName": "", "documentId": "", "other": ""},
        ):
            response = await self.get(gateway, query=VIEWER, **empty)
            assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}
        for parameters in ({"query": ""}, {"query": "", "variables": ""}, {"documentId": ""}):
            assert problem(await self.get(gateway, **parameters), 400) == "query must be a string."
        # In a body they are null, or left out; of the name the empty one is no other.
        response = await gateway.post(VIEWER, None, operationName="", extensions=None)
        assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}
        for name in ("variables", "extensions"):
            response = await gateway.client.post(
                "/graphql", json={"query": VIEWER, name: ""}, headers={"authorization": f"Bearer {gateway.key}"}
            )
            assert problem(response, 400) == f"{name} must be an object."

    async def test_variables_are_json(self, gateway: Gateway) -> None:
        await gateway.mutate("createCustomer", "", email="ada@example.com", externalId="ada")
        response = await self.get(
            gateway,
            query="query A($id: String!) { customerByExternalId(externalId: $id) { email } } query B { __typename }",
            variables='{"id": "ada"}',
            operationName="A",
            extensions="{}",
        )
        assert response.json() == {"data": {"customerByExternalId": {"email": "ada@example.com"}}}

    async def test_bad_parameters_are_400(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        response = await send(gateway, "GET", content_type=None)
        assert problem(response, 400) == "query must be a string."
        for variables in ("{", "x", "{'a': 1}", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 20_000, "9" * 5_000):
            with subtests.test(variables=variables[:20]):
                message = problem(await self.get(gateway, query=VIEWER, variables=variables), 400)
                assert message.startswith("variables must be JSON in UTF-8: ")
        for variables in ("[]", "1", '"x"', "true"):
            with subtests.test(variables=variables):
                message = problem(await self.get(gateway, query=VIEWER, variables=variables), 400)
                assert message == "variables must be an object."
        for extensions in ("{", "[]"):
            with subtests.test(extensions=extensions):
                message = problem(await self.get(gateway, query=VIEWER, extensions=extensions), 400)
                assert message.startswith("extensions must be ")

    async def test_parameters_that_are_no_text_or_given_twice_are_400(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        headers = {"authorization": f"Bearer {gateway.key}"}
        for query_string, message in (
            # U+FFFD would stand for what was sent.
            (
                "query={viewer{orgId}}&variables=%7B%22a%22:%22%E9%22%7D",
                "The query string must be percent-encoded UTF-8.",
            ),
            ("query={viewer{orgId}}&query={__typename}", "'query' must be given once."),
            ("query={viewer{orgId}}&variables={}&variables={}", "'variables' must be given once."),
        ):
            with subtests.test(query_string=query_string):
                response = await gateway.client.get(f"/graphql?{query_string}", headers=headers)
                assert problem(response, 400) == message

    async def test_a_mutation_is_405_and_not_run(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        several = "query Read { viewer { orgId } } mutation Write " + CREATE_CUSTOMER.removeprefix("mutation ")
        for parameters in ({"query": CREATE_CUSTOMER}, {"query": several, "operationName": "Write"}):
            with subtests.test(parameters=parameters):
                response = await self.get(gateway, **parameters)
                assert problem(response, 405) == "A mutation must be sent by POST."
                assert response.headers["allow"] == "POST"
        response = await self.get(gateway, query=several, operationName="Read")
        assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}
        assert await customers(gateway) == []

    async def test_head_runs_no_mutation(self, gateway: Gateway) -> None:
        """HEAD is GET without a body in the answer, so it is as safe as GET."""
        response = await send(gateway, "HEAD", body=body_of(CREATE_CUSTOMER))
        assert await customers(gateway) == []
        assert response.status_code in {400, 405}

    async def test_head_is_answered_as_get(self, gateway: Gateway) -> None:
        response = await send(gateway, "HEAD", str(httpx.URL("/graphql", params={"query": VIEWER})), content_type=None)
        assert response.status_code == 200


class TestOperations:
    TWO = "query A { a: __typename } query B { b: __typename }"

    async def test_the_operation_named_is_run(self, gateway: Gateway) -> None:
        assert (await gateway.post(self.TWO, operationName="A")).json() == {"data": {"a": "Query"}}
        assert (await gateway.post(self.TWO, operationName="B")).json() == {"data": {"b": "Query"}}

    async def test_the_only_operation_needs_no_name(self, gateway: Gateway) -> None:
        assert await gateway.data("query A { a: __typename }") == {"a": "Query"}

    async def test_none_named_of_several_is_bad_user_input(self, gateway: Gateway) -> None:
        several = f"{self.TWO} mutation C {CREATE_CUSTOMER.removeprefix('mutation ')}"
        error = only_error(await gateway.post(several))
        assert error == {
            "message": "The document has not exactly one operation: operationName must name one.",
            "extensions": {"code": "BAD_USER_INPUT"},
        }
        assert await customers(gateway) == []

    async def test_an_unknown_name_is_bad_user_input(self, gateway: Gateway) -> None:
        for query in (self.TWO, CREATE_CUSTOMER):
            error = only_error(await gateway.post(query, operationName="D"))
            assert error == {
                "message": "The document has no operation 'D'.",
                "extensions": {"code": "BAD_USER_INPUT"},
            }
        assert await customers(gateway) == []

    async def test_a_document_that_cannot_be_parsed_fails_with_its_place(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query, line, column in (
            ("", 1, 1),
            ("{", 1, 2),
            ("{ viewer", 1, 9),
            ("{\n  viewer {{ orgId }\n}", 2, 11),
            ("querry { viewer }", 1, 1),
            ('{ customer(id: "a\n") { id } }', 1, 18),
            ("\x00", 1, 1),
            ("# a comment alone", 1, 18),
        ):
            with subtests.test(query=query):
                error = only_error(await gateway.post(query))
                assert error["message"].startswith("Syntax Error: ")
                assert error["locations"] == [{"line": line, "column": column}]
                assert error["extensions"] == {"code": "GRAPHQL_PARSE_FAILED"}

    async def test_a_document_that_does_not_fit_the_schema_fails_its_validation(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for query, message in (
            ("{ viewer { orgId secret } }", "Cannot query field 'secret' on type 'Viewer'."),
            (
                "{ viewer }",
                "Field 'viewer' of type 'Viewer!' must have a selection of subfields. Did you mean 'viewer { ... }'?",
            ),
            (
                "{ customer { id } }",
                "Argument 'Query.customer(id:)' of type 'ID!' is required, but it was not provided.",
            ),
            ("{ viewer(limit: 5) { orgId } }", "Unknown argument 'limit' on field 'Query.viewer'."),
            ("{ viewer { ...Missing } }", "Unknown fragment 'Missing'."),
            ("{ customers(first: $n) { nodes { id } } }", "Variable '$n' is not defined."),
            ("subscription { viewer }", "The subscription operation is not supported by the schema."),
            ('{ customers(first: "1") { nodes { id } } }', 'Int cannot represent non-integer value: "1"'),
        ):
            with subtests.test(query=query):
                error = only_error(await gateway.post(query))
                assert error["message"] == message
                assert error["locations"]
                assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED"}

    async def test_at_most_20_errors_of_a_document_or_its_variables_are_reported(self, gateway: Gateway) -> None:
        fields = " ".join(f"nope{number}" for number in range(1_000))
        errors = (await gateway.post(f"{{ {fields} }}")).json()["errors"]
        # The last one says that there are more.
        assert len(errors) == 21
        names = {"ids": [{"no": "id"}] * 1_000}
        errors = (await gateway.post("query ($ids: [ID!]!) { nodes(ids: $ids) { id } }", names)).json()["errors"]
        assert len(errors) == 21
        assert {error["extensions"]["code"] for error in errors} == {"BAD_USER_INPUT"}

    @pytest.mark.parametrize(
        ("query", "variables", "message"),
        [
            (
                "query ($id: ID!) { customer(id: $id) { id } }",
                {},
                "Variable '$id' has invalid value: Expected a value of non-null type 'ID!' to be provided.",
            ),
            (
                "query ($id: ID!) { customer(id: $id) { id } }",
                None,
                "Variable '$id' has invalid value: Expected a value of non-null type 'ID!' to be provided.",
            ),
            (
                "query ($id: ID!) { customer(id: $id) { id } }",
                {"id": {}},
                "Variable '$id' has invalid value: ID cannot represent value: {}",
            ),
        ],
    )
    async def test_variables_that_cannot_be_read_are_bad_user_input(
        self, gateway: Gateway, query: str, variables: dict[str, Any] | None, message: str
    ) -> None:
        error = only_error(await gateway.post(query, variables))
        assert error["message"] == message
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_null_for_a_required_argument_is_reported_at_its_field(self, gateway: Gateway) -> None:
        """A variable with a default may be given to a required argument, and may then still be null."""
        body = await gateway.run('query ($id: ID = "x") { customer(id: $id) { id } viewer { orgId } }', {"id": None})
        assert body["data"] == {"customer": None, "viewer": {"orgId": gateway.org_id}}
        (error,) = body["errors"]
        assert error["message"].startswith("Argument 'id' has invalid value: ")
        assert error["path"] == ["customer"]
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_variable_too_many_is_ignored(self, gateway: Gateway) -> None:
        assert await gateway.data(VIEWER, {"other": 1}) == {"viewer": {"orgId": gateway.org_id}}


class TestBugs:
    """Bugs are planted as rows that no code of ours would write."""

    @pytest.fixture
    def gateway(self, own: Gateway) -> Gateway:
        """The gateway on a database of the test's own: no other test could read these rows."""
        return own

    async def break_customer(self, gateway: Gateway) -> str:
        """Make a customer whose metadata cannot be read any more, and return its id."""
        customer_id = await make_customer(gateway, "broken@example.com", externalId="broken")
        await execute(gateway.database, "UPDATE customers SET metadata = 'planted' WHERE id = :id", id=customer_id)
        return customer_id

    async def test_a_bug_in_a_field_is_masked_and_logged_with_its_traceback(
        self, gateway: Gateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        customer_id = await self.break_customer(gateway)
        caplog.clear()
        response = await gateway.post(
            "query ($id: ID!) { customer(id: $id) { id } viewer { orgId } }", {"id": customer_id}
        )
        assert response.status_code == 200
        (error,) = response.json()["errors"]
        request_id = error["extensions"]["requestId"]
        assert re.fullmatch("[0-9a-f]{16}", request_id)
        assert error["message"] == "Internal server error."
        assert error["path"] == ["customer"]
        assert error["extensions"] == {"code": "INTERNAL_SERVER_ERROR", "requestId": request_id}
        assert response.json()["data"] == {"customer": None, "viewer": {"orgId": gateway.org_id}}
        for secret in ("Traceback", "planted", "JSONDecodeError", "orjson", "storage"):
            assert secret not in response.text
        assert f"Request {request_id} failed" in caplog.text
        assert "Traceback (most recent call last)" in caplog.text
        assert "JSONDecodeError" in caplog.text

    async def test_the_log_shows_where_a_bug_comes_from_also_of_what_is_compiled(
        self, gateway: Gateway, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        meter_id = await make_meter(gateway)
        customer_id = await self.break_customer(gateway)
        await execute(
            gateway.database,
            "UPDATE billing_meters SET customer_id = :customer WHERE id = :id",
            customer=customer_id,
            id=meter_id,
        )
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "a query": ("query ($id: ID!) { customer(id: $id) { id } }", {"id": customer_id}),
            "an edge": ("{ billingMeters { nodes { id customer { id } } } }", {}),
            "a mutation": (
                "mutation ($input: UpdateCustomerInput!) { updateCustomer(input: $input) { __typename } }",
                {"input": {"id": customer_id, "name": "new"}},
            ),
        }
        for what, (document, variables) in asked.items():
            for time in range(3):
                with subtests.test(what, time=time):
                    caplog.clear()
                    response = await gateway.post(document, variables)
                    assert "INTERNAL_SERVER_ERROR" in response.text
                    assert "/storage/customers.py" in caplog.text
                    assert "/storage/engine/types.py" in caplog.text

    async def test_each_request_has_an_id_of_its_own(self, gateway: Gateway) -> None:
        await self.break_customer(gateway)
        query = '{ customerByExternalId(externalId: "broken") { id } }'
        ids = {(await gateway.error(query))["extensions"]["requestId"] for _ in range(3)}
        assert len(ids) == 3

    async def test_a_caller_s_fault_is_not_logged(self, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        caplog.clear()
        for query in ("{", "{ nope }", VIEWER, '{ customerByExternalId(externalId: "") { id } }'):
            (error,) = (await caller.run(query))["errors"]
            assert "requestId" not in error["extensions"]
        assert [record for record in caplog.records if record.levelname not in {"DEBUG", "INFO"}] == []

    async def test_a_bug_outside_of_graphql_is_masked_in_graphql_s_form(
        self, gateway: Gateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        caller = await gateway.caller()
        await execute(
            gateway.database, "UPDATE api_keys SET scopes = 'planted' WHERE org_id = :org", org=gateway.org_id
        )
        for url in ("/graphql", "/schema.graphql"):
            caplog.clear()
            method = "POST" if url == "/graphql" else "GET"
            response = await send(caller, method, url, body_of(VIEWER))
            assert response.status_code == 500
            assert response.headers["content-type"] == "application/json"
            error = only_error(response)
            assert error["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
            match = re.fullmatch("Internal server error; its id is ([0-9a-f]{16}).", error["message"])
            assert match is not None
            assert "planted" not in response.text
            assert f"Request {match[1]} failed" in caplog.text
            assert "JSONDecodeError" in caplog.text

    async def test_a_bug_in_one_mutation_does_not_hide_what_the_others_have_committed(self, gateway: Gateway) -> None:
        customer_id = await self.break_customer(gateway)
        body = await gateway.run(
            """mutation ($id: ID!) {
              first: createCustomer(input: {email: "first@example.com"}) { ...Made }
              broken: updateCustomer(input: {id: $id, email: "changed@example.com"}) { __typename }
              last: createCustomer(input: {email: "last@example.com"}) { ...Made }
            }
            fragment Made on CreateCustomerSuccess { customer { email } replayed }""",
            {"id": customer_id},
        )
        assert body["data"] == {
            "first": {"customer": {"email": "first@example.com"}, "replayed": False},
            "broken": None,
            "last": {"customer": {"email": "last@example.com"}, "replayed": False},
        }
        (error,) = body["errors"]
        assert (error["path"], error["extensions"]["code"]) == (["broken"], "INTERNAL_SERVER_ERROR")
        await execute(gateway.database, "UPDATE customers SET metadata = '{}' WHERE id = :id", id=customer_id)
        assert await customers(gateway) == ["last@example.com", "first@example.com", "broken@example.com"]

    async def test_a_fault_of_one_mutation_does_not_hide_what_the_others_have_committed(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        caller = await gateway.caller(Scope.USAGE_WRITE, Scope.BILLING_READ)
        body = await caller.run(
            """mutation {
              first: recordUsage(input: {workspaceId: "w", externalMeterId: "m", eventId: "1", amount: 4}) { ...Used }
              refused: refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: 5}) { __typename }
              last: recordUsage(input: {workspaceId: "w", externalMeterId: "m", eventId: "2", amount: 3}) { ...Used }
            }
            fragment Used on RecordUsageSuccess { billingMeter { usedCredits } }"""
        )
        assert body["data"] == {
            "first": {"billingMeter": {"usedCredits": "4"}},
            "refused": None,
            "last": {"billingMeter": {"usedCredits": "7"}},
        }
        (error,) = body["errors"]
        assert (error["path"], error["extensions"]) == (["refused"], {"code": "FORBIDDEN"})
        assert await gateway.data(TOTAL) == {"billingMeter": {"totalCredits": "10", "usedCredits": "7"}}

    async def test_an_edge_s_fault_does_not_hide_what_its_mutation_has_committed(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        body = await gateway.run(
            """mutation {
              recordUsage(input: {workspaceId: "w", externalMeterId: "m", eventId: "1", amount: 4}) {
                ... on RecordUsageSuccess { accepted billingMeter { ledger(first: 0) { nodes { id } } } }
              }
              refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: 5}) {
                ... on RefillBillingMeterSuccess { billingMeter { totalCredits usedCredits } }
              }
            }"""
        )
        assert body["data"] == {
            "recordUsage": None,
            "refillBillingMeter": {"billingMeter": {"totalCredits": "15", "usedCredits": "4"}},
        }
        (error,) = body["errors"]
        assert error["path"] == ["recordUsage", "billingMeter", "ledger"]


class TestOutages:
    @pytest.fixture
    def closed_port(self) -> Iterator[int]:
        """A port where nothing listens, and nothing else can begin to."""
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            yield held.getsockname()[1]

    @pytest.mark.slow
    async def test_an_unreachable_database_is_503_when_the_key_is_looked_up(self, closed_port: int) -> None:
        settings = Settings(database_url=f"postgresql+asyncpg://tollgate@127.0.0.1:{closed_port}/tollgate")
        async with gateway_of(settings) as gateway:
            client = gateway.client
            caller = Caller(client, "sk_test_" + "a" * 43)
            for response in (
                await send(caller, body=body_of(CREATE_CUSTOMER)),
                await send(caller, "GET", "/schema.graphql"),
            ):
                error = only_error(response)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                assert error["message"].startswith("The service is unavailable for the moment. Nothing was written.")
                assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
                assert "127.0.0.1" not in response.text
            # What is no key at all needs no database to be refused.
            assert (await send(Caller(client, "nonsense"))).status_code == 401
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            response = await client.get("/readyz")
            assert response.status_code == 503
            assert response.json() == {"status": "unavailable", "reason": "The database cannot be reached."}

    async def test_a_database_that_goes_away_is_unavailable_and_nothing_is_written(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        url = make_url(empty_database("postgresql", request, tmp_path))
        database = Database(url.render_as_string(hide_password=False))
        await migrations.upgrade(database)
        await database.close()
        line = Line(f"{url.query['host']}/.s.PGSQL.5432")
        await line.repair()
        settings = Settings(
            database_url=url.set(host="127.0.0.1", port=line.port, query={}).render_as_string(hide_password=False),
        )
        async with gateway_with_key(settings) as gateway:
            await make_meter(gateway, totalCredits="10")
            await line.cut()
            for query, variables, data in (
                (TOTAL, None, {"billingMeter": None}),
                (REFILL, {"input": METER | {"refill": "5"}}, {"refillBillingMeter": None}),
                (RECORD, {"input": METER | {"eventId": "e", "amount": "5"}}, {"recordUsage": None}),
            ):
                body = await gateway.run(query, variables)
                assert body["data"] == data
                (error,) = body["errors"]
                assert error["message"] == (
                    "The service is unavailable for the moment. Nothing was written. "
                    "Repeat the request with the same id."
                )
                assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
            assert (await gateway.client.get("/readyz")).status_code == 503
            await line.repair()
            assert await gateway.data(TOTAL) == {"billingMeter": {"totalCredits": "10", "usedCredits": "0"}}
            assert (await gateway.client.get("/readyz")).json() == {"status": "ready"}
        await line.cut()

    @pytest.mark.slow
    async def test_a_lock_that_another_process_holds_too_long_is_unavailable(self, database_url: str) -> None:
        async with gateway_with_key(Settings(database_url=database_url, wait_seconds=1)) as gateway:
            await make_meter(gateway, totalCredits="10")
            name = MeterName(gateway.org_id, Environment.SANDBOX, "w", "m")
            async with opened(database_url) as other, locked(other, name):
                refill, record = await asyncio.gather(
                    gateway.error(REFILL, {"input": METER | {"refill": "5"}}),
                    gateway.error(RECORD, {"input": METER | {"eventId": "e", "amount": "5"}}),
                )
                for error in (refill, record):
                    assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
                # Reading goes on beside it.
                assert await gateway.data(TOTAL) == {"billingMeter": {"totalCredits": "10", "usedCredits": "0"}}
            data = await gateway.data(REFILL, {"input": METER | {"refill": "5"}})
            assert data == {"refillBillingMeter": {"billingMeter": {"totalCredits": "15"}}}
            assert await gateway.data(TOTAL) == {"billingMeter": {"totalCredits": "15", "usedCredits": "0"}}


class TestOtherRoutes:
    async def test_healthz_and_readyz_need_no_key(self, gateway: Gateway) -> None:
        for url, body in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ready"})):
            response = await gateway.client.get(url)
            assert (response.status_code, response.json()) == (200, body)

    async def test_it_is_ready_on_its_own_schema_and_after_the_migration_of_a_later_release(
        self, new_database_url: str
    ) -> None:
        async with gateway_of(Settings(database_url=new_database_url)) as gateway:
            client = gateway.client
            response = await client.get("/readyz")
            assert response.status_code == 503
            assert response.json() == {
                "status": "unavailable",
                "reason": "The database has another schema: run `tollgate migrate`.",
            }
            assert (await client.get("/healthz")).status_code == 200
            database = Database(new_database_url)
            await migrations.upgrade(database)
            assert (await client.get("/readyz")).json() == {"status": "ready"}

            # An older release's schema may lack what this one reads; a later one's leaves this one working.
            for version, status in (("2026_11_20_index_of_voids", 503), ("from_the_future", 200)):
                await execute(database, "UPDATE alembic_version SET version_num = :version", version=version)
                assert (await client.get("/readyz")).status_code == status
            await database.close()

    async def test_the_schema_wants_a_key(self, gateway: Gateway) -> None:
        response = await gateway.client.get("/schema.graphql")
        assert problem(response, 401, "UNAUTHENTICATED") == "Send one header `Authorization: Bearer KEY`."
        assert response.headers["www-authenticate"] == "Bearer"
        # Any key will do.
        caller = await gateway.caller(Scope.USAGE_WRITE)
        response = await send(caller, "GET", "/schema.graphql", content_type=None)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.text == schema.as_str()

    async def test_an_unknown_path_is_404_in_json(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        for url in ("/nope", "/graphql/nope", "/..%2f..%2fetc/passwd", "/GRAPHQL", "/%00", "/metrics"):
            for method in ("GET", "POST", "DELETE"):
                with subtests.test(url=url, method=method):
                    assert problem(await send(gateway, method, url), 404) == "Not Found"

    async def test_a_slash_at_the_end_changes_nothing(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        transport = gateway.client._transport
        assert isinstance(transport, httpx.ASGITransport)
        key = {"authorization": f"Bearer {gateway.key}"}
        # Behind a prefix that the proxy leaves as it is, too.
        prefixed = httpx.ASGITransport(transport.app, raise_app_exceptions=False, root_path="/billing")
        async with httpx.AsyncClient(
            transport=prefixed, base_url="http://tollgate.test/billing", headers=key
        ) as client:
            for method, path, body, status in (
                ("POST", "/graphql", {"query": VIEWER}, 200),
                ("GET", "/graphql?query={viewer{orgId}}", None, 200),
                ("GET", "/healthz", None, 200),
                ("GET", "/readyz", None, 200),
                ("GET", "/schema.graphql", None, 200),
                ("GET", "/openapi.json", None, 200),
                ("GET", "/api/v1/customer-billing?workspaceId=w&externalMeterId=m", None, 200),
                ("GET", "/api/v1/usage/mtr_0", None, 200),
                ("POST", "/v1/customers", {"email": "nobody"}, 400),
                ("POST", "/api/v1/customer-billing/refill", {}, 400),
            ):
                with subtests.test(path=path):
                    name, question_mark, query = path.partition("?")
                    plain = await gateway.client.request(method, path, json=body, headers=key)
                    assert plain.status_code == status
                    for found in (
                        await gateway.client.request(method, f"{name}/{question_mark}{query}", json=body, headers=key),
                        await client.request(method, f"{name}/{question_mark}{query}", json=body),
                        await client.request(method, path, json=body),
                    ):
                        assert (found.status_code, found.content) == (status, plain.content)
        for path in ("/graphql//", "/nope/", "/v1/"):
            assert (await gateway.client.post(path, headers=key)).status_code == 404

    async def test_a_websocket_is_not_spoken(self, gateway: Gateway) -> None:
        for name in ("websocket", "WebSocket", "h2c, websocket"):
            headers = {"connection": "Upgrade", "upgrade": name, "sec-websocket-version": "13"}
            response = await gateway.client.get("/graphql", headers=headers)
            assert problem(response, 400) == "WebSocket is not spoken here: send a query or a mutation by POST."

    async def test_a_packed_body_is_refused_by_its_coding(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        content = body_of(VIEWER)
        headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
        rest = ("/api/v1/customer-billing", "/api/v1/customer-billing/refill", "/v1/customers")
        for path in ("/graphql", *rest):
            for coding, named in (
                (["gzip"], "gzip"),
                (["x-gzip"], "x-gzip"),
                (["deflate"], "deflate"),
                (["br"], "br"),
                (["zstd"], "zstd"),
                (["identity, GZip"], "GZip"),
                (["deflate, gzip"], "deflate, gzip"),
                (["deflate", "gzip"], "deflate, gzip"),
                (["x" * 1_000], "x" * 64),
            ):
                with subtests.test(path=path, coding=coding[0][:20]):
                    response = await gateway.client.post(
                        path,
                        content=gzip.compress(content),
                        headers=[*headers.items(), *(("content-encoding", each) for each in coding)],
                    )
                    assert response.status_code == 415
                    assert response.headers["accept-encoding"] == "identity"
                    message = response.json()["error"]["message"] if path in rest else problem(response, 415)
                    assert message == f"The body must be sent without a Content-Encoding, and has {named}."
        for none in ("identity", "Identity", "", "identity, identity"):
            response = await gateway.client.post(
                "/graphql", content=content, headers=headers | {"content-encoding": none}
            )
            assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}

    async def test_a_wrong_method_is_405_in_json_and_names_the_right_ones(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for url, method, allowed in (
            ("/graphql", "PUT", {"GET", "HEAD", "POST"}),
            ("/graphql", "DELETE", {"GET", "HEAD", "POST"}),
            ("/graphql", "PATCH", {"GET", "HEAD", "POST"}),
            ("/healthz", "POST", {"GET", "HEAD"}),
            ("/readyz", "POST", {"GET", "HEAD"}),
            ("/schema.graphql", "POST", {"GET", "HEAD"}),
        ):
            with subtests.test(url=url, method=method):
                response = await send(gateway, method, url, body_of(CREATE_CUSTOMER))
                assert problem(response, 405) == "Method Not Allowed"
                assert set(response.headers["allow"].split(", ")) == allowed
        assert await customers(gateway) == []


class Line:
    """A line from a local port to PostgreSQL's socket, which a test cuts and restores."""

    def __init__(self, database_socket: str) -> None:
        self.database_socket = database_socket
        self.port = 0
        self.server: asyncio.Server | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def repair(self) -> None:
        self.server = await asyncio.start_server(self.carry, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self.database_socket)
        self.writers += [writer, far_writer]
        await asyncio.gather(self.pass_on(reader, far_writer), self.pass_on(far_reader, writer))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.close()
        for writer in self.writers:
            with suppress(ConnectionError):
                await writer.wait_closed()
        self.writers.clear()


@asynccontextmanager
async def gateway_of(settings: Settings) -> AsyncIterator[Gateway]:
    """Open a gateway with these settings, whatever its database is like; nobody has a key yet."""
    clock = Clock()
    app = create_app(settings, clock=clock)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client,
    ):
        yield Gateway(client, app.state.services, clock, f"org-{secrets.token_hex(6)}")


@asynccontextmanager
async def gateway_with_key(settings: Settings) -> AsyncIterator[Gateway]:
    """Open a gateway with these settings, for an organization of the test's own."""
    async with gateway_of(settings) as gateway:
        gateway.key = (await gateway.caller()).key
        yield gateway
