"""Alerts: reading, making, changing and deleting them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from resolvers import errors
from resolvers.context import Context
from resolvers.meters.alerts.changes import create_alert, delete_alert, list_alerts, update_alert
from resolvers.meters.alerts.commands import NewAlert
from resolvers.rules.alerts import MAX_ALERTS
from resolvers.values import NAME_LENGTH, USAGE_NAME_LENGTH
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import AN_ID, records, text
from schema.enums import AlertKind, AlertState
from schema.errors import AlertNotFound, BillingMeterNotFound, IdempotencyConflict, InvalidInput, TooManyAlerts
from schema.info import Info, changes_of, given, not_null, values_of
from schema.relay import PAGE, After, Before, Connection, First, Last, Node, connection_of, page_arguments
from schema.scalars import BigInt
from storage import ids
from storage.alerts import AlertRow
from storage.meters import meter_alerts

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

#: The metadata of the list of a meter's alerts: its own, and those of its workspace.
OF_METER = records(lambda _asked: 2 * MAX_ALERTS)

_IN_CREDITS = "In credits; of `GRANT_EXPIRES_WITHIN` in seconds."


@strawberry.type(description="A rule: when it comes true of a billing meter, and no longer, there is an event.")
class Alert(Node, record=AlertRow):
    """See `storage.alerts.AlertRow`."""

    workspace_id: str = strawberry.field(description="The workspace of its meters.", metadata=text(NAME_LENGTH))
    external_meter_id: str | None = strawberry.field(
        description="The one meter that it is about; null: it is about each meter of the workspace.",
        metadata=text(NAME_LENGTH),
    )
    kind: AlertKind = strawberry.field(description="What is compared with the threshold.")
    threshold: BigInt = strawberry.field(description=_IN_CREDITS)
    usage_name: str | None = strawberry.field(
        description="Of `DAY_USAGE_ABOVE`, the usage name that is watched; null: all names together.",
        metadata=text(USAGE_NAME_LENGTH),
    )
    name: str | None = strawberry.field(
        description="What the caller calls it, for people; null: nothing.", metadata=text(NAME_LENGTH)
    )
    version: int = strawberry.field(description="One more with each change of the threshold, from 1 on.")
    created_at: datetime = strawberry.field(description="When it was made.")


@strawberry.type(description="An alert, and how a billing meter stands to it.")
class MeterAlert:
    """See `resolvers.reading.alerts.AlertOfMeter`."""

    alert: Alert = strawberry.field(description="The alert.")
    state: AlertState = strawberry.field(description="Whether the meter is past the threshold now.")
    last_triggered_at: datetime | None = strawberry.field(
        description="When this version of the alert last triggered for the meter; null: it has not."
    )


async def alerts_of(context: Context, meters: Sequence["BillingMeter"]) -> list[list[MeterAlert]]:
    """Return the alerts of each meter."""
    found = await context.reading.alerts_of_meter.load_many([str(meter.id) for meter in meters])
    return [
        [
            MeterAlert(
                alert=Alert.of(each.alert),
                state=AlertState.TRIGGERED if each.is_past else AlertState.ARMED,
                last_triggered_at=each.last_triggered_at,
            )
            for each in of_meter
        ]
        for of_meter in found
    ]


@strawberry.type
class AlertQuery:
    """The query of alerts."""

    @strawberry.field(description="The alerts, newest first.", metadata=DIRECT | PAGE)
    async def alerts(
        self,
        info: Info,
        first: First = strawberry.UNSET,
        after: After = strawberry.UNSET,
        last: Last = strawberry.UNSET,
        before: Before = strawberry.UNSET,
        workspace_id: Annotated[
            str | None,
            strawberry.argument(description="Only alerts of this workspace and its meters; left out: all."),
        ] = strawberry.UNSET,
    ) -> Connection[Alert]:
        """Return a page of the alerts."""
        arguments = page_arguments(info.context, ids.ALERT, first, after, last, before)
        rows = await list_alerts(info.context, arguments.page, workspace_id=given(workspace_id))
        return connection_of(arguments, rows, Alert, id_of=lambda row: row.id)


@strawberry.input(description="A new alert.")
class CreateAlertInput:
    """The fields of a new alert."""

    workspace_id: str = strawberry.field(description="The workspace of its meters, 1 to 256 characters.")
    external_meter_id: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The one meter that it is about; left out: each meter of the workspace, also those that are made later."
            " Null is refused."
        ),
    )
    kind: AlertKind = strawberry.field(description="What is compared with the threshold.")
    threshold: BigInt = strawberry.field(description=_IN_CREDITS)
    usage_name: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "Of `DAY_USAGE_ABOVE` alone: the usage name to watch, 1 to 128 characters; left out: all names together."
            " Null is refused."
        ),
    )
    name: str | None = strawberry.field(
        default=strawberry.UNSET, description="What to call it, for people, 1 to 256 characters."
    )
    trigger_if_past: bool = strawberry.field(
        default=False,
        description="Whether it triggers at once if the meter is past the threshold already; of one meter alone.",
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The caller's name of this request, 1 to 255 characters: repeating it answers the alert it made.",
    )


@strawberry.input(description="A change of an alert; what is left out stays.")
class UpdateAlertInput:
    """The fields of an alert that can be changed."""

    id: strawberry.ID = strawberry.field(description="The alert's id.")
    threshold: strawberry.Maybe[BigInt | None] = strawberry.field(
        default=None, description=f"{_IN_CREDITS} Null is refused."
    )
    name: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="What to call it, for people, 1 to 256 characters; null: nothing."
    )
    trigger_if_past: bool = strawberry.field(
        default=False,
        description=(
            "Whether it triggers at once if the meter is past the new threshold already; of one meter alone. It has no"
            " effect where the threshold stays."
        ),
    )


@strawberry.input(description="An alert to delete.")
class DeleteAlertInput:
    """Which alert to delete."""

    id: strawberry.ID = strawberry.field(description="The alert's id.")


@strawberry.type(description="An alert was made.")
class CreateAlertSuccess:
    """See `resolvers.meters.alerts.changes.AlertOutcome`."""

    alert: Alert = strawberry.field(description="The alert, as it is now.")
    replayed: bool = strawberry.field(description="Whether an earlier request under the same key had made it.")


@strawberry.type(description="An alert was changed, or already was as wanted.")
class UpdateAlertSuccess:
    """See `resolvers.meters.alerts.changes.AlertOutcome`."""

    alert: Alert = strawberry.field(description="The alert, as it is now.")


@strawberry.type(description="An alert was deleted.")
class DeleteAlertSuccess:
    """What was deleted."""

    deleted_id: strawberry.ID = strawberry.field(description="The alert's id.", metadata=AN_ID)


CreateAlertResult = Annotated[
    CreateAlertSuccess | InvalidInput | BillingMeterNotFound | IdempotencyConflict | TooManyAlerts,
    strawberry.union("CreateAlertResult", description="The new alert, or why there is none."),
]
UpdateAlertResult = Annotated[
    UpdateAlertSuccess | InvalidInput | AlertNotFound,
    strawberry.union("UpdateAlertResult", description="The changed alert, or why it was not changed."),
]
DeleteAlertResult = Annotated[
    DeleteAlertSuccess | AlertNotFound,
    strawberry.union("DeleteAlertResult", description="The deleted alert, or why it was not deleted."),
]


@strawberry.type
class AlertMutation:
    """The mutations of alerts."""

    @strawberry.mutation(
        description="Makes an alert of a billing meter, or of each meter of a workspace. Needs `billing:write`.",
        metadata=DIRECT,
    )
    async def create_alert(
        self, info: Info, input: Annotated[CreateAlertInput, strawberry.argument(description="The new alert.")]
    ) -> CreateAlertResult | None:
        """Make the alert."""
        not_null("externalMeterId", input.external_meter_id, "leave it out for each meter of the workspace.")
        not_null("usageName", input.usage_name, "leave it out for all names together.")
        values = values_of(input) | {"kind": meter_alerts.AlertKind[input.kind.name]}
        key = values.pop("idempotency_key", None)
        outcome = await create_alert(info.context, NewAlert(**values), idempotency_key=key)
        return CreateAlertSuccess(alert=Alert.of(outcome.alert), replayed=outcome.replayed)

    @strawberry.mutation(
        description=(
            "Changes the threshold or the name of an alert. Another threshold is another version of it. Needs "
            "`billing:write`."
        ),
        metadata=DIRECT,
    )
    async def update_alert(
        self,
        info: Info,
        input: Annotated[UpdateAlertInput, strawberry.argument(description="The alert, and what to change of it.")],
    ) -> UpdateAlertResult | None:
        """Change the alert."""
        changes = changes_of(input)
        if changes.get("threshold", 0) is None:
            raise errors.InvalidInput("threshold", "must not be null; leave it out to keep it.")
        outcome = await update_alert(info.context, id_=input.id, changes=changes, trigger_if_past=input.trigger_if_past)
        return UpdateAlertSuccess(alert=Alert.of(outcome.alert))

    @strawberry.mutation(description="Deletes an alert; its events stay. Needs `billing:write`.", metadata=DIRECT)
    async def delete_alert(
        self, info: Info, input: Annotated[DeleteAlertInput, strawberry.argument(description="Which alert.")]
    ) -> DeleteAlertResult | None:
        """Delete the alert."""
        await delete_alert(info.context, id_=input.id)
        return DeleteAlertSuccess(deleted_id=input.id)
