"""The demo organization: customers, meters, two months of usage, grants and holds, made by the gateway's own rules.

Everything has a name of its own, so seeding again replays what is there and adds only the days since.
"""

import os
import random
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from gateway.services import Services
from gateway.settings import Settings
from resolvers.actor import DEMO, Actor, Scope
from resolvers.api_keys import create_api_key
from resolvers.context import Context
from resolvers.customers.customers import NewCustomer, create_customer
from resolvers.errors import LimitRefusal, Refusal, Unauthenticated
from resolvers.meters.create import create_billing_meter
from resolvers.meters.grants import grant_credits
from resolvers.meters.holds import MAX_SECONDS, hold_credits
from resolvers.meters.record_usage import RecordUsage
from resolvers.meters.settings import NewBillingMeter
from storage.meters.credit_grants import CreditGrantCategory
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment

ORG = "demo"

DAYS = 60

_CUSTOMERS = (
    "Acme Robotics",
    "Birch & Finch",
    "Cobalt Freight",
    "Delta Dental",
    "Elm Street Bakery",
    "Fjord Analytics",
    "Granite Legal",
    "Harbor Lights",
    "Iris Optics",
    "Juniper Farms",
    "Kite Travel",
    "Lumen Press",
)

#: A customer's two meters: workspace, credits granted from the start, overages, spend cap, and the daily usage by name.
_METERS: tuple[tuple[str, int, bool, int | None, dict[str, int]], ...] = (
    ("assistant", 1_000_000, True, 250_000, {"contextTokens": 9_000, "generatedTokens": 3_000}),
    ("images", 2_500, False, None, {"default": 30}),
)


async def seed(services: Services) -> str:
    """Make the demo organization, or bring it up to today, and return its sandbox key."""
    context = services.context(Actor(DEMO, ORG, Environment.SANDBOX, frozenset(Scope)))
    for name in _CUSTOMERS:
        await _seed_customer(context, name)
    return await _key(services)


async def _seed_customer(context: Context, name: str) -> None:
    external_id = name.lower().replace(" & ", "-").replace(" ", "-")
    plan = "starter" if len(name) % 2 else "growth"
    customer = NewCustomer(
        email=f"billing@{external_id}.example.com",
        name=name,
        external_id=external_id,
        metadata={"plan": plan},
    )
    made = await create_customer(context, customer, idempotency_key=f"demo-{external_id}")
    for workspace_id, credits_, allow_overages, spend_cap, daily in _METERS:
        meter = NewBillingMeter(
            workspace_id,
            external_id,
            total_credits=credits_,
            allow_overages=allow_overages,
            spend_cap=spend_cap,
            customer_id=made.customer.id,
        )
        await create_billing_meter(context, meter, idempotency_key=f"demo-{workspace_id}-{external_id}")
        await _seed_usage(context, workspace_id, external_id, daily)
    if plan == "growth":
        await _seed_credits(context, external_id)


async def _seed_usage(context: Context, workspace_id: str, external_id: str, daily: dict[str, int]) -> None:
    noon = context.clock().replace(hour=12, minute=0, second=0, microsecond=0)
    days = [noon - timedelta(days=back) for back in range(DAYS, 0, -1)]
    results = await context.meter_writer.submit(
        [
            RecordUsage.of(
                context.actor,
                workspace_id=workspace_id,
                external_meter_id=external_id,
                event_id=f"demo-{day:%Y-%m-%d}-{usage_name}",
                amount=_amount(f"{workspace_id} {external_id} {usage_name}", day, usual),
                usage_name=usage_name,
                occurred_at=day,
                policy=OverLimitPolicy.FORCE,
            )
            for day in days
            for usage_name, usual in daily.items()
        ],
    )
    for result in results:
        if isinstance(result, Refusal):
            raise result


async def _seed_credits(context: Context, external_id: str) -> None:
    """Grant what comes with the plan each month, until the end of the next one, and hold what a call of today takes."""
    today = context.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    await grant_credits(
        context,
        workspace_id="assistant",
        external_meter_id=external_id,
        amount=25_000,
        category=CreditGrantCategory.PROMOTIONAL,
        expires_at=(month + timedelta(days=62)).replace(day=1),
        reason="The month's credits of the plan",
        idempotency_key=f"demo-{month:%Y-%m}",
    )
    with suppress(LimitRefusal):  # A demo that is old enough has used everything.
        await hold_credits(
            context,
            workspace_id="assistant",
            external_meter_id=external_id,
            hold_id=f"demo-{today:%Y-%m-%d}",
            amount=2_000,
            expires_in_seconds=MAX_SECONDS,
        )


def _amount(series: str, day: datetime, usual: int) -> int:
    """Return the same amount for the same series and day, lower at weekends."""
    chance = random.Random(f"{series} {day:%Y-%m-%d}")  # noqa: S311  # Invented usage, not a secret.
    weekend = 5
    return usual * chance.randint(60, 140) // (100 if day.weekday() < weekend else 300)


async def _key(services: Services) -> str:
    """Return the key that the demo's key file holds, or make one and write it there, for its owner alone to read."""
    key = read_key(services.settings)
    with suppress(Unauthenticated):  # It is another database's, or was revoked.
        if (await services.api_keys.actor_of(key)).org_id == ORG:
            return key
    _, key = await create_api_key(
        services.database, org_id=ORG, environment=Environment.SANDBOX, name="demo", now=services.clock()
    )
    _write_key(Path(services.settings.demo_key_file), key)
    return key


def read_key(settings: Settings) -> str:
    """Return the key that the demo's key file holds, or nothing if there is none."""
    file = Path(settings.demo_key_file)
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""


def _write_key(file: Path, key: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(key + "\n")
