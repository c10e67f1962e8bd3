"""Traces: a span a request and one for each of its steps, sent to a collector of OpenTelemetry.

The library is an extra of the package, and is imported only where `TOLLGATE_TRACING` is on. Its own variables,
`OTEL_…`, say where spans go and which requests are sampled.
"""

from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from time import perf_counter_ns, time_ns

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode

from gateway.telemetry.logs import PROBES
from gateway.telemetry.requests import INTERNAL_SERVER_ERROR, Request

_SERVER_ERROR = 500

#: What a step is called in a trace, among the spans of other programs.
_SPANS = {
    "parse": "graphql.parse",
    "validate": "graphql.validate",
    "execute": "graphql.execute",
    "queue": "usage.queue",
    "group": "usage.group",
}


@dataclass(frozen=True, slots=True)
class Traced:
    """A request that is traced. `epoch_ns` is when the clock of its steps was 0."""

    span: Span
    epoch_ns: int
    token: Token[Context]


class Tracing:
    """Makes the spans of requests."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._own: TracerProvider | None = None
        if provider is None:
            provider = trace.get_tracer_provider()
            if not isinstance(provider, TracerProvider):  # Else it was set up by `opentelemetry-instrument`.
                provider = self._own = _provider()
        self._tracer = trace.get_tracer("tollgate", tracer_provider=provider)

    def begin(self, request: Request, headers: Mapping[bytes, bytes], *, began: int) -> Traced | None:
        """Open the span of a request, below that of its sender; None: it is not sampled.

        It `began` on the clock of its steps.
        """
        if request.path in PROBES:
            return None
        epoch_ns = time_ns() - perf_counter_ns()
        fields = propagate.get_global_textmap().fields
        sent = {name: headers[key].decode("latin-1") for name in fields if (key := name.lower().encode()) in headers}
        span = self._tracer.start_span(
            f"{request.method} {request.path}", propagate.extract(sent), SpanKind.SERVER, start_time=began + epoch_ns
        )
        if not span.is_recording():
            return None
        request.trace_id = f"{span.get_span_context().trace_id:032x}"
        # What others trace inside of it, such as a driver, finds it there.
        return Traced(span, epoch_ns, context.attach(trace.set_span_in_context(span)))

    def end(self, traced: Traced, request: Request) -> None:
        """Close the span of a request and note what it was, with a span for each of its steps."""
        context.detach(traced.token)
        span = traced.span
        inside = trace.set_span_in_context(span)
        for name, began, ended in request.steps or ():
            step = self._tracer.start_span(_SPANS.get(name, name), inside, start_time=began + traced.epoch_ns)
            step.end(ended + traced.epoch_ns)
        facts = {
            "http.request.method": request.method,
            "url.path": request.path,
            "http.response.status_code": request.status,
            "graphql.operation.name": request.name(),
            "graphql.operation.type": request.kind,
            "tollgate.document": request.document,
            "tollgate.outcome": request.outcome,
            "tollgate.statements": request.statements,
            "tollgate.sql_ms": round(request.sql_ns / 1_000_000, 3),
            "tollgate.cost": request.cost,
            "tollgate.key_id": request.key_id,
            "tollgate.request_id": request.request_id,
        }
        span.set_attributes({name: value for name, value in facts.items() if value is not None})
        if request.outcome == INTERNAL_SERVER_ERROR or (request.status or 0) >= _SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        span.end(perf_counter_ns() + traced.epoch_ns)

    def close(self) -> None:
        """Send what was not sent yet; it may take as long as the collector's timeout."""
        if self._own is not None:
            self._own.shutdown()


def _provider() -> TracerProvider:
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "tollgate"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
