"""Making, changing, deleting and listing alerts, of one meter by its commands and of workspaces by transactions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resolvers import idempotency
from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import AlertNotFound, InvalidInput, TooManyAlerts
from resolvers.meters.alerts.commands import (
    CREATE,
    CreateAlert,
    DeleteAlert,
    NewAlert,
    UpdateAlert,
    changed_alert,
    new_alert,
    replayed,
)
from resolvers.meters.names import meter_name
from resolvers.rules.alerts import MAX_ALERTS
from resolvers.rules.commands import Decision
from resolvers.values import KEY_LENGTH, NAME_LENGTH, USAGE_NAME_LENGTH, check_text
from storage import alerts, ids
from storage.alerts import AlertRow
from storage.engine.pages import Page
from storage.engine.transactions import Writer
from storage.meters.billing_meters import MeterName
from storage.meters.meter_alerts import AlertKind

#: The longest time before the end of a grant, in seconds: a leap year.
MAX_SECONDS = 366 * 86_400


class AlertOutcome(NamedTuple):
    """An alert after a mutation."""

    alert: AlertRow
    replayed: bool = False


async def create_alert(context: Context, request: NewAlert, *, idempotency_key: str | None = None) -> AlertOutcome:
    """Make an alert of a meter, or of each meter of a workspace.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound`, `IdempotencyConflict` and `TooManyAlerts`, in this
    order.
    """
    actor, external_meter_id = context.actor, request.external_meter_id
    # Of a workspace's alert only the tenant and the workspace are used.
    name = meter_name(actor, request.workspace_id, external_meter_id if external_meter_id is not None else "*")
    _check_threshold(request.kind, request.threshold)
    if request.usage_name is not None:
        check_text("usageName", request.usage_name, length=USAGE_NAME_LENGTH)
        if request.kind is not AlertKind.DAY_USAGE_ABOVE:
            raise InvalidInput("usageName", "must be left out, but for DAY_USAGE_ABOVE.")
    if request.name is not None:
        check_text("name", request.name, length=NAME_LENGTH)
    if request.trigger_if_past and external_meter_id is None:
        raise InvalidInput("triggerIfPast", "must not be true without an externalMeterId.")
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(request.workspace_id)
    alert_id = ids.new_id(ids.ALERT)
    if external_meter_id is not None:
        return _outcome(await context.change(CreateAlert(name, alert_id, request, idempotency_key)))
    return await _create_for_workspace(context, name, alert_id, request, idempotency_key)


async def _create_for_workspace(
    context: Context, name: MeterName, alert_id: str, request: NewAlert, idempotency_key: str | None
) -> AlertOutcome:
    actor = context.actor

    async def create(writer: Writer) -> AlertOutcome:
        now = context.clock()
        await alerts.lock_workspace(writer, name)
        if own := (await alerts.by_ids(writer, [alert_id])).get(alert_id):
            return AlertOutcome(own)
        earlier = await idempotency.earlier(writer, actor, operation=CREATE, key=idempotency_key)
        if earlier is not None:
            found = await alerts.by_ids(writer, [earlier.result_id])
            return AlertOutcome(replayed(earlier, request, found), replayed=True)
        if await alerts.count_of_workspace(writer, name) >= MAX_ALERTS:
            raise TooManyAlerts(MAX_ALERTS)
        alert = new_alert(alert_id, name, request, meter_id=None, now=now)
        await alerts.insert_alert(writer, alert)
        await idempotency.remember(
            writer, actor, operation=CREATE, key=idempotency_key, request=request, result_id=alert.id, now=now
        )
        return AlertOutcome(alert)

    outcome = await context.database.write(create, is_repeatable=True)
    context.forget()
    context.meter_writer.alerts_of_workspaces.add(outcome.alert)
    return outcome


async def update_alert(
    context: Context, *, id_: str, changes: Mapping[str, Any], trigger_if_past: bool = False
) -> AlertOutcome:
    """Change the `threshold` or `name` of an alert; what `changes` leaves out stays.

    Raises `InvalidInput`, `Forbidden` and `AlertNotFound`; what is wrong with a value for the alert's kind comes last.
    """
    if (name := changes.get("name")) is not None:
        check_text("name", name, length=NAME_LENGTH)
    alert = await _found(context, id_)
    if "threshold" in changes:
        _check_threshold(alert.kind, changes["threshold"])
    if alert.external_meter_id is not None:
        command = UpdateAlert(_name_of(alert, alert.external_meter_id), id_, changes, trigger_if_past)
        return _outcome(await context.change(command))
    if trigger_if_past:
        raise InvalidInput("triggerIfPast", "must not be true for an alert of a workspace.")

    async def change(writer: Writer) -> AlertOutcome:
        found = await alerts.lock(writer, id_)
        if found is None or found.is_deleted:
            raise AlertNotFound
        changed = changed_alert(found, changes)
        if changed != found:
            await alerts.update_alert(writer, changed)
        return AlertOutcome(changed)

    outcome = await context.database.write(change, is_repeatable=True)
    context.forget()
    return outcome


async def delete_alert(context: Context, *, id_: str) -> None:
    """Delete an alert. Raises `Forbidden` and `AlertNotFound`."""
    alert = await _found(context, id_)
    tried: list[str] = []
    if alert.external_meter_id is not None:
        await context.change(DeleteAlert(_name_of(alert, alert.external_meter_id), id_, tried))
        return

    async def remove(writer: Writer) -> None:
        found = await alerts.lock(writer, id_)
        if found is None or (found.is_deleted and not tried):
            raise AlertNotFound
        tried.append(id_)
        await alerts.update_alert(writer, found._replace(is_deleted=True))

    await context.database.write(remove, is_repeatable=True)
    context.forget()


async def list_alerts(context: Context, page: Page, *, workspace_id: str | None = None) -> Sequence[AlertRow]:
    """Return a page of the alerts, of one workspace where one is named, and one more row where there is one.

    Raises `InvalidInput` and `Forbidden`, in this order.
    """
    actor = context.actor
    if workspace_id is not None:
        check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    actor.require(Scope.BILLING_READ)
    actor.require_organization()
    if workspace_id is not None:
        actor.require_workspace(workspace_id)
    workspace_ids = actor.workspace_ids if workspace_id is None else (workspace_id,)
    async with context.database.read() as reader:
        return await alerts.page(
            reader, page, org_id=actor.org_id, environment=actor.environment, workspace_ids=workspace_ids
        )


async def _found(context: Context, id_: str) -> AlertRow:
    """Return an alert that the actor may change. Raises `Forbidden` and `AlertNotFound`."""
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    if not ids.is_id(id_, ids.ALERT):
        raise AlertNotFound
    async with context.database.read() as reader:
        found = await alerts.by_ids(reader, [id_], org_id=actor.org_id, environment=actor.environment)
    alert = found.get(id_)
    if alert is None or alert.is_deleted or not actor.may_enter(alert.workspace_id):
        raise AlertNotFound
    return alert


def _check_threshold(kind: AlertKind, threshold: int) -> None:
    """Hold a threshold against the rule of its kind. Raises `InvalidInput`."""
    if kind is AlertKind.AVAILABLE_BELOW and threshold == 0:
        raise InvalidInput("threshold", f"must be greater than 0 for {kind.name}: fewer are never available.")
    if kind is AlertKind.GRANT_EXPIRES_WITHIN and not 1 <= threshold <= MAX_SECONDS:
        raise InvalidInput("threshold", f"must be 1 to {MAX_SECONDS} seconds for {kind.name}.")


def _outcome(decision: Decision) -> AlertOutcome:
    assert decision.alert is not None  # noqa: S101  # Each command of an alert has it.
    return AlertOutcome(decision.alert, decision.replayed)


def _name_of(alert: AlertRow, external_meter_id: str) -> MeterName:
    return MeterName(alert.org_id, alert.environment, alert.workspace_id, external_meter_id)
