"""What the server answers where it refuses a request itself."""

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.http.gate import SECURITY_HEADERS
from gateway.server.heads import Refusal
from gateway.settings import Settings
from gateway.telemetry.requests import REASONS


def too_many_headers(limits: Settings) -> Refusal:
    """Return the refusal of a request with more headers than the limits allow."""
    return "TOO_MANY_HEADERS", f"A request may have at most {limits.max_headers} headers."


def too_large_head(limits: Settings) -> Refusal:
    """Return the refusal of a request whose head is larger than the limits allow."""
    return "HEAD_TOO_LARGE", f"A request's head may have at most {limits.max_head_bytes} bytes."


def refusal_answer(reason: str, message: str, id_: str, *, is_rest: bool) -> bytes:
    """Return the whole answer to a request that is refused, which ends its connection."""
    status, code = REASONS[reason]
    # Nothing of it was run, and a client that may send it again finds that where the application says it.
    extensions = {"code": code} | ({"outcome": "NOT_WRITTEN"} if code == "UNAVAILABLE" else {})
    body = orjson.dumps(
        {"error": {"code": status, "message": message}}
        if is_rest
        else {"errors": [{"message": message, "extensions": extensions}]}
    )
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *SECURITY_HEADERS,
        (b"x-request-id", id_.encode()),
        *([(b"retry-after", b"1")] if code == "UNAVAILABLE" else ()),
    ]
    lines = [b"%s: %s\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[status], *lines, b"\r\n", body])
