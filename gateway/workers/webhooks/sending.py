"""One attempt: a request to an endpoint, and what came of it."""

import asyncio
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import aiohttp
from yarl import URL

from gateway.workers.webhooks.names import AddressRefused, CheckedNames
from resolvers.errors import InvalidInput
from resolvers.webhooks.addresses import check_url
from resolvers.webhooks.claims import Claimed
from resolvers.webhooks.signing import Webhooks
from storage.meters.webhook_deliveries import Attempt

#: How long the whole of an attempt may take.
ATTEMPT_SECONDS = 15

#: The same, which a test may shorten.
_TIMEOUT_SECONDS: float = ATTEMPT_SECONDS

#: How long a connection is kept for the next event: many servers end theirs after 5 seconds.
KEEP_ALIVE_SECONDS = 4

_SECONDS = re.compile("[0-9]{1,9}", re.ASCII)

_USER_AGENT = "Tollgate-Webhooks"

#: Answers that lead elsewhere.
_REDIRECTS = range(300, 400)


class Answer(NamedTuple):
    """What came of an attempt, and for how long the endpoint asks to be left alone."""

    attempt: Attempt
    retry_after_seconds: int | None = None


class Sender:
    """Sends events, by connections that are kept for a while. It knows neither proxies nor cookies nor redirects."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedNames(allows_private=webhooks.allows_private),
                use_dns_cache=False,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                # How many requests there are of an endpoint is decided before they come here.
                limit=0,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The whole of an attempt is bounded instead.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding"),
            headers={"User-Agent": _USER_AGENT, "Content-Type": "application/json"},
            trace_configs=[tracing],
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, claimed: Claimed, *, now: datetime) -> Answer:
        """Send the event, once, and return what came of it."""
        endpoint, event = claimed.endpoint, claimed.event
        started = perf_counter()

        def attempt(status: int | None, error: str | None) -> Attempt:
            return Attempt(now, status, round((perf_counter() - started) * 1_000), error)

        try:
            # What is allowed may have changed since it was made.
            check_url(endpoint.url, allows_private=self._webhooks.allows_private)
        except InvalidInput as refused:
            return Answer(attempt(None, refused.message))
        headers = {
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhooks.secrets.signatures(
                endpoint, event_id=event.id, payload=event.payload, now=now
            ),
        }
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                status, retry_after = await self._post(endpoint.url, event.payload.encode(), headers)
        except TimeoutError:
            return Answer(attempt(None, f"There was no answer within {ATTEMPT_SECONDS} seconds."))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(attempt(None, _words_of(error)))
        words = "Redirects are not followed." if status in _REDIRECTS else None
        return Answer(attempt(status, words), _seconds_of(retry_after, now))

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        """Return the status of the answer and what it says of when to come again; its body is not read."""
        use = SimpleNamespace(is_reused=False)
        target = URL(url, encoded=True)
        for _ in range(2):
            try:
                async with self._session.post(
                    target, data=body, headers=headers, allow_redirects=False, trace_request_ctx=use
                ) as response:
                    return response.status, response.headers.get("Retry-After")
            except (aiohttp.ServerDisconnectedError, ConnectionError):
                # A server may end a connection that was kept at the moment in which it is used again.
                if not use.is_reused:
                    raise
                use.is_reused = False
        raise aiohttp.ServerDisconnectedError


async def _note_reuse(_session: object, context: SimpleNamespace, _parameters: object) -> None:
    context.trace_request_ctx.is_reused = True


def _words_of(error: Exception) -> str:
    """Return why there was no answer, for those who run the endpoint: nothing of the gateway's own network."""
    cause: Any = getattr(error, "os_error", None) or error
    if isinstance(cause, AddressRefused):
        return "An address of the host is not allowed."
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "The host's name cannot be resolved."
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "No TLS connection with a certificate of the host's name can be made."
        case aiohttp.ClientConnectorError():
            return "The host does not take a connection."
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "The connection was closed before there was an answer."
    return "What was answered is no HTTP response."


def _seconds_of(retry_after: str | None, now: datetime) -> int | None:
    """Return how long the endpoint asks to be left alone for: a number of seconds, or a date."""
    if retry_after is None:
        return None
    if _SECONDS.fullmatch(retry_after):
        return int(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0, int((moment - now).total_seconds()))
