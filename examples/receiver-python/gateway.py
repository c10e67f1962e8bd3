"""The gateway's GraphQL API, as far as the receiver needs it."""

from collections.abc import Mapping
from typing import Any

import httpx

REFILL = """mutation ($input: RefillBillingMeterInput!) {
  answer: refillBillingMeter(input: $input) {
    __typename
    ... on UserError { message }
  }
}"""

FAIL = """mutation ($input: FailAutoRefillInput!) {
  answer: failAutoRefill(input: $input) {
    __typename
    ... on UserError { message }
  }
}"""


class Refused(Exception):
    """A rule of the gateway refuses the request; to send it again is no help."""


class Gateway:
    """The gateway, with a key that has the scope `billing:write`."""

    def __init__(self, url: str, key: str) -> None:
        # More than the gateway waits by itself for its database, so that its own answer comes first.
        self._http = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=15)

    async def refill(self, meter: Mapping[str, Any], credits_: str, request_id: str) -> None:
        """Refill the meter, once under the request's id. Raises `Refused`, or another error where nobody knows."""
        named = {"workspaceId": meter["workspaceId"], "externalMeterId": meter["externalMeterId"]}
        await self._send(REFILL, named | {"refill": credits_, "idempotencyKey": request_id})

    async def fail(self, request_id: str, reason: str) -> None:
        """Report that a request is not paid for. Raises what `refill` does."""
        await self._send(FAIL, {"requestId": request_id, "reason": reason})

    async def _send(self, mutation: str, values: Mapping[str, Any]) -> None:
        response = await self._http.post("/graphql", json={"query": mutation, "variables": {"input": values}})
        body = response.raise_for_status().json()
        if "errors" in body:
            raise RuntimeError(body["errors"][0]["message"])
        answer = body["data"]["answer"]
        if "message" in answer:
            raise Refused(f"{answer['__typename']}: {answer['message']}")
