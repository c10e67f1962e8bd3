"""A payment with Stripe refills once, whatever Stripe sends of it and in whatever order.

Events are signed by Stripe's own library, and refill through a real gateway. `make examples` installs what this needs.
"""

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from graphql import build_schema, parse, validate

from tests.examples.conftest import STRIPE, Demo
from tests.examples.receiving import (
    SCHEMA,
    Door,
    Program,
    Signer,
    key_of,
    make_meter,
    refills_of,
    running,
    starting_commands,
)

WORKSPACE = "stripe"

SECRET = "whsec_stripe"

PYTHON = STRIPE / ".venv" / "bin" / "python"

SIGNER = """
import json, sys
from stripe import WebhookSignature
for line in sys.stdin:
    secret, at, body = json.loads(line)
    print(WebhookSignature.generate_signature_header(body, secret, at), flush=True)
"""

EVENT_NUMBERS = itertools.count(1)


def event(type_: str, paid: dict[str, Any]) -> str:
    """Return an event of Stripe's, with an id of its own."""
    number = next(EVENT_NUMBERS)
    return json.dumps(
        {
            "id": f"evt_{number}",
            "object": "event",
            "api_version": "2025-03-31.basil",
            "created": 1_773_662_400,
            "data": {"object": paid},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": type_,
        }
    )


class Sale:
    """A sale of credits for a meter of its own, and the receiver that is sent its events."""

    def __init__(self, demo: Demo, door: Door, program: Program, signer: Signer, meter: str) -> None:
        self.demo, self.door, self.program, self.signer, self.meter = demo, door, program, signer, meter
        self.payment, self.invoice_id = f"pi_{meter}", f"in_{meter}"
        self.metadata = {"workspaceId": WORKSPACE, "externalMeterId": meter, "credits": "5000"}

    def session(self, type_: str = "checkout.session.completed", **values: Any) -> str:
        """Return an event of the Checkout session, which is paid."""
        session = {
            "id": f"cs_{self.meter}",
            "object": "checkout.session",
            "amount_total": 1_190,
            "currency": "eur",
            "invoice": None,
            "metadata": self.metadata,
            "mode": "payment",
            "payment_intent": self.payment,
            "payment_status": "paid",
            "status": "complete",
        }
        return event(type_, session | values)

    def invoice(self, type_: str = "invoice.paid", **values: Any) -> str:
        """Return an event of an invoice, whose metadata say what it sells."""
        invoice = {
            "id": self.invoice_id,
            "object": "invoice",
            "amount_paid": 1_190,
            "billing_reason": "manual",
            "currency": "eur",
            "metadata": self.metadata,
            "parent": None,
            "status": "paid",
        }
        return event(type_, invoice | values)

    def period(self, reason: str) -> str:
        """Return that an invoice of a subscription is paid, whose metadata say what a period is."""
        details = {"metadata": self.metadata, "subscription": "sub_1"}
        parent = {"quote_details": None, "subscription_details": details, "type": "subscription_details"}
        return self.invoice(billing_reason=reason, metadata={}, parent=parent)

    async def send(self, body: str, secret: str = SECRET, *, seconds_ago: int = 0) -> int:
        return await self.post(body, await self.signer.signature(secret, int(time.time()) - seconds_ago, body))

    async def post(self, body: str, signature: str | None) -> int:
        headers = {} if signature is None else {"stripe-signature": signature}
        return await self.program.post("/webhooks/stripe", body.encode(), headers)

    async def refills(self) -> list[str]:
        return await refills_of(self.demo, WORKSPACE, self.meter)

    def keys(self) -> list[str]:
        """Return the keys under which the gateway was asked for refills."""
        return [call.input["idempotencyKey"] for call in self.door.calls_of(self.meter)]

    async def untouched(self) -> None:
        assert self.keys() == []
        assert await self.refills() == []


@pytest.fixture(scope="module")
async def running_receiver(
    demo: Demo, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Demo, Door, Program, Signer]]:
    """The receiver, with the demo's gateway behind a door."""
    door = Door(demo.server.url)
    program = Program(
        STRIPE,
        tmp_path_factory.mktemp("stripe") / "run",
        (".venv", "receiver.py"),
        GATEWAY_URL=door.url,
        GATEWAY_KEY=key_of(demo),
        STRIPE_WEBHOOK_SECRET=SECRET,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(await asyncio.start_server(door.serve, "127.0.0.1", door.port))
        signer = await stack.enter_async_context(Signer.running(PYTHON, "-c", SIGNER, folder=STRIPE))
        await stack.enter_async_context(running(program))
        yield demo, door, program, signer


@pytest.fixture
async def sale(running_receiver: tuple[Demo, Door, Program, Signer], request: pytest.FixtureRequest) -> Sale:
    """A sale to a meter that is named after the test."""
    sale = Sale(*running_receiver, re.sub(r"\W+", "-", request.node.name))
    await make_meter(sale.demo, WORKSPACE, sale.meter)
    return sale


def test_the_receiver_is_typed_and_asks_what_the_schema_has() -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("mypy"),
            *("--config-file", "pyproject.toml", "--python-executable", PYTHON),
        ],
        cwd=STRIPE,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
    program = (STRIPE / "receiver.py").read_text("utf-8")
    (mutation,) = re.findall(r"mutation \(.*?\n}(?=\")", program, re.DOTALL)
    assert validate(build_schema(SCHEMA), parse(mutation)) == []


def test_the_page_installs_and_starts_what_is_tested() -> None:
    install, _, start = starting_commands(STRIPE / "README.md")
    assert install.endswith("--require-hashes -r requirements.lock")
    assert start == ".venv/bin/uvicorn receiver:app --host 127.0.0.1 --port 8201"


async def test_a_paid_session_refills_once_however_often_it_is_sent(sale: Sale) -> None:
    completed = sale.session()
    for _ in range(3):
        assert await sale.send(completed) == 200
        assert await sale.refills() == ["5000"]
    assert sale.keys() == [sale.payment] * 3


async def test_deliveries_at_the_same_time_refill_once(sale: Sale) -> None:
    assert await asyncio.gather(*(sale.send(sale.session()) for _ in range(16))) == [200] * 16
    assert await sale.refills() == ["5000"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reordered"])
async def test_a_bank_payment_refills_when_the_money_has_come(sale: Sale, order: tuple[int, int]) -> None:
    unpaid = sale.session(payment_status="unpaid")
    succeeded = sale.session("checkout.session.async_payment_succeeded")
    for place in order:
        assert await sale.send((unpaid, succeeded)[place]) == 200
        assert await sale.refills() == ([] if (place, order) == (0, (0, 1)) else ["5000"])
    assert sale.keys() == [sale.payment]


async def test_a_bank_payment_that_fails_refills_nothing(sale: Sale) -> None:
    assert await sale.send(sale.session(payment_status="unpaid")) == 200
    assert await sale.send(sale.session("checkout.session.async_payment_failed", payment_status="unpaid")) == 200
    await sale.untouched()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["session first", "invoice first"])
async def test_a_session_and_its_invoice_are_one_payment(sale: Sale, order: tuple[int, int]) -> None:
    both = sale.session(invoice=sale.invoice_id), sale.invoice()
    for place in order:
        assert await sale.send(both[place]) == 200
        assert await sale.refills() == ["5000"]
    assert sale.keys() == [sale.invoice_id] * 2


async def test_two_events_of_one_payment_with_ids_of_their_own_refill_once(sale: Sale) -> None:
    assert await sale.send(sale.session()) == 200
    assert await sale.send(sale.session("checkout.session.async_payment_succeeded")) == 200
    assert await sale.refills() == ["5000"]


async def test_two_payments_of_one_meter_refill_twice(sale: Sale) -> None:
    assert await sale.send(sale.session()) == 200
    assert await sale.send(sale.session(payment_intent=sale.payment + "_2")) == 200
    assert await sale.refills() == ["5000", "5000"]


async def test_each_period_of_a_subscription_refills(sale: Sale) -> None:
    assert await sale.send(sale.session(mode="subscription", payment_intent=None, invoice=sale.invoice_id)) == 200
    assert sale.keys() == []
    assert await sale.send(sale.period("subscription_create")) == 200
    assert await sale.refills() == ["5000"]
    first, sale.invoice_id = sale.invoice_id, sale.invoice_id + "_2"
    assert await sale.send(sale.period("subscription_cycle")) == 200
    assert await sale.refills() == ["5000", "5000"]
    assert sale.keys() == [first, sale.invoice_id]


async def test_what_is_not_paid_or_sells_no_credits_refills_nothing(sale: Sale) -> None:
    unpaid = [
        sale.session(payment_status="no_payment_required", amount_total=0, payment_intent=None),
        sale.session("checkout.session.expired", status="expired"),
        sale.invoice(amount_paid=0),
        sale.invoice("invoice.finalized", status="open"),
        sale.invoice("invoice.payment_failed", status="open"),
        sale.period("subscription_update"),
    ]
    sale.metadata = {"order": "of a book"}
    for body in [
        *unpaid,
        sale.session(),
        sale.invoice(),
        sale.period("subscription_cycle"),
        sale.invoice(metadata=None),
    ]:
        assert await sale.send(body) == 200, body
    await sale.untouched()


async def test_what_is_forged_or_old_is_refused(sale: Sale) -> None:
    completed = sale.session()
    right = await sale.signer.signature(SECRET, int(time.time()), completed)
    assert await sale.send(completed, "whsec_other") == 400
    assert await sale.send(completed, seconds_ago=360) == 400
    assert await sale.post(completed.replace("5000", "9000"), right) == 400
    for signature in (None, "", "t=1", "v1=1", right.replace("v1=", "v0="), right.swapcase()):
        assert await sale.post(completed, signature) == 400
    assert await sale.program.post("/webhooks/stripe", b"\xff", {"stripe-signature": right}) == 400
    # httpx sends bytes as they are.
    latin: Any = {b"stripe-signature": right.partition("v1=")[0].encode() + b"v1=\xe9"}
    assert await sale.program.post("/webhooks/stripe", completed.encode(), latin) == 400
    await sale.untouched()


async def test_a_body_that_is_too_long_is_refused(sale: Sale) -> None:
    completed = sale.session()
    assert await sale.send(completed + " " * (1_048_577 - len(completed))) == 413
    await sale.untouched()


async def test_while_the_gateway_fails_stripe_is_asked_to_send_again(sale: Sale) -> None:
    completed = sale.session()
    sale.door.faults[sale.payment] = ["break", "keep", "lose"]
    for refills in ([], [], ["5000"]):
        assert await sale.send(completed) == 503
        assert await sale.refills() == refills
    assert await sale.send(completed) == 200
    assert await sale.refills() == ["5000"]


@pytest.mark.parametrize("credits_", ["0", "-5", "5.5", "1e3", "many", "", "9223372036854775808"])
async def test_an_amount_that_is_none_is_refused_and_logged(sale: Sale, credits_: str) -> None:
    sale.metadata["credits"] = credits_
    assert await sale.send(sale.session()) == 422
    assert f"{sale.payment} is paid for and cannot be refilled: " in sale.program.logged
    assert await sale.refills() == []


async def test_what_is_paid_and_cannot_be_refilled_is_refused_and_logged(sale: Sale) -> None:
    assert await sale.send(sale.session(metadata={"credits": "5"})) == 422
    assert f"{sale.payment} is paid for and cannot be refilled: The metadata have no 'workspaceId'." in (
        sale.program.logged
    )
    nowhere = sale.session(metadata=sale.metadata | {"workspaceId": "nowhere"})
    assert await sale.send(nowhere) == 422
    assert f"{sale.payment} is paid for and cannot be refilled: BillingMeterNotFound: " in sale.program.logged
    assert await sale.refills() == []
    # The meter is made, and Stripe sends the same once more.
    await make_meter(sale.demo, "nowhere", sale.meter)
    assert await sale.send(nowhere) == 200
    assert await refills_of(sale.demo, "nowhere", sale.meter) == ["5000"]


async def test_one_payment_for_two_amounts_is_refused_and_logged(sale: Sale) -> None:
    assert await sale.send(sale.session()) == 200
    assert await sale.send(sale.session(metadata=sale.metadata | {"credits": "9000"})) == 422
    assert f"{sale.payment} is paid for and cannot be refilled: IdempotencyConflict: " in sale.program.logged
    assert await sale.refills() == ["5000"]
