"""Calls through LiteLLM's proxy are held and billed as the example's page says, whatever becomes of them.

The proxy is the real one, with the example's own callback and configuration; `make examples` installs it into an
environment of its own. Its models are LiteLLM's mocks, and a provider that is played here, for what a mock cannot do.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests import commands
from tests.doc_pages import blocks_of
from tests.examples.conftest import LLM_PROXY, Demo
from tests.servers import PATIENCE_SECONDS, free_port

BIN = LLM_PROXY / ".venv" / "bin"
PAGE = LLM_PROXY / "README.md"

#: Where the example has its users' meters unless it is said otherwise.
WORKSPACE = "assistant"

#: What `small`, a mock, always reports: 10 tokens in and 20 out, at 500 and 2,000 credits for 1,000.
SMALL_COST = 45

#: What is held for it before: 9 tokens in, as LiteLLM counts them, and at most 1,000 out.
SMALL_HOLD = 2_005

PROMPT = [{"role": "user", "content": "Say hello"}]

#: A hold of the second proxy ends so soon that a test can wait for it.
SHORT_HOLD_SECONDS = 3

#: The same users as of the example, and one for each test: a key's name is its user's.
KEYS = """
import keys
from litellm.proxy._types import UserAPIKeyAuth

async def user_of(request, api_key):
    if not api_key.startswith("sk-test_"):
        return await keys.user_of(request, api_key)
    limits = {"model_rpm_limit": {"limited": 1}} if "limits" in api_key else {}
    return UserAPIKeyAuth(api_key=api_key, user_id=api_key.removeprefix("sk-"), metadata=limits)
"""


class Provider:
    """A provider of models that speaks as OpenAI does; the model's name says how it behaves."""

    def __init__(self) -> None:
        self.port = free_port()
        #: How many calls of each model have come.
        self.calls: dict[str, int] = {}
        #: Set when a call of `gated` has come, and by a test to have it answered.
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self._serving: set[asyncio.Task[None] | None] = set()

    async def close(self) -> None:
        """Let go of the calls whose callers have hung up."""
        serving = [task for task in self._serving if task is not None]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            if length is None:
                # The proxy asks for more than calls when it starts.
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            body = json.loads(await reader.readexactly(int(length[1])))
            model = body["model"]
            self.calls[model] = self.calls.get(model, 0) + 1
            if body.get("stream"):
                await self._stream(model, reader, writer)
            else:
                await self._answer(model, reader, writer)
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, answer = "200 OK", completion("chat.completion", message={"role": "assistant", "content": "Hello"})
        answer["usage"] = USAGE
        if model == "silent":
            await reader.read()
        elif model == "gated":
            self.asked.set()
            await self.answer.wait()
        elif model == "flaky" and self.calls[model] == 1:
            status, answer = "500 Internal Server Error", {"error": {"message": "Try again."}}
        text = json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
            "connection: close\r\n\r\n".encode()
            + text
        )
        await writer.drain()

    async def _stream(self, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def event(value: dict[str, Any]) -> bytes:
            return b"data: " + json.dumps(value).encode() + b"\n\n"

        # What is announced and does not come is a connection that breaks.
        length = "content-length: 100000\r\n" if model == "breaking" else ""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{length}connection: close\r\n\r\n"
        writer.write(head.encode())
        if model != "silent":
            for word in ("One", " two", " three", " four"):
                writer.write(event(completion("chat.completion.chunk", delta={"role": "assistant", "content": word})))
        if model == "steady":
            writer.write(event(completion("chat.completion.chunk", delta={}, finish_reason="stop")))
            writer.write(event(completion("chat.completion.chunk") | {"choices": [], "usage": USAGE}))
            writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        if model in {"silent", "endless"}:
            # Until the proxy hangs up.
            await reader.read()


#: What the provider reports of each answer, at 1 and 2 credits a token.
USAGE = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
PROVIDER_COST = 180

#: What is held for it before: 9 tokens in, and at most 500 out.
PROVIDER_HOLD = 1_009


def completion(kind: str, **choice: Any) -> dict[str, Any]:
    """Return one answer or piece of one, as OpenAI writes it."""
    choices = [{"index": 0, "finish_reason": None if "delta" in choice else "stop"} | choice]
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "played", "choices": choices}


class Proxy:
    """A running proxy."""

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process


class Entry(NamedTuple):
    """What an entry of a ledger did."""

    kind: str
    amount: int


class Setting(NamedTuple):
    """All that takes part: the gateway, two proxies that differ in how long they hold, and the provider."""

    demo: Demo
    proxy: Proxy
    short: Proxy
    provider: Provider


class Meter:
    """One customer of the proxy: its key, and its meter."""

    def __init__(self, setting: Setting, name: str) -> None:
        self.setting = setting
        self.name = name
        self.proxy = setting.proxy

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer sk-{self.name}"}

    async def make(self, credits_: int) -> None:
        made = await self.setting.demo.ask(
            "mutation ($input: CreateBillingMeterInput!) { createBillingMeter(input: $input) { __typename } }",
            input={"workspaceId": WORKSPACE, "externalMeterId": self.name, "totalCredits": str(credits_)},
        )
        assert made["createBillingMeter"]["__typename"] == "CreateBillingMeterSuccess"

    async def call(self, model: str, *, path: str = "chat/completions", **fields: Any) -> httpx.Response:
        """Call a model, and return the proxy's answer; of a stream all of it."""
        headers = self.headers | fields.pop("headers", {})
        body = {"model": model, "messages": PROMPT} | fields
        async with httpx.AsyncClient(base_url=self.proxy.url, trust_env=False, timeout=PATIENCE_SECONDS) as client:
            return await client.post(f"/v1/{path}", json=body, headers=headers)

    async def answered(self, model: str, **fields: Any) -> None:
        response = await self.call(model, **fields)
        assert response.status_code == 200, response.text

    async def refused(self, model: str, **fields: Any) -> tuple[int, str]:
        response = await self.call(model, **fields)
        return response.status_code, response.json()["error"]["message"]

    async def leave(self, model: str, *, stream: bool = True) -> None:
        """Call a model, and hang up when the provider has got the call."""
        calls = self.setting.provider.calls.get(model, 0)
        calling = asyncio.create_task(self.call(model, stream=stream))
        await until(lambda: self.setting.provider.calls.get(model, 0) > calls)
        calling.cancel()
        with suppress(asyncio.CancelledError):
            await calling

    async def leave_stream(self, model: str, *, after: int) -> None:
        """Call a model, and hang up after so many pieces of its stream."""
        body = {"model": model, "messages": PROMPT, "stream": True}
        async with (
            httpx.AsyncClient(base_url=self.proxy.url, trust_env=False, timeout=PATIENCE_SECONDS) as client,
            client.stream("POST", "/v1/chat/completions", json=body, headers=self.headers) as response,
        ):
            assert response.status_code == 200
            lines = response.aiter_lines()
            pieces = 0
            while pieces < after:
                pieces += (await anext(lines)).startswith("data: ")

    async def state(self) -> tuple[int, int, list[Entry]]:
        """Return the credits that are used and held, and the ledger in its order, without its opening."""
        data = await self.setting.demo.ask(
            """query ($workspace: String!, $meter: String!) {
                billingMeter(workspaceId: $workspace, externalMeterId: $meter) {
                    usedCredits heldCredits ledger(first: 100) { nodes { kind amount } }
                }
            }""",
            workspace=WORKSPACE,
            meter=self.name,
        )
        meter = data["billingMeter"]
        entries = [Entry(each["kind"], int(each["amount"])) for each in reversed(meter["ledger"]["nodes"])]
        return int(meter["usedCredits"]), int(meter["heldCredits"]), entries[1:]

    async def closed(self) -> list[Entry]:
        """Wait until nothing is held, and return the ledger; what is used is what it says."""
        async with asyncio.timeout(30):
            while True:
                used, held, entries = await self.state()
                # What is late comes after the hold's end.
                if held == 0 and entries and entries[-1].kind not in {"HOLD", "HOLD_EXPIRY"}:
                    assert used == sum(each.amount for each in entries if each.kind == "USAGE")
                    return entries
                await asyncio.sleep(0.05)

    async def untouched(self) -> None:
        assert await self.state() == (0, 0, [])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  # It is another process that brings it about.
            await asyncio.sleep(0.02)


def configure(folder: Path, provider: Provider) -> None:
    """Write the example's files into the folder, with more models and a user for each test."""
    folder.mkdir()
    for name in ("tollgate_holds.py", "keys.py"):
        shutil.copy(LLM_PROXY / name, folder)
    (folder / "test_keys.py").write_text(KEYS, "utf-8")
    config = yaml.safe_load((LLM_PROXY / "config.yaml").read_text("utf-8"))
    mocks = {
        "failing": {"mock_response": "litellm.InternalServerError"},
        "limited": {"mock_response": "Hello"},
        "free": {"mock_response": "Hello"},
    }
    played = {"api_base": f"http://127.0.0.1:{provider.port}/v1", "timeout": 20}
    models = dict.fromkeys(("steady", "endless", "breaking", "gated", "flaky", "silent"), played) | mocks
    models |= {"timing-out": played | {"model": "openai/silent", "timeout": 0.5}}
    for name, parameters in models.items():
        price = 0 if name == "free" else 1_000
        info = {"credits_per_1000_input_tokens": price, "credits_per_1000_output_tokens": 2 * price}
        config["model_list"].append(
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", "api_key": "none"} | parameters,
                "model_info": info | {"max_output_tokens": 500},
            }
        )
    config["router_settings"]["fallbacks"].append({"limited": ["small"]})
    config["general_settings"]["custom_auth"] = "test_keys.user_of"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


@asynccontextmanager
async def proxy_of(demo: Demo, key: str, folder: Path, hold_seconds: int) -> AsyncIterator[Proxy]:
    """Run a proxy with the files of the folder."""
    port = free_port()
    settings = {
        "GATEWAY_URL": demo.server.url,
        "GATEWAY_KEY": key,
        "HOLD_SECONDS": str(hold_seconds),
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",
        # It asks the internet for the prices of models otherwise.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1",
    }
    log = folder / "log"
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            BIN / "litellm",
            *("--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)),
            cwd=folder,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
        )
    proxy = Proxy(port, process)
    try:
        await ready(proxy)
        yield proxy
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        print(log.read_text("utf-8"))  # noqa: T201  # pytest shows it where a test fails.


async def ready(proxy: Proxy) -> None:
    """Wait until the proxy answers."""
    async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient(base_url=proxy.url, trust_env=False) as client:
        while True:
            assert proxy.process.returncode is None
            try:
                if (await client.get("/health/liveliness")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
async def setting(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setting]:
    """The gateway, the provider, and both proxies, whose key may do no more than the example's page says."""
    folder = tmp_path_factory.mktemp("llm-proxy")
    environment = commands.environment(**demo.server.settings)
    key = commands.run(
        *("keys", "create", "--org", "demo", "--environment", "sandbox", "--scope", "usage:write", "--json"),
        folder=demo.server.folder,
        environment=environment,
    ).json["key"]
    provider = Provider()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(await asyncio.start_server(provider.serve, "127.0.0.1", provider.port))
        stack.push_async_callback(provider.close)
        # Each takes ten seconds to start, and most of that side by side.
        starting = []
        for seconds in (600, SHORT_HOLD_SECONDS):
            configure(folder / str(seconds), provider)
            starting.append(proxy_of(demo, key, folder / str(seconds), seconds))
        proxy, short = await asyncio.gather(*(stack.enter_async_context(each) for each in starting))
        yield Setting(demo, proxy, short, provider)


@pytest.fixture
async def meter(setting: Setting, request: pytest.FixtureRequest) -> Meter:
    """A meter of the test's own, with as many credits as it may need."""
    meter = Meter(setting, request.node.name)
    await meter.make(1_000_000)
    return meter


async def test_the_page_shows_what_its_call_takes(setting: Setting) -> None:
    key = setting.demo.server.folder / "tollgate-demo.key"
    call, ledger = [
        block.text.replace("http://127.0.0.1:4000", setting.proxy.url)
        .replace("http://127.0.0.1:8000", setting.demo.server.url)
        .replace("../../tollgate-demo.key", str(key))
        for block in blocks_of(PAGE)
        if block.text.startswith("curl")
    ]
    (shown,) = [json.loads(block.text) for block in blocks_of(PAGE) if block.language == "json"]
    answer = json.loads(await printed(call))
    assert answer["choices"][0]["message"]["content"] == "Hello! I am a small model."
    async with asyncio.timeout(PATIENCE_SECONDS):
        # The commit is sent after the answer.
        while (found := json.loads(await printed(ledger))) != shown:
            assert found["data"]["billingMeter"]["ledger"]["nodes"][0]["kind"] == "HOLD"


async def printed(script: str) -> str:
    """Run a script of the page where the page says, and return what it prints."""
    process = await asyncio.create_subprocess_exec("/bin/sh", "-e", "-c", script, cwd=LLM_PROXY, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_an_answer_is_billed_by_its_tokens(meter: Meter) -> None:
    await meter.answered("small")
    assert await meter.closed() == [("HOLD", SMALL_HOLD), ("USAGE", SMALL_COST)]


async def test_a_callers_own_limit_is_what_is_held_for(meter: Meter) -> None:
    await meter.answered("small", max_tokens=50, n=2)
    assert await meter.closed() == [("HOLD", 205), ("USAGE", SMALL_COST)]


async def test_a_stream_is_billed_by_what_the_provider_reports_at_its_end(meter: Meter) -> None:
    response = await meter.call("steady", stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("USAGE", PROVIDER_COST)]


async def test_a_stream_that_reports_nothing_is_billed_by_what_it_said(meter: Meter) -> None:
    await meter.answered("small", stream=True)
    # 9 tokens in, and 8 out.
    assert await meter.closed() == [("HOLD", SMALL_HOLD), ("USAGE", 21)]


async def test_a_call_that_fails_is_not_billed(meter: Meter) -> None:
    status, _ = await meter.refused("failing")
    assert status == 500
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("RELEASE", PROVIDER_HOLD)]


async def test_a_call_that_times_out_is_not_billed(meter: Meter) -> None:
    status, _ = await meter.refused("timing-out")
    assert status == 408
    # The first and two retries.
    assert meter.setting.provider.calls["silent"] == 3
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("RELEASE", PROVIDER_HOLD)]


async def test_a_stream_that_breaks_off_is_not_billed(meter: Meter) -> None:
    response = await meter.call("breaking", stream=True)
    assert '"error"' in response.text
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("RELEASE", PROVIDER_HOLD)]


async def test_a_caller_who_leaves_in_the_middle_of_a_stream_pays_for_what_has_come(meter: Meter) -> None:
    await meter.leave_stream("endless", after=4)
    # 9 tokens in, and 4 out.
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("USAGE", 17)]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_caller_who_leaves_before_the_answer_pays_nothing(meter: Meter, stream: bool) -> None:  # noqa: FBT001
    await meter.leave("silent", stream=stream)
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("RELEASE", PROVIDER_HOLD)]


async def test_a_call_that_is_retried_is_billed_once(meter: Meter) -> None:
    await meter.answered("flaky")
    assert meter.setting.provider.calls["flaky"] == 2
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("USAGE", PROVIDER_COST)]


async def test_a_fallbacks_answer_is_billed_once_at_the_fallbacks_price(meter: Meter) -> None:
    await meter.answered("broken")
    # Ten times as much is held, for the model that was asked for.
    assert await meter.closed() == [("HOLD", 20_045), ("USAGE", SMALL_COST)]


async def test_a_stream_of_a_fallback_is_billed_once(meter: Meter) -> None:
    await meter.answered("broken", stream=True)
    assert await meter.closed() == [("HOLD", 20_045), ("USAGE", 21)]


async def test_what_the_proxy_limits_and_a_fallback_answers_leaves_no_hold_behind(meter: Meter) -> None:
    await meter.answered("limited")
    await meter.answered("limited")
    entries = await meter.closed()
    # One a minute: the second is answered by `small`, which is held for anew.
    limited = [("HOLD", PROVIDER_HOLD), ("USAGE", 50), ("HOLD", PROVIDER_HOLD), ("RELEASE", PROVIDER_HOLD)]
    assert sorted(entries) == sorted([*limited, ("HOLD", SMALL_HOLD), ("USAGE", SMALL_COST)])


async def test_a_free_model_is_answered_without_a_hold(meter: Meter) -> None:
    await meter.answered("free")
    await meter.untouched()


async def test_too_few_credits_are_refused_before_the_model_is_called(setting: Setting) -> None:
    meter = Meter(setting, "test_poor")
    await meter.make(SMALL_HOLD - 1)
    assert await meter.refused("small") == (
        402,
        "This call may take 2005 credits, and 2004 are available.",
    )
    await meter.untouched()


async def test_of_two_calls_at_once_a_meter_that_covers_one_answers_one(setting: Setting) -> None:
    meter = Meter(setting, "test_covers_one")
    await meter.make(PROVIDER_HOLD + 100)
    provider = setting.provider
    provider.answer.clear()
    calls = [asyncio.create_task(meter.call("gated")) for _ in range(2)]
    done, (waiting,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    refused = done.pop().result()
    assert refused.status_code == 429
    message = refused.json()["error"]["message"]
    assert message.startswith("This call may take 1009 credits, and 100 are available. Calls that have not ended (1)")
    assert message.endswith(" reserve 1009 more: try again.")
    provider.answer.set()
    assert (await waiting).status_code == 200
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("USAGE", PROVIDER_COST)]


async def test_an_answer_is_billed_once_when_the_gateway_was_killed_meanwhile(meter: Meter) -> None:
    provider, gateway = meter.setting.provider, meter.setting.demo.server
    provider.asked.clear()
    provider.answer.clear()
    calling = asyncio.create_task(meter.call("gated"))
    await provider.asked.wait()
    await gateway.kill()
    try:
        provider.answer.set()
        assert (await calling).status_code == 200
        # The commit is sent to nobody meanwhile.
        await asyncio.sleep(1)
    finally:
        await gateway.start()
    assert await meter.closed() == [("HOLD", PROVIDER_HOLD), ("USAGE", PROVIDER_COST)]


async def test_no_model_is_called_while_the_gateway_is_away(meter: Meter) -> None:
    gateway = meter.setting.demo.server
    await gateway.kill()
    try:
        assert await meter.refused("small") == (503, "The credits cannot be checked now. Try again later.")
    finally:
        await gateway.start()
    await meter.untouched()


async def test_an_answer_after_its_holds_expiry_is_billed_all_the_same(meter: Meter) -> None:
    provider = meter.setting.provider
    provider.asked.clear()
    provider.answer.clear()
    meter.proxy = meter.setting.short
    calling = asyncio.create_task(meter.call("gated"))
    await provider.asked.wait()
    await asyncio.sleep(SHORT_HOLD_SECONDS)
    provider.answer.set()
    assert (await calling).status_code == 200
    assert await meter.closed() == [
        ("HOLD", PROVIDER_HOLD),
        ("HOLD_EXPIRY", PROVIDER_HOLD),
        ("USAGE", PROVIDER_COST),
    ]


async def test_a_caller_can_neither_switch_billing_off_nor_name_the_hold(meter: Meter) -> None:
    fields = {"no-log": True, "metadata": {"tollgate_hold": ["other", "hold"]}, "headers": {"x-litellm-call-id": "1"}}
    await meter.answered("small", **fields)
    await meter.answered("small", **fields)
    entries = await meter.closed()
    assert sorted(entries) == [("HOLD", SMALL_HOLD)] * 2 + [("USAGE", SMALL_COST)] * 2


async def test_what_has_no_price_is_refused(meter: Meter) -> None:
    numbers = "max_tokens, max_completion_tokens and n must be whole numbers greater than 0."
    assert await meter.refused("unheard-of") == (400, "There is no model 'unheard-of'.")
    assert await meter.refused("small,small") == (400, "There is no model 'small,small'.")
    assert await meter.refused("small", max_tokens=-1) == (400, numbers)
    assert await meter.refused("small", n="2") == (400, numbers)
    assert await meter.refused("small", messages="Hello") == (400, "The messages cannot be read.")
    for path in ("completions", "embeddings", "responses", "messages"):
        status, message = await meter.refused("small", path=path, prompt="Hello", input="Hello", max_tokens=1)
        assert status == 400
        assert message.endswith("Only chat completions have a price here, and so nothing else is answered.")
    await meter.untouched()


async def test_a_user_without_a_meter_is_refused(setting: Setting) -> None:
    status, message = await Meter(setting, "test_nobody").refused("small")
    assert (status, message) == (403, "There is no billing meter 'test_nobody' in workspace 'assistant'.")


async def test_a_key_that_is_not_known_is_refused(setting: Setting) -> None:
    status, message = await Meter(setting, "nobody").refused("small")
    assert status == 401
    assert message.endswith("The key is not known.")


async def test_a_hold_whose_proxy_died_ends_by_itself(meter: Meter) -> None:
    provider = meter.setting.provider
    provider.asked.clear()
    provider.answer.clear()
    meter.proxy = meter.setting.short
    calling = asyncio.create_task(meter.call("gated"))
    await provider.asked.wait()
    meter.proxy.process.kill()
    with pytest.raises(httpx.TransportError):
        await calling
    used, held, entries = await meter.state()
    assert (used, held, entries) == (0, PROVIDER_HOLD, [("HOLD", PROVIDER_HOLD)])
    await asyncio.sleep(SHORT_HOLD_SECONDS)
    assert (await meter.state())[:2] == (0, 0)


async def test_the_books_are_right_after_all_of_it(setting: Setting) -> None:
    server = setting.demo.server
    done = await asyncio.to_thread(
        commands.run, "verify", folder=server.folder, environment=commands.environment(**server.settings)
    )
    assert done.code == 0, done.out


def test_the_callback_fits_its_types() -> None:
    mypy = Path(sys.executable).with_name("mypy")
    done = subprocess.run(
        [mypy, "--config-file", LLM_PROXY / "pyproject.toml", "--python-executable", BIN / "python"],
        cwd=LLM_PROXY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "Success: no issues found in 2 source files\n", done.stdout + done.stderr
