"""`/metrics`: the figures of the gateway, for the holder of their token."""

import hashlib
import hmac
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.messages import HTTPProblem

if TYPE_CHECKING:
    from gateway.telemetry.metrics import Metrics

#: The text format of Prometheus.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_route(metrics: "Metrics", *, token: str) -> Route:
    """Return the route that answers the figures to requests with the token."""
    expected = _digest(token)

    async def answer(request: Request) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), expected):
            raise HTTPProblem(
                401,
                "Send the header `Authorization: Bearer TOKEN`, with the token of the metrics.",
                code="UNAUTHENTICATED",
                headers={"www-authenticate": "Bearer"},
            )
        return Response(await metrics.text(), headers={"content-type": CONTENT_TYPE})

    return Route("/metrics", answer)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
