"""Traces: a span a request, below the caller's, and one for each step; nothing of it where it is off."""

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from gateway.telemetry.requests import Request
from gateway.telemetry.tracing import Tracing
from tests.conftest import Caller, Gateway, gateway_on
from tests.operations import RECORD_USAGE, RECORD_USAGE_DIGEST
from tests.steps import make_meter, plant_secret

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Traced(NamedTuple):
    gateway: Gateway
    exporter: InMemorySpanExporter
    requests: list[Request]

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the spans of the last request by name, and forget them."""
        spans = {span.name: span for span in self.exporter.get_finished_spans()}
        self.exporter.clear()
        return spans


@pytest.fixture
async def traced(database_url: str) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    # What comes from nobody is not sampled, so that the test sees what it sends alone.
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    requests: list[Request] = []
    async with gateway_on(database_url, request_log=requests.append, tracing=Tracing(provider)) as gateway:
        yield Traced(gateway, exporter, requests)
    provider.shutdown()


async def send(caller: Caller, query: str, **variables: object) -> None:
    await caller.client.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {caller.key}", "traceparent": f"00-{TRACE}-{PARENT}-01"},
    )


async def test_a_debit_has_a_span_below_the_caller_s_and_one_for_each_step(traced: Traced) -> None:
    gateway = traced.gateway
    await make_meter(gateway, totalCredits="10")
    name = f"Traced_{secrets.token_hex(4)}"  # Parsed by nobody yet.
    query = RECORD_USAGE.replace("Record(", f"{name}(")
    event = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "3"}
    await send(gateway, query, input=event)
    request = traced.requests[-1]
    spans = traced.spans()
    root = spans.pop("POST /graphql")
    assert root.context is not None
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.kind == SpanKind.SERVER
    assert root.status.status_code == StatusCode.UNSET
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/graphql",
        "http.response.status_code": 200,
        "graphql.operation.name": name,
        "graphql.operation.type": "mutation",
        "tollgate.document": request.document,
        "tollgate.outcome": "OK",
        "tollgate.statements": 0,
        "tollgate.sql_ms": 0.0,
        "tollgate.cost": 1,
        "tollgate.key_id": request.key_id,
        "tollgate.request_id": request.request_id,
    }
    assert request.document != RECORD_USAGE_DIGEST
    assert request.trace_id == TRACE
    assert spans.keys() == {
        "auth",
        "read",
        "graphql.parse",
        "graphql.validate",
        "usage.queue",
        "usage.group",
        "graphql.execute",
        "serialize",
    }
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert root.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert root.end_time is not None
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time


async def test_nothing_that_the_caller_sent_is_in_a_span(traced: Traced) -> None:
    query = '{ customerByExternalId(externalId: "hidden-literal") { email } }'
    await send(traced.gateway, query, x="hidden-variable")
    spans = traced.spans()
    assert "POST /graphql" in spans
    for span in spans.values():
        assert "hidden" not in span.to_json()
        assert traced.gateway.key not in span.to_json()


async def test_a_bug_is_an_error_of_the_span(traced: Traced) -> None:
    gateway = traced.gateway
    caller = await gateway.caller()
    await plant_secret(gateway.database, gateway.org_id, "hidden-scope")
    await send(caller, "{ __typename }")
    spans = traced.spans()
    assert spans.keys() == {"POST /graphql"}
    root = spans["POST /graphql"]
    assert root.status.status_code == StatusCode.ERROR
    assert (root.attributes or {})["tollgate.outcome"] == "INTERNAL_SERVER_ERROR"
    assert "hidden" not in root.to_json()


async def test_what_is_not_sampled_and_what_probes_is_not_traced(traced: Traced) -> None:
    await traced.gateway.data("{ __typename }")
    assert traced.requests[-1].trace_id is None
    assert traced.requests[-1].steps is None
    sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await traced.gateway.client.get("/healthz", headers=sampled)
    for broken in ("", "00", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "hidden"):
        response = await traced.gateway.client.get("/graphql", headers={"traceparent": broken})
        assert response.status_code == 401
    assert traced.spans() == {}


def test_the_library_is_imported_only_where_it_is_on(tmp_path: Path) -> None:
    program = (
        "import sys; from gateway.app import create_app; from gateway.settings import Settings;"
        "create_app(Settings());"
        "print([name for name in ('opentelemetry', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, check=True, text=True
    )
    assert done.stdout == "[]\n"


async def test_without_the_extra_the_setting_is_refused(tmp_path: Path) -> None:
    # A package of the same name that has nothing in it stands for one that is not installed.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("tollgate"),
        "serve",
        cwd=tmp_path,
        env={"TOLLGATE_TRACING": "on", "PYTHONPATH": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 2
    wanted = "Error: TOLLGATE_TRACING=on needs the extra `otel`: pip install '.[otel]' in a checkout."
    assert output.decode().strip() == wanted


def test_spans_go_where_the_library_s_own_variables_say(tmp_path: Path) -> None:
    """A request is served, and a collector on another port receives its span under the service's name."""
    program = """
import asyncio, http.server, threading
received = []
class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
collector = http.server.HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=collector.serve_forever, daemon=True).start()
import os
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.server_port}"
import httpx
from gateway.app import create_app
from gateway.settings import Settings
async def main():
    app = create_app(Settings(tracing="on"))
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            await client.get("/nowhere")
asyncio.run(main())
((path, body),) = received
print(path, b"GET /" in body, b"tollgate" in body)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, check=True, text=True
    )
    assert done.stdout == "/v1/traces True True\n"
