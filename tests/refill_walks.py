"""Meters with an automatic refill: what is done to one, and what is seen of its requests and events."""

import json
from typing import Any

from sqlalchemy import select

from storage import ids
from storage.meters.events import events
from tests.conftest import Caller, Gateway
from tests.credit_walks import Walk
from tests.event_bodies import check_body
from tests.steps import bucket_with, must

#: An automatic refill that asks, below 10, for what is missing to 50: 3 times an hour, and 200 credits.
SETTINGS: dict[str, Any] = {
    "mode": "TARGET",
    "below": "10",
    "amount": "50",
    "maxRefills": 3,
    "maxCredits": "200",
    "windowSeconds": 3_600,
    "cooldownSeconds": 0,
}

REFILL = """isEnabled mode below amount maxRefills maxCredits windowSeconds cooldownSeconds requestSeconds maxFailures
  state requestId requestedAt requestedAmount failures lastFailure"""
REQUEST = "id amount state requestedAt expiresAt closedAt failure entry { id kind amount key }"

_REQUESTS = f"""query ($w: String!, $m: String!) {{ billingMeter(workspaceId: $w, externalMeterId: $m) {{
  autoRefill {{ {REFILL} requests(last: 100) {{ nodes {{ {REQUEST} }} }} }}
}} }}"""


class RefillWalk(Walk):
    """A meter on which the steps of a walk are taken, and that has an automatic refill once it is set."""

    def __init__(self, gateway: Gateway, caller: Caller | None = None, *, name: str = "m") -> None:
        super().__init__(gateway, caller, name=name)
        self.uses = 0

    async def begin(self, total: int = 100, *, options: str = "", **settings: Any) -> None:
        """Make the meter, and set its automatic refill."""
        await self.take(f"meter {total} {options}")
        await self.set(**SETTINGS | settings)

    async def set(self, **settings: Any) -> dict[str, Any]:
        """Set the automatic refill, and return it."""
        answer = await must(self.caller, "setAutoRefill", f"autoRefill {{ {REFILL} }}", **self.names | settings)
        return answer["autoRefill"]  # type: ignore[no-any-return]

    async def use(self, amount: int, policy: str = "REJECT") -> str:
        """Use credits, and return what is answered."""
        self.uses += 1
        answer = await self.send(f"use u{self.uses} {amount} {policy}")
        return answer["__typename"]  # type: ignore[no-any-return]

    async def refill(self, request: int, amount: int, caller: Caller | None = None) -> dict[str, Any]:
        """Refill under the id of a request, and return what is answered."""
        selection = """... on RefillBillingMeterSuccess { replayed billingMeter { totalCredits } entry { id key } }
          ... on IdempotencyConflict { firstEntry { amount } }"""
        values = {"refill": str(amount), "idempotencyKey": self.id_of(request)}
        return await (caller or self.caller).mutate("refillBillingMeter", selection, **self.names | values)

    async def fail(self, request: int, reason: str = "card declined") -> dict[str, Any]:
        """Say that a request failed, and return what is answered."""
        selection = f"""... on FailAutoRefillSuccess {{ replayed request {{ {REQUEST} }} autoRefill {{ {REFILL} }} }}
          ... on AutoRefillNotOpen {{ request {{ id state }} }}"""
        return await self.caller.mutate("failAutoRefill", selection, requestId=self.id_of(request), reason=reason)

    async def resume(self) -> dict[str, Any]:
        """Resume, and return the automatic refill."""
        answer = await must(self.caller, "resumeAutoRefill", f"autoRefill {{ {REFILL} }}", **self.names)
        return answer["autoRefill"]  # type: ignore[no-any-return]

    async def shown(self) -> dict[str, Any]:
        """Return the automatic refill, with its `requests` from the oldest on."""
        shown: dict[str, Any] = (await self._read(_REQUESTS))["autoRefill"]
        return shown | {"requests": shown["requests"]["nodes"][::-1]}

    async def requests(self) -> list[str]:
        """Return each request's amount and state, the oldest first."""
        return [f"{request['amount']} {request['state']}" for request in (await self.shown())["requests"]]

    async def events(self) -> list[str]:
        """Return what the refill has caused of events, without `refill.`, and what each is about."""
        found = [event for event in await events_of(self.gateway, self.meter_id) if event["type"].startswith("refill.")]
        return [_line(event) for event in found]

    def id_of(self, request: int) -> str:
        """Return the id of a request."""
        return ids.numbered_id(ids.AUTO_REFILL_REQUEST, self.meter_id, request)


def _line(event: dict[str, Any]) -> str:
    words, about = [event["type"].removeprefix("refill.")], event["data"]["refill"]
    words += [about["requestId"].rsplit("_")[-1], about["amount"]] if "requestId" in about else []
    words += ["late"] if about.get("late") else []
    return " ".join(words)


async def events_of(gateway: Gateway, meter_id: str) -> list[dict[str, Any]]:
    """Return the bodies of all events of a meter, by their numbers."""
    wanted = select(events.c.number, events.c.payload).where(events.c.owner_id == meter_id).order_by(events.c.number)
    async with gateway.database.read(bucket_with(gateway.database, meter_id)) as reader:
        rows = await reader.fetch(wanted)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    bodies = [json.loads(row.payload) for row in rows]
    for body in bodies:
        check_body(body)
    return bodies
