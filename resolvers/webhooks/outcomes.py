"""What came of attempts, written in groups; and endpoints that have failed for too long, or are gone, disabled."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from resolvers.rules.events import body
from resolvers.webhooks.claims import Claimed
from resolvers.webhooks.disabling import FAILING, fail_pending
from resolvers.webhooks.disabling import GONE as GONE_REASON
from resolvers.webhooks.schedule import GONE, after, is_delivered
from storage import ids, webhook_endpoints
from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.meters import events, webhook_deliveries
from storage.meters.events import EventRow, EventType
from storage.meters.webhook_deliveries import Attempt, DeliveryRow
from storage.webhook_endpoints import WebhookEndpointRow

#: For how long nothing but failures disables an endpoint.
FAILING_FOR = timedelta(days=5)


class Outcome(NamedTuple):
    """What came of an attempt. `retry_after_seconds` is what the endpoint has asked for."""

    claimed: Claimed
    attempt: Attempt
    retry_after_seconds: int | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the event is delivered."""
        return is_delivered(self.attempt)


async def write_outcomes(database: Database, outcomes: Sequence[Outcome], *, now: datetime) -> list[DeliveryRow]:
    """Write what has become of deliveries in one bucket, as far as they are still claimed so; return these."""
    work = partial(_write, outcomes={each.claimed.delivery.id: each for each in outcomes}, now=now)
    return await database.write(work, bucket=outcomes[0].claimed.bucket, is_repeatable=True)


async def _write(writer: Writer, *, outcomes: Mapping[str, Outcome], now: datetime) -> list[DeliveryRow]:
    locked = await webhook_deliveries.lock(writer, sorted(outcomes))
    changed = [
        after(row, outcome.attempt, now=now, retry_after_seconds=outcome.retry_after_seconds)
        for id_, row in locked.items()
        if row.is_claimed_by((outcome := outcomes[id_]).claimed.claim)
    ]
    if changed:
        await webhook_deliveries.update_deliveries(writer, changed)
    return changed


async def note_health(database: Database, outcomes: Sequence[Outcome], *, now: datetime) -> list[WebhookEndpointRow]:
    """Note since when endpoints have done nothing but fail, disable those that it is too long of, and return these."""
    noted: dict[str, Outcome] = {}
    for outcome in outcomes:
        row = outcome.claimed.endpoint
        is_gone = outcome.attempt.status == GONE
        before = noted.get(row.id)
        # One that is delivered counts for more than those that failed beside it, unless one has said that it is gone.
        if is_gone or before is None or (outcome.is_delivered and before.attempt.status != GONE):
            noted[row.id] = outcome
    disabled = []
    for endpoint_id, outcome in noted.items():
        known = outcome.claimed.endpoint
        if outcome.is_delivered and known.failing_since is None:
            continue
        if not outcome.is_delivered and outcome.attempt.status != GONE and _is_noted(known, now):
            continue
        work = partial(_note, endpoint_id=endpoint_id, outcome=outcome, now=now)
        after_ = await database.write(work, bucket=database.buckets.of_names([endpoint_id]), is_repeatable=True)
        if after_ is not None:
            await fail_pending(database, endpoint_id)
            disabled.append(after_)
    return disabled


def _is_noted(known: WebhookEndpointRow, now: datetime) -> bool:
    """Whether a failure changes nothing of what is known of the endpoint."""
    return known.failing_since is not None and now < known.failing_since + FAILING_FOR


async def _note(writer: Writer, *, endpoint_id: str, outcome: Outcome, now: datetime) -> WebhookEndpointRow | None:
    """Note it, and return the endpoint if that disables it; another one's address may have changed meanwhile."""
    await writer.go_one_by_one()
    row = await webhook_endpoints.lock(writer, endpoint_id)
    if row is None or not row.is_enabled or row.url != outcome.claimed.endpoint.url:
        return None
    if outcome.is_delivered:
        if row.failing_since is not None:
            await webhook_endpoints.update_endpoint(writer, row._replace(failing_since=None))
        return None
    since = row.failing_since or outcome.attempt.at
    reason = None
    if outcome.attempt.status == GONE:
        reason = GONE_REASON
    elif now >= since + FAILING_FOR:
        reason = FAILING
    changed = row._replace(failing_since=since, disabled_reason=reason)
    if reason is not None:
        changed = changed._replace(last_event=row.last_event + 1)
        data = endpoint_shown(row) | {"reason": reason}
        await events.insert_events(writer, [own_event(changed, EventType.WEBHOOK_ENDPOINT_DISABLED, data, now)])
    if changed != row:
        await webhook_endpoints.update_endpoint(writer, changed)
    return changed if reason is not None else None


def endpoint_shown(endpoint: WebhookEndpointRow) -> dict[str, object]:
    """Return what the bodies of its own events have of an endpoint."""
    return {"webhookEndpoint": {"id": endpoint.id, "description": endpoint.description}}


def own_event(endpoint: WebhookEndpointRow, type_: EventType, data: Mapping[str, object], now: datetime) -> EventRow:
    """Return the newest event of an endpoint's own, whose number it has already."""
    return EventRow(
        owner_id=endpoint.id,
        number=endpoint.last_event,
        org_id=endpoint.org_id,
        environment=endpoint.environment,
        workspace_id=None,
        type=type_,
        seq=None,
        alert_id=None,
        created_at=now,
        position=ids.event_position(now, endpoint.id, endpoint.last_event),
        payload=body(type_, now, data),
    )
