"""Trusted documents: those of a manifest, named by their ids, with or without others beside them."""

import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import graphql
import httpx
import pytest

from gateway.http.trusted_documents import BadManifest, TrustedDocuments
from gateway.settings import Settings
from schema.engine.execution.executor import Executor
from tests.conftest import Gateway, gateway_on
from tests.steps import make_meter

GRAPHQL_RESPONSE = "application/graphql-response+json"
CREATE = "mutation Create($input: CreateCustomerInput!) { createCustomer(input: $input) { __typename } }"
MANIFEST = {
    "viewer-1": "query Viewer { viewer { orgId } }",
    "customer-1": "query Customer($id: String!) { customerByExternalId(externalId: $id) { email } }",
    "two-1": "query A { a: __typename } query B { b: __typename }",
    "create-1": CREATE,
    "fault-1": 'query Fault { viewer { orgId } customerByExternalId(externalId: "") { id } }',
}


def write(folder: Path, manifest: object) -> str:
    file = folder / "documents.json"
    file.write_text(json.dumps(manifest), "utf-8")
    return str(file)


@pytest.fixture
async def gateway(database_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with the manifest, which also takes documents of other text."""
    async with gateway_on(database_url, documents=write(tmp_path, MANIFEST)) as gateway:
        yield gateway


@pytest.fixture
async def strict(database_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that runs the documents of the manifest alone."""
    async with gateway_on(database_url, documents=write(tmp_path, MANIFEST), trusted_only="on") as gateway:
        yield gateway


async def post(gateway: Gateway, accept: str = "application/json", **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {gateway.key}", "accept": accept}
    return await gateway.client.post("/graphql", json=fields, headers=headers)


async def get(gateway: Gateway, accept: str = "application/json", kept: str = "", **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {gateway.key}", "accept": accept}
    parameters = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return await gateway.client.get(
        "/graphql", params=parameters, headers=headers | ({"if-none-match": kept} if kept else {})
    )


def apollo(document_id: str) -> dict[str, Any]:
    """Return the extension by which the clients of Apollo and urql name a document."""
    return {"persistedQuery": {"version": 1, "sha256Hash": document_id}}


def refusal(response: httpx.Response, status: int) -> tuple[str, str]:
    """Return the message and the code of a request that was not run."""
    assert response.status_code == status
    assert set(response.json()) == {"errors"}
    (error,) = response.json()["errors"]
    assert set(error) == {"message", "extensions"}
    (code,) = error["extensions"].values()
    return error["message"], code


async def emails(gateway: Gateway) -> list[str]:
    """Return the customers' emails, by a gateway of the same database that takes any document."""
    async with gateway_on(gateway.services.settings.database_url) as other:
        other.key = gateway.key
        data = await other.data("{ customers(first: 100) { nodes { email } } }")
    return [node["email"] for node in data["customers"]["nodes"]]


@contextmanager
def calls() -> Iterator[list[str]]:
    """Record which of graphql-core's two steps before the execution are taken, and each leaf that it completes."""
    watched = {
        graphql.parse.__code__: "parse",
        graphql.validate.__code__: "validate",
        graphql.Executor.complete_leaf_value.__code__: "leaf",
    }
    seen: list[str] = []

    def look(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code in watched:
            seen.append(watched[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


class TestAsking:
    async def test_a_document_is_named_in_three_ways(self, gateway: Gateway) -> None:
        answer = {"data": {"viewer": {"orgId": gateway.org_id}}}
        for send in (post, get):
            assert (await send(gateway, documentId="viewer-1")).json() == answer
            assert (await send(gateway, extensions=apollo("viewer-1"))).json() == answer
            assert (await send(gateway, documentId="viewer-1", extensions=apollo("two-1"))).json() == answer
        assert (await post(gateway, query=None, documentId="viewer-1")).json() == answer

    async def test_variables_and_the_operation_s_name_go_with_it(self, gateway: Gateway) -> None:
        await gateway.mutate("createCustomer", "", email="ada@example.com", externalId="ada")
        for send in (post, get):
            response = await send(gateway, documentId="customer-1", variables={"id": "ada"})
            assert response.json() == {"data": {"customerByExternalId": {"email": "ada@example.com"}}}
            response = await send(gateway, documentId="two-1", operationName="B")
            assert response.json() == {"data": {"b": "Query"}}

    async def test_its_faults_are_those_of_any_document(self, gateway: Gateway) -> None:
        response = await post(gateway, documentId="customer-1", accept=GRAPHQL_RESPONSE)
        assert response.status_code == 400
        (error,) = response.json()["errors"]
        assert error["message"] == (
            "Variable '$id' has invalid value: Expected a value of non-null type 'String!' to be provided."
        )
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    async def test_a_mutation_is_run_by_post_alone(self, gateway: Gateway) -> None:
        variables = {"input": {"email": "ada@example.com"}}
        for fields in ({"documentId": "create-1"}, {"extensions": apollo("create-1")}):
            response = await get(gateway, variables=variables, **fields)
            assert refusal(response, 405) == ("A mutation must be sent by POST.", "BAD_USER_INPUT")
            assert response.headers["allow"] == "POST"
        assert await emails(gateway) == []
        response = await post(gateway, documentId="create-1", variables=variables)
        assert response.json() == {"data": {"createCustomer": {"__typename": "CreateCustomerSuccess"}}}
        assert await emails(gateway) == ["ada@example.com"]

    async def test_an_unknown_id_is_reported(self, gateway: Gateway) -> None:
        for send in (post, get):
            for accept, status in (("application/json", 200), (GRAPHQL_RESPONSE, 400)):
                response = await send(gateway, accept, documentId="nobody")
                message = "There is no trusted document 'nobody'."
                assert refusal(response, status) == (message, "PERSISTED_QUERY_NOT_FOUND")
                response = await send(gateway, accept, extensions=apollo("nobody"))
                assert refusal(response, status) == ("PersistedQueryNotFound", "PERSISTED_QUERY_NOT_FOUND")
        assert refusal(await post(gateway, documentId=""), 200)[0] == "There is no trusted document ''."

    async def test_a_hash_beside_a_text_does_not_name_a_document(self, gateway: Gateway) -> None:
        """So a client sends it, after the answer that the document is not known."""
        response = await post(gateway, query="{ __typename }", extensions=apollo("viewer-1"))
        assert response.json() == {"data": {"__typename": "Query"}}
        # Nothing is learned from it.
        response = await post(gateway, query="{ __typename }", extensions=apollo("new-1"))
        assert response.json() == {"data": {"__typename": "Query"}}
        assert refusal(await post(gateway, extensions=apollo("new-1")), 200)[0] == "PersistedQueryNotFound"

    async def test_a_hash_may_do_without_the_name_of_its_algorithm(self, database_url: str, tmp_path: Path) -> None:
        manifest = write(tmp_path, {"sha256:beef": "{ a: __typename }", "cafe": "{ b: __typename }"})
        async with gateway_on(database_url, documents=manifest) as gateway:
            for named, data in (("sha256:beef", {"a": "Query"}), ("beef", {"a": "Query"}), ("cafe", {"b": "Query"})):
                assert (await post(gateway, extensions=apollo(named))).json() == {"data": data}
            assert refusal(await post(gateway, extensions=apollo("sha256:cafe")), 200)[0] == "PersistedQueryNotFound"
            # An id is what the manifest has, and nothing else.
            assert refusal(await post(gateway, documentId="beef"), 200)[0] == "There is no trusted document 'beef'."

    async def test_what_names_no_document_is_400(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        both = "A request has a query or a documentId, and not both."
        for fields, message in (
            ({"query": "{ __typename }", "documentId": "viewer-1"}, both),
            ({"query": "", "documentId": ""}, both),
            ({"documentId": None}, "query must be a string."),
            ({"documentId": 1}, "documentId must be a string."),
            ({"documentId": ["viewer-1"]}, "documentId must be a string."),
            ({"extensions": {}}, "query must be a string."),
            ({"extensions": {"persistedQuery": "viewer-1"}}, "query must be a string."),
            ({"extensions": {"persistedQuery": {"sha256Hash": 1}}}, "query must be a string."),
            ({"extensions": {"persistedQuery": {"version": 1}}}, "query must be a string."),
        ):
            with subtests.test(fields=fields):
                assert refusal(await post(gateway, **fields), 400) == (message, "BAD_USER_INPUT")
        response = await get(gateway, query="{ __typename }", documentId="viewer-1")
        assert refusal(response, 400) == (both, "BAD_USER_INPUT")

    async def test_a_key_is_needed_first(self, gateway: Gateway) -> None:
        response = await gateway.client.get("/graphql", params={"documentId": "viewer-1"})
        assert refusal(response, 401)[1] == "UNAUTHENTICATED"

    async def test_without_a_manifest_no_document_has_an_id(self, database_url: str) -> None:
        async with gateway_on(database_url) as gateway:
            response = await post(gateway, documentId="viewer-1")
            message = "There is no trusted document 'viewer-1'."
            assert refusal(response, 200) == (message, "PERSISTED_QUERY_NOT_FOUND")
            # A client that hears this does not try again.
            response = await post(gateway, extensions=apollo("viewer-1"))
            assert refusal(response, 200) == ("PersistedQueryNotSupported", "PERSISTED_QUERY_NOT_SUPPORTED")

    async def test_it_is_neither_parsed_nor_validated_again_and_compiled_at_once(self, gateway: Gateway) -> None:
        with calls() as seen:
            await post(gateway, query=f"query Q{secrets.token_hex(8)} {{ __typename }}")
        assert seen == ["parse", "validate", "leaf"]
        with calls() as seen:
            for _ in range(3):
                response = await post(gateway, documentId="viewer-1")
                assert response.json() == {"data": {"viewer": {"orgId": gateway.org_id}}}
        assert seen == []


class TestTrustedOnly:
    async def test_a_document_of_another_text_is_refused(self, strict: Gateway) -> None:
        message = "Only trusted documents are run here: name one by documentId."
        variables = {"input": {"email": "ada@example.com"}}
        for fields in (
            {"query": CREATE},
            {"query": CREATE, "extensions": apollo("create-1")},
            {"query": "{"},
            {"query": ""},
        ):
            for accept, status in (("application/json", 200), (GRAPHQL_RESPONSE, 400)):
                response = await post(strict, accept, variables=variables, **fields)
                assert refusal(response, status) == (message, "BAD_USER_INPUT")
        assert refusal(await get(strict, query=MANIFEST["viewer-1"]), 200) == (message, "BAD_USER_INPUT")
        assert await emails(strict) == []

    async def test_a_trusted_one_is_run(self, strict: Gateway) -> None:
        answer = {"data": {"viewer": {"orgId": strict.org_id}}}
        for send in (post, get):
            assert (await send(strict, documentId="viewer-1")).json() == answer
            assert (await send(strict, extensions=apollo("viewer-1"))).json() == answer


class TestCaching:
    async def test_an_answer_is_kept_for_its_key_and_asked_for_again(self, gateway: Gateway) -> None:
        first = await get(gateway, documentId="viewer-1")
        assert first.headers["cache-control"] == "private, no-cache"
        assert first.headers["vary"] == "Authorization, Accept"
        etag = first.headers["etag"]
        assert etag.startswith('"')
        for kept in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await get(gateway, documentId="viewer-1", kept=kept)
            assert (again.status_code, again.content) == (304, b"")
            assert {name: again.headers[name] for name in ("etag", "cache-control", "vary")} == {
                name: first.headers[name] for name in ("etag", "cache-control", "vary")
            }
            assert "content-type" not in again.headers
        other = await get(gateway, documentId="viewer-1", kept='"other"')
        assert (other.status_code, other.json()) == (200, first.json())

    async def test_another_answer_has_another_tag(self, gateway: Gateway) -> None:
        async def customer() -> httpx.Response:
            return await get(gateway, documentId="customer-1", variables={"id": "ada"})

        before = await customer()
        await gateway.mutate("createCustomer", "", email="ada@example.com", externalId="ada")
        after = await get(gateway, documentId="customer-1", variables={"id": "ada"}, kept=before.headers["etag"])
        assert (after.status_code, after.json()) == (
            200,
            {"data": {"customerByExternalId": {"email": "ada@example.com"}}},
        )
        # The same data in the other type is another answer.
        other = await get(gateway, GRAPHQL_RESPONSE, documentId="customer-1", variables={"id": "ada"})
        assert other.json() == after.json()
        assert len({response.headers["etag"] for response in (before, after, other)}) == 3
        assert (await customer()).headers["etag"] == after.headers["etag"]

    async def test_another_key_asks_for_itself(self, gateway: Gateway) -> None:
        etag = (await get(gateway, documentId="viewer-1")).headers["etag"]
        stranger = await gateway.caller(org_id=f"{gateway.org_id}-other")
        gateway.key = stranger.key
        response = await get(gateway, documentId="viewer-1", kept=etag)
        assert response.json() == {"data": {"viewer": {"orgId": f"{gateway.org_id}-other"}}}
        gateway.key = "sk_test_nobody"
        assert (await get(gateway, documentId="viewer-1", kept="*")).status_code == 401

    async def test_head_is_answered_as_get(self, gateway: Gateway) -> None:
        got = await get(gateway, documentId="viewer-1")
        headers = {"authorization": f"Bearer {gateway.key}"}
        head = await gateway.client.head("/graphql", params={"documentId": "viewer-1"}, headers=headers)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["etag"] == got.headers["etag"]

    async def test_what_may_be_otherwise_the_next_time_is_not_kept(self, gateway: Gateway) -> None:
        for response in (
            await get(gateway, query=MANIFEST["viewer-1"], kept="*"),
            await get(gateway, documentId="fault-1", kept="*"),
            await get(gateway, documentId="customer-1", kept="*"),
            await get(gateway, documentId="nobody", kept="*"),
            await get(gateway, documentId="create-1", kept="*"),
            await get(gateway, kept="*"),
        ):
            assert response.status_code != 304
            assert response.headers["cache-control"] == "no-store"
            assert "etag" not in response.headers

    async def test_an_answer_to_post_has_no_tag(self, gateway: Gateway) -> None:
        response = await post(gateway, documentId="viewer-1")
        assert response.status_code == 200
        assert {"etag", "cache-control", "vary"} & set(response.headers) == set()


class TestManifest:
    def refused(self, file: str) -> str:
        with pytest.raises(BadManifest) as caught:
            TrustedDocuments(Settings(documents=file))
        return str(caught.value).removeprefix(file)

    def test_an_empty_one_trusts_nothing(self, tmp_path: Path) -> None:
        TrustedDocuments(Settings(documents=write(tmp_path, {})))

    def test_one_that_cannot_be_read_is_reported(self, tmp_path: Path) -> None:
        assert self.refused(f"{tmp_path}/missing.json") == " cannot be read: No such file or directory."
        assert self.refused(str(tmp_path)) == " cannot be read: Is a directory."

    def test_one_that_is_no_object_is_reported(self, tmp_path: Path, subtests: pytest.Subtests) -> None:
        for manifest in (None, [], ["query"], "query", 1):
            with subtests.test(manifest=manifest):
                message = self.refused(write(tmp_path, manifest))
                assert message == " must be a JSON object, from the id of each document to its text."
        for content in (b"", b"{", b"\xff", b'{"a": "{ __typename }"} x', b"[" * 100_000):
            with subtests.test(content=content[:10]):
                (tmp_path / "bad.json").write_bytes(content)
                assert self.refused(str(tmp_path / "bad.json")).startswith(" must be JSON in UTF-8: ")

    def test_every_document_that_cannot_be_run_is_named_by_its_id(self, tmp_path: Path) -> None:
        file = write(
            tmp_path,
            MANIFEST
            | {
                "syntax": "{",
                "unknown": "{ viewer { secret nope } }",
                "literal": '{ usage(billingId: "x", from: "yesterday") { day } }',
                "number": 1,
                "null": None,
                "empty": "",
            },
        )
        assert self.refused(file).splitlines() == [
            " has documents that cannot be run.",
            "syntax: Syntax Error: Expected Name, found <EOF>.",
            "unknown: Cannot query field 'secret' on type 'Viewer'.",
            "unknown: Cannot query field 'nope' on type 'Viewer'.",
            "literal: from: A date is a day of the calendar, written YYYY-MM-DD.",
            "number: The document must be a string.",
            "null: The document must be a string.",
            "empty: Syntax Error: Unexpected <EOF>.",
        ]


class TestCompiled:
    @pytest.fixture
    def executed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The operations that graphql-core has been given to execute, by their names."""
        names: list[str] = []
        execute = Executor.execute_operation

        def noting(self: Executor, *args: Any) -> Any:
            names.append(self.operation.name.value if self.operation.name is not None else "")
            return execute(self, *args)

        monkeypatch.setattr(Executor, "execute_operation", noting)
        return names

    async def test_the_first_run_of_a_trusted_query_takes_the_compiled_way(
        self, database_url: str, tmp_path: Path, executed: list[str]
    ) -> None:
        manifest = MANIFEST | {
            "maybe-1": "query Maybe($id: Boolean!) { viewer { orgId id: orgId @include(if: $id) } }",
            "fixed-1": "query Fixed { viewer { orgId id: orgId @include(if: true) environment @skip(if: true) } }",
        }
        async with gateway_on(database_url, documents=write(tmp_path, manifest)) as gateway:
            # It is compiled when the gateway starts, and nothing was executed for that.
            assert {"Viewer", "Customer", "A", "B", "Fixed"} <= set(executed)
            assert "Maybe" not in executed
            executed.clear()
            viewer = {"data": {"viewer": {"orgId": gateway.org_id}}}
            for _ in range(2):
                assert (await post(gateway, documentId="viewer-1")).json() == viewer
                assert (await post(gateway, documentId="viewer-1", operationName="Viewer")).json() == viewer
                found = await post(gateway, documentId="customer-1", variables={"id": "nobody"})
                assert found.json() == {"data": {"customerByExternalId": None}}
                assert (await post(gateway, documentId="fixed-1")).json() == {
                    "data": {"viewer": {"orgId": gateway.org_id, "id": gateway.org_id}}
                }
                assert executed == []
            # What is selected of it, variables decide.
            for _ in range(2):
                assert (await post(gateway, documentId="maybe-1", variables={"id": False})).json() == viewer
                assert executed == ["Maybe"]

    async def test_a_trusted_mutation_is_not_executed_at_the_start(
        self, database_url: str, tmp_path: Path, executed: list[str]
    ) -> None:
        refill = 'mutation Refill { refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: 5}) '
        refill += "{ __typename ... on RefillBillingMeterSuccess { billingMeter { totalCredits } } } }"
        async with gateway_on(database_url) as gateway:
            await make_meter(gateway, totalCredits="10")
            key = gateway.key
        async with gateway_on(database_url, documents=write(tmp_path, {"refill-1": refill})) as gateway:
            assert executed.count("Refill") == 1
            gateway.key = key
            (answered,) = (await post(gateway, documentId="refill-1")).json()["data"].values()
            assert answered == {
                "__typename": "RefillBillingMeterSuccess",
                "billingMeter": {"totalCredits": "15"},
            }
            # Its plan answered it, without graphql-core.
            assert executed.count("Refill") == 1
