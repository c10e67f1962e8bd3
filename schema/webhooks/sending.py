"""The mutations that send events: a test, and what was sent already or never was."""

from datetime import datetime
from typing import Annotated

import strawberry

from resolvers.errors import InvalidInput as Invalid
from resolvers.webhooks import redelivery
from schema.engine.execution.resolving import DIRECT
from schema.errors import EventNotFound, InvalidInput, WebhookEndpointNotFound
from schema.info import Info, not_null
from schema.meters.events import Event
from schema.meters.webhook_deliveries import WebhookDelivery


@strawberry.input(description="A webhook endpoint to test.")
class SendTestEventInput:
    """The fields of a test."""

    endpoint_id: strawberry.ID = strawberry.field(description="The endpoint's id.")


@strawberry.input(description="Events to send again: one, or those of a range. What is left out is no null.")
class RedeliverEventsInput:
    """The fields of a redelivery."""

    endpoint_id: strawberry.ID = strawberry.field(description="The endpoint's id.")
    event_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="The event's id; left out: those of a range."
    )
    from_: datetime | None = strawberry.field(
        name="from", default=strawberry.UNSET, description="Where the range begins; it belongs to it."
    )
    before: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Where the range ends; it does not belong to it."
    )
    undelivered_only: bool = strawberry.field(
        default=True, description="Of a range: only the events that are not delivered, or never were on their way."
    )


@strawberry.type(description="A test is on its way.")
class SendTestEventSuccess:
    """See `resolvers.webhooks.redelivery.Tested`."""

    event: Event = strawberry.field(description="The test.")
    delivery: WebhookDelivery = strawberry.field(
        description="Its delivery; to an endpoint that is disabled it has failed."
    )


@strawberry.type(description="Events are on their way again.")
class RedeliverEventsSuccess:
    """See `resolvers.webhooks.redelivery.Scheduled`."""

    scheduled: int = strawberry.field(description="How many: at most 1,000, the oldest first.")
    has_more: bool = strawberry.field(description="Whether there are more, which are sent when it is asked again.")


SendTestEventResult = Annotated[
    SendTestEventSuccess | WebhookEndpointNotFound,
    strawberry.union("SendTestEventResult", description="The test, or why there is none."),
]
RedeliverEventsResult = Annotated[
    RedeliverEventsSuccess | InvalidInput | WebhookEndpointNotFound | EventNotFound,
    strawberry.union("RedeliverEventsResult", description="What is sent again, or why nothing is."),
]


@strawberry.type
class SendingMutation:
    """The mutations that send events."""

    @strawberry.mutation(
        description="Sends a test to a webhook endpoint. Needs `webhooks:write` and `billing:read`.", metadata=DIRECT
    )
    async def send_test_event(
        self, info: Info, input: Annotated[SendTestEventInput, strawberry.argument(description="The endpoint.")]
    ) -> SendTestEventResult | None:
        """Send the test."""
        tested = await redelivery.send_test_event(info.context, endpoint_id=input.endpoint_id)
        return SendTestEventSuccess(event=Event.of(tested.event), delivery=WebhookDelivery.of(tested.delivery))

    @strawberry.mutation(
        description="Sends events to a webhook endpoint again. Needs `webhooks:write` and `billing:read`.",
        metadata=DIRECT,
    )
    async def redeliver_events(
        self, info: Info, input: Annotated[RedeliverEventsInput, strawberry.argument(description="Which events.")]
    ) -> RedeliverEventsResult | None:
        """Send them again."""
        event_id = not_null("eventId", input.event_id, "leave it out for a range.")
        from_ = not_null("from", input.from_, "leave it out for one event.")
        before = not_null("before", input.before, "leave it out for one event.")
        if event_id is not None:
            if from_ is not None or before is not None:
                raise Invalid("eventId", "must not be given together with from or before.")
            scheduled = await redelivery.redeliver_event(info.context, endpoint_id=input.endpoint_id, event_id=event_id)
        elif from_ is None or before is None:
            raise Invalid(
                "eventId" if from_ is before else "from" if from_ is None else "before",
                "must be given: one event, or from with before.",
            )
        else:
            scheduled = await redelivery.redeliver_range(
                info.context,
                endpoint_id=input.endpoint_id,
                from_=from_,
                before=before,
                undelivered_only=input.undelivered_only,
            )
        return RedeliverEventsSuccess(scheduled=scheduled.scheduled, has_more=scheduled.has_more)
