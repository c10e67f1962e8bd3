"""Receives Stripe's webhooks, and refills a meter for each payment.

The gateway's address is the variable GATEWAY_URL, its key GATEWAY_KEY, and the secret of Stripe's endpoint
STRIPE_WEBHOOK_SECRET.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import stripe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

log = logging.getLogger("uvicorn.error")

#: More than Stripe sends.
MAX_BODY_BYTES = 1_048_576

#: More than the gateway waits by itself for its database, so that its own answer comes first.
TIMEOUT_SECONDS = 15

REFILL = """mutation ($input: RefillBillingMeterInput!) {
  answer: refillBillingMeter(input: $input) {
    __typename
    ... on UserError { message }
  }
}"""


class Sale(NamedTuple):
    """A payment, and what your server has written into its metadata when it asked for it.

    `payment` is the same in all events of the payment; an event's own id is not.
    """

    payment: str
    metadata: dict[str, str]

    def refill(self) -> dict[str, str]:
        """Return the refill that was sold. Raises `KeyError` where the metadata have only a part of it."""
        return {
            "workspaceId": self.metadata["workspaceId"],
            "externalMeterId": self.metadata["externalMeterId"],
            "refill": self.metadata["credits"],
            "idempotencyKey": self.payment,
        }


def sale(event: dict[str, Any]) -> Sale | None:
    """Return what an event says has been paid; None: nothing, or nothing that is about credits."""
    paid = event["data"]["object"]
    match event["type"]:
        case "checkout.session.completed" | "checkout.session.async_payment_succeeded":
            # A bank's payment is unpaid when its session completes, and a subscription's session is paid by invoices.
            if paid["mode"] != "payment" or paid["payment_status"] != "paid":
                return None
            # With `invoice_creation`, an `invoice.paid` comes for the same payment.
            found = Sale(paid.get("invoice") or paid["payment_intent"], paid.get("metadata") or {})
        case "invoice.paid":
            # A trial's invoice is paid with nothing.
            if paid["amount_paid"] == 0:
                return None
            found = Sale(paid["id"], _of_period(paid) | (paid.get("metadata") or {}))
        case _:
            return None
    return found if "credits" in found.metadata else None


def _of_period(invoice: dict[str, Any]) -> dict[str, str]:
    """Return the subscription's metadata where the invoice is of a whole period, and not of a change in between."""
    if invoice.get("billing_reason") not in {"subscription_create", "subscription_cycle"}:
        return {}
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    return details.get("metadata") or {}


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, object]]:
    """Hand the gateway, with a key that has the scope `billing:write`, to the requests."""
    url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
    headers = {"authorization": f"Bearer {os.environ['GATEWAY_KEY']}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as gateway:
        yield {"gateway": gateway, "secret": os.environ["STRIPE_WEBHOOK_SECRET"]}


async def webhooks(request: Request) -> Response:
    """Verify an event, and refill; Stripe sends again, for three days, what is not answered by 2xx."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return PlainTextResponse("The body is too long.\n", 413)
    try:
        event = stripe.Webhook.construct_event(body, request.headers.get("stripe-signature"), request.state.secret)
    except (stripe.SignatureVerificationError, ValueError, TypeError):
        # The library raises the others for what is no text, or not in ASCII.
        return PlainTextResponse("The signature is not right.\n", 400)
    sold = sale(event.to_dict())
    if sold is None:
        return PlainTextResponse("Nothing to refill.\n")
    try:
        problem = await refill(request.state.gateway, sold.refill())
    except KeyError as missing:
        problem = f"The metadata have no {missing}."
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        log.warning("%s is not refilled yet: %r", sold.payment, error)
        return PlainTextResponse("The gateway does not answer.\n", 503)
    if problem is None:
        return PlainTextResponse("Refilled.\n")
    # It is paid for: Stripe keeps sending it and shows it as failed, until somebody has looked.
    log.error("%s is paid for and cannot be refilled: %s", sold.payment, problem)
    return PlainTextResponse(f"{problem}\n", 422)


async def refill(gateway: httpx.AsyncClient, values: dict[str, str]) -> str | None:
    """Refill a meter, once under the payment's id, and return why the gateway refuses.

    Raises `httpx.HTTPError`, `RuntimeError` and `ValueError` where it is not known whether it has refilled.
    """
    response = await gateway.post("/graphql", json={"query": REFILL, "variables": {"input": values}})
    body = response.raise_for_status().json()
    for error in body.get("errors", []):
        # The others are about the request itself, such as credits that are no number.
        if error["extensions"]["code"] in {"UNAVAILABLE", "INTERNAL_SERVER_ERROR"}:
            raise RuntimeError(error["message"])
        return str(error["message"])
    answer = body["data"]["answer"]
    return f"{answer['__typename']}: {answer['message']}" if "message" in answer else None


app = Starlette(routes=[Route("/webhooks/stripe", webhooks, methods=["POST"])], lifespan=lifespan)
