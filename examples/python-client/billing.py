"""Read balances, record usage and refill meters, through the client that is generated from the schema.

    python billing.py customer acme-robotics
    python billing.py record images acme-robotics request-1 3
    python billing.py refill images acme-robotics 500 invoice-1

The gateway's address is the variable GATEWAY_URL, its key GATEWAY_KEY. The exit code is 1 where the gateway refuses.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
from tollgate_client import (
    Balance,
    GraphQLClientGraphQLMultiError,
    GraphQLClientHttpError,
    OverLimitPolicy,
    RecordUsageInput,
    RefillBillingMeterInput,
    Tollgate,
)

Answer = TypeVar("Answer")

#: How often a write is sent before giving up; the waits between add up to some twelve seconds.
ATTEMPTS = 8

#: More than the gateway waits by itself for its database, so that its own answer comes first.
TIMEOUT_SECONDS = 15

#: A mutation's field is null only beside an error, and for that the client raises its own.
NO_RESULT = "The gateway answered neither a result nor an error."


async def customer(client: Tollgate, external_id: str) -> bool:
    """Print the balances of a customer's meters, and return whether there is such a customer."""
    found = await client.customer(external_id)
    if found is None:
        print(f"There is no customer {external_id}.")
        return False
    print(found.name or found.email)
    for meter in found.billing_meters.nodes:
        print(balance_line(meter))
    return True


async def record(client: Tollgate, event: RecordUsageInput) -> bool:
    """Record an event, and return whether it was accepted."""
    answer = await answered(lambda: client.record_usage(event, timeout=TIMEOUT_SECONDS))
    if answer is None:
        raise RuntimeError(NO_RESULT)
    # The name of the type says which fields there are, to the reader and to mypy.
    match answer.typename__:
        case "RecordUsageSuccess":
            again = ", as it was before" if answer.replayed else ""
            print(f"Recorded {answer.accepted}, refused {answer.refused}{again}.")
            return True
        case "InsufficientCredits" | "SpendCapExceeded":
            print(f"{answer.typename__}: {answer.available} available.")
        case "IdempotencyConflict":
            first = answer.first_entry.requested_amount if answer.first_entry else None
            print(f"{answer.typename__}: the event was recorded with {first}.")
        case "InvalidInput":
            print(f"{answer.typename__}: {'.'.join(answer.field)}: {answer.message}")
        case _:
            print(f"{answer.typename__}: {answer.message}")
    return False


async def refill(client: Tollgate, wanted: RefillBillingMeterInput) -> bool:
    """Refill a meter, and return whether it was refilled."""
    answer = await answered(lambda: client.refill_meter(wanted, timeout=TIMEOUT_SECONDS))
    if answer is None:
        raise RuntimeError(NO_RESULT)
    if answer.typename__ == "RefillBillingMeterSuccess":
        print(balance_line(answer.billing_meter) + (" (as refilled before)" if answer.replayed else ""))
        return True
    print(f"{answer.typename__}: {answer.message}")
    return False


async def answered(send: Callable[[], Awaitable[Answer]]) -> Answer:
    """Send a write until it is answered: under its event id or key it counts once, however often it is sent."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await send()
        except (httpx.TransportError, GraphQLClientHttpError, GraphQLClientGraphQLMultiError) as error:
            if not may_pass(error):
                raise
        await asyncio.sleep(0.1 * 2 ** (attempt - 1))
    return await send()


def may_pass(error: Exception) -> bool:
    """Return whether sending the same again may help: it was lost, or the gateway cannot serve now."""
    if isinstance(error, GraphQLClientGraphQLMultiError):
        return any((each.extensions or {}).get("code") == "UNAVAILABLE" for each in error.errors)
    # Also a proxy's own 502 or 504: it is not known whether the gateway has got it.
    return not isinstance(error, GraphQLClientHttpError) or httpx.codes.is_server_error(error.status_code)


def balance_line(meter: Balance) -> str:
    """Return the meter's balance, for people."""
    available = "no limit" if meter.available_credits is None else f"{meter.available_credits:,} available"
    return f"{meter.workspace_id}: {meter.used_credits:,} of {meter.total_credits:,} used, {available}"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("customer", help="Print the balances of a customer's meters.")
    asked.add_argument("external_id")
    event = commands.add_parser("record", help="Record a usage event.")
    bought = commands.add_parser("refill", help="Refill a meter.")
    for command in (event, bought):
        command.add_argument("workspace_id")
        command.add_argument("external_meter_id")
    event.add_argument("event_id")
    event.add_argument("amount", type=int)
    event.add_argument("--policy", type=OverLimitPolicy, default=OverLimitPolicy.REJECT, help="PARTIAL, for example.")
    bought.add_argument("refill", type=int)
    bought.add_argument("idempotency_key")
    return parser.parse_args()


async def main() -> bool:
    """Do what the command line says, and return whether it was done."""
    asked = vars(arguments())
    command = asked.pop("command")
    url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000") + "/graphql"
    headers = {"Authorization": f"Bearer {os.environ['GATEWAY_KEY']}"}
    async with Tollgate(url, headers) as client:
        if command == "record":
            return await record(client, RecordUsageInput(**asked))
        if command == "refill":
            return await refill(client, RefillBillingMeterInput(**asked))
        return await customer(client, **asked)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
