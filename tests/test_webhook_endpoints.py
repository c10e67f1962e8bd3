"""Webhook endpoints: made, changed, limited, given new secrets and deleted; and the addresses that they may have."""

import asyncio
import base64
import hashlib
import hmac
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from resolvers.actor import Scope
from resolvers.errors import InvalidInput
from resolvers.webhooks.addresses import check_url, is_allowed
from resolvers.webhooks.endpoints import MAX_ENDPOINTS
from resolvers.webhooks.signing import BadSecretsKey, SecretsKey, key_in
from storage import webhook_endpoints
from storage.tenants import Environment
from storage.webhook_endpoints import WebhookEndpointRow
from tests.conftest import NOW, SECRETS_KEY, Caller, Gateway, gateway_on, on_postgresql
from tests.steps import make_customer, session_of

URL = "https://example.com/hooks"

ENDPOINT = """id url types workspaceIds isEnabled disabledReason description secretGeneration createdAt"""

LIST = f"query ($first: Int, $after: String) {{ webhookEndpoints(first: $first, after: $after) {{ nodes {{ {ENDPOINT} }} pageInfo {{ hasNextPage endCursor }} }} }}"  # noqa: E501  # One query.


async def make(caller: Caller, **values: Any) -> dict[str, Any]:
    """Make an endpoint, and return the whole answer."""
    values = {"url": URL} | values
    return await caller.mutate(
        "createWebhookEndpoint",
        f"... on CreateWebhookEndpointSuccess {{ endpoint {{ {ENDPOINT} }} secret replayed }}",
        **values,
    )


async def rows_of(gateway: Gateway) -> list[WebhookEndpointRow]:
    async with gateway.database.read() as reader:
        return await webhook_endpoints.of_tenant(reader, org_id=gateway.org_id, environment=Environment.SANDBOX)


def secret(endpoint_id: str, generation: int) -> str:
    message = f"webhook endpoint {endpoint_id} {generation}".encode()
    return "whsec_" + base64.b64encode(hmac.new(SECRETS_KEY, message, hashlib.sha256).digest()).decode()


async def test_an_endpoint_is_made_and_listed(gateway: Gateway) -> None:
    made = await make(gateway, types=["WEBHOOK_TEST", "ALERT_TRIGGERED", "WEBHOOK_TEST"], description="billing")
    endpoint = made["endpoint"]
    assert made == {
        "__typename": "CreateWebhookEndpointSuccess",
        "secret": secret(endpoint["id"], 1),
        "replayed": False,
        "endpoint": {
            "id": endpoint["id"],
            "url": URL,
            "types": ["ALERT_TRIGGERED", "WEBHOOK_TEST"],
            "workspaceIds": None,
            "isEnabled": True,
            "disabledReason": None,
            "description": "billing",
            "secretGeneration": 1,
            "createdAt": "2026-03-16T12:00:00Z",
        },
    }
    second = (await make(gateway))["endpoint"]
    listed = (await gateway.data(LIST))["webhookEndpoints"]
    assert listed["nodes"] == [second, endpoint]
    page = (await gateway.data(LIST, {"first": 1}))["webhookEndpoints"]
    assert page["nodes"] == [second]
    after = {"first": 1, "after": page["pageInfo"]["endCursor"]}
    assert (await gateway.data(LIST, after))["webhookEndpoints"]["nodes"] == [endpoint]
    query = "query ($id: ID!) { node(id: $id) { id ... on WebhookEndpoint { url } } }"
    assert (await gateway.data(query, {"id": endpoint["id"]}))["node"] == {"id": endpoint["id"], "url": URL}


async def test_a_repeated_create_answers_the_endpoint_and_its_newest_secret(gateway: Gateway) -> None:
    first = await make(gateway, idempotencyKey="k")
    again = await make(gateway, idempotencyKey="k")
    assert again == first | {"replayed": True}
    await must_rotate(gateway, first["endpoint"]["id"], 2)
    third = await make(gateway, idempotencyKey="k")
    assert third["secret"] == secret(first["endpoint"]["id"], 2)
    other = await make(gateway, idempotencyKey="k", description="other")
    assert other["code"] == "IDEMPOTENCY_CONFLICT"
    assert len(await rows_of(gateway)) == 1


async def must_rotate(caller: Caller, endpoint_id: str, generation: int, **values: Any) -> dict[str, Any]:
    selection = f"... on RotateWebhookSecretSuccess {{ endpoint {{ {ENDPOINT} }} secret replayed }}"
    return await caller.mutate("rotateWebhookSecret", selection, id=endpoint_id, generation=generation, **values)


async def test_a_secret_is_rotated_once_for_each_generation(gateway: Gateway) -> None:
    endpoint_id = (await make(gateway))["endpoint"]["id"]
    rotated = await must_rotate(gateway, endpoint_id, 2, keepPreviousSeconds=60)
    assert (rotated["secret"], rotated["replayed"]) == (secret(endpoint_id, 2), False)
    assert rotated["endpoint"]["secretGeneration"] == 2
    (before,) = await rows_of(gateway)
    assert before.previous_until is not None
    assert (before.previous_until - NOW).total_seconds() == 60
    again = await must_rotate(gateway, endpoint_id, 2, keepPreviousSeconds=0)
    assert (again["secret"], again["replayed"]) == (secret(endpoint_id, 2), True)
    for generation in (1, 4, -1):
        refused = await must_rotate(gateway, endpoint_id, generation)
        assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", "generation"])
    for seconds in (-1, 604_801):
        refused = await must_rotate(gateway, endpoint_id, 3, keepPreviousSeconds=seconds)
        assert refused["field"] == ["input", "keepPreviousSeconds"]
    assert await rows_of(gateway) == [before]
    await must_rotate(gateway, endpoint_id, 3, keepPreviousSeconds=0)
    assert (await rows_of(gateway))[0].previous_until is None


async def test_the_secret_before_signs_as_well_while_it_is_kept(gateway: Gateway) -> None:
    endpoint_id = (await make(gateway))["endpoint"]["id"]
    key = SecretsKey(SECRETS_KEY)

    async def signatures() -> list[str]:
        (row,) = await rows_of(gateway)
        return key.signatures(row, event_id="evt_1", payload="{}", now=gateway.clock()).split()

    def signed(generation: int) -> str:
        digest = hmac.new(
            base64.b64decode(secret(endpoint_id, generation).removeprefix("whsec_")),
            f"evt_1.{int(gateway.clock().timestamp())}.{{}}".encode(),
            hashlib.sha256,
        ).digest()
        return f"v1,{base64.b64encode(digest).decode()}"

    assert await signatures() == [signed(1)]
    await must_rotate(gateway, endpoint_id, 2, keepPreviousSeconds=60)
    assert await signatures() == [signed(2), signed(1)]
    gateway.clock.forward(seconds=60)
    assert await signatures() == [signed(2)]


async def test_an_endpoint_is_changed(gateway: Gateway) -> None:
    made = (await make(gateway, description="d", types=["ALERT_TRIGGERED"]))["endpoint"]

    async def update(**values: Any) -> dict[str, Any]:
        selection = f"... on UpdateWebhookEndpointSuccess {{ endpoint {{ {ENDPOINT} }} }}"
        return await gateway.mutate("updateWebhookEndpoint", selection, id=made["id"], **values)

    assert (await update())["endpoint"] == made
    changed = (await update(url="https://example.org/", types=[], description=None))["endpoint"]
    assert changed == made | {"url": "https://example.org/", "types": [], "description": None}
    disabled = (await update(isEnabled=False))["endpoint"]
    assert disabled == changed | {"isEnabled": False, "disabledReason": "It was disabled by a request."}
    assert (await update(isEnabled=False))["endpoint"] == disabled
    assert (await update(isEnabled=True))["endpoint"] == changed
    for field in ("url", "types", "isEnabled"):
        refused = await update(**{field: None})
        assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", field])
    assert (await update(url="http://example.org/"))["field"] == ["input", "url"]
    assert (await update(description=" "))["field"] == ["input", "description"]
    (row,) = await rows_of(gateway)
    assert (row.url, row.types, row.description) == ("https://example.org/", [], None)


async def test_an_endpoint_is_deleted(gateway: Gateway) -> None:
    endpoint_id = (await make(gateway, idempotencyKey="k"))["endpoint"]["id"]
    selection = "... on DeleteWebhookEndpointSuccess { deletedId }"
    deleted = await gateway.mutate("deleteWebhookEndpoint", selection, id=endpoint_id)
    assert deleted["deletedId"] == endpoint_id
    assert await rows_of(gateway) == []
    for id_ in (endpoint_id, "whe_1", "cus_" + "0" * 24):
        again = await gateway.mutate("deleteWebhookEndpoint", selection, id=id_)
        assert again["code"] == "WEBHOOK_ENDPOINT_NOT_FOUND"
    # What it made is gone, and is not made again.
    assert (await make(gateway, idempotencyKey="k"))["code"] == "IDEMPOTENCY_CONFLICT"


@pytest.mark.slow
async def test_there_are_as_many_as_there_may_be(gateway: Gateway) -> None:
    answers = await asyncio.gather(*[make(gateway) for _ in range(MAX_ENDPOINTS - 1)])
    assert {answer["__typename"] for answer in answers} == {"CreateWebhookEndpointSuccess"}
    last = await asyncio.gather(*[make(gateway) for _ in range(4)])
    assert sorted(answer.get("code", "") for answer in last) == ["", *["TOO_MANY_WEBHOOK_ENDPOINTS"] * 3]
    assert len(await rows_of(gateway)) == MAX_ENDPOINTS
    other = await gateway.caller(environment=Environment.LIVE)
    assert (await make(other))["__typename"] == "CreateWebhookEndpointSuccess"


async def test_a_key_limited_to_workspaces_makes_and_sees_only_such(gateway: Gateway) -> None:
    limited = await gateway.caller(workspaces=["a", "b"])
    of_all = (await make(gateway))["endpoint"]
    of_others = (await make(gateway, workspaceIds=["a", "c"]))["endpoint"]
    own = (await make(limited, workspaceIds=["a", "a"]))["endpoint"]
    assert own["workspaceIds"] == ["a"]
    assert [node["id"] for node in (await limited.data(LIST))["webhookEndpoints"]["nodes"]] == [own["id"]]
    assert len((await gateway.data(LIST))["webhookEndpoints"]["nodes"]) == 3
    assert (await make(limited))["field"] == ["input", "workspaceIds"]
    query = f'mutation {{ createWebhookEndpoint(input: {{url: "{URL}", workspaceIds: ["a", "c"]}}) {{ __typename }} }}'
    assert (await limited.error(query))["extensions"]["code"] == "FORBIDDEN"
    for hidden in (of_all, of_others):
        assert (await limited.data("query ($id: ID!) { node(id: $id) { id } }", {"id": hidden["id"]}))["node"] is None
        for field, values in (
            ("updateWebhookEndpoint", {"description": "x"}),
            ("rotateWebhookSecret", {"generation": 2}),
            ("deleteWebhookEndpoint", {}),
        ):
            refused = await limited.mutate(field, "", id=hidden["id"], **values)
            assert refused["code"] == "WEBHOOK_ENDPOINT_NOT_FOUND"
    assert len(await rows_of(gateway)) == 3


async def test_a_lost_variable_does_not_widen_an_endpoint(gateway: Gateway) -> None:
    nothings: list[Any] = [None, []]
    for nothing in nothings:
        refused = await make(gateway, workspaceIds=nothing)
        assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", "workspaceIds"])
    assert await rows_of(gateway) == []


async def test_another_tenant_sees_nothing_of_it(gateway: Gateway) -> None:
    endpoint_id = (await make(gateway))["endpoint"]["id"]
    for other in (await gateway.for_new_organization(), await gateway.caller(environment=Environment.LIVE)):
        assert (await other.data(LIST))["webhookEndpoints"]["nodes"] == []
        assert (await other.data("query ($id: ID!) { node(id: $id) { id } }", {"id": endpoint_id}))["node"] is None
        refused = await other.mutate("deleteWebhookEndpoint", "", id=endpoint_id)
        assert refused["code"] == "WEBHOOK_ENDPOINT_NOT_FOUND"


async def test_what_a_key_must_be_allowed(gateway: Gateway) -> None:
    endpoint_id = (await make(gateway))["endpoint"]["id"]
    create = f'mutation {{ createWebhookEndpoint(input: {{url: "{URL}"}}) {{ __typename }} }}'
    for scopes in ((Scope.BILLING_READ, Scope.BILLING_WRITE), (Scope.WEBHOOKS_WRITE,)):
        caller = await gateway.caller(*scopes)
        assert (await caller.error(create))["extensions"]["code"] == "FORBIDDEN"
    writer = await gateway.caller(Scope.WEBHOOKS_WRITE)
    assert (await writer.error("{ webhookEndpoints { nodes { id } } }"))["extensions"]["code"] == "FORBIDDEN"
    customer_id = await make_customer(gateway)
    session = await session_of(gateway, customer_id)
    assert (await session.error("{ webhookEndpoints { nodes { id } } }"))["extensions"]["code"] == "FORBIDDEN"
    node = f'{{ node(id: "{endpoint_id}") {{ id }} }}'
    assert (await session.error(node))["extensions"]["code"] == "FORBIDDEN"
    assert len(await rows_of(gateway)) == 1


@on_postgresql
async def test_on_postgresql_the_operator_sets_the_key(migrated_url: str) -> None:
    async with gateway_on(migrated_url, secrets_key=None) as gateway:
        error = await gateway.error(f'mutation {{ createWebhookEndpoint(input: {{url: "{URL}"}}) {{ __typename }} }}')
        assert error["extensions"]["code"] == "FORBIDDEN"
        assert "TOLLGATE_SECRETS_KEY" in error["message"]
        assert await rows_of(gateway) == []


async def test_on_sqlite_the_key_lies_beside_the_database(sqlite_template: str, tmp_path: Path) -> None:
    database = shutil.copy(make_url(sqlite_template).database or "", tmp_path / "tollgate.db")
    async with gateway_on(f"sqlite+aiosqlite:///{database}", secrets_key=None) as gateway:
        made = await make(gateway)
    (file, mode) = key_beside(tmp_path)
    assert (file.name, mode) == ("tollgate.db.secrets-key", 0o600)
    assert made["secret"] == SecretsKey(key_in(file)).secret_of(made["endpoint"]["id"], 1)


def key_beside(folder: Path) -> tuple[Path, int]:
    """Return the one file of a key in the folder, and who may read it."""
    (file,) = folder.glob("*key*")
    return file, stat.S_IMODE(file.stat().st_mode)


def test_a_key_file_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert len({key_in(file) for _ in range(3)}) == 1
    file.write_text("short")
    with pytest.raises(BadSecretsKey, match="at least 32 random bytes"):
        key_in(file)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://Example.com:8443/a/b?c=d%20e&f=[1]",
        "https://xn--bcher-kva.example/~x",
        "https://1.1.1.1/",
        "https://[2606:4700::1]:443/",
        "https://[::ffff:1.1.1.1]/",
        "https://[64:ff9b::101:101]/",
    ],
)
def test_a_public_url_may_be_sent_to(url: str) -> None:
    check_url(url, allows_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "//example.com/",
        "example.com",
        "https://",
        "https:///x",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/#x",
        "https://example.com/ x",
        "https://example.com/\n",
        "https://bücher.example/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:443x/",
        "https://localhost/",
        "https://a.localhost/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://017700000001/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://0.0.0.0/",
        "https://10.1.2.3/",
        "https://172.16.0.1/",
        "https://192.168.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://[::]/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
        "https://[2606:4700::5efe:a00:1]/",
        "https://[fe80::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fec0::1]/",
        "https://[fd00::1]/",
        "https://[ff02::1]/",
        "https://[2001:db8::1]/",
        "https://[1::1::1]/",
        f"https://{'a' * 64}.example/",
        f"https://example.com/{'a' * 2_048}",
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, allows_private=False)
    assert refused.value.field == "url"


def test_an_operator_may_allow_private_addresses() -> None:
    for url in (
        "http://localhost:8000/",
        "http://127.0.0.1/",
        "https://[::1]/",
        "http://10.0.0.1/",
        "http://[fd00::1]/",
    ):
        check_url(url, allows_private=True)
    # Those are nobody's, or give credentials to whatever asks.
    for url in (
        "http://169.254.169.254/",
        "http://0.0.0.0/",
        "http://[fe80::1]/",
        "http://224.0.0.1/",
        "http://0x7f.1/",
    ):
        with pytest.raises(InvalidInput):
            check_url(url, allows_private=True)
    assert not is_allowed("fe80::1%eth0", allows_private=True)
