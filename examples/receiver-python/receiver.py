"""Receives Tollgate's webhooks, and pays for the refills that meters request.

The gateway's address is the variable GATEWAY_URL, its key GATEWAY_KEY, and the endpoint's secret WEBHOOK_SECRET.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import payments
from inbox import Inbox, Taken
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway import Gateway, Refused

log = logging.getLogger("uvicorn.error")

#: Many times what an event takes.
MAX_BODY_BYTES = 65_536

#: What a customer pays.
CREDITS_PER_CENT = 10

LONGEST_PAUSE_SECONDS = 60


class Receiver:
    """Carries out each event that is taken, until that is done, whatever fails meanwhile."""

    def __init__(self, gateway: Gateway, inbox: Inbox) -> None:
        self.inbox = inbox
        self._gateway = gateway
        self._working: set[asyncio.Task[None]] = set()

    def start(self, event: Taken) -> None:
        """Carry an event out in the background: a delivery is not kept waiting for a payment."""
        task = asyncio.create_task(self._until_done(event))
        # The event loop itself keeps no task alive.
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _until_done(self, event: Taken) -> None:
        pause_seconds = 1
        while True:
            try:
                state, note = await self._refill_requested(event)
            except Refused as error:
                # Perhaps the card was charged: somebody has to look.
                state, note = "stuck", str(error)
                log.error("%s needs a person: %s", event.id, error)  # noqa: TRY400  # It is no fault of this program.
            except Exception:  # Whatever it is, it may pass, and what was charged must be refilled.
                log.exception("%s is tried again in %s seconds", event.id, pause_seconds)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                event = event._replace(was_charging=True)
                continue
            self.inbox.set(event.id, state, note)
            return

    async def _refill_requested(self, event: Taken) -> tuple[str, str]:
        """Charge and refill, both under the request's id, so that either happens once. Returns how it ended."""
        meter, request = event.body["data"]["billingMeter"], event.body["data"]["refill"]
        now = datetime.now(UTC)
        if not event.was_charging and now >= datetime.fromisoformat(request["expiresAt"]):
            return "done", "The request had expired, and nothing was charged."
        remembered_until = datetime.fromisoformat(request["requestedAt"]) + timedelta(hours=payments.KEY_HOURS)
        if event.was_charging and now >= remembered_until:
            raise Refused("Whether the card was charged is not known, and the provider may have forgotten the key.")
        # From here on the card may have been charged, also if this process dies.
        self.inbox.set(event.id, "charging")
        amount_cents = -(-int(request["amount"]) // CREDITS_PER_CENT)
        try:
            await payments.charge(meter["externalMeterId"], amount_cents, request["requestId"])
        except payments.CardDeclined as declined:
            await self._gateway.fail(request["requestId"], str(declined))
            return "done", str(declined)
        await self._gateway.refill(meter, request["amount"], request["requestId"])
        return "done", "Charged and refilled."


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, object]]:
    """Go on with what an earlier process has left, and hand the receiver to the requests."""
    inbox = Inbox()
    gateway = Gateway(os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000"), os.environ["GATEWAY_KEY"])
    receiver = Receiver(gateway, inbox)
    for event in inbox.unfinished():
        receiver.start(event)
    yield {"receiver": receiver, "webhook": Webhook(os.environ["WEBHOOK_SECRET"])}


async def webhooks(request: Request) -> Response:
    """Verify an event, keep it, and answer: from then on it is this program's to carry out."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return PlainTextResponse("The body is too long.\n", 413)
    try:
        event = request.state.webhook.verify(body, dict(request.headers))
    except (WebhookVerificationError, ValueError):
        # The library raises `ValueError` for what is neither text nor a signature.
        return PlainTextResponse("The signature is not right.\n", 400)
    receiver = request.state.receiver
    # New types of events come: what is not known is taken and ignored.
    if event["type"] == "refill.requested":
        taken = receiver.inbox.take(request.headers["webhook-id"], event)
        if taken is not None:
            receiver.start(taken)
    return Response(status_code=204)


app = Starlette(routes=[Route("/webhooks", webhooks, methods=["POST"])], lifespan=lifespan)
