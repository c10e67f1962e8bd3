"""Gateways that deliver webhooks as processes of their own: killed, several at once, and listened to."""

import asyncio
import base64
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.engine.database import Database
from tests import commands
from tests.conftest import SECRETS_KEY, Caller
from tests.receivers import OK, Received, receiving
from tests.servers import NO_TLS, PATIENCE_SECONDS, TOLLGATE, Server, serving
from tests.steps import key_in, make_meter, must

#: What a gateway needs to send to a test.
SETTINGS = {
    "TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES": "on",
    "TOLLGATE_SECRETS_KEY": base64.b64encode(SECRETS_KEY).decode(),
}

ENDPOINT = "... on CreateWebhookEndpointSuccess { endpoint { id } secret }"


async def key_of(url: str) -> str:
    database = Database(url)
    await database.find_buckets()
    key = await key_in(database, "acme")
    await database.close()
    return key


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_SECONDS, verify=NO_TLS)


async def event_ids(caller: Caller) -> set[str]:
    """Return the ids of all events."""
    data = await caller.data("{ events(first: 100) { nodes { id } } }")
    return {node["id"] for node in data["events"]["nodes"]}


@pytest.mark.slow
async def test_a_gateway_that_is_killed_in_mid_delivery_loses_none(migrated_url: str, tmp_path: Path) -> None:
    key = await key_of(migrated_url)
    async with receiving() as receiver:

        def until_killed(_received: Received) -> bytes | None:
            return OK if receiver.is_open else None

        receiver.behaviours["/"] = until_killed
        async with serving(migrated_url, tmp_path, **SETTINGS) as server:
            async with client_of(server) as client:
                caller = Caller(client, key)
                made = await caller.mutate("createWebhookEndpoint", ENDPOINT, url=f"{receiver.url}/")
                await make_meter(caller)
                await must(caller, "grantCredits", amount="1")
                await receiver.until(lambda: bool(receiver.received))
                receiver.is_open = False
                for _ in range(20):
                    await must(caller, "grantCredits", amount="1")
                await receiver.until(lambda: receiver.in_flight["/"] == 8)
                ids = await event_ids(caller)
            await server.kill()
            receiver.is_open = True
            delivered = Counter(each.id for each in receiver.received)
            await server.start()
            await receiver.until(lambda: {each.id for each in receiver.received} == ids and bool(delivered))
            # What was in flight comes again, when the claims of the dead one have ended.
            await receiver.until(lambda: len(receiver.received) >= 22 + 8)
    assert len(ids) == 22
    assert all(each.is_signed_with(made["secret"]) for each in receiver.received)


@pytest.mark.slow
async def test_several_gateways_send_each_event_once_and_at_once(migrated_url: str, tmp_path: Path) -> None:
    key = await key_of(migrated_url)
    async with (
        receiving() as receiver,
        serving(migrated_url, tmp_path, **SETTINGS) as one,
        serving(migrated_url, tmp_path, **SETTINGS) as other,
        client_of(one) as first,
        client_of(other) as second,
    ):
        callers = [Caller(client, key) for client in (first, second)]
        made = await callers[0].mutate("createWebhookEndpoint", ENDPOINT, url=f"{receiver.url}/")
        await make_meter(callers[0])
        for number in range(40):
            await must(callers[number % 2], "grantCredits", amount="1")
        ids = await event_ids(callers[0])
        await receiver.until(lambda: {each.id for each in receiver.received} == ids)
    assert len(receiver.received) == len(ids) == 41
    assert all(each.is_signed_with(made["secret"]) for each in receiver.received)


async def lines_of(stream: asyncio.StreamReader) -> Any:
    """Return the next line, which is JSON."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return json.loads(await stream.readline())


@pytest.mark.slow
async def test_what_comes_is_printed_to_one_who_listens(migrated_url: str, tmp_path: Path) -> None:
    key = await key_of(migrated_url)
    key_file = tmp_path / "key"
    key_file.write_text(key)
    async with serving(migrated_url, tmp_path, **SETTINGS) as server, client_of(server) as client:
        caller = Caller(client, key)
        process = await asyncio.create_subprocess_exec(
            TOLLGATE,
            *("webhooks", "listen", "--json", "--gateway", server.url, "--key-file", str(key_file)),
            *("--type", "webhook.test"),
            env=commands.environment(),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await process.stderr.readline()).startswith(b"Listening as whe_")
        query = "{ webhookEndpoints { nodes { id types description } } }"
        (endpoint,) = (await caller.data(query))["webhookEndpoints"]["nodes"]
        assert (endpoint["types"], endpoint["description"]) == (["WEBHOOK_TEST"], "tollgate webhooks listen")
        selection = "... on SendTestEventSuccess { event { id payload } }"
        sent = await caller.mutate("sendTestEvent", selection, endpointId=endpoint["id"])
        printed = await lines_of(process.stdout)
        assert printed == {"id": sent["event"]["id"], "isSigned": True, "body": sent["event"]["payload"]}
        os.kill(process.pid, signal.SIGINT)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.wait() == 0
        assert (await caller.data(query))["webhookEndpoints"]["nodes"] == []


async def test_who_cannot_listen_reads_why(migrated_url: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(await key_of(migrated_url))
    settings = SETTINGS | {"TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES": "off"}

    def listen(*arguments: str) -> tuple[int, str]:
        done = commands.run("webhooks", "listen", *arguments, folder=tmp_path, environment=commands.environment())
        return done.code, done.err

    async with serving(migrated_url, tmp_path, **settings) as server:
        code, text = await asyncio.to_thread(listen, "--gateway", server.url, "--key-file", str(key_file))
        assert code == 1
        assert text == (
            "Error: The gateway refuses it: url must begin with https://. "
            "Set TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES=on for it.\n"
        )
        key_file.write_text("sk_test_wrong")
        code, text = await asyncio.to_thread(listen, "--gateway", server.url, "--key-file", str(key_file))
        assert (code, "UNAUTHENTICATED" in text or "API key" in text) == (1, True)
    code, text = await asyncio.to_thread(listen, "--gateway", server.url, "--key-file", str(key_file))
    assert (code, text) == (1, f"Error: The gateway at {server.url} does not answer.\n")
    code, text = await asyncio.to_thread(listen, "--key-file", "missing")
    assert (code, text) == (2, "Error: missing cannot be read: No such file or directory\n")
