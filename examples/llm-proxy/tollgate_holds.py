"""A callback for LiteLLM's proxy: credits are held before a call, and what the call took is committed after it.

`config.yaml` names `tollgate_holds.callback`, and says with each model what its tokens cost. The gateway's address is
the variable GATEWAY_URL, its key GATEWAY_KEY, which needs the scope `usage:write`. A key of the proxy pays from the
meter that has the name of the key's user, in the workspace GATEWAY_WORKSPACE.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import litellm
from fastapi import HTTPException
from litellm.caching.caching import DualCache
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth

log = logging.getLogger("tollgate_holds")

GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
WORKSPACE = os.environ.get("GATEWAY_WORKSPACE", "assistant")

#: Longer than a call takes with all its retries and fallbacks. A hold that nobody closes ends by itself.
HOLD_SECONDS = int(os.environ.get("HOLD_SECONDS", "600"))

#: More than the gateway waits by itself for its database, so that its own answer comes first.
TIMEOUT_SECONDS = 15

#: For how long a request is sent again that gets no answer. A caller waits for the first; nobody for the second.
OPENING_SECONDS = 5
CLOSING_SECONDS = 600

#: Where the hold travels with the call, through its retries and fallbacks.
METADATA_KEY = "tollgate_hold"

HOLD = """mutation ($input: HoldCreditsInput!) {
  answer: holdCredits(input: $input) {
    __typename
    ... on InsufficientCredits { available held openHolds }
    ... on SpendCapExceeded { available held openHolds }
    ... on UserError { message }
  }
}"""

COMMIT = """mutation ($input: CommitHoldInput!) {
  answer: commitHold(input: $input) {
    __typename
    ... on CommitHoldSuccess { refused }
    ... on UserError { message }
  }
}"""

RELEASE = """mutation ($input: ReleaseHoldInput!) {
  answer: releaseHold(input: $input) {
    __typename
    ... on UserError { message }
  }
}"""


class GatewayUnavailable(Exception):
    """The gateway did not answer; whether it has carried the request out is not known."""


class Gateway:
    """The gateway's GraphQL API, with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS
        )

    async def send(self, mutation: str, values: Mapping[str, Any], *, patience_seconds: float) -> dict[str, Any]:
        """Send a mutation until it is answered: under its hold's id it counts once, however often it is sent.

        Raises `GatewayUnavailable`, and `httpx.HTTPStatusError` or `RuntimeError` where sending it again is no help.
        """
        give_up_at = time.monotonic() + patience_seconds
        pause_seconds = 0.1
        while True:
            try:
                response = await self._http.post("/graphql", json={"query": mutation, "variables": {"input": values}})
                # Also a proxy's own 502 or 504: it is not known whether the gateway has got it.
                if not response.is_server_error:
                    return _answer(response)
            except (httpx.TransportError, GatewayUnavailable):
                pass
            if time.monotonic() + pause_seconds > give_up_at:
                raise GatewayUnavailable
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, 5)


def _answer(response: httpx.Response) -> dict[str, Any]:
    body = response.json() if response.is_success else response.raise_for_status().json()
    errors = body.get("errors", [])
    if {(each.get("extensions") or {}).get("code") for each in errors} & {"UNAVAILABLE", "INTERNAL_SERVER_ERROR"}:
        raise GatewayUnavailable
    if errors:
        raise RuntimeError(errors[0]["message"])
    answer: dict[str, Any] = body["data"]["answer"]
    return answer


class Hold(NamedTuple):
    """A call's hold. A caller's own metadata is JSON, and so never one."""

    meter: str
    id: str

    def named(self, **values: Any) -> dict[str, Any]:
        """Return an input of a mutation about it."""
        return {"workspaceId": WORKSPACE, "externalMeterId": self.meter, "holdId": self.id} | values


#: The hold of the request that is being answered.
HOLD_OF_REQUEST: ContextVar[Hold | None] = ContextVar("hold_of_request", default=None)


class Callback(CustomLogger):
    """Holds before a call, commits after it, and releases where there is no answer."""

    def __init__(self) -> None:
        super().__init__()
        self._gateway = Gateway(GATEWAY_URL, os.environ["GATEWAY_KEY"])
        self._closings: set[asyncio.Task[None]] = set()

    async def async_pre_call_hook(
        self, user_api_key_dict: UserAPIKeyAuth, cache: DualCache, data: dict[str, Any], call_type: str
    ) -> None:
        """Hold what the call may cost at most. It runs before all retries and fallbacks."""
        if call_type != "acompletion":
            raise HTTPException(400, "Only chat completions have a price here, and so nothing else is answered.")
        if user_api_key_dict.user_id is None:
            raise HTTPException(403, "The key has no user, and so no meter to pay from.")
        # With it a caller could keep the answer from being reported to `async_log_success_event`.
        data.pop("no-log", None)
        amount = await asyncio.to_thread(highest_cost, data)
        if amount == 0:
            return
        # Not LiteLLM's id of the call: a caller chooses that, and with one of an earlier call it would pay nothing.
        hold = Hold(user_api_key_dict.user_id, str(uuid4()))
        wanted = hold.named(
            amount=str(amount),
            expiresInSeconds=HOLD_SECONDS,
            metadata={"model": data["model"], "litellm_call_id": data["litellm_call_id"]},
        )
        # A limit of LiteLLM's own has refused the model after this, and a fallback is tried.
        if earlier := HOLD_OF_REQUEST.get():
            self._close(RELEASE, earlier.named())
        try:
            answer = await self._gateway.send(HOLD, wanted, patience_seconds=OPENING_SECONDS)
        except Exception as error:  # Whatever it is, no model is called without a hold; LiteLLM logs both errors.
            # The hold may have been made all the same.
            self._close(RELEASE, hold.named())
            raise HTTPException(503, "The credits cannot be checked now. Try again later.") from error
        if answer["__typename"] != "HoldCreditsSuccess":
            raise refusal(answer, amount)
        data["metadata"][METADATA_KEY] = hold
        HOLD_OF_REQUEST.set(hold)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: object, end_time: object
    ) -> None:
        """Commit what the answer took. It runs once, also for what a caller got who left in the middle of a stream."""
        call = kwargs["litellm_params"]
        hold = (call.get("metadata") or {}).get(METADATA_KEY)
        if isinstance(hold, Hold):
            usage = response_obj.usage
            amount = cost(call["model_info"], usage.prompt_tokens, usage.completion_tokens)
            used = hold.named(amount=str(amount), usageName=call["metadata"]["model_group"], ifClosed="RECORD")
            self._close(COMMIT, used)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: UserAPIKeyAuth,
        traceback_str: str | None = None,
    ) -> None:
        """Release the hold: all retries and fallbacks have failed, the stream broke off, or the caller left."""
        hold = (request_data.get("metadata") or {}).get(METADATA_KEY)
        if isinstance(hold, Hold):
            self._close(RELEASE, hold.named())

    def _close(self, mutation: str, values: dict[str, Any]) -> None:
        """Commit or release in the background: LiteLLM gives an event less time than a gateway may need to restart."""
        closing = asyncio.create_task(self._closed(mutation, values))
        # The event loop itself keeps no task alive.
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)

    async def _closed(self, mutation: str, values: dict[str, Any]) -> None:
        try:
            answer = await self._gateway.send(mutation, values, patience_seconds=CLOSING_SECONDS)
        except Exception:  # Whatever it is, this task has no caller to raise it to: it is logged.
            log.exception("A hold is left to its expiry: %s", values)
            return
        if answer["__typename"] == "CommitHoldSuccess":
            if answer["refused"] != "0":
                log.warning("The credits did not cover %s of a call: %s", answer["refused"], values)
        elif mutation == COMMIT:
            log.error("A call is not billed: %s %s", answer["message"], values)


def highest_cost(data: dict[str, Any]) -> int:
    """Return the credits that a request may take, and limit its answer where the request does not.

    Raises `HTTPException` where that cannot be known.
    """
    from litellm.proxy.proxy_server import llm_router  # noqa: PLC0415  # The proxy makes it after it has loaded this.

    model = data["model"]
    own = llm_router.get_model_list(model_name=model) or []
    fallbacks = [name for each in llm_router.fallbacks for name in each.get(model, [])]
    deployments = own + [each for name in fallbacks for each in llm_router.get_model_list(model_name=name) or []]
    if not own:
        raise HTTPException(400, f"There is no model {model!r}.")
    if data.get("max_tokens") is None and data.get("max_completion_tokens") is None:
        data["max_tokens"] = min(each["model_info"]["max_output_tokens"] for each in own)
    limits = [data[name] for name in ("max_tokens", "max_completion_tokens") if data.get(name) is not None]
    choices = 1 if data.get("n") is None else data["n"]
    if not all(type(each) is int and each > 0 for each in (*limits, choices)):
        raise HTTPException(400, "max_tokens, max_completion_tokens and n must be whole numbers greater than 0.")
    try:
        prompt_tokens = litellm.token_counter(model=model, messages=data["messages"], tools=data.get("tools"))
    except Exception as error:  # LiteLLM's counter raises whatever a malformed message makes it meet.
        raise HTTPException(400, "The messages cannot be read.") from error
    return max(cost(each["model_info"], prompt_tokens, choices * max(limits)) for each in deployments)


def cost(model_info: Mapping[str, Any], prompt_tokens: int, completion_tokens: int) -> int:
    """Return the credits of a call, rounded up; `config.yaml` has the prices of 1,000 tokens, in whole credits."""
    input_price = int(model_info["credits_per_1000_input_tokens"])
    output_price = int(model_info["credits_per_1000_output_tokens"])
    return -(-(prompt_tokens * input_price + completion_tokens * output_price) // 1000)


def refusal(answer: dict[str, Any], amount: int) -> HTTPException:
    """Return the proxy's answer to a call that the gateway has refused to hold credits for."""
    match answer["__typename"]:
        case "InsufficientCredits" | "SpendCapExceeded":
            available, held = int(answer["available"]), int(answer["held"])
            message = f"This call may take {amount} credits, and {available} are available."
            if available + held < amount:
                return HTTPException(402, message)
            # What is reserved and not spent may come back.
            calls = answer["openHolds"]
            return HTTPException(429, f"{message} Calls that have not ended ({calls}) reserve {held} more: try again.")
        case "TooManyHolds":
            return HTTPException(429, answer["message"])
        case "BillingMeterNotFound":
            return HTTPException(403, answer["message"])
        case _:
            return HTTPException(400, answer["message"])


callback = Callback()
